/*-------------------------------------------------------------------------
 *
 * stream.c
 *		Streams: one row of evpg.stream each, which is what commands lock.
 *
 * The row lock (FOR NO KEY UPDATE, held to the end of the transaction) makes
 * the commands of a stream serial: who has it knows version and last position.
 * What is read after that is read with a new snapshot, so that it includes what
 * the previous holder committed.  Under REPEATABLE READ and above a row that
 * changed since the snapshot is a serialization failure (40001).
 *
 * Locking and advancing are on the path of every command, so they work on the
 * table directly instead of over SPI; creating uses SQL for its ON CONFLICT.
 *
 * A stream that does not exist has no row to lock.  Who must not be run twice
 * (a handler that is a function) reserves it first by an advisory lock on
 * (type, id), in a lock class of evpg's own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_collation.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "plan.h"
#include "storage/lock.h"
#include "stream.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* Advisory locks of users have class 1 or 2 (pg_locks.objsubid); these are evpg's. */
#define LOCK_CLASS 17750

/* Columns of evpg.stream, see sql/evpg--1.0.sql. */
#define STREAM_STREAM_ID		1
#define STREAM_VERSION			2
#define STREAM_LAST_POSITION	3

/* A stream that has no row. */
static bool
no_row(EvpgStream *stream)
{
	stream->stream_id = stream->version = stream->last_position = 0;
	ItemPointerSetInvalid(&stream->tid);
	return false;
}

static bool
take_row(EvpgStream *stream, TupleTableSlot *slot)
{
	bool		isnull;

	stream->stream_id = DatumGetInt64(slot_getattr(slot, STREAM_STREAM_ID, &isnull));
	stream->version = DatumGetInt64(slot_getattr(slot, STREAM_VERSION, &isnull));
	stream->last_position = DatumGetInt64(slot_getattr(slot, STREAM_LAST_POSITION, &isnull));
	stream->tid = slot->tts_tid;
	return true;
}

static void
raise_serialization_failure(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access due to concurrent update"),
			 errhint("Retry the transaction.")));
}

/* Locks the row in slot, or the newest version of it, as SELECT FOR NO KEY UPDATE does; false if it was deleted. */
static bool
lock_row(Relation table, Snapshot snapshot, TupleTableSlot *slot)
{
	ItemPointerData tid = slot->tts_tid;
	TM_FailureData failure;
	TM_Result	result;

	result = table_tuple_lock(table, &tid, snapshot, slot, GetCurrentCommandId(false),
							  LockTupleNoKeyExclusive, LockWaitBlock,
							  IsolationUsesXactSnapshot() ? 0 : TUPLE_LOCK_FLAG_FIND_LAST_VERSION, &failure);
	switch (result)
	{
		case TM_Ok:
			return true;
		case TM_Updated:
		case TM_Deleted:
			if (IsolationUsesXactSnapshot())
				raise_serialization_failure();
			return false;
		default:
			elog(ERROR, "unexpected table_tuple_lock status: %u", result);
	}
}

/* Finds the row of a stream by its unique key, and locks it if asked. */
static bool
find_row(EvpgStream *stream, Snapshot snapshot, bool lock)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	Relation	table = table_open(catalog->stream, lock ? RowShareLock : AccessShareLock);
	Relation	index = index_open(catalog->stream_key_index, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(table, NULL);
	IndexScanDesc scan;
	ScanKeyData keys[2];
	bool		found;

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID,
						   F_TEXTEQ, CStringGetTextDatum(stream->aggregate_type));
	ScanKeyEntryInitialize(&keys[1], 0, 2, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID,
						   F_TEXTEQ, CStringGetTextDatum(stream->aggregate_id));
	PushActiveSnapshot(snapshot);
	scan = index_beginscan(table, index, GetActiveSnapshot(), 2, 0);
	index_rescan(scan, keys, 2, NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, slot) &&
		(!lock || lock_row(table, GetActiveSnapshot(), slot));
	if (found)
		(void) take_row(stream, slot);
	else
		(void) no_row(stream);
	index_endscan(scan);
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, AccessShareLock);
	table_close(table, NoLock);
	return found;
}

/* Locks a stream to the end of the transaction and fills the rest of *stream; false if it has no row. */
bool
EvpgStreamLock(EvpgStream *stream)
{
	return find_row(stream, GetTransactionSnapshot(), true);
}

/* The same without a lock, under the caller's snapshot or a new one. */
bool
EvpgStreamRead(EvpgStream *stream, bool caller_snapshot)
{
	return find_row(stream, caller_snapshot ? GetActiveSnapshot() : GetTransactionSnapshot(), false);
}

/*
 * EvpgStreamCreate
 *		Creates a stream, which is then locked; waits for another creator.
 *		False if that one was first: nothing happened, lock the row and see.
 */
bool
EvpgStreamCreate(EvpgStream *stream)
{
	Datum		values[2] = {
		CStringGetTextDatum(stream->aggregate_type),
		CStringGetTextDatum(stream->aggregate_id)
	};
	bool		created = EvpgPlanRun(EVPG_PLAN_STREAM_CREATE, values, NULL) > 0;
	Datum		value;

	(void) no_row(stream);
	if (created)
	{
		(void) EvpgPlanResult(0, 1, &value);
		stream->stream_id = DatumGetInt64(value);
		(void) EvpgPlanResult(0, 2, &value);
		stream->tid = *(ItemPointer) DatumGetPointer(value);
	}
	EvpgPlanDone();
	return created;
}

/* Makes this transaction the only one that may create the stream. */
void
EvpgStreamReserve(const EvpgStream *stream)
{
	(void) EvpgLockHash(EvpgHashPair(stream->aggregate_type, stream->aggregate_id));
}

/* A row version that did not fit on its page needs entries of its own. */
static void
insert_index_entries(Relation table, TupleTableSlot *slot)
{
	EState	   *estate = CreateExecutorState();
	MemoryContext old = MemoryContextSwitchTo(estate->es_query_cxt);
	ResultRelInfo *target = makeNode(ResultRelInfo);

	InitResultRelInfo(target, table, 0, NULL, 0);
	ExecOpenIndices(target, false);
	(void) ExecInsertIndexTuples(target, slot, estate, true, false, NULL, NIL);
	ExecCloseIndices(target);
	MemoryContextSwitchTo(old);
	FreeExecutorState(estate);
}

/*
 * EvpgStreamAdvance
 *		Stores what a locked stream has come to, in the row version that was
 *		locked: nobody else can have made another one since.
 */
void
EvpgStreamAdvance(EvpgStream *stream, int64 version, int64 last_position)
{
	Relation	table = table_open(EvpgCatalogGet()->stream, RowExclusiveLock);
	TupleTableSlot *old = table_slot_create(table, NULL);
	TupleTableSlot *new = table_slot_create(table, NULL);
	Snapshot	snapshot;
	bool		update_indexes;

	Assert(stream->stream_id != 0 && ItemPointerIsValid(&stream->tid));
	PushActiveSnapshot(GetTransactionSnapshot());
	snapshot = GetActiveSnapshot();
	if (!table_tuple_fetch_row_version(table, &stream->tid, SnapshotAny, old))
		elog(ERROR, "stream " INT64_FORMAT " has vanished", stream->stream_id);
	slot_getallattrs(old);
	memcpy(new->tts_values, old->tts_values, sizeof(Datum) * new->tts_tupleDescriptor->natts);
	memcpy(new->tts_isnull, old->tts_isnull, sizeof(bool) * new->tts_tupleDescriptor->natts);
	Assert(DatumGetInt64(new->tts_values[STREAM_STREAM_ID - 1]) == stream->stream_id);
	new->tts_values[STREAM_VERSION - 1] = Int64GetDatum(version);
	new->tts_values[STREAM_LAST_POSITION - 1] = Int64GetDatum(last_position);
	ExecStoreVirtualTuple(new);
	simple_table_tuple_update(table, &stream->tid, new, snapshot, &update_indexes);
	if (update_indexes)
		insert_index_entries(table, new);
	stream->tid = new->tts_tid;
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(new);
	ExecDropSingleTupleTableSlot(old);
	table_close(table, NoLock);
	CommandCounterIncrement();
	stream->version = version;
	stream->last_position = last_position;
}

/* Takes an advisory lock of evpg's own class to the end of the transaction; false if it had it. */
bool
EvpgLockHash(uint64 hash)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (hash >> 32), (uint32) hash, LOCK_CLASS);
	return LockAcquire(&tag, ExclusiveLock, false, false) == LOCKACQUIRE_OK;
}

/* 64 bits of two strings; ("ab", "c") and ("a", "bc") differ. */
uint64
EvpgHashPair(const char *first, const char *second)
{
	uint64		hash = DatumGetUInt64(hash_any_extended((const unsigned char *) first, strlen(first), 0));

	return DatumGetUInt64(hash_any_extended((const unsigned char *) second, strlen(second), hash));
}
