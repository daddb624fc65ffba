/*-------------------------------------------------------------------------
 *
 * route.c
 *		Gives the events of the log to instances of sagas: one owner of a saga reads
 *		them in order of position, finds their keys, and writes down which
 *		instances have to react to which event; the checkpoint moves in the same
 *		transaction.  So instances can then react side by side (dispatch.c), and
 *		one that fails keeps nobody else waiting.
 *
 * An event goes to the keys that any registered version of the saga finds in it.
 * One whose keys cannot be found becomes a dead letter without a key.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/catalog.h"
#include "base/clock.h"
#include "base/names.h"
#include "base/retry.h"
#include "base/subtransaction.h"
#include "base/testing.h"
#include "commands/dbcommands.h"
#include "consumer/checkpoint.h"
#include "consumer/consumer.h"
#include "consumer/crash_suspects.h"
#include "log/event_log.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "saga/instance.h"
#include "saga/route.h"
#include "saga/saga.h"
#include "saga/saga_code.h"
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
	int64		buried;			/* dead letters */
} Routes;

/* The keys of an event, by one version of the saga: what may fail. */
typedef struct Finding
{
	EvpgSaga   *saga;
	const EvpgEvent *event;
	List	   *keys;
} Finding;

static void
find_event_keys(void *arg)
{
	Finding    *finding = arg;

	finding->keys = EvpgSagaCodeKeys(finding->saga, finding->event);
}

static void
write_routing_dead_letter(const EvpgSaga *saga, const EvpgEvent *event, int attempts, const ErrorData *error)
{
	EvpgDueItem work = {.saga = saga->name, .position = event->position, .attempts = attempts};
	EvpgDeadLetter letter = {.work = &work, .error = error};
	int64		dead_letter_id;

	/* What need not come back is for the next pass. */
	if (EvpgErrorIsCancel(error) || EvpgErrorIsTransient(error))
		ReThrowError(unconstify(ErrorData *, error));
	dead_letter_id = EvpgDeadLetterWrite(&letter);
	EVPG_WAIT_POINT("saga_buried");
	ereport(EvpgSubtransactionLevel(),
			(errmsg("saga \"%s\" of database \"%s\" has dead letter " INT64_FORMAT, saga->name,
					get_database_name(MyDatabaseId), dead_letter_id),
			 errdetail("No key was found for the event at position " INT64_FORMAT ".  The error has SQLSTATE %s; evpg.dead_letter has the rest.",
					   event->position, unpack_sql_state(error->sqlerrcode)),
			 errhint("When the cause is gone, use evpg_retry_dead_letter(); or evpg_discard_dead_letter().")));
}

/* Adds the routes of an event, to the lists in context. */
static void
route_event(Routes *routes, List *versions, const EvpgEvent *event, MemoryContext context)
{
	ListCell   *cell;
	List	   *found = NIL;

	routes->events++;
	foreach(cell, versions)
	{
		Finding		finding = {.saga = lfirst(cell), .event = event};
		ErrorData  *error;

		if (!EvpgSagaTakes(finding.saga, event))
			continue;

		error = EvpgSubtransactionRun(find_event_keys, &finding);
		if (error != NULL)
		{
			write_routing_dead_letter(finding.saga, event, 1, error);
			routes->buried++;
			return;
		}
		/* What two versions find is given once, see EvpgSagaEventsInsert. */
		found = list_concat(found, finding.keys);
	}
	foreach(cell, found)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		int64	   *position = palloc(sizeof(int64));

		*position = event->position;
		routes->keys = lappend(routes->keys, pstrdup(lfirst(cell)));
		routes->positions = lappend(routes->positions, position);
		MemoryContextSwitchTo(old);
	}
}

/* Whether the log need only be searched for some types; *types is what any version takes. */
static List *
all_of(List *versions, bool of_aggregates)
{
	List	   *all = NIL;
	ListCell   *cell;

	foreach(cell, versions)
	{
		EvpgSaga   *saga = lfirst(cell);
		List	   *types = of_aggregates ? saga->aggregate_types : saga->event_types;
		ListCell   *type;

		if (types == NIL)
			return NIL;
		foreach(type, types)
			if (all == NIL || !EvpgNamesHave(all, lfirst(type)))
			all = lappend(all, lfirst(type));
	}
	return all;
}

/* Routes a batch of a saga that is owned; returns how far it came.  *buried grows by the dead letters. */
static int64
route_batch(const EvpgConsumer *consumer, int64 mark, int limit, int64 *buried, TimestampTz *next)
{
	EvpgCheckpoint *checkpoint = EvpgCheckpointGet(consumer->name);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "EvpgRoute", ALLOCSET_DEFAULT_SIZES);
	MemoryContext event_context = AllocSetContextCreate(context, "EvpgRoute event", ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(context);
	List	   *versions = EvpgSagaVersions(consumer->name);
	EvpgLogFilter filter = {
		.after = EvpgCheckpointPosition(checkpoint, consumer),
		.upto = mark,
		.aggregate_types = all_of(versions, true),
		.event_types = all_of(versions, false)
	};
	Routes		routes = {0};
	EvpgLogScan *scan;
	EvpgEvent	event;
	int64		reached;

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
	if (routes.keys != NIL)
		EvpgSagaEventsInsert(consumer->name, routes.keys, routes.positions);
	EvpgCheckpointAdvanceLazily(checkpoint, consumer, reached, routes.events, next);
	if (routes.keys != NIL)
		EVPG_WAIT_POINT("saga_routed");
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	*buried += routes.buried;
	return reached;
}

/* The code of the saga, all versions. */
static void
load_saga(void *arg)
{
	ListCell   *cell;

	foreach(cell, EvpgSagaVersions(arg))
		EvpgSagaCodeLoad(lfirst(cell));
	EvpgSagaFind(arg, 0)->found = true;
}

/*
 * Whether a saga that is owned can run: it is not paused, and its code is there.
 * Else it waits, and in the end stops, without an event of it being tried.
 */
static bool
is_ready(const EvpgConsumer *consumer, TimestampTz *next)
{
	EvpgSaga   *saga = EvpgSagaFind(consumer->name, 0);
	int			attempts = consumer->attempts;
	TimestampTz retry_at;
	ErrorData  *error;

	if (!consumer->running || saga == NULL)
		return false;
	if (consumer->retry_at > EvpgClockNow())
	{
		*next = Min(*next, EvpgClockWall(consumer->retry_at));
		return false;
	}
	error = saga->found ? NULL : EvpgSubtransactionRun(load_saga, (void *) consumer->name);
	/* Perhaps it is the code of a version that no instance has any more. */
	if (error != NULL && !EvpgErrorIsCancel(error) && EvpgSagaRetire(saga->name, saga->version))
		error = EvpgSubtransactionRun(load_saga, (void *) consumer->name);
	if (error == NULL)
	{
		if (consumer->retry_at != 0)
			EvpgCheckpointAdvance(consumer, consumer->checkpoint, 0);
		return true;
	}
	if (EvpgErrorIsCancel(error))
		ReThrowError(error);
	attempts += !EvpgErrorIsTransient(error);
	retry_at = EvpgRetryAt(Max(attempts, 1));
	EvpgConsumerRecordError(consumer, 0, attempts, retry_at, attempts >= saga->max_attempts, consumer->attempts > 0, error);
	*next = Min(*next, EvpgClockWall(retry_at));
	if (attempts >= saga->max_attempts)
		ereport(EvpgSubtransactionLevel(),
				(errmsg("saga \"%s\" of database \"%s\" has stopped", consumer->name, get_database_name(MyDatabaseId)),
				 errdetail("The error has SQLSTATE %s; evpg.consumer has the rest.", unpack_sql_state(error->sqlerrcode)),
				 errhint("When the cause is gone, use evpg_resume_consumer().")));
	return false;
}

/* Routes a batch of a saga that is owned, if what may have crashed the server is not in the way; true if there is more. */
static bool
route_cautiously(const EvpgConsumer *consumer, int64 mark, TimestampTz *next)
{
	List	   *versions = EvpgSagaVersions(consumer->name);
	EvpgSaga   *saga = linitial(versions);
	EvpgLogFilter filter = {
		.after = EvpgCheckpointPosition(EvpgCheckpointGet(consumer->name), consumer),
		.upto = mark,
		.aggregate_types = all_of(versions, true),
		.event_types = all_of(versions, false)
	};
	EvpgEvent	event = {0};
	int64		buried = 0;
	int			limit;

	switch (EvpgCrashAdviseBatch(consumer, &filter, saga->max_attempts, &limit, &event.position, next))
	{
		case EVPG_CRASH_PROCEED:
			EvpgCrashFlushAtCommit(limit);
			return route_batch(consumer, mark, limit == 0 ? BATCH_EVENTS : Min(limit, BATCH_EVENTS), &buried, next) < mark;
		case EVPG_CRASH_COUNTED:
			return true;
		case EVPG_CRASH_PUT_OFF:
			return false;
		default:
			write_routing_dead_letter(saga, &event, consumer->crashes - 1, EvpgCrashError(consumer->crashes - 1));
			EvpgCheckpointAdvance(consumer, event.position, 0);
			return true;
	}
}

/*
 * EvpgRouteRun
 *		Routes the next batch of a saga, in the current transaction.  True if there
 *		is more.  Does nothing if another session does it.
 */
bool
EvpgRouteRun(const char *saga, TimestampTz *next)
{
	EvpgConsumer consumer;
	EvpgScope	scope;
	int64		mark;
	bool		more = false;

	if (!EvpgConsumerLock(saga, false))
		return false;
	EvpgEnter(&scope, "evpg_run()");
	if (EvpgConsumerRead(saga, &consumer) && is_ready(&consumer, next))
	{
		mark = EvpgFenceStablePosition(false);
		more = mark > consumer.checkpoint && route_cautiously(&consumer, mark, next);
	}
	EvpgLeave(&scope);
	return more;
}

/*
 * EvpgRouteAll
 *		Routes all there is now of a saga, in the current transaction; returns how
 *		many dead letters that made.  The caller is inside EvpgEnter.
 */
int64
EvpgRouteAll(const char *saga)
{
	EvpgConsumer consumer;
	int64		mark = EvpgFenceStablePosition(false);
	int64		buried = 0;
	TimestampTz next = DT_NOEND;

	(void) EvpgConsumerLock(saga, true);
	while (EvpgConsumerRead(saga, &consumer) && is_ready(&consumer, &next) && consumer.checkpoint < mark)
		(void) route_batch(&consumer, mark, BATCH_EVENTS, &buried, &next);
	return buried;
}

static bool
saga_takes(void *arg, const EvpgEvent *event)
{
	ListCell   *cell;
	bool		any = false;

	foreach(cell, EvpgSagaVersions(arg))
		any |= EvpgSagaTakes(lfirst(cell), event);
	return any;
}

/*
 * EvpgRouteReached
 *		Whether the instances of a saga have reacted to all events up to a position,
 *		as far as they are going to.
 */
bool
EvpgRouteReached(const char *saga, int64 position)
{
	List	   *versions = EvpgSagaVersions(saga);
	EvpgLogFilter filter = {.aggregate_types = all_of(versions, true), .event_types = all_of(versions, false)};
	EvpgConsumer consumer;

	return EvpgConsumerRead(saga, &consumer) && EvpgCheckpointHasPassed(&consumer, position, &filter, saga_takes, (void *) saga) &&
		!EvpgSagaEventsLeft(saga, position);
}

/* Routes one event once more; false if there is none.  An error of its keys is raised. */
bool
EvpgRouteAgain(const char *saga, int64 position)
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
			keys = list_concat(keys, EvpgSagaCodeKeys(lfirst(cell), &event));
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
	foreach(cell, keys)
		positions = lappend(positions, &position);
	if (keys != NIL)
		EvpgSagaEventsInsert(saga, keys, positions);
	return found;
}
