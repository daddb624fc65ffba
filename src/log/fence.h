/*-------------------------------------------------------------------------
 *
 * fence.h
 *		The position fence: tells a reader up to where no event can be missing.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_FENCE_H
#define EVPG_FENCE_H

extern void EvpgFenceEnter(void);
extern int64 EvpgFenceDrawPositions(int count);
extern void EvpgFenceRefuseStale(void);
extern int64 EvpgFenceLastDrawn(void);
extern bool EvpgFenceIsHeld(void);
extern int64 EvpgFenceStablePosition(bool wait);
extern int64 EvpgFenceDurablePosition(bool wait);
extern bool EvpgFenceLogStablePosition(int64 *position);

#endif							/* EVPG_FENCE_H */
