/*-------------------------------------------------------------------------
 *
 * project.c
 *		Applies events to the keys of projections (rules 11 to 13), and rebuilds
 *		and replaces single keys.
 *
 * The row of (projection, key) is the guard of a key: whoever changes it has it
 * locked, a missing one is put there first, so applies to a key are serial.
 * Table projections have such a row too, without a state.  Besides, the first
 * evpg.max_key_locks keys of a transaction are locked by an advisory lock of
 * evpg's own; later ones send frames without data.  The keys of a command are
 * locked in one order, so two commands cannot deadlock over them.
 *
 * A row that was deleted stays, marked, so that (generation, version) never
 * goes back: the generation rises when a key comes back or is rebuilt, the
 * version counts the applies of a generation.
 *
 * An event is applied in the transaction that appends it, by everyone who
 * appends, so it is applied once.  Applies to a key come in the order of its
 * locks, which for a key over several streams need not be that of positions;
 * a row keeps the highest.
 *
 * Memory: one context for a call, one for a key below it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "access/xact.h"
#include "catalog.h"
#include "check.h"
#include "errors.h"
#include "executor/executor.h"
#include "fence.h"
#include "miscadmin.h"
#include "native.h"
#include "plan.h"
#include "project.h"
#include "projection.h"
#include "registry.h"
#include "row.h"
#include "settings.h"
#include "stream.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evpg_projection_put);
PG_FUNCTION_INFO_V1(evpg_rebuild_projection);

/* An event for a key of a projection. */
typedef struct Work
{
	EvpgProjection *projection;
	const char *key;
	const EvpgEvent *event;
} Work;

/* The row of a key, locked. */
typedef struct Row
{
	EvpgProjection *projection;
	const char *key;
	bool		ordered;		/* has the advisory lock: frames may have data */
	Jsonb	   *state;			/* NULL: none */
	int			generation;
	int64		version;		/* 0: never applied */
	int64		position;
	TimestampTz updated_at;
	bool		deleted;
	HeapTuple	tuple;			/* as it is stored */
} Row;

/* What a projection made of an event. */
typedef struct Applied
{
	Jsonb	   *state;
	bool		deleted;
	bool		silent;
	Jsonb	   *delta;			/* NULL: null */
} Applied;

/* Advisory key locks of the current transaction; a rollback to a savepoint only makes it too high. */
static int	key_locks = 0;

static void
forget_key_locks(XactEvent event, void *arg)
{
	key_locks = 0;
}

/* Called once, from _PG_init. */
void
EvpgProjectInit(void)
{
	RegisterXactCallback(forget_key_locks, NULL);
}

/* ------------------------------------------------------------------ whose code is running */

typedef struct Frame
{
	ErrorContextCallback callback;
	const char *projection;
	const char *key;
	const EvpgEvent *event;
} Frame;

static void
describe_frame(void *arg)
{
	Frame	   *frame = arg;

	if (frame->key != NULL)
		errcontext("projection \"%s\", key \"%s\", event \"%s\" of stream \"%s\" of aggregate \"%s\" at position " INT64_FORMAT,
				   frame->projection, frame->key, frame->event->type, frame->event->aggregate_id,
				   frame->event->aggregate_type, frame->event->position);
	else
		errcontext("key of projection \"%s\", event \"%s\" of stream \"%s\" of aggregate \"%s\" at position " INT64_FORMAT,
				   frame->projection, frame->event->type, frame->event->aggregate_id,
				   frame->event->aggregate_type, frame->event->position);
}

static void
push_frame(Frame *frame, const EvpgProjection *projection, const char *key, const EvpgEvent *event)
{
	frame->projection = projection->name;
	frame->key = key;
	frame->event = event;
	frame->callback.callback = describe_frame;
	frame->callback.arg = frame;
	frame->callback.previous = error_context_stack;
	error_context_stack = &frame->callback;
}

static void
pop_frame(Frame *frame)
{
	error_context_stack = frame->callback.previous;
}

/* ------------------------------------------------------------------ rows */

/* Columns of evpg.projection_state, see sql/evpg--1.0.sql. */
#define STATE_VERSION		1
#define STATE_POSITION		2
#define STATE_UPDATED_AT	3
#define STATE_GENERATION	4
#define STATE_DELETED		5
#define STATE_STATE			8

static void
key_parameters(const Row *row, Datum *values)
{
	values[0] = CStringGetTextDatum(row->projection->name);
	values[1] = CStringGetTextDatum(row->key);
}

static Datum
get_value(const Row *row, int column, bool *isnull)
{
	return EvpgRowValue(EvpgCatalogGet()->projection_state, row->tuple, column, isnull);
}

/* Locks the row of a key and reads it, in CurrentMemoryContext; makes it if it is missing. */
static void
lock_row(Row *row, EvpgProjection *projection, const char *key)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	Datum		value;
	bool		isnull;

	memset(row, 0, sizeof(Row));
	row->projection = projection;
	row->key = key;
	/* Another hash than that of a stream of the same names. */
	if (projection->broadcast != EVPG_BROADCAST_NONE && key_locks < EvpgMaxKeyLocks)
	{
		if (EvpgLockHash(~EvpgHashPair(projection->name, key)))
			key_locks++;
		row->ordered = true;
	}
	while ((row->tuple = EvpgRowFind(catalog->projection_state, catalog->projection_state_key_index,
									 projection->name, key, GetTransactionSnapshot(), true)) == NULL)
	{
		Datum		values[2];

		key_parameters(row, values);
		(void) EvpgPlanRun(EVPG_PLAN_PROJECTED_CREATE, values, NULL);
		EvpgPlanDone();
		CHECK_FOR_INTERRUPTS();
	}
	row->generation = DatumGetInt32(get_value(row, STATE_GENERATION, &isnull));
	row->version = DatumGetInt64(get_value(row, STATE_VERSION, &isnull));
	row->position = DatumGetInt64(get_value(row, STATE_POSITION, &isnull));
	row->updated_at = DatumGetTimestampTz(get_value(row, STATE_UPDATED_AT, &isnull));
	row->deleted = DatumGetBool(get_value(row, STATE_DELETED, &isnull));
	value = get_value(row, STATE_STATE, &isnull);
	if (!isnull)
		row->state = DatumGetJsonbPCopy(value);
}

/* Writes a locked row; its time advances, also within a transaction. */
static void
write_row(Row *row)
{
	int			columns[6] = {
		STATE_VERSION, STATE_POSITION, STATE_UPDATED_AT, STATE_GENERATION, STATE_DELETED, STATE_STATE
	};
	bool		nulls[6] = {false, false, false, false, false, row->state == NULL};
	Datum		values[6];

	row->updated_at = Max(GetCurrentTimestamp(), row->updated_at + 1);
	values[0] = Int64GetDatum(row->version);
	values[1] = Int64GetDatum(row->position);
	values[2] = TimestampTzGetDatum(row->updated_at);
	values[3] = Int32GetDatum(row->generation);
	values[4] = BoolGetDatum(row->deleted);
	values[5] = PointerGetDatum(row->state);
	row->tuple = EvpgRowReplace(EvpgCatalogGet()->projection_state, row->tuple, 6, columns, values, nulls);
}

static void
remove_row(const Row *row)
{
	Datum		values[2];

	key_parameters(row, values);
	(void) EvpgPlanRun(EVPG_PLAN_PROJECTED_REMOVE, values, NULL);
	EvpgPlanDone();
}

/* A row that is not there comes to be: a new generation, unless it is the first. */
static void
bring_back(Row *row)
{
	if (row->version > 0)
		row->generation++;
	row->version = 0;
	row->deleted = false;
	row->state = NULL;
}

static void
send_frame(const Row *row, const char *name, Jsonb *data)
{
	EvpgFrame	frame = {
		.event = name,
		.projection = row->projection->name,
		.key = row->key,
		.generation = row->generation,
		.version = row->version,
		.position = row->position,
		.deleted = row->deleted,
		.with_data = row->projection->broadcast == EVPG_BROADCAST_DELTA,
		.truncated = !row->ordered && row->projection->broadcast == EVPG_BROADCAST_DELTA,
		.data = data
	};

	if (row->projection->broadcast != EVPG_BROADCAST_NONE)
		EvpgBroadcastSend(&frame);
}

/* ------------------------------------------------------------------ applying */

static void
project_native(EvpgProjection *projection, const Jsonb *state, const EvpgEvent *event, Applied *applied)
{
	const evpg_project_entry *entry = evpg_find_projected(&projection->module, event->type);
	EvpgJsonOwner *json = EvpgJsonOwn(NULL);
	evpg_result *result = EvpgNativeResult();
	EvpgNativeEvent native;

	json->json = EvpgJsonFromJsonb(state, "projection state");
	if (json_object_get_type(json->json) != json_type_object)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("state of projection \"%s\" is not a JSON object", projection->name)));
	EvpgNativeEventInit(&native);
	EvpgNativeEventSet(&native, event, NULL);
	entry->call(result, json->json, &native.event);
	if (result->failed)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("projection \"%s\" failed: %s", projection->name,
						EvpgNativeText(EvpgNativeClip(result)->message, "failure message"))));
	applied->deleted = result->deleted;
	applied->state = result->deleted ? NULL : EvpgJsonToJsonb(json->json, "projection state");
	if (applied->state != NULL)
		EvpgJsonbCheckLimits(applied->state, "projection state");
	applied->silent = (result->delta == NULL);
	applied->delta = result->delta == NULL ? NULL : EvpgJsonToJsonb(result->delta, "delta");
	EvpgNativeEventClear(&native);
	json_object_put(EvpgJsonLetGo(json));
	evpg_result_reset(result);
}

/* A reducer that returns jsonb says the new state, which is what listeners get; NULL deletes. */
static void
project_by_reducer(EvpgProjection *projection, EvpgFunction *reducer, Jsonb *state, const EvpgEvent *event,
				   Applied *applied)
{
	Datum		args[2] = {JsonbPGetDatum(state), EvpgEventDatum(event)};
	Datum	   *rows;
	bool	   *nulls;
	bool		isnull = EvpgFunctionCall(reducer, args, true, 1, &rows, &nulls) != 1 || nulls[0];

	if (reducer->result_type == JSONBOID)
	{
		applied->state = isnull ? NULL : DatumGetJsonbP(rows[0]);
		applied->delta = applied->state;
	}
	else if (!isnull)
	{
		HeapTupleHeader tuple = DatumGetHeapTupleHeader(rows[0]);
		Datum		value;

		value = GetAttributeByNum(tuple, 1, &isnull);
		applied->state = isnull ? NULL : DatumGetJsonbP(value);
		value = GetAttributeByNum(tuple, 2, &isnull);
		applied->delta = isnull ? NULL : DatumGetJsonbP(value);
		applied->silent = isnull;
	}
	applied->deleted = (applied->state == NULL);
	if (applied->state != NULL)
		EvpgJsonbCheckLimits(applied->state, "projection state");
}

/* A handler writes the user's own tables, and says the delta; NULL is silent. */
static void
project_by_handler(EvpgFunction *handler, const EvpgEvent *event, Applied *applied)
{
	Datum		args[1] = {EvpgEventDatum(event)};
	Datum	   *rows;
	bool	   *nulls;

	applied->silent = EvpgFunctionCall(handler, args, false, 1, &rows, &nulls) != 1 || nulls[0];
	if (!applied->silent)
		applied->delta = DatumGetJsonbP(rows[0]);
}

/* Applies an event to a locked row, in memory. */
static void
apply(Row *row, const EvpgEvent *event, Applied *applied)
{
	EvpgProjection *projection = row->projection;
	Frame		frame;

	memset(applied, 0, sizeof(Applied));
	if (row->deleted)
		bring_back(row);
	push_frame(&frame, projection, row->key, event);
	if (!projection->native && projection->handler_signature != NULL)
		project_by_handler(EvpgProjectionFunction(projection), event, applied);
	else
	{
		Jsonb	   *state = row->state != NULL ? row->state : projection->initial_state;

		if (projection->native)
			project_native(projection, state, event, applied);
		else
			project_by_reducer(projection, EvpgProjectionFunction(projection), state, event, applied);
		row->state = applied->state;
	}
	pop_frame(&frame);
	row->deleted = applied->deleted;
	row->version++;
	row->position = Max(row->position, event->position);
}

static int
compare_work(const void *a, const void *b)
{
	const Work *left = a;
	const Work *right = b;
	int			order = strcmp(left->projection->name, right->projection->name);

	if (order == 0)
		order = strcmp(left->key, right->key);
	if (order == 0)
		order = left->event->position < right->event->position ? -1 :
			left->event->position > right->event->position;
	return order;
}

/* Whether any projection takes any of the events. */
bool
EvpgProjectAny(const EvpgEvent *events, int count)
{
	ListCell   *cell;

	foreach(cell, EvpgProjections())
		for (int i = 0; i < count; i++)
		if (EvpgProjectionTakes(lfirst(cell), &events[i]))
			return true;
	return false;
}

/* The keys that events are to be applied to, in the order in which they are locked. */
static Work *
collect(List *projections, const EvpgEvent *events, int count, int *nwork)
{
	int			space = 16;
	Work	   *work = palloc(sizeof(Work) * space);
	ListCell   *cell;

	*nwork = 0;
	foreach(cell, projections)
	{
		EvpgProjection *projection = lfirst(cell);

		for (int i = 0; i < count; i++)
		{
			Frame		frame;
			List	   *keys;
			ListCell   *key;

			if (!EvpgProjectionTakes(projection, &events[i]))
				continue;
			push_frame(&frame, projection, NULL, &events[i]);
			keys = EvpgProjectionKeys(projection, &events[i]);
			pop_frame(&frame);
			foreach(key, keys)
			{
				if (*nwork == space)
					work = repalloc_huge(work, sizeof(Work) * (space *= 2));
				work[*nwork].projection = projection;
				work[*nwork].key = lfirst(key);
				work[*nwork].event = &events[i];
				(*nwork)++;
			}
		}
	}
	qsort(work, *nwork, sizeof(Work), compare_work);
	return work;
}

/*
 * Applies an event to a locked row, whose state is kept in CurrentMemoryContext
 * while all else goes with event_context; sends its frame if asked.
 */
static void
fold(Row *row, const EvpgEvent *event, MemoryContext event_context, bool send)
{
	MemoryContext old = MemoryContextSwitchTo(event_context);
	Jsonb	   *before = row->state;
	Applied		applied;

	apply(row, event, &applied);
	if (send && !applied.silent)
		send_frame(row, row->projection->event_name, applied.delta);
	MemoryContextSwitchTo(old);
	if (row->state != NULL)
	{
		row->state = palloc(VARSIZE_ANY(applied.state));
		memcpy(row->state, applied.state, VARSIZE_ANY(applied.state));
	}
	if (before != NULL)
		pfree(before);
	CHECK_FOR_INTERRUPTS();
}

/* Applies all that there is for the first key of work, and returns how much that is. */
static int
apply_key(const Work *work, int nwork)
{
	MemoryContext event_context = AllocSetContextCreate(CurrentMemoryContext, "EvpgProject event", ALLOCSET_DEFAULT_SIZES);
	Row			row;
	int			done = 0;

	lock_row(&row, work->projection, work->key);
	for (; done < nwork && work[done].projection == work->projection && strcmp(work[done].key, work->key) == 0; done++)
	{
		fold(&row, work[done].event, event_context, true);
		MemoryContextReset(event_context);
	}
	write_row(&row);
	return done;
}

/*
 * EvpgProject
 *		Applies events that this transaction has just appended to all
 *		projections that take them.
 */
void
EvpgProject(const EvpgEvent *events, int count)
{
	List	   *projections = EvpgProjections();
	MemoryContext context;
	MemoryContext key_context;
	MemoryContext old;

	if (projections == NIL)
		return;
	context = AllocSetContextCreate(CurrentMemoryContext, "EvpgProject", ALLOCSET_DEFAULT_SIZES);
	key_context = AllocSetContextCreate(context, "EvpgProject key", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	EvpgProjecting = true;
	PG_TRY();
	{
		int			nwork;
		Work	   *work = collect(projections, events, count, &nwork);

		MemoryContextSwitchTo(key_context);
		for (int done = 0; done < nwork; MemoryContextReset(key_context))
			done += apply_key(&work[done], nwork - done);
	}
	PG_FINALLY();
	{
		EvpgProjecting = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* ------------------------------------------------------------------ single keys */

/*
 * A change from outside the events gets a position of its own, so that who
 * catches up by positions sees it.  The caller entered the fence before it
 * locked the key, as a command does, so that the two cannot deadlock.
 */
static void
draw_position(Row *row)
{
	row->position = EvpgFenceDraw();
}

static void
refuse_table_projection(const EvpgProjection *projection, const char *action)
{
	if (projection->handler_signature != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot %s a key of projection \"%s\"", action, projection->name),
				 errdetail("It is a table projection: evpg does not know which rows of its tables belong to a key.")));
}

Datum
evpg_projection_put(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "projection name");
	char	   *key = EvpgArgKey(fcinfo, 1);
	Jsonb	   *state = EvpgArgJsonb(fcinfo, 2, "projection state");
	EvpgScope	scope;
	EvpgProjection *projection;
	Row			row;

	EvpgProjectionRefuse("put projections");
	EvpgEnter(&scope, "evpg_projection_put()");
	projection = EvpgProjectionFind(name);
	refuse_table_projection(projection, "put");
	if (projection->native && state != NULL && !JB_ROOT_IS_OBJECT(state))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("state of projection \"%s\" must be a JSON object", projection->name)));
	EvpgFenceEnter();
	lock_row(&row, projection, key);
	if (state == NULL && row.version == 0)
		remove_row(&row);
	else if (state != NULL || !row.deleted)
	{
		if (row.deleted)
			bring_back(&row);
		row.state = state;
		row.deleted = (state == NULL);
		row.version++;
		draw_position(&row);
		write_row(&row);
		send_frame(&row, "put", state);
	}
	EvpgLeave(&scope);
	PG_RETURN_INT64(row.version);
}

/* Folds the events of a key from the first on; returns how many there are. */
static int64
replay(Row *row)
{
	EvpgProjection *projection = row->projection;
	bool		by_id = EvpgProjectionKeyedById(projection);
	Datum		values[3];
	char		nulls[3] = {' ', ' ', ' '};
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
	portal = EvpgPlanOpen(EVPG_PLAN_PROJECTION_EVENTS, values, nulls);
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
			if (EvpgProjectionTakes(projection, &event))
				foreach(key, EvpgProjectionKeys(projection, &event))
					ours |= strcmp(lfirst(key), row->key) == 0;
			MemoryContextSwitchTo(caller);
			if (ours)
			{
				fold(row, &event, event_context, false);
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
 * The row is locked before the events are read, so what is not seen then is
 * applied by its appender afterwards.
 */
Datum
evpg_rebuild_projection(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "projection name");
	char	   *key = EvpgArgKey(fcinfo, 1);
	EvpgScope	scope;
	EvpgProjection *projection;
	Row			row;
	bool		existed;
	volatile int64 count = 0;

	EvpgProjectionRefuse("rebuild projections");
	EvpgEnter(&scope, "evpg_rebuild_projection()");
	projection = EvpgProjectionFind(name);
	refuse_table_projection(projection, "rebuild");
	EvpgFenceEnter();
	lock_row(&row, projection, key);
	existed = !row.deleted;
	if (row.version > 0)
		row.generation++;
	row.version = 0;
	row.position = 0;
	row.state = NULL;
	row.deleted = false;
	EvpgProjecting = true;
	PG_TRY();
	{
		count = replay(&row);
	}
	PG_FINALLY();
	{
		EvpgProjecting = false;
	}
	PG_END_TRY();

	if (count == 0 && row.generation == 1)
		remove_row(&row);
	else if (count == 0)
	{
		/* Nothing to fold: gone, and silence. */
		row.deleted = true;
		row.version = 1;
		draw_position(&row);
		if (existed)
			write_row(&row);
	}
	else
	{
		row.version = count;
		draw_position(&row);
		write_row(&row);
		send_frame(&row, "rebuild", row.state);
	}
	EvpgLeave(&scope);
	PG_RETURN_INT64(count);
}
