/*-------------------------------------------------------------------------
 *
 * fire_timer.c
 *		A timer of an instance fires: the saga's timer handler reacts to it
 *		(rule 17).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/context.h"
#include "base/clock.h"
#include "base/testing.h"
#include "saga/fire_timer.h"
#include "saga/react.h"

/*
 * EvpgTimerFire
 *		Lets an instance react to a timer that is due, in the transaction of
 *		EvpgDispatchItem, which has taken the timer away: the reaction may set it
 *		again.  Does nothing if the instance is completed.
 */
void
EvpgTimerFire(EvpgAttempt *attempt, const EvpgTimer *timer)
{
	EvpgInstance *instance = &attempt->instance;
	EvpgReaction reaction;
	EvpgFiredTimer fired = {
		.key = attempt->item->key,
		.name = timer->name,
		.payload = timer->payload,
		.scheduled_at = timer->scheduled_at,
		.due_at = timer->due_at,
		.fired_at = EvpgClockNow()
	};

	EvpgInstanceRead(attempt->item->saga, attempt->item->key, instance);
	if (!instance->exists || instance->completed)
		return;
	EvpgReactionLoadSaga(attempt);
	attempt->source = psprintf("timer " INT64_FORMAT " of " INT64_FORMAT, attempt->item->timer_id, timer->scheduled_at);
	attempt->correlation_id = timer->correlation_id;
	attempt->causation_id = timer->causation_id;
	attempt->session_role = timer->session_role;
	EvpgContextSetSessionRole(attempt->session_role);
	/* A chain that waits for a second or more is not a runaway. */
	attempt->depth = timer->due_at < timer->scheduled_at + USECS_PER_SEC ? timer->depth + 1 : 1;
	EvpgSagaCodeOnTimer(attempt->saga, instance->state, &fired, &reaction);
	EVPG_WAIT_POINT("saga_handled");
	EvpgReactionApply(attempt, &reaction, EvpgReactionStateName(instance->state));
}
