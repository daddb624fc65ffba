-- async.sql: what the files about consumers and rebuilds share.  Run after projections.sql.

-- consumers need it
SET default_transaction_isolation = 'read committed';

-- The numbers of a key in the order in which they were applied; those that test.break lists fail, with the error
-- test.sqlstate.
CREATE FUNCTION test.list_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event.data->>'n' = ANY (string_to_array(current_setting('test.break', true), ',')) THEN
    RAISE EXCEPTION 'I break at %',
      event.data->>'n' USING ERRCODE = coalesce(nullif(current_setting('test.sqlstate', true), ''), 'P0001');
  END IF;
  RETURN CASE WHEN event.type <> 'Cleared' THEN coalesce(nullif(state, '{}'), '[]') || (event.data->'n') END;
END $$;

-- "status done error_position attempts errors" of a consumer; done: the position is relative to the last one drawn; the
-- failing event is shown by its number.
CREATE FUNCTION test.consumer_of(of_name text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(' ', status, checkpoint - (SELECT last_value FROM evpg.event_position),
                   (SELECT 'at ' || (e.data->>'n') FROM evpg.event e WHERE e.position = error_position),
                     'tried ' || attempts, 'errors ' || errors_total)
    FROM evpg.consumer WHERE name = of_name
$$;

-- "key n attempts error|skip_reason" of the events that a consumer has parked.
CREATE FUNCTION test.parked_of(of_name text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(string_agg(concat_ws(' ', coalesce(p.key, '-'), e.data->>'n', 'tried ' || p.attempts, p.error, p.sqlstate,
    'skipped: ' || p.skip_reason), ', ' ORDER BY p.position, p.key), '')
    FROM evpg.parked_event p JOIN evpg.event e USING (position) WHERE p.name = of_name
$$;

-- What differs between the rows of two projections, deleted ones too: that must be nothing.
CREATE FUNCTION test.unlike(left_name text, right_name text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(string_agg(format('%s: %s | %s', key, l, r), ', '), '')
    FROM (SELECT key, ROW(generation, version, position, deleted, state)::text AS l FROM stored WHERE name = left_name) a
    FULL JOIN (SELECT key, ROW(generation, version, position, deleted, state)::text AS r FROM stored WHERE name = right_name)
      b USING (key)
   WHERE l IS DISTINCT FROM r
$$;

-- Makes a retry due that waits for its time: the longest pause is 375 seconds.
CREATE FUNCTION test.now_due() RETURNS void LANGUAGE sql VOLATILE AS $$
  SELECT evpg_set_clock_offset(evpg.clock_timestamp() - clock_timestamp() + interval '1000 s');
$$;

-- Events at random over both types, groups, tags, with deletions.
CREATE FUNCTION test.events_at_random(count int, seed float8) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM setseed(seed);
  PERFORM add('id' || floor(random() * 5), floor(random() * 50)::bigint,
              (ARRAY['Added', 'Added', 'Subtracted', 'Odd', 'Cleared'])[1 + floor(random() * 5)::int],
              jsonb_build_object('group', 'g' || floor(random() * 3), 'groups',
                jsonb_build_array('x' || floor(random() * 3), 'x' || floor(random() * 3))),
              CASE floor(random() * 3) WHEN 0 THEN '{red}' WHEN 1 THEN '{blue,red}' END::text[],
              CASE floor(random() * 2) WHEN 0 THEN 'counter' ELSE 'counter_c' END)
     FROM generate_series(1, count);
END $$;

-- Registers a projection of each kind of key and filter, its name after the prefix, and returns the names without it.
CREATE FUNCTION test.register_kinds(prefix text, mode text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM evpg_register_projection(prefix || 'by_id', 'test.sum_apply', mode => mode, aggregate_types => '{counter}'),
          evpg_register_projection(prefix || 'both', 'test.sum_project', mode => mode),
          evpg_register_projection(prefix || 'by_path', 'test.sum_apply', mode => mode, key_path => '$.data.group'),
          evpg_register_projection(prefix || 'by_paths', 'test.sum_apply', mode => mode, key_path => '$.data.groups[*]'),
          evpg_register_projection(prefix || 'by_function', 'test.sum_apply', mode => mode,
            key_function => 'test.group_key'),
          evpg_register_projection(prefix || 'by_functions', 'test.sum_apply', mode => mode,
            key_function => 'test.group_keys'),
          evpg_register_projection(prefix || 'constant', 'test.sum_apply', mode => mode, constant_key => 'all'),
          evpg_register_projection(prefix || 'types', 'test.sum_apply', mode => mode, event_types => '{Added,Cleared}'),
          evpg_register_projection(prefix || 'tagged', 'test.sum_apply', mode => mode, tags => '{blue,none}'),
          evpg_register_projection(prefix || 'filtered', 'test.sum_apply', mode => mode, aggregate_types => '{counter}',
            event_types => '{Added,Cleared}', tags => '{red,blue}', key_path => '$.data.group'),
          evpg_register_projection(prefix || 'module', library => 'evpg_test', symbol => 'totals', mode => mode),
          evpg_register_projection(prefix || 'module_key', library => 'evpg_test', symbol => 'group_totals', mode => mode);
  RETURN QUERY SELECT substr(name, length(prefix) + 1) FROM evpg.projection WHERE starts_with(name, prefix) ORDER BY 1;
END $$;
