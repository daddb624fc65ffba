/*-------------------------------------------------------------------------
 *
 * fetch.c
 *		The SQL function by which a consumer gets the next events of a subscription.
 *
 * A fetch looks first and writes last: it reads the group and the log, and only if there
 * are events it writes the row of its lease, if it is still as it was read.  So one that
 * finds nothing writes nothing, but for its place in the group, which it renews after a
 * third of the lease time.  What is handed out is final and durable (rules 9 and 19).
 *
 * Events that were handed out before, and not acknowledged, are handed out one at a time,
 * and each attempt is counted: so the event at which a consumer dies is found, and parked
 * after max_attempts.
 *
 * A fetch that waits holds no lock on the subscription while it sleeps.  It returns once
 * it has written anything, since other consumers see that when it has committed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/statement.h"
#include "base/wakeup.h"
#include "consumer/activation.h"
#include "consumer/checkpoint.h"
#include "log/fence.h"
#include "portability/instr_time.h"
#include "subscription/replay.h"
#include "usercode/guard.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(evpg_fetch);

/* Limits of the arguments. */
#define MAX_EVENTS 100000

/* So many events are parked at most by one call; the next one goes on behind them. */
#define MAX_PARKINGS 10000

/* A wait keeps the snapshot of its statement, and VACUUM everything that is deleted meanwhile. */
#define MAX_WAIT USECS_PER_HOUR

/* That only events of others were passed is written down after so long, in microseconds. */
#define MAX_UNWRITTEN_TIME USECS_PER_SEC

/* Columns of evpg.delivery before those of evpg.event. */
enum
{
	DELIVERY_LEASE, DELIVERY_PARTITION, DELIVERY_ATTEMPT, DELIVERY_EVENT
};

#define DELIVERY_NATTS (DELIVERY_EVENT + EVPG_EVENT_NATTS)

/* What a call asks for. */
typedef struct Fetch
{
	FunctionCallInfo fcinfo;
	char	   *name;
	char	   *consumer;
	int			max_events;
	int64		max_bytes;
	int64		lease;			/* 0: none was given */
} Fetch;

/* What a scan of the log has found. */
typedef struct Handout
{
	const Fetch *fetch;
	const EvpgGroup *group;
	EvpgParkedStreams *streams;
	MemoryContext row;
	int64		lease;			/* under which it is handed out */
	int			events;
	int64		bytes;
	int64		last;			/* position of the last of them */
	int64		reached;		/* there are no more up to here */
	EvpgPartition *counted;		/* whose attempts were counted; NULL: none */
	List	   *parkings;		/* EvpgParking * */
	bool		any_due;		/* some of them are parked, and due */
} Handout;

/* Returns about how much memory an event takes that a client gets. */
static int64
get_event_bytes(const EvpgEvent *event)
{
	return (event->data == NULL ? 0 : VARSIZE_ANY_EXHDR(event->data)) +
		(event->metadata == NULL ? 0 : VARSIZE_ANY_EXHDR(event->metadata)) +
		(event->tags == NULL ? 0 : VARSIZE_ANY_EXHDR(event->tags)) + strlen(event->aggregate_id) + strlen(event->type);
}

/* Adds an event to the rows of the call. */
static void
return_delivery(Handout *handout, const EvpgEvent *event, int partition, int attempt)
{
	ReturnSetInfo *result = (ReturnSetInfo *) handout->fetch->fcinfo->resultinfo;
	MemoryContext old = MemoryContextSwitchTo(handout->row);
	Datum		values[DELIVERY_NATTS];
	bool		nulls[DELIVERY_NATTS];

	memset(nulls, false, sizeof(nulls));
	values[DELIVERY_LEASE] = Int64GetDatum(handout->lease);
	values[DELIVERY_PARTITION] = Int32GetDatum(partition);
	values[DELIVERY_ATTEMPT] = Int32GetDatum(attempt);
	EvpgEventValues(event, values + DELIVERY_EVENT, nulls + DELIVERY_EVENT);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	MemoryContextSwitchTo(old);
	MemoryContextReset(handout->row);
	handout->events++;
	handout->last = event->position;
}

/* Notes that an event is going to be parked; returns whether the scan goes on. */
static bool
plan_parking(Handout *handout, const EvpgEvent *event, int attempts, const char *reason)
{
	handout->parkings = lappend(handout->parkings, EvpgParkingPlan(handout->streams, event, attempts, reason));
	return list_length(handout->parkings) < MAX_PARKINGS;
}

/* Returns how often an event was handed out before, if it was; one that is parked and due begins anew. */
static int
count_attempts_before(const Handout *handout, const EvpgPartition *partition, const EvpgEvent *event, bool due)
{
	if (due)
		return EvpgParkedStreamsFind(handout->streams, event->position)->attempts;
	return partition->attempt_position == event->position ? partition->attempts : 1;
}

/*
 * Hands out an event alone that was handed out before, so many times, or plans to park it
 * after too many attempts, the last of which it was alone, so not the first one: in a batch
 * it may never have had its turn.  Returns whether the scan goes on.
 */
static bool
hand_out_alone(Handout *handout, EvpgPartition *partition, const EvpgEvent *event, int before)
{
	if (handout->events > 0)
		return false;
	if (before >= Max(handout->group->subscription->max_attempts, 2))
		return plan_parking(handout, event, before, psprintf("it was not acknowledged in %d attempts", before));
	if (!handout->group->own->replaying)
	{
		partition->attempt_position = event->position;
		partition->attempts = before + 1;
		handout->counted = partition;
	}
	return_delivery(handout, event, partition->number, before + 1);
	return false;
}

/* Deals with an event that the scan has found; returns whether the scan goes on. */
static bool
hand_out_event(Handout *handout, const EvpgEvent *event)
{
	const EvpgGroup *group = handout->group;
	EvpgPartition *partition =
	&group->partitions[EvpgLogPartOfKey(event->aggregate_id, group->subscription->partitions)];
	bool		due = false;
	int			before;
	int64		bytes;

	if (event->position <= partition->checkpoint)
		return true;
	switch (EvpgParkedStreamsJudge(handout->streams, event))
	{
		case EVPG_PARKED_ALREADY:
			return true;
		case EVPG_PARKED_BEHIND:
			return plan_parking(handout, event, 0, NULL);
		case EVPG_PARKED_DUE:
			handout->any_due = due = true;
			break;
		case EVPG_PARKED_NOT:
			break;
	}
	before = count_attempts_before(handout, partition, event, due);
	if (group->own->replaying ? before > 0 : event->position <= partition->cautious_to)
		return hand_out_alone(handout, partition, event, before);
	bytes = get_event_bytes(event);
	if (handout->events > 0 && handout->bytes + bytes > handout->fetch->max_bytes)
		return false;
	handout->bytes += bytes;
	return_delivery(handout, event, partition->number, 1);
	return handout->events < handout->fetch->max_events;
}

/* Hands out parked events again. */
static void
replay_parked_events(Handout *handout)
{
	int64		after = handout->group->own->handed;
	EvpgEvent	event;

	while (EvpgReplayNext(handout->group, handout->streams, after, &event))
	{
		EvpgUpcastEvent(&event);
		if (!hand_out_event(handout, &event))
			break;
		after = event.position;
	}
}

/* Scans the log for events of the partitions that the consumer holds, up to a position. */
static void
scan_for_handout(Handout *handout, int64 upto)
{
	const EvpgGroup *group = handout->group;
	int			partitions = group->subscription->partitions;
	bool	   *wanted = palloc(sizeof(bool) * partitions);
	EvpgLogFilter filter = group->subscription->filter;
	EvpgLogScan *scan;
	EvpgEvent	event;
	bool		more = true;

	for (int i = 0; i < partitions; i++)
		wanted[i] = group->partitions[i].slot == group->own->slot;
	filter.after = group->own->handed;
	filter.upto = upto;
	filter.parts = partitions;
	filter.wanted_parts = group->held == partitions ? NULL : wanted;
	if (filter.wanted_parts == NULL)
		filter.parts = 1;
	PushActiveSnapshot(GetTransactionSnapshot());
	scan = EvpgLogScanAll(&filter);
	while (more)
	{
		if (EvpgLogScanNext(scan, &event))
			more = hand_out_event(handout, &event);
		/* After many events that are not wanted a scan pauses. */
		else if (EvpgLogScanReached(scan) >= upto)
			break;
	}
	handout->reached = EvpgLogScanReached(scan);
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
}

/*
 * Returns whether nothing may be handed out before what is in flight is done: an event that
 * is tried again, which is alone, or one that delays a replay.
 */
static bool
awaits_ack(const EvpgGroup *group, const EvpgParkedStreams *streams)
{
	if (group->own->replaying)
		return EvpgReplayTriesEvent(group, streams);
	if (!EvpgLeaseInFlight(group->own))
		return false;
	for (int i = 0; i < group->subscription->partitions; i++)
		if (group->partitions[i].slot == group->own->slot &&
			group->partitions[i].cautious_to > EvpgGroupCheckpoint(group, &group->partitions[i]))
			return true;
	return EvpgReplayIsDue(group, streams);
}

/*
 * Writes what a scan has found: the lease, what is parked, and the attempt that is counted.
 * Returns false, and hands out nothing, if the lease was changed meanwhile.
 */
static bool
write_handout(const Handout *handout)
{
	const EvpgGroup *group = handout->group;
	EvpgLease  *own = group->own;
	int64		handed_before = own->handed;

	if (handout->events > 0)
		own->handed = handout->last;
	else if (!EvpgLeaseInFlight(own))
		own->acked = own->handed = Max(own->handed, handout->reached);
	own->lease = handout->lease;
	own->delivered += handout->events;
	EvpgLeaseRenew(own, group->now, group->subscription->lease_time);
	if (!EvpgLeaseTryWrite(own, false))
		return false;
	if (handout->parkings != NIL)
		EvpgParkedStreamInsert(group->subscription->name, handout->parkings);
	if (handout->any_due && own->replaying)
		EvpgReplayCount(group->subscription, own->slot, handed_before, own->handed);
	else if (handout->any_due)
		EvpgReplayForget(group->subscription, own->slot, handed_before, own->handed, false);
	if (handout->counted != NULL)
		EvpgPartitionWrite(handout->counted);
	return true;
}

/*
 * Returns whether a scan that has found nothing should be written down: if it has passed
 * many events of others, or some after a while, and before the lease runs out.
 */
static bool
should_write_down(const Handout *handout)
{
	const EvpgLease *own = handout->group->own;
	int64		lease_time = handout->group->subscription->lease_time;
	int64		since = handout->group->now - (own->until - lease_time);

	if (!EvpgLeaseInFlight(own) && handout->reached > own->handed &&
		(handout->reached - own->handed > EVPG_MAX_UNWRITTEN || since > MAX_UNWRITTEN_TIME))
		return true;
	return since > lease_time / 3;
}

/*
 * Hands out the next events to a consumer whose group is as it should be; returns whether
 * it has written anything.
 */
static bool
hand_out(const Fetch *fetch, EvpgGroup *group, EvpgParkedStreams *streams, bool wait)
{
	Handout		handout = {
		.fetch = fetch,
		.group = group,
		.streams = streams,
		.lease = group->own->lease,
		.reached = group->own->handed
	};
	bool		written = false;

	if (fetch->lease == 0)
		handout.lease = EvpgLeaseNewNumber(group->own->slot);
	if (group->held > 0 && !awaits_ack(group, streams))
	{
		int64		upto = EvpgFenceDurablePosition(wait);

		handout.row = AllocSetContextCreate(CurrentMemoryContext, "EvpgRow", ALLOCSET_DEFAULT_SIZES);
		if (group->own->replaying)
			replay_parked_events(&handout);

		/*
		 * The stable position may have gone back (fence.c), behind what is
		 * done.
		 */
		else if (upto > group->own->handed)
			scan_for_handout(&handout, upto);
		MemoryContextDelete(handout.row);
	}
	if (handout.events > 0 || handout.parkings != NIL || should_write_down(&handout))
	{
		written = write_handout(&handout);
		if (!written)
			tuplestore_clear(((ReturnSetInfo *) fetch->fcinfo->resultinfo)->setResult);
	}
	return written;
}

/* Raises VE024: the lease that a consumer has given is not its own any more. */
static void
raise_lease_lost(const Fetch *fetch)
{
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_LEASE_LOST),
			 errmsg("consumer \"%s\" of subscription \"%s\" has lost its lease", fetch->consumer, fetch->name),
			 errdetail("The lease has run out and its partitions were taken, the subscription was moved, "
					   "or another session has the name of the consumer."),
			 errhint("Fetch without a lease.")));
}

/* Fetches once, without waiting for events; returns whether anything was written, which ends a wait. */
static bool
fetch_once(const Fetch *fetch, bool wait)
{
	const EvpgSubscription *subscription = EvpgSubscriptionGet(fetch->name, false);
	EvpgGroup	group;
	EvpgParkedStreams *streams;
	bool		changed = false;

	if (!subscription->running)
		return false;
	EvpgGroupRead(&group, subscription, fetch->consumer);
	if (fetch->lease != 0 && (group.own == NULL || group.own->lease != fetch->lease))
		raise_lease_lost(fetch);
	if (group.own == NULL)
	{
		if (!EvpgLeaseCreate(fetch->name, fetch->consumer, group.now + subscription->lease_time))
			return false;
		EvpgGroupRead(&group, subscription, fetch->consumer);
		changed = true;
	}
	if (changed || (fetch->lease == 0 && EvpgLeaseInFlight(group.own)) || EvpgGroupWantsChange(&group))
	{
		if (!EvpgGroupChange(&group, fetch->lease == 0))
			return changed;
		changed = true;
	}
	streams = EvpgParkedStreamsRead(fetch->name, group.own->acked);
	/* The end of one may be followed by the next. */
	while (EvpgReplayIsWanted(&group, streams) || EvpgReplayIsOver(&group, streams))
	{
		if (!changed && !EvpgGroupChange(&group, fetch->lease == 0))
			return false;
		changed = true;
		if (group.own->replaying)
			EvpgReplayEnd(&group);
		else
			EvpgReplayBegin(&group, streams);
		streams = EvpgParkedStreamsRead(fetch->name, group.own->acked);
	}
	return hand_out(fetch, &group, streams, wait) || changed;
}

/* Fetches once under the lock of the subscription; returns whether a wait has come to its end. */
static bool
try_fetch(const Fetch *fetch, bool wait)
{
	EvpgScope	scope;
	bool		written = false;

	EvpgEnter(&scope, "evpg_fetch()");
	EvpgActivationRequire();
	(void) EvpgSubscriptionGet(fetch->name, false);
	/* A session that changes the subscription is not waited for. */
	if (EvpgSubscriptionLock(fetch->name, false))
	{
		written = fetch_once(fetch, wait);
		if (!written)
			EvpgSubscriptionUnlock(fetch->name);
	}
	EvpgLeave(&scope);
	return written;
}

/* Returns what is left of a wait, by the monotonic clock, in microseconds. */
static int64
compute_wait_left(instr_time started, int64 wait)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, started);
	return wait - (int64) INSTR_TIME_GET_MICROSEC(now);
}

/* Raises VE015 in a transaction that has appended: it keeps its events from being handed out. */
static void
refuse_wait_in_appender(const Fetch *fetch)
{
	if (EvpgFenceIsHeld())
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_WAIT_IN_WRITER),
				 errmsg("cannot wait for events of subscription \"%s\" in a transaction that has appended events",
						fetch->name),
				 errdetail("They are handed out when it has committed."),
				 errhint("Commit first, or fetch without waiting.")));
}

/* Fetches again and again until there are events, or the time is over. */
static void
fetch_and_wait(const Fetch *fetch, int64 wait)
{
	MemoryContext memory = AllocSetContextCreate(CurrentMemoryContext, "EvpgFetch", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(memory);
	instr_time	started;

	INSTR_TIME_SET_CURRENT(started);
	(void) EvpgWaitPrepare(EVPG_WAIT_EVENTS);
	PG_TRY();
	{
		int64		left;

		while (!try_fetch(fetch, false) && (left = compute_wait_left(started, wait)) > 0)
		{
			MemoryContextReset(memory);
			refuse_wait_in_appender(fetch);
			EvpgWaitSleep(EVPG_WAIT_EVENTS, left);
		}
	}
	PG_FINALLY();
	{
		EvpgWaitEnd();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(memory);
}

/*
 * evpg_fetch(subscription, consumer, max_events, max_bytes, wait, lease)
 *		Returns the next events of a subscription for a consumer, which then holds them under
 *		a lease.  Raises VE010 if there is no such subscription, VE024 if the lease that is
 *		given is lost, 55000 in a copy of a database, 25000 unless the isolation level is READ
 *		COMMITTED, and VE015 if it would wait in a transaction that has appended.
 */
Datum
evpg_fetch(PG_FUNCTION_ARGS)
{
	enum
	{
		ARG_SUBSCRIPTION, ARG_CONSUMER, ARG_MAX_EVENTS, ARG_MAX_BYTES, ARG_WAIT, ARG_LEASE
	};
	Fetch		fetch = {
		.fcinfo = fcinfo,
		.name = EvpgArgName(fcinfo, ARG_SUBSCRIPTION, "subscription name"),
		.consumer = EvpgArgName(fcinfo, ARG_CONSUMER, "consumer name"),
		.max_events = EvpgArgInt(fcinfo, ARG_MAX_EVENTS, "max_events", 1),
		.max_bytes = PG_ARGISNULL(ARG_MAX_BYTES) ? PG_INT64_MAX : EvpgArgInt(fcinfo, ARG_MAX_BYTES, "max_bytes", 1),
		.lease = PG_ARGISNULL(ARG_LEASE) ? 0 : EvpgArgBigintAtLeast(fcinfo, ARG_LEASE, "lease", 1)
	};
	int64		wait = EvpgSubscriptionTime(fcinfo, ARG_WAIT, "wait", 0);

	if (fetch.max_events > MAX_EVENTS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_events must be at most %d", MAX_EVENTS)));
	if (wait > MAX_WAIT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("wait must be at most one hour"),
				 errdetail("VACUUM keeps what is deleted while a statement waits."),
				 errhint("Fetch in a loop.")));
	EvpgRefuseInProjection("fetch events");
	EvpgSubscriptionRequireReadCommitted("evpg_fetch()");
	EvpgReturnSetBegin(fcinfo, EvpgCatalogGet()->delivery);
	if (wait > 0)
		fetch_and_wait(&fetch, wait);
	else
		(void) try_fetch(&fetch, true);
	PG_RETURN_NULL();
}
