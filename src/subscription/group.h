/*-------------------------------------------------------------------------
 *
 * group.h
 *		The consumers of a subscription, and which partitions each holds.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_GROUP_H
#define EVPG_GROUP_H

#include "subscription/lease.h"
#include "subscription/partition.h"
#include "subscription/subscription.h"

/* A group, as one of its consumers sees it. */
typedef struct EvpgGroup
{
	const EvpgSubscription *subscription;
	const char *consumer;
	TimestampTz now;			/* when it was read */
	List	   *leases;			/* EvpgLease * */
	EvpgLease  *own;			/* of the consumer; NULL: it has none */
	EvpgPartition *partitions;
	int			held;			/* number of those that the consumer holds */
} EvpgGroup;

extern void EvpgGroupRead(EvpgGroup *group, const EvpgSubscription *subscription, const char *consumer);
extern int64 EvpgGroupCheckpoint(const EvpgGroup *group, const EvpgPartition *partition);
extern void EvpgGroupSetPositions(EvpgGroup *group, bool replaying);
extern bool EvpgGroupWantsChange(const EvpgGroup *group);
extern bool EvpgGroupChange(EvpgGroup *group, bool new_lease);
extern bool EvpgGroupRelease(EvpgGroup *group);

#endif							/* EVPG_GROUP_H */
