/*-------------------------------------------------------------------------
 *
 * settings.h
 *		The evpg.* settings.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_SETTINGS_H
#define EVPG_SETTINGS_H

/* The highest values of evpg.max_databases and evpg.workers. */
#define EVPG_MAX_DATABASES	1024
#define EVPG_MAX_WORKERS	16

extern char *EvpgActor;
extern int	EvpgBroadcastBuffer;
extern char *EvpgCorrelationId;
extern int	EvpgMaxDatabases;
extern int	EvpgMaxEventSize;
extern int	EvpgMaxEvents;
extern int	EvpgMaxJsonDepth;
extern int	EvpgMaxKeyLocks;
extern int	EvpgMaxStreamLocks;
extern int	EvpgMaxTagLocks;
extern int	EvpgMaxSagaDepth;
extern char *EvpgMetadata;
extern int	EvpgNaptime;
extern char *EvpgOrigin;
extern int	EvpgStablePositionInterval;
extern int	EvpgStateCacheSize;
extern int	EvpgStreamDirectorySize;
extern int	EvpgWorkers;

extern void EvpgSettingsInit(void);
extern void EvpgSettingsPin(void);
extern void EvpgSettingSetLocal(const char *name, const char *value);

#endif							/* EVPG_SETTINGS_H */
