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

extern int64 EvpgLeaseNewNumber(int slot);
extern List *EvpgLeaseList(const char *subscription);
extern EvpgLease *EvpgLeaseFind(const char *subscription, int64 number);
extern bool EvpgLeaseTryWrite(EvpgLease *lease, bool wait);
extern bool EvpgLeaseTryTake(EvpgLease *lease);
extern bool EvpgLeaseIsFree(const EvpgLease *lease);
extern bool EvpgLeaseCreate(const char *subscription, const char *consumer, TimestampTz until);

#endif							/* EVPG_LEASE_H */
