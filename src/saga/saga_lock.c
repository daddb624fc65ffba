/*-------------------------------------------------------------------------
 *
 * saga_lock.c
 *		The advisory locks of sagas, of their instances, and of scheduled commands.
 *
 * A session that works on an instance holds its lock, from before the attempt is
 * counted to the end of the work: a lock of the session, since the two are
 * transactions.  A session that changes the saga itself locks out all instances.
 * The saga is locked before its instances, and these before rows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/twophase.h"
#include "access/xact.h"
#include "base/locks.h"
#include "base/testing.h"
#include "consumer/worker_lock.h"
#include "miscadmin.h"
#include "saga/saga_lock.h"
#include "utils/inval.h"

/*
 * EvpgSagaLock
 *		Locks a saga to the end of the transaction: ShareLock to work on instances,
 *		ExclusiveLock to change the saga.  False if wait is false and another session
 *		holds it.  Sees what was registered until then.
 */
bool
EvpgSagaLock(const char *saga, LOCKMODE mode, bool wait)
{
	LOCKTAG		tag;

	EvpgSetSagaLockTag(&tag, saga);
	if (!EvpgLockAcquire(&tag, mode, wait))
		return false;
	AcceptInvalidationMessages();
	return true;
}

static void
set_item_tag(const EvpgDueItem *item, LOCKTAG *tag)
{
	EvpgSetLockTag(tag, EVPG_LOCK_INSTANCE,
				   item->saga != NULL ? EvpgHashPair(item->saga, item->key) : (uint64) item->timer_id);
}

/* Locks of instances that the current transaction has taken; a rollback to a savepoint only makes it too high. */
static int	instances_locked = 0;

/* Those that this session holds beyond its transactions. */
static int	claims_locked = 0;

static void
forget_instances(XactEvent event, void *arg)
{
	instances_locked = 0;
}

/* Registers a callback; called once, from _PG_init. */
void
EvpgSagaLockInit(void)
{
	RegisterXactCallback(forget_instances, NULL);
}

/*
 * EvpgDueItemLock
 *		Locks the instance of an item, or the scheduled command, for the session
 *		beyond its transactions, or to the end of the transaction.  False if wait is
 *		false and another session holds it.  The caller holds the lock of the saga if
 *		it is to wait.
 *
 * The lock table is shared by all sessions of the server, so one transaction may
 * not fill more than half of it.
 */
bool
EvpgDueItemLock(const EvpgDueItem *item, bool session, bool wait)
{
	int64		limit = (int64) max_locks_per_xact * (MaxBackends + max_prepared_xacts) / 2;
	LOCKTAG		tag;
	LockAcquireResult result;

	if (!session && instances_locked + claims_locked >= limit)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many instances of sagas in one transaction"),
				 errdetail("It has locked %d, and may not fill more than half of the lock table of the server.",
						   instances_locked + claims_locked),
				 errhint("Commit after fewer, for example evpg_run_sagas(max_events => 1000).")));
	set_item_tag(item, &tag);
	if (EVPG_MUTATION("saga_unlocked"))
		return true;
	result = LockAcquire(&tag, ExclusiveLock, session, !wait);
	if (result == LOCKACQUIRE_OK && session)
		claims_locked++;
	else if (result == LOCKACQUIRE_OK)
		instances_locked++;
	return result != LOCKACQUIRE_NOT_AVAIL;
}

/* Releases the lock of the session; does nothing if it is released already. */
void
EvpgDueItemUnlock(EvpgDueItem *item)
{
	LOCKTAG		tag;

	if (!item->locked)
		return;
	item->locked = false;
	set_item_tag(item, &tag);
	/* User code may have called pg_advisory_unlock_all(). */
	if (EvpgLockIsHeld(&tag, ExclusiveLock))
		(void) LockRelease(&tag, ExclusiveLock, true);
	if (claims_locked > 0)
		claims_locked--;
}

/*
 * EvpgTimerOvertake
 *		Calls action for a scheduled command, for which it may have to wait for a worker
 *		that executes it: then the worker is cancelled, see EvpgLockOvertake.
 */
void
EvpgTimerOvertake(int64 timer_id, void (*action) (void *arg), void *arg)
{
	EvpgDueItem command = {.timer_id = timer_id};
	LOCKTAG		tag;

	set_item_tag(&command, &tag);
	EvpgLockOvertake(&tag, ExclusiveLock, action, arg);
}
