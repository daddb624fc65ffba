/*-------------------------------------------------------------------------
 *
 * register_saga.c
 *		The SQL functions that register and drop sagas.
 *
 * A new saga reacts to what is appended from now on: the session that registers it
 * holds ShareLock on evpg.fence, so what was appended before is committed, and below
 * the last position drawn.  It waits for instances that are reacting, since their
 * saga changes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/names.h"
#include "base/registration.h"
#include "base/statement.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "consumer/checkpoint.h"
#include "consumer/consumer.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "projection/batch.h"
#include "saga/route.h"
#include "saga/saga.h"
#include "saga/saga_lock.h"
#include "storage/lmgr.h"
#include "usercode/guard.h"
#include "usercode/module.h"
#include "usercode/registration_advice.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evpg_register_saga);
PG_FUNCTION_INFO_V1(evpg_drop_saga);

/* Arguments of evpg_register_saga(). */
enum
{
	ARG_NAME, ARG_HANDLER, ARG_REJECTION_HANDLER, ARG_TIMER_HANDLER, ARG_LIBRARY, ARG_SYMBOL,
	ARG_AGGREGATE_TYPES, ARG_EVENT_TYPES, ARG_START_EVENT_TYPES, ARG_KEY_PATH, ARG_KEY_FUNCTION,
	ARG_INITIAL_STATE, ARG_TRANSITIONS, ARG_MAX_ATTEMPTS, ARG_BACKOFF, ARG_MAX_BACKOFF,
	ARG_START_POSITION, ARG_VERSION, ARG_MODE
};

/* Parameters of upsert_saga. */
enum
{
	COLUMN_NAME, COLUMN_VERSION, COLUMN_LIBRARY, COLUMN_SYMBOL, COLUMN_HANDLER, COLUMN_REJECTION_HANDLER,
	COLUMN_TIMER_HANDLER, COLUMN_KEY_FUNCTION, COLUMN_KEY_PATH, COLUMN_AGGREGATE_TYPES, COLUMN_EVENT_TYPES,
	COLUMN_START_EVENT_TYPES, COLUMN_INITIAL_STATE, COLUMN_TRANSITIONS, COLUMN_MAX_ATTEMPTS, COLUMN_BACKOFF,
	COLUMN_MAX_BACKOFF, COLUMN_SEARCH_PATH, COLUMN_REGISTERED_BY, COLUMN_MODE, COLUMNS
};

/* ------------------------------------------------------------------ arguments */

/* Checks an argument that is a pause; one that is too long could not be added to a time. */
static Datum
check_pause(FunctionCallInfo fcinfo, int arg, const char *what)
{
	Interval	zero = {0};
	Interval	most = {.month = 1200};

	EvpgArgRefuseNull(fcinfo, arg, what);
	if (DatumGetBool(DirectFunctionCall2(interval_lt, PG_GETARG_DATUM(arg), IntervalPGetDatum(&zero))) ||
		DatumGetBool(DirectFunctionCall2(interval_gt, PG_GETARG_DATUM(arg), IntervalPGetDatum(&most))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between 0 and 100 years", what)));
	return PG_GETARG_DATUM(arg);
}

/* Checks which arguments are given together. */
static void
check_saga_arguments(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(ARG_HANDLER) == (PG_ARGISNULL(ARG_LIBRARY) && PG_ARGISNULL(ARG_SYMBOL)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a saga is registered with either a handler or a library"),
				 errhint("Give handler, or library and symbol.")));
	if (PG_ARGISNULL(ARG_HANDLER) &&
		(!PG_ARGISNULL(ARG_REJECTION_HANDLER) || !PG_ARGISNULL(ARG_TIMER_HANDLER) || !PG_ARGISNULL(ARG_KEY_FUNCTION) ||
		 !PG_ARGISNULL(ARG_KEY_PATH) || !PG_ARGISNULL(ARG_EVENT_TYPES) || !PG_ARGISNULL(ARG_START_EVENT_TYPES)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("handlers, event types and keys of a library come from its symbol"),
				 errhint("Leave these arguments out.")));
	if (!PG_ARGISNULL(ARG_KEY_PATH) && !PG_ARGISNULL(ARG_KEY_FUNCTION))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a saga has one kind of key"),
				 errhint("Give key_path, or key_function, or neither for the aggregate id.")));
}

/* Checks and returns declared transitions, {"state": ["next", ...], ...}; NULL if there are none. */
static Jsonb *
check_transitions(Jsonb *transitions)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	int			depth = 0;

	if (transitions == NULL)
		return NULL;
	iterator = JsonbIteratorInit(&transitions->root);
	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		bool		valid;

		if (token == WJB_BEGIN_OBJECT || token == WJB_BEGIN_ARRAY)
		{
			valid = ++depth == (token == WJB_BEGIN_OBJECT ? 1 : 2);
		}
		else if (token == WJB_END_OBJECT || token == WJB_END_ARRAY)
		{
			valid = true;
			depth--;
		}
		else
			valid = token == WJB_KEY || (token == WJB_ELEM && value.type == jbvString);
		if (!valid)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("transitions must be an object of arrays of names"),
					 errhint("For example {\"\": [\"begun\"], \"begun\": [\"done\"]}.")));
	}
	return transitions;
}

/* Raises an error if a start type is not one that the saga takes.  Both may be NULL: all types. */
static void
check_start_types(ArrayType *all, ArrayType *starting)
{
	List	   *names = all == NULL ? NIL : EvpgNamesFromArray(all);
	ListCell   *cell;

	foreach(cell, starting == NULL ? NIL : EvpgNamesFromArray(starting))
		if (!EvpgNamesHave(names, lfirst(cell)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("start event type \"%s\" is not one of the event types of the saga", (char *) lfirst(cell)),
				 errhint("Add it to event_types.")));
}

/* Returns the types of a module's events, or of those that start; NULL if none does, so that any may. */
static ArrayType *
list_module_event_types(const evpg_saga_definition *module, bool starting)
{
	List	   *types = NIL;

	for (const evpg_react_entry *entry = module->events; entry->type != NULL; entry++)
		if (!starting || entry->starts)
			types = lappend(types, (char *) entry->type);
	return types == NIL ? NULL : DatumGetArrayTypeP(EvpgNamesToArray(types));
}

/* Sets the parameters that come from the symbol of a library. */
static void
set_library_parameters(FunctionCallInfo fcinfo, Datum *values, char *nulls)
{
	char	   *library;
	char	   *symbol;
	evpg_saga_definition module;
	Jsonb	   *initial_state = EvpgArgJsonb(fcinfo, ARG_INITIAL_STATE, "initial state");

	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to register a library")));
	library = EvpgModulePath(EvpgArgId(fcinfo, ARG_LIBRARY, "library"));
	symbol = EvpgArgName(fcinfo, ARG_SYMBOL, "symbol");
	EvpgModuleLoadSaga(library, symbol, &module);
	if (initial_state == NULL || !JB_ROOT_IS_OBJECT(initial_state) || JB_ROOT_COUNT(initial_state) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("initial_state of a library comes from its symbol"),
				 errhint("Leave the argument out.")));
	EvpgParameterText(values, nulls, COLUMN_LIBRARY, library);
	EvpgParameterText(values, nulls, COLUMN_SYMBOL, symbol);
	if (nulls[COLUMN_AGGREGATE_TYPES] == 'n' && module.aggregate_types != NULL)
	{
		List	   *types = NIL;

		for (const char *const *type = module.aggregate_types; *type != NULL; type++)
			types = lappend(types, (char *) *type);
		EvpgParameterArray(values, nulls, COLUMN_AGGREGATE_TYPES, DatumGetArrayTypeP(EvpgNamesToArray(types)));
	}
	EvpgParameterArray(values, nulls, COLUMN_EVENT_TYPES, list_module_event_types(&module, false));
	EvpgParameterArray(values, nulls, COLUMN_START_EVENT_TYPES, list_module_event_types(&module, true));
	values[COLUMN_INITIAL_STATE] = JsonbPGetDatum(EvpgModuleInitialState(library, symbol, module.initial_state));
}

/* Checks a function, which is to run for this role, and returns its signature; NULL if it is not given. */
static char *
check_saga_function(FunctionCallInfo fcinfo, int arg, EvpgRole role)
{
	return PG_ARGISNULL(arg) ? NULL : EvpgFunctionCheck(PG_GETARG_OID(arg), role, GetUserId());
}

/* Checks the arguments of evpg_register_saga(), and sets the parameters of upsert_saga. */
static void
set_saga_parameters(FunctionCallInfo fcinfo, Datum *values, char *nulls)
{
	char	   *name = EvpgArgName(fcinfo, ARG_NAME, "saga name");
	Jsonb	   *initial_state = EvpgArgJsonb(fcinfo, ARG_INITIAL_STATE, "initial state");
	Jsonb	   *transitions = check_transitions(EvpgArgJsonb(fcinfo, ARG_TRANSITIONS, "transitions"));
	int32		version = EvpgArgInt(fcinfo, ARG_VERSION, "version", 1);
	char	   *mode = EvpgArgName(fcinfo, ARG_MODE, "mode");
	ArrayType  *event_types;
	ArrayType  *start_event_types;

	EvpgCheckNewName(name, "saga name");
	check_saga_arguments(fcinfo);
	EvpgArgRefuseNull(fcinfo, ARG_INITIAL_STATE, "initial state");
	memset(nulls, ' ', COLUMNS);
	EvpgParameterText(values, nulls, COLUMN_NAME, name);
	values[COLUMN_VERSION] = Int32GetDatum(version);
	nulls[COLUMN_LIBRARY] = nulls[COLUMN_SYMBOL] = 'n';
	EvpgParameterText(values, nulls, COLUMN_HANDLER, check_saga_function(fcinfo, ARG_HANDLER, EVPG_ROLE_SAGA_HANDLER));
	EvpgParameterText(values, nulls, COLUMN_REJECTION_HANDLER,
					  check_saga_function(fcinfo, ARG_REJECTION_HANDLER, EVPG_ROLE_SAGA_REJECTION));
	EvpgParameterText(values, nulls, COLUMN_TIMER_HANDLER,
					  check_saga_function(fcinfo, ARG_TIMER_HANDLER, EVPG_ROLE_SAGA_TIMER));
	EvpgParameterText(values, nulls, COLUMN_KEY_FUNCTION, check_saga_function(fcinfo, ARG_KEY_FUNCTION, EVPG_ROLE_KEY));
	values[COLUMN_KEY_PATH] = PG_GETARG_DATUM(ARG_KEY_PATH);
	nulls[COLUMN_KEY_PATH] = PG_ARGISNULL(ARG_KEY_PATH) ? 'n' : ' ';
	EvpgParameterArray(values, nulls, COLUMN_AGGREGATE_TYPES,
					   EvpgArgTextArray(fcinfo, ARG_AGGREGATE_TYPES, "aggregate_types"));
	event_types = EvpgArgTextArray(fcinfo, ARG_EVENT_TYPES, "event_types");
	EvpgParameterArray(values, nulls, COLUMN_EVENT_TYPES, event_types);
	start_event_types = EvpgArgTextArray(fcinfo, ARG_START_EVENT_TYPES, "start_event_types");
	EvpgParameterArray(values, nulls, COLUMN_START_EVENT_TYPES, start_event_types);
	EvpgParameterJsonb(values, nulls, COLUMN_INITIAL_STATE, initial_state);
	EvpgParameterJsonb(values, nulls, COLUMN_TRANSITIONS, transitions);
	values[COLUMN_MAX_ATTEMPTS] = Int32GetDatum(EvpgArgInt(fcinfo, ARG_MAX_ATTEMPTS, "max_attempts", 1));
	values[COLUMN_BACKOFF] = check_pause(fcinfo, ARG_BACKOFF, "backoff");
	values[COLUMN_MAX_BACKOFF] = check_pause(fcinfo, ARG_MAX_BACKOFF, "max_backoff");
	EvpgParameterText(values, nulls, COLUMN_SEARCH_PATH, EvpgFunctionSearchPath());
	EvpgParameterText(values, nulls, COLUMN_REGISTERED_BY, GetUserNameFromId(GetUserId(), false));
	EvpgParameterText(values, nulls, COLUMN_MODE, EvpgSagaModeIsInline(mode) ? "inline" : "async");
	if (PG_ARGISNULL(ARG_HANDLER))
		set_library_parameters(fcinfo, values, nulls);
	check_start_types(event_types, start_event_types);
}

/* ------------------------------------------------------------------ registering */

static EvpgStatement upsert_saga = {
	.text =
	"INSERT INTO evpg.saga AS s"
	"       (name, version, library, symbol, handler, rejection_handler, timer_handler, key_function, key_path,"
	"        aggregate_types, event_types, start_event_types, initial_state, transitions,"
	"        max_attempts, backoff, max_backoff, search_path, registered_by, mode)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)"
	" ON CONFLICT (name, version) DO UPDATE"
	" SET library = excluded.library, symbol = excluded.symbol, handler = excluded.handler,"
	"     rejection_handler = excluded.rejection_handler, timer_handler = excluded.timer_handler,"
	"     key_function = excluded.key_function, key_path = excluded.key_path,"
	"     aggregate_types = excluded.aggregate_types, event_types = excluded.event_types,"
	"     start_event_types = excluded.start_event_types, initial_state = excluded.initial_state,"
	"     transitions = excluded.transitions, max_attempts = excluded.max_attempts, backoff = excluded.backoff,"
	"     max_backoff = excluded.max_backoff, search_path = excluded.search_path,"
	"     registered_by = excluded.registered_by, registered_at = excluded.registered_at, mode = excluded.mode"
	" WHERE (s.library, s.symbol, s.handler, s.rejection_handler, s.timer_handler, s.key_function,"
	"        s.key_path::text, s.aggregate_types, s.event_types, s.start_event_types, s.initial_state,"
	"        s.transitions, s.max_attempts, s.backoff, s.max_backoff, s.search_path, s.registered_by, s.mode)"
	"       IS DISTINCT FROM"
	"       (excluded.library, excluded.symbol, excluded.handler, excluded.rejection_handler, excluded.timer_handler,"
	"        excluded.key_function, excluded.key_path::text, excluded.aggregate_types, excluded.event_types,"
	"        excluded.start_event_types, excluded.initial_state, excluded.transitions, excluded.max_attempts,"
	"        excluded.backoff, excluded.max_backoff, excluded.search_path, excluded.registered_by, excluded.mode)",
	.types = {TEXTOID, INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONPATHOID,
		TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, JSONBOID, JSONBOID, INT4OID, INTERVALOID,
	INTERVALOID, TEXTOID, TEXTOID, TEXTOID}
};

/* Returns the names in an argument that is an array; NIL if it is NULL. */
static List *
list_argument(FunctionCallInfo fcinfo, int arg)
{
	return PG_ARGISNULL(arg) ? NIL : EvpgNamesFromArray(PG_GETARG_ARRAYTYPE_P(arg));
}

/* Warns if declared transitions leave no way out of the name that a new instance has, an empty string. */
static void
advise_transitions(const char *name, Jsonb *transitions)
{
	JsonbValue *targets = getKeyJsonValueFromContainer(&transitions->root, "", 0, NULL);

	if (targets != NULL && targets->type == jbvBinary && JsonContainerSize(targets->val.binary.data) > 0)
		return;
	ereport(WARNING,
			(errmsg("transitions of saga \"%s\" declare none from \"\", the name of the state of a new instance", name),
			 errdetail("The reaction that begins an instance fails if its state has a name."),
			 errhint("Declare how an instance begins, as {\"\": [\"begun\"], ...}.")));
}

/*
 * Changes the mode of a saga, if its registration has.  What was appended before it became inline
 * is given to instances, and done by workers; what they have not done by then comes before what
 * is appended from now on.  An asynchronous saga begins with what is appended from now on.
 */
static void
switch_mode(const char *name, bool was_inline)
{
	bool		is_inline = EvpgSagaGet(name, 0, false)->is_inline;
	EvpgConsumer consumer;

	if (was_inline == is_inline)
		return;
	if (is_inline)
	{
		/* Most of it before appenders have to wait. */
		EvpgRouteRest(name, EvpgFenceStablePosition(false));
		LockRelationOid(EvpgCatalogGet()->fence, ShareLock);
		EvpgRouteRest(name, EvpgFenceLastDrawn());
	}
	else if (EvpgConsumerRead(name, &consumer) && consumer.checkpoint < EvpgFenceLastDrawn())
		EvpgCheckpointAdvance(&consumer, EvpgFenceLastDrawn(), 0);
}

/*
 * Registers a version of a saga; true if something has changed.  Locks the consumer,
 * then the saga, and of an inline saga the fence, to the end of the transaction; waits for
 * reactions of its instances.
 */
Datum
evpg_register_saga(PG_FUNCTION_ARGS)
{
	Datum		values[COLUMNS];
	char		nulls[COLUMNS];
	char	   *name;
	EvpgConsumer consumer;
	EvpgLogFilter takes = {0};
	List	   *seen = NIL;
	EvpgSaga   *before;
	bool		was_inline;
	bool		changed;
	EvpgScope	scope;

	set_saga_parameters(fcinfo, values, nulls);
	name = TextDatumGetCString(values[COLUMN_NAME]);
	EvpgRefuseInProjection("register sagas");
	EvpgRefuseInSaga("register sagas");
	EvpgEnter(&scope, "evpg_register_saga()");
	takes.aggregate_types = list_argument(fcinfo, ARG_AGGREGATE_TYPES);
	takes.event_types = list_argument(fcinfo, PG_ARGISNULL(ARG_EVENT_TYPES) ? ARG_START_EVENT_TYPES : ARG_EVENT_TYPES);
	EvpgAdvisePath("key_path", "saga", name,
				   PG_ARGISNULL(ARG_KEY_PATH) ? NULL : PG_DETOAST_DATUM(values[COLUMN_KEY_PATH]), &takes);
	if (takes.aggregate_types != NIL || takes.event_types != NIL)
		seen = EvpgAdviseReadSeenTypes();
	if (!PG_ARGISNULL(ARG_TRANSITIONS))
		advise_transitions(name, DatumGetJsonbP(values[COLUMN_TRANSITIONS]));
	/* An old snapshot would not see which versions have instances. */
	EvpgBatchRequireNewSnapshots("evpg_register_saga()");
	(void) EvpgConsumerLock(name, true);
	EvpgSagaLockOut(name);
	before = EvpgSagaGet(name, 0, true);
	was_inline = before != NULL && before->is_inline;
	EvpgConsumerRefuseName(name, "saga");
	changed = EvpgStatementRun(&upsert_saga, values, nulls) > 0;
	EvpgStatementDone();
	if (!EvpgConsumerRead(name, &consumer))
	{
		LockRelationOid(EvpgCatalogGet()->fence, ShareLock);
		EvpgConsumerCreate(name, "saga", PG_ARGISNULL(ARG_START_POSITION) ? EvpgFenceLastDrawn() :
						   PG_GETARG_INT64(ARG_START_POSITION));
	}
	if (changed)
	{
		if (!EvpgSagaDeleteUnusedVersions(name, DatumGetInt32(values[COLUMN_VERSION])))
			EvpgRegistrationInvalidate(EvpgCatalogGet()->saga);
		switch_mode(name, was_inline);
		/* Start types are among the event types. */
		EvpgAdviseTypes("saga", name, EvpgArgTextArray(fcinfo, ARG_AGGREGATE_TYPES, "aggregate_types"),
						EvpgArgTextArray(fcinfo, PG_ARGISNULL(ARG_EVENT_TYPES) ? ARG_START_EVENT_TYPES : ARG_EVENT_TYPES,
										 "event_types"), seen);
		EvpgWakeLauncherAtCommit();
		EvpgWakeConsumersAtEnd();
	}
	EvpgLeave(&scope);
	PG_RETURN_BOOL(changed);
}

/* ------------------------------------------------------------------ dropping */

static EvpgStatement delete_saga = {
	.text = "DELETE FROM evpg.saga WHERE name = $1",
	.types = {TEXTOID}
};

static EvpgStatement delete_saga_rows = {
	.text =
	"WITH i AS (DELETE FROM evpg.saga_instance WHERE saga = $1),"
	"     t AS (DELETE FROM evpg.timer WHERE saga = $1),"
	"     n AS (DELETE FROM evpg.saga_total WHERE saga = $1),"
	"     d AS (UPDATE evpg.dead_letter"
	"              SET resolved_at = evpg.clock_timestamp(), resolution = 'discarded', reason = 'saga was dropped'"
	"            WHERE saga = $1 AND resolved_at IS NULL)"
	" DELETE FROM evpg.saga_event WHERE saga = $1",
	.types = {TEXTOID}
};

/*
 * Drops a saga with its instances and timers, and discards its dead letters; whether
 * it may be missing is an argument.  Takes the locks of evpg_register_saga().
 */
Datum
evpg_drop_saga(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgText(fcinfo, 0, "saga name");
	Datum		value = PG_GETARG_DATUM(0);
	bool		dropped;
	EvpgScope	scope;

	EvpgRefuseInProjection("drop sagas");
	EvpgRefuseInSaga("drop sagas");
	EvpgEnter(&scope, "evpg_drop_saga()");

	/*
	 * Rows that an old snapshot does not show would stay, and belong to the
	 * next saga of that name.
	 */
	EvpgBatchRequireNewSnapshots("evpg_drop_saga()");
	(void) EvpgConsumerLock(name, true);
	EvpgSagaLockOut(name);
	dropped = EvpgRegistrationDrop(fcinfo, &delete_saga, EvpgCatalogGet()->saga,
								   EVPG_ERRCODE_UNKNOWN_CONSUMER, "saga", "evpg_drop_saga()");
	if (dropped)
	{
		(void) EvpgStatementRun(&delete_saga_rows, &value, NULL);
		EvpgStatementDone();
		EvpgConsumerDrop(name, true);
	}
	EvpgLeave(&scope);
	PG_RETURN_BOOL(dropped);
}
