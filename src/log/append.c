/*-------------------------------------------------------------------------
 *
 * append.c
 *		Appending events to the log evpg.event_log.
 *
 * The table is written directly instead of over SPI, as the apply worker of
 * logical replication does: arrays and JSON need no detour.  An ordinary log
 * with B-trees on its columns alone is written without the executor, which
 * would be set up anew for each command; many events go into the table at once.
 * Whatever a user has added to it (triggers that come after an insert, CHECK and
 * NOT NULL constraints, other kinds of indexes) takes the executor's way and
 * works as with SQL; the statement is all that one call appends.  What works in
 * neither way is refused: triggers before an insert, transition tables, rules and
 * inheritance (catalog.c).  Nothing about the table is remembered: its relcache
 * entry, under the lock, tells which way it is.
 *
 * Rule 3: an appender holds the stream's lock and the fence before it draws
 * a position, so positions grow with versions, and a command that loses draws
 * none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/amapi.h"
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/testing.h"
#include "catalog/pg_am.h"
#include "catalog/pg_index.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "log/event_log.h"
#include "log/fence.h"
#include "log/log_columns.h"
#include "log/stream_directory.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* So many events, or bytes of their data, are put into the table at once. */
#define MAX_BATCH_EVENTS	64
#define MAX_BATCH_SIZE		(64 * 1024)

static void
set_slot_text(TupleTableSlot *slot, int column, const char *text)
{
	slot->tts_isnull[column] = (text == NULL);
	if (text != NULL)
		slot->tts_values[column] = CStringGetTextDatum(text);
}

static void
set_slot_pointer(TupleTableSlot *slot, int column, void *pointer)
{
	slot->tts_isnull[column] = (pointer == NULL);
	slot->tts_values[column] = PointerGetDatum(pointer);
}

static void
fill_log_slot(TupleTableSlot *slot, int64 stream_id, EvpgEvent *event)
{
	const EvpgEvent *stored = unlikely(event->stored != NULL) ? event->stored : event;

	/* without the executor nothing else looks at NOT NULL */
	Assert(event->type != NULL && event->session_role != NULL);
	ExecClearTuple(slot);
	/* what the log has beyond are dropped columns */
	memset(slot->tts_isnull, true, sizeof(bool) * slot->tts_tupleDescriptor->natts);
	memset(slot->tts_isnull, false, sizeof(bool) * LOG_NATTS);
	slot->tts_values[LOG_POSITION] = Int64GetDatum(event->position);
	slot->tts_values[LOG_STREAM_ID] = Int64GetDatum(stream_id);
	slot->tts_values[LOG_VERSION] = Int64GetDatum(event->version);
	slot->tts_values[LOG_OCCURRED_AT] = TimestampTzGetDatum(event->occurred_at);
	slot->tts_values[LOG_RECORDED_AT] = TimestampTzGetDatum(event->recorded_at);
	slot->tts_values[LOG_EVENT_ID] = UUIDPGetDatum(&event->event_id);
	slot->tts_values[LOG_SCHEMA_VERSION] = Int32GetDatum(stored->schema_version);
	set_slot_text(slot, LOG_TYPE, stored->type);
	set_slot_pointer(slot, LOG_DATA, stored->data);
	set_slot_pointer(slot, LOG_METADATA, event->metadata);
	set_slot_pointer(slot, LOG_TAGS, event->tags);
	set_slot_text(slot, LOG_COMMAND_ID, event->command_id);
	set_slot_text(slot, LOG_CORRELATION_ID, event->correlation_id);
	set_slot_text(slot, LOG_CAUSATION_ID, event->causation_id);
	set_slot_text(slot, LOG_ACTOR, event->actor);
	set_slot_text(slot, LOG_SESSION_ROLE, event->session_role);
	ExecStoreVirtualTuple(slot);
}

/* ------------------------------------------------------------------ without the executor */

/* Columns that an event may leave NULL. */
static const int optional_columns[] = {
	LOG_DATA, LOG_METADATA, LOG_TAGS, LOG_COMMAND_ID, LOG_CORRELATION_ID, LOG_CAUSATION_ID, LOG_ACTOR
};

/* Returns whether the table has triggers or constraints that the executor must see to. */
static bool
needs_executor(Relation log)
{
	TupleDesc	desc = RelationGetDescr(log);

	if (log->trigdesc != NULL &&
		(log->trigdesc->trig_insert_after_row || log->trigdesc->trig_insert_after_statement))
		return true;
	if (desc->constr == NULL)
		return false;
	for (int i = 0; i < (int) lengthof(optional_columns); i++)
		if (TupleDescAttr(desc, optional_columns[i])->attnotnull)
			return true;
	return desc->constr->num_check > 0 || desc->constr->has_generated_stored;
}

/* Returns whether the entries of an index are compared by functions of users. */
static bool
calls_users_functions(Relation index)
{
	int			count = IndexRelationGetNumberOfKeyAttributes(index) * index->rd_indam->amsupport;

	for (int i = 0; i < count; i++)
		if (index->rd_support[i] >= FirstNormalObjectId)
			return true;
	return false;
}

/* Returns whether the entries of an index are columns of the table, and it checks nothing but that they are unique. */
static bool
is_plain_index(Relation index)
{
	Form_pg_index form = index->rd_index;

	return index->rd_rel->relam == BTREE_AM_OID && form->indimmediate && !form->indisexclusion &&
		!calls_users_functions(index) &&
		heap_attisnull(index->rd_indextuple, Anum_pg_index_indexprs, NULL) &&
		heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL);
}

/*
 * Closes indexes; the locks stay to the end of the transaction, as that of the table
 * does: the next append needs them again.
 */
static void
close_indexes(List *indexes)
{
	ListCell   *cell;

	foreach(cell, indexes)
		index_close(lfirst(cell), NoLock);
	list_free(indexes);
}

/* Opens the indexes of the table, which is locked; NIL if it must be written by the executor. */
static List *
open_plain_indexes(Relation log)
{
	List	   *oids;
	List	   *indexes = NIL;
	ListCell   *cell;
	bool		plain = true;

	if (needs_executor(log) || EVPG_MUTATION("event_lost"))
		return NIL;
	oids = RelationGetIndexList(log);
	foreach(cell, oids)
	{
		indexes = lappend(indexes, index_open(lfirst_oid(cell), RowExclusiveLock));
		plain &= is_plain_index(llast(indexes));
	}
	list_free(oids);
	if (plain)
		return indexes;
	close_indexes(indexes);
	return NIL;
}

/* Inserts the entries of events, which are in the table, into an index. */
static void
write_index_entries(Relation log, Relation index, TupleTableSlot **slots, int count)
{
	Form_pg_index form = index->rd_index;
	IndexInfo	info = {
		.type = T_IndexInfo,
		.ii_NumIndexAttrs = form->indnatts,
		.ii_NumIndexKeyAttrs = form->indnkeyatts,
		.ii_Unique = form->indisunique,
		.ii_ReadyForInserts = form->indisready,
		.ii_Am = BTREE_AM_OID,
		.ii_Context = CurrentMemoryContext
	};
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];

	if (!form->indisready)
		return;
	for (int column = 0; column < form->indnatts; column++)
		info.ii_IndexAttrNumbers[column] = form->indkey.values[column];
	for (int i = 0; i < count; i++)
	{
		for (int column = 0; column < form->indnatts; column++)
		{
			values[column] = slot_getattr(slots[i], form->indkey.values[column], &nulls[column]);
		}
		(void) index_insert(index, values, nulls, &slots[i]->tts_tid, log,
							form->indisunique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO, false, &info);
	}
}

/* Returns how many of these events, one at least, to put into the table at once. */
static int
count_batch(const EvpgEvent *events, int count)
{
	Size		size = 0;
	int			i = 0;

	while (i < Min(count, MAX_BATCH_EVENTS) && (i == 0 || size < MAX_BATCH_SIZE))
	{
		size += events[i].data == NULL ? 0 : VARSIZE_ANY(events[i].data);
		size += events[i].metadata == NULL ? 0 : VARSIZE_ANY(events[i].metadata);
		i++;
	}
	return i;
}

/* Inserts so many events into the table and its indexes at once, by slots of the table. */
static void
insert_batch(Relation log, List *indexes, int64 stream_id, EvpgEvent *events, TupleTableSlot **slots, int count)
{
	CommandId	command = GetCurrentCommandId(true);
	ListCell   *cell;

	for (int i = 0; i < count; i++)
		fill_log_slot(slots[i], stream_id, &events[i]);
	if (count == 1)
		table_tuple_insert(log, slots[0], command, 0, NULL);
	else
		table_multi_insert(log, slots, count, command, 0, NULL);
	foreach(cell, indexes)
		write_index_entries(log, lfirst(cell), slots, count);
}

static void
insert_directly(Relation log, List *indexes, int64 stream_id, EvpgEvent *events, int count)
{
	TupleTableSlot *slots[MAX_BATCH_EVENTS];
	int			nslots = Min(count, MAX_BATCH_EVENTS);
	bool		pushed = !ActiveSnapshotSet();
	int			n;

	/* For large values, which have a table of their own. */
	if (pushed)
		PushActiveSnapshot(GetTransactionSnapshot());
	for (int i = 0; i < nslots; i++)
		slots[i] = table_slot_create(log, NULL);
	if (count == 1)
		insert_batch(log, indexes, stream_id, events, slots, 1);
	else
	{
		MemoryContext batch = AllocSetContextCreate(CurrentMemoryContext, "EvpgInsert", ALLOCSET_DEFAULT_SIZES);
		MemoryContext old = MemoryContextSwitchTo(batch);

		for (int done = 0; done < count; done += n)
		{
			n = count_batch(events + done, count - done);
			insert_batch(log, indexes, stream_id, events + done, slots, n);
			MemoryContextReset(batch);
			CHECK_FOR_INTERRUPTS();
		}
		MemoryContextSwitchTo(old);
		MemoryContextDelete(batch);
	}
	for (int i = 0; i < nslots; i++)
		ExecDropSingleTupleTableSlot(slots[i]);
	if (pushed)
		PopActiveSnapshot();
}

/* ------------------------------------------------------------------ with the executor */

static void
insert_by_executor(Relation log, int64 stream_id, EvpgEvent *events, int count)
{
	EState	   *estate = CreateExecutorState();
	ResultRelInfo *target = makeNode(ResultRelInfo);
	TupleTableSlot *slot;
	bool		each_statement = log->trigdesc != NULL && log->trigdesc->trig_insert_after_statement;
	bool		triggers = each_statement || (log->trigdesc != NULL && log->trigdesc->trig_insert_after_row);
	MemoryContext old = MemoryContextSwitchTo(estate->es_query_cxt);

	/* Triggers, constraints and indexes of users call their functions. */
	EvpgPinSearchPath();
	InitResultRelInfo(target, log, 1, NULL, 0);
	EvpgInitRangeTable(estate, log);
	estate->es_result_relations = palloc0(sizeof(ResultRelInfo *));
	estate->es_result_relations[0] = target;
	estate->es_opened_result_relations = list_make1(target);
	estate->es_output_cid = GetCurrentCommandId(true);
	slot = ExecInitExtraTupleSlot(estate, RelationGetDescr(log), &TTSOpsVirtual);
	PushActiveSnapshot(GetTransactionSnapshot());
	ExecOpenIndices(target, false);
	if (triggers)
		AfterTriggerBeginQuery();

	for (int i = 0; i < count; i++)
	{
		ResetPerTupleExprContext(estate);
		MemoryContextSwitchTo(GetPerTupleMemoryContext(estate));
		fill_log_slot(slot, stream_id, &events[i]);
		MemoryContextSwitchTo(estate->es_query_cxt);
		if (!EVPG_MUTATION("event_lost") || events[i].version % 2 != 0)
			ExecSimpleRelationInsert(target, estate, slot);
		CHECK_FOR_INTERRUPTS();
	}

	if (each_statement)
		ExecASInsertTriggers(estate, target, NULL);
	if (triggers)
		AfterTriggerEndQuery(estate);
	ExecCloseIndices(target);
	ExecResetTupleTable(estate->es_tupleTable, false);
	PopActiveSnapshot();
	MemoryContextSwitchTo(old);
	FreeExecutorState(estate);
}

/*
 * EvpgLogAppend
 *		Appends events to a stream that the caller has locked: draws their
 *		positions, numbers them, inserts them and advances the stream.  Fills
 *		position and version of the events.  Fires the triggers of the log as
 *		one INSERT would.  The caller has locked the log (EvpgCatalogLockForAppend).
 */
void
EvpgLogAppend(EvpgStream *stream, EvpgEvent *events, int count)
{
	Relation	log = table_open(EvpgCatalogGet()->event_log, NoLock);
	EvpgStream	newest = *stream;
	EvpgEvent  *last = &events[count - 1];
	List	   *indexes;
	int64		position;

	Assert(stream->stream_id != 0 && count > 0);
	EvpgFenceEnter();
	position = EvpgFenceDrawPositions(count);
	for (int i = 0; i < count; i++)
	{
		events[i].position = position + i;
		events[i].version = stream->version + 1 + i + EVPG_MUTATION("version_wrong");
	}

	/*
	 * Before the insert: if that fails, so does the transaction that the
	 * directory names.
	 */
	newest.version = last->version;
	newest.last_position = last->position;
	newest.last_recorded_at = last->recorded_at;
	EvpgStreamDirectoryPut(&newest, false);
	indexes = open_plain_indexes(log);
	if (indexes != NIL)
		insert_directly(log, indexes, stream->stream_id, events, count);
	else
		insert_by_executor(log, stream->stream_id, events, count);
	close_indexes(indexes);
	table_close(log, NoLock);
	CommandCounterIncrement();

	EVPG_PLANT(last->version);
	EvpgStreamAdvance(stream, last->version, last->position, last->recorded_at);
}
