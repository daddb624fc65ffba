-- read_only.sql: what writes is refused in a read-only transaction.

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(22);
SET test.kind = counter_c;
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 1', 'a stream');

-- read-only
BEGIN READ ONLY;
SELECT refused(statement, '25006 cannot execute ' || f || '() in a read-only transaction', 'read-only: ' || f) FROM (VALUES
  ('evpg_execute', $$SELECT evpg_execute('counter', 'a', 'Add')$$),
  ('evpg_try_execute', $$SELECT evpg_try_execute('counter', 'a', 'Add')$$),
  ('evpg_append', $$SELECT evpg_append('counter', 'a', '{}')$$),
  ('evpg_append_event', $$SELECT evpg_append_event('counter', 'a', 'Odd')$$),
  ('evpg_inject', $$SELECT evpg_inject('counter', 'a', evpg_event('Odd'))$$),
  ('evpg_create_stream', $$SELECT evpg_create_stream('counter', 'a')$$),
  ('evpg_take_snapshot', $$SELECT evpg_take_snapshot('counter', 'a')$$),
  ('evpg_register_aggregate', $$SELECT evpg_register_aggregate('x', library => 'evpg_test', symbol => 'counter')$$),
  ('evpg_drop_aggregate', $$SELECT evpg_drop_aggregate('counter')$$),
  ('evpg_register_interceptor', $$SELECT evpg_register_interceptor('x', 'test.pass_none')$$),
  ('evpg_drop_interceptor', $$SELECT evpg_drop_interceptor('x')$$)) x (f, statement) WHERE f <> 'evpg_register_interceptor';
COMMIT;

SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 2', 'the session works on after read-only transactions');
SELECT * FROM finish();
