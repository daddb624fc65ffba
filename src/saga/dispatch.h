/*-------------------------------------------------------------------------
 *
 * dispatch.h
 *		Letting instances of sagas react, and scheduled commands happen.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_DISPATCH_H
#define EVPG_DISPATCH_H

#include "saga/instance.h"
#include "storage/lockdefs.h"

typedef enum EvpgDispatched
{
	EVPG_DISPATCHED,			/* done, or nothing to be done */
	EVPG_DISPATCH_LATER,		/* failed, to be tried again */
	EVPG_DISPATCH_DEAD			/* failed for the last time */
} EvpgDispatched;

extern void EvpgDispatchInit(void);
extern bool EvpgDispatchLockSaga(const char *saga, LOCKMODE mode, bool wait);
extern bool EvpgDispatchLock(const EvpgDueItem *work, bool session, bool wait);
extern EvpgDispatched EvpgDispatch(EvpgDueItem *work, bool again, int64 *sent, ErrorData **error);
extern void EvpgRefuseInSaga(const char *what);
extern void EvpgDispatchOvertake(int64 timer_id, void (*action) (void *arg), void *arg);
extern bool EvpgDispatchPass(void (*commit) (void), MemoryContext context, TimestampTz *next);

#endif							/* EVPG_DISPATCH_H */
