/*-------------------------------------------------------------------------
 *
 * fence.c
 *		The position fence (rule 9): positions are drawn before commit, so a
 *		reader at position n could miss a smaller one that commits later.
 *
 * Who appends holds RowExclusiveLock on the view evpg.fence, of no use else, from
 * before its first draw to the end of its transaction.  A reader first reads
 * how far the sequence was drawn, then who holds that lock: when none of these
 * holders is a holder any more, every position up to there is decided.  Only
 * appenders matter: not other transactions, other databases, VACUUM, ANALYZE
 * or CREATE INDEX CONCURRENTLY, which lock tables but never a view.
 *
 * A position that a rolled-back subtransaction drew is dead: never appended
 * later, so it does not matter that ROLLBACK TO gives the lock back early.
 *
 * What a backend remembers between two looks is plain memory of its own.
 * Nothing is ever stored, so a dump, a restart or a failover leaves no trace.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog.h"
#include "commands/sequence.h"
#include "fence.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/wait_event.h"

/* A single look may find appenders in mid-flight: how often it looks again, each after 1 ms. */
#define MAX_LOOKS 100

static Oid	known_sequence = InvalidOid;	/* what the rest is about */
static int64 stable = 0;		/* the mark */
static int64 pending_position = 0;	/* becomes the mark when the pending are
									 * gone */
static VirtualTransactionId *pending = NULL;	/* in TopMemoryContext */
static int	npending = 0;

/*
 * EvpgFenceEnter
 *		Takes the lock of an appender.  To be called before every draw, also if
 *		this transaction took it before: a ROLLBACK TO may have given it back.
 */
void
EvpgFenceEnter(void)
{
	LockRelationOid(EvpgCatalogGet()->fence, RowExclusiveLock);
}

/* Draws a position.  The caller has entered the fence and holds the stream. */
int64
EvpgFenceDraw(void)
{
	return nextval_internal(EvpgCatalogGet()->event_position, false);
}

/* The highest position drawn so far, 0 if none. */
static int64
last_drawn(Oid sequence)
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
	UnlockReleaseBuffer(buffer);
	relation_close(relation, AccessShareLock);
	return result;
}

static bool
held_by_me(Oid fence)
{
	LOCKTAG		tag;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, fence);
	return LockHeldByMe(&tag, RowExclusiveLock);
}

/*
 * Who holds the lock of an appender.  GetLockConflicts leaves this transaction
 * out; but what it has appended is as undecided as the rest, and stays so when
 * it is prepared, under the same virtual transaction id.
 */
static VirtualTransactionId *
holders(Oid fence, int *count)
{
	LOCKTAG		tag;
	VirtualTransactionId *result;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, fence);
	result = GetLockConflicts(&tag, ShareLock, count);
	if (held_by_me(fence))
	{
		result = repalloc(result, sizeof(VirtualTransactionId) * (*count + 1));
		GET_VXID_FROM_PGPROC(result[*count], *MyProc);
		(*count)++;
	}
	return result;
}

/* Looks once; never waits.  Returns true if the mark covers all that was drawn when it looked. */
static bool
look(const EvpgCatalog *catalog)
{
	int64		drawn;
	VirtualTransactionId *current;
	int			ncurrent;

	if (npending > 0)
	{
		int			kept = 0;

		current = holders(catalog->fence, &ncurrent);
		for (int i = 0; i < npending; i++)
			for (int j = 0; j < ncurrent; j++)
				if (VirtualTransactionIdEquals(pending[i], current[j]))
				{
					pending[kept++] = pending[i];
					break;
				}
		npending = kept;
		pfree(current);
		if (npending > 0)
			return false;
		stable = pending_position;
	}

	drawn = last_drawn(catalog->event_position);
	current = holders(catalog->fence, &ncurrent);
	if (ncurrent == 0)
		stable = drawn;
	else
	{
		pending = pending == NULL ?
			MemoryContextAlloc(TopMemoryContext, sizeof(VirtualTransactionId) * ncurrent) :
			repalloc(pending, sizeof(VirtualTransactionId) * ncurrent);
		memcpy(pending, current, sizeof(VirtualTransactionId) * ncurrent);
		npending = ncurrent;
		pending_position = drawn;
	}
	pfree(current);
	return ncurrent == 0;
}

/*
 * EvpgFenceStablePosition
 *		A position at or below which no event can still appear.  Read events up
 *		to it with a snapshot taken afterwards, so only under READ COMMITTED.
 *
 * With wait, if appenders are in mid-flight, it looks again for at most a tenth
 * of a second, until those of the first look are through; longer ones hold the
 * mark.  A transaction that has appended does not look again: two of them
 * would look at each other.
 */
int64
EvpgFenceStablePosition(bool wait)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	int64		wanted;

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

	if (known_sequence != catalog->event_position)
	{
		known_sequence = catalog->event_position;
		stable = 0;
		npending = 0;
	}
	wanted = last_drawn(catalog->event_position);
	if (wanted < stable)
	{
		/* The sequence was set back, as a restore does. */
		stable = 0;
		npending = 0;
	}
	if (look(catalog) || stable >= wanted)
		return stable;

	if (!wait || held_by_me(catalog->fence))
		return stable;
	for (int i = 0; i < MAX_LOOKS && stable < wanted; i++)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 1, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (look(catalog))
			break;
	}
	return stable;
}
