-- null_arguments.sql: functions that change something refuse NULL where an argument needs a value, and do not return NULL.

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
CREATE FUNCTION test.seen(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
SELECT evpg_register_aggregate('note'), evpg_register_projection('seen', reducer => 'test.seen') \g /dev/null

CREATE TABLE test.refusal (call text, argument text);
INSERT INTO test.refusal VALUES
  ('evpg_set_clock_offset(NULL)', 'clock_offset'),
  ('evpg_register_aggregate(NULL)', 'aggregate type'),
  ('evpg_drop_aggregate(NULL)', 'aggregate type'), ($$evpg_drop_aggregate('note', NULL)$$, 'missing_ok'),
  ($$evpg_register_interceptor(NULL, 'test.seen')$$, 'interceptor name'),
  ($$evpg_register_interceptor('x', NULL)$$, 'interceptor'),
  ($$evpg_register_listener(NULL, 'test.seen')$$, 'listener name'),
  ($$evpg_register_listener('x', NULL)$$, 'listener'),
  ('evpg_drop_listener(NULL)', 'listener name'), ($$evpg_drop_listener('x', NULL)$$, 'missing_ok'),
  ('evpg_drop_interceptor(NULL)', 'interceptor name'), ($$evpg_drop_interceptor('x', NULL)$$, 'missing_ok'),
  ('evpg_register_translator(NULL, NULL)', 'translator name'), ($$evpg_register_translator('x', NULL)$$, 'translator'),
  ('evpg_drop_translator(NULL)', 'translator name'), ($$evpg_drop_translator('x', NULL)$$, 'missing_ok'),
  ('evpg_register_projection(NULL)', 'projection name'),
  ('evpg_drop_projection(NULL)', 'projection name'), ($$evpg_drop_projection('seen', NULL)$$, 'missing_ok'),
  ('evpg_register_saga(NULL)', 'saga name'),
  ('evpg_drop_saga(NULL)', 'saga name'), ($$evpg_drop_saga('x', NULL)$$, 'missing_ok'),
  ($$evpg_create_stream(NULL, 'a')$$, 'aggregate type'), ($$evpg_create_stream('note', NULL)$$, 'aggregate id'),
  ($$evpg_take_snapshot(NULL, 'a')$$, 'aggregate type'), ($$evpg_take_snapshot('note', NULL)$$, 'aggregate id'),
  ($$evpg_put_projection(NULL, 'k', '{}')$$, 'projection name'),
    ($$evpg_put_projection('seen', NULL, '{}')$$, 'projection key'),
  ('evpg_rebuild_projection(NULL)', 'projection name'),
  ($$evpg_rebuild_projection('seen', background => NULL)$$, 'background'),
  ('evpg_cancel_rebuild(NULL)', 'projection name'),
  ('evpg_rebuild_saga(NULL)', 'saga name'),
  ('evpg_pause_consumer(NULL)', 'consumer name'), ('evpg_resume_consumer(NULL)', 'consumer name'),
  ($$evpg_skip_event(NULL, 1, 'x')$$, 'consumer name'), ($$evpg_skip_event('seen', NULL, 'x')$$, 'event_position'),
  ($$evpg_skip_event('seen', 1, NULL)$$, 'reason'),
  ('evpg_replay_parked(NULL)', 'consumer name'),
  ('evpg_reschedule_timer(NULL, now())', 'timer_id'), ('evpg_reschedule_timer(1, NULL)', 'due_at'),
  ('evpg_cancel_timer(NULL)', 'timer_id'),
  ('evpg_retry_dead_letter(NULL)', 'dead_letter_id'),
  ($$evpg_discard_dead_letter(NULL, 'x')$$, 'dead_letter_id'), ('evpg_discard_dead_letter(1, NULL)', 'reason'),
  ('evpg_enable_index(NULL)', 'index_name'), ($$evpg_enable_index('tags', NULL)$$, 'enabled'),
  ($$evpg_receive(NULL, 'k')$$, 'source'), ($$evpg_receive('s', NULL)$$, 'message_key'),
  ($$evpg_set_retention(NULL, '1 day')$$, 'what'),
  ('evpg_prune_commands(NULL)', 'older_than'), ('evpg_prune_inbox(NULL)', 'older_than'),
  ('evpg_prune_sagas(NULL)', 'older_than'), ('evpg_prune_dead_letters(NULL)', 'older_than'),
  ('evpg_prune_parked_events(NULL)', 'older_than'),
  ($$evpg_grant(NULL, 'reader')$$, 'grantee'), ('evpg_grant(current_role::regrole, NULL)', 'access'),
  ($$evpg_revoke(NULL, 'reader')$$, 'grantee'), ('evpg_revoke(current_role::regrole, NULL)', 'access');

SELECT plan(2 * count(*)::int + 2) FROM test.refusal;
SELECT refused('SELECT ' || call, '22004 ' || argument || ' must not be null', call) FROM test.refusal;

-- NULL that means something
SELECT is((SELECT retried || ' ' || failed FROM evpg_retry_dead_letters(NULL)), '0 0',
  'evpg_retry_dead_letters(NULL) is about scheduled commands');
SELECT is(evpg_set_retention('inbox', NULL)::text, '', 'evpg_set_retention(…, NULL) ends the retention');
