-- prune.sql: what evpg_prune_sagas(), evpg_prune_dead_letters() and evpg_prune_parked_events() take away, and what must stay
-- (rules 10, 16 to 18).

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/same_state.sql

SELECT plan(31);
CREATE FUNCTION test.any_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT evpg_event(command.command_type, command.data) $$;
SELECT evpg_register_aggregate('a', 'test.any_handle', 'test.same_state') \g /dev/null
CREATE TABLE test.broken (why text);
ALTER TABLE test.broken REPLICA IDENTITY FULL;
CREATE FUNCTION test.react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
BEGIN
  IF event.data ? 'breaks' AND EXISTS (SELECT FROM test.broken) THEN
    RAISE EXCEPTION 'broken';
  END IF;
  RETURN evpg_reaction(jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1),
                       CASE WHEN event.data ? 'ends' THEN evpg_action_complete()
                         ELSE evpg_action_send('a', 'other', 'Did', undo => evpg_action_send('a', 'other', 'Undid')) END);
END $$;
SELECT evpg_register_saga('s', handler => 'test.react', event_types => '{Told}', max_attempts => 1) \g /dev/null
CREATE FUNCTION test.tell(id text, data jsonb DEFAULT '{}') RETURNS bigint LANGUAGE sql AS $$
  SELECT position FROM evpg_execute('a', id, 'Told', data)
$$;
CREATE FUNCTION test.instance(of_key text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(' ', status, saga_version, state, undo) FROM evpg.saga_instance WHERE key = of_key $$;

SELECT is(error_of(format('SELECT %s(%L)', name, '-1 second')), '22023 older_than must not be negative',
  name || ': the future is not pruned')
  FROM unnest('{evpg_prune_sagas,evpg_prune_dead_letters,evpg_prune_parked_events}'::text[]) name;
SELECT is(error_of('SELECT ' || name || '(NULL)'), '22004 older_than must not be null', name || ' needs an age')
  FROM unnest('{evpg_prune_sagas,evpg_prune_dead_letters,evpg_prune_parked_events}'::text[]) name;

-- ------------------------------------------------------------------ instances

SELECT tell('done'), tell('done', '{"ends": true}'), tell('runs') \g /dev/null
CALL evpg_run();
SELECT is(evpg_prune_sagas('1 hour'), 0::bigint, 'an instance that has completed just now stays [rule 18]');
SELECT evpg_set_clock_offset('2 hours') \g /dev/null
SELECT is(evpg_prune_sagas('1 hour'), 1::bigint, 'one that completed longer ago is pruned [rule 18]');
SELECT is(evpg_prune_sagas('1 hour'), 0::bigint, 'once [rule 18]');
SELECT is(instance('done'), 'completed 0 {} []', 'what is left is that it completed [rule 18]');
SELECT is(instance('runs') LIKE 'running 1 {"n": 1} [{%', true, 'one that runs stays as it is [rule 18]');
SELECT tell('done') \g /dev/null
CALL evpg_run();
SELECT is(instance('done'), 'completed 0 {} []', 'a late event does not start it again [rule 18]');
SELECT is((SELECT count(*) FROM evpg.saga_event), 0::bigint,
  'a late event leaves nothing to be done for a pruned instance [rule 16]');
SELECT is((SELECT status || ' ' || state FROM evpg_saga('s', 'done')), 'completed {}',
  'evpg_saga() shows that it completed [rule 18]');
SELECT evpg_rebuild_saga('s') \g /dev/null
SELECT is(instance('done'), 'completed 0 {} []', 'a rebuild leaves it as it is [rule 18]');
SELECT evpg_rebuild_saga('s', 'done') \g /dev/null
SELECT is(instance('done'), 'completed 0 {} []', 'a rebuild of this key alone leaves a pruned instance as it is [rule 18]');
SELECT is(instance('runs') LIKE 'running 1 {"n": 1} [{%', true, 'others are rebuilt [rule 18]');

-- ------------------------------------------------------------------ dead letters

INSERT INTO test.broken VALUES ('yes');
SELECT tell('runs', '{"breaks": true}'), tell('again', '{"breaks": true}'), tell('open', '{"breaks": true}') \g /dev/null
CALL evpg_run();
DELETE FROM test.broken;
SELECT evpg_discard_dead_letter(dead_letter_id, 'somebody''s name') FROM evpg.dead_letter WHERE key = 'runs' \g /dev/null
SELECT count(*) FROM evpg.dead_letter d, evpg_retry_dead_letter(d.dead_letter_id) WHERE d.key = 'again' \g /dev/null
SELECT is(evpg_prune_dead_letters('1 hour'), 0::bigint, 'dead letters resolved just now stay [rule 17]');
SELECT evpg_set_clock_offset('4 hours') \g /dev/null
SELECT is(evpg_prune_dead_letters('1 hour'), 2::bigint, 'those resolved longer ago are pruned [rule 17]');
SELECT is(evpg_prune_dead_letters('1 hour'), 0::bigint, 'once [rule 17]');
SELECT is((SELECT string_agg(concat_ws(' ', key, message, reason, context, resolution, resolved_by IS NOT NULL), ', '
  ORDER BY key) FROM evpg.dead_letter WHERE resolved_at IS NOT NULL),
  'runs  discarded t', 'of one that was discarded it stays what it was about, not what it said [rule 17]');
SELECT is((SELECT message FROM evpg.dead_letter WHERE key = 'open'), 'broken',
  'one that is open stays, however old [rule 17]');
SELECT evpg_rebuild_saga('s') \g /dev/null
SELECT is((SELECT state FROM evpg.saga_instance WHERE key = 'runs'), '{"n": 1}',
  'a rebuild still leaves out what was discarded [rule 18]');
SELECT is((SELECT count(*) FROM evpg_retry_dead_letters('s')), 1::bigint, 'the open one can be retried [rule 17]');
SELECT evpg_drop_saga('s') \g /dev/null
SELECT evpg_prune_dead_letters('0') \g /dev/null
SELECT is((SELECT count(*) FROM evpg.dead_letter), 0::bigint, 'without the saga nothing is left [rule 17]');

-- ------------------------------------------------------------------ parked events

CREATE FUNCTION test.sum_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event.data ? 'breaks' AND EXISTS (SELECT FROM test.broken) THEN
    RAISE EXCEPTION 'broken';
  END IF;
  RETURN jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1);
END $$;
INSERT INTO test.broken VALUES ('yes');
SELECT evpg_register_projection('p', 'test.sum_apply', mode => 'async', event_types => '{Told}', on_error => 'park',
  max_attempts => 1,
  start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT tell('x'), tell('x', '{"breaks": true}') AS bad, tell('y', '{"breaks": true}') AS worse \gset
CALL evpg_run();
SELECT evpg_skip_event('p', :bad, 'somebody''s name') \g /dev/null
DELETE FROM test.broken;
SELECT is(evpg_prune_parked_events('1 hour'), 0::bigint, 'an event that failed just now stays [rule 10]');
SELECT evpg_set_clock_offset('6 hours') \g /dev/null
SELECT is(evpg_prune_parked_events('1 hour'), 1::bigint, 'one that failed longer ago and was given up is pruned [rule 10]');
SELECT is(evpg_prune_parked_events('1 hour'), 0::bigint, 'once [rule 10]');
SELECT is((SELECT string_agg(concat_ws('|', key, error, sqlstate, context IS NOT NULL, skip_reason, skipped_by), ', '
  ORDER BY key) FROM evpg.parked_event),
  'x|f|, y|broken|P0001|t', 'its position and key stay, and what is to be replayed [rule 10]');
SELECT is(evpg_replay_parked('p'), 1::bigint, 'what is to be replayed is replayed, without the pruned event [rule 10]');
SELECT evpg_rebuild_projection('p') \g /dev/null
SELECT is((SELECT string_agg(key || ' ' || (state->>'n'), ', ' ORDER BY key) FROM evpg.projected_state WHERE name = 'p'),
  'x 1, y 1', 'a rebuild still leaves out what was given up [rule 10]');
SELECT * FROM finish();
