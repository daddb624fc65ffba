/*-------------------------------------------------------------------------
 *
 * reducer.c
 *		Calls the reducer of an aggregate, which folds an event into a state.
 *
 * A module's state is a json-c object that its callback changes in place; a
 * function's is a jsonb that every fold replaces. An event of a command is
 * folded while its position is not drawn yet; a fold must not depend on it.
 *
 * Memory: what is needed for one event only is in the scratch context of the
 * state.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "aggregate/decision.h"
#include "aggregate/reducer.h"
#include "base/errors.h"
#include "usercode/function_call.h"
#include "usercode/module_callback.h"
#include "utils/memutils.h"

/* Calls the callback of a module for an event, which changes the state in place. */
static void
fold_by_module(EvpgState *state, const EvpgEvent *event, evpg_json *data)
{
	const evpg_event_entry *entry = evpg_find_event(&state->aggregate->module, event->type);

	if (entry == NULL)
	{
		state->aggregate->counters->unknown_events++;
		return;
	}
	EvpgModuleEventSet(&state->event, event, data);
	entry->call(state->json->json, &state->event.event);
	EvpgModuleEventClear(&state->event);

	/*
	 * A walk over the state costs, so what was folded in counts until it is a
	 * quarter of it.  The walk refuses a state that has become too deep for
	 * json-c, or contains itself, so in a replay it is not put off either:
	 * the callback for the next event must not get such a state.
	 */
	state->growth += 256 + (event->data != NULL ? 4 * (Size) VARSIZE_ANY(event->data) : 0);
	if (state->growth > state->size / 4)
	{
		state->size = EvpgJsonSize(state->json->json, "state");
		state->growth = 0;
	}
}

/* Calls the reducer function for an event and replaces the state by its result. */
static void
fold_by_function(EvpgState *state, const EvpgEvent *event)
{
	EvpgFunction *reducer = state->aggregate->reducer;
	Datum		args[2] = {JsonbPGetDatum(state->jsonb), EvpgEventDatum(event)};
	Datum	   *rows;
	bool	   *nulls;
	Jsonb	   *next;

	if (EvpgFunctionCall(reducer, args, true, 1, &rows, &nulls) != 1 || nulls[0])
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("reducer %s returned null", reducer->signature),
				 errdetail("A reducer returns the new state, or the same state for an event that changes nothing."),
				 errhint("A CASE without ELSE returns null: add ELSE state.  "
						 "So does an expression with a null in it, such as state->'a' || event.data->'b' or jsonb_set(): "
						 "set parentheses around each ->, and use coalesce().")));
	next = EvpgStateCopyJsonb(state->context, DatumGetJsonbP(rows[0]));
	pfree(state->jsonb);
	state->jsonb = next;
}

/*
 * EvpgReducerFold
 *		Folds an event into a state, which is invalid meanwhile; an error leaves
 *		it so.  data is the event's data as json-c if the caller has it, else
 *		NULL.  The caller is inside EvpgEnter.
 */
void
EvpgReducerFold(EvpgState *state, const EvpgEvent *event, evpg_json *data)
{
	MemoryContext old = MemoryContextSwitchTo(state->scratch);
	EvpgAggregateCall code = {
		.role = "reducer",
		.aggregate_type = event->aggregate_type,
		.aggregate_id = event->aggregate_id,
		.type = event->type,
		.version = event->version,
		.position = event->position
	};

	state->valid = false;
	EvpgAggregateCallBegin(&code);
	if (state->aggregate->has_module)
		fold_by_module(state, event, data);
	else
		fold_by_function(state, event);
	EvpgAggregateCallEnd(&code);
	state->version = event->version;
	state->last_position = event->position;
	state->valid = true;
	state->aggregate->counters->folds++;
	MemoryContextSwitchTo(old);
	MemoryContextReset(state->scratch);
}
