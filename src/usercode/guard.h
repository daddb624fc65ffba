/*-------------------------------------------------------------------------
 *
 * guard.h
 *		What user code may not do while evpg calls it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_GUARD_H
#define EVPG_GUARD_H

#include "catalog/objectaccess.h"

/* User code of a projection may be running; what sets it resets it, also after an error. */
extern bool EvpgInsideProjection;

/* An instance of a saga reacts; what sets it resets it, also after an error. */
extern bool EvpgInsideSaga;

/* evpg's own hook, if it calls no other one: it is not interested in calls of functions; set once, by _PG_init. */
extern object_access_hook_type EvpgOwnAccessHook;

extern void EvpgRefuseInProjection(const char *what);
extern void EvpgRefuseInSaga(const char *what);

#endif							/* EVPG_GUARD_H */
