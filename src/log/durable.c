/*-------------------------------------------------------------------------
 *
 * durable.c
 *		What leaves the database is durable (rule 19): an event that a crash can
 *		still take back is not handed to a client that may act on it.
 *
 * A commit with synchronous_commit = off is visible before it is on disk, one
 * with local before a synchronous standby has it.  Clients that choose those
 * levels keep the speed of their commits; a session that hands out what they
 * have written waits for it instead: readers of the stable position, frames,
 * waits.  Most of the time there is nothing to wait for, and nothing is
 * written; a wait for standbys writes a record to wait for.
 *
 * How far the WAL must be durable for the stable position is known in shared
 * memory: every appender notes the end of its commit there, before it releases
 * the locks by which the fence knows it (fence.c).  Without shared memory it is
 * all the WAL that there is.
 *
 * Workers commit as the database does (synchronous_commit) where they have
 * appended, since others read that at once; everything else that they do can be
 * done again, and is committed lazily.  A transaction that runs NOTIFY itself
 * commits durably, because PostgreSQL wakes listeners right after the commit.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xloginsert.h"
#include "base/shmem.h"
#include "base/testing.h"
#include "catalog/pg_control.h"
#include "log/durable.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "utils/guc.h"

/* This session commits lazily where no other session would notice. */
static bool commits_lazily = false;

/* What this transaction does. */
static bool appends = false;
static bool notifies = false;

/*
 * EvpgDurableCommitLazily
 *		Lets this process commit with synchronous_commit = off the transactions
 *		that neither append nor notify.  For background processes, whose other
 *		work can be done again.
 */
void
EvpgDurableCommitLazily(void)
{
	commits_lazily = true;
}

/* Returns whether this process commits lazily what no other session would notice. */
bool
EvpgDurableCommitsLazily(void)
{
	return commits_lazily;
}

/* Notes that this transaction appends, or draws a position. */
void
EvpgDurableNoteAppend(void)
{
	appends = true;
}

/* Returns whether this transaction has appended, or drawn a position. */
bool
EvpgDurableAppends(void)
{
	return appends;
}

/* Notes that this transaction runs NOTIFY. */
void
EvpgDurableNoteNotify(void)
{
	notifies = true;
}

/* Sets synchronous_commit for this transaction. */
static void
set_commit_level(const char *level)
{
	(void) set_config_option("synchronous_commit", level, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

/*
 * Returns the end of the WAL; on a new page the end of the previous one, since
 * the page's header is not written yet.
 */
static XLogRecPtr
get_wal_end(void)
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
note_append_commit(XLogRecPtr end)
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
 *		Notes that this session is about to commit a prepared transaction, which
 *		may have appended.  There is no callback for that, so until
 *		EvpgDurablePreparedEnd readers wait for all the WAL there is.
 */
void
EvpgDurablePreparedBegin(void)
{
	if (EvpgShmem != NULL)
		pg_atomic_fetch_add_u32(&EvpgShmem->finishing, 1);
}

/* Ends what EvpgDurablePreparedBegin began, also after an error: notes the end of the commit. */
void
EvpgDurablePreparedEnd(void)
{
	if (EvpgShmem == NULL)
		return;
	if (!RecoveryInProgress() && !EVPG_MUTATION("prepared_unnoted"))
		note_append_commit(get_wal_end());
	pg_atomic_fetch_sub_u32(&EvpgShmem->finishing, 1);
}

/* Chooses the level of a commit, and notes its end. */
static void
durable_xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (notifies && synchronous_commit < SYNCHRONOUS_COMMIT_REMOTE_FLUSH && !EVPG_MUTATION("commit_undurable"))
				set_commit_level("on");
			else if (commits_lazily && !notifies && (!appends || EVPG_MUTATION("commit_undurable")))
				set_commit_level("off");
			break;
		case XACT_EVENT_COMMIT:
			/* Visible by now, but still holding its locks. */
			if (appends)
				note_append_commit(XactLastCommitEnd);
			/* FALLTHROUGH */
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			appends = notifies = false;
			break;
		default:
			break;
	}
}

/* Registers the transaction callback.  Called once, from _PG_init. */
void
EvpgDurableInit(void)
{
	RegisterXactCallback(durable_xact_callback, NULL);
}

/*
 * Writes a record that says nothing, and returns its end.  The server queues those
 * that wait for standbys by what they wait for, which is the end of a record of their
 * own: no two are equal.  What this session waits for may be the commit of another one,
 * which is waiting, too.
 */
static XLogRecPtr
write_own_record(void)
{
	char		nothing = 0;

	XLogBeginInsert();
	/* A record has data. */
	XLogRegisterData(&nothing, sizeof(nothing));
	return XLogInsert(RM_XLOG_ID, XLOG_NOOP);
}

/* Returns whether synchronous standbys lack the WAL up to lsn, and this session's commits wait for them. */
static bool
lacks_standbys(XLogRecPtr lsn)
{
	int			mode = synchronous_commit == SYNCHRONOUS_COMMIT_REMOTE_WRITE ? SYNC_REP_WAIT_WRITE : SYNC_REP_WAIT_FLUSH;

	return SyncRepRequested() && SyncRepStandbyNames != NULL && SyncRepStandbyNames[0] != '\0' &&
		WalSndCtl->lsn[mode] < lsn;
}

/* Waits until synchronous standbys have the WAL up to lsn, which they lack. */
static void
await_standbys(XLogRecPtr lsn)
{
	XLogRecPtr	own;

	CHECK_FOR_INTERRUPTS();
	own = write_own_record();
	XLogFlush(own);
	HOLD_INTERRUPTS();
	SyncRepWaitForLSN(own, false);
	RESUME_INTERRUPTS();

	/*
	 * It gives up at an interrupt, with a warning, and takes a request to
	 * cancel away; without one there are no synchronous standbys any more.
	 */
	if (lacks_standbys(lsn) && InterruptPending)
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
 *		Waits until the WAL up to lsn is on disk, and on synchronous standbys if
 *		this session's synchronous_commit asks for them.  Raises 57014 if the
 *		wait for standbys is cancelled.  Does nothing on a standby.
 */
void
EvpgDurableAwait(XLogRecPtr lsn)
{
	if (RecoveryInProgress() || EVPG_MUTATION("undurable"))
		return;
	XLogFlush(lsn);
	if (lacks_standbys(lsn))
		await_standbys(lsn);
}

/* Waits, as EvpgDurableAwait does, for everything that this session sees. */
void
EvpgDurableAwaitAll(void)
{
	if (!RecoveryInProgress())
		EvpgDurableAwait(get_wal_end());
}

/*
 * EvpgDurableAwaitAppends
 *		Waits, as EvpgDurableAwait does, for all commits of appenders that no
 *		longer hold locks of the fence, and for the WAL up to lsn.
 */
void
EvpgDurableAwaitAppends(XLogRecPtr lsn)
{
	XLogRecPtr	appended = 0;

	/*
	 * In this order: a session that commits a prepared transaction notes the
	 * commit before it stops being counted.
	 */
	if (EvpgShmem != NULL && pg_atomic_read_u32(&EvpgShmem->finishing) == 0)
	{
		pg_read_barrier();
		appended = pg_atomic_read_u64(&EvpgShmem->appended);
	}

	/*
	 * No commit has been noted since the start of the server, so standbys may
	 * lack earlier ones; or that of a prepared transaction is not noted yet.
	 */
	if (appended == 0)
		appended = get_wal_end();
	EvpgDurableAwait(Max(lsn, appended));
}
