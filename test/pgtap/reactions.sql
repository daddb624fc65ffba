-- reactions.sql: the constructors that sagas call: what they make, and what they refuse.

\ir include/setup.sql
SELECT plan(81);

-- what they make
SELECT is(made, wanted::jsonb, regexp_replace(wanted, E'\\s+', ' ', 'g')) FROM (VALUES
  (evpg_action_send('a', 'i', 'C'),
    '{"do": "send", "aggregate_type": "a", "aggregate_id": "i", "command_type": "C", "data": {}}'),
  (evpg_action_send('a', 'i', 'C', NULL), '{"do": "send", "aggregate_type": "a", "aggregate_id": "i", "command_type": "C"}'),
  (evpg_action_send('a', 'i', 'C', '{"x": null, "y": [1.50]}', label => 'L', expected_version => -1,
    metadata => '{"m": null}',
                    undo => evpg_action_send('b', 'j', 'D', 'null', metadata => '{"n": 1}')),
   '{"do": "send", "aggregate_type": "a", "aggregate_id": "i", "command_type": "C", "data": {"x": null, "y": [1.50]},
     "label": "L",
     "expected_version": -1, "metadata": {"m": null}, "undo": {"do": "send", "aggregate_type": "b", "aggregate_id": "j",
     "command_type": "D", "data": null, "metadata": {"n": 1}}}'),
  (evpg_action_send('a', 'i', 'C', '7', expected_version => 9223372036854775807),
   '{"do": "send", "aggregate_type": "a", "aggregate_id": "i", "command_type": "C", "data": 7, '
     '"expected_version": 9223372036854775807}'),
  (evpg_action_schedule('t', '10 minutes'), '{"do": "schedule", "timer": "t", "delay": 600}'),
  (evpg_action_schedule('t', '0'), '{"do": "schedule", "timer": "t", "delay": 0}'),
  (evpg_action_schedule('t', '0.000001', payload => '[null]'),
    '{"do": "schedule", "timer": "t", "delay": 0.000001, "payload": [null]}'),
  (evpg_action_schedule('t', '1 month 1 day -1 hour'), '{"do": "schedule", "timer": "t", "delay": 2674800}'),
  (evpg_action_schedule('t', due_at => '2024-03-31 02:30:00.5+01'),
    '{"do": "schedule", "timer": "t", "due_at": "2024-03-31T01:30:00.5+00:00"}'),
  (evpg_action_cancel('t'), '{"do": "cancel", "timer": "t"}'),
  (evpg_action_compensate(), '{"do": "compensate"}'),
  (evpg_action_compensate('why'), '{"do": "compensate", "reason": "why"}'),
  (evpg_action_complete(), '{"do": "complete"}'),
  (evpg_action_fail('why'), '{"do": "fail", "reason": "why"}')) x (made, wanted);

-- the time of a timer is the same whatever the session shows
SET timezone = 'Asia/Kathmandu';
SET datestyle = 'SQL, DMY';
SELECT is(evpg_action_schedule('t', due_at => '2024-03-31 02:30:00.5+01')->>'due_at', '2024-03-31T01:30:00.5+00:00',
  'due_at is in UTC');
RESET timezone;
RESET datestyle;

-- reactions
SELECT is((made).state, state::jsonb, format('%s %s: the state', state, actions)) || E'\n' ||
       is((made).actions, actions::jsonb, format('%s %s: the actions', state, actions)) FROM (VALUES
  (evpg_reaction('{"a": 1}'), '{"a": 1}', '[]'),
  (evpg_reaction(NULL), NULL, '[]'),
  (evpg_reaction('null', VARIADIC NULL), 'null', '[]'),
  (evpg_reaction('{}', NULL, evpg_action_complete(), NULL), '{}', '[{"do": "complete"}]'),
  (evpg_reaction('{}', evpg_action_cancel('b'), evpg_action_cancel('a'), evpg_action_cancel('b')), '{}',
   '[{"do": "cancel", "timer": "b"}, {"do": "cancel", "timer": "a"}, {"do": "cancel", "timer": "b"}]'),
  (evpg_reaction('{}', VARIADIC (SELECT array_agg(evpg_action_fail(n::text)) FROM generate_series(1, 2) n)), '{}',
   '[{"do": "fail", "reason": "1"}, {"do": "fail", "reason": "2"}]')) x (made, state, actions);
SELECT is((SELECT jsonb_array_length((evpg_reaction('{}', VARIADIC array_agg(evpg_action_send('a', n::text, 'C')))).actions)
             FROM generate_series(1, 1000) n), 1000, 'many actions');

-- what they refuse
SELECT refused('SELECT ' || call, error, call) FROM (VALUES
  ($$evpg_action_send(NULL, 'i', 'C')$$, '22004 aggregate type must not be null'),
  ($$evpg_action_send('', 'i', 'C')$$, '22023 aggregate type must not be empty'),
  ($$evpg_action_send('a', NULL, 'C')$$, '22004 aggregate id must not be null'),
  ($$evpg_action_send('a', repeat('x', 1025), 'C')$$, 'VE014 aggregate id is too long'),
  ($$evpg_action_send('a', 'i', NULL)$$, '22004 command type must not be null'),
  ($$evpg_action_send('a', 'i', E'C\n')$$, '22023 command type contains a control character'),
  ($$evpg_action_send('a', 'i', 'C', (repeat('[', 101) || repeat(']', 101))::jsonb)$$,
    'VE014 command data is nested too deeply'),
  ($$evpg_action_send('a', 'i', 'C', label => '')$$, '22023 label must not be empty'),
  ($$evpg_action_send('a', 'i', 'C', undo => '{}')$$, '22023 undo is not a command to be sent'),
  ($$evpg_action_send('a', 'i', 'C', undo => '[{"do": "send"}]')$$, '22023 undo is not a command to be sent'),
  ($$evpg_action_send('a', 'i', 'C', undo => '"send"')$$, '22023 undo is not a command to be sent'),
  ($$evpg_action_send('a', 'i', 'C', undo => evpg_action_complete())$$, '22023 undo is not a command to be sent'),
  ($$evpg_action_send('a', 'i', 'C', undo => evpg_action_send('a', 'i', 'D', undo => evpg_action_send('a', 'i', 'E')))$$,
   '22023 undo has an undo itself'),
  ($$evpg_action_send('a', 'i', 'C', expected_version => -2)$$, '22023 expected_version must be at least -1'),
  ($$evpg_action_send('a', 'i', 'C', metadata => '[]')$$, '22023 metadata must be a JSON object'),
  ($$evpg_action_send('a', 'i', 'C', metadata => '{"evpg.x": 1}')$$, 'VE017 metadata key "evpg.x" is reserved'),
  ($$evpg_action_schedule(NULL, '1 s')$$, '22004 timer must not be null'),
  ($$evpg_action_schedule('', '1 s')$$, '22023 timer must not be empty'),
  ($$evpg_action_schedule('t')$$, '22023 a timer needs either delay or due_at'),
  ($$evpg_action_schedule('t', '1 s', now())$$, '22023 a timer needs either delay or due_at'),
  ($$evpg_action_schedule('t', '-1 s')$$, '22023 delay must not be negative'),
  ($$evpg_action_schedule('t', due_at => 'infinity')$$, '22023 due_at must be finite'),
  ($$evpg_action_cancel(NULL)$$, '22004 timer must not be null'),
  ($$evpg_action_fail(NULL)$$, '22004 reason must not be null')) x (call, error);
SELECT is(error_of('SELECT ' || call), '22023 action 2 is not an action of a saga', call) FROM unnest(ARRAY[
  $$evpg_reaction('{}', NULL, '{}')$$, $$evpg_reaction('{}', evpg_action_complete(), '"complete"')$$,
  $$evpg_reaction('{}', evpg_action_complete(), '[{"do": "complete"}]')$$,
  $$evpg_reaction('{}', evpg_action_complete(), '{"do": "jump"}')$$,
    $$evpg_reaction('{}', evpg_action_complete(), '{"do": 7}')$$]) call;

SELECT * FROM finish();
