/*-------------------------------------------------------------------------
 *
 * rebuild.c
 *		Rebuilds all keys of a projection (rule 13): a new build is made beside the
 *		one that is read, while events come in, and takes its place at once when it
 *		has caught up.
 *
 * A rebuild has parts.  Each has keys of its own and a checkpoint that moves with
 * its rows, so several sessions can work on one rebuild, and any of them can go on
 * after a crash (rebuild_background.c).  No frames are sent.  The end is one
 * transaction, which applies the last events and makes the new build the one that
 * is read (rebuild_end.c).  The rows of the old build are deleted afterwards
 * (rebuild_cleanup.c).
 *
 * A projection cannot have two tables of one name.  If it has declared its tables,
 * copies of them are filled (rebuild_tables.c), and the end replaces the contents
 * of the tables.  With a reset function everything is one transaction: readers see
 * the old rows until it commits, but appenders to an inline projection wait.
 *
 * The order of locks: consumer, rebuild (shared by the sessions that work on
 * parts), part, fence.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/locks.h"
#include "base/settings.h"
#include "base/statement.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "consumer/activation.h"
#include "consumer/consumer.h"
#include "consumer/crash_suspects.h"
#include "consumer/parked_event.h"
#include "consumer/worker_lock.h"
#include "log/event_log.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "projection/declared_tables.h"
#include "projection/rebuild.h"
#include "projection/rebuild_handler.h"
#include "projection/rebuild_key.h"
#include "projection/rebuild_tables.h"
#include "usercode/guard.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(evpg_rebuild_projection);
PG_FUNCTION_INFO_V1(evpg_cancel_rebuild);

/* ------------------------------------------------------------------ locks */

static bool
acquire_rebuild_lock(const char *name, int seed, LOCKMODE mode, bool wait)
{
	LOCKTAG		tag;

	EvpgSetLockTag(&tag, EVPG_LOCK_REBUILD, EvpgHashName(name, seed));
	return EvpgLockAcquire(&tag, mode, wait);
}

/*
 * EvpgRebuildLock
 *		Locks the rebuild of a projection, which need not exist, until the end of the
 *		transaction: with ShareLock to work on a part, with ExclusiveLock to have it
 *		alone.  Returns false if it may not wait and the lock is taken.  If it may wait,
 *		the caller owns the consumer, but not the fence.
 */
bool
EvpgRebuildLock(const char *name, LOCKMODE mode, bool wait)
{
	return acquire_rebuild_lock(name, 0, mode, wait);
}

/*
 * EvpgRebuildLockPart
 *		Tries to lock a part of a rebuild until the end of the transaction; returns
 *		false if another session works on it.  The caller holds the lock of the rebuild.
 */
bool
EvpgRebuildLockPart(const EvpgRebuild *rebuild, int part)
{
	return acquire_rebuild_lock(rebuild->name, part + 1, ExclusiveLock, false);
}

/* ------------------------------------------------------------------ what is stored */

enum
{
	REBUILD_BUILD = 1, REBUILD_RUNNING, REBUILD_PARTS, REBUILD_ATTEMPTS, REBUILD_RETRY_AT, REBUILD_LAST_ERROR_AT,
	REBUILD_GOAL, REBUILD_SERVER_START, REBUILD_CRASHES
};

static EvpgStatement select_rebuild = {
	.text = "SELECT build, status = 'running', parts, attempts, retry_at, last_error_at, goal, server_start, crashes"
	" FROM evpg.rebuild"
	" WHERE name = $1",
	.types = {TEXTOID}
};

/*
 * EvpgRebuildRead
 *		Reads the rebuild of a projection with the latest snapshot; returns false if
 *		there is none.  *rebuild and what it points to are in CurrentMemoryContext.  The
 *		parts are read by EvpgRebuildReadParts.
 */
bool
EvpgRebuildRead(const char *name, EvpgRebuild *rebuild)
{
	Datum		value = CStringGetTextDatum(name);
	MemoryContext caller = CurrentMemoryContext;
	bool		found = EvpgStatementReadLatest(&select_rebuild, &value, NULL) > 0;

	memset(rebuild, 0, sizeof(EvpgRebuild));
	rebuild->name = name;
	if (found)
	{
		rebuild->build = EvpgResultInt64(0, REBUILD_BUILD);
		rebuild->running = EvpgResultInt64(0, REBUILD_RUNNING) != 0;
		rebuild->parts = (int) EvpgResultInt64(0, REBUILD_PARTS);
		rebuild->attempts = (int) EvpgResultInt64(0, REBUILD_ATTEMPTS);
		rebuild->retry_at = EvpgResultInt64(0, REBUILD_RETRY_AT);
		rebuild->last_error_at = EvpgResultInt64(0, REBUILD_LAST_ERROR_AT);
		rebuild->goal = EvpgResultInt64(0, REBUILD_GOAL);
		rebuild->end_crashes.server_start = EvpgResultInt64(0, REBUILD_SERVER_START);
		rebuild->end_crashes.crashes = (int) EvpgResultInt64(0, REBUILD_CRASHES);
	}
	EvpgStatementDone();
	if (!found)
		return false;
	rebuild->projection = EvpgProjectionGet(name, false);
	rebuild->checkpoints = MemoryContextAllocZero(caller, sizeof(int64) * rebuild->parts);
	rebuild->part_crashes = MemoryContextAllocZero(caller, sizeof(EvpgCrashCount) * rebuild->parts);
	return true;
}

enum
{
	PART_CHECKPOINT = 1, PART_XMIN, PART_SERVER_START, PART_CRASHES
};

static EvpgStatement select_rebuild_parts = {
	.text = "SELECT checkpoint, xmin, server_start, crashes"
	" FROM evpg.rebuild_part"
	" WHERE build = $1 ORDER BY part",
	.types = {INT8OID}
};

/*
 * EvpgRebuildReadParts
 *		Reads how far the parts of a rebuild are, with the latest snapshot.  A part that
 *		the caller has not locked may be further by the time it looks.
 */
void
EvpgRebuildReadParts(EvpgRebuild *rebuild)
{
	Datum		value = Int64GetDatum(rebuild->build);
	uint64		rows = EvpgStatementReadLatest(&select_rebuild_parts, &value, NULL);

	rebuild->last_write = InvalidTransactionId;
	for (uint64 row = 0; row < rows && row < (uint64) rebuild->parts; row++)
	{
		Datum		writer;

		rebuild->checkpoints[row] = EvpgResultInt64(row, PART_CHECKPOINT);
		(void) EvpgResultDatum(row, PART_XMIN, &writer);
		if (!TransactionIdIsValid(rebuild->last_write) ||
			TransactionIdFollows(DatumGetTransactionId(writer), rebuild->last_write))
			rebuild->last_write = DatumGetTransactionId(writer);
		rebuild->part_crashes[row].server_start = EvpgResultInt64(row, PART_SERVER_START);
		rebuild->part_crashes[row].crashes = (int) EvpgResultInt64(row, PART_CRASHES);
	}
	EvpgStatementDone();
}

/* Returns whether a projection has a rebuild, running or failed.  The caller is inside EvpgEnter. */
bool
EvpgRebuildExists(const char *name)
{
	EvpgRebuild rebuild;

	return EvpgRebuildRead(name, &rebuild);
}

static EvpgStatement select_running_rebuilds = {
	.text = "SELECT name"
	" FROM evpg.rebuild r"
	" WHERE status = 'running'"
	" ORDER BY crashes > 0 OR EXISTS (SELECT FROM evpg.rebuild_part p WHERE p.build = r.build AND p.crashes > 0), name"
};

/*
 * EvpgRebuildListRunning
 *		Lists the names of the projections that are being rebuilt (char *), in
 *		CurrentMemoryContext; those last whose code may have crashed the server, or
 *		ended its session.  The caller is inside EvpgEnter and needs no lock.
 */
List *
EvpgRebuildListRunning(void)
{
	return EvpgStatementReadTexts(&select_running_rebuilds, NULL, NULL);
}

/* ------------------------------------------------------------------ applying */

static EvpgStatement update_part_checkpoint = {
	.text = "UPDATE evpg.rebuild_part"
	" SET checkpoint = $3, events = events + $4"
	" WHERE build = $1 AND part = $2",
	.types = {INT8OID, INT4OID, INT8OID, INT8OID}
};

/*
 * EvpgRebuildApplyPart
 *		Applies the next batch of events to a part, up to rebuild->upto, and moves the
 *		checkpoint of the part.  Parked events are applied by a rebuild; skipped ones are
 *		not.  The caller holds the lock of the part, or has the rebuild alone.
 */
void
EvpgRebuildApplyPart(EvpgRebuild *rebuild, int part, bool unhurried)
{
	EvpgBatch	batch = {
		.projection = rebuild->projection,
		.build = rebuild->build,
		.after = rebuild->checkpoints[part],
		.upto = rebuild->upto,
		.unhurried = unhurried,
		.parts = rebuild->parts,
		.part = part
	};
	Datum		values[4];
	ListCell   *cell;

	foreach(cell, EvpgParkedEventList(rebuild->name, batch.after))
		if (((EvpgParkedEvent *) lfirst(cell))->skipped)
		batch.parked = lappend(batch.parked, lfirst(cell));
	EvpgRebuildHandlerApplyBatch(&batch);
	rebuild->checkpoints[part] = batch.reached;
	rebuild->events += batch.events;
	values[0] = Int64GetDatum(rebuild->build);
	values[1] = Int32GetDatum(part);
	values[2] = Int64GetDatum(batch.reached);
	values[3] = Int64GetDatum(batch.events);
	EvpgStatementExecute(&update_part_checkpoint, values, NULL);
}

/*
 * EvpgRebuildHasEventsLeft
 *		Returns whether a part of a rebuild has an event of the projection between its
 *		checkpoint and a position.  The caller has the rebuild alone, and has asked for
 *		the stable position before.
 */
bool
EvpgRebuildHasEventsLeft(const EvpgRebuild *rebuild, int64 upto)
{
	EvpgProjection *projection = rebuild->projection;
	bool		by_id = EvpgProjectionIsKeyedById(projection);
	bool		found = false;

	PushActiveSnapshot(GetTransactionSnapshot());
	for (int part = 0; part < rebuild->parts && !found; part++)
	{
		EvpgLogFilter filter = {
			.after = rebuild->checkpoints[part],
			.upto = upto,
			.aggregate_types = projection->aggregate_types,
			.event_types = projection->event_types,
			.tags = projection->tags,
			.parts = by_id ? rebuild->parts : 1,
			.part = part,
			.leaves_upcasting = true
		};

		while (filter.after < upto && !found)
		{
			EvpgLogScan *scan = EvpgLogScanAll(&filter);
			EvpgEvent	event;

			while (!found && EvpgLogScanNext(scan, &event))
				found = EvpgProjectionTakes(projection, &event);
			filter.after = EvpgLogScanReached(scan);
			EvpgLogScanEnd(scan);
		}
	}
	PopActiveSnapshot();
	return found;
}

/*
 * EvpgRebuildApplyRest
 *		Applies all events up to rebuild->upto to all parts.  The caller has the rebuild
 *		alone.
 */
void
EvpgRebuildApplyRest(EvpgRebuild *rebuild)
{
	for (int part = 0; part < rebuild->parts; part++)
		while (rebuild->checkpoints[part] < rebuild->upto)
			EvpgRebuildApplyPart(rebuild, part, true);
}

/* ------------------------------------------------------------------ starting and cancelling */

/* Returns how many parts a rebuild gets, which is how many sessions can work on it at once. */
static int
choose_parts(const EvpgProjection *projection)
{
	return projection->handler_signature != NULL || projection->constant_key != NULL ? 1 : Max(EvpgWorkers, 1);
}

/* Raises an error if the projection cannot be rebuilt. */
static void
require_rebuildable(const EvpgProjection *projection)
{
	if (projection->handler_signature != NULL && projection->tables == NIL && projection->reset_signature == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot rebuild projection \"%s\"", projection->name),
				 errdetail("It is a table projection, and evpg does not know its tables."),
				 errhint("Register it with its tables, or with a reset function.")));
	EvpgProjectionRequireCode(projection);
}

static EvpgStatement insert_rebuild_and_parts = {
	.text = "WITH r AS (INSERT INTO evpg.rebuild (name, build, parts, start_position, goal, started_by, server_start)"
	" VALUES ($1, nextval('evpg.projection_build'), $2, $3, $4, $5, $6) RETURNING build, parts)"
	" INSERT INTO evpg.rebuild_part (build, part, checkpoint, server_start)"
	" SELECT r.build, part, $3, $6"
	" FROM r, LATERAL generate_series(0, r.parts - 1) AS part",
	.types = {TEXTOID, INT4OID, INT8OID, INT8OID, TEXTOID, INT8OID}
};

/* Writes a new rebuild, and makes the copies of its tables.  The caller has the rebuild alone. */
static void
insert_rebuild(EvpgProjection *projection, int parts)
{
	Datum		values[6] = {
		CStringGetTextDatum(projection->name),
		Int32GetDatum(parts),
		Int64GetDatum(projection->start_position),
		Int64GetDatum(EvpgFenceLastDrawn()),
		CStringGetTextDatum(GetUserNameFromId(GetSessionUserId(), false)),
		Int64GetDatum(EvpgServerStartId())
	};

	require_rebuildable(projection);
	EvpgStatementExecute(&insert_rebuild_and_parts, values, NULL);
	if (projection->tables != NIL)
	{
		EvpgRebuild rebuild;

		EvpgDeclaredTablesCheckReplaceable(projection, AccessShareLock);
		(void) EvpgRebuildRead(projection->name, &rebuild);
		EvpgRebuildTablesCreateCopies(projection, rebuild.build);
	}
}

/*
 * EvpgRebuildStart
 *		Starts a rebuild in the background; cancels the one that there may be.  Wakes
 *		workers at commit.  The caller owns the consumer and is inside EvpgEnter.
 */
void
EvpgRebuildStart(EvpgProjection *projection)
{
	(void) EvpgRebuildCancel(projection->name);
	EvpgWakeLauncherAtCommit();
	EvpgWakeConsumersAtEnd();
	insert_rebuild(projection, choose_parts(projection));
	EvpgActivationNotice();
}

static EvpgStatement delete_rebuild = {
	.text = "WITH r AS (DELETE FROM evpg.rebuild WHERE name = $1 RETURNING build),"
	" p AS (DELETE FROM evpg.rebuild_part USING r WHERE rebuild_part.build = r.build)"
	" INSERT INTO evpg.old_build (build, name)"
	" SELECT build, $1"
	" FROM r RETURNING build",
	.types = {TEXTOID}
};

/*
 * EvpgRebuildCancel
 *		Ends a rebuild without a result, after waiting for the sessions that work on it;
 *		returns false if there is none.  Its rows are deleted later.  The caller owns the
 *		consumer, but not the fence.  Raises 40001 if the transaction's snapshot is older
 *		than the rebuild, which would be left behind.
 */
bool
EvpgRebuildCancel(const char *name)
{
	Datum		value = CStringGetTextDatum(name);
	int64		build;

	(void) EvpgRebuildLock(name, ExclusiveLock, true);
	build = EvpgStatementReturnId(&delete_rebuild, &value, NULL);
	if (build != 0)
	{
		EvpgRebuildTablesDropCopies(build);
		EvpgWakeConsumersAtEnd();
	}
	else if (IsolationUsesXactSnapshot() && EvpgRebuildExists(name))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access to the rebuild of projection \"%s\"", name),
				 errdetail("Another transaction has begun it meanwhile."),
				 errhint("Retry the transaction.")));
	return build != 0;
}

/* Does the whole rebuild in the transaction of the caller; returns how many events it has applied. */
static int64
rebuild_in_foreground(EvpgProjection *projection)
{
	char	   *name = pstrdup(projection->name);
	EvpgRebuild rebuild;

	(void) EvpgConsumerLock(name, true);
	(void) EvpgRebuildCancel(name);
	insert_rebuild(EvpgProjectionGet(name, false), 1);
	(void) EvpgRebuildRead(name, &rebuild);
	EvpgRebuildReadParts(&rebuild);
	rebuild.foreground = true;

	/*
	 * What can be done without keeping appenders out; a reset comes first,
	 * though.
	 */
	rebuild.upto = EvpgFenceStablePosition(false);
	if (rebuild.projection->reset_signature == NULL)
		EvpgRebuildApplyRest(&rebuild);
	EvpgRebuildEnd(&rebuild);
	EvpgRebuildCleanUpBuild(rebuild.replaced);
	return rebuild.events;
}

/* Starts a rebuild in the background, unless one is running. */
static void
rebuild_in_background(EvpgProjection *projection)
{
	char	   *name = pstrdup(projection->name);
	EvpgRebuild rebuild;

	(void) EvpgConsumerLock(name, true);
	if (EvpgRebuildRead(name, &rebuild) && rebuild.running)
		ereport(NOTICE,
				(errmsg("projection \"%s\" is being rebuilt already", name)));
	else
		EvpgRebuildStart(EvpgProjectionGet(name, false));
}

/*
 * evpg_rebuild_projection(name, key, background)
 *		Rebuilds one key, or all if key is NULL; returns how many events were applied,
 *		or NULL in the background.  Owns the consumer of an asynchronous projection.
 */
Datum
evpg_rebuild_projection(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "projection name");
	bool		background = EvpgArgBool(fcinfo, 2, "background");
	int64		count = 0;
	EvpgScope	scope;

	if (background && !PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a single key is not rebuilt in the background"),
				 errhint("Leave key or background out.")));
	EvpgRefuseInProjection("rebuild projections");
	EvpgEnter(&scope, "evpg_rebuild_projection()");
	if (!PG_ARGISNULL(1))
		count = EvpgRebuildKey(name, EvpgArgKey(fcinfo, 1));
	else if (background)
		rebuild_in_background(EvpgProjectionGet(name, false));
	else
		count = rebuild_in_foreground(EvpgProjectionGet(name, false));
	EvpgLeave(&scope);
	if (background)
		PG_RETURN_NULL();
	PG_RETURN_INT64(count);
}

/*
 * evpg_cancel_rebuild(name)
 *		Ends a rebuild without a result; returns false if there is none.  Owns the
 *		consumer of an asynchronous projection.
 */
Datum
evpg_cancel_rebuild(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "projection name");
	bool		cancelled;
	EvpgScope	scope;

	EvpgRefuseInProjection("cancel rebuilds");
	EvpgEnter(&scope, "evpg_cancel_rebuild()");
	(void) EvpgProjectionGet(name, false);
	(void) EvpgConsumerLock(name, true);
	cancelled = EvpgRebuildCancel(name);
	EvpgLeave(&scope);
	PG_RETURN_BOOL(cancelled);
}
