/*-------------------------------------------------------------------------
 *
 * replay.h
 *		Handing out parked events again.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_REPLAY_H
#define EVPG_REPLAY_H

#include "subscription/group.h"
#include "subscription/parked_stream.h"

extern int64 EvpgReplayRequest(const char *subscription, int64 max_count, const char *key);
extern bool EvpgReplayIsDue(const EvpgGroup *group, const EvpgParkedStreams *streams);
extern bool EvpgReplayIsWanted(const EvpgGroup *group, const EvpgParkedStreams *streams);
extern void EvpgReplayBegin(EvpgGroup *group, const EvpgParkedStreams *streams);
extern bool EvpgReplayNext(const EvpgGroup *group, const EvpgParkedStreams *streams, int64 after, EvpgEvent *event);
extern bool EvpgReplayIsOver(const EvpgGroup *group, const EvpgParkedStreams *streams);
extern void EvpgReplayEnd(EvpgGroup *group);
extern void EvpgReplayForget(const EvpgSubscription *subscription, int slot, int64 after, int64 upto, bool replaying);
extern void EvpgReplayCount(const EvpgSubscription *subscription, int slot, int64 after, int64 upto);
extern void EvpgReplayUncount(const EvpgSubscription *subscription, int partition, int64 after, int64 upto);
extern bool EvpgReplayTriesEvent(const EvpgGroup *group, const EvpgParkedStreams *streams);
extern int	EvpgReplayAttempts(const char *subscription, int64 position);

#endif							/* EVPG_REPLAY_H */
