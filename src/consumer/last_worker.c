/*-------------------------------------------------------------------------
 *
 * last_worker.c
 *		Code that does not return does not get all workers of a database: one is left
 *		for all else (rules 10, 13 and 16).
 *
 * A worker is occupied once it has been in one call of user code, of whatever kind, for
 * longer than OCCUPIED: in a reaction or a scheduled command, or at one event of a batch,
 * of a rebuild or of routing.  Each worker shows in shared memory in what it is, and since
 * when.  Two rules follow, for databases with several workers:
 *
 * - If all are occupied, the one that began last cancels itself, which is no attempt; if
 *   the code catches that, it ends itself.
 * - For RESTRAINED after that, a worker that would be the last one begins nothing of the
 *   same saga, projection or rebuild, nor scheduled commands if it was one of these.
 *   Before, it must: others of them need not hang as well.
 *
 * Code may be slow and not hang.  So the time for which it may have the last worker
 * doubles each time, up to LONGEST, and the pause that follows is four times as long, at
 * least RESTRAINED.  What is slow comes to its end, and what hangs has the last worker
 * for a fifth of the time at most.
 *
 * A timer in the worker makes it look.  It also wakes the others, which take over what this
 * one has claimed and not begun.
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
#include "base/testing.h"
#include "commands/dbcommands.h"
#include "consumer/consumer.h"
#include "consumer/crash_suspects.h"
#include "consumer/last_worker.h"
#include "miscadmin.h"
#include "tcop/tcopprot.h"
#include "utils/timeout.h"

/* A worker is occupied by a call that lasts longer than this, and looks so often whether it is, in ms. */
#define OCCUPIED 2000
#define LOOK_EVERY 1000

/* So long code may have the last worker at most; in ms. */
#define LONGEST 16000
#define MAX_LEVEL 3

/* After it had the last worker, the pause is so many times as long, and at least this, in ms. */
#define RESTRAINED_TIMES 4
#define RESTRAINED 30000

/* How often something had the last worker is forgotten so long after its pause, in ms. */
#define FORGOTTEN 600000

/*
 * What is restrained is stored in 64 bits, which a signal handler can write: its hash, until
 * when, in units of 256 ms that wrap around, and how often in a row it was.
 */
#define UNIT_BITS 8
#define TIME_BITS 24
#define TIME_MASK ((UINT64CONST(1) << TIME_BITS) - 1)
#define LEVEL_MASK UINT64CONST(0xff)

int			EvpgOccupationSteps = 0;

static TimeoutId timeout_id = MAX_TIMEOUTS; /* not registered yet */

/* What this worker is occupied with, and the steps at the last look. */
static EvpgOccupation own_occupation;
static const char *own_name;
static int	steps_seen;

/* It has cancelled itself. */
static volatile sig_atomic_t cancelled = false;

/* ------------------------------------------------------------------ what is restrained */

/* Returns 32 bits of what occupies a worker; never 0. */
static uint32
occupation_bits(EvpgOccupation occupation, const char *name)
{
	return (uint32) EvpgHashName(name == NULL ? "" : name, occupation) | 1;
}

static pg_atomic_uint64 *
get_restraint(uint32 bits)
{
	return &EvpgShmemAttachedDatabase()->restrained[(bits >> 1) % EVPG_RESTRAINTS];
}

/* Returns how often in a row something had the last worker; *left is for how long it is restrained, in ms. */
static int
read_restraint(uint32 bits, int64 *left)
{
	uint64		restraint = pg_atomic_read_u64(get_restraint(bits));
	uint64		now = EvpgMonotonicMs() >> UNIT_BITS;

	*left = 0;
	if (restraint >> 32 != bits)
		return 0;
	/* Sign-extended: negative if it is over. */
	*left = (int64) (((restraint >> 8) - now) << (64 - TIME_BITS)) >> (64 - TIME_BITS - UNIT_BITS);
	return *left < -FORGOTTEN ? 0 : (int) (restraint & LEVEL_MASK);
}

/* Restrains what has had the last worker for so many ms. */
static void
restrain_occupant(uint32 bits, uint64 had)
{
	int64		left;
	int			level = Min(read_restraint(bits, &left) + 1, MAX_LEVEL);
	uint64		pause = EVPG_MUTATION("briefly_restrained") ? RESTRAINED / 10 : Max(had * RESTRAINED_TIMES, RESTRAINED);
	uint64		until = (EvpgMonotonicMs() + pause) >> UNIT_BITS;

	pg_atomic_write_u64(get_restraint(bits), (uint64) bits << 32 | (until & TIME_MASK) << 8 | (uint64) level);
}

static bool
is_restrained(EvpgOccupation occupation, const char *name)
{
	int64		left;

	(void) read_restraint(occupation_bits(occupation, name), &left);
	return left > 0;
}

/* Returns for how long something may have the last worker, in ms. */
static uint64
compute_allowance(uint32 bits)
{
	int64		left;

	return Min((uint64) OCCUPIED << read_restraint(bits, &left), LONGEST);
}

/* ------------------------------------------------------------------ who is occupied */

/*
 * Returns whether all other workers of the database are occupied; false if there are none.
 * With not_after only if none of them has begun after that time, or then, as a later one of
 * them.
 */
static bool
others_are_occupied(const uint64 *not_after)
{
	EvpgDatabase *database = EvpgShmemAttachedDatabase();
	EvpgProcess *own = EvpgProcessOwn();
	bool		any = false;

	for (int number = 0; number < EVPG_MAX_WORKERS; number++)
	{
		EvpgProcess *process = &database->processes[number];
		uint64		began = pg_atomic_read_u64(&process->began);

		if (process == own)
			continue;
		if (process->pid == 0)
		{
			/* It will start, unless there is no room. */
			if (number < EvpgWorkers && !EvpgShmem->crowded)
				return false;
			continue;
		}
		if (began == 0 || EvpgMonotonicMs() < began + OCCUPIED)
			return false;
		if (not_after != NULL && (began > *not_after || (began == *not_after && process > own)))
			return false;
		any = true;
	}
	return any;
}

/* Lets this worker cancel what it does; ends it if that was no use. */
static void
cancel_occupation(uint64 had)
{
	if (!cancelled)
	{
		restrain_occupant(occupation_bits(own_occupation, own_name), had);
		EvpgCancelOwnAttempt();
	}
	else
	{
		EvpgCrashNoteOrderlyEnd();
		die(SIGTERM);
	}
	cancelled = true;
}

/* The handler of the timeout: wakes the other workers, and cancels what keeps the last one of them. */
static void
look_at_others(void)
{
	EvpgDatabase *database = EvpgShmemAttachedDatabase();
	EvpgProcess *own = EvpgProcessOwn();
	uint64		now = EvpgMonotonicMs();
	uint64		began = pg_atomic_read_u64(&own->began);

	if (began == 0)
		return;
	if (steps_seen != EvpgOccupationSteps && !cancelled)
	{
		/* It is slow perhaps, but gets on. */
		steps_seen = EvpgOccupationSteps;
		pg_atomic_write_u64(&own->began, now);
		return;
	}
	if (now < began + OCCUPIED)
		return;
	for (int number = 0; number < EVPG_MAX_WORKERS; number++)
		if (&database->processes[number] != own)
			EvpgWakeProcess(&database->processes[number]);
	if ((cancelled || now >= began + compute_allowance(occupation_bits(own_occupation, own_name))) &&
		others_are_occupied(&began))
		cancel_occupation(now - began);
}

/* ------------------------------------------------------------------ for workers */

/*
 * EvpgLastWorkerWatch
 *		Begins, or ends, to watch what this worker is occupied with: in a pass, which ends
 *		this also after an error.  Does nothing in another session.
 */
void
EvpgLastWorkerWatch(bool begin)
{
	EvpgProcess *own = EvpgProcessOwn();

	if (own == NULL)
		return;
	if (timeout_id == MAX_TIMEOUTS)
		timeout_id = RegisterTimeout(USER_TIMEOUT, look_at_others);
	if (begin)
		enable_timeout_every(timeout_id, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOK_EVERY), LOOK_EVERY);
	else
	{
		(void) EvpgLastWorkerEnd();
		disable_timeout(timeout_id, false);
	}
}

/*
 * EvpgLastWorkerBegin
 *		Shows that this worker begins to call user code; nothing in another session.  name
 *		is that of the consumer, NULL for a scheduled command, and lives until
 *		EvpgLastWorkerEnd.
 */
void
EvpgLastWorkerBegin(EvpgOccupation occupation, const char *name)
{
	if (EvpgProcessOwn() == NULL)
		return;
	cancelled = false;
	own_occupation = occupation;
	own_name = name;
	steps_seen = EvpgOccupationSteps;
	EvpgProcessShowOccupation(occupation, name);
}

/* Shows that it has ended; returns whether it was cancelled because it kept the last worker. */
bool
EvpgLastWorkerEnd(void)
{
	EvpgProcess *own = EvpgProcessOwn();
	bool		was_cancelled;

	if (own == NULL)
		return false;
	pg_atomic_write_u64(&own->began, 0);
	was_cancelled = cancelled && !QueryCancelPending;
	/* It has come too late. */
	if (cancelled && !was_cancelled)
		EvpgForgetOwnCancel();
	cancelled = false;
	return was_cancelled;
}

/* Returns whether all other workers are occupied, and there are some. */
bool
EvpgLastWorkerIsLast(void)
{
	return EvpgProcessOwn() != NULL && others_are_occupied(NULL);
}

/* Returns whether this worker must not begin something, since it is the last one and that has had the last one before. */
bool
EvpgLastWorkerIsKeptFrom(EvpgOccupation occupation, const char *name)
{
	return EvpgProcessOwn() != NULL && is_restrained(occupation, name) && others_are_occupied(NULL);
}

/*
 * EvpgLastWorkerListKeptFrom
 *		Lists the sagas of which this worker must not begin a reaction (char *), "" for
 *		scheduled commands; in CurrentMemoryContext.
 */
List *
EvpgLastWorkerListKeptFrom(void)
{
	List	   *kept_from = NIL;
	ListCell   *cell;

	if (!EvpgLastWorkerIsLast())
		return NIL;
	if (is_restrained(EVPG_OCCUPATION_COMMAND, NULL))
		kept_from = lappend(kept_from, pstrdup(""));
	foreach(cell, EvpgConsumerList("saga", NULL))
		if (is_restrained(EVPG_OCCUPATION_REACTION, lfirst(cell)))
		kept_from = lappend(kept_from, lfirst(cell));
	return kept_from;
}

/* Reports in the server log that something was cancelled because it kept the last worker. */
void
EvpgLastWorkerReport(EvpgOccupation occupation, const char *name)
{
	const char *database = get_database_name(MyDatabaseId);

	ereport(WARNING,
			(occupation == EVPG_OCCUPATION_COMMAND ?
			 errmsg("a scheduled command of database \"%s\" was cancelled", database) :
			 occupation == EVPG_OCCUPATION_REACTION ?
			 errmsg("a reaction of saga \"%s\" of database \"%s\" was cancelled", name, database) :
			 occupation == EVPG_OCCUPATION_ROUTING ?
			 errmsg("the routing of saga \"%s\" of database \"%s\" was cancelled", name, database) :
			 occupation == EVPG_OCCUPATION_BATCH ?
			 errmsg("a batch of projection \"%s\" of database \"%s\" was cancelled", name, database) :
			 errmsg("a batch of the rebuild of projection \"%s\" of database \"%s\" was cancelled", name, database),
			 errdetail("All workers of the database had been in calls of user code for more than %d seconds; "
					   "the others still are.",
					   OCCUPIED / 1000),
			 errhint("It is tried again.  If it does not return then, repair its code.  "
					 "evpg.stat_worker shows what occupies workers; evpg.workers can be increased.")));
}
