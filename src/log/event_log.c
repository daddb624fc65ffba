/*-------------------------------------------------------------------------
 *
 * event_log.c
 *		The event log evpg.event_log: scanning the events of a stream, or those of
 *		all streams by position, and reserving event ids.
 *
 * A scan accesses the table directly instead of over SPI, so it always uses the
 * unique index on (stream_id, version), whatever the statistics are.  append.c
 * inserts.
 *
 * Memory: an event of a scan lives until the next one is asked for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/locks.h"
#include "base/names.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "log/condition.h"
#include "log/event_log.h"
#include "log/fence.h"
#include "log/log_columns.h"
#include "log/log_hits.h"
#include "log/log_page.h"
#include "log/log_row.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* A scan of all streams ends after this many unwanted events in a row: a transaction should not last. */
#define MAX_UNWANTED 200000

/* Events that a scan passes over in about the time in which a statement is planned. */
#define SHORT_SEARCH 500

/* The same without a plan, for what has few events; conditions mostly ask for such. */
#define SHORTER_SEARCH 20

/* Stretches in which the indexes are asked for events, in positions: the first one, and the longest. */
#define FIRST_STRETCH (10 * SHORT_SEARCH)
#define MAX_STRETCH INT64CONST(1000000000000000)

/* Scan keys of a source at most: the positions between two, and a type or the positions of an array. */
#define SOURCE_KEYS 3

/* An index scan, which yields events in the order that is wanted. */
typedef struct IndexSource
{
	IndexScanDesc scan;
	TupleTableSlot *slot;
	EvpgLogPage page;			/* of the slot */
	bool		fetched;		/* the slot has an event that was not returned
								 * yet */
	bool		ended;
	int64		position;		/* of that event */
	text	   *type;			/* NULL, or: all its events are of this type */
} IndexSource;

/* A text that many events have in a row, so that it need not be copied for each. */
typedef struct RepeatedText
{
	int			length;
	char		text[NAMEDATALEN];
} RepeatedText;

/* So much is needed for a value that is stored with a short header, with a long one. */
#define SHORT_VALUE_WORDS ((VARATT_SHORT_MAX + VARHDRSZ) / sizeof(int64) + 1)

struct EvpgLogScan
{
	const EvpgStream *stream;	/* NULL: all streams */
	const EvpgLogFilter *filter;	/* if all streams: of what is stored */
	const EvpgLogFilter *asked; /* the caller's, if types are among it that
								 * upcasters lead to; else NULL */
	EvpgUpcasters *upcasters;	/* NULL: none */
	bool		sources_behind; /* they are to go on after reached */
	int			item;			/* of the condition, that the event matches */
	int64		reached;
	int			patience;		/* so many unwanted events, and the indexes
								 * are asked */
	bool		asked_for_few;	/* for all that is wanted, which is not many
								 * events */
	int			unwanted;		/* events that were passed over since one was
								 * wanted */
	bool		by_hits;		/* hits are what is visited next */
	EvpgLogHits hits;
	TupleTableSlot *hit_slot;	/* NULL until there are hits */
	int64		stretch_begin;	/* where they were looked for */
	int64		stretch;		/* how far the next ones are */
	Snapshot	snapshot;
	LOCKMODE	mode;			/* in which log and index are locked */
	Relation	log;
	Relation	index;
	int			nsources;
	IndexSource *sources;
	ScanDirection direction;
	MemoryContext event_context;	/* reset for each event */
	bool		tags_known;		/* tags are those of the event that is looked
								 * at */
	List	   *tags;			/* char *; in event_context */
	RepeatedText aggregate_type;	/* of the last event */
	RepeatedText type;
	RepeatedText command_id;
	RepeatedText correlation_id;
	RepeatedText causation_id;
	RepeatedText actor;
	RepeatedText session_role;
	/* copies of short values, as their users need them aligned */
	int64		short_data[SHORT_VALUE_WORDS];
	int64		short_metadata[SHORT_VALUE_WORDS];
	int64		short_tags[SHORT_VALUE_WORDS];
};

static uint64
hash_event_id(const pg_uuid_t *event_id)
{
	return EvpgHashPair("event_id", EvpgUuidText(event_id));
}

/*
 * EvpgLogHasEventId
 *		Returns whether there is an event of this id in any stream, also one that was
 *		committed after the transaction's snapshot; waits for a transaction that has
 *		appended one.
 */
bool
EvpgLogHasEventId(const pg_uuid_t *event_id)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	ScanKeyData key;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(event_id));
	return EvpgKeyExists(&catalog->event_log, &catalog->event_log_event_id_index, &key, 1);
}

/*
 * EvpgLogReserveEventId
 *		Makes this session the only one that may inject an event of this id, in
 *		any stream, up to EvpgLogReleaseEventId (see EvpgReserveKey).  Returns
 *		false if there is such an event, also one that was committed after the
 *		transaction's snapshot.
 */
bool
EvpgLogReserveEventId(const pg_uuid_t *event_id)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	ScanKeyData key;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(event_id));
	return EvpgReserveKey(hash_event_id(event_id), &catalog->event_log, &catalog->event_log_event_id_index, &key, 1);
}

/* Gives up the reservation of an event id; within the command that has taken it. */
void
EvpgLogReleaseEventId(const pg_uuid_t *event_id)
{
	EvpgReleaseKey(EVPG_LOCK_KEY, hash_event_id(event_id));
}

/*
 * Opens a scan. index points into the catalog, since it is known only under the lock
 * of the table.  A command, which has locked the log for writing, needs no other lock.
 */
static EvpgLogScan *
open_scan(const Oid *index, int nsources)
{
	EvpgLogScan *scan = palloc0(sizeof(EvpgLogScan));
	LOCKTAG		tag;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, EvpgCatalogGet()->event_log);
	scan->mode = EvpgLockIsHeld(&tag, RowExclusiveLock) ? RowExclusiveLock : AccessShareLock;
	scan->log = EvpgCatalogOpen(&EvpgCatalogGet()->event_log, scan->mode);
	scan->index = index_open(*index, scan->mode);
	scan->nsources = nsources;
	scan->sources = palloc0(sizeof(IndexSource) * nsources);
	scan->direction = ForwardScanDirection;
	scan->snapshot = GetActiveSnapshot();
	scan->event_context = AllocSetContextCreate(CurrentMemoryContext, "EvpgEvent", ALLOCSET_DEFAULT_SIZES);
	return scan;
}

static void
open_source(EvpgLogScan *scan, IndexSource *source, int nkeys)
{
	source->slot = table_slot_create(scan->log, NULL);
	source->scan = index_beginscan(scan->log, scan->index, scan->snapshot, NULL, nkeys, 0);
}

/*
 * EvpgLogScanBegin
 *		Begins to scan the events of a stream whose version is at least
 *		from_version, in order of version or, backwards, from the last, under
 *		the active snapshot.  They are upcast.  The stream must outlive the scan.
 *		The caller is inside EvpgEnter, and ends it with EvpgLogScanEnd.
 */
EvpgLogScan *
EvpgLogScanBegin(const EvpgStream *stream, int64 from_version, bool backwards, EvpgUpcasters *upcasters)
{
	EvpgLogScan *scan = open_scan(&EvpgCatalogGet()->event_log_stream_index, 1);
	ScanKeyData keys[2];

	scan->stream = stream;
	scan->upcasters = upcasters;
	scan->direction = backwards ? BackwardScanDirection : ForwardScanDirection;
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(stream->stream_id));
	ScanKeyInit(&keys[1], 2, BTGreaterEqualStrategyNumber, F_INT8GE, Int64GetDatum(from_version));
	open_source(scan, &scan->sources[0], 2);
	index_rescan(scan->sources[0].scan, keys, 2, NULL, 0);
	return scan;
}

/*
 * EvpgLogReadNewest
 *		Fills version, last position and time of *stream, given its stream_id, by
 *		its newest event under a snapshot that is active, or dirty; false, and
 *		nothing is filled, if there is none whose version is at least from_version.
 *		With a dirty snapshot EvpgRowMaker then tells the transaction that has
 *		appended or removed the event, and *visible is whether the transaction's own
 *		snapshot would do, for isolation levels that keep it.  The log and its index
 *		are locked in mode, to the end of the transaction: for a command in that in
 *		which it is going to need them.
 */
bool
EvpgLogReadNewest(EvpgStream *stream, int64 from_version, Snapshot snapshot, LOCKMODE mode, bool *visible)
{
	Relation	log = EvpgCatalogOpen(&EvpgCatalogGet()->event_log, mode);
	Relation	index = index_open(EvpgCatalogGet()->event_log_stream_index, mode);
	TupleTableSlot *slot = table_slot_create(log, NULL);
	IndexScanDesc scan = index_beginscan(log, index, snapshot, NULL, 2, 0);
	ScanKeyData keys[2];
	bool		found;

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(stream->stream_id));
	ScanKeyInit(&keys[1], 2, BTGreaterEqualStrategyNumber, F_INT8GE, Int64GetDatum(from_version));
	index_rescan(scan, keys, 2, NULL, 0);
	found = index_getnext_slot(scan, BackwardScanDirection, slot);
	if (found)
	{
		slot_getsomeattrs(slot, LOG_RECORDED_AT + 1);
		stream->version = DatumGetInt64(slot->tts_values[LOG_VERSION]);
		stream->last_position = DatumGetInt64(slot->tts_values[LOG_POSITION]);
		stream->last_recorded_at = DatumGetTimestampTz(slot->tts_values[LOG_RECORDED_AT]);
		if (visible != NULL && IsolationUsesXactSnapshot())
			*visible = table_tuple_satisfies_snapshot(log, slot, GetTransactionSnapshot());
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);

	/*
	 * A reader that keeps it would need a stronger lock on the table later,
	 * see EvpgCatalogLockForAppend.
	 */
	index_close(index, mode == AccessShareLock ? mode : NoLock);
	table_close(log, NoLock);
	return found;
}

/* Returns names once each: two sources of one type would return its events twice. */
static List *
remove_duplicates(List *names)
{
	List	   *result = NIL;
	ListCell   *cell;

	foreach(cell, names)
		if (result == NIL || !EvpgNamesHave(result, lfirst(cell)))
		result = lappend(result, lfirst(cell));
	return result;
}

/* Lets all sources begin after a position, up to the end of the filter. */
static void
seek_sources(EvpgLogScan *scan, int64 after)
{
	for (int i = 0; i < scan->nsources; i++)
	{
		IndexSource *source = &scan->sources[i];
		ScanKeyData keys[SOURCE_KEYS];
		int			nkeys = 0;
		AttrNumber	column = source->type == NULL ? 1 : 2;

		if (source->type != NULL)
			ScanKeyEntryInitialize(&keys[nkeys++], 0, 1, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID, F_TEXTEQ,
								   PointerGetDatum(source->type));
		ScanKeyInit(&keys[nkeys++], column, BTGreaterStrategyNumber, F_INT8GT, Int64GetDatum(after));
		ScanKeyInit(&keys[nkeys++], column, BTLessEqualStrategyNumber, F_INT8LE, Int64GetDatum(scan->filter->upto));
		/* The index returns the rows of an array in its own order, each once. */
		if (scan->filter->positions != NULL)
			ScanKeyEntryInitialize(&keys[nkeys++], SK_SEARCHARRAY, column, BTEqualStrategyNumber, InvalidOid, InvalidOid,
								   F_INT8EQ, PointerGetDatum(scan->filter->positions));
		index_rescan(source->scan, keys, nkeys, NULL, 0);
		source->page.begun = source->page.checked = false;
		source->fetched = source->ended = false;
	}
	scan->sources_behind = false;
}

/* Returns the position after which the first event can be that a filter wants. */
static int64
get_begin(const EvpgLogFilter *filter)
{
	const EvpgCondition *condition = filter->condition;
	int64		after = condition == NULL ? filter->after : PG_INT64_MAX;

	for (int i = 0; condition != NULL && i < condition->count; i++)
		after = Min(after, condition->items[i].after);
	return Max(Max(after, filter->after), 0);
}

/* Returns a condition about the types that events have in the log, instead of those that they are read as. */
static EvpgCondition *
widen_condition(const EvpgUpcasters *upcasters, const EvpgCondition *condition)
{
	Size		size = offsetof(EvpgCondition, items) + sizeof(EvpgConditionItem) * condition->count;
	EvpgCondition *wide = memcpy(palloc(size), condition, size);

	for (int i = 0; i < wide->count; i++)
		wide->items[i].event_types = EvpgUpcastStoredTypes(upcasters, wide->items[i].event_types);
	return wide;
}

/*
 * Returns a filter that lets through all events whose types may be wanted, by the names
 * that they have in the log; the filter itself if that makes no difference.
 */
static const EvpgLogFilter *
widen_filter(const EvpgUpcasters *upcasters, const EvpgLogFilter *filter)
{
	EvpgLogFilter *wide;

	if (likely(upcasters == NULL) || (filter->event_types == NIL && filter->condition == NULL))
		return filter;
	wide = palloc(sizeof(EvpgLogFilter));
	*wide = *filter;
	wide->event_types = EvpgUpcastStoredTypes(upcasters, filter->event_types);
	if (filter->condition != NULL)
		wide->condition = widen_condition(upcasters, filter->condition);
	return wide;
}

/*
 * EvpgLogScanAll
 *		Begins to scan the events of all streams in order of position, under the
 *		active snapshot, which must stay that of the caller to the end of the scan.  They
 *		are upcast, unless the filter leaves that to the caller; the types of the filter
 *		are those that events have when they are read.  It
 *		goes along the positions, or with the optional index on types along the events
 *		of the wanted types, and after many that are not wanted asks the optional
 *		indexes on tags and types for the next ones (log_hits.c).  It may end early,
 *		after many events that are not wanted: go on from EvpgLogScanReached.  The
 *		filter must outlive the scan.  The caller is inside EvpgEnter, and ends the scan
 *		with EvpgLogScanEnd.
 */
EvpgLogScan *
EvpgLogScanAll(const EvpgLogFilter *asked)
{
	const EvpgCatalog *catalog;
	EvpgUpcasters *upcasters = EvpgUpcastersGet();
	const EvpgLogFilter *filter = widen_filter(upcasters, asked);
	List	   *wanted = remove_duplicates(filter->event_types);
	int			ntypes = list_length(wanted);
	EvpgLogScan *scan;
	ListCell   *cell;

	/* So that no session drops the index in between. */
	LockRelationOid(EvpgCatalogGet()->event_log, AccessShareLock);
	catalog = EvpgCatalogGet();
	if (OidIsValid(catalog->event_log_type_index) && ntypes > 0 && ntypes <= EVPG_MAX_TYPE_SCANS &&
		filter->positions == NULL)
	{
		scan = open_scan(&catalog->event_log_type_index, ntypes);
		foreach(cell, wanted)
			scan->sources[foreach_current_index(cell)].type = cstring_to_text(lfirst(cell));
	}
	else
		scan = open_scan(&catalog->event_log_position_index, 1);
	scan->filter = filter;
	scan->asked = filter == asked ? NULL : asked;
	scan->upcasters = upcasters;
	scan->reached = get_begin(filter);
	scan->stretch = FIRST_STRETCH;
	scan->patience = filter->condition == NULL ? SHORT_SEARCH : SHORTER_SEARCH;
	if (filter->condition != NULL && EvpgFenceLastDrawn() - scan->reached > SHORTER_SEARCH)
		scan->unwanted = SHORTER_SEARCH;
	scan->hits.context = CurrentMemoryContext;
	for (int i = 0; i < scan->nsources; i++)
		open_source(scan, &scan->sources[i], scan->sources[i].type == NULL && filter->positions == NULL ? 2 : SOURCE_KEYS);
	seek_sources(scan, scan->reached);
	return scan;
}

/* Returns whether an event at a position has been committed, under the latest snapshot. */
bool
EvpgLogHasEvent(int64 position)
{
	EvpgLogFilter filter = {.after = position - 1, .upto = position, .leaves_upcasting = true};
	EvpgLogScan *scan;
	EvpgEvent	event;
	bool		found;

	PushActiveSnapshot(GetLatestSnapshot());
	scan = EvpgLogScanAll(&filter);
	found = EvpgLogScanNext(scan, &event);
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
	return found;
}

/* Returns the position up to which every wanted event has been returned; never one below filter->after. */
int64
EvpgLogScanReached(EvpgLogScan *scan)
{
	return scan->reached;
}

/* Returns in which of so many parts a key is; the same on every server and in every version. */
int
EvpgLogPartOfKey(const char *key, int parts)
{
	return EvpgStreamHashId(key) % parts;
}

/* Returns the number of the item of its condition, from 0, that the last event of a scan matches: the first such item. */
int
EvpgLogScanItem(const EvpgLogScan *scan)
{
	return scan->item;
}

/* As EvpgNamesHave, of a text. */
static bool
names_have_text(List *names, const text * name)
{
	ListCell   *cell;

	if (names == NIL)
		return true;
	foreach(cell, names)
	{
		const char *each = lfirst(cell);
		size_t		length = VARSIZE_ANY_EXHDR(name);

		if (strncmp(each, VARDATA_ANY(name), length) == 0 && each[length] == '\0')
			return true;
	}
	return false;
}

/* Returns whether the type of an event is wanted. */
static bool
type_is_wanted(EvpgLogScan *scan, TupleTableSlot *slot)
{
	if (scan->filter->event_types == NIL || scan->sources[0].type != NULL)
		return true;
	return names_have_text(scan->filter->event_types, DatumGetTextPP(slot->tts_values[LOG_TYPE]));
}

/* Returns whether the aggregate id of a stream, which was found by its stream_id, is wanted. */
static bool
id_is_wanted(const EvpgLogFilter *filter, const EvpgStream *stream)
{
	const char *id = stream->aggregate_id;
	int			part;

	if (filter->id_prefix != NULL)
	{
		size_t		length = strlen(filter->id_prefix);

		if (strncmp(id, filter->id_prefix, length) != 0 || (id[length] != '\0' && id[length] != ':'))
			return false;
	}
	if (!EvpgNamesHave(filter->aggregate_ids, id))
		return false;
	if (filter->wanted_parts == NULL && filter->parts <= 1)
		return true;
	part = stream->id_hash % filter->parts;
	return filter->wanted_parts != NULL ? filter->wanted_parts[part] : part == filter->part;
}

/* Returns whether the stream of an event is wanted; fills *stream. */
static bool
stream_is_wanted(EvpgLogScan *scan, TupleTableSlot *slot, EvpgStream *stream)
{
	const EvpgLogFilter *filter = scan->filter;
	ListCell   *cell;
	bool		wanted = (filter->aggregate_types == NIL);

	EvpgStreamGetById(DatumGetInt64(slot->tts_values[LOG_STREAM_ID]), stream);
	foreach(cell, filter->aggregate_types)
		wanted |= strcmp(lfirst(cell), stream->aggregate_type) == 0;
	return wanted && id_is_wanted(filter, stream);
}

/* Returns the tags of an event, NIL for none; those that are NULL, which a superuser has written, are none. */
static List *
get_tags(EvpgLogScan *scan, TupleTableSlot *slot)
{
	MemoryContext old;
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	if (scan->tags_known)
		return scan->tags;
	scan->tags = NIL;
	scan->tags_known = true;
	if (slot->tts_isnull[LOG_TAGS])
		return NIL;
	MemoryContextReset(scan->event_context);
	old = MemoryContextSwitchTo(scan->event_context);
	deconstruct_array(DatumGetArrayTypeP(slot->tts_values[LOG_TAGS]), TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls,
					  &count);
	for (int i = 0; i < count; i++)
		if (!nulls[i])
			scan->tags = lappend(scan->tags, TextDatumGetCString(elements[i]));
	MemoryContextSwitchTo(old);
	return scan->tags;
}

/* Returns whether an event has one of the wanted tags. */
static bool
tags_are_wanted(EvpgLogScan *scan, TupleTableSlot *slot)
{
	ListCell   *cell;

	if (scan->filter->tags == NIL)
		return true;
	foreach(cell, get_tags(scan, slot))
		if (EvpgNamesHave(scan->filter->tags, lfirst(cell)))
		return true;
	return false;
}

/* Returns whether an event has all tags of an item of the condition. */
static bool
has_item_tags(EvpgLogScan *scan, TupleTableSlot *slot, const EvpgConditionItem *item)
{
	List	   *tags = item->tags == NIL ? NIL : get_tags(scan, slot);
	ListCell   *cell;

	foreach(cell, item->tags)
		if (tags == NIL || !EvpgNamesHave(tags, lfirst(cell)))
		return false;
	return true;
}

/*
 * Returns whether an event matches an item of the condition, and notes the first that it
 * matches.  Without a stream, whether one in some stream might.
 */
static bool
item_is_wanted(EvpgLogScan *scan, TupleTableSlot *slot, const EvpgStream *stream)
{
	const EvpgCondition *condition = scan->filter->condition;
	text	   *type;

	if (condition == NULL)
		return true;
	type = DatumGetTextPP(slot->tts_values[LOG_TYPE]);
	for (scan->item = 0; scan->item < condition->count; scan->item++)
	{
		const EvpgConditionItem *item = &condition->items[scan->item];

		if (DatumGetInt64(slot->tts_values[LOG_POSITION]) > item->after && names_have_text(item->event_types, type) &&
			has_item_tags(scan, slot, item) &&
			(stream == NULL || EvpgNamesHave(item->aggregate_types, stream->aggregate_type)))
			return true;
	}
	return false;
}

/*
 * Returns whether an event is wanted by the type that it is read as, and notes the first
 * item of the condition that it matches then.
 */
static bool
present_type_is_wanted(EvpgLogScan *scan, TupleTableSlot *slot, const EvpgStream *stream)
{
	const EvpgLogFilter *asked = scan->asked;
	const EvpgCondition *condition = asked->condition;
	char		stored_type[EVPG_MAX_NAME + 1];
	const char *type = stored_type;
	const EvpgUpcastChain *chain;

	text_to_cstring_buffer(DatumGetTextPP(slot->tts_values[LOG_TYPE]), stored_type, sizeof(stored_type));
	chain = EvpgUpcastFind(scan->upcasters, stream->aggregate_type, stored_type,
						   DatumGetInt32(slot->tts_values[LOG_SCHEMA_VERSION]));
	if (chain != NULL)
		type = chain->type;
	if (!EvpgNamesHave(asked->event_types, type))
		return false;
	if (condition == NULL)
		return true;
	for (scan->item = 0; scan->item < condition->count; scan->item++)
	{
		const EvpgConditionItem *item = &condition->items[scan->item];

		if (DatumGetInt64(slot->tts_values[LOG_POSITION]) > item->after && EvpgNamesHave(item->event_types, type) &&
			EvpgNamesHave(item->aggregate_types, stream->aggregate_type) && has_item_tags(scan, slot, item))
			return true;
	}
	return false;
}

/* Returns whether an event is wanted; fills *stream if it is.  The stream is looked up last, since that may read a row. */
static bool
event_is_wanted(EvpgLogScan *scan, TupleTableSlot *slot, EvpgStream *stream)
{
	scan->tags_known = false;
	return type_is_wanted(scan, slot) && tags_are_wanted(scan, slot) && item_is_wanted(scan, slot, NULL) &&
		stream_is_wanted(scan, slot, stream) && item_is_wanted(scan, slot, stream) &&
		(likely(scan->asked == NULL) || present_type_is_wanted(scan, slot, stream));
}

/* Fetches the next event of all sources, in order of position, and reads its columns; NULL at the end. */
static TupleTableSlot *
fetch_next_position(EvpgLogScan *scan)
{
	IndexSource *first = NULL;

	if (scan->sources_behind)
		seek_sources(scan, scan->reached);
	for (int i = 0; i < scan->nsources; i++)
	{
		IndexSource *source = &scan->sources[i];

		if (!source->fetched && !source->ended)
		{
			source->ended = !EvpgLogPageFetch(&source->page, source->scan, ForwardScanDirection, source->slot);
			if (source->ended)
				continue;
			EvpgLogRowRead(source->slot);
			source->position = DatumGetInt64(source->slot->tts_values[LOG_POSITION]);
			source->fetched = true;
		}
		if (!source->ended && (first == NULL || source->position < first->position))
			first = source;
	}
	if (first == NULL)
		return NULL;
	first->fetched = false;
	scan->reached = first->position;
	return first->slot;
}

/* Asks the indexes for the events up to a position; few: false if some tags have many. */
static bool
ask_indexes(EvpgLogScan *scan, int64 upto, bool few)
{
	MemoryContext old;

	scan->stretch_begin = scan->reached;
	MemoryContextReset(scan->event_context);
	old = MemoryContextSwitchTo(scan->event_context);
	scan->by_hits = EvpgLogHitsFind(&scan->hits, scan->filter, scan->log, scan->snapshot, scan->reached, upto, few);
	MemoryContextSwitchTo(old);
	return scan->by_hits;
}

/*
 * Asks the indexes for events; false if they cannot tell.  First for all of them, which
 * succeeds if they are few.  Then for those of the next stretch, which is ten times as
 * long as what the last one covered, so what the index on positions has to read for it,
 * if that is less than the others have, is not much more than what is passed over.
 */
static bool
find_hits(EvpgLogScan *scan)
{
	int64		upto = EvpgLogHitsServed(scan->filter, scan->reached);
	bool		early = scan->patience < SHORT_SEARCH;
	bool		asked_for_few = scan->asked_for_few;

	scan->unwanted = 0;
	scan->patience = SHORT_SEARCH;
	if (upto <= scan->reached)
		return false;
	scan->asked_for_few = true;
	if (asked_for_few || !ask_indexes(scan, upto, true))
	{
		if (early)
			return false;
		if (upto - scan->reached > scan->stretch && EvpgFenceLastDrawn() - scan->reached > scan->stretch)
			upto = scan->reached + scan->stretch;
		(void) ask_indexes(scan, upto, false);
	}
	if (scan->hit_slot == NULL)
		scan->hit_slot = table_slot_create(scan->log, NULL);
	scan->sources_behind = true;
	return true;
}

/* Ends a stretch whose hits were all visited; the indexes are asked for the next one at once if there were few. */
static void
end_stretch(EvpgLogScan *scan)
{
	int64		covered = scan->hits.upto - scan->stretch_begin;

	scan->by_hits = false;
	scan->reached = scan->hits.upto;
	scan->stretch = Max(FIRST_STRETCH, Min(covered, MAX_STRETCH / 10) * 10);
	scan->unwanted = covered / SHORT_SEARCH > scan->hits.count ? SHORT_SEARCH : 0;
}

/* Fetches the next event that the indexes have found, and reads its columns. */
static TupleTableSlot *
fetch_hit(EvpgLogScan *scan)
{
	EvpgLogHit *hit = &scan->hits.hits[scan->hits.next++];

	if (!table_tuple_fetch_row_version(scan->log, &hit->tid, scan->snapshot, scan->hit_slot))
		elog(ERROR, "event at position " INT64_FORMAT " is not where an index has found it", hit->position);
	EvpgLogRowRead(scan->hit_slot);
	scan->reached = hit->position;
	return scan->hit_slot;
}

/* Fetches the next event that may be wanted; NULL at the end. */
static TupleTableSlot *
fetch_candidate(EvpgLogScan *scan)
{
	while (scan->by_hits || scan->unwanted >= scan->patience)
	{
		if (!scan->by_hits && !find_hits(scan))
			break;
		if (scan->hits.next < scan->hits.count)
			return fetch_hit(scan);
		end_stretch(scan);
		if (scan->reached >= scan->filter->upto)
			return NULL;
	}
	return fetch_next_position(scan);
}

/* Fetches the next event of all streams that is wanted; NULL at the end. */
static TupleTableSlot *
fetch_wanted_event(EvpgLogScan *scan, EvpgStream *stream)
{
	for (int looks = 0; looks < MAX_UNWANTED; looks++)
	{
		TupleTableSlot *slot = fetch_candidate(scan);

		CHECK_FOR_INTERRUPTS();
		if (slot == NULL)
		{
			/* Not below where it began: a stable position may go back. */
			scan->reached = Max(scan->reached, scan->filter->upto);
			return NULL;
		}
		if (event_is_wanted(scan, slot, stream))
		{
			scan->unwanted = 0;
			return slot;
		}
		scan->unwanted++;
	}
	return NULL;
}

/* Fetches the next event of one stream, and reads its columns; NULL at the end. */
static TupleTableSlot *
fetch_stream_event(EvpgLogScan *scan)
{
	IndexSource *source = &scan->sources[0];

	CHECK_FOR_INTERRUPTS();
	if (!EvpgLogPageFetch(&source->page, source->scan, scan->direction, source->slot))
		return NULL;
	EvpgLogRowRead(source->slot);
	return source->slot;
}

static char *
get_slot_text(TupleTableSlot *slot, int column)
{
	return slot->tts_isnull[column] ? NULL : TextDatumGetCString(slot->tts_values[column]);
}

/* Returns a text of some length, which is mostly that of the event before, with an end; NULL if it is too long. */
static char *
repeat_text(RepeatedText *last, const char *text, int length)
{
	if (length >= (int) sizeof(last->text))
		return NULL;
	if (length != last->length || memcmp(last->text, text, length) != 0)
	{
		memcpy(last->text, text, length);
		last->text[length] = '\0';
		last->length = length;
	}
	return last->text;
}

/* As get_slot_text, of a text that is mostly that of the event before. */
static char *
get_repeated_text(TupleTableSlot *slot, int column, RepeatedText *last)
{
	struct varlena *value = slot->tts_isnull[column] ? NULL : (struct varlena *) DatumGetPointer(slot->tts_values[column]);
	char	   *text = NULL;

	if (value != NULL && !VARATT_IS_EXTERNAL(value) && !VARATT_IS_COMPRESSED(value))
		text = repeat_text(last, VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
	return text != NULL ? text : get_slot_text(slot, column);
}

/* Returns a value with a long header, NULL for NULL; a short one is copied to where there is room for it. */
static void *
get_slot_value(TupleTableSlot *slot, int column, int64 *room)
{
	struct varlena *value = slot->tts_isnull[column] ? NULL : (struct varlena *) DatumGetPointer(slot->tts_values[column]);
	Size		size;

	if (value == NULL || VARATT_IS_EXTERNAL(value) || !VARATT_IS_SHORT(value))
		return value == NULL ? NULL : PG_DETOAST_DATUM(PointerGetDatum(value));
	size = VARSIZE_SHORT(value) - VARHDRSZ_SHORT;
	SET_VARSIZE(room, size + VARHDRSZ);
	memcpy(VARDATA(room), VARDATA_SHORT(value), size);
	return room;
}

/*
 * EvpgLogScanNext
 *		Fetches the next event of a scan; false at the end.  The event lives
 *		until the next call, in memory of the scan; type and id of a stream
 *		that is scanned are those of the caller.  Raises VE019, and what upcasters
 *		raise, if it is to be upcast.
 */
bool
EvpgLogScanNext(EvpgLogScan *scan, EvpgEvent *event)
{
	TupleTableSlot *slot;
	EvpgStream	found;
	const EvpgStream *stream = scan->stream;
	MemoryContext old;

	slot = stream != NULL ? fetch_stream_event(scan) : fetch_wanted_event(scan, &found);
	if (slot == NULL)
		return false;

	MemoryContextReset(scan->event_context);
	old = MemoryContextSwitchTo(scan->event_context);
	event->stream_id = DatumGetInt64(slot->tts_values[LOG_STREAM_ID]);
	event->position = DatumGetInt64(slot->tts_values[LOG_POSITION]);
	event->version = DatumGetInt64(slot->tts_values[LOG_VERSION]);
	if (stream != NULL)
	{
		event->aggregate_type = stream->aggregate_type;
		event->aggregate_id = stream->aggregate_id;
	}
	else
	{
		/*
		 * Copies: a scan inside of this one may make the session forget
		 * streams.
		 */
		event->aggregate_type = repeat_text(&scan->aggregate_type, found.aggregate_type, strlen(found.aggregate_type));
		if (event->aggregate_type == NULL)
			event->aggregate_type = pstrdup(found.aggregate_type);
		event->aggregate_id = scan->filter->lends_ids ? found.aggregate_id : pstrdup(found.aggregate_id);
	}
	event->type = get_repeated_text(slot, LOG_TYPE, &scan->type);
	event->schema_version = DatumGetInt32(slot->tts_values[LOG_SCHEMA_VERSION]);
	event->data = get_slot_value(slot, LOG_DATA, scan->short_data);
	event->metadata = get_slot_value(slot, LOG_METADATA, scan->short_metadata);
	event->tags = get_slot_value(slot, LOG_TAGS, scan->short_tags);
	event->event_id = *DatumGetUUIDP(slot->tts_values[LOG_EVENT_ID]);
	event->has_event_id = true;
	event->has_occurred_at = true;
	event->caused_by = 0;
	event->command_id = get_repeated_text(slot, LOG_COMMAND_ID, &scan->command_id);
	event->correlation_id = get_repeated_text(slot, LOG_CORRELATION_ID, &scan->correlation_id);
	event->causation_id = get_repeated_text(slot, LOG_CAUSATION_ID, &scan->causation_id);
	event->actor = get_repeated_text(slot, LOG_ACTOR, &scan->actor);
	event->session_role = get_repeated_text(slot, LOG_SESSION_ROLE, &scan->session_role);
	event->occurred_at = DatumGetTimestampTz(slot->tts_values[LOG_OCCURRED_AT]);
	event->recorded_at = DatumGetTimestampTz(slot->tts_values[LOG_RECORDED_AT]);
	event->chain = NULL;
	event->stored = NULL;
	if (unlikely(scan->upcasters != NULL))
	{
		EvpgUpcastMark(scan->upcasters, event);
		if (scan->filter == NULL || !scan->filter->leaves_upcasting)
			EvpgUpcastEvent(event);
	}
	MemoryContextSwitchTo(old);
	return true;
}

/*
 * EvpgLogScanUpcast
 *		Upcasts the last event of a scan whose filter leaves that to its caller, in memory of
 *		the scan; raises what EvpgUpcastEvent raises.
 */
void
EvpgLogScanUpcast(EvpgLogScan *scan, EvpgEvent *event)
{
	MemoryContext old;

	if (likely(event->chain == NULL))
		return;
	old = MemoryContextSwitchTo(scan->event_context);
	if (scan->filter->lends_ids)
		event->aggregate_id = pstrdup(event->aggregate_id);
	EvpgUpcastEvent(event);
	MemoryContextSwitchTo(old);
}

/* Ends a scan and frees it; after an ERROR the resource owner and the memory context do that. */
void
EvpgLogScanEnd(EvpgLogScan *scan)
{
	for (int i = 0; i < scan->nsources; i++)
	{
		index_endscan(scan->sources[i].scan);
		ExecDropSingleTupleTableSlot(scan->sources[i].slot);
	}
	if (scan->hit_slot != NULL)
		ExecDropSingleTupleTableSlot(scan->hit_slot);
	if (scan->hits.hits != NULL)
		pfree(scan->hits.hits);
	index_close(scan->index, scan->mode);
	table_close(scan->log, scan->mode);
	MemoryContextDelete(scan->event_context);
	pfree(scan);
}
