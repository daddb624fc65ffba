-- user_code.sql: user functions that change what is being used while it is used: the server stays up, nothing of another
-- role or another function slips in, and a refusal leaves no trace (rules 5, 7 and 8).

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';

SELECT plan(46);

CREATE SCHEMA app;
CREATE FUNCTION app.same(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS $$ SELECT state $$;
CREATE FUNCTION app.count(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS
  $$ SELECT jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1) $$;
CREATE FUNCTION app.add(state jsonb, command evpg.command) RETURNS SETOF evpg.new_event LANGUAGE sql STABLE AS
  $$ SELECT evpg_event('Added', command.data) FROM generate_series(1, coalesce((command.data->>'times')::int, 1)) $$;
CREATE TABLE app.log (line text);
SELECT evpg_register_aggregate('plain', 'app.add', 'app.same') \g /dev/null

-- ------------------------------------------------------------------ functions that go, or become others, in mid-command

CREATE FUNCTION app.gone(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS $$ SELECT state $$;
CREATE FUNCTION app.drops(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
BEGIN DROP FUNCTION app.gone(jsonb, evpg.event); RETURN evpg_event('Added'); END $$;
SELECT evpg_register_aggregate('drops', 'app.drops', 'app.gone') \g /dev/null
SELECT throws_ok($$SELECT evpg_execute('drops', '1', 'X')$$, '42883', NULL, 'a handler drops the reducer: an error');
SELECT is(evpg_stream_version('drops', '1'), NULL, 'a handler that drops the reducer leaves no stream [rule 5]');

CREATE FUNCTION app.turns(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS $$ SELECT state $$;
CREATE FUNCTION app.replaces(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
BEGIN
  IF command.command_type = 'Evil' THEN
    DROP FUNCTION app.turns(jsonb, evpg.event);
    CREATE FUNCTION app.turns(state jsonb, event evpg.event) RETURNS bigint LANGUAGE sql AS 'SELECT 1311768467463790320';
  END IF;
  RETURN evpg_event('Added');
END $$;
SELECT evpg_register_aggregate('turns', 'app.replaces', 'app.turns') \g /dev/null
SELECT lives_ok($$SELECT evpg_execute('turns', '1', 'Good')$$, 'a reducer works');
SELECT throws_ok($$SELECT evpg_execute('turns', '1', 'Evil')$$, '42883', NULL,
  'a handler replaces it by one of another type: an error, nothing is read from it');
SELECT is(evpg_stream_version('turns', '1'), 1::bigint,
  'a reducer that a handler replaced by one of another type: no event [rule 5]');
DROP FUNCTION app.turns(jsonb, evpg.event);
CREATE FUNCTION app.turns(state jsonb, event evpg.event) RETURNS bigint LANGUAGE sql AS 'SELECT 1311768467463790320';
SELECT throws_like($$SELECT evpg_execute('turns', '1', 'Good')$$, '%cannot serve as reducer%',
  'the next command finds that it cannot serve as reducer');

-- ------------------------------------------------------------------ tables of evpg whose rows are being replaced

CREATE FUNCTION app.runs(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
BEGIN EXECUTE coalesce(command.data->>'handler', 'SELECT'); RETURN evpg_event('Added', command.data); END $$;
CREATE FUNCTION app.runs_inline(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN EXECUTE coalesce(event.data->>'inline', 'SELECT'); RETURN app.count(state, event); END $$;
CREATE FUNCTION app.runs_first(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN EXECUTE coalesce(command.data->>'interceptor', 'SELECT'); RETURN command; END $$;
SELECT evpg_register_aggregate('runs', 'app.runs', 'app.count'),
  evpg_register_interceptor('runs', 'app.runs_first', '{runs}'),
  evpg_register_projection('runs', 'app.runs_inline', aggregate_types => '{runs}') \g /dev/null
SELECT count(*) FROM generate_series(1, 9) n, LATERAL evpg_execute('runs', n::text, 'X') \g /dev/null
SELECT is(left(error_of(format('SELECT evpg_execute(%L, %L, %L, %L)', 'runs', '5', 'X',
  jsonb_build_object(kind, statement))), 5), '55006', kind || ': ' || statement || ' [rule 5]')
  FROM unnest('{handler,inline}'::text[]) kind,
    unnest('{ALTER TABLE evpg.stream ADD COLUMN x int,ALTER TABLE evpg.stream ALTER COLUMN aggregate_id '
    'TYPE varchar,CLUSTER evpg.stream USING stream_pkey,DROP EXTENSION evpg CASCADE}'::text[]) statement;
SELECT is(left(error_of(format('SELECT evpg_execute(%L, %L, %L, %L)', 'runs', '5', 'X',
  jsonb_build_object('inline', statement))), 5), '55006', 'inline: ' || statement || ' [rule 5]')
  FROM unnest('{TRUNCATE evpg.projection_state,CLUSTER evpg.projection_state USING projection_state_pkey}'::text[])
    statement;
SELECT is(left(error_of($$SELECT evpg_execute('runs', '5', 'X', '{"interceptor": "DROP EXTENSION evpg CASCADE"}')$$), 5),
  '55006', 'interceptor: DROP EXTENSION evpg [rule 5]');
CREATE FUNCTION app.runs_listening(event evpg.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN EXECUTE coalesce(event.data->>'listener', 'SELECT'); END $$;
SELECT evpg_register_listener('runs', 'app.runs_listening', '{runs}') \g /dev/null
SELECT is(left(error_of(format('SELECT evpg_execute(%L, %L, %L, %L)', 'runs', '5', 'X',
  jsonb_build_object('listener', statement))), 5), '55006', 'listener: ' || statement || ' [rule 5]')
  FROM unnest('{CLUSTER evpg.stream USING stream_pkey,DROP EXTENSION evpg CASCADE}'::text[]) statement;
SELECT is(error_of(format('SELECT evpg_execute(%L, %L, %L, %L)', 'runs', '6', 'X',
  jsonb_build_object('listener', statement))), 'no error', 'listener: ' || statement || ' [rule 5]')
  FROM unnest(ARRAY[$$SELECT evpg_drop_listener('runs'), evpg_drop_projection('runs')$$,
    $$SELECT evpg_register_listener('runs', 'app.runs_listening', '{runs}', priority => 7)$$]) statement;
SELECT evpg_register_listener('runs', 'app.runs_listening', '{runs}') \g /dev/null
SELECT is((SELECT count(*) FROM evpg_streams('runs') WHERE aggregate_id = '6'), 1::bigint, 'its command has succeeded');
CREATE FUNCTION app.runs_async(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN EXECUTE coalesce(event.data->>'async', 'SELECT'); RETURN app.count(state, event); END $$;
SELECT evpg_register_projection('runs_async', 'app.runs_async', mode => 'async', aggregate_types => '{runs}',
  on_error => 'park', max_attempts => 1) \g /dev/null
CALL evpg_run();
SELECT count(*) FROM evpg_execute('runs', '5', 'X', '{"async": "TRUNCATE evpg.projection_state"}') \g /dev/null
CALL evpg_run();
SELECT is((SELECT sqlstate FROM evpg.parked_event WHERE name = 'runs_async'), '55006',
  'asynchronous: TRUNCATE evpg.projection_state [rule 10]');
CREATE FUNCTION app.runs_saga(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
BEGIN EXECUTE coalesce(event.data->>'saga', 'SELECT'); RETURN evpg_reaction(state); END $$;
SELECT evpg_register_aggregate('reacted', 'app.add', 'app.count'),
  evpg_register_saga('reacts_' || mode, 'app.runs_saga', aggregate_types => '{reacted}', max_attempts => 1, mode => mode)
  FROM unnest('{async,inline}'::text[]) mode \g /dev/null
CREATE TABLE app.statement AS SELECT * FROM
  unnest('{TRUNCATE evpg.saga_instance,CLUSTER evpg.saga_instance USING saga_instance_pkey}'::text[])
    WITH ORDINALITY s(line, n);
SELECT count(*) FROM app.statement, LATERAL evpg_execute('reacted', n::text, 'Add') \g /dev/null
CALL evpg_run();
SELECT count(*) FROM app.statement, LATERAL evpg_execute('reacted', n::text, 'Add', jsonb_build_object('saga', line))
  \g /dev/null
CALL evpg_run();
SELECT is((SELECT sqlstate FROM evpg.dead_letter WHERE saga = 'reacts_' || mode AND key = n::text), '55006',
  mode || ' saga: ' || line || ' [rule 17]') FROM unnest('{async,inline}'::text[]) mode, app.statement;
SELECT evpg_drop_saga('reacts_' || mode) FROM unnest('{async,inline}'::text[]) mode \g /dev/null

-- ------------------------------------------------------------------ the context

CREATE FUNCTION app.talks(state jsonb, command evpg.command) RETURNS SETOF evpg.new_event LANGUAGE plpgsql AS $$
BEGIN
  PERFORM evpg_set_context(actor => 'the handler, a name that is long', correlation_id => 'inner');
  PERFORM set_config('search_path', 'app, pg_catalog', false);
  RETURN NEXT public.evpg_event('Added'); RETURN NEXT public.evpg_event('Added');
END $$;
SELECT evpg_register_aggregate('talks', 'app.talks', 'app.same') \g /dev/null
SELECT current_setting('search_path') AS path \gset
BEGIN;
SELECT evpg_set_context(actor => 'alice, a name that is long', correlation_id => 'outer') \g /dev/null
SELECT same($$SELECT actor, correlation_id FROM evpg_execute('talks', '1', 'X')$$,
  $$VALUES ('alice, a name that is long', 'outer'), ('alice, a name that is long', 'outer')$$,
    'what a handler sets is not the context of its command [A20]');
COMMIT;
SELECT is(current_setting('search_path'), :'path',
  'what a handler sets is not the context of its command, and no setting outlives it [section 9]');

-- ------------------------------------------------------------------ refusals leave no trace

CREATE FUNCTION app.writes(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO app.log VALUES (command.aggregate_id);
  PERFORM evpg_execute('plain', 'nested-' || command.aggregate_id, 'Add');
  RETURN evpg_event('Added');
END $$;
CREATE FUNCTION app.never(state jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$;
SELECT evpg_register_aggregate('writes', 'app.writes', 'app.same', invariant => 'app.never') \g /dev/null
SELECT is((SELECT status FROM evpg_try_execute('writes', '1', 'X')), 'invariant',
  'a handler that wrote is refused by the invariant [rule 5]');
SELECT is_empty($$SELECT * FROM app.log$$, 'what it wrote is gone [rule 5]');
SELECT is(evpg_stream_version('plain', 'nested-1'), NULL, 'what a handler executed before its error is gone [rule 5]');
SELECT throws_ok($$SELECT evpg_execute('writes', '1', 'X')$$, 'VE006', NULL, 'as an error [rule 5]');
SELECT is_empty($$SELECT * FROM app.log$$, 'the same [rule 5]');

CREATE FUNCTION app.creates(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
BEGIN INSERT INTO app.log VALUES ('once'); PERFORM evpg_create_stream('creates', command.aggregate_id);
  RETURN evpg_event('Added'); END $$;
SELECT evpg_register_aggregate('creates', 'app.creates', 'app.same') \g /dev/null
SELECT throws_ok($$SELECT evpg_execute('creates', '1', 'X')$$, 'VE020', NULL, 'a handler does not create its own stream');

-- a defect of the log is one with a projection, too (rule 8)
CREATE FUNCTION app.one_id(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS
  $$ SELECT evpg_event('Added', event_id => '00000000-0000-7000-8000-000000000001') $$;
SELECT evpg_register_aggregate('one_id', 'app.one_id', 'app.same') \g /dev/null
SELECT lives_ok($$SELECT evpg_try_execute('one_id', '1', 'X')$$, 'an event with an id of its own');
SELECT throws_ok($$SELECT evpg_try_execute('one_id', '2', 'X')$$, '23505', NULL,
  'the same id again is no domain answer [rule 8]');
SELECT evpg_register_projection('one_id', reducer => 'app.count', aggregate_types => '{one_id}') \g /dev/null
SELECT throws_ok($$SELECT evpg_try_execute('one_id', '2', 'X')$$, '23505', NULL,
  'a refusal by a projection is no domain answer for the same id [rule 8]');

-- ------------------------------------------------------------------ snapshots belong to the fold that made them

SELECT evpg_register_aggregate('fold', 'app.add', 'app.count', snapshot_every => 1) \g /dev/null
SELECT evpg_execute('fold', '1', 'Add', '{"times": 2}') \g /dev/null
SELECT is((SELECT count(*) FROM evpg.snapshot JOIN evpg.stream USING (stream_id) WHERE aggregate_type = 'fold'), 1::bigint,
  'a snapshot [B14]');
CREATE FUNCTION app.tens(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS
  $$ SELECT jsonb_build_object('total', coalesce((state->>'total')::int, 0) + 10) $$;
SELECT is(evpg_register_aggregate('fold', 'app.add', 'app.tens', snapshot_every => 1), true,
  'another reducer is registered [rule 7]');
SELECT is((SELECT state FROM evpg_state('fold', '1')), '{"total": 20}',
  'it is not started from a state that it never made [rule 7]');
SELECT evpg_drop_aggregate('fold') \g /dev/null
SELECT evpg_register_aggregate('fold', 'app.add', 'app.count', snapshot_every => 1) \g /dev/null
SELECT is((SELECT state FROM evpg_state('fold', '1')), '{"n": 2}',
  'a state is not started after the type was dropped [rule 7]');

-- ------------------------------------------------------------------ memory and cursors

CREATE FUNCTION app.lost(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
SELECT evpg_register_projection('lost', reducer => 'app.lost', aggregate_types => '{plain}') \g /dev/null
DROP FUNCTION app.lost(jsonb, evpg.event);
DO $$ BEGIN FOR i IN 1..2000 LOOP
  BEGIN PERFORM evpg_execute('plain', 'x', 'Add'); EXCEPTION WHEN undefined_function THEN NULL; END;
END LOOP; END $$;
SELECT cmp_ok(
  (SELECT sum(total_bytes) FROM pg_backend_memory_contexts WHERE name IN ('EvpgRegistrationList', 'EvpgFunction')),
  '<', 200000::numeric,
  'a projection whose function is gone costs no memory');
SELECT evpg_drop_projection('lost') \g /dev/null

CREATE FUNCTION app.closes(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE c refcursor; n text;
BEGIN
  SELECT name INTO n FROM pg_cursors WHERE statement LIKE 'SELECT * FROM evpg.event e%';
  IF n IS NOT NULL THEN c := n; CLOSE c; END IF;
  RETURN event.data;
END $$;
SELECT evpg_execute('plain', 'many', 'Add', '{"times": 1500}') \g /dev/null
SELECT evpg_register_projection('closes', reducer => 'app.closes', aggregate_types => '{plain}') \g /dev/null
SELECT throws_like($$SELECT evpg_rebuild_projection('closes', 'many')$$, '%pinned portal%',
  'a projection cannot close the cursor of its rebuild [rule 13]');
SELECT evpg_drop_projection('closes') \g /dev/null

-- folding much into one key keeps one state at a time
CREATE FUNCTION app.large(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS
  $$ SELECT jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1, 'text', repeat('x', 10000)) $$;
SELECT evpg_register_projection('large', reducer => 'app.large', aggregate_types => '{plain}', broadcast => 'none')
  \g /dev/null
SELECT lives_ok($$SELECT evpg_execute('plain', 'large', 'Add', '{"times": 3000}')$$,
  'many events for one key with a large state [rule 11]');
SELECT is((SELECT state->>'n' FROM evpg_projection('large', 'large')), '3000', 'each is applied [rule 11]');
SELECT * FROM finish();
