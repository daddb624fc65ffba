/*-------------------------------------------------------------------------
 *
 * dead_letter.c
 *		Dead letters: rows of evpg.dead_letter, of items that have failed for the last
 *		time, behind which their instances wait, and of events whose keys cannot be
 *		found.
 *
 * They are written by failure.c and route.c; retry_dead_letter.c has the SQL
 * functions that retry and discard them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/statement.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "consumer/consumer.h"
#include "miscadmin.h"
#include "saga/dead_letter.h"
#include "saga/saga.h"
#include "saga/saga_lock.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

static EvpgStatement insert_dead_letter = {
	.text =
	"INSERT INTO evpg.dead_letter"
	"       (saga, key, source_position, timer_id, attempts, label, command,"
	"        sqlstate, code, message, detail, hint, context)"
	" SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13"
	"  WHERE $4 IS NULL"
	"        OR EXISTS (SELECT FROM evpg.timer WHERE timer_id = $4 AND due_at <= $14 FOR UPDATE)"
	" RETURNING dead_letter_id",
	.types = {TEXTOID, TEXTOID, INT8OID, INT8OID, INT4OID, TEXTOID, JSONBOID, TEXTOID, TEXTOID,
	TEXTOID, TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID}
};

/* Sets six parameters, the first at column, to what a dead letter keeps of an error. */
static void
set_error_parameters(Datum *values, char *nulls, int column, const ErrorData *error)
{
	EvpgParameterText(values, nulls, column, unpack_sql_state(error->sqlerrcode));
	EvpgParameterText(values, nulls, column + 1, error->constraint_name);
	EvpgParameterText(values, nulls, column + 2, error->message);
	EvpgParameterText(values, nulls, column + 3, error->detail);
	EvpgParameterText(values, nulls, column + 4, error->hint);
	EvpgParameterText(values, nulls, column + 5, error->context);
}

/*
 * EvpgDeadLetterWrite
 *		Writes a dead letter, behind which its instance waits, and counts it.  Returns
 *		its id; 0 if it is about a timer that was moved or cancelled meanwhile.  The
 *		caller holds the lock of the instance.
 */
int64
EvpgDeadLetterWrite(const EvpgDeadLetter *letter)
{
	const EvpgDueItem *item = letter->item;
	Datum		values[14];
	char		nulls[14];
	int64		id;

	memset(nulls, ' ', sizeof(nulls));
	EvpgParameterText(values, nulls, 0, item->saga);
	EvpgParameterText(values, nulls, 1, item->key);
	values[2] = Int64GetDatum(item->position);
	nulls[2] = item->position == 0 ? 'n' : ' ';
	values[3] = Int64GetDatum(item->timer_id);
	nulls[3] = item->timer_id == 0 ? 'n' : ' ';
	values[4] = Int32GetDatum(item->attempts);
	EvpgParameterText(values, nulls, 5, letter->label);
	EvpgParameterJsonb(values, nulls, 6, letter->command);
	set_error_parameters(values, nulls, 7, letter->error);
	values[13] = TimestampTzGetDatum(item->due == 0 ? DT_NOEND : item->due);
	id = EvpgStatementReturnId(&insert_dead_letter, values, nulls);
	if (id == 0)
		return 0;
	if (item->saga != NULL)
		EvpgSagaAddTotals(item->saga, 0, 1);
	if (item->key != NULL || item->timer_id != 0)
		EvpgDueItemBlock(item, id);
	return id;
}

static EvpgStatement select_dead_letter = {
	.text =
	"SELECT saga, key, source_position, timer_id, attempts"
	"  FROM evpg.dead_letter"
	" WHERE dead_letter_id = $1 AND resolved_at IS NULL",
	.types = {INT8OID}
};

enum
{
	LETTER_SAGA = 1, LETTER_KEY, LETTER_POSITION, LETTER_TIMER_ID, LETTER_ATTEMPTS
};

static EvpgStatement lock_dead_letter_row = {
	.text =
	"SELECT 1 FROM evpg.dead_letter"
	" WHERE dead_letter_id = $1 AND resolved_at IS NULL"
	"   FOR UPDATE",
	.types = {INT8OID}
};

/*
 * EvpgDeadLetterLock
 *		Locks a dead letter that is not resolved, and reads what it is about into
 *		CurrentMemoryContext; false if there is none.  Locks the consumer and the saga
 *		first, as a session does that changes it, then the instance, then the row.
 *		Without the consumer a session that then pauses or resumes the saga would have
 *		taken the locks in another order.
 */
bool
EvpgDeadLetterLock(int64 dead_letter_id, EvpgDueItem *item)
{
	Datum		value = Int64GetDatum(dead_letter_id);
	MemoryContext caller = CurrentMemoryContext;
	bool		found = EvpgStatementReadLatest(&select_dead_letter, &value, NULL) > 0;

	memset(item, 0, sizeof(EvpgDueItem));
	if (found)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);

		item->saga = EvpgResultText(0, LETTER_SAGA);
		item->key = EvpgResultText(0, LETTER_KEY);
		item->position = EvpgResultInt64(0, LETTER_POSITION);
		item->timer_id = EvpgResultInt64(0, LETTER_TIMER_ID);
		item->attempts = (int) EvpgResultInt64(0, LETTER_ATTEMPTS) + 1;
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
	if (!found)
		return false;
	if (item->saga != NULL)
	{
		(void) EvpgConsumerLock(item->saga, true);
		(void) EvpgSagaLock(item->saga, ShareLock, true);
	}
	if (item->key != NULL || item->saga == NULL)
		(void) EvpgDueItemLock(item, true);
	found = EvpgStatementRun(&lock_dead_letter_row, &value, NULL) > 0;
	EvpgStatementDone();
	return found;
}

static EvpgStatement update_dead_letter = {
	.text =
	"UPDATE evpg.dead_letter"
	"   SET attempts = attempts + 1, sqlstate = $2, code = $3, message = $4, detail = $5, hint = $6, context = $7"
	" WHERE dead_letter_id = $1",
	.types = {INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID}
};

/* Records another attempt at a dead letter, which the caller has locked, and its error. */
void
EvpgDeadLetterUpdate(int64 dead_letter_id, const ErrorData *error)
{
	Datum		values[7] = {Int64GetDatum(dead_letter_id)};
	char		nulls[7] = {' ', ' ', ' ', ' ', ' ', ' ', ' '};

	set_error_parameters(values, nulls, 1, error);
	(void) EvpgStatementRun(&update_dead_letter, values, nulls);
	EvpgStatementDone();
}

static EvpgStatement resolve_dead_letter = {
	.text =
	"UPDATE evpg.dead_letter"
	"   SET resolved_at = evpg.clock_timestamp(), resolution = $2, reason = $3, resolved_by = $4"
	" WHERE dead_letter_id = $1",
	.types = {INT8OID, TEXTOID, TEXTOID, TEXTOID}
};

/* Resolves a dead letter, which the caller has locked, so that its instance goes on; wakes consumers at commit. */
void
EvpgDeadLetterResolve(int64 dead_letter_id, const char *resolution, const char *reason)
{
	Datum		values[4] = {Int64GetDatum(dead_letter_id)};
	char		nulls[4] = {' ', ' ', ' ', ' '};

	EvpgParameterText(values, nulls, 1, resolution);
	EvpgParameterText(values, nulls, 2, reason);
	EvpgParameterText(values, nulls, 3, GetUserNameFromId(GetSessionUserId(), false));
	(void) EvpgStatementRun(&resolve_dead_letter, values, nulls);
	EvpgStatementDone();
	EvpgWakeConsumersAtEnd();
}
