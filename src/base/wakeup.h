/*-------------------------------------------------------------------------
 *
 * wakeup.h
 *		Wake-ups at the end of a transaction, and waiting for them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_WAKEUP_H
#define EVPG_WAKEUP_H

extern void EvpgWakeupInit(void);

extern void EvpgWakeConsumersAtEnd(void);
extern void EvpgWakeLauncherAtCommit(void);
extern void EvpgWakeWaitersAtCommit(uint64 hash);
extern void EvpgWakeAllWaitersAtCommit(void);
extern void EvpgRescanDatabasesAtEnd(void);
extern void EvpgWakeAllProcesses(void);

/* What a session waits for that waits for events: the end of any appender, and what makes older ones due. */
#define EVPG_WAIT_EVENTS	UINT64CONST(0)

extern bool EvpgWaitPrepare(uint64 hash);
extern void EvpgWaitSleep(uint64 hash, int64 left);
extern void EvpgWaitEnd(void);

#endif							/* EVPG_WAKEUP_H */
