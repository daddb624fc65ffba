/*-------------------------------------------------------------------------
 *
 * fence.h
 *		The position fence: what lets a reader know that no event is missing.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_FENCE_H
#define EVPG_FENCE_H

extern void EvpgFenceEnter(void);
extern int64 EvpgFenceDraw(void);
extern int64 EvpgFenceLastDrawn(void);
extern bool EvpgFenceHeld(void);
extern int64 EvpgFenceStablePosition(bool wait);
extern int64 EvpgFenceDurablePosition(bool wait);

#endif							/* EVPG_FENCE_H */
