/*-------------------------------------------------------------------------
 *
 * background_process.c
 *		What the background processes of a database have in common: workers, the
 *		broadcaster, and the probe, which finds out whether the extension
 *		exists.
 *
 * The launcher starts them (launcher.c).  Between two rounds a process holds no
 * lock and has no transaction, and it ends when the extension is gone, when
 * there are to be fewer workers, or when a command needs the database without
 * connections.  In a round it locks the extension, as DROP EXTENSION does.
 *
 * An error ends a round, not the process; the pause before the next round grows
 * each time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "base/catalog.h"
#include "base/interference.h"
#include "base/retry.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/subtransaction.h"
#include "base/testing.h"
#include "catalog/pg_extension.h"
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
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"
#include "worker/background_process.h"

/* Pauses after errors double from the first to the last; ms. */
#define FIRST_PAUSE 100
#define LAST_PAUSE 60000

/*
 * If there is more while it works, a process lets work gather, longer each time
 * up to this, so that one round serves more commits; ms.
 */
#define LONGEST_GATHERING 5
#define SHORT_GATHERING 1

/* The longest pause while locks of other sessions end the rounds; ms. */
#define LONGEST_DISTURBANCE 1000

/* This process, in shared memory. */
EvpgProcess *EvpgBackgroundProcess;

static EvpgBackgroundStart start;

/* Sets a parameter so that neither ALTER DATABASE nor ALTER ROLE overrides it. */
void
EvpgBackgroundForceSetting(const char *name, const char *value)
{
	SetConfigOption(name, value, PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * EvpgBackgroundConnect
 *		Connects a background process to its database, as the bootstrap
 *		superuser and with settings that ALTER DATABASE cannot change.
 */
void
EvpgBackgroundConnect(void)
{
	memcpy(&start, MyBgworkerEntry->bgw_extra, sizeof(start));
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(start.database, InvalidOid, 0);
	EvpgBackgroundForceSetting("default_transaction_isolation", "read committed");
	EvpgBackgroundForceSetting("default_transaction_read_only", "off");
	EvpgBackgroundForceSetting("default_transaction_deferrable", "off");
	EvpgDurableCommitLazily();
	EvpgBackgroundForceSetting("statement_timeout", "0");
	EvpgBackgroundForceSetting("lock_timeout", "0");
	EvpgBackgroundForceSetting("idle_in_transaction_session_timeout", "0");
	EvpgBackgroundForceSetting("idle_session_timeout", "0");
	if (GetConfigOption("transaction_timeout", true, false) != NULL)	/* since PostgreSQL 17 */
		EvpgBackgroundForceSetting("transaction_timeout", "0");
	EVPG_TELL_MUTATION();
}

/* Attaches the process to its slot in shared memory; ends it if the launcher no longer wants it. */
void
EvpgBackgroundAttach(void)
{
	EvpgBackgroundProcess = EvpgProcessAttach(start.number);
	if (EvpgBackgroundProcess == NULL)
		proc_exit(0);
}

/*
 * EvpgBackgroundHandleInterrupts
 *		Ends the process if it is no longer wanted, and reads changed settings.
 *		Called between rounds: the caller holds no lock and has no transaction.
 */
void
EvpgBackgroundHandleInterrupts(void)
{
	if (ProcDiePending)
		proc_exit(0);
	EvpgForgetCancel();
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
 * EvpgBackgroundSleepUntil
 *		Sleeps until a time, or with for_work until there is work.  It sleeps no
 *		longer than the time is away now: the wall clock may be set back
 *		meanwhile.
 */
void
EvpgBackgroundSleepUntil(TimestampTz until, bool for_work)
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
		EvpgBackgroundHandleInterrupts();
		if (left <= 0 || (for_work && EvpgBackgroundProcess->woken))
			return;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, left, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

/* Returns the time ms milliseconds from now, by the wall clock. */
TimestampTz
EvpgBackgroundTimeAfter(long ms)
{
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
}

/*
 * EvpgBackgroundPauseForBatch
 *		Pauses a little after a round, longer each time, if commits come faster than rounds;
 *		only a moment if the work is urgent.
 */
void
EvpgBackgroundPauseForBatch(bool busy, bool urgent)
{
	static long pause = 0;

	pause = busy ? Min(pause + 1, urgent ? SHORT_GATHERING : LONGEST_GATHERING) : Max(pause - 1, 0);
	if (pause > 0)
		pg_usleep(pause * 1000);
}

/*
 * EvpgBackgroundReleaseLocks
 *		Releases the advisory locks of the session that user code has taken and
 *		not released; they would be held to the end of the process.  Only
 *		between passes: within one, dispatch.c holds such locks over several
 *		transactions.
 */
void
EvpgBackgroundReleaseLocks(void)
{
	LockReleaseSession(USER_LOCKMETHOD);
}

/*
 * Returns whether the extension exists, and then keeps it to the end of the transaction.  It
 * is looked up only if it may have been dropped since the last time.
 */
static bool
lock_extension(void)
{
	static Oid	extension = InvalidOid;

	if (OidIsValid(extension))
	{
		/* Hears of what was changed until it has the lock. */
		LockDatabaseObject(ExtensionRelationId, extension, 0, AccessShareLock);
		if (EvpgCatalogIsKnown())
			return true;
	}
	extension = get_extension_oid("evpg", true);
	if (!OidIsValid(extension))
		return false;
	LockDatabaseObject(ExtensionRelationId, extension, 0, AccessShareLock);
	return get_extension_oid("evpg", true) == extension;
}

/*
 * EvpgBackgroundBegin
 *		Begins a transaction with the extension locked against DROP EXTENSION;
 *		ends the process if the extension is gone.
 */
void
EvpgBackgroundBegin(void)
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
 * EvpgBackgroundRunRound
 *		Runs a round, and catches its error: then all transactions are rolled
 *		back, *pause, which is 0 after a good round, is how long to wait, and
 *		false is returned.  Of errors in a row only the first is logged if
 *		quiet, and of those that other sessions have caused only what lasts (interference.c).
 */
bool
EvpgBackgroundRunRound(void (*round) (void), long *pause, bool quiet)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool done = false;
	ErrorData  *volatile interference = NULL;

	pgstat_report_activity(STATE_RUNNING, MyBgworkerEntry->bgw_name);
	PG_TRY();
	{
		round();
		done = true;
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(context);
		if (EvpgErrorIsInterference(geterrcode()))
			interference = CopyErrorData();
		else if (!quiet || *pause == 0)
			EmitErrorReport();
		AbortOutOfAnyTransaction();
		EvpgBackgroundReleaseLocks();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	*pause = done ? 0 :
		EvpgRetryNextPause(*pause, FIRST_PAUSE, interference != NULL ? LONGEST_DISTURBANCE : LAST_PAUSE);
	if (interference == NULL)
		EvpgInterferenceEnd(round, "all work");
	else
	{
		EvpgInterferenceNote(round, "all work", interference);
		FreeErrorData(interference);
	}
	return done;
}

/* Runs the probe: tells the launcher whether the database has the extension, and ends. */
void
evpg_probe_main(Datum arg)
{
	EvpgBackgroundConnect();
	StartTransactionCommand();
	if (lock_extension())
		(void) EvpgShmemDatabase(true);
	CommitTransactionCommand();
	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	EvpgShmem->probed = MyDatabaseId;
	LWLockRelease(EvpgShmem->lock);
	proc_exit(0);
}
