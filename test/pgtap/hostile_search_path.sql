-- hostile_search_path.sql: what evpg runs means the operators, functions and tables of pg_catalog and evpg, whatever stands
-- before them in the search_path of its caller.

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
SELECT plan(60);
CREATE SCHEMA hostile;
SET check_function_bodies = off;

-- Traps: an operator or function of the same name and types as each of pg_catalog's that a statement is likely to use.
CREATE FUNCTION test.set_hostile_traps() RETURNS bigint LANGUAGE plpgsql AS $body$
DECLARE
  types oid[] :=
    '{text,int2,int4,int8,numeric,float8,jsonb,timestamptz,interval,text[],int8[],name,oid,bool,uuid,bytea,xid8,'
    'pg_lsn,regclass}'::regtype[];
  one record;
BEGIN
  FOR one IN SELECT oprname AS name, oprleft::regtype AS l, oprright::regtype AS r FROM pg_operator
              WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprleft = ANY (types) AND oprright = ANY (types)
             UNION SELECT o, t::regtype, t::regtype
               FROM unnest('{=,<>,<,>,<=,>=,@>,&&,||}'::text[]) o, unnest('{text[],int8[]}'::regtype[]) t LOOP
    IF to_regprocedure(format('hostile.trap(%s, %s)', one.l, one.r)) IS NULL THEN
      EXECUTE format('CREATE FUNCTION hostile.trap(%s, %s) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '
        '''trapped''; END $$',
                     one.l, one.r);
    END IF;
    EXECUTE format('CREATE OPERATOR hostile.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = hostile.trap)', one.name, one.l,
      one.r);
  END LOOP;
  FOR one IN SELECT DISTINCT proname AS name, oidvectortypes(proargtypes) AS arguments FROM pg_proc
              WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind IN ('f', 'a') AND pronargs <= 3
                AND proargtypes::oid[] <@ types LOOP
    EXECUTE
      format('CREATE FUNCTION hostile.%I(%s) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION ''trapped''; END $$',
                   one.name, one.arguments);
  END LOOP;
  -- pg_temp is searched before all others, if a path does not name it
  CREATE TEMPORARY TABLE event_log ();
  CREATE TEMPORARY TABLE consumer ();
  CREATE TEMPORARY TABLE pg_class ();
  CREATE TEMPORARY TABLE pg_extension ();
  RETURN (SELECT count(*) FROM pg_proc WHERE pronamespace = 'hostile'::regnamespace) +
         (SELECT count(*) FROM pg_operator WHERE oprnamespace = 'hostile'::regnamespace);
END $body$;
SELECT cmp_ok(test.set_hostile_traps(), '>', 1000::bigint, 'there are traps');

-- User code has a search_path of its own: what it calls is its affair.
CREATE FUNCTION test.handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql
  SET search_path = pg_catalog, public AS $$ BEGIN RETURN evpg_event(command.command_type, command.data, tags => '{a}'); END
    $$;
CREATE FUNCTION test.fold(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql
  SET search_path = pg_catalog, public AS $$ BEGIN RETURN state || jsonb_build_object('n', event.version); END $$;
CREATE FUNCTION test.fail_at_bad(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql
  SET search_path = pg_catalog, public AS $$
BEGIN
  IF event.type = 'Bad' AND current_setting('test.healed', true) IS DISTINCT FROM 'yes' THEN
    RAISE EXCEPTION 'bad';
  END IF;
  RETURN state;
END $$;
CREATE FUNCTION test.hear(event evpg.event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM event.type; END $$;
CREATE FUNCTION test.pass(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$ BEGIN RETURN command; END $$;
CREATE FUNCTION test.react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql
  SET search_path = pg_catalog, public AS $$
BEGIN
  CASE event.type
    WHEN 'Ends' THEN RETURN evpg_reaction(state, evpg_action_complete());
    WHEN 'Undo' THEN RETURN evpg_reaction(state, evpg_action_compensate('because'));
    WHEN 'Fails' THEN RAISE EXCEPTION 'bad';
    ELSE RETURN evpg_reaction(state,
      evpg_action_send('thing', 'sent', 'Sent', undo => evpg_action_send('thing', 'sent', 'Unsent')),
                              evpg_action_schedule('soon', '1 second'), evpg_action_schedule('late', '1 hour'),
                                evpg_action_cancel('late'));
  END CASE;
END $$;
CREATE FUNCTION test.fire(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE plpgsql
  SET search_path = pg_catalog, public AS $$ BEGIN RETURN evpg_reaction(state); END $$;
CREATE FUNCTION test.translate(payload jsonb) RETURNS evpg.command LANGUAGE plpgsql
  SET search_path = pg_catalog, public AS $$ BEGIN RETURN evpg_command('thing', payload->>'id', 'Told'); END $$;

CREATE FUNCTION test.run_trapped(statement text) RETURNS text LANGUAGE plpgsql SET search_path = hostile, pg_catalog AS $$
BEGIN
  EXECUTE statement;
  RETURN 'done';
EXCEPTION WHEN OTHERS THEN
  RETURN SQLERRM;
END $$;
-- What is due, under the same path; a procedure that commits cannot be called by a function.
\set run 'SET search_path = hostile, pg_catalog; CALL public.evpg_run(5); SET search_path = public, test;'

SELECT is(run_trapped($$SELECT 'a'::pg_catalog.text = 'a'$$), 'trapped', 'an operator is a trap');
SELECT is(run_trapped('SELECT clock_timestamp()'), 'trapped', 'a function is a trap');

CREATE FUNCTION test.all_done(statements text[], since text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  statement text;
BEGIN
  FOREACH statement IN ARRAY statements LOOP
    RETURN NEXT is(run_trapped(statement), 'done', since || ': ' || statement);
  END LOOP;
END $$;

SELECT all_done(ARRAY[
  $$SELECT public.evpg_register_aggregate('thing', 'test.handle', 'test.fold', snapshot_every => 2)$$,
  $$SELECT public.evpg_register_interceptor('passes', 'test.pass', aggregate_types => '{thing}')$$,
  $$SELECT public.evpg_register_listener('hears', 'test.hear', aggregate_types => '{thing}')$$,
  $$SELECT public.evpg_register_projection('inline', 'test.fold', key_path => '$.aggregate_id')$$,
  $$SELECT public.evpg_register_projection('later', 'test.fail_at_bad', key_path => '$.aggregate_id', mode => 'async',
    on_error => 'park', max_attempts => 1)$$,
  $$SELECT public.evpg_register_saga('s', handler => 'test.react', timer_handler => 'test.fire',
    event_types => '{Begins,Undo,Ends,Fails}', max_attempts => 1)$$,
  $$SELECT public.evpg_register_translator('t', 'test.translate')$$,
  $$SELECT public.evpg_execute('thing', '1', 'Did', '{}', command_id => 'c')$$,
  $$SELECT public.evpg_execute('thing', '1', 'Did', '{}', command_id => 'c')$$,
  $$SELECT public.evpg_execute('thing', '1', 'Bad')$$,
  $$SELECT public.evpg_execute('thing', '1', 'Did')$$,
  $$SELECT public.evpg_try_execute('thing', '1', 'Did', '{}', expected_version => 99)$$,
  $$SELECT public.evpg_append('thing', '2', ARRAY[public.evpg_event('Said', '{}', tags => '{b}')], expected_version => 0)$$,
  $$SELECT public.evpg_inject('thing', '3',
    public.evpg_event('Told', '{}', event_id => '018f0000-0000-7000-8000-000000000001'))$$,
  $$SELECT public.evpg_create_stream('thing', '4')$$,
  $$SELECT public.evpg_streams('thing'), public.evpg_stream_version('thing', '1')$$,
  $$SELECT public.evpg_read_stream('thing', '1'), public.evpg_read_all(0, 10, '{thing}', '{Did}', '{a}')$$,
  $$SELECT public.evpg_state('thing', '1'), public.evpg_state('thing', '1', 1), public.evpg_take_snapshot('thing', '1')$$,
  $$SELECT public.evpg_projection('inline', '1'), public.evpg_projection_changes('inline'), public.evpg_stable_position()$$,
  $$SELECT public.evpg_put_projection('inline', 'put', '{}')$$,
  $$SELECT public.evpg_listen_events('thing'), public.evpg_unlisten_events('thing'), public.evpg_event_channel()$$,
  $$SELECT public.evpg_listen('inline'), public.evpg_unlisten('inline'), public.evpg_channel('inline')$$,
  $$SELECT public.evpg_execute('thing', '5', 'Begins'), public.evpg_execute('thing', '6', 'Begins'),
    public.evpg_execute('thing', '7', 'Fails')$$,
  $$SELECT public.evpg_receive_message('source', 'k', 't', '{"id": "8"}'),
    public.evpg_receive_message('source', 'k', 't', '{"id": "8"}')$$,
  $$SELECT public.evpg_receive('source', 'l'), public.evpg_translate('t', '{"id": "8"}')$$,
  $$SELECT public.evpg_schedule_command('2000-01-01', 'thing', '9', 'Later')$$,
  $$SELECT public.evpg_watch_projection('inline', '1')$$], 'registered and written');

:run
SELECT is((SELECT count(*) FROM evpg.dead_letter), 1::bigint, 'a failure of the saga is a dead letter');
SELECT is((SELECT count(*) > 0 FROM evpg.parked_event), true, 'a failure of the projection is a parked event');
SELECT is((SELECT count(*) > 0 FROM evpg.event WHERE type IN ('Sent', 'Later') HAVING count(DISTINCT type) = 2), true,
  'the saga and the timer have sent commands');
SET test.healed = yes;
SELECT all_done(ARRAY[
  $$SELECT public.evpg_set_clock_offset('2 seconds')$$,
  $$SELECT public.evpg_execute('thing', '5', 'Undo'), public.evpg_execute('thing', '6', 'Ends')$$,
  $$SELECT public.evpg_schedule_command('2100-01-01', 'thing', '9', 'Later')$$,
  format('SELECT public.evpg_reschedule_timer(%s, ''2090-01-01'')', (SELECT max(timer_id) + 1 FROM evpg.timer)),
  $$SELECT public.evpg_replay_parked('later'), public.evpg_wait_for('later', 1, '1 second')$$,
  format('SELECT public.evpg_retry_dead_letter(%s)', (SELECT max(dead_letter_id) FROM evpg.dead_letter)),
  $$SELECT public.evpg_retry_dead_letters('s')$$,
  format('SELECT public.evpg_discard_dead_letter(%s, ''enough'')', (SELECT max(dead_letter_id) FROM evpg.dead_letter)),
  $$SELECT public.evpg_run_sagas()$$], 'retried');
:run
SELECT all_done(ARRAY[
  format('SELECT public.evpg_cancel_timer(%s)', (SELECT max(timer_id) FROM evpg.timer)),
  $$SELECT public.evpg_pause_consumer('later'), public.evpg_resume_consumer('later')$$,
  $$SELECT public.evpg_saga('s', '5')$$,
  $$SELECT public.evpg_rebuild_saga('s', '5'), public.evpg_rebuild_saga('s')$$,
  $$SELECT public.evpg_rebuild_projection('inline', '1')$$,
  $$SELECT public.evpg_rebuild_projection('inline')$$,
  $$SELECT public.evpg_rebuild_projection('later', background => true)$$,
  $$SELECT public.evpg_cancel_rebuild('later')$$,
  $$SELECT public.evpg_rebuild_projection('later', background => true)$$], 'rebuilt');
:run
SELECT is((SELECT count(*) FROM evpg.rebuild), 0::bigint, 'the rebuild in the background has ended');
SELECT all_done(ARRAY[
  $$SELECT public.evpg_set_retention('commands', '1 day')$$,
  $$SELECT public.evpg_prune_commands('1 second'), public.evpg_prune_inbox('1 second'),
    public.evpg_prune_sagas('1 second')$$,
  $$SELECT public.evpg_prune_dead_letters('1 second'), public.evpg_prune_parked_events('1 second')$$,
  $$SELECT public.evpg_activate_consumers(), public.evpg_version(), public.evpg_session_stats()$$,
  $$SELECT public.evpg_enable_index('event_type'), public.evpg_enable_index('event_type', false)$$,
  $$SELECT public.evpg_drop_saga('s'), public.evpg_drop_projection('inline'), public.evpg_drop_projection('later')$$,
  $$SELECT public.evpg_drop_translator('t'), public.evpg_drop_interceptor('passes'), public.evpg_drop_listener('hears')$$,
  $$SELECT public.evpg_drop_aggregate('thing')$$],
    'pruned and dropped');
:run
SELECT * FROM finish();
