-- saga_timer.sql: timers of the saga that does what it is told; of functions or in C (test.kind_of_saga).  See
-- ../timers.sql.

SELECT start('t1', script(evpg_action_schedule('script', '1 minute',
  payload => '{"set": {"rang": 1}}' || script(send(of() || 't1', 'Add', 1))))) AS source \gset
SELECT is(run(), '0 0', 'a timer is set [B51, ' || saga_kind() || ']');
SELECT is(timer_of('t1') || ' ' || pending('t1'),
  'script 60 ' || ('{"set": {"rang": 1}}' || script(send(of() || 't1', 'Add', 1)))::text || ' 0 1 0',
  'it is kept, with its payload [B51, ' || saga_kind() || ']');
SELECT is((SELECT abs(extract(epoch FROM scheduled_at - clock_timestamp()) - clock_offset()) < 300 FROM evpg.timer
  WHERE key = 't1' AND saga = saga()), true, 'from now on [B51, ' || saga_kind() || ']');
SELECT later(10) \g /dev/null
SELECT is(run(), '0 0', 'it is not due [B51, ' || saga_kind() || ']');
SELECT later(51) \g /dev/null
SELECT is(run(), '1 0', 'until it is [B51, ' || saga_kind() || ']');
SELECT is(instance('t1') LIKE 'running 2 %"rang": 1%' AND total(of() || 't1') = '1 1' AND pending('t1') = '0 0 0', true,
  'it changes the state and sends, and is gone [B51, ' || saga_kind() || ']');
SELECT is(run(), '0 0', 'it fires once [B51, ' || saga_kind() || ']');
SELECT is(fired('t1') - '{scheduled_at,due_at,fired_at,payload}'::text[], '{"key": "t1", "name": "script"}',
  'what it is told [B51, ' || saga_kind() || ']');
SELECT is(ARRAY[(f->>'due_at')::bigint - (f->>'scheduled_at')::bigint = 60000000,
  (f->>'fired_at')::bigint >= (f->>'due_at')::bigint, (f->>'fired_at')::bigint - (f->>'due_at')::bigint < 300000000],
  '{t,t,t}', 'the times [B51, ' || saga_kind() || ']') FROM fired('t1') f;
SELECT same($$SELECT correlation_id, causation_id, metadata FROM evpg.event WHERE aggregate_id = of() || 't1'$$,
  format($$SELECT event_id::text, event_id::text,
    jsonb_build_object('evpg', jsonb_build_object('saga', saga(), 'key', 't1', 'depth', 1)) FROM evpg.event
    WHERE position = %s$$, :source),
    'what a timer causes is caused by the event that set it [rule 16, ' || saga_kind() || ']');
-- replaced, cancelled, several
SELECT start('t2', script(evpg_action_schedule('a', '1 minute', payload => '{"set": {"a": 1}}'),
  evpg_action_schedule('script', '1 minute', payload => '{"set": {"script": 1}}'),
  evpg_action_schedule('a', '2 minutes', payload => '{"set": {"a": 2}}'),
  evpg_action_schedule('b', '3 minutes'), evpg_action_cancel('b'), evpg_action_cancel('nothing'))) \g /dev/null
SELECT run() \g /dev/null
SELECT is(timer_of('t2'), 'a 120 {"set": {"a": 2}}, script 60 {"set": {"script": 1}}',
  'one of the same name is replaced, one that is cancelled is gone [B51, ' || saga_kind() || ']');
SELECT tell('t2', script(evpg_action_cancel('a'))) \g /dev/null
SELECT run() \g /dev/null
SELECT is(timer_of('t2'), 'script 60 {"set": {"script": 1}}', 'also by a later event [B51, ' || saga_kind() || ']');
SELECT start('t3', script(evpg_action_schedule('script', '1 minute', payload => '{"set": {"other": 1}}'))) \g /dev/null
SELECT run() \g /dev/null
SELECT is(timer_of('t2') = timer_of('t3'), false, 'each instance has its own [B51, ' || saga_kind() || ']');
SELECT tell('t2', script(evpg_action_complete())) \g /dev/null
SELECT run() \g /dev/null
SELECT is(timer_of('t2'), NULL, 'an instance that completes has none [rule 18, ' || saga_kind() || ']');
SELECT later(61) \g /dev/null
SELECT run() \g /dev/null
SELECT is(instance('t2') NOT LIKE '%script%' AND instance('t3') LIKE '%"other": 1%', true,
  'the other one fires [B51, ' || saga_kind() || ']');
-- set again by its own handler
SELECT start('t4', script(bell('1 minute', bell('1 minute', bell('1 minute', evpg_action_complete()))))) \g /dev/null
SELECT run() \g /dev/null
SELECT later(61), run() \g /dev/null
SELECT is(instance('t4') LIKE 'running 2 %' AND pending('t4') = '0 1 0', true,
  'a timer that sets itself again [B51, ' || saga_kind() || ']');
SELECT later(61) \g /dev/null
SELECT run() \g /dev/null
SELECT later(61) \g /dev/null
SELECT run() \g /dev/null
SELECT is(split_part(instance('t4'), ' {', 1) || ' ' || pending('t4'), 'completed 4 0 0 0',
  'fires each time [B51, ' || saga_kind() || ']');
-- a chain of timers that do not wait is none that may run away
SET evpg.max_saga_depth = 3;
SELECT start('t5', script(bell('0', bell('0', bell('0', bell('0', send(of() || 't5', 'Add', 1))))))) \g /dev/null
SELECT is(run(), '0 1', 'timers without a pause count as a chain [rule 16, ' || saga_kind() || ']');
SELECT alike(letters('t5'), '%VE014 saga %', 'which ends [rule 16, ' || saga_kind() || ']');
SELECT start('t6', script(bell('2 s', bell('2 s', bell('2 s', bell('2 s', send(of() || 't6', 'Add', 1))))))) \g /dev/null
DO $$ BEGIN FOR i IN 1 .. 6 LOOP PERFORM run(); PERFORM later(3); END LOOP; END $$;
SELECT is(total(of() || 't6'), '1 1', 'those that wait do not [rule 16, ' || saga_kind() || ']');
RESET evpg.max_saga_depth;
SELECT evpg_discard_dead_letter(dead_letter_id, 'done') FROM evpg.dead_letter
  WHERE resolved_at IS NULL AND saga = saga() \g /dev/null
-- a reaction to a timer that fails
SELECT start('t7', script(evpg_action_schedule('script', '1 s',
  payload => script(send(of() || 't7', 'Add', 1), send(of() || 't7', 'Fail', label => 'f'))),
  evpg_action_schedule('later', '2 s', payload => '{"set": {"later": 1}}'))) \g /dev/null
SELECT run() \g /dev/null
SELECT later(1) \g /dev/null
SELECT later(2) \g /dev/null
SELECT is(run() || ' ' || pending('t7') || coalesce(total(of() || 't7'), ''), '0 0 0 2 0',
  'a reaction to a timer fails: nothing of it is done, and the next timer waits [rule 16, ' || saga_kind() || ']');
SELECT later(2000) \g /dev/null
SELECT run() \g /dev/null
SELECT later(2000) \g /dev/null
SELECT is(run(), '0 1', 'it is retried, and becomes a dead letter [rule 17, ' || saga_kind() || ']');
SELECT is(letters('t7') LIKE 'tried 3 f VE009 broken%' AND pending('t7') = '0 2 1', true,
  'of the timer [rule 17, ' || saga_kind() || ']');
SELECT tell('t7', script(send(of() || 't7', 'Add', 2))) \g /dev/null
SELECT is(run() || ' ' || pending('t7'), '0 0 1 2 1',
  'events of the instance wait behind it [rule 17, ' || saga_kind() || ']');
SELECT is((SELECT status FROM evpg.dead_letter d, evpg_retry_dead_letter(d.dead_letter_id)
  WHERE d.saga = saga() AND d.resolved_at IS NULL), 'failed', 'retried, it fails again [rule 17, ' || saga_kind() || ']');
SELECT is((SELECT evpg_discard_dead_letter(dead_letter_id, 'no') FROM evpg.dead_letter
  WHERE saga = saga() AND resolved_at IS NULL), true, 'given up [rule 17, ' || saga_kind() || ']');
SELECT is(run() || ' ' || pending('t7') || ' ' || total(of() || 't7'), '1 0 0 0 0 1 2',
  'the instance goes on, with the timer that was due since [rule 17, ' || saga_kind() || ']');
-- timers of a saga can be moved and cancelled from outside; they do not fire while it is paused
SELECT start('t8', script(evpg_action_schedule('script', '1 hour', payload => '{"set": {"rang": 1}}'),
  evpg_action_schedule('b', '1 hour'))) \g /dev/null
SELECT run() \g /dev/null
SELECT is((SELECT bool_and(CASE name WHEN 'b' THEN evpg_cancel_timer(timer_id)
  ELSE evpg_reschedule_timer(timer_id, now() - interval '1 s') END) FROM evpg.timer WHERE saga = saga() AND key = 't8'),
  true, 'a timer of a saga is moved, another one cancelled [B26, ' || saga_kind() || ']');
SELECT evpg_pause_consumer(saga()) \g /dev/null
SELECT is(run() || ' ' || pending('t8'), '0 0 0 1 0',
  'while the saga is paused it does not fire [A46, ' || saga_kind() || ']');
SELECT evpg_resume_consumer(saga()) \g /dev/null
SELECT run() \g /dev/null
SELECT is(pending('t8') || (instance('t8') LIKE '%"rang": 1%'), '0 0 0true',
  'afterwards it does [A46, ' || saga_kind() || ']');
-- events come before timers that are due with them
SELECT start('t9', script(evpg_action_schedule('script', '1 s', payload => '{"set": {"rang": 1}}'))) \g /dev/null
SELECT run() \g /dev/null
SELECT tell('t9', script(evpg_action_cancel('script'))) \g /dev/null
SELECT later(2) \g /dev/null
SELECT run() \g /dev/null
SELECT is(instance('t9') LIKE '%rang%', false,
  'an event that was there before comes before a timer that is due [B51, ' || saga_kind() || ']');
