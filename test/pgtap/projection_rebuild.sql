-- projection_rebuild.sql: a key is folded again from the first event on (rule 13).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql

SELECT plan(57);
SET test.kind = counter;

-- A row without what a rebuild changes.
CREATE FUNCTION test.state_of(name text, key text) RETURNS jsonb LANGUAGE sql VOLATILE AS $$
  SELECT state FROM evpg_projection(name, key)
$$;

SELECT evpg_register_projection('by_id', 'test.sum_apply', aggregate_types => '{counter}'),
  evpg_register_projection('both', 'test.sum_project'),
       evpg_register_projection('by_path', 'test.sum_apply', key_path => '$.data.group'),
         evpg_register_projection('by_paths', 'test.sum_apply', key_path => '$.data.groups[*]'),
       evpg_register_projection('by_function', 'test.sum_apply', key_function => 'test.group_key'),
         evpg_register_projection('by_functions', 'test.sum_apply', key_function => 'test.group_keys'),
       evpg_register_projection('constant', 'test.sum_apply', constant_key => 'all'),
         evpg_register_projection('module', library => 'evpg_test', symbol => 'totals'),
       evpg_register_projection('module_key', library => 'evpg_test', symbol => 'group_totals'),
       evpg_register_projection('filtered', 'test.sum_apply', aggregate_types => '{counter}',
         event_types => '{Added,Cleared}', tags => '{red,blue}', key_path => '$.data.group') \g /dev/null

-- 3.4 test 4: three events, 15
SELECT add('three', 4), add('three', 5), add('three', 6) \g /dev/null
SELECT is(row_of('by_id', 'three'), '1.3 {"sum": 15, "count": 3}', 'three applies [C02, 3.4 test 4]');
SELECT is(evpg_rebuild_projection('by_id', 'three'), 3::bigint,
  'a rebuild says how many events it has folded [rule 13, C12]');
SELECT is(row_of('by_id', 'three'), '2.3 {"sum": 15, "count": 3}',
  'a rebuild of a key equals the sequential applies, in the next generation [rule 13, C12, 3.4 test 4]');
SELECT is(evpg_rebuild_projection('by_id', 'three'), 3::bigint, 'again [rule 13]');
SELECT is(row_of('by_id', 'three'), '3.3 {"sum": 15, "count": 3}', 'the same, in the next generation [rule 13]');
SELECT add('three', 1) \g /dev/null
SELECT is(row_of('by_id', 'three'), '3.4 {"sum": 16, "count": 4}', 'applies go on from there [rule 12]');

-- 3.4 test 7: events at random over both types, groups, tags, with deletions; each key of each projection
SELECT setseed(0.25) \g /dev/null
SELECT count(*) FROM (SELECT 'id' || floor(random() * 5) AS id, floor(random() * 50)::bigint AS n,
  (ARRAY['Added', 'Added', 'Subtracted', 'Odd', 'Cleared'])[1 + floor(random() * 5)] AS type,
    jsonb_build_object('group', 'g' || floor(random() * 3), 'groups',
      jsonb_build_array('x' || floor(random() * 3), 'x' || floor(random() * 3))) AS more,
    CASE floor(random() * 3) WHEN 0 THEN '{red}' WHEN 1 THEN '{blue,red}' END::text[] AS tags,
      CASE floor(random() * 2) WHEN 0 THEN 'counter' ELSE 'counter_c' END AS aggregate
    FROM generate_series(1, 400) OFFSET 0) x, LATERAL add(id, n, type, more, tags, aggregate) \g /dev/null
CREATE TABLE test.before AS SELECT * FROM stored;
SELECT cmp_ok((SELECT count(*) FROM before), '>', 30::bigint, 'many keys [3.4 test 7]');
CREATE TABLE test.folded AS SELECT name, key, evpg_rebuild_projection(name, key) AS folded FROM before ORDER BY name, key;
SELECT is((SELECT count(*) FROM before b JOIN stored a USING (name, key)
  WHERE a.state IS NOT DISTINCT FROM b.state AND a.deleted = b.deleted), (SELECT count(*) FROM before),
  'replay equals sequential applies, for each key of each projection [rule 13, 3.4 test 7]');
SELECT is((SELECT count(*) FROM before), (SELECT count(*) FROM stored), 'no row comes or goes [rule 13]');
SELECT is((SELECT count(*) FROM stored a JOIN before b USING (name, key) WHERE a.generation <= b.generation), 0::bigint,
  'all in a higher generation [rule 12]');
SELECT is((SELECT count(*) FROM stored JOIN folded USING (name, key) WHERE version <> folded), 0::bigint,
  'version = events folded [rule 13, C12]');
SELECT is((SELECT folded FROM folded WHERE (name, key) = ('by_path', 'g1')),
  (SELECT count(*) FROM evpg.event WHERE data->>'group' = 'g1'),
  'these are the events of the key, found by a path [rule 13]');
SELECT is((SELECT folded FROM folded WHERE (name, key) = ('by_functions', 'x1')),
  (SELECT count(*) FROM evpg.event WHERE data->'groups' ? 'x1'), 'by a function that says several [rule 13]');
SELECT is((SELECT folded FROM folded WHERE (name, key) = ('both', 'id1')),
  (SELECT count(*) FROM evpg.event WHERE aggregate_id = 'id1'), 'in the streams of all types [rule 13]');
SELECT is((SELECT folded FROM folded WHERE (name, key) = ('constant', 'all')), (SELECT count(*) FROM evpg.event),
  'in all streams [rule 13]');
SELECT is((SELECT folded FROM folded WHERE (name, key) = ('filtered', 'g1')),
  (SELECT count(*) FROM evpg.event
  WHERE data->>'group' = 'g1' AND aggregate_type = 'counter' AND type IN ('Added', 'Cleared') AND tags && '{red,blue}'),
  'after the filters [rule 13, B30]');

-- more events than one fetch
SELECT count(*) FROM evpg_append('counter', 'long',
  (SELECT array_agg(evpg_event('Added', jsonb_build_object('n', n))) FROM generate_series(1, 2500) n)) \g /dev/null
SELECT is(evpg_rebuild_projection('by_id', 'long'), 2500::bigint, 'a long history [rule 13]');
SELECT is(row_of('by_id', 'long'), '2.2500 {"sum": 3126250, "count": 2500}', 'folds to the same [rule 13]');

-- damage is repaired, and nothing else is touched
CREATE FUNCTION test.others() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT md5(string_agg(p::text, ',' ORDER BY name, key)) FROM stored p WHERE (name, key) <> ('by_id', 'long')
$$;
SELECT others() AS others \gset
SELECT evpg_put_projection('by_id', 'long', '{"sum": -1}') \g /dev/null
SELECT is(evpg_rebuild_projection('by_id', 'long'), 2500::bigint, 'a row that was put [C12]');
SELECT is(row_of('by_id', 'long'), '3.2500 {"sum": 3126250, "count": 2500}', 'is what the events say again [C12]');
SELECT evpg_put_projection('by_id', 'long', NULL) \g /dev/null
SELECT is(evpg_rebuild_projection('by_id', 'long'), 2500::bigint, 'a row that was deleted [C12]');
SELECT is(row_of('by_id', 'long'), '4.2500 {"sum": 3126250, "count": 2500}', 'is there again [C12]');
DELETE FROM evpg.projection_state s USING evpg.projection p WHERE s.build = p.build AND (name, key) = ('by_id', 'long');
SELECT is(evpg_rebuild_projection('by_id', 'long'), 2500::bigint, 'a row that was lost [C12]');
SELECT is(row_of('by_id', 'long'), '1.2500 {"sum": 3126250, "count": 2500}', 'is there again [C12]');
SELECT is(others(), :'others', 'other keys are untouched [rule 13]');
SELECT is((SELECT updated_at > (SELECT max(recorded_at) FROM evpg.event)
  AND position > (SELECT max(position) FROM evpg.event) FROM evpg_projection('by_id', 'long')), true,
  'a rebuild has its time and position [C06]');

-- nothing to fold
SELECT evpg_put_projection('by_id', 'no events', '{"sum": 1}') \g /dev/null
SELECT is(evpg_rebuild_projection('by_id', 'no events'), 0::bigint, 'nothing to fold [rule 13, C13, 3.4 test 4]');
SELECT is(row_of('by_id', 'no events'), NULL, 'the row is gone [rule 13, C13, 3.4 test 4]');
SELECT is(evpg_put_projection('by_id', 'no events', '{"sum": 1}'), 1::bigint, 'it comes back [rule 12]');
SELECT cmp_ok((SELECT generation FROM evpg_projection('by_id', 'no events')), '>', 1, 'in a higher generation [rule 12]');
SELECT written() AS before \gset
SELECT is(evpg_rebuild_projection('by_id', 'unknown'), 0::bigint, 'an unknown key has nothing to fold [issue 3]');
SELECT is(written(), :'before', 'a rebuild of an unknown key leaves nothing [issue 3]');
SELECT add('cleared', 1), add('cleared', 0, 'Cleared') \g /dev/null
SELECT is(evpg_rebuild_projection('by_id', 'cleared'), 2::bigint, 'events that end with a deletion [rule 13]');
SELECT is(row_of('by_id', 'cleared'), NULL, 'the row is not there [rule 13]');
SELECT add('cleared', 5) \g /dev/null
SELECT is(state_of('by_id', 'cleared'), '{"sum": 5, "count": 1}', 'it comes back [rule 12]');
SELECT is(evpg_rebuild_projection('by_id', 'cleared'), 3::bigint, 'a key that comes back is rebuilt [rule 13]');
SELECT is(state_of('by_id', 'cleared'), '{"sum": 5, "count": 1}', 'from its return on [rule 13]');

-- (generation, version) of a key only grows, whatever happens to it
CREATE TABLE test.seen (n serial, generation int, version bigint);
CREATE FUNCTION test.look() RETURNS void LANGUAGE sql AS $$
  INSERT INTO seen (generation, version) SELECT generation, version FROM stored WHERE (name, key) = ('by_id', 'life')
$$;
DO $$
BEGIN
  PERFORM add('life', 1); PERFORM look();
  PERFORM evpg_rebuild_projection('by_id', 'life'); PERFORM look();
  PERFORM add('life', 0, 'Cleared'); PERFORM look();
  PERFORM evpg_rebuild_projection('by_id', 'life'); PERFORM look();
  PERFORM add('life', 1); PERFORM look();
  PERFORM evpg_put_projection('by_id', 'life', NULL); PERFORM look();
  PERFORM evpg_put_projection('by_id', 'life', '{}'); PERFORM look();
  PERFORM evpg_put_projection('by_id', 'life', NULL); PERFORM look();
  PERFORM evpg_rebuild_projection('by_id', 'life'); PERFORM look();
  PERFORM evpg_put_projection('by_id', 'life', '{}'); PERFORM look();
END $$;
SELECT is((SELECT count(*) FROM seen), 10::bigint, 'a life with deletions, returns, puts and rebuilds [rule 12]');
SELECT is((SELECT count(*) FROM (SELECT *, lag(ROW(generation, version)) OVER (ORDER BY n) AS previous FROM seen) s
  WHERE previous >= ROW(generation, version)), 0::bigint, '(generation, version) always grows [rule 12]');

-- what fails leaves the old row
CREATE FUNCTION test.fragile_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('test.break', true) = event.data->>'n' THEN
    RAISE EXCEPTION 'I break at %', event.data->>'n';
  END IF;
  RETURN sum_apply(state, event);
END $$;
SELECT evpg_register_projection('fragile', 'test.fragile_apply', aggregate_types => '{counter}') \g /dev/null
SELECT add('f', 1), add('f', 2), add('f', 3) \g /dev/null
SET test.break = '2';
SELECT fails($$SELECT evpg_rebuild_projection('fragile', 'f')$$, 'P0001 I break at 2',
  'failure leaves the old row [rule 13]');
SELECT alike(context_of($$SELECT evpg_rebuild_projection('fragile', 'f')$$),
  '%projection "fragile", key "f", event "Added" of stream "f" of aggregate "counter" at position '
  || (SELECT position FROM evpg.event WHERE aggregate_id = 'f' AND version = 2) || '%',
  'the error names projection, key, position [issue 3]');
RESET test.break;
BEGIN;
SELECT evpg_rebuild_projection('fragile', 'f') \g /dev/null
SELECT is(row_of('fragile', 'f'), '2.3 {"sum": 6, "count": 3}', 'a rebuild in a transaction [rule 13]');
ROLLBACK;
SELECT is(row_of('fragile', 'f'), '1.3 {"sum": 6, "count": 3}', 'is rolled back [rule 13]');
BEGIN;
SELECT add('f', 4) \g /dev/null
SELECT is(evpg_rebuild_projection('fragile', 'f'), 4::bigint, 'it sees the events of its own transaction [rule 13]');
COMMIT;
SELECT is(row_of('fragile', 'f'), '2.4 {"sum": 10, "count": 4}', 'once [rule 13]');

SELECT refused(format('SELECT evpg_rebuild_projection(%s)', arguments), error, 'rebuild ' || arguments || ' [C12]')
  FROM (VALUES
  ($$'nope', 'a'$$, 'VE007 projection "nope" is not registered'), ($$NULL, 'a'$$, '22004 projection name must not be null'),
    ($$'by_id', 'a', true$$, '22023 a single key is not rebuilt in the background'),
  ($$'by_id', repeat('k', 1025)$$, 'VE014 projection key is too long')) x (arguments, error);

-- events from before the registration
SELECT evpg_register_projection('late', 'test.sum_apply', aggregate_types => '{counter}') \g /dev/null
SELECT is(rows_of('late'), '', 'a projection starts with nothing [C12]');
SELECT is(evpg_rebuild_projection('late', 'long'), 2500::bigint, 'a rebuild gives it the history [C12]');
SELECT is(row_of('late', 'long'), '1.2500 {"sum": 3126250, "count": 2500}', 'of the key [C12]');
SELECT * FROM finish();
