-- timers.sql: timers of sagas, and commands that are executed at a time (B26, B51, rules 16 to 18).  Nothing waits: the
-- tests move evpg_set_clock_offset().

\ir include/setup.sql
\ir include/counter.sql
\ir include/sagas.sql

SELECT plan(144);
SET test.kind = counter;

-- ------------------------------------------------------------------ timers of sagas, of functions and in C

CREATE FUNCTION test.timer_of(of_key text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(concat_ws(' ', name, round(extract(epoch FROM due_at - scheduled_at)), payload), ', ' ORDER BY name)
    FROM evpg.timer WHERE saga = saga() AND key = of_key
$$;
CREATE FUNCTION test.fired(key text) RETURNS jsonb LANGUAGE sql VOLATILE AS $$
  SELECT state->'fired' FROM evpg_saga(saga(), key)
$$;
CREATE FUNCTION test.bell(delay interval, VARIADIC actions jsonb[]) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT evpg_action_schedule('script', delay, payload => jsonb_build_object('actions', actions))
$$;

SET test.kind_of_saga = functions;
SELECT register_script('script') \g /dev/null
\ir include/saga_timer.sql
SELECT evpg_drop_saga('script') \g /dev/null
SET test.kind_of_saga = 'C';
SELECT register_script('script_c') \g /dev/null
\ir include/saga_timer.sql

-- a saga without a timer handler
SELECT evpg_register_saga('deaf', 'test.script_event', event_types => '{Rung}', max_attempts => 1) \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'deaf', ARRAY[evpg_event('Rung', script(evpg_action_schedule('bell', '0')))])
  \g /dev/null
SELECT is(run(), '0 1', 'a reaction that sets a timer fails if its saga has no handler for it [rule 17]');
SELECT is((SELECT concat_ws(' ', d.sqlstate, d.message, d.source_position IS NULL, (SELECT count(*) FROM evpg.timer
  WHERE saga = 'deaf')) FROM evpg.dead_letter d WHERE d.saga = 'deaf'),
  'VE009 saga "deaf" has no timer handler f 0',
  'a reaction that sets a timer without a handler is a dead letter at once, not when the timer is due [rule 17]');
SELECT is(evpg_register_saga('deaf', 'test.script_event', timer_handler => 'test.script_timer', event_types => '{Rung}',
  max_attempts => 1), true, 'a saga gets a timer handler [rule 17]');
SELECT is((SELECT retried || ' ' || failed FROM evpg_retry_dead_letters('deaf')), '1 0',
  'a reaction that could set no timer is retried when its saga has a handler [rule 17]');
SELECT run() \g /dev/null
SELECT is((SELECT state#>>'{fired,name}' FROM evpg_saga('deaf', 'deaf')), 'bell',
  'a timer that is set by a retried reaction fires [rule 17]');
-- a timer that would never be due, or always has been
SELECT count(*) FROM evpg_append('counter', 'never',
  ARRAY[evpg_event('Rung', script('{"do": "schedule", "timer": "bell", "due_at": "-infinity"}'))]) \g /dev/null
SELECT is(run(), '0 1', 'a timer that is due at no time [rule 17]');
SELECT is((SELECT concat_ws(' ', sqlstate, message) FROM evpg.dead_letter WHERE saga = 'deaf' AND key = 'never'),
  '22008 due_at of timer "bell" must be finite', 'a timer that is due at no time is refused [rule 17]');
SELECT is(evpg_discard_dead_letter((SELECT dead_letter_id FROM evpg.dead_letter WHERE saga = 'deaf' AND key = 'never'),
  'never'), true, 'a timer that could not be set is given up [rule 17]');
-- times at their ends
SELECT count(*) FROM evpg_append('counter', 'ends',
  ARRAY[evpg_event('Rung', script(evpg_action_schedule('past', due_at => '2001-01-01 UTC'),
  evpg_action_schedule('future', due_at => '294276-12-31'), evpg_action_schedule('century', '100 years')))]) \g /dev/null
SELECT run() \g /dev/null
SELECT is((SELECT state#>>'{fired,name}' || (state#>>'{fired,due_at}')::bigint / 1000000 FROM evpg_saga('deaf', 'ends')),
  'past978307200', 'a time that is past is due at once [B26]');
SELECT is((SELECT string_agg(name, ' ' ORDER BY name) FROM evpg.timer WHERE saga = 'deaf'), 'century future',
  'times that are far away [B26]');
-- many timers of one instance that are due at once: t120 first, and t20 fails
SELECT count(*) FROM evpg_append('counter', 'many', ARRAY[evpg_event('Rung', jsonb_build_object('actions', (
  SELECT jsonb_agg(evpg_action_schedule('t' || n, due_at => timestamptz '2020-01-01' - n * interval '1 s',
    payload => CASE n WHEN 20 THEN '{"fail": "t20"}' ELSE script(send('rung' || n, 'Add', 1)) END))
  FROM generate_series(1, 120) n)))]) \g /dev/null
CREATE FUNCTION test.rung() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(substr(aggregate_id, 5), ' ' ORDER BY position) FROM evpg.event WHERE aggregate_id LIKE 'rung%'
$$;
CALL evpg_run();
SELECT is(rung(), (SELECT string_agg(n::text, ' ' ORDER BY n DESC) FROM generate_series(21, 120) n),
  'timers of an instance that are due at once fire in their order, up to one that fails [rules 16, 17]');
SELECT is((SELECT count(*) FILTER (WHERE attempts = 0) || ' ' || count(*) FROM evpg.timer WHERE key = 'many'), '19 20',
  'those behind it wait, and were not tried [rule 17]');
SELECT evpg_discard_dead_letter(dead_letter_id, 'enough') FROM evpg.dead_letter WHERE key = 'many' \g /dev/null
SELECT is(run(), '19 0', 'then the rest fires, by evpg_run_sagas(), too [rule 17]');
SELECT is(split_part(rung(), ' 21 ', 2), (SELECT string_agg(n::text, ' ' ORDER BY n DESC) FROM generate_series(1, 19) n),
  'in its order [rule 16]');
-- a timer that comes between
SELECT count(*) FROM evpg_append('counter', 'between', ARRAY[evpg_event('Rung', script(
  evpg_action_schedule('a', due_at => '2020-01-01', payload => script(send('rung1001', 'Add', 1),
    evpg_action_schedule('z', due_at => '2019-01-01', payload => script(send('rung1002', 'Add', 1))))),
  evpg_action_schedule('b', due_at => '2020-01-02', payload => script(send('rung1003', 'Add', 1)))))]) \g /dev/null
CALL evpg_run();
SELECT is(split_part(rung(), ' 1 ', 2), '1001 1002 1003',
  'a timer that the first one sets, and that is due before the next one, fires before it [rule 16]');
-- an event that the first one causes
CREATE FUNCTION test.pay_event(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT CASE event.type
    WHEN 'Rung' THEN evpg_reaction('{"did": "begin"}', evpg_action_schedule('retry', due_at => '2020-01-01'),
      evpg_action_schedule('give_up', due_at => '2020-01-02'))
    ELSE evpg_reaction(jsonb_build_object('did', (state->>'did') || ' paid'), evpg_action_cancel('give_up')) END
$$;
CREATE FUNCTION test.pay_timer(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(jsonb_build_object('did', (state->>'did') || ' ' || timer.timer),
    evpg_action_send('counter', 'pay', 'Emit', '{"events": [{"type": "Paid"}]}'))
$$;
SELECT evpg_drop_saga('deaf') \g /dev/null
SELECT evpg_register_saga('pay', 'test.pay_event', timer_handler => 'test.pay_timer', event_types => '{Rung,Paid}')
  \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'pay', ARRAY[evpg_event('Rung')]) \g /dev/null
CALL evpg_run();
SELECT is((SELECT state->>'did' FROM evpg_saga('pay', 'pay')), 'begin retry paid',
  'a timer that is due waits for the event that an earlier timer has caused, which may cancel it [rule 16]');
SELECT is((SELECT count(*) FROM evpg.timer WHERE saga = 'pay'), 0::bigint, 'no timer that was cancelled is left [rule 17]');
SELECT evpg_drop_saga('pay') \g /dev/null

-- timers behind one that fails, and max_events
CREATE FUNCTION test.crowd_event(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction('{"fired": 0}', VARIADIC array_agg(evpg_action_schedule('t' || n,
    due_at => '2020-01-01'::timestamptz + n * interval '1 s'))) FROM generate_series(1, (event.data->>'timers')::int) n
$$;
CREATE FUNCTION test.crowd_timer(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
BEGIN
  IF timer.key = 'crowd' THEN RAISE EXCEPTION 'not yet'; END IF;
  RETURN evpg_reaction('{"fired": 1}');
END $$;
SELECT evpg_register_saga('crowd', 'test.crowd_event', timer_handler => 'test.crowd_timer', event_types => '{Rung}',
  max_attempts => 3) \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'crowd', ARRAY[evpg_event('Rung', '{"timers": 50}')]) \g /dev/null
SELECT count(*) FROM generate_series(1, 4) n,
  evpg_append('counter', 'single' || n, ARRAY[evpg_event('Rung', '{"timers": 1}')]) \g /dev/null
SELECT evpg_run_sagas(5) \g /dev/null
SELECT evpg_run_sagas(5) \g /dev/null
SELECT is((SELECT count(*) FROM evpg.saga_instance WHERE saga = 'crowd' AND state->>'fired' = '1'), 4::bigint,
  'timers that wait for one that has failed use up no max_events of evpg_run_sagas() [rule 17]');
CALL evpg_run();
SELECT is((SELECT count(*) FILTER (WHERE attempts = 0) || ' ' || count(*) FROM evpg.timer WHERE saga = 'crowd'), '49 50',
  'timers that wait for one that has failed were not tried [rule 17]');
SELECT evpg_drop_saga('crowd') \g /dev/null

-- a reaction that is cancelled
CREATE FUNCTION test.slow_event(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
BEGIN
  IF event.data ? 'slow' THEN PERFORM pg_sleep(600); END IF;
  RETURN evpg_reaction('{}');
END $$;
SELECT evpg_register_saga('slow', 'test.slow_event', event_types => '{Rung}', max_attempts => 1) \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'slow', ARRAY[evpg_event('Rung', '{"slow": 1}')]) \g /dev/null
SELECT count(*) FROM generate_series(1, 5) n, evpg_append('counter', 'fast' || n, ARRAY[evpg_event('Rung')]) \g /dev/null
CREATE EXTENSION dblink;
SELECT dblink_connect('runner', format('host=%s port=%s user=%s dbname=%s',
  split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port'), session_user, current_database()))
  \g /dev/null
SELECT dblink_exec('runner', $$SET search_path = public; SET statement_timeout = 500;
  SET default_transaction_isolation = 'read committed'$$)
  \g /dev/null
SET client_min_messages = warning;
SELECT count(dblink_exec('runner', 'CALL evpg_run()', false)) FROM generate_series(1, 6) \g /dev/null
RESET client_min_messages;
SELECT dblink_disconnect('runner') \g /dev/null
SELECT is((SELECT attempts FROM evpg.saga_event WHERE saga = 'slow' AND key = 'slow'), 0,
  'a reaction whose CALL evpg_run() is cancelled has made no attempt, however often [rule 17]');
SELECT is((SELECT count(*) FROM evpg.saga_event WHERE saga = 'slow' AND attempts > 0)
  || ' ' || (SELECT count(*) FROM evpg.dead_letter WHERE saga = 'slow'), '0 0',
  'neither has anything that was claimed together with it [rule 17]');
SELECT evpg_drop_saga('slow') \g /dev/null

-- ------------------------------------------------------------------ commands that are executed at a time

SELECT evpg_set_clock_offset() \g /dev/null
SELECT evpg_schedule_command(now() + interval '100 s', 'counter', 'c1', 'Add', '{"n": 1}') AS t1,
  evpg_schedule_command(now() + interval '200 s', 'counter', 'c1', 'Add', '{"n": 2}', 'own id', '{"m": 1}', 'ann', 'corr',
  'cause') AS t2,
       evpg_schedule_command(now() - interval '1 day', 'counter', 'c2', 'Add', '{"n": 4}') AS t3 \gset
SELECT is(run(), '1 0', 'a command that is due is executed [B26]');
SELECT is(concat_ws(', ', total('c1'), total('c2')), '1 4', 'no other [B26]');
SELECT is((SELECT command_id || coalesce(actor, '') || coalesce(causation_id, '') || coalesce(metadata::text, '')
  FROM evpg.event WHERE aggregate_id = 'c2'), 'timer:' || :t3, 'its id is that of the timer [B26]');
SELECT is((SELECT array_agg(timer_id::int ORDER BY timer_id) FROM evpg.timer WHERE command IS NOT NULL), ARRAY[:t1, :t2],
  'the others wait [B26]');
SELECT later(150) \g /dev/null
CALL evpg_run();
SELECT is(total('c1'), '1 1', 'the next one is executed when it is due, by CALL evpg_run(), too [B26]');
SELECT later(100) \g /dev/null
SELECT is(run() || ' ' || total('c1'), '1 0 2 3', 'the last scheduled command is executed when it is due [B26]');
SELECT same($$SELECT command_id, metadata, actor, correlation_id, causation_id FROM evpg.event
  WHERE aggregate_id = 'c1' AND version = 2$$, $$VALUES ('own id', '{"m": 1}'::jsonb, 'ann', 'corr', 'cause')$$,
  'with what it was given [B26]');
SELECT is(run() || ' ' || (SELECT count(*) FROM evpg.timer WHERE command IS NOT NULL), '0 0 0', 'once [B26]');
SELECT evpg_set_clock_offset() \g /dev/null
-- a command id that was used before: not twice
SELECT evpg_schedule_command(now(), 'counter', 'c1', 'Add', '{"n": 2}', 'own id', '{"m": 1}') \g /dev/null
SELECT is(run() || ' ' || total('c1'), '1 0 2 3', 'a command id that was used before is not executed again [rule 4]');
SELECT evpg_schedule_command(now(), 'counter', 'c1', 'Add', '{"n": 3}', 'own id') AS t1 \gset
SELECT is(run() || ' ' || total('c1') || ' ' || evpg_cancel_timer(:t1), '0 0 2 3 true',
  'a command id that was used for another command fails, and is tried again [rule 4]');
-- moved, cancelled
SELECT evpg_schedule_command(now() + interval '1 hour', 'counter', 'c3', 'Add', '{"n": 1}') AS t1,
  evpg_schedule_command(now(), 'counter', 'c3', 'Add', '{"n": 2}') AS t2,
  evpg_schedule_command(now(), 'counter', 'c3', 'Add', '{"n": 4}') AS t3 \gset
SELECT is(evpg_reschedule_timer(:t1, now()), true, 'a command is moved [B26]');
SELECT is(evpg_reschedule_timer(:t2, now() + interval '1 hour'), true, 'another one to later [B26]');
SELECT is(evpg_cancel_timer(:t3), true, 'a third is cancelled [B26]');
SELECT is(evpg_cancel_timer(:t3), false, 'once [B26]');
SELECT is(run() || ' ' || total('c3'), '1 0 1 1', 'so only the first is executed [B26]');
SELECT is(evpg_reschedule_timer(:t1, now()), false, 'what was executed cannot be moved [B26]');
SELECT is(evpg_cancel_timer(:t1), false, 'what was executed cannot be cancelled [B26]');
SELECT is(evpg_cancel_timer(:t2), true, 'what was moved can [B26]');
BEGIN;
SELECT evpg_schedule_command(now(), 'counter', 'c4', 'Add', '{"n": 1}') AS t1 \gset
ROLLBACK;
SELECT is(run() || coalesce(total('c4'), ''), '0 0', 'scheduled in a transaction that is rolled back [B26]');
BEGIN;
SELECT evpg_schedule_command(now(), 'counter', 'c4', 'Add', '{"n": 1}') \g /dev/null
SELECT is(run() || ' ' || total('c4'), '1 0 1 1', 'a command is executed in the transaction that scheduled it [B26]');
ROLLBACK;
SELECT is(total('c4'), NULL, 'it never was [B26]');
-- in the order of their times
SELECT evpg_schedule_command(now() - make_interval(secs => n), 'counter', 'order', 'Add', jsonb_build_object('n', n))
  FROM generate_series(1, 5) n \g /dev/null
SELECT run() \g /dev/null
SELECT is((SELECT string_agg(data->>'n', ' ' ORDER BY version) FROM evpg.event WHERE aggregate_id = 'order'), '5 4 3 2 1',
  'commands are executed in the order of their times [B26]');

-- refused, failing
SELECT evpg_schedule_command(now(), 'counter', 'c5', 'Subtract', '{"n": 7}', actor => 'ann') AS t1,
  evpg_schedule_command(now(), 'counter', 'c5', 'Fail') AS t2,
  evpg_schedule_command(now(), 'counter', 'c6', 'Add', '{"n": 1}') AS t3 \gset
SELECT is(run(), '1 1', 'a scheduled command is refused, another fails, a third is executed [rule 17]');
SELECT same($$SELECT saga, key, label, timer_id, attempts, sqlstate, code, message, detail::jsonb, command, source_position
  FROM evpg.dead_letter WHERE saga IS NULL AND resolved_at IS NULL$$,
  format($$SELECT NULL::text, NULL::text, NULL::text, %s::bigint, 1, 'VE002', 'underflow', 'total 0 is less than 7',
    '{"total": 0}'::jsonb,
    '{"aggregate_type": "counter", "aggregate_id": "c5", "command_type": "Subtract", "data": {"n": 7}, "actor": '
      '"ann"}'::jsonb, NULL::bigint WHERE true$$, :t1), 'a refused one is a dead letter at once [A34, B26]');
SELECT later(400) \g /dev/null
SELECT run() \g /dev/null
SELECT later(400) \g /dev/null
SELECT run() \g /dev/null
SELECT later(400) \g /dev/null
SELECT is(run(), '0 0', 'one that fails is tried again [rule 17]');
SELECT later(400) \g /dev/null
SELECT is(run(), '0 1', 'five times [rule 17]');
SELECT alike((SELECT 'tried ' || attempts || ' ' || sqlstate || ' ' || message FROM evpg.dead_letter WHERE timer_id = :t2),
  'tried 5 VE009 broken by "Fail"', 'a scheduled command that has failed five times is a dead letter [A34]');
SELECT is(evpg_reschedule_timer(:t1, now()), false, 'a timer of a dead letter is not moved [A34]');
SELECT is((SELECT r.status || ' ' || r.code FROM evpg.dead_letter d, evpg_retry_dead_letter(d.dead_letter_id) r
  WHERE d.timer_id = :t1), 'rejected underflow', 'retried, it is refused again [rule 17]');
SELECT try('c5', 'Add', '{"n": 7}') \g /dev/null
SELECT is((SELECT retried || ' ' || failed FROM evpg_retry_dead_letters(NULL)) || ' ' || total('c5'), '1 1 2 0',
  'retried together, when one of them can be done [rule 17]');
SELECT is((SELECT command_id || ' ' || actor FROM evpg.event WHERE aggregate_id = 'c5' AND version = 2),
  'timer:' || :t1 || ' ann', 'with the id that it had [B26]');
SELECT is((SELECT evpg_discard_dead_letter(dead_letter_id, 'no') FROM evpg.dead_letter WHERE timer_id = :t2), true,
  'the other is given up [A34]');
SELECT is((SELECT count(*) FROM evpg.timer WHERE command IS NOT NULL), 0::bigint,
  'the timer of a command that is given up is removed [A34]');
SELECT evpg_set_clock_offset() \g /dev/null

-- arguments
SELECT refused(format('SELECT evpg_schedule_command(%s)', args), error, 'evpg_schedule_command(' ||
  left(args, 50) || ') [B26]') FROM (VALUES
  ($$NULL, 'counter', 'x', 'Add'$$, '22004 due_at must not be null'),
    ($$'infinity', 'counter', 'x', 'Add'$$, '22008 due_at must be finite'),
    ($$'-infinity', 'counter', 'x', 'Add'$$, '22008 due_at must be finite'),
  ($$now(), 'nowhere', 'x', 'Add'$$, 'VE003 aggregate type "nowhere" is not registered'),
    ($$now(), NULL, 'x', 'Add'$$, '22004 aggregate type must not be null'),
    ($$now(), 'counter', '', 'Add'$$, '22023 aggregate id must not be empty'),
  ($$now(), 'counter', 'x', NULL$$, '22004 command type must not be null'),
    ($$now(), 'counter', 'x', 'Add', command_id => ''$$, '22023 command id must not be empty'),
  ($$now(), 'counter', 'x', 'Add', metadata => '[]'$$, '22023 metadata must be a JSON object'),
    ($$now(), 'counter', 'x', 'Add', metadata => '{"evpg.a": 1}'$$, 'VE017 %'),
  ($$now(), 'counter', 'x', 'Add', (repeat('[', 101) || repeat(']', 101))::jsonb$$, 'VE014 %')) x (args, error);
SELECT is(error_of($$SELECT evpg_reschedule_timer(1, 'infinity')$$), '22008 due_at must be finite',
  'evpg_reschedule_timer to never [B26]');
SELECT is((SELECT count(*) FROM evpg.timer WHERE command IS NOT NULL), 0::bigint, 'nothing of them is kept [B26]');
SELECT evpg_schedule_command(now(), 'counter', 'null', 'Emit', NULL),
  evpg_schedule_command(now(), 'counter', 'scalar', 'Nothing', '7'),
  evpg_schedule_command(now(), 'counter', 'text', 'Nothing', '"a"'),
  evpg_schedule_command(now(), 'counter', 'empty', 'Nothing', '[]') \g /dev/null
SELECT is((SELECT string_agg(coalesce(command->>'data', '-'), ' ' ORDER BY timer_id) FROM evpg.timer
  WHERE command IS NOT NULL), '- 7 a []', 'data may be anything [B26]');
SELECT is(run(), '4 0', 'a scheduled command with any data is executed [B26]');
BEGIN READ ONLY;
SELECT is(error_of($$SELECT evpg_schedule_command(now(), 'counter', 'x', 'Add')$$) || error_of('SELECT evpg_cancel_timer(1)')
  || error_of('SELECT evpg_reschedule_timer(1, now())'),
  '25006 cannot execute evpg_schedule_command() in a read-only transaction25006 cannot execute '
    'evpg_cancel_timer() in a read-only transaction25006 cannot execute evpg_reschedule_timer() in a read-only '
    'transaction', 'they write [B26]');
ROLLBACK;

-- the clock is the administrator's
CREATE ROLE evpg_timer_user;
GRANT USAGE ON SCHEMA test TO evpg_timer_user;
SET ROLE evpg_timer_user;
SELECT is(error_of('SELECT evpg_set_clock_offset(''1 s'')'), '42501 permission denied for function evpg_set_clock_offset',
  'only an operator moves the clock [D99]');
RESET ROLE;
DROP OWNED BY evpg_timer_user;
DROP ROLE evpg_timer_user;
SELECT * FROM finish();
