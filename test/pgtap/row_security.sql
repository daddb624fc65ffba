-- row_security.sql: row security on a table of evpg is refused, since evpg's functions would pass it by.

\ir include/setup.sql
\ir include/counter.sql
SELECT plan(44);
SELECT count(*) FROM evpg_execute('counter', 'a', 'Add', '{"n": 1}') \g /dev/null

CREATE FUNCTION test.under_row_security(relname text, statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  result text;
BEGIN
  EXECUTE format('ALTER TABLE evpg.%I ENABLE ROW LEVEL SECURITY', relname);
  result := test.error_of(statement);
  EXECUTE format('ALTER TABLE evpg.%I DISABLE ROW LEVEL SECURITY', relname);
  RETURN result;
END $$;
SELECT is(test.under_row_security(relname, 'SELECT evpg_read_all()'),
  '0A000 row security of table evpg.' || relname || ' would have no effect on the functions of evpg',
  'reading with row security of ' || relname)
  FROM unnest('{aggregate_type,command_record,consumer,dead_letter,event_log,inbox,interceptor,listener,parked_event,'
    'projection,projection_state,saga,saga_event,saga_instance,snapshot,stream,timer,translator}'::text[]) relname;
SELECT is(test.under_row_security(relname, $$SELECT evpg_execute('counter', 'a', 'Add', '{"n": 1}')$$),
  '0A000 row security of table evpg.' || relname || ' would have no effect on the functions of evpg',
  'a command with row security of ' || relname)
  FROM unnest('{aggregate_type,command_record,consumer,dead_letter,event_log,inbox,interceptor,listener,parked_event,'
    'projection,projection_state,saga,saga_event,saga_instance,snapshot,stream,timer,translator}'::text[]) relname;

ALTER TABLE evpg.stream ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY nobody ON evpg.stream USING (false);
SELECT is(left(error_of(statement), 5), '0A000', 'FORCE and a policy change nothing: ' || statement)
  FROM unnest(ARRAY[$$SELECT evpg_state('counter', 'a')$$, $$SELECT evpg_streams()$$,
    $$SELECT evpg_append('counter', 'a', ARRAY[]::evpg.new_event[])$$, 'SELECT evpg_stable_position()']) statement;
SELECT alike(error_fields('SELECT evpg_streams()'), '%ALTER TABLE evpg.stream DISABLE ROW LEVEL SECURITY%',
  'the hint says what to do');
ALTER TABLE evpg.stream DISABLE ROW LEVEL SECURITY;
SELECT is(error_of(statement), 'no error', 'a policy that is not enabled is nothing: ' || statement)
  FROM unnest(ARRAY[$$SELECT evpg_state('counter', 'a')$$, $$SELECT evpg_execute('counter', 'a', 'Add', '{"n": 1}')$$])
    statement;
SELECT is((SELECT count(*) FROM evpg.event), 2::bigint, 'a call that row security refuses has written nothing');
SELECT * FROM finish();
