-- clock.sql: one clock for all that evpg records and compares, which evpg_set_clock_offset() moves for the whole database.

\ir include/setup.sql
\ir include/same_state.sql

-- across sessions
SELECT evpg_set_clock_offset('50 h') \g /dev/null
\connect -
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
SET search_path = public, test;
SELECT plan(37);

-- Whether a time is that of evpg's clock, or that of the wall.
CREATE FUNCTION test.which(t timestamptz) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT CASE WHEN abs(extract(epoch FROM t - evpg.clock_timestamp())) < 300 THEN 'evpg'
              WHEN abs(extract(epoch FROM t - clock_timestamp())) < 300 THEN 'wall' ELSE 'neither ' || t END $$;
CREATE FUNCTION test.offset() RETURNS interval LANGUAGE sql VOLATILE AS $$
  SELECT date_trunc('minute', evpg.clock_timestamp() - clock_timestamp() + interval '30 s') $$;

SELECT is(test.offset(), '50 h', 'a new session has the clock that was set');
SELECT evpg_set_clock_offset() \g /dev/null
SELECT is(test.offset(), '0', 'without an argument it is the wall clock again');
SELECT evpg_set_clock_offset('25 h') \g /dev/null
SELECT is(test.offset(), '25 h', 'it can be moved');

-- all times
CREATE FUNCTION test.told_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT evpg_event('Told', jsonb_build_object('at', command.received_at)) $$;
SELECT evpg_register_aggregate('told', 'test.told_handle', 'test.same_state') \g /dev/null
SELECT is((SELECT which(registered_at) FROM evpg.aggregate_type WHERE aggregate_type = 'told'), 'evpg', 'registered_at');
SELECT is((SELECT ARRAY[which((data->>'at')::timestamptz), which(recorded_at), which(occurred_at)]
  FROM evpg_execute('told', 'a', 'Tell', command_id => 'once')), '{evpg,evpg,evpg}',
    'command.received_at, recorded_at, occurred_at');
SELECT is((SELECT array_agg(which(recorded_at)) FROM evpg_append('told', 'a', evpg_events('{"type": "Told"}'))), '{evpg}',
  'of evpg_append');
SELECT is((SELECT which(recorded_at) FROM evpg_inject('told', 'a', evpg_event('Told'))), 'evpg', 'of evpg_inject');
SELECT is((SELECT which(created_at) FROM evpg_streams('told')), 'evpg', 'stream.created_at');
SELECT is((SELECT which(recorded_at) FROM evpg.command_record), 'evpg', 'command_record.recorded_at');
SELECT is(evpg_prune_commands(interval '1 h'), 0::bigint, 'evpg_prune_commands() compares with the same clock');
CREATE FUNCTION test.list_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT '1'::jsonb $$;
SELECT evpg_register_projection('inline', 'test.list_apply') \g /dev/null
SELECT evpg_register_projection('async', 'test.list_apply', mode => 'async') \g /dev/null
CREATE FUNCTION test.react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction('{}', evpg_action_schedule('bell', interval '1 day')) $$;
CREATE FUNCTION test.ring(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(jsonb_build_object('fired', timer.fired_at)) $$;
SELECT evpg_register_saga('saga', handler => 'test.react', timer_handler => 'test.ring', event_types => '{Told}')
  \g /dev/null
SELECT count(*) FROM evpg_execute('told', 'b', 'Tell') \g /dev/null
CALL evpg_run();
SELECT is((SELECT array_agg(DISTINCT which(updated_at)) FROM evpg.projected_state WHERE key = 'b'), '{evpg}',
  'updated_at of rows');
SELECT is((SELECT array_agg(DISTINCT w) FROM evpg.consumer, unnest(ARRAY[which(created_at), which(updated_at)]) w), '{evpg}',
  'of consumers');
SELECT is((SELECT array_agg(DISTINCT w) FROM evpg.saga_instance, unnest(ARRAY[which(started_at), which(updated_at)]) w),
  '{evpg}', 'of instances');
SELECT is((SELECT ARRAY[which(scheduled_at), which(due_at - interval '1 day')] FROM evpg.timer), '{evpg,evpg}', 'of timers');
SELECT is((SELECT max(lag_seconds) < 300 FROM evpg.stat_consumer), true,
  'no consumer lags behind after the clock has moved');
SELECT is(evpg_receive('shop', '1'), true, 'a message');
SELECT is((SELECT which(received_at) FROM evpg.inbox), 'evpg', 'inbox.received_at');
SELECT is(evpg_prune_inbox(interval '1 h'), 0::bigint, 'evpg_prune_inbox() compares with the same clock');

-- timers are due by it, and rows are old by it
SELECT evpg_set_clock_offset('50 h') \g /dev/null
CALL evpg_run();
SELECT is((SELECT which((state->>'fired')::timestamptz) FROM evpg.saga_instance), 'evpg', 'timer.fired_at');
SELECT is(ARRAY[evpg_prune_commands(interval '1 h'), evpg_prune_inbox(interval '1 h')], '{1,1}',
  'what is old by it is pruned');

-- it is the database's: transactional, for other sessions, across sessions
BEGIN;
SELECT evpg_set_clock_offset('-1 day') \g /dev/null
SELECT test.offset() AS back \gset
SAVEPOINT s;
SELECT evpg_set_clock_offset('3 days') \g /dev/null
ROLLBACK TO s;
SELECT test.offset() AS rolled_back \gset
ROLLBACK;
SELECT is(:'back'::interval, '-1 day', 'back');
SELECT is(:'rolled_back'::interval, '-1 day', 'ROLLBACK TO takes it back');
SELECT is(test.offset(), '50 h', 'ROLLBACK takes the offset back');
SELECT is(error_of(format('SELECT evpg_set_clock_offset(%L)', o)), '22008 clock offset is out of range', 'too far: ' || o)
  FROM unnest('{200 years,-200 years,36501 days,36500 days 1 us,-36500 days -1 us,99 years 876000 hours,178000000 '
    'years,36500 days 2562047788 hours}'::text[]) o;
SELECT is(error_of(format('SELECT evpg_set_clock_offset(%L)', o)), 'no error', 'not too far: ' || o)
  FROM unnest('{100 years 500 days,-36500 days,876000 hours,-100 years +876000 hours,50 h}'::text[]) o;
BEGIN READ ONLY;
SELECT error_of($$SELECT evpg_set_clock_offset('1 day')$$) AS read_only \gset
ROLLBACK;
SELECT is(:'read_only'::text, '25006 cannot execute evpg_set_clock_offset() in a read-only transaction', 'it writes');
SELECT * FROM finish();
