/*-------------------------------------------------------------------------
 *
 * log_page.h
 *		Fetching the rows of an index scan of the log, page by page where they lie
 *		together.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_LOG_PAGE_H
#define EVPG_LOG_PAGE_H

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/sdir.h"
#include "executor/tuptable.h"
#include "storage/block.h"

/* A page of the table; of an index scan and its slot, zero at the beginning. */
typedef struct EvpgLogPage
{
	bool		begun;			/* block is that of the row in the slot */
	bool		checked;		/* visible is known, the slot has the pin */
	BlockNumber block;
	uint64		visible[(MaxHeapTuplesPerPage + 64) / 64];	/* rows the snapshot
															 * sees, and that need
															 * no more looks */
	HeapTupleData row;			/* which the slot points to */
} EvpgLogPage;

extern bool EvpgLogPageFetch(EvpgLogPage *page, IndexScanDesc scan, ScanDirection direction, TupleTableSlot *slot);

#endif							/* EVPG_LOG_PAGE_H */
