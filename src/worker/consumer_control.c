/*-------------------------------------------------------------------------
 *
 * consumer_control.c
 *		The SQL functions that pause and resume a consumer, and skip an event.
 *
 * They own the consumer until the end of the transaction, so a worker that has it
 * gives it up first (consumer/worker_lock.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/locks.h"
#include "base/registration.h"
#include "base/statement.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "consumer/activation.h"
#include "consumer/checkpoint.h"
#include "consumer/consumer.h"
#include "consumer/parked_event.h"
#include "consumer/worker_lock.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "projection/projection.h"
#include "saga/saga_lock.h"
#include "subscription/announce.h"
#include "usercode/guard.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(evpg_pause_consumer);
PG_FUNCTION_INFO_V1(evpg_resume_consumer);
PG_FUNCTION_INFO_V1(evpg_skip_event);

/* Owns a consumer that a user has named, and reads it; error if there is none. */
static void
lock_named_consumer(const char *name, EvpgConsumer *consumer)
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
 * Waits until no instance of a saga reacts, and keeps it so until the end of the
 * transaction.  Not in a reaction of the saga itself, or of an inline one, which would wait for
 * others that may do the same.
 */
static void
exclude_reactions(const char *saga)
{
	LOCKTAG		tag;

	EvpgSetSagaLockTag(&tag, saga);
	if (!EvpgInsideSaga && !EvpgLockIsHeld(&tag, ShareLock))
		EvpgSagaLockOut(saga);
}

static EvpgStatement update_consumer_status = {
	.text = "UPDATE evpg.consumer"
	" SET status = CASE WHEN $2 THEN 'running' ELSE 'paused' END, attempts = 0, retry_at = NULL, crashes = 0,"
	" updated_at = evpg.clock_timestamp()"
	" WHERE name = $1"
	" AND (status <> CASE WHEN $2 THEN 'running' ELSE 'paused' END OR $2 AND retry_at IS NOT NULL)",
	.types = {TEXTOID, BOOLOID}
};

/* Lets the events and timers of a saga that have failed be tried at once.  Without retry_at they would count as begun. */
static EvpgStatement reset_saga_retries = {
	.text = "WITH e AS (UPDATE evpg.saga_event SET retry_at = evpg.clock_timestamp()"
	" WHERE saga = $1 AND retry_at > evpg.clock_timestamp() RETURNING 1),"
	" t AS (UPDATE evpg.timer SET retry_at = evpg.clock_timestamp()"
	" WHERE saga = $1 AND retry_at > evpg.clock_timestamp() RETURNING 1)"
	" SELECT FROM e UNION ALL SELECT FROM t",
	.types = {TEXTOID}
};

/* Lets the consumer of the first argument run, or pauses it; returns false if nothing has changed. */
static bool
set_consumer_running(FunctionCallInfo fcinfo, bool running, const char *writer)
{
	char	   *name = EvpgArgName(fcinfo, 0, "consumer name");
	Datum		values[2] = {CStringGetTextDatum(name), BoolGetDatum(running)};
	EvpgConsumer consumer;
	bool		changed;
	EvpgScope	scope;

	EvpgRefuseInProjection("change consumers");
	EvpgEnter(&scope, writer);
	lock_named_consumer(name, &consumer);
	if (!running && consumer.is_saga)
		exclude_reactions(name);
	changed = EvpgStatementExecute(&update_consumer_status, values, NULL) > 0;
	/* Sessions know of each inline saga whether it runs. */
	if (changed && consumer.is_saga)
		EvpgRegistrationInvalidate(EvpgCatalogGet()->saga);
	if (changed && consumer.is_subscription)
		EvpgRegistrationInvalidate(EvpgCatalogGet()->subscription);
	if (running && consumer.is_subscription)
		EvpgAnnounceAtCommit(name);
	if (running)
	{
		changed |= EvpgStatementExecute(&reset_saga_retries, values, NULL) > 0;
		EvpgActivationNotice();
	}
	EvpgWakeLauncherAtCommit();
	EvpgWakeConsumersAtEnd();
	EvpgWakeWaitersAtCommit(EvpgHashPair(name, ""));
	EvpgWakeWaitersAtCommit(EVPG_WAIT_EVENTS);
	EvpgLeave(&scope);
	return changed;
}

/*
 * evpg_pause_consumer(name)
 *		Keeps a consumer from consuming, a saga from reacting, and a subscription from handing
 *		out events; returns false if it is paused already.
 */
Datum
evpg_pause_consumer(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(set_consumer_running(fcinfo, false, "evpg_pause_consumer()"));
}

/*
 * evpg_resume_consumer(name)
 *		Lets a consumer go on that is paused or stopped, and tries what has failed at
 *		once; returns false if nothing has changed.
 */
Datum
evpg_resume_consumer(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(set_consumer_running(fcinfo, true, "evpg_resume_consumer()"));
}

static EvpgStatement skip_parked_event = {
	.text = "UPDATE evpg.parked_event"
	" SET skip_reason = $3, skipped_by = $4, skipped_at = evpg.clock_timestamp(), due = false, replaying = false"
	" WHERE name = $1 AND position = $2 AND skip_reason IS NULL",
	.types = {TEXTOID, INT8OID, TEXTOID, TEXTOID}
};

/*
 * evpg_skip_event(name, event_position, reason)
 *		Skips an event that the projection has not consumed yet, or that is parked, and
 *		lets the projection go on if it has stopped at the event; returns false if there
 *		is no such event.
 */
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
	lock_named_consumer(name, &consumer);
	if (consumer.is_saga)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("\"%s\" is a saga", name),
				 errhint("Use evpg_discard_dead_letter().")));
	if (position > EvpgFenceLastDrawn())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no event at position " INT64_FORMAT " yet", position)));
	skipped = EvpgStatementExecute(&skip_parked_event, values, NULL) > 0;
	if (!skipped && position > consumer.checkpoint)
	{
		EvpgParkedEventInsertSkipped(name, position, NULL, reason, 0, NULL);
		if (position == consumer.error_position)
			EvpgCheckpointRestart(name, consumer.checkpoint);
		EvpgWakeConsumersAtEnd();
		skipped = true;
	}
	EvpgLeave(&scope);
	PG_RETURN_BOOL(skipped);
}
