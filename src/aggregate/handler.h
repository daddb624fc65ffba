/*-------------------------------------------------------------------------
 *
 * handler.h
 *		Calling the handler of an aggregate.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_HANDLER_H
#define EVPG_HANDLER_H

#include "aggregate/decision.h"
#include "aggregate/state.h"

extern const evpg_command_entry *EvpgHandlerOfModule(const EvpgAggregate *aggregate, const EvpgCommand *command);
extern void EvpgHandlerDecide(EvpgState *state, const EvpgCommand *command, EvpgDecision *decision);

#endif							/* EVPG_HANDLER_H */
