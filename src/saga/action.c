/*-------------------------------------------------------------------------
 *
 * action.c
 *		Does what a saga has said: sends commands, sets timers, compensates,
 *		completes, fails (rules 16 to 18).
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
#include "base/errors.h"
#include "base/settings.h"
#include "base/testing.h"
#include "catalog/pg_type.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "miscadmin.h"
#include "saga/action.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* A rejection handler whose own sends are refused is asked again, so often. */
#define MAX_NESTED 10

/* ------------------------------------------------------------------ parts of an action */

static JsonbValue *
find_member(Jsonb *object, const char *name)
{
	JsonbValue *value = getKeyJsonValueFromContainer(&object->root, name, strlen(name), NULL);

	return value == NULL || value->type == jbvNull ? NULL : value;
}

static void
raise_invalid(const char *what, const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("\"%s\" of %s is missing, or is not of the right type", name, what),
			 errhint("Make actions with evpg_action_send() and its like.")));
}

/* A text; NULL if it is not there and need not be. */
static char *
get_member_text(Jsonb *object, const char *name, const char *what, bool required)
{
	JsonbValue *value = find_member(object, name);

	if (value == NULL && !required)
		return NULL;
	if (value == NULL || value->type != jbvString)
		raise_invalid(what, name);
	return pnstrdup(value->val.string.val, value->val.string.len);
}

static Jsonb *
get_member_jsonb(Jsonb *object, const char *name)
{
	JsonbValue *value = find_member(object, name);

	return value == NULL ? NULL : JsonbValueToJsonb(value);
}

/* An object; NULL if it is not there. */
static Jsonb *
get_object(Jsonb *object, const char *name, const char *what)
{
	Jsonb	   *value = get_member_jsonb(object, name);

	if (value != NULL && !JB_ROOT_IS_OBJECT(value))
		raise_invalid(what, name);
	return value;
}

/*
 * A command that is kept as an object: of an action, or of evpg_schedule_command().  It
 * is checked.
 */
void
EvpgCommandFromJsonb(Jsonb *jsonb, EvpgCommand *command)
{
	JsonbValue *expected = find_member(jsonb, "expected_version");

	memset(command, 0, sizeof(EvpgCommand));
	command->aggregate_type = get_member_text(jsonb, "aggregate_type", "a command", true);
	command->aggregate_id = get_member_text(jsonb, "aggregate_id", "a command", true);
	command->command_type = get_member_text(jsonb, "command_type", "a command", true);
	command->data = get_member_jsonb(jsonb, "data");
	if (command->data == NULL)
		command->data = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")));
	command->metadata = get_object(jsonb, "metadata", "a command");
	command->command_id = get_member_text(jsonb, "command_id", "a command", false);
	command->actor = get_member_text(jsonb, "actor", "a command", false);
	command->correlation_id = get_member_text(jsonb, "correlation_id", "a command", false);
	command->causation_id = get_member_text(jsonb, "causation_id", "a command", false);
	if (expected != NULL)
	{
		if (expected->type != jbvNumeric)
			raise_invalid("a command", "expected_version");
		command->has_expected = true;
		command->expected_version = DatumGetInt64(DirectFunctionCall1(numeric_int8,
																	  NumericGetDatum(expected->val.numeric)));
	}
	EvpgCheckName(command->aggregate_type, "aggregate type");
	EvpgCheckId(command->aggregate_id, "aggregate id");
	EvpgCheckName(command->command_type, "command type");
	EvpgCommandCheck(command);
}

/* ------------------------------------------------------------------ sending */

static void
hash_command_id_text(pg_cryptohash_ctx *hash, const char *text)
{
	/* The NUL too: it keeps neighbours apart. */
	if (pg_cryptohash_update(hash, (const uint8 *) text, strlen(text) + 1) < 0)
		elog(ERROR, "could not compute hash: %s", pg_cryptohash_error(hash));
}

static char *
derive_command_id(const EvpgReactionRun *acting)
{
	pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA256);
	uint8		digest[PG_SHA256_DIGEST_LENGTH];
	char	   *id = palloc0(5 + 2 * PG_SHA256_DIGEST_LENGTH + 1);

	if (hash == NULL || pg_cryptohash_init(hash) < 0)
		elog(ERROR, "could not compute hash: %s", pg_cryptohash_error(hash));
	hash_command_id_text(hash, acting->work->saga);
	hash_command_id_text(hash, acting->work->key);
	hash_command_id_text(hash, acting->source);
	hash_command_id_text(hash, psprintf("%d", acting->sends));
	if (EVPG_MUTATION("saga_new_ids"))
		hash_command_id_text(hash, timestamptz_to_str(GetCurrentTimestamp()));
	if (pg_cryptohash_final(hash, digest, sizeof(digest)) < 0)
		elog(ERROR, "could not compute hash: %s", pg_cryptohash_error(hash));
	pg_cryptohash_free(hash);
	strcpy(id, "saga:");
	(void) hex_encode((const char *) digest, sizeof(digest), id + 5);
	return id;
}

static void
push_text(JsonbParseState **state, const char *name, const char *text)
{
	JsonbValue	key = {.type = jbvString,.val.string = {.val = (char *) name, .len = strlen(name)}};
	JsonbValue	value = {.type = jbvString,.val.string = {.val = (char *) text, .len = strlen(text)}};

	(void) pushJsonbValue(state, WJB_KEY, &key);
	(void) pushJsonbValue(state, WJB_VALUE, &value);
}

/* The metadata of a command, with whose it is and how deep. */
static Jsonb *
stamp_metadata(const EvpgReactionRun *acting, Jsonb *metadata)
{
	JsonbParseState *state = NULL;
	JsonbValue	key = {.type = jbvString,.val.string = {.val = "evpg", .len = 4}};
	JsonbValue	depth_key = {.type = jbvString,.val.string = {.val = "depth", .len = 5}};
	JsonbValue	depth = {.type = jbvNumeric,.val.numeric = int64_to_numeric(acting->depth)};
	Jsonb	   *own;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	(void) pushJsonbValue(&state, WJB_KEY, &key);
	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_text(&state, "saga", acting->work->saga);
	push_text(&state, "key", acting->work->key);
	(void) pushJsonbValue(&state, WJB_KEY, &depth_key);
	(void) pushJsonbValue(&state, WJB_VALUE, &depth);
	(void) pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	own = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
	if (metadata == NULL)
		return own;
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(metadata), JsonbPGetDatum(own)));
}

/* A refusal that the saga does not handle: an error with all that the outcome says. */
static void
raise_refusal(const EvpgReactionRun *acting, const EvpgOutcome *outcome)
{
	EvpgOutcomeRaise(outcome);
	elog(ERROR, "command of saga \"%s\" was not executed", acting->work->saga);
}

/* Asks the saga what to do about a send that was refused, and does it. */
static void
handle_rejection(EvpgReactionRun *acting, const EvpgCommand *command, const EvpgOutcome *outcome)
{
	EvpgReaction reaction;
	EvpgRejection rejection = {
		.key = acting->work->key,
		.label = acting->label,
		.aggregate_type = command->aggregate_type,
		.aggregate_id = command->aggregate_id,
		.command_type = command->command_type,
		.data = command->data,
		.sqlstate = pstrdup(unpack_sql_state(EvpgOutcomeSqlstate(outcome))),
		.code = outcome->code,
		.message = outcome->message,
		.detail = outcome->detail,
		.attempts = acting->work->attempts,
		.source_position = acting->work->position
	};

	if (acting->nested >= MAX_NESTED)
		raise_refusal(acting, outcome);
	EvpgSagaCodeOnRejection(acting->saga, acting->instance.state, &rejection, &reaction);
	EVPG_WAIT_POINT("saga_handled");
	if (reaction.unhandled)
		raise_refusal(acting, outcome);
	acting->nested++;
	EvpgActionsRun(acting, &reaction);
	acting->nested--;
}

/* Replaces the list of what can be undone, which may be long: what making it took is given back. */
static void
change_undo(EvpgReactionRun *acting, PGFunction change, Datum first, Datum second)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "EvpgUndo", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Jsonb	   *changed = DatumGetJsonbP(DirectFunctionCall2(change, first, second));
	Jsonb	   *undo;

	MemoryContextSwitchTo(old);
	undo = palloc(VARSIZE(changed));
	memcpy(undo, changed, VARSIZE(changed));
	MemoryContextDelete(context);
	pfree(acting->instance.undo);
	acting->instance.undo = undo;
}

/* Puts the command that undoes another one before those that are there. */
static void
push_undo(EvpgReactionRun *acting, Jsonb *undo)
{
	JsonbParseState *state = NULL;
	JsonbValue	value;
	Jsonb	   *first;

	JsonbToJsonbValue(undo, &value);
	(void) pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	(void) pushJsonbValue(&state, WJB_ELEM, &value);
	first = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL));
	change_undo(acting, jsonb_concat, JsonbPGetDatum(first), JsonbPGetDatum(acting->instance.undo));
}

static void
do_send(EvpgReactionRun *acting, Jsonb *action)
{
	EvpgCommand command;
	EvpgOutcome outcome;
	Jsonb	   *undo = get_object(action, "undo", "a send");

	acting->label = get_member_text(action, "label", "a send", false);
	acting->command = action;
	if (undo != NULL)
	{
		/* Not when it is needed, but now. */
		EvpgCommandFromJsonb(undo, &command);
		if (find_member(undo, "undo") != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("an undo cannot be undone"),
					 errhint("Leave \"undo\" out of it.")));
	}
	acting->sends++;
	EvpgCommandFromJsonb(action, &command);
	command.command_id = derive_command_id(acting);
	command.correlation_id = acting->correlation_id;
	command.causation_id = acting->causation_id;
	command.actor = acting->actor;
	command.session_role = acting->session_role;
	command.metadata = stamp_metadata(acting, command.metadata);
	EvpgCommandExecute(&command, true, &outcome);
	if (EvpgOutcomeSqlstate(&outcome) != ERRCODE_SUCCESSFUL_COMPLETION)
		handle_rejection(acting, &command, &outcome);
	else
	{
		acting->dispatched++;

		/*
		 * What takes the place of an undo is not undone in its turn, which
		 * might never end.
		 */
		if (undo != NULL && !acting->compensating)
			push_undo(acting, undo);
	}
	EVPG_WAIT_POINT("saga_sent");
	acting->label = NULL;
	acting->command = NULL;
}

/* ------------------------------------------------------------------ the other actions */

static void
do_schedule(EvpgReactionRun *acting, Jsonb *action)
{
	JsonbValue *delay = find_member(action, "delay");
	char	   *due_at = get_member_text(action, "due_at", "a timer", false);
	EvpgTimer	timer = {
		.name = get_member_text(action, "timer", "a timer", true),
		.payload = get_member_jsonb(action, "payload"),
		.scheduled_at = EvpgClockNow(),
		.depth = acting->depth,
		.correlation_id = (char *) acting->correlation_id,
		.causation_id = (char *) acting->causation_id,
		.session_role = (char *) acting->session_role
	};

	EvpgCheckName(timer.name, "timer name");
	if ((delay == NULL) == (due_at == NULL) || (delay != NULL && delay->type != jbvNumeric))
		raise_invalid("a timer", "delay\" or \"due_at");
	if (delay != NULL)
	{
		double		seconds = DatumGetFloat8(DirectFunctionCall1(numeric_float8, NumericGetDatum(delay->val.numeric)));

		/* A hundred years are enough for everybody. */
		if (!(seconds >= 0 && seconds <= 100.0 * 366 * SECS_PER_DAY))
			ereport(ERROR,
					(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
					 errmsg("delay of timer \"%s\" is out of range", timer.name)));
		timer.due_at = timer.scheduled_at + (int64) (seconds * USECS_PER_SEC);
	}
	else
	{
		/* The same time whoever reads it, if it has no zone. */
		EvpgSettingsPin();
		timer.due_at = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in, CStringGetDatum(due_at),
															   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
	}
	if (TIMESTAMP_NOT_FINITE(timer.due_at))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("due_at of timer \"%s\" must be finite", timer.name)));
	(void) EvpgTimerWrite(acting->work->saga, acting->work->key, &timer);
}

static void
complete_instance(EvpgReactionRun *acting)
{
	acting->instance.completed = true;
	acting->instance.undo = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("[]")));
}

/* Undoes what was sent, the last one first, then completes. */
static void
compensate_instance(EvpgReactionRun *acting)
{
	acting->compensating = true;
	while (!acting->instance.completed && JB_ROOT_COUNT(acting->instance.undo) > 0)
	{
		Jsonb	   *undo = JsonbValueToJsonb(getIthJsonbValueFromContainer(&acting->instance.undo->root, 0));

		change_undo(acting, jsonb_delete_idx, JsonbPGetDatum(acting->instance.undo), Int32GetDatum(0));
		do_send(acting, undo);
		CHECK_FOR_INTERRUPTS();
	}
	complete_instance(acting);
}

static void
fail_reaction(EvpgReactionRun *acting, Jsonb *action)
{
	acting->given_up = true;
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_SAGA_FAILED),
			 errmsg("%s", get_member_text(action, "reason", "a failure", true))));
}

static void
do_action(EvpgReactionRun *acting, Jsonb *action)
{
	char	   *verb;

	if (!JB_ROOT_IS_OBJECT(action))
		raise_invalid("an action", "do");
	verb = get_member_text(action, "do", "an action", true);
	if (strcmp(verb, "send") == 0)
		do_send(acting, action);
	else if (strcmp(verb, "schedule") == 0)
		do_schedule(acting, action);
	else if (strcmp(verb, "cancel") == 0)
		EvpgTimerCancel(acting->work->saga, acting->work->key, get_member_text(action, "timer", "a timer", true));
	else if (strcmp(verb, "compensate") == 0)
		compensate_instance(acting);
	else if (strcmp(verb, "complete") == 0)
		complete_instance(acting);
	else if (strcmp(verb, "fail") == 0)
		fail_reaction(acting, action);
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown action \"%s\"", verb)));
}

/* Which action of which saga is being done. */
typedef struct Frame
{
	ErrorContextCallback callback;
	const EvpgReactionRun *acting;
	int			number;
} Frame;

static void
describe_action(void *arg)
{
	Frame	   *frame = arg;
	const EvpgReactionRun *acting = frame->acting;

	errcontext("action %d of saga \"%s\", key \"%s\"", frame->number, acting->work->saga, acting->work->key);
}

/*
 * EvpgActionsRun
 *		Takes over the state of a reaction and does its actions in order; what
 *		comes after complete is skipped.
 */
void
EvpgActionsRun(EvpgReactionRun *acting, const EvpgReaction *reaction)
{
	Frame		frame = {
		.callback = {.previous = error_context_stack, .callback = describe_action, .arg = &frame},
		.acting = acting
	};

	if (reaction->state != NULL)
		acting->instance.state = reaction->state;
	if (reaction->actions == NULL)
		return;
	error_context_stack = &frame.callback;
	for (uint32 i = 0; i < JB_ROOT_COUNT(reaction->actions) && !acting->instance.completed; i++)
	{
		frame.number = i + 1;
		do_action(acting, JsonbValueToJsonb(getIthJsonbValueFromContainer(&reaction->actions->root, i)));
		CHECK_FOR_INTERRUPTS();
	}
	error_context_stack = frame.callback.previous;
}
