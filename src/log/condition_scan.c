/*-------------------------------------------------------------------------
 *
 * condition_scan.c
 *		Reads all events that match a condition, in order of position, each once.
 *
 * If all items have tags, and the index on tags exists, it tells the positions of the
 * events that match each item; then the index on positions, given the positions of all
 * items at once, leads to the events in their order.  Else one scan of the log returns
 * the events that may match any item, by the index on types if all items have types and
 * it exists, and each is compared with the items.
 *
 * Not by the index on tags under SERIALIZABLE, where a look into it conflicts with
 * appends of any tags.
 *
 * Locks: none but those of the scan.  Memory: CurrentMemoryContext, with eight bytes for
 * each event that the index on tags has found.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/catalog.h"
#include "base/names.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "log/condition.h"
#include "log/condition_scan.h"
#include "log/event_log.h"
#include "miscadmin.h"

struct EvpgConditionScan
{
	const EvpgCondition *condition;
	EvpgLogFilter filter;		/* what it lets through may match */
	EvpgLogScan *scan;
	bool		upcasts;		/* types need not be those of the log */
};

/*
 * Always by the index on tags: who reads all that match has to read them in any case, and
 * a plan for each item would cost more than to read a few.  So the position is no
 * condition of an index.
 */
static EvpgStatement select_tagged_positions = {
	.text = "SELECT array_agg(e.position)"
	" FROM evpg.event_log e"
	" WHERE e.tags @> $1 AND ($2 = 0 OR e.position > $2) AND ($3 IS NULL OR e.type = ANY ($3)) AND ($4 IS NULL OR EXISTS"
	" (SELECT FROM evpg.stream s WHERE s.stream_id = e.stream_id AND s.aggregate_type = ANY ($4)))",
	.types = {TEXTARRAYOID, INT8OID, TEXTARRAYOID, TEXTARRAYOID},
	.by_bitmap = true
};

/* Returns the positions of the events that match an item with tags, as bigint[]; NULL if there are none. */
static ArrayType *
find_positions(const EvpgConditionItem *item)
{
	MemoryContext caller = CurrentMemoryContext;
	ArrayType  *positions = NULL;
	List	   *event_types = EvpgUpcastStoredTypes(EvpgUpcastersGet(), item->event_types);
	Datum		values[4] = {
		EvpgNamesToArray(item->tags),
		Int64GetDatum(item->after),
		EvpgNamesToArray(event_types),
		EvpgNamesToArray(item->aggregate_types)
	};
	char		nulls[4] = {' ', ' ', event_types == NIL ? 'n' : ' ', item->aggregate_types == NIL ? 'n' : ' '};
	Datum		found;

	(void) EvpgStatementRead(&select_tagged_positions, values, nulls);
	if (EvpgResultDatum(0, 1, &found))
	{
		MemoryContext spi = MemoryContextSwitchTo(caller);

		positions = DatumGetArrayTypePCopy(found);
		MemoryContextSwitchTo(spi);
	}
	EvpgStatementDone();
	return positions;
}

/* Returns the positions of the events that match any item of a condition, all of which have tags, as bigint[]. */
static ArrayType *
find_all_positions(const EvpgCondition *condition)
{
	Datum	   *all = NULL;
	int			count = 0;

	for (int i = 0; i < condition->count; i++)
	{
		ArrayType  *positions = find_positions(&condition->items[i]);
		Datum	   *found;
		int			nfound;

		if (positions == NULL)
			continue;
		if (condition->count == 1)
			return positions;
		deconstruct_array(positions, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &found, NULL, &nfound);
		all = all == NULL ? palloc(sizeof(Datum) * nfound) : repalloc_huge(all, sizeof(Datum) * (Size) (count + nfound));
		memcpy(all + count, found, sizeof(Datum) * nfound);
		count += nfound;
		pfree(found);
		pfree(positions);
	}
	return construct_array(all, count, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE);
}

/* Fills a filter that lets through all events that match any item. */
static void
fill_filter(const EvpgCondition *condition, EvpgLogFilter *filter)
{
	bool		all_have_tags = true;
	bool		all_have_types = true;
	bool		all_have_aggregates = true;

	filter->after = condition->items[0].after;
	filter->upto = PG_INT64_MAX;
	for (int i = 0; i < condition->count; i++)
	{
		const EvpgConditionItem *item = &condition->items[i];

		filter->after = Min(filter->after, item->after);
		all_have_tags &= item->tags != NIL;
		all_have_types &= item->event_types != NIL;
		all_have_aggregates &= item->aggregate_types != NIL;
	}
	if (all_have_tags && OidIsValid(EvpgCatalogGet()->event_log_tags_index) && !IsolationIsSerializable())
	{
		filter->positions = find_all_positions(condition);
		return;
	}
	for (int i = 0; i < condition->count; i++)
	{
		const EvpgConditionItem *item = &condition->items[i];

		/* An event that matches has all of them, so this one. */
		if (all_have_tags)
			filter->tags = lappend(filter->tags, linitial(item->tags));
		if (all_have_types)
			filter->event_types = list_concat(filter->event_types, item->event_types);
		if (all_have_aggregates)
			filter->aggregate_types = list_concat(filter->aggregate_types, item->aggregate_types);
	}
}

/*
 * EvpgConditionScanBegin
 *		Begins to read the events that match a condition, in order of position, under
 *		the active snapshot.  The condition must outlive the scan.  The caller ends it
 *		with EvpgConditionScanEnd.
 */
EvpgConditionScan *
EvpgConditionScanBegin(const EvpgCondition *condition)
{
	EvpgConditionScan *scan = palloc0(sizeof(EvpgConditionScan));

	scan->condition = condition;
	fill_filter(condition, &scan->filter);
	scan->filter.leaves_upcasting = true;
	scan->scan = EvpgLogScanAll(&scan->filter);
	scan->upcasts = EvpgUpcastersGet() != NULL;
	return scan;
}

/* Fetches the next event of a scan, which lives until the next call; false at the end. */
bool
EvpgConditionScanNext(EvpgConditionScan *scan, EvpgEvent *event)
{
	for (;;)
	{
		if (EvpgLogScanNext(scan->scan, event))
		{
			/* The index on tags has not seen types that events are read as. */
			if ((scan->filter.positions != NULL && !scan->upcasts) || EvpgConditionMatches(scan->condition, event))
			{
				EvpgLogScanUpcast(scan->scan, event);
				return true;
			}
		}
		/* After many events that are not wanted a scan pauses. */
		else if (EvpgLogScanReached(scan->scan) >= scan->filter.upto)
			return false;
		CHECK_FOR_INTERRUPTS();
	}
}

/* Ends a scan; after an ERROR the resource owner and the memory context do that. */
void
EvpgConditionScanEnd(EvpgConditionScan *scan)
{
	EvpgLogScanEnd(scan->scan);
	pfree(scan);
}
