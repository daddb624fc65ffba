-- fixture.sql: what the attack runs against: user code of every kind that does what its data say, consumers of every
-- kind, and guards, which nothing of the attack names and which are compared with the log.  Can be run again, whatever
-- was dropped.

CREATE SCHEMA IF NOT EXISTS attack;
GRANT USAGE ON SCHEMA attack TO PUBLIC;
SET search_path = "$user", public;
SELECT evpg_set_clock_offset();
SELECT evpg_activate_consumers();

-- Runs statements, each in a transaction of its own or with those before it, in one round trip; a cancel ends it.  Says what
-- became of each, and where, and under which path that ended.  What it uses is qualified, for the path may be one of traps.
CREATE OR REPLACE PROCEDURE attack.call(statements pg_catalog.text[], ends pg_catalog.text[],
  INOUT results pg_catalog.text[], INOUT contexts pg_catalog.text[])
  LANGUAGE plpgsql AS $$
DECLARE
  context pg_catalog.text;
BEGIN
  FOR n IN 1 .. pg_catalog.array_length(statements, 1) LOOP
    BEGIN
      EXECUTE statements[n];
      results[n] := '00000';
    EXCEPTION
      WHEN query_canceled THEN
        results[n] := '57014';
      WHEN assert_failure OR OTHERS THEN
        GET STACKED DIAGNOSTICS context = PG_EXCEPTION_CONTEXT;
        results[n] := pg_catalog.concat_ws(' ', SQLSTATE, SQLERRM);
        contexts[n] := context;
    END;
    IF ends[n] OPERATOR(pg_catalog.=) 'commit' THEN
      COMMIT;
    ELSIF ends[n] OPERATOR(pg_catalog.=) 'rollback' THEN
      ROLLBACK;
    END IF;
    EXIT WHEN results[n] OPERATOR(pg_catalog.=) '57014';
  END LOOP;
END $$;

-- Runs what the data of a command or an event say for a kind of user code, caught or not.  An internal error that is
-- caught would leave no trace otherwise: the attack reads the server's log.
CREATE OR REPLACE FUNCTION attack.run(kind text, data jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF data->>'in' IS DISTINCT FROM kind THEN
    RETURN;
  ELSIF (data->>'catch')::boolean THEN
    BEGIN
      EXECUTE data->>'sql' USING data;
    EXCEPTION WHEN OTHERS OR query_canceled OR assert_failure THEN
      IF SQLSTATE LIKE 'XX%' THEN
        RAISE WARNING 'caught internal error: % (%)', SQLERRM, data;
      END IF;
    END;
  ELSE
    EXECUTE data->>'sql' USING data;
  END IF;
END $$;
CREATE OR REPLACE FUNCTION attack.handle(state jsonb, command evpg.command) RETURNS SETOF evpg.new_event LANGUAGE plpgsql
  AS $$
BEGIN
  PERFORM attack.run('handler', command.data);
  IF command.command_type = 'Refuse' THEN
    PERFORM evpg_reject('refused');
  END IF;
  RETURN NEXT evpg_event(coalesce(nullif(command.command_type, ''), 'X'), command.data);
END $$;
CREATE OR REPLACE FUNCTION attack.apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('reducer', event.data);
  RETURN jsonb_build_object('n', coalesce((state->>'n')::bigint, 0) + 1, 'data', event.data);
END $$;
CREATE OR REPLACE FUNCTION attack.keep(state jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('invariant', state->'data');
  RETURN true;
END $$;
CREATE OR REPLACE FUNCTION attack.intercept(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('interceptor', command.data);
  RETURN command;
END $$;
CREATE OR REPLACE FUNCTION attack.hear(event evpg.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('listener', event.data);
END $$;
CREATE OR REPLACE FUNCTION attack.translate(payload jsonb) RETURNS SETOF evpg.command LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('translator', payload);
  RETURN NEXT evpg_command('note', 'translated', 'X', payload);
END $$;

CREATE OR REPLACE FUNCTION attack.inline(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('inline', event.data);
  RETURN jsonb_build_object('n', coalesce((state->>'n')::bigint, 0) + 1);
END $$;
CREATE OR REPLACE FUNCTION attack.async(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('async', event.data);
  RETURN jsonb_build_object('n', coalesce((state->>'n')::bigint, 0) + 1);
END $$;
CREATE OR REPLACE FUNCTION attack.key(event evpg.event) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('key', event.data);
  RETURN event.aggregate_id;
END $$;
CREATE OR REPLACE FUNCTION attack.async_key(event evpg.event) RETURNS text[] LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('async_key', event.data);
  RETURN ARRAY[event.aggregate_id, left(event.aggregate_id, 1)];
END $$;
CREATE TABLE IF NOT EXISTS attack.inline_row (id text, n bigint);
CREATE TABLE IF NOT EXISTS attack.async_row (id text, n bigint);
CREATE TABLE IF NOT EXISTS attack.reset_row (id text, n bigint);
SET search_path = attack, public;
CREATE OR REPLACE FUNCTION attack.write_inline(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('inline_table', event.data);
  INSERT INTO inline_row VALUES (event.aggregate_id, event.version);
  RETURN NULL;
END $$;
CREATE OR REPLACE FUNCTION attack.write_async(event evpg.event, keys text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('async_table', event.data);
  INSERT INTO async_row SELECT k, event.version FROM unnest(keys) k;
  RETURN NULL;
END $$;
CREATE OR REPLACE FUNCTION attack.write_reset(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO attack.reset_row VALUES (event.aggregate_id, event.version);
  RETURN NULL;
END $$;
CREATE OR REPLACE FUNCTION attack.reset() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('reset', nullif(current_setting('attack.reset', true), '')::jsonb);
  DELETE FROM attack.reset_row;
END $$;

CREATE OR REPLACE FUNCTION attack.saga(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('saga', event.data);
  RETURN evpg_reaction(state, evpg_action_schedule('t', '0', payload => event.data),
    evpg_action_send('note', 'of a saga', 'Sent', undo => evpg_action_send('note', 'of a saga', 'Undone')),
    CASE WHEN event.data->>'in' = 'rejection' THEN evpg_action_send('note', 'of a saga', 'Refuse', event.data) END);
END $$;
CREATE OR REPLACE FUNCTION attack.saga_key(event evpg.event) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('saga_key', event.data);
  RETURN event.aggregate_id;
END $$;
CREATE OR REPLACE FUNCTION attack.reject(state jsonb, rejection evpg.rejection) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('rejection', rejection.data);
  RETURN evpg_reaction(state, evpg_action_compensate('refused'));
END $$;
CREATE OR REPLACE FUNCTION attack.timer(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('timer', timer.payload);
  RETURN evpg_reaction(state, evpg_action_complete());
END $$;

CREATE OR REPLACE FUNCTION attack.upcast(data jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM attack.run('upcaster', data);
  RETURN data;
END $$;

-- The guards: how many events a stream has had, and whether each was the next one.
CREATE OR REPLACE FUNCTION attack.count(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('n', coalesce((state->>'n')::bigint, 0) + 1, 'last', event.version,
    'torn', coalesce((state->>'torn')::boolean, false) OR event.version <= coalesce((state->>'last')::bigint, 0))
$$;
CREATE OR REPLACE FUNCTION attack.stream(event evpg.event) RETURNS text LANGUAGE sql AS $$ SELECT event.aggregate_type
  || ' ' || event.aggregate_id $$;
CREATE OR REPLACE FUNCTION attack.count_reaction(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql
  AS $$ SELECT evpg_reaction(attack.count(state, event)) $$;

SELECT evpg_register_projection('inline_table', handler => 'attack.write_inline', aggregate_types => '{note}',
  tables => '{inline_row}'),
       evpg_register_projection('async_table', handler => 'attack.write_async', mode => 'async',
         aggregate_types => '{note}', tables => '{async_row}', key_function => 'attack.async_key',
         on_error => 'park', max_attempts => 1);
SET search_path = "$user", public;
SELECT evpg_register_aggregate('note', 'attack.handle', 'attack.apply', invariant => 'attack.keep', snapshot_every => 7,
         broadcast => 'delta'),
       evpg_register_interceptor('interceptor', 'attack.intercept', '{note}'),
       evpg_register_listener('listener', 'attack.hear', '{note}'),
       evpg_register_translator('translator', 'attack.translate'),
       evpg_register_upcaster('Old', 1, 'attack.upcast', aggregate_type => 'note'),
       evpg_register_projection('inline', 'attack.inline', aggregate_types => '{note}', key_function => 'attack.key'),
       evpg_register_projection('async', 'attack.async', mode => 'async', aggregate_types => '{note}', on_error => 'park',
         max_attempts => 1),
       evpg_register_projection('reset', handler => 'attack.write_reset', aggregate_types => '{note}',
         reset => 'attack.reset'),
       evpg_register_projection('guard', 'attack.count', key_function => 'attack.stream'),
       evpg_register_projection('guard_async', 'attack.count', mode => 'async', key_function => 'attack.stream'),
       evpg_register_saga('guard_saga', 'attack.count_reaction', key_function => 'attack.stream'),
       evpg_register_saga('guard_inline', 'attack.count_reaction', key_function => 'attack.stream', mode => 'inline'),
       evpg_register_saga('saga', 'attack.saga', rejection_handler => 'attack.reject', timer_handler => 'attack.timer',
         key_function => 'attack.saga_key',
         aggregate_types => '{note}', event_types => '{Start}', max_attempts => 1);
