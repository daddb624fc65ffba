-- projection_keys.sql: which keys an event is applied to: the aggregate id, what a path or a function finds, several, none,
-- odd ones, and very many (rule 11).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql

SELECT plan(77);
SET test.kind = counter;

-- ------------------------------------------------------------------ kinds of keys

SELECT evpg_register_projection('by_id', 'test.sum_apply', aggregate_types => '{counter}'),
       evpg_register_projection('by_path', 'test.sum_apply', aggregate_types => '{counter}', key_path => '$.data.group'),
       evpg_register_projection('by_paths', 'test.sum_apply', aggregate_types => '{counter}',
         key_path => '$.data.groups[*]'),
       evpg_register_projection('by_function', 'test.sum_apply', aggregate_types => '{counter}',
         key_function => 'test.group_key'),
       evpg_register_projection('by_functions', 'test.sum_apply', aggregate_types => '{counter}',
         key_function => 'test.group_keys'),
       evpg_register_projection('all_in_one', 'test.sum_apply', aggregate_types => '{counter}', constant_key => 'all'),
       evpg_register_projection('by_symbol', library => 'evpg_test', symbol => 'group_totals',
         aggregate_types => '{counter}'),
       evpg_register_projection('symbol_by_path', library => 'evpg_test', symbol => 'group_totals',
         aggregate_types => '{counter}', key_path => '$.aggregate_id'),
       evpg_register_projection('lines', handler => 'test.statement_write', aggregate_types => '{counter}',
         event_types => '{Added}', key_path => '$.data.group') \g /dev/null
SELECT add('a', 1, more => '{"group": "g", "groups": ["x", "y"]}'),
  add('b', 2, more => '{"group": "g", "groups": ["y", "z", "y"]}'), add('a', 4),
  add('c', 8, more => '{"group": "h", "groups": []}') \g /dev/null

SELECT is(rows_of('by_id'), 'a: 1.2 {"sum": 5, "count": 2}, b: 1.1 {"sum": 2, "count": 1}, c: 1.1 {"sum": 8, "count": 1}',
  'the key is the aggregate id [C01]');
SELECT is(rows_of('by_path'), 'g: 1.2 {"sum": 3, "count": 2}, h: 1.1 {"sum": 8, "count": 1}',
  'what a path finds; nothing is no key [C01]');
SELECT is(rows_of('by_function'), rows_of('by_path'), 'what a function says; NULL is no key [C01]');
SELECT is(rows_of('by_paths'), 'x: 1.1 {"sum": 1, "count": 1}, y: 1.2 {"sum": 3, "count": 2}, z: 1.1 {"sum": 2, "count": 1}',
  'a path finds several keys, each counts once [issue 3]');
SELECT is(rows_of('by_functions'), rows_of('by_paths'), 'a function says several, or none [issue 3]');
SELECT is(rows_of('all_in_one'), 'all: 1.4 {"sum": 15, "count": 4}', 'one key for all events [C01]');
SELECT is(rows_of('by_symbol'), 'g: 1.2 {"total": 3, "applied": 2}, h: 1.1 {"total": 8, "applied": 1}',
  'what the key function of a module says [C01]');
SELECT is(rows_of('symbol_by_path'),
  'a: 1.2 {"total": 5, "applied": 2}, b: 1.1 {"total": 2, "applied": 1}, c: 1.1 {"total": 8, "applied": 1}',
  'a path is stronger than the key function of a module [C01]');
SELECT same('SELECT id, n FROM statement ORDER BY position', $$VALUES ('a', 1), ('b', 2), ('c', 8)$$,
  'a table projection sees an event once for each key, and none without [issue 3]');
SELECT is(rows_of('lines'), 'g: 1.2 -, h: 1.1 -', 'its keys have rows [rule 11]');

-- a path sees the event as a JSON object
CREATE FUNCTION test.key_found(path jsonpath) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  found text;
BEGIN
  PERFORM evpg_register_projection('found', 'test.sum_apply', aggregate_types => '{counter_c}', key_path => path);
  PERFORM evpg_append('counter_c', 'path',
    ARRAY[evpg_event('Odd',
    E'{"s": "", "t": true, "d": 1.50, "big": 12345678901234567890, "null": null, "list": [1, [2]], "object": '
    '{"a": 1}, "u": "ä€😀", "quote": "a\\"b"}',
    '{"tenant": "t1"}', '{red}', occurred_at => '2001-01-01 00:00+00')], actor => 'me',
      command_id => 'c' || (SELECT count(*) FROM evpg.event_log), correlation_id => 'corr', causation_id => 'cause');
  found := (SELECT string_agg(quote_literal(key), ',' ORDER BY key) FROM evpg.projected_state WHERE name = 'found');
  PERFORM evpg_drop_projection('found');
  RETURN found;
END $$;
SELECT is(key_found(path::jsonpath), found, 'key_path ' || path || ' [C01]') FROM (VALUES
  ('$.aggregate_type', $$'counter_c'$$), ('$.aggregate_id', $$'path'$$), ('$.type', $$'Odd'$$), ('$.actor', $$'me'$$),
    ('$.metadata.tenant', $$'t1'$$), ('$.tags[*]', $$'red'$$),
  ('$.correlation_id', $$'corr'$$), ('$.causation_id', $$'cause'$$), ('$.schema_version', $$'1'$$), ('$.data.s', $$''$$),
    ('$.data.t', $$'true'$$), ('$.data.d', $$'1.50'$$), ('$.data.big', $$'12345678901234567890'$$),
  ('$.data.null', NULL), ('$.data.nope', NULL), ('$.data.list[0]', $$'1'$$), ('$.data.u', $$'ä€😀'$$),
    ('$.data.quote', $$'a"b'$$), ('strict $.data.nope', NULL), ('$.data.d ? (@ > 100)', NULL),
    ('$.data.d ? (@ > 1)', $$'1.50'$$),
  ('$.data.t.size()', $$'1'$$), ('$.data.u.double()', NULL),
    ('$.data.keyvalue().key', $$'big','d','list','null','object','quote','s','t','u'$$), ('"fixed"', $$'fixed'$$)) x
    (path, found);
SELECT is(key_found('$.occurred_at') LIKE '%2001-01-01%', true, 'key_path $.occurred_at [C01]');
SELECT key_found('$.position') AS found \gset
SELECT is(:'found', (SELECT quote_literal(max(position)) FROM evpg.event), 'key_path $.position [C01]');
SELECT fails($$SELECT key_found('$.data.object')$$, '22023 key path of projection "found" finds an object or array',
  'an object is no key [C01]');
SELECT fails($$SELECT key_found('$.data.list[*]')$$, '22023 key path of projection "found" finds an object or array',
  'an array is no key [C01]');

-- ------------------------------------------------------------------ odd keys

SELECT add('odd', 1, more => jsonb_build_object('group', g))
  FROM unnest(ARRAY['', ' ', 'a.b', E'a"b\\', '%', '😀', repeat('k', 1024)]) g \g /dev/null
SELECT is((SELECT count(*) FROM evpg.projected_state
  WHERE name = 'by_path' AND key IN ('', ' ', 'a.b', E'a"b\\', '%', '😀', repeat('k', 1024)) AND version = 1), 7::bigint,
  'a key may be empty, of any characters, and of 1024 bytes [C22]');
SELECT is((SELECT state FROM evpg_projection('by_path', repeat('k', 1024))), '{"sum": 1, "count": 1}',
  'a row is read by a key of 1024 bytes [C07]');
SELECT is((SELECT version FROM evpg_projection('by_path')), 1::bigint, 'the empty one is the default [C07]');
SELECT fails(format($$SELECT add('odd', 1, more => jsonb_build_object('group', %s))$$, key), error,
  'key ' || key || ' [issue 3]') FROM (VALUES
  ($$repeat('k', 1025)$$, 'VE014 projection key is too long'), ($$repeat('k', 10240)$$, 'VE014 projection key is too long'),
    ($$repeat('€', 342)$$, 'VE014 projection key is too long'),
  ($$repeat('k', 10000000)$$, 'VE014 projection key is too long'),
    ($$E'a\nb'$$, '22023 projection key contains a control character'),
    ($$chr(127)$$, '22023 projection key contains a control character')) x (key, error);
SELECT evpg_register_projection('bad_key', library => 'evpg_test', symbol => 'bad_key_totals',
  aggregate_types => '{counter_c}') \g /dev/null
SELECT fails($$SELECT add('odd', 1, aggregate => 'counter_c')$$, '22021 %',
  'a module says a key that is not UTF-8 [issue 3]');
SELECT evpg_drop_projection('bad_key') \g /dev/null
CREATE FUNCTION test.odd_keys(event evpg.event) RETURNS text[] LANGUAGE sql AS $$
  SELECT CASE event.data->>'n' WHEN '1' THEN '{{a,b},{c,a}}' WHEN '2' THEN '{NULL,a,NULL}' WHEN '3' THEN '{NULL}'
    WHEN '4' THEN '{}' WHEN '5' THEN '[7:8]={a,d}' END::text[] $$;
SELECT evpg_register_projection('odd_keys', 'test.sum_apply', key_function => 'test.odd_keys',
  aggregate_types => '{counter_c}') \g /dev/null
SELECT add('odd', n, aggregate => 'counter_c') FROM generate_series(1, 6) n \g /dev/null
SELECT is((SELECT string_agg(key || version, ' ' ORDER BY key) FROM evpg.projected_state WHERE name = 'odd_keys'),
  'a3 b1 c1 d1', 'arrays of any shape; NULLs in them are no keys [C01]');
SELECT evpg_drop_projection('odd_keys') \g /dev/null

-- ------------------------------------------------------------------ many

-- A transaction locks keys in one order, so the events of a command may name them in any.
SELECT is((SELECT count(*) FROM
  evpg_append('counter', 'many',
  (SELECT array_agg(evpg_event('Added', jsonb_build_object('n', n, 'group', 'm' || n % 7)) ORDER BY n)
  FROM generate_series(1, 100) n))), 100::bigint, 'a command for several keys [C03]');
SELECT is((SELECT string_agg(key || ' ' || version || ' ' || (state->>'sum'), ', ' ORDER BY key) FROM evpg.projected_state
  WHERE name = 'by_path' AND key LIKE 'm%'),
  (SELECT string_agg(key || ' ' || count || ' ' || sum, ', ' ORDER BY key)
    FROM (SELECT 'm' || n % 7 AS key, count(*), sum(n) FROM generate_series(1, 100) n GROUP BY 1) x),
    'applies each event once, to its key [C05]');

-- Advisory locks of keys that this session holds (those of appenders are of class 17751).
CREATE FUNCTION test.key_locks() RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND objsubid = 17750
$$;
CREATE FUNCTION test.many_keys(event evpg.event) RETURNS text[] LANGUAGE sql AS $$
  SELECT array_agg('k' || n) FROM generate_series(1, (event.data->>'n')::int) n
$$;
SELECT evpg_register_projection('many', 'test.sum_apply', key_function => 'test.many_keys', aggregate_types => '{counter_c}',
  broadcast => 'delta') \g /dev/null
BEGIN;
SELECT key_locks() AS before \gset
SELECT add('l', 63, aggregate => 'counter_c') \g /dev/null
SELECT is(key_locks() - :before, 63::bigint, 'each key is locked [rule 11]');
SELECT add('l', 63, aggregate => 'counter_c') \g /dev/null
SELECT is(key_locks() - :before, 63::bigint, 'once [rule 11]');
SELECT add('l', 70, aggregate => 'counter_c') \g /dev/null
SELECT is(key_locks() - :before, 64::bigint, 'up to evpg.max_key_locks [rule 11]');
COMMIT;
BEGIN;
SET LOCAL evpg.max_key_locks = 3;
SELECT add('l', 5, aggregate => 'counter_c') \g /dev/null
SELECT is(key_locks(), 3::bigint, 'up to evpg.max_key_locks, which is a setting [rule 11]');
COMMIT;
BEGIN;
SET LOCAL evpg.max_key_locks = 0;
SELECT add('l', 5, aggregate => 'counter_c') \g /dev/null
SELECT is(key_locks(), 0::bigint, '0 is none [rule 11]');
COMMIT;
BEGIN;
SELECT add('l', 64, aggregate => 'counter_c') \g /dev/null
ROLLBACK;
BEGIN;
SELECT add('l', 64, aggregate => 'counter_c') \g /dev/null
SELECT is(key_locks(), 64::bigint, 'each transaction starts anew, after a rollback too [rule 11]');
COMMIT;
BEGIN;
SAVEPOINT here;
SELECT add('l', 64, aggregate => 'counter_c') \g /dev/null
ROLLBACK TO here;
SELECT add('l', 64, aggregate => 'counter_c') \g /dev/null
SELECT is(key_locks(), 64::bigint, 'what is rolled back to a savepoint is not counted [rule 11]');
ROLLBACK;
SELECT is((SELECT version FROM evpg_projection('many', 'k5')), 6::bigint,
  'keys without an advisory lock are applied as well [rule 11]');
SELECT evpg_register_projection('quiet', 'test.sum_apply', key_function => 'test.many_keys', aggregate_types => '{echo}',
  broadcast => 'none'), evpg_register_aggregate('echo', library => 'evpg_test', symbol => 'echo') \g /dev/null
BEGIN;
SELECT add('l', 10, aggregate => 'echo') \g /dev/null
SELECT is(key_locks(), 10::bigint, 'keys are locked whatever broadcast says [rule 11]');
COMMIT;

-- 20,000 keys at the default settings, in one command with one event, then with 20,000 events
SELECT is(current_setting('max_locks_per_transaction'), '64', 'at the default settings [rule 11]');
SELECT isnt(add('l', 20000, aggregate => 'counter_c'), NULL, 'a command whose event has 20,000 keys [rule 11, issue 3]');
SELECT is((SELECT count(*) FROM evpg.projected_state WHERE name = 'many'), 20000::bigint,
  'has 20,000 rows [rule 11, issue 3]');
SELECT is((SELECT count(*) FROM evpg.projected_state WHERE name = 'many' AND version = 1), 20000::bigint - 70,
  'each applied once [rule 11, issue 3]');
SELECT is((SELECT count(*) FROM evpg.projected_state WHERE name = 'by_path'),
  (SELECT count(DISTINCT data->>'group') FROM evpg.event WHERE aggregate_type = 'counter'), 'one row for each key [C03]');
SET evpg.max_events = 20000;
SELECT is((SELECT count(*) FROM
  evpg_append('counter', 'l', (SELECT array_agg(evpg_event('Added', jsonb_build_object('n', 1, 'group', 'e' || n)))
  FROM generate_series(1, 20000) n))), 20000::bigint, 'a command with 20,000 events of as many keys [rule 11, issue 3]');
SELECT is((SELECT count(*) FROM evpg.projected_state WHERE name = 'by_path' AND key LIKE 'e%'), 20000::bigint,
  'has 20,000 rows [rule 11, issue 3]');
SELECT * FROM finish();
