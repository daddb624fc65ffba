/*-------------------------------------------------------------------------
 *
 * settings.h
 *		The evpg.* settings.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_SETTINGS_H
#define EVPG_SETTINGS_H

/* Values of evpg.broadcast: how frames are sent. */
typedef enum EvpgBroadcastWay
{
	EVPG_BROADCAST_AUTO,		/* by the broadcaster if there is one */
	EVPG_BROADCAST_COMMIT,		/* by NOTIFY in the transaction */
	EVPG_BROADCAST_WORKER,		/* by the broadcaster */
	EVPG_BROADCAST_OFF
} EvpgBroadcastWay;

extern char *EvpgActor;
extern int	EvpgBroadcastBy;
extern int	EvpgBroadcastBuffer;
extern char *EvpgCorrelationId;
extern int	EvpgMaxDatabases;
extern int	EvpgMaxEventSize;
extern int	EvpgMaxEvents;
extern int	EvpgMaxJsonDepth;
extern int	EvpgMaxKeyLocks;
extern int	EvpgMaxSagaDepth;
extern char *EvpgMetadata;
extern int	EvpgNaptime;
extern char *EvpgOrigin;
extern int	EvpgStateCacheSize;
extern int	EvpgWorkers;

extern void EvpgSettingsInit(void);
extern void EvpgSettingsPin(void);
extern void EvpgSettingSetLocal(const char *name, const char *value);

#endif							/* EVPG_SETTINGS_H */
