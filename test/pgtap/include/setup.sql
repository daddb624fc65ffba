-- setup.sql: what the pgTAP files share.  Each runs in a database of its own that has evpg and pgTAP.

\set QUIET on
\pset format unaligned
\pset tuples_only on
-- several tests in one row are several lines
\pset fieldsep '\n'
SET client_min_messages = warning;
CREATE SCHEMA test;
SET search_path = public, test;

-- The locks in this database: the copies in which other files run at the same time have tables of the same numbers.
CREATE VIEW test.own_lock AS SELECT * FROM pg_locks
  WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database());

-- All that evpg has written, and how many positions were drawn, also by what rolled back.
CREATE FUNCTION test.trace() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT format('events %s, streams %s of versions %s, records %s, snapshots %s, types %s, drawn %s',
                (SELECT count(*) FROM evpg.event_log),
                (SELECT count(*) FROM evpg.stream), (SELECT coalesce(sum(version), 0) FROM evpg.stream_head),
                (SELECT count(*) FROM evpg.command_record),
                (SELECT count(*) FROM evpg.snapshot),
                (SELECT count(*) FROM evpg.aggregate_type),
                (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM evpg.event_position))
$$;

-- "SQLSTATE message" of the error that a statement raises.
CREATE FUNCTION test.error_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE statement;
  RETURN 'no error';
EXCEPTION WHEN query_canceled OR OTHERS THEN
  RETURN SQLSTATE || ' ' || SQLERRM;
END $$;

-- "code|detail|hint" of the error that a statement raises.
CREATE FUNCTION test.error_fields(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  code text;
  detail text;
  hint text;
BEGIN
  EXECUTE statement;
  RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS code = CONSTRAINT_NAME, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
  RETURN concat_ws('|', code, detail, hint);
END $$;

-- The context of the error that a statement raises.
CREATE FUNCTION test.context_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  context text;
BEGIN
  EXECUTE statement;
  RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS context = PG_EXCEPTION_CONTEXT;
  RETURN context;
END $$;

-- "SQLSTATE message" of the error that a statement raises for a role, "done" if it raises none.
CREATE FUNCTION test.as_role(role text, statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('SET LOCAL ROLE %I', role);
  EXECUTE statement;
  RESET ROLE;
  RETURN 'done';
EXCEPTION WHEN OTHERS THEN
  RESET ROLE;
  RETURN SQLSTATE || ' ' || SQLERRM;
END $$;

-- Two tests: the statement raises this error (a pattern of LIKE), and nothing was written, lost or drawn.
CREATE FUNCTION test.refused(statement text, error text, description text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  before text := test.trace();
  got text := test.error_of(statement);
BEGIN
  IF got LIKE error THEN
    RETURN NEXT pass(description);
  ELSE
    RETURN NEXT fail(description) || E'\n' || diag('got ' || got || E'\nwanted ' || error);
  END IF;
  RETURN NEXT is(test.trace(), before, regexp_replace(description, E'( \\[[^]]*\\])?$', E': nothing is written\\1'));
END $$;

-- The aggregate type that a file which runs for several is about.
CREATE FUNCTION test.kind() RETURNS text LANGUAGE sql STABLE AS $$ SELECT current_setting('test.kind') $$;

-- "status version code" of a command on an aggregate of that type.
CREATE FUNCTION test.try(id text, command_type text, data jsonb DEFAULT '{}', expected_version bigint DEFAULT NULL,
    command_id text DEFAULT NULL) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(' ', status, version, code)
    FROM evpg_try_execute(test.kind(), id, command_type, data, expected_version, command_id)
$$;

-- "version total" of a counter; NULL if it was never created.
CREATE FUNCTION test.total(id text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT version || ' ' || (state->>'total') FROM evpg_state(test.kind(), id)
$$;

-- Whether two queries give the same rows in the same order.  results_eq() fails on columns of different collations.
CREATE FUNCTION test.same(have text, want text, description text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  got text[];
  wanted text[];
BEGIN
  EXECUTE format('SELECT array_agg(t::text) FROM (%s) t', have) INTO got;
  EXECUTE format('SELECT array_agg(t::text) FROM (%s) t', want) INTO wanted;
  RETURN is(array_to_string(got, E'\n'), array_to_string(wanted, E'\n'), description);
END $$;
