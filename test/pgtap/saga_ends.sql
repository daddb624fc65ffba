-- saga_ends.sql: what is left of instances when they complete, fail or wait (rules 16 to 18).

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/same_state.sql

SELECT plan(9);
CREATE FUNCTION test.any_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT CASE WHEN command.command_type = 'No' THEN evpg_reject('no_way') ELSE evpg_event(command.command_type, command.data)
    END $$;
SELECT evpg_register_aggregate('a', 'test.any_handle', 'test.same_state') \g /dev/null
CREATE TABLE test.broken (why text);
ALTER TABLE test.broken REPLICA IDENTITY FULL;
CREATE FUNCTION test.react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
BEGIN
  IF event.data ? 'breaks' AND EXISTS (SELECT FROM test.broken) THEN
    RAISE EXCEPTION 'broken';
  END IF;
  IF event.data ? 'refused' THEN
    RETURN evpg_reaction(state, evpg_action_send('a', 'other', 'No'));
  END IF;
  IF event.data ? 'sends' THEN
    RETURN evpg_reaction(state, evpg_action_send('a', 'other', 'Did', undo => evpg_action_send('a', 'other', 'Undid')));
  END IF;
  IF event.data ? 'ends' THEN
    RETURN evpg_reaction(state, evpg_action_complete());
  END IF;
  RETURN evpg_reaction(state);
END $$;
SELECT evpg_register_saga('s', handler => 'test.react', event_types => '{Told}', max_attempts => 1) \g /dev/null
CREATE FUNCTION test.tell(id text, data jsonb) RETURNS bigint LANGUAGE sql AS $$
  SELECT position FROM evpg_execute('a', id, 'Told', data)
$$;

-- complete forgets what could be undone
SELECT tell('c', '{"sends": true}') \g /dev/null
CALL evpg_run();
SELECT is((SELECT jsonb_array_length(undo) FROM evpg.saga_instance WHERE key = 'c'), 1, 'what can be undone [rule 18]');
SELECT tell('c', '{"ends": true}') \g /dev/null
CALL evpg_run();
SELECT is((SELECT status || undo FROM evpg.saga_instance WHERE key = 'c'), 'completed[]',
  'is forgotten when the instance completes [rule 18]');

-- a wait for a saga ends when the reaction is done, not when the event has found its instance
INSERT INTO test.broken VALUES ('yes');
SELECT evpg_register_saga('t', handler => 'test.react', event_types => '{Told}', max_attempts => 5) \g /dev/null
SELECT tell('w', '{"breaks": true}') AS position \gset
CALL evpg_run(1);
SELECT is((SELECT (e.attempts, checkpoint >= :position)::text FROM evpg.saga_event e JOIN evpg.consumer c ON name = saga
  WHERE saga = 't' AND key = 'w'), '(1,t)',
  'an event that has been routed waits for another attempt [rule 17]');
SELECT is(evpg_wait_for('t', :position, '0'), false, 'it has not been reacted to [rule 16]');
DELETE FROM test.broken;
SELECT evpg_set_clock_offset('1 h') \g /dev/null
CALL evpg_run();
SELECT is(evpg_wait_for('t', :position, '0'), true, 'now it has [rule 16]');
SELECT evpg_set_clock_offset() \g /dev/null

-- a refused send says what is missing
SELECT tell('r', '{"refused": true}') \g /dev/null
CALL evpg_run();
SELECT is((SELECT (sqlstate, code, hint)::text FROM evpg.dead_letter WHERE saga = 's' AND key = 'r'),
  '(VE002,no_way,"Register a rejection_handler, or let it handle this code.")',
    'a refused send that nobody handles [rule 17]');
SELECT is((SELECT hint FROM evpg.dead_letter WHERE saga = 's' AND key = 'w'), NULL,
  'another error has no such hint [rule 17]');
-- a saga's name given for a projection's
SELECT is(evpg_drop_projection('s', true), false, 'a saga is no projection that could be dropped [rule 16]');
SELECT is((SELECT kind || ' ' || status FROM evpg.consumer WHERE name = 's'),
  'saga running', 'a saga is no projection that could be dropped, and keeps its consumer [rule 10]');
SELECT * FROM finish();
