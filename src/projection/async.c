/*-------------------------------------------------------------------------
 *
 * async.c
 *		Asynchronous projections: the consumer that applies a batch of events and
 *		moves the checkpoint in one transaction (rule 10), and what it does about
 *		events that cannot be applied.
 *
 * A batch runs in a subtransaction.  If an event in it fails, nothing of the
 * batch remains but the failure: next time the events before it are applied, then
 * the event alone, until it succeeds or has failed often enough.  Then the
 * projection stops, or the event is parked, and later ones of its key behind it,
 * or it is skipped.  Errors of concurrency are not counted, but the pauses
 * before the next attempt grow.
 *
 * A session remembers how far it has looked without finding an event, so that a
 * projection of rare events does not write its checkpoint all the time (checkpoint.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/names.h"
#include "base/retry.h"
#include "base/subtransaction.h"
#include "base/testing.h"
#include "base/wakeup.h"
#include "commands/dbcommands.h"
#include "consumer/checkpoint.h"
#include "consumer/consumer.h"
#include "consumer/crash_suspects.h"
#include "consumer/parked_event.h"
#include "log/event_log.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "projection/apply.h"
#include "projection/async.h"
#include "projection/batch.h"
#include "usercode/guard.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evpg_replay_parked);

/* How long to wait after the first error that need not come back, in ms. */
#define FIRST_PAUSE 100

static void
run_batch(void *arg)
{
	EvpgBatchRun(arg);
}

/* Parks an event, or gives it up, as the projection says; for a key, or all of them if it is NULL. */
static void
put_aside(const EvpgConsumer *consumer, EvpgProjection *projection, const char *key, const ErrorData *error)
{
	if (projection->on_error == EVPG_ON_ERROR_PARK)
		EvpgParkedEventInsert(consumer->name, consumer->error_position, key, consumer->attempts, error);
	else
		EvpgParkedEventInsertSkipped(consumer->name, consumer->error_position, key, error->message, consumer->attempts, error);
}

/*
 * While an event is given up it is run again, and only what fails in that may be
 * put aside with it.  A lock that was not had, a deadlock or a cancel is no failure:
 * raised again, it ends the task, which is tried later as it was before.
 */
static void
rethrow_unless_failure(const ErrorData *error)
{
	if (error != NULL && (EvpgErrorIsCancel(error) || EvpgErrorIsTransient(error)))
		ReThrowError(unconstify(ErrorData *, error));
}

/*
 * Parks an event, or gives it up, for each key for which it fails, and applies it
 * to the others; without a key as a whole, and for a handler, too, which sees it
 * once: then it is parked for each of its keys, so that later events of them wait.
 */
static void
leave_out(const EvpgConsumer *consumer, EvpgProjection *projection, const char *key, const ErrorData *error)
{
	EvpgBatch	batch = {
		.projection = projection,
		.build = projection->build,
		.after = consumer->error_position - 1,
		.upto = consumer->error_position,
		.max_events = 1,
		.send = true,
		.parked = EvpgParkedEventList(consumer->name, consumer->error_position - 1)
	};

	if (projection->handler_signature != NULL)
	{
		const ErrorData *no_keys = NULL;

		if (projection->on_error == EVPG_ON_ERROR_PARK)
		{
			batch.give_up = error;
			batch.attempts = consumer->attempts;
			no_keys = EvpgSubtransactionRun(run_batch, &batch);
			rethrow_unless_failure(no_keys);
		}
		if (projection->on_error != EVPG_ON_ERROR_PARK || no_keys != NULL)
			put_aside(consumer, projection, NULL, error);
		return;
	}
	for (;;)
	{
		put_aside(consumer, projection, key, error);
		if (key == NULL)
			return;
		batch.except_keys = lappend(batch.except_keys, pstrdup(key));
		error = EvpgSubtransactionRun(run_batch, &batch);
		if (error == NULL)
			return;
		rethrow_unless_failure(error);
		key = EvpgApplyKey;
	}
}

/* The event after the checkpoint has failed as often as it may; false if the projection is to stop. */
static bool
give_up(const EvpgConsumer *consumer, EvpgProjection *projection, const ErrorData *error)
{
	if (consumer->error_position == 0 || projection->on_error == EVPG_ON_ERROR_STOP)
		return false;
	leave_out(consumer, projection, EvpgApplyKey, error);
	EvpgCheckpointAdvance(consumer, consumer->error_position, 0);
	return true;
}

static void
tell_given_up(const EvpgConsumer *consumer, const EvpgProjection *projection, bool stop, int64 position,
			  const ErrorData *error)
{
	ereport(EvpgSubtransactionLevel(),
			(errmsg("projection \"%s\" of database \"%s\" has %s at position " INT64_FORMAT, consumer->name,
					get_database_name(MyDatabaseId),
					stop ? "stopped" : projection->on_error == EVPG_ON_ERROR_PARK ? "parked an event" : "skipped an event",
					position),
			 errdetail("The error has SQLSTATE %s; evpg.%s has the rest.", unpack_sql_state(error->sqlerrcode),
					   stop ? "consumer" : "parked_event"),
			 stop ? errhint("When the cause is gone, use evpg_resume_consumer(); or evpg_skip_event().") :
			 errhint("When the cause is gone, use evpg_replay_parked().")));
}

/*
 * A batch has failed, and nothing of it is left.  Position 0 is the projection
 * itself: its key path, its library.
 */
static void
fail_batch(EvpgConsumer *consumer, EvpgProjection *projection, const EvpgBatch *batch, const ErrorData *error)
{
	int64		position = EvpgApplyPosition;
	int			attempts = 0;
	TimestampTz retry_at = EvpgClockNow();
	bool		again;
	bool		passed;

	if (position <= batch->after || position > batch->upto)
		position = 0;
	again = consumer->error_position == position && (position != 0 || consumer->attempts > 0);
	/* After others it does not count: it is tried again alone, at once. */
	if (position == 0 || position == batch->first)
	{
		bool		transient = EvpgErrorIsTransient(error);

		attempts = (consumer->error_position == position ? consumer->attempts : 0) + !transient;
		retry_at = transient ? EvpgRetryPause(consumer->last_error_at, consumer->retry_at, FIRST_PAUSE) :
			EvpgRetryAt(attempts);
		if (position - 1 > consumer->checkpoint)
			EvpgCheckpointAdvance(consumer, position - 1, 0);
	}
	consumer->error_position = position;
	consumer->attempts = attempts;
	if (attempts < projection->max_attempts)
	{
		EvpgConsumerRecordError(consumer, position, attempts, retry_at, false, again, error);
		return;
	}
	passed = give_up(consumer, projection, error);
	EvpgConsumerRecordError(consumer, passed ? 0 : position, passed ? 0 : attempts, passed ? EvpgClockNow() : retry_at,
							!passed, again, error);
	tell_given_up(consumer, projection, !passed, position, error);
}

/*
 * The event has crashed the server as often as it may.  Its keys are found out,
 * so that later events of them wait, unless that crashes the server, too.
 */
static void
give_up_crashing(EvpgConsumer *consumer, EvpgProjection *projection, int64 position, bool with_keys)
{
	EvpgBatch	batch = {
		.projection = projection,
		.build = projection->build,
		.after = position - 1,
		.upto = position,
		.max_events = 1,
		.parked = EvpgParkedEventList(consumer->name, position - 1),
		.attempts = consumer->crashes - 1
	};
	ErrorData  *error = EvpgCrashError(batch.attempts);
	bool		stop = projection->on_error == EVPG_ON_ERROR_STOP;
	bool		again = consumer->error_position == position;

	consumer->error_position = position;
	consumer->attempts = batch.attempts;
	if (!stop)
	{
		ErrorData  *no_keys = NULL;

		batch.give_up = error;
		if (projection->on_error == EVPG_ON_ERROR_PARK && with_keys)
		{
			no_keys = EvpgSubtransactionRun(run_batch, &batch);
			rethrow_unless_failure(no_keys);
		}
		if (projection->on_error != EVPG_ON_ERROR_PARK || !with_keys || no_keys != NULL)
			put_aside(consumer, projection, NULL, error);
		EvpgCheckpointAdvance(consumer, position, 0);
	}
	EvpgConsumerRecordError(consumer, stop ? position : 0, stop ? batch.attempts : 0, EvpgClockNow(), stop, again, error);
	tell_given_up(consumer, projection, stop, position, error);
}

/*
 * EvpgAsyncRun
 *		Applies the next batch of an asynchronous projection, in the current
 *		transaction, whose end the caller brings about at once.  True if there is
 *		more to be done now; *next is lowered to when it wants to be run again.
 *		Does nothing if another session does it.
 */
bool
EvpgAsyncRun(const char *name, TimestampTz *next)
{
	EvpgScope	scope;
	EvpgProjection *projection;
	EvpgConsumer consumer;
	EvpgBatch	batch = {0};
	EvpgLogFilter filter = {0};
	EvpgCrashAdvice caution;
	EvpgCheckpoint *checkpoint;
	int64		mark;
	int64		position;
	ErrorData  *error;

	if (!EvpgConsumerLock(name, false))
		return false;
	EvpgEnter(&scope, "evpg_run()");
	if (!EvpgConsumerRead(name, &consumer) || !consumer.running ||
		(projection = EvpgProjectionGet(name, true)) == NULL)
	{
		EvpgLeave(&scope);
		return false;
	}
	if (consumer.retry_at > EvpgClockNow())
	{
		*next = Min(*next, EvpgClockWall(consumer.retry_at));
		EvpgLeave(&scope);
		return false;
	}

	checkpoint = EvpgCheckpointGet(name);
	mark = EVPG_MUTATION("consumer_unstable") ? EvpgFenceLastDrawn() : EvpgFenceStablePosition(false);
	batch.projection = projection;
	batch.build = projection->build;
	batch.after = EvpgCheckpointPosition(checkpoint, &consumer);
	batch.upto = mark;
	batch.send = true;
	batch.narrow = true;
	/* First what comes before the event that fails, then it alone. */
	if (consumer.error_position > batch.after)
		batch.upto = Min(mark, consumer.error_position - (batch.after < consumer.error_position - 1));
	if (batch.after >= mark)
	{
		if (batch.after > consumer.checkpoint)
			EvpgCheckpointAdvanceLazily(checkpoint, &consumer, batch.after, 0, next);
		EvpgLeave(&scope);
		return false;
	}

	filter.after = batch.after;
	filter.upto = mark;
	filter.aggregate_types = projection->aggregate_types;
	filter.event_types = projection->event_types;
	caution = EvpgCrashAdviseBatch(&consumer, &filter, projection->max_attempts, &batch.max_events, &position, next);
	EvpgCrashFlushAtCommit(batch.max_events);
	if (caution != EVPG_CRASH_PROCEED)
	{
		if (caution == EVPG_CRASH_GIVE_UP || caution == EVPG_CRASH_GIVE_UP_UNRUN)
			give_up_crashing(&consumer, projection, position, caution == EVPG_CRASH_GIVE_UP);
		EvpgLeave(&scope);
		return caution != EVPG_CRASH_PUT_OFF;
	}
	batch.parked = EvpgParkedEventList(name, batch.after);
	error = EvpgSubtransactionRun(run_batch, &batch);
	if (error == NULL)
	{
		EvpgCheckpointAdvanceLazily(checkpoint, &consumer, batch.reached, batch.events, next);
	}
	else
	{
		if (EvpgErrorIsCancel(error))
			ReThrowError(error);
		batch.reached = batch.after;
		fail_batch(&consumer, projection, &batch, error);
	}
	EvpgLeave(&scope);
	return error != NULL || batch.reached < mark;
}

static bool
projection_takes(void *arg, const EvpgEvent *event)
{
	return EvpgProjectionTakes(arg, event);
}

/*
 * EvpgAsyncReached
 *		Whether an asynchronous projection has applied all that it takes up to a
 *		position.  The checkpoint need not be there: see checkpoint.c.
 */
bool
EvpgAsyncReached(const char *name, int64 position)
{
	EvpgProjection *projection = EvpgProjectionGet(name, false);
	EvpgLogFilter filter = {
		.aggregate_types = projection->aggregate_types,
		.event_types = projection->event_types
	};
	EvpgConsumer consumer;

	/*
	 * Dropped, which is an error, or inline by now; perhaps the session does
	 * not know yet.
	 */
	if (!EvpgConsumerRead(name, &consumer))
	{
		AcceptInvalidationMessages();
		return EvpgProjectionGet(name, false)->mode == EVPG_MODE_INLINE;
	}
	return EvpgCheckpointHasPassed(&consumer, position, &filter, projection_takes, projection);
}

/* ------------------------------------------------------------------ parked events */

/* Applies a parked event, given as one for a key, or those for all keys of a handler; false if it fails again. */
static bool
replay_parked(EvpgProjection *projection, List *parked)
{
	EvpgParkedEvent *first = linitial(parked);
	ListCell   *cell;
	EvpgBatch	batch = {
		.projection = projection,
		.build = projection->build,
		.after = first->position - 1,
		.upto = first->position,
		.max_events = 1,
		.only_key = projection->handler_signature == NULL ? first->key : NULL,
		.send = true
	};
	ErrorData  *error = EvpgSubtransactionRun(run_batch, &batch);

	if (error != NULL && EvpgErrorIsCancel(error))
		ReThrowError(error);
	foreach(cell, parked)
		EvpgParkedEventNoteReplay(lfirst(cell), error);
	return error == NULL;
}

/* What is to be replayed at once: a parked event for one key, or for a handler for all of them, from a place in the list. */
static List *
replayed_together(const EvpgProjection *projection, List *parked, int from)
{
	EvpgParkedEvent *first = list_nth(parked, from);
	List	   *together = list_make1(first);

	if (projection->handler_signature != NULL)
		for (int i = from + 1; i < list_length(parked); i++)
		{
			EvpgParkedEvent *other = list_nth(parked, i);

			if (other->position != first->position)
				break;
			together = lappend(together, other);
		}
	return together;
}

/* Whether a key of parked events is in a list. */
static bool
any_listed(List *keys, List *parked)
{
	ListCell   *cell;

	foreach(cell, keys == NIL ? NIL : parked)
	{
		EvpgParkedEvent *event = lfirst(cell);

		if (event->key != NULL && EvpgNamesHave(keys, event->key))
			return true;
	}
	return false;
}

/* Of each key in order of position, up to the first that fails again. */
Datum
evpg_replay_parked(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "consumer name");
	int			max_count = PG_ARGISNULL(1) ? PG_INT32_MAX : PG_GETARG_INT32(1);
	char	   *only_key = PG_ARGISNULL(2) ? NULL : EvpgArgKey(fcinfo, 2);
	EvpgProjection *projection;
	List	   *all;
	List	   *together;
	List	   *left = NIL;		/* keys of events that stay parked */
	int64		count = 0;
	EvpgScope	scope;

	if (max_count < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_count must not be negative")));
	EvpgRefuseInProjection("replay events");
	EvpgBatchRequireNewSnapshots();
	EvpgEnter(&scope, "evpg_replay_parked()");
	(void) EvpgConsumerLock(name, true);
	projection = EvpgProjectionGet(name, false);
	all = EvpgParkedEventList(name, PG_INT64_MAX);
	for (int i = 0; i < list_length(all) && count < max_count; i += list_length(together))
	{
		ListCell   *cell;

		together = replayed_together(projection, all, i);
		if ((only_key == NULL || any_listed(list_make1(only_key), together)) && !any_listed(left, together) &&
			replay_parked(projection, together))
			count++;
		else
			foreach(cell, together)
		{
			EvpgParkedEvent *event = lfirst(cell);

			if (event->key != NULL)
				left = lappend(left, event->key);
		}
		CHECK_FOR_INTERRUPTS();
	}
	/* Who left the consumer alone meanwhile looks again. */
	EvpgWakeConsumersAtEnd();
	EvpgLeave(&scope);
	PG_RETURN_INT64(count);
}
