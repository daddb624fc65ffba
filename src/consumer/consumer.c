/*-------------------------------------------------------------------------
 *
 * consumer.c
 *		Consumers: who reads the log by position, how far each has come, what it
 *		could not do, and the SQL functions to pause, resume and repair them.
 *
 * A consumer has one owner at a time: who holds the advisory lock of its name,
 * in a lock class of evpg's own, to the end of the transaction.  Workers try it
 * and go on to the next consumer; who changes a consumer from outside waits for
 * it, which is for a batch at most, and cancels a worker that does not come to its
 * end (worker_lock.c).  The order of locks is: consumer, saga, fence, keys.
 *
 * Rows are read with the latest snapshot, since the lock was taken after the
 * transaction's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "aggregate/aggregate.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/errors.h"
#include "base/shmem.h"
#include "base/statement.h"
#include "base/subtransaction.h"
#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "consumer/activation.h"
#include "consumer/consumer.h"
#include "consumer/crash_suspects.h"
#include "consumer/worker_lock.h"
#include "log/fence.h"
#include "log/stream.h"
#include "miscadmin.h"
#include "projection/projection.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evpg_pause);
PG_FUNCTION_INFO_V1(evpg_resume);
PG_FUNCTION_INFO_V1(evpg_skip_event);

/* Advisory locks of users have class 1 or 2 (pg_locks.objsubid); these are owners of consumers. */
#define CONSUMER_CLASS 17752

/* The first wait before an event is tried again, and the longest, in seconds. */
#define FIRST_RETRY 1
#define LAST_RETRY 300

/* The longest wait after an error that need not come back, and when one is none of a row of them, in ms. */
#define LAST_PAUSE 30000
#define ROW_ENDS 60000

/*
 * EvpgConsumerLock
 *		Makes this transaction the owner of a consumer; false if it does not wait
 *		and there is another one.
 */
bool
EvpgConsumerLock(const char *name, bool wait)
{
	uint64		hash = DatumGetUInt64(hash_any_extended((const unsigned char *) name, strlen(name), 0));
	LOCKTAG		tag;

	EvpgCatalogLockForWork();
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (hash >> 32), (uint32) hash, CONSUMER_CLASS);
	if (!EvpgLockAcquire(&tag, ExclusiveLock, wait))
		return false;

	/*
	 * What the last owner registered must be seen: an advisory lock does not
	 * see to that.
	 */
	AcceptInvalidationMessages();
	return true;
}

static void
run(EvpgPlan plan, Datum *values, const char *nulls)
{
	(void) EvpgPlanRun(plan, values, nulls);
	EvpgPlanDone();
}

/* What is kept of an error, in three columns; NULL: none. */
static void
put_error(Datum *values, char *nulls, int column, const ErrorData *error)
{
	EvpgRegistryPut(values, nulls, column, error == NULL ? NULL : error->message);
	EvpgRegistryPut(values, nulls, column + 1, error == NULL ? NULL : unpack_sql_state(error->sqlerrcode));
	EvpgRegistryPut(values, nulls, column + 2, error == NULL ? NULL : error->context);
}

/* The caller owns the consumer, here and below. */
void
EvpgConsumerCreate(const char *name, const char *kind, int64 checkpoint)
{
	Datum		values[4] = {
		CStringGetTextDatum(name),
		CStringGetTextDatum(kind),
		Int64GetDatum(checkpoint),
		Int64GetDatum(EvpgCautionServerStart())
	};

	run(EVPG_PLAN_CONSUMER_CREATE, values, NULL);
	EvpgHomeTell();
}

/* Its parked events may stay: those that were given up are left out by a rebuild. */
void
EvpgConsumerDrop(const char *name, bool with_parked)
{
	Datum		value = CStringGetTextDatum(name);

	run(EVPG_PLAN_CONSUMER_DELETE, &value, NULL);
	if (with_parked)
		run(EVPG_PLAN_PARKED_CLEAR, &value, NULL);
	EvpgWakeWaiters(EvpgHashPair(name, ""));
}

static int64
result_int(int column)
{
	Datum		value;

	return EvpgPlanResult(0, column, &value) ? DatumGetInt64(value) : 0;
}

/* Reads a consumer; false if there is none. */
bool
EvpgConsumerRead(const char *name, EvpgConsumer *consumer)
{
	Datum		value = CStringGetTextDatum(name);
	bool		found = EvpgPlanReadLatest(EVPG_PLAN_CONSUMER_READ, &value, NULL) > 0;

	memset(consumer, 0, sizeof(EvpgConsumer));
	consumer->name = name;
	if (found)
	{
		Datum		running;

		(void) EvpgPlanResult(0, 1, &running);
		consumer->running = DatumGetBool(running);
		consumer->checkpoint = result_int(2);
		consumer->error_position = result_int(3);
		consumer->attempts = (int) result_int(4);
		consumer->retry_at = result_int(5);
		consumer->last_error_at = result_int(6);
		consumer->start_position = result_int(7);
		consumer->server_start = result_int(8);
		consumer->cautious_to = result_int(9);
		consumer->proven = result_int(10);
		consumer->crashes = (int) result_int(11);
		(void) EvpgPlanResult(0, 12, &running);
		consumer->stopped = DatumGetBool(running);
	}
	EvpgPlanDone();
	return found;
}

/* Names of the consumers of a kind that are running, in CurrentMemoryContext. */
static List *
names_of(const char *kind)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		value = CStringGetTextDatum(kind);
	uint64		rows = EvpgPlanReadLatest(EVPG_PLAN_CONSUMER_LIST, &value, NULL);
	List	   *names = NIL;

	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old;
		Datum		name;

		(void) EvpgPlanResult(row, 1, &name);
		old = MemoryContextSwitchTo(caller);
		names = lappend(names, TextDatumGetCString(name));
		MemoryContextSwitchTo(old);
	}
	EvpgPlanDone();
	return names;
}

/* None of them need be owned. */
List *
EvpgConsumerProjections(void)
{
	return names_of("projection");
}

List *
EvpgConsumerSagas(void)
{
	return names_of("saga");
}

/* Moves the checkpoint; an error at or before it is over. */
void
EvpgConsumerAdvance(const EvpgConsumer *consumer, int64 checkpoint, int64 events)
{
	Datum		values[3] = {CStringGetTextDatum(consumer->name), Int64GetDatum(checkpoint), Int64GetDatum(events)};

	run(EVPG_PLAN_CONSUMER_ADVANCE, values, NULL);
	EvpgWakeWaiters(EvpgHashPair(consumer->name, ""));
}

/* Starts over from a checkpoint, with no error; what was paused stays so. */
void
EvpgConsumerRestart(const char *name, int64 checkpoint)
{
	Datum		values[2] = {CStringGetTextDatum(name), Int64GetDatum(checkpoint)};

	run(EVPG_PLAN_CONSUMER_RESTART, values, NULL);
	EvpgWakeWaiters(EvpgHashPair(name, ""));
}

/* When to try again after so many attempts: 1 s, 2 s, 4 s, with up to a quarter more so that not all come at once. */
TimestampTz
EvpgConsumerRetryAt(int attempts)
{
	double		seconds = Min(FIRST_RETRY * pow(2, Min(attempts, 30) - 1), LAST_RETRY);

	return EvpgClockNow() +
		(int64) (seconds * (1 + pg_prng_double(&pg_global_prng_state) / 4) * USECS_PER_SEC);
}

/*
 * EvpgConsumerPause
 *		When to try again after an error that need not come back: soon after the
 *		first one, in ms; then after pauses that double.  The caller knows when the last
 *		error came and when it was to be tried again then, 0 if there was none.
 */
TimestampTz
EvpgConsumerPause(TimestampTz last_error_at, TimestampTz retry_at, int first)
{
	TimestampTz now = EvpgClockNow();
	int64		pause = 0;

	if (retry_at > last_error_at && !TimestampDifferenceExceeds(retry_at, now, ROW_ENDS))
		pause = (retry_at - last_error_at) / 1000 * 2;
	return TimestampTzPlusMilliseconds(now, Min(Max(pause, first), LAST_PAUSE));
}

/* An error that need not come back: others were in the way, or the server is short of something. */
bool
EvpgConsumerTransient(const ErrorData *error)
{
	return EvpgAttemptDisturbed(error->sqlerrcode) ||
		ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_INSUFFICIENT_RESOURCES;
}

/* Keeps what went wrong; position 0 is the consumer itself.  again: it has been counted before. */
void
EvpgConsumerFail(const EvpgConsumer *consumer, int64 position, int attempts, TimestampTz retry_at, bool stop,
				 bool again, const ErrorData *error)
{
	Datum		values[9] = {
		CStringGetTextDatum(consumer->name),
		Int64GetDatum(position),
		Int32GetDatum(attempts),
		TimestampTzGetDatum(retry_at),
		BoolGetDatum(stop)
	};
	char		nulls[9] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '};

	put_error(values, nulls, 5, error);
	values[8] = BoolGetDatum(again);
	run(EVPG_PLAN_CONSUMER_FAIL, values, nulls);
	/* Who waits is told that there is nothing to come. */
	if (stop)
		EvpgWakeWaiters(EvpgHashPair(consumer->name, ""));
}

/*
 * EvpgConsumerParked
 *		The events that are not to be applied now, in order of position, in
 *		CurrentMemoryContext; of those that were given up only those after a
 *		position.
 */
List *
EvpgConsumerParked(const char *name, int64 after)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[2] = {CStringGetTextDatum(name), Int64GetDatum(after)};
	uint64		rows = EvpgPlanReadLatest(EVPG_PLAN_PARKED_LIST, values, NULL);
	List	   *parked = NIL;

	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);
		EvpgParked *event = palloc(sizeof(EvpgParked));
		Datum		result;

		(void) EvpgPlanResult(row, 1, &result);
		event->position = DatumGetInt64(result);
		event->key = EvpgPlanResult(row, 2, &result) ? TextDatumGetCString(result) : NULL;
		(void) EvpgPlanResult(row, 3, &result);
		event->skipped = DatumGetBool(result);
		(void) EvpgPlanResult(row, 4, &result);
		event->id = DatumGetInt64(result);
		parked = lappend(parked, event);
		MemoryContextSwitchTo(old);
	}
	EvpgPlanDone();
	return parked;
}

/* Parks an event; key NULL: it has none; error NULL: it waits behind another one of its key. */
void
EvpgConsumerPark(const char *name, int64 position, const char *key, int attempts, const ErrorData *error)
{
	Datum		values[7] = {CStringGetTextDatum(name), Int64GetDatum(position)};
	char		nulls[7] = {' ', ' ', ' ', ' ', ' ', ' ', ' '};

	EvpgRegistryPut(values, nulls, 2, key);
	values[3] = Int32GetDatum(attempts);
	put_error(values, nulls, 4, error);
	run(EVPG_PLAN_PARKED_WRITE, values, nulls);
}

/*
 * EvpgConsumerSkip
 *		Gives an event up that has not been consumed, nor parked: for a key, for all
 *		if it is NULL.  error NULL: the last one of the consumer there.
 */
void
EvpgConsumerSkip(const char *name, int64 position, const char *key, const char *reason, int attempts,
				 const ErrorData *error)
{
	Datum		values[9] = {
		CStringGetTextDatum(name),
		Int64GetDatum(position),
		CStringGetTextDatum(reason),
		CStringGetTextDatum(GetUserNameFromId(GetSessionUserId(), false)),
		Int32GetDatum(attempts)
	};
	char		nulls[9] = {' ', ' ', ' ', ' ', error == NULL ? 'n' : ' ', ' ', ' ', ' ', ' '};

	put_error(values, nulls, 5, error);
	EvpgRegistryPut(values, nulls, 8, key);
	run(EVPG_PLAN_PARKED_SKIP_NEW, values, nulls);
}

/*
 * EvpgConsumerSkips
 *		Whether an event has been given up for a key; key NULL: for all of its keys.
 *		Ask in order of position: *next, 0 at first, is where the list goes on.
 */
bool
EvpgConsumerSkips(List *parked, int *next, int64 position, const char *key)
{
	while (*next < list_length(parked) && ((EvpgParked *) list_nth(parked, *next))->position < position)
		(*next)++;
	for (int i = *next; i < list_length(parked); i++)
	{
		EvpgParked *event = list_nth(parked, i);

		if (event->position > position)
			return false;
		if (event->skipped && (event->key == NULL || (key != NULL && strcmp(event->key, key) == 0)))
			return true;
	}
	return false;
}

/* The events parked for a key, for all keys if it is NULL, have been applied by a rebuild. */
void
EvpgConsumerUnpark(const char *name, const char *key)
{
	Datum		values[2] = {CStringGetTextDatum(name)};
	char		nulls[2] = {' ', key == NULL ? 'n' : ' '};

	if (key != NULL)
		values[1] = CStringGetTextDatum(key);
	run(EVPG_PLAN_PARKED_UNPARK, values, nulls);
}

/* A parked event was tried again; error NULL: it succeeded. */
void
EvpgConsumerReplayed(const EvpgParked *parked, const ErrorData *error)
{
	Datum		values[4] = {Int64GetDatum(parked->id)};
	char		nulls[4] = {' ', ' ', ' ', ' '};

	put_error(values, nulls, 1, error);
	run(error == NULL ? EVPG_PLAN_PARKED_DELETE : EVPG_PLAN_PARKED_FAIL, values, nulls);
}

/* ------------------------------------------------------------------ SQL */

/* Owns a consumer that a user has named, and reads it; error if there is none. */
static void
own(const char *name, EvpgConsumer *consumer)
{
	(void) EvpgConsumerLock(name, true);
	if (EvpgConsumerRead(name, consumer))
		return;
	if (EvpgProjectionLookup(name) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("projection \"%s\" is inline", name),
				 errdetail("Its events are applied by the transactions that append them.")));
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_UNKNOWN_CONSUMER),
			 errmsg("there is no consumer \"%s\"", name)));
}

/*
 * Waits until no instance of a saga reacts; then none does to the end of the
 * transaction.  Not in a reaction of the saga itself, which would wait for others
 * that may do the same.
 */
static void
end_reactions(const char *name)
{
	LOCKTAG		tag;

	if (EvpgProjectionLookup(name) != NULL)
		return;
	EvpgLockSagaTag(name, &tag);
	if (!EvpgLockHeld(&tag, ShareLock))
		(void) EvpgLockAcquire(&tag, ExclusiveLock, true);
}

/* Sets whether a consumer runs; false if nothing changed. */
static bool
set_running(FunctionCallInfo fcinfo, bool running, const char *writer)
{
	char	   *name = EvpgArgName(fcinfo, 0, "consumer name");
	Datum		values[2] = {CStringGetTextDatum(name), BoolGetDatum(running)};
	EvpgConsumer consumer;
	bool		changed;
	EvpgScope	scope;

	EvpgProjectionRefuse("change consumers");
	EvpgEnter(&scope, writer);
	own(name, &consumer);
	if (!running)
		end_reactions(name);
	changed = EvpgPlanRun(EVPG_PLAN_CONSUMER_RUN, values, NULL) > 0;
	EvpgPlanDone();
	if (running)
	{
		changed |= EvpgPlanRun(EVPG_PLAN_SAGA_RESUME, values, NULL) > 0;
		EvpgPlanDone();
		EvpgHomeTell();
	}
	EvpgWakeLauncher();
	EvpgWakeConsumers();
	EvpgWakeWaiters(EvpgHashPair(name, ""));
	EvpgLeave(&scope);
	return changed;
}

Datum
evpg_pause(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(set_running(fcinfo, false, "evpg_pause()"));
}

/* Also tries an event again at once that has failed. */
Datum
evpg_resume(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(set_running(fcinfo, true, "evpg_resume()"));
}

/* Gives an event up: one that was not consumed yet, or one that is parked.  A consumer that has stopped at it goes on. */
Datum
evpg_skip_event(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "consumer name");
	int64		position = EvpgArgBigint(fcinfo, 1, "event_position");
	char	   *reason = EvpgArgId(fcinfo, 2, "reason");
	Datum		values[4] = {
		CStringGetTextDatum(name),
		Int64GetDatum(position),
		CStringGetTextDatum(reason),
		CStringGetTextDatum(GetUserNameFromId(GetSessionUserId(), false))
	};
	EvpgConsumer consumer;
	bool		skipped;
	EvpgScope	scope;

	EvpgProjectionRefuse("change consumers");
	EvpgEnter(&scope, "evpg_skip_event()");
	own(name, &consumer);
	if (EvpgProjectionLookup(name) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("\"%s\" is a saga", name),
				 errhint("Use evpg_discard_dead_letter().")));
	if (position > EvpgFenceLastDrawn())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no event at position " INT64_FORMAT " yet", position)));
	skipped = EvpgPlanRun(EVPG_PLAN_PARKED_SKIP, values, NULL) > 0;
	EvpgPlanDone();
	if (!skipped && position > consumer.checkpoint)
	{
		EvpgConsumerSkip(name, position, NULL, reason, 0, NULL);
		if (position == consumer.error_position)
			EvpgConsumerRestart(name, consumer.checkpoint);
		EvpgWakeConsumers();
		skipped = true;
	}
	EvpgLeave(&scope);
	PG_RETURN_BOOL(skipped);
}
