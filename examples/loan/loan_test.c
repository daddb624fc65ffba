/*-------------------------------------------------------------------------
 *
 * loan_test.c
 *		Unit test of the loan application, without a server: given a history,
 *		when a command comes, then these events or that rejection.  Prints TAP.
 *
 *		cc -I<directory of evpg.h> loan_test.c loan.c -ljson-c
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>

#include "evpg.h"

extern const evpg_aggregate_definition *loan_application(void);

static int	tests = 0;
static int	failures = 0;
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
execute_as(const char *actor, const char *type, const char *json)
{
	evpg_json  *data = json_tokener_parse(json);
	evpg_command command = {
		.aggregate_type = "loan_application",
		.aggregate_id = "L-1",
		.type = type,
		.data = data,
		.actor = actor
	};
	evpg_json  *next = evpg_copy(state);
	bool		accepted = evpg_decide(loan_application(), next, &command, &out);

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
		.aggregate_type = "loan_application",
		.aggregate_id = "L-1",
		.type = type,
		.data = data,
		.event_id = "",
		.correlation_id = ""
	};

	evpg_apply(loan_application(), state, &event);
	evpg_free(data);
}

/* Events without data, by type; the last is NULL. */
static void
given_events(const char *const *types)
{
	evpg_free(state);
	state = evpg_initial_state(loan_application());
	for (; *types != NULL; types++)
		fold(*types, strcmp(*types, "A_SUBMITTED") == 0 ? "{\"amount\": 5000}" : "{}");
}

#define given(...)	given_events((const char *const[]) {__VA_ARGS__, NULL})

#define SUBMITTED	"A_SUBMITTED", "A_PARTLYSUBMITTED"
#define ACCEPTED	SUBMITTED, "A_PREACCEPTED", "A_ACCEPTED"
#define OFFERED		ACCEPTED, "A_FINALIZED", "O_SELECTED", "O_CREATED", "O_SENT"
#define RETURNED	OFFERED, "O_SENT_BACK"
#define APPROVED	RETURNED, "O_ACCEPTED", "A_APPROVED", "A_REGISTERED", "A_ACTIVATED"

/* When command, then the types of its events, with a space after each. */
static void
accepts(const char *type, const char *json, const char *events, const char *name)
{
	bool		accepted = execute_as(NULL, type, json);
	char		types[256] = "";
	bool		as_expected;

	for (size_t i = 0; out.events != NULL && i < json_object_array_length(out.events); i++)
	{
		size_t		length = strlen(types);

		snprintf(types + length, sizeof(types) - length, "%s ", evpg_text(json_object_array_get_idx(out.events, i), "type"));
	}
	as_expected = accepted && !out.rejected && !out.failed && strcmp(types, events) == 0;
	ok(as_expected, name);
	if (!as_expected)
		printf("# got %s%s \"%s\"\n", types, out.code, out.message);
}

/* When command, then the rejection, and the state is as it was. */
static void
rejects(const char *type, const char *json, const char *code, const char *name)
{
	evpg_json  *before = evpg_copy(state);
	bool		accepted = execute_as(NULL, type, json);
	bool		as_expected = !accepted && out.rejected && !out.failed && strcmp(out.code, code) == 0 &&
	out.message[0] != '\0' && json_object_equal(before, state) != 0;

	ok(as_expected, name);
	if (!as_expected)
		printf("# got %s: \"%s\" \"%s\"\n", accepted ? "accepted" : "refused", out.code, out.message);
	evpg_free(before);
}

#define lengthof(array)	(sizeof(array) / sizeof((array)[0]))

static void
test_submit(void)
{
	static const char *const bad_amounts[] = {
		"{}", "{\"amount\": null}", "{\"amount\": 0}", "{\"amount\": -1}", "{\"amount\": 1.5}",
		"{\"amount\": \"5000\"}", "{\"amount\": 1000000001}", "{\"amount\": 1e400}", "5000", "[]", "null"
	};
	static const char *const others[] = {
		"Preaccept", "Accept", "SendOffer", "ReturnOffer", "Approve", "Decline", "Cancel",
		"ScheduleWork", "StartWork", "CompleteWork"
	};

	given(NULL);
	is_json(state, "{\"status\": \"undecided\", \"stage\": \"new\", \"amount\": 0, \"offer\": null,"
			"\"offers\": {}, \"open_work\": {}, \"done_work\": {}}", "initial state");
	for (size_t i = 0; i < lengthof(bad_amounts); i++)
		rejects("Submit", bad_amounts[i], "invalid_amount", bad_amounts[i]);
	for (size_t i = 0; i < lengthof(others); i++)
		rejects(others[i], "{\"item\": \"Call client\", \"resource\": \"7\"}", "not_submitted", others[i]);
	accepts("Submit", "{\"amount\": 5000, \"resource\": \"112\"}", "A_SUBMITTED A_PARTLYSUBMITTED ", "Submit");
	is_json(out.events, "[{\"type\": \"A_SUBMITTED\", \"data\": {\"amount\": 5000, \"resource\": \"112\"}},"
			"{\"type\": \"A_PARTLYSUBMITTED\", \"data\": {\"resource\": \"112\"}}]", "its events say who and how much");
	is_json(state, "{\"status\": \"undecided\", \"stage\": \"partly_submitted\", \"amount\": 5000, \"offer\": null,"
			"\"offers\": {}, \"open_work\": {}, \"done_work\": {}}", "a submitted application");
	rejects("Submit", "{\"amount\": 5000}", "already_submitted", "Submit twice");
	ok(!execute_as(NULL, "Aprove", "{}") && out.failed && !out.rejected, "an unknown command is a defect, not a rejection");
}

static void
test_decision(void)
{
	static const char *const decided[] = {"Preaccept", "Accept", "SendOffer", "ReturnOffer", "Approve", "Decline", "Cancel"};
	static const char *const decisions[] = {"A_APPROVED", "A_DECLINED", "A_CANCELLED"};

	given(SUBMITTED);
	rejects("Accept", "{}", "wrong_stage", "Accept before Preaccept");
	is_json(out.detail, "{\"stage\": \"partly_submitted\", \"needed\": \"preaccepted\"}", "... says what is needed");
	rejects("SendOffer", "{}", "wrong_stage", "SendOffer before Accept");
	rejects("Approve", "{}", "no_offer_sent", "Approve without an offer");
	accepts("Preaccept", "{}", "A_PREACCEPTED ", "Preaccept");
	rejects("Preaccept", "{}", "wrong_stage", "Preaccept twice");
	accepts("Accept", "{}", "A_ACCEPTED ", "Accept");
	accepts("SendOffer", "{}", "A_FINALIZED O_SELECTED O_CREATED O_SENT ", "the first offer finalizes the application");
	accepts("SendOffer", "{}", "O_SELECTED O_CANCELLED O_CREATED O_SENT ", "another one replaces it");
	ok(strcmp(evpg_text(state, "offer"), "sent") == 0 && !evpg_bool(state, "replacing"),
	   "the offer that was sent is the open one");
	accepts("ReturnOffer", "{}", "O_SENT_BACK ", "ReturnOffer");
	rejects("ReturnOffer", "{}", "no_offer_sent", "ReturnOffer twice");
	accepts("Approve", "{}", "O_ACCEPTED A_APPROVED A_REGISTERED A_ACTIVATED ", "Approve");
	is_json(state, "{\"status\": \"approved\", \"stage\": \"finalized\", \"amount\": 5000, \"offer\": \"accepted\","
			"\"replacing\": false,"
			"\"offers\": {\"selected\": 2, \"created\": 2, \"sent\": 2, \"cancelled\": 1, \"sent_back\": 1,"
			"\"accepted\": 1},"
			"\"open_work\": {}, \"done_work\": {}, \"registered\": true, \"activated\": true}", "an approved application");

	given(SUBMITTED);
	accepts("Decline", "{}", "A_DECLINED ", "Decline before an offer");
	rejects("Approve", "{}", "already_decided", "a declined application cannot be approved");
	is_json(out.detail, "{\"status\": \"declined\"}", "... says what it is");
	given(RETURNED);
	accepts("Decline", "{}", "O_DECLINED A_DECLINED ", "Decline with an offer open");
	given(SUBMITTED);
	accepts("Cancel", "{}", "A_CANCELLED ", "Cancel before an offer");
	given(OFFERED);
	accepts("Cancel", "{}", "O_CANCELLED A_CANCELLED ", "Cancel with an offer open");
	for (size_t i = 0; i < lengthof(decisions); i++)
		for (size_t j = 0; j < lengthof(decided); j++)
		{
			char		name[64];

			given(RETURNED, decisions[i]);
			snprintf(name, sizeof(name), "%s after %s", decided[j], decisions[i]);
			rejects(decided[j], "{}", "already_decided", name);
		}

	given(SUBMITTED, "A_PREACCEPTED", "O_SELECTED", "A_APPROVED");
	rejects("ScheduleWork", "{\"item\": \"Call client\"}", "approved_too_early", "the invariant: approved means finalized");
	given(OFFERED, "O_DECLINED", "O_CANCELLED");
	rejects("Decline", "{}", "too_many_answers", "the invariant: an offer ends once");
}

#define ITEM "{\"item\": \"Call client\", \"resource\": \"7\"}"
#define ITEM_8 "{\"item\": \"Call client\", \"resource\": \"8\"}"

static void
test_work(void)
{
	static const char *const bad_items[] = {"{}", "{\"item\": null}", "{\"item\": \"\"}", "{\"item\": 5}", "[]", "null"};

	given(SUBMITTED);
	for (size_t i = 0; i < lengthof(bad_items); i++)
		rejects("ScheduleWork", bad_items[i], "item_missing", bad_items[i]);
	rejects("StartWork", ITEM, "work_not_scheduled", "StartWork before ScheduleWork");
	rejects("CompleteWork", ITEM, "work_not_started", "CompleteWork before StartWork");
	accepts("ScheduleWork", "{\"item\": \"Call client\"}", "WorkScheduled ", "ScheduleWork");
	rejects("ScheduleWork", ITEM, "work_already_scheduled", "ScheduleWork twice");
	rejects("StartWork", "{\"item\": \"Call client\"}", "resource_missing", "StartWork by nobody");
	rejects("CompleteWork", "{\"item\": \"Call client\"}", "resource_missing", "CompleteWork by nobody");
	accepts("StartWork", ITEM, "WorkStarted ", "StartWork");
	is_json(out.events, "[{\"type\": \"WorkStarted\", \"data\": {\"item\": \"Call client\", \"resource\": \"7\"}}]",
			"its event says what and who");
	is_json(evpg_get(state, "open_work"), "{\"Call client\": {\"waiting\": 0, \"started_by\": [\"7\"]}}", "one is at it");
	rejects("StartWork", ITEM, "work_already_started", "StartWork twice");
	rejects("CompleteWork", ITEM_8, "work_not_started", "CompleteWork by somebody else");
	is_json(out.detail, ITEM_8, "... says what and who");
	accepts("CompleteWork", ITEM, "WorkCompleted ", "CompleteWork");
	is_json(evpg_get(state, "open_work"), "{}", "nobody is at it");
	is_json(evpg_get(state, "done_work"), "{\"Call client\": 1}", "it was done once");
	rejects("CompleteWork", ITEM, "work_not_started", "a work item cannot be completed twice");
	ok(execute_as("8", "StartWork", "{\"item\": \"Call client\"}"), "it is taken up again; the actor is the resource");
	is_json(evpg_get(state, "open_work"), "{\"Call client\": {\"waiting\": 0, \"started_by\": [\"8\"]}}", "by him");
	accepts("ScheduleWork", ITEM, "WorkScheduled ", "an item of work is scheduled anew while it is done");
	accepts("CompleteWork", ITEM_8, "WorkCompleted ", "he completes what he started");
	is_json(evpg_get(state, "open_work"), "{\"Call client\": {\"waiting\": 1, \"started_by\": []}}",
			"the item that was scheduled anew still waits");

	given(APPROVED);
	accepts("ScheduleWork", "{\"item\": \"Archive\"}", "WorkScheduled ", "work goes on after the decision");
}

/* What the log holds and no command would do. */
static void
test_folds(void)
{
	given(SUBMITTED);
	fold("WorkCompleted", ITEM);
	is_json(evpg_get(state, "open_work"), "{}", "completed, never started");
	fold("WorkScheduled", ITEM);
	fold("WorkScheduled", ITEM);
	fold("WorkCompleted", ITEM);
	is_json(evpg_get(state, "open_work"), "{\"Call client\": {\"waiting\": 1}}", "scheduled twice, completed once");
	fold("WorkStarted", ITEM);
	fold("WorkStarted", ITEM_8);
	fold("WorkCompleted", ITEM_8);
	is_json(evpg_get(state, "open_work"), "{\"Call client\": {\"waiting\": 0, \"started_by\": [\"7\"]}}",
			"two at it, the second is done");
	fold("WorkCompleted", "{\"item\": \"Call client\"}");
	is_json(evpg_get(state, "open_work"), "{}", "completed by nobody known");
	is_json(evpg_get(state, "done_work"), "{\"Call client\": 4}", "all are counted");
	fold("WorkStarted", "{\"item\": \"Call client\"}");
	is_json(evpg_get(state, "open_work"), "{\"Call client\": {\"waiting\": 0, \"started_by\": [\"\"]}}",
			"started by nobody known");

	given(OFFERED, "O_SELECTED", "O_CANCELLED");
	ok(strcmp(evpg_text(state, "offer"), "selected") == 0, "the old offer is cancelled, the new one stays");
	given(OFFERED, "A_ACTIVATED", "A_REGISTERED", "O_ACCEPTED", "A_APPROVED");
	ok(strcmp(evpg_text(state, "status"), "approved") == 0 && evpg_bool(state, "activated") &&
	   evpg_bool(state, "registered"),
	   "activation and registration may come before approval");
	given(SUBMITTED, "A_MOVED");
	ok(strcmp(evpg_text(state, "stage"), "partly_submitted") == 0, "an unknown event changes nothing");

	evpg_free(state);
	state = evpg_initial_state(loan_application());
	for (const evpg_event_entry *entry = loan_application()->events; entry->type != NULL; entry++)
	{
		fold(entry->type, "null");
		fold(entry->type, "[1]");
		fold(entry->type, "{\"item\": {\"a\": 1}, \"resource\": [2], \"amount\": \"much\"}");
	}
	ok(json_object_get_type(state) == json_type_object, "folds take any data");
}

int
main(void)
{
	ok(loan_application()->header.magic == EVPG_MAGIC && loan_application()->header.abi_major == EVPG_ABI_MAJOR &&
	   loan_application()->header.size == sizeof(evpg_aggregate_definition) &&
	   loan_application()->header.kind == EVPG_KIND_AGGREGATE,
	   "the definition names its ABI");
	test_submit();
	test_decision();
	test_work();
	test_folds();

	evpg_free(state);
	evpg_result_reset(&out);
	printf("1..%d\n", tests);
	return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
