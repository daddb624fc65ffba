/*-------------------------------------------------------------------------
 *
 * rebuild_saga.c
 *		Rebuilds the state of instances of a saga: folds the events that they have
 *		reacted to once more, and keeps the state alone: nothing is sent, no timer is
 *		set, nothing is completed (rule 18).
 *
 * What rejection and timer handlers did to a state is not in the events, and is
 * lost.  The transaction holds the saga alone meanwhile.
 *
 * Memory: states of all instances that are rebuilt, in a context of the call.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/statement.h"
#include "base/testing.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "consumer/consumer.h"
#include "log/event_log.h"
#include "miscadmin.h"
#include "projection/batch.h"
#include "saga/due_item.h"
#include "saga/instance.h"
#include "saga/saga.h"
#include "saga/saga_code.h"
#include "saga/saga_keys.h"
#include "saga/saga_lock.h"
#include "storage/lockdefs.h"
#include "usercode/guard.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(evpg_rebuild_saga);

/* An instance that is rebuilt. */
typedef struct Rebuilt
{
	const char *key;
	EvpgInstance instance;		/* state NULL: not begun yet */
	char		status;
} Rebuilt;

#define SH_PREFIX rebuilt
#define SH_ELEMENT_TYPE Rebuilt
#define SH_KEY_TYPE const char *
#define SH_KEY key
#define SH_HASH_KEY(table, key) hash_bytes((const unsigned char *) (key), strlen(key))
#define SH_EQUAL(table, a, b) (strcmp(a, b) == 0)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static EvpgStatement select_instances = {
	.text = "SELECT key FROM evpg.saga_instance WHERE saga = $1 AND ($2 IS NULL OR key = $2)",
	.types = {TEXTOID, TEXTOID}
};

/* Reads the instances of a saga, or one of them, into CurrentMemoryContext. */
static rebuilt_hash *
read_instances(const char *saga, const char *key)
{
	MemoryContext caller = CurrentMemoryContext;
	rebuilt_hash *instances = rebuilt_create(caller, 256, NULL);
	List	   *keys = NIL;
	Datum		values[2] = {CStringGetTextDatum(saga)};
	char		nulls[2] = {' ', ' '};
	uint64		rows;
	ListCell   *cell;

	EvpgParameterText(values, nulls, 1, key);
	rows = EvpgStatementReadLatest(&select_instances, values, nulls);
	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);

		keys = lappend(keys, EvpgResultText(row, 1));
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
	foreach(cell, keys)
	{
		bool		found;
		Rebuilt    *rebuilt = rebuilt_insert(instances, lfirst(cell), &found);

		EvpgInstanceRead(saga, lfirst(cell), &rebuilt->instance);
		rebuilt->instance.state = NULL;
		EVPG_WAIT_POINT("saga_rebuild");
	}
	return instances;
}

static EvpgStatement select_unseen_events = {
	.text =
	"SELECT key, source_position"
	"  FROM evpg.dead_letter"
	" WHERE saga = $1 AND source_position IS NOT NULL AND (resolved_at IS NULL OR resolution = 'discarded')"
	"       AND created_at > (SELECT created_at FROM evpg.consumer WHERE name = $1)"
	" UNION ALL"
	" SELECT e.key, e.position"
	"  FROM evpg.saga_event e JOIN evpg.saga_instance i ON i.saga = e.saga AND i.key = e.key"
	" WHERE e.saga = $1 AND e.position <= i.position",
	.types = {TEXTOID}
};

/*
 * Lists events that instances have not reacted to, though they did to later ones, or
 * since these failed: EvpgDueItems in CurrentMemoryContext.  key NULL: no instance has.
 */
static List *
read_unseen(const char *saga)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		value = CStringGetTextDatum(saga);
	uint64		rows = EvpgStatementReadLatest(&select_unseen_events, &value, NULL);
	List	   *unseen = NIL;

	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);
		EvpgDueItem *item = palloc0(sizeof(EvpgDueItem));

		item->key = EvpgResultText(row, 1);
		item->position = EvpgResultInt64(row, 2);
		unseen = lappend(unseen, item);
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
	return unseen;
}

/* Whether an event is unseen by a key; key NULL: by all. */
static bool
is_unseen(List *unseen, const char *key, int64 position)
{
	ListCell   *cell;

	foreach(cell, unseen)
	{
		EvpgDueItem *item = lfirst(cell);

		if (item->position == position &&
			(key == NULL || item->key == NULL ? key == item->key : strcmp(item->key, key) == 0))
			return true;
	}
	return false;
}

/*
 * Folds an event for the instances that have reacted to it; returns their number.
 * The version of a completed instance may be gone, or pruned to 0: then its state
 * stays as it is.
 */
static int
fold_instances(rebuilt_hash *instances, List *unseen, EvpgSaga *saga, const EvpgEvent *event, MemoryContext context)
{
	ListCell   *cell;
	int			count = 0;

	foreach(cell, EvpgSagaKeys(saga, event))
	{
		Rebuilt    *rebuilt = rebuilt_lookup(instances, lfirst(cell));
		EvpgReaction reaction;

		if (rebuilt == NULL || rebuilt->instance.saga_version != saga->version ||
			event->position > rebuilt->instance.position ||
			(rebuilt->instance.state == NULL && !EvpgSagaStarts(saga, event)) ||
			is_unseen(unseen, rebuilt->key, event->position))
			continue;
		EvpgSagaCodeOnEvent(saga, rebuilt->key,
							rebuilt->instance.state != NULL ? rebuilt->instance.state : saga->initial_state,
							event, &reaction);
		if (reaction.state != NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(context);
			Jsonb	   *state = palloc(VARSIZE(reaction.state));

			memcpy(state, reaction.state, VARSIZE(reaction.state));
			rebuilt->instance.state = state;
			MemoryContextSwitchTo(old);
		}
		count++;
	}
	return count;
}

/* Folds the events of the log after one position and up to another; returns the number of reactions. */
static int64
replay_saga(const char *saga, rebuilt_hash *instances, int64 after, int64 upto)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext event_context = AllocSetContextCreate(context, "EvpgRebuildSaga event", ALLOCSET_DEFAULT_SIZES);
	List	   *versions = EvpgSagaVersions(saga);
	List	   *unseen = read_unseen(saga);
	EvpgLogFilter filter = {.after = after, .upto = upto};
	int64		count = 0;

	PushActiveSnapshot(GetTransactionSnapshot());
	while (filter.after < upto)
	{
		EvpgLogScan *scan = EvpgLogScanAll(&filter);
		EvpgEvent	event;

		while (EvpgLogScanNext(scan, &event))
		{
			ListCell   *cell;

			MemoryContextSwitchTo(event_context);
			foreach(cell, versions)
				if (EvpgSagaTakes(lfirst(cell), &event) && !is_unseen(unseen, NULL, event.position))
				count += fold_instances(instances, unseen, lfirst(cell), &event, context);
			MemoryContextSwitchTo(context);
			MemoryContextReset(event_context);
		}
		filter.after = EvpgLogScanReached(scan);
		EvpgLogScanEnd(scan);
	}
	PopActiveSnapshot();
	return count;
}

static EvpgStatement update_instance_state = {
	.text =
	"UPDATE evpg.saga_instance SET state = $3, updated_at = evpg.clock_timestamp()"
	" WHERE saga = $1 AND key = $2 AND saga_version <> 0",
	.types = {TEXTOID, TEXTOID, JSONBOID}
};

static void
write_states(const char *saga, rebuilt_hash *instances)
{
	rebuilt_iterator iterator;
	Rebuilt    *rebuilt;

	rebuilt_start_iterate(instances, &iterator);
	while ((rebuilt = rebuilt_iterate(instances, &iterator)) != NULL)
	{
		Datum		values[3] = {CStringGetTextDatum(saga), CStringGetTextDatum(rebuilt->key)};

		if (rebuilt->instance.state == NULL)
			continue;
		values[2] = JsonbPGetDatum(rebuilt->instance.state);
		(void) EvpgStatementRun(&update_instance_state, values, NULL);
		EvpgStatementDone();
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Rebuilds the state of one instance, or of all; returns how many reactions were
 * repeated.  Locks the consumer, then the saga, so that no instance works meanwhile.
 */
Datum
evpg_rebuild_saga(PG_FUNCTION_ARGS)
{
	char	   *saga = EvpgArgName(fcinfo, 0, "saga name");
	char	   *key = PG_ARGISNULL(1) ? NULL : EvpgArgKey(fcinfo, 1);
	rebuilt_hash *instances;
	EvpgConsumer consumer;
	int64		count;
	EvpgScope	scope;

	EvpgRefuseInProjection("rebuild sagas");
	EvpgRefuseInSaga("rebuild sagas");
	EvpgEnter(&scope, "evpg_rebuild_saga()");
	EvpgBatchRequireNewSnapshots();
	(void) EvpgConsumerLock(saga, true);
	(void) EvpgSagaLock(saga, ExclusiveLock, true);
	(void) EvpgSagaGet(saga, 0, false);
	if (!EvpgConsumerRead(saga, &consumer))
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_UNKNOWN_CONSUMER),
				 errmsg("the row of saga \"%s\" in evpg.consumer does not exist", saga),
				 errhint("Drop the saga, and register it again.")));
	instances = read_instances(saga, key);
	count = replay_saga(saga, instances, consumer.start_position, consumer.checkpoint);
	write_states(saga, instances);
	EvpgLeave(&scope);
	PG_RETURN_INT64(count);
}
