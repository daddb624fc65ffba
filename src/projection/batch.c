/*-------------------------------------------------------------------------
 *
 * batch.c
 *		Applies many events of the log to a projection, in order of position, for a
 *		transaction that owns all rows of a build: an asynchronous projection, a
 *		rebuild.
 *
 * Each key is read when its first event comes and written once, at the end.
 *
 * Events are taken in rounds.  A module without frames gets those of a round key by
 * key, each key's in order of position, because the state of a key, of which there may
 * be thousands, is then in the caches of the processor for all its events but the first.
 * Everything else gets them as they come, and so does a module when a batch has failed,
 * since the first event that fails has to be found.
 *
 * The caller has asked for the stable position before, so that the snapshot
 * that is taken here sees every event up to it: only under READ COMMITTED.  An
 * event is read once (rule 12).
 *
 * How many events a batch takes adapts to how long they take: small batches write
 * their rows too often, and for large ones a session that pauses, changes or drops
 * the projection waits too long.  So a batch reads for a given time, and one event at
 * least.
 *
 * Memory: one context for a batch, in which the rows are, one for the events of a
 * round and one for an event below it.  MAX_BYTES bounds them, with what json-c holds for
 * rows of modules.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "access/xact.h"
#include "base/names.h"
#include "base/retry.h"
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

/* A round that is followed by another takes twice the events of the one before, and begins with so many. */
#define FIRST_ROUND 16

/* A round ends when its events need more than this. */
#define MAX_ROUND_BYTES (32 * 1024 * 1024)

/* The clock is read once for so many events of rounds, which take their time when they end. */
#define CLOCK_EVERY 16

/* Distributing the events of a round, the entry that comes so many later is fetched into the caches. */
#define PREFETCH_DISTANCE 8

/* An event that waits for the end of its round. */
typedef struct PendingEvent
{
	const EvpgEvent *event;
	struct RowEntry *row;
	struct PendingEvent *next;	/* of the same key, once the round has ended */
} PendingEvent;

typedef struct RowEntry
{
	EvpgProjectionRow row;
	bool		opened;			/* the row has been read */
	bool		written;
	bool		waits;			/* an event of the key is parked */
	int64		position;		/* the last event that was applied to it */
	int64		events;			/* how many were */
	Size		json;			/* what json-c holds for it, when it was
								 * measured */
	PendingEvent *pending;		/* of the round that ends, in order of
								 * position */
	PendingEvent *last_pending;
	struct RowEntry *next_touched;	/* another key that has pending events */
	char		key[FLEXIBLE_ARRAY_MEMBER];
} RowEntry;

typedef struct KeyEntry
{
	const char *key;
	RowEntry   *row;
	uint32		hash;
	char		status;
} KeyEntry;

#define SH_PREFIX keys
#define SH_ELEMENT_TYPE KeyEntry
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

/* The entry of a key by one of the streams whose events have it. */
typedef struct StreamEntry
{
	int64		stream_id;
	RowEntry   *row;
	char		status;
} StreamEntry;

#define SH_PREFIX key_streams
#define SH_ELEMENT_TYPE StreamEntry
#define SH_KEY_TYPE int64
#define SH_KEY stream_id
#define SH_HASH_KEY(table, key) murmurhash32((uint32) (key) ^ (uint32) ((key) >> 32))
#define SH_EQUAL(table, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* A batch at work. */
typedef struct BatchRun
{
	EvpgBatch  *batch;
	EvpgApplyScratch scratch;
	MemoryContext context;		/* of the rows */
	keys_hash  *keys;
	key_streams_hash *streams;
	bool		by_id;			/* keys are ids of aggregates */
	bool		has_rows;		/* the build may have rows already */
	Size		limit;			/* of memory */
	instr_time	started;
	/* the round */
	bool		by_stream;		/* by_key, each stream has one key, and no
								 * event of any is treated otherwise */
	MemoryContext round_context;
	int64		round_end;		/* it ends when the batch has so many events */
	EvpgEvent  *kept;			/* the copy of the event that is being given
								 * out; NULL: none yet */
	const char *kept_texts[3];	/* the last ones that were copied: types,
								 * session_role */
	PendingEvent *pending;		/* in order of position */
	int64		npending;
	int64		pending_space;
} BatchRun;

/* Returns the entry of a key, which is made if it is missing. */
static RowEntry *
get_row_entry(BatchRun *run, const char *key)
{
	KeyEntry   *entry = keys_lookup(run->keys, key);
	bool		found;
	RowEntry   *row;

	if (entry != NULL)
		return entry->row;
	row = MemoryContextAllocZero(run->context, offsetof(RowEntry, key) + strlen(key) + 1);
	strcpy(row->key, key);
	keys_insert(run->keys, row->key, &found)->row = row;
	return row;
}

/* Notes the keys whose events wait behind a parked one. */
static void
note_waiting_keys(BatchRun *run)
{
	ListCell   *cell;

	foreach(cell, run->batch->parked)
	{
		EvpgParkedEvent *parked = lfirst(cell);

		if (!parked->skipped && parked->key != NULL)
			get_row_entry(run, parked->key)->waits = true;
	}
}

/* Returns the row of a key that is about to take an event; it is read when its first event comes. */
static EvpgProjectionRow *
open_row(BatchRun *run, RowEntry *entry, const EvpgEvent *event)
{
	EvpgBatch  *batch = run->batch;

	if (!entry->opened)
	{
		MemoryContext old = MemoryContextSwitchTo(run->context);

		EvpgProjectionRowOpen(&entry->row, batch->projection, batch->build, entry->key, run->has_rows);
		entry->opened = true;
		MemoryContextSwitchTo(old);
	}
	entry->position = event->position;
	return &entry->row;
}

/* Applies an event to the row of a key. */
static void
apply_to_entry(BatchRun *run, RowEntry *entry, const EvpgEvent *event)
{
	EvpgBatch  *batch = run->batch;
	EvpgProjectionRow *row = open_row(run, entry, event);

	EvpgApplyReducer(row, event, &run->scratch, batch->send);
	if (entry->events++ % MEASURE_EVERY == 0 && row->json != NULL && row->json->json != NULL)
	{
		Size		size = EvpgJsonSize(row->json->json, "projection state");

		batch->json += size - entry->json;
		entry->json = size;
	}
}

/* Keeps an event for its key until the end of the round. */
static void
postpone_event(BatchRun *run, RowEntry *entry, const EvpgEvent *event)
{
	PendingEvent *pending;

	if (run->npending == run->pending_space)
	{
		run->pending_space = Max(run->pending_space * 2, FIRST_ROUND);
		run->pending = run->pending == NULL ? palloc(sizeof(PendingEvent) * run->pending_space) :
			repalloc_huge(run->pending, sizeof(PendingEvent) * run->pending_space);
	}
	if (run->kept == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(run->round_context);

		run->kept = EvpgEventKeep(event, run->by_id ? entry->key : NULL, run->kept_texts);
		MemoryContextSwitchTo(old);
	}
	pending = &run->pending[run->npending++];
	pending->event = run->kept;
	pending->row = entry;
	pending->next = NULL;
}

/* Gives the events of a round to their keys; returns these in the order of their first events. */
static RowEntry *
distribute_events(BatchRun *run)
{
	RowEntry   *first = NULL;
	RowEntry   *last = NULL;

	for (int64 i = 0; i < run->npending; i++)
	{
		PendingEvent *pending = &run->pending[i];
		RowEntry   *entry = pending->row;

		if (i + PREFETCH_DISTANCE < run->npending)
			__builtin_prefetch(&run->pending[i + PREFETCH_DISTANCE].row->pending, 1);
		if (entry->pending == NULL)
		{
			entry->pending = pending;
			entry->next_touched = NULL;
			if (last == NULL)
				first = entry;
			else
				last->next_touched = entry;
			last = entry;
		}
		else
			entry->last_pending->next = pending;
		entry->last_pending = pending;
	}
	run->npending = 0;
	return first;
}

/* Applies an event to each of its keys, now or at the end of the round. */
static void
apply_to_keys(BatchRun *run, const EvpgEvent *event, List *keys, int next_parked)
{
	EvpgBatch  *batch = run->batch;
	ListCell   *cell;

	foreach(cell, keys)
	{
		const char *key = lfirst(cell);
		RowEntry   *entry;

		/* Keyed by id, the scan has left out the other parts already. */
		if (batch->parts > 1 && !run->by_id && EvpgLogPartOfKey(key, batch->parts) != batch->part)
			continue;
		if ((batch->only_key != NULL && strcmp(key, batch->only_key) != 0) ||
			(batch->except_keys != NIL && EvpgNamesHave(batch->except_keys, key)) ||
			EvpgParkedEventIsSkipped(batch->parked, &next_parked, event->position, key))
			continue;
		entry = get_row_entry(run, key);
		if (entry->waits || batch->give_up != NULL)
			EvpgParkedEventInsert(batch->projection->name, event->position, key, batch->attempts, batch->give_up);
		else if (batch->by_key)
			postpone_event(run, entry, event);
		else
			apply_to_entry(run, entry, event);
	}
}

/*
 * Lets a handler apply an event, for all its keys at once: so it waits if one of
 * them waits, is parked as a whole, for each of its keys, and is left out if it was
 * given up for one of them.
 */
static void
apply_by_handler(BatchRun *run, const EvpgEvent *event, List *keys, int next_parked)
{
	EvpgBatch  *batch = run->batch;
	bool		waits = (batch->give_up != NULL);
	List	   *of_event = NIL;
	ListCell   *cell;

	foreach(cell, keys)
	{
		if (EvpgParkedEventIsSkipped(batch->parked, &next_parked, event->position, lfirst(cell)))
			return;
		waits |= get_row_entry(run, lfirst(cell))->waits;
	}
	foreach(cell, keys)
	{
		RowEntry   *entry = get_row_entry(run, lfirst(cell));

		if (waits)
		{
			EvpgParkedEventInsert(batch->projection->name, event->position, entry->key, batch->attempts, batch->give_up);
			entry->waits = true;
		}
		else
		{
			EvpgProjectionRow *row = open_row(run, entry, event);
			MemoryContext old = MemoryContextSwitchTo(run->scratch.context);

			of_event = lappend(of_event, row);
			MemoryContextSwitchTo(old);
			entry->events++;
		}
	}
	if (of_event != NIL)
		EvpgApplyHandler(of_event, event, &run->scratch, batch->send);
}

/* Keeps an event for the end of the round, without a look at its id. */
static void
postpone_by_stream(BatchRun *run, const EvpgEvent *event)
{
	bool		found;
	StreamEntry *entry = key_streams_insert(run->streams, event->stream_id, &found);

	if (!found)
		entry->row = get_row_entry(run, event->aggregate_id);
	run->kept = NULL;
	postpone_event(run, entry->row, event);
}

/* Applies an event.  next_parked is where its own begin in the list of those to leave out. */
static void
apply_event(BatchRun *run, const EvpgEvent *event, int next_parked)
{
	MemoryContext context = MemoryContextSwitchTo(run->scratch.context);
	List	   *keys = EvpgApplyFindKeys(run->batch->projection, event);

	MemoryContextSwitchTo(context);
	run->kept = NULL;
	if (run->batch->projection->handler_signature != NULL)
		apply_by_handler(run, event, keys, next_parked);
	else
		apply_to_keys(run, event, keys, next_parked);
}

/* Returns whether a batch may take another event. */
static bool
has_room(const BatchRun *run)
{
	const EvpgBatch *batch = run->batch;
	instr_time	lasted;

	if (batch->events >= (batch->max_events == 0 ? MAX_EVENTS : batch->max_events) ||
		MemoryContextMemAllocated(run->context, true) + batch->json >= run->limit)
		return false;
	if (batch->unhurried || batch->events == 0 || (batch->by_key && batch->events % CLOCK_EVERY != 0))
		return true;
	if (EVPG_MUTATION("small_batches") && batch->events >= 100)
		return false;
	INSTR_TIME_SET_CURRENT(lasted);
	INSTR_TIME_SUBTRACT(lasted, run->started);
	return INSTR_TIME_GET_MILLISEC(lasted) < MAX_BATCH_TIME;
}

/*
 * Writes a row, in the context of an event.  Whether it can be written is known only
 * after all its events: one of them is blamed, if it is known which.
 */
static void
write_row(BatchRun *run, RowEntry *entry, EvpgRowWriter *writer)
{
	MemoryContext old = MemoryContextSwitchTo(run->scratch.context);

	EvpgApplySetCurrent(entry->events == 1 || run->batch->narrow ? entry->position : 0, entry->key);
	EvpgProjectionRowPut(writer, &entry->row);
	entry->written = true;
	MemoryContextSwitchTo(old);
	MemoryContextReset(run->scratch.context);
	CHECK_FOR_INTERRUPTS();
}

/* Applies the events of a round, key by key, and writes the rows if it was the last one (writer is not NULL). */
static void
end_round(BatchRun *run, EvpgRowWriter *writer)
{
	for (RowEntry *entry = distribute_events(run); entry != NULL; entry = entry->next_touched)
	{
		for (PendingEvent *pending = entry->pending; pending != NULL; pending = pending->next)
		{
			apply_to_entry(run, entry, pending->event);
			MemoryContextReset(run->scratch.context);
		}
		entry->pending = NULL;
		if (writer != NULL)
		{
			write_row(run, entry, writer);
			if (entry->row.json != NULL)
				evpg_free(EvpgJsonLetGo(entry->row.json));
		}
	}
	memset(run->kept_texts, 0, sizeof(run->kept_texts));
	MemoryContextReset(run->round_context);
}

/* Begins a round of at most as many events as the batch has by now, if that is expected to take no more than its time. */
static void
begin_round(BatchRun *run)
{
	const EvpgBatch *batch = run->batch;
	int64		events = Max(batch->events, FIRST_ROUND);

	if (!batch->unhurried && batch->events > 0)
	{
		instr_time	lasted;
		double		spent;

		INSTR_TIME_SET_CURRENT(lasted);
		INSTR_TIME_SUBTRACT(lasted, run->started);
		spent = INSTR_TIME_GET_MILLISEC(lasted);
		if (spent * 2 > MAX_BATCH_TIME)
			events = (int64) (events * (MAX_BATCH_TIME - spent) / spent);
	}
	run->round_end = batch->events + Max(events, 1);
}

/* Reads the events of a batch and applies them, but for those of the last round. */
static void
scan_log(BatchRun *run)
{
	EvpgBatch  *batch = run->batch;
	EvpgProjection *projection = batch->projection;
	EvpgLogFilter filter = {
		.after = batch->after,
		.upto = batch->upto,
		.aggregate_types = projection->aggregate_types,
		.event_types = projection->event_types,
		.tags = projection->tags,
		.parts = run->by_id ? batch->parts : 1,
		.part = batch->part,
		.lends_ids = run->by_stream,	/* nothing scans until the round ends */
		.leaves_upcasting = true
	};
	EvpgLogScan *events;
	EvpgEvent	event;
	int64		last = batch->after;
	int			next_parked = 0;

	/* Besides the keys that wait, however many these are. */
	run->limit = MemoryContextMemAllocated(run->context, true) + MAX_BYTES;
	INSTR_TIME_SET_CURRENT(run->started);
	begin_round(run);
	PushActiveSnapshot(GetTransactionSnapshot());
	events = EvpgLogScanAll(&filter);
	while (has_room(run) && EvpgLogScanNext(events, &event))
	{
		if (event.position <= last)
			elog(ERROR, "event at position " INT64_FORMAT " was read after " INT64_FORMAT, event.position, last);
		last = event.position;
		if (batch->first == 0)
			batch->first = event.position;
		if (EvpgProjectionTakesWanted(projection, &event) && !(EVPG_MUTATION("event_skipped") && event.version % 2 == 0) &&
			!EvpgParkedEventIsSkipped(batch->parked, &next_parked, event.position, NULL))
		{
			if (unlikely(event.chain != NULL))
				EvpgApplyUpcast(projection, events, &event);
			if (run->by_stream)
				postpone_by_stream(run, &event);
			else
				apply_event(run, &event, next_parked);
		}
		MemoryContextReset(run->scratch.context);
		if (++batch->events == run->round_end || MemoryContextMemAllocated(run->round_context, false) >= MAX_ROUND_BYTES)
		{
			end_round(run, NULL);
			begin_round(run);
		}
	}
	batch->reached = EvpgLogScanReached(events);
	EvpgLogScanEnd(events);
	PopActiveSnapshot();
}

/* Ends the last round, and writes all rows. */
static void
write_rows(BatchRun *run)
{
	EvpgRowWriter *writer = EvpgProjectionRowWriter();
	keys_iterator iterator;
	KeyEntry   *entry;

	end_round(run, writer);
	keys_start_iterate(run->keys, &iterator);
	while ((entry = keys_iterate(run->keys, &iterator)) != NULL)
		if (entry->row->opened && !entry->row->written)
			write_row(run, entry->row, writer);
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
	BatchRun	run = {
		.batch = batch,
		.context = context,
		.keys = keys_create(context, 256, NULL),
		.streams = key_streams_create(context, 256, NULL)
	};

	EvpgBatchRequireNewSnapshots("applying events of the log");
	batch->events = 0;
	batch->first = 0;
	batch->json = 0;
	batch->reached = batch->after;
	run.round_context = GenerationContextCreate(context, "EvpgBatch events", ALLOCSET_DEFAULT_SIZES);
	EvpgApplyScratchInit(&run.scratch);
	EvpgApplySetCurrent(0, NULL);
	EvpgInsideProjection = true;
	PG_TRY();
	{
		/* loads the module, which knows the types */
		run.by_id = EvpgProjectionIsKeyedById(batch->projection);
		batch->by_key = batch->projection->has_module && !batch->in_order &&
			!(batch->send && batch->projection->broadcast != EVPG_BROADCAST_NONE);
		run.by_stream = batch->by_key && run.by_id && batch->parked == NIL && batch->give_up == NULL &&
			batch->only_key == NULL && batch->except_keys == NIL;
		run.has_rows = EvpgProjectionBuildHasRows(batch->build);
		note_waiting_keys(&run);
		scan_log(&run);
		write_rows(&run);
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

/* A batch, and where it has its memory, for EvpgSubtransactionRun. */
typedef struct BatchAttempt
{
	EvpgBatch  *batch;
	MemoryContext context;
} BatchAttempt;

static void
run_batch(void *arg)
{
	BatchAttempt *attempt = arg;

	MemoryContextSwitchTo(attempt->context);
	EvpgBatchApply(attempt->batch);
}

/* Tries a batch in a subtransaction; nothing but the error is left of its memory. */
static ErrorData *
try_batch(EvpgBatch *batch)
{
	BatchAttempt attempt = {
		.batch = batch,
		.context = AllocSetContextCreate(CurrentMemoryContext, "EvpgBatch attempt", ALLOCSET_SMALL_SIZES)
	};
	ErrorData  *error = EvpgSubtransactionRun(run_batch, &attempt);

	MemoryContextDelete(attempt.context);
	return error;
}

/*
 * EvpgBatchTry
 *		Applies a batch as EvpgBatchApply does, in a subtransaction; returns NULL, or the
 *		error, in CurrentMemoryContext, after which nothing of the batch is left; if an event
 *		has failed, it is the first one that does.
 */
ErrorData *
EvpgBatchTry(EvpgBatch *batch)
{
	ErrorData  *error = try_batch(batch);

	if (error == NULL || !batch->by_key || EvpgErrorIsCancel(error) || EvpgErrorIsTransient(error) ||
		error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		return error;
	FreeErrorData(error);
	batch->in_order = true;
	return try_batch(batch);
}
