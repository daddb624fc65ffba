/*-------------------------------------------------------------------------
 *
 * pace.c
 *		How many events of a projection a batch takes, which adapts to how long
 *		the last one lasted: whoever wants to pause, change or drop a projection
 *		waits for a batch, while small ones cost a commit each.
 *
 * Each session finds out by itself, and remembers it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "pace.h"
#include "utils/hsearch.h"

#define MIN_EVENTS 10
#define FIRST_EVENTS 100
#define MAX_EVENTS 20000

/* A batch should last so long, in milliseconds. */
#define SHORT_BATCH 50
#define LONG_BATCH 200

/* A batch of a projection begins.  The result lives as long as the session. */
EvpgPace *
EvpgPaceStart(const char *name)
{
	static HTAB *paces = NULL;
	EvpgPace   *pace;
	bool		found;

	if (paces == NULL)
	{
		HASHCTL		control = {.keysize = EVPG_MAX_NAME + 1, .entrysize = sizeof(EvpgPace)};

		paces = hash_create("EvpgPace", 16, &control, HASH_ELEM | HASH_STRINGS);
	}
	pace = hash_search(paces, name, HASH_ENTER, &found);
	if (!found)
		pace->max_events = FIRST_EVENTS;
	INSTR_TIME_SET_CURRENT(pace->started);
	return pace;
}

/* It has succeeded, and took so many events. */
void
EvpgPaceEnd(EvpgPace *pace, int64 events)
{
	instr_time	lasted;

	INSTR_TIME_SET_CURRENT(lasted);
	INSTR_TIME_SUBTRACT(lasted, pace->started);
	if (INSTR_TIME_GET_MILLISEC(lasted) > LONG_BATCH)
		pace->max_events = Max(pace->max_events / 2, MIN_EVENTS);
	else if (INSTR_TIME_GET_MILLISEC(lasted) < SHORT_BATCH && events >= pace->max_events)
		pace->max_events = Min(pace->max_events * 2, MAX_EVENTS);
}
