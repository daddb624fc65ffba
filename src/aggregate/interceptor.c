/*-------------------------------------------------------------------------
 *
 * interceptor.c
 *		Interceptors: functions that see every command before its handler, and may
 *		change or refuse it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/interceptor.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/registration.h"
#include "catalog/pg_type.h"

PG_FUNCTION_INFO_V1(evpg_register_interceptor);
PG_FUNCTION_INFO_V1(evpg_drop_interceptor);

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

static EvpgStatement delete_interceptor = {
	.text = "DELETE FROM evpg.interceptor"
	" WHERE name = $1",
	.types = {TEXTOID}
};

static const EvpgHookKind interceptor_kind = {
	.name = "interceptor",
	.types_argument = "command_types",
	.role = EVPG_ROLE_INTERCEPTOR,
	.insert = &insert_interceptor,
	.delete = &delete_interceptor
};

/*
 * evpg_register_interceptor
 *		SQL: evpg_register_interceptor(...).  Registers a function that sees
 *		commands before their handlers.  Returns whether anything changed.
 */
Datum
evpg_register_interceptor(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(EvpgHookRegister(fcinfo, &interceptor_kind, EvpgCatalogGet()->interceptor,
									"evpg_register_interceptor()"));
}

/* SQL: evpg_drop_interceptor(name, missing_ok).  Removes the registration of an interceptor. */
Datum
evpg_drop_interceptor(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(EvpgHookDrop(fcinfo, &interceptor_kind, EvpgCatalogGet()->interceptor, "evpg_drop_interceptor()"));
}

static EvpgStatement select_interceptor = {
	.text = "SELECT name, interceptor, aggregate_types, command_types, search_path, registered_by"
	" FROM evpg.interceptor ORDER BY priority, name"
};

static EvpgRegistrationList interceptors = {
	.kind = "interceptors",
	.select = &select_interceptor,
	.make = EvpgHookMake
};

/*
 * EvpgInterceptorList
 *		Returns all interceptors (EvpgHook *) in the order in which they are called,
 *		as the session knows them.  The list and its entries live to the end of the
 *		transaction at least.  The caller is inside EvpgEnter.
 */
List *
EvpgInterceptorList(void)
{
	return EvpgRegistrationListGet(&interceptors);
}

/*
 * EvpgInterceptorCall
 *		Calls an interceptor, which may change *command in all but its
 *		aggregate.  Returns false if it refused the command; *why then has its
 *		reason.  The call runs in a subtransaction, since the refusal becomes
 *		VE011.  Results are in CurrentMemoryContext.  The caller is inside
 *		EvpgEnter.
 */
bool
EvpgInterceptorCall(EvpgHook *interceptor, EvpgCommand *command, EvpgDecision *why)
{
	Datum		args[1] = {EvpgCommandDatum(command)};
	EvpgRefusableCall call = {.function = EvpgHookFunction(interceptor, EVPG_ROLE_INTERCEPTOR), .args = args, .max_rows = 1};
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
