/*-------------------------------------------------------------------------
 *
 * compensation.h
 *		Undoing what an instance has sent.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_COMPENSATION_H
#define EVPG_COMPENSATION_H

#include "saga/action.h"

extern void EvpgCompensationAdd(EvpgReactionRun *run, Jsonb *undo);
extern void EvpgCompensationRun(EvpgReactionRun *run, void (*send) (EvpgReactionRun *run, Jsonb *action));

#endif							/* EVPG_COMPENSATION_H */
