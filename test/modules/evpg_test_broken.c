/*-------------------------------------------------------------------------
 *
 * evpg_test_broken.c
 *		Definitions that evpg must refuse, one symbol each, and two odd ones
 *		that it must accept (larger, older_fold).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "fmgr.h"

#include "evpg.h"

EVPG_MODULE;

static void
nothing(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
}

static void
same(evpg_json *state, const evpg_event *event)
{
}

#define COMMANDS	EVPG_COMMANDS(EVPG_ON("Nothing", nothing))
#define EVENTS		EVPG_EVENTS(EVPG_ON("Same", same))

/* A definition whose header says what it should not. */
#define WITH_HEADER(symbol, ...) \
	static const evpg_aggregate_definition symbol##_definition = { \
		.header = {__VA_ARGS__}, .commands = COMMANDS, .events = EVENTS}; \
	extern EVPG_EXPORT const evpg_header *evpg_definition_##symbol(void); \
	const evpg_header *evpg_definition_##symbol(void) { return &symbol##_definition.header; } \
	extern const evpg_header *evpg_definition_##symbol(void)

WITH_HEADER(wrong_magic, 0x12345678, EVPG_ABI_MAJOR, EVPG_ABI_MINOR, sizeof(evpg_aggregate_definition),
			EVPG_KIND_AGGREGATE);
WITH_HEADER(no_magic, 0, 0, 0, 0, 0);
WITH_HEADER(older_major, EVPG_MAGIC, EVPG_ABI_MAJOR - 1, EVPG_ABI_MINOR, sizeof(evpg_aggregate_definition),
			EVPG_KIND_AGGREGATE);
WITH_HEADER(newer_major, EVPG_MAGIC, EVPG_ABI_MAJOR + 1, EVPG_ABI_MINOR, sizeof(evpg_aggregate_definition),
			EVPG_KIND_AGGREGATE);
WITH_HEADER(newer_minor, EVPG_MAGIC, EVPG_ABI_MAJOR, EVPG_ABI_MINOR + 1, sizeof(evpg_aggregate_definition),
			EVPG_KIND_AGGREGATE);
WITH_HEADER(too_small, EVPG_MAGIC, EVPG_ABI_MAJOR, EVPG_ABI_MINOR, sizeof(evpg_header), EVPG_KIND_AGGREGATE);
WITH_HEADER(a_projection, EVPG_MAGIC, EVPG_ABI_MAJOR, EVPG_ABI_MINOR, sizeof(evpg_aggregate_definition),
			EVPG_KIND_PROJECTION);
WITH_HEADER(a_saga, EVPG_MAGIC, EVPG_ABI_MAJOR, EVPG_ABI_MINOR, sizeof(evpg_aggregate_definition), EVPG_KIND_SAGA);
WITH_HEADER(a_riddle, EVPG_MAGIC, EVPG_ABI_MAJOR, EVPG_ABI_MINOR, sizeof(evpg_aggregate_definition), 99);

extern EVPG_EXPORT const evpg_header *evpg_definition_nowhere(void);
const evpg_header *
evpg_definition_nowhere(void)
{
	return NULL;
}

/* An ordinary function: not a definition, never to be called. */
extern EVPG_EXPORT void plain_function(void);
void
plain_function(void)
{
	abort();
}

EVPG_AGGREGATE(no_commands, .events = EVENTS);
EVPG_AGGREGATE(no_events, .commands = COMMANDS);
EVPG_AGGREGATE(no_handler, .commands = EVPG_COMMANDS(EVPG_ON("Nothing", NULL)), .events = EVENTS);
EVPG_AGGREGATE(no_fold, .commands = COMMANDS, .events = EVPG_EVENTS(EVPG_ON("Same", NULL)));
EVPG_AGGREGATE(array_state, .initial_state = "[1]", .commands = COMMANDS, .events = EVENTS);
EVPG_AGGREGATE(null_state, .initial_state = "null", .commands = COMMANDS, .events = EVENTS);
EVPG_AGGREGATE(unfinished_state, .initial_state = "{\"a\":", .commands = COMMANDS, .events = EVENTS);

EVPG_AGGREGATE(latin1_state, .initial_state = "{\"a\": \"caf\xe9\"}", .commands = COMMANDS, .events = EVENTS);
EVPG_AGGREGATE(zero_state, .initial_state = "{\"a\": \"\\u0000\"}", .commands = COMMANDS, .events = EVENTS);
EVPG_AGGREGATE(huge_number_state, .initial_state = "{\"a\": 1e400000}", .commands = COMMANDS, .events = EVENTS);
EVPG_AGGREGATE(empty_command, .commands = EVPG_COMMANDS(EVPG_ON("", nothing)), .events = EVENTS);
EVPG_AGGREGATE(latin1_command, .commands = EVPG_COMMANDS(EVPG_ON("caf\xe9", NULL)), .events = EVENTS);
EVPG_AGGREGATE(latin1_event, .commands = COMMANDS, .events = EVPG_EVENTS(EVPG_ON("caf\xe9", same)));

/* Of a later minor version that has more members, but says the ABI of today: they are not read. */
typedef struct larger_aggregate
{
	evpg_aggregate_definition known;
	void	   *later[4];
} larger_aggregate;

static const larger_aggregate larger_definition = {
	.known = {
		.header = {EVPG_MAGIC, EVPG_ABI_MAJOR, EVPG_ABI_MINOR, sizeof(larger_aggregate), EVPG_KIND_AGGREGATE},
		.commands = COMMANDS,
		.events = EVENTS
	}
};

extern EVPG_EXPORT const evpg_header *evpg_definition_larger(void);
const evpg_header *
evpg_definition_larger(void)
{
	return &larger_definition.known.header;
}

/* Of the time before a member was added: what lies there is not read. */
static void
never_called(evpg_result *out, const evpg_command *command)
{
	abort();
}

static const evpg_aggregate_definition before_boundaries_definition = {
	.header = {EVPG_MAGIC, EVPG_ABI_MAJOR, EVPG_ABI_MINOR, offsetof(evpg_aggregate_definition, boundary),
	EVPG_KIND_AGGREGATE},
	.commands = COMMANDS,
	.events = EVENTS,
	.boundary = never_called
};

extern EVPG_EXPORT const evpg_header *evpg_definition_before_boundaries(void);
const evpg_header *
evpg_definition_before_boundaries(void)
{
	return &before_boundaries_definition.header;
}

/* Neither is a version: both count as 1. */
EVPG_AGGREGATE(older_fold, .reducer_version = -5, .commands = COMMANDS, .events = EVENTS);

/* ------------------------------------------------------------------ sagas */

static void
react(evpg_result *out, evpg_json *state, const evpg_event *event)
{
}

EVPG_SAGA(saga_no_events, .initial_state = "{}");
static const char *const no_types[1];
static const evpg_react_entry no_reacts[1];

EVPG_SAGA(saga_empty_events, .events = no_reacts);
EVPG_SAGA(saga_empty_types, .aggregate_types = no_types, .events = EVPG_REACTS(EVPG_ON("Same", react)));
EVPG_SAGA(saga_no_reaction, .events = EVPG_REACTS(EVPG_ON("Same", react), EVPG_START("Started", NULL)));
EVPG_SAGA(saga_no_timer, .events = EVPG_REACTS(EVPG_ON("Same", react)), .timers = EVPG_TIMERS(EVPG_ON("bell", NULL)));
static void
project(evpg_result *out, evpg_json *state, const evpg_event *event)
{
}

EVPG_PROJECTION(projection_latin1_state, .initial_state = "{\"a\": \"caf\xe9\"}",
				.events = EVPG_PROJECTS(EVPG_ON("Same", project)));
EVPG_PROJECTION(projection_no_events, .initial_state = "{}");
static const evpg_project_entry no_projects[1];

EVPG_PROJECTION(projection_empty_events, .events = no_projects);
EVPG_PROJECTION(projection_empty_types, .aggregate_types = no_types,
				.events = EVPG_PROJECTS(EVPG_ON("Same", project)));
EVPG_PROJECTION(projection_latin1_event, .events = EVPG_PROJECTS(EVPG_ON("caf\xe9", project)));
EVPG_PROJECTION(projection_latin1_type, .aggregate_types = EVPG_TYPES("caf\xe9"),
				.events = EVPG_PROJECTS(EVPG_ON("Same", project)));
EVPG_SAGA(saga_latin1_state, .initial_state = "{\"a\": \"caf\xe9\"}", .events = EVPG_REACTS(EVPG_ON("Same", react)));
EVPG_SAGA(saga_latin1_event, .events = EVPG_REACTS(EVPG_ON("caf\xe9", react)));
EVPG_SAGA(saga_latin1_timer, .events = EVPG_REACTS(EVPG_ON("Same", react)),
		  .timers = EVPG_TIMERS(EVPG_ON("caf\xe9", NULL)));
EVPG_SAGA(saga_latin1_type, .aggregate_types = EVPG_TYPES("caf\xe9"), .events = EVPG_REACTS(EVPG_ON("Same", react)));
EVPG_SAGA(saga_array_state, .initial_state = "[1]", .events = EVPG_REACTS(EVPG_ON("Same", react)));

/* Without the last member. */
static const evpg_saga_definition saga_too_small_definition = {
	.header = {EVPG_MAGIC, EVPG_ABI_MAJOR, EVPG_ABI_MINOR, offsetof(evpg_saga_definition, rejected), EVPG_KIND_SAGA},
	.events = EVPG_REACTS(EVPG_ON("Same", react))
};

extern EVPG_EXPORT const evpg_header *evpg_definition_saga_too_small(void);
const evpg_header *
evpg_definition_saga_too_small(void)
{
	return &saga_too_small_definition.header;
}
