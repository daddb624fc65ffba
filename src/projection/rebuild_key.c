/*-------------------------------------------------------------------------
 *
 * rebuild_key.c
 *		Replacing and rebuilding single keys of projections (rules 12 and 13).
 *
 * Both are changes from outside the events: they get a position of their own, so
 * that who catches up by positions sees them.  The order of locks is that of
 * everybody: the consumer of an asynchronous projection, the fence, the key.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "aggregate/aggregate.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/statement.h"
#include "consumer/consumer.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "projection/apply.h"
#include "projection/batch.h"
#include "projection/rebuild_key.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(evpg_projection_put);

static void
refuse_table_projection(const EvpgProjection *projection, const char *action)
{
	if (projection->handler_signature != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot %s a key of projection \"%s\"", action, projection->name),
				 errdetail("It is a table projection: evpg does not know which rows of its tables belong to a key.")));
}

/* Locks a key of a projection whose name is known; *row lives in CurrentMemoryContext. */
static EvpgProjection *
lock_key(const char *name, const char *key, const char *action, EvpgProjected *row)
{
	EvpgProjection *projection;
	bool		owned = (EvpgProjectionFind(name)->mode == EVPG_MODE_ASYNC);

	if (owned)
		(void) EvpgConsumerLock(name, true);
	EvpgFenceEnter();
	if (!owned && EvpgProjectionFind(name)->mode == EVPG_MODE_ASYNC)
		(void) EvpgConsumerLock(name, true);
	/* As it is now that nobody can change it any more. */
	projection = EvpgProjectionFind(name);
	refuse_table_projection(projection, action);
	EvpgProjectedLock(row, projection, key);
	return projection;
}

Datum
evpg_projection_put(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "projection name");
	char	   *key = EvpgArgKey(fcinfo, 1);
	Jsonb	   *state = EvpgArgJsonb(fcinfo, 2, "projection state");
	EvpgScope	scope;
	EvpgProjection *projection;
	EvpgProjected row;

	EvpgProjectionRefuse("put projections");
	EvpgEnter(&scope, "evpg_projection_put()");
	projection = lock_key(name, key, "put", &row);
	if (projection->native && state != NULL && !JB_ROOT_IS_OBJECT(state))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("state of projection \"%s\" must be a JSON object", projection->name)));
	if (state == NULL && row.version == 0)
		EvpgProjectedRemove(&row);
	else if (state != NULL || !row.deleted)
	{
		if (row.deleted)
			EvpgProjectedRevive(&row);
		row.state = state;
		row.deleted = (state == NULL);
		row.version++;
		row.position = EvpgFenceDraw();
		EvpgProjectedWrite(&row);
		EvpgProjectedSend(&row, "put", state);
	}
	EvpgLeave(&scope);
	PG_RETURN_INT64(row.version);
}

/* Folds the events of a key from the first on up to a position; returns how many there are. */
static int64
replay(EvpgProjected *row, int64 upto)
{
	EvpgProjection *projection = row->projection;
	bool		by_id = EvpgProjectionKeyedById(projection);
	List	   *parked = EvpgConsumerParked(projection->name, 0);
	int			next_parked = 0;
	Datum		values[5];
	char		nulls[5] = {' ', ' ', ' ', ' ', ' '};
	Portal		portal;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext event_context = AllocSetContextCreate(caller, "EvpgProject event", ALLOCSET_DEFAULT_SIZES);
	int64		count = 0;

	values[0] = CStringGetTextDatum(row->key);
	nulls[0] = by_id ? ' ' : 'n';
	values[1] = EvpgRegistryArray(projection->aggregate_types);
	nulls[1] = projection->aggregate_types == NIL ? 'n' : ' ';
	values[2] = EvpgRegistryArray(projection->event_types);
	nulls[2] = projection->event_types == NIL ? 'n' : ' ';
	values[3] = Int64GetDatum(projection->start_position);
	values[4] = Int64GetDatum(upto);
	portal = EvpgPlanOpen(EVPG_PLAN_PROJECTION_EVENTS, values, nulls, false);
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

			MemoryContextSwitchTo(event_context);
			EvpgEventFromRow(rows->vals[i], rows->tupdesc, &event);
			if (EvpgProjectionTakes(projection, &event) &&
				!EvpgConsumerSkips(parked, &next_parked, event.position, row->key))
				foreach(key, EvpgProjectKeys(projection, &event))
					ours |= strcmp(lfirst(key), row->key) == 0;
			MemoryContextSwitchTo(caller);
			if (ours)
			{
				EvpgProjectFold(row, &event, event_context, false);
				count++;
			}
			MemoryContextReset(event_context);
			CHECK_FOR_INTERRUPTS();
		}
		SPI_freetuptable(rows);
	}
	EvpgPlanClose(portal);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(event_context);
	return count;
}

/*
 * EvpgKeyRebuild
 *		Folds the events of a key again from the first on, and returns how many
 *		there are.  The row is locked before the events are read, so what is not
 *		seen then is applied by its appender afterwards; of an asynchronous
 *		projection, up to its checkpoint.
 */
int64
EvpgKeyRebuild(const char *name, const char *key)
{
	EvpgProjected row;
	EvpgProjection *projection = lock_key(name, key, "rebuild", &row);
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
	EvpgProjecting = true;
	PG_TRY();
	{
		count = replay(&row, projection->mode == EVPG_MODE_ASYNC && EvpgConsumerRead(name, &consumer) ?
					   consumer.checkpoint : PG_INT64_MAX);
	}
	PG_FINALLY();
	{
		EvpgProjecting = false;
	}
	PG_END_TRY();
	EvpgConsumerUnpark(name, key);

	if (count == 0 && row.generation == 1)
		EvpgProjectedRemove(&row);
	else if (count == 0)
	{
		/* Nothing to fold: gone, and silence. */
		row.deleted = true;
		row.version = 1;
		row.position = EvpgFenceDraw();
		if (existed)
			EvpgProjectedWrite(&row);
	}
	else
	{
		row.version = count;
		row.position = EvpgFenceDraw();
		EvpgProjectedWrite(&row);
		EvpgProjectedSend(&row, "rebuild", row.state);
	}
	return count;
}
