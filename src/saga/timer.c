/*-------------------------------------------------------------------------
 *
 * timer.c
 *		The rows of evpg.timer, which are timers of instances and scheduled
 *		commands, and the SQL functions that move and cancel them.
 *
 * What happens when they are due is in fire_timer.c and scheduled_command.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/row.h"
#include "base/row_scan.h"
#include "base/statement.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "fmgr.h"
#include "log/early_release.h"
#include "miscadmin.h"
#include "saga/saga_lock.h"
#include "saga/timer.h"
#include "usercode/guard.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evpg_reschedule_timer);
PG_FUNCTION_INFO_V1(evpg_cancel_timer);

/* ------------------------------------------------------------------ rows */

static EvpgStatement select_timer = {
	.text =
	"SELECT name, payload, command, scheduled_at, due_at, depth, correlation_id, causation_id, session_role"
	"  FROM evpg.timer"
	" WHERE timer_id = $1",
	.types = {INT8OID}
};

enum
{
	TIMER_NAME = 1, TIMER_PAYLOAD, TIMER_COMMAND, TIMER_SCHEDULED_AT, TIMER_DUE_AT, TIMER_DEPTH,
	TIMER_CORRELATION_ID, TIMER_CAUSATION_ID, TIMER_SESSION_ROLE
};

/* Reads a timer into CurrentMemoryContext; false if it does not exist any more. */
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

		timer->name = EvpgResultText(0, TIMER_NAME);
		timer->payload = EvpgResultJsonb(0, TIMER_PAYLOAD);
		timer->command = EvpgResultJsonb(0, TIMER_COMMAND);
		timer->scheduled_at = EvpgResultInt64(0, TIMER_SCHEDULED_AT);
		timer->due_at = EvpgResultInt64(0, TIMER_DUE_AT);
		timer->depth = (int) EvpgResultInt64(0, TIMER_DEPTH);
		timer->correlation_id = EvpgResultText(0, TIMER_CORRELATION_ID);
		timer->causation_id = EvpgResultText(0, TIMER_CAUSATION_ID);
		timer->session_role = EvpgResultText(0, TIMER_SESSION_ROLE);
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
	return found;
}

/* Columns of evpg.timer, see sql/evpg--1.0.sql. */
enum
{
	ROW_TIMER_ID, ROW_SAGA, ROW_KEY, ROW_NAME, ROW_PAYLOAD, ROW_COMMAND, ROW_DUE_AT, ROW_SCHEDULED_AT, ROW_ATTEMPTS,
	ROW_RETRY_AT, ROW_DEAD_LETTER_ID, ROW_DEPTH, ROW_CORRELATION_ID, ROW_CAUSATION_ID, ROW_SESSION_ROLE, ROW_CANCELS,
	ROW_NATTS
};

static const Oid *
table_of_timers(void)
{
	return &EvpgCatalogGet()->consumer_tables[EVPG_CONSUMER_TABLE_TIMER];
}

/* Makes the conditions on saga, key and, unless it is NULL, name; returns how many they are. */
static int
make_timer_keys(ScanKey keys, const char *saga, const char *key, const char *name)
{
	EvpgRowKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(saga));
	EvpgRowKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(key));
	if (name == NULL)
		return 2;
	EvpgRowKeyInit(&keys[2], 3, BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(name));
	return 3;
}

/* Returns whether any timer or scheduled command is due at a time, perhaps one that must wait. */
bool
EvpgTimerAnyIsDue(TimestampTz now)
{
	EvpgRowScan *timers = EvpgRowScanBegin(table_of_timers(), &EvpgCatalogGet()->timer_due_index, false);
	ScanKeyData keys[1];
	bool		any;

	EvpgRowKeyInit(&keys[0], 1, BTLessEqualStrategyNumber, F_TIMESTAMPTZ_LE, TimestampTzGetDatum(now));
	EvpgRowScanTo(timers, keys, 1);
	any = (EvpgRowScanNext(timers) != NULL);
	EvpgRowScanEnd(timers);
	return any;
}

/* Returns whether an instance has a timer that is a dead letter. */
static bool
any_timer_is_dead(const char *saga, const char *key)
{
	EvpgRowScan *timers = EvpgRowScanBegin(table_of_timers(), &EvpgCatalogGet()->timer_key_index, false);
	ScanKeyData keys[3];
	TupleTableSlot *slot;

	EvpgRowScanTo(timers, keys, make_timer_keys(keys, saga, key, NULL));
	while ((slot = EvpgRowScanNext(timers)) != NULL && slot->tts_isnull[ROW_DEAD_LETTER_ID])
		;
	EvpgRowScanEnd(timers);
	return slot != NULL;
}

/*
 * EvpgDeadTimerScanBegin
 *		Begins to look for instances that wait for a dead letter of a timer, with what is
 *		committed now, for EvpgDeadTimerScanFind; EvpgRowScanEnd ends it.  See
 *		EvpgRowScanBegin.
 *
 * It reads open dead letters, which nearly no instance has, and timers only of one that
 * has some: many have timers.
 */
EvpgRowScan *
EvpgDeadTimerScanBegin(void)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();

	return EvpgRowScanBegin(&catalog->consumer_tables[EVPG_CONSUMER_TABLE_DEAD_LETTER], &catalog->dead_letter_key_index,
							false);
}

/* Returns whether an instance waits for a dead letter of one of its timers. */
bool
EvpgDeadTimerScanFind(EvpgRowScan *dead_letters, const char *saga, const char *key)
{
	ScanKeyData keys[2];

	EvpgRowScanTo(dead_letters, keys, make_timer_keys(keys, saga, key, NULL));
	return EvpgRowScanNext(dead_letters) != NULL && any_timer_is_dead(saga, key);
}

static EvpgStatement upsert_timer = {
	.text =
	"INSERT INTO evpg.timer"
	"       (saga, key, name, payload, command, scheduled_at, due_at, depth,"
	"        correlation_id, causation_id, session_role)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
	" ON CONFLICT (saga, key, name) DO UPDATE"
	" SET payload = excluded.payload, scheduled_at = excluded.scheduled_at, due_at = excluded.due_at,"
	"     depth = excluded.depth, correlation_id = excluded.correlation_id, causation_id = excluded.causation_id,"
	"     session_role = excluded.session_role, attempts = 0, retry_at = NULL"
	" RETURNING timer_id",
	.types = {TEXTOID, TEXTOID, TEXTOID, JSONBOID, JSONBOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID,
	TEXTOID, TEXTOID, TEXTOID}
};

static int64
upsert_by_statement(const char *saga, const char *key, const EvpgTimer *timer)
{
	Datum		values[11];
	char		nulls[11];

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
	return EvpgStatementReturnId(&upsert_timer, values, nulls);
}

/* Sets a column of a row to a text, or to NULL. */
static void
set_text(Datum *values, bool *nulls, int column, const char *text)
{
	nulls[column] = (text == NULL);
	if (text != NULL)
		values[column] = CStringGetTextDatum(text);
}

/*
 * Writes a timer of an instance without a statement.  No other session inserts timers of
 * the instance, which is locked; one that moves or cancels this one is waited for.
 */
static int64
upsert_directly(const char *saga, const char *key, const EvpgTimer *timer)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	ScanKeyData keys[3];
	int			nkeys = make_timer_keys(keys, saga, key, timer->name);
	Datum		values[ROW_NATTS] = {
		[ROW_PAYLOAD] = JsonbPGetDatum(timer->payload),
		[ROW_DUE_AT] = TimestampTzGetDatum(timer->due_at),
		[ROW_SCHEDULED_AT] = TimestampTzGetDatum(timer->scheduled_at),
		[ROW_ATTEMPTS] = Int32GetDatum(0),
		[ROW_DEPTH] = Int32GetDatum(timer->depth)
	};
	bool		nulls[ROW_NATTS] = {
		[ROW_PAYLOAD] = timer->payload == NULL,[ROW_COMMAND] = true,[ROW_RETRY_AT] = true,[ROW_DEAD_LETTER_ID] = true,
		[ROW_CANCELS] = true
	};
	bool		replaced[ROW_NATTS] = {
		[ROW_PAYLOAD] = true,[ROW_DUE_AT] = true,[ROW_SCHEDULED_AT] = true,[ROW_ATTEMPTS] = true,[ROW_RETRY_AT] = true,
		[ROW_DEPTH] = true,[ROW_CORRELATION_ID] = true,[ROW_CAUSATION_ID] = true,[ROW_SESSION_ROLE] = true
	};
	bool		written = false;

	set_text(values, nulls, ROW_SAGA, saga);
	set_text(values, nulls, ROW_KEY, key);
	set_text(values, nulls, ROW_NAME, timer->name);
	set_text(values, nulls, ROW_CORRELATION_ID, timer->correlation_id);
	set_text(values, nulls, ROW_CAUSATION_ID, timer->causation_id);
	set_text(values, nulls, ROW_SESSION_ROLE, timer->session_role);
	while (!written)
	{
		HeapTuple	row = EvpgRowFindFirst(table_of_timers(), &catalog->timer_key_index, keys, nkeys, true);
		EvpgRowWriter *writer = EvpgRowWriterBegin(table_of_timers(), &catalog->timer_row);
		bool		isnull;

		values[ROW_TIMER_ID] = row != NULL ? heap_getattr(row, ROW_TIMER_ID + 1, catalog->timer_row, &isnull) :
			Int64GetDatum(nextval_internal(catalog->timer_id_sequence, false));
		if (row != NULL)
			written = EvpgRowTryReplace(writer, row, values, nulls, replaced, true);
		else
			written = EvpgRowInsert(writer, values, nulls) != NULL;
		EvpgRowWriterEnd(writer);
		CHECK_FOR_INTERRUPTS();
	}
	return DatumGetInt64(values[ROW_TIMER_ID]);
}

/*
 * EvpgTimerWrite
 *		Writes a timer of an instance, which replaces one of the same name, or, if
 *		saga and key are NULL, a scheduled command.  Returns its id.  The caller holds
 *		the lock of the instance, and wakes consumers if they do not run this.
 */
int64
EvpgTimerWrite(const char *saga, const char *key, const EvpgTimer *timer)
{
	return saga == NULL || IsolationUsesXactSnapshot() ? upsert_by_statement(saga, key, timer) :
		upsert_directly(saga, key, timer);
}

/* Deletes timers that a scan finds; returns false if another session has changed one since it began. */
static bool
delete_found_timers(EvpgRowScan *timers, ScanKey keys, int nkeys)
{
	EvpgRowWriter *writer = NULL;
	bool		all = true;
	TupleTableSlot *slot;

	EvpgRowScanTo(timers, keys, nkeys);
	while ((slot = EvpgRowScanNext(timers)) != NULL)
	{
		HeapTuple	row = ExecCopySlotHeapTuple(slot);

		if (writer == NULL)
			writer = EvpgRowWriterBegin(table_of_timers(), &EvpgCatalogGet()->timer_row);
		if (!EvpgRowTryDelete(writer, row))
			all = false;
		heap_freetuple(row);
		CHECK_FOR_INTERRUPTS();
	}
	if (writer != NULL)
		EvpgRowWriterEnd(writer);
	return all;
}

/* Deletes the timers of an instance, or that of a name, without a statement. */
static void
delete_directly(const char *saga, const char *key, const char *name)
{
	ScanKeyData keys[3];
	int			nkeys = make_timer_keys(keys, saga, key, name);
	bool		all = false;

	/* One that another session has moved meanwhile is found again. */
	while (!all)
	{
		EvpgRowScan *timers = EvpgRowScanBegin(table_of_timers(), &EvpgCatalogGet()->timer_key_index, true);

		all = delete_found_timers(timers, keys, nkeys);
		EvpgRowScanEnd(timers);
	}
}

static EvpgStatement delete_timers = {
	.text = "DELETE FROM evpg.timer WHERE saga = $1 AND key = $2",
	.types = {TEXTOID, TEXTOID}
};

/* Deletes the timers of an instance, whose lock the caller holds. */
void
EvpgTimerDeleteAll(const char *saga, const char *key)
{
	Datum		values[2] = {CStringGetTextDatum(saga), CStringGetTextDatum(key)};

	if (IsolationUsesXactSnapshot())
		EvpgStatementExecute(&delete_timers, values, NULL);
	else
		delete_directly(saga, key, NULL);
}

static EvpgStatement delete_named_timer = {
	.text = "DELETE FROM evpg.timer WHERE saga = $1 AND key = $2 AND name = $3",
	.types = {TEXTOID, TEXTOID, TEXTOID}
};

/* Cancels a timer of an instance, whose lock the caller holds, if it exists. */
void
EvpgTimerCancel(const char *saga, const char *key, const char *name)
{
	Datum		values[3] = {CStringGetTextDatum(saga), CStringGetTextDatum(key), CStringGetTextDatum(name)};

	if (IsolationUsesXactSnapshot())
		EvpgStatementExecute(&delete_named_timer, values, NULL);
	else
		delete_directly(saga, key, name);
}

/* Raises an error if an argument due_at of an SQL function is infinite. */
void
EvpgTimerCheckDue(TimestampTz due_at)
{
	if (TIMESTAMP_NOT_FINITE(due_at))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("due_at must be finite")));
}

/* ------------------------------------------------------------------ SQL functions */

/* A statement about a timer, whose id is its first parameter. */
typedef struct TimerChange
{
	EvpgStatement *statement;
	Datum	   *values;
	bool		changed;
} TimerChange;

static void
run_timer_change(void *arg)
{
	TimerChange *change = arg;

	change->changed = EvpgStatementRun(change->statement, change->values, NULL) > 0;
	EvpgStatementDone();
}

static EvpgStatement select_timer_instance = {
	.text = "SELECT saga, key FROM evpg.timer WHERE timer_id = $1",
	.types = {INT8OID}
};

/* Changes a timer; false if it does not exist.  A worker that is at work on it has locked its row, and is overtaken. */
static bool
change_timer(EvpgStatement *statement, Datum *values)
{
	MemoryContext caller = CurrentMemoryContext;
	TimerChange change = {.statement = statement, .values = values};
	EvpgDueItem item = {.timer_id = DatumGetInt64(values[0])};

	if (EvpgStatementReadLatest(&select_timer_instance, values, NULL) > 0)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);

		item.saga = EvpgResultText(0, 1);
		item.key = EvpgResultText(0, 2);
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
	EvpgDueItemOvertake(&item, run_timer_change, &change);
	return change.changed;
}

static EvpgStatement update_due_at = {
	.text =
	"UPDATE evpg.timer SET due_at = $2, attempts = 0, retry_at = NULL"
	" WHERE timer_id = $1 AND dead_letter_id IS NULL",
	.types = {INT8OID, TIMESTAMPTZOID}
};

/* Moves a timer of a saga or a scheduled command; false if it does not exist or is a dead letter. */
Datum
evpg_reschedule_timer(PG_FUNCTION_ARGS)
{
	Datum		values[2] = {Int64GetDatum(EvpgArgBigint(fcinfo, 0, "timer_id")), PG_GETARG_DATUM(1)};
	bool		moved;
	EvpgScope	scope;

	EvpgArgRefuseNull(fcinfo, 1, "due_at");
	EvpgTimerCheckDue(PG_GETARG_TIMESTAMPTZ(1));
	EvpgRefuseInProjection("change timers");
	EvpgEnter(&scope, "evpg_reschedule_timer()");
	moved = change_timer(&update_due_at, values);
	EvpgWakeConsumersAtEnd();
	EvpgLeave(&scope);
	if (!moved)
		EvpgEarlyReleaseAwaitOthers();
	PG_RETURN_BOOL(moved);
}

static EvpgStatement delete_user_timer = {
	.text =
	"WITH t AS ("
	"  DELETE FROM evpg.timer WHERE timer_id = $1 RETURNING dead_letter_id"
	"),"
	" d AS ("
	"  UPDATE evpg.dead_letter l"
	"     SET resolved_at = evpg.clock_timestamp(), resolution = 'discarded', reason = 'timer was cancelled'"
	"    FROM t WHERE l.dead_letter_id = t.dead_letter_id"
	")"
	" SELECT FROM t",
	.types = {INT8OID}
};

/* Cancels a timer of a saga or a scheduled command, and discards its dead letter; false if it does not exist. */
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
	if (!cancelled)
		EvpgEarlyReleaseAwaitOthers();
	PG_RETURN_BOOL(cancelled);
}
