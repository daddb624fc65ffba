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
 * EvpgReactionLoadSaga
 *		Sets attempt->saga to the version of the saga that the instance has, for a new one
 *		the highest; an error if it is not registered any more.
 */
void
EvpgReactionLoadSaga(EvpgAttempt *attempt)
{
	attempt->saga = EvpgSagaGet(attempt->item->saga, attempt->instance.exists ? attempt->instance.saga_version : 0, true);
	if (attempt->saga == NULL)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_UNKNOWN_CONSUMER),
				 errmsg("version %d of saga \"%s\" is not registered", attempt->instance.saga_version,
						attempt->item->saga)));
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
check_transition(EvpgAttempt *attempt, const char *before)
{
	Jsonb	   *transitions = attempt->saga->transitions;
	char	   *after = EvpgReactionStateName(attempt->instance.state);
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
	attempt->given_up = true;
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_TRANSITION),
			 errmsg("saga \"%s\" has no transition from \"%s\" to \"%s\"", attempt->saga->name, before, after),
			 errhint("Declare it in \"transitions\".")));
}

/*
 * EvpgReactionApply
 *		Does the actions of a reaction, and writes the instance as it is then; before
 *		is the name of its state before.
 */
void
EvpgReactionApply(EvpgAttempt *attempt, const EvpgReaction *reaction, const char *before)
{
	EvpgActionsRun(attempt, reaction);
	check_transition(attempt, before);
	attempt->instance.version++;
	EvpgInstanceWrite(attempt->item->saga, attempt->item->key, &attempt->instance);
}

/* ------------------------------------------------------------------ events */

/* Returns how deep an event is in a chain of sagas that react to what sagas did. */
static int
get_event_depth(const EvpgEvent *event)
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

/* Returns whether the version of an instance finds its key in an event: perhaps only another version has found it. */
static bool
is_key_of_version(const EvpgAttempt *attempt, const EvpgEvent *event)
{
	ListCell   *cell;

	if (list_length(EvpgSagaVersions(attempt->saga->name)) < 2)
		return true;
	foreach(cell, EvpgSagaKeys(attempt->saga, event))
		if (strcmp(lfirst(cell), attempt->item->key) == 0)
		return true;
	return false;
}

static void
begin_instance(EvpgAttempt *attempt)
{
	attempt->instance.state = attempt->saga->initial_state;
	attempt->instance.undo = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("[]")));
	attempt->instance.saga_version = attempt->saga->version;
}

/*
 * EvpgReactToEvent
 *		Lets an instance, which the caller has locked and read, react to an event.  Does
 *		nothing if the instance is completed, or if the event does not concern the
 *		version of the saga that it has.  Sets the session role, which the caller sets back.
 */
void
EvpgReactToEvent(EvpgAttempt *attempt, const EvpgEvent *event)
{
	EvpgInstance *instance = &attempt->instance;
	EvpgReaction reaction;
	const char *before;

	if (instance->completed)
		return;
	EvpgReactionLoadSaga(attempt);
	if (!EvpgSagaTakes(attempt->saga, event) ||
		(!instance->exists && !EvpgSagaStarts(attempt->saga, event)) || !is_key_of_version(attempt, event))
		return;
	attempt->source = EvpgUuidText(&event->event_id);
	attempt->correlation_id = event->correlation_id != NULL ? event->correlation_id : attempt->source;
	attempt->causation_id = attempt->source;
	attempt->actor = event->actor;
	attempt->session_role = event->session_role;
	EvpgContextSetSessionRole(attempt->session_role);
	attempt->depth = get_event_depth(event) + 1;
	if (!instance->exists)
		begin_instance(attempt);
	before = instance->exists ? EvpgReactionStateName(instance->state) : "";
	EvpgSagaCodeOnEvent(attempt->saga, attempt->item->key, instance->state, event, &reaction);
	EVPG_WAIT_POINT("saga_handled");
	/* The saga does not begin an instance for this key. */
	if (!instance->exists && reaction.state == NULL)
		return;
	instance->position = Max(instance->position, event->position);
	EvpgReactionApply(attempt, &reaction, before);
}
