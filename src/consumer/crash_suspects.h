/*-------------------------------------------------------------------------
 *
 * crash_suspects.h
 *		Trying alone what may have crashed the server.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_CRASH_SUSPECTS_H
#define EVPG_CRASH_SUSPECTS_H

#include "consumer/consumer.h"
#include "log/event_log.h"

/* What a consumer may do next. */
typedef enum EvpgCrashAdvice
{
	EVPG_CRASH_PROCEED,			/* apply a batch of at most limit events, 0:
								 * as many as it likes */
	EVPG_CRASH_COUNTED,			/* commit, since an attempt was counted, and
								 * ask again at once */
	EVPG_CRASH_POSTPONE,		/* wait: another session tries something alone */
	EVPG_CRASH_GIVE_UP,			/* give the event up: it has crashed the
								 * server too often */
	EVPG_CRASH_GIVE_UP_UNRUN	/* the same without running any code: the
								 * search for its keys has crashed it, too */
} EvpgCrashAdvice;

extern int64 EvpgServerStartId(void);
extern int64 EvpgCrashSuspectLimit(void);
extern EvpgCrashAdvice EvpgCrashAdviseBatch(const EvpgConsumer *consumer, const EvpgLogFilter *filter,
											int max_attempts, int *limit, int64 *position, TimestampTz *next);
extern bool EvpgCrashLock(bool crashed);
extern void EvpgCrashUnlock(bool settled);
extern bool EvpgCrashIsLocked(void);
extern bool EvpgCrashBeginAttempt(bool crashed, TimestampTz *next);
extern void EvpgCrashNoteCounted(void);
extern bool EvpgCrashAttemptFollows(void);
extern void EvpgCrashFlushAtCommit(int limit);
extern int	EvpgCrashMaxCount(int max_attempts);
extern void EvpgCrashSettleAtExit(void (*settle) (bool fatal), bool counted);
extern void EvpgCrashNoteRuns(bool runs);
extern void EvpgCrashNoteOrderlyEnd(void);
extern void EvpgCrashTakeBack(void);
extern ErrorData *EvpgCrashError(int attempts);

#endif							/* EVPG_CRASH_SUSPECTS_H */
