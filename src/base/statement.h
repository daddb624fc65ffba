/*-------------------------------------------------------------------------
 *
 * statement.h
 *		evpg's own SQL statements, prepared once a session; results and parameters.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_STATEMENT_H
#define EVPG_STATEMENT_H

#include "executor/spi.h"
#include "fmgr.h"
#include "nodes/pg_list.h"
#include "utils/array.h"
#include "utils/jsonb.h"

/*
 * A statement stands as a static variable above the function that runs it.  Its
 * parameters end with the first type that is not set.
 */
typedef struct EvpgStatement
{
	const char *text;
	Oid			types[24];
	bool		by_values;		/* planned anew each time: see Planning in
								 * statement.c, also for the next one */
	bool		by_bitmap;		/* the index that serves it has no order */
	SPIPlanPtr	plan;			/* NULL until the session runs it first */
} EvpgStatement;

extern uint64 EvpgStatementRun(EvpgStatement *statement, Datum *values, const char *nulls);
extern uint64 EvpgStatementRead(EvpgStatement *statement, Datum *values, const char *nulls);
extern uint64 EvpgStatementReadLatest(EvpgStatement *statement, Datum *values, const char *nulls);
extern Portal EvpgStatementOpen(EvpgStatement *statement, Datum *values, const char *nulls, bool read_only);
extern void EvpgStatementClose(Portal portal);
extern bool EvpgResultDatum(uint64 row, int column, Datum *value);
extern uint64 EvpgStatementExecute(EvpgStatement *statement, Datum *values, const char *nulls);
extern void EvpgStatementDone(void);
extern List *EvpgStatementReadTexts(EvpgStatement *statement, Datum *values, const char *nulls);
extern int64 EvpgStatementReturnId(EvpgStatement *statement, Datum *values, const char *nulls);
extern int64 EvpgResultInt64(uint64 row, int column);
extern char *EvpgResultText(uint64 row, int column);
extern Jsonb *EvpgResultJsonb(uint64 row, int column);
extern List *EvpgResultNames(uint64 row, int column);
extern void EvpgParameterText(Datum *values, char *nulls, int column, const char *text);
extern void EvpgParameterJsonb(Datum *values, char *nulls, int column, Jsonb *jsonb);
extern void EvpgParameterArray(Datum *values, char *nulls, int column, ArrayType *array);
extern void EvpgParameterError(Datum *values, char *nulls, int column, const ErrorData *error);
extern void EvpgReturnSetBegin(FunctionCallInfo fcinfo, TupleDesc desc);
extern void EvpgStatementReturnRows(FunctionCallInfo fcinfo, uint64 rows);
extern int64 EvpgStatementReturnAll(FunctionCallInfo fcinfo, EvpgStatement *statement, Datum *values, const char *nulls,
									bool read_only);

#endif							/* EVPG_STATEMENT_H */
