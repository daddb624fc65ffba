-- session_role.sql: who asked is recorded where it cannot be chosen, also of what happens later; and what evpg writes into
-- metadata and command ids cannot be forged by way of user code (rules 4 and 16, section 9).

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql

SELECT plan(46);
CREATE ROLE evpg_s_teller;
CREATE ROLE evpg_s_director;
CREATE ROLE evpg_s_team;
GRANT evpg_s_team TO evpg_s_teller;
SELECT evpg_grant(r, 'writer') FROM unnest('{evpg_s_teller,evpg_s_director,evpg_s_team}'::regrole[]) r \g /dev/null
GRANT USAGE ON SCHEMA test TO PUBLIC;
CREATE TABLE test.seen (n int GENERATED ALWAYS AS IDENTITY, what text, command evpg.command);
GRANT SELECT ON test.seen TO PUBLIC;

-- notes what it is told; commands its own command asks for go on from within
CREATE FUNCTION test.tell(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO test.seen (what, command) VALUES ('handler', command);
  IF command.command_type = 'Outer' THEN
    PERFORM public.evpg_execute('told', command.aggregate_id || '-inner', 'Inner', actor => 'somebody');
    PERFORM public.evpg_append('told', command.aggregate_id || '-appended', public.evpg_events('{"type": "Appended"}'));
    PERFORM public.evpg_schedule_command(clock_timestamp(), 'told', command.aggregate_id || '-later', 'Later');
  END IF;
  RETURN public.evpg_event(command.command_type, command.data, command.metadata);
END $$;
CREATE FUNCTION test.keep(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql
  AS 'SELECT state || jsonb_build_object(''by'', event.session_role)';
SELECT evpg_register_aggregate('told', 'test.tell', 'test.keep') \g /dev/null
CREATE FUNCTION test.asked(id text) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(concat_ws(' ', type, session_role), ', ' ORDER BY version) FROM evpg.event
    WHERE aggregate_type = 'told' AND aggregate_id = id
$$;

-- ------------------------------------------------------------------ commands
SELECT is((SELECT session_role FROM evpg_execute('told', 'a', 'Do', actor => 'evpg_s_director')), session_user::text,
  'who asked');
SET SESSION AUTHORIZATION evpg_s_teller;
SELECT is((SELECT session_role FROM evpg_execute('told', 'b', 'Do', actor => 'evpg_s_director')), 'evpg_s_teller',
  'whatever the actor');
SET ROLE evpg_s_team;
SELECT is((SELECT session_role FROM evpg_execute('told', 'b', 'Do')), 'evpg_s_teller',
  'session_role is that of the session, whatever role was set');
SELECT is((SELECT events->0->>'session_role' FROM evpg_try_execute('told', 'b', 'Do')), 'evpg_s_teller',
  'session_role is that of the session, also as JSON');
SELECT is((SELECT session_role FROM evpg_append('told', 'b', evpg_events('{"type": "Done"}'))), 'evpg_s_teller',
  'of an append');
RESET ROLE;
RESET SESSION AUTHORIZATION;
SELECT is(asked('b'), 'Do evpg_s_teller, Do evpg_s_teller, Do evpg_s_teller, Done evpg_s_teller', 'it is kept');
SELECT is((SELECT DISTINCT (command).session_role FROM test.seen WHERE (command).aggregate_id = 'b'), 'evpg_s_teller',
  'a handler is told');
SELECT is((SELECT state->>'by' FROM evpg_state('told', 'b')), 'evpg_s_teller', 'a reducer is told the session_role');
SELECT is((SELECT session_role FROM evpg_inject('told', 'b', evpg_event('Injected'))), session_user::text, 'of who injects');
SELECT is((SELECT array_agg(DISTINCT session_role ORDER BY session_role) FROM evpg_read_all(0, NULL)),
  ARRAY['evpg_s_teller', session_user::text], 'readers see it');
CREATE FUNCTION test.definer() RETURNS text LANGUAGE sql SECURITY DEFINER AS $$
  SELECT session_role FROM public.evpg_execute('told', 'b', 'Do')
$$;
SET SESSION AUTHORIZATION evpg_s_teller;
SELECT is(definer(), 'evpg_s_teller', 'a SECURITY DEFINER function does not hide it');
SELECT count(*) FROM evpg_execute('told', 'c', 'Outer') \g /dev/null
RESET SESSION AUTHORIZATION;
SELECT is(asked('c-inner') || ', ' || asked('c-appended'), 'Inner evpg_s_teller, Appended evpg_s_teller',
  'a command of a handler');

-- ------------------------------------------------------------------ what happens later
CALL evpg_run(10);
SELECT is(asked('c-later'), 'Later evpg_s_teller', 'a command that a handler has scheduled');
SET SESSION AUTHORIZATION evpg_s_teller;
SELECT evpg_schedule_command(clock_timestamp(), 'told', 'd', 'Outer', actor => 'evpg_s_director') \g /dev/null
RESET SESSION AUTHORIZATION;
SELECT is((SELECT session_role FROM evpg.timer), 'evpg_s_teller', 'a scheduled command is of who scheduled it');
CALL evpg_run(10);
CALL evpg_run(10);
SELECT is(concat_ws(', ', asked('d'), asked('d-inner'), asked('d-appended'), asked('d-later')),
  'Outer evpg_s_teller, Inner evpg_s_teller, Appended evpg_s_teller, Later evpg_s_teller',
    'what follows from a scheduled command has the role that scheduled it');

CREATE FUNCTION test.react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
BEGIN
  RETURN public.evpg_reaction(state,
    public.evpg_action_send('told', event.aggregate_id || '-sent', 'Outer',
    undo => public.evpg_action_send('told', 'undone', 'Undo')),
    public.evpg_action_schedule('t', '0 seconds'));
END $$;
CREATE FUNCTION test.fire(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT public.evpg_reaction(state, public.evpg_action_send('told', timer.key || '-fired', 'Fire'),
    public.evpg_action_compensate()) $$;
SELECT evpg_register_saga('of others', 'test.react', timer_handler => 'test.fire', event_types => '{Start}',
  max_attempts => 1) \g /dev/null
SET SESSION AUTHORIZATION evpg_s_teller;
SELECT count(*) FROM evpg_execute('told', 'e', 'Start') \g /dev/null
RESET SESSION AUTHORIZATION;
CALL evpg_run(10);
CALL evpg_run(10);
CALL evpg_run(10);
SELECT is(concat_ws(', ', asked('e-sent'), asked('e-sent-inner'), asked('e-sent-later'), asked('e-fired'), asked('undone')),
  'Outer evpg_s_teller, Inner evpg_s_teller, Later evpg_s_teller, Fire evpg_s_teller, Undo evpg_s_teller',
    'a saga acts for who caused the event, its timers too');
SELECT is((SELECT session_role FROM evpg_execute('told', 'f', 'Do')), session_user::text,
  'afterwards the session acts for itself');
CREATE FUNCTION test.broken(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT public.evpg_reaction(state, public.evpg_action_send('told', 'x', ''))
$$;
SELECT evpg_register_saga('broken', 'test.broken', event_types => '{Break}', max_attempts => 1) \g /dev/null
SET SESSION AUTHORIZATION evpg_s_teller;
SELECT count(*) FROM evpg_execute('told', 'g', 'Break') \g /dev/null
RESET SESSION AUTHORIZATION;
BEGIN;
SELECT dead_lettered FROM evpg_run_sagas() \g /dev/null
SELECT is((SELECT session_role FROM evpg_execute('told', 'g', 'Do')), session_user::text,
  'a handler is told the role of its own session after a reaction that failed');
COMMIT;

-- ------------------------------------------------------------------ authorization by it
CREATE FUNCTION test.big_money(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO test.seen (what, command) VALUES ('interceptor', command);
  IF command.session_role <> 'evpg_s_director' THEN
    PERFORM public.evpg_reject('needs_director');
  END IF;
  command.session_role := 'forged';
  RETURN command;
END $$;
SELECT evpg_register_interceptor('big money', 'test.big_money', command_types => '{Spend}') \g /dev/null
SET SESSION AUTHORIZATION evpg_s_teller;
SELECT is((SELECT concat_ws(' ', status, code) FROM evpg_try_execute('told', 'h', 'Spend', actor => 'evpg_s_director')),
  'intercepted needs_director', 'an interceptor refuses');
SELECT evpg_schedule_command(clock_timestamp(), 'told', 'h', 'Spend', actor => 'evpg_s_director') \g /dev/null
SET SESSION AUTHORIZATION evpg_s_director;
SELECT is((SELECT concat_ws(' ', status, version) FROM evpg_try_execute('told', 'h', 'Spend')), 'ok 1',
  'an interceptor may decide by the session_role');
SELECT evpg_schedule_command(clock_timestamp(), 'told', 'h', 'Spend') \g /dev/null
RESET SESSION AUTHORIZATION;
SELECT is(asked('h'), 'Spend evpg_s_director', 'it cannot change who asked');
CALL evpg_run(10);
SELECT is((SELECT string_agg(code, ' ') FROM evpg.dead_letter WHERE saga IS NULL), 'needs_director',
  'a scheduled command that an interceptor refuses for its role is a dead letter');
SELECT is(asked('h'), 'Spend evpg_s_director, Spend evpg_s_director', 'the other one passes');
SELECT evpg_retry_dead_letter(dead_letter_id) FROM evpg.dead_letter WHERE saga IS NULL \g /dev/null
SELECT is(asked('h'), 'Spend evpg_s_director, Spend evpg_s_director', 'who retries does not ask in its place');
SELECT evpg_drop_interceptor('big money') \g /dev/null
CREATE FUNCTION test.translate(payload jsonb) RETURNS evpg.command LANGUAGE plpgsql AS $$
DECLARE
  command evpg.command := public.evpg_command('told', 'i', 'Translated');
BEGIN
  command.session_role := 'forged';
  RETURN command;
END $$;
SELECT evpg_register_translator('forging', 'test.translate') \g /dev/null
SET SESSION AUTHORIZATION evpg_s_teller;
SELECT status FROM evpg_receive_message('s', 'm', 'forging', '{}') \g /dev/null
RESET SESSION AUTHORIZATION;
SELECT is(asked('i'), 'Translated evpg_s_teller', 'a translator cannot set the session_role');

-- ------------------------------------------------------------------ what is evpg's own
SELECT evpg_register_aggregate('hostile', library => 'evpg_test', symbol => 'hostile') \g /dev/null
SELECT refused(format($$SELECT
  evpg_execute('counter', 'j', 'Emit',
  jsonb_build_object('events', jsonb_build_object('type', 'Odd', 'metadata', %L::jsonb)))$$, metadata),
  'VE017 metadata key "evpg" is reserved', 'a handler copies ' || metadata || ' of a client [rule 16]')
  FROM unnest(ARRAY['{"evpg": {"no_sagas": true}}', '{"a": 1, "evpg": {"depth": 0}}', '{"evpg": null}']) metadata;
SELECT refused(format($$SELECT
  evpg_execute('hostile', 'j', 'Envelope', jsonb_build_object('change', jsonb_build_object('metadata', %L::jsonb)))$$,
  metadata),
  'VE017 metadata key "evpg" is reserved', 'a module in C cannot write the metadata of a saga [rule 16]')
  FROM unnest(ARRAY['{"evpg": {"no_sagas": true}}', '{"a": 1, "evpg": {"depth": 0}}', '{"evpg": null}']) metadata;
CREATE FUNCTION test.meddle(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN
  CASE command.data->>'meddle'
    WHEN 'metadata' THEN command.metadata := '{"evpg": {"no_sagas": true}}';
    WHEN 'depth' THEN command.metadata := jsonb_set(command.metadata, '{evpg,depth}', '0');
    WHEN 'saga' THEN command.command_id := 'saga:1';
    WHEN 'timer' THEN command.command_id := 'timer:1';
    WHEN 'drop' THEN command.metadata := NULL;
    WHEN 'add' THEN command.metadata := command.metadata || '{"added": 1}';
    ELSE NULL;
  END CASE;
  RETURN command;
END $$;
SELECT evpg_register_interceptor('meddling', 'test.meddle') \g /dev/null
SELECT refused(format($$SELECT evpg_execute('told', 'k', 'Do', '{"meddle": %s}')$$, to_json(what)), 'VE017 %',
  'an interceptor forges ' || what || ' [rule 4]')
  FROM unnest('{metadata,saga,timer}'::text[]) what;
-- of a command of a saga what evpg has written stays, copied or not
CREATE FUNCTION test.pass_on(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT public.evpg_reaction(state, public.evpg_action_send('told', 'sent by ' || event.aggregate_id, 'Sent', event.data))
    $$;
SELECT evpg_register_saga('passing on', 'test.pass_on', event_types => '{Pass}', max_attempts => 1) \g /dev/null
SELECT count(*) FROM unnest('{none,drop,add,depth,saga}'::text[]) what,
  evpg_execute('told', what, 'Pass', jsonb_build_object('meddle', what)) WHERE what NOT IN ('depth', 'saga') \g /dev/null
SELECT count(*) FROM unnest('{depth,saga}'::text[]) what,
  evpg_append('told', what, ARRAY[evpg_event('Pass', jsonb_build_object('meddle', what))]) \g /dev/null
CALL evpg_run(10);
SELECT is((SELECT string_agg(aggregate_id || ' ' || metadata, ', ' ORDER BY aggregate_id) FROM evpg.event
  WHERE type = 'Sent'),
  'sent by add {"evpg": {"key": "add", "saga": "passing on", "depth": 1}, "added": 1}, sent by drop {"evpg": '
    '{"key": "drop", "saga": "passing on", "depth": 1}}, '
  || 'sent by none {"evpg": {"key": "none", "saga": "passing on", "depth": 1}}',
    'neither handler nor interceptor takes the depth of a chain away [rule 16]');
SELECT is((SELECT string_agg(concat_ws(' ', key, sqlstate, message), ', ' ORDER BY key) FROM evpg.dead_letter
  WHERE saga = 'passing on'),
  'depth VE017 metadata key "evpg" is reserved, saga VE017 command id "saga:1" is reserved',
    'neither handler nor interceptor takes the depth of a chain away, nor changes it [rule 16]');
SELECT evpg_drop_interceptor('meddling') \g /dev/null
SELECT is(error_of($$SELECT evpg_set_context(metadata => '{"evpg": {}}')$$), 'VE017 metadata key "evpg" is reserved',
  'a context cannot contain the metadata of a chain [rule 16]');
DROP OWNED BY evpg_s_teller, evpg_s_director, evpg_s_team;
DROP ROLE evpg_s_teller, evpg_s_director, evpg_s_team;
SELECT * FROM finish();
