-- privileges_schema.sql: the extension in the schema :schema, which is renamed, and in which another schema takes the old
-- name.

DROP EXTENSION evpg;
CREATE SCHEMA :"schema";
CREATE EXTENSION evpg SCHEMA :"schema";
SELECT test.traps(:'schema') \g /dev/null
SELECT lives_ok(format('SELECT %I.evpg_grant(%L, %L)', :'schema', 'evpg_test_granted', 'writer'),
  'evpg_grant in schema ' || :'schema');
SELECT ok(test.may('evpg_test_granted', format('%I.evpg_streams(text, text, int, text)', :'schema')),
  'gives the extension''s functions');
SELECT ok(test.may('evpg_test_granted', format('%I.evpg_version()', :'schema')), 'also one with an overload of a user''s');
SELECT ok(NOT has_schema_privilege('evpg_test_granted', :'schema', 'CREATE')
  AND has_schema_privilege('evpg_test_granted', :'schema', 'USAGE'),
  'and USAGE of the schema');
SELECT ok(has_table_privilege('evpg_test_granted', 'evpg.event', 'SELECT'), 'and the views');
SELECT is((SELECT string_agg(p.oid::regprocedure::text, ', ') FROM pg_proc p, aclexplode(p.proacl) a
  WHERE a.grantee = 'evpg_test_granted'::regrole
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')), NULL,
  'but nothing of the user''s');
SELECT lives_ok(format('SELECT %I.evpg_revoke(%L, %L)', :'schema', 'evpg_test_granted', 'writer'), 'evpg_revoke');
SELECT is(test.entries('evpg_test_granted'), 0::bigint, 'takes all back');

ALTER SCHEMA :"schema" RENAME TO evpg_moved;
CREATE SCHEMA :"schema";
SELECT lives_ok($$SELECT evpg_moved.evpg_grant('evpg_test_granted', 'operator')$$,
  'evpg_grant in a schema that was renamed');
SELECT ok(test.may('evpg_test_granted', 'evpg_moved.evpg_activate_consumers()')
  AND NOT has_schema_privilege('evpg_test_granted', :'schema', 'USAGE'),
  'gives what is there, not what has the old name');
SELECT lives_ok($$SELECT evpg_moved.evpg_revoke('evpg_test_granted', 'operator')$$, 'evpg_revoke');
SELECT is(test.entries('evpg_test_granted'), 0::bigint, 'takes all back');
DROP SCHEMA :"schema";
DROP EXTENSION evpg;
DROP SCHEMA evpg_moved CASCADE;
CREATE EXTENSION evpg;
