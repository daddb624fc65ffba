/*-------------------------------------------------------------------------
 *
 * invariant.c
 *		Calls the invariant of an aggregate, which checks the state that a command
 *		would leave.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "aggregate/invariant.h"
#include "base/errors.h"
#include "usercode/module_callback.h"

/*
 * EvpgInvariantHolds
 *		Checks the invariant on a state.  Returns false if it does not hold;
 *		*why then has the reason, in CurrentMemoryContext.  A refusal by a
 *		function is always caught, in a subtransaction, since it becomes VE006.
 *		The caller is inside EvpgEnter.
 */
bool
EvpgInvariantHolds(EvpgState *state, const EvpgCommand *command, EvpgDecision *why)
{
	EvpgAggregate *aggregate = state->aggregate;
	bool		holds = true;
	EvpgAggregateCall code = {
		.role = "invariant",
		.aggregate_type = command->aggregate_type,
		.aggregate_id = command->aggregate_id,
		.type = command->command_type,
		.version = state->version
	};

	memset(why, 0, sizeof(EvpgDecision));
	EvpgAggregateCallBegin(&code);
	if (aggregate->has_module && aggregate->module.invariant != NULL)
	{
		evpg_result *result = EvpgModuleResultCreate();

		holds = aggregate->module.invariant(result, state->json->json);
		if (result->failed)
			EvpgRaiseModuleFailed(result, "invariant", command);
		EvpgModuleResultCheck(result, EVPG_MAY_REJECT, "an invariant");
		if (result->rejected)
			EvpgDecisionFromModule(result, command, why);
		holds = holds && !result->rejected;
	}
	else if (!aggregate->has_module && aggregate->invariant != NULL)
	{
		Datum		args[1] = {JsonbPGetDatum(state->jsonb)};
		EvpgRefusableCall call = {.function = aggregate->invariant, .args = args, .max_rows = 1};

		holds = EvpgRefusableCallTry(&call, EVPG_ERRCODE_INVARIANT, why) &&
			(call.count != 1 || call.row_nulls[0] || DatumGetBool(call.rows[0]));
	}
	EvpgAggregateCallEnd(&code);
	if (!holds && !why->rejected)
	{
		why->rejected = true;
		why->code = pstrdup("invariant");
		why->message = psprintf("command \"%s\" would violate the invariant of aggregate \"%s\"",
								command->command_type, command->aggregate_type);
	}
	return holds;
}
