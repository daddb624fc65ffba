--
-- errors.sql: every SQLSTATE of evpg (A36, B25), with message, DETAIL, HINT and CONTEXT as a user sees them.
--
CREATE FUNCTION toy_handle(state jsonb, command evpg.command) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  CASE command.command_type
    WHEN 'Add' THEN RETURN jsonb_build_object('type', 'Added', 'data', command.data);
    WHEN 'Refuse' THEN PERFORM evpg_reject('no_way', 'this toy refuses', '{"reason": "principle"}');
    WHEN 'Break' THEN PERFORM 1 / 0;
    WHEN 'Recurse' THEN PERFORM evpg_execute('toy', command.aggregate_id, 'Add');
    WHEN 'Null' THEN RETURN '{"type": "Null"}';
    WHEN 'Misspell' THEN RETURN '{"typ": "Added"}';
  END CASE;
  RETURN NULL;
END $$;
CREATE FUNCTION toy_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN event.type <> 'Null' THEN event.data END $$;
CREATE FUNCTION toy_invariant(state jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT (state->>'n')::int < 10 $$;
CREATE FUNCTION toy_intercept(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN
  IF command.actor = 'mallory' THEN
    PERFORM evpg_reject('not_you', 'mallory may not play');
  END IF;
  RETURN command;
END $$;
CREATE FUNCTION toy_strict(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STRICT AS $$ SELECT state $$;
SELECT evpg_register_aggregate('toy', 'toy_handle', 'toy_apply', invariant => 'toy_invariant');
SELECT evpg_register_aggregate('toy_c', library => 'evpg_test', symbol => 'hostile');
SELECT evpg_register_interceptor('toy', 'toy_intercept', '{toy}');
SELECT count(*) FROM evpg_execute('toy', 't', 'Add', '{"n": 1}', command_id => 'first');
-- VE001: version conflict
SELECT evpg_execute('toy', 't', 'Add', '{"n": 2}', expected_version => 0);
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_execute('toy', 'nobody', 'Add', '{"n": 2}', expected_version => -1);
\echo :LAST_ERROR_SQLSTATE
-- VE002: refused, by a function and by a module
SELECT evpg_execute('toy', 't', 'Refuse');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_execute('toy_c', 't', 'Refuse',
  '{"code": "no_way", "message": "this toy refuses", "detail": {"reason": "principle"}}');
\echo :LAST_ERROR_SQLSTATE
-- VE003: unknown aggregate type
SELECT evpg_execute('toys', 't', 'Add');
\echo :LAST_ERROR_SQLSTATE
-- VE004: no such stream
SELECT evpg_read_stream('toy', 'nobody');
\echo :LAST_ERROR_SQLSTATE
-- VE005: a command id for another command
SELECT evpg_execute('toy', 't', 'Add', '{"n": 3}', command_id => 'first');
\echo :LAST_ERROR_SQLSTATE
-- VE006: invariant
SELECT evpg_execute('toy', 't', 'Add', '{"n": 10}');
\echo :LAST_ERROR_SQLSTATE
-- VE009: defects of modules and reducers
SELECT evpg_register_aggregate('bad', library => 'evpg_test', symbol => 'nothing');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_register_aggregate('bad', library => 'evpg_test_broken', symbol => 'newer_major');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_register_aggregate('bad', library => 'evpg_test_broken', symbol => 'a_projection');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_execute('toy', 't', 'Null');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_execute('toy_c', 't', 'BadText', '{"where": "failure"}');
\echo :LAST_ERROR_SQLSTATE
-- VE011: intercepted
SELECT evpg_execute('toy', 't', 'Add', '{"n": 2}', actor => 'mallory');
\echo :LAST_ERROR_SQLSTATE
-- VE012: history is append-only
DELETE FROM evpg.event_log;
\echo :LAST_ERROR_SQLSTATE
-- VE014: limits
SELECT evpg_execute('toy', repeat('x', 1025), 'Add');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_execute('toy', 't', 'Add', (repeat('[', 101) || repeat(']', 101))::jsonb);
\echo :LAST_ERROR_SQLSTATE
SET evpg.max_event_size = 1;
SELECT evpg_execute('toy', 't', 'Add', to_jsonb(repeat('x', 2000)));
\echo :LAST_ERROR_SQLSTATE
RESET evpg.max_event_size;
SET evpg.max_events = 1;
SELECT evpg_append('toy', 't', evpg_events('[{"type": "A"}, {"type": "B"}]'));
\echo :LAST_ERROR_SQLSTATE
RESET evpg.max_events;
-- VE017: reserved names
SELECT evpg_append('toy', 't', evpg_events('{"type": "evpg.erased"}'));
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_execute('toy', 't', 'Add', metadata => '{"evpg.x": 1}');
\echo :LAST_ERROR_SQLSTATE
-- VE018: a module does not know the command
SELECT evpg_execute('toy_c', 't', 'Fly');
\echo :LAST_ERROR_SQLSTATE
-- VE020: a command within a command on the same stream
SELECT evpg_execute('toy', 't', 'Recurse');
\echo :LAST_ERROR_SQLSTATE
-- errors of PostgreSQL's own: arguments
SELECT evpg_execute('toy', NULL, 'Add');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_execute('toy', E'a\nb', 'Add');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_execute('toy', 't', 'Add', expected_version => -2);
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_execute('toy_c', 't', 'Number', '[1]');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_append('toy', 't', ARRAY[evpg_event('A', caused_by => 1)]);
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_execute('toy', 't', 'Misspell');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_execute('toy_c', 't', 'Number', '{"which": "nan"}');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_execute('toy_c', 't', 'BadText', '{"where": "data", "how": "zero"}');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_execute('toy_c', 't', 'BadText', '{"where": "data", "how": "latin1"}');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_state('toy', 't', at_version => 7);
\echo :LAST_ERROR_SQLSTATE
-- VE022: unknown translator
SELECT evpg_receive_message('shop', '1', 'nobody', '{}');
\echo :LAST_ERROR_SQLSTATE
-- registration
SELECT evpg_register_aggregate('bad', 'toy_handle', 'toy_apply', library => 'x', symbol => 'y');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_register_aggregate('bad', 'toy_apply', 'toy_apply');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_register_aggregate('bad', 'toy_handle', 'toy_strict');
\echo :LAST_ERROR_SQLSTATE
SELECT evpg_register_aggregate('bad', library => 'lib/bad', symbol => 'bad');
\echo :LAST_ERROR_SQLSTATE
-- transactions
BEGIN READ ONLY;
SELECT evpg_execute('toy', 't', 'Add', '{"n": 2}');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT evpg_stable_position();
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
-- what a user's own code raises is passed on, with where it happened
SELECT evpg_execute('toy', 't', 'Break');
\echo :LAST_ERROR_SQLSTATE
-- and after all that
SELECT version, state FROM evpg_state('toy', 't');
SELECT evpg_drop_interceptor('toy'), evpg_drop_aggregate('toy'), evpg_drop_aggregate('toy_c');
DROP FUNCTION toy_handle, toy_apply, toy_invariant, toy_intercept, toy_strict;
