/*-------------------------------------------------------------------------
 *
 * fence.c
 *		The position fence (rule 9): positions are drawn before commit, so a
 *		reader at position n could miss a smaller one that commits later.
 *
 * Before its first draw, and to the end of its transaction, an appender holds
 * two locks: RowExclusiveLock on the view evpg.fence, which has no other use,
 * and an advisory lock whose key is the last position that was drawn before.
 * So what it draws lies above its key.  A reader first reads the last position
 * drawn, then the locks: every position up to the last drawn, and up to the
 * lowest key, is decided.  That is the stable position, and it is the same for
 * every session that computes it.  It goes back if an appender takes its locks
 * long after it has read the last position drawn; what was decided before stays
 * so.
 *
 * Only appenders matter: not other transactions, other databases, VACUUM,
 * ANALYZE or CREATE INDEX CONCURRENTLY, which lock tables but never a view.  A
 * prepared transaction keeps its locks, over a restart too.  A position that a
 * rolled-back subtransaction drew is never appended later, so it does not
 * matter that ROLLBACK TO releases both locks early.
 *
 * No reader depends on anything that is stored, so a dump, a restart or a failover
 * leaves no trace.
 *
 * A standby does not see the locks of the primary.  There the stable position is the
 * last one that it has replayed of those that the primary has written into WAL
 * (EvpgFenceLogStablePosition).  An appender writes its commit record before it releases
 * its locks, and the position is written after these were looked at.  So whatever is
 * committed up to the position has been replayed before it, and replaying a commit
 * record makes the transaction visible to snapshots that are taken afterwards, as a
 * commit does: also that of a prepared transaction, and one that was not flushed before
 * its locks were released.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/locks.h"
#include "base/testing.h"
#include "base/wakeup.h"
#include "log/durable.h"
#include "log/fence.h"
#include "log/position.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/message.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/wait_event.h"

/* How often the stable position is computed again, after 1 ms each, to wait for in-progress appenders. */
#define MAX_RECHECKS 100

/* The logical messages with stable positions have this prefix. */
#define MESSAGE_PREFIX "evpg.stable_position"

/* Returns whether this transaction holds the locks of an appender. */
static bool
fence_is_held(Oid fence)
{
	LOCKTAG		tag;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, fence);
	return EvpgLockIsHeld(&tag, RowExclusiveLock);
}

/*
 * Takes the advisory lock that shows that what this transaction draws from now
 * on lies above a position.
 */
static void
lock_as_appender(uint64 drawn)
{
	LOCKTAG		tag;

	EvpgSetLockTag(&tag, EVPG_LOCK_APPENDER, drawn);
	(void) LockAcquire(&tag, ShareLock, false, false);
}

/*
 * EvpgFenceEnter
 *		Takes the locks of an appender to the end of the transaction.  The
 *		caller holds the stream, and calls this before every draw, also if
 *		the transaction took the locks before: a ROLLBACK TO may have given them
 *		back, both together.
 */
void
EvpgFenceEnter(void)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();

	EvpgDurableNoteAppend();
	if (EVPG_MUTATION("fence_late"))
		return;
	if (!fence_is_held(catalog->fence))
	{
		uint64		drawn = EvpgPositionLockAndReadLast();

		EVPG_WAIT_POINT("fence_read");
		lock_as_appender(drawn);
		LockRelationOid(catalog->fence, RowExclusiveLock);
	}
	EvpgWakeConsumersAtEnd();
}

/*
 * EvpgFenceDrawPositions
 *		Draws so many positions, which follow each other, and returns the first.
 *		The caller has entered the fence, and holds the stream.
 */
int64
EvpgFenceDrawPositions(int count)
{
	int64		first = EvpgPositionDraw(count);

	EVPG_WAIT_POINT("fence_drawn");
	if (EVPG_MUTATION("fence_late"))
	{
		lock_as_appender(first - 1);
		LockRelationOid(EvpgCatalogGet()->fence, RowExclusiveLock);
	}
	return first;
}

/* Computes the stable position as it is now, given the highest position drawn. */
static int64
compute_stable_position(const EvpgCatalog *catalog, int64 drawn)
{
	LOCKTAG		tag;
	VirtualTransactionId *others;
	int			nothers;
	LockData   *locks;
	int64		position = drawn;

	/*
	 * Most of the time there is no appender, and the whole lock table need
	 * not be read.
	 */
	SET_LOCKTAG_RELATION(tag, MyDatabaseId, catalog->fence);
	others = GetLockConflicts(&tag, ShareLock, &nothers);
	pfree(others);
	if (EVPG_MUTATION("fence_ignored") || (nothers == 0 && !fence_is_held(catalog->fence)))
		return drawn;

	locks = GetLockStatusData();
	for (int i = 0; i < locks->nelements; i++)
	{
		const LockInstanceData *lock = &locks->locks[i];

		if (lock->locktag.locktag_type == LOCKTAG_ADVISORY && lock->locktag.locktag_field1 == MyDatabaseId &&
			lock->locktag.locktag_field4 == EVPG_LOCK_APPENDER && lock->holdMask != 0)
			position = Min(position, (int64) (((uint64) lock->locktag.locktag_field2 << 32) | lock->locktag.locktag_field3));
	}
	return position;
}

/* Raises 25000 above READ COMMITTED, where the snapshot may not show what is committed up to a position. */
void
EvpgFenceRefuseStale(void)
{
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("the stable position needs isolation level READ COMMITTED"),
				 errdetail("The snapshot of this transaction may be older than the position."),
				 errhint("Use READ COMMITTED, or read with stable_only => false.")));
}

/*
 * Returns the stable position of a standby, which only has WAL that is durable
 * where it comes from.  It is never above the sequence, which the database of a copy may
 * have lost (see EvpgFenceLogStablePosition).
 */
static int64
read_replayed_position(XLogRecPtr *lsn)
{
	int64		logged = EvpgPositionReadLogged();
	int64		drawn = EvpgPositionReadLast(lsn);

	return Min(logged, drawn);
}

/*
 * Returns the stable position (EvpgFenceStablePosition), and up to where WAL must
 * be durable for a crash not to forget what was drawn (lsn).
 *
 * With wait, if appenders are in progress, it is computed again for at most a
 * tenth of a second, until those of the first try have ended; longer ones hold it
 * back.  A transaction that has appended does not wait: two of them would wait for
 * each other.  Nor does a session whose last wait ended at the same position: the
 * transaction that holds it back is long, or idle, and what others append above it
 * cannot move it.
 */
static int64
find_stable_position(bool wait, XLogRecPtr *lsn)
{
	static int64 held_position = -1;	/* at which the last wait ended in
										 * vain */
	const EvpgCatalog *catalog = EvpgCatalogGet();
	int64		wanted;
	int64		position;

	EvpgFenceRefuseStale();
	if (RecoveryInProgress())
		return read_replayed_position(lsn);
	wanted = EvpgPositionReadLast(lsn);
	position = compute_stable_position(catalog, wanted);
	if (wait && position != held_position && !fence_is_held(catalog->fence))
	{
		if (position < wanted)
			EVPG_WAIT_POINT("fence_wait");
		for (int i = 0; i < MAX_RECHECKS && position < wanted; i++)
		{
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 1, PG_WAIT_EXTENSION);
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
			position = compute_stable_position(catalog, EvpgPositionReadLast(lsn));
		}
		if (position < wanted)
			held_position = position;
	}
	return position;
}

/*
 * EvpgFenceStablePosition
 *		Returns a position at or below which no event can still appear.  Read
 *		events up to it with a snapshot taken afterwards.  With wait,
 *		in-progress appenders are waited for, a tenth of a second at most.
 *		On a standby it is what the primary has written into WAL last.  Raises 25000
 *		unless the isolation level is READ COMMITTED.
 *
 * A crash may take back the last of these events.  That does no harm to what
 * is stored in this database, whose own commit comes later in the WAL.
 */
int64
EvpgFenceStablePosition(bool wait)
{
	XLogRecPtr	lsn;

	return find_stable_position(wait, &lsn);
}

/*
 * EvpgFenceDurablePosition
 *		Returns the stable position for what is handed out (rule 19), after
 *		waiting until no crash can take back what is decided up to it.  That is
 *		the events, and also the positions that were drawn in vain: they would
 *		be drawn again, below a checkpoint that a client keeps elsewhere.
 */
int64
EvpgFenceDurablePosition(bool wait)
{
	XLogRecPtr	lsn;
	int64		position = find_stable_position(wait, &lsn);

	EvpgDurableAwaitAppends(lsn);
	return position;
}

/*
 * EvpgFenceLogStablePosition
 *		Writes the stable position into WAL, for standbys and, with wal_level =
 *		logical, for readers of a logical slot; sets *position to what they have then.
 *		Returns false, and nothing is written, if it has not moved since.  Does not flush.
 *		On a primary, under any isolation level.
 *
 * What was written may lie above all positions drawn in a copy of a database whose
 * sequence was not in WAL (see docs/operations.md, CREATE DATABASE … TEMPLATE), and is
 * taken back then.
 */
bool
EvpgFenceLogStablePosition(int64 *position)
{
	int64		logged = EvpgPositionReadLogged();
	XLogRecPtr	lsn;
	int64		drawn = EvpgPositionReadLast(&lsn);
	int64		stable = EVPG_MUTATION("logged_unstable") ? drawn : compute_stable_position(EvpgCatalogGet(), drawn);
	XLogRecPtr	end;

	*position = logged;
	if (stable <= logged && logged <= drawn)
		return false;
	EVPG_WAIT_POINT("position_log");
	*position = stable;
	end = EvpgPositionLog(stable, logged > drawn);
	if (end == InvalidXLogRecPtr)
		return false;
	if (XLogLogicalInfoActive())
	{
		char		text[MAXINT8LEN + 1];
		int			length = pg_lltoa(stable, text);

		end = LogLogicalMessage(MESSAGE_PREFIX, text, length, false, false);
	}
	/* The WAL writer flushes it soon, unless a commit does. */
	XLogSetAsyncXactLSN(end);
	return true;
}

/*
 * EvpgFenceLastDrawn
 *		Returns the highest position drawn so far, 0 if none: that of a
 *		committed event only if no appender is in progress.
 */
int64
EvpgFenceLastDrawn(void)
{
	XLogRecPtr	lsn;

	return EvpgPositionReadLast(&lsn);
}

/* Returns whether this transaction is an appender. */
bool
EvpgFenceIsHeld(void)
{
	return fence_is_held(EvpgCatalogGet()->fence);
}
