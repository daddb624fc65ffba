/*-------------------------------------------------------------------------
 *
 * early_release.c
 *		Durable commits on hot streams: with evpg.early_release an appending
 *		transaction releases its locks before its commit is on disk.
 *
 * PostgreSQL flushes a commit record, waits for synchronous standbys, and
 * releases the locks of the transaction then.  A stream, whose commands are
 * serial, so takes one command for each flush, however many the server could
 * flush at once.  Here the order is another one: the commit is asynchronous
 * (synchronous_commit is off for the commit record), the locks are released,
 * and then the session flushes, and waits for standbys, as its own
 * synchronous_commit asks.  Only after that its client is answered, so an answer
 * means what it meant.
 *
 * Other sessions see the events earlier.  What they store is flushed after it.
 * What leaves the database is durable (rule 19):
 *
 * - stable positions, frames and waits by durable.c, to which such a commit is
 *   like one of a session with synchronous_commit = off;
 * - answers of commands that have appended nothing themselves: no-ops,
 *   duplicates and refusals (EvpgEarlyReleaseAwaitOthers);
 * - a transaction that runs NOTIFY, also by a trigger of a user, commits as
 *   ever: PostgreSQL lets listeners read its notifications as soon as it is
 *   visible.  So does one with synchronous_commit = remote_apply, which standbys
 *   only confirm at once if the commit record asks for it.
 *
 * A background process has no client to answer.  It waits once in a pass, for
 * all that it has appended in it (EvpgEarlyReleaseAwaitOwn).
 *
 * A forced flush, as for dropped tables, remains one.  PREPARE and COMMIT
 * PREPARED always flush.  All of it needs shared memory, where sessions find
 * how far others have released early.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "base/shmem.h"
#include "base/testing.h"
#include "commands/async.h"
#include "log/durable.h"
#include "log/early_release.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "utils/guc.h"
#include "utils/resowner.h"

/* The setting evpg.early_release. */
static bool early_release;

/* How far this transaction is. */
static enum
{
	COMMIT_AS_EVER,
	COMMIT_CHOSEN,				/* it will be released early */
	COMMIT_VISIBLE				/* it is committed, not flushed yet */
}			progress = COMMIT_AS_EVER;

/* synchronous_commit of this session, which is off from COMMIT_CHOSEN on. */
static int	session_level;

/* The end of the last commit that EvpgEarlyReleaseAwaitOwn has to wait for; 0 if none. */
static XLogRecPtr unawaited = InvalidXLogRecPtr;

/*
 * Returns whether this transaction runs NOTIFY, or LISTEN.  The server knows,
 * but tells it only by refusing to prepare such a transaction: there is nothing
 * to clean up after that error.
 */
static bool
notifies_or_listens(void)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;
	volatile bool result = false;

	PG_TRY();
	{
		AtPrepare_Notify();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		InterruptHoldoffCount = holdoff;
		result = true;
	}
	PG_END_TRY();
	return result;
}

/* Makes the commit of this transaction an asynchronous one, if it can be released early. */
static void
choose_early_release(void)
{
	if (!early_release || !EvpgDurableAppends() || EvpgShmem == NULL ||
		synchronous_commit == SYNCHRONOUS_COMMIT_OFF || synchronous_commit >= SYNCHRONOUS_COMMIT_REMOTE_APPLY)
		return;
	if (!EVPG_MUTATION("early_notify") && notifies_or_listens())
		return;
	if (!EVPG_MUTATION("early_uncounted"))
		pg_atomic_fetch_add_u32(&EvpgShmem->releasing, 1);

	/*
	 * Not by SET, whose assign hook would change the mode of the wait for
	 * standbys.
	 */
	session_level = synchronous_commit;
	synchronous_commit = SYNCHRONOUS_COMMIT_OFF;
	progress = COMMIT_CHOSEN;
}

/* Notes the end of a commit, for answers that others give. */
static void
note_early_release(XLogRecPtr end)
{
	uint64		noted = pg_atomic_read_u64(&EvpgShmem->released);

	while (noted < end && !pg_atomic_compare_exchange_u64(&EvpgShmem->released, &noted, end))
		;
}

/* Ends being counted as a session that is between its choice and the note of its end. */
static void
end_counting(void)
{
	if (!EVPG_MUTATION("early_uncounted"))
		pg_atomic_fetch_sub_u32(&EvpgShmem->releasing, 1);
}

/* Chooses early release before the commit, notes it after, and takes the choice back in an abort. */
static void
early_release_xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_COMMIT)
		choose_early_release();
	else if (progress == COMMIT_AS_EVER)
		return;
	else if (event == XACT_EVENT_COMMIT)
	{
		/* Visible by now, but still holding its locks. */
		EVPG_WAIT_POINT("early_visible");
		note_early_release(XactLastCommitEnd);
		end_counting();
		progress = COMMIT_VISIBLE;
	}
	else if (event == XACT_EVENT_ABORT)
	{
		end_counting();
		synchronous_commit = session_level;
		progress = COMMIT_AS_EVER;
	}
}

/*
 * Waits for the commit as the server does before it releases locks: interrupts
 * are held, a failure to flush is a PANIC, and a wait for standbys that is
 * cancelled is a warning.
 */
static void
await_commit(XLogRecPtr end)
{
	EVPG_WAIT_POINT("early_released");
	if (EVPG_MUTATION("early_unflushed"))
		return;
	START_CRIT_SECTION();
	XLogFlush(end);
	END_CRIT_SECTION();
	EVPG_WAIT_POINT("early_flushed");
	SyncRepWaitForLSN(end, true);
	EVPG_WAIT_POINT("early_awaited");
}

/* Waits for a commit once its locks are released. */
static void
await_at_release(ResourceReleasePhase phase, bool commit, bool top, void *arg)
{
	if (progress != COMMIT_VISIBLE || phase != RESOURCE_RELEASE_AFTER_LOCKS)
		return;
	progress = COMMIT_AS_EVER;
	synchronous_commit = session_level;
	if (EvpgDurableCommitsLazily())
		unawaited = XactLastCommitEnd;
	else
		await_commit(XactLastCommitEnd);
}

/*
 * EvpgEarlyReleaseInit
 *		Defines the setting and registers the callbacks.  Called from _PG_init
 *		before all others that register some, so that these are called last:
 *		when synchronous_commit is chosen otherwise, and when waiting sessions
 *		have been woken.
 */
void
EvpgEarlyReleaseInit(void)
{
	DefineCustomBoolVariable("evpg.early_release",
							 "Releases the locks of appends before their commits are on disk.",
							 "Its client is answered when it is.  Has an effect only if the library is preloaded.",
							 &early_release, false, PGC_USERSET,
							 0, NULL, NULL, NULL);
	RegisterXactCallback(early_release_xact_callback, NULL);
	RegisterResourceReleaseCallback(await_at_release, NULL);
}

/*
 * EvpgEarlyReleaseAwaitOwn
 *		Waits, as EvpgDurableAwait does, for what this background process has
 *		appended and released early.  Called between transactions.
 */
void
EvpgEarlyReleaseAwaitOwn(void)
{
	XLogRecPtr	end = unawaited;

	if (end == InvalidXLogRecPtr)
		return;
	EVPG_WAIT_POINT("early_own");
	unawaited = InvalidXLogRecPtr;
	EvpgDurableAwait(end);
}

/*
 * EvpgEarlyReleaseAwaitOthers
 *		Waits, as EvpgDurableAwait does, for commits that other sessions have
 *		released early: before this session answers its client by what it has
 *		seen, with nothing of its own to flush.  Does nothing if the session does
 *		not ask for durable commits, or is a background process, which answers
 *		no client.
 */
void
EvpgEarlyReleaseAwaitOthers(void)
{
	XLogRecPtr	released;

	if (EvpgShmem == NULL || synchronous_commit == SYNCHRONOUS_COMMIT_OFF || EvpgDurableCommitsLazily())
		return;

	/*
	 * In this order: what is visible was counted before, and is noted before
	 * it stops being counted.
	 */
	if (pg_atomic_read_u32(&EvpgShmem->releasing) > 0)
	{
		EvpgDurableAwaitAll();
		return;
	}
	pg_read_barrier();
	released = pg_atomic_read_u64(&EvpgShmem->released);
	if (released != InvalidXLogRecPtr)
		EvpgDurableAwait(released);
}
