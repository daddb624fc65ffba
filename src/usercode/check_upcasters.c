/*-------------------------------------------------------------------------
 *
 * check_upcasters.c
 *		evpg_check_upcasters(): what versions of events are in the log, what they are read
 *		as, and whether that works.
 *
 * Reads the whole log under the snapshot of the statement.  Each upcaster runs in a
 * subtransaction, so that one which fails is a row of the result.
 *
 * Memory: one context for the call.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/retry.h"
#include "base/subtransaction.h"
#include "funcapi.h"
#include "log/event_log.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(evpg_check_upcasters);

/* A version of an event type in the log. */
typedef struct StoredVersion
{
	char	   *aggregate_type;
	char	   *event_type;
	int			version;
	char	   *new_type;		/* what it is read as */
	int			new_version;
	int64		events;
	int64		failed;
	int64		position;		/* of the first that failed, else of the first */
	int			sqlstate;		/* of that one; 0: none has failed */
	char	   *message;
} StoredVersion;

/* Returns the entry of an event that was read but not upcast, which is added to the list if it is new. */
static StoredVersion *
get_stored_version(List **versions, const EvpgEvent *event)
{
	const char *type = event->chain != NULL ? event->chain->stored_type : event->type;
	StoredVersion *entry;
	ListCell   *cell;

	foreach(cell, *versions)
	{
		entry = lfirst(cell);
		if (entry->version == event->schema_version && strcmp(entry->event_type, type) == 0 &&
			strcmp(entry->aggregate_type, event->aggregate_type) == 0)
			return entry;
	}
	entry = palloc0(sizeof(StoredVersion));
	entry->aggregate_type = pstrdup(event->aggregate_type);
	entry->event_type = pstrdup(type);
	entry->version = event->schema_version;
	entry->new_type = pstrdup(event->type);
	entry->new_version = event->chain != NULL ? event->chain->version : event->schema_version;
	entry->position = event->position;
	*versions = lappend(*versions, entry);
	return entry;
}

static void
try_upcasting(void *event)
{
	EvpgUpcastEvent(event);
}

/* Counts an event, and tries its upcasters, if they are to be tried. */
static void
check_event(StoredVersion *entry, EvpgEvent *event, bool all_events, MemoryContext context)
{
	ErrorData  *error;

	entry->events++;
	if (event->chain == NULL || (!all_events && entry->events > 1))
		return;
	error = EvpgSubtransactionRun(try_upcasting, event);
	if (error == NULL)
		return;
	if (EvpgErrorIsCancel(error) || EvpgErrorIsTransient(error) || error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		EvpgRethrowError(error);
	if (entry->failed++ == 0)
	{
		entry->position = event->position;
		entry->sqlstate = error->sqlerrcode;
		entry->message = MemoryContextStrdup(context, error->message);
	}
	FreeErrorData(error);
}

/* Reads all events; returns a list of the versions that were found. */
static List *
read_versions(bool all_events)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext event_context = AllocSetContextCreate(context, "EvpgCheckUpcasters event", ALLOCSET_DEFAULT_SIZES);
	EvpgLogFilter filter = {.upto = PG_INT64_MAX, .leaves_upcasting = true};
	EvpgLogScan *scan;
	EvpgEvent	event;
	List	   *versions = NIL;

	PushActiveSnapshot(GetTransactionSnapshot());
	scan = EvpgLogScanAll(&filter);
	while (EvpgLogScanNext(scan, &event))
	{
		StoredVersion *entry = get_stored_version(&versions, &event);

		MemoryContextSwitchTo(event_context);
		check_event(entry, &event, all_events, context);
		MemoryContextSwitchTo(context);
		MemoryContextReset(event_context);
	}
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
	return versions;
}

static int
compare_versions(const ListCell *left, const ListCell *right)
{
	const StoredVersion *a = lfirst(left);
	const StoredVersion *b = lfirst(right);
	int			result = strcmp(a->aggregate_type, b->aggregate_type);

	if (result == 0)
		result = strcmp(a->event_type, b->event_type);
	return result != 0 ? result : (a->version > b->version) - (a->version < b->version);
}

/* Adds a row to the result. */
static void
return_version(FunctionCallInfo fcinfo, const StoredVersion *entry)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum		values[10] = {
		CStringGetTextDatum(entry->aggregate_type),
		CStringGetTextDatum(entry->event_type),
		Int32GetDatum(entry->version),
		CStringGetTextDatum(entry->new_type),
		Int32GetDatum(entry->new_version),
		Int64GetDatum(entry->events),
		Int64GetDatum(entry->failed),
		Int64GetDatum(entry->position)
	};
	bool		nulls[10] = {0};

	nulls[8] = nulls[9] = (entry->message == NULL);
	if (entry->message != NULL)
	{
		values[8] = CStringGetTextDatum(unpack_sql_state(entry->sqlstate));
		values[9] = CStringGetTextDatum(entry->message);
	}
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/*
 * evpg_check_upcasters
 *		SQL: evpg_check_upcasters(all_events).  Returns a row for each version of an event
 *		type that an aggregate type has in the log: what it is read as, and whether its
 *		upcasters fail for its first event, or for any.
 */
Datum
evpg_check_upcasters(PG_FUNCTION_ARGS)
{
	bool		all_events = EvpgArgBool(fcinfo, 0, "all_events");
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;
	List	   *versions;
	ListCell   *cell;
	EvpgScope	scope;

	InitMaterializedSRF(fcinfo, 0);
	context = AllocSetContextCreate(caller, "EvpgCheckUpcasters", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	EvpgEnter(&scope, NULL);
	versions = read_versions(all_events);
	EvpgLeave(&scope);
	list_sort(versions, compare_versions);
	foreach(cell, versions)
		return_version(fcinfo, lfirst(cell));
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	PG_RETURN_NULL();
}
