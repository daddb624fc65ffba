/*-------------------------------------------------------------------------
 *
 * action.h
 *		Doing what a saga has said.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_ACTION_H
#define EVPG_ACTION_H

#include "saga/instance.h"
#include "saga/saga_code.h"

/* An instance that reacts. */
typedef struct EvpgReactionRun
{
	const EvpgDueItem *work;
	EvpgSaga   *saga;
	EvpgInstance instance;
	const char *source;			/* makes command ids unique: of the event or
								 * the timer */
	const char *correlation_id; /* NULL: none */
	const char *causation_id;	/* NULL: none */
	const char *actor;			/* NULL: none */
	const char *session_role;	/* of what is reacted to */
	int			depth;			/* of the commands */
	int			sends;			/* tried so far */
	int			nested;			/* rejections that are being handled */
	bool		compensating;
	int64		dispatched;		/* sends that succeeded */
	/* the send that is being tried: what a dead letter keeps */
	const char *label;
	Jsonb	   *command;
	bool		given_up;		/* by an action: no use in trying again */
} EvpgReactionRun;

extern void EvpgActionsRun(EvpgReactionRun *acting, const EvpgReaction *reaction);
extern void EvpgCommandFromJsonb(Jsonb *jsonb, EvpgCommand *command);

#endif							/* EVPG_ACTION_H */
