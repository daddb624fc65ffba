/*-------------------------------------------------------------------------
 *
 * failure.c
 *		What becomes of a due item that has failed: it is retried after a back-off that
 *		doubles each time, with some jitter, and in the end becomes a dead letter.
 *
 * Transient errors (40001, 40P01, 55P03, class 53, a worker that is cancelled) do
 * not count as attempts.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/clock.h"
#include "base/errors.h"
#include "base/locks.h"
#include "base/retry.h"
#include "base/subtransaction.h"
#include "base/testing.h"
#include "base/wakeup.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "saga/dead_letter.h"
#include "saga/failure.h"

/* A scheduled command may fail so often. */
#define MAX_ATTEMPTS 5

/* The pause after a transient error. */
#define TRANSIENT_PAUSE (USECS_PER_SEC / 2)

/* Returns the saga of an item; NULL for a scheduled command, or if it is not registered any more. */
static EvpgSaga *
get_item_saga(const EvpgDueItem *item)
{
	return item->saga == NULL ? NULL : EvpgSagaGet(item->saga, 0, true);
}

/* Returns how often an item may fail. */
int
EvpgFailureMaxAttempts(const EvpgDueItem *item)
{
	EvpgSaga   *saga = get_item_saga(item);

	return saga == NULL ? MAX_ATTEMPTS : saga->max_attempts;
}

/* Returns when an item is to be tried again after its attempts so far. */
static TimestampTz
compute_next_attempt(const EvpgDueItem *item)
{
	EvpgSaga   *saga = get_item_saga(item);

	return saga == NULL ? EvpgRetryAfterAttempts(item->attempts) :
		EvpgRetryAfterBackoff(item->attempts, saga->backoff, saga->max_backoff);
}

/* Returns when to try again what others are in the way of now. */
TimestampTz
EvpgFailureTransientUntil(void)
{
	return EvpgClockNow() + TRANSIENT_PAUSE;
}

/* Leaves an item for a short time later; the attempt that was counted was none.  An action of EvpgSubtransactionRun. */
static void
postpone_failed_item(void *arg)
{
	const EvpgDueItem *item = arg;

	EvpgDueItemPostpone(item, EvpgFailureTransientUntil(), item->attempts - 1);
}

/*
 * EvpgFailureGiveUp
 *		Makes an item a dead letter, and reports it in the server log.  Returns
 *		false if it is a timer that was moved or cancelled meanwhile: that is
 *		not given up.  The caller holds the lock of the item.
 */
bool
EvpgFailureGiveUp(const EvpgAttempt *attempt, const ErrorData *error)
{
	const EvpgDueItem *item = attempt->item;
	ErrorData	kept = *error;
	EvpgDeadLetter letter = {.item = item, .label = attempt->label, .command = attempt->command, .error = &kept};
	int64		dead_letter_id;

	/* A send was refused, and the saga has no answer to that. */
	if (kept.hint == NULL && item->saga != NULL && attempt->command != NULL && kept.sqlerrcode == EVPG_ERRCODE_REJECTED)
		kept.hint = "Register a rejection_handler, or let it handle this code.";
	dead_letter_id = EvpgDeadLetterWrite(&letter);
	if (dead_letter_id == 0)
		return false;
	/* evpg_wait() does not wait for what is behind it. */
	if (item->saga != NULL)
		EvpgWakeWaitersAtCommit(EvpgHashPair(item->saga, ""));
	EVPG_WAIT_POINT("saga_dead_lettered");
	ereport(EvpgReportLevel(),
			(item->saga == NULL ?
			 errmsg("scheduled command " INT64_FORMAT " of database \"%s\" has become dead letter " INT64_FORMAT,
					item->timer_id, get_database_name(MyDatabaseId), dead_letter_id) :
			 errmsg("saga \"%s\" of database \"%s\" has dead letter " INT64_FORMAT, item->saga,
					get_database_name(MyDatabaseId), dead_letter_id),
			 errdetail("The error has SQLSTATE %s; evpg.dead_letter has the rest.", unpack_sql_state(error->sqlerrcode)),
			 errhint("When the cause is gone, use evpg_retry_dead_letter(); or evpg_discard_dead_letter().")));
	return true;
}

/* Reports in the server log that the worker was cancelled in an item, for the first time in a row. */
static void
report_cancel(const EvpgDueItem *item)
{
	ereport(WARNING,
			(item->saga == NULL ?
			 errmsg("a worker was cancelled in scheduled command " INT64_FORMAT " of database \"%s\"", item->timer_id,
					get_database_name(MyDatabaseId)) :
			 errmsg("a worker was cancelled in a reaction of saga \"%s\" of database \"%s\"", item->saga,
					get_database_name(MyDatabaseId)),
			 errdetail("By pg_cancel_backend(), from another session or from the code itself."),
			 errhint("It is tried again, each time after a longer pause; evpg.%s counts the cancels.",
					 item->position == 0 ? "timer" : "saga_event")));
}

/* An item that has failed, and whether it became a dead letter. */
typedef struct ItemFailure
{
	const EvpgAttempt *attempt;
	const ErrorData *error;
	bool		dead;
} ItemFailure;

/* Postpones an item, retries it later, or gives it up; returns true if it is a dead letter. */
static bool
fail_item(const EvpgAttempt *attempt, const ErrorData *error)
{
	const EvpgDueItem *item = attempt->item;

	if (EvpgErrorIsForeignCancel(error))
	{
		if (EvpgDueItemPostponeCancelled(item) == 1)
			report_cancel(item);
		return false;
	}
	if (EvpgErrorIsTransient(error))
	{
		postpone_failed_item(unconstify(EvpgDueItem *, item));
		return false;
	}
	if (attempt->given_up || item->attempts >= EvpgFailureMaxAttempts(item))
		return EvpgFailureGiveUp(attempt, error);
	EvpgDueItemPostpone(item, compute_next_attempt(item), item->attempts);
	EVPG_WAIT_POINT("saga_put_off");
	return false;
}

static void
record_item_failure(void *arg)
{
	ItemFailure *failure = arg;

	failure->dead = fail_item(failure->attempt, failure->error);
}

/*
 * EvpgFailureSettle
 *		Records the failure of an item, in the transaction that has rolled its work
 *		back; true if it became a dead letter.
 *
 * Other sessions may be in the way of that, too: one that moves or cancels a timer
 * has its row, and then the failure is not one of the timer as it will be.
 */
bool
EvpgFailureSettle(const EvpgAttempt *attempt, const ErrorData *error)
{
	ItemFailure failure = {.attempt = attempt, .error = error};
	TimestampTz later = DT_NOEND;
	ErrorData  *hindrance = EvpgSubtransactionRun(record_item_failure, &failure);

	if (hindrance == NULL)
		return failure.dead;
	if (EvpgPostponeAfterError(hindrance, &later))
		hindrance = EvpgSubtransactionRun(postpone_failed_item, unconstify(EvpgDueItem *, attempt->item));
	if (hindrance != NULL && !EvpgPostponeAfterError(hindrance, &later))
		EvpgRethrowError(hindrance);
	return false;
}
