-- install_traps.sql: nothing of the extension means what somebody has put into its schema, and nothing that it runs calls
-- that.

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
SELECT plan(27);
DROP EXTENSION evpg;
CREATE SCHEMA traps;
SET check_function_bodies = off;

\ir include/traps.sql
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
    (SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'evpg'
      WHERE d.deptype = 'e'
     UNION SELECT 'pg_extension'::regclass, oid FROM pg_extension WHERE extname = 'evpg')
    UNION SELECT d.classid, d.objid FROM pg_depend d JOIN member m ON d.refclassid = m.classid AND d.refobjid = m.objid
      WHERE d.deptype IN ('i', 'a'))
  SELECT * FROM member;
SELECT is((SELECT string_agg(DISTINCT pg_describe_object(d.classid, d.objid, 0) || ' -> '
  || pg_describe_object(d.refclassid, d.refobjid, 0), '; ')
             FROM pg_depend d JOIN test.trap t ON t.class = d.refclassid AND t.oid = d.refobjid
               JOIN test.member m ON m.classid = d.classid AND m.objid = d.objid), NULL,
  'nothing of the extension depends on a trap');
SELECT is((SELECT string_agg(DISTINCT pg_describe_object(d.classid, d.objid, 0) || ' -> '
  || pg_describe_object(d.refclassid, d.refobjid, 0), '; ')
             FROM pg_depend d JOIN test.member m ON m.classid = d.classid AND m.objid = d.objid,
                  LATERAL pg_identify_object(d.refclassid, d.refobjid, 0) i
            WHERE i.schema NOT IN ('pg_catalog', 'evpg')
              AND NOT EXISTS (SELECT FROM test.member o WHERE o.classid = d.refclassid AND o.objid = d.refobjid)), NULL,
  'the members of the extension depend on nothing outside of pg_catalog and evpg');
SELECT cmp_ok((SELECT count(*) FROM test.member
  WHERE classid IN ('pg_rewrite'::regclass, 'pg_attrdef'::regclass, 'pg_constraint'::regclass)), '>', 40::bigint,
  'views, defaults and constraints are among what was looked at');
SELECT is((SELECT string_agg(p.oid::regprocedure::text, ', ') FROM pg_proc p
  JOIN test.member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
            JOIN pg_language l ON l.oid = p.prolang
           WHERE l.lanname <> 'c' AND p.prosqlbody IS NULL
             AND NOT 'search_path=pg_catalog, pg_temp' = ANY (coalesce(p.proconfig, '{}'))), NULL,
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
CREATE FUNCTION test.handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT traps.evpg_event('Done')
$$;
CREATE FUNCTION test.apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{}'::jsonb $$;
SELECT is(test.run(statement), 'done', 'no trap is sprung: ' || statement) FROM unnest(ARRAY[
  $$SELECT traps.evpg_register_aggregate('x', 'test.handle', 'test.apply')$$,
  $$SELECT traps.evpg_register_projection('p', 'test.apply', key_path => '$.aggregate_id')$$,
  $$SELECT traps.evpg_register_projection('q', 'test.apply', mode => 'async')$$,
  $$SELECT traps.evpg_execute('x', '1', 'Go', command_id => 'c')$$,
  $$SELECT traps.evpg_append('x', '1', ARRAY[traps.evpg_event('Said')])$$,
  $$SELECT traps.evpg_schedule_command('2100-01-01', 'x', '1', 'Go')$$,
  $$SELECT traps.evpg_receive('elsewhere', '1')$$,
  $$SELECT traps.evpg_action_compensate('because')$$,
  $$SELECT traps.evpg_operation_key('domain', 'a', 'b')$$,
  $$SELECT traps.evpg_prune_commands('1 day'), traps.evpg_prune_inbox('1 day')$$,
  $$SELECT traps.evpg_prune_sagas('1 day'), traps.evpg_prune_dead_letters('1 day'),
    traps.evpg_prune_parked_events('1 day')$$,
  $$SELECT traps.evpg_enable_index('event_type'), traps.evpg_enable_index('event_type', false)$$,
  $$SELECT traps.evpg_rebuild_projection('p')$$,
  $$SELECT * FROM evpg.stat_consumer$$, $$SELECT * FROM evpg.progress_rebuild$$, $$SELECT * FROM evpg.stat_stable_position$$,
  $$SELECT * FROM evpg.stat_broadcast$$, $$SELECT * FROM evpg.event$$, $$SELECT * FROM evpg.projected_state$$,
  $$SELECT traps.evpg_grant('evpg_test_trapped', 'operator')$$,
    $$SELECT traps.evpg_revoke('evpg_test_trapped', 'operator')$$]) statement;
DROP ROLE evpg_test_trapped;
SELECT * FROM finish();
