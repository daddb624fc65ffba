/*-------------------------------------------------------------------------
 *
 * run_pass.c
 *		What is done outside the transactions of appenders: one pass over all
 *		tasks, for workers and for CALL evpg_run() alike.
 *
 * Each task is a transaction of its own, and takes what it works on by a lock
 * that it does not wait for, so that any number of sessions may run passes.
 *
 * Memory: names of tasks outlive the transactions, in a context of the pass.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/interference.h"
#include "base/subtransaction.h"
#include "base/testing.h"
#include "commands/dbcommands.h"
#include "consumer/activation.h"
#include "consumer/consumer.h"
#include "consumer/crash_suspects.h"
#include "consumer/last_worker.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "projection/async.h"
#include "projection/rebuild.h"
#include "saga/dispatch.h"
#include "saga/route.h"
#include "tcop/pquery.h"
#include "tcop/utility.h"
#include "subscription/announce.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker/prune.h"
#include "worker/run_pass.h"

PG_FUNCTION_INFO_V1(evpg_run);

/* The last worker looks so often whether it still is, while it is kept from something; ms. */
#define LAST_WORKER_PAUSE 1000

/* The consumers of which the pass has to run a batch last, by kind; in its context. */
static List *suspected_sagas;
static List *suspected_projections;

/* Whether any saga ran in the last pass. */
static bool pass_had_sagas = false;

static List *
list_sagas(void)
{
	return EvpgConsumerList("saga", &suspected_sagas);
}

static List *
list_projections(void)
{
	return EvpgConsumerList("projection", &suspected_projections);
}

/*
 * Returns the names of tasks, in context; none if consumers are inactive.  The
 * transaction continues with the first of them, which writes what is read here, so
 * the stronger locks are taken first.
 */
static List *
list_tasks(List *(*list) (void), MemoryContext context)
{
	MemoryContext old;
	List	   *names;
	EvpgScope	scope;

	EvpgEnter(&scope, NULL);
	EvpgCatalogLockForConsumer();
	old = MemoryContextSwitchTo(context);
	names = list();
	MemoryContextSwitchTo(old);
	/* A restore may have brought them since the pass began. */
	if (names != NIL && !EvpgActivationIsValid())
		names = NIL;
	EvpgLeave(&scope);
	return names;
}

/* A kind of tasks: what runs a batch, and what user code that calls. */
typedef struct TaskKind
{
	bool		(*run) (const char *name, TimestampTz *next);
	EvpgOccupation occupation;
} TaskKind;

typedef struct PassTask
{
	const char *name;
	const TaskKind *kind;
	TimestampTz next;
	bool		more;
} PassTask;

/* A task that was cancelled, for EvpgSubtransactionRun. */
typedef struct CancelledTask
{
	const char *name;
	const ErrorData *error;
	TimestampTz *next;
} CancelledTask;

static void
record_task_cancel(void *arg)
{
	CancelledTask *task = arg;

	EvpgConsumerRecordCancel(task->name, task->error, task->next);
}

/* Writes down that a task was cancelled by a session that is none of evpg's, or by itself, unless others are in the way. */
static void
record_cancel(const PassTask *task, const ErrorData *error, TimestampTz *next)
{
	CancelledTask cancelled = {.name = task->name, .error = error, .next = next};

	PushActiveSnapshot(GetTransactionSnapshot());
	(void) EvpgSubtransactionRun(record_task_cancel, &cancelled);
	PopActiveSnapshot();
}

/* Does what becomes of the error of a task: it is tried later if others have caused it, else it is a warning. */
static void
answer_task_error(const PassTask *task, ErrorData *error, TimestampTz *next)
{
	if (EvpgErrorIsCancel(error))
		EvpgRethrowError(error);
	if (EvpgPostponeAfterError(error, next))
	{
		EvpgInterferenceNote(task->kind, task->name, error);
		if (EvpgErrorIsForeignCancel(error) && (task->kind->occupation == EVPG_OCCUPATION_BATCH ||
												task->kind->occupation == EVPG_OCCUPATION_ROUTING))
			record_cancel(task, error, next);
		return;
	}
	EvpgInterferenceEnd(task->kind, task->name);
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("\"%s\" of database \"%s\" could not be run: %s", task->name,
					get_database_name(MyDatabaseId), error->message)));
}

static void
run_task(void *arg)
{
	PassTask   *task = arg;

	task->more = task->kind->run(task->name, &task->next);
}

/* Runs a task in a subtransaction; returns its error.  Keeps its code from being the end of the last worker. */
static ErrorData *
run_watched_task(PassTask *task)
{
	EvpgOccupation occupation = task->kind->occupation;
	ErrorData  *error;

	if (occupation == EVPG_OCCUPATION_NONE)
		return EvpgSubtransactionRun(run_task, task);
	if (EvpgLastWorkerIsKeptFrom(occupation, task->name))
	{
		task->next = Min(task->next, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LAST_WORKER_PAUSE));
		return NULL;
	}
	EvpgLastWorkerBegin(occupation, task->name);
	error = EvpgSubtransactionRun(run_task, task);
	if (EvpgLastWorkerEnd())
		EvpgLastWorkerReport(occupation, task->name);
	return error;
}

/* An action of EvpgSubtransactionRun. */
static void
take_back_counted(void *arg)
{
	EvpgCrashTakeBack();
}

/* Takes back the attempt that was counted for a task and was rolled back, in a transaction of its own. */
static void
take_back_attempt(void (*commit) (void))
{
	if (!EvpgCrashIsLocked())
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	(void) EvpgSubtransactionRun(take_back_counted, NULL);
	PopActiveSnapshot();
	commit();
}

/*
 * Runs every task of a kind, each with memory of its own; returns true if one has
 * more to do.  A task that has only counted an attempt makes that attempt before
 * anything else runs.  An error that a task does not handle itself is a warning,
 * and does not keep the others from running.
 */
static bool
run_tasks(List *names, const TaskKind *kind, MemoryContext context, void (*commit) (void), TimestampTz *next)
{
	MemoryContext memory = AllocSetContextCreate(context, "EvpgTask", ALLOCSET_DEFAULT_SIZES);
	bool		more = false;
	ListCell   *cell;

	foreach(cell, names)
	{
		bool		attempt_follows;
		bool		settled;

		do
		{
			PassTask	task = {.name = lfirst(cell), .kind = kind, .next = *next};
			ErrorData  *error;

			MemoryContextSwitchTo(memory);
			PushActiveSnapshot(GetTransactionSnapshot());
			error = run_watched_task(&task);
			PopActiveSnapshot();
			attempt_follows = EvpgCrashAttemptFollows() && error == NULL;
			settled = error == NULL;
			if (error == NULL)
			{
				more |= task.more;
				*next = task.next;
				EvpgInterferenceEnd(kind, task.name);
			}
			else
				answer_task_error(&task, error, next);
			commit();
			if (error != NULL)
				take_back_attempt(commit);
			MemoryContextReset(memory);
			CHECK_FOR_INTERRUPTS();
		} while (attempt_follows);
		EvpgCrashUnlock(settled);
	}
	return more;
}

/* Warns once in a process that consumers are inactive here: otherwise it looks as if they ran. */
static void
warn_about_inactive_copy(bool copy)
{
	static bool told = false;

	if (copy && !told && MyBackendType == B_BG_WORKER)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("consumers of database \"%s\" are inactive", get_database_name(MyDatabaseId)),
				 errdetail("It was restored or copied, and the original may still run them."),
				 errhint("Run evpg_activate_consumers() there if they are to run in it.")));
	told = copy;
}

/* Returns the one task that deletes old rows of all consumers. */
static List *
list_cleanup(void)
{
	return list_make1("old rows");
}

/* Deletes rows that rebuilds have left behind. */
static bool
clean_old_rows(const char *name, TimestampTz *next)
{
	return EvpgRebuildCleanUp();
}

/* Returns whether consumers may run in this database, which a copy of another one must not let them. */
static bool
consumers_may_run(void)
{
	EvpgScope	scope;
	bool		here;

	/* SPI needs a snapshot, and a worker has none yet. */
	PushActiveSnapshot(GetTransactionSnapshot());
	EvpgEnter(&scope, NULL);
	here = EvpgActivationIsValid();
	EvpgLeave(&scope);
	PopActiveSnapshot();
	warn_about_inactive_copy(!here);
	return here;
}

static const TaskKind routing = {EvpgRouteBatch, EVPG_OCCUPATION_ROUTING};
static const TaskKind applying = {EvpgAsyncApplyBatch, EVPG_OCCUPATION_BATCH};
static const TaskKind rebuilding = {EvpgRebuildContinue, EVPG_OCCUPATION_REBUILD};
static const TaskKind pruning = {EvpgPruneRun, EVPG_OCCUPATION_NONE};
static const TaskKind announcing = {EvpgAnnounceRun, EVPG_OCCUPATION_NONE};
static const TaskKind cleaning = {clean_old_rows, EVPG_OCCUPATION_NONE};

/* Does one round of all tasks, in the order of EvpgRunPass. */
static bool
run_all_tasks(void (*commit) (void), MemoryContext context, TimestampTz *next)
{
	List	   *sagas;
	bool		more = false;

	suspected_sagas = suspected_projections = NIL;
	more |= run_tasks(list_tasks(EvpgAnnounceList, context), &announcing, context, commit, next);
	sagas = list_tasks(list_sagas, context);
	pass_had_sagas = (sagas != NIL || suspected_sagas != NIL);
	more |= run_tasks(sagas, &routing, context, commit, next);
	more |= EvpgDispatchPass(commit, context, next);
	more |= run_tasks(list_tasks(list_projections, context), &applying, context, commit, next);
	more |= run_tasks(list_tasks(EvpgPruneList, context), &pruning, context, commit, next);
	more |= run_tasks(list_tasks(list_cleanup, context), &cleaning, context, commit, next);
	more |= run_tasks(list_tasks(EvpgRebuildListRunning, context), &rebuilding, context, commit, next);
	if (suspected_sagas != NIL)
	{
		more |= run_tasks(suspected_sagas, &routing, context, commit, next);
		more |= EvpgDispatchPass(commit, context, next);
	}
	more |= EvpgDispatchSuspect(commit, context, next);
	more |= run_tasks(suspected_projections, &applying, context, commit, next);
	EVPG_WAIT_POINT("pass_ended");
	return more;
}

/*
 * EvpgRunPass
 *		Runs one batch of every task that is due, each in a transaction of its
 *		own; none in a database that is a copy.  What may end the session, or crash the
 *		server, comes last, so that it keeps nothing else from being done.  commit() ends a transaction,
 *		starts the next one and chooses the memory context in which it
 *		continues.  Called inside a transaction, under READ COMMITTED, and left
 *		inside one.  Returns true if there is more to do now; else *next is when
 *		something becomes due, DT_NOEND if nothing is known to.
 */
bool
EvpgRunPass(void (*commit) (void), TimestampTz *next)
{
	MemoryContext context;
	volatile bool more = false;

	*next = DT_NOEND;
	if (!consumers_may_run())
		return false;
	/* Now, before something new has come. */
	(void) EvpgCrashSuspectLimit();
	context = AllocSetContextCreate(TopMemoryContext, "EvpgRunPass", ALLOCSET_SMALL_SIZES);
	EvpgLastWorkerWatch(true);
	PG_TRY();
	{
		more = run_all_tasks(commit, context, next);
	}
	PG_FINALLY();
	{
		EvpgLastWorkerWatch(false);
		EvpgCrashUnlock(false);
		MemoryContextDelete(context);
	}
	PG_END_TRY();
	return more;
}

/* Returns whether any saga ran when the last pass of this session began: events are to be reacted to soon. */
bool
EvpgRunPassHadSagas(void)
{
	return pass_had_sagas;
}

/* What a transaction of the procedure needs, as TopTransactionContext is for a worker. */
static MemoryContext procedure_context;

static void
commit_in_procedure(void)
{
	SPI_commit();
	EnsurePortalSnapshotExists();
	MemoryContextReset(procedure_context);
	MemoryContextSwitchTo(procedure_context);
}

/*
 * evpg_run
 *		SQL: CALL evpg_run(max_rounds). Runs passes in rounds: a round is over
 *		when there is nothing more to do now.  What a round makes necessary, the
 *		next one does.  After each the stable position is written into WAL.
 *		Commits, so it is refused inside a transaction block.
 */
Datum
evpg_run(PG_FUNCTION_ARGS)
{
	int			max_rounds;
	CallContext *call = (CallContext *) fcinfo->context;
	TimestampTz next;
	int64		logged;
	EvpgScope	scope;

	if (call == NULL || !IsA(call, CallContext) || call->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("evpg_run() commits, so it cannot be called inside a transaction block"),
				 errhint("CALL it by itself.")));
	max_rounds = PG_ARGISNULL(0) ? PG_INT32_MAX : EvpgArgInt(fcinfo, 0, "max_rounds", 1);
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("evpg_run() needs isolation level READ COMMITTED"),
				 errhint("SET default_transaction_isolation first.")));
	PreventCommandDuringRecovery("evpg_run()");
	EvpgEnter(&scope, NULL);
	EvpgActivationRequire();
	EvpgLeave(&scope);
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	procedure_context = AllocSetContextCreate(CurrentMemoryContext, "EvpgRun", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(procedure_context);
	for (int round = 0; round < max_rounds; round++)
	{
		bool		idle = true;

		while (EvpgRunPass(commit_in_procedure, &next))
			idle = false;
		(void) EvpgFenceLogStablePosition(&logged);
		if (idle)
			break;
	}
	SPI_finish();
	PG_RETURN_NULL();
}
