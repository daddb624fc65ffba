-- stream_directory.sql: a command finds the newest event of a stream in the shared directory, without a search, whoever
-- has appended it.  Whatever makes that wrong is noticed: rollbacks, rows written or removed past evpg, other streams of
-- the same number.  Each command of the tests also searches, and compares.  Without preloading there is no directory, and
-- the same must come out: 056_stream_directory.pl runs this file with preloading, and with defects in the directory.

\ir include/setup.sql
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql
CREATE EXTENSION IF NOT EXISTS dblink;

SELECT plan(42);
SET test.kind = counter_c;

-- Another session, in a transaction if it begins one.
CREATE FUNCTION test.open(session text) RETURNS text LANGUAGE sql AS $$
  SELECT dblink_connect(session, format('host=%s port=%s dbname=%s user=%s', (string_to_array(current_setting(
    'unix_socket_directories'), ','))[1], current_setting('port'), current_database(), current_user));
  SELECT dblink_exec(session, 'SET search_path = public, test; SET lock_timeout = ''20s''; '
    'SET default_transaction_isolation = ''read committed''');
$$;
CREATE FUNCTION test.there(session text, query text) RETURNS text LANGUAGE sql AS $$
  SELECT v FROM dblink(session, query) t(v text)
$$;

-- Appends to a stream; returns the version, which is that of the newest event and one more.
CREATE FUNCTION test.more(id text) RETURNS bigint LANGUAGE sql AS $$
  SELECT version FROM evpg_append_event('counter_c', id, 'Added', '{"n": 1}')
$$;
CREATE FUNCTION test.newest(id text) RETURNS bigint LANGUAGE sql AS $$
  SELECT coalesce(max(e.version), 0) FROM evpg.event_log e JOIN evpg.stream s USING (stream_id) WHERE s.aggregate_id = id
$$;
-- Writes the next event of a stream past evpg, as a superuser can.
CREATE FUNCTION test.write_past(id text) RETURNS void LANGUAGE sql AS $$
  INSERT INTO evpg.event_log ("position", stream_id, version, occurred_at, recorded_at, event_id, schema_version, type,
      data, session_role)
    SELECT nextval('evpg.event_position'), s.stream_id, newest(id) + 1, clock_timestamp(), clock_timestamp(),
        gen_random_uuid(), 1, 'Added', '{"n": 100}', current_user
      FROM evpg.stream s WHERE s.aggregate_id = id
$$;
-- Appends to a stream, and rolls that back, n levels deep.
CREATE FUNCTION test.more_in_vain(id text, n int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF n > 1 THEN
    PERFORM more_in_vain(id, n - 1);
  END IF;
  PERFORM more(id);
  RAISE EXCEPTION 'in vain';
EXCEPTION WHEN raise_exception THEN
  NULL;
END $$;
-- A decision on the state: the total of the events.
CREATE FUNCTION test.take_too_much(id text) RETURNS text LANGUAGE sql AS $$
  SELECT message FROM evpg_try_execute('counter_c', id, 'Subtract', '{"n": 100000}')
$$;

SELECT open('other') \g /dev/null
SELECT more('a'), more('b') \g /dev/null
SELECT is(more('a'), 2::bigint, 'one after another');
SELECT is(more('a'), 3::bigint, 'and another [rule 2]');

-- rollbacks
BEGIN;
SELECT is(more('a'), 4::bigint, 'in a transaction');
ROLLBACK;
SELECT is(more('a'), 4::bigint, 'after its rollback [rule 2]');
BEGIN;
SELECT more('a') \g /dev/null
SAVEPOINT s;
SELECT is(more('a'), 6::bigint, 'in a subtransaction');
ROLLBACK TO s;
SELECT is(take_too_much('a'), 'total 5 is less than 100000', 'after ROLLBACK TO: a decision [rule 6]');
SELECT is(more('a'), 6::bigint, 'after ROLLBACK TO [rule 2]');
SELECT more_in_vain('a', 3) \g /dev/null
SELECT is(more('a'), 7::bigint, 'after exception blocks [rule 2]');
SAVEPOINT s;
SAVEPOINT t;
SELECT more('a') \g /dev/null
RELEASE t;
ROLLBACK TO s;
SELECT is(more('a'), 8::bigint, 'a released savepoint in one that is rolled back [rule 2]');
COMMIT;
SELECT is(more('a'), 9::bigint, 'after the commit');
SELECT is(error_of($$SELECT evpg_append_event('counter_c', 'a', 'Added', '{}', expected_version => 8)$$),
  'VE001 version conflict on aggregate "counter_c", stream "a": expected 8, actual 9', 'an expected version [rule 2]');

-- another session
SELECT is(there('other', $$SELECT more('a')$$), '10', 'another session finds it');
SELECT is(more('a'), 11::bigint, 'and this one what that has appended [rule 2]');
SELECT dblink_exec('other', 'BEGIN'), there('other', $$SELECT more('a')$$), dblink_exec('other', 'ROLLBACK') \g /dev/null
SELECT is(take_too_much('a'), 'total 11 is less than 100000', 'what that rolls back: a decision [rule 6]');
SELECT is(more('a'), 12::bigint, 'what that rolls back [rule 2]');
SELECT there('other', 'SELECT set_config(''evpg.max_stream_locks'', ''0'', false)') \g /dev/null
SELECT dblink_exec('other', 'BEGIN'), there('other', $$SELECT more('a')$$) \g /dev/null
SELECT dblink_send_query('other', 'SELECT pg_sleep(0.3); COMMIT') \g /dev/null
SELECT is(more('a'), 14::bigint, 'an event without a lock is waited for [rule 2]');
SELECT count(*) FROM dblink_get_result('other', false) t(v text) \g /dev/null
SELECT count(*) FROM dblink_get_result('other', false) t(v text) \g /dev/null
SELECT count(*) FROM dblink_get_result('other', false) t(v text) \g /dev/null
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM evpg.event_log \g /dev/null
SELECT there('other', $$SELECT more('a')$$) \g /dev/null
SELECT is(error_of($$SELECT more('a')$$), '40001 could not serialize access due to concurrent update',
  'an event that the snapshot does not see [rule 2]');
ROLLBACK;

-- written past evpg
SELECT write_past('a') \g /dev/null
SELECT is(take_too_much('a'), 'total 115 is less than 100000', 'a row that is written past evpg: a decision [rule 6]');
SELECT is(more('a'), 17::bigint, 'a row that is written past evpg [rule 2]');
BEGIN;
SELECT more('a'), write_past('a') \g /dev/null
SELECT is(more('a'), 20::bigint, 'in the transaction that has written it');
COMMIT;
SELECT is(more('a'), 21::bigint, 'and after it');
BEGIN;
SELECT write_past('a') \g /dev/null
ROLLBACK;
SELECT is(more('a'), 22::bigint, 'after its rollback');
SELECT there('other', $$SELECT write_past('a')$$) \g /dev/null
SELECT is(more('a'), 24::bigint, 'by another session [rule 2]');
-- a statement that has begun, but not come to its row, when the stream is looked at again
SELECT pg_advisory_lock(17701) \g /dev/null
SELECT dblink_send_query('other', $$INSERT INTO evpg.event_log ("position", stream_id, version, occurred_at, recorded_at,
      event_id, schema_version, type, data, session_role)
    SELECT nextval('evpg.event_position'), stream_id, 26, clock_timestamp(), clock_timestamp(), gen_random_uuid(), 1,
        'Added', '{"n": 100}', current_user
      FROM (SELECT stream_id, pg_advisory_xact_lock(17701) FROM evpg.stream WHERE aggregate_id = 'a' OFFSET 0) s$$)
  \g /dev/null
CREATE FUNCTION test.others_wait() RETURNS bigint LANGUAGE sql AS $$
  SELECT count(*) FROM own_lock WHERE locktype = 'advisory' AND objid = 17701 AND NOT granted
$$;
DO $$ BEGIN WHILE others_wait() = 0 LOOP PERFORM pg_sleep(0.01); END LOOP; END $$;
SELECT is(more('a'), 25::bigint, 'while a statement that writes past evpg has no row yet');
SELECT pg_advisory_unlock(17701) \g /dev/null
SELECT count(*) FROM dblink_get_result('other') t(v text) \g /dev/null
SELECT count(*) FROM dblink_get_result('other') t(v text) \g /dev/null
SELECT is(take_too_much('a') ~ '^total [0-9]+ is less', true, 'and when it is committed: a decision');
SELECT is(more('a'), 27::bigint, 'and when it is committed [rule 2]');
SELECT format('COPY evpg.event_log ("position", stream_id, version, occurred_at, recorded_at, event_id, schema_version, '
    'type, session_role) FROM PROGRAM %L (DELIMITER '','')', format('echo "%s,%s,28,%s,%3$s,%s,1,Added,me"',
    nextval('evpg.event_position'), stream_id, clock_timestamp(), gen_random_uuid()))
  FROM evpg.stream WHERE aggregate_id = 'a' \gexec
SELECT is(more('a'), 29::bigint, 'COPY [rule 2]');

-- removed by an administrator
CREATE FUNCTION test.remove_newest(id text) RETURNS void LANGUAGE sql AS $$
  DELETE FROM evpg.event_log e USING evpg.stream s
    WHERE s.stream_id = e.stream_id AND s.aggregate_id = id AND e.version = newest(id)
$$;
ALTER TABLE evpg.event_log DISABLE TRIGGER evpg_append_only;
SELECT remove_newest('a') \g /dev/null
SELECT is(more('a'), 29::bigint, 'the newest event was removed [rule 2]');
SELECT more('a'), remove_newest('a') \g /dev/null
SELECT is(more('a'), 30::bigint, 'again, while the triggers are disabled');
SELECT remove_newest('a') \g /dev/null
ALTER TABLE evpg.event_log ENABLE ALWAYS TRIGGER evpg_append_only;
SELECT is(more('a'), 30::bigint, 'and when they are enabled [rule 2]');
BEGIN;
SELECT more('a') \g /dev/null
ALTER TABLE evpg.event_log DISABLE TRIGGER evpg_append_only;
SELECT remove_newest('a') \g /dev/null
ALTER TABLE evpg.event_log ENABLE ALWAYS TRIGGER evpg_append_only;
SELECT is(more('a'), 31::bigint, 'all in one transaction: in it');
COMMIT;
SELECT is(more('a'), 32::bigint, 'all in one transaction: after it [rule 2]');
SELECT more('a') \g /dev/null
SELECT there('other', $$SELECT more('a')$$) \g /dev/null
BEGIN;
ALTER TABLE evpg.event_log DISABLE TRIGGER evpg_append_only;
SELECT remove_newest('a') \g /dev/null
ALTER TABLE evpg.event_log ENABLE ALWAYS TRIGGER evpg_append_only;
COMMIT;
SELECT is(there('other', $$SELECT more('a')$$), '34', 'by another session than that which looks [rule 2]');
ALTER TABLE evpg.event_log ENABLE TRIGGER evpg_append_only;
SET session_replication_role = replica;
SELECT remove_newest('a') \g /dev/null
RESET session_replication_role;
SELECT is(more('a'), 34::bigint, 'removed under session_replication_role, of which the trigger must not depend');
ALTER TABLE evpg.event_log ENABLE ALWAYS TRIGGER evpg_append_only;
SELECT is(more('a'), 35::bigint, 'and after that');
BEGIN;
DROP TRIGGER evpg_append_only ON evpg.event_log;
SELECT remove_newest('a') \g /dev/null
CREATE TRIGGER evpg_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON evpg.event_log
  FOR EACH STATEMENT EXECUTE FUNCTION evpg.refuse_change();
ALTER TABLE evpg.event_log ENABLE ALWAYS TRIGGER evpg_append_only;
COMMIT;
SELECT is(more('a'), 35::bigint, 'the trigger was dropped and created [rule 2]');

-- moved
VACUUM FULL evpg.event_log;
SELECT is(more('a'), 36::bigint, 'VACUUM FULL');
CLUSTER evpg.event_log USING event_log_pkey;
SELECT is(there('other', $$SELECT more('a')$$), '37', 'CLUSTER');

-- emptied, and made anew
BEGIN;
ALTER TABLE evpg.event_log DISABLE TRIGGER USER;
TRUNCATE evpg.event_log;
ALTER TABLE evpg.event_log ENABLE ALWAYS TRIGGER evpg_append_only;
ALTER TABLE evpg.event_log ENABLE ALWAYS TRIGGER evpg_writer;
COMMIT;
SELECT is(more('a'), 1::bigint, 'TRUNCATE [rule 2]');
SELECT is(there('other', $$SELECT more('a')$$), '2', 'TRUNCATE, in another session');
SELECT more('c'), more('d') \g /dev/null
DROP EXTENSION evpg CASCADE;
CREATE EXTENSION evpg;
SELECT evpg_register_aggregate('counter_c') \g /dev/null
SELECT version FROM evpg_append('counter_c', 'a', ARRAY[evpg_event('Noted')]) \g /dev/null
SELECT is((SELECT version FROM evpg_append('counter_c', 'c', ARRAY[evpg_event('Noted')])), 1::bigint,
  'streams of another extension, whose numbers begin again');
SELECT is((SELECT version FROM evpg_append('counter_c', 'a', ARRAY[evpg_event('Noted')])), 2::bigint,
  'and go on [rule 2]');

SELECT * FROM finish();
