-- privileges.sql: who may do what, and as whom functions run.

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql

CREATE ROLE evpg_test_monitor;
CREATE ROLE evpg_test_reader;
CREATE ROLE evpg_test_relay;
CREATE ROLE evpg_test_subscriber;
CREATE ROLE evpg_test_executor;
CREATE ROLE evpg_test_writer;
CREATE ROLE evpg_test_operator;
CREATE ROLE evpg_test_nobody;
CREATE ROLE evpg_test_owner;
GRANT USAGE ON SCHEMA test TO PUBLIC;
SELECT plan(717);

SELECT is((SELECT string_agg(evpg_grant(('evpg_test_' || access)::regrole, access)::text, '')
  FROM unnest('{monitor,reader,relay,subscriber,executor,writer,operator}'::text[]) access), '', 'evpg_grant [A50]');
SELECT is((SELECT count(*) FROM evpg_execute('counter', 'a', 'Add', '{"n": 1}')), 1::bigint, 'a stream');
SELECT evpg_create_subscription('sub') \g /dev/null

-- what each access allows
CREATE TABLE test.call (given_by text[], statement text);
INSERT INTO test.call VALUES
  ('{reader,relay,writer,operator}', 'SELECT * FROM evpg.event'),
    ('{reader,relay,writer,operator}', 'SELECT * FROM evpg.stream'),
  ('{reader,relay,writer,operator}', 'SELECT * FROM evpg.stream_head'),
  ('{reader,relay,writer,operator}', 'SELECT evpg_streams()'), ('{reader,relay,writer,operator}', 'SELECT evpg_read_all()'),
  ('{reader,relay,executor,writer,operator}', $$SELECT evpg_stream_version('counter', 'a')$$),
  ('{reader,relay,executor,writer,operator}', $$SELECT evpg_read_stream('counter', 'a')$$),
  ('{reader,relay,executor,writer,operator}', $$SELECT evpg_state('counter', 'a')$$),
  ('{monitor,reader,relay,writer,operator}', 'SELECT evpg_stable_position()'),
  ('{monitor,reader,relay,subscriber,executor,writer,operator}', 'SELECT evpg_version()'),
  ('{monitor,reader,relay,subscriber,executor,writer,operator}', 'SELECT evpg_session_stats()'),
  ('{monitor,reader,relay,writer,operator}', 'SELECT * FROM evpg.stat_stable_position'),
  ('{executor,writer,operator}', $$SELECT evpg_execute('counter', 'w', 'Add', '{"n": 1}')$$),
  ('{executor,writer,operator}', $$SELECT evpg_try_execute('counter', 'w', 'Add', '{"n": 1}')$$),
  ('{executor,writer,operator}', $$SELECT evpg_command('counter', 'a', 'Add')$$),
  ('{reader,relay,executor,writer,operator}', 'SELECT evpg_wait_for_position(1)'),
  ('{reader,relay,executor,writer,operator}', $$SELECT evpg_condition('{Added}')$$),
  ('{reader,relay,executor,writer,operator}', $$SELECT evpg_condition_after(evpg_condition('{Added}'), 1)$$),
    ('{executor,writer,operator}', $$SELECT evpg_commands('[]')$$),
  ('{executor,writer,operator}', $$SELECT evpg_set_context('me')$$),
    ('{relay,executor,writer,operator}', $$SELECT evpg_event('Odd')$$),
  ('{executor,writer,operator}', $$SELECT evpg_schedule_command('2100-01-01', 'counter', 'w', 'Add')$$),
  ('{executor,writer,operator}', $$SELECT evpg_receive('elsewhere', '1')$$),
  ('{writer,operator}', $$SELECT evpg_append('counter', 'w', evpg_events('{"type": "Odd"}'))$$),
    ('{writer,operator}', $$SELECT evpg_append_event('counter', 'w', 'Odd')$$),
  ('{writer,operator}', $$SELECT evpg_create_stream('counter', 'made')$$),
  ('{relay,operator}', $$SELECT evpg_inject('counter', 'w', evpg_event('Odd'))$$),
  ('{operator}', $$SELECT evpg_take_snapshot('counter', 'a')$$),
  ('{operator}', $$SELECT evpg_drop_aggregate('nope', true)$$),
    ('{operator}', $$SELECT evpg_drop_interceptor('nope', true)$$),
    ('{operator}', $$SELECT evpg_drop_listener('nope', true)$$),
  ('{operator}', $$SELECT evpg_drop_upcaster('nope', 1, missing_ok => true)$$),
    ('{operator}', $$SELECT evpg_register_upcaster('nope', 1, new_event_type => 'no')$$),
    ('{operator}', 'SELECT evpg_check_upcasters()'), ('{operator}', 'SELECT * FROM evpg.upcaster'),
  ('{operator}', 'SELECT * FROM evpg.aggregate_type'), ('{operator}', 'SELECT * FROM evpg.command_record'),
    ('{operator}', 'SELECT * FROM evpg.snapshot'),
  ('{operator}', 'SELECT * FROM evpg.interceptor'), ('{operator}', 'SELECT * FROM evpg.listener'),
    ('{operator}', 'SELECT * FROM evpg.activation'),
    ('{operator}', 'SELECT evpg_activate_consumers()'),
  ('{operator}', 'SELECT * FROM evpg.dead_letter'), ('{operator}', 'SELECT payload FROM evpg.timer'),
  ('{monitor,operator}', 'SELECT saga, count(*) FROM evpg.dead_letter WHERE resolved_at IS NULL GROUP BY saga'),
  ('{monitor,operator}', 'SELECT count(*) FROM evpg.timer WHERE due_at < now()'),
    ('{monitor,operator}', 'SELECT name, checkpoint FROM evpg.consumer'),
  ('{monitor,operator}', 'SELECT name, position, attempts FROM evpg.parked_event'),
    ('{monitor,operator}', 'SELECT saga, status, count(*) FROM evpg.saga_instance GROUP BY 1, 2'),
  ('{monitor,operator}', 'SELECT saga, max(attempts) FROM evpg.saga_event GROUP BY saga'),
  ('{}', 'SELECT * FROM evpg.event_log'),
    ('{}', 'INSERT INTO evpg.stream (aggregate_type, aggregate_id) VALUES (''x'', ''x'')'),
  ('{}', 'UPDATE evpg.stream SET aggregate_id = NULL'), ('{}', 'DELETE FROM evpg.stream'),
  ('{}', 'DELETE FROM evpg.event_log'), ('{}', 'DELETE FROM evpg.snapshot'), ('{}', 'TRUNCATE evpg.event_log'),
  ('{}', 'SELECT nextval(''evpg.event_position'')'), ('{}', 'SELECT setval(''evpg.event_position'', 1)'),
  ('{}', 'SELECT last_value FROM evpg.event_position'), ('{}', 'LOCK TABLE evpg.fence'), ('{}', 'CREATE TABLE evpg.mine ()'),
  ('{}', 'ALTER TABLE evpg.event_log DISABLE TRIGGER evpg_append_only'),
  ('{}', 'UPDATE evpg.aggregate_type SET library = ''x'''), ('{}', 'SELECT evpg_grant(''evpg_test_nobody'', ''reader'')'),
  ('{}', 'SELECT evpg.privileges(''reader'')'),
  ('{subscriber,operator}', $$SELECT * FROM evpg_fetch('sub', 'a')$$),
    ('{subscriber,operator}', $$SELECT evpg_ack('sub', 1, 1)$$),
  ('{subscriber,operator}', $$SELECT evpg_nack('sub', 1, 1)$$), ('{operator}', $$SELECT evpg_create_subscription('sub')$$),
  ('{operator}', $$SELECT evpg_drop_subscription('nope', true)$$), ('{operator}', 'SELECT * FROM evpg.subscription_lease'),
  ('{monitor,reader,relay,subscriber,writer,operator}', 'SELECT * FROM evpg.stat_subscription');
SELECT alike(as_role('evpg_test_' || access, statement), CASE WHEN access = ANY (given_by) THEN 'done' ELSE '42501 %' END,
  access || ': ' || statement)
  FROM unnest('{nobody,monitor,reader,relay,subscriber,executor,writer,operator}'::text[]) WITH ORDINALITY r (access, n),
    test.call c
    ORDER BY n, statement;
-- which looks at registrations that were changed
SELECT evpg_register_upcaster('nope', 1, new_event_type => 'other') \g /dev/null
SELECT is(as_role('evpg_test_reader', 'SELECT evpg_wait_for_position(1)'), 'done', 'reader: waits for a position');
SELECT evpg_drop_upcaster('nope', 1) \g /dev/null
SELECT is(as_role('evpg_test_monitor', 'SELECT * FROM evpg.' || c.relname), 'done',
  'monitor: every view of statistics: ' || relname)
  FROM pg_class c WHERE relnamespace = 'evpg'::regnamespace AND relkind = 'v' AND relname ~ '^(stat|progress)_'
    ORDER BY relname;

-- every object of the extension has its place in the list
CREATE VIEW test.member AS
  SELECT CASE WHEN d.classid = 'pg_proc'::regclass THEN 'routine' ELSE 'relation' END AS kind,
    coalesce(p.proname, c.relname)::text AS object
    FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'evpg'
      AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
    LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
    LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind IN ('r', 'v')
   WHERE p.oid IS NOT NULL OR c.oid IS NOT NULL;
SELECT is((SELECT string_agg(object, ', ' ORDER BY object)
  FROM (SELECT kind, object FROM test.member EXCEPT SELECT kind, object FROM evpg.access_object) m), NULL,
  'every function, table and view of the extension is in evpg.access_object');
SELECT is((SELECT string_agg(object, ', ' ORDER BY object)
  FROM (SELECT kind, object FROM evpg.access_object EXCEPT SELECT kind, object FROM test.member) m), NULL,
  'evpg.access_object lists nothing that does not exist');
SELECT is((SELECT string_agg(object || '.' || missing, ', ') FROM evpg.access_object, unnest(columns) missing
   WHERE NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = ('evpg.' || object)::regclass AND attname = missing)), NULL,
     'evpg.access_object lists no column that does not exist');
SELECT is((SELECT string_agg(object, ', ') FROM evpg.access_object
  WHERE NOT given_by <@ '{monitor,reader,relay,subscriber,executor,writer,operator,owner}' OR given_by = '{}'), NULL,
  'evpg.access_object lists no access that does not exist');
SELECT is((SELECT string_agg(o.object, ', ') FROM evpg.access_object o
  WHERE 'owner' <> ALL (o.given_by) AND o.kind = 'relation' AND o.columns IS NULL
   AND NOT has_table_privilege('evpg_test_operator', 'evpg.' || o.object, 'SELECT')), NULL, 'operator is above all others');

-- what is taken back
CREATE FUNCTION test.access_of(role text) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(access, ',' ORDER BY n)
    FROM unnest('{monitor,reader,relay,subscriber,executor,writer,operator}'::text[]) WITH ORDINALITY r (access, n)
   WHERE NOT EXISTS (SELECT FROM evpg.privileges(access) p
     WHERE NOT EXISTS (SELECT FROM aclexplode(p.acl) a WHERE a.grantee = role::regrole))
$$;
SELECT is(evpg_revoke('evpg_test_writer', 'writer')::text, '', 'evpg_revoke');
SELECT alike(as_role('evpg_test_writer', statement), '42501 %', 'revoked: ' || statement) FROM test.call;
CREATE ROLE evpg_test_other;
CREATE FUNCTION test.left_over(granted text[], revoked text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  result text;
BEGIN
  PERFORM evpg_grant('evpg_test_other', access) FROM unnest(granted) access;
  PERFORM evpg_revoke('evpg_test_other', revoked);
  result := coalesce(test.access_of('evpg_test_other'), 'none');
  PERFORM evpg_revoke('evpg_test_other', 'operator');
  RETURN result;
END $$;
SELECT is(test.left_over(granted, revoked), left_over, format('of %s, %s is taken back', granted, revoked))
  FROM (VALUES ('{reader,executor}'::text[], 'reader', 'executor'), ('{reader,executor}', 'executor', 'reader'),
    ('{writer,relay}', 'writer', 'reader,relay'),
    ('{writer,relay}', 'relay', 'reader,executor,writer'),
      ('{operator}', 'reader', 'monitor,reader,relay,subscriber,executor,writer,operator'),
    ('{operator}', 'operator', 'none'),
    ('{reader,writer}', 'writer', 'none'), ('{monitor,executor}', 'monitor', 'executor')) x (granted, revoked, left_over);
DROP ROLE evpg_test_other;
SELECT evpg_revoke(('evpg_test_' || access)::regrole, access)
  FROM unnest('{monitor,reader,relay,subscriber,executor,operator}'::text[]) access \g /dev/null
DROP ROLE evpg_test_monitor, evpg_test_reader, evpg_test_relay, evpg_test_subscriber, evpg_test_executor, evpg_test_writer,
  evpg_test_operator;
SELECT pass('roles can be dropped when all that was granted is taken back');
CREATE ROLE evpg_test_reader;
CREATE ROLE evpg_test_writer;
CREATE ROLE evpg_test_operator;
SELECT evpg_grant('evpg_test_reader', 'reader'), evpg_grant('evpg_test_writer', 'writer'),
  evpg_grant('evpg_test_operator', 'operator') \g /dev/null
SELECT refused($$SELECT evpg_grant('evpg_test_nobody', 'owner')$$, '22023 unknown access "owner"',
  'evpg_grant: of an unknown access');
SELECT refused($$SELECT evpg_revoke('evpg_test_nobody', 'owner')$$, '22023 unknown access "owner"',
  'evpg_revoke: of an unknown access');
SELECT refused($$SELECT evpg_grant('evpg_test_nobody_else', 'reader')$$, '42704 %', 'evpg_grant: to nobody');

-- registering needs the function
GRANT CREATE ON SCHEMA test TO evpg_test_operator, evpg_test_owner;
SELECT is(as_role('evpg_test_operator', statement), error, 'registration: ' || what) FROM (VALUES
  ($$SELECT evpg_register_aggregate('op', library => 'evpg_test', symbol => 'counter')$$,
  '42501 must be superuser to register a library', 'a library by a non-superuser'),
  ($$SELECT evpg_register_aggregate('op', 'test.counter_handle', 'test.counter_apply')$$,
  '42501 must be owner of function test.counter_handle(pg_catalog.jsonb,evpg.command)', 'functions of another'),
  ($$SELECT evpg_register_aggregate('counter', library => '/tmp/evil', symbol => 'x')$$,
  '42501 must be superuser to register a library', 'a library in place of functions')) x (statement, error, what);
SET ROLE evpg_test_operator;
CREATE FUNCTION test.op_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT evpg_event('Ran', jsonb_build_object('as', current_user, 'session', session_user, 'path',
  current_setting('search_path'), 'schemas', current_schemas(false))) $$;
CREATE FUNCTION test.op_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('folded as', current_user) || event.data $$;
CREATE FUNCTION test.op_invariant(state jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
  BEGIN PERFORM set_config('test.invariant', current_user, false), set_config('search_path', 'evil', false);
  RETURN current_user = 'evpg_test_operator'; END $$;
CREATE FUNCTION test.op_intercept(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN command.metadata := jsonb_build_object('intercepted as', current_user, 'path', current_setting('search_path'));
  RETURN command; END $$;
SET search_path = test, public, pg_temp;
SELECT evpg_register_aggregate('op', 'op_handle', 'op_apply', invariant => 'op_invariant') AS registered \gset
SELECT evpg_register_interceptor('op', 'op_intercept', '{op}') AS registered_too \gset
RESET ROLE;
SET search_path = public, test;
SELECT ok(:'registered' AND :'registered_too', 'registration: an operator registers functions of its own');

-- as whom they run, under which search_path
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA test TO evpg_test_writer;
SET ROLE evpg_test_writer;
SET search_path = pg_catalog;
SELECT public.evpg_execute('op', 'a', 'X') \g /dev/null
RESET ROLE;
SET search_path = public, test;
SELECT same($$SELECT data->>'as', data->>'path', metadata->>'intercepted as', metadata->>'path' FROM evpg.event
  WHERE aggregate_type = 'op'$$,
  $$VALUES ('evpg_test_operator', 'test, public, pg_temp', 'evpg_test_operator', 'test, public, pg_temp')$$,
  'functions run as their owner, with the search_path of their registration');
SELECT is(coalesce(nullif(current_setting('test.invariant', true), ''), 'none') || ' ' || current_setting('search_path'),
  'none public, test',
  'the invariant, too, which would have refused; and its settings end with it');
SELECT is((SELECT state->>'folded as' FROM evpg_state('op', 'a')), 'evpg_test_operator',
  'the reducer has run as the owner of the function');
SELECT is(as_role('evpg_test_reader', $$SELECT evpg_state('op', 'a')$$), 'done',
  'a reader of states needs no right on the functions');
SELECT is(current_user || ' ' || current_setting('search_path'), session_user || ' public, test',
  'after a call the caller is the role that it was');

-- a schema that hides names
CREATE SCHEMA evil;
CREATE FUNCTION evil.evpg_event(type text, data jsonb) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT public.evpg_event('Evil') $$;
CREATE FUNCTION evil.jsonb_build_object(VARIADIC "any") RETURNS jsonb LANGUAGE internal AS 'jsonb_build_object';
CREATE FUNCTION evil.eq(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'evil operator'; END $$;
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.eq);
SET search_path = evil, pg_catalog, public, test;
SELECT data->>'as' AS ran_as FROM public.evpg_execute('op', 'b', 'X') \gset
SELECT count(*) AS read FROM public.evpg_read_stream('op', 'b') \gset
SET search_path = public, test;
SELECT is(:'ran_as'::text, 'evpg_test_operator', 'a caller''s search_path changes nothing');
SELECT is(:read, 1, 'a caller''s search_path changes nothing when a state is read');
CREATE TEMP TABLE event (x int);
CREATE FUNCTION pg_temp.evpg_event(type text, data jsonb) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT public.evpg_event('Evil') $$;
SELECT is((SELECT type FROM evpg_execute('op', 'b', 'X')), 'Ran', 'temporary objects of a caller change nothing');
DROP TABLE pg_temp.event;

-- an error leaves the caller who it was
SET ROLE evpg_test_writer;
DO $$ BEGIN PERFORM public.evpg_execute('counter', 'a', 'Fail'); EXCEPTION WHEN SQLSTATE 'VE009' THEN NULL; END $$;
SELECT current_user AS after_error \gset
RESET ROLE;
SELECT is(:'after_error'::text, 'evpg_test_writer', 'after an error the user is who it was');

-- the owner's rights end with its function
SET ROLE evpg_test_operator;
CREATE OR REPLACE FUNCTION test.op_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE command.data->>'run';
  RETURN evpg_event('Ran');
END $$;
RESET ROLE;
SELECT alike(error_of(format($$SELECT evpg_execute('op', 'c', 'X', %L)$$, jsonb_build_object('run', run))), '42501 %',
  'a function cannot: ' || run) FROM unnest(ARRAY[
  'DELETE FROM evpg.event_log', 'SET ROLE evpg_test_owner', 'SET SESSION AUTHORIZATION postgres', 'RESET ROLE',
  'UPDATE evpg.aggregate_type SET symbol = ''x''', 'CREATE TABLE evpg.mine ()']) run;
SELECT is(error_of(format($$SELECT evpg_execute('op', 'c', 'X', %L)$$,
  jsonb_build_object('run', 'SELECT count(*) FROM evpg.event'))), 'no error', 'a handler can do what its owner may do');

-- another owner
ALTER FUNCTION test.op_apply(jsonb, evpg.event) OWNER TO evpg_test_owner;
SET evpg.state_cache_size = 0;
SELECT is(error_of($$SELECT evpg_state('op', 'a')$$),
  '42501 role "evpg_test_operator" may not have reducer test.op_apply(pg_catalog.jsonb,evpg.event) run',
  'a function that changes hands is not run any more');
SELECT is(as_role('evpg_test_operator', $$SELECT evpg_register_aggregate('op', 'test.op_handle', 'test.op_apply')$$),
  '42501 must be owner of function test.op_apply(pg_catalog.jsonb,evpg.event)',
    'the old owner of a function cannot register it');
GRANT evpg_test_owner TO evpg_test_operator;
SELECT is((SELECT state->>'folded as' FROM evpg_state('op', 'a')), 'evpg_test_owner',
  'unless it is a member of the new one, as which the function runs');
SELECT is(as_role('evpg_test_operator', $$SELECT evpg_register_aggregate('op', 'test.op_handle', 'test.op_apply')$$), 'done',
  'a member of the new owner can register the function');
RESET evpg.state_cache_size;

-- settings
SELECT alike(as_role('evpg_test_writer', 'SET evpg.' || s), '42501 %', 'a limit is a superuser''s: ' || s)
  FROM unnest('{max_event_size = 1,max_events = 1,max_json_depth = 1}'::text[]) s;
SELECT is(as_role('evpg_test_writer', 'SET evpg.state_cache_size = 1'), 'done', 'the cache is everybody''s own');
SELECT alike(error_of('SET evpg.nonsense = 1'), '42602 %', 'an unknown setting is an error');

DROP OWNED BY evpg_test_reader, evpg_test_writer, evpg_test_operator, evpg_test_owner, evpg_test_nobody CASCADE;
DROP ROLE evpg_test_reader, evpg_test_writer, evpg_test_operator, evpg_test_owner, evpg_test_nobody;
SELECT * FROM finish();
