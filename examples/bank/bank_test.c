/*-------------------------------------------------------------------------
 *
 * bank_test.c
 *		Unit test of the bank, without a server.  Prints TAP.
 *
 *		cc -I<directory of evpg.h> bank_test.c bank.c transfer.c -ljson-c
 *
 * account, transfer	given a state, when a command comes, then these events or
 *						that rejection
 * balances				given a row, when an event comes, then that row and delta
 * saga					given a state, when an event, a refusal or a timer comes,
 *						then that state and these actions
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>

#include "evpg.h"

extern const evpg_aggregate_definition *bank_account(void);
extern const evpg_projection_definition *bank_balances(void);
extern const evpg_aggregate_definition *bank_transfer_order(void);
extern const evpg_saga_definition *bank_transfer(void);

static int	tests = 0;
static int	failures = 0;
static const evpg_aggregate_definition *aggregate = NULL;
static evpg_json *state = NULL;
static evpg_result out = EVPG_RESULT_INIT;

static void
ok(bool passed, const char *name)
{
	tests++;
	if (!passed)
		failures++;
	printf("%sok %d - %s\n", passed ? "" : "not ", tests, name);
}

/* Compares JSON texts by value. */
static void
is_json(evpg_json *got, const char *expected, const char *name)
{
	evpg_json  *value = json_tokener_parse(expected);
	bool		equal = json_object_equal(got, value) != 0;

	ok(equal, name);
	if (!equal)
		printf("# got      %s\n# expected %s\n", json_object_to_json_string(got), expected);
	evpg_free(value);
}

static bool
execute(const char *type, const char *json)
{
	evpg_json  *data = json_tokener_parse(json);
	evpg_command command = {
		.aggregate_type = "account",
		.aggregate_id = "alice",
		.type = type,
		.data = data
	};
	evpg_json  *next = evpg_copy(state);
	bool		accepted = evpg_decide(aggregate, next, &command, &out);

	/* as the server does: a refused command leaves the state alone */
	if (accepted)
	{
		evpg_free(state);
		state = next;
	}
	else
		evpg_free(next);
	evpg_free(data);
	return accepted;
}

static void
fold(const char *type, const char *json)
{
	evpg_json  *data = json_tokener_parse(json);
	evpg_event	event = {
		.aggregate_type = "account",
		.aggregate_id = "alice",
		.type = type,
		.data = data,
		.event_id = "",
		.correlation_id = ""
	};

	evpg_apply(aggregate, state, &event);
	evpg_free(data);
}

static void
given_new(void)
{
	evpg_free(state);
	state = evpg_initial_state(aggregate);
}

static void
given_balance(int64_t balance)
{
	given_new();
	fold("AccountOpened", "{\"owner\": \"Alice\"}");
	if (balance > 0)
	{
		char		json[64];

		snprintf(json, sizeof(json), "{\"amount\": %lld}", (long long) balance);
		fold("MoneyDeposited", json);
	}
}

/* When command, then events (a JSON array; NULL for none: a no-op). */
static void
accepts(const char *type, const char *json, const char *events, const char *name)
{
	bool		accepted = execute(type, json);

	ok(accepted && !out.rejected && !out.failed, name);
	if (!accepted)
		printf("# refused: %s: %s\n", out.code, out.message);
	is_json(out.events, events == NULL ? "null" : events, "... and its events");
}

/* When command, then the rejection, and the state is as it was. */
static void
rejects(const char *type, const char *json, const char *code, const char *message, const char *detail, const char *name)
{
	evpg_json  *before = evpg_copy(state);
	bool		accepted = execute(type, json);
	bool		as_expected = !accepted && out.rejected && !out.failed &&
	strcmp(out.code, code) == 0 && strcmp(out.message, message) == 0;

	ok(as_expected, name);
	if (!as_expected)
		printf("# got %s: \"%s\" \"%s\"\n", accepted ? "accepted" : "refused", out.code, out.message);
	is_json(out.detail, detail == NULL ? "null" : detail, "... and its detail");
	ok(json_object_equal(before, state) != 0, "... and the state is as it was");
	evpg_free(before);
}

/* Given a row, when an event comes, then the row and the delta; a row NULL is none. */
static void
projects(const char *row, const char *type, const char *json, const char *next, const char *delta, const char *name)
{
	const evpg_projection_definition *balances = bank_balances();
	evpg_json  *projected = json_tokener_parse(row != NULL ? row : balances->initial_state);
	evpg_json  *data = json_tokener_parse(json);
	evpg_event	event = {
		.aggregate_type = "account",
		.aggregate_id = "alice",
		.type = type,
		.data = data,
		.event_id = "",
		.correlation_id = ""
	};
	bool		taken = evpg_project(balances, projected, &event, &out);

	ok(taken && !out.failed && out.deleted == (next == NULL), name);
	if (next != NULL)
		is_json(projected, next, "... and its row");
	is_json(out.delta, delta, "... and what listeners are sent");

	/*
	 * only the row counts from here on: it must not share what the event
	 * loses
	 */
	evpg_free(data);
	if (next != NULL)
		is_json(projected, next, "... and the row outlives the event");
	evpg_free(projected);
}

/* Given a state, what a saga makes of something. */
static void
reacts(bool taken, evpg_json *left, const char *next, const char *actions, const char *name)
{
	ok(taken && !out.failed && !out.unhandled, name);
	is_json(left, next, "... and its state");
	is_json(out.actions, actions == NULL ? "null" : actions, "... and its actions");
	evpg_free(left);
}

static void
reacts_to_event(const char *given, const char *aggregate_type, const char *aggregate_id, const char *type, const char *json,
				const char *metadata_json, const char *next, const char *actions, const char *name)
{
	evpg_json  *before = json_tokener_parse(given);
	evpg_json  *data = json_tokener_parse(json);
	evpg_json  *metadata = json_tokener_parse(metadata_json);
	evpg_event	event = {
		.aggregate_type = aggregate_type,
		.aggregate_id = aggregate_id,
		.type = type,
		.data = data,
		.metadata = metadata,
		.event_id = "",
		.correlation_id = ""
	};
	const char *key = bank_transfer()->key(&event);
	bool		taken = evpg_react(bank_transfer(), before, &event, &out);

	ok(key != NULL && strcmp(key, "t1") == 0, "an event of transfer t1");
	/* what the saga keeps and sends must outlive the event */
	evpg_free(data);
	evpg_free(metadata);
	reacts(taken, before, next, actions, name);
}

static void
reacts_to_refusal(const char *given, const char *label, const char *code, const char *next, const char *actions,
				  const char *name)
{
	evpg_json  *before = json_tokener_parse(given);
	evpg_rejection rejection = {
		.key = "t1", .label = label, .code = code, .sqlstate = "VE002", .message = "", .attempts = 1
	};
	bool		taken = evpg_react_rejection(bank_transfer(), before, &rejection, &out);

	reacts(taken, before, next, actions, name);
}

static void
reacts_to_deadline(const char *given, const char *next, const char *actions, const char *name)
{
	evpg_json  *before = json_tokener_parse(given);
	evpg_fired_timer timer = {.key = "t1", .name = "deadline"};
	bool		taken = evpg_react_timer(bank_transfer(), before, &timer, &out);

	reacts(taken, before, next, actions, name);
}

#define lengthof(array)	(sizeof(array) / sizeof((array)[0]))
#define NOT_OPEN		"account \"alice\" is not open"
#define INVALID_AMOUNT	"amount must be an integer from 1 to 1000000000000"

#define TRANSFER		"{\"from\": \"alice\", \"to\": \"bob\", \"amount\": 30}"
#define OF_TRANSFER		"{\"transfer\": \"t1\"}"
#define WITHDRAWN		"{\"state\": \"withdrawn\", \"to\": \"bob\", \"amount\": 30}"
#define DEPOSITED		"{\"state\": \"deposited\", \"to\": \"bob\", \"amount\": 30}"
#define FAILED			"{\"state\": \"failed\", \"to\": \"bob\", \"amount\": 30}"
#define GIVE_UP(reason) \
	"[{\"do\": \"send\", \"label\": \"finish\", \"aggregate_type\": \"transfer_c\", \"aggregate_id\": \"t1\"," \
	" \"command_type\": \"Fail\", \"data\": {\"reason\": \"" reason "\"}}," \
	" {\"do\": \"compensate\", \"reason\": \"" reason "\"}]"

static void
test_transfer(void)
{
	static const char *const bad_accounts[] = {
		"{}", "null", "5", "{\"from\": \"alice\", \"amount\": 30}", "{\"from\": \"alice\", \"to\": \"\", \"amount\": 30}",
		"{\"from\": 7, \"to\": \"bob\", \"amount\": 30}"
	};
	static const char *const bad_amounts[] = {
		"{\"from\": \"a\", \"to\": \"b\"}", "{\"from\": \"a\", \"to\": \"b\", \"amount\": 0}",
		"{\"from\": \"a\", \"to\": \"b\", \"amount\": 1.5}", "{\"from\": \"a\", \"to\": \"b\", \"amount\": \"12\"}",
		"{\"from\": \"a\", \"to\": \"b\", \"amount\": 1000000000001}"
	};

	aggregate = bank_transfer_order();
	given_new();
	rejects("Complete", "{}", "transfer_unknown", "transfer \"alice\" was never requested", NULL,
			"no end before a beginning");
	rejects("Fail", "{}", "transfer_unknown", "transfer \"alice\" was never requested", NULL, "nor a failure");
	for (size_t i = 0; i < lengthof(bad_accounts); i++)
		rejects("Request", bad_accounts[i], "account_missing", "a transfer needs two accounts", NULL, bad_accounts[i]);
	for (size_t i = 0; i < lengthof(bad_amounts); i++)
		rejects("Request", bad_amounts[i], "invalid_amount", INVALID_AMOUNT, NULL, bad_amounts[i]);
	rejects("Request", "{\"from\": \"a\", \"to\": \"a\", \"amount\": 30}", "same_account",
			"a transfer needs two different accounts", NULL, "not to oneself");
	accepts("Request", TRANSFER, "[{\"type\": \"TransferRequested\", \"data\": " TRANSFER "}]", "Request");
	is_json(state, "{\"status\": \"requested\", \"from\": \"alice\", \"to\": \"bob\", \"amount\": 30}",
			"a requested transfer");
	rejects("Request", TRANSFER, "transfer_exists", "transfer \"alice\" was requested before", NULL,
			"a transfer is requested once");
	accepts("Complete", "{}", "[{\"type\": \"TransferCompleted\", \"data\": {}}]", "Complete");
	accepts("Complete", "{}", NULL, "an end is an end");
	accepts("Fail", "{\"reason\": \"deadline\"}", NULL, "of either kind");

	given_new();
	fold("TransferRequested", TRANSFER);
	accepts("Fail", "{\"reason\": \"deadline\"}", "[{\"type\": \"TransferFailed\", \"data\": {\"reason\": \"deadline\"}}]",
			"Fail");
	is_json(state, "{\"status\": \"failed\", \"from\": \"alice\", \"to\": \"bob\", \"amount\": 30,"
			" \"reason\": \"deadline\"}",
			"a failed transfer");
	accepts("Complete", "{}", NULL, "is never completed");
}

static void
test_saga(void)
{
	evpg_event	other = {.aggregate_type = "account_c", .aggregate_id = "alice", .type = "MoneyDeposited"};
	evpg_rejection refund = {.key = "t1", .label = "", .code = "account_not_open", .sqlstate = "VE002", .message = ""};
	evpg_json  *unchanged = json_tokener_parse(WITHDRAWN);

	ok(bank_transfer()->key(&other) == NULL, "a deposit that is of no transfer");
	ok(evpg_find_reaction(bank_transfer(), "TransferRequested")->starts &&
	   !evpg_find_reaction(bank_transfer(), "MoneyWithdrawn")->starts &&
	   !evpg_find_reaction(bank_transfer(), "MoneyDeposited")->starts, "a request alone begins a transfer");
	reacts_to_event("{}", "transfer_c", "t1", "TransferRequested", TRANSFER, "null", WITHDRAWN,
					"[{\"do\": \"send\", \"label\": \"withdraw\", \"aggregate_type\": \"account_c\","
					" \"aggregate_id\": \"alice\","
					" \"command_type\": \"Withdraw\", \"data\": {\"amount\": 30}, \"metadata\": " OF_TRANSFER ","
					" \"undo\": {\"do\": \"send\", \"aggregate_type\": \"account_c\", \"aggregate_id\": \"alice\","
					" \"command_type\": \"Deposit\", \"data\": {\"amount\": 30}, \"metadata\": " OF_TRANSFER "}},"
					" {\"do\": \"schedule\", \"timer\": \"deadline\", \"delay\": 600}]",
					"a request: the money is withdrawn");
	reacts_to_event(WITHDRAWN, "account_c", "alice", "MoneyWithdrawn", "{\"amount\": 30}", OF_TRANSFER, DEPOSITED,
					"[{\"do\": \"send\", \"label\": \"deposit\", \"aggregate_type\": \"account_c\","
					" \"aggregate_id\": \"bob\","
					" \"command_type\": \"Deposit\", \"data\": {\"amount\": 30}, \"metadata\": " OF_TRANSFER "}]",
					"the withdrawn money is deposited");
	reacts_to_event(DEPOSITED, "account_c", "bob", "MoneyDeposited", "{\"amount\": 30}", OF_TRANSFER,
					"{\"state\": \"done\", \"to\": \"bob\", \"amount\": 30}",
					"[{\"do\": \"send\", \"label\": \"finish\", \"aggregate_type\": \"transfer_c\","
					" \"aggregate_id\": \"t1\", \"command_type\": \"Complete\", \"data\": {}}, {\"do\": \"complete\"}]",
					"a deposit completes the transfer");
	reacts_to_refusal(WITHDRAWN, "withdraw", "insufficient_funds", FAILED, GIVE_UP("insufficient_funds"),
					  "a payer without money");
	reacts_to_refusal(DEPOSITED, "deposit", "account_not_open", FAILED, GIVE_UP("account_not_open"),
					  "a payee that is closed");
	ok(!evpg_react_rejection(bank_transfer(), unchanged, &refund, &out) && out.actions == NULL,
	   "a refund that is refused is not handled");
	is_json(unchanged, WITHDRAWN, "... and the state is as it was");
	evpg_free(unchanged);
	reacts_to_deadline(WITHDRAWN, FAILED, GIVE_UP("deadline"), "too late: what was withdrawn goes back");
	reacts_to_deadline(DEPOSITED, DEPOSITED, NULL, "but not what has arrived");
}

int
main(void)
{
	static const char *const bad_amounts[] = {
		"{}", "{\"amount\": null}", "{\"amount\": 0}", "{\"amount\": -5}", "{\"amount\": 1.5}",
		"{\"amount\": \"12\"}", "{\"amount\": true}", "{\"amount\": [12]}", "{\"amount\": 1000000000001}",
		"{\"amount\": 9223372036854775807}", "{\"amount\": 1e400}", "5", "[]", "null"
	};
	static const char *const bad_owners[] = {
		"{}", "{\"owner\": null}", "{\"owner\": \"\"}", "{\"owner\": 7}", "\"Alice\"", "null"
	};

	ok(bank_account()->header.magic == EVPG_MAGIC && bank_account()->header.abi_major == EVPG_ABI_MAJOR &&
	   bank_account()->header.size == sizeof(evpg_aggregate_definition) &&
	   bank_account()->header.kind == EVPG_KIND_AGGREGATE,
	   "the definition names its ABI");

	aggregate = bank_account();
	given_new();
	is_json(state, "{\"open\": false, \"balance\": 0}", "initial state");
	rejects("Deposit", "{\"amount\": 5}", "account_not_open", NOT_OPEN, NULL, "no deposit before Open");
	rejects("Withdraw", "{\"amount\": 5}", "account_not_open", NOT_OPEN, NULL, "no withdrawal before Open");
	rejects("Close", "{}", "account_not_open", NOT_OPEN, NULL, "no Close before Open");
	for (size_t i = 0; i < lengthof(bad_owners); i++)
		rejects("Open", bad_owners[i], "owner_missing", "an account needs an owner", NULL, bad_owners[i]);
	accepts("Open", "{\"owner\": \"Alice\"}", "[{\"type\": \"AccountOpened\", \"data\": {\"owner\": \"Alice\"}}]", "Open");
	is_json(state, "{\"open\": true, \"balance\": 0, \"owner\": \"Alice\"}", "an open account");
	accepts("Open", "{\"owner\": \"Bob\"}", NULL, "Open again does nothing");

	given_balance(0);
	for (size_t i = 0; i < lengthof(bad_amounts); i++)
	{
		rejects("Deposit", bad_amounts[i], "invalid_amount", INVALID_AMOUNT, NULL, bad_amounts[i]);
		rejects("Withdraw", bad_amounts[i], "invalid_amount", INVALID_AMOUNT, NULL, bad_amounts[i]);
	}
	accepts("Deposit", "{\"amount\": 100}", "[{\"type\": \"MoneyDeposited\", \"data\": {\"amount\": 100}}]", "Deposit");
	is_json(state, "{\"open\": true, \"balance\": 100, \"owner\": \"Alice\"}", "the balance after it");

	given_balance(0);
	accepts("Deposit", "{\"amount\": 1000000000000}",
			"[{\"type\": \"MoneyDeposited\", \"data\": {\"amount\": 1000000000000}}]", "the largest amount");

	given_balance(100);
	rejects("Withdraw", "{\"amount\": 101}", "insufficient_funds", "balance 100 is less than 101",
			"{\"balance\": 100, \"amount\": 101}", "no overdraft");
	accepts("Withdraw", "{\"amount\": 100}", "[{\"type\": \"MoneyWithdrawn\", \"data\": {\"amount\": 100}}]",
			"Withdraw all");
	is_json(state, "{\"open\": true, \"balance\": 0, \"owner\": \"Alice\"}", "nothing is left");

	given_balance(INT64_C(999999999999999));
	accepts("Deposit", "{\"amount\": 1}", "[{\"type\": \"MoneyDeposited\", \"data\": {\"amount\": 1}}]",
			"Deposit up to the limit");
	rejects("Deposit", "{\"amount\": 1}", "balance_limit", "balance cannot exceed 1000000000000000", NULL,
			"no deposit beyond it");

	given_balance(1);
	rejects("Close", "{}", "balance_not_zero", "balance is 1", "{\"balance\": 1}", "no Close with money left");
	given_balance(0);
	accepts("Close", "{}", "[{\"type\": \"AccountClosed\", \"data\": {}}]", "Close");
	is_json(state, "{\"open\": false, \"balance\": 0, \"owner\": \"Alice\"}", "a closed account");
	rejects("Open", "{\"owner\": \"Alice\"}", "account_closed", "account \"alice\" is closed", NULL,
			"a closed account stays closed");
	rejects("Deposit", "{\"amount\": 5}", "account_not_open", NOT_OPEN, NULL, "no deposit into a closed account");

	ok(!execute("Wihdraw", "{}") && out.failed && !out.rejected, "an unknown command is a defect, not a rejection");

	given_balance(5);
	fold("MoneyWithdrawn", "{\"amount\": 15}");
	rejects("Deposit", "{\"amount\": 9}", "overdrawn", "balance must not be negative", NULL,
			"the invariant holds after every command");
	accepts("Deposit", "{\"amount\": 10}", "[{\"type\": \"MoneyDeposited\", \"data\": {\"amount\": 10}}]",
			"a command may make a state hold the invariant again");
	is_json(state, "{\"open\": true, \"balance\": 0, \"owner\": \"Alice\"}", "the state holds the invariant again");

	given_balance(0);
	fold("InterestPromised", "{\"rate\": 3}");
	is_json(state, "{\"open\": true, \"balance\": 0, \"owner\": \"Alice\"}", "an unknown event changes nothing");
	fold("MoneyDeposited", "{\"amount\": 9223372036854775807}");
	fold("MoneyDeposited", "{\"amount\": 9223372036854775807}");
	ok(evpg_int(state, "balance") == INT64_MAX, "a fold never overflows");
	fold("MoneyWithdrawn", "{\"amount\": -9223372036854775808}");
	fold("MoneyWithdrawn", "{}");
	fold("MoneyWithdrawn", "null");
	ok(evpg_int(state, "balance") == INT64_MAX, "a fold takes any data");

	projects(NULL, "AccountOpened", "{\"owner\": \"Alice\"}", "{\"owner\": \"Alice\", \"balance\": 0}",
			 "{\"owner\": \"Alice\", \"balance\": 0}", "an opened account begins a row");
	projects("{\"owner\": \"Alice\", \"balance\": 0}", "MoneyDeposited", "{\"amount\": 100}",
			 "{\"owner\": \"Alice\", \"balance\": 100}", "{\"balance\": 100}", "a deposit");
	projects("{\"owner\": \"Alice\", \"balance\": 100}", "MoneyWithdrawn", "{\"amount\": 30}",
			 "{\"owner\": \"Alice\", \"balance\": 70}", "{\"balance\": 70}", "a withdrawal");
	projects(NULL, "MoneyDeposited", "{\"amount\": 5}", "{\"balance\": 5}", "{\"balance\": 5}",
			 "a deposit into an unknown account");
	projects("{\"owner\": \"Alice\", \"balance\": 0}", "AccountClosed", "{}", NULL, "{\"closed\": true}",
			 "a closed account has no row");
	ok(evpg_find_projected(bank_balances(), "InterestPromised") == NULL, "no row changes by other events");

	test_transfer();
	test_saga();

	evpg_free(state);
	evpg_result_reset(&out);
	printf("1..%d\n", tests);
	return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
