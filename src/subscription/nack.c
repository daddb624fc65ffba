/*-------------------------------------------------------------------------
 *
 * nack.c
 *		The SQL function by which a consumer gives back an event that it cannot process.
 *
 * A consumer processes the events of a batch in order, so it has done what is before the
 * event: a nack acknowledges that.  An event that is to be tried again makes its partition
 * free, from that event on, when the pause is over; one that is parked holds the later
 * events of its stream, those that are in flight as well.  If it is parked because it was
 * tried too often, its partition becomes free, too: its consumer cannot know that, and
 * drops the rest of the partition.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/retry.h"
#include "base/wakeup.h"
#include "subscription/group.h"
#include "subscription/replay.h"
#include "usercode/guard.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(evpg_nack);

typedef enum NackAction
{
	NACK_RETRY,
	NACK_PARK,
	NACK_SKIP
} NackAction;

/* What a call asks for. */
typedef struct Nack
{
	const EvpgSubscription *subscription;
	int64		lease;
	int64		position;
	NackAction	action;
	int64		delay;			/* in microseconds; -1: the back-off */
	char	   *reason;			/* NULL: none */
	/* what was found */
	EvpgEvent	event;
	EvpgGroup	group;
	EvpgPartition *partition;
	int			attempts;		/* at the event */
	int64		acked_before;	/* by the lease */
	int64		handed_before;	/* under it */
} Nack;

static NackAction
get_action(const char *name)
{
	if (strcmp(name, "retry") == 0)
		return NACK_RETRY;
	if (strcmp(name, "park") == 0)
		return NACK_PARK;
	if (strcmp(name, "skip") == 0)
		return NACK_SKIP;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown action \"%s\"", name),
			 errhint("Use retry, park or skip.")));
}

/* Returns whether the event of the call is in flight under the lease; sets its partition. */
static bool
event_is_in_flight(Nack *nack)
{
	const EvpgLease *own = nack->group.own;

	if (nack->position <= own->acked || nack->position > own->handed ||
		!EvpgSubscriptionReadEvent(nack->subscription, nack->position, &nack->event))
		return false;
	nack->partition = &nack->group.partitions[EvpgLogPartOfKey(nack->event.aggregate_id, nack->subscription->partitions)];
	if (nack->partition->slot != own->slot || nack->position <= nack->partition->checkpoint)
		return false;
	if (own->replaying)
		nack->attempts = EvpgReplayAttempts(nack->subscription->name, nack->position);
	else
		nack->attempts = nack->partition->attempt_position == nack->position ? nack->partition->attempts : 1;
	return nack->attempts > 0;
}

/* Makes the partition of the event free after a position: what is in flight of it comes again. */
static void
release_partition(const Nack *nack, int64 checkpoint)
{
	if (nack->group.own->replaying)
		EvpgReplayUncount(nack->subscription, nack->partition->number, nack->position, nack->handed_before);
	nack->partition->checkpoint = checkpoint;
	nack->partition->slot = EVPG_NO_SLOT;
	EvpgPartitionWrite(nack->partition);
}

/* Makes the partition of the event free from the event on, but not before the pause is over. */
static void
retry_event(const Nack *nack)
{
	const EvpgSubscription *subscription = nack->subscription;
	EvpgPartition *partition = nack->partition;

	/* What is replayed has its attempts in its own row. */
	if (!nack->group.own->replaying)
	{
		partition->cautious_to = Max(partition->cautious_to, nack->position);
		partition->attempt_position = nack->position;
		partition->attempts = nack->attempts;
	}
	partition->retry_at = nack->delay >= 0 ? EvpgClockNow() + nack->delay :
		EvpgRetryAfterBackoff(nack->attempts, subscription->backoff, subscription->max_backoff);
	release_partition(nack, nack->position - 1);
	if (nack->delay == 0)
		EvpgWakeWaitersAtCommit(EVPG_WAIT_EVENTS);
}

/* Parks the event, and behind it the later ones of its stream that are in flight. */
static void
park_event(const Nack *nack, const char *reason)
{
	const char *name = nack->subscription->name;
	EvpgParkedStreams *streams = EvpgParkedStreamsRead(name, nack->acked_before);
	List	   *parkings = list_make1(EvpgParkingPlan(streams, &nack->event, nack->attempts, reason));
	EvpgLogFilter filter = nack->subscription->filter;
	EvpgLogScan *scan;
	EvpgEvent	event;

	filter.after = nack->position;
	filter.leaves_upcasting = true;
	filter.upto = nack->handed_before;
	filter.aggregate_types = list_make1(unconstify(char *, nack->event.aggregate_type));
	filter.aggregate_ids = list_make1(unconstify(char *, nack->event.aggregate_id));
	PushActiveSnapshot(GetLatestSnapshot());
	while (filter.after < filter.upto)
	{
		scan = EvpgLogScanAll(&filter);
		while (EvpgLogScanNext(scan, &event))
			if (EvpgParkedStreamsJudge(streams, &event) == EVPG_PARKED_BEHIND)
				parkings = lappend(parkings, EvpgParkingPlan(streams, &event, 0, NULL));
		filter.after = EvpgLogScanReached(scan);
		EvpgLogScanEnd(scan);
	}
	PopActiveSnapshot();
	EvpgParkedStreamInsert(name, parkings);
}

/* Does with the event what the call asks for; the lease is written. */
static void
put_event_back(const Nack *nack)
{
	const char *name = nack->subscription->name;

	switch (nack->action)
	{
		case NACK_RETRY:
			if (nack->attempts < nack->subscription->max_attempts)
				retry_event(nack);
			else
			{
				park_event(nack, nack->reason != NULL ? nack->reason :
						   psprintf("it was given back in %d attempt%s", nack->attempts, nack->attempts == 1 ? "" : "s"));
				release_partition(nack, nack->position);
				EvpgWakeWaitersAtCommit(EVPG_WAIT_EVENTS);
			}
			break;
		case NACK_PARK:
			park_event(nack, nack->reason != NULL ? nack->reason : "it was parked by its consumer");
			break;
		case NACK_SKIP:
			EvpgParkedStreamSkip(name, &nack->event, nack->attempts,
								 nack->reason != NULL ? nack->reason : "it was skipped by its consumer");
			break;
	}
}

/* Writes the lease: all before the event is done, and nothing else of its partition is in flight if it is given back. */
static bool
write_lease(Nack *nack)
{
	EvpgLease  *own = nack->group.own;

	nack->acked_before = own->acked;
	nack->handed_before = own->handed;
	/* No other partition has an event at this position. */
	own->acked = nack->position;
	if (nack->action == NACK_RETRY && nack->group.held == 1)
		own->handed = own->acked;
	EvpgLeaseRenew(own, nack->group.now, nack->subscription->lease_time);
	return EvpgLeaseTryWrite(own, true);
}

/* Gives back the event of the call; returns false if the lease is lost. */
static bool
give_back(Nack *nack)
{
	const EvpgLease *lease;

	do
	{
		lease = EvpgLeaseFind(nack->subscription->name, nack->lease);
		if (lease == NULL)
			return false;
		EvpgGroupRead(&nack->group, nack->subscription, lease->consumer);
		if (nack->group.own == NULL || nack->group.own->lease != nack->lease)
			return false;
		if (!event_is_in_flight(nack))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("no event at position " INT64_FORMAT " of subscription \"%s\" is in flight under this lease",
							nack->position, nack->subscription->name),
					 errdetail("Events up to position " INT64_FORMAT " are acknowledged, and events up to " INT64_FORMAT
							   " were handed out.", nack->group.own->acked, nack->group.own->handed)));
	} while (!write_lease(nack));
	if (nack->group.own->replaying)
		EvpgReplayForget(nack->subscription, nack->group.own->slot, nack->acked_before,
						 nack->position - 1, true);
	put_event_back(nack);
	return true;
}

/*
 * evpg_nack(subscription, lease, event_position, action, delay, reason)
 *		Acknowledges the events before one, and gives that back, to be tried again, parked or
 *		skipped.  Returns false if the lease is lost.
 */
Datum
evpg_nack(PG_FUNCTION_ARGS)
{
	enum
	{
		ARG_SUBSCRIPTION, ARG_LEASE, ARG_POSITION, ARG_ACTION, ARG_DELAY, ARG_REASON
	};
	char	   *name = EvpgArgName(fcinfo, ARG_SUBSCRIPTION, "subscription name");
	Nack		nack = {
		.position = EvpgArgBigint(fcinfo, ARG_POSITION, "event_position"),
		.action = get_action(EvpgArgText(fcinfo, ARG_ACTION, "action")),
		.delay = PG_ARGISNULL(ARG_DELAY) ? -1 : EvpgSubscriptionTime(fcinfo, ARG_DELAY, "delay", 0),
		.reason = PG_ARGISNULL(ARG_REASON) ? NULL : EvpgArgText(fcinfo, ARG_REASON, "reason")
	};
	bool		found;
	EvpgScope	scope;

	EvpgArgRefuseNull(fcinfo, ARG_LEASE, "lease");
	nack.lease = PG_GETARG_INT64(ARG_LEASE);
	if (nack.delay >= 0 && nack.action != NACK_RETRY)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("delay is for action retry")));
	EvpgRefuseInProjection("give back events");
	EvpgSubscriptionRequireReadCommitted("evpg_nack()");
	EvpgEnter(&scope, "evpg_nack()");
	(void) EvpgSubscriptionGet(name, false);
	(void) EvpgSubscriptionLock(name, true);
	nack.subscription = EvpgSubscriptionGet(name, false);
	found = give_back(&nack);
	EvpgLeave(&scope);
	PG_RETURN_BOOL(found);
}
