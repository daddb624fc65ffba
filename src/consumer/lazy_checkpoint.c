/*-------------------------------------------------------------------------
 *
 * lazy_checkpoint.c
 *		How far a session has looked for a consumer without finding anything, so
 *		that one of rare events does not write its checkpoint all the time, nor
 *		read the same foreign events again.
 *
 * What a session remembers counts only as long as the stored checkpoint is the
 * one it looked from, and nothing was registered since.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "base/catalog.h"
#include "base/subtransaction.h"
#include "consumer/lazy_checkpoint.h"
#include "log/fence.h"
#include "utils/hsearch.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* A checkpoint that moved over nothing but foreign events is written after so long, in milliseconds. */
#define MAX_UNWRITTEN_TIME 1000

static HTAB *looks = NULL;

/* What the session remembers of a consumer; lives as long as the session. */
EvpgLazyCheckpoint *
EvpgLazyCheckpointOf(const char *name)
{
	EvpgLazyCheckpoint *look;
	bool		found;

	if (looks == NULL)
	{
		HASHCTL		control = {.keysize = EVPG_MAX_NAME + 1, .entrysize = sizeof(EvpgLazyCheckpoint)};

		looks = hash_create("EvpgLazyCheckpoint", 16, &control, HASH_ELEM | HASH_STRINGS);
	}
	look = hash_search(looks, name, HASH_ENTER, &found);
	if (!found)
	{
		look->checkpoint = -1;
		look->written_at = 0;
	}
	return look;
}

/* Up to where there is nothing for the consumer, as the session knows. */
int64
EvpgLazyCheckpointFrom(const EvpgLazyCheckpoint *look, const EvpgConsumer *consumer)
{
	return look->checkpoint == consumer->checkpoint && look->generation == EvpgCatalogRegistryGeneration() ?
		look->looked : consumer->checkpoint;
}

/*
 * EvpgLazyCheckpointPassed
 *		Whether a consumer has got over a position: there are no events up to it that
 *		it takes and has not consumed, though its checkpoint need not say so.  filter
 *		narrows the search.
 */
bool
EvpgLazyCheckpointPassed(const EvpgConsumer *consumer, int64 position, EvpgLogFilter *filter,
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
	PushActiveSnapshot(GetLatestSnapshot());
	scan = EvpgLogScanAll(filter);
	while (!any && EvpgLogScanNext(scan, &event))
		any = takes(arg, &event);
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
	return !any;
}

/*
 * EvpgLazyCheckpointAdvance
 *		Keeps how far a batch came.  The caller owns the consumer.  Where the batch
 *		has found nothing, a worker may write that later: then *next is lowered to
 *		when.
 */
void
EvpgLazyCheckpointAdvance(EvpgLazyCheckpoint *look, const EvpgConsumer *consumer, int64 reached, int64 events, TimestampTz *next)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!EvpgInWorker() || events > 0 || reached - consumer->checkpoint > EVPG_MAX_UNWRITTEN ||
		consumer->retry_at != 0 || TimestampDifferenceExceeds(look->written_at, now, MAX_UNWRITTEN_TIME))
	{
		EvpgConsumerAdvance(consumer, reached, events);
		look->written_at = now;
		look->checkpoint = reached;
	}
	else
	{
		look->checkpoint = consumer->checkpoint;
		*next = Min(*next, TimestampTzPlusMilliseconds(look->written_at, MAX_UNWRITTEN_TIME));
	}
	look->looked = reached;
	look->generation = EvpgCatalogRegistryGeneration();
}
