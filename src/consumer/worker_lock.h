/*-------------------------------------------------------------------------
 *
 * worker_lock.h
 *		Waiting for what a worker may hold.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_WORKER_LOCK_H
#define EVPG_WORKER_LOCK_H

#include "storage/lock.h"

extern void EvpgSetSagaLockTag(LOCKTAG *tag, const char *saga);
extern bool EvpgLockAcquire(const LOCKTAG *tag, LOCKMODE mode, bool wait);
extern void EvpgLockOvertake(const LOCKTAG *held, LOCKMODE mode, void (*action) (void *arg), void *arg);

#endif							/* EVPG_WORKER_LOCK_H */
