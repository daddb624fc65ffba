/*-------------------------------------------------------------------------
 *
 * parked_stream.c
 *		The events that a subscription has put aside, and the streams that they hold:
 *		rows of evpg.parked_event, as projections have (consumer/parked_event.c).
 *
 * The key of such a row names the stream of the event.  Later events of the stream are
 * parked behind it when they are about to be handed out; other streams go on.  A row
 * that is due again (evpg_replay_parked) holds nothing: it is handed out.
 *
 * Rows are read with the latest snapshot.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/names.h"
#include "base/row_scan.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "consumer/parked_event.h"
#include "lib/stringinfo.h"
#include "log/event_log.h"
#include "miscadmin.h"
#include "subscription/parked_stream.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"

PG_FUNCTION_INFO_V1(evpg_partition_of);

/*
 * EvpgParkedStreamKey
 *		Returns what names a stream in evpg.parked_event: type/id, with a backslash before
 *		each backslash and slash of the type.
 */
char *
EvpgParkedStreamKey(const char *aggregate_type, const char *aggregate_id)
{
	StringInfoData key;

	initStringInfo(&key);
	for (const char *c = aggregate_type; *c != '\0'; c++)
	{
		if (*c == '\\' || *c == '/')
			appendStringInfoChar(&key, '\\');
		appendStringInfoChar(&key, *c);
	}
	appendStringInfoChar(&key, '/');
	appendStringInfoString(&key, aggregate_id);
	return key.data;
}

/* Returns the aggregate id in a key, which it points into. */
static const char *
get_key_id(const char *key)
{
	const char *c = key;

	while (*c != '\0' && *c != '/')
		c += (*c == '\\' && c[1] != '\0') ? 2 : 1;
	return *c == '/' ? c + 1 : key;
}

/* Returns the partition that a parked event belongs to by its key. */
int
EvpgParkedStreamPartition(const char *key, int partitions)
{
	return EvpgLogPartOfKey(get_key_id(key), partitions);
}

/* SQL: evpg.partition_of(key, partitions).  Returns the partition of a parked event. */
Datum
evpg_partition_of(PG_FUNCTION_ARGS)
{
	char	   *key = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int			partitions = EvpgArgInt(fcinfo, 1, "partitions", 1);

	PG_RETURN_INT32(EvpgParkedStreamPartition(key, partitions));
}

static int
compare_parked_positions(const void *left, const void *right)
{
	int64		a = ((const EvpgParkedRow *) left)->position;
	int64		b = ((const EvpgParkedRow *) right)->position;

	return (a > b) - (a < b);
}

static int
compare_parked_keys(const void *left, const void *right)
{
	int			order = strcmp(((const EvpgParkedRow *) left)->key, ((const EvpgParkedRow *) right)->key);

	return order != 0 ? order : compare_parked_positions(left, right);
}

/* Returns whether a subscription has events that are parked, or skipped after a position: mostly there are none. */
static bool
any_is_parked(const char *subscription, int64 after)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	const Oid  *table = &catalog->consumer_tables[EVPG_CONSUMER_TABLE_PARKED_EVENT];
	ScanKeyData keys[2];

	EvpgRowKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(subscription));
	EvpgRowKeyInit(&keys[1], 2, BTGreaterStrategyNumber, F_INT8GT, Int64GetDatum(after));
	return EvpgRowFindFirst(table, &catalog->parked_event_waiting_index, keys, 1, true) != NULL ||
		EvpgRowFindFirst(table, &catalog->parked_event_position_index, keys, 2, true) != NULL;
}

static EvpgStatement select_parked_rows = {
	.text = "SELECT position, key, NOT due, due, replaying, attempts"
	" FROM evpg.parked_event WHERE name = $1 AND skip_reason IS NULL"
	" UNION ALL SELECT position, key, false, false, false, 0"
	" FROM evpg.parked_event WHERE name = $1 AND position > $2 AND skip_reason IS NOT NULL",
	.types = {TEXTOID, INT8OID}
};

/*
 * EvpgParkedStreamsRead
 *		Reads what a subscription has parked, and what it has skipped after a position, into
 *		CurrentMemoryContext.
 */
EvpgParkedStreams *
EvpgParkedStreamsRead(const char *subscription, int64 after)
{
	MemoryContext caller = CurrentMemoryContext;
	EvpgParkedStreams *streams = palloc0(sizeof(EvpgParkedStreams));
	Datum		values[2] = {CStringGetTextDatum(subscription), Int64GetDatum(after)};
	uint64		rows;
	MemoryContext spi;

	if (!any_is_parked(subscription, after))
		return streams;
	rows = EvpgStatementReadLatest(&select_parked_rows, values, NULL);
	spi = MemoryContextSwitchTo(caller);
	streams->rows = (int) rows;
	streams->by_position = palloc(sizeof(EvpgParkedRow) * (rows + 1));
	streams->by_key = palloc(sizeof(EvpgParkedRow) * (rows + 1));
	for (uint64 i = 0; i < rows; i++)
	{
		EvpgParkedRow *row = &streams->by_position[i];

		row->position = EvpgResultInt64(i, 1);
		row->key = EvpgResultText(i, 2);
		row->holds = row->key != NULL && EvpgResultInt64(i, 3) != 0;
		row->due = EvpgResultInt64(i, 4) != 0;
		row->replaying = EvpgResultInt64(i, 5) != 0;
		row->attempts = (int) EvpgResultInt64(i, 6);
		if (row->holds)
			streams->by_key[streams->holding++] = *row;
	}
	MemoryContextSwitchTo(spi);
	EvpgStatementDone();
	qsort(streams->by_position, streams->rows, sizeof(EvpgParkedRow), compare_parked_positions);
	qsort(streams->by_key, streams->holding, sizeof(EvpgParkedRow), compare_parked_keys);
	return streams;
}

/* Returns whether an event of a stream is going to be parked. */
static bool
stream_is_held_since(const EvpgParkedStreams *streams, const char *key)
{
	ListCell   *cell;

	foreach(cell, streams->held)
		if (strcmp(lfirst(cell), key) == 0)
		return true;
	return false;
}

/* Returns whether an earlier event of a stream than one at a position is parked. */
static bool
stream_is_held(const EvpgParkedStreams *streams, const char *key, int64 position)
{
	int			low = 0;
	int			high = streams->holding;

	while (low < high)
	{
		int			middle = (low + high) / 2;

		if (strcmp(streams->by_key[middle].key, key) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low < streams->holding && strcmp(streams->by_key[low].key, key) == 0 && streams->by_key[low].position < position;
}

/* Returns the row of an event that is parked or skipped, as it was read; NULL if there is none. */
const EvpgParkedRow *
EvpgParkedStreamsFind(const EvpgParkedStreams *streams, int64 position)
{
	EvpgParkedRow wanted = {.position = position};

	if (streams->rows == 0)
		return NULL;
	return bsearch(&wanted, streams->by_position, streams->rows, sizeof(EvpgParkedRow), compare_parked_positions);
}

/* Returns what is to be done with an event that is about to be handed out. */
EvpgParkedVerdict
EvpgParkedStreamsJudge(const EvpgParkedStreams *streams, const EvpgEvent *event)
{
	const EvpgParkedRow *row;
	const char *key;

	if (streams->rows == 0 && streams->held == NIL)
		return EVPG_PARKED_NOT;
	row = EvpgParkedStreamsFind(streams, event->position);
	if (row != NULL && !row->due)
		return EVPG_PARKED_ALREADY;
	key = EvpgParkedStreamKey(event->aggregate_type, event->aggregate_id);
	if (stream_is_held_since(streams, key))
		return row != NULL ? EVPG_PARKED_ALREADY : EVPG_PARKED_BEHIND;
	if (row != NULL)
		return EVPG_PARKED_DUE;
	return stream_is_held(streams, key, event->position) ? EVPG_PARKED_BEHIND : EVPG_PARKED_NOT;
}

/*
 * EvpgParkingPlan
 *		Returns an event as one that is going to be parked, in CurrentMemoryContext; reason is
 *		NULL if it waits behind another one of its stream.  Later events of the stream are
 *		judged accordingly.
 */
EvpgParking *
EvpgParkingPlan(EvpgParkedStreams *streams, const EvpgEvent *event, int attempts, const char *reason)
{
	EvpgParking *parking = palloc(sizeof(EvpgParking));

	parking->position = event->position;
	parking->key = EvpgParkedStreamKey(event->aggregate_type, event->aggregate_id);
	parking->attempts = attempts;
	parking->reason = reason;
	/* The stream of one that waits is held already. */
	if (reason != NULL)
		streams->held = lappend(streams->held, parking->key);
	return parking;
}

static EvpgStatement park_again = {
	.text = "UPDATE evpg.parked_event"
	" SET due = false, replaying = false, attempts = CASE WHEN position = $2 THEN $4 ELSE attempts END,"
	" error = CASE WHEN position = $2 THEN COALESCE($5, error) ELSE error END"
	" WHERE name = $1 AND skip_reason IS NULL AND (position = $2 OR position > $2 AND key = $3 AND due)",
	.types = {TEXTOID, INT8OID, TEXTOID, INT4OID, TEXTOID}
};

static EvpgStatement insert_parked_row = {
	.text = "INSERT INTO evpg.parked_event (name, position, key, attempts, error)"
	" SELECT $1, $2, $3, $4, $5"
	" WHERE NOT EXISTS (SELECT FROM evpg.parked_event p WHERE p.name = $1 AND p.position = $2 AND p.skip_reason IS NULL)",
	.types = {TEXTOID, INT8OID, TEXTOID, INT4OID, TEXTOID}
};

/* Parks an event that holds its stream; those of the stream that were due are no longer. */
static void
insert_parking(const char *subscription, const EvpgParking *parking)
{
	Datum		values[5] = {
		CStringGetTextDatum(subscription),
		Int64GetDatum(parking->position),
		CStringGetTextDatum(parking->key),
		Int32GetDatum(parking->attempts)
	};
	char		nulls[5] = {' ', ' ', ' ', ' ', ' '};

	EvpgParameterText(values, nulls, 4, parking->reason);
	EvpgStatementExecute(&park_again, values, nulls);
	EvpgStatementExecute(&insert_parked_row, values, nulls);
}

static EvpgStatement insert_followers = {
	.text = "INSERT INTO evpg.parked_event (name, position, key, attempts)"
	" SELECT $1, f.position, f.key, 0 FROM ROWS FROM (unnest($2), unnest($3)) AS f (position, key)",
	.types = {TEXTOID, INT8ARRAYOID, TEXTARRAYOID}
};

/*
 * EvpgParkedStreamInsert
 *		Parks events of a subscription (EvpgParking *).  Those that wait behind others were
 *		judged not to be parked yet, after the lease of their partition was read or written.
 */
void
EvpgParkedStreamInsert(const char *subscription, List *parkings)
{
	Datum	   *positions = palloc(sizeof(Datum) * Max(list_length(parkings), 1));
	List	   *keys = NIL;
	Datum		values[3];
	ListCell   *cell;

	foreach(cell, parkings)
	{
		EvpgParking *parking = lfirst(cell);

		if (parking->reason != NULL)
		{
			insert_parking(subscription, parking);
			continue;
		}
		positions[list_length(keys)] = Int64GetDatum(parking->position);
		keys = lappend(keys, parking->key);
	}
	if (keys == NIL)
		return;
	values[0] = CStringGetTextDatum(subscription);
	values[1] = PointerGetDatum(construct_array(positions, list_length(keys), INT8OID, 8, true, TYPALIGN_DOUBLE));
	values[2] = EvpgNamesToArray(keys);
	EvpgStatementExecute(&insert_followers, values, NULL);
}

static EvpgStatement skip_parked_row = {
	.text = "UPDATE evpg.parked_event"
	" SET skip_reason = $3, skipped_by = $4, skipped_at = evpg.clock_timestamp(), due = false, replaying = false"
	" WHERE name = $1 AND position = $2 AND skip_reason IS NULL",
	.types = {TEXTOID, INT8OID, TEXTOID, TEXTOID}
};

/* Skips an event of a subscription: it is never handed out again, and holds nothing. */
void
EvpgParkedStreamSkip(const char *subscription, const EvpgEvent *event, int attempts, const char *reason)
{
	Datum		values[4] = {
		CStringGetTextDatum(subscription),
		Int64GetDatum(event->position),
		CStringGetTextDatum(reason),
		CStringGetTextDatum(GetUserNameFromId(GetSessionUserId(), false))
	};

	if (EvpgStatementExecute(&skip_parked_row, values, NULL) == 0)
		EvpgParkedEventInsertSkipped(subscription, event->position,
									 EvpgParkedStreamKey(event->aggregate_type, event->aggregate_id), reason, attempts,
									 NULL);
}
