/*-------------------------------------------------------------------------
 *
 * rebuild_key.c
 *		Replacing and rebuilding single keys of projections (rules 12 and 13).
 *
 * Both are changes from outside the events: they get a position of their own, so
 * that a client that catches up by positions sees them.  The order of locks is: the
 * consumer of an asynchronous projection, the fence, the key.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/names.h"
#include "catalog/pg_type.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/statement.h"
#include "consumer/consumer.h"
#include "consumer/parked_event.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "projection/apply.h"
#include "projection/rebuild_key.h"
#include "usercode/guard.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(evpg_put_projection);

/* Raises an error for a projection with a handler, whose rows of a key are not known. */
static void
refuse_table_projection(const EvpgProjection *projection, const char *action)
{
	if (projection->handler_signature != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot %s a key of projection \"%s\"", action, projection->name),
				 errdetail("It is a table projection: evpg does not know which rows of its tables belong to a key.")));
}

/* Locks a key of a projection and what comes before it, and reads its row, into CurrentMemoryContext. */
static EvpgProjection *
lock_projection_key(const char *name, const char *key, const char *action, EvpgProjectionRow *row)
{
	EvpgProjection *projection;
	bool		owned = (EvpgProjectionGet(name, false)->mode == EVPG_MODE_ASYNC);

	if (owned)
		(void) EvpgConsumerLock(name, true);
	EvpgFenceEnter();
	if (!owned && EvpgProjectionGet(name, false)->mode == EVPG_MODE_ASYNC)
		(void) EvpgConsumerLock(name, true);
	/* As it is now that no other session can change it. */
	projection = EvpgProjectionGet(name, false);
	refuse_table_projection(projection, action);
	EvpgProjectionRowLock(row, projection, key);
	return projection;
}

/*
 * evpg_put_projection(name, key, state)
 *		Replaces the state of a key, or deletes the key if state is NULL, and sends a
 *		frame; returns the new version of the row.  Locks the key until the end of the
 *		transaction.
 */
Datum
evpg_put_projection(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "projection name");
	char	   *key = EvpgArgKey(fcinfo, 1);
	Jsonb	   *state = EvpgArgJsonb(fcinfo, 2, "projection state");
	EvpgScope	scope;
	EvpgProjection *projection;
	EvpgProjectionRow row;

	EvpgRefuseInProjection("put projections");
	EvpgEnter(&scope, "evpg_put_projection()");
	projection = lock_projection_key(name, key, "put", &row);
	if (projection->has_module && state != NULL && !JB_ROOT_IS_OBJECT(state))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("state of projection \"%s\" must be a JSON object", projection->name)));
	if (state == NULL && row.version == 0)
		EvpgProjectionRowRemove(&row);
	else if (state != NULL || !row.deleted)
	{
		if (row.deleted)
			EvpgProjectionRowRevive(&row);
		row.state = state;
		row.deleted = (state == NULL);
		row.version++;
		row.position = EvpgFenceDrawPositions(1);
		EvpgProjectionRowWrite(&row);
		EvpgProjectionRowSend(&row, "put", state);
	}
	EvpgLeave(&scope);
	PG_RETURN_INT64(row.version);
}

static EvpgStatement select_projection_events = {
	.text = "SELECT *"
	" FROM evpg.event e"
	" WHERE ($1 IS NULL OR e.aggregate_id = $1)"
	" AND ($2 IS NULL OR e.aggregate_type = ANY ($2))"
	" AND ($3 IS NULL OR e.type = ANY ($3))"
	" AND e.position > $4 AND e.position <= $5"
	" ORDER BY e.position",
	.types = {TEXTOID, TEXTARRAYOID, TEXTARRAYOID, INT8OID, INT8OID}
};

/* Applies the events of a key from the first up to a position to its empty row; returns how many there are. */
static int64
replay_key(EvpgProjectionRow *row, int64 upto)
{
	EvpgProjection *projection = row->projection;
	bool		by_id = EvpgProjectionIsKeyedById(projection);
	List	   *parked = EvpgParkedEventList(projection->name, 0);
	EvpgUpcasters *upcasters = EvpgUpcastersGet();
	List	   *event_types = EvpgUpcastStoredTypes(upcasters, projection->event_types);
	int			next_parked = 0;
	Datum		values[5];
	char		nulls[5] = {' ', ' ', ' ', ' ', ' '};
	Portal		portal;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "EvpgRebuildKey", ALLOCSET_DEFAULT_SIZES);
	EvpgApplyScratch scratch;
	int64		count = 0;

	MemoryContextSwitchTo(context);
	EvpgApplyScratchInit(&scratch);
	MemoryContextSwitchTo(caller);
	values[0] = CStringGetTextDatum(row->key);
	nulls[0] = by_id ? ' ' : 'n';
	values[1] = EvpgNamesToArray(projection->aggregate_types);
	nulls[1] = projection->aggregate_types == NIL ? 'n' : ' ';
	values[2] = EvpgNamesToArray(event_types);
	nulls[2] = event_types == NIL ? 'n' : ' ';
	values[3] = Int64GetDatum(projection->start_position);
	values[4] = Int64GetDatum(upto);
	portal = EvpgStatementOpen(&select_projection_events, values, nulls, false);
	for (;;)
	{
		SPITupleTable *rows;

		SPI_cursor_fetch(portal, true, 1000);
		rows = SPI_tuptable;
		if (SPI_processed == 0)
			break;
		for (uint64 i = 0; i < rows->numvals; i++)
		{
			EvpgEvent	event;
			bool		ours = false;
			ListCell   *key;

			MemoryContextSwitchTo(scratch.context);
			EvpgEventFromRow(rows->vals[i], rows->tupdesc, &event);
			EvpgUpcastMark(upcasters, &event);
			if (EvpgProjectionTakes(projection, &event) &&
				!EvpgParkedEventIsSkipped(parked, &next_parked, event.position, row->key))
			{
				EvpgUpcastEvent(&event);
				foreach(key, EvpgApplyFindKeys(projection, &event))
					ours |= strcmp(lfirst(key), row->key) == 0;
			}
			MemoryContextSwitchTo(caller);
			if (ours)
			{
				EvpgApplyReducer(row, &event, &scratch, false);
				count++;
			}
			MemoryContextReset(scratch.context);
			CHECK_FOR_INTERRUPTS();
		}
		SPI_freetuptable(rows);
	}
	EvpgStatementClose(portal);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	return count;
}

/*
 * EvpgRebuildKey
 *		Applies the events of a key again from the first on, sends a frame, and returns
 *		how many there are.  The row is locked before the events are read, so an event
 *		that is not seen then is applied by its appender afterwards; of an asynchronous
 *		projection, events up to its checkpoint are applied.  The caller is inside
 *		EvpgEnter and owns nothing.
 */
int64
EvpgRebuildKey(const char *name, const char *key)
{
	EvpgProjectionRow row;
	EvpgProjection *projection = lock_projection_key(name, key, "rebuild", &row);
	bool		existed = !row.deleted;
	EvpgConsumer consumer;
	volatile int64 count = 0;

	EvpgProjectionRequireCode(projection);
	if (row.version > 0)
		row.generation++;
	row.version = 0;
	row.position = 0;
	row.state = NULL;
	row.deleted = false;
	EvpgInsideProjection = true;
	PG_TRY();
	{
		count = replay_key(&row, projection->mode == EVPG_MODE_ASYNC && EvpgConsumerRead(name, &consumer) ?
						   consumer.checkpoint : PG_INT64_MAX);
	}
	PG_FINALLY();
	{
		EvpgInsideProjection = false;
	}
	PG_END_TRY();
	EvpgParkedEventDelete(name, key);

	if (count == 0 && row.generation == 1)
		EvpgProjectionRowRemove(&row);
	else if (count == 0)
	{
		/* No event is left, so the key is deleted, without a frame. */
		row.deleted = true;
		row.version = 1;
		row.position = EvpgFenceDrawPositions(1);
		if (existed)
			EvpgProjectionRowWrite(&row);
	}
	else
	{
		row.version = count;
		row.position = EvpgFenceDrawPositions(1);
		EvpgProjectionRowWrite(&row);
		EvpgProjectionRowSend(&row, "rebuild", row.state);
	}
	return count;
}
