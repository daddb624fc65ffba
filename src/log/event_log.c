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
#include "base/catalog.h"
#include "base/compat.h"
#include "base/locks.h"
#include "base/names.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "log/event_log.h"
#include "log/log_columns.h"
#include "log/log_page.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Scans with more types than this do not use the index on types. */
#define MAX_TYPE_SOURCES 16

/* A scan of all streams ends after this many unwanted events in a row: a transaction should not last. */
#define MAX_UNWANTED 200000

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
	const EvpgLogFilter *filter;	/* if all streams */
	text	  **event_types;	/* of the filter; NULL: none, or each has a
								 * source */
	int			ntypes;
	int64		reached;
	LOCKMODE	mode;			/* in which log and index are locked */
	Relation	log;
	Relation	index;
	int			nsources;
	IndexSource *sources;
	ScanDirection direction;
	MemoryContext event_context;	/* reset for each event */
	RepeatedText aggregate_type;	/* of the last event */
	RepeatedText type;
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
	scan->event_context = AllocSetContextCreate(CurrentMemoryContext, "EvpgEvent", ALLOCSET_DEFAULT_SIZES);
	return scan;
}

static void
open_source(EvpgLogScan *scan, IndexSource *source, ScanKey keys, int nkeys)
{
	source->slot = table_slot_create(scan->log, NULL);
	source->scan = index_beginscan(scan->log, scan->index, GetActiveSnapshot(), NULL, nkeys, 0);
	index_rescan(source->scan, keys, nkeys, NULL, 0);
}

/*
 * EvpgLogScanBegin
 *		Begins to scan the events of a stream whose version is at least
 *		from_version, in order of version or, backwards, from the last, under
 *		the active snapshot.  The stream must outlive the scan.  The caller ends
 *		it with EvpgLogScanEnd.
 */
EvpgLogScan *
EvpgLogScanBegin(const EvpgStream *stream, int64 from_version, bool backwards)
{
	EvpgLogScan *scan = open_scan(&EvpgCatalogGet()->event_log_stream_index, 1);
	ScanKeyData keys[2];

	scan->stream = stream;
	scan->direction = backwards ? BackwardScanDirection : ForwardScanDirection;
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(stream->stream_id));
	ScanKeyInit(&keys[1], 2, BTGreaterEqualStrategyNumber, F_INT8GE, Int64GetDatum(from_version));
	open_source(scan, &scan->sources[0], keys, 2);
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

/*
 * EvpgLogScanAll
 *		Begins to scan the events of all streams in order of position, under the
 *		active snapshot; with the optional index on types only those of the
 *		wanted types, however rare they are.  It may end early, after many
 *		events that are not wanted: go on from EvpgLogScanReached.  The filter
 *		must outlive the scan.  The caller ends it with EvpgLogScanEnd.
 */
EvpgLogScan *
EvpgLogScanAll(const EvpgLogFilter *filter)
{
	const EvpgCatalog *catalog;
	List	   *wanted = remove_duplicates(filter->event_types);
	int			ntypes = list_length(wanted);
	bool		by_type;
	EvpgLogScan *scan;
	text	  **types = palloc(sizeof(text *) * Max(ntypes, 1));
	ScanKeyData keys[3];
	ListCell   *cell;

	/* So that no session drops the index in between. */
	LockRelationOid(EvpgCatalogGet()->event_log, AccessShareLock);
	catalog = EvpgCatalogGet();
	by_type = OidIsValid(catalog->event_log_type_index) && ntypes > 0 && ntypes <= MAX_TYPE_SOURCES &&
		filter->positions == NULL;
	scan = by_type ? open_scan(&catalog->event_log_type_index, ntypes) : open_scan(&catalog->event_log_position_index, 1);
	scan->filter = filter;
	scan->reached = filter->after;
	foreach(cell, wanted)
		types[foreach_current_index(cell)] = cstring_to_text(lfirst(cell));
	if (by_type)
	{
		ScanKeyInit(&keys[1], 2, BTGreaterStrategyNumber, F_INT8GT, Int64GetDatum(filter->after));
		ScanKeyInit(&keys[2], 2, BTLessEqualStrategyNumber, F_INT8LE, Int64GetDatum(filter->upto));
		for (int i = 0; i < ntypes; i++)
		{
			ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID,
								   F_TEXTEQ, PointerGetDatum(types[i]));
			open_source(scan, &scan->sources[i], keys, 3);
		}
	}
	else
	{
		int			nkeys = 2;

		scan->event_types = ntypes > 0 ? types : NULL;
		scan->ntypes = ntypes;
		ScanKeyInit(&keys[0], 1, BTGreaterStrategyNumber, F_INT8GT, Int64GetDatum(filter->after));
		ScanKeyInit(&keys[1], 1, BTLessEqualStrategyNumber, F_INT8LE, Int64GetDatum(filter->upto));
		/* The index returns the rows of an array in its own order, each once. */
		if (filter->positions != NULL)
			ScanKeyEntryInitialize(&keys[nkeys++], SK_SEARCHARRAY, 1, BTEqualStrategyNumber, InvalidOid, InvalidOid,
								   F_INT8EQ, PointerGetDatum(filter->positions));
		open_source(scan, &scan->sources[0], keys, nkeys);
	}
	return scan;
}

/* Returns whether an event at a position has been committed, under the latest snapshot. */
bool
EvpgLogHasEvent(int64 position)
{
	EvpgLogFilter filter = {.after = position - 1, .upto = position};
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

/* Returns whether the type of an event is wanted; reads nothing else of it. */
static bool
type_is_wanted(EvpgLogScan *scan, TupleTableSlot *slot)
{
	text	   *type;

	if (scan->event_types == NULL)
		return true;
	slot_getsomeattrs(slot, LOG_TYPE + 1);
	type = DatumGetTextPP(slot->tts_values[LOG_TYPE]);
	for (int i = 0; i < scan->ntypes; i++)
		if (VARSIZE_ANY_EXHDR(type) == VARSIZE_ANY_EXHDR(scan->event_types[i]) &&
			memcmp(VARDATA_ANY(type), VARDATA_ANY(scan->event_types[i]), VARSIZE_ANY_EXHDR(type)) == 0)
			return true;
	return false;
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

	slot_getsomeattrs(slot, LOG_STREAM_ID + 1);
	EvpgStreamGetById(DatumGetInt64(slot->tts_values[LOG_STREAM_ID]), stream);
	foreach(cell, filter->aggregate_types)
		wanted |= strcmp(lfirst(cell), stream->aggregate_type) == 0;
	return wanted && id_is_wanted(filter, stream);
}

/* Returns the tags of an event; those that are NULL, which a superuser has written, are none. */
static List *
list_tags(ArrayType *tags)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	List	   *names = NIL;

	deconstruct_array(tags, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	for (int i = 0; i < count; i++)
		if (!nulls[i])
			names = lappend(names, TextDatumGetCString(elements[i]));
	return names;
}

/* Returns whether the tags of an event are wanted: one of some, all of others. */
static bool
tags_are_wanted(EvpgLogScan *scan, TupleTableSlot *slot)
{
	const EvpgLogFilter *filter = scan->filter;
	MemoryContext old;
	ArrayType  *tags;
	List	   *names;
	ListCell   *cell;
	bool		wanted;

	if (filter->tags == NIL && filter->all_tags == NIL)
		return true;
	slot_getsomeattrs(slot, LOG_TAGS + 1);
	if (slot->tts_isnull[LOG_TAGS])
		return false;
	MemoryContextReset(scan->event_context);
	old = MemoryContextSwitchTo(scan->event_context);
	tags = DatumGetArrayTypeP(slot->tts_values[LOG_TAGS]);
	names = list_tags(tags);
	wanted = filter->tags == NIL;
	foreach(cell, names)
		wanted |= EvpgNamesHave(filter->tags, lfirst(cell));
	foreach(cell, filter->all_tags)
		wanted &= names != NIL && EvpgNamesHave(names, lfirst(cell));
	MemoryContextSwitchTo(old);
	return wanted;
}

/* Fetches the next event of all sources, in order of position; NULL at the end. */
static TupleTableSlot *
fetch_next_position(EvpgLogScan *scan)
{
	IndexSource *first = NULL;

	for (int i = 0; i < scan->nsources; i++)
	{
		IndexSource *source = &scan->sources[i];

		if (!source->fetched && !source->ended)
		{
			source->ended = !EvpgLogPageFetch(&source->page, source->scan, ForwardScanDirection, source->slot);
			if (source->ended)
				continue;
			/* all that the filter needs, at once */
			slot_getsomeattrs(source->slot, LOG_TYPE + 1);
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

/* Fetches the next event of all streams that is wanted; NULL at the end. */
static TupleTableSlot *
fetch_wanted_event(EvpgLogScan *scan, EvpgStream *stream)
{
	for (int looks = 0; looks < MAX_UNWANTED; looks++)
	{
		TupleTableSlot *slot = fetch_next_position(scan);

		CHECK_FOR_INTERRUPTS();
		if (slot == NULL)
		{
			/* Not below where it began: a stable position may go back. */
			scan->reached = Max(scan->reached, scan->filter->upto);
			return NULL;
		}
		if (type_is_wanted(scan, slot) && tags_are_wanted(scan, slot) && stream_is_wanted(scan, slot, stream))
			return slot;
	}
	return NULL;
}

/* Fetches the next event of one stream; NULL at the end. */
static TupleTableSlot *
fetch_stream_event(EvpgLogScan *scan)
{
	IndexSource *source = &scan->sources[0];

	CHECK_FOR_INTERRUPTS();
	return EvpgLogPageFetch(&source->page, source->scan, scan->direction, source->slot) ? source->slot : NULL;
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
 *		that is scanned are those of the caller.
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
	slot_getallattrs(slot);
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
	event->command_id = get_slot_text(slot, LOG_COMMAND_ID);
	event->correlation_id = get_slot_text(slot, LOG_CORRELATION_ID);
	event->causation_id = get_slot_text(slot, LOG_CAUSATION_ID);
	event->actor = get_slot_text(slot, LOG_ACTOR);
	event->session_role = get_repeated_text(slot, LOG_SESSION_ROLE, &scan->session_role);
	event->occurred_at = DatumGetTimestampTz(slot->tts_values[LOG_OCCURRED_AT]);
	event->recorded_at = DatumGetTimestampTz(slot->tts_values[LOG_RECORDED_AT]);
	MemoryContextSwitchTo(old);
	return true;
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
	index_close(scan->index, scan->mode);
	table_close(scan->log, scan->mode);
	MemoryContextDelete(scan->event_context);
	pfree(scan);
}
