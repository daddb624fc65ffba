/*-------------------------------------------------------------------------
 *
 * ack.c
 *		The SQL functions by which a consumer acknowledges what it was handed out, extends
 *		its lease, and ends it.
 *
 * A lease is its consumer's as long as no other has taken its partitions, also when its
 * time is over.  All of these return false when it is lost: what was handed out under it
 * is going to be handed out again, or was.  They wait for a transaction that has written
 * the row of the lease, which is one of the same consumer, or one that takes it away.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "subscription/replay.h"
#include "usercode/guard.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(evpg_ack);
PG_FUNCTION_INFO_V1(evpg_extend_lease);
PG_FUNCTION_INFO_V1(evpg_release_lease);

/* Arguments of all of them. */
enum
{
	ARG_SUBSCRIPTION, ARG_LEASE, ARG_OWN
};

/* Begins a call: checks its first arguments, and shares the lock of the subscription, which is returned. */
static const EvpgSubscription *
begin_call(FunctionCallInfo fcinfo, EvpgScope *scope, const char *function)
{
	char	   *name = EvpgArgName(fcinfo, ARG_SUBSCRIPTION, "subscription name");

	EvpgArgRefuseNull(fcinfo, ARG_LEASE, "lease");
	EvpgRefuseInProjection("acknowledge events");
	EvpgSubscriptionRequireReadCommitted(function);
	EvpgEnter(scope, function);
	(void) EvpgSubscriptionGet(name, false);
	(void) EvpgSubscriptionLock(name, true);
	return EvpgSubscriptionGet(name, false);
}

/* Raises an error about a position that was not handed out under a lease. */
static void
refuse_position(const EvpgSubscription *subscription, const EvpgLease *lease, int64 position)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("position " INT64_FORMAT " of subscription \"%s\" was not handed out under this lease",
					position, subscription->name),
			 errdetail("Its last event is at position " INT64_FORMAT ".", lease->handed)));
}

/*
 * evpg_ack(subscription, lease, up_to_position)
 *		Acknowledges all events up to a position that were handed out under a lease, and
 *		renews it; returns false if it is lost.  A position that was acknowledged before
 *		changes nothing.
 */
Datum
evpg_ack(PG_FUNCTION_ARGS)
{
	int64		position = EvpgArgBigint(fcinfo, ARG_OWN, "up_to_position");
	const EvpgSubscription *subscription;
	EvpgLease  *lease;
	int64		acked_before = 0;
	EvpgScope	scope;

	subscription = begin_call(fcinfo, &scope, "evpg_ack()");
	do
	{
		lease = EvpgLeaseFind(subscription->name, PG_GETARG_INT64(ARG_LEASE));
		if (lease == NULL)
			break;
		acked_before = lease->acked;
		if (position <= acked_before)
			break;
		if (position > lease->handed)
			refuse_position(subscription, lease, position);
		lease->acked = position;
		EvpgLeaseRenew(lease, EvpgClockNow(), subscription->lease_time);
	} while (!EvpgLeaseTryWrite(lease, true));
	if (lease != NULL && lease->replaying && lease->acked > acked_before)
		EvpgReplayForget(subscription, lease->slot, acked_before, lease->acked, true);
	EvpgLeave(&scope);
	PG_RETURN_BOOL(lease != NULL);
}

/*
 * evpg_extend_lease(subscription, lease, lease_time)
 *		Lets a lease last from now on for a time; returns false if it is lost.  The time is a
 *		day at most, or the lease time of the subscription if that is longer: a consumer that
 *		dies then keeps its partitions no longer.
 */
Datum
evpg_extend_lease(PG_FUNCTION_ARGS)
{
	int64		lease_time = PG_ARGISNULL(ARG_OWN) ? 0 : EvpgSubscriptionTime(fcinfo, ARG_OWN, "lease_time", 1000);
	const EvpgSubscription *subscription;
	EvpgLease  *lease;
	EvpgScope	scope;

	subscription = begin_call(fcinfo, &scope, "evpg_extend_lease()");
	if (lease_time > Max(EVPG_MAX_LEASE_EXTENSION, subscription->lease_time))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lease_time is out of range"),
				 errdetail("It must be at most one day, or the lease_time of the subscription."),
				 errhint("Extend the lease again before its time is over.")));
	do
	{
		lease = EvpgLeaseFind(subscription->name, PG_GETARG_INT64(ARG_LEASE));
		if (lease == NULL)
			break;
		lease->until = EvpgClockNow() + (lease_time != 0 ? lease_time : subscription->lease_time);
	} while (!EvpgLeaseTryWrite(lease, true));
	EvpgLeave(&scope);
	PG_RETURN_BOOL(lease != NULL);
}

/*
 * evpg_release_lease(subscription, lease)
 *		Ends a lease, so that other consumers get its partitions at once; returns false if
 *		it is lost.  What is in flight is handed out again.
 */
Datum
evpg_release_lease(PG_FUNCTION_ARGS)
{
	const EvpgSubscription *subscription;
	EvpgLease  *lease;
	EvpgGroup	group;
	EvpgScope	scope;

	subscription = begin_call(fcinfo, &scope, "evpg_release_lease()");
	do
	{
		lease = EvpgLeaseFind(subscription->name, PG_GETARG_INT64(ARG_LEASE));
		if (lease == NULL)
			break;
		EvpgGroupRead(&group, subscription, lease->consumer);
	} while (group.own == NULL || group.own->lease != lease->lease || !EvpgGroupRelease(&group));
	EvpgLeave(&scope);
	PG_RETURN_BOOL(lease != NULL);
}
