/*-------------------------------------------------------------------------
 *
 * statement.c
 *		evpg's own SQL statements, prepared once a session over SPI.
 *
 * Every name is qualified, and the caller has pinned evpg's search_path
 * (EvpgEnter), so a plan is analysed once.  Between EvpgPlanRun and
 * EvpgPlanDone the result is in SPI's memory: copy out what outlives it.  Runs
 * may nest, since user functions run in between, so every run is its own SPI
 * connection.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/statement.h"
#include "catalog/pg_type.h"
#include "jit/jit.h"
#include "optimizer/cost.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"

typedef struct PlanText
{
	const char *text;
	int			nargs;
	Oid			args[24];
} PlanText;

/* Whether e, what an instance has before it, need not wait: for a dead letter, for its next attempt, for the saga to be resumed. */
#define EVENT_IS_DUE \
	"e.dead_letter_id IS NULL AND (e.retry_at IS NULL OR e.retry_at OPERATOR(pg_catalog.<=) $2) AND NOT EXISTS (SELECT FROM " \
	"evpg.timer d WHERE d.saga OPERATOR(pg_catalog.=) e.saga AND d.key OPERATOR(pg_catalog.=) e.key AND d.dead_letter_id IS " \
	"NOT NULL) AND EXISTS (SELECT FROM evpg.consumer c WHERE c.name OPERATOR(pg_catalog.=) e.saga AND c.status " \
	"OPERATOR(pg_catalog.=) 'running' AND c.retry_at IS NULL)"

static const PlanText texts[EVPG_PLAN_COUNT] = {
	[EVPG_PLAN_AGGREGATE_DELETE] = {
		"DELETE FROM evpg.aggregate_type WHERE aggregate_type OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_AGGREGATE_NAMES] = {
		"SELECT aggregate_type FROM evpg.aggregate_type",
		0, {0}
	},
	[EVPG_PLAN_AGGREGATE_READ] = {
		"SELECT library, symbol, handler, reducer, invariant, initial_state, snapshot_every, snapshot_keep,"
		" reducer_version, generation, search_path, fold_generation, registered_by"
		" FROM evpg.aggregate_type WHERE aggregate_type OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_AGGREGATE_WRITE] = {
		"INSERT INTO evpg.aggregate_type AS a (aggregate_type, library, symbol, handler, reducer, invariant,"
		" initial_state, snapshot_every, snapshot_keep, reducer_version, search_path, registered_by,"
		" generation, fold_generation, registered_at)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13, evpg.clock_timestamp())"
		" ON CONFLICT (aggregate_type) DO UPDATE SET library = excluded.library, symbol = excluded.symbol,"
		" handler = excluded.handler, reducer = excluded.reducer, invariant = excluded.invariant,"
		" initial_state = excluded.initial_state, snapshot_every = excluded.snapshot_every,"
		" snapshot_keep = excluded.snapshot_keep, reducer_version = excluded.reducer_version,"
		" search_path = excluded.search_path, registered_by = excluded.registered_by,"
		" registered_at = excluded.registered_at,"
		" generation = GREATEST(excluded.generation, a.generation OPERATOR(pg_catalog.+) 1),"
		" fold_generation = CASE WHEN (a.library, a.symbol, a.reducer, a.initial_state)"
		" IS DISTINCT FROM (excluded.library, excluded.symbol, excluded.reducer, excluded.initial_state)"
		" THEN GREATEST(excluded.generation, a.generation OPERATOR(pg_catalog.+) 1) ELSE a.fold_generation END"
		" WHERE (a.library, a.symbol, a.handler, a.reducer, a.invariant, a.initial_state, a.snapshot_every,"
		" a.snapshot_keep, a.reducer_version, a.search_path, a.registered_by)"
		" IS DISTINCT FROM (excluded.library, excluded.symbol, excluded.handler, excluded.reducer,"
		" excluded.invariant, excluded.initial_state, excluded.snapshot_every, excluded.snapshot_keep,"
		" excluded.reducer_version, excluded.search_path, excluded.registered_by)",
		13, {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID, INT4OID, INT4OID, INT4OID,
		TEXTOID, TEXTOID, INT8OID}
	},
	[EVPG_PLAN_COMMAND_READ] = {
		"SELECT first_version, last_version, payload_hash FROM evpg.command_record"
		" WHERE stream_id OPERATOR(pg_catalog.=) $1 AND command_id OPERATOR(pg_catalog.=) $2",
		2, {INT8OID, TEXTOID}
	},
	[EVPG_PLAN_COMMAND_WRITE] = {
		"INSERT INTO evpg.command_record (stream_id, command_id, first_version, last_version, payload_hash, recorded_at)"
		" VALUES ($1, $2, $3, $4, $5, $6)",
		6, {INT8OID, TEXTOID, INT8OID, INT8OID, BYTEAOID, TIMESTAMPTZOID}
	},
	[EVPG_PLAN_CONSUMER_ADVANCE] = {
		"UPDATE evpg.consumer SET checkpoint = $2, events_total = events_total OPERATOR(pg_catalog.+) $3,"
		" proven = proven OPERATOR(pg_catalog.+) $3, crashes = 0,"
		" updated_at = evpg.clock_timestamp(),"
		" attempts = CASE WHEN error_position OPERATOR(pg_catalog.>) $2 THEN attempts ELSE 0 END,"
		" retry_at = CASE WHEN error_position OPERATOR(pg_catalog.>) $2 THEN retry_at END,"
		" error_position = CASE WHEN error_position OPERATOR(pg_catalog.>) $2 THEN error_position END"
		" WHERE name OPERATOR(pg_catalog.=) $1",
		3, {TEXTOID, INT8OID, INT8OID}
	},
	[EVPG_PLAN_CONSUMER_CREATE] = {
		"INSERT INTO evpg.consumer (name, kind, checkpoint, start_position, server_start) VALUES ($1, $2, $3, $3, $4)",
		4, {TEXTOID, TEXTOID, INT8OID, INT8OID}
	},
	[EVPG_PLAN_CONSUMER_DELETE] = {
		"DELETE FROM evpg.consumer WHERE name OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_CONSUMER_FAIL] = {
		"UPDATE evpg.consumer SET errors_total = errors_total OPERATOR(pg_catalog.+) (NOT $9)::pg_catalog.int4,"
		" error_position = NULLIF($2, 0), attempts = $3, retry_at = $4, crashes = 0,"
		" status = CASE WHEN $5 THEN 'stopped' ELSE status END, last_error = $6, last_sqlstate = $7,"
		" last_context = $8, last_error_at = evpg.clock_timestamp(), updated_at = evpg.clock_timestamp()"
		" WHERE name OPERATOR(pg_catalog.=) $1",
		9, {TEXTOID, INT8OID, INT4OID, TIMESTAMPTZOID, BOOLOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID}
	},
	[EVPG_PLAN_CONSUMER_LIST] = {
		"SELECT name FROM evpg.consumer WHERE kind OPERATOR(pg_catalog.=) $1"
		" AND status OPERATOR(pg_catalog.=) 'running' ORDER BY name",
		1, {TEXTOID}
	},
	[EVPG_PLAN_CONSUMER_READ] = {
		"SELECT status OPERATOR(pg_catalog.=) 'running', checkpoint, error_position, attempts, retry_at,"
		" last_error_at, start_position, server_start, cautious_to, proven, crashes,"
		" status OPERATOR(pg_catalog.=) 'stopped' FROM evpg.consumer WHERE name OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_CONSUMER_RESTART] = {
		"UPDATE evpg.consumer SET checkpoint = $2, error_position = NULL, attempts = 0, retry_at = NULL, crashes = 0,"
		" status = CASE status WHEN 'stopped' THEN 'running' ELSE status END, updated_at = evpg.clock_timestamp()"
		" WHERE name OPERATOR(pg_catalog.=) $1",
		2, {TEXTOID, INT8OID}
	},
	[EVPG_PLAN_CONSUMER_RUN] = {
		"UPDATE evpg.consumer SET status = CASE WHEN $2 THEN 'running' ELSE 'paused' END, attempts = 0, retry_at = NULL, crashes = 0,"
		" updated_at = evpg.clock_timestamp()"
		" WHERE name OPERATOR(pg_catalog.=) $1"
		" AND (status OPERATOR(pg_catalog.<>) CASE WHEN $2 THEN 'running' ELSE 'paused' END OR $2 AND retry_at IS NOT NULL)",
		2, {TEXTOID, BOOLOID}
	},
	[EVPG_PLAN_CONSUMER_TAKE_BACK] = {
		"UPDATE evpg.consumer SET server_start = 0, crashes = crashes OPERATOR(pg_catalog.-) 1"
		" WHERE name OPERATOR(pg_catalog.=) $1 AND server_start OPERATOR(pg_catalog.=) $2 AND crashes OPERATOR(pg_catalog.>) 0",
		2, {TEXTOID, INT8OID}
	},
	[EVPG_PLAN_CONSUMER_TRY] = {
		"UPDATE evpg.consumer SET proven = CASE WHEN server_start OPERATOR(pg_catalog.=) $2 THEN proven ELSE 0 END,"
		" server_start = $2, cautious_to = $3, crashes = crashes OPERATOR(pg_catalog.+) 1"
		" WHERE name OPERATOR(pg_catalog.=) $1",
		3, {TEXTOID, INT8OID, INT8OID}
	},
	[EVPG_PLAN_EVENTS_TYPES] = {
		"SELECT DISTINCT type FROM evpg.event_log WHERE \"position\" OPERATOR(pg_catalog.>) $1",
		1, {INT8OID}
	},
	[EVPG_PLAN_EVENTS_TAGGED] = {
		"SELECT * FROM evpg.event e WHERE e.tags OPERATOR(pg_catalog.&&) $1 AND e.\"position\" OPERATOR(pg_catalog.>) $2"
		" AND e.\"position\" OPERATOR(pg_catalog.<=) $3"
		" AND ($4 IS NULL OR e.aggregate_type OPERATOR(pg_catalog.=) ANY ($4))"
		" AND ($5 IS NULL OR e.type OPERATOR(pg_catalog.=) ANY ($5))"
		" ORDER BY e.\"position\" LIMIT $6",
		6, {TEXTARRAYOID, INT8OID, INT8OID, TEXTARRAYOID, TEXTARRAYOID, INT8OID}
	},
	[EVPG_PLAN_EXTENSION_VERSION] = {
		"SELECT extversion FROM pg_catalog.pg_extension WHERE extname OPERATOR(pg_catalog.=) 'evpg'",
		0, {0}
	},
	[EVPG_PLAN_CLOCK_WRITE] = {
		"INSERT INTO evpg.clock (clock_offset) VALUES ($1) ON CONFLICT (one) DO UPDATE SET clock_offset = excluded.clock_offset",
		1, {INT8OID}
	},
	[EVPG_PLAN_HOME_DRAW] = {
		"SELECT pg_catalog.count(pg_catalog.nextval(s.name::pg_catalog.regclass)) FROM pg_catalog.unnest("
		"'{evpg.event_position,evpg.stream_stream_id_seq,evpg.projection_build,evpg.timer_timer_id_seq,"
		"evpg.dead_letter_dead_letter_id_seq,evpg.parked_event_parked_event_id_seq}'::pg_catalog.text[]) AS s (name),"
		" pg_catalog.generate_series(1, 33)"
		" WHERE pg_catalog.pg_sequence_last_value(s.name::pg_catalog.regclass) IS NOT NULL",
		0, {0}
	},

	/*
	 * Whether rows have numbers that a sequence has not drawn; with $1 the
	 * sequences are set to them.
	 */
	[EVPG_PLAN_HOME_AHEAD] = {
		"SELECT s.sequence::pg_catalog.oid, CASE WHEN $1 THEN pg_catalog.setval(s.sequence, s.highest) END FROM (VALUES"
		" ('evpg.event_position'::pg_catalog.regclass, GREATEST((SELECT pg_catalog.max(\"position\") FROM evpg.event_log),"
		" (SELECT pg_catalog.max(\"position\") FROM evpg.projection_state),"
		" (SELECT pg_catalog.max(rebuilt_position) FROM evpg.projection), (SELECT pg_catalog.max(checkpoint) FROM evpg.consumer))),"
		" ('evpg.stream_stream_id_seq', (SELECT pg_catalog.max(stream_id) FROM evpg.stream)),"
		" ('evpg.projection_build', GREATEST((SELECT pg_catalog.max(build) FROM evpg.projection),"
		" (SELECT pg_catalog.max(build) FROM evpg.rebuild), (SELECT pg_catalog.max(build) FROM evpg.old_build),"
		" (SELECT pg_catalog.max(build) FROM evpg.projection_state))),"
		" ('evpg.timer_timer_id_seq', (SELECT pg_catalog.max(timer_id) FROM evpg.timer)),"
		" ('evpg.dead_letter_dead_letter_id_seq', (SELECT pg_catalog.max(dead_letter_id) FROM evpg.dead_letter)),"
		" ('evpg.parked_event_parked_event_id_seq', (SELECT pg_catalog.max(parked_event_id) FROM evpg.parked_event)))"
		" AS s (sequence, highest) WHERE s.highest OPERATOR(pg_catalog.>) COALESCE(pg_catalog.pg_sequence_last_value(s.sequence), 0)",
		1, {BOOLOID}
	},
	[EVPG_PLAN_HOME_READ] = {
		"SELECT pg_catalog.bool_and(system_identifier OPERATOR(pg_catalog.=) $1 AND database OPERATOR(pg_catalog.=) $2)"
		" FROM evpg.meta",
		2, {INT8OID, OIDOID}
	},
	[EVPG_PLAN_HOME_WRITE] = {
		"WITH away AS (DELETE FROM evpg.meta) INSERT INTO evpg.meta (system_identifier, database) VALUES ($1, $2)",
		2, {INT8OID, OIDOID}
	},
	[EVPG_PLAN_INBOX_WRITE] = {
		"INSERT INTO evpg.inbox (source, message_key) VALUES ($1, $2) ON CONFLICT (source, message_key) DO NOTHING",
		2, {TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_INTERCEPTOR_DELETE] = {
		"DELETE FROM evpg.interceptor WHERE name OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_INTERCEPTOR_READ] = {
		"SELECT name, interceptor, aggregate_types, command_types, search_path, registered_by"
		" FROM evpg.interceptor ORDER BY priority, name",
		0, {0}
	},
	[EVPG_PLAN_INTERCEPTOR_WRITE] = {
		"INSERT INTO evpg.interceptor AS i (name, interceptor, aggregate_types, command_types, priority, search_path,"
		" registered_by, registered_at) VALUES ($1, $2, $3, $4, $5, $6, $7, evpg.clock_timestamp())"
		" ON CONFLICT (name) DO UPDATE SET interceptor = excluded.interceptor,"
		" aggregate_types = excluded.aggregate_types, command_types = excluded.command_types,"
		" priority = excluded.priority, search_path = excluded.search_path, registered_by = excluded.registered_by,"
		" registered_at = excluded.registered_at"
		" WHERE (i.interceptor, i.aggregate_types, i.command_types, i.priority, i.search_path, i.registered_by)"
		" IS DISTINCT FROM (excluded.interceptor, excluded.aggregate_types, excluded.command_types,"
		" excluded.priority, excluded.search_path, excluded.registered_by)",
		7, {TEXTOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID, INT4OID, TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_PARKED_CLEAR] = {
		"DELETE FROM evpg.parked_event WHERE name OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_PARKED_DELETE] = {
		"DELETE FROM evpg.parked_event WHERE parked_event_id OPERATOR(pg_catalog.=) $1",
		1, {INT8OID}
	},
	[EVPG_PLAN_PARKED_FAIL] = {
		"UPDATE evpg.parked_event SET error = $2, sqlstate = $3, context = $4, attempts = attempts OPERATOR(pg_catalog.+) 1"
		" WHERE parked_event_id OPERATOR(pg_catalog.=) $1",
		4, {INT8OID, TEXTOID, TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_PARKED_LIST] = {
		"SELECT \"position\", key, skip_reason IS NOT NULL, parked_event_id FROM evpg.parked_event"
		" WHERE name OPERATOR(pg_catalog.=) $1 AND (skip_reason IS NULL OR \"position\" OPERATOR(pg_catalog.>) $2)"
		" ORDER BY \"position\", key",
		2, {TEXTOID, INT8OID}
	},
	[EVPG_PLAN_PARKED_SKIP] = {
		"UPDATE evpg.parked_event SET skip_reason = $3, skipped_by = $4, skipped_at = evpg.clock_timestamp()"
		" WHERE name OPERATOR(pg_catalog.=) $1 AND \"position\" OPERATOR(pg_catalog.=) $2 AND skip_reason IS NULL",
		4, {TEXTOID, INT8OID, TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_PARKED_SKIP_NEW] = {
		"INSERT INTO evpg.parked_event (name, \"position\", key, attempts, error, sqlstate, context, skip_reason, skipped_by, skipped_at)"
		" SELECT $1, $2, $9, COALESCE($5, c.attempts, 0), COALESCE($6, c.last_error), COALESCE($7, c.last_sqlstate),"
		" CASE WHEN $6 IS NULL THEN c.last_context ELSE $8 END, $3, $4, evpg.clock_timestamp()"
		" FROM (SELECT) AS one"
		" LEFT JOIN evpg.consumer c ON c.name OPERATOR(pg_catalog.=) $1 AND c.error_position OPERATOR(pg_catalog.=) $2"
		" WHERE NOT EXISTS (SELECT FROM evpg.parked_event p WHERE p.name OPERATOR(pg_catalog.=) $1"
		" AND p.\"position\" OPERATOR(pg_catalog.=) $2 AND p.skip_reason IS NOT NULL"
		" AND (p.key OPERATOR(pg_catalog.=) $9 OR p.key IS NULL))",
		9, {TEXTOID, INT8OID, TEXTOID, TEXTOID, INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_PARKED_UNPARK] = {
		"DELETE FROM evpg.parked_event WHERE name OPERATOR(pg_catalog.=) $1"
		" AND ($2 IS NULL OR key OPERATOR(pg_catalog.=) $2) AND skip_reason IS NULL",
		2, {TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_PARKED_WRITE] = {
		"INSERT INTO evpg.parked_event (name, \"position\", key, attempts, error, sqlstate, context) VALUES ($1, $2, $3, $4, $5, $6, $7)",
		7, {TEXTOID, INT8OID, TEXTOID, INT4OID, TEXTOID, TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_PRUNE_BATCH] = {
		"SELECT more, next_at FROM evpg.prune_batch($1)",
		1, {TEXTOID}
	},
	[EVPG_PLAN_RETENTION_CLEAR] = {
		"DELETE FROM evpg.retention WHERE what OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_RETENTION_LIST] = {
		"SELECT what FROM evpg.retention ORDER BY what",
		0, {0}
	},
	[EVPG_PLAN_RETENTION_WRITE] = {
		"INSERT INTO evpg.retention (what, retention) VALUES ($1, $2) ON CONFLICT (what) DO UPDATE"
		" SET retention = excluded.retention, looked_at = excluded.looked_at, next_block = excluded.next_block",
		2, {TEXTOID, INTERVALOID}
	},
	[EVPG_PLAN_PROJECTION_DELETE] = {
		"DELETE FROM evpg.projection WHERE name OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_PROJECTION_READ] = {
		"SELECT name, library, symbol, reducer, handler, key_function, key_path, constant_key, aggregate_types,"
		" event_types, tags, initial_state, broadcast, event_name, search_path, mode, on_error, max_attempts, reset, tables,"
		" start_position, version, build, generation_base, registered_by FROM evpg.projection ORDER BY name",
		0, {0}
	},
	[EVPG_PLAN_PROJECTION_WRITE] = {
		"INSERT INTO evpg.projection AS p (name, library, symbol, reducer, handler, key_function, key_path,"
		" constant_key, aggregate_types, event_types, tags, initial_state, broadcast, event_name, search_path,"
		" registered_by, mode, on_error, max_attempts, reset, tables, start_position, version, registered_at)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23,"
		" evpg.clock_timestamp())"
		" ON CONFLICT (name) DO UPDATE SET library = excluded.library, symbol = excluded.symbol,"
		" reducer = excluded.reducer, handler = excluded.handler, key_function = excluded.key_function,"
		" key_path = excluded.key_path, constant_key = excluded.constant_key,"
		" aggregate_types = excluded.aggregate_types, event_types = excluded.event_types, tags = excluded.tags,"
		" initial_state = excluded.initial_state, broadcast = excluded.broadcast, event_name = excluded.event_name,"
		" search_path = excluded.search_path, registered_by = excluded.registered_by,"
		" registered_at = excluded.registered_at, mode = excluded.mode, on_error = excluded.on_error,"
		" max_attempts = excluded.max_attempts, reset = excluded.reset, tables = excluded.tables,"
		" start_position = excluded.start_position, version = excluded.version"
		" WHERE (p.library, p.symbol, p.reducer, p.handler, p.key_function, p.key_path::pg_catalog.text, p.constant_key,"
		" p.aggregate_types, p.event_types, p.tags, p.initial_state, p.broadcast, p.event_name, p.search_path,"
		" p.mode, p.on_error, p.max_attempts, p.reset, p.tables, p.start_position, p.version, p.registered_by)"
		" IS DISTINCT FROM (excluded.library, excluded.symbol, excluded.reducer, excluded.handler,"
		" excluded.key_function, excluded.key_path::pg_catalog.text, excluded.constant_key, excluded.aggregate_types,"
		" excluded.event_types, excluded.tags, excluded.initial_state, excluded.broadcast, excluded.event_name,"
		" excluded.search_path, excluded.mode, excluded.on_error, excluded.max_attempts, excluded.reset, excluded.tables,"
		" excluded.start_position, excluded.version, excluded.registered_by)",
		23, {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONPATHOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID,
			TEXTARRAYOID, JSONBOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT4OID, TEXTOID, TEXTARRAYOID,
		INT8OID, INT4OID}
	},
	[EVPG_PLAN_PROJECTION_EVENTS] = {
		"SELECT * FROM evpg.event e"
		" WHERE ($1 IS NULL OR e.aggregate_id OPERATOR(pg_catalog.=) $1)"
		" AND ($2 IS NULL OR e.aggregate_type OPERATOR(pg_catalog.=) ANY ($2))"
		" AND ($3 IS NULL OR e.type OPERATOR(pg_catalog.=) ANY ($3))"
		" AND e.\"position\" OPERATOR(pg_catalog.>) $4 AND e.\"position\" OPERATOR(pg_catalog.<=) $5 ORDER BY e.\"position\"",
		5, {TEXTOID, TEXTARRAYOID, TEXTARRAYOID, INT8OID, INT8OID}
	},
	[EVPG_PLAN_PROJECTED_CHANGES] = {
		"SELECT c.*, CASE WHEN pg_catalog.count(*) OVER page OPERATOR(pg_catalog.>=) $4"
		" THEN pg_catalog.max(c.\"position\") OVER page ELSE $3 END"
		" FROM (SELECT s.key, s.state, p.generation_base OPERATOR(pg_catalog.+) s.generation AS generation, s.version,"
		" n.\"position\", s.updated_at"
		" FROM evpg.projection p JOIN evpg.projection_state s USING (build)"
		" CROSS JOIN LATERAL (SELECT GREATEST(s.\"position\", p.rebuilt_position) AS \"position\") n"
		" WHERE p.name OPERATOR(pg_catalog.=) $1"
		" AND n.\"position\" OPERATOR(pg_catalog.>) $2 AND n.\"position\" OPERATOR(pg_catalog.<=) $3"
		" ORDER BY n.\"position\" FETCH FIRST ($4) ROWS WITH TIES) c WINDOW page AS () ORDER BY c.\"position\"",
		4, {TEXTOID, INT8OID, INT8OID, INT8OID}
	},
	[EVPG_PLAN_PROJECTED_CREATE] = {
		"INSERT INTO evpg.projection_state (build, key, generation, version, \"position\", deleted, updated_at)"
		" VALUES ($1, $2, 1, 0, 0, true, evpg.clock_timestamp()) ON CONFLICT (build, key) DO NOTHING",
		2, {INT8OID, TEXTOID}
	},
	[EVPG_PLAN_PROJECTED_READ] = {
		"SELECT state, generation, version, \"position\", updated_at FROM evpg.projected_state"
		" WHERE name OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2",
		2, {TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_PROJECTED_REMOVE] = {
		"DELETE FROM evpg.projection_state"
		" WHERE build OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2",
		2, {INT8OID, TEXTOID}
	},
	[EVPG_PLAN_REBUILD_ABANDON] = {
		"WITH o AS (UPDATE evpg.old_build SET replaced = false WHERE name OPERATOR(pg_catalog.=) $1)"
		" INSERT INTO evpg.old_build (build, name) SELECT build, name FROM evpg.projection"
		" WHERE name OPERATOR(pg_catalog.=) $1 RETURNING build",
		1, {TEXTOID}
	},
	[EVPG_PLAN_REBUILD_ADVANCE] = {
		"UPDATE evpg.rebuild_part SET checkpoint = $3, events = events OPERATOR(pg_catalog.+) $4"
		" WHERE build OPERATOR(pg_catalog.=) $1 AND part OPERATOR(pg_catalog.=) $2",
		4, {INT8OID, INT4OID, INT8OID, INT8OID}
	},
	[EVPG_PLAN_REBUILD_CASCADE] = {
		"SELECT (conrelid::pg_catalog.regclass)::pg_catalog.text FROM pg_catalog.pg_constraint"
		" WHERE contype OPERATOR(pg_catalog.=) 'f' AND confdeltype OPERATOR(pg_catalog.=) ANY (ARRAY['c', 'n', 'd']::pg_catalog.\"char\"[])"
		" AND confrelid OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.regclass[]::pg_catalog.oid[])"
		" AND conrelid OPERATOR(pg_catalog.<>) ALL ($1::pg_catalog.regclass[]::pg_catalog.oid[])",
		1, {TEXTARRAYOID}
	},
	[EVPG_PLAN_REBUILD_CLEAN] = {
		"DELETE FROM evpg.projection_state WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT ctid FROM evpg.projection_state WHERE build OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.>=) $2"
		" ORDER BY key LIMIT $3)) RETURNING key, deleted",
		3, {INT8OID, TEXTOID, INT8OID}
	},
	[EVPG_PLAN_REBUILD_CLEANED] = {
		"UPDATE evpg.old_build SET clean_from = $2 WHERE build OPERATOR(pg_catalog.=) $1",
		2, {INT8OID, TEXTOID}
	},
	[EVPG_PLAN_REBUILD_COUNT] = {
		"UPDATE evpg.rebuild SET server_start = $2, crashes = $3 WHERE name OPERATOR(pg_catalog.=) $1",
		3, {TEXTOID, INT8OID, INT4OID}
	},
	[EVPG_PLAN_REBUILD_COUNT_PART] = {
		"UPDATE evpg.rebuild_part SET server_start = $3, crashes = $4"
		" WHERE build OPERATOR(pg_catalog.=) $1 AND part OPERATOR(pg_catalog.=) $2",
		4, {INT8OID, INT4OID, INT8OID, INT4OID}
	},
	[EVPG_PLAN_REBUILD_DELETE] = {
		"WITH r AS (DELETE FROM evpg.rebuild WHERE name OPERATOR(pg_catalog.=) $1 RETURNING build),"
		" p AS (DELETE FROM evpg.rebuild_part USING r WHERE rebuild_part.build OPERATOR(pg_catalog.=) r.build)"
		" INSERT INTO evpg.old_build (build, name) SELECT build, $1 FROM r RETURNING build",
		1, {TEXTOID}
	},
	[EVPG_PLAN_REBUILD_FAIL] = {
		"UPDATE evpg.rebuild SET attempts = $2, retry_at = $3, last_error = $4,"
		" last_error_at = evpg.clock_timestamp(), status = CASE WHEN $5 THEN 'failed' ELSE status END WHERE name OPERATOR(pg_catalog.=) $1",
		5, {TEXTOID, INT4OID, TIMESTAMPTZOID, TEXTOID, BOOLOID}
	},
	[EVPG_PLAN_REBUILD_FINISH] = {
		"WITH r AS (DELETE FROM evpg.rebuild WHERE name OPERATOR(pg_catalog.=) $1 RETURNING build),"
		" x AS (DELETE FROM evpg.rebuild_part USING r WHERE rebuild_part.build OPERATOR(pg_catalog.=) r.build),"
		" o AS (INSERT INTO evpg.old_build (build, name, replaced) SELECT build, name, true FROM evpg.projection"
		" WHERE name OPERATOR(pg_catalog.=) $1)"
		" UPDATE evpg.projection p SET build = r.build, rebuilt_position = $2,"
		" generation_base = p.generation_base OPERATOR(pg_catalog.+)"
		" COALESCE((SELECT s.generation FROM evpg.projection_state s WHERE s.build OPERATOR(pg_catalog.=) p.build"
		" AND s.generation OPERATOR(pg_catalog.>) 1 ORDER BY s.generation DESC LIMIT 1),"
		" CASE WHEN EXISTS (SELECT FROM evpg.projection_state s WHERE s.build OPERATOR(pg_catalog.=) p.build) THEN 1 ELSE 0 END)"
		" FROM r WHERE p.name OPERATOR(pg_catalog.=) $1",
		2, {TEXTOID, INT8OID}
	},
	[EVPG_PLAN_REBUILD_FORGET] = {
		"DELETE FROM evpg.old_build WHERE build OPERATOR(pg_catalog.=) $1",
		1, {INT8OID}
	},
	[EVPG_PLAN_REBUILD_LIST] = {
		"SELECT name FROM evpg.rebuild WHERE status OPERATOR(pg_catalog.=) 'running' ORDER BY name",
		0, {0}
	},
	[EVPG_PLAN_REBUILD_OLD] = {
		"SELECT build, name, replaced, clean_from FROM evpg.old_build"
		" WHERE build OPERATOR(pg_catalog.>) $1 ORDER BY build LIMIT 1",
		1, {INT8OID}
	},
	[EVPG_PLAN_REBUILD_PART] = {
		"SELECT checkpoint, xmin, server_start, crashes FROM evpg.rebuild_part WHERE build OPERATOR(pg_catalog.=) $1 ORDER BY part",
		1, {INT8OID}
	},
	[EVPG_PLAN_REBUILD_READ] = {
		"SELECT build, status OPERATOR(pg_catalog.=) 'running', parts, attempts, retry_at,"
		" last_error_at, goal, server_start, crashes FROM evpg.rebuild WHERE name OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_REBUILD_START] = {
		"WITH r AS (INSERT INTO evpg.rebuild (name, build, parts, start_position, goal, started_by, server_start)"
		" VALUES ($1, pg_catalog.nextval('evpg.projection_build'), $2, $3, $4, $5, $6) RETURNING build, parts)"
		" INSERT INTO evpg.rebuild_part (build, part, checkpoint, server_start)"
		" SELECT r.build, part, $3, $6 FROM r, LATERAL pg_catalog.generate_series(0, r.parts OPERATOR(pg_catalog.-) 1) AS part",
		6, {TEXTOID, INT4OID, INT8OID, INT8OID, TEXTOID, INT8OID}
	},
	[EVPG_PLAN_REBUILD_TOMBSTONES] = {
		"INSERT INTO evpg.projection_state (build, key, generation, version, \"position\", deleted, updated_at)"
		" SELECT p.build, k.key, 1, 1, $3, true, evpg.clock_timestamp()"
		" FROM evpg.projection p, LATERAL pg_catalog.unnest($2) AS k (key)"
		" WHERE p.name OPERATOR(pg_catalog.=) $1 ORDER BY k.key COLLATE pg_catalog.\"C\" ON CONFLICT (build, key) DO NOTHING",
		3, {TEXTOID, TEXTARRAYOID, INT8OID}
	},
	[EVPG_PLAN_PROJECTED_WATCH] = {
		"SELECT s.state, p.generation_base OPERATOR(pg_catalog.+) s.generation, s.version,"
		" GREATEST(s.\"position\", p.rebuilt_position), s.updated_at"
		" FROM evpg.projection p JOIN evpg.projection_state s USING (build)"
		" WHERE p.name OPERATOR(pg_catalog.=) $1 AND s.key OPERATOR(pg_catalog.=) $2",
		2, {TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_SAGA_WRITE] = {
		"INSERT INTO evpg.saga AS s (name, version, library, symbol, handler, rejection_handler, timer_handler, key_function,"
		" key_path, aggregate_types, event_types, start_event_types, initial_state, transitions, max_attempts, backoff,"
		" max_backoff, search_path, registered_by)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)"
		" ON CONFLICT (name, version) DO UPDATE SET library = excluded.library, symbol = excluded.symbol,"
		" handler = excluded.handler, rejection_handler = excluded.rejection_handler, timer_handler = excluded.timer_handler,"
		" key_function = excluded.key_function, key_path = excluded.key_path, aggregate_types = excluded.aggregate_types,"
		" event_types = excluded.event_types, start_event_types = excluded.start_event_types,"
		" initial_state = excluded.initial_state, transitions = excluded.transitions, max_attempts = excluded.max_attempts,"
		" backoff = excluded.backoff, max_backoff = excluded.max_backoff, search_path = excluded.search_path,"
		" registered_by = excluded.registered_by, registered_at = excluded.registered_at"
		" WHERE (s.library, s.symbol, s.handler, s.rejection_handler, s.timer_handler, s.key_function,"
		" s.key_path::pg_catalog.text, s.aggregate_types, s.event_types, s.start_event_types, s.initial_state,"
		" s.transitions, s.max_attempts, s.backoff, s.max_backoff, s.search_path, s.registered_by)"
		" IS DISTINCT FROM (excluded.library, excluded.symbol, excluded.handler, excluded.rejection_handler,"
		" excluded.timer_handler, excluded.key_function, excluded.key_path::pg_catalog.text, excluded.aggregate_types,"
		" excluded.event_types, excluded.start_event_types, excluded.initial_state, excluded.transitions,"
		" excluded.max_attempts, excluded.backoff, excluded.max_backoff, excluded.search_path, excluded.registered_by)",
		19, {TEXTOID, INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONPATHOID, TEXTARRAYOID,
		TEXTARRAYOID, TEXTARRAYOID, JSONBOID, JSONBOID, INT4OID, INTERVALOID, INTERVALOID, TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_SNAPSHOT_READ] = {
		"SELECT version, state FROM evpg.snapshot WHERE stream_id OPERATOR(pg_catalog.=) $1"
		" AND version OPERATOR(pg_catalog.<=) $2 AND reducer_version OPERATOR(pg_catalog.=) $3"
		" AND generation OPERATOR(pg_catalog.>=) $4 AND definition_hash OPERATOR(pg_catalog.=) $5"
		" ORDER BY version DESC LIMIT 1",
		5, {INT8OID, INT8OID, INT4OID, INT8OID, INT8OID}
	},
	[EVPG_PLAN_SNAPSHOT_WRITE] = {
		"INSERT INTO evpg.snapshot (stream_id, version, reducer_version, generation, definition_hash, created_at, state)"
		" VALUES ($1, $2, $3, $4, $5, evpg.clock_timestamp(), $6)"
		" ON CONFLICT (stream_id, version) DO UPDATE SET reducer_version = excluded.reducer_version,"
		" generation = excluded.generation, definition_hash = excluded.definition_hash, created_at = excluded.created_at,"
		" state = excluded.state",
		6, {INT8OID, INT8OID, INT4OID, INT8OID, INT8OID, JSONBOID}
	},
	[EVPG_PLAN_SNAPSHOT_TRIM] = {
		"DELETE FROM evpg.snapshot WHERE stream_id OPERATOR(pg_catalog.=) $1 AND version OPERATOR(pg_catalog.<="
		") (SELECT version FROM evpg.snapshot WHERE stream_id OPERATOR(pg_catalog.=) $1"
		" ORDER BY version DESC OFFSET $2 LIMIT 1)",
		2, {INT8OID, INT8OID}
	},
	[EVPG_PLAN_STREAM_CREATE] = {
		"INSERT INTO evpg.stream (aggregate_type, aggregate_id) VALUES ($1, $2)"
		" ON CONFLICT (aggregate_type, aggregate_id) DO NOTHING RETURNING stream_id",
		2, {TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_STREAM_LIST] = {
		"SELECT aggregate_type, aggregate_id, version, created_at FROM evpg.stream"
		" WHERE ($1 IS NULL OR aggregate_type OPERATOR(pg_catalog.=) $1)"
		" AND ($2 IS NULL OR (aggregate_type, aggregate_id) OPERATOR(pg_catalog.>) ($2, $3))"
		" ORDER BY aggregate_type, aggregate_id LIMIT $4",
		4, {TEXTOID, TEXTOID, TEXTOID, INT8OID}
	},
	[EVPG_PLAN_DEAD_LETTER_LIST] = {
		"SELECT dead_letter_id FROM evpg.dead_letter WHERE resolved_at IS NULL AND saga IS NOT DISTINCT FROM "
		"$1 ORDER BY dead_letter_id LIMIT $2",
		2, {TEXTOID, INT8OID}
	},
	[EVPG_PLAN_DEAD_LETTER_LOCK] = {
		"SELECT 1 FROM evpg.dead_letter WHERE dead_letter_id OPERATOR(pg_catalog.=) $1 AND resolved_at IS NULL FOR UPDATE",
		1, {INT8OID}
	},
	[EVPG_PLAN_DEAD_LETTER_READ] = {
		"SELECT saga, key, source_position, timer_id, attempts FROM evpg.dead_letter WHERE dead_letter_id "
		"OPERATOR(pg_catalog.=) $1 AND resolved_at IS NULL",
		1, {INT8OID}
	},
	[EVPG_PLAN_DEAD_LETTER_RESOLVE] = {
		"UPDATE evpg.dead_letter SET resolved_at = evpg.clock_timestamp(), resolution = $2, reason = "
		"$3, resolved_by = $4 WHERE dead_letter_id OPERATOR(pg_catalog.=) $1",
		4, {INT8OID, TEXTOID, TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_DEAD_LETTER_RETRIED] = {
		"UPDATE evpg.dead_letter SET attempts = attempts OPERATOR(pg_catalog.+) 1, sqlstate = $2, code = $3, message = $4,"
		" detail = $5, hint = $6, context = $7 WHERE dead_letter_id OPERATOR(pg_catalog.=) $1",
		7, {INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_DEAD_LETTER_WRITE] = {
		"INSERT INTO evpg.dead_letter (saga, key, source_position, timer_id, attempts, label, command, "
		"sqlstate, code, message, detail, hint, context) SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13"
		" WHERE $4 IS NULL OR EXISTS "
		"(SELECT FROM evpg.timer WHERE timer_id OPERATOR(pg_catalog.=) $4 AND due_at OPERATOR(pg_catalog.<=) $14 FOR UPDATE) "
		"RETURNING dead_letter_id",
		14, {TEXTOID, TEXTOID, INT8OID, INT8OID, INT4OID, TEXTOID, JSONBOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
		TEXTOID, TIMESTAMPTZOID}
	},
	[EVPG_PLAN_INSTANCE_LIST] = {
		"SELECT key FROM evpg.saga_instance WHERE saga OPERATOR(pg_catalog.=) $1"
		" AND ($2 IS NULL OR key OPERATOR(pg_catalog.=) $2)",
		2, {TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_INSTANCE_READ] = {
		"SELECT state, undo, version, \"position\", saga_version, CASE status WHEN 'completed' THEN 1 ELSE 0 "
		"END FROM evpg.saga_instance WHERE saga OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2",
		2, {TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_INSTANCE_SHOW] = {
		"SELECT i.state, CASE WHEN d.count OPERATOR(pg_catalog.>) 0 THEN 'failed' ELSE i.status END, "
		"i.version, i.\"position\", (SELECT pg_catalog.count(*)::pg_catalog.int4 FROM evpg.saga_event e WHERE "
		"e.saga OPERATOR(pg_catalog.=) i.saga AND e.key OPERATOR(pg_catalog.=) i.key), (SELECT "
		"pg_catalog.count(*)::pg_catalog.int4 FROM evpg.timer t WHERE t.saga OPERATOR(pg_catalog.=) i.saga "
		"AND t.key OPERATOR(pg_catalog.=) i.key), d.count, i.started_at, i.updated_at FROM evpg.saga_instance "
		"i CROSS JOIN LATERAL (SELECT pg_catalog.count(*)::pg_catalog.int4 AS count FROM evpg.dead_letter l "
		"WHERE l.saga OPERATOR(pg_catalog.=) i.saga AND l.key OPERATOR(pg_catalog.=) i.key AND l.resolved_at "
		"IS NULL) d WHERE i.saga OPERATOR(pg_catalog.=) $1 AND i.key OPERATOR(pg_catalog.=) $2",
		2, {TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_INSTANCE_STATE] = {
		"UPDATE evpg.saga_instance SET state = $3, updated_at = evpg.clock_timestamp()"
		" WHERE saga OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2 AND saga_version OPERATOR(pg_catalog.<>) 0",
		3, {TEXTOID, TEXTOID, JSONBOID}
	},
	[EVPG_PLAN_INSTANCE_UNSEEN] = {
		"SELECT key, source_position FROM evpg.dead_letter WHERE saga OPERATOR(pg_catalog.=) $1"
		" AND source_position IS NOT NULL AND (resolved_at IS NULL OR resolution OPERATOR(pg_catalog.=) 'discarded')"
		" AND created_at OPERATOR(pg_catalog.>) (SELECT created_at FROM evpg.consumer WHERE name OPERATOR(pg_catalog.=) $1) UNION ALL"
		" SELECT e.key, e.\"position\" FROM evpg.saga_event e JOIN evpg.saga_instance i ON i.saga OPERATOR(pg_catalog.=) e.saga"
		" AND i.key OPERATOR(pg_catalog.=) e.key WHERE e.saga OPERATOR(pg_catalog.=) $1"
		" AND e.\"position\" OPERATOR(pg_catalog.<=) i.\"position\"",
		1, {TEXTOID}
	},
	[EVPG_PLAN_INSTANCE_WRITE] = {
		"INSERT INTO evpg.saga_instance (saga, key, state, undo, version, \"position\", saga_version, status, "
		"started_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, evpg.clock_timestamp(), "
		"evpg.clock_timestamp()) ON CONFLICT (saga, key) DO UPDATE SET state = excluded.state, undo = "
		"excluded.undo, version = excluded.version, \"position\" = excluded.\"position\", status = "
		"excluded.status, updated_at = excluded.updated_at",
		8, {TEXTOID, TEXTOID, JSONBOID, JSONBOID, INT8OID, INT8OID, INT4OID, TEXTOID}
	},
	[EVPG_PLAN_SAGA_CLEAR] = {
		"WITH i AS (DELETE FROM evpg.saga_instance WHERE saga OPERATOR(pg_catalog.=) $1),"
		" t AS (DELETE FROM evpg.timer WHERE saga OPERATOR(pg_catalog.=) $1),"
		" n AS (DELETE FROM evpg.saga_total WHERE saga OPERATOR(pg_catalog.=) $1),"
		" d AS (UPDATE evpg.dead_letter SET resolved_at = evpg.clock_timestamp(), resolution = 'discarded',"
		" reason = 'saga was dropped' WHERE saga OPERATOR(pg_catalog.=) $1 AND resolved_at IS NULL)"
		" DELETE FROM evpg.saga_event WHERE saga OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},

	/*
	 * The row need not be new under the statement's snapshot: the key finds
	 * its last version, which is locked.
	 */
	[EVPG_PLAN_SAGA_COUNT] = {
		"WITH counted AS (UPDATE evpg.saga_total SET dispatched = dispatched OPERATOR(pg_catalog.+) $2,"
		" dead_lettered = dead_lettered OPERATOR(pg_catalog.+) $3 WHERE saga OPERATOR(pg_catalog.=) $1 AND part OPERATOR(pg_catalog.=)"
		" (SELECT part FROM evpg.saga_total WHERE saga OPERATOR(pg_catalog.=) $1 ORDER BY part LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED)"
		" RETURNING 1)"
		" INSERT INTO evpg.saga_total (saga, dispatched, dead_lettered) SELECT $1, $2, $3 WHERE NOT EXISTS (SELECT FROM counted)",
		3, {TEXTOID, INT8OID, INT8OID}
	},
	[EVPG_PLAN_SAGA_DELETE] = {
		"DELETE FROM evpg.saga WHERE name OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_SAGA_READ] = {
		"SELECT name, version, library, symbol, handler, rejection_handler, timer_handler, key_function, "
		"key_path, aggregate_types, event_types, start_event_types, initial_state, transitions, max_attempts, "
		"(EXTRACT(epoch FROM backoff) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8, (EXTRACT(epoch FROM "
		"max_backoff) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8, search_path, registered_by FROM evpg.saga ORDER BY "
		"name, version DESC",
		0, {0}
	},
	[EVPG_PLAN_SAGA_RETIRE] = {
		"DELETE FROM evpg.saga s WHERE s.name OPERATOR(pg_catalog.=) $1 AND s.version OPERATOR(pg_catalog.<) "
		"$2 AND NOT EXISTS (SELECT FROM evpg.saga_instance i WHERE i.saga OPERATOR(pg_catalog.=) s.name AND "
		"i.saga_version OPERATOR(pg_catalog.=) s.version AND i.status OPERATOR(pg_catalog.=) 'running')",
		2, {TEXTOID, INT4OID}
	},
	[EVPG_PLAN_SAGA_RESUME] = {
		"WITH e AS (UPDATE evpg.saga_event SET retry_at = NULL WHERE saga OPERATOR(pg_catalog.=) $1 AND retry_at IS NOT NULL RETURNING 1),"
		" t AS (UPDATE evpg.timer SET retry_at = NULL WHERE saga OPERATOR(pg_catalog.=) $1 AND retry_at IS NOT NULL RETURNING 1)"
		" SELECT FROM e UNION ALL SELECT FROM t",
		1, {TEXTOID}
	},
	[EVPG_PLAN_TIMER_BURY] = {
		"UPDATE evpg.timer SET dead_letter_id = $2 WHERE timer_id OPERATOR(pg_catalog.=) $1 AND due_at OPERATOR(pg_catalog.<=) $3",
		3, {INT8OID, INT8OID, TIMESTAMPTZOID}
	},
	[EVPG_PLAN_TIMER_CANCEL] = {
		"DELETE FROM evpg.timer WHERE saga OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2 AND "
		"name OPERATOR(pg_catalog.=) $3",
		3, {TEXTOID, TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_TIMER_CLAIM] = {
		"UPDATE evpg.timer SET attempts = attempts OPERATOR(pg_catalog.+) 1 WHERE ctid OPERATOR(pg_catalog.=) "
		"(SELECT ctid FROM evpg.timer WHERE timer_id OPERATOR(pg_catalog.=) $1 AND attempts OPERATOR(pg_catalog.=) $2 "
		"AND due_at OPERATOR(pg_catalog.<=) $3 AND dead_letter_id IS NULL FOR UPDATE SKIP LOCKED)",
		3, {INT8OID, INT4OID, TIMESTAMPTZOID}
	},
	[EVPG_PLAN_TIMER_UNCLAIM] = {
		"UPDATE evpg.timer SET attempts = attempts OPERATOR(pg_catalog.-) 1 WHERE ctid OPERATOR(pg_catalog.=) "
		"(SELECT ctid FROM evpg.timer WHERE timer_id OPERATOR(pg_catalog.=) $1 AND attempts OPERATOR(pg_catalog.=) $2 "
		"AND due_at OPERATOR(pg_catalog.<=) $3 AND dead_letter_id IS NULL FOR UPDATE SKIP LOCKED)",
		3, {INT8OID, INT4OID, TIMESTAMPTZOID}
	},
	[EVPG_PLAN_TIMER_CLEAR] = {
		"DELETE FROM evpg.timer WHERE saga OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2",
		2, {TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_TIMER_DONE] = {
		"DELETE FROM evpg.timer WHERE timer_id OPERATOR(pg_catalog.=) $1 AND due_at OPERATOR(pg_catalog.<=) $2",
		2, {INT8OID, TIMESTAMPTZOID}
	},
	[EVPG_PLAN_TIMER_DROP] = {
		"WITH t AS (DELETE FROM evpg.timer WHERE timer_id OPERATOR(pg_catalog.=) $1 RETURNING dead_letter_id),"
		" d AS (UPDATE evpg.dead_letter l SET resolved_at = evpg.clock_timestamp(), resolution = 'discarded',"
		" reason = 'timer was cancelled' FROM t WHERE l.dead_letter_id OPERATOR(pg_catalog.=) t.dead_letter_id)"
		" SELECT FROM t",
		1, {INT8OID}
	},
	[EVPG_PLAN_TIMER_MOVE] = {
		"UPDATE evpg.timer SET due_at = $2, attempts = 0, retry_at = NULL WHERE timer_id "
		"OPERATOR(pg_catalog.=) $1 AND dead_letter_id IS NULL",
		2, {INT8OID, TIMESTAMPTZOID}
	},
	[EVPG_PLAN_TIMER_READ] = {
		"SELECT name, payload, command, scheduled_at, due_at, depth, correlation_id, causation_id, session_role FROM "
		"evpg.timer WHERE timer_id OPERATOR(pg_catalog.=) $1",
		1, {INT8OID}
	},
	[EVPG_PLAN_TIMER_RETRY] = {
		"UPDATE evpg.timer SET retry_at = $2, attempts = $3 WHERE timer_id OPERATOR(pg_catalog.=) $1 AND due_at OPERATOR(pg_catalog.<=) $4",
		4, {INT8OID, TIMESTAMPTZOID, INT4OID, TIMESTAMPTZOID}
	},
	[EVPG_PLAN_TIMER_WRITE] = {
		"INSERT INTO evpg.timer (saga, key, name, payload, command, scheduled_at, due_at, depth, "
		"correlation_id, causation_id, session_role) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (saga, "
		"key, name) DO UPDATE SET payload = excluded.payload, scheduled_at = excluded.scheduled_at, due_at = "
		"excluded.due_at, depth = excluded.depth, correlation_id = excluded.correlation_id, causation_id = "
		"excluded.causation_id, session_role = excluded.session_role, attempts = 0, retry_at = NULL RETURNING timer_id",
		11, {TEXTOID, TEXTOID, TEXTOID, JSONBOID, JSONBOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID, TEXTOID, TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_WORK_BURY] = {
		"UPDATE evpg.saga_event SET dead_letter_id = $4 WHERE saga OPERATOR(pg_catalog.=) $1 AND key "
		"OPERATOR(pg_catalog.=) $2 AND \"position\" OPERATOR(pg_catalog.=) $3",
		4, {TEXTOID, TEXTOID, INT8OID, INT8OID}
	},
	[EVPG_PLAN_WORK_CLAIM] = {
		"UPDATE evpg.saga_event SET attempts = attempts OPERATOR(pg_catalog.+) 1 WHERE ctid OPERATOR(pg_catalog.=) "
		"(SELECT ctid FROM evpg.saga_event WHERE saga OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2 "
		"AND \"position\" OPERATOR(pg_catalog.=) $3 AND attempts OPERATOR(pg_catalog.=) $4 AND dead_letter_id IS NULL "
		"FOR UPDATE SKIP LOCKED)",
		4, {TEXTOID, TEXTOID, INT8OID, INT4OID}
	},
	[EVPG_PLAN_WORK_UNCLAIM] = {
		"UPDATE evpg.saga_event SET attempts = attempts OPERATOR(pg_catalog.-) 1 WHERE ctid OPERATOR(pg_catalog.=) "
		"(SELECT ctid FROM evpg.saga_event WHERE saga OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2 "
		"AND \"position\" OPERATOR(pg_catalog.=) $3 AND attempts OPERATOR(pg_catalog.=) $4 AND dead_letter_id IS NULL "
		"FOR UPDATE SKIP LOCKED)",
		4, {TEXTOID, TEXTOID, INT8OID, INT4OID}
	},
	[EVPG_PLAN_WORK_DONE] = {
		"DELETE FROM evpg.saga_event WHERE saga OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2 "
		"AND \"position\" OPERATOR(pg_catalog.=) $3",
		3, {TEXTOID, TEXTOID, INT8OID}
	},

	/*
	 * What is first of each instance.  Neither order of saga_event finds that
	 * quickly in all cases: many events of few instances need the walk from
	 * key to key, many instances the oldest events.  So the walk ends after
	 * 200 keys, and 200 events are looked at besides; only if all of these
	 * must wait it goes on to the end.
	 */
	[EVPG_PLAN_WORK_DUE] = {
		"WITH RECURSIVE head AS ((SELECT saga, key, \"position\", attempts, retry_at, dead_letter_id FROM evpg.saga_event "
		"ORDER BY saga, key, \"position\" LIMIT 1) UNION ALL SELECT n.* FROM head h CROSS JOIN LATERAL (SELECT e.saga, "
		"e.key, e.\"position\", e.attempts, e.retry_at, e.dead_letter_id FROM evpg.saga_event e WHERE (e.saga, e.key) "
		"OPERATOR(pg_catalog.>) (h.saga, h.key) ORDER BY e.saga, e.key, e.\"position\" LIMIT 1) n),"
		" near AS MATERIALIZED (SELECT * FROM head LIMIT 200),"
		" many AS MATERIALIZED (SELECT pg_catalog.count(*) OPERATOR(pg_catalog.=) 200 AS really FROM near),"
		" old AS MATERIALIZED (SELECT e.* FROM (SELECT saga, key, \"position\", attempts, retry_at, dead_letter_id FROM "
		"evpg.saga_event WHERE (SELECT really FROM many) ORDER BY \"position\" LIMIT 200) e WHERE NOT EXISTS (SELECT FROM "
		"evpg.saga_event b WHERE b.saga OPERATOR(pg_catalog.=) e.saga AND b.key OPERATOR(pg_catalog.=) e.key AND "
		"b.\"position\" OPERATOR(pg_catalog.<) e.\"position\")),"
		" event AS MATERIALIZED (SELECT e.* FROM (SELECT * FROM near UNION SELECT * FROM old) e WHERE " EVENT_IS_DUE
		" ORDER BY e.\"position\" LIMIT $1)"
		" SELECT saga, key, \"position\", NULL::pg_catalog.int8, attempts, retry_at FROM event UNION ALL (SELECT "
		"e.saga, e.key, e.\"position\", NULL, e.attempts, e.retry_at FROM head e WHERE (SELECT really FROM many) AND "
		"NOT EXISTS (SELECT FROM event) AND " EVENT_IS_DUE " LIMIT $1) UNION ALL (SELECT t.saga, "
		"t.key, NULL, t.timer_id, t.attempts, t.retry_at FROM evpg.timer t WHERE "
		"t.due_at OPERATOR(pg_catalog.<=) $2 AND t.dead_letter_id IS NULL AND "
		"(t.retry_at IS NULL OR t.retry_at OPERATOR(pg_catalog.<=) $2) AND (t.saga IS NULL OR (NOT EXISTS "
		"(SELECT FROM evpg.saga_event b WHERE b.saga OPERATOR(pg_catalog.=) t.saga AND b.key "
		"OPERATOR(pg_catalog.=) t.key) AND NOT EXISTS (SELECT FROM evpg.timer d WHERE d.saga "
		"OPERATOR(pg_catalog.=) t.saga AND d.key OPERATOR(pg_catalog.=) t.key AND (d.dead_letter_id IS NOT "
		"NULL OR (d.due_at, d.timer_id) OPERATOR(pg_catalog.<) (t.due_at, t.timer_id))) AND EXISTS (SELECT "
		"FROM evpg.consumer c WHERE c.name OPERATOR(pg_catalog.=) t.saga AND c.status OPERATOR(pg_catalog.=) "
		"'running' AND c.retry_at IS NULL))) ORDER BY t.due_at LIMIT $1)",
		2, {INT8OID, TIMESTAMPTZOID}
	},
	[EVPG_PLAN_WORK_LEFT] = {
		"SELECT 1 FROM evpg.saga_event e WHERE e.saga OPERATOR(pg_catalog.=) $1 AND e.\"position\" OPERATOR(pg_catalog.<=) $2"
		" AND NOT EXISTS (SELECT FROM evpg.dead_letter l WHERE l.saga OPERATOR(pg_catalog.=) e.saga"
		" AND l.key OPERATOR(pg_catalog.=) e.key AND l.resolved_at IS NULL) LIMIT 1",
		2, {TEXTOID, INT8OID}
	},
	[EVPG_PLAN_WORK_NEXT] = {
		"SELECT LEAST((SELECT pg_catalog.min(retry_at) FROM evpg.saga_event WHERE retry_at "
		"OPERATOR(pg_catalog.>) $1 AND dead_letter_id IS NULL), (SELECT pg_catalog.min(due_at) FROM "
		"evpg.timer WHERE due_at OPERATOR(pg_catalog.>) $1), (SELECT pg_catalog.min(retry_at) FROM evpg.timer "
		"WHERE retry_at OPERATOR(pg_catalog.>) $1 AND dead_letter_id IS NULL))",
		1, {TIMESTAMPTZOID}
	},
	[EVPG_PLAN_WORK_RETRY] = {
		"UPDATE evpg.saga_event SET retry_at = $4, attempts = $5 WHERE saga OPERATOR(pg_catalog.=) $1 AND key "
		"OPERATOR(pg_catalog.=) $2 AND \"position\" OPERATOR(pg_catalog.=) $3",
		5, {TEXTOID, TEXTOID, INT8OID, TIMESTAMPTZOID, INT4OID}
	},
	[EVPG_PLAN_WORK_ROUTE] = {
		"INSERT INTO evpg.saga_event (saga, key, \"position\") SELECT $1, k.key, k.\"position\" FROM ROWS FROM "
		"(pg_catalog.unnest($2), pg_catalog.unnest($3)) AS k (key, \"position\") WHERE NOT EXISTS (SELECT FROM "
		"evpg.saga_instance i WHERE i.saga OPERATOR(pg_catalog.=) $1 AND i.key OPERATOR(pg_catalog.=) k.key "
		"AND i.status OPERATOR(pg_catalog.=) 'completed') ON CONFLICT (saga, key, \"position\") DO NOTHING",
		3, {TEXTOID, TEXTARRAYOID, INT8ARRAYOID}
	},
	[EVPG_PLAN_TRANSLATOR_DELETE] = {
		"DELETE FROM evpg.translator WHERE name OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_TRANSLATOR_READ] = {
		"SELECT translator, search_path, registered_by FROM evpg.translator WHERE name OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_TRANSLATOR_WRITE] = {
		"INSERT INTO evpg.translator AS t (name, translator, search_path, registered_by, registered_at)"
		" VALUES ($1, $2, $3, $4, evpg.clock_timestamp())"
		" ON CONFLICT (name) DO UPDATE SET translator = excluded.translator, search_path = excluded.search_path,"
		" registered_by = excluded.registered_by, registered_at = excluded.registered_at"
		" WHERE (t.translator, t.search_path, t.registered_by)"
		" IS DISTINCT FROM (excluded.translator, excluded.search_path, excluded.registered_by)",
		4, {TEXTOID, TEXTOID, TEXTOID, TEXTOID}
	},
};

static SPIPlanPtr plans[EVPG_PLAN_COUNT];

/*
 * How evpg's own statements are planned: by the indexes that were made for them,
 * whatever the statistics say.  A table of work to be done is empty most of the
 * time, and a plan for an empty table is a sequential scan, which the session
 * would keep when there is much to be done.  Generic plans, made once; no JIT,
 * which the costs of disabled ways would start.
 *
 * A statement that is planned by its values is the other way round: which of two
 * indexes is the better one depends on them, and the statistics know.
 */
typedef struct Planning
{
	bool		seqscan;
	bool		bitmapscan;
	bool		sort;
	bool		hashjoin;
	bool		mergejoin;
	bool		jit;
} Planning;

static Planning
plan_by(Planning ways)
{
	Planning	before = {enable_seqscan, enable_bitmapscan, enable_sort, enable_hashjoin, enable_mergejoin, jit_enabled};

	enable_seqscan = ways.seqscan;
	enable_bitmapscan = ways.bitmapscan;
	enable_sort = ways.sort;
	enable_hashjoin = ways.hashjoin;
	enable_mergejoin = ways.mergejoin;
	jit_enabled = ways.jit;
	return before;
}

static const Planning by_index = {false, false, false, false, false, false};
static const Planning by_cost = {true, true, true, true, true, false};

/* Which way is best depends on what is searched for: that statement is planned each time. */
static bool
by_values(EvpgPlan id)
{
	return id == EVPG_PLAN_EVENTS_TAGGED;
}

static SPIPlanPtr
connect(EvpgPlan id)
{
	SPI_connect();
	if (unlikely(plans[id] == NULL))
	{
		SPIPlanPtr	plan = SPI_prepare_cursor(texts[id].text, texts[id].nargs, (Oid *) texts[id].args,
											  by_values(id) ? CURSOR_OPT_CUSTOM_PLAN : CURSOR_OPT_GENERIC_PLAN);

		if (plan == NULL)
			elog(ERROR, "could not prepare statement: %s", SPI_result_code_string(SPI_result));
		SPI_keepplan(plan);
		plans[id] = plan;
	}
	return plans[id];
}

static uint64
run(EvpgPlan id, Datum *values, const char *nulls, bool read_only)
{
	SPIPlanPtr	plan = connect(id);
	Planning	before = plan_by(by_values(id) ? by_cost : by_index);
	int			result = 0;

	PG_TRY();
	{
		result = SPI_execute_plan(plan, values, nulls, read_only, 0);
	}
	PG_FINALLY();
	{
		(void) plan_by(before);
	}
	PG_END_TRY();
	if (result < 0)
		elog(ERROR, "could not execute statement: %s", SPI_result_code_string(result));
	return SPI_processed;
}

/*
 * Opens a cursor over a statement with a new snapshot, or under the caller's if
 * read_only; close it with EvpgPlanClose.  It is pinned: user code that runs between two fetches cannot
 * close it.
 */
Portal
EvpgPlanOpen(EvpgPlan id, Datum *values, const char *nulls, bool read_only)
{
	SPIPlanPtr	plan = connect(id);
	Planning	before = plan_by(by_values(id) ? by_cost : by_index);
	Portal		portal = NULL;

	PG_TRY();
	{
		portal = SPI_cursor_open(NULL, plan, values, nulls, read_only);
	}
	PG_FINALLY();
	{
		(void) plan_by(before);
	}
	PG_END_TRY();
	PinPortal(portal);
	return portal;
}

void
EvpgPlanClose(Portal portal)
{
	UnpinPortal(portal);
	SPI_cursor_close(portal);
	SPI_finish();
}

/*
 * EvpgPlanRun
 *		Runs a statement with a new snapshot (in READ COMMITTED) and returns the
 *		number of rows; the rows are there until EvpgPlanDone.
 */
uint64
EvpgPlanRun(EvpgPlan id, Datum *values, const char *nulls)
{
	return run(id, values, nulls, false);
}

/* The same under the caller's snapshot, for STABLE functions. */
uint64
EvpgPlanRead(EvpgPlan id, Datum *values, const char *nulls)
{
	return run(id, values, nulls, true);
}

/*
 * EvpgPlanReadLatest
 *		The same with a snapshot that sees all that is committed now, under every
 *		isolation level.
 */
uint64
EvpgPlanReadLatest(EvpgPlan id, Datum *values, const char *nulls)
{
	uint64		rows;

	PushActiveSnapshot(GetLatestSnapshot());
	rows = run(id, values, nulls, true);
	PopActiveSnapshot();
	return rows;
}

/* Gets a value of the last result, in SPI's memory; false if it is NULL.  Columns count from 1. */
bool
EvpgPlanResult(uint64 row, int column, Datum *value)
{
	bool		isnull;

	*value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);
	return !isnull;
}

void
EvpgPlanDone(void)
{
	SPI_finish();
}
