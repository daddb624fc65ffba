-- held_snapshots.sql: while a session holds a snapshot, all versions of a row stay where they are.  What replaces a row
-- again and again does not look at all of them (rules 11 and 20).

\ir include/setup.sql
CREATE EXTENSION dblink;
-- how many blocks a statement needs is not that of a plan for workers
SET max_parallel_workers_per_gather = 0;
\ir include/counter.sql

SET default_transaction_isolation = 'read committed';
SELECT plan(13);
SELECT dblink_connect('other', format('host=%s port=%s dbname=%s user=%s', (string_to_array(current_setting(
  'unix_socket_directories'), ','))[1], current_setting('port'), current_database(), current_user)),
  dblink_exec('other', $$SET default_transaction_isolation = 'read committed'$$)
  \g /dev/null

-- Executes a statement so many times, each in a transaction of its own, and notes how many blocks they have needed.
CREATE TABLE test.needed (what text, step text, blocks bigint);
CREATE PROCEDURE test.repeat(what text, step text, count int, statement text) LANGUAGE plpgsql AS $$
DECLARE
  plan jsonb;
  blocks bigint := 0;
BEGIN
  FOR i IN 1 .. count LOOP
    EXECUTE 'EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT json) ' || statement INTO plan;
    blocks := blocks + (plan->0->'Plan'->>'Shared Hit Blocks')::bigint + (plan->0->'Plan'->>'Shared Read Blocks')::bigint;
    COMMIT;
  END LOOP;
  INSERT INTO test.needed VALUES (repeat.what, repeat.step, blocks);
  COMMIT;
END $$;
-- 40 statements before and after others
CREATE PROCEDURE test.compare(what text, others int, statement text) LANGUAGE plpgsql AS $$
BEGIN
  CALL test.repeat(what, 'warm', 20, statement);
  CALL test.repeat(what, 'first', 40, statement);
  CALL test.repeat(what, 'between', others, statement);
  CALL test.repeat(what, 'last', 40, statement);
END $$;
-- how many more blocks the last ones have needed, each; a few are of indexes that have one level more
CREATE FUNCTION test.grown(what text) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT (max(n.blocks) FILTER (WHERE step = 'last') - max(n.blocks) FILTER (WHERE step = 'first')) / 40
    FROM test.needed n WHERE n.what = grown.what
$$;

-- a row of this one takes a quarter of a page
CREATE FUNCTION test.large(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('n', coalesce((state->>'n')::bigint, 0) + 1,
                            'text', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 48) i))
$$;
SELECT evpg_register_projection('hot', reducer => 'test.large', constant_key => 'all', broadcast => 'none',
                                aggregate_types => '{counter}') \g /dev/null
-- and a lease of this one a tenth
SELECT evpg_create_subscription(repeat('s', 255), aggregate_types => '{stored}', start_at => 'now') \g /dev/null
SELECT evpg_register_aggregate('stored') \g /dev/null

SELECT dblink_exec('other', 'BEGIN ISOLATION LEVEL REPEATABLE READ') \g /dev/null
SELECT is((SELECT n FROM dblink('other', 'SELECT count(*) FROM evpg.stream') t(n bigint)), 0::bigint,
  'a session holds a snapshot');

-- ------------------------------------------------------------------ a row of an inline projection

CALL test.compare('row', 400, $$SELECT FROM evpg_execute('counter', 'one', 'Add', '{"n": 1}')$$);
SELECT cmp_ok(grown('row'), '<=', 8::bigint, 'commands that replace one row: those before cost nothing [rule 11]');
SELECT is((SELECT state->>'n' FROM evpg.projected_state WHERE name = 'hot'), '500', 'and each has been applied [rule 11]');
SELECT cmp_ok(pg_relation_size('evpg.projection_state'), '>=', 100 * current_setting('block_size')::bigint,
  'all versions of it are there');

-- ------------------------------------------------------------------ the lease of a consumer

SELECT count(*) FROM evpg_append('stored', 'one', array_fill(evpg_event('Stored'), ARRAY[1000])) \g /dev/null
CALL test.compare('lease', 900, $$SELECT evpg_ack(repeat('s', 255), f.lease, f.position)
                                   FROM evpg_fetch(repeat('s', 255), repeat('c', 255), 1) f$$);
SELECT cmp_ok(grown('lease'), '<=', 8::bigint, 'batches of a consumer: those before cost nothing [rule 20]');
SELECT is((SELECT acked FROM evpg.subscription_lease), (SELECT max(position) FROM evpg.event_log),
  'and each event was handed out once [rule 20]');
SELECT is((SELECT delivered FROM evpg.subscription_lease), 1000::bigint, 'all of them were [rule 20]');

SELECT dblink_exec('other', 'ROLLBACK') \g /dev/null

-- ------------------------------------------------------------------ where a lease was seen last

SELECT evpg_create_subscription('one', aggregate_types => '{stored}') \g /dev/null
SELECT evpg_create_subscription('two', aggregate_types => '{stored}', partitions => 2) \g /dev/null
CREATE FUNCTION test.next_of(name text, consumer text) RETURNS bigint LANGUAGE sql VOLATILE AS
  $$ SELECT f.version FROM evpg_fetch(name, consumer, 1) f $$;
SELECT next_of('one', 'a') \g /dev/null
BEGIN;
SELECT evpg_ack('one', lease, handed) FROM evpg.subscription_lease WHERE subscription = 'one' \g /dev/null
SELECT next_of('one', 'a') \g /dev/null
ROLLBACK;
SELECT is(next_of('one', 'a'), 1::bigint, 'an ack and a fetch that were rolled back have left nothing [rule 20]');
SELECT evpg_ack('one', lease, handed) FROM evpg.subscription_lease WHERE subscription = 'one' \g /dev/null
VACUUM FULL evpg.subscription_lease;
SELECT is(next_of('one', 'a'), 2::bigint, 'all rows have moved [rule 20]');
SELECT is(next_of('two', 'a'), 1::bigint, 'another subscription has leases of its own [rule 20]');
SELECT is((SELECT n FROM dblink('other', $$SELECT count(*) FROM public.evpg_fetch('two', 'b', 1)$$) t(n bigint)), 0::bigint,
  'another session joins it, while all of it is in flight [rule 20]');
SELECT evpg_ack('two', lease, handed) FROM evpg.subscription_lease WHERE subscription = 'two' AND consumer = 'a' \g /dev/null
SELECT next_of('two', 'a') \g /dev/null
SELECT n FROM dblink('other', $$SELECT count(*) FROM public.evpg_fetch('two', 'b', 1)$$) t(n bigint) \g /dev/null
SELECT is((SELECT count(DISTINCT consumer) FROM evpg.stat_subscription WHERE name = 'two'), 2::bigint,
  'this one sees that, and shares [rule 20]');
SELECT evpg_drop_subscription('two'), evpg_create_subscription('two', aggregate_types => '{stored}') \g /dev/null
SELECT is(next_of('two', 'a'), 1::bigint, 'one that is created anew begins anew [rule 20]');

SELECT dblink_disconnect('other') \g /dev/null
SELECT * FROM finish();
