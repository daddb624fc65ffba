/*-------------------------------------------------------------------------
 *
 * crash_suspects.c
 *		What may have crashed the server is tried alone (rules 10 and 17).
 *
 * User code in C can take the whole server down.  What a consumer had in hand
 * then is not known afterwards, but it is not above the last position that was
 * drawn.  So after each start of the server a consumer is cautious up to there:
 * it takes events one by one, later a few at a time, and each such batch is on
 * disk before the next one begins.  Before an event is tried alone an attempt is
 * counted, in a transaction of its own that is flushed; its success or its failure
 * takes the count back, and so does the end of the session, when it is terminated or
 * the server is shut down.  So only a crash while an event is alone counts, and after
 * max_attempts of them the consumer does what on_error says; after two at least,
 * since another process may have caused one.
 *
 * The attempt follows the count at once, and from the count to the commit of the
 * attempt the session holds a lock that is one for the whole server.  It is exclusive
 * for what has crashed before, shared for what has not: so a second count is made
 * only if nothing else that is under suspicion runs, in any database, and what
 * has never crashed does not wait for each other.
 *
 * A consumer that has nothing to catch up after a start is not slowed down, not
 * by what comes then, and none is in normal operation.
 *
 * A start of the server is known by the handle of its dynamic shared memory, which
 * is a new random number after a crash, too, and needs no preloading.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/locks.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "consumer/crash_suspects.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/pg_shmem.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

/* So many events are tried one by one; then batches grow by one for each so many. */
#define ALONE 16

/* One crash may have been caused by another process. */
#define FEWEST_CRASHES 2

/* The consumer whose event this session has alone. */
static char alone[EVPG_MAX_NAME + 1];

/* What this session has counted is taken back by this function. */
static void (*counted) (void) = NULL;

/* The mode in which this session holds the lock of suspects, and what it has counted in this transaction is tried in the next. */
static LOCKMODE lock_mode = NoLock;
static bool attempt_follows = false;

/* For how long a suspect is put off that cannot be tried alone. */
#define SUSPECT_PAUSE 100

static void
fill_suspect_tag(LOCKTAG *tag)
{
	/* Of no database: a crash hits all of them. */
	SET_LOCKTAG_ADVISORY(*tag, InvalidOid, 0, 0, EVPG_LOCK_SUSPECT);
}

/*
 * EvpgCrashLock
 *		Locks what may crash the server, for the session, up to EvpgCrashUnlock;
 *		exclusively if it has been under way in a crash.  Does not wait; false if
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

/* Gives the lock back, if this session has it: what was tried has committed, or failed. */
void
EvpgCrashUnlock(void)
{
	LOCKTAG		tag;

	attempt_follows = false;
	if (lock_mode == NoLock)
		return;
	fill_suspect_tag(&tag);
	/* User code may have called pg_advisory_unlock_all(). */
	if (EvpgLockHeld(&tag, lock_mode))
		(void) LockRelease(&tag, lock_mode, true);
	lock_mode = NoLock;
}

/*
 * EvpgCrashBeginAttempt
 *		Begins an attempt that the caller counts in this transaction, or has counted
 *		before: false, and *next is lowered, if it must be put off.
 */
bool
EvpgCrashBeginAttempt(bool crashed, TimestampTz *next)
{
	if (EvpgCrashLock(crashed))
		return true;
	*next = Min(*next, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), SUSPECT_PAUSE));
	return false;
}

/* Returns whether this session has it: it has counted an attempt in its last transaction, or tries one. */
bool
EvpgCrashIsLocked(void)
{
	return lock_mode != NoLock;
}

/* The caller has counted an attempt, which it makes in the next transaction. */
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

/* Which start of the server this is. */
int64
EvpgServerStartId(void)
{
	return ((PGShmemHeader *) UsedShmemSegAddr)->dsm_control;
}

/*
 * A session that ends, by itself or because it is told to, has not crashed: its
 * attempt was none.  Nothing here may wait, neither for locks nor for standbys,
 * since interrupts are held by now.
 */
static void
take_back_at_exit(int code, Datum arg)
{
	void		(*take_back) (void) = counted;
	EvpgScope	scope;

	counted = NULL;
	if (take_back == NULL)
		return;
	AbortOutOfAnyTransaction();
	StartTransactionCommand();
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	PushActiveSnapshot(GetTransactionSnapshot());
	EvpgEnter(&scope, NULL);
	if (EvpgCatalogTryLockForWork())
		take_back();
	EvpgLeave(&scope);
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * EvpgCrashTakeBackAtExit
 *		If this session ends before it counts anything else, the function is run in a
 *		transaction; it must see for itself whether there is anything to take back.
 */
void
EvpgCrashTakeBackAtExit(void (*take_back) (void))
{
	static bool registered = false;

	if (!registered)
		before_shmem_exit(take_back_at_exit, (Datum) 0);
	registered = true;
	counted = take_back;
}

/* After how many crashes that is given up which may fail so often. */
int
EvpgCrashMaxCount(int max_attempts)
{
	return Max(max_attempts, FEWEST_CRASHES);
}

static EvpgStatement update_consumer_take_back = {
	.text = "UPDATE evpg.consumer"
	" SET server_start = 0, crashes = crashes - 1"
	" WHERE name = $1 AND server_start = $2 AND crashes > 0",
	.types = {TEXTOID, INT8OID}
};

static void
take_back_alone(void)
{
	Datum		values[2] = {CStringGetTextDatum(alone), Int64GetDatum(EvpgServerStartId())};

	if (!EvpgConsumerLock(alone, false))
		return;
	(void) EvpgStatementRun(&update_consumer_take_back, values, NULL);
	EvpgStatementDone();
}

/* The first event that a filter lets through, 0 if there is none. */
static int64
find_first(const EvpgLogFilter *filter)
{
	EvpgLogScan *scan;
	EvpgEvent	event;
	int64		position = 0;

	PushActiveSnapshot(GetTransactionSnapshot());
	scan = EvpgLogScanAll(filter);
	if (EvpgLogScanNext(scan, &event))
		position = event.position;
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
	return position;
}

/*
 * EvpgCrashSuspectLimit
 *		The last position that was drawn when this session asked first: what was in
 *		hand when the server crashed is not above it.
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

static EvpgStatement update_crashes = {
	.text = "UPDATE evpg.consumer"
	" SET proven = CASE WHEN server_start = $2 THEN proven ELSE 0 END, server_start = $2, cautious_to = $3,"
	" crashes = crashes + 1"
	" WHERE name = $1",
	.types = {TEXTOID, INT8OID, INT8OID}
};

/*
 * EvpgCrashAdviseBatch
 *		What a consumer, which the caller owns, may do next with the events of a
 *		filter.  *position is the event that is tried alone, or is given up; *next
 *		is lowered if it is put off.
 */
EvpgCrashAdvice
EvpgCrashAdviseBatch(const EvpgConsumer *consumer, const EvpgLogFilter *filter, int max_attempts, int *limit, int64 *position,
					 TimestampTz *next)
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
	if (filter->after >= cautious_to)
		return EVPG_CRASH_PROCEED;
	*limit = 1 + (begun ? Min(consumer->proven, PG_INT32_MAX) / ALONE : 0);
	if (*limit > 1)
		return EVPG_CRASH_PROCEED;
	*position = find_first(filter);
	if (*position == 0)
	{
		/* No code of the consumer will run. */
		*limit = 0;
		return EVPG_CRASH_PROCEED;
	}
	if (!EvpgCrashBeginAttempt(consumer->crashes > 0, next))
		return EVPG_CRASH_PUT_OFF;
	strlcpy(alone, consumer->name, sizeof(alone));
	EvpgCrashTakeBackAtExit(take_back_alone);
	if (begun && consumer->crashes > 0)
		return consumer->crashes > max_attempts ? EVPG_CRASH_GIVE_UP : EVPG_CRASH_PROCEED;
	if (consumer->crashes > max_attempts)
		return EVPG_CRASH_GIVE_UP_UNRUN;
	if (consumer->crashes > 0)
		ereport(WARNING,
				(errmsg("the server has crashed %d times while \"%s\" of database \"%s\" had the event at position " INT64_FORMAT " alone",
						consumer->crashes, consumer->name, get_database_name(MyDatabaseId), *position),
				 consumer->crashes < max_attempts ? errdetail("It is tried once more.") :
				 errdetail("It is not tried any more.")));
	(void) EvpgStatementRun(&update_crashes, values, NULL);
	EvpgStatementDone();
	ForceSyncCommit();
	EvpgCrashNoteCounted();
	return EVPG_CRASH_COUNTED;
}

/* A batch with a limit has come to an end, which must not be taken back. */
void
EvpgCrashFlushAtCommit(int limit)
{
	if (limit > 0)
		ForceSyncCommit();
}

/* What is written down instead of an error. */
ErrorData *
EvpgCrashError(int attempts)
{
	ErrorData  *error = palloc0(sizeof(ErrorData));

	error->sqlerrcode = ERRCODE_CRASH_SHUTDOWN;
	error->message = psprintf("%d attempts ended without a result", attempts);
	error->detail = "The server crashed each time.";
	return error;
}
