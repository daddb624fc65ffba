/*-------------------------------------------------------------------------
 *
 * dispatch.c
 *		Does what is due in sagas, each item in one transaction with everything that
 *		follows from it: instances react to events and timers, scheduled commands
 *		are executed (rules 16 to 18).
 *
 * Before that transaction an attempt is counted in one of its own, which is on
 * disk before the work begins: so an item that crashes the server is given up in
 * the end like one that fails.  Only first attempts at events that have come since the
 * session began need not be on disk: if the server crashes, the session has ended, and the
 * next one counts a first attempt once more.  First attempts are counted for many items at once;
 * an item that was tried before is counted and tried alone, so that it cannot spoil
 * the counts of others, and its end is on disk before anything else begins.  Of
 * attempts that had no result only those count that were made alone.  An item with such
 * an attempt is a suspect: it may end the session again, so a pass tries one of them, when
 * all else is done (EvpgDispatchSuspect).
 *
 * What a session has claimed and not begun it holds up for no other session: one that
 * finds nothing else takes it over, without counting again.  Each locks the instance for
 * the transaction in which it works, and then takes the item only if it is as it was
 * claimed (saga_lock.c, EvpgDueItemTake).  So one reaction that lasts keeps only its
 * instance waiting, and its worker; consumer/last_worker.c keeps it from the last worker.
 *
 * An item is done in a subtransaction (react.c, fire_timer.c, scheduled_command.c).
 * If it fails nothing of it remains, and failure.c decides when it is tried again.
 * If it has waited in vain for a lock, the rest of what was claimed is given back.
 *
 * Timers of one instance that are due at once are claimed together, though only the
 * first is due before it has fired.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "aggregate/context.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/interference.h"
#include "base/locks.h"
#include "base/settings.h"
#include "base/subtransaction.h"
#include "base/testing.h"
#include "base/wakeup.h"
#include "consumer/consumer.h"
#include "consumer/crash_suspects.h"
#include "consumer/last_worker.h"
#include "log/event_log.h"
#include "miscadmin.h"
#include "projection/batch.h"
#include "saga/dispatch.h"
#include "saga/failure.h"
#include "saga/fire_timer.h"
#include "saga/react.h"
#include "saga/react_inline.h"
#include "saga/saga.h"
#include "saga/saga_lock.h"
#include "saga/scheduled_command.h"
#include "usercode/guard.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* So many items are claimed at once. */
#define CLAIMS 50

/* So many due items are listed at most, if others have locked all that are older. */
#define MOST_DUE 800

/*
 * After a wait in vain for a lock items that had to wait come last for so many passes,
 * then once in their own order, so that they are tried again however much there is to do.
 */
#define UNHINDERED_PASSES 8

/* After a timer that has sent commands the timers of an instance are claimed one by one for so many passes. */
#define ALONE_PASSES 20

/* ------------------------------------------------------------------ one item */

/* Reads the event of an item, and lets the instance react to it. */
static void
react_to_logged_event(EvpgAttempt *attempt)
{
	EvpgLogFilter filter = {.after = attempt->item->position - 1, .upto = attempt->item->position};
	EvpgLogScan *scan;
	EvpgEvent	event;

	PushActiveSnapshot(GetTransactionSnapshot());
	scan = EvpgLogScanAll(&filter);
	if (!EvpgLogScanNext(scan, &event))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("event log has no event at position " INT64_FORMAT, attempt->item->position)));
	EvpgInstanceRead(attempt->item->saga, attempt->item->key, &attempt->instance);
	EvpgReactToEvent(attempt, &event);
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
}

/* Takes an item away; false if it is not to be done, see EvpgDueItemTake. */
static bool
take_item(const EvpgAttempt *attempt)
{
	if (EVPG_MUTATION("saga_kept"))
		return true;
	return (attempt->again ? EvpgDueItemDelete(attempt->item) : EvpgDueItemTake(attempt->item)) ||
		EVPG_MUTATION("saga_unchecked") || EVPG_MUTATION("saga_early");
}

/*
 * Does an item; run by EvpgSubtransactionRun.  The item is taken away first,
 * since a timer may be set again by the reaction to it.
 */
static void
perform_item(void *arg)
{
	EvpgAttempt *attempt = arg;
	EvpgTimer	timer;

	if (attempt->item->position == 0 && !EvpgTimerRead(attempt->item->timer_id, &timer))
		return;
	attempt->taken = take_item(attempt);
	if (!attempt->taken)
		return;
	EVPG_WAIT_POINT("saga_taken");
	if (attempt->item->position != 0)
		react_to_logged_event(attempt);
	else if (attempt->item->saga == NULL)
		EvpgScheduledCommandExecute(attempt, &timer);
	else
		EvpgTimerFire(attempt, &timer);
	EvpgReactInlineAll();
	EVPG_WAIT_POINT("saga_reacted");
}

static bool
saga_is_running(const char *saga)
{
	EvpgConsumer consumer;

	return EvpgConsumerRead(saga, &consumer) && consumer.running;
}

static EvpgOccupation
get_occupation(const EvpgDueItem *item)
{
	return item->saga == NULL ? EVPG_OCCUPATION_COMMAND : EVPG_OCCUPATION_REACTION;
}

/*
 * Locks what an item needs; if that cannot be had, or the item must not be begun now,
 * takes back its attempt, and returns false.
 */
static bool
begin_item(EvpgDueItem *item, bool again)
{
	if (!EvpgDueItemLock(item, again))
	{
		/* Another session has taken it over, or works on the instance. */
		EvpgDueItemUnclaim(item, item->retry_at);
		return false;
	}
	if (item->saga != NULL && (!EvpgSagaLock(item->saga, ShareLock, again) || (!again && !saga_is_running(item->saga))))
	{
		/*
		 * The saga is being changed, or was paused since the item was
		 * claimed.
		 */
		EvpgDueItemUnclaim(item, EvpgFailureTransientUntil());
		return false;
	}
	if (EvpgLastWorkerIsKeptFrom(get_occupation(item), item->saga))
	{
		EvpgDueItemUnclaim(item, item->retry_at);
		return false;
	}
	return true;
}

/* Calls the code of an item in a subtransaction; returns the error, NULL if it succeeded. */
static ErrorData *
run_item_code(EvpgAttempt *attempt)
{
	ErrorData  *volatile failure = NULL;
	volatile bool kept_last_worker = false;
	const char *role_before = EvpgContextSessionRole();

	EvpgInsideSaga = true;
	EvpgLastWorkerBegin(get_occupation(attempt->item), attempt->item->saga);
	PG_TRY();
	{
		failure = EvpgSubtransactionRun(perform_item, attempt);
	}
	PG_FINALLY();
	{
		kept_last_worker = EvpgLastWorkerEnd();
		EvpgInsideSaga = false;
		EvpgContextSetSessionRole(role_before);
	}
	PG_END_TRY();
	if (kept_last_worker)
		EvpgLastWorkerReport(get_occupation(attempt->item), attempt->item->saga);
	return failure;
}

/*
 * EvpgDispatchItem
 *		Does an item, which is claimed, in the current transaction.  The caller is inside
 *		EvpgEnter.  *sent grows by the commands that were sent; *error, if wanted, is the
 *		error with which it failed, in CurrentMemoryContext.  again: it is a dead letter
 *		already, whose instance and saga the caller has locked, and stays one if it fails.
 *
 * If the statement is cancelled, that is no attempt: it is taken back, and the caller
 * that wants the error commits before it raises it; else it is rethrown here.
 */
EvpgDispatchResult
EvpgDispatchItem(EvpgDueItem *item, bool again, int64 *sent, ErrorData **error)
{
	EvpgAttempt attempt = {.item = item, .again = again};
	ErrorData  *failure;

	EvpgRefuseInSaga("run sagas");
	EvpgBatchRequireNewSnapshots("applying events of the log");
	EvpgContextClear();
	EvpgCatalogLockForConsumer();
	if (!begin_item(item, again))
		return EVPG_DISPATCH_LATER;

	/*
	 * The first attempt was counted for many items at once, and perhaps not
	 * begun: any of them may have crashed the server, so it counts against
	 * none of them.  The others were made alone, and never came to an end.
	 */
	if (!again && item->attempts > EvpgCrashMaxCount(EvpgFailureMaxAttempts(item)) + 1)
	{
		item->attempts -= 2;
		return EvpgFailureGiveUp(&attempt, EvpgCrashError(item->attempts)) ? EVPG_DISPATCH_DEAD : EVPG_DISPATCH_LATER;
	}
	failure = run_item_code(&attempt);
	if (error != NULL)
		*error = failure;
	if (failure == NULL)
	{
		if (!attempt.taken && !again)
		{
			EvpgDueItemUnclaim(item, item->retry_at);
			return EVPG_DISPATCH_NOT_TAKEN;
		}
		*sent += attempt.dispatched;
		if (item->saga != NULL && attempt.dispatched > 0)
			EvpgSagaAddTotals(item->saga, attempt.dispatched, 0);
		if (item->saga != NULL)
			EvpgWakeWaitersAtCommit(EvpgHashPair(item->saga, ""));
		return EVPG_DISPATCH_DONE;
	}
	if (EvpgErrorIsCancel(failure))
	{
		if (again || error == NULL)
			EvpgRethrowError(failure);
		EvpgDueItemUnclaim(item, item->retry_at);
		return EVPG_DISPATCH_LATER;
	}
	return again || EvpgFailureSettle(&attempt, failure) ? EVPG_DISPATCH_DEAD : EVPG_DISPATCH_LATER;
}

/* ------------------------------------------------------------------ a pass */

/* Items that this session has claimed, in the context of the pass. */
static List *claimed = NIL;
static bool any_claimed;

/* The one of them that this session has begun; NULL: none. */
static const EvpgDueItem *begun = NULL;

/* Whether this pass has left a suspect to EvpgDispatchSuspect. */
static bool suspects_left = false;

/* In so many passes items that others were in the way of come last. */
static int	unhindered_first = 0;

/* In so many passes timers are claimed one by one, since those that were claimed together could not be done together. */
static int	timers_alone = 0;

static void
unlock_claimed(void)
{
	ListCell   *cell;

	foreach(cell, claimed)
		EvpgDueItemUnlockClaim(lfirst(cell));
	claimed = NIL;
	begun = NULL;
	EvpgCrashUnlock(true);
}

/*
 * Counts an attempt at an item that is due, whose instance is locked, unless another
 * session has counted it that lives and has not begun.  False if another session was
 * faster.  Waits for nothing.
 */
static bool
count_or_take_over(EvpgDueItem *item)
{
	if (!item->pending || !EvpgDueItemIsClaimed(item))
		return EvpgDueItemClaim(item);
	item->due = EvpgClockNow();
	/* Other than first attempts follow the claim at once, alone. */
	return item->attempts == 1;
}

/* Claims an item, unless another session is at work there, or was faster. */
static bool
claim_item(EvpgDueItem *item)
{
	claimed = lappend(claimed, item);
	if (EvpgDueItemLock(item, false) && count_or_take_over(item))
	{
		EvpgDueItemLockClaim(item);
		return true;
	}
	claimed = list_delete_last(claimed);
	return false;
}

/* Claims timers that are due after those that are claimed, of the same instances, as far as there is room. */
static void
claim_following_timers(void)
{
	int			count = list_length(claimed);

	if (timers_alone > 0)
	{
		timers_alone--;
		return;
	}
	for (int i = 0; i < count && list_length(claimed) < CLAIMS; i++)
	{
		EvpgDueItem *first = list_nth(claimed, i);
		ListCell   *cell;

		if (!first->more || first->attempts > 1)
			continue;
		foreach(cell, EvpgDueItemListFollowing(first, CLAIMS - list_length(claimed)))
			if (!claim_item(lfirst(cell)))
			break;
	}
}

/*
 * Takes over some of what other sessions have claimed and not begun, in case they do
 * not come to it soon; the last of it, since they begin with the first.
 */
static void
take_over_items(List *pending)
{
	int			workers = Max(EvpgWorkers, 1);
	int			share = (list_length(pending) + workers - 1) / workers;

	for (int i = list_length(pending) - 1; i >= 0 && list_length(claimed) < share; i--)
	{
		EvpgDueItem *item = list_nth(pending, i);

		/* Else it is done by now. */
		if (EvpgDueItemLock(item, false) && EvpgDueItemIsClaimed(item))
			(void) claim_item(item);
	}
}

/* Returns whether an attempt at an item had no result: the server may have crashed by it, or it has ended its session. */
static bool
item_is_suspect(const EvpgDueItem *item)
{
	return item->pending && !EvpgDueItemIsClaimed(item);
}

/* Claims one suspect. */
static void
claim_suspect(List *due)
{
	ListCell   *cell;

	foreach(cell, due)
	{
		EvpgDueItem *item = lfirst(cell);

		if (!item_is_suspect(item) || !EvpgCrashLock(true))
			continue;
		if (claim_item(item))
			return;
		EvpgCrashUnlock(true);
	}
}

/*
 * Claims some of the items that are due, but no suspects; one that was tried before only
 * alone.  Returns what others have claimed and perhaps not begun.
 */
static List *
claim_items(List *due)
{
	int			workers = Max(EvpgWorkers, 1);
	int			share = Min((list_length(due) + workers - 1) / workers, CLAIMS);
	List	   *pending = NIL;
	ListCell   *cell;

	foreach(cell, due)
	{
		EvpgDueItem *item = lfirst(cell);

		/* Leave some to the other workers. */
		if (list_length(claimed) >= share)
			break;
		if (item->pending)
		{
			if (item_is_suspect(item))
				suspects_left = true;
			else if (item->attempts == 1)
				pending = lappend(pending, item);
			continue;
		}
		if (item->attempts > 0 && claimed != NIL)
			continue;
		if (claim_item(item) && item->attempts > 1)
			break;
	}
	return pending;
}

/* Orders by the time until which items were postponed; those that were not come first. */
static int
compare_hindrance(const ListCell *a, const ListCell *b)
{
	const EvpgDueItem *first = lfirst(a);
	const EvpgDueItem *second = lfirst(b);

	return first->retry_at < second->retry_at ? -1 : first->retry_at > second->retry_at;
}

/*
 * Orders what is due: timers, then events, then items that were postponed
 * after interference.  Those may wait for a lock again, each time for as long
 * as a worker waits: in their own order they would keep all the rest from
 * being tried.
 */
static List *
order_by_hindrance(List *due)
{
	List	   *timers = NIL;
	List	   *events = NIL;
	List	   *hindered = NIL;
	ListCell   *cell;

	foreach(cell, due)
	{
		EvpgDueItem *item = lfirst(cell);

		if (item->retry_at != 0 && !(item->attempts > 0 && EVPG_MUTATION("failed_first")))
			hindered = lappend(hindered, item);
		else if (item->position == 0)
			timers = lappend(timers, item);
		else
			events = lappend(events, item);
	}
	list_sort(hindered, compare_hindrance);
	return list_concat(list_concat(timers, events), hindered);
}

/* Claims items that are due, or a suspect; if others work on the oldest, those that come after them. */
static void
claim_due_items(MemoryContext context, bool suspect)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	TimestampTz now = EvpgClockNow();
	List	   *but_not_in = EvpgLastWorkerListKeptFrom();

	/*
	 * What the last worker was cancelled in was postponed: it comes after
	 * what was not tried.
	 */
	bool		by_hindrance = unhindered_first > 0 || EvpgLastWorkerIsLast();
	List	   *pending = NIL;
	List	   *due;

	for (int count = by_hindrance ? MOST_DUE : CLAIMS; claimed == NIL && count <= MOST_DUE; count *= 4)
	{
		due = EvpgDueItemList(count, now, but_not_in, true);
		if (due != NIL && (count == CLAIMS || by_hindrance))
			EVPG_WAIT_POINT("saga_due");
		if (suspect)
			claim_suspect(due);
		else
			pending = claim_items(by_hindrance ? order_by_hindrance(due) : due);
		if (list_length(due) < count)
			break;
	}
	if (claimed == NIL)
		take_over_items(pending);
	if (!suspect)
		claim_following_timers();
	if (!suspect)
		unhindered_first = Max(unhindered_first - 1, 0);
	MemoryContextSwitchTo(old);
}

/*
 * Counts an attempt that has ended the session itself.  If it had taken the attempt over,
 * the session that had claimed it first still seems to be about to begin: so others would
 * take it over, too, and each would end.
 */
static void
settle_fatal_attempt(EvpgDueItem *item)
{
	EvpgDueItemUnlockClaim(item);
	if (!EvpgDueItemIsClaimed(item))
		return;
	item->retry_at = 0;
	(void) EvpgDueItemClaim(item);
}

/*
 * When the session ends: takes back the attempts at items that it has claimed and not
 * settled, but not the one that ends the session itself (fatal).
 */
static void
settle_attempts(bool fatal)
{
	ListCell   *cell;

	foreach(cell, claimed)
	{
		EvpgDueItem *item = lfirst(cell);

		if (!item->claimed || (TransactionIdIsValid(item->settled_by) && TransactionIdDidCommit(item->settled_by)))
			continue;
		if (!fatal || item != begun)
			EvpgDueItemUnclaim(item, item->retry_at);
		else if (!EVPG_MUTATION("saga_uncounted"))
			settle_fatal_attempt(item);
	}
}

/* A defect: takes items away when they are claimed. */
static void
delete_claimed(void)
{
	ListCell   *cell;

	foreach(cell, claimed)
		(void) EvpgDueItemDelete(lfirst(cell));
}

/*
 * Returns whether a claim must be on disk before the work begins.  A first attempt that a
 * crash takes back is made once more, as the first one again, and then it is flushed: the
 * event is not above the limit any more, since that is where the log ends when a session
 * begins.  Timers have no position.
 */
static bool
claims_must_be_flushed(void)
{
	int64		limit = EvpgCrashSuspectLimit();
	ListCell   *cell;

	foreach(cell, claimed)
	{
		const EvpgDueItem *item = lfirst(cell);

		if (item->attempts > 1 || item->position <= limit)
			return true;
	}
	return false;
}

/* For claim_due. */
typedef struct Claim
{
	MemoryContext context;
	bool		suspect;
	TimestampTz *next;
} Claim;

/* Claims items that are due: an attempt at each is counted, on disk when the transaction has ended if it must be. */
static void
claim_due(void *arg)
{
	Claim	   *claim = arg;
	EvpgScope	scope;

	PushActiveSnapshot(GetTransactionSnapshot());
	EvpgEnter(&scope, "evpg_run()");
	EvpgCatalogLockForConsumer();
	claim_due_items(claim->context, claim->suspect);
	any_claimed = (claimed != NIL);
	if (EVPG_MUTATION("saga_early"))
		delete_claimed();
	if (any_claimed)
	{
		if (claims_must_be_flushed() && !EVPG_MUTATION("saga_unflushed"))
			ForceSyncCommit();
		EvpgCrashSettleAtExit(settle_attempts, true);
		EVPG_WAIT_POINT("saga_counted");
	}
	else
	{
		TimestampTz due = EvpgDueItemNextTime(EvpgClockNow());

		if (!TIMESTAMP_NOT_FINITE(due))
			*claim->next = Min(*claim->next, EvpgClockWall(due));
	}
	EvpgLeave(&scope);
	PopActiveSnapshot();
}

static void
lock_consumer_tables(void *arg)
{
	EvpgCatalogLockForConsumer();
}

/*
 * Waits for the tables that every item needs, in as many transactions as it
 * takes: without them no item that is claimed can be done, or be given back.
 */
static void
await_consumer_tables(void (*commit) (void))
{
	TimestampTz later = DT_NOEND;
	ErrorData  *error;

	/* Nearly always they are free. */
	while (!EvpgCatalogTryLockForConsumer() && (error = EvpgSubtransactionRun(lock_consumer_tables, NULL)) != NULL)
	{
		if (!EvpgPostponeAfterError(error, &later))
			EvpgRethrowError(error);
		EvpgInterferenceNote(lock_consumer_tables, "sagas", error);
		commit();
		CHECK_FOR_INTERRUPTS();
	}
	EvpgInterferenceEnd(lock_consumer_tables, "sagas");
}

/* Gives back items that are claimed and not done yet, but not arg. */
static void
give_back_items(void *arg)
{
	ListCell   *cell;

	foreach(cell, claimed)
	{
		EvpgDueItem *item = lfirst(cell);

		if (item != arg && item->claimed)
			EvpgDueItemUnclaim(item, item->retry_at);
	}
}

/*
 * Gives back the others after this one has waited in vain: a session that does them,
 * this one or another, must not wait for it as well.
 */
static void
give_back_others(EvpgDueItem *waiting)
{
	TimestampTz later = DT_NOEND;
	ErrorData  *error = EvpgSubtransactionRun(give_back_items, waiting);
	ListCell   *cell;

	if (error != NULL && !EvpgPostponeAfterError(error, &later))
		EvpgRethrowError(error);
	foreach(cell, claimed)
		if (error == NULL && lfirst(cell) != waiting && ((EvpgDueItem *) lfirst(cell))->claimed)
		((EvpgDueItem *) lfirst(cell))->settled_by = GetTopTransactionIdIfAny();
}

/*
 * Gives back the timers that were claimed together with this one: they must wait for
 * it, or for the events that it has caused, which may cancel them and are not routed yet.
 */
static void
give_back_following(EvpgDueItem *item)
{
	EvpgDueItem *first = item->first != NULL ? item->first : item;
	ListCell   *cell;

	first->stopped = true;
	foreach(cell, claimed)
	{
		EvpgDueItem *other = lfirst(cell);

		if (other->first != first || other == item || !other->claimed)
			continue;
		EvpgDueItemUnclaim(other, other->retry_at);
		other->settled_by = GetTopTransactionIdIfAny();
		timers_alone = ALONE_PASSES;
	}
}

/* Locks the claims again if the code of an item has released them by pg_advisory_unlock_all(). */
static void
lock_claims_again(void)
{
	ListCell   *cell;

	foreach(cell, claimed)
	{
		EvpgDueItem *item = lfirst(cell);

		if (item->claimed == 0)
			continue;
		if (EvpgDueItemHoldsClaim(item))
			return;
		EvpgDueItemRelockClaim(item);
	}
}

/* Does one claimed item in the current transaction; returns the error with which it failed. */
static ErrorData *
run_claimed_item(EvpgDueItem *item)
{
	int64		sent = 0;
	ErrorData  *error = NULL;
	EvpgDispatchResult result = EvpgDispatchItem(item, false, &sent, &error);

	if ((sent > 0 || result != EVPG_DISPATCH_DONE) && !EVPG_MUTATION("timers_unrouted"))
		give_back_following(item);
	return error;
}

/* Does the claimed items, each in a transaction of its own.  context outlives them. */
static void
run_claimed(void (*commit) (void), MemoryContext context)
{
	ListCell   *cell;

	foreach(cell, claimed)
	{
		EvpgDueItem *item = lfirst(cell);
		ErrorData  *error;
		char	   *cancel = NULL;
		bool		hindered;
		EvpgScope	scope;

		if (item->first != NULL && item->first->stopped)
		{
			EvpgDueItemUnlockClaim(item);
			continue;
		}
		EVPG_WAIT_POINT("saga_claimed");
		await_consumer_tables(commit);
		PushActiveSnapshot(GetTransactionSnapshot());
		EvpgEnter(&scope, "evpg_run()");
		begun = item;
		EvpgCrashNoteRuns(true);
		error = run_claimed_item(item);
		item->settled_by = GetTopTransactionIdIfAny();
		hindered = error != NULL && error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE;
		if (error != NULL && EvpgErrorIsCancel(error))
			cancel = MemoryContextStrdup(context, error->message);
		if (hindered || cancel != NULL)
			give_back_others(item);

		/*
		 * An item that was tried before must not be tried again because
		 * others crash the server.
		 */
		if (item->attempts > 1)
			ForceSyncCommit();
		EvpgLeave(&scope);
		PopActiveSnapshot();
		commit();
		EvpgCrashNoteRuns(false);
		begun = NULL;
		EVPG_WAIT_POINT("saga_committed");
		EvpgDueItemUnlockClaim(item);
		lock_claims_again();
		if (cancel != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg_internal("%s", cancel)));
		if (hindered)
		{
			unhindered_first = UNHINDERED_PASSES;
			break;
		}
		CHECK_FOR_INTERRUPTS();
	}
}

/* Claims and does items, for EvpgDispatchPass and EvpgDispatchSuspect. */
static bool
dispatch_claimed(Claim *claim, void (*commit) (void))
{
	any_claimed = false;
	PG_TRY();
	{
		ErrorData  *error = EvpgSubtransactionRun(claim_due, claim);

		if (error != NULL)
		{
			if (!EvpgPostponeAfterError(error, claim->next))
				EvpgRethrowError(error);
			EvpgInterferenceNote(claim_due, "sagas", error);
			unlock_claimed();
			any_claimed = false;
		}
		else
			EvpgInterferenceEnd(claim_due, "sagas");
		commit();
		run_claimed(commit, claim->context);
	}
	PG_CATCH();
	{
		unlock_claimed();
		PG_RE_THROW();
	}
	PG_END_TRY();
	unlock_claimed();
	return any_claimed;
}

/*
 * EvpgDispatchPass
 *		Does items that are due, but no suspects, each in a transaction of its own, as
 *		EvpgRunPass does.  Returns true if there may be more; else lowers *next
 *		to when something is due. context outlives the transactions.
 */
bool
EvpgDispatchPass(void (*commit) (void), MemoryContext context, TimestampTz *next)
{
	Claim		claim = {.context = context, .next = next};

	suspects_left = false;
	return dispatch_claimed(&claim, commit);
}

/*
 * EvpgDispatchSuspect
 *		Does one suspect, if EvpgDispatchPass has found any in this pass.  Returns true if
 *		there may be more to do.
 */
bool
EvpgDispatchSuspect(void (*commit) (void), MemoryContext context, TimestampTz *next)
{
	Claim		claim = {.context = context, .suspect = true, .next = next};

	return suspects_left && dispatch_claimed(&claim, commit);
}
