/*-------------------------------------------------------------------------
 *
 * function.c
 *		User functions that fill a role: what they must look like, finding them,
 *		and the plan of their call, which function_call.c executes.
 *
 * A function is called through a saved plan, so CREATE OR REPLACE, inlining and
 * every language work as in SQL.  It runs as its owner, under the search_path
 * that was in force when it was registered (its own SET wins), never as the
 * owner of the extension.  The registering role must own it, since its owner
 * can replace it later.  That is checked again whenever the function is looked
 * up, because another role's function may have got the name, and would run as
 * that role under the registrant's search_path.
 *
 * Functions are remembered by schema, name and argument types as text, because
 * stored oids do not survive a dump and reg* columns make pg_upgrade refuse.
 *
 * Memory: an EvpgFunction, its strings and its saved plan live as long as the
 * context it was resolved in.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "base/catalog.h"
#include "base/names.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_node.h"
#include "usercode/function.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

static const char *const role_names[] = {
	[EVPG_ROLE_HANDLER] = "handler",
	[EVPG_ROLE_REDUCER] = "reducer",
	[EVPG_ROLE_INVARIANT] = "invariant",
	[EVPG_ROLE_BOUNDARY] = "boundary",
	[EVPG_ROLE_INTERCEPTOR] = "interceptor",
	[EVPG_ROLE_LISTENER] = "listener",
	[EVPG_ROLE_PROJECTION_REDUCER] = "projection reducer",
	[EVPG_ROLE_PROJECTION_HANDLER] = "projection handler",
	[EVPG_ROLE_KEY] = "key function",
	[EVPG_ROLE_RESET] = "reset function",
	[EVPG_ROLE_SAGA_HANDLER] = "saga handler",
	[EVPG_ROLE_SAGA_REJECTION] = "rejection handler",
	[EVPG_ROLE_SAGA_TIMER] = "timer handler",
	[EVPG_ROLE_TRANSLATOR] = "translator",
	[EVPG_ROLE_UPCASTER] = "upcaster",
};

static const char *const role_shapes[] = {
	[EVPG_ROLE_HANDLER] = "f(state jsonb, command evpg.command) returning evpg.new_event, a set of it, or jsonb",
	[EVPG_ROLE_REDUCER] = "f(state jsonb, event evpg.event) returning jsonb",
	[EVPG_ROLE_INVARIANT] = "f(state jsonb) returning boolean",
	[EVPG_ROLE_BOUNDARY] = "f(command evpg.command) returning jsonb",
	[EVPG_ROLE_INTERCEPTOR] = "f(command evpg.command) returning evpg.command",
	[EVPG_ROLE_LISTENER] = "f(event evpg.event) returning void",
	[EVPG_ROLE_PROJECTION_REDUCER] = "f(state jsonb, event evpg.event) returning jsonb or evpg.projected",
	[EVPG_ROLE_PROJECTION_HANDLER] = "f(event evpg.event) or f(event evpg.event, keys text[]) returning jsonb",
	[EVPG_ROLE_KEY] = "f(event evpg.event) returning text or text[]",
	[EVPG_ROLE_RESET] = "f() returning void",
	[EVPG_ROLE_SAGA_HANDLER] = "f(state jsonb, event evpg.event) returning evpg.reaction",
	[EVPG_ROLE_SAGA_REJECTION] = "f(state jsonb, rejection evpg.rejection) returning evpg.reaction",
	[EVPG_ROLE_SAGA_TIMER] = "f(state jsonb, timer evpg.fired_timer) returning evpg.reaction",
	[EVPG_ROLE_TRANSLATOR] = "f(payload jsonb) returning evpg.command or a set of it",
	[EVPG_ROLE_UPCASTER] = "f(data jsonb) returning jsonb",
};

/* Fills the argument types of a role and returns their number, the most that a function may have. */
int
EvpgFunctionArguments(EvpgRole role, Oid *types)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();

	switch (role)
	{
		case EVPG_ROLE_HANDLER:
			types[0] = JSONBOID;
			types[1] = catalog->command->tdtypeid;
			return 2;
		case EVPG_ROLE_REDUCER:
		case EVPG_ROLE_PROJECTION_REDUCER:
		case EVPG_ROLE_SAGA_HANDLER:
			types[0] = JSONBOID;
			types[1] = catalog->event->tdtypeid;
			return 2;
		case EVPG_ROLE_SAGA_REJECTION:
			types[0] = JSONBOID;
			types[1] = catalog->rejection->tdtypeid;
			return 2;
		case EVPG_ROLE_SAGA_TIMER:
			types[0] = JSONBOID;
			types[1] = catalog->fired_timer->tdtypeid;
			return 2;
		case EVPG_ROLE_PROJECTION_HANDLER:
			types[0] = catalog->event->tdtypeid;
			types[1] = TEXTARRAYOID;
			return 2;
		case EVPG_ROLE_KEY:
		case EVPG_ROLE_LISTENER:
			types[0] = catalog->event->tdtypeid;
			return 1;
		case EVPG_ROLE_INVARIANT:
		case EVPG_ROLE_TRANSLATOR:
		case EVPG_ROLE_UPCASTER:
			types[0] = JSONBOID;
			return 1;
		case EVPG_ROLE_INTERCEPTOR:
		case EVPG_ROLE_BOUNDARY:
			types[0] = catalog->command->tdtypeid;
			return 1;
		case EVPG_ROLE_RESET:
			return 0;
	}
	pg_unreachable();
}

/* Returns whether a function has the arguments and the result of a role. */
static bool
function_fits_role(Form_pg_proc proc, EvpgRole role)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	Oid			types[2];
	int			count = EvpgFunctionArguments(role, types);

	/* A handler of a projection need not ask for the keys. */
	if (proc->prokind != PROKIND_FUNCTION ||
		(proc->pronargs != count && !(role == EVPG_ROLE_PROJECTION_HANDLER && proc->pronargs == 1)))
		return false;
	for (int i = 0; i < proc->pronargs; i++)
		if (proc->proargtypes.values[i] != types[i])
			return false;
	switch (role)
	{
		case EVPG_ROLE_HANDLER:
			return proc->prorettype == catalog->new_event->tdtypeid ||
				(proc->prorettype == JSONBOID && !proc->proretset);
		case EVPG_ROLE_REDUCER:
		case EVPG_ROLE_BOUNDARY:
		case EVPG_ROLE_UPCASTER:
			return proc->prorettype == JSONBOID && !proc->proretset;
		case EVPG_ROLE_INVARIANT:
			return proc->prorettype == BOOLOID && !proc->proretset;
		case EVPG_ROLE_INTERCEPTOR:
			return proc->prorettype == catalog->command->tdtypeid && !proc->proretset;
		case EVPG_ROLE_PROJECTION_REDUCER:
			return (proc->prorettype == JSONBOID || proc->prorettype == catalog->projected->tdtypeid) &&
				!proc->proretset;
		case EVPG_ROLE_PROJECTION_HANDLER:
			return proc->prorettype == JSONBOID && !proc->proretset;
		case EVPG_ROLE_KEY:
			return (proc->prorettype == TEXTOID || proc->prorettype == TEXTARRAYOID) && !proc->proretset;
		case EVPG_ROLE_LISTENER:
		case EVPG_ROLE_RESET:
			return proc->prorettype == VOIDOID && !proc->proretset;
		case EVPG_ROLE_SAGA_HANDLER:
		case EVPG_ROLE_SAGA_REJECTION:
		case EVPG_ROLE_SAGA_TIMER:
			return proc->prorettype == catalog->reaction->tdtypeid && !proc->proretset;
		case EVPG_ROLE_TRANSLATOR:
			return proc->prorettype == catalog->command->tdtypeid;
	}
	pg_unreachable();
}

/*
 * EvpgFunctionCheck
 *		Raises an error unless registrant may register the function for the
 *		role.  Returns its signature, in CurrentMemoryContext.
 */
char *
EvpgFunctionCheck(Oid function, EvpgRole role, Oid registrant)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc proc;
	char	   *signature;
	int			nest_level;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function with oid %u does not exist", function)));
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	nest_level = EvpgNamesBeginStored();
	signature = format_procedure_qualified(function);
	EvpgNamesEndStored(nest_level);
	if (!function_fits_role(proc, role))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("function %s cannot serve as %s", signature, role_names[role]),
				 errdetail("The %s must be a function %s.", role_names[role], role_shapes[role])));
	if (proc->proisstrict)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("function %s cannot serve as %s because it is STRICT", signature, role_names[role]),
				 errdetail("It would silently do nothing for a NULL argument."),
				 errhint("Declare it CALLED ON NULL INPUT.")));
	if (!superuser_arg(registrant) && !has_privs_of_role(registrant, proc->proowner))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_FUNCTION, signature);
	ReleaseSysCache(tuple);
	return signature;
}

static void
raise_missing_function(const char *signature, EvpgRole role)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_FUNCTION),
			 errmsg("%s function %s does not exist", role_names[role], signature),
			 errhint("Create it again, or register another one.")));
}

/*
 * Raises an error unless the role that registered a function may still have
 * functions of its owner run.
 */
static void
check_registrant(const char *registered_by, Oid owner, const char *signature, EvpgRole role)
{
	Oid			registrant = get_role_oid(registered_by, true);

	if (!OidIsValid(registrant))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role \"%s\", which registered %s %s, does not exist",
						registered_by, role_names[role], signature),
				 errhint("Let the owner of the function, or a superuser, register it again.")));
	if (!superuser_arg(registrant) && !has_privs_of_role(registrant, owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" may not have %s %s run",
						registered_by, role_names[role], signature),
				 errdetail("It registered the function, which now belongs to role \"%s\".",
						   GetUserNameFromId(owner, true)),
				 errhint("Let the owner of the function, or a superuser, register it again.")));
}

/* Adds a column of pg_proc, of a type of variable length, to a hash. */
static uint64
hash_proc_column(HeapTuple tuple, int column, uint64 hash)
{
	bool		isnull;
	Datum		value = SysCacheGetAttr(PROCOID, tuple, column, &isnull);
	struct varlena *detoasted = isnull ? NULL : PG_DETOAST_DATUM(value);

	return DatumGetUInt64(hash_any_extended(isnull ? NULL : (unsigned char *) VARDATA(detoasted),
											isnull ? 0 : VARSIZE(detoasted) - VARHDRSZ, hash + !isnull));
}

/*
 * Hashes the definition of a function: its code, its settings, its language
 * and the search_path of its registration.  It is the same after a dump and in
 * another database, except for a body that was parsed at CREATE FUNCTION,
 * whose nodes have object ids: what is kept under it is then made again.
 */
static uint64
hash_definition(HeapTuple tuple, const char *search_path)
{
	char	   *language = get_language_name(((Form_pg_proc) GETSTRUCT(tuple))->prolang, false);
	uint64		hash = DatumGetUInt64(hash_any_extended((unsigned char *) language, strlen(language), 0));

	hash = DatumGetUInt64(hash_any_extended((const unsigned char *) search_path, strlen(search_path), hash));
	hash = hash_proc_column(tuple, Anum_pg_proc_prosrc, hash);
	hash = hash_proc_column(tuple, Anum_pg_proc_probin, hash);
	hash = hash_proc_column(tuple, Anum_pg_proc_prosqlbody, hash);
	return hash_proc_column(tuple, Anum_pg_proc_proconfig, hash);
}

/* Returns the row of a function, which the caller releases, and sets its oid; NULL if it does not exist. */
static HeapTuple
find_function(const char *signature, Oid *oid)
{
	HeapTuple	tuple = NULL;

	LOCAL_FCINFO(fcinfo, 1);

	InitFunctionCallInfoData(*fcinfo, NULL, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = CStringGetTextDatum(signature);
	fcinfo->args[0].isnull = false;
	*oid = DatumGetObjectId(to_regprocedure(fcinfo));
	if (!fcinfo->isnull)
		tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(*oid));
	return tuple;
}

/* Returns a number that differs once a function is replaced. */
static uint64
get_stamp(HeapTuple tuple, Oid oid)
{
	uint32		version[4] = {
		oid, HeapTupleHeaderGetRawXmin(tuple->t_data), ItemPointerGetBlockNumber(&tuple->t_self),
		ItemPointerGetOffsetNumber(&tuple->t_self)
	};

	/*
	 * Hashed: the numbers of functions that one transaction creates differ
	 * alike.
	 */
	return DatumGetUInt64(hash_any_extended((const unsigned char *) version, sizeof(version), 0));
}

/*
 * EvpgFunctionHashes
 *		Sets what a registered function is, as EvpgFunction has it: for this session, and
 *		also after a dump.  Returns false if it does not exist.  The caller is inside EvpgEnter.
 */
bool
EvpgFunctionHashes(const char *signature, const char *search_path, uint64 *stamp, uint64 *definition_hash)
{
	Oid			oid;
	HeapTuple	tuple = find_function(signature, &oid);

	if (!HeapTupleIsValid(tuple))
		return false;
	*stamp = get_stamp(tuple, oid);
	*definition_hash = hash_definition(tuple, search_path);
	ReleaseSysCache(tuple);
	return true;
}

static void
free_function_plan(void *arg)
{
	EvpgFunction *function = arg;

	if (function->plan != NULL)
		SPI_freeplan(function->plan);
}

/*
 * EvpgFunctionResolve
 *		Finds a registered function; raises an error if it no longer exists, has
 *		another shape, or belongs to a role that its registrant cannot act for.
 *		All its memory is in CurrentMemoryContext and is freed with it, the
 *		saved plan too.  The caller is inside EvpgEnter.
 */
EvpgFunction *
EvpgFunctionResolve(const char *signature, EvpgRole role, const char *registered_by, const char *search_path)
{
	EvpgFunction *function = palloc0(sizeof(EvpgFunction));
	HeapTuple	tuple = find_function(signature, &function->oid);
	Form_pg_proc proc;

	if (!HeapTupleIsValid(tuple))
		raise_missing_function(signature, role);
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	if (!function_fits_role(proc, role))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("function %s cannot serve as %s", signature, role_names[role]),
				 errdetail("The %s must be a function %s.", role_names[role], role_shapes[role]),
				 errhint("It was changed after it was registered.")));
	check_registrant(registered_by, proc->proowner, signature, role);
	function->context = CurrentMemoryContext;
	function->role = role;
	function->signature = pstrdup(signature);
	function->search_path = pstrdup(search_path);
	function->owner = proc->proowner;
	function->result_type = proc->prorettype;
	function->returns_set = proc->proretset;
	function->stamp = get_stamp(tuple, function->oid);
	if (role == EVPG_ROLE_REDUCER)
		function->definition_hash = hash_definition(tuple, search_path);
	ReleaseSysCache(tuple);
	function->callback.func = free_function_plan;
	function->callback.arg = function;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &function->callback);
	return function;
}

/*
 * EvpgFunctionResolveIn
 *		Finds a registered function as EvpgFunctionResolve does, in a context of
 *		its own below parent; an error leaves what was made to
 *		CurrentMemoryContext.
 */
EvpgFunction *
EvpgFunctionResolveIn(MemoryContext parent, const char *signature, EvpgRole role, const char *registered_by,
					  const char *search_path)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "EvpgFunction", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	EvpgFunction *function = EvpgFunctionResolve(signature, role, registered_by, search_path);

	MemoryContextSwitchTo(old);
	MemoryContextSetParent(context, parent);
	return function;
}

/*
 * Makes the expression that calls a function, in place of the one parameter of
 * the statement that the plan is made of.  So the plan is about this very
 * function, never about another one that has got its name.  The
 * parser calls it again whenever the function has changed.
 */
static Node *
make_call_expression(ParseState *pstate, ParamRef *ref)
{
	EvpgFunction *function = pstate->p_ref_hook_state;
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function->oid));
	Form_pg_proc proc;
	Oid			types[2];
	List	   *args = NIL;
	FuncExpr   *call;

	if (!HeapTupleIsValid(tuple))
		raise_missing_function(function->signature, function->role);
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	if (proc->proowner != function->owner || !function_fits_role(proc, function->role))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("function %s was changed while it was being used", function->signature),
				 errhint("Repeat the command.")));
	(void) EvpgFunctionArguments(function->role, types);
	for (int i = 0; i < proc->pronargs; i++)
	{
		Param	   *param = makeNode(Param);

		param->paramkind = PARAM_EXTERN;
		param->paramid = i + 1;
		param->paramtype = types[i];
		param->paramtypmod = -1;
		param->location = -1;
		args = lappend(args, param);
	}
	call = makeFuncExpr(function->oid, proc->prorettype, args, get_typcollation(proc->prorettype),
						InvalidOid, COERCE_EXPLICIT_CALL);
	call->funcretset = proc->proretset;
	if (call->funcretset)
	{
		pstate->p_hasTargetSRFs = true;
		pstate->p_last_srf = (Node *) call;
	}
	ReleaseSysCache(tuple);
	return (Node *) call;
}

static void
set_call_hooks(ParseState *pstate, void *function)
{
	pstate->p_ref_hook_state = function;
	pstate->p_paramref_hook = make_call_expression;
}

/*
 * EvpgFunctionPlan
 *		Makes the plan of a call, unless the function has it.  It is generic: the
 *		arguments differ with each call, and planning costs more than calling.
 *		The caller is connected to SPI and has entered the owner and the
 *		search_path of the function (EvpgEnterAs).
 */
void
EvpgFunctionPlan(EvpgFunction *function)
{
	/* The comment names the function in the context of an error. */
	const char *comment = strstr(function->signature, "*/") == NULL && strstr(function->signature, "/*") == NULL ?
	psprintf(" /* %s */", function->signature) : "";
	SPIPlanPtr	plan;

	if (function->plan != NULL)
		return;
	plan = SPI_prepare_params(psprintf("SELECT $1%s", comment), set_call_hooks, function, CURSOR_OPT_GENERIC_PLAN);
	if (plan == NULL)
		elog(ERROR, "could not prepare call of %s: %s", function->signature,
			 SPI_result_code_string(SPI_result));
	SPI_keepplan(plan);
	function->plan = plan;
}

/*
 * EvpgFunctionSearchPath
 *		Returns the search_path in force, for a function that is being
 *		registered, in CurrentMemoryContext: names of schemas, so that "$user"
 *		cannot come to mean another one, and pg_temp last, so that a temporary
 *		object never hides another.
 */
char *
EvpgFunctionSearchPath(void)
{
	StringInfoData path;
	List	   *schemas = fetch_search_path(false);
	ListCell   *cell;
	int			nest_level = EvpgNamesBeginStored();

	initStringInfo(&path);
	foreach(cell, schemas)
	{
		char	   *name;

		if (isAnyTempNamespace(lfirst_oid(cell)))
			continue;
		name = get_namespace_name(lfirst_oid(cell));
		if (name != NULL)
			appendStringInfo(&path, "%s, ", quote_identifier(name));
	}
	appendStringInfoString(&path, "pg_temp");
	EvpgNamesEndStored(nest_level);
	return path.data;
}
