/*-------------------------------------------------------------------------
 *
 * wait.c
 *		The SQL functions that wait: until a projection or saga has reached a
 *		position, and until a key has changed.
 *
 * A waiter is woken by the commit that changes what it waits for: it registers
 * before it checks, so no wake-up is lost.  It checks with the latest snapshot,
 * under every isolation level.  While a function waits, its statement holds
 * back VACUUM, as any long statement does.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/locks.h"
#include "base/statement.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "consumer/activation.h"
#include "consumer/consumer.h"
#include "funcapi.h"
#include "log/durable.h"
#include "log/event_log.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "projection/async.h"
#include "projection/projection.h"
#include "saga/route.h"
#include "saga/saga.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(evpg_wait_for);
PG_FUNCTION_INFO_V1(evpg_wait_for_position);
PG_FUNCTION_INFO_V1(evpg_watch_projection);

/* Returns how long to wait, in microseconds; NULL is without limit. */
static int64
get_timeout(FunctionCallInfo fcinfo, int arg)
{
	Interval	zero = {0};
	TimestampTz now = GetCurrentTimestamp();

	if (PG_ARGISNULL(arg))
		return PG_INT64_MAX;
	if (DatumGetBool(DirectFunctionCall2(interval_lt, PG_GETARG_DATUM(arg), IntervalPGetDatum(&zero))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative")));
	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(now),
												   PG_GETARG_DATUM(arg))) - now;
}

/* What is waited for, and how it is found out. */
typedef struct AwaitedState
{
	char	   *name;			/* NULL: the log */
	char	   *key;
	int64		position;
	int64		after_version;
	bool		has_generation;
	int32		generation;
	FunctionCallInfo fcinfo;
} AwaitedState;

static bool consumer_has_reached(const AwaitedState *wait);

/*
 * Raises VE015 in a transaction that has appended: it keeps the stable
 * position below what it has drawn, so consumers wait for it.
 */
static void
refuse_wait_in_writer(const AwaitedState *wait)
{
	if (EvpgFenceIsHeld())
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_WAIT_IN_WRITER),
				 wait->name == NULL ?
				 errmsg("cannot wait for a position in a transaction that has appended events") :
				 errmsg("cannot wait for \"%s\" in a transaction that has appended events", wait->name),
				 errdetail("Consumers see its events when it has committed."),
				 errhint("Commit first.")));
}

/* Returns what is left of a timeout by the monotonic clock: the wall clock may be set meanwhile. */
static int64
compute_time_left(instr_time started, int64 timeout)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, started);
	return timeout - (int64) INSTR_TIME_GET_MICROSEC(now);
}

/* Raises an error with the reason if the consumer does not run: waiting for it would never end. */
static void
refuse_idle_consumer(const AwaitedState *wait)
{
	EvpgConsumer consumer;
	EvpgScope	scope;

	EvpgEnter(&scope, NULL);
	if (EvpgConsumerRead(wait->name, &consumer))
	{
		EvpgActivationRequire();
		if (!consumer.running)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot wait for \"%s\", which is %s", wait->name, consumer.stopped ? "stopped" : "paused"),
					 consumer.stopped ? errdetail("An event fails at position " INT64_FORMAT ".", consumer.error_position) :
					 errdetail("It was paused by evpg_pause_consumer()."),
					 errhint("See status and reason in evpg.stat_consumer; evpg_resume_consumer() lets it go on.")));
	}
	EvpgLeave(&scope);
}

/*
 * Waits until a condition holds; returns false if the timeout has passed.
 * hash is what the waker wakes.  The condition may be checked very often: each
 * check has memory of its own.
 */
static bool
wait_until(bool (*condition) (const AwaitedState *wait), const AwaitedState *wait, uint64 hash, int64 timeout)
{
	instr_time	started;
	MemoryContext memory = AllocSetContextCreate(CurrentMemoryContext, "EvpgWait", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(memory);
	volatile bool found;

	INSTR_TIME_SET_CURRENT(started);
	(void) EvpgWaitPrepare(hash);
	PG_TRY();
	{
		int64		left;

		while (!(found = condition(wait)) && (left = compute_time_left(started, timeout)) > 0)
		{
			MemoryContextReset(memory);
			refuse_wait_in_writer(wait);
			if (condition == consumer_has_reached)
				refuse_idle_consumer(wait);
			EvpgWaitSleep(hash, left);
		}
	}
	PG_FINALLY();
	{
		EvpgWaitEnd();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(memory);
	/* What was seen may have been committed lazily. */
	if (found)
		EvpgDurableAwaitAll();
	return found;
}

/*
 * Returns whether an inline projection or saga was given everything up to a position: the
 * event is seen, or no event can appear there any more.  A transaction whose snapshot
 * is older than the stable position can only look for the event.
 */
static bool
position_is_decided(int64 position)
{
	return EvpgLogHasEvent(position) ||
		(!IsolationUsesXactSnapshot() && EvpgFenceStablePosition(false) >= position);
}

/* Returns whether a projection or saga has reached a position. */
static bool
consumer_has_reached(const AwaitedState *wait)
{
	EvpgScope	scope;
	EvpgSaga   *saga;
	bool		reached;

	EvpgEnter(&scope, NULL);
	saga = EvpgSagaGet(wait->name, 0, true);
	if (saga != NULL && saga->is_inline)
		reached = position_is_decided(wait->position) && !EvpgRouteHasLeft(wait->name, wait->position);
	else if (saga != NULL)
		reached = EvpgRouteHasReached(wait->name, wait->position);
	else if (EvpgProjectionGet(wait->name, false)->mode == EVPG_MODE_INLINE)
		reached = position_is_decided(wait->position);
	else
		reached = EvpgAsyncHasReached(wait->name, wait->position);
	EvpgLeave(&scope);
	return reached;
}

/*
 * evpg_wait_for
 *		SQL: evpg_wait_for(name, min_position, timeout).  Waits until a
 *		projection or saga has reached a position; returns false if the timeout
 *		has passed.
 */
Datum
evpg_wait_for(PG_FUNCTION_ARGS)
{
	AwaitedState wait = {.name = EvpgArgName(fcinfo, 0, "consumer name")};

	wait.position = EvpgArgBigint(fcinfo, 1, "min_position");
	PG_RETURN_BOOL(wait_until(consumer_has_reached, &wait, EvpgHashPair(wait.name, ""), get_timeout(fcinfo, 2)));
}

/* Returns whether the event at a position can be read, or none can appear there. */
static bool
log_has_reached(const AwaitedState *wait)
{
	EvpgScope	scope;
	bool		reached;

	EvpgEnter(&scope, NULL);
	reached = position_is_decided(wait->position);
	EvpgLeave(&scope);
	return reached;
}

/*
 * evpg_wait_for_position
 *		SQL: evpg_wait_for_position(min_position, timeout).  Waits until the event at a position can
 *		be read here, or no event can appear there any more; returns false if the timeout
 *		has passed.
 */
Datum
evpg_wait_for_position(PG_FUNCTION_ARGS)
{
	AwaitedState wait = {.position = EvpgArgBigint(fcinfo, 0, "min_position")};

	PG_RETURN_BOOL(wait_until(log_has_reached, &wait, EVPG_WAIT_EVENTS, get_timeout(fcinfo, 1)));
}

enum
{
	WATCH_STATE, WATCH_GENERATION, WATCH_VERSION, WATCH_POSITION, WATCH_UPDATED_AT, WATCH_NATTS
};

static EvpgStatement select_projection_row_watch = {
	.text = "SELECT s.state, p.generation_base + s.generation, s.version, GREATEST(s.position, p.rebuilt_position),"
	" s.updated_at"
	" FROM evpg.projection p JOIN evpg.projection_state s USING (build)"
	" WHERE p.name = $1 AND s.key = $2",
	.types = {TEXTOID, TEXTOID}
};

/* Returns whether the row of a key is another one than the caller knows, and then returns it. */
static bool
row_has_changed(const AwaitedState *wait)
{
	ReturnSetInfo *result = (ReturnSetInfo *) wait->fcinfo->resultinfo;
	Datum		parameters[2] = {CStringGetTextDatum(wait->name), CStringGetTextDatum(wait->key)};
	EvpgScope	scope;
	bool		changed = false;

	EvpgEnter(&scope, NULL);
	(void) EvpgProjectionGet(wait->name, false);
	if (EvpgStatementReadLatest(&select_projection_row_watch, parameters, NULL) > 0)
	{
		Datum		values[WATCH_NATTS];
		bool		nulls[WATCH_NATTS];

		for (int column = WATCH_STATE; column < WATCH_NATTS; column++)
			nulls[column] = !EvpgResultDatum(0, column + 1, &values[column]);
		if (wait->has_generation && DatumGetInt32(values[WATCH_GENERATION]) != wait->generation)
			changed = DatumGetInt32(values[WATCH_GENERATION]) > wait->generation;
		else if (wait->has_generation)
			changed = DatumGetInt64(values[WATCH_VERSION]) > wait->after_version;
		else
			changed = DatumGetInt64(values[WATCH_VERSION]) != wait->after_version;
		if (changed)
			tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	EvpgStatementDone();
	EvpgLeave(&scope);
	return changed;
}

/*
 * evpg_watch_projection
 *		SQL: evpg_watch_projection(name, key, after_version, timeout,
 *		generation).  Waits until the row of a key has changed, and returns it;
 *		no row if the timeout has passed.
 */
Datum
evpg_watch_projection(PG_FUNCTION_ARGS)
{
	enum
	{
		ARG_NAME, ARG_KEY, ARG_AFTER_VERSION, ARG_TIMEOUT, ARG_AFTER_GENERATION
	};
	AwaitedState wait = {
		.name = EvpgArgName(fcinfo, ARG_NAME, "projection name"),
		.key = EvpgArgKey(fcinfo, ARG_KEY),
		.after_version = PG_ARGISNULL(ARG_AFTER_VERSION) ? 0 : PG_GETARG_INT64(ARG_AFTER_VERSION),
		.has_generation = !PG_ARGISNULL(ARG_AFTER_GENERATION),
		.generation = PG_ARGISNULL(ARG_AFTER_GENERATION) ? 0 : PG_GETARG_INT32(ARG_AFTER_GENERATION),
		.fcinfo = fcinfo
	};

	InitMaterializedSRF(fcinfo, 0);
	(void) wait_until(row_has_changed, &wait, EvpgHashPair(wait.name, wait.key), get_timeout(fcinfo, ARG_TIMEOUT));
	PG_RETURN_NULL();
}
