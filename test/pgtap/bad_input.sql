-- bad_input.sql: arguments that cannot be right.  Each is refused with a clear error, and nothing is written.

\ir include/setup.sql
\ir include/counter.sql
SELECT evpg_register_aggregate('echo', library => 'evpg_test', symbol => 'echo') \g /dev/null

SELECT plan(373);
SET test.kind = counter_c;
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 1', 'a stream');

-- names and ids
CREATE FUNCTION test.calls(what text) RETURNS TABLE (statement text, argument text) LANGUAGE sql AS $$
  SELECT * FROM (VALUES
    ($q$SELECT evpg_execute(%1$s, 'a', 'Add')$q$, 'aggregate type'),
    ($q$SELECT evpg_try_execute(%1$s, 'a', 'Add')$q$, 'aggregate type'),
    ($q$SELECT evpg_append(%1$s, 'a', '{}')$q$, 'aggregate type'),
    ($q$SELECT evpg_inject(%1$s, 'a', evpg_event('Odd'))$q$, 'aggregate type'),
    ($q$SELECT evpg_state(%1$s, 'a')$q$, 'aggregate type'), ($q$SELECT evpg_read_stream(%1$s, 'a')$q$, 'aggregate type'),
    ($q$SELECT evpg_command(%1$s, 'a', 'Add')$q$, 'aggregate type'),
    ($q$SELECT evpg_register_aggregate(%1$s, library => 'evpg_test', symbol => 'counter')$q$, 'aggregate type'),
    ($q$SELECT evpg_execute('counter_c', 'a', %1$s)$q$, 'command type'),
    ($q$SELECT evpg_try_execute('counter', 'a', %1$s)$q$, 'command type'),
    ($q$SELECT evpg_command('counter', 'a', %1$s)$q$, 'command type'),
    ($q$SELECT evpg_execute('counter_c', %1$s, 'Add')$q$, 'aggregate id'),
    ($q$SELECT evpg_try_execute('counter', %1$s, 'Add')$q$, 'aggregate id'),
    ($q$SELECT evpg_append('counter', %1$s, '{}')$q$, 'aggregate id'),
    ($q$SELECT evpg_inject('counter', %1$s, evpg_event('Odd'))$q$, 'aggregate id'),
    ($q$SELECT evpg_state('counter', %1$s)$q$, 'aggregate id'),
    ($q$SELECT evpg_read_stream('counter', %1$s)$q$, 'aggregate id'),
    ($q$SELECT evpg_command('counter', %1$s, 'Add')$q$, 'aggregate id')) x (statement, argument) $$;
SELECT refused(format(statement, 'NULL'), '22004 ' || argument || ' must not be null', format(statement, 'NULL'))
  FROM calls('');
SELECT refused(format(statement, $$''$$), '22023 ' || argument || ' must not be empty', format(statement, $$''$$))
  FROM calls('');
SELECT refused(format(statement, format($$repeat('x', %s)$$, CASE argument WHEN 'aggregate id' THEN 1025 ELSE 256 END)),
  'VE014 ' || argument || ' is too long', format(statement, 'too long')) FROM calls('');
SELECT refused(format(statement, $$repeat('€', 400)$$), 'VE014 ' || argument || ' is too long',
  format(statement, 'too long in bytes')) FROM calls('');
SELECT refused(format(statement, $$repeat('x', 100000000)$$), 'VE014 ' || argument || ' is too long',
  format(statement, '100 MB')) FROM calls('') WHERE statement LIKE '%evpg_execute%';
SELECT refused(format(statement, format('chr(%s)', c)), '22023 ' || argument || ' contains a control character',
  format(statement, 'chr(' || c || ')')) FROM calls(''), unnest('{1,9,10,13,27,31,127}'::int[]) c
 WHERE statement LIKE '%evpg_execute%' OR c = 10;
SELECT refused($$SELECT evpg_stream_version(NULL, 'a')$$, 'no error', 'evpg_stream_version of NULL is NULL');
SELECT refused($$SELECT evpg_create_stream('counter', '')$$, '22023 aggregate id must not be empty', 'evpg_create_stream');
SELECT refused($$SELECT evpg_create_stream('counter', repeat('x', 1025))$$, 'VE014 aggregate id is too long',
  'evpg_create_stream');
SELECT refused($$SELECT evpg_execute('counter', 'a', 'Add', command_id => '')$$, '22023 command id must not be empty',
  'command_id empty');
SELECT refused($$SELECT evpg_execute('counter', 'a', 'Add', command_id => repeat('x', 1025))$$,
  'VE014 command id is too long', 'command_id too long');
SELECT refused($$SELECT evpg_execute('counter', 'a', 'Add', command_id => E'a\tb')$$,
  '22023 command id contains a control character', 'command_id with a tab');

-- the longest that may be
SELECT is((SELECT status FROM evpg_try_execute('counter_c', repeat('€', 341), 'Add', '{"n": 1}', NULL, repeat('c', 1024),
  NULL, repeat('a', 1024), repeat('b', 1024), repeat('d', 1024))), 'ok',
  'ids of 1024 bytes are good');
SELECT is((SELECT status FROM evpg_try_execute('counter_c', repeat(md5(random()::text), 32), 'Add', '{"n": 1}', NULL,
  repeat(md5(random()::text), 32))), 'ok', 'even if they cannot be compressed');
SELECT evpg_register_aggregate(repeat('t', 255), library => 'evpg_test', symbol => 'counter') \g /dev/null
SELECT is((SELECT array_agg(version) FROM evpg_execute(repeat('t', 255), repeat(md5(random()::text), 32), 'Emit',
  jsonb_build_object('events', jsonb_build_array(jsonb_build_object('type', repeat('e', 255)))))), '{1}',
  'and names of 255');
SELECT is((SELECT count(*) FROM evpg_state(repeat('t', 255), 'x')), 0::bigint, 'in reading too');
SELECT is((SELECT array_agg(status) FROM unnest(ARRAY[' ', '''; DROP TABLE x; --', '\', '"', '%s', '{}', 'NULL', 'ÄÖ',
  '../..', '💣']) id, evpg_try_execute('counter_c', id, 'Add', '{"n": 1}')),
  array_fill('ok'::text, '{10}'), 'ids are any text');
SELECT is((SELECT count(*) FROM evpg_streams('counter_c')
            WHERE aggregate_id IN ('''; DROP TABLE x; --', '\', '"', '%s', '💣')
  AND version = 1), 5::bigint, 'and come back as they are');

-- events
CREATE FUNCTION test.appends(event text) RETURNS SETOF text LANGUAGE sql AS $$
  SELECT format(f, event) FROM (VALUES ($q$SELECT evpg_append('counter', 'a', ARRAY[evpg_event('Odd'), %s])$q$),
  ($q$SELECT evpg_inject('counter', 'a', %s)$q$)) x (f) $$;
SELECT refused(statement, error, 'D50, D51: ' || statement) FROM (VALUES
  ($$evpg_event('')$$, '22023 event type must not be empty'),
  ($$evpg_event(repeat('x', 256))$$, 'VE014 event type is too long'),
  ($$evpg_event(E'a\nb')$$, '22023 event type contains a control character'),
  ($$evpg_event('evpg.x')$$, 'VE017 event type "evpg.x" is reserved'),
  ($$evpg_event('Evpg.X')$$, 'VE017 event type "Evpg.X" is reserved'),
  ($$(NULL, '{}', NULL, NULL, NULL, NULL, NULL, NULL)::evpg.new_event$$, '22004 event type must not be null'),
  ($$evpg_event('Odd', tags => '{""}')$$, '22023 tag must not be empty'),
  ($$evpg_event('Odd', tags => '{NULL}')$$, '22004 tag 1 must not be null'),
  ($$evpg_event('Odd', tags => '{{a,b}}')$$, '2202E tags must be a one-dimensional array'),
  ($$evpg_event('Odd', tags => ARRAY[repeat('x', 256)])$$, 'VE014 tag is too long'),
  ($$evpg_event('Odd', tags => ARRAY[E'a\nb'])$$, '22023 tag contains a control character'),
  ($$evpg_event('Odd', tags => array_fill('x'::text, '{100000}'))$$, 'VE014 an event has too many tags'),
  ($$evpg_event('Odd', schema_version => 0)$$, '22023 schema_version must be at least 1'),
  ($$evpg_event('Odd', schema_version => -2147483648)$$, '22023 schema_version must be at least 1'),
  ($$evpg_event('Odd', occurred_at => 'infinity')$$, '22023 occurred_at must be finite'),
  ($$evpg_event('Odd', occurred_at => '-infinity')$$, '22023 occurred_at must be finite'))
  x (event, error), appends(event) statement;
SELECT is((SELECT occurred_at FROM evpg_inject('counter', 'times', evpg_event('Odd', occurred_at => t))), t, 'occurred_at '
  || t) FROM (VALUES
  ('4713-01-01 00:00+00 BC'::timestamptz), ('294276-12-31 23:59:59.999999+00'), ('1970-01-01 00:00+00'),
  ('2000-01-01 00:00+00')) x (t);

-- data that a module in C cannot take
SELECT refused(format($$SELECT evpg_execute('counter_c', 'a', 'Add', %L)$$, data),
  '22023 data of command "Add" must be a JSON object', 'command data ' || data || ' for a module in C')
  FROM unnest('{[],[1],7,1.5,"\"text\"",true,false}'::text[]) data;
SELECT is((SELECT data FROM evpg_execute('counter_c', 'a', 'Add', data)), '{"n": 0}', 'command data '
  || coalesce(data::text, 'NULL') || ' is none') FROM unnest('{null,NULL}'::jsonb[]) data;
SELECT is((SELECT count(*) FROM evpg_execute('counter', 'j', 'Nothing', data)), 0::bigint, 'a function takes command data '
  || coalesce(data::text, 'NULL'))
  FROM unnest(ARRAY['[]', '7', '"text"', 'true', 'null', NULL]::jsonb[]) data;

-- reserved
SELECT refused(format($$SELECT evpg_register_aggregate(%L, library => 'evpg_test', symbol => 'counter')$$, name),
  'VE017 aggregate type "' || name || '" is reserved', 'aggregate type ' || name)
  FROM unnest('{evpg.x,evpg.,EVPG.stream}'::text[]) name;
SELECT is(evpg_register_aggregate(name, library => 'evpg_test', symbol => 'counter'), true, 'aggregate type ' || name
  || ' is not reserved') FROM unnest('{evpg,evpgx,x.evpg.}'::text[]) name;

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
CREATE FUNCTION test.same_state(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT state $$;
SELECT evpg_register_aggregate('caller', 'test.caller', 'test.same_state') \g /dev/null
SELECT is((SELECT type FROM evpg_execute('caller', '1', 'Call', '{"type": "counter", "id": "called", "command": "Add"}')),
  'Called', 'a handler may execute a command on another stream');
SELECT is((SELECT state->>'total' FROM evpg_state('counter', 'called')), '1', 'which is then done');
SELECT refused(statement, 'VE020 a command on aggregate "caller", stream "1" is being executed already', statement)
  FROM unnest(ARRAY[
  $$SELECT evpg_execute('caller', '1', 'Call', '{"type": "caller", "id": "1", "command": "Call"}')$$,
  $$SELECT evpg_try_execute('caller', '1', 'Call', '{"type": "caller", "id": "1", "command": "Call"}')$$,
  $$SELECT evpg_execute('caller', '1', 'Call', '{"type": "caller", "id": "2", "command": "Call"}')$$]) statement;
SELECT is((SELECT type FROM evpg_execute('caller', '1', 'Call', '{"type": "caller", "id": "1", "catch": true}')), 'Caught',
  'a handler may catch that');
SELECT is((SELECT array_agg(version) FROM evpg_execute('caller', '1', 'Call',
  '{"type": "counter", "id": "called", "command": "Add"}')), '{3}', 'and the stream goes on');
SELECT refused($$SELECT evpg_execute('caller', '1', 'Call', '{"type": "counter", "id": "called", "command": "Fail"}')$$,
  'VE009 %', 'a defect of the inner command is one of the outer');
SELECT is((SELECT (status, code)::text FROM evpg_try_execute('caller', '1', 'Call',
  '{"type": "counter", "id": "called", "command": "AddAndRefuse"}')), '(rejected,changed_mind)', 'a refusal, too');
SELECT is((SELECT array_agg(v) FROM unnest(ARRAY[evpg_stream_version('caller', '1'), evpg_stream_version('counter',
  'called')]) v), '{3,2}', 'rule 5: both streams are as before');

-- read-only
BEGIN READ ONLY;
SELECT refused(statement, '25006 cannot execute ' || f || '() in a read-only transaction', 'read-only: ' || f) FROM (VALUES
  ('evpg_execute', $$SELECT evpg_execute('counter', 'a', 'Add')$$),
  ('evpg_try_execute', $$SELECT evpg_try_execute('counter', 'a', 'Add')$$),
  ('evpg_append', $$SELECT evpg_append('counter', 'a', '{}')$$),
  ('evpg_inject', $$SELECT evpg_inject('counter', 'a', evpg_event('Odd'))$$),
  ('evpg_create_stream', $$SELECT evpg_create_stream('counter', 'a')$$),
  ('evpg_take_snapshot', $$SELECT evpg_take_snapshot('counter', 'a')$$),
  ('evpg_register_aggregate', $$SELECT evpg_register_aggregate('x', library => 'evpg_test', symbol => 'counter')$$),
  ('evpg_drop_aggregate', $$SELECT evpg_drop_aggregate('counter')$$),
  ('evpg_register_interceptor', $$SELECT evpg_register_interceptor('x', 'test.pass_none')$$),
  ('evpg_drop_interceptor', $$SELECT evpg_drop_interceptor('x')$$)) x (f, statement) WHERE f <> 'evpg_register_interceptor';
COMMIT;
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 4', 'and the session works on');
SELECT * FROM finish();
