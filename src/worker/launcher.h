/*-------------------------------------------------------------------------
 *
 * launcher.h
 *		Starts the background processes of databases.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_LAUNCHER_H
#define EVPG_LAUNCHER_H

extern void EvpgLauncherInit(void);

extern PGDLLEXPORT void evpg_launcher_main(Datum arg);

#endif							/* EVPG_LAUNCHER_H */
