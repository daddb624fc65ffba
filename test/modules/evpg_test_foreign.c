/*-------------------------------------------------------------------------
 *
 * evpg_test_foreign.c
 *		A definition in a library that is not a PostgreSQL module: nobody has
 *		said EVPG_MODULE.
 *
 *-------------------------------------------------------------------------
 */
#include "evpg.h"

static void
nothing(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	(void) out;
	(void) state;
	(void) command;
}

static void
same(evpg_json *state, const evpg_event *event)
{
	(void) state;
	(void) event;
}

EVPG_AGGREGATE(foreign,
			   .commands = EVPG_COMMANDS(EVPG_ON("Nothing", nothing)),
			   .events = EVPG_EVENTS(EVPG_ON("Same", same)));
