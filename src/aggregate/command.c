/*-------------------------------------------------------------------------
 *
 * command.c
 *		The command path (rules 1 to 5): one function that every caller uses.
 *
 * In this order: interceptors, lock the stream, duplicate command?,
 * expected_version, boundary and its locks if the aggregate has one, load the
 * state, handler, fold and invariant, append,
 * projections, idempotency record, snapshot.  Nothing is written before handler
 * and invariant have passed, so a refusal leaves no trace, without a
 * subtransaction.  Only a constraint of a user's table can refuse later.
 *
 * Under READ COMMITTED a command without expected_version never fails for
 * concurrency: it waits for the lock of the stream, which need not exist, and
 * decides once, on what it then finds.
 *
 * Memory: everything is in CurrentMemoryContext, which the entry points in
 * execute.c make for one call.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "aggregate/boundary.h"
#include "aggregate/command.h"
#include "aggregate/context.h"
#include "aggregate/handler.h"
#include "aggregate/idempotency.h"
#include "aggregate/interceptor.h"
#include "aggregate/invariant.h"
#include "aggregate/listener.h"
#include "aggregate/reducer.h"
#include "aggregate/snapshot.h"
#include "aggregate/state_cache.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/errors.h"
#include "base/subtransaction.h"
#include "base/testing.h"
#include "broadcast/event_frame.h"
#include "log/condition.h"
#include "log/early_release.h"
#include "log/event_log.h"
#include "log/fence.h"
#include "log/tag_lock.h"
#include "miscadmin.h"
#include "projection/apply.h"
#include "usercode/guard.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Commands that this session is executing, innermost first. */
typedef struct RunningCommand
{
	const EvpgCommand *command;
	const EvpgCondition *boundary;	/* what it was or is being decided on,
									 * until it appends; NULL: its stream */
	struct RunningCommand *outer;
} RunningCommand;

static RunningCommand *running_commands = NULL;

/* What reacts to events in the transaction that appends them: saga/react_inline.c, which commands know nothing of. */
EvpgCommandEndHook EvpgAtCommandEnd = NULL;

/* ------------------------------------------------------------------ the steps */

/*
 * EvpgCommandMeetsVersion
 *		Compares a stream, which the caller has locked, with the expected_version of a
 *		command (rule 2); makes the outcome a conflict and returns false if they differ.
 */
bool
EvpgCommandMeetsVersion(const EvpgCommand *command, const EvpgStream *stream, EvpgOutcome *outcome)
{
	char	   *detail;

	if (!command->has_expected)
		return true;
	if (command->expected_version == -1 ? stream->stream_id != 0 : command->expected_version == stream->version)
		return true;

	outcome->status = EVPG_STATUS_CONFLICT;
	if (command->expected_version == -1)
		outcome->message = psprintf("version conflict on aggregate \"%s\", stream \"%s\": expected it to exist",
									command->aggregate_type, command->aggregate_id);
	else
		outcome->message = psprintf("version conflict on aggregate \"%s\", stream \"%s\": expected "
									INT64_FORMAT ", actual " INT64_FORMAT,
									command->aggregate_type, command->aggregate_id,
									command->expected_version, stream->version);
	detail = psprintf("{\"aggregate_type\": %s, \"aggregate_id\": %s, \"expected\": " INT64_FORMAT
					  ", \"actual\": " INT64_FORMAT "}",
					  EvpgQuoteJson(command->aggregate_type), EvpgQuoteJson(command->aggregate_id),
					  command->expected_version, stream->version);
	outcome->detail = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(detail)));
	outcome->hint = "Read the stream and decide again, or leave expected_version out.";
	return false;
}

/*
 * Sets the time of a command on a stream that is locked or reserved, and tells
 * whether there is anything to do: false if the command has succeeded before or
 * the stream is not at the expected version, and then the outcome is made.
 */
static bool
must_execute(EvpgCommand *command, const EvpgStream *stream, const bytea *hash, EvpgOutcome *outcome)
{
	/*
	 * Under the lock, so that times grow with versions; also if the clock
	 * went back.
	 */
	command->received_at = Max(EvpgClockNow(), stream->last_recorded_at);
	if (hash != NULL && stream->stream_id != 0 && EvpgIdempotencyFind(command, stream, hash, outcome))
	{
		outcome->status = EVPG_STATUS_DUPLICATE;
		return false;
	}
	return EvpgCommandMeetsVersion(command, stream, outcome);
}

/* Whose refusal an error would be: none but the last two make an outcome of it. */
typedef enum CommandPhase
{
	PHASE_OURS,
	PHASE_DECIDING,				/* the handler's */
	PHASE_PROJECTING			/* that of a constraint of a user's table */
} CommandPhase;

/* A command that is being executed. */
typedef struct CommandExecution
{
	EvpgCommand *command;
	EvpgCommand asked;			/* the command before interceptors */
	EvpgAggregate *aggregate;
	const bytea *hash;			/* of what was asked; NULL: no command id */
	EvpgOutcome *outcome;
	EvpgStream	found;			/* the stream before anything was written */
	CommandPhase phase;
	bool		catch;			/* a refusal is to be an outcome */
	bool		in_subtransaction;	/* refusals are raised */
	bool		refusing;		/* outcome is a refusal that is raised */
} CommandExecution;

/* Calls the interceptors of the command; false if one refused it. */
static bool
call_interceptors(CommandExecution *execution)
{
	EvpgCommand *command = execution->command;
	ListCell   *cell;

	foreach(cell, EvpgInterceptorList())
	{
		EvpgHook   *interceptor = lfirst(cell);
		EvpgDecision why;

		if (!EvpgHookTakes(interceptor, command->aggregate_type, command->command_type))
			continue;
		if (!EvpgInterceptorCall(interceptor, command, &why))
		{
			EvpgOutcomeRefuse(execution->outcome, EVPG_STATUS_INTERCEPTED, &why);
			if (execution->outcome->code == NULL)
				execution->outcome->code = interceptor->name;
			(void) EvpgStreamRead(&execution->outcome->stream, false);
			return false;
		}
	}
	return true;
}

/*
 * EvpgCommandRefuseInBoundary
 *		Raises VE020 if events, which are stamped, match the boundary of a command whose
 *		handler has led to this one, which is being decided without them.
 */
void
EvpgCommandRefuseInBoundary(const EvpgEvent *events, int count)
{
	for (RunningCommand *r = running_commands; r != NULL; r = r->outer)
		for (int i = 0; r->boundary != NULL && i < count; i++)
			if (EvpgConditionMatches(r->boundary, &events[i]))
				ereport(ERROR,
						(errcode(EVPG_ERRCODE_REENTERED),
						 errmsg("event \"%s\" is within the boundary of a command that is being decided", events[i].type),
						 errdetail("Command \"%s\" of aggregate \"%s\", stream \"%s\" is decided without it.",
								   r->command->command_type, r->command->aggregate_type, r->command->aggregate_id),
						 errhint("Let the handler return the event, or append it in a listener.")));
}

/* Writes events and everything that follows from them but the snapshot; creates the stream if it does not exist. */
static void
write_events(const EvpgCommand *command, const EvpgAggregate *aggregate, EvpgStream *stream, EvpgEvent *events, int count,
			 const bytea *hash, CommandPhase *phase)
{
	int64		first = stream->version + 1;

	running_commands->boundary = NULL;
	EvpgCommandRefuseInBoundary(events, count);
	if (stream->stream_id == 0)
		EvpgStreamCreate(stream);
	EvpgLogAppend(stream, events, count);
	*phase = PHASE_PROJECTING;
	EvpgApplyInline(events, count);
	*phase = PHASE_OURS;
	EvpgListenersTell(events, count);
	EvpgEventFramesSend(events, count, aggregate->broadcast);
	if (hash != NULL)
		EvpgIdempotencyRecord(command, stream, first, hash);
}

/*
 * Stamps the events of a decision, folds them into the state, or those that its
 * boundary names if there is one, and checks the invariant; makes the outcome a
 * refusal and returns false if it does not hold.
 */
static bool
fold_decision(EvpgCommand *command, const EvpgStream *stream, const EvpgCondition *boundary, EvpgDecision *decision,
			  EvpgState *state, EvpgOutcome *outcome)
{
	EvpgDecision why;

	EvpgContextStamp(command, decision->events, decision->count);
	EvpgUpcastNewEvents(state->aggregate->upcasters, decision->events, decision->count);
	for (int i = 0; i < decision->count; i++)
	{
		EvpgEvent  *event = &decision->events[i];

		event->version = stream->version + 1 + i;
		if (boundary == NULL || EvpgConditionMatches(boundary, event))
			EvpgReducerFold(state, event, decision->data != NULL && event->stored == NULL ? decision->data[i] : NULL);
		CHECK_FOR_INTERRUPTS();
	}
	if (EvpgInvariantHolds(state, command, &why))
		return true;
	EvpgOutcomeRefuse(outcome, EVPG_STATUS_INVARIANT, &why);
	return false;
}

/*
 * Loads the state and calls the handler, or refuses a command whose boundary does;
 * returns the boundary, NULL: the stream alone.
 */
static const EvpgCondition *
decide_command(CommandExecution *execution, EvpgState *state, EvpgDecision *decision)
{
	EvpgCommand *command = execution->command;
	EvpgAggregate *aggregate = execution->aggregate;
	const EvpgStream *stream = &execution->outcome->stream;
	EvpgCondition *boundary = NULL;

	command->version = stream->version;
	if (aggregate->has_boundary)
	{
		execution->phase = PHASE_DECIDING;
		boundary = EvpgBoundaryGet(aggregate, command, false, decision);
		execution->phase = PHASE_OURS;
		if (decision->rejected)
			return boundary;
		EvpgBoundaryLoad(state, aggregate, boundary);
		running_commands->boundary = boundary;
	}
	else
		EvpgStateLoad(state, aggregate, stream, false);
	execution->phase = PHASE_DECIDING;
	EvpgHandlerDecide(state, command, decision);
	execution->phase = PHASE_OURS;
	return boundary;
}

/*
 * Decides on a command whose stream is locked, and writes what it decides; false,
 * and nothing was written, if that needs a subtransaction.
 */
static bool
decide_and_write(CommandExecution *execution)
{
	EvpgCommand *command = execution->command;
	EvpgAggregate *aggregate = execution->aggregate;
	EvpgOutcome *outcome = execution->outcome;
	EvpgStream *stream = &outcome->stream;
	const EvpgCondition *boundary;
	EvpgState	state;
	EvpgDecision decision;
	int64		before;

	execution->found = *stream;
	if (!must_execute(command, stream, execution->hash, outcome))
		return true;

	boundary = decide_command(execution, &state, &decision);
	if (decision.rejected || decision.count == 0)
	{
		if (decision.rejected)
			EvpgOutcomeRefuse(outcome, EVPG_STATUS_REJECTED, &decision);
		else
			outcome->status = EVPG_STATUS_NOOP;
		if (stream->stream_id != 0 && !aggregate->has_boundary)
			EvpgStateCachePut(&state, stream->stream_id);
		return true;
	}

	if (!fold_decision(command, stream, boundary, &decision, &state, outcome))
		return true;

	EvpgTagLockEvents(decision.events, decision.count);

	/*
	 * A transaction that has entered the fence knows all projections, see
	 * projection.c.
	 */
	EvpgFenceEnter();
	if (execution->catch && !execution->in_subtransaction && EvpgApplyInlineIsNeeded(decision.events, decision.count))
	{
		execution->in_subtransaction = true;
		return false;
	}
	before = stream->version;
	write_events(command, aggregate, stream, decision.events, decision.count, execution->hash, &execution->phase);
	if (!aggregate->has_boundary)
	{
		state.last_position = stream->last_position;
		if (EvpgSnapshotIsDue(&state, stream->stream_id, before))
			(void) EvpgSnapshotWrite(&state, stream->stream_id);
		EvpgStateCachePut(&state, stream->stream_id);
	}

	outcome->status = EVPG_STATUS_OK;
	outcome->events = decision.events;
	outcome->count = decision.count;
	return true;
}

/* Locks the stream, decides and writes; false if that needs a subtransaction. */
static bool
try_command(CommandExecution *execution)
{
	EvpgStream *stream = &execution->outcome->stream;
	bool		done;

	EvpgCatalogLockForAppend(execution->command->command_id != NULL);
	(void) EvpgStreamLock(stream);
	done = decide_and_write(execution);
	EvpgStreamUnlockUnneeded(stream);
	return done;
}

/* Executes a command; in a subtransaction a refusal is raised, so that it leaves no trace. */
static void
execute_command(void *arg)
{
	CommandExecution *execution = arg;
	bool		in_subtransaction = execution->in_subtransaction;

	if (call_interceptors(execution))
	{
		/*
		 * Of the command as the caller sent it: an interceptor may add what
		 * is another thing next time, a price or the time, and a resend is
		 * still the same command.
		 */
		if (execution->command->command_id != NULL)
			execution->hash = EvpgIdempotencyHash(&execution->asked, NULL, 0);
		if (!try_command(execution))
			return;
	}
	if (in_subtransaction)
	{
		execution->refusing = true;
		EvpgOutcomeRaise(execution->outcome);
	}
}

/*
 * Executes a command in a subtransaction, and makes an outcome of a refusal:
 * by evpg, by the handler that raised it, or by a constraint of a user's table
 * (rule 8).  Any other error is a defect and is raised.
 */
static void
execute_in_subtransaction(CommandExecution *execution)
{
	EvpgOutcome *outcome = execution->outcome;
	EvpgDecision why;
	ErrorData  *error;

	execution->in_subtransaction = true;
	error = EvpgSubtransactionRun(execute_command, execution);
	if (error == NULL || execution->refusing)
		return;
	outcome->stream = execution->found;
	outcome->events = NULL;
	outcome->count = 0;
	if (execution->phase == PHASE_DECIDING && error->sqlerrcode == EVPG_ERRCODE_REJECTED)
	{
		EvpgDecisionFromError(error, &why);
		EvpgOutcomeRefuse(outcome, EVPG_STATUS_REJECTED, &why);
	}
	else if (execution->phase == PHASE_PROJECTING &&
			 ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION)
	{
		EvpgDecisionFromError(error, &why);
		EvpgOutcomeRefuse(outcome, EVPG_STATUS_REJECTED, &why);
		outcome->sqlstate = error->sqlerrcode;
	}
	else
		EvpgRethrowError(error);
}

/* Counts an outcome for evpg_session_stats(). */
static void
count_outcome(EvpgAggregateCounters *counters, const EvpgOutcome *outcome)
{
	counters->commands++;
	switch (outcome->status)
	{
		case EVPG_STATUS_OK:
			counters->events += outcome->count;
			break;
		case EVPG_STATUS_NOOP:
			counters->noops++;
			break;
		case EVPG_STATUS_DUPLICATE:
			counters->duplicates++;
			break;
		case EVPG_STATUS_CONFLICT:
			counters->conflicts++;
			break;
		case EVPG_STATUS_REJECTED:
		case EVPG_STATUS_INVARIANT:
		case EVPG_STATUS_INTERCEPTED:
			counters->rejected++;
			break;
		case EVPG_STATUS_SKIPPED:
			break;
	}
}

/*
 * EvpgCommandRefuseReentry
 *		Raises VE020 if a command on the stream is being executed already: a handler
 *		that writes to its own stream would change the state under the command.  A
 *		projection that writes events would do so to its rows.
 */
void
EvpgCommandRefuseReentry(const char *aggregate_type, const char *aggregate_id)
{
	EvpgRefuseInProjection("write events");
	for (RunningCommand *r = running_commands; r != NULL; r = r->outer)
		if (strcmp(r->command->aggregate_type, aggregate_type) == 0 &&
			strcmp(r->command->aggregate_id, aggregate_id) == 0)
			ereport(ERROR,
					(errcode(EVPG_ERRCODE_REENTERED),
					 errmsg("a command on aggregate \"%s\", stream \"%s\" is being executed already",
							aggregate_type, aggregate_id),
					 errdetail("Neither its handler nor a listener nor a trigger can write to its own stream."),
					 errhint("Let the handler return all events of the stream.")));
}

/*
 * EvpgCommandInheritDepth
 *		Lets a command that the code of another one executes, or is about to
 *		schedule, belong to the chain of sagas that led to that one, so that a chain
 *		which goes on in this way has an end, too (rule 18).  Its metadata is in
 *		CurrentMemoryContext then.
 */
void
EvpgCommandInheritDepth(EvpgCommand *command)
{
	if (running_commands != NULL)
		command->metadata = EvpgInheritDepth(command->metadata, running_commands->command->metadata);
}

/*
 * EvpgCommandRefuseInside
 *		Raises VE020 while a command is being executed: what reacts then cannot
 *		write to its stream, through no fault of its own.  what completes "the code
 *		of a command cannot ...".
 */
void
EvpgCommandRefuseInside(const char *what)
{
	if (running_commands != NULL)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_REENTERED),
				 errmsg("the code of a command cannot %s", what),
				 errhint("Do it in a client.")));
}

/*
 * EvpgCommandEnd
 *		Hands the events that a command or an append, which is over, has written to
 *		what reacts to them.
 */
void
EvpgCommandEnd(const EvpgEvent *events, int count)
{
	if (EvpgAtCommandEnd != NULL)
		EvpgAtCommandEnd(events, count, running_commands != NULL);
}

/* Hands the events of a command that is over to what reacts to them. */
static void
end_command(const EvpgOutcome *outcome)
{
	EvpgCommandEnd(outcome->events, outcome->status == EVPG_STATUS_OK ? outcome->count : 0);
}

/*
 * Waits for what an error of a command answers by, before it is raised on: a
 * refusal or a violated constraint, by evpg or by user code, tells the client
 * what others have written.  Other errors tell nothing of it.
 */
static void
await_answer_of_error(void)
{
	int			category = ERRCODE_TO_CATEGORY(geterrcode());

	if (category == ERRCODE_TO_CATEGORY(EVPG_ERRCODE_REJECTED) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_RAISE_EXCEPTION) ||
		category == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION)
		EvpgEarlyReleaseAwaitOthers();
}

/*
 * EvpgCommandsRun
 *		Calls action(arg) while these commands, of one call, count as being executed:
 *		the code that they call can write to none of their streams.
 */
void
EvpgCommandsRun(const EvpgCommand *commands, int count, void (*action) (void *arg), void *arg)
{
	RunningCommand *outer = running_commands;
	RunningCommand *running = palloc(sizeof(RunningCommand) * Max(count, 1));

	for (int i = 0; i < count; i++)
	{
		running[i] = (RunningCommand)
		{
			.command = &commands[i], .outer = running_commands
		};
		running_commands = &running[i];
	}
	PG_TRY();
	{
		action(arg);
	}
	PG_CATCH();
	{
		running_commands = outer;
		await_answer_of_error();
		PG_RE_THROW();
	}
	PG_END_TRY();
	running_commands = outer;
}

/*
 * EvpgCommandExecute
 *		Executes a checked command, completing it from the context, and fills
 *		*outcome, whose strings and events are in CurrentMemoryContext.  The
 *		stream stays locked to the end of the transaction.  The caller is inside
 *		EvpgEnter.
 *
 * With catch, every refusal is an outcome.  Without, a refusal by a function
 * is raised as it is, like any other error.  User code that may write takes a
 * subtransaction with catch; a module alone does not.
 */
void
EvpgCommandExecute(EvpgCommand *command, bool catch, EvpgOutcome *outcome)
{
	CommandExecution execution = {.command = command, .outcome = outcome, .catch = catch};
	const char *acted_for = EvpgContextSessionRole();
	RunningCommand self;

	memset(outcome, 0, sizeof(EvpgOutcome));
	check_stack_depth();
	command->received_at = EvpgClockNow();
	command->version = -1;		/* not known yet */
	EvpgContextFill(command);
	execution.asked = *command;
	execution.aggregate = EvpgAggregateGetWithState(command->aggregate_type);
	outcome->stream.aggregate_type = command->aggregate_type;
	outcome->stream.aggregate_id = command->aggregate_id;
	execution.found = outcome->stream;

	EvpgCommandRefuseReentry(command->aggregate_type, command->aggregate_id);
	EvpgCommandInheritDepth(command);
	self.command = command;
	self.boundary = NULL;
	self.outer = running_commands;
	running_commands = &self;
	/* A command that its handler executes has been asked for by the same. */
	EvpgContextSetSessionRole(command->session_role);
	PG_TRY();
	{
		if (catch && (!execution.aggregate->has_module || EvpgInterceptorList() != NIL))
			execute_in_subtransaction(&execution);
		else
		{
			execute_command(&execution);
			if (execution.in_subtransaction)
				execute_in_subtransaction(&execution);
		}
	}
	PG_CATCH();
	{
		running_commands = self.outer;
		EvpgContextSetSessionRole(acted_for);
		await_answer_of_error();
		PG_RE_THROW();
	}
	PG_END_TRY();
	running_commands = self.outer;
	EvpgContextSetSessionRole(acted_for);
	if (outcome->status != EVPG_STATUS_OK)
		EvpgEarlyReleaseAwaitOthers();
	count_outcome(execution.aggregate->counters, outcome);
	end_command(outcome);
}

/* Appends to a stream that is locked. */
static void
append_to_stream(EvpgCommand *command, const EvpgAggregate *aggregate, EvpgEvent *events, int count, const bytea *hash,
				 EvpgOutcome *outcome)
{
	CommandPhase phase;

	if (!must_execute(command, &outcome->stream, hash, outcome))
		return;
	if (command->condition != NULL)
		EvpgConditionEnforce(command->condition, events, count);
	else
		EvpgTagLockEvents(events, count);
	outcome->status = EVPG_STATUS_NOOP;
	if (count == 0)
		return;
	EvpgContextStamp(command, events, count);
	EvpgUpcastNewEvents(aggregate->upcasters, events, count);
	write_events(command, aggregate, &outcome->stream, events, count, hash, &phase);
	outcome->status = EVPG_STATUS_OK;
	outcome->events = events;
	outcome->count = count;
}

/*
 * Locks the stream, then with event_id that id, and appends.  If an event of that id
 * exists, the outcome is a no-op.
 */
static void
lock_and_append(EvpgCommand *command, const EvpgAggregate *aggregate, EvpgEvent *events, int count,
				const pg_uuid_t *event_id, const bytea *hash, EvpgOutcome *outcome)
{
	EvpgCatalogLockForAppend(command->command_id != NULL);
	(void) EvpgStreamLock(&outcome->stream);
	if (event_id == NULL)
		append_to_stream(command, aggregate, events, count, hash, outcome);
	else if (!EvpgLogReserveEventId(event_id))
		outcome->status = EVPG_STATUS_NOOP;
	else
	{
		append_to_stream(command, aggregate, events, count, hash, outcome);
		EvpgLogReleaseEventId(event_id);
	}
	EvpgStreamUnlockUnneeded(&outcome->stream);
}

/*
 * EvpgCommandAppend
 *		Appends events that the caller decided, and fills *outcome.  It differs
 *		from a command in that there is no handler, state or invariant, and that
 *		the caller has applied the context; no events are a no-op, and with
 *		event_id so is an event of that id which exists.  The stream stays locked
 *		to the end of the transaction.  The caller is inside EvpgEnter.
 */
void
EvpgCommandAppend(EvpgCommand *command, EvpgEvent *events, int count, const pg_uuid_t *event_id, EvpgOutcome *outcome)
{
	EvpgAggregate *aggregate;
	EvpgStream *stream = &outcome->stream;
	RunningCommand self = {
		.command = command,
		.outer = running_commands
	};
	bytea	   *hash;

	memset(outcome, 0, sizeof(EvpgOutcome));
	stream->aggregate_type = command->aggregate_type;
	stream->aggregate_id = command->aggregate_id;
	aggregate = EvpgAggregateGet(command->aggregate_type);
	EvpgCommandRefuseReentry(command->aggregate_type, command->aggregate_id);
	EvpgCommandInheritDepth(command);
	hash = command->command_id == NULL ? NULL : EvpgIdempotencyHash(command, events, count);

	EVPG_WAIT_POINT("append_type_known");
	running_commands = &self;
	PG_TRY();
	{
		lock_and_append(command, aggregate, events, count, event_id, hash, outcome);
	}
	PG_CATCH();
	{
		running_commands = self.outer;
		await_answer_of_error();
		PG_RE_THROW();
	}
	PG_END_TRY();
	running_commands = self.outer;
	if (outcome->status == EVPG_STATUS_OK)
		aggregate->counters->events += count;
	else
		EvpgEarlyReleaseAwaitOthers();
	end_command(outcome);
}

/*
 * EvpgCommandCreateStream
 *		Creates an empty stream of a registered type; false if it exists.  It
 *		stays locked to the end of the transaction.  The caller is inside
 *		EvpgEnter.
 */
bool
EvpgCommandCreateStream(EvpgStream *stream)
{
	bool		created;

	(void) EvpgAggregateGet(stream->aggregate_type);
	EvpgCommandRefuseReentry(stream->aggregate_type, stream->aggregate_id);
	if (EvpgStreamRead(stream, false))
		return false;
	EvpgCatalogLockForAppend(false);
	created = !EvpgStreamLock(stream);
	if (created)
		EvpgStreamCreate(stream);
	EvpgStreamUnlockUnneeded(stream);
	return created;
}
