/*-------------------------------------------------------------------------
 *
 * saga_lock.h
 *		Locks of sagas, of their instances, and of scheduled commands.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_SAGA_LOCK_H
#define EVPG_SAGA_LOCK_H

#include "saga/due_item.h"
#include "storage/lockdefs.h"

extern void EvpgSagaLockOut(const char *saga);
extern bool EvpgSagaLock(const char *saga, LOCKMODE mode, bool wait);
extern bool EvpgDueItemLock(const EvpgDueItem *item, bool wait);
extern bool EvpgDueItemIsClaimed(const EvpgDueItem *item);
extern void EvpgDueItemLockClaim(EvpgDueItem *item);
extern bool EvpgDueItemHoldsClaim(const EvpgDueItem *item);
extern void EvpgDueItemRelockClaim(const EvpgDueItem *item);
extern void EvpgDueItemUnlockClaim(EvpgDueItem *item);
extern void EvpgDueItemOvertake(const EvpgDueItem *item, void (*action) (void *arg), void *arg);

#endif							/* EVPG_SAGA_LOCK_H */
