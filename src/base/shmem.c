/*-------------------------------------------------------------------------
 *
 * shmem.c
 *		Shared memory, if the library was preloaded: the slots of databases, and the
 *		background processes in them.
 *
 * A database with the extension has one of evpg.max_databases slots.  A slot is
 * claimed by a session that finds that its database has none: a process that looks
 * whether the extension exists (worker.c), or a transaction that appended.  It is
 * freed when the extension or the database is gone, which launcher.c and worker.c
 * see.  So a pointer to a slot is only good for as long as the slot has the OID of
 * the database: where that matters it is checked under the lock.  Waking a process
 * for nothing does no harm, so wakers do not check.
 *
 * A wake-up of a process is not lost: a session that has work for it sets woken,
 * then its latch; the process clears woken, then looks for work, and sleeps only if
 * woken is still clear.  Wake-ups at the end of a transaction are in wakeup.c.
 *
 * Locks: EvpgSharedState.lock for slots, below it the lock of a ring.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "base/retry.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/testing.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_bitutils.h"
#include "portability/instr_time.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/wait_event.h"

/* Processes that are to leave get this long to end their batch, then they are interrupted; ms. */
#define LEAVE_BY_THEMSELVES 1000
#define LEAVE 5000

/* After a crash the launcher pauses for so long, and not after one that comes so long after the last; ms. */
#define FIRST_PAUSE 250
#define LAST_PAUSE 10000
#define CALM 60000

PG_FUNCTION_INFO_V1(evpg_database_slots);
PG_FUNCTION_INFO_V1(evpg_worker_slots);

EvpgSharedState *EvpgShmem = NULL;

static shmem_request_hook_type next_shmem_request = NULL;
static shmem_startup_hook_type next_shmem_startup = NULL;

/* The slot of MyDatabaseId as it was last found. */
static EvpgDatabase *found = NULL;

/* What this process is, if it is a background process of a database, and in which slot. */
static EvpgProcess *myself = NULL;
static EvpgDatabase *attached = NULL;

/* Databases that this transaction holds: no process is to be connected to them. */
static int	held = 0;
static bool holding[EVPG_MAX_DATABASES];

/* ------------------------------------------------------------------ start of the server */

static Size
compute_slots_size(void)
{
	return MAXALIGN(add_size(offsetof(EvpgSharedState, databases), mul_size(sizeof(EvpgDatabase), EvpgMaxDatabases)));
}

static Size
compute_ring_size(void)
{
	return (Size) EvpgBroadcastBuffer * 1024;
}

static void
request_shmem(void)
{
	if (next_shmem_request != NULL)
		next_shmem_request();
	RequestAddinShmemSpace(add_size(compute_slots_size(), mul_size(compute_ring_size(), EvpgMaxDatabases)));
	RequestNamedLWLockTranche("evpg", 1 + EvpgMaxDatabases);
}

/*
 * Returns when background processes may be started: at once, but after crashes
 * that follow each other after pauses that double, since the processes may
 * have caused them.  Called by the postmaster, which remembers.
 */
static TimestampTz
compute_start_time(void)
{
	static TimestampTz start_at = 0;
	static int	pause = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (start_at == 0 || TimestampDifferenceExceeds(start_at, now, CALM) || EVPG_MUTATION("hasty_launcher"))
		pause = 0;
	else
		pause = EvpgRetryNextPause(pause, FIRST_PAUSE, LAST_PAUSE);
	start_at = TimestampTzPlusMilliseconds(now, pause);
	return start_at;
}

static void
initialize_shmem(void)
{
	LWLockPadded *locks = GetNamedLWLockTranche("evpg");

	memset(EvpgShmem, 0, compute_slots_size());
	EvpgShmem->lock = &locks[0].lock;
	EvpgShmem->rescan = true;
	EvpgShmem->start_at = compute_start_time();
	pg_atomic_init_u64(&EvpgShmem->appended, 0);
	pg_atomic_init_u32(&EvpgShmem->finishing, 0);
	pg_atomic_init_u64(&EvpgShmem->released, 0);
	pg_atomic_init_u32(&EvpgShmem->releasing, 0);
	pg_atomic_init_u64(&EvpgShmem->last_epoch, 0);
	EvpgShmem->count = EvpgMaxDatabases;
	for (int i = 0; i < EvpgMaxDatabases; i++)
	{
		EvpgDatabase *database = &EvpgShmem->databases[i];

		database->ring.lock = &locks[1 + i].lock;
		for (int number = 0; number < EVPG_RESTRAINTS; number++)
			pg_atomic_init_u64(&database->restrained[number], 0);
		pg_atomic_init_u64(&database->all_restrained_until, 0);
		pg_atomic_init_u64(&database->epoch, 0);
		pg_atomic_init_u64(&database->position_logged, 0);
		for (int number = 0; number < EVPG_PROCESSES; number++)
		{
			pg_atomic_init_u64(&database->processes[number].began, 0);
			pg_atomic_init_u32(&database->processes[number].changes, 0);
		}
		database->ring.bytes = (char *) EvpgShmem + compute_slots_size() + i * compute_ring_size();
		for (int bucket = 0; bucket < EVPG_WAIT_BUCKETS; bucket++)
		{
			ConditionVariableInit(&database->wakers[bucket]);
			pg_atomic_init_u32(&database->waiters[bucket], 0);
		}
	}
}

static void
attach_shmem(void)
{
	bool		exists;

	if (next_shmem_startup != NULL)
		next_shmem_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	EvpgShmem = ShmemInitStruct("evpg", compute_slots_size() + compute_ring_size() * EvpgMaxDatabases, &exists);
	if (!exists)
		initialize_shmem();
	LWLockRelease(AddinShmemInitLock);
}

/* Returns whether the library was preloaded. */
bool
EvpgShmemPreloaded(void)
{
	return EvpgShmem != NULL;
}

/* ------------------------------------------------------------------ slots */

/* Returns the slot of a database, NULL if it has none.  The caller holds the lock. */
static EvpgDatabase *
find_database(Oid database)
{
	for (int i = 0; i < EvpgShmem->count; i++)
		if (EvpgShmem->databases[i].database == database)
			return &EvpgShmem->databases[i];
	return NULL;
}

/*
 * Returns a slot that belongs to no database, and where no process of the last
 * owner is left; NULL if there is none.  The caller holds the lock.
 */
static EvpgDatabase *
find_free_slot(void)
{
	for (int i = 0; i < EvpgShmem->count; i++)
	{
		EvpgDatabase *slot = &EvpgShmem->databases[i];
		bool		used = OidIsValid(slot->database) || slot->holds > 0;

		for (int number = 0; number < EVPG_PROCESSES; number++)
			used |= slot->processes[number].pid != 0;
		if (!used)
			return slot;
	}
	return NULL;
}

static void
clear_ring(EvpgFrameRing *ring)
{
	ring->head = ring->tail = 0;
	ring->commits = ring->put = ring->sent = ring->dropped = ring->announced = ring->resyncs = 0;
}

/* Gives a database a number that no database has had since the start of the server. */
void
EvpgShmemBeginEpoch(EvpgDatabase *database)
{
	pg_atomic_write_u64(&database->epoch, pg_atomic_add_fetch_u64(&EvpgShmem->last_epoch, 1));
}

/* Gives MyDatabaseId a slot, and lets the launcher know; NULL if there is none. */
static EvpgDatabase *
claim_slot(void)
{
	EvpgDatabase *slot;

	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	slot = find_database(MyDatabaseId);
	if (slot == NULL)
	{
		slot = find_free_slot();
		if (slot == NULL)
			EvpgShmem->refused = MyDatabaseId;
		else
		{
			slot->wants_broadcaster = false;
			EvpgShmemBeginEpoch(slot);
			LWLockAcquire(slot->ring.lock, LW_EXCLUSIVE);
			clear_ring(&slot->ring);
			slot->database = MyDatabaseId;
			LWLockRelease(slot->ring.lock);
		}
	}
	LWLockRelease(EvpgShmem->lock);
	EvpgWakeLauncher();
	return slot;
}

/*
 * EvpgShmemDatabase
 *		Returns the slot of this database, NULL if it has none.  With claim it
 *		gets one, if one is free.  Does not fail, so it can be called in
 *		callbacks.
 */
EvpgDatabase *
EvpgShmemDatabase(bool claim)
{
	EvpgDatabase *slot;

	if (EvpgShmem == NULL || !OidIsValid(MyDatabaseId))
		return NULL;
	if (likely(found != NULL && found->database == MyDatabaseId))
		return found;
	LWLockAcquire(EvpgShmem->lock, LW_SHARED);
	slot = find_database(MyDatabaseId);

	/*
	 * Once a database was refused, no session need try before a slot is
	 * freed.
	 */
	claim &= slot == NULL && !OidIsValid(EvpgShmem->refused);
	LWLockRelease(EvpgShmem->lock);
	if (claim)
		slot = claim_slot();
	return found = slot;
}

/* Wakes a process, if it exists, since there is work for it, which the caller has made visible. */
void
EvpgWakeProcess(EvpgProcess *process)
{
	Latch	   *latch = *(Latch *volatile *) &process->latch;

	if (latch != NULL && !process->woken)
	{
		process->woken = true;
		SetLatch(latch);
	}
}

/* Lets the processes of a slot check whether they are still wanted.  The caller holds the lock. */
static void
signal_processes(EvpgDatabase *slot)
{
	for (int number = 0; number < EVPG_PROCESSES; number++)
		if (slot->processes[number].latch != NULL)
			SetLatch(slot->processes[number].latch);
}

/* Frees the slot of a database, if it has one that is not held. */
void
EvpgShmemFreeDatabase(Oid database)
{
	EvpgDatabase *slot;

	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	slot = find_database(database);
	if (slot != NULL && slot->holds == 0)
	{
		slot->database = InvalidOid;
		signal_processes(slot);
	}
	LWLockRelease(EvpgShmem->lock);
	EvpgWakeLauncher();
}

/* Wakes the launcher at once. */
void
EvpgWakeLauncher(void)
{
	Latch	   *latch = *(Latch *volatile *) &EvpgShmem->launcher;

	if (latch != NULL)
		SetLatch(latch);
}

/* ------------------------------------------------------------------ background processes */

static void
detach_process(int code, Datum arg)
{
	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	myself->latch = NULL;
	myself->pid = 0;
	if (attached->processes[EVPG_BROADCASTER].pid == MyProcPid)
		attached->processes[EVPG_BROADCASTER].pid = 0;
	LWLockRelease(EvpgShmem->lock);
	EvpgWakeLauncher();
}

/*
 * EvpgProcessAttach
 *		Makes this process the numbered one of its database, to its end.
 *		Returns NULL if it is not wanted: no slot, a hold, or there already is
 *		one.
 */
EvpgProcess *
EvpgProcessAttach(int number)
{
	EvpgDatabase *slot;

	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	slot = find_database(MyDatabaseId);
	if (slot != NULL && slot->holds == 0 && slot->processes[number].pid == 0)
	{
		myself = &slot->processes[number];
		myself->pid = MyProcPid;
		myself->woken = false;
		myself->cancelled_by_evpg = false;
		pg_atomic_write_u64(&myself->began, 0);
		myself->latch = MyLatch;
		attached = slot;
	}
	LWLockRelease(EvpgShmem->lock);
	if (myself != NULL)
		on_shmem_exit(detach_process, (Datum) 0);
	return myself;
}

/* Returns what this process is attached as; NULL if it is none of evpg's. */
EvpgProcess *
EvpgProcessOwn(void)
{
	return myself;
}

/* Returns the time that has passed since some moment, by a clock that is never set, in ms; never 0. */
uint64
EvpgMonotonicMs(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (uint64) INSTR_TIME_GET_MILLISEC(now) + 1;
}

/*
 * EvpgProcessShowOccupation
 *		Shows other sessions that this process, which is attached, begins to call user
 *		code; name is that of the consumer, NULL for a scheduled command.
 */
void
EvpgProcessShowOccupation(EvpgOccupation occupation, const char *name)
{
	pg_atomic_write_u32(&myself->changes, pg_atomic_read_u32(&myself->changes) + 1);
	pg_write_barrier();
	myself->occupation = occupation;
	strlcpy(myself->occupant, name == NULL ? "" : name, sizeof(myself->occupant));
	pg_atomic_write_u64(&myself->began, EvpgMonotonicMs());
	pg_write_barrier();
	pg_atomic_write_u32(&myself->changes, pg_atomic_read_u32(&myself->changes) + 1);
}

/* Returns, once, whether evpg has sent the SIGINT that this process has got.  Called by its handler. */
bool
EvpgProcessTakeEvpgCancel(void)
{
	bool		by_evpg = myself != NULL && myself->cancelled_by_evpg;

	if (by_evpg)
		myself->cancelled_by_evpg = false;
	return by_evpg;
}

/*
 * EvpgProcessExpectEnd
 *		Notes that this process, if it is attached, is ended by the code of a user that it
 *		has called, or by evpg: it need not be started later because of that.
 */
void
EvpgProcessExpectEnd(void)
{
	if (myself != NULL)
		myself->end_is_expected = true;
}

/* Returns, once, whether the end of a process that has ended was expected.  Called by the launcher. */
bool
EvpgProcessTakeExpectedEnd(EvpgProcess *process)
{
	bool		expected;

	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	expected = process->end_is_expected;
	process->end_is_expected = false;
	LWLockRelease(EvpgShmem->lock);
	return expected;
}

/*
 * EvpgProcessSetStandIn
 *		Makes this process, which is attached as a worker, the broadcaster as
 *		well, or no longer; returns false if there is another one.  It is not
 *		woken as such.
 */
bool
EvpgProcessSetStandIn(bool begin)
{
	EvpgProcess *broadcaster = &attached->processes[EVPG_BROADCASTER];
	bool		done;

	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	done = broadcaster->pid == (begin ? 0 : MyProcPid);
	if (done)
		broadcaster->pid = begin ? MyProcPid : 0;
	LWLockRelease(EvpgShmem->lock);
	return done;
}

/*
 * EvpgShmemAttachedDatabase
 *		Returns the slot that this process is attached to.  It is not claimed
 *		anew before this process has ended, but it may have been freed.
 */
EvpgDatabase *
EvpgShmemAttachedDatabase(void)
{
	return attached;
}

/* Returns whether this process, which is attached, is to leave. */
bool
EvpgProcessIsUnwanted(void)
{
	return attached->database != MyDatabaseId || attached->holds > 0;
}

/* Returns the transaction of a process, if it is among these; else InvalidLocalTransactionId. */
static LocalTransactionId
find_transaction_of(pid_t pid, const VirtualTransactionId *transactions)
{
	PGPROC	   *proc = BackendPidGetProc(pid);
	VirtualTransactionId own;

	if (proc == NULL)
		return InvalidLocalTransactionId;
	GET_VXID_FROM_PGPROC(own, *proc);
	for (; VirtualTransactionIdIsValid(*transactions); transactions++)
		if (VirtualTransactionIdEquals(own, *transactions))
			return own.localTransactionId;
	return InvalidLocalTransactionId;
}

/*
 * EvpgCancelLockHolders
 *		Cancels the workers of this database that hold a lock in a mode that conflicts
 *		with this one.  Those that have been cancelled and are in the same transaction
 *		still get the signal instead, 0 for none.  cancelled has EVPG_MAX_WORKERS elements
 *		for that, at first InvalidLocalTransactionId.  A worker may have given the lock
 *		back meanwhile: what it does now must stand the signal, too.
 */
EvpgSignalled
EvpgCancelLockHolders(const LOCKTAG *tag, LOCKMODE mode, LocalTransactionId *cancelled, int signal)
{
	EvpgDatabase *slot = EvpgShmemDatabase(false);
	VirtualTransactionId *holders;
	EvpgSignalled signalled = EVPG_SIGNALLED_NONE;

	if (slot == NULL)
		return EVPG_SIGNALLED_NONE;
	holders = GetLockConflicts(tag, mode, NULL);
	LWLockAcquire(EvpgShmem->lock, LW_SHARED);
	for (int number = 0; number < EVPG_MAX_WORKERS; number++)
	{
		pid_t		pid = slot->processes[number].pid;
		LocalTransactionId held_by = pid == 0 ? InvalidLocalTransactionId : find_transaction_of(pid, holders);

		if (!LocalTransactionIdIsValid(held_by))
			continue;
		signalled = Max(signalled, cancelled[number] == held_by ? EVPG_SIGNALLED_AGAIN : EVPG_SIGNALLED_CANCEL);
		if (cancelled[number] != held_by)
			slot->processes[number].cancelled_by_evpg = true;
		else if (signal == SIGTERM)
			slot->processes[number].end_is_expected = true;
		(void) kill(pid, cancelled[number] == held_by ? signal : SIGINT);
		cancelled[number] = held_by;
	}
	LWLockRelease(EvpgShmem->lock);
	return signalled;
}

/* ------------------------------------------------------------------ holds */

static bool
has_processes(const EvpgDatabase *slot)
{
	bool		any = false;

	LWLockAcquire(EvpgShmem->lock, LW_SHARED);
	for (int number = 0; number < EVPG_PROCESSES; number++)
		any |= slot->processes[number].pid != 0;
	LWLockRelease(EvpgShmem->lock);
	return any;
}

static void
terminate_processes(const EvpgDatabase *slot)
{
	LWLockAcquire(EvpgShmem->lock, LW_SHARED);
	for (int number = 0; number < EVPG_PROCESSES; number++)
		if (slot->processes[number].pid != 0)
			(void) kill(slot->processes[number].pid, SIGTERM);
	LWLockRelease(EvpgShmem->lock);
}

/*
 * EvpgShmemDismissDatabase
 *		Makes the processes of a database leave, and keeps new ones away to the
 *		end of this transaction.  Waits for them, for a limited time: what they
 *		are in the way of then fails as for any other session.
 */
void
EvpgShmemDismissDatabase(Oid database)
{
	EvpgDatabase *slot;

	if (EvpgShmem == NULL)
		return;
	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	slot = find_database(database);
	if (slot != NULL && !holding[slot - EvpgShmem->databases])
	{
		holding[slot - EvpgShmem->databases] = true;
		held++;
		slot->holds++;
		signal_processes(slot);
	}
	LWLockRelease(EvpgShmem->lock);
	if (slot == NULL)
		return;
	for (int waited = 0; waited < LEAVE && has_processes(slot); waited += 10)
	{
		if (waited == LEAVE_BY_THEMSELVES)
			terminate_processes(slot);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Returns whether this transaction holds a database. */
bool
EvpgShmemHasHolds(void)
{
	return held > 0;
}

/* Lets processes of the databases that this transaction held start again. */
void
EvpgShmemReleaseHolds(void)
{
	if (held == 0)
		return;
	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < EvpgShmem->count; i++)
		if (holding[i])
		{
			EvpgShmem->databases[i].holds--;
			holding[i] = false;
		}
	held = 0;
	LWLockRelease(EvpgShmem->lock);
}

/* Installs the shared-memory hooks; called once, from _PG_init, after the settings are defined. */
void
EvpgShmemInit(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	next_shmem_request = shmem_request_hook;
	shmem_request_hook = request_shmem;
	next_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = attach_shmem;
}

/* ------------------------------------------------------------------ SQL */

static void
put_slot(ReturnSetInfo *result, Oid database, int workers, pid_t broadcaster, const char *reason)
{
	Datum		values[5];
	bool		nulls[5] = {false, false, false, broadcaster == 0, reason == NULL};

	values[0] = ObjectIdGetDatum(database);
	values[1] = Int32GetDatum(workers);
	values[2] = Int32GetDatum(EvpgWorkers);
	values[3] = Int32GetDatum((int32) broadcaster);
	if (reason != NULL)
		values[4] = CStringGetTextDatum(reason);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* Returns why a slot has no worker. */
static const char *
get_idle_reason(bool held)
{
	if (held)
		return "a command that needs the database without connections keeps them away";
	if (EvpgWorkers == 0)
		return "evpg.workers is 0";
	return EvpgShmem->crowded ? "all background processes are in use: increase max_worker_processes" :
		"its workers are starting";
}

/* Returns the databases with a slot, one that found none, and that of the session, whose reason is known best. */
Datum
evpg_database_slots(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			refused;
	bool		mine = false;

	InitMaterializedSRF(fcinfo, 0);
	if (EvpgShmem == NULL)
	{
		put_slot(result, MyDatabaseId, 0, 0, "evpg is not in shared_preload_libraries");
		PG_RETURN_NULL();
	}
	(void) EvpgShmemDatabase(!RecoveryInProgress());
	for (int i = 0; i < EvpgShmem->count; i++)
	{
		EvpgDatabase *slot = &EvpgShmem->databases[i];
		Oid			database;
		pid_t		broadcaster;
		bool		is_held;
		int			workers = 0;

		LWLockAcquire(EvpgShmem->lock, LW_SHARED);
		database = slot->database;
		is_held = slot->holds > 0;
		broadcaster = slot->processes[EVPG_BROADCASTER].pid;
		for (int number = 0; number < EVPG_MAX_WORKERS; number++)
			workers += slot->processes[number].pid != 0;
		LWLockRelease(EvpgShmem->lock);
		if (!OidIsValid(database))
			continue;
		mine |= database == MyDatabaseId;
		put_slot(result, database, workers, broadcaster, workers > 0 ? NULL : get_idle_reason(is_held));
	}
	refused = EvpgShmem->refused;
	if (!mine)
		put_slot(result, MyDatabaseId, 0, 0, RecoveryInProgress() ? "a standby has no background processes" :
				 "all places are taken: increase evpg.max_databases");
	if (OidIsValid(refused) && refused != MyDatabaseId)
		put_slot(result, refused, 0, 0, "all places are taken: increase evpg.max_databases");
	PG_RETURN_NULL();
}

/* What the workers of a database call, as evpg.stat_worker shows it. */
static const char *const occupation_names[] = {
	[EVPG_OCCUPATION_NONE] = NULL,
	[EVPG_OCCUPATION_REACTION] = "a reaction of a saga",
	[EVPG_OCCUPATION_COMMAND] = "a scheduled command",
	[EVPG_OCCUPATION_ROUTING] = "the routing of a saga",
	[EVPG_OCCUPATION_BATCH] = "a batch of a projection",
	[EVPG_OCCUPATION_REBUILD] = "a rebuild of a projection"
};

/* Reads what a process has shown last; returns since when, 0 if it calls nothing now. */
static uint64
read_occupation(EvpgProcess *process, EvpgOccupation *occupation, char *occupant)
{
	uint64		began;
	uint32		changes;

	do
	{
		/* The process may be stopped while it writes. */
		CHECK_FOR_INTERRUPTS();
		changes = pg_atomic_read_u32(&process->changes);
		pg_read_barrier();
		*occupation = process->occupation;
		memcpy(occupant, process->occupant, EVPG_MAX_NAME + 1);
		began = pg_atomic_read_u64(&process->began);
		pg_read_barrier();
	} while (changes % 2 != 0 || changes != pg_atomic_read_u32(&process->changes));
	return began;
}

/* Returns the workers of this database, and which user code they call since when. */
Datum
evpg_worker_slots(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	EvpgDatabase *slot = EvpgShmemDatabase(false);

	InitMaterializedSRF(fcinfo, 0);
	for (int number = 0; slot != NULL && number < EVPG_MAX_WORKERS; number++)
	{
		EvpgProcess *process = &slot->processes[number];
		pid_t		pid = process->pid;
		EvpgOccupation occupation;
		char		occupant[EVPG_MAX_NAME + 1];
		uint64		began = read_occupation(process, &occupation, occupant);
		Datum		values[4] = {0};
		bool		nulls[4] = {false, began == 0, began == 0 || occupant[0] == '\0', began == 0};
		Interval	lasts = {0};

		if (pid == 0)
			continue;
		values[0] = Int32GetDatum((int32) pid);
		if (began != 0)
		{
			values[1] = CStringGetTextDatum(occupation_names[occupation]);
			values[2] = CStringGetTextDatum(occupant);
			lasts.time = ((int64) EvpgMonotonicMs() - (int64) began) * 1000;
			values[3] = IntervalPGetDatum(&lasts);
		}
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	PG_RETURN_NULL();
}
