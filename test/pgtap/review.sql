-- review.sql: defects of asynchronous projections and rebuilds that a review has found.

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT no_plan();
SET test.kind = counter;
SELECT add('first', 0) \g /dev/null

-- ------------------------------------------------------------------ a table of a projection is gone during its rebuild

SELECT format('CREATE TABLE test.t%s (k text)', n) FROM generate_series(1, 30) n \gexec
CREATE FUNCTION test.first_write(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t1 VALUES (event.aggregate_id); RETURN NULL; END $$;
SELECT evpg_register_projection('tables', handler => 'test.first_write', mode => 'async', tables => array_agg('t' || n), max_attempts => 10) FROM generate_series(1, 30) n \g /dev/null
SELECT evpg_rebuild_projection('tables', background => true) \g /dev/null
DROP TABLE t30;
SELECT v FROM (VALUES ('CALL evpg_run()'), ('DO $$BEGIN PERFORM now_due(); END$$')) s (v), generate_series(1, 9) ORDER BY generate_series, v \gexec
SELECT is((SELECT concat_ws(' ', phase, attempts, last_error) FROM evpg.progress_rebuild), 'replay 9 relation "test.t30" does not exist', 'rule 13: a rebuild without one of its tables fails, again and again, in one session');
CALL evpg_run();
SELECT is((SELECT phase FROM evpg.progress_rebuild), 'failed', 'rule 13: up to max_attempts');
SELECT evpg_drop_projection('tables') \g /dev/null

-- ------------------------------------------------------------------ a rebuild that fails at no event

CREATE TABLE test.parent (id text PRIMARY KEY);
CREATE TABLE test.child (id text REFERENCES test.parent);
CREATE FUNCTION test.child_write(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN INSERT INTO child VALUES (event.aggregate_id); RETURN NULL; END $$;
INSERT INTO parent VALUES ('s1'), ('s2'), ('s3');
SELECT evpg_register_projection('child', handler => 'test.child_write', mode => 'async', tables => '{child}', on_error => 'skip', max_attempts => 2, start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('s1', 1), add('s2', 2), add('s3', 3) \g /dev/null
CALL evpg_run();
DELETE FROM child WHERE id = 's1';
DELETE FROM parent WHERE id = 's1';
SELECT evpg_rebuild_projection('child', background => true) \g /dev/null
CALL evpg_run();
SELECT now_due() \g /dev/null
CALL evpg_run();
SELECT alike((SELECT concat_ws(' ', phase, attempts, last_error) FROM evpg.progress_rebuild), 'failed 2 insert or update on table "child" violates foreign key constraint%', 'rule 13: contents that the table refuses fail the rebuild');
SELECT is(parked_of('child'), '', 'rule 13: and no event is skipped for it');
SELECT is((SELECT string_agg(id, ' ' ORDER BY id) FROM child), 's2 s3', 'rule 13: the old rows stay');
INSERT INTO parent VALUES ('s1');
-- an event that fails is skipped as ever
CREATE OR REPLACE FUNCTION test.child_write(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN INSERT INTO child SELECT event.aggregate_id WHERE 1 / (3 - (event.data->>'n')::int) IS NOT NULL; RETURN NULL; END $$;
SELECT evpg_cancel_rebuild('child'), evpg_rebuild_projection('child', background => true) \g /dev/null
CALL evpg_run();
SELECT now_due() \g /dev/null
CALL evpg_run();
SELECT now_due() \g /dev/null
CALL evpg_run();
SELECT is(parked_of('child') || (SELECT count(*) FROM evpg.progress_rebuild), '- 3 tried 2 division by zero 22012 skipped: division by zero0', 'rule 13: an event that fails is skipped');
SELECT is((SELECT string_agg(id, ' ' ORDER BY id) FROM child), 's1 s2', 'rule 13: it alone');
SELECT evpg_drop_projection('child') \g /dev/null

-- ------------------------------------------------------------------ a type that is named twice

SELECT evpg_enable_index('event_type') \g /dev/null
SELECT evpg_register_projection('twice', 'test.sum_apply', mode => 'async', event_types => '{Added,Odd,Added}', start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('twice', 1), add('twice', 2), add('twice', 3, 'Odd') \g /dev/null
CALL evpg_run();
SELECT is(row_of('twice', 'twice'), '1.3 {"sum": 3, "count": 3}', 'rule 12: an event is applied once, though its type is named twice and has an index');
SELECT evpg_rebuild_projection('twice') \g /dev/null
SELECT is(row_of('twice', 'twice'), '2.3 {"sum": 3, "count": 3}', 'rule 12: by a rebuild, too');
SELECT evpg_enable_index('event_type', false), evpg_drop_projection('twice') \g /dev/null

-- ------------------------------------------------------------------ a snapshot that is older than events

SELECT evpg_register_projection('old', 'test.list_apply', mode => 'async', on_error => 'park', max_attempts => 1, start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
CALL evpg_run();
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM evpg.stream \g /dev/null
SELECT * FROM dblink('listener', $$SELECT add('old', 1), add('old', 2)$$) x (a bigint, b bigint) \g /dev/null
SELECT alike(error_of($$SELECT evpg_register_projection('old', 'test.list_apply', mode => 'inline', start_position => (SELECT start_position FROM evpg.projection))$$), '25000 %READ COMMITTED', 'rule 9: an asynchronous projection does not become inline by a snapshot that is older than events');
COMMIT;
SELECT add('old', 3) \g /dev/null
CALL evpg_run();
SELECT is(row_of('old', 'old'), '1.3 [1, 2, 3]', 'rule 9: no event is lost');
SET test.break = 4;
SELECT dblink_exec('listener', 'SET test.break = 4') \g /dev/null
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM evpg.stream \g /dev/null
SELECT * FROM dblink('listener', $$SELECT add('old', 4)$$) x (a bigint) \g /dev/null
SELECT dblink_exec('listener', 'CALL evpg_run()') \g /dev/null
RESET test.break;
SELECT alike(error_of($$SELECT evpg_replay_parked('old')$$), '25000 %READ COMMITTED', 'rule 9: nor is a parked event replayed');
COMMIT;
SELECT is(parked_of('old'), 'old 4 tried 1 I break at 4 P0001', 'rule 9: which is not counted');
SELECT is(evpg_replay_parked('old') || ' ' || row_of('old', 'old'), '1 1.4 [1, 2, 3, 4]', 'rule 9: but under READ COMMITTED');
SELECT evpg_drop_projection('old') \g /dev/null

-- ------------------------------------------------------------------ skipping an event of a consumer that is paused

SELECT evpg_register_projection('paused', 'test.list_apply', mode => 'async', max_attempts => 1, start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('p', 1) AS position \gset
SELECT add('p', 2) \g /dev/null
SET test.break = 1;
CALL evpg_run();
RESET test.break;
SELECT evpg_pause_consumer('paused'), evpg_skip_event('paused', :position, 'bad') \g /dev/null
SELECT is(consumer_of('paused'), 'paused -2 tried 0 errors 1', 'rule 10: a consumer that somebody has paused stays so when the event that fails is skipped');
CALL evpg_run();
SELECT is(rows_of('paused'), '', 'rule 10: and does nothing');
SELECT evpg_resume_consumer('paused') \g /dev/null
CALL evpg_run();
SELECT is(rows_of('paused'), 'p: 1.1 [2]', 'rule 10: until it is resumed');
SELECT evpg_drop_projection('paused') \g /dev/null

-- ------------------------------------------------------------------ tables whose rows cannot be replaced

CREATE TABLE test.mine (id text);
CREATE FUNCTION test.mine_write(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN INSERT INTO mine VALUES (event.aggregate_id); RETURN NULL; END $$;
CREATE TABLE test.heir () INHERITS (test.mine);
SELECT alike(error_of($$SELECT evpg_register_projection('mine', handler => 'test.mine_write', tables => '{mine}')$$), '0A000 table "mine" has children%', 'rule 13: a table with children is refused');
DROP TABLE heir;
ALTER TABLE mine ENABLE ROW LEVEL SECURITY;
SELECT evpg_register_projection('mine', handler => 'test.mine_write', tables => '{mine}', start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('m', 1) \g /dev/null
SELECT is(evpg_rebuild_projection('mine'), 1::bigint, 'rule 13: row security that does not concern the owner is no obstacle');
ALTER TABLE mine FORCE ROW LEVEL SECURITY;
SELECT alike(error_of($$SELECT evpg_rebuild_projection('mine')$$), '0A000 table "test.mine" has row security%', 'rule 13: but the one that does');
ALTER TABLE mine NO FORCE ROW LEVEL SECURITY;
SELECT evpg_rebuild_projection('mine', background => true) \g /dev/null
CREATE TABLE test.heir () INHERITS (test.mine);
INSERT INTO heir VALUES ('heir');
CALL evpg_run();
SELECT alike((SELECT last_error FROM evpg.progress_rebuild), 'table "test.mine" has children%', 'rule 13: a child that comes during the rebuild');
SELECT is((SELECT string_agg(id, ' ' ORDER BY id) FROM mine), 'heir m', 'rule 13: keeps its rows, and the table those that it had');
SELECT evpg_cancel_rebuild('mine') \g /dev/null
DROP TABLE heir;
-- triggers act on what is replaced
CREATE TABLE test.history (n serial, deed text);
CREATE FUNCTION test.note_history() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO test.history (deed) VALUES (TG_OP); RETURN NULL; END $$;
CREATE TRIGGER history AFTER INSERT OR DELETE ON mine FOR EACH ROW EXECUTE FUNCTION test.note_history();
SELECT evpg_rebuild_projection('mine') \g /dev/null
SELECT is((SELECT string_agg(deed, ' ' ORDER BY n) FROM history), 'DELETE INSERT', 'rule 13: triggers of a table act when its contents are replaced');
SELECT evpg_drop_projection('mine') \g /dev/null

-- ------------------------------------------------------------------ a row that cannot be written

CREATE FUNCTION test.number_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('x', coalesce(state->'x', '0'), 'n', coalesce((state->>'n')::int, 0) + 1) || CASE WHEN event.data->>'n' = '2' THEN '{"x": "none"}' ELSE '{}' END::jsonb
$$;
SELECT evpg_register_projection('number', 'test.number_apply', mode => 'async', on_error => on_error, max_attempts => 1, start_position => (SELECT last_value FROM evpg.event_position)) FROM unnest('{skip}'::text[]) on_error \g /dev/null
CREATE INDEX number_x ON evpg.projection_state (((state->>'x')::int));
SELECT add('w', 1), add('v', 1), add('w', 2), add('w', 3), add('v', 3) \g /dev/null
-- draws a position above those of the events
SELECT evpg_put_projection('number', 'w', '{"n": 10}') \g /dev/null
SET statement_timeout = '10s';
CALL evpg_run(100);
RESET statement_timeout;
SELECT is(parked_of('number'), 'w 2 tried 1 invalid input syntax for type integer: "none" 22P02 skipped: invalid input syntax for type integer: "none"', 'rule 10: a row that cannot be written is blamed on the event that spoils it');
SELECT is(rows_of('number'), 'v: 1.2 {"n": 2, "x": 0}, w: 1.3 {"n": 12, "x": 0}', 'rule 10: the others are applied');
-- in a rebuild that is not known, so none is skipped
DELETE FROM evpg.parked_event;
SELECT evpg_rebuild_projection('number', background => true) \g /dev/null
CALL evpg_run();
SELECT alike((SELECT phase || ' ' || last_error FROM evpg.progress_rebuild), 'failed invalid input syntax%', 'rule 13: a rebuild fails for a row that cannot be written');
SELECT is(parked_of('number'), '', 'rule 13: no event is skipped for it');
DROP INDEX evpg.number_x;
SELECT evpg_drop_projection('number') \g /dev/null

-- ------------------------------------------------------------------ copies are no place for code

CREATE ROLE rebuild_owner;
GRANT USAGE ON SCHEMA test, public TO rebuild_owner;
CREATE TABLE test.copied (key text, path text);
CREATE FUNCTION test.copied_write(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN INSERT INTO copied VALUES (event.aggregate_id, current_setting('search_path')); RETURN NULL; END $$;
ALTER TABLE copied OWNER TO rebuild_owner;
ALTER FUNCTION test.copied_write OWNER TO rebuild_owner;
CREATE FUNCTION test.path_key(event evpg.event) RETURNS text LANGUAGE sql AS $$ SELECT 'path ' || current_setting('search_path') $$;
SELECT evpg_register_projection('copied', handler => 'test.copied_write', key_function => 'test.path_key', mode => 'async', tables => '{copied}', start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('c', 1) \g /dev/null
CALL evpg_run();
SELECT evpg_rebuild_projection('copied', background => true) \g /dev/null
SELECT nspname AS schema FROM pg_namespace WHERE nspname LIKE 'evpg\_rebuild%' \gset
SET ROLE rebuild_owner;
SELECT alike(error_of(format('CREATE FUNCTION %s.lower(text) RETURNS text LANGUAGE sql AS $x$ SELECT $1 $x$', :'schema')), '42501 permission denied%', 'rule 13: nobody puts functions where the copies are');
SELECT alike(error_of(format('ALTER SCHEMA %s RENAME TO mine', :'schema')), '42501 must be owner%', 'rule 13: or renames that schema');
RESET ROLE;
CALL evpg_run();
SELECT alike((SELECT path FROM copied), :'schema' || ',%', 'rule 13: the handler finds the copies first');
SELECT is((SELECT string_agg(key, ' ') FROM stored WHERE name = 'copied' AND key LIKE '%evpg%'), NULL, 'rule 13: a key function, which may belong to somebody else, does not look there');
SELECT is((SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'evpg\_rebuild%'), 0::bigint, 'rule 13: the schema is dropped');
SELECT evpg_drop_projection('copied') \g /dev/null
DROP TABLE copied;
DROP FUNCTION copied_write;
DROP OWNED BY rebuild_owner;
DROP ROLE rebuild_owner;

-- ------------------------------------------------------------------ errors that need not come back, but do

SELECT evpg_set_clock_offset() \g /dev/null
CREATE FUNCTION test.never_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event.data->>'n' = '2' THEN
    RAISE EXCEPTION 'busy' USING ERRCODE = 'lock_not_available';
  END IF;
  RETURN coalesce(state, '{}') || jsonb_build_object('n', event.data->'n');
END $$;
SELECT evpg_register_projection('never', 'test.never_apply', mode => 'async', max_attempts => 2, start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('n', 1), add('n', 2), add('n', 3) \g /dev/null
SET statement_timeout = '10s';
CALL evpg_run(100);
SELECT is(consumer_of('never'), 'running -2 at 2 tried 0 errors 1', 'rule 10: after an error of concurrency of an event alone evpg_run() returns');
SELECT is((SELECT retry_at - last_error_at < '1 s' FROM evpg.consumer), true, 'rule 10: it is tried again soon');
-- as if it had been tried at its time, several times
CREATE FUNCTION test.time_passes() RETURNS interval LANGUAGE plpgsql AS $$
DECLARE
  pause interval;
BEGIN
  SELECT retry_at - last_error_at INTO pause FROM evpg.consumer UNION ALL SELECT retry_at - last_error_at FROM evpg.rebuild;
  UPDATE evpg.consumer SET retry_at = clock_timestamp(), last_error_at = clock_timestamp() - pause;
  UPDATE evpg.rebuild SET retry_at = clock_timestamp(), last_error_at = clock_timestamp() - pause;
  RETURN date_trunc('second', pause + '500 ms');
END $$;
SELECT format('%s', c) FROM generate_series(1, 12), unnest(ARRAY['CALL evpg_run()', 'DO $$BEGIN PERFORM time_passes(); END$$']) WITH ORDINALITY x (c, o) ORDER BY generate_series, o \gexec
CALL evpg_run();
SELECT is(time_passes() || ' ' || attempts || ' ' || status, '00:00:30 0 running', 'rule 10: then after longer and longer pauses, up to half a minute; never counted') FROM evpg.consumer;
CREATE OR REPLACE FUNCTION test.never_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT coalesce(state, '{}') || jsonb_build_object('n', event.data->'n') $$;
CALL evpg_run();
SELECT is(rows_of('never'), 'n: 1.3 {"n": 3}', 'rule 10: until it succeeds');
SELECT is((SELECT retry_at FROM evpg.consumer), NULL, 'rule 10: which ends the pauses');
RESET statement_timeout;
SELECT evpg_drop_projection('never') \g /dev/null

-- ------------------------------------------------------------------ a rebuild that cannot end for an open appender

SELECT evpg_register_projection('open', 'test.sum_apply', start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('o', 1) \g /dev/null
SELECT dblink_exec('listener', 'BEGIN') \g /dev/null
SELECT * FROM dblink('listener', $$SELECT add('o', 2)$$) x (position bigint) \g /dev/null
SELECT evpg_rebuild_projection('open', background => true) \g /dev/null
CALL evpg_run();
SELECT is((SELECT attempts || ' ' || last_error FROM evpg.progress_rebuild), '0 the rebuild cannot end while a transaction that has appended stays open', 'rule 13: a rebuild does not queue for the fence behind a transaction that stays open');
SELECT is(time_passes(), '1 s', 'rule 13: it looks again a second later');
CALL evpg_run();
SELECT is(time_passes(), '2 s', 'rule 13: then after longer pauses');
SELECT dblink_exec('listener', 'COMMIT') \g /dev/null
CALL evpg_run();
SELECT is(row_of('open', 'o') || (SELECT count(*) FROM evpg.rebuild), '2.2 {"sum": 3, "count": 2}0', 'rule 13: until the transaction is over');
SELECT evpg_drop_projection('open') \g /dev/null

-- ------------------------------------------------------------------ dropping a projection while a batch of its rebuild runs

-- A batch waits for who holds the lock.
CREATE FUNCTION test.held_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN state; END $$;
CREATE FUNCTION test.wait_until(condition text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  holds boolean := false;
BEGIN
  FOR look IN 1 .. 1000 LOOP
    EXECUTE condition INTO holds;
    EXIT WHEN holds;
    PERFORM pg_sleep(0.01);
  END LOOP;
  RETURN holds;
END $$;
SELECT dblink_connect('runner', format('host=%s port=%s user=%s dbname=%s', split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port'), current_user, current_database())) \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'before', (SELECT array_agg(evpg_event('Added', '{"n": 0}')) FROM generate_series(1, 2500) n)) \g /dev/null
CREATE PROCEDURE test.hold_rebuild(change text) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM evpg_register_projection('held', 'test.held_apply', mode => 'async'), evpg_pause_consumer('held'), evpg_rebuild_projection('held', background => true);
  PERFORM pg_advisory_lock(42);
  COMMIT;
  PERFORM dblink_send_query('runner', 'CALL evpg_run()');
  PERFORM wait_until('SELECT count(*) = 1 FROM pg_locks WHERE locktype = ''advisory'' AND objid = 42 AND NOT granted');
  PERFORM dblink_send_query('listener', change);
END $$;
CALL hold_rebuild($$SELECT evpg_register_projection('held', 'test.held_apply', mode => 'async', version => 2)$$);
SELECT is(wait_until($$SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 17753 AND NOT granted$$), true, 'rule 13: who registers a projection again waits for a batch of its rebuild');
-- before a deadlock would be found
SET lock_timeout = '500ms';
SELECT is(error_of($$SELECT add('meanwhile', 0)$$), 'no error', 'rule 13: but keeps nobody from appending meanwhile');
RESET lock_timeout;
SELECT pg_advisory_unlock(42) \g /dev/null
SELECT * FROM dblink_get_result('listener') x (r text) \g /dev/null
SELECT * FROM dblink_get_result('listener') x (r text) \g /dev/null
SELECT * FROM dblink_get_result('runner') x (r text) \g /dev/null
SELECT * FROM dblink_get_result('runner') x (r text) \g /dev/null
SELECT is((SELECT version FROM evpg.projection WHERE name = 'held'), 2, 'rule 13: and then does it');
SELECT evpg_drop_projection('held') \g /dev/null
CALL hold_rebuild($$SELECT evpg_drop_projection('held')$$);
SELECT is(wait_until($$SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 17753 AND NOT granted$$), true, 'rule 13: who drops a projection waits for a batch of its rebuild');
-- before a deadlock would be found
SET lock_timeout = '500ms';
SELECT is(error_of($$SELECT add('meanwhile', 0)$$), 'no error', 'rule 13: but keeps nobody from appending meanwhile');
RESET lock_timeout;
SELECT pg_advisory_unlock(42) \g /dev/null
SELECT * FROM dblink_get_result('listener') x (r text) \g /dev/null
SELECT * FROM dblink_get_result('listener') x (r text) \g /dev/null
SELECT * FROM dblink_get_result('runner') x (r text) \g /dev/null
SELECT * FROM dblink_get_result('runner') x (r text) \g /dev/null
SELECT is((SELECT count(*) FROM evpg.projection WHERE name = 'held') + (SELECT count(*) FROM evpg.rebuild), 0::bigint, 'rule 13: and then does it');
CALL evpg_run();

-- ------------------------------------------------------------------ rows of old builds

CREATE FUNCTION test.left_over() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT count(*) FROM evpg.projection_state WHERE build NOT IN (SELECT build FROM evpg.projection) $$;
SELECT evpg_register_projection(name, 'test.sum_apply', mode => mode, start_position => (SELECT last_value FROM evpg.event_position)) FROM (VALUES ('many', 'inline'), ('few', 'inline'), ('seen', 'async')) x (name, mode) \g /dev/null
SELECT evpg_put_projection('many', 'k' || n, '{}') FROM generate_series(1, 6000) n \g /dev/null
SELECT evpg_put_projection(name, 'k', '{}') FROM unnest('{few,seen}'::text[]) name \g /dev/null
SELECT left_over() AS before \gset
SELECT evpg_rebuild_projection('many') \g /dev/null
SELECT is(left_over() - :before, 1000::bigint, 'rule 13: a rebuild deletes the first old rows itself');
SELECT evpg_rebuild_projection('few') \g /dev/null
SELECT is(left_over() - :before, 1000::bigint, 'rule 13: and none of another projection, for which appenders would wait');
SELECT is((SELECT count(*) FROM evpg.old_build), 1::bigint, 'rule 13: a pass does the rest');
-- who owns the consumer has the rows to himself
SELECT dblink_exec('listener', 'BEGIN') \g /dev/null
SELECT * FROM dblink('listener', $$SELECT evpg_cancel_rebuild('many')$$) x (cancelled boolean) \g /dev/null
CALL evpg_run();
SELECT is(left_over() - :before, 1000::bigint, 'rule 13: old rows are deleted by who owns the consumer');
SELECT dblink_exec('listener', 'COMMIT') \g /dev/null
-- dropped and registered again, it gets none of the keys that went with the rows
SELECT evpg_drop_projection('many'), evpg_register_projection('many', 'test.sum_apply') \g /dev/null
CALL evpg_run();
SELECT is(left_over() || ' ' || (SELECT count(*) FROM evpg.old_build) || ' ' || (SELECT count(*) FROM stored WHERE name = 'many'), '0 0 0', 'rule 13: nothing is left of a projection that was dropped');
-- a large one is dropped in an instant
SELECT evpg_put_projection('many', 'k' || n, '{}') FROM generate_series(1, 6000) n \g /dev/null
SELECT evpg_drop_projection('many') \g /dev/null
SELECT is(left_over(), 1000::bigint, 'rule 13: most rows of a large one are not deleted by who drops it');
CALL evpg_run();
SELECT is(left_over() + (SELECT count(*) FROM evpg.old_build), 0::bigint, 'rule 13: but by a pass');
-- each batch of a rebuild is a transaction
SELECT evpg_register_projection('many', 'test.sum_apply', event_types => '{Small}', start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT count(add('many' || n, 1, 'Small')) FROM generate_series(1, 3000) n \g /dev/null
SELECT evpg_rebuild_projection('many', background => true) \g /dev/null
SET evpg.test_mutation = small_batches;
CALL evpg_run();
RESET evpg.test_mutation;
SELECT cmp_ok((SELECT count(DISTINCT s.xmin::text) FROM evpg.projection_state s JOIN evpg.projection USING (build) WHERE name = 'many'), '>', 3::bigint, 'rule 13: a rebuild has batches');
SELECT evpg_drop_projection(name) FROM evpg.projection \g /dev/null

-- ------------------------------------------------------------------ an index that is dropped while a consumer is about to use it

SELECT evpg_enable_index('event_type') \g /dev/null
SELECT evpg_register_projection('indexed', 'test.sum_apply', mode => 'async', event_types => '{Rare}', max_attempts => 1) \g /dev/null
SELECT add('i', 1, 'Rare') \g /dev/null
SELECT dblink_exec('listener', 'BEGIN') \g /dev/null
SELECT * FROM dblink('listener', $$SELECT evpg_enable_index('event_type', false)$$) x (changed boolean) \g /dev/null
SELECT dblink_send_query('runner', 'CALL evpg_run()') \g /dev/null
SELECT is(wait_until($$SELECT count(*) > 0 FROM pg_locks WHERE relation = 'evpg.event_log'::regclass AND NOT granted$$), true, 'rule 10: a consumer waits while an index of the log is dropped');
SELECT dblink_exec('listener', 'COMMIT') \g /dev/null
SELECT * FROM dblink_get_result('runner') x (r text) \g /dev/null
SELECT * FROM dblink_get_result('runner') x (r text) \g /dev/null
SELECT is((SELECT status || ' ' || errors_total FROM evpg.consumer WHERE name = 'indexed') || ' ' || rows_of('indexed'), 'running 0 i: 1.1 {"sum": 0, "count": 1}', 'rule 10: and then does without it');
SELECT evpg_drop_projection('indexed') \g /dev/null

-- ------------------------------------------------------------------ events that were given up long ago

SELECT evpg_register_projection('gone', 'test.list_apply', mode => 'async', on_error => 'park', max_attempts => 1, start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('g', 1) \g /dev/null
SELECT add('g', 2) AS second \gset
SELECT add('g', 3) \g /dev/null
SELECT add('h', 4) \g /dev/null
SELECT evpg_skip_event('gone', :second, 'no use') \g /dev/null
SET test.break = 3;
CALL evpg_run();
RESET test.break;
SELECT is(rows_of('gone'), 'g: 1.1 [1], h: 1.1 [4]', 'rule 10: an event is given up before it is read, the next one is parked');
SELECT is(evpg_replay_parked('gone') || ' ' || row_of('gone', 'g'), '1 1.2 [1, 3]', 'rule 10: a replay leaves alone what was given up');
SELECT is(evpg_rebuild_projection('gone', 'g') || ' ' || row_of('gone', 'g'), '2 2.2 [1, 3]', 'rule 13: so does a rebuild of a key');
SELECT evpg_rebuild_projection('gone') \g /dev/null
SELECT is(rows_of('gone'), 'g: 3.2 [1, 3], h: 3.1 [4]', 'rule 13: and one of all keys');
SELECT evpg_drop_projection('gone') \g /dev/null

-- ------------------------------------------------------------------ tables that are none of a projection

CREATE SCHEMA other;
CREATE TABLE other.mine (id text);
SELECT alike(error_of(format($$SELECT evpg_register_projection('mine', handler => 'test.mine_write', tables => %L)$$, tables)), error, 'rule 13: refused: ' || tables)
  FROM (VALUES ('{pg_catalog.pg_class}', '42809 "pg_catalog.pg_class" cannot be%'), ('{evpg.event_log}', '42809 "evpg.event_log" cannot be%'), ('{mine,test.mine}', '22023 two tables of a projection have the name "mine"%'), ('{mine,other.mine}', '22023 two tables of a projection have the name "mine"%')) x (tables, error);

SELECT * FROM finish();
