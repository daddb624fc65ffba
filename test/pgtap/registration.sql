-- registration.sql: functions as aggregates: what they may be, and what happens when they change.

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(175);
SET test.kind = counter;

SELECT is(error_fields($$SELECT evpg_register_aggregate('x', handler => 'test.counter_handle')$$),
  '|A handler decides by the state that the reducer makes of the events.|'
  'Give handler and reducer, or neither of them, nor an invariant or a boundary, for a type that only stores events.',
  'a missing reducer is explained');

-- what may be a handler, a reducer, an invariant
CREATE FUNCTION test.h_one(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT evpg_event('One') $$;
CREATE FUNCTION test.h_set(state jsonb, command evpg.command) RETURNS SETOF evpg.new_event LANGUAGE sql AS $$
  SELECT (evpg_event('Set')).* UNION ALL SELECT (evpg_event('Set')).* $$;
CREATE FUNCTION test.h_json(state jsonb, command evpg.command) RETURNS jsonb LANGUAGE sql AS $$ SELECT command.data $$;
CREATE FUNCTION test.h_json_set(state jsonb, command evpg.command) RETURNS SETOF jsonb LANGUAGE sql AS $$
  SELECT command.data $$;
CREATE FUNCTION test.h_strict(state jsonb, command evpg.command) RETURNS jsonb LANGUAGE sql STRICT AS $$
  SELECT command.data $$;
CREATE FUNCTION test.h_text(state jsonb, command evpg.command) RETURNS text LANGUAGE sql AS $$ SELECT ''::text $$;
CREATE FUNCTION test.h_json_arg(state jsonb, command jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT command $$;
CREATE FUNCTION test.h_few(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE FUNCTION test.h_more(state jsonb, command evpg.command, more int DEFAULT 1) RETURNS jsonb LANGUAGE sql AS $$
  SELECT state $$;
CREATE FUNCTION test.h_record(state jsonb, command evpg.command) RETURNS SETOF record LANGUAGE sql AS $$ SELECT 1, 2 $$;
CREATE PROCEDURE test.h_procedure(state jsonb, command evpg.command) LANGUAGE sql AS $$ SELECT 1 $$;
CREATE FUNCTION test.r_same(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT state $$;
CREATE FUNCTION test.r_strict(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STRICT AS $$ SELECT state $$;
CREATE FUNCTION test.r_set(state jsonb, event evpg.event) RETURNS SETOF jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE FUNCTION test.r_text(state jsonb, event evpg.event) RETURNS text LANGUAGE sql AS $$ SELECT state::text $$;
CREATE FUNCTION test.i_text(state jsonb) RETURNS text LANGUAGE sql AS $$ SELECT state::text $$;
CREATE FUNCTION test.i_strict(state jsonb) RETURNS boolean LANGUAGE sql STRICT AS $$ SELECT true $$;
CREATE FUNCTION test.twice(state jsonb, command evpg.command) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE FUNCTION test.twice(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;

SELECT is(evpg_register_aggregate('good', h, 'test.r_same'), true, 'a handler that returns ' || what || ' [A01]')
  FROM (VALUES
  ('test.h_one'::regproc, 'an event'), ('test.h_set', 'a set of events'), ('test.h_json', 'jsonb')) x (h, what);
SELECT is(evpg_register_aggregate('overloaded', 'test.twice(jsonb, evpg.command)'::regprocedure, 'test.r_same'), true,
  'one of several functions of a name is given with its arguments');
SELECT refused(format('SELECT evpg_register_aggregate(%s)', args), error, args || ' [B24]') FROM (VALUES
  ($$'x', 'test.h_json_set', 'test.r_same'$$,
  '42P13 function test.h_json_set(pg_catalog.jsonb,evpg.command) cannot serve as handler'),
  ($$'x', 'test.h_strict', 'test.r_same'$$, '42P13 %because it is STRICT'),
  ($$'x', 'test.h_text', 'test.r_same'$$, '42P13 %cannot serve as handler'),
  ($$'x', 'test.h_json_arg', 'test.r_same'$$, '42P13 %cannot serve as handler'),
  ($$'x', 'test.h_few', 'test.r_same'$$, '42P13 %cannot serve as handler'),
  ($$'x', 'test.h_more', 'test.r_same'$$, '42P13 %cannot serve as handler'),
  ($$'x', 'test.h_record', 'test.r_same'$$, '42P13 %cannot serve as handler'),
  ($$'x', 'test.h_procedure', 'test.r_same'$$, '42P13 %cannot serve as handler'),
  ($$'x', 'pg_catalog.sum', 'test.r_same'$$, '42725 %'),
  ($$'x', 'pg_catalog.now', 'test.r_same'$$, '42P13 %cannot serve as handler'),
  ($$'x', 'test.r_same', 'test.r_same'$$, '42P13 %cannot serve as handler'),
  ($$'x', 'test.h_one', 'test.r_strict'$$, '42P13 %because it is STRICT'),
  ($$'x', 'test.h_one', 'test.r_set'$$, '42P13 %cannot serve as reducer'),
  ($$'x', 'test.h_one', 'test.r_text'$$, '42P13 %cannot serve as reducer'),
  ($$'x', 'test.h_one', 'test.h_one'$$, '42P13 %cannot serve as reducer'),
  ($$'x', 'test.h_one', 'test.r_same', invariant => 'test.i_text'$$, '42P13 %'),
  ($$'x', 'test.h_one', 'test.r_same', invariant => 'test.i_strict'$$, '42P13 %because it is STRICT'),
  ($$'x', 'test.nope', 'test.r_same'$$, '42883 %'), ($$'x', 'test.twice', 'test.r_same'$$, '42725 %'),
  ($$'x', 0, 'test.r_same'$$, '42883 %'),
  ($$'x', 'test.h_one'$$, '22004 reducer must not be null'),
  ($$'x', reducer => 'test.r_same'$$, '22004 handler must not be null'),
  ($$'x', invariant => 'test.counter_invariant'$$, '22004 handler must not be null'),
  ($$'x', 'test.h_one', 'test.r_same', library => 'evpg_test'$$, '22023 an aggregate is registered with either %'),
  ($$'x', 'test.h_one', 'test.r_same', symbol => 'counter'$$, '22023 an aggregate is registered with either %'),
  ($$'x', 'test.h_one', 'test.r_same', initial_state => NULL$$, '22004 initial state must not be null'),
  ($$'x', 'test.h_one', 'test.r_same', snapshot_every => -1$$, '22023 snapshot_every must be at least 0'),
  ($$'x', 'test.h_one', 'test.r_same', snapshot_every => NULL$$, '22004 snapshot_every must not be null'),
  ($$'x', 'test.h_one', 'test.r_same', snapshot_keep => 0$$, '22023 snapshot_keep must be at least 1'),
  ($$'x', 'test.h_one', 'test.r_same', reducer_version => 0$$, '22023 reducer_version must be at least 1')) x (args, error);
SELECT is(evpg_register_aggregate('scalar', 'test.h_json', 'test.r_same', initial_state => s), true,
  'the state of functions may be ' || s::text || ' [A01]') FROM unnest(ARRAY['null', '0', '"x"', '[1]']::jsonb[]) s;
SELECT is((SELECT status FROM evpg_try_execute('scalar', 'a', 'X', '{"type": "A"}')), 'ok',
  'a state that is no object is folded [A01]');
SELECT is((SELECT state FROM evpg_state('scalar', 'a')), '[1]', 'as it is [A01]');

-- what a handler that returns jsonb may return
SELECT same(format($$SELECT type, data, tags FROM evpg_execute('good', 'j', 'X', %L)$$, events), wanted,
  'jsonb of a handler: ' || coalesce(events, 'NULL') || ' [A02]') FROM (VALUES
  ('{"type": "A"}', $$VALUES ('A', NULL::jsonb, NULL::text[])$$),
  ('[{"type": "A", "data": 1}, {"type": "B", "tags": ["t"]}]',
  $$VALUES ('A', '1'::jsonb, NULL::text[]), ('B', NULL, '{t}')$$),
  ('[]', 'SELECT 1 WHERE false'), ('null', 'SELECT 1 WHERE false'), (NULL, 'SELECT 1 WHERE false')) x (events, wanted);
SELECT refused(format($$SELECT evpg_execute('good', 'j', 'X', %L)$$, events), error,
  'jsonb of a handler: ' || events || ' [A02]')
  FROM (VALUES
  ('{}', '22004 event type must not be null'), ('[{"type": "A"}, {}]', '22004 event type must not be null'),
  ('{"data": 1}', '22004 event type must not be null'), ('7', '22023 %'), ('"A"', '22023 %'), ('[1]', '22023 %'),
  ('[[{"type": "A"}]]', '22023 %'), ('[null]', '22023 %'), ('{"typ": "A"}', '22023 unknown key "typ" in event'),
  ('{"type": "A", "position": 1}', '22023 unknown key "position" in event'),
  ('{"type": "evpg.A"}', 'VE017 %'), ('[{"type": "A", "caused_by": 2}, {"type": "B"}]', '22023 caused_by %')) x (events,
  error);
SELECT is((SELECT array_agg(e.causation_id = f.event_id::text)
  FROM evpg_execute('good', 'c', 'X', '[{"type": "A"}, {"type": "B", "caused_by": 1}]') e,
  LATERAL (SELECT e.correlation_id AS event_id) f), ARRAY[NULL, true], 'caused_by in a handler [D47]');

-- rows of a handler
CREATE FUNCTION test.h_rows(state jsonb, command evpg.command) RETURNS SETOF evpg.new_event LANGUAGE plpgsql AS $$
BEGIN
  RETURN NEXT NULL;
  RETURN NEXT evpg_event('One');
  RETURN NEXT (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::evpg.new_event;
  RETURN NEXT CASE WHEN false THEN evpg_event('Never') END;
  RETURN NEXT evpg_event('Two');
END $$;
CREATE FUNCTION test.h_null(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$ SELECT CASE
  WHEN command.command_type = 'X' THEN evpg_event('One') END $$;
CREATE FUNCTION test.h_data(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT (NULL, '{"n": 1}', NULL, NULL, NULL, NULL, NULL, NULL)::evpg.new_event $$;
SELECT evpg_register_aggregate('rows', 'test.h_rows', 'test.r_same'),
  evpg_register_aggregate('null', 'test.h_null', 'test.r_same'),
  evpg_register_aggregate('data', 'test.h_data', 'test.r_same') \g /dev/null
SELECT same($$SELECT version, type FROM evpg_execute('rows', 'a', 'X')$$, $$VALUES (1::bigint, 'One'), (2, 'Two')$$,
  'rows of NULL are no events [A03]');
SELECT is((SELECT array_agg(status) FROM unnest('{X,Y}'::text[]) c, evpg_try_execute('null', 'a', c)), '{ok,noop}',
  'NULL is no event [A03]');
SELECT refused($$SELECT evpg_execute('data', 'a', 'X')$$, '22004 event type must not be null',
  'data without a type is an error [A02]');

-- a reducer that returns NULL, or raises
CREATE FUNCTION test.r_bad(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event.type = 'Null' THEN RETURN NULL; ELSIF event.type = 'Raise' THEN RAISE EXCEPTION 'cannot fold' USING ERRCODE
  = 'XX123'; ELSIF event.type = 'Reject' THEN PERFORM evpg_reject('late', 'too late'); END IF;
  RETURN state || '{"folded": true}';
END $$;
SELECT evpg_register_aggregate('bad', 'test.h_json', 'test.r_bad') \g /dev/null
SELECT refused(format($$SELECT %s('bad', 'a', 'X', '[{"type": "Good"}, {"type": "%s"}]')$$, f, type), error,
  'a reducer that does ' || type || ', in ' || f) FROM unnest('{evpg_execute,evpg_try_execute}'::text[]) f, (VALUES
  ('Null', 'VE009 reducer test.r_bad(pg_catalog.jsonb,evpg.event) returned null'), ('Raise', 'XX123 cannot fold'),
  ('Reject', 'VE002 too late')) x (type, error);
SELECT is((SELECT status FROM evpg_try_execute('bad', 'a', 'X', '{"type": "Good"}')), 'ok', 'the stream goes on [rule 6]');
SELECT count(*) FROM evpg_append('bad', 'a', evpg_events('{"type": "Null"}')) \g /dev/null
SELECT refused($$SELECT evpg_state('bad', 'a')$$, 'VE009 %', 'a reducer that returns NULL in a replay');
SELECT refused($$SELECT evpg_execute('bad', 'a', 'X', '{"type": "Good"}')$$, 'VE009 %',
  'a reducer that returns NULL, before a command');
SELECT is((SELECT version || ' ' || state FROM evpg_state('bad', 'a', at_version => 1)), '1 {"folded": true}',
  'the version before can be read');

-- CREATE OR REPLACE
SELECT is(test.try('change', 'AddEach', '{"ns": [1, 2, 3]}'), 'ok 3', 'three events [rule 6]');
SELECT is(test.total('change'), '3 6', 'their state [rule 6]');
CREATE OR REPLACE FUNCTION test.counter_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('total', (state->>'total')::bigint + 100 * (event.data->>'n')::bigint, 'applied',
  (state->>'applied')::bigint + 1) $$;
SELECT is(test.total('change'), '3 600', 'a reducer that is replaced counts at once [rule 6]');
SELECT is(test.try('change', 'Subtract', '{"n": 601}'), 'rejected 3 underflow', 'for the handler too [rule 6]');
BEGIN;
SAVEPOINT s;
CREATE OR REPLACE FUNCTION test.counter_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('total', (state->>'total')::bigint - (event.data->>'n')::bigint, 'applied', 0) $$;
SELECT is(test.total('change'), '3 -6', 'replaced in a transaction [rule 6]');
SELECT is(test.try('change', 'Add', '{"n": 4}'), 'ok 4', 'with a command [rule 6]');
SELECT is(test.total('change'), '4 -10', 'on its state [rule 6]');
ROLLBACK TO s;
SELECT is(test.total('change'), '3 600', 'what the replaced handler has folded is rolled back [rule 6]');
COMMIT;
CREATE OR REPLACE FUNCTION test.counter_handle(state jsonb, command evpg.command) RETURNS SETOF evpg.new_event
  LANGUAGE plpgsql AS $$ BEGIN RETURN NEXT evpg_event('Added', '{"n": 1}'); END $$;
SELECT is(test.try('change', 'Anything'), 'ok 4', 'a handler that is replaced counts at once');
SELECT is(test.total('change'), '4 700', 'the state goes on after the rollback [rule 6]');

-- changed into something else
DROP FUNCTION test.counter_handle(jsonb, evpg.command);
SELECT refused($$SELECT evpg_execute('counter', 'change', 'Add')$$,
  '42883 handler function test.counter_handle(pg_catalog.jsonb,evpg.command) does not exist', 'a handler that is dropped');
SELECT refused($$SELECT evpg_state('counter', 'change')$$, '42883 %', 'no state either, though the reducer is there');
CREATE FUNCTION test.counter_handle(state jsonb, command evpg.command) RETURNS text LANGUAGE sql AS $$ SELECT ''::text $$;
SELECT refused($$SELECT evpg_execute('counter', 'change', 'Add')$$,
  '42P13 function test.counter_handle(pg_catalog.jsonb,evpg.command) cannot serve as handler',
  'a handler that returns something else');
DROP FUNCTION test.counter_handle(jsonb, evpg.command);
CREATE FUNCTION test.counter_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT evpg_event('Added', '{"n": 1}') $$;
SELECT is(test.try('change', 'Anything'), 'ok 5', 'a handler made anew');
ALTER FUNCTION test.counter_handle(jsonb, evpg.command) RENAME TO counter_handle_2;
SELECT refused($$SELECT evpg_execute('counter', 'change', 'Add')$$, '42883 %', 'a handler that is renamed');
ALTER FUNCTION test.counter_handle_2(jsonb, evpg.command) RENAME TO counter_handle;
SELECT is(test.try('change', 'Anything'), 'ok 6', 'a handler that gets its name back works');

-- registering again
SELECT is(evpg_register_aggregate('again', 'test.h_json', 'test.r_same', initial_state => '{"v": 1}'), true,
  'registered [A12, B24]');
SELECT is((SELECT status FROM evpg_try_execute('again', 'a', 'X', '{"type": "A"}')), 'ok', 'used [B24]');
SELECT is((SELECT state FROM evpg_state('again', 'a')), '{"v": 1}', 'its state [B24]');
SELECT is(evpg_register_aggregate('again', 'test.h_json', 'test.r_same', initial_state => '{"v": 1}'), false,
  'the same changes nothing [B24]');
SELECT is(evpg_register_aggregate('again', 'test.h_json', 'test.r_same', initial_state => '{"v": 2}'), true,
  'another initial state [B24]');
SELECT is((SELECT state FROM evpg_state('again', 'a')), '{"v": 2}', 'counts at once [rule 6]');
BEGIN;
SAVEPOINT s;
SELECT is(evpg_register_aggregate('again', 'test.h_one', 'test.r_bad', initial_state => '{"v": 3}'), true,
  'in the middle of a transaction [B24]');
SELECT is((SELECT type FROM evpg_execute('again', 'a', 'X', '{"type": "A"}')), 'One', 'the new handler decides [B24]');
SELECT is((SELECT state FROM evpg_state('again', 'a')), '{"v": 3, "folded": true}', 'the new reducer folds [B24]');
ROLLBACK TO s;
SELECT is((SELECT type FROM evpg_execute('again', 'a', 'X', '{"type": "A"}')), 'A',
  'rolled back: the old handler decides [B24]');
SELECT is((SELECT state FROM evpg_state('again', 'a')), '{"v": 2}', 'the old reducer folds [B24, rule 6]');
COMMIT;
SELECT is((SELECT version || ' ' || state FROM evpg_state('again', 'a')), '2 {"v": 2}',
  'the old reducer keeps its state [B24]');
SELECT is(evpg_drop_aggregate('again'), true, 'dropped [B24]');
SELECT refused($$SELECT evpg_execute('again', 'a', 'X', '{"type": "A"}')$$, 'VE003 %', 'unknown then [B24]');
SELECT refused($$SELECT evpg_drop_aggregate('again')$$, 'VE003 aggregate type "again" is not registered',
  'dropped once [B24]');
SELECT is(evpg_drop_aggregate('again', true), false, 'a type that is not registered is dropped with missing_ok [B24]');
SELECT is((SELECT count(*) FROM evpg_read_stream('again', 'a')), 2::bigint, 'its events stay [B24]');
SELECT is(evpg_register_aggregate('again', 'test.h_json', 'test.r_bad', initial_state => '{"v": 4}'), true,
  'registered anew [B24]');
SELECT is((SELECT version || ' ' || state FROM evpg_state('again', 'a')), '2 {"v": 4, "folded": true}',
  'with its events and the new reducer [B24, rule 6]');
SELECT is(evpg_register_aggregate('again', library => 'evpg_test', symbol => 'counter'), true,
  'from functions to a library [B24]');
SELECT is((SELECT version || ' ' || state FROM evpg_state('again', 'a')), '2 {"total": 0, "applied": 0}',
  'a library folds events of the functions before it [B24, rule 6]');
SELECT is((SELECT unknown_events FROM evpg_session_stats() WHERE aggregate_type = 'again'), 2::bigint,
  'a library counts the events that it does not know [rule 8, A23]');

-- registered by a handler, in the middle of its own command
CREATE FUNCTION test.h_swap(state jsonb, command evpg.command) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM evpg_register_aggregate('swap', 'test.h_one', 'test.r_same', initial_state => '{"swapped": true}');
  PERFORM evpg_execute('swap', 'other', 'X');
  RETURN '{"type": "Swapped"}';
END $$;
SELECT evpg_register_aggregate('swap', 'test.h_swap', 'test.r_bad') \g /dev/null
SELECT is((SELECT type FROM evpg_execute('swap', 'a', 'X')), 'Swapped', 'a handler that registers another one in its place');
SELECT is((SELECT type FROM evpg_execute('swap', 'a', 'X')), 'One', 'is replaced afterwards');
SELECT is((SELECT version || ' ' || state FROM evpg_state('swap', 'a')), '2 {"swapped": true}',
  'the state of a handler that was replaced while it ran stays [rule 6]');

-- by a superuser, past the functions of evpg, as a restore and logical replication do
SELECT evpg_register_aggregate('direct', 'test.h_one', 'test.r_same', initial_state => '{"v": 1}') \g /dev/null
SELECT is((SELECT state FROM evpg_state('direct', 'a')), NULL, 'a stream that does not exist has no state');
SELECT evpg_create_stream('direct', 'a') \g /dev/null
SELECT is((SELECT state FROM evpg_state('direct', 'a')), '{"v": 1}', 'its first state is that of the registration');
UPDATE evpg.aggregate_type SET initial_state = '{"v": 2}' WHERE aggregate_type = 'direct';
SELECT is((SELECT state FROM evpg_state('direct', 'a')), '{"v": 2}', 'a registration that a superuser changes is noticed');
SET session_replication_role = replica;
DELETE FROM evpg.aggregate_type WHERE aggregate_type = 'direct';
RESET session_replication_role;
SELECT refused($$SELECT evpg_state('direct', 'a')$$, 'VE003 %', 'so is one that is deleted by what replicates');
SELECT * FROM finish();
