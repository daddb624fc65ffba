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

extern void EvpgReactToEvent(EvpgReactionRun *run, const EvpgEvent *event);

extern void EvpgReactionFindSaga(EvpgReactionRun *run);
extern void EvpgReactionCheckDepth(EvpgReactionRun *run);
extern char *EvpgReactionStateName(Jsonb *state);
extern void EvpgReactionApply(EvpgReactionRun *run, const EvpgReaction *reaction, const char *before);

#endif							/* EVPG_REACT_H */
