-- log_pages.sql: rows of the log that lie on one page, which readers check page by page: what is committed, in progress,
-- rolled back, changed and deleted in spite of the triggers, cleaned up and replaced, each under new and old snapshots.

\ir include/setup.sql
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql
\ir include/projections.sql
CREATE EXTENSION IF NOT EXISTS dblink;

SELECT plan(49);
SET test.kind = counter;
SELECT evpg_register_projection('sums', 'test.sum_apply', aggregate_types => '{counter}', mode => 'async') \g /dev/null

-- Another session, in a transaction if it begins one.
CREATE FUNCTION test.open(session text) RETURNS text LANGUAGE sql AS $$
  SELECT dblink_connect(session, format('host=%s port=%s dbname=%s user=%s', (string_to_array(current_setting(
    'unix_socket_directories'), ','))[1], current_setting('port'), current_database(), current_user));
  SELECT dblink_exec(session, 'SET search_path = public, test');
$$;
CREATE FUNCTION test.there(session text, query text) RETURNS text LANGUAGE sql AS $$
  SELECT v FROM dblink(session, query) t(v text)
$$;

-- What readers of the log see, by stream, position and backwards, and what a query sees that reads the table itself.
CREATE FUNCTION test.read_by(reader text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  RETURN (SELECT string_agg(aggregate_id || version || coalesce(' by ' || actor, ''), ', ' ORDER BY n) FROM (
    SELECT row_number() OVER () AS n, * FROM evpg_read_all(stable_only => false, max_count => 10000)
     WHERE reader = 'position'
    UNION ALL SELECT row_number() OVER (), * FROM evpg_read_stream('counter', 'a') WHERE reader = 'stream'
    UNION ALL SELECT row_number() OVER (), * FROM evpg_read_stream('counter', 'a', backwards => true)
     WHERE reader = 'backwards') x);
END $$;
CREATE FUNCTION test.rows_of_table(reader text) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(aggregate_id || version || coalesce(' by ' || actor, ''), ', '
    ORDER BY CASE WHEN reader = 'backwards' THEN -"position" ELSE "position" END)
    FROM evpg.event WHERE aggregate_type = 'counter' AND (reader = 'position' OR aggregate_id = 'a')
$$;
CREATE FUNCTION test.readers_agree(description text) RETURNS SETOF text LANGUAGE sql AS $$
  SELECT is(read_by(reader), rows_of_table(reader), description || ', by ' || reader)
    FROM unnest('{position,stream,backwards}'::text[]) reader
$$;
CREATE FUNCTION test.pages() RETURNS bigint LANGUAGE sql AS $$
  SELECT count(DISTINCT (ctid::text::point)[0]) FROM evpg.event_log
$$;

SELECT try(id, 'AddMany', '{"count": 5}') FROM unnest('{a,b}'::text[]) id \g /dev/null
SELECT readers_agree('one after the other');
SELECT is(pages(), 1::bigint, 'all on one page');

-- in progress, between others on the page, then committed; and rolled back
SELECT open('other') \g /dev/null
SELECT dblink_exec('other', 'BEGIN'), there('other', $$SELECT add('c', 1)$$), there('other', $$SELECT add('d', 1)$$)
  \g /dev/null
SELECT try('a', 'AddMany', '{"count": 2}') \g /dev/null
SELECT readers_agree('others are in progress');
SELECT is(read_by('position') LIKE '%b5, a6, a7', true, 'others are in progress: they are left out');
SELECT dblink_exec('other', 'ROLLBACK') \g /dev/null
SELECT readers_agree('others are rolled back');
SELECT dblink_exec('other', 'BEGIN'), there('other', $$SELECT add('c', 2)$$) \g /dev/null
SELECT try('a', 'AddMany', '{"count": 2}') \g /dev/null
SELECT readers_agree('another is in progress');
SELECT dblink_exec('other', 'COMMIT') \g /dev/null
SELECT readers_agree('another is committed');
SELECT is(read_by('position') LIKE '%a7, c1, a8, a9', true, 'another is committed: it has its place');

-- a transaction of one's own, and a savepoint
BEGIN;
SELECT try('a', 'AddMany', '{"count": 2}') \g /dev/null
SAVEPOINT s;
SELECT try('b', 'AddMany', '{"count": 2}') \g /dev/null
SELECT readers_agree('of the transaction itself');
ROLLBACK TO s;
SELECT readers_agree('after ROLLBACK TO');
COMMIT;

-- an old snapshot on a page that goes on
SELECT dblink_exec('other', 'BEGIN ISOLATION LEVEL REPEATABLE READ'), there('other', 'SELECT count(*) FROM evpg.event_log')
  \g /dev/null
SELECT there('other', $$SELECT read_by('position')$$) AS before \gset
SELECT try('a', 'AddMany', '{"count": 2}') \g /dev/null
SELECT is(there('other', $$SELECT read_by('position')$$), :'before'::text, 'an old snapshot does not see what came later');
SELECT is(there('other', $$SELECT read_by('stream')$$), there('other', $$SELECT rows_of_table('stream')$$),
  'an old snapshot, by stream');

-- changed and deleted by an administrator, while the old snapshot stays
ALTER TABLE evpg.event_log DISABLE TRIGGER USER;
UPDATE evpg.event_log SET actor = 'an administrator' WHERE version = 3;
DELETE FROM evpg.event_log e USING evpg.stream s WHERE s.stream_id = e.stream_id AND aggregate_id = 'b' AND e.version = 4;
ALTER TABLE evpg.event_log ENABLE ALWAYS TRIGGER evpg_append_only;
SELECT readers_agree('rows were changed and deleted');
SELECT is(read_by('position') LIKE '%a3 by an administrator%b3 by an administrator, b5%', true, 'as they are now');
SELECT is(there('other', $$SELECT read_by('position')$$), :'before'::text, 'an old snapshot sees them as they were');
SELECT is(pages(), 1::bigint, 'still on one page');
SELECT dblink_exec('other', 'COMMIT') \g /dev/null

-- cleaned up: line pointers lead to others or are free, and new rows come in their place
VACUUM evpg.event_log;
SELECT readers_agree('cleaned up');
SELECT add('b', 1) \g /dev/null
SELECT readers_agree('a row in the place of another');
SELECT is((SELECT ctid < (SELECT max(ctid) FROM evpg.event_log) FROM evpg.event_log ORDER BY "position" DESC LIMIT 1), true,
  'it lies between others');
SELECT dblink_exec('other', 'BEGIN'), there('other', $$SELECT add('d', 3)$$) \g /dev/null
SELECT try('a', 'AddMany', '{"count": 1}') \g /dev/null
SELECT readers_agree('all others are visible to all');
SELECT dblink_exec('other', 'COMMIT') \g /dev/null

-- a snapshot of a serializable transaction reads row by row, and leaves its marks
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT readers_agree('serializable');
COMMIT;

-- many pages, in two streams that alternate; a consumer
SELECT add(id, n) FROM generate_series(1, 300) n, unnest('{a,b}'::text[]) id ORDER BY n, id \g /dev/null
SELECT readers_agree('many pages');
CALL evpg_run();
SELECT is(rows_of('sums'), (SELECT string_agg(format('%s: 1.%s {"sum": %s, "count": %s}', key, n, sum, n), ', ' ORDER BY key)
  FROM (SELECT aggregate_id AS key, count(*) AS n, sum((data->>'n')::int) FROM evpg.event WHERE aggregate_type = 'counter'
  GROUP BY aggregate_id) x), 'a consumer has applied each once [rule 9]');
SELECT dblink_disconnect('other') \g /dev/null
SELECT * FROM finish();
