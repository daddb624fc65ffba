/*-------------------------------------------------------------------------
 *
 * execute.c
 *		The SQL functions that write: execute, append, inject.
 *
 * Each checks its arguments, becomes the owner of the tables, calls the command
 * path, and returns rows.  All memory of a call is in one context, deleted at
 * its end, or by an ERROR with its parent.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "aggregate/command.h"
#include "aggregate/context.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/settings.h"
#include "base/statement.h"
#include "funcapi.h"
#include "log/event_log.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(evpg_execute);
PG_FUNCTION_INFO_V1(evpg_try_execute);
PG_FUNCTION_INFO_V1(evpg_append);
PG_FUNCTION_INFO_V1(evpg_inject);
PG_FUNCTION_INFO_V1(evpg_create_stream);

/* One call from SQL. */
typedef struct Entry
{
	MemoryContext caller;
	MemoryContext context;
	EvpgScope	scope;
} Entry;

static void
begin_entry(Entry *entry)
{
	entry->caller = CurrentMemoryContext;
	entry->context = AllocSetContextCreate(CurrentMemoryContext, "EvpgCall", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(entry->context);
}

static void
end_entry(Entry *entry)
{
	MemoryContextSwitchTo(entry->caller);
	MemoryContextDelete(entry->context);
}

/* The arguments of evpg_execute and evpg_try_execute. */
static void
command_from_arguments(FunctionCallInfo fcinfo, EvpgCommand *command)
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

static void
return_events(FunctionCallInfo fcinfo, const EvpgOutcome *outcome)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	for (int i = 0; i < outcome->count; i++)
	{
		Datum		values[EVPG_EVENT_NATTS];
		bool		nulls[EVPG_EVENT_NATTS];

		EvpgEventValues(&outcome->events[i], values, nulls);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
}

Datum
evpg_execute(PG_FUNCTION_ARGS)
{
	Entry		entry;
	EvpgCommand command;
	EvpgOutcome outcome;

	InitMaterializedSRF(fcinfo, 0);
	begin_entry(&entry);
	command_from_arguments(fcinfo, &command);
	EvpgEnter(&entry.scope, "evpg_execute()");
	EvpgCommandExecute(&command, false, &outcome);
	EvpgLeave(&entry.scope);
	EvpgOutcomeRaise(&outcome);
	return_events(fcinfo, &outcome);
	end_entry(&entry);
	PG_RETURN_NULL();
}

Datum
evpg_try_execute(PG_FUNCTION_ARGS)
{
	Entry		entry;
	EvpgCommand command;
	EvpgOutcome outcome;

	InitMaterializedSRF(fcinfo, 0);
	begin_entry(&entry);
	command_from_arguments(fcinfo, &command);
	EvpgEnter(&entry.scope, "evpg_try_execute()");
	EvpgCommandExecute(&command, true, &outcome);
	EvpgLeave(&entry.scope);
	EvpgOutcomeReturn(fcinfo, &outcome);
	end_entry(&entry);
	PG_RETURN_NULL();
}

/* The events of an array argument; NULL rows are no event. */
static int
events_from_array(ArrayType *array, EvpgEvent **events)
{
	Datum	   *elements;
	bool	   *nulls;
	int			nelements;
	int			count = 0;

	deconstruct_array(array, EvpgCatalogGet()->new_event->tdtypeid, -1, false, TYPALIGN_DOUBLE,
					  &elements, &nulls, &nelements);
	if (nelements > EvpgMaxEvents)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_LIMIT),
				 errmsg("too many events in one call"),
				 errdetail("There are %d; the limit is %d.", nelements, EvpgMaxEvents),
				 errhint("Split the call, or let a superuser raise evpg.max_events.")));
	*events = palloc(sizeof(EvpgEvent) * Max(nelements, 1));
	for (int i = 0; i < nelements; i++)
		if (!nulls[i] && EvpgEventFromNewEvent(DatumGetHeapTupleHeader(elements[i]), &(*events)[count]))
			count++;
	for (int i = 0; i < count; i++)
	{
		EvpgEventCheck(&(*events)[i], i + 1);
		EvpgCheckCallersMetadata((*events)[i].metadata);
	}
	return count;
}

Datum
evpg_append(PG_FUNCTION_ARGS)
{
	enum
	{
		ARG_AGGREGATE_TYPE, ARG_AGGREGATE_ID, ARG_EVENTS, ARG_EXPECTED_VERSION, ARG_COMMAND_ID,
		ARG_METADATA, ARG_ACTOR, ARG_CORRELATION_ID, ARG_CAUSATION_ID
	};
	Entry		entry;
	EvpgCommand command = {.command_type = "evpg_append"};
	EvpgOutcome outcome;
	EvpgEvent  *events;
	int			count;

	InitMaterializedSRF(fcinfo, 0);
	begin_entry(&entry);
	command.aggregate_type = EvpgArgName(fcinfo, ARG_AGGREGATE_TYPE, "aggregate type");
	command.aggregate_id = EvpgArgId(fcinfo, ARG_AGGREGATE_ID, "aggregate id");
	EvpgArgRefuseNull(fcinfo, ARG_EVENTS, "events");
	count = events_from_array(PG_GETARG_ARRAYTYPE_P(ARG_EVENTS), &events);
	command.has_expected = !PG_ARGISNULL(ARG_EXPECTED_VERSION);
	if (command.has_expected)
		command.expected_version = PG_GETARG_INT64(ARG_EXPECTED_VERSION);
	command.command_id = EvpgArgOptionalId(fcinfo, ARG_COMMAND_ID, "command id");
	command.metadata = EvpgArgJsonb(fcinfo, ARG_METADATA, "command metadata");
	command.actor = EvpgArgOptionalId(fcinfo, ARG_ACTOR, "actor");
	command.correlation_id = EvpgArgOptionalId(fcinfo, ARG_CORRELATION_ID, "correlation id");
	command.causation_id = EvpgArgOptionalId(fcinfo, ARG_CAUSATION_ID, "causation id");
	EvpgCommandCheck(&command);
	EvpgCheckCallersMetadata(command.metadata);
	EvpgCheckCallersCommandId(command.command_id);

	EvpgContextApply(&command);
	EvpgEnter(&entry.scope, "evpg_append()");
	EvpgCommandAppend(&command, events, count, &outcome);
	EvpgLeave(&entry.scope);
	EvpgOutcomeRaise(&outcome);
	return_events(fcinfo, &outcome);
	end_entry(&entry);
	PG_RETURN_NULL();
}

/*
 * What evpg itself writes into the metadata of an injected event: whether sagas
 * may react to it, since they may have done so where it comes from, and how long
 * the chain of reactions is that led to it there, so that a chain over several
 * systems ends as well.  NULL: nothing.
 */
static Jsonb *
injected_metadata(const EvpgEvent *event, bool run_sagas)
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
 * Takes an event over as it was elsewhere, perhaps in another evpg: whatever
 * evpg_read_all() returns there can be injected here.  The context of this
 * session is not that of the event.
 *
 * Two sessions that inject one event id are serial by a lock on it, and then by
 * the event itself, so that the second sees the event of the first.
 */
Datum
evpg_inject(PG_FUNCTION_ARGS)
{
	enum
	{
		ARG_AGGREGATE_TYPE, ARG_AGGREGATE_ID, ARG_EVENT, ARG_RUN_SAGAS, ARG_ACTOR, ARG_CORRELATION_ID,
		ARG_CAUSATION_ID
	};
	Entry		entry;
	EvpgCommand command = {.command_type = "evpg_inject"};
	EvpgOutcome outcome;
	EvpgEvent	event;
	bool		reserved;

	InitMaterializedSRF(fcinfo, 0);
	begin_entry(&entry);
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
	command.metadata = injected_metadata(&event, !PG_ARGISNULL(ARG_RUN_SAGAS) && PG_GETARG_BOOL(ARG_RUN_SAGAS));
	if (event.metadata != NULL)
		event.metadata = DatumGetJsonbP(DirectFunctionCall2(jsonb_delete, JsonbPGetDatum(event.metadata),
															CStringGetTextDatum("evpg")));
	EvpgContextApplySession(&command);

	EvpgEnter(&entry.scope, "evpg_inject()");
	EvpgCatalogLockForAppend(false);
	/* The append fills in an id that is missing. */
	reserved = event.has_event_id && EvpgLogReserveEventId(&event.event_id);
	if (reserved || !event.has_event_id)
	{
		EvpgCommandAppend(&command, &event, 1, &outcome);
		return_events(fcinfo, &outcome);
	}
	if (reserved)
		EvpgLogReleaseEventId(&event.event_id);
	EvpgLeave(&entry.scope);
	end_entry(&entry);
	PG_RETURN_NULL();
}

Datum
evpg_create_stream(PG_FUNCTION_ARGS)
{
	Entry		entry;
	EvpgStream	stream = {0};
	bool		created;

	begin_entry(&entry);
	stream.aggregate_type = EvpgArgName(fcinfo, 0, "aggregate type");
	stream.aggregate_id = EvpgArgId(fcinfo, 1, "aggregate id");
	EvpgEnter(&entry.scope, "evpg_create_stream()");
	created = EvpgCommandCreateStream(&stream);
	EvpgLeave(&entry.scope);
	end_entry(&entry);
	PG_RETURN_BOOL(created);
}
