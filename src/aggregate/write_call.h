/*-------------------------------------------------------------------------
 *
 * write_call.h
 *		What the SQL functions that write events have in common.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_WRITE_CALL_H
#define EVPG_WRITE_CALL_H

#include "base/catalog.h"
#include "fmgr.h"
#include "log/event.h"

/* One call from SQL. */
typedef struct EvpgWriteCall
{
	MemoryContext caller;
	MemoryContext context;
	EvpgScope	scope;
} EvpgWriteCall;

extern void EvpgWriteCallBegin(EvpgWriteCall *call);
extern void EvpgWriteCallEnd(EvpgWriteCall *call);
extern int	EvpgEventsFromArray(ArrayType *array, EvpgEvent **events);
extern void EvpgCheckCallersEvents(const EvpgEvent *events, int count);
extern void EvpgReturnEvents(FunctionCallInfo fcinfo, const EvpgEvent *events, int count);

#endif							/* EVPG_WRITE_CALL_H */
