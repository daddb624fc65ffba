/*-------------------------------------------------------------------------
 *
 * handler.c
 *		Calls the handler of an aggregate, which decides a command: a callback of
 *		a module, or a function in SQL or another language.
 *
 * The events that a module emits are checked as strictly as the JSON form of
 * functions (log/event_constructors.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "aggregate/handler.h"
#include "base/arguments.h"
#include "base/errors.h"
#include "base/settings.h"
#include "catalog/pg_type.h"
#include "usercode/module_callback.h"
#include "utils/array.h"
#include "utils/builtins.h"

/* ------------------------------------------------------------------ modules */

/* Copies a string that a module emitted. */
static char *
read_emitted_text(evpg_json *json, const char *what)
{
	const char *string = json_object_get_string(json);

	if (memchr(string, '\0', json_object_get_string_len(json)) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
				 errmsg("%s contains \\u0000", what)));
	return EvpgModuleCopyText(string, what);
}

static void
raise_bad_member(const char *name, const char *wanted)
{
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_MODULE),
			 errmsg("member \"%s\" of an emitted event is not %s", name, wanted)));
}

/* Reads the tags of an event that a module emitted. */
static ArrayType *
read_emitted_tags(evpg_json *tags)
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
		elements[i] = CStringGetTextDatum(read_emitted_text(tag, "tag"));
	}
	return construct_array(elements, count, TEXTOID, -1, false, TYPALIGN_INT);
}

/* Reads a member of an event that a module emitted; a null member counts as a missing one. */
static void
read_emitted_member(EvpgEvent *event, const char *name, evpg_json *value)
{
	if (strcmp(name, "type") == 0)
	{
		if (json_object_get_type(value) != json_type_string)
			raise_bad_member(name, "a string");
		event->type = read_emitted_text(value, "event type");
	}
	else if (strcmp(name, "data") == 0)
		event->data = EvpgJsonToJsonb(value, "event data");
	else if (strcmp(name, "metadata") == 0)
		event->metadata = EvpgJsonToJsonb(value, "event metadata");
	else if (strcmp(name, "tags") == 0)
		event->tags = read_emitted_tags(value);
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

/* Reads an event that a module emitted, as strictly as the JSON form of functions. */
static void
read_emitted_event(evpg_json *json, EvpgEvent *event)
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
				read_emitted_member(event, name, value);
		}
	}
}

static void
raise_too_many_events(const EvpgCommand *command)
{
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_LIMIT),
			 errmsg("command \"%s\" emits too many events", command->command_type),
			 errdetail("The limit is %d.", EvpgMaxEvents),
			 errhint("Split the command, or let a superuser raise evpg.max_events.")));
}

/*
 * EvpgHandlerOfModule
 *		Returns the callback of a module for a command; raises VE018 if it has none.
 */
const evpg_command_entry *
EvpgHandlerOfModule(const EvpgAggregate *aggregate, const EvpgCommand *command)
{
	const evpg_command_entry *entry = evpg_find_command(&aggregate->module, command->command_type);

	if (entry == NULL)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_UNKNOWN_COMMAND),
				 errmsg("aggregate \"%s\" has no command \"%s\"", command->aggregate_type, command->command_type)));
	return entry;
}

/* Calls the callback of a module for a command. */
static void
decide_by_module(EvpgState *state, const EvpgCommand *command, EvpgDecision *decision)
{
	const evpg_command_entry *entry = EvpgHandlerOfModule(state->aggregate, command);
	evpg_result *result = EvpgModuleResultCreate();
	evpg_command in;

	EvpgModuleCommandSet(&in, command);
	entry->call(result, state->json->json, &in);

	if (result->failed)
		EvpgRaiseModuleFailed(result, "handler", command);
	EvpgModuleResultCheck(result, EVPG_MAY_EMIT | EVPG_MAY_REJECT, "a handler");
	if (result->rejected)
	{
		EvpgDecisionFromModule(result, command, decision);
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
		raise_too_many_events(command);
	decision->count = json_object_array_length(result->events);
	decision->events = palloc(sizeof(EvpgEvent) * decision->count);
	decision->data = palloc(sizeof(evpg_json *) * decision->count);
	for (int i = 0; i < decision->count; i++)
	{
		evpg_json  *emitted = json_object_array_get_idx(result->events, i);

		read_emitted_event(emitted, &decision->events[i]);
		decision->data[i] = evpg_get(emitted, "data");
	}
}

/* ------------------------------------------------------------------ functions */

/* Calls the handler function for a command. */
static void
decide_by_function(EvpgState *state, const EvpgCommand *command, EvpgDecision *decision)
{
	EvpgFunction *handler = state->aggregate->handler;
	Datum		args[2] = {JsonbPGetDatum(state->jsonb), EvpgCommandDatum(command)};
	EvpgRefusableCall call = {.function = handler, .args = args, .max_rows = EvpgMaxEvents + 1};

	EvpgRefusableCallRun(&call);
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
		raise_too_many_events(command);
}

/* ------------------------------------------------------------------ both */

/*
 * EvpgHandlerDecide
 *		Calls the handler with a valid state, which it does not change, and
 *		fills *decision with the events it returns, checked but not stamped.  A
 *		refusal by a module is returned, one by a function is raised.  Results
 *		are in CurrentMemoryContext.  The caller is inside EvpgEnter and holds
 *		the lock or the reservation of the stream.
 */
void
EvpgHandlerDecide(EvpgState *state, const EvpgCommand *command, EvpgDecision *decision)
{
	EvpgAggregateCall code = {
		.role = "handler",
		.aggregate_type = command->aggregate_type,
		.aggregate_id = command->aggregate_id,
		.type = command->command_type,
		.version = command->version
	};

	Assert(state->valid);
	memset(decision, 0, sizeof(EvpgDecision));
	EvpgAggregateCallBegin(&code);
	if (state->aggregate->has_module)
		decide_by_module(state, command, decision);
	else
		decide_by_function(state, command, decision);
	for (int i = 0; i < decision->count; i++)
	{
		EvpgEventCheck(&decision->events[i], i + 1);
		EvpgCheckDerivedMetadata(decision->events[i].metadata, command->metadata);
	}
	EvpgAggregateCallEnd(&code);
}
