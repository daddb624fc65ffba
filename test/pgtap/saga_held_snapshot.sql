-- saga_held_snapshot.sql: while a session holds a snapshot, the rows that reactions replace and delete stay where they are,
-- and indexes lead to all of them: reactions do not look at all of these, and leave out nothing (rules 16 and 17).

\ir include/setup.sql
CREATE EXTENSION dblink;
\ir include/counter.sql
\ir include/sagas.sql

SELECT plan(9);
SET test.kind = counter;
SET test.kind_of_saga = functions;
SELECT dblink_connect('other', format('host=%s port=%s dbname=%s user=%s', (string_to_array(current_setting(
  'unix_socket_directories'), ','))[1], current_setting('port'), current_database(), current_user)),
  dblink_exec('other', 'SET search_path = public, test'),
  dblink_exec('other', $$SET default_transaction_isolation = 'read committed'$$)
  \g /dev/null
SELECT register_script('script', max_attempts => 5, backoff => '1000 s', max_backoff => '1500 s') \g /dev/null

-- How many entries of an index, of rows dead or alive, have been read.
CREATE FUNCTION test.entries_of(index_name text) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT pg_stat_force_next_flush();
  SELECT pg_stat_get_tuples_returned(format('evpg.%I', index_name)::regclass)
$$;
CREATE TABLE test.entries (step int PRIMARY KEY, entries bigint);
CREATE SEQUENCE test.keys;
-- Lets 200 instances react, each to one event by a command.
CREATE PROCEDURE test.react(step int) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM start('k' || n, script(send('x' || n, 'Add', 1))) 
     FROM (SELECT nextval('keys') AS n FROM generate_series(1, 200)) k;
  COMMIT;
  CALL evpg_run();
  COMMIT;
  INSERT INTO entries VALUES (react.step, entries_of('saga_total_pkey'));
  COMMIT;
END $$;
CREATE FUNCTION test.totals() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT dispatched_total || ' ' || dead_lettered_total FROM evpg.stat_consumer WHERE name = saga()
$$;

-- ------------------------------------------------------------------ what is read

CALL react(0);
SELECT dblink_exec('other', 'BEGIN ISOLATION LEVEL REPEATABLE READ') \g /dev/null
SELECT is((SELECT n FROM dblink('other', 'SELECT count(*) FROM evpg.saga_total') t(n bigint)), 1::bigint,
  'a session holds a snapshot');
CALL react(1);
CALL react(2);
CALL react(3);
CALL react(4);
SELECT cmp_ok((SELECT max(entries) FILTER (WHERE step = 4) - max(entries) FILTER (WHERE step = 3) FROM entries),
  '<=', 200::bigint,
  'a reaction finds the row of the totals without a look at those that it was [rule 16]');
SELECT is((SELECT count(*) FROM evpg.saga_instance), 1000::bigint, 'each instance has reacted [rule 16]'),
  is(totals(), '1000 0', 'each command is counted once [rule 16]');
SELECT dblink_exec('other', 'ROLLBACK') \g /dev/null

-- ------------------------------------------------------------------ what is older than what was due last

SELECT start('late', '{"fail": "once"}') \g /dev/null
CALL evpg_run();
CALL react(5);
SELECT is((SELECT attempts FROM evpg.saga_event WHERE key = 'late'), 1, 'an event waits for its next attempt [rule 17]');
SELECT evpg_set_clock_offset('2000 s') \g /dev/null
CALL react(6);
SELECT is((SELECT attempts FROM evpg.saga_event WHERE key = 'late'), 2,
  'when it is due it is tried, though newer events are due, too [rule 17]');

-- ------------------------------------------------------------------ where a row was written last

-- here it is rolled back, and another session goes on
BEGIN;
SELECT start('rolled back', script(send('x', 'Add', 1))) \g /dev/null
ROLLBACK;
SELECT start('kept', script(send('x', 'Add', 1))) \g /dev/null
BEGIN;
SELECT run() \g /dev/null
ROLLBACK;
SELECT is(totals(), '1400 0', 'what is rolled back is not counted [rule 16]');
SELECT dblink_exec('other', 'CALL evpg_run()') \g /dev/null
SELECT is(totals(), '1401 0', 'another session counts on');
SELECT start('kept too', script(send('x', 'Add', 1))) \g /dev/null
VACUUM FULL evpg.saga_total;
CALL evpg_run();
SELECT is(totals(), '1402 0', 'so does this one, wherever the row is by now [rule 16]');
SELECT dblink_disconnect('other') \g /dev/null
SELECT * FROM finish();
