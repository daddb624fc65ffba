/*-------------------------------------------------------------------------
 *
 * apply.c
 *		Applies events to the keys of projections (rules 11 and 12).
 *
 * EvpgApplyReducer applies one event to the row of one key, EvpgApplyHandler to
 * the rows of all its keys at once, for a handler, which sees an event once.
 * Both serve every caller: the transaction that appends the event (here), a
 * batch (batch.c), a rebuild.
 *
 * An event is applied to an inline projection in the transaction that appends it,
 * so it is applied once.  The keys of a command are locked in one order, so two
 * commands cannot deadlock over them; a handler is called in the order of
 * positions, once all keys of its projection are locked.
 * Applies to a key come in the order of its locks, which for a key over several
 * streams need not be that of positions; a row keeps the highest.
 *
 * Memory: one context for a call, one for a key below it, one for an event.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "base/arguments.h"
#include "base/error_context.h"
#include "base/errors.h"
#include "base/names.h"
#include "broadcast/frame_ring.h"
#include "consumer/last_worker.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "projection/apply.h"
#include "usercode/function_call.h"
#include "usercode/guard.h"
#include "usercode/module_callback.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* An event for a key of a projection. */
typedef struct KeyEvent
{
	EvpgProjection *projection;
	const char *key;
	const EvpgEvent *event;
	EvpgProjectionRow *row;		/* once it is locked, for a handler */
} KeyEvent;

/* What a projection made of an event. */
typedef struct ApplyResult
{
	bool		deleted;
	bool		silent;
	Jsonb	   *state;			/* not of a projection in a module */
	Jsonb	   *delta;			/* NULL: null */
} ApplyResult;

/* ------------------------------------------------------------------ whose code is running */

/* What user code is working on: if it fails, this is where. */
int64		EvpgApplyCurrentPosition = 0;	/* 0: no event */
const char *EvpgApplyCurrentKey = NULL; /* NULL: not known yet */

static char last_key[EVPG_MAX_ID + 1];

/* Sets the event, 0 for none, and the key, NULL if it is not known, on which user code is about to work. */
void
EvpgApplySetCurrent(int64 position, const char *key)
{
	EvpgOccupationSteps++;
	EvpgApplyCurrentPosition = position;
	EvpgApplyCurrentKey = key == NULL ? NULL : last_key;
	if (key != NULL)
		strlcpy(last_key, key, sizeof(last_key));
}

/* Whose code is running, for the context of its errors. */
typedef struct ApplyErrorContext
{
	ErrorContextCallback callback;
	const char *projection;
	const char *key;			/* NULL: none, or several */
	int			keys;			/* 0: they are being found */
	const EvpgEvent *event;
} ApplyErrorContext;

static void
describe_projection_call(void *arg)
{
	ApplyErrorContext *where = arg;
	const EvpgEvent *event = where->event;

	if (where->key != NULL)
		errcontext("projection \"%s\", key \"%s\", event \"%s\" of stream \"%s\" of aggregate \"%s\" at position "
				   INT64_FORMAT, where->projection, where->key, event->type, event->aggregate_id,
				   event->aggregate_type, event->position);
	else if (where->keys > 0)
		errcontext("projection \"%s\", %d keys, event \"%s\" of stream \"%s\" of aggregate \"%s\" at position "
				   INT64_FORMAT, where->projection, where->keys, event->type, event->aggregate_id,
				   event->aggregate_type, event->position);
	else
		errcontext("key of projection \"%s\", event \"%s\" of stream \"%s\" of aggregate \"%s\" at position "
				   INT64_FORMAT, where->projection, event->type, event->aggregate_id,
				   event->aggregate_type, event->position);
}

static void
push_projection_context(ApplyErrorContext *where, const EvpgProjection *projection, const char *key, int keys,
						const EvpgEvent *event)
{
	EvpgApplySetCurrent(event->position, key);
	where->projection = projection->name;
	where->key = key;
	where->keys = keys;
	where->event = event;
	EvpgErrorContextPush(&where->callback, describe_projection_call, where);
}

/* ------------------------------------------------------------------ applying */

/* Returns the state of a row as json-c, which stays with the row. */
static evpg_json *
get_row_state(EvpgProjectionRow *row, MemoryContext row_context)
{
	EvpgProjection *projection = row->projection;

	if (row->json == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(row_context);

		row->json = EvpgJsonOwn(NULL);
		MemoryContextSwitchTo(old);
	}
	if (row->json->json == NULL)
		row->json->json = EvpgJsonFromJsonb(row->state != NULL ? row->state : projection->initial_state,
											"projection state");
	if (json_object_get_type(row->json->json) != json_type_object)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("state of projection \"%s\" is not a JSON object", projection->name)));
	return row->json->json;
}

/*
 * EvpgApplyScratchInit
 *		Makes what events are applied with, below CurrentMemoryContext.  The caller
 *		resets scratch->context after each event.
 */
void
EvpgApplyScratchInit(EvpgApplyScratch *scratch)
{
	scratch->context = AllocSetContextCreate(CurrentMemoryContext, "EvpgApply event", ALLOCSET_DEFAULT_SIZES);
	scratch->result = EvpgModuleResultCreate();
	EvpgModuleEventInit(&scratch->event);
}

/* Returns whether an event of a projection sends a frame, if the caller sends any. */
static bool
sends_frames(const EvpgProjection *projection, bool send)
{
	return send && projection->broadcast != EVPG_BROADCAST_NONE && EvpgBroadcastBy != EVPG_FRAMES_OFF;
}

/* Lets a module apply an event to a state; the delta is converted only if listeners get it. */
static void
call_projection_module(EvpgProjection *projection, evpg_json *state, const EvpgEvent *event, bool send,
					   EvpgApplyScratch *scratch, ApplyResult *applied)
{
	const evpg_project_entry *entry = evpg_find_projected(&projection->module, event->type);
	evpg_result *result = scratch->result;

	result->unsent = !sends_frames(projection, send);
	EvpgModuleEventSet(&scratch->event, event, NULL);
	entry->call(result, state, &scratch->event.event);
	if (result->failed)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("projection \"%s\" failed: %s", projection->name,
						EvpgModuleCopyText(EvpgModuleResultClip(result)->message, "failure message"))));
	EvpgModuleResultCheck(result, EVPG_MAY_PROJECT, "a projection");
	applied->deleted = result->deleted;
	applied->silent = (result->delta == NULL || !sends_frames(projection, send));
	if (!applied->silent && projection->broadcast == EVPG_BROADCAST_DELTA)
		applied->delta = EvpgJsonToJsonb(result->delta, "delta");
	EvpgModuleEventClear(&scratch->event);
	EvpgModuleResultReset(result);
}

/* Lets a reducer apply an event: a result of jsonb is the new state, which listeners get; NULL deletes. */
static void
call_projection_reducer(EvpgProjection *projection, EvpgFunction *reducer, Jsonb *state, const EvpgEvent *event,
						ApplyResult *applied)
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

/* Lets a handler apply an event: it writes the user's own tables and returns the delta; NULL sends no frame. */
static void
call_projection_handler(EvpgFunction *handler, const EvpgEvent *event, List *keys, ApplyResult *applied)
{
	Datum		args[2] = {EvpgEventDatum(event), EvpgNamesToArray(keys)};
	Datum	   *rows;
	bool	   *nulls;

	applied->silent = EvpgFunctionCall(handler, args, false, 1, &rows, &nulls) != 1 || nulls[0];
	if (!applied->silent)
		applied->delta = DatumGetJsonbP(rows[0]);
}

/* Lets the code of a projection apply an event to a row. */
static void
apply_to_row(EvpgProjectionRow *row, MemoryContext row_context, const EvpgEvent *event, bool send,
			 EvpgApplyScratch *scratch, ApplyResult *applied)
{
	EvpgProjection *projection = row->projection;

	memset(applied, 0, sizeof(ApplyResult));
	if (projection->has_module)
		call_projection_module(projection, get_row_state(row, row_context), event, send, scratch, applied);
	else
		call_projection_reducer(projection, EvpgProjectionFunction(projection),
								row->state != NULL ? row->state : projection->initial_state, event, applied);
}

/* Keeps a new state, in CurrentMemoryContext, and frees the one that the row had. */
static void
keep_state(EvpgProjectionRow *row, const ApplyResult *applied)
{
	Jsonb	   *before = row->state;

	if (applied->deleted && row->json != NULL)
		evpg_free(EvpgJsonLetGo(row->json));
	row->state = NULL;
	if (applied->state != NULL)
	{
		row->state = palloc(VARSIZE_ANY(applied->state));
		memcpy(row->state, applied->state, VARSIZE_ANY(applied->state));
	}
	if (before != NULL)
		pfree(before);
}

/* Advances version and position of a row over an event, and sends its frame if asked. */
static void
advance_row(EvpgProjectionRow *row, const EvpgEvent *event, bool send, const ApplyResult *applied)
{
	row->deleted = applied->deleted;
	row->version++;
	row->position = Max(row->position, event->position);
	if (send && !applied->silent)
		EvpgProjectionRowSend(row, row->projection->event_name, applied->delta);
}

/*
 * EvpgApplyReducer
 *		Applies an event to a row, in memory, by the reducer or library of its projection;
 *		the caller writes the row in the end.  The state is kept in CurrentMemoryContext,
 *		all else goes with scratch->context.  With send, sends the frame of the event.  The
 *		caller has locked the row, or owns all rows of the build.
 */
void
EvpgApplyReducer(EvpgProjectionRow *row, const EvpgEvent *event, EvpgApplyScratch *scratch, bool send)
{
	MemoryContext row_context = MemoryContextSwitchTo(scratch->context);
	ApplyResult applied;
	ApplyErrorContext where;

	if (row->deleted)
		EvpgProjectionRowRevive(row);
	push_projection_context(&where, row->projection, row->key, 1, event);
	apply_to_row(row, row_context, event, send, scratch, &applied);
	EvpgErrorContextPop(&where.callback);
	advance_row(row, event, send, &applied);
	MemoryContextSwitchTo(row_context);
	keep_state(row, &applied);
	CHECK_FOR_INTERRUPTS();
}

/*
 * EvpgApplyHandler
 *		Lets the handler of a projection apply an event, once, and advances the rows of
 *		all its keys (EvpgProjectionRow *), in memory; the caller writes them in the end.
 *		All else goes with scratch->context.  The caller has locked the rows, or owns all
 *		rows of the build.
 */
void
EvpgApplyHandler(List *rows, const EvpgEvent *event, EvpgApplyScratch *scratch, bool send)
{
	EvpgProjection *projection = ((EvpgProjectionRow *) linitial(rows))->projection;
	MemoryContext caller = MemoryContextSwitchTo(scratch->context);
	const char *only_key = list_length(rows) == 1 ? ((EvpgProjectionRow *) linitial(rows))->key : NULL;
	List	   *keys = NIL;
	ListCell   *cell;
	ApplyResult applied = {0};
	ApplyErrorContext where;

	foreach(cell, rows)
	{
		EvpgProjectionRow *row = lfirst(cell);

		if (row->deleted)
			EvpgProjectionRowRevive(row);
		keys = lappend(keys, unconstify(char *, row->key));
	}
	push_projection_context(&where, projection, only_key, list_length(rows), event);
	call_projection_handler(EvpgProjectionFunction(projection), event, keys, &applied);
	EvpgErrorContextPop(&where.callback);
	foreach(cell, rows)
		advance_row(lfirst(cell), event, send, &applied);
	MemoryContextSwitchTo(caller);
	CHECK_FOR_INTERRUPTS();
}

/* Returns the keys to which an event is applied (char *), in CurrentMemoryContext.  Runs user code. */
List *
EvpgApplyFindKeys(EvpgProjection *projection, const EvpgEvent *event)
{
	ApplyErrorContext where;
	List	   *keys;

	if (EvpgProjectionIsKeyedById(projection))
	{
		EvpgApplySetCurrent(event->position, NULL);
		return list_make1(unconstify(char *, event->aggregate_id));
	}
	push_projection_context(&where, projection, NULL, 0, event);
	keys = EvpgProjectionKeys(projection, event);
	EvpgErrorContextPop(&where.callback);
	return keys;
}

/*
 * EvpgApplyUpcast
 *		Upcasts the last event of a scan; if that fails, it is the event of the projection that
 *		has failed, without a key.
 */
void
EvpgApplyUpcast(const EvpgProjection *projection, EvpgLogScan *scan, EvpgEvent *event)
{
	ApplyErrorContext where;

	push_projection_context(&where, projection, NULL, 0, event);
	EvpgLogScanUpcast(scan, event);
	EvpgErrorContextPop(&where.callback);
}

/* ------------------------------------------------------------------ inline projections */

/* Returns whether the projection is inline, and takes the event. */
static bool
takes_inline(EvpgProjection *projection, const EvpgEvent *event)
{
	return projection->mode == EVPG_MODE_INLINE && EvpgProjectionTakes(projection, event);
}

static int
compare_key_events(const void *a, const void *b)
{
	const KeyEvent *left = a;
	const KeyEvent *right = b;
	int			order = strcmp(left->projection->name, right->projection->name);

	if (order == 0)
		order = strcmp(left->key, right->key);
	if (order == 0)
		order = left->event->position < right->event->position ? -1 :
			left->event->position > right->event->position;
	return order;
}

/* Returns whether any inline projection takes any of the events. */
bool
EvpgApplyInlineIsNeeded(const EvpgEvent *events, int count)
{
	ListCell   *cell;

	foreach(cell, EvpgProjectionList())
		for (int i = 0; i < count; i++)
		if (takes_inline(lfirst(cell), &events[i]))
			return true;
	return false;
}

/* Returns the keys that events are to be applied to, in the order in which they are locked. */
static KeyEvent *
collect_keys(List *projections, const EvpgEvent *events, int count, int *nkey_events)
{
	int			space = 16;
	KeyEvent   *key_events = palloc(sizeof(KeyEvent) * space);
	ListCell   *cell;

	*nkey_events = 0;
	foreach(cell, projections)
	{
		EvpgProjection *projection = lfirst(cell);

		for (int i = 0; i < count; i++)
		{
			ListCell   *key;

			if (!takes_inline(projection, &events[i]))
				continue;
			foreach(key, EvpgApplyFindKeys(projection, &events[i]))
			{
				if (*nkey_events == space)
					key_events = repalloc_huge(key_events, sizeof(KeyEvent) * (space *= 2));
				key_events[*nkey_events].projection = projection;
				key_events[*nkey_events].key = lfirst(key);
				key_events[*nkey_events].event = &events[i];
				key_events[*nkey_events].row = NULL;
				(*nkey_events)++;
			}
		}
	}
	qsort(key_events, *nkey_events, sizeof(KeyEvent), compare_key_events);
	return key_events;
}

/* Applies all events for the first key of the list, and returns how many there are. */
static int
apply_key(const KeyEvent *first, int left, EvpgApplyScratch *scratch)
{
	EvpgProjectionRow row;
	int			done = 0;

	EvpgProjectionRowLock(&row, first->projection, first->key);
	for (; done < left && first[done].projection == first->projection && strcmp(first[done].key, first->key) == 0; done++)
	{
		EvpgApplyReducer(&row, first[done].event, scratch, true);
		MemoryContextReset(scratch->context);
	}
	EvpgProjectionRowWrite(&row);
	return done;
}

/* Compares by the order in which a handler gets events. */
static int
compare_positions(const void *a, const void *b)
{
	const KeyEvent *left = a;
	const KeyEvent *right = b;

	if (left->event->position != right->event->position)
		return left->event->position < right->event->position ? -1 : 1;
	return strcmp(left->key, right->key);
}

/*
 * Applies all events for the first projection of the list, which has a handler, and returns
 * how many keys of events there are.  Locks all keys first, in their order; then each
 * event is applied once, in the order of positions.
 */
static int
apply_handler(KeyEvent *first, int left, EvpgApplyScratch *scratch)
{
	EvpgProjection *projection = first->projection;
	List	   *locked = NIL;
	EvpgProjectionRow *row = NULL;
	ListCell   *cell;
	int			count = 0;

	for (; count < left && first[count].projection == projection; count++)
	{
		if (row == NULL || strcmp(first[count].key, row->key) != 0)
		{
			row = palloc(sizeof(EvpgProjectionRow));
			EvpgProjectionRowLock(row, projection, first[count].key);
			locked = lappend(locked, row);
		}
		first[count].row = row;
	}
	qsort(first, count, sizeof(KeyEvent), compare_positions);
	for (int done = 0; done < count;)
	{
		const EvpgEvent *event = first[done].event;
		MemoryContext old = MemoryContextSwitchTo(scratch->context);
		List	   *rows = NIL;

		for (; done < count && first[done].event == event; done++)
			rows = lappend(rows, first[done].row);
		MemoryContextSwitchTo(old);
		EvpgApplyHandler(rows, event, scratch, true);
		MemoryContextReset(scratch->context);
	}
	foreach(cell, locked)
		EvpgProjectionRowWrite(lfirst(cell));
	return count;
}

/* Applies events that are sorted by projection and key. */
static void
apply_key_events(KeyEvent *key_events, int count)
{
	MemoryContext key_context = AllocSetContextCreate(CurrentMemoryContext, "EvpgApply key", ALLOCSET_DEFAULT_SIZES);
	EvpgApplyScratch scratch;

	EvpgApplyScratchInit(&scratch);
	MemoryContextSwitchTo(key_context);
	for (int done = 0; done < count; MemoryContextReset(key_context))
		done += key_events[done].projection->handler_signature != NULL ?
			apply_handler(&key_events[done], count - done, &scratch) :
			apply_key(&key_events[done], count - done, &scratch);
}

/*
 * EvpgApplyInline
 *		Applies events that this transaction has just appended to all inline projections
 *		that take them.  Locks their keys until the end of the transaction.  The caller
 *		is inside the fence and EvpgEnter.
 */
void
EvpgApplyInline(const EvpgEvent *events, int count)
{
	List	   *projections = EvpgProjectionList();
	MemoryContext context;
	MemoryContext old;

	if (projections == NIL)
		return;
	context = AllocSetContextCreate(CurrentMemoryContext, "EvpgApplyInline", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	EvpgInsideProjection = true;
	PG_TRY();
	{
		int			nkey_events;
		KeyEvent   *key_events = collect_keys(projections, events, count, &nkey_events);

		if (nkey_events > 0)
			apply_key_events(key_events, nkey_events);
	}
	PG_FINALLY();
	{
		EvpgInsideProjection = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}
