/*-------------------------------------------------------------------------
 *
 * worker.h
 *		Workers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_WORKER_H
#define EVPG_WORKER_H

/* started by the launcher, by name */
extern PGDLLEXPORT void evpg_worker_main(Datum arg);

#endif							/* EVPG_WORKER_H */
