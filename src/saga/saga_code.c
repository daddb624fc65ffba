/*-------------------------------------------------------------------------
 *
 * saga_code.c
 *		Runs the code of a saga, a module's callbacks or functions: what it says
 *		to an event, a refused send, or a timer.
 *
 * Only the code is run here: what a saga says is a state and a list of actions,
 * which nobody has done yet.  A function may read tables, as the handler of an
 * aggregate may.
 *
 * Every call runs under an error context that names the saga, the key and what
 * it reacts to.
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
#include "base/errors.h"
#include "funcapi.h"
#include "saga/saga_code.h"
#include "usercode/keys.h"
#include "usercode/module.h"
#include "usercode/native.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/* evpg.rejection */
#define REJECTION_NATTS		13

/* evpg.fired_timer */
#define FIRED_TIMER_NATTS	7

/* ------------------------------------------------------------------ whose code is running */

typedef struct Frame
{
	ErrorContextCallback callback;
	const char *saga;
	const char *key;			/* NULL: it is being asked for */
	const EvpgEvent *event;		/* one of these three */
	const EvpgRejection *rejection;
	const EvpgFiredTimer *timer;
} Frame;

static void
describe_saga_call(void *arg)
{
	Frame	   *frame = arg;

	if (frame->rejection != NULL)
		errcontext("saga \"%s\", key \"%s\", refused command \"%s\" to stream \"%s\" of aggregate \"%s\"",
				   frame->saga, frame->key, frame->rejection->command_type, frame->rejection->aggregate_id,
				   frame->rejection->aggregate_type);
	else if (frame->timer != NULL)
		errcontext("saga \"%s\", key \"%s\", timer \"%s\"", frame->saga, frame->key, frame->timer->name);
	else if (frame->key != NULL)
		errcontext("saga \"%s\", key \"%s\", event \"%s\" of stream \"%s\" of aggregate \"%s\" at position " INT64_FORMAT,
				   frame->saga, frame->key, frame->event->type, frame->event->aggregate_id,
				   frame->event->aggregate_type, frame->event->position);
	else
		errcontext("key of saga \"%s\", event \"%s\" of stream \"%s\" of aggregate \"%s\" at position " INT64_FORMAT,
				   frame->saga, frame->event->type, frame->event->aggregate_id,
				   frame->event->aggregate_type, frame->event->position);
}

static void
push_saga_context(Frame *frame)
{
	frame->callback.callback = describe_saga_call;
	frame->callback.arg = frame;
	frame->callback.previous = error_context_stack;
	error_context_stack = &frame->callback;
}

static void
pop_saga_context(Frame *frame)
{
	error_context_stack = frame->callback.previous;
}

/* ------------------------------------------------------------------ modules */

static const evpg_saga_definition *
load_saga_module(EvpgSaga *saga)
{
	if (saga->module.events == NULL)
	{
		EvpgModuleCheckRegistrant(saga->library, saga->registered_by);
		EvpgModuleLoadSaga(saga->library, saga->symbol, &saga->module);
	}
	return &saga->module;
}

/* The state of an instance as an object of its own, which goes with CurrentMemoryContext. */
static evpg_json *
instance_state(EvpgSaga *saga, Jsonb *state)
{
	EvpgJsonOwner *owner = EvpgJsonOwn(NULL);

	owner->json = EvpgJsonFromJsonb(state, "saga state");
	if (json_object_get_type(owner->json) != json_type_object)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("state of saga \"%s\" is not a JSON object", saga->name)));
	return owner->json;
}

/* Takes what a callback said; a saga cannot refuse, so a refusal is a failure. */
static void
take_native(EvpgSaga *saga, evpg_json *state, evpg_result *result, EvpgReaction *reaction)
{
	if (result->failed || result->rejected)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("saga \"%s\" failed: %s", saga->name,
						EvpgNativeText(EvpgNativeClip(result)->message, "failure message"))));
	EvpgNativeResultCheck(result, EVPG_MAY_ACT, "a saga");
	reaction->unhandled = result->unhandled;
	if (!result->unhandled)
	{
		reaction->state = EvpgJsonToJsonb(state, "saga state");
		if (result->actions != NULL)
			reaction->actions = EvpgJsonToJsonb(result->actions, "list of actions");
	}
	EvpgNativeResultReset(result);
}

static void
native_event(EvpgSaga *saga, Jsonb *state, const EvpgEvent *event, EvpgReaction *reaction)
{
	const evpg_react_entry *entry = evpg_find_reaction(load_saga_module(saga), event->type);
	evpg_result *result;
	evpg_json  *json;
	EvpgNativeEvent native;

	if (entry == NULL)
	{
		reaction->state = state;
		return;
	}
	result = EvpgNativeResult();
	json = instance_state(saga, state);
	EvpgNativeEventInit(&native);
	EvpgNativeEventSet(&native, event, NULL);
	entry->call(result, json, &native.event);
	take_native(saga, json, result, reaction);
	EvpgNativeEventClear(&native);
}

static evpg_json *
optional_json(const Jsonb *jsonb, const char *what)
{
	EvpgJsonOwner *owner = EvpgJsonOwn(NULL);

	if (jsonb != NULL)
		owner->json = EvpgJsonFromJsonb(jsonb, what);
	return owner->json;
}

static void
native_rejection(EvpgSaga *saga, Jsonb *state, const EvpgRejection *rejection, EvpgReaction *reaction)
{
	evpg_rejected_fn rejected = load_saga_module(saga)->rejected;
	evpg_result *result;
	evpg_json  *json;
	evpg_rejection in;

	if (rejected == NULL)
	{
		reaction->unhandled = true;
		return;
	}
	result = EvpgNativeResult();
	json = instance_state(saga, state);
	in = (evpg_rejection)
	{
		.key = rejection->key,
			.label = rejection->label != NULL ? rejection->label : "",
			.aggregate_type = rejection->aggregate_type,
			.aggregate_id = rejection->aggregate_id,
			.command_type = rejection->command_type,
			.data = optional_json(rejection->data, "command data"),
			.sqlstate = rejection->sqlstate,
			.code = rejection->code != NULL ? rejection->code : "",
			.message = rejection->message,
			.detail = optional_json(rejection->detail, "rejection detail"),
			.attempts = rejection->attempts,
			.source_position = rejection->source_position
	};
	rejected(result, json, &in);
	take_native(saga, json, result, reaction);
}

static void
native_timer(EvpgSaga *saga, Jsonb *state, const EvpgFiredTimer *timer, EvpgReaction *reaction)
{
	const evpg_timer_entry *entry = evpg_find_timer(load_saga_module(saga), timer->name);
	evpg_result *result;
	evpg_json  *json;
	evpg_fired_timer in;

	if (entry == NULL)
	{
		reaction->state = state;
		return;
	}
	result = EvpgNativeResult();
	json = instance_state(saga, state);
	in = (evpg_fired_timer)
	{
		.key = timer->key,
			.name = timer->name,
			.payload = optional_json(timer->payload, "timer payload"),
			.scheduled_at = EvpgNativeTime(timer->scheduled_at),
			.due_at = EvpgNativeTime(timer->due_at),
			.fired_at = EvpgNativeTime(timer->fired_at)
	};
	entry->call(result, json, &in);
	take_native(saga, json, result, reaction);
}

/* ------------------------------------------------------------------ functions */

static EvpgFunction *
resolve_saga_function(EvpgSaga *saga, EvpgFunction **function, const char *signature, EvpgRole role)
{
	if (*function == NULL)
		*function = EvpgFunctionResolveIn(saga->context, signature, role, saga->registered_by, saga->search_path);
	return *function;
}

/* Calls a function that returns evpg.reaction; NULL is unhandled. */
static void
call_function(EvpgFunction *function, Jsonb *state, Datum argument, EvpgReaction *reaction)
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
set_jsonb(Datum *values, bool *nulls, int column, const Jsonb *jsonb)
{
	nulls[column] = (jsonb == NULL);
	values[column] = JsonbPGetDatum(jsonb);
}

/* As evpg.rejection. */
static Datum
rejection_datum(const EvpgSaga *saga, const EvpgRejection *rejection)
{
	Datum		values[REJECTION_NATTS] = {0};
	bool		nulls[REJECTION_NATTS] = {0};

	set_argument_text(values, nulls, 0, saga->name);
	set_argument_text(values, nulls, 1, rejection->key);
	set_argument_text(values, nulls, 2, rejection->label);
	set_argument_text(values, nulls, 3, rejection->aggregate_type);
	set_argument_text(values, nulls, 4, rejection->aggregate_id);
	set_argument_text(values, nulls, 5, rejection->command_type);
	set_jsonb(values, nulls, 6, rejection->data);
	set_argument_text(values, nulls, 7, rejection->sqlstate);
	set_argument_text(values, nulls, 8, rejection->code);
	set_argument_text(values, nulls, 9, rejection->message);
	set_jsonb(values, nulls, 10, rejection->detail);
	values[11] = Int32GetDatum(rejection->attempts);
	values[12] = Int64GetDatum(rejection->source_position);
	nulls[12] = (rejection->source_position == 0);
	return HeapTupleGetDatum(heap_form_tuple(EvpgCatalogGet()->rejection, values, nulls));
}

/* As evpg.fired_timer. */
static Datum
timer_datum(const EvpgSaga *saga, const EvpgFiredTimer *timer)
{
	Datum		values[FIRED_TIMER_NATTS] = {0};
	bool		nulls[FIRED_TIMER_NATTS] = {0};

	set_argument_text(values, nulls, 0, saga->name);
	set_argument_text(values, nulls, 1, timer->key);
	set_argument_text(values, nulls, 2, timer->name);
	set_jsonb(values, nulls, 3, timer->payload);
	values[4] = TimestampTzGetDatum(timer->scheduled_at);
	values[5] = TimestampTzGetDatum(timer->due_at);
	values[6] = TimestampTzGetDatum(timer->fired_at);
	return HeapTupleGetDatum(heap_form_tuple(EvpgCatalogGet()->fired_timer, values, nulls));
}

/* ------------------------------------------------------------------ reacting */

/* Checks the form of a reaction; what its actions mean is for those who do them. */
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

/* Only a refused send can be left to others. */
static void
check_handled(const EvpgSaga *saga, const EvpgReaction *reaction)
{
	if (reaction->unhandled)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 saga->native ?
				 errmsg("saga \"%s\" said evpg_unhandled() to what is not a refused send", saga->name) :
				 errmsg("handler of saga \"%s\" returned null", saga->name),
				 saga->native ? 0 :
				 errhint("If there is nothing to do, return evpg_reaction(state).  A CASE without ELSE returns null.")));
}

/*
 * EvpgSagaCodeOnEvent
 *		What a saga says to an event.  The reaction is in CurrentMemoryContext;
 *		its state may be the one that was given.
 */
void
EvpgSagaCodeOnEvent(EvpgSaga *saga, const char *key, Jsonb *state, const EvpgEvent *event, EvpgReaction *reaction)
{
	Frame		frame = {.saga = saga->name, .key = key, .event = event};

	memset(reaction, 0, sizeof(EvpgReaction));
	push_saga_context(&frame);
	if (saga->native)
		native_event(saga, state, event, reaction);
	else
		call_function(resolve_saga_function(saga, &saga->handler, saga->handler_signature, EVPG_ROLE_SAGA_HANDLER),
					  state, EvpgEventDatum(event), reaction);
	check_handled(saga, reaction);
	check_reaction(saga, reaction);
	pop_saga_context(&frame);
}

/*
 * EvpgSagaCodeOnRejection
 *		The same to a refused send.  If it is unhandled, the reaction says
 *		nothing else.
 */
void
EvpgSagaCodeOnRejection(EvpgSaga *saga, Jsonb *state, const EvpgRejection *rejection, EvpgReaction *reaction)
{
	Frame		frame = {.saga = saga->name, .key = rejection->key, .rejection = rejection};

	memset(reaction, 0, sizeof(EvpgReaction));
	push_saga_context(&frame);
	if (saga->native)
		native_rejection(saga, state, rejection, reaction);
	else if (saga->rejection_signature == NULL)
		reaction->unhandled = true;
	else
		call_function(resolve_saga_function(saga, &saga->rejection_handler, saga->rejection_signature, EVPG_ROLE_SAGA_REJECTION),
					  state, rejection_datum(saga, rejection), reaction);
	check_reaction(saga, reaction);
	pop_saga_context(&frame);
}

/*
 * EvpgSagaCodeOnTimer
 *		The same to a timer that is due.
 */
void
EvpgSagaCodeOnTimer(EvpgSaga *saga, Jsonb *state, const EvpgFiredTimer *timer, EvpgReaction *reaction)
{
	Frame		frame = {.saga = saga->name, .key = timer->key, .timer = timer};

	memset(reaction, 0, sizeof(EvpgReaction));
	push_saga_context(&frame);
	if (saga->native)
		native_timer(saga, state, timer, reaction);
	else if (saga->timer_signature == NULL)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("saga \"%s\" has no timer handler", saga->name),
				 errhint("Register it with a timer_handler.")));
	else
		call_function(resolve_saga_function(saga, &saga->timer_handler, saga->timer_signature, EVPG_ROLE_SAGA_TIMER),
					  state, timer_datum(saga, timer), reaction);
	check_handled(saga, reaction);
	check_reaction(saga, reaction);
	pop_saga_context(&frame);
}

/*
 * EvpgSagaCodeLoad
 *		Finds all the code of a saga.  An error here is no fault of an event: no
 *		instance can react.
 */
void
EvpgSagaCodeLoad(EvpgSaga *saga)
{
	if (saga->native)
		(void) load_saga_module(saga);
	else
		(void) resolve_saga_function(saga, &saga->handler, saga->handler_signature, EVPG_ROLE_SAGA_HANDLER);
	if (saga->rejection_signature != NULL)
		(void) resolve_saga_function(saga, &saga->rejection_handler, saga->rejection_signature, EVPG_ROLE_SAGA_REJECTION);
	if (saga->timer_signature != NULL)
		(void) resolve_saga_function(saga, &saga->timer_handler, saga->timer_signature, EVPG_ROLE_SAGA_TIMER);
	if (saga->key_signature != NULL)
		(void) resolve_saga_function(saga, &saga->key_function, saga->key_signature, EVPG_ROLE_KEY);
}

/* ------------------------------------------------------------------ keys */

/* Whether a library takes an event; of aggregate types those of the registration count, if it names any. */
static bool
module_takes(EvpgSaga *saga, const EvpgEvent *event)
{
	const evpg_saga_definition *module = load_saga_module(saga);
	const char *const *type = saga->aggregate_types == NIL ? module->aggregate_types : NULL;

	while (type != NULL && *type != NULL && strcmp(*type, event->aggregate_type) != 0)
		type++;
	return (type == NULL || *type != NULL) && evpg_find_reaction(module, event->type) != NULL;
}

static List *
find_saga_keys(EvpgSaga *saga, const EvpgEvent *event)
{
	if (saga->native && !module_takes(saga, event))
		return NIL;
	if (saga->key_path != NULL)
		return EvpgKeysByPath(saga->key_path, event, "saga", saga->name);
	if (saga->key_signature != NULL)
		return EvpgKeysByFunction(resolve_saga_function(saga, &saga->key_function, saga->key_signature, EVPG_ROLE_KEY),
								  event, "saga key");
	if (saga->native && saga->module.key != NULL)
		return EvpgKeysByModule(saga->module.key, event, "saga key");
	return list_make1((char *) event->aggregate_id);
}

/*
 * EvpgSagaCodeKeys
 *		The keys of the instances that react to an event, in
 *		CurrentMemoryContext; NIL: none.  What a library does not take has none.
 */
List *
EvpgSagaCodeKeys(EvpgSaga *saga, const EvpgEvent *event)
{
	Frame		frame = {.saga = saga->name, .event = event};
	List	   *keys;

	push_saga_context(&frame);
	keys = find_saga_keys(saga, event);
	pop_saga_context(&frame);
	return keys;
}
