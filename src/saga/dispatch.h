/*-------------------------------------------------------------------------
 *
 * dispatch.h
 *		Doing what is due in sagas.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_DISPATCH_H
#define EVPG_DISPATCH_H

#include "saga/due_item.h"
#include "utils/elog.h"

typedef enum EvpgDispatchResult
{
	EVPG_DISPATCH_DONE,
	EVPG_DISPATCH_NOT_TAKEN,	/* it was done by another session, or must not
								 * be done yet */
	EVPG_DISPATCH_LATER,		/* it failed, and is tried again later */
	EVPG_DISPATCH_DEAD			/* it failed for the last time */
} EvpgDispatchResult;

extern EvpgDispatchResult EvpgDispatchItem(EvpgDueItem *item, bool again, int64 *sent, ErrorData **error);
extern bool EvpgDispatchPass(void (*commit) (void), MemoryContext context, TimestampTz *next);
extern bool EvpgDispatchSuspect(void (*commit) (void), MemoryContext context, TimestampTz *next);

#endif							/* EVPG_DISPATCH_H */
