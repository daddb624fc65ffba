/*-------------------------------------------------------------------------
 *
 * react.c
 *		One reaction of an instance to an event, and what reactions to events and to
 *		timers (fire_timer.c) have in common: the version of the saga, the depth of
 *		the chain, declared transitions, and applying what the code of the saga has
 *		returned (rules 16 and 17).
 *
 * All of it happens in one subtransaction of dispatch.c, under the lock of the
 * instance: if anything fails nothing of it remains.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/context.h"
#include "base/errors.h"
#include "base/jsonb.h"
#include "base/settings.h"
#include "base/testing.h"
#include "saga/action.h"
#include "saga/react.h"
#include "saga/saga_code.h"
#include "saga/saga_keys.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

/* Deeper chains are taken for this long: more than evpg.max_saga_depth can be. */
#define MAX_DEPTH 2000000

/* ------------------------------------------------------------------ parts of a reaction */

/*
 * EvpgReactionFindSaga
 *		Sets run->saga to the version of the saga that the instance has, for a new one
 *		the highest; an error if it is not registered any more.
 */
void
EvpgReactionFindSaga(EvpgReactionRun *run)
{
	run->saga = EvpgSagaGet(run->item->saga, run->instance.exists ? run->instance.saga_version : 0, true);
	if (run->saga == NULL)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_UNKNOWN_CONSUMER),
				 errmsg("version %d of saga \"%s\" is not registered", run->instance.saga_version, run->item->saga)));
}

/* Raises the error of a chain of reactions that is too long, which is not tried again. */
void
EvpgReactionCheckDepth(EvpgReactionRun *run)
{
	if (run->depth <= EvpgMaxSagaDepth)
		return;
	run->given_up = true;
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_LIMIT),
			 errmsg("saga \"%s\" reacts to itself, or to others that react to it, without end", run->item->saga),
			 errdetail("The chain is %d reactions long; the limit is %d.", run->depth, EvpgMaxSagaDepth),
			 errhint("Let an event that a saga has caused end the chain, or let a superuser raise evpg.max_saga_depth.")));
}

/* Returns the name of a state, for declared transitions: its member "state", else an empty string. */
char *
EvpgReactionStateName(Jsonb *state)
{
	char	   *name = EvpgJsonbMemberText(state, "state");

	return name == NULL ? "" : name;
}

/* Raises an error if a change of the state has not been declared. */
static void
check_transition(EvpgReactionRun *run, const char *before)
{
	Jsonb	   *transitions = run->saga->transitions;
	char	   *after = EvpgReactionStateName(run->instance.state);
	JsonbValue *targets;

	if (transitions == NULL || strcmp(before, after) == 0)
		return;
	targets = getKeyJsonValueFromContainer(&transitions->root, before, strlen(before), NULL);
	if (targets != NULL && targets->type == jbvBinary)
	{
		JsonbValue	wanted = {.type = jbvString,.val.string = {.val = after, .len = strlen(after)}};

		if (findJsonbValueFromContainer(targets->val.binary.data, JB_FARRAY, &wanted) != NULL)
			return;
	}
	run->given_up = true;
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_TRANSITION),
			 errmsg("saga \"%s\" has no transition from \"%s\" to \"%s\"", run->saga->name, before, after),
			 errhint("Declare it in \"transitions\".")));
}

/*
 * EvpgReactionApply
 *		Does the actions of a reaction, and writes the instance as it is then; before
 *		is the name of its state before.
 */
void
EvpgReactionApply(EvpgReactionRun *run, const EvpgReaction *reaction, const char *before)
{
	EvpgActionsRun(run, reaction);
	check_transition(run, before);
	run->instance.version++;
	EvpgInstanceWrite(run->item->saga, run->item->key, &run->instance);
}

/* ------------------------------------------------------------------ events */

/* Returns how deep an event is in a chain of sagas that react to what sagas did. */
static int
event_depth(const EvpgEvent *event)
{
	JsonbValue *depth = EvpgEventBookkeeping(event, "depth");
	double		value;

	if (depth == NULL || depth->type != jbvNumeric)
		return 0;

	/*
	 * Metadata may be written by any session, so it need not be a sensible
	 * number.
	 */
	value = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow, NumericGetDatum(depth->val.numeric)));
	return (int) Max(0, Min(value, MAX_DEPTH));
}

/* Whether the version of an instance finds its key in an event: perhaps only another version has found it. */
static bool
is_key_of_version(const EvpgReactionRun *run, const EvpgEvent *event)
{
	ListCell   *cell;

	if (list_length(EvpgSagaVersions(run->saga->name)) < 2)
		return true;
	foreach(cell, EvpgSagaKeys(run->saga, event))
		if (strcmp(lfirst(cell), run->item->key) == 0)
		return true;
	return false;
}

static void
begin_instance(EvpgReactionRun *run)
{
	run->instance.state = run->saga->initial_state;
	run->instance.undo = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("[]")));
	run->instance.saga_version = run->saga->version;
}

/*
 * EvpgReactToEvent
 *		Lets an instance react to an event, in the transaction of EvpgDispatchItem.
 *		Does nothing if the instance is completed, or if the event does not concern
 *		the version of the saga that it has.
 */
void
EvpgReactToEvent(EvpgReactionRun *run, const EvpgEvent *event)
{
	EvpgInstance *instance = &run->instance;
	EvpgReaction reaction;
	const char *before;

	EvpgInstanceRead(run->item->saga, run->item->key, instance);
	if (instance->completed)
		return;
	EvpgReactionFindSaga(run);
	if (!EvpgSagaTakes(run->saga, event) ||
		(!instance->exists && !EvpgSagaStarts(run->saga, event)) || !is_key_of_version(run, event))
		return;
	run->source = EvpgUuidText(&event->event_id);
	run->correlation_id = event->correlation_id != NULL ? event->correlation_id : run->source;
	run->causation_id = run->source;
	run->actor = event->actor;
	run->session_role = event->session_role;
	EvpgContextSetSessionRole(run->session_role);
	run->depth = event_depth(event) + 1;
	EvpgReactionCheckDepth(run);
	if (!instance->exists)
		begin_instance(run);
	before = instance->exists ? EvpgReactionStateName(instance->state) : "";
	EvpgSagaCodeOnEvent(run->saga, run->item->key, instance->state, event, &reaction);
	EVPG_WAIT_POINT("saga_handled");
	/* The saga does not begin an instance for this key. */
	if (!instance->exists && reaction.state == NULL)
		return;
	instance->position = Max(instance->position, event->position);
	EvpgReactionApply(run, &reaction, before);
}
