/*-------------------------------------------------------------------------
 *
 * row_scan.c
 *		Reads rows of a table in the order of an index, working on both directly instead of
 *		over SPI: what each reaction of a saga looks at.
 *
 * A scan shows what is committed when it begins, or written by this transaction, under
 * every isolation level.  It holds locks on the table and the index to its end, that of
 * the table to the end of the transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/row_scan.h"
#include "catalog/pg_collation.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* More columns has no index that is scanned here. */
#define MAX_KEYS 3

struct EvpgRowScan
{
	Relation	table;
	const Oid  *known_index;
	Relation	index;			/* NULL: before the first EvpgRowScanTo */
	TupleTableSlot *slot;
	Snapshot	snapshot;		/* the active one when it was begun */
	IndexScanDesc scan;			/* NULL: before the first EvpgRowScanTo */
	TableScanDesc places;		/* NULL: before the first EvpgRowScanNewest */
};

/* Makes a condition on a column of an index, counted from 1; texts have collation "C". */
void
EvpgRowKeyInit(ScanKey key, int column, StrategyNumber strategy, RegProcedure procedure, Datum value)
{
	ScanKeyEntryInitialize(key, 0, (AttrNumber) column, strategy, InvalidOid, C_COLLATION_OID, procedure, value);
}

/*
 * EvpgRowScanBegin
 *		Begins to read rows of a table by an index; EvpgRowScanTo, EvpgRowScanAt or
 *		EvpgRowScanNewest comes next.  Both point into the catalog.  write: the caller is
 *		going to write rows that it finds, so the table is locked for that at once.  Pushes a
 *		snapshot: to be ended before those that were pushed earlier.  Lives in
 *		CurrentMemoryContext.
 */
EvpgRowScan *
EvpgRowScanBegin(const Oid *table, const Oid *index, bool write)
{
	EvpgRowScan *scan = palloc0(sizeof(EvpgRowScan));

	scan->table = EvpgCatalogOpen(table, write ? RowExclusiveLock : AccessShareLock);
	scan->known_index = index;
	scan->slot = table_slot_create(scan->table, NULL);
	PushActiveSnapshot(GetLatestSnapshot());
	scan->snapshot = GetActiveSnapshot();
	return scan;
}

/* Goes to the first row that meets the conditions; with none, to the first of all. */
void
EvpgRowScanTo(EvpgRowScan *scan, ScanKey keys, int nkeys)
{
	Assert(nkeys <= MAX_KEYS);
	if (scan->index == NULL)
		scan->index = index_open(*scan->known_index, AccessShareLock);
	if (scan->scan != NULL && scan->scan->numberOfKeys != nkeys)
	{
		index_endscan(scan->scan);
		scan->scan = NULL;
	}
	if (scan->scan == NULL)
		scan->scan = index_beginscan(scan->table, scan->index, scan->snapshot, NULL, nkeys, 0);
	index_rescan(scan->scan, keys, nkeys, NULL, 0);
}

/* Returns the next row, all of its values ready, until the scan moves on; NULL if there is no more. */
TupleTableSlot *
EvpgRowScanNext(EvpgRowScan *scan)
{
	if (!index_getnext_slot(scan->scan, ForwardScanDirection, scan->slot))
		return NULL;
	slot_getallattrs(scan->slot);
	return scan->slot;
}

/*
 * EvpgRowScanLast
 *		Returns the last row that meets the conditions of EvpgRowScanTo, after which nothing
 *		was read; NULL if none does.  A row that is updated all the time has an index entry
 *		for each page that versions of it lie on, and the newest is mostly the last: versions
 *		that a long transaction keeps from being removed are not walked through.
 */
TupleTableSlot *
EvpgRowScanLast(EvpgRowScan *scan)
{
	if (!index_getnext_slot(scan->scan, BackwardScanDirection, scan->slot))
		return NULL;
	slot_getallattrs(scan->slot);
	return scan->slot;
}

/*
 * Fetches the version of a row that a snapshot shows, given the place of that version or of an
 * earlier one; false if it is not found from there.
 */
static bool
fetch_newest(TableScanDesc scan, const ItemPointerData *tid, TupleTableSlot *slot)
{
	ItemPointerData newest = *tid;

	/* The table may have become shorter. */
	if (!table_tuple_tid_valid(scan, &newest))
		return false;
	table_tuple_get_latest_tid(scan, &newest);
	return table_tuple_fetch_row_version(scan->rs_rd, &newest, scan->rs_snapshot, slot);
}

/*
 * EvpgRowScanNewest
 *		Returns the version of a row that the scan shows, given the place of that version or
 *		of an earlier one, until the scan moves on; NULL if it is not found from there.  The
 *		place may have become that of another row: the caller compares the key, and looks in
 *		an index if it is not the right one.  While a snapshot is held an index leads to all
 *		versions that there have been since.  Moves to no place of the index.
 */
TupleTableSlot *
EvpgRowScanNewest(EvpgRowScan *scan, const ItemPointerData *tid)
{
	if (!ItemPointerIsValid(tid))
		return NULL;
	if (scan->places == NULL)
		scan->places = table_beginscan_tid(scan->table, scan->snapshot);
	if (!fetch_newest(scan->places, tid, scan->slot))
		return NULL;
	slot_getallattrs(scan->slot);
	return scan->slot;
}

/* Returns whether a row meets conditions on the first columns of its table. */
static bool
row_meets(TupleTableSlot *row, ScanKey keys, int nkeys)
{
	for (int i = 0; i < nkeys; i++)
	{
		bool		isnull;
		Datum		value = slot_getattr(row, keys[i].sk_attno, &isnull);

		if (isnull ||
			!DatumGetBool(FunctionCall2Coll(&keys[i].sk_func, keys[i].sk_collation, value, keys[i].sk_argument)))
			return false;
	}
	return true;
}

/*
 * EvpgRowScanAt
 *		Returns the first row that meets the conditions, until the scan moves on; NULL if none
 *		does.  Looks first at a place, if it is valid, where the only one that does was seen
 *		before.  The columns of the index are the first ones of the table.
 */
TupleTableSlot *
EvpgRowScanAt(EvpgRowScan *scan, const ItemPointerData *place, ScanKey keys, int nkeys)
{
	TupleTableSlot *row = EvpgRowScanNewest(scan, place);

	if (row != NULL && row_meets(row, keys, nkeys))
		return row;
	EvpgRowScanTo(scan, keys, nkeys);
	return EvpgRowScanNext(scan);
}

/* Ends a scan; what it has returned is gone. */
void
EvpgRowScanEnd(EvpgRowScan *scan)
{
	if (scan->scan != NULL)
		index_endscan(scan->scan);
	if (scan->places != NULL)
		table_endscan(scan->places);
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(scan->slot);
	if (scan->index != NULL)
		index_close(scan->index, AccessShareLock);
	table_close(scan->table, NoLock);
	pfree(scan);
}

/* Returns the first row that meets the conditions, in CurrentMemoryContext; NULL if none does.  See EvpgRowScanBegin. */
HeapTuple
EvpgRowFindFirst(const Oid *table, const Oid *index, ScanKey keys, int nkeys, bool write)
{
	EvpgRowScan *scan = EvpgRowScanBegin(table, index, write);
	HeapTuple	row = NULL;

	EvpgRowScanTo(scan, keys, nkeys);
	if (index_getnext_slot(scan->scan, ForwardScanDirection, scan->slot))
		row = ExecCopySlotHeapTuple(scan->slot);
	EvpgRowScanEnd(scan);
	return row;
}

/* Returns that row in CurrentMemoryContext, looking first at a place where it was seen before.  See EvpgRowScanAt. */
HeapTuple
EvpgRowFindAt(const Oid *table, const Oid *index, const ItemPointerData *place, ScanKey keys, int nkeys, bool write)
{
	EvpgRowScan *scan = EvpgRowScanBegin(table, index, write);
	TupleTableSlot *found = EvpgRowScanAt(scan, place, keys, nkeys);
	HeapTuple	row = found == NULL ? NULL : ExecCopySlotHeapTuple(found);

	EvpgRowScanEnd(scan);
	return row;
}
