/*-------------------------------------------------------------------------
 *
 * instance.c
 *		Instances of sagas and the work that they have before them, as they are
 *		stored: evpg.saga_instance, evpg.saga_event, evpg.timer, evpg.dead_letter.
 *
 * An instance does one thing after the other: its events in the order of their
 * positions, then what timers are due.  What is first is due unless it is to be
 * retried later or is a dead letter; then all the rest of the instance waits.
 * Who works on an instance holds the advisory lock of (saga, key), in a lock
 * class of evpg's own, see dispatch.c.
 *
 * All that is read comes in CurrentMemoryContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/aggregate.h"
#include "base/clock.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "saga/instance.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

static void
run(EvpgPlan plan, Datum *values, const char *nulls)
{
	(void) EvpgPlanRun(plan, values, nulls);
	EvpgPlanDone();
}

static int64
result_int(uint64 row, int column)
{
	Datum		value;

	return EvpgPlanResult(row, column, &value) ? DatumGetInt64(value) : 0;
}

static char *
result_text(uint64 row, int column)
{
	Datum		value;

	return EvpgPlanResult(row, column, &value) ? TextDatumGetCString(value) : NULL;
}

static Jsonb *
result_jsonb(uint64 row, int column)
{
	Datum		value;

	return EvpgPlanResult(row, column, &value) ? DatumGetJsonbPCopy(value) : NULL;
}

static void
put_text(Datum *values, char *nulls, int column, const char *text)
{
	EvpgRegistryPut(values, nulls, column, text);
}

static void
put_jsonb(Datum *values, char *nulls, int column, Jsonb *jsonb)
{
	values[column] = PointerGetDatum(jsonb);
	nulls[column] = jsonb == NULL ? 'n' : ' ';
}

/* ------------------------------------------------------------------ instances */

/* Reads the row of an instance, if there is one. */
void
EvpgInstanceRead(const EvpgWork *work, EvpgInstance *instance)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[2] = {CStringGetTextDatum(work->saga), CStringGetTextDatum(work->key)};

	memset(instance, 0, sizeof(EvpgInstance));
	instance->exists = EvpgPlanReadLatest(EVPG_PLAN_INSTANCE_READ, values, NULL) > 0;
	if (instance->exists)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);

		instance->state = result_jsonb(0, 1);
		instance->undo = result_jsonb(0, 2);
		instance->version = result_int(0, 3);
		instance->position = result_int(0, 4);
		instance->saga_version = (int) result_int(0, 5);
		instance->completed = result_int(0, 6) != 0;
		MemoryContextSwitchTo(old);
	}
	EvpgPlanDone();
}

void
EvpgInstanceWrite(const EvpgWork *work, const EvpgInstance *instance)
{
	Datum		values[8] = {
		CStringGetTextDatum(work->saga),
		CStringGetTextDatum(work->key),
		JsonbPGetDatum(instance->state),
		JsonbPGetDatum(instance->undo),
		Int64GetDatum(instance->version),
		Int64GetDatum(instance->position),
		Int32GetDatum(instance->saga_version),
		CStringGetTextDatum(instance->completed ? "completed" : "running")
	};

	run(EVPG_PLAN_INSTANCE_WRITE, values, NULL);
	if (instance->completed)
		run(EVPG_PLAN_TIMER_CLEAR, values, NULL);
}

/* ------------------------------------------------------------------ work */

/* What is due, in the order in which it came, unless there is very much: events, then timers. */
List *
EvpgWorkDue(int max_count, TimestampTz now)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[2] = {Int64GetDatum(max_count), TimestampTzGetDatum(now)};
	List	   *due = NIL;
	uint64		rows = EvpgPlanReadLatest(EVPG_PLAN_WORK_DUE, values, NULL);

	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);
		EvpgWork   *work = palloc0(sizeof(EvpgWork));

		work->saga = result_text(row, 1);
		work->key = result_text(row, 2);
		work->position = result_int(row, 3);
		work->timer_id = result_int(row, 4);
		work->attempts = (int) result_int(row, 5);
		work->retry_at = result_int(row, 6);
		work->suspect = work->attempts > 0 && work->retry_at == 0;
		due = lappend(due, work);
		MemoryContextSwitchTo(old);
	}
	EvpgPlanDone();
	return due;
}

/* Whether instances of a saga have still to react to events up to a position; not those behind a dead letter. */
bool
EvpgWorkLeft(const char *saga, int64 position)
{
	Datum		values[2] = {CStringGetTextDatum(saga), Int64GetDatum(position)};
	bool		left = EvpgPlanReadLatest(EVPG_PLAN_WORK_LEFT, values, NULL) > 0;

	EvpgPlanDone();
	return left;
}

/* When something will be due that is not yet; DT_NOEND if nothing is known to be. */
TimestampTz
EvpgWorkNext(TimestampTz now)
{
	Datum		value = TimestampTzGetDatum(now);
	TimestampTz next = DT_NOEND;
	Datum		result;

	if (EvpgPlanReadLatest(EVPG_PLAN_WORK_NEXT, &value, NULL) > 0 && EvpgPlanResult(0, 1, &result))
		next = DatumGetTimestampTz(result);
	EvpgPlanDone();
	return next;
}

/* Counts an attempt, or takes one back, unless somebody has locked the row or changed the count. */
static bool
count_attempt(EvpgWork *work, EvpgPlan event_plan, EvpgPlan timer_plan)
{
	bool		counted;

	if (work->position != 0)
	{
		Datum		values[4] = {
			CStringGetTextDatum(work->saga),
			CStringGetTextDatum(work->key),
			Int64GetDatum(work->position),
			Int32GetDatum(work->attempts)
		};

		counted = EvpgPlanRun(event_plan, values, NULL) > 0;
	}
	else
	{
		Datum		values[3] = {
			Int64GetDatum(work->timer_id),
			Int32GetDatum(work->attempts),
			TimestampTzGetDatum(work->due)
		};

		counted = EvpgPlanRun(timer_plan, values, NULL) > 0;
	}
	EvpgPlanDone();
	return counted;
}

/*
 * Counts an attempt at work that nobody else has done, or tried, since it was
 * seen; false if somebody has, or has locked its row, so that nothing is waited
 * for.
 */
bool
EvpgWorkClaim(EvpgWork *work)
{
	bool		claimed;

	work->due = EvpgClockNow();
	claimed = count_attempt(work, EVPG_PLAN_WORK_CLAIM, EVPG_PLAN_TIMER_CLAIM);
	if (claimed)
		work->attempts++;
	return claimed;
}

/* Takes the attempt back, which was none; not if its row is locked, so that nothing is waited for. */
void
EvpgWorkUnclaim(EvpgWork *work)
{
	if (count_attempt(work, EVPG_PLAN_WORK_UNCLAIM, EVPG_PLAN_TIMER_UNCLAIM))
		work->attempts--;
}

/* A timer that is due later was moved meanwhile: it is another one. */
static Datum
latest_due(const EvpgWork *work)
{
	return TimestampTzGetDatum(work->due == 0 ? DT_NOEND : work->due);
}

/* Runs the statement for events or that for timers, with further parameters; whether it found the row. */
static bool
run_for(const EvpgWork *work, EvpgPlan event_plan, EvpgPlan timer_plan, int nmore, const Datum *more)
{
	Datum		values[8];
	int			n = 0;
	bool		found;

	if (work->position != 0)
	{
		values[n++] = CStringGetTextDatum(work->saga);
		values[n++] = CStringGetTextDatum(work->key);
		values[n++] = Int64GetDatum(work->position);
	}
	else
		values[n++] = Int64GetDatum(work->timer_id);
	for (int i = 0; i < nmore; i++)
		values[n++] = more[i];
	if (work->position == 0)
		values[n++] = latest_due(work);
	found = EvpgPlanRun(work->position != 0 ? event_plan : timer_plan, values, NULL) > 0;
	EvpgPlanDone();
	return found;
}

/* Takes away what has been done; false if it was taken away by somebody else. */
bool
EvpgWorkDone(const EvpgWork *work)
{
	return run_for(work, EVPG_PLAN_WORK_DONE, EVPG_PLAN_TIMER_DONE, 0, NULL);
}

/* Leaves work for later. */
void
EvpgWorkRetry(const EvpgWork *work, TimestampTz retry_at, int attempts)
{
	Datum		more[2] = {TimestampTzGetDatum(retry_at), Int32GetDatum(attempts)};

	(void) run_for(work, EVPG_PLAN_WORK_RETRY, EVPG_PLAN_TIMER_RETRY, 2, more);
}

/*
 * EvpgSagaCount
 *		Adds to the totals of a saga: commands that were sent, dead letters that
 *		were written.  They commit with what they count, so each is counted once,
 *		whatever was tried, and a crash takes back both or none.
 */
void
EvpgSagaCount(const char *saga, int64 dispatched, int64 dead_lettered)
{
	Datum		values[3] = {CStringGetTextDatum(saga), Int64GetDatum(dispatched), Int64GetDatum(dead_lettered)};

	run(EVPG_PLAN_SAGA_COUNT, values, NULL);
}

/*
 * Writes a dead letter, behind which its instance waits; returns its id, 0 if
 * it is about a timer that was moved or cancelled meanwhile.
 */
int64
EvpgWorkBury(const EvpgDeadLetter *letter)
{
	const EvpgWork *work = letter->work;
	const ErrorData *error = letter->error;
	Datum		values[14];
	char		nulls[14];
	Datum		id = 0;

	memset(nulls, ' ', sizeof(nulls));
	put_text(values, nulls, 0, work->saga);
	put_text(values, nulls, 1, work->key);
	values[2] = Int64GetDatum(work->position);
	nulls[2] = work->position == 0 ? 'n' : ' ';
	values[3] = Int64GetDatum(work->timer_id);
	nulls[3] = work->timer_id == 0 ? 'n' : ' ';
	values[4] = Int32GetDatum(work->attempts);
	put_text(values, nulls, 5, letter->label);
	put_jsonb(values, nulls, 6, letter->command);
	put_text(values, nulls, 7, unpack_sql_state(error->sqlerrcode));
	put_text(values, nulls, 8, error->constraint_name);
	put_text(values, nulls, 9, error->message);
	put_text(values, nulls, 10, error->detail);
	put_text(values, nulls, 11, error->hint);
	put_text(values, nulls, 12, error->context);
	values[13] = latest_due(work);
	if (EvpgPlanRun(EVPG_PLAN_DEAD_LETTER_WRITE, values, nulls) > 0)
		(void) EvpgPlanResult(0, 1, &id);
	EvpgPlanDone();
	if (DatumGetInt64(id) == 0)
		return 0;
	if (work->saga != NULL)
		EvpgSagaCount(work->saga, 0, 1);
	if (work->key != NULL || work->timer_id != 0)
		(void) run_for(work, EVPG_PLAN_WORK_BURY, EVPG_PLAN_TIMER_BURY, 1, &id);
	return DatumGetInt64(id);
}

/* Gives events to instances, each once; keys and positions are of the same length. */
void
EvpgWorkRoute(const char *saga, List *keys, List *positions)
{
	Datum		values[3];
	Datum	   *elements = palloc(sizeof(Datum) * list_length(positions));
	ListCell   *cell;

	foreach(cell, positions)
		elements[foreach_current_index(cell)] = Int64GetDatum(*(int64 *) lfirst(cell));
	values[0] = CStringGetTextDatum(saga);
	values[1] = EvpgRegistryArray(keys);
	values[2] = PointerGetDatum(construct_array(elements, list_length(positions), INT8OID, 8, true, TYPALIGN_DOUBLE));
	run(EVPG_PLAN_WORK_ROUTE, values, NULL);
}

/* ------------------------------------------------------------------ timers */

/* Reads a timer; false if it is not there any more. */
bool
EvpgTimerRead(int64 timer_id, EvpgTimer *timer)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		value = Int64GetDatum(timer_id);
	bool		found = EvpgPlanReadLatest(EVPG_PLAN_TIMER_READ, &value, NULL) > 0;

	memset(timer, 0, sizeof(EvpgTimer));
	if (found)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);

		timer->name = result_text(0, 1);
		timer->payload = result_jsonb(0, 2);
		timer->command = result_jsonb(0, 3);
		timer->scheduled_at = result_int(0, 4);
		timer->due_at = result_int(0, 5);
		timer->depth = (int) result_int(0, 6);
		timer->correlation_id = result_text(0, 7);
		timer->causation_id = result_text(0, 8);
		timer->session_role = result_text(0, 9);
		MemoryContextSwitchTo(old);
	}
	EvpgPlanDone();
	return found;
}

/* Writes a timer; one of the same name of an instance is replaced.  Returns its id. */
int64
EvpgTimerWrite(const char *saga, const char *key, const EvpgTimer *timer)
{
	Datum		values[11];
	char		nulls[11];
	Datum		id = 0;

	memset(nulls, ' ', sizeof(nulls));
	put_text(values, nulls, 0, saga);
	put_text(values, nulls, 1, key);
	put_text(values, nulls, 2, timer->name);
	put_jsonb(values, nulls, 3, timer->payload);
	put_jsonb(values, nulls, 4, timer->command);
	values[5] = TimestampTzGetDatum(timer->scheduled_at);
	values[6] = TimestampTzGetDatum(timer->due_at);
	values[7] = Int32GetDatum(timer->depth);
	put_text(values, nulls, 8, timer->correlation_id);
	put_text(values, nulls, 9, timer->causation_id);
	put_text(values, nulls, 10, timer->session_role);
	(void) EvpgPlanRun(EVPG_PLAN_TIMER_WRITE, values, nulls);
	(void) EvpgPlanResult(0, 1, &id);
	EvpgPlanDone();
	return DatumGetInt64(id);
}

/* Cancels a timer of an instance, if it is there. */
void
EvpgTimerCancel(const char *saga, const char *key, const char *name)
{
	Datum		values[3] = {CStringGetTextDatum(saga), CStringGetTextDatum(key), CStringGetTextDatum(name)};

	run(EVPG_PLAN_TIMER_CANCEL, values, NULL);
}
