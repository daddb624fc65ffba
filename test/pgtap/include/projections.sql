-- projections.sql: reducers, a table and keys for projections over the events of counters.  Run after setup.sql and
-- counter.sql.

-- The sum and the count of the events of a key.  Cleared deletes the row.
CREATE FUNCTION test.sum_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN event.type <> 'Cleared' THEN
    jsonb_build_object('count', coalesce((state->>'count')::bigint, 0) + 1,
      'sum', coalesce((state->>'sum')::bigint, 0) +
             CASE event.type WHEN 'Added' THEN 1 WHEN 'Subtracted' THEN -1 ELSE 0 END *
               coalesce((event.data->>'n')::bigint, 0))
  END
$$;

-- The same, where listeners are sent the data of the event, and nothing of an Odd one.
CREATE FUNCTION test.sum_project(state jsonb, event evpg.event) RETURNS evpg.projected LANGUAGE sql IMMUTABLE AS $$
  SELECT evpg_projected(sum_apply(state, event), CASE WHEN event.type <> 'Odd' THEN event.data END)
$$;

-- A table projection: a row for each event.
CREATE TABLE test.statement (
  id      text NOT NULL,
  "position" bigint PRIMARY KEY,
  type    text NOT NULL,
  n       bigint CONSTRAINT statement_small CHECK (n < 500),
  ref     text CONSTRAINT statement_ref UNIQUE
);
CREATE FUNCTION test.statement_write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO statement (id, position, type, n, ref)
    VALUES (event.aggregate_id, event.position, event.type, (event.data->>'n')::bigint, event.data->>'ref')
    RETURNING jsonb_build_object('n', n)
$$;

CREATE FUNCTION test.group_key(event evpg.event) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT event.data->>'group' $$;
CREATE FUNCTION test.group_keys(event evpg.event) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
  SELECT array_agg(value) FROM jsonb_array_elements_text(event.data->'groups')
$$;

-- Rows of projections with those that are deleted, as they are stored but for the generation, which counts all builds.
CREATE VIEW test.stored AS
  SELECT p.name, s.key, p.generation_base + s.generation AS generation, s.version, s."position", s.deleted, s.updated_at,
    s.state
    FROM evpg.projection p JOIN evpg.projection_state s USING (build);

-- All that commands and projections have written: what is left of a command that failed is nothing.
CREATE FUNCTION test.written() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT format('events %s, streams %s, records %s, rows %s, statement %s, projections %s',
    (SELECT count(*) FROM evpg.event_log), (SELECT md5(string_agg(s::text, ',' ORDER BY stream_id)) FROM evpg.stream_head s),
    (SELECT count(*) FROM evpg.command_record),
      (SELECT md5(string_agg(p::text, ',' ORDER BY build, key)) FROM evpg.projection_state p),
    (SELECT md5(string_agg(s::text, ',' ORDER BY position)) FROM statement s),
      (SELECT md5(string_agg(p::text, ',' ORDER BY name)) FROM evpg.projection p))
$$;

-- As refused(), for what fails after positions were drawn: these are lost.
CREATE FUNCTION test.fails(statement text, error text, description text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  before text := written();
BEGIN
  RETURN NEXT alike(error_of(statement), error, description);
  RETURN NEXT is(written(), before, regexp_replace(description, E'( \\[[^]]*\\])?$', E': nothing is kept\\1'));
END $$;

-- "generation.version state" of a key; NULL if there is no row.
CREATE FUNCTION test.row_of(name text, key text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT generation || '.' || version || ' ' || coalesce(state::text, '-') FROM evpg_projection(name, key)
$$;

-- The same of all keys.
CREATE FUNCTION test.rows_of(of_name text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(string_agg(key || ': ' || generation || '.' || version || ' ' || coalesce(state::text, '-'), ', '
    ORDER BY key), '')
    FROM evpg.projected_state WHERE name = of_name
$$;

-- Appends an event to a counter and returns its position.
CREATE FUNCTION test.add(id text, n bigint, type text DEFAULT 'Added', more jsonb DEFAULT '{}', tags text[] DEFAULT NULL,
    aggregate text DEFAULT 'counter') RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT position FROM evpg_append(aggregate, id, ARRAY[evpg_event(type, jsonb_build_object('n', n) || more, tags => tags)])
$$;
