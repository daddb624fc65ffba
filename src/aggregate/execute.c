/*-------------------------------------------------------------------------
 *
 * execute.c
 *		The SQL functions that execute commands and append events: evpg_execute,
 *		evpg_try_execute, evpg_append, evpg_append_event, evpg_inject,
 *		evpg_create_stream.
 *
 * Each checks its arguments, becomes the owner of the tables, calls the command
 * path, and returns rows (write_call.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "aggregate/command.h"
#include "aggregate/context.h"
#include "aggregate/write_call.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "log/condition.h"
#include "log/early_release.h"
#include "log/event_log.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

PG_FUNCTION_INFO_V1(evpg_execute);
PG_FUNCTION_INFO_V1(evpg_try_execute);
PG_FUNCTION_INFO_V1(evpg_append);
PG_FUNCTION_INFO_V1(evpg_append_event);
PG_FUNCTION_INFO_V1(evpg_inject);
PG_FUNCTION_INFO_V1(evpg_create_stream);

/* Reads and checks the arguments of evpg_execute and evpg_try_execute. */
static void
read_command_from_arguments(FunctionCallInfo fcinfo, EvpgCommand *command)
{
	enum
	{
		ARG_AGGREGATE_TYPE, ARG_AGGREGATE_ID, ARG_COMMAND_TYPE, ARG_DATA, ARG_EXPECTED_VERSION,
		ARG_COMMAND_ID, ARG_METADATA, ARG_ACTOR, ARG_CORRELATION_ID, ARG_CAUSATION_ID
	};

	memset(command, 0, sizeof(EvpgCommand));
	command->aggregate_type = EvpgArgName(fcinfo, ARG_AGGREGATE_TYPE, "aggregate type");
	command->aggregate_id = EvpgArgId(fcinfo, ARG_AGGREGATE_ID, "aggregate id");
	command->command_type = EvpgArgName(fcinfo, ARG_COMMAND_TYPE, "command type");
	command->data = EvpgArgJsonb(fcinfo, ARG_DATA, "command data");
	command->has_expected = !PG_ARGISNULL(ARG_EXPECTED_VERSION);
	if (command->has_expected)
		command->expected_version = PG_GETARG_INT64(ARG_EXPECTED_VERSION);
	command->command_id = EvpgArgOptionalId(fcinfo, ARG_COMMAND_ID, "command id");
	command->metadata = EvpgArgJsonb(fcinfo, ARG_METADATA, "command metadata");
	command->actor = EvpgArgOptionalId(fcinfo, ARG_ACTOR, "actor");
	command->correlation_id = EvpgArgOptionalId(fcinfo, ARG_CORRELATION_ID, "correlation id");
	command->causation_id = EvpgArgOptionalId(fcinfo, ARG_CAUSATION_ID, "causation id");
	EvpgCommandCheck(command);
	EvpgCheckCallersMetadata(command->metadata);
	EvpgCheckCallersCommandId(command->command_id);
}

/* Executes the command of evpg_execute or evpg_try_execute; the outcome lives to the end of the call. */
static void
execute_arguments(FunctionCallInfo fcinfo, EvpgWriteCall *call, bool catch, const char *writer, EvpgOutcome *outcome)
{
	EvpgCommand command;

	EvpgReturnSetBegin(fcinfo, catch ? EvpgCatalogGet()->outcome : EvpgCatalogGet()->event);
	EvpgWriteCallBegin(call);
	read_command_from_arguments(fcinfo, &command);
	EvpgEnterUnpinned(&call->scope, writer);
	EvpgCommandExecute(&command, catch, outcome);
	EvpgLeave(&call->scope);
}

/*
 * evpg_execute
 *		SQL: evpg_execute(aggregate_type, aggregate_id, command_type, data,
 *		...).  Executes a command and returns its events; raises a refusal
 *		(VE001, VE002, VE006, VE011).
 */
Datum
evpg_execute(PG_FUNCTION_ARGS)
{
	EvpgWriteCall call;
	EvpgOutcome outcome;

	execute_arguments(fcinfo, &call, false, "evpg_execute()", &outcome);
	EvpgOutcomeRaise(&outcome);
	EvpgReturnEvents(fcinfo, outcome.events, outcome.count);
	EvpgWriteCallEnd(&call);
	PG_RETURN_NULL();
}

/*
 * evpg_try_execute
 *		SQL: evpg_try_execute(...).  Executes a command as evpg_execute does, but
 *		returns a refusal as a row of evpg.outcome.
 */
Datum
evpg_try_execute(PG_FUNCTION_ARGS)
{
	EvpgWriteCall call;
	EvpgOutcome outcome;

	execute_arguments(fcinfo, &call, true, "evpg_try_execute()", &outcome);
	EvpgOutcomeReturnRow(fcinfo, &outcome);
	EvpgWriteCallEnd(&call);
	PG_RETURN_NULL();
}

/* Where the arguments are that evpg_append and evpg_append_event have in common, behind those that identify the stream. */
typedef struct AppendArguments
{
	int			expected_version;
	int			command_id;
	int			metadata;
	int			actor;
	int			correlation_id;
	int			causation_id;
	int			condition;
} AppendArguments;

/* Appends checked events as the other arguments of the call ask for; the outcome lives to the end of the call. */
static void
append_with_arguments(FunctionCallInfo fcinfo, EvpgWriteCall *call, const char *writer, const AppendArguments *args,
					  EvpgEvent *events, int count, EvpgOutcome *outcome)
{
	/* One name for both: a command id is known to both, too. */
	EvpgCommand command = {.command_type = "evpg_append"};

	command.aggregate_type = EvpgArgName(fcinfo, 0, "aggregate type");
	command.aggregate_id = EvpgArgId(fcinfo, 1, "aggregate id");
	command.has_expected = !PG_ARGISNULL(args->expected_version);
	if (command.has_expected)
		command.expected_version = PG_GETARG_INT64(args->expected_version);
	command.command_id = EvpgArgOptionalId(fcinfo, args->command_id, "command id");
	command.metadata = EvpgArgJsonb(fcinfo, args->metadata, "command metadata");
	command.actor = EvpgArgOptionalId(fcinfo, args->actor, "actor");
	command.correlation_id = EvpgArgOptionalId(fcinfo, args->correlation_id, "correlation id");
	command.causation_id = EvpgArgOptionalId(fcinfo, args->causation_id, "causation id");
	EvpgCommandCheck(&command);
	EvpgCheckCallersMetadata(command.metadata);
	EvpgCheckCallersCommandId(command.command_id);
	if (!PG_ARGISNULL(args->condition))
		command.condition = EvpgConditionFromJsonb(PG_GETARG_JSONB_P(args->condition));

	EvpgContextFill(&command);
	EvpgEnterUnpinned(&call->scope, writer);
	EvpgCommandAppend(&command, events, count, NULL, outcome);
	EvpgLeave(&call->scope);
	EvpgOutcomeRaise(outcome);
}

/*
 * evpg_append
 *		SQL: evpg_append(aggregate_type, aggregate_id, events, ...).  Appends
 *		events that the caller decided, and returns them.
 */
Datum
evpg_append(PG_FUNCTION_ARGS)
{
	static const AppendArguments args = {3, 4, 5, 6, 7, 8, 9};
	EvpgWriteCall call;
	EvpgOutcome outcome;
	EvpgEvent  *events;
	int			count;

	EvpgReturnSetBegin(fcinfo, EvpgCatalogGet()->event);
	EvpgWriteCallBegin(&call);
	EvpgArgRefuseNull(fcinfo, 2, "events");
	count = EvpgEventsFromArray(PG_GETARG_ARRAYTYPE_P(2), &events);
	EvpgCheckCallersEvents(events, count);
	append_with_arguments(fcinfo, &call, "evpg_append()", &args, events, count, &outcome);
	EvpgReturnEvents(fcinfo, outcome.events, outcome.count);
	EvpgWriteCallEnd(&call);
	PG_RETURN_NULL();
}

/* Reads and checks the event that the arguments of evpg_append_event describe, as evpg_event() would make it of them. */
static void
read_event_from_arguments(FunctionCallInfo fcinfo, EvpgEvent *event)
{
	enum
	{
		ARG_EVENT_TYPE = 2, ARG_DATA, ARG_TAGS = 10, ARG_SCHEMA_VERSION, ARG_OCCURRED_AT, ARG_EVENT_ID
	};

	memset(event, 0, sizeof(EvpgEvent));
	EvpgArgRefuseNull(fcinfo, ARG_EVENT_TYPE, "event type");
	event->type = text_to_cstring(PG_GETARG_TEXT_PP(ARG_EVENT_TYPE));
	event->data = PG_ARGISNULL(ARG_DATA) ? NULL : PG_GETARG_JSONB_P(ARG_DATA);
	event->tags = PG_ARGISNULL(ARG_TAGS) ? NULL : PG_GETARG_ARRAYTYPE_P(ARG_TAGS);
	event->schema_version = PG_ARGISNULL(ARG_SCHEMA_VERSION) ? 1 : PG_GETARG_INT32(ARG_SCHEMA_VERSION);
	event->has_occurred_at = !PG_ARGISNULL(ARG_OCCURRED_AT);
	if (event->has_occurred_at)
		event->occurred_at = PG_GETARG_TIMESTAMPTZ(ARG_OCCURRED_AT);
	event->has_event_id = !PG_ARGISNULL(ARG_EVENT_ID);
	if (event->has_event_id)
		event->event_id = *PG_GETARG_UUID_P(ARG_EVENT_ID);
	EvpgCheckCallersEvents(event, 1);
}

/* Returns the descriptor of the row (version, position), which lives as long as the calls of this place in a statement. */
static TupleDesc
get_place_desc(FunctionCallInfo fcinfo)
{
	if (fcinfo->flinfo->fn_extra == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
		TupleDesc	desc = CreateTemplateTupleDesc(2);

		TupleDescInitEntry(desc, 1, "version", INT8OID, -1, 0);
		TupleDescInitEntry(desc, 2, "position", INT8OID, -1, 0);
		fcinfo->flinfo->fn_extra = BlessTupleDesc(desc);
		MemoryContextSwitchTo(old);
	}
	return fcinfo->flinfo->fn_extra;
}

/*
 * evpg_append_event
 *		SQL: evpg_append_event(aggregate_type, aggregate_id, event_type, data,
 *		...).  Appends one event as evpg_append does, and returns its version
 *		and position: neither takes or returns a row type of evpg or an array.
 */
Datum
evpg_append_event(PG_FUNCTION_ARGS)
{
	static const AppendArguments args = {4, 5, 6, 7, 8, 9, 14};
	EvpgWriteCall call;
	EvpgOutcome outcome;
	EvpgEvent	event;
	Datum		values[2];
	bool		nulls[2] = {false, false};

	EvpgWriteCallBegin(&call);
	read_event_from_arguments(fcinfo, &event);
	append_with_arguments(fcinfo, &call, "evpg_append_event()", &args, &event, 1, &outcome);
	Assert(outcome.count == 1);
	values[0] = Int64GetDatum(outcome.events[0].version);
	values[1] = Int64GetDatum(outcome.events[0].position);
	EvpgWriteCallEnd(&call);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(get_place_desc(fcinfo), values, nulls)));
}

/*
 * Returns what evpg itself writes into the metadata of an injected event, NULL
 * if nothing: whether sagas may react to it, since they may have done so where
 * it comes from, and how long the chain of reactions is that led to it there,
 * so that a chain over several systems ends as well.
 */
static Jsonb *
make_injected_metadata(const EvpgEvent *event, bool run_sagas)
{
	JsonbValue *depth = EvpgEventBookkeeping(event, "depth");
	StringInfoData own;

	if (depth != NULL && depth->type != jbvNumeric)
		depth = NULL;
	if (run_sagas && depth == NULL)
		return NULL;
	initStringInfo(&own);
	appendStringInfoString(&own, "{\"evpg\": {");
	if (!run_sagas)
		appendStringInfoString(&own, "\"no_sagas\": true");
	if (depth != NULL)
		appendStringInfo(&own, "%s\"depth\": %s", run_sagas ? "" : ", ",
						 DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(depth->val.numeric))));
	appendStringInfoString(&own, "}}");
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(own.data)));
}

/*
 * evpg_inject
 *		SQL: evpg_inject(aggregate_type, aggregate_id, event, run_sagas, ...).
 *		Appends an event as it was elsewhere, perhaps in another evpg: whatever
 *		evpg_read_all() returns there can be injected here.  Returns it, or no
 *		row if an event of this id exists.  The context of this session is not
 *		that of the event.
 *
 * Sessions that inject one event id take turns by a lock on it, and then by
 * the event itself, so that the second sees the event of the first.  The lock comes
 * after that of the stream, as in a session that has the stream already.
 */
Datum
evpg_inject(PG_FUNCTION_ARGS)
{
	enum
	{
		ARG_AGGREGATE_TYPE, ARG_AGGREGATE_ID, ARG_EVENT, ARG_RUN_SAGAS, ARG_ACTOR, ARG_CORRELATION_ID,
		ARG_CAUSATION_ID
	};
	EvpgWriteCall call;
	EvpgCommand command = {.command_type = "evpg_inject"};
	EvpgOutcome outcome;
	EvpgEvent	event;

	EvpgReturnSetBegin(fcinfo, EvpgCatalogGet()->event);
	EvpgWriteCallBegin(&call);
	command.aggregate_type = EvpgArgName(fcinfo, ARG_AGGREGATE_TYPE, "aggregate type");
	command.aggregate_id = EvpgArgId(fcinfo, ARG_AGGREGATE_ID, "aggregate id");
	if (PG_ARGISNULL(ARG_EVENT) || !EvpgEventFromNewEvent(PG_GETARG_HEAPTUPLEHEADER(ARG_EVENT), &event))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("event must not be null")));
	EvpgEventCheck(&event, 1);
	command.actor = EvpgArgOptionalId(fcinfo, ARG_ACTOR, "actor");
	command.correlation_id = EvpgArgOptionalId(fcinfo, ARG_CORRELATION_ID, "correlation id");
	command.causation_id = EvpgArgOptionalId(fcinfo, ARG_CAUSATION_ID, "causation id");
	EvpgCommandCheck(&command);
	command.metadata = make_injected_metadata(&event, !PG_ARGISNULL(ARG_RUN_SAGAS) && PG_GETARG_BOOL(ARG_RUN_SAGAS));
	if (event.metadata != NULL)
		event.metadata = DatumGetJsonbP(DirectFunctionCall2(jsonb_delete, JsonbPGetDatum(event.metadata),
															CStringGetTextDatum("evpg")));
	EvpgContextFillSessionRole(&command);

	EvpgEnter(&call.scope, "evpg_inject()");
	EvpgCatalogLockForAppend(false);

	/*
	 * Before the stream is locked: this may wait for another transaction that
	 * may want the stream.
	 */
	if (!event.has_event_id || !EvpgLogHasEventId(&event.event_id))
	{
		pg_uuid_t	event_id = event.event_id;

		/* The append fills in an id that is missing. */
		EvpgCommandAppend(&command, &event, 1, event.has_event_id ? &event_id : NULL, &outcome);
		if (outcome.status == EVPG_STATUS_OK)
			EvpgReturnEvents(fcinfo, outcome.events, outcome.count);
	}
	else
		EvpgEarlyReleaseAwaitOthers();
	EvpgLeave(&call.scope);
	EvpgWriteCallEnd(&call);
	PG_RETURN_NULL();
}

/*
 * evpg_create_stream
 *		SQL: evpg_create_stream(aggregate_type, aggregate_id).  Creates an empty
 *		stream; returns false if it exists.
 */
Datum
evpg_create_stream(PG_FUNCTION_ARGS)
{
	EvpgWriteCall call;
	EvpgStream	stream = {0};
	bool		created;

	EvpgWriteCallBegin(&call);
	stream.aggregate_type = EvpgArgName(fcinfo, 0, "aggregate type");
	stream.aggregate_id = EvpgArgId(fcinfo, 1, "aggregate id");
	EvpgEnter(&call.scope, "evpg_create_stream()");
	created = EvpgCommandCreateStream(&stream);
	EvpgLeave(&call.scope);
	if (!created)
		EvpgEarlyReleaseAwaitOthers();
	EvpgWriteCallEnd(&call);
	PG_RETURN_BOOL(created);
}
