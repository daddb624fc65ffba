-- async_index.sql: asynchronous projections of a type of events that has an index (rules 10 and 12).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(12);
SET test.kind = counter;
SELECT add('first', 0) \g /dev/null
SELECT connect('runner') \g /dev/null

-- ------------------------------------------------------------------ a type that is named twice

SELECT evpg_enable_index('event_type') \g /dev/null
SELECT evpg_register_projection('twice', 'test.sum_apply', mode => 'async', event_types => '{Added,Odd,Added}',
  start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('twice', 1), add('twice', 2), add('twice', 3, 'Odd') \g /dev/null
CALL evpg_run();
SELECT is(row_of('twice', 'twice'), '1.3 {"sum": 3, "count": 3}',
  'an event is applied once, though its type is named twice and has an index [rule 12]');
SELECT evpg_rebuild_projection('twice') \g /dev/null
SELECT is(row_of('twice', 'twice'), '2.3 {"sum": 3, "count": 3}',
  'an event is applied once, though its type is named twice and has an index; by a rebuild, too [rule 12]');
SELECT evpg_enable_index('event_type', false), evpg_drop_projection('twice') \g /dev/null

-- ------------------------------------------------------------------ an index that is dropped while a consumer is about to
-- use it

SELECT evpg_enable_index('event_type') \g /dev/null
SELECT evpg_register_projection('indexed', 'test.sum_apply', mode => 'async', event_types => '{Rare}', max_attempts => 1)
  \g /dev/null
SELECT add('i', 1, 'Rare') \g /dev/null
SELECT dblink_exec('listener', 'BEGIN') \g /dev/null
SELECT * FROM dblink('listener', $$SELECT evpg_enable_index('event_type', false)$$) x (changed boolean) \g /dev/null
SELECT dblink_send_query('runner', 'CALL evpg_run()') \g /dev/null
SELECT is(wait_until($$SELECT count(*) > 0 FROM own_lock WHERE relation = 'evpg.event_log'::regclass AND NOT granted$$),
  true, 'a consumer waits while an index of the log is dropped [rule 10]');
SELECT dblink_exec('listener', 'COMMIT') \g /dev/null
SELECT * FROM dblink_get_result('runner') x (r text) \g /dev/null
SELECT * FROM dblink_get_result('runner') x (r text) \g /dev/null
SELECT is((SELECT status || ' ' || errors_total FROM evpg.consumer WHERE name = 'indexed') || ' ' || rows_of('indexed'),
  'running 0 i: 1.1 {"sum": 0, "count": 1}',
    'a consumer waits while an index of the log is dropped, and then does without it [rule 10]');
SELECT evpg_drop_projection('indexed') \g /dev/null

-- ------------------------------------------------------------------ an index that is not valid

SELECT matches(error_of($$SELECT dblink_exec('runner',
    'CREATE UNIQUE INDEX CONCURRENTLY event_log_event_type ON evpg.event_log (type)')$$), '^23505 ',
  'an index that is made concurrently fails');
SELECT is(error_of($$SELECT evpg_enable_index('event_type')$$), '55000 index "evpg.event_log_event_type" is not valid',
  'an index that is not valid is not enabled');
SELECT is_empty('SELECT FROM evpg.optional_index', 'nor recorded');
SELECT is(evpg_enable_index('event_type', false), true, 'an index that is not valid is dropped');
SELECT is(evpg_enable_index('event_type'), true, 'and created again');

-- ------------------------------------------------------------------ advice for a registration

CREATE FUNCTION test.react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(state) $$;
CREATE PROCEDURE test.register_meanwhile(registration text) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM dblink_exec('listener', 'BEGIN'), dblink_exec('listener', 'LOCK TABLE evpg.event_log');
  PERFORM dblink_send_query('runner', registration);
  PERFORM wait_until($q$SELECT count(*) > 0 FROM own_lock WHERE relation = 'evpg.event_log'::regclass AND NOT granted$q$);
END $$;
CREATE PROCEDURE test.registered() LANGUAGE plpgsql AS $$
BEGIN
  PERFORM dblink_exec('listener', 'COMMIT');
  PERFORM * FROM dblink_get_result('runner') x (r text);
  PERFORM * FROM dblink_get_result('runner') x (r text);
END $$;
CREATE FUNCTION test.fence_locks() RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT count(*) FROM own_lock WHERE relation = 'evpg.fence'::regclass AND mode = 'ShareLock' $$;
CALL register_meanwhile($$SELECT evpg_register_projection('advised', 'test.sum_apply', event_types => '{Rare}')$$);
SELECT is(fence_locks(), 0::bigint,
  'the log is read for advice on a projection before appenders have to wait for its registration [rule 11]');
CALL registered();
CALL register_meanwhile($$SELECT evpg_register_saga('advised_saga', 'test.react', key_path => '$.data.none')$$);
SELECT is(fence_locks(), 0::bigint,
  'the log is read for advice on a saga before appenders have to wait for its registration [rule 16]');
CALL registered();
SELECT is((SELECT count(*) FROM evpg.projection WHERE name = 'advised') + (SELECT count(*) FROM evpg.saga), 2::bigint,
  'a projection and a saga are registered when the log can be read [rule 11]');
SELECT * FROM finish();
