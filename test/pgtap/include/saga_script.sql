-- saga_script.sql: what the saga that does what it is told is told; of functions or in C (test.kind_of_saga).  See
-- ../sagas.sql.

SELECT is(register_script('script'), true, 'a saga is registered [A30, B50, ' || saga_kind() || ']');
SELECT is(register_script('script'), false, 'the same again changes nothing [B50, ' || saga_kind() || ']');
SELECT is(run(), '0 0', 'nothing to do [A31, 1.2 test 9, ' || saga_kind() || ']');

-- ------------------------------------------------------------------ instances

SELECT tell('k1', '{"set": {"a": 0}}') \g /dev/null
SELECT is(run(), '0 0', 'an event that does not start an instance [rule 18, D28, ' || saga_kind() || ']');
SELECT is(instance('k1'), NULL, 'makes none [rule 18, ' || saga_kind() || ']');
SELECT start('k1', '{"set": {"a": 1}}'), tell('k1', '{"set": {"b": 2}}'), start('k2', '{"set": {"a": 3}}'),
  tell('k1', '{}', 'Other'), tell('k3') AS last \gset
SELECT run() \g /dev/null
SELECT is(instance('k1'), 'running 2 {"a": 1, "b": 2, "seen": 2}',
  'a start event makes one, from the initial state; each event changes its state [B50, ' || saga_kind() || ']');
SELECT is(instance('k2'), 'running 1 {"a": 3, "seen": 1}', 'each key has its own [B50, ' || saga_kind() || ']');
SELECT is((SELECT count(*) FROM evpg.saga_instance WHERE saga = saga()), 2::bigint,
  'and nobody else [B50, ' || saga_kind() || ']');
SELECT is((SELECT i.position = e.position AND i.state->>'position' = e.position::text
  FROM evpg_saga(saga(), 'k2') i, evpg.event e WHERE e.aggregate_id = 'k2' AND e.type = 'Started'), true,
  'with the position of its last event [B50, B56, ' || saga_kind() || ']');
SELECT is((SELECT started_at <= updated_at AND updated_at <= clock_timestamp() AND started_at > now() - interval '1 hour'
  FROM evpg_saga(saga(), 'k1')), true, 'and the times [B50, B56, ' || saga_kind() || ']');
SELECT is(pending('k1'), '0 0 0', 'and nothing before it [B50, ' || saga_kind() || ']');
SELECT is((SELECT count(*) FROM evpg.saga_event), 0::bigint, 'what was done is gone [B50, ' || saga_kind() || ']');
SELECT start('k1', '{"set": {"a": 9}}') \g /dev/null
SELECT run() \g /dev/null
SELECT is(instance('k1'), 'running 3 {"a": 9, "b": 2, "seen": 3}',
  'another start event is an event of the instance [rule 18, ' || saga_kind() || ']');
-- 2.4 test 7: state 3 after three events, one more: 4; in another session in ../saga_session.sql
SELECT start('count'), tell('count'), tell('count') \g /dev/null
SELECT run() \g /dev/null
SELECT tell('count') \g /dev/null
CALL evpg_run();
SELECT is(instance('count'), 'running 4 {"seen": 4}',
  'the state is kept, also by CALL evpg_run() [B55, 2.4 test 7, ' || saga_kind() || ']');

-- ------------------------------------------------------------------ sends

SELECT tell('s1', script(send('t1', 'Add', 5, 'first'), send('t2', 'Add', 7), send('t1', 'Nothing'),
  send('t1', 'Subtract', 2)), 'Started', actor => 'ann', correlation_id => 'corr') AS source \gset
SELECT tell('s2', script(send('t3', 'Add', 1)), 'Started') \g /dev/null
SELECT is(run(), '5 0', 'commands are sent, also one that changes nothing [A32, B51, 1.2 test 9, ' || saga_kind() || ']');
SELECT is(total('t1') || ', ' || total('t2') || ', ' || total('t3'), '2 3, 1 7, 1 1',
  'in order [B51, ' || saga_kind() || ']');
SELECT is(run(), '0 0', 'once [1.2 test 9, ' || saga_kind() || ']');
SELECT same($$SELECT e.type, e.command_id, e.correlation_id, e.causation_id, e.actor, e.metadata FROM evpg.event e
  WHERE e.aggregate_id IN ('t1', 't2') ORDER BY position$$,
  format($$SELECT x.type, command_id(saga(), 's1', s.event_id::text, x.n), 'corr', s.event_id::text, 'ann',
    jsonb_build_object('evpg', jsonb_build_object('saga', saga(), 'key', 's1', 'depth', 1))
    FROM evpg.event s, (VALUES (1, 'Added'), (2, 'Added'), (4, 'Subtracted')) x (n, type) WHERE s.position = %s
      ORDER BY x.n$$, :source),
  'command ids are of saga, key, event and number; correlation, cause, actor, and who sent them [rule 16, D06, D32, '
    || saga_kind() || ']');
SELECT is((SELECT e.correlation_id = s.event_id::text FROM evpg.event e, evpg.event s
  WHERE e.aggregate_id = 't3' AND s.aggregate_id = 's2'), true,
  'without a correlation it is the event [rule 16, ' || saga_kind() || ']');
SELECT start('s3', script(evpg_action_send('counter', 't4', 'Add', '{"n": 1}',
  metadata => '{"mine": [1], "evpg": {"saga": "false"}}', expected_version => 0))) \g /dev/null
SELECT run() \g /dev/null
SELECT is((SELECT metadata FROM evpg.event WHERE aggregate_id = 't4'),
  jsonb_build_object('mine', '[1]'::jsonb, 'evpg', jsonb_build_object('saga', saga(), 'key', 's3', 'depth', 1)),
  'the metadata of an action is kept, but nobody says that he is another saga [rule 16, ' || saga_kind() || ']');
-- a chain of sagas that react to what sagas did
SELECT start('chain', chain('chain', 3)) \g /dev/null
CALL runs(5) \gset
SELECT is(:'result'::text, '1 0, 1 0, 1 0, 0 0, 0 0',
  'each pass does what there was before it [A46, ' || saga_kind() || ']');
SELECT is((SELECT array_agg((metadata->'evpg'->>'depth')::int ORDER BY position) FROM evpg.event
  WHERE aggregate_id = 'chain'), ARRAY[NULL, 1, 2, 3], 'the depth of a chain is counted [rule 16, ' || saga_kind() || ']');
SELECT is((SELECT count(DISTINCT correlation_id) FROM evpg.event WHERE aggregate_id = 'chain'), 1::bigint,
  'which keeps its correlation [rule 16, ' || saga_kind() || ']');
SET evpg.max_saga_depth = 3;
SELECT start('deep', chain('deep', 4)) \g /dev/null
CALL runs(5) \gset
SELECT is(:'result'::text, '1 0, 1 0, 1 0, 0 1, 0 0', 'a chain that is too long ends [rule 16, ' || saga_kind() || ']');
SELECT alike(letters('deep'), 'tried 1 VE014 saga "script" reacts to itself%',
  'as a dead letter, at once [rule 16, ' || saga_kind() || ']');
SELECT evpg_discard_dead_letter(max(dead_letter_id), 'done') FROM evpg.dead_letter \g /dev/null
RESET evpg.max_saga_depth;
-- what users write there
SELECT is(error_of($$SELECT count(*)
  FROM evpg_append('counter', 'forged', ARRAY[evpg_event('Started', metadata => '{"evpg": {"depth": 9}}')])$$),
  'VE017 metadata key "evpg" is reserved', 'nobody else says how deep it is [rule 16, ' || saga_kind() || ']');
SELECT is(error_of($$SELECT count(*)
  FROM evpg_execute('counter', 'forged', 'Add', '{"n": 1}', metadata => '{"evpg": {"depth": 0}}')$$),
  'VE017 metadata key "evpg" is reserved', 'nor of a command [rule 16, ' || saga_kind() || ']');

-- ------------------------------------------------------------------ complete, compensate

SELECT start('done', script(send('d1', 'Add', 1), evpg_action_schedule('bell', '1 minute'), evpg_action_complete(),
  send('d1', 'Add', 2), evpg_action_schedule('bell2', '1 minute'))), tell('done', script(send('d1', 'Add', 4))) \g /dev/null
SELECT is(run(), '1 0', 'what comes after complete is skipped [rule 18, B51, ' || saga_kind() || ']');
SELECT is(instance('done') || ' ' || pending('done'), 'completed 1 {"seen": 1} 0 0 0',
  'the instance is completed, its timers are gone [rule 18, B51, ' || saga_kind() || ']');
SELECT tell('done', script(send('d1', 'Add', 8))), start('done', script(send('d1', 'Add', 16))) \g /dev/null
SELECT is(run() || ' ' || total('d1'), '0 0 1 1',
  'late events do not start it again [rule 18, 2.4 test 8, ' || saga_kind() || ']');
SELECT is(instance('done') || ' ' || pending('done'), 'completed 1 {"seen": 1} 0 0 0',
  'nor change it, nor wait for it [rule 18, ' || saga_kind() || ']');

SELECT start('undo', script(send('u1', 'Add', 1, undo => send('u1', 'Subtract', 1)), send('u2', 'Add', 2),
  send('u3', 'Add', 3, undo => send('u3', 'Subtract', 3)))) \g /dev/null
SELECT tell('undo', script(send('u4', 'Add', 4, undo => send('u4', 'Subtract', 4, 'back')))) \g /dev/null
SELECT is(run(), '4 0', 'sends with undo [rule 17, ' || saga_kind() || ']');
SELECT is((SELECT string_agg(u->>'aggregate_id', ',' ORDER BY n)
  FROM evpg.saga_instance, jsonb_array_elements(undo) WITH ORDINALITY x (u, n) WHERE saga = saga() AND key = 'undo'),
  'u4,u3,u1',
  'the last one first [rule 17, ' || saga_kind() || ']');
SELECT tell('undo', script(evpg_action_schedule('bell', '1 minute'), send('u5', 'Add', 5), evpg_action_compensate('why'),
  send('u5', 'Add', 6))), tell('undo', script(send('u5', 'Add', 7))) \g /dev/null
SELECT is(run(), '4 0', 'compensation sends them [rule 17, ' || saga_kind() || ']');
SELECT is((SELECT string_agg(aggregate_id, ',' ORDER BY position) FROM evpg.event
  WHERE aggregate_id LIKE 'u_' AND type = 'Subtracted'), 'u4,u3,u1', 'the last one first [rule 17, ' || saga_kind() || ']');
SELECT is(instance('undo') || ' ' || pending('undo') || ' ' || total('u5'), 'completed 3 {"seen": 3} 0 0 0 1 5',
  'then the instance is completed, and nothing more is done [rule 17, ' || saga_kind() || ']');
SELECT is((SELECT undo FROM evpg.saga_instance WHERE saga = saga() AND key = 'undo'), '[]',
  'nothing is left to undo [rule 17, ' || saga_kind() || ']');
SELECT start('undo2', script(evpg_action_compensate())) \g /dev/null
SELECT is(run() || ' ' || instance('undo2'), '0 0 completed 1 {"seen": 1}',
  'there may be nothing to undo [rule 17, ' || saga_kind() || ']');

-- ------------------------------------------------------------------ fail

SELECT start('failed', script(send('f1', 'Add', 1), evpg_action_schedule('bell', '1 minute'),
  evpg_action_fail('somebody must look'))), tell('failed', script(send('f1', 'Add', 2))) \g /dev/null
SELECT is(run(), '0 1', 'fail [rule 17, ' || saga_kind() || ']');
SELECT is(letters('failed'), 'tried 1 VE023 somebody must look',
  'is a dead letter at once [rule 17, ' || saga_kind() || ']');
SELECT is(instance('failed'), NULL, 'nothing of the reaction is done: no instance [rule 16, ' || saga_kind() || ']');
SELECT is(total('f1'), NULL, 'no command [rule 16, ' || saga_kind() || ']');
SELECT is((SELECT count(*) FROM evpg.timer WHERE key = 'failed'), 0::bigint, 'no timer [rule 16, ' || saga_kind() || ']');
SELECT is((SELECT count(*) FROM evpg.saga_event WHERE key = 'failed'), 2::bigint,
  'what comes later waits [rule 17, ' || saga_kind() || ']');

-- ------------------------------------------------------------------ refusals

SELECT start('no1', script(send('r1', 'Add', 1), send('r1', 'Subtract', 5, 'take', undo => send('r9', 'Add', 9)),
  send('r1', 'Add', 2))
  || jsonb_build_object('set',
    jsonb_build_object('on_refusal',
    '{"set": {"gave": "up"}}' || script(send('r2', 'Add', 3, undo => send('r2', 'Subtract', 3)))))) AS source \gset
SELECT is(run(), '3 0', 'a send is refused [rule 17, B53, ' || saga_kind() || ']');
SELECT is(total('r1') || ', ' || total('r2'), '2 3, 1 3',
  'the handler''s actions are done in its place, then the rest [rule 17, B53, ' || saga_kind() || ']');
SELECT is(instance('no1'), 'running 1 {"gave": "up", "seen": 1}',
  'the handler changes the state [rule 17, ' || saga_kind() || ']');
SELECT is((SELECT jsonb_path_query_array(undo, '$[*].aggregate_id') FROM evpg.saga_instance
  WHERE saga = saga() AND key = 'no1'), '["r2"]', 'only what was done can be undone [rule 17, ' || saga_kind() || ']');
SELECT is((SELECT state->'refused' FROM evpg_saga(saga(), 'no1')),
  jsonb_build_object('key', 'no1', 'label', 'take', 'aggregate_type', 'counter', 'aggregate_id', 'r1', 'command_type',
  'Subtract', 'data', '{"n": 5}'::jsonb,
  'sqlstate', 'VE002', 'code', 'underflow', 'message', 'total 1 is less than 5', 'detail', '{"total": 1}'::jsonb, 'attempts',
    1, 'source_position', :source), 'what it is told [rule 17, ' || saga_kind() || ']');
SELECT start('no2', script(send('r3', 'Subtract', 5)) || jsonb_build_object('set', jsonb_build_object('on_refusal',
  jsonb_build_object('set', jsonb_build_object('on_refusal', '{"set": {"second": true}}'::jsonb))
    || script(send('r4', 'Subtract', 6, 'inner'), send('r4', 'Add', 1))))) \g /dev/null
SELECT is(run(), '1 0', 'a handler''s send may be refused, too [rule 17, ' || saga_kind() || ']');
SELECT is(instance('no2') || ' ' || (SELECT state#>>'{refused,label}' FROM evpg_saga(saga(), 'no2')) || ' ' || total('r4'),
  'running 1 {"seen": 1, "second": true} inner 1 1', 'it is asked again [rule 17, ' || saga_kind() || ']');
SELECT start('no3', script(send('r5', 'Add', 5, undo => send('r5', 'Subtract', 5)), send('r6', 'Subtract', 1),
  send('r5', 'Add', 7)) || jsonb_build_object('set', jsonb_build_object('on_refusal', script(evpg_action_compensate('no')))))
  \g /dev/null
SELECT is(run() || ' ' || total('r5') || ' ' || instance('no3'), '2 0 2 0 completed 1 {"seen": 1}',
  'it may compensate, which ends all [rule 17, ' || saga_kind() || ']');
-- other refusals, of a conflict, an invariant, an interceptor
SELECT start('no4', jsonb_build_object('set', '{"on_refusal": {}}'::jsonb)
  || script(evpg_action_send('counter', 'r7', 'Add', '{"n": 1}', expected_version => 7))),
       start('no5', jsonb_build_object('set', '{"on_refusal": {}}'::jsonb) || script(send('r7', 'Add', 2000))) \g /dev/null
SELECT is(run(), '0 0', 'a conflict, a violated invariant [rule 17, ' || saga_kind() || ']');
SELECT is((SELECT string_agg(state#>>'{refused,sqlstate}', ' ' ORDER BY k)
  FROM unnest('{no4,no5}'::text[]) k, evpg_saga(saga(), k)), 'VE001 VE006', 'are refusals [rule 17, ' || saga_kind() || ']');
