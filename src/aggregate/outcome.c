/*-------------------------------------------------------------------------
 *
 * outcome.c
 *		What became of a command: as an error, or as a row of evpg.outcome.
 *
 * A refusal has a status and a SQLSTATE; evpg_execute raises it, and
 * evpg_try_execute returns it.  Memory: an outcome refers to strings and events of
 * the call, whose context outlives it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "aggregate/outcome.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/shape.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/tuplestore.h"

/* Quotes a string as JSON, for the DETAIL of a refusal; in CurrentMemoryContext. */
char *
EvpgQuoteJson(const char *text)
{
	StringInfoData buffer;

	initStringInfo(&buffer);
	escape_json(&buffer, text);
	return buffer.data;
}

/*
 * EvpgOutcomeRefuse
 *		Makes an outcome a refusal, for the reason that user code gave.  The
 *		strings are those of the decision, not copies.
 */
void
EvpgOutcomeRefuse(EvpgOutcome *outcome, EvpgStatus status, const EvpgDecision *why)
{
	outcome->status = status;
	outcome->code = why->code;
	outcome->message = why->message;
	outcome->detail = why->detail;
	outcome->hint = why->hint;
}

static const struct
{
	const char *name;
	int			sqlstate;
}			statuses[] =

{
	[EVPG_STATUS_OK] = {"ok", ERRCODE_SUCCESSFUL_COMPLETION},
	[EVPG_STATUS_NOOP] = {"noop", ERRCODE_SUCCESSFUL_COMPLETION},
	[EVPG_STATUS_DUPLICATE] = {"duplicate", ERRCODE_SUCCESSFUL_COMPLETION},
	[EVPG_STATUS_REJECTED] = {"rejected", EVPG_ERRCODE_REJECTED},
	[EVPG_STATUS_CONFLICT] = {"conflict", EVPG_ERRCODE_VERSION_CONFLICT},
	[EVPG_STATUS_INVARIANT] = {"invariant", EVPG_ERRCODE_INVARIANT},
	[EVPG_STATUS_INTERCEPTED] = {"intercepted", EVPG_ERRCODE_INTERCEPTED},
	[EVPG_STATUS_SKIPPED] = {"skipped", ERRCODE_SUCCESSFUL_COMPLETION},
};

/* Returns the name of an outcome's status, as SQL callers get it; static. */
const char *
EvpgOutcomeStatusName(const EvpgOutcome *outcome)
{
	return statuses[outcome->status].name;
}

/* Returns the SQLSTATE of a refusal; ERRCODE_SUCCESSFUL_COMPLETION if the outcome is not one. */
int
EvpgOutcomeSqlstate(const EvpgOutcome *outcome)
{
	return outcome->sqlstate != 0 ? outcome->sqlstate : statuses[outcome->status].sqlstate;
}

/*
 * EvpgOutcomeRaise
 *		Raises a refusal as an error, with its code as the name of a constraint;
 *		returns if the outcome is not one.
 */
void
EvpgOutcomeRaise(const EvpgOutcome *outcome)
{
	int			sqlstate = EvpgOutcomeSqlstate(outcome);

	if (sqlstate == ERRCODE_SUCCESSFUL_COMPLETION)
		return;
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("%s", outcome->message),
			 outcome->detail == NULL ? 0 :
			 errdetail("%s", JsonbToCString(NULL, &outcome->detail->root, VARSIZE(outcome->detail))),
			 outcome->hint == NULL ? 0 : errhint("%s", outcome->hint),
			 outcome->code == NULL ? 0 : err_generic_string(PG_DIAG_CONSTRAINT_NAME, outcome->code)));
}

/* Columns of evpg.outcome, see sql/evpg--1.0.sql. */
enum
{
	OUTCOME_STATUS,
	OUTCOME_AGGREGATE_TYPE,
	OUTCOME_AGGREGATE_ID,
	OUTCOME_VERSION,
	OUTCOME_POSITION,
	OUTCOME_EVENTS,
	OUTCOME_SQLSTATE,
	OUTCOME_CODE,
	OUTCOME_MESSAGE,
	OUTCOME_DETAIL,
	OUTCOME_HINT,
	OUTCOME_COLUMNS
};

/*
 * EvpgOutcomeReturnRow
 *		Adds an outcome to the rows of a function that returns evpg.outcome; the
 *		columns are in sql/evpg--1.0.sql.
 */
void
EvpgOutcomeReturnRow(FunctionCallInfo fcinfo, const EvpgOutcome *outcome)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	int			sqlstate = EvpgOutcomeSqlstate(outcome);
	bool		refused = (sqlstate != ERRCODE_SUCCESSFUL_COMPLETION);
	Datum		values[OUTCOME_COLUMNS];
	bool		nulls[OUTCOME_COLUMNS] = {0};

	values[OUTCOME_STATUS] = CStringGetTextDatum(EvpgOutcomeStatusName(outcome));
	values[OUTCOME_AGGREGATE_TYPE] = CStringGetTextDatum(outcome->stream.aggregate_type);
	values[OUTCOME_AGGREGATE_ID] = CStringGetTextDatum(outcome->stream.aggregate_id);
	values[OUTCOME_VERSION] = Int64GetDatum(outcome->stream.version);
	nulls[OUTCOME_POSITION] = (outcome->count == 0);
	values[OUTCOME_POSITION] = nulls[OUTCOME_POSITION] ? (Datum) 0 :
		Int64GetDatum(outcome->events[outcome->count - 1].position);
	values[OUTCOME_EVENTS] = JsonbPGetDatum(EvpgEventsToJsonb(outcome->events, outcome->count));
	nulls[OUTCOME_SQLSTATE] = !refused;
	values[OUTCOME_SQLSTATE] = refused ? CStringGetTextDatum(unpack_sql_state(sqlstate)) : (Datum) 0;
	nulls[OUTCOME_CODE] = (outcome->code == NULL);
	values[OUTCOME_CODE] = nulls[OUTCOME_CODE] ? (Datum) 0 : CStringGetTextDatum(outcome->code);
	nulls[OUTCOME_MESSAGE] = (outcome->message == NULL);
	values[OUTCOME_MESSAGE] = nulls[OUTCOME_MESSAGE] ? (Datum) 0 : CStringGetTextDatum(outcome->message);
	nulls[OUTCOME_DETAIL] = (outcome->detail == NULL);
	values[OUTCOME_DETAIL] = nulls[OUTCOME_DETAIL] ? (Datum) 0 : JsonbPGetDatum(outcome->detail);
	nulls[OUTCOME_HINT] = (outcome->hint == NULL);
	values[OUTCOME_HINT] = nulls[OUTCOME_HINT] ? (Datum) 0 : CStringGetTextDatum(outcome->hint);
	tuplestore_puttuple(result->setResult, EvpgShapeFormTuple(EvpgCatalogGet()->outcome, OUTCOME_COLUMNS, values, nulls));
}
