/*-------------------------------------------------------------------------
 *
 * route.c
 *		Gives the events of the log to instances of sagas: one owner of a saga reads
 *		them in the order of their positions, finds their keys (saga_keys.c), and
 *		writes to evpg.saga_event which instances have to react to which event; the
 *		checkpoint moves in the same transaction (rule 16).  So instances can then
 *		react side by side (dispatch.c), and one that fails delays no other.
 *
 * An event goes to the keys that any registered version of the saga finds in it.
 * One whose keys cannot be found becomes a dead letter without a key.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/names.h"
#include "base/retry.h"
#include "base/statement.h"
#include "base/subtransaction.h"
#include "base/testing.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "consumer/checkpoint.h"
#include "consumer/consumer.h"
#include "consumer/crash_suspects.h"
#include "consumer/last_worker.h"
#include "log/event_log.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "saga/dead_letter.h"
#include "saga/due_event.h"
#include "saga/route.h"
#include "saga/saga.h"
#include "saga/saga_code.h"
#include "saga/saga_keys.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Events of a batch, at most. */
#define BATCH_EVENTS 1000

/* What a batch has found. */
typedef struct Routes
{
	List	   *keys;			/* of char * */
	List	   *positions;		/* of int64 *, of the same length */
	int64		events;
	int64		dead_letters;
} Routes;

/* The keys of an event, by one version of the saga: what may fail. */
typedef struct KeySearch
{
	EvpgSaga   *saga;
	const EvpgEvent *event;
	List	   *keys;
} KeySearch;

static void
find_event_keys(void *arg)
{
	KeySearch  *search = arg;

	search->keys = EvpgSagaKeys(search->saga, search->event);
}

/*
 * EvpgRouteGiveUp
 *		Writes a dead letter without a key, about an event whose keys cannot be found.
 *		Rethrows a transient error, and a cancel.
 */
void
EvpgRouteGiveUp(const EvpgSaga *saga, const EvpgEvent *event, int attempts, const ErrorData *error)
{
	EvpgDueItem item = {.saga = saga->name, .position = event->position, .attempts = attempts};
	EvpgDeadLetter letter = {.item = &item, .error = error};
	int64		dead_letter_id;

	/* A transient error is for the next pass. */
	if (EvpgErrorIsCancel(error) || EvpgErrorIsTransient(error))
		EvpgRethrowError(error);
	dead_letter_id = EvpgDeadLetterWrite(&letter);
	EVPG_WAIT_POINT("saga_dead_lettered");
	ereport(EvpgReportLevel(),
			(errmsg("saga \"%s\" of database \"%s\" has dead letter " INT64_FORMAT, saga->name,
					get_database_name(MyDatabaseId), dead_letter_id),
			 errdetail("No key was found for the event at position " INT64_FORMAT
					   ".  The error has SQLSTATE %s; evpg.dead_letter has the rest.",
					   event->position, unpack_sql_state(error->sqlerrcode)),
			 errhint("When the cause is gone, use evpg_retry_dead_letter(); or evpg_discard_dead_letter().")));
}

/* Returns whether the last event that was routed has been given to an instance already. */
static bool
is_routed(const Routes *routes, const char *key, int64 position)
{
	for (int i = list_length(routes->positions) - 1; i >= 0; i--)
	{
		if (*(int64 *) list_nth(routes->positions, i) != position)
			return false;
		if (strcmp(list_nth(routes->keys, i), key) == 0)
			return true;
	}
	return false;
}

static void
upcast_event(void *event)
{
	EvpgUpcastEvent(event);
}

/*
 * Upcasts an event; false if that has failed, and then it is given up as one whose keys
 * cannot be found.
 */
static bool
try_to_upcast(Routes *routes, List *versions, EvpgEvent *event)
{
	ErrorData  *error;
	ListCell   *cell;

	if (likely(event->chain == NULL))
		return true;
	error = EvpgSubtransactionRun(upcast_event, event);
	if (error == NULL)
		return true;
	foreach(cell, versions)
	{
		if (!EvpgSagaTakes(lfirst(cell), event))
			continue;
		EvpgRouteGiveUp(lfirst(cell), event, 1, error);
		routes->dead_letters++;
		break;
	}
	return false;
}

/* Adds the routes of an event, to the lists in context. */
static void
route_event(Routes *routes, List *versions, EvpgEvent *event, MemoryContext context)
{
	ListCell   *cell;
	List	   *found = NIL;

	routes->events++;
	EvpgOccupationSteps++;
	if (!try_to_upcast(routes, versions, event))
		return;
	foreach(cell, versions)
	{
		KeySearch	search = {.saga = lfirst(cell), .event = event};
		ErrorData  *error;

		if (!EvpgSagaTakes(search.saga, event))
			continue;

		error = EvpgSubtransactionRun(find_event_keys, &search);
		if (error != NULL)
		{
			EvpgRouteGiveUp(search.saga, event, 1, error);
			routes->dead_letters++;
			return;
		}

		found = list_concat(found, search.keys);
	}
	foreach(cell, found)
	{
		MemoryContext old;
		int64	   *position;

		if (is_routed(routes, lfirst(cell), event->position))
			continue;
		old = MemoryContextSwitchTo(context);
		position = palloc(sizeof(int64));
		*position = event->position;
		routes->keys = lappend(routes->keys, pstrdup(lfirst(cell)));
		routes->positions = lappend(routes->positions, position);
		MemoryContextSwitchTo(old);
	}
}

static EvpgStatement insert_events = {
	.text =
	"INSERT INTO evpg.saga_event (saga, key, position)"
	" SELECT $1, k.key, k.position"
	"   FROM ROWS FROM (unnest($2), unnest($3)) AS k (key, position)"
	"  WHERE NOT EXISTS (SELECT FROM evpg.saga_instance i"
	"                     WHERE i.saga = $1 AND i.key = k.key AND i.status = 'completed')"
	" ON CONFLICT (saga, key, position) DO NOTHING",
	.types = {TEXTOID, TEXTARRAYOID, INT8ARRAYOID}
};

/* Gives events to instances that are not completed, each once; keys and positions are of the same length. */
static void
insert_saga_events(const char *saga, List *keys, List *positions)
{
	Datum		values[3];
	Datum	   *elements = palloc(sizeof(Datum) * list_length(positions));
	ListCell   *cell;

	foreach(cell, positions)
		elements[foreach_current_index(cell)] = Int64GetDatum(*(int64 *) lfirst(cell));
	values[0] = CStringGetTextDatum(saga);
	values[1] = EvpgNamesToArray(keys);
	values[2] = PointerGetDatum(construct_array(elements, list_length(positions), INT8OID, 8, true, TYPALIGN_DOUBLE));
	EvpgStatementExecute(&insert_events, values, NULL);
}

/*
 * Routes a batch of a saga, whose consumer is locked, up to a stable position;
 * returns how far it came.  *dead_letters grows by those that it writes.
 */
static int64
route_batch(const EvpgConsumer *consumer, int64 stable, int limit, int64 *dead_letters, TimestampTz *next)
{
	EvpgCheckpoint *checkpoint = EvpgCheckpointGet(consumer->name);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "EvpgRoute", ALLOCSET_DEFAULT_SIZES);
	MemoryContext event_context = AllocSetContextCreate(context, "EvpgRoute event", ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(context);
	List	   *versions = EvpgSagaVersions(consumer->name);
	EvpgLogFilter filter = EvpgSagaFilter(versions, EvpgCheckpointPosition(checkpoint, consumer), stable);
	Routes		routes = {0};
	EvpgLogScan *scan;
	EvpgEvent	event;
	int64		reached;

	filter.leaves_upcasting = true;
	PushActiveSnapshot(GetTransactionSnapshot());
	scan = EvpgLogScanAll(&filter);
	while (routes.events < limit && EvpgLogScanNext(scan, &event))
	{
		MemoryContextSwitchTo(event_context);
		route_event(&routes, versions, &event, context);
		MemoryContextSwitchTo(context);
		MemoryContextReset(event_context);
	}
	reached = EvpgLogScanReached(scan);
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
	if (routes.keys != NIL && IsolationUsesXactSnapshot())
		insert_saga_events(consumer->name, routes.keys, routes.positions);
	else if (routes.keys != NIL)
		EvpgDueEventInsertAll(consumer->name, routes.keys, routes.positions);
	EvpgCheckpointAdvanceLazily(checkpoint, consumer, reached, routes.events, next);
	/* Others can do a part. */
	if (list_length(routes.keys) > 1)
		EvpgWakeConsumersAtEnd();
	if (routes.keys != NIL)
		EVPG_WAIT_POINT("saga_routed");
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	*dead_letters += routes.dead_letters;
	return reached;
}

/* Loads the code of a saga, all versions. */
static void
load_saga_code(void *arg)
{
	ListCell   *cell;

	foreach(cell, EvpgSagaVersions(arg))
		EvpgSagaCodeLoad(lfirst(cell));
	EvpgSagaGet(arg, 0, false)->loaded = true;
}

/*
 * Returns whether a saga, whose consumer is locked, can run: it is not paused or inline,
 * and its code can be loaded.  Else it waits, and in the end stops, without an
 * event of it being tried.
 */
static bool
prepare_saga(const EvpgConsumer *consumer, TimestampTz *next)
{
	EvpgSaga   *saga = EvpgSagaGet(consumer->name, 0, true);
	int			attempts = consumer->attempts;
	TimestampTz retry_at;
	ErrorData  *error;

	if (!consumer->running || saga == NULL || saga->is_inline)
		return false;
	if (consumer->retry_at > EvpgClockNow())
	{
		*next = Min(*next, EvpgClockWall(consumer->retry_at));
		return false;
	}
	error = saga->loaded ? NULL : EvpgSubtransactionRun(load_saga_code, (void *) consumer->name);
	/* It may be the code of a version that no instance has any more. */
	if (error != NULL && !EvpgErrorIsCancel(error) && EvpgSagaDeleteUnusedVersions(saga->name, saga->version))
		error = EvpgSubtransactionRun(load_saga_code, (void *) consumer->name);
	if (error == NULL)
	{
		if (consumer->retry_at != 0)
			EvpgCheckpointAdvance(consumer, consumer->checkpoint, 0);
		return true;
	}
	if (EvpgErrorIsCancel(error))
		EvpgRethrowError(error);
	attempts += !EvpgErrorIsTransient(error);
	retry_at = EvpgRetryAfterAttempts(Max(attempts, 1));
	if (EvpgErrorIsWorkerCancel(error))
	{
		EvpgConsumerPostpone(consumer, retry_at);
		*next = Min(*next, EvpgClockWall(retry_at));
		return false;
	}
	EvpgConsumerRecordError(consumer, 0, attempts, retry_at, attempts >= saga->max_attempts, consumer->attempts > 0, error);
	*next = Min(*next, EvpgClockWall(retry_at));
	if (attempts >= saga->max_attempts)
		ereport(EvpgReportLevel(),
				(errmsg("saga \"%s\" of database \"%s\" has stopped", consumer->name, get_database_name(MyDatabaseId)),
				 errdetail("The error has SQLSTATE %s; evpg.consumer has the rest.", unpack_sql_state(error->sqlerrcode)),
				 errhint("When the cause is gone, use evpg_resume_consumer().")));
	return false;
}

/* Routes a batch, if no event that may have crashed the server is in the way; true if there is more. */
static bool
route_cautiously(const EvpgConsumer *consumer, int64 stable, TimestampTz *next)
{
	List	   *versions = EvpgSagaVersions(consumer->name);
	EvpgSaga   *saga = linitial(versions);
	EvpgLogFilter filter = EvpgSagaFilter(versions,
										  EvpgCheckpointPosition(EvpgCheckpointGet(consumer->name), consumer), stable);
	EvpgEvent	event = {0};
	int64		dead_letters = 0;
	int			limit;

	switch (EvpgCrashAdviseBatch(consumer, &filter, saga->max_attempts, &limit, &event.position, next))
	{
		case EVPG_CRASH_PROCEED:
			EvpgCrashFlushAtCommit(limit);
			if (limit == 0)
				limit = BATCH_EVENTS;
			return route_batch(consumer, stable, Min(limit, BATCH_EVENTS), &dead_letters, next) < stable;
		case EVPG_CRASH_COUNTED:
			return true;
		case EVPG_CRASH_POSTPONE:
			return false;
		default:
			EvpgRouteGiveUp(saga, &event, consumer->crashes - 1, EvpgCrashError(consumer->crashes - 1));
			EvpgCheckpointAdvance(consumer, event.position, 0);
			return true;
	}
}

/*
 * EvpgRouteBatch
 *		Routes the next batch of a saga, in the current transaction, which the
 *		caller commits at once.  Returns true if there is more; else lowers
 *		*next to when the saga is to be retried.  Does nothing if another
 *		session has locked the consumer.
 */
bool
EvpgRouteBatch(const char *saga, TimestampTz *next)
{
	EvpgConsumer consumer;
	EvpgScope	scope;
	int64		stable;
	bool		more = false;

	if (!EvpgConsumerLock(saga, false))
		return false;
	EvpgEnter(&scope, "evpg_run()");
	if (EvpgConsumerRead(saga, &consumer) && prepare_saga(&consumer, next))
	{
		stable = EvpgFenceStablePosition(false);
		more = stable > consumer.checkpoint && route_cautiously(&consumer, stable, next);
	}
	EvpgLeave(&scope);
	return more;
}

/*
 * EvpgRouteAll
 *		Routes all events up to the stable position, in the current transaction;
 *		returns how many dead letters it has written.  Waits for the lock of the
 *		consumer.  The caller is inside EvpgEnter.
 */
int64
EvpgRouteAll(const char *saga)
{
	EvpgConsumer consumer;
	int64		stable = EvpgFenceStablePosition(false);
	int64		dead_letters = 0;
	TimestampTz next = DT_NOEND;

	(void) EvpgConsumerLock(saga, true);
	while (EvpgConsumerRead(saga, &consumer) && prepare_saga(&consumer, &next) && consumer.checkpoint < stable)
		(void) route_batch(&consumer, stable, BATCH_EVENTS, &dead_letters, &next);
	return dead_letters;
}

/*
 * EvpgRouteRest
 *		Routes all events up to a position of a saga that becomes inline, also if it is
 *		paused, in the current transaction.  No other transaction can append up to that
 *		position.  The caller has locked the consumer and is inside EvpgEnter.
 */
void
EvpgRouteRest(const char *saga, int64 upto)
{
	int64		dead_letters = 0;
	TimestampTz next = DT_NOEND;
	EvpgConsumer consumer;

	while (EvpgConsumerRead(saga, &consumer) && consumer.checkpoint < upto)
	{
		(void) route_batch(&consumer, upto, BATCH_EVENTS, &dead_letters, &next);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Returns whether any version of a saga takes an event; a callback of EvpgCheckpointHasPassed. */
static bool
any_version_takes(void *arg, const EvpgEvent *event)
{
	ListCell   *cell;
	bool		any = false;

	foreach(cell, EvpgSagaVersions(arg))
		any |= EvpgSagaTakes(lfirst(cell), event);
	return any;
}

static EvpgStatement select_left = {
	.text =
	"SELECT 1"
	"  FROM evpg.saga_event e"
	" WHERE e.saga = $1 AND e.position <= $2"
	"       AND NOT EXISTS (SELECT FROM evpg.dead_letter l"
	"                        WHERE l.saga = e.saga AND l.key = e.key AND l.resolved_at IS NULL)"
	" LIMIT 1",
	.types = {TEXTOID, INT8OID}
};

/*
 * EvpgRouteHasLeft
 *		Returns whether instances have still to react to events up to a position that were
 *		given to them; not those behind a dead letter.
 */
bool
EvpgRouteHasLeft(const char *saga, int64 position)
{
	Datum		values[2] = {CStringGetTextDatum(saga), Int64GetDatum(position)};
	bool		left = EvpgStatementReadLatest(&select_left, values, NULL) > 0;

	EvpgStatementDone();
	return left;
}

/*
 * EvpgRouteHasReached
 *		Returns whether the instances of a saga have reacted to all events up to a
 *		position; those behind a dead letter are not waited for.  The caller is inside
 *		EvpgEnter.
 */
bool
EvpgRouteHasReached(const char *saga, int64 position)
{
	List	   *versions = EvpgSagaVersions(saga);
	EvpgLogFilter filter = EvpgSagaFilter(versions, 0, 0);
	EvpgConsumer consumer;

	return EvpgConsumerRead(saga, &consumer) &&
		EvpgCheckpointHasPassed(&consumer, position, &filter, any_version_takes, (void *) saga) &&
		!EvpgRouteHasLeft(saga, position);
}

/*
 * EvpgRouteEvent
 *		Routes one event again, for a dead letter without a key; returns false
 *		if there is no such event.  An error of finding its keys is raised.
 */
bool
EvpgRouteEvent(const char *saga, int64 position)
{
	EvpgLogFilter filter = {.after = position - 1, .upto = position};
	List	   *versions = EvpgSagaVersions(saga);
	List	   *keys = NIL;
	List	   *positions = NIL;
	EvpgLogScan *scan;
	EvpgEvent	event;
	bool		found;
	ListCell   *cell;

	PushActiveSnapshot(GetTransactionSnapshot());
	scan = EvpgLogScanAll(&filter);
	found = EvpgLogScanNext(scan, &event);
	if (found)
		foreach(cell, versions)
			if (EvpgSagaTakes(lfirst(cell), &event))
			keys = list_concat(keys, EvpgSagaKeys(lfirst(cell), &event));
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
	foreach(cell, keys)
		positions = lappend(positions, &position);
	if (keys != NIL)
		insert_saga_events(saga, keys, positions);
	return found;
}
