-- install_traps.sql: nothing of the extension means what somebody has put into its schema, and nothing that it runs calls that.

\ir include/setup.sql
SELECT plan(27);
DROP EXTENSION evpg;
CREATE SCHEMA traps;
SET check_function_bodies = off;

-- Functions and operators of the names that the script uses, for the types that pg_catalog has none for, so that they fit better.
CREATE FUNCTION test.set_traps() RETURNS bigint LANGUAGE plpgsql AS $body$
DECLARE
  script text := pg_read_file((SELECT setting FROM pg_config WHERE name = 'SHAREDIR') || '/extension/evpg--1.0.sql');
  types text[] := '{text,int,bigint,numeric,float8,jsonb,timestamptz,interval,text[],name,oid,boolean,xid,"\"char\"",regclass}';
  name text;
  arguments text;
  left_type text;
  right_type text;
BEGIN
  FOR name, arguments IN
    SELECT f.name, a.list FROM (SELECT DISTINCT m[1] AS name FROM regexp_matches(script, '(?:^|[^.\w])(?:pg_catalog\.)?(\w+)\s*\(', 'g') m) f,
      (SELECT l FROM unnest(types) l UNION ALL SELECT l || ', ' || r FROM unnest(types) l, unnest(types) r
       UNION ALL SELECT concat_ws(', ', a, b, c) FROM unnest('{text,jsonpath}'::text[]) a, unnest('{text,jsonpath}'::text[]) b, unnest('{text,jsonpath}'::text[]) c
       UNION ALL SELECT unnest('{VARIADIC int[],VARIADIC anyarray,"text, VARIADIC jsonb[]","anyelement, VARIADIC anyarray"}'::text[])) a (list)
     WHERE EXISTS (SELECT FROM pg_proc WHERE proname = f.name AND pronamespace = 'pg_catalog'::regnamespace)
       AND to_regprocedure(format('pg_catalog.%I(%s)', f.name, replace(a.list, 'VARIADIC ', ''))) IS NULL
  LOOP
    EXECUTE format('CREATE FUNCTION traps.%I(%s) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION ''trapped''; END $$', name, arguments);
  END LOOP;
  FOREACH name IN ARRAY '{=,<>,<,>,<=,>=,+,-,*,/,|,&,<<,>>,||,~~,->,->>,@>}'::text[] LOOP
    FOR left_type, right_type IN
      SELECT l, r FROM unnest(types) l, unnest(types) r
       WHERE NOT EXISTS (SELECT FROM pg_operator WHERE oprname = name AND oprleft = l::regtype AND oprright = r::regtype AND oprnamespace = 'pg_catalog'::regnamespace)
    LOOP
      IF to_regprocedure(format('traps.trap(%s, %s)', left_type, right_type)) IS NULL THEN
        EXECUTE format('CREATE FUNCTION traps.trap(%s, %s) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION ''trapped''; END $$', left_type, right_type);
      END IF;
      EXECUTE format('CREATE OPERATOR traps.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = traps.trap)', name, left_type, right_type);
    END LOOP;
  END LOOP;
  -- others of the names of evpg's own functions
  FOR name IN SELECT DISTINCT m[1] FROM regexp_matches(script, 'CREATE (?:FUNCTION|PROCEDURE) (evpg_\w+)\(', 'g') m LOOP
    EXECUTE format('CREATE FUNCTION traps.%I(%s) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION ''trapped''; END $$', name, repeat('box, ', 30) || 'box');
  END LOOP;
  CREATE DOMAIN traps.text AS pg_catalog.text;
  CREATE DOMAIN traps.jsonb AS pg_catalog.jsonb;
  CREATE DOMAIN traps.regclass AS pg_catalog.regclass;
  CREATE COLLATION traps."C" FROM pg_catalog."POSIX";
  CREATE VIEW traps.pg_locks AS SELECT FROM pg_catalog.pg_locks;
  CREATE VIEW traps.pg_database AS SELECT FROM pg_catalog.pg_database;
  RETURN (SELECT count(*) FROM pg_proc WHERE pronamespace = 'traps'::regnamespace) + (SELECT count(*) FROM pg_operator WHERE oprnamespace = 'traps'::regnamespace);
END $body$;
SELECT cmp_ok(test.set_traps(), '>', 5000::bigint, 'there are traps');
CREATE TABLE test.trap AS
  SELECT 'pg_proc'::regclass AS class, oid FROM pg_proc WHERE pronamespace = 'traps'::regnamespace
  UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_operator WHERE oprnamespace = 'traps'::regnamespace
  UNION ALL SELECT 'pg_type'::regclass, oid FROM pg_type WHERE typnamespace = 'traps'::regnamespace
  UNION ALL SELECT 'pg_class'::regclass, oid FROM pg_class WHERE relnamespace = 'traps'::regnamespace
  UNION ALL SELECT 'pg_collation'::regclass, oid FROM pg_collation WHERE collnamespace = 'traps'::regnamespace;

SELECT lives_ok('CREATE EXTENSION evpg SCHEMA traps', 'the extension can be installed among them');

-- All that the extension has, and what belongs to that: rules of views, defaults, constraints, indexes, row types.
CREATE TABLE test.member AS
  WITH RECURSIVE member AS (
    (SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'evpg' WHERE d.deptype = 'e'
     UNION SELECT 'pg_extension'::regclass, oid FROM pg_extension WHERE extname = 'evpg')
    UNION SELECT d.classid, d.objid FROM pg_depend d JOIN member m ON d.refclassid = m.classid AND d.refobjid = m.objid WHERE d.deptype IN ('i', 'a'))
  SELECT * FROM member;
SELECT is((SELECT string_agg(DISTINCT pg_describe_object(d.classid, d.objid, 0) || ' -> ' || pg_describe_object(d.refclassid, d.refobjid, 0), '; ')
             FROM pg_depend d JOIN test.trap t ON t.class = d.refclassid AND t.oid = d.refobjid JOIN test.member m ON m.classid = d.classid AND m.objid = d.objid), NULL,
  'nothing of the extension depends on a trap');
SELECT is((SELECT string_agg(DISTINCT pg_describe_object(d.classid, d.objid, 0) || ' -> ' || pg_describe_object(d.refclassid, d.refobjid, 0), '; ')
             FROM pg_depend d JOIN test.member m ON m.classid = d.classid AND m.objid = d.objid,
                  LATERAL pg_identify_object(d.refclassid, d.refobjid, 0) i
            WHERE i.schema NOT IN ('pg_catalog', 'evpg')
              AND NOT EXISTS (SELECT FROM test.member o WHERE o.classid = d.refclassid AND o.objid = d.refobjid)), NULL,
  'nor on anything else outside of pg_catalog and evpg');
SELECT cmp_ok((SELECT count(*) FROM test.member WHERE classid IN ('pg_rewrite'::regclass, 'pg_attrdef'::regclass, 'pg_constraint'::regclass)), '>', 40::bigint,
  'views, defaults and constraints are among what was looked at');
SELECT is((SELECT string_agg(p.oid::regprocedure::text, ', ') FROM pg_proc p JOIN test.member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
            JOIN pg_language l ON l.oid = p.prolang
           WHERE l.lanname <> 'c' AND p.prosqlbody IS NULL AND NOT 'search_path=pg_catalog, pg_temp' = ANY (coalesce(p.proconfig, '{}'))), NULL,
  'every function with a body that is analysed when it is called sets the search_path');

-- and at run time, under a search_path that begins with the traps
CREATE ROLE evpg_test_trapped;

CREATE FUNCTION test.run(statement text) RETURNS text LANGUAGE plpgsql SET search_path = traps AS $$
BEGIN
  EXECUTE statement;
  RETURN 'done';
EXCEPTION WHEN OTHERS THEN
  RETURN SQLERRM;
END $$;
SET search_path = public, test;
CREATE FUNCTION test.handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$ SELECT traps.evpg_event('Done') $$;
CREATE FUNCTION test.apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{}'::jsonb $$;
SELECT is(test.run(statement), 'done', 'no trap is sprung: ' || statement) FROM unnest(ARRAY[
  $$SELECT traps.evpg_register_aggregate('x', 'test.handle', 'test.apply')$$,
  $$SELECT traps.evpg_register_projection('p', 'test.apply', key_path => '$.aggregate_id')$$,
  $$SELECT traps.evpg_register_projection('q', 'test.apply', mode => 'async')$$,
  $$SELECT traps.evpg_execute('x', '1', 'Go', command_id => 'c')$$,
  $$SELECT traps.evpg_append('x', '1', ARRAY[traps.evpg_event('Said')])$$,
  $$SELECT traps.evpg_schedule('2100-01-01', 'x', '1', 'Go')$$,
  $$SELECT traps.evpg_receive('elsewhere', '1')$$,
  $$SELECT traps.evpg_action_compensate('because')$$,
  $$SELECT traps.evpg_operation_key('domain', 'a', 'b')$$,
  $$SELECT traps.evpg_prune_commands('1 day'), traps.evpg_prune_inbox('1 day')$$,
  $$SELECT traps.evpg_prune_sagas('1 day'), traps.evpg_prune_dead_letters('1 day'), traps.evpg_prune_parked_events('1 day')$$,
  $$SELECT traps.evpg_enable_index('event_type'), traps.evpg_enable_index('event_type', false)$$,
  $$SELECT traps.evpg_rebuild_projection('p')$$,
  $$SELECT * FROM evpg.stat_consumer$$, $$SELECT * FROM evpg.progress_rebuild$$, $$SELECT * FROM evpg.stat_stable_position$$,
  $$SELECT * FROM evpg.stat_broadcast$$, $$SELECT * FROM evpg.event$$, $$SELECT * FROM evpg.projected_state$$,
  $$SELECT traps.evpg_grant('evpg_test_trapped', 'operator')$$, $$SELECT traps.evpg_revoke('evpg_test_trapped', 'operator')$$]) statement;
DROP ROLE evpg_test_trapped;
SELECT * FROM finish();
