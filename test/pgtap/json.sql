-- json.sql: values go through a module in C and come back exactly.

\ir include/setup.sql
-- some of the text has characters of more than one byte
SET client_encoding = 'UTF8';
SELECT evpg_register_aggregate('echo', library => 'evpg_test', symbol => 'echo', snapshot_every => 0) \g /dev/null
SELECT evpg_register_aggregate('hostile', library => 'evpg_test', symbol => 'hostile') \g /dev/null

SELECT plan(299);
CREATE TABLE test.value (n int GENERATED ALWAYS AS IDENTITY, v jsonb);
INSERT INTO test.value (v) VALUES
  ('null'), ('true'), ('false'), ('{}'), ('[]'), ('[[]]'), ('[{}]'), ('{"a": {}}'), ('""'), ('[null]'), ('{"a": null}'),
  ('[null, [null], {"a": [null]}]'),
  ('0'), ('-0'), ('0.0'), ('-0.0'), ('1'), ('1.0'), ('1.00'), ('-1.50'), ('10'), ('1e2'), ('1E-2'), ('0.1'),
  ('0.30000000000000004'), ('3.14159265358979323846264338327950288'),
  ('12345678901234567890.12'), ('1e400'), ('-1e400'), ('1e-400'), ('123456789012345678901234567890'),
  ('9223372036854775807'), ('9223372036854775808'), ('-9223372036854775808'), ('-9223372036854775809'),
  ('18446744073709551615'), ('18446744073709551616'),
  ('999999999999999999'), ('1000000000000000000'), ('-999999999999999999'), ('-1000000000000000000'), ('9007199254740993'),
  ('9999'), ('10000'), ('-10000'), ('10001'), ('100000000'), ('99990000'), ('12340000000000'), ('1234000000005678'),
  ('9999999999999999'), ('-9999999999999999'), ('10000000000000000'), ('99999999999999990000'), ('0.0001'), ('10000.0'),
  ('1e15'), ('1e16'), ('1e20'), ('1e100'), ('1e300'),
  ('[1, "1", 1.0, "1.0", true, "true", null, "null"]'), ('"plain"'),
  (E'"quote \\" backslash \\\\ slash / newline \\n tab \\t bell \\u0007"'),
  (E'"äöü € 𝄞 \\u00e9 \\ud834\\udd1e"'), ('{"äö": {"€": ["𝄞"]}}'),
  (E'{"": 1, " ": 2, "a.b": 3, "\\"": 4, "\\\\": 5, "\\u0001": 6}'),
  (E'"\\u200b\\ufeff\\uffff"'),
  ('{"b": 1, "aa": 2, "a": 3, "B": 4, "10": 5, "9": 6}'),
  ('{"type": "x", "data": {"type": "y"}, "tags": 1, "metadata": []}');
INSERT INTO test.value (v) SELECT to_jsonb(repeat('x', n))
  FROM unnest('{1,126,127,128,2000,2100,8191,8192,1000000}'::int[]) n;
INSERT INTO test.value (v) SELECT to_jsonb(repeat('€', 100000));
INSERT INTO test.value (v) SELECT jsonb_agg(n) FROM generate_series(1, 20000) n;
-- entries of jsonb are lengths, and every 32nd is an offset
INSERT INTO test.value (v) SELECT jsonb_build_object('x', jsonb_agg(jsonb_build_array(n, repeat('y', n % 7), n % 2 = 0)),
  'y', jsonb_object_agg(repeat('k', n), CASE n % 3 WHEN 0 THEN to_jsonb(n) WHEN 1 THEN to_jsonb(n::text) END), 'z', 1)
  FROM unnest('{31,32,33,64,65,100}'::int[]) size, generate_series(1, size) n GROUP BY size;
INSERT INTO test.value (v) SELECT jsonb_object_agg('key ' || n,
  jsonb_build_object('n', n, 'list', jsonb_build_array(n, n * 1.5, NULL))) FROM generate_series(1, 5000) n;
INSERT INTO test.value (v) SELECT (repeat('[', 98) || repeat(']', 98))::jsonb;
INSERT INTO test.value (v) SELECT (repeat('{"a":', 98) || '1' || repeat('}', 98))::jsonb;
INSERT INTO test.value (v) SELECT (repeat('9', 1000) || '.' || repeat('9', 1000))::jsonb;

CREATE FUNCTION test.short(v jsonb) RETURNS text LANGUAGE sql AS $$ SELECT CASE WHEN length(v::text) > 60
  THEN left(v::text, 50) || '... (' || length(v::text) || ')' ELSE v::text END $$;

-- command -> handler -> event -> fold -> state, then state -> handler -> event; as text, for jsonb finds 1 and 1.0 equal
SELECT is((SELECT md5((data->'value')::text) FROM evpg_execute('echo', 'v' || n, 'Echo', jsonb_build_object('value', v))),
  md5(v::text), 'jsonb and json-c: event ' || short(v)) FROM test.value ORDER BY n;
SELECT is((SELECT md5((state->'value')::text) FROM evpg_state('echo', 'v' || n)), md5(v::text), 'jsonb and json-c: state '
  || short(v)) FROM test.value ORDER BY n;
SET evpg.state_cache_size = 0;
SELECT is((SELECT md5((data->'value')::text) FROM evpg_execute('echo', 'v' || n, 'EchoState')), md5(v::text),
  'jsonb and json-c: copied from a replayed state ' || short(v)) FROM test.value ORDER BY n;
RESET evpg.state_cache_size;
SELECT count(evpg_take_snapshot('echo', 'v' || n)) FROM test.value \g /dev/null
SELECT is((SELECT count(*) FROM evpg.snapshot p JOIN evpg.stream s USING (stream_id) JOIN test.value ON aggregate_id = 'v'
  || n WHERE (state->'value')::text = v::text),
  (SELECT count(*) FROM test.value), 'jsonb and json-c: snapshots');
SELECT is((SELECT count(*) FROM evpg.event WHERE data = 'null'::jsonb), 0::bigint, 'no data is NULL, not null [A22]');

-- data itself need not be an object in an event
SELECT is((SELECT (data->'value')::text FROM evpg_execute('echo', 'twice', 'Echo', '{"value": 1, "value": 2}')), '2',
  'jsonb and json-c: of two equal keys jsonb keeps the last');

-- numbers that a module computes
SELECT is((SELECT data::text FROM evpg_execute('hostile', 'n', 'Number', jsonb_build_object('which', which))), wanted,
  'jsonb and json-c: ' || which || ' by a module') FROM (VALUES
  ('tenth', '0.1'), ('uint64', '18446744073709551615'), ('int64', '-9223372036854775808'),
  ('exact', '12345678901234567890.12')) x (which, wanted);
SELECT is((SELECT data::text::float8 FROM evpg_execute('hostile', 'n', 'Number', jsonb_build_object('which', which))),
  wanted, 'jsonb and json-c: ' || which || ' by a module') FROM (VALUES
  ('smallest', 5e-324::float8), ('largest', 1.7976931348623157e308)) x (which, wanted);
SELECT refused(format($$SELECT evpg_execute('hostile', 'n', 'Number', '{"which": "%s"}')$$, which),
  '22003 event data contains a number that JSON cannot hold: %', 'jsonb and json-c: ' || which)
  FROM unnest('{nan,infinity,-infinity,nan by text,infinity by text,nonsense by text,latin1 by text}'::text[]) which;
SELECT refused($$SELECT evpg_execute('hostile', 'n', 'Number', '{"which": "too large"}')$$,
  '22003 value overflows numeric format',
  'jsonb and json-c: a number beyond numeric');
SELECT is(evpg_stream_version('hostile', 'n'), 6::bigint, 'the refused ones left nothing [rule 5]');
SELECT * FROM finish();
