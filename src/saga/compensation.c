/*-------------------------------------------------------------------------
 *
 * compensation.c
 *		Compensation: each send may name the command that undoes it; the instance
 *		keeps these, the last one first, and executes them when it compensates
 *		(rule 17).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "saga/compensation.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

/* Replaces the list of what can be undone, which may be long; memory that this takes is freed. */
static void
change_undo_list(EvpgAttempt *attempt, PGFunction change, Datum first, Datum second)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "EvpgUndo", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Jsonb	   *changed = DatumGetJsonbP(DirectFunctionCall2(change, first, second));
	Jsonb	   *undo;

	MemoryContextSwitchTo(old);
	undo = palloc(VARSIZE(changed));
	memcpy(undo, changed, VARSIZE(changed));
	MemoryContextDelete(context);
	pfree(attempt->instance.undo);
	attempt->instance.undo = undo;
}

/* Puts the command that undoes the send just done before those of earlier sends. */
void
EvpgCompensationAdd(EvpgAttempt *attempt, Jsonb *undo)
{
	JsonbParseState *state = NULL;
	JsonbValue	value;
	Jsonb	   *first;

	JsonbToJsonbValue(undo, &value);
	(void) pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	(void) pushJsonbValue(&state, WJB_ELEM, &value);
	first = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL));
	change_undo_list(attempt, jsonb_concat, JsonbPGetDatum(first), JsonbPGetDatum(attempt->instance.undo));
}

/*
 * EvpgCompensationRun
 *		Undoes what was sent, the last one first: hands each undo to send, until none
 *		is left or the instance is completed.
 */
void
EvpgCompensationRun(EvpgAttempt *attempt, void (*send) (EvpgAttempt *attempt, Jsonb *action))
{
	attempt->compensating = true;
	while (!attempt->instance.completed && JB_ROOT_COUNT(attempt->instance.undo) > 0)
	{
		Jsonb	   *undo = JsonbValueToJsonb(getIthJsonbValueFromContainer(&attempt->instance.undo->root, 0));

		change_undo_list(attempt, jsonb_delete_idx, JsonbPGetDatum(attempt->instance.undo), Int32GetDatum(0));
		send(attempt, undo);
		CHECK_FOR_INTERRUPTS();
	}
}
