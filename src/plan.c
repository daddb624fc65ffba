/*-------------------------------------------------------------------------
 *
 * plan.c
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

#include "catalog/pg_type.h"
#include "plan.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"

typedef struct PlanText
{
	const char *text;
	int			nargs;
	Oid			args[16];
} PlanText;

static const PlanText texts[EVPG_PLAN_COUNT] = {
	[EVPG_PLAN_AGGREGATE_DELETE] = {
		"DELETE FROM evpg.aggregate_type WHERE aggregate_type OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_AGGREGATE_READ] = {
		"SELECT library, symbol, handler, reducer, invariant, initial_state, snapshot_every, snapshot_keep,"
		" reducer_version, generation, search_path, fold_generation"
		" FROM evpg.aggregate_type WHERE aggregate_type OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_AGGREGATE_WRITE] = {
		"INSERT INTO evpg.aggregate_type AS a (aggregate_type, library, symbol, handler, reducer, invariant,"
		" initial_state, snapshot_every, snapshot_keep, reducer_version, search_path, registered_by,"
		" generation, fold_generation, registered_at)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13, pg_catalog.clock_timestamp())"
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
		" a.snapshot_keep, a.reducer_version, a.search_path)"
		" IS DISTINCT FROM (excluded.library, excluded.symbol, excluded.handler, excluded.reducer,"
		" excluded.invariant, excluded.initial_state, excluded.snapshot_every, excluded.snapshot_keep,"
		" excluded.reducer_version, excluded.search_path)",
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
	[EVPG_PLAN_EVENT_ID_EXISTS] = {
		"SELECT 1 FROM evpg.event_log WHERE event_id OPERATOR(pg_catalog.=) $1",
		1, {UUIDOID}
	},
	[EVPG_PLAN_EVENTS_READ_ALL] = {
		"SELECT * FROM evpg.event e WHERE e.\"position\" OPERATOR(pg_catalog.>) $1"
		" AND ($2 IS NULL OR e.\"position\" OPERATOR(pg_catalog.<=) $2)"
		" AND ($3 IS NULL OR e.aggregate_type OPERATOR(pg_catalog.=) ANY ($3))"
		" AND ($4 IS NULL OR e.type OPERATOR(pg_catalog.=) ANY ($4))"
		" AND ($5 IS NULL OR e.tags OPERATOR(pg_catalog.&&) $5)"
		" ORDER BY e.\"position\" LIMIT $6",
		6, {INT8OID, INT8OID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8OID}
	},
	[EVPG_PLAN_EXTENSION_VERSION] = {
		"SELECT extversion FROM pg_catalog.pg_extension WHERE extname OPERATOR(pg_catalog.=) 'evpg'",
		0, {0}
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
	[EVPG_PLAN_INTERCEPTOR_DELETE] = {
		"DELETE FROM evpg.interceptor WHERE name OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_INTERCEPTOR_READ] = {
		"SELECT name, interceptor, aggregate_types, command_types, search_path"
		" FROM evpg.interceptor ORDER BY priority, name",
		0, {0}
	},
	[EVPG_PLAN_INTERCEPTOR_WRITE] = {
		"INSERT INTO evpg.interceptor AS i (name, interceptor, aggregate_types, command_types, priority, search_path)"
		" VALUES ($1, $2, $3, $4, $5, $6)"
		" ON CONFLICT (name) DO UPDATE SET interceptor = excluded.interceptor,"
		" aggregate_types = excluded.aggregate_types, command_types = excluded.command_types,"
		" priority = excluded.priority, search_path = excluded.search_path"
		" WHERE (i.interceptor, i.aggregate_types, i.command_types, i.priority, i.search_path)"
		" IS DISTINCT FROM (excluded.interceptor, excluded.aggregate_types, excluded.command_types,"
		" excluded.priority, excluded.search_path)",
		6, {TEXTOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID, INT4OID, TEXTOID}
	},
	[EVPG_PLAN_PROJECTION_CLEAR] = {
		"DELETE FROM evpg.projection_state WHERE name OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_PROJECTION_DELETE] = {
		"DELETE FROM evpg.projection WHERE name OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}
	},
	[EVPG_PLAN_PROJECTION_READ] = {
		"SELECT name, library, symbol, reducer, handler, key_function, key_path, constant_key, aggregate_types,"
		" event_types, tags, initial_state, broadcast, event_name, search_path FROM evpg.projection ORDER BY name",
		0, {0}
	},
	[EVPG_PLAN_PROJECTION_WRITE] = {
		"INSERT INTO evpg.projection AS p (name, library, symbol, reducer, handler, key_function, key_path,"
		" constant_key, aggregate_types, event_types, tags, initial_state, broadcast, event_name, search_path,"
		" registered_by, registered_at)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, pg_catalog.clock_timestamp())"
		" ON CONFLICT (name) DO UPDATE SET library = excluded.library, symbol = excluded.symbol,"
		" reducer = excluded.reducer, handler = excluded.handler, key_function = excluded.key_function,"
		" key_path = excluded.key_path, constant_key = excluded.constant_key,"
		" aggregate_types = excluded.aggregate_types, event_types = excluded.event_types, tags = excluded.tags,"
		" initial_state = excluded.initial_state, broadcast = excluded.broadcast, event_name = excluded.event_name,"
		" search_path = excluded.search_path, registered_by = excluded.registered_by,"
		" registered_at = excluded.registered_at"
		" WHERE (p.library, p.symbol, p.reducer, p.handler, p.key_function, p.key_path::pg_catalog.text, p.constant_key,"
		" p.aggregate_types, p.event_types, p.tags, p.initial_state, p.broadcast, p.event_name, p.search_path)"
		" IS DISTINCT FROM (excluded.library, excluded.symbol, excluded.reducer, excluded.handler,"
		" excluded.key_function, excluded.key_path::pg_catalog.text, excluded.constant_key, excluded.aggregate_types,"
		" excluded.event_types, excluded.tags, excluded.initial_state, excluded.broadcast, excluded.event_name,"
		" excluded.search_path)",
		16, {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONPATHOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID,
		TEXTARRAYOID, JSONBOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_PROJECTION_EVENTS] = {
		"SELECT * FROM evpg.event e"
		" WHERE ($1 IS NULL OR e.aggregate_id OPERATOR(pg_catalog.=) $1)"
		" AND ($2 IS NULL OR e.aggregate_type OPERATOR(pg_catalog.=) ANY ($2))"
		" AND ($3 IS NULL OR e.type OPERATOR(pg_catalog.=) ANY ($3))"
		" ORDER BY e.\"position\"",
		3, {TEXTOID, TEXTARRAYOID, TEXTARRAYOID}
	},
	[EVPG_PLAN_PROJECTED_CHANGES] = {
		"SELECT key, state, generation, version, \"position\", updated_at"
		" FROM evpg.projection_state WHERE name OPERATOR(pg_catalog.=) $1"
		" AND \"position\" OPERATOR(pg_catalog.>) $2 AND \"position\" OPERATOR(pg_catalog.<=) $3"
		" ORDER BY \"position\" FETCH FIRST ($4) ROWS WITH TIES",
		4, {TEXTOID, INT8OID, INT8OID, INT8OID}
	},
	[EVPG_PLAN_PROJECTED_CREATE] = {
		"INSERT INTO evpg.projection_state (name, key, generation, version, \"position\", deleted, updated_at)"
		" VALUES ($1, $2, 1, 0, 0, true, pg_catalog.clock_timestamp()) ON CONFLICT (name, key) DO NOTHING",
		2, {TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_PROJECTED_READ] = {
		"SELECT state, generation, version, \"position\", updated_at FROM evpg.projection_state"
		" WHERE name OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2 AND NOT deleted",
		2, {TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_PROJECTED_REMOVE] = {
		"DELETE FROM evpg.projection_state"
		" WHERE name OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2",
		2, {TEXTOID, TEXTOID}
	},
	[EVPG_PLAN_SNAPSHOT_READ] = {
		"SELECT version, state FROM evpg.snapshot WHERE stream_id OPERATOR(pg_catalog.=) $1"
		" AND version OPERATOR(pg_catalog.<=) $2 AND reducer_version OPERATOR(pg_catalog.=) $3"
		" AND generation OPERATOR(pg_catalog.>=) $4 ORDER BY version DESC LIMIT 1",
		4, {INT8OID, INT8OID, INT4OID, INT8OID}
	},
	[EVPG_PLAN_SNAPSHOT_WRITE] = {
		"INSERT INTO evpg.snapshot (stream_id, version, reducer_version, generation, created_at, state)"
		" VALUES ($1, $2, $3, $4, pg_catalog.clock_timestamp(), $5)"
		" ON CONFLICT (stream_id, version) DO UPDATE SET reducer_version = excluded.reducer_version,"
		" generation = excluded.generation, created_at = excluded.created_at, state = excluded.state",
		5, {INT8OID, INT8OID, INT4OID, INT8OID, JSONBOID}
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
};

static SPIPlanPtr plans[EVPG_PLAN_COUNT];

static SPIPlanPtr
connect(EvpgPlan id)
{
	SPI_connect();
	if (unlikely(plans[id] == NULL))
	{
		SPIPlanPtr	plan = SPI_prepare(texts[id].text, texts[id].nargs, (Oid *) texts[id].args);

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
	int			result = SPI_execute_plan(plan, values, nulls, read_only, 0);

	if (result < 0)
		elog(ERROR, "could not execute statement: %s", SPI_result_code_string(result));
	return SPI_processed;
}

/*
 * Opens a cursor over a statement with a new snapshot; close it with
 * EvpgPlanClose.  It is pinned: user code that runs between two fetches cannot
 * close it.
 */
Portal
EvpgPlanOpen(EvpgPlan id, Datum *values, const char *nulls)
{
	SPIPlanPtr	plan = connect(id);
	Portal		portal = SPI_cursor_open(NULL, plan, values, nulls, false);

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
