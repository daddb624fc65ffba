/*-------------------------------------------------------------------------
 *
 * inbox.c
 *		The inbox: whether a message from outside was received before, so that each
 *		has its effect once, however often it is delivered.
 *
 * A message that was received has a row in evpg.inbox, which is written in the
 * transaction of its effect: what is rolled back, or lost in a crash, was not
 * received.  Two sessions that receive one message are serialized by the unique
 * index: the second waits for the end of the first.
 *
 * A message whose commands are refused is rolled back to a subtransaction, its row
 * too, so that it is tried again when it is delivered again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/command.h"
#include "aggregate/idempotency.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/error_context.h"
#include "base/statement.h"
#include "base/subtransaction.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "log/early_release.h"
#include "message/translator.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(evpg_receive);
PG_FUNCTION_INFO_V1(evpg_receive_message);

/* A message that is being received. */
typedef struct Message
{
	const char *source;
	const char *key;
	const char *translator;
	Jsonb	   *payload;
	EvpgOutcome *outcomes;		/* of its commands */
	int			count;
	bool		refused;		/* one of them is a refusal, which was raised */
} Message;

static EvpgStatement insert_received = {
	.text =
	"INSERT INTO evpg.inbox (source, message_key) VALUES ($1, $2)"
	" ON CONFLICT (source, message_key) DO NOTHING",
	.types = {TEXTOID, TEXTOID}
};

/*
 * Records that a message was received; false if it was before, and that is durable.  Waits for another transaction that
 * receives it.
 */
static bool
record_received(const char *source, const char *key)
{
	Datum		values[2] = {CStringGetTextDatum(source), CStringGetTextDatum(key)};
	bool		first = EvpgStatementRun(&insert_received, values, NULL) > 0;

	EvpgStatementDone();
	if (!first)
		EvpgEarlyReleaseAwaitOthers();
	return first;
}

/* Receives a message in the transaction of its effect, which the caller brings about; false if it was received before. */
Datum
evpg_receive(PG_FUNCTION_ARGS)
{
	char	   *source = EvpgArgName(fcinfo, 0, "source");
	char	   *key = EvpgArgId(fcinfo, 1, "message key");
	bool		first;
	EvpgScope	scope;

	EvpgEnter(&scope, "evpg_receive()");
	first = record_received(source, key);
	EvpgLeave(&scope);
	PG_RETURN_BOOL(first);
}

/* Derives the id of a command of a message, the same each time it is delivered. */
static char *
derive_message_command_id(const Message *message, int ordinal)
{
	const char *parts[4] = {"evpg.inbox", message->source, message->key, psprintf("%d", ordinal)};

	return EvpgOperationKey(parts, lengthof(parts));
}

static void
describe_message(void *arg)
{
	Message    *message = arg;

	errcontext("message \"%s\" of source \"%s\"", message->key, message->source);
}

/* Records, translates, executes; raises a refusal after all commands, so that nothing of them remains. */
static void
receive_message(void *arg)
{
	Message    *message = arg;
	EvpgOutcome *refusal = NULL;
	EvpgCommand *commands;
	int			count;
	ErrorContextCallback callback;

	EvpgErrorContextPush(&callback, describe_message, message);
	if (record_received(message->source, message->key))
	{
		count = EvpgTranslate(message->translator, message->payload, &commands);
		message->outcomes = palloc(sizeof(EvpgOutcome) * Max(count, 1));
		for (int i = 0; i < count; i++)
		{
			EvpgOutcome *outcome = &message->outcomes[message->count++];

			if (commands[i].command_id == NULL)
				commands[i].command_id = derive_message_command_id(message, i + 1);
			EvpgCommandExecute(&commands[i], true, outcome);
			if (refusal == NULL && EvpgOutcomeSqlstate(outcome) != ERRCODE_SUCCESSFUL_COMPLETION)
				refusal = outcome;
		}
	}
	EvpgErrorContextPop(&callback);
	if (refusal != NULL)
	{
		message->refused = true;
		EvpgOutcomeRaise(refusal);
	}
}

/*
 * Receives a message: executes the commands that a translator makes of it, and
 * returns their outcomes.  No row if it was received before; if a command is
 * refused, nothing remains and the outcomes are those of the refusals.
 */
Datum
evpg_receive_message(PG_FUNCTION_ARGS)
{
	enum
	{
		ARG_SOURCE, ARG_MESSAGE_KEY, ARG_TRANSLATOR, ARG_PAYLOAD
	};
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;
	Message		message = {0};
	ErrorData  *error;
	EvpgScope	scope;

	InitMaterializedSRF(fcinfo, 0);
	context = AllocSetContextCreate(caller, "EvpgCall", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	message.source = EvpgArgName(fcinfo, ARG_SOURCE, "source");
	message.key = EvpgArgId(fcinfo, ARG_MESSAGE_KEY, "message key");
	message.translator = EvpgArgName(fcinfo, ARG_TRANSLATOR, "translator name");
	message.payload = EvpgArgJsonb(fcinfo, ARG_PAYLOAD, "payload");
	EvpgArgRefuseNull(fcinfo, ARG_PAYLOAD, "payload");

	EvpgEnter(&scope, "evpg_receive_message()");
	error = EvpgSubtransactionRun(receive_message, &message);
	if (error != NULL && !message.refused)
		EvpgRethrowError(error);
	EvpgLeave(&scope);
	for (int i = 0; i < message.count; i++)
		if (!message.refused || EvpgOutcomeSqlstate(&message.outcomes[i]) != ERRCODE_SUCCESSFUL_COMPLETION)
			EvpgOutcomeReturnRow(fcinfo, &message.outcomes[i]);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	PG_RETURN_NULL();
}
