/*-------------------------------------------------------------------------
 *
 * frame_ring.h
 *		Frames on their way from a transaction to the broadcaster.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_FRAME_RING_H
#define EVPG_FRAME_RING_H

#include "access/xlogdefs.h"

/* Values of evpg.broadcast: how frames are sent. */
typedef enum EvpgFrameSender
{
	EVPG_FRAMES_AUTO,			/* by the broadcaster if there is one */
	EVPG_FRAMES_BY_COMMIT,		/* by NOTIFY in the transaction */
	EVPG_FRAMES_BY_WORKER,		/* by the broadcaster */
	EVPG_FRAMES_OFF
} EvpgFrameSender;

extern int	EvpgBroadcastBy;

/* A frame goes to so many channels at most. */
#define EVPG_FRAME_CHANNELS 3

/* A frame of a batch; the strings point into the batch. */
typedef struct EvpgRingFrame
{
	const char *text;
	int			nchannels;
	const char *channels[EVPG_FRAME_CHANNELS];
} EvpgRingFrame;

/* What the broadcaster takes at once: copies of the oldest frames. */
typedef struct EvpgFrameBatch
{
	char	   *bytes;
	Size		size;			/* of whole frames */
	int			frames;
	int64		commits;		/* handed over frames since the last batch */
	int64		dropped;		/* to be announced */
	XLogRecPtr	lsn;			/* to be durable before they are sent */
} EvpgFrameBatch;

extern void EvpgFrameRingInit(void);
extern bool EvpgFrameRingPrepare(void);
extern void EvpgFrameRingAdd(const char *text, const char *const *channels, int nchannels);

extern bool EvpgFrameRingCopyBatch(EvpgFrameBatch *batch);
extern const char *EvpgFrameRingNext(const char *bytes, EvpgRingFrame *frame);
extern bool EvpgFrameRingIsStranded(void);
extern void EvpgFrameRingReleaseBatch(const EvpgFrameBatch *batch);

#endif							/* EVPG_FRAME_RING_H */
