/*-------------------------------------------------------------------------
 *
 * crash_suspects.h
 *		What may have crashed the server is tried alone.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_CRASH_SUSPECTS_H
#define EVPG_CRASH_SUSPECTS_H

#include "consumer/consumer.h"
#include "log/event_log.h"

typedef enum EvpgSuspicion
{
	EVPG_CAUTION_GO,			/* a batch of at most limit events, 0: as many
								 * as it likes */
	EVPG_CAUTION_COUNTED,		/* an attempt was counted: commit, and ask
								 * again */
	EVPG_CAUTION_GIVE_UP,		/* the event has crashed the server too often */
	EVPG_CAUTION_LEAVE_ALONE	/* the same, and so has the search for its
								 * keys */
} EvpgSuspicion;

extern int64 EvpgServerStart(void);
extern int64 EvpgCautionBefore(void);
extern EvpgSuspicion EvpgSuspectsAsk(const EvpgConsumer *consumer, const EvpgLogFilter *filter, int max_attempts,
									 int *limit, int64 *position);
extern void EvpgSuspectsProven(int limit);
extern int	EvpgCautionCrashes(int max_attempts);
extern void EvpgCautionAtExit(void (*take_back) (void));
extern ErrorData *EvpgSuspectsError(int attempts);

#endif							/* EVPG_CRASH_SUSPECTS_H */
