/*-------------------------------------------------------------------------
 *
 * launcher.c
 *		Starts the background processes of databases, if the library was
 *		preloaded.
 *
 * The launcher is connected to no database.  It probes every database that
 * takes connections and is not a template once (evpg_probe_main), and the probe
 * claims a slot for it if the extension exists; a database where the extension
 * is created later claims one by itself.  For databases with a slot it keeps
 * evpg.workers workers running, and a broadcaster once there are frames; one
 * that has ended is started again after a pause that grows each time, unless the code
 * of an attempt has ended it, of which crash_suspects.c takes care: that must not keep
 * others waiting.
 *
 * The server starts the launcher when recovery is over, so on a standby when it
 * is promoted, and again after a crash; with pg_upgrade, never.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "base/retry.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/subtransaction.h"
#include "base/testing.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"
#include "worker/launcher.h"
#include "worker/background_process.h"

/* A process that ended is started again after a pause between these; ms. */
#define FIRST_PAUSE 1000
#define LAST_PAUSE 60000

/* A defect: the pause after the first. */
#define ENDLESS_PAUSE 3600000

/* If there is no room for a process, the next one is tried after at most this; ms. */
#define LAST_ROOM_PAUSE 5000

/* How often pg_database is read, since no statement reports UPDATE pg_database; ms. */
#define LONGEST_RESCAN 60000

/* A process that has worked for so many times its last pause is not failing. */
#define WORKED 10

/* The server starts the launcher again after this, in s. */
#define LAUNCHER_PAUSE 5

/* A process that the launcher keeps running, or the probe. */
typedef struct ManagedProcess
{
	BackgroundWorkerHandle *handle; /* NULL: not started, or ended */
	Oid			database;
	TimestampTz started_at;
	TimestampTz start_at;		/* not before this */
	long		pause;
} ManagedProcess;

/* A database that can have the extension. */
typedef struct Candidate
{
	Oid			database;
	TimestampTz probe_at;		/* DT_NOEND: it was probed */
} Candidate;

/* The state of a slot when the launcher read it. */
typedef struct SlotState
{
	Oid			database;
	bool		held;
	bool		wants_broadcaster;
	bool		frames_wait;
	bool		running[EVPG_PROCESSES];
} SlotState;

static ManagedProcess *managed_processes;	/* of all slots, by slot and
											 * number */
static Oid *slot_databases;		/* the database of each slot at the last look */
static ManagedProcess probe;
static Candidate *candidates = NULL;
static int	ncandidates = 0;
static TimestampTz room_at = 0; /* no process could be started: try again */
static long room_pause = 0;		/* 0: all could be started */
static bool no_room;			/* in this round a process found no room */

/* ------------------------------------------------------------------ processes */

/* Lowers *next to candidate. */
static void
lower_time(TimestampTz *next, TimestampTz candidate)
{
	*next = Min(*next, candidate);
}

/*
 * Returns whether a process runs or is about to.  If it has ended, the next start has
 * to wait, unless it ended because it was not wanted.  process is what it is in shared
 * memory; NULL: the probe, which is not there.
 */
static bool
process_is_running(ManagedProcess *managed, EvpgProcess *process, bool wanted)
{
	bool		expected;
	pid_t		pid;

	if (managed->handle == NULL)
		return false;
	if (GetBackgroundWorkerPid(managed->handle, &pid) != BGWH_STOPPED)
		return true;
	pfree(managed->handle);
	managed->handle = NULL;
	room_at = 0;
	expected = process != NULL && EvpgProcessTakeExpectedEnd(process);
	if (!wanted)
		managed->pause = 0;
	else if (expected)
	{
		managed->start_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), FIRST_PAUSE);
		return false;
	}
	else if (TimestampDifferenceExceeds(managed->started_at, GetCurrentTimestamp(),
										Max(managed->pause, FIRST_PAUSE) * WORKED))
		managed->pause = FIRST_PAUSE;
	else
		managed->pause = managed->pause > 0 && EVPG_MUTATION("patient_launcher") ? ENDLESS_PAUSE :
			EvpgRetryNextPause(managed->pause, FIRST_PAUSE, LAST_PAUSE);
	managed->start_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), managed->pause);
	return false;
}

/* Starts a process, or warns, once, that it cannot. */
static void
start_process(ManagedProcess *managed, const char *what, const char *function, Oid database, int number)
{
	BackgroundWorker worker = {0};
	EvpgBackgroundStart extra = {.database = database, .number = number};
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	snprintf(worker.bgw_type, BGW_MAXLEN, "evpg %s", what);
	if (number < EVPG_MAX_WORKERS)
		snprintf(worker.bgw_name, BGW_MAXLEN, "evpg %s %d of database %u", what, number + 1, database);
	else
		snprintf(worker.bgw_name, BGW_MAXLEN, "evpg %s of database %u", what, database);
	strlcpy(worker.bgw_library_name, EVPG_LIBRARY, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, function, BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	memcpy(worker.bgw_extra, &extra, sizeof(extra));

	managed->database = database;
	managed->started_at = GetCurrentTimestamp();
	if (!RegisterDynamicBackgroundWorker(&worker, &managed->handle))
	{
		managed->handle = NULL;
		if (room_pause == 0)
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("could not start %s", worker.bgw_name),
					 errdetail("All background worker slots are in use; evpg will try again."),
					 errhint("Increase max_worker_processes.")));
		room_pause = EvpgRetryNextPause(room_pause, FIRST_PAUSE, LAST_ROOM_PAUSE);
		room_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), room_pause);
	}
	MemoryContextSwitchTo(old);
}

/* ------------------------------------------------------------------ databases */

/* Finds a database among the candidates; NULL if it is none. */
static Candidate *
find_candidate(Oid database)
{
	for (int i = 0; i < ncandidates; i++)
		if (candidates[i].database == database)
			return &candidates[i];
	return NULL;
}

/*
 * Reads pg_database: returns all databases that take connections, and sets
 * candidates to those that are to be probed.
 */
static List *
read_databases(void)
{
	Relation	relation = table_open(DatabaseRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(relation, 0, NULL);
	List	   *databases = NIL;
	Candidate  *now = NULL;
	int			count = 0;
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);
		Candidate  *before = find_candidate(database->oid);

		if (!database->datallowconn)
			continue;
		databases = lappend_oid(databases, database->oid);
		if (database->datistemplate)
			continue;
		now = now == NULL ? MemoryContextAlloc(TopMemoryContext, sizeof(Candidate)) :
			repalloc(now, sizeof(Candidate) * (count + 1));
		now[count].database = database->oid;
		now[count].probe_at = before == NULL ? 0 : before->probe_at;
		count++;
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	if (candidates != NULL)
		pfree(candidates);
	candidates = now;
	ncandidates = count;
	return databases;
}

/*
 * Updates the candidates, and frees the slots of databases that are gone, or
 * no longer take connections.
 */
static void
rescan_databases(void)
{
	List	   *databases;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	databases = read_databases();
	for (int i = 0; i < EvpgShmem->count; i++)
	{
		Oid			database = EvpgShmem->databases[i].database;

		if (OidIsValid(database) && !list_member_oid(databases, database))
			EvpgShmemFreeDatabase(database);
	}
	CommitTransactionCommand();
}

/* Returns whether a rescan was requested, and clears the request. */
static bool
take_rescan_request(void)
{
	bool		wanted;

	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	wanted = EvpgShmem->rescan;
	EvpgShmem->rescan = false;
	LWLockRelease(EvpgShmem->lock);
	return wanted;
}

/* ------------------------------------------------------------------ probing */

/* Records what the last probe found: whether the database is to be probed again. */
static void
record_probe_result(void)
{
	Candidate  *entry = find_candidate(probe.database);
	bool		answered;

	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	answered = EvpgShmem->probed == probe.database && EvpgShmem->refused != probe.database;
	EvpgShmem->probed = InvalidOid;
	LWLockRelease(EvpgShmem->lock);
	if (entry != NULL)
		entry->probe_at = answered ? DT_NOEND : TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LAST_PAUSE);
	probe.database = InvalidOid;
}

/* Returns whether a database had a slot when slots were read last. */
static bool
database_has_slot(Oid database)
{
	for (int i = 0; i < EvpgShmem->count; i++)
		if (slot_databases[i] == database)
			return true;
	return false;
}

/* Starts the probe of the next candidate, one at a time. */
static void
probe_next_database(TimestampTz *next)
{
	if (process_is_running(&probe, NULL, false))
		return;
	if (OidIsValid(probe.database))
		record_probe_result();
	for (int i = 0; i < ncandidates; i++)
	{
		if (candidates[i].probe_at == DT_NOEND || database_has_slot(candidates[i].database))
			continue;
		if (Max(candidates[i].probe_at, room_at) <= GetCurrentTimestamp())
		{
			start_process(&probe, "probe", "evpg_probe_main", candidates[i].database, EVPG_BROADCASTER);
			no_room |= probe.handle == NULL;
			return;
		}
		lower_time(next, Max(candidates[i].probe_at, room_at));
	}
}

/* ------------------------------------------------------------------ slots */

/*
 * Probes the database of a slot that was freed again, since the extension may
 * have come back meanwhile; all candidates, if any found no free slot.
 */
static void
probe_after_freed_slot(Oid database)
{
	bool		refused;

	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	refused = OidIsValid(EvpgShmem->refused);
	EvpgShmem->refused = InvalidOid;
	LWLockRelease(EvpgShmem->lock);
	for (int i = 0; i < ncandidates; i++)
		if (refused || candidates[i].database == database)
			candidates[i].probe_at = 0;
}

/* Reads the state of a slot, and notices if it has changed its owner. */
static void
read_slot_state(int slot, SlotState *slot_state)
{
	EvpgDatabase *database = &EvpgShmem->databases[slot];
	bool		used;

	LWLockAcquire(EvpgShmem->lock, LW_SHARED);
	slot_state->database = database->database;
	slot_state->held = database->holds > 0;
	slot_state->wants_broadcaster = database->wants_broadcaster;
	slot_state->frames_wait = database->ring.head != database->ring.tail;
	used = OidIsValid(slot_state->database) || slot_state->held;
	for (int number = 0; number < EVPG_PROCESSES; number++)
	{
		slot_state->running[number] = database->processes[number].pid != 0;
		used |= slot_state->running[number];
	}
	LWLockRelease(EvpgShmem->lock);
	/* The slot is free when nothing of its last owner is left. */
	if (slot_databases[slot] != slot_state->database && (OidIsValid(slot_state->database) || !used))
	{
		if (OidIsValid(slot_databases[slot]))
			probe_after_freed_slot(slot_databases[slot]);
		slot_databases[slot] = slot_state->database;
	}
}

/*
 * Starts what a slot lacks: workers, or the broadcaster.  While workers lack a
 * place a broadcaster takes none, since frames can go by NOTIFY, unless some
 * wait for it in the ring and no worker of the database can send them.
 */
static void
fill_database_slot(int slot, bool broadcaster, TimestampTz *next)
{
	SlotState	slot_state;
	int			first = broadcaster ? EVPG_BROADCASTER : 0;
	int			end = broadcaster ? EVPG_PROCESSES : EVPG_BROADCASTER;

	read_slot_state(slot, &slot_state);
	if (no_room && (!slot_state.frames_wait || slot_state.running[0]))
		slot_state.wants_broadcaster = false;
	for (int number = first; number < end; number++)
	{
		ManagedProcess *managed = &managed_processes[slot * EVPG_PROCESSES + number];
		EvpgProcess *process = &EvpgShmem->databases[slot].processes[number];
		bool		wanted = OidIsValid(slot_state.database) && !slot_state.held &&
		(number == EVPG_BROADCASTER ? slot_state.wants_broadcaster : number < EvpgWorkers);

		if (process_is_running(managed, process, wanted) || slot_state.running[number] || !wanted)
			continue;
		if (managed->database != slot_state.database)
			managed->pause = managed->start_at = 0;
		if (managed->start_at > GetCurrentTimestamp())
		{
			lower_time(next, managed->start_at);
			continue;
		}
		if (room_at > GetCurrentTimestamp())
			lower_time(next, room_at);
		else if (number == EVPG_BROADCASTER)
			start_process(managed, "broadcaster", "evpg_broadcaster_main", slot_state.database, number);
		else
			start_process(managed, "worker", "evpg_worker_main", slot_state.database, number);
		no_room |= managed->handle == NULL;
	}
}

/* Warns, once until a slot is freed, that a database found none. */
static void
warn_about_refused_database(void)
{
	static Oid	warned = InvalidOid;
	Oid			refused = EvpgShmem->refused;

	if (OidIsValid(refused) && !OidIsValid(warned))
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("database with OID %u has no workers", refused),
				 errdetail("Only %d databases can have workers.", EvpgMaxDatabases),
				 errhint("Increase evpg.max_databases and restart the server.")));
	warned = refused;
}

/* ------------------------------------------------------------------ launcher */

static void
unregister_launcher(int code, Datum arg)
{
	EvpgShmem->launcher = NULL;
}

/* Sets up the launcher process: signals, shared memory, and a connection to no database. */
static void
connect_launcher(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	on_shmem_exit(unregister_launcher, (Datum) 0);
	EvpgShmem->launcher = MyLatch;
	EvpgShmem->rescan = true;
	room_at = EvpgShmem->start_at;
	managed_processes = MemoryContextAllocZero(TopMemoryContext, sizeof(ManagedProcess) * EVPG_PROCESSES * EvpgShmem->count);
	slot_databases = MemoryContextAllocZero(TopMemoryContext, sizeof(Oid) * EvpgShmem->count);
}

/* Sleeps until a time or a wake-up, and handles interrupts. */
static void
sleep_launcher_until(TimestampTz next)
{
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (next == DT_NOEND ? 0 : WL_TIMEOUT);

	(void) WaitLatch(MyLatch, events, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next), PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	/* 1, so that the server starts it again if this is not a shutdown. */
	if (ProcDiePending)
		proc_exit(1);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/* Publishes whether workers lack a place, so that broadcasters with nothing to send leave. */
static void
publish_crowded(bool crowded)
{
	if (EvpgShmem->crowded == crowded)
		return;
	EvpgShmem->crowded = crowded;
	for (int slot = 0; crowded && slot < EvpgShmem->count; slot++)
		EvpgWakeProcess(&EvpgShmem->databases[slot].processes[EVPG_BROADCASTER]);
}

/* Runs the launcher.  Started by the server. */
void
evpg_launcher_main(Datum arg)
{
	TimestampTz rescan_at = 0;

	connect_launcher();
	for (;;)
	{
		TimestampTz next = DT_NOEND;

		if (take_rescan_request() || rescan_at <= GetCurrentTimestamp())
		{
			rescan_databases();
			rescan_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LONGEST_RESCAN);
		}
		lower_time(&next, rescan_at);
		no_room = false;
		for (int slot = 0; slot < EvpgShmem->count; slot++)
			fill_database_slot(slot, false, &next);
		probe_next_database(&next);
		publish_crowded(no_room);
		for (int slot = 0; slot < EvpgShmem->count; slot++)
			fill_database_slot(slot, true, &next);
		if (!no_room)
			room_pause = 0;
		else if (room_at > GetCurrentTimestamp())
			lower_time(&next, room_at);
		warn_about_refused_database();
		sleep_launcher_until(next);
	}
}

/*
 * EvpgLauncherInit
 *		Registers the launcher, if the library is
 *		preloaded.  Called once, from _PG_init.
 */
void
EvpgLauncherInit(void)
{
	BackgroundWorker worker = {0};

	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;
	strlcpy(worker.bgw_type, "evpg launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "evpg launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_library_name, EVPG_LIBRARY, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "evpg_launcher_main", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = LAUNCHER_PAUSE;
	RegisterBackgroundWorker(&worker);
}
