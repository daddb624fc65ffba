/*-------------------------------------------------------------------------
 *
 * log.c
 *		The event log evpg.event_log: inserting events, and scanning those of a
 *		stream, or of all streams by position.
 *
 * Both work on the table directly instead of over SPI, as the apply worker of
 * logical replication does: a whole command is inserted with one setup, arrays
 * and JSON need no detour, and a scan always uses the unique index on
 * (stream_id, version), whatever the statistics say.  Constraints, indexes,
 * triggers and predicate locks work as with SQL.
 *
 * Rule 3: who appends holds the stream's row lock and the fence before it
 * draws a position, so positions grow with versions, and a command that loses
 * draws none.
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
#include "catalog.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "fence.h"
#include "log.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Columns of evpg.event_log, see sql/evpg--1.0.sql. */
#define LOG_POSITION		0
#define LOG_STREAM_ID		1
#define LOG_VERSION			2
#define LOG_OCCURRED_AT		3
#define LOG_RECORDED_AT		4
#define LOG_EVENT_ID		5
#define LOG_SCHEMA_VERSION	6
#define LOG_TYPE			7
#define LOG_DATA			8
#define LOG_METADATA		9
#define LOG_TAGS			10
#define LOG_COMMAND_ID		11
#define LOG_CORRELATION_ID	12
#define LOG_CAUSATION_ID	13
#define LOG_ACTOR			14
#define LOG_NATTS			15

/* So many events that are not wanted end a scan of all streams: a transaction should not last. */
#define MAX_UNWANTED 200000

struct EvpgLogScan
{
	const EvpgStream *stream;	/* NULL: all streams */
	const EvpgLogFilter *filter;	/* if all streams */
	text	  **event_types;	/* as the filter has them */
	int64		reached;
	Relation	log;
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	ScanDirection direction;
	MemoryContext event_context;	/* reset for each event */
};

static void
set_text(TupleTableSlot *slot, int column, const char *text)
{
	slot->tts_isnull[column] = (text == NULL);
	if (text != NULL)
		slot->tts_values[column] = CStringGetTextDatum(text);
}

static void
set_pointer(TupleTableSlot *slot, int column, void *pointer)
{
	slot->tts_isnull[column] = (pointer == NULL);
	slot->tts_values[column] = PointerGetDatum(pointer);
}

static void
fill_slot(TupleTableSlot *slot, int64 stream_id, EvpgEvent *event)
{
	ExecClearTuple(slot);
	memset(slot->tts_isnull, false, sizeof(bool) * LOG_NATTS);
	slot->tts_values[LOG_POSITION] = Int64GetDatum(event->position);
	slot->tts_values[LOG_STREAM_ID] = Int64GetDatum(stream_id);
	slot->tts_values[LOG_VERSION] = Int64GetDatum(event->version);
	slot->tts_values[LOG_OCCURRED_AT] = TimestampTzGetDatum(event->occurred_at);
	slot->tts_values[LOG_RECORDED_AT] = TimestampTzGetDatum(event->recorded_at);
	slot->tts_values[LOG_EVENT_ID] = UUIDPGetDatum(&event->event_id);
	slot->tts_values[LOG_SCHEMA_VERSION] = Int32GetDatum(event->schema_version);
	set_text(slot, LOG_TYPE, event->type);
	set_pointer(slot, LOG_DATA, event->data);
	set_pointer(slot, LOG_METADATA, event->metadata);
	set_pointer(slot, LOG_TAGS, event->tags);
	set_text(slot, LOG_COMMAND_ID, event->command_id);
	set_text(slot, LOG_CORRELATION_ID, event->correlation_id);
	set_text(slot, LOG_CAUSATION_ID, event->causation_id);
	set_text(slot, LOG_ACTOR, event->actor);
	ExecStoreVirtualTuple(slot);
}

/*
 * EvpgLogAppend
 *		Appends events to a stream that the caller has locked: draws their
 *		positions, numbers them, inserts them and advances the stream.
 */
void
EvpgLogAppend(EvpgStream *stream, EvpgEvent *events, int count)
{
	Relation	log = table_open(EvpgCatalogGet()->event_log, RowExclusiveLock);
	EState	   *estate = CreateExecutorState();
	ResultRelInfo *target = makeNode(ResultRelInfo);
	TupleTableSlot *slot;
	bool		triggers;
	MemoryContext old;

	Assert(stream->stream_id != 0 && count > 0);
	EvpgFenceEnter();

	old = MemoryContextSwitchTo(estate->es_query_cxt);
	InitResultRelInfo(target, log, 1, NULL, 0);
	ExecInitRangeTable(estate, list_make1(makeNode(RangeTblEntry)));
	estate->es_result_relations = palloc0(sizeof(ResultRelInfo *));
	estate->es_result_relations[0] = target;
	estate->es_opened_result_relations = list_make1(target);
	estate->es_output_cid = GetCurrentCommandId(true);
	slot = ExecInitExtraTupleSlot(estate, RelationGetDescr(log), &TTSOpsVirtual);
	PushActiveSnapshot(GetTransactionSnapshot());
	ExecOpenIndices(target, false);
	triggers = log->trigdesc != NULL && log->trigdesc->trig_insert_after_row;
	if (triggers)
		AfterTriggerBeginQuery();

	for (int i = 0; i < count; i++)
	{
		events[i].position = EvpgFenceDraw();
		events[i].version = stream->version + 1 + i;
		ResetPerTupleExprContext(estate);
		MemoryContextSwitchTo(GetPerTupleMemoryContext(estate));
		fill_slot(slot, stream->stream_id, &events[i]);
		MemoryContextSwitchTo(estate->es_query_cxt);
		ExecSimpleRelationInsert(target, estate, slot);
		CHECK_FOR_INTERRUPTS();
	}

	if (triggers)
		AfterTriggerEndQuery(estate);
	ExecCloseIndices(target);
	ExecResetTupleTable(estate->es_tupleTable, false);
	PopActiveSnapshot();
	MemoryContextSwitchTo(old);
	FreeExecutorState(estate);
	table_close(log, NoLock);
	CommandCounterIncrement();

	EvpgStreamAdvance(stream, events[count - 1].version, events[count - 1].position);
}

static EvpgLogScan *
open_scan(Oid index)
{
	EvpgLogScan *scan = palloc0(sizeof(EvpgLogScan));

	scan->log = table_open(EvpgCatalogGet()->event_log, AccessShareLock);
	scan->index = index_open(index, AccessShareLock);
	scan->slot = table_slot_create(scan->log, NULL);
	scan->direction = ForwardScanDirection;
	scan->event_context = AllocSetContextCreate(CurrentMemoryContext, "EvpgEvent", ALLOCSET_DEFAULT_SIZES);
	return scan;
}

/*
 * EvpgLogScanBegin
 *		Scans the events of a stream with version >= from_version, in order of
 *		version or, backwards, from the last, under the active snapshot.
 */
EvpgLogScan *
EvpgLogScanBegin(const EvpgStream *stream, int64 from_version, bool backwards)
{
	EvpgLogScan *scan = open_scan(EvpgCatalogGet()->event_log_stream_index);
	ScanKeyData keys[2];

	scan->stream = stream;
	scan->direction = backwards ? BackwardScanDirection : ForwardScanDirection;
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(stream->stream_id));
	ScanKeyInit(&keys[1], 2, BTGreaterEqualStrategyNumber, F_INT8GE, Int64GetDatum(from_version));
	scan->scan = index_beginscan(scan->log, scan->index, GetActiveSnapshot(), 2, 0);
	index_rescan(scan->scan, keys, 2, NULL, 0);
	return scan;
}

/*
 * EvpgLogScanAll
 *		Scans the events of all streams in order of position, under the active
 *		snapshot.  It may end early, after many events that are not wanted: go on
 *		from EvpgLogScanReached.
 */
EvpgLogScan *
EvpgLogScanAll(const EvpgLogFilter *filter)
{
	EvpgLogScan *scan = open_scan(EvpgCatalogGet()->event_log_position_index);
	ScanKeyData keys[2];
	ListCell   *cell;

	scan->filter = filter;
	scan->reached = filter->after;
	scan->event_types = palloc(sizeof(text *) * list_length(filter->event_types));
	foreach(cell, filter->event_types)
		scan->event_types[foreach_current_index(cell)] = cstring_to_text(lfirst(cell));
	ScanKeyInit(&keys[0], 1, BTGreaterStrategyNumber, F_INT8GT, Int64GetDatum(filter->after));
	ScanKeyInit(&keys[1], 1, BTLessEqualStrategyNumber, F_INT8LE, Int64GetDatum(filter->upto));
	scan->scan = index_beginscan(scan->log, scan->index, GetActiveSnapshot(), 2, 0);
	index_rescan(scan->scan, keys, 2, NULL, 0);
	return scan;
}

/* Every event up to here that is wanted has been returned. */
int64
EvpgLogScanReached(EvpgLogScan *scan)
{
	return scan->reached;
}

/* Which of so many parts has a key; the same everywhere and for ever. */
int
EvpgLogPart(const char *key, int parts)
{
	return DatumGetUInt32(hash_any((const unsigned char *) key, strlen(key))) % parts;
}

/* Whether the type of the event in the slot is wanted; looks at nothing else of it. */
static bool
type_wanted(EvpgLogScan *scan)
{
	int			ntypes = list_length(scan->filter->event_types);
	text	   *type;

	if (ntypes == 0)
		return true;
	slot_getsomeattrs(scan->slot, LOG_TYPE + 1);
	type = DatumGetTextPP(scan->slot->tts_values[LOG_TYPE]);
	for (int i = 0; i < ntypes; i++)
		if (VARSIZE_ANY_EXHDR(type) == VARSIZE_ANY_EXHDR(scan->event_types[i]) &&
			memcmp(VARDATA_ANY(type), VARDATA_ANY(scan->event_types[i]), VARSIZE_ANY_EXHDR(type)) == 0)
			return true;
	return false;
}

/* Whether the stream of the event in the slot is wanted; fills *stream. */
static bool
stream_wanted(EvpgLogScan *scan, EvpgStream *stream)
{
	const EvpgLogFilter *filter = scan->filter;
	ListCell   *cell;
	bool		wanted = (filter->aggregate_types == NIL);

	slot_getsomeattrs(scan->slot, LOG_STREAM_ID + 1);
	EvpgStreamById(DatumGetInt64(scan->slot->tts_values[LOG_STREAM_ID]), stream);
	foreach(cell, filter->aggregate_types)
		wanted |= strcmp(lfirst(cell), stream->aggregate_type) == 0;
	return wanted && (filter->parts <= 1 || EvpgLogPart(stream->aggregate_id, filter->parts) == filter->part);
}

/* Moves to the next event of all streams that is wanted. */
static bool
next_of_all(EvpgLogScan *scan, EvpgStream *stream)
{
	for (int looks = 0; looks < MAX_UNWANTED; looks++)
	{
		CHECK_FOR_INTERRUPTS();
		if (!index_getnext_slot(scan->scan, ForwardScanDirection, scan->slot))
		{
			scan->reached = scan->filter->upto;
			return false;
		}
		slot_getsomeattrs(scan->slot, LOG_POSITION + 1);
		scan->reached = DatumGetInt64(scan->slot->tts_values[LOG_POSITION]);
		if (type_wanted(scan) && stream_wanted(scan, stream))
			return true;
	}
	return false;
}

static char *
get_text(TupleTableSlot *slot, int column)
{
	return slot->tts_isnull[column] ? NULL : TextDatumGetCString(slot->tts_values[column]);
}

static void *
get_varlena(TupleTableSlot *slot, int column)
{
	return slot->tts_isnull[column] ? NULL : PG_DETOAST_DATUM(slot->tts_values[column]);
}

/* The next event; false at the end.  It lives until the next call. */
bool
EvpgLogScanNext(EvpgLogScan *scan, EvpgEvent *event)
{
	TupleTableSlot *slot = scan->slot;
	EvpgStream	stream;
	MemoryContext old;

	CHECK_FOR_INTERRUPTS();
	if (scan->stream != NULL)
		stream = *scan->stream;
	if (!(scan->stream != NULL ? index_getnext_slot(scan->scan, scan->direction, slot) : next_of_all(scan, &stream)))
		return false;

	MemoryContextReset(scan->event_context);
	old = MemoryContextSwitchTo(scan->event_context);
	slot_getallattrs(slot);
	event->position = DatumGetInt64(slot->tts_values[LOG_POSITION]);
	event->version = DatumGetInt64(slot->tts_values[LOG_VERSION]);
	event->aggregate_type = stream.aggregate_type;
	event->aggregate_id = stream.aggregate_id;
	event->type = get_text(slot, LOG_TYPE);
	event->schema_version = DatumGetInt32(slot->tts_values[LOG_SCHEMA_VERSION]);
	event->data = get_varlena(slot, LOG_DATA);
	event->metadata = get_varlena(slot, LOG_METADATA);
	event->tags = get_varlena(slot, LOG_TAGS);
	event->event_id = *DatumGetUUIDP(slot->tts_values[LOG_EVENT_ID]);
	event->has_event_id = true;
	event->has_occurred_at = true;
	event->caused_by = 0;
	event->command_id = get_text(slot, LOG_COMMAND_ID);
	event->correlation_id = get_text(slot, LOG_CORRELATION_ID);
	event->causation_id = get_text(slot, LOG_CAUSATION_ID);
	event->actor = get_text(slot, LOG_ACTOR);
	event->occurred_at = DatumGetTimestampTz(slot->tts_values[LOG_OCCURRED_AT]);
	event->recorded_at = DatumGetTimestampTz(slot->tts_values[LOG_RECORDED_AT]);
	MemoryContextSwitchTo(old);
	return true;
}

void
EvpgLogScanEnd(EvpgLogScan *scan)
{
	index_endscan(scan->scan);
	ExecDropSingleTupleTableSlot(scan->slot);
	index_close(scan->index, AccessShareLock);
	table_close(scan->log, AccessShareLock);
	MemoryContextDelete(scan->event_context);
	pfree(scan);
}
