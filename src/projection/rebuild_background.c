/*-------------------------------------------------------------------------
 *
 * rebuild_background.c
 *		Rebuilds in the background: workers and evpg_run() apply batches of the parts
 *		and end the rebuild; a batch that fails is tried again, with back-off.
 *
 * The first time after a start of the server that a part, or the end, is tried, the
 * attempt is counted on disk, and the first result takes the count back.  So a
 * rebuild that crashes the server fails in the end, however well its other parts
 * get on (see also consumer/crash_suspects.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/retry.h"
#include "base/statement.h"
#include "base/subtransaction.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "consumer/consumer.h"
#include "consumer/crash_suspects.h"
#include "consumer/parked_event.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "projection/apply.h"
#include "projection/rebuild.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

/* The pause after the first transient error, in ms. */
#define FIRST_REBUILD_PAUSE 1000

/* The pause before the end is tried again if another session is in the way, in ms. */
#define END_PAUSE 100

/* ------------------------------------------------------------------ failures */

static EvpgStatement update_rebuild_failure = {
	.text = "UPDATE evpg.rebuild"
	" SET attempts = $2, retry_at = $3, last_error = coalesce($4, last_error),"
	" last_error_at = CASE WHEN $4 IS NULL THEN last_error_at ELSE evpg.clock_timestamp() END,"
	" status = CASE WHEN $5 THEN 'failed' ELSE status END"
	" WHERE name = $1",
	.types = {TEXTOID, INT4OID, TIMESTAMPTZOID, TEXTOID, BOOLOID}
};

/*
 * Writes down that an attempt has failed, and when the next one is due; the last
 * attempt fails the rebuild, or skips the event if on_error of the projection is
 * skip.  Rethrows a cancel.  After the failure of an event EvpgApplyCurrentPosition is its
 * position.
 */
static void
record_rebuild_failure(EvpgRebuild *rebuild, const ErrorData *error)
{
	bool		counts = !EvpgErrorIsTransient(error);
	int			attempts = rebuild->attempts + counts;
	bool		failed = (attempts >= rebuild->projection->max_attempts);
	bool		skipped = false;
	bool		by_evpg = EvpgErrorIsWorkerCancel(error) && !EvpgErrorIsForeignCancel(error);
	Datum		values[5];
	char		nulls[5] = {' ', ' ', ' ', ' ', ' '};

	if (EvpgErrorIsCancel(error))
		EvpgRethrowError(error);
	if (failed && rebuild->projection->mode == EVPG_MODE_ASYNC &&
		rebuild->projection->on_error == EVPG_ON_ERROR_SKIP && EvpgApplyCurrentPosition != 0)
	{
		EvpgParkedEventInsertSkipped(rebuild->name, EvpgApplyCurrentPosition,
									 rebuild->projection->handler_signature == NULL ? EvpgApplyCurrentKey : NULL,
									 error->message, attempts, error);
		skipped = true;
		failed = false;
		attempts = 0;
	}
	values[0] = CStringGetTextDatum(rebuild->name);
	values[1] = Int32GetDatum(attempts);
	values[2] = TimestampTzGetDatum(skipped ? EvpgClockNow() : counts ? EvpgRetryAfterAttempts(attempts) :
									by_evpg ? EvpgRetryAfterTransient(0, 0, FIRST_REBUILD_PAUSE) :
									EvpgRetryAfterTransient(rebuild->last_error_at, rebuild->retry_at, FIRST_REBUILD_PAUSE));

	/*
	 * A session that needs what the worker has cancels it: that is no error
	 * of the rebuild.
	 */
	EvpgParameterText(values, nulls, 3, by_evpg ? NULL : error->message);
	values[4] = BoolGetDatum(failed);
	EvpgStatementExecute(&update_rebuild_failure, values, nulls);
	if (EvpgErrorIsForeignCancel(error) && rebuild->retry_at == 0)
		ereport(WARNING,
				(errmsg("a worker was cancelled in the rebuild of projection \"%s\" of database \"%s\"", rebuild->name,
						get_database_name(MyDatabaseId)),
				 errdetail("By pg_cancel_backend(), from another session or from the code itself."),
				 errhint("It is tried again, each time after a longer pause; evpg.progress_rebuild shows the error.")));
	if (failed)
		ereport(EvpgReportLevel(),
				(errmsg("rebuild of projection \"%s\" of database \"%s\" has failed", rebuild->name,
						get_database_name(MyDatabaseId)),
				 errdetail("The error has SQLSTATE %s; evpg.rebuild has the rest.", unpack_sql_state(error->sqlerrcode)),
				 errhint("When the cause is gone, use evpg_rebuild_projection() again.")));
}

/* ------------------------------------------------------------------ crashes */

/*
 * Returns the count of a part or of the end.  The caller has locked the part,
 * or for the end the rebuild, here and below.
 */
static EvpgCrashCount *
get_crash_count(EvpgRebuild *rebuild, int part)
{
	return part == EVPG_REBUILD_END ? &rebuild->end_crashes : &rebuild->part_crashes[part];
}

static EvpgStatement update_end_crashes = {
	.text = "UPDATE evpg.rebuild"
	" SET server_start = $2, crashes = $3"
	" WHERE name = $1",
	.types = {TEXTOID, INT8OID, INT4OID}
};

static EvpgStatement update_part_crashes = {
	.text = "UPDATE evpg.rebuild_part"
	" SET server_start = $3, crashes = $4"
	" WHERE build = $1 AND part = $2",
	.types = {INT8OID, INT4OID, INT8OID, INT4OID}
};

/*
 * Writes down how often a part or the end has crashed the server, and in which start
 * of the server that was counted last.  The commit is flushed to disk.
 */
static void
write_crash_count(const EvpgRebuild *rebuild, int part, int64 server_start, int crashes)
{
	Datum		values[4];
	int			count = 0;

	if (part == EVPG_REBUILD_END)
		values[count++] = CStringGetTextDatum(rebuild->name);
	else
	{
		values[count++] = Int64GetDatum(rebuild->build);
		values[count++] = Int32GetDatum(part);
	}
	values[count++] = Int64GetDatum(server_start);
	values[count++] = Int32GetDatum(crashes);
	EvpgStatementExecute(part == EVPG_REBUILD_END ? &update_end_crashes : &update_part_crashes, values, NULL);
	ForceSyncCommit();
}

/* The attempt that this session has counted, or made, last. */
static char counted_name[EVPG_MAX_NAME + 1];
static int	counted_part;

/*
 * Settles the attempt of this session, which ends: takes the count back, or if the
 * attempt itself ends the session (fatal), lets the next session count the next one;
 * unless the attempt has come to a result, or another session makes it.  Waits for no
 * lock.
 */
static void
settle_rebuild_attempt(bool fatal)
{
	Oid			schema = get_rel_namespace(EvpgCatalogGet()->event_log);
	EvpgRebuild rebuild;
	EvpgCrashCount *crashes;

	if (!ConditionalLockRelationOid(get_relname_relid("rebuild", schema), RowExclusiveLock) ||
		!ConditionalLockRelationOid(get_relname_relid("rebuild_part", schema), RowExclusiveLock) ||
		!EvpgRebuildLock(counted_name, counted_part == EVPG_REBUILD_END ? ExclusiveLock : ShareLock, false) ||
		!EvpgRebuildRead(counted_name, &rebuild) || counted_part >= rebuild.parts ||
		(counted_part != EVPG_REBUILD_END && !EvpgRebuildLockPart(&rebuild, counted_part)))
		return;
	EvpgRebuildReadParts(&rebuild);
	crashes = get_crash_count(&rebuild, counted_part);
	if (crashes->server_start == EvpgServerStartId() && (fatal || crashes->crashes > 0))
		write_crash_count(&rebuild, counted_part, 0, fatal ? crashes->crashes : crashes->crashes - 1);
}

/* Notes which attempt this session has counted, or makes. */
static void
note_rebuild_attempt(const EvpgRebuild *rebuild, int part, bool counted)
{
	strlcpy(counted_name, rebuild->name, sizeof(counted_name));
	counted_part = part;
	EvpgCrashSettleAtExit(settle_rebuild_attempt, counted);
}

/*
 * Counts an attempt, if it is the first one after a start of the server; fails the
 * rebuild if there were too many.  Returns false if the attempt was counted before,
 * or need not be, so that the caller may make it in this transaction, unless
 * rebuild->must_wait; otherwise the caller commits first.
 */
static bool
count_rebuild_attempt(EvpgRebuild *rebuild, int part, TimestampTz *next)
{
	const EvpgCrashCount *crashes = get_crash_count(rebuild, part);
	bool		counted = (crashes->server_start == EvpgServerStartId());

	rebuild->must_wait = false;
	note_rebuild_attempt(rebuild, part, false);
	EvpgCrashNoteRuns(counted);
	if (counted && crashes->crashes == 0)
		return false;
	if (!counted && crashes->crashes >= EvpgCrashMaxCount(rebuild->projection->max_attempts))
	{
		rebuild->attempts = rebuild->projection->max_attempts;
		EvpgApplySetCurrent(0, NULL);
		record_rebuild_failure(rebuild, EvpgCrashError(crashes->crashes));
		return true;
	}
	rebuild->must_wait = !EvpgCrashBeginAttempt(crashes->crashes > 0, next);
	if (rebuild->must_wait)
		return false;
	if (!counted)
	{
		write_crash_count(rebuild, part, EvpgServerStartId(), crashes->crashes + 1);
		EvpgCrashNoteCounted();
	}
	note_rebuild_attempt(rebuild, part, true);
	return !counted;
}

/* Resets the count of a part or of the end, which has come to a result since the server was started. */
static void
reset_crash_count(EvpgRebuild *rebuild, int part)
{
	if (get_crash_count(rebuild, part)->crashes > 0)
		write_crash_count(rebuild, part, EvpgServerStartId(), 0);
}

/* ------------------------------------------------------------------ attempts */

static void
try_rebuild_part(void *arg)
{
	EvpgRebuild *rebuild = arg;

	EvpgApplySetCurrent(0, NULL);
	EvpgRebuildApplyPart(rebuild, rebuild->part, false);
}

static void
try_rebuild_end(void *arg)
{
	EvpgRebuildEnd(arg);
}

/* Applies a batch to a part that no other session works on; returns false if no part needs one, or it is put off. */
static bool
continue_next_part(EvpgRebuild *rebuild, TimestampTz *next)
{
	int64		near = EvpgRebuildTakePostponed(rebuild) ? 0 : EVPG_REBUILD_NEAR;

	rebuild->upto = EvpgFenceStablePosition(false);
	for (rebuild->part = 0; rebuild->part < rebuild->parts; rebuild->part++)
	{
		ErrorData  *error;

		if ((rebuild->counted != EVPG_REBUILD_ANY && rebuild->part != rebuild->counted) ||
			!EvpgRebuildLockPart(rebuild, rebuild->part))
			continue;
		EvpgRebuildReadParts(rebuild);

		/*
		 * Events that existed when the rebuild began are applied by batches:
		 * an exchange of tables at the end waits for snapshots that do not
		 * see these.
		 */
		if (rebuild->upto - rebuild->checkpoints[rebuild->part] <= near &&
			(rebuild->projection->tables == NIL ||
			 rebuild->checkpoints[rebuild->part] >= Min(rebuild->goal, rebuild->upto)))
			continue;
		if (count_rebuild_attempt(rebuild, rebuild->part, next))
			return true;
		if (rebuild->must_wait)
			continue;
		error = EvpgSubtransactionRun(try_rebuild_part, rebuild);
		reset_crash_count(rebuild, rebuild->part);
		if (error != NULL)
			record_rebuild_failure(rebuild, error);
		return true;
	}
	return false;
}

/* Ends the rebuild if all parts are near; returns false if another session is in the way. */
static bool
end_if_near(EvpgRebuild *rebuild, TimestampTz *next)
{
	ErrorData  *error;

	if (!EvpgRebuildLock(rebuild->name, ExclusiveLock, false) || !EvpgConsumerLock(rebuild->name, false))
	{
		/* Perhaps two sessions are in each other's way. */
		*next = Min(*next, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), END_PAUSE));
		return false;
	}
	EvpgRebuildReadParts(rebuild);
	if (rebuild->projection->reset_signature == NULL)
		for (int part = 0; part < rebuild->parts; part++)
			if (rebuild->upto - rebuild->checkpoints[part] > 2 * EVPG_REBUILD_NEAR)
				return true;
	if (count_rebuild_attempt(rebuild, EVPG_REBUILD_END, next))
		return true;
	if (rebuild->must_wait)
		return false;
	error = EvpgSubtransactionRun(try_rebuild_end, rebuild);
	if (error != NULL)
	{
		reset_crash_count(rebuild, EVPG_REBUILD_END);
		if (!rebuild->postponed)
			record_rebuild_failure(rebuild, error);
	}
	return true;
}

/*
 * EvpgRebuildContinue
 *		Applies the next batch of a rebuild, or ends it, in the current transaction,
 *		which the caller commits at once.  Returns true if there is more to be done now;
 *		lowers *next to the time at which the rebuild is due again.  Does nothing if
 *		the rebuild is locked.  Errors of user code are written down, not thrown.
 */
bool
EvpgRebuildContinue(const char *name, TimestampTz *next)
{
	EvpgRebuild rebuild;
	EvpgScope	scope;
	bool		more;

	if (!EvpgRebuildLock(name, ShareLock, false))
		return false;
	EvpgEnter(&scope, "evpg_run()");
	if (!EvpgRebuildRead(name, &rebuild) || !rebuild.running)
		more = false;
	else if (rebuild.retry_at > EvpgClockNow())
	{
		*next = Min(*next, EvpgClockWall(rebuild.retry_at));
		more = false;
	}
	else
	{
		/* An attempt that was counted is made next, and nothing else. */
		rebuild.counted = EvpgCrashIsLocked() ? counted_part : EVPG_REBUILD_ANY;
		more = rebuild.projection->reset_signature == NULL && continue_next_part(&rebuild, next);
		if (!more && !rebuild.must_wait)
			more = rebuild.counted >= 0 || end_if_near(&rebuild, next);
	}
	EvpgLeave(&scope);
	return more;
}
