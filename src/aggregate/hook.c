/*-------------------------------------------------------------------------
 *
 * hook.c
 *		Registers interceptors and listeners, and reads them back.
 *
 * Their tables have the same columns, and their functions in SQL the same
 * arguments: name, function, aggregate types, types of commands or events,
 * priority.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/hook.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/names.h"
#include "base/registration.h"
#include "miscadmin.h"
#include "usercode/registration_advice.h"

/* Arguments of evpg_register_interceptor() and evpg_register_listener(). */
enum
{
	ARG_NAME, ARG_FUNCTION, ARG_AGGREGATE_TYPES, ARG_TYPES, ARG_PRIORITY
};

/*
 * EvpgHookRegister
 *		Registers the function that the arguments name, in the table with this
 *		oid, in the name of an SQL function.  Returns whether anything changed.
 *		Warns of types that have never been seen.
 */
bool
EvpgHookRegister(FunctionCallInfo fcinfo, const EvpgHookKind *kind, Oid relation, const char *writer)
{
	const char *what = psprintf("%s name", kind->name);
	char	   *name = EvpgArgName(fcinfo, ARG_NAME, what);
	ArrayType  *aggregate_types = EvpgArgTextArray(fcinfo, ARG_AGGREGATE_TYPES, "aggregate_types");
	ArrayType  *types = EvpgArgTextArray(fcinfo, ARG_TYPES, kind->types_argument);
	ArrayType  *event_types = kind->for_events ? types : NULL;
	char	   *search_path = EvpgFunctionSearchPath();
	Oid			registrant = GetUserId();
	Datum		values[7];
	char		nulls[7];
	uint64		changed;
	EvpgScope	scope;

	EvpgCheckNewName(name, what);
	EvpgArgRefuseNull(fcinfo, ARG_FUNCTION, kind->name);
	memset(nulls, ' ', sizeof(nulls));
	EvpgParameterText(values, nulls, 0, name);
	EvpgParameterText(values, nulls, 1, EvpgFunctionCheck(PG_GETARG_OID(ARG_FUNCTION), kind->role, registrant));
	EvpgParameterArray(values, nulls, 2, aggregate_types);
	EvpgParameterArray(values, nulls, 3, types);
	values[4] = Int32GetDatum(EvpgArgInt(fcinfo, ARG_PRIORITY, "priority", PG_INT32_MIN));
	EvpgParameterText(values, nulls, 5, search_path);
	EvpgParameterText(values, nulls, 6, GetUserNameFromId(registrant, false));

	EvpgEnter(&scope, writer);
	changed = EvpgStatementRun(kind->insert, values, nulls);
	EvpgStatementDone();
	if (changed > 0)
	{
		EvpgRegistrationInvalidate(relation);
		if (aggregate_types != NULL || event_types != NULL)
			EvpgAdviseTypes(kind->name, name, aggregate_types, event_types, EvpgAdviseReadSeenTypes());
	}
	EvpgLeave(&scope);
	return changed > 0;
}

/* Removes the registration that the arguments name; returns false if there is none and missing_ok is passed. */
bool
EvpgHookDrop(FunctionCallInfo fcinfo, const EvpgHookKind *kind, Oid relation, const char *writer)
{
	(void) EvpgArgText(fcinfo, ARG_NAME, psprintf("%s name", kind->name));
	return EvpgRegistrationDrop(fcinfo, kind->delete, relation, ERRCODE_UNDEFINED_OBJECT, kind->name, writer);
}

/*
 * EvpgHookMake
 *		Makes a hook, in CurrentMemoryContext, of a result row with the columns
 *		name, function, aggregate types, types, search_path and registered_by.
 */
void *
EvpgHookMake(uint64 row)
{
	EvpgHook   *hook = palloc0(sizeof(EvpgHook));

	hook->name = EvpgResultText(row, 1);
	hook->signature = EvpgResultText(row, 2);
	hook->aggregate_types = EvpgResultNames(row, 3);
	hook->types = EvpgResultNames(row, 4);
	hook->search_path = EvpgResultText(row, 5);
	hook->registered_by = EvpgResultText(row, 6);
	hook->context = CurrentMemoryContext;
	return hook;
}

/* Returns whether a hook is called for a command or event of this type. */
bool
EvpgHookTakes(const EvpgHook *hook, const char *aggregate_type, const char *type)
{
	return EvpgNamesHave(hook->aggregate_types, aggregate_type) && EvpgNamesHave(hook->types, type);
}

/*
 * EvpgHookFunction
 *		Returns the function of a hook.  It is found at its first call, so that one
 *		that cannot be called fails only what it would see.
 */
EvpgFunction *
EvpgHookFunction(EvpgHook *hook, EvpgRole role)
{
	if (hook->function == NULL)
		hook->function = EvpgFunctionResolveIn(hook->context, hook->signature, role, hook->registered_by,
											   hook->search_path);
	return hook->function;
}
