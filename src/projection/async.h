/*-------------------------------------------------------------------------
 *
 * async.h
 *		Asynchronous projections: one batch at a time.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_ASYNC_H
#define EVPG_ASYNC_H

#include "datatype/timestamp.h"

extern bool EvpgAsyncApplyBatch(const char *name, TimestampTz *next);
extern bool EvpgAsyncHasReached(const char *name, int64 position);

#endif							/* EVPG_ASYNC_H */
