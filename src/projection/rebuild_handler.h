/*-------------------------------------------------------------------------
 *
 * rebuild_handler.h
 *		Running the handler of a projection over copies of its tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_REBUILD_HANDLER_H
#define EVPG_REBUILD_HANDLER_H

#include "projection/batch.h"

extern void EvpgRebuildHandlerInit(void);
extern void EvpgRebuildHandlerApplyBatch(EvpgBatch *batch);

#endif							/* EVPG_REBUILD_HANDLER_H */
