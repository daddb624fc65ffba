/*-------------------------------------------------------------------------
 *
 * row.c
 *		Finds, locks, inserts and replaces a row by its unique key of two columns,
 *		working on the table directly instead of over SPI: streams and keys of
 *		projections are on the path of every command.
 *
 * A row is locked as by SELECT FOR NO KEY UPDATE, to the end of the
 * transaction.  Under READ COMMITTED the newest version of it is locked and
 * returned; under REPEATABLE READ and above a row that changed since the
 * snapshot is a serialization failure (40001).  Who has locked a row may
 * replace that version of it: nobody else can have made another one.
 *
 * Rows are copies in CurrentMemoryContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "row.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* Locks the row in slot, or its newest version; false if it was deleted. */
static bool
lock_slot(Relation table, Snapshot snapshot, TupleTableSlot *slot)
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
				ereport(ERROR,
						(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						 errmsg("could not serialize access due to concurrent update"),
						 errhint("Retry the transaction.")));
			return false;
		default:
			elog(ERROR, "unexpected table_tuple_lock status: %u", result);
	}
}

/*
 * EvpgRowFind
 *		The row whose key is (first, second), NULL if there is none.  index is
 *		unique on two columns: one whose equality is the function equal, and one of
 *		type text; texts have collation "C".
 */
HeapTuple
EvpgRowFind(Oid table, Oid index, RegProcedure equal, Datum first, const char *second, Snapshot snapshot, bool lock)
{
	Relation	relation = table_open(table, lock ? RowShareLock : AccessShareLock);
	Relation	key = index_open(index, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	HeapTuple	row = NULL;
	IndexScanDesc scan;
	ScanKeyData keys[2];

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID, equal, first);
	ScanKeyEntryInitialize(&keys[1], 0, 2, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID,
						   F_TEXTEQ, CStringGetTextDatum(second));
	PushActiveSnapshot(snapshot);
	scan = index_beginscan(relation, key, GetActiveSnapshot(), 2, 0);
	index_rescan(scan, keys, 2, NULL, 0);
	if (index_getnext_slot(scan, ForwardScanDirection, slot) &&
		(!lock || lock_slot(relation, GetActiveSnapshot(), slot)))
		row = ExecCopySlotHeapTuple(slot);
	index_endscan(scan);
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(slot);
	index_close(key, AccessShareLock);
	table_close(relation, NoLock);
	return row;
}

/* The row whose key, unique by index, is a number; NULL if there is none.  Under the active snapshot. */
HeapTuple
EvpgRowById(Oid table, Oid index, int64 id)
{
	Relation	relation = table_open(table, AccessShareLock);
	Relation	key = index_open(index, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	HeapTuple	row = NULL;
	IndexScanDesc scan;
	ScanKeyData keys[1];

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	scan = index_beginscan(relation, key, GetActiveSnapshot(), 1, 0);
	index_rescan(scan, keys, 1, NULL, 0);
	if (index_getnext_slot(scan, ForwardScanDirection, slot))
		row = ExecCopySlotHeapTuple(slot);
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(key, AccessShareLock);
	table_close(relation, AccessShareLock);
	return row;
}

/* A value of a row, which points into it. */
Datum
EvpgRowValue(Oid table, HeapTuple row, int column, bool *isnull)
{
	Relation	relation = table_open(table, NoLock);
	Datum		value = heap_getattr(row, column, RelationGetDescr(relation), isnull);

	table_close(relation, NoLock);
	return value;
}

/* A new row needs entries, and a row version that did not fit on its page. */
static void
insert_index_entries(Relation relation, TupleTableSlot *slot, bool update)
{
	EState	   *estate = CreateExecutorState();
	MemoryContext old = MemoryContextSwitchTo(estate->es_query_cxt);
	ResultRelInfo *target = makeNode(ResultRelInfo);

	InitResultRelInfo(target, relation, 0, NULL, 0);
	ExecOpenIndices(target, false);
	(void) ExecInsertIndexTuples(target, slot, estate, update, false, NULL, NIL);
	ExecCloseIndices(target);
	MemoryContextSwitchTo(old);
	FreeExecutorState(estate);
}

/* Inserts a row, and returns it as it is stored. */
HeapTuple
EvpgRowInsert(Oid table, Datum *values, bool *nulls)
{
	Relation	relation = table_open(table, RowExclusiveLock);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	HeapTuple	new = heap_form_tuple(RelationGetDescr(relation), values, nulls);

	PushActiveSnapshot(GetTransactionSnapshot());
	ExecForceStoreHeapTuple(new, slot, false);
	slot->tts_tableOid = table;
	simple_table_tuple_insert(relation, slot);
	insert_index_entries(relation, slot, false);
	new->t_self = slot->tts_tid;
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(slot);
	table_close(relation, NoLock);
	CommandCounterIncrement();
	return new;
}

/*
 * EvpgRowReplace
 *		Writes new values into some columns, those that are marked in replaced, of
 *		a row that nobody else changes, and returns the new version.  Key columns
 *		are not among them.
 */
HeapTuple
EvpgRowReplace(Oid table, HeapTuple row, Datum *values, bool *nulls, bool *replaced)
{
	Relation	relation = table_open(table, RowExclusiveLock);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	HeapTuple	new = heap_modify_tuple(row, RelationGetDescr(relation), values, nulls, replaced);
	bool		update_indexes;

	PushActiveSnapshot(GetTransactionSnapshot());
	ExecForceStoreHeapTuple(new, slot, false);
	slot->tts_tableOid = table;
	simple_table_tuple_update(relation, &row->t_self, slot, GetActiveSnapshot(), &update_indexes);
	if (update_indexes)
		insert_index_entries(relation, slot, true);
	new->t_self = slot->tts_tid;
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(slot);
	table_close(relation, NoLock);
	CommandCounterIncrement();
	return new;
}
