/*-------------------------------------------------------------------------
 *
 * action.c
 *		Does the actions of a reaction: sends commands, sets and cancels timers,
 *		compensates, completes, fails (rules 16 to 18).
 *
 * All of it happens in the transaction, and subtransaction, of the reaction: if
 * anything fails nothing of it remains.  A send that is refused is handed to the
 * saga's rejection handler, whose actions are done in its place; if the saga does
 * not handle it, the refusal is raised as an error.
 *
 * The id of a command is derived from saga, key, source and number of the send,
 * so the same reaction always sends the same ids.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/command.h"
#include "base/arguments.h"
#include "base/clock.h"
#include "base/error_context.h"
#include "base/errors.h"
#include "base/jsonb.h"
#include "base/settings.h"
#include "base/sha256.h"
#include "base/testing.h"
#include "miscadmin.h"
#include "saga/action.h"
#include "saga/compensation.h"
#include "saga/stored_command.h"
#include "saga/timer.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* A rejection handler whose own sends are refused is asked again, so often. */
#define MAX_NESTED 10

/* ------------------------------------------------------------------ sending */

/* Derives the id of the next send. */
static char *
derive_command_id(const EvpgAttempt *attempt)
{
	EvpgSha256 *hash = EvpgSha256Begin();

	EvpgSha256AddText(hash, attempt->item->saga);
	EvpgSha256AddText(hash, attempt->item->key);
	EvpgSha256AddText(hash, attempt->source);
	EvpgSha256AddText(hash, psprintf("%d", attempt->sends));
	if (EVPG_MUTATION("saga_new_ids"))
		EvpgSha256AddText(hash, timestamptz_to_str(GetCurrentTimestamp()));
	return psprintf("saga:%s", EvpgSha256EndHex(hash));
}

/* Returns the metadata of a command, with the instance that sends it and the depth of the chain. */
static Jsonb *
stamp_metadata(const EvpgAttempt *attempt, Jsonb *metadata)
{
	JsonbParseState *state = NULL;

	EvpgJsonbBegin(&state);
	EvpgJsonbAddKey(&state, "evpg");
	EvpgJsonbBegin(&state);
	EvpgJsonbAddText(&state, "saga", attempt->item->saga);
	EvpgJsonbAddText(&state, "key", attempt->item->key);
	EvpgJsonbAddInt64(&state, "depth", attempt->depth);
	(void) EvpgJsonbEnd(&state);
	return EvpgJsonbConcat(metadata, EvpgJsonbFinish(&state));
}

/* Raises a refusal that the saga does not handle, with all of its outcome. */
static void
raise_refusal(const EvpgAttempt *attempt, const EvpgOutcome *outcome)
{
	EvpgOutcomeRaise(outcome);
	elog(ERROR, "command of saga \"%s\" was not executed", attempt->item->saga);
}

/* Calls the rejection handler for a send that was refused, and does its actions. */
static void
handle_rejection(EvpgAttempt *attempt, const EvpgCommand *command, const EvpgOutcome *outcome)
{
	EvpgReaction reaction;
	EvpgRejection rejection = {
		.key = attempt->item->key,
		.label = attempt->label,
		.aggregate_type = command->aggregate_type,
		.aggregate_id = command->aggregate_id,
		.command_type = command->command_type,
		.data = command->data,
		.sqlstate = pstrdup(unpack_sql_state(EvpgOutcomeSqlstate(outcome))),
		.code = outcome->code,
		.message = outcome->message,
		.detail = outcome->detail,
		.attempts = attempt->item->attempts,
		.source_position = attempt->item->position
	};

	if (attempt->nested >= MAX_NESTED)
		raise_refusal(attempt, outcome);
	EvpgSagaCodeOnRejection(attempt->saga, attempt->instance.state, &rejection, &reaction);
	EVPG_WAIT_POINT("saga_handled");
	if (reaction.unhandled)
		raise_refusal(attempt, outcome);
	attempt->nested++;
	EvpgActionsRun(attempt, &reaction);
	attempt->nested--;
}

/*
 * Raises the error of a chain of reactions that is too long, which is not tried again,
 * before it gets longer.  A reaction that only hears of it goes on.
 */
static void
check_depth(EvpgAttempt *attempt)
{
	if (attempt->depth <= EvpgMaxSagaDepth)
		return;
	attempt->given_up = true;
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_LIMIT),
			 errmsg("saga \"%s\" reacts to itself, or to others that react to it, without end", attempt->item->saga),
			 errdetail("The chain is %d reactions long; the limit is %d.", attempt->depth, EvpgMaxSagaDepth),
			 errhint("Let an event that a saga has caused end the chain, or let a superuser raise evpg.max_saga_depth.")));
}

static void
send_command(EvpgAttempt *attempt, Jsonb *action)
{
	EvpgCommand command;
	EvpgOutcome outcome;
	Jsonb	   *undo = EvpgMemberObject(action, "undo", "a send");

	attempt->label = EvpgMemberText(action, "label", "a send", true);
	attempt->command = action;
	check_depth(attempt);
	if (undo != NULL)
	{
		/* An invalid undo is reported now, not when it is needed. */
		EvpgCommandFromJsonb(undo, &command);
		if (EvpgJsonbMember(undo, "undo") != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("an undo cannot be undone"),
					 errhint("Leave \"undo\" out of it.")));
	}
	attempt->sends++;
	EvpgCommandFromJsonb(action, &command);
	command.command_id = derive_command_id(attempt);
	command.correlation_id = attempt->correlation_id;
	command.causation_id = attempt->causation_id;
	command.actor = attempt->actor;
	command.session_role = attempt->session_role;
	command.metadata = stamp_metadata(attempt, command.metadata);
	EvpgCommandExecute(&command, true, &outcome);
	if (EvpgOutcomeSqlstate(&outcome) != ERRCODE_SUCCESSFUL_COMPLETION)
		handle_rejection(attempt, &command, &outcome);
	else
	{
		attempt->dispatched++;

		/*
		 * A send in place of an undo that was refused is not undone in its
		 * turn, which might never end.
		 */
		if (undo != NULL && !attempt->compensating)
			EvpgCompensationAdd(attempt, undo);
	}
	EVPG_WAIT_POINT("saga_sent");
	attempt->label = NULL;
	attempt->command = NULL;
}

/* ------------------------------------------------------------------ the other actions */

static void
set_timer(EvpgAttempt *attempt, Jsonb *action)
{
	JsonbValue *delay = EvpgJsonbMember(action, "delay");
	char	   *due_at = EvpgMemberText(action, "due_at", "a timer", true);
	EvpgTimer	timer = {
		.name = EvpgMemberText(action, "timer", "a timer", false),
		.payload = EvpgMemberJsonb(action, "payload"),
		.scheduled_at = EvpgClockNow(),
		.depth = attempt->depth,
		.correlation_id = (char *) attempt->correlation_id,
		.causation_id = (char *) attempt->causation_id,
		.session_role = (char *) attempt->session_role
	};

	EvpgCheckName(timer.name, "timer name");
	EvpgSagaCodeRequireTimerHandler(attempt->saga);
	if ((delay == NULL) == (due_at == NULL) || (delay != NULL && delay->type != jbvNumeric))
		EvpgMemberInvalid("a timer", "delay\" or \"due_at");
	if (delay != NULL)
	{
		double		seconds = DatumGetFloat8(DirectFunctionCall1(numeric_float8, NumericGetDatum(delay->val.numeric)));

		/* Longer than a hundred years is a mistake. */
		if (!(seconds >= 0 && seconds <= 100.0 * 366 * SECS_PER_DAY))
			ereport(ERROR,
					(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
					 errmsg("delay of timer \"%s\" is out of range", timer.name)));
		timer.due_at = timer.scheduled_at + (int64) (seconds * USECS_PER_SEC);
	}
	else
	{
		/*
		 * A time without a zone must not depend on the settings of the
		 * session.
		 */
		EvpgSettingsPin();
		timer.due_at = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in, CStringGetDatum(due_at),
															   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
	}
	if (TIMESTAMP_NOT_FINITE(timer.due_at))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("due_at of timer \"%s\" must be finite", timer.name)));
	/* A chain that waits for a second or more is not a runaway. */
	if (timer.due_at < timer.scheduled_at + USECS_PER_SEC)
		check_depth(attempt);
	(void) EvpgTimerWrite(attempt->item->saga, attempt->item->key, &timer);
}

static void
complete_instance(EvpgAttempt *attempt)
{
	attempt->instance.completed = true;
	attempt->instance.undo = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("[]")));
}

static void
fail_reaction(EvpgAttempt *attempt, Jsonb *action)
{
	attempt->given_up = true;
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_SAGA_FAILED),
			 errmsg("%s", EvpgMemberText(action, "reason", "a failure", false))));
}

static void
do_action(EvpgAttempt *attempt, Jsonb *action)
{
	char	   *verb;

	if (!JB_ROOT_IS_OBJECT(action))
		EvpgMemberInvalid("an action", "do");
	verb = EvpgMemberText(action, "do", "an action", false);
	if (strcmp(verb, "send") == 0)
		send_command(attempt, action);
	else if (strcmp(verb, "schedule") == 0)
		set_timer(attempt, action);
	else if (strcmp(verb, "cancel") == 0)
		EvpgTimerCancel(attempt->item->saga, attempt->item->key, EvpgMemberText(action, "timer", "a timer", false));
	else if (strcmp(verb, "compensate") == 0)
	{
		EvpgCompensationRun(attempt, send_command);
		complete_instance(attempt);
	}
	else if (strcmp(verb, "complete") == 0)
		complete_instance(attempt);
	else if (strcmp(verb, "fail") == 0)
		fail_reaction(attempt, action);
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown action \"%s\"", verb)));
}

/* For the error context: which action of which saga is being done. */
typedef struct ActionErrorContext
{
	ErrorContextCallback callback;
	const EvpgAttempt *attempt;
	int			number;
} ActionErrorContext;

static void
describe_action(void *arg)
{
	ActionErrorContext *where = arg;
	const EvpgAttempt *attempt = where->attempt;

	errcontext("action %d of saga \"%s\", key \"%s\"", where->number, attempt->item->saga, attempt->item->key);
}

/*
 * EvpgActionsRun
 *		Takes over the state of a reaction and does its actions in order; actions
 *		after "complete" are skipped.  The caller holds the lock of the instance, and
 *		writes it afterwards.
 */
void
EvpgActionsRun(EvpgAttempt *attempt, const EvpgReaction *reaction)
{
	ActionErrorContext where = {.attempt = attempt};

	if (reaction->state != NULL)
		attempt->instance.state = reaction->state;
	if (reaction->actions == NULL)
		return;
	EvpgErrorContextPush(&where.callback, describe_action, &where);
	for (uint32 i = 0; i < JB_ROOT_COUNT(reaction->actions) && !attempt->instance.completed; i++)
	{
		where.number = i + 1;
		do_action(attempt, JsonbValueToJsonb(getIthJsonbValueFromContainer(&reaction->actions->root, i)));
		CHECK_FOR_INTERRUPTS();
	}
	EvpgErrorContextPop(&where.callback);
}
