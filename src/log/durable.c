/*-------------------------------------------------------------------------
 *
 * durable.c
 *		What leaves the database is durable (rule 19): what a crash can take back
 *		is not told to anybody who may act on it.
 *
 * A commit with synchronous_commit = off is visible before it is on disk, one
 * with local before a synchronous standby has it.  Clients who choose that keep
 * the speed of their commits; who hands out what they have written waits for it
 * instead: readers of the stable position, frames, waits.  Most of the time there
 * is nothing to wait for, and nothing is written.
 *
 * How far the WAL must be durable for the stable position is known in shared
 * memory: every appender notes the end of its commit there, before it releases
 * the locks by which the fence knows it (fence.c).  Without shared memory it is
 * all the WAL that there is.
 *
 * Workers commit as the database does (synchronous_commit) where they have
 * appended, since others read that at once; everything else that they do can be
 * done again, and is committed lazily.  A transaction that notifies by itself
 * commits durably, because PostgreSQL wakes listeners right after the commit.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "base/shmem.h"
#include "base/testing.h"
#include "log/durable.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "utils/guc.h"

/* This session's transactions are committed lazily if nobody would see the difference. */
static bool lazy = false;

/* What this transaction does. */
static bool appends = false;
static bool notifies = false;

/* Workers: a transaction that neither appends nor notifies need not be on disk. */
void
EvpgDurableCommitLazily(void)
{
	lazy = true;
}

/* This transaction appends, or draws a position. */
void
EvpgDurableNoteAppend(void)
{
	appends = true;
}

/* This transaction runs NOTIFY. */
void
EvpgDurableNoteNotify(void)
{
	notifies = true;
}

static void
commit_as(const char *level)
{
	(void) set_config_option("synchronous_commit", level, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

/* The end of the WAL; on a new page that is before its header, which is not there yet. */
static XLogRecPtr
end_of_wal(void)
{
	XLogRecPtr	end = GetXLogInsertRecPtr();

	if (XLogSegmentOffset(end, wal_segment_size) == SizeOfXLogLongPHD)
		return end - SizeOfXLogLongPHD;
	if (end % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		return end - SizeOfXLogShortPHD;
	return end;
}

/* Notes the end of a commit, for readers of the stable position. */
static void
note_commit(XLogRecPtr end)
{
	uint64		noted;

	if (EvpgShmem == NULL)
		return;
	noted = pg_atomic_read_u64(&EvpgShmem->appended);
	while (noted < end && !pg_atomic_compare_exchange_u64(&EvpgShmem->appended, &noted, end))
		;
}

/*
 * EvpgDurablePreparedBegin
 *		This session is about to commit a transaction that was prepared, which may
 *		have appended.  There is no callback for it, so until EvpgDurablePreparedEnd
 *		readers take all the WAL there is.
 */
void
EvpgDurablePreparedBegin(void)
{
	if (EvpgShmem != NULL)
		pg_atomic_fetch_add_u32(&EvpgShmem->finishing, 1);
}

void
EvpgDurablePreparedEnd(void)
{
	if (EvpgShmem == NULL)
		return;
	if (!RecoveryInProgress() && !EVPG_MUTATION("prepared_unnoted"))
		note_commit(end_of_wal());
	pg_atomic_fetch_sub_u32(&EvpgShmem->finishing, 1);
}

static void
durable_at_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (notifies && synchronous_commit < SYNCHRONOUS_COMMIT_REMOTE_FLUSH && !EVPG_MUTATION("commit_undurable"))
				commit_as("on");
			else if (lazy && !notifies && (!appends || EVPG_MUTATION("commit_undurable")))
				commit_as("off");
			break;
		case XACT_EVENT_COMMIT:
			/* Visible by now, but still holding its locks. */
			if (appends)
				note_commit(XactLastCommitEnd);
			/* FALLTHROUGH */
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			appends = notifies = false;
			break;
		default:
			break;
	}
}

/* Called once, from _PG_init. */
void
EvpgDurableInit(void)
{
	RegisterXactCallback(durable_at_end, NULL);
}

/* Waits until synchronous standbys have the WAL, if this session's commits wait for that. */
static void
await_standbys(XLogRecPtr lsn)
{
	int			mode = synchronous_commit == SYNCHRONOUS_COMMIT_REMOTE_WRITE ? SYNC_REP_WAIT_WRITE : SYNC_REP_WAIT_FLUSH;

	if (!SyncRepRequested() || SyncRepStandbyNames == NULL || SyncRepStandbyNames[0] == '\0' ||
		WalSndCtl->lsn[mode] >= lsn)
		return;
	CHECK_FOR_INTERRUPTS();
	HOLD_INTERRUPTS();
	SyncRepWaitForLSN(lsn, false);
	RESUME_INTERRUPTS();

	/*
	 * It gives up at an interrupt, with a warning, and takes a request to
	 * cancel away; without one there are no synchronous standbys any more.
	 */
	if (WalSndCtl->lsn[mode] < lsn && InterruptPending)
	{
		CHECK_FOR_INTERRUPTS();
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("canceling the wait for synchronous standbys"),
				 errdetail("What was to be returned is not on a synchronous standby yet.")));
	}
}

/*
 * EvpgDurableAwait
 *		Returns when the WAL up to there is on disk, and on synchronous standbys if
 *		this session's synchronous_commit asks for them.
 */
void
EvpgDurableAwait(XLogRecPtr lsn)
{
	if (RecoveryInProgress() || EVPG_MUTATION("undurable"))
		return;
	XLogFlush(lsn);
	await_standbys(lsn);
}

/* Everything that this session sees. */
void
EvpgDurableAwaitAll(void)
{
	if (!RecoveryInProgress())
		EvpgDurableAwait(end_of_wal());
}

/*
 * EvpgDurableAwaitAppends
 *		What appenders have committed that hold no locks of the fence any more, and
 *		the WAL up to lsn.
 */
void
EvpgDurableAwaitAppends(XLogRecPtr lsn)
{
	XLogRecPtr	appended = 0;

	/* In this order: who finishes notes before it has finished. */
	if (EvpgShmem != NULL && pg_atomic_read_u32(&EvpgShmem->finishing) == 0)
	{
		pg_read_barrier();
		appended = pg_atomic_read_u64(&EvpgShmem->appended);
	}

	/*
	 * Since the start of the server nobody has noted a commit, so standbys
	 * may lack earlier ones; or one of a prepared transaction is not noted
	 * yet.
	 */
	if (appended == 0)
		appended = end_of_wal();
	EvpgDurableAwait(Max(lsn, appended));
}
