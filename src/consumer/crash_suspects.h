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

typedef enum EvpgCrashAdvice
{
	EVPG_CRASH_PROCEED,			/* a batch of at most limit events, 0: as many
								 * as it likes */
	EVPG_CRASH_COUNTED,			/* an attempt was counted: commit, and ask
								 * again at once */
	EVPG_CRASH_PUT_OFF,			/* another session tries something alone */
	EVPG_CRASH_GIVE_UP,			/* the event has crashed the server too often */
	EVPG_CRASH_GIVE_UP_UNRUN	/* the same, and so has the search for its
								 * keys */
} EvpgCrashAdvice;

extern int64 EvpgServerStartId(void);
extern int64 EvpgCrashSuspectLimit(void);
extern EvpgCrashAdvice EvpgCrashAdviseBatch(const EvpgConsumer *consumer, const EvpgLogFilter *filter, int max_attempts,
											int *limit, int64 *position, TimestampTz *next);
extern bool EvpgCrashLock(bool crashed);
extern void EvpgCrashUnlock(void);
extern bool EvpgCrashIsLocked(void);
extern bool EvpgCrashBeginAttempt(bool crashed, TimestampTz *next);
extern void EvpgCrashNoteCounted(void);
extern bool EvpgCrashAttemptFollows(void);
extern void EvpgCrashFlushAtCommit(int limit);
extern int	EvpgCrashMaxCount(int max_attempts);
extern void EvpgCrashTakeBackAtExit(void (*take_back) (void));
extern ErrorData *EvpgCrashError(int attempts);

#endif							/* EVPG_CRASH_SUSPECTS_H */
