-- names.sql: names and ids: what is too short, too long, reserved, or looks like something else is refused in each function,
-- and nothing is written.

\ir include/setup.sql
-- some of the text has characters of more than one byte
SET client_encoding = 'UTF8';
\ir include/counter.sql

SELECT plan(282);
SET test.kind = counter_c;
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 1', 'a stream');

-- names and ids
CREATE FUNCTION test.calls(what text) RETURNS TABLE (statement text, argument text) LANGUAGE sql AS $$
  SELECT * FROM (VALUES
    ($q$SELECT evpg_execute(%1$s, 'a', 'Add')$q$, 'aggregate type'),
    ($q$SELECT evpg_try_execute(%1$s, 'a', 'Add')$q$, 'aggregate type'),
    ($q$SELECT evpg_append(%1$s, 'a', '{}')$q$, 'aggregate type'),
    ($q$SELECT evpg_append_event(%1$s, 'a', 'Odd')$q$, 'aggregate type'),
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
    ($q$SELECT evpg_append_event('counter', %1$s, 'Odd')$q$, 'aggregate id'),
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
  'names of 255 bytes are good');
SELECT is((SELECT count(*) FROM evpg_state(repeat('t', 255), 'x')), 0::bigint, 'in reading too');
SELECT is((SELECT array_agg(status) FROM unnest(ARRAY[' ', '''; DROP TABLE x; --', E'\\', '"', '%s', '{}', 'NULL', 'ÄÖ',
  '../..', '💣']) id, evpg_try_execute('counter_c', id, 'Add', '{"n": 1}')),
  array_fill('ok'::text, '{10}'), 'ids are any text');
SELECT is((SELECT count(*) FROM evpg_streams('counter_c')
            WHERE aggregate_id IN ('''; DROP TABLE x; --', E'\\', '"', '%s', '💣')
  AND version = 1), 5::bigint, 'ids are any text, and come back as they are');

-- reserved
SELECT refused(format($$SELECT evpg_register_aggregate(%L, library => 'evpg_test', symbol => 'counter')$$, name),
  'VE017 aggregate type "' || name || '" is reserved', 'aggregate type ' || name)
  FROM unnest('{evpg.x,evpg.,EVPG.stream}'::text[]) name;
SELECT is(evpg_register_aggregate(name, library => 'evpg_test', symbol => 'counter'), true, 'aggregate type ' || name
  || ' is not reserved') FROM unnest('{evpg,evpgx,x.evpg.}'::text[]) name;

-- what belongs to sagas and timers
SELECT is(error_of($$SELECT count(*) FROM evpg_execute('counter', 'x', 'Add', '{"n": 1}', command_id => 'timer:1')$$),
  'VE017 command id "timer:1" is reserved', 'who executes a command cannot take the id of a scheduled one [rule 4]');
SELECT is(error_of($$SELECT count(*) FROM evpg_append('counter', 'x', ARRAY[evpg_event('A')], command_id => 'saga:1')$$),
  'VE017 command id "saga:1" is reserved', 'a client cannot take the command id of a saga [rule 4]');
SELECT is(error_of($$SELECT evpg_schedule_command(now(), 'counter', 'x', 'Add', '{"n": 1}', metadata => '{"evpg": 1}')$$),
  'VE017 metadata key "evpg" is reserved', 'a client cannot write the metadata of a saga [rule 16]');

-- an id that was forgotten
SELECT refused(statement, '22023 command type looks like JSON', statement) FROM (VALUES
  ($$SELECT evpg_execute('counter', 'Add', '{"n": 1}')$$), ($$SELECT evpg_try_execute('counter', 'AddEach', '[1]')$$),
  ($$SELECT evpg_schedule_command(now(), 'counter', 'Add', '{"n": 1}')$$),
    ($$SELECT evpg_command('counter', 'Add', '{"n": 1}')$$)) x (statement);

SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 2', 'the session works on after reserved names were refused');
SELECT * FROM finish();
