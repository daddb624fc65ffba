/*-------------------------------------------------------------------------
 *
 * apply.h
 *		Applying events to the keys of projections.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_APPLY_H
#define EVPG_APPLY_H

#include "log/event_log.h"
#include "projection/projection_row.h"
#include "usercode/module_callback.h"

/* What events are applied with, one after the other. */
typedef struct EvpgApplyScratch
{
	MemoryContext context;		/* what an event needs */
	evpg_result *result;		/* of a module, as event */
	EvpgModuleEvent event;
} EvpgApplyScratch;

extern int64 EvpgApplyCurrentPosition;
extern const char *EvpgApplyCurrentKey;

extern void EvpgApplySetCurrent(int64 position, const char *key);
extern bool EvpgApplyInlineIsNeeded(const EvpgEvent *events, int count);
extern void EvpgApplyInline(const EvpgEvent *events, int count);
extern void EvpgApplyUpcast(const EvpgProjection *projection, EvpgLogScan *scan, EvpgEvent *event);
extern List *EvpgApplyFindKeys(EvpgProjection *projection, const EvpgEvent *event);
extern void EvpgApplyScratchInit(EvpgApplyScratch *scratch);
extern void EvpgApplyReducer(EvpgProjectionRow *row, const EvpgEvent *event, EvpgApplyScratch *scratch, bool send);
extern void EvpgApplyHandler(List *rows, const EvpgEvent *event, EvpgApplyScratch *scratch, bool send);

#endif							/* EVPG_APPLY_H */
