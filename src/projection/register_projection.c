/*-------------------------------------------------------------------------
 *
 * register_projection.c
 *		The SQL functions that register and drop projections.
 *
 * They hold the lock of the consumer, that of the rebuild, and at last ShareLock on
 * evpg.fence, so they wait for appenders in mid-flight and appenders for them: an
 * event is either appended by a transaction that knows the projection, or committed
 * before.  An inline projection that becomes asynchronous has applied every event that
 * was drawn; an asynchronous one that becomes inline applies the rest first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/names.h"
#include "base/registration.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "evpg.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/statement.h"
#include "consumer/consumer.h"
#include "consumer/parked_event.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "projection/batch.h"
#include "projection/declared_tables.h"
#include "projection/projection.h"
#include "projection/rebuild.h"
#include "storage/lmgr.h"
#include "usercode/function.h"
#include "usercode/guard.h"
#include "usercode/module.h"
#include "usercode/registration_advice.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(evpg_register_projection);
PG_FUNCTION_INFO_V1(evpg_drop_projection);

/* Arguments of evpg_register_projection(). */
enum
{
	ARG_NAME, ARG_REDUCER, ARG_HANDLER, ARG_LIBRARY, ARG_SYMBOL,
	ARG_AGGREGATE_TYPES, ARG_EVENT_TYPES, ARG_TAGS, ARG_KEY_PATH, ARG_KEY_FUNCTION, ARG_CONSTANT_KEY,
	ARG_INITIAL_STATE, ARG_TABLES, ARG_RESET, ARG_MODE, ARG_BROADCAST, ARG_EVENT_NAME,
	ARG_ON_ERROR, ARG_MAX_ATTEMPTS, ARG_START_POSITION, ARG_VERSION
};

/* The default of the argument in sql/evpg--1.0.sql. */
#define DEFAULT_MAX_ATTEMPTS 5

/* How many positions a registration may have to catch up with. */
#define MAX_CATCH_UP 100000

/* Parameters of the statement that registers. */
enum
{
	COLUMN_NAME, COLUMN_LIBRARY, COLUMN_SYMBOL, COLUMN_REDUCER, COLUMN_HANDLER, COLUMN_KEY_FUNCTION,
	COLUMN_KEY_PATH, COLUMN_CONSTANT_KEY, COLUMN_AGGREGATE_TYPES, COLUMN_EVENT_TYPES, COLUMN_TAGS,
	COLUMN_INITIAL_STATE, COLUMN_BROADCAST, COLUMN_EVENT_NAME, COLUMN_SEARCH_PATH, COLUMN_REGISTERED_BY,
	COLUMN_MODE, COLUMN_ON_ERROR, COLUMN_MAX_ATTEMPTS, COLUMN_RESET, COLUMN_TABLES, COLUMN_START_POSITION,
	COLUMN_VERSION, COLUMNS
};

/* ------------------------------------------------------------------ arguments */

/* Raises an error if an argument is given that is about events: a projection without code takes none. */
static void
refuse_without_code(FunctionCallInfo fcinfo, int arg)
{
	bool		given = !PG_ARGISNULL(arg);

	switch (arg)
	{
		case ARG_MODE:
			given = (EvpgProjectionModeFromName(EvpgArgName(fcinfo, arg, "mode")) != EVPG_MODE_INLINE);
			break;
		case ARG_AGGREGATE_TYPES:
		case ARG_EVENT_TYPES:
		case ARG_TAGS:
		case ARG_KEY_PATH:
		case ARG_KEY_FUNCTION:
		case ARG_CONSTANT_KEY:
		case ARG_RESET:
		case ARG_TABLES:
			break;
		case ARG_MAX_ATTEMPTS:
			given = given && PG_GETARG_INT32(arg) != DEFAULT_MAX_ATTEMPTS;
			break;
		case ARG_START_POSITION:
			given = given && PG_GETARG_INT64(arg) != 0;
			break;
		default:
			return;
	}
	if (given)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a projection without a reducer, a handler or a library takes no events"),
				 errdetail("Its rows are what evpg_put_projection() makes them."),
				 errhint("Give name, broadcast and event_name alone, or reducer, or handler, or library and symbol.")));
}

/* Raises an error if an argument is given that would have no effect. */
static void
refuse_without_effect(FunctionCallInfo fcinfo, Jsonb *initial_state)
{
	bool		is_inline = EvpgProjectionModeFromName(EvpgArgName(fcinfo, ARG_MODE, "mode")) == EVPG_MODE_INLINE;

	if (is_inline && EvpgOnErrorFromName(EvpgArgName(fcinfo, ARG_ON_ERROR, "on_error")) != EVPG_ON_ERROR_STOP)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("on_error is for asynchronous projections"),
				 errdetail("An event that an inline projection cannot apply fails the command."),
				 errhint("Leave on_error out, or register with mode => 'async'.")));
	if (PG_ARGISNULL(ARG_HANDLER))
		return;
	if (!JB_ROOT_IS_OBJECT(initial_state) || JB_ROOT_COUNT(initial_state) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a projection with a handler has no state"),
				 errhint("Leave initial_state out.")));
	if (is_inline && PG_ARGISNULL(ARG_TABLES) && PG_ARGISNULL(ARG_RESET) &&
		((!PG_ARGISNULL(ARG_MAX_ATTEMPTS) && PG_GETARG_INT32(ARG_MAX_ATTEMPTS) != DEFAULT_MAX_ATTEMPTS) ||
		 (!PG_ARGISNULL(ARG_START_POSITION) && PG_GETARG_INT64(ARG_START_POSITION) != 0)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_attempts and start_position of an inline projection are for its rebuilds"),
				 errdetail("A handler without tables and reset cannot be rebuilt."),
				 errhint("Leave them out, or give tables or reset.")));
}

/* Raises an error if arguments contradict each other. */
static void
check_projection_arguments(FunctionCallInfo fcinfo)
{
	bool		by_functions = !PG_ARGISNULL(ARG_REDUCER) || !PG_ARGISNULL(ARG_HANDLER);
	bool		by_library = !PG_ARGISNULL(ARG_LIBRARY) || !PG_ARGISNULL(ARG_SYMBOL);

	if ((by_functions && by_library) || (!PG_ARGISNULL(ARG_REDUCER) && !PG_ARGISNULL(ARG_HANDLER)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a projection is registered with either a reducer, a handler, or a library"),
				 errhint("Give reducer, or handler, or library and symbol.")));
	if (!by_functions && !by_library)
		for (int arg = ARG_AGGREGATE_TYPES; arg <= ARG_START_POSITION; arg++)
			refuse_without_code(fcinfo, arg);
	if (!PG_ARGISNULL(ARG_KEY_PATH) + !PG_ARGISNULL(ARG_KEY_FUNCTION) + !PG_ARGISNULL(ARG_CONSTANT_KEY) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a projection has one kind of key"),
				 errhint("Give key_path, or key_function, or constant_key, or none of them for the aggregate id.")));
	if (PG_ARGISNULL(ARG_HANDLER) && (!PG_ARGISNULL(ARG_RESET) || !PG_ARGISNULL(ARG_TABLES)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("only a projection with a handler has tables"),
				 errhint("Leave reset and tables out.")));
	if (!PG_ARGISNULL(ARG_RESET) && !PG_ARGISNULL(ARG_TABLES))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("reset and tables cannot both be given"),
				 errhint("With tables, a rebuild fills copies of them; with reset, it empties them and fills them again.")));
}

/* Checks the symbol of a library; returns its initial state, and sets the path of the library and the symbol. */
static Jsonb *
check_library(FunctionCallInfo fcinfo, Jsonb *initial_state, char **library, char **symbol)
{
	evpg_projection_definition module;

	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to register a library")));
	*library = EvpgModulePath(EvpgArgId(fcinfo, ARG_LIBRARY, "library"));
	*symbol = EvpgArgName(fcinfo, ARG_SYMBOL, "symbol");
	EvpgModuleLoadProjection(*library, *symbol, &module);
	if (!JB_ROOT_IS_OBJECT(initial_state) || JB_ROOT_COUNT(initial_state) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("initial_state of a library comes from its symbol"),
				 errhint("Leave the argument out.")));
	return EvpgModuleInitialState(*library, *symbol, module.initial_state);
}

/* Checks a function, and returns its signature; NULL if the argument is NULL. */
static char *
check_projection_function(FunctionCallInfo fcinfo, int arg, EvpgRole role)
{
	return PG_ARGISNULL(arg) ? NULL : EvpgFunctionCheck(PG_GETARG_OID(arg), role, GetUserId());
}

/* Returns the tables that are declared, as qualified names; NULL if there are none. */
static ArrayType *
check_tables(FunctionCallInfo fcinfo)
{
	return EvpgDeclaredTablesQualify(EvpgArgTextArray(fcinfo, ARG_TABLES, "tables"),
									 PG_ARGISNULL(ARG_HANDLER) ? InvalidOid : PG_GETARG_OID(ARG_HANDLER));
}

/* Checks all arguments that can be checked without locks, and sets the parameters of the statement that registers. */
static void
set_projection_parameters(FunctionCallInfo fcinfo, Datum *values, char *nulls)
{
	char	   *name = EvpgArgName(fcinfo, ARG_NAME, "projection name");
	char	   *mode = EvpgArgName(fcinfo, ARG_MODE, "mode");
	char	   *broadcast = EvpgArgName(fcinfo, ARG_BROADCAST, "broadcast");
	char	   *on_error = EvpgArgName(fcinfo, ARG_ON_ERROR, "on_error");
	Jsonb	   *initial_state = EvpgArgJsonb(fcinfo, ARG_INITIAL_STATE, "initial state");
	char	   *library = NULL;
	char	   *symbol = NULL;

	memset(nulls, ' ', COLUMNS);
	EvpgCheckNewName(name, "projection name");
	EvpgArgRefuseNull(fcinfo, ARG_INITIAL_STATE, "initial state");
	(void) EvpgProjectionModeFromName(mode);
	(void) EvpgBroadcastFromName(broadcast);
	(void) EvpgOnErrorFromName(on_error);
	check_projection_arguments(fcinfo);
	if (!PG_ARGISNULL(ARG_LIBRARY) || !PG_ARGISNULL(ARG_SYMBOL))
		initial_state = check_library(fcinfo, initial_state, &library, &symbol);

	EvpgParameterText(values, nulls, COLUMN_NAME, name);
	EvpgParameterText(values, nulls, COLUMN_LIBRARY, library);
	EvpgParameterText(values, nulls, COLUMN_SYMBOL, symbol);
	EvpgParameterText(values, nulls, COLUMN_REDUCER,
					  check_projection_function(fcinfo, ARG_REDUCER, EVPG_ROLE_PROJECTION_REDUCER));
	EvpgParameterText(values, nulls, COLUMN_HANDLER,
					  check_projection_function(fcinfo, ARG_HANDLER, EVPG_ROLE_PROJECTION_HANDLER));
	EvpgParameterText(values, nulls, COLUMN_KEY_FUNCTION,
					  check_projection_function(fcinfo, ARG_KEY_FUNCTION, EVPG_ROLE_KEY));
	values[COLUMN_KEY_PATH] = PG_GETARG_DATUM(ARG_KEY_PATH);
	nulls[COLUMN_KEY_PATH] = PG_ARGISNULL(ARG_KEY_PATH) ? 'n' : ' ';
	EvpgParameterText(values, nulls, COLUMN_CONSTANT_KEY,
					  EvpgArgOptionalId(fcinfo, ARG_CONSTANT_KEY, "constant_key"));
	EvpgParameterArray(values, nulls, COLUMN_AGGREGATE_TYPES,
					   EvpgArgTextArray(fcinfo, ARG_AGGREGATE_TYPES, "aggregate_types"));
	EvpgParameterArray(values, nulls, COLUMN_EVENT_TYPES, EvpgArgTextArray(fcinfo, ARG_EVENT_TYPES, "event_types"));
	EvpgParameterArray(values, nulls, COLUMN_TAGS, EvpgArgTextArray(fcinfo, ARG_TAGS, "tags"));
	EvpgParameterJsonb(values, nulls, COLUMN_INITIAL_STATE, initial_state);
	EvpgParameterText(values, nulls, COLUMN_BROADCAST, broadcast);
	EvpgParameterText(values, nulls, COLUMN_EVENT_NAME, EvpgArgName(fcinfo, ARG_EVENT_NAME, "event_name"));
	EvpgParameterText(values, nulls, COLUMN_SEARCH_PATH, EvpgFunctionSearchPath());
	EvpgParameterText(values, nulls, COLUMN_REGISTERED_BY, GetUserNameFromId(GetUserId(), false));
	EvpgParameterText(values, nulls, COLUMN_MODE, mode);
	EvpgParameterText(values, nulls, COLUMN_ON_ERROR, on_error);
	values[COLUMN_MAX_ATTEMPTS] = Int32GetDatum(EvpgArgInt(fcinfo, ARG_MAX_ATTEMPTS, "max_attempts", 1));
	EvpgParameterText(values, nulls, COLUMN_RESET, check_projection_function(fcinfo, ARG_RESET, EVPG_ROLE_RESET));
	EvpgParameterArray(values, nulls, COLUMN_TABLES, check_tables(fcinfo));
	values[COLUMN_START_POSITION] = Int64GetDatum(EvpgArgBigintAtLeast(fcinfo, ARG_START_POSITION, "start_position", 0));
	values[COLUMN_VERSION] = Int32GetDatum(EvpgArgInt(fcinfo, ARG_VERSION, "version", 1));
	refuse_without_effect(fcinfo, initial_state);
}

/* Returns an array that is a parameter; NULL if it is NULL. */
static ArrayType *
get_array_parameter(const Datum *values, const char *nulls, int column)
{
	return nulls[column] == ' ' ? DatumGetArrayTypeP(values[column]) : NULL;
}

/* Returns the names in an array that is a parameter; NIL if it is NULL. */
static List *
names_parameter(const Datum *values, const char *nulls, int column)
{
	ArrayType  *array = get_array_parameter(values, nulls, column);

	return array == NULL ? NIL : EvpgNamesFromArray(array);
}

/* Gives advice for which the log is read, before appenders have to wait, and returns the types that were seen. */
static List *
advise_before_locks(FunctionCallInfo fcinfo, const char *name, const Datum *values, const char *nulls)
{
	EvpgLogFilter takes = {
		.aggregate_types = names_parameter(values, nulls, COLUMN_AGGREGATE_TYPES),
		.event_types = names_parameter(values, nulls, COLUMN_EVENT_TYPES),
		.tags = names_parameter(values, nulls, COLUMN_TAGS)
	};

	EvpgAdvisePath("key_path", "projection", name,
				   PG_ARGISNULL(ARG_KEY_PATH) ? NULL : PG_DETOAST_DATUM(values[COLUMN_KEY_PATH]), &takes);
	return takes.aggregate_types == NIL && takes.event_types == NIL ? NIL : EvpgAdviseReadSeenTypes();
}

/* ------------------------------------------------------------------ registering */

/* Applies, by its new definition, the rest of the events to a projection that was asynchronous, and drops its consumer. */
static void
catch_up_inline(const char *name)
{
	EvpgConsumer consumer;
	EvpgBatch	batch = {
		.projection = EvpgProjectionGet(name, false),
		.upto = EvpgFenceLastDrawn(),
		.max_events = 10000,
		.send = true
	};

	EvpgBatchRequireNewSnapshots("the change of a projection from async to inline");
	(void) EvpgConsumerRead(name, &consumer);
	if (EvpgParkedEventList(name, PG_INT64_MAX) != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("projection \"%s\" has parked events, so it cannot become inline", name),
				 errhint("Replay or skip them first.")));
	if (batch.upto - consumer.checkpoint > MAX_CATCH_UP)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("projection \"%s\" is too far behind to become inline", name),
				 errdetail("It is " INT64_FORMAT " positions behind; at most %d can be made up for here.",
						   batch.upto - consumer.checkpoint, MAX_CATCH_UP),
				 errhint("Wait until it has caught up.")));
	batch.build = batch.projection->build;
	batch.parked = EvpgParkedEventList(name, consumer.checkpoint);
	for (batch.after = consumer.checkpoint; batch.after < batch.upto; batch.after = batch.reached)
		EvpgBatchApply(&batch);
	EvpgConsumerDrop(name, false);
}

/*
 * Creates or drops the consumer after a change of a registration, and starts a
 * rebuild if there is a new version.  existed, mode_before and version_before are of
 * the registration before.
 */
static void
apply_registration(const char *name, bool existed, EvpgProjectionMode mode_before, int version_before, int64 last_drawn)
{
	EvpgProjection *projection = EvpgProjectionGet(name, false);

	if (projection->mode == EVPG_MODE_ASYNC && !existed)
		EvpgConsumerCreate(name, "projection", projection->start_position);
	else if (projection->mode == EVPG_MODE_ASYNC && mode_before == EVPG_MODE_INLINE)
		EvpgConsumerCreate(name, "projection", last_drawn);
	else if (projection->mode == EVPG_MODE_INLINE && existed && mode_before == EVPG_MODE_ASYNC)
		catch_up_inline(name);

	/*
	 * What has been rebuilt by the old definition is of no use; a new version
	 * asks for a rebuild.
	 */
	if (EvpgRebuildExists(name) || (existed && projection->version != version_before))
		EvpgRebuildStart(projection);
}

static EvpgStatement upsert_projection = {
	.text =
	"INSERT INTO evpg.projection AS p"
	"       (name, library, symbol, reducer, handler, key_function, key_path, constant_key,"
	"        aggregate_types, event_types, tags, initial_state, broadcast, event_name, search_path,"
	"        registered_by, mode, on_error, max_attempts, reset, tables, start_position, version, registered_at)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,"
	"         $21, $22, $23, evpg.clock_timestamp())"
	" ON CONFLICT (name) DO UPDATE"
	" SET library = excluded.library, symbol = excluded.symbol, reducer = excluded.reducer,"
	"     handler = excluded.handler, key_function = excluded.key_function, key_path = excluded.key_path,"
	"     constant_key = excluded.constant_key, aggregate_types = excluded.aggregate_types,"
	"     event_types = excluded.event_types, tags = excluded.tags, initial_state = excluded.initial_state,"
	"     broadcast = excluded.broadcast, event_name = excluded.event_name, search_path = excluded.search_path,"
	"     registered_by = excluded.registered_by, registered_at = excluded.registered_at, mode = excluded.mode,"
	"     on_error = excluded.on_error, max_attempts = excluded.max_attempts, reset = excluded.reset,"
	"     tables = excluded.tables, start_position = excluded.start_position, version = excluded.version"
	" WHERE (p.library, p.symbol, p.reducer, p.handler, p.key_function, p.key_path::text, p.constant_key,"
	"        p.aggregate_types, p.event_types, p.tags, p.initial_state, p.broadcast, p.event_name, p.search_path,"
	"        p.mode, p.on_error, p.max_attempts, p.reset, p.tables, p.start_position, p.version, p.registered_by)"
	"       IS DISTINCT FROM"
	"       (excluded.library, excluded.symbol, excluded.reducer, excluded.handler, excluded.key_function,"
	"        excluded.key_path::text, excluded.constant_key, excluded.aggregate_types, excluded.event_types,"
	"        excluded.tags, excluded.initial_state, excluded.broadcast, excluded.event_name, excluded.search_path,"
	"        excluded.mode, excluded.on_error, excluded.max_attempts, excluded.reset, excluded.tables,"
	"        excluded.start_position, excluded.version, excluded.registered_by)",
	.types = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONPATHOID, TEXTOID,
		TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, JSONBOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
	TEXTOID, TEXTOID, INT4OID, TEXTOID, TEXTARRAYOID, INT8OID, INT4OID}
};

/*
 * evpg_register_projection(...)
 *		Registers a projection, or changes its registration; returns false if nothing
 *		has changed.  Locks the consumer, the rebuild and the fence until the end of the
 *		transaction.
 */
Datum
evpg_register_projection(PG_FUNCTION_ARGS)
{
	Datum		values[COLUMNS];
	char		nulls[COLUMNS];
	char	   *name;
	ArrayType  *tables;
	List	   *seen;
	EvpgProjection *before;
	EvpgProjectionMode mode_before = EVPG_MODE_INLINE;
	int			version_before = 0;
	bool		changed;
	EvpgScope	scope;

	set_projection_parameters(fcinfo, values, nulls);
	name = TextDatumGetCString(values[COLUMN_NAME]);
	tables = get_array_parameter(values, nulls, COLUMN_TABLES);
	EvpgRefuseInProjection("register projections");
	EvpgEnter(&scope, "evpg_register_projection()");
	seen = advise_before_locks(fcinfo, name, values, nulls);
	if (tables != NULL)
		EvpgAdviseTables(PG_GETARG_OID(ARG_HANDLER), tables);
	(void) EvpgConsumerLock(name, true);
	(void) EvpgRebuildLock(name, ExclusiveLock, true);
	LockRelationOid(EvpgCatalogGet()->fence, ShareLock);
	before = EvpgProjectionGet(name, true);
	if (tables != NULL)
		EvpgDeclaredTablesCheckUnclaimed(name, tables);
	EvpgConsumerRefuseName(name, "projection");
	if (before != NULL)
	{
		mode_before = before->mode;
		version_before = before->version;
	}
	changed = EvpgStatementExecute(&upsert_projection, values, nulls) > 0;
	if (changed)
	{
		EvpgRegistrationInvalidate(EvpgCatalogGet()->projection);
		EvpgWakeLauncherAtCommit();
		EvpgWakeConsumersAtEnd();
		EvpgAdviseTypes("projection", name, get_array_parameter(values, nulls, COLUMN_AGGREGATE_TYPES),
						get_array_parameter(values, nulls, COLUMN_EVENT_TYPES), seen);
		apply_registration(name, before != NULL, mode_before, version_before, EvpgFenceLastDrawn());
	}
	EvpgLeave(&scope);
	PG_RETURN_BOOL(changed);
}

static EvpgStatement delete_projection = {
	.text = "DELETE FROM evpg.projection"
	" WHERE name = $1",
	.types = {TEXTOID}
};

/*
 * evpg_drop_projection(name, missing_ok)
 *		Drops a projection with its rows, which would be read as if they were still
 *		maintained, its rebuild and its parked events.  Locks as a registration does.
 */
Datum
evpg_drop_projection(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgText(fcinfo, 0, "projection name");
	EvpgScope	scope;
	bool		dropped;

	EvpgRefuseInProjection("drop projections");
	EvpgEnter(&scope, "evpg_drop_projection()");
	(void) EvpgConsumerLock(name, true);
	(void) EvpgRebuildCancel(name);
	LockRelationOid(EvpgCatalogGet()->fence, ShareLock);
	EvpgRebuildAbandonRows(name);
	dropped = EvpgRegistrationDrop(fcinfo, &delete_projection, EvpgCatalogGet()->projection,
								   EVPG_ERRCODE_UNKNOWN_PROJECTION, "projection", "evpg_drop_projection()");

	/*
	 * Without a projection the consumer of that name, if there is one, is a
	 * saga's.
	 */
	if (dropped)
		EvpgConsumerDrop(name, true);
	/* Sessions may wait for any key of the projection. */
	EvpgWakeAllWaitersAtCommit();
	EvpgLeave(&scope);
	PG_RETURN_BOOL(dropped);
}
