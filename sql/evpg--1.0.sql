-- evpg 1.0: types and storage in schema evpg, functions in the schema of the extension.
--
-- The order of the columns of evpg.event_log, evpg.stream, evpg.projection_state, evpg.clock, evpg.event and the
-- composite types is known to the C code (src/base/shape.c): columns are only ever appended.  Tables with a row
-- per event, stream, command, snapshot, projected key or message have their columns in the order that needs the
-- least space; all others have them in the order in which they are read, the key first.

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

-- ------------------------------------------------------------------ clock

CREATE FUNCTION evpg.clock_timestamp() RETURNS timestamptz
  AS 'MODULE_PATHNAME', 'evpg_clock_timestamp' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION evpg.clock_timestamp() IS
  'returns the time by which evpg records and compares: the wall clock, unless evpg_set_clock_offset() has moved it';

CREATE FUNCTION evpg_set_clock_offset(clock_offset interval DEFAULT '0') RETURNS void
  AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_set_clock_offset(interval) IS
  'moves the clock of this database for all sessions and workers; meant for tests';

-- ------------------------------------------------------------------ arguments

CREATE FUNCTION evpg.refuse_null(argument text, what text) RETURNS void
  LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF argument IS NULL THEN
    RAISE EXCEPTION '% must not be null', what USING ERRCODE = 'null_value_not_allowed';
  END IF;
END $$;
COMMENT ON FUNCTION evpg.refuse_null(text, text) IS 'raises an error if an argument is NULL';

-- ------------------------------------------------------------------ tables

-- All tables, and the views of tables alone; then types and functions by topic.

-- Not dumped: a restored database has the time of day.
CREATE TABLE evpg.clock (
  one          boolean PRIMARY KEY DEFAULT true CHECK (one),
  clock_offset bigint NOT NULL
);
COMMENT ON TABLE evpg.clock IS
  'how far the clock of this database is ahead of the wall clock; without a row, it is the wall clock';
COMMENT ON COLUMN evpg.clock.clock_offset IS 'in microseconds';

-- Functions and roles are kept by name: reg* columns would make pg_upgrade refuse the cluster.
CREATE TABLE evpg.aggregate_type (
  aggregate_type  text COLLATE "C" PRIMARY KEY,
  handler         text,
  reducer         text,
  invariant       text,
  library         text,
  symbol          text,
  initial_state   jsonb NOT NULL,
  snapshot_every  int NOT NULL,
  snapshot_keep   int NOT NULL,
  reducer_version int NOT NULL,
  generation      bigint NOT NULL,
  fold_generation bigint NOT NULL,
  search_path     text NOT NULL,
  registered_by   text NOT NULL,
  registered_at   timestamptz NOT NULL,
  broadcast       text NOT NULL DEFAULT 'none'
                  CHECK (broadcast OPERATOR(pg_catalog.=) ANY ('{none,pointer,delta}'::pg_catalog.text[])),
  boundary        text,
  CHECK ((library IS NULL) OPERATOR(pg_catalog.=) (symbol IS NULL)),
  CHECK (library IS NULL OR handler IS NULL),
  CHECK ((handler IS NULL) OPERATOR(pg_catalog.=) (reducer IS NULL)),
  CHECK (boundary IS NULL OR handler IS NOT NULL)
);
COMMENT ON TABLE evpg.aggregate_type IS 'registered aggregates: functions, or a symbol of a shared object';
COMMENT ON COLUMN evpg.aggregate_type.generation IS 'number that rises with each change of the registration';
COMMENT ON COLUMN evpg.aggregate_type.fold_generation IS
  'first generation with this reducer and initial state; snapshots of older ones are not used';

-- COLLATE "C": ids are compared bytewise, and no library upgrade can spoil the index.
CREATE TABLE evpg.stream (
  stream_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  created_at     timestamptz NOT NULL DEFAULT evpg.clock_timestamp(),
  aggregate_type text COLLATE "C" NOT NULL,
  aggregate_id   text COLLATE "C" NOT NULL,
  UNIQUE (aggregate_type, aggregate_id)
);
COMMENT ON TABLE evpg.stream IS 'one row for each aggregate instance, which is never updated';
COMMENT ON SEQUENCE evpg.stream_stream_id_seq IS 'source of stream ids';

CREATE SEQUENCE evpg.event_position CACHE 1;
COMMENT ON SEQUENCE evpg.event_position IS
  'source of positions, drawn only under the lock on evpg.fence; its CACHE must stay 1';

-- A sequence can be written in place, without a transaction id and without a dead row; see src/log/position.c.  Not
-- dumped: a restored database begins anew.
CREATE SEQUENCE evpg.logged_position;
COMMENT ON SEQUENCE evpg.logged_position IS
  'the stable position that was written into WAL last, up to which standbys read; nothing is drawn from it';

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
  session_role   text COLLATE "C" NOT NULL,
  UNIQUE (stream_id, version)
);
COMMENT ON TABLE evpg.event_log IS 'the event log, append-only; read it through the view evpg.event';
COMMENT ON COLUMN evpg.event_log.correlation_id IS 'NULL if it is the id of the event itself';
COMMENT ON COLUMN evpg.event_log.session_role IS
  'session_user of the session that caused the event, also if a saga or a timer appended it later';
COMMENT ON COLUMN evpg.event_log.data IS 'NULL if the event has no data';

CREATE VIEW evpg.event AS
  SELECT e."position", s.aggregate_type, s.aggregate_id, e.version, e.event_id, e.type, e.schema_version,
         e.data, e.metadata, e.tags, e.command_id, coalesce(e.correlation_id, e.event_id::pg_catalog.text) AS correlation_id,
         e.causation_id, e.actor, e.occurred_at, e.recorded_at, e.session_role
    FROM evpg.event_log e JOIN evpg.stream s ON s.stream_id OPERATOR(pg_catalog.=) e.stream_id;
COMMENT ON VIEW evpg.event IS 'events; functions receive and return its row type';

CREATE VIEW evpg.stream_head AS
  SELECT s.stream_id, s.aggregate_type, s.aggregate_id, coalesce(h.version, 0) AS version,
         coalesce(h."position", 0) AS last_position, h.recorded_at AS last_recorded_at
    FROM evpg.stream s LEFT JOIN LATERAL (
           SELECT e.version, e."position", e.recorded_at FROM evpg.event_log e
            WHERE e.stream_id OPERATOR(pg_catalog.=) s.stream_id ORDER BY e.version DESC LIMIT 1) h ON true;
COMMENT ON VIEW evpg.stream_head IS
  'streams with the version, position and time of their newest event: 0, 0 and NULL if there is none';

CREATE TABLE evpg.command_record (
  stream_id     bigint NOT NULL,
  first_version bigint NOT NULL,
  last_version  bigint NOT NULL,
  recorded_at   timestamptz NOT NULL,
  payload_hash  bytea NOT NULL,
  command_id    text COLLATE "C" NOT NULL,
  PRIMARY KEY (stream_id, command_id)
);
COMMENT ON TABLE evpg.command_record IS
  'commands that succeeded under a command_id: the durable record that makes them idempotent';

CREATE TABLE evpg.inbox (
  received_at timestamptz NOT NULL DEFAULT evpg.clock_timestamp(),
  source      text COLLATE "C" NOT NULL,
  message_key text COLLATE "C" NOT NULL,
  PRIMARY KEY (source, message_key)
);
COMMENT ON TABLE evpg.inbox IS 'messages from outside that were received';

CREATE TABLE evpg.snapshot (
  stream_id       bigint NOT NULL,
  version         bigint NOT NULL,
  generation      bigint NOT NULL,
  created_at      timestamptz NOT NULL,
  definition_hash bigint NOT NULL,
  reducer_version int NOT NULL,
  state           jsonb NOT NULL,
  PRIMARY KEY (stream_id, version)
);
COMMENT ON COLUMN evpg.snapshot.definition_hash IS
  'hash of the reducer function that folded the state, and of the upcasters of its events; a different reducer, or other '
  'upcasters, do not use the snapshot; 0 for a shared object, which has a reducer_version, without upcasters';
COMMENT ON TABLE evpg.snapshot IS 'folded states: a cache whose rows can be deleted at any time';

CREATE TABLE evpg.interceptor (
  name            text COLLATE "C" PRIMARY KEY,
  interceptor     text NOT NULL,
  aggregate_types text[],
  command_types   text[],
  priority        int NOT NULL,
  search_path     text NOT NULL,
  registered_by   text NOT NULL,
  registered_at   timestamptz NOT NULL
);
COMMENT ON TABLE evpg.interceptor IS 'functions that see every command before it is executed';

CREATE TABLE evpg.listener (
  name            text COLLATE "C" PRIMARY KEY,
  listener        text NOT NULL,
  aggregate_types text[],
  event_types     text[],
  priority        int NOT NULL,
  search_path     text NOT NULL,
  registered_by   text NOT NULL,
  registered_at   timestamptz NOT NULL
);
COMMENT ON TABLE evpg.listener IS 'functions that are told of events in the transaction that appends them';

CREATE TABLE evpg.upcaster (
  event_type     text COLLATE "C" NOT NULL,
  from_version   int NOT NULL,
  aggregate_type text COLLATE "C",
  new_event_type text COLLATE "C" NOT NULL,
  to_version     int NOT NULL,
  upcaster       text,
  search_path    text NOT NULL,
  registered_by  text NOT NULL,
  registered_at  timestamptz NOT NULL,
  UNIQUE NULLS NOT DISTINCT (event_type, from_version, aggregate_type)
);
ALTER TABLE evpg.upcaster REPLICA IDENTITY FULL;
COMMENT ON TABLE evpg.upcaster IS
  'functions that bring events of an old schema version up to a later one when they are read';
COMMENT ON COLUMN evpg.upcaster.aggregate_type IS 'NULL: all';
COMMENT ON COLUMN evpg.upcaster.new_event_type IS 'event_type, unless the upcaster renames it';
COMMENT ON COLUMN evpg.upcaster.upcaster IS 'NULL if data stays as it is';

CREATE TABLE evpg.translator (
  name          text COLLATE "C" PRIMARY KEY,
  translator    text NOT NULL,
  search_path   text NOT NULL,
  registered_by text NOT NULL,
  registered_at timestamptz NOT NULL
);
COMMENT ON TABLE evpg.translator IS 'functions that make commands from messages';

CREATE SEQUENCE evpg.projection_build;
COMMENT ON SEQUENCE evpg.projection_build IS
  'source of builds; a build is the set of rows of a projection between two rebuilds';

CREATE TABLE evpg.projection (
  name             text COLLATE "C" PRIMARY KEY,
  reducer          text,
  handler          text,
  library          text,
  symbol           text,
  aggregate_types  text[],
  event_types      text[],
  tags             text[],
  key_path         jsonpath,
  key_function     text,
  constant_key     text,
  initial_state    jsonb NOT NULL,
  tables           text[],
  reset            text,
  mode             text NOT NULL CHECK (mode OPERATOR(pg_catalog.=) ANY ('{inline,async}'::pg_catalog.text[])),
  broadcast        text NOT NULL CHECK (broadcast OPERATOR(pg_catalog.=) ANY ('{none,pointer,delta}'::pg_catalog.text[])),
  event_name       text NOT NULL,
  on_error         text NOT NULL CHECK (on_error OPERATOR(pg_catalog.=) ANY ('{stop,park,skip}'::pg_catalog.text[])),
  max_attempts     int NOT NULL,
  start_position   bigint NOT NULL,
  version          int NOT NULL,
  build            bigint NOT NULL DEFAULT pg_catalog.nextval('evpg.projection_build'::pg_catalog.regclass) UNIQUE,
  generation_base  int NOT NULL DEFAULT 0,
  rebuilt_position bigint NOT NULL DEFAULT 0,
  search_path      text NOT NULL,
  registered_by    text NOT NULL,
  registered_at    timestamptz NOT NULL,
  CHECK ((library IS NULL) OPERATOR(pg_catalog.=) (symbol IS NULL)),
  CHECK (pg_catalog.num_nonnulls(library, reducer, handler) OPERATOR(pg_catalog.<=) 1),
  CHECK (pg_catalog.num_nonnulls(key_function, key_path, constant_key) OPERATOR(pg_catalog.<=) 1)
);
COMMENT ON TABLE evpg.projection IS 'registered projections: functions, a symbol of a shared object, or neither';
COMMENT ON COLUMN evpg.projection.build IS 'the build that is read; a rebuild fills another one beside it';
COMMENT ON COLUMN evpg.projection.generation_base IS
  'number of generations before the last rebuild of all keys, which is added to the generation of a row';
COMMENT ON COLUMN evpg.projection.rebuilt_position IS
  'position drawn by the last rebuild of all keys; no row is shown with a lower one';

-- A deleted key keeps its row, so that (generation, version) never goes back.
CREATE TABLE evpg.projection_state (
  build      bigint NOT NULL,
  version    bigint NOT NULL,
  "position" bigint NOT NULL,
  updated_at timestamptz NOT NULL,
  generation int NOT NULL,
  deleted    boolean NOT NULL,
  key        text COLLATE "C" NOT NULL,
  state      jsonb,
  PRIMARY KEY (build, key)
) WITH (fillfactor = 80);
COMMENT ON TABLE evpg.projection_state IS 'rows of projections; read them through the view evpg.projected_state';
COMMENT ON COLUMN evpg.projection_state.version IS 'number of events applied in this generation';
COMMENT ON COLUMN evpg.projection_state.generation IS 'counted from 1 within a build';
COMMENT ON COLUMN evpg.projection_state.state IS 'NULL if the key is deleted, or the projection writes tables';
-- Few rows have a generation above 1; the index finds the highest one, which the next build has to exceed.
CREATE INDEX projection_state_generation ON evpg.projection_state (build, generation)
  WHERE generation OPERATOR(pg_catalog.>) 1;

CREATE VIEW evpg.projected_state AS
  SELECT p.name, s.key, s.state, p.generation_base OPERATOR(pg_catalog.+) s.generation AS generation, s.version,
         greatest(s."position", p.rebuilt_position) AS "position", s.updated_at
    FROM evpg.projection p JOIN evpg.projection_state s ON s.build OPERATOR(pg_catalog.=) p.build WHERE NOT s.deleted;
COMMENT ON VIEW evpg.projected_state IS 'rows of projections, without deleted keys';

-- A transaction that changes a row holds the advisory lock of the consumer's name (src/consumer/consumer.c).
CREATE TABLE evpg.consumer (
  name           text COLLATE "C" PRIMARY KEY,
  kind           text NOT NULL CHECK (kind OPERATOR(pg_catalog.=) ANY ('{projection,saga,subscription}'::pg_catalog.text[])),
  status         text NOT NULL DEFAULT 'running'
    CHECK (status OPERATOR(pg_catalog.=) ANY ('{running,paused,stopped}'::pg_catalog.text[])),
  checkpoint     bigint NOT NULL,
  start_position bigint NOT NULL,
  events_total   bigint NOT NULL DEFAULT 0,
  errors_total   bigint NOT NULL DEFAULT 0,
  attempts       int NOT NULL DEFAULT 0,
  error_position bigint,
  retry_at       timestamptz,
  last_error     text,
  last_sqlstate  text,
  last_context   text,
  last_error_at  timestamptz,
  created_at     timestamptz NOT NULL DEFAULT evpg.clock_timestamp(),
  updated_at     timestamptz NOT NULL DEFAULT evpg.clock_timestamp(),
  crashes        int NOT NULL DEFAULT 0,
  server_start   bigint NOT NULL DEFAULT 0,
  cautious_to    bigint NOT NULL DEFAULT 0,
  proven         bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
COMMENT ON TABLE evpg.consumer IS 'progress of asynchronous projections and sagas; status of these and of subscriptions';
COMMENT ON COLUMN evpg.consumer.checkpoint IS
  'every event up to this position has been consumed; that of a subscription is in evpg.stat_subscription';
COMMENT ON COLUMN evpg.consumer.start_position IS 'the checkpoint with which it started';
COMMENT ON COLUMN evpg.consumer.error_position IS 'position of the event that fails';
COMMENT ON COLUMN evpg.consumer.server_start IS 'start of the server since which an event has been tried alone';
COMMENT ON COLUMN evpg.consumer.cautious_to IS
  'up to this position it takes few events at a time, since one of them may have crashed the server';
COMMENT ON COLUMN evpg.consumer.proven IS 'number of events since then that did not crash it';
COMMENT ON COLUMN evpg.consumer.crashes IS
  'number of times that the event after the checkpoint was tried alone without an end';
COMMENT ON COLUMN evpg.consumer.attempts IS 'number of times that this event has failed';
COMMENT ON COLUMN evpg.consumer.last_context IS 'context of the last error';

CREATE TABLE evpg.parked_event (
  parked_event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name            text COLLATE "C" NOT NULL,
  key             text COLLATE "C",
  "position"      bigint NOT NULL,
  attempts        int NOT NULL,
  error           text,
  sqlstate        text,
  context         text,
  parked_at       timestamptz NOT NULL DEFAULT evpg.clock_timestamp(),
  skip_reason     text,
  skipped_by      text,
  skipped_at      timestamptz,
  due             boolean NOT NULL DEFAULT false,
  replaying       boolean NOT NULL DEFAULT false
);
CREATE INDEX ON evpg.parked_event (name, "position");
CREATE INDEX parked_event_waiting ON evpg.parked_event (name, "position") WHERE skip_reason IS NULL;
COMMENT ON SEQUENCE evpg.parked_event_parked_event_id_seq IS 'source of ids of parked events';
COMMENT ON TABLE evpg.parked_event IS
  'events that a consumer could not apply, and later events of the same key, which wait behind them';
COMMENT ON COLUMN evpg.parked_event.key IS 'NULL if no key was found in the event';
COMMENT ON COLUMN evpg.parked_event.error IS 'NULL if the event only waits behind another one of its key';
COMMENT ON COLUMN evpg.parked_event.context IS 'context of the error';
COMMENT ON COLUMN evpg.parked_event.skip_reason IS
  'why the event was given up; NULL if it is still to be replayed, empty if it was pruned';
COMMENT ON COLUMN evpg.parked_event.due IS
  'whether evpg_replay_parked() was called for the event of a subscription, which hands it out again';
COMMENT ON COLUMN evpg.parked_event.replaying IS 'whether that has begun';

-- A subscription also has a row in evpg.consumer.
CREATE TABLE evpg.subscription (
  name            text COLLATE "C" PRIMARY KEY,
  aggregate_types text[],
  event_types     text[],
  tags            text[],
  aggregate_ids   text[],
  id_prefix       text,
  partitions      int NOT NULL,
  lease_time      interval NOT NULL,
  max_attempts    int NOT NULL,
  backoff         interval NOT NULL,
  max_backoff     interval NOT NULL,
  created_at      timestamptz NOT NULL DEFAULT evpg.clock_timestamp(),
  notifies        boolean NOT NULL DEFAULT false
);
COMMENT ON COLUMN evpg.subscription.notifies IS 'whether a session has called evpg_listen_subscription()';
COMMENT ON TABLE evpg.subscription IS
  'subscriptions: which events they hand out, and how; NULL filters let all events through';

-- A consumer of a subscription and the partitions that it holds; rows are kept and used again, so that a consumer that
-- comes and goes leaves nothing behind.  The number of a lease ends with the slot.
CREATE TABLE evpg.subscription_lease (
  subscription text COLLATE "C",
  slot         int,
  consumer     text COLLATE "C",
  lease        bigint NOT NULL,
  acked        bigint NOT NULL,
  handed       bigint NOT NULL,
  delivered    bigint NOT NULL DEFAULT 0,
  lease_until  timestamptz NOT NULL,
  replaying    boolean NOT NULL DEFAULT false,
  PRIMARY KEY (subscription, slot)
) WITH (fillfactor = 50);
COMMENT ON TABLE evpg.subscription_lease IS 'consumers of subscriptions; read them through evpg.stat_subscription';
COMMENT ON COLUMN evpg.subscription_lease.consumer IS 'NULL if the slot is free';
COMMENT ON COLUMN evpg.subscription_lease.acked IS
  'events up to here that were handed out are done, in the partitions that it holds';
COMMENT ON COLUMN evpg.subscription_lease.handed IS 'events up to here were handed out';
COMMENT ON COLUMN evpg.subscription_lease.delivered IS 'number of events that were handed out in this slot';
COMMENT ON COLUMN evpg.subscription_lease.replaying IS 'parked events are handed out again, and nothing else';

CREATE TABLE evpg.subscription_partition (
  subscription     text COLLATE "C",
  partition        int,
  slot             int,
  checkpoint       bigint NOT NULL,
  replay_to        bigint,
  cautious_to      bigint NOT NULL DEFAULT 0,
  attempt_position bigint NOT NULL DEFAULT 0,
  attempts         int NOT NULL DEFAULT 0,
  retry_at         timestamptz,
  PRIMARY KEY (subscription, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE evpg.subscription_partition IS 'partitions of subscriptions; read them through evpg.stat_subscription';
COMMENT ON COLUMN evpg.subscription_partition.slot IS 'the lease that holds it; NULL if none does';
COMMENT ON COLUMN evpg.subscription_partition.checkpoint IS
  'its events up to this position are done; those up to the position acked of the lease that holds it are, too';
COMMENT ON COLUMN evpg.subscription_partition.replay_to IS
  'up to this position only parked events are handed out again; NULL if none are';
COMMENT ON COLUMN evpg.subscription_partition.cautious_to IS
  'events up to this position were handed out and not acknowledged, so they are handed out one at a time';
COMMENT ON COLUMN evpg.subscription_partition.attempt_position IS 'the event whose attempts are counted';
COMMENT ON COLUMN evpg.subscription_partition.retry_at IS 'it is not handed out before';

-- Read by workers in each pass; a worker that prunes a table locks its row.
CREATE TABLE evpg.retention (
  what         text COLLATE "C" PRIMARY KEY
    CHECK (what OPERATOR(pg_catalog.=) ANY ('{commands,inbox,sagas,dead_letters,parked_events}'::pg_catalog.text[])),
  retention    interval NOT NULL,
  looked_at    timestamptz NOT NULL DEFAULT '-infinity',
  next_block   bigint NOT NULL DEFAULT 0,
  pruned_total bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
COMMENT ON TABLE evpg.retention IS
  'how long workers keep what is no longer needed, see evpg_set_retention(); without a row, permanently';
COMMENT ON COLUMN evpg.retention.looked_at IS 'when workers last finished looking through the table';
COMMENT ON COLUMN evpg.retention.next_block IS 'block at which the scan in progress continues; 0 if none is in progress';
COMMENT ON COLUMN evpg.retention.pruned_total IS 'number of rows that workers have pruned';

CREATE TABLE evpg.rebuild (
  name           text COLLATE "C" PRIMARY KEY,
  build          bigint NOT NULL,
  status         text NOT NULL DEFAULT 'running'
    CHECK (status OPERATOR(pg_catalog.=) ANY ('{running,failed}'::pg_catalog.text[])),
  parts          int NOT NULL,
  start_position bigint NOT NULL,
  goal           bigint NOT NULL,
  started_by     text NOT NULL,
  started_at     timestamptz NOT NULL DEFAULT evpg.clock_timestamp(),
  attempts       int NOT NULL DEFAULT 0,
  retry_at       timestamptz,
  last_error     text,
  last_error_at  timestamptz,
  crashes        int NOT NULL DEFAULT 0,
  server_start   bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE evpg.rebuild IS 'rebuilds of all keys of a projection that are in progress or have failed';
COMMENT ON COLUMN evpg.rebuild.server_start IS 'start of the server since which its last step has been tried';
COMMENT ON COLUMN evpg.rebuild.crashes IS 'number of consecutive crashes of the server during its last step';
COMMENT ON COLUMN evpg.rebuild.goal IS 'the last position when the rebuild started';

CREATE TABLE evpg.rebuild_part (
  build        bigint NOT NULL,
  part         int NOT NULL,
  checkpoint   bigint NOT NULL,
  events       bigint NOT NULL DEFAULT 0,
  crashes      int NOT NULL DEFAULT 0,
  server_start bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (build, part)
) WITH (fillfactor = 50);
COMMENT ON TABLE evpg.rebuild_part IS
  'progress of the parts of rebuilds; a part has the keys of its own streams, or of its own hash values';
COMMENT ON COLUMN evpg.rebuild_part.server_start IS 'start of the server since which it has been worked on';
COMMENT ON COLUMN evpg.rebuild_part.crashes IS
  'number of consecutive crashes of the server without any progress of the part';

CREATE TABLE evpg.old_build (
  build      bigint PRIMARY KEY,
  name       text COLLATE "C" NOT NULL,
  replaced   boolean NOT NULL DEFAULT false,
  clean_from text COLLATE "C" NOT NULL DEFAULT ''
);
COMMENT ON TABLE evpg.old_build IS 'builds that are not read (any more), whose rows are deleted gradually';
COMMENT ON COLUMN evpg.old_build.replaced IS 'whether its rows were read before';
COMMENT ON COLUMN evpg.old_build.clean_from IS 'keys less than this one are deleted already';
-- No unique constraint: a restored dump adds the row of its database to the one that is inserted here
-- (src/consumer/activation.c).
CREATE TABLE evpg.activation (
  system_identifier bigint NOT NULL,
  database          oid NOT NULL
);
ALTER TABLE evpg.activation REPLICA IDENTITY FULL;
COMMENT ON TABLE evpg.activation IS
  'the database that its contents belong to; consumers run only if every row names this one; zeros for work that was '
  'inserted by others than evpg, as by a restore';
INSERT INTO evpg.activation (system_identifier, database)
  SELECT s.system_identifier, d.oid FROM pg_catalog.pg_control_system() s, pg_catalog.pg_database d
   WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database();

-- One row for each version: an instance keeps the version it began with.
CREATE TABLE evpg.saga (
  name              text COLLATE "C",
  version           int,
  handler           text,
  rejection_handler text,
  timer_handler     text,
  library           text,
  symbol            text,
  aggregate_types   text[],
  event_types       text[],
  start_event_types text[],
  key_path          jsonpath,
  key_function      text,
  initial_state     jsonb NOT NULL,
  transitions       jsonb,
  max_attempts      int NOT NULL,
  backoff           interval NOT NULL,
  max_backoff       interval NOT NULL,
  search_path       text NOT NULL,
  registered_by     text NOT NULL,
  registered_at     timestamptz NOT NULL DEFAULT evpg.clock_timestamp(),
  mode              text NOT NULL DEFAULT 'async'
    CHECK (mode OPERATOR(pg_catalog.=) ANY ('{async,inline}'::pg_catalog.text[])),
  PRIMARY KEY (name, version),
  CHECK ((library IS NULL) OPERATOR(pg_catalog.=) (symbol IS NULL)),
  CHECK (pg_catalog.num_nonnulls(library, handler) OPERATOR(pg_catalog.=) 1),
  CHECK (pg_catalog.num_nonnulls(key_function, key_path) OPERATOR(pg_catalog.<=) 1)
);
COMMENT ON TABLE evpg.saga IS 'registered sagas: functions, or a symbol of a shared object; one row for each version';
COMMENT ON COLUMN evpg.saga.mode IS 'that of the highest version counts';

-- src/saga/instance.c writes rows without statements; a CHECK would cost each of them.
CREATE TABLE evpg.saga_instance (
  saga         text COLLATE "C" NOT NULL,
  key          text COLLATE "C" NOT NULL,
  saga_version int NOT NULL,
  status       text NOT NULL,
  state        jsonb NOT NULL,
  version      bigint NOT NULL,
  "position"   bigint NOT NULL,
  undo         jsonb NOT NULL DEFAULT '[]',
  started_at   timestamptz NOT NULL,
  updated_at   timestamptz NOT NULL,
  PRIMARY KEY (saga, key)
) WITH (fillfactor = 80);
COMMENT ON TABLE evpg.saga_instance IS
  'state of sagas by correlation key; completed instances stay, so that late events do not start them again';
COMMENT ON COLUMN evpg.saga_instance.status IS 'running or completed';
COMMENT ON COLUMN evpg.saga_instance.saga_version IS '0 if evpg_prune_sagas() has emptied the instance';
COMMENT ON COLUMN evpg.saga_instance.version IS 'number of events and timers that it has reacted to';
COMMENT ON COLUMN evpg.saga_instance.undo IS 'commands that undo what was sent, the last one first';

CREATE TABLE evpg.saga_event (
  saga           text COLLATE "C" NOT NULL,
  key            text COLLATE "C" NOT NULL,
  "position"     bigint NOT NULL,
  attempts       int NOT NULL DEFAULT 0,
  retry_at       timestamptz,
  dead_letter_id bigint,
  cancels        int,
  PRIMARY KEY (saga, key, "position")
);
CREATE INDEX ON evpg.saga_event ("position");
CREATE INDEX ON evpg.saga_event (retry_at) WHERE retry_at IS NOT NULL;
COMMENT ON TABLE evpg.saga_event IS 'events that instances of sagas have not reacted to yet';
COMMENT ON COLUMN evpg.saga_event.dead_letter_id IS 'the dead letter that the instance waits for';
COMMENT ON COLUMN evpg.saga_event.cancels IS 'how often in a row the worker was cancelled in it, not by evpg';

-- Each reaction adds to a part to which no other transaction adds, so that instances do not wait for each other: there
-- are at most as many rows as transactions needed at the same time.
CREATE TABLE evpg.saga_total (
  saga          text COLLATE "C",
  part          uuid DEFAULT pg_catalog.gen_random_uuid(),
  dispatched    bigint NOT NULL,
  dead_lettered bigint NOT NULL,
  PRIMARY KEY (saga, part)
) WITH (fillfactor = 50);
COMMENT ON TABLE evpg.saga_total IS
  'totals of sagas since their registration, in parts that add up; read them through evpg.stat_consumer';
COMMENT ON COLUMN evpg.saga_total.dispatched IS 'number of commands that were sent, and neither refused nor rolled back';
COMMENT ON COLUMN evpg.saga_total.dead_lettered IS 'number of dead letters that were written';

CREATE TABLE evpg.timer (
  timer_id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  saga           text COLLATE "C",
  key            text COLLATE "C",
  name           text COLLATE "C",
  payload        jsonb,
  command        jsonb,
  due_at         timestamptz NOT NULL,
  scheduled_at   timestamptz NOT NULL,
  attempts       int NOT NULL DEFAULT 0,
  retry_at       timestamptz,
  dead_letter_id bigint,
  depth          int NOT NULL DEFAULT 0,
  correlation_id text,
  causation_id   text,
  session_role   text NOT NULL,
  cancels        int,
  UNIQUE (saga, key, name)
);
CREATE INDEX ON evpg.timer (due_at);
CREATE INDEX ON evpg.timer (retry_at) WHERE retry_at IS NOT NULL;
COMMENT ON SEQUENCE evpg.timer_timer_id_seq IS 'source of ids of timers';
COMMENT ON TABLE evpg.timer IS 'pending timers of sagas, and pending commands of evpg_schedule_command()';
COMMENT ON COLUMN evpg.timer.cancels IS 'how often in a row the worker was cancelled in it, not by evpg';

CREATE TABLE evpg.dead_letter (
  dead_letter_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  saga            text COLLATE "C",
  key             text COLLATE "C",
  source_position bigint,
  timer_id        bigint,
  label           text,
  command         jsonb,
  attempts        int NOT NULL,
  sqlstate        text NOT NULL,
  code            text,
  message         text NOT NULL,
  detail          text,
  hint            text,
  context         text,
  created_at      timestamptz NOT NULL DEFAULT evpg.clock_timestamp(),
  resolved_at     timestamptz,
  resolution      text CHECK (resolution OPERATOR(pg_catalog.=) ANY ('{retried,discarded}'::pg_catalog.text[])),
  reason          text,
  resolved_by     text
);
CREATE INDEX ON evpg.dead_letter (saga, key) WHERE resolved_at IS NULL;
COMMENT ON SEQUENCE evpg.dead_letter_dead_letter_id_seq IS 'source of ids of dead letters';
COMMENT ON COLUMN evpg.dead_letter.context IS 'context of the error';
COMMENT ON TABLE evpg.dead_letter IS
  'reactions of sagas and scheduled commands that failed, with the command in question; later events of the instance wait';

CREATE TABLE evpg.optional_index (
  index_name text PRIMARY KEY,
  enabled_at timestamptz NOT NULL DEFAULT evpg.clock_timestamp()
);
COMMENT ON TABLE evpg.optional_index IS
  'optional indexes of the event log that evpg_enable_index() has created; a restored database has them only after it is '
  'called again';

-- A view, because ANALYZE and VACUUM of a whole database lock every table; locks on a view work the same.
CREATE VIEW evpg.fence AS SELECT 1 AS nothing;
COMMENT ON VIEW evpg.fence IS
  'object to lock, not to read: an appending transaction locks it before it draws its first position, until it ends';

-- An appender's lock carries the last position drawn before it (src/log/fence.c).  A standby has no locks of appenders:
-- its stable position is the one that was written into WAL.
CREATE VIEW evpg.stat_stable_position AS
  WITH drawn AS MATERIALIZED (
    SELECT CASE WHEN p.is_called THEN p.last_value ELSE p.last_value OPERATOR(pg_catalog.-) 1 END AS last_position,
           CASE WHEN l.is_called THEN l.last_value ELSE l.last_value OPERATOR(pg_catalog.-) 1 END AS logged_position
      FROM evpg.event_position p CROSS JOIN evpg.logged_position l),
  held AS MATERIALIZED (SELECT * FROM pg_catalog.pg_locks WHERE granted),
  appender AS (
    SELECT h.pid, h.virtualtransaction,
           (h.classid::pg_catalog.int8 OPERATOR(pg_catalog.<<) 32)
             OPERATOR(pg_catalog.|) h.objid::pg_catalog.int8 AS drawn_before
      FROM held h
     WHERE h.locktype OPERATOR(pg_catalog.=) 'advisory' AND h.objsubid OPERATOR(pg_catalog.=) 17751
       AND h.database OPERATOR(pg_catalog.=) (
             SELECT oid FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database())),
  prepared AS (
    SELECT h.virtualtransaction, p.gid, p.prepared
      FROM pg_catalog.pg_prepared_xacts p
           JOIN held h ON h.pid IS NULL AND h.transactionid OPERATOR(pg_catalog.=) p.transaction)
  SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN least(d.last_position, d.logged_position)
              ELSE least(d.last_position, pg_catalog.min(a.drawn_before) OVER ()) END AS stable_position,
         d.last_position, a.pid AS blocker_pid, p.gid AS blocker_gid,
         coalesce(s.xact_start, p.prepared) AS blocker_xact_start,
         CASE WHEN p.gid IS NOT NULL THEN 'prepared' ELSE s.state END AS blocker_state, s.query AS blocker_query,
         d.logged_position
    FROM drawn d
    LEFT JOIN appender a ON a.drawn_before OPERATOR(pg_catalog.<) d.last_position
    LEFT JOIN pg_catalog.pg_stat_activity s ON s.pid OPERATOR(pg_catalog.=) a.pid
    LEFT JOIN prepared p ON a.pid IS NULL AND p.virtualtransaction OPERATOR(pg_catalog.=) a.virtualtransaction;
COMMENT ON VIEW evpg.stat_stable_position IS
  'shows up to which position readers may read, the last position drawn, and which transactions hold readers back';

SELECT pg_catalog.pg_extension_config_dump('evpg.aggregate_type', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.stream', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.stream_stream_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.event_position', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.event_log', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.command_record', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.snapshot', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.interceptor', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.listener', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.upcaster', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.projection', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.projection_build', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.projection_state', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.consumer', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.parked_event', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.parked_event_parked_event_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.subscription', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.subscription_lease', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.subscription_partition', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.retention', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.rebuild', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.rebuild_part', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.old_build', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.saga', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.saga_instance', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.saga_event', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.saga_total', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.timer', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.timer_timer_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.dead_letter', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.dead_letter_dead_letter_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.activation', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.optional_index', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.inbox', '');
SELECT pg_catalog.pg_extension_config_dump('evpg.translator', '');

-- ENABLE ALWAYS: session_replication_role does not switch it off.  It costs an INSERT nothing.
CREATE FUNCTION evpg.refuse_change() RETURNS trigger
  AS 'MODULE_PATHNAME', 'evpg_refuse_change' LANGUAGE C;
COMMENT ON FUNCTION evpg.refuse_change() IS 'trigger function: refuses to change history, which is append-only';
CREATE TRIGGER evpg_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON evpg.event_log
  FOR EACH STATEMENT EXECUTE FUNCTION evpg.refuse_change();
ALTER TABLE evpg.event_log ENABLE ALWAYS TRIGGER evpg_append_only;
CREATE TRIGGER evpg_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON evpg.stream
  FOR EACH STATEMENT EXECUTE FUNCTION evpg.refuse_change();
ALTER TABLE evpg.stream ENABLE ALWAYS TRIGGER evpg_append_only;

-- The triggers are created at the end of this script, for all tables.
CREATE FUNCTION evpg.refuse_writer() RETURNS trigger
  AS 'MODULE_PATHNAME', 'evpg_refuse_writer' LANGUAGE C;
COMMENT ON FUNCTION evpg.refuse_writer() IS
  'trigger function: refuses rows that are written by neither evpg nor a superuser';

-- ------------------------------------------------------------------ types

CREATE TYPE evpg.new_event AS (
  type text, data jsonb, metadata jsonb, tags text[], schema_version int,
  occurred_at timestamptz, event_id uuid, caused_by int);
COMMENT ON TYPE evpg.new_event IS 'an event to append; evpg_event() makes it';

CREATE TYPE evpg.stream_append AS (aggregate_type text, aggregate_id text, events evpg.new_event[], expected_version bigint);
COMMENT ON TYPE evpg.stream_append IS
  'events to append to a stream, and the version that it must have; evpg_stream_append() makes it';

CREATE TYPE evpg.stream_info AS (
  aggregate_type text, aggregate_id text, version bigint, created_at timestamptz);
COMMENT ON TYPE evpg.stream_info IS 'a stream as evpg_streams() returns it';

CREATE TYPE evpg.command AS (
  aggregate_type text, aggregate_id text, command_type text, data jsonb, expected_version bigint,
  command_id text, metadata jsonb, actor text, correlation_id text, causation_id text,
  version bigint, received_at timestamptz, session_role text);
COMMENT ON TYPE evpg.command IS 'a command; version, received_at and session_role are filled in for the handler';

CREATE TYPE evpg.outcome AS (
  status text, aggregate_type text, aggregate_id text, version bigint, last_position bigint,
  events jsonb, sqlstate text, code text, message text, detail jsonb, hint text);
COMMENT ON TYPE evpg.outcome IS
  'outcome of a command: status is ok, noop, duplicate, rejected, conflict, invariant or intercepted; of evpg_execute_many '
  'also skipped, and after the retry of a dead letter also failed';

CREATE TYPE evpg.projected AS (state jsonb, delta jsonb);
COMMENT ON TYPE evpg.projected IS
  'result of a projection reducer: the new state, NULL to delete the row; and the delta for listeners, NULL for none';

CREATE TYPE evpg.reaction AS (state jsonb, actions jsonb);
COMMENT ON TYPE evpg.reaction IS 'result of a saga''s handler; evpg_reaction() makes it';

CREATE TYPE evpg.rejection AS (
  saga text, key text, label text, aggregate_type text, aggregate_id text, command_type text, data jsonb,
  sqlstate text, code text, message text, detail jsonb, attempts int, source_position bigint);
COMMENT ON TYPE evpg.rejection IS
  'a command that a saga sent and that was refused; attempts counts from 1, source_position is NULL if the saga reacted to '
  'a timer';

CREATE TYPE evpg.fired_timer AS (
  saga text, key text, timer text, payload jsonb, scheduled_at timestamptz, due_at timestamptz, fired_at timestamptz);
COMMENT ON TYPE evpg.fired_timer IS 'a timer of a saga that is due';

-- ------------------------------------------------------------------ constructors

CREATE TYPE evpg.delivery AS (
  lease bigint, partition int, attempt int,
  "position" bigint, aggregate_type text, aggregate_id text, version bigint, event_id uuid, type text,
  schema_version int, data jsonb, metadata jsonb, tags text[], command_id text, correlation_id text, causation_id text,
  actor text, occurred_at timestamptz, recorded_at timestamptz, session_role text
);
COMMENT ON TYPE evpg.delivery IS 'an event that a subscription hands out, and the lease under which it does';

CREATE FUNCTION evpg_event(type text, data jsonb DEFAULT '{}', metadata jsonb DEFAULT NULL, tags text[] DEFAULT NULL,
    schema_version int DEFAULT 1, occurred_at timestamptz DEFAULT NULL, event_id uuid DEFAULT NULL,
    caused_by int DEFAULT NULL)
  RETURNS evpg.new_event AS 'MODULE_PATHNAME' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION evpg_event(text, jsonb, jsonb, text[], int, timestamptz, uuid, int) IS
  'returns an event to append; caused_by is the number, from 1, of an earlier event of the same call';

CREATE FUNCTION evpg_events(events jsonb)
  RETURNS evpg.new_event[] AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION evpg_events(jsonb) IS
  'returns events made from a JSON object or an array of objects; an unknown key is an error';

CREATE FUNCTION evpg_stream_append(aggregate_type text, aggregate_id text, events evpg.new_event[] DEFAULT NULL,
    expected_version bigint DEFAULT NULL)
  RETURNS evpg.stream_append AS 'MODULE_PATHNAME' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION evpg_stream_append(text, text, evpg.new_event[], bigint) IS
  'returns what evpg_append_many() appends to one stream; without events it only checks the version of the stream';

CREATE FUNCTION evpg_stream_appends(appends jsonb)
  RETURNS evpg.stream_append[] AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION evpg_stream_appends(jsonb) IS
  'returns what evpg_append_many() appends, made from a JSON object or an array of objects; an unknown key is an error';

CREATE FUNCTION evpg_command(aggregate_type text, aggregate_id text, command_type text, data jsonb DEFAULT '{}',
    expected_version bigint DEFAULT NULL, command_id text DEFAULT NULL, metadata jsonb DEFAULT NULL, actor text DEFAULT NULL,
    correlation_id text DEFAULT NULL, causation_id text DEFAULT NULL)
  RETURNS evpg.command AS 'MODULE_PATHNAME' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION evpg_command(text, text, text, jsonb, bigint, text, jsonb, text, text, text) IS 'returns a command';

CREATE FUNCTION evpg_commands(commands jsonb)
  RETURNS evpg.command[] AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION evpg_commands(jsonb) IS
  'returns commands made from a JSON object or an array of objects; an unknown key is an error';

-- VOLATILE, so that it is never evaluated while planning; typed, so that it fits into CASE.
CREATE FUNCTION evpg_reject(code text, message text DEFAULT NULL, detail jsonb DEFAULT NULL)
  RETURNS evpg.new_event AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION evpg_reject(text, text, jsonb) IS 'refuses the command: raises VE002 with the code as constraint name';

CREATE FUNCTION evpg_projected(state jsonb, delta jsonb) RETURNS evpg.projected
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ROW(state, delta)::evpg.projected;
COMMENT ON FUNCTION evpg_projected(jsonb, jsonb) IS
  'returns the result of a projection reducer: the new state and the delta for listeners';

CREATE FUNCTION evpg_reaction(state jsonb, VARIADIC actions jsonb[] DEFAULT '{}')
  RETURNS evpg.reaction AS 'MODULE_PATHNAME' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION evpg_reaction(jsonb, VARIADIC jsonb[]) IS
  'returns the result of a saga''s handler: the new state, and actions, which are done in this order; NULL actions are '
  'left out';

CREATE FUNCTION evpg_action_send(aggregate_type text, aggregate_id text, command_type text, data jsonb DEFAULT '{}',
    label text DEFAULT NULL, undo jsonb DEFAULT NULL, expected_version bigint DEFAULT NULL, metadata jsonb DEFAULT NULL)
  RETURNS jsonb AS 'MODULE_PATHNAME' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION evpg_action_send(text, text, text, jsonb, text, jsonb, bigint, jsonb) IS
  'returns an action of a saga: sends a command; if it succeeds, undo is the command that evpg_action_compensate() sends';

CREATE FUNCTION evpg_action_schedule(timer text, delay interval DEFAULT NULL, due_at timestamptz DEFAULT NULL,
    payload jsonb DEFAULT NULL)
  RETURNS jsonb AS 'MODULE_PATHNAME' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION evpg_action_schedule(text, interval, timestamptz, jsonb) IS
  'returns an action of a saga: fires a timer after a delay (days have 24 hours, months 30 days) or at a time, and '
  'replaces a pending one of that name';

CREATE FUNCTION evpg_action_cancel(timer text)
  RETURNS jsonb AS 'MODULE_PATHNAME' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION evpg_action_cancel(text) IS 'returns an action of a saga: removes a pending timer, if there is one';

CREATE FUNCTION evpg_action_compensate(reason text DEFAULT NULL) RETURNS jsonb
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_object(ARRAY['do', 'compensate', 'reason', reason]));
COMMENT ON FUNCTION evpg_action_compensate(text) IS
  'returns an action of a saga: sends the undo commands, last first, and completes the instance';

CREATE FUNCTION evpg_action_complete() RETURNS jsonb
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '{"do": "complete"}'::pg_catalog.jsonb;
COMMENT ON FUNCTION evpg_action_complete() IS
  'returns an action of a saga: completes the instance; its timers are removed, later actions and events ignored';

CREATE FUNCTION evpg_action_fail(reason text)
  RETURNS jsonb AS 'MODULE_PATHNAME' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION evpg_action_fail(text) IS
  'returns an action of a saga: makes this reaction a dead letter at once; nothing of it takes effect';

-- ------------------------------------------------------------------ aggregates

CREATE FUNCTION evpg_register_aggregate(aggregate_type text, handler regproc DEFAULT NULL, reducer regproc DEFAULT NULL,
    invariant regproc DEFAULT NULL, library text DEFAULT NULL, symbol text DEFAULT NULL, initial_state jsonb DEFAULT '{}',
    snapshot_every int DEFAULT 100, snapshot_keep int DEFAULT 1, reducer_version int DEFAULT 1,
    broadcast text DEFAULT 'none', boundary regproc DEFAULT NULL)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_register_aggregate(text, regproc, regproc, regproc, text, text, jsonb, int, int, int, text,
    regproc) IS
  'registers an aggregate: functions, a symbol of a shared object, or neither if its type only stores events; returns true '
  'if something changed';

CREATE FUNCTION evpg_drop_aggregate(aggregate_type text, missing_ok boolean DEFAULT false)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION evpg_drop_aggregate(text, boolean) IS
  'removes the registration of an aggregate, whose events stay; returns false if there was none';

CREATE FUNCTION evpg_register_interceptor(name text, interceptor regproc, aggregate_types text[] DEFAULT NULL,
    command_types text[] DEFAULT NULL, priority int DEFAULT 0)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_register_interceptor(text, regproc, text[], text[], int) IS
  'registers a function evpg.command -> evpg.command that is called before each command, lowest priority first; returns '
  'true if something changed';

CREATE FUNCTION evpg_drop_interceptor(name text, missing_ok boolean DEFAULT false)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION evpg_drop_interceptor(text, boolean) IS 'removes an interceptor; returns false if there was none';

CREATE FUNCTION evpg_register_listener(name text, listener regproc, aggregate_types text[] DEFAULT NULL,
    event_types text[] DEFAULT NULL, priority int DEFAULT 0)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_register_listener(text, regproc, text[], text[], int) IS
  'registers a function evpg.event -> void that is called for each event in the transaction that appends it, lowest '
  'priority first; returns true if something changed';

CREATE FUNCTION evpg_drop_listener(name text, missing_ok boolean DEFAULT false)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION evpg_drop_listener(text, boolean) IS 'removes a listener; returns false if there was none';

CREATE FUNCTION evpg_register_upcaster(event_type text, from_version int, upcaster regproc DEFAULT NULL,
    to_version int DEFAULT NULL, new_event_type text DEFAULT NULL, aggregate_type text DEFAULT NULL)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_register_upcaster(text, int, regproc, int, text, text) IS
  'registers a function jsonb -> jsonb that brings the data of events of a schema version up to a later one, or to another '
  'type, whenever they are read; returns true if something changed';

CREATE FUNCTION evpg_drop_upcaster(event_type text, from_version int, aggregate_type text DEFAULT NULL,
    missing_ok boolean DEFAULT false)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_drop_upcaster(text, int, text, boolean) IS
  'removes an upcaster; returns false if there was none';

CREATE FUNCTION evpg_check_upcasters(all_events boolean DEFAULT false)
  RETURNS TABLE (aggregate_type text, event_type text, schema_version int, new_event_type text, new_schema_version int,
    events bigint, failed bigint, "position" bigint, sqlstate text, error text)
  AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_check_upcasters(boolean) IS
  'returns each version of an event type in the log, what it is read as, and the first error of its upcasters, which are '
  'tried on the first event of each version, or on all events; reads the whole log';

CREATE FUNCTION evpg_set_context(actor text DEFAULT NULL, correlation_id text DEFAULT NULL, metadata jsonb DEFAULT NULL)
  RETURNS void AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_set_context(text, text, jsonb) IS
  'sets actor, correlation_id and metadata of the commands that follow in this transaction';

CREATE FUNCTION evpg_execute(aggregate_type text, aggregate_id text, command_type text, data jsonb DEFAULT '{}',
    expected_version bigint DEFAULT NULL, command_id text DEFAULT NULL, metadata jsonb DEFAULT NULL, actor text DEFAULT NULL,
    correlation_id text DEFAULT NULL, causation_id text DEFAULT NULL)
  RETURNS SETOF evpg.event AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE ROWS 2;
COMMENT ON FUNCTION evpg_execute(text, text, text, jsonb, bigint, text, jsonb, text, text, text) IS
  'executes a command and returns the appended events; raises an error if it is refused';

CREATE FUNCTION evpg_try_execute(aggregate_type text, aggregate_id text, command_type text, data jsonb DEFAULT '{}',
    expected_version bigint DEFAULT NULL, command_id text DEFAULT NULL, metadata jsonb DEFAULT NULL, actor text DEFAULT NULL,
    correlation_id text DEFAULT NULL, causation_id text DEFAULT NULL)
  RETURNS SETOF evpg.outcome AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE ROWS 1;
COMMENT ON FUNCTION evpg_try_execute(text, text, text, jsonb, bigint, text, jsonb, text, text, text) IS
  'executes a command and returns its outcome, also if it is refused';

CREATE FUNCTION evpg_execute_many(commands evpg.command[], atomic boolean DEFAULT true, caused_by int[] DEFAULT NULL)
  RETURNS SETOF evpg.outcome AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION evpg_execute_many(evpg.command[], boolean, int[]) IS
  'executes commands on several streams, all or nothing or each alone, and returns their outcomes; caused_by has for each '
  'the number, from 1, of an earlier one whose last event is its cause';

-- As a JSON array, ('ab', 'c') and ('a', 'bc') differ.
CREATE FUNCTION evpg_operation_key(domain text, VARIADIC components text[]) RETURNS text
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(
    pg_catalog.to_json(pg_catalog.array_prepend(domain, components))::pg_catalog.text, 'UTF8')), 'hex');
COMMENT ON FUNCTION evpg_operation_key(text, VARIADIC text[]) IS
  'returns a command_id derived from what an operation is about: equal parts give equal ids';

CREATE FUNCTION evpg_condition(event_types text[] DEFAULT NULL, tags text[] DEFAULT NULL, after_position bigint DEFAULT 0,
    aggregate_types text[] DEFAULT NULL) RETURNS jsonb
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_build_array(pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
  'aggregate_types', pg_catalog.to_jsonb(aggregate_types), 'event_types', pg_catalog.to_jsonb(event_types),
  'tags', pg_catalog.to_jsonb(tags), 'after_position', after_position)));
COMMENT ON FUNCTION evpg_condition(text[], text[], bigint, text[]) IS
  'returns a condition: which events of all streams are meant, those with all of the tags and one of the types after a '
  'position, to read them or to append only if none exists; conditions are joined by ||';

CREATE FUNCTION evpg_condition_after(condition jsonb, after_position bigint) RETURNS jsonb
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
-- what is not a condition does not become one, and never NULL, which would be none
RETURN (SELECT coalesce(pg_catalog.jsonb_agg(i.item OPERATOR(pg_catalog.||)
                  pg_catalog.jsonb_build_object('after_position', after_position) ORDER BY i.number), '[]')
          FROM pg_catalog.jsonb_array_elements(CASE WHEN pg_catalog.jsonb_typeof(condition) OPERATOR(pg_catalog.=) 'array'
                 THEN condition ELSE pg_catalog.jsonb_build_array(condition) END) WITH ORDINALITY AS i (item, number));
COMMENT ON FUNCTION evpg_condition_after(jsonb, bigint) IS
  'returns the same condition with another position, after which its events are: that of an append, from that by which '
  'events were read';

CREATE FUNCTION evpg_condition_position(condition jsonb)
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_condition_position(jsonb) IS
  'returns a position at or below which no further event that matches the condition can appear; read the events after '
  'it was called, and append under a condition after it';

CREATE FUNCTION evpg_append(aggregate_type text, aggregate_id text, events evpg.new_event[],
    expected_version bigint DEFAULT NULL, command_id text DEFAULT NULL, metadata jsonb DEFAULT NULL, actor text DEFAULT NULL,
    correlation_id text DEFAULT NULL, causation_id text DEFAULT NULL, condition jsonb DEFAULT NULL)
  RETURNS SETOF evpg.event AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE ROWS 5;
COMMENT ON FUNCTION evpg_append(text, text, evpg.new_event[], bigint, text, jsonb, text, text, text, jsonb) IS
  'appends events that the caller has decided, without handler and invariant, and returns them';

CREATE FUNCTION evpg_append_event(aggregate_type text, aggregate_id text, event_type text, data jsonb DEFAULT '{}',
    expected_version bigint DEFAULT NULL, command_id text DEFAULT NULL, metadata jsonb DEFAULT NULL, actor text DEFAULT NULL,
    correlation_id text DEFAULT NULL, causation_id text DEFAULT NULL, tags text[] DEFAULT NULL, schema_version int DEFAULT 1,
    occurred_at timestamptz DEFAULT NULL, event_id uuid DEFAULT NULL, condition jsonb DEFAULT NULL,
    OUT version bigint, OUT "position" bigint)
  AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_append_event(text, text, text, jsonb, bigint, text, jsonb, text, text, text, text[], int,
    timestamptz, uuid, jsonb) IS
  'appends one event, as evpg_append does, and returns its place; not as (…).*, which appends one for each column';

CREATE FUNCTION evpg_append_many(appends evpg.stream_append[], condition jsonb DEFAULT NULL, command_id text DEFAULT NULL,
    metadata jsonb DEFAULT NULL, actor text DEFAULT NULL, correlation_id text DEFAULT NULL, causation_id text DEFAULT NULL)
  RETURNS SETOF evpg.event AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION evpg_append_many(evpg.stream_append[], jsonb, text, jsonb, text, text, text) IS
  'appends events to several streams, all or nothing and under one condition, and returns them in the order of positions';

CREATE FUNCTION evpg_inject(aggregate_type text, aggregate_id text, event evpg.new_event, run_sagas boolean DEFAULT false,
    actor text DEFAULT NULL, correlation_id text DEFAULT NULL, causation_id text DEFAULT NULL)
  RETURNS SETOF evpg.event AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE ROWS 1;
COMMENT ON FUNCTION evpg_inject(text, text, evpg.new_event, boolean, text, text, text) IS
  'appends one event as it is, and returns it; no row if its event_id exists in any stream; sagas react to it only if '
  'run_sagas';

CREATE FUNCTION evpg_create_stream(aggregate_type text, aggregate_id text)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION evpg_create_stream(text, text) IS 'creates an empty stream; returns false if it existed';

-- ------------------------------------------------------------------ reading

CREATE FUNCTION evpg_streams(aggregate_type text DEFAULT NULL, after_id text DEFAULT NULL, max_count int DEFAULT 1000,
    after_type text DEFAULT NULL)
  RETURNS SETOF evpg.stream_info AS 'MODULE_PATHNAME' LANGUAGE C STABLE;
COMMENT ON FUNCTION evpg_streams(text, text, int, text) IS
  'returns streams by type and id in byte order; max_count NULL returns all';

CREATE FUNCTION evpg_stream_version(aggregate_type text, aggregate_id text)
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION evpg_stream_version(text, text) IS
  'returns the number of events in a stream, NULL if it was never created';

CREATE FUNCTION evpg_read_stream(aggregate_type text, aggregate_id text, from_version bigint DEFAULT 1,
    max_count int DEFAULT NULL, backwards boolean DEFAULT false, missing_ok boolean DEFAULT false)
  RETURNS SETOF evpg.event AS 'MODULE_PATHNAME' LANGUAGE C STABLE;
COMMENT ON FUNCTION evpg_read_stream(text, text, bigint, int, boolean, boolean) IS
  'returns the events of a stream whose version is at least from_version, oldest first, or newest first if backwards';

CREATE FUNCTION evpg_read_all(after_position bigint DEFAULT 0, max_count int DEFAULT 1000,
    aggregate_types text[] DEFAULT NULL,
    event_types text[] DEFAULT NULL, tags text[] DEFAULT NULL, stable_only boolean DEFAULT true, id_prefix text DEFAULT NULL,
    condition jsonb DEFAULT NULL)
  RETURNS SETOF evpg.event AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_read_all(bigint, int, text[], text[], text[], boolean, text, jsonb) IS
  'returns events in the order of positions; stable_only ends at evpg_stable_position(), so that paging never skips one; '
  'tags means any of them; id_prefix takes this aggregate id, and those that continue it after a colon; condition takes the '
  'events that match it';

CREATE FUNCTION evpg_stable_position()
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_stable_position() IS 'returns a position at or below which no further event can appear';

CREATE FUNCTION evpg_log_stable_position()
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_log_stable_position() IS
  'writes the stable position into WAL, as workers do, for standbys and logical slots; returns it';

CREATE FUNCTION evpg_state(aggregate_type text, aggregate_id text, at_version bigint DEFAULT NULL,
    at_time timestamptz DEFAULT NULL)
  RETURNS TABLE (version bigint, state jsonb, last_position bigint) AS 'MODULE_PATHNAME' LANGUAGE C STABLE ROWS 1;
COMMENT ON FUNCTION evpg_state(text, text, bigint, timestamptz) IS
  'returns the state of an aggregate: now, at a version, or of the events that had occurred by a time; no row if it was '
  'never created';

CREATE FUNCTION evpg_boundary_state(aggregate_type text, aggregate_id text, command_type text, data jsonb DEFAULT '{}')
  RETURNS TABLE (events bigint, state jsonb, last_position bigint) AS 'MODULE_PATHNAME' LANGUAGE C STABLE ROWS 1;
COMMENT ON FUNCTION evpg_boundary_state(text, text, text, jsonb) IS
  'returns the state on which a command of an aggregate with a boundary would be decided, and how many events it is '
  'folded of';

CREATE FUNCTION evpg_take_snapshot(aggregate_type text, aggregate_id text)
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION evpg_take_snapshot(text, text) IS 'stores the state of an aggregate and returns its version';

CREATE FUNCTION evpg_enable_index(index_name text, enabled boolean DEFAULT true) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
  definition text := CASE index_name
    WHEN 'event_type' THEN '(type, "position")'
    -- as the view has it
    WHEN 'correlation' THEN '((coalesce(correlation_id, event_id::text)))'
    WHEN 'recorded_at' THEN '(recorded_at)'
    -- no entries for events without tags; new ones go to their places at once, for a list of them would be read by each look
    WHEN 'tags' THEN 'USING gin (tags) WITH (fastupdate = off) WHERE tags IS NOT NULL' END;
  existed boolean := to_regclass('evpg.event_log_' || index_name) IS NOT NULL;
BEGIN
  PERFORM evpg.refuse_null(index_name, 'index_name'), evpg.refuse_null(enabled::text, 'enabled');
  IF definition IS NULL THEN
    RAISE EXCEPTION 'there is no optional index "%"', index_name
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Use event_type, correlation, recorded_at or tags.';
  END IF;
  IF enabled THEN
    -- left by a CREATE INDEX CONCURRENTLY that has failed, or still being made by one: dropping it here would wait for that
    IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('evpg.event_log_' || index_name) AND NOT indisvalid) THEN
      RAISE EXCEPTION 'index "evpg.event_log_%" is not valid', index_name
        USING ERRCODE = 'object_not_in_prerequisite_state',
          DETAIL = 'It is being created concurrently, or that has failed.',
          HINT = format('If pg_stat_progress_create_index does not show it, drop it with evpg_enable_index(%L, false), and '
                        'create it again.', index_name);
    END IF;
    INSERT INTO evpg.optional_index VALUES (index_name) ON CONFLICT DO NOTHING;
    EXECUTE format('CREATE INDEX IF NOT EXISTS event_log_%s ON evpg.event_log %s', index_name, definition);
  ELSE
    DELETE FROM evpg.optional_index o WHERE o.index_name = evpg_enable_index.index_name;
    EXECUTE format('DROP INDEX IF EXISTS evpg.event_log_%s', index_name);
  END IF;
  RETURN enabled <> existed;
END $$;
COMMENT ON FUNCTION evpg_enable_index(text, boolean) IS
  'creates or drops an index of the event log: event_type (for consumers and readers of rare types), correlation, '
  'recorded_at or tags; returns true if something changed';

-- ------------------------------------------------------------------ projections

CREATE FUNCTION evpg_register_projection(name text, reducer regproc DEFAULT NULL, handler regproc DEFAULT NULL,
    library text DEFAULT NULL, symbol text DEFAULT NULL,
    aggregate_types text[] DEFAULT NULL, event_types text[] DEFAULT NULL, tags text[] DEFAULT NULL,
    key_path jsonpath DEFAULT NULL, key_function regproc DEFAULT NULL, constant_key text DEFAULT NULL,
    initial_state jsonb DEFAULT '{}', tables text[] DEFAULT NULL, reset regproc DEFAULT NULL,
    mode text DEFAULT 'inline', broadcast text DEFAULT 'pointer', event_name text DEFAULT 'delta',
    on_error text DEFAULT 'stop', max_attempts int DEFAULT 5, start_position bigint DEFAULT 0, version int DEFAULT 1)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_register_projection(text, regproc, regproc, text, text, text[], text[], text[], jsonpath,
    regproc, text, jsonb, text[], regproc, text, text, text, text, int, bigint, int) IS
  'registers a projection: a reducer over a state per key, a handler that writes tables, or a symbol of a shared object; '
  'returns true if something changed; on_error is for mode async, max_attempts also for rebuilds in the background';

CREATE FUNCTION evpg_drop_projection(name text, missing_ok boolean DEFAULT false)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION evpg_drop_projection(text, boolean) IS
  'removes a projection and its rows; returns false if there was none';

CREATE FUNCTION evpg_projection(name text, key text DEFAULT '', missing_ok boolean DEFAULT true)
  RETURNS TABLE (state jsonb, generation int, version bigint, "position" bigint, updated_at timestamptz)
  AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT ROWS 1;
COMMENT ON FUNCTION evpg_projection(text, text, boolean) IS
  'returns the row of a key; if it has none, no row, or an error unless missing_ok';

CREATE FUNCTION evpg_projection_changes(name text, after_position bigint DEFAULT 0, max_count int DEFAULT 1000)
  RETURNS TABLE (key text, state jsonb, generation int, version bigint, "position" bigint, updated_at timestamptz,
    next_position bigint)
  AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_projection_changes(text, bigint, int) IS
  'returns rows changed after a position, up to the stable one, deleted keys with state NULL; continue from next_position';

CREATE FUNCTION evpg_put_projection(name text, key text, state jsonb)
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_put_projection(text, text, jsonb) IS
  'replaces the state of a key, or deletes the key if it is NULL, and returns its new version';

CREATE FUNCTION evpg_rebuild_projection(name text, key text DEFAULT NULL, background boolean DEFAULT false)
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_rebuild_projection(text, text, boolean) IS
  'folds the events of a key, or of all keys, from the start, and returns their number; in the background, it returns NULL '
  'at once';

CREATE FUNCTION evpg_cancel_rebuild(name text)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION evpg_cancel_rebuild(text) IS
  'ends a rebuild of all keys, whose old rows stay; returns false if there was none';

-- ------------------------------------------------------------------ listeners

CREATE FUNCTION evpg_channel(name text, key text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C STABLE;
COMMENT ON FUNCTION evpg_channel(text, text) IS 'returns the channel of a key of a projection, or of all its keys';

CREATE FUNCTION evpg_listen(name text, key text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_listen(text, text) IS 'executes LISTEN on the channel that evpg_channel() returns, and returns it';

CREATE FUNCTION evpg_unlisten(name text, key text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_unlisten(text, text) IS
  'executes UNLISTEN on the channel that evpg_channel() returns, and returns it';

CREATE FUNCTION evpg_event_channel(aggregate_type text DEFAULT NULL, aggregate_id text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C STABLE;
COMMENT ON FUNCTION evpg_event_channel(text, text) IS
  'returns the channel of the events of a stream, of an aggregate type, or of all';

CREATE FUNCTION evpg_listen_events(aggregate_type text DEFAULT NULL, aggregate_id text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_listen_events(text, text) IS
  'executes LISTEN on the channel that evpg_event_channel() returns, and returns it';

CREATE FUNCTION evpg_unlisten_events(aggregate_type text DEFAULT NULL, aggregate_id text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_unlisten_events(text, text) IS
  'executes UNLISTEN on the channel that evpg_event_channel() returns, and returns it';

CREATE FUNCTION evpg.broadcast_counters(OUT mode text, OUT queued bigint, OUT sent bigint,
    OUT dropped bigint, OUT resyncs bigint)
  AS 'MODULE_PATHNAME', 'evpg_broadcast_counters' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg.broadcast_counters() IS
  'returns counters of the broadcaster of this database; read them through evpg.stat_broadcast';

CREATE VIEW evpg.stat_broadcast AS
  SELECT c.mode, c.queued, c.sent, c.dropped, c.resyncs, pg_catalog.pg_notification_queue_usage() AS queue_usage
    FROM evpg.broadcast_counters() c;
COMMENT ON VIEW evpg.stat_broadcast IS
  'shows how this session sends frames, and counters of the broadcaster of this database';

CREATE FUNCTION evpg_watch_projection(name text, key text DEFAULT '', after_version bigint DEFAULT 0,
    timeout interval DEFAULT '30 seconds', after_generation int DEFAULT NULL)
  RETURNS TABLE (state jsonb, generation int, version bigint, "position" bigint, updated_at timestamptz)
  AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE ROWS 1;
COMMENT ON FUNCTION evpg_watch_projection(text, text, bigint, interval, int) IS
  'waits until the version of a key changes, and returns its row, with state NULL if it was deleted; no row if the timeout '
  'passed first';

-- ------------------------------------------------------------------ consumers

CREATE FUNCTION evpg.is_activated() RETURNS boolean
  AS 'MODULE_PATHNAME', 'evpg_is_activated' LANGUAGE C STABLE;
COMMENT ON FUNCTION evpg.is_activated() IS
  'returns whether consumers may run in this database: it is no copy, or evpg_activate_consumers() was called';

CREATE PROCEDURE evpg_run(max_rounds int DEFAULT 1)
  AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON PROCEDURE evpg_run(int) IS 'does the work of workers until nothing is left to do now; commits between batches';

CREATE FUNCTION evpg_pause_consumer(name text)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION evpg_pause_consumer(text) IS
  'pauses a consumer after its current batch; returns false if it was already paused';

CREATE FUNCTION evpg_resume_consumer(name text)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION evpg_resume_consumer(text) IS
  'lets a consumer continue that was paused or has stopped at an event, which is tried again at once; returns false if '
  'nothing changed';

CREATE FUNCTION evpg_skip_event(name text, event_position bigint, reason text)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_skip_event(text, bigint, text) IS
  'gives up an event that a consumer has not consumed, or has parked, and keeps it in evpg.parked_event with the reason; '
  'returns false if it was applied or given up before';

CREATE FUNCTION evpg_replay_parked(name text, max_count int DEFAULT 100, key text DEFAULT NULL)
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_replay_parked(text, int, text) IS
  'applies parked events, each key in order, up to one that fails again; returns how many were applied; a subscription '
  'hands them out again';

CREATE FUNCTION evpg_wait_for(name text, min_position bigint, timeout interval DEFAULT '5 seconds')
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_wait_for(text, bigint, interval) IS
  'waits until a projection has applied all events up to a position, or a saga has reacted to them; returns false if the '
  'timeout passed first';

CREATE FUNCTION evpg_wait_for_position(min_position bigint, timeout interval DEFAULT '5 seconds')
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_wait_for_position(bigint, interval) IS
  'waits until the event at a position can be read here, also on a standby, or no event can appear there any more; '
  'returns false if the timeout passed first';

-- ------------------------------------------------------------------ subscriptions

CREATE FUNCTION evpg_create_subscription(name text, aggregate_types text[] DEFAULT NULL, event_types text[] DEFAULT NULL,
    tags text[] DEFAULT NULL, aggregate_ids text[] DEFAULT NULL, id_prefix text DEFAULT NULL,
    start_at text DEFAULT 'beginning', start_position bigint DEFAULT NULL, start_time timestamptz DEFAULT NULL,
    partitions int DEFAULT 1, lease_time interval DEFAULT '30 seconds', max_attempts int DEFAULT 10,
    backoff interval DEFAULT '1 second', max_backoff interval DEFAULT '5 minutes')
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_create_subscription(text, text[], text[], text[], text[], text, text, bigint, timestamptz, int,
    interval, int, interval, interval) IS
  'creates a subscription; returns false if it exists with the same filter and number of partitions';

CREATE FUNCTION evpg_drop_subscription(name text, missing_ok boolean DEFAULT false)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_drop_subscription(text, boolean) IS
  'drops a subscription with its checkpoints and parked events; returns whether there was one';

CREATE FUNCTION evpg_fetch(subscription text, consumer text, max_events int DEFAULT 100, max_bytes int DEFAULT NULL,
    wait interval DEFAULT '0', lease bigint DEFAULT NULL)
  RETURNS SETOF evpg.delivery AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_fetch(text, text, int, int, interval, bigint) IS
  'hands out the next events of a subscription to a consumer, under a lease; with lease those after the ones that it has '
  'under that lease, else also those again that it has not acknowledged';

CREATE FUNCTION evpg_ack(subscription text, lease bigint, up_to_position bigint)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_ack(text, bigint, bigint) IS
  'acknowledges all events of a lease up to a position; returns false if the lease is lost';

CREATE FUNCTION evpg_nack(subscription text, lease bigint, event_position bigint, action text DEFAULT 'retry',
    delay interval DEFAULT NULL, reason text DEFAULT NULL)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_nack(text, bigint, bigint, text, interval, text) IS
  'acknowledges the events of a lease before a position and gives back the one at it: retry (after a delay), park or skip; '
  'returns false if the lease is lost';

CREATE FUNCTION evpg_extend_lease(subscription text, lease bigint, lease_time interval DEFAULT NULL)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_extend_lease(text, bigint, interval) IS
  'lets a lease last from now on for a time, a day at most, by default that of the subscription; returns false if it is '
  'lost';

CREATE FUNCTION evpg_release_lease(subscription text, lease bigint)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_release_lease(text, bigint) IS
  'ends a lease: other consumers get its partitions at once; returns false if it is lost';

CREATE FUNCTION evpg_seek(subscription text, to_position bigint DEFAULT NULL, to_time timestamptz DEFAULT NULL)
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_seek(text, bigint, timestamptz) IS
  'moves a subscription: the events after a position, or recorded since a time, are handed out next; returns the position';

CREATE FUNCTION evpg_subscription_channel(subscription text)
  RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C STABLE;
COMMENT ON FUNCTION evpg_subscription_channel(text) IS
  'returns the name of the channel on which consumers of a subscription are notified that there may be events';

CREATE FUNCTION evpg_listen_subscription(subscription text)
  RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_listen_subscription(text) IS
  'listens to the channel of a subscription, and returns its name; a fetch after it loses no event';

CREATE FUNCTION evpg_unlisten_subscription(subscription text)
  RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_unlisten_subscription(text) IS 'ends what evpg_listen_subscription() began';

CREATE FUNCTION evpg.count_events(subscription text, partition int, after bigint, upto bigint) RETURNS bigint
  AS 'MODULE_PATHNAME', 'evpg_count_events' LANGUAGE C STABLE;
COMMENT ON FUNCTION evpg.count_events(text, int, bigint, bigint) IS
  'returns how many events of a partition of a subscription there are between two positions';

CREATE FUNCTION evpg.partition_of(key text, partitions int) RETURNS int
  AS 'MODULE_PATHNAME', 'evpg_partition_of' LANGUAGE C IMMUTABLE STRICT;
COMMENT ON FUNCTION evpg.partition_of(text, int) IS 'returns the partition of a parked event of a subscription';

CREATE VIEW evpg.stat_subscription AS
  SELECT s.name, p.partition, CASE WHEN NOT h.activated THEN 'inactive' ELSE c.status END AS status,
         l.consumer, l.lease, l.lease_until, k.checkpoint,
         CASE WHEN x.counts IS NOT TRUE OR l.handed OPERATOR(pg_catalog.<=) k.checkpoint THEN 0
              WHEN l.replaying THEN (SELECT pg_catalog.count(*) FROM evpg.parked_event e
                WHERE e.name OPERATOR(pg_catalog.=) s.name AND e.replaying
                  AND e."position" OPERATOR(pg_catalog.>) k.checkpoint
                  AND e."position" OPERATOR(pg_catalog.<=) l.handed
                  AND evpg.partition_of(e.key, s.partitions) OPERATOR(pg_catalog.=) p.partition)
              ELSE evpg.count_events(s.name, p.partition, k.checkpoint, l.handed) END AS in_flight,
         CASE WHEN p.attempt_position OPERATOR(pg_catalog.>) k.checkpoint THEN p.attempts ELSE 0 END AS attempts,
         CASE WHEN p.retry_at OPERATOR(pg_catalog.>) evpg.clock_timestamp() THEN p.retry_at END AS retry_at,
         (SELECT pg_catalog.count(*) FROM evpg.parked_event e
           WHERE e.name OPERATOR(pg_catalog.=) s.name AND e.skip_reason IS NULL
             AND evpg.partition_of(e.key, s.partitions) OPERATOR(pg_catalog.=) p.partition) AS parked,
         CASE WHEN e.recorded_at IS NULL THEN 0 ELSE d.last_position OPERATOR(pg_catalog.-) k.checkpoint END AS lag_events,
         coalesce(pg_catalog.round(
           extract(epoch FROM evpg.clock_timestamp() OPERATOR(pg_catalog.-) e.recorded_at), 3), 0) AS lag_seconds,
         e.recorded_at AS oldest
    FROM evpg.subscription s
    JOIN evpg.consumer c ON c.name OPERATOR(pg_catalog.=) s.name
    JOIN evpg.subscription_partition p ON p.subscription OPERATOR(pg_catalog.=) s.name
    LEFT JOIN evpg.subscription_lease l
           ON l.subscription OPERATOR(pg_catalog.=) s.name AND l.slot OPERATOR(pg_catalog.=) p.slot
    CROSS JOIN (SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS last_position FROM evpg.event_position) d
    CROSS JOIN (SELECT evpg.is_activated() AS activated) h
    -- while a lease hands out parked events again, its positions are of the partitions that have some
    CROSS JOIN LATERAL (SELECT l.replaying OPERATOR(pg_catalog.=) (p.replay_to IS NOT NULL) AS counts) x
    CROSS JOIN LATERAL (SELECT LEAST(GREATEST(p.checkpoint, CASE WHEN x.counts THEN l.acked END),
                                     CASE WHEN l.replaying THEN p.replay_to END) AS checkpoint) k
    LEFT JOIN LATERAL (SELECT g.recorded_at FROM evpg.event_log g WHERE g."position" OPERATOR(pg_catalog.>) k.checkpoint
                        ORDER BY g."position" LIMIT 1) e ON true;
COMMENT ON VIEW evpg.stat_subscription IS
  'shows the partitions of subscriptions, which consumers hold them, and how far these are; lag_events counts positions';

CREATE FUNCTION evpg_activate_consumers()
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_activate_consumers() IS
  'lets consumers run in this database after it was restored or copied; returns false if they could already';

CREATE VIEW evpg.stat_consumer AS
  SELECT p.name, p.kind, p.mode,
         CASE WHEN c.status IS NULL AND p.mode OPERATOR(pg_catalog.=) 'inline' THEN 'running'
              WHEN c.status OPERATOR(pg_catalog.=) 'running' AND NOT h.activated THEN 'inactive' ELSE c.status END AS status,
         p.version, CASE WHEN p.mode OPERATOR(pg_catalog.=) 'async' THEN f.checkpoint END AS checkpoint,
         CASE WHEN f.checkpoint IS NOT NULL THEN
              CASE WHEN e.recorded_at IS NULL OR p.mode OPERATOR(pg_catalog.=) 'inline' THEN 0
                   ELSE l.last_position OPERATOR(pg_catalog.-) f.checkpoint END
              OPERATOR(pg_catalog.+) (SELECT pg_catalog.count(*) FROM evpg.saga_event r
                                      WHERE r.saga OPERATOR(pg_catalog.=) p.name) END AS lag_events,
         CASE WHEN p.mode OPERATOR(pg_catalog.=) 'async' THEN
              coalesce(pg_catalog.round(
                extract(epoch FROM evpg.clock_timestamp() OPERATOR(pg_catalog.-) e.recorded_at), 3), 0) END AS lag_seconds,
         CASE WHEN p.mode OPERATOR(pg_catalog.=) 'async' THEN coalesce(v.delivered, c.events_total) END AS events_total,
         c.errors_total,
         (SELECT pg_catalog.count(*) FROM evpg.parked_event k
            WHERE k.name OPERATOR(pg_catalog.=) p.name AND k.skip_reason IS NULL)
           OPERATOR(pg_catalog.+) (SELECT pg_catalog.count(*) FROM evpg.dead_letter d
                                   WHERE d.saga OPERATOR(pg_catalog.=) p.name AND d.resolved_at IS NULL) AS parked,
         c.last_error, c.last_sqlstate, c.last_context, c.last_error_at, c.error_position AS last_error_position,
         CASE WHEN c.status OPERATOR(pg_catalog.=) 'running' THEN c.retry_at END AS retry_at,
         coalesce(w.pid, i.pid) AS worker_pid, c.updated_at,
         CASE WHEN c.status IS NULL THEN NULL
              WHEN NOT h.activated
                THEN 'this database was restored or copied: evpg_activate_consumers() lets its consumers run'
              WHEN c.status OPERATOR(pg_catalog.=) 'paused'
                THEN 'evpg_pause_consumer() was called: evpg_resume_consumer() lets it go on'
              WHEN c.status OPERATOR(pg_catalog.=) 'stopped'
                THEN 'an event fails: repair its cause, then evpg_resume_consumer()' END AS reason,
         t.dispatched AS dispatched_total, t.dead_lettered AS dead_lettered_total
    FROM (SELECT name, 'projection' AS kind, mode, version FROM evpg.projection
          UNION ALL (SELECT DISTINCT ON (name) name, 'saga', mode, version FROM evpg.saga ORDER BY name, version DESC)
          UNION ALL SELECT name, 'subscription', 'async', NULL AS version FROM evpg.subscription) p
    LEFT JOIN evpg.consumer c ON c.name OPERATOR(pg_catalog.=) p.name
    -- a subscription has a checkpoint for each partition
    LEFT JOIN LATERAL (SELECT pg_catalog.min(LEAST(GREATEST(q.checkpoint,
                                CASE WHEN b.replaying OPERATOR(pg_catalog.=) (q.replay_to IS NOT NULL) THEN b.acked END),
                                CASE WHEN b.replaying THEN q.replay_to END)) AS checkpoint
                         FROM evpg.subscription_partition q
                         LEFT JOIN evpg.subscription_lease b ON b.subscription OPERATOR(pg_catalog.=) q.subscription
                              AND b.slot OPERATOR(pg_catalog.=) q.slot
                        WHERE q.subscription OPERATOR(pg_catalog.=) p.name) u
           ON p.kind OPERATOR(pg_catalog.=) 'subscription'
    LEFT JOIN LATERAL (SELECT pg_catalog.sum(b.delivered)::pg_catalog.int8 AS delivered
                         FROM evpg.subscription_lease b WHERE b.subscription OPERATOR(pg_catalog.=) p.name) v
           ON p.kind OPERATOR(pg_catalog.=) 'subscription'
    CROSS JOIN LATERAL (SELECT coalesce(u.checkpoint, c.checkpoint) AS checkpoint) f
    CROSS JOIN (SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS last_position FROM evpg.event_position) l
    CROSS JOIN (SELECT evpg.is_activated() AS activated) h
    LEFT JOIN LATERAL (SELECT coalesce(pg_catalog.sum(s.dispatched), 0)::pg_catalog.int8 AS dispatched,
                              coalesce(pg_catalog.sum(s.dead_lettered), 0)::pg_catalog.int8 AS dead_lettered
                         FROM evpg.saga_total s WHERE s.saga OPERATOR(pg_catalog.=) p.name) t
           ON p.kind OPERATOR(pg_catalog.=) 'saga'
    LEFT JOIN LATERAL (SELECT e.recorded_at FROM evpg.event_log e WHERE e."position" OPERATOR(pg_catalog.>) f.checkpoint
                        ORDER BY e."position" LIMIT 1) e ON true
    LEFT JOIN (SELECT pid,
                      (classid::pg_catalog.int8 OPERATOR(pg_catalog.<<) 32)
                        OPERATOR(pg_catalog.|) objid::pg_catalog.int8 AS hash
                FROM pg_catalog.pg_locks
                WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND objsubid OPERATOR(pg_catalog.=) 17752 AND granted
                  AND database OPERATOR(pg_catalog.=) (
                    SELECT oid FROM pg_catalog.pg_database
                     WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database())) w
           ON w.hash OPERATOR(pg_catalog.=) pg_catalog.hashtextextended(p.name COLLATE "C", 0)
          AND p.kind OPERATOR(pg_catalog.<>) 'subscription'
    -- instances of a saga that react, of which there may be many
    LEFT JOIN (SELECT pg_catalog.min(pid) AS pid,
                      (classid::pg_catalog.int8 OPERATOR(pg_catalog.<<) 32)
                        OPERATOR(pg_catalog.|) objid::pg_catalog.int8 AS hash
                FROM pg_catalog.pg_locks
                WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND objsubid OPERATOR(pg_catalog.=) 17755 AND granted
                  AND database OPERATOR(pg_catalog.=) (
                    SELECT oid FROM pg_catalog.pg_database
                     WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
                GROUP BY 2) i
           ON i.hash OPERATOR(pg_catalog.=)
              pg_catalog.hashtextextended('' COLLATE "C", pg_catalog.hashtextextended(p.name COLLATE "C", 0));
COMMENT ON VIEW evpg.stat_consumer IS
  'shows the progress of projections, sagas and subscriptions, their errors and their workers; lag_events counts positions, '
  'and events that instances of sagas have not reacted to';

CREATE VIEW evpg.progress_rebuild AS
  SELECT r.name, r.build,
         CASE WHEN r.status OPERATOR(pg_catalog.=) 'failed' THEN 'failed'
              WHEN t.checkpoint OPERATOR(pg_catalog.<) r.goal THEN 'replay' ELSE 'catch-up' END AS phase,
         t.events AS events_done, e.events_total, r.started_at,
         r.parts, w.workers, f.rate AS events_per_second,
         CASE WHEN r.status OPERATOR(pg_catalog.=) 'running' AND f.rate OPERATOR(pg_catalog.>) 0
                AND t.checkpoint OPERATOR(pg_catalog.>) r.start_position
              THEN pg_catalog.make_interval(secs => greatest(r.goal OPERATOR(pg_catalog.-) t.checkpoint, 0)
                OPERATOR(pg_catalog.*) extract(epoch FROM
                  evpg.clock_timestamp() OPERATOR(pg_catalog.-) r.started_at)::pg_catalog.float8
                OPERATOR(pg_catalog./) (t.checkpoint OPERATOR(pg_catalog.-) r.start_position)) END AS eta,
         r.attempts, r.retry_at, r.last_error
    FROM evpg.rebuild r
    CROSS JOIN LATERAL (SELECT pg_catalog.min(p.checkpoint) AS checkpoint,
                               -- parts by key read the same events, so their counts do not add up
                               least(pg_catalog.sum(p.events)::pg_catalog.int8,
                                     pg_catalog.max(p.checkpoint) OPERATOR(pg_catalog.-) r.start_position) AS events
                          FROM evpg.rebuild_part p WHERE p.build OPERATOR(pg_catalog.=) r.build) t
    CROSS JOIN LATERAL (SELECT greatest(l.last_value OPERATOR(pg_catalog.-) r.start_position, 0) AS events_total
                        FROM evpg.event_position l) e
    CROSS JOIN LATERAL (SELECT pg_catalog.round(t.events OPERATOR(pg_catalog./) greatest(
                          extract(epoch FROM evpg.clock_timestamp() OPERATOR(pg_catalog.-) r.started_at), 0.001)) AS rate) f
    CROSS JOIN LATERAL (SELECT pg_catalog.count(DISTINCT k.pid) AS workers
                         FROM pg_catalog.pg_locks k, pg_catalog.generate_series(1, r.parts) AS part
                         WHERE k.locktype OPERATOR(pg_catalog.=) 'advisory'
                           AND k.objsubid OPERATOR(pg_catalog.=) 17753 AND k.granted
                           AND k.database OPERATOR(pg_catalog.=) (
                             SELECT oid FROM pg_catalog.pg_database
                              WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
                           AND (k.classid::pg_catalog.int8 OPERATOR(pg_catalog.<<) 32)
                                 OPERATOR(pg_catalog.|) k.objid::pg_catalog.int8
                               OPERATOR(pg_catalog.=) pg_catalog.hashtextextended(r.name COLLATE "C", part)) w;
COMMENT ON VIEW evpg.progress_rebuild IS
  'shows the progress of rebuilds of all keys of projections, their speed, and when they are expected to end';

CREATE FUNCTION evpg.database_slots(OUT datid oid, OUT workers int, OUT workers_wanted int,
    OUT broadcaster_pid int, OUT reason text)
  RETURNS SETOF record AS 'MODULE_PATHNAME', 'evpg_database_slots' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg.database_slots() IS
  'returns the background processes of databases with evpg; read them through evpg.stat_database';

CREATE VIEW evpg.stat_database AS
  SELECT s.datid, d.datname,
         CASE WHEN s.reason IS NULL AND (h.activated OR d.datname OPERATOR(pg_catalog.<>) pg_catalog.current_database())
              THEN 'served' ELSE 'not served' END AS status,
         CASE WHEN d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database() AND NOT h.activated
              THEN 'this database was restored or copied: evpg_activate_consumers() lets its consumers run'
              ELSE s.reason END AS reason,
         s.workers, s.workers_wanted, s.broadcaster_pid
    FROM evpg.database_slots() s
    CROSS JOIN (SELECT evpg.is_activated() AS activated) h
    LEFT JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) s.datid;
COMMENT ON VIEW evpg.stat_database IS
  'shows which databases of the server have workers, and why others have none: this one, and others known to have evpg';

CREATE FUNCTION evpg.worker_slots(OUT pid int, OUT calls text, OUT name text, OUT lasts interval)
  RETURNS SETOF record AS 'MODULE_PATHNAME', 'evpg_worker_slots' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg.worker_slots() IS
  'returns what the workers of this database are in; read it through evpg.stat_worker';

CREATE VIEW evpg.stat_worker AS
  SELECT w.pid, w.calls, w.name, w.lasts
    FROM evpg.worker_slots() w;
COMMENT ON VIEW evpg.stat_worker IS
  'shows the workers of this database: which user code each of them calls now, if any, and for how long';

-- ------------------------------------------------------------------ sagas and timers

CREATE FUNCTION evpg_register_saga(name text, handler regproc DEFAULT NULL, rejection_handler regproc DEFAULT NULL,
    timer_handler regproc DEFAULT NULL, library text DEFAULT NULL, symbol text DEFAULT NULL,
    aggregate_types text[] DEFAULT NULL, event_types text[] DEFAULT NULL, start_event_types text[] DEFAULT NULL,
    key_path jsonpath DEFAULT NULL, key_function regproc DEFAULT NULL,
    initial_state jsonb DEFAULT '{}', transitions jsonb DEFAULT NULL,
    max_attempts int DEFAULT 5, backoff interval DEFAULT '1 second', max_backoff interval DEFAULT '5 minutes',
    start_position bigint DEFAULT NULL, version int DEFAULT 1, mode text DEFAULT 'async')
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_register_saga(text, regproc, regproc, regproc, text, text, text[], text[], text[], jsonpath,
    regproc, jsonb, jsonb, int, interval, interval, bigint, int, text) IS
  'registers a saga: functions, or a symbol of a shared object; it starts with the next event, or after start_position; '
  'inline it reacts in the transaction of the event; returns true if something changed';

CREATE FUNCTION evpg_drop_saga(name text, missing_ok boolean DEFAULT false)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION evpg_drop_saga(text, boolean) IS
  'removes a saga with its instances, timers and pending events, and discards its dead letters; returns false if there was '
  'none';

CREATE FUNCTION evpg_saga(name text, key text)
  RETURNS TABLE (state jsonb, status text, version bigint, "position" bigint, pending_events int, pending_timers int,
    dead_letters int, started_at timestamptz, updated_at timestamptz)
  AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT ROWS 1;
COMMENT ON FUNCTION evpg_saga(text, text) IS 'returns an instance of a saga; no row if there is none';

CREATE FUNCTION evpg_rebuild_saga(name text, key text DEFAULT NULL)
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_rebuild_saga(text, text) IS
  'folds the events that instances have reacted to again, keeps only the new state and sends nothing; returns the number '
  'of events';

CREATE FUNCTION evpg_run_sagas(max_events int DEFAULT NULL, OUT dispatched bigint, OUT dead_lettered bigint)
  AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_run_sagas(int) IS
  'lets sagas react in this transaction to what is pending now; returns how many commands were sent, and how many dead '
  'letters written';

CREATE FUNCTION evpg_schedule_command(due_at timestamptz, aggregate_type text, aggregate_id text, command_type text,
    data jsonb DEFAULT '{}',
    command_id text DEFAULT NULL, metadata jsonb DEFAULT NULL, actor text DEFAULT NULL, correlation_id text DEFAULT NULL,
    causation_id text DEFAULT NULL)
  RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_schedule_command(timestamptz, text, text, text, jsonb, text, jsonb, text, text, text) IS
  'schedules a command that is executed once, at a time; returns the id of its timer';

CREATE FUNCTION evpg_reschedule_timer(timer_id bigint, due_at timestamptz)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION evpg_reschedule_timer(bigint, timestamptz) IS
  'moves a timer to another time; returns false if it no longer exists';

CREATE FUNCTION evpg_cancel_timer(timer_id bigint)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION evpg_cancel_timer(bigint) IS 'removes a timer; returns false if it no longer exists';

CREATE FUNCTION evpg_retry_dead_letter(dead_letter_id bigint)
  RETURNS SETOF evpg.outcome AS 'MODULE_PATHNAME' LANGUAGE C ROWS 1;
COMMENT ON FUNCTION evpg_retry_dead_letter(bigint) IS
  'tries again what has become a dead letter, and resolves it if that succeeds, so that the instance continues; returns '
  'the outcome, no row if it was already resolved';

CREATE FUNCTION evpg_retry_dead_letters(name text, max_count int DEFAULT 100, OUT retried bigint, OUT failed bigint)
  AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_retry_dead_letters(text, int) IS
  'retries the dead letters of a saga, or of scheduled commands if name is NULL, oldest first; returns how many succeeded, '
  'and how many failed again';

CREATE FUNCTION evpg_discard_dead_letter(dead_letter_id bigint, reason text)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_discard_dead_letter(bigint, text) IS
  'gives up what has become a dead letter, so that the instance continues; returns false if it was already resolved';

-- ------------------------------------------------------------------ messages from outside

CREATE FUNCTION evpg_receive(source text, message_key text)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_receive(text, text) IS
  'records a message as received in this transaction; returns false if it was received before';

CREATE FUNCTION evpg_receive_message(source text, message_key text, translator text, payload jsonb)
  RETURNS SETOF evpg.outcome AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE ROWS 1;
COMMENT ON FUNCTION evpg_receive_message(text, text, text, jsonb) IS
  'receives a message, translates it, executes its commands, all or none, and returns their outcomes; no row if it was '
  'received before';

CREATE FUNCTION evpg_register_translator(name text, translator regproc)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_register_translator(text, regproc) IS
  'registers a function jsonb -> evpg.command, or a set of them, that makes commands from messages; returns true if '
  'something changed';

CREATE FUNCTION evpg_drop_translator(name text, missing_ok boolean DEFAULT false)
  RETURNS boolean AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION evpg_drop_translator(text, boolean) IS 'removes a translator; returns false if there was none';

CREATE FUNCTION evpg_translate(translator text, payload jsonb)
  RETURNS SETOF evpg.command AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE ROWS 1;
COMMENT ON FUNCTION evpg_translate(text, jsonb) IS
  'returns the commands that a translator makes from a payload, without executing them';

-- ------------------------------------------------------------------ retention

-- Deletes or empties the rows of some blocks of a table that are not needed any more.  It waits for no other transaction:
-- locked rows stay until the next time.
CREATE FUNCTION evpg.prune(what text, older_than interval, first_block bigint, end_block bigint) RETURNS bigint
  LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  first tid := format('(%s,0)', first_block);
  last tid := format('(%s,0)', end_block);
  before timestamptz := evpg.clock_timestamp() - older_than;
  found tid[];
  pruned bigint;
  emptied bigint := 0;
BEGIN
  CASE what
    WHEN 'commands' THEN
      found := ARRAY(SELECT ctid FROM evpg.command_record WHERE ctid >= first AND ctid < last AND recorded_at < before
                        FOR UPDATE SKIP LOCKED);
      DELETE FROM evpg.command_record WHERE ctid = ANY (found);
      GET DIAGNOSTICS pruned = ROW_COUNT;
    WHEN 'inbox' THEN
      found := ARRAY(SELECT ctid FROM evpg.inbox WHERE ctid >= first AND ctid < last AND received_at < before
                        FOR UPDATE SKIP LOCKED);
      DELETE FROM evpg.inbox WHERE ctid = ANY (found);
      GET DIAGNOSTICS pruned = ROW_COUNT;
    WHEN 'sagas' THEN
      -- Version 0, which no saga has, marks an instance of which only the fact that it completed is left.
      found := ARRAY(SELECT ctid FROM evpg.saga_instance WHERE ctid >= first AND ctid < last AND status = 'completed'
                        AND saga_version <> 0 AND updated_at < before FOR UPDATE SKIP LOCKED);
      UPDATE evpg.saga_instance SET state = '{}', undo = '[]', saga_version = 0 WHERE ctid = ANY (found);
      GET DIAGNOSTICS pruned = ROW_COUNT;
    WHEN 'dead_letters' THEN
      -- A discarded letter stays, without its texts, as long as a rebuild of the saga has to leave its event out.
      found := ARRAY(SELECT l.ctid FROM evpg.dead_letter l WHERE l.ctid >= first AND l.ctid < last AND l.resolved_at < before
                        AND (l.resolution <> 'discarded' OR l.source_position IS NULL OR l.saga IS NULL
                             OR NOT EXISTS (SELECT FROM evpg.consumer c
                                             WHERE c.name = l.saga AND c.created_at < l.created_at))
                        FOR UPDATE OF l SKIP LOCKED);
      DELETE FROM evpg.dead_letter WHERE ctid = ANY (found);
      GET DIAGNOSTICS pruned = ROW_COUNT;
      found := ARRAY(SELECT l.ctid FROM evpg.dead_letter l WHERE l.ctid >= first AND l.ctid < last AND l.resolved_at < before
                        AND (l.message <> ''
                             OR num_nonnulls(l.label, l.command, l.code, l.detail, l.hint, l.context, l.reason) > 0)
                        FOR UPDATE OF l SKIP LOCKED);
      UPDATE evpg.dead_letter
         SET message = '', label = NULL, command = NULL, code = NULL, detail = NULL, hint = NULL, context = NULL,
             reason = NULL
       WHERE ctid = ANY (found);
      GET DIAGNOSTICS emptied = ROW_COUNT;
    WHEN 'parked_events' THEN
      -- Rebuilds leave out skipped events, so position and key stay.
      found := ARRAY(SELECT ctid FROM evpg.parked_event WHERE ctid >= first AND ctid < last AND skipped_at < before
                        AND (skip_reason <> '' OR num_nonnulls(error, sqlstate, context, skipped_by) > 0)
                        FOR UPDATE SKIP LOCKED);
      UPDATE evpg.parked_event SET error = NULL, sqlstate = NULL, context = NULL, skip_reason = '', skipped_by = NULL
       WHERE ctid = ANY (found);
      GET DIAGNOSTICS pruned = ROW_COUNT;
  END CASE;
  RETURN pruned + emptied;
END $$;
COMMENT ON FUNCTION evpg.prune(text, interval, bigint, bigint) IS
  'prunes some blocks of a table; returns the number of rows pruned';

CREATE FUNCTION evpg.prunable_blocks(what text) RETURNS bigint
  LANGUAGE sql STRICT SET search_path = pg_catalog, pg_temp
RETURN pg_catalog.pg_relation_size(CASE
    WHEN what OPERATOR(pg_catalog.=) 'commands' THEN 'evpg.command_record'
    WHEN what OPERATOR(pg_catalog.=) 'inbox' THEN 'evpg.inbox'
    WHEN what OPERATOR(pg_catalog.=) 'sagas' THEN 'evpg.saga_instance'
    WHEN what OPERATOR(pg_catalog.=) 'dead_letters' THEN 'evpg.dead_letter'
    WHEN what OPERATOR(pg_catalog.=) 'parked_events' THEN 'evpg.parked_event' END::pg_catalog.regclass)
  OPERATOR(pg_catalog./) pg_catalog.current_setting('block_size')::pg_catalog.int8;
COMMENT ON FUNCTION evpg.prunable_blocks(text) IS 'returns the number of blocks of a table that evpg.prune() works on';

CREATE FUNCTION evpg.prune_all(what text, older_than interval) RETURNS bigint
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  pruned bigint := 0;
BEGIN
  PERFORM evpg.refuse_null(older_than::text, 'older_than');
  IF older_than < interval '0' THEN
    RAISE EXCEPTION 'older_than must not be negative' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  -- New versions of updated rows may go to later blocks; they no longer match there.
  FOR block IN 0 .. evpg.prunable_blocks(what) - 1 BY 1024 LOOP
    pruned := pruned + evpg.prune(what, older_than, block, block + 1024);
  END LOOP;
  RETURN pruned;
END $$;
COMMENT ON FUNCTION evpg.prune_all(text, interval) IS 'prunes a whole table; returns the number of rows pruned';

-- Prunes one batch for a worker, unless another worker prunes this table.  A scan of the table begins every ten minutes, and
-- after each change of its retention.
CREATE FUNCTION evpg.prune_batch(what text, OUT more boolean, OUT next_at timestamptz)
  LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  blocks CONSTANT bigint := 32;
  pause CONSTANT interval := '10 minutes';
  now timestamptz := evpg.clock_timestamp();
  policy evpg.retention;
  pruned bigint;
BEGIN
  more := false;
  SELECT * INTO policy FROM evpg.retention r WHERE r.what = prune_batch.what;
  IF FOUND AND (policy.next_block > 0 OR policy.looked_at NOT BETWEEN now - pause AND now) THEN
    SELECT * INTO policy FROM evpg.retention r WHERE r.what = prune_batch.what FOR UPDATE SKIP LOCKED;
    IF FOUND AND (policy.next_block > 0 OR policy.looked_at NOT BETWEEN now - pause AND now) THEN
      pruned := evpg.prune(what, policy.retention, policy.next_block, policy.next_block + blocks);
      more := policy.next_block + blocks < evpg.prunable_blocks(what);
      policy.looked_at := now;
      UPDATE evpg.retention r
         SET next_block = CASE WHEN more THEN policy.next_block + blocks ELSE 0 END, pruned_total = r.pruned_total + pruned,
             looked_at = CASE WHEN more THEN r.looked_at ELSE now END
       WHERE r.what = prune_batch.what;
    END IF;
  END IF;
  -- The worker that holds the row goes on by itself.
  next_at := policy.looked_at + pause;
END $$;
COMMENT ON FUNCTION evpg.prune_batch(text) IS
  'prunes some blocks of a table according to evpg.retention; returns whether more are to be done now, and when to look '
  'again';

CREATE FUNCTION evpg_set_retention(what text, retention interval) RETURNS void
  AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_set_retention(text, interval) IS
  'lets workers prune commands, inbox, sagas, dead_letters or parked_events after a time; NULL, the default, means never';

CREATE FUNCTION evpg_prune_commands(older_than interval) RETURNS bigint
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN evpg.prune_all('commands', older_than);
COMMENT ON FUNCTION evpg_prune_commands(interval) IS
  'deletes records of commands that are older; a resent command is then executed again; returns their number';

CREATE FUNCTION evpg_prune_inbox(older_than interval) RETURNS bigint
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN evpg.prune_all('inbox', older_than);
COMMENT ON FUNCTION evpg_prune_inbox(interval) IS
  'deletes records of received messages that are older; a redelivered message is then received again; returns their number';

CREATE FUNCTION evpg_prune_sagas(older_than interval) RETURNS bigint
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN evpg.prune_all('sagas', older_than);
COMMENT ON FUNCTION evpg_prune_sagas(interval) IS
  'empties instances that completed longer ago, whose keys stay, so that late events do not start them again; returns '
  'their number';

CREATE FUNCTION evpg_prune_dead_letters(older_than interval) RETURNS bigint
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN evpg.prune_all('dead_letters', older_than);
COMMENT ON FUNCTION evpg_prune_dead_letters(interval) IS
  'deletes dead letters that were resolved longer ago, or empties those that a rebuild must leave out; returns their '
  'number';

CREATE FUNCTION evpg_prune_parked_events(older_than interval) RETURNS bigint
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN evpg.prune_all('parked_events', older_than);
COMMENT ON FUNCTION evpg_prune_parked_events(interval) IS
  'empties events that were given up longer ago, which rebuilds still leave out; returns their number';

-- ------------------------------------------------------------------ traces

-- Takes time and memory in proportion to the events, whatever their causes are: a chain has as many levels as events.
CREATE FUNCTION evpg.trace(correlation_id text, max_count int)
  RETURNS TABLE (depth int, "position" bigint, cause bigint, aggregate_type text, aggregate_id text, version bigint,
    type text, event_id uuid, command_id text, causation_id text, actor text, recorded_at timestamptz)
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  -- of the event with each number, in the order of positions; 0 stands above those without a cause
  positions bigint[];
  causes int[];
  sizes int[];  -- of the tree that begins with it
  depths int[];
  places int[];  -- in the result
  free_places int[];  -- of its next effect
  parent int;
BEGIN
  PERFORM evpg.refuse_null(trace.correlation_id, 'correlation_id');
  IF max_count < 1 THEN
    RAISE EXCEPTION 'max_count must be at least 1' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  -- A cause is an event, or a command, whose first event stands for it.  Only what came earlier is one, whatever a client
  -- wrote, so there is no circle.  Ids are brought together by one sort: a join would compare each with each where the
  -- planner expects few events.
  WITH traced AS (
      SELECT row_number() OVER (ORDER BY e."position") AS n, e."position", e.event_id, e.command_id, e.causation_id
        FROM evpg.event e WHERE e.correlation_id = trace.correlation_id ORDER BY e."position" LIMIT max_count),
    ids AS (
      SELECT causation_id AS id, n AS effect, "position", NULL::bigint AS event, NULL::bigint AS command FROM traced
      UNION ALL SELECT event_id::text, NULL, NULL, n, NULL FROM traced
      UNION ALL SELECT command_id, NULL, NULL, NULL, n FROM traced WHERE command_id IS NOT NULL)
  SELECT coalesce(array_agg("position" ORDER BY effect), '{}'),
         coalesce(array_agg(CASE WHEN event < effect THEN event WHEN command < effect THEN command ELSE 0 END
                            ORDER BY effect), '{}')
    INTO positions, causes
    FROM (SELECT effect, "position", min(event) OVER same_id AS event, min(command) OVER same_id AS command
            FROM ids WINDOW same_id AS (PARTITION BY id)) i
   WHERE effect IS NOT NULL;

  sizes := array_fill(1, ARRAY[cardinality(causes) + 1], ARRAY[0]);
  depths := array_fill(-1, ARRAY[cardinality(causes) + 1], ARRAY[0]);
  places := depths;
  free_places := depths;
  FOR n IN REVERSE cardinality(causes) .. 1 LOOP
    parent := causes[n];
    sizes[parent] := sizes[parent] + sizes[n];
  END LOOP;
  FOR n IN 1 .. cardinality(causes) LOOP
    parent := causes[n];
    depths[n] := depths[parent] + 1;
    places[n] := free_places[parent];
    free_places[n] := places[n] + 1;
    free_places[parent] := places[n] + sizes[n];
  END LOOP;
  RETURN QUERY
    SELECT depths[n], t."position", positions[nullif(causes[n], 0)], t.aggregate_type, t.aggregate_id, t.version, t.type,
           t.event_id, t.command_id, t.causation_id, t.actor, t.recorded_at
      FROM (SELECT row_number() OVER (ORDER BY e."position") AS n, e.*
              FROM evpg.event e WHERE e.correlation_id = trace.correlation_id ORDER BY e."position" LIMIT max_count) t
     ORDER BY places[n];
END $$;
COMMENT ON FUNCTION evpg.trace(text, int) IS 'returns the tree of a correlation_id, for evpg_trace and what is made of it';

CREATE FUNCTION evpg_trace(correlation_id text, max_count int DEFAULT 1000)
  RETURNS TABLE (depth int, "position" bigint, cause bigint, aggregate_type text, aggregate_id text, version bigint,
    type text, event_id uuid, command_id text, causation_id text, actor text, recorded_at timestamptz)
  LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT t.* FROM evpg.trace(correlation_id, max_count) t;
END;
COMMENT ON FUNCTION evpg_trace(text, int) IS
  'returns the first max_count events with a correlation_id (NULL: all) as a tree, causes before their effects: depth, '
  'and position of the cause, which is an event or a command of the trace; the index correlation makes it fast';

-- E'' means the same whatever the session's standard_conforming_strings.
CREATE FUNCTION evpg.diagram_text(lines jsonb, format text) RETURNS text
  LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT string_agg(CASE format
             WHEN 'dot' THEN replace(replace(line, E'\\', E'\\\\'), '"', E'\\"')
             ELSE (SELECT string_agg(CASE WHEN c ~ E'["#<>&`\\\\|%{}]' THEN '#' || ascii(c) || ';' ELSE c END, '' ORDER BY n)
                     FROM string_to_table(line, NULL) WITH ORDINALITY AS x (c, n)) END,
           CASE format WHEN 'dot' THEN E'\\n' ELSE '<br/>' END ORDER BY ordinality)
    FROM jsonb_array_elements_text(lines) WITH ORDINALITY AS x (line) $$;
COMMENT ON FUNCTION evpg.diagram_text(jsonb, text) IS
  'returns lines as a label of a diagram, with what the format may not contain written as it demands';

-- nodes: {"id", "kind", "lines"}, edges: {"from", "to", "lines"}; what has no lines has no label
CREATE FUNCTION evpg.draw(nodes jsonb, edges jsonb, format text) RETURNS text
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  drawn text;
BEGIN
  IF format IS NULL OR format NOT IN ('mermaid', 'dot') THEN
    RAISE EXCEPTION 'there is no format "%"', format
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Use mermaid or dot.';
  END IF;
  SELECT string_agg(CASE format
             WHEN 'dot' THEN format(E'  %s [shape=%s, label="%s"];\n', n->>'id', shape, label)
             ELSE format(E'  %s%s"%s"%s\n', n->>'id', opening, label, closing) END, '' ORDER BY ordinality)
    INTO drawn
    FROM jsonb_array_elements(nodes) WITH ORDINALITY AS x (n)
    JOIN (VALUES ('event', 'box', '[', ']'), ('aggregate', 'box', '[', ']'), ('projection', 'cylinder', '[(', ')]'),
                 ('saga', 'hexagon', '{{', '}}'), ('subscription', 'parallelogram', '[/', '/]'),
                 ('listener', 'oval', '([', '])'), ('interceptor', 'cds', '>', ']')) AS k (kind, shape, opening, closing)
      ON k.kind = n->>'kind',
    LATERAL evpg.diagram_text(n->'lines', format) AS label;
  drawn := concat(drawn, (SELECT string_agg(CASE format
             WHEN 'dot' THEN format(E'  %s -> %s%s;\n', e->>'from', e->>'to', ' [label="' || label || '"]')
             ELSE format(E'  %s -->%s %s\n', e->>'from', '|"' || label || '"|', e->>'to') END, '' ORDER BY ordinality)
    FROM jsonb_array_elements(edges) WITH ORDINALITY AS x (e), LATERAL evpg.diagram_text(e->'lines', format) AS label));
  RETURN CASE format WHEN 'dot' THEN format(E'digraph evpg {\n  rankdir=LR;\n%s}\n', drawn)
                     ELSE E'flowchart LR\n' || drawn END;
END $$;
COMMENT ON FUNCTION evpg.draw(jsonb, jsonb, text) IS 'returns a diagram in the language of Mermaid or Graphviz';

CREATE FUNCTION evpg_trace_diagram(correlation_id text, max_count int DEFAULT 100, format text DEFAULT 'mermaid')
  RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT evpg.draw(
           coalesce(jsonb_agg(jsonb_build_object('id', 'e' || t."position", 'kind', 'event', 'lines',
             jsonb_build_array(format('%s/%s %s', t.aggregate_type, t.aggregate_id, t.version), t.type))
             ORDER BY t."position"), '[]'),
           coalesce(jsonb_agg(jsonb_build_object('from', 'e' || t.cause, 'to', 'e' || t."position") ORDER BY t."position")
             FILTER (WHERE t.cause IS NOT NULL), '[]'), format)
    FROM evpg.trace(correlation_id, max_count) t $$;
COMMENT ON FUNCTION evpg_trace_diagram(text, int, text) IS
  'returns the tree of evpg_trace as a diagram; format is mermaid or dot';

CREATE FUNCTION evpg_diagram(format text DEFAULT 'mermaid')
  RETURNS text LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  WITH consumers AS (
      SELECT 'interceptor' AS kind, name, '' AS mode, aggregate_types, command_types AS types FROM evpg.interceptor
      UNION ALL SELECT 'projection', name, mode, aggregate_types, event_types FROM evpg.projection
      UNION ALL SELECT 'saga', name, mode, aggregate_types, event_types
                  FROM (SELECT DISTINCT ON (name) * FROM evpg.saga ORDER BY name, version DESC) newest
      UNION ALL SELECT 'subscription', name, '', aggregate_types, event_types FROM evpg.subscription
      UNION ALL SELECT 'listener', name, '', aggregate_types, event_types FROM evpg.listener),
    named AS (
      SELECT c.*, left(kind, 2) || row_number() OVER (PARTITION BY kind ORDER BY name) AS id FROM consumers c),
    -- also those of which a consumer knows before they are registered
    aggregates AS (
      SELECT t AS name, 'ag' || row_number() OVER (ORDER BY t) AS id
        FROM (SELECT aggregate_type FROM evpg.aggregate_type
              UNION SELECT unnest(aggregate_types) FROM consumers) x (t)),
    edges AS (
      SELECT c.kind, c.name, CASE c.kind WHEN 'interceptor' THEN c.id ELSE a.id END AS source,
             CASE c.kind WHEN 'interceptor' THEN a.id ELSE c.id END AS target, a.name AS aggregate,
             (SELECT jsonb_build_array(string_agg(t, ', ' ORDER BY n)
                                       || CASE WHEN cardinality(c.types) > 6 THEN ', ...' ELSE '' END)
                FROM unnest(c.types[:6]) WITH ORDINALITY AS x (t, n)) AS lines
        FROM named c JOIN aggregates a ON c.aggregate_types IS NULL OR a.name = ANY (c.aggregate_types))
  SELECT evpg.draw(
           (SELECT coalesce(jsonb_agg(jsonb_build_object('id', id, 'kind', kind, 'lines', lines) ORDER BY rank, name), '[]')
              FROM (SELECT 1 AS rank, 'aggregate' AS kind, name, id, jsonb_build_array(name) AS lines FROM aggregates
                    UNION ALL
                    SELECT 2, kind, name, id, jsonb_build_array(name, concat_ws(', ', kind, nullif(mode, ''))) FROM named
                   ) nodes),
           (SELECT coalesce(jsonb_agg(jsonb_build_object('from', source, 'to', target, 'lines', lines)
                                      ORDER BY kind, name, aggregate), '[]') FROM edges), format) $$;
COMMENT ON FUNCTION evpg_diagram(text) IS
  'returns a diagram of what is registered: aggregates, and the interceptors, projections, sagas, subscriptions and '
  'listeners of their commands and events; format is mermaid or dot';

CREATE FUNCTION evpg_trace_progress(correlation_id text)
  RETURNS TABLE (name text, kind text, mode text, status text, passed bigint, remaining bigint)
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  PERFORM evpg.refuse_null(evpg_trace_progress.correlation_id, 'correlation_id');
  RETURN QUERY
    WITH traced AS MATERIALIZED (
      SELECT e."position" FROM evpg.event e WHERE e.correlation_id = evpg_trace_progress.correlation_id)
    SELECT c.name, c.kind, c.mode, c.status, count(t."position") FILTER (WHERE c.checkpoint IS NULL
             OR t."position" <= c.checkpoint), count(t."position") FILTER (WHERE t."position" > c.checkpoint)
      FROM evpg.stat_consumer c LEFT JOIN traced t ON true
     GROUP BY c.name, c.kind, c.mode, c.status ORDER BY c.kind, c.name;
END $$;
COMMENT ON FUNCTION evpg_trace_progress(text) IS
  'returns how many events with a correlation_id each consumer has passed, whether it takes them or not, and how many are '
  'ahead of it; inline consumers pass events as they are appended';

CREATE FUNCTION evpg_ancestors(event_id uuid, max_count int DEFAULT 100)
  RETURNS SETOF evpg.event LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  wanted uuid := evpg_ancestors.event_id;
  earlier_than bigint;
  event evpg.event;
BEGIN
  PERFORM evpg.refuse_null(wanted::text, 'event_id'), evpg.refuse_null(max_count::text, 'max_count');
  IF max_count < 1 THEN
    RAISE EXCEPTION 'max_count must be at least 1' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  FOR generation IN 1 .. max_count LOOP
    -- a cause came earlier, whatever a client wrote, so that there is no circle
    SELECT * INTO event FROM evpg.event e
     WHERE e.event_id = wanted AND (earlier_than IS NULL OR e."position" < earlier_than);
    EXIT WHEN NOT FOUND;
    RETURN NEXT event;
    -- the id of a command is none of an event
    wanted := CASE WHEN event.causation_id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                   THEN event.causation_id::uuid END;
    earlier_than := event."position";
  END LOOP;
END $$;
COMMENT ON FUNCTION evpg_ancestors(uuid, int) IS
  'returns an event, the event that caused it, and so on, at most max_count; ends where the cause is no event';

-- ------------------------------------------------------------------ sessions, versions

CREATE FUNCTION evpg_version()
  RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C STABLE;
COMMENT ON FUNCTION evpg_version() IS 'returns the versions of extension, library and module ABI';

CREATE FUNCTION evpg_session_stats()
  RETURNS TABLE (aggregate_type text, commands bigint, rejected bigint, conflicts bigint, noops bigint, duplicates bigint,
    events bigint, unknown_events bigint, cache_hits bigint, folds bigint, snapshots bigint)
  AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION evpg_session_stats() IS
  'returns counters of this session by aggregate type, including what was rolled back';

-- ------------------------------------------------------------------ privileges

-- Nothing is granted to PUBLIC.  Which access gives an object is written beside it; what an access includes is in
-- evpg.access_parts().  'owner': no access gives it.  columns: only these of a table; NULL: all.  A function is named
-- without arguments: all functions of the extension with that name are meant, and no others.
CREATE VIEW evpg.access_object (kind, object, columns, given_by) AS VALUES
  ('routine'::pg_catalog.text, 'refuse_change'::pg_catalog.text, NULL::pg_catalog.text[], '{owner}'::pg_catalog.text[]),
  ('routine', 'refuse_writer', NULL, '{owner}'),
  ('routine', 'refuse_null', NULL, '{reader}'),
  ('routine', 'evpg_event', NULL, '{relay,executor}'),
  ('routine', 'evpg_events', NULL, '{relay,executor}'),
  ('routine', 'evpg_stream_append', NULL, '{writer}'),
  ('routine', 'evpg_stream_appends', NULL, '{writer}'),
  ('routine', 'evpg_command', NULL, '{executor}'),
  ('routine', 'evpg_commands', NULL, '{executor}'),
  ('routine', 'evpg_reject', NULL, '{executor}'),
  ('routine', 'evpg_projected', NULL, '{executor}'),
  ('routine', 'evpg_reaction', NULL, '{executor}'),
  ('routine', 'evpg_action_send', NULL, '{executor}'),
  ('routine', 'evpg_action_schedule', NULL, '{executor}'),
  ('routine', 'evpg_action_cancel', NULL, '{executor}'),
  ('routine', 'evpg_action_compensate', NULL, '{executor}'),
  ('routine', 'evpg_action_complete', NULL, '{executor}'),
  ('routine', 'evpg_action_fail', NULL, '{executor}'),
  ('routine', 'evpg_register_aggregate', NULL, '{operator}'),
  ('routine', 'evpg_drop_aggregate', NULL, '{operator}'),
  ('routine', 'evpg_register_interceptor', NULL, '{operator}'),
  ('routine', 'evpg_drop_interceptor', NULL, '{operator}'),
  ('routine', 'evpg_register_listener', NULL, '{operator}'),
  ('routine', 'evpg_drop_listener', NULL, '{operator}'),
  ('routine', 'evpg_register_upcaster', NULL, '{operator}'),
  ('routine', 'evpg_drop_upcaster', NULL, '{operator}'),
  ('routine', 'evpg_check_upcasters', NULL, '{operator}'),
  ('routine', 'evpg_set_context', NULL, '{executor}'),
  ('routine', 'evpg_execute', NULL, '{executor}'),
  ('routine', 'evpg_try_execute', NULL, '{executor}'),
  ('routine', 'evpg_execute_many', NULL, '{executor}'),
  ('routine', 'evpg_condition', NULL, '{reader,executor}'),
  ('routine', 'evpg_condition_after', NULL, '{reader,executor}'),
  ('routine', 'evpg_condition_position', NULL, '{writer}'),
  ('routine', 'evpg_append', NULL, '{writer}'),
  ('routine', 'evpg_append_event', NULL, '{writer}'),
  ('routine', 'evpg_append_many', NULL, '{writer}'),
  ('routine', 'evpg_inject', NULL, '{relay}'),
  ('routine', 'evpg_create_stream', NULL, '{writer}'),
  ('routine', 'evpg_streams', NULL, '{reader}'),
  ('routine', 'evpg_stream_version', NULL, '{reader,executor}'),
  ('routine', 'evpg_read_stream', NULL, '{reader,executor}'),
  ('routine', 'evpg_read_all', NULL, '{reader}'),
  ('routine', 'evpg_stable_position', NULL, '{monitor,reader}'),
  ('routine', 'evpg_log_stable_position', NULL, '{operator}'),
  ('routine', 'evpg_state', NULL, '{reader,executor}'),
  ('routine', 'evpg_boundary_state', NULL, '{executor}'),
  ('routine', 'evpg_take_snapshot', NULL, '{operator}'),
  ('routine', 'evpg_trace', NULL, '{reader}'),
  ('routine', 'evpg_trace_diagram', NULL, '{reader}'),
  ('routine', 'evpg_trace_progress', NULL, '{reader}'),
  ('routine', 'evpg_ancestors', NULL, '{reader}'),
  ('routine', 'trace', NULL, '{reader}'),
  ('routine', 'diagram_text', NULL, '{reader}'),
  ('routine', 'draw', NULL, '{reader}'),
  ('routine', 'evpg_diagram', NULL, '{monitor,reader}'),
  ('routine', 'evpg_version', NULL, '{monitor,reader,subscriber,executor}'),
  ('routine', 'evpg_session_stats', NULL, '{monitor,reader,subscriber,executor}'),
  ('routine', 'evpg_register_projection', NULL, '{operator}'),
  ('routine', 'evpg_drop_projection', NULL, '{operator}'),
  ('routine', 'evpg_projection', NULL, '{reader,executor}'),
  ('routine', 'evpg_projection_changes', NULL, '{reader}'),
  ('routine', 'evpg_put_projection', NULL, '{operator}'),
  ('routine', 'evpg_rebuild_projection', NULL, '{operator}'),
  ('routine', 'evpg_cancel_rebuild', NULL, '{operator}'),
  ('routine', 'evpg_channel', NULL, '{reader,executor}'),
  ('routine', 'evpg_listen', NULL, '{reader,executor}'),
  ('routine', 'evpg_unlisten', NULL, '{reader,executor}'),
  ('routine', 'evpg_event_channel', NULL, '{reader,executor}'),
  ('routine', 'evpg_listen_events', NULL, '{reader,executor}'),
  ('routine', 'evpg_unlisten_events', NULL, '{reader,executor}'),
  ('routine', 'broadcast_counters', NULL, '{monitor,reader}'),
  ('routine', 'evpg_wait_for', NULL, '{reader,executor}'),
  ('routine', 'evpg_wait_for_position', NULL, '{reader,executor}'),
  ('routine', 'evpg_watch_projection', NULL, '{reader,executor}'),
  ('routine', 'evpg_run', NULL, '{operator}'),
  ('routine', 'evpg_pause_consumer', NULL, '{operator}'),
  ('routine', 'evpg_resume_consumer', NULL, '{operator}'),
  ('routine', 'evpg_skip_event', NULL, '{operator}'),
  ('routine', 'evpg_replay_parked', NULL, '{operator}'),
  ('routine', 'evpg_register_saga', NULL, '{operator}'),
  ('routine', 'evpg_drop_saga', NULL, '{operator}'),
  ('routine', 'evpg_saga', NULL, '{reader,executor}'),
  ('routine', 'evpg_rebuild_saga', NULL, '{operator}'),
  ('routine', 'evpg_run_sagas', NULL, '{operator}'),
  ('routine', 'evpg_schedule_command', NULL, '{executor}'),
  ('routine', 'evpg_reschedule_timer', NULL, '{operator}'),
  ('routine', 'evpg_cancel_timer', NULL, '{operator}'),
  ('routine', 'evpg_retry_dead_letter', NULL, '{operator}'),
  ('routine', 'evpg_retry_dead_letters', NULL, '{operator}'),
  ('routine', 'evpg_discard_dead_letter', NULL, '{operator}'),
  ('routine', 'evpg_enable_index', NULL, '{operator}'),
  ('routine', 'evpg_operation_key', NULL, '{relay,executor}'),
  ('routine', 'evpg_prune_commands', NULL, '{operator}'),
  ('routine', 'evpg_prune_sagas', NULL, '{operator}'),
  ('routine', 'evpg_prune_dead_letters', NULL, '{operator}'),
  ('routine', 'evpg_prune_parked_events', NULL, '{operator}'),
  ('routine', 'evpg_receive', NULL, '{executor}'),
  ('routine', 'evpg_receive_message', NULL, '{executor}'),
  ('routine', 'evpg_prune_inbox', NULL, '{operator}'),
  ('routine', 'evpg_set_retention', NULL, '{operator}'),
  ('routine', 'prune', NULL, '{owner}'),
  ('routine', 'prunable_blocks', NULL, '{owner}'),
  ('routine', 'prune_all', NULL, '{owner}'),
  ('routine', 'prune_batch', NULL, '{owner}'),
  ('routine', 'evpg_register_translator', NULL, '{operator}'),
  ('routine', 'evpg_drop_translator', NULL, '{operator}'),
  ('routine', 'evpg_translate', NULL, '{executor}'),
  ('routine', 'evpg_activate_consumers', NULL, '{operator}'),
  ('routine', 'clock_timestamp', NULL, '{monitor,reader,subscriber,executor}'),
  ('routine', 'evpg_set_clock_offset', NULL, '{operator}'),
  ('routine', 'access_parts', NULL, '{owner}'),
  ('routine', 'privileges', NULL, '{owner}'),
  ('routine', 'evpg_grant', NULL, '{owner}'),
  ('routine', 'evpg_revoke', NULL, '{owner}'),
  ('relation', 'event', NULL, '{reader}'),
  ('relation', 'stream', NULL, '{reader}'),
  ('relation', 'stream_head', NULL, '{reader}'),
  ('relation', 'projected_state', NULL, '{reader}'),
  ('relation', 'stat_broadcast', NULL, '{monitor,reader}'),
  ('relation', 'stat_stable_position', NULL, '{monitor,reader}'),
  ('relation', 'stat_consumer', NULL, '{monitor,reader}'),
  ('routine', 'is_activated', NULL, '{monitor,reader,subscriber}'),
  ('routine', 'database_slots', NULL, '{monitor,reader}'),
  ('relation', 'stat_database', NULL, '{monitor,reader}'),
  ('routine', 'worker_slots', NULL, '{monitor,reader}'),
  ('relation', 'stat_worker', NULL, '{monitor,reader}'),
  ('relation', 'progress_rebuild', NULL, '{monitor,reader}'),
  ('relation', 'consumer', '{name,kind,status,checkpoint,start_position,events_total,errors_total,attempts,crashes,'
   'error_position,retry_at,created_at,updated_at,last_error_at,last_sqlstate}', '{monitor}'),
  ('relation', 'parked_event', '{parked_event_id,position,parked_at,attempts,name,sqlstate,skipped_at}', '{monitor}'),
  ('relation', 'saga_instance', '{saga,saga_version,status,version,position,started_at,updated_at}', '{monitor}'),
  ('relation', 'saga_event', '{saga,position,retry_at,dead_letter_id,attempts,cancels}', '{monitor}'),
  ('relation', 'timer', '{timer_id,due_at,scheduled_at,retry_at,dead_letter_id,attempts,cancels,saga,name}', '{monitor}'),
  ('relation', 'dead_letter', '{dead_letter_id,created_at,source_position,timer_id,attempts,saga,label,'
   'sqlstate,code,resolved_at,resolution}', '{monitor}'),
  ('routine', 'evpg_create_subscription', NULL, '{operator}'),
  ('routine', 'evpg_drop_subscription', NULL, '{operator}'),
  ('routine', 'evpg_seek', NULL, '{operator}'),
  ('routine', 'evpg_subscription_channel', NULL, '{subscriber}'),
  ('routine', 'evpg_listen_subscription', NULL, '{subscriber}'),
  ('routine', 'evpg_unlisten_subscription', NULL, '{subscriber}'),
  ('routine', 'evpg_fetch', NULL, '{subscriber}'),
  ('routine', 'evpg_ack', NULL, '{subscriber}'),
  ('routine', 'evpg_nack', NULL, '{subscriber}'),
  ('routine', 'evpg_extend_lease', NULL, '{subscriber}'),
  ('routine', 'evpg_release_lease', NULL, '{subscriber}'),
  ('routine', 'count_events', NULL, '{monitor,reader,subscriber}'),
  ('routine', 'partition_of', NULL, '{monitor,reader,subscriber}'),
  ('relation', 'stat_subscription', NULL, '{monitor,reader,subscriber}'),
  ('relation', 'subscription', NULL, '{operator}'),
  ('relation', 'subscription_lease', NULL, '{operator}'),
  ('relation', 'subscription_partition', NULL, '{operator}'),
  ('relation', 'consumer', NULL, '{operator}'),
  ('relation', 'parked_event', NULL, '{operator}'),
  ('relation', 'rebuild', NULL, '{operator}'),
  ('relation', 'rebuild_part', NULL, '{operator}'),
  ('relation', 'old_build', NULL, '{operator}'),
  ('relation', 'projection_state', NULL, '{operator}'),
  ('relation', 'saga', NULL, '{operator}'),
  ('relation', 'saga_instance', NULL, '{operator}'),
  ('relation', 'saga_event', NULL, '{operator}'),
  ('relation', 'saga_total', NULL, '{operator}'),
  ('relation', 'timer', NULL, '{operator}'),
  ('relation', 'dead_letter', NULL, '{operator}'),
  ('relation', 'aggregate_type', NULL, '{operator}'),
  ('relation', 'command_record', NULL, '{operator}'),
  ('relation', 'snapshot', NULL, '{operator}'),
  ('relation', 'interceptor', NULL, '{operator}'),
  ('relation', 'listener', NULL, '{operator}'),
  ('relation', 'upcaster', NULL, '{operator}'),
  ('relation', 'projection', NULL, '{operator}'),
  ('relation', 'activation', NULL, '{operator}'),
  ('relation', 'clock', NULL, '{operator}'),
  ('relation', 'inbox', NULL, '{operator}'),
  ('relation', 'translator', NULL, '{operator}'),
  ('relation', 'optional_index', NULL, '{operator}'),
  ('relation', 'retention', NULL, '{monitor}'),
  ('relation', 'event_log', NULL, '{owner}'),
  ('relation', 'fence', NULL, '{owner}'),
  ('relation', 'access_object', NULL, '{owner}');
COMMENT ON VIEW evpg.access_object IS 'shows which accesses of evpg_grant() need an object of the extension';

CREATE FUNCTION evpg.access_parts(access text) RETURNS text[]
  LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  CASE access
    WHEN 'monitor' THEN RETURN '{monitor}';
    WHEN 'reader' THEN RETURN '{reader}';
    WHEN 'relay' THEN RETURN '{reader,relay}';
    WHEN 'subscriber' THEN RETURN '{subscriber}';
    WHEN 'executor' THEN RETURN '{executor}';
    WHEN 'writer' THEN RETURN '{reader,executor,writer}';
    WHEN 'operator' THEN RETURN '{monitor,reader,relay,subscriber,executor,writer,operator}';
    ELSE
      RAISE EXCEPTION 'unknown access "%"', access USING ERRCODE = 'invalid_parameter_value',
        HINT = 'Use monitor, reader, relay, subscriber, executor, writer or operator.';
  END CASE;
END $$;
COMMENT ON FUNCTION evpg.access_parts(text) IS 'returns the accesses that an access includes';

-- privilege is written as GRANT takes it; acl is the object's present access control list.
CREATE FUNCTION evpg.privileges(access text, OUT privilege text, OUT acl aclitem[]) RETURNS SETOF record
  LANGUAGE plpgsql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  parts text[] := evpg.access_parts(access);
BEGIN
  RETURN QUERY
    SELECT format('USAGE ON SCHEMA %I', n.nspname), n.nspacl FROM pg_namespace n
     WHERE n.nspname = 'evpg' OR n.oid = (SELECT e.extnamespace FROM pg_extension e WHERE e.extname = 'evpg')
    UNION ALL
    SELECT 'EXECUTE ON ROUTINE ' || p.oid::regprocedure, p.proacl
      FROM evpg.access_object o JOIN pg_proc p ON p.proname = o.object
           JOIN pg_depend d ON d.objid = p.oid JOIN pg_extension e ON e.oid = d.refobjid
     WHERE o.kind = 'routine' AND o.given_by && parts
       AND d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass
       AND d.deptype = 'e' AND e.extname = 'evpg'
    UNION ALL
    SELECT format('SELECT ON TABLE evpg.%I', c.relname), c.relacl
      FROM evpg.access_object o JOIN pg_class c ON c.relname = o.object AND c.relnamespace = 'evpg'::regnamespace
     WHERE o.kind = 'relation' AND o.columns IS NULL AND o.given_by && parts
    UNION ALL
    SELECT format('SELECT (%I) ON TABLE evpg.%I', a.attname, c.relname), a.attacl
      FROM evpg.access_object o JOIN pg_class c ON c.relname = o.object AND c.relnamespace = 'evpg'::regnamespace
           JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = ANY (o.columns)
     WHERE o.kind = 'relation' AND o.given_by && parts;
END $$;
COMMENT ON FUNCTION evpg.privileges(text) IS 'returns the privileges that evpg_grant() grants for an access';

-- Statements are concatenated, so that no name is read as a format.  The caller must be able to grant: the owner of the
-- extension, or a superuser.
CREATE FUNCTION evpg_grant(grantee regrole, access text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  statement text;
BEGIN
  PERFORM evpg.refuse_null(grantee::text, 'grantee'), evpg.refuse_null(access, 'access');
  FOR statement IN SELECT 'GRANT ' || p.privilege || ' TO ' || grantee FROM evpg.privileges(access) p LOOP
    EXECUTE statement;
  END LOOP;
END $$;
COMMENT ON FUNCTION evpg_grant(regrole, text) IS
  'grants a role an access: monitor (progress and errors), reader (read), relay (read and inject), subscriber '
  '(consume subscriptions), executor (execute commands), writer (read, execute and append) or operator (all of these, and '
  'administration)';

-- Privileges that another access of the role needs stay.  A role has an access if it has all privileges that belong to it.
CREATE FUNCTION evpg_revoke(grantee regrole, access text) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  parts text[] := evpg.access_parts(access);
  kept text[];
  statement text;
BEGIN
  PERFORM evpg.refuse_null(grantee::text, 'grantee'), evpg.refuse_null(access, 'access');
  SELECT array_agg(other) INTO kept FROM unnest(evpg.access_parts('operator')) other
   WHERE NOT evpg.access_parts(other) <@ parts
     AND NOT EXISTS (SELECT FROM evpg.privileges(other) p
                      WHERE NOT EXISTS (SELECT FROM aclexplode(p.acl) a
                                         WHERE a.grantee = evpg_revoke.grantee
                                           AND a.privilege_type = split_part(p.privilege, ' ', 1)));
  FOR statement IN
    SELECT 'REVOKE ' || p.privilege || ' FROM ' || grantee FROM evpg.privileges(access) p
     WHERE p.privilege NOT IN (SELECT k.privilege FROM unnest(kept) other, evpg.privileges(other) k)
  LOOP
    EXECUTE statement;
  END LOOP;
  IF kept IS NOT NULL THEN
    RAISE NOTICE 'role % keeps what it needs as %', grantee, array_to_string(kept, ', ');
  END IF;
END $$;
COMMENT ON FUNCTION evpg_revoke(regrole, text) IS
  'revokes an access that evpg_grant() granted, except what another access of the role needs';

-- Every table refuses rows that neither evpg nor a superuser writes.  Tables that evpg writes in
-- subtransactions have a trigger for each row: one for each statement would leave 8 kB in each of the many subtransactions
-- of a transaction.  Logical replication fires triggers for rows alone, so tables with work for workers, and those that
-- sessions keep copies of, have one, too.
DO $$
DECLARE
  name pg_catalog.name;
  statement pg_catalog.text;
  of_rows pg_catalog.text;
BEGIN
  FOR name IN SELECT c.relname FROM pg_catalog.pg_class c
               WHERE c.relnamespace OPERATOR(pg_catalog.=) 'evpg'::pg_catalog.regnamespace::pg_catalog.oid
                 AND c.relkind OPERATOR(pg_catalog.=) 'r'::pg_catalog."char"
  LOOP
    of_rows := NULL;
    statement := 'INSERT OR UPDATE OR DELETE OR TRUNCATE';
    IF name OPERATOR(pg_catalog.=) ANY (
         '{command_record,snapshot,inbox,saga_event,saga_instance,saga_total,timer,dead_letter}'::pg_catalog.name[]) THEN
      of_rows := 'INSERT OR UPDATE OR DELETE';
      statement := 'TRUNCATE';
    ELSIF name OPERATOR(pg_catalog.=) ANY ('{event_log,stream}'::pg_catalog.name[]) THEN
      statement := 'INSERT';
    ELSIF name OPERATOR(pg_catalog.=) ANY ('{consumer,rebuild,old_build,retention}'::pg_catalog.name[]) THEN
      of_rows := 'INSERT';
    ELSIF name OPERATOR(pg_catalog.=) ANY (
            '{aggregate_type,interceptor,translator,upcaster,projection,saga,subscription,listener,clock}'
            ::pg_catalog.name[]) THEN
      of_rows := 'INSERT OR UPDATE OR DELETE';
    END IF;
    IF of_rows IS NOT NULL THEN
      EXECUTE pg_catalog.format(
        'CREATE TRIGGER evpg_row_writer BEFORE %s ON evpg.%I '
        'FOR EACH ROW EXECUTE FUNCTION evpg.refuse_writer()', of_rows, name);
      EXECUTE pg_catalog.format('ALTER TABLE evpg.%I ENABLE ALWAYS TRIGGER evpg_row_writer', name);
    END IF;
    EXECUTE pg_catalog.format(
      'CREATE TRIGGER evpg_writer BEFORE %s ON evpg.%I '
      'FOR EACH STATEMENT EXECUTE FUNCTION evpg.refuse_writer()', statement, name);
    EXECUTE pg_catalog.format('ALTER TABLE evpg.%I ENABLE ALWAYS TRIGGER evpg_writer', name);
  END LOOP;
END $$;

-- Revokes from every role but the owner what PostgreSQL or ALTER DEFAULT PRIVILEGES granted: a role that may write a table,
-- draw a position or create a trigger here could do anything.  Types stay usable by PUBLIC, since functions of users have
-- them as arguments.
DO $$
DECLARE
  statement pg_catalog.text;
BEGIN
  FOR statement IN
    SELECT pg_catalog.format('REVOKE ALL ON %s %s FROM %s', o.kind, o.name,
                             CASE WHEN a.grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid THEN 'PUBLIC'
                                  ELSE a.grantee::pg_catalog.regrole::pg_catalog.text END)
      FROM (SELECT 'ROUTINE' AS kind, p.oid::pg_catalog.regprocedure::pg_catalog.text AS name, p.proowner AS owner,
                   COALESCE(p.proacl, pg_catalog.acldefault('f', p.proowner)) AS acl,
                   'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid AS class, p.oid AS id
              FROM pg_catalog.pg_proc p
            UNION ALL
            SELECT CASE WHEN c.relkind OPERATOR(pg_catalog.=) 'S'::pg_catalog."char" THEN 'SEQUENCE' ELSE 'TABLE' END,
                   c.oid::pg_catalog.regclass::pg_catalog.text, c.relowner, c.relacl,
                   'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid, c.oid
              FROM pg_catalog.pg_class c
            UNION ALL
            SELECT 'TYPE', t.oid::pg_catalog.regtype::pg_catalog.text, t.typowner, t.typacl,
                   'pg_catalog.pg_type'::pg_catalog.regclass::pg_catalog.oid, t.oid
              FROM pg_catalog.pg_type t
            UNION ALL
            SELECT 'SCHEMA', pg_catalog.quote_ident(n.nspname), n.nspowner, n.nspacl,
                   'pg_catalog.pg_namespace'::pg_catalog.regclass::pg_catalog.oid, n.oid
              FROM pg_catalog.pg_namespace n) o
           JOIN pg_catalog.pg_depend d ON d.classid OPERATOR(pg_catalog.=) o.class AND d.objid OPERATOR(pg_catalog.=) o.id
                AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass::pg_catalog.oid
                AND d.deptype OPERATOR(pg_catalog.=) 'e'::pg_catalog."char"
           JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
                AND e.extname OPERATOR(pg_catalog.=) 'evpg'::pg_catalog.name
           CROSS JOIN LATERAL pg_catalog.aclexplode(o.acl) a
     WHERE a.grantee OPERATOR(pg_catalog.<>) o.owner
    UNION ALL
    SELECT pg_catalog.format('GRANT USAGE ON TYPE %s TO PUBLIC', t.oid::pg_catalog.regtype)
      FROM pg_catalog.pg_type t
           JOIN pg_catalog.pg_depend d
                ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_type'::pg_catalog.regclass::pg_catalog.oid
                AND d.objid OPERATOR(pg_catalog.=) t.oid
                AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass::pg_catalog.oid
                AND d.deptype OPERATOR(pg_catalog.=) 'e'::pg_catalog."char"
           JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
                AND e.extname OPERATOR(pg_catalog.=) 'evpg'::pg_catalog.name
     WHERE t.typacl IS NOT NULL
  LOOP
    EXECUTE statement;
  END LOOP;
END $$;
