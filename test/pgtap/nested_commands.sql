-- nested_commands.sql: a handler that executes commands: on other streams, not on its own type again (rule 5).

\ir include/setup.sql
\ir include/same_state.sql
\ir include/counter.sql

SELECT plan(15);
SET test.kind = counter_c;
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 1', 'a stream');

-- a handler that executes commands
CREATE FUNCTION test.caller(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
BEGIN
  IF command.data ? 'catch' THEN
    BEGIN
      PERFORM evpg_execute(command.data->>'type', command.data->>'id', 'Add', '{"n": 1}');
    EXCEPTION WHEN SQLSTATE 'VE020' THEN
      RETURN evpg_event('Caught');
    END;
  END IF;
  PERFORM evpg_execute(command.data->>'type', command.data->>'id', command.data->>'command',
  '{"n": 1, "type": "caller", "id": "1", "command": "Call"}');
  RETURN evpg_event('Called');
END $$;
SELECT evpg_register_aggregate('caller', 'test.caller', 'test.same_state') \g /dev/null
SELECT is((SELECT type FROM evpg_execute('caller', '1', 'Call', '{"type": "counter", "id": "called", "command": "Add"}')),
  'Called', 'a handler may execute a command on another stream');
SELECT is((SELECT state->>'total' FROM evpg_state('counter', 'called')), '1',
  'a command that a handler executes on another stream is done');
SELECT refused(statement, 'VE020 a command on aggregate "caller", stream "1" is being executed already', statement)
  FROM unnest(ARRAY[
  $$SELECT evpg_execute('caller', '1', 'Call', '{"type": "caller", "id": "1", "command": "Call"}')$$,
  $$SELECT evpg_try_execute('caller', '1', 'Call', '{"type": "caller", "id": "1", "command": "Call"}')$$,
  $$SELECT evpg_execute('caller', '1', 'Call', '{"type": "caller", "id": "2", "command": "Call"}')$$]) statement;
SELECT is((SELECT type FROM evpg_execute('caller', '1', 'Call', '{"type": "caller", "id": "1", "catch": true}')), 'Caught',
  'a handler may catch that');
SELECT is((SELECT array_agg(version) FROM evpg_execute('caller', '1', 'Call',
  '{"type": "counter", "id": "called", "command": "Add"}')), '{3}',
    'the stream goes on after a handler has caught the refusal');
SELECT refused($$SELECT evpg_execute('caller', '1', 'Call', '{"type": "counter", "id": "called", "command": "Fail"}')$$,
  'VE009 %', 'a defect of the inner command is one of the outer');
SELECT is((SELECT (status, code)::text FROM evpg_try_execute('caller', '1', 'Call',
  '{"type": "counter", "id": "called", "command": "AddAndRefuse"}')), '(rejected,changed_mind)',
    'a refusal of the inner command is one of the outer command');
SELECT is((SELECT array_agg(v) FROM unnest(ARRAY[evpg_stream_version('caller', '1'), evpg_stream_version('counter',
  'called')]) v), '{3,2}', 'both streams are as before [rule 5]');
SELECT * FROM finish();
