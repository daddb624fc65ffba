/*-------------------------------------------------------------------------
 *
 * ring.h
 *		Frames on their way from a transaction to the broadcaster.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_RING_H
#define EVPG_RING_H

#include "access/xlogdefs.h"

/* Values of evpg.broadcast: how frames are sent. */
typedef enum EvpgBroadcastWay
{
	EVPG_BROADCAST_AUTO,		/* by the broadcaster if there is one */
	EVPG_BROADCAST_COMMIT,		/* by NOTIFY in the transaction */
	EVPG_BROADCAST_WORKER,		/* by the broadcaster */
	EVPG_BROADCAST_OFF
} EvpgBroadcastWay;

extern int	EvpgBroadcastBy;

/* What the broadcaster takes at once: copies of the oldest frames. */
typedef struct EvpgRingBatch
{
	char	   *bytes;
	Size		size;			/* of whole frames */
	int			frames;
	int64		commits;		/* handed over frames since the last batch */
	int64		dropped;		/* to be announced */
	XLogRecPtr	lsn;			/* to be durable before they are sent */
} EvpgRingBatch;

extern void EvpgRingInit(void);
extern bool EvpgRingUsable(void);
extern void EvpgRingPut(const char *key_channel, const char *projection_channel, const char *text);

extern bool EvpgRingTake(EvpgRingBatch *batch);
extern const char *EvpgRingNext(const char *frame, const char **key_channel, const char **projection_channel,
								const char **text);
extern bool EvpgRingStranded(void);
extern void EvpgRingSent(const EvpgRingBatch *batch);

#endif							/* EVPG_RING_H */
