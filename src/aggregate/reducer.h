/*-------------------------------------------------------------------------
 *
 * reducer.h
 *		Calling the reducer of an aggregate.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_REDUCER_H
#define EVPG_REDUCER_H

#include "aggregate/state.h"

extern void EvpgReducerFold(EvpgState *state, const EvpgEvent *event, evpg_json *data);

#endif							/* EVPG_REDUCER_H */
