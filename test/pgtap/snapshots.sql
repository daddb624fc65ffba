-- snapshots.sql: when they are taken, how many are kept, when they are used (rule 7).

\ir include/setup.sql
\ir include/counter.sql

-- 2.4 test 4, first session: 25 commands, a snapshot every 10
SELECT evpg_register_aggregate('ten', 'test.counter_handle', 'test.counter_apply',
  initial_state => '{"total": 0, "applied": 0}',
  snapshot_every => 10) \g /dev/null
SELECT evpg_register_aggregate('ten_c', library => 'evpg_test', symbol => 'counter', snapshot_every => 10) \g /dev/null
SELECT evpg_register_aggregate('manual', 'test.counter_handle', 'test.counter_apply',
  initial_state => '{"total": 0, "applied": 0}',
  snapshot_every => 0) \g /dev/null
SELECT count(*) FROM unnest('{ten,ten_c}'::text[]) kind, generate_series(1, 25) n,
  evpg_execute(kind, 'a', 'Add', jsonb_build_object('n', n)) \g /dev/null
SELECT count(*) FROM evpg_execute('manual', 'a', 'AddEach', '{"ns": [1, 2, 3, 4, 5]}') \g /dev/null
SELECT evpg_take_snapshot('manual', 'a') AS taken \gset
SELECT count(*) FROM evpg_execute('manual', 'a', 'Add', '{"n": 6}') \g /dev/null

-- second session
\connect -
SET search_path = public, test;
\ir include/listener.sql
CREATE FUNCTION test.folds(kind text) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT coalesce((SELECT folds FROM evpg_session_stats() WHERE aggregate_type = kind), 0) $$;
CREATE FUNCTION test.snapshots(kind text, id text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(p.version || CASE WHEN p.reducer_version > 1 THEN '/' || p.reducer_version ELSE '' END, ' '
  ORDER BY p.version)
    FROM evpg.snapshot p JOIN evpg.stream s USING (stream_id) WHERE s.aggregate_type = kind AND s.aggregate_id = id $$;

SELECT plan(88);
SELECT is(snapshots(kind, 'a'), '20',
  '25 events, every 10, keep 1: the newest is at 20 [rule 7, B14, B15, 2.4 test 4, ' || kind || ']'),
       is((SELECT version || ' ' || (state->>'total') FROM evpg_state(kind, 'a')), '25 325',
         'a new session has the right state [2.4 test 4, ' || kind || ']'),
       is(folds(kind), 5::bigint, 'of 5 events after the snapshot [B16, 2.4 test 4, ' || kind || ']')
  FROM unnest('{ten,ten_c}'::text[]) kind;
SELECT is((SELECT version || ' ' || (state->>'total') FROM evpg_state('manual', 'a')), '6 21',
  'manual policy: the state is right [A44, B14]');
SELECT is(folds('manual'), 1::bigint, 'manual policy: a snapshot that was taken is used [B14, B16]');
SELECT is(:taken, 5, 'evpg_take_snapshot returns the version [B14]');
SELECT is((SELECT state->>'total' FROM evpg_state(kind, 'a', at_version => v)), (v * (v + 1) / 2)::text,
  'version ' || v || ', with a snapshot at 20 [B16, ' || kind || ']')
  FROM unnest('{ten,ten_c}'::text[]) kind, unnest('{19,20,21}'::int[]) v;

-- an interval that is crossed, not hit
SELECT count(*) FROM unnest('{ten,ten_c}'::text[]) kind, evpg_execute(kind, 'leap', 'AddMany', '{"count": 37}') \g /dev/null
SELECT count(*) FROM unnest('{ten,ten_c}'::text[]) kind, evpg_execute(kind, 'short', 'AddMany', '{"count": 9}') \g /dev/null
SELECT is(snapshots(kind, 'leap'), '37', '37 events at once [rule 7, B14, ' || kind || ']'),
       is(snapshots(kind, 'short'), NULL, '9 events: none [rule 7, B14, ' || kind || ']'),
       is((SELECT version FROM evpg_execute(kind, 'short', 'Add')), 10::bigint, 'the tenth [B14, ' || kind || ']'),
       is(snapshots(kind, 'short'), '10', 'hits the interval [B14, ' || kind || ']')
  FROM unnest('{ten,ten_c}'::text[]) kind;
SELECT count(*) FROM unnest('{ten,ten_c}'::text[]) kind, generate_series(1, 4) n,
  evpg_execute(kind, 'threes', 'AddEach', jsonb_build_object('ns', ARRAY[n, n, n])) \g /dev/null
SELECT is(snapshots(kind, 'threes'), '12', 'four times three events: crossed at 12 [rule 7, B14, ' || kind || ']')
  FROM unnest('{ten,ten_c}'::text[]) kind;

-- retention counts rows
SELECT evpg_register_aggregate('keep', 'test.counter_handle', 'test.counter_apply',
  initial_state => '{"total": 0, "applied": 0}',
  snapshot_every => 5, snapshot_keep => 3) \g /dev/null
SELECT count(*) FROM generate_series(1, 32) n, evpg_execute('keep', 'a', 'Add', jsonb_build_object('n', n)) \g /dev/null
SELECT is(snapshots('keep', 'a'), '20 25 30', 'the newest three are kept, by count [rule 7, B15]');
SELECT is(evpg_take_snapshot('keep', 'a'), 32::bigint, 'one by hand [B14]');
SELECT is(snapshots('keep', 'a'), '25 30 32', 'counts too [rule 7, B15]');
SELECT is(evpg_take_snapshot('keep', 'a'), 32::bigint, 'again [B14]');
SELECT is(snapshots('keep', 'a'), '25 30 32', 'replaces itself [rule 7, B15]');

-- by hand
SELECT evpg_create_stream('manual', 'empty') \g /dev/null
SELECT is(evpg_take_snapshot('manual', 'empty'), 0::bigint, 'of an empty stream [B14]');
SELECT is(snapshots('manual', 'empty'), NULL, 'none is needed [B14]');
SELECT refused($$SELECT evpg_take_snapshot('manual', 'never')$$, 'VE004 stream "never" of aggregate "manual" does not exist',
  'of a stream that is not there [B14]');
SELECT refused($$SELECT evpg_take_snapshot('nope', 'never')$$, 'VE003 %', 'of an unknown type [B14]');
SELECT count(*) FROM evpg_execute('manual', 'b', 'AddMany', '{"count": 500}') \g /dev/null
SELECT is(snapshots('manual', 'b'), NULL, 'snapshot_every 0 takes none [B14]');

-- what rolls back
BEGIN;
SAVEPOINT before;
SELECT count(*) FROM evpg_execute('ten', 'undone', 'AddMany', '{"count": 10}') \g /dev/null
SELECT is(snapshots('ten', 'undone'), '10', 'a snapshot [rule 7]');
ROLLBACK TO before;
SELECT is((SELECT count(*) FROM evpg.snapshot p WHERE NOT EXISTS (SELECT FROM evpg.stream s WHERE s.stream_id
  = p.stream_id)), 0::bigint, 'goes with its events [rule 7]');
COMMIT;

-- a cache: it may be deleted, unreadable, or of another reducer
CREATE TABLE test.kept AS SELECT p.* FROM evpg.snapshot p JOIN evpg.stream USING (stream_id)
 WHERE aggregate_id = 'a' AND aggregate_type IN ('ten', 'ten_c');
DELETE FROM evpg.snapshot;
SET evpg.state_cache_size = 0;
SELECT is((SELECT state->>'total' FROM evpg_state(kind, 'a')), '325', 'without snapshots [rule 7, ' || kind || ']')
  FROM unnest('{ten,ten_c}'::text[]) kind;
INSERT INTO evpg.snapshot SELECT * FROM test.kept;
UPDATE evpg.snapshot SET state = '{"total": 100000, "applied": 20}';
SELECT is((SELECT state->>'total' FROM evpg_state(kind, 'a')), '100115',
  'a snapshot is used when it fits [B16, ' || kind || ']')
  FROM unnest('{ten,ten_c}'::text[]) kind;
UPDATE evpg.snapshot SET reducer_version = 2;
SELECT is((SELECT state->>'total' FROM evpg_state(kind, 'a')), '325',
  'of another reducer_version: not used [rule 7, B16, ' || kind || ']') FROM unnest('{ten,ten_c}'::text[]) kind;
UPDATE evpg.snapshot SET reducer_version = 1, state = '[1]';
SELECT is((SELECT state->>'total' FROM evpg_state('ten_c', 'a')), '325',
  'no object, so unreadable for C: not used [rule 7]');
UPDATE evpg.snapshot SET state = 'null';
SELECT is((SELECT state->>'total' FROM evpg_state('ten_c', 'a')), '325', 'JSON null: not used [rule 7]');
UPDATE evpg.snapshot SET version = 26, state = '{"total": 0}';
SELECT is((SELECT state->>'total' FROM evpg_state(kind, 'a')), '325', 'beyond the stream: not used [rule 7, ' || kind || ']')
  FROM unnest('{ten,ten_c}'::text[]) kind;
DELETE FROM evpg.snapshot;
RESET evpg.state_cache_size;

-- another reducer
SELECT count(*) FROM unnest('{ten,ten_c}'::text[]) kind, evpg_execute(kind, 'fold', 'AddMany', '{"count": 10}') \g /dev/null
SELECT is(snapshots(kind, 'fold'), '10', 'a snapshot by the first fold [B16, ' || kind || ']')
  FROM unnest('{ten,ten_c}'::text[]) kind;
SELECT is(evpg_register_aggregate('ten_c', library => 'evpg_test', symbol => 'counter_twice', snapshot_every => 10), true,
  'a module with another reducer_version [B16]');
SELECT is((SELECT state->>'total' FROM evpg_state('ten_c', 'fold')), '20',
  'its fold counts, snapshot or cache or not [rule 7, rule 6, B16, D67]');
SELECT is((SELECT version FROM evpg_execute('ten_c', 'fold', 'AddMany', '{"count": 10}') ORDER BY version DESC LIMIT 1),
  20::bigint, 'its fold counts, snapshot or cache or not, and goes on [B16]');
SELECT is(snapshots('ten_c', 'fold'), '20/2', 'its snapshots carry its reducer_version [rule 7]');
CREATE FUNCTION test.counter_apply_twice(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT state || jsonb_build_object('total', (state->>'total')::bigint + 2 * (event.data->>'n')::bigint) $$;
SELECT is(evpg_register_aggregate('ten', 'test.counter_handle', 'test.counter_apply_twice',
  initial_state => '{"total": 0, "applied": 0}',
  snapshot_every => 10, reducer_version => 2), true,
  'another reducer and reducer_version [B16]');
SELECT is((SELECT state->>'total' FROM evpg_state('ten', 'fold')), '20', 'its fold counts [rule 7, rule 6]');

-- another fold under the same reducer_version: what is registered says so, not the snapshot
SELECT count(*) FROM evpg_execute('manual', 'from', 'AddMany', '{"count": 5}') \g /dev/null
SELECT is(evpg_take_snapshot('manual', 'from'), 5::bigint, 'a snapshot of a fold from 0 [rule 7]');
SELECT evpg_register_aggregate('manual', 'test.counter_handle', 'test.counter_apply',
  initial_state => '{"total": 100, "applied": 0}', snapshot_every => 0) \g /dev/null
SELECT is((SELECT state->>'total' FROM evpg_state('manual', 'from')), '105',
  'another initial state makes the snapshot unused [rule 7]');
SELECT is(evpg_take_snapshot('manual', 'from'), 5::bigint, 'it is replaced by one of the new fold [rule 7]');
SELECT is((SELECT total
    FROM dblink('listener', $$SELECT state->>'total' FROM evpg_state('manual', 'from')$$) x (total text)),
  '105', 'another session reads the right state from it [rule 7]');
SELECT is((SELECT n FROM dblink('listener', $$SELECT folds('manual')$$) x (n bigint)), 0::bigint, 'without a fold [rule 7]');

-- a failed save never fails a command
CREATE SEQUENCE test.refused;
SET test.code = 'disk_full';
CREATE FUNCTION test.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM nextval('test.refused');
  RAISE EXCEPTION 'disk full' USING ERRCODE = current_setting('test.code');
END $$;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON evpg.snapshot FOR EACH ROW EXECUTE FUNCTION test.refuse();
SET client_min_messages = error;
SELECT is((SELECT max(version) FROM evpg_execute('ten_c', 'full', 'AddMany', '{"count": 10}')), 10::bigint,
  'the command succeeds [rule 7, B14]');
SELECT is((SELECT count(*) FROM evpg_read_stream('ten_c', 'full')), 10::bigint, 'its events are there [rule 7]');
SELECT is(snapshots('ten_c', 'full'), NULL, 'the snapshot is not [rule 7]');
SELECT is((SELECT version FROM evpg_execute('ten_c', 'full', 'Add', '{"n": 1}')), 11::bigint, 'the stream goes on [rule 7]');
SELECT is((SELECT state->>'total' FROM evpg_state('ten_c', 'full')), '22', 'its state is right [rule 7]');
SELECT is((SELECT last_value FROM test.refused), 1::bigint, 'and does not try again at each command [rule 7]');
SELECT refused($$SELECT evpg_take_snapshot('ten_c', 'full')$$, '55000 could not save a snapshot %',
  'by hand it is an error [B14]');
-- an error that is not about the snapshot
SELECT is(error_of(format($$SET LOCAL test.code = %L;
  SELECT evpg_execute('ten_c', 'ends', 'AddMany', '{"count": 10}')$$, code)),
  code || ' disk full', 'an error that ends the statement or the session ends the command: ' || code || ' [rule 7]')
  FROM unnest('{57014,57P01,40001}'::text[]) code;
SELECT is(evpg_stream_version('ten_c', 'ends'), NULL, 'its events are not there [rule 7]');
SET test.code = 'disk_full';
RESET client_min_messages;
-- the reducer that made a snapshot is the only one that uses it
DROP TRIGGER refuse ON evpg.snapshot;
SET evpg.state_cache_size = 0;
CREATE FUNCTION test.sum_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS
  'SELECT evpg_event(''Added'', command.data)';
CREATE FUNCTION test.sum_sql(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS
  'SELECT jsonb_build_object(''total'', (state->>''total'')::int + 1)';
CREATE FUNCTION test.sum_plpgsql(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS
  'BEGIN RETURN jsonb_build_object(''total'', (state->>''total'')::int + 1); END';
CREATE FUNCTION test.sum_parsed(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql
  RETURN jsonb_build_object('total', (state->>'total')::int + 1);
CREATE FUNCTION test.sums() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg((state->>'total') || ' ' || version, ', ' ORDER BY k)
    FROM unnest('{sum_sql,sum_plpgsql,sum_parsed}'::text[]) k,
    LATERAL evpg_state(k, 'a') $$;
SELECT evpg_register_aggregate(k, 'test.sum_handle', ('test.' || k)::regproc, initial_state => '{"total": 0}')
  FROM unnest('{sum_sql,sum_plpgsql,sum_parsed}'::text[]) k \g /dev/null
SELECT count(*) FROM unnest('{sum_sql,sum_plpgsql,sum_parsed}'::text[]) k, generate_series(1, 150) n,
  evpg_execute(k, 'a', 'Add', jsonb_build_object('n', n)) \g /dev/null
SELECT is(sums(), '150 150, 150 150, 150 150', 'a reducer that is wrong [rule 7]');
SELECT is(snapshots('sum_sql', 'a'), '100', 'a snapshot of a reducer that is wrong is stored [rule 7]');
CREATE OR REPLACE FUNCTION test.sum_sql(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS
  'SELECT jsonb_build_object(''total'', (state->>''total'')::int + (event.data->>''n'')::int)';
CREATE OR REPLACE FUNCTION test.sum_plpgsql(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS
  'BEGIN RETURN jsonb_build_object(''total'', (state->>''total'')::int + (event.data->>''n'')::int); END';
CREATE OR REPLACE FUNCTION test.sum_parsed(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql
  RETURN jsonb_build_object('total', (state->>'total')::int + (event.data->>'n')::int);
SELECT is(sums(), '11325 150, 11325 150, 11325 150', 'CREATE OR REPLACE makes its snapshots unused [rule 7]');
SELECT is((SELECT state->>'total' FROM evpg_state('sum_sql', 'a', at_version => 120)), '7260',
  'after CREATE OR REPLACE a state of the past uses no old snapshot [rule 7]');
SELECT is((SELECT version FROM evpg_execute('sum_sql', 'a', 'Add', '{"n": 0}')), 151::bigint,
  'a command decides on the new state [rule 7]');
SELECT is(snapshots('sum_sql', 'a'), '151',
  'a command decides on the new state, and makes the snapshot that is missing now [rule 7]');
SELECT folds('sum_sql') AS before \gset
SELECT is(sums(), '11325 150, 11325 150, 11325 151', 'in every session [rule 7]');
SELECT is(folds('sum_sql') - :before, 0::bigint, 'another session uses the new snapshot [rule 7]');
ALTER FUNCTION test.sum_sql SET extra_float_digits = 0;
ALTER FUNCTION test.sum_sql COST 7;
SELECT folds('sum_sql') AS before \gset
SELECT is(sums(), '11325 150, 11325 150, 11325 151', 'settings of a function are part of what it is [rule 7]');
SELECT is(folds('sum_sql') - :before, 151::bigint, 'so all is folded again [rule 7]');
ALTER FUNCTION test.sum_sql RESET ALL;
SELECT folds('sum_sql') AS before \gset
SELECT is((SELECT state->>'total' FROM evpg_state('sum_sql', 'a')) || ' ' || folds('sum_sql') - :before, '11325 0',
  'once it is what it was, its snapshots are used again [rule 7]');

RESET evpg.state_cache_size;

-- what is appended without folding does not keep a stream from its snapshots
SELECT evpg_register_aggregate('mixed', 'test.counter_handle', 'test.counter_apply',
  initial_state => '{"total": 0, "applied": 0}',
  snapshot_every => 10) \g /dev/null
DO $$ BEGIN FOR n IN 1 .. 12 LOOP
  FOR m IN 1 .. 9 LOOP PERFORM FROM evpg_execute('mixed', 'a', 'Add', '{"n": 1}'); END LOOP;
  PERFORM FROM evpg_append('mixed', 'a', ARRAY[evpg_event('Added', '{"n": 1}')]);
END LOOP; END $$;
SELECT is(snapshots('mixed', 'a'), '111',
  'an append that hits the multiple: the next command makes the snapshot [rule 7, B14]');
SELECT count(*) FROM generate_series(1, 35) n,
  evpg_inject('mixed', 'relayed', evpg_event('Added', jsonb_build_object('n', n))) \g /dev/null
SELECT count(*) FROM evpg_execute('mixed', 'relayed', 'Add', '{"n": 1}') \g /dev/null
SELECT is(snapshots('mixed', 'relayed'), '36', 'a relayed stream gets one by its next command [rule 7, B14]');
SELECT count(*) FROM generate_series(1, 3) n, evpg_execute('mixed', 'relayed', 'Add', jsonb_build_object('n', n))
  \g /dev/null
SELECT is(snapshots('mixed', 'relayed'), '36',
  'a relayed stream gets one by its next command, and no other before the next multiple [rule 7, B14]');

SELECT * FROM finish();
