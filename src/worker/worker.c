/*-------------------------------------------------------------------------
 *
 * worker.c
 *		Background processes of a database: workers, which do what is due in it;
 *		the broadcaster, which sends the frames of its ring; and the probe, which
 *		looks whether the extension is there.
 *
 * The launcher starts them (launcher.c).  They are never in the way: between
 * two rounds a process holds no lock and has no transaction, and it ends when
 * the extension is gone, when there are to be fewer workers, or when somebody
 * wants nobody connected to the database.  In a round it locks the extension,
 * as DROP EXTENSION does.
 *
 * An error ends a round, not the process; the next round comes later each time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/subtransaction.h"
#include "base/testing.h"
#include "broadcast/broadcast.h"
#include "broadcast/ring.h"
#include "catalog/pg_extension.h"
#include "commands/async.h"
#include "commands/extension.h"
#include "log/durable.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"
#include "worker/run.h"
#include "worker/worker.h"

/* Pauses after errors double from the first to the last; ms. */
#define FIRST_PAUSE 100
#define LAST_PAUSE 60000

/* An idle broadcaster looks this often whether the extension is still there; ms. */
#define BROADCASTER_NAPTIME 60000

/*
 * If there is more while it works, a process lets work gather, longer each time
 * up to this, so that one round serves more commits; ms.
 */
#define LONGEST_GATHERING 5

/* Losses are announced at once if no frames are left, else this often; ms. */
#define ANNOUNCEMENT_PAUSE 1000

/* A worker sends frames that have waited for a broadcaster for so long; ms. */
#define STAND_IN_AFTER 1000

/*
 * A worker waits so long for a lock, in ms, then goes on with other work.  Less than
 * deadlock_timeout is by default: so it is also out of the way before a client finds
 * that the two have locked each other out.  If the client came first the worker finds
 * that, soon.
 */
#define LONGEST_LOCK_WAIT 900
#define DEADLOCK_CHECK_AFTER "50ms"

/* The longest pause while others are in the way; ms. */
#define LONGEST_DISTURBANCE 1000

static EvpgWorkerStart start;
static EvpgProcess *process;

/* ------------------------------------------------------------------ what all have in common */

static void
force_setting(const char *name, const char *value)
{
	SetConfigOption(name, value, PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * Connects to the database, as the bootstrap superuser and under settings that
 * ALTER DATABASE cannot change.
 */
static void
connect_to_database(void)
{
	memcpy(&start, MyBgworkerEntry->bgw_extra, sizeof(start));
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(start.database, InvalidOid, 0);
	force_setting("default_transaction_isolation", "read committed");
	force_setting("default_transaction_read_only", "off");
	force_setting("default_transaction_deferrable", "off");
	EvpgDurableCommitLazily();
	force_setting("statement_timeout", "0");
	force_setting("lock_timeout", "0");
	force_setting("idle_in_transaction_session_timeout", "0");
	force_setting("idle_session_timeout", "0");
}

/* Becomes the process that the launcher asked for; ends if that is not wanted any more. */
static void
attach_process(void)
{
	process = EvpgProcessAttach(start.number);
	if (process == NULL)
		proc_exit(0);
}

/* Between rounds: ends the process if it is not wanted, reads changed settings. */
static void
handle_interrupts(void)
{
	if (ProcDiePending)
		proc_exit(0);
	EvpgAttemptForgetCancel();
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	if (EvpgProcessIsUnwanted() || (start.number < EVPG_MAX_WORKERS && start.number >= EvpgWorkers))
		proc_exit(0);
}

/*
 * Sleeps until then, or until there is work, if that is what it waits for.  Not
 * longer than it is until then now: the wall clock may be set back meanwhile.
 */
static void
worker_sleep_until(TimestampTz until, bool for_work)
{
	long		longest = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
	instr_time	started;

	INSTR_TIME_SET_CURRENT(started);
	pgstat_report_stat(false);
	pgstat_report_activity(STATE_IDLE, NULL);
	for (;;)
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
		instr_time	slept;

		INSTR_TIME_SET_CURRENT(slept);
		INSTR_TIME_SUBTRACT(slept, started);
		left = Min(left, longest - (long) INSTR_TIME_GET_MILLISEC(slept));
		handle_interrupts();
		if (left <= 0 || (for_work && process->woken))
			return;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, left, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

static TimestampTz
time_after(long ms)
{
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
}

/* After a round: lets work gather if commits come faster than rounds. */
static void
gather_commits(bool busy)
{
	static long pause = 0;

	pause = busy ? Min(pause + 1, LONGEST_GATHERING) : Max(pause - 1, 0);
	if (pause > 0)
		pg_usleep(pause * 1000);
}

/*
 * Advisory locks of the session, which user code has taken and not released,
 * would be held to the end of the process.  Only between passes: within one,
 * dispatch.c has such locks over several transactions.
 */
static void
release_locks(void)
{
	LockReleaseSession(USER_LOCKMETHOD);
}

/* Whether the extension is there, which it then is to the end of the transaction. */
static bool
lock_extension(void)
{
	Oid			extension = get_extension_oid("evpg", true);

	if (!OidIsValid(extension))
		return false;
	LockDatabaseObject(ExtensionRelationId, extension, 0, AccessShareLock);
	return get_extension_oid("evpg", true) == extension;
}

/* Begins a transaction with the extension; ends the process if that is gone. */
static void
begin_transaction(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!lock_extension())
	{
		CommitTransactionCommand();
		EvpgShmemFreeDatabase(MyDatabaseId);
		proc_exit(0);
	}
}

/*
 * Does a round; after an error false, and *pause, which is 0 after a good one,
 * is how long to wait.  Only the first of errors in a row is logged if quiet, and
 * none if others were in the way.
 */
static bool
run_round(void (*round) (void), long *pause, bool quiet)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool done = false;
	volatile bool disturbed = false;

	pgstat_report_activity(STATE_RUNNING, MyBgworkerEntry->bgw_name);
	PG_TRY();
	{
		round();
		done = true;
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		disturbed = EvpgAttemptDisturbed(geterrcode());
		if (!disturbed && (!quiet || *pause == 0))
			EmitErrorReport();
		AbortOutOfAnyTransaction();
		release_locks();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	*pause = done ? 0 : Min(Max(*pause * 2, FIRST_PAUSE), disturbed ? LONGEST_DISTURBANCE : LAST_PAUSE);
	return done;
}

/* ------------------------------------------------------------------ probe */

void
evpg_probe_main(Datum arg)
{
	connect_to_database();
	StartTransactionCommand();
	if (lock_extension())
		(void) EvpgShmemDatabase(true);
	CommitTransactionCommand();
	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	EvpgShmem->probed = MyDatabaseId;
	LWLockRelease(EvpgShmem->lock);
	proc_exit(0);
}

/* ------------------------------------------------------------------ frames */

static EvpgRingBatch batch;

static void
send_batch(void)
{
	const char *frame = batch.bytes;

	begin_transaction();
	/* What the frames tell must not be taken back by a crash. */
	EvpgDurableAwait(batch.lsn);
	for (int i = 0; i < batch.frames; i++)
	{
		const char *key_channel;
		const char *projection_channel;
		const char *text;

		frame = EvpgRingNext(frame, &key_channel, &projection_channel, &text);
		Async_Notify(key_channel, text);
		Async_Notify(projection_channel, text);
	}
	if (batch.dropped > 0)
		Async_Notify(EVPG_RESYNC_CHANNEL, psprintf("{\"event\": \"resync\", \"reason\": \"overflow\", \"dropped\": " INT64_FORMAT "}",
												   batch.dropped));
	CommitTransactionCommand();
	EvpgRingSent(&batch);
}

/* ------------------------------------------------------------------ workers */

/* What the last pass said. */
static bool more;
static TimestampTz next;

static void
begin_work(void)
{
	LockTimeout = LONGEST_LOCK_WAIT;
	begin_transaction();
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
	handle_interrupts();
	begin_work();
}

static void
run_pass(void)
{
	begin_work();
	more = EvpgRunPass(commit_batch, &next);
	commit_work();
	if (EVPG_MUTATION("woken_late"))
		process->woken = false;
	release_locks();
}

/*
 * Sends frames for which there has been no broadcaster for a while: it is still
 * to be started again, or has found no place.  Returns when to look again.
 */
static TimestampTz
stand_in(void)
{
	static TimestampTz since = 0;
	static long pause = 0;

	if (!EvpgRingStranded())
	{
		since = 0;
		return DT_NOEND;
	}
	if (since == 0)
		since = GetCurrentTimestamp();
	if (!TimestampDifferenceExceeds(since, GetCurrentTimestamp(), STAND_IN_AFTER))
		return TimestampTzPlusMilliseconds(since, STAND_IN_AFTER);
	if (!EvpgProcessStandIn(true))
		return time_after(STAND_IN_AFTER);
	while (EvpgRingTake(&batch) && run_round(send_batch, &pause, true))
		handle_interrupts();
	(void) EvpgProcessStandIn(false);
	return time_after(STAND_IN_AFTER);
}

void
evpg_worker_main(Datum arg)
{
	long		pause = 0;
	TimestampTz frames_at;

	connect_to_database();
	EvpgAttemptNoteCancels();
	force_setting("deadlock_timeout", DEADLOCK_CHECK_AFTER);
	attach_process();
	for (;;)
	{
		handle_interrupts();
		process->woken = false;
		/* What is committed from now on sets it again. */
		pg_memory_barrier();
		frames_at = stand_in();
		if (!run_round(run_pass, &pause, false))
			worker_sleep_until(time_after(pause), false);
		else if (!more)
		{
			gather_commits(process->woken);
			worker_sleep_until(Min(Min(time_after(EvpgNaptime), next), frames_at), true);
		}
	}
}

/* ------------------------------------------------------------------ broadcaster */

static void
check_extension(void)
{
	begin_transaction();
	CommitTransactionCommand();
}

/* Leaves the announcement of losses for later if frames go on coming. */
static void
hold_back_announcement(void)
{
	static TimestampTz last = 0;

	if (batch.dropped == 0)
		return;
	if ((batch.frames > 0 || EVPG_MUTATION("frames_keep_coming")) && !TimestampDifferenceExceeds(last, GetCurrentTimestamp(), ANNOUNCEMENT_PAUSE))
		batch.dropped = 0;
	else
		last = GetCurrentTimestamp();
}

void
evpg_broadcaster_main(Datum arg)
{
	long		pause = 0;

	connect_to_database();
	attach_process();
	for (;;)
	{
		handle_interrupts();
		process->woken = false;
		if (!EvpgRingTake(&batch))
		{
			/* Its frames can go by NOTIFY; work that no worker does cannot. */
			if (EvpgShmem->crowded)
				proc_exit(0);
			if (run_round(check_extension, &pause, false))
				worker_sleep_until(time_after(BROADCASTER_NAPTIME), true);
			else
				worker_sleep_until(time_after(pause), false);
			continue;
		}
		hold_back_announcement();
		/* A full queue or a full disk must not fill the log as well. */
		if (!run_round(send_batch, &pause, true))
		{
			worker_sleep_until(time_after(Min(pause, 1000)), false);
			continue;
		}
		gather_commits(batch.commits > 1);
	}
}
