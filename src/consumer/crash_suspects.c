/*-------------------------------------------------------------------------
 *
 * crash_suspects.c
 *		An event that may have crashed the server is tried alone (rules 10 and 17).
 *
 * User code in C can take the whole server down.  Which event a consumer was
 * applying then is not known afterwards, but its position is not above the last one
 * that had been drawn.  So after each start of the server a consumer is cautious up
 * to there: it takes events one by one, later a few at a time, and each such batch
 * is on disk before the next one begins.  Before an event is tried alone, an attempt
 * is counted, in a transaction of its own that is flushed.  The count is taken back
 * by the success or the failure of the event, and by the end of the session, when it
 * is terminated or the server is shut down.  So only a crash while an event is alone
 * counts.  After max_attempts of them, and at least two, since another process may
 * have caused one, the consumer does what on_error specifies.
 *
 * Code that ends its own session, by a FATAL error, by exit() or by pg_terminate_backend()
 * of itself, is treated like code that crashes the server: the count stands, and the
 * consumer is cautious again in the next session.
 *
 * The attempt follows the count at once, and from the count to the commit of the
 * attempt the session holds a lock that is one for the whole server.  It is exclusive
 * for what has crashed before, shared for what has not.  So a second count is made
 * only if nothing else that is under suspicion runs, in any database, and what has
 * never crashed does not wait for each other.
 *
 * A consumer that has nothing to catch up with after a start is not slowed down by
 * this, nor is any in normal operation.
 *
 * A start of the server is identified by the handle of its dynamic shared memory,
 * which is a new random number after a crash, too, and needs no preloading.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/locks.h"
#include "base/shmem.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "consumer/crash_suspects.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/pg_shmem.h"
#include "storage/pmsignal.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

/* How many events are tried one by one, and for how many proven events a batch may grow by one. */
#define TRIED_ALONE 16

/* One crash may have been caused by another process. */
#define FEWEST_CRASHES 2

/* The consumer of which this session has counted or made an attempt last. */
static char tried_consumer[EVPG_MAX_NAME + 1];

/*
 * Settles, when this session ends, the attempt that it has counted last or makes
 * without a count; NULL: there is none.
 */
static void (*settle_attempt) (bool fatal) = NULL;

/* Whether that attempt was counted, and whether it is being made. */
static bool attempt_counted = false;
static bool attempt_runs = false;

/*
 * The mode in which this session holds the lock of suspects, and whether it makes
 * the attempt that it has counted in its next transaction.
 */
static LOCKMODE lock_mode = NoLock;
static bool attempt_follows = false;

/* How long a suspect that cannot be tried alone is put off, in ms. */
#define SUSPECT_PAUSE 100

static void
fill_suspect_tag(LOCKTAG *tag)
{
	/* Of no database: a crash hits all of them. */
	SET_LOCKTAG_ADVISORY(*tag, InvalidOid, 0, 0, EVPG_LOCK_SUSPECT);
}

/*
 * EvpgCrashLock
 *		Locks, for the session and until EvpgCrashUnlock, what may crash the server;
 *		exclusively if it was under way in a crash.  Does not wait: returns false if
 *		another session tries something that must not be disturbed.
 */
bool
EvpgCrashLock(bool crashed)
{
	LOCKMODE	mode = crashed ? ExclusiveLock : ShareLock;
	LOCKTAG		tag;

	if (lock_mode != NoLock)
		return true;
	fill_suspect_tag(&tag);
	if (LockAcquire(&tag, mode, true, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	lock_mode = mode;
	return true;
}

/*
 * EvpgCrashUnlock
 *		Releases the lock, if this session has it, since what was tried is over.  If that
 *		has come to a result (settled), nothing is to be taken back any more.
 */
void
EvpgCrashUnlock(bool settled)
{
	LOCKTAG		tag;

	attempt_follows = false;
	attempt_runs = false;
	if (settled || !attempt_counted)
		settle_attempt = NULL;
	if (lock_mode == NoLock)
		return;
	fill_suspect_tag(&tag);
	/* User code may have called pg_advisory_unlock_all(). */
	if (EvpgLockIsHeld(&tag, lock_mode))
		(void) LockRelease(&tag, lock_mode, true);
	lock_mode = NoLock;
}

/*
 * EvpgCrashBeginAttempt
 *		Takes the lock for an attempt that the caller counts in this transaction, or has
 *		counted before; returns false, and lowers *next, if the attempt must be put off.
 */
bool
EvpgCrashBeginAttempt(bool crashed, TimestampTz *next)
{
	if (EvpgCrashLock(crashed))
		return true;
	*next = Min(*next, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), SUSPECT_PAUSE));
	return false;
}

/* Returns whether this session has the lock: it has counted an attempt in its last transaction, or makes one. */
bool
EvpgCrashIsLocked(void)
{
	return lock_mode != NoLock;
}

/* Notes that the caller has counted an attempt, which it makes in the next transaction. */
void
EvpgCrashNoteCounted(void)
{
	attempt_follows = true;
}

/* Returns, once, whether the transaction that has just committed has counted an attempt that must be made now. */
bool
EvpgCrashAttemptFollows(void)
{
	bool		follows = attempt_follows;

	attempt_follows = false;
	return follows;
}

/* Returns a number that identifies this start of the server. */
int64
EvpgServerStartId(void)
{
	return ((PGShmemHeader *) UsedShmemSegAddr)->dsm_control;
}

/* The SQLSTATE with which this process ends, 0 if it is not known. */
static int	fatal_code = 0;
static emit_log_hook_type next_log_hook = NULL;

static void
note_fatal_error(ErrorData *error)
{
	if (error->elevel == FATAL)
		fatal_code = error->sqlerrcode;
	if (next_log_hook != NULL)
		next_log_hook(error);
}

/* The process that has sent SIGTERM first. */
static volatile sig_atomic_t terminated_by_itself = false;
static volatile sig_atomic_t terminated_by_other = false;
static void (*next_term_handler) (int) = NULL;

/* pg_terminate_backend(pg_backend_pid()) sends the same signal as an orderly stop, but not from the same process. */
static void
note_termination(int signal_number, siginfo_t *info, void *context)
{
	int			errno_before = errno;

	if (info->si_pid != MyProcPid)
		terminated_by_other = true;
	else if (!terminated_by_other)
		terminated_by_itself = true;
	next_term_handler(signal_number);
	errno = errno_before;
}

/* Puts note_termination before the handler of SIGTERM that this session has. */
static void
install_term_handler(void)
{
	struct sigaction action;

	if (sigaction(SIGTERM, NULL, &action) != 0 || (action.sa_flags & SA_SIGINFO) != 0 ||
		action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN)
		return;
	next_term_handler = action.sa_handler;
	action.sa_flags |= SA_SIGINFO;
	action.sa_sigaction = note_termination;
	(void) sigaction(SIGTERM, &action, NULL);
}

/*
 * Notes that this session ends itself by SIGTERM in good order, though it makes an
 * attempt: the code of the attempt has not asked for it.
 */
void
EvpgCrashNoteOrderlyEnd(void)
{
	terminated_by_other = true;
	EvpgProcessExpectEnd();
}

/*
 * Returns whether the attempt that is being made ends the session: nothing else explains
 * it.  It may have raised a FATAL error, or called exit(), of which nothing is reported.
 */
static bool
attempt_is_fatal(void)
{
	if (!attempt_runs || fatal_code == ERRCODE_CRASH_SHUTDOWN ||
		ERRCODE_TO_CATEGORY(fatal_code) == ERRCODE_CONNECTION_EXCEPTION)
		return false;
	if (fatal_code == ERRCODE_ADMIN_SHUTDOWN)
		return terminated_by_itself;

	/*
	 * The log_min_messages of a session can keep a FATAL error from being
	 * seen here.
	 */
	return fatal_code != 0 || !(terminated_by_other || ClientConnectionLost || !PostmasterIsAlive());
}

static void
run_settlement(void (*settle) (bool fatal), bool fatal)
{
	EvpgScope	scope;

	StartTransactionCommand();
	/* Whatever the session has set: READ ONLY, or DEFERRABLE, which waits. */
	XactIsoLevel = XACT_READ_COMMITTED;
	XactReadOnly = false;
	XactDeferrable = false;
	if (OidIsValid(get_extension_oid("evpg", true)))
	{
		(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
		PushActiveSnapshot(GetTransactionSnapshot());
		EvpgEnter(&scope, NULL);
		if (EvpgCatalogTryLockForConsumer())
			settle(fatal);
		EvpgLeave(&scope);
		PopActiveSnapshot();
	}
	CommitTransactionCommand();
}

/*
 * Settles the attempt of a session that ends: in good order it has not crashed, so
 * the attempt does not count.  Nothing here may wait, neither for locks nor for
 * standbys, since interrupts are held by now.
 */
static void
settle_attempt_at_exit(int code, Datum arg)
{
	void		(*settle) (bool fatal) = settle_attempt;
	bool		fatal = attempt_is_fatal();

	if (fatal)
		EvpgProcessExpectEnd();
	settle_attempt = NULL;
	if (settle == NULL || (!fatal && !attempt_counted))
		return;
	AbortOutOfAnyTransaction();
	run_settlement(settle, fatal);
}

/*
 * EvpgCrashSettleAtExit
 *		Lets a function settle an attempt, which the caller has counted or makes without
 *		a count, if the session ends before EvpgCrashUnlock.  It runs in a transaction,
 *		waits for no lock, and takes the count back; if the attempt itself ends the
 *		session (fatal, see EvpgCrashNoteRuns), it lets the next session count the next
 *		attempt instead.  It checks itself whether there is anything left to settle.
 */
void
EvpgCrashSettleAtExit(void (*settle) (bool fatal), bool counted)
{
	static bool registered = false;

	if (!registered)
	{
		before_shmem_exit(settle_attempt_at_exit, (Datum) 0);
		next_log_hook = emit_log_hook;
		emit_log_hook = note_fatal_error;
		install_term_handler();
	}
	registered = true;
	settle_attempt = settle;
	attempt_counted = counted;
}

/* Notes whether user code runs, in the attempt of EvpgCrashSettleAtExit, that may end the session. */
void
EvpgCrashNoteRuns(bool runs)
{
	attempt_runs = runs;
}

/*
 * EvpgCrashTakeBack
 *		Takes back, in the current transaction, the attempt that this session has counted,
 *		since it was rolled back and is made later.
 */
void
EvpgCrashTakeBack(void)
{
	EvpgScope	scope;

	if (settle_attempt == NULL || !attempt_counted)
		return;
	EvpgEnter(&scope, NULL);
	if (EvpgCatalogTryLockForConsumer())
	{
		settle_attempt(false);
		settle_attempt = NULL;
	}
	EvpgLeave(&scope);
}

/* Returns after how many crashes an event, or a part of a rebuild, is given up that may fail so often. */
int
EvpgCrashMaxCount(int max_attempts)
{
	return Max(max_attempts, FEWEST_CRASHES);
}

static EvpgStatement decrement_consumer_crashes = {
	.text = "UPDATE evpg.consumer"
	" SET server_start = 0, crashes = crashes - 1"
	" WHERE name = $1 AND server_start = $2 AND crashes > 0",
	.types = {TEXTOID, INT8OID}
};

static EvpgStatement suspect_consumer = {
	.text = "UPDATE evpg.consumer"
	" SET server_start = 0"
	" WHERE ctid = (SELECT ctid FROM evpg.consumer WHERE name = $1 AND server_start = $2 FOR UPDATE SKIP LOCKED)",
	.types = {TEXTOID, INT8OID}
};

/*
 * Settles the attempt of a consumer at the end of the session, if another session owns the
 * consumer by now only one that has ended the session: that session must not be ended by
 * the same event unawares.
 */
static void
settle_consumer_attempt(bool fatal)
{
	Datum		values[2] = {CStringGetTextDatum(tried_consumer), Int64GetDatum(EvpgServerStartId())};

	if (fatal)
		EvpgStatementExecute(&suspect_consumer, values, NULL);
	else if (EvpgConsumerLock(tried_consumer, false))
		EvpgStatementExecute(&decrement_consumer_crashes, values, NULL);
}

/* Returns the position of the first event that a filter lets through, 0 if there is none. */
static int64
find_first_event(const EvpgLogFilter *wanted)
{
	EvpgLogFilter filter = *wanted;
	EvpgLogScan *scan;
	EvpgEvent	event;
	int64		position = 0;

	filter.leaves_upcasting = true;
	PushActiveSnapshot(GetTransactionSnapshot());
	scan = EvpgLogScanAll(&filter);
	if (EvpgLogScanNext(scan, &event))
		position = event.position;
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
	return position;
}

/*
 * EvpgCrashSuspectLimit
 *		Returns the last position that had been drawn when this session called this
 *		first: an event that was being applied when the server crashed is not above it.
 */
int64
EvpgCrashSuspectLimit(void)
{
	static Oid	asked_of = InvalidOid;
	static int64 before = 0;

	if (asked_of != EvpgCatalogGet()->event_log)
	{
		before = EvpgFenceLastDrawn();
		asked_of = EvpgCatalogGet()->event_log;
	}
	return before;
}

static EvpgStatement increment_consumer_crashes = {
	.text = "UPDATE evpg.consumer"
	" SET proven = CASE WHEN server_start = $2 THEN proven ELSE 0 END, server_start = $2, cautious_to = $3,"
	" crashes = crashes + 1"
	" WHERE name = $1",
	.types = {TEXTOID, INT8OID, INT8OID}
};

/* Reports that attempts at an event that was tried alone had no result. */
static void
report_crashes(const EvpgConsumer *consumer, int max_attempts, int64 position)
{
	ereport(WARNING,
			(errmsg("attempt %d of \"%s\" of database \"%s\" at the event at position " INT64_FORMAT
					", which was tried alone, had no result",
					consumer->crashes, consumer->name, get_database_name(MyDatabaseId), position),
			 errdetail("The server crashed, or the code ended its session.  The event is %s.",
					   consumer->crashes < max_attempts ? "tried once more" : "not tried any more")));
}

/*
 * EvpgCrashAdviseBatch
 *		Advises a consumer, which the caller owns, what to do next with the events of a
 *		filter.  *limit is the largest batch, 0 for no limit; *position is the event that
 *		is tried alone or given up, 0 if there is none; *next is lowered if the event is
 *		put off.  If an attempt was counted, the commit is flushed to disk.
 */
EvpgCrashAdvice
EvpgCrashAdviseBatch(const EvpgConsumer *consumer, const EvpgLogFilter *filter, int max_attempts, int *limit,
					 int64 *position, TimestampTz *next)
{
	bool		begun = (consumer->server_start == EvpgServerStartId());
	int64		cautious_to = begun ? consumer->cautious_to : EvpgCrashSuspectLimit();
	Datum		values[3] = {
		CStringGetTextDatum(consumer->name),
		Int64GetDatum(EvpgServerStartId()),
		Int64GetDatum(cautious_to)
	};

	max_attempts = EvpgCrashMaxCount(max_attempts);
	*limit = 0;
	*position = 0;
	strlcpy(tried_consumer, consumer->name, sizeof(tried_consumer));
	EvpgCrashSettleAtExit(settle_consumer_attempt, false);
	EvpgCrashNoteRuns(true);
	if (filter->after >= cautious_to)
		return EVPG_CRASH_PROCEED;
	*limit = 1 + (begun ? Min(consumer->proven, PG_INT32_MAX) / TRIED_ALONE : 0);
	if (*limit > 1)
		return EVPG_CRASH_PROCEED;
	*position = find_first_event(filter);
	if (*position == 0)
	{
		/* No code of the consumer will run. */
		*limit = 0;
		return EVPG_CRASH_PROCEED;
	}
	if (!EvpgCrashBeginAttempt(consumer->crashes > 0, next))
		return EVPG_CRASH_POSTPONE;
	EvpgCrashSettleAtExit(settle_consumer_attempt, true);
	if (begun && consumer->crashes > 0)
		return consumer->crashes > max_attempts ? EVPG_CRASH_GIVE_UP : EVPG_CRASH_PROCEED;
	EvpgCrashNoteRuns(false);
	if (consumer->crashes > max_attempts)
		return EVPG_CRASH_GIVE_UP_UNRUN;
	if (consumer->crashes > 0)
		report_crashes(consumer, max_attempts, *position);
	EvpgStatementExecute(&increment_consumer_crashes, values, NULL);
	ForceSyncCommit();
	EvpgCrashNoteCounted();
	return EVPG_CRASH_COUNTED;
}

/* Flushes the commit of a batch that had a limit, so that a crash does not take it back. */
void
EvpgCrashFlushAtCommit(int limit)
{
	if (limit > 0)
		ForceSyncCommit();
}

/* Makes the error, in CurrentMemoryContext, that is written down for an event that has crashed the server. */
ErrorData *
EvpgCrashError(int attempts)
{
	ErrorData  *error = palloc0(sizeof(ErrorData));

	error->sqlerrcode = ERRCODE_CRASH_SHUTDOWN;
	error->message = psprintf("%d attempts ended without a result", attempts);
	error->detail = "Each time the server crashed, or the code ended its session.";
	return error;
}
