/*-------------------------------------------------------------------------
 *
 * worker.c
 *		Workers: do what is due in a database, one pass after another (run.c), and
 *		sleep until there is more.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/settings.h"
#include "base/subtransaction.h"
#include "base/testing.h"
#include "pgstat.h"
#include "storage/proc.h"
#include "utils/timestamp.h"
#include "worker/background_process.h"
#include "worker/broadcaster.h"
#include "worker/run.h"
#include "worker/worker.h"

/*
 * A worker waits so long for a lock, in ms, then goes on with other work.  Less than
 * deadlock_timeout is by default: so it is also out of the way before a client finds
 * that the two have locked each other out.  If the client came first the worker finds
 * that, soon.
 */
#define LONGEST_LOCK_WAIT 900
#define DEADLOCK_CHECK_AFTER "50ms"

/* What the last pass said. */
static bool more;
static TimestampTz next;

static void
begin_work(void)
{
	LockTimeout = LONGEST_LOCK_WAIT;
	EvpgBackgroundBegin();
}

/*
 * A commit that waits, for others that notify, ends well: a timeout would take
 * back what is done.
 */
static void
commit_work(void)
{
	LockTimeout = 0;
	CommitTransactionCommand();
}

/* Ends a batch and begins the next one. */
static void
commit_batch(void)
{
	commit_work();
	pgstat_report_stat(false);
	EvpgBackgroundHandleInterrupts();
	begin_work();
}

static void
run_pass(void)
{
	begin_work();
	more = EvpgRunPass(commit_batch, &next);
	commit_work();
	if (EVPG_MUTATION("woken_late"))
		EvpgBackgroundProcess->woken = false;
	EvpgBackgroundReleaseLocks();
}

/* A worker: runs until it is not wanted any more. */
void
evpg_worker_main(Datum arg)
{
	long		pause = 0;
	TimestampTz frames_at;

	EvpgBackgroundConnect();
	EvpgAttemptNoteCancels();
	EvpgBackgroundForceSetting("deadlock_timeout", DEADLOCK_CHECK_AFTER);
	EvpgBackgroundAttach();
	for (;;)
	{
		EvpgBackgroundHandleInterrupts();
		EvpgBackgroundProcess->woken = false;
		/* What is committed from now on sets it again. */
		pg_memory_barrier();
		frames_at = EvpgBroadcasterStandIn();
		if (!EvpgBackgroundRunRound(run_pass, &pause, false))
			EvpgBackgroundSleepUntil(EvpgBackgroundTimeAfter(pause), false);
		else if (!more)
		{
			EvpgBackgroundGather(EvpgBackgroundProcess->woken);
			EvpgBackgroundSleepUntil(Min(Min(EvpgBackgroundTimeAfter(EvpgNaptime), next), frames_at), true);
		}
	}
}
