/*-------------------------------------------------------------------------
 *
 * append_many.c
 *		evpg_append_many: appends events that the caller has decided to several streams,
 *		all or nothing, under one condition.
 *
 * In this order: all streams (stream_set.c), duplicate?, the expected versions, the tags
 * of all events together with the condition, then the fence.  Nothing is written before,
 * so a refusal leaves no trace.  The events are written stream by stream, as the call names
 * them; projections and listeners get all of them at once, so that the keys of the call are
 * locked in one order as well.  A call that is the only one of its transaction waits in a
 * circle with no other.
 *
 * A stream may be named several times: each append meets what those before it leave.  One
 * that is only checked stays locked to the end of the transaction, whether it exists or
 * not, so that what was found stays true.
 *
 * A command id is recorded with each stream that is written, and stands for the whole call.
 *
 * Memory: all of a call is in one context (write_call.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/aggregate.h"
#include "aggregate/command.h"
#include "aggregate/context.h"
#include "aggregate/idempotency.h"
#include "aggregate/listener.h"
#include "aggregate/write_call.h"
#include "base/arguments.h"
#include "base/clock.h"
#include "base/error_context.h"
#include "base/errors.h"
#include "base/jsonb.h"
#include "base/settings.h"
#include "base/statement.h"
#include "broadcast/event_frame.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "log/condition.h"
#include "log/early_release.h"
#include "log/event_log.h"
#include "log/stream_set.h"
#include "log/tag_lock.h"
#include "miscadmin.h"
#include "projection/apply.h"

PG_FUNCTION_INFO_V1(evpg_append_many);

/* One append of a call. */
typedef struct StreamAppend
{
	EvpgAggregate *aggregate;
	int			first;			/* of its events among those of the call */
	int			count;
} StreamAppend;

/* One call. */
typedef struct AppendCall
{
	EvpgCommand command;		/* what all appends share */
	EvpgCommand *commands;		/* stream and expected version of each */
	StreamAppend *appends;
	int			count;
	EvpgEvent  *events;			/* of all appends; of a duplicate those that
								 * are stored */
	int			nevents;
	int			space;			/* for events */
	EvpgStreamSet streams;
	const bytea *hash;			/* NULL: no command id */
	bool		written;
} AppendCall;

/* ------------------------------------------------------------------ arguments */

static void
describe_append(void *arg)
{
	errcontext("append %d of the call", *(int *) arg);
}

/* Reads and checks an append, and adds its events to those of the call. */
static void
read_append(AppendCall *call, HeapTupleHeader row)
{
	EvpgCommand *command = &call->commands[call->count];
	StreamAppend *append = &call->appends[call->count];
	EvpgCommand stream;
	ArrayType  *array;
	EvpgEvent  *events;

	if (!EvpgStreamAppendFromTuple(row, &stream, &array))
		return;
	*command = call->command;
	command->aggregate_type = stream.aggregate_type;
	command->aggregate_id = stream.aggregate_id;
	command->has_expected = stream.has_expected;
	command->expected_version = stream.expected_version;
	EvpgCommandCheck(command);
	append->first = call->nevents;
	append->count = array == NULL ? 0 : EvpgEventsFromArray(array, &events);
	if (append->count > EvpgMaxEvents - call->nevents)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_LIMIT),
				 errmsg("too many events in one call"),
				 errdetail("There are more than the limit, %d.", EvpgMaxEvents),
				 errhint("Split the call, or let a superuser raise evpg.max_events.")));
	if (append->count > 0)
	{
		call->nevents += append->count;
		if (call->nevents > call->space)
		{
			call->space = call->nevents * 2;
			call->events = repalloc(call->events, sizeof(EvpgEvent) * call->space);
		}
		memcpy(&call->events[append->first], events, sizeof(EvpgEvent) * append->count);
		pfree(events);
	}
	call->count++;
}

/* Reads and checks the appends of an array argument; NULL rows are no append. */
static void
read_appends_from_array(AppendCall *call, ArrayType *array)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	int			number = 0;
	ErrorContextCallback callback;

	deconstruct_array(array, EvpgCatalogGet()->stream_append->tdtypeid, -1, false, TYPALIGN_DOUBLE,
					  &elements, &nulls, &count);
	if (count > EvpgMaxEvents)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_LIMIT),
				 errmsg("too many appends in one call"),
				 errdetail("There are %d; the limit is %d.", count, EvpgMaxEvents),
				 errhint("Split the call, or let a superuser raise evpg.max_events.")));
	call->commands = palloc(sizeof(EvpgCommand) * Max(count, 1));
	call->appends = palloc(sizeof(StreamAppend) * Max(count, 1));
	call->events = palloc(sizeof(EvpgEvent));
	EvpgErrorContextPush(&callback, describe_append, &number);
	for (int i = 0; i < count; i++)
	{
		number = i + 1;
		if (!nulls[i])
			read_append(call, DatumGetHeapTupleHeader(elements[i]));
	}
	EvpgErrorContextPop(&callback);
	EvpgCheckCallersEvents(call->events, call->nevents);
}

static void
read_append_call(FunctionCallInfo fcinfo, AppendCall *call)
{
	enum
	{
		ARG_APPENDS, ARG_CONDITION, ARG_COMMAND_ID, ARG_METADATA, ARG_ACTOR, ARG_CORRELATION_ID, ARG_CAUSATION_ID
	};
	EvpgCommand *command = &call->command;

	memset(call, 0, sizeof(AppendCall));
	EvpgArgRefuseNull(fcinfo, ARG_APPENDS, "appends");
	command->command_type = "evpg_append_many";
	command->command_id = EvpgArgOptionalId(fcinfo, ARG_COMMAND_ID, "command id");
	command->metadata = EvpgArgJsonb(fcinfo, ARG_METADATA, "command metadata");
	command->actor = EvpgArgOptionalId(fcinfo, ARG_ACTOR, "actor");
	command->correlation_id = EvpgArgOptionalId(fcinfo, ARG_CORRELATION_ID, "correlation id");
	command->causation_id = EvpgArgOptionalId(fcinfo, ARG_CAUSATION_ID, "causation id");
	if (command->metadata != NULL)
	{
		EvpgJsonbCheckLimits(command->metadata, "command metadata");
		EvpgCheckMetadata(command->metadata);
	}
	EvpgCheckCallersMetadata(command->metadata);
	EvpgCheckCallersCommandId(command->command_id);
	if (!PG_ARGISNULL(ARG_CONDITION))
		command->condition = EvpgConditionFromJsonb(PG_GETARG_JSONB_P(ARG_CONDITION));
	EvpgContextFill(command);
	read_appends_from_array(call, PG_GETARG_ARRAYTYPE_P(ARG_APPENDS));
}

/* ------------------------------------------------------------------ appending */

static EvpgStream *
get_stream(const AppendCall *call, int append)
{
	return &call->streams.streams[call->streams.places[append]];
}

/*
 * Finds the registrations of the appends, and the streams that they name.  Raises VE020
 * for one that the code of a command cannot write to.
 */
static void
collect_streams(AppendCall *call)
{
	EvpgStream *named = palloc0(sizeof(EvpgStream) * Max(call->count, 1));

	EvpgCommandInheritDepth(&call->command);
	for (int i = 0; i < call->count; i++)
	{
		EvpgCommand *command = &call->commands[i];

		command->metadata = call->command.metadata;
		call->appends[i].aggregate = EvpgAggregateGet(command->aggregate_type);
		EvpgCommandRefuseReentry(command->aggregate_type, command->aggregate_id);
		named[i].aggregate_type = command->aggregate_type;
		named[i].aggregate_id = command->aggregate_id;
	}
	EvpgStreamSetMake(&call->streams, named, call->count);
	for (int i = 0; i < call->streams.count; i++)
		call->streams.kept[i] = true;
	for (int i = 0; i < call->count; i++)
		if (call->appends[i].count > 0)
			call->streams.kept[call->streams.places[i]] = false;
}

/*
 * Returns the hash of what the call asks for: the events, and how they are divided among
 * streams.  Streams that are only checked do not count, as expected versions do not.
 */
static const bytea *
hash_call(const AppendCall *call)
{
	EvpgCommand asked = call->command;
	JsonbParseState *state = NULL;

	(void) pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < call->count; i++)
	{
		if (call->appends[i].count == 0)
			continue;
		EvpgJsonbBegin(&state);
		EvpgJsonbAddTextOrNull(&state, "aggregate_type", call->commands[i].aggregate_type);
		EvpgJsonbAddTextOrNull(&state, "aggregate_id", call->commands[i].aggregate_id);
		EvpgJsonbAddInt64(&state, "events", call->appends[i].count);
		(void) EvpgJsonbEnd(&state);
	}
	asked.data = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL));
	return EvpgIdempotencyHash(&asked, call->events, call->nevents);
}

static int
compare_event_positions(const void *left, const void *right)
{
	int64		a = ((const EvpgEvent *) left)->position;
	int64		b = ((const EvpgEvent *) right)->position;

	return a < b ? -1 : a > b;
}

/*
 * Returns whether a call under this command id has succeeded before; then its events
 * are those of the call.  Raises VE005 if it was another one.
 */
static bool
find_duplicate(AppendCall *call)
{
	EvpgEvent  *events = palloc(sizeof(EvpgEvent));
	int			nevents = 0;

	for (int i = 0; i < call->streams.count; i++)
	{
		const EvpgStream *stream = &call->streams.streams[i];
		EvpgOutcome found = {.stream = *stream};
		EvpgCommand command = call->command;

		if (call->streams.kept[i] || stream->stream_id == 0)
			continue;
		command.aggregate_type = stream->aggregate_type;
		command.aggregate_id = stream->aggregate_id;
		if (!EvpgIdempotencyFind(&command, stream, call->hash, &found))
			continue;
		events = repalloc(events, sizeof(EvpgEvent) * (nevents + found.count));
		memcpy(&events[nevents], found.events, sizeof(EvpgEvent) * found.count);
		nevents += found.count;
	}
	if (nevents == 0)
		return false;

	/*
	 * The records of a call have one age, but are deleted one after the
	 * other.
	 */
	if (nevents != call->nevents)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_COMMAND_ID_REUSED),
				 errmsg("command id \"%s\" is being pruned", call->command.command_id),
				 errdetail("It is still recorded for some streams of the call, and no longer for others."),
				 errhint("Use a new one.")));
	qsort(events, nevents, sizeof(EvpgEvent), compare_event_positions);
	call->events = events;
	return true;
}

/* Raises VE001 unless each stream has the version that its append expects, after those before it. */
static void
check_versions(const AppendCall *call)
{
	int		   *added = palloc0(sizeof(int) * Max(call->streams.count, 1));

	for (int i = 0; i < call->count; i++)
	{
		int			place = call->streams.places[i];
		EvpgStream	stream = call->streams.streams[place];
		EvpgOutcome outcome = {.status = EVPG_STATUS_OK};

		stream.version += added[place];
		/* An append before this one creates it. */
		if (added[place] > 0 && stream.stream_id == 0)
			stream.stream_id = -1;
		if (!EvpgCommandMeetsVersion(&call->commands[i], &stream, &outcome))
			EvpgOutcomeRaise(&outcome);
		added[place] += call->appends[i].count;
	}
}

/*
 * Gives the events what they share.  Times grow with the versions of each stream, also if
 * the clock went back; one time for all, so that the records of the command id have one
 * age.
 */
static void
stamp_events(AppendCall *call)
{
	EvpgCommand *command = &call->command;

	command->received_at = EvpgClockNow();
	for (int i = 0; i < call->streams.count; i++)
		if (!call->streams.kept[i])
			command->received_at = Max(command->received_at, call->streams.streams[i].last_recorded_at);
	EvpgContextStamp(command, call->events, call->nevents);
	for (int i = 0; i < call->count; i++)
		for (int k = 0; k < call->appends[i].count; k++)
		{
			EvpgEvent  *event = &call->events[call->appends[i].first + k];

			event->aggregate_type = call->commands[i].aggregate_type;
			event->aggregate_id = call->commands[i].aggregate_id;
			EvpgUpcastNewEvents(call->appends[i].aggregate->upcasters, event, 1);
		}
}

/* Writes the events, which are stamped, and everything that follows from them. */
static void
write_appends(const AppendCall *call)
{
	int64	   *first = palloc(sizeof(int64) * Max(call->streams.count, 1));

	EvpgCommandRefuseInBoundary(call->events, call->nevents);
	for (int i = 0; i < call->streams.count; i++)
		first[i] = call->streams.streams[i].version + 1;
	for (int i = 0; i < call->count; i++)
	{
		EvpgStream *stream = get_stream(call, i);

		if (call->appends[i].count == 0)
			continue;
		if (stream->stream_id == 0)
			EvpgStreamCreate(stream);
		EvpgLogAppend(stream, &call->events[call->appends[i].first], call->appends[i].count);
	}
	EvpgApplyInline(call->events, call->nevents);
	EvpgListenersTell(call->events, call->nevents);
	for (int i = 0; i < call->count; i++)
		if (call->appends[i].count > 0)
			EvpgEventFramesSend(&call->events[call->appends[i].first], call->appends[i].count,
								call->appends[i].aggregate->broadcast);
	for (int i = 0; call->hash != NULL && i < call->streams.count; i++)
		if (!call->streams.kept[i])
			EvpgIdempotencyRecord(&call->command, &call->streams.streams[i], first[i], call->hash);
}

/* Locks, checks and writes; only a duplicate and a call without events write nothing. */
static void
append_to_streams(void *arg)
{
	AppendCall *call = arg;

	EvpgCatalogLockForAppend(call->hash != NULL);
	EvpgStreamSetLock(&call->streams);
	if (call->hash == NULL || !find_duplicate(call))
	{
		check_versions(call);
		if (call->command.condition != NULL)
			EvpgConditionEnforce(call->command.condition, call->events, call->nevents);
		else
			EvpgTagLockEvents(call->events, call->nevents);
		if (call->nevents > 0)
		{
			stamp_events(call);
			write_appends(call);
			call->written = true;
		}
	}
	EvpgStreamSetUnlockUnneeded(&call->streams);
}

/*
 * evpg_append_many
 *		SQL: evpg_append_many(appends, condition, ...).  Appends events that the caller
 *		decided to several streams, and returns them in the order of their positions.
 */
Datum
evpg_append_many(PG_FUNCTION_ARGS)
{
	EvpgWriteCall write;
	AppendCall	call;

	EvpgReturnSetBegin(fcinfo, EvpgCatalogGet()->event);
	EvpgWriteCallBegin(&write);
	read_append_call(fcinfo, &call);
	EvpgEnterUnpinned(&write.scope, "evpg_append_many()");
	collect_streams(&call);
	if (call.command.command_id != NULL)
		call.hash = hash_call(&call);
	EvpgCommandsRun(call.commands, call.count, append_to_streams, &call);
	if (!call.written)
		EvpgEarlyReleaseAwaitOthers();
	for (int i = 0; call.written && i < call.count; i++)
		call.appends[i].aggregate->counters->events += call.appends[i].count;
	EvpgCommandEnd(call.events, call.written ? call.nevents : 0);
	EvpgLeave(&write.scope);
	EvpgReturnEvents(fcinfo, call.events, call.nevents);
	EvpgWriteCallEnd(&write);
	PG_RETURN_NULL();
}
