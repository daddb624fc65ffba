/*-------------------------------------------------------------------------
 *
 * dead_letter.c
 *		The SQL functions that run sagas, and that retry and discard dead letters,
 *		in the transaction of the caller.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/decision.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/errors.h"
#include "base/statement.h"
#include "base/subtransaction.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "consumer/activation.h"
#include "consumer/consumer.h"
#include "funcapi.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "saga/dispatch.h"
#include "saga/route.h"
#include "saga/saga.h"
#include "usercode/guard.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(evpg_run_sagas);
PG_FUNCTION_INFO_V1(evpg_retry_dead_letter);
PG_FUNCTION_INFO_V1(evpg_retry_dead_letters);
PG_FUNCTION_INFO_V1(evpg_discard_dead_letter);

static Datum
two_counts(FunctionCallInfo fcinfo, int64 first, int64 second)
{
	Datum		values[2] = {Int64GetDatum(first), Int64GetDatum(second)};
	bool		nulls[2] = {false, false};
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/*
 * One pass: what the commands that are sent here cause is for the next one.
 * An instance that another session works on is left to it.
 */
Datum
evpg_run_sagas(PG_FUNCTION_ARGS)
{
	int64		left = PG_ARGISNULL(0) ? PG_INT64_MAX : PG_GETARG_INT32(0);
	int64		sent = 0;
	int64		dead = 0;
	bool		idle = false;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext round = AllocSetContextCreate(caller, "EvpgRunSagas", ALLOCSET_DEFAULT_SIZES);
	MemoryContext memory = AllocSetContextCreate(round, "EvpgDispatch", ALLOCSET_DEFAULT_SIZES);
	ListCell   *cell;
	EvpgScope	scope;

	if (left < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_events must not be negative")));
	EvpgRefuseInProjection("run sagas");
	EvpgRefuseInSaga("run sagas");
	EvpgEnter(&scope, "evpg_run_sagas()");
	EvpgActivationRequire();
	if (EvpgFenceHeld())
		ereport(NOTICE,
				(errmsg("evpg_run_sagas() does not see what this transaction has appended"),
				 errhint("Commit first.")));
	foreach(cell, EvpgConsumerListSagas())
		dead += EvpgRouteAll(lfirst(cell));
	while (!idle && left > 0)
	{
		idle = true;
		MemoryContextResetOnly(round);
		MemoryContextSwitchTo(round);
		foreach(cell, EvpgDueItemList((int) Min(left, 100), EvpgClockNow()))
		{
			EvpgDueItem *work = lfirst(cell);

			if (left == 0 || !EvpgDispatchLock(work, false, false) || !EvpgDueItemClaim(work))
				continue;
			MemoryContextSwitchTo(memory);
			dead += EvpgDispatch(work, false, &sent, NULL) == EVPG_DISPATCH_DEAD;
			MemoryContextSwitchTo(round);
			MemoryContextReset(memory);
			left--;
			idle = false;
			CHECK_FOR_INTERRUPTS();
		}
	}
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(round);
	EvpgLeave(&scope);
	PG_RETURN_DATUM(two_counts(fcinfo, sent, dead));
}

/* ------------------------------------------------------------------ dead letters */

static EvpgStatement lock_dead_letter_row = {
	.text = "SELECT 1"
	" FROM evpg.dead_letter"
	" WHERE dead_letter_id = $1 AND resolved_at IS NULL FOR UPDATE",
	.types = {INT8OID}
};

static EvpgStatement select_dead_letter = {
	.text = "SELECT saga, key, source_position, timer_id, attempts"
	" FROM evpg.dead_letter"
	" WHERE dead_letter_id = $1 AND resolved_at IS NULL",
	.types = {INT8OID}
};

/*
 * Locks a dead letter that is not resolved, and says what it is about; false if
 * there is none.  The saga is locked first, as by who changes it, then the
 * instance, then the row.
 */
static bool
read_dead_letter(int64 id, EvpgDueItem *work)
{
	Datum		value = Int64GetDatum(id);
	MemoryContext caller = CurrentMemoryContext;
	bool		found = EvpgStatementReadLatest(&select_dead_letter, &value, NULL) > 0;

	memset(work, 0, sizeof(EvpgDueItem));
	if (found)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);

		work->saga = EvpgResultText(0, 1);
		work->key = EvpgResultText(0, 2);
		work->position = EvpgResultInt64(0, 3);
		work->timer_id = EvpgResultInt64(0, 4);
		work->attempts = (int) EvpgResultInt64(0, 5) + 1;
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
	if (!found)
		return false;
	if (work->saga != NULL)
		(void) EvpgDispatchLockSaga(work->saga, ShareLock, true);
	if (work->key != NULL || work->saga == NULL)
		(void) EvpgDispatchLock(work, false, true);
	found = EvpgStatementRun(&lock_dead_letter_row, &value, NULL) > 0;
	EvpgStatementDone();
	return found;
}

static EvpgStatement update_dead_letter_resolve = {
	.text = "UPDATE evpg.dead_letter"
	" SET resolved_at = evpg.clock_timestamp(), resolution = $2, reason = $3, resolved_by = $4"
	" WHERE dead_letter_id = $1",
	.types = {INT8OID, TEXTOID, TEXTOID, TEXTOID}
};

static void
resolve_dead_letter(int64 id, const char *resolution, const char *reason)
{
	Datum		values[4] = {Int64GetDatum(id)};
	char		nulls[4] = {' ', ' ', ' ', ' '};

	EvpgParameterText(values, nulls, 1, resolution);
	EvpgParameterText(values, nulls, 2, reason);
	EvpgParameterText(values, nulls, 3, GetUserNameFromId(GetSessionUserId(), false));
	(void) EvpgStatementRun(&update_dead_letter_resolve, values, nulls);
	EvpgStatementDone();
	EvpgWakeConsumersAtEnd();
}

static void
route_again(void *arg)
{
	EvpgDueItem *work = arg;

	(void) EvpgRouteAgain(work->saga, work->position);
}

static EvpgStatement update_retries = {
	.text = "UPDATE evpg.dead_letter"
	" SET attempts = attempts + 1, sqlstate = $2, code = $3, message = $4, detail = $5, hint = $6, context ="
	" $7"
	" WHERE dead_letter_id = $1",
	.types = {INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID}
};

/* Tries once more; NULL if it succeeded. */
static ErrorData *
retry_dead_letter(int64 id, EvpgDueItem *work)
{
	ErrorData  *error = NULL;
	int64		sent = 0;

	if (work->saga != NULL && work->key == NULL)
		error = EvpgSubtransactionRun(route_again, work);
	else
		(void) EvpgDispatch(work, true, &sent, &error);
	if (error == NULL)
		resolve_dead_letter(id, "retried", NULL);
	else
	{
		Datum		values[7] = {Int64GetDatum(id)};
		char		nulls[7] = {' ', ' ', ' ', ' ', ' ', ' ', ' '};

		EvpgParameterText(values, nulls, 1, unpack_sql_state(error->sqlerrcode));
		EvpgParameterText(values, nulls, 2, error->constraint_name);
		EvpgParameterText(values, nulls, 3, error->message);
		EvpgParameterText(values, nulls, 4, error->detail);
		EvpgParameterText(values, nulls, 5, error->hint);
		EvpgParameterText(values, nulls, 6, error->context);
		(void) EvpgStatementRun(&update_retries, values, nulls);
		EvpgStatementDone();
	}
	return error;
}

/* Status of an outcome for an error. */
static const char *
status_of(const ErrorData *error)
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
set_row_text(Datum *values, bool *nulls, int column, const char *text)
{
	nulls[column] = (text == NULL);
	values[column] = text == NULL ? (Datum) 0 : CStringGetTextDatum(text);
}

/* Columns of evpg.outcome, see sql/evpg--1.0.sql. */
Datum
evpg_retry_dead_letter(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	int64		id = EvpgArgBigint(fcinfo, 0, "dead_letter_id");
	EvpgDueItem work;
	EvpgScope	scope;

	InitMaterializedSRF(fcinfo, 0);
	EvpgRefuseInProjection("retry dead letters");
	EvpgRefuseInSaga("retry dead letters");
	EvpgEnter(&scope, "evpg_retry_dead_letter()");
	EvpgActivationRequire();
	if (read_dead_letter(id, &work))
	{
		ErrorData  *error = retry_dead_letter(id, &work);
		Datum		values[11] = {0};
		bool		nulls[11];
		EvpgDecision refusal;

		memset(nulls, true, sizeof(nulls));
		set_row_text(values, nulls, 0, error == NULL ? "ok" : status_of(error));
		if (error != NULL)
		{
			set_row_text(values, nulls, 6, unpack_sql_state(error->sqlerrcode));
			set_row_text(values, nulls, 7, error->constraint_name);
			set_row_text(values, nulls, 8, error->message);
			EvpgDecisionFromError(error, &refusal);
			nulls[9] = (refusal.detail == NULL);
			values[9] = JsonbPGetDatum(refusal.detail);
			set_row_text(values, nulls, 10, error->hint);
		}
		tuplestore_puttuple(result->setResult, heap_form_tuple(EvpgCatalogGet()->outcome, values, nulls));
	}
	EvpgLeave(&scope);
	PG_RETURN_NULL();
}

static EvpgStatement select_dead_letters = {
	.text = "SELECT dead_letter_id"
	" FROM evpg.dead_letter"
	" WHERE resolved_at IS NULL AND saga IS NOT DISTINCT"
	" FROM $1 ORDER BY dead_letter_id LIMIT $2",
	.types = {TEXTOID, INT8OID}
};

Datum
evpg_retry_dead_letters(PG_FUNCTION_ARGS)
{
	int			max_count = PG_ARGISNULL(1) ? PG_INT32_MAX : PG_GETARG_INT32(1);
	Datum		values[2] = {PG_GETARG_DATUM(0), Int64GetDatum(max_count)};
	char		nulls[2] = {PG_ARGISNULL(0) ? 'n' : ' ', ' '};
	MemoryContext caller = CurrentMemoryContext;
	List	   *ids = NIL;
	ListCell   *cell;
	int64		retried = 0;
	int64		failed = 0;
	uint64		rows;
	EvpgScope	scope;

	if (max_count < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_count must not be negative")));
	EvpgRefuseInProjection("retry dead letters");
	EvpgRefuseInSaga("retry dead letters");
	EvpgEnter(&scope, "evpg_retry_dead_letters()");
	EvpgActivationRequire();
	if (!PG_ARGISNULL(0) && EvpgSagaFind(text_to_cstring(PG_GETARG_TEXT_PP(0)), 0) == NULL)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_UNKNOWN_CONSUMER),
				 errmsg("saga \"%s\" is not registered", text_to_cstring(PG_GETARG_TEXT_PP(0)))));
	rows = EvpgStatementReadLatest(&select_dead_letters, values, nulls);
	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);
		int64	   *id = palloc(sizeof(int64));
		Datum		value;

		(void) EvpgResultDatum(row, 1, &value);
		*id = DatumGetInt64(value);
		ids = lappend(ids, id);
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
	foreach(cell, ids)
	{
		int64		id = *(int64 *) lfirst(cell);
		EvpgDueItem work;

		if (!read_dead_letter(id, &work))
			continue;
		if (retry_dead_letter(id, &work) == NULL)
			retried++;
		else
			failed++;
		CHECK_FOR_INTERRUPTS();
	}
	EvpgLeave(&scope);
	PG_RETURN_DATUM(two_counts(fcinfo, retried, failed));
}

Datum
evpg_discard_dead_letter(PG_FUNCTION_ARGS)
{
	int64		id = EvpgArgBigint(fcinfo, 0, "dead_letter_id");
	char	   *reason = EvpgArgId(fcinfo, 1, "reason");
	EvpgDueItem work;
	bool		found;
	EvpgScope	scope;

	EvpgRefuseInProjection("discard dead letters");
	EvpgRefuseInSaga("discard dead letters");
	EvpgEnter(&scope, "evpg_discard_dead_letter()");
	found = read_dead_letter(id, &work);
	if (found)
	{
		if (work.key != NULL || work.timer_id != 0)
			(void) EvpgDueItemDelete(&work);
		resolve_dead_letter(id, "discarded", reason);
	}
	EvpgLeave(&scope);
	PG_RETURN_BOOL(found);
}
