/*-------------------------------------------------------------------------
 *
 * worker.c
 *		Workers: run what is due in a database, one pass after another (run_pass.c),
 *		and sleep until there is more.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/catalog.h"
#include "base/settings.h"
#include "base/subtransaction.h"
#include "base/testing.h"
#include "log/early_release.h"
#include "pgstat.h"
#include "storage/proc.h"
#include "utils/timestamp.h"
#include "worker/background_process.h"
#include "worker/broadcaster.h"
#include "worker/log_position.h"
#include "worker/run_pass.h"
#include "worker/worker.h"

/*
 * A worker waits so long for a lock, in ms, then goes on with other work.  Less than
 * deadlock_timeout is by default: so it is also out of the way before a client finds
 * that the two have locked each other out.  If the client came first the worker finds
 * that, soon.
 */
#define LONGEST_LOCK_WAIT 900
#define DEADLOCK_CHECK_AFTER "50ms"

/* The result of the last pass. */
static bool more_is_due;
static TimestampTz next_due_at;

/* Begins a transaction that waits for locks for a limited time. */
static void
begin_worker_transaction(void)
{
	LockTimeout = LONGEST_LOCK_WAIT;
	EvpgBackgroundBegin();
}

/*
 * Commits without a lock timeout: a commit that waits, for others that notify,
 * succeeds, and a timeout would undo what is done.
 */
static void
commit_worker_transaction(void)
{
	LockTimeout = 0;
	CommitTransactionCommand();
}

/* Ends a batch and begins the next one. */
static void
commit_batch(void)
{
	commit_worker_transaction();
	pgstat_report_stat(false);
	EvpgBackgroundHandleInterrupts();
	begin_worker_transaction();
}

/* Runs a pass, as a round of this process. */
static void
run_worker_pass(void)
{
	begin_worker_transaction();
	more_is_due = EvpgRunPass(commit_batch, &next_due_at);
	EvpgLogPositionIfDue(&next_due_at);
	commit_worker_transaction();
	if (EVPG_MUTATION("woken_late"))
		EvpgBackgroundProcess->woken = false;
	EvpgBackgroundReleaseLocks();
	EvpgEarlyReleaseAwaitOwn();
}

/* Runs a worker until it is no longer wanted.  Started by the launcher. */
void
evpg_worker_main(Datum arg)
{
	long		pause = 0;
	TimestampTz frames_at;

	EvpgBackgroundConnect();
	EvpgKeepSearchPath();
	EvpgTrackCancels();
	EvpgBackgroundForceSetting("deadlock_timeout", DEADLOCK_CHECK_AFTER);
	EvpgBackgroundAttach();
	for (;;)
	{
		EvpgBackgroundHandleInterrupts();
		EvpgBackgroundProcess->woken = false;
		/* What is committed from now on sets it again. */
		pg_memory_barrier();
		frames_at = EvpgBroadcasterStandIn();
		if (!EvpgBackgroundRunRound(run_worker_pass, &pause, false))
			EvpgBackgroundSleepUntil(EvpgBackgroundTimeAfter(pause), false);
		else if (!more_is_due)
		{
			EvpgBackgroundPauseForBatch(EvpgBackgroundProcess->woken, EvpgRunPassHadSagas());
			EvpgBackgroundSleepUntil(Min(Min(EvpgBackgroundTimeAfter(EvpgNaptime), next_due_at), frames_at), true);
		}
	}
}
