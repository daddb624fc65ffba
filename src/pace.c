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
#define MAX_EVENTS 500000

/*
 * A batch should not last longer, in milliseconds.  A rebuild writes each row
 * once in a batch, so longer ones are a gain, and nobody waits for its events.
 */
#define LONGEST 200
#define LONGEST_OF_REBUILD 1000

static EvpgPace *
start(HTAB **paces, const char *name, double longest)
{
	EvpgPace   *pace;
	bool		found;

	if (*paces == NULL)
	{
		HASHCTL		control = {.keysize = EVPG_MAX_NAME + 1, .entrysize = sizeof(EvpgPace)};

		*paces = hash_create("EvpgPace", 16, &control, HASH_ELEM | HASH_STRINGS);
	}
	pace = hash_search(*paces, name, HASH_ENTER, &found);
	if (!found)
		pace->max_events = FIRST_EVENTS;
	pace->longest = longest;
	INSTR_TIME_SET_CURRENT(pace->started);
	return pace;
}

/* A batch of a projection begins.  The result lives as long as the session. */
EvpgPace *
EvpgPaceStart(const char *name)
{
	static HTAB *paces = NULL;

	return start(&paces, name, LONGEST);
}

/* The same of its rebuild. */
EvpgPace *
EvpgPaceStartRebuild(const char *name)
{
	static HTAB *paces = NULL;

	return start(&paces, name, LONGEST_OF_REBUILD);
}

/* It has succeeded, and took so many events. */
void
EvpgPaceEnd(EvpgPace *pace, int64 events)
{
	instr_time	lasted;

	INSTR_TIME_SET_CURRENT(lasted);
	INSTR_TIME_SUBTRACT(lasted, pace->started);
	if (INSTR_TIME_GET_MILLISEC(lasted) > pace->longest)
		pace->max_events = Max(pace->max_events / 2, MIN_EVENTS);
	else if (INSTR_TIME_GET_MILLISEC(lasted) < pace->longest / 3 && events >= pace->max_events)
		pace->max_events = Min(pace->max_events * 2, MAX_EVENTS);
}
