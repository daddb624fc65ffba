-- saga_context.sql: whose context the commands of sagas and timers have (A21, rule 16).

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(2);

CREATE FUNCTION test.follow(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT ('{}', event.data->'actions')::evpg.reaction
$$;
CREATE FUNCTION test.meddle(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE event.data->>'do';
  RETURN evpg_reaction('{}');
END $$;
CREATE FUNCTION test.key(event evpg.event) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  IF event.data ? 'stop' THEN
    RAISE EXCEPTION 'stop' USING ERRCODE = event.data->>'stop';
  END IF;
  RETURN event.aggregate_id;
END $$;
SELECT evpg_register_saga('follow', 'test.follow', key_function => 'test.key', event_types => '{Told}', max_attempts => 1),
       evpg_register_saga('meddle', 'test.meddle', event_types => '{Meddled}', max_attempts => 1) \g /dev/null
CREATE FUNCTION test.tell(id text, data jsonb, type text DEFAULT 'Told') RETURNS bigint LANGUAGE sql AS $$
  SELECT count(*) FROM evpg_append('counter', id, ARRAY[evpg_event(type, data)])
$$;
CREATE FUNCTION test.letter(of_key text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(' ', sqlstate, message) FROM evpg.dead_letter WHERE key IS NOT DISTINCT FROM of_key
    ORDER BY dead_letter_id DESC LIMIT 1
$$;

-- ------------------------------------------------------------------ whose context

BEGIN;
SELECT evpg_set_context('alice', 'of alice', '{"tenant": 1}') \g /dev/null
SELECT evpg_schedule_command(clock_timestamp(), 'counter', 'scheduled', 'Add', '{"n": 1}') \g /dev/null
COMMIT;
SELECT
  tell('told', '{"actions": [{"do": "send", "aggregate_type": "counter", "aggregate_id": "sent", "command_type": "Add", '
  '"data": {"n": 1}}]}') \g /dev/null
BEGIN;
SELECT evpg_set_context('mallory', 'of mallory', '{"tenant": 2}') \g /dev/null
SELECT evpg_run_sagas() \g /dev/null
COMMIT;
SELECT is((SELECT array_agg(concat_ws(' ', actor, correlation_id, metadata)) FROM evpg.event
  WHERE aggregate_id = 'scheduled'), '{"alice of alice {\"tenant\": 1}"}',
  'a scheduled command has the context of who scheduled it [A21]');
SELECT is((SELECT array_agg(concat_ws(' ', actor,
  correlation_id = (SELECT correlation_id FROM evpg.event WHERE aggregate_id = 'told'), metadata)) FROM evpg.event
  WHERE aggregate_id = 'sent'),
  '{"t {\"evpg\": {\"key\": \"told\", \"saga\": \"follow\", \"depth\": 1}}"}',
    'a send that of the event, not of who runs it [rule 16]');
SELECT * FROM finish();
