-- storage.sql: a type without handler and reducer stores events alone (B24).

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql

SELECT plan(36);
SELECT is(evpg_register_aggregate('sensor'), true, 'a type that only stores events');
SELECT is(evpg_register_aggregate('sensor'), false, 'the same again changes nothing');

-- writing and reading
SELECT same($$SELECT version, type
  FROM evpg_append('sensor', 'a', evpg_events('[{"type": "Read", "data": {"t": 1}}, {"type": "Read", "data": {"t": 2}}]'), 0,
  'c1')$$,
  $$VALUES (1::bigint, 'Read'), (2, 'Read')$$, 'append');
SELECT is((SELECT count(*) FROM
  evpg_append('sensor', 'a', evpg_events('[{"type": "Read", "data": {"t": 1}}, {"type": "Read", "data": {"t": 2}}]'), 0,
  'c1')), 2::bigint, 'a known command_id [rule 4]');
SELECT is((SELECT count(*) FROM evpg_read_stream('sensor', 'a')), 2::bigint, 'once');
SELECT refused($$SELECT evpg_append('sensor', 'a', evpg_events('{"type": "Read"}'), 0)$$, 'VE001 %', 'a conflict [rule 2]');
SELECT is((SELECT version FROM evpg_inject('sensor', 'a', evpg_event('Read', '{"t": 3}'))), 3::bigint, 'inject');
SELECT is(evpg_create_stream('sensor', 'b'), true, 'an empty stream');
SELECT is((SELECT version FROM evpg_append('sensor', 'b', evpg_events('{"type": "Read"}'), -1)), 1::bigint,
  'an empty stream of a type that only stores events exists [rule 2]');

-- what follows from events
CREATE FUNCTION test.latest(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS 'SELECT event.data';
SELECT evpg_register_projection('latest', reducer => 'test.latest', aggregate_types => '{sensor}'),
  evpg_register_projection('later', mode => 'async', reducer => 'test.latest', aggregate_types => '{sensor}') \g /dev/null
CREATE FUNCTION test.react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(state, evpg_action_send(event.data->>'to', 'sent', 'Add', '{"n": 1}'))
$$;
SELECT evpg_register_saga('reacting', 'test.react', event_types => '{Order}', max_attempts => 1) \g /dev/null
SELECT count(*) FROM evpg_append('sensor', 'a', evpg_events('[{"type": "Read", "data": {"t": 4}}]')),
  evpg_append('sensor', 's1', evpg_events('{"type": "Order", "data": {"to": "counter"}}')) x,
  evpg_append('sensor', 's2', evpg_events('{"type": "Order", "data": {"to": "sensor"}}')) y \g /dev/null
CALL evpg_run(10);
SELECT is((SELECT string_agg(name || state, ' ' ORDER BY name) FROM evpg.projected_state WHERE key = 'a'),
  'later{"t": 4} latest{"t": 4}', 'projections');
SELECT is((SELECT state->>'total' FROM evpg_state('counter', 'sent')), '1', 'sagas');
SELECT is((SELECT string_agg(key || ' ' || sqlstate || ' ' || message, ', ') FROM evpg.dead_letter),
  's2 55000 aggregate type "sensor" only stores events', 'commands to a type that only stores events become dead letters');

-- what needs a handler or a state
SELECT refused(statement, '55000 aggregate type "sensor" only stores events', statement) FROM (VALUES
  ($$SELECT evpg_execute('sensor', 'a', 'Read')$$), ($$SELECT evpg_try_execute('sensor', 'a', 'Read')$$),
    ($$SELECT evpg_state('sensor', 'a')$$),
  ($$SELECT evpg_state('sensor', 'none')$$), ($$SELECT evpg_take_snapshot('sensor', 'a')$$),
    ($$SELECT evpg_schedule_command(now(), 'sensor', 'a', 'Read')$$)) x (statement);
SELECT is(error_fields($$SELECT evpg_execute('sensor', 'a', 'Read')$$),
  '|It was registered without handler and reducer, so it takes no commands and has no state.|Append events '
  'with evpg_append(), or register it with a handler and a reducer.', 'the error says why');
SELECT refused(format('SELECT evpg_register_aggregate(%s)', args), error, args) FROM (VALUES
  ($$'x', initial_state => '{"a": 1}'$$, '22023 an aggregate without handler and reducer has no state'),
    ($$'x', invariant => 'test.counter_invariant'$$, '22004 handler must not be null'),
  ($$'x', 'test.counter_handle'$$, '22004 reducer must not be null')) x (args, error);

-- it gets a handler, and loses it
SELECT is(evpg_register_aggregate('sensor', 'test.counter_handle', 'test.counter_apply',
  initial_state => '{"total": 0, "applied": 0}'), true, 'it gets a handler');
SELECT is((SELECT version FROM evpg_execute('sensor', 'b', 'Add', '{"n": 1}')), 2::bigint,
  'a type that gets a handler takes commands');
SELECT is(evpg_register_aggregate('sensor'), true, 'and loses it');
SELECT alike(error_of($$SELECT evpg_execute('sensor', 'b', 'Add', '{"n": 1}')$$), '55000 %',
  'a type whose handler was taken away only stores events');
SELECT * FROM finish();
