-- writers.sql: rows of evpg are written by evpg or a superuser, whatever privileges somebody has.

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql
SELECT plan((26 + 5 * (SELECT count(*) FROM pg_class WHERE relnamespace = 'evpg'::regnamespace AND relkind = 'r'))::int);

SELECT count(*) FROM evpg_execute('counter', 'a', 'Add', '{"n": 1}', command_id => 'c') \g /dev/null
INSERT INTO evpg.saga_event (saga, key, position) VALUES ('s', 'k', 1);
INSERT INTO evpg.saga_instance (version, position, started_at, updated_at, saga_version, status, saga, key, state)
  VALUES (1, 1, now(), now(), 1, 'running', 's', 'k', '{}');
INSERT INTO evpg.dead_letter (attempts, sqlstate, message) VALUES (1, 'XX000', 'x');
INSERT INTO evpg.saga_total (saga, dispatched, dead_lettered) VALUES ('s', 1, 0);
SELECT evpg_take_snapshot('counter', 'a'), evpg_schedule_command('2100-01-01', 'counter', 'a', 'Add', '{"n": 1}'),
  evpg_receive('elsewhere', '1') \g /dev/null

CREATE ROLE evpg_test_writes_all;
CREATE ROLE evpg_test_everything;
CREATE ROLE evpg_test_helper;
GRANT pg_read_all_data, pg_write_all_data TO evpg_test_writes_all;
GRANT USAGE ON SCHEMA evpg, test TO evpg_test_everything;
GRANT ALL ON ALL TABLES IN SCHEMA evpg TO evpg_test_everything;

-- each table, each way to write it
SELECT alike(test.as_role(role, format(statement, relname)),
  CASE WHEN relname IN ('event_log', 'stream') AND what <> 'INSERT' THEN 'VE012 %' ELSE '42501 rows of evpg.' || relname
    || ' are written by evpg alone' END,
  format('%s cannot %s evpg.%s', role, what, relname))
  FROM unnest('{evpg_test_writes_all,evpg_test_everything}'::text[]) role,
       (VALUES (1, 'INSERT', 'INSERT INTO evpg.%1$I OVERRIDING SYSTEM VALUE SELECT * FROM evpg.%1$I'),
         (2, 'DELETE', 'DELETE FROM evpg.%1$I'), (3, 'TRUNCATE', 'TRUNCATE evpg.%1$I CASCADE')) w (n, what, statement),
       (SELECT relname FROM pg_class WHERE relnamespace = 'evpg'::regnamespace AND relkind = 'r') t
 WHERE what <> 'TRUNCATE' OR role = 'evpg_test_everything' ORDER BY role, relname, n;
SELECT is(test.as_role('evpg_test_writes_all', statement), '42501 rows of evpg.' || name || ' are written by evpg alone',
  statement)
  FROM (VALUES ('aggregate_type', 'UPDATE evpg.aggregate_type SET search_path = ''evil'''),
    ('aggregate_type', 'UPDATE evpg.aggregate_type SET library = ''/tmp/evil'''),
    ('timer', 'UPDATE evpg.timer SET due_at = now()'), ('consumer', 'UPDATE evpg.consumer SET checkpoint = 0'),
    ('snapshot', 'UPDATE evpg.snapshot SET state = ''{}'''), ('activation', 'UPDATE evpg.activation SET database = 0'),
    ('inbox', 'WITH w AS (DELETE FROM evpg.inbox) SELECT'), ('inbox', 'COPY evpg.inbox FROM stdin')) x (name, statement)
      WHERE statement NOT LIKE 'COPY%';
SET session_replication_role = replica;
SELECT is(test.as_role('evpg_test_writes_all', 'UPDATE evpg.aggregate_type SET search_path = ''evil'''),
  '42501 rows of evpg.aggregate_type are written by evpg alone',
  'whatever session_replication_role is');
RESET session_replication_role;

-- evpg itself writes for whoever may call it, but not the code that it calls
SELECT evpg_grant('evpg_test_helper', 'operator') \g /dev/null
GRANT pg_write_all_data, pg_read_all_data TO evpg_test_helper;
GRANT CREATE ON SCHEMA test TO evpg_test_helper;
SET ROLE evpg_test_helper;
CREATE FUNCTION test.own_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
BEGIN
  IF command.data ? 'run' THEN
    EXECUTE command.data->>'run';
  END IF;
  RETURN public.evpg_event('Done');
END $$;
CREATE FUNCTION test.own_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
SELECT evpg_register_aggregate('own', 'test.own_handle', 'test.own_apply') AS registered \gset
RESET ROLE;
SELECT ok(:'registered', 'evpg writes a registration for an operator');
SELECT is(test.as_role('evpg_test_helper', $$SELECT evpg_execute('own', '1', 'Do', command_id => 'x')$$), 'done',
  'evpg writes what a command needs');
SELECT is(test.error_of(format($$SELECT evpg_execute('own', '1', 'Do', %L)$$, jsonb_build_object('run', statement))),
  '42501 rows of evpg.' || name || ' are written by evpg alone', 'a handler cannot: ' || statement)
  FROM (VALUES ('timer', 'UPDATE evpg.timer SET due_at = now()'),
    ('aggregate_type', 'UPDATE evpg.aggregate_type SET search_path = ''evil'''),
    ('command_record', 'DELETE FROM evpg.command_record'),
      ('event_log', 'INSERT INTO evpg.event_log SELECT * FROM evpg.event_log')) x (name, statement);
SELECT is(test.error_of('UPDATE evpg.consumer SET checkpoint = checkpoint'), 'no error', 'a superuser may');

-- a library that lies elsewhere is loaded for superusers alone
SELECT setting || '/evpg_test' AS library FROM pg_config WHERE name = 'PKGLIBDIR' \gset
CREATE ROLE evpg_test_boss SUPERUSER;
SET ROLE evpg_test_boss;
SELECT evpg_register_aggregate('absolute', library => :'library', symbol => 'counter') AS a,
  evpg_register_aggregate('plain', library => 'evpg_test', symbol => 'counter') AS b \gset
RESET ROLE;
SELECT is(error_of($$SELECT evpg_execute('absolute', '1', 'Add', '{"n": 1}')$$), 'no error',
  'a library of a superuser''s is loaded');
ALTER ROLE evpg_test_boss NOSUPERUSER;
SELECT is(error_of($$SELECT evpg_execute('absolute', '1', 'Add', '{"n": 1}')$$),
  '42501 library "' || :'library' || '" may not be loaded',
  'a library is not loaded when its registrant is no superuser any more');
SELECT is(error_of($$SELECT evpg_execute('plain', '1', 'Add', '{"n": 1}')$$), 'no error', 'unless it lies in $libdir');
SELECT is(evpg_register_aggregate('absolute', library => :'library', symbol => 'counter'), true,
  'registered again by a superuser');
SELECT is(error_of($$SELECT evpg_execute('absolute', '1', 'Add', '{"n": 1}')$$), 'no error', 'it is loaded');
SELECT evpg_register_aggregate('absolute', library => :'library', symbol => 'counter', snapshot_every => 7) \g /dev/null
UPDATE evpg.aggregate_type SET registered_by = 'evpg_test_gone' WHERE aggregate_type = 'absolute';
SELECT evpg_register_aggregate('any', library => 'evpg_test', symbol => 'counter') \g /dev/null
SELECT alike(error_of($$SELECT evpg_execute('absolute', '1', 'Add', '{"n": 1}')$$), '42501 library %',
  'a library is not loaded when its registrant does not exist any more');

-- what default privileges give is taken back
DROP EXTENSION evpg CASCADE;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO evpg_test_everything;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO evpg_test_everything;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO evpg_test_everything;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON TYPES FROM PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TYPES TO evpg_test_everything WITH GRANT OPTION;
CREATE EXTENSION evpg;
SELECT is((SELECT string_agg(concat_ws(' ', what, a.privilege_type, a.grantee::regrole), ', ') FROM (
    SELECT nspname::text, nspacl, nspowner FROM pg_namespace WHERE nspname = 'evpg'
    UNION ALL SELECT c.oid::regclass::text, relacl, relowner FROM pg_class c
      WHERE relnamespace = 'evpg'::regnamespace AND relkind IN ('r', 'v', 'S')
    UNION ALL SELECT p.oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner)), proowner FROM pg_proc p
       JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e' JOIN pg_extension e ON e.oid = d.refobjid AND extname = 'evpg'
    ) o (what, acl, owner), aclexplode(acl) a WHERE a.grantee <> owner), NULL,
      'nobody but the owner has anything after CREATE EXTENSION');
SELECT is((SELECT string_agg(t.oid::regtype::text, ', ') FROM pg_type t
  JOIN pg_depend d ON d.objid = t.oid AND d.deptype = 'e' JOIN pg_extension e ON e.oid = d.refobjid AND extname = 'evpg'
   WHERE NOT has_type_privilege('evpg_test_helper', t.oid, 'USAGE')
     OR has_type_privilege('evpg_test_everything', t.oid, 'USAGE WITH GRANT OPTION')), NULL,
       'types are usable by PUBLIC after CREATE EXTENSION');

-- the copies that a rebuild fills
CREATE TABLE test.listed (n bigint);
ALTER TABLE test.listed REPLICA IDENTITY FULL;
CREATE FUNCTION test.list(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO listed VALUES (event.version);
  UPDATE listed SET n = n + 1;
  DELETE FROM listed WHERE n > 100;
  RETURN NULL;
END $$;
SET client_min_messages = error;
CREATE PUBLICATION everything FOR ALL TABLES;
SELECT evpg_register_aggregate('x', library => 'evpg_test', symbol => 'counter') \g /dev/null
SELECT evpg_register_projection('listed', handler => 'test.list', mode => 'async', tables => '{test.listed}') \g /dev/null
SELECT count(*) FROM evpg_append('x', '1', evpg_events('[{"type": "A"}, {"type": "B"}]')) \g /dev/null
SELECT evpg_activate_consumers() \g /dev/null
CALL evpg_run();
SELECT is((SELECT array_agg(n ORDER BY n) FROM test.listed), '{3,3}'::bigint[],
  'a table without a primary key, under a publication of all tables');
SELECT evpg_rebuild_projection('listed', background => true) \g /dev/null
SELECT is((SELECT string_agg(a.grantee::regrole || ' ' || a.privilege_type, ', ') FROM pg_namespace n, aclexplode(nspacl) a
  WHERE nspname LIKE E'evpg\\_rebuild%' AND a.grantee <> nspowner), NULL,
  'the schema of the copies is nobody else''s');
CALL evpg_run(10);
SELECT is((SELECT array_agg(n ORDER BY n) FROM test.listed) || (SELECT count(*) FROM evpg.rebuild), '{3,3,0}'::bigint[],
  'is rebuilt');

ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM evpg_test_everything;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM evpg_test_everything;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SCHEMAS FROM evpg_test_everything;
DROP OWNED BY evpg_test_everything, evpg_test_helper, evpg_test_writes_all, evpg_test_boss CASCADE;
DROP ROLE evpg_test_everything, evpg_test_helper, evpg_test_writes_all, evpg_test_boss;
SELECT * FROM finish();
