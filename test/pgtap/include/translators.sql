-- translators.sql: messages whose commands are for a counter, of functions or in C (test.kind).  See ../translators.sql.

-- all of it
SELECT is(receive('1', orders('{"c": "a", "do": "Add", "n": 5}', '{"c": "b", "do": "Add", "n": 7}', '{"c": "a", "do": "Subtract", "n": 2}')),
  'ok a 1, ok b 1, ok a 2', kind() || ', B59, B60: the commands of a message are executed in their order');
SELECT is(receive('1', orders('{"c": "a", "do": "Add", "n": 5}')), NULL, kind() || ', B60: a message that was received has no effect');
SELECT is(total('a') || ', ' || total('b'), '2 3, 1 7', kind() || ', B60: whatever is in it');
SELECT is(receive('none', '{}'), NULL, kind() || ', B59: a message without commands');
SELECT is(inbox(), 's:1 s:none', kind() || ', B60: is received');
SELECT is(receive('noop', orders('{"c": "a", "do": "Nothing"}', '{"c": "a", "do": "Add", "n": 1, "version": 2}')), 'noop a 2, ok a 3',
  kind() || ', B60: nothing to do is no refusal');
SELECT same($$SELECT aggregate_type, last_position, sqlstate, jsonb_array_length(events), events->0->>'type'
  FROM evpg_receive_message('s', 'events', 'shop', orders('{"c": "a", "do": "Add", "n": 1}'))$$,
  $$SELECT kind(), max(position), NULL::text, 1, 'Added' FROM evpg.event$$, kind() || ', B60: outcomes are those of evpg_try_execute');

-- command ids
SELECT is((SELECT string_agg(command_id, ' ' ORDER BY position) FROM evpg.event WHERE aggregate_type = kind() AND version <= 2),
  concat_ws(' ', evpg_operation_key('evpg.inbox', 's', '1', '1'), evpg_operation_key('evpg.inbox', 's', '1', '2'),
  evpg_operation_key('evpg.inbox', 's', '1', '3')), kind() || ', B60: command ids are made of source, key and number');
SELECT is(receive('e"\ü', orders('{"c": "id", "do": "Add", "n": 1, "id": "own"}', '{"c": "id", "do": "Add", "n": 2}')), 'ok id 1, ok id 2',
  kind() || ', B60: unless the translator says them');
SELECT is((SELECT array_agg(command_id ORDER BY version) FROM evpg.event WHERE aggregate_type = kind() AND aggregate_id = 'id'),
  ARRAY['own', evpg_operation_key('evpg.inbox', 's', 'e"\ü', '2')], kind() || ', B60: which does not change the others');
SELECT is(evpg_prune_inbox('0') > 0, true, kind() || ', B60: the inbox is pruned');
SELECT is(receive('e"\ü', orders('{"c": "id", "do": "Add", "n": 1, "id": "own"}', '{"c": "id", "do": "Add", "n": 2}')), 'duplicate id 1, duplicate id 2',
  kind() || ', rule 4: a message that was forgotten repeats no command');
SELECT is(inbox(), E's:e"\\ü', kind() || ', B60: and is received');
SELECT is(error_of($$SELECT receive('1', orders('{"c": "a", "do": "Add", "n": 6}'))$$) LIKE 'VE005 %', true,
  kind() || ', rule 4: one that is not what it was is an error');
SELECT is(total('id'), '2 3', kind() || ', rule 4: neither changes anything');

-- nothing of it
SELECT stored() AS before \gset
SELECT same($$SELECT * FROM evpg_receive_message('s', '2', 'shop', orders('{"c": "a", "do": "Add", "n": 1}', '{"c": "new", "do": "Subtract", "n": 9}',
    '{"c": "new2", "do": "Add", "n": 1}', '{"c": "b", "do": "Add", "version": 77}', '{"c": "b", "do": "Nothing"}'))$$,
  $$VALUES ('rejected', kind(), 'new', 0::bigint, NULL::bigint, '[]'::jsonb, 'VE002', 'underflow', 'total 0 is less than 9', '{"total": 0}'::jsonb, NULL::text),
  ('conflict', kind(), 'b', 1, NULL, '[]', 'VE001', NULL, format('version conflict on aggregate "%s", stream "b": expected 77, actual 1', kind()),
  jsonb_build_object('aggregate_type', kind(), 'aggregate_id', 'b', 'expected', 77, 'actual', 1),
  'Read the stream and decide again, or leave expected_version out.')$$,
  kind() || ', B60, rule 5: a message that is refused in part: the refusals are returned');
SELECT is(stored(), :'before', kind() || ', B60, rule 5: and nothing of it is left');
SELECT is(receive('2', orders('{"c": "a", "do": "Add", "n": 2000}')), 'invariant a 4 limit', kind() || ', B60: an invariant refuses');
SELECT evpg_register_interceptor('no', 'test.no', command_types => '{Add}') \g /dev/null
SELECT is(receive('2', orders('{"c": "a", "do": "Add", "n": 1}', '{"c": "a", "do": "Nothing"}')), 'intercepted a 4 no',
  kind() || ', B60: an interceptor refuses');
SELECT evpg_drop_interceptor('no') \g /dev/null
SELECT is(stored(), :'before', kind() || ', B60, rule 5: and nothing of them is left');
SELECT is(receive('2', orders('{"c": "a", "do": "Add", "n": 1}', '{"c": "new", "do": "Subtract", "n": 9}')), 'rejected new 0 underflow',
  kind() || ', B60: delivered again it is refused again');
SELECT is(try('new', 'Add', '{"n": 10}'), 'ok 1', kind() || ', B60: until it can be done');
SELECT is(receive('2', orders('{"c": "a", "do": "Add", "n": 1}', '{"c": "new", "do": "Subtract", "n": 9}')), 'ok a 5, ok new 2',
  kind() || ', B60: then it is');
SELECT is(receive('2', orders('{"c": "a", "do": "Add", "n": 1}', '{"c": "new", "do": "Subtract", "n": 9}')), NULL, kind() || ', B60: once');
SELECT is(total('a') || ', ' || total('new'), '5 6, 2 1', kind() || ', B60: with all of its effects');

-- a defect is raised, in a transaction that can go on behind a savepoint
SELECT stored() AS before \gset
BEGIN;
SELECT count(*) FROM evpg_receive_message('s', '3', 'shop', orders('{"c": "a", "do": "Add", "n": 1}')) \g /dev/null
SELECT alike(error_of($$SELECT receive('4', orders('{"c": "a", "do": "Add", "n": 1}', '{"c": "a", "do": "Fail"}'))$$), 'VE009 %',
  kind() || ', rule 8: a defect is raised');
SELECT is(receive('5', orders('{"c": "a", "do": "Subtract", "n": 999}')), 'rejected a 6 underflow', kind() || ', B60: a refusal is not');
SELECT is(inbox() ~ 's:3' AND inbox() !~ 's:[45]', true, kind() || ', B60: neither was received');
SELECT is(total('a'), '6 7', kind() || ', rule 6: the state is right after both');
ROLLBACK;
SELECT is(stored(), :'before', kind() || ', B60: a transaction that is rolled back has received nothing');
SELECT is(total('a'), '5 6', kind() || ', rule 6: and the state is right');

-- the context of the transaction
BEGIN;
SELECT evpg_set_context('ann', 'corr', '{"m": 1}') \g /dev/null
SELECT count(*) FROM evpg_receive_message('s', '6', 'shop', orders('{"c": "context", "do": "Add", "n": 1}')) \g /dev/null
COMMIT;
SELECT same($$SELECT actor, correlation_id, metadata FROM evpg.event WHERE aggregate_type = kind() AND aggregate_id = 'context'$$,
  $$VALUES ('ann', 'corr', '{"m": 1}'::jsonb)$$, kind() || ', B60: commands of messages have the context');

-- each duplicate is answered with its own stream
SELECT receive('three', orders('{"c": "x1", "do": "Add", "n": 1}', '{"c": "x22", "do": "Add", "n": 1}', '{"c": "x333", "do": "Add", "n": 1}')) \g /dev/null
SELECT evpg_prune_inbox('0') \g /dev/null
SELECT same($$SELECT status, aggregate_id, events->0->>'aggregate_type', events->0->>'aggregate_id'
  FROM evpg_receive_message('s', 'three', 'shop', orders('{"c": "x1", "do": "Add", "n": 1}', '{"c": "x22", "do": "Add", "n": 1}', '{"c": "x333", "do": "Add", "n": 1}'))$$,
  $$SELECT 'duplicate', id, kind(), id FROM unnest('{x1,x22,x333}'::text[]) id$$,
  kind() || ', rule 4: a duplicate among others is answered with the names of its own stream');
