-- translators.sql: messages whose commands are for a counter, of functions or in C (test.kind).  See ../translators.sql.

-- all of it
SELECT is(receive('1', orders('{"c": "a", "do": "Add", "n": 5}', '{"c": "b", "do": "Add", "n": 7}',
  '{"c": "a", "do": "Subtract", "n": 2}')),
  'ok a 1, ok b 1, ok a 2', 'the commands of a message are executed in their order [B59, B60, ' || kind() || ']');
SELECT is(receive('1', orders('{"c": "a", "do": "Add", "n": 5}')), NULL,
  'a message that was received has no effect [B60, ' || kind() || ']');
SELECT is(total('a') || ', ' || total('b'), '2 3, 1 7', 'whatever is in it [B60, ' || kind() || ']');
SELECT is(receive('none', '{}'), NULL, 'a message without commands [B59, ' || kind() || ']');
SELECT is(inbox(), 's:1 s:none', 'is received [B60, ' || kind() || ']');
SELECT is(receive('noop', orders('{"c": "a", "do": "Nothing"}', '{"c": "a", "do": "Add", "n": 1, "version": 2}')),
  'noop a 2, ok a 3',
  'nothing to do is no refusal [B60, ' || kind() || ']');
SELECT same($$SELECT aggregate_type, last_position, sqlstate, jsonb_array_length(events), events->0->>'type'
  FROM evpg_receive_message('s', 'events', 'shop', orders('{"c": "a", "do": "Add", "n": 1}'))$$,
  $$SELECT kind(), max(position), NULL::text, 1, 'Added' FROM evpg.event$$,
    'outcomes are those of evpg_try_execute [B60, ' || kind() || ']');

-- command ids
SELECT is((SELECT string_agg(command_id, ' ' ORDER BY position) FROM evpg.event
  WHERE aggregate_type = kind() AND version <= 2),
  concat_ws(' ', evpg_operation_key('evpg.inbox', 's', '1', '1'), evpg_operation_key('evpg.inbox', 's', '1', '2'),
  evpg_operation_key('evpg.inbox', 's', '1', '3')),
    'command ids are made of source, key and number [B60, ' || kind() || ']');
SELECT is(receive(E'e"\\ü', orders('{"c": "id", "do": "Add", "n": 1, "id": "own"}', '{"c": "id", "do": "Add", "n": 2}')),
  'ok id 1, ok id 2',
  'unless the translator says them [B60, ' || kind() || ']');
SELECT is((SELECT array_agg(command_id ORDER BY version) FROM evpg.event
  WHERE aggregate_type = kind() AND aggregate_id = 'id'),
  ARRAY['own', evpg_operation_key('evpg.inbox', 's', E'e"\\ü', '2')],
    'which does not change the others [B60, ' || kind() || ']');
SELECT is(evpg_prune_inbox('0') > 0, true, 'the inbox is pruned [B60, ' || kind() || ']');
SELECT is(receive(E'e"\\ü', orders('{"c": "id", "do": "Add", "n": 1, "id": "own"}', '{"c": "id", "do": "Add", "n": 2}')),
  'duplicate id 1, duplicate id 2',
  'a message that was forgotten repeats no command [rule 4, ' || kind() || ']');
SELECT is(inbox(), E's:e"\\ü', 'and is received [B60, ' || kind() || ']');
SELECT is(error_of($$SELECT receive('1', orders('{"c": "a", "do": "Add", "n": 6}'))$$) LIKE 'VE005 %', true,
  'one that is not what it was is an error [rule 4, ' || kind() || ']');
SELECT is(total('id'), '2 3', 'neither changes anything [rule 4, ' || kind() || ']');

-- nothing of it
SELECT stored() AS before \gset
SELECT same($$SELECT * FROM evpg_receive_message('s', '2', 'shop',
  orders('{"c": "a", "do": "Add", "n": 1}', '{"c": "new", "do": "Subtract", "n": 9}',
    '{"c": "new2", "do": "Add", "n": 1}', '{"c": "b", "do": "Add", "version": 77}', '{"c": "b", "do": "Nothing"}'))$$,
  $$VALUES ('rejected', kind(), 'new', 0::bigint, NULL::bigint, '[]'::jsonb, 'VE002', 'underflow', 'total 0 is less than 9',
    '{"total": 0}'::jsonb, NULL::text),
  ('conflict', kind(), 'b', 1, NULL, '[]', 'VE001', NULL,
    format('version conflict on aggregate "%s", stream "b": expected 77, actual 1', kind()),
  jsonb_build_object('aggregate_type', kind(), 'aggregate_id', 'b', 'expected', 77, 'actual', 1),
  'Read the stream and decide again, or leave expected_version out.')$$,
  'a message that is refused in part: the refusals are returned [B60, rule 5, ' || kind() || ']');
SELECT is(stored(), :'before', 'and nothing of it is left [B60, rule 5, ' || kind() || ']');
SELECT is(receive('2', orders('{"c": "a", "do": "Add", "n": 2000}')), 'invariant a 4 limit',
  'an invariant refuses [B60, ' || kind() || ']');
SELECT evpg_register_interceptor('no', 'test.no', command_types => '{Add}') \g /dev/null
SELECT is(receive('2', orders('{"c": "a", "do": "Add", "n": 1}', '{"c": "a", "do": "Nothing"}')), 'intercepted a 4 no',
  'an interceptor refuses [B60, ' || kind() || ']');
SELECT evpg_drop_interceptor('no') \g /dev/null
SELECT is(stored(), :'before', 'and nothing of them is left [B60, rule 5, ' || kind() || ']');
SELECT is(receive('2', orders('{"c": "a", "do": "Add", "n": 1}', '{"c": "new", "do": "Subtract", "n": 9}')),
  'rejected new 0 underflow',
  'delivered again it is refused again [B60, ' || kind() || ']');
SELECT is(try('new', 'Add', '{"n": 10}'), 'ok 1', 'until it can be done [B60, ' || kind() || ']');
SELECT is(receive('2', orders('{"c": "a", "do": "Add", "n": 1}', '{"c": "new", "do": "Subtract", "n": 9}')),
  'ok a 5, ok new 2',
  'then it is [B60, ' || kind() || ']');
SELECT is(receive('2', orders('{"c": "a", "do": "Add", "n": 1}', '{"c": "new", "do": "Subtract", "n": 9}')), NULL,
  'once [B60, ' || kind() || ']');
SELECT is(total('a') || ', ' || total('new'), '5 6, 2 1', 'with all of its effects [B60, ' || kind() || ']');

-- a defect is raised, in a transaction that can go on behind a savepoint
SELECT stored() AS before \gset
BEGIN;
SELECT count(*) FROM evpg_receive_message('s', '3', 'shop', orders('{"c": "a", "do": "Add", "n": 1}')) \g /dev/null
SELECT alike(error_of($$SELECT receive('4', orders('{"c": "a", "do": "Add", "n": 1}', '{"c": "a", "do": "Fail"}'))$$),
  'VE009 %',
  'a defect is raised [rule 8, ' || kind() || ']');
SELECT is(receive('5', orders('{"c": "a", "do": "Subtract", "n": 999}')), 'rejected a 6 underflow',
  'a refusal is not [B60, ' || kind() || ']');
SELECT is(inbox() ~ 's:3' AND inbox() !~ 's:[45]', true, 'neither was received [B60, ' || kind() || ']');
SELECT is(total('a'), '6 7', 'the state is right after both [rule 6, ' || kind() || ']');
ROLLBACK;
SELECT is(stored(), :'before', 'a transaction that is rolled back has received nothing [B60, ' || kind() || ']');
SELECT is(total('a'), '5 6', 'and the state is right [rule 6, ' || kind() || ']');

-- the context of the transaction
BEGIN;
SELECT evpg_set_context('ann', 'corr', '{"m": 1}') \g /dev/null
SELECT count(*) FROM evpg_receive_message('s', '6', 'shop', orders('{"c": "context", "do": "Add", "n": 1}')) \g /dev/null
COMMIT;
SELECT same($$SELECT actor, correlation_id, metadata FROM evpg.event
  WHERE aggregate_type = kind() AND aggregate_id = 'context'$$,
  $$VALUES ('ann', 'corr', '{"m": 1}'::jsonb)$$, 'commands of messages have the context [B60, ' || kind() || ']');

-- each duplicate is answered with its own stream
SELECT receive('three', orders('{"c": "x1", "do": "Add", "n": 1}', '{"c": "x22", "do": "Add", "n": 1}',
  '{"c": "x333", "do": "Add", "n": 1}')) \g /dev/null
SELECT evpg_prune_inbox('0') \g /dev/null
SELECT same($$SELECT status, aggregate_id, events->0->>'aggregate_type', events->0->>'aggregate_id'
  FROM evpg_receive_message('s', 'three', 'shop',
    orders('{"c": "x1", "do": "Add", "n": 1}', '{"c": "x22", "do": "Add", "n": 1}', '{"c": "x333", "do": "Add", "n": 1}'))$$,
  $$SELECT 'duplicate', id, kind(), id FROM unnest('{x1,x22,x333}'::text[]) id$$,
  'a duplicate among others is answered with the names of its own stream [rule 4, ' || kind() || ']');
