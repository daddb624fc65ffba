/*-------------------------------------------------------------------------
 *
 * apply.h
 *		Applying events to the keys of projections.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_APPLY_H
#define EVPG_APPLY_H

#include "log/event.h"
#include "projection/projection_row.h"

extern int64 EvpgProjectPosition;
extern const char *EvpgProjectKey;

extern void EvpgProjectBlame(int64 position, const char *key);
extern bool EvpgProjectAny(const EvpgEvent *events, int count);
extern void EvpgProject(const EvpgEvent *events, int count);
extern List *EvpgProjectKeys(EvpgProjection *projection, const EvpgEvent *event);
extern void EvpgProjectFold(EvpgProjected *row, const EvpgEvent *event, MemoryContext event_context, bool send);
extern void EvpgProjectHandle(List *rows, const EvpgEvent *event, MemoryContext event_context, bool send);

#endif							/* EVPG_APPLY_H */
