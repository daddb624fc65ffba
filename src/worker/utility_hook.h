/*-------------------------------------------------------------------------
 *
 * utility_hook.h
 *		The ProcessUtility hook.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_UTILITY_HOOK_H
#define EVPG_UTILITY_HOOK_H

extern void EvpgUtilityHookInit(void);

#endif							/* EVPG_UTILITY_HOOK_H */
