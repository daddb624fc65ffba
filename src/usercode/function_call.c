/*-------------------------------------------------------------------------
 *
 * function_call.c
 *		Calls user functions.
 *
 * The plan of a call is one expression, most of the time: the call itself, or what
 * inlining has made of a function in SQL.  It is evaluated without an executor.  The
 * expression is kept between calls, until the plan is no longer valid, and so is its state if
 * that cannot come to be wrong (expression.c): a statement would set all of it up each
 * time, for more than most functions take.
 *
 * An expression that calls nothing but functions of PostgreSQL whose results depend on
 * their arguments alone (expression.c) cannot tell who evaluates it, and under which
 * settings and snapshot: it is evaluated as it is.  Everything else runs as the owner of
 * the function, under its search_path and the pinned settings.
 *
 * Memory: what is kept has a context of its own.  It is below that of the function while
 * it is idle, and below that of the caller while the call is under way: so a call of the
 * same function from inside finds none, and makes its own; and an error, after which the
 * state of an expression is undefined, takes it away.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/error_context.h"
#include "base/settings.h"
#include "catalog/objectaccess.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "nodes/params.h"
#include "nodes/plannodes.h"
#include "pgstat.h"
#include "storage/lock.h"
#include "usercode/expression.h"
#include "usercode/function_call.h"
#include "usercode/guard.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

/* What is kept may have so much memory: functions leave things in it that should end with a statement. */
#define MAX_KEPT_MEMORY (256 * 1024)

/* An expression that is ready to be evaluated, but for its state. */
typedef struct EvpgPreparedCall
{
	MemoryContext context;
	int			generation;		/* of the plan */
	int			track_functions;	/* pgstat_track_functions, which the state
									 * has built in */
	Expr	   *expression;
	EvpgExpressionTraits traits;
	bool		returns_set;
	uint64		row_version;	/* of the type of the result; 0: no row */
	int16		length;			/* of the type of the result */
	bool		by_value;
	ParamListInfo params;
	MemoryContext state_context;	/* of what follows; NULL: no state */
	ExprState  *state;			/* NULL: the function returns a set */
	SetExprState *set;
	ExprContext *econtext;
} EvpgPreparedCall;

/* What a call returns, in the context of its caller. */
typedef struct CallResult
{
	MemoryContext context;
	int			count;
	int			space;
	Datum	   *rows;
	bool	   *nulls;
} CallResult;

static void
make_result(CallResult *result, int space)
{
	result->space = Max(space, 1);
	result->rows = MemoryContextAlloc(result->context, sizeof(Datum) * result->space);
	result->nulls = MemoryContextAlloc(result->context, sizeof(bool) * result->space);
}

/* Adds a copy of a value to the result. */
static void
add_to_result(CallResult *result, Datum value, bool isnull, bool by_value, int16 length)
{
	MemoryContext old;

	if (result->count == result->space)
	{
		result->space *= 2;
		result->rows = repalloc_huge(result->rows, sizeof(Datum) * result->space);
		result->nulls = repalloc_huge(result->nulls, sizeof(bool) * result->space);
	}
	old = MemoryContextSwitchTo(result->context);
	result->nulls[result->count] = isnull;
	result->rows[result->count] = isnull ? (Datum) 0 : datumCopy(value, by_value, length);
	result->count++;
	MemoryContextSwitchTo(old);
}

/* ------------------------------------------------------------------ what is kept */

static CachedPlanSource *
get_plan_source(const EvpgFunction *function)
{
	return linitial(SPI_plan_get_plan_sources(function->plan));
}

/* Returns a number that changes with the type of the rows that a function returns. */
static uint64
get_row_version(const EvpgFunction *function)
{
	return assign_record_type_identifier(function->result_type, -1);
}

/*
 * Returns whether nothing has changed since the call was prepared that its expression
 * depends on.  The plan is made again after changes of functions, of types and of what an inlined
 * function has become; the search_path is the same each time.
 */
static bool
is_up_to_date(const EvpgFunction *function, const EvpgPreparedCall *call)
{
	CachedPlanSource *source = get_plan_source(function);

	/*
	 * Hooks of others, of an audit for example, are told of a function when
	 * the state of its call is made.
	 */
	if ((object_access_hook != NULL && object_access_hook != EvpgOwnAccessHook) || needs_fmgr_hook != NULL)
		return false;
	return source->is_valid && source->gplan != NULL && source->gplan->is_valid &&
		source->generation == call->generation && call->track_functions == pgstat_track_functions &&
		(call->row_version == 0 || call->row_version == get_row_version(function));
}

/* Takes what was kept for the next call; NULL if there is nothing that can be used. */
static EvpgPreparedCall *
take_prepared(EvpgFunction *function)
{
	EvpgPreparedCall *call = function->prepared;

	if (call == NULL)
		return NULL;
	function->prepared = NULL;
	if (!is_up_to_date(function, call))
	{
		MemoryContextDelete(call->context);
		return NULL;
	}
	MemoryContextSetParent(call->context, CurrentMemoryContext);
	return call;
}

/* Keeps what a call that has returned was made with for the next one, as far as it is good for that. */
static void
keep_prepared(EvpgFunction *function, EvpgPreparedCall *call)
{
	if (function->prepared != NULL)
	{
		/* A call of the function from inside this one has left its own. */
		MemoryContextDelete(call->context);
		return;
	}
	if (!call->traits.can_be_kept || MemoryContextMemAllocated(call->state_context, true) > MAX_KEPT_MEMORY)
	{
		MemoryContextDelete(call->state_context);
		call->state_context = NULL;
	}
	MemoryContextSetParent(call->context, function->context);
	function->prepared = call;
}

/* Returns what a plan computes if it reads nothing, which is the call, perhaps inlined; else NULL. */
static Expr *
get_single_expression(const CachedPlan *plan)
{
	PlannedStmt *statement = linitial_node(PlannedStmt, plan->stmt_list);
	Plan	   *top = statement->planTree;
	Plan	   *input = top->lefttree;

	if (list_length(plan->stmt_list) != 1 || statement->subplans != NIL || list_length(top->targetlist) != 1 ||
		top->initPlan != NIL || top->qual != NIL)
		return NULL;
	if (IsA(top, ProjectSet))
	{
		/*
		 * It gets one row without columns, and what it computes is a call
		 * that returns a set.
		 */
		Expr	   *set = linitial_node(TargetEntry, top->targetlist)->expr;

		return IsA(input, Result) && input->lefttree == NULL && ((Result *) input)->resconstantqual == NULL &&
			IsA(set, FuncExpr) && !expression_returns_set((Node *) ((FuncExpr *) set)->args) ? set : NULL;
	}
	if (!IsA(top, Result) || input != NULL || ((Result *) top)->resconstantqual != NULL)
		return NULL;
	return linitial_node(TargetEntry, top->targetlist)->expr;
}

/* Makes parameters without values. */
static ParamListInfo
make_parameters(const EvpgFunction *function)
{
	Oid			types[2];
	int			count = EvpgFunctionArguments(function->role, types);
	ParamListInfo params = makeParamList(count);

	for (int i = 0; i < count; i++)
	{
		params->params[i].isnull = false;
		params->params[i].pflags = 0;
		params->params[i].ptype = types[i];
	}
	return params;
}

static void
set_parameters(ParamListInfo params, const Datum *args)
{
	for (int i = 0; i < params->numParams; i++)
		params->params[i].value = args[i];
}

/* Makes an expression of the plan of a function ready, but for its state, in a context of its own below parent. */
static EvpgPreparedCall *
prepare_expression(const EvpgFunction *function, Expr *planned, MemoryContext parent)
{
	MemoryContext context = AllocSetContextCreate(parent, "EvpgPreparedCall", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	EvpgPreparedCall *call = palloc0(sizeof(EvpgPreparedCall));

	call->context = context;
	call->generation = get_plan_source(function)->generation;
	call->track_functions = pgstat_track_functions;
	call->expression = copyObject(planned);
	Assert(exprType((Node *) call->expression) == function->result_type);
	call->params = make_parameters(function);
	call->returns_set = function->returns_set;
	EvpgExpressionExamine(call->expression, &call->traits);
	/* The state has the descriptor of such rows. */
	if (type_is_rowtype(function->result_type))
		call->row_version = get_row_version(function);
	if (call->returns_set)
		call->traits.is_pure = false;
	get_typlenbyval(function->result_type, &call->length, &call->by_value);
	MemoryContextSwitchTo(old);
	return call;
}

/* Makes the state of an expression, unless it was kept.  The current user must be the owner of the function. */
static void
make_state(EvpgPreparedCall *call)
{
	MemoryContext old;

	if (call->state_context != NULL)
		return;
	call->state_context = AllocSetContextCreate(call->context, "EvpgExpressionState", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(call->state_context);
	call->econtext = CreateStandaloneExprContext();
	call->econtext->ecxt_param_list_info = call->params;
	if (call->returns_set)
		call->set = ExecInitFunctionResultSet(call->expression, call->econtext, NULL);
	else
		call->state = ExecInitExpr(call->expression, NULL);
	MemoryContextSwitchTo(old);
}

/* Prepares a call below parent by its plan, or returns NULL if that is more than an expression. */
static EvpgPreparedCall *
prepare_by_plan(EvpgFunction *function, MemoryContext parent)
{
	CachedPlan *plan = SPI_plan_get_cached_plan(function->plan);
	Expr	   *expression;
	EvpgPreparedCall *call = NULL;

	if (plan == NULL)
		return NULL;
	expression = get_single_expression(plan);
	if (expression != NULL)
		call = prepare_expression(function, expression, parent);
	ReleaseCachedPlan(plan, CurrentResourceOwner);
	return call;
}

/* ------------------------------------------------------------------ calling */

/* Adds the context of an error in a call, which is the same whether SPI executes it or not. */
static void
describe_call(void *function)
{
	errcontext("SQL statement \"%s\"", get_plan_source(function)->query_string);
}

/* Adds the rows of a function that returns a set to the result, at most max_rows. */
static void
evaluate_set(EvpgPreparedCall *call, int max_rows, CallResult *result)
{
	MemoryContext old = MemoryContextSwitchTo(call->econtext->ecxt_per_tuple_memory);

	make_result(result, 4);
	while (result->count < max_rows)
	{
		ExprDoneCond done;
		bool		isnull;
		Datum		value = ExecMakeFunctionResultSet(call->set, call->econtext, result->context, &isnull, &done);

		if (done != ExprEndResult)
			add_to_result(result, value, isnull, call->by_value, call->length);
		ResetExprContext(call->econtext);
		if (done != ExprMultipleResult)
			break;
		CHECK_FOR_INTERRUPTS();
	}
	MemoryContextSwitchTo(old);
}

/* Evaluates a prepared call. */
static void
evaluate_call(EvpgPreparedCall *call, int max_rows, CallResult *result)
{
	bool		isnull;
	Datum		value;

	if (call->returns_set)
		evaluate_set(call, max_rows, result);
	else
	{
		value = ExecEvalExprSwitchContext(call->state, call->econtext, &isnull);
		make_result(result, 1);
		add_to_result(result, value, isnull, call->by_value, call->length);
	}
	ReScanExprContext(call->econtext);
}

/* Evaluates a prepared call as a statement would be executed. */
static void
evaluate_as_statement(EvpgPreparedCall *call, bool read_only, int max_rows, CallResult *result)
{
	if (!read_only)
		PushActiveSnapshot(GetTransactionSnapshot());
	evaluate_call(call, max_rows, result);
	if (!read_only)
	{
		PopActiveSnapshot();
		CommandCounterIncrement();
	}
}

/* Calls a function by executing its plan, for at most max_rows values. */
static void
execute_plan(EvpgFunction *function, const Datum *args, bool read_only, int max_rows, CallResult *result)
{
	SPIExecuteOptions options = {.params = make_parameters(function), .read_only = read_only, .tcount = max_rows};
	int			status;
	int16		length;
	bool		by_value;

	set_parameters(options.params, args);
	status = SPI_execute_plan_extended(function->plan, &options);
	if (status != SPI_OK_SELECT)
		elog(ERROR, "could not call %s: %s", function->signature, SPI_result_code_string(status));
	Assert(SPI_gettypeid(SPI_tuptable->tupdesc, 1) == function->result_type);
	get_typlenbyval(function->result_type, &length, &by_value);
	make_result(result, (int) SPI_processed);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		value = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);

		add_to_result(result, value, isnull, by_value, length);
	}
}

/* Whether this transaction has locked a table as commands or batches do. */
static bool
table_is_locked(Oid table)
{
	LOCKTAG		tag;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, table);
	return LockHeldByMe(&tag, RowExclusiveLock, false) || LockHeldByMe(&tag, AccessShareLock, false);
}

/* Opens a table in which the transaction may have read rows to replace them; locks it unless it has a lock of it. */
static Relation
open_stream_table(Oid table)
{
	return table_open(table, table_is_locked(table) ? NoLock : AccessShareLock);
}

/*
 * The same for rows of projections and of instances of sagas, which are read only
 * inside; NULL if there is no lock: batches lock the table when they write.
 */
static Relation
open_table_inside(bool inside, Oid table)
{
	return inside && table_is_locked(table) ? table_open(table, NoLock) : NULL;
}

/*
 * Calls a function as its owner, which also prepares the call if its plan is an expression.
 *
 * Rows that will be replaced are known by their place in the table.  So their tables are open
 * meanwhile: a command that would move the rows, or drop the types of arguments and result with
 * the extension, is refused as for any table in use.
 */
static void
call_as_owner(EvpgFunction *function, const Datum *args, bool read_only, int max_rows, CallResult *result)
{
	EvpgPreparedCall *call;
	Relation	stream = open_stream_table(EvpgCatalogGet()->stream);
	Relation	projection_state = open_table_inside(EvpgInsideProjection, EvpgCatalogGet()->projection_state);
	Relation	saga_instance = open_table_inside(EvpgInsideSaga, EvpgCatalogGet()->saga_instance);
	EvpgScope	scope;

	EvpgSettingsPin();
	EvpgEnterAs(&scope, function->owner, function->search_path);
	if (!read_only)
	{
		/* It sees what was written before it. */
		CommandCounterIncrement();
	}
	/* Nothing from here on accepts invalidations before the function runs. */
	call = take_prepared(function);
	if (call == NULL)
	{
		SPI_connect();
		EvpgFunctionPlan(function);
		call = prepare_by_plan(function, result->context);
		if (call == NULL)
			execute_plan(function, args, read_only, max_rows, result);
		SPI_finish();
	}
	if (call != NULL)
	{
		ErrorContextCallback frame;

		EvpgErrorContextPush(&frame, describe_call, function);
		make_state(call);
		set_parameters(call->params, args);
		evaluate_as_statement(call, read_only, max_rows, result);
		EvpgErrorContextPop(&frame);
		keep_prepared(function, call);
	}
	EvpgLeave(&scope);
	table_close(stream, NoLock);
	if (projection_state != NULL)
		table_close(projection_state, NoLock);
	if (saga_instance != NULL)
		table_close(saga_instance, NoLock);
}

/*
 * EvpgFunctionCallPure
 *		Calls a function as EvpgFunctionCall does, if the call is known to run nothing but
 *		immutable functions of PostgreSQL, so that it refuses nothing, and has nothing to roll
 *		back.  Returns the number of values; -1 if nothing was called, as always the first time.
 */
int
EvpgFunctionCallPure(EvpgFunction *function, const Datum *args, Datum **rows, bool **row_nulls)
{
	CallResult	result = {.context = CurrentMemoryContext};
	ErrorContextCallback frame;
	EvpgPreparedCall *call;

	if (function->prepared == NULL || !function->prepared->traits.is_pure || function->prepared->state_context == NULL)
		return -1;
	call = take_prepared(function);
	if (call == NULL)
		return -1;
	check_stack_depth();
	EvpgErrorContextPush(&frame, describe_call, function);
	set_parameters(call->params, args);
	evaluate_call(call, 1, &result);
	EvpgErrorContextPop(&frame);
	keep_prepared(function, call);
	CHECK_FOR_INTERRUPTS();
	*rows = result.rows;
	*row_nulls = result.nulls;
	return result.count;
}

/*
 * EvpgFunctionCall
 *		Calls a function as its owner, and fills *rows and *row_nulls with what
 *		it returns, at most max_rows values (one, unless it returns a set), in
 *		CurrentMemoryContext.  Returns their number.  The caller is inside
 *		EvpgEnter.  Errors of the function are raised unchanged.
 *
 * read_only is for functions that must be pure: they see the active snapshot.
 */
int
EvpgFunctionCall(EvpgFunction *function, const Datum *args, bool read_only, int max_rows, Datum **rows, bool **row_nulls)
{
	CallResult	result = {.context = CurrentMemoryContext};
	int			count = EvpgFunctionCallPure(function, args, rows, row_nulls);

	if (count >= 0)
		return count;
	check_stack_depth();
	call_as_owner(function, args, read_only, max_rows, &result);
	CHECK_FOR_INTERRUPTS();
	*rows = result.rows;
	*row_nulls = result.nulls;
	return result.count;
}
