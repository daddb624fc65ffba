/*-------------------------------------------------------------------------
 *
 * saga_code.c
 *		Calls the code of a saga, a module's callbacks or functions, for an event, a
 *		refused send, or a timer.
 *
 * The code returns a reaction, a new state and a list of actions; action.c does
 * these.  A function may read tables, as the handler of an aggregate may.
 *
 * Every call runs under an error context that names the saga, the key, and the
 * event, send or timer.
 *
 * Memory: libraries and functions are resolved at first use into the saga's
 * context; a reaction is in CurrentMemoryContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "access/htup_details.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/error_context.h"
#include "base/errors.h"
#include "base/shape.h"
#include "funcapi.h"
#include "saga/saga_code.h"
#include "usercode/function_call.h"
#include "usercode/module.h"
#include "usercode/module_callback.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/* evpg.rejection */
#define REJECTION_NATTS		13

/* evpg.fired_timer */
#define FIRED_TIMER_NATTS	7

/* ------------------------------------------------------------------ the error context */

static void
describe_saga_call(void *arg)
{
	EvpgSagaCall *call = arg;

	if (call->rejection != NULL)
		errcontext("saga \"%s\", key \"%s\", refused command \"%s\" to stream \"%s\" of aggregate \"%s\"",
				   call->saga, call->key, call->rejection->command_type, call->rejection->aggregate_id,
				   call->rejection->aggregate_type);
	else if (call->timer != NULL)
		errcontext("saga \"%s\", key \"%s\", timer \"%s\"", call->saga, call->key, call->timer->name);
	else if (call->key != NULL)
		errcontext("saga \"%s\", key \"%s\", event \"%s\" of stream \"%s\" of aggregate \"%s\" at position " INT64_FORMAT,
				   call->saga, call->key, call->event->type, call->event->aggregate_id,
				   call->event->aggregate_type, call->event->position);
	else
		errcontext("key of saga \"%s\", event \"%s\" of stream \"%s\" of aggregate \"%s\" at position " INT64_FORMAT,
				   call->saga, call->event->type, call->event->aggregate_id,
				   call->event->aggregate_type, call->event->position);
}

/* Begins a call of code of a saga: errors name it until EvpgSagaCallEnd.  *call must live until then. */
void
EvpgSagaCallBegin(EvpgSagaCall *call)
{
	EvpgErrorContextPush(&call->callback, describe_saga_call, call);
}

/* Ends a call; not needed after an error. */
void
EvpgSagaCallEnd(EvpgSagaCall *call)
{
	EvpgErrorContextPop(&call->callback);
}

/* ------------------------------------------------------------------ modules */

/* Returns the module of a saga that has one, which is loaded at first use. */
const evpg_saga_definition *
EvpgSagaCodeModule(EvpgSaga *saga)
{
	if (saga->module.events == NULL)
	{
		EvpgModuleCheckRegistrant(saga->library, saga->registered_by);
		EvpgModuleLoadSaga(saga->library, saga->symbol, &saga->module);
	}
	return &saga->module;
}

/* Makes the state of an instance as an object of its own, which goes with CurrentMemoryContext. */
static evpg_json *
make_module_state(EvpgSaga *saga, Jsonb *state)
{
	EvpgJsonOwner *owner = EvpgJsonOwn(NULL);

	owner->json = EvpgJsonFromJsonb(state, "saga state");
	if (json_object_get_type(owner->json) != json_type_object)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("state of saga \"%s\" is not a JSON object", saga->name)));
	return owner->json;
}

/* Makes a reaction of the result of a callback; a saga cannot refuse, so a refusal is a failure. */
static void
read_module_result(EvpgSaga *saga, evpg_json *state, evpg_result *result, EvpgReaction *reaction)
{
	if (result->failed || result->rejected)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("saga \"%s\" failed: %s", saga->name,
						EvpgModuleCopyText(EvpgModuleResultClip(result)->message, "failure message"))));
	EvpgModuleResultCheck(result, EVPG_MAY_ACT, "a saga");
	reaction->unhandled = result->unhandled;
	if (!result->unhandled)
	{
		reaction->state = EvpgJsonToJsonb(state, "saga state");
		if (result->actions != NULL)
			reaction->actions = EvpgJsonToJsonb(result->actions, "list of actions");
	}
	EvpgModuleResultReset(result);
}

static void
call_module_handler(EvpgSaga *saga, Jsonb *state, const EvpgEvent *event, EvpgReaction *reaction)
{
	const evpg_react_entry *entry = evpg_find_reaction(EvpgSagaCodeModule(saga), event->type);
	evpg_result *result;
	evpg_json  *json;
	EvpgModuleEvent lent;

	if (entry == NULL)
	{
		reaction->state = state;
		return;
	}
	result = EvpgModuleResultCreate();
	json = make_module_state(saga, state);
	EvpgModuleEventInit(&lent);
	EvpgModuleEventSet(&lent, event, NULL);
	entry->call(result, json, &lent.event);
	read_module_result(saga, json, result, reaction);
	EvpgModuleEventClear(&lent);
}

static evpg_json *
make_optional_json(const Jsonb *jsonb, const char *what)
{
	EvpgJsonOwner *owner = EvpgJsonOwn(NULL);

	if (jsonb != NULL)
		owner->json = EvpgJsonFromJsonb(jsonb, what);
	return owner->json;
}

static void
call_module_rejection_handler(EvpgSaga *saga, Jsonb *state, const EvpgRejection *rejection, EvpgReaction *reaction)
{
	evpg_rejected_fn rejected = EvpgSagaCodeModule(saga)->rejected;
	evpg_result *result;
	evpg_json  *json;
	evpg_rejection in;

	if (rejected == NULL)
	{
		reaction->unhandled = true;
		return;
	}
	result = EvpgModuleResultCreate();
	json = make_module_state(saga, state);
	in = (evpg_rejection)
	{
		.key = rejection->key,
			.label = rejection->label != NULL ? rejection->label : "",
			.aggregate_type = rejection->aggregate_type,
			.aggregate_id = rejection->aggregate_id,
			.command_type = rejection->command_type,
			.data = make_optional_json(rejection->data, "command data"),
			.sqlstate = rejection->sqlstate,
			.code = rejection->code != NULL ? rejection->code : "",
			.message = rejection->message,
			.detail = make_optional_json(rejection->detail, "rejection detail"),
			.attempts = rejection->attempts,
			.source_position = rejection->source_position
	};
	rejected(result, json, &in);
	read_module_result(saga, json, result, reaction);
}

static void
call_module_timer_handler(EvpgSaga *saga, Jsonb *state, const EvpgFiredTimer *timer, EvpgReaction *reaction)
{
	const evpg_timer_entry *entry = evpg_find_timer(EvpgSagaCodeModule(saga), timer->name);
	evpg_result *result;
	evpg_json  *json;
	evpg_fired_timer in;

	if (entry == NULL)
	{
		reaction->state = state;
		return;
	}
	result = EvpgModuleResultCreate();
	json = make_module_state(saga, state);
	in = (evpg_fired_timer)
	{
		.key = timer->key,
			.name = timer->name,
			.payload = make_optional_json(timer->payload, "timer payload"),
			.scheduled_at = EvpgModuleTime(timer->scheduled_at),
			.due_at = EvpgModuleTime(timer->due_at),
			.fired_at = EvpgModuleTime(timer->fired_at)
	};
	entry->call(result, json, &in);
	read_module_result(saga, json, result, reaction);
}

/* ------------------------------------------------------------------ functions */

/*
 * EvpgSagaCodeFunction
 *		Returns a function of a saga, which is resolved at first use into the context
 *		of the saga; *function is its place there.
 */
EvpgFunction *
EvpgSagaCodeFunction(EvpgSaga *saga, EvpgFunction **function, const char *signature, EvpgRole role)
{
	if (*function == NULL)
		*function = EvpgFunctionResolveIn(saga->context, signature, role, saga->registered_by, saga->search_path);
	return *function;
}

/* Calls a function that returns evpg.reaction; NULL is unhandled. */
static void
call_reaction_function(EvpgFunction *function, Jsonb *state, Datum argument, EvpgReaction *reaction)
{
	Datum		args[2] = {JsonbPGetDatum(state), argument};
	Datum	   *rows;
	bool	   *nulls;
	HeapTupleHeader tuple;
	Datum		value;
	bool		isnull;

	if (EvpgFunctionCall(function, args, false, 1, &rows, &nulls) != 1 || nulls[0])
	{
		reaction->unhandled = true;
		return;
	}
	tuple = DatumGetHeapTupleHeader(rows[0]);
	value = GetAttributeByNum(tuple, 1, &isnull);
	reaction->state = isnull ? NULL : DatumGetJsonbP(value);
	value = GetAttributeByNum(tuple, 2, &isnull);
	reaction->actions = isnull ? NULL : DatumGetJsonbP(value);
}

static void
set_argument_text(Datum *values, bool *nulls, int column, const char *text)
{
	nulls[column] = (text == NULL);
	if (text != NULL)
		values[column] = CStringGetTextDatum(text);
}

static void
set_argument_jsonb(Datum *values, bool *nulls, int column, const Jsonb *jsonb)
{
	nulls[column] = (jsonb == NULL);
	values[column] = JsonbPGetDatum(jsonb);
}

/* Makes a row of evpg.rejection. */
static Datum
make_rejection(const EvpgSaga *saga, const EvpgRejection *rejection)
{
	Datum		values[REJECTION_NATTS] = {0};
	bool		nulls[REJECTION_NATTS] = {0};

	set_argument_text(values, nulls, 0, saga->name);
	set_argument_text(values, nulls, 1, rejection->key);
	set_argument_text(values, nulls, 2, rejection->label);
	set_argument_text(values, nulls, 3, rejection->aggregate_type);
	set_argument_text(values, nulls, 4, rejection->aggregate_id);
	set_argument_text(values, nulls, 5, rejection->command_type);
	set_argument_jsonb(values, nulls, 6, rejection->data);
	set_argument_text(values, nulls, 7, rejection->sqlstate);
	set_argument_text(values, nulls, 8, rejection->code);
	set_argument_text(values, nulls, 9, rejection->message);
	set_argument_jsonb(values, nulls, 10, rejection->detail);
	values[11] = Int32GetDatum(rejection->attempts);
	values[12] = Int64GetDatum(rejection->source_position);
	nulls[12] = (rejection->source_position == 0);
	return HeapTupleGetDatum(EvpgShapeFormTuple(EvpgCatalogGet()->rejection, REJECTION_NATTS, values, nulls));
}

/* Makes a row of evpg.fired_timer. */
static Datum
make_fired_timer(const EvpgSaga *saga, const EvpgFiredTimer *timer)
{
	Datum		values[FIRED_TIMER_NATTS] = {0};
	bool		nulls[FIRED_TIMER_NATTS] = {0};

	set_argument_text(values, nulls, 0, saga->name);
	set_argument_text(values, nulls, 1, timer->key);
	set_argument_text(values, nulls, 2, timer->name);
	set_argument_jsonb(values, nulls, 3, timer->payload);
	values[4] = TimestampTzGetDatum(timer->scheduled_at);
	values[5] = TimestampTzGetDatum(timer->due_at);
	values[6] = TimestampTzGetDatum(timer->fired_at);
	return HeapTupleGetDatum(EvpgShapeFormTuple(EvpgCatalogGet()->fired_timer, FIRED_TIMER_NATTS, values, nulls));
}

/* ------------------------------------------------------------------ reacting */

/* Checks the form of a reaction; action.c checks its actions. */
static void
check_reaction(const EvpgSaga *saga, const EvpgReaction *reaction)
{
	if (reaction->state != NULL)
		EvpgJsonbCheckLimits(reaction->state, "saga state");
	if (reaction->actions == NULL)
		return;
	EvpgJsonbCheckLimits(reaction->actions, "list of actions");
	if (!JB_ROOT_IS_ARRAY(reaction->actions) || JB_ROOT_IS_SCALAR(reaction->actions))
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("actions of saga \"%s\" are not a JSON array", saga->name),
				 errhint("Make the reaction with evpg_reaction().")));
}

/* Raises an error if a reaction is left unhandled to something other than a refused send. */
static void
check_handled(const EvpgSaga *saga, const EvpgReaction *reaction)
{
	if (reaction->unhandled)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 saga->has_module ?
				 errmsg("saga \"%s\" called evpg_unhandled() for something other than a refused send", saga->name) :
				 errmsg("handler of saga \"%s\" returned null", saga->name),
				 saga->has_module ? 0 :
				 errhint("If there is nothing to do, return evpg_reaction(state).  A CASE without ELSE returns null.")));
}

static void
begin_reaction(EvpgSagaCall *call, EvpgReaction *reaction)
{
	memset(reaction, 0, sizeof(EvpgReaction));
	EvpgSagaCallBegin(call);
}

static void
end_reaction(EvpgSagaCall *call, const EvpgSaga *saga, const EvpgReaction *reaction)
{
	check_reaction(saga, reaction);
	EvpgSagaCallEnd(call);
}

/*
 * EvpgSagaCodeOnEvent
 *		Calls the handler of a saga for an event.  The reaction is in
 *		CurrentMemoryContext; its state may be the one that was given.  Errors are
 *		those of the code, as for the next two.
 */
void
EvpgSagaCodeOnEvent(EvpgSaga *saga, const char *key, Jsonb *state, const EvpgEvent *event, EvpgReaction *reaction)
{
	EvpgSagaCall call = {.saga = saga->name, .key = key, .event = event};

	begin_reaction(&call, reaction);
	if (saga->has_module)
		call_module_handler(saga, state, event, reaction);
	else
		call_reaction_function(EvpgSagaCodeFunction(saga, &saga->handler, saga->handler_signature, EVPG_ROLE_SAGA_HANDLER),
							   state, EvpgEventDatum(event), reaction);
	check_handled(saga, reaction);
	end_reaction(&call, saga, reaction);
}

/*
 * EvpgSagaCodeOnRejection
 *		Calls the rejection handler for a refused send.  If the saga does not handle
 *		it, only reaction->unhandled is set.
 */
void
EvpgSagaCodeOnRejection(EvpgSaga *saga, Jsonb *state, const EvpgRejection *rejection, EvpgReaction *reaction)
{
	EvpgSagaCall call = {.saga = saga->name, .key = rejection->key, .rejection = rejection};

	begin_reaction(&call, reaction);
	if (saga->has_module)
		call_module_rejection_handler(saga, state, rejection, reaction);
	else if (saga->rejection_signature == NULL)
		reaction->unhandled = true;
	else
		call_reaction_function(EvpgSagaCodeFunction(saga, &saga->rejection_handler, saga->rejection_signature,
													EVPG_ROLE_SAGA_REJECTION),
							   state, make_rejection(saga, rejection), reaction);
	end_reaction(&call, saga, reaction);
}

/*
 * EvpgSagaCodeRequireTimerHandler
 *		Raises an error if a saga has no code for timers: what it schedules
 *		would fail when it is due.
 */
void
EvpgSagaCodeRequireTimerHandler(EvpgSaga *saga)
{
	if (saga->has_module ? EvpgSagaCodeModule(saga)->timers == NULL : saga->timer_signature == NULL)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("saga \"%s\" has no timer handler", saga->name),
				 saga->has_module ? errhint("Let its definition have timers.") :
				 errhint("Register it with a timer_handler.")));
}

/*
 * EvpgSagaCodeOnTimer
 *		Calls the timer handler for a timer that is due.
 */
void
EvpgSagaCodeOnTimer(EvpgSaga *saga, Jsonb *state, const EvpgFiredTimer *timer, EvpgReaction *reaction)
{
	EvpgSagaCall call = {.saga = saga->name, .key = timer->key, .timer = timer};

	begin_reaction(&call, reaction);
	if (saga->has_module)
		call_module_timer_handler(saga, state, timer, reaction);
	else
	{
		EvpgSagaCodeRequireTimerHandler(saga);
		call_reaction_function(EvpgSagaCodeFunction(saga, &saga->timer_handler, saga->timer_signature, EVPG_ROLE_SAGA_TIMER),
							   state, make_fired_timer(saga, timer), reaction);
	}
	check_handled(saga, reaction);
	end_reaction(&call, saga, reaction);
}

/*
 * EvpgSagaCodeLoad
 *		Finds all the code of a saga.  An error here is not due to an event: no
 *		instance can react.
 */
void
EvpgSagaCodeLoad(EvpgSaga *saga)
{
	if (saga->has_module)
		(void) EvpgSagaCodeModule(saga);
	else
		(void) EvpgSagaCodeFunction(saga, &saga->handler, saga->handler_signature, EVPG_ROLE_SAGA_HANDLER);
	if (saga->rejection_signature != NULL)
		(void) EvpgSagaCodeFunction(saga, &saga->rejection_handler, saga->rejection_signature, EVPG_ROLE_SAGA_REJECTION);
	if (saga->timer_signature != NULL)
		(void) EvpgSagaCodeFunction(saga, &saga->timer_handler, saga->timer_signature, EVPG_ROLE_SAGA_TIMER);
	if (saga->key_signature != NULL)
		(void) EvpgSagaCodeFunction(saga, &saga->key_function, saga->key_signature, EVPG_ROLE_KEY);
}
