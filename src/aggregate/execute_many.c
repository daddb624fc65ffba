/*-------------------------------------------------------------------------
 *
 * execute_many.c
 *		evpg_execute_many: executes several commands in one call, all or nothing, or each
 *		alone.
 *
 * All streams are locked before the first command (stream_set.c), so that two calls do not
 * wait for each other's streams in a circle.  Each command then takes the path of all
 * commands (command.c), finds its stream locked, and meets what those before it in the call
 * have written.  What it locks besides is known only when it has been decided: tags, keys of
 * inline projections, and whatever code of users locks.
 *
 * All or nothing is a subtransaction.  If a command is refused, those after it are not
 * executed, and those before it are rolled back; the locks of the streams stay, so that what
 * the refused one has found stays true, as with a single command.
 *
 * Memory: all of a call is in one context (write_call.c), which outlives the subtransaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/aggregate.h"
#include "aggregate/command.h"
#include "aggregate/write_call.h"
#include "base/arguments.h"
#include "base/error_context.h"
#include "base/errors.h"
#include "base/settings.h"
#include "base/statement.h"
#include "base/subtransaction.h"
#include "catalog/pg_type.h"
#include "log/stream_set.h"
#include "miscadmin.h"

PG_FUNCTION_INFO_V1(evpg_execute_many);

/* One call. */
typedef struct ExecuteCall
{
	EvpgCommand *commands;
	int		   *causes;			/* numbers of earlier commands, from 1; 0:
								 * none */
	EvpgOutcome *outcomes;
	int			count;
	bool		atomic;
	int			refused;		/* number of the command that was refused, and
								 * has ended the call; 0: none */
	int			current;		/* for the context of errors */
	EvpgStreamSet streams;
} ExecuteCall;

/* ------------------------------------------------------------------ arguments */

static void
describe_command(void *arg)
{
	errcontext("command %d of the call", *(int *) arg);
}

static void
read_command(HeapTupleHeader row, EvpgCommand *command)
{
	if (!EvpgCommandFromTuple(row, command))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("command must not be null")));
	EvpgCommandCheck(command);
	EvpgCheckCallersMetadata(command->metadata);
	EvpgCheckCallersCommandId(command->command_id);
}

/* Reads and checks the commands of an array argument. */
static void
read_commands_from_array(ExecuteCall *call, ArrayType *array)
{
	Datum	   *elements;
	bool	   *nulls;
	ErrorContextCallback callback;

	deconstruct_array(array, EvpgCatalogGet()->command->tdtypeid, -1, false, TYPALIGN_DOUBLE,
					  &elements, &nulls, &call->count);
	if (call->count > EvpgMaxEvents)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_LIMIT),
				 errmsg("too many commands in one call"),
				 errdetail("There are %d; the limit is %d.", call->count, EvpgMaxEvents),
				 errhint("Split the call, or let a superuser raise evpg.max_events.")));
	call->commands = palloc(sizeof(EvpgCommand) * Max(call->count, 1));
	call->causes = palloc0(sizeof(int) * Max(call->count, 1));
	call->outcomes = palloc0(sizeof(EvpgOutcome) * Max(call->count, 1));
	EvpgErrorContextPush(&callback, describe_command, &call->current);
	for (int i = 0; i < call->count; i++)
	{
		call->current = i + 1;
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("command must not be null")));
		read_command(DatumGetHeapTupleHeader(elements[i]), &call->commands[i]);
	}
	EvpgErrorContextPop(&callback);
}

/* Reads and checks the causes of the commands, NULL elements are none. */
static void
read_causes_from_array(ExecuteCall *call, ArrayType *array)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	deconstruct_array(array, INT4OID, sizeof(int32), true, TYPALIGN_INT, &elements, &nulls, &count);
	if (count != call->count)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("caused_by must have an element for each command"),
				 errdetail("There are %d elements and %d commands.", count, call->count),
				 errhint("Use NULL for a command without a cause.")));
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			continue;
		call->causes[i] = DatumGetInt32(elements[i]);
		if (call->causes[i] < 1 || call->causes[i] > i)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("caused_by must be the number of an earlier command of the call"),
					 errdetail("That of command %d is %d.", i + 1, call->causes[i])));
	}
}

static void
read_execute_call(FunctionCallInfo fcinfo, ExecuteCall *call)
{
	enum
	{
		ARG_COMMANDS, ARG_ATOMIC, ARG_CAUSED_BY
	};

	memset(call, 0, sizeof(ExecuteCall));
	EvpgArgRefuseNull(fcinfo, ARG_COMMANDS, "commands");
	call->atomic = EvpgArgBool(fcinfo, ARG_ATOMIC, "atomic");
	read_commands_from_array(call, PG_GETARG_ARRAYTYPE_P(ARG_COMMANDS));
	if (!PG_ARGISNULL(ARG_CAUSED_BY))
		read_causes_from_array(call, PG_GETARG_ARRAYTYPE_P(ARG_CAUSED_BY));
}

/* ------------------------------------------------------------------ executing */

/* Finds the streams that the commands name, and locks them. */
static void
lock_streams(ExecuteCall *call)
{
	EvpgStream *named = palloc0(sizeof(EvpgStream) * Max(call->count, 1));
	bool		command_ids = false;

	for (int i = 0; i < call->count; i++)
	{
		(void) EvpgAggregateGet(call->commands[i].aggregate_type);
		named[i].aggregate_type = call->commands[i].aggregate_type;
		named[i].aggregate_id = call->commands[i].aggregate_id;
		command_ids |= call->commands[i].command_id != NULL;
	}
	EvpgStreamSetMake(&call->streams, named, call->count);
	EvpgCatalogLockForAppend(command_ids);
	EvpgStreamSetLock(&call->streams);
}

/*
 * Makes the last event of an earlier command the cause of a command, and lets it belong to
 * the same correlation, unless it names one of its own.  A command that has appended
 * nothing is no cause.
 */
static void
apply_cause(EvpgCommand *command, const EvpgOutcome *cause)
{
	const EvpgEvent *event;

	if (cause->count == 0)
		return;
	event = &cause->events[cause->count - 1];
	command->causation_id = EvpgUuidText(&event->event_id);
	if (command->correlation_id == NULL)
		command->correlation_id = event->correlation_id != NULL ? event->correlation_id : EvpgUuidText(&event->event_id);
}

/* Executes the commands; the first that is refused is raised, if the call is all or nothing. */
static void
execute_commands(void *arg)
{
	ExecuteCall *call = arg;
	ErrorContextCallback callback;

	EvpgErrorContextPush(&callback, describe_command, &call->current);
	for (int i = 0; i < call->count; i++)
	{
		EvpgOutcome *outcome = &call->outcomes[i];

		call->current = i + 1;
		if (call->causes[i] > 0)
			apply_cause(&call->commands[i], &call->outcomes[call->causes[i] - 1]);
		EvpgCommandExecute(&call->commands[i], true, outcome);
		if (call->atomic && EvpgOutcomeSqlstate(outcome) != ERRCODE_SUCCESSFUL_COMPLETION)
		{
			call->refused = i + 1;
			EvpgOutcomeRaise(outcome);
		}
		CHECK_FOR_INTERRUPTS();
	}
	EvpgErrorContextPop(&callback);
}

/* Executes the commands, all or none of them. */
static void
execute_all_or_none(ExecuteCall *call)
{
	ErrorData  *error = EvpgSubtransactionRun(execute_commands, call);

	if (error == NULL)
		return;
	if (call->refused == 0)
		EvpgRethrowError(error);
	for (int i = 0; i < call->count; i++)
	{
		EvpgOutcome *outcome = &call->outcomes[i];

		if (i + 1 != call->refused)
		{
			memset(outcome, 0, sizeof(EvpgOutcome));
			outcome->status = EVPG_STATUS_SKIPPED;
			outcome->message = psprintf("command %d of the call was refused", call->refused);
		}
		/* All have found what the call has found. */
		outcome->stream = call->streams.streams[call->streams.places[i]];
	}
}

/* Gives back the locks that are not needed: of streams that do not exist, now that the commands are executed. */
static void
unlock_streams(ExecuteCall *call)
{
	for (int i = 0; i < call->count; i++)
	{
		EvpgStream *stream = &call->streams.streams[call->streams.places[i]];

		if (call->outcomes[i].stream.stream_id != 0)
			stream->stream_id = call->outcomes[i].stream.stream_id;
	}
	EvpgStreamSetUnlockUnneeded(&call->streams);
}

/*
 * evpg_execute_many
 *		SQL: evpg_execute_many(commands, atomic, caused_by).  Executes commands, all or
 *		nothing or each alone, and returns their outcomes in order.
 */
Datum
evpg_execute_many(PG_FUNCTION_ARGS)
{
	EvpgWriteCall write;
	ExecuteCall call;

	EvpgReturnSetBegin(fcinfo, EvpgCatalogGet()->outcome);
	EvpgWriteCallBegin(&write);
	read_execute_call(fcinfo, &call);
	EvpgEnterUnpinned(&write.scope, "evpg_execute_many()");
	lock_streams(&call);
	if (call.atomic)
		execute_all_or_none(&call);
	else
		execute_commands(&call);
	unlock_streams(&call);
	EvpgLeave(&write.scope);
	for (int i = 0; i < call.count; i++)
		EvpgOutcomeReturnRow(fcinfo, &call.outcomes[i]);
	EvpgWriteCallEnd(&write);
	PG_RETURN_NULL();
}
