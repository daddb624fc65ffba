-- saga_failure.sql: reactions that fail, retries, dead letters; of functions or in C (test.kind_of_saga).  See
-- ../sagas_failures.sql.
-- The saga that is told what to do is registered with max_attempts 3, backoff 1000 s, max_backoff 1500 s: so
-- long that it does not matter how long the test takes.

-- ------------------------------------------------------------------ a technical failure rolls everything back

SELECT start('tech', '{"set": {"old": 1}}') \g /dev/null
SELECT run() \g /dev/null
SELECT tell('tech', script(evpg_action_schedule('bell', '1 minute'), send('x1', 'Add', 1, undo => send('x1', 'Subtract', 1)),
  send('x1', 'Fail', label => 'second'), send('x1', 'Add', 2)) || '{"set": {"new": 1}}'),
       tell('tech', script(send('x2', 'Add', 1))), start('other', script(send('x3', 'Add', 1))) \g /dev/null
SELECT is(run(), '1 0', 'the second of three sends fails; another instance goes on [rule 16, ' || saga_kind() || ']');
SELECT is(total('x1') || total('x2'), NULL,
  of() || 'rule 16, B52, D29, 2.5: the first is rolled back, the third is not sent, and what comes later waits');
SELECT is(instance('tech') || ' ' || pending('tech'), 'running 1 {"old": 1, "seen": 1} 2 0 0',
  'neither state, timer nor undo of it is kept [rule 16, B54, ' || saga_kind() || ']');
SELECT is((SELECT undo FROM evpg.saga_instance WHERE saga = saga() AND key = 'tech'), '[]',
  'there is nothing to undo [rule 16, ' || saga_kind() || ']');
SELECT is(total('x3'), '1 1', 'other instances go on [rule 17, D31, ' || saga_kind() || ']');
SELECT is((SELECT split_part(attempts('tech'), ' ', 1) || ' '
  || (split_part(attempts('tech'), ' ', 2)::int BETWEEN 900 AND 1250)), '1 true',
  'it is tried again after the back-off, with jitter [rule 17, ' || saga_kind() || ']');
SELECT is(run() || ', ' || split_part(attempts('tech'), ' ', 1), '0 0, 1', 'not before [rule 17, ' || saga_kind() || ']');
SELECT later(1300) \g /dev/null
SELECT is(run() || ', ' || split_part(attempts('tech'), ' ', 1), '0 0, 2',
  'when it is due it is tried once more [rule 17, ' || saga_kind() || ']');
SELECT is(split_part(attempts('tech'), ' ', 2)::int BETWEEN 1400 AND 1875, true,
  'the pause doubles, to max_backoff at most [rule 17, ' || saga_kind() || ']');
SELECT later(1300) \g /dev/null
SELECT is(run(), '0 0', 'not after the first pause [rule 17, ' || saga_kind() || ']');
SELECT later(700) \g /dev/null
SELECT is(run(), '0 1', 'after max_attempts it is a dead letter [rule 17, A32, ' || saga_kind() || ']');
SELECT alike(letters('tech'), 'tried 3 second VE009 %',
  'with attempts, label and error [A34, D31, rule 17, 1.2 test 9, ' || saga_kind() || ']');
SELECT same($$SELECT d.saga, d.key, d.source_position, d.timer_id, d.command, d.code, d.resolved_at, d.resolution,
  d.created_at > now() - interval '1 hour' FROM evpg.dead_letter d WHERE key = 'tech'$$,
  $$SELECT saga(), 'tech', (SELECT min(position) FROM evpg.event WHERE aggregate_id = 'tech' AND type = 'Told'),
    NULL::bigint, send('x1', 'Fail', label => 'second'), NULL::text, NULL::timestamptz, NULL::text, true$$,
  'and the envelope of the command, and the event [A34, rule 17, 1.2 test 9, ' || saga_kind() || ']');
SELECT is(pending('tech'), '2 0 1', 'the instance shows it [rule 17, ' || saga_kind() || ']');
SELECT is((SELECT parked FROM evpg.stat_consumer WHERE name = saga()),
  (SELECT count(*) FROM evpg.dead_letter WHERE saga = saga() AND resolved_at IS NULL),
  'so does evpg.stat_consumer [rule 17, ' || saga_kind() || ']');
SELECT later(1000000) \g /dev/null
SELECT is(run() || ' ' || pending('tech'), '0 0 2 0 1',
  'it is not tried again, and later events wait [rule 17, ' || saga_kind() || ']');

-- ------------------------------------------------------------------ a dead letter is retried, or given up

SELECT dead_letter_id AS letter FROM evpg.dead_letter WHERE key = 'tech' \gset
SELECT same(format('SELECT status, aggregate_type, sqlstate, code IS NULL FROM evpg_retry_dead_letter(%s)', :letter),
  $$VALUES ('failed', NULL::text, 'VE009', true)$$, 'retried, it fails again [rule 17, ' || saga_kind() || ']');
SELECT is(run() || ' ' || pending('tech'), '0 0 2 0 1', 'and is still there [rule 17, ' || saga_kind() || ']');
SELECT refused(format('SELECT evpg_discard_dead_letter(%s, %s)', :letter, r), e,
  'discarded for ' || r || ' [rule 17, ' || saga_kind() || ']')
  FROM (VALUES ($$''$$, '22023 reason must not be empty'), ($$E'\n'$$, '22023 reason contains%')) x (r, e);
SELECT is(evpg_discard_dead_letter(:letter, 'never mind'), true, 'it is given up [rule 17, ' || saga_kind() || ']');
SELECT is(evpg_discard_dead_letter(:letter, 'again'), false, 'once [rule 17, ' || saga_kind() || ']');
SELECT is((SELECT count(*) FROM evpg_retry_dead_letter(:letter)), 0::bigint,
  'nor can it be retried [rule 17, ' || saga_kind() || ']');
SELECT same(format('SELECT resolution, reason, resolved_by, resolved_at > now() - interval %L FROM evpg.dead_letter '
  'WHERE dead_letter_id = %s', '1 hour', :letter), $$VALUES ('discarded', 'never mind', session_user::text, true)$$,
  'which is kept [A34, ' || saga_kind() || ']');
SELECT is(run() || ' ' || pending('tech') || ' ' || instance('tech'), '1 0 0 0 0 running 2 {"old": 1, "seen": 2}',
  'the instance goes on with what comes later [rule 17, ' || saga_kind() || ']');

-- refused, and not handled: retried until it can be done
SELECT start('poor', '{"set": {"on_refusal": {"unhandled": true}}}'
  || script(send('y1', 'Add', 1), send('y2', 'Subtract', 5, 'take'), send('y3', 'Add', 1))) AS source \gset
SELECT tell('poor', script(send('y4', 'Add', 1))) \g /dev/null
SELECT is(run(), '0 0', 'a refusal that is not handled [rule 17, B53, ' || saga_kind() || ']');
SELECT is((SELECT count(*) FROM evpg.event WHERE aggregate_id LIKE 'y_'), 0::bigint,
  'rolls everything back [rule 16, ' || saga_kind() || ']');
SELECT later(2000) \g /dev/null
SELECT run() \g /dev/null
SELECT later(2000) \g /dev/null
SELECT is(run(), '0 1', 'is retried, and becomes a dead letter [rule 17, ' || saga_kind() || ']');
SELECT is(letters('poor'), 'tried 3 take VE002 underflow total 0 is less than 5',
  'with the code [A34, B53, ' || saga_kind() || ']');
SELECT is((SELECT (detail::jsonb = '{"total": 0}')::text FROM evpg.dead_letter WHERE key = 'poor'), 'true',
  'and the detail [A34, ' || saga_kind() || ']');
SELECT dead_letter_id AS letter FROM evpg.dead_letter WHERE key = 'poor' \gset
SELECT same(format('SELECT status, sqlstate, code, message FROM evpg_retry_dead_letter(%s)', :letter),
  $$VALUES ('rejected', 'VE002', 'underflow', 'total 0 is less than 5')$$,
  'retried, it is refused again [rule 17, ' || saga_kind() || ']');
SELECT try('y2', 'Add', '{"n": 7}') \g /dev/null
SELECT same(format('SELECT status, sqlstate, code, message FROM evpg_retry_dead_letter(%s)', :letter),
  $$VALUES ('ok', NULL::text, NULL::text, NULL::text)$$, 'retried when it can be done [rule 17, ' || saga_kind() || ']');
SELECT is(total('y1') || ', ' || total('y2') || ', ' || total('y3'), '1 1, 2 2, 1 1',
  'it is done [rule 17, ' || saga_kind() || ']');
SELECT same($$SELECT aggregate_id, command_id FROM evpg.event
  WHERE aggregate_id IN ('y1', 'y2', 'y3') AND command_id LIKE 'saga:%' ORDER BY aggregate_id$$,
  format($$SELECT x.id, command_id(saga(), 'poor', s.event_id::text, x.n)
    FROM evpg.event s, (VALUES ('y1', 1), ('y2', 2), ('y3', 3)) x (id, n) WHERE position = %s$$, :source),
    'command ids are the same however often it is tried [rule 16, D30, ' || saga_kind() || ']');
SELECT is((SELECT resolution FROM evpg.dead_letter WHERE dead_letter_id = :letter), 'retried',
  'the dead letter is resolved [A34, ' || saga_kind() || ']');
SELECT is((SELECT count(*) FROM evpg_retry_dead_letter(:letter)), 0::bigint, 'once [rule 17, ' || saga_kind() || ']');
SELECT is(run() || ' ' || pending('poor'), '1 0 0 0 0', 'and the instance goes on [rule 17, ' || saga_kind() || ']');

-- retried in a transaction that is rolled back
SELECT start('back', '{"set": {"on_refusal": {"unhandled": true}}}' || script(send('y5', 'Subtract', 5))) \g /dev/null
SELECT run(), later(2000), run(), later(2000) \g /dev/null
SELECT run() \g /dev/null
SELECT later(4000) \g /dev/null
SELECT run() \g /dev/null
SELECT is(pending('back') || letters('back'), NULL, 'an instance that never began has no row [A34, ' || saga_kind() || ']');
SELECT is(letters('back'), 'tried 3 VE002 underflow total 0 is less than 5',
  'but a dead letter [A34, ' || saga_kind() || ']');
SELECT try('y5', 'Add', '{"n": 5}') \g /dev/null
BEGIN;
SELECT is((SELECT count(*) FROM evpg.dead_letter d, evpg_retry_dead_letter(d.dead_letter_id) r
  WHERE d.key = 'back' AND r.status = 'ok'), 1::bigint, 'retried in a transaction [rule 17, ' || saga_kind() || ']');
SELECT is(total('y5'), '2 0', 'it is done in it [rule 17, ' || saga_kind() || ']');
ROLLBACK;
SELECT is(letters('back') || ' ' || total('y5'), 'tried 3 VE002 underflow total 0 is less than 5 1 5',
  'rolled back, it is as it was [rule 17, ' || saga_kind() || ']');
SELECT is((SELECT retried || ' ' || failed FROM evpg_retry_dead_letters(saga(), 0)), '0 0',
  'none of them [rule 17, ' || saga_kind() || ']');
SELECT evpg_discard_dead_letter(dead_letter_id, 'other tests') FROM evpg.dead_letter
  WHERE key NOT IN ('back') AND resolved_at IS NULL \g /dev/null
SELECT run() \g /dev/null
SELECT start('many' || n, '{"set": {"on_refusal": {"unhandled": true}}}' || script(evpg_action_fail('no ' || n)))
  FROM generate_series(1, 3) n \g /dev/null
SELECT is(run(), '0 3', 'several [rule 17, ' || saga_kind() || ']');
SELECT is((SELECT retried || ' ' || failed FROM evpg_retry_dead_letters(saga(), 2)), '1 1',
  'the oldest two: one is done, one fails again [rule 17, ' || saga_kind() || ']');
SELECT is((SELECT retried || ' ' || failed FROM evpg_retry_dead_letters(saga())), '0 3',
  'all that are left [rule 17, ' || saga_kind() || ']');
SELECT is(error_of($$SELECT evpg_retry_dead_letters('nobody')$$), 'VE010 saga "nobody" is not registered',
  'of a saga that is not there [rule 17, ' || saga_kind() || ']');
SELECT is((SELECT retried || ' ' || failed FROM evpg_retry_dead_letters(NULL)), '0 0',
  'of no saga [rule 17, ' || saga_kind() || ']');
SELECT is(total('y5') || ' ' || instance('back'), '2 0 running 1 {"seen": 1}',
  'the one that was done [rule 17, ' || saga_kind() || ']');

-- what is asked for but cannot be: these never get better, but count as any other error
SELECT start('bad' || n, script(a))
  FROM (VALUES (1, '{"do": "send", "aggregate_type": "counter", "command_type": "Add"}'::jsonb),
  (2, evpg_action_send('nowhere', 'x', 'Add')),
  (3, '{"do": "jump"}'), (4, '{"do": "schedule", "timer": "t"}'), (5, '{"do": "schedule", "timer": "t", "delay": -1}'),
    (6, '{"do": "schedule", "timer": "t", "delay": 1e300}'),
  (7, '{"do": "schedule", "timer": "t", "due_at": "nonsense"}'), (8, '"complete"'), (9, '{"do": "fail"}'),
    (10, '{"do": "send", "aggregate_type": "counter", "aggregate_id": "x", "command_type": "Add", "undo": 7}'),
  (11, evpg_action_send('counter', 'x', 'Unknown')), (12, '{"do": "cancel"}')) x (n, a) \g /dev/null
SELECT run() \g /dev/null
SELECT later(2000) \g /dev/null
SELECT run() \g /dev/null
SELECT later(2000) \g /dev/null
SELECT is(run(), '0 11', 'actions that make no sense [A33, A36, B51, ' || saga_kind() || ']');
SELECT same($$SELECT key, letters(key)
  FROM unnest('{bad1,bad2,bad3,bad4,bad5,bad6,bad7,bad8,bad9,bad10,bad11,bad12}'::text[]) key$$, $$VALUES
  ('bad1', 'tried 3 22023 "aggregate_id" of a command is missing, or is not of the right type'),
    ('bad2', 'tried 3 VE003 aggregate type "nowhere" is not registered'), ('bad3', 'tried 3 22023 unknown action "jump"'),
  ('bad4', 'tried 3 22023 "delay" or "due_at" of a timer is missing, or is not of the right type'),
    ('bad5', 'tried 3 22008 delay of timer "t" is out of range'),
    ('bad6', 'tried 3 22008 delay of timer "t" is out of range'),
  ('bad7', 'tried 3 22007 invalid input syntax for type timestamp with time zone: "nonsense"'),
    ('bad8', 'tried 3 22023 "do" of an action is missing, or is not of the right type'),
  ('bad9', 'tried 1 22023 "reason" of a failure is missing, or is not of the right type'),
    ('bad10', 'tried 3 22023 "undo" of a send is missing, or is not of the right type'),
  ('bad11', 'tried 3 VE018 unknown command type "Unknown"'),
    ('bad12', 'tried 3 22023 "timer" of a timer is missing, or is not of the right type')$$,
    'each has an error that says so; an unknown aggregate type is named [A33, A36, 1.2 test 9, ' || saga_kind() || ']');
-- the code of a saga fails
SELECT start('code1', '{"fail": "no"}'), start('code2', '{"unhandled": true}'),
  start('nested', '{"set": {"on_refusal": {"actions": [{"do": "send", "aggregate_type": "counter", "aggregate_id": "z", '
  '"command_type": "Subtract", "data": {"n": 1}}]}}}' || script(send('z', 'Subtract', 1))) \g /dev/null
SELECT later(2000), run() \g /dev/null
SELECT later(2000) \g /dev/null
SELECT run() \g /dev/null
SELECT later(2000) \g /dev/null
SELECT run() \g /dev/null
SELECT is(letters('code1') LIKE 'tried 3 VE009 saga %failed: no', true, 'the handler fails [B54, ' || saga_kind() || ']');
SELECT is(letters('code2') ~ 'tried 3 VE009 (handler of saga "script" returned null|saga "script" called evpg_unhandled.*)',
  true, 'the handler says nothing [B54, ' || saga_kind() || ']');
SELECT is(letters('nested'), 'tried 3 VE002 underflow total 0 is less than 1',
  'a rejection handler whose own send is refused without end [rule 17, ' || saga_kind() || ']');
SELECT later(-clock_offset()) \g /dev/null
