/*-------------------------------------------------------------------------
 *
 * schedule.c
 *		The SQL functions about commands that are to be executed later, and timers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/aggregate.h"
#include "aggregate/context.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/statement.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "log/event.h"
#include "saga/dispatch.h"
#include "saga/instance.h"
#include "usercode/guard.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evpg_schedule_command);
PG_FUNCTION_INFO_V1(evpg_reschedule_timer);
PG_FUNCTION_INFO_V1(evpg_cancel_timer);

static TimestampTz
check_due(TimestampTz due_at)
{
	if (TIMESTAMP_NOT_FINITE(due_at))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("due_at must be finite")));
	return due_at;
}

static void
push(JsonbParseState **state, const char *name, JsonbValue *value)
{
	JsonbValue	key = {.type = jbvString,.val.string = {.val = (char *) name, .len = strlen(name)}};

	(void) pushJsonbValue(state, WJB_KEY, &key);
	(void) pushJsonbValue(state, WJB_VALUE, value);
}

static void
push_text(JsonbParseState **state, const char *name, const char *text)
{
	JsonbValue	value = {.type = jbvString};

	if (text == NULL)
		return;
	value.val.string.val = (char *) text;
	value.val.string.len = strlen(text);
	push(state, name, &value);
}

static void
push_jsonb(JsonbParseState **state, const char *name, Jsonb *jsonb)
{
	JsonbValue	value;

	if (jsonb == NULL)
		return;
	JsonbToJsonbValue(jsonb, &value);
	if (JB_ROOT_IS_SCALAR(jsonb))
		(void) JsonbExtractScalar(&jsonb->root, &value);
	push(state, name, &value);
}

/* A command as it is kept until it is due. */
static Jsonb *
command_to_jsonb(const EvpgCommand *command)
{
	JsonbParseState *state = NULL;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_text(&state, "aggregate_type", command->aggregate_type);
	push_text(&state, "aggregate_id", command->aggregate_id);
	push_text(&state, "command_type", command->command_type);
	push_jsonb(&state, "data", command->data);
	push_jsonb(&state, "metadata", command->metadata);
	push_text(&state, "command_id", command->command_id);
	push_text(&state, "actor", command->actor);
	push_text(&state, "correlation_id", command->correlation_id);
	push_text(&state, "causation_id", command->causation_id);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

Datum
evpg_schedule_command(PG_FUNCTION_ARGS)
{
	EvpgCommand command = {
		.aggregate_type = EvpgArgName(fcinfo, 1, "aggregate type"),
		.aggregate_id = EvpgArgId(fcinfo, 2, "aggregate id"),
		.command_type = EvpgArgName(fcinfo, 3, "command type"),
		.data = EvpgArgJsonb(fcinfo, 4, "command data"),
		.command_id = EvpgArgOptionalId(fcinfo, 5, "command id"),
		.metadata = EvpgArgJsonb(fcinfo, 6, "command metadata"),
		.actor = EvpgArgOptionalId(fcinfo, 7, "actor"),
		.correlation_id = EvpgArgOptionalId(fcinfo, 8, "correlation id"),
		.causation_id = EvpgArgOptionalId(fcinfo, 9, "causation id")
	};
	EvpgTimer	timer = {.scheduled_at = EvpgClockNow()};
	int64		timer_id;
	EvpgScope	scope;

	EvpgArgRefuseNull(fcinfo, 0, "due_at");
	timer.due_at = check_due(PG_GETARG_TIMESTAMPTZ(0));
	EvpgCommandCheck(&command);
	EvpgCheckCallersMetadata(command.metadata);
	EvpgCheckCallersCommandId(command.command_id);
	/* Of who schedules it, not of who is there when it is due. */
	EvpgContextApply(&command);
	EvpgRefuseInProjection("schedule commands");
	EvpgEnter(&scope, "evpg_schedule_command()");
	/* A mistake should not wait for its time. */
	(void) EvpgAggregateGetWithState(command.aggregate_type);
	timer.command = command_to_jsonb(&command);
	timer.session_role = (char *) command.session_role;
	timer_id = EvpgTimerWrite(NULL, NULL, &timer);
	EvpgWakeLauncherAtCommit();
	EvpgWakeConsumersAtEnd();
	EvpgLeave(&scope);
	PG_RETURN_INT64(timer_id);
}

/* A statement about a timer, whose id comes first. */
typedef struct Change
{
	EvpgStatement *plan;
	Datum	   *values;
	bool		changed;
} Change;

static void
run_change(void *arg)
{
	Change	   *change = arg;

	change->changed = EvpgStatementRun(change->plan, change->values, NULL) > 0;
	EvpgStatementDone();
}

/* Changes a timer; false if it is not there.  A worker that executes its command has locked its row. */
static bool
change_timer(EvpgStatement *plan, Datum *values)
{
	Change		change = {.plan = plan, .values = values};

	EvpgDispatchOvertake(DatumGetInt64(values[0]), run_change, &change);
	return change.changed;
}

static EvpgStatement update_due_at = {
	.text = "UPDATE evpg.timer"
	" SET due_at = $2, attempts = 0, retry_at = NULL"
	" WHERE timer_id = $1 AND dead_letter_id IS NULL",
	.types = {INT8OID, TIMESTAMPTZOID}
};

/* Also one of a saga; the worker must look again when it is due. */
Datum
evpg_reschedule_timer(PG_FUNCTION_ARGS)
{
	Datum		values[2] = {Int64GetDatum(EvpgArgBigint(fcinfo, 0, "timer_id"))};
	bool		moved;
	EvpgScope	scope;

	EvpgArgRefuseNull(fcinfo, 1, "due_at");
	values[1] = TimestampTzGetDatum(check_due(PG_GETARG_TIMESTAMPTZ(1)));

	EvpgRefuseInProjection("change timers");
	EvpgEnter(&scope, "evpg_reschedule_timer()");
	moved = change_timer(&update_due_at, values);
	EvpgWakeConsumersAtEnd();
	EvpgLeave(&scope);
	PG_RETURN_BOOL(moved);
}

static EvpgStatement delete_user_timer = {
	.text = "WITH t AS (DELETE FROM evpg.timer WHERE timer_id = $1 RETURNING dead_letter_id), d AS (UPDATE"
	" evpg.dead_letter l SET resolved_at = evpg.clock_timestamp(), resolution = 'discarded', reason = 'timer"
	" was cancelled' FROM t WHERE l.dead_letter_id = t.dead_letter_id) SELECT"
	" FROM t",
	.types = {INT8OID}
};

Datum
evpg_cancel_timer(PG_FUNCTION_ARGS)
{
	Datum		value = Int64GetDatum(EvpgArgBigint(fcinfo, 0, "timer_id"));
	bool		cancelled;
	EvpgScope	scope;

	EvpgRefuseInProjection("change timers");
	EvpgEnter(&scope, "evpg_cancel_timer()");
	cancelled = change_timer(&delete_user_timer, &value);
	EvpgLeave(&scope);
	PG_RETURN_BOOL(cancelled);
}
