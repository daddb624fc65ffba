/*-------------------------------------------------------------------------
 *
 * decision.c
 *		What the code of an aggregate decides: refusals by functions and by
 *		modules, and the error context that names the code.
 *
 * A function refuses by an error, which evpg_reject() raises; any other error is
 * a defect and passes unchanged. A module refuses by evpg_reject() in its
 * result.
 *
 * Memory: what a decision points to is in CurrentMemoryContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "aggregate/decision.h"
#include "aggregate/reject.h"
#include "base/error_context.h"
#include "base/errors.h"
#include "base/subtransaction.h"
#include "usercode/function_call.h"
#include "usercode/module_callback.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

/* Adds the CONTEXT line of an error in the code of an aggregate. */
static void
describe_aggregate_call(void *arg)
{
	EvpgAggregateCall *call = arg;

	if (call->position > 0)
		errcontext("%s of aggregate \"%s\", stream \"%s\", event \"%s\" of version " INT64_FORMAT
				   " at position " INT64_FORMAT,
				   call->role, call->aggregate_type, call->aggregate_id, call->type, call->version, call->position);
	else
		errcontext("%s of aggregate \"%s\", stream \"%s\", \"%s\" at version " INT64_FORMAT,
				   call->role, call->aggregate_type, call->aggregate_id, call->type, call->version);
}

/*
 * EvpgAggregateCallBegin
 *		Makes errors name the code of an aggregate that is about to run.  The
 *		caller fills *call but for its callback, keeps it until
 *		EvpgAggregateCallEnd, and does not return in between.
 */
void
EvpgAggregateCallBegin(EvpgAggregateCall *call)
{
	EvpgErrorContextPush(&call->callback, describe_aggregate_call, call);
}

/* Ends what EvpgAggregateCallBegin began; an ERROR does that by itself. */
void
EvpgAggregateCallEnd(EvpgAggregateCall *call)
{
	EvpgErrorContextPop(&call->callback);
}

/* ------------------------------------------------------------------ refusals */

/* Makes the message of a refusal that has none; code is NULL if it has no code either. */
static char *
make_default_message(const char *aggregate_type, const char *aggregate_id, const char *command_type, const char *code)
{
	return psprintf("command \"%s\" of %s \"%s\" was refused%s%s", command_type, aggregate_type, aggregate_id,
					code != NULL ? ": " : "", code != NULL ? code : "");
}

/*
 * EvpgRejectionDefaultMessage
 *		Makes the message of a refusal that a function raises with a code alone:
 *		it names the command that is being decided, if there is one.  The result
 *		is in CurrentMemoryContext.
 */
char *
EvpgRejectionDefaultMessage(const char *code)
{
	for (ErrorContextCallback *callback = error_context_stack; callback != NULL; callback = callback->previous)
	{
		EvpgAggregateCall *call = callback->arg;

		/* A reducer decides nothing: what it raises is a defect. */
		if (callback->callback == describe_aggregate_call)
			return strcmp(call->role, "reducer") == 0 ? pstrdup(code) :
				make_default_message(call->aggregate_type, call->aggregate_id, call->type, code);
	}
	return pstrdup(code);
}

/* A text that may be JSON. */
typedef struct DetailParse
{
	const char *text;
	Jsonb	   *jsonb;
} DetailParse;

static void
parse_detail(void *arg)
{
	DetailParse *parse = arg;

	parse->jsonb = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(parse->text)));
}

/*
 * EvpgDecisionFromError
 *		Makes a decision of the error by which a function refused.  Its strings
 *		are the error's; its detail is in CurrentMemoryContext.
 */
void
EvpgDecisionFromError(const ErrorData *error, EvpgDecision *decision)
{
	memset(decision, 0, sizeof(EvpgDecision));
	decision->rejected = true;
	decision->code = error->constraint_name;
	decision->message = error->message;
	decision->hint = error->hint;
	if (error->detail != NULL)
	{
		DetailParse parse = {.text = error->detail};

		/*
		 * By evpg_reject it is JSON; by RAISE it may be any text, also JSON
		 * that jsonb cannot hold: the answer remains a refusal.
		 */
		ErrorData  *not_jsonb = EvpgSubtransactionRun(parse_detail, &parse);

		if (not_jsonb != NULL && EvpgErrorIsCancel(not_jsonb))
			EvpgRethrowError(not_jsonb);
		if (not_jsonb != NULL)
		{
			JsonbValue	string = {
				.type = jbvString,
				.val.string.val = error->detail,
				.val.string.len = strlen(error->detail)
			};

			parse.jsonb = JsonbValueToJsonb(&string);
		}
		decision->detail = parse.jsonb;
	}
}

/*
 * EvpgDecisionFromModule
 *		Makes a decision of the result in which a module refused a command.
 *		Copies all of it into CurrentMemoryContext; cuts texts that are too
 *		long.
 */
void
EvpgDecisionFromModule(evpg_result *result, const EvpgCommand *command, EvpgDecision *decision)
{
	decision->rejected = true;
	(void) EvpgModuleResultClip(result);
	decision->code = EvpgModuleCopyText(result->code, "rejection code");
	decision->message = EvpgModuleCopyText(result->message, "rejection message");
	if (decision->code[0] == '\0')
		decision->code = NULL;
	if (decision->message[0] == '\0')
		decision->message = make_default_message(command->aggregate_type, command->aggregate_id, command->command_type,
												 decision->code);
	if (result->detail != NULL)
		decision->detail = EvpgJsonToJsonb(result->detail, "rejection detail");
}

/* Raises the failure that a callback of a module reported with evpg_fail(); role names the callback. */
void
EvpgRaiseModuleFailed(evpg_result *result, const char *role, const EvpgCommand *command)
{
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_MODULE),
			 errmsg("%s of aggregate \"%s\" failed: %s", role, command->aggregate_type,
					EvpgModuleCopyText(EvpgModuleResultClip(result)->message, "failure message"))));
}

/* ------------------------------------------------------------------ functions that may refuse */

/* Calls the function; its rows are in CurrentMemoryContext.  A refusal is raised as any other error. */
void
EvpgRefusableCallRun(EvpgRefusableCall *call)
{
	call->count = EvpgFunctionCall(call->function, call->args, false, call->max_rows, &call->rows, &call->row_nulls);
}

static void
run_refusable_call(void *arg)
{
	EvpgRefusableCallRun(arg);
}

/*
 * EvpgRefusableCallTry
 *		Calls the function, in a subtransaction if it could refuse or write.
 *		Returns false if it refused, with VE002 or with the SQLSTATE also;
 *		*decision then has its reason.  Any other error is raised.
 */
bool
EvpgRefusableCallTry(EvpgRefusableCall *call, int also, EvpgDecision *decision)
{
	ErrorData  *error;

	call->count = EvpgFunctionCallPure(call->function, call->args, &call->rows, &call->row_nulls);
	if (call->count >= 0)
		return true;
	error = EvpgSubtransactionRun(run_refusable_call, call);
	if (error == NULL)
		return true;
	if (error->sqlerrcode != EVPG_ERRCODE_REJECTED && error->sqlerrcode != also)
		EvpgRethrowError(error);
	EvpgDecisionFromError(error, decision);
	return false;
}
