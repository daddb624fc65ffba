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

extern void EvpgCompensationAdd(EvpgAttempt *attempt, Jsonb *undo);
extern void EvpgCompensationRun(EvpgAttempt *attempt, void (*send) (EvpgAttempt *attempt, Jsonb *action));

#endif							/* EVPG_COMPENSATION_H */
