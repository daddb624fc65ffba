/*-------------------------------------------------------------------------
 *
 * inbox.c
 *		The inbox: which messages from outside were received, so that each has
 *		its effect once, however often it is delivered.
 *
 * The mark is a row of evpg.inbox, written in the transaction of the effect:
 * what is rolled back, or lost in a crash, was not received.  Two who receive
 * one message are serial by the unique index: the second waits for the end of
 * the first.
 *
 * A message whose commands are refused is rolled back to a subtransaction, its
 * mark too, so that it is tried again when it comes again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/command.h"
#include "aggregate/idempotency.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/statement.h"
#include "base/subtransaction.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
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
	bool		refused;		/* one of them is a refusal, and was raised */
} Message;

static EvpgStatement insert_inbox = {
	.text = "INSERT INTO evpg.inbox (source, message_key) VALUES ($1, $2)"
	" ON CONFLICT (source, message_key) DO NOTHING",
	.types = {TEXTOID, TEXTOID}
};

/* Marks a message as received; false if it was.  Waits for another transaction that marks it. */
static bool
mark_received(const char *source, const char *key)
{
	Datum		values[2] = {CStringGetTextDatum(source), CStringGetTextDatum(key)};
	bool		first = EvpgStatementRun(&insert_inbox, values, NULL) > 0;

	EvpgStatementDone();
	return first;
}

Datum
evpg_receive(PG_FUNCTION_ARGS)
{
	char	   *source = EvpgArgName(fcinfo, 0, "source");
	char	   *key = EvpgArgId(fcinfo, 1, "message key");
	bool		first;
	EvpgScope	scope;

	EvpgEnter(&scope, "evpg_receive()");
	first = mark_received(source, key);
	EvpgLeave(&scope);
	PG_RETURN_BOOL(first);
}

/* The same each time the message is delivered. */
static char *
command_id(const Message *message, int ordinal)
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

/* Marks, translates, executes; raises a refusal after all commands, so that nothing of them is left. */
static void
receive_message(void *arg)
{
	Message    *message = arg;
	EvpgOutcome *refusal = NULL;
	EvpgCommand *commands;
	int			count;
	ErrorContextCallback callback;

	callback.callback = describe_message;
	callback.arg = message;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	if (mark_received(message->source, message->key))
	{
		count = EvpgTranslate(message->translator, message->payload, &commands);
		message->outcomes = palloc(sizeof(EvpgOutcome) * Max(count, 1));
		for (int i = 0; i < count; i++)
		{
			EvpgOutcome *outcome = &message->outcomes[message->count++];

			if (commands[i].command_id == NULL)
				commands[i].command_id = command_id(message, i + 1);
			EvpgCommandExecute(&commands[i], true, outcome);
			if (refusal == NULL && EvpgOutcomeSqlstate(outcome) != ERRCODE_SUCCESSFUL_COMPLETION)
				refusal = outcome;
		}
	}
	error_context_stack = callback.previous;
	if (refusal != NULL)
	{
		message->refused = true;
		EvpgOutcomeRaise(refusal);
	}
}

/* Returns the outcomes of the commands; of a message that is refused those of the refusals. */
Datum
evpg_receive_message(PG_FUNCTION_ARGS)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;
	Message		message = {0};
	ErrorData  *error;
	EvpgScope	scope;

	InitMaterializedSRF(fcinfo, 0);
	context = AllocSetContextCreate(caller, "EvpgCall", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	message.source = EvpgArgName(fcinfo, 0, "source");
	message.key = EvpgArgId(fcinfo, 1, "message key");
	message.translator = EvpgArgName(fcinfo, 2, "translator name");
	message.payload = EvpgArgJsonb(fcinfo, 3, "payload");
	EvpgArgRefuseNull(fcinfo, 3, "payload");

	EvpgEnter(&scope, "evpg_receive_message()");
	error = EvpgSubtransactionRun(receive_message, &message);
	if (error != NULL && !message.refused)
		ReThrowError(error);
	EvpgLeave(&scope);
	for (int i = 0; i < message.count; i++)
		if (!message.refused || EvpgOutcomeSqlstate(&message.outcomes[i]) != ERRCODE_SUCCESSFUL_COMPLETION)
			EvpgOutcomeReturn(fcinfo, &message.outcomes[i]);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	PG_RETURN_NULL();
}
