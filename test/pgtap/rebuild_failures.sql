-- rebuild_failures.sql: what makes a rebuild fail that no event is to blame for, and what becomes of the events and rows
-- (rules 10 and 13).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(11);
SET test.kind = counter;
SELECT add('first', 0) \g /dev/null

-- ------------------------------------------------------------------ a table of a projection is gone during its rebuild

SELECT format('CREATE TABLE test.t%s (k text)', n) FROM generate_series(1, 30) n \gexec
CREATE FUNCTION test.first_write(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO t1 VALUES (event.aggregate_id);
  RETURN NULL;
END $$;
SELECT evpg_register_projection('tables', handler => 'test.first_write', mode => 'async', tables => array_agg('t' || n),
  max_attempts => 10) FROM generate_series(1, 30) n \g /dev/null
SELECT evpg_rebuild_projection('tables', background => true) \g /dev/null
DROP TABLE t30;
SELECT v FROM (VALUES ('CALL evpg_run()'), ('DO $$BEGIN PERFORM now_due(); END$$')) s (v), generate_series(1, 9)
  ORDER BY generate_series, v \gexec
SELECT is((SELECT concat_ws(' ', phase, attempts, last_error) FROM evpg.progress_rebuild),
  'replay 9 relation "test.t30" does not exist',
  'a rebuild without one of its tables fails, again and again, in one session [rule 13]');
CALL evpg_run();
SELECT is((SELECT phase FROM evpg.progress_rebuild), 'failed', 'up to max_attempts [rule 13]');
SELECT evpg_drop_projection('tables') \g /dev/null

-- ------------------------------------------------------------------ a rebuild that fails at no event

CREATE TABLE test.parent (id text PRIMARY KEY);
CREATE TABLE test.child (id text REFERENCES test.parent);
ALTER TABLE test.child REPLICA IDENTITY FULL;
CREATE FUNCTION test.child_write(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO child VALUES (event.aggregate_id);
  RETURN NULL;
END $$;
INSERT INTO parent VALUES ('s1'), ('s2'), ('s3');
SELECT evpg_register_projection('child', handler => 'test.child_write', mode => 'async', tables => '{child}',
  on_error => 'skip', max_attempts => 2, start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('s1', 1), add('s2', 2), add('s3', 3) \g /dev/null
CALL evpg_run();
DELETE FROM child WHERE id = 's1';
DELETE FROM parent WHERE id = 's1';
SELECT evpg_rebuild_projection('child', background => true) \g /dev/null
CALL evpg_run();
SELECT now_due() \g /dev/null
CALL evpg_run();
SELECT alike((SELECT concat_ws(' ', phase, attempts, last_error) FROM evpg.progress_rebuild),
  'failed 2 insert or update on table "child" violates foreign key constraint%',
  'contents that the table refuses fail the rebuild [rule 13]');
SELECT is(parked_of('child'), '',
  'contents that the table refuses fail the rebuild, and no event is skipped for it [rule 13]');
SELECT is((SELECT string_agg(id, ' ' ORDER BY id) FROM child), 's2 s3', 'the old rows stay [rule 13]');
INSERT INTO parent VALUES ('s1');
-- an event that fails is skipped as ever
CREATE OR REPLACE FUNCTION test.child_write(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO child SELECT event.aggregate_id WHERE 1 / (3 - (event.data->>'n')::int) IS NOT NULL;
  RETURN NULL;
END $$;
SELECT evpg_cancel_rebuild('child'), evpg_rebuild_projection('child', background => true) \g /dev/null
CALL evpg_run();
SELECT now_due() \g /dev/null
CALL evpg_run();
SELECT now_due() \g /dev/null
CALL evpg_run();
SELECT is(parked_of('child') || (SELECT count(*) FROM evpg.progress_rebuild),
  '- 3 tried 2 division by zero 22012 skipped: division by zero0', 'an event that fails is skipped [rule 13]');
SELECT is((SELECT string_agg(id, ' ' ORDER BY id) FROM child), 's1 s2', 'it alone [rule 13]');
SELECT evpg_drop_projection('child') \g /dev/null

-- ------------------------------------------------------------------ a row that cannot be written

CREATE FUNCTION test.number_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('x', coalesce(state->'x', '0'), 'n', coalesce((state->>'n')::int, 0) + 1)
    || CASE WHEN event.data->>'n' = '2' THEN '{"x": "none"}' ELSE '{}' END::jsonb
$$;
SELECT evpg_register_projection('number', 'test.number_apply', mode => 'async', on_error => on_error, max_attempts => 1,
  start_position => (SELECT last_value FROM evpg.event_position)) FROM unnest('{skip}'::text[]) on_error \g /dev/null
CREATE INDEX number_x ON evpg.projection_state (((state->>'x')::int));
SELECT add('w', 1), add('v', 1), add('w', 2), add('w', 3), add('v', 3) \g /dev/null
-- draws a position above those of the events
SELECT evpg_put_projection('number', 'w', '{"n": 10}') \g /dev/null
SET statement_timeout = '120s';
CALL evpg_run(100);
RESET statement_timeout;
SELECT is(parked_of('number'),
  'w 2 tried 1 invalid input syntax for type integer: "none" 22P02 skipped: invalid input syntax for type integer: "none"',
  'a row that cannot be written is blamed on the event that spoils it [rule 10]');
SELECT is(rows_of('number'), 'v: 1.2 {"n": 2, "x": 0}, w: 1.3 {"n": 12, "x": 0}', 'the others are applied [rule 10]');
-- in a rebuild that is not known, so none is skipped
DELETE FROM evpg.parked_event;
SELECT evpg_rebuild_projection('number', background => true) \g /dev/null
CALL evpg_run();
SELECT alike((SELECT phase || ' ' || last_error FROM evpg.progress_rebuild), 'failed invalid input syntax%',
  'a rebuild fails for a row that cannot be written [rule 13]');
SELECT is(parked_of('number'), '', 'no event is skipped for it [rule 13]');
DROP INDEX evpg.number_x;
SELECT evpg_drop_projection('number') \g /dev/null
SELECT * FROM finish();
