-- module.sql: an aggregate in C whose callbacks do what they must not do (test/modules/evpg_test.c).  Run after setup.sql.

SELECT evpg_register_aggregate('hostile', library => 'evpg_test', symbol => 'hostile', snapshot_every => 2) \g /dev/null
SET test.kind = hostile;
-- The statement of a command on its stream "a".
CREATE FUNCTION test.hostile(command_type text, data jsonb) RETURNS text LANGUAGE sql AS $$
  SELECT format('SELECT evpg_execute(%L, %L, %L, %L)', 'hostile', 'a', command_type, data) $$;
