/*-------------------------------------------------------------------------
 *
 * parked_event.c
 *		Events that a consumer has put aside: parked ones, which wait to be replayed,
 *		and skipped ones, which are never applied.
 *
 * Both are rows of evpg.parked_event, for one key of the event or for all of them
 * (NULL).  A rebuild applies parked events and leaves skipped ones out.
 *
 * Rows are read with the latest snapshot, since the caller has locked the consumer
 * after the snapshot of its transaction was taken.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/statement.h"
#include "catalog/pg_type.h"
#include "consumer/parked_event.h"
#include "miscadmin.h"
#include "utils/builtins.h"

enum
{
	PARKED_ID = 1, PARKED_POSITION, PARKED_KEY, PARKED_SKIPPED
};

static EvpgStatement select_parked_events = {
	.text = "SELECT parked_event_id, position, key, skip_reason IS NOT NULL"
	" FROM evpg.parked_event"
	" WHERE name = $1 AND (skip_reason IS NULL OR position > $2) ORDER BY position, key",
	.types = {TEXTOID, INT8OID}
};

/* Lists the rows that a statement finds, in CurrentMemoryContext. */
static List *
read_parked_events(EvpgStatement *statement, Datum *values)
{
	MemoryContext caller = CurrentMemoryContext;
	uint64		rows = EvpgStatementReadLatest(statement, values, NULL);
	List	   *parked = NIL;

	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext spi = MemoryContextSwitchTo(caller);
		EvpgParkedEvent *event = palloc(sizeof(EvpgParkedEvent));

		event->id = EvpgResultInt64(row, PARKED_ID);
		event->position = EvpgResultInt64(row, PARKED_POSITION);
		event->key = EvpgResultText(row, PARKED_KEY);
		event->skipped = EvpgResultInt64(row, PARKED_SKIPPED) != 0;
		parked = lappend(parked, event);
		MemoryContextSwitchTo(spi);
	}
	EvpgStatementDone();
	return parked;
}

/*
 * EvpgParkedEventList
 *		Lists the events that are not to be applied now (EvpgParkedEvent *), in order of
 *		position, in CurrentMemoryContext: all parked ones, and the skipped ones after a
 *		position.  The caller owns the consumer if the list must stay true.
 */
List *
EvpgParkedEventList(const char *name, int64 after)
{
	Datum		values[2] = {CStringGetTextDatum(name), Int64GetDatum(after)};

	return read_parked_events(&select_parked_events, values);
}

static EvpgStatement select_parked_page = {
	.text = "SELECT parked_event_id, position, key, false"
	" FROM (SELECT parked_event_id, position, key"
	" FROM evpg.parked_event"
	" WHERE name = $1 AND skip_reason IS NULL AND position > $2"
	" ORDER BY position FETCH FIRST $3 ROWS WITH TIES) p"
	" ORDER BY position, key",
	.types = {TEXTOID, INT8OID, INT8OID}
};

/*
 * EvpgParkedEventListPage
 *		Lists the first parked events after a position, in order of position, in
 *		CurrentMemoryContext: about so many, and all of one event or none.  The caller is
 *		as above.
 */
List *
EvpgParkedEventListPage(const char *name, int64 after, int count)
{
	Datum		values[3] = {CStringGetTextDatum(name), Int64GetDatum(after), Int64GetDatum(count)};

	return read_parked_events(&select_parked_page, values);
}

static EvpgStatement insert_parked_event = {
	.text = "INSERT INTO evpg.parked_event (name, position, key, attempts, error, sqlstate, context)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7)",
	.types = {TEXTOID, INT8OID, TEXTOID, INT4OID, TEXTOID, TEXTOID, TEXTOID}
};

/*
 * EvpgParkedEventInsert
 *		Parks an event for a key, or as a whole if key is NULL, since its keys are not
 *		known.  error is NULL if the event waits behind another one of its key.  The
 *		caller owns the consumer, here and below.
 */
void
EvpgParkedEventInsert(const char *name, int64 position, const char *key, int attempts, const ErrorData *error)
{
	Datum		values[7] = {CStringGetTextDatum(name), Int64GetDatum(position)};
	char		nulls[7] = {' ', ' ', ' ', ' ', ' ', ' ', ' '};

	EvpgParameterText(values, nulls, 2, key);
	values[3] = Int32GetDatum(attempts);
	EvpgParameterError(values, nulls, 4, error);
	EvpgStatementExecute(&insert_parked_event, values, nulls);
}

static EvpgStatement insert_skipped_event = {
	.text = "INSERT INTO evpg.parked_event (name, position, key, attempts, error, sqlstate, context,"
	" skip_reason, skipped_by, skipped_at)"
	" SELECT $1, $2, $9, COALESCE($5, c.attempts, 0), COALESCE($6, c.last_error),"
	" COALESCE($7, c.last_sqlstate), CASE WHEN $6 IS NULL THEN c.last_context ELSE $8 END,"
	" $3, $4, evpg.clock_timestamp()"
	" FROM (SELECT) AS one LEFT JOIN evpg.consumer c ON c.name = $1 AND c.error_position = $2"
	" WHERE NOT EXISTS (SELECT FROM evpg.parked_event p"
	" WHERE p.name = $1 AND p.position = $2 AND p.skip_reason IS NOT NULL AND (p.key = $9 OR p.key IS NULL))",
	.types = {TEXTOID, INT8OID, TEXTOID, TEXTOID, INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID}
};

/*
 * EvpgParkedEventInsertSkipped
 *		Skips an event that was neither consumed nor parked: for a key, or for all of its
 *		keys if key is NULL.  If error is NULL, the last error of the consumer at the
 *		event and its attempts are kept.  Does nothing if it is skipped already.
 */
void
EvpgParkedEventInsertSkipped(const char *name, int64 position, const char *key, const char *reason, int attempts,
							 const ErrorData *error)
{
	Datum		values[9] = {
		CStringGetTextDatum(name),
		Int64GetDatum(position),
		CStringGetTextDatum(reason),
		CStringGetTextDatum(GetUserNameFromId(GetSessionUserId(), false)),
		Int32GetDatum(attempts)
	};
	char		nulls[9] = {' ', ' ', ' ', ' ', error == NULL ? 'n' : ' ', ' ', ' ', ' ', ' '};

	EvpgParameterError(values, nulls, 5, error);
	EvpgParameterText(values, nulls, 8, key);
	EvpgStatementExecute(&insert_skipped_event, values, nulls);
}

/*
 * EvpgParkedEventIsSkipped
 *		Returns whether an event is skipped for a key, or, if key is NULL, for all of
 *		its keys.  parked is a list of EvpgParkedEventList.  Ask in order of position:
 *		*next, 0 at first, is where the list goes on.
 */
bool
EvpgParkedEventIsSkipped(List *parked, int *next, int64 position, const char *key)
{
	while (*next < list_length(parked) && ((EvpgParkedEvent *) list_nth(parked, *next))->position < position)
		(*next)++;
	for (int i = *next; i < list_length(parked); i++)
	{
		EvpgParkedEvent *event = list_nth(parked, i);

		if (event->position > position)
			return false;
		if (event->skipped && (event->key == NULL || (key != NULL && strcmp(event->key, key) == 0)))
			return true;
	}
	return false;
}

static EvpgStatement delete_parked_events_of_key = {
	.text = "DELETE FROM evpg.parked_event"
	" WHERE name = $1 AND ($2 IS NULL OR key = $2) AND skip_reason IS NULL",
	.types = {TEXTOID, TEXTOID}
};

/*
 * EvpgParkedEventDelete
 *		Forgets the parked events of a key, or of all keys if key is NULL, since a
 *		rebuild has applied them; skipped ones stay.
 */
void
EvpgParkedEventDelete(const char *name, const char *key)
{
	Datum		values[2] = {CStringGetTextDatum(name)};
	char		nulls[2] = {' ', key == NULL ? 'n' : ' '};

	if (key != NULL)
		values[1] = CStringGetTextDatum(key);
	EvpgStatementExecute(&delete_parked_events_of_key, values, nulls);
}

static EvpgStatement delete_parked_event_by_id = {
	.text = "DELETE FROM evpg.parked_event"
	" WHERE parked_event_id = $1",
	.types = {INT8OID}
};

static EvpgStatement update_parked_event_error = {
	.text = "UPDATE evpg.parked_event"
	" SET error = $2, sqlstate = $3, context = $4, attempts = attempts + 1"
	" WHERE parked_event_id = $1",
	.types = {INT8OID, TEXTOID, TEXTOID, TEXTOID}
};

/*
 * EvpgParkedEventNoteReplay
 *		Forgets a parked event that was applied, or, if error is not NULL, writes down
 *		that it has failed again.
 */
void
EvpgParkedEventNoteReplay(const EvpgParkedEvent *parked, const ErrorData *error)
{
	Datum		values[4] = {Int64GetDatum(parked->id)};
	char		nulls[4] = {' ', ' ', ' ', ' '};

	EvpgParameterError(values, nulls, 1, error);
	EvpgStatementExecute(error == NULL ? &delete_parked_event_by_id : &update_parked_event_error, values, nulls);
}

static EvpgStatement delete_all_parked_events = {
	.text = "DELETE FROM evpg.parked_event"
	" WHERE name = $1",
	.types = {TEXTOID}
};

/*
 * EvpgParkedEventDeleteAll
 *		Forgets all parked and skipped events of a consumer, which the caller owns.
 */
void
EvpgParkedEventDeleteAll(const char *name)
{
	Datum		value = CStringGetTextDatum(name);

	EvpgStatementExecute(&delete_all_parked_events, &value, NULL);
}
