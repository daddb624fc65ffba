/*-------------------------------------------------------------------------
 *
 * state_cache.h
 *		The session's cache of aggregate states.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_STATE_CACHE_H
#define EVPG_STATE_CACHE_H

#include "aggregate/state.h"
#include "log/stream.h"

extern bool EvpgStateCacheTake(EvpgState *state, const EvpgStream *stream);
extern void EvpgStateCachePut(EvpgState *state, int64 stream_id);

#endif							/* EVPG_STATE_CACHE_H */
