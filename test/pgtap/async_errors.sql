-- async_errors.sql: events that an asynchronous projection cannot apply: it stops, parks or skips them, and goes on where it
-- was (rule 10); and whoever runs it is told what cannot be.

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/async.sql

SELECT plan(96);
SET test.kind = counter;

-- ------------------------------------------------------------------ stop

SELECT evpg_register_projection('list', 'test.list_apply', mode => 'async', max_attempts => 3),
  evpg_register_projection('other', 'test.sum_apply', mode => 'async') \g /dev/null
SELECT add('a', 1), add('b', 2), add('a', 3), add('a', 4), add('b', 5) \g /dev/null
SET test.break = 3;
CALL evpg_run();
SELECT is(rows_of('list'), 'a: 1.1 [1], b: 1.1 [2]', 'what comes before the event that fails is applied [rule 10]');
SELECT is(consumer_of('list'), 'running -3 at 3 tried 1 errors 1',
  'the event is tried once with others, which is no attempt, and once alone; it is one error (number of '
  'events, not of tries) [rule 10]');
SELECT is((SELECT (last_error, last_sqlstate, last_error_position = (SELECT position FROM evpg.event WHERE data->>'n' = '3'),
  last_error_at > now() - interval '1 hour', parked)::text FROM evpg.stat_consumer WHERE name = 'list'),
  '("I break at 3",P0001,t,t,0)', 'the error is kept [rule 10, B35]');
SELECT is((SELECT retry_at > updated_at FROM evpg.stat_consumer WHERE name = 'list'), true,
  'it is tried again later [rule 10]');
SELECT is(rows_of('other'), 'a: 1.3 {"sum": 8, "count": 3}, b: 1.2 {"sum": 7, "count": 2}',
  'other projections go on [rule 10]');
-- whatever time this takes
UPDATE evpg.consumer SET retry_at = retry_at + interval '10 minutes' WHERE name = 'list';
CALL evpg_run(100);
SELECT is(consumer_of('list'), 'running -3 at 3 tried 1 errors 1',
  'an event that has failed is not tried again before its time [rule 10]');
SELECT now_due() \g /dev/null
CALL evpg_run();
SELECT is(consumer_of('list'), 'running -3 at 3 tried 2 errors 1',
  'when it is due, it is tried once more [rule 10, A47, B33]');
SELECT now_due() \g /dev/null
CALL evpg_run();
SELECT is(consumer_of('list'), 'stopped -3 at 3 tried 3 errors 1', 'after max_attempts it stops [rule 10, B33, B34]');
SELECT is((SELECT status || ' ' || lag_events FROM evpg.stat_consumer WHERE name = 'list'), 'stopped 3',
  'a stopped projection is shown as such [rule 10]');
RESET test.break;
SELECT now_due() \g /dev/null
CALL evpg_run();
SELECT is(consumer_of('list'), 'stopped -3 at 3 tried 3 errors 1', 'a stopped projection stays stopped [rule 10]');
SELECT is(evpg_wait_for('list', 1, '0') AND NOT evpg_wait_for('list', (SELECT last_value FROM evpg.event_position), '0'),
  true, 'it has come so far [rule 10]');
SELECT is(evpg_resume_consumer('list'), true, 'until it is resumed [rule 10]');
SELECT is(evpg_resume_consumer('list'), false, 'once [rule 10]');
CALL evpg_run();
SELECT is(rows_of('list'), 'a: 1.3 [1, 3, 4], b: 1.2 [2, 5]',
  'after it was resumed, each event is applied, once, in order [rule 10]');
SELECT is(consumer_of('list'), 'running 0 tried 0 errors 1', 'the error is over [rule 10]');
-- resumed while it waits for its next attempt
SELECT add('a', 6) \g /dev/null
SET test.break = 6;
CALL evpg_run();
SELECT is(consumer_of('list'), 'running -1 at 6 tried 1 errors 2', 'alone from the first attempt on [rule 10]');
RESET test.break;
SELECT is(evpg_resume_consumer('list'), true, 'evpg_resume_consumer() also makes the next attempt due [rule 10]');
CALL evpg_run();
SELECT is(row_of('list', 'a'), '1.4 [1, 3, 4, 6]',
  'an event that is due again after evpg_resume_consumer() succeeds [rule 10]');
-- a failure within a batch takes nothing with it: two bad events
SELECT add('a', n) FROM generate_series(7, 30) n \g /dev/null
SET test.break = '10,20';
CALL evpg_run();
SELECT is((SELECT state->-1 FROM evpg_projection('list', 'a')), '9', 'up to the first [rule 10]');
SET test.break = '20';
SELECT evpg_resume_consumer('list') \g /dev/null
CALL evpg_run();
SELECT is((SELECT state->-1 FROM evpg_projection('list', 'a')), '19', 'up to the second [rule 10]');
RESET test.break;
SELECT evpg_resume_consumer('list') \g /dev/null
CALL evpg_run();
SELECT is((SELECT state FROM evpg_projection('list', 'a')),
  '[1, 3, 4, 6]' || (SELECT jsonb_agg(n) FROM generate_series(7, 30) n),
    'the event that has failed is applied with the rest [rule 10]');
SELECT evpg_drop_projection('list'), evpg_drop_projection('other') \g /dev/null

-- errors of concurrency, and of a server that is short of something, are tried again without being counted
CREATE SEQUENCE test.tries;
CREATE FUNCTION test.busy_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event.data->>'n' = '1' AND nextval('test.tries') % 8 <> 0 THEN
    RAISE EXCEPTION 'busy' USING ERRCODE = event.data->>'sqlstate';
  END IF;
  RETURN jsonb_build_object('applied', coalesce((state->>'applied')::int, 0) + 1);
END $$;
SELECT evpg_register_projection('busy', 'test.busy_apply', mode => 'async', max_attempts => 2,
  start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add(sqlstate, 1, more => jsonb_build_object('sqlstate', sqlstate))
  FROM unnest('{40001,40P01,55P03,53100}'::text[]) sqlstate \g /dev/null
CALL evpg_run();
SELECT cmp_ok((SELECT last_value FROM tries), '<', 4::bigint,
  'an error of concurrency is tried again later, not at once again and again [rule 10]');
DO $$
BEGIN
  FOR round IN 1 .. 100 LOOP
    PERFORM now_due();
    COMMIT;
    CALL evpg_run();
    EXIT WHEN (SELECT checkpoint = (SELECT last_value FROM evpg.event_position) OR status <> 'running' FROM evpg.consumer
      WHERE name = 'busy');
  END LOOP;
END $$;
SELECT
  is(rows_of('busy'),
  '40001: 1.1 {"applied": 1}, 40P01: 1.1 {"applied": 1}, 53100: 1.1 {"applied": 1}, 55P03: 1.1 {"applied": 1}',
  'errors that need not come back are not counted [rule 10]');
SELECT is((SELECT status || ' ' || attempts FROM evpg.consumer WHERE name = 'busy'), 'running 0',
  'though there were more of them than max_attempts [rule 10]');
SELECT evpg_drop_projection('busy') \g /dev/null

-- ------------------------------------------------------------------ park

SELECT evpg_register_projection('list', 'test.list_apply', mode => 'async', on_error => 'park', max_attempts => 1,
  start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('pa', 1), add('pb', 2), add('pa', 3), add('pa', 4), add('pb', 5) \g /dev/null
SET test.break = 3;
CALL evpg_run();
SELECT is(rows_of('list'), 'pa: 1.1 [1], pb: 1.2 [2, 5]',
  'the event is parked, later ones of its key wait behind it, other keys go on [rule 10, B34]');
SELECT is(parked_of('list'), 'pa 3 tried 1 I break at 3 P0001, pa 4 tried 0',
  'parked events, with the error of the one that failed [rule 10]');
SELECT is((SELECT consumer_of('list') || ' parked ' || parked FROM evpg.stat_consumer WHERE name = 'list'),
  'running 0 tried 0 errors 1 parked 2', 'the projection has not stopped [rule 10]');
SELECT add('pa', 6), add('pb', 7) \g /dev/null
CALL evpg_run();
SELECT is(parked_of('list'), 'pa 3 tried 1 I break at 3 P0001, pa 4 tried 0, pa 6 tried 0',
  'a parked event does not stop the projection in a later batch [rule 10]');
SELECT is(evpg_replay_parked('list'), 0::bigint, 'replayed, it fails again [rule 10]');
SELECT is(parked_of('list'), 'pa 3 tried 2 I break at 3 P0001, pa 4 tried 0, pa 6 tried 0',
  'a replay that fails is counted, and the events behind it are not tried [rule 10]');
RESET test.break;
SELECT is(evpg_replay_parked('list', key => 'pb'), 0::bigint, 'another key has nothing to replay [rule 10]');
SELECT is(evpg_replay_parked('list', 2), 2::bigint, 'two of three [rule 10]');
SELECT is(row_of('list', 'pa'), '1.3 [1, 3, 4]', 'in order [rule 10]');
SELECT add('pa', 8) \g /dev/null
CALL evpg_run();
SELECT is(parked_of('list'), 'pa 6 tried 0, pa 8 tried 0', 'the key still waits [rule 10]');
SELECT is(evpg_replay_parked('list', key => 'pa'), 2::bigint, 'the rest of the key [rule 10]');
SELECT is(row_of('list', 'pa'), '1.5 [1, 3, 4, 6, 8]', 'in order [rule 10]');
SELECT is(evpg_replay_parked('list'), 0::bigint, 'there is nothing left [rule 10]');
SELECT add('pa', 9) \g /dev/null
CALL evpg_run();
SELECT is(row_of('list', 'pa') || parked_of('list'), '1.6 [1, 3, 4, 6, 8, 9]', 'the key goes on [rule 10]');
-- several keys
SET test.break = '10,20';
SELECT add('pa', 10), add('pb', 20), add('pa', 11), add('pb', 21), add('pc', 30) \g /dev/null
CALL evpg_run();
SELECT is(parked_of('list'),
  'pa 10 tried 1 I break at 10 P0001, pb 20 tried 1 I break at 20 P0001, pa 11 tried 0, pb 21 tried 0',
  'two keys with a bad event each [rule 10]');
SET test.break = 10;
SELECT is(evpg_replay_parked('list'), 2::bigint, 'one fails again, the other is replayed [rule 10]');
SELECT is(rows_of('list'), 'pa: 1.6 [1, 3, 4, 6, 8, 9], pb: 1.5 [2, 5, 7, 20, 21], pc: 1.1 [30]',
  'with what waited behind it [rule 10]');
-- given up
SELECT is(evpg_skip_event('list',
  (SELECT position FROM evpg.event WHERE data->>'n' = '10' AND aggregate_id = 'pa' ORDER BY position DESC LIMIT 1),
  'never mind'), true, 'a parked event is given up [rule 10]');
SELECT is(parked_of('list'), 'pa 10 tried 2 I break at 10 P0001 skipped: never mind, pa 11 tried 0',
  'a parked event that is given up is kept, with the error and the reason [rule 10]');
SELECT is((SELECT skipped_by FROM evpg.parked_event WHERE skip_reason IS NOT NULL), session_user::text,
  'the role that gave an event up is kept [rule 10]');
SELECT is((SELECT parked FROM evpg.stat_consumer WHERE name = 'list'), 1::bigint,
  'an event that was given up does not count as parked [rule 10]');
SELECT is(evpg_replay_parked('list'), 1::bigint, 'those behind it are [rule 10]');
SELECT is(row_of('list', 'pa'), '1.7 [1, 3, 4, 6, 8, 9, 11]', 'without the one that was given up [rule 10]');
RESET test.break;
SELECT is(evpg_rebuild_projection('list', 'pa'), 7::bigint, 'a rebuild of the key leaves it out, too [rule 13]');
SELECT is(row_of('list', 'pa'), '2.7 [1, 3, 4, 6, 8, 9, 11]',
  'a rebuild of the key comes to the same as the skip [rule 13]');
-- a rebuild of the key applies what waits
SET test.break = 12;
SELECT add('pa', 12), add('pa', 13) \g /dev/null
CALL evpg_run();
SELECT is(parked_of('list'),
  'pa 10 tried 2 I break at 10 P0001 skipped: never mind, pa 12 tried 1 I break at 12 P0001, pa 13 tried 0',
  'parked again [rule 10]');
RESET test.break;
SELECT is(evpg_rebuild_projection('list', 'pa'), 9::bigint, 'a rebuild of the key applies what is parked [rule 13]');
SELECT is(row_of('list', 'pa') || ' ' || parked_of('list'),
  '3.9 [1, 3, 4, 6, 8, 9, 11, 12, 13] pa 10 tried 2 I break at 10 P0001 skipped: never mind',
  'a rebuild of the key applies what is parked, and it is parked no more [rule 13]');
SELECT add('pa', 14) \g /dev/null
CALL evpg_run();
SELECT is(row_of('list', 'pa'), '3.10 [1, 3, 4, 6, 8, 9, 11, 12, 13, 14]', 'the key goes on [rule 10]');
-- dropped while something is parked
SET test.break = 15;
SELECT add('pa', 15) \g /dev/null
CALL evpg_run();
SELECT is(error_of($$SELECT evpg_register_projection('list', 'test.list_apply')$$),
  '55000 projection "list" has parked events, so it cannot become inline',
  'with parked events it cannot become inline [rule 10]');
SELECT evpg_drop_projection('list') \g /dev/null
SELECT is((SELECT count(*) FROM evpg.parked_event) + (SELECT count(*) FROM evpg.consumer) +
  (SELECT count(*) FROM evpg.projection_state), 0::bigint, 'a drop takes parked events along [C11]');
RESET test.break;

-- what came before start_position belongs to the projection for nobody
SELECT add('start', 1) AS position \gset
SELECT evpg_register_projection('started', 'test.list_apply', mode => 'async', start_position => :position) \g /dev/null
SELECT add('start', 2) \g /dev/null
CALL evpg_run();
SELECT is(rows_of('started'), 'start: 1.1 [2]', 'a projection begins after start_position [rule 10]');
SELECT is(evpg_rebuild_projection('started'), 1::bigint,
  'a projection begins after start_position; so does a rebuild of all keys [rule 13]');
SELECT is(evpg_rebuild_projection('started', 'start'), 1::bigint,
  'a rebuild of a key begins after start_position [rule 13]');
SELECT is(rows_of('started'), 'start: 3.1 [2]', 'both rebuilds after start_position give the same rows [rule 13]');
SELECT evpg_drop_projection('started') \g /dev/null

-- an event of several keys, one of which refuses it: the others are not to lose it
CREATE FUNCTION test.small_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF jsonb_array_length(coalesce(nullif(state, '{}'), '[]')) >=
    coalesce(nullif(current_setting('test.most', true), '')::int, 1000) THEN
    RAISE EXCEPTION 'full';
  END IF;
  RETURN coalesce(nullif(state, '{}'), '[]') || (event.data->'n');
END $$;
SELECT evpg_register_projection('small', 'test.small_apply', mode => 'async', on_error => 'park', max_attempts => 1,
  key_path => '$.data.groups[*]', start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('a', 1, more => '{"groups": ["y"]}'), add('a', 2, more => '{"groups": ["x", "y", "z"]}'),
  add('a', 3, more => '{"groups": ["z", "y", "x"]}') \g /dev/null
SET test.most = 1;
CALL evpg_run();
RESET test.most;
DO $$ BEGIN FOR round IN 1 .. 10 LOOP EXIT WHEN evpg_replay_parked('small') = 0; END LOOP; END $$;
SELECT is(rows_of('small'), 'x: 1.2 [2, 3], y: 1.3 [1, 2, 3], z: 1.2 [2, 3]',
  'an event of several keys, one of which refuses it, is replayed for all of them, once [rule 10]');
SELECT evpg_drop_projection('small') \g /dev/null

-- the key function fails: there is no key to wait
CREATE FUNCTION test.odd_key(event evpg.event) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  IF event.data->>'n' = ANY (string_to_array(current_setting('test.break', true), ',')) THEN
    RAISE EXCEPTION 'no key of %', event.data->>'n';
  END IF;
  RETURN event.aggregate_id;
END $$;
SELECT evpg_register_projection('keyed', 'test.list_apply', mode => 'async', on_error => 'park', max_attempts => 1,
  key_function => 'test.odd_key', start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SET test.break = 2;
SELECT add('a', 1), add('a', 2), add('a', 3) \g /dev/null
CALL evpg_run();
SELECT is(rows_of('keyed') || ' ' || parked_of('keyed'), 'a: 1.2 [1, 3] - 2 tried 1 no key of 2 P0001',
  'an event whose key is not found is parked alone [rule 10]');
RESET test.break;
SELECT is(evpg_replay_parked('keyed'), 1::bigint, 'an event whose key is not found is parked alone, and replayed [rule 10]');
SELECT is(rows_of('keyed') || parked_of('keyed'), 'a: 1.3 [1, 3, 2]', 'for the key it has now [rule 10]');
SELECT evpg_drop_projection('keyed') \g /dev/null

-- ------------------------------------------------------------------ skip

SELECT evpg_register_projection('list', 'test.list_apply', mode => 'async', on_error => 'skip', max_attempts => 2,
  start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SET test.break = '2,4';
SELECT add('a', 1), add('a', 2), add('a', 3) \g /dev/null
CALL evpg_run();
SELECT is(row_of('list', 'a'), '1.1 [1]', 'to skip an event takes max_attempts, too [rule 10]');
SELECT now_due() \g /dev/null
CALL evpg_run();
SELECT is(row_of('list', 'a'), '1.2 [1, 3]',
  'after max_attempts the projection goes on without the event [rule 10, B34, C31]');
SELECT is((SELECT (skip_reason, skipped_by = session_user, error, sqlstate)::text FROM evpg.parked_event),
  '("I break at 2",t,"I break at 2",P0001)', 'a skipped event is kept with its error [rule 10]');
SELECT is((SELECT parked FROM evpg.stat_consumer WHERE name = 'list'), 0::bigint, 'nothing waits [rule 10]');
SELECT evpg_register_projection('list', 'test.list_apply', mode => 'async', on_error => 'skip', max_attempts => 1,
  start_position => (SELECT start_position FROM evpg.projection WHERE name = 'list')) \g /dev/null
SELECT add('a', 4) \g /dev/null
CALL evpg_run();
SELECT is((SELECT (skip_reason, error, sqlstate)::text FROM evpg.parked_event ORDER BY position DESC LIMIT 1),
  '("I break at 4","I break at 4",P0001)', 'with on_error skip, an event is given up at the first attempt [rule 10]');
RESET test.break;
SELECT is(evpg_rebuild_projection('list'), 4::bigint, 'a rebuild of all keys reads it, but does not apply it [rule 13]');
SELECT is(row_of('list', 'a'), '2.2 [1, 3]', 'a rebuild of all keys leaves out what was skipped [rule 13]');
-- by hand: what fails, what is to come, what is past
SELECT evpg_register_projection('list', 'test.list_apply', mode => 'async', max_attempts => 1,
  start_position => (SELECT start_position FROM evpg.projection WHERE name = 'list')) \g /dev/null
SET test.break = 5;
SELECT add('a', 5) AS five \gset
SELECT add('a', 6) AS six \gset
CALL evpg_run();
SELECT is(consumer_of('list') ~ '^stopped -2 at 5', true, 'it has stopped [rule 10]');
SELECT is(evpg_skip_event('list', :five, 'broken'), true, 'the event that it has stopped at is given up [rule 10]');
SELECT is((SELECT (skip_reason, skipped_by = session_user, error, sqlstate)::text FROM evpg.parked_event
  WHERE position = :five), '(broken,t,"I break at 5",P0001)', 'with the error and the reason [rule 10]');
SELECT is((SELECT status FROM evpg.stat_consumer WHERE name = 'list'), 'running', 'it goes on [rule 10]');
SELECT is(evpg_skip_event('list', :six, 'not that'), true, 'an event to come is given up [rule 10]');
SELECT add('a', 7) AS seven \gset
CALL evpg_run();
SELECT is(row_of('list', 'a'), '2.3 [1, 3, 7]', 'both are left out [rule 10]');
SELECT is(evpg_skip_event('list', :seven, 'too late'), false, 'what is applied cannot be given up [rule 10]');
SELECT is(evpg_skip_event('list', :six, 'again'), false, 'what is applied cannot be given up, nor twice [rule 10]');
RESET test.break;

-- ------------------------------------------------------------------ pause and resume

SELECT is(evpg_pause_consumer('list'), true, 'paused [rule 10]');
SELECT is(evpg_pause_consumer('list'), false, 'once [rule 10]');
SELECT add('a', 8) \g /dev/null
CALL evpg_run();
SELECT is(row_of('list', 'a') || ' ' || consumer_of('list') || ' '
  || (SELECT status FROM evpg.stat_consumer WHERE name = 'list'),
  '2.3 [1, 3, 7] paused -1 tried 0 errors ' || (SELECT errors_total FROM evpg.consumer WHERE name = 'list') || ' paused',
  'nothing is applied [rule 10]');
SELECT is(evpg_rebuild_projection('list'), 8::bigint, 'a rebuild applies it nevertheless [rule 13]');
SELECT is((SELECT status FROM evpg.stat_consumer WHERE name = 'list'), 'paused',
  'a rebuild applies it nevertheless, and leaves it paused [rule 13]');
SELECT is(evpg_resume_consumer('list'), true, 'resumed [rule 10]');
SELECT add('a', 9) \g /dev/null
CALL evpg_run();
SELECT is((SELECT state FROM evpg_projection('list', 'a')), '[1, 3, 7, 8, 9]', 'it goes on [rule 10]');
BEGIN;
SELECT evpg_pause_consumer('list') \g /dev/null
ROLLBACK;
SELECT is((SELECT status FROM evpg.stat_consumer WHERE name = 'list'), 'running', 'a pause is rolled back [rule 10]');

-- ------------------------------------------------------------------ more keys wait than a batch has memory for

INSERT INTO evpg.parked_event (name, position, key, attempts, error) SELECT 'list', 1, repeat('x', 1000) || n, 1, 'long ago'
  FROM generate_series(10000, 79999) n;
SELECT add('many', 1), add('many', 2), add('more', 3) \g /dev/null
SET statement_timeout = '60s';
CALL evpg_run(1);
RESET statement_timeout;
SELECT is((SELECT string_agg(state::text, ' ' ORDER BY key) FROM evpg.projected_state
  WHERE name = 'list' AND key IN ('many', 'more')), '[1, 2] [3]', 'other keys go on however many are parked [rule 10]');
DELETE FROM evpg.parked_event WHERE error = 'long ago';

-- ------------------------------------------------------------------ a constraint that is checked at the end of the
-- transaction

CREATE TABLE test.late (n bigint CONSTRAINT late_n UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION test.late_write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO late VALUES ((event.data->>'n')::bigint); SELECT NULL::jsonb
$$;
SELECT evpg_register_projection('late', handler => 'test.late_write', mode => 'async', on_error => 'park', max_attempts => 1,
  start_position => (SELECT last_value FROM evpg.event_position)),
       evpg_register_projection('zlast', 'test.list_apply', mode => 'async',
         start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('l', 1), add('l', 1), add('m', 2) \g /dev/null
CALL evpg_run();
SELECT same('SELECT n FROM late ORDER BY n', 'VALUES (1::bigint), (2)',
  'an event that violates a deferred constraint fails alone [rule 10]');
SELECT alike(parked_of('late'), 'l 1 tried 1 cannot fire deferred trigger%42501',
  'an event that violates a deferred constraint is parked: nothing is left to the end of the transaction [section 9]');
SELECT is(rows_of('zlast'), 'l: 1.2 [1, 1], m: 1.1 [2]',
  'an event that violates a deferred constraint keeps no other event from being applied [rule 10]');

-- ------------------------------------------------------------------ a lock that is not had while an event is given up

-- The event 40 has the key bad alone, the event 50 the keys bad and good.  It fails for bad; for good a lock is not had, or
-- whatever else test.wait says is in the way.
CREATE FUNCTION test.two_keys(event evpg.event) RETURNS text[] LANGUAGE sql AS $$
  SELECT CASE event.data->>'n' WHEN '40' THEN '{bad}' ELSE '{bad,good}' END::text[]
$$;
CREATE FUNCTION test.two_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF state ? 'flag' THEN
    RAISE 'bad row';
  ELSIF event.data->>'n' = '50' AND current_setting('test.wait') <> '' THEN
    RAISE 'in the way' USING ERRCODE = current_setting('test.wait');
  END IF;
  RETURN CASE event.data->>'n' WHEN '40' THEN '{"flag": true}' ELSE '{"applied": true}' END;
END $$;
SELECT evpg_register_projection('two', 'test.two_apply', mode => 'async', key_function => 'test.two_keys',
  on_error => 'skip',
                                max_attempts => 1, start_position => (SELECT last_value FROM evpg.event_position))
                                  \g /dev/null
SET test.wait = '';
SELECT add('two', 40) \g /dev/null
CALL evpg_run();
SET test.wait = '55P03';
SELECT add('two', 50) \g /dev/null
SET client_min_messages = error;
CALL evpg_run();
RESET client_min_messages;
SELECT is(parked_of('two') || consumer_of('two'), 'running -1 tried 0 errors 0',
          'an event is not given up for a key for which a lock was not had [rule 10]');
SET test.wait = '';
SELECT now_due() \g /dev/null
CALL evpg_run();
SELECT is(parked_of('two'), 'bad 50 tried 1 bad row P0001 skipped: bad row',
  'an event is given up for the keys for which it fails [rule 10]');
SELECT is(row_of('two', 'good'), '1.1 {"applied": true}', 'to the others it is applied [rule 10]');

-- the same while the keys of a handler's event are looked for, which is parked for each of them
CREATE TABLE test.looked (n bigint);
CREATE SEQUENCE test.asked;
CREATE FUNCTION test.waiting_key(event evpg.event) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  IF event.data->>'n' = '60' AND nextval('asked') % 2 = 0 AND current_setting('test.wait') <> '' THEN
    RAISE 'in the way' USING ERRCODE = current_setting('test.wait');
  END IF;
  RETURN 'k';
END $$;
CREATE FUNCTION test.waiting_write(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event.data->>'n' = '60' THEN
    RAISE 'bad event';
  END IF;
  INSERT INTO looked VALUES ((event.data->>'n')::bigint);
  RETURN NULL;
END $$;
SELECT evpg_register_projection('waiting', handler => 'test.waiting_write', mode => 'async',
  key_function => 'test.waiting_key',
                                on_error => 'park', max_attempts => 1,
                                start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SET test.wait = '55P03';
SELECT add('w', 60) \g /dev/null
SET client_min_messages = error;
CALL evpg_run();
RESET client_min_messages;
SELECT is(parked_of('waiting'), '', 'an event is not parked without its keys because a lock was not had [rule 10]');
SET test.wait = '';
SELECT now_due() \g /dev/null
CALL evpg_run();
SELECT add('w', 61) \g /dev/null
CALL evpg_run();
SELECT is(parked_of('waiting'), 'k 60 tried 1 bad event P0001, k 61 tried 0',
  'it is parked with them, and the next behind it [rule 10]');
SELECT is((SELECT count(*) FROM looked), 0::bigint, 'an event behind a parked one is not applied out of order [rule 10]');
SELECT * FROM finish();
