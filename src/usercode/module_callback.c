/*-------------------------------------------------------------------------
 *
 * module_callback.c
 *		Handing values to the callbacks of modules, and taking their answers.
 *
 * What a callback gets is lent: it is freed by EvpgModuleEventClear, or after
 * an ERROR with the memory context that was current when it was made.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/compat.h"
#include "evpg.h"

#include "base/errors.h"
#include "catalog/pg_type.h"
#include "common/string.h"
#include "datatype/timestamp.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "usercode/module_callback.h"
#include "utils/array.h"

static void
host_check_interrupts(void)
{
	CHECK_FOR_INTERRUPTS();
}

static void
host_log_message(const char *message)
{
	char	   *clean = NULL;

	if (message == NULL)
		message = "";
	if (!pg_verify_mbstr(PG_UTF8, message, strlen(message), true))
		clean = pg_clean_ascii(message, 0);
	ereport(LOG, (errmsg("evpg module: %s", clean != NULL ? clean : message)));
	if (clean != NULL)
		pfree(clean);
}

const evpg_host EvpgModuleHost = {
	.size = sizeof(evpg_host),
	.check_interrupts = host_check_interrupts,
	.log = host_log_message
};

static void
reset_module_result(void *arg)
{
	EvpgModuleResultReset(arg);
}

/* Makes an empty result for a callback, which frees what it holds with CurrentMemoryContext. */
evpg_result *
EvpgModuleResultCreate(void)
{
	MemoryContextCallback *callback = palloc(sizeof(MemoryContextCallback));
	evpg_result *result = palloc0(sizeof(evpg_result));

	result->size = sizeof(evpg_result);
	result->host = &EvpgModuleHost;
	callback->func = reset_module_result;
	callback->arg = result;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, callback);
	return result;
}

/* Empties a result, as evpg_result_reset() does, but for values of any depth. */
void
EvpgModuleResultReset(evpg_result *result)
{
	evpg_free(result->events);
	evpg_free(result->detail);
	evpg_free(result->delta);
	evpg_free(result->actions);
	evpg_free(result->boundary);
	result->events = result->detail = result->delta = result->actions = result->boundary = NULL;
	result->rejected = result->failed = result->deleted = result->unhandled = result->unsent = false;
	result->code[0] = result->message[0] = '\0';
}

/*
 * EvpgModuleResultCheck
 *		Raises VE009 if a callback has called a function that only callbacks of
 *		other kinds may call (may has those of its own), so that nothing is
 *		dropped in silence.  whose names the callback.
 */
void
EvpgModuleResultCheck(const evpg_result *result, int may, const char *whose)
{
	const char *called = NULL;

	if (result->events != NULL && !(may & EVPG_MAY_EMIT))
		called = "evpg_emit";
	else if (result->rejected && !(may & EVPG_MAY_REJECT))
		called = "evpg_reject";
	else if (result->delta != NULL && !(may & EVPG_MAY_PROJECT))
		called = "evpg_delta";
	else if (result->deleted && !(may & EVPG_MAY_PROJECT))
		called = "evpg_delete";
	else if (result->actions != NULL && !(may & EVPG_MAY_ACT))
		called = "evpg_act";
	else if (result->unhandled && !(may & EVPG_MAY_ACT))
		called = "evpg_unhandled";
	else if (result->boundary != NULL && !(may & EVPG_MAY_READ))
		called = "evpg_reads";
	if (called != NULL)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("%s must not call %s()", whose, called)));
}

/* Makes room for events, one at a time, in CurrentMemoryContext. */
void
EvpgModuleEventInit(EvpgModuleEvent *lent)
{
	lent->data = EvpgJsonOwn(NULL);
	lent->metadata = EvpgJsonOwn(NULL);
}

/*
 * EvpgModuleEventSet
 *		Fills lent->event.  Strings are the event's, lent's or in
 *		CurrentMemoryContext; data is the event's data as json-c if the caller
 *		has it, else NULL.  The caller calls EvpgModuleEventClear after the
 *		callback.
 */
void
EvpgModuleEventSet(EvpgModuleEvent *lent, const EvpgEvent *event, evpg_json *data)
{
	char	   *event_id = EvpgUuidFillText(&event->event_id, lent->event_id);
	char	  **tags = NULL;
	int			ntags = 0;

	if (data == NULL && event->data != NULL)
	{
		EvpgJsonFill(lent->data, event->data, "event data");
		data = lent->data->json;
	}
	if (event->metadata != NULL)
		EvpgJsonFill(lent->metadata, event->metadata, "event metadata");
	if (event->tags != NULL)
	{
		Datum	   *elements;

		deconstruct_array(event->tags, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &ntags);
		tags = palloc(sizeof(char *) * Max(ntags, 1));
		for (int i = 0; i < ntags; i++)
			tags[i] = TextDatumGetCString(elements[i]);
	}
	lent->event = (evpg_event)
	{
		.position = event->position,
			.version = event->version,
			.aggregate_type = event->aggregate_type,
			.aggregate_id = event->aggregate_id,
			.type = event->type,
			.schema_version = event->schema_version,
			.ntags = ntags,
			.tags = (const char *const *) tags,
			.data = data,
			.metadata = lent->metadata->json,
			.event_id = event_id,
			.command_id = event->command_id,
			.correlation_id = event->correlation_id != NULL ? event->correlation_id : event_id,
			.causation_id = event->causation_id,
			.actor = event->actor,
			.session_role = event->session_role,
			.occurred_at = EvpgModuleTime(event->occurred_at),
			.recorded_at = EvpgModuleTime(event->recorded_at),
			.host = &EvpgModuleHost
	};
}

/* Frees what EvpgModuleEventSet made. */
void
EvpgModuleEventClear(EvpgModuleEvent *lent)
{
	evpg_free(EvpgJsonLetGo(lent->data));
	evpg_free(EvpgJsonLetGo(lent->metadata));
}

/*
 * EvpgModuleCommandSet
 *		Fills *lent of a command, with the data and the metadata as json-c, which are
 *		freed with CurrentMemoryContext.  Raises 22023 unless the data is an object or
 *		null.
 */
void
EvpgModuleCommandSet(evpg_command *lent, const EvpgCommand *command)
{
	EvpgJsonOwner *data = EvpgJsonOwn(NULL);
	EvpgJsonOwner *metadata = EvpgJsonOwn(NULL);

	if (command->data != NULL)
	{
		data->json = EvpgJsonFromJsonb(command->data, "command data");
		if (data->json != NULL && json_object_get_type(data->json) != json_type_object)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("data of command \"%s\" must be a JSON object", command->command_type)));
	}
	if (command->metadata != NULL)
		metadata->json = EvpgJsonFromJsonb(command->metadata, "command metadata");
	*lent = (evpg_command)
	{
		.version = command->version,
			.aggregate_type = command->aggregate_type,
			.aggregate_id = command->aggregate_id,
			.type = command->command_type,
			.data = data->json,
			.metadata = metadata->json,
			.command_id = command->command_id,
			.correlation_id = command->correlation_id,
			.causation_id = command->causation_id,
			.actor = command->actor,
			.session_role = command->session_role,
			.received_at = EvpgModuleTime(command->received_at)
	};
}

/*
 * EvpgModuleResultClip
 *		Removes what snprintf may have left of a character when it cut a text of
 *		a result to fit; returns result.
 */
evpg_result *
EvpgModuleResultClip(evpg_result *result)
{
	/* A callback that fills them without snprintf may forget their end. */
	result->code[sizeof(result->code) - 1] = '\0';
	result->message[sizeof(result->message) - 1] = '\0';
	result->code[pg_mbcliplen(result->code, strlen(result->code), sizeof(result->code) - 1)] = '\0';
	result->message[pg_mbcliplen(result->message, strlen(result->message), sizeof(result->message) - 1)] = '\0';
	return result;
}

/*
 * EvpgModuleCopyText
 *		Returns a copy of a text from a module, in CurrentMemoryContext; raises
 *		22021 unless it is valid UTF-8. what names it in errors.
 */
char *
EvpgModuleCopyText(const char *text, const char *what)
{
	if (!pg_verify_mbstr(PG_UTF8, text, strlen(text), true))
		ereport(ERROR,
				(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
				 errmsg("%s contains text that is not valid UTF-8", what)));
	return pstrdup(text);
}

/* Returns a time as microseconds since 1970-01-01 UTC. */
int64
EvpgModuleTime(TimestampTz time)
{
	return time + (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
}
