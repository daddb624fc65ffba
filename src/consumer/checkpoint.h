/*-------------------------------------------------------------------------
 *
 * checkpoint.h
 *		How far a consumer has come, as it is stored and as a session knows.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_CHECKPOINT_H
#define EVPG_CHECKPOINT_H

#include "base/arguments.h"
#include "consumer/consumer.h"
#include "log/event_log.h"

/* A checkpoint that moved over nothing but foreign events is written after so many positions. */
#define EVPG_MAX_UNWRITTEN 1000

/* What a session remembers of the checkpoint of a consumer. */
typedef struct EvpgCheckpoint
{
	char		name[EVPG_MAX_NAME + 1];	/* of the consumer */
	int64		stored;			/* the checkpoint, as it is stored */
	int64		scanned;		/* no event for the consumer is above stored
								 * and up to here */
	uint64		generation;		/* of the registry, when that was found */
	TimestampTz written_at;
} EvpgCheckpoint;

extern void EvpgCheckpointAdvance(const EvpgConsumer *consumer, int64 position, int64 events);
extern void EvpgCheckpointRestart(const char *name, int64 position);
extern EvpgCheckpoint *EvpgCheckpointGet(const char *name);
extern int64 EvpgCheckpointPosition(const EvpgCheckpoint *checkpoint, const EvpgConsumer *consumer);
extern bool EvpgCheckpointHasPassed(const EvpgConsumer *consumer, int64 position, EvpgLogFilter *filter,
									bool (*takes) (void *arg, const EvpgEvent *event), void *arg);
extern void EvpgCheckpointAdvanceLazily(EvpgCheckpoint *checkpoint, const EvpgConsumer *consumer, int64 reached,
										int64 events, TimestampTz *next);

#endif							/* EVPG_CHECKPOINT_H */
