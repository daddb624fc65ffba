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
#include "usercode/upcaster.h"
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
create_registry_table(const char *name, Size entry_size)
{
	HASHCTL		info = {
		.keysize = 256,
		.entrysize = entry_size,
		.hcxt = EvpgRegistrationMemory()
	};

	return hash_create(name, 16, &info, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
}

/* Forgets the aggregates that an invalidation has made doubtful; makes the tables at the first call. */
static void
refresh_aggregates(void)
{
	HASH_SEQ_STATUS status;
	AggregateEntry *entry;

	if (likely(generation == EvpgCatalogRegistryGeneration()))
		return;
	if (aggregates == NULL)
	{
		aggregates = create_registry_table("evpg aggregates", sizeof(AggregateEntry));
		counters = create_registry_table("evpg counters", sizeof(EvpgAggregateCounters));
	}
	generation = EvpgCatalogRegistryGeneration();
	hash_seq_init(&status, aggregates);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		EvpgRegistrationFreeLater(entry->aggregate->context);
		hash_search(aggregates, entry->aggregate_type, HASH_REMOVE, NULL);
	}
}

/* Returns the session's counters of an aggregate type, zeros at first. */
static EvpgAggregateCounters *
get_counters(const char *aggregate_type)
{
	bool		found;
	EvpgAggregateCounters *entry = hash_search(counters, aggregate_type, HASH_ENTER, &found);

	if (!found)
		memset((char *) entry + sizeof(entry->aggregate_type), 0,
			   sizeof(EvpgAggregateCounters) - sizeof(entry->aggregate_type));
	return entry;
}

/* Copies a text of the first result row into a context; NULL if it is null. */
static char *
copy_result_text(int column, MemoryContext context)
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

/* Returns a value of the first result row that is never null. */
static Datum
get_result_value(int column)
{
	Datum		value;

	if (!EvpgResultDatum(0, column, &value))
		elog(ERROR, "unexpected null in evpg.aggregate_type");
	return value;
}

static EvpgStatement select_aggregate = {
	.text = "SELECT library, symbol, handler, reducer, invariant, initial_state, snapshot_every, snapshot_keep,"
	" reducer_version, generation, search_path, fold_generation, registered_by, broadcast,"
	" boundary"
	" FROM evpg.aggregate_type"
	" WHERE aggregate_type = $1",
	.types = {TEXTOID}
};

/* Its columns. */
enum
{
	AGGREGATE_LIBRARY = 1,
	AGGREGATE_SYMBOL,
	AGGREGATE_HANDLER,
	AGGREGATE_REDUCER,
	AGGREGATE_INVARIANT,
	AGGREGATE_INITIAL_STATE,
	AGGREGATE_SNAPSHOT_EVERY,
	AGGREGATE_SNAPSHOT_KEEP,
	AGGREGATE_REDUCER_VERSION,
	AGGREGATE_GENERATION,
	AGGREGATE_SEARCH_PATH,
	AGGREGATE_FOLD_GENERATION,
	AGGREGATE_REGISTERED_BY,
	AGGREGATE_BROADCAST,
	AGGREGATE_BOUNDARY
};

/* The code of an aggregate, as it is registered; what is not given is NULL. */
typedef struct AggregateCode
{
	char	   *library;
	char	   *symbol;
	char	   *handler;
	char	   *reducer;
	char	   *invariant;
	char	   *boundary;
	Jsonb	   *initial_state;
	int			reducer_version;
} AggregateCode;

/* Finds the functions of an aggregate, in CurrentMemoryContext. */
static void
resolve_functions(EvpgAggregate *aggregate, const AggregateCode *code, const char *registered_by, const char *search_path)
{
	aggregate->handler = EvpgFunctionResolve(code->handler, EVPG_ROLE_HANDLER, registered_by, search_path);
	aggregate->reducer = EvpgFunctionResolve(code->reducer, EVPG_ROLE_REDUCER, registered_by, search_path);
	if (code->invariant != NULL)
		aggregate->invariant = EvpgFunctionResolve(code->invariant, EVPG_ROLE_INVARIANT, registered_by, search_path);
	if (code->boundary != NULL)
		aggregate->boundary = EvpgFunctionResolve(code->boundary, EVPG_ROLE_BOUNDARY, registered_by, search_path);
	aggregate->has_boundary = code->boundary != NULL;
	aggregate->stamp = aggregate->reducer->stamp;
	aggregate->definition_hash = aggregate->reducer->definition_hash;
}

/*
 * Reads the registration of an aggregate type and makes it usable.  The result
 * has a context of its own, below that of all registrations; an error leaves
 * nothing behind.
 */
static EvpgAggregate *
load_aggregate(const char *aggregate_type)
{
	Datum		key = CStringGetTextDatum(aggregate_type);
	MemoryContext context;
	MemoryContext old;
	EvpgAggregate *aggregate;
	AggregateCode code;
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
	code.library = copy_result_text(AGGREGATE_LIBRARY, context);
	code.symbol = copy_result_text(AGGREGATE_SYMBOL, context);
	code.handler = copy_result_text(AGGREGATE_HANDLER, context);
	code.reducer = copy_result_text(AGGREGATE_REDUCER, context);
	code.invariant = copy_result_text(AGGREGATE_INVARIANT, context);
	code.boundary = copy_result_text(AGGREGATE_BOUNDARY, context);
	old = MemoryContextSwitchTo(context);
	aggregate->initial_state = DatumGetJsonbPCopy(get_result_value(AGGREGATE_INITIAL_STATE));
	MemoryContextSwitchTo(old);
	aggregate->snapshot_every = DatumGetInt32(get_result_value(AGGREGATE_SNAPSHOT_EVERY));
	aggregate->snapshot_keep = DatumGetInt32(get_result_value(AGGREGATE_SNAPSHOT_KEEP));
	aggregate->reducer_version = DatumGetInt32(get_result_value(AGGREGATE_REDUCER_VERSION));
	aggregate->generation = DatumGetInt64(get_result_value(AGGREGATE_GENERATION));
	search_path = copy_result_text(AGGREGATE_SEARCH_PATH, context);
	aggregate->fold_generation = DatumGetInt64(get_result_value(AGGREGATE_FOLD_GENERATION));
	registered_by = copy_result_text(AGGREGATE_REGISTERED_BY, context);
	aggregate->broadcast = EvpgBroadcastFromName(TextDatumGetCString(get_result_value(AGGREGATE_BROADCAST)));
	EvpgStatementDone();

	old = MemoryContextSwitchTo(context);
	aggregate->has_module = (code.library != NULL);
	if (aggregate->has_module)
	{
		EvpgModuleCheckRegistrant(code.library, registered_by);
		EvpgModuleLoadAggregate(code.library, code.symbol, &aggregate->module);

		/*
		 * The fold is that of the module in memory, not of the one that was
		 * there at registration.
		 */
		aggregate->reducer_version = Max(aggregate->module.reducer_version, 1);
		aggregate->has_boundary = aggregate->module.boundary != NULL;
	}
	else if (code.handler != NULL)
		resolve_functions(aggregate, &code, registered_by, search_path);
	MemoryContextSwitchTo(old);
	aggregate->upcasters = EvpgUpcastersGet();
	EvpgUpcasterAddHashes(aggregate->upcasters, aggregate_type, &aggregate->stamp, &aggregate->definition_hash);
	aggregate->counters = get_counters(aggregate_type);
	MemoryContextSetParent(context, EvpgRegistrationMemory());
	return aggregate;
}

/*
 * EvpgAggregateGet
 *		Returns an aggregate type, ready to be used, from the session's cache or
 *		from its registration.  It lives to the end of the transaction at least.
 *		Raises VE003 if the type is not registered, and other errors if its
 *		module or functions are not what they were.  The caller is inside
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
 *		Returns an aggregate type that has a handler and a reducer, as
 *		EvpgAggregateGet does; raises 55000 for a type that only stores events.
 */
EvpgAggregate *
EvpgAggregateGetWithState(const char *aggregate_type)
{
	EvpgAggregate *aggregate = EvpgAggregateGet(aggregate_type);

	if (!aggregate->has_module && aggregate->handler == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("aggregate type \"%s\" only stores events", aggregate_type),
				 errdetail("It was registered without handler and reducer, so it takes no commands and has no state."),
				 errhint("Append events with evpg_append(), or register it with a handler and a reducer.")));
	return aggregate;
}

/*
 * EvpgAggregateGetOfStreams
 *		Returns an aggregate type each of whose streams has a state, as
 *		EvpgAggregateGetWithState does; raises 55000 for one with a boundary.
 */
EvpgAggregate *
EvpgAggregateGetOfStreams(const char *aggregate_type)
{
	EvpgAggregate *aggregate = EvpgAggregateGetWithState(aggregate_type);

	if (aggregate->has_boundary)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("aggregate type \"%s\" has a boundary, so its streams have no state", aggregate_type),
				 errdetail("A command is decided on the events that the boundary names for it."),
				 errhint("evpg_boundary_state() returns the state on which a command would be decided.")));
	return aggregate;
}

/* ------------------------------------------------------------------ registration */

/* Arguments of evpg_register_aggregate(). */
enum
{
	ARG_AGGREGATE_TYPE, ARG_HANDLER, ARG_REDUCER, ARG_INVARIANT, ARG_LIBRARY, ARG_SYMBOL, ARG_INITIAL_STATE,
	ARG_SNAPSHOT_EVERY, ARG_SNAPSHOT_KEEP, ARG_REDUCER_VERSION, ARG_BROADCAST, ARG_BOUNDARY
};

static EvpgStatement insert_aggregate = {
	.text = "INSERT INTO evpg.aggregate_type AS a (aggregate_type, library, symbol, handler, reducer, invariant,"
	" initial_state, snapshot_every, snapshot_keep, reducer_version, search_path, registered_by, generation,"
	" fold_generation, registered_at, broadcast, boundary)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13, evpg.clock_timestamp(), $14, $15)"
	" ON CONFLICT (aggregate_type) DO UPDATE"
	" SET library = excluded.library, symbol = excluded.symbol,"
	" handler = excluded.handler, reducer = excluded.reducer, invariant = excluded.invariant,"
	" initial_state = excluded.initial_state, snapshot_every = excluded.snapshot_every,"
	" snapshot_keep = excluded.snapshot_keep, reducer_version = excluded.reducer_version,"
	" search_path = excluded.search_path, registered_by = excluded.registered_by,"
	" registered_at = excluded.registered_at, broadcast = excluded.broadcast, boundary = excluded.boundary,"
	" generation = GREATEST(excluded.generation, a.generation + 1),"
	" fold_generation = CASE WHEN (a.library, a.symbol, a.reducer, a.initial_state) IS DISTINCT FROM"
	" (excluded.library, excluded.symbol, excluded.reducer, excluded.initial_state)"
	" THEN GREATEST(excluded.generation, a.generation + 1) ELSE a.fold_generation END"
	" WHERE (a.library, a.symbol, a.handler, a.reducer, a.invariant, a.initial_state, a.snapshot_every,"
	" a.snapshot_keep, a.reducer_version, a.search_path, a.registered_by, a.broadcast, a.boundary) IS DISTINCT FROM"
	" (excluded.library, excluded.symbol, excluded.handler, excluded.reducer, excluded.invariant,"
	" excluded.initial_state, excluded.snapshot_every, excluded.snapshot_keep, excluded.reducer_version,"
	" excluded.search_path, excluded.registered_by, excluded.broadcast, excluded.boundary)",
	.types = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID, INT4OID, INT4OID,
	INT4OID, TEXTOID, TEXTOID, INT8OID, TEXTOID, TEXTOID}
};

/* Raises an error if one of the two functions is missing that only serve together. */
static void
require_function(FunctionCallInfo fcinfo, int arg, const char *what)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what),
				 errdetail("A handler decides by the state that the reducer makes of the events."),
				 errhint("Give handler and reducer, or neither of them, nor an invariant or a boundary, "
						 "for a type that only stores events.")));
}

/* Reads and checks the functions that the arguments name. */
static void
read_functions(FunctionCallInfo fcinfo, AggregateCode *code)
{
	Oid			registrant = GetUserId();

	require_function(fcinfo, ARG_HANDLER, "handler");
	require_function(fcinfo, ARG_REDUCER, "reducer");
	code->handler = EvpgFunctionCheck(PG_GETARG_OID(ARG_HANDLER), EVPG_ROLE_HANDLER, registrant);
	code->reducer = EvpgFunctionCheck(PG_GETARG_OID(ARG_REDUCER), EVPG_ROLE_REDUCER, registrant);
	if (!PG_ARGISNULL(ARG_INVARIANT))
		code->invariant = EvpgFunctionCheck(PG_GETARG_OID(ARG_INVARIANT), EVPG_ROLE_INVARIANT, registrant);
	if (!PG_ARGISNULL(ARG_BOUNDARY))
		code->boundary = EvpgFunctionCheck(PG_GETARG_OID(ARG_BOUNDARY), EVPG_ROLE_BOUNDARY, registrant);
}

/* Reads and checks the symbol that the arguments name, which also gives initial state and reducer version. */
static void
read_library(FunctionCallInfo fcinfo, AggregateCode *code)
{
	evpg_aggregate_definition module;

	if (!superuser_arg(GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to register a library")));
	code->library = EvpgModulePath(EvpgArgId(fcinfo, ARG_LIBRARY, "library"));
	code->symbol = EvpgArgName(fcinfo, ARG_SYMBOL, "symbol");
	EvpgModuleLoadAggregate(code->library, code->symbol, &module);
	if (code->reducer_version != 1 || !JB_ROOT_IS_OBJECT(code->initial_state) || JB_ROOT_COUNT(code->initial_state) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("initial_state and reducer_version of a library come from its symbol"),
				 errhint("Leave both arguments out.")));
	code->initial_state = EvpgModuleInitialState(code->library, code->symbol, module.initial_state);
	code->reducer_version = Max(module.reducer_version, 1);
}

/*
 * evpg_register_aggregate
 *		SQL: evpg_register_aggregate(...).  Registers an aggregate type with
 *		functions, with a symbol of a library (superusers only), or with
 *		neither, to store events alone.  Returns whether anything changed; other
 *		sessions are told by an invalidation.
 */
Datum
evpg_register_aggregate(PG_FUNCTION_ARGS)
{
	char	   *aggregate_type = EvpgArgName(fcinfo, ARG_AGGREGATE_TYPE, "aggregate type");
	int			snapshot_every = EvpgArgInt(fcinfo, ARG_SNAPSHOT_EVERY, "snapshot_every", 0);
	int			snapshot_keep = EvpgArgInt(fcinfo, ARG_SNAPSHOT_KEEP, "snapshot_keep", 1);
	AggregateCode code = {
		.initial_state = EvpgArgJsonb(fcinfo, ARG_INITIAL_STATE, "initial state"),
		.reducer_version = EvpgArgInt(fcinfo, ARG_REDUCER_VERSION, "reducer_version", 1)
	};
	char	   *broadcast = EvpgArgText(fcinfo, ARG_BROADCAST, "broadcast");
	char	   *search_path = EvpgFunctionSearchPath();
	bool		by_functions = !PG_ARGISNULL(ARG_HANDLER) || !PG_ARGISNULL(ARG_REDUCER) || !PG_ARGISNULL(ARG_INVARIANT) ||
	!PG_ARGISNULL(ARG_BOUNDARY);
	bool		by_library = !PG_ARGISNULL(ARG_LIBRARY) || !PG_ARGISNULL(ARG_SYMBOL);
	Datum		values[15];
	char		nulls[15];
	uint64		changed;
	EvpgScope	scope;

	EvpgCheckNewName(aggregate_type, "aggregate type");
	EvpgArgRefuseNull(fcinfo, ARG_INITIAL_STATE, "initial state");
	(void) EvpgBroadcastFromName(broadcast);
	if (by_functions && by_library)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an aggregate is registered with either functions or a library"),
				 errhint("Give handler and reducer, or library and symbol.")));
	if (!by_functions && !by_library && (!JB_ROOT_IS_OBJECT(code.initial_state) || JB_ROOT_COUNT(code.initial_state) != 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an aggregate without handler and reducer has no state"),
				 errhint("Leave initial_state out, or give handler and reducer, or library and symbol.")));

	if (by_functions)
		read_functions(fcinfo, &code);
	else if (by_library)
		read_library(fcinfo, &code);

	memset(nulls, ' ', sizeof(nulls));
	EvpgParameterText(values, nulls, 0, aggregate_type);
	EvpgParameterText(values, nulls, 1, code.library);
	EvpgParameterText(values, nulls, 2, code.symbol);
	EvpgParameterText(values, nulls, 3, code.handler);
	EvpgParameterText(values, nulls, 4, code.reducer);
	EvpgParameterText(values, nulls, 5, code.invariant);
	values[6] = JsonbPGetDatum(code.initial_state);
	values[7] = Int32GetDatum(snapshot_every);
	values[8] = Int32GetDatum(snapshot_keep);
	values[9] = Int32GetDatum(code.reducer_version);
	EvpgParameterText(values, nulls, 10, search_path);
	EvpgParameterText(values, nulls, 11, GetUserNameFromId(GetUserId(), false));

	/*
	 * Grows over DROP and registering again too, so that no backend takes one
	 * for the other.
	 */
	values[12] = Int64GetDatum(GetCurrentTimestamp());
	EvpgParameterText(values, nulls, 13, broadcast);
	EvpgParameterText(values, nulls, 14, code.boundary);

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

/*
 * evpg_drop_aggregate
 *		SQL: evpg_drop_aggregate(aggregate_type, missing_ok).  Removes a
 *		registration; streams and events stay.
 */
Datum
evpg_drop_aggregate(PG_FUNCTION_ARGS)
{
	(void) EvpgArgText(fcinfo, 0, "aggregate type");
	PG_RETURN_BOOL(EvpgRegistrationDrop(fcinfo, &delete_aggregate, EvpgCatalogGet()->aggregate_type,
										EVPG_ERRCODE_UNKNOWN_AGGREGATE, "aggregate type", "evpg_drop_aggregate()"));
}

/* ------------------------------------------------------------------ counters */

/* SQL: evpg_session_stats().  Returns the counters of this session, one row per aggregate type. */
Datum
evpg_session_stats(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	HASH_SEQ_STATUS status;
	EvpgAggregateCounters *entry;

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
