/*-------------------------------------------------------------------------
 *
 * broadcast.h
 *		Channels and frames: what listeners get of projections.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_BROADCAST_H
#define EVPG_BROADCAST_H

#include "utils/jsonb.h"

/* Where it is announced that listeners may have missed something. */
#define EVPG_RESYNC_CHANNEL "evpg.resync"

/* NOTIFY takes payloads up to this, in bytes. */
#define EVPG_MAX_FRAME 7999

typedef enum EvpgBroadcast
{
	EVPG_BROADCAST_NONE,
	EVPG_BROADCAST_POINTER,		/* frames without data */
	EVPG_BROADCAST_DELTA
} EvpgBroadcast;

/* A frame, about a row of a projection as it is after an event. */
typedef struct EvpgFrame
{
	const char *event;			/* name of the frame */
	const char *projection;
	const char *key;
	int			generation;
	int64		version;
	int64		position;
	bool		deleted;
	bool		with_data;		/* data counts, NULL = null */
	bool		truncated;		/* data is not sent though it should be */
	Jsonb	   *data;
} EvpgFrame;

extern EvpgBroadcast EvpgBroadcastFromName(const char *name);
extern char *EvpgBroadcastShortenChannel(const char *prefix, char *channel);
extern void EvpgBroadcastText(const char *text, const char *const *channels, int nchannels);
extern void EvpgBroadcastListen(const char *channel, const char *function);
extern char *EvpgBroadcastChannel(const char *projection, const char *key);
extern void EvpgBroadcastSend(const EvpgFrame *frame);
extern void EvpgBroadcastSendRebuilt(const char *projection, int64 position);

#endif							/* EVPG_BROADCAST_H */
