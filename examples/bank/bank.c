/*-------------------------------------------------------------------------
 *
 * bank.c
 *		A bank account as an aggregate in C, and the balances of all accounts as
 *		a projection.  Amounts are integers, in cents.
 *
 * state	{"open": true, "balance": 1250, "owner": "Alice"}
 * command	Open {"owner": "Alice"}; Deposit and Withdraw {"amount": 500}; Close
 * event	AccountOpened {"owner": "Alice"}; MoneyDeposited and MoneyWithdrawn
 *			{"amount": 500}; AccountClosed {}
 * row		{"owner": "Alice", "balance": 1250}; none once the account is closed
 *
 * bank.sql holds the same in PL/pgSQL and SQL: same commands, same events, same
 * states, same rejections, same rows.  Change both.
 *
 *-------------------------------------------------------------------------
 */
#include "evpg.h"

/* 10 billion and 10 trillion: sums stay far from the end of 64 bits */
#define MAX_AMOUNT	INT64_C(1000000000000)
#define MAX_BALANCE INT64_C(1000000000000000)

/* ------------------------------------------------------------------ decide */

static bool
is_open(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	if (evpg_bool(state, "open"))
		return true;
	evpg_reject(out, "account_not_open", "account \"%s\" is not open", command->aggregate_id);
	return false;
}

/* The amount of a command; 0 after a rejection. */
static int64_t
get_amount(evpg_result *out, const evpg_command *command)
{
	evpg_json  *amount = evpg_get(command->data, "amount");

	/* ask for the type: reading 1.5 or "12" as an integer would succeed */
	if (json_object_get_type(amount) == json_type_int)
	{
		int64_t		value = json_object_get_int64(amount);

		if (value > 0 && value <= MAX_AMOUNT)
			return value;
	}
	evpg_reject(out, "invalid_amount", "amount must be an integer from 1 to %lld", (long long) MAX_AMOUNT);
	return 0;
}

static void
open_account(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_json  *owner = evpg_get(command->data, "owner");

	if (evpg_bool(state, "open"))
		return;					/* done before: nothing to do, no event */
	if (evpg_get(state, "owner") != NULL)
		evpg_reject(out, "account_closed", "account \"%s\" is closed", command->aggregate_id);
	else if (json_object_get_type(owner) != json_type_string || json_object_get_string_len(owner) == 0)
		evpg_reject(out, "owner_missing", "an account needs an owner");
	else
		evpg_emit(out, "AccountOpened", evpg_object(EVPG_JSON("owner", evpg_share(owner))));
}

static void
deposit(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	int64_t		balance = evpg_int(state, "balance");
	int64_t		amount;

	if (!is_open(out, state, command) || (amount = get_amount(out, command)) == 0)
		return;
	if (amount > MAX_BALANCE - balance)
	{
		evpg_reject(out, "balance_limit", "balance cannot exceed %lld", (long long) MAX_BALANCE);
		return;
	}
	evpg_emit(out, "MoneyDeposited", evpg_object(EVPG_INT("amount", amount)));
}

static void
withdraw(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	int64_t		balance = evpg_int(state, "balance");
	int64_t		amount;

	if (!is_open(out, state, command) || (amount = get_amount(out, command)) == 0)
		return;
	if (amount > balance)
	{
		evpg_reject(out, "insufficient_funds", "balance %lld is less than %lld", (long long) balance, (long long) amount);
		evpg_reject_detail(out, evpg_object(EVPG_INT("balance", balance), EVPG_INT("amount", amount)));
		return;
	}
	evpg_emit(out, "MoneyWithdrawn", evpg_object(EVPG_INT("amount", amount)));
}

static void
close_account(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	int64_t		balance = evpg_int(state, "balance");

	if (!is_open(out, state, command))
		return;
	if (balance != 0)
	{
		evpg_reject(out, "balance_not_zero", "balance is %lld", (long long) balance);
		evpg_reject_detail(out, evpg_object(EVPG_INT("balance", balance)));
		return;
	}
	evpg_emit(out, "AccountClosed", json_object_new_object());
}

/* ------------------------------------------------------------------ fold */

/* Events that no handler decided can hold any number: a fold stays defined. */
static void
add_to_balance(evpg_json *state, int64_t amount)
{
	int64_t		balance = evpg_int(state, "balance");

	if (__builtin_add_overflow(balance, amount, &balance))
		balance = amount < 0 ? INT64_MIN : INT64_MAX;
	evpg_set_int(state, "balance", balance);
}

static void
opened(evpg_json *state, const evpg_event *event)
{
	evpg_set_bool(state, "open", true);
	evpg_set(state, "owner", evpg_share(evpg_get(event->data, "owner")));
}

static void
deposited(evpg_json *state, const evpg_event *event)
{
	add_to_balance(state, evpg_int(event->data, "amount"));
}

static void
withdrawn(evpg_json *state, const evpg_event *event)
{
	int64_t		amount = evpg_int(event->data, "amount");

	add_to_balance(state, amount == INT64_MIN ? INT64_MAX : -amount);
}

static void
closed(evpg_json *state, const evpg_event *event)
{
	(void) event;
	evpg_set_bool(state, "open", false);
}

/* ------------------------------------------------------------------ project */

static void
row_begins(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	evpg_set(state, "owner", evpg_share(evpg_get(event->data, "owner")));
	if (evpg_wants_delta(out))
		evpg_delta(out, evpg_copy(state));
}

/* Listeners are sent what changed, not the whole row. */
static void
row_changes(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	if (strcmp(event->type, "MoneyDeposited") == 0)
		deposited(state, event);
	else
		withdrawn(state, event);
	if (evpg_wants_delta(out))
		evpg_delta(out, evpg_object(EVPG_INT("balance", evpg_int(state, "balance"))));
}

static void
row_ends(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	(void) state;
	(void) event;
	evpg_delete(out);
	evpg_delta(out, evpg_object(EVPG_BOOL("closed", true)));
}

/* ------------------------------------------------------------------ definitions */

static bool
solvent(evpg_result *why, const evpg_json *state)
{
	if (evpg_int(state, "balance") >= 0)
		return true;
	evpg_reject(why, "overdrawn", "balance must not be negative");
	return false;
}

EVPG_AGGREGATE(bank_account,
			   .initial_state = "{\"open\": false, \"balance\": 0}",
			   .commands = EVPG_COMMANDS(EVPG_ON("Open", open_account),
										 EVPG_ON("Deposit", deposit),
										 EVPG_ON("Withdraw", withdraw),
										 EVPG_ON("Close", close_account)),
			   .events = EVPG_EVENTS(EVPG_ON("AccountOpened", opened),
									 EVPG_ON("MoneyDeposited", deposited),
									 EVPG_ON("MoneyWithdrawn", withdrawn),
									 EVPG_ON("AccountClosed", closed)),
			   .invariant = solvent);

/* The key is the account.  Of which aggregate type, the registration says. */
EVPG_PROJECTION(bank_balances,
				.initial_state = "{\"balance\": 0}",
				.events = EVPG_PROJECTS(EVPG_ON("AccountOpened", row_begins),
										EVPG_ON("MoneyDeposited", row_changes),
										EVPG_ON("MoneyWithdrawn", row_changes),
										EVPG_ON("AccountClosed", row_ends)));
