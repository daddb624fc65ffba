/*-------------------------------------------------------------------------
 *
 * boundary.h
 *		Calling the boundary of an aggregate, and folding the events that it names.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_BOUNDARY_H
#define EVPG_BOUNDARY_H

#include "aggregate/decision.h"
#include "aggregate/state.h"

extern struct EvpgCondition *EvpgBoundaryGet(EvpgAggregate *aggregate, const EvpgCommand *command, bool read_only,
											 EvpgDecision *decision);
extern int64 EvpgBoundaryFold(EvpgState *state, EvpgAggregate *aggregate, const struct EvpgCondition *boundary);
extern void EvpgBoundaryLoad(EvpgState *state, EvpgAggregate *aggregate, const struct EvpgCondition *boundary);

#endif							/* EVPG_BOUNDARY_H */
