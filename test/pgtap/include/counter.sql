-- counter.sql: an aggregate of functions, and its twin in C (test/modules/evpg_test.c).  Run after setup.sql.

CREATE FUNCTION test.counter_handle(state jsonb, command evpg.command) RETURNS SETOF evpg.new_event
LANGUAGE plpgsql AS $$
DECLARE
  n bigint := (command.data->>'n')::bigint;
  total bigint := (state->>'total')::bigint;
BEGIN
  CASE command.command_type
    WHEN 'Add' THEN
      RETURN NEXT evpg_event('Added', jsonb_build_object('n', coalesce(n, 0)));
    WHEN 'AddEach' THEN
      RETURN QUERY SELECT (evpg_event('Added', jsonb_build_object('n', value))).*
                     FROM jsonb_array_elements(command.data->'ns') WITH ORDINALITY ORDER BY ordinality;
    WHEN 'AddMany' THEN
      RETURN QUERY SELECT (evpg_event('Added', '{"n": 1}')).* FROM generate_series(1, (command.data->>'count')::int);
    WHEN 'Subtract' THEN
      IF n > total THEN
        PERFORM evpg_reject('underflow', format('total %s is less than %s', total, n), jsonb_build_object('total', total));
      END IF;
      RETURN NEXT evpg_event('Subtracted', jsonb_build_object('n', n));
    WHEN 'AddAndRefuse' THEN
      RETURN NEXT evpg_event('Added', jsonb_build_object('n', n));
      PERFORM evpg_reject('changed_mind', 'no');
    WHEN 'Nothing' THEN
      RETURN;
    WHEN 'Emit' THEN
      RETURN QUERY SELECT e.* FROM unnest(evpg_events(command.data->'events')) e;
    WHEN 'Fail' THEN
      RAISE EXCEPTION 'broken by "%"', command.command_type USING ERRCODE = 'VE009';
    WHEN 'Spin' THEN
      LOOP
        NULL;
      END LOOP;
    ELSE
      RAISE EXCEPTION 'unknown command type "%"', command.command_type USING ERRCODE = 'VE018';
  END CASE;
END $$;

CREATE FUNCTION test.counter_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN event.type IN ('Added', 'Subtracted') THEN
      jsonb_build_object('total', (state->>'total')::bigint +
                         CASE event.type WHEN 'Added' THEN 1 ELSE -1 END * (event.data->>'n')::bigint,
                         'applied', (state->>'applied')::bigint + 1)
    ELSE state
  END
$$;

CREATE FUNCTION test.counter_invariant(state jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  total bigint := (state->>'total')::bigint;
BEGIN
  IF total = 666 THEN
    RAISE EXCEPTION 'cannot say' USING ERRCODE = 'VE009';
  ELSIF total = 777 THEN
    RETURN NULL;
  ELSIF total > 1000 THEN
    PERFORM evpg_reject('limit', format('total %s is above 1000', total), jsonb_build_object('total', total));
  END IF;
  RETURN total >= -1000;
END $$;

SELECT evpg_register_aggregate('counter', handler => 'test.counter_handle', reducer => 'test.counter_apply',
         invariant => 'test.counter_invariant', initial_state => '{"total": 0, "applied": 0}') \g /dev/null
SELECT evpg_register_aggregate('counter_c', library => 'evpg_test', symbol => 'counter') \g /dev/null
