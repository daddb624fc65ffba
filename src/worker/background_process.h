/*-------------------------------------------------------------------------
 *
 * background_process.h
 *		What the background processes of a database have in common.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_BACKGROUND_PROCESS_H
#define EVPG_BACKGROUND_PROCESS_H

#include "base/shmem.h"
#include "datatype/timestamp.h"

/* What the launcher tells a process, in bgw_extra. */
typedef struct EvpgBackgroundStart
{
	Oid			database;
	int			number;			/* as in EvpgDatabase.processes */
} EvpgBackgroundStart;

extern EvpgProcess *EvpgBackgroundProcess;

extern void EvpgBackgroundForceSetting(const char *name, const char *value);
extern void EvpgBackgroundConnect(void);
extern void EvpgBackgroundAttach(void);
extern void EvpgBackgroundHandleInterrupts(void);
extern void EvpgBackgroundSleepUntil(TimestampTz until, bool for_work);
extern TimestampTz EvpgBackgroundTimeAfter(long ms);
extern void EvpgBackgroundPauseForBatch(bool busy, bool urgent);
extern void EvpgBackgroundReleaseLocks(void);
extern void EvpgBackgroundBegin(void);
extern bool EvpgBackgroundRunRound(void (*round) (void), long *pause, bool quiet);

/* started by the launcher, by name */
extern PGDLLEXPORT void evpg_probe_main(Datum arg);

#endif							/* EVPG_BACKGROUND_PROCESS_H */
