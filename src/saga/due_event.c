/*-------------------------------------------------------------------------
 *
 * due_event.c
 *		The rows of evpg.saga_event, events that instances have not reacted to yet: which of
 *		them are due, and what every reaction does to its row, without statements
 *		(row_scan.c, row.c).
 *
 * Rows are written under READ COMMITTED alone; due_item.c has statements for the other
 * isolation levels, and for what is rare.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "base/catalog.h"
#include "base/names.h"
#include "base/row.h"
#include "base/row_scan.h"
#include "consumer/consumer.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "saga/due_event.h"
#include "saga/instance.h"
#include "saga/timer.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* Columns of evpg.saga_event, see sql/evpg--1.0.sql. */
enum
{
	EVENT_SAGA, EVENT_KEY, EVENT_POSITION, EVENT_ATTEMPTS, EVENT_RETRY_AT, EVENT_DEAD_LETTER_ID, EVENT_CANCELS,
	EVENT_NATTS
};

/* So many of the oldest events are looked at, and then of the first ones of instances, before all others. */
#define NEAR 200

/* So many rows of one instance are read before the scan goes to the next instance by a search. */
#define STEPS 4

static const Oid *
table_of_events(void)
{
	return &EvpgCatalogGet()->consumer_tables[EVPG_CONSUMER_TABLE_SAGA_EVENT];
}

/* Makes the conditions on saga, key and, unless it is 0, position; returns how many they are. */
static int
make_event_keys(ScanKey keys, const char *saga, const char *key, int64 position)
{
	EvpgRowKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(saga));
	EvpgRowKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(key));
	if (position == 0)
		return 2;
	EvpgRowKeyInit(&keys[2], 3, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(position));
	return 3;
}

/* ------------------------------------------------------------------ what is due */

/* The first event of an instance, as it was read. */
typedef struct Head
{
	char	   *saga;
	char	   *key;
	int64		position;
	int			attempts;
	TimestampTz retry_at;		/* 0: none */
	bool		is_dead;
	ItemPointerData place;		/* of the row version that was read */
} Head;

/* Whether a saga may react now. */
typedef struct SagaReadiness
{
	const char *saga;
	bool		ready;
} SagaReadiness;

/* A search for what is due; lists are in its context, which is current. */
typedef struct Search
{
	TimestampTz now;
	List	   *but_not_in;		/* sagas, char * */
	bool		from_last;		/* it may begin where the last one has found
								 * something */
	List	   *readiness;		/* of SagaReadiness */
	EvpgRowScan *by_instance;	/* in the order of instances and positions */
	EvpgRowScan *dead_timers;	/* EvpgDeadTimerScanBegin */
	bool		in_saga;		/* it is bounded to the saga of the last head */
	Head	   *last;			/* the last head of the walk; NULL: none yet */
} Search;

static Head *
make_head(const TupleTableSlot *slot)
{
	Head	   *head = palloc(sizeof(Head));

	head->saga = TextDatumGetCString(slot->tts_values[EVENT_SAGA]);
	head->key = TextDatumGetCString(slot->tts_values[EVENT_KEY]);
	head->position = DatumGetInt64(slot->tts_values[EVENT_POSITION]);
	head->attempts = DatumGetInt32(slot->tts_values[EVENT_ATTEMPTS]);
	head->retry_at = slot->tts_isnull[EVENT_RETRY_AT] ? 0 : DatumGetTimestampTz(slot->tts_values[EVENT_RETRY_AT]);
	head->place = slot->tts_tid;
	head->is_dead = !slot->tts_isnull[EVENT_DEAD_LETTER_ID];
	return head;
}

/* Returns whether a text is this string. */
static bool
text_equals(Datum value, const char *string)
{
	text	   *stored = DatumGetTextPP(value);
	size_t		length = VARSIZE_ANY_EXHDR(stored);

	return length == strlen(string) && memcmp(VARDATA_ANY(stored), string, length) == 0;
}

static bool
is_of_instance(const TupleTableSlot *slot, const Head *head)
{
	return text_equals(slot->tts_values[EVENT_KEY], head->key) && text_equals(slot->tts_values[EVENT_SAGA], head->saga);
}

/* Goes on to the instances of the sagas after that of the last head. */
static TupleTableSlot *
search_next_saga(Search *search)
{
	ScanKeyData keys[1];

	EvpgRowKeyInit(&keys[0], 1, BTGreaterStrategyNumber, F_TEXT_GT, CStringGetTextDatum(search->last->saga));
	EvpgRowScanTo(search->by_instance, keys, 1);
	search->in_saga = false;
	return EvpgRowScanNext(search->by_instance);
}

/* Goes on to the instances of the saga of the last head after it, and then to other sagas. */
static TupleTableSlot *
search_next_instance(Search *search)
{
	ScanKeyData keys[2];
	TupleTableSlot *slot;

	EvpgRowKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(search->last->saga));
	EvpgRowKeyInit(&keys[1], 2, BTGreaterStrategyNumber, F_TEXT_GT, CStringGetTextDatum(search->last->key));
	EvpgRowScanTo(search->by_instance, keys, 2);
	search->in_saga = true;
	slot = EvpgRowScanNext(search->by_instance);
	return slot != NULL ? slot : search_next_saga(search);
}

/*
 * Returns the first event of the next instance of the walk over all, in the order of
 * their keys; NULL at its end.  An instance that has few events is passed by reading them.
 */
static Head *
walk_to_next_head(Search *search)
{
	TupleTableSlot *slot;

	if (search->last == NULL)
	{
		EvpgRowScanTo(search->by_instance, NULL, 0);
		slot = EvpgRowScanNext(search->by_instance);
	}
	else
	{
		int			steps = 0;

		while ((slot = EvpgRowScanNext(search->by_instance)) != NULL && is_of_instance(slot, search->last))
			if (++steps == STEPS)
				break;
		if (slot == NULL && search->in_saga)
			slot = search_next_saga(search);
		else if (slot != NULL && steps == STEPS)
			slot = search_next_instance(search);
	}
	CHECK_FOR_INTERRUPTS();
	if (slot == NULL)
		return NULL;
	search->last = make_head(slot);
	return search->last;
}

/* Returns whether a saga runs; one whose code cannot be loaded waits. */
static bool
saga_is_ready(Search *search, const char *saga)
{
	SagaReadiness *known;
	EvpgConsumer consumer;
	ListCell   *cell;

	foreach(cell, search->readiness)
	{
		known = lfirst(cell);
		if (strcmp(known->saga, saga) == 0)
			return known->ready;
	}
	known = palloc(sizeof(SagaReadiness));
	known->saga = pstrdup(saga);
	known->ready = EvpgConsumerRead(saga, &consumer) && consumer.running &&
		(consumer.retry_at == 0 || consumer.error_position != 0) &&
		(search->but_not_in == NIL || !EvpgNamesHave(search->but_not_in, saga));
	search->readiness = lappend(search->readiness, known);
	return known->ready;
}

/*
 * Returns whether the first event that an instance has not reacted to need not wait: for a
 * dead letter, for its next attempt, for the saga to be resumed or to be loaded, or for a
 * worker that may do what is due in this saga.
 */
static bool
head_is_due(Search *search, const Head *head)
{
	return !head->is_dead && head->retry_at <= search->now && saga_is_ready(search, head->saga) &&
		!EvpgDeadTimerScanFind(search->dead_timers, head->saga, head->key);
}

static int
compare_heads(const ListCell *a, const ListCell *b)
{
	const Head *first = lfirst(a);
	const Head *second = lfirst(b);

	return first->position < second->position ? -1 : first->position > second->position;
}

/*
 * While a snapshot is held, an index leads to all rows that were deleted since, which
 * are those of the oldest events.  So the next search begins where the last one has found
 * something that is due, unless that finds nothing, and from the first row of all again
 * after a pause that is ten times as long as it took to pass those rows, at most a second.
 */
#define PAUSE_FACTOR 10
#define MAX_PAUSE 1000			/* ms */

static int64 next_search_after = 0;
static double next_full_search_at = 0;

/* Returns the time in ms since some moment, by a clock that is never set. */
static double
get_steady_time(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return INSTR_TIME_GET_MILLISEC(now);
}

/*
 * Reads the oldest events above a position, NEAR at most, until max_count are found that are
 * due.  Returns these; *heads are all that are the first of their instances.  *all: there
 * are no more.
 */
static List *
list_old_due_heads(Search *search, int64 after, int max_count, List **heads, bool *all)
{
	double		started = get_steady_time();
	ScanKeyData above;
	EvpgRowScan *by_position = EvpgRowScanBegin(table_of_events(), &EvpgCatalogGet()->saga_event_position_index, false);
	List	   *due = NIL;
	TupleTableSlot *slot = NULL;
	int			count = 0;

	EvpgRowKeyInit(&above, 1, BTGreaterStrategyNumber, F_INT8GT, Int64GetDatum(after));
	EvpgRowScanTo(by_position, &above, after > 0 ? 1 : 0);
	while (count < NEAR && list_length(due) < max_count && (slot = EvpgRowScanNext(by_position)) != NULL)
	{
		Head	   *head = make_head(slot);
		ScanKeyData keys[3];
		int			nkeys = make_event_keys(keys, head->saga, head->key, 0);

		if (count++ == 0 && after == 0)
			next_full_search_at = get_steady_time() + Min(PAUSE_FACTOR * (get_steady_time() - started), MAX_PAUSE);
		EvpgRowScanTo(search->by_instance, keys, nkeys);
		slot = EvpgRowScanNext(search->by_instance);
		if (slot == NULL || DatumGetInt64(slot->tts_values[EVENT_POSITION]) != head->position)
			continue;
		*heads = lappend(*heads, head);
		if (!head_is_due(search, head))
			continue;
		if (due == NIL)
			next_search_after = head->position - 1;
		due = lappend(due, head);
	}
	*all = (count < NEAR && list_length(due) < max_count);
	EvpgRowScanEnd(by_position);
	return due;
}

/* Returns the heads of a list that are due, max_count at most; those that are not in it come later. */
static List *
list_due_heads(Search *search, List *heads, int max_count)
{
	List	   *due = NIL;
	ListCell   *cell;

	list_sort(heads, compare_heads);
	foreach(cell, heads)
	{
		if (list_length(due) == max_count)
			break;
		if (head_is_due(search, lfirst(cell)))
			due = lappend(due, lfirst(cell));
	}
	return due;
}

/* Adds the heads of the first instances, NEAR at most, to those that are known; *all: there are no more. */
static List *
add_near_heads(Search *search, List *heads, bool *all)
{
	int			known = list_length(heads);
	Head	   *head = NULL;

	for (int count = 0; count < NEAR && (head = walk_to_next_head(search)) != NULL; count++)
	{
		int			i = 0;

		while (i < known && (((Head *) list_nth(heads, i))->position != head->position ||
							 strcmp(((Head *) list_nth(heads, i))->key, head->key) != 0 ||
							 strcmp(((Head *) list_nth(heads, i))->saga, head->saga) != 0))
			i++;
		if (i == known)
			heads = lappend(heads, head);
	}
	*all = (head == NULL);
	return heads;
}

/* Walks on, however far, until enough heads are found that are due. */
static List *
find_any_due_heads(Search *search, int max_count)
{
	List	   *due = NIL;
	Head	   *waiting = NULL;
	Head	   *head;

	while (list_length(due) < max_count && (head = walk_to_next_head(search)) != NULL)
	{
		/* Very many may wait. */
		if (waiting != NULL)
		{
			pfree(waiting->saga);
			pfree(waiting->key);
			pfree(waiting);
		}
		waiting = head;
		if (!head_is_due(search, head))
			continue;
		due = lappend(due, head);
		waiting = NULL;
	}
	return due;
}

/*
 * Finds the first events that are due.  Neither order of the table finds them quickly in
 * all cases: many events of few instances need the walk from instance to instance, many
 * instances the oldest events.  So a part of each is looked at; only if all of these must
 * wait the walk goes on to the end.
 */
static List *
find_due_heads(Search *search, int max_count)
{
	bool		all;
	List	   *heads = NIL;
	List	   *due = NIL;

	if (search->from_last && next_search_after > 0 && get_steady_time() < next_full_search_at)
		due = list_old_due_heads(search, next_search_after, max_count, &heads, &all);
	if (due != NIL)
		return due;
	heads = NIL;
	due = list_old_due_heads(search, 0, max_count, &heads, &all);
	if (all || list_length(due) == max_count)
		return due;
	heads = add_near_heads(search, heads, &all);
	due = list_due_heads(search, heads, max_count);
	return due != NIL || all ? due : find_any_due_heads(search, max_count);
}

/*
 * EvpgDueEventList
 *		Lists the first event of each instance, if it is due at a time: a list of EvpgDueItem
 *		in CurrentMemoryContext, at most max_count, in the order of their positions unless very
 *		many instances have some.  Leaves out some sagas (char *).  With from_last it may leave
 *		out, for a second at most, what is older than what was due at the last call, if
 *		anything else is due: for callers that call it until nothing is.  Nothing is locked:
 *		another session may do any of it at any time.
 */
List *
EvpgDueEventList(int max_count, TimestampTz now, List *but_not_in, bool from_last)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "EvpgDueEvent", ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(context);
	Search		search = {.now = now, .but_not_in = but_not_in, .from_last = from_last};
	List	   *due = NIL;
	ListCell   *cell;

	search.by_instance = EvpgRowScanBegin(table_of_events(), &EvpgCatalogGet()->saga_event_key_index, false);
	search.dead_timers = EvpgDeadTimerScanBegin();
	foreach(cell, find_due_heads(&search, max_count))
	{
		const Head *head = lfirst(cell);
		EvpgDueItem *item;

		MemoryContextSwitchTo(caller);
		item = palloc0(sizeof(EvpgDueItem));
		item->saga = pstrdup(head->saga);
		item->key = pstrdup(head->key);
		item->position = head->position;
		item->place = head->place;
		item->attempts = head->attempts;
		item->retry_at = head->retry_at;
		item->pending = item->attempts > 0 && item->retry_at == 0;
		due = lappend(due, item);
		MemoryContextSwitchTo(context);
	}
	EvpgRowScanEnd(search.dead_timers);
	EvpgRowScanEnd(search.by_instance);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	return due;
}

/* ------------------------------------------------------------------ attempts */

/* Returns whether a row has this number of attempts and time of the next one, 0 for none, and no dead letter. */
static bool
row_is_as_listed(HeapTuple row, int attempts, TimestampTz retry_at)
{
	Datum		values[EVENT_NATTS];
	bool		nulls[EVENT_NATTS];

	heap_deform_tuple(row, EvpgCatalogGet()->saga_event_row, values, nulls);
	return nulls[EVENT_DEAD_LETTER_ID] && DatumGetInt32(values[EVENT_ATTEMPTS]) == attempts &&
		(nulls[EVENT_RETRY_AT] ? retry_at == 0 : DatumGetTimestampTz(values[EVENT_RETRY_AT]) == retry_at);
}

/*
 * EvpgDueEventCount
 *		Writes another number of attempts, and when the next one is due, 0 for at once, into
 *		the row of an event; false if the row does not have the attempts of the item and
 *		retry_at_before any more, or another session has locked it.  Waits for nothing.
 */
bool
EvpgDueEventCount(const EvpgDueItem *item, TimestampTz retry_at_before, int attempts, TimestampTz retry_at)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	ScanKeyData keys[3];
	int			nkeys = make_event_keys(keys, item->saga, item->key, item->position);
	HeapTuple	row = EvpgRowFindAt(table_of_events(), &catalog->saga_event_key_index, &item->place, keys, nkeys, true);
	Datum		values[EVENT_NATTS] = {
		[EVENT_ATTEMPTS] = Int32GetDatum(attempts),[EVENT_RETRY_AT] = TimestampTzGetDatum(retry_at)
	};
	bool		nulls[EVENT_NATTS] = {[EVENT_RETRY_AT] = retry_at == 0};
	bool		replaced[EVENT_NATTS] = {[EVENT_ATTEMPTS] = true,[EVENT_RETRY_AT] = true};
	EvpgRowWriter *writer;
	bool		written;

	if (row == NULL || !row_is_as_listed(row, item->attempts, retry_at_before))
		return false;
	writer = EvpgRowWriterBegin(table_of_events(), &catalog->saga_event_row);
	written = EvpgRowTryReplace(writer, row, values, nulls, replaced, false);
	EvpgRowWriterEnd(writer);
	return written;
}

/* Returns whether an instance waits for a dead letter of one of its timers now. */
static bool
any_timer_is_dead_now(const char *saga, const char *key)
{
	EvpgRowScan *dead_timers = EvpgDeadTimerScanBegin();
	bool		any = EvpgDeadTimerScanFind(dead_timers, saga, key);

	EvpgRowScanEnd(dead_timers);
	return any;
}

/*
 * EvpgDueEventTake
 *		Deletes the row of an event that is claimed, see EvpgDueItemTake.
 */
bool
EvpgDueEventTake(const EvpgDueItem *item)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	ScanKeyData keys[3];
	int			nkeys = make_event_keys(keys, item->saga, item->key, 0);

	/* Another session that has changed the row makes it read again. */
	for (;;)
	{
		/* The first one of the instance. */
		HeapTuple	row = EvpgRowFindFirst(table_of_events(), &catalog->saga_event_key_index, keys, nkeys, true);
		EvpgRowWriter *writer;
		bool		deleted;
		bool		isnull;

		if (row == NULL ||
			DatumGetInt64(heap_getattr(row, EVENT_POSITION + 1, catalog->saga_event_row, &isnull)) != item->position ||
			!row_is_as_listed(row, item->attempts, 0) || any_timer_is_dead_now(item->saga, item->key))
			return false;
		writer = EvpgRowWriterBegin(table_of_events(), &catalog->saga_event_row);
		deleted = EvpgRowTryDelete(writer, row);
		EvpgRowWriterEnd(writer);
		if (deleted)
			return true;
		CHECK_FOR_INTERRUPTS();
	}
}

/* ------------------------------------------------------------------ new events */

/* Returns whether an instance is completed; instances is a scan by their keys. */
static bool
instance_is_completed(EvpgRowScan *instances, const char *saga, const char *key)
{
	ScanKeyData keys[3];
	TupleTableSlot *slot;

	EvpgRowScanTo(instances, keys, make_event_keys(keys, saga, key, 0));
	slot = EvpgRowScanNext(instances);
	return slot != NULL && EvpgInstanceRowIsCompleted(slot);
}

/*
 * EvpgDueEventInsertAll
 *		Gives events to instances that are not completed, each once; keys (char *) and
 *		positions (int64 *) are of the same length, and name no event twice.  The caller
 *		holds the lock of the consumer, so that no other session inserts these.
 */
void
EvpgDueEventInsertAll(const char *saga, List *keys, List *positions)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	EvpgRowScan *instances = EvpgRowScanBegin(&catalog->saga_instance, &catalog->saga_instance_key_index, true);
	EvpgRowScan *events = EvpgRowScanBegin(table_of_events(), &catalog->saga_event_key_index, true);
	EvpgRowWriter *writer = EvpgRowWriterBegin(table_of_events(), &catalog->saga_event_row);
	ListCell   *key;
	ListCell   *position;

	forboth(key, keys, position, positions)
	{
		Datum		values[EVENT_NATTS] = {
			[EVENT_SAGA] = CStringGetTextDatum(saga),
			[EVENT_KEY] = CStringGetTextDatum(lfirst(key)),
			[EVENT_POSITION] = Int64GetDatum(*(int64 *) lfirst(position)),
			[EVENT_ATTEMPTS] = Int32GetDatum(0)
		};
		bool		nulls[EVENT_NATTS] = {[EVENT_RETRY_AT] = true,[EVENT_DEAD_LETTER_ID] = true,[EVENT_CANCELS] = true};
		ScanKeyData conditions[3];

		EvpgRowScanTo(events, conditions, make_event_keys(conditions, saga, lfirst(key), *(int64 *) lfirst(position)));
		if (EvpgRowScanNext(events) == NULL && !instance_is_completed(instances, saga, lfirst(key)))
			heap_freetuple(EvpgRowInsert(writer, values, nulls));
	}
	EvpgRowWriterEnd(writer);
	EvpgRowScanEnd(events);
	EvpgRowScanEnd(instances);
}
