/*-------------------------------------------------------------------------
 *
 * expression.c
 *		Finds out what the value of an expression depends on: whether its state can
 *		be kept between calls, and whether it matters who evaluates it, and under
 *		which settings.
 *
 * The expression is that of a call of a user's function, most often what the
 * planner has made of the body of a function in SQL by inlining it.  Node types
 * that are not known here make neither true.
 *
 * The server makes the state of an expression anew for each statement.  So what a
 * function leaves in it (fn_extra) need not notice that anything has changed, nor do
 * nodes that look up something when the state is made.  Kept is what was read to be
 * right for longer, as of PostgreSQL 15 to 18:
 *
 * - C functions of PostgreSQL whose arguments and result are base types and ranges of
 *	 PostgreSQL, and arrays of these: they keep how such values are read, written,
 *	 compared and hashed (arrayfuncs.c, array_userfuncs.c, rangetypes.c,
 *	 multirangetypes.c, varlena.c), entries of the type cache, which are permanent, or
 *	 the partition key of a table, which cannot be changed.  Not pg_input_is_valid, which keeps
 *	 what a name of a type meant.
 * - C functions of evpg, which keep nothing of what they are called with.
 * - Functions in PL/pgSQL: each call checks that what is kept is the newest version of
 *	 the function, whose plans are those of the plan cache.
 *
 * Not kept, for what is kept would be wrong after a change:
 *
 * - Functions in SQL that are not inlined: fmgr_sql() keeps plans for a transaction,
 *	 whatever happens to tables, views, policies and indexes in it.
 * - Row types of users, records, domains over them, and arrays of all these: descriptors by
 *	 json[b]_populate_record and record_in, comparisons of columns by record_eq.
 * - Row types of evpg as arguments of functions of PostgreSQL, for the same reason.
 * - Other types of users: enums (labels in the type cache), domains (constraints), types in C.
 * - C functions of users and extensions, and those of other languages: these may keep
 *	 anything that is true to the end of the query.
 * - Nodes that make rows, whose state has the descriptor; but function_call.c compares that
 *	 of the result, so a row of evpg that is one, as of evpg_projected(), can be kept.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "catalog/dependency.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "commands/proclang.h"
#include "nodes/nodeFuncs.h"
#include "usercode/expression.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/*
 * Types of which text, comparison and arithmetic depend on no setting and call no
 * user's function, unlike times, floats, bytea, names of objects, arrays of any type,
 * and domains.
 */
static const Oid plain_types[] = {BOOLOID, INT2OID, INT4OID, INT8OID, NUMERICOID, TEXTOID, VARCHAROID, JSONBOID, JSONOID,
UUIDOID, UNKNOWNOID};

/* Further ones of which only immutable functions are called, which depend on no setting. */
static const Oid known_types[] = {TIMESTAMPTZOID, TEXTARRAYOID, JSONBARRAYOID, CSTRINGOID};

static bool
is_listed(Oid oid, const Oid *list, int count)
{
	for (int i = 0; i < count; i++)
		if (list[i] == oid)
			return true;
	return false;
}

#define IS_LISTED(oid, list) is_listed(oid, list, lengthof(list))

/*
 * Functions of PostgreSQL that are only as stable as the output functions of the types of
 * their arguments.
 */
static const Oid json_functions[] = {F_JSONB_BUILD_OBJECT_ANY, F_JSONB_BUILD_OBJECT_, F_JSONB_BUILD_ARRAY_ANY,
F_JSONB_BUILD_ARRAY_, F_TO_JSONB};

/* Returns whether all arguments are of plain types. */
static bool
has_plain_arguments(Node *node)
{
	ListCell   *cell;

	if (!IsA(node, FuncExpr))
		return false;
	foreach(cell, ((FuncExpr *) node)->args)
		if (!IS_LISTED(exprType(lfirst(cell)), plain_types))
		return false;
	return true;
}

/* Returns whether a function that a node calls may depend on more than its arguments. */
static bool
is_impure_function(Oid function, void *node)
{
	if (function >= FirstGenbkiObjectId || function == F_QUOTE_IDENT)
		return true;			/* quote_ident: quote_all_identifiers */
	if (func_volatile(function) == PROVOLATILE_IMMUTABLE)
		return false;
	return !IS_LISTED(function, json_functions) || !has_plain_arguments(node);
}

/* ------------------------------------------------------------------ what can be kept */

/* Returns whether a type is a row type of evpg. */
static bool
is_row_of_evpg(Oid type)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	const TupleDesc rows[] = {catalog->event, catalog->new_event, catalog->command, catalog->projected,
	catalog->reaction, catalog->rejection, catalog->fired_timer};

	for (size_t i = 0; i < lengthof(rows); i++)
		if (rows[i]->tdtypeid == type)
			return true;
	return false;
}

/* An expression that is examined. */
typedef struct Examination
{
	EvpgExpressionTraits *traits;
	Oid			result_type;	/* of the whole expression */
} Examination;

/* Returns whether a type is a base type or a range of PostgreSQL, or an array of one: no DDL changes what it is. */
static bool
is_unchanging_type(Oid type)
{
	Oid			element = get_element_type(type);

	return type < FirstGenbkiObjectId && !type_is_rowtype(OidIsValid(element) ? element : type);
}

/* Returns whether a node, or one of a list of nodes, has another type than these. */
static bool
has_changing_type(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, List))
		return expression_tree_walker(node, has_changing_type, NULL);
	return !is_unchanging_type(exprType(node));
}

/* Returns whether the state of a call of a function cannot be kept, if its arguments and result are such that it could. */
static bool
is_unkept_function(Oid function, void *context)
{
	HeapTuple	tuple;
	Oid			language;

	if (function == F_PG_INPUT_IS_VALID)
		return true;
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		return true;
	language = ((Form_pg_proc) GETSTRUCT(tuple))->prolang;
	ReleaseSysCache(tuple);
	if (function < FirstGenbkiObjectId)
		return language != INTERNALlanguageId;
	if (language == ClanguageId)
		return getExtensionOfObject(ProcedureRelationId, function) != get_extension_oid("evpg", true);
	return language != get_language_oid("plpgsql", true);
}

/* Returns whether a node is a call of a function that evpg or a user has made. */
static bool
is_call_of_others(Node *node)
{
	return IsA(node, FuncExpr) && ((FuncExpr *) node)->funcid >= FirstGenbkiObjectId;
}

/*
 * Returns whether the state of a node can be kept, but for those below it.  Row types of evpg
 * pass through nodes that are known to look at them each time, and are passed to functions of
 * evpg and in PL/pgSQL.
 */
static bool
can_keep_node(Node *node, Oid result_type)
{
	Oid			type = exprType(node);
	bool		passes_rows = IsA(node, Param) || IsA(node, Const) || IsA(node, FieldSelect) || IsA(node, CaseExpr) ||
	IsA(node, CoalesceExpr) || IsA(node, NullTest) || is_call_of_others(node) ||
	(IsA(node, RowExpr) && type == result_type);

	if (!is_unchanging_type(type) && !(passes_rows && is_row_of_evpg(type)))
		return false;
	if (!passes_rows && expression_tree_walker(node, has_changing_type, NULL))
		return false;
	return !check_functions_in_node(node, is_unkept_function, NULL);
}

/* Returns whether a value of a type depends on no setting, and what makes it calls no user's function. */
static bool
is_pure_type(Oid type, Oid result_type)
{
	return IS_LISTED(type, plain_types) || IS_LISTED(type, known_types) || (type == result_type && is_row_of_evpg(type));
}

/* Lowers what the traits say of an expression by one of its nodes and those below it. */
static bool
examine_node(Node *node, void *context)
{
	const Examination *examination = context;
	EvpgExpressionTraits *traits = examination->traits;

	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_List:
			return expression_tree_walker(node, examine_node, context);
		case T_Param:
			/* of evpg's types */
			return false;
		case T_Const:
		case T_FuncExpr:
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
		case T_ScalarArrayOpExpr:
		case T_BoolExpr:
		case T_FieldSelect:
		case T_RelabelType:
		case T_CoerceViaIO:
		case T_CaseExpr:
		case T_CaseTestExpr:
		case T_ArrayExpr:
		case T_CoalesceExpr:
		case T_MinMaxExpr:
		case T_NullTest:
		case T_BooleanTest:
		case T_RowExpr:
			break;
		case T_SubscriptingRef:
		case T_SQLValueFunction:
		case T_RowCompareExpr:
		case T_ArrayCoerceExpr:
			traits->is_pure = false;
			break;
		default:
			traits->is_pure = false;
			traits->can_be_kept = false;
			return true;
	}
	traits->is_pure = traits->is_pure && is_pure_type(exprType(node), examination->result_type) &&
		!check_functions_in_node(node, is_impure_function, node);
	traits->can_be_kept = traits->can_be_kept && can_keep_node(node, examination->result_type);
	return expression_tree_walker(node, examine_node, context);
}

/*
 * EvpgExpressionExamine
 *		Fills in what the value of a planned expression depends on.
 *
 * A pure one calls nothing but functions of PostgreSQL that are immutable, or as good as
 * that for the types of their arguments; so it refuses no command, reads no table and runs
 * no code of users.  Its parameters are of evpg's types.
 */
void
EvpgExpressionExamine(Expr *expression, EvpgExpressionTraits *traits)
{
	Examination examination = {traits, exprType((Node *) expression)};

	traits->can_be_kept = true;
	traits->is_pure = true;
	(void) examine_node((Node *) expression, &examination);
	traits->is_pure = traits->is_pure && traits->can_be_kept;
}
