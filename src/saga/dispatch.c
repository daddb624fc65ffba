/*-------------------------------------------------------------------------
 *
 * dispatch.c
 *		Lets instances of sagas react to events and timers, and scheduled commands
 *		happen: each in one transaction, with everything that follows from it
 *		(rules 16 to 18).
 *
 * Before that transaction an attempt is counted in one of its own, which is on
 * disk before the work begins: so work that crashes the server is given up in the
 * end like work that fails.  First attempts are counted for many at once; what
 * was tried before is counted and tried alone, so that it cannot spoil the
 * counts of others, and its end is on disk before anything else begins.  Of attempts
 * that had no result only those count that were made alone.
 *
 * Who works on an instance holds its advisory lock, from before the attempt is
 * counted to the end of the work: a lock of the session, since the two are
 * transactions.  Who changes the saga itself locks out all of its instances.
 *
 * A reaction runs in a subtransaction.  If it fails nothing of it remains; it is
 * tried again after a pause that doubles each time, with some jitter, and in the
 * end becomes a dead letter.  What need not come back (40001, 40P01, 55P03, class
 * 53, a worker that is cancelled) does not count as an attempt.  If it has waited in
 * vain for a lock, the rest of what was claimed is given back.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/twophase.h"
#include "access/xact.h"
#include "aggregate/command.h"
#include "aggregate/context.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/errors.h"
#include "base/locks.h"
#include "base/retry.h"
#include "base/settings.h"
#include "base/subtransaction.h"
#include "base/testing.h"
#include "base/wakeup.h"
#include "commands/dbcommands.h"
#include "consumer/consumer.h"
#include "consumer/crash_suspects.h"
#include "consumer/worker_lock.h"
#include "log/event_log.h"
#include "miscadmin.h"
#include "projection/batch.h"
#include "saga/action.h"
#include "saga/dispatch.h"
#include "saga/saga_code.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* So much is claimed at once. */
#define CLAIMS 50

/* So much of what is due is looked at, if others have locked all that is older. */
#define MOST_DUE 800

/*
 * After a wait in vain for a lock what had to wait comes last for so many passes,
 * then once in its own order, so that it is tried again however much there is to do.
 */
#define UNHINDERED_PASSES 8

/* A scheduled command may fail so often. */
#define MAX_ATTEMPTS 5

/* Deeper chains are taken for this long: more than evpg.max_saga_depth can be. */
#define MAX_DEPTH 2000000

/* A pause before what failed for a reason that need not come back is tried again. */
#define TRANSIENT_PAUSE (USECS_PER_SEC / 2)

/* ------------------------------------------------------------------ locks */

/* Locks a saga: shared by who works on instances, to the end of the transaction. */
bool
EvpgDispatchLockSaga(const char *saga, LOCKMODE mode, bool wait)
{
	LOCKTAG		tag;

	EvpgLockSagaTag(saga, &tag);
	if (!EvpgLockAcquire(&tag, mode, wait))
		return false;
	/* What was registered until now must be seen. */
	AcceptInvalidationMessages();
	return true;
}

static void
instance_tag(const EvpgDueItem *work, LOCKTAG *tag)
{
	EvpgLockTag(tag, EVPG_LOCK_INSTANCE,
				work->saga != NULL ? EvpgHashPair(work->saga, work->key) : (uint64) work->timer_id);
}

/* Instances that the current transaction has locked; a rollback to a savepoint only makes it too high. */
static int	instances_locked = 0;

static void
forget_instances(XactEvent event, void *arg)
{
	instances_locked = 0;
}

/* Called once, from _PG_init. */
void
EvpgDispatchInit(void)
{
	RegisterXactCallback(forget_instances, NULL);
}

/*
 * EvpgDispatchLock
 *		Locks an instance, or a scheduled command; false if it is not to be had.
 *
 * The lock table is shared by all sessions of the server, so one transaction
 * may not fill more than half of it.
 */
bool
EvpgDispatchLock(const EvpgDueItem *work, bool session, bool wait)
{
	int			limit = max_locks_per_xact * (MaxBackends + max_prepared_xacts) / 2;
	LOCKTAG		tag;
	LockAcquireResult result;

	if (!session && instances_locked >= limit)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many instances of sagas in one transaction"),
				 errdetail("It has locked %d, and may not fill more than half of the lock table of the server.", instances_locked),
				 errhint("Commit after fewer, for example evpg_run_sagas(max_events => 1000).")));
	instance_tag(work, &tag);
	if (EVPG_MUTATION("saga_unlocked"))
		return true;
	result = LockAcquire(&tag, ExclusiveLock, session, !wait);
	if (!session && result == LOCKACQUIRE_OK)
		instances_locked++;
	return result != LOCKACQUIRE_NOT_AVAIL;
}

/* Does something with a scheduled command, for which it may have to wait for a worker that executes it. */
void
EvpgDispatchOvertake(int64 timer_id, void (*action) (void *arg), void *arg)
{
	EvpgDueItem command = {.timer_id = timer_id};
	LOCKTAG		tag;

	instance_tag(&command, &tag);
	EvpgLockOvertake(&tag, ExclusiveLock, action, arg);
}

static void
unlock_item(EvpgDueItem *work)
{
	LOCKTAG		tag;

	if (!work->locked)
		return;
	work->locked = false;
	instance_tag(work, &tag);
	(void) LockRelease(&tag, ExclusiveLock, true);
}

/* ------------------------------------------------------------------ one reaction */

/* A reaction is being worked on. */
static bool reacting = false;

/* What a reaction may not do, nor a command that it sends: locks of its own session would not stop it. */
void
EvpgRefuseInSaga(const char *what)
{
	if (reacting)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_REENTERED),
				 errmsg("a reaction of a saga cannot %s", what),
				 errhint("Let a client do it.")));
}

/* How deep an event is in a chain of sagas that react to what sagas did. */
static int
depth_of(const EvpgEvent *event)
{
	JsonbValue *depth = EvpgEventBookkeeping(event, "depth");
	double		value;

	if (depth == NULL || depth->type != jbvNumeric)
		return 0;
	/* Anybody can write metadata, so it need not be a sensible number. */
	value = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow, NumericGetDatum(depth->val.numeric)));
	return (int) Max(0, Min(value, MAX_DEPTH));
}

static void
check_depth(EvpgReactionRun *acting)
{
	if (acting->depth <= EvpgMaxSagaDepth)
		return;
	acting->given_up = true;
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_LIMIT),
			 errmsg("saga \"%s\" reacts to itself, or to others that react to it, without end", acting->work->saga),
			 errdetail("The chain is %d reactions long; the limit is %d.", acting->depth, EvpgMaxSagaDepth),
			 errhint("Let an event that a saga has caused end the chain, or let a superuser raise evpg.max_saga_depth.")));
}

/* The name of a state, for declared transitions. */
static char *
state_name(Jsonb *state)
{
	JsonbValue *name = !JB_ROOT_IS_OBJECT(state) ? NULL : getKeyJsonValueFromContainer(&state->root, "state", 5, NULL);

	return name == NULL || name->type != jbvString ? "" : pnstrdup(name->val.string.val, name->val.string.len);
}

/* A change from one state to another must have been declared. */
static void
check_transition(EvpgReactionRun *acting, const char *before)
{
	Jsonb	   *transitions = acting->saga->transitions;
	char	   *after = state_name(acting->instance.state);
	JsonbValue *targets;

	if (transitions == NULL || strcmp(before, after) == 0)
		return;
	targets = getKeyJsonValueFromContainer(&transitions->root, before, strlen(before), NULL);
	if (targets != NULL && targets->type == jbvBinary)
	{
		JsonbValue	wanted = {.type = jbvString,.val.string = {.val = after, .len = strlen(after)}};

		if (findJsonbValueFromContainer(targets->val.binary.data, JB_FARRAY, &wanted) != NULL)
			return;
	}
	acting->given_up = true;
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_TRANSITION),
			 errmsg("saga \"%s\" has no transition from \"%s\" to \"%s\"", acting->saga->name, before, after),
			 errhint("Declare it in \"transitions\".")));
}

/* Which version of the saga an instance has; a new one the highest. */
static void
find_saga(EvpgReactionRun *acting)
{
	acting->saga = EvpgSagaFind(acting->work->saga, acting->instance.exists ? acting->instance.saga_version : 0);
	if (acting->saga == NULL)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_UNKNOWN_CONSUMER),
				 errmsg("version %d of saga \"%s\" is not registered", acting->instance.saga_version, acting->work->saga)));
}

/* Does what a reaction says, and keeps what the instance has come to. */
static void
apply_reaction(EvpgReactionRun *acting, const EvpgReaction *reaction, const char *before)
{
	EvpgActionsRun(acting, reaction);
	check_transition(acting, before);
	acting->instance.version++;
	EvpgInstanceWrite(acting->work, &acting->instance);
}

/* Whether the version that an instance has finds its key in an event; perhaps only another one has. */
static bool
is_meant(const EvpgReactionRun *acting, const EvpgEvent *event)
{
	ListCell   *cell;

	if (list_length(EvpgSagaVersions(acting->saga->name)) < 2)
		return true;
	foreach(cell, EvpgSagaCodeKeys(acting->saga, event))
		if (strcmp(lfirst(cell), acting->work->key) == 0)
		return true;
	return false;
}

static void
begin_instance(EvpgReactionRun *acting)
{
	acting->instance.state = acting->saga->initial_state;
	acting->instance.undo = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("[]")));
	acting->instance.saga_version = acting->saga->version;
}

static void
react_to_event(EvpgReactionRun *acting, const EvpgEvent *event)
{
	EvpgInstance *instance = &acting->instance;
	EvpgReaction reaction;
	const char *before;

	EvpgInstanceRead(acting->work, instance);
	if (instance->completed)
		return;
	find_saga(acting);
	if (!EvpgSagaTakes(acting->saga, event) ||
		(!instance->exists && !EvpgSagaStarts(acting->saga, event)) || !is_meant(acting, event))
		return;
	acting->source = EvpgUuidText(&event->event_id);
	acting->correlation_id = event->correlation_id != NULL ? event->correlation_id : acting->source;
	acting->causation_id = acting->source;
	acting->actor = event->actor;
	acting->session_role = event->session_role;
	EvpgContextSetSessionRole(acting->session_role);
	acting->depth = depth_of(event) + 1;
	check_depth(acting);
	if (!instance->exists)
		begin_instance(acting);
	before = instance->exists ? state_name(instance->state) : "";
	EvpgSagaCodeOnEvent(acting->saga, acting->work->key, instance->state, event, &reaction);
	EVPG_WAIT_POINT("saga_handled");
	/* A key that is not known, and the saga does not want to. */
	if (!instance->exists && reaction.state == NULL)
		return;
	instance->position = Max(instance->position, event->position);
	apply_reaction(acting, &reaction, before);
}

static void
react_to_timer(EvpgReactionRun *acting, const EvpgTimer *timer)
{
	EvpgInstance *instance = &acting->instance;
	EvpgReaction reaction;
	EvpgFiredTimer fired = {
		.key = acting->work->key,
		.name = timer->name,
		.payload = timer->payload,
		.scheduled_at = timer->scheduled_at,
		.due_at = timer->due_at,
		.fired_at = EvpgClockNow()
	};

	EvpgInstanceRead(acting->work, instance);
	if (!instance->exists || instance->completed)
		return;
	find_saga(acting);
	acting->source = psprintf("timer " INT64_FORMAT " of " INT64_FORMAT, acting->work->timer_id, timer->scheduled_at);
	acting->correlation_id = timer->correlation_id;
	acting->causation_id = timer->causation_id;
	acting->session_role = timer->session_role;
	EvpgContextSetSessionRole(acting->session_role);
	/* A chain that waits is none that runs away. */
	acting->depth = timer->due_at < timer->scheduled_at + USECS_PER_SEC ? timer->depth + 1 : 1;
	check_depth(acting);
	EvpgSagaCodeOnTimer(acting->saga, instance->state, &fired, &reaction);
	EVPG_WAIT_POINT("saga_handled");
	apply_reaction(acting, &reaction, state_name(instance->state));
}

/* A command of evpg_schedule_command(); what is refused now would be refused again. */
static void
execute_scheduled(EvpgReactionRun *acting, const EvpgTimer *timer)
{
	EvpgCommand command;
	EvpgOutcome outcome;

	acting->command = timer->command;
	EvpgCommandFromJsonb(timer->command, &command);
	command.session_role = timer->session_role;
	if (command.command_id == NULL)
		command.command_id = psprintf("timer:" INT64_FORMAT, acting->work->timer_id);
	EvpgCommandExecute(&command, true, &outcome);
	acting->given_up = true;
	EvpgOutcomeRaise(&outcome);
	acting->given_up = false;
	acting->dispatched++;
}

/* Takes work away; false if somebody else has. */
static bool
take_item(const EvpgDueItem *what)
{
	if (EVPG_MUTATION("saga_kept"))
		return true;
	return EvpgDueItemDelete(what) || EVPG_MUTATION("saga_unchecked") || EVPG_MUTATION("saga_early");
}

/* The work of one transaction.  It is taken away first, since a timer may be set again by the reaction to it. */
static void
run_item(void *arg)
{
	EvpgReactionRun *acting = arg;
	EvpgTimer	timer;

	if (acting->work->position == 0 && !EvpgTimerRead(acting->work->timer_id, &timer))
		return;
	if (!take_item(acting->work))
		return;
	EVPG_WAIT_POINT("saga_taken");
	if (acting->work->position != 0)
	{
		EvpgLogFilter filter = {.after = acting->work->position - 1, .upto = acting->work->position};
		EvpgLogScan *scan;
		EvpgEvent	event;

		PushActiveSnapshot(GetTransactionSnapshot());
		scan = EvpgLogScanAll(&filter);
		if (!EvpgLogScanNext(scan, &event))
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("there is no event at position " INT64_FORMAT, acting->work->position)));
		react_to_event(acting, &event);
		EvpgLogScanEnd(scan);
		PopActiveSnapshot();
	}
	else if (acting->work->saga == NULL)
		execute_scheduled(acting, &timer);
	else
		react_to_timer(acting, &timer);
	EVPG_WAIT_POINT("saga_reacted");
}

/* ------------------------------------------------------------------ failures */

/* When to try again after so many attempts. */
static TimestampTz
retry_at(const EvpgSaga *saga, int attempts)
{
	return saga == NULL ? EvpgRetryAt(attempts) : EvpgRetryAfter(attempts, saga->backoff, saga->max_backoff);
}

/* How often work may fail. */
static int
max_attempts(const EvpgDueItem *work)
{
	EvpgSaga   *saga = work->saga == NULL ? NULL : EvpgSagaFind(work->saga, 0);

	return saga == NULL ? MAX_ATTEMPTS : saga->max_attempts;
}

static EvpgDispatched
write_item_dead_letter(EvpgReactionRun *acting, const ErrorData *error)
{
	const EvpgDueItem *work = acting->work;
	ErrorData	told = *error;
	EvpgDeadLetter letter = {.work = work, .label = acting->label, .command = acting->command, .error = &told};
	int64		dead_letter_id;

	/* A send was refused, and nobody has said what then. */
	if (told.hint == NULL && work->saga != NULL && acting->command != NULL && told.sqlerrcode == EVPG_ERRCODE_REJECTED)
		told.hint = "Register a rejection_handler, or let it handle this code.";
	/* A timer that was moved or cancelled meanwhile is not given up. */
	dead_letter_id = EvpgDeadLetterWrite(&letter);
	if (dead_letter_id == 0)
		return EVPG_DISPATCH_LATER;
	/* Nobody waits for what is behind it. */
	if (work->saga != NULL)
		EvpgWakeWaitersAtCommit(EvpgHashPair(work->saga, ""));
	EVPG_WAIT_POINT("saga_buried");
	ereport(EvpgSubtransactionLevel(),
			(work->saga == NULL ?
			 errmsg("scheduled command " INT64_FORMAT " of database \"%s\" has become dead letter " INT64_FORMAT,
					work->timer_id, get_database_name(MyDatabaseId), dead_letter_id) :
			 errmsg("saga \"%s\" of database \"%s\" has dead letter " INT64_FORMAT, work->saga,
					get_database_name(MyDatabaseId), dead_letter_id),
			 errdetail("The error has SQLSTATE %s; evpg.dead_letter has the rest.", unpack_sql_state(error->sqlerrcode)),
			 errhint("When the cause is gone, use evpg_retry_dead_letter(); or evpg_discard_dead_letter().")));
	return EVPG_DISPATCH_DEAD;
}

/* That was no attempt. */
static void
put_off(void *work)
{
	EvpgDueItemRetryAt(work, EvpgClockNow() + TRANSIENT_PAUSE, ((EvpgDueItem *) work)->attempts - 1);
}

/* What a reaction has failed with. */
typedef struct Failure
{
	EvpgReactionRun *acting;
	const ErrorData *error;
	EvpgDispatched result;
} Failure;

static EvpgDispatched
fail_item(EvpgReactionRun *acting, const ErrorData *error)
{
	const EvpgDueItem *work = acting->work;

	if (EvpgErrorIsTransient(error))
	{
		put_off(unconstify(EvpgDueItem *, work));
		return EVPG_DISPATCH_LATER;
	}
	if (acting->given_up || work->attempts >= max_attempts(work))
		return write_item_dead_letter(acting, error);
	EvpgDueItemRetryAt(work, retry_at(work->saga == NULL ? NULL : EvpgSagaFind(work->saga, 0), work->attempts), work->attempts);
	EVPG_WAIT_POINT("saga_put_off");
	return EVPG_DISPATCH_LATER;
}

static void
record_failure(void *arg)
{
	Failure    *failure = arg;

	failure->result = fail_item(failure->acting, failure->error);
}

/*
 * Records a failure.  Others may be in the way of that, too: who moves or cancels a
 * timer has its row, and then the failure is none of the timer as it is to be.
 */
static EvpgDispatched
settle_failure(EvpgReactionRun *acting, const ErrorData *error)
{
	Failure		failure = {.acting = acting, .error = error};
	TimestampTz later = DT_NOEND;
	ErrorData  *hindrance = EvpgSubtransactionRun(record_failure, &failure);

	if (hindrance == NULL)
		return failure.result;
	if (EvpgAttemptPutOff(hindrance, &later))
		hindrance = EvpgSubtransactionRun(put_off, unconstify(EvpgDueItem *, acting->work));
	if (hindrance != NULL && !EvpgAttemptPutOff(hindrance, &later))
		ReThrowError(hindrance);
	return EVPG_DISPATCH_LATER;
}

static bool
saga_is_running(const char *saga)
{
	EvpgConsumer consumer;

	return EvpgConsumerRead(saga, &consumer) && consumer.running;
}

/*
 * EvpgDispatch
 *		Does work in the current transaction.  The caller holds its lock and is
 *		inside EvpgEnter.  *sent grows by the commands that were sent; *error, if
 *		wanted, is what went wrong.  again: it is a dead letter already, and stays
 *		one if it fails.
 */
EvpgDispatched
EvpgDispatch(EvpgDueItem *what, bool again, int64 *sent, ErrorData **error)
{
	EvpgReactionRun acting = {.work = what};
	ErrorData  *volatile failure = NULL;
	const char *acted_for = EvpgContextSessionRole();

	EvpgRefuseInSaga("run sagas");
	EvpgBatchRequireNewSnapshots();
	EvpgContextLeave();
	EvpgCatalogLockForWork();

	/*
	 * The instance once more, for the transaction: user code can give back
	 * locks of the session, by pg_advisory_unlock_all().
	 */
	if (!EvpgDispatchLock(what, false, again) ||
		(what->saga != NULL && (!EvpgDispatchLockSaga(what->saga, ShareLock, again) || (!again && !saga_is_running(what->saga)))))
	{
		/*
		 * That lock was lost, the saga is being changed, or was paused since
		 * this was claimed: that was no attempt.
		 */
		put_off(what);
		return EVPG_DISPATCH_LATER;
	}

	/*
	 * The first attempt was counted for many at once, and perhaps not begun:
	 * any of them may have crashed the server, so it counts against none of
	 * them. The others were made alone, and never came to an end.
	 */
	if (!again && what->attempts > EvpgCrashMaxCount(max_attempts(what)) + 1)
	{
		what->attempts -= 2;
		return write_item_dead_letter(&acting, EvpgCrashError(what->attempts));
	}
	reacting = true;
	PG_TRY();
	{
		failure = EvpgSubtransactionRun(run_item, &acting);
	}
	PG_FINALLY();
	{
		reacting = false;
		EvpgContextSetSessionRole(acted_for);
	}
	PG_END_TRY();
	if (error != NULL)
		*error = failure;
	if (failure == NULL)
	{
		*sent += acting.dispatched;
		if (what->saga != NULL && acting.dispatched > 0)
			EvpgSagaCount(what->saga, acting.dispatched, 0);
		if (what->saga != NULL)
			EvpgWakeWaitersAtCommit(EvpgHashPair(what->saga, ""));
		return EVPG_DISPATCHED;
	}
	if (EvpgErrorIsCancel(failure))
		ReThrowError(failure);
	return again ? EVPG_DISPATCH_DEAD : settle_failure(&acting, failure);
}

/* ------------------------------------------------------------------ a pass */

/* What this session has claimed, in the context of the pass. */
static List *claimed = NIL;
static bool any_claimed;

/* In so many passes what others were in the way of comes last. */
static int	unhindered_first = 0;

static void
unlock_all(void)
{
	ListCell   *cell;

	foreach(cell, claimed)
		unlock_item(lfirst(cell));
	claimed = NIL;
	EvpgCrashUnlock();
}

/* Locks of what is due; what was tried before only alone. */
static void
lock_some(List *due)
{
	int			workers = Max(EvpgWorkers, 1);
	int			share = Min((list_length(due) + workers - 1) / workers, CLAIMS);
	ListCell   *cell;

	foreach(cell, due)
	{
		EvpgDueItem *what = lfirst(cell);

		/* The other workers want some, too. */
		if (list_length(claimed) >= share)
			break;
		if (what->attempts > 0 && (claimed != NIL || (what->suspect && !EvpgCrashLock(true))))
			continue;
		claimed = lappend(claimed, what);
		what->locked = EvpgDispatchLock(what, true, false);
		if (!what->locked)
			claimed = list_delete_last(claimed);
		else if (what->attempts > 0)
			break;
	}
}

/* Later the one that was put off later; what was not comes first. */
static int
compare_hindrance(const ListCell *a, const ListCell *b)
{
	const EvpgDueItem *first = lfirst(a);
	const EvpgDueItem *second = lfirst(b);

	return first->retry_at < second->retry_at ? -1 : first->retry_at > second->retry_at;
}

/*
 * Timers, then events, then what others were in the way of, which may wait for a
 * lock again, each time for as long as a worker waits: in the order in which it came
 * it would keep all the rest from being tried.
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
		EvpgDueItem *what = lfirst(cell);

		if (what->attempts == 0 && what->retry_at != 0)
			hindered = lappend(hindered, what);
		else if (what->position == 0)
			timers = lappend(timers, what);
		else
			events = lappend(events, what);
	}
	list_sort(hindered, compare_hindrance);
	return list_concat(list_concat(timers, events), hindered);
}

/* Locks what is due; if others have locked the oldest, what comes after that. */
static void
lock_due(MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	TimestampTz now = EvpgClockNow();
	List	   *due;

	for (int count = unhindered_first > 0 ? MOST_DUE : CLAIMS; claimed == NIL && count <= MOST_DUE; count *= 4)
	{
		due = EvpgDueItemList(count, now);
		if (due != NIL && (count == CLAIMS || unhindered_first > 0))
			EVPG_WAIT_POINT("saga_due");
		lock_some(unhindered_first > 0 ? order_by_hindrance(due) : due);
		if (list_length(due) < count)
			break;
	}
	unhindered_first = Max(unhindered_first - 1, 0);
	MemoryContextSwitchTo(old);
}

/* The attempts at what this session has claimed and not done were none: it ends. */
static void
take_back(void)
{
	ListCell   *cell;

	foreach(cell, claimed)
	{
		EvpgDueItem *what = lfirst(cell);

		/* Unless it is given back already. */
		if (what->locked && what->attempts > 0)
			EvpgWorkUnclaim(what);
	}
}

/* What a claim needs. */
typedef struct Claim
{
	MemoryContext context;
	TimestampTz *next;
} Claim;

/* Locks what is due and counts an attempt at it, on disk when the transaction has ended. */
static void
claim_items(void *arg)
{
	Claim	   *this = arg;
	ListCell   *cell;
	EvpgScope	scope;

	PushActiveSnapshot(GetTransactionSnapshot());
	EvpgEnter(&scope, "evpg_run()");
	EvpgCatalogLockForWork();
	lock_due(this->context);
	foreach(cell, claimed)
	{
		if (!EvpgDueItemClaim(lfirst(cell)))
			unlock_item(lfirst(cell));
		else
		{
			any_claimed = true;
			if (EVPG_MUTATION("saga_early"))
				(void) EvpgDueItemDelete(lfirst(cell));
		}
	}
	if (any_claimed)
	{
		if (!EVPG_MUTATION("saga_unflushed"))
			ForceSyncCommit();
		EvpgCrashTakeBackAtExit(take_back);
		EVPG_WAIT_POINT("saga_counted");
	}
	else
	{
		TimestampTz due = EvpgDueItemNextTime(EvpgClockNow());

		if (!TIMESTAMP_NOT_FINITE(due))
			*this->next = Min(*this->next, EvpgClockWall(due));
	}
	EvpgLeave(&scope);
	PopActiveSnapshot();
}

static void
lock_work_tables(void *arg)
{
	EvpgCatalogLockForWork();
}

/*
 * Waits for the tables that all work needs, in as many transactions as it takes:
 * without them nothing of what is claimed can be done, or be given back.
 */
static void
await_work_tables(void (*commit) (void))
{
	TimestampTz later = DT_NOEND;
	ErrorData  *error;

	while ((error = EvpgSubtransactionRun(lock_work_tables, NULL)) != NULL)
	{
		if (!EvpgAttemptPutOff(error, &later))
			ReThrowError(error);
		commit();
		CHECK_FOR_INTERRUPTS();
	}
}

/* Gives back what is claimed and not done yet. */
static void
give_back(void *arg)
{
	ListCell   *cell;

	foreach(cell, claimed)
		if (lfirst(cell) != arg && ((EvpgDueItem *) lfirst(cell))->locked)
		EvpgWorkUnclaim(lfirst(cell));
}

/*
 * After this one has waited in vain: who works on the rest, this session or another
 * one, must not wait for it as well.
 */
static void
give_back_rest(EvpgDueItem *waiting)
{
	TimestampTz later = DT_NOEND;
	ErrorData  *error = EvpgSubtransactionRun(give_back, waiting);

	if (error != NULL && !EvpgAttemptPutOff(error, &later))
		ReThrowError(error);
}

static void
run_claimed(void (*commit) (void))
{
	ListCell   *cell;

	foreach(cell, claimed)
	{
		EvpgDueItem *what = lfirst(cell);
		int64		sent = 0;
		ErrorData  *error = NULL;
		bool		hindered;
		EvpgScope	scope;

		if (!what->locked)
			continue;
		EVPG_WAIT_POINT("saga_claimed");
		await_work_tables(commit);
		PushActiveSnapshot(GetTransactionSnapshot());
		EvpgEnter(&scope, "evpg_run()");
		(void) EvpgDispatch(what, false, &sent, &error);
		hindered = error != NULL && error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE;
		if (hindered)
			give_back_rest(what);

		/*
		 * What was tried before must not be tried again because others crash
		 * the server.
		 */
		if (what->attempts > 1)
			ForceSyncCommit();
		EvpgLeave(&scope);
		PopActiveSnapshot();
		commit();
		EVPG_WAIT_POINT("saga_committed");
		unlock_item(what);
		if (hindered)
		{
			unhindered_first = UNHINDERED_PASSES;
			break;
		}
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * EvpgDispatchPass
 *		Does what is due, each in a transaction of its own: see EvpgRunPass.  True
 *		if there may be more; else *next is lowered to when something is due.
 *		context outlives the transactions.
 */
bool
EvpgDispatchPass(void (*commit) (void), MemoryContext context, TimestampTz *next)
{
	Claim		this = {.context = context, .next = next};

	any_claimed = false;
	PG_TRY();
	{
		ErrorData  *error = EvpgSubtransactionRun(claim_items, &this);

		if (error != NULL)
		{
			if (!EvpgAttemptPutOff(error, next))
				ReThrowError(error);
			unlock_all();
			any_claimed = false;
		}
		commit();
		run_claimed(commit);
	}
	PG_CATCH();
	{
		unlock_all();
		PG_RE_THROW();
	}
	PG_END_TRY();
	unlock_all();
	return any_claimed;
}
