/*-------------------------------------------------------------------------
 *
 * partition.h
 *		The partitions of a subscription.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_PARTITION_H
#define EVPG_PARTITION_H

#include "access/htup.h"
#include "datatype/timestamp.h"

#define EVPG_NO_SLOT (-1)

/* A row of evpg.subscription_partition. */
typedef struct EvpgPartition
{
	int			number;
	int			slot;			/* of the lease that holds it, or EVPG_NO_SLOT */
	int64		checkpoint;		/* done up to here, or to where that lease is */
	int64		replay_to;		/* up to here only parked events are handed
								 * out; 0: none */
	int64		cautious_to;	/* up to here one event at a time */
	int64		attempt_position;	/* whose attempts are counted; 0: none */
	int			attempts;
	TimestampTz retry_at;		/* not before; 0: at once */
	HeapTuple	row;			/* as it was read */
} EvpgPartition;

extern void EvpgPartitionCreate(const char *subscription, int partitions, int64 checkpoint);
extern EvpgPartition *EvpgPartitionRead(const char *subscription, int partitions);
extern bool EvpgPartitionIsFree(const EvpgPartition *partition);
extern bool EvpgPartitionTryWrite(const EvpgPartition *partition);
extern void EvpgPartitionWrite(const EvpgPartition *partition);

#endif							/* EVPG_PARTITION_H */
