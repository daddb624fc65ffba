/*-------------------------------------------------------------------------
 *
 * invariant.h
 *		Calling the invariant of an aggregate.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_INVARIANT_H
#define EVPG_INVARIANT_H

#include "aggregate/decision.h"
#include "aggregate/state.h"

extern bool EvpgInvariantHolds(EvpgState *state, const EvpgCommand *command, EvpgDecision *why);

#endif							/* EVPG_INVARIANT_H */
