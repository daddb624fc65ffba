/*-------------------------------------------------------------------------
 *
 * rebuild.c
 *		Rebuilds all keys of a projection (rule 13): a new build is made beside the
 *		one that is read, while events come in, and takes its place at once when it
 *		has caught up.
 *
 * A rebuild has parts, each with the keys of its own and a checkpoint that moves
 * with its rows, so that several sessions work on one rebuild and any of them can
 * go on after a crash.  Frames are not sent.  The end is one transaction: for an
 * inline projection it keeps appenders out by evpg.fence, for an asynchronous one
 * it owns the consumer; it applies what is left, and makes the new build the one
 * that is read.  The rows of the old one are deleted afterwards, in batches, by
 * who owns the consumer; a key that has none any more gets a row that says so.
 *
 * Tables of a projection cannot be had twice under one name.  With declared
 * tables, copies of them are filled (rebuild_tables.c), and the end replaces the contents
 * of the tables.  With a reset function everything is one transaction: readers see the
 * old rows until it commits, but appenders to an inline projection wait.
 *
 * Locks, in the order of everybody: consumer, rebuild (shared by those who work
 * on parts), part, fence.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/locks.h"
#include "base/names.h"
#include "base/registration.h"
#include "base/retry.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/statement.h"
#include "base/subtransaction.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "consumer/activation.h"
#include "consumer/consumer.h"
#include "consumer/crash_suspects.h"
#include "consumer/parked_event.h"
#include "consumer/worker_lock.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "projection/apply.h"
#include "projection/rebuild.h"
#include "projection/rebuild_key.h"
#include "projection/rebuild_tables.h"
#include "storage/lmgr.h"
#include "utils/lsyscache.h"

PG_FUNCTION_INFO_V1(evpg_rebuild_projection);
PG_FUNCTION_INFO_V1(evpg_cancel_rebuild);

/* So near to the last event, in positions, a rebuild tries to end. */
#define NEAR 2000

/* So often a rebuild that is about to exchange tables applies the last events first. */
#define MAX_DELAYS 5

/* How long to wait after the first error that need not come back, in ms. */
#define FIRST_PAUSE 1000

/* How long the end of a rebuild waits for appenders; longer ones would keep others waiting too. */
#define FENCE_TIMEOUT "200ms"

/* When to look again if another session kept this one from ending a rebuild, in ms. */
#define END_PAUSE 100

/* Rows of an old build are deleted so many at a time. */
#define CLEAN_ROWS 5000

/* In place of the number of a part: what comes after all of them. */
#define END (-1)

/* Whether a part of a rebuild, or its end, has crashed the server. */
typedef struct Suspicion
{
	int64		server_start;	/* in which it was last tried */
	int			crashes;		/* starts since it came to a result */
} Suspicion;

/* A rebuild, as its row says. */
typedef struct Rebuild
{
	const char *name;
	EvpgProjection *projection;
	int64		build;
	bool		running;
	int			parts;
	int64		goal;			/* the last position when it began */
	int64	   *checkpoints;	/* of the parts */
	Suspicion  *suspicions;		/* of the parts */
	Suspicion	suspicion;		/* of the end */
	TransactionId last_write;	/* of who has moved a checkpoint */
	int			attempts;
	TimestampTz retry_at;		/* 0: at once */
	TimestampTz last_error_at;	/* 0: none */
	int64		events;			/* applied in this call */
	int64		replaced;		/* the build whose place it has taken */
	/* what an attempt is about */
	int			part;
	int64		mark;
	bool		wait;			/* for appenders */
	bool		left;			/* the end would write what an exchange hides */
} Rebuild;

/* ------------------------------------------------------------------ locks */

static bool
lock_hash(const char *name, int number, LOCKMODE mode, bool wait)
{
	LOCKTAG		tag;

	EvpgLockTag(&tag, EVPG_LOCK_REBUILD, EvpgHashName(name, number));
	return EvpgLockAcquire(&tag, mode, wait);
}

static bool
lock_rebuild(const char *name, LOCKMODE mode, bool wait)
{
	return lock_hash(name, 0, mode, wait);
}

static bool
lock_part(const Rebuild *rebuild, int part)
{
	return lock_hash(rebuild->name, part + 1, ExclusiveLock, false);
}

/* ------------------------------------------------------------------ what is stored */

static EvpgStatement select_rebuild = {
	.text = "SELECT build, status = 'running', parts, attempts, retry_at, last_error_at, goal, server_start, crashes"
	" FROM evpg.rebuild"
	" WHERE name = $1",
	.types = {TEXTOID}
};

/* Reads a rebuild; false if there is none. */
static bool
read_rebuild(const char *name, Rebuild *rebuild)
{
	Datum		value = CStringGetTextDatum(name);
	MemoryContext caller = CurrentMemoryContext;
	bool		found = EvpgStatementReadLatest(&select_rebuild, &value, NULL) > 0;

	memset(rebuild, 0, sizeof(Rebuild));
	rebuild->name = name;
	if (found)
	{
		Datum		running;

		rebuild->build = EvpgResultInt64(0, 1);
		(void) EvpgResultDatum(0, 2, &running);
		rebuild->running = DatumGetBool(running);
		rebuild->parts = (int) EvpgResultInt64(0, 3);
		rebuild->attempts = (int) EvpgResultInt64(0, 4);
		rebuild->retry_at = EvpgResultInt64(0, 5);
		rebuild->last_error_at = EvpgResultInt64(0, 6);
		rebuild->goal = EvpgResultInt64(0, 7);
		rebuild->suspicion.server_start = EvpgResultInt64(0, 8);
		rebuild->suspicion.crashes = (int) EvpgResultInt64(0, 9);
	}
	EvpgStatementDone();
	if (!found)
		return false;
	rebuild->projection = EvpgProjectionGet(name, false);
	rebuild->checkpoints = MemoryContextAllocZero(caller, sizeof(int64) * rebuild->parts);
	rebuild->suspicions = MemoryContextAllocZero(caller, sizeof(Suspicion) * rebuild->parts);
	return true;
}

static EvpgStatement select_part = {
	.text = "SELECT checkpoint, xmin, server_start, crashes"
	" FROM evpg.rebuild_part"
	" WHERE build = $1 ORDER BY part",
	.types = {INT8OID}
};

/* Reads how far the parts are. */
static void
read_parts(Rebuild *rebuild)
{
	Datum		value = Int64GetDatum(rebuild->build);
	uint64		rows = EvpgStatementReadLatest(&select_part, &value, NULL);

	rebuild->last_write = InvalidTransactionId;
	for (uint64 row = 0; row < rows && row < (uint64) rebuild->parts; row++)
	{
		Datum		writer;

		rebuild->checkpoints[row] = EvpgResultInt64(row, 1);
		(void) EvpgResultDatum(row, 2, &writer);
		if (!TransactionIdIsValid(rebuild->last_write) ||
			TransactionIdFollows(DatumGetTransactionId(writer), rebuild->last_write))
			rebuild->last_write = DatumGetTransactionId(writer);
		rebuild->suspicions[row].server_start = EvpgResultInt64(row, 3);
		rebuild->suspicions[row].crashes = (int) EvpgResultInt64(row, 4);
	}
	EvpgStatementDone();
}

static List *
read_names(EvpgStatement *plan)
{
	MemoryContext caller = CurrentMemoryContext;
	uint64		rows = EvpgStatementReadLatest(plan, NULL, NULL);
	List	   *names = NIL;

	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);
		Datum		name;

		(void) EvpgResultDatum(row, 1, &name);
		names = lappend(names, TextDatumGetCString(name));
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
	return names;
}

static EvpgStatement select_rebuilds = {
	.text = "SELECT name"
	" FROM evpg.rebuild"
	" WHERE status = 'running' ORDER BY name"
};

/* Names of the projections that are being rebuilt, in CurrentMemoryContext. */
List *
EvpgRebuildNames(void)
{
	return read_names(&select_rebuilds);
}

/* Whether a projection is being rebuilt, or its rebuild has failed. */
bool
EvpgRebuildUnderWay(const char *name)
{
	Rebuild		rebuild;

	return read_rebuild(name, &rebuild);
}

/* ------------------------------------------------------------------ applying */

static EvpgStatement update_rebuild_advance = {
	.text = "UPDATE evpg.rebuild_part"
	" SET checkpoint = $3, events = events + $4"
	" WHERE build = $1 AND part = $2",
	.types = {INT8OID, INT4OID, INT8OID, INT8OID}
};

/* Applies the next batch of a part, up to the mark. */
static void
apply_part(Rebuild *rebuild, int part, bool unhurried)
{
	EvpgBatch	batch = {
		.projection = rebuild->projection,
		.build = rebuild->build,
		.after = rebuild->checkpoints[part],
		.upto = rebuild->mark,
		.unhurried = unhurried,
		.parts = rebuild->parts,
		.part = part
	};
	Datum		values[4];
	ListCell   *cell;

	/*
	 * What waits to be replayed is applied by the rebuild; what was given up
	 * is not.
	 */
	foreach(cell, EvpgParkedEventList(rebuild->name, batch.after))
		if (((EvpgParkedEvent *) lfirst(cell))->skipped)
		batch.parked = lappend(batch.parked, lfirst(cell));
	EvpgRebuildTablesRun(&batch);
	rebuild->checkpoints[part] = batch.reached;
	rebuild->events += batch.events;
	values[0] = Int64GetDatum(rebuild->build);
	values[1] = Int32GetDatum(part);
	values[2] = Int64GetDatum(batch.reached);
	values[3] = Int64GetDatum(batch.events);
	EvpgStatementExecute(&update_rebuild_advance, values, NULL);
}

static void
apply_rest(Rebuild *rebuild)
{
	for (int part = 0; part < rebuild->parts; part++)
		while (rebuild->checkpoints[part] < rebuild->mark)
			apply_part(rebuild, part, true);
}

static void
call_reset(EvpgProjection *projection)
{
	EvpgFunction *reset = EvpgFunctionResolve(projection->reset_signature, EVPG_ROLE_RESET, projection->registered_by,
											  projection->search_path);
	Datum	   *rows;
	bool	   *nulls;

	EvpgApplyRuns = true;
	PG_TRY();
	{
		(void) EvpgFunctionCall(reset, NULL, false, 1, &rows, &nulls);
	}
	PG_FINALLY();
	{
		EvpgApplyRuns = false;
	}
	PG_END_TRY();
}

/*
 * Error if a transaction that has appended stays open: to queue behind it would
 * be in vain, and who appends would queue behind us.
 */
static void
look_before_queueing(void)
{
	int64		drawn = EvpgFenceLastDrawn();

	if (EvpgFenceStablePosition(true) < drawn)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("the rebuild cannot end while a transaction that has appended stays open"),
				 errdetail("It is tried again.")));
}

/*
 * Keeps everybody out who changes the projection, and sees all they did.  The
 * caller has the rebuild to itself, and the consumer of an asynchronous
 * projection.
 */
static void
close_in(Rebuild *rebuild)
{
	int64		position;

	if (!rebuild->wait && rebuild->projection->mode == EVPG_MODE_INLINE)
		look_before_queueing();
	if (rebuild->projection->mode == EVPG_MODE_INLINE)
		LockRelationOid(EvpgCatalogGet()->fence, ShareRowExclusiveLock);
	position = EvpgFenceStablePosition(false);
	if (rebuild->projection->mode == EVPG_MODE_INLINE)
		position = EvpgFenceLastDrawn();
	rebuild->projection = EvpgProjectionGet(rebuild->name, false);
	rebuild->mark = Max(rebuild->mark, position);

	/*
	 * A part may be further: the mark goes back when an appender takes its
	 * locks long after it has read what was drawn.  What was decided before
	 * stays so, and what the part has applied must not be applied again.
	 */
	for (int part = 0; part < rebuild->parts; part++)
		rebuild->mark = Max(rebuild->mark, rebuild->checkpoints[part]);
}

static EvpgStatement delete_rebuild_finish = {
	.text = "WITH r AS (DELETE FROM evpg.rebuild WHERE name = $1 RETURNING build), x AS (DELETE FROM"
	" evpg.rebuild_part USING r WHERE rebuild_part.build = r.build), o AS (INSERT INTO evpg.old_build"
	" (build, name, replaced) SELECT build, name, true FROM evpg.projection WHERE name = $1) UPDATE"
	" evpg.projection p"
	" SET build = r.build, rebuilt_position = $2, generation_base = p.generation_base + COALESCE((SELECT"
	" s.generation FROM evpg.projection_state s WHERE s.build = p.build AND s.generation > 1 ORDER BY"
	" s.generation DESC LIMIT 1), CASE WHEN EXISTS (SELECT FROM evpg.projection_state s WHERE s.build ="
	" p.build) THEN 1 ELSE 0 END)"
	" FROM r"
	" WHERE p.name = $1",
	.types = {TEXTOID, INT8OID}
};

/* Makes the new build the one that is read. */
static void
switch_builds(Rebuild *rebuild)
{
	EvpgProjection *projection = rebuild->projection;
	const char *name = rebuild->name;
	Datum		values[2] = {CStringGetTextDatum(name)};
	int64		position;

	if (projection->tables != NIL)
	{
		EvpgRebuildTablesCopy(projection, rebuild->build, !rebuild->wait, rebuild->last_write);
		EvpgRebuildTablesDrop(rebuild->build);
	}
	EvpgFenceEnter();
	position = EvpgFenceDraw();
	values[1] = Int64GetDatum(position);
	rebuild->replaced = projection->build;
	EvpgStatementExecute(&delete_rebuild_finish, values, NULL);
	if (projection->mode == EVPG_MODE_ASYNC)
		EvpgConsumerRestart(name, rebuild->mark);
	EvpgParkedEventDelete(name, NULL);
	EvpgRegistrationInvalidate(EvpgCatalogGet()->projection);
	/* Whoever waits for a key of this projection. */
	EvpgWakeAllWaitersAtCommit();
	if (projection->broadcast != EVPG_BROADCAST_NONE)
		EvpgBroadcastRebuilt(name, position);
}

/* The build that this session has not ended since events were left, how often, and whether they are applied next. */
static int64 delayed_build = 0;
static int	delays;
static bool delayed = false;

/*
 * An exchange shows the copy to snapshots that do not see what its transaction
 * itself has written.  So it is better done when nothing is left to write: what is
 * left is applied by a batch, and then the end is tried again, a few times.
 */
static void
delay_exchange(Rebuild *rebuild)
{
	if (delayed_build != rebuild->build)
		delays = 0;
	delayed_build = rebuild->build;
	if (delays++ >= MAX_DELAYS)
		return;
	delayed = rebuild->left = true;
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("the rebuild cannot end before all events are applied")));
}

/* The end of a rebuild. */
static void
end_rebuild(void *arg)
{
	Rebuild    *rebuild = arg;
	bool		exchange = false;
	int64		applied = rebuild->events;

	EvpgApplySetCurrent(0, NULL);
	if (!rebuild->wait)
	{
		(void) set_config_option("lock_timeout", FENCE_TIMEOUT, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
		exchange = EvpgRebuildTablesWait(rebuild->projection, rebuild->build, rebuild->last_write);
	}
	close_in(rebuild);
	if (rebuild->projection->reset_signature != NULL)
		call_reset(rebuild->projection);
	apply_rest(rebuild);
	if (exchange && rebuild->events > applied)
		delay_exchange(rebuild);
	switch_builds(rebuild);
}

static void
attempt_part(void *arg)
{
	Rebuild    *rebuild = arg;

	EvpgApplySetCurrent(0, NULL);
	apply_part(rebuild, rebuild->part, false);
}

/* ------------------------------------------------------------------ in the background */

static EvpgStatement update_rebuild_fail = {
	.text = "UPDATE evpg.rebuild"
	" SET attempts = $2, retry_at = $3, last_error = $4, last_error_at = evpg.clock_timestamp(), status ="
	" CASE WHEN $5 THEN 'failed' ELSE status END"
	" WHERE name = $1",
	.types = {TEXTOID, INT4OID, TIMESTAMPTZOID, TEXTOID, BOOLOID}
};

static void
fail_rebuild(Rebuild *rebuild, const ErrorData *error)
{
	bool		counts = !EvpgErrorIsTransient(error);
	int			attempts = rebuild->attempts + counts;
	bool		failed = (attempts >= rebuild->projection->max_attempts);
	bool		skipped = false;
	Datum		values[5];

	if (EvpgErrorIsCancel(error))
		ReThrowError(unconstify(ErrorData *, error));
	if (failed && rebuild->projection->mode == EVPG_MODE_ASYNC &&
		rebuild->projection->on_error == EVPG_ON_ERROR_SKIP && EvpgApplyPosition != 0)
	{
		EvpgParkedEventInsertSkipped(rebuild->name, EvpgApplyPosition,
									 rebuild->projection->handler_signature == NULL ? EvpgApplyKey : NULL,
									 error->message, attempts, error);
		skipped = true;
		failed = false;
		attempts = 0;
	}
	values[0] = CStringGetTextDatum(rebuild->name);
	values[1] = Int32GetDatum(attempts);
	values[2] = TimestampTzGetDatum(skipped ? EvpgClockNow() : counts ? EvpgRetryAt(attempts) :
									EvpgRetryPause(rebuild->last_error_at, rebuild->retry_at, FIRST_PAUSE));
	values[3] = CStringGetTextDatum(error->message);
	values[4] = BoolGetDatum(failed);
	EvpgStatementExecute(&update_rebuild_fail, values, NULL);
	if (failed)
		ereport(EvpgSubtransactionLevel(),
				(errmsg("rebuild of projection \"%s\" of database \"%s\" has failed", rebuild->name,
						get_database_name(MyDatabaseId)),
				 errdetail("The error has SQLSTATE %s; evpg.rebuild has the rest.", unpack_sql_state(error->sqlerrcode)),
				 errhint("When the cause is gone, use evpg_rebuild_projection() again.")));
}

/* The caller has locked the part, or for the end the rebuild; here and below. */
static Suspicion *
suspicion_of(Rebuild *rebuild, int part)
{
	return part == END ? &rebuild->suspicion : &rebuild->suspicions[part];
}

static EvpgStatement update_rebuild_count = {
	.text = "UPDATE evpg.rebuild"
	" SET server_start = $2, crashes = $3"
	" WHERE name = $1",
	.types = {TEXTOID, INT8OID, INT4OID}
};

static EvpgStatement update_rebuild_count_part = {
	.text = "UPDATE evpg.rebuild_part"
	" SET server_start = $3, crashes = $4"
	" WHERE build = $1 AND part = $2",
	.types = {INT8OID, INT4OID, INT8OID, INT4OID}
};

/* Writes down, on disk, how often it has crashed the server, and in which start of it that was counted last. */
static void
put_crashes(const Rebuild *rebuild, int part, int64 server_start, int crashes)
{
	Datum		values[4];
	int			count = 0;

	if (part == END)
		values[count++] = CStringGetTextDatum(rebuild->name);
	else
	{
		values[count++] = Int64GetDatum(rebuild->build);
		values[count++] = Int32GetDatum(part);
	}
	values[count++] = Int64GetDatum(server_start);
	values[count++] = Int32GetDatum(crashes);
	EvpgStatementExecute(part == END ? &update_rebuild_count : &update_rebuild_count_part, values, NULL);
	ForceSyncCommit();
}

/* What this session has counted last. */
static char counted_name[EVPG_MAX_NAME + 1];
static int	counted_part;

/* The session ends: that was no attempt, unless it has come to a result, or another session makes it. */
static void
take_back(void)
{
	Oid			schema = get_rel_namespace(EvpgCatalogGet()->event_log);
	Rebuild		rebuild;
	Suspicion  *suspicion;

	if (!ConditionalLockRelationOid(get_relname_relid("rebuild", schema), RowExclusiveLock) ||
		!ConditionalLockRelationOid(get_relname_relid("rebuild_part", schema), RowExclusiveLock) ||
		!lock_rebuild(counted_name, counted_part == END ? ExclusiveLock : ShareLock, false) ||
		!read_rebuild(counted_name, &rebuild) || counted_part >= rebuild.parts ||
		(counted_part != END && !lock_part(&rebuild, counted_part)))
		return;
	read_parts(&rebuild);
	suspicion = suspicion_of(&rebuild, counted_part);
	if (suspicion->server_start == EvpgServerStart() && suspicion->crashes > 0)
		put_crashes(&rebuild, counted_part, 0, suspicion->crashes - 1);
}

/*
 * The first time after a start of the server an attempt is counted, on disk, which
 * the first result takes back: so a rebuild that crashes the server fails in the
 * end, however well its other parts get on.  False if it was counted before, so
 * that the caller may go on.
 */
static bool
count_start(Rebuild *rebuild, int part)
{
	const Suspicion *suspicion = suspicion_of(rebuild, part);
	bool		counted = (suspicion->server_start == EvpgServerStart());

	if (counted && suspicion->crashes == 0)
		return false;
	if (!counted && suspicion->crashes >= EvpgCautionCrashes(rebuild->projection->max_attempts))
	{
		rebuild->attempts = rebuild->projection->max_attempts;
		EvpgApplySetCurrent(0, NULL);
		fail_rebuild(rebuild, EvpgSuspectsError(suspicion->crashes));
		return true;
	}
	if (!counted)
		put_crashes(rebuild, part, EvpgServerStart(), suspicion->crashes + 1);
	strlcpy(counted_name, rebuild->name, sizeof(counted_name));
	counted_part = part;
	EvpgCautionAtExit(take_back);
	return !counted;
}

/* It has come to a result since the server was started. */
static void
prove_rebuild(Rebuild *rebuild, int part)
{
	if (suspicion_of(rebuild, part)->crashes > 0)
		put_crashes(rebuild, part, EvpgServerStart(), 0);
}

/* Applies a batch of a part that nobody else works on; false if there is none. */
static bool
run_part(Rebuild *rebuild)
{
	int64		near = delayed && delayed_build == rebuild->build ? 0 : NEAR;

	delayed = false;
	rebuild->mark = EvpgFenceStablePosition(false);
	for (rebuild->part = 0; rebuild->part < rebuild->parts; rebuild->part++)
	{
		ErrorData  *error;

		if (!lock_part(rebuild, rebuild->part))
			continue;
		read_parts(rebuild);

		/*
		 * What was there when it began is applied by batches: an exchange of
		 * tables at the end waits for snapshots that do not see these.
		 */
		if (rebuild->mark - rebuild->checkpoints[rebuild->part] <= near &&
			(rebuild->projection->tables == NIL ||
			 rebuild->checkpoints[rebuild->part] >= Min(rebuild->goal, rebuild->mark)))
			continue;
		if (count_start(rebuild, rebuild->part))
			return true;
		error = EvpgSubtransactionRun(attempt_part, rebuild);
		prove_rebuild(rebuild, rebuild->part);
		if (error != NULL)
			fail_rebuild(rebuild, error);
		return true;
	}
	return false;
}

/* Ends the rebuild if all parts are near; false if they are not, or others are in the way. */
static bool
run_end(Rebuild *rebuild, TimestampTz *next)
{
	ErrorData  *error;

	if (!lock_rebuild(rebuild->name, ExclusiveLock, false) || !EvpgConsumerLock(rebuild->name, false))
	{
		/* Perhaps they are in each other's way. */
		*next = Min(*next, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), END_PAUSE));
		return false;
	}
	read_parts(rebuild);
	if (rebuild->projection->reset_signature == NULL)
		for (int part = 0; part < rebuild->parts; part++)
			if (rebuild->mark - rebuild->checkpoints[part] > 2 * NEAR)
				return true;
	if (count_start(rebuild, END))
		return true;
	error = EvpgSubtransactionRun(end_rebuild, rebuild);
	if (error != NULL)
	{
		prove_rebuild(rebuild, END);
		if (!rebuild->left)
			fail_rebuild(rebuild, error);
	}
	return true;
}

/*
 * EvpgRebuildRun
 *		Does the next batch of a rebuild, in the current transaction, whose end the
 *		caller brings about at once.  True if there is more to be done now; *next
 *		is lowered to when it wants to be run again.
 */
bool
EvpgRebuildRun(const char *name, TimestampTz *next)
{
	Rebuild		rebuild;
	EvpgScope	scope;
	bool		more;

	if (!lock_rebuild(name, ShareLock, false))
		return false;
	EvpgEnter(&scope, "evpg_run()");
	if (!read_rebuild(name, &rebuild) || !rebuild.running)
		more = false;
	else if (rebuild.retry_at > EvpgClockNow())
	{
		*next = Min(*next, EvpgClockWall(rebuild.retry_at));
		more = false;
	}
	else
		more = (rebuild.projection->reset_signature == NULL && run_part(&rebuild)) || run_end(&rebuild, next);
	EvpgLeave(&scope);
	return more;
}

static EvpgStatement insert_rebuild_tombstones = {
	.text = "INSERT INTO evpg.projection_state (build, key, generation, version, position, deleted, updated_at)"
	" SELECT p.build, k.key, 1, 1, $3, true, evpg.clock_timestamp()"
	" FROM evpg.projection p, LATERAL unnest($2) AS k (key)"
	" WHERE p.name = $1 ORDER BY k.key COLLATE \"C\""
	" ON CONFLICT (build, key) DO NOTHING",
	.types = {TEXTOID, TEXTARRAYOID, INT8OID}
};

/* Tells who catches up by positions of keys that are gone; in the order of keys, as appenders lock them. */
static void
write_tombstones(const char *name, List *keys)
{
	Datum		values[3] = {CStringGetTextDatum(name), EvpgNamesToArray(keys)};
	ListCell   *cell;

	if (keys == NIL)
		return;
	EvpgFenceEnter();
	values[2] = Int64GetDatum(EvpgFenceDraw());
	EvpgStatementExecute(&insert_rebuild_tombstones, values, NULL);
	foreach(cell, keys)
		EvpgWakeWaitersAtCommit(EvpgHashPair(name, lfirst(cell)));
}

/* A build that is not read any more. */
typedef struct OldBuild
{
	int64		build;
	char	   *name;
	bool		replaced;
	char	   *clean_from;
} OldBuild;

static EvpgStatement select_rebuild_old = {
	.text = "SELECT build, name, replaced, clean_from"
	" FROM evpg.old_build"
	" WHERE build > $1 ORDER BY build LIMIT 1",
	.types = {INT8OID}
};

/* Reads the oldest of them above a build, in CurrentMemoryContext; false if there is none. */
static bool
read_old_build(int64 above, OldBuild *old)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		value = Int64GetDatum(above);
	bool		found = EvpgStatementReadLatest(&select_rebuild_old, &value, NULL) > 0;

	if (found)
	{
		MemoryContext spi = MemoryContextSwitchTo(caller);

		old->build = EvpgResultInt64(0, 1);
		(void) EvpgResultDatum(0, 2, &value);
		old->name = TextDatumGetCString(value);
		(void) EvpgResultDatum(0, 3, &value);
		old->replaced = DatumGetBool(value);
		(void) EvpgResultDatum(0, 4, &value);
		old->clean_from = TextDatumGetCString(value);
		MemoryContextSwitchTo(spi);
	}
	EvpgStatementDone();
	return found;
}

static EvpgStatement delete_rebuild_clean = {
	.text = "DELETE FROM evpg.projection_state"
	" WHERE ctid = ANY (ARRAY(SELECT ctid FROM evpg.projection_state WHERE build = $1 AND key >= $2 ORDER BY"
	" key LIMIT $3))"
	" RETURNING key, deleted",
	.types = {INT8OID, TEXTOID, INT8OID}
};

/* Deletes some rows, and returns how many; adds keys that were there to *keys, and says which is the last of all. */
static uint64
delete_rows(const OldBuild *old, List **keys, char **last)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[3] = {Int64GetDatum(old->build), CStringGetTextDatum(old->clean_from), Int64GetDatum(CLEAN_ROWS)};
	uint64		rows = EvpgStatementRun(&delete_rebuild_clean, values, NULL);

	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext spi = MemoryContextSwitchTo(caller);
		Datum		value;
		char	   *key;

		(void) EvpgResultDatum(row, 1, &value);
		key = TextDatumGetCString(value);
		if (row == 0 || strcmp(key, *last) > 0)
			*last = key;
		(void) EvpgResultDatum(row, 2, &value);
		if (!DatumGetBool(value))
			*keys = lappend(*keys, key);
		MemoryContextSwitchTo(spi);
	}
	EvpgStatementDone();
	return rows;
}

static EvpgStatement update_rebuild_cleaned = {
	.text = "UPDATE evpg.old_build"
	" SET clean_from = $2"
	" WHERE build = $1",
	.types = {INT8OID, TEXTOID}
};

static EvpgStatement delete_rebuild_forget = {
	.text = "DELETE FROM evpg.old_build"
	" WHERE build = $1",
	.types = {INT8OID}
};

/* Deletes some rows of a build, and forgets it when there are no more.  The caller owns the consumer. */
static void
clean_build(const OldBuild *old)
{
	List	   *keys = NIL;
	char	   *last;
	Datum		values[2] = {Int64GetDatum(old->build)};

	if (delete_rows(old, &keys, &last) < CLEAN_ROWS)
		EvpgStatementExecute(&delete_rebuild_forget, values, NULL);
	else
	{
		/*
		 * The next key there can be: who goes on must not look at what is
		 * deleted again.
		 */
		values[1] = CStringGetTextDatum(psprintf("%s\001", last));
		EvpgStatementExecute(&update_rebuild_cleaned, values, NULL);
	}
	if (old->replaced)
		write_tombstones(old->name, keys);
}

/* The same for a build that this transaction has made an old one; the rest is done by others. */
static void
clean_own(int64 build)
{
	OldBuild	old;

	if (read_old_build(build - 1, &old) && old.build == build)
		clean_build(&old);
	EvpgWakeConsumersAtCommit();
}

/*
 * EvpgRebuildClean
 *		Deletes some rows of a build that is not read any more; false if there are
 *		none, or others own the consumers of their projections, so that they may
 *		drop them, or write the rows of the build that is read.
 */
bool
EvpgRebuildClean(void)
{
	EvpgScope	scope;
	OldBuild	old = {0};
	bool		cleaned = false;

	EvpgEnter(&scope, "evpg_run()");
	while (!cleaned && read_old_build(old.build, &old))
	{
		int64		build = old.build;

		if (!EvpgConsumerLock(old.name, false))
			continue;
		/* As it is now that nobody else can change it. */
		cleaned = read_old_build(build - 1, &old) && old.build == build;
		if (cleaned)
			clean_build(&old);
		old.build = build;
	}
	EvpgLeave(&scope);
	return cleaned;
}

static EvpgStatement update_rebuild_abandon = {
	.text = "WITH o AS (UPDATE evpg.old_build SET replaced = false WHERE name = $1) INSERT INTO evpg.old_build"
	" (build, name) SELECT build, name"
	" FROM evpg.projection"
	" WHERE name = $1 RETURNING build",
	.types = {TEXTOID}
};

/*
 * EvpgRebuildAbandon
 *		Gives up the rows of a projection that is about to be dropped.  The caller owns
 *		the consumer and keeps appenders out.
 */
void
EvpgRebuildAbandon(const char *name)
{
	Datum		value = CStringGetTextDatum(name);
	int64		build = 0;

	if (EvpgStatementRun(&update_rebuild_abandon, &value, NULL) > 0)
		build = EvpgResultInt64(0, 1);
	EvpgStatementDone();
	if (build != 0)
		clean_own(build);
}

/* ------------------------------------------------------------------ starting and cancelling */

/* How many sessions can work on a rebuild at once. */
static int
parts_for(const EvpgProjection *projection)
{
	return projection->handler_signature != NULL || projection->constant_key != NULL ? 1 : Max(EvpgWorkers, 1);
}

static EvpgStatement insert_rebuild_start = {
	.text = "WITH r AS (INSERT INTO evpg.rebuild (name, build, parts, start_position, goal, started_by,"
	" server_start) VALUES ($1, nextval('evpg.projection_build'), $2, $3, $4, $5, $6) RETURNING build,"
	" parts) INSERT INTO evpg.rebuild_part (build, part, checkpoint, server_start) SELECT r.build, part, $3,"
	" $6"
	" FROM r, LATERAL generate_series(0, r.parts - 1) AS part",
	.types = {TEXTOID, INT4OID, INT8OID, INT8OID, TEXTOID, INT8OID}
};

/* Has the rebuild to itself. */
static void
begin_rebuild(EvpgProjection *projection, int parts)
{
	Datum		values[6] = {
		CStringGetTextDatum(projection->name),
		Int32GetDatum(parts),
		Int64GetDatum(projection->start_position),
		Int64GetDatum(EvpgFenceLastDrawn()),
		CStringGetTextDatum(GetUserNameFromId(GetSessionUserId(), false)),
		Int64GetDatum(EvpgServerStart())
	};

	if (projection->handler_signature != NULL && projection->tables == NIL && projection->reset_signature == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot rebuild projection \"%s\"", projection->name),
				 errdetail("It is a table projection, and evpg does not know its tables."),
				 errhint("Register it with its tables, or with a reset function.")));
	EvpgProjectionRequireCode(projection);
	EvpgStatementExecute(&insert_rebuild_start, values, NULL);
	if (projection->tables != NIL)
	{
		Rebuild		rebuild;

		EvpgRebuildTablesCheck(projection, AccessShareLock);
		(void) read_rebuild(projection->name, &rebuild);
		EvpgRebuildTablesMake(projection, rebuild.build);
	}
}

/*
 * EvpgRebuildStart
 *		Starts a rebuild, anew if there is one.  The caller owns the consumer.
 */
void
EvpgRebuildStart(EvpgProjection *projection)
{
	(void) EvpgRebuildCancel(projection->name);
	EvpgWakeLauncherAtCommit();
	EvpgWakeConsumersAtCommit();
	begin_rebuild(projection, parts_for(projection));
	EvpgActivationNotice();
}

/* Waits until nobody works on the rebuild of a projection, if there is one.  The caller owns the consumer, but not the fence. */
void
EvpgRebuildLock(const char *name)
{
	(void) lock_rebuild(name, ExclusiveLock, true);
}

static EvpgStatement delete_rebuild = {
	.text = "WITH r AS (DELETE FROM evpg.rebuild WHERE name = $1 RETURNING build), p AS (DELETE FROM"
	" evpg.rebuild_part USING r WHERE rebuild_part.build = r.build) INSERT INTO evpg.old_build (build, name)"
	" SELECT build, $1"
	" FROM r RETURNING build",
	.types = {TEXTOID}
};

/* Ends a rebuild without a result; false if there is none.  The caller owns the consumer. */
bool
EvpgRebuildCancel(const char *name)
{
	Datum		value = CStringGetTextDatum(name);
	int64		build = 0;

	EvpgRebuildLock(name);
	if (EvpgStatementRun(&delete_rebuild, &value, NULL) > 0)
		build = EvpgResultInt64(0, 1);
	EvpgStatementDone();
	if (build != 0)
	{
		EvpgRebuildTablesDrop(build);
		EvpgWakeConsumersAtCommit();
	}
	return build != 0;
}

/* The whole rebuild in the transaction of the caller; how many events it took. */
static int64
rebuild_now(EvpgProjection *projection)
{
	char	   *name = pstrdup(projection->name);
	Rebuild		rebuild;

	(void) EvpgConsumerLock(name, true);
	(void) EvpgRebuildCancel(name);
	begin_rebuild(EvpgProjectionGet(name, false), 1);
	(void) read_rebuild(name, &rebuild);
	read_parts(&rebuild);
	rebuild.wait = true;

	/*
	 * What can be done without keeping appenders out; a reset comes first,
	 * though.
	 */
	rebuild.mark = EvpgFenceStablePosition(false);
	if (rebuild.projection->reset_signature == NULL)
		apply_rest(&rebuild);
	end_rebuild(&rebuild);
	clean_own(rebuild.replaced);
	return rebuild.events;
}

static void
rebuild_later(EvpgProjection *projection)
{
	char	   *name = pstrdup(projection->name);
	Rebuild		rebuild;

	(void) EvpgConsumerLock(name, true);
	if (read_rebuild(name, &rebuild) && rebuild.running)
		ereport(NOTICE,
				(errmsg("projection \"%s\" is being rebuilt already", name)));
	else
		EvpgRebuildStart(EvpgProjectionGet(name, false));
}

/* How many events were folded; NULL in the background. */
Datum
evpg_rebuild_projection(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "projection name");
	bool		background = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2);
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
		rebuild_later(EvpgProjectionGet(name, false));
	else
		count = rebuild_now(EvpgProjectionGet(name, false));
	EvpgLeave(&scope);
	if (background)
		PG_RETURN_NULL();
	PG_RETURN_INT64(count);
}

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
