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
 * least RESTRAINED.  In that pause the last worker begins nothing of all that had to be
 * cancelled before, and what was cancelled just now waits for so many pauses as there are
 * such things: they take turns.  So what is slow comes to its end, and all that hangs,
 * however much it is, has the last worker for a fifth of the time at most.  Other work
 * waits for one turn, and for OCCUPIED and a look for each thing that hangs for the first
 * time.
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
 * when, in units of 256 ms that wrap around after 8 years, and how often in a row it was.
 * It is in one of so many places from that of its hash on.
 */
#define UNIT_BITS 8
#define TIME_BITS 30
#define TIME_MASK ((UINT64CONST(1) << TIME_BITS) - 1)
#define LEVEL_BITS 2
#define LEVEL_MASK ((UINT64CONST(1) << LEVEL_BITS) - 1)
#define PLACES 8

/* Nothing is restrained for longer, in ms: a time that seems later is over, and has wrapped around. */
#define LONGEST_PAUSE (Max(LONGEST * RESTRAINED_TIMES, RESTRAINED))
#define LONGEST_RESTRAINED ((int64) LONGEST_PAUSE * EVPG_RESTRAINTS + (1 << UNIT_BITS))
#define IS_OVER PG_INT64_MIN

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

/* Returns the time by which restraints are over, in ms. */
static uint64
get_restraint_time(void)
{
	/* When a restraint that nothing has replaced has wrapped around. */
	uint64		later = EVPG_MUTATION("years_later") ? (TIME_MASK - (TIME_MASK >> 2)) << UNIT_BITS : 0;

	return EvpgMonotonicMs() + later;
}

/* Returns for how long a restraint lasts, in ms; negative if it is over. */
static int64
compute_left(uint64 restraint)
{
	uint64		units = (restraint >> LEVEL_BITS) - (get_restraint_time() >> UNIT_BITS);

	/* Sign-extended. */
	int64		left = (int64) (units << (64 - TIME_BITS)) >> (64 - TIME_BITS - UNIT_BITS);

	return restraint == 0 || left > LONGEST_RESTRAINED ? IS_OVER : left;
}

/* Returns where the restraint of something is; if it has none, where it may be written: in place of the oldest. */
static pg_atomic_uint64 *
find_restraint(uint32 bits)
{
	EvpgDatabase *database = EvpgShmemAttachedDatabase();
	pg_atomic_uint64 *oldest = NULL;
	int64		oldest_left = 0;

	for (int place = 0; place < PLACES; place++)
	{
		pg_atomic_uint64 *restrained = &database->restrained[((bits >> 1) + place) % EVPG_RESTRAINTS];
		uint64		restraint = pg_atomic_read_u64(restrained);
		int64		left = compute_left(restraint);

		if (restraint >> 32 == bits)
			return restrained;
		if (oldest == NULL || left < oldest_left)
		{
			oldest = restrained;
			oldest_left = left;
		}
	}
	return oldest;
}

/* Returns how often in a row something had the last worker; *left is for how long it is restrained, in ms. */
static int
read_restraint(uint32 bits, int64 *left)
{
	uint64		restraint = pg_atomic_read_u64(find_restraint(bits));

	*left = restraint >> 32 == bits ? compute_left(restraint) : IS_OVER;
	return *left < -FORGOTTEN ? 0 : (int) (restraint & LEVEL_MASK);
}

/* Returns how many things that have had the last worker are not forgotten. */
static int
count_remembered(void)
{
	int			count = 0;

	for (int number = 0; number < EVPG_RESTRAINTS; number++)
		count += compute_left(pg_atomic_read_u64(&EvpgShmemAttachedDatabase()->restrained[number])) >= -FORGOTTEN;
	return count;
}

/* Restrains what has had the last worker for so many ms, and for a shorter time all that had it before. */
static void
restrain_occupant(uint32 bits, uint64 had)
{
	int64		left;
	int			level = read_restraint(bits, &left);
	bool		briefly = EVPG_MUTATION("briefly_restrained");
	uint64		pause = briefly ? RESTRAINED / 10 : Max(Min(had, LONGEST) * RESTRAINED_TIMES, RESTRAINED);
	int			turns = briefly ? 1 : Min(count_remembered() + (level == 0), EVPG_RESTRAINTS);
	uint64		now = EvpgMonotonicMs();
	uint64		until = (now + pause * turns) >> UNIT_BITS;

	pg_atomic_write_u64(find_restraint(bits), (uint64) bits << 32 | (until & TIME_MASK) << LEVEL_BITS |
						(uint64) Min(level + 1, MAX_LEVEL));
	pg_atomic_write_u64(&EvpgShmemAttachedDatabase()->all_restrained_until,
						now + (EVPG_MUTATION("long_restrained") ? 3600 * 1000 : pause));
}

/* Returns whether something must not have the last worker now, because it has had it, or another such thing had. */
static bool
is_restrained(EvpgOccupation occupation, const char *name)
{
	int64		left;
	int			level = read_restraint(occupation_bits(occupation, name), &left);

	return level > 0 &&
		(left > 0 || get_restraint_time() < pg_atomic_read_u64(&EvpgShmemAttachedDatabase()->all_restrained_until));
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
