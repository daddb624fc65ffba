/*-------------------------------------------------------------------------
 *
 * worker_lock.c
 *		Waiting for a lock that a worker may hold: of a consumer, a rebuild, a saga, a
 *		scheduled command.
 *
 * A worker releases these after a batch or a reaction, unless user code in it never
 * returns.  So a session that has waited for PATIENCE cancels the worker, which takes
 * that as a transient error (base/subtransaction.c), and goes on with other work.
 * User code can catch a cancel: after another PATIENCE the worker is terminated,
 * and the launcher starts another one.  A worker that cannot be interrupted at all is
 * reported.
 *
 * The lock_timeout of the caller limits all of this.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "base/locks.h"
#include "base/shmem.h"
#include "base/subtransaction.h"
#include "consumer/worker_lock.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/guc.h"

/* How long a session waits for a worker before it cancels it, in ms; longer than any batch that makes progress. */
#define PATIENCE 2000

/* Sets *tag to the lock of a saga, which reactions of its instances share. */
void
EvpgSetSagaLockTag(LOCKTAG *tag, const char *saga)
{
	EvpgSetLockTag(tag, EVPG_LOCK_SAGA, EvpgHashPair(saga, ""));
}

typedef struct Limited
{
	void		(*action) (void *arg);
	void	   *arg;
	int			limit;			/* for each wait, in ms; 0: none */
} Limited;

/* Calls an action under a lock_timeout; run by EvpgSubtransactionRun. */
static void
act_within_limit(void *arg)
{
	Limited    *limited = arg;
	char		limit[16];

	snprintf(limit, sizeof(limit), "%d", limited->limit);
	(void) set_config_option("lock_timeout", limit, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	limited->action(limited->arg);
}

/*
 * EvpgLockOvertake
 *		Does something, in a subtransaction, that may have to wait for a worker, which
 *		holds a lock in a mode that conflicts with this one; cancels the worker if that
 *		takes too long, and at last terminates it.  The action may be begun several
 *		times, so it waits before it does anything else.  Throws the error of the action,
 *		or that of the caller's lock_timeout.
 */
void
EvpgLockOvertake(const LOCKTAG *held, LOCKMODE mode, void (*action) (void *arg), void *arg)
{
	LocalTransactionId cancelled[EVPG_MAX_WORKERS] = {0};
	Limited		limited = {.action = action, .arg = arg};
	int			left = LockTimeout;
	int			unanswered = 0;

	while (unanswered < 2)
	{
		ErrorData  *error;
		EvpgSignalled signalled;

		limited.limit = left == 0 ? PATIENCE : Min(left, PATIENCE);
		error = EvpgSubtransactionRun(act_within_limit, &limited);
		if (error == NULL)
			return;
		if (error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE || left == limited.limit)
			EvpgRethrowError(error);
		left = left == 0 ? 0 : left - limited.limit;

		/*
		 * A worker that was faster than this session with other work for the
		 * lock is cancelled anew.
		 */
		signalled = EvpgCancelLockHolders(held, mode, cancelled, unanswered == 0 ? SIGTERM : 0);
		if (signalled == EVPG_SIGNALLED_NONE)
			break;
		unanswered += signalled == EVPG_SIGNALLED_AGAIN;
	}
	if (unanswered == 2)
		ereport(WARNING,
				(errmsg("a worker of evpg does not react to SIGTERM"),
				 errdetail("It runs code in C that does not check for interrupts."),
				 errhint("evpg.stat_consumer and pg_stat_activity show its process.  "
						 "Only SIGKILL ends it, after which the server restarts.")));
	limited.limit = left;
	{
		ErrorData  *error = EvpgSubtransactionRun(act_within_limit, &limited);

		if (error != NULL)
			EvpgRethrowError(error);
	}
}

typedef struct Acquiring
{
	const LOCKTAG *tag;
	LOCKMODE	mode;
} Acquiring;

/* Takes the lock; the action of EvpgLockAcquire. */
static void
acquire_lock(void *arg)
{
	Acquiring  *acquiring = arg;

	(void) LockAcquire(acquiring->tag, acquiring->mode, false, false);
}

/*
 * EvpgLockAcquire
 *		Takes a lock until the end of the transaction, cancelling a worker that does not
 *		release it; returns false if it may not wait and the lock is taken.
 */
bool
EvpgLockAcquire(const LOCKTAG *tag, LOCKMODE mode, bool wait)
{
	Acquiring	acquiring = {.tag = tag, .mode = mode};

	if (LockAcquire(tag, mode, false, true) != LOCKACQUIRE_NOT_AVAIL)
		return true;
	if (wait)
		EvpgLockOvertake(tag, mode, acquire_lock, &acquiring);
	return wait;
}
