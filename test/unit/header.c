/*-------------------------------------------------------------------------
 *
 * header.c
 *		Unit test of src/evpg.h, without a server; prints TAP.
 *
 * It is run under the address and undefined behaviour sanitizers, so ownership
 * is tested by freeing all that is ours: what is freed twice or never fails.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>

#include "evpg.h"

static int	tests = 0;
static int	failures = 0;

static void
ok(bool passed, const char *name)
{
	tests++;
	if (!passed)
		failures++;
	printf("%sok %d - %s\n", passed ? "" : "not ", tests, name);
}

/* Compares texts. */
static void
is(const char *got, const char *expected, const char *name)
{
	bool		same = strcmp(got, expected) == 0;

	ok(same, name);
	if (!same)
		printf("# got      %s\n# expected %s\n", got, expected);
}

/* Compares a JSON value with its text, and frees it. */
static void
is_json(evpg_json *json, const char *expected, const char *name)
{
	is(json == NULL ? "null" : json_object_to_json_string_ext(json, JSON_C_TO_STRING_PLAIN), expected, name);
	json_object_put(json);
}

/* ------------------------------------------------------------------ JSON */

static void
test_objects(void)
{
	static const evpg_member nothing[] = {{.key = NULL}};
	evpg_json  *inner = evpg_object(EVPG_INT("x", 1));
	evpg_json  *object;

	is_json(evpg_object_of(nothing), "{}", "an object without members");
	is_json(evpg_object(EVPG_INT("i", INT64_MIN), EVPG_INT("j", INT64_MAX), EVPG_BOOL("t", true), EVPG_BOOL("f", false),
						EVPG_TEXT("s", "text"), EVPG_TEXT("n", NULL), EVPG_JSON("o", inner), EVPG_JSON("m", NULL)),
			"{\"i\":-9223372036854775808,\"j\":9223372036854775807,\"t\":true,\"f\":false,"
			"\"s\":\"text\",\"n\":null,\"o\":{\"x\":1},\"m\":null}",
			"an object of every kind of member");
	is_json(evpg_object(EVPG_INT("a", 1), EVPG_TEXT("a", "two")), "{\"a\":\"two\"}", "of two equal keys the last counts");
	is_json(evpg_object(EVPG_BOOL("b", 0x100)), "{\"b\":true}", "any number that is not 0 is true");

	object = evpg_object(EVPG_INT("i", 5), EVPG_TEXT("s", "12"), EVPG_TEXT("w", "word"), EVPG_BOOL("b", true),
						 EVPG_JSON("n", NULL), EVPG_TEXT("e", ""),
						 EVPG_JSON("d", json_object_new_double_s(1e20, "123456789012345678901.50")),
						 EVPG_JSON("h", json_object_new_double(1e300)));
	ok(evpg_get(object, "i") != NULL && evpg_get(object, "n") == NULL && evpg_get(object, "none") == NULL,
	   "evpg_get: a member, null, none");
	ok(evpg_get(NULL, "i") == NULL && evpg_get(evpg_get(object, "i"), "i") == NULL, "evpg_get: of NULL, of no object");
	ok(evpg_int(object, "i") == 5 && evpg_int(object, "s") == 12 && evpg_int(object, "b") == 1, "evpg_int converts");
	ok(evpg_int(object, "n") == 0 && evpg_int(object, "none") == 0 && evpg_int(object, "w") == 0 && evpg_int(NULL, "i") == 0,
	   "evpg_int: 0 if there is none");
	ok(evpg_int(object, "h") == INT64_MAX, "evpg_int saturates");
	ok(evpg_bool(object, "b") && evpg_bool(object, "i") && evpg_bool(object, "s"), "evpg_bool converts");
	ok(!evpg_bool(object, "n") && !evpg_bool(object, "none") && !evpg_bool(object, "e"),
	   "evpg_bool: false if there is none");
	is(evpg_text(object, "s"), "12", "evpg_text: a string");
	is(evpg_text(object, "i"), "5", "evpg_text: a number");
	is(evpg_text(object, "d"), "123456789012345678901.50", "evpg_text: a number beyond 64 bits, exactly");
	is(evpg_text(object, "n"), "", "evpg_text: null");
	is(evpg_text(object, "none"), "", "evpg_text: none");
	is(evpg_text(NULL, "none"), "", "evpg_text: of NULL");

	evpg_set_int(object, "i", -1);
	evpg_set_bool(object, "b", false);
	evpg_set_text(object, "s", "changed");
	evpg_set_text(object, "w", NULL);
	evpg_set(object, "new", json_object_new_array());
	evpg_set(object, "nothing", NULL);
	evpg_remove(object, "d");
	evpg_remove(object, "h");
	evpg_remove(object, "none");
	is_json(object, "{\"i\":-1,\"s\":\"changed\",\"w\":null,\"b\":false,\"n\":null,\"e\":\"\",\"new\":[],\"nothing\":null}",
			"members are set and removed");
}

static void
test_ownership(void)
{
	evpg_json  *object = evpg_object(EVPG_JSON("list", json_object_new_array()));
	evpg_json  *list = evpg_get(object, "list");
	evpg_json  *shared = evpg_share(list);
	evpg_json  *copy = evpg_copy(list);
	evpg_json  *texts;

	json_object_array_add(list, json_object_new_int(1));
	ok(shared == list, "evpg_share: another reference");
	ok(copy != list && json_object_array_length(copy) == 0, "evpg_copy: another value");
	json_object_put(object);
	ok(json_object_array_length(shared) == 1, "what is shared outlives its first owner");
	json_object_put(shared);
	json_object_put(copy);

	ok(evpg_share(NULL) == NULL && evpg_copy(NULL) == NULL, "JSON null is NULL, shared or copied");

	texts = evpg_object(EVPG_JSON("n", json_object_new_double_s(0, "12345678901234567890.12")));
	copy = evpg_copy(texts);
	json_object_put(texts);
	is(evpg_text(copy, "n"), "12345678901234567890.12", "a copy keeps the text of numbers");
	json_object_put(copy);

	/* a value that replaces the container it came from */
	object = evpg_object(EVPG_JSON("a", evpg_object(EVPG_INT("b", 2))));
	evpg_set(object, "a", evpg_share(evpg_get(evpg_get(object, "a"), "b")));
	is_json(object, "{\"a\":2}", "a shared part replaces the whole");
}

/* An array in an array in an array ..., deeper than the stack lets json-c free it. */
static evpg_json *
nest(int depth)
{
	evpg_json  *inner = NULL;

	while (depth-- > 0)
	{
		evpg_json  *outer = json_object_new_array();

		json_object_array_add(outer, inner);
		inner = outer;
	}
	return inner;
}

static void
test_depth(void)
{
	enum
	{
	DEEP = 1000000};
	evpg_json  *object = evpg_object(EVPG_JSON("a", nest(DEEP)), EVPG_JSON("b", nest(DEEP)));
	evpg_json  *kept = evpg_share(evpg_get(object, "b"));
	evpg_json  *array = json_object_new_string("no array");
	evpg_result out = EVPG_RESULT_INIT;

	evpg_set(object, "a", evpg_object(EVPG_JSON("nested", nest(DEEP))));
	evpg_set_int(object, "a", 1);
	evpg_remove(object, "b");
	evpg_remove(object, "none");
	evpg_set(object, NULL, nest(DEEP));
	evpg_set(kept, "no object", nest(DEEP));
	ok(!evpg_append_to(&array, nest(DEEP)), "a deep value for what is no array is freed");
	json_object_put(array);
	is_json(object, "{\"a\":1}", "deep values are replaced and removed");
	ok(json_object_array_length(kept) == 1, "a deep value that is shared outlives its removal");
	evpg_free(kept);

	evpg_reject_detail(&out, nest(DEEP));
	evpg_reject_detail(&out, nest(DEEP));
	evpg_delta(&out, nest(DEEP));
	evpg_delta(&out, nest(DEEP));
	evpg_emit(&out, "Deep", nest(DEEP));
	evpg_result_reset(&out);
	ok(out.detail == NULL && out.delta == NULL && out.events == NULL, "a result with deep values is reset");

	object = json_object_new_object();
	array = evpg_object(EVPG_JSON("twice", evpg_share(object)), EVPG_JSON("again", evpg_share(object)));
	evpg_free(array);
	is_json(object, "{}", "parts that are shared are freed once for each reference");
	evpg_free(NULL);
}

/* ------------------------------------------------------------------ results */

static void
test_results(void)
{
	evpg_result out = EVPG_RESULT_INIT;
	evpg_json  *event;
	char		longest[1000];

	ok(out.size == sizeof(evpg_result) && out.host == NULL && out.events == NULL && !out.rejected && !out.failed,
	   "a result begins empty");
	evpg_result_reset(&out);
	ok(out.size == sizeof(evpg_result) && out.events == NULL, "resetting an empty result");
	ok(evpg_wants_delta(&out), "a delta is wanted");
	out.unsent = true;
	ok(!evpg_wants_delta(&out), "unless no listener gets it");
	out.size = offsetof(evpg_result, unsent);
	ok(evpg_wants_delta(&out), "a server that is older does not say so");
	out.size = sizeof(evpg_result);
	evpg_result_reset(&out);

	event = evpg_emit(&out, "Happened", evpg_object(EVPG_INT("n", 1)));
	ok(evpg_with_tag(evpg_with_tag(event, "one"), "two") == event, "tags are chained");
	ok(evpg_with_metadata(event, evpg_object(EVPG_TEXT("k", "v"))) == event, "metadata, too");
	evpg_remove(NULL, "k");
	ok(evpg_with_tag(NULL, "one") == NULL && evpg_with_metadata(NULL, evpg_object(EVPG_TEXT("k", "v"))) == NULL &&
	   evpg_undo(NULL, "stock", "tea", "Receive", evpg_object(EVPG_TEXT("k", "v"))) == NULL, "of none, nothing happens");
	evpg_with_metadata(event, evpg_object(EVPG_TEXT("k", "w")));
	evpg_emit(&out, "Empty", NULL);
	is(json_object_to_json_string_ext(out.events, JSON_C_TO_STRING_PLAIN),
	   "[{\"type\":\"Happened\",\"data\":{\"n\":1},\"tags\":[\"one\",\"two\"],\"metadata\":{\"k\":\"w\"}},"
	   "{\"type\":\"Empty\",\"data\":null}]",
	   "emitted events");

	evpg_reject(&out, "first", "number %d of %s", 1, "two");
	evpg_reject(&out, "second", "number %d", 2);
	ok(out.rejected && strcmp(out.code, "first") == 0 && strcmp(out.message, "number 1 of two") == 0,
	   "the first refusal counts");
	evpg_reject_detail(&out, evpg_object(EVPG_INT("a", 1)));
	evpg_reject_detail(&out, evpg_object(EVPG_INT("b", 2)));
	is(json_object_to_json_string_ext(out.detail, JSON_C_TO_STRING_PLAIN), "{\"b\":2}", "the last detail counts");
	evpg_result_reset(&out);
	ok(!out.rejected && out.code[0] == '\0' && out.message[0] == '\0' && out.events == NULL && out.detail == NULL,
	   "a reset result is empty");

	out.events = evpg_object(EVPG_INT("n", 1));
	ok(evpg_emit(&out, "Lost", json_object_new_object()) == NULL && json_object_object_length(out.events) == 1,
	   "where no array is, nothing is emitted");
	out.actions = json_object_new_int(1);
	ok(evpg_send(&out, NULL, "a", "b", "C", NULL) == NULL, "nor sent");
	event = evpg_object(EVPG_INT("tags", 1));
	ok(evpg_with_tag(evpg_with_tag(event, NULL), "one") == event && evpg_int(event, "tags") == 1, "nor tagged");
	json_object_put(event);
	evpg_result_reset(&out);
	event = evpg_emit(&out, NULL, NULL);
	ok(evpg_with_tag(event, NULL) == event && evpg_get(event, "tags") == NULL && evpg_get(event, NULL) == NULL,
	   "a tag that is NULL is none, and no member is called NULL");
	evpg_set_int(event, NULL, 1);
	evpg_remove(event, NULL);
	ok(json_object_object_length(event) == 2, "nor set");
	evpg_reject(&out, NULL, "%s", "no code");
	ok(out.rejected && out.code[0] == '\0' && strcmp(out.message, "no code") == 0, "a refusal without a code");
	evpg_result_reset(&out);

	memset(longest, 'x', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	evpg_reject(&out, longest, "%s", longest);
	ok(strlen(out.code) == 63, "a code is cut at 63 bytes");
	ok(strlen(out.message) == 511, "a message is cut at 511 bytes");
	evpg_result_reset(&out);
	longest[511] = '\0';
	longest[63] = '\0';
	evpg_reject(&out, longest, "%s", longest);
	ok(strcmp(out.code, longest) == 0 && strcmp(out.message, longest) == 0, "what fits is not cut");
	evpg_result_reset(&out);
	evpg_reject(&out, "percent", "%s", "100 % of %s");
	is(out.message, "100 % of %s", "percent signs in arguments are text");
	evpg_result_reset(&out);

	longest[63] = 'x';
	evpg_fail(&out, "broken: %s%s", longest, longest);
	ok(out.failed && !out.rejected && strlen(out.message) == 511, "a long failure is cut to 511 bytes");
	evpg_result_reset(&out);
	ok(!out.failed, "a result that is reset has not failed");
}

static void
test_boundary(void)
{
	evpg_result out = EVPG_RESULT_INIT;
	evpg_json  *item;

	evpg_reads(&out, EVPG_TAGS("a", "b"), NULL);
	item = evpg_reads(&out, NULL, EVPG_TYPES("Happened"));
	evpg_set_texts(item, "aggregate_types", EVPG_TYPES("counter"));
	evpg_set_texts(item, "tags", NULL);
	evpg_reads(&out, EVPG_TAGS(NULL), EVPG_TYPES("Added"));
	is(json_object_to_json_string_ext(out.boundary, JSON_C_TO_STRING_PLAIN),
	   "[{\"tags\":[\"a\",\"b\"]},{\"event_types\":[\"Happened\"],\"aggregate_types\":[\"counter\"]},"
	   "{\"event_types\":[\"Added\"]}]",
	   "a boundary has an item for each call");
	evpg_result_reset(&out);
	ok(out.boundary == NULL, "a result that is reset has none");
	out.boundary = json_object_new_object();
	ok(evpg_reads(&out, EVPG_TAGS("a"), NULL) == NULL, "where no array is, nothing is added");
	evpg_result_reset(&out);
}

/* ------------------------------------------------------------------ host */

static int	checks = 0;

static void
check(void)
{
	checks++;
}

static void
test_host(void)
{
	evpg_host	host = {.size = sizeof(evpg_host), .check_interrupts = check};
	evpg_host	smaller = {.size = offsetof(evpg_host, log), .check_interrupts = check};
	evpg_host	tiny = {.size = sizeof(size_t), .check_interrupts = check};
	const evpg_host *none = NULL;
	evpg_result out = {.size = sizeof(evpg_result), .host = &host};

	ok(EVPG_HOST_HAS(&host, check_interrupts) && !EVPG_HOST_HAS(&host, log), "a host that has one of two");
	ok(EVPG_HOST_HAS(&smaller, check_interrupts) && !EVPG_HOST_HAS(&smaller, log), "a host that knows one only");
	ok(!EVPG_HOST_HAS(&tiny, check_interrupts) && !EVPG_HOST_HAS(none, log), "a host that knows nothing, and none");
	evpg_check_interrupts(&host);
	evpg_check_interrupts(&smaller);
	evpg_check_interrupts(&tiny);
	evpg_check_interrupts(NULL);
	ok(checks == 2, "interrupts are checked where they can be");
	evpg_result_reset(&out);
	ok(out.host == &host, "a reset result keeps its host");
}

/* ------------------------------------------------------------------ a definition */

static int64_t seen_version;
static int64_t seen_position;
static int64_t seen_time;
static bool seen_host;

static void
add(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	(void) state;
	for (int64_t i = 0; i < evpg_int(command->data, "times"); i++)
		evpg_emit(out, "Added", evpg_share(command->data));
}

static void
change_mind(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	add(out, state, command);
	evpg_reject(out, "no", "total is %lld", (long long) evpg_int(state, "total"));
}

static void
give_up(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	(void) state;
	(void) command;
	evpg_fail(out, "cannot");
}

static void
mystery(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	(void) state;
	(void) command;
	evpg_emit(out, "Mystery", NULL);
}

static void
added(evpg_json *state, const evpg_event *event)
{
	seen_version = event->version;
	seen_position = event->position;
	seen_time = event->occurred_at;
	seen_host = event->host != NULL;
	evpg_set_int(state, "total", evpg_int(state, "total") + evpg_int(event->data, "n"));
}

static bool
small(evpg_result *why, const evpg_json *state)
{
	if (evpg_int(state, "total") < 100)
		return true;
	evpg_reject(why, "large", "total is %lld", (long long) evpg_int(state, "total"));
	return false;
}

EVPG_AGGREGATE(counter,
			   .initial_state = "{\"total\": 0}",
			   .reducer_version = 3,
			   .commands = EVPG_COMMANDS(EVPG_ON("Add", add), EVPG_ON("ChangeMind", change_mind),
										 EVPG_ON("GiveUp", give_up), EVPG_ON("Mystery", mystery)),
			   .events = EVPG_EVENTS(EVPG_ON("Added", added)),
			   .invariant = small);

EVPG_AGGREGATE(bare,
			   .commands = EVPG_COMMANDS(EVPG_ON("Add", add)),
			   .events = EVPG_EVENTS(EVPG_ON("Added", added)));

static void
test_definition(void)
{
	const evpg_aggregate_definition *definition = counter();
	const evpg_header *header = evpg_definition_counter();

	ok(header == &definition->header && header->magic == EVPG_MAGIC && header->abi_major == EVPG_ABI_MAJOR &&
	   header->abi_minor == EVPG_ABI_MINOR && header->size == sizeof(evpg_aggregate_definition) &&
	   header->kind == EVPG_KIND_AGGREGATE,
	   "a definition and its header");
	ok(definition->reducer_version == 3 && bare()->reducer_version == 0 && bare()->invariant == NULL &&
	   bare()->initial_state == NULL,
	   "what is left out is empty");
	is_json(evpg_initial_state(definition), "{\"total\":0}", "an initial state");
	is_json(evpg_initial_state(bare()), "{}", "an initial state that was left out");
	ok(evpg_find_command(definition, "GiveUp")->call == give_up && evpg_find_command(definition, "Mystery")->call == mystery,
	   "commands are found");
	ok(evpg_find_command(definition, "add") == NULL && evpg_find_command(definition, "") == NULL,
	   "a command that is not declared is not found");
	ok(evpg_find_event(definition, "Added")->call == added && evpg_find_event(definition, "Add") == NULL,
	   "events are found by their exact names");
}

/* Gives a state a command; what came of it is in *out. */
static bool
decide(const evpg_aggregate_definition *aggregate, evpg_json *state, const char *type, const char *json, evpg_result *out)
{
	evpg_json  *data = json == NULL ? NULL : json_tokener_parse(json);
	evpg_command command = {
		.version = 7,
		.aggregate_type = "counter",
		.aggregate_id = "a",
		.type = type,
		.data = data,
		.correlation_id = "c",
		.received_at = 12345
	};
	bool		accepted = evpg_decide(aggregate, state, &command, out);

	json_object_put(data);
	return accepted;
}

static void
test_decide(void)
{
	const evpg_aggregate_definition *definition = counter();
	evpg_json  *state = evpg_initial_state(definition);
	evpg_result out = EVPG_RESULT_INIT;
	evpg_event	event = {.type = "Mystery"};

	ok(decide(definition, state, "Add", "{\"n\": 5, \"times\": 3}", &out), "a command is accepted");
	ok(json_object_array_length(out.events) == 3, "its events are there, also when the command is gone");
	is(json_object_to_json_string_ext(state, JSON_C_TO_STRING_PLAIN), "{\"total\":15}", "a decided event is folded");
	ok(seen_version == 10 && seen_position == 0 && seen_time == 12345 && !seen_host,
	   "a fold is told version and time, and no position, for there is none yet");

	ok(decide(definition, state, "Add", "{\"times\": 0}", &out) && out.events == NULL, "a no-op has no events");
	ok(decide(definition, state, "Add", NULL, &out) && out.events == NULL, "data may be null");
	ok(!decide(definition, state, "ChangeMind", "{\"n\": 5, \"times\": 3}", &out) &&
	   out.rejected && !out.failed, "a refusal");
	is(out.message, "total is 15", "a refusal has its message");
	is(json_object_to_json_string_ext(state, JSON_C_TO_STRING_PLAIN), "{\"total\":15}", "a refusal folds nothing");
	ok(!decide(definition, state, "GiveUp", "{}", &out) && out.failed && !out.rejected, "a failure");
	ok(!decide(definition, state, "Fly", "{}", &out) && out.failed, "an unknown command is a failure");
	is(out.message, "unknown command type \"Fly\"", "that names it");
	ok(decide(definition, state, "Mystery", "{}", &out) && json_object_array_length(out.events) == 1,
	   "an event that the aggregate does not know");
	is(json_object_to_json_string_ext(state, JSON_C_TO_STRING_PLAIN), "{\"total\":15}", "leaves the state");
	ok(!evpg_apply(definition, state, &event), "as evpg_apply says");
	ok(!decide(definition, state, "Add", "{\"n\": 85, \"times\": 1}", &out) && out.rejected, "the invariant refuses");
	is(out.code, "large", "with its code");
	ok(decide(bare(), state, "Add", "{\"n\": 1000, \"times\": 1}", &out), "without an invariant all is allowed");
	evpg_result_reset(&out);
	json_object_put(state);
}

/* ------------------------------------------------------------------ sagas */

static void
sends(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	evpg_json  *action;

	evpg_set_text(state, "id", event->aggregate_id);
	action = evpg_send(out, "take", "account", "a", "Withdraw", evpg_object(EVPG_INT("amount", 5)));
	evpg_undo(action, "account", "a", "Deposit", evpg_object(EVPG_INT("amount", 4)));
	evpg_undo(action, "account", "a", "Deposit", evpg_object(EVPG_INT("amount", 5)));
	evpg_with_metadata(action, evpg_object(EVPG_TEXT("k", "v")));
	evpg_set_int(action, "expected_version", 3);
	evpg_undo(evpg_send(out, NULL, "audit", "b", "Note", NULL), "audit", "b", "Strike", NULL);
}

static void
ends(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	(void) event;
	evpg_remove(state, "id");
	evpg_schedule(out, "deadline", 600, evpg_object(EVPG_INT("n", 1)));
	evpg_schedule(out, "reminder", 0, NULL);
	evpg_cancel(out, "reminder");
	evpg_compensate(out, "changed");
	evpg_compensate(out, NULL);
	evpg_complete(out);
	evpg_dead_letter(out, "no way");
}

static void
refused(evpg_result *out, evpg_json *state, const evpg_rejection *rejection)
{
	evpg_set_text(state, "refused", rejection->code);
	if (rejection->label[0] == '\0')
		evpg_unhandled(out);
	else
		evpg_complete(out);
}

static void
rings(evpg_result *out, evpg_json *state, const evpg_fired_timer *timer)
{
	evpg_set(state, "late", json_object_new_int64(timer->fired_at - timer->due_at));
	evpg_send(out, "ring", "bell", timer->key, "Ring", evpg_share(timer->payload));
}

EVPG_SAGA(sequence,
		  .initial_state = "{\"id\": null}",
		  .aggregate_types = EVPG_TYPES("a", "b"),
		  .events = EVPG_REACTS(EVPG_START("Begun", sends), EVPG_ON("Ended", ends)),
		  .timers = EVPG_TIMERS(EVPG_ON("bell", rings)),
		  .rejected = refused);

EVPG_SAGA(bare_sequence,
		  .events = EVPG_REACTS(EVPG_ON("Begun", sends)));

static void
test_sagas(void)
{
	const evpg_saga_definition *saga = sequence();
	evpg_json  *state = json_object_new_object();
	evpg_json  *payload = evpg_object(EVPG_INT("n", 1));
	evpg_result out = EVPG_RESULT_INIT;
	evpg_event	begun = {.type = "Begun", .aggregate_id = "s1"};
	evpg_event	ended = {.type = "Ended", .aggregate_id = "s1"};
	evpg_event	other = {.type = "begun", .aggregate_id = "s1"};
	evpg_fired_timer bell = {.key = "s1", .name = "bell", .payload = payload, .due_at = 5, .fired_at = 12};
	evpg_fired_timer unknown = {.key = "s1", .name = "horn"};
	evpg_rejection labelled = {.key = "s1", .label = "take", .code = "poor", .sqlstate = "VE002", .message = ""};
	evpg_rejection unlabelled = {.key = "s1", .label = "", .code = "", .sqlstate = "VE002", .message = ""};

	ok(evpg_definition_sequence()->kind == EVPG_KIND_SAGA &&
	   evpg_definition_sequence()->size == sizeof(evpg_saga_definition),
	   "a saga and its header");
	ok(evpg_find_reaction(saga, "Begun")->starts && !evpg_find_reaction(saga, "Ended")->starts,
	   "which events make an instance");
	ok(evpg_find_reaction(saga, "begun") == NULL && evpg_find_timer(saga, "bell")->call == rings &&
	   evpg_find_timer(saga, "horn") == NULL &&
	   evpg_find_timer(bare_sequence(), "bell") == NULL, "what is not there is not found");

	ok(evpg_react(saga, state, &begun, &out), "a saga reacts");
	is(json_object_to_json_string_ext(state, JSON_C_TO_STRING_PLAIN), "{\"id\":\"s1\"}", "a reaction sets a state");
	is(json_object_to_json_string_ext(out.actions, JSON_C_TO_STRING_PLAIN),
	   "[{\"do\":\"send\",\"aggregate_type\":\"account\",\"aggregate_id\":\"a\",\"command_type\":\"Withdraw\","
	   "\"data\":{\"amount\":5},\"label\":\"take\","
	   "\"undo\":{\"do\":\"send\",\"aggregate_type\":\"account\",\"aggregate_id\":\"a\",\"command_type\":\"Deposit\","
	   "\"data\":{\"amount\":5}},"
	   "\"metadata\":{\"k\":\"v\"},\"expected_version\":3},"
	   "{\"do\":\"send\",\"aggregate_type\":\"audit\",\"aggregate_id\":\"b\",\"command_type\":\"Note\",\"data\":{},"
	   "\"undo\":{\"do\":\"send\",\"aggregate_type\":\"audit\",\"aggregate_id\":\"b\",\"command_type\":\"Strike\","
	   "\"data\":{}}}]",
	   "a reaction sends commands: the last undo counts, no data is an empty object, no label none");
	ok(evpg_react(saga, state, &ended, &out), "reacting again forgets what came of it before");
	is(json_object_to_json_string_ext(out.actions, JSON_C_TO_STRING_PLAIN),
	   "[{\"do\":\"schedule\",\"timer\":\"deadline\",\"delay\":600,\"payload\":{\"n\":1}},"
	   "{\"do\":\"schedule\",\"timer\":\"reminder\",\"delay\":0},{\"do\":\"cancel\",\"timer\":\"reminder\"},"
	   "{\"do\":\"compensate\",\"reason\":\"changed\"},{\"do\":\"compensate\"},{\"do\":\"complete\"},"
	   "{\"do\":\"fail\",\"reason\":\"no way\"}]",
	   "all other actions, in their order");
	ok(!evpg_react(saga, state, &other, &out) && out.actions == NULL,
	   "a saga does not react to events that it does not take");
	is(json_object_to_json_string_ext(state, JSON_C_TO_STRING_PLAIN), "{}",
	   "an event that is not taken leaves the state as it is");

	ok(evpg_react_timer(saga, state, &bell, &out) && evpg_int(state, "late") == 7, "a saga reacts to a timer");
	is(json_object_to_json_string_ext(out.actions, JSON_C_TO_STRING_PLAIN),
	   "[{\"do\":\"send\",\"aggregate_type\":\"bell\",\"aggregate_id\":\"s1\",\"command_type\":\"Ring\","
	   "\"data\":{\"n\":1},\"label\":\"ring\"}]",
	   "a timer handler sees its key and payload");
	ok(!evpg_react_timer(saga, state, &unknown, &out) &&
	   out.actions == NULL, "a saga does not react to a timer that it does not know");

	ok(evpg_react_rejection(saga, state, &labelled, &out) && !out.unhandled && json_object_array_length(out.actions) == 1,
	   "a saga reacts to a refusal");
	ok(!evpg_react_rejection(saga, state, &unlabelled, &out) && out.unhandled, "a saga may leave a refusal unhandled");
	ok(evpg_react(saga, state, &begun, &out) && !out.unhandled,
	   "the next reaction does not inherit that a refusal was unhandled");
	ok(!evpg_react_rejection(bare_sequence(), state, &labelled, &out) && out.unhandled,
	   "without a callback every refusal is unhandled");
	evpg_result_reset(&out);
	ok(out.actions == NULL && !out.unhandled, "a reset result has no actions");
	json_object_put(payload);
	json_object_put(state);
}

int
main(void)
{
	test_objects();
	test_ownership();
	test_depth();
	test_results();
	test_boundary();
	test_host();
	test_definition();
	test_decide();
	test_sagas();
	printf("1..%d\n", tests);
	return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
