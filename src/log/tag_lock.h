/*-------------------------------------------------------------------------
 *
 * tag_lock.h
 *		Locks on tags, between transactions that append events with a tag and those
 *		that check that there are none.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_TAG_LOCK_H
#define EVPG_TAG_LOCK_H

#include "log/event.h"

typedef struct EvpgTagLocks EvpgTagLocks;

extern void EvpgTagLockEvents(const EvpgEvent *events, int count);
extern EvpgTagLocks *EvpgTagLocksBegin(const EvpgEvent *events, int count);
extern void EvpgTagLocksCheck(EvpgTagLocks *locks, const char *tag, bool may_append);
extern void EvpgTagLocksTake(EvpgTagLocks *locks);
extern void EvpgTagLocksRelease(EvpgTagLocks *locks);

#endif							/* EVPG_TAG_LOCK_H */
