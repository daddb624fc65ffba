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
 * or it is skipped.  Transient errors are not counted, but the pauses before the next
 * attempt grow.  Parked events are applied again by replay_parked.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/retry.h"
#include "base/subtransaction.h"
#include "base/testing.h"
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
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* The pause after the first transient error, in ms. */
#define FIRST_BATCH_PAUSE 100

/*
 * The event of a projection at which this worker was cancelled last since it was the last
 * one: what comes before it is applied first, then it alone, as after an error.
 */
static char slow_name[EVPG_MAX_NAME + 1];
static int64 slow_position = 0;

/* Parks or skips the event that fails, as the projection specifies: for a key, or as a whole if key is NULL. */
static void
park_or_skip(const EvpgConsumer *consumer, EvpgProjection *projection, const char *key, const ErrorData *error)
{
	if (projection->on_error == EVPG_ON_ERROR_PARK)
		EvpgParkedEventInsert(consumer->name, consumer->error_position, key, consumer->attempts, error);
	else
		EvpgParkedEventInsertSkipped(consumer->name, consumer->error_position, key, error->message, consumer->attempts,
									 error);
}

/*
 * Rethrows an error, NULL for none, that is no failure of the event, but
 * interference or a cancel: an event that is given up is applied again, and
 * only what fails in that may be put aside with it.  The error ends the task,
 * which is tried later as it was before.
 */
static void
rethrow_transient(const ErrorData *error)
{
	if (error != NULL && (EvpgErrorIsCancel(error) || EvpgErrorIsTransient(error)))
		EvpgRethrowError(error);
}

/*
 * Parks the event that fails for each of its keys, so that later events of them wait;
 * returns false if the keys cannot be found.
 */
static bool
park_for_all_keys(const EvpgConsumer *consumer, EvpgProjection *projection, const ErrorData *error)
{
	EvpgBatch	batch = EvpgBatchOfEvent(projection, consumer->error_position);
	ErrorData  *no_keys;

	batch.parked = EvpgParkedEventList(consumer->name, consumer->error_position - 1);
	batch.give_up = error;
	batch.attempts = consumer->attempts;
	no_keys = EvpgBatchTry(&batch);
	rethrow_transient(no_keys);
	return no_keys == NULL;
}

/*
 * Parks or skips the event that fails for each key for which it fails, and applies it
 * to the other keys.
 */
static void
put_aside_by_key(const EvpgConsumer *consumer, EvpgProjection *projection, const char *key, const ErrorData *error)
{
	EvpgBatch	batch = EvpgBatchOfEvent(projection, consumer->error_position);

	batch.parked = EvpgParkedEventList(consumer->name, consumer->error_position - 1);
	while (error != NULL)
	{
		park_or_skip(consumer, projection, key, error);
		if (key == NULL)
			return;
		batch.except_keys = lappend(batch.except_keys, pstrdup(key));
		error = EvpgBatchTry(&batch);
		rethrow_transient(error);
		key = EvpgApplyCurrentKey;
	}
}

/*
 * Puts the event after the checkpoint aside, which has failed as often as it may, and
 * moves the checkpoint over it; returns false if the projection is to stop instead.  A
 * handler sees an event once, for all its keys, so it is put aside for all of them.
 */
static bool
give_up_failing(const EvpgConsumer *consumer, EvpgProjection *projection, const ErrorData *error)
{
	if (consumer->error_position == 0 || projection->on_error == EVPG_ON_ERROR_STOP)
		return false;
	if (projection->handler_signature == NULL)
		put_aside_by_key(consumer, projection, EvpgApplyCurrentKey, error);
	else if (projection->on_error != EVPG_ON_ERROR_PARK || !park_for_all_keys(consumer, projection, error))
		park_or_skip(consumer, projection, NULL, error);
	EvpgCheckpointAdvance(consumer, consumer->error_position, 0);
	return true;
}

/* Reports that a projection has stopped, or has put an event aside. */
static void
report_given_up(const EvpgConsumer *consumer, const EvpgProjection *projection, bool stop, int64 position,
				const ErrorData *error)
{
	ereport(EvpgReportLevel(),
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
 * Writes down that a batch has failed, of which nothing is left, and when the next
 * attempt is due; the last attempt gives the event up.  EvpgApplyCurrentPosition is the event
 * that has failed; if it is not of the batch, the projection itself has failed, such
 * as its key path or its library, which is position 0.
 */
static void
record_batch_failure(EvpgConsumer *consumer, EvpgProjection *projection, const EvpgBatch *batch, const ErrorData *error)
{
	int64		position = EvpgApplyCurrentPosition;
	int			attempts = 0;
	TimestampTz retry_at = EvpgClockNow();
	bool		again;
	bool		passed;

	if (EvpgErrorIsWorkerCancel(error) && !EvpgErrorIsForeignCancel(error))
	{
		strlcpy(slow_name, consumer->name, sizeof(slow_name));
		slow_position = position;
		EvpgConsumerPostpone(consumer, EvpgRetryAfterTransient(0, 0, FIRST_BATCH_PAUSE));
		return;
	}
	if (position <= batch->after || position > batch->upto)
		position = 0;
	/* A cancel is in no total. */
	again = EvpgErrorIsForeignCancel(error) ||
		(consumer->error_position == position && (position != 0 || consumer->attempts > 0));
	if (EvpgErrorIsForeignCancel(error) && consumer->retry_at == 0)
		EvpgConsumerReportCancel(consumer);

	/*
	 * The failure of an event after others does not count: it is tried alone,
	 * at once.
	 */
	if (position == 0 || position == batch->first)
	{
		bool		transient = EvpgErrorIsTransient(error);

		attempts = (consumer->error_position == position ? consumer->attempts : 0) + !transient;
		retry_at = transient ? EvpgRetryAfterTransient(consumer->last_error_at, consumer->retry_at, FIRST_BATCH_PAUSE) :
			EvpgRetryAfterAttempts(attempts);
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
	passed = give_up_failing(consumer, projection, error);
	EvpgConsumerRecordError(consumer, passed ? 0 : position, passed ? 0 : attempts, passed ? EvpgClockNow() : retry_at,
							!passed, again, error);
	report_given_up(consumer, projection, !passed, position, error);
}

/*
 * Gives up an event that has crashed the server as often as it may.  Its keys are
 * searched, so that later events of them wait, unless that crashes the server, too.
 */
static void
give_up_crashing(EvpgConsumer *consumer, EvpgProjection *projection, int64 position, bool with_keys)
{
	int			attempts = consumer->crashes - 1;
	ErrorData  *error = EvpgCrashError(attempts);
	bool		stop = projection->on_error == EVPG_ON_ERROR_STOP;
	bool		again = consumer->error_position == position;

	consumer->error_position = position;
	consumer->attempts = attempts;
	if (!stop)
	{
		if (projection->on_error != EVPG_ON_ERROR_PARK || !with_keys || !park_for_all_keys(consumer, projection, error))
			park_or_skip(consumer, projection, NULL, error);
		EvpgCheckpointAdvance(consumer, position, 0);
	}
	EvpgConsumerRecordError(consumer, stop ? position : 0, stop ? attempts : 0, EvpgClockNow(), stop, again, error);
	report_given_up(consumer, projection, stop, position, error);
}

/*
 * Applies the next events of a projection up to the stable position, unless a crash of
 * the server advises otherwise; returns true if there is more to be done now.
 */
static bool
apply_next_events(EvpgConsumer *consumer, EvpgProjection *projection, EvpgCheckpoint *checkpoint, int64 stable,
				  TimestampTz *next)
{
	EvpgBatch	batch = {
		.projection = projection,
		.build = projection->build,
		.after = EvpgCheckpointPosition(checkpoint, consumer),
		.upto = stable,
		.send = true,
		.narrow = true
	};
	EvpgLogFilter filter = {
		.after = batch.after,
		.upto = stable,
		.aggregate_types = projection->aggregate_types,
		.event_types = projection->event_types,
		.tags = projection->tags
	};
	EvpgCrashAdvice advice;
	int64		position;
	ErrorData  *error;

	/* First what comes before the event that fails, then it alone. */
	if (consumer->error_position > batch.after)
		batch.upto = Min(stable, consumer->error_position - (batch.after < consumer->error_position - 1));
	if (slow_position > batch.after && strcmp(slow_name, consumer->name) == 0)
		batch.upto = Min(batch.upto, slow_position - (batch.after < slow_position - 1));
	advice = EvpgCrashAdviseBatch(consumer, &filter, projection->max_attempts, &batch.max_events, &position, next);
	EvpgCrashFlushAtCommit(batch.max_events);
	if (advice == EVPG_CRASH_GIVE_UP || advice == EVPG_CRASH_GIVE_UP_UNRUN)
		give_up_crashing(consumer, projection, position, advice == EVPG_CRASH_GIVE_UP);
	if (advice != EVPG_CRASH_PROCEED)
		return advice != EVPG_CRASH_POSTPONE;
	batch.parked = EvpgParkedEventList(consumer->name, batch.after);
	error = EvpgBatchTry(&batch);
	if (error == NULL)
	{
		EvpgCheckpointAdvanceLazily(checkpoint, consumer, batch.reached, batch.events, next);
		return batch.reached < stable;
	}
	if (EvpgErrorIsCancel(error))
		EvpgRethrowError(error);
	record_batch_failure(consumer, projection, &batch, error);
	return true;
}

/* Applies the next batch of a projection whose consumer is owned; returns true if there is more to be done now. */
static bool
apply_owned(const char *name, TimestampTz *next)
{
	EvpgProjection *projection;
	EvpgConsumer consumer;
	EvpgCheckpoint *checkpoint;
	int64		stable;
	int64		reached;

	if (!EvpgConsumerRead(name, &consumer) || !consumer.running ||
		(projection = EvpgProjectionGet(name, true)) == NULL)
		return false;
	if (consumer.retry_at > EvpgClockNow())
	{
		*next = Min(*next, EvpgClockWall(consumer.retry_at));
		return false;
	}
	checkpoint = EvpgCheckpointGet(name);
	stable = EVPG_MUTATION("consumer_unstable") ? EvpgFenceLastDrawn() : EvpgFenceStablePosition(false);
	reached = EvpgCheckpointPosition(checkpoint, &consumer);
	if (reached < stable)
		return apply_next_events(&consumer, projection, checkpoint, stable, next);
	if (reached > consumer.checkpoint)
		EvpgCheckpointAdvanceLazily(checkpoint, &consumer, reached, 0, next);
	return false;
}

/*
 * EvpgAsyncApplyBatch
 *		Applies the next batch of an asynchronous projection, in the current
 *		transaction, which the caller commits at once.  Returns true if there is more to
 *		be done now; lowers *next to the time at which the projection is due again.
 *		Does nothing if another session owns the consumer.  Errors of user code are
 *		written down, not thrown.
 */
bool
EvpgAsyncApplyBatch(const char *name, TimestampTz *next)
{
	EvpgScope	scope;
	bool		more;

	if (!EvpgConsumerLock(name, false))
		return false;
	EvpgEnter(&scope, "evpg_run()");
	more = apply_owned(name, next);
	EvpgLeave(&scope);
	return more;
}

/* Returns whether a projection takes an event; a callback of EvpgCheckpointHasPassed. */
static bool
projection_takes(void *arg, const EvpgEvent *event)
{
	return EvpgProjectionTakes(arg, event);
}

/*
 * EvpgAsyncHasReached
 *		Returns whether an asynchronous projection has applied all that it takes up to a
 *		position.  The checkpoint need not be there: see checkpoint.c.  Error if there is
 *		no such projection.  The caller is inside EvpgEnter.
 */
bool
EvpgAsyncHasReached(const char *name, int64 position)
{
	EvpgProjection *projection = EvpgProjectionGet(name, false);
	EvpgLogFilter filter = {
		.aggregate_types = projection->aggregate_types,
		.event_types = projection->event_types,
		.tags = projection->tags
	};
	EvpgConsumer consumer;

	/*
	 * It was dropped, which is an error, or is inline by now, which the
	 * session need not know yet.
	 */
	if (!EvpgConsumerRead(name, &consumer))
	{
		AcceptInvalidationMessages();
		return EvpgProjectionGet(name, false)->mode == EVPG_MODE_INLINE;
	}
	return EvpgCheckpointHasPassed(&consumer, position, &filter, projection_takes, projection);
}
