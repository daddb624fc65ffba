/*-------------------------------------------------------------------------
 *
 * statement.c
 *		evpg's own SQL statements, prepared once a session over SPI.
 *
 * Each stands above the function that runs it.  Tables are qualified; functions
 * and operators are those of pg_catalog, since evpg's search_path is pinned for
 * them; the caller is inside EvpgEnter.  So a plan is analysed once.  Between EvpgStatementRun and
 * EvpgStatementDone the result is in SPI's memory: copy out what outlives it.  Runs
 * may nest, since user functions run in between, so every run is its own SPI
 * connection.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/names.h"
#include "base/catalog.h"
#include "base/statement.h"
#include "funcapi.h"
#include "jit/jit.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "optimizer/cost.h"
#include "utils/builtins.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

/*
 * How evpg's own statements are planned: by the indexes that were made for them,
 * whatever the statistics are.  A table of pending work is empty most of the time,
 * and a plan for an empty table is a sequential scan, which the session would keep
 * when much is pending.  Generic plans, made once; no JIT, which the costs of
 * disabled paths would start.
 *
 * An index that has no order, as GIN, is read by a bitmap alone.
 *
 * A statement that is planned by its values is the other way round: which of two
 * indexes is the better one depends on them, and the statistics know.
 *
 * The variables of these settings are assigned and restored here, rather than by
 * set_config_option() in a nest level (NewGUCNestLevel), because a plan may be
 * made anew in any execution, after an invalidation, so they have to be set around
 * each.  Six settings cost six look-ups by name, six entries on the GUC stack and a
 * callback of their end, for each statement of a command.  They have no assign
 * hooks, and this is not seen by SHOW or by user code: only planning and the
 * execution of this one statement happen in between, and an error restores them.
 * Triggers that a superuser adds to evpg's tables run in it, too.
 */
typedef struct Planning
{
	bool		seqscan;
	bool		bitmapscan;
	bool		sort;
	bool		hashjoin;
	bool		mergejoin;
	bool		jit;
} Planning;

static Planning
set_planning(Planning ways)
{
	Planning	before = {enable_seqscan, enable_bitmapscan, enable_sort, enable_hashjoin, enable_mergejoin, jit_enabled};

	enable_seqscan = ways.seqscan;
	enable_bitmapscan = ways.bitmapscan;
	enable_sort = ways.sort;
	enable_hashjoin = ways.hashjoin;
	enable_mergejoin = ways.mergejoin;
	jit_enabled = ways.jit;
	return before;
}

static const Planning by_index = {false, false, false, false, false, false};
static const Planning by_bitmap = {false, true, false, false, false, false};
static const Planning by_cost = {true, true, true, true, true, false};

/* Returns how a statement is planned. */
static Planning
get_planning(const EvpgStatement *statement)
{
	return statement->by_values ? by_cost : statement->by_bitmap ? by_bitmap : by_index;
}

static SPIPlanPtr
connect_spi(EvpgStatement *statement)
{
	EvpgPinSearchPath();
	SPI_connect();
	if (unlikely(statement->plan == NULL))
	{
		size_t		ntypes = 0;
		SPIPlanPtr	plan;

		while (ntypes < lengthof(statement->types) && OidIsValid(statement->types[ntypes]))
			ntypes++;
		plan = SPI_prepare_cursor(statement->text, (int) ntypes, statement->types,
								  statement->by_values ? CURSOR_OPT_CUSTOM_PLAN : CURSOR_OPT_GENERIC_PLAN);

		if (plan == NULL)
			elog(ERROR, "could not prepare statement: %s", SPI_result_code_string(SPI_result));
		SPI_keepplan(plan);
		statement->plan = plan;
	}
	return statement->plan;
}

static uint64
run_statement(EvpgStatement *statement, Datum *values, const char *nulls, bool read_only)
{
	SPIPlanPtr	plan = connect_spi(statement);
	Planning	before = set_planning(get_planning(statement));
	int			result = 0;

	PG_TRY();
	{
		result = SPI_execute_plan(plan, values, nulls, read_only, 0);
	}
	PG_FINALLY();
	{
		(void) set_planning(before);
	}
	PG_END_TRY();
	if (result < 0)
		elog(ERROR, "could not execute statement: %s", SPI_result_code_string(result));
	return SPI_processed;
}

/*
 * EvpgStatementOpen
 *		Opens a cursor over a statement, with a new snapshot, or under the caller's if
 *		read_only; close it with EvpgStatementClose.  It is pinned: user code that runs
 *		between two fetches cannot close it.
 */
Portal
EvpgStatementOpen(EvpgStatement *statement, Datum *values, const char *nulls, bool read_only)
{
	SPIPlanPtr	plan = connect_spi(statement);
	Planning	before = set_planning(get_planning(statement));
	Portal		portal = NULL;

	PG_TRY();
	{
		portal = SPI_cursor_open(NULL, plan, values, nulls, read_only);
	}
	PG_FINALLY();
	{
		(void) set_planning(before);
	}
	PG_END_TRY();
	PinPortal(portal);
	return portal;
}

/* Closes a cursor that EvpgStatementOpen has opened; what was fetched is gone. */
void
EvpgStatementClose(Portal portal)
{
	UnpinPortal(portal);
	SPI_cursor_close(portal);
	SPI_finish();
}

/*
 * EvpgStatementRun
 *		Runs a statement with a new snapshot (in READ COMMITTED) and returns the
 *		number of rows; the rows are there until EvpgStatementDone.
 */
uint64
EvpgStatementRun(EvpgStatement *statement, Datum *values, const char *nulls)
{
	return run_statement(statement, values, nulls, false);
}

/* Runs a statement under the caller's snapshot, for STABLE functions. */
uint64
EvpgStatementRead(EvpgStatement *statement, Datum *values, const char *nulls)
{
	return run_statement(statement, values, nulls, true);
}

/*
 * EvpgStatementReadLatest
 *		Runs a statement with a snapshot that sees all that is committed now, under
 *		every isolation level.
 */
uint64
EvpgStatementReadLatest(EvpgStatement *statement, Datum *values, const char *nulls)
{
	uint64		rows;

	PushActiveSnapshot(GetLatestSnapshot());
	rows = run_statement(statement, values, nulls, true);
	PopActiveSnapshot();
	return rows;
}

/* Gets a value of the last result, in SPI's memory; false if it is NULL.  Columns count from 1. */
bool
EvpgResultDatum(uint64 row, int column, Datum *value)
{
	bool		isnull;

	*value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);
	return !isnull;
}

/* Ends what EvpgStatementRun, EvpgStatementRead or EvpgStatementReadLatest began; its rows are gone. */
void
EvpgStatementDone(void)
{
	SPI_finish();
}

/* Runs a statement and ends it: for the number of its rows alone, which it returns. */
uint64
EvpgStatementExecute(EvpgStatement *statement, Datum *values, const char *nulls)
{
	uint64		rows = EvpgStatementRun(statement, values, nulls);

	EvpgStatementDone();
	return rows;
}

/*
 * EvpgStatementReadTexts
 *		Reads the only column of a statement, texts that are not null, with the latest
 *		snapshot; returns them (char *), in CurrentMemoryContext.
 */
List *
EvpgStatementReadTexts(EvpgStatement *statement, Datum *values, const char *nulls)
{
	MemoryContext caller = CurrentMemoryContext;
	uint64		rows = EvpgStatementReadLatest(statement, values, nulls);
	MemoryContext spi = MemoryContextSwitchTo(caller);
	List	   *texts = NIL;

	for (uint64 row = 0; row < rows; row++)
		texts = lappend(texts, EvpgResultText(row, 1));
	MemoryContextSwitchTo(spi);
	EvpgStatementDone();
	return texts;
}

/* Runs a statement that returns at most one row, of an id, and ends it; returns the id, 0 if there is no row. */
int64
EvpgStatementReturnId(EvpgStatement *statement, Datum *values, const char *nulls)
{
	int64		id = EvpgStatementRun(statement, values, nulls) > 0 ? EvpgResultInt64(0, 1) : 0;

	EvpgStatementDone();
	return id;
}

/* ------------------------------------------------------------------ results */

/* Gets an int4, int8 or boolean; 0 if it is NULL. */
int64
EvpgResultInt64(uint64 row, int column)
{
	Datum		value;

	return EvpgResultDatum(row, column, &value) ? DatumGetInt64(value) : 0;
}

/* Copies a text into CurrentMemoryContext; NULL if it is NULL. */
char *
EvpgResultText(uint64 row, int column)
{
	Datum		value;

	return EvpgResultDatum(row, column, &value) ? TextDatumGetCString(value) : NULL;
}

/* Copies a jsonb into CurrentMemoryContext; NULL if it is NULL. */
Jsonb *
EvpgResultJsonb(uint64 row, int column)
{
	Datum		value;

	return EvpgResultDatum(row, column, &value) ? DatumGetJsonbPCopy(value) : NULL;
}

/* Copies a text[] as a list of strings into CurrentMemoryContext; NIL if it is NULL. */
List *
EvpgResultNames(uint64 row, int column)
{
	Datum		value;

	return EvpgResultDatum(row, column, &value) ? EvpgNamesFromArray(DatumGetArrayTypeP(value)) : NIL;
}

/* ------------------------------------------------------------------ parameters */

/* Sets a parameter, counted from 0, to a text or NULL; values and nulls are as SPI wants them. */
void
EvpgParameterText(Datum *values, char *nulls, int column, const char *text)
{
	nulls[column] = text == NULL ? 'n' : ' ';
	values[column] = text == NULL ? (Datum) 0 : CStringGetTextDatum(text);
}

/* Sets a parameter to a jsonb or NULL, which is not copied. */
void
EvpgParameterJsonb(Datum *values, char *nulls, int column, Jsonb *jsonb)
{
	nulls[column] = jsonb == NULL ? 'n' : ' ';
	values[column] = PointerGetDatum(jsonb);
}

/* Sets a parameter to an array or NULL, which is not copied. */
void
EvpgParameterArray(Datum *values, char *nulls, int column, ArrayType *array)
{
	nulls[column] = array == NULL ? 'n' : ' ';
	values[column] = PointerGetDatum(array);
}

/* Sets three parameters, the first at column, to message, SQLSTATE and context of an error; NULL if error is NULL. */
void
EvpgParameterError(Datum *values, char *nulls, int column, const ErrorData *error)
{
	EvpgParameterText(values, nulls, column, error == NULL ? NULL : error->message);
	EvpgParameterText(values, nulls, column + 1, error == NULL ? NULL : unpack_sql_state(error->sqlerrcode));
	EvpgParameterText(values, nulls, column + 2, error == NULL ? NULL : error->context);
}

/* ------------------------------------------------------------------ functions that return a set */

/*
 * EvpgReturnSetBegin
 *		Does what InitMaterializedSRF does, for a function whose rows are of a type
 *		that the catalog has a descriptor of: nothing is looked up or copied.
 *		That descriptor may have fewer columns than the type has by now, which
 *		were added and dropped.
 */
void
EvpgReturnSetBegin(FunctionCallInfo fcinfo, TupleDesc desc)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext old;

	if (result == NULL || !IsA(result, ReturnSetInfo) || (result->allowedModes & SFRM_Materialize) == 0 ||
		result->expectedDesc == NULL || result->expectedDesc->natts != desc->natts)
	{
		InitMaterializedSRF(fcinfo, 0);
		return;
	}
	old = MemoryContextSwitchTo(result->econtext->ecxt_per_query_memory);
	result->returnMode = SFRM_Materialize;
	result->setResult = tuplestore_begin_heap((result->allowedModes & SFRM_Materialize_Random) != 0, false, work_mem);
	result->setDesc = desc;
	MemoryContextSwitchTo(old);
}

/*
 * EvpgStatementReturnRows
 *		Adds rows of the last result, whose columns are those of the SQL function, to
 *		what the function returns.  The caller has called InitMaterializedSRF.
 */
void
EvpgStatementReturnRows(FunctionCallInfo fcinfo, uint64 rows)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	for (uint64 row = 0; row < rows; row++)
		tuplestore_puttuple(result->setResult, SPI_tuptable->vals[row]);
}

/*
 * EvpgStatementReturnAll
 *		Runs a statement, whose columns are those of the SQL function, and adds all its
 *		rows to what the function returns.  They are fetched in batches: the result
 *		spills to disk beyond work_mem, and SPI holds one batch.  Returns the number of
 *		rows.  The caller has called InitMaterializedSRF.
 */
int64
EvpgStatementReturnAll(FunctionCallInfo fcinfo, EvpgStatement *statement, Datum *values, const char *nulls,
					   bool read_only)
{
	Portal		portal = EvpgStatementOpen(statement, values, nulls, read_only);
	int64		count = 0;

	for (;;)
	{
		SPI_cursor_fetch(portal, true, 1000);
		if (SPI_processed == 0)
			break;
		count += SPI_processed;
		EvpgStatementReturnRows(fcinfo, SPI_processed);
		SPI_freetuptable(SPI_tuptable);
		CHECK_FOR_INTERRUPTS();
	}
	EvpgStatementClose(portal);
	return count;
}
