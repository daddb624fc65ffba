-- context.sql: actor, correlation, causation and metadata of events.

\ir include/setup.sql
\ir include/counter.sql
-- JSON has the times of events in UTC
SET timezone = 'UTC';
SELECT evpg_register_aggregate('echo', library => 'evpg_test', symbol => 'echo') \g /dev/null

SELECT plan(75);

CREATE FUNCTION test.context_of(event evpg.event) RETURNS text LANGUAGE sql AS $$
  SELECT concat_ws(' ', coalesce(event.actor, '-'), CASE WHEN event.correlation_id = event.event_id::text THEN 'own'
  ELSE event.correlation_id END,
                   coalesce(event.causation_id, '-'), coalesce(event.metadata::text, '-'))
$$;

-- none
SELECT is((SELECT context_of(e) FROM evpg_execute('counter', 'a', 'Add') e), '- own - -',
  'without context there is none, and correlation is the event''s own id [A20, A21, 1.2 test 11]');
SELECT is((SELECT context_of(e) FROM evpg_execute('counter', 'a', 'Add', metadata => '{}') e), '- own - -',
  '{} is stored as NULL [A21]');
SELECT ok((SELECT count(DISTINCT correlation_id) = 1 AND min(correlation_id) = min(event_id::text) FILTER (WHERE version = 3)
             FROM evpg_execute('counter', 'a', 'AddEach', '{"ns": [1, 2, 3]}')),
             'the events of a command have the id of the first one as correlation [D40, D63]');

-- arguments
SELECT is((SELECT context_of(e) FROM evpg_execute('counter', 'a', 'Add', '{}', NULL, NULL, '{"k": 1}', 'me', 'corr',
  'cause') e), 'me corr cause {"k": 1}',
  'arguments of execute [A20, 4.6 test 7]');
SELECT is((SELECT context_of(e) FROM evpg_append('counter', 'a', evpg_events('{"type": "Odd"}'), NULL, NULL, '{"k": 1}',
  'me', 'corr', 'cause') e), 'me corr cause {"k": 1}',
  'arguments of append [A20]');

-- evpg_set_context
BEGIN;
SELECT evpg_set_context('ann', 'corr1', '{"from": "context", "k": 0}') \g /dev/null
SELECT is((SELECT context_of(e) FROM evpg_execute('counter', 'a', 'Add') e), 'ann corr1 - {"k": 0, "from": "context"}',
  'evpg_set_context [A20]');
SELECT is((SELECT context_of(e) FROM evpg_append('counter', 'a', evpg_events('{"type": "Odd"}')) e),
  'ann corr1 - {"k": 0, "from": "context"}', 'for append too [A20]');
SELECT is((SELECT context_of(e) FROM evpg_execute('counter', 'a', 'Add', metadata => '{"k": 1}', actor => 'bob',
  correlation_id => 'corr2') e),
  'bob corr2 - {"k": 1, "from": "context"}', 'an argument wins, metadata key by key [A21]');
SELECT is((SELECT context_of(e) FROM evpg_execute('counter', 'a', 'Emit',
  '{"events": [{"type": "Odd", "metadata": {"k": 2, "own": true}}]}', metadata => '{"k": 1, "arg": true}') e),
  'ann corr1 - {"k": 2, "arg": true, "own": true, "from": "context"}', 'the event''s own metadata wins over both [A21]');
SELECT is((SELECT context_of(e) FROM evpg_execute('counter', 'a', 'Emit',
  '{"events": [{"type": "Odd", "metadata": {"k": {"deep": 1}}}]}', metadata => '{"k": {"other": 1}}') e),
  'ann corr1 - {"k": {"deep": 1}, "from": "context"}', 'keys are replaced, not merged into [A21]');
SAVEPOINT before;
SELECT evpg_set_context('carl') \g /dev/null
SELECT is((SELECT context_of(e) FROM evpg_execute('counter', 'a', 'Add') e), 'carl own - -',
  'each call replaces all three [A20]');
ROLLBACK TO before;
SELECT is((SELECT context_of(e) FROM evpg_execute('counter', 'a', 'Add') e), 'ann corr1 - {"k": 0, "from": "context"}',
  'ROLLBACK TO brings the former back [A20]');
COMMIT;
SELECT is((SELECT context_of(e) FROM evpg_execute('counter', 'a', 'Add') e), '- own - -',
  'it ends with the transaction [A20]');
BEGIN;
SELECT evpg_set_context('ann', 'corr1', '{"k": 0}') \g /dev/null
SELECT evpg_set_context() \g /dev/null
SELECT is((SELECT context_of(e) FROM evpg_execute('counter', 'a', 'Add') e), '- own - -',
  'the context ends with a call without arguments [A20]');
COMMIT;

-- what code in C is told
BEGIN;
SELECT evpg_set_context('ann', 'corr1', '{"from": "context"}') \g /dev/null
CREATE TEMP TABLE described AS SELECT * FROM evpg_execute('echo', 'd', 'Describe', '{"x": 1}', 0, 'cmd', '{"arg": 1}',
  causation_id => 'cause');
SELECT is((SELECT data - 'received_at' FROM described),
  '{"version": 0, "aggregate_type": "echo", "aggregate_id": "d", "command_type": "Describe", "has_data": true,
    "data": {"x": 1}, "metadata": {"arg": 1, "from": "context"}, "command_id": "cmd", "correlation_id": "corr1",
    "causation_id": "cause", "actor": "ann", "host": true}'::jsonb || jsonb_build_object('session_role', session_user),
  'what a handler in C is told [A20]');
SELECT is((SELECT (data->>'received_at')::bigint FROM described),
  (SELECT (extract(epoch FROM recorded_at) * 1000000)::bigint FROM described),
  'received_at is recorded_at, in microseconds since 1970 [B02]');
SELECT is((SELECT metadata || to_jsonb(tags) FROM described),
  '[{"by": "handler", "arg": 1, "from": "context"}, "one", "zwei"]', 'metadata and tags by a handler in C [A21]');
COMMIT;
SELECT is((SELECT (state->'event') - '{occurred_at,recorded_at,data}'::text[] FROM evpg_state('echo', 'd')),
  (SELECT jsonb_build_object('version', 1, 'aggregate_type', 'echo', 'aggregate_id', 'd', 'type', 'Described',
  'schema_version', 1, 'tags', tags,
     'metadata', metadata, 'event_id', event_id, 'command_id', 'cmd', 'correlation_id', 'corr1', 'causation_id', 'cause',
     'actor', 'ann', 'host', true, 'session_role', session_user) FROM described),
  'what a fold in C is told [A20]');
SELECT is((SELECT state->'event'->'data' FROM evpg_state('echo', 'd')), (SELECT data FROM described),
  'a fold in C is told the data [A22]');
SELECT is((SELECT ARRAY[(state->'event'->>'occurred_at')::bigint, (state->'event'->>'recorded_at')::bigint]
  FROM evpg_state('echo', 'd')),
  (SELECT ARRAY[(extract(epoch FROM occurred_at) * 1000000)::bigint, (extract(epoch FROM recorded_at) * 1000000)::bigint]
  FROM described), 'a fold in C is told the times [A22]');
SELECT state AS warm FROM evpg_state('echo', 'd') \gset
SET evpg.state_cache_size = 0;
SELECT state FROM evpg_state('echo', 'd') \g /dev/null
SELECT is((SELECT state FROM evpg_state('echo', 'd')), :'warm'::jsonb,
  'a replay folds the same event as the command did [rule 6]');
RESET evpg.state_cache_size;
SELECT is((SELECT data - 'received_at' FROM evpg_execute('echo', 'e', 'Describe', NULL)),
  (SELECT jsonb_build_object('version', 0, 'aggregate_type', 'echo', 'aggregate_id', 'e', 'command_type', 'Describe',
  'has_data', false, 'data', NULL, 'metadata', NULL,
     'command_id', NULL, 'correlation_id', NULL, 'causation_id', NULL, 'actor', NULL, 'host', true, 'session_role',
       session_user)),
     'what is not there is NULL in C [A20]');

-- what a function is told
CREATE FUNCTION test.tell(state jsonb, command evpg.command) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('type', 'Told', 'data', to_jsonb(command)) $$;
CREATE FUNCTION test.keep(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT to_jsonb(event) - 'position' $$;
SELECT evpg_register_aggregate('tell', handler => 'test.tell', reducer => 'test.keep') \g /dev/null
CREATE TEMP TABLE told AS SELECT * FROM evpg_execute('tell', 't', 'Tell', '[1]', 0, 'cmd', '{"m": 1}', 'ann', 'corr',
  'cause');
SELECT is((SELECT data FROM told), (SELECT jsonb_build_object('aggregate_type', 'tell', 'aggregate_id', 't', 'command_type',
  'Tell', 'data', '[1]'::jsonb, 'expected_version', 0,
    'command_id', 'cmd', 'metadata', '{"m": 1}'::jsonb, 'actor', 'ann', 'correlation_id', 'corr', 'causation_id', 'cause',
    'version', 0, 'received_at', recorded_at, 'session_role', session_user) FROM told),
  'what a handler that is a function is told [A20]');
SELECT is((SELECT state FROM evpg_state('tell', 't')), (SELECT to_jsonb(told) - 'position' FROM told),
  'what a reducer that is a function is told: the row of the event [A20]');

-- refused
SELECT refused(statement, error, statement || ' [A21]') FROM (VALUES
  ($$SELECT evpg_set_context(metadata => '[1]')$$, '22023 metadata must be a JSON object'),
  ($$SELECT evpg_set_context(metadata => '"x"')$$, '22023 metadata must be a JSON object'),
  ($$SELECT evpg_set_context(metadata => 'null')$$, '22023 metadata must be a JSON object'),
  ($$SELECT evpg_set_context(metadata => '{"a": 1, "evpg.x": 1}')$$, 'VE017 metadata key "evpg.x" is reserved'),
  ($$SELECT evpg_set_context(actor => '')$$, '22023 actor must not be empty'),
  ($$SELECT evpg_set_context(actor => repeat('x', 1025))$$, 'VE014 actor is too long'),
  ($$SELECT evpg_set_context(correlation_id => E'a\nb')$$, '22023 correlation id contains a control character'),
  ($$SELECT evpg_execute('counter', 'a', 'Add', metadata => '[]')$$, '22023 metadata must be a JSON object'),
  ($$SELECT evpg_execute('counter', 'a', 'Add', metadata => 'null')$$, '22023 metadata must be a JSON object'),
  ($$SELECT evpg_execute('counter', 'a', 'Add', metadata => '{"Evpg.X": 1}')$$, 'VE017 metadata key "Evpg.X" is reserved'),
  ($$SELECT evpg_execute('counter', 'a', 'Add', actor => '')$$, '22023 actor must not be empty'),
  ($$SELECT evpg_execute('counter', 'a', 'Add', actor => E'\x7f')$$, '22023 actor contains a control character'),
  ($$SELECT evpg_execute('counter', 'a', 'Add', correlation_id => repeat('x', 1025))$$, 'VE014 correlation id is too long'),
  ($$SELECT evpg_execute('counter', 'a', 'Add', causation_id => '')$$, '22023 causation id must not be empty'),
  ($$SELECT evpg_append('counter', 'a', ARRAY[evpg_event('Odd', metadata => '"x"')])$$,
  '22023 metadata must be a JSON object'),
  ($$SELECT evpg_append('counter', 'a', ARRAY[evpg_event('Odd', metadata => '{"evpg.": 1}')])$$,
  'VE017 metadata key "evpg." is reserved'),
  ($$SELECT evpg_execute('counter', 'a', 'Emit', '{"events": [{"type": "Odd", "metadata": 1}]}')$$,
  '22023 metadata must be a JSON object'),
  ($$SELECT evpg_execute('counter_c', 'a', 'Emit', '{"events": [{"type": "Odd", "metadata": [1]}]}')$$,
  '22023 metadata must be a JSON object'),
  ($$SELECT evpg_execute('counter_c', 'a', 'Emit', '{"events": [{"type": "Odd", "metadata": {"evpg.a": 1}}]}')$$,
  'VE017 metadata key "evpg.a" is reserved')) x (statement, error);
SELECT is((SELECT context_of(e) FROM evpg_execute('counter', 'a', 'Emit',
  '{"events": [{"type": "Odd", "metadata": {"nested": {"evpg.x": 1}, "evpgx": 2}}]}') e),
  '- own - {"evpgx": 2, "nested": {"evpg.x": 1}}', 'only keys at the top that start with "evpg." are reserved [D52]');

-- the settings that evpg_set_context() fills are nobody's way around its checks
SELECT refused(format($q$DO $$BEGIN PERFORM set_config('evpg.%s', %L, true); PERFORM evpg_execute('counter', 'a', 'Add');
  END$$$q$, name, value), error, what) FROM (VALUES
  ('actor', repeat('x', 5000), 'VE014 %', 'an actor too long, by SET [D55]'),
  ('actor', E'a\nb', '22023 %', 'an actor with a control character, by SET [D55]'),
  ('correlation_id', E'a\nb', '22023 %', 'a correlation id with a control character, by SET [D55]'),
  ('metadata', '[1]', '22023 %', 'metadata that is no object, by SET [A21]'),
  ('metadata', 'not json', '22P02 %', 'metadata that is no JSON, by SET [A21]'),
  ('metadata', '{"evpg.x": 1}', 'VE017 %', 'metadata with a reserved key, by SET [A21]')) x (name, value, error, what);
SELECT * FROM finish();
