/*-------------------------------------------------------------------------
 *
 * instance.c
 *		The rows of instances of sagas, evpg.saga_instance.
 *
 * The caller holds the advisory lock of the instance (saga_lock.c), or has locked
 * out all instances of the saga.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/statement.h"
#include "catalog/pg_type.h"
#include "saga/instance.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

static EvpgStatement select_instance = {
	.text =
	"SELECT state, undo, version, position, saga_version, CASE status WHEN 'completed' THEN 1 ELSE 0 END"
	"  FROM evpg.saga_instance"
	" WHERE saga = $1 AND key = $2",
	.types = {TEXTOID, TEXTOID}
};

enum
{
	INSTANCE_STATE = 1, INSTANCE_UNDO, INSTANCE_VERSION, INSTANCE_POSITION, INSTANCE_SAGA_VERSION, INSTANCE_COMPLETED
};

/* Sets *instance to the first row of the result, in a context. */
static void
take_instance(EvpgInstance *instance, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);

	instance->exists = true;
	instance->state = EvpgResultJsonb(0, INSTANCE_STATE);
	instance->undo = EvpgResultJsonb(0, INSTANCE_UNDO);
	instance->version = EvpgResultInt64(0, INSTANCE_VERSION);
	instance->position = EvpgResultInt64(0, INSTANCE_POSITION);
	instance->saga_version = (int) EvpgResultInt64(0, INSTANCE_SAGA_VERSION);
	instance->completed = EvpgResultInt64(0, INSTANCE_COMPLETED) != 0;
	MemoryContextSwitchTo(old);
}

/* Reads the row of an instance into CurrentMemoryContext; instance->exists is false if there is none. */
void
EvpgInstanceRead(const char *saga, const char *key, EvpgInstance *instance)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[2] = {CStringGetTextDatum(saga), CStringGetTextDatum(key)};

	memset(instance, 0, sizeof(EvpgInstance));
	if (EvpgStatementReadLatest(&select_instance, values, NULL) > 0)
		take_instance(instance, caller);
	EvpgStatementDone();
}

static EvpgStatement select_free_instance = {
	.text =
	"SELECT i.state, i.undo, i.version, i.position, i.saga_version, CASE i.status WHEN 'completed' THEN 1 ELSE 0 END,"
	"       CASE WHEN EXISTS (SELECT FROM evpg.saga_event e WHERE e.saga = $1 AND e.key = $2)"
	"                 OR EXISTS (SELECT FROM evpg.timer t WHERE t.saga = $1 AND t.key = $2 AND t.dead_letter_id IS NOT NULL)"
	"            THEN 0 ELSE 1 END,"
	"       CASE WHEN i.saga IS NULL THEN 0 ELSE 1 END"
	"  FROM (SELECT 1) AS one"
	"  LEFT JOIN evpg.saga_instance i ON i.saga = $1 AND i.key = $2",
	.types = {TEXTOID, TEXTOID}
};

enum
{
	FREE_INSTANCE_IS_FREE = INSTANCE_COMPLETED + 1, FREE_INSTANCE_EXISTS
};

/*
 * EvpgInstanceReadFree
 *		Reads the row of an instance as EvpgInstanceRead does, and returns whether it is free to
 *		react to a new event: none waits for it, nor is a dead letter in the way.
 */
bool
EvpgInstanceReadFree(const char *saga, const char *key, EvpgInstance *instance)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[2] = {CStringGetTextDatum(saga), CStringGetTextDatum(key)};
	bool		is_free;

	memset(instance, 0, sizeof(EvpgInstance));
	(void) EvpgStatementReadLatest(&select_free_instance, values, NULL);
	is_free = EvpgResultInt64(0, FREE_INSTANCE_IS_FREE) != 0;
	if (EvpgResultInt64(0, FREE_INSTANCE_EXISTS) != 0)
		take_instance(instance, caller);
	EvpgStatementDone();
	return is_free;
}

static EvpgStatement update_instance = {
	.text =
	"UPDATE evpg.saga_instance"
	"   SET state = $3, undo = $4, version = $5, position = $6, status = $7, updated_at = evpg.clock_timestamp()"
	" WHERE saga = $1 AND key = $2",
	.types = {TEXTOID, TEXTOID, JSONBOID, JSONBOID, INT8OID, INT8OID, TEXTOID}
};

static EvpgStatement upsert_instance = {
	.text =
	"INSERT INTO evpg.saga_instance"
	"       (saga, key, state, undo, version, position, saga_version, status, started_at, updated_at)"
	" VALUES ($1, $2, $3, $4, $5, $6, $8, $7, evpg.clock_timestamp(), evpg.clock_timestamp())"
	" ON CONFLICT (saga, key) DO UPDATE"
	" SET state = excluded.state, undo = excluded.undo, version = excluded.version, position = excluded.position,"
	"     status = excluded.status, updated_at = excluded.updated_at",
	.types = {TEXTOID, TEXTOID, JSONBOID, JSONBOID, INT8OID, INT8OID, TEXTOID, INT4OID}
};

static EvpgStatement delete_timers = {
	.text = "DELETE FROM evpg.timer WHERE saga = $1 AND key = $2",
	.types = {TEXTOID, TEXTOID}
};

/*
 * Writes the row of an instance; one that is completed loses its timers.  A row
 * that the snapshot of the transaction does not show is a serialization failure.
 */
void
EvpgInstanceWrite(const char *saga, const char *key, const EvpgInstance *instance)
{
	Datum		values[8] = {
		CStringGetTextDatum(saga),
		CStringGetTextDatum(key),
		JsonbPGetDatum(instance->state),
		JsonbPGetDatum(instance->undo),
		Int64GetDatum(instance->version),
		Int64GetDatum(instance->position),
		CStringGetTextDatum(instance->completed ? "completed" : "running"),
		Int32GetDatum(instance->saga_version)
	};

	if (!instance->exists || EvpgStatementExecute(&update_instance, values, NULL) == 0)
		EvpgStatementExecute(&upsert_instance, values, NULL);
	if (instance->completed)
		EvpgStatementExecute(&delete_timers, values, NULL);
}
