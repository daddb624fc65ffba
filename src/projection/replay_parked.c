/*-------------------------------------------------------------------------
 *
 * replay_parked.c
 *		The SQL function that applies parked events again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/subtransaction.h"
#include "base/wakeup.h"
#include "common/hashfn.h"
#include "consumer/consumer.h"
#include "consumer/parked_event.h"
#include "miscadmin.h"
#include "projection/batch.h"
#include "subscription/replay.h"
#include "usercode/guard.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(evpg_replay_parked);

/* How many rows of evpg.parked_event are read at once. */
#define PAGE_ROWS 1000

typedef struct KeyEntry
{
	const char *key;
	char		status;
} KeyEntry;

#define SH_PREFIX keys
#define SH_ELEMENT_TYPE KeyEntry
#define SH_KEY_TYPE const char *
#define SH_KEY key
#define SH_HASH_KEY(table, key) hash_bytes((const unsigned char *) (key), strlen(key))
#define SH_EQUAL(table, a, b) (strcmp(a, b) == 0)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/*
 * Applies a parked event, given as one for a key, or as those for all keys of a
 * handler, and forgets it; returns false if it fails again, which is written down.
 */
static bool
replay_event(EvpgProjection *projection, List *parked)
{
	EvpgParkedEvent *first = linitial(parked);
	EvpgBatch	batch = EvpgBatchOfEvent(projection, first->position);
	ErrorData  *error;
	ListCell   *cell;

	batch.only_key = projection->handler_signature == NULL ? first->key : NULL;
	error = EvpgBatchTry(&batch);
	if (error != NULL && EvpgErrorIsCancel(error))
		EvpgRethrowError(error);
	foreach(cell, parked)
		EvpgParkedEventNoteReplay(lfirst(cell), error);
	return error == NULL;
}

/*
 * Lists what is replayed at once: the parked event at a place in the list, or, for a
 * handler, the event for all its keys, which follow each other.
 */
static List *
list_together(const EvpgProjection *projection, List *parked, int from)
{
	EvpgParkedEvent *first = list_nth(parked, from);
	List	   *together = list_make1(first);

	if (projection->handler_signature != NULL)
		for (int i = from + 1; i < list_length(parked); i++)
		{
			EvpgParkedEvent *other = list_nth(parked, i);

			if (other->position != first->position)
				break;
			together = lappend(together, other);
		}
	return together;
}

/* A replay of the parked events of a projection. */
typedef struct Replay
{
	EvpgProjection *projection;
	const char *only_key;		/* NULL: all */
	int64		max_count;		/* -1: no limit */
	int64		count;			/* events that it has applied */
	keys_hash  *left;			/* keys of events that stay parked */
} Replay;

/* Returns whether an event, given as its parked rows, is to be applied. */
static bool
is_wanted(const Replay *replay, List *parked)
{
	bool		wanted = (replay->only_key == NULL);
	ListCell   *cell;

	foreach(cell, parked)
	{
		EvpgParkedEvent *event = lfirst(cell);

		if (event->key != NULL && keys_lookup(replay->left, event->key) != NULL)
			return false;
		wanted |= event->key != NULL && replay->only_key != NULL && strcmp(event->key, replay->only_key) == 0;
	}
	return wanted;
}

/* Notes that an event stays parked: later ones of its keys wait for it. */
static void
leave_parked(Replay *replay, List *parked)
{
	ListCell   *cell;

	foreach(cell, parked)
	{
		EvpgParkedEvent *event = lfirst(cell);
		bool		found;

		if (event->key != NULL && keys_lookup(replay->left, event->key) == NULL)
			(void) keys_insert(replay->left, MemoryContextStrdup(replay->left->ctx, event->key), &found);
	}
}

/* Applies those parked events of a page that can be applied. */
static void
replay_page(Replay *replay, List *page)
{
	List	   *together;

	for (int i = 0; i < list_length(page) && replay->count != replay->max_count; i += list_length(together))
	{
		together = list_together(replay->projection, page, i);
		if (is_wanted(replay, together) && replay_event(replay->projection, together))
			replay->count++;
		else
			leave_parked(replay, together);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Applies the parked events of a projection.  Memory: those of a page, and the keys of
 * events that stay parked.
 */
static void
replay_all(Replay *replay, const char *name)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "EvpgReplayParked page", ALLOCSET_DEFAULT_SIZES);
	int64		after = 0;
	List	   *page;

	replay->left = keys_create(CurrentMemoryContext, 256, NULL);
	do
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		page = EvpgParkedEventListPage(name, after, PAGE_ROWS);
		if (page != NIL)
		{
			replay_page(replay, page);
			after = ((EvpgParkedEvent *) llast(page))->position;
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	} while (page != NIL && replay->count != replay->max_count);
	MemoryContextDelete(context);
}

/*
 * evpg_replay_parked(name, max_count, key)
 *		Applies parked events of a projection, of each key in order of position, up to
 *		the first that fails again; only those of a key unless key is NULL.  Returns how
 *		many were applied.  Those of a subscription are handed out again, to be
 *		acknowledged.  Owns the consumer.
 */
Datum
evpg_replay_parked(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "consumer name");
	Replay		replay = {
		.max_count = EvpgArgMaxCount(fcinfo, 1),
		.only_key = PG_ARGISNULL(2) ? NULL : EvpgArgKey(fcinfo, 2)
	};
	EvpgConsumer consumer;
	EvpgScope	scope;

	EvpgRefuseInProjection("replay events");
	EvpgBatchRequireNewSnapshots("evpg_replay_parked()");
	EvpgEnter(&scope, "evpg_replay_parked()");
	(void) EvpgConsumerLock(name, true);
	if (EvpgConsumerRead(name, &consumer) && consumer.is_subscription)
		replay.count = EvpgReplayRequest(name, replay.max_count, replay.only_key);
	else
	{
		replay.projection = EvpgProjectionGet(name, false);
		replay_all(&replay, name);
	}
	/* Workers that found the consumer owned meanwhile try it again. */
	EvpgWakeConsumersAtEnd();
	EvpgLeave(&scope);
	PG_RETURN_INT64(replay.count);
}
