-- sagas_inline.sql: sagas that react in the transaction of the event (rules 16 to 18).

\ir include/setup.sql
\ir include/counter.sql
\ir include/sagas.sql

SELECT plan(77);
SET test.kind = counter;
SET test.saga_mode = inline;
SET test.kind_of_saga = functions;
\ir include/saga_inline.sql

-- ------------------------------------------------------------------ what is raised

SELECT register_script('raises') \g /dev/null
SELECT is(error_of($$ SELECT start('busy', '{"fail": "busy", "sqlstate": "40001"}') $$), '40001 saga failed: busy',
  'what other sessions have caused fails the command [rule 17]');
SELECT is((SELECT count(*) FROM evpg_streams('counter') WHERE aggregate_id = 'busy') +
  (SELECT count(*) FROM evpg.saga_event), 0::bigint, 'nothing of it remains [rule 17]');
SELECT is(error_of($$ SELECT evpg_register_saga('m', 'test.script_event', mode => 'sometimes') $$),
  '22023 unknown saga mode "sometimes"', 'the mode of a saga is inline or async');
SELECT is(error_of($$ SELECT evpg_register_saga('m', 'test.script_event', mode => NULL) $$) LIKE '22004 %', true,
  'it cannot be NULL');

-- ------------------------------------------------------------------ which events

SELECT count(*) FROM evpg_inject('counter', 'in', evpg_event('Started', script(send('y1', 'Add', 1)))) \g /dev/null
SELECT is(instance('in'), NULL, 'an injected event is not reacted to [rule 16]');
SELECT count(*) FROM evpg_inject('counter', 'in', evpg_event('Started', script(send('y1', 'Add', 1))), run_sagas => true)
  \g /dev/null
SELECT is(instance('in'), 'running 1 {"seen": 1}', 'unless it is injected with run_sagas [rule 16]');
SELECT try('y2', 'Emit', '{"events": [{"type": "Started"}]}') \g /dev/null
SELECT is(instance('y2'), 'running 1 {"seen": 1}', 'events of commands are reacted to [rule 16]');
SELECT try('y2', 'Subtract', '{"n": 5}'), try('y2', 'Nothing') \g /dev/null
SELECT is(instance('y2'), 'running 1 {"seen": 1}', 'a command that appends nothing has no reaction [rule 16]');
SELECT evpg_schedule_command('2001-01-01', 'counter', 'y2', 'Emit', '{"events": [{"type": "Told"}]}') \g /dev/null
SELECT run() \g /dev/null
SELECT is(instance('y2'), 'running 2 {"seen": 2}', 'events of a scheduled command are, in its transaction [rule 16]');

-- calls with several streams
SELECT count(*) FROM evpg_append_many(ARRAY[
  evpg_stream_append('counter', 'many 1', ARRAY[evpg_event('Started', script(send('y3', 'Add', 1)))]),
  evpg_stream_append('counter', 'many 2', ARRAY[evpg_event('Started', script(send('y3', 'Add', 2)))])]) \g /dev/null
SELECT is(instance('many 1') || ', ' || instance('many 2') || ', ' || (SELECT string_agg(data->>'n', ' ' ORDER BY version)
  FROM evpg_read_stream('counter', 'y3')), 'running 1 {"seen": 1}, running 1 {"seen": 1}, 1 2',
  'instances react to the events of a call in the order of positions [rule 16, rule 23]');
SELECT is((SELECT string_agg(status, ' ') FROM evpg_execute_many(ARRAY[
  evpg_command('counter', 'many 3', 'Emit', jsonb_build_object('events', jsonb_build_array(
    jsonb_build_object('type', 'Started', 'data', script(send('y3', 'Add', 3)))))),
  evpg_command('counter', 'many 4', 'Subtract', '{"n": 1}')])), 'skipped rejected', 'a call is undone [rule 23]');
SELECT is((SELECT coalesce(instance('many 3'), 'none') || ' ' || (SELECT count(*) FROM evpg.saga_event) || ' '
  || evpg_stream_version('counter', 'y3')), 'none 0 2', 'so is the reaction between its commands [rule 16, rule 23]');

-- a handler that executes another command: reactions begin when the outermost command has ended
CREATE TABLE test.nested (id text);
CREATE FUNCTION test.nest_handle(state jsonb, command evpg.command) RETURNS SETOF evpg.new_event LANGUAGE plpgsql AS $$
DECLARE
  part jsonb;
BEGIN
  FOR part IN SELECT * FROM jsonb_array_elements(command.data->'parts') LOOP
    BEGIN
      PERFORM start(part->>'id', part->'script');
      INSERT INTO test.nested SELECT part->>'id' FROM evpg_saga(saga(), part->>'id');
      IF part ? 'back' THEN
        RAISE EXCEPTION 'back';
      END IF;
    EXCEPTION WHEN raise_exception THEN
    END;
  END LOOP;
  IF command.command_type <> 'Nothing' THEN
    RETURN NEXT evpg_event('Nested');
  END IF;
END $$;
SELECT evpg_register_aggregate('nest', 'test.nest_handle', 'test.counter_apply') \g /dev/null
SELECT evpg_execute('nest', 'n', 'Nest', jsonb_build_object('parts', jsonb_build_array(
  jsonb_build_object('id', 'n1', 'script', script(evpg_action_send('nest', 'n', 'Nest'))),
  jsonb_build_object('id', 'n2', 'script', script(send('y3', 'Add', 1)), 'back', true),
  jsonb_build_object('id', 'n3', 'script', script(send('y4', 'Add', 1)))))) \g /dev/null
SELECT is((SELECT count(*) FROM nested), 0::bigint, 'no reaction begins in the middle of a command [rule 16]');
SELECT is(instance('n1') || (SELECT max(version) FROM evpg_read_stream('nest', 'n')), 'running 1 {"seen": 1}2',
  'it follows the outermost command, to the stream of which it can send [rule 16]');
SELECT is(instance('n2'), NULL, 'not if what it would react to was rolled back [rule 16]');
SELECT is(instance('n3'), 'running 1 {"seen": 1}', 'what came after that is reacted to [rule 16]');
SELECT evpg_execute('nest', 'n', 'Nothing', jsonb_build_object('parts', jsonb_build_array(
  jsonb_build_object('id', 'n4', 'script', script(send('y4', 'Add', 1)))))) \g /dev/null
SELECT is(instance('n4'), 'running 1 {"seen": 1}', 'so it is if the outermost command appends nothing itself [rule 16]');
BEGIN;
SELECT start('s1') \g /dev/null
SAVEPOINT s;
SELECT tell('s1', script(send('y5', 'Add', 1))) \g /dev/null
ROLLBACK TO s;
SELECT tell('s1', '{"set": {"after": true}}') \g /dev/null
COMMIT;
SELECT is(instance('s1'), 'running 2 {"seen": 2, "after": true}',
  'a savepoint takes reactions back with their events [rule 16]');

-- a saga that is not inline, and one that is
SELECT evpg_register_saga('hears', 'test.script_event', event_types => '{Heard}', initial_state => '{"seen": 0}')
  \g /dev/null
SELECT tell('h', script(evpg_action_send('counter', 'h2', 'Emit', jsonb_build_object('events', jsonb_build_array(
  jsonb_build_object('type', 'Started', 'data', script(send('y6', 'Add', 1))))))), 'Heard') \g /dev/null
SELECT is(run(), '1 0', 'an asynchronous saga sends a command [rule 16]');
SELECT is(instance('h2') || (SELECT metadata->'evpg'->>'depth' FROM evpg_read_stream('counter', 'y6')),
  'running 1 {"seen": 1}2', 'to whose event an inline one reacts in the same transaction [rule 16]');
SELECT evpg_drop_saga('hears') \g /dev/null

-- ------------------------------------------------------------------ keys

CREATE FUNCTION test.keys_of(event evpg.event) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
  SELECT ARRAY(SELECT 10 / (k::int) || '' FROM jsonb_array_elements_text(event.data->'keys') k)
$$;
SELECT evpg_register_saga('keyed', 'test.script_event', event_types => '{Noted}', key_function => 'test.keys_of',
  initial_state => '{"seen": 0}', mode => 'inline') \g /dev/null
SELECT tell('k', '{"keys": [5, 1, 5]}', 'Noted'), tell('k', '{"keys": [0]}', 'Noted'), tell('k', '{"keys": [1]}', 'Noted')
  \g /dev/null
SELECT is((SELECT string_agg(key || ':' || (state->>'seen'), ' ' ORDER BY key) FROM evpg.saga_instance WHERE saga = 'keyed'),
  '10:2 2:1', 'each instance of an event reacts once [rule 16]');
SELECT is(letters('-', 'keyed'), 'tried 1 22012 division by zero',
  'an event whose keys cannot be found is a dead letter, and fails no command [rule 17]');
CREATE OR REPLACE FUNCTION test.keys_of(event evpg.event) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
  SELECT '{10}'::text[]
$$;
SELECT retried FROM evpg_retry_dead_letters('keyed') \g /dev/null
SELECT run() \g /dev/null
SELECT is((SELECT state->>'seen' FROM evpg.saga_instance WHERE saga = 'keyed' AND key = '10'), '3',
  'once that is repaired, its instance reacts [rule 17]');
SELECT evpg_drop_saga('keyed') \g /dev/null

-- ------------------------------------------------------------------ paused, and in copies

SELECT start('p1') \g /dev/null
SELECT evpg_pause_consumer(saga()) \g /dev/null
SELECT tell('p1', '{"set": {"a": 1}}'), start('p2') \g /dev/null
SELECT is(instance('p1') || ' ' || pending('p1'), 'running 1 {"seen": 1} 1 0 0',
  'events of a saga that is paused wait for workers [rule 16]');
SELECT is((SELECT mode || ' ' || status || ' ' || lag_events FROM evpg.stat_consumer WHERE name = saga()), 'inline paused 2',
  'evpg.stat_consumer shows it [rule 16]');
SELECT evpg_resume_consumer(saga()) \g /dev/null
SELECT tell('p1', '{"set": {"a": 2}}') \g /dev/null
SELECT is(instance('p1') || ' ' || pending('p1'), 'running 1 {"seen": 1} 2 0 0',
  'what is appended later waits behind them [rule 16]');
SELECT run() \g /dev/null
SELECT is(instance('p1'), 'running 3 {"a": 2, "seen": 3}', 'workers do them in their order [rule 16]');
SELECT tell('p1', '{"set": {"a": 3}}') \g /dev/null
SELECT is(instance('p1') || ' ' || pending('p1'), 'running 4 {"a": 3, "seen": 4} 0 0 0',
  'and then the instance reacts in the transaction again [rule 16]');

UPDATE evpg.activation SET database = 1;
CREATE FUNCTION test.forget() RETURNS void LANGUAGE sql AS '';
SELECT tell('p1', script(send('y7', 'Add', 1))) \g /dev/null
SELECT is(pending('p1') || ' ' || (SELECT status FROM evpg.stat_consumer WHERE name = saga()), '1 0 0 inactive',
  'in a copy of a database an inline saga sends nothing [rule 9]');
SELECT evpg_activate_consumers() \g /dev/null
SELECT run() \g /dev/null
SELECT tell('p1', script(send('y7', 'Add', 2))) \g /dev/null
SELECT is((SELECT string_agg(data->>'n', ' ' ORDER BY version) FROM evpg_read_stream('counter', 'y7')) || ' ' ||
    pending('p1'), '1 2 0 0 0', 'until evpg_activate_consumers() [rule 9]');

-- ------------------------------------------------------------------ from one mode to the other

SET test.saga_mode = async;
SELECT register_script('raises') AS changed \gset
SELECT is((SELECT mode || ' ' || status || ' ' || lag_events FROM evpg.stat_consumer WHERE name = saga()), 'async running 0',
  'a saga that becomes asynchronous has no event to repeat [rule 16]');
SELECT tell('p1', '{"set": {"a": 4}}') \g /dev/null
SELECT is(instance('p1'), 'running 6 {"a": 3, "seen": 6}', 'it does not react in the transaction any more [rule 16]');
SELECT run() \g /dev/null
SELECT is(instance('p1'), 'running 7 {"a": 4, "seen": 7}', 'but workers let it react, once [rule 16]');
SELECT tell('p1', '{"set": {"a": 5}}'), start('p3') \g /dev/null
SET test.saga_mode = inline;
SELECT register_script('raises') \g /dev/null
SELECT tell('p1', '{"set": {"b": 1}}'), tell('p2', '{"set": {"b": 1}}'), tell('p3', '{"set": {"b": 1}}') \g /dev/null
SELECT is(instance('p1') || ' ' || pending('p1'), 'running 7 {"a": 4, "seen": 7} 2 0 0',
  'what was appended before it became inline comes first [rule 16]');
SELECT is(instance('p2'), 'running 2 {"b": 1, "seen": 2}', 'instances that have nothing pending react at once [rule 16]');
SELECT run() \g /dev/null
SELECT is(instance('p1') || ', ' || instance('p3'), 'running 9 {"a": 5, "b": 1, "seen": 9}, running 2 {"b": 1, "seen": 2}',
  'each event is reacted to once, whichever the mode was [rule 16]');
SELECT is(evpg_rebuild_saga(saga(), 'p1') || instance('p1'), '9running 9 {"a": 5, "b": 1, "seen": 9}',
  'a rebuild finds all of them [rule 18]');

-- paused when it becomes inline, with events that are not routed
SET test.saga_mode = async;
SELECT register_script('raises') \g /dev/null
SELECT evpg_pause_consumer(saga()), tell('p1', '{"set": {"c": 1}}') \g /dev/null
SET test.saga_mode = inline;
BEGIN;
SELECT tell('p1', '{"set": {"c": 2}}') \g /dev/null
SELECT register_script('raises') \g /dev/null
SELECT tell('p1', '{"set": {"c": 3}}') \g /dev/null
COMMIT;
SELECT is(pending('p1'), '3 0 0', 'events of a paused saga are kept when it becomes inline [rule 16]');
SELECT evpg_resume_consumer(saga()) \g /dev/null
SELECT run() \g /dev/null
SELECT is(instance('p1'), 'running 12 {"a": 5, "b": 1, "c": 3, "seen": 12}', 'and are reacted to in their order [rule 16]');

-- history
SELECT evpg_register_saga('history', 'test.script_event', event_types => '{Started,Told}', start_event_types => '{Started}',
  initial_state => '{"seen": 0}', start_position => 0, mode => 'inline') \g /dev/null
SELECT is((SELECT count(*) FROM evpg.saga_instance WHERE saga = 'history'), 0::bigint,
  'start_position gives history to workers, not to the transaction that registers [rule 18]');
SELECT is((SELECT count(*) FROM evpg.saga_event WHERE saga = 'history' AND key = 'p1'), 12::bigint, 'all of it [rule 18]');
SELECT evpg_drop_saga('history') \g /dev/null
SELECT is((SELECT count(*) FROM evpg.saga_event WHERE saga = 'history'), 0::bigint, 'evpg_drop_saga() removes it [rule 18]');
SELECT evpg_register_saga('future', 'test.script_event', event_types => '{Started}', initial_state => '{"seen": 0}',
  start_position => (SELECT max(position) + 1 FROM evpg.event), mode => 'inline') \g /dev/null
SELECT start('z1'), start('z2') \g /dev/null
SELECT is((SELECT string_agg(key, ' ') FROM evpg.saga_instance WHERE saga = 'future'), 'z2',
  'a saga that starts later leaves out what comes before [rule 18]');
SELECT evpg_drop_saga('future') \g /dev/null

-- ------------------------------------------------------------------ versions

CREATE FUNCTION test.second(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction(state || '{"second": true}')
$$;
SELECT evpg_register_saga('raises', 'test.second', event_types => '{Started,Told}', start_event_types => '{Started}',
  version => 2, mode => 'inline') \g /dev/null
SELECT start('v'), tell('p1') \g /dev/null
SELECT is(instance('v') || ', ' || instance('p1'),
  'running 1 {"second": true}, running 13 {"a": 5, "b": 1, "c": 3, "seen": 13}',
  'an instance keeps the version with which it began [rule 18]');
SELECT is((SELECT string_agg(version || mode, ' ' ORDER BY version) FROM evpg.saga WHERE name = 'raises'), '1inline 2inline',
  'each version has a mode');
SELECT evpg_register_saga('raises', 'test.second', event_types => '{Started,Told}', start_event_types => '{Started}',
  version => 2) \g /dev/null
SELECT tell('p1') \g /dev/null
SELECT is(instance('p1'), 'running 13 {"a": 5, "b": 1, "c": 3, "seen": 13}', 'that of the highest version counts');
SELECT * FROM finish();
