/*-------------------------------------------------------------------------
 *
 * worker.h
 *		Background processes of a database.  They are started by name.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_WORKER_H
#define EVPG_WORKER_H

/* What a process is told, in bgw_extra. */
typedef struct EvpgWorkerStart
{
	Oid			database;
	int			number;			/* as in EvpgDatabase.processes */
} EvpgWorkerStart;

extern PGDLLEXPORT void evpg_probe_main(Datum arg);
extern PGDLLEXPORT void evpg_worker_main(Datum arg);
extern PGDLLEXPORT void evpg_broadcaster_main(Datum arg);

#endif							/* EVPG_WORKER_H */
