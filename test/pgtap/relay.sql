-- relay.sql: what evpg_read_all returns in one evpg can be injected into another one, whoever has written it there (A17,
-- rules 2 and 16).

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';

SELECT plan(20);

-- ------------------------------------------------------------------ the source
CREATE FUNCTION test.decide(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT evpg_event(command.command_type, command.data, command.metadata, ARRAY['tag ' || command.aggregate_id], 2,
    '2001-02-03 04:05:06+00') $$;
CREATE FUNCTION test.fold(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
SELECT evpg_register_aggregate('thing', 'test.decide', 'test.fold') \g /dev/null
CREATE FUNCTION test.react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(state, evpg_action_send('thing', event.aggregate_id,
    CASE event.type WHEN 'Start' THEN 'Go' ELSE 'Went' END)) $$;
SELECT evpg_register_saga('chain', 'test.react', event_types => '{Start,Go}') \g /dev/null
SELECT count(*) FROM evpg_execute('thing', '1', 'Start', '{"n": 1.50}', metadata => '{"tenant": 7}', actor => 'ann',
  command_id => 'c', causation_id => 'cause') \g /dev/null
CALL evpg_run(10);
SELECT count(*) FROM evpg_append('thing', '2', ARRAY[evpg_event('Bare', NULL), evpg_event('Second', caused_by => 1)],
  correlation_id => 'corr') \g /dev/null
SELECT count(*) FROM evpg_inject('thing', '3', evpg_event('Injected', metadata => '{"from": "elsewhere"}')) \g /dev/null
SELECT count(*) FROM evpg_inject('thing', '3', evpg_event('Injected', event_id => '01890a5d-ac96-774b-bcce-b302099a8001'),
  run_sagas => true) \g /dev/null
CREATE TABLE test.source AS SELECT * FROM evpg_read_all(0, NULL);
SELECT is((SELECT string_agg(type || ' ' || coalesce(metadata->>'evpg', '-'), ', ' ORDER BY position) FROM test.source),
  'Start -, Go {"key": "1", "saga": "chain", "depth": 1}, Went {"key": "1", "saga": "chain", "depth": 2}, '
    'Bare -, Second -, Injected {"no_sagas": true}, Injected -',
  'a source has events of callers, sagas and relays');

-- what is injected is as it was given
BEGIN;
SELECT evpg_set_context('mallory', 'of mallory', '{"mallory": 1}') \g /dev/null
SELECT is((SELECT (actor, correlation_id = event_id::text, causation_id, metadata)::text
  FROM evpg_inject('thing', '4', evpg_event('Injected'))), '(,t,,"{""evpg"": {""no_sagas"": true}}")',
  'the context of the session is not that of the event [A17]');
ROLLBACK;

-- ------------------------------------------------------------------ the target: another evpg in its place
DROP EXTENSION evpg CASCADE;
CREATE EXTENSION evpg;
CREATE FUNCTION test.decide(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT evpg_event(command.command_type)
$$;
CREATE FUNCTION test.fold(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
SELECT evpg_register_aggregate('thing', 'test.decide', 'test.fold') \g /dev/null
CREATE ROLE evpg_relay_role;
SELECT evpg_grant('evpg_relay_role', 'relay') \g /dev/null
GRANT USAGE ON SCHEMA test TO evpg_relay_role;
GRANT SELECT ON test.source TO evpg_relay_role;
CREATE FUNCTION test.relay(with_sagas boolean DEFAULT false) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  e test.source;
  n bigint := 0;
BEGIN
  FOR e IN SELECT * FROM test.source ORDER BY position LOOP
    n := n + (SELECT count(*) FROM evpg_inject(e.aggregate_type, e.aggregate_id,
      evpg_event(e.type, e.data, e.metadata, e.tags, e.schema_version, e.occurred_at, e.event_id), with_sagas,
      actor => e.actor, correlation_id => e.correlation_id, causation_id => e.causation_id));
  END LOOP;
  RETURN n;
END $$;
SET SESSION AUTHORIZATION evpg_relay_role;
SELECT is(relay(), 7::bigint, 'all of it is relayed, with the level relay [A17]');
SELECT is(relay(), 0::bigint, 'twice is a no-op [A18]');
RESET SESSION AUTHORIZATION;
SELECT is((SELECT count(*) FROM evpg.event), 7::bigint, 'nothing came twice [A18]');
SELECT is((SELECT array_agg(to_jsonb(e) - skipped ORDER BY position) FROM evpg.event e),
  (SELECT array_agg(to_jsonb(e) - skipped ORDER BY position) FROM test.source e),
  'all that an event says is as it was [A17]')
  FROM (VALUES ('{position,recorded_at,metadata,command_id,session_role}'::text[])) x (skipped);
SELECT is((SELECT array_agg(metadata - 'evpg' ORDER BY position) FROM evpg.event WHERE metadata - 'evpg' <> '{}'),
  E'{"{\\"tenant\\": 7}","{\\"from\\": \\"elsewhere\\"}"}', 'metadata but for evpg''s own [A17]');
SELECT is((SELECT string_agg(type || ' ' || (metadata->>'evpg'), ', ' ORDER BY position) FROM evpg.event),
  'Start {"no_sagas": true}, Go {"depth": 1, "no_sagas": true}, Went {"depth": 2, "no_sagas": true}, Bare '
    '{"no_sagas": true}, Second {"no_sagas": true}, Injected {"no_sagas": true}, Injected {"no_sagas": true}',
  'of evpg''s own the depth stays [rule 16]');
SELECT is((SELECT string_agg(DISTINCT session_role, ' ') FROM evpg.event), 'evpg_relay_role',
  'who relays has asked for it here');
SELECT is((SELECT count(*) FROM evpg.command_record), 0::bigint, 'ids of commands are the source''s');

-- a chain goes on with its depth
CREATE FUNCTION test.react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(state, evpg_action_send('thing', 'answer', 'Answer'))
$$;
SELECT evpg_register_saga('answering', 'test.react', event_types => '{Go}', max_attempts => 1) \g /dev/null
CREATE FUNCTION test.take(metadata jsonb, run_sagas boolean DEFAULT true) RETURNS text LANGUAGE sql AS $$
  SELECT coalesce(e.metadata->>'evpg', '-')
    FROM evpg_inject('thing', gen_random_uuid()::text, evpg_event('Go', metadata => take.metadata), take.run_sagas) e $$;
SELECT is(take('{"evpg": {"saga": "chain", "key": "1", "depth": 41, "no_sagas": true}}'), '{"depth": 41}',
  'sagas may react, whatever was said where it comes from [rule 16]');
CALL evpg_run(10);
SELECT is((SELECT metadata#>>'{evpg,depth}' FROM evpg.event WHERE type = 'Answer'), '42', 'the chain goes on [rule 16]');
SELECT is(take('{"evpg": {"depth": 100}}'), '{"depth": 100}', 'a long chain [rule 16]');
CALL evpg_run(10);
SELECT alike((SELECT message FROM evpg.dead_letter), '%without end%', 'ends [rule 16]');
SELECT is(take(metadata), want, 'metadata ' || metadata::text || ' [rule 16]')
  FROM (VALUES ('{"evpg": 7}'::jsonb, '-'), ('{"evpg": {"depth": "x"}}', '-'),
  ('{"evpg": {"depth": -1e3}}', '{"depth": -1000}'), ('{}', '-')) x (metadata, want);
SELECT is(take('{"evpg": [1]}', NULL), '{"no_sagas": true}', 'NULL is false [A19]');
SELECT is(error_of($$SELECT count(*) FROM evpg_inject('thing', '5', evpg_event('X'), actor => '')$$),
  '22023 actor must not be empty', 'what is given is checked');
DROP OWNED BY evpg_relay_role;
DROP ROLE evpg_relay_role;
SELECT * FROM finish();
