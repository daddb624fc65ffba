/*-------------------------------------------------------------------------
 *
 * position.c
 *		The sequence of positions, evpg.event_position, and how far it is final as
 *		standbys are told, evpg.logged_position.
 *
 * Positions are drawn without nextval(), several at once for a call with several
 * events.  What is written is what nextval() writes: most draws change the page of
 * the sequence alone; one in LOGGED_AHEAD, and the first after a checkpoint, also
 * writes a WAL record that is so many positions ahead, so that none is drawn again
 * after a crash.  INCREMENT, CACHE, MAXVALUE and CYCLE of the sequence have no effect.
 *
 * evpg.logged_position is a sequence because of what writing one costs: one WAL record,
 * which changes a page in place, without transaction id, commit or dead row, however
 * many there are and however old the oldest snapshot is.  Replaying that record shows
 * a standby what the primary wrote, and everything that was committed before it
 * (fence.c).  Nothing is drawn from it.
 *
 * Locks: RowExclusiveLock on the sequence, from the first draw to the end of the
 * transaction, as nextval() takes it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/testing.h"
#include "commands/sequence.h"
#include "log/position.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/rel.h"

/* How many positions more than it needs a draw logs, as nextval() does. */
#define LOGGED_AHEAD	32

/* The sequence, its page being pinned and locked. */
typedef struct PositionPage
{
	Relation	sequence;
	Buffer		buffer;
	Page		page;
	ItemId		item;
	Form_pg_sequence_data data;
} PositionPage;

static void
open_page(PositionPage *page, Oid sequence, LOCKMODE mode, int buffer_mode)
{
	HeapTupleHeader tuple;

	page->sequence = relation_open(sequence, mode);
	page->buffer = ReadBuffer(page->sequence, 0);
	LockBuffer(page->buffer, buffer_mode);
	page->page = BufferGetPage(page->buffer);
	page->item = PageGetItemId(page->page, FirstOffsetNumber);
	tuple = (HeapTupleHeader) PageGetItem(page->page, page->item);
	page->data = (Form_pg_sequence_data) ((char *) tuple + tuple->t_hoff);
}

static void
close_page(PositionPage *page, LOCKMODE mode)
{
	UnlockReleaseBuffer(page->buffer);
	relation_close(page->sequence, mode);
}

static int64
get_last(const PositionPage *page)
{
	return page->data->is_called ? page->data->last_value : page->data->last_value - 1;
}

/*
 * EvpgPositionReadLast
 *		Returns the highest position drawn so far, 0 if none, and up to where WAL
 *		must be durable for a crash not to forget it (lsn).
 */
int64
EvpgPositionReadLast(XLogRecPtr *lsn)
{
	PositionPage page;
	int64		last;

	open_page(&page, EvpgCatalogGet()->event_position, AccessShareLock, BUFFER_LOCK_SHARE);
	last = get_last(&page);
	*lsn = PageGetLSN(page.page);
	close_page(&page, AccessShareLock);
	return last;
}

/* Returns the highest position drawn so far to a transaction that is going to draw, and keeps the lock for that. */
int64
EvpgPositionLockAndReadLast(void)
{
	PositionPage page;
	int64		last;

	open_page(&page, EvpgCatalogGet()->event_position, RowExclusiveLock, BUFFER_LOCK_SHARE);
	last = get_last(&page);
	close_page(&page, NoLock);
	return last;
}

/*
 * Changes the page to a value, and writes the WAL record of that; returns its end.
 * Of a draw it is the last position that the record covers: the caller changes the page
 * to what it really is.
 */
static XLogRecPtr
log_value(PositionPage *page, int64 value)
{
	xl_seq_rec	record = EvpgSequenceRecord(page->sequence);
	XLogRecPtr	end;

	page->data->last_value = value;
	page->data->is_called = true;
	page->data->log_cnt = 0;
	XLogBeginInsert();
	XLogRegisterBuffer(0, page->buffer, REGBUF_WILL_INIT);
	XLogRegisterData((char *) &record, sizeof(record));
	XLogRegisterData((char *) PageGetItem(page->page, page->item), ItemIdGetLength(page->item));
	end = XLogInsert(RM_SEQ_ID, XLOG_SEQ_LOG);
	PageSetLSN(page->page, end);
	return end;
}

/*
 * EvpgPositionDraw
 *		Draws so many positions, which follow each other, and returns the first.
 *		The caller has entered the fence.  Raises 2200H when there are no more.
 */
int64
EvpgPositionDraw(int count)
{
	PositionPage page;
	int64		last;
	int64		logged;
	bool		must_log;

	Assert(count > 0);
	PreventCommandIfReadOnly("an append");
	PreventCommandIfParallelMode("an append");
	open_page(&page, EvpgCatalogGet()->event_position, RowExclusiveLock, BUFFER_LOCK_EXCLUSIVE);
	last = get_last(&page);
	if (last > PG_INT64_MAX - LOGGED_AHEAD - count)
		ereport(ERROR,
				(errcode(ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED),
				 errmsg("there are no more positions"),
				 errdetail("The last one that was drawn is " INT64_FORMAT ".", last)));
	logged = page.data->log_cnt;

	/*
	 * After a checkpoint recovery begins with what the page is on disk: it
	 * must learn how far the positions are drawn.
	 */
	must_log = !page.data->is_called || logged < count || PageGetLSN(page.page) <= GetRedoRecPtr();
	if (must_log)
		logged = count + LOGGED_AHEAD;
	must_log &= RelationNeedsWAL(page.sequence) && !EVPG_MUTATION("position_unlogged");

	/*
	 * The commit of a transaction with an xid is flushed, and with it the
	 * record.
	 */
	if (must_log)
		(void) GetTopTransactionId();

	START_CRIT_SECTION();
	MarkBufferDirty(page.buffer);
	if (must_log)
		(void) log_value(&page, last + logged);
	page.data->last_value = last + count;
	page.data->is_called = true;
	page.data->log_cnt = logged - count;
	END_CRIT_SECTION();

	close_page(&page, NoLock);
	return last + 1;
}

/*
 * EvpgPositionReadLogged
 *		Returns the stable position as it was last written into WAL, 0 if never: on a
 *		standby as it was last replayed.
 */
int64
EvpgPositionReadLogged(void)
{
	PositionPage page;
	int64		logged;

	open_page(&page, EvpgCatalogGet()->logged_position, AccessShareLock, BUFFER_LOCK_SHARE);
	logged = get_last(&page);
	close_page(&page, AccessShareLock);
	return logged;
}

/*
 * EvpgPositionLog
 *		Writes a stable position into WAL, and returns the end of its record;
 *		InvalidXLogRecPtr, and nothing is written, if one as high was written before, which
 *		is not to be taken back.  Does not flush.
 */
XLogRecPtr
EvpgPositionLog(int64 stable, bool take_back)
{
	PositionPage page;
	XLogRecPtr	end = InvalidXLogRecPtr;

	open_page(&page, EvpgCatalogGet()->logged_position, AccessShareLock, BUFFER_LOCK_EXCLUSIVE);
	if (stable > get_last(&page) || take_back)
	{
		START_CRIT_SECTION();
		MarkBufferDirty(page.buffer);
		end = log_value(&page, stable);
		END_CRIT_SECTION();
	}
	close_page(&page, AccessShareLock);
	return end;
}
