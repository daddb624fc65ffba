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

#include "base/locks.h"
#include "catalog/pg_type.h"
#include <math.h>

#include "access/xact.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/errors.h"
#include "base/shmem.h"
#include "base/statement.h"
#include "base/subtransaction.h"
#include "common/pg_prng.h"
#include "consumer/activation.h"
#include "consumer/consumer.h"
#include "consumer/crash_suspects.h"
#include "consumer/worker_lock.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "projection/projection.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evpg_pause_consumer);
PG_FUNCTION_INFO_V1(evpg_resume_consumer);
PG_FUNCTION_INFO_V1(evpg_skip_event);

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
	LOCKTAG		tag;

	EvpgCatalogLockForWork();
	EvpgLockTag(&tag, EVPG_LOCK_CONSUMER, EvpgHashName(name, 0));
	if (!EvpgLockAcquire(&tag, ExclusiveLock, wait))
		return false;

	/*
	 * What the last owner registered must be seen: an advisory lock does not
	 * see to that.
	 */
	AcceptInvalidationMessages();
	return true;
}

/* What is kept of an error, in three columns; NULL: none. */
static void
put_error(Datum *values, char *nulls, int column, const ErrorData *error)
{
	EvpgParameterText(values, nulls, column, error == NULL ? NULL : error->message);
	EvpgParameterText(values, nulls, column + 1, error == NULL ? NULL : unpack_sql_state(error->sqlerrcode));
	EvpgParameterText(values, nulls, column + 2, error == NULL ? NULL : error->context);
}

static EvpgStatement insert_consumer = {
	.text = "INSERT INTO evpg.consumer (name, kind, checkpoint, start_position, server_start)"
	" VALUES ($1, $2, $3, $3, $4)",
	.types = {TEXTOID, TEXTOID, INT8OID, INT8OID}
};

/* The caller owns the consumer, here and below. */
void
EvpgConsumerCreate(const char *name, const char *kind, int64 checkpoint)
{
	Datum		values[4] = {
		CStringGetTextDatum(name),
		CStringGetTextDatum(kind),
		Int64GetDatum(checkpoint),
		Int64GetDatum(EvpgServerStart())
	};

	EvpgStatementExecute(&insert_consumer, values, NULL);
	EvpgActivationNotice();
}

static EvpgStatement delete_consumer = {
	.text = "DELETE FROM evpg.consumer"
	" WHERE name = $1",
	.types = {TEXTOID}
};

static EvpgStatement delete_parked_event_clear = {
	.text = "DELETE FROM evpg.parked_event"
	" WHERE name = $1",
	.types = {TEXTOID}
};

/* Its parked events may stay: those that were given up are left out by a rebuild. */
void
EvpgConsumerDrop(const char *name, bool with_parked)
{
	Datum		value = CStringGetTextDatum(name);

	EvpgStatementExecute(&delete_consumer, &value, NULL);
	if (with_parked)
		EvpgStatementExecute(&delete_parked_event_clear, &value, NULL);
	EvpgWakeWaitersAtCommit(EvpgHashPair(name, ""));
}

static EvpgStatement select_consumer = {
	.text = "SELECT status = 'running', checkpoint, error_position, attempts, retry_at, last_error_at,"
	" start_position, server_start, cautious_to, proven, crashes, status = 'stopped'"
	" FROM evpg.consumer"
	" WHERE name = $1",
	.types = {TEXTOID}
};

/* Reads a consumer; false if there is none. */
bool
EvpgConsumerRead(const char *name, EvpgConsumer *consumer)
{
	Datum		value = CStringGetTextDatum(name);
	bool		found = EvpgStatementReadLatest(&select_consumer, &value, NULL) > 0;

	memset(consumer, 0, sizeof(EvpgConsumer));
	consumer->name = name;
	if (found)
	{
		Datum		running;

		(void) EvpgResultDatum(0, 1, &running);
		consumer->running = DatumGetBool(running);
		consumer->checkpoint = EvpgResultInt64(0, 2);
		consumer->error_position = EvpgResultInt64(0, 3);
		consumer->attempts = (int) EvpgResultInt64(0, 4);
		consumer->retry_at = EvpgResultInt64(0, 5);
		consumer->last_error_at = EvpgResultInt64(0, 6);
		consumer->start_position = EvpgResultInt64(0, 7);
		consumer->server_start = EvpgResultInt64(0, 8);
		consumer->cautious_to = EvpgResultInt64(0, 9);
		consumer->proven = EvpgResultInt64(0, 10);
		consumer->crashes = (int) EvpgResultInt64(0, 11);
		(void) EvpgResultDatum(0, 12, &running);
		consumer->stopped = DatumGetBool(running);
	}
	EvpgStatementDone();
	return found;
}

static EvpgStatement select_consumers = {
	.text = "SELECT name"
	" FROM evpg.consumer"
	" WHERE kind = $1 AND status = 'running' ORDER BY name",
	.types = {TEXTOID}
};

/* Names of the consumers of a kind that are running, in CurrentMemoryContext. */
static List *
names_of(const char *kind)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		value = CStringGetTextDatum(kind);
	uint64		rows = EvpgStatementReadLatest(&select_consumers, &value, NULL);
	List	   *names = NIL;

	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old;
		Datum		name;

		(void) EvpgResultDatum(row, 1, &name);
		old = MemoryContextSwitchTo(caller);
		names = lappend(names, TextDatumGetCString(name));
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
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

static EvpgStatement update_consumer_advance = {
	.text = "UPDATE evpg.consumer"
	" SET checkpoint = $2, events_total = events_total + $3, proven = proven + $3, crashes = 0, updated_at ="
	" evpg.clock_timestamp(), attempts = CASE WHEN error_position > $2 THEN attempts ELSE 0 END, retry_at ="
	" CASE WHEN error_position > $2 THEN retry_at END, error_position = CASE WHEN error_position > $2 THEN"
	" error_position END"
	" WHERE name = $1",
	.types = {TEXTOID, INT8OID, INT8OID}
};

/* Moves the checkpoint; an error at or before it is over. */
void
EvpgConsumerAdvance(const EvpgConsumer *consumer, int64 checkpoint, int64 events)
{
	Datum		values[3] = {CStringGetTextDatum(consumer->name), Int64GetDatum(checkpoint), Int64GetDatum(events)};

	EvpgStatementExecute(&update_consumer_advance, values, NULL);
	EvpgWakeWaitersAtCommit(EvpgHashPair(consumer->name, ""));
}

static EvpgStatement update_consumer_restart = {
	.text = "UPDATE evpg.consumer"
	" SET checkpoint = $2, error_position = NULL, attempts = 0, retry_at = NULL, crashes = 0, status = CASE"
	" status WHEN 'stopped' THEN 'running' ELSE status END, updated_at = evpg.clock_timestamp()"
	" WHERE name = $1",
	.types = {TEXTOID, INT8OID}
};

/* Starts over from a checkpoint, with no error; what was paused stays so. */
void
EvpgConsumerRestart(const char *name, int64 checkpoint)
{
	Datum		values[2] = {CStringGetTextDatum(name), Int64GetDatum(checkpoint)};

	EvpgStatementExecute(&update_consumer_restart, values, NULL);
	EvpgWakeWaitersAtCommit(EvpgHashPair(name, ""));
}

/* When to try again after so many attempts: 1 s, 2 s, 4 s, with up to a quarter more so that not all come at once. */
TimestampTz
EvpgRetryAt(int attempts)
{
	double		seconds = Min(FIRST_RETRY * pow(2, Min(attempts, 30) - 1), LAST_RETRY);

	return EvpgClockNow() +
		(int64) (seconds * (1 + pg_prng_double(&pg_global_prng_state) / 4) * USECS_PER_SEC);
}

/*
 * EvpgRetryPause
 *		When to try again after an error that need not come back: soon after the
 *		first one, in ms; then after pauses that double.  The caller knows when the last
 *		error came and when it was to be tried again then, 0 if there was none.
 */
TimestampTz
EvpgRetryPause(TimestampTz last_error_at, TimestampTz retry_at, int first)
{
	TimestampTz now = EvpgClockNow();
	int64		pause = 0;

	if (retry_at > last_error_at && !TimestampDifferenceExceeds(retry_at, now, ROW_ENDS))
		pause = (retry_at - last_error_at) / 1000 * 2;
	return TimestampTzPlusMilliseconds(now, Min(Max(pause, first), LAST_PAUSE));
}

/* An error that need not come back: others were in the way, or the server is short of something. */
bool
EvpgErrorIsTransient(const ErrorData *error)
{
	return EvpgAttemptDisturbed(error->sqlerrcode) ||
		ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_INSUFFICIENT_RESOURCES;
}

static EvpgStatement update_consumer_fail = {
	.text = "UPDATE evpg.consumer"
	" SET errors_total = errors_total + (NOT $9)::int4, error_position = NULLIF($2, 0), attempts = $3,"
	" retry_at = $4, crashes = 0, status = CASE WHEN $5 THEN 'stopped' ELSE status END, last_error = $6,"
	" last_sqlstate = $7, last_context = $8, last_error_at = evpg.clock_timestamp(), updated_at ="
	" evpg.clock_timestamp()"
	" WHERE name = $1",
	.types = {TEXTOID, INT8OID, INT4OID, TIMESTAMPTZOID, BOOLOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID}
};

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
	EvpgStatementExecute(&update_consumer_fail, values, nulls);
	/* Who waits is told that there is nothing to come. */
	if (stop)
		EvpgWakeWaitersAtCommit(EvpgHashPair(consumer->name, ""));
}

static EvpgStatement select_parked_events = {
	.text = "SELECT position, key, skip_reason IS NOT NULL, parked_event_id"
	" FROM evpg.parked_event"
	" WHERE name = $1 AND (skip_reason IS NULL OR position > $2) ORDER BY position, key",
	.types = {TEXTOID, INT8OID}
};

/*
 * EvpgParkedList
 *		The events that are not to be applied now, in order of position, in
 *		CurrentMemoryContext; of those that were given up only those after a
 *		position.
 */
List *
EvpgParkedList(const char *name, int64 after)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[2] = {CStringGetTextDatum(name), Int64GetDatum(after)};
	uint64		rows = EvpgStatementReadLatest(&select_parked_events, values, NULL);
	List	   *parked = NIL;

	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);
		EvpgParked *event = palloc(sizeof(EvpgParked));
		Datum		result;

		(void) EvpgResultDatum(row, 1, &result);
		event->position = DatumGetInt64(result);
		event->key = EvpgResultDatum(row, 2, &result) ? TextDatumGetCString(result) : NULL;
		(void) EvpgResultDatum(row, 3, &result);
		event->skipped = DatumGetBool(result);
		(void) EvpgResultDatum(row, 4, &result);
		event->id = DatumGetInt64(result);
		parked = lappend(parked, event);
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
	return parked;
}

static EvpgStatement insert_parked_event = {
	.text = "INSERT INTO evpg.parked_event (name, position, key, attempts, error, sqlstate, context)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7)",
	.types = {TEXTOID, INT8OID, TEXTOID, INT4OID, TEXTOID, TEXTOID, TEXTOID}
};

/* Parks an event; key NULL: it has none; error NULL: it waits behind another one of its key. */
void
EvpgParkedInsert(const char *name, int64 position, const char *key, int attempts, const ErrorData *error)
{
	Datum		values[7] = {CStringGetTextDatum(name), Int64GetDatum(position)};
	char		nulls[7] = {' ', ' ', ' ', ' ', ' ', ' ', ' '};

	EvpgParameterText(values, nulls, 2, key);
	values[3] = Int32GetDatum(attempts);
	put_error(values, nulls, 4, error);
	EvpgStatementExecute(&insert_parked_event, values, nulls);
}

static EvpgStatement insert_skipped_event = {
	.text = "INSERT INTO evpg.parked_event (name, position, key, attempts, error, sqlstate, context, skip_reason,"
	" skipped_by, skipped_at) SELECT $1, $2, $9, COALESCE($5, c.attempts, 0), COALESCE($6, c.last_error),"
	" COALESCE($7, c.last_sqlstate), CASE WHEN $6 IS NULL THEN c.last_context ELSE $8 END, $3, $4,"
	" evpg.clock_timestamp()"
	" FROM (SELECT) AS one LEFT JOIN evpg.consumer c ON c.name = $1 AND c.error_position = $2"
	" WHERE NOT EXISTS (SELECT FROM evpg.parked_event p WHERE p.name = $1 AND p.position = $2 AND"
	" p.skip_reason IS NOT NULL AND (p.key = $9 OR p.key IS NULL))",
	.types = {TEXTOID, INT8OID, TEXTOID, TEXTOID, INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID}
};

/*
 * EvpgParkedSkip
 *		Gives an event up that has not been consumed, nor parked: for a key, for all
 *		if it is NULL.  error NULL: the last one of the consumer there.
 */
void
EvpgParkedSkip(const char *name, int64 position, const char *key, const char *reason, int attempts,
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
	EvpgParameterText(values, nulls, 8, key);
	EvpgStatementExecute(&insert_skipped_event, values, nulls);
}

/*
 * EvpgParkedHas
 *		Whether an event has been given up for a key; key NULL: for all of its keys.
 *		Ask in order of position: *next, 0 at first, is where the list goes on.
 */
bool
EvpgParkedHas(List *parked, int *next, int64 position, const char *key)
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

static EvpgStatement delete_parked_event_unpark = {
	.text = "DELETE FROM evpg.parked_event"
	" WHERE name = $1 AND ($2 IS NULL OR key = $2) AND skip_reason IS NULL",
	.types = {TEXTOID, TEXTOID}
};

/* The events parked for a key, for all keys if it is NULL, have been applied by a rebuild. */
void
EvpgParkedDelete(const char *name, const char *key)
{
	Datum		values[2] = {CStringGetTextDatum(name)};
	char		nulls[2] = {' ', key == NULL ? 'n' : ' '};

	if (key != NULL)
		values[1] = CStringGetTextDatum(key);
	EvpgStatementExecute(&delete_parked_event_unpark, values, nulls);
}

static EvpgStatement delete_parked_event = {
	.text = "DELETE FROM evpg.parked_event"
	" WHERE parked_event_id = $1",
	.types = {INT8OID}
};

static EvpgStatement update_parked_event_fail = {
	.text = "UPDATE evpg.parked_event"
	" SET error = $2, sqlstate = $3, context = $4, attempts = attempts + 1"
	" WHERE parked_event_id = $1",
	.types = {INT8OID, TEXTOID, TEXTOID, TEXTOID}
};

/* A parked event was tried again; error NULL: it succeeded. */
void
EvpgParkedReplayed(const EvpgParked *parked, const ErrorData *error)
{
	Datum		values[4] = {Int64GetDatum(parked->id)};
	char		nulls[4] = {' ', ' ', ' ', ' '};

	put_error(values, nulls, 1, error);
	EvpgStatementExecute(error == NULL ? &delete_parked_event : &update_parked_event_fail, values, nulls);
}

/* ------------------------------------------------------------------ SQL */

/* Owns a consumer that a user has named, and reads it; error if there is none. */
static void
own_consumer(const char *name, EvpgConsumer *consumer)
{
	(void) EvpgConsumerLock(name, true);
	if (EvpgConsumerRead(name, consumer))
		return;
	if (EvpgProjectionGet(name, true) != NULL)
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

	if (EvpgProjectionGet(name, true) != NULL)
		return;
	EvpgLockSagaTag(name, &tag);
	if (!EvpgLockHeld(&tag, ShareLock))
		(void) EvpgLockAcquire(&tag, ExclusiveLock, true);
}

static EvpgStatement update_running = {
	.text = "UPDATE evpg.consumer"
	" SET status = CASE WHEN $2 THEN 'running' ELSE 'paused' END, attempts = 0, retry_at = NULL, crashes ="
	" 0, updated_at = evpg.clock_timestamp()"
	" WHERE name = $1"
	" AND (status <> CASE WHEN $2 THEN 'running' ELSE 'paused' END OR $2 AND retry_at IS NOT NULL)",
	.types = {TEXTOID, BOOLOID}
};

static EvpgStatement update_saga_resume = {
	.text = "WITH e AS (UPDATE evpg.saga_event SET retry_at = NULL WHERE saga = $1 AND retry_at IS NOT NULL"
	" RETURNING 1), t AS (UPDATE evpg.timer SET retry_at = NULL WHERE saga = $1 AND retry_at IS NOT NULL"
	" RETURNING 1) SELECT"
	" FROM e"
	" UNION ALL SELECT"
	" FROM t",
	.types = {TEXTOID}
};

/* Sets whether a consumer runs; false if nothing changed. */
static bool
set_running(FunctionCallInfo fcinfo, bool running, const char *writer)
{
	char	   *name = EvpgArgName(fcinfo, 0, "consumer name");
	Datum		values[2] = {CStringGetTextDatum(name), BoolGetDatum(running)};
	EvpgConsumer consumer;
	bool		changed;
	EvpgScope	scope;

	EvpgRefuseInProjection("change consumers");
	EvpgEnter(&scope, writer);
	own_consumer(name, &consumer);
	if (!running)
		end_reactions(name);
	changed = EvpgStatementRun(&update_running, values, NULL) > 0;
	EvpgStatementDone();
	if (running)
	{
		changed |= EvpgStatementRun(&update_saga_resume, values, NULL) > 0;
		EvpgStatementDone();
		EvpgActivationNotice();
	}
	EvpgWakeLauncherAtCommit();
	EvpgWakeConsumersAtCommit();
	EvpgWakeWaitersAtCommit(EvpgHashPair(name, ""));
	EvpgLeave(&scope);
	return changed;
}

Datum
evpg_pause_consumer(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(set_running(fcinfo, false, "evpg_pause_consumer()"));
}

/* Also tries an event again at once that has failed. */
Datum
evpg_resume_consumer(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(set_running(fcinfo, true, "evpg_resume_consumer()"));
}

static EvpgStatement update_parked_event_skip = {
	.text = "UPDATE evpg.parked_event"
	" SET skip_reason = $3, skipped_by = $4, skipped_at = evpg.clock_timestamp()"
	" WHERE name = $1 AND position = $2 AND skip_reason IS NULL",
	.types = {TEXTOID, INT8OID, TEXTOID, TEXTOID}
};

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

	EvpgRefuseInProjection("change consumers");
	EvpgEnter(&scope, "evpg_skip_event()");
	own_consumer(name, &consumer);
	if (EvpgProjectionGet(name, true) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("\"%s\" is a saga", name),
				 errhint("Use evpg_discard_dead_letter().")));
	if (position > EvpgFenceLastDrawn())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no event at position " INT64_FORMAT " yet", position)));
	skipped = EvpgStatementRun(&update_parked_event_skip, values, NULL) > 0;
	EvpgStatementDone();
	if (!skipped && position > consumer.checkpoint)
	{
		EvpgParkedSkip(name, position, NULL, reason, 0, NULL);
		if (position == consumer.error_position)
			EvpgConsumerRestart(name, consumer.checkpoint);
		EvpgWakeConsumersAtCommit();
		skipped = true;
	}
	EvpgLeave(&scope);
	PG_RETURN_BOOL(skipped);
}
