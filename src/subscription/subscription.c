/*-------------------------------------------------------------------------
 *
 * subscription.c
 *		The registrations of subscriptions, kept for the session, and the lock of a
 *		subscription.
 *
 * A subscription is a consumer of the log (consumer.c) whose events clients get.
 * What deals with its leases and partitions shares the lock of the consumer, to the
 * end of the transaction; what changes the subscription itself, or where its
 * partitions stand, takes it alone: it waits for transactions that have fetched or
 * acknowledged, and sees and changes the rows of all.  Between those that share the
 * lock the row of a lease is the guard, see group.c.
 *
 * Memory: registrations live in a context of the session, which is emptied when one
 * may have changed; a pointer is valid until the next EvpgSubscriptionGet.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/locks.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "consumer/worker_lock.h"
#include "storage/lmgr.h"
#include "subscription/subscription.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(evpg_count_events);

/* So many registrations are kept at most. */
#define MAX_KEPT 1000

static MemoryContext registrations_context = NULL;
static HTAB *registrations = NULL;	/* of KeptSubscription, by name */
static uint64 registrations_generation;

typedef struct KeptSubscription
{
	char		name[EVPG_MAX_NAME + 1];
	EvpgSubscription subscription;
} KeptSubscription;

/* Columns of the statement, counted from 1. */
enum
{
	SUBSCRIPTION_AGGREGATE_TYPES = 1, SUBSCRIPTION_EVENT_TYPES, SUBSCRIPTION_TAGS, SUBSCRIPTION_AGGREGATE_IDS,
	SUBSCRIPTION_ID_PREFIX, SUBSCRIPTION_PARTITIONS, SUBSCRIPTION_MAX_ATTEMPTS, SUBSCRIPTION_LEASE_TIME,
	SUBSCRIPTION_BACKOFF, SUBSCRIPTION_MAX_BACKOFF, SUBSCRIPTION_RUNNING
};

static EvpgStatement select_subscription = {
	.text = "SELECT s.aggregate_types, s.event_types, s.tags, s.aggregate_ids, s.id_prefix, s.partitions, s.max_attempts,"
	" (extract(epoch FROM s.lease_time) * 1000000)::int8, (extract(epoch FROM s.backoff) * 1000000)::int8,"
	" (extract(epoch FROM s.max_backoff) * 1000000)::int8, c.status = 'running'"
	" FROM evpg.subscription s JOIN evpg.consumer c ON c.name = s.name"
	" WHERE s.name = $1",
	.types = {TEXTOID}
};

/* Fills a registration of the row that the statement has found, in CurrentMemoryContext. */
static void
fill_subscription(EvpgSubscription *subscription)
{
	memset(subscription, 0, sizeof(EvpgSubscription));
	subscription->filter.aggregate_types = EvpgResultNames(0, SUBSCRIPTION_AGGREGATE_TYPES);
	subscription->filter.event_types = EvpgResultNames(0, SUBSCRIPTION_EVENT_TYPES);
	subscription->filter.tags = EvpgResultNames(0, SUBSCRIPTION_TAGS);
	subscription->filter.aggregate_ids = EvpgResultNames(0, SUBSCRIPTION_AGGREGATE_IDS);
	subscription->filter.id_prefix = EvpgResultText(0, SUBSCRIPTION_ID_PREFIX);
	subscription->partitions = (int) EvpgResultInt64(0, SUBSCRIPTION_PARTITIONS);
	subscription->max_attempts = (int) EvpgResultInt64(0, SUBSCRIPTION_MAX_ATTEMPTS);
	subscription->lease_time = EvpgResultInt64(0, SUBSCRIPTION_LEASE_TIME);
	subscription->backoff = EvpgResultInt64(0, SUBSCRIPTION_BACKOFF);
	subscription->max_backoff = EvpgResultInt64(0, SUBSCRIPTION_MAX_BACKOFF);
	subscription->running = EvpgResultInt64(0, SUBSCRIPTION_RUNNING) != 0;
}

/* Forgets all registrations if one may have changed, or if there are very many. */
static void
reset_registrations(void)
{
	HASHCTL		control = {.keysize = EVPG_MAX_NAME + 1, .entrysize = sizeof(KeptSubscription)};

	if (registrations_context == NULL)
		registrations_context = AllocSetContextCreate(TopMemoryContext, "EvpgSubscription", ALLOCSET_DEFAULT_SIZES);
	if (registrations != NULL && registrations_generation == EvpgCatalogRegistryGeneration() &&
		hash_get_num_entries(registrations) < MAX_KEPT)
		return;
	registrations = NULL;
	MemoryContextReset(registrations_context);
	control.hcxt = registrations_context;
	registrations = hash_create("EvpgSubscription", 16, &control, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	registrations_generation = EvpgCatalogRegistryGeneration();
}

/*
 * EvpgSubscriptionGet
 *		Returns a subscription by its name, as it is committed now or written by this
 *		transaction; raises VE010 if there is none, or returns NULL if missing_ok.  It
 *		lives until the next call; the caller is inside EvpgEnter.
 */
const EvpgSubscription *
EvpgSubscriptionGet(const char *name, bool missing_ok)
{
	KeptSubscription *kept;
	EvpgSubscription read;
	Datum		value;
	MemoryContext spi;

	reset_registrations();
	kept = hash_search(registrations, name, HASH_FIND, NULL);
	if (kept != NULL)
		return &kept->subscription;
	value = CStringGetTextDatum(name);
	if (EvpgStatementReadLatest(&select_subscription, &value, NULL) == 0)
	{
		EvpgStatementDone();
		if (!missing_ok)
			ereport(ERROR,
					(errcode(EVPG_ERRCODE_UNKNOWN_CONSUMER),
					 errmsg("there is no subscription \"%s\"", name),
					 errhint("Create it with evpg_create_subscription().")));
		return NULL;
	}
	spi = MemoryContextSwitchTo(registrations_context);
	fill_subscription(&read);
	MemoryContextSwitchTo(spi);
	EvpgStatementDone();
	kept = hash_search(registrations, name, HASH_ENTER, NULL);
	kept->subscription = read;
	kept->subscription.name = kept->name;
	return &kept->subscription;
}

/*
 * EvpgSubscriptionRequireReadCommitted
 *		Raises 25000 unless the isolation level is READ COMMITTED.  With an older snapshot a
 *		consumer would not see the rows that it is going to change.
 */
void
EvpgSubscriptionRequireReadCommitted(const char *function)
{
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("%s needs isolation level READ COMMITTED", function),
				 errdetail("The snapshot of this transaction may be older than what consumers have done."),
				 errhint("Use READ COMMITTED in the transactions of consumers.")));
}

/*
 * EvpgSubscriptionLock
 *		Shares the lock of a subscription until the end of the transaction; returns false
 *		if it may not wait and a session that changes the subscription has it, or waits for
 *		it.  Before all other locks of evpg; the caller reads the subscription afterwards.
 */
bool
EvpgSubscriptionLock(const char *name, bool wait)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	LOCKTAG		tag;

	LockRelationOid(catalog->consumer_tables[EVPG_CONSUMER_TABLE_PARKED_EVENT], RowExclusiveLock);
	LockRelationOid(catalog->subscription_lease, RowExclusiveLock);
	LockRelationOid(catalog->subscription_partition, RowExclusiveLock);
	EvpgSetLockTag(&tag, EVPG_LOCK_CONSUMER, EvpgHashName(name, 0));
	if (!EvpgLockAcquire(&tag, ShareLock, wait))
		return false;
	/* What the last owner changed must be seen. */
	AcceptInvalidationMessages();
	return true;
}

/*
 * EvpgSubscriptionUnlock
 *		Gives back what the last EvpgSubscriptionLock has taken, in the same subtransaction, after
 *		nothing was written.
 */
void
EvpgSubscriptionUnlock(const char *name)
{
	LOCKTAG		tag;

	EvpgSetLockTag(&tag, EVPG_LOCK_CONSUMER, EvpgHashName(name, 0));
	(void) LockRelease(&tag, ShareLock, false);
}

/* Returns an interval argument in microseconds; raises an error if it is NULL, infinite, or out of range. */
int64
EvpgSubscriptionTime(FunctionCallInfo fcinfo, int arg, const char *what, int64 least)
{
	Interval   *interval;
	double		result;

	EvpgArgRefuseNull(fcinfo, arg, what);
	interval = PG_GETARG_INTERVAL_P(arg);
	result = interval->time + (interval->day + interval->month * 30.0) * USECS_PER_DAY;
	if (result < least || result > EVPG_MAX_SUBSCRIPTION_TIME)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is out of range", what),
				 errdetail("It must be from " INT64_FORMAT " milliseconds to one year.", least / 1000)));
	return (int64) result;
}

/*
 * EvpgSubscriptionReadEvent
 *		Reads an event, in CurrentMemoryContext; returns false if the subscription takes none
 *		at this position.  To be upcast by the caller (EvpgUpcastEvent), if it is handed out.
 */
bool
EvpgSubscriptionReadEvent(const EvpgSubscription *subscription, int64 position, EvpgEvent *copy)
{
	EvpgLogFilter filter = subscription->filter;
	EvpgLogScan *scan;
	EvpgEvent	event;
	bool		found;

	filter.after = position - 1;
	filter.upto = position;
	filter.leaves_upcasting = true;
	PushActiveSnapshot(GetLatestSnapshot());
	scan = EvpgLogScanAll(&filter);
	found = EvpgLogScanNext(scan, &event);
	if (found)
		EvpgEventCopy(&event, copy);
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
	return found;
}

/*
 * evpg_count_events
 *		SQL: evpg.count_events(subscription, partition, after, upto).  Returns how many
 *		events there are that the subscription takes, under the snapshot of the statement.
 */
Datum
evpg_count_events(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "subscription name");
	int			partition = EvpgArgInt(fcinfo, 1, "partition", 0);
	int64		after = EvpgArgBigint(fcinfo, 2, "after");
	int64		upto = EvpgArgBigint(fcinfo, 3, "upto");
	const EvpgSubscription *subscription;
	EvpgLogFilter filter;
	EvpgLogScan *scan;
	EvpgEvent	event;
	int64		count = 0;
	EvpgScope	scope;

	EvpgEnter(&scope, NULL);
	subscription = EvpgSubscriptionGet(name, true);
	if (subscription != NULL)
	{
		filter = subscription->filter;
		filter.upto = upto;
		filter.parts = subscription->partitions;
		filter.part = partition;
		filter.after = after;
		filter.leaves_upcasting = true;
		while (filter.after < upto)
		{
			scan = EvpgLogScanAll(&filter);
			while (EvpgLogScanNext(scan, &event))
				count++;
			filter.after = EvpgLogScanReached(scan);
			EvpgLogScanEnd(scan);
		}
	}
	EvpgLeave(&scope);
	PG_RETURN_INT64(count);
}
