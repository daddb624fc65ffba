/*-------------------------------------------------------------------------
 *
 * aggregate_code.c
 *		Runs the code of an aggregate, a module's callbacks or functions: a
 *		handler decides, a reducer folds, an invariant checks.
 *
 * A module's state is a json-c object that folds change in place; a function's
 * is a jsonb that every fold replaces.  An event of a command is folded while
 * its position is not drawn yet; a fold must not depend on it.
 *
 * Every call runs under an error context that says whose code it is.  A domain
 * refusal of a function is an error (evpg_reject); any other error is a defect
 * and passes unchanged.
 *
 * Memory: EvpgState has a context of its own, child of the one current at
 * EvpgStateInit; what is needed for one event only is in its scratch context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "aggregate/aggregate_code.h"
#include "base/arguments.h"
#include "base/error_context.h"
#include "base/errors.h"
#include "base/settings.h"
#include "base/subtransaction.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* Whose code is running, for error messages. */
typedef struct Frame
{
	ErrorContextCallback callback;
	const char *role;
	const char *aggregate_type;
	const char *aggregate_id;
	const char *type;			/* of the command or event */
	int64		version;
	int64		position;
} Frame;

static void
describe_aggregate_call(void *arg)
{
	Frame	   *frame = arg;

	if (frame->position > 0)
		errcontext("%s of aggregate \"%s\", stream \"%s\", event \"%s\" of version " INT64_FORMAT " at position " INT64_FORMAT,
				   frame->role, frame->aggregate_type, frame->aggregate_id, frame->type, frame->version, frame->position);
	else
		errcontext("%s of aggregate \"%s\", stream \"%s\", \"%s\" at version " INT64_FORMAT,
				   frame->role, frame->aggregate_type, frame->aggregate_id, frame->type, frame->version);
}

/* What a refusal says that has no message of its own; code NULL: it has none either. */
static char *
default_message(const char *aggregate_type, const char *aggregate_id, const char *command_type, const char *code)
{
	return psprintf("command \"%s\" of %s \"%s\" was refused%s%s", command_type, aggregate_type, aggregate_id,
					code != NULL ? ": " : "", code != NULL ? code : "");
}

/*
 * EvpgReducerDefaultMessage
 *		The message of a refusal that a function raises with a code alone: names
 *		the command that is being decided, if there is one.
 */
char *
EvpgReducerDefaultMessage(const char *code)
{
	for (ErrorContextCallback *callback = error_context_stack; callback != NULL; callback = callback->previous)
	{
		Frame	   *frame = callback->arg;

		/* A reducer decides nothing: what it raises is a defect. */
		if (callback->callback == describe_aggregate_call)
			return strcmp(frame->role, "reducer") == 0 ? pstrdup(code) :
				default_message(frame->aggregate_type, frame->aggregate_id, frame->type, code);
	}
	return pstrdup(code);
}

/* ------------------------------------------------------------------ states */

/* Makes an empty *state; give it a value with EvpgStateReset. */
void
EvpgStateInit(EvpgState *state, EvpgAggregate *aggregate)
{
	MemoryContext old;

	memset(state, 0, sizeof(EvpgState));
	state->aggregate = aggregate;
	state->context = AllocSetContextCreate(CurrentMemoryContext, "EvpgState", ALLOCSET_DEFAULT_SIZES);
	state->scratch = AllocSetContextCreate(state->context, "EvpgState event", ALLOCSET_DEFAULT_SIZES);
	if (aggregate->native)
	{
		old = MemoryContextSwitchTo(state->context);
		state->json = EvpgJsonOwn(NULL);
		EvpgNativeEventInit(&state->event);
		MemoryContextSwitchTo(old);
	}
}

static Jsonb *
copy_jsonb(MemoryContext context, const Jsonb *jsonb)
{
	Jsonb	   *copy = MemoryContextAlloc(context, VARSIZE_ANY(jsonb));

	memcpy(copy, jsonb, VARSIZE_ANY(jsonb));
	return copy;
}

/* Gives a state its value; for a module it must be an object.  Copies value. */
void
EvpgStateReset(EvpgState *state, const Jsonb *value, int64 version, int64 last_position)
{
	if (state->aggregate->native)
	{
		EvpgJsonFree(EvpgJsonLetGo(state->json));
		state->json->json = EvpgJsonFromJsonb(value, "state");
		state->size = EvpgJsonSize(state->json->json, "state");
		state->growth = 0;
	}
	else
		state->jsonb = copy_jsonb(state->context, value);
	state->version = version;
	state->last_position = last_position;
	state->snapshot_version = 0;
	state->valid = true;
}

/* The state as jsonb; a function's is the state's own, a module's a new one. */
Jsonb *
EvpgStateValue(EvpgState *state)
{
	return state->aggregate->native ? EvpgJsonToJsonb(state->json->json, "state") : state->jsonb;
}

/* ------------------------------------------------------------------ folding */

static void
fold_native(EvpgState *state, const EvpgEvent *event, evpg_json *data)
{
	const evpg_event_entry *entry = evpg_find_event(&state->aggregate->module, event->type);

	if (entry == NULL)
	{
		state->aggregate->counters->unknown_events++;
		return;
	}
	EvpgNativeEventSet(&state->event, event, data);
	entry->call(state->json->json, &state->event.event);
	EvpgNativeEventClear(&state->event);

	/*
	 * A walk over the state costs, so what was folded in counts until it is a
	 * quarter of it.  The walk refuses a state that has become too deep for
	 * json-c, or contains itself.
	 */
	state->growth += 256 + (event->data != NULL ? 4 * (Size) VARSIZE_ANY(event->data) : 0);
	if (state->growth > state->size / 4)
	{
		state->size = EvpgJsonSize(state->json->json, "state");
		state->growth = 0;
	}
}

static void
fold_by_function(EvpgState *state, const EvpgEvent *event)
{
	EvpgFunction *reducer = state->aggregate->reducer;
	Datum		args[2] = {JsonbPGetDatum(state->jsonb), EvpgEventDatum(event)};
	Datum	   *rows;
	bool	   *nulls;
	Jsonb	   *next;

	if (EvpgFunctionCall(reducer, args, true, 1, &rows, &nulls) != 1 || nulls[0])
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("reducer %s returned null", reducer->signature),
				 errdetail("A reducer returns the new state, or the same state for an event that changes nothing."),
				 errhint("A CASE without ELSE returns null: add ELSE state.  So does an expression with a null in it, such as "
						 "state->'a' || event.data->'b' or jsonb_set(): set parentheses around each ->, and use coalesce().")));
	next = copy_jsonb(state->context, DatumGetJsonbP(rows[0]));
	pfree(state->jsonb);
	state->jsonb = next;
}

/*
 * EvpgReducerFold
 *		Folds an event into a state.  The state is not valid in between: an
 *		error leaves it marked so.  data is the event's data as json-c, if the
 *		caller has it.
 */
void
EvpgReducerFold(EvpgState *state, const EvpgEvent *event, evpg_json *data)
{
	MemoryContext old = MemoryContextSwitchTo(state->scratch);
	Frame		frame = {
		.role = "reducer",
		.aggregate_type = event->aggregate_type,
		.aggregate_id = event->aggregate_id,
		.type = event->type,
		.version = event->version,
		.position = event->position
	};

	state->valid = false;
	EvpgErrorContextPush(&frame.callback, describe_aggregate_call, &frame);
	if (state->aggregate->native)
		fold_native(state, event, data);
	else
		fold_by_function(state, event);
	EvpgErrorContextPop(&frame.callback);
	state->version = event->version;
	state->last_position = event->position;
	state->valid = true;
	state->aggregate->counters->folds++;
	MemoryContextSwitchTo(old);
	MemoryContextReset(state->scratch);
}

/* ------------------------------------------------------------------ refusals of functions */

/* A call of a function that may refuse. */
typedef struct Call
{
	EvpgFunction *function;
	Datum	   *args;
	int			max_rows;
	Datum	   *rows;
	bool	   *row_nulls;
	int			count;
} Call;

static void
run_call(void *arg)
{
	Call	   *call = arg;

	call->count = EvpgFunctionCall(call->function, call->args, false, call->max_rows, &call->rows, &call->row_nulls);
}

/* A text that may be JSON. */
typedef struct DetailParse
{
	const char *text;
	Jsonb	   *jsonb;
} DetailParse;

static void
parse_detail(void *arg)
{
	DetailParse *parse = arg;

	parse->jsonb = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(parse->text)));
}

/*
 * EvpgDecisionFromError
 *		What a refusal says that was raised.
 */
void
EvpgDecisionFromError(const ErrorData *error, EvpgDecision *decision)
{
	memset(decision, 0, sizeof(EvpgDecision));
	decision->rejected = true;
	decision->code = error->constraint_name;
	decision->message = error->message;
	decision->hint = error->hint;
	if (error->detail != NULL)
	{
		DetailParse parse = {.text = error->detail};

		/*
		 * By evpg_reject it is JSON; by RAISE it may be any text, also JSON
		 * that jsonb cannot hold: the answer remains a refusal.
		 */
		ErrorData  *not_jsonb = EvpgSubtransactionRun(parse_detail, &parse);

		if (not_jsonb != NULL && EvpgErrorIsCancel(not_jsonb))
			ReThrowError(not_jsonb);
		if (not_jsonb != NULL)
		{
			JsonbValue	string = {
				.type = jbvString,
				.val.string.val = error->detail,
				.val.string.len = strlen(error->detail)
			};

			parse.jsonb = JsonbValueToJsonb(&string);
		}
		decision->detail = parse.jsonb;
	}
}

/*
 * Runs a call whose refusal is an answer of another SQLSTATE than the function
 * gives it: in a subtransaction; false is returned if it refused (VE002 or the
 * one given) and *decision says how.
 */
static bool
run_refusable(Call *call, int also, EvpgDecision *decision)
{
	ErrorData  *error = EvpgSubtransactionRun(run_call, call);

	if (error == NULL)
		return true;
	if (error->sqlerrcode != EVPG_ERRCODE_REJECTED && error->sqlerrcode != also)
		ReThrowError(error);
	EvpgDecisionFromError(error, decision);
	return false;
}

/* ------------------------------------------------------------------ deciding */

static void
take_native_refusal(evpg_result *result, const EvpgCommand *command, EvpgDecision *decision)
{
	decision->rejected = true;
	(void) EvpgNativeClip(result);
	decision->code = EvpgNativeText(result->code, "rejection code");
	decision->message = EvpgNativeText(result->message, "rejection message");
	if (decision->code[0] == '\0')
		decision->code = NULL;
	if (decision->message[0] == '\0')
		decision->message = default_message(command->aggregate_type, command->aggregate_id, command->command_type,
											decision->code);
	if (result->detail != NULL)
		decision->detail = EvpgJsonToJsonb(result->detail, "rejection detail");
}

static void
raise_failed(evpg_result *result, const char *role, const EvpgCommand *command)
{
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_MODULE),
			 errmsg("%s of aggregate \"%s\" failed: %s", role, command->aggregate_type,
					EvpgNativeText(EvpgNativeClip(result)->message, "failure message"))));
}

/* A string that a module emitted, copied. */
static char *
text_from_json(evpg_json *json, const char *what)
{
	const char *string = json_object_get_string(json);

	if (memchr(string, '\0', json_object_get_string_len(json)) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
				 errmsg("%s contains \\u0000", what)));
	return EvpgNativeText(string, what);
}

static void
raise_bad_member(const char *name, const char *wanted)
{
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_MODULE),
			 errmsg("member \"%s\" of an emitted event is not %s", name, wanted)));
}

static ArrayType *
tags_from_json(evpg_json *tags)
{
	size_t		count;
	Datum	   *elements;

	if (json_object_get_type(tags) != json_type_array)
		raise_bad_member("tags", "an array of strings");
	count = json_object_array_length(tags);
	elements = palloc(sizeof(Datum) * Max(count, 1));
	for (size_t i = 0; i < count; i++)
	{
		evpg_json  *tag = json_object_array_get_idx(tags, i);

		if (json_object_get_type(tag) != json_type_string)
			raise_bad_member("tags", "an array of strings");
		elements[i] = CStringGetTextDatum(text_from_json(tag, "tag"));
	}
	return construct_array(elements, count, TEXTOID, -1, false, TYPALIGN_INT);
}

/* A member of an event that a module emitted; null members are as if they were not there. */
static void
take_member(EvpgEvent *event, const char *name, evpg_json *value)
{
	if (strcmp(name, "type") == 0)
	{
		if (json_object_get_type(value) != json_type_string)
			raise_bad_member(name, "a string");
		event->type = text_from_json(value, "event type");
	}
	else if (strcmp(name, "data") == 0)
		event->data = EvpgJsonToJsonb(value, "event data");
	else if (strcmp(name, "metadata") == 0)
		event->metadata = EvpgJsonToJsonb(value, "event metadata");
	else if (strcmp(name, "tags") == 0)
		event->tags = tags_from_json(value);
	else if (strcmp(name, "schema_version") == 0)
	{
		int64		version = json_object_get_int64(value);

		if (json_object_get_type(value) != json_type_int || version < 1 || version > PG_INT32_MAX)
			raise_bad_member(name, "a positive integer");
		event->schema_version = (int) version;
	}
	else
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("an emitted event has an unknown member")));
}

/* An event that a module emitted; as strict as the JSON form of functions. */
static void
event_from_json(evpg_json *json, EvpgEvent *event)
{
	memset(event, 0, sizeof(EvpgEvent));
	event->schema_version = 1;
	if (json_object_get_type(json) != json_type_object)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("an emitted event is not a JSON object")));
	{
		json_object_object_foreach(json, name, value)
		{
			if (value != NULL)
				take_member(event, name, value);
		}
	}
}

static void
raise_too_many(const EvpgCommand *command)
{
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_LIMIT),
			 errmsg("command \"%s\" emits too many events", command->command_type),
			 errdetail("The limit is %d.", EvpgMaxEvents),
			 errhint("Split the command, or let a superuser raise evpg.max_events.")));
}

static void
decide_native(EvpgState *state, const EvpgCommand *command, EvpgDecision *decision)
{
	const evpg_command_entry *entry = evpg_find_command(&state->aggregate->module, command->command_type);
	evpg_result *result = EvpgNativeResult();
	EvpgJsonOwner *data = EvpgJsonOwn(NULL);
	EvpgJsonOwner *metadata = EvpgJsonOwn(NULL);
	evpg_command in;

	if (entry == NULL)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_UNKNOWN_COMMAND),
				 errmsg("aggregate \"%s\" has no command \"%s\"", command->aggregate_type, command->command_type)));
	if (command->data != NULL)
	{
		data->json = EvpgJsonFromJsonb(command->data, "command data");
		if (data->json != NULL && json_object_get_type(data->json) != json_type_object)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("data of command \"%s\" must be a JSON object", command->command_type)));
	}
	if (command->metadata != NULL)
		metadata->json = EvpgJsonFromJsonb(command->metadata, "command metadata");

	in = (evpg_command)
	{
		.version = state->version,
			.aggregate_type = command->aggregate_type,
			.aggregate_id = command->aggregate_id,
			.type = command->command_type,
			.data = data->json,
			.metadata = metadata->json,
			.command_id = command->command_id,
			.correlation_id = command->correlation_id,
			.causation_id = command->causation_id,
			.actor = command->actor,
			.session_role = command->session_role,
			.received_at = EvpgNativeTime(command->received_at)
	};
	entry->call(result, state->json->json, &in);

	if (result->failed)
		raise_failed(result, "handler", command);
	EvpgNativeResultCheck(result, EVPG_MAY_EMIT | EVPG_MAY_REJECT, "a handler");
	if (result->rejected)
	{
		take_native_refusal(result, command, decision);
		return;
	}
	if (result->events == NULL)
		return;
	if (!json_object_is_type(result->events, json_type_array))
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("events of a handler are not a JSON array"),
				 errhint("Emit them with evpg_emit().")));
	if (json_object_array_length(result->events) > (size_t) EvpgMaxEvents)
		raise_too_many(command);
	decision->count = json_object_array_length(result->events);
	decision->events = palloc(sizeof(EvpgEvent) * decision->count);
	decision->data = palloc(sizeof(evpg_json *) * decision->count);
	for (int i = 0; i < decision->count; i++)
	{
		evpg_json  *emitted = json_object_array_get_idx(result->events, i);

		event_from_json(emitted, &decision->events[i]);
		decision->data[i] = evpg_get(emitted, "data");
	}
}

static void
decide_by_function(EvpgState *state, const EvpgCommand *command, EvpgDecision *decision)
{
	EvpgFunction *handler = state->aggregate->handler;
	Datum		args[2] = {JsonbPGetDatum(state->jsonb), EvpgCommandDatum(command)};
	Call		call = {.function = handler, .args = args, .max_rows = EvpgMaxEvents + 1};

	run_call(&call);
	if (handler->result_type == JSONBOID)
	{
		Jsonb	   *jsonb = call.count == 0 || call.row_nulls[0] ? NULL : DatumGetJsonbP(call.rows[0]);

		JsonbValue	scalar;

		/* null, in SQL or JSON, is no event */
		if (jsonb != NULL && !(JsonbExtractScalar(&jsonb->root, &scalar) && scalar.type == jbvNull))
			decision->count = EvpgEventsFromJsonb(jsonb, &decision->events);
	}
	else
	{
		decision->events = palloc(sizeof(EvpgEvent) * Max(call.count, 1));
		for (int i = 0; i < call.count; i++)
			if (!call.row_nulls[i] &&
				EvpgEventFromNewEvent(DatumGetHeapTupleHeader(call.rows[i]), &decision->events[decision->count]))
				decision->count++;
	}
	if (decision->count > EvpgMaxEvents || call.count > EvpgMaxEvents)
		raise_too_many(command);
}

/*
 * EvpgHandlerDecide
 *		Lets the handler decide a command on a state, which it does not change.
 *		The answer is in CurrentMemoryContext.  A refusal by a module is
 *		returned, one by a function raised.
 */
void
EvpgHandlerDecide(EvpgState *state, const EvpgCommand *command, EvpgDecision *decision)
{
	Frame		frame = {
		.role = "handler",
		.aggregate_type = command->aggregate_type,
		.aggregate_id = command->aggregate_id,
		.type = command->command_type,
		.version = state->version
	};

	Assert(state->valid);
	memset(decision, 0, sizeof(EvpgDecision));
	EvpgErrorContextPush(&frame.callback, describe_aggregate_call, &frame);
	if (state->aggregate->native)
		decide_native(state, command, decision);
	else
		decide_by_function(state, command, decision);
	for (int i = 0; i < decision->count; i++)
	{
		EvpgEventCheck(&decision->events[i], i + 1);
		EvpgCheckDerivedMetadata(decision->events[i].metadata, command->metadata);
	}
	EvpgErrorContextPop(&frame.callback);
}

/*
 * EvpgInvariantHolds
 *		Whether the invariant holds of a state; if not, *why says why.  A refusal
 *		by a function is always caught: it is an answer of another SQLSTATE.
 */
bool
EvpgInvariantHolds(EvpgState *state, const EvpgCommand *command, EvpgDecision *why)
{
	EvpgAggregate *aggregate = state->aggregate;
	bool		holds = true;
	Frame		frame = {
		.role = "invariant",
		.aggregate_type = command->aggregate_type,
		.aggregate_id = command->aggregate_id,
		.type = command->command_type,
		.version = state->version
	};

	memset(why, 0, sizeof(EvpgDecision));
	EvpgErrorContextPush(&frame.callback, describe_aggregate_call, &frame);
	if (aggregate->native && aggregate->module.invariant != NULL)
	{
		evpg_result *result = EvpgNativeResult();

		holds = aggregate->module.invariant(result, state->json->json);
		if (result->failed)
			raise_failed(result, "invariant", command);
		EvpgNativeResultCheck(result, EVPG_MAY_REJECT, "an invariant");
		if (result->rejected)
			take_native_refusal(result, command, why);
		holds = holds && !result->rejected;
	}
	else if (!aggregate->native && aggregate->invariant != NULL)
	{
		Datum		args[1] = {JsonbPGetDatum(state->jsonb)};
		Call		call = {.function = aggregate->invariant, .args = args, .max_rows = 1};

		holds = run_refusable(&call, EVPG_ERRCODE_INVARIANT, why) &&
			(call.count != 1 || call.row_nulls[0] || DatumGetBool(call.rows[0]));
	}
	EvpgErrorContextPop(&frame.callback);
	if (!holds && !why->rejected)
	{
		why->rejected = true;
		why->code = pstrdup("invariant");
		why->message = psprintf("command \"%s\" would violate the invariant of aggregate \"%s\"",
								command->command_type, command->aggregate_type);
	}
	return holds;
}

/*
 * EvpgInterceptorCall
 *		Lets an interceptor see and change a command.  False if it refused and
 *		*why says how: it is an answer of another SQLSTATE, so it is always caught.
 */
bool
EvpgInterceptorCall(EvpgInterceptor *interceptor, EvpgCommand *command, EvpgDecision *why)
{
	Datum		args[1] = {EvpgCommandDatum(command)};
	Call		call = {.function = EvpgInterceptorFunction(interceptor), .args = args, .max_rows = 1};
	EvpgCommand changed;
	bool		passed;
	Frame		frame = {
		.role = psprintf("interceptor \"%s\"", interceptor->name),
		.aggregate_type = command->aggregate_type,
		.aggregate_id = command->aggregate_id,
		.type = command->command_type
	};

	memset(why, 0, sizeof(EvpgDecision));
	EvpgErrorContextPush(&frame.callback, describe_aggregate_call, &frame);
	passed = run_refusable(&call, EVPG_ERRCODE_INTERCEPTED, why);
	if (passed)
	{
		if (call.count != 1 || call.row_nulls[0])
			ereport(ERROR,
					(errcode(EVPG_ERRCODE_MODULE),
					 errmsg("interceptor \"%s\" returned null", interceptor->name),
					 errhint("Return the command, or refuse it with evpg_reject().")));
		(void) EvpgCommandFromTuple(DatumGetHeapTupleHeader(call.rows[0]), &changed);
		changed.received_at = command->received_at;
		changed.session_role = command->session_role;
		EvpgCommandCheck(&changed);
		EvpgCheckDerivedMetadata(changed.metadata, command->metadata);
		changed.metadata = EvpgKeepOwnMetadata(changed.metadata, command->metadata);
		if (changed.command_id == NULL || command->command_id == NULL ||
			strcmp(changed.command_id, command->command_id) != 0)
			EvpgCheckCallersCommandId(changed.command_id);
		if (strcmp(changed.aggregate_type, command->aggregate_type) != 0 ||
			strcmp(changed.aggregate_id, command->aggregate_id) != 0)
			ereport(ERROR,
					(errcode(EVPG_ERRCODE_MODULE),
					 errmsg("interceptor \"%s\" must not change aggregate type and id", interceptor->name)));
		*command = changed;
	}
	EvpgErrorContextPop(&frame.callback);
	return passed;
}
