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

#include "base/clock.h"
#include "base/names.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "saga/instance.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* ------------------------------------------------------------------ instances */

static EvpgStatement select_instance = {
	.text = "SELECT state, undo, version, position, saga_version, CASE status WHEN 'completed' THEN 1 ELSE 0 END"
	" FROM evpg.saga_instance"
	" WHERE saga = $1 AND key = $2",
	.types = {TEXTOID, TEXTOID}
};

/* Reads the row of an instance, if there is one. */
void
EvpgInstanceRead(const EvpgDueItem *work, EvpgInstance *instance)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[2] = {CStringGetTextDatum(work->saga), CStringGetTextDatum(work->key)};

	memset(instance, 0, sizeof(EvpgInstance));
	instance->exists = EvpgStatementReadLatest(&select_instance, values, NULL) > 0;
	if (instance->exists)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);

		instance->state = EvpgResultJsonb(0, 1);
		instance->undo = EvpgResultJsonb(0, 2);
		instance->version = EvpgResultInt64(0, 3);
		instance->position = EvpgResultInt64(0, 4);
		instance->saga_version = (int) EvpgResultInt64(0, 5);
		instance->completed = EvpgResultInt64(0, 6) != 0;
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
}

static EvpgStatement insert_instance = {
	.text = "INSERT INTO evpg.saga_instance (saga, key, state, undo, version, position, saga_version, status,"
	" started_at, updated_at)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, evpg.clock_timestamp(), evpg.clock_timestamp())"
	" ON CONFLICT (saga, key) DO UPDATE"
	" SET state = excluded.state, undo = excluded.undo, version = excluded.version, position ="
	" excluded.position, status = excluded.status, updated_at = excluded.updated_at",
	.types = {TEXTOID, TEXTOID, JSONBOID, JSONBOID, INT8OID, INT8OID, INT4OID, TEXTOID}
};

static EvpgStatement delete_timers = {
	.text = "DELETE FROM evpg.timer"
	" WHERE saga = $1 AND key = $2",
	.types = {TEXTOID, TEXTOID}
};

void
EvpgInstanceWrite(const EvpgDueItem *work, const EvpgInstance *instance)
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

	EvpgStatementExecute(&insert_instance, values, NULL);
	if (instance->completed)
		EvpgStatementExecute(&delete_timers, values, NULL);
}

/* ------------------------------------------------------------------ work */

/* Whether e, what an instance has before it, need not wait: for a dead letter, for its next attempt, for the saga to be resumed. */
#define EVENT_IS_DUE \
	"e.dead_letter_id IS NULL AND (e.retry_at IS NULL OR e.retry_at <= $2) AND NOT EXISTS (SELECT FROM " \
	"evpg.timer d WHERE d.saga = e.saga AND d.key = e.key AND d.dead_letter_id IS " \
	"NOT NULL) AND EXISTS (SELECT FROM evpg.consumer c WHERE c.name = e.saga AND c.status " \
	"= 'running' AND c.retry_at IS NULL)"

/*
 * What is first of each instance.  Neither order of saga_event finds that
 * quickly in all cases: many events of few instances need the walk from
 * key to key, many instances the oldest events.  So the walk ends after
 * 200 keys, and 200 events are looked at besides; only if all of these
 * must wait it goes on to the end.
 */
static EvpgStatement select_due = {
	.text = "WITH RECURSIVE head AS ((SELECT saga, key, position, attempts, retry_at, dead_letter_id FROM"
	" evpg.saga_event ORDER BY saga, key, position LIMIT 1) UNION ALL SELECT n.* FROM head h CROSS JOIN"
	" LATERAL (SELECT e.saga, e.key, e.position, e.attempts, e.retry_at, e.dead_letter_id FROM"
	" evpg.saga_event e WHERE (e.saga, e.key) > (h.saga, h.key) ORDER BY e.saga, e.key, e.position LIMIT 1)"
	" n), near AS MATERIALIZED (SELECT * FROM head LIMIT 200), many AS MATERIALIZED (SELECT count(*) = 200"
	" AS really FROM near), old AS MATERIALIZED (SELECT e.* FROM (SELECT saga, key, position, attempts,"
	" retry_at, dead_letter_id FROM evpg.saga_event WHERE (SELECT really FROM many) ORDER BY position LIMIT"
	" 200) e WHERE NOT EXISTS (SELECT FROM evpg.saga_event b WHERE b.saga = e.saga AND b.key = e.key AND"
	" b.position < e.position)), event AS MATERIALIZED (SELECT e.* FROM (SELECT * FROM near UNION SELECT *"
	" FROM old) e WHERE "
	EVENT_IS_DUE
	" ORDER BY e.position LIMIT $1) SELECT saga, key, position, NULL::int8, attempts, retry_at"
	" FROM event"
	" UNION ALL (SELECT e.saga, e.key, e.position, NULL, e.attempts, e.retry_at FROM head e WHERE (SELECT"
	" really FROM many) AND NOT EXISTS (SELECT FROM event) AND "
	EVENT_IS_DUE
	" LIMIT $1)"
	" UNION ALL (SELECT t.saga, t.key, NULL, t.timer_id, t.attempts, t.retry_at FROM evpg.timer t WHERE"
	" t.due_at <= $2 AND t.dead_letter_id IS NULL AND (t.retry_at IS NULL OR t.retry_at <= $2) AND (t.saga"
	" IS NULL OR (NOT EXISTS (SELECT FROM evpg.saga_event b WHERE b.saga = t.saga AND b.key = t.key) AND NOT"
	" EXISTS (SELECT FROM evpg.timer d WHERE d.saga = t.saga AND d.key = t.key AND (d.dead_letter_id IS NOT"
	" NULL OR (d.due_at, d.timer_id) < (t.due_at, t.timer_id))) AND EXISTS (SELECT FROM evpg.consumer c"
	" WHERE c.name = t.saga AND c.status = 'running' AND c.retry_at IS NULL))) ORDER BY t.due_at LIMIT $1)",
	.types = {INT8OID, TIMESTAMPTZOID}
};

/* What is due, in the order in which it came, unless there is very much: events, then timers. */
List *
EvpgDueItemList(int max_count, TimestampTz now)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[2] = {Int64GetDatum(max_count), TimestampTzGetDatum(now)};
	List	   *due = NIL;
	uint64		rows = EvpgStatementReadLatest(&select_due, values, NULL);

	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);
		EvpgDueItem *work = palloc0(sizeof(EvpgDueItem));

		work->saga = EvpgResultText(row, 1);
		work->key = EvpgResultText(row, 2);
		work->position = EvpgResultInt64(row, 3);
		work->timer_id = EvpgResultInt64(row, 4);
		work->attempts = (int) EvpgResultInt64(row, 5);
		work->retry_at = EvpgResultInt64(row, 6);
		work->suspect = work->attempts > 0 && work->retry_at == 0;
		due = lappend(due, work);
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
	return due;
}

static EvpgStatement select_left = {
	.text = "SELECT 1"
	" FROM evpg.saga_event e"
	" WHERE e.saga = $1 AND e.position <= $2"
	" AND NOT EXISTS (SELECT FROM evpg.dead_letter l WHERE l.saga = e.saga AND l.key = e.key AND"
	" l.resolved_at IS NULL)"
	" LIMIT 1",
	.types = {TEXTOID, INT8OID}
};

/* Whether instances of a saga have still to react to events up to a position; not those behind a dead letter. */
bool
EvpgSagaEventsLeft(const char *saga, int64 position)
{
	Datum		values[2] = {CStringGetTextDatum(saga), Int64GetDatum(position)};
	bool		left = EvpgStatementReadLatest(&select_left, values, NULL) > 0;

	EvpgStatementDone();
	return left;
}

static EvpgStatement select_next_due = {
	.text = "SELECT LEAST((SELECT min(retry_at) FROM evpg.saga_event WHERE retry_at > $1 AND dead_letter_id IS"
	" NULL), (SELECT min(due_at) FROM evpg.timer WHERE due_at > $1), (SELECT min(retry_at) FROM evpg.timer"
	" WHERE retry_at > $1 AND dead_letter_id IS NULL))",
	.types = {TIMESTAMPTZOID}
};

/* When something will be due that is not yet; DT_NOEND if nothing is known to be. */
TimestampTz
EvpgDueItemNextTime(TimestampTz now)
{
	Datum		value = TimestampTzGetDatum(now);
	TimestampTz next = DT_NOEND;
	Datum		result;

	if (EvpgStatementReadLatest(&select_next_due, &value, NULL) > 0 && EvpgResultDatum(0, 1, &result))
		next = DatumGetTimestampTz(result);
	EvpgStatementDone();
	return next;
}

/* Counts an attempt, or takes one back, unless somebody has locked the row or changed the count. */
static bool
count_attempt(EvpgDueItem *work, EvpgStatement *event_plan, EvpgStatement *timer_plan)
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

		counted = EvpgStatementRun(event_plan, values, NULL) > 0;
	}
	else
	{
		Datum		values[3] = {
			Int64GetDatum(work->timer_id),
			Int32GetDatum(work->attempts),
			TimestampTzGetDatum(work->due)
		};

		counted = EvpgStatementRun(timer_plan, values, NULL) > 0;
	}
	EvpgStatementDone();
	return counted;
}

static EvpgStatement claim_timer = {
	.text = "UPDATE evpg.timer"
	" SET attempts = attempts + 1"
	" WHERE ctid = (SELECT ctid FROM evpg.timer WHERE timer_id = $1 AND attempts = $2 AND due_at <= $3 AND"
	" dead_letter_id IS NULL FOR UPDATE SKIP LOCKED)",
	.types = {INT8OID, INT4OID, TIMESTAMPTZOID}
};

static EvpgStatement claim_event = {
	.text = "UPDATE evpg.saga_event"
	" SET attempts = attempts + 1"
	" WHERE ctid = (SELECT ctid FROM evpg.saga_event WHERE saga = $1 AND key = $2 AND position = $3 AND"
	" attempts = $4 AND dead_letter_id IS NULL FOR UPDATE SKIP LOCKED)",
	.types = {TEXTOID, TEXTOID, INT8OID, INT4OID}
};

/*
 * Counts an attempt at work that nobody else has done, or tried, since it was
 * seen; false if somebody has, or has locked its row, so that nothing is waited
 * for.
 */
bool
EvpgDueItemClaim(EvpgDueItem *work)
{
	bool		claimed;

	work->due = EvpgClockNow();
	claimed = count_attempt(work, &claim_event, &claim_timer);
	if (claimed)
		work->attempts++;
	return claimed;
}

static EvpgStatement update_timer_unclaim = {
	.text = "UPDATE evpg.timer"
	" SET attempts = attempts - 1"
	" WHERE ctid = (SELECT ctid FROM evpg.timer WHERE timer_id = $1 AND attempts = $2 AND due_at <= $3 AND"
	" dead_letter_id IS NULL FOR UPDATE SKIP LOCKED)",
	.types = {INT8OID, INT4OID, TIMESTAMPTZOID}
};

static EvpgStatement update_work_unclaim = {
	.text = "UPDATE evpg.saga_event"
	" SET attempts = attempts - 1"
	" WHERE ctid = (SELECT ctid FROM evpg.saga_event WHERE saga = $1 AND key = $2 AND position = $3 AND"
	" attempts = $4 AND dead_letter_id IS NULL FOR UPDATE SKIP LOCKED)",
	.types = {TEXTOID, TEXTOID, INT8OID, INT4OID}
};

/* Takes the attempt back, which was none; not if its row is locked, so that nothing is waited for. */
void
EvpgWorkUnclaim(EvpgDueItem *work)
{
	if (count_attempt(work, &update_work_unclaim, &update_timer_unclaim))
		work->attempts--;
}

/* A timer that is due later was moved meanwhile: it is another one. */
static Datum
latest_due(const EvpgDueItem *work)
{
	return TimestampTzGetDatum(work->due == 0 ? DT_NOEND : work->due);
}

/* Runs the statement for events or that for timers, with further parameters; whether it found the row. */
static bool
run_for(const EvpgDueItem *work, EvpgStatement *event_plan, EvpgStatement *timer_plan, int nmore, const Datum *more)
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
	found = EvpgStatementRun(work->position != 0 ? event_plan : timer_plan, values, NULL) > 0;
	EvpgStatementDone();
	return found;
}

static EvpgStatement delete_timer = {
	.text = "DELETE FROM evpg.timer"
	" WHERE timer_id = $1 AND due_at <= $2",
	.types = {INT8OID, TIMESTAMPTZOID}
};

static EvpgStatement delete_event = {
	.text = "DELETE FROM evpg.saga_event"
	" WHERE saga = $1 AND key = $2 AND position = $3",
	.types = {TEXTOID, TEXTOID, INT8OID}
};

/* Takes away what has been done; false if it was taken away by somebody else. */
bool
EvpgDueItemDelete(const EvpgDueItem *work)
{
	return run_for(work, &delete_event, &delete_timer, 0, NULL);
}

static EvpgStatement postpone_timer = {
	.text = "UPDATE evpg.timer"
	" SET retry_at = $2, attempts = $3"
	" WHERE timer_id = $1 AND due_at <= $4",
	.types = {INT8OID, TIMESTAMPTZOID, INT4OID, TIMESTAMPTZOID}
};

static EvpgStatement postpone_event = {
	.text = "UPDATE evpg.saga_event"
	" SET retry_at = $4, attempts = $5"
	" WHERE saga = $1 AND key = $2 AND position = $3",
	.types = {TEXTOID, TEXTOID, INT8OID, TIMESTAMPTZOID, INT4OID}
};

/* Leaves work for later. */
void
EvpgDueItemRetryAt(const EvpgDueItem *work, TimestampTz retry_at, int attempts)
{
	Datum		more[2] = {TimestampTzGetDatum(retry_at), Int32GetDatum(attempts)};

	(void) run_for(work, &postpone_event, &postpone_timer, 2, more);
}

/*
 * The row need not be new under the statement's snapshot: the key finds
 * its last version, which is locked.
 */
static EvpgStatement update_saga_count = {
	.text = "WITH counted AS (UPDATE evpg.saga_total SET dispatched = dispatched + $2, dead_lettered = dead_lettered"
	" + $3 WHERE saga = $1 AND part = (SELECT part FROM evpg.saga_total WHERE saga = $1 ORDER BY part LIMIT"
	" 1 FOR NO KEY UPDATE SKIP LOCKED) RETURNING 1) INSERT INTO evpg.saga_total (saga, dispatched,"
	" dead_lettered) SELECT $1, $2, $3"
	" WHERE NOT EXISTS (SELECT FROM counted)",
	.types = {TEXTOID, INT8OID, INT8OID}
};

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

	EvpgStatementExecute(&update_saga_count, values, NULL);
}

static EvpgStatement insert_dead_letter = {
	.text = "INSERT INTO evpg.dead_letter (saga, key, source_position, timer_id, attempts, label, command, sqlstate,"
	" code, message, detail, hint, context) SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13"
	" WHERE $4 IS NULL OR EXISTS (SELECT FROM evpg.timer WHERE timer_id = $4 AND due_at <= $14 FOR UPDATE)"
	" RETURNING dead_letter_id",
	.types = {TEXTOID, TEXTOID, INT8OID, INT8OID, INT4OID, TEXTOID, JSONBOID, TEXTOID, TEXTOID,
	TEXTOID, TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID}
};

static EvpgStatement mark_timer_dead = {
	.text = "UPDATE evpg.timer"
	" SET dead_letter_id = $2"
	" WHERE timer_id = $1 AND due_at <= $3",
	.types = {INT8OID, INT8OID, TIMESTAMPTZOID}
};

static EvpgStatement mark_event_dead = {
	.text = "UPDATE evpg.saga_event"
	" SET dead_letter_id = $4"
	" WHERE saga = $1 AND key = $2 AND position = $3",
	.types = {TEXTOID, TEXTOID, INT8OID, INT8OID}
};

/*
 * Writes a dead letter, behind which its instance waits; returns its id, 0 if
 * it is about a timer that was moved or cancelled meanwhile.
 */
int64
EvpgDeadLetterWrite(const EvpgDeadLetter *letter)
{
	const EvpgDueItem *work = letter->work;
	const ErrorData *error = letter->error;
	Datum		values[14];
	char		nulls[14];
	Datum		id = 0;

	memset(nulls, ' ', sizeof(nulls));
	EvpgParameterText(values, nulls, 0, work->saga);
	EvpgParameterText(values, nulls, 1, work->key);
	values[2] = Int64GetDatum(work->position);
	nulls[2] = work->position == 0 ? 'n' : ' ';
	values[3] = Int64GetDatum(work->timer_id);
	nulls[3] = work->timer_id == 0 ? 'n' : ' ';
	values[4] = Int32GetDatum(work->attempts);
	EvpgParameterText(values, nulls, 5, letter->label);
	EvpgParameterJsonb(values, nulls, 6, letter->command);
	EvpgParameterText(values, nulls, 7, unpack_sql_state(error->sqlerrcode));
	EvpgParameterText(values, nulls, 8, error->constraint_name);
	EvpgParameterText(values, nulls, 9, error->message);
	EvpgParameterText(values, nulls, 10, error->detail);
	EvpgParameterText(values, nulls, 11, error->hint);
	EvpgParameterText(values, nulls, 12, error->context);
	values[13] = latest_due(work);
	if (EvpgStatementRun(&insert_dead_letter, values, nulls) > 0)
		(void) EvpgResultDatum(0, 1, &id);
	EvpgStatementDone();
	if (DatumGetInt64(id) == 0)
		return 0;
	if (work->saga != NULL)
		EvpgSagaCount(work->saga, 0, 1);
	if (work->key != NULL || work->timer_id != 0)
		(void) run_for(work, &mark_event_dead, &mark_timer_dead, 1, &id);
	return DatumGetInt64(id);
}

static EvpgStatement insert_events = {
	.text = "INSERT INTO evpg.saga_event (saga, key, position) SELECT $1, k.key, k.position"
	" FROM ROWS"
	" FROM (unnest($2), unnest($3)) AS k (key, position)"
	" WHERE NOT EXISTS (SELECT FROM evpg.saga_instance i WHERE i.saga = $1 AND i.key = k.key AND i.status ="
	" 'completed')"
	" ON CONFLICT (saga, key, position) DO NOTHING",
	.types = {TEXTOID, TEXTARRAYOID, INT8ARRAYOID}
};

/* Gives events to instances, each once; keys and positions are of the same length. */
void
EvpgSagaEventsInsert(const char *saga, List *keys, List *positions)
{
	Datum		values[3];
	Datum	   *elements = palloc(sizeof(Datum) * list_length(positions));
	ListCell   *cell;

	foreach(cell, positions)
		elements[foreach_current_index(cell)] = Int64GetDatum(*(int64 *) lfirst(cell));
	values[0] = CStringGetTextDatum(saga);
	values[1] = EvpgNamesToArray(keys);
	values[2] = PointerGetDatum(construct_array(elements, list_length(positions), INT8OID, 8, true, TYPALIGN_DOUBLE));
	EvpgStatementExecute(&insert_events, values, NULL);
}

/* ------------------------------------------------------------------ timers */

static EvpgStatement select_timer = {
	.text = "SELECT name, payload, command, scheduled_at, due_at, depth, correlation_id, causation_id, session_role"
	" FROM evpg.timer"
	" WHERE timer_id = $1",
	.types = {INT8OID}
};

/* Reads a timer; false if it is not there any more. */
bool
EvpgTimerRead(int64 timer_id, EvpgTimer *timer)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		value = Int64GetDatum(timer_id);
	bool		found = EvpgStatementReadLatest(&select_timer, &value, NULL) > 0;

	memset(timer, 0, sizeof(EvpgTimer));
	if (found)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);

		timer->name = EvpgResultText(0, 1);
		timer->payload = EvpgResultJsonb(0, 2);
		timer->command = EvpgResultJsonb(0, 3);
		timer->scheduled_at = EvpgResultInt64(0, 4);
		timer->due_at = EvpgResultInt64(0, 5);
		timer->depth = (int) EvpgResultInt64(0, 6);
		timer->correlation_id = EvpgResultText(0, 7);
		timer->causation_id = EvpgResultText(0, 8);
		timer->session_role = EvpgResultText(0, 9);
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
	return found;
}

static EvpgStatement insert_timer = {
	.text = "INSERT INTO evpg.timer (saga, key, name, payload, command, scheduled_at, due_at, depth, correlation_id,"
	" causation_id, session_role)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
	" ON CONFLICT (saga, key, name) DO UPDATE"
	" SET payload = excluded.payload, scheduled_at = excluded.scheduled_at, due_at = excluded.due_at, depth"
	" = excluded.depth, correlation_id = excluded.correlation_id, causation_id = excluded.causation_id,"
	" session_role = excluded.session_role, attempts = 0, retry_at = NULL"
	" RETURNING timer_id",
	.types = {TEXTOID, TEXTOID, TEXTOID, JSONBOID, JSONBOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	INT4OID, TEXTOID, TEXTOID, TEXTOID}
};

/* Writes a timer; one of the same name of an instance is replaced.  Returns its id. */
int64
EvpgTimerWrite(const char *saga, const char *key, const EvpgTimer *timer)
{
	Datum		values[11];
	char		nulls[11];
	Datum		id = 0;

	memset(nulls, ' ', sizeof(nulls));
	EvpgParameterText(values, nulls, 0, saga);
	EvpgParameterText(values, nulls, 1, key);
	EvpgParameterText(values, nulls, 2, timer->name);
	EvpgParameterJsonb(values, nulls, 3, timer->payload);
	EvpgParameterJsonb(values, nulls, 4, timer->command);
	values[5] = TimestampTzGetDatum(timer->scheduled_at);
	values[6] = TimestampTzGetDatum(timer->due_at);
	values[7] = Int32GetDatum(timer->depth);
	EvpgParameterText(values, nulls, 8, timer->correlation_id);
	EvpgParameterText(values, nulls, 9, timer->causation_id);
	EvpgParameterText(values, nulls, 10, timer->session_role);
	(void) EvpgStatementRun(&insert_timer, values, nulls);
	(void) EvpgResultDatum(0, 1, &id);
	EvpgStatementDone();
	return DatumGetInt64(id);
}

static EvpgStatement delete_named_timer = {
	.text = "DELETE FROM evpg.timer"
	" WHERE saga = $1 AND key = $2 AND name = $3",
	.types = {TEXTOID, TEXTOID, TEXTOID}
};

/* Cancels a timer of an instance, if it is there. */
void
EvpgTimerCancel(const char *saga, const char *key, const char *name)
{
	Datum		values[3] = {CStringGetTextDatum(saga), CStringGetTextDatum(key), CStringGetTextDatum(name)};

	EvpgStatementExecute(&delete_named_timer, values, NULL);
}
