/*-------------------------------------------------------------------------
 *
 * due_item.c
 *		What is due in sagas, as it is stored: rows of evpg.saga_event, an event
 *		that an instance has to react to, and of evpg.timer, a timer of an instance
 *		or a scheduled command.
 *
 * An instance does one thing after the other: its events in the order of their
 * positions, then its due timers.  The first of these is due unless it is to be
 * retried later or is a dead letter; then all the rest of the instance waits.
 *
 * An attempt is counted in the row of an item, and retry_at set to NULL, before it
 * begins (dispatch.c).  So a row with attempts and without retry_at has an attempt that
 * has no result yet: some session has claimed the item, or had when the server crashed.
 * Sessions hold the advisory lock of the instance while they count or work, and that of
 * the claim in between (saga_lock.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/clock.h"
#include "base/names.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "consumer/activation.h"
#include "saga/due_event.h"
#include "saga/due_item.h"
#include "saga/timer.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* ------------------------------------------------------------------ what is due */

/* The first due timer of each instance that has no event, and due commands. */
static EvpgStatement select_due_timers = {
	.text =
	"SELECT t.saga, t.key, t.timer_id, t.attempts, t.retry_at,"
	"       EXISTS (SELECT FROM evpg.timer m"
	"                WHERE m.saga = t.saga AND m.key = t.key AND m.due_at <= $2 AND m.timer_id <> t.timer_id)"
	"  FROM evpg.timer t"
	" WHERE t.due_at <= $2 AND t.dead_letter_id IS NULL AND (t.retry_at IS NULL OR t.retry_at <= $2)"
	"       AND (coalesce(t.saga, '') = ANY ($3)) IS NOT TRUE"
	"       AND (t.saga IS NULL OR ("
	"             NOT EXISTS (SELECT FROM evpg.saga_event b WHERE b.saga = t.saga AND b.key = t.key)"
	"             AND NOT EXISTS (SELECT FROM evpg.timer d"
	"                              WHERE d.saga = t.saga AND d.key = t.key"
	"                                    AND (d.dead_letter_id IS NOT NULL"
	"                                         OR (d.due_at, d.timer_id) < (t.due_at, t.timer_id)))"
	"             AND EXISTS (SELECT FROM evpg.consumer c"
	"                          WHERE c.name = t.saga AND c.status = 'running'"
	"                                AND (c.retry_at IS NULL OR c.error_position IS NOT NULL))))"
	" ORDER BY t.due_at LIMIT $1",
	.types = {INT8OID, TIMESTAMPTZOID, TEXTARRAYOID}
};

enum
{
	DUE_SAGA = 1, DUE_KEY, DUE_TIMER_ID, DUE_ATTEMPTS, DUE_RETRY_AT, DUE_MORE
};

/* Appends the timers and commands that are due to a list, in CurrentMemoryContext; returns it. */
static List *
append_due_timers(List *due, int max_count, TimestampTz now, List *but_not_in)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[3] = {Int64GetDatum(max_count), TimestampTzGetDatum(now)};
	char		nulls[3] = {' ', ' ', ' '};
	uint64		rows;

	if (!EvpgTimerAnyIsDue(now))
		return due;
	nulls[2] = but_not_in == NIL ? 'n' : ' ';
	values[2] = but_not_in == NIL ? (Datum) 0 : EvpgNamesToArray(but_not_in);
	rows = EvpgStatementReadLatest(&select_due_timers, values, nulls);
	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);
		EvpgDueItem *item = palloc0(sizeof(EvpgDueItem));

		item->saga = EvpgResultText(row, DUE_SAGA);
		item->key = EvpgResultText(row, DUE_KEY);
		item->timer_id = EvpgResultInt64(row, DUE_TIMER_ID);
		item->attempts = (int) EvpgResultInt64(row, DUE_ATTEMPTS);
		item->retry_at = EvpgResultInt64(row, DUE_RETRY_AT);
		item->pending = item->attempts > 0 && item->retry_at == 0;
		item->more = EvpgResultInt64(row, DUE_MORE) != 0;
		due = lappend(due, item);
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
	return due;
}

/*
 * EvpgDueItemList
 *		Lists what is due at a time: a list of EvpgDueItem in CurrentMemoryContext,
 *		at most max_count events, in the order of their positions unless very many
 *		instances have some, then at most max_count timers and commands.  Leaves out
 *		what is due in some sagas (char *), "" for scheduled commands.  Lists nothing if
 *		consumers are inactive: a restore may have brought it a moment ago.  With from_last
 *		older events than those of the last call may be left out: see EvpgDueEventList.
 *
 * Nothing is locked: another session may do any of it at any time.
 */
List *
EvpgDueItemList(int max_count, TimestampTz now, List *but_not_in, bool from_last)
{
	List	   *due = EvpgDueEventList(max_count, now, but_not_in, from_last);

	due = append_due_timers(due, max_count, now, but_not_in);
	return due != NIL && EvpgActivationIsValid() ? due : NIL;
}

static EvpgStatement select_following = {
	.text =
	"SELECT timer_id"
	"  FROM evpg.timer"
	" WHERE saga = $1 AND key = $2 AND due_at <= $3 AND timer_id <> $4"
	"       AND attempts = 0 AND retry_at IS NULL AND dead_letter_id IS NULL"
	" ORDER BY due_at, timer_id LIMIT $5",
	.types = {TEXTOID, TEXTOID, TIMESTAMPTZOID, INT8OID, INT8OID}
};

/*
 * EvpgDueItemListFollowing
 *		Lists timers of the instance of a timer that are due after it and were not
 *		tried yet, at most max_count, in CurrentMemoryContext: so that each timer of
 *		very many does not need a search of its own.  The caller has locked the instance.
 *
 * Any of them may have to wait for what comes between: EvpgDueItemTake finds out.
 */
List *
EvpgDueItemListFollowing(EvpgDueItem *first, int max_count)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[5] = {
		CStringGetTextDatum(first->saga),
		CStringGetTextDatum(first->key),
		TimestampTzGetDatum(EvpgClockNow()),
		Int64GetDatum(first->timer_id),
		Int64GetDatum(max_count)
	};
	List	   *following = NIL;
	uint64		rows = EvpgStatementReadLatest(&select_following, values, NULL);

	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);
		EvpgDueItem *item = palloc0(sizeof(EvpgDueItem));

		item->saga = first->saga;
		item->key = first->key;
		item->first = first;
		item->timer_id = EvpgResultInt64(row, 1);
		following = lappend(following, item);
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
	return following;
}

static EvpgStatement select_next_due = {
	.text =
	"SELECT LEAST((SELECT min(retry_at) FROM evpg.saga_event WHERE retry_at > $1 AND dead_letter_id IS NULL),"
	"             (SELECT min(due_at) FROM evpg.timer WHERE due_at > $1),"
	"             (SELECT min(retry_at) FROM evpg.timer WHERE retry_at > $1 AND dead_letter_id IS NULL))",
	.types = {TIMESTAMPTZOID}
};

/* Returns when something will become due that is not due yet; DT_NOEND if nothing is known to. */
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

static EvpgStatement insert_event = {
	.text =
	"INSERT INTO evpg.saga_event (saga, key, position, attempts) VALUES ($1, $2, $3, $4)"
	" ON CONFLICT (saga, key, position) DO NOTHING",
	.types = {TEXTOID, TEXTOID, INT8OID, INT4OID}
};

/*
 * EvpgDueItemInsert
 *		Gives an event to an instance, which the caller has locked, for workers to do; the
 *		attempts of the item were made.
 */
void
EvpgDueItemInsert(const EvpgDueItem *item)
{
	Datum		values[4] = {
		CStringGetTextDatum(item->saga),
		CStringGetTextDatum(item->key),
		Int64GetDatum(item->position),
		Int32GetDatum(item->attempts)
	};

	EvpgStatementExecute(&insert_event, values, NULL);
}

/* ------------------------------------------------------------------ attempts */

/* Returns whether the row of an item is written without a statement: that of an event, under READ COMMITTED. */
static bool
is_written_directly(const EvpgDueItem *item)
{
	return item->position != 0 && !IsolationUsesXactSnapshot();
}

/*
 * Runs the statement for events or that for timers about an item as it was listed or
 * claimed, with its attempts and a time; returns whether it found the row.
 */
static bool
run_for_attempt(const EvpgDueItem *item, EvpgStatement *of_event, EvpgStatement *of_timer, TimestampTz retry_at)
{
	Datum		values[5];
	char		nulls[5] = {' ', ' ', ' ', ' ', ' '};
	int			n = 0;
	bool		found;

	if (item->position != 0)
	{
		values[n++] = CStringGetTextDatum(item->saga);
		values[n++] = CStringGetTextDatum(item->key);
		values[n++] = Int64GetDatum(item->position);
	}
	else
	{
		values[n++] = Int64GetDatum(item->timer_id);
		values[n++] = TimestampTzGetDatum(item->due);
	}
	values[n++] = Int32GetDatum(item->attempts);
	values[n] = TimestampTzGetDatum(retry_at);
	nulls[n] = retry_at == 0 ? 'n' : ' ';
	found = EvpgStatementRun(item->position != 0 ? of_event : of_timer, values, nulls) > 0;
	EvpgStatementDone();
	return found;
}

static EvpgStatement claim_event = {
	.text =
	"UPDATE evpg.saga_event SET attempts = attempts + 1, retry_at = NULL"
	" WHERE ctid = (SELECT ctid FROM evpg.saga_event"
	"                WHERE saga = $1 AND key = $2 AND position = $3 AND attempts = $4 AND retry_at IS NOT DISTINCT FROM $5"
	"                      AND dead_letter_id IS NULL"
	"                  FOR UPDATE SKIP LOCKED)",
	.types = {TEXTOID, TEXTOID, INT8OID, INT4OID, TIMESTAMPTZOID}
};

static EvpgStatement claim_timer = {
	.text =
	"UPDATE evpg.timer SET attempts = attempts + 1, retry_at = NULL"
	" WHERE ctid = (SELECT ctid FROM evpg.timer"
	"                WHERE timer_id = $1 AND due_at <= $2 AND attempts = $3 AND retry_at IS NOT DISTINCT FROM $4"
	"                      AND dead_letter_id IS NULL"
	"                  FOR UPDATE SKIP LOCKED)",
	.types = {INT8OID, TIMESTAMPTZOID, INT4OID, TIMESTAMPTZOID}
};

/*
 * EvpgDueItemClaim
 *		Counts an attempt at an item, whose instance the caller has locked; false if
 *		another session has done it, tried it, or locked its row since it was listed.
 *		Waits for nothing.
 */
bool
EvpgDueItemClaim(EvpgDueItem *item)
{
	bool		claimed;

	item->due = EvpgClockNow();
	if (is_written_directly(item))
		claimed = EvpgDueEventCount(item, item->retry_at, item->attempts + 1, 0);
	else
		claimed = run_for_attempt(item, &claim_event, &claim_timer, item->retry_at);
	if (claimed)
		item->attempts++;
	return claimed;
}

static EvpgStatement unclaim_event = {
	.text =
	"UPDATE evpg.saga_event SET attempts = attempts - 1, retry_at = $5"
	" WHERE ctid = (SELECT ctid FROM evpg.saga_event"
	"                WHERE saga = $1 AND key = $2 AND position = $3 AND attempts = $4 AND retry_at IS NULL"
	"                      AND dead_letter_id IS NULL"
	"                  FOR UPDATE SKIP LOCKED)",
	.types = {TEXTOID, TEXTOID, INT8OID, INT4OID, TIMESTAMPTZOID}
};

static EvpgStatement unclaim_timer = {
	.text =
	"UPDATE evpg.timer SET attempts = attempts - 1, retry_at = $4"
	" WHERE ctid = (SELECT ctid FROM evpg.timer"
	"                WHERE timer_id = $1 AND due_at <= $2 AND attempts = $3 AND retry_at IS NULL"
	"                      AND dead_letter_id IS NULL"
	"                  FOR UPDATE SKIP LOCKED)",
	.types = {INT8OID, TIMESTAMPTZOID, INT4OID, TIMESTAMPTZOID}
};

/*
 * EvpgDueItemUnclaim
 *		Takes back, in its row, the attempt that was counted and not begun, and lets the item be due at
 *		a time, 0 for at once.  Does nothing if the item has changed since, or another
 *		session has locked its row, so waits for nothing.  Needs no lock.
 */
void
EvpgDueItemUnclaim(EvpgDueItem *item, TimestampTz retry_at)
{
	if (is_written_directly(item))
		(void) EvpgDueEventCount(item, 0, item->attempts - 1, retry_at);
	else
		(void) run_for_attempt(item, &unclaim_event, &unclaim_timer, retry_at);
}

static EvpgStatement take_event = {
	.text =
	"DELETE FROM evpg.saga_event"
	" WHERE saga = $1 AND key = $2 AND position = $3 AND attempts = $4 AND retry_at IS NULL AND dead_letter_id IS NULL"
	"       AND NOT EXISTS (SELECT FROM evpg.saga_event b WHERE b.saga = $1 AND b.key = $2 AND b.position < $3)"
	"       AND NOT EXISTS (SELECT FROM evpg.timer d"
	"                        WHERE d.saga = $1 AND d.key = $2 AND d.dead_letter_id IS NOT NULL)",
	.types = {TEXTOID, TEXTOID, INT8OID, INT4OID}
};

static EvpgStatement take_timer = {
	.text =
	"DELETE FROM evpg.timer t"
	" WHERE timer_id = $1 AND due_at <= $2 AND attempts = $3 AND retry_at IS NULL AND dead_letter_id IS NULL"
	"       AND (saga IS NULL OR ("
	"             NOT EXISTS (SELECT FROM evpg.saga_event b WHERE b.saga = t.saga AND b.key = t.key)"
	"             AND NOT EXISTS (SELECT FROM evpg.timer d"
	"                              WHERE d.saga = t.saga AND d.key = t.key"
	"                                    AND (d.dead_letter_id IS NOT NULL"
	"                                         OR (d.due_at, d.timer_id) < (t.due_at, t.timer_id)))))",
	.types = {INT8OID, TIMESTAMPTZOID, INT4OID}
};

/*
 * EvpgDueItemTake
 *		Deletes an item that is claimed in the transaction that does it, whose instance
 *		the caller has locked.  False if it need not or must not be done any more: another
 *		session has done it, tried it, moved it or cancelled it; or the instance has got
 *		something that comes before it, or a dead letter for which it waits.
 */
bool
EvpgDueItemTake(const EvpgDueItem *item)
{
	return is_written_directly(item) ? EvpgDueEventTake(item) : run_for_attempt(item, &take_event, &take_timer, 0);
}

/* ------------------------------------------------------------------ changes of a claimed item */

/* Runs the statement for events or that for timers, with further parameters; returns whether it found the row. */
static bool
change_due_item(const EvpgDueItem *item, EvpgStatement *of_event, EvpgStatement *of_timer, int nmore, const Datum *more)
{
	Datum		values[8];
	int			n = 0;
	bool		found;

	if (item->position != 0)
	{
		values[n++] = CStringGetTextDatum(item->saga);
		values[n++] = CStringGetTextDatum(item->key);
		values[n++] = Int64GetDatum(item->position);
	}
	else
		values[n++] = Int64GetDatum(item->timer_id);
	for (int i = 0; i < nmore; i++)
		values[n++] = more[i];
	/* A timer that is due later was moved meanwhile: it is another one. */
	if (item->position == 0)
		values[n++] = TimestampTzGetDatum(item->due == 0 ? DT_NOEND : item->due);
	found = EvpgStatementRun(item->position != 0 ? of_event : of_timer, values, NULL) > 0;
	EvpgStatementDone();
	return found;
}

static EvpgStatement delete_event = {
	.text = "DELETE FROM evpg.saga_event WHERE saga = $1 AND key = $2 AND position = $3",
	.types = {TEXTOID, TEXTOID, INT8OID}
};

static EvpgStatement delete_timer = {
	.text = "DELETE FROM evpg.timer WHERE timer_id = $1 AND due_at <= $2",
	.types = {INT8OID, TIMESTAMPTZOID}
};

/* Deletes an item, whose dead letter the caller has locked; false if it does not exist any more. */
bool
EvpgDueItemDelete(const EvpgDueItem *item)
{
	return change_due_item(item, &delete_event, &delete_timer, 0, NULL);
}

/* An attempt that counts was not cancelled: it ends the row of those that were. */
#define CANCELS_AFTER(attempts_that_count) ", cancels = CASE WHEN attempts <> " attempts_that_count " THEN cancels END"

static EvpgStatement postpone_event = {
	.text = "UPDATE evpg.saga_event SET retry_at = $4, attempts = $5" CANCELS_AFTER("$5")
	" WHERE saga = $1 AND key = $2 AND position = $3",
	.types = {TEXTOID, TEXTOID, INT8OID, TIMESTAMPTZOID, INT4OID}
};

static EvpgStatement postpone_timer = {
	.text = "UPDATE evpg.timer SET retry_at = $2, attempts = $3" CANCELS_AFTER("$3") " WHERE timer_id = $1 AND due_at <= $4",
	.types = {INT8OID, TIMESTAMPTZOID, INT4OID, TIMESTAMPTZOID}
};

/* Leaves an item, whose instance the caller has locked, to be tried at a later time; attempts are those that count. */
void
EvpgDueItemPostpone(const EvpgDueItem *item, TimestampTz retry_at, int attempts)
{
	Datum		more[2] = {TimestampTzGetDatum(retry_at), Int32GetDatum(attempts)};

	(void) change_due_item(item, &postpone_event, &postpone_timer, lengthof(more), more);
}

/* The pause doubles as long as cancels follow each other. */
#define POSTPONED_AFTER_CANCELS \
	"SET attempts = attempts - 1, cancels = coalesce(cancels, 0) + 1," \
	"    retry_at = evpg.clock_timestamp() + make_interval(secs => least(0.1 * 2 ^ least(coalesce(cancels, 0), 9), 30))"

static EvpgStatement cancel_event = {
	.text = "UPDATE evpg.saga_event " POSTPONED_AFTER_CANCELS " WHERE saga = $1 AND key = $2 AND position = $3"
	" RETURNING cancels::int8",
	.types = {TEXTOID, TEXTOID, INT8OID}
};

static EvpgStatement cancel_timer = {
	.text = "UPDATE evpg.timer " POSTPONED_AFTER_CANCELS " WHERE timer_id = $1 AND due_at <= $2"
	" RETURNING cancels::int8",
	.types = {INT8OID, TIMESTAMPTZOID}
};

/*
 * EvpgDueItemPostponeCancelled
 *		Leaves an item, whose instance the caller has locked and whose attempt was cancelled,
 *		to be tried later, each time after a longer pause.  The attempt does not count.
 *		Returns how often in a row it was cancelled; 0 if it is not there any more.
 */
int64
EvpgDueItemPostponeCancelled(const EvpgDueItem *item)
{
	Datum		of_event[3];
	Datum		of_timer[2] = {Int64GetDatum(item->timer_id), TimestampTzGetDatum(item->due == 0 ? DT_NOEND : item->due)};

	if (item->position == 0)
		return EvpgStatementReturnId(&cancel_timer, of_timer, NULL);
	of_event[0] = CStringGetTextDatum(item->saga);
	of_event[1] = CStringGetTextDatum(item->key);
	of_event[2] = Int64GetDatum(item->position);
	return EvpgStatementReturnId(&cancel_event, of_event, NULL);
}

static EvpgStatement block_event = {
	.text = "UPDATE evpg.saga_event SET dead_letter_id = $4 WHERE saga = $1 AND key = $2 AND position = $3",
	.types = {TEXTOID, TEXTOID, INT8OID, INT8OID}
};

static EvpgStatement block_timer = {
	.text = "UPDATE evpg.timer SET dead_letter_id = $2 WHERE timer_id = $1 AND due_at <= $3",
	.types = {INT8OID, INT8OID, TIMESTAMPTZOID}
};

/* Lets an item, and its instance, wait until its dead letter is resolved. */
void
EvpgDueItemBlock(const EvpgDueItem *item, int64 dead_letter_id)
{
	Datum		more = Int64GetDatum(dead_letter_id);

	(void) change_due_item(item, &block_event, &block_timer, 1, &more);
}
