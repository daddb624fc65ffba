-- dead_letters.sql: dead letters beyond what sagas_failures.sql and timers.sql say: what becomes of them when their saga,
-- their timer or their cause goes, and what does not count as an attempt (rule 17).

\ir include/setup.sql
\ir include/counter.sql
\ir include/sagas.sql

SELECT plan(32);
SET test.kind = counter;
SET test.kind_of_saga = functions;
SELECT register_script('script', max_attempts => 1) \g /dev/null
-- "attempts sqlstate code message detail" and how it was resolved
CREATE FUNCTION test.letter(of_key text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(concat_ws(' ', attempts, sqlstate, code, message, detail, resolution, reason), ', '
    ORDER BY dead_letter_id) FROM evpg.dead_letter WHERE key = of_key $$;
CREATE FUNCTION test.retry(of_key text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(' ', r.status, r.aggregate_type, r.sqlstate, r.code, r.message, r.detail, r.hint)
    FROM evpg.dead_letter d, evpg_retry_dead_letter(d.dead_letter_id) r WHERE d.key = of_key AND d.resolved_at IS NULL $$;

-- ------------------------------------------------------------------ a retry

-- each refusal says why, and the letter keeps the last one
SELECT start('l1', '{"set": {"on_refusal": {"unhandled": true}}}' || script(send('x1', 'Subtract', 5, 'take'))) \g /dev/null
SELECT is(run() || ' ' || letter('l1'), '0 1 1 VE002 underflow total 0 is less than 5 {"total": 0}', 'a refusal [A34]');
SELECT try('x1', 'Add', '{"n": 3}') \g /dev/null
SELECT is(retry('l1'), 'rejected VE002 underflow total 3 is less than 5 {"total": 3}',
  'retried, it is refused for another reason [A34]');
SELECT is(letter('l1'), '2 VE002 underflow total 3 is less than 5 {"total": 3}',
  'retried, it is refused for another reason, which is kept, and counted [A34]');
SELECT start('l2', '{"set": {"on_refusal": {"unhandled": true}}}' || script(send('x2', 'Add', 2000))),
  start('l3', '{"set": {"on_refusal": {"unhandled": true}}}'
  || script(evpg_action_send('counter', 'x3', 'Add', '{"n": 1}', expected_version => 7))) \g /dev/null
SELECT run() \g /dev/null
SELECT is(retry('l2'), 'invariant VE006 limit total 2000 is above 1000 {"total": 2000}', 'a violated invariant [A34]');
SELECT
  is(retry('l3') LIKE
  'conflict VE001 version conflict on aggregate "counter", stream "x3": expected 7, actual 0 {"actual": 0,%} '
  'Read the stream%', true, 'a conflict [A34]');
-- the saga is told how often
SELECT is((SELECT count(*) FROM evpg.dead_letter WHERE resolved_at IS NULL), 3::bigint, 'all of them are still there [A34]');
-- repaired by another handler
SELECT start('l4', '{"fail": "no"}') \g /dev/null
SELECT run() \g /dev/null
CREATE OR REPLACE FUNCTION test.script_refused(state jsonb, rejection evpg.rejection) RETURNS evpg.reaction
  LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction(state || jsonb_build_object('gave up', rejection.code, 'tried', rejection.attempts),
    evpg_action_complete()) $$;
SELECT is((SELECT retried || ' ' || failed FROM evpg_retry_dead_letters('script')), '3 1',
  'a rejection handler that is repaired [rule 17]');
SELECT is((SELECT concat_ws(' ', status, state->>'gave up') FROM evpg_saga('script', 'l1')), 'completed underflow',
  'handles what is retried [rule 17]');
SELECT is((SELECT state->>'tried' FROM evpg_saga('script', 'l1')), '3',
  'handles what is retried, and is told how often it was tried [rule 17]');
SELECT is(letter('l1'), '2 VE002 underflow total 3 is less than 5 {"total": 3} retried',
  'a retried dead letter is kept [A34]');
SELECT is(letter('l4'), '2 VE009 saga failed: no', 'one that fails still [A34]');

-- while the saga is paused
SELECT evpg_pause_consumer('script') \g /dev/null
CREATE OR REPLACE FUNCTION test.script_follow(state jsonb, script jsonb) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT (state || '{"mended": true}', script->'actions')::evpg.reaction
$$;
SELECT is(retry('l4'), 'ok', 'an administrator can retry while the saga is paused [rule 17]');
SELECT evpg_resume_consumer('script') \g /dev/null
SELECT is((SELECT state->>'mended' FROM evpg_saga('script', 'l4')), 'true', 'by a handler that is replaced [rule 17]');
BEGIN ISOLATION LEVEL REPEATABLE READ;
ROLLBACK;
SELECT is((SELECT count(*) FROM evpg_retry_dead_letter(-1)), 0::bigint, 'one that does not exist [A34]');
SELECT is(evpg_discard_dead_letter(-1, 'x'), false, 'a dead letter that does not exist cannot be discarded [A34]');
SELECT is(error_of($$SELECT evpg_retry_dead_letters('script', -1)$$), '22023 max_count must not be negative',
  'less than none [A34]');
BEGIN READ ONLY;
SELECT is(error_of('SELECT evpg_retry_dead_letter(1)') || error_of($$SELECT evpg_retry_dead_letters('script')$$)
  || error_of($$SELECT evpg_discard_dead_letter(1, 'x')$$),
  '25006 cannot execute evpg_retry_dead_letter() in a read-only transaction25006 cannot execute '
    'evpg_retry_dead_letters() in a read-only transaction25006 cannot execute evpg_discard_dead_letter() in a '
    'read-only transaction', 'they write [A34]');
ROLLBACK;

-- ------------------------------------------------------------------ tried again

-- errors that need not come back are not counted
CREATE SEQUENCE test.tries;
CREATE FUNCTION test.busy(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
BEGIN
  IF nextval('test.tries') % 6 <> 0 THEN
    RAISE EXCEPTION 'busy' USING ERRCODE = event.data->>'sqlstate';
  END IF;
  RETURN evpg_reaction('{"at": "last"}');
END $$;
SELECT evpg_register_saga('busy', 'test.busy', event_types => '{Asked}', max_attempts => 1) \g /dev/null
SELECT count(*) FROM unnest('{40001,40P01,55P03,53100}'::text[]) s,
  evpg_append('counter', 'busy ' || s, ARRAY[evpg_event('Asked', jsonb_build_object('sqlstate', s))]) \g /dev/null
DO $$ BEGIN FOR i IN 1 .. 30 LOOP PERFORM run(), later(2); END LOOP; END $$;
SELECT is((SELECT count(*) FROM evpg.saga_instance WHERE saga = 'busy' AND state->>'at' = 'last'), 4::bigint,
  'errors of concurrency, or of a server that is short of something, are no attempts [rule 17]');
SELECT is((SELECT count(*) FROM evpg.dead_letter WHERE saga = 'busy'), 0::bigint,
  'errors of concurrency, or of a server that is short of something, make no dead letters [rule 17]');
-- resumed: retries are due at once
SELECT evpg_set_clock_offset() \g /dev/null
SELECT evpg_register_saga('slow', 'test.busy', event_types => '{Called}', max_attempts => 3, backoff => '1 day') \g /dev/null
SELECT setval('test.tries', 6) \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'slow', ARRAY[evpg_event('Called', '{"sqlstate": "P0001"}')]) \g /dev/null
SELECT run() \g /dev/null
SELECT setval('test.tries', 5) \g /dev/null
SELECT is(run() || (SELECT count(*) FROM evpg.saga_instance WHERE saga = 'slow'), '0 00', 'a retry waits [rule 17]');
SELECT is(evpg_resume_consumer('slow'), true, 'evpg_resume_consumer() makes it due [A46]');
SELECT run() \g /dev/null
SELECT is((SELECT count(*) FROM evpg.saga_instance WHERE saga = 'slow'), 1::bigint, 'at once [A46]');

-- ------------------------------------------------------------------ who waits, and who does not

-- instances that wait, more than are looked at, before and behind those that need not; each with many events
CREATE FUNCTION test.count_react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction(jsonb_build_object('n', coalesce((state->>'n')::int, 0) + coalesce(1 / (event.data->>'bad')::int, 1)))
    $$;
CREATE FUNCTION test.counted(of_saga text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(' ', count(*), sum((state->>'n')::int)) FROM evpg.saga_instance WHERE saga = of_saga $$;
SELECT evpg_register_saga('many', 'test.count_react', event_types => '{Counted}', max_attempts => 1) \g /dev/null
SELECT count(*) FROM generate_series(1, 250) n,
  evpg_append('counter', 'b' || n, ARRAY[evpg_event('Counted', '{"bad": 0}'), evpg_event('Counted'), evpg_event('Counted')])
  \g /dev/null
SELECT is(run(), '0 250', 'many dead letters [rule 17]');
SELECT count(*) FROM unnest('{a,b,c}'::text[]) k, generate_series(1, 300) n,
  evpg_append('counter', k || 'x' || n % 150, ARRAY[evpg_event('Counted'), evpg_event('Counted')]) \g /dev/null
CALL evpg_run();
SELECT is(counted('many'), '450 1800', 'keep no other instance waiting [rule 17]');
SELECT is((SELECT count(*) FROM evpg.saga_event WHERE saga = 'many'), 750::bigint, 'what is behind them waits [rule 17]');
SELECT count(*) FROM evpg_append('counter', 'zz', ARRAY[evpg_event('Counted')]) \g /dev/null
SELECT run(1) \g /dev/null
SELECT is(counted('many'), '451 1801', 'instances that fail do not keep the last one waiting [rule 17]');
-- many events of one instance: this would take hours if all of them were looked at each time
SELECT evpg_register_saga('long', 'test.count_react', event_types => '{Listed}') \g /dev/null
SELECT count(*) FROM generate_series(1, 4) n,
  evpg_append('counter', 'long', array_fill(evpg_event('Listed', jsonb_build_object('n', n)), ARRAY[500])) \g /dev/null
SELECT run(500) \g /dev/null
CALL evpg_run();
SELECT is(counted('long'), '1 2000', 'many events of one instance [rule 16]');

-- ------------------------------------------------------------------ what it is about goes

-- the timer
SELECT evpg_schedule_command(now(), 'counter', 'x4', 'Subtract', '{"n": 1}') AS timer \gset
SELECT run() \g /dev/null
SELECT is(evpg_cancel_timer(:timer), true, 'the timer of a dead letter is cancelled [B26]');
SELECT is((SELECT resolution || ' ' || reason FROM evpg.dead_letter WHERE timer_id = :timer),
  'discarded timer was cancelled', 'that resolves it [A34]');
-- the saga
SELECT evpg_register_saga('goes', 'test.busy', event_types => '{Left}', max_attempts => 1) \g /dev/null
SELECT setval('test.tries', 6) \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'left', ARRAY[evpg_event('Left', '{"sqlstate": "P0001"}')]) \g /dev/null
SELECT run() \g /dev/null
SELECT evpg_drop_saga('goes') \g /dev/null
SELECT is(letter('left'), '1 P0001 busy discarded saga was dropped', 'its saga is dropped: that resolves it [A34]');
SELECT is(error_of($$SELECT evpg_retry_dead_letters('goes')$$), 'VE010 saga "goes" is not registered',
  'it cannot be retried [A34]');
SELECT is((SELECT source_position FROM evpg.dead_letter WHERE key = 'left'),
  (SELECT position FROM evpg.event WHERE type = 'Left'), 'a dead letter whose saga is gone is kept [A34]');
SELECT * FROM finish();
