/*-------------------------------------------------------------------------
 *
 * log_page.c
 *		Fetches the rows of an index scan of the log, page by page where they lie
 *		together.
 *
 * Events are stored in the order of their positions, about, and those of one call
 * side by side, so most rows of a scan are on the page of the row before.  An index
 * scan locks the page for each row, and looks at the row alone; a sequential scan
 * locks it once, and notes which rows its snapshot sees.  This is the latter, for the
 * rows that an index returns: from the second row on a page on, all others of that
 * page need neither lock nor look.
 *
 * What an MVCC snapshot sees stays there while the page is pinned.  A row that is not
 * noted is fetched as any index scan does: what the snapshot does not see, what was
 * inserted since, what an administrator has updated in spite of the triggers.  So is
 * every row of a serializable transaction, which leaves predicate locks, and of a
 * table of another access method.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relscan.h"
#include "access/heapam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "base/compat.h"
#include "log/log_page.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* Returns whether pages of the table may be checked at once for a scan. */
static bool
may_check_pages(IndexScanDesc scan, TupleTableSlot *slot)
{
	return TTS_IS_BUFFERTUPLE(slot) && scan->heapRelation->rd_tableam == GetHeapamTableAmRoutine() &&
		IsMVCCSnapshot(scan->xs_snapshot) && !IsolationIsSerializable();
}

/* Notes the rows of the slot's page that need no more looks. */
static void
check_page(EvpgLogPage *page, IndexScanDesc scan, Buffer buffer)
{
	Relation	table = scan->heapRelation;
	Snapshot	snapshot = scan->xs_snapshot;
	Page		content = BufferGetPage(buffer);
	OffsetNumber last;
	bool		all_visible;

	memset(page->visible, 0, sizeof(page->visible));
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	TestForOldSnapshot(snapshot, table, content);
	/* In recovery the flag may be ahead of the snapshot. */
	all_visible = PageIsAllVisible(content) && !snapshot->takenDuringRecovery;
	last = PageGetMaxOffsetNumber(content);
	for (OffsetNumber offset = FirstOffsetNumber; offset <= last; offset++)
	{
		ItemId		item = PageGetItemId(content, offset);
		HeapTupleData row;

		if (!ItemIdIsNormal(item))
			continue;
		row.t_tableOid = RelationGetRelid(table);
		row.t_data = (HeapTupleHeader) PageGetItem(content, item);
		row.t_len = ItemIdGetLength(item);
		ItemPointerSet(&row.t_self, page->block, offset);
		/* No index leads to a row that another version of it leads to. */
		if (!HeapTupleIsHeapOnly(&row) && (all_visible || HeapTupleSatisfiesVisibility(&row, snapshot, buffer)))
			page->visible[offset / 64] |= UINT64CONST(1) << (offset % 64);
	}
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	page->checked = true;
}

/* Stores a row of the checked page in the slot, which keeps its pin; returns false if the row was not noted. */
static bool
store_checked_row(EvpgLogPage *page, IndexScanDesc scan, TupleTableSlot *slot, Buffer buffer)
{
	OffsetNumber offset = ItemPointerGetOffsetNumber(&scan->xs_heaptid);
	Page		content = BufferGetPage(buffer);
	ItemId		item;

	if ((page->visible[offset / 64] & UINT64CONST(1) << (offset % 64)) == 0)
		return false;
	item = PageGetItemId(content, offset);
	page->row.t_tableOid = RelationGetRelid(scan->heapRelation);
	page->row.t_data = (HeapTupleHeader) PageGetItem(content, item);
	page->row.t_len = ItemIdGetLength(item);
	page->row.t_self = scan->xs_heaptid;
	(void) ExecStoreBufferHeapTuple(&page->row, slot, buffer);
	pgstat_count_heap_fetch(scan->indexRelation);
	return true;
}

/*
 * EvpgLogPageFetch
 *		Fetches the next row of an index scan into its slot, as index_getnext_slot
 *		does; returns false at the end.  The caller uses the slot for nothing else.
 */
bool
EvpgLogPageFetch(EvpgLogPage *page, IndexScanDesc scan, ScanDirection direction, TupleTableSlot *slot)
{
	while (index_getnext_tid(scan, direction) != NULL)
	{
		BlockNumber block = ItemPointerGetBlockNumber(&scan->xs_heaptid);

		if (page->begun && block == page->block)
		{
			Buffer		buffer = ((BufferHeapTupleTableSlot *) slot)->buffer;

			if (!page->checked)
				check_page(page, scan, buffer);
			if (store_checked_row(page, scan, slot, buffer))
				return true;
		}
		page->begun = page->checked = false;
		if (index_fetch_heap(scan, slot))
		{
			page->begun = may_check_pages(scan, slot);
			page->block = block;
			return true;
		}
	}
	return false;
}
