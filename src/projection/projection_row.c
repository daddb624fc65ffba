/*-------------------------------------------------------------------------
 *
 * projection_row.c
 *		Rows of projections (rules 11 and 12): finding, locking and writing the
 *		row of a key, and its frames.
 *
 * The row of (projection, key) guards a key.  A transaction that applies the events
 * that it appends has the row locked, and inserts a missing one first, so applies to a
 * key are serial.  Besides, the first evpg.max_key_locks keys of a transaction are
 * locked by an advisory lock of evpg's own; later ones send frames without data.  An
 * asynchronous projection or a rebuild, which owns all rows of a build, needs neither.
 *
 * Table projections have such a row too, without a state.
 *
 * A row that was deleted stays, marked, so that (generation, version) never
 * goes back: the generation rises when a key comes back or is rebuilt, the
 * version counts the applies of a generation.  A row counts generations within
 * its build; what is shown adds those of the builds before.
 *
 * Memory: what a row points to is in the context that was current when it was
 * locked or opened.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/locks.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/row.h"
#include "base/row_scan.h"
#include "base/settings.h"
#include "base/statement.h"
#include "miscadmin.h"
#include "projection/projection_row.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Columns of evpg.projection_state, see sql/evpg--1.0.sql. */
#define STATE_BUILD			1
#define STATE_VERSION		2
#define STATE_POSITION		3
#define STATE_UPDATED_AT	4
#define STATE_GENERATION	5
#define STATE_DELETED		6
#define STATE_KEY			7
#define STATE_STATE			8
#define STATE_NATTS			8

static Datum
get_row_value(const EvpgProjectionRow *row, int column, bool *isnull)
{
	return heap_getattr(row->tuple, column, EvpgCatalogGet()->projection_state_row, isnull);
}

/* Finds the row of a key and reads it, into CurrentMemoryContext; returns false if there is none. */
static bool
find_projection_row(EvpgProjectionRow *row, bool lock)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	Datum		value;
	bool		isnull;

	row->tuple = EvpgRowFind(&catalog->projection_state, &catalog->projection_state_key_index, F_INT8EQ,
							 Int64GetDatum(row->build), row->key, GetTransactionSnapshot(), lock);
	if (row->tuple == NULL)
		return false;
	row->generation = DatumGetInt32(get_row_value(row, STATE_GENERATION, &isnull));
	row->version = DatumGetInt64(get_row_value(row, STATE_VERSION, &isnull));
	row->position = DatumGetInt64(get_row_value(row, STATE_POSITION, &isnull));
	row->updated_at = DatumGetTimestampTz(get_row_value(row, STATE_UPDATED_AT, &isnull));
	row->deleted = DatumGetBool(get_row_value(row, STATE_DELETED, &isnull));
	value = get_row_value(row, STATE_STATE, &isnull);
	if (!isnull)
		row->state = DatumGetJsonbPCopy(value);
	return true;
}

static EvpgStatement insert_projection_row = {
	.text = "INSERT INTO evpg.projection_state (build, key, generation, version, position, deleted, updated_at)"
	" VALUES ($1, $2, 1, 0, 0, true, evpg.clock_timestamp())"
	" ON CONFLICT (build, key) DO NOTHING",
	.types = {INT8OID, TEXTOID}
};

/*
 * EvpgProjectionRowLock
 *		Locks the row of a key in the build that is read, until the end of the
 *		transaction, and reads it, into CurrentMemoryContext; inserts the row if it is
 *		missing.  key must live as long as *row.
 */
void
EvpgProjectionRowLock(EvpgProjectionRow *row, EvpgProjection *projection, const char *key)
{
	memset(row, 0, sizeof(EvpgProjectionRow));
	row->projection = projection;
	row->build = projection->build;
	row->key = key;
	/* Before any lock of a key: REINDEX would come in between. */
	LockRelationOid(EvpgCatalogGet()->projection_state, RowExclusiveLock);
	/* Another hash than that of an event id. */
	if (EvpgLockCount(EVPG_COUNTED_KEY) < EvpgMaxKeyLocks)
	{
		if (EvpgLockKey(EVPG_LOCK_KEY, ~EvpgHashPair(projection->name, key)))
			EvpgLockCountAdd(EVPG_COUNTED_KEY);
		row->ordered = true;
	}
	while (!find_projection_row(row, true))
	{
		Datum		values[2] = {Int64GetDatum(row->build), CStringGetTextDatum(key)};

		EvpgStatementExecute(&insert_projection_row, values, NULL);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * EvpgProjectionBuildHasRows
 *		Returns whether a build has any row, committed or of this transaction; those that
 *		other sessions are writing for other parts of a rebuild do not count.
 */
bool
EvpgProjectionBuildHasRows(int64 build)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	ScanKeyData key;

	EvpgRowKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(build));
	return EvpgRowFindFirst(&catalog->projection_state, &catalog->projection_state_key_index, &key, 1, true) != NULL;
}

/*
 * EvpgProjectionRowOpen
 *		Reads the row of a key in a build whose rows no other session changes, into
 *		CurrentMemoryContext; the row need not exist, and is not looked for if has_rows is
 *		false: see EvpgProjectionBuildHasRows.  key must live as long as *row.
 */
void
EvpgProjectionRowOpen(EvpgProjectionRow *row, EvpgProjection *projection, int64 build, const char *key, bool has_rows)
{
	memset(row, 0, sizeof(EvpgProjectionRow));
	row->projection = projection;
	row->build = build;
	row->key = key;
	row->ordered = true;
	if (!has_rows || !find_projection_row(row, false))
	{
		row->generation = 1;
		row->deleted = true;
	}
}

/* All but the key. */
static bool replaced[STATE_NATTS] = {
	false, true, true, true, true, true, false, true
};

/* Begins to write many rows, each of them once; end with EvpgRowWriterEnd. */
EvpgRowWriter *
EvpgProjectionRowWriter(void)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();

	return EvpgRowWriterBegin(&catalog->projection_state, &catalog->projection_state_row);
}

/*
 * EvpgProjectionRowPut
 *		Writes one of many rows, whose time advances, also within a transaction; wakes
 *		the sessions that wait for the key at commit.  Error if the state in a module
 *		exceeds the limits.
 */
void
EvpgProjectionRowPut(EvpgRowWriter *writer, EvpgProjectionRow *row)
{
	Datum		values[STATE_NATTS];
	bool		nulls[STATE_NATTS] = {0};

	if (row->json != NULL && !row->deleted)
	{
		row->state = EvpgJsonToJsonb(row->json->json, "projection state");
		EvpgJsonbCheckLimits(row->state, "projection state");
	}
	row->updated_at = Max(EvpgClockNow(), row->updated_at + 1);
	values[STATE_BUILD - 1] = Int64GetDatum(row->build);
	values[STATE_VERSION - 1] = Int64GetDatum(row->version);
	values[STATE_POSITION - 1] = Int64GetDatum(row->position);
	values[STATE_UPDATED_AT - 1] = TimestampTzGetDatum(row->updated_at);
	values[STATE_GENERATION - 1] = Int32GetDatum(row->generation);
	values[STATE_DELETED - 1] = BoolGetDatum(row->deleted);
	values[STATE_KEY - 1] = CStringGetTextDatum(row->key);
	values[STATE_STATE - 1] = PointerGetDatum(row->state);
	nulls[STATE_STATE - 1] = (row->state == NULL);
	if (row->tuple == NULL)
		row->tuple = EvpgRowInsert(writer, values, nulls);
	else
		row->tuple = EvpgRowReplace(writer, row->tuple, values, nulls, replaced);
	if (row->build == row->projection->build)
		EvpgWakeWaitersAtCommit(EvpgHashPair(row->projection->name, row->key));
}

/* Writes one row, as EvpgProjectionRowPut. */
void
EvpgProjectionRowWrite(EvpgProjectionRow *row)
{
	EvpgRowWriter *writer = EvpgProjectionRowWriter();

	EvpgProjectionRowPut(writer, row);
	EvpgRowWriterEnd(writer);
}

static EvpgStatement delete_projection_row = {
	.text = "DELETE FROM evpg.projection_state"
	" WHERE build = $1 AND key = $2",
	.types = {INT8OID, TEXTOID}
};

/* Deletes a row that was only inserted to be locked. */
void
EvpgProjectionRowRemove(EvpgProjectionRow *row)
{
	Datum		values[2] = {Int64GetDatum(row->build), CStringGetTextDatum(row->key)};

	EvpgStatementExecute(&delete_projection_row, values, NULL);
}

/* Begins a new generation of a row that is marked as deleted, unless it is the first; in memory. */
void
EvpgProjectionRowRevive(EvpgProjectionRow *row)
{
	if (row->version > 0)
		row->generation++;
	row->version = 0;
	row->deleted = false;
	row->state = NULL;
}

/* Sends a frame about a row as it is, with an event name and data, unless the projection sends none. */
void
EvpgProjectionRowSend(const EvpgProjectionRow *row, const char *name, Jsonb *data)
{
	EvpgProjection *projection = row->projection;
	EvpgFrame	frame = {
		.event = name,
		.projection = projection->name,
		.key = row->key,
		.generation = projection->generation_base + row->generation,
		.version = row->version,
		.position = row->position,
		.deleted = row->deleted,
		.with_data = projection->broadcast == EVPG_BROADCAST_DELTA,
		.truncated = !row->ordered && projection->broadcast == EVPG_BROADCAST_DELTA,
		.data = data
	};

	if (projection->broadcast != EVPG_BROADCAST_NONE)
		EvpgBroadcastSend(&frame);
}
