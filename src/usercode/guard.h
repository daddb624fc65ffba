/*-------------------------------------------------------------------------
 *
 * guard.h
 *		What user code may not do while evpg calls it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_GUARD_H
#define EVPG_GUARD_H

/* User code of a projection may be running; what sets it resets it, also after an error. */
extern bool EvpgApplyRuns;

extern void EvpgRefuseInProjection(const char *what);

#endif							/* EVPG_GUARD_H */
