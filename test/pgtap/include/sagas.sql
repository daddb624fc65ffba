-- sagas.sql: what the files about sagas share.  Run after counter.sql.
--
-- The saga that the tests talk to does what it is told: the data of an event Started or Told of a counter, the payload of a
-- timer, and, when a send is refused, what its state has as on_refusal, are scripts:
--   {"set": {...}, "actions": [...], "fail": text, "unhandled": true}
-- Its twin in C is "script" in test/modules/evpg_test.c.  test.saga is the name under which one of the two is registered.

-- consumers need it
SET default_transaction_isolation = 'read committed';

CREATE FUNCTION test.saga() RETURNS text LANGUAGE sql STABLE AS $$ SELECT current_setting('test.saga') $$;

CREATE FUNCTION test.script_follow(state jsonb, script jsonb) RETURNS evpg.reaction LANGUAGE plpgsql STABLE AS $$
BEGIN
  IF script ? 'fail' THEN
    RAISE EXCEPTION 'saga failed: %', script->>'fail' USING ERRCODE = coalesce(script->>'sqlstate', 'VE009');
  ELSIF script ? 'unhandled' THEN
    RETURN NULL;
  END IF;
  RETURN (state || coalesce(script->'set', '{}'), script->'actions')::evpg.reaction;
END $$;

CREATE FUNCTION test.script_event(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT script_follow(state ||
    jsonb_build_object('seen', coalesce((state->>'seen')::int, 0) + 1, 'position', event.position), event.data)
$$;

CREATE FUNCTION test.script_refused(state jsonb, rejection evpg.rejection) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT script_follow(state ||
    jsonb_build_object('refused', jsonb_build_object('key', rejection.key, 'label', coalesce(rejection.label, ''),
           'aggregate_type', rejection.aggregate_type, 'aggregate_id', rejection.aggregate_id, 'command_type',
             rejection.command_type,
           'data', rejection.data, 'sqlstate', rejection.sqlstate, 'code', coalesce(rejection.code, ''), 'message',
             rejection.message,
           'detail', rejection.detail, 'attempts', rejection.attempts, 'source_position',
             coalesce(rejection.source_position, 0))),
         state->'on_refusal')
$$;

-- The times are in microseconds, as a library has them.
CREATE FUNCTION test.script_timer(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT script_follow(state ||
    jsonb_build_object('fired', jsonb_build_object('key', timer.key, 'name', timer.timer, 'payload', timer.payload,
           'scheduled_at', (extract(epoch FROM timer.scheduled_at) * 1000000)::bigint, 'due_at',
             (extract(epoch FROM timer.due_at) * 1000000)::bigint,
           'fired_at', (extract(epoch FROM timer.fired_at) * 1000000)::bigint)), timer.payload)
$$;

-- Registers the saga: test.kind_of_saga says of what it is made, functions or C, and test.saga_mode its mode, if it is set.
CREATE FUNCTION test.register_script(name text, max_attempts int DEFAULT 3, backoff interval DEFAULT '1000 s',
  max_backoff interval DEFAULT '1500 s')
RETURNS boolean LANGUAGE sql VOLATILE AS $$
  SELECT set_config('test.saga', name, false);
  SELECT CASE current_setting('test.kind_of_saga')
    WHEN 'functions' THEN evpg_register_saga(name, 'test.script_event', 'test.script_refused', 'test.script_timer',
      aggregate_types => '{counter,counter_c}',
      event_types => '{Started,Told}', start_event_types => '{Started}', initial_state => '{"seen": 0}',
      max_attempts => register_script.max_attempts, backoff => register_script.backoff,
        max_backoff => register_script.max_backoff, mode => coalesce(current_setting('test.saga_mode', true), 'async'))
    ELSE evpg_register_saga(name, library => 'evpg_test', symbol => 'script',
      max_attempts => register_script.max_attempts, backoff => register_script.backoff,
        max_backoff => register_script.max_backoff, mode => coalesce(current_setting('test.saga_mode', true), 'async'))
  END
$$;

-- Appends an event with a script to a counter; returns its position.
CREATE FUNCTION test.tell(id text, script jsonb DEFAULT '{}', type text DEFAULT 'Told', actor text DEFAULT NULL,
  correlation_id text DEFAULT NULL, metadata jsonb DEFAULT NULL)
RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT position FROM evpg_append('counter', id, ARRAY[evpg_event(type, script, metadata)], actor => tell.actor,
    correlation_id => tell.correlation_id)
$$;

CREATE FUNCTION test.start(id text, script jsonb DEFAULT '{}') RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT tell(id, script, 'Started')
$$;

CREATE FUNCTION test.script(VARIADIC actions jsonb[] DEFAULT '{}') RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('actions', actions)
$$;

-- A command to a counter, as an action.
CREATE FUNCTION test.send(id text, command_type text, n int DEFAULT NULL, label text DEFAULT NULL, undo jsonb DEFAULT NULL)
  RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT evpg_action_send('counter', id, command_type, coalesce(jsonb_build_object('n', n), '{}'), label => send.label,
    undo => send.undo)
$$;

-- "dispatched dead_lettered" of a pass.
CREATE FUNCTION test.run(max_events int DEFAULT NULL) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT dispatched || ' ' || dead_lettered FROM evpg_run_sagas(max_events)
$$;

-- The same of so many passes, each in a transaction of its own.
CREATE PROCEDURE test.runs(count int, INOUT result text DEFAULT '') LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. count LOOP
    COMMIT;
    result := concat_ws(', ', nullif(result, ''), run());
  END LOOP;
END $$;

-- "status version state" of an instance; NULL if there is none.
CREATE FUNCTION test.instance(key text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(' ', status, version, state - '{position,on_refusal,refused}'::text[]) FROM evpg_saga(saga(), key)
$$;

-- What an instance has before it: "pending events, timers, dead letters".
CREATE FUNCTION test.pending(key text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(' ', pending_events, pending_timers, dead_letters) FROM evpg_saga(saga(), key)
$$;

CREATE FUNCTION test.clock_offset() RETURNS int LANGUAGE sql STABLE AS $$
  SELECT round(extract(epoch FROM evpg.clock_timestamp() - clock_timestamp()))::int
$$;

-- "attempts seconds until the next one" of what an instance has before it, the first one.
CREATE FUNCTION test.attempts(of_key text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(' ', attempts, round(extract(epoch FROM retry_at - clock_timestamp()) - clock_offset()))
    FROM evpg.saga_event WHERE saga = saga() AND key = of_key ORDER BY position LIMIT 1
$$;

-- Moves the clock of timers and retries.
CREATE FUNCTION test.later(seconds int) RETURNS void LANGUAGE sql VOLATILE AS $$
  SELECT evpg_set_clock_offset(make_interval(secs => clock_offset() + seconds))
$$;

-- The dead letters of an instance that are not resolved; "-": not of an instance.
CREATE FUNCTION test.letters(of_key text, of_saga text DEFAULT test.saga()) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(concat_ws(' ', 'tried ' || attempts, label, sqlstate, code, message), ', ' ORDER BY dead_letter_id)
    FROM evpg.dead_letter WHERE saga IS NOT DISTINCT FROM of_saga AND key IS NOT DISTINCT FROM nullif(of_key, '-')
      AND resolved_at IS NULL
$$;

-- The id that a saga gives to a command (rule 16).
CREATE FUNCTION test.command_id(saga text, key text, source text, ordinal int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT 'saga:' || encode(sha256(convert_to(saga, 'UTF8') || E'\\x00' || convert_to(key, 'UTF8') || E'\\x00'
    || convert_to(source, 'UTF8') || E'\\x00' ||
                                  convert_to(ordinal::text, 'UTF8') || E'\\x00'), 'hex')
$$;

-- A script that tells the same instance a script that tells ..., so often.
CREATE FUNCTION test.chain(id text, length int) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  script jsonb := '{}';
BEGIN
  FOR i IN 1 .. length LOOP
    script := script(evpg_action_send('counter', id, 'Emit',
      jsonb_build_object('events', jsonb_build_array(jsonb_build_object('type', 'Told', 'data', script)))));
  END LOOP;
  RETURN script;
END $$;

CREATE FUNCTION test.saga_kind() RETURNS text LANGUAGE sql STABLE AS $$ SELECT current_setting('test.kind_of_saga') $$;
CREATE FUNCTION test.of() RETURNS text LANGUAGE sql STABLE AS $$ SELECT current_setting('test.kind_of_saga') || ', ' $$;
