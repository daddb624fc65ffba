/*-------------------------------------------------------------------------
 *
 * rebuild.h
 *		Rebuilding all keys of a projection beside those that are read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_REBUILD_H
#define EVPG_REBUILD_H

#include "projection/projection.h"

extern bool EvpgRebuildUnderWay(const char *name);
extern void EvpgRebuildStart(EvpgProjection *projection);
extern void EvpgRebuildLock(const char *name);
extern bool EvpgRebuildCancel(const char *name);
extern List *EvpgRebuildNames(void);
extern bool EvpgRebuildRun(const char *name, TimestampTz *next);
extern bool EvpgRebuildClean(void);
extern void EvpgRebuildAbandon(const char *name);

#endif							/* EVPG_REBUILD_H */
