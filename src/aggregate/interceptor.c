/*-------------------------------------------------------------------------
 *
 * interceptor.c
 *		Registers interceptors, keeps them for the session, and calls them:
 *		functions that see every command before its handler, and may change or
 *		refuse it.
 *
 * Memory: the list of interceptors has a context of its own below
 * EvpgRegistrationMemory().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/interceptor.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/registration.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "usercode/registration_advice.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(evpg_register_interceptor);
PG_FUNCTION_INFO_V1(evpg_drop_interceptor);

static List *interceptors = NIL;	/* of EvpgInterceptor, in
									 * EvpgInterceptorContext */
static MemoryContext EvpgInterceptorContext = NULL; /* NULL: not loaded */
static uint64 generation = 0;	/* of the registrations that were loaded */

/* ------------------------------------------------------------------ registration */

static EvpgStatement insert_interceptor = {
	.text = "INSERT INTO evpg.interceptor AS i (name, interceptor, aggregate_types, command_types, priority,"
	" search_path, registered_by, registered_at)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, evpg.clock_timestamp())"
	" ON CONFLICT (name) DO UPDATE"
	" SET interceptor = excluded.interceptor, aggregate_types = excluded.aggregate_types,"
	" command_types = excluded.command_types, priority = excluded.priority,"
	" search_path = excluded.search_path, registered_by = excluded.registered_by,"
	" registered_at = excluded.registered_at"
	" WHERE (i.interceptor, i.aggregate_types, i.command_types, i.priority, i.search_path, i.registered_by)"
	" IS DISTINCT FROM (excluded.interceptor, excluded.aggregate_types, excluded.command_types, excluded.priority,"
	" excluded.search_path, excluded.registered_by)",
	.types = {TEXTOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID, INT4OID, TEXTOID, TEXTOID}
};

/*
 * evpg_register_interceptor
 *		SQL: evpg_register_interceptor(...).  Registers a function that sees
 *		commands before their handlers.  Returns whether anything changed.
 */
Datum
evpg_register_interceptor(PG_FUNCTION_ARGS)
{
	enum
	{
		ARG_NAME, ARG_INTERCEPTOR, ARG_AGGREGATE_TYPES, ARG_COMMAND_TYPES, ARG_PRIORITY
	};
	char	   *name = EvpgArgName(fcinfo, ARG_NAME, "interceptor name");
	ArrayType  *aggregate_types = EvpgArgTextArray(fcinfo, ARG_AGGREGATE_TYPES, "aggregate_types");
	ArrayType  *command_types = EvpgArgTextArray(fcinfo, ARG_COMMAND_TYPES, "command_types");
	char	   *search_path = EvpgFunctionSearchPath();
	Oid			registrant = GetUserId();
	Datum		values[7];
	char		nulls[7];
	uint64		changed;
	EvpgScope	scope;

	EvpgCheckNewName(name, "interceptor name");
	EvpgArgRefuseNull(fcinfo, ARG_INTERCEPTOR, "interceptor");
	memset(nulls, ' ', sizeof(nulls));
	EvpgParameterText(values, nulls, 0, name);
	EvpgParameterText(values, nulls, 1,
					  EvpgFunctionCheck(PG_GETARG_OID(ARG_INTERCEPTOR), EVPG_ROLE_INTERCEPTOR, registrant));
	EvpgParameterArray(values, nulls, 2, aggregate_types);
	EvpgParameterArray(values, nulls, 3, command_types);
	values[4] = Int32GetDatum(EvpgArgInt(fcinfo, ARG_PRIORITY, "priority", PG_INT32_MIN));
	EvpgParameterText(values, nulls, 5, search_path);
	EvpgParameterText(values, nulls, 6, GetUserNameFromId(registrant, false));

	EvpgEnter(&scope, "evpg_register_interceptor()");
	changed = EvpgStatementRun(&insert_interceptor, values, nulls);
	EvpgStatementDone();
	if (changed > 0)
	{
		EvpgRegistrationInvalidate(EvpgCatalogGet()->interceptor);
		if (aggregate_types != NULL)
			EvpgAdviseTypes("interceptor", name, aggregate_types, NULL, EvpgAdviseReadSeenTypes());
	}
	EvpgLeave(&scope);
	PG_RETURN_BOOL(changed > 0);
}

static EvpgStatement delete_interceptor = {
	.text = "DELETE FROM evpg.interceptor"
	" WHERE name = $1",
	.types = {TEXTOID}
};

/* SQL: evpg_drop_interceptor(name, missing_ok).  Removes the registration of an interceptor. */
Datum
evpg_drop_interceptor(PG_FUNCTION_ARGS)
{
	(void) EvpgArgText(fcinfo, 0, "interceptor name");
	PG_RETURN_BOOL(EvpgRegistrationDrop(fcinfo, &delete_interceptor, EvpgCatalogGet()->interceptor,
										ERRCODE_UNDEFINED_OBJECT, "interceptor", "evpg_drop_interceptor()"));
}

/* ------------------------------------------------------------------ the interceptors of the session */

/* Forgets the interceptors if an invalidation has made them doubtful. */
static void
refresh_interceptors(void)
{
	if (likely(generation == EvpgCatalogRegistryGeneration()))
		return;
	generation = EvpgCatalogRegistryGeneration();
	if (EvpgInterceptorContext != NULL)
		EvpgRegistrationFreeLater(EvpgInterceptorContext);
	EvpgInterceptorContext = NULL;
	interceptors = NIL;
}

static EvpgStatement select_interceptor = {
	.text = "SELECT name, interceptor, aggregate_types, command_types, search_path, registered_by"
	" FROM evpg.interceptor ORDER BY priority, name"
};

/* Its columns. */
enum
{
	INTERCEPTOR_NAME = 1,
	INTERCEPTOR_FUNCTION,
	INTERCEPTOR_AGGREGATE_TYPES,
	INTERCEPTOR_COMMAND_TYPES,
	INTERCEPTOR_SEARCH_PATH,
	INTERCEPTOR_REGISTERED_BY
};

/*
 * EvpgInterceptorList
 *		Returns all interceptors in the order in which they are called, as the
 *		session knows them.  The list and its entries live to the end of the
 *		transaction at least.  The caller is inside EvpgEnter.
 */
List *
EvpgInterceptorList(void)
{
	uint64		rows;
	List	   *list = NIL;
	MemoryContext context;
	MemoryContext old;

	refresh_interceptors();
	if (likely(EvpgInterceptorContext != NULL))
		return interceptors;

	context = AllocSetContextCreate(CurrentMemoryContext, "EvpgInterceptors", ALLOCSET_SMALL_SIZES);
	rows = EvpgStatementReadLatest(&select_interceptor, NULL, NULL);
	old = MemoryContextSwitchTo(context);
	for (uint64 row = 0; row < rows; row++)
	{
		EvpgInterceptor *interceptor = palloc0(sizeof(EvpgInterceptor));

		interceptor->name = EvpgResultText(row, INTERCEPTOR_NAME);
		interceptor->signature = EvpgResultText(row, INTERCEPTOR_FUNCTION);
		interceptor->aggregate_types = EvpgResultNames(row, INTERCEPTOR_AGGREGATE_TYPES);
		interceptor->command_types = EvpgResultNames(row, INTERCEPTOR_COMMAND_TYPES);
		interceptor->search_path = EvpgResultText(row, INTERCEPTOR_SEARCH_PATH);
		interceptor->registered_by = EvpgResultText(row, INTERCEPTOR_REGISTERED_BY);
		interceptor->context = context;
		list = lappend(list, interceptor);
	}
	MemoryContextSwitchTo(old);
	EvpgStatementDone();
	MemoryContextSetParent(context, EvpgRegistrationMemory());
	interceptors = list;
	EvpgInterceptorContext = context;
	return interceptors;
}

/*
 * Finds the function of an interceptor at its first call, so that one that
 * cannot be called stops only the commands that it would see.
 */
static EvpgFunction *
resolve_interceptor(EvpgInterceptor *interceptor)
{
	if (interceptor->function == NULL)
		interceptor->function = EvpgFunctionResolveIn(interceptor->context, interceptor->signature, EVPG_ROLE_INTERCEPTOR,
													  interceptor->registered_by, interceptor->search_path);
	return interceptor->function;
}

/* ------------------------------------------------------------------ calling */

/*
 * EvpgInterceptorCall
 *		Calls an interceptor, which may change *command in all but its
 *		aggregate.  Returns false if it refused the command; *why then has its
 *		reason.  The call runs in a subtransaction, since the refusal becomes
 *		VE011.  Results are in CurrentMemoryContext.  The caller is inside
 *		EvpgEnter.
 */
bool
EvpgInterceptorCall(EvpgInterceptor *interceptor, EvpgCommand *command, EvpgDecision *why)
{
	Datum		args[1] = {EvpgCommandDatum(command)};
	EvpgRefusableCall call = {.function = resolve_interceptor(interceptor), .args = args, .max_rows = 1};
	EvpgCommand changed;
	bool		passed;
	EvpgAggregateCall code = {
		.role = psprintf("interceptor \"%s\"", interceptor->name),
		.aggregate_type = command->aggregate_type,
		.aggregate_id = command->aggregate_id,
		.type = command->command_type
	};

	memset(why, 0, sizeof(EvpgDecision));
	EvpgAggregateCallBegin(&code);
	passed = EvpgRefusableCallTry(&call, EVPG_ERRCODE_INTERCEPTED, why);
	if (passed)
	{
		if (call.count != 1 || call.row_nulls[0])
			ereport(ERROR,
					(errcode(EVPG_ERRCODE_MODULE),
					 errmsg("interceptor \"%s\" returned null", interceptor->name),
					 errhint("Return the command, or refuse it with evpg_reject().")));
		(void) EvpgCommandFromTuple(DatumGetHeapTupleHeader(call.rows[0]), &changed);
		changed.received_at = command->received_at;
		changed.session_role = command->session_role;
		EvpgCommandCheck(&changed);
		EvpgCheckDerivedMetadata(changed.metadata, command->metadata);
		changed.metadata = EvpgKeepOwnMetadata(changed.metadata, command->metadata);
		if (changed.command_id == NULL || command->command_id == NULL ||
			strcmp(changed.command_id, command->command_id) != 0)
			EvpgCheckCallersCommandId(changed.command_id);
		if (strcmp(changed.aggregate_type, command->aggregate_type) != 0 ||
			strcmp(changed.aggregate_id, command->aggregate_id) != 0)
			ereport(ERROR,
					(errcode(EVPG_ERRCODE_MODULE),
					 errmsg("interceptor \"%s\" must not change aggregate type and id", interceptor->name)));
		*command = changed;
	}
	EvpgAggregateCallEnd(&code);
	return passed;
}
