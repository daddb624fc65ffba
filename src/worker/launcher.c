/*-------------------------------------------------------------------------
 *
 * launcher.c
 *		Starts the background processes of databases, if the library was
 *		preloaded, and sees to it that they are not in the way of commands on
 *		whole databases, and hear of the end of a prepared transaction.
 *
 * The launcher is connected to no database.  It has every database that takes
 * connections and is no template looked at once, by a probe (worker.c), which
 * claims a slot for it if the extension is there; a database where the
 * extension is created later claims one by itself.  For databases with a slot
 * it keeps evpg.workers workers running, and a broadcaster once there are
 * frames; one that ended is started again after a pause, longer each time.
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
#include "base/wakeup.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "log/durable.h"
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

/* If there is no room for a process, the next one is tried after at most this; ms. */
#define LAST_ROOM_PAUSE 5000

/* Databases are looked through this often, since no statement tells of UPDATE pg_database; ms. */
#define LONGEST_RESCAN 60000

/* A process that has worked for so many times its last pause is not failing. */
#define WORKED 10

/* The server starts the launcher again after this, in s. */
#define LAUNCHER_PAUSE 5

/* A process that the launcher keeps running, or the probe. */
typedef struct Task
{
	BackgroundWorkerHandle *handle; /* NULL: not started, or ended */
	Oid			database;
	TimestampTz started_at;
	TimestampTz start_at;		/* not before this */
	long		pause;
} Task;

/* A database that can have the extension. */
typedef struct Known
{
	Oid			database;
	TimestampTz probe_at;		/* DT_NOEND: it was looked at */
} Known;

/* What a slot said when the launcher looked. */
typedef struct Look
{
	Oid			database;
	bool		held;
	bool		wants_broadcaster;
	bool		frames_wait;
	bool		running[EVPG_PROCESSES];
} Look;

static ProcessUtility_hook_type next_utility = NULL;

static Task *tasks;				/* of all slots, by slot and number */
static Oid *seen;				/* the database of each slot at the last look */
static Task probe;
static Known *known = NULL;
static int	nknown = 0;
static TimestampTz room_at = 0; /* no process could be started: try again */
static long room_pause = 0;		/* 0: all could be started */
static bool lacking;			/* in this round a process found no room */

/* ------------------------------------------------------------------ processes */

static void
advance_time(TimestampTz *next, TimestampTz candidate)
{
	*next = Min(*next, candidate);
}

/*
 * Whether the process of a task runs or is about to.  If it has ended, the next
 * one has to wait, unless it left because it was not wanted.
 */
static bool
process_is_running(Task *task, bool wanted)
{
	pid_t		pid;

	if (task->handle == NULL)
		return false;
	if (GetBackgroundWorkerPid(task->handle, &pid) != BGWH_STOPPED)
		return true;
	pfree(task->handle);
	task->handle = NULL;
	room_at = 0;
	if (!wanted)
		task->pause = 0;
	else if (TimestampDifferenceExceeds(task->started_at, GetCurrentTimestamp(), Max(task->pause, FIRST_PAUSE) * WORKED))
		task->pause = FIRST_PAUSE;
	else
		task->pause = EvpgNextPause(task->pause, FIRST_PAUSE, LAST_PAUSE);
	task->start_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), task->pause);
	return false;
}

/* Starts a process, or warns, once, that it cannot. */
static void
start_process(Task *task, const char *what, const char *function, Oid database, int number)
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

	task->database = database;
	task->started_at = GetCurrentTimestamp();
	if (!RegisterDynamicBackgroundWorker(&worker, &task->handle))
	{
		task->handle = NULL;
		if (room_pause == 0)
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("could not start %s", worker.bgw_name),
					 errdetail("All background worker slots are in use; evpg will try again."),
					 errhint("Increase max_worker_processes.")));
		room_pause = EvpgNextPause(room_pause, FIRST_PAUSE, LAST_ROOM_PAUSE);
		room_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), room_pause);
	}
	MemoryContextSwitchTo(old);
}

/* ------------------------------------------------------------------ databases */

static Known *
find_known(Oid database)
{
	for (int i = 0; i < nknown; i++)
		if (known[i].database == database)
			return &known[i];
	return NULL;
}

/* Reads pg_database: all databases that take connections, and anew into known those that are to be looked at. */
static List *
read_databases(void)
{
	Relation	relation = table_open(DatabaseRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(relation, 0, NULL);
	List	   *databases = NIL;
	Known	   *now = NULL;
	int			count = 0;
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);
		Known	   *before = find_known(database->oid);

		if (!database->datallowconn)
			continue;
		databases = lappend_oid(databases, database->oid);
		if (database->datistemplate)
			continue;
		now = now == NULL ? MemoryContextAlloc(TopMemoryContext, sizeof(Known)) : repalloc(now, sizeof(Known) * (count + 1));
		now[count].database = database->oid;
		now[count].probe_at = before == NULL ? 0 : before->probe_at;
		count++;
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	if (known != NULL)
		pfree(known);
	known = now;
	nknown = count;
	return databases;
}

/* Learns which databases there are, and frees the slots of those that are gone, or take no connections any more. */
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

/* Whether there was something new to learn. */
static bool
rescan_wanted(void)
{
	bool		wanted;

	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	wanted = EvpgShmem->rescan;
	EvpgShmem->rescan = false;
	LWLockRelease(EvpgShmem->lock);
	return wanted;
}

/* ------------------------------------------------------------------ probing */

/* What came of the last probe. */
static void
end_probe(void)
{
	Known	   *entry = find_known(probe.database);
	bool		answered;

	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	answered = EvpgShmem->probed == probe.database && EvpgShmem->refused != probe.database;
	EvpgShmem->probed = InvalidOid;
	LWLockRelease(EvpgShmem->lock);
	if (entry != NULL)
		entry->probe_at = answered ? DT_NOEND : TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LAST_PAUSE);
	probe.database = InvalidOid;
}

static bool
has_slot(Oid database)
{
	for (int i = 0; i < EvpgShmem->count; i++)
		if (seen[i] == database)
			return true;
	return false;
}

/* Has the next database looked at, one after the other. */
static void
probe_next(TimestampTz *next)
{
	if (process_is_running(&probe, false))
		return;
	if (OidIsValid(probe.database))
		end_probe();
	for (int i = 0; i < nknown; i++)
	{
		if (known[i].probe_at == DT_NOEND || has_slot(known[i].database))
			continue;
		if (Max(known[i].probe_at, room_at) <= GetCurrentTimestamp())
		{
			start_process(&probe, "probe", "evpg_probe_main", known[i].database, EVPG_BROADCASTER);
			lacking |= probe.handle == NULL;
			return;
		}
		advance_time(next, Max(known[i].probe_at, room_at));
	}
}

/* ------------------------------------------------------------------ slots */

/*
 * A slot was freed: its database is looked at again, for the extension may have
 * come back in the meantime; all are, if any found no free slot.
 */
static void
slot_freed(Oid database)
{
	bool		refused;

	LWLockAcquire(EvpgShmem->lock, LW_EXCLUSIVE);
	refused = OidIsValid(EvpgShmem->refused);
	EvpgShmem->refused = InvalidOid;
	LWLockRelease(EvpgShmem->lock);
	for (int i = 0; i < nknown; i++)
		if (refused || known[i].database == database)
			known[i].probe_at = 0;
}

static void
look_at_slot(int slot, Look *look)
{
	EvpgDatabase *database = &EvpgShmem->databases[slot];
	bool		used;

	LWLockAcquire(EvpgShmem->lock, LW_SHARED);
	look->database = database->database;
	look->held = database->holds > 0;
	look->wants_broadcaster = database->wants_broadcaster;
	look->frames_wait = database->ring.head != database->ring.tail;
	used = OidIsValid(look->database) || look->held;
	for (int number = 0; number < EVPG_PROCESSES; number++)
	{
		look->running[number] = database->processes[number].pid != 0;
		used |= look->running[number];
	}
	LWLockRelease(EvpgShmem->lock);
	/* It is free when nothing of the last owner is left. */
	if (seen[slot] != look->database && (OidIsValid(look->database) || !used))
	{
		if (OidIsValid(seen[slot]))
			slot_freed(seen[slot]);
		seen[slot] = look->database;
	}
}

/*
 * Starts what a slot lacks: workers, or the broadcaster.  While workers lack a
 * place a broadcaster takes none, since frames can go by NOTIFY, unless some wait
 * for it in the ring and no worker of the database can send them.
 */
static void
fill_database_slot(int slot, bool broadcaster, TimestampTz *next)
{
	Look		look;

	look_at_slot(slot, &look);
	if (lacking && (!look.frames_wait || look.running[0]))
		look.wants_broadcaster = false;
	for (int number = broadcaster ? EVPG_BROADCASTER : 0; number < (broadcaster ? EVPG_PROCESSES : EVPG_BROADCASTER); number++)
	{
		Task	   *task = &tasks[slot * EVPG_PROCESSES + number];
		bool		wanted = OidIsValid(look.database) && !look.held &&
		(number == EVPG_BROADCASTER ? look.wants_broadcaster : number < EvpgWorkers);

		if (process_is_running(task, wanted) || look.running[number] || !wanted)
			continue;
		if (task->database != look.database)
			task->pause = task->start_at = 0;
		if (task->start_at > GetCurrentTimestamp())
		{
			advance_time(next, task->start_at);
			continue;
		}
		if (room_at > GetCurrentTimestamp())
			advance_time(next, room_at);
		else if (number == EVPG_BROADCASTER)
			start_process(task, "broadcaster", "evpg_broadcaster_main", look.database, number);
		else
			start_process(task, "worker", "evpg_worker_main", look.database, number);
		lacking |= task->handle == NULL;
	}
}

/* Warns, once until a slot is freed, that a database found none. */
static void
warn_of_refused(void)
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
forget_launcher(int code, Datum arg)
{
	EvpgShmem->launcher = NULL;
}

static void
prepare_launcher(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	on_shmem_exit(forget_launcher, (Datum) 0);
	EvpgShmem->launcher = MyLatch;
	EvpgShmem->rescan = true;
	room_at = EvpgShmem->start_at;
	tasks = MemoryContextAllocZero(TopMemoryContext, sizeof(Task) * EVPG_PROCESSES * EvpgShmem->count);
	seen = MemoryContextAllocZero(TopMemoryContext, sizeof(Oid) * EvpgShmem->count);
}

static void
launcher_sleep_until(TimestampTz next)
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

/* Lets broadcasters leave that have nothing to send, if workers lack a place. */
static void
set_crowded(bool crowded)
{
	if (EvpgShmem->crowded == crowded)
		return;
	EvpgShmem->crowded = crowded;
	for (int slot = 0; crowded && slot < EvpgShmem->count; slot++)
		EvpgWakeProcess(&EvpgShmem->databases[slot].processes[EVPG_BROADCASTER]);
}

void
evpg_launcher_main(Datum arg)
{
	TimestampTz rescan_at = 0;

	prepare_launcher();
	for (;;)
	{
		TimestampTz next = DT_NOEND;

		if (rescan_wanted() || rescan_at <= GetCurrentTimestamp())
		{
			rescan_databases();
			rescan_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LONGEST_RESCAN);
		}
		advance_time(&next, rescan_at);
		lacking = false;
		for (int slot = 0; slot < EvpgShmem->count; slot++)
			fill_database_slot(slot, false, &next);
		probe_next(&next);
		set_crowded(lacking);
		for (int slot = 0; slot < EvpgShmem->count; slot++)
			fill_database_slot(slot, true, &next);
		if (!lacking)
			room_pause = 0;
		else if (room_at > GetCurrentTimestamp())
			advance_time(&next, room_at);
		warn_of_refused();
		launcher_sleep_until(next);
	}
}

/* ------------------------------------------------------------------ commands on whole databases */

static const char *
option_value(List *options, const char *name)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = lfirst(cell);

		if (strcmp(option->defname, name) == 0 && option->arg != NULL)
			return defGetString(option);
	}
	return NULL;
}

/* The database that nobody else may be connected to, NULL if the statement is not about one. */
static const char *
needs_alone(Node *statement)
{
	if (IsA(statement, DropdbStmt))
		return ((DropdbStmt *) statement)->dbname;
	if (IsA(statement, CreatedbStmt))
	{
		const char *template = option_value(((CreatedbStmt *) statement)->options, "template");

		return template != NULL ? template : "template1";
	}
	if (IsA(statement, RenameStmt) && ((RenameStmt *) statement)->renameType == OBJECT_DATABASE)
		return ((RenameStmt *) statement)->subname;
	if (IsA(statement, AlterDatabaseStmt) && option_value(((AlterDatabaseStmt *) statement)->options, "tablespace") != NULL)
		return ((AlterDatabaseStmt *) statement)->dbname;
	return NULL;
}

/* Whether the user may create databases.  The server's own function is not exported by all minor releases of 15. */
static bool
may_create_databases(void)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
	ReleaseSysCache(tuple);
	return result;
}

/* Whether the user may do to a database what the statement says. */
static bool
may_change_database(Node *statement, Oid database)
{
	HeapTuple	tuple;
	bool		template;

	if (pg_database_ownercheck(database, GetUserId()))
		return true;
	if (!IsA(statement, CreatedbStmt) || !may_create_databases())
		return false;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	if (!HeapTupleIsValid(tuple))
		return false;
	template = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	ReleaseSysCache(tuple);
	return template;
}

/* Sends background processes away where they are in the way, if the user is who may say so. */
static void
make_room(Node *statement)
{
	const char *name = needs_alone(statement);
	Oid			database = name == NULL ? InvalidOid : get_database_oid(name, true);

	if (OidIsValid(database) && may_change_database(statement, database))
		EvpgShmemDismissDatabase(database);
	/* Any may say whether it is a template, or takes connections. */
	if (name != NULL || IsA(statement, AlterDatabaseStmt))
		EvpgRescanDatabasesAtEnd();
	if (IsA(statement, CreateExtensionStmt) && strcmp(((CreateExtensionStmt *) statement)->extname, "evpg") == 0)
		EvpgWakeLauncherAtCommit();
}

/* What a prepared transaction did is told by who ends it, since there is no callback. */
static bool
ends_prepared(Node *statement)
{
	return IsA(statement, TransactionStmt) &&
		(((TransactionStmt *) statement)->kind == TRANS_STMT_COMMIT_PREPARED ||
		 ((TransactionStmt *) statement)->kind == TRANS_STMT_ROLLBACK_PREPARED);
}

static void
process_utility(PlannedStmt *statement, const char *query, bool read_only_tree, ProcessUtilityContext context,
				ParamListInfo params, QueryEnvironment *environment, DestReceiver *receiver, QueryCompletion *completion)
{
	ProcessUtility_hook_type next = next_utility != NULL ? next_utility : standard_ProcessUtility;

	make_room(statement->utilityStmt);
	if (!ends_prepared(statement->utilityStmt))
	{
		next(statement, query, read_only_tree, context, params, environment, receiver, completion);
		return;
	}
	EvpgDurablePreparedBegin();
	PG_TRY();
	{
		next(statement, query, read_only_tree, context, params, environment, receiver, completion);
	}
	PG_FINALLY();
	{
		EvpgDurablePreparedEnd();
	}
	PG_END_TRY();
	EvpgWakeAllProcesses();
}

/* Called once, from _PG_init. */
void
EvpgLauncherInit(void)
{
	BackgroundWorker worker = {0};

	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;
	next_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	strlcpy(worker.bgw_type, "evpg launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "evpg launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_library_name, EVPG_LIBRARY, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "evpg_launcher_main", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = LAUNCHER_PAUSE;
	RegisterBackgroundWorker(&worker);
}
