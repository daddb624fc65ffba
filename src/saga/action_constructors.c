/*-------------------------------------------------------------------------
 *
 * action_constructors.c
 *		SQL functions with which functions of sagas make a reaction and its actions.
 *
 * An action is a JSON object, {"do": "send", ...}, without the members that are not
 * given; action.c does it.  Modules make the same objects with evpg.h.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/jsonb.h"
#include "base/shape.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evpg_reaction);
PG_FUNCTION_INFO_V1(evpg_action_send);
PG_FUNCTION_INFO_V1(evpg_action_schedule);
PG_FUNCTION_INFO_V1(evpg_action_cancel);
PG_FUNCTION_INFO_V1(evpg_action_fail);

/* Begins the object of an action. */
static void
begin_action(JsonbParseState **state, const char *what)
{
	*state = NULL;
	EvpgJsonbBegin(state);
	EvpgJsonbAddText(state, "do", what);
}

/* ------------------------------------------------------------------ actions */

/* Checks the undo of a send: a send that has no undo. */
static void
check_undo(Jsonb *undo)
{
	char	   *what = EvpgJsonbMemberText(undo, "do");

	if (what == NULL || strcmp(what, "send") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("undo is not a command to be sent"),
				 errhint("Make it with evpg_action_send().")));
	if (getKeyJsonValueFromContainer(&undo->root, "undo", strlen("undo"), NULL) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("undo has an undo itself")));
}

/* Makes the action that sends a command. */
Datum
evpg_action_send(PG_FUNCTION_ARGS)
{
	enum
	{
		ARG_AGGREGATE_TYPE, ARG_AGGREGATE_ID, ARG_COMMAND_TYPE, ARG_DATA, ARG_LABEL, ARG_UNDO,
		ARG_EXPECTED_VERSION, ARG_METADATA
	};
	JsonbParseState *state;
	Jsonb	   *jsonb;

	begin_action(&state, "send");
	EvpgJsonbAddText(&state, "aggregate_type", EvpgArgName(fcinfo, ARG_AGGREGATE_TYPE, "aggregate type"));
	EvpgJsonbAddText(&state, "aggregate_id", EvpgArgId(fcinfo, ARG_AGGREGATE_ID, "aggregate id"));
	EvpgJsonbAddText(&state, "command_type", EvpgArgName(fcinfo, ARG_COMMAND_TYPE, "command type"));
	EvpgJsonbAddJsonb(&state, "data", EvpgArgJsonb(fcinfo, ARG_DATA, "command data"));
	if (!PG_ARGISNULL(ARG_LABEL))
		EvpgJsonbAddText(&state, "label", EvpgArgName(fcinfo, ARG_LABEL, "label"));
	if ((jsonb = EvpgArgJsonb(fcinfo, ARG_UNDO, "undo")) != NULL)
	{
		check_undo(jsonb);
		EvpgJsonbAddJsonb(&state, "undo", jsonb);
	}
	if (!PG_ARGISNULL(ARG_EXPECTED_VERSION))
		EvpgJsonbAddInt64(&state, "expected_version",
						  EvpgArgBigintAtLeast(fcinfo, ARG_EXPECTED_VERSION, "expected_version", -1));
	if ((jsonb = EvpgArgJsonb(fcinfo, ARG_METADATA, "command metadata")) != NULL)
	{
		EvpgCheckMetadata(jsonb);
		EvpgJsonbAddJsonb(&state, "metadata", jsonb);
	}
	PG_RETURN_JSONB_P(EvpgJsonbFinish(&state));
}

/* Returns the seconds of an interval as a numeric without trailing zeros. */
static Datum
get_interval_seconds(Datum interval)
{
	Datum		number = DirectFunctionCall2(extract_interval, CStringGetTextDatum("epoch"), interval);

	if (DatumGetBool(DirectFunctionCall2(numeric_lt, number, DirectFunctionCall1(int8_numeric, Int64GetDatum(0)))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("delay must not be negative")));
	return DirectFunctionCall1(numeric_trim_scale, number);
}

/* Makes the action that sets a timer. */
Datum
evpg_action_schedule(PG_FUNCTION_ARGS)
{
	enum
	{
		ARG_TIMER, ARG_DELAY, ARG_DUE_AT, ARG_PAYLOAD
	};
	JsonbParseState *state;

	begin_action(&state, "schedule");
	EvpgJsonbAddText(&state, "timer", EvpgArgName(fcinfo, ARG_TIMER, "timer"));
	if (PG_ARGISNULL(ARG_DELAY) == PG_ARGISNULL(ARG_DUE_AT))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a timer needs either delay or due_at")));
	if (!PG_ARGISNULL(ARG_DELAY))
		EvpgJsonbAddNumeric(&state, "delay", get_interval_seconds(PG_GETARG_DATUM(ARG_DELAY)));
	else
	{
		if (TIMESTAMP_NOT_FINITE(PG_GETARG_TIMESTAMPTZ(ARG_DUE_AT)))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("due_at must be finite")));
		EvpgJsonbAddTime(&state, "due_at", PG_GETARG_TIMESTAMPTZ(ARG_DUE_AT));
	}
	EvpgJsonbAddJsonb(&state, "payload", EvpgArgJsonb(fcinfo, ARG_PAYLOAD, "timer payload"));
	PG_RETURN_JSONB_P(EvpgJsonbFinish(&state));
}

/* Makes the action that cancels a timer. */
Datum
evpg_action_cancel(PG_FUNCTION_ARGS)
{
	JsonbParseState *state;

	begin_action(&state, "cancel");
	EvpgJsonbAddText(&state, "timer", EvpgArgName(fcinfo, 0, "timer"));
	PG_RETURN_JSONB_P(EvpgJsonbFinish(&state));
}

/* Makes the action that fails: the item becomes a dead letter. */
Datum
evpg_action_fail(PG_FUNCTION_ARGS)
{
	JsonbParseState *state;

	EvpgArgRefuseNull(fcinfo, 0, "reason");
	begin_action(&state, "fail");
	EvpgJsonbAddText(&state, "reason", text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_JSONB_P(EvpgJsonbFinish(&state));
}

/* ------------------------------------------------------------------ reactions */

static void
check_action(Jsonb *action, int number)
{
	static const char *const known[] = {"send", "schedule", "cancel", "compensate", "complete", "fail"};
	char	   *what = EvpgJsonbMemberText(action, "do");

	for (size_t i = 0; what != NULL && i < lengthof(known); i++)
		if (strcmp(what, known[i]) == 0)
			return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("action %d is not an action of a saga", number),
			 errhint("Make actions with evpg_action_send() and the other constructors of actions.")));
}

/* Returns the actions as a JSON array, without NULLs. */
static Jsonb *
make_action_array(ArrayType *array)
{
	JsonbParseState *state = NULL;
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	deconstruct_array(array, JSONBOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	(void) pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < count; i++)
	{
		JsonbValue	value;

		if (nulls[i])
			continue;
		check_action(DatumGetJsonbP(elements[i]), i + 1);
		JsonbToJsonbValue(DatumGetJsonbP(elements[i]), &value);
		(void) pushJsonbValue(&state, WJB_ELEM, &value);
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL));
}

/* Makes a reaction, a row of evpg.reaction, of a state and actions. */
Datum
evpg_reaction(PG_FUNCTION_ARGS)
{
	ArrayType  *actions = PG_ARGISNULL(1) ? construct_empty_array(JSONBOID) : PG_GETARG_ARRAYTYPE_P(1);
	Datum		values[2] = {PG_GETARG_DATUM(0), JsonbPGetDatum(make_action_array(actions))};
	bool		nulls[2] = {PG_ARGISNULL(0), false};

	PG_RETURN_DATUM(HeapTupleGetDatum(EvpgShapeFormTuple(EvpgCatalogGet()->reaction, lengthof(values), values, nulls)));
}
