-- limits.sql: too much of something: sizes, depths, numbers of events; and loops.

\ir include/setup.sql
\ir include/same_state.sql
\ir include/counter.sql
SELECT evpg_register_aggregate('echo', library => 'evpg_test', symbol => 'echo') \g /dev/null

SELECT plan(94);
SET test.kind = counter_c;

CREATE FUNCTION test.large() RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('x', repeat('x', 16777216)) $$;

-- 300 MB: a jsonb string has at most 256 MB, so more of them
CREATE FUNCTION test.huge() RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_array(repeat('x', 100000000), repeat('x', 100000000), repeat('x', 60000000)) $$;
SELECT refused(statement, error, left(statement, 60)) FROM (VALUES
  ($$SELECT evpg_execute('counter', 'a', 'Add', jsonb_build_object('x', repeat('x', 300000000)))$$,
  '54000 string too long to represent as jsonb string'),
  ($$SELECT evpg_execute('counter_c', 'a', 'Add', test.huge())$$, 'VE014 command data is too large')) x (statement, error);
SELECT refused(statement, error, left(statement, 100)) FROM (VALUES
  ($$SELECT evpg_execute('counter', 'a', 'Nothing', test.large())$$,
  'VE014 command data is too large'),
  ($$SELECT evpg_execute('counter', 'a', 'Nothing', metadata => test.large())$$,
  'VE014 command metadata is too large'),
  ($$SELECT evpg_append('counter', 'a', ARRAY[evpg_event('Odd'), evpg_event('Odd', test.large())])$$,
  'VE014 event data is too large'),
  ($$SELECT evpg_append('counter', 'a', ARRAY[evpg_event('Odd', metadata => test.large())])$$,
  'VE014 event metadata is too large'),
  ($$SELECT evpg_set_context(metadata => test.large())$$, 'VE014 metadata is too large'),
  ($$SELECT evpg_register_aggregate('big', 'test.counter_handle', 'test.counter_apply', initial_state => test.large())$$,
  'VE014 initial state is too large')) x (statement, error);
SELECT is((SELECT octet_length(data->>'value') FROM evpg_execute('echo', 'big', 'Echo',
  jsonb_build_object('value', repeat('x', 16000000)))), 16000000, '16 MB are good');
SELECT is((SELECT octet_length(state->>'value') FROM evpg_state('echo', 'big')), 16000000, 'a state of 16 MB is good');
SET evpg.max_event_size = '1kB';
SELECT refused($$SELECT evpg_execute('echo', 'a', 'Echo', jsonb_build_object('value', repeat('x', 1024)))$$,
  'VE014 command data is too large', 'evpg.max_event_size');
SELECT is((SELECT count(*) FROM evpg_execute('echo', 'a', 'Echo', jsonb_build_object('value', repeat('x', 900)))), 1::bigint,
  'below it');
SELECT is((SELECT octet_length(data->>'value') FROM evpg_read_stream('echo', 'big')), 16000000,
  'evpg.max_event_size: larger ones can be read');
SELECT is((SELECT octet_length(state->>'value') FROM evpg_state('echo', 'big')), 16000000,
  'evpg.max_event_size: and folded');
RESET evpg.max_event_size;

-- depth
CREATE FUNCTION test.nested(depth int, open text, inner_ text, close text) RETURNS jsonb LANGUAGE sql AS $$
  SELECT (repeat(open, depth) || inner_ || repeat(close, depth))::jsonb $$;
SELECT refused(format($$SELECT evpg_execute(%L, 'deep', 'Nothing', test.nested(%s, '{"a":', '1', '}'))$$, kind, depth),
  'VE014 command data is nested too deeply', kind || ': command data, ' || depth || ' objects deep')
  FROM unnest('{counter,counter_c}'::text[]) kind, unnest('{101,10000}'::int[]) depth;
SELECT refused(format($$SELECT evpg_execute(%L, 'deep', 'Nothing', test.nested(%s, '[', '', ']'))$$, kind, depth),
  'VE014 command data is nested too deeply', kind || ': command data, ' || depth || ' arrays deep')
  FROM unnest('{counter,counter_c}'::text[]) kind, unnest('{101,10000}'::int[]) depth;
SELECT refused(format($$SELECT evpg_append('counter', 'deep', ARRAY[evpg_event('Odd', test.nested(%s, '[', '', ']'))])$$,
  depth), 'VE014 event data is nested too deeply', 'append: ' || depth || ' levels') FROM unnest('{101,10000}'::int[]) depth;
SELECT refused($$SELECT evpg_append('counter', 'deep',
  ARRAY[evpg_event('Odd', metadata => test.nested(101, '{"a":', '1', '}'))])$$, 'VE014 event metadata is nested too deeply',
  'append: metadata, 101 levels');
SELECT is((SELECT count(*) FROM evpg_append('counter', 'deep', ARRAY[evpg_event('Odd', test.nested(100, '[', '', ']'))])),
  1::bigint, 'a hundred levels are good');
CREATE FUNCTION test.deep_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT evpg_event('Deep', test.nested((command.data->>'depth')::int, '[', '', ']')) $$;
CREATE FUNCTION test.deep_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_array(state, event.data) $$;
SELECT evpg_register_aggregate('deep', 'test.deep_handle', 'test.deep_apply') \g /dev/null
SELECT refused(format($$SELECT evpg_execute('deep', 'a', 'Deep', '{"depth": %s}')$$, depth),
  'VE014 event data is nested too deeply', 'emitted by a function: ' || depth || ' levels')
  FROM unnest('{101,10000}'::int[]) depth;
SELECT is((SELECT count(*) FROM generate_series(1, 200) n,
  evpg_execute('deep', 'a', 'Deep', jsonb_build_object('depth', 1 + n % 100))), 200::bigint,
  'a state of functions may be deep: it never leaves jsonb');
SET evpg.max_json_depth = 5;
SELECT refused($$SELECT evpg_execute('echo', 'd', 'Echo', '{"value": [[[[[]]]]]}')$$,
  'VE014 command data is nested too deeply', 'evpg.max_json_depth');
SELECT is((SELECT count(*) FROM evpg_execute('echo', 'd', 'Echo', '{"value": [[[[]]]]}')), 1::bigint, 'up to it');
RESET evpg.max_json_depth;

-- events of one command
SELECT refused(format($$SELECT evpg_execute(%L, 'many', 'AddMany', '{"count": %s}')$$, kind, n),
  'VE014 command "AddMany" emits too many events', kind || ': ' || n || ' events')
  FROM unnest('{counter,counter_c}'::text[]) kind, unnest('{10001,100000}'::int[]) n;
SELECT is((SELECT count(*) FROM evpg_execute(kind, 'wide', 'AddMany', '{"count": 1000}')), 1000::bigint, kind
  || ': a thousand events are good') FROM unnest('{counter,counter_c}'::text[]) kind;
SELECT is((SELECT count(*) FROM evpg_append('counter', 'wide2',
  (SELECT array_agg(evpg_event('Odd')) FROM generate_series(1, 10000)))), 10000::bigint, 'append: ten thousand');
SELECT refused($$SELECT evpg_append('counter', 'wide2',
  (SELECT array_agg(evpg_event('Odd')) FROM generate_series(1, 10001)))$$, 'VE014 too many events in one call',
  'append: one more');
SELECT refused($$SELECT evpg_append('counter', 'wide2',
  (SELECT array_agg(evpg_event('Odd')) FROM generate_series(1, 100000)))$$, 'VE014 too many events in one call',
  'append: a hundred thousand');
SET evpg.max_events = 3;
SELECT refused(format($$SELECT evpg_execute(%L, 'few', 'AddMany', '{"count": 4}')$$, kind),
  'VE014 command "AddMany" emits too many events', kind || ': evpg.max_events')
  FROM unnest('{counter,counter_c}'::text[]) kind;
SELECT is((SELECT count(*) FROM evpg_execute(kind, 'few', 'AddMany', '{"count": 3}')), 3::bigint, kind || ': up to it')
  FROM unnest('{counter,counter_c}'::text[]) kind;
CREATE FUNCTION test.array_handle(state jsonb, command evpg.command) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_agg(jsonb_build_object('type', 'Odd')) FROM generate_series(1, (command.data->>'count')::int) $$;
SELECT evpg_register_aggregate('array', 'test.array_handle', 'test.same_state') \g /dev/null
SELECT refused($$SELECT evpg_execute('array', 'a', 'X', '{"count": 4}')$$, 'VE014 command "X" emits too many events',
  'a handler that returns jsonb: evpg.max_events');
SELECT is((SELECT count(*) FROM evpg_execute('array', 'a', 'X', '{"count": 3}')), 3::bigint,
  'a handler that returns jsonb: up to it');
RESET evpg.max_events;

-- loops: statement_timeout ends them, and the session works on
SET statement_timeout = '500ms';
SELECT refused(format($$SELECT evpg_execute(%L, 'spin', 'Spin')$$, kind),
  '57014 canceling statement due to statement timeout', 'a handler that loops for ever [B23, ' || kind || ']')
  FROM unnest('{counter}'::text[]) kind;
SELECT refused(format($$SELECT evpg_try_execute(%L, 'spin', 'Spin')$$, kind), '57014 %', kind || ': in try_execute')
  FROM unnest('{counter}'::text[]) kind;
SELECT refused(format($$SELECT evpg_execute(%L, 'spin', 'Spin')$$, kind),
  '57014 canceling statement due to statement timeout', 'a handler that loops for ever [B23, ' || kind || ']')
  FROM unnest('{counter_c}'::text[]) kind;
SELECT refused(format($$SELECT evpg_try_execute(%L, 'spin', 'Spin')$$, kind), '57014 %', kind || ': in try_execute')
  FROM unnest('{counter_c}'::text[]) kind;
CREATE FUNCTION test.spin_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN LOOP NULL;
  END LOOP; END $$;
CREATE FUNCTION test.spin_sql(state jsonb, command evpg.command) RETURNS jsonb LANGUAGE sql AS $$
  WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n FROM r) SELECT to_jsonb(count(*)) FROM r $$;
SELECT evpg_register_aggregate('spin', 'test.array_handle', 'test.spin_apply'),
  evpg_register_aggregate('spin_sql', 'test.spin_sql', 'test.same_state') \g /dev/null
SELECT refused($$SELECT evpg_execute('spin', 'a', 'X', '{"count": 1}')$$, '57014 %',
  'a reducer in PL/pgSQL that loops for ever');
SELECT refused($$SELECT evpg_execute('spin_sql', 'a', 'X')$$, '57014 %', 'a handler in SQL that loops for ever');
RESET statement_timeout;
SELECT is((SELECT array_agg(status) FROM unnest('{counter,counter_c}'::text[]) kind,
  evpg_try_execute(kind, 'after', 'Add', '{"n": 1}')), '{ok,ok}', 'the session works on');

-- a function that calls itself by commands: a clear error, no crash
CREATE FUNCTION test.deeper(state jsonb, command evpg.command) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM evpg_execute('deeper', (command.aggregate_id::int + 1)::text, 'Go');
  RETURN NULL;
END $$;
SELECT evpg_register_aggregate('deeper', 'test.deeper', 'test.same_state') \g /dev/null
SELECT refused($$SELECT evpg_execute('deeper', '1', 'Go')$$, '54001 stack depth limit exceeded',
  'commands within commands without end');
SELECT is((SELECT status FROM evpg_try_execute('counter', 'after', 'Add', '{"n": 1}')), 'ok', 'the session works on');
SELECT * FROM finish();
