/*-------------------------------------------------------------------------
 *
 * checkpoint.c
 *		How far a consumer has come: moving its checkpoint, and what a session
 *		remembers beyond it.
 *
 * A batch that finds events moves the checkpoint in its transaction.  A batch that
 * finds none need not: the session remembers how far it has scanned the log, so that
 * a consumer of rare events does not write its checkpoint all the time, nor read the
 * same foreign events again.  That holds only as long as the stored checkpoint is the
 * one from which the session has scanned, and nothing was registered since.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "base/catalog.h"
#include "base/locks.h"
#include "base/statement.h"
#include "base/subtransaction.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "consumer/checkpoint.h"
#include "log/fence.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* A checkpoint that moved over nothing but foreign events is written after so long, in milliseconds. */
#define MAX_UNWRITTEN_TIME 1000

static HTAB *checkpoints = NULL;	/* of EvpgCheckpoint, by name */

static EvpgStatement update_checkpoint = {
	.text = "UPDATE evpg.consumer"
	" SET checkpoint = $2, events_total = events_total + $3, proven = proven + $3, crashes = 0,"
	" updated_at = evpg.clock_timestamp(),"
	" attempts = CASE WHEN error_position > $2 THEN attempts ELSE 0 END,"
	" retry_at = CASE WHEN error_position > $2 THEN retry_at END,"
	" error_position = CASE WHEN error_position > $2 THEN error_position END"
	" WHERE name = $1",
	.types = {TEXTOID, INT8OID, INT8OID}
};

/*
 * EvpgCheckpointAdvance
 *		Moves the checkpoint of a consumer, which has consumed so many events; an error
 *		at or before it is over.  Wakes the sessions that wait for the consumer at
 *		commit.  The caller owns the consumer.
 */
void
EvpgCheckpointAdvance(const EvpgConsumer *consumer, int64 position, int64 events)
{
	Datum		values[3] = {CStringGetTextDatum(consumer->name), Int64GetDatum(position), Int64GetDatum(events)};

	EvpgStatementExecute(&update_checkpoint, values, NULL);
	EvpgWakeWaitersAtCommit(EvpgHashPair(consumer->name, ""));
}

static EvpgStatement restart_consumer = {
	.text = "UPDATE evpg.consumer"
	" SET checkpoint = $2, error_position = NULL, attempts = 0, retry_at = NULL, crashes = 0,"
	" status = CASE status WHEN 'stopped' THEN 'running' ELSE status END, updated_at = evpg.clock_timestamp()"
	" WHERE name = $1",
	.types = {TEXTOID, INT8OID}
};

/*
 * EvpgCheckpointRestart
 *		Sets the checkpoint of a consumer, forgets its error, and lets it run if it has
 *		stopped; if it is paused it stays so.  Wakes the sessions that wait for the
 *		consumer at commit.  The caller owns the consumer.
 */
void
EvpgCheckpointRestart(const char *name, int64 position)
{
	Datum		values[2] = {CStringGetTextDatum(name), Int64GetDatum(position)};

	EvpgStatementExecute(&restart_consumer, values, NULL);
	EvpgWakeWaitersAtCommit(EvpgHashPair(name, ""));
}

/*
 * EvpgCheckpointGet
 *		Returns what the session remembers of a consumer; makes an entry if it remembers
 *		nothing.  The entry lives as long as the session.
 */
EvpgCheckpoint *
EvpgCheckpointGet(const char *name)
{
	EvpgCheckpoint *checkpoint;
	bool		found;

	if (checkpoints == NULL)
	{
		HASHCTL		control = {.keysize = EVPG_MAX_NAME + 1, .entrysize = sizeof(EvpgCheckpoint)};

		checkpoints = hash_create("EvpgCheckpoint", 16, &control, HASH_ELEM | HASH_STRINGS);
	}
	checkpoint = hash_search(checkpoints, name, HASH_ENTER, &found);
	if (!found)
	{
		checkpoint->stored = -1;
		checkpoint->written_at = 0;
	}
	return checkpoint;
}

/* Returns the position up to which there is no event for the consumer that it has not consumed, as the session knows. */
int64
EvpgCheckpointPosition(const EvpgCheckpoint *checkpoint, const EvpgConsumer *consumer)
{
	return checkpoint->stored == consumer->checkpoint && checkpoint->generation == EvpgCatalogRegistryGeneration() ?
		checkpoint->scanned : consumer->checkpoint;
}

/*
 * EvpgCheckpointHasPassed
 *		Returns whether a consumer has passed a position: there are no events up to it
 *		that it takes and has not consumed, though its checkpoint need not be there.
 *		filter, which is changed, narrows the search; takes decides.  The caller need
 *		not own the consumer.  False also where that cannot be found out: on a standby,
 *		under REPEATABLE READ, or too far from the checkpoint.
 */
bool
EvpgCheckpointHasPassed(const EvpgConsumer *consumer, int64 position, EvpgLogFilter *filter,
						bool (*takes) (void *arg, const EvpgEvent *event), void *arg)
{
	EvpgLogScan *scan;
	EvpgEvent	event;
	bool		any = false;

	if (consumer->checkpoint >= position)
		return true;
	if (position - consumer->checkpoint > EVPG_MAX_UNWRITTEN || IsolationUsesXactSnapshot() || RecoveryInProgress() ||
		EvpgFenceStablePosition(false) < position)
		return false;
	filter->after = consumer->checkpoint;
	filter->upto = position;
	filter->leaves_upcasting = true;
	PushActiveSnapshot(GetLatestSnapshot());
	scan = EvpgLogScanAll(filter);
	while (!any && EvpgLogScanNext(scan, &event))
		any = takes(arg, &event);
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
	return !any;
}

/*
 * EvpgCheckpointAdvanceLazily
 *		Keeps how far a batch has come, and how many events it has consumed.  Moves the
 *		stored checkpoint, unless the batch has found nothing in a worker, which may do
 *		so later: then *next is lowered to when.  The caller owns the consumer.
 */
void
EvpgCheckpointAdvanceLazily(EvpgCheckpoint *checkpoint, const EvpgConsumer *consumer, int64 reached, int64 events,
							TimestampTz *next)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!EvpgInWorker() || events > 0 || reached - consumer->checkpoint > EVPG_MAX_UNWRITTEN ||
		consumer->retry_at != 0 || TimestampDifferenceExceeds(checkpoint->written_at, now, MAX_UNWRITTEN_TIME))
	{
		EvpgCheckpointAdvance(consumer, reached, events);
		checkpoint->written_at = now;
		checkpoint->stored = reached;
	}
	else
	{
		checkpoint->stored = consumer->checkpoint;
		*next = Min(*next, TimestampTzPlusMilliseconds(checkpoint->written_at, MAX_UNWRITTEN_TIME));
	}
	checkpoint->scanned = reached;
	checkpoint->generation = EvpgCatalogRegistryGeneration();
}
