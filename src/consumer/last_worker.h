/*-------------------------------------------------------------------------
 *
 * last_worker.h
 *		Keeping the last worker of a database from code that does not return.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_LAST_WORKER_H
#define EVPG_LAST_WORKER_H

#include "base/shmem.h"
#include "nodes/pg_list.h"

/* Counts the calls of user code in one occupation, such as the events of a batch: as long as it rises, none hangs. */
extern int	EvpgOccupationSteps;

extern void EvpgLastWorkerWatch(bool begin);
extern void EvpgLastWorkerBegin(EvpgOccupation occupation, const char *name);
extern bool EvpgLastWorkerEnd(void);
extern bool EvpgLastWorkerIsLast(void);
extern bool EvpgLastWorkerIsKeptFrom(EvpgOccupation occupation, const char *name);
extern List *EvpgLastWorkerListKeptFrom(void);
extern void EvpgLastWorkerReport(EvpgOccupation occupation, const char *name);

#endif							/* EVPG_LAST_WORKER_H */
