/*-------------------------------------------------------------------------
 *
 * group.c
 *		The consumers of a subscription, and which partitions each holds.
 *
 * A consumer that fetches looks at the leases of all consumers and at the partitions,
 * and changes what is not right: it gives consumers that have let their lease run out
 * no place any more, gives up partitions beyond its share, and takes free ones up to
 * it.  The shares of all add up to all partitions, so that each has one that counts the
 * same consumers.  No session waits for another: whatever another transaction has
 * locked is left as it is, for the next fetch.  So a transaction that fetches, works and
 * acknowledges keeps its partitions, however long it takes.
 *
 * The order of writing is the guard: a transaction writes the row of the lease before
 * those of the partitions that it holds, and only if the row is still as it was read, so
 * that what it has read of these partitions is right as well.  Partitions move only
 * while nothing that was handed out from them waits to be acknowledged, except when
 * their lease has run out.
 *
 * A lease has one position up to which all of its partitions are done, and one up to
 * which they were handed out: so a batch writes one row.  A partition that is further
 * has a checkpoint above.  When a partition moves, its checkpoint is written.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/clock.h"
#include "base/wakeup.h"
#include "subscription/group.h"

/* Reads the leases and partitions of a subscription as they are now; both live in CurrentMemoryContext. */
void
EvpgGroupRead(EvpgGroup *group, const EvpgSubscription *subscription, const char *consumer)
{
	ListCell   *cell;

	group->subscription = subscription;
	group->consumer = consumer;
	group->now = EvpgClockNow();
	group->own = NULL;
	group->held = 0;
	/* Leases first: see above. */
	group->leases = EvpgLeaseList(subscription->name);
	group->partitions = EvpgPartitionRead(subscription->name, subscription->partitions);
	foreach(cell, group->leases)
	{
		EvpgLease  *lease = lfirst(cell);

		if (lease->consumer != NULL && strcmp(lease->consumer, consumer) == 0)
			group->own = lease;
	}
	for (int i = 0; group->own != NULL && i < subscription->partitions; i++)
		group->held += group->partitions[i].slot == group->own->slot;
}

/* Returns the lease that holds a partition; NULL if it is free. */
static EvpgLease *
get_holder(const EvpgGroup *group, const EvpgPartition *partition)
{
	ListCell   *cell;

	if (partition->slot == EVPG_NO_SLOT)
		return NULL;
	foreach(cell, group->leases)
	{
		EvpgLease  *lease = lfirst(cell);

		if (lease->slot == partition->slot)
			return lease->consumer != NULL ? lease : NULL;
	}
	return NULL;
}

/*
 * Returns whether the positions of a lease are those of a partition that it holds: while it
 * hands out parked events again, only of the partitions that have some.
 */
static bool
lease_counts(const EvpgLease *lease, const EvpgPartition *partition)
{
	return lease->replaying == (partition->replay_to != 0);
}

/* Returns the position up to which the events of a partition are done that a lease holds. */
static int64
get_checkpoint(const EvpgLease *lease, const EvpgPartition *partition)
{
	int64		checkpoint = partition->checkpoint;

	if (!lease_counts(lease, partition))
		return checkpoint;
	checkpoint = Max(checkpoint, lease->acked);

	/*
	 * Parked events of another partition may lie behind those that this one
	 * has handed out at all.
	 */
	return lease->replaying ? Min(checkpoint, partition->replay_to) : checkpoint;
}

/* Returns the position up to which the events of a partition are done. */
int64
EvpgGroupCheckpoint(const EvpgGroup *group, const EvpgPartition *partition)
{
	const EvpgLease *holder = get_holder(group, partition);

	return holder == NULL ? partition->checkpoint : get_checkpoint(holder, partition);
}

/* Returns whether a lease of another consumer has run out. */
static bool
has_run_out(const EvpgGroup *group, const EvpgLease *lease)
{
	return lease->consumer != NULL && lease != group->own &&
		EvpgLeaseIsOver(lease, group->now, group->subscription->lease_time);
}

/*
 * Returns how many partitions the consumer should hold: as many as each other, and the
 * first ones, in order of their slots, one more.
 */
static int
compute_share(const EvpgGroup *group)
{
	int			consumers = 0;
	int			before = 0;
	int			partitions = group->subscription->partitions;
	ListCell   *cell;

	foreach(cell, group->leases)
	{
		const EvpgLease *lease = lfirst(cell);

		if (lease->consumer == NULL)
			continue;
		consumers++;
		before += lease->slot < group->own->slot;
	}
	return partitions / consumers + (before < partitions % consumers);
}

/* Returns whether a partition can be taken. */
static bool
is_free(const EvpgGroup *group, const EvpgPartition *partition)
{
	return get_holder(group, partition) == NULL && partition->retry_at <= group->now;
}

/* Returns whether the consumer can take or give up partitions: first it is done with what it has in flight. */
static bool
can_move(const EvpgGroup *group)
{
	return !EvpgLeaseInFlight(group->own) && !group->own->replaying;
}

/*
 * EvpgGroupWantsChange
 *		Returns whether something of the group, which the consumer has joined, should be
 *		changed by it, and can be now: what another transaction has locked is left to a later
 *		fetch, so that fetches write nothing meanwhile.
 */
bool
EvpgGroupWantsChange(const EvpgGroup *group)
{
	int			share = compute_share(group);
	ListCell   *cell;

	/* From then on others may take it: it is renewed before it is used. */
	if (EvpgLeaseIsOver(group->own, group->now, group->subscription->lease_time))
		return true;
	foreach(cell, group->leases)
		if (has_run_out(group, lfirst(cell)) && EvpgLeaseIsFree(lfirst(cell)))
		return true;
	if (!can_move(group))
		return false;
	if (group->held > share)
		return true;
	for (int i = 0; group->held < share && i < group->subscription->partitions; i++)
		if (is_free(group, &group->partitions[i]) && EvpgPartitionIsFree(&group->partitions[i]))
			return true;
	return false;
}

/*
 * Frees a partition of a lease: what was handed out and not acknowledged is handed out one by
 * one; parked events that were handed out again have their attempts in their own rows.
 */
static void
free_partition(const EvpgLease *lease, EvpgPartition *partition)
{
	partition->checkpoint = get_checkpoint(lease, partition);
	if (EvpgLeaseInFlight(lease) && !lease->replaying && lease_counts(lease, partition))
		partition->cautious_to = Max(partition->cautious_to, lease->handed);
	partition->slot = EVPG_NO_SLOT;
	EvpgPartitionWrite(partition);
}

/* Ends a lease and frees its partitions; returns false if its row has changed, or is locked and it may not wait. */
static bool
end_lease(EvpgGroup *group, const EvpgLease *lease, bool wait)
{
	EvpgLease	ended = *lease;

	ended.consumer = NULL;
	ended.lease = ended.acked = ended.handed = 0;
	ended.replaying = false;
	if (!(wait ? EvpgLeaseTryWrite(&ended, true) : EvpgLeaseTryTake(&ended)))
		return false;
	for (int i = 0; i < group->subscription->partitions; i++)
		if (group->partitions[i].slot == lease->slot)
			free_partition(lease, &group->partitions[i]);
	EvpgWakeWaitersAtCommit(EVPG_WAIT_EVENTS);
	return true;
}

/* Reads the group anew after this transaction has changed it. */
static void
read_again(EvpgGroup *group)
{
	EvpgGroupRead(group, group->subscription, group->consumer);
}

/* Ends the leases that have run out, as far as no other transaction has locked them. */
static void
end_leases(EvpgGroup *group)
{
	ListCell   *cell;
	bool		any = false;

	foreach(cell, group->leases)
		if (has_run_out(group, lfirst(cell)))
		any |= end_lease(group, lfirst(cell), false);
	if (any)
		read_again(group);
}

/* Writes the checkpoints of the partitions of the consumer, so that the positions of its lease may go back. */
static void
write_checkpoints(EvpgGroup *group)
{
	for (int i = 0; i < group->subscription->partitions; i++)
	{
		EvpgPartition *partition = &group->partitions[i];

		if (partition->slot != group->own->slot || partition->checkpoint >= get_checkpoint(group->own, partition))
			continue;
		partition->checkpoint = get_checkpoint(group->own, partition);
		EvpgPartitionWrite(partition);
	}
}

/* Moves the positions of the lease to a checkpoint of one of its partitions. */
static void
move_back(EvpgGroup *group, int64 checkpoint)
{
	group->own->acked = group->own->handed = checkpoint;
	if (!EvpgLeaseTryWrite(group->own, true))
		elog(ERROR, "lease of subscription \"%s\" was changed by another transaction", group->subscription->name);
}

/*
 * EvpgGroupSetPositions
 *		Sets the positions of the lease to the lowest checkpoint of its partitions, of which
 *		none is in flight; with replaying, of those that hand out parked events again, and
 *		nothing else is handed out from then on.  The checkpoints, and the lease, are written
 *		by this transaction before.  Reads the group anew.
 */
void
EvpgGroupSetPositions(EvpgGroup *group, bool replaying)
{
	int64		lowest = PG_INT64_MAX;

	for (int i = 0; i < group->subscription->partitions; i++)
	{
		const EvpgPartition *partition = &group->partitions[i];

		if (partition->slot == group->own->slot && replaying == (partition->replay_to != 0))
			lowest = Min(lowest, partition->checkpoint);
	}
	group->own->replaying = replaying;
	move_back(group, lowest == PG_INT64_MAX ? 0 : lowest);
	read_again(group);
}

/* Takes free partitions up to the share of the consumer. */
static void
take_partitions(EvpgGroup *group)
{
	int			share = compute_share(group);
	int64		lowest = PG_INT64_MAX;
	bool		first = (group->held == 0);

	for (int i = 0; i < group->subscription->partitions && group->held < share; i++)
	{
		EvpgPartition partition = group->partitions[i];

		if (!is_free(group, &partition))
			continue;
		partition.slot = group->own->slot;
		partition.retry_at = 0;
		if (!EvpgPartitionTryWrite(&partition))
			continue;
		group->held++;
		lowest = Min(lowest, partition.checkpoint);
	}
	if (lowest == PG_INT64_MAX)
		return;
	if (!first && lowest < group->own->acked)
		write_checkpoints(group);
	if (first || lowest < group->own->acked)
		move_back(group, lowest);
	read_again(group);
}

/* Gives up the partitions beyond the share of the consumer. */
static void
give_up_partitions(EvpgGroup *group)
{
	int			share = compute_share(group);
	bool		any = false;

	for (int i = group->subscription->partitions - 1; i >= 0 && group->held > share; i--)
		if (group->partitions[i].slot == group->own->slot)
		{
			free_partition(group->own, &group->partitions[i]);
			group->held--;
			any = true;
		}
	if (any)
	{
		EvpgWakeWaitersAtCommit(EVPG_WAIT_EVENTS);
		read_again(group);
	}
}

/* Lets what was handed out under the lease of the consumer before, and not acknowledged, be handed out one by one. */
static void
expect_redelivery(EvpgGroup *group, int64 handed)
{
	for (int i = 0; i < group->subscription->partitions; i++)
	{
		EvpgPartition *partition = &group->partitions[i];

		if (partition->slot != group->own->slot || partition->cautious_to >= handed || !lease_counts(group->own, partition))
			continue;
		partition->cautious_to = handed;
		EvpgPartitionWrite(partition);
	}
	read_again(group);
}

/*
 * EvpgGroupChange
 *		Renews the lease of the consumer, under a new number if asked to, and changes of the
 *		group what should be changed by it; reads the group anew.  With a new number what is
 *		in flight is going to be handed out again.  Returns false, and has changed nothing,
 *		if another transaction has locked the lease, or has changed it since it was read.
 */
bool
EvpgGroupChange(EvpgGroup *group, bool new_lease)
{
	EvpgLease  *own = group->own;
	int64		handed = own->handed;
	bool		again = new_lease && EvpgLeaseInFlight(own);

	if (new_lease)
		own->lease = EvpgLeaseNewNumber(own->slot);
	if (again)
		own->handed = own->acked;
	EvpgLeaseRenew(own, group->now, group->subscription->lease_time);
	if (!EvpgLeaseTryTake(own))
		return false;
	read_again(group);
	/* Parked events have their attempts in their own rows. */
	if (again && !group->own->replaying)
		expect_redelivery(group, handed);
	end_leases(group);
	if (can_move(group))
	{
		give_up_partitions(group);
		take_partitions(group);
	}
	return true;
}

/*
 * EvpgGroupRelease
 *		Ends the lease of the consumer; returns false, and has changed nothing, if it was
 *		changed since it was read.  Waits for a transaction that has locked it.
 */
bool
EvpgGroupRelease(EvpgGroup *group)
{
	return end_lease(group, group->own, true);
}
