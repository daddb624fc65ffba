/*-------------------------------------------------------------------------
 *
 * last_worker.h
 *		Keeping one saga from all workers of a database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_LAST_WORKER_H
#define EVPG_LAST_WORKER_H

extern void EvpgLastWorkerBegin(const char *saga);
extern bool EvpgLastWorkerEnd(void);
extern bool EvpgLastWorkerIsKeptFrom(const char *saga);
extern const char *EvpgLastWorkerKeptFrom(void);
extern void EvpgLastWorkerReport(const char *saga);

#endif							/* EVPG_LAST_WORKER_H */
