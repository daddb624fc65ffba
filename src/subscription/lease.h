/*-------------------------------------------------------------------------
 *
 * lease.h
 *		The leases of a subscription, one for each consumer.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_LEASE_H
#define EVPG_LEASE_H

#include "access/htup.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

/* How many consumers a subscription may have at a time: the slot is part of the number of a lease. */
#define EVPG_MAX_LEASES 4096

/* A lease is extended by so much at most, in microseconds, unless the lease time of the subscription is longer. */
#define EVPG_MAX_LEASE_EXTENSION USECS_PER_DAY

/* A row of evpg.subscription_lease. */
typedef struct EvpgLease
{
	int			slot;
	char	   *consumer;		/* NULL: the slot is free */
	int64		lease;			/* its number */
	int64		acked;			/* done up to here */
	int64		handed;			/* handed out up to here; at least acked */
	int64		delivered;		/* total of events handed out */
	TimestampTz until;
	bool		replaying;
	HeapTuple	row;			/* as it was read */
} EvpgLease;

/* Returns whether events are handed out and not acknowledged. */
static inline bool
EvpgLeaseInFlight(const EvpgLease *lease)
{
	return lease->handed > lease->acked;
}

/*
 * Returns whether the time of a lease is over: also if it lasts longer than any that was
 * written by now can, since the clock was moved back.
 */
static inline bool
EvpgLeaseIsOver(const EvpgLease *lease, TimestampTz now, int64 lease_time)
{
	return lease->until <= now || lease->until > now + Max(lease_time, EVPG_MAX_LEASE_EXTENSION) + USECS_PER_HOUR;
}

/* Lets a lease last for its time from now on, or as long as it was extended while anything is in flight. */
static inline void
EvpgLeaseRenew(EvpgLease *lease, TimestampTz now, int64 lease_time)
{
	if (!EvpgLeaseInFlight(lease) || lease->until < now + lease_time || EvpgLeaseIsOver(lease, now, lease_time))
		lease->until = now + lease_time;
}

extern int64 EvpgLeaseNewNumber(int slot);
extern List *EvpgLeaseList(const char *subscription);
extern EvpgLease *EvpgLeaseFind(const char *subscription, int64 number);
extern bool EvpgLeaseTryWrite(EvpgLease *lease, bool wait);
extern bool EvpgLeaseTryTake(EvpgLease *lease);
extern bool EvpgLeaseIsFree(const EvpgLease *lease);
extern bool EvpgLeaseCreate(const char *subscription, const char *consumer, TimestampTz until);

#endif							/* EVPG_LEASE_H */
