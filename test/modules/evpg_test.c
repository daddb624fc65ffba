/*-------------------------------------------------------------------------
 *
 * evpg_test.c
 *		Aggregates for the tests, each behind a symbol:
 *
 * counter		the twin of the functions in test/pgtap/include/counter.sql
 * counter_twice	the same with another fold, hence another reducer_version
 * echo			gives back what it is given: values, commands, events
 * hostile		does what a module must not do
 * course		the twin of the functions in test/pgtap/include/courses.sql, with a boundary
 *
 * and projections of them: totals, group_totals (by a key of its own), bad_key_totals, asking;
 * and sagas: script, which does what the event's data say, group_script (by a key of
 * its own, any event starts it), bad_key_script.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "fmgr.h"

#include <math.h>
#include <stdlib.h>

#include "evpg.h"

EVPG_MODULE;

/* ------------------------------------------------------------------ values */

/* The elements of what should be an array, and may be anything. */
static size_t
length_of(const evpg_json *json)
{
	return json_object_is_type(json, json_type_array) ? json_object_array_length(json) : 0;
}

/* So that a fuzzer cannot fill the memory. */
static int64_t
at_most(int64_t n, int64_t limit)
{
	return n < limit ? n : limit;
}

/* Arrays in arrays. */
static evpg_json *
nest(int64_t depth)
{
	evpg_json  *value = NULL;

	for (int64_t i = 0; i < at_most(depth, 1000000); i++)
	{
		evpg_json  *outer = json_object_new_array();

		json_object_array_add(outer, value);
		value = outer;
	}
	return value;
}

/* Leaves by an error of the server, over whatever has called: {"throw": {"sqlstate": text, "message": text}}. */
static void
throw_error(const evpg_json *data)
{
	evpg_json  *told = evpg_get(data, "throw");
	char		sqlstate[6];

	if (told == NULL)
		return;
	snprintf(sqlstate, sizeof(sqlstate), "%-5s", evpg_text(told, "sqlstate"));
	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2], sqlstate[3], sqlstate[4])),
			 errmsg("%s", evpg_text(told, "message"))));
}

/* ------------------------------------------------------------------ counter */

static void
add(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_emit(out, "Added", evpg_object(EVPG_INT("n", evpg_int(command->data, "n"))));
}

static void
add_each(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_json  *numbers = evpg_get(command->data, "ns");

	for (size_t i = 0; i < length_of(numbers); i++)
		evpg_emit(out, "Added", evpg_object(EVPG_JSON("n", evpg_share(json_object_array_get_idx(numbers, i)))));
}

static void
add_many(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	for (int64_t i = 0; i < at_most(evpg_int(command->data, "count"), 1000000); i++)
		evpg_emit(out, "Added", evpg_object(EVPG_INT("n", 1)));
}

static void
subtract(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	int64_t		n = evpg_int(command->data, "n");
	int64_t		total = evpg_int(state, "total");

	if (n > total)
	{
		evpg_reject(out, "underflow", "total %lld is less than %lld", (long long) total, (long long) n);
		evpg_reject_detail(out, evpg_object(EVPG_INT("total", total)));
		return;
	}
	evpg_emit(out, "Subtracted", evpg_object(EVPG_INT("n", n)));
}

/* Events first, then a refusal: they must be dropped. */
static void
add_and_refuse(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	add(out, state, command);
	evpg_reject(out, "changed_mind", "no");
	evpg_reject(out, "second", "the first refusal counts");
}

static void
nothing(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
}

/* Emits the events that it is told. */
static void
emit(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_json  *events = evpg_get(command->data, "events");

	for (size_t i = 0; i < length_of(events); i++)
	{
		evpg_json  *told = json_object_array_get_idx(events, i);
		evpg_json  *tags = evpg_get(told, "tags");
		evpg_json  *event = evpg_emit(out, evpg_text(told, "type"), evpg_share(evpg_get(told, "data")));

		for (size_t t = 0; t < length_of(tags); t++)
			evpg_with_tag(event, json_object_get_string(json_object_array_get_idx(tags, t)));
		if (evpg_get(told, "metadata") != NULL)
			evpg_with_metadata(event, evpg_share(evpg_get(told, "metadata")));
		if (evpg_get(told, "schema_version") != NULL)
			evpg_set(event, "schema_version", evpg_share(evpg_get(told, "schema_version")));
	}
}

static void
fail(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_fail(out, "broken by \"%s\"", command->type);
}

static void
spin(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	for (;;)
		evpg_check_interrupts(out->host);
}

static void
fold_total(evpg_json *state, int64_t n)
{
	evpg_set_int(state, "total", evpg_int(state, "total") + n);
	evpg_set_int(state, "applied", evpg_int(state, "applied") + 1);
}

static void
added(evpg_json *state, const evpg_event *event)
{
	fold_total(state, evpg_int(event->data, "n"));
}

static void
added_twice(evpg_json *state, const evpg_event *event)
{
	fold_total(state, 2 * evpg_int(event->data, "n"));
}

static void
subtracted(evpg_json *state, const evpg_event *event)
{
	fold_total(state, -evpg_int(event->data, "n"));
}

static void
spun(evpg_json *state, const evpg_event *event)
{
	for (;;)
		evpg_check_interrupts(event->host);
}

/* Three ways to say no. */
static bool
in_range(evpg_result *why, const evpg_json *state)
{
	int64_t		total = evpg_int(state, "total");

	if (total == 666)
		evpg_fail(why, "cannot say");
	if (total > 1000)
	{
		evpg_reject(why, "limit", "total %lld is above 1000", (long long) total);
		evpg_reject_detail(why, evpg_object(EVPG_INT("total", total)));
	}
	return total >= -1000;
}

#define COUNTER_COMMANDS \
	EVPG_COMMANDS(EVPG_ON("Add", add), EVPG_ON("AddEach", add_each), EVPG_ON("AddMany", add_many), \
				  EVPG_ON("Subtract", subtract), EVPG_ON("AddAndRefuse", add_and_refuse), \
				  EVPG_ON("Nothing", nothing), EVPG_ON("Emit", emit), EVPG_ON("Fail", fail), EVPG_ON("Spin", spin))

EVPG_AGGREGATE(counter,
			   .initial_state = "{\"total\": 0, \"applied\": 0}",
			   .commands = COUNTER_COMMANDS,
			   .events = EVPG_EVENTS(EVPG_ON("Added", added), EVPG_ON("Subtracted", subtracted), EVPG_ON("Spun", spun)),
			   .invariant = in_range);

EVPG_AGGREGATE(counter_twice,
			   .initial_state = "{\"total\": 0, \"applied\": 0}",
			   .reducer_version = 2,
			   .commands = COUNTER_COMMANDS,
			   .events = EVPG_EVENTS(EVPG_ON("Added", added_twice), EVPG_ON("Subtracted", subtracted)));

/* ------------------------------------------------------------------ echo */

static void
echo_value(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_emit(out, "Echoed", evpg_share(command->data));
}

/* The value in the state, as a copy: what went through a fold, and maybe a snapshot. */
static void
echo_state(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_emit(out, "Echoed", evpg_object(EVPG_JSON("value", evpg_copy(evpg_get(state, "value")))));
}

static void
echoed(evpg_json *state, const evpg_event *event)
{
	evpg_set(state, "value", evpg_share(evpg_get(event->data, "value")));
}

/* Says what a handler is given, and whether it could be NULL. */
static void
describe(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_json  *facts;
	evpg_json  *event;

	facts = evpg_object(EVPG_INT("version", command->version),
						EVPG_TEXT("aggregate_type", command->aggregate_type),
						EVPG_TEXT("aggregate_id", command->aggregate_id),
						EVPG_TEXT("command_type", command->type),
						EVPG_BOOL("has_data", command->data != NULL),
						EVPG_JSON("data", evpg_share(command->data)),
						EVPG_JSON("metadata", evpg_share(command->metadata)),
						EVPG_TEXT("command_id", command->command_id),
						EVPG_TEXT("correlation_id", command->correlation_id),
						EVPG_TEXT("causation_id", command->causation_id),
						EVPG_TEXT("actor", command->actor),
						EVPG_TEXT("session_role", command->session_role),
						EVPG_INT("received_at", command->received_at),
						EVPG_BOOL("host", EVPG_HOST_HAS(out->host, check_interrupts) && EVPG_HOST_HAS(out->host, log)));
	event = evpg_emit(out, "Described", facts);
	evpg_with_tag(evpg_with_tag(event, "one"), "zwei");
	evpg_with_metadata(event, evpg_object(EVPG_TEXT("by", "handler")));
}

/* Says what a fold is given. */
static void
described(evpg_json *state, const evpg_event *event)
{
	evpg_json  *facts;
	evpg_json  *tags = NULL;

	for (int i = 0; i < event->ntags; i++)
	{
		if (tags == NULL)
			tags = json_object_new_array();
		json_object_array_add(tags, json_object_new_string(event->tags[i]));
	}
	facts = evpg_object(EVPG_INT("version", event->version),
						EVPG_TEXT("aggregate_type", event->aggregate_type),
						EVPG_TEXT("aggregate_id", event->aggregate_id),
						EVPG_TEXT("type", event->type),
						EVPG_INT("schema_version", event->schema_version),
						EVPG_JSON("tags", tags),
						EVPG_JSON("data", evpg_share(event->data)),
						EVPG_JSON("metadata", evpg_share(event->metadata)),
						EVPG_TEXT("event_id", event->event_id),
						EVPG_TEXT("command_id", event->command_id),
						EVPG_TEXT("correlation_id", event->correlation_id),
						EVPG_TEXT("causation_id", event->causation_id),
						EVPG_TEXT("actor", event->actor),
						EVPG_TEXT("session_role", event->session_role),
						EVPG_INT("occurred_at", event->occurred_at),
						EVPG_INT("recorded_at", event->recorded_at),
						EVPG_BOOL("host", EVPG_HOST_HAS(event->host, check_interrupts)));
	evpg_set(state, "event", facts);
}

EVPG_AGGREGATE(echo,
			   .commands = EVPG_COMMANDS(EVPG_ON("Echo", echo_value), EVPG_ON("EchoState", echo_state),
										 EVPG_ON("Describe", describe)),
			   .events = EVPG_EVENTS(EVPG_ON("Echoed", echoed), EVPG_ON("Described", described)));

/* ------------------------------------------------------------------ hostile */

/* A string that PostgreSQL cannot hold: not UTF-8, a surrogate, over-long, or with U+0000. */
static evpg_json *
bad_string(const char *how)
{
	if (strcmp(how, "zero") == 0)
		return json_object_new_string_len("a\0b", 3);
	if (strcmp(how, "surrogate") == 0)
		return json_object_new_string("\xed\xa0\x80");
	if (strcmp(how, "overlong") == 0)
		return json_object_new_string("\xc0\xaf");
	if (strcmp(how, "latin1") == 0)
		return json_object_new_string("caf\xe9");
	return json_object_new_string("nothing bad");
}

/* Puts a bad string where it is told. */
static void
bad_text(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	const char *where = evpg_text(command->data, "where");
	evpg_json  *bad = bad_string(evpg_text(command->data, "how"));
	const char *text = json_object_get_string(bad);
	evpg_json  *event;

	if (strcmp(where, "code") == 0)
		evpg_reject(out, text, "refused");
	else if (strcmp(where, "message") == 0)
		evpg_reject(out, "code", "%s", text);
	else if (strcmp(where, "detail") == 0)
	{
		evpg_reject(out, "code", "refused");
		evpg_reject_detail(out, evpg_object(EVPG_JSON("x", evpg_share(bad))));
	}
	else if (strcmp(where, "failure") == 0)
		evpg_fail(out, "%s", text);
	else
	{
		event = evpg_emit(out, "Tried", json_object_new_object());
		if (strcmp(where, "type") == 0)
			evpg_set(event, "type", evpg_share(bad));
		else if (strcmp(where, "data") == 0)
			evpg_set(event, "data", evpg_object(EVPG_JSON("x", evpg_share(bad))));
		else if (strcmp(where, "key") == 0)
			evpg_set(event, "data", evpg_object(EVPG_INT(text, 1)));
		else if (strcmp(where, "scalar") == 0)
			evpg_set(event, "data", evpg_share(bad));
		else if (strcmp(where, "metadata") == 0)
			evpg_with_metadata(event, evpg_object(EVPG_JSON("x", evpg_share(bad))));
		else if (strcmp(where, "tag") == 0)
		{
			evpg_with_tag(event, "good");
			json_object_array_add(evpg_get(event, "tags"), evpg_share(bad));
		}
	}
	json_object_put(bad);
}

/* Data of any depth. */
static void
deep(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_emit(out, "Tried", nest(evpg_int(command->data, "depth")));
}

/* Data of any size. */
static void
large(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	int64_t		size = at_most(evpg_int(command->data, "size"), 100000000);
	char	   *text = size >= 0 ? malloc(size) : NULL;

	if (text == NULL)
		return;
	memset(text, 'x', size);
	evpg_emit(out, "Tried", json_object_new_string_len(text, size));
	free(text);
}

/* Numbers that a module computes. */
static void
number(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	const char *which = evpg_text(command->data, "which");
	evpg_json  *value = NULL;

	if (strcmp(which, "nan") == 0)
		value = json_object_new_double(NAN);
	else if (strcmp(which, "infinity") == 0)
		value = json_object_new_double(INFINITY);
	else if (strcmp(which, "-infinity") == 0)
		value = json_object_new_double(-INFINITY);
	else if (strcmp(which, "nan by text") == 0)
		value = json_object_new_double_s(0, "NaN");
	else if (strcmp(which, "infinity by text") == 0)
		value = json_object_new_double_s(0, "Infinity");
	else if (strcmp(which, "nonsense by text") == 0)
		value = json_object_new_double_s(0, "1 or 2");
	else if (strcmp(which, "tenth") == 0)
		value = json_object_new_double(0.1);
	else if (strcmp(which, "smallest") == 0)
		value = json_object_new_double(5e-324);
	else if (strcmp(which, "largest") == 0)
		value = json_object_new_double(1.7976931348623157e308);
	else if (strcmp(which, "uint64") == 0)
		value = json_object_new_uint64(UINT64_MAX);
	else if (strcmp(which, "int64") == 0)
		value = json_object_new_int64(INT64_MIN);
	else if (strcmp(which, "too large") == 0)
		value = json_object_new_double_s(0, "1e400000");
	else if (strcmp(which, "latin1 by text") == 0)
		value = json_object_new_double_s(0, "1caf\xe9");
	else if (strcmp(which, "exact") == 0)
		value = json_object_new_double_s(0, "12345678901234567890.12");
	evpg_emit(out, "Tried", value);
}

/* Envelopes that are not what evpg_emit() makes. */
static void
envelope(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_json  *event = evpg_emit(out, "Tried", NULL);
	evpg_json  *changes = evpg_get(command->data, "change");

	if (json_object_is_type(changes, json_type_object))
	{
		json_object_object_foreach(changes, key, value)
			evpg_set(event, key, evpg_share(value));
	}
}

/* Values that are no trees of a bounded depth. */
static evpg_json *
bad_shape(const char *how)
{
	evpg_json  *value = json_object_new_object();

	if (strcmp(how, "cycle") == 0)
		evpg_set(value, "inner", evpg_object(EVPG_JSON("outer", evpg_share(value))));
	else if (strcmp(how, "deep") == 0)
		evpg_set(value, "deep", nest(300000));
	else if (strcmp(how, "shared") == 0)
	{
		evpg_json  *inner = NULL;

		/* 2^60 values in 60 arrays */
		for (int i = 0; i < 60; i++)
		{
			evpg_json  *outer = json_object_new_array();

			json_object_array_add(outer, evpg_share(inner));
			json_object_array_add(outer, inner);
			inner = outer;
		}
		evpg_set(value, "shared", inner);
	}
	return value;
}

/* Puts one where it is told. */
static void
misshape(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	const char *where = evpg_text(command->data, "where");
	const char *how = evpg_text(command->data, "how");

	if (strcmp(where, "state") == 0)
		evpg_emit(out, "Misshaped", evpg_share(command->data));
	else if (strcmp(where, "events") == 0)
	{
		out->events = bad_shape(how);
		evpg_with_tag(evpg_emit(out, "Tried", NULL), "lost");
	}
	else if (strcmp(where, "event") == 0)
	{
		out->events = json_object_new_array();
		json_object_array_add(out->events, bad_shape(how));
	}
	else if (strcmp(where, "detail") == 0)
	{
		evpg_reject(out, "code", "refused");
		evpg_reject_detail(out, bad_shape(how));
	}
	else if (strcmp(where, "metadata") == 0)
		evpg_with_metadata(evpg_emit(out, "Tried", NULL), bad_shape(how));
	else if (strcmp(where, "tags") == 0)
		evpg_set(evpg_emit(out, "Tried", NULL), "tags", bad_shape(how));
	else
		evpg_emit(out, "Tried", bad_shape(how));
}

static void
misshaped(evpg_json *state, const evpg_event *event)
{
	const char *how = evpg_text(event->data, "how");

	if (strcmp(how, "nest") == 0)
	{
		/* one level deeper with each event */
		evpg_json  *outer = json_object_new_array();

		json_object_array_add(outer, evpg_share(evpg_get(state, "nest")));
		evpg_set(state, "nest", outer);
	}
	else if (strcmp(how, "itself") == 0)
		evpg_set(state, "inner", evpg_object(EVPG_JSON("outer", evpg_share(state))));
	else
		evpg_set(state, "bad", bad_shape(how));
}

/* Says what is for callbacks of other kinds, or for nobody. */
static void
say(evpg_result *out, const char *what)
{
	if (strcmp(what, "emit") == 0)
		evpg_emit(out, "Tried", NULL);
	else if (strcmp(what, "reject") == 0)
		evpg_reject(out, "no", "no");
	else if (strcmp(what, "delta") == 0)
		evpg_delta(out, json_object_new_int(1));
	else if (strcmp(what, "delete") == 0)
		evpg_delete(out);
	else if (strcmp(what, "complete") == 0)
		evpg_complete(out);
	else if (strcmp(what, "unhandled") == 0)
		evpg_unhandled(out);
	else if (strcmp(what, "reads") == 0)
		evpg_reads(out, NULL, NULL);
	else if (strcmp(what, "no code") == 0)
		evpg_reject(out, NULL, "refused without a code");
	else if (strcmp(what, "nothing") == 0)
		evpg_reject(out, NULL, "%s", "");
	else if (strcmp(what, "endless code") == 0)
	{
		out->rejected = true;
		memset(out->code, 'c', sizeof(out->code));
		memset(out->message, 'm', sizeof(out->message));
	}
	else if (strcmp(what, "no tag") == 0)
		evpg_with_tag(evpg_with_tag(evpg_emit(out, "Tried", NULL), NULL), "tag");
	else if (strcmp(what, "no type") == 0)
		evpg_emit(out, NULL, NULL);
	else if (strcmp(what, "log") == 0 && EVPG_HOST_HAS(out->host, log))
	{
		out->host->log("caf\xe9");
		out->host->log(NULL);
	}
}

static void
misuse(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	say(out, evpg_text(command->data, "say"));
}

/* So that an invariant can say it: the state keeps it. */
static void
misused(evpg_json *state, const evpg_event *event)
{
	evpg_set_text(state, "say", evpg_text(event->data, "say"));
}

/* From the handler, from the fold when it has changed the state, or from the invariant that reads that. */
static void
throw(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_emit(out, "Thrown", evpg_share(command->data));
	if (strcmp(evpg_text(command->data, "where"), "handler") == 0)
		throw_error(command->data);
}

static void
thrown(evpg_json *state, const evpg_event *event)
{
	evpg_set(state, "throw", evpg_share(evpg_get(event->data, "throw")));
	if (strcmp(evpg_text(event->data, "where"), "fold") == 0)
		throw_error(event->data);
}

static void
tell_invariant(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_emit(out, "Misused", evpg_share(command->data));
}

static bool
misusing(evpg_result *why, const evpg_json *state)
{
	throw_error(state);
	say(why, evpg_text(state, "say"));
	return true;
}

/* A refusal that says nothing, or more than fits. */
static void
refuse(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_reject(out, evpg_text(command->data, "code"), "%s", evpg_text(command->data, "message"));
	if (evpg_get(command->data, "detail") != NULL)
		evpg_reject_detail(out, evpg_share(evpg_get(command->data, "detail")));
}

static void
spoil(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_emit(out, "Spoiled", evpg_share(command->data));
}

static void
fold_forever(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_emit(out, "Spun", NULL);
}

/* A state that cannot be shown or stored. */
static void
spoiled(evpg_json *state, const evpg_event *event)
{
	evpg_set(state, "spoiled", bad_string(evpg_text(event->data, "how")));
}

static void
tried(evpg_json *state, const evpg_event *event)
{
	evpg_set_int(state, "tries", evpg_int(state, "tries") + 1);
}

EVPG_AGGREGATE(hostile,
			   .commands = EVPG_COMMANDS(EVPG_ON("BadText", bad_text), EVPG_ON("Deep", deep), EVPG_ON("Large", large),
										 EVPG_ON("Number", number), EVPG_ON("Envelope", envelope),
										 EVPG_ON("Refuse", refuse), EVPG_ON("Spoil", spoil),
										 EVPG_ON("FoldForever", fold_forever), EVPG_ON("Nothing", nothing),
										 EVPG_ON("Misshape", misshape), EVPG_ON("Misuse", misuse),
										 EVPG_ON("TellInvariant", tell_invariant), EVPG_ON("Throw", throw)),
			   .events = EVPG_EVENTS(EVPG_ON("Tried", tried), EVPG_ON("Spoiled", spoiled), EVPG_ON("Spun", spun),
									 EVPG_ON("Misshaped", misshaped), EVPG_ON("Misused", misused),
									 EVPG_ON("Thrown", thrown)),
			   .invariant = misusing);

/* ------------------------------------------------------------------ a boundary */

static void
define_course(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	char		tag[300];

	snprintf(tag, sizeof(tag), "course:%s", evpg_text(command->data, "course"));
	evpg_with_tag(evpg_emit(out, "Defined", evpg_copy(command->data)), tag);
}

/* How many of the entries "course student" begin with the course, and end with the student. */
static void
count_taken(const evpg_json *taken, const char *course, const char *student, int *of_course, int *of_student, int *of_both)
{
	*of_course = *of_student = *of_both = 0;
	for (size_t i = 0; i < length_of(taken); i++)
	{
		const char *entry = json_object_get_string(json_object_array_get_idx(taken, i));
		const char *space = strchr(entry, ' ');
		bool		same_course = strncmp(entry, course, strlen(course)) == 0 && entry + strlen(course) == space;
		bool		same_student = strcmp(space + 1, student) == 0;

		*of_course += same_course;
		*of_student += same_student;
		*of_both += same_course && same_student;
	}
}

static void
subscribe(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	const char *course = evpg_text(command->data, "course");
	const char *student = command->aggregate_id;
	const evpg_json *capacities = evpg_get(state, "capacities");
	evpg_json  *event;
	char		tag[600];
	int			of_course,
				of_student,
				of_both;

	count_taken(evpg_get(state, "taken"), course, student, &of_course, &of_student, &of_both);
	if (evpg_get(capacities, course) == NULL)
		evpg_reject(out, "no_course", "%s", "");
	else if (of_both == 0 && of_course >= evpg_int(capacities, course))
		evpg_reject(out, "full", "%s", "");
	else if (of_both == 0 && of_student >= 2)
		evpg_reject(out, "busy", "%s", "");
	if (out->rejected || of_both > 0)
		return;
	event = evpg_emit(out, "Subscribed", evpg_object(EVPG_TEXT("course", course), EVPG_TEXT("student", student)));
	snprintf(tag, sizeof(tag), "course:%s", course);
	evpg_with_tag(event, tag);
	snprintf(tag, sizeof(tag), "student:%s", student);
	evpg_with_tag(event, tag);
}

static void
course_defined(evpg_json *state, const evpg_event *event)
{
	evpg_set_int(evpg_get(state, "capacities"), evpg_text(event->data, "course"), evpg_int(event->data, "capacity"));
}

static void
subscribed(evpg_json *state, const evpg_event *event)
{
	char		entry[600];

	snprintf(entry, sizeof(entry), "%s %s", evpg_text(event->data, "course"), evpg_text(event->data, "student"));
	json_object_array_add(evpg_get(state, "taken"), json_object_new_string(entry));
}

/* What a boundary must not do, or may, as the data of the command ask for. */
static void
odd_boundary(evpg_result *out, const evpg_command *command)
{
	const char *how = evpg_text(command->data, "how");

	if (strcmp(how, "refuse") == 0)
	{
		evpg_reads(out, EVPG_TAGS("a"), NULL);
		evpg_reject(out, "unbounded", "no boundary for %s", command->aggregate_id);
		evpg_reject_detail(out, evpg_copy(command->data));
	}
	else if (strcmp(how, "fail") == 0)
		evpg_fail(out, "cannot tell");
	else if (strcmp(how, "emit") == 0)
		evpg_emit(out, "Odd", NULL);
	else if (strcmp(how, "everything") == 0)
		evpg_reads(out, NULL, NULL);
	else if (strcmp(how, "string") == 0)
		evpg_set(evpg_reads(out, NULL, NULL), "tags", json_object_new_string("a"));
	else if (strcmp(how, "latin1") == 0)
		evpg_reads(out, EVPG_TAGS("caf\xe9"), NULL);
	else if (strcmp(how, "types") == 0)
		evpg_reads(out, NULL, EVPG_TYPES("Defined", "Subscribed"));
	else if (strcmp(how, "loop") == 0)
		for (;;)
			evpg_check_interrupts(out->host);
}

static void
course_boundary(evpg_result *out, const evpg_command *command)
{
	char		tag[300];

	if (strcmp(command->type, "Odd") == 0)
	{
		odd_boundary(out, command);
		return;
	}
	snprintf(tag, sizeof(tag), "course:%s", evpg_text(command->data, "course"));
	evpg_reads(out, EVPG_TAGS(tag), NULL);
	if (strcmp(command->type, "Subscribe") == 0)
	{
		snprintf(tag, sizeof(tag), "student:%s", command->aggregate_id);
		evpg_reads(out, EVPG_TAGS(tag), NULL);
	}
}

EVPG_AGGREGATE(course,
			   .initial_state = "{\"capacities\": {}, \"taken\": []}",
			   .commands = EVPG_COMMANDS(EVPG_ON("Define", define_course), EVPG_ON("Subscribe", subscribe),
										 EVPG_ON("Odd", nothing)),
			   .events = EVPG_EVENTS(EVPG_ON("Defined", course_defined), EVPG_ON("Subscribed", subscribed)),
			   .boundary = course_boundary);

/* ------------------------------------------------------------------ projections */

static void
project_total(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	int64_t		n = evpg_int(event->data, "n");

	fold_total(state, strcmp(event->type, "Added") == 0 ? n : -n);
	/* silent when nothing changes */
	if (n != 0)
		evpg_delta(out, evpg_object(EVPG_INT("n", n), EVPG_INT("total", evpg_int(state, "total"))));
}

static void
project_cleared(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	evpg_delete(out);
	evpg_delta(out, evpg_object(EVPG_TEXT("cleared_by", event->actor)));
}

static void
project_broken(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	evpg_fail(out, "broken by \"%s\"", event->type);
}

/* A state or delta that cannot be stored. */
static void
project_spoiled(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	evpg_json  *bad = bad_string(evpg_text(event->data, "how"));

	if (strcmp(evpg_text(event->data, "where"), "delta") == 0)
		evpg_delta(out, bad);
	else
		evpg_set(state, "spoiled", bad);
}

static void
project_deep(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	evpg_set(state, "deep", nest(evpg_int(event->data, "depth")));
}

static void
project_misshaped(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	if (strcmp(evpg_text(event->data, "where"), "delta") == 0)
		evpg_delta(out, bad_shape(evpg_text(event->data, "how")));
	else
		misshaped(state, event);
}

static void
project_thrown(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	evpg_set_text(state, "thrown", "half done");
	evpg_delta(out, evpg_copy(state));
	throw_error(event->data);
}

static void
project_misused(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	say(out, evpg_text(event->data, "say"));
}

static void
project_spun(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	for (;;)
		evpg_check_interrupts(out->host);
}

/* totals: the twin of test.sum_project in test/pgtap/include/projections.sql, but for unknown events. */
EVPG_PROJECTION(totals,
				.initial_state = "{\"total\": 0, \"applied\": 0}",
				.aggregate_types = EVPG_TYPES("counter", "counter_c"),
				.events = EVPG_PROJECTS(EVPG_ON("Added", project_total), EVPG_ON("Subtracted", project_total),
										EVPG_ON("Cleared", project_cleared), EVPG_ON("Broken", project_broken),
										EVPG_ON("Spoiled", project_spoiled), EVPG_ON("Deep", project_deep),
										EVPG_ON("Spun", project_spun), EVPG_ON("Misshaped", project_misshaped),
										EVPG_ON("Misused", project_misused), EVPG_ON("Thrown", project_thrown)));

static const char *
group_of(const evpg_event *event)
{
	evpg_json  *group = evpg_get(event->data, "group");

	throw_error(event->data);
	return group == NULL ? NULL : json_object_get_string(group);
}

static const char *
bad_key(const evpg_event *event)
{
	return "caf\xe9";
}

EVPG_PROJECTION(group_totals,
				.initial_state = "{\"total\": 0, \"applied\": 0}",
				.events = EVPG_PROJECTS(EVPG_ON("Added", project_total), EVPG_ON("Subtracted", project_total)),
				.key = group_of);

EVPG_PROJECTION(bad_key_totals,
				.events = EVPG_PROJECTS(EVPG_ON("Added", project_total)),
				.key = bad_key);

/* Notes whether a delta is wanted, and gives one in any case. */
static void
project_asked(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	evpg_set_bool(state, "wanted", evpg_wants_delta(out));
	evpg_delta(out, evpg_copy(event->data));
}

EVPG_PROJECTION(asking,
				.events = EVPG_PROJECTS(EVPG_ON("Added", project_asked)));

/* Ends the session, if it is told to: with a message, or with none. */
static void
end_session(const evpg_json *data)
{
	if (evpg_bool(data, "fatal"))
		elog(FATAL, "the module ends the session");
	if (evpg_bool(data, "exit"))
		exit(1);
}

/*
 * Ends the server or its session, if it is told to: where an event is applied, perhaps after a pause in ms, or where its key
 * is found.
 */
static void
project_survived(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	pg_usleep(evpg_int(event->data, "pause") * 1000);
	if (evpg_bool(event->data, "poison"))
		abort();
	end_session(event->data);
	evpg_set_int(state, "seen", evpg_int(state, "seen") + 1);
}

static const char *
survived_key(const evpg_event *event)
{
	if (evpg_bool(event->data, "poison_key"))
		abort();
	return event->aggregate_id;
}

EVPG_PROJECTION(poisonable_seen,
				.events = EVPG_PROJECTS(EVPG_ON("Served", project_survived)));

EVPG_PROJECTION(poisonable_key_seen,
				.events = EVPG_PROJECTS(EVPG_ON("Served", project_survived)),
				.key = survived_key);

/* ------------------------------------------------------------------ sagas */

/*
 * Does what it is told: {"set": {...}, "actions": [...], "bad": {where, how}, "throw": {...}, "fail": text,
 * "reject": text, "unhandled": true, "spin": true}.
 */
static void
follow(evpg_result *out, evpg_json *state, const evpg_json *script)
{
	evpg_json  *set = evpg_get(script, "set");
	evpg_json  *actions = evpg_get(script, "actions");
	evpg_json  *bad = evpg_get(script, "bad");

	if (json_object_is_type(set, json_type_object))
	{
		json_object_object_foreach(set, key, value)
			evpg_set(state, key, evpg_copy(value));
	}
	for (size_t i = 0; i < length_of(actions); i++)
		evpg_act(out, evpg_copy(json_object_array_get_idx(actions, i)));
	if (strcmp(evpg_text(bad, "where"), "shape of state") == 0)
		evpg_set(state, "bad", bad_shape(evpg_text(bad, "how")));
	else if (strcmp(evpg_text(bad, "where"), "shape of action") == 0)
		evpg_act(out, bad_shape(evpg_text(bad, "how")));
	else if (strcmp(evpg_text(bad, "where"), "actions") == 0)
	{
		json_object_put(out->actions);
		out->actions = bad_shape(evpg_text(bad, "how"));
	}
	else if (strcmp(evpg_text(bad, "where"), "state") == 0)
		evpg_set(state, "bad", bad_string(evpg_text(bad, "how")));
	else if (bad != NULL)
		evpg_act(out, bad_string(evpg_text(bad, "how")));
	throw_error(script);
	if (evpg_get(script, "fail") != NULL)
		evpg_fail(out, "%s", evpg_text(script, "fail"));
	if (evpg_get(script, "reject") != NULL)
		evpg_reject(out, "no", "%s", evpg_text(script, "reject"));
	if (evpg_bool(script, "emit"))
		evpg_emit(out, "Emitted", NULL);
	if (evpg_bool(script, "unhandled"))
		evpg_unhandled(out);
	while (evpg_bool(script, "spin"))
		evpg_check_interrupts(out->host);
}

/* The script of an event is its data, that of a refusal in the state, that of a timer its payload. */
static void
follow_event(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	evpg_set_int(state, "seen", evpg_int(state, "seen") + 1);
	evpg_set_int(state, "position", event->position);
	follow(out, state, event->data);
}

static void
follow_refusal(evpg_result *out, evpg_json *state, const evpg_rejection *rejection)
{
	evpg_json  *script;

	evpg_set(state, "refused",
			 evpg_object(EVPG_TEXT("key", rejection->key),
						 EVPG_TEXT("label", rejection->label),
						 EVPG_TEXT("aggregate_type", rejection->aggregate_type),
						 EVPG_TEXT("aggregate_id", rejection->aggregate_id),
						 EVPG_TEXT("command_type", rejection->command_type),
						 EVPG_JSON("data", evpg_copy(rejection->data)),
						 EVPG_TEXT("sqlstate", rejection->sqlstate),
						 EVPG_TEXT("code", rejection->code),
						 EVPG_TEXT("message", rejection->message),
						 EVPG_JSON("detail", evpg_copy(rejection->detail)),
						 EVPG_INT("attempts", rejection->attempts),
						 EVPG_INT("source_position", rejection->source_position)));
	script = evpg_share(evpg_get(state, "on_refusal")); /* which it may set anew */
	follow(out, state, script);
	json_object_put(script);
}

static void
follow_timer(evpg_result *out, evpg_json *state, const evpg_fired_timer *timer)
{
	evpg_set(state, "fired",
			 evpg_object(EVPG_TEXT("key", timer->key),
						 EVPG_TEXT("name", timer->name),
						 EVPG_JSON("payload", evpg_copy(timer->payload)),
						 EVPG_INT("scheduled_at", timer->scheduled_at),
						 EVPG_INT("due_at", timer->due_at),
						 EVPG_INT("fired_at", timer->fired_at)));
	follow(out, state, timer->payload);
}

EVPG_SAGA(script,
		  .initial_state = "{\"seen\": 0}",
		  .aggregate_types = EVPG_TYPES("counter", "counter_c"),
		  .events = EVPG_REACTS(EVPG_START("Started", follow_event), EVPG_ON("Told", follow_event)),
		  .timers = EVPG_TIMERS(EVPG_ON("script", follow_timer)),
		  .rejected = follow_refusal);

EVPG_SAGA(group_script,
		  .events = EVPG_REACTS(EVPG_ON("Started", follow_event), EVPG_ON("Told", follow_event)),
		  .key = group_of);

EVPG_SAGA(bad_key_script,
		  .events = EVPG_REACTS(EVPG_ON("Started", follow_event)),
		  .key = bad_key);

/* Ends the server, if it is told to. */
static void
survive(evpg_result *out, evpg_json *state, const evpg_event *event)
{
	if (evpg_bool(event->data, "poison"))
		abort();
	end_session(event->data);
	evpg_set_int(state, "seen", evpg_int(state, "seen") + 1);
}

EVPG_SAGA(poisonable,
		  .events = EVPG_REACTS(EVPG_ON("Served", survive)));

EVPG_SAGA(poisonable_key,
		  .events = EVPG_REACTS(EVPG_ON("Served", survive)),
		  .key = survived_key);
