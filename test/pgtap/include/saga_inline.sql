-- saga_inline.sql: an inline saga reacts as an asynchronous one does, in the transaction of the event.  Included once for
-- each test.kind_of_saga.

SELECT register_script('inline ' || saga_kind()) \g /dev/null
SELECT of() AS of \gset

BEGIN;
SELECT tell('a', script(send('x1', 'Add', 1)), 'Started', 'ann', 'corr', '{"app": 1}') AS started \gset
SELECT is(instance('a'), 'running 1 {"seen": 1}', :'of' || 'the instance has reacted when the append returns [rule 16]');
SELECT is((SELECT count(*) FROM evpg_read_stream('counter', 'x1')), 1::bigint,
  :'of' || 'so its command is executed [rule 16]');
ROLLBACK;
SELECT is(instance('a') || trace(), NULL, :'of' || 'a rollback takes event and reaction back [rule 16]');

BEGIN;
SELECT evpg_set_context('somebody', 'else', '{"other": true}') \g /dev/null
SELECT tell('a', script(send('x1', 'Add', 1), send('x1', 'Add', 2)), 'Started', 'ann', 'corr', '{"app": 1}') AS started \gset
SELECT is((SELECT count(*) FROM evpg.saga_event), 0::bigint, :'of' || 'nothing is left for workers [rule 16]');
SELECT is(run(), '0 0', :'of' || 'and they find nothing [rule 16]');
SELECT same($$ SELECT e.command_id, e.correlation_id, e.causation_id, e.actor, e.session_role, e.metadata
    FROM evpg_read_stream('counter', 'x1') e ORDER BY version $$,
  format($$ SELECT command_id(saga(), 'a', c.event_id::text, n), 'corr', c.event_id::text, 'ann', c.session_role,
      jsonb_build_object('evpg', jsonb_build_object('saga', saga(), 'key', 'a', 'depth', 1))
    FROM evpg.event c, generate_series(1, 2) n WHERE c.position = %s ORDER BY n $$, :started),
  :'of' || 'its commands have the fields that those of an asynchronous saga have [rule 16]');
COMMIT;
SELECT is((SELECT dispatched_total || ' ' || dead_lettered_total FROM evpg.stat_consumer WHERE name = saga()), '2 0',
  :'of' || 'they are counted [rule 16]');
SELECT is(evpg_wait_for(saga(), :started), true, :'of' || 'evpg_wait_for() has nothing to wait for [rule 16]');

-- several events of one call
SELECT count(*) FROM evpg_append('counter', 'a', ARRAY[evpg_event('Told', script(send('x1', 'Add', 3))),
  evpg_event('Other'), evpg_event('Told', script(send('x1', 'Add', 4)))]) \g /dev/null
SELECT is((SELECT string_agg(data->>'n', ' ' ORDER BY version) FROM evpg_read_stream('counter', 'x1')), '1 2 3 4',
  :'of' || 'an instance reacts to the events of a call in their order [rule 16]');
SELECT is((SELECT position FROM evpg_saga(saga(), 'a')),
  (SELECT max(position) FROM evpg.event WHERE aggregate_id = 'a'), :'of' || 'its position is that of the last [rule 16]');

-- what a reaction causes comes after it; a command to the stream of the event is one like others
SELECT start('chain', chain('chain', 5)) \g /dev/null
SELECT is(instance('chain'), 'running 6 {"seen": 6}',
  :'of' || 'an instance reacts to what its own commands append [rule 16]');
SELECT is((SELECT string_agg(metadata->'evpg'->>'depth', ' ' ORDER BY version) FROM evpg_read_stream('counter', 'chain')),
  '1 2 3 4 5', :'of' || 'the depth of a chain is counted in its transaction, too [rule 17]');
SELECT start('twice', script(
  evpg_action_send('counter', 'twice', 'Emit', jsonb_build_object('events', jsonb_build_array(
    jsonb_build_object('type', 'Told', 'data', '{"set": {"told": true}}'::jsonb)))),
  send('x2', 'Add', 1))) \g /dev/null
SELECT is(instance('twice'), 'running 2 {"seen": 2, "told": true}',
  :'of' || 'it has stored the first reaction before the next begins [rule 16]');
SELECT is((SELECT bool_and(position < (SELECT max(position) FROM evpg.event WHERE aggregate_id = 'twice'
    AND type = 'Told') OR aggregate_id = 'x2') FROM evpg.event WHERE aggregate_id = 'x2'), true,
  :'of' || 'a reaction does not begin in the middle of another [rule 16]');

-- refusals
SELECT start('r', jsonb_build_object('set', jsonb_build_object('on_refusal', script(send('x3', 'Add', 1))))
  || script(send('x4', 'Add', 1, undo => send('x4', 'Subtract', 1)), send('x4', 'Subtract', 5), send('x4', 'Add', 7)))
  \g /dev/null
SELECT is((SELECT string_agg(aggregate_id || type, ' ' ORDER BY position)
    FROM evpg.event WHERE aggregate_id IN ('x3', 'x4')),
  'x4Added x3Added x4Added', :'of' || 'the rejection handler replaces a refused command [rule 17]');
SELECT tell('r', script(evpg_action_compensate())) \g /dev/null
SELECT is(instance('r') LIKE 'completed 2 %' AND (SELECT max(version) = 3 FROM evpg_read_stream('counter', 'x4')), true,
  :'of' || 'compensating undoes what was sent [rule 17]');
SELECT tell('r', script(send('x4', 'Add', 1))) \g /dev/null
SELECT is((SELECT max(version) FROM evpg_read_stream('counter', 'x4')), 3::bigint,
  :'of' || 'a completed instance reacts no more [rule 18]');
SELECT tell('unknown', script(send('x4', 'Add', 1))) \g /dev/null
SELECT is(instance('unknown'), NULL, :'of' || 'only start events create an instance [rule 18]');

-- failures
SELECT start('f', '{"fail": "first"}') \g /dev/null
SELECT is(regexp_replace(attempts('f'), ' 1[0-2]..$', ' back-off') || ' ' ||
    (SELECT count(*) FROM evpg_read_stream('counter', 'f')), '1 back-off 1',
  :'of' || 'a reaction that fails does not fail the command, and was the first attempt [rule 17]');
SELECT tell('f', script(send('x5', 'Add', 1))) \g /dev/null
SELECT is((SELECT string_agg(attempts::text, ' ' ORDER BY position) FROM evpg.saga_event WHERE key = 'f'), '1 0',
  :'of' || 'later events of the instance wait for it [rule 17]');
SELECT start('other', script(send('x5', 'Add', 2))) \g /dev/null
SELECT is((SELECT max(version) FROM evpg_read_stream('counter', 'x5')), 1::bigint,
  :'of' || 'other instances do not [rule 17]');
SELECT later(1300) \g /dev/null
SELECT run() \g /dev/null
SELECT later(3000) \g /dev/null
SELECT run() \g /dev/null
SELECT is(letters('f'), 'tried 3 VE009 saga ' ||
  CASE saga_kind() WHEN 'C' THEN '"' || saga() || '" failed: first' ELSE 'failed: first' END,
  :'of' || 'workers make the other attempts, then it is a dead letter [rule 17]');
SELECT tell('f', script(send('x5', 'Add', 3))) \g /dev/null
SELECT is((SELECT count(*) FROM evpg.saga_event WHERE key = 'f'), 3::bigint, :'of' || 'events wait for that, too [rule 17]');
SELECT evpg_discard_dead_letter(dead_letter_id, 'test') FROM evpg.dead_letter WHERE key = 'f' \g /dev/null
SELECT is(run(), '0 0', :'of' || 'no start event has created the instance, so they have no effect [rule 18]');
SELECT start('f'), tell('f', script(send('x5', 'Add', 4))) \g /dev/null
SELECT is(instance('f') || ' ' || pending('f'), 'running 2 {"seen": 2} 0 0 0',
  :'of' || 'then it reacts in the transaction of the event again [rule 16]');
SELECT later(0 - clock_offset()) \g /dev/null

SELECT start('given up', script(evpg_action_fail('no use'))) \g /dev/null
SELECT is(letters('given up'), 'tried 1 VE023 no use', :'of' || 'fail makes a dead letter at once [rule 17]');
SELECT is((SELECT dead_lettered_total FROM evpg.stat_consumer WHERE name = saga()), 2::bigint,
  :'of' || 'dead letters are counted [rule 17]');
SET evpg.max_saga_depth = 3;
SELECT start('deep', chain('deep', 5)) \g /dev/null
RESET evpg.max_saga_depth;
SELECT is(instance('deep') || ' ' || letters('deep'), 'failed 3 {"seen": 3} tried 1 VE014 saga "' || saga() ||
  '" reacts to itself, or to others that react to it, without end',
  :'of' || 'a chain beyond evpg.max_saga_depth ends in a dead letter, and keeps what came before [rule 17]');

-- timers
SELECT start('t', script(evpg_action_schedule('script', '60 s', payload => script(send('x6', 'Add', 1))))) \g /dev/null
SELECT later(61) \g /dev/null
SELECT is(run(), '1 0', :'of' || 'timers are fired by workers [rule 16]');
SELECT is((SELECT max(version) FROM evpg_read_stream('counter', 'x6')), 1::bigint,
  :'of' || 'and their commands are executed [rule 16]');
SELECT later(0 - clock_offset()) \g /dev/null

-- the state by the log alone
SELECT is(evpg_rebuild_saga(saga(), 'a') || instance('a'), '3running 3 {"seen": 3}',
  :'of' || 'a rebuild folds all to which the instance has reacted [rule 18]');
SELECT evpg_drop_saga(saga()) \g /dev/null
