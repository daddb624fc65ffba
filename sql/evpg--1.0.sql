-- evpg 1.0: types and storage in schema evpg, functions in the schema of the extension.
--
-- The order of the columns of evpg.event_log, evpg.event and the composite types
-- is known to the C code (src/event.h): columns are only ever appended.

\echo Use "CREATE EXTENSION evpg" to load this file. \quit

DO $$
BEGIN
  IF pg_catalog.current_setting('server_encoding') OPERATOR(pg_catalog.<>) 'UTF8' THEN
    RAISE EXCEPTION 'evpg needs a database with encoding UTF8'
      USING ERRCODE = 'feature_not_supported', HINT = 'Create the database with ENCODING ''UTF8'' TEMPLATE template0.';
  END IF;
END $$;

CREATE SCHEMA evpg;
COMMENT ON SCHEMA evpg IS 'tables, types and views of the evpg extension';

-- ------------------------------------------------------------------ storage

-- Functions and roles are kept by name: reg* columns would make pg_upgrade refuse the cluster.
CREATE TABLE evpg.aggregate_type (
  aggregate_type  text COLLATE "C" PRIMARY KEY,
  library         text,
  symbol          text,
  handler         text,
  reducer         text,
  invariant       text,
  initial_state   jsonb NOT NULL,
  snapshot_every  int NOT NULL,
  snapshot_keep   int NOT NULL,
  reducer_version int NOT NULL,
  generation      bigint NOT NULL,
  fold_generation bigint NOT NULL,
  search_path     text NOT NULL,
  registered_by   text NOT NULL,
  registered_at   timestamptz NOT NULL,
  CHECK ((library IS NULL) = (symbol IS NULL)),
  CHECK ((library IS NULL) <> (handler IS NULL)),
  CHECK ((handler IS NULL) = (reducer IS NULL))
);
COMMENT ON TABLE evpg.aggregate_type IS 'registered aggregates: a symbol of a shared object, or functions';
COMMENT ON COLUMN evpg.aggregate_type.generation IS 'rises with each change of the registration';
COMMENT ON COLUMN evpg.aggregate_type.fold_generation IS 'the first generation with this reducer and initial state: older snapshots are not used';

-- COLLATE "C": ids are compared bytewise, and no library upgrade can spoil the index.
CREATE TABLE evpg.stream (
  stream_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  version        bigint NOT NULL DEFAULT 0,
  last_position  bigint NOT NULL DEFAULT 0,
  created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  aggregate_type text COLLATE "C" NOT NULL,
  aggregate_id   text COLLATE "C" NOT NULL,
  UNIQUE (aggregate_type, aggregate_id)
) WITH (fillfactor = 80);
COMMENT ON TABLE evpg.stream IS 'one row per aggregate instance: how many events it has, and where the last one is';

COMMENT ON SEQUENCE evpg.stream_stream_id_seq IS 'draws stream ids';

CREATE SEQUENCE evpg.event_position CACHE 1;
COMMENT ON SEQUENCE evpg.event_position IS 'draws positions, only under the lock on evpg.fence; its CACHE must stay 1';

CREATE TABLE evpg.event_log (
  "position"     bigint PRIMARY KEY,
  stream_id      bigint NOT NULL,
  version        bigint NOT NULL,
  occurred_at    timestamptz NOT NULL,
  recorded_at    timestamptz NOT NULL,
  event_id       uuid NOT NULL UNIQUE,
  schema_version int NOT NULL,
  type           text COLLATE "C" NOT NULL,
  data           jsonb,
  metadata       jsonb,
  tags           text[],
  command_id     text COLLATE "C",
  correlation_id text COLLATE "C",
  causation_id   text COLLATE "C",
  actor          text,
  UNIQUE (stream_id, version)
);
COMMENT ON TABLE evpg.event_log IS 'the event log, append-only; read it through the view evpg.event';
COMMENT ON COLUMN evpg.event_log.correlation_id IS 'NULL: the event''s own id';
COMMENT ON COLUMN evpg.event_log.data IS 'NULL: an event without data';

CREATE VIEW evpg.event AS
  SELECT e."position", s.aggregate_type, s.aggregate_id, e.version, e.event_id, e.type, e.schema_version,
         e.data, e.metadata, e.tags, e.command_id, coalesce(e.correlation_id, e.event_id::text) AS correlation_id,
         e.causation_id, e.actor, e.occurred_at, e.recorded_at
    FROM evpg.event_log e JOIN evpg.stream s USING (stream_id);
COMMENT ON VIEW evpg.event IS 'events; its row type is what functions receive and return';

CREATE TABLE evpg.command_record (
  stream_id     bigint NOT NULL,
  first_version bigint NOT NULL,
  last_version  bigint NOT NULL,
  recorded_at   timestamptz NOT NULL,
  payload_hash  bytea NOT NULL,
  command_id    text COLLATE "C" NOT NULL,
  PRIMARY KEY (stream_id, command_id)
);
COMMENT ON TABLE evpg.command_record IS 'commands that succeeded under a command_id: the durable idempotency record';

CREATE TABLE evpg.snapshot (
  stream_id       bigint NOT NULL,
  version         bigint NOT NULL,
  generation      bigint NOT NULL,
  created_at      timestamptz NOT NULL,
  reducer_version int NOT NULL,
  state           jsonb NOT NULL,
  PRIMARY KEY (stream_id, version)
);
COMMENT ON TABLE evpg.snapshot IS 'folded states: a cache, safe to delete at any time';

CREATE TABLE evpg.interceptor (
  name            text COLLATE "C" PRIMARY KEY,
  interceptor     text NOT NULL,
  aggregate_types text[],
  command_types   text[],
  priority        int NOT NULL,
  search_path     text NOT NULL
);
COMMENT ON TABLE evpg.interceptor IS 'functions that see every command before it is executed';

CREATE TABLE evpg.projection (
  name            text COLLATE "C" PRIMARY KEY,
  library         text,
  symbol          text,
  reducer         text,
  handler         text,
  key_function    text,
  key_path        jsonpath,
  constant_key    text,
  aggregate_types text[],
  event_types     text[],
  tags            text[],
  initial_state   jsonb NOT NULL,
  broadcast       text NOT NULL CHECK (broadcast IN ('none', 'pointer', 'delta')),
  event_name      text NOT NULL,
  search_path     text NOT NULL,
  registered_by   text NOT NULL,
  registered_at   timestamptz NOT NULL,
  CHECK ((library IS NULL) = (symbol IS NULL)),
  CHECK (num_nonnulls(library, reducer, handler) = 1),
  CHECK (num_nonnulls(key_function, key_path, constant_key) <= 1)
);
COMMENT ON TABLE evpg.projection IS 'registered projections: a symbol of a shared object, or functions';

-- A deleted key keeps its row, so that (generation, version) never goes back.
CREATE TABLE evpg.projection_state (
  version    bigint NOT NULL,
  "position" bigint NOT NULL,
  updated_at timestamptz NOT NULL,
  generation int NOT NULL,
  deleted    boolean NOT NULL,
  name       text COLLATE "C" NOT NULL,
  key        text COLLATE "C" NOT NULL,
  state      jsonb,
  PRIMARY KEY (name, key)
) WITH (fillfactor = 80);
COMMENT ON TABLE evpg.projection_state IS 'rows of projections; read them through the view evpg.projected_state';
COMMENT ON COLUMN evpg.projection_state.version IS 'count of events applied in this generation';
COMMENT ON COLUMN evpg.projection_state.state IS 'NULL: deleted, or the row of a table projection';

CREATE VIEW evpg.projected_state AS
  SELECT p.name, p.key, p.state, p.generation, p.version, p."position", p.updated_at
    FROM evpg.projection_state p WHERE NOT p.deleted;
COMMENT ON VIEW evpg.projected_state IS 'rows of projections that are there';

-- No unique constraint: a dump that is restored brings the row of its database beside the one made here (src/home.c).
CREATE TABLE evpg.meta (
  system_identifier bigint NOT NULL,
  database          oid NOT NULL
);
COMMENT ON TABLE evpg.meta IS 'which database this is: consumers run only where all rows say it is this one';
INSERT INTO evpg.meta (system_identifier, database)
  SELECT s.system_identifier, d.oid FROM pg_catalog.pg_control_system() s, pg_catalog.pg_database d
   WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database();

-- A view, because ANALYZE and VACUUM of a whole database lock every table; locks on a view work the same.
CREATE VIEW evpg.fence AS SELECT 1 AS nothing;
COMMENT ON VIEW evpg.fence IS 'not to be read: who appends holds a lock on it from before the first position is drawn to the end of the transaction';

-- An appender's lock says what had been drawn before it (src/fence.c).  On a standby nobody can know who appends.
CREATE VIEW evpg.stat_stable_position AS
  WITH drawn AS MATERIALIZED (
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END AS last_position FROM evpg.event_position),
  held AS MATERIALIZED (SELECT * FROM pg_locks WHERE granted),
  appender AS (
    SELECT h.pid, h.virtualtransaction, (h.classid::bigint << 32) | h.objid::bigint AS drawn_before
      FROM held h
     WHERE h.locktype = 'advisory' AND h.objsubid = 17751
       AND h.database = (SELECT oid FROM pg_database WHERE datname = current_database())),
  prepared AS (
    SELECT h.virtualtransaction, p.gid, p.prepared
      FROM pg_prepared_xacts p JOIN held h ON h.pid IS NULL AND h.transactionid = p.transaction)
  SELECT CASE WHEN NOT pg_is_in_recovery() THEN least(d.last_position, min(a.drawn_before) OVER ()) END AS stable_position,
         d.last_position, a.pid AS blocker_pid, p.gid AS blocker_gid, coalesce(s.xact_start, p.prepared) AS blocker_xact_start,
         CASE WHEN p.gid IS NOT NULL THEN 'prepared' ELSE s.state END AS blocker_state, s.query AS blocker_query
    FROM drawn d
    LEFT JOIN appender a ON a.drawn_before < d.last_position
    LEFT JOIN pg_stat_activity s ON s.pid = a.pid
    LEFT JOIN prepared p ON a.pid IS NULL AND p.virtualtransaction = a.virtualtransaction;
COMMENT ON VIEW evpg.stat_stable_position IS 'how far readers may read, how far positions are drawn, and who holds readers back';

SELECT pg_catalog.pg_extension_config_dump('evpg.aggregate_type', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.stream', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.stream_stream_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.event_position', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.event_log', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.command_record', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.snapshot', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.interceptor', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.projection', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.projection_state', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.meta', '');

-- ENABLE ALWAYS: session_replication_role does not switch it off.  Costs an INSERT nothing.
CREATE FUNCTION evpg.refuse_change() RETURNS trigger
  AS 'MODULE_PATHNAME', 'evpg_refuse_change' LANGUAGE C;
COMMENT ON FUNCTION evpg.refuse_change() IS 'trigger: history is append-only';
CREATE TRIGGER evpg_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON evpg.event_log
  FOR EACH STATEMENT EXECUTE FUNCTION evpg.refuse_change();
ALTER TABLE evpg.event_log ENABLE ALWAYS TRIGGER evpg_append_only;

-- ------------------------------------------------------------------ types

CREATE TYPE evpg.new_event AS (
  type text, data jsonb, metadata jsonb, tags text[], schema_version int,
  occurred_at timestamptz, event_id uuid, caused_by int);
COMMENT ON TYPE evpg.new_event IS 'an event to be appended; make it with evpg_event()';

CREATE TYPE evpg.stream_info AS (
  aggregate_type text, aggregate_id text, version bigint, created_at timestamptz);
COMMENT ON TYPE evpg.stream_info IS 'a stream, as evpg_streams() lists it';

CREATE TYPE evpg.command AS (
  aggregate_type text, aggregate_id text, command_type text, data jsonb, expected_version bigint,
  command_id text, metadata jsonb, actor text, correlation_id text, causation_id text,
  version bigint, received_at timestamptz);
COMMENT ON TYPE evpg.command IS 'a command; evpg fills version and received_at for the handler';

CREATE TYPE evpg.outcome AS (
  status text, aggregate_type text, aggregate_id text, version bigint, last_position bigint,
  events jsonb, sqlstate text, code text, message text, detail jsonb, hint text);
COMMENT ON TYPE evpg.outcome IS 'what became of a command: ok, noop, duplicate, rejected, conflict, invariant or intercepted';

CREATE TYPE evpg.projected AS (state jsonb, delta jsonb);
COMMENT ON TYPE evpg.projected IS 'what a projection reducer says: the new state, NULL = delete the row; the delta for listeners, NULL = silence';

-- ------------------------------------------------------------------ constructors

CREATE FUNCTION evpg_event(type text, data jsonb DEFAULT '{}', metadata jsonb DEFAULT NULL, tags text[] DEFAULT NULL,
    schema_version int DEFAULT 1, occurred_at timestamptz DEFAULT NULL, event_id uuid DEFAULT NULL, caused_by int DEFAULT NULL)
  RETURNS evpg.new_event AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION evpg_event IS 'makes an event; caused_by is the 1-based number of an earlier event of the same call';

CREATE FUNCTION evpg_events(events jsonb)
  RETURNS evpg.new_event[] AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION evpg_events IS 'makes events of a JSON object or array of objects; an unknown key is an error';

CREATE FUNCTION evpg_command(aggregate_type text, aggregate_id text, command_type text, data jsonb DEFAULT '{}',
    expected_version bigint DEFAULT NULL, command_id text DEFAULT NULL, metadata jsonb DEFAULT NULL, actor text DEFAULT NULL,
    correlation_id text DEFAULT NULL, causation_id text DEFAULT NULL)
  RETURNS evpg.command AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION evpg_command IS 'makes a command';

CREATE FUNCTION evpg_commands(commands jsonb)
  RETURNS evpg.command[] AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION evpg_commands IS 'makes commands of a JSON object or array of objects; an unknown key is an error';

-- VOLATILE, so that it is never evaluated while planning; typed, so that it fits into CASE.
CREATE FUNCTION evpg_reject(code text, message text DEFAULT NULL, detail jsonb DEFAULT NULL)
  RETURNS evpg.new_event AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL SAFE;
COMMENT ON FUNCTION evpg_reject IS 'refuses the command: raises VE002 with the code as constraint name';

CREATE FUNCTION evpg_projected(state jsonb, delta jsonb) RETURNS evpg.projected
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ROW(state, delta)::evpg.projected;
COMMENT ON FUNCTION evpg_projected IS 'makes the result of a projection reducer: the new state and what listeners are sent';

-- ------------------------------------------------------------------ aggregates

CREATE FUNCTION evpg_register_aggregate(aggregate_type text, handler regproc DEFAULT NULL, reducer regproc DEFAULT NULL,
    initial_state jsonb DEFAULT '{}', invariant regproc DEFAULT NULL,
    snapshot_every int DEFAULT 100, snapshot_keep int DEFAULT 1, reducer_version int DEFAULT 1,
    library text DEFAULT NULL, symbol text DEFAULT NULL, options jsonb DEFAULT '{}')
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_register_aggregate IS 'registers an aggregate: functions, or a symbol of a shared object; true when something changed';

CREATE FUNCTION evpg_drop_aggregate(aggregate_type text, missing_ok boolean DEFAULT false)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION evpg_drop_aggregate IS 'removes the registration of an aggregate; its events stay';

CREATE FUNCTION evpg_register_interceptor(name text, interceptor regproc, aggregate_types text[] DEFAULT NULL,
    command_types text[] DEFAULT NULL, priority int DEFAULT 0)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_register_interceptor IS 'registers f(evpg.command) returns evpg.command, called before each command, lowest priority first';

CREATE FUNCTION evpg_drop_interceptor(name text, missing_ok boolean DEFAULT false)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION evpg_drop_interceptor IS 'removes an interceptor';

CREATE FUNCTION evpg_set_context(actor text DEFAULT NULL, correlation_id text DEFAULT NULL, metadata jsonb DEFAULT NULL)
  RETURNS void AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_set_context IS 'sets actor, correlation_id and metadata of the commands that follow in this transaction';

CREATE FUNCTION evpg_execute(aggregate_type text, aggregate_id text, command_type text, data jsonb DEFAULT '{}',
    expected_version bigint DEFAULT NULL, command_id text DEFAULT NULL, metadata jsonb DEFAULT NULL, actor text DEFAULT NULL,
    correlation_id text DEFAULT NULL, causation_id text DEFAULT NULL)
  RETURNS SETOF evpg.event AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE ROWS 2;
COMMENT ON FUNCTION evpg_execute IS 'executes a command and returns its events; a refusal is an error';

CREATE FUNCTION evpg_try_execute(aggregate_type text, aggregate_id text, command_type text, data jsonb DEFAULT '{}',
    expected_version bigint DEFAULT NULL, command_id text DEFAULT NULL, metadata jsonb DEFAULT NULL, actor text DEFAULT NULL,
    correlation_id text DEFAULT NULL, causation_id text DEFAULT NULL)
  RETURNS SETOF evpg.outcome AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE ROWS 1;
COMMENT ON FUNCTION evpg_try_execute IS 'executes a command and returns its outcome; a refusal is a row';

CREATE FUNCTION evpg_append(aggregate_type text, aggregate_id text, events evpg.new_event[], expected_version bigint DEFAULT NULL,
    command_id text DEFAULT NULL, metadata jsonb DEFAULT NULL, actor text DEFAULT NULL,
    correlation_id text DEFAULT NULL, causation_id text DEFAULT NULL)
  RETURNS SETOF evpg.event AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE ROWS 5;
COMMENT ON FUNCTION evpg_append IS 'appends events that the caller decided, without handler and invariant';

CREATE FUNCTION evpg_inject(aggregate_type text, aggregate_id text, event evpg.new_event)
  RETURNS SETOF evpg.event AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE ROWS 1;
COMMENT ON FUNCTION evpg_inject IS 'appends one event as it is; no row and no effect when its event_id is known in any stream';

CREATE FUNCTION evpg_create_stream(aggregate_type text, aggregate_id text)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION evpg_create_stream IS 'creates an empty stream; false when it was there';

-- ------------------------------------------------------------------ reading

CREATE FUNCTION evpg_streams(aggregate_type text DEFAULT NULL, after_id text DEFAULT NULL, max_count int DEFAULT 1000,
    after_type text DEFAULT NULL)
  RETURNS SETOF evpg.stream_info AS 'MODULE_PATHNAME' LANGUAGE C STABLE;
COMMENT ON FUNCTION evpg_streams IS 'lists streams by type and id, bytewise; max_count NULL lists all';

CREATE FUNCTION evpg_stream_version(aggregate_type text, aggregate_id text)
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION evpg_stream_version IS 'count of events in a stream; NULL when it was never created';

CREATE FUNCTION evpg_read_stream(aggregate_type text, aggregate_id text, from_version bigint DEFAULT 1, max_count int DEFAULT NULL,
    backwards boolean DEFAULT false, missing_ok boolean DEFAULT false)
  RETURNS SETOF evpg.event AS 'MODULE_PATHNAME' LANGUAGE C STABLE;
COMMENT ON FUNCTION evpg_read_stream IS 'events of a stream with version >= from_version, oldest first, or newest first when backwards';

CREATE FUNCTION evpg_read_all(after_position bigint DEFAULT 0, max_count int DEFAULT 1000, aggregate_types text[] DEFAULT NULL,
    event_types text[] DEFAULT NULL, tags text[] DEFAULT NULL, stable_only boolean DEFAULT true)
  RETURNS SETOF evpg.event AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_read_all IS 'events in position order; stable_only stops at evpg_stable_position(), so that paging never skips one; tags: any of them';

CREATE FUNCTION evpg_stable_position()
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_stable_position IS 'a position at or below which no event can still appear';

CREATE FUNCTION evpg_state(aggregate_type text, aggregate_id text, at_version bigint DEFAULT NULL, at_time timestamptz DEFAULT NULL)
  RETURNS TABLE (version bigint, state jsonb, last_position bigint) AS 'MODULE_PATHNAME' LANGUAGE C STABLE ROWS 1;
COMMENT ON FUNCTION evpg_state IS 'state of an aggregate: now, at a version, or of the events that had occurred by a time; no row when it was never created';

CREATE FUNCTION evpg_take_snapshot(aggregate_type text, aggregate_id text)
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION evpg_take_snapshot IS 'stores the state of an aggregate and returns its version';

CREATE FUNCTION evpg_version()
  RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C STABLE;
COMMENT ON FUNCTION evpg_version IS 'versions of extension, library and module ABI';

CREATE FUNCTION evpg_session_stats()
  RETURNS TABLE (aggregate_type text, commands bigint, rejected bigint, conflicts bigint, noops bigint, duplicates bigint,
    events bigint, unknown_events bigint, cache_hits bigint, folds bigint, snapshots bigint)
  AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_session_stats IS 'what this session did, by aggregate type; includes what was rolled back';

-- ------------------------------------------------------------------ projections

CREATE FUNCTION evpg_register_projection(name text, reducer regproc DEFAULT NULL, handler regproc DEFAULT NULL,
    mode text DEFAULT 'inline', aggregate_types text[] DEFAULT NULL, event_types text[] DEFAULT NULL, tags text[] DEFAULT NULL,
    key_path jsonpath DEFAULT NULL, key_function regproc DEFAULT NULL, constant_key text DEFAULT NULL, initial_state jsonb DEFAULT '{}',
    broadcast text DEFAULT 'pointer', event_name text DEFAULT 'delta', library text DEFAULT NULL, symbol text DEFAULT NULL,
    options jsonb DEFAULT '{}')
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_register_projection IS 'registers a projection: a reducer over a state per key, a handler that writes tables, or a symbol of a shared object; true when something changed';

CREATE FUNCTION evpg_drop_projection(name text, missing_ok boolean DEFAULT false)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C STRICT;
COMMENT ON FUNCTION evpg_drop_projection IS 'removes a projection and its rows';

CREATE FUNCTION evpg_projection(name text, key text DEFAULT '')
  RETURNS TABLE (state jsonb, generation int, version bigint, "position" bigint, updated_at timestamptz)
  AS 'MODULE_PATHNAME', 'evpg_projection_read' LANGUAGE C STABLE STRICT ROWS 1;
COMMENT ON FUNCTION evpg_projection IS 'the row of a key; no row when there is none';

CREATE FUNCTION evpg_projection_required(name text, key text DEFAULT '')
  RETURNS TABLE (state jsonb, generation int, version bigint, "position" bigint, updated_at timestamptz)
  AS 'MODULE_PATHNAME', 'evpg_projection_required' LANGUAGE C STABLE STRICT ROWS 1;
COMMENT ON FUNCTION evpg_projection_required IS 'the row of a key; an error when there is none';

CREATE FUNCTION evpg_projection_changes(name text, after_position bigint DEFAULT 0, max_count int DEFAULT 1000)
  RETURNS TABLE (key text, state jsonb, generation int, version bigint, "position" bigint, updated_at timestamptz, next_position bigint)
  AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_projection_changes IS 'rows changed after a position, up to the stable one, deleted ones with state NULL; go on from next_position';

CREATE FUNCTION evpg_projection_put(name text, key text, state jsonb)
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_projection_put IS 'replaces the state of a key, or deletes it when NULL, and returns its new version';

CREATE FUNCTION evpg_rebuild_projection(name text, key text)
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_rebuild_projection IS 'folds the events of a key again from the first on, and returns how many there are';

CREATE FUNCTION evpg_channel(name text, key text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C STABLE;
COMMENT ON FUNCTION evpg_channel IS 'the channel of a key of a projection, or of all its keys';

CREATE FUNCTION evpg_listen(name text, key text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_listen IS 'LISTEN on evpg_channel(name, key), which it returns';

CREATE FUNCTION evpg_unlisten(name text, key text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_unlisten IS 'UNLISTEN on evpg_channel(name, key), which it returns';

-- ------------------------------------------------------------------ idempotency

-- As a JSON array, ('ab', 'c') and ('a', 'bc') differ.
CREATE FUNCTION evpg_operation_key(domain text, VARIADIC components text[]) RETURNS text
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN encode(sha256(convert_to(to_json(array_prepend(domain, components))::text, 'UTF8')), 'hex');
COMMENT ON FUNCTION evpg_operation_key IS 'a command_id made of what an operation is about: the same parts give the same id';

CREATE FUNCTION evpg_prune_commands(older_than interval) RETURNS bigint
  LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  pruned bigint;
BEGIN
  IF older_than < interval '0' THEN
    RAISE EXCEPTION 'older_than must not be negative' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  DELETE FROM evpg.command_record WHERE recorded_at < clock_timestamp() - older_than;
  GET DIAGNOSTICS pruned = ROW_COUNT;
  RETURN pruned;
END $$;
COMMENT ON FUNCTION evpg_prune_commands IS 'forgets command ids recorded longer ago: a resend would then be executed again';

-- ------------------------------------------------------------------ copies

CREATE FUNCTION evpg_activate()
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_activate IS 'lets consumers run in this database after it was restored or copied; false when they could already';

-- ------------------------------------------------------------------ privileges

-- Nothing is granted to PUBLIC; evpg_grant() gives what a role needs.  reader: read; writer: execute and append too;
-- operator: register and snapshot too.  A caller needs the right to grant: the owner of the extension, or a superuser.
CREATE FUNCTION evpg.privileges(access text) RETURNS SETOF text
  LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT p.object
    FROM (VALUES
      (1, 'USAGE ON SCHEMA evpg'), (1, 'SELECT ON evpg.event, evpg.stream'),
      (1, 'EXECUTE ON FUNCTION evpg_streams'), (1, 'EXECUTE ON FUNCTION evpg_stream_version'),
      (1, 'EXECUTE ON FUNCTION evpg_read_stream'), (1, 'EXECUTE ON FUNCTION evpg_read_all'),
      (1, 'EXECUTE ON FUNCTION evpg_stable_position'), (1, 'EXECUTE ON FUNCTION evpg_state'),
      (1, 'EXECUTE ON FUNCTION evpg_version'), (1, 'EXECUTE ON FUNCTION evpg_session_stats'),
      (1, 'EXECUTE ON FUNCTION evpg_projection'), (1, 'EXECUTE ON FUNCTION evpg_projection_required'),
      (1, 'EXECUTE ON FUNCTION evpg_projection_changes'), (1, 'EXECUTE ON FUNCTION evpg_channel'),
      (1, 'EXECUTE ON FUNCTION evpg_listen'), (1, 'EXECUTE ON FUNCTION evpg_unlisten'), (1, 'SELECT ON evpg.projected_state, evpg.stat_stable_position'),
      (2, 'EXECUTE ON FUNCTION evpg_event'), (2, 'EXECUTE ON FUNCTION evpg_events'), (2, 'EXECUTE ON FUNCTION evpg_command'),
      (2, 'EXECUTE ON FUNCTION evpg_commands'), (2, 'EXECUTE ON FUNCTION evpg_reject'),
      (2, 'EXECUTE ON FUNCTION evpg_set_context'), (2, 'EXECUTE ON FUNCTION evpg_execute'),
      (2, 'EXECUTE ON FUNCTION evpg_try_execute'), (2, 'EXECUTE ON FUNCTION evpg_append'),
      (2, 'EXECUTE ON FUNCTION evpg_create_stream'), (2, 'EXECUTE ON FUNCTION evpg_operation_key'),
      (3, 'EXECUTE ON FUNCTION evpg_inject'), (3, 'EXECUTE ON FUNCTION evpg_take_snapshot'),
      (3, 'EXECUTE ON FUNCTION evpg_prune_commands'), (2, 'EXECUTE ON FUNCTION evpg_projected'),
      (3, 'EXECUTE ON FUNCTION evpg_register_projection'), (3, 'EXECUTE ON FUNCTION evpg_drop_projection'),
      (3, 'EXECUTE ON FUNCTION evpg_projection_put'), (3, 'EXECUTE ON FUNCTION evpg_rebuild_projection'),
      (3, 'EXECUTE ON FUNCTION evpg_register_aggregate'), (3, 'EXECUTE ON FUNCTION evpg_drop_aggregate'),
      (3, 'EXECUTE ON FUNCTION evpg_register_interceptor'), (3, 'EXECUTE ON FUNCTION evpg_drop_interceptor'),
      (3, 'EXECUTE ON FUNCTION evpg_activate'),
      (3, 'SELECT ON evpg.aggregate_type, evpg.command_record, evpg.snapshot, evpg.interceptor, evpg.projection, evpg.meta')) AS p (level, object)
   WHERE p.level <= CASE access WHEN 'reader' THEN 1 WHEN 'writer' THEN 2 WHEN 'operator' THEN 3 END;
END;
COMMENT ON FUNCTION evpg.privileges(text) IS 'what evpg_grant() grants for an access';

CREATE FUNCTION evpg_grant(grantee regrole, access text) RETURNS void
  LANGUAGE plpgsql STRICT SET search_path = @extschema@, pg_catalog, pg_temp AS $$
DECLARE
  privilege text;
BEGIN
  IF access NOT IN ('reader', 'writer', 'operator') THEN
    RAISE EXCEPTION 'unknown access "%"', access USING ERRCODE = 'invalid_parameter_value', HINT = 'Use reader, writer or operator.';
  END IF;
  EXECUTE format('GRANT USAGE ON SCHEMA @extschema@ TO %s', grantee);
  FOR privilege IN SELECT evpg.privileges(access) LOOP
    EXECUTE format('GRANT %s TO %s', privilege, grantee);
  END LOOP;
END $$;
COMMENT ON FUNCTION evpg_grant IS 'lets a role read (reader), read, execute and append (writer), or register as well (operator)';

CREATE FUNCTION evpg_revoke(grantee regrole, access text) RETURNS void
  LANGUAGE plpgsql STRICT SET search_path = @extschema@, pg_catalog, pg_temp AS $$
DECLARE
  privilege text;
BEGIN
  IF access NOT IN ('reader', 'writer', 'operator') THEN
    RAISE EXCEPTION 'unknown access "%"', access USING ERRCODE = 'invalid_parameter_value', HINT = 'Use reader, writer or operator.';
  END IF;
  FOR privilege IN SELECT evpg.privileges(access) LOOP
    EXECUTE format('REVOKE %s FROM %s', privilege, grantee);
  END LOOP;
END $$;
COMMENT ON FUNCTION evpg_revoke IS 'takes back what evpg_grant() gave';

DO $$
DECLARE
  f pg_catalog.regprocedure;
BEGIN
  FOR f IN SELECT d.objid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
            WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
              AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
              AND d.deptype OPERATOR(pg_catalog.=) 'e' AND e.extname OPERATOR(pg_catalog.=) 'evpg'
  LOOP
    EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
  END LOOP;
END $$;
