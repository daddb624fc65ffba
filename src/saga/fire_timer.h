/*-------------------------------------------------------------------------
 *
 * fire_timer.h
 *		A timer of an instance fires.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_FIRE_TIMER_H
#define EVPG_FIRE_TIMER_H

#include "saga/action.h"
#include "saga/timer.h"

extern void EvpgTimerFire(EvpgAttempt *attempt, const EvpgTimer *timer);

#endif							/* EVPG_FIRE_TIMER_H */
