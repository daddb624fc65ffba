-- sagas_hostile.sql: what code of sagas, and who may execute commands, cannot do to others (rules 16 to 18).

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(12);

CREATE FUNCTION test.follow(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$ SELECT ('{}', event.data->'actions')::evpg.reaction $$;
CREATE FUNCTION test.meddle(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$ BEGIN EXECUTE event.data->>'do'; RETURN evpg_reaction('{}'); END $$;
CREATE FUNCTION test.key(event evpg.event) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  IF event.data ? 'stop' THEN
    RAISE EXCEPTION 'stop' USING ERRCODE = event.data->>'stop';
  END IF;
  RETURN event.aggregate_id;
END $$;
SELECT evpg_register_saga('follow', 'test.follow', key_function => 'test.key', event_types => '{Told}', max_attempts => 1),
       evpg_register_saga('meddle', 'test.meddle', event_types => '{Meddled}', max_attempts => 1) \g /dev/null
CREATE FUNCTION test.tell(id text, data jsonb, type text DEFAULT 'Told') RETURNS bigint LANGUAGE sql AS $$ SELECT count(*) FROM evpg_append('counter', id, ARRAY[evpg_event(type, data)]) $$;
CREATE FUNCTION test.letter(of_key text) RETURNS text LANGUAGE sql VOLATILE AS $$ SELECT concat_ws(' ', sqlstate, message) FROM evpg.dead_letter WHERE key IS NOT DISTINCT FROM of_key ORDER BY dead_letter_id DESC LIMIT 1 $$;

-- ------------------------------------------------------------------ actions

SELECT tell('undo', '{"actions": [{"do": "send", "aggregate_type": "counter", "aggregate_id": "u", "command_type": "Add", "data": {"n": 1},
  "undo": {"aggregate_type": "counter", "aggregate_id": "u", "command_type": "Add", "data": {"n": 2}, "undo": {}}}]}'),
  tell('half', '{"actions": [{"do": "send", "aggregate_type": "counter", "aggregate_id": "u", "command_type": "Add", "data": {"n": 1}, "undo": {}}]}') \g /dev/null
SELECT is((SELECT r::text FROM evpg_run_sagas() r), '(0,2)', 'rule 17: an undo that could not be done is found before the send');
SELECT is(letter('undo'), '22023 an undo cannot be undone', 'rule 17: nor is an undo undone');
SELECT is(evpg_stream_version('counter', 'u'), NULL, 'rule 16: nothing was sent');

-- ------------------------------------------------------------------ a reaction that works on sagas

SELECT tell('m' || n, jsonb_build_object('do', d), 'Meddled')
  FROM unnest('{SELECT evpg_run_sagas(),SELECT evpg_drop_saga(''meddle''),SELECT evpg_rebuild_saga(''meddle''),SELECT evpg_retry_dead_letters(''meddle'')}'::text[]) WITH ORDINALITY m (d, n) \g /dev/null
SELECT is((SELECT r::text FROM evpg_run_sagas() r), '(0,4)', 'rule 16: a reaction cannot run, drop or rebuild sagas');
SELECT is((SELECT array_agg(DISTINCT letter('m' || n)) FROM generate_series(1, 4) n),
  '{"VE020 a reaction of a saga cannot drop sagas","VE020 a reaction of a saga cannot rebuild sagas","VE020 a reaction of a saga cannot retry dead letters","VE020 a reaction of a saga cannot run sagas"}', 'rule 16: each is told so');

-- ------------------------------------------------------------------ errors that look like those of operators

SELECT tell('57', '{"stop": "57000"}'), tell('fine', '{"actions": []}') \g /dev/null
CALL evpg_run();
SELECT is(letter(NULL), '57000 stop', 'rule 17: a key function that pretends to be the server is a dead letter');
SELECT is((SELECT status FROM evpg_saga('follow', 'fine')), 'running', 'rule 17: and keeps nobody waiting');

-- ------------------------------------------------------------------ names that belong to evpg

SELECT is(error_of($$SELECT count(*) FROM evpg_execute('counter', 'x', 'Add', '{"n": 1}', command_id => 'timer:1')$$), 'VE017 command id "timer:1" is reserved', 'rule 4: who executes a command cannot take the id of a scheduled one');
SELECT is(error_of($$SELECT count(*) FROM evpg_append('counter', 'x', ARRAY[evpg_event('A')], command_id => 'saga:1')$$), 'VE017 command id "saga:1" is reserved', 'rule 4: nor that of a saga');
SELECT is(error_of($$SELECT evpg_schedule_command(now(), 'counter', 'x', 'Add', '{"n": 1}', metadata => '{"evpg": 1}')$$), 'VE017 metadata key "evpg" is reserved', 'rule 16: nor pretend to be one');

-- ------------------------------------------------------------------ whose context

BEGIN;
SELECT evpg_set_context('alice', 'of alice', '{"tenant": 1}') \g /dev/null
SELECT evpg_schedule_command(clock_timestamp(), 'counter', 'scheduled', 'Add', '{"n": 1}') \g /dev/null
COMMIT;
SELECT tell('told', '{"actions": [{"do": "send", "aggregate_type": "counter", "aggregate_id": "sent", "command_type": "Add", "data": {"n": 1}}]}') \g /dev/null
BEGIN;
SELECT evpg_set_context('mallory', 'of mallory', '{"tenant": 2}') \g /dev/null
SELECT evpg_run_sagas() \g /dev/null
COMMIT;
SELECT is((SELECT array_agg(concat_ws(' ', actor, correlation_id, metadata)) FROM evpg.event WHERE aggregate_id = 'scheduled'), '{"alice of alice {\"tenant\": 1}"}', 'A21: a scheduled command has the context of who scheduled it');
SELECT is((SELECT array_agg(concat_ws(' ', actor, correlation_id = (SELECT correlation_id FROM evpg.event WHERE aggregate_id = 'told'), metadata)) FROM evpg.event WHERE aggregate_id = 'sent'),
  '{"t {\"evpg\": {\"key\": \"told\", \"saga\": \"follow\", \"depth\": 1}}"}', 'rule 16: a send that of the event, not of who runs it');

SELECT * FROM finish();
