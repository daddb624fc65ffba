-- saga_follow.sql: sagas that do what an event tells them: the actions in it, or a statement.  Run after counter.sql.

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
