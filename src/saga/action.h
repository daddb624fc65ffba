/*-------------------------------------------------------------------------
 *
 * action.h
 *		The actions of a reaction.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_ACTION_H
#define EVPG_ACTION_H

#include "saga/due_item.h"
#include "saga/instance.h"
#include "saga/saga_code.h"

/* One attempt at a due item: an instance that reacts, or a scheduled command. */
typedef struct EvpgAttempt
{
	const EvpgDueItem *item;
	bool		again;			/* a dead letter is retried */
	bool		taken;			/* the item was still to be done */
	EvpgSaga   *saga;
	EvpgInstance instance;
	const char *source;			/* makes command ids unique: of the event or
								 * the timer */
	const char *correlation_id; /* NULL: none */
	const char *causation_id;	/* NULL: none */
	const char *actor;			/* NULL: none */
	const char *session_role;	/* of the event or the timer */
	int			depth;			/* of the commands */
	int			sends;			/* tried so far */
	int			nested;			/* rejections that are being handled */
	bool		compensating;
	int64		dispatched;		/* sends that succeeded */
	/* the send that is being tried: what a dead letter keeps */
	const char *label;
	Jsonb	   *command;
	bool		given_up;		/* by an action: another attempt is useless */
} EvpgAttempt;

extern void EvpgActionsRun(EvpgAttempt *attempt, const EvpgReaction *reaction);

#endif							/* EVPG_ACTION_H */
