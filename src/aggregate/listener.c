/*-------------------------------------------------------------------------
 *
 * listener.c
 *		Listeners: functions that are told of each event in the transaction that
 *		appends it, after inline projections.
 *
 * An error of a listener fails the command, like any defect in user code.  A
 * listener may execute commands and append, but not to the stream of its event.
 *
 * Memory: a context for all calls of a command.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/decision.h"
#include "aggregate/hook.h"
#include "aggregate/listener.h"
#include "base/catalog.h"
#include "base/registration.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "usercode/function_call.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(evpg_register_listener);
PG_FUNCTION_INFO_V1(evpg_drop_listener);

static EvpgStatement insert_listener = {
	.text = "INSERT INTO evpg.listener AS l (name, listener, aggregate_types, event_types, priority,"
	" search_path, registered_by, registered_at)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, evpg.clock_timestamp())"
	" ON CONFLICT (name) DO UPDATE"
	" SET listener = excluded.listener, aggregate_types = excluded.aggregate_types,"
	" event_types = excluded.event_types, priority = excluded.priority,"
	" search_path = excluded.search_path, registered_by = excluded.registered_by,"
	" registered_at = excluded.registered_at"
	" WHERE (l.listener, l.aggregate_types, l.event_types, l.priority, l.search_path, l.registered_by)"
	" IS DISTINCT FROM (excluded.listener, excluded.aggregate_types, excluded.event_types, excluded.priority,"
	" excluded.search_path, excluded.registered_by)",
	.types = {TEXTOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID, INT4OID, TEXTOID, TEXTOID}
};

static EvpgStatement delete_listener = {
	.text = "DELETE FROM evpg.listener"
	" WHERE name = $1",
	.types = {TEXTOID}
};

static const EvpgHookKind listener_kind = {
	.name = "listener",
	.types_argument = "event_types",
	.for_events = true,
	.role = EVPG_ROLE_LISTENER,
	.insert = &insert_listener,
	.delete = &delete_listener
};

/*
 * evpg_register_listener
 *		SQL: evpg_register_listener(...).  Registers a function that is told of
 *		events in the transaction that appends them.  Returns whether anything
 *		changed.
 */
Datum
evpg_register_listener(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(EvpgHookRegister(fcinfo, &listener_kind, EvpgCatalogGet()->listener, "evpg_register_listener()"));
}

/* SQL: evpg_drop_listener(name, missing_ok).  Removes the registration of a listener. */
Datum
evpg_drop_listener(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(EvpgHookDrop(fcinfo, &listener_kind, EvpgCatalogGet()->listener, "evpg_drop_listener()"));
}

static EvpgStatement select_listener = {
	.text = "SELECT name, listener, aggregate_types, event_types, search_path, registered_by"
	" FROM evpg.listener ORDER BY priority, name"
};

/* All listeners, in the order in which they are called. */
static EvpgRegistrationList listeners = {.kind = "listeners", .select = &select_listener, .make = EvpgHookMake};

/* Tells a listener of an event. */
static void
call_listener(EvpgHook *listener, const EvpgEvent *event)
{
	Datum		args[1] = {EvpgEventDatum(event)};
	Datum	   *rows;
	bool	   *nulls;
	EvpgAggregateCall code = {
		.role = psprintf("listener \"%s\"", listener->name),
		.aggregate_type = event->aggregate_type,
		.aggregate_id = event->aggregate_id,
		.type = event->type,
		.version = event->version,
		.position = event->position
	};

	EvpgAggregateCallBegin(&code);
	(void) EvpgFunctionCall(EvpgHookFunction(listener, EVPG_ROLE_LISTENER), args, false, 1, &rows, &nulls);
	EvpgAggregateCallEnd(&code);
}

/*
 * EvpgListenersTell
 *		Tells all listeners of these events, which have just been appended and
 *		applied to inline projections: event by event in the order of versions, and
 *		of each event the listeners in their order.  Raises what a listener
 *		raises.  The caller is inside EvpgEnter.
 */
void
EvpgListenersTell(const EvpgEvent *events, int count)
{
	List	   *list = EvpgRegistrationListGet(&listeners);
	MemoryContext call_context;
	MemoryContext caller;
	ListCell   *cell;

	if (likely(list == NIL))
		return;
	call_context = AllocSetContextCreate(CurrentMemoryContext, "EvpgListener call", ALLOCSET_DEFAULT_SIZES);
	caller = MemoryContextSwitchTo(call_context);
	for (int i = 0; i < count; i++)
		foreach(cell, list)
	{
		EvpgHook   *listener = lfirst(cell);

		if (!EvpgHookTakes(listener, events[i].aggregate_type, events[i].type))
			continue;
		call_listener(listener, &events[i]);
		MemoryContextReset(call_context);
		CHECK_FOR_INTERRUPTS();
	}
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(call_context);
}
