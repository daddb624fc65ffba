/*-------------------------------------------------------------------------
 *
 * replay.c
 *		Handing out parked events again, in order, before newer ones of their partitions.
 *
 * evpg_replay_parked marks rows as due.  From then on the consumer that holds their
 * partition is handed out nothing else.  When nothing is in flight its next fetch lets the
 * partition go back to the first of them (replay_to is where it has been), and the lease
 * with it, until they are all acknowledged.  So they come before all newer events, have
 * positions above what the lease has acknowledged, like other events, and are acknowledged,
 * given back and counted like them.
 *
 * A row that a replay includes is marked (replaying), and deleted when it is acknowledged.
 * One that becomes due meanwhile waits for the next replay.  Its attempts are counted anew,
 * in the row: what the partition says of attempts is about the events where it has been.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/statement.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "subscription/announce.h"
#include "subscription/replay.h"
#include "utils/builtins.h"

static EvpgStatement mark_due = {
	.text = "UPDATE evpg.parked_event SET due = true, attempts = 0"
	" WHERE parked_event_id IN (SELECT p.parked_event_id FROM evpg.parked_event p"
	" WHERE p.name = $1 AND p.skip_reason IS NULL AND NOT p.due AND ($3 IS NULL OR p.key = $3)"
	" ORDER BY p.position LIMIT $2)",
	.types = {TEXTOID, INT8OID, TEXTOID}
};

/*
 * EvpgReplayRequest
 *		Marks the first parked events as due, at most so many (-1: all), of one stream unless
 *		key is NULL; returns their number.  Their attempts begin anew.  The caller owns the
 *		consumer.
 */
int64
EvpgReplayRequest(const char *subscription, int64 max_count, const char *key)
{
	Datum		values[3] = {CStringGetTextDatum(subscription), Int64GetDatum(max_count)};
	char		nulls[3] = {' ', max_count < 0 ? 'n' : ' ', ' '};
	int64		count;

	EvpgParameterText(values, nulls, 2, key);
	count = (int64) EvpgStatementExecute(&mark_due, values, nulls);
	EvpgWakeWaitersAtCommit(EVPG_WAIT_EVENTS);
	if (count > 0)
		EvpgAnnounceAtCommit(subscription);
	return count;
}

/* Returns the partition that the consumer holds and a parked event belongs to; NULL if it holds another one. */
static EvpgPartition *
get_own_partition(const EvpgGroup *group, const EvpgParkedRow *row)
{
	EvpgPartition *partition =
	&group->partitions[EvpgParkedStreamPartition(row->key, group->subscription->partitions)];

	return partition->slot == group->own->slot ? partition : NULL;
}

/*
 * Returns whether a parked event makes its partition, which the consumer holds, go back
 * when nothing is in flight: one behind what was handed out; others are still to come.
 */
static bool
starts_replay(const EvpgGroup *group, const EvpgParkedRow *row)
{
	EvpgPartition *partition;

	if (!row->due || row->key == NULL)
		return false;
	partition = get_own_partition(group, row);
	return partition != NULL && partition->replay_to == 0 &&
		row->position <= Max(partition->checkpoint, group->own->handed);
}

/*
 * EvpgReplayIsDue
 *		Returns whether a replay begins when nothing is in flight any more.  Until then
 *		nothing else may be handed out: it could be a later event of the same stream.
 */
bool
EvpgReplayIsDue(const EvpgGroup *group, const EvpgParkedStreams *streams)
{
	for (int i = 0; i < streams->rows; i++)
		if (starts_replay(group, &streams->by_position[i]))
			return true;
	return false;
}

/*
 * EvpgReplayIsWanted
 *		Returns whether parked events of the consumer's partitions are to be handed out, and
 *		can be, since nothing is in flight.
 */
bool
EvpgReplayIsWanted(const EvpgGroup *group, const EvpgParkedStreams *streams)
{
	if (group->own->replaying || EvpgLeaseInFlight(group->own))
		return false;
	for (int i = 0; i < group->subscription->partitions; i++)
		if (group->partitions[i].slot == group->own->slot && group->partitions[i].replay_to != 0)
			return true;
	return EvpgReplayIsDue(group, streams);
}

static EvpgStatement mark_replaying = {
	.text = "UPDATE evpg.parked_event SET replaying = true"
	" WHERE name = $1 AND position = $2 AND skip_reason IS NULL AND due",
	.types = {TEXTOID, INT8OID}
};

/* Marks a parked event that is due as one that is handed out. */
static void
mark_row(const char *subscription, int64 position)
{
	Datum		values[2] = {CStringGetTextDatum(subscription), Int64GetDatum(position)};

	EvpgStatementExecute(&mark_replaying, values, NULL);
}

/*
 * EvpgReplayBegin
 *		Lets the partitions of the consumer go back to their first parked events that are
 *		due.  The lease is written by this transaction, here and below; the group is read
 *		anew.
 */
void
EvpgReplayBegin(EvpgGroup *group, const EvpgParkedStreams *streams)
{
	int			partitions = group->subscription->partitions;
	int64	   *first = palloc0(sizeof(int64) * partitions);

	for (int i = 0; i < streams->rows; i++)
	{
		const EvpgParkedRow *row = &streams->by_position[i];
		int			number;

		if (!starts_replay(group, row))
			continue;
		number = get_own_partition(group, row)->number;
		if (first[number] == 0)
			first[number] = row->position;
		mark_row(group->subscription->name, row->position);
	}
	for (int i = 0; i < partitions; i++)
	{
		EvpgPartition *partition = &group->partitions[i];

		if (partition->slot != group->own->slot)
			continue;
		partition->checkpoint = EvpgGroupCheckpoint(group, partition);
		if (first[i] != 0)
		{
			partition->replay_to = partition->checkpoint;
			partition->checkpoint = first[i] - 1;
		}
		EvpgPartitionWrite(partition);
	}
	EvpgGroupSetPositions(group, true);
}

/*
 * EvpgReplayNext
 *		Reads the next parked event after a position that is to be handed out again, in
 *		CurrentMemoryContext; false if there is none.
 */
bool
EvpgReplayNext(const EvpgGroup *group, const EvpgParkedStreams *streams, int64 after, EvpgEvent *event)
{
	for (int i = 0; i < streams->rows; i++)
	{
		const EvpgParkedRow *row = &streams->by_position[i];
		const EvpgPartition *partition;

		if (!row->due || !row->replaying || row->position <= after)
			continue;
		partition = get_own_partition(group, row);
		if (partition != NULL && partition->replay_to != 0 && row->position > partition->checkpoint &&
			row->position <= partition->replay_to &&
			EvpgSubscriptionReadEvent(group->subscription, row->position, event))
			return true;
	}
	return false;
}

/* Lets the partitions of the consumer, whose parked events are all acknowledged, go on where they were. */
void
EvpgReplayEnd(EvpgGroup *group)
{
	for (int i = 0; i < group->subscription->partitions; i++)
	{
		EvpgPartition *partition = &group->partitions[i];

		if (partition->slot != group->own->slot)
			continue;
		partition->checkpoint = Max(partition->checkpoint, partition->replay_to);
		partition->replay_to = 0;
		EvpgPartitionWrite(partition);
	}
	EvpgGroupSetPositions(group, false);
}

/* Returns whether all parked events that were to be handed out again are acknowledged. */
bool
EvpgReplayIsOver(const EvpgGroup *group, const EvpgParkedStreams *streams)
{
	EvpgEvent	event;

	return group->own->replaying && !EvpgLeaseInFlight(group->own) &&
		!EvpgReplayNext(group, streams, group->own->handed, &event);
}

static EvpgStatement delete_replayed = {
	.text = "DELETE FROM evpg.parked_event e"
	" WHERE e.name = $1 AND e.skip_reason IS NULL AND e.due AND e.replaying = $6 AND e.position > $2 AND e.position <= $3"
	" AND evpg.partition_of(e.key, $5) IN (SELECT p.partition FROM evpg.subscription_partition p"
	" WHERE p.subscription = $1 AND p.slot = $4 AND p.checkpoint < e.position AND (p.replay_to IS NOT NULL) = $6"
	" AND COALESCE(p.replay_to >= e.position, true))",
	.types = {TEXTOID, INT8OID, INT8OID, INT4OID, INT4OID, BOOLOID}
};

/*
 * EvpgReplayForget
 *		Deletes the parked events between two positions that were due and belong to the lease
 *		of a slot: with replaying those that were handed out again and are acknowledged, else
 *		those that are handed out with others, since their partitions had not passed them.
 */
void
EvpgReplayForget(const EvpgSubscription *subscription, int slot, int64 after, int64 upto, bool replaying)
{
	Datum		values[6] = {
		CStringGetTextDatum(subscription->name),
		Int64GetDatum(after),
		Int64GetDatum(upto),
		Int32GetDatum(slot),
		Int32GetDatum(subscription->partitions),
		BoolGetDatum(replaying)
	};

	EvpgStatementExecute(&delete_replayed, values, NULL);
}

/* Executes a statement about the parked events between two positions, and a slot or a partition. */
static void
execute_between(EvpgStatement *statement, const EvpgSubscription *subscription, int number, int64 after, int64 upto)
{
	Datum		values[5] = {
		CStringGetTextDatum(subscription->name),
		Int64GetDatum(after),
		Int64GetDatum(upto),
		Int32GetDatum(number),
		Int32GetDatum(subscription->partitions)
	};

	EvpgStatementExecute(statement, values, NULL);
}

static EvpgStatement count_attempts = {
	.text = "UPDATE evpg.parked_event e SET attempts = attempts + 1"
	" WHERE e.name = $1 AND e.skip_reason IS NULL AND e.due AND e.replaying AND e.position > $2 AND e.position <= $3"
	" AND evpg.partition_of(e.key, $5) IN (SELECT p.partition FROM evpg.subscription_partition p"
	" WHERE p.subscription = $1 AND p.slot = $4 AND p.checkpoint < e.position AND p.replay_to >= e.position)",
	.types = {TEXTOID, INT8OID, INT8OID, INT4OID, INT4OID}
};

/* Counts an attempt at the parked events between two positions, which are handed out again under the lease of a slot. */
void
EvpgReplayCount(const EvpgSubscription *subscription, int slot, int64 after, int64 upto)
{
	execute_between(&count_attempts, subscription, slot, after, upto);
}

static EvpgStatement reset_attempts = {
	.text = "UPDATE evpg.parked_event SET attempts = 0"
	" WHERE name = $1 AND skip_reason IS NULL AND due AND replaying AND position > $2 AND position <= $3"
	" AND attempts > 0 AND evpg.partition_of(key, $5) = $4",
	.types = {TEXTOID, INT8OID, INT8OID, INT4OID, INT4OID}
};

/*
 * EvpgReplayUncount
 *		Takes back what is counted of the parked events of a partition between two positions,
 *		which were handed out again, and were not tried.
 */
void
EvpgReplayUncount(const EvpgSubscription *subscription, int partition, int64 after, int64 upto)
{
	execute_between(&reset_attempts, subscription, partition, after, upto);
}

/* Returns whether a parked event is in flight under the lease of the consumer that was tried before. */
bool
EvpgReplayTriesEvent(const EvpgGroup *group, const EvpgParkedStreams *streams)
{
	const EvpgLease *own = group->own;

	for (int i = 0; i < streams->rows; i++)
	{
		const EvpgParkedRow *row = &streams->by_position[i];

		if (row->replaying && row->attempts > 1 && row->position > own->acked && row->position <= own->handed &&
			get_own_partition(group, row) != NULL)
			return true;
	}
	return false;
}

static EvpgStatement select_attempts = {
	.text = "SELECT attempts FROM evpg.parked_event"
	" WHERE name = $1 AND position = $2 AND skip_reason IS NULL AND due AND replaying",
	.types = {TEXTOID, INT8OID}
};

/* Returns how often a parked event was handed out since it is due; 0 if it was not. */
int
EvpgReplayAttempts(const char *subscription, int64 position)
{
	Datum		values[2] = {CStringGetTextDatum(subscription), Int64GetDatum(position)};
	int			attempts = 0;

	if (EvpgStatementReadLatest(&select_attempts, values, NULL) > 0)
		attempts = (int) EvpgResultInt64(0, 1);
	EvpgStatementDone();
	return attempts;
}
