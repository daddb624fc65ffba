/*-------------------------------------------------------------------------
 *
 * last_worker.c
 *		One saga does not get all workers of a database: reactions that never return
 *		leave one for all else.  Scheduled commands are taken together, like a saga.
 *
 * A worker is occupied by a saga once it has been in one reaction for longer than
 * OCCUPIED.  Each worker shows in shared memory in which saga it is, and since when.
 * Two rules follow, for databases with several workers:
 *
 * - If all are occupied by one saga, the one that began last cancels itself, which is no
 *   attempt; if the code of the saga catches that, it ends itself.
 * - For RESTRAINED after that, a worker begins nothing of the saga while all others are
 *   occupied by it.  Before, it must: other instances need not hang as well.
 *
 * A timeout, which comes again as long as the reaction lasts, makes a worker look.  It
 * also wakes the others, which take over what this one has claimed and not begun.
 *
 * Sessions that call evpg_run are not workers, and not counted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "base/locks.h"
#include "base/shmem.h"
#include "base/subtransaction.h"
#include "commands/dbcommands.h"
#include "consumer/consumer.h"
#include "consumer/crash_suspects.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "saga/last_worker.h"
#include "tcop/tcopprot.h"
#include "utils/timeout.h"

/* A worker is occupied by a reaction that lasts longer than this, in ms. */
#define OCCUPIED 2000

/* So long, in ms, a saga gets all workers but one, once it has had all. */
#define RESTRAINED 30000

static TimeoutId timeout_id = MAX_TIMEOUTS; /* not registered yet */

/* This reaction has cancelled itself. */
static volatile sig_atomic_t cancelled = false;

/* The time that has passed, in ms; it wraps around. */
static uint32
monotonic_ms(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (uint32) (uint64) INSTR_TIME_GET_MILLISEC(now);
}

/* Returns 32 bits of the name of a saga, NULL for scheduled commands; never 0. */
static uint32
saga_bits(const char *saga)
{
	return (uint32) EvpgHashName(saga == NULL ? "" : saga, 0) | 1;
}

/*
 * Returns the bits of the saga by which all other workers of the database are occupied;
 * 0 if they are not, or if there are none.  With not_after only if none of them
 * has begun its reaction after that time, or then, as a later one of them.
 */
static uint32
find_occupier(const uint32 *not_after)
{
	EvpgDatabase *database = EvpgShmemAttachedDatabase();
	EvpgProcess *own = EvpgProcessOwn();
	uint32		now = monotonic_ms();
	uint32		found = 0;

	for (int number = 0; number < EVPG_MAX_WORKERS; number++)
	{
		EvpgProcess *process = &database->processes[number];
		uint64		reaction = pg_atomic_read_u64(&process->reaction);
		uint32		saga = (uint32) (reaction >> 32);
		uint32		began = (uint32) reaction;

		if (process == own)
			continue;
		if (process->pid == 0)
		{
			/* It will start, unless there is no room. */
			if (number < EvpgWorkers && !EvpgShmem->crowded)
				return 0;
			continue;
		}
		if (saga == 0 || (found != 0 && saga != found) || (int32) (now - began) < OCCUPIED)
			return 0;
		if (not_after != NULL && ((int32) (began - *not_after) > 0 || (began == *not_after && process > own)))
			return 0;
		found = saga;
	}
	return found;
}

/* Lets all workers but one be the most that a saga gets, for a while. */
static void
restrain_saga(uint32 saga)
{
	pg_atomic_write_u64(&EvpgShmemAttachedDatabase()->restrained, ((uint64) saga << 32) | (monotonic_ms() + RESTRAINED));
}

static bool
saga_is_restrained(uint32 saga)
{
	uint64		restrained = pg_atomic_read_u64(&EvpgShmemAttachedDatabase()->restrained);

	return (uint32) (restrained >> 32) == saga && (int32) ((uint32) restrained - monotonic_ms()) > 0;
}

/* The handler of the timeout: wakes the other workers, and cancels the reaction if its saga occupies all of them. */
static void
look_at_others(void)
{
	EvpgDatabase *database = EvpgShmemAttachedDatabase();
	uint64		reaction = pg_atomic_read_u64(&EvpgProcessOwn()->reaction);
	uint32		began = (uint32) reaction;

	for (int number = 0; number < EVPG_MAX_WORKERS; number++)
		if (&database->processes[number] != EvpgProcessOwn())
			EvpgWakeProcess(&database->processes[number]);
	if (reaction == 0 || find_occupier(&began) != (uint32) (reaction >> 32))
		return;
	restrain_saga((uint32) (reaction >> 32));
	if (cancelled)
	{
		EvpgCrashNoteOrderlyEnd();
		die(SIGTERM);
	}
	else
		EvpgCancelOwnAttempt();
	cancelled = true;
}

/* Shows that this worker begins a reaction of a saga, NULL for a scheduled command; nothing in another session. */
void
EvpgLastWorkerBegin(const char *saga)
{
	EvpgProcess *own = EvpgProcessOwn();

	if (own == NULL)
		return;
	if (timeout_id == MAX_TIMEOUTS)
		timeout_id = RegisterTimeout(USER_TIMEOUT, look_at_others);
	cancelled = false;
	pg_atomic_write_u64(&own->reaction, ((uint64) saga_bits(saga) << 32) | monotonic_ms());
	enable_timeout_every(timeout_id, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), OCCUPIED), OCCUPIED);
}

/* Shows that the reaction has ended; returns whether it was cancelled because its saga occupied all workers. */
bool
EvpgLastWorkerEnd(void)
{
	EvpgProcess *own = EvpgProcessOwn();

	if (own == NULL)
		return false;
	disable_timeout(timeout_id, false);
	pg_atomic_write_u64(&own->reaction, 0);
	/* It may have come too late for the reaction. */
	if (cancelled)
		QueryCancelPending = false;
	return cancelled;
}

/* Returns whether this worker must not begin a reaction of a saga, NULL for a scheduled command. */
bool
EvpgLastWorkerIsKeptFrom(const char *saga)
{
	return EvpgProcessOwn() != NULL && saga_is_restrained(saga_bits(saga)) && find_occupier(NULL) == saga_bits(saga);
}

/*
 * EvpgLastWorkerKeptFrom
 *		Returns the name of the saga of which this worker must not begin a reaction, ""
 *		for scheduled commands, NULL for none; in CurrentMemoryContext.
 */
const char *
EvpgLastWorkerKeptFrom(void)
{
	uint32		occupier = EvpgProcessOwn() == NULL ? 0 : find_occupier(NULL);
	ListCell   *cell;

	if (occupier == 0 || !saga_is_restrained(occupier))
		return NULL;
	if (occupier == saga_bits(NULL))
		return "";
	foreach(cell, EvpgConsumerList("saga", NULL))
		if (saga_bits(lfirst(cell)) == occupier)
		return lfirst(cell);
	return NULL;
}

/* Reports in the server log that a reaction was cancelled because its saga occupied all workers. */
void
EvpgLastWorkerReport(const char *saga)
{
	ereport(WARNING,
			(saga == NULL ?
			 errmsg("a scheduled command of database \"%s\" was cancelled", get_database_name(MyDatabaseId)) :
			 errmsg("a reaction of saga \"%s\" of database \"%s\" was cancelled", saga, get_database_name(MyDatabaseId)),
			 errdetail("All workers of the database had been in such ones for more than %d seconds; the others still are.",
					   OCCUPIED / 1000),
			 errhint("It is tried again.  If it does not return then, repair its code.  evpg.workers can be increased.")));
}
