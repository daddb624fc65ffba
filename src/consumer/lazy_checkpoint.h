/*-------------------------------------------------------------------------
 *
 * lazy_checkpoint.h
 *		How far a session has looked for a consumer without finding anything.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_LAZY_CHECKPOINT_H
#define EVPG_LAZY_CHECKPOINT_H

#include "base/arguments.h"
#include "consumer/consumer.h"
#include "log/event_log.h"

/* A checkpoint that moved over nothing but foreign events is written after so many positions. */
#define EVPG_MAX_UNWRITTEN 1000

typedef struct EvpgLazyCheckpoint
{
	char		name[EVPG_MAX_NAME + 1];	/* of the consumer */
	int64		checkpoint;		/* as it is stored */
	int64		looked;			/* and how far the session has looked from
								 * there */
	uint64		generation;		/* of the registry, then */
	TimestampTz written_at;
} EvpgLazyCheckpoint;

extern EvpgLazyCheckpoint *EvpgLazyCheckpointOf(const char *name);
extern int64 EvpgLazyCheckpointFrom(const EvpgLazyCheckpoint *look, const EvpgConsumer *consumer);
extern bool EvpgLazyCheckpointPassed(const EvpgConsumer *consumer, int64 position, EvpgLogFilter *filter,
									 bool (*takes) (void *consumer, const EvpgEvent *event), void *arg);
extern void EvpgLazyCheckpointAdvance(EvpgLazyCheckpoint *look, const EvpgConsumer *consumer, int64 reached, int64 events, TimestampTz *next);

#endif							/* EVPG_LAZY_CHECKPOINT_H */
