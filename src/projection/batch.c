/*-------------------------------------------------------------------------
 *
 * batch.c
 *		Applies many events of the log to a projection, in order of position, for a
 *		transaction that owns all rows of a build: an asynchronous projection, a
 *		rebuild.
 *
 * Each key is read when its first event comes and written once, at the end.
 * The caller has asked for the stable position before, so that the snapshot
 * that is taken here sees every event up to it: only under READ COMMITTED.  An
 * event is read once (rule 12).
 *
 * How many events a batch takes adapts to how long they take: small batches write
 * their rows too often, and for large ones a session that pauses, changes or drops
 * the projection waits too long.  So a batch reads for a given time, and one event at
 * least.
 *
 * Memory: one context for a batch, in which the rows are, one for an event
 * below it.  MAX_BYTES bounds them, with what json-c holds for rows of modules.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/names.h"
#include "base/testing.h"
#include "common/hashfn.h"
#include "log/event_log.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "projection/apply.h"
#include "projection/batch.h"
#include "usercode/guard.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* A batch ends when its rows need more than this. */
#define MAX_BYTES (64 * 1024 * 1024)

/* Or when it has read for so long, in ms. */
#define MAX_BATCH_TIME 500

/* Or after so many events. */
#define MAX_EVENTS 500000

/* The size of a module's state is measured once for so many events of its key. */
#define MEASURE_EVERY 16

typedef struct RowEntry
{
	const char *key;
	bool		waits;			/* an event of the key is parked */
	EvpgProjectionRow *row;		/* NULL: not read yet */
	int64		position;		/* the last event that was applied to it */
	int64		events;			/* how many were */
	Size		json;			/* what json-c holds for it, when it was
								 * measured */
	uint32		hash;
	char		status;
} RowEntry;

#define SH_PREFIX rows
#define SH_ELEMENT_TYPE RowEntry
#define SH_KEY_TYPE const char *
#define SH_KEY key
#define SH_HASH_KEY(table, key) hash_bytes((const unsigned char *) (key), strlen(key))
#define SH_EQUAL(table, a, b) (strcmp(a, b) == 0)
#define SH_STORE_HASH
#define SH_GET_HASH(table, entry) ((entry)->hash)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "base/subtransaction.h"
#include "consumer/parked_event.h"
#include "lib/simplehash.h"

/* Returns the entry of a key, which is made if it is missing, in the context of rows. */
static RowEntry *
get_row_entry(rows_hash *rows, const char *key)
{
	RowEntry   *entry = rows_lookup(rows, key);
	bool		found;

	if (entry == NULL)
	{
		entry = rows_insert(rows, MemoryContextStrdup(rows->ctx, key), &found);
		entry->waits = false;
		entry->row = NULL;
	}
	return entry;
}

/* Notes the keys whose events wait behind a parked one. */
static void
note_waiting_keys(EvpgBatch *batch, rows_hash *rows)
{
	ListCell   *cell;

	foreach(cell, batch->parked)
	{
		EvpgParkedEvent *parked = lfirst(cell);

		if (!parked->skipped && parked->key != NULL)
			get_row_entry(rows, parked->key)->waits = true;
	}
}

/* Returns the row of a key that is about to take an event; it is read when its first event comes. */
static EvpgProjectionRow *
open_row(EvpgBatch *batch, RowEntry *entry, const EvpgEvent *event)
{
	if (entry->row == NULL)
	{
		EvpgProjectionRow *row = palloc(sizeof(EvpgProjectionRow));

		EvpgProjectionRowOpen(row, batch->projection, batch->build, entry->key);
		entry->row = row;
		entry->events = 0;
		entry->json = 0;
	}
	entry->position = event->position;
	return entry->row;
}

/* Applies an event to each of its keys. */
static void
apply_to_keys(EvpgBatch *batch, rows_hash *rows, const EvpgEvent *event, List *keys, int next_parked,
			  EvpgApplyScratch *scratch)
{
	EvpgProjection *projection = batch->projection;
	bool		by_id = EvpgProjectionIsKeyedById(projection);
	ListCell   *cell;

	foreach(cell, keys)
	{
		const char *key = lfirst(cell);
		RowEntry   *entry;

		/* Keyed by id, the scan has left out the other parts already. */
		if (batch->parts > 1 && !by_id && EvpgLogPartOfKey(key, batch->parts) != batch->part)
			continue;
		if ((batch->only_key != NULL && strcmp(key, batch->only_key) != 0) ||
			(batch->except_keys != NIL && EvpgNamesHave(batch->except_keys, key)) ||
			EvpgParkedEventIsSkipped(batch->parked, &next_parked, event->position, key))
			continue;
		entry = get_row_entry(rows, key);
		if (entry->waits || batch->give_up != NULL)
		{
			EvpgParkedEventInsert(projection->name, event->position, key, batch->attempts, batch->give_up);
			continue;
		}
		EvpgApplyReducer(open_row(batch, entry, event), event, scratch, batch->send);
		if (entry->events++ % MEASURE_EVERY == 0 && entry->row->json != NULL && entry->row->json->json != NULL)
		{
			Size		size = EvpgJsonSize(entry->row->json->json, "projection state");

			batch->json += size - entry->json;
			entry->json = size;
		}
	}
}

/*
 * Lets a handler apply an event, for all its keys at once: so it waits if one of
 * them waits, is parked as a whole, for each of its keys, and is left out if it was
 * given up for one of them.
 */
static void
apply_by_handler(EvpgBatch *batch, rows_hash *rows, const EvpgEvent *event, List *keys, int next_parked,
				 EvpgApplyScratch *scratch)
{
	bool		waits = (batch->give_up != NULL);
	List	   *of_event = NIL;
	ListCell   *cell;

	foreach(cell, keys)
	{
		if (EvpgParkedEventIsSkipped(batch->parked, &next_parked, event->position, lfirst(cell)))
			return;
		waits |= get_row_entry(rows, lfirst(cell))->waits;
	}
	foreach(cell, keys)
	{
		RowEntry   *entry = get_row_entry(rows, lfirst(cell));

		if (waits)
		{
			EvpgParkedEventInsert(batch->projection->name, event->position, entry->key, batch->attempts, batch->give_up);
			entry->waits = true;
		}
		else
		{
			EvpgProjectionRow *row = open_row(batch, entry, event);
			MemoryContext old = MemoryContextSwitchTo(scratch->context);

			of_event = lappend(of_event, row);
			MemoryContextSwitchTo(old);
			entry->events++;
		}
	}
	if (of_event != NIL)
		EvpgApplyHandler(of_event, event, scratch, batch->send);
}

/* Applies an event.  next_parked is where its own begin in the list of those to leave out. */
static void
apply_event(EvpgBatch *batch, rows_hash *rows, const EvpgEvent *event, int next_parked, EvpgApplyScratch *scratch)
{
	MemoryContext context = MemoryContextSwitchTo(scratch->context);
	List	   *keys = EvpgApplyFindKeys(batch->projection, event);

	MemoryContextSwitchTo(context);
	if (batch->projection->handler_signature != NULL)
		apply_by_handler(batch, rows, event, keys, next_parked, scratch);
	else
		apply_to_keys(batch, rows, event, keys, next_parked, scratch);
}

/* Returns whether a batch may take another event. */
static bool
has_room(const EvpgBatch *batch, const rows_hash *rows, Size limit, instr_time started)
{
	instr_time	lasted;

	if (batch->events >= (batch->max_events == 0 ? MAX_EVENTS : batch->max_events) ||
		MemoryContextMemAllocated(rows->ctx, true) + batch->json >= limit)
		return false;
	if (batch->unhurried || batch->events == 0)
		return true;
	if (EVPG_MUTATION("small_batches") && batch->events >= 100)
		return false;
	INSTR_TIME_SET_CURRENT(lasted);
	INSTR_TIME_SUBTRACT(lasted, started);
	return INSTR_TIME_GET_MILLISEC(lasted) < MAX_BATCH_TIME;
}

/* Reads the events of a batch and applies them. */
static void
scan_log(EvpgBatch *batch, rows_hash *rows, EvpgApplyScratch *scratch)
{
	EvpgProjection *projection = batch->projection;
	bool		by_id = EvpgProjectionIsKeyedById(projection);	/* loads the module,
																 * which knows the types */
	EvpgLogFilter filter = {
		.after = batch->after,
		.upto = batch->upto,
		.aggregate_types = projection->aggregate_types,
		.event_types = projection->event_types,
		.tags = projection->tags,
		.parts = by_id ? batch->parts : 1,
		.part = batch->part
	};
	EvpgLogScan *events;
	EvpgEvent	event;
	int64		last = batch->after;
	int			next_parked = 0;

	/* Besides the keys that wait, however many these are. */
	Size		limit = MemoryContextMemAllocated(rows->ctx, true) + MAX_BYTES;
	instr_time	started;

	INSTR_TIME_SET_CURRENT(started);
	PushActiveSnapshot(GetTransactionSnapshot());
	events = EvpgLogScanAll(&filter);
	while (has_room(batch, rows, limit, started) && EvpgLogScanNext(events, &event))
	{
		if (event.position <= last)
			elog(ERROR, "event at position " INT64_FORMAT " was read after " INT64_FORMAT, event.position, last);
		last = event.position;
		if (batch->first == 0)
			batch->first = event.position;
		if (EvpgProjectionTakesWanted(projection, &event) && !(EVPG_MUTATION("event_skipped") && event.version % 2 == 0) &&
			!EvpgParkedEventIsSkipped(batch->parked, &next_parked, event.position, NULL))
			apply_event(batch, rows, &event, next_parked, scratch);
		MemoryContextReset(scratch->context);
		batch->events++;
	}
	batch->reached = EvpgLogScanReached(events);
	EvpgLogScanEnd(events);
	PopActiveSnapshot();
}

/*
 * Writes all rows.  Whether a row can be written is known only after all its events:
 * one of them is blamed, if it is known which.
 */
static void
write_rows(EvpgBatch *batch, rows_hash *rows, MemoryContext event_context)
{
	EvpgRowWriter *writer = EvpgProjectionRowWriter();
	rows_iterator iterator;
	RowEntry   *entry;

	rows_start_iterate(rows, &iterator);
	while ((entry = rows_iterate(rows, &iterator)) != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(event_context);

		if (entry->row != NULL)
		{
			EvpgApplySetCurrent(entry->events == 1 || batch->narrow ? entry->position : 0, entry->key);
			EvpgProjectionRowPut(writer, entry->row);
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(event_context);
		CHECK_FOR_INTERRUPTS();
	}
	EvpgRowWriterEnd(writer);
}

/*
 * EvpgBatchRequireNewSnapshots
 *		Raises an error, that what needs READ COMMITTED, if a snapshot that is taken now
 *		does not see what is committed: under any other isolation level.
 */
void
EvpgBatchRequireNewSnapshots(const char *what)
{
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("%s needs isolation level READ COMMITTED", what),
				 errdetail("The snapshot of this transaction may be older than what has to be seen."),
				 errhint("Use BEGIN ISOLATION LEVEL READ COMMITTED, or SET default_transaction_isolation first.")));
}

/* Returns a batch of one event, whose frames are sent. */
EvpgBatch
EvpgBatchOfEvent(EvpgProjection *projection, int64 position)
{
	return (EvpgBatch)
	{
		.projection = projection,
			.build = projection->build,
			.after = position - 1,
			.upto = position,
			.max_events = 1,
			.send = true
	};
}

/*
 * EvpgBatchApply
 *		Applies a batch, and sets what became of it.  The caller owns the rows of the
 *		build until the end of the transaction, has asked for the stable position before,
 *		and is inside EvpgEnter.  Runs user code.  After an error EvpgApplyCurrentPosition is
 *		the event that failed, 0 if none did.
 */
void
EvpgBatchApply(EvpgBatch *batch)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "EvpgBatch", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	rows_hash  *rows = rows_create(context, 256, NULL);
	EvpgApplyScratch scratch;

	EvpgBatchRequireNewSnapshots("applying events of the log");
	batch->events = 0;
	batch->first = 0;
	batch->json = 0;
	batch->reached = batch->after;
	EvpgApplyScratchInit(&scratch);
	EvpgApplySetCurrent(0, NULL);
	EvpgInsideProjection = true;
	PG_TRY();
	{
		note_waiting_keys(batch, rows);
		scan_log(batch, rows, &scratch);
		write_rows(batch, rows, scratch.context);
		EvpgApplySetCurrent(0, NULL);
	}
	PG_FINALLY();
	{
		EvpgInsideProjection = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* Applies a batch; run by EvpgSubtransactionRun. */
static void
run_batch(void *arg)
{
	EvpgBatchApply(arg);
}

/*
 * EvpgBatchTry
 *		Applies a batch as EvpgBatchApply does, in a subtransaction; returns NULL, or the
 *		error, in CurrentMemoryContext, after which nothing of the batch is left.
 */
ErrorData *
EvpgBatchTry(EvpgBatch *batch)
{
	return EvpgSubtransactionRun(run_batch, batch);
}
