/*-------------------------------------------------------------------------
 *
 * interference.h
 *		Reporting work that other sessions have kept from being done for long.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_INTERFERENCE_H
#define EVPG_INTERFERENCE_H

extern void EvpgInterferenceNote(const void *kind, const char *name, const ErrorData *error);
extern void EvpgInterferenceEnd(const void *kind, const char *name);

#endif							/* EVPG_INTERFERENCE_H */
