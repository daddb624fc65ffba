/*-------------------------------------------------------------------------
 *
 * transfer.c
 *		A transfer between two accounts: the aggregate that keeps what was asked
 *		for and what came of it, and the saga that moves the money.
 *
 * state	{"status": "requested", "from": "alice", "to": "bob", "amount": 500}
 * command	Request {"from": "alice", "to": "bob", "amount": 500}; Complete {};
 *			Fail {"reason": "account_not_open"}
 * event	TransferRequested, TransferCompleted, TransferFailed with the same data
 *
 * The saga, an instance for each transfer, reacts so:
 *
 * TransferRequested	withdraw the money	state "withdrawn"
 * MoneyWithdrawn		deposit it			state "deposited"
 * MoneyDeposited		complete the transfer	state "done"
 *
 * A state says what has been done, for a send is executed when the state is
 * stored.  If a step is refused, the transfer fails, and what was withdrawn is
 * paid back; so it is if the deposit has not been made within ten minutes.
 *
 * The account knows nothing of this: its events say in their metadata, which
 * they have from the command, to which transfer they belong.
 *
 * transfer.sql holds the same in PL/pgSQL and SQL, for accounts of type account.
 * Change both.
 *
 *-------------------------------------------------------------------------
 */
#include "evpg.h"

#define MAX_AMOUNT	INT64_C(1000000000000)

/* as transfer.sql registers them */
#define ACCOUNT		"account_c"
#define TRANSFER	"transfer_c"

/* ------------------------------------------------------------------ the aggregate */

static bool
is_text(evpg_json *value)
{
	return json_object_get_type(value) == json_type_string && json_object_get_string_len(value) > 0;
}

static void
request(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_json  *from = evpg_get(command->data, "from");
	evpg_json  *to = evpg_get(command->data, "to");
	evpg_json  *amount = evpg_get(command->data, "amount");

	if (evpg_get(state, "status") != NULL)
		evpg_reject(out, "transfer_exists", "transfer \"%s\" was requested before", command->aggregate_id);
	else if (!is_text(from) || !is_text(to))
		evpg_reject(out, "account_missing", "a transfer needs two accounts");
	else if (strcmp(json_object_get_string(from), json_object_get_string(to)) == 0)
		evpg_reject(out, "same_account", "a transfer needs two different accounts");
	else if (json_object_get_type(amount) != json_type_int || json_object_get_int64(amount) < 1 ||
			 json_object_get_int64(amount) > MAX_AMOUNT)
		evpg_reject(out, "invalid_amount", "amount must be an integer from 1 to %lld", (long long) MAX_AMOUNT);
	else
		evpg_emit(out, "TransferRequested",
				  evpg_object(EVPG_JSON("from", evpg_share(from)), EVPG_JSON("to", evpg_share(to)),
							  EVPG_JSON("amount", evpg_share(amount))));
}

/* Whether the transfer waits for an end; one that has come to an end keeps it. */
static bool
is_open(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	if (evpg_get(state, "status") == NULL)
		evpg_reject(out, "transfer_unknown", "transfer \"%s\" was never requested", command->aggregate_id);
	return strcmp(evpg_text(state, "status"), "requested") == 0;
}

static void
complete(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	if (is_open(out, state, command))
		evpg_emit(out, "TransferCompleted", json_object_new_object());
}

static void
fail(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	if (is_open(out, state, command))
		evpg_emit(out, "TransferFailed", evpg_object(EVPG_TEXT("reason", evpg_text(command->data, "reason"))));
}

static void
requested(evpg_json *state, const evpg_event *event)
{
	evpg_set_text(state, "status", "requested");
	evpg_set(state, "from", evpg_share(evpg_get(event->data, "from")));
	evpg_set(state, "to", evpg_share(evpg_get(event->data, "to")));
	evpg_set(state, "amount", evpg_share(evpg_get(event->data, "amount")));
}

static void
completed(evpg_json *state, const evpg_event *event)
{
	(void) event;
	evpg_set_text(state, "status", "completed");
}

static void
failed(evpg_json *state, const evpg_event *event)
{
	evpg_set_text(state, "status", "failed");
	evpg_set(state, "reason", evpg_share(evpg_get(event->data, "reason")));
}

/* ------------------------------------------------------------------ the saga */

static const char *
transfer_of(const evpg_event *event)
{
	bool		own = strcmp(event->aggregate_type, TRANSFER) == 0;
	const char *id = own ? event->aggregate_id : evpg_text(event->metadata, "transfer");

	return id[0] == '\0' ? NULL : id;
}

static evpg_json *
money(const evpg_json *state)
{
	return evpg_object(EVPG_INT("amount", evpg_int(state, "amount")));
}

/* Marks a command, hence its events, as one of the transfer. */
static void
of_transfer(evpg_json *command, const char *id)
{
	evpg_with_metadata(command, evpg_object(EVPG_TEXT("transfer", id)));
}

static void
withdraw(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	const char *from = evpg_text(event->data, "from");
	evpg_json  *action;

	evpg_set_text(state, "state", "withdrawn");
	evpg_set(state, "to", evpg_share(evpg_get(event->data, "to")));
	evpg_set(state, "amount", evpg_share(evpg_get(event->data, "amount")));
	action = evpg_send(out, "withdraw", ACCOUNT, from, "Withdraw", money(state));
	of_transfer(action, event->aggregate_id);
	of_transfer(evpg_undo(action, ACCOUNT, from, "Deposit", money(state)), event->aggregate_id);
	evpg_schedule(out, "deadline", 600, NULL);
}

static void
deposit(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	evpg_set_text(state, "state", "deposited");
	of_transfer(evpg_send(out, "deposit", ACCOUNT, evpg_text(state, "to"), "Deposit", money(state)), transfer_of(event));
}

static void
finish(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	evpg_set_text(state, "state", "done");
	evpg_send(out, "finish", TRANSFER, transfer_of(event), "Complete", NULL);
	evpg_complete(out);
}

/* Pays back what was withdrawn, if it was, and completes the instance. */
static void
give_up(evpg_result *out, evpg_json *state, const char *id, const char *reason)
{
	evpg_set_text(state, "state", "failed");
	evpg_send(out, "finish", TRANSFER, id, "Fail", evpg_object(EVPG_TEXT("reason", reason)));
	evpg_compensate(out, reason);
}

static void
refused(evpg_result *out, evpg_json *state, const evpg_rejection *rejection)
{
	if (strcmp(rejection->label, "withdraw") == 0 || strcmp(rejection->label, "deposit") == 0)
		give_up(out, state, rejection->key, rejection->code);
	else
		evpg_unhandled(out);	/* not even the refund: somebody must look */
}

static void
too_late(evpg_result *out, evpg_json *state, const evpg_fired_timer *timer)
{
	/* once the state is "deposited", the payee has the money */
	if (strcmp(evpg_text(state, "state"), "withdrawn") == 0)
		give_up(out, state, timer->key, "deadline");
}

/* ------------------------------------------------------------------ definitions */

EVPG_AGGREGATE(bank_transfer_order,
			   .commands = EVPG_COMMANDS(EVPG_ON("Request", request),
										 EVPG_ON("Complete", complete),
										 EVPG_ON("Fail", fail)),
			   .events = EVPG_EVENTS(EVPG_ON("TransferRequested", requested),
									 EVPG_ON("TransferCompleted", completed),
									 EVPG_ON("TransferFailed", failed)));

EVPG_SAGA(bank_transfer,
		  .aggregate_types = EVPG_TYPES(TRANSFER, ACCOUNT),
		  .events = EVPG_REACTS(EVPG_START("TransferRequested", withdraw),
								EVPG_ON("MoneyWithdrawn", deposit),
								EVPG_ON("MoneyDeposited", finish)),
		  .timers = EVPG_TIMERS(EVPG_ON("deadline", too_late)),
		  .key = transfer_of,
		  .rejected = refused);
