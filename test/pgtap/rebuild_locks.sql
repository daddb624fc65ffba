-- rebuild_locks.sql: a projection is registered again or dropped while a batch of its rebuild runs (rule 13).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(6);
SET test.kind = counter;
SELECT add('first', 0) \g /dev/null
SELECT connect('runner') \g /dev/null

-- ------------------------------------------------------------------ dropping a projection while a batch of its rebuild runs

-- A batch waits for who holds the lock.
CREATE FUNCTION test.held_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock_shared(42);
  RETURN state;
END $$;
SELECT count(*) FROM evpg_append('counter', 'before',
  (SELECT array_agg(evpg_event('Added', '{"n": 0}')) FROM generate_series(1, 2500) n)) \g /dev/null
CREATE PROCEDURE test.hold_rebuild(change text) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM evpg_register_projection('held', 'test.held_apply', mode => 'async'), evpg_pause_consumer('held'),
    evpg_rebuild_projection('held', background => true);
  PERFORM pg_advisory_lock(42);
  COMMIT;
  PERFORM dblink_send_query('runner', 'CALL evpg_run()');
  PERFORM wait_until('SELECT count(*) = 1 FROM own_lock WHERE locktype = ''advisory'' AND objid = 42 AND NOT granted');
  PERFORM dblink_send_query('listener', change);
END $$;
CALL hold_rebuild($$SELECT evpg_register_projection('held', 'test.held_apply', mode => 'async', version => 2)$$);
SELECT is(wait_until($$SELECT count(*) = 1 FROM own_lock WHERE locktype = 'advisory' AND objsubid = 17753 AND NOT granted$$),
  true, 'who registers a projection again waits for a batch of its rebuild [rule 13]');
-- before a deadlock would be found
SET lock_timeout = '500ms';
SELECT is(error_of($$SELECT add('meanwhile', 0)$$), 'no error',
  'a session that waits to register a projection keeps no session from appending [rule 13]');
RESET lock_timeout;
SELECT pg_advisory_unlock(42) \g /dev/null
SELECT * FROM dblink_get_result('listener') x (r text) \g /dev/null
SELECT * FROM dblink_get_result('listener') x (r text) \g /dev/null
SELECT * FROM dblink_get_result('runner') x (r text) \g /dev/null
SELECT * FROM dblink_get_result('runner') x (r text) \g /dev/null
SELECT is((SELECT version FROM evpg.projection WHERE name = 'held'), 2,
  'a registration that has waited for a batch of the rebuild is done then [rule 13]');
SELECT evpg_drop_projection('held') \g /dev/null
CALL hold_rebuild($$SELECT evpg_drop_projection('held')$$);
SELECT is(wait_until($$SELECT count(*) = 1 FROM own_lock WHERE locktype = 'advisory' AND objsubid = 17753 AND NOT granted$$),
  true, 'who drops a projection waits for a batch of its rebuild [rule 13]');
-- before a deadlock would be found
SET lock_timeout = '500ms';
SELECT is(error_of($$SELECT add('meanwhile', 0)$$), 'no error',
  'a session that waits to drop a projection keeps no session from appending [rule 13]');
RESET lock_timeout;
SELECT pg_advisory_unlock(42) \g /dev/null
SELECT * FROM dblink_get_result('listener') x (r text) \g /dev/null
SELECT * FROM dblink_get_result('listener') x (r text) \g /dev/null
SELECT * FROM dblink_get_result('runner') x (r text) \g /dev/null
SELECT * FROM dblink_get_result('runner') x (r text) \g /dev/null
SELECT is((SELECT count(*) FROM evpg.projection WHERE name = 'held') + (SELECT count(*) FROM evpg.rebuild), 0::bigint,
  'a drop that has waited for a batch of the rebuild is done then [rule 13]');
CALL evpg_run();
SELECT * FROM finish();
