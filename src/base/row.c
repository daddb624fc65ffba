/*-------------------------------------------------------------------------
 *
 * row.c
 *		Finds and locks a row by its unique key of two columns, inserts and replaces
 *		rows, working on the table directly instead of over SPI: streams and keys of
 *		projections are on the path of every command.
 *
 * A row is locked as by SELECT FOR NO KEY UPDATE, to the end of the
 * transaction.  Under READ COMMITTED the newest version of it is locked and
 * returned; under REPEATABLE READ and above a row that changed since the
 * snapshot is a serialization failure (40001).  A session that has locked a row
 * may replace that version of it: no other session can have made another one.
 *
 * CHECK and NOT NULL constraints of users are kept, nothing is fired: catalog.c
 * refuses what would have to be.
 *
 * Rows are copies in CurrentMemoryContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/row.h"
#include "base/testing.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_collation.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "nodes/makefuncs.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/*
 * Locks the row in slot, or its newest version; returns false if it was
 * deleted.
 *
 * A version that this transaction has made needs no lock: a session that wants
 * the row waits for this transaction at the version before.  ROLLBACK TO takes
 * such a version back, and then it is not found any more.  A lock by one
 * subtransaction and an update by another would make a MultiXact of each
 * command, and the chain of versions would be walked through all of them.
 */
static bool
lock_slot(Relation table, Snapshot snapshot, TupleTableSlot *slot)
{
	ItemPointerData tid = slot->tts_tid;
	TM_FailureData failure;
	TM_Result	result;
	bool		copied;
	HeapTuple	row = ExecFetchSlotHeapTuple(slot, false, &copied);
	TransactionId maker = HeapTupleHeaderGetXmin(row->t_data);

	if (copied)
		heap_freetuple(row);
	if (TransactionIdIsCurrentTransactionId(maker))
		return true;
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
 *		Returns the row whose key is (first, second), in CurrentMemoryContext;
 *		NULL if there is none. table and index point into the catalog, since
 *		the index is known only under the lock of the table; it is unique on
 *		two columns: one whose equality is the function equal, and one of type
 *		text; texts have collation "C".
 *
 * A caller that locks the row is going to replace it, and takes the lock of
 * the table for that at once: to strengthen it later would be a deadlock with
 * REINDEX, which gets its own lock on the table in between and then waits for
 * the index.
 *
 * The scan goes backward: while a session holds a snapshot the index has an entry for each
 * page with versions of a row, and the newest is mostly the last.
 */
HeapTuple
EvpgRowFind(const Oid *table, const Oid *index, RegProcedure equal, Datum first, const char *second,
			Snapshot snapshot, bool lock)
{
	Relation	relation = EvpgCatalogOpen(table, lock ? RowExclusiveLock : AccessShareLock);
	Relation	key = index_open(*index, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	HeapTuple	row = NULL;
	IndexScanDesc scan;
	ScanKeyData keys[2];

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID, equal, first);
	ScanKeyEntryInitialize(&keys[1], 0, 2, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID,
						   F_TEXTEQ, CStringGetTextDatum(second));
	PushActiveSnapshot(snapshot);
	scan = index_beginscan(relation, key, GetActiveSnapshot(), NULL, 2, 0);
	index_rescan(scan, keys, 2, NULL, 0);
	if (index_getnext_slot(scan, BackwardScanDirection, slot) &&
		(!lock || lock_slot(relation, GetActiveSnapshot(), slot)))
		row = ExecCopySlotHeapTuple(slot);
	index_endscan(scan);
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(slot);
	index_close(key, AccessShareLock);
	table_close(relation, NoLock);
	return row;
}

/*
 * EvpgRowMaker
 *		Returns another transaction that has made the row that a dirty snapshot has
 *		just shown, or has removed it, and has not ended; invalid if there is none.
 */
TransactionId
EvpgRowMaker(const SnapshotData *dirty)
{
	return TransactionIdIsValid(dirty->xmin) ? dirty->xmin : dirty->xmax;
}

/*
 * EvpgRowFindDirty
 *		Returns the row whose key is unique by index, whatever the snapshot:
 *		committed by now, or made by this transaction; in CurrentMemoryContext,
 *		NULL if there is none.  One that another transaction has made or removed and not
 *		committed sets *maker, else invalid, to that transaction, and *token, else
 *		0, if it may be taken back at once: wait for its end, and look again.
 */
HeapTuple
EvpgRowFindDirty(const Oid *table, const Oid *index, ScanKey keys, int nkeys, TransactionId *maker, uint32 *token)
{
	Relation	relation = EvpgCatalogOpen(table, AccessShareLock);
	Relation	key = index_open(*index, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	HeapTuple	row = NULL;
	SnapshotData snapshot;
	IndexScanDesc scan;

	InitDirtySnapshot(snapshot);
	*maker = InvalidTransactionId;
	*token = 0;
	scan = index_beginscan(relation, key, &snapshot, NULL, nkeys, 0);
	index_rescan(scan, keys, nkeys, NULL, 0);
	if (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		*maker = EvpgRowMaker(&snapshot);
		*token = snapshot.speculativeToken;
		row = ExecCopySlotHeapTuple(slot);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(key, AccessShareLock);
	table_close(relation, NoLock);
	return row;
}

/*
 * EvpgRowListFromId
 *		Returns the row whose key, unique by index, is a number, and those that follow in the
 *		order of the index, max_count at most: a list of HeapTuple in CurrentMemoryContext, as the
 *		active snapshot shows them.  If it shows none with this number, the list begins with a
 *		later one, or is NIL.
 */
List *
EvpgRowListFromId(const Oid *table, const Oid *index, int64 id, int max_count)
{
	Relation	relation = EvpgCatalogOpen(table, AccessShareLock);
	Relation	key = index_open(*index, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	List	   *rows = NIL;
	IndexScanDesc scan;
	ScanKeyData keys[1];

	if (max_count == 1)
		ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	else
		ScanKeyInit(&keys[0], 1, BTGreaterEqualStrategyNumber, F_INT8GE, Int64GetDatum(id));
	scan = index_beginscan(relation, key, GetActiveSnapshot(), NULL, 1, 0);
	index_rescan(scan, keys, 1, NULL, 0);
	while (list_length(rows) < max_count && index_getnext_slot(scan, ForwardScanDirection, slot))
		rows = lappend(rows, ExecCopySlotHeapTuple(slot));
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(key, AccessShareLock);
	table_close(relation, AccessShareLock);
	return rows;
}

/* Writes rows of a table, which is set up once for all of them. */
struct EvpgRowWriter
{
	Relation	relation;
	TupleDesc	row;			/* the columns that C code knows */
	TupleTableSlot *slot;
	EState	   *estate;			/* NULL: no index was needed yet */
	ResultRelInfo *target;
};

/*
 * EvpgRowWriterBegin
 *		Begins to write rows of a table; each row once, since what is written can
 *		be found only after EvpgRowWriterEnd.  table and row point into the
 *		catalog.  Lives in CurrentMemoryContext.
 */
EvpgRowWriter *
EvpgRowWriterBegin(const Oid *table, const TupleDesc *row)
{
	EvpgRowWriter *writer = palloc0(sizeof(EvpgRowWriter));

	writer->relation = EvpgCatalogOpen(table, RowExclusiveLock);
	writer->row = *row;
	writer->slot = table_slot_create(writer->relation, NULL);
	PushActiveSnapshot(GetTransactionSnapshot());
	return writer;
}

/* Makes what indexes and constraints need. */
static void
prepare_target(EvpgRowWriter *writer)
{
	MemoryContext old;

	/* Constraints and indexes of users call their functions. */
	EvpgPinSearchPath();
	if (writer->estate != NULL)
		return;
	old = MemoryContextSwitchTo(GetMemoryChunkContext(writer));
	writer->estate = CreateExecutorState();
	MemoryContextSwitchTo(writer->estate->es_query_cxt);
	writer->target = makeNode(ResultRelInfo);
	InitResultRelInfo(writer->target, writer->relation, 0, NULL, 0);
	ExecOpenIndices(writer->target, false);
	MemoryContextSwitchTo(old);
}

/* Raises an error if a row, which is in the slot, violates a constraint that was added to the table. */
static void
check_constraints(EvpgRowWriter *writer, HeapTuple row)
{
	TupleDesc	all = RelationGetDescr(writer->relation);
	bool		needed = all->constr != NULL && all->constr->num_check > 0;

	for (int column = 1; !needed && HeapTupleHasNulls(row) && column <= all->natts; column++)
		needed = TupleDescAttr(all, column - 1)->attnotnull && heap_attisnull(row, column, all);
	if (!needed)
		return;
	prepare_target(writer);
	ExecConstraints(writer->target, writer->slot, writer->estate);
}

/* Inserts the index entries of a new row. */
static void
insert_index_entries(EvpgRowWriter *writer)
{
	prepare_target(writer);
	(void) ExecInsertIndexTuples(writer->target, writer->slot, writer->estate, false, false, NULL, NIL, false);
	ResetPerTupleExprContext(writer->estate);
}

/* Returns whether the key of a unique index is the same in the version of a row that is about to be replaced. */
static bool
keeps_key(const EvpgRowWriter *writer, Relation index, const IndexInfo *info, const bool *replaced)
{
	if (!info->ii_Unique || info->ii_Expressions != NIL || info->ii_Predicate != NIL || !info->ii_ReadyForInserts ||
		!index->rd_index->indimmediate || index->rd_rel->relam != BTREE_AM_OID)
		return false;
	for (int i = 0; i < info->ii_NumIndexKeyAttrs; i++)
	{
		int			column = info->ii_IndexAttrNumbers[i];

		if (column <= 0 || (column <= writer->row->natts && replaced[column - 1]))
			return false;
	}
	return true;
}

/*
 * Inserts the index entries of a version of a row that did not fit on the page of the one
 * before.  No other session can have inserted a key that both have, so that is not checked:
 * the check would look at each version that a snapshot of another session keeps.
 */
static void
update_index_entries(EvpgRowWriter *writer, const bool *replaced, bool only_summarizing)
{
	bool	   *ready;

	prepare_target(writer);
	ready = palloc(sizeof(bool) * writer->target->ri_NumIndices);
	for (int i = 0; i < writer->target->ri_NumIndices; i++)
	{
		Relation	index = writer->target->ri_IndexRelationDescs[i];
		IndexInfo  *info = writer->target->ri_IndexRelationInfo[i];
		Datum		values[INDEX_MAX_KEYS];
		bool		nulls[INDEX_MAX_KEYS];

		ready[i] = info->ii_ReadyForInserts;
		if (only_summarizing || !keeps_key(writer, index, info, replaced))
			continue;
		FormIndexDatum(info, writer->slot, writer->estate, values, nulls);
		(void) index_insert(index, values, nulls, &writer->slot->tts_tid, writer->relation, UNIQUE_CHECK_NO, true, info);
		info->ii_ReadyForInserts = false;
	}
	(void) ExecInsertIndexTuples(writer->target, writer->slot, writer->estate, true, false, NULL, NIL, only_summarizing);
	for (int i = 0; i < writer->target->ri_NumIndices; i++)
		writer->target->ri_IndexRelationInfo[i]->ii_ReadyForInserts = ready[i];
	pfree(ready);
	ResetPerTupleExprContext(writer->estate);
}

/* Inserts a row, and returns it as it is stored. */
HeapTuple
EvpgRowInsert(EvpgRowWriter *writer, Datum *values, bool *nulls)
{
	HeapTuple	new = heap_form_tuple(writer->row, values, nulls);

	ExecForceStoreHeapTuple(new, writer->slot, false);
	writer->slot->tts_tableOid = RelationGetRelid(writer->relation);
	check_constraints(writer, new);
	simple_table_tuple_insert(writer->relation, writer->slot);
	insert_index_entries(writer);
	new->t_self = writer->slot->tts_tid;
	return new;
}

/* Puts a row with new values in some columns into the slot of the writer, and returns it. */
static HeapTuple
modify_row(EvpgRowWriter *writer, HeapTuple row, Datum *values, bool *nulls, bool *replaced)
{
	TupleDesc	all = RelationGetDescr(writer->relation);
	Datum	   *new_values = palloc0(sizeof(Datum) * all->natts);
	bool	   *new_nulls = palloc0(sizeof(bool) * all->natts);
	bool	   *new_replaced = palloc0(sizeof(bool) * all->natts);
	HeapTuple	new;

	/* The stored row may have more columns than C code knows (shape.c). */
	memcpy(new_values, values, sizeof(Datum) * writer->row->natts);
	memcpy(new_nulls, nulls, sizeof(bool) * writer->row->natts);
	memcpy(new_replaced, replaced, sizeof(bool) * writer->row->natts);
	new = heap_modify_tuple(row, all, new_values, new_nulls, new_replaced);
	ExecForceStoreHeapTuple(new, writer->slot, false);
	writer->slot->tts_tableOid = RelationGetRelid(writer->relation);
	check_constraints(writer, new);
	return new;
}

/*
 * EvpgRowReplace
 *		Writes new values into some columns, those that are marked in replaced,
 *		of a row that the caller has locked, or that no other session changes;
 *		returns the new version.  Key columns are not among them.
 */
HeapTuple
EvpgRowReplace(EvpgRowWriter *writer, HeapTuple row, Datum *values, bool *nulls, bool *replaced)
{
	HeapTuple	new = modify_row(writer, row, values, nulls, replaced);
	TU_UpdateIndexes update_indexes;

	simple_table_tuple_update(writer->relation, &row->t_self, writer->slot, GetActiveSnapshot(), &update_indexes);
	if (update_indexes != TU_None)
		update_index_entries(writer, replaced, update_indexes == TU_Summarizing);
	new->t_self = writer->slot->tts_tid;
	return new;
}

/*
 * EvpgRowTryLock
 *		Locks a row against changes until the end of the transaction; returns false, without
 *		waiting, if another transaction has locked it or it is not the version any more that
 *		the caller has read.
 */
bool
EvpgRowTryLock(EvpgRowWriter *writer, HeapTuple row)
{
	TupleTableSlot *slot = table_slot_create(writer->relation, NULL);
	ItemPointerData tid = row->t_self;
	TM_FailureData failure;
	TM_Result	result;

	result = table_tuple_lock(writer->relation, &tid, GetActiveSnapshot(), slot, GetCurrentCommandId(true),
							  LockTupleNoKeyExclusive, LockWaitSkip, 0, &failure);
	ExecDropSingleTupleTableSlot(slot);
	return result == TM_Ok;
}

/* Returns what an update of a row would find now, without waiting, and whether it is this transaction that has locked it. */
static TM_Result
check_row(Relation relation, HeapTuple row, bool *own)
{
	Buffer		buffer = ReadBuffer(relation, ItemPointerGetBlockNumber(&row->t_self));
	HeapTupleData stored = {.t_self = row->t_self,.t_tableOid = RelationGetRelid(relation)};
	ItemId		item;
	TM_Result	result = TM_Deleted;

	*own = false;
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	item = PageGetItemId(BufferGetPage(buffer), ItemPointerGetOffsetNumber(&row->t_self));
	if (ItemIdIsNormal(item))
	{
		stored.t_data = (HeapTupleHeader) PageGetItem(BufferGetPage(buffer), item);
		stored.t_len = ItemIdGetLength(item);
		result = HeapTupleSatisfiesUpdate(&stored, GetCurrentCommandId(false), buffer);
		*own = !(stored.t_data->t_infomask & HEAP_XMAX_IS_MULTI) &&
			TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetRawXmax(stored.t_data));
	}
	UnlockReleaseBuffer(buffer);
	return result;
}

/*
 * EvpgRowIsFree
 *		Returns whether a row is still the version that the caller has read, and no other
 *		transaction has locked it or is changing it.  Locks and writes nothing, so it may be
 *		otherwise at once.  A row that this transaction has locked together with others, or
 *		in several subtransactions, is not free.  table points into the catalog.
 */
bool
EvpgRowIsFree(const Oid *table, HeapTuple row)
{
	Relation	relation = EvpgCatalogOpen(table, AccessShareLock);
	bool		own;
	TM_Result	result = check_row(relation, row, &own);

	table_close(relation, NoLock);
	return result == TM_Ok || (result == TM_BeingModified && own);
}

/*
 * EvpgRowTryReplace
 *		Like EvpgRowReplace for a row that other sessions may change: does nothing, and
 *		returns false, if it is not the version any more that the caller has read, or if
 *		another transaction has locked it and wait is false: a lock that comes in between is
 *		waited for, unless EvpgRowTryLock has locked the row before.  Under READ COMMITTED.
 */
bool
EvpgRowTryReplace(EvpgRowWriter *writer, HeapTuple row, Datum *values, bool *nulls, bool *replaced, bool wait)
{
	TU_UpdateIndexes update_indexes;
	TM_FailureData failure;
	LockTupleMode mode;
	TM_Result	result;
	bool		own;

	(void) modify_row(writer, row, values, nulls, replaced);

	/*
	 * It may be this transaction that has locked the row.  heap_update(),
	 * unlike heap_delete(), must not find that out without waiting.
	 */
	if (!wait && check_row(writer->relation, row, &own) == TM_BeingModified && !EvpgRowTryLock(writer, row))
		return false;
	EVPG_WAIT_POINT("row_replace");
	result = table_tuple_update(writer->relation, &row->t_self, writer->slot, GetCurrentCommandId(true), GetActiveSnapshot(),
								InvalidSnapshot, true, &failure, &mode, &update_indexes);
	if (result != TM_Ok)
		return false;
	if (update_indexes != TU_None)
		update_index_entries(writer, replaced, update_indexes == TU_Summarizing);
	return true;
}

/*
 * EvpgRowTryDelete
 *		Deletes a row; false if it is not the version any more that the caller has read.
 *		Waits for a transaction that has locked it.  Under READ COMMITTED.
 */
bool
EvpgRowTryDelete(EvpgRowWriter *writer, HeapTuple row)
{
	TM_FailureData failure;

	return table_tuple_delete(writer->relation, &row->t_self, GetCurrentCommandId(true), GetActiveSnapshot(),
							  InvalidSnapshot, true, &failure, false) == TM_Ok;
}

/* Returns where the row is that was written last. */
ItemPointerData
EvpgRowWriterPlace(const EvpgRowWriter *writer)
{
	return writer->slot->tts_tid;
}

/* Makes the rows visible to what comes after in this transaction. */
void
EvpgRowWriterEnd(EvpgRowWriter *writer)
{
	if (writer->estate != NULL)
	{
		ExecCloseIndices(writer->target);
		FreeExecutorState(writer->estate);
	}
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(writer->slot);
	table_close(writer->relation, NoLock);
	pfree(writer);
	CommandCounterIncrement();
}

/* Returns the row of two counts that an SQL function returns, in CurrentMemoryContext. */
Datum
EvpgRowOfCounts(FunctionCallInfo fcinfo, int64 first, int64 second)
{
	Datum		values[2] = {Int64GetDatum(first), Int64GetDatum(second)};
	bool		nulls[2] = {false, false};
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}
