/*-------------------------------------------------------------------------
 *
 * announce.c
 *		Notifying consumers of subscriptions that there may be events for them.
 *
 * A worker, or evpg_run, looks in each pass whether events have become final that a
 * subscription takes, and sends one notification for all of them, so the number of
 * notifications does not grow with that of commits.  It remembers in memory how far it
 * has looked; one that begins anew notifies once of whatever there is.  Only one worker
 * of a database does this: it holds a lock to its end.
 *
 * Only subscriptions to which a session has listened once are looked at, so that the
 * others cost nothing.  A consumer needs no notification: it fetches with wait, or from
 * time to time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/locks.h"
#include "base/statement.h"
#include "base/subtransaction.h"
#include "broadcast/broadcast.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "lib/stringinfo.h"
#include "log/fence.h"
#include "subscription/announce.h"
#include "subscription/subscription.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(evpg_subscription_channel);
PG_FUNCTION_INFO_V1(evpg_listen_subscription);
PG_FUNCTION_INFO_V1(evpg_unlisten_subscription);

/* How far this session has looked for events of a subscription. */
typedef struct Announced
{
	char		name[EVPG_MAX_NAME + 1];
	int64		position;
} Announced;

static HTAB *announced = NULL;

/* Returns the name of the channel of a subscription, in CurrentMemoryContext. */
static char *
make_subscription_channel(const char *name)
{
	return EvpgBroadcastShortenChannel("subscription", psprintf("subscription.%s", name));
}

/* Notifies the consumers of a subscription, at commit, that there may be events. */
void
EvpgAnnounceAtCommit(const char *subscription)
{
	const char *channel = make_subscription_channel(subscription);
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, "{\"event\": \"events\", \"subscription\": ");
	escape_json(&text, subscription);
	appendStringInfoChar(&text, '}');
	EvpgBroadcastText(text.data, &channel, 1);
}

static EvpgStatement select_announced = {
	.text = "SELECT s.name FROM evpg.subscription s JOIN evpg.consumer c ON c.name = s.name"
	" WHERE s.notifies AND c.status = 'running' ORDER BY s.name"
};

/* Returns whether this process is to look for events; takes the lock that keeps others from it. */
static bool
is_announcer(void)
{
	LOCKTAG		tag;
	bool		worker = EvpgInWorker();

	EvpgSetLockTag(&tag, EVPG_LOCK_CONSUMER, EvpgHashPair("evpg.subscription", "announce"));
	return (worker && EvpgLockIsHeld(&tag, ExclusiveLock)) ||
		LockAcquire(&tag, ExclusiveLock, worker, true) != LOCKACQUIRE_NOT_AVAIL;
}

/* Lists the subscriptions whose consumers may be notified (char *), in CurrentMemoryContext; none if others do that. */
List *
EvpgAnnounceList(void)
{
	List	   *names = EvpgStatementReadTexts(&select_announced, NULL, NULL);

	return names == NIL || !is_announcer() ? NIL : names;
}

/* Returns how far this session has looked for events of a subscription; *found is false if it never has. */
static Announced *
get_announced(const char *name, bool *found)
{
	if (announced == NULL)
	{
		HASHCTL		control = {.keysize = EVPG_MAX_NAME + 1, .entrysize = sizeof(Announced)};

		announced = hash_create("EvpgAnnounced", 16, &control, HASH_ELEM | HASH_STRINGS);
	}
	return hash_search(announced, name, HASH_ENTER, found);
}

/* Returns whether a subscription takes an event between two positions. */
static bool
has_events(const EvpgSubscription *subscription, int64 after, int64 upto)
{
	EvpgLogFilter filter = subscription->filter;
	bool		found = false;

	filter.after = after;
	filter.upto = upto;
	filter.leaves_upcasting = true;
	PushActiveSnapshot(GetTransactionSnapshot());
	while (!found && filter.after < upto)
	{
		EvpgLogScan *scan = EvpgLogScanAll(&filter);
		EvpgEvent	event;

		found = EvpgLogScanNext(scan, &event);
		filter.after = EvpgLogScanReached(scan);
		EvpgLogScanEnd(scan);
	}
	PopActiveSnapshot();
	return found;
}

/*
 * EvpgAnnounceRun
 *		Notifies the consumers of a subscription if events have become final that it takes
 *		since this session last looked.  A task of a pass; there is never more to do.
 */
bool
EvpgAnnounceRun(const char *name, TimestampTz *next)
{
	const EvpgSubscription *subscription;
	EvpgScope	scope;
	bool		found;

	EvpgEnter(&scope, NULL);
	subscription = EvpgSubscriptionGet(name, true);
	if (subscription != NULL)
	{
		int64		stable = EvpgFenceDurablePosition(false);
		Announced  *last = get_announced(name, &found);

		if (!found)
			last->position = 0;
		if (!found || (stable > last->position && has_events(subscription, last->position, stable)))
			EvpgAnnounceAtCommit(name);
		last->position = Max(last->position, stable);
	}
	EvpgLeave(&scope);
	return false;
}

/* ------------------------------------------------------------------ SQL */

/* SQL: evpg_subscription_channel(subscription).  Returns the name of the channel. */
Datum
evpg_subscription_channel(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(make_subscription_channel(EvpgArgName(fcinfo, 0, "subscription name"))));
}

static EvpgStatement update_notifies = {
	.text = "UPDATE evpg.subscription SET notifies = true WHERE name = $1 AND NOT notifies",
	.types = {TEXTOID}
};

static EvpgStatement select_notifies = {
	.text = "SELECT FROM evpg.subscription WHERE name = $1 AND notifies",
	.types = {TEXTOID}
};

/*
 * evpg_listen_subscription(subscription)
 *		Listens to the channel of a subscription as LISTEN does, and lets workers look for its
 *		events from now on.  Returns the name of the channel; raises VE010 if there is no such
 *		subscription.
 */
Datum
evpg_listen_subscription(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "subscription name");
	char	   *channel = make_subscription_channel(name);
	Datum		value = CStringGetTextDatum(name);
	uint64		notifies;
	EvpgScope	scope;

	EvpgBroadcastListen(channel, "evpg_listen_subscription()");
	EvpgEnter(&scope, NULL);
	(void) EvpgSubscriptionGet(name, false);
	notifies = EvpgStatementReadLatest(&select_notifies, &value, NULL);
	EvpgStatementDone();
	EvpgLeave(&scope);
	if (notifies == 0)
	{
		EvpgEnter(&scope, "evpg_listen_subscription()");
		EvpgStatementExecute(&update_notifies, &value, NULL);
		EvpgLeave(&scope);
	}
	PG_RETURN_TEXT_P(cstring_to_text(channel));
}

/* SQL: evpg_unlisten_subscription(subscription).  Ends what evpg_listen_subscription began.  Returns the channel. */
Datum
evpg_unlisten_subscription(PG_FUNCTION_ARGS)
{
	char	   *channel = make_subscription_channel(EvpgArgName(fcinfo, 0, "subscription name"));

	Async_Unlisten(channel);
	PG_RETURN_TEXT_P(cstring_to_text(channel));
}
