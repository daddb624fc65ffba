/*-------------------------------------------------------------------------
 *
 * evpg_test_call_state.c
 *		Shows whether the state of a call of a function was made anew.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/objectaccess.h"
#include "catalog/pg_proc.h"
#include "fmgr.h"

PG_MODULE_MAGIC;

static object_access_hook_type previous_hook;
static bool watching;
static Oid	watched;
static int	executions;

/* Counts how often the server was about to make the state of a call of the watched function. */
static void
count_executions(ObjectAccessType access, Oid class, Oid object, int subid, void *arg)
{
	if (previous_hook != NULL)
		previous_hook(access, class, object, subid, arg);
	if (access == OAT_FUNCTION_EXECUTE && class == ProcedureRelationId && object == watched)
		executions++;
}

/* remembered_calls() -> int: how often the state of this call was used before; a function may remember that for a query */
PG_FUNCTION_INFO_V1(remembered_calls);
Datum
remembered_calls(PG_FUNCTION_ARGS)
{
	int		   *calls = fcinfo->flinfo->fn_extra;

	if (calls == NULL)
		fcinfo->flinfo->fn_extra = calls = MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, sizeof(int));
	PG_RETURN_INT32((*calls)++);
}

/* watch_executions(regprocedure): from now on, as an audit does */
PG_FUNCTION_INFO_V1(watch_executions);
Datum
watch_executions(PG_FUNCTION_ARGS)
{
	if (!watching)
	{
		previous_hook = object_access_hook;
		object_access_hook = count_executions;
		watching = true;
	}
	watched = PG_GETARG_OID(0);
	executions = 0;
	PG_RETURN_VOID();
}

/* watched_executions() -> int */
PG_FUNCTION_INFO_V1(watched_executions);
Datum
watched_executions(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(executions);
}
