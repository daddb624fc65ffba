/*-------------------------------------------------------------------------
 *
 * log_hits.c
 *		Asks the optional indexes of the log where the events of a filter are, for scans
 *		(event_log.c) that have passed over many that are not wanted.
 *
 * What an index finds is a superset of what is wanted: the scan looks at each event.
 * It must be all that there is in the stretch, under the snapshot of the scan.
 *
 * The index on tags (GIN) knows no positions: it finds all events that have a tag, and
 * each is fetched to see where it is.  So the planner is asked, each time, whether that
 * index or the one on positions has less to read for the stretch.  The common table
 * expression keeps it from hoping for an early hit on the way along the positions.
 * Under SERIALIZABLE a look into GIN conflicts with appends of any tags, so there it is
 * not used.
 *
 * Most tags have few events, and all of these are found at once, by a statement that needs
 * no plan.  Tags with more are remembered by the session, so that it tries each only once.
 *
 * The index on types has positions in its second column, and is read directly.
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
#include "base/names.h"
#include "base/statement.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/tuptable.h"
#include "log/condition.h"
#include "log/log_columns.h"
#include "log/log_hits.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* So many events are found at once, at most, for each item. */
#define MAX_HITS 1000

/* Events of an item that are few: it takes no longer to find them all than to plan a search. */
#define MAX_FEW 2000

/* Hashes of tags that have had more events than that; one that is missing costs a look in vain. */
#define MAX_FREQUENT 64

static uint32 frequent[MAX_FREQUENT];
static uint32 nfrequent = 0;

/* Whether the index on tags, or the one on types, finds all events that have some tags and types. */
static bool
tags_serve(List *tags)
{
	return tags != NIL && OidIsValid(EvpgCatalogGet()->event_log_tags_index) && !IsolationIsSerializable();
}

static bool
types_serve(List *event_types)
{
	return event_types != NIL && list_length(event_types) <= EVPG_MAX_TYPE_SCANS &&
		OidIsValid(EvpgCatalogGet()->event_log_type_index);
}

/*
 * EvpgLogHitsServed
 *		Returns a position up to which EvpgLogHitsFind finds all events of a filter, at most
 *		that where the filter ends; not above after if there is none.  A filter of event
 *		types alone has an index scan of its own already.
 */
int64
EvpgLogHitsServed(const EvpgLogFilter *filter, int64 after)
{
	int64		upto = filter->upto;

	if (filter->condition == NULL)
		return tags_serve(filter->tags) ? upto : after;
	for (int i = 0; i < filter->condition->count && upto > after; i++)
	{
		const EvpgConditionItem *item = &filter->condition->items[i];

		if (!tags_serve(item->tags) && !types_serve(item->event_types))
			upto = Min(upto, item->after);
	}
	return upto;
}

static void
add_hit(EvpgLogHits *hits, int64 position, ItemPointer tid)
{
	if (hits->count == hits->size)
	{
		hits->size = Max(hits->size * 2, 64);
		hits->hits = hits->hits == NULL ? MemoryContextAlloc(hits->context, sizeof(EvpgLogHit) * hits->size) :
			repalloc_huge(hits->hits, sizeof(EvpgLogHit) * hits->size);
	}
	hits->hits[hits->count].position = position;
	hits->hits[hits->count++].tid = *tid;
}

/* The same statement, for events that have any of the tags, and for those that have all. */
#define SELECT_TAGGED(operator) \
	"WITH tagged AS MATERIALIZED (" \
	" SELECT e.position, e.ctid FROM evpg.event_log e" \
	" WHERE e.tags " operator " $1 AND e.position > $2 AND e.position <= $3 AND ($4 IS NULL OR e.type = ANY ($4)))" \
	" SELECT t.position, t.ctid FROM tagged t ORDER BY t.position LIMIT $5"

static EvpgStatement select_any_tagged = {
	.text = SELECT_TAGGED("&&"),
	.types = {TEXTARRAYOID, INT8OID, INT8OID, TEXTARRAYOID, INT8OID},
	.by_values = true
};

static EvpgStatement select_all_tagged = {
	.text = SELECT_TAGGED("@>"),
	.types = {TEXTARRAYOID, INT8OID, INT8OID, TEXTARRAYOID, INT8OID},
	.by_values = true
};

/* The same for tags with few events: by the index on tags alone, which has no order. */
#define SELECT_FEW(operator) \
	"SELECT e.position, e.ctid FROM evpg.event_log e" \
	" WHERE e.tags " operator " $1 AND e.position + 0 > $2 AND e.position + 0 <= $3" \
	" AND ($4 IS NULL OR e.type = ANY ($4)) LIMIT $5"

static EvpgStatement select_few_any_tagged = {
	.text = SELECT_FEW("&&"),
	.types = {TEXTARRAYOID, INT8OID, INT8OID, TEXTARRAYOID, INT8OID},
	.by_bitmap = true
};

static EvpgStatement select_few_all_tagged = {
	.text = SELECT_FEW("@>"),
	.types = {TEXTARRAYOID, INT8OID, INT8OID, TEXTARRAYOID, INT8OID},
	.by_bitmap = true
};

/* Adds events with some tags between two positions, at most so many; returns how many. */
static uint64
read_tagged(EvpgLogHits *hits, EvpgStatement *statement, List *tags, List *event_types, int64 after, int64 limit)
{
	Datum		values[5] = {
		EvpgNamesToArray(tags), Int64GetDatum(after), Int64GetDatum(hits->upto), EvpgNamesToArray(event_types),
		Int64GetDatum(limit)
	};
	char		nulls[5] = {' ', ' ', ' ', event_types == NIL ? 'n' : ' ', ' '};
	uint64		rows = EvpgStatementRead(statement, values, nulls);

	for (uint64 i = 0; i < rows; i++)
	{
		Datum		tid;

		(void) EvpgResultDatum(i, 2, &tid);
		add_hit(hits, EvpgResultInt64(i, 1), (ItemPointer) DatumGetPointer(tid));
	}
	EvpgStatementDone();
	return rows;
}

/* Adds events with some tags between two positions, by the index that has less to read. */
static void
find_tagged(EvpgLogHits *hits, EvpgStatement *statement, List *tags, List *event_types, int64 after)
{
	if (read_tagged(hits, statement, tags, event_types, after, MAX_HITS) == MAX_HITS)
		hits->upto = hits->hits[hits->count - 1].position;
}

/* The same by the index on tags alone; false if there are too many, which is tried once. */
static bool
find_few_tagged(EvpgLogHits *hits, EvpgStatement *statement, List *tags, List *event_types, int64 after)
{
	uint32		hash = statement == &select_few_any_tagged;
	ListCell   *cell;

	foreach(cell, tags)
		hash = hash_combine(hash, hash_bytes(lfirst(cell), strlen(lfirst(cell))));
	for (uint32 i = 0; i < Min(nfrequent, MAX_FREQUENT); i++)
		if (frequent[i] == hash)
			return false;
	if (read_tagged(hits, statement, tags, event_types, after, MAX_FEW) < MAX_FEW)
		return true;
	frequent[nfrequent++ % MAX_FREQUENT] = hash;
	return false;
}

/* Adds events of a type between two positions, by the index on types. */
static void
find_typed(EvpgLogHits *hits, Relation log, Snapshot snapshot, const char *type, int64 after)
{
	Relation	index = index_open(EvpgCatalogGet()->event_log_type_index, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(log, NULL);
	IndexScanDesc scan = index_beginscan(log, index, snapshot, NULL, 3, 0);
	ScanKeyData keys[3];
	int			found = 0;

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID, F_TEXTEQ,
						   CStringGetTextDatum(type));
	ScanKeyInit(&keys[1], 2, BTGreaterStrategyNumber, F_INT8GT, Int64GetDatum(after));
	ScanKeyInit(&keys[2], 2, BTLessEqualStrategyNumber, F_INT8LE, Int64GetDatum(hits->upto));
	index_rescan(scan, keys, 3, NULL, 0);
	while (found < MAX_HITS && index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		slot_getsomeattrs(slot, LOG_POSITION + 1);
		add_hit(hits, DatumGetInt64(slot->tts_values[LOG_POSITION]), &slot->tts_tid);
		found++;
	}
	if (found == MAX_HITS)
		hits->upto = hits->hits[hits->count - 1].position;
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, AccessShareLock);
}

static int
compare_hits(const void *left, const void *right)
{
	int64		a = ((const EvpgLogHit *) left)->position;
	int64		b = ((const EvpgLogHit *) right)->position;

	return (a > b) - (a < b);
}

/* Brings the hits into order, each once, and forgets those that lie above the stretch. */
static void
sort_hits(EvpgLogHits *hits)
{
	int			kept = 0;

	qsort(hits->hits, hits->count, sizeof(EvpgLogHit), compare_hits);
	for (int i = 0; i < hits->count && hits->hits[i].position <= hits->upto; i++)
		if (kept == 0 || hits->hits[i].position != hits->hits[kept - 1].position)
			hits->hits[kept++] = hits->hits[i];
	hits->count = kept;
}

/* Adds the events of all items of a filter; few: false if the tags of one have many. */
static bool
find_all(EvpgLogHits *hits, const EvpgLogFilter *filter, Relation log, Snapshot snapshot, int64 after, bool few)
{
	const EvpgCondition *condition = filter->condition;
	int			count = condition == NULL ? 0 : condition->count;
	bool		found = true;

	if (condition == NULL && few)
		return find_few_tagged(hits, &select_few_any_tagged, filter->tags, filter->event_types, after);
	if (condition == NULL)
		find_tagged(hits, &select_any_tagged, filter->tags, filter->event_types, after);
	for (int i = 0; i < count && found; i++)
	{
		const EvpgConditionItem *item = &condition->items[i];
		int64		begin = Max(after, item->after);
		ListCell   *cell;

		if (begin >= hits->upto)
			continue;
		if (!tags_serve(item->tags))
			foreach(cell, item->event_types)
				find_typed(hits, log, snapshot, lfirst(cell), begin);
		else if (few)
			found = find_few_tagged(hits, &select_few_all_tagged, item->tags, item->event_types, begin);
		else
			find_tagged(hits, &select_all_tagged, item->tags, item->event_types, begin);
	}
	return found;
}

/*
 * EvpgLogHitsFind
 *		Finds the events after a position and up to another that a filter may want, under a
 *		snapshot: those of the beginning of the stretch if there are many, where hits->upto
 *		is where it ends.  upto is at most EvpgLogHitsServed.  few: returns false if the tags
 *		that it asks for have many events, and then has found nothing.  The caller has locked
 *		the log since before it asked for that, and is inside EvpgEnter; what is not of the
 *		result is allocated in CurrentMemoryContext.
 */
bool
EvpgLogHitsFind(EvpgLogHits *hits, const EvpgLogFilter *filter, Relation log, Snapshot snapshot, int64 after, int64 upto,
				bool few)
{
	bool		found;

	hits->count = hits->next = 0;
	hits->upto = upto;
	PushActiveSnapshot(snapshot);
	found = find_all(hits, filter, log, snapshot, after, few);
	PopActiveSnapshot();
	sort_hits(hits);
	return found;
}
