/*-------------------------------------------------------------------------
 *
 * aggregate.c
 *		Registers aggregate types, keeps what a command needs of them for the
 *		session, and counts what the session did with them.
 *
 * Memory: each aggregate has a context of its own below EvpgRegistrationMemory().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "aggregate/aggregate.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/registration.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "usercode/module.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(evpg_register_aggregate);
PG_FUNCTION_INFO_V1(evpg_drop_aggregate);
PG_FUNCTION_INFO_V1(evpg_session_stats);

typedef struct AggregateEntry
{
	char		aggregate_type[256];	/* hash key */
	EvpgAggregate *aggregate;
} AggregateEntry;

static HTAB *aggregates = NULL;
static HTAB *counters = NULL;
static uint64 generation = 0;	/* of what is kept */

static HTAB *
make_table(const char *name, Size entry_size)
{
	HASHCTL		info = {
		.keysize = 256,
		.entrysize = entry_size,
		.hcxt = EvpgRegistrationMemory()
	};

	return hash_create(name, 16, &info, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
}

/* Forgets what an invalidation has made doubtful. */
static void
refresh_aggregates(void)
{
	HASH_SEQ_STATUS status;
	AggregateEntry *entry;

	if (likely(generation == EvpgCatalogRegistryGeneration()))
		return;
	if (aggregates == NULL)
	{
		aggregates = make_table("evpg aggregates", sizeof(AggregateEntry));
		counters = make_table("evpg counters", sizeof(EvpgCounters));
	}
	generation = EvpgCatalogRegistryGeneration();
	hash_seq_init(&status, aggregates);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		EvpgRegistrationFreeLater(entry->aggregate->context);
		hash_search(aggregates, entry->aggregate_type, HASH_REMOVE, NULL);
	}
}

static EvpgCounters *
find_counters(const char *aggregate_type)
{
	bool		found;
	EvpgCounters *entry = hash_search(counters, aggregate_type, HASH_ENTER, &found);

	if (!found)
		memset((char *) entry + sizeof(entry->aggregate_type), 0,
			   sizeof(EvpgCounters) - sizeof(entry->aggregate_type));
	return entry;
}

static char *
result_text(int column, MemoryContext context)
{
	Datum		value;
	MemoryContext old;
	char	   *result;

	if (!EvpgResultDatum(0, column, &value))
		return NULL;
	old = MemoryContextSwitchTo(context);
	result = TextDatumGetCString(value);
	MemoryContextSwitchTo(old);
	return result;
}

static Datum
result_value(int column)
{
	Datum		value;

	if (!EvpgResultDatum(0, column, &value))
		elog(ERROR, "unexpected null in evpg.aggregate_type");
	return value;
}

static EvpgStatement select_aggregate = {
	.text = "SELECT library, symbol, handler, reducer, invariant, initial_state, snapshot_every, snapshot_keep,"
	" reducer_version, generation, search_path, fold_generation, registered_by"
	" FROM evpg.aggregate_type"
	" WHERE aggregate_type = $1",
	.types = {TEXTOID}
};

static EvpgAggregate *
load_aggregate(const char *aggregate_type)
{
	Datum		key = CStringGetTextDatum(aggregate_type);
	MemoryContext context;
	MemoryContext old;
	EvpgAggregate *aggregate;
	char	   *library;
	char	   *symbol;
	char	   *handler;
	char	   *reducer;
	char	   *invariant;
	char	   *search_path;
	char	   *registered_by;

	/* An error below leaves the context to the caller's. */
	context = AllocSetContextCreate(CurrentMemoryContext, "EvpgAggregate", ALLOCSET_SMALL_SIZES);
	if (EvpgStatementReadLatest(&select_aggregate, &key, NULL) == 0)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_UNKNOWN_AGGREGATE),
				 errmsg("aggregate type \"%s\" is not registered", aggregate_type),
				 errhint("Register it with evpg_register_aggregate().")));
	aggregate = MemoryContextAllocZero(context, sizeof(EvpgAggregate));
	strlcpy(aggregate->aggregate_type, aggregate_type, sizeof(aggregate->aggregate_type));
	aggregate->context = context;
	library = result_text(1, context);
	symbol = result_text(2, context);
	handler = result_text(3, context);
	reducer = result_text(4, context);
	invariant = result_text(5, context);
	old = MemoryContextSwitchTo(context);
	aggregate->initial_state = DatumGetJsonbPCopy(result_value(6));
	MemoryContextSwitchTo(old);
	aggregate->snapshot_every = DatumGetInt32(result_value(7));
	aggregate->snapshot_keep = DatumGetInt32(result_value(8));
	aggregate->reducer_version = DatumGetInt32(result_value(9));
	aggregate->generation = DatumGetInt64(result_value(10));
	search_path = result_text(11, context);
	aggregate->fold_generation = DatumGetInt64(result_value(12));
	registered_by = result_text(13, context);
	EvpgStatementDone();

	old = MemoryContextSwitchTo(context);
	aggregate->native = (library != NULL);
	if (aggregate->native)
	{
		EvpgModuleCheckRegistrant(library, registered_by);
		EvpgModuleLoadAggregate(library, symbol, &aggregate->module);

		/*
		 * The module in memory says what its fold is, not the one that was
		 * there at registration.
		 */
		aggregate->reducer_version = Max(aggregate->module.reducer_version, 1);
	}
	else if (handler != NULL)
	{
		aggregate->handler = EvpgFunctionResolve(handler, EVPG_ROLE_HANDLER, registered_by, search_path);
		aggregate->reducer = EvpgFunctionResolve(reducer, EVPG_ROLE_REDUCER, registered_by, search_path);
		if (invariant != NULL)
			aggregate->invariant = EvpgFunctionResolve(invariant, EVPG_ROLE_INVARIANT, registered_by, search_path);
		aggregate->stamp = aggregate->reducer->stamp;
		aggregate->definition_hash = aggregate->reducer->definition_hash;
	}
	MemoryContextSwitchTo(old);
	aggregate->counters = find_counters(aggregate_type);
	MemoryContextSetParent(context, EvpgRegistrationMemory());
	return aggregate;
}

/*
 * EvpgAggregateGet
 *		An aggregate type, ready to be used; error if it is not registered or
 *		its module or functions are not what they were.  The caller is inside
 *		EvpgEnter.
 */
EvpgAggregate *
EvpgAggregateGet(const char *aggregate_type)
{
	AggregateEntry *entry;
	EvpgAggregate *aggregate;
	uint64		before;

	refresh_aggregates();
	entry = hash_search(aggregates, aggregate_type, HASH_FIND, NULL);
	if (likely(entry != NULL))
		return entry->aggregate;

	before = generation;
	aggregate = load_aggregate(aggregate_type);
	refresh_aggregates();
	if (before != generation)
	{
		/* Invalidated while it was loaded: use it this once. */
		EvpgRegistrationFreeLater(aggregate->context);
		return aggregate;
	}
	entry = hash_search(aggregates, aggregate_type, HASH_ENTER, NULL);
	entry->aggregate = aggregate;
	return aggregate;
}

/*
 * EvpgAggregateGetWithState
 *		The same for what needs a handler or a reducer: a type that stores events
 *		alone has neither.
 */
EvpgAggregate *
EvpgAggregateGetWithState(const char *aggregate_type)
{
	EvpgAggregate *aggregate = EvpgAggregateGet(aggregate_type);

	if (!aggregate->native && aggregate->handler == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("aggregate type \"%s\" only stores events", aggregate_type),
				 errdetail("It was registered without handler and reducer, so it takes no commands and has no state."),
				 errhint("Append events with evpg_append(), or register it with a handler and a reducer.")));
	return aggregate;
}

/* ------------------------------------------------------------------ registration */

/* Arguments of evpg_register_aggregate(). */
enum
{
	ARG_AGGREGATE_TYPE, ARG_HANDLER, ARG_REDUCER, ARG_INVARIANT, ARG_LIBRARY, ARG_SYMBOL, ARG_INITIAL_STATE,
	ARG_SNAPSHOT_EVERY, ARG_SNAPSHOT_KEEP, ARG_REDUCER_VERSION
};

static EvpgStatement insert_aggregate = {
	.text = "INSERT INTO evpg.aggregate_type AS a (aggregate_type, library, symbol, handler, reducer, invariant,"
	" initial_state, snapshot_every, snapshot_keep, reducer_version, search_path, registered_by, generation,"
	" fold_generation, registered_at)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13, evpg.clock_timestamp())"
	" ON CONFLICT (aggregate_type) DO UPDATE"
	" SET library = excluded.library, symbol = excluded.symbol, handler = excluded.handler, reducer ="
	" excluded.reducer, invariant = excluded.invariant, initial_state = excluded.initial_state,"
	" snapshot_every = excluded.snapshot_every, snapshot_keep = excluded.snapshot_keep, reducer_version ="
	" excluded.reducer_version, search_path = excluded.search_path, registered_by = excluded.registered_by,"
	" registered_at = excluded.registered_at, generation = GREATEST(excluded.generation, a.generation + 1),"
	" fold_generation = CASE WHEN (a.library, a.symbol, a.reducer, a.initial_state) IS DISTINCT"
	" FROM (excluded.library, excluded.symbol, excluded.reducer, excluded.initial_state) THEN"
	" GREATEST(excluded.generation, a.generation + 1) ELSE a.fold_generation END"
	" WHERE (a.library, a.symbol, a.handler, a.reducer, a.invariant, a.initial_state, a.snapshot_every,"
	" a.snapshot_keep, a.reducer_version, a.search_path, a.registered_by) IS DISTINCT"
	" FROM (excluded.library, excluded.symbol, excluded.handler, excluded.reducer, excluded.invariant,"
	" excluded.initial_state, excluded.snapshot_every, excluded.snapshot_keep, excluded.reducer_version,"
	" excluded.search_path, excluded.registered_by)",
	.types = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID, INT4OID, INT4OID,
	INT4OID, TEXTOID, TEXTOID, INT8OID}
};

Datum
evpg_register_aggregate(PG_FUNCTION_ARGS)
{
	char	   *aggregate_type = EvpgArgName(fcinfo, ARG_AGGREGATE_TYPE, "aggregate type");
	Jsonb	   *initial_state = EvpgArgJsonb(fcinfo, ARG_INITIAL_STATE, "initial state");
	int			snapshot_every = EvpgArgInt(fcinfo, ARG_SNAPSHOT_EVERY, "snapshot_every", 0);
	int			snapshot_keep = EvpgArgInt(fcinfo, ARG_SNAPSHOT_KEEP, "snapshot_keep", 1);
	int			reducer_version = EvpgArgInt(fcinfo, ARG_REDUCER_VERSION, "reducer_version", 1);
	char	   *library = NULL;
	char	   *symbol = NULL;
	char	   *handler = NULL;
	char	   *reducer = NULL;
	char	   *invariant = NULL;
	char	   *search_path = EvpgFunctionSearchPath();
	Oid			registrant = GetUserId();
	bool		by_functions = !PG_ARGISNULL(ARG_HANDLER) || !PG_ARGISNULL(ARG_REDUCER) || !PG_ARGISNULL(ARG_INVARIANT);
	bool		by_library = !PG_ARGISNULL(ARG_LIBRARY) || !PG_ARGISNULL(ARG_SYMBOL);
	Datum		values[13];
	char		nulls[13];
	uint64		changed;
	EvpgScope	scope;

	EvpgCheckNewName(aggregate_type, "aggregate type");
	EvpgArgRefuseNull(fcinfo, ARG_INITIAL_STATE, "initial state");
	if (by_functions && by_library)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an aggregate is registered with either functions or a library"),
				 errhint("Give handler and reducer, or library and symbol.")));
	if (!by_functions && !by_library && (!JB_ROOT_IS_OBJECT(initial_state) || JB_ROOT_COUNT(initial_state) != 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an aggregate without handler and reducer has no state"),
				 errhint("Leave initial_state out, or give handler and reducer, or library and symbol.")));

	if (by_functions)
	{
		EvpgArgRefuseNull(fcinfo, ARG_HANDLER, "handler");
		EvpgArgRefuseNull(fcinfo, ARG_REDUCER, "reducer");
		handler = EvpgFunctionCheck(PG_GETARG_OID(ARG_HANDLER), EVPG_ROLE_HANDLER, registrant);
		reducer = EvpgFunctionCheck(PG_GETARG_OID(ARG_REDUCER), EVPG_ROLE_REDUCER, registrant);
		if (!PG_ARGISNULL(ARG_INVARIANT))
			invariant = EvpgFunctionCheck(PG_GETARG_OID(ARG_INVARIANT), EVPG_ROLE_INVARIANT, registrant);
	}
	else if (by_library)
	{
		evpg_aggregate_definition module;

		if (!superuser_arg(registrant))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("must be superuser to register a library")));
		library = EvpgModulePath(EvpgArgId(fcinfo, ARG_LIBRARY, "library"));
		symbol = EvpgArgName(fcinfo, ARG_SYMBOL, "symbol");
		EvpgModuleLoadAggregate(library, symbol, &module);
		if (reducer_version != 1 || !JB_ROOT_IS_OBJECT(initial_state) || JB_ROOT_COUNT(initial_state) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("initial_state and reducer_version of a library come from its symbol"),
					 errhint("Leave both arguments out.")));
		initial_state = EvpgModuleInitialState(library, symbol, module.initial_state);
		reducer_version = Max(module.reducer_version, 1);
	}

	memset(nulls, ' ', sizeof(nulls));
	EvpgParameterText(values, nulls, 0, aggregate_type);
	EvpgParameterText(values, nulls, 1, library);
	EvpgParameterText(values, nulls, 2, symbol);
	EvpgParameterText(values, nulls, 3, handler);
	EvpgParameterText(values, nulls, 4, reducer);
	EvpgParameterText(values, nulls, 5, invariant);
	values[6] = JsonbPGetDatum(initial_state);
	values[7] = Int32GetDatum(snapshot_every);
	values[8] = Int32GetDatum(snapshot_keep);
	values[9] = Int32GetDatum(reducer_version);
	EvpgParameterText(values, nulls, 10, search_path);
	EvpgParameterText(values, nulls, 11, GetUserNameFromId(registrant, false));

	/*
	 * Grows over DROP and registering again too, so that no backend takes one
	 * for the other.
	 */
	values[12] = Int64GetDatum(GetCurrentTimestamp());

	EvpgEnter(&scope, "evpg_register_aggregate()");
	changed = EvpgStatementRun(&insert_aggregate, values, nulls);
	EvpgStatementDone();
	if (changed > 0)
		EvpgRegistrationInvalidate(EvpgCatalogGet()->aggregate_type);
	EvpgLeave(&scope);
	PG_RETURN_BOOL(changed > 0);
}

static EvpgStatement delete_aggregate = {
	.text = "DELETE FROM evpg.aggregate_type"
	" WHERE aggregate_type = $1",
	.types = {TEXTOID}
};

Datum
evpg_drop_aggregate(PG_FUNCTION_ARGS)
{
	(void) EvpgArgText(fcinfo, 0, "aggregate type");
	PG_RETURN_BOOL(EvpgRegistrationDrop(fcinfo, &delete_aggregate, EvpgCatalogGet()->aggregate_type,
										EVPG_ERRCODE_UNKNOWN_AGGREGATE, "aggregate type", "evpg_drop_aggregate()"));
}

/* ------------------------------------------------------------------ counters */

Datum
evpg_session_stats(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	HASH_SEQ_STATUS status;
	EvpgCounters *entry;

	InitMaterializedSRF(fcinfo, 0);
	if (counters == NULL)
		PG_RETURN_NULL();
	hash_seq_init(&status, counters);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		bool		nulls[11] = {0};
		Datum		values[11] = {
			CStringGetTextDatum(entry->aggregate_type),
			Int64GetDatum(entry->commands),
			Int64GetDatum(entry->rejected),
			Int64GetDatum(entry->conflicts),
			Int64GetDatum(entry->noops),
			Int64GetDatum(entry->duplicates),
			Int64GetDatum(entry->events),
			Int64GetDatum(entry->unknown_events),
			Int64GetDatum(entry->cache_hits),
			Int64GetDatum(entry->folds),
			Int64GetDatum(entry->snapshots)
		};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	PG_RETURN_NULL();
}
