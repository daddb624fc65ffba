-- tag_consumers.sql: consumers of events with rare tags, or of rare types, that are far behind find these by an index, and
-- skip none (rules 9, 10, 13, 16 and 20).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/async.sql

SELECT plan(21);
-- what is read, and by which index, is counted
SET enable_seqscan = on;
SET enable_indexscan = on;
SET enable_bitmapscan = on;
SET enable_sort = on;
SET test.kind = counter;

-- 40,000 events, of which one in 2,000 is rare
SELECT count(e.version) FROM generate_series(0, 39) batch, LATERAL (
  SELECT array_agg(CASE WHEN n % 2000 = 1500 THEN evpg_event('Added', jsonb_build_object('n', n / 2000), tags => '{rare,x}')
                        ELSE evpg_event('Crowd', tags => '{crowd}') END ORDER BY n) AS events
    FROM generate_series(batch * 1000, batch * 1000 + 999) n) b,
  evpg_append('counter', 's' || batch % 5, b.events) e \g /dev/null

-- how many rows of the log all sessions have looked at
CREATE FUNCTION test.looked() RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT sum(pg_stat_get_tuples_fetched(c.oid) + CASE c.relkind WHEN 'r' THEN pg_stat_get_tuples_returned(c.oid)
    ELSE 0 END)::bigint
    FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
   WHERE 'evpg.event_log'::regclass IN (c.oid, i.indrelid)
$$;
-- ------------------------------------------------------------------ without an index

SELECT evpg_register_projection('scanned', 'test.list_apply', mode => 'async', tags => '{rare}', constant_key => 'all')
  \g /dev/null
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT looked() AS before \gset
CALL evpg_run();
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT cmp_ok(looked() - :before, '>=', 40000::bigint,
  'without an index a projection of rare tags looks at all events [B38]');
SELECT row_of('scanned', 'all') AS scanned \gset
SELECT matches(:'scanned'::text, '^1[.]20 ', 'it applies those that have the tag [B38]');
SELECT evpg_enable_index('tags') \g /dev/null
ANALYZE evpg.event_log;

-- ------------------------------------------------------------------ projections

SELECT evpg_register_projection('sought', 'test.list_apply', mode => 'async', tags => '{rare}', constant_key => 'all')
  \g /dev/null
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT looked() AS before \gset
CALL evpg_run();
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT cmp_ok(looked() - :before, '<', 3000::bigint,
  'a projection of rare tags that is far behind finds its events by the index [B38]');
SELECT is(row_of('sought', 'all'), :'scanned'::text, 'it applies the same in the same order [rule 10]');
SELECT is(consumer_of('sought'), 'running 0 tried 0 errors 0', 'its checkpoint is behind all [rule 10]');
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT looked() AS before \gset
SELECT is(evpg_rebuild_projection('sought'), 20::bigint, 'a rebuild finds all events of rare tags [rule 13]');
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT cmp_ok(looked() - :before, '<', 4000::bigint, 'a rebuild finds them by the index [rule 13]');
SELECT is(substr(row_of('sought', 'all'), 2), substr(:'scanned'::text, 2), 'a rebuild applies the same [rule 13]');
-- one that is due while it is far behind: appended later, committed before the batch
SELECT evpg_register_projection('both', 'test.list_apply', mode => 'async', tags => '{rare,late}', constant_key => 'all')
  \g /dev/null
SELECT evpg_append_event('counter', 'late', 'Added', '{"n": 77}', tags => '{late}') \g /dev/null
CALL evpg_run();
SELECT is(row_of('both', 'all'), regexp_replace(replace(:'scanned', '1.20', '1.21'), ']$', ', 77]'),
  'a projection of two tags applies the events of both, in the order of positions [rule 10]');

-- ------------------------------------------------------------------ subscriptions

SELECT evpg_create_subscription('all_parts', tags => '{rare}', partitions => 3) \g /dev/null
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT looked() AS before \gset
CREATE TABLE test.got AS SELECT lease, event.* FROM (SELECT (f).* FROM evpg_fetch('all_parts', 'c', 7) f) q
  CROSS JOIN LATERAL (SELECT q."position") event;
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT is((SELECT count(*) FROM got), 7::bigint, 'a subscription of rare tags hands out a page [rule 20]');
SELECT cmp_ok(looked() - :before, '<', 3000::bigint, 'a subscription of rare tags finds its events by the index [rule 20]');
CREATE PROCEDURE test.take_all() LANGUAGE plpgsql AS $$
DECLARE
  rows bigint;
  of_lease bigint;
  last bigint;
BEGIN
  LOOP
    SELECT lease, max("position") INTO of_lease, last FROM got GROUP BY lease ORDER BY max("position") DESC LIMIT 1;
    PERFORM evpg_ack('all_parts', of_lease, last);
    INSERT INTO got SELECT (f).lease, (f)."position" FROM evpg_fetch('all_parts', 'c', 7, lease => of_lease) f;
    GET DIAGNOSTICS rows = ROW_COUNT;
    COMMIT;
    EXIT WHEN rows = 0;
  END LOOP;
END $$;
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT looked() AS before \gset
CALL take_all();
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT same('SELECT "position" FROM got ORDER BY ctid',
  $$SELECT "position" FROM evpg.event WHERE tags && '{rare}' ORDER BY 1$$,
  'a subscription of rare tags hands out each event once, in order of position [rule 20]');
SELECT cmp_ok(looked() - :before, '<', 9000::bigint, 'it finds each page by the index [rule 20]');
SELECT evpg_drop_subscription('all_parts') \g /dev/null

-- an event of rare tags that is committed late, below events that are committed: it holds consumers back, and is found
CREATE EXTENSION IF NOT EXISTS dblink;
SELECT dblink_connect('late', format('host=%s port=%s dbname=%s user=%s', (string_to_array(current_setting(
  'unix_socket_directories'), ','))[1], current_setting('port'), current_database(), current_user)) \g /dev/null
SELECT dblink_exec('late', 'BEGIN') \g /dev/null
SELECT * FROM dblink('late', $$SELECT version FROM public.evpg_append_event('counter', 'held', 'Added', '{"n": 88}',
  tags => '{rare}')$$) x (v bigint) \g /dev/null
SELECT count(*) FROM generate_series(1, 3), LATERAL (
  SELECT evpg_append('counter', 'crowd', array_agg(evpg_event('Crowd'))) FROM generate_series(1, 1000)) a \g /dev/null
SELECT evpg_append_event('counter', 'after', 'Added', '{"n": 99}', tags => '{rare}') \g /dev/null
CALL evpg_run();
SELECT is(row_of('sought', 'all') LIKE '2.20 %19]', true,
  'events behind one that is in progress are not applied yet [rule 9]');
SELECT is((SELECT count(*) FROM evpg_read_all(tags => '{rare}')), 20::bigint,
  'events behind one that is in progress are not read yet [rule 9]');
SELECT dblink_exec('late', 'COMMIT') \g /dev/null
CALL evpg_run();
SELECT is(row_of('sought', 'all') LIKE '2.22 %19, 88, 99]', true,
  'an event of rare tags that is committed late is found, and those behind it [rule 9]');

-- ------------------------------------------------------------------ sagas

CREATE FUNCTION test.react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(jsonb_build_object('seen', coalesce((state->>'seen')::int, 0) + 1)) $$;
CREATE FUNCTION test.one_key(event evpg.event) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'all'$$;
SELECT evpg_enable_index('event_type') \g /dev/null
SELECT evpg_register_saga('watch', 'test.react', event_types => '{Added}', key_function => 'test.one_key',
  start_position => 0) \g /dev/null
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT looked() AS before \gset
CALL evpg_run();
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT is((SELECT state->>'seen' FROM evpg.saga_instance WHERE saga = 'watch'), '23',
  'a saga reacts to all events of a rare type [rule 16]');
SELECT cmp_ok(looked() - :before, '<', 1000::bigint, 'a saga finds the events of a rare type by the index [rule 16]');
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT looked() AS before \gset
SELECT is(evpg_rebuild_saga('watch'), 23::bigint, 'a rebuild of a saga folds all events of a rare type [rule 16]');
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT cmp_ok(looked() - :before, '<', 1000::bigint, 'a rebuild of a saga finds them by the index [rule 16]');
SELECT is((SELECT state->>'seen' FROM evpg.saga_instance WHERE saga = 'watch'), '23',
  'a rebuild of a saga gives the same [rule 16]');
SELECT * FROM finish();
