-- replica_identity.sql: nothing of evpg fails because of a publication of all tables.

\ir include/setup.sql
\ir include/counter.sql
SELECT plan(8);

SELECT is((SELECT string_agg(c.relname, ', ') FROM pg_class c
  WHERE relnamespace = 'evpg'::regnamespace AND relkind IN ('r', 'p') AND relreplident <> 'f'
   AND NOT (relreplident = 'd' AND EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary))), NULL,
     'every table of evpg has a replica identity');
SET client_min_messages = error;
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE FUNCTION test.lives(statement text) RETURNS text LANGUAGE sql AS $$
  SELECT lives_ok(statement, 'under a publication of all tables: ' || statement)
$$;
UPDATE evpg.activation SET database = 1;
SELECT is((SELECT evpg_activate_consumers()), true, 'a copy is activated under a publication of all tables');
SELECT test.lives(statement) FROM unnest(ARRAY[
  $$SELECT evpg_execute('counter', 'a', 'Add', '{"n": 1}', command_id => 'c')$$,
  $$SELECT evpg_prune_commands('0'), evpg_receive('elsewhere', '1'), evpg_prune_inbox('0')$$,
  $$SELECT evpg_enable_index('tags'), evpg_enable_index('tags', false)$$,
  $$SELECT evpg_cancel_timer(evpg_schedule_command('2100-01-01', 'counter', 'a', 'Add'))$$,
  $$SELECT evpg_take_snapshot('counter', 'a')$$,
  $$SELECT evpg_drop_aggregate('counter')$$]) statement;
SELECT * FROM finish();
