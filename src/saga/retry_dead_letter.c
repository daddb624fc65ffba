/*-------------------------------------------------------------------------
 *
 * retry_dead_letter.c
 *		The SQL functions that retry and discard dead letters, in the transaction of
 *		the caller.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/command.h"
#include "aggregate/decision.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/row.h"
#include "base/shape.h"
#include "base/statement.h"
#include "base/subtransaction.h"
#include "catalog/pg_type.h"
#include "consumer/activation.h"
#include "funcapi.h"
#include "log/early_release.h"
#include "miscadmin.h"
#include "saga/dead_letter.h"
#include "saga/dispatch.h"
#include "saga/route.h"
#include "saga/saga.h"
#include "usercode/guard.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(evpg_retry_dead_letter);
PG_FUNCTION_INFO_V1(evpg_retry_dead_letters);
PG_FUNCTION_INFO_V1(evpg_discard_dead_letter);

static void
route_item_again(void *arg)
{
	EvpgDueItem *item = arg;

	(void) EvpgRouteEvent(item->saga, item->position);
}

/* Tries a dead letter, which is locked, once more, and resolves it; returns the error, NULL if it succeeded. */
static ErrorData *
retry_dead_letter(int64 dead_letter_id, EvpgDueItem *item)
{
	ErrorData  *error = NULL;
	int64		sent = 0;

	if (item->saga != NULL && item->key == NULL)
		error = EvpgSubtransactionRun(route_item_again, item);
	else
		(void) EvpgDispatchItem(item, true, &sent, &error);
	if (error == NULL)
		EvpgDeadLetterResolve(dead_letter_id, "retried", NULL);
	else
		EvpgDeadLetterUpdate(dead_letter_id, error);
	return error;
}

/* Returns the status of an outcome for an error. */
static const char *
get_outcome_status(const ErrorData *error)
{
	switch (error->sqlerrcode)
	{
		case EVPG_ERRCODE_REJECTED:
			return "rejected";
		case EVPG_ERRCODE_VERSION_CONFLICT:
			return "conflict";
		case EVPG_ERRCODE_INVARIANT:
			return "invariant";
		case EVPG_ERRCODE_INTERCEPTED:
			return "intercepted";
		default:
			return "failed";
	}
}

static void
set_outcome_text(Datum *values, bool *nulls, int column, const char *text)
{
	nulls[column] = (text == NULL);
	values[column] = text == NULL ? (Datum) 0 : CStringGetTextDatum(text);
}

/* Retries one dead letter; returns its outcome, columns of evpg.outcome, or no row if it is none that is not resolved. */
Datum
evpg_retry_dead_letter(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	int64		dead_letter_id = EvpgArgBigint(fcinfo, 0, "dead_letter_id");
	EvpgDueItem item;
	EvpgScope	scope;

	InitMaterializedSRF(fcinfo, 0);
	EvpgRefuseInProjection("retry dead letters");
	EvpgRefuseInSaga("retry dead letters");
	EvpgCommandRefuseInside("retry dead letters");
	EvpgEnter(&scope, "evpg_retry_dead_letter()");
	EvpgActivationRequire();
	if (EvpgDeadLetterLock(dead_letter_id, &item))
	{
		ErrorData  *error = retry_dead_letter(dead_letter_id, &item);
		Datum		values[11] = {0};
		bool		nulls[11];
		EvpgDecision refusal;

		memset(nulls, true, sizeof(nulls));
		set_outcome_text(values, nulls, 0, error == NULL ? "ok" : get_outcome_status(error));
		if (error != NULL)
		{
			set_outcome_text(values, nulls, 6, unpack_sql_state(error->sqlerrcode));
			set_outcome_text(values, nulls, 7, error->constraint_name);
			set_outcome_text(values, nulls, 8, error->message);
			EvpgDecisionFromError(error, &refusal);
			nulls[9] = (refusal.detail == NULL);
			values[9] = JsonbPGetDatum(refusal.detail);
			set_outcome_text(values, nulls, 10, error->hint);
		}
		tuplestore_puttuple(result->setResult,
							EvpgShapeFormTuple(EvpgCatalogGet()->outcome, lengthof(values), values, nulls));
	}
	EvpgLeave(&scope);
	PG_RETURN_NULL();
}

static EvpgStatement select_dead_letters = {
	.text =
	"SELECT dead_letter_id"
	"  FROM evpg.dead_letter"
	" WHERE resolved_at IS NULL AND saga IS NOT DISTINCT FROM $1"
	" ORDER BY dead_letter_id LIMIT $2",
	.types = {TEXTOID, INT8OID}
};

/* Sets *ids to the ids of dead letters, in CurrentMemoryContext; returns their number. */
static uint64
list_dead_letters(Datum *values, const char *nulls, int64 **ids)
{
	MemoryContext caller = CurrentMemoryContext;
	uint64		rows = EvpgStatementReadLatest(&select_dead_letters, values, nulls);

	*ids = MemoryContextAlloc(caller, sizeof(int64) * Max(rows, 1));
	for (uint64 row = 0; row < rows; row++)
		(*ids)[row] = EvpgResultInt64(row, 1);
	EvpgStatementDone();
	return rows;
}

/* Retries the dead letters of a saga, or of scheduled commands, oldest first; returns how many succeeded and failed. */
Datum
evpg_retry_dead_letters(PG_FUNCTION_ARGS)
{
	int64		max_count = EvpgArgMaxCount(fcinfo, 1);
	Datum		values[2] = {PG_GETARG_DATUM(0), Int64GetDatum(max_count)};
	char		nulls[2] = {PG_ARGISNULL(0) ? 'n' : ' ', max_count < 0 ? 'n' : ' '};
	int64	   *ids;
	uint64		count;
	int64		retried = 0;
	int64		failed = 0;
	EvpgScope	scope;

	EvpgRefuseInProjection("retry dead letters");
	EvpgRefuseInSaga("retry dead letters");
	EvpgCommandRefuseInside("retry dead letters");
	EvpgEnter(&scope, "evpg_retry_dead_letters()");
	EvpgActivationRequire();
	if (!PG_ARGISNULL(0))
		(void) EvpgSagaGet(text_to_cstring(PG_GETARG_TEXT_PP(0)), 0, false);
	count = list_dead_letters(values, nulls, &ids);
	for (uint64 i = 0; i < count; i++)
	{
		EvpgDueItem item;

		if (!EvpgDeadLetterLock(ids[i], &item))
			continue;
		if (retry_dead_letter(ids[i], &item) == NULL)
			retried++;
		else
			failed++;
		CHECK_FOR_INTERRUPTS();
	}
	EvpgLeave(&scope);
	PG_RETURN_DATUM(EvpgRowOfCounts(fcinfo, retried, failed));
}

/* Discards a dead letter with the event or timer that it is about; false if it is none that is not resolved. */
Datum
evpg_discard_dead_letter(PG_FUNCTION_ARGS)
{
	int64		id = EvpgArgBigint(fcinfo, 0, "dead_letter_id");
	char	   *reason = EvpgArgId(fcinfo, 1, "reason");
	EvpgDueItem item;
	bool		found;
	EvpgScope	scope;

	EvpgRefuseInProjection("discard dead letters");
	EvpgRefuseInSaga("discard dead letters");
	EvpgEnter(&scope, "evpg_discard_dead_letter()");
	found = EvpgDeadLetterLock(id, &item);
	if (found)
	{
		if (item.key != NULL || item.timer_id != 0)
			(void) EvpgDueItemDelete(&item);
		EvpgDeadLetterResolve(id, "discarded", reason);
	}
	EvpgLeave(&scope);
	if (!found)
		EvpgEarlyReleaseAwaitOthers();
	PG_RETURN_BOOL(found);
}
