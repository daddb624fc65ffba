/*-------------------------------------------------------------------------
 *
 * stored_command.c
 *		Commands as JSON objects, both ways: as evpg.timer keeps a scheduled command
 *		until it is due, and as an action of a saga that sends one.
 *
 * Objects of actions come from user code, so every member is checked.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/jsonb.h"
#include "saga/stored_command.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

/* ------------------------------------------------------------------ members of an object */

/* Raises the error that a member is missing or malformed; what names the object. */
void
EvpgMemberInvalid(const char *what, const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("\"%s\" of %s is missing, or is not of the right type", name, what),
			 errhint("Make actions with evpg_action_send() and the other constructors of actions.")));
}

/* Returns a member that must be a string, in CurrentMemoryContext; NULL if it is missing and may be. */
char *
EvpgMemberText(Jsonb *object, const char *name, const char *what, bool missing_ok)
{
	JsonbValue *value = EvpgJsonbMember(object, name);

	if (value == NULL && missing_ok)
		return NULL;
	if (value == NULL || value->type != jbvString)
		EvpgMemberInvalid(what, name);
	return pnstrdup(value->val.string.val, value->val.string.len);
}

/* Returns a member, in CurrentMemoryContext; NULL if it is missing. */
Jsonb *
EvpgMemberJsonb(Jsonb *object, const char *name)
{
	JsonbValue *value = EvpgJsonbMember(object, name);

	return value == NULL ? NULL : JsonbValueToJsonb(value);
}

/* Returns a member that must be an object, in CurrentMemoryContext; NULL if it is missing. */
Jsonb *
EvpgMemberObject(Jsonb *object, const char *name, const char *what)
{
	Jsonb	   *value = EvpgMemberJsonb(object, name);

	if (value != NULL && !JB_ROOT_IS_OBJECT(value))
		EvpgMemberInvalid(what, name);
	return value;
}

/* ------------------------------------------------------------------ commands */

/* Returns a command as evpg.timer keeps it until it is due, in CurrentMemoryContext. */
Jsonb *
EvpgCommandToJsonb(const EvpgCommand *command)
{
	JsonbParseState *state = NULL;

	EvpgJsonbBegin(&state);
	EvpgJsonbAddText(&state, "aggregate_type", command->aggregate_type);
	EvpgJsonbAddText(&state, "aggregate_id", command->aggregate_id);
	EvpgJsonbAddText(&state, "command_type", command->command_type);
	EvpgJsonbAddJsonb(&state, "data", command->data);
	EvpgJsonbAddJsonb(&state, "metadata", command->metadata);
	EvpgJsonbAddText(&state, "command_id", command->command_id);
	EvpgJsonbAddText(&state, "actor", command->actor);
	EvpgJsonbAddText(&state, "correlation_id", command->correlation_id);
	EvpgJsonbAddText(&state, "causation_id", command->causation_id);
	return EvpgJsonbFinish(&state);
}

/*
 * EvpgCommandFromJsonb
 *		Makes a command of an object, of an action or of evpg.timer, in
 *		CurrentMemoryContext.  Raises an error if it is not a valid command.
 */
void
EvpgCommandFromJsonb(Jsonb *jsonb, EvpgCommand *command)
{
	JsonbValue *expected = EvpgJsonbMember(jsonb, "expected_version");

	memset(command, 0, sizeof(EvpgCommand));
	command->aggregate_type = EvpgMemberText(jsonb, "aggregate_type", "a command", false);
	command->aggregate_id = EvpgMemberText(jsonb, "aggregate_id", "a command", false);
	command->command_type = EvpgMemberText(jsonb, "command_type", "a command", false);
	command->data = EvpgMemberJsonb(jsonb, "data");
	if (command->data == NULL)
		command->data = EvpgJsonbEmptyObject();
	command->metadata = EvpgMemberObject(jsonb, "metadata", "a command");
	command->command_id = EvpgMemberText(jsonb, "command_id", "a command", true);
	command->actor = EvpgMemberText(jsonb, "actor", "a command", true);
	command->correlation_id = EvpgMemberText(jsonb, "correlation_id", "a command", true);
	command->causation_id = EvpgMemberText(jsonb, "causation_id", "a command", true);
	if (expected != NULL)
	{
		if (expected->type != jbvNumeric)
			EvpgMemberInvalid("a command", "expected_version");
		command->has_expected = true;
		command->expected_version = DatumGetInt64(DirectFunctionCall1(numeric_int8,
																	  NumericGetDatum(expected->val.numeric)));
	}
	EvpgCheckName(command->aggregate_type, "aggregate type");
	EvpgCheckId(command->aggregate_id, "aggregate id");
	EvpgCheckName(command->command_type, "command type");
	EvpgCommandCheck(command);
}
