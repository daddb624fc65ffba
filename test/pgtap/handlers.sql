-- handlers.sql: the handler of a table projection gets each event once, with all its keys, in the order of positions:
-- inline, asynchronously and in a rebuild (rules 10 to 13).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(40);
SET test.kind = counter;

-- ------------------------------------------------------------------ once

CREATE TABLE test.sold (item text PRIMARY KEY, n int NOT NULL);
CREATE FUNCTION test.count_sold(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO sold SELECT i, 1 FROM jsonb_array_elements_text(event.data->'items') i ON CONFLICT (item) DO UPDATE
    SET n = sold.n + 1;
  SELECT event.data
$$;
CREATE FUNCTION test.sell(id text, VARIADIC items text[]) RETURNS bigint LANGUAGE sql AS $$
  SELECT add(id, 0, more => jsonb_build_object('items', items))
$$;
CREATE FUNCTION test.all_sold() RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(item || ' ' || n, ', ' ORDER BY item) FROM sold
$$;
SELECT evpg_register_projection('sold', handler => 'test.count_sold', tables => '{sold}', key_path => '$.data.items[*]',
  broadcast => 'delta') \g /dev/null
SELECT listen('sold', 'apple'), listen('sold', 'pear') \g /dev/null
SELECT sell('o1', 'apple', 'pear', 'plum') \g /dev/null
SELECT is(all_sold(), 'apple 1, pear 1, plum 1', 'a handler gets an event of several keys once [rule 12]');
SELECT is(rows_of('sold'), 'apple: 1.1 -, pear: 1.1 -, plum: 1.1 -',
  'a handler gets an event of several keys once, and the rows of all its keys advance [rule 12]');
SELECT is((SELECT string_agg(f->>'key' || ' ' || (f->>'version') || ' ' || (f->'data'->>'n'), ', ' ORDER BY f->>'key')
  FROM (SELECT frame::jsonb AS f FROM frames()) x), 'apple 1 0, pear 1 0', 'each key has a frame [rule 14]');
SELECT sell('o2', 'pear'), sell('o3', 'pear', 'apple') \g /dev/null
SELECT is(all_sold() || ' | ' || rows_of('sold'), 'apple 2, pear 3, plum 1 | apple: 1.2 -, pear: 1.3 -, plum: 1.1 -',
  'versions count the events of a key [rule 12]');
SELECT is(evpg_rebuild_projection('sold'), 3::bigint, 'a rebuild [rule 13]');
SELECT is(all_sold() || ' | ' || rows_of('sold'), 'apple 2, pear 3, plum 1 | apple: 2.2 -, pear: 2.3 -, plum: 2.1 -',
  'gives the same counts [rule 13]');
SELECT evpg_rebuild_projection('sold', background => true) \g /dev/null
CALL evpg_run();
SELECT is(all_sold(), 'apple 2, pear 3, plum 1', 'a rebuild in the background gives the same counts [rule 13]');
SELECT evpg_register_projection('sold', handler => 'test.count_sold', tables => '{sold}', key_path => '$.data.items[*]',
  mode => 'async') \g /dev/null
SELECT sell('o4', 'pear', 'fig'), add('o5', 1) \g /dev/null
CALL evpg_run();
SELECT is(all_sold() || ' | ' || rows_of('sold'),
  'apple 2, fig 1, pear 4, plum 1 | apple: 3.2 -, fig: 3.1 -, pear: 3.4 -, plum: 3.1 -',
  'an asynchronous projection, too; an event without a key is nothing to it [rule 10]');
SELECT evpg_drop_projection('sold') \g /dev/null

-- ------------------------------------------------------------------ the keys, for who asks for them

CREATE TABLE test.seen (nr bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, n bigint, keys text[]);
CREATE FUNCTION test.see_keys(event evpg.event, keys text[]) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO seen (name, n, keys) VALUES (event.aggregate_id, (event.data->>'n')::bigint, keys);
  SELECT to_jsonb(keys)
$$;
SELECT evpg_register_projection('seen', handler => 'test.see_keys', key_function => 'test.group_keys') \g /dev/null
SELECT add('a', 1, more => '{"groups": ["y", "x", "y"]}'), add('b', 2, more => '{"groups": ["z"]}'),
  add('c', 3, more => '{"groups": []}') \g /dev/null
SELECT same('SELECT name, n, keys FROM seen ORDER BY nr', $$VALUES ('a', 1::bigint, '{x,y}'::text[]), ('b', 2, '{z}')$$,
  'a handler may take the keys of the event, each once, as a second argument [C01]');
SELECT refused(format($$SELECT evpg_register_projection('other', handler => %L)$$, f),
  '42P13 function % cannot serve as projection handler', 'no other arguments: ' || f || ' [C01]')
  FROM (VALUES ('test.sum_apply'), ('test.group_keys')) x (f);
CREATE FUNCTION test.break_keys(event evpg.event, keys text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'I break';
END $$;
SELECT evpg_register_projection('breaks', handler => 'test.break_keys', key_function => 'test.group_keys',
  event_types => '{Odd}') \g /dev/null
SELECT alike(context_of($$SELECT add('a', 1, 'Odd', '{"groups": ["x", "y"]}')$$),
  '%projection "breaks", 2 keys, event "Odd" of stream "a" of aggregate "counter" at position %',
  'an error says which event it was [rule 11]');
SELECT alike(context_of($$SELECT add('a', 1, 'Odd', '{"groups": ["x"]}')$$),
  '%projection "breaks", key "x", event "Odd" of stream "a" of aggregate "counter" at position %',
  'an error says which event it was, and which key, if it has one [rule 11]');
SELECT evpg_drop_projection('breaks') \g /dev/null

-- ------------------------------------------------------------------ in the order of positions

TRUNCATE seen;
CREATE FUNCTION test.add_each(VARIADIC groups jsonb[]) RETURNS text LANGUAGE sql AS $$
  SELECT count(*)::text FROM evpg_append('counter', 'many',
    (SELECT array_agg(evpg_event('Added', jsonb_build_object('n', nr, 'groups', g)) ORDER BY nr)
    FROM unnest(groups) WITH ORDINALITY x (g, nr)))
$$;
SELECT add_each('["z"]', '["a", "z"]', '["m"]', '["a"]') \g /dev/null
SELECT same('SELECT n FROM seen ORDER BY nr', 'VALUES (1::bigint), (2), (3), (4)',
  'the events of a command come in the order of positions, not of keys [rule 11]');
SELECT is(rows_of('seen'), 'a: 1.2 -, m: 1.1 -, x: 1.1 -, y: 1.1 -, z: 1.3 -', 'each key counts its own [rule 12]');
SELECT evpg_drop_projection('seen') \g /dev/null

-- inline, asynchronous and rebuilt are the same: events at random, several to a command, a table that shows in which order
-- they came
CREATE TABLE test.log_inline (nr bigint, "position" bigint PRIMARY KEY, keys text[], last text);
CREATE TABLE test.log_async (LIKE log_inline INCLUDING ALL);
CREATE TABLE test.log_rebuilt (LIKE log_inline INCLUDING ALL);
DO $do$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY '{log_inline,log_async,log_rebuilt}'::text[] LOOP
    EXECUTE format($$CREATE FUNCTION test.write_%1$s(event evpg.event, keys text[]) RETURNS jsonb LANGUAGE sql
      AS 'INSERT INTO %1$I VALUES ((SELECT count(*) + 1 '
      'FROM %1$I), event.position, $2, (SELECT l.nr || l.keys::text FROM %1$I l WHERE l.keys && $2 '
      'ORDER BY nr DESC LIMIT 1)); SELECT NULL::jsonb'$$, t);
    PERFORM evpg_register_projection(t, handler => ('test.write_' || t)::regproc, key_function => 'test.group_keys',
      tables => ARRAY[t], mode => CASE t WHEN 'log_async' THEN 'async' ELSE 'inline' END,
      start_position => (SELECT last_value FROM evpg.event_position));
  END LOOP;
END $do$;
-- Appends commands of 1 to 6 events with 1 to 3 of 5 keys each, and returns how many events that is.
CREATE FUNCTION test.append_at_random(commands int, seed float8) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  total bigint := 0;
BEGIN
  PERFORM setseed(seed);
  FOR c IN 1 .. commands LOOP
    total := total + (SELECT count(*) FROM evpg_append('counter', 'r' || c % 7, ARRAY(
      SELECT evpg_event('Added', jsonb_build_object('n', e, 'groups',
        jsonb_build_array('k' || floor(random() * 5))
        || jsonb_build_array('k' || floor(random() * 5), 'k' || floor(random() * 5))))
        FROM generate_series(1, 1 + floor(random() * 6)::int) e)));
  END LOOP;
  RETURN total;
END $$;
SELECT append_at_random(60, 0.7) AS events \gset
UPDATE log_rebuilt SET nr = 0;
SELECT evpg_rebuild_projection('log_rebuilt') AS read \gset
CALL evpg_run();
SELECT is((SELECT count(*)::text FROM log_inline), :'events'::text, 'a handler is called once for each event [rule 12]');
SELECT is((SELECT count(*) FROM log_inline WHERE cardinality(keys) > 1) > 20, true,
  'many of them with several keys [rule 12]');
SELECT same('SELECT * FROM log_async ORDER BY position', 'SELECT * FROM log_inline ORDER BY position',
  'an asynchronous projection calls its handler in the same order as an inline one [rules 10, 11]');
SELECT same('SELECT * FROM log_rebuilt ORDER BY position', 'SELECT * FROM log_inline ORDER BY position',
  'a rebuild calls a handler in the same order as before [rules 11, 13]');
SELECT is((SELECT string_agg(key || version, ',' ORDER BY key) FROM stored WHERE name = 'log_async'),
  (SELECT string_agg(key || version, ',' ORDER BY key) FROM stored WHERE name = 'log_inline'),
  'the versions of rows are equal [rule 12]');
SELECT is((SELECT string_agg(key || version, ',' ORDER BY key) FROM stored WHERE name = 'log_rebuilt'),
  (SELECT string_agg(key || version, ',' ORDER BY key) FROM stored WHERE name = 'log_inline'),
  'the versions of rows are equal after the rebuild [rules 12, 13]');
SELECT evpg_drop_projection(name) FROM evpg.projection \g /dev/null

-- ------------------------------------------------------------------ events that are parked, or given up

CREATE FUNCTION test.see_or_break(event evpg.event, keys text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event.data->>'n' = ANY (string_to_array(current_setting('test.break', true), ',')) THEN
    RAISE EXCEPTION 'I break at %', event.data->>'n';
  END IF;
  INSERT INTO seen (name, n, keys) VALUES (event.aggregate_id, (event.data->>'n')::bigint, keys);
  RETURN NULL;
END $$;
CREATE FUNCTION test.numbers() RETURNS text LANGUAGE sql AS $$ SELECT string_agg(n::text, ' ' ORDER BY nr) FROM seen $$;
TRUNCATE seen;
SELECT evpg_register_projection('seen', handler => 'test.see_or_break', key_function => 'test.group_keys', mode => 'async',
  on_error => 'park', max_attempts => 1, start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SET test.break = 1;
SELECT add_each('["a", "b"]', '["b", "c"]', '["d"]', '["c"]', '["a"]') \g /dev/null
CALL evpg_run();
SELECT
  is(numbers(), '3', 'an event that is parked keeps those with one of its keys waiting, and those behind them [rule 10]');
SELECT is(parked_of('seen'),
  'a 1 tried 1 I break at 1 P0001, b 1 tried 1 I break at 1 P0001, b 2 tried 0, c 2 tried 0, c 4 tried 0, a 5 tried 0',
  'it is parked for each of its keys [rule 10]');
SELECT is(evpg_replay_parked('seen'), 0::bigint, 'none is replayed before it [rule 10]');
SELECT is(evpg_replay_parked('seen', key => 'c'), 0::bigint,
  'no event is replayed whose other key waits for an earlier one [rule 10]');
RESET test.break;
SELECT is(evpg_replay_parked('seen', max_count => 1), 1::bigint, 'replayed once [rule 10]');
SELECT is(numbers() || ' | ' || parked_of('seen'), '3 1 | b 2 tried 0, c 2 tried 0, c 4 tried 0, a 5 tried 0',
  'for all its keys [rule 10]');
SELECT is(evpg_skip_event('seen', (SELECT position FROM evpg.parked_event ORDER BY position LIMIT 1), 'not wanted'), true,
  'another one is skipped [rule 10]');
SELECT is(evpg_replay_parked('seen'), 2::bigint, 'after another skip the rest goes on [rule 10]');
SELECT is(numbers() || ' | ' || rows_of('seen'), '3 1 4 5 | a: 1.2 -, b: 1.1 -, c: 1.1 -, d: 1.1 -', 'in order [rule 10]');
CREATE FUNCTION test.reset_seen() RETURNS void LANGUAGE sql AS $$ DELETE FROM seen $$;
SELECT evpg_register_projection('seen', handler => 'test.see_or_break', key_function => 'test.group_keys', mode => 'async',
  on_error => 'skip', max_attempts => 1, reset => 'test.reset_seen',
  start_position => (SELECT start_position FROM evpg.projection WHERE name = 'seen')) \g /dev/null
SELECT evpg_rebuild_projection('seen') \g /dev/null
SELECT is(numbers() || ' | ' || rows_of('seen'), '1 3 4 5 | a: 2.2 -, b: 2.1 -, c: 2.1 -, d: 2.1 -',
  'a rebuild leaves out what was skipped [rule 13]');
SET test.break = 2;
SELECT add_each('["a"]', '["a", "z"]', '["z"]') \g /dev/null
CALL evpg_run();
SELECT is(numbers(), '1 3 4 5 1 3', 'with on_error skip, a handler does without the event [rule 10]');
RESET test.break;
SELECT evpg_rebuild_projection('seen') \g /dev/null
SELECT is(numbers(), '1 3 4 5 1 3', 'with on_error skip, a handler does without the event; after a rebuild, too [rule 13]');
SELECT evpg_drop_projection('seen') \g /dev/null

-- a reducer has one key at a time: an event is given up for the keys for which it fails
CREATE FUNCTION test.list_unless(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF coalesce(state->>0, 'none') = current_setting('test.break', true) THEN
    RAISE EXCEPTION 'I break at %', state->>0;
  END IF;
  RETURN coalesce(nullif(state, '{}'), '[]') || (event.data->'n');
END $$;
SELECT evpg_register_projection('list', 'test.list_unless', key_function => 'test.group_keys', mode => 'async',
  on_error => 'skip', max_attempts => 1, start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add_each('["a"]', '["b"]') \g /dev/null
CALL evpg_run();
SET test.break = 1;
SELECT add('s', 3, more => '{"groups": ["a", "b", "c"]}') \g /dev/null
CALL evpg_run();
SELECT is(rows_of('list') || ' | ' || parked_of('list'),
  'a: 1.1 [1], b: 1.2 [2, 3], c: 1.1 [3] | a 3 tried 1 I break at 1 P0001 skipped: I break at 1',
  'on_error skip gives an event up for the key for which it fails [rule 10]');
RESET test.break;
SELECT evpg_rebuild_projection('list') \g /dev/null
SELECT is(rows_of('list'), 'a: 2.1 [1], b: 2.2 [2, 3], c: 2.1 [3]', 'a rebuild does not take it from other keys [rule 13]');
SELECT evpg_rebuild_projection('list', 'b'), evpg_rebuild_projection('list', 'a') \g /dev/null
SELECT is(rows_of('list'), 'a: 3.1 [1], b: 3.2 [2, 3], c: 2.1 [3]',
  'the rebuild of a key does not take an event from other keys [rule 13]');
SELECT evpg_register_projection('list', 'test.list_unless', key_function => 'test.group_keys', mode => 'async',
  on_error => 'park', max_attempts => 1, start_position => (SELECT start_position FROM evpg.projection WHERE name = 'list'))
  \g /dev/null
SET test.break = 2;
SELECT add('s', 4, more => '{"groups": ["a", "b", "c"]}') AS parked \gset
CALL evpg_run();
SELECT evpg_skip_event('list', :parked, 'not for b') \g /dev/null
RESET test.break;
SELECT evpg_rebuild_projection('list') \g /dev/null
SELECT is((SELECT string_agg(key || ' ' || state, ', ' ORDER BY key) FROM evpg.projected_state),
  'a [1, 4], b [2, 3], c [3, 4]', 'no event is skipped for others that was parked for a key [rule 13]');
SELECT evpg_skip_event('list', add('s', 5, more => '{"groups": ["a", "b"]}'), 'for all') \g /dev/null
CALL evpg_run();
SELECT is((SELECT string_agg(key || ' ' || state, ', ' ORDER BY key) FROM evpg.projected_state),
  'a [1, 4], b [2, 3], c [3, 4]', 'one that is skipped before it was consumed is given up for all keys [rule 10]');
SELECT * FROM finish();
