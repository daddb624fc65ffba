/*-------------------------------------------------------------------------
 *
 * wakeup.c
 *		Wake-ups at the end of a transaction, and waiting for them.
 *
 * What a transaction has to tell is remembered in static variables and told at
 * its end, when the commit is visible to others, invalidation messages are sent
 * and its locks are released: a process that is woken earlier may find nothing, or
 * not get what it wants, and goes to sleep again.  Nothing may fail there, so it only
 * takes locks and sets latches.  For what was prepared there is no callback: the
 * statement that ends it wakes all (utility_hook.c).
 *
 * A waiter counts itself before it looks; a waker makes its commit visible before
 * it reads the count.  So no wake-up is lost.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/shmem.h"
#include "base/testing.h"
#include "base/wakeup.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_bitutils.h"
#include "utils/resowner.h"
#include "utils/wait_event.h"

/* A session that waits wakes up at least this often, in ms. */
#define LONGEST_WAIT 1000

/* To be told at the end of this transaction. */
static bool wake_consumers = false;
static bool wake_launcher = false;
static bool rescan = false;
static uint64 wake_buckets = 0;
static bool ended = false;		/* it has something to tell, once its locks
								 * are released */
static bool committed = false;

/* What this session waits for; bucket -1: nothing. */
static int	wait_bucket = -1;
static EvpgDatabase *wait_slot;
static SubTransactionId wait_subid;
static long wait_pause;			/* of one that polls, in ms */

/* ------------------------------------------------------------------ end of a transaction */

/*
 * EvpgWakeConsumersAtEnd
 *		Wakes the workers of this database at the end of this transaction.  Also after
 *		a rollback: the end of an appender moves the stable position either way.
 */
void
EvpgWakeConsumersAtEnd(void)
{
	wake_consumers = true;
}

/* Wakes the launcher at commit, so that this database gets workers. */
void
EvpgWakeLauncherAtCommit(void)
{
	wake_launcher = true;
}

/* Wakes, at commit, the sessions that wait for a hash. */
void
EvpgWakeWaitersAtCommit(uint64 hash)
{
	wake_buckets |= UINT64CONST(1) << (hash % EVPG_WAIT_BUCKETS);
}

/* Wakes, at commit, all sessions of this database that wait. */
void
EvpgWakeAllWaitersAtCommit(void)
{
	wake_buckets = ~UINT64CONST(0);
}

/* Makes the launcher read, at the end of this transaction, which databases exist. */
void
EvpgRescanDatabasesAtEnd(void)
{
	rescan = true;
}

static void
wake_workers(EvpgDatabase *slot)
{
	for (int number = 0; number < EVPG_MAX_WORKERS; number++)
		EvpgWakeProcess(&slot->processes[number]);
}

static void
wake_waiters(EvpgDatabase *slot, uint64 buckets)
{
	for (; buckets != 0; buckets &= buckets - 1)
	{
		int			bucket = pg_rightmost_one_pos64(buckets);

		if (pg_atomic_read_u32(&slot->waiters[bucket]) > 0)
			ConditionVariableBroadcast(&slot->wakers[bucket]);
	}
}

/*
 * EvpgWakeAllProcesses
 *		Wakes the workers of this database and all sessions that wait in it, at once.
 */
void
EvpgWakeAllProcesses(void)
{
	EvpgDatabase *slot = EvpgShmemDatabase(false);

	pg_memory_barrier();
	if (slot == NULL)
		return;
	wake_workers(slot);
	wake_waiters(slot, ~UINT64CONST(0));
}

/* Wakes all that this transaction has noted. */
static void
wake_at_end(void)
{
	EvpgDatabase *slot = EvpgShmemDatabase(committed && (wake_consumers || wake_launcher));

	/*
	 * What was committed is visible before any process or waiter is looked
	 * at.
	 */
	pg_memory_barrier();
	if (slot != NULL && wake_consumers)
	{
		wake_workers(slot);
		wake_waiters(slot, UINT64CONST(1) << (EVPG_WAIT_EVENTS % EVPG_WAIT_BUCKETS));
	}
	if (slot != NULL && committed)
		wake_waiters(slot, wake_buckets);
	EvpgShmemReleaseHolds();
	if (rescan)
		EvpgShmem->rescan = true;
	if (rescan || (committed && wake_launcher))
		EvpgWakeLauncher();
}

static void
remember_end(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	EvpgWaitEnd();
	ended = true;
	committed = (event == XACT_EVENT_COMMIT);
	if (EVPG_MUTATION("slow_end"))
		pg_usleep(20000);
}

static void
wake_at_release(ResourceReleasePhase phase, bool commit, bool top, void *arg)
{
	if (phase != RESOURCE_RELEASE_AFTER_LOCKS || !ended)
		return;
	ended = false;
	if (EvpgShmem != NULL && (wake_consumers || wake_launcher || rescan || wake_buckets != 0 || EvpgShmemHasHolds()))
		wake_at_end();
	wake_consumers = wake_launcher = rescan = false;
	wake_buckets = 0;
}

static void
end_wait_at_subtransaction_end(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB && wait_bucket >= 0 && wait_subid >= mine)
		EvpgWaitEnd();
}

/* Registers the callbacks; called once, from _PG_init. */
void
EvpgWakeupInit(void)
{
	RegisterXactCallback(remember_end, NULL);
	RegisterSubXactCallback(end_wait_at_subtransaction_end, NULL);
	RegisterResourceReleaseCallback(wake_at_release, NULL);
}

/* ------------------------------------------------------------------ waiting */

/*
 * EvpgWaitPrepare
 *		Begins to wait for a hash; to be called before the condition is checked.  From
 *		then on a wake-up for this hash ends EvpgWaitSleep.  False if there is no
 *		shared memory: then that polls.  A wait ends with EvpgWaitEnd, an error, or
 *		the (sub)transaction.
 */
bool
EvpgWaitPrepare(uint64 hash)
{
	EvpgWaitEnd();
	wait_pause = 1;
	wait_slot = EvpgShmemDatabase(false);
	if (wait_slot == NULL)
		return false;
	wait_bucket = hash % EVPG_WAIT_BUCKETS;
	wait_subid = GetCurrentSubTransactionId();
	pg_atomic_fetch_add_u32(&wait_slot->waiters[wait_bucket], 1);
	ConditionVariablePrepareToSleep(&wait_slot->wakers[wait_bucket]);
	return true;
}

/*
 * EvpgWaitSleep
 *		Sleeps until the condition may hold, for so many microseconds at most.
 *		Wakes up at least once a second in any case.
 */
void
EvpgWaitSleep(uint64 hash, int64 left)
{
	long		ms = (long) Min(left / 1000 + 1, PG_INT32_MAX);

	CHECK_FOR_INTERRUPTS();
	if (!EVPG_MUTATION("wait_for_ever"))
		ms = Min(ms, LONGEST_WAIT);
	if (wait_bucket >= 0)
	{
		Assert(wait_bucket == (int) (hash % EVPG_WAIT_BUCKETS));
		(void) ConditionVariableTimedSleep(&wait_slot->wakers[wait_bucket], ms, PG_WAIT_EXTENSION);
		return;
	}
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, Min(ms, wait_pause), PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	wait_pause = Min(wait_pause * 2, 100);
	CHECK_FOR_INTERRUPTS();
}

/* Ends a wait, if there is one. */
void
EvpgWaitEnd(void)
{
	if (wait_bucket < 0)
		return;
	ConditionVariableCancelSleep();
	pg_atomic_fetch_sub_u32(&wait_slot->waiters[wait_bucket], 1);
	wait_bucket = -1;
}
