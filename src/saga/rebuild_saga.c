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
 * Memory: states of as many instances as MAX_BYTES allows, in a context of their own;
 * if there are more, the log is read again for each part of them.
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
#include "log/fence.h"
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

/* So many bytes of states are rebuilt at once; each time the log is read once. */
#define MAX_BYTES (32 * 1024 * 1024)

/* So many keys are read at once. */
#define PAGE_KEYS 1000

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

/* Returns the first key that can follow a key: none has control characters. */
static const char *
next_key(const char *key)
{
	return psprintf("%s\001", key);
}

static EvpgStatement select_instances = {
	.text =
	"SELECT key"
	"  FROM evpg.saga_instance"
	" WHERE saga = $1 AND ($2 IS NULL OR key = $2) AND key >= $3 ORDER BY key LIMIT $4",
	.types = {TEXTOID, TEXTOID, TEXTOID, INT8OID}
};

/* Lists the first keys of instances from a key on, or one key, in CurrentMemoryContext. */
static List *
list_keys(const char *saga, const char *only_key, const char *from)
{
	Datum		values[4] = {CStringGetTextDatum(saga)};
	char		nulls[4] = {' ', ' ', ' ', ' '};

	EvpgParameterText(values, nulls, 1, only_key);
	values[2] = CStringGetTextDatum(from);
	values[3] = Int64GetDatum(PAGE_KEYS);
	return EvpgStatementReadTexts(&select_instances, values, nulls);
}

/* Adds an instance without its state to those that are rebuilt, and returns about how much memory it will take. */
static Size
add_instance(rebuilt_hash *instances, const char *saga, const char *key)
{
	MemoryContext row = AllocSetContextCreate(CurrentMemoryContext, "EvpgRebuildSaga row", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(row);
	bool		found;
	Rebuilt    *rebuilt;
	EvpgInstance instance;
	Size		size = sizeof(Rebuilt) + strlen(key);

	EvpgInstanceRead(saga, key, &instance);
	if (instance.state != NULL)
		size += VARSIZE(instance.state);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(row);
	rebuilt = rebuilt_insert(instances, key, &found);
	rebuilt->instance = instance;
	rebuilt->instance.state = rebuilt->instance.undo = NULL;
	rebuilt->instance.tuple = NULL;
	return size;
}

/*
 * Reads instances of a saga from the key *from on, or one of them, into
 * CurrentMemoryContext: as many as memory allows.  Sets *last to the last key.
 */
static rebuilt_hash *
read_instances(const char *saga, const char *only_key, const char *from, const char **last)
{
	rebuilt_hash *instances = rebuilt_create(CurrentMemoryContext, 256, NULL);
	Size		bytes = 0;
	List	   *keys;

	do
	{
		ListCell   *cell;

		keys = list_keys(saga, only_key, from);
		foreach(cell, keys)
		{
			bytes += add_instance(instances, saga, lfirst(cell));
			*last = lfirst(cell);
			EVPG_WAIT_POINT("saga_rebuild");
			if (bytes >= MAX_BYTES)
				break;
		}
		if (keys != NIL)
			from = next_key(*last);
	} while (list_length(keys) == PAGE_KEYS && bytes < MAX_BYTES);
	return instances;
}

static EvpgStatement select_unseen_events = {
	.text =
	"SELECT key, source_position"
	"  FROM evpg.dead_letter"
	" WHERE saga = $1 AND source_position IS NOT NULL AND (resolved_at IS NULL OR resolution = 'discarded')"
	"       AND created_at > (SELECT created_at FROM evpg.consumer WHERE name = $1)"
	"       AND (key IS NULL OR key BETWEEN $2 AND $3)"
	" UNION ALL"
	" SELECT e.key, e.position"
	"  FROM evpg.saga_event e JOIN evpg.saga_instance i ON i.saga = e.saga AND i.key = e.key"
	" WHERE e.saga = $1 AND e.position <= i.position AND e.key BETWEEN $2 AND $3",
	.types = {TEXTOID, TEXTOID, TEXTOID}
};

/*
 * Lists events that instances have not reacted to, though they did to later ones, or
 * since these failed: EvpgDueItems in CurrentMemoryContext, for the keys from one to
 * another.  key NULL: no instance has.
 */
static List *
read_unseen(const char *saga, const char *from, const char *last)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[3] = {CStringGetTextDatum(saga), CStringGetTextDatum(from), CStringGetTextDatum(last)};
	uint64		rows = EvpgStatementReadLatest(&select_unseen_events, values, NULL);
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

/* Returns whether an event is unseen by a key; key NULL: by all. */
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
			if (rebuilt->instance.state != NULL)
				pfree(rebuilt->instance.state);
			rebuilt->instance.state = state;
			MemoryContextSwitchTo(old);
		}
		count++;
	}
	return count;
}

/*
 * Folds the events of the log after one position and up to another for instances, of
 * which unseen lists what they have not reacted to; returns the number of reactions.
 */
static int64
replay_saga(const char *saga, rebuilt_hash *instances, List *unseen, int64 after, int64 upto)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext event_context = AllocSetContextCreate(context, "EvpgRebuildSaga event", ALLOCSET_DEFAULT_SIZES);
	List	   *versions = EvpgSagaVersions(saga);
	EvpgLogFilter filter = EvpgSagaFilter(versions, after, upto);
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

/* Rebuilds one instance, or all, part by part; returns the number of reactions. */
static int64
rebuild_instances(const char *saga, const char *only_key, const EvpgConsumer *consumer)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "EvpgRebuildSaga", ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = CurrentMemoryContext;
	const char *from = "";
	int64		upto = EvpgSagaGet(saga, 0, false)->is_inline ? EvpgFenceLastDrawn() : consumer->checkpoint;
	int64		count = 0;

	while (from != NULL)
	{
		const char *last = NULL;
		rebuilt_hash *instances;

		MemoryContextSwitchTo(context);
		instances = read_instances(saga, only_key, from, &last);
		if (last != NULL)
		{
			count += replay_saga(saga, instances, read_unseen(saga, from, last), consumer->start_position, upto);
			write_states(saga, instances);
		}
		MemoryContextSwitchTo(caller);
		from = last == NULL || only_key != NULL ? NULL : next_key(last);
		MemoryContextReset(context);
	}
	MemoryContextDelete(context);
	return count;
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
	EvpgConsumer consumer;
	int64		count;
	EvpgScope	scope;

	EvpgRefuseInProjection("rebuild sagas");
	EvpgRefuseInSaga("rebuild sagas");
	EvpgEnter(&scope, "evpg_rebuild_saga()");
	EvpgBatchRequireNewSnapshots("evpg_rebuild_saga()");
	(void) EvpgConsumerLock(saga, true);
	EvpgSagaLockOut(saga);
	(void) EvpgSagaGet(saga, 0, false);
	if (!EvpgConsumerRead(saga, &consumer))
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_UNKNOWN_CONSUMER),
				 errmsg("the row of saga \"%s\" in evpg.consumer does not exist", saga),
				 errhint("Drop the saga, and register it again.")));
	count = rebuild_instances(saga, key, &consumer);
	EvpgLeave(&scope);
	PG_RETURN_INT64(count);
}
