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

extern void EvpgSagaLockInit(void);
extern bool EvpgSagaLock(const char *saga, LOCKMODE mode, bool wait);
extern bool EvpgDueItemLock(const EvpgDueItem *item, bool session, bool wait);
extern void EvpgDueItemUnlock(EvpgDueItem *item);
extern void EvpgTimerOvertake(int64 timer_id, void (*action) (void *arg), void *arg);

#endif							/* EVPG_SAGA_LOCK_H */
