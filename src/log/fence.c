/*-------------------------------------------------------------------------
 *
 * fence.c
 *		The position fence (rule 9): positions are drawn before commit, so a
 *		reader at position n could miss a smaller one that commits later.
 *
 * Before its first draw, and to the end of its transaction, an appender holds
 * two locks: RowExclusiveLock on the view evpg.fence, of no use else, and an
 * advisory lock whose key is the last position that was drawn before.  So what
 * it draws lies above its key.  A reader first reads how far the sequence was
 * drawn, then looks at the locks: every position up to there, and up to the
 * lowest key, is decided.  That is the mark, and every session that looks sees
 * the same.  It goes back when an appender takes its locks long after it has
 * read how far the sequence was drawn; what was decided before stays so.
 *
 * Only appenders matter: not other transactions, other databases, VACUUM,
 * ANALYZE or CREATE INDEX CONCURRENTLY, which lock tables but never a view.  A
 * prepared transaction keeps its locks, over a restart too.  A position that a
 * rolled-back subtransaction drew is dead: never appended later, so it does not
 * matter that ROLLBACK TO gives both locks back early.
 *
 * Nothing is ever stored, so a dump, a restart or a failover leaves no trace.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "base/catalog.h"
#include "base/locks.h"
#include "base/testing.h"
#include "base/wakeup.h"
#include "commands/sequence.h"
#include "log/durable.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/rel.h"
#include "utils/wait_event.h"

/* A look may find appenders in mid-flight: how often it is repeated, each time after 1 ms. */
#define MAX_LOOKS 100

/* The highest position drawn so far, 0 if none; lsn: up to where WAL must be kept for a crash not to forget it. */
static int64
last_drawn(Oid sequence, XLogRecPtr *lsn)
{
	Relation	relation = relation_open(sequence, AccessShareLock);
	Buffer		buffer = ReadBuffer(relation, 0);
	Page		page;
	ItemId		item;
	Form_pg_sequence_data data;
	int64		result;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	item = PageGetItemId(page, FirstOffsetNumber);
	data = (Form_pg_sequence_data) ((char *) PageGetItem(page, item) +
									((HeapTupleHeader) PageGetItem(page, item))->t_hoff);
	result = data->is_called ? data->last_value : data->last_value - 1;
	*lsn = PageGetLSN(page);
	UnlockReleaseBuffer(buffer);
	relation_close(relation, AccessShareLock);
	return result;
}

static bool
held_by_me(Oid fence)
{
	LOCKTAG		tag;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, fence);
	return EvpgLockHeld(&tag, RowExclusiveLock);
}

/* Says that what this transaction draws from now on lies above a position. */
static void
hold_fence(uint64 drawn)
{
	LOCKTAG		tag;

	EvpgLockTag(&tag, EVPG_LOCK_APPENDER, drawn);
	(void) LockAcquire(&tag, ShareLock, false, false);
}

/*
 * EvpgFenceEnter
 *		Takes the locks of an appender.  To be called before every draw, also if
 *		this transaction took them before: a ROLLBACK TO may have given them
 *		back, both together.
 */
void
EvpgFenceEnter(void)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	XLogRecPtr	lsn;

	EvpgDurableNoteAppend();
	if (EVPG_MUTATION("fence_late"))
		return;
	if (!held_by_me(catalog->fence))
	{
		uint64		drawn = last_drawn(catalog->event_position, &lsn);

		EVPG_WAIT_POINT("fence_read");
		hold_fence(drawn);
	}
	LockRelationOid(catalog->fence, RowExclusiveLock);
	EvpgWakeConsumersAtEnd();
}

/* Draws a position.  The caller has entered the fence and holds the stream. */
int64
EvpgFenceDraw(void)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	int64		position = nextval_internal(catalog->event_position, false);

	EVPG_WAIT_POINT("fence_drawn");
	if (EVPG_MUTATION("fence_late"))
	{
		hold_fence(position - 1);
		LockRelationOid(catalog->fence, RowExclusiveLock);
	}
	return position;
}

/* The mark as it is now. */
static int64
look_at_fence(const EvpgCatalog *catalog, int64 drawn)
{
	LOCKTAG		tag;
	VirtualTransactionId *others;
	int			nothers;
	LockData   *locks;
	int64		mark = drawn;

	/*
	 * Most of the time there is no appender, and all locks need not be looked
	 * at.
	 */
	SET_LOCKTAG_RELATION(tag, MyDatabaseId, catalog->fence);
	others = GetLockConflicts(&tag, ShareLock, &nothers);
	pfree(others);
	if (EVPG_MUTATION("fence_ignored") || (nothers == 0 && !held_by_me(catalog->fence)))
		return drawn;

	locks = GetLockStatusData();
	for (int i = 0; i < locks->nelements; i++)
	{
		const LockInstanceData *lock = &locks->locks[i];

		if (lock->locktag.locktag_type == LOCKTAG_ADVISORY && lock->locktag.locktag_field1 == MyDatabaseId &&
			lock->locktag.locktag_field4 == EVPG_LOCK_APPENDER && lock->holdMask != 0)
			mark = Min(mark, (int64) (((uint64) lock->locktag.locktag_field2 << 32) | lock->locktag.locktag_field3));
	}
	return mark;
}

/*
 * find_stable_position
 *		See EvpgFenceStablePosition.  lsn: up to where WAL must be kept for a crash
 *		not to forget what was drawn.
 *
 * With wait, if appenders are in mid-flight, it looks again for at most a tenth
 * of a second, until those of the first look are through; longer ones hold the
 * mark.  A transaction that has appended does not look again: two of them
 * would look at each other.  Nor does a session whose last wait ended at the
 * same mark: who holds it is long at work, or idle, and what others append
 * above it cannot move it.
 */
static int64
find_stable_position(bool wait, XLogRecPtr *lsn)
{
	static int64 held_mark = -1;	/* at which the last wait ended in vain */
	const EvpgCatalog *catalog = EvpgCatalogGet();
	int64		wanted;
	int64		mark;

	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("there is no stable position during recovery"),
				 errdetail("A standby does not see who appends on the primary."),
				 errhint("Ask the primary, or read with stable_only => false.")));
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("the stable position needs isolation level READ COMMITTED"),
				 errdetail("The snapshot of this transaction may be older than the position."),
				 errhint("Use READ COMMITTED, or read with stable_only => false.")));

	wanted = last_drawn(catalog->event_position, lsn);
	mark = look_at_fence(catalog, wanted);
	if (wait && mark != held_mark && !held_by_me(catalog->fence))
	{
		if (mark < wanted)
			EVPG_WAIT_POINT("fence_wait");
		for (int i = 0; i < MAX_LOOKS && mark < wanted; i++)
		{
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 1, PG_WAIT_EXTENSION);
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
			mark = look_at_fence(catalog, last_drawn(catalog->event_position, lsn));
		}
		if (mark < wanted)
			held_mark = mark;
	}
	return mark;
}

/*
 * EvpgFenceStablePosition
 *		A position at or below which no event can still appear.  Read events up
 *		to it with a snapshot taken afterwards, so only under READ COMMITTED.
 *
 * A crash may take back the last of these events.  That does no harm to what is
 * stored in this database, whose own commit comes later in the WAL.
 */
int64
EvpgFenceStablePosition(bool wait)
{
	XLogRecPtr	lsn;

	return find_stable_position(wait, &lsn);
}

/*
 * EvpgFenceDurablePosition
 *		The same for what is handed out (rule 19): no crash takes back what is
 *		decided up to there.  That is the events, and also the positions that were
 *		drawn in vain: else they would be drawn again, below a mark that somebody
 *		keeps elsewhere.
 */
int64
EvpgFenceDurablePosition(bool wait)
{
	XLogRecPtr	lsn;
	int64		mark = find_stable_position(wait, &lsn);

	EvpgDurableAwaitAppends(lsn);
	return mark;
}

/* The highest position drawn so far, 0 if none: that of an event only if no appender is in mid-flight. */
int64
EvpgFenceLastDrawn(void)
{
	XLogRecPtr	lsn;

	return last_drawn(EvpgCatalogGet()->event_position, &lsn);
}

/* Whether this transaction is an appender. */
bool
EvpgFenceHeld(void)
{
	return held_by_me(EvpgCatalogGet()->fence);
}
