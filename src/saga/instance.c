/*-------------------------------------------------------------------------
 *
 * instance.c
 *		The rows of instances of sagas, evpg.saga_instance, which are found and, under READ
 *		COMMITTED, written without statements (row.c).
 *
 * The caller holds the advisory lock of the instance (saga_lock.c), or has locked
 * out all instances of the saga.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/row.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "saga/instance.h"
#include "saga/timer.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Columns of evpg.saga_instance, see sql/evpg--1.0.sql. */
enum
{
	INSTANCE_SAGA, INSTANCE_KEY, INSTANCE_SAGA_VERSION, INSTANCE_STATUS, INSTANCE_STATE, INSTANCE_VERSION,
	INSTANCE_POSITION, INSTANCE_UNDO, INSTANCE_STARTED_AT, INSTANCE_UPDATED_AT, INSTANCE_NATTS
};

/*
 * EvpgInstanceRead
 *		Reads the row of an instance, as it is committed now or written by this transaction,
 *		into CurrentMemoryContext; instance->exists is false if there is none.
 */
void
EvpgInstanceRead(const char *saga, const char *key, EvpgInstance *instance)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	Datum		values[INSTANCE_NATTS];
	bool		nulls[INSTANCE_NATTS];

	memset(instance, 0, sizeof(EvpgInstance));
	instance->tuple = EvpgRowFind(&catalog->saga_instance, &catalog->saga_instance_key_index, F_TEXTEQ,
								  CStringGetTextDatum(saga), key, GetLatestSnapshot(), false);
	if (instance->tuple == NULL)
		return;
	heap_deform_tuple(instance->tuple, catalog->saga_instance_row, values, nulls);
	instance->exists = true;
	instance->state = DatumGetJsonbPCopy(values[INSTANCE_STATE]);
	instance->undo = DatumGetJsonbPCopy(values[INSTANCE_UNDO]);
	instance->version = DatumGetInt64(values[INSTANCE_VERSION]);
	instance->position = DatumGetInt64(values[INSTANCE_POSITION]);
	instance->saga_version = DatumGetInt32(values[INSTANCE_SAGA_VERSION]);
	instance->completed = strcmp(TextDatumGetCString(values[INSTANCE_STATUS]), "completed") == 0;
}

/* Returns whether a row of evpg.saga_instance is one of an instance that is completed. */
bool
EvpgInstanceRowIsCompleted(const TupleTableSlot *row)
{
	return strcmp(TextDatumGetCString(row->tts_values[INSTANCE_STATUS]), "completed") == 0;
}

/*
 * EvpgInstanceIsFree
 *		Returns whether an instance is free to react to a new event: none waits for it, nor is a
 *		dead letter in the way.
 */
bool
EvpgInstanceIsFree(const char *saga, const char *key)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	Datum		name = CStringGetTextDatum(saga);

	return EvpgRowFind(&catalog->consumer_tables[EVPG_CONSUMER_TABLE_SAGA_EVENT], &catalog->saga_event_key_index,
					   F_TEXTEQ, name, key, GetLatestSnapshot(), false) == NULL &&
		EvpgRowFind(&catalog->consumer_tables[EVPG_CONSUMER_TABLE_DEAD_LETTER], &catalog->dead_letter_key_index,
					F_TEXTEQ, name, key, GetLatestSnapshot(), false) == NULL;
}

/* Writes the row of an instance without a statement. */
static void
write_instance_row(const char *saga, const char *key, const EvpgInstance *instance)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	TimestampTz now = EvpgClockNow();
	Datum		values[INSTANCE_NATTS] = {
		[INSTANCE_SAGA] = CStringGetTextDatum(saga),
		[INSTANCE_KEY] = CStringGetTextDatum(key),
		[INSTANCE_SAGA_VERSION] = Int32GetDatum(instance->saga_version),
		[INSTANCE_STATUS] = CStringGetTextDatum(instance->completed ? "completed" : "running"),
		[INSTANCE_STATE] = JsonbPGetDatum(instance->state),
		[INSTANCE_VERSION] = Int64GetDatum(instance->version),
		[INSTANCE_POSITION] = Int64GetDatum(instance->position),
		[INSTANCE_UNDO] = JsonbPGetDatum(instance->undo),
		[INSTANCE_STARTED_AT] = TimestampTzGetDatum(now),
		[INSTANCE_UPDATED_AT] = TimestampTzGetDatum(now)
	};
	bool		nulls[INSTANCE_NATTS] = {false};
	bool		replaced[INSTANCE_NATTS] = {
		[INSTANCE_STATUS] = true,[INSTANCE_STATE] = true,[INSTANCE_VERSION] = true,[INSTANCE_POSITION] = true,
		[INSTANCE_UNDO] = true,[INSTANCE_UPDATED_AT] = true
	};
	EvpgRowWriter *writer = EvpgRowWriterBegin(&catalog->saga_instance, &catalog->saga_instance_row);

	if (instance->tuple != NULL)
		(void) EvpgRowReplace(writer, instance->tuple, values, nulls, replaced);
	else
		(void) EvpgRowInsert(writer, values, nulls);
	EvpgRowWriterEnd(writer);
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

	if (!IsolationUsesXactSnapshot())
		write_instance_row(saga, key, instance);
	else if (!instance->exists || EvpgStatementExecute(&update_instance, values, NULL) == 0)
		EvpgStatementExecute(&upsert_instance, values, NULL);
	if (instance->completed)
		EvpgTimerDeleteAll(saga, key);
}
