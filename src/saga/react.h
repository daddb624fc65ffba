/*-------------------------------------------------------------------------
 *
 * react.h
 *		One reaction of an instance.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_REACT_H
#define EVPG_REACT_H

#include "saga/action.h"

extern void EvpgReactToEvent(EvpgAttempt *attempt, const EvpgEvent *event);

extern void EvpgReactionLoadSaga(EvpgAttempt *attempt);
extern char *EvpgReactionStateName(Jsonb *state);
extern void EvpgReactionApply(EvpgAttempt *attempt, const EvpgReaction *reaction, const char *before);

#endif							/* EVPG_REACT_H */
