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
#include "base/names.h"
#include "base/subtransaction.h"
#include "base/wakeup.h"
#include "consumer/consumer.h"
#include "consumer/parked_event.h"
#include "miscadmin.h"
#include "projection/batch.h"
#include "usercode/guard.h"

PG_FUNCTION_INFO_V1(evpg_replay_parked);

/*
 * Applies a parked event, given as one for a key, or as those for all keys of a
 * handler, and forgets it; returns false if it fails again, which is written down.
 */
static bool
replay_event(EvpgProjection *projection, List *parked)
{
	EvpgParkedEvent *first = linitial(parked);
	ListCell   *cell;
	EvpgBatch	batch = {
		.projection = projection,
		.build = projection->build,
		.after = first->position - 1,
		.upto = first->position,
		.max_events = 1,
		.only_key = projection->handler_signature == NULL ? first->key : NULL,
		.send = true
	};
	ErrorData  *error = EvpgBatchTry(&batch);

	if (error != NULL && EvpgErrorIsCancel(error))
		ReThrowError(error);
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

/* Whether a key of parked events is in a list of keys. */
static bool
has_listed_key(List *keys, List *parked)
{
	ListCell   *cell;

	foreach(cell, keys == NIL ? NIL : parked)
	{
		EvpgParkedEvent *event = lfirst(cell);

		if (event->key != NULL && EvpgNamesHave(keys, event->key))
			return true;
	}
	return false;
}

/*
 * evpg_replay_parked(name, max_count, key)
 *		Applies parked events of a projection, of each key in order of position, up to
 *		the first that fails again; only those of a key unless key is NULL.  Returns how
 *		many were applied.  Owns the consumer.
 */
Datum
evpg_replay_parked(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "consumer name");
	int			max_count = PG_ARGISNULL(1) ? PG_INT32_MAX : PG_GETARG_INT32(1);
	char	   *only_key = PG_ARGISNULL(2) ? NULL : EvpgArgKey(fcinfo, 2);
	EvpgProjection *projection;
	List	   *all;
	List	   *together;
	List	   *left = NIL;		/* keys of events that stay parked */
	int64		count = 0;
	EvpgScope	scope;

	if (max_count < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_count must not be negative")));
	EvpgRefuseInProjection("replay events");
	EvpgBatchRequireNewSnapshots();
	EvpgEnter(&scope, "evpg_replay_parked()");
	(void) EvpgConsumerLock(name, true);
	projection = EvpgProjectionGet(name, false);
	all = EvpgParkedEventList(name, PG_INT64_MAX);
	for (int i = 0; i < list_length(all) && count < max_count; i += list_length(together))
	{
		ListCell   *cell;

		together = list_together(projection, all, i);
		if ((only_key == NULL || has_listed_key(list_make1(only_key), together)) && !has_listed_key(left, together) &&
			replay_event(projection, together))
			count++;
		else
			foreach(cell, together)
		{
			EvpgParkedEvent *event = lfirst(cell);

			if (event->key != NULL)
				left = lappend(left, event->key);
		}
		CHECK_FOR_INTERRUPTS();
	}
	/* Workers that found the consumer owned meanwhile try it again. */
	EvpgWakeConsumersAtEnd();
	EvpgLeave(&scope);
	PG_RETURN_INT64(count);
}
