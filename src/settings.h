/*-------------------------------------------------------------------------
 *
 * settings.h
 *		The evpg.* settings.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_SETTINGS_H
#define EVPG_SETTINGS_H

extern char *EvpgActor;
extern bool EvpgBroadcastOn;
extern char *EvpgCorrelationId;
extern int	EvpgMaxEventSize;
extern int	EvpgMaxEvents;
extern int	EvpgMaxJsonDepth;
extern int	EvpgMaxKeyLocks;
extern char *EvpgMetadata;
extern int	EvpgStateCacheSize;

extern void EvpgSettingsInit(void);
extern void EvpgSettingSetLocal(const char *name, const char *value);

#endif							/* EVPG_SETTINGS_H */
