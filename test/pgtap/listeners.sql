-- listeners.sql: functions that are told of events in the transaction that appends them.

\ir include/setup.sql
-- rebuilds are for READ COMMITTED
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql
\ir include/projections.sql

SELECT plan(78);

-- Listeners write what they hear into heard.
CREATE TABLE test.heard (n int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, who text, event evpg.event);
CREATE FUNCTION test.hear(event evpg.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN INSERT INTO test.heard (who, event) VALUES ('hear', event); END $$;
CREATE FUNCTION test.hear_too(event evpg.event) RETURNS void LANGUAGE sql AS $$
  INSERT INTO test.heard (who, event) VALUES ('hear_too', event) $$;
-- "who type version" of what was heard, which is then forgotten
CREATE FUNCTION test.heard() RETURNS text LANGUAGE sql AS $$
  WITH h AS (DELETE FROM test.heard RETURNING n, who, event)
  SELECT coalesce(string_agg(concat_ws(' ', who, (event).type, (event).version), ', ' ORDER BY n), '') FROM h $$;
CREATE FUNCTION test.kinds() RETURNS SETOF text LANGUAGE sql AS $$ SELECT unnest('{counter,counter_c}'::text[]) $$;
CREATE FUNCTION test.try_in(kind text, id text, command text, data jsonb DEFAULT '{}') RETURNS text LANGUAGE sql AS $$
  SELECT concat_ws(' ', status, version) FROM evpg_try_execute(kind, id, command, data) $$;

-- ------------------------------------------------------------------ which events

SELECT is(evpg_register_listener('one', 'test.hear'), true, 'a listener is registered [B19]');
SELECT is(evpg_register_listener('one', 'test.hear'), false, 'the same registration again changes nothing [B19]');
SELECT same($$SELECT name, listener, aggregate_types, event_types, priority, registered_by FROM evpg.listener$$,
  $$VALUES ('one', 'test.hear(evpg.event)', NULL::text[], NULL::text[], 0, current_user::text)$$,
  'evpg.listener lists it [B19]');
SELECT is((SELECT count(*) FROM evpg_execute(kind, 'a', 'Add', '{"n": 1}')), 1::bigint, kind || ': a command succeeds')
  FROM kinds() kind;
SELECT is((SELECT count(*) FROM test.heard JOIN evpg.event e ON (heard.event).event_id = e.event_id
  WHERE heard.event = e), 2::bigint, 'a listener gets each event as it is in the log [B19]');
SELECT heard() \g /dev/null
SELECT is(try_in(kind, 'a', 'AddMany', '{"count": 3}'), 'ok 4', kind || ': a command with three events')
  FROM kinds() kind;
SELECT is(heard(), 'hear Added 2, hear Added 3, hear Added 4, hear Added 2, hear Added 3, hear Added 4',
  'a listener is called for each event, in the order of versions [B19]');
SELECT try_in(kind, 'a', command, data) FROM kinds() kind,
  (VALUES ('Nothing', '{}'::jsonb), ('Subtract', '{"n": 1000}'), ('Add', '{"n": 100000}')) x (command, data) \g /dev/null
SELECT is(heard(), '', 'no listener is called for a no-op, a rejection and a failed invariant [rule 5]');
SELECT count(*) FROM evpg_append('counter', 'b', evpg_events('[{"type": "Odd"}, {"type": "Added", "data": {"n": 1}}]'))
  \g /dev/null
SELECT is(heard(), 'hear Odd 1, hear Added 2', 'events of evpg_append() are heard [B19]');
SELECT count(*) FROM evpg_inject('counter', 'b', evpg_event('Added', '{"n": 1}')) \g /dev/null
SELECT is(heard(), 'hear Added 3', 'an injected event is heard [B19]');
SELECT count(*) FROM evpg_execute('counter', 'd', 'Add', '{"n": 1}', command_id => 'once') \g /dev/null
SELECT heard() \g /dev/null
SELECT count(*) FROM evpg_execute('counter', 'd', 'Add', '{"n": 1}', command_id => 'once') \g /dev/null
SELECT is(heard(), '', 'a duplicate is not heard again [rule 4]');

-- filters
SELECT evpg_register_listener('one', 'test.hear', aggregate_types => '{counter}', event_types => '{Subtracted,Odd}')
  \g /dev/null
SELECT try_in(kind, 'f', 'Add', '{"n": 5}'), try_in(kind, 'f', 'Subtract', '{"n": 5}') FROM kinds() kind \g /dev/null
SELECT is(heard(), 'hear Subtracted 2', 'a listener hears only the types that it has asked for [B19]');
SELECT is((SELECT count(*) FROM evpg.listener), 1::bigint, 'registering a name again replaces the registration [B19]');
SELECT is(evpg_register_listener('one', 'test.hear', event_types => '{Added}', priority => 2), true,
  'another filter is a change [B19]');

-- order
SELECT evpg_register_listener('two', 'test.hear_too', priority => 1) \g /dev/null
SELECT try_in('counter', 'o', 'AddMany', '{"count": 2}') \g /dev/null
SELECT is(heard(), 'hear_too Added 1, hear Added 1, hear_too Added 2, hear Added 2',
  'listeners of an event are called in the order of priority, then comes the next event [B19]');
SELECT evpg_register_listener('two', 'test.hear_too', priority => 2) \g /dev/null
SELECT try_in('counter', 'o', 'Add', '{"n": 1}') \g /dev/null
SELECT is(heard(), 'hear Added 3, hear_too Added 3', 'listeners of one priority are called in the order of names [B19]');
SELECT is(evpg_drop_listener('two'), true, 'a listener is dropped [B19]');
SELECT is(error_of($$SELECT evpg_drop_listener('two')$$), '42704 listener "two" is not registered',
  'it cannot be dropped twice [B19]');
SELECT is(evpg_drop_listener('two', true), false, 'with missing_ok it is no error [B19]');
SELECT try_in('counter', 'o', 'Add', '{"n": 1}') \g /dev/null
SELECT is(heard(), 'hear Added 4', 'a dropped listener hears nothing [B19]');

-- what it sees
SELECT evpg_register_projection('sums', 'test.sum_apply', aggregate_types => '{counter}') \g /dev/null
CREATE FUNCTION test.look(event evpg.event) RETURNS void LANGUAGE sql AS $$
  INSERT INTO test.heard (who, event)
    SELECT format('%s of %s', (SELECT state->>'sum' FROM evpg_projection('sums', event.aggregate_id)),
      (SELECT version FROM evpg_state('counter', event.aggregate_id))), event $$;
SELECT evpg_register_listener('one', 'test.look') \g /dev/null
SELECT try_in('counter', 's', 'AddMany', '{"count": 2}') \g /dev/null
SELECT is(heard(), '2 of 2 Added 1, 2 of 2 Added 2',
  'a listener sees state and inline projections as they are after the command [B19]');
SELECT evpg_rebuild_projection('sums') \g /dev/null
SELECT is(heard(), '', 'a rebuild calls no listener [rule 13]');
SELECT evpg_drop_projection('sums') \g /dev/null

-- ------------------------------------------------------------------ transactions

SELECT evpg_register_listener('one', 'test.hear') \g /dev/null
BEGIN;
SELECT try_in('counter', 't', 'Add', '{"n": 1}') \g /dev/null
SAVEPOINT s;
SELECT try_in('counter', 't', 'Add', '{"n": 2}') \g /dev/null
ROLLBACK TO s;
COMMIT;
SELECT is(heard(), 'hear Added 1', 'what a listener did goes with what is rolled back [B19]');
CREATE FUNCTION test.balk(event evpg.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO test.heard (who, event) VALUES ('balk', event);
  IF event.data->>'n' = '13' THEN
    RAISE EXCEPTION 'unlucky' USING ERRCODE = coalesce(current_setting('test.code', true), 'P0001');
  END IF;
END $$;
SELECT evpg_register_listener('balks', 'test.balk') \g /dev/null
SELECT heard() \g /dev/null
SELECT fails(format($$SELECT %s('%s', 'balk', 'Add', '{"n": 13}')$$, f, kind), 'P0001 unlucky',
  format('%s, %s: an error of a listener fails the command [B19]', f, kind))
  FROM unnest('{evpg_execute,evpg_try_execute}'::text[]) f, kinds() kind;
SELECT fails($$SELECT evpg_append('counter', 'balk', ARRAY[evpg_event('Added', '{"n": 13}')])$$, 'P0001 unlucky',
  'an error of a listener fails an append [B19]');
SET test.code = '23514';
SELECT fails($$SELECT evpg_try_execute('counter', 'balk', 'Add', '{"n": 13}')$$, '23514 unlucky',
  'a listener cannot refuse: its errors are raised, whatever their class [rule 8]');
RESET test.code;
SELECT is((SELECT count(*) FROM test.heard), 0::bigint, 'what a listener has written goes with the failed command [B19]');
SELECT is(try_in('counter', 'balk', 'Add', '{"n": 1}'), 'ok 1', 'the next command on the stream succeeds [B19]');
SELECT evpg_drop_listener('balks') \g /dev/null

-- in C
CREATE FUNCTION test.hear_in_c(event evpg.event) RETURNS void LANGUAGE c AS 'evpg_test_listener', 'hear_in_c';
SELECT evpg_register_listener('one', 'test.hear_in_c'), heard() \g /dev/null
SELECT is(try_in(kind, 'c', 'AddMany', '{"count": 2}'), 'ok 2', kind || ': a command is heard by C') FROM kinds() kind;
SELECT is(heard(), 'c Added 1, c Added 2, c Added 1, c Added 2', 'a listener may be a function in C [B19]');
SELECT fails($$SELECT evpg_append('counter', 'c', ARRAY[evpg_event('Heard'), evpg_event('Unheard')])$$,
  'P0001 this is not to be heard', 'its error fails an append [B19]');
SELECT evpg_register_listener('one', 'test.hear') \g /dev/null

-- ------------------------------------------------------------------ commands by listeners

CREATE FUNCTION test.count_all(event evpg.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF event.aggregate_id <> 'all' THEN
    PERFORM evpg_execute('counter', 'all', 'Add', event.data);
  END IF;
END $$;
CREATE FUNCTION test.repeat(event evpg.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF event.aggregate_id = 'again' THEN
    PERFORM evpg_execute('counter', 'again', 'Add', '{"n": 1}');
  END IF;
END $$;
CREATE FUNCTION test.spread(event evpg.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF event.aggregate_id LIKE 'x%' THEN
    PERFORM evpg_append('counter', event.aggregate_id || 'x', ARRAY[evpg_event('Added', '{"n": 1}')]);
  END IF;
END $$;
SELECT evpg_register_listener('all', 'test.count_all', event_types => '{Added}') \g /dev/null
SELECT heard() \g /dev/null
SELECT is(try_in('counter', 'p', 'Add', '{"n": 4}') || ', ' || try_in('counter', 'q', 'Add', '{"n": 5}'), 'ok 1, ok 1',
  'commands whose listener executes a command succeed [B19]');
SELECT is((SELECT state->>'total' FROM evpg_state('counter', 'all')), '9',
  'the commands of the listener are executed [B19]');
SELECT is(length(heard()) > 0, true, 'events of a listener''s commands are heard, too [B19]');
SELECT evpg_register_listener('all', 'test.repeat') \g /dev/null
SELECT is(left(error_of($$SELECT evpg_execute('counter', 'again', 'Add', '{"n": 1}')$$), 5), 'VE020',
  'a listener cannot append to the stream of its event [B19]');
SELECT evpg_register_listener('all', 'test.spread') \g /dev/null
SELECT is(left(error_of($$SELECT evpg_execute('counter', 'x', 'Add', '{"n": 1}')$$), 5), '54001',
  'a listener whose events it hears itself, without an end, fails the command [B19]');
SELECT is((SELECT count(*) FROM evpg_streams('counter') WHERE aggregate_id LIKE 'x%'), 0::bigint,
  'nothing of it is kept');
-- ------------------------------------------------------------------ sagas

-- A saga that keeps the positions of its events, inline and asynchronous: both must have the same.
CREATE FUNCTION test.positions(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(jsonb_build_object('positions', coalesce(state->'positions', '[]') || to_jsonb(event.position)))
$$;
CREATE FUNCTION test.same_key(event evpg.event) RETURNS text LANGUAGE sql AS $$ SELECT 'one' $$;
CREATE FUNCTION test.add_other(event evpg.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM evpg_append('counter', 'other', ARRAY[evpg_event('Other')]); END $$;
SELECT evpg_register_saga('inline', 'test.positions', key_function => 'test.same_key', start_event_types => '{Started}',
    mode => 'inline'),
  evpg_register_saga('async', 'test.positions', key_function => 'test.same_key', start_event_types => '{Started}'),
  evpg_register_listener('all', 'test.add_other', event_types => '{Started}') \g /dev/null
SELECT evpg_append('counter', 'start', ARRAY[evpg_event('Started'), evpg_event('Started')]) \g /dev/null
CALL evpg_run();
SELECT is((SELECT array_agg(jsonb_array_length(state->'positions')) FROM evpg.saga_instance
  WHERE saga IN ('inline', 'async')), '{4,4}', 'sagas react to the events of a listener, too [rule 16]');
SELECT is((SELECT state FROM evpg.saga_instance WHERE saga = 'inline'),
  (SELECT state FROM evpg.saga_instance WHERE saga = 'async'),
  'an inline saga reacts to an event before those of the commands that a listener has executed for it [rule 16]');
SELECT evpg_drop_saga('inline'), evpg_drop_saga('async') \g /dev/null

-- a chain that goes on by a saga and a listener
CREATE FUNCTION test.chain(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction('{}', evpg_action_send('counter', 'linked', 'Add', '{"n": 1}'))
$$;
CREATE FUNCTION test.chain_on(event evpg.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF event.aggregate_id = 'linked' THEN
    PERFORM evpg_append('counter', 'kicked', ARRAY[evpg_event('Kicked')]);
  END IF;
END $$;
SELECT evpg_register_listener('all', 'test.chain_on', event_types => '{Added}') \g /dev/null
SELECT evpg_register_saga('hears', 'test.positions', key_function => 'test.same_key', event_types => '{Kicked,Added}')
  \g /dev/null
SELECT evpg_register_saga(kind, 'test.chain', key_function => 'test.same_key', event_types => '{Kicked}', max_attempts => 1,
    mode => kind), evpg_append('counter', 'kicked', ARRAY[evpg_event('Kicked')])
  FROM (VALUES ('inline')) x (kind) \g /dev/null
CALL evpg_run();
SELECT is((SELECT sqlstate FROM evpg.dead_letter WHERE saga = 'inline'), 'VE014',
  'evpg.max_saga_depth ends a chain that goes on by a listener, of an inline saga [rule 18]');
SELECT evpg_drop_saga('inline') \g /dev/null
SELECT evpg_register_saga('async', 'test.chain', key_function => 'test.same_key', event_types => '{Kicked}',
  max_attempts => 1) \g /dev/null
SELECT evpg_append('counter', 'kicked', ARRAY[evpg_event('Kicked')]) \g /dev/null
CALL evpg_run();
SELECT is((SELECT sqlstate FROM evpg.dead_letter WHERE saga = 'async'), 'VE014',
  'evpg.max_saga_depth ends a chain that goes on by a listener, of an asynchronous saga [rule 18]');
SELECT is((SELECT count(*) FROM evpg.dead_letter WHERE saga = 'hears'), 0::bigint,
  'a saga that only hears the events of such a chain has no dead letter [rule 18]');
SELECT is((SELECT count(*) FROM evpg.saga_event WHERE saga = 'hears'), 0::bigint, 'it has reacted to all of them [rule 18]');
SELECT evpg_drop_saga('async'), evpg_drop_saga('hears') \g /dev/null

-- the same over a scheduled command
CREATE OR REPLACE FUNCTION test.chain_on(event evpg.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF event.aggregate_id = 'linked' THEN
    PERFORM evpg_schedule_command(evpg.clock_timestamp(), 'counter', 'later', 'Emit', '{"events": [{"type": "Kicked"}]}');
  END IF;
END $$;
SELECT evpg_register_saga('async', 'test.chain', key_function => 'test.same_key', event_types => '{Kicked}',
  max_attempts => 1) \g /dev/null
SELECT evpg_append('counter', 'kicked', ARRAY[evpg_event('Kicked')]) \g /dev/null
CALL evpg_run();
SELECT is((SELECT sqlstate FROM evpg.dead_letter WHERE saga = 'async' ORDER BY dead_letter_id DESC LIMIT 1), 'VE014',
  'evpg.max_saga_depth ends a chain that goes on by a scheduled command [rule 18]');
SELECT evpg_drop_saga('async') \g /dev/null

-- what clients do
CREATE OR REPLACE FUNCTION test.chain_on(event evpg.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN EXECUTE event.data->>'do'; END $$;
SELECT evpg_register_listener('all', 'test.chain_on', event_types => '{Do}') \g /dev/null
SELECT is(error_of(format('SELECT evpg_append(%L, %L, ARRAY[evpg_event(%L, %L)])', 'counter', 'do', 'Do',
    jsonb_build_object('do', statement))), 'VE020 the code of a command cannot ' || what,
    'a listener cannot ' || what || ' [rule 16]')
  FROM (VALUES ('SELECT evpg_run_sagas()', 'run sagas'), ($$SELECT evpg_retry_dead_letters('echo')$$, 'retry dead letters'),
    ('SELECT evpg_retry_dead_letter(1)', 'retry dead letters')) x (statement, what);
SELECT evpg_drop_listener('all') \g /dev/null

-- ------------------------------------------------------------------ bad input

CREATE FUNCTION test.none(event evpg.event) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
CREATE FUNCTION test.strict(event evpg.event) RETURNS void LANGUAGE sql STRICT AS $$ SELECT $$;
SELECT refused(format('SELECT evpg_register_listener(%s)', arguments), error, error) FROM (VALUES
  ($$NULL, 'test.hear'$$, '22004 listener name must not be null'), 
  ($$'', 'test.hear'$$, '22023 listener name must not be empty'),
  ($$'evpg.x', 'test.hear'$$, 'VE017 listener name "evpg.x" is reserved'),
  ($$'x', NULL$$, '22004 listener must not be null'),
  ($$'x', 'test.none'$$, '42P13 function test."none"(evpg.event) cannot serve as listener'),
  ($$'x', 'test.strict'$$, '42P13 function test.strict(evpg.event) cannot serve as listener because it is STRICT'),
  ($$'x', 'test.hear', priority => NULL$$, '22004 priority must not be null'),
  ($$'x', 'test.hear', event_types => '{}'$$, '22023 event_types must not be an empty array')) x (arguments, error);
DROP FUNCTION test.hear(evpg.event);
SELECT is(error_of($$SELECT evpg_execute('counter', 'gone', 'Add', '{"n": 1}')$$),
  '42883 listener function test.hear(evpg.event) does not exist', 'a listener whose function is gone fails commands [B19]');
SELECT evpg_drop_listener('one') \g /dev/null
SELECT is(try_in('counter', 'gone', 'Add', '{"n": 1}'), 'ok 1', 'until it is dropped [B19]');
SELECT * FROM finish();
