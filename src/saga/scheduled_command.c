/*-------------------------------------------------------------------------
 *
 * scheduled_command.c
 *		Commands of evpg_schedule_command(): kept in evpg.timer until they are due,
 *		then executed (rule 17).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/aggregate.h"
#include "aggregate/command.h"
#include "aggregate/context.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/wakeup.h"
#include "fmgr.h"
#include "log/event.h"
#include "saga/scheduled_command.h"
#include "saga/stored_command.h"
#include "usercode/guard.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evpg_schedule_command);

/* Schedules a command for a later time; returns its timer_id.  It is checked now, and executed for this role. */
Datum
evpg_schedule_command(PG_FUNCTION_ARGS)
{
	enum
	{
		ARG_DUE_AT, ARG_AGGREGATE_TYPE, ARG_AGGREGATE_ID, ARG_COMMAND_TYPE, ARG_DATA, ARG_COMMAND_ID,
		ARG_METADATA, ARG_ACTOR, ARG_CORRELATION_ID, ARG_CAUSATION_ID
	};
	EvpgCommand command = {
		.aggregate_type = EvpgArgName(fcinfo, ARG_AGGREGATE_TYPE, "aggregate type"),
		.aggregate_id = EvpgArgId(fcinfo, ARG_AGGREGATE_ID, "aggregate id"),
		.command_type = EvpgArgName(fcinfo, ARG_COMMAND_TYPE, "command type"),
		.data = EvpgArgJsonb(fcinfo, ARG_DATA, "command data"),
		.command_id = EvpgArgOptionalId(fcinfo, ARG_COMMAND_ID, "command id"),
		.metadata = EvpgArgJsonb(fcinfo, ARG_METADATA, "command metadata"),
		.actor = EvpgArgOptionalId(fcinfo, ARG_ACTOR, "actor"),
		.correlation_id = EvpgArgOptionalId(fcinfo, ARG_CORRELATION_ID, "correlation id"),
		.causation_id = EvpgArgOptionalId(fcinfo, ARG_CAUSATION_ID, "causation id")
	};
	EvpgTimer	timer = {.scheduled_at = EvpgClockNow()};
	int64		timer_id;
	EvpgScope	scope;

	EvpgArgRefuseNull(fcinfo, ARG_DUE_AT, "due_at");
	timer.due_at = PG_GETARG_TIMESTAMPTZ(ARG_DUE_AT);
	EvpgTimerCheckDue(timer.due_at);
	EvpgCommandCheck(&command);
	EvpgCheckCallersMetadata(command.metadata);
	EvpgCheckCallersCommandId(command.command_id);

	/*
	 * The actor and the role are those of this session, not of the worker
	 * that executes it.
	 */
	EvpgContextFill(&command);
	/* A chain that waits for a second or more is not a runaway. */
	if (timer.due_at < timer.scheduled_at + USECS_PER_SEC)
		EvpgCommandInheritDepth(&command);
	EvpgRefuseInProjection("schedule commands");
	EvpgEnter(&scope, "evpg_schedule_command()");

	/*
	 * An aggregate type that does not exist is reported now, not when the
	 * command is due.
	 */
	(void) EvpgAggregateGetWithState(command.aggregate_type);
	timer.command = EvpgCommandToJsonb(&command);
	timer.session_role = (char *) command.session_role;
	timer_id = EvpgTimerWrite(NULL, NULL, &timer);
	EvpgWakeLauncherAtCommit();
	EvpgWakeConsumersAtEnd();
	EvpgLeave(&scope);
	PG_RETURN_INT64(timer_id);
}

/*
 * EvpgScheduledCommandExecute
 *		Executes the command of a timer that is due, in the transaction of
 *		EvpgDispatchItem, which has taken the timer away.  A command that is refused
 *		now would be refused again, so its error is final.
 */
void
EvpgScheduledCommandExecute(EvpgAttempt *attempt, const EvpgTimer *timer)
{
	EvpgCommand command;
	EvpgOutcome outcome;

	attempt->command = timer->command;
	EvpgCommandFromJsonb(timer->command, &command);
	command.session_role = timer->session_role;
	if (command.command_id == NULL)
		command.command_id = psprintf("timer:" INT64_FORMAT, attempt->item->timer_id);
	EvpgCommandExecute(&command, true, &outcome);
	attempt->given_up = true;
	EvpgOutcomeRaise(&outcome);
	attempt->given_up = false;
	attempt->dispatched++;
}
