/*-------------------------------------------------------------------------
 *
 * saga_lock.c
 *		The advisory locks of sagas, of their instances, and of scheduled commands.
 *
 * A session that works on an instance, or counts an attempt at what is due in it, has
 * locked it for that transaction.  Between the two, which are transactions, it holds the
 * lock of the claim, of the session: as long as any session has it, the attempt that is
 * counted was not under way when the server crashed.  Each attempt at an item has a lock
 * of its own, so that a claim does not outlive what it was for.  A claim keeps no other
 * session from the work: who has locked the instance does it.
 *
 * A session that changes the saga itself locks out all instances.  The saga is locked
 * before its instances, and these before rows.
 *
 */
#include "postgres.h"

#include "access/twophase.h"
#include "access/xact.h"
#include "base/catalog.h"
#include "base/locks.h"
#include "base/testing.h"
#include "common/hashfn.h"
#include "consumer/worker_lock.h"
#include "miscadmin.h"
#include "saga/saga.h"
#include "saga/saga_lock.h"
#include "storage/lmgr.h"
#include "usercode/guard.h"
#include "utils/inval.h"
#include "utils/memutils.h"

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

/*
 * EvpgSagaLockOut
 *		Waits until no instance of a saga reacts, and keeps it so to the end of the
 *		transaction, so that the saga can be changed.  Inline, instances react under the lock of the
 *		fence that their transactions have.  The caller has locked the consumer, and
 *		is inside EvpgEnter.
 */
void
EvpgSagaLockOut(const char *saga)
{
	EvpgSaga   *registered;

	(void) EvpgSagaLock(saga, ExclusiveLock, true);
	registered = EvpgSagaGet(saga, 0, true);
	if (registered != NULL && registered->is_inline)
		LockRelationOid(EvpgCatalogGet()->fence, ShareLock);
}

static void
set_instance_tag(const EvpgDueItem *item, LOCKTAG *tag)
{
	EvpgSetLockTag(tag, EVPG_LOCK_INSTANCE,
				   item->saga != NULL ? EvpgHashPair(item->saga, item->key) : (uint64) item->timer_id);
}

static void
set_claim_tag(const EvpgDueItem *item, int attempt, LOCKTAG *tag)
{
	uint64		hash = item->position == 0 ? (uint64) item->timer_id :
	hash_combine64(EvpgHashPair(item->saga, item->key), (uint64) item->position);

	EvpgSetLockTag(tag, EVPG_LOCK_CLAIM, hash_combine64(hash, (uint64) attempt));
}

/* Claims that this session holds, beyond its transactions. */
static int	claims_locked = 0;

/*
 * EvpgDueItemLock
 *		Locks the instance of an item, or the scheduled command, to the end of the
 *		transaction.  False if wait is false and another session holds it.  The caller
 *		holds the lock of the saga if it is to wait.
 *
 * The lock table is shared by all sessions of the server, so one transaction may
 * not fill more than half of it.
 */
bool
EvpgDueItemLock(const EvpgDueItem *item, bool wait)
{
	int64		limit = (int64) max_locks_per_xact * (MaxBackends + max_prepared_xacts) / 2;
	int			locked = EvpgLockCount(EVPG_COUNTED_INSTANCE) + claims_locked;
	LOCKTAG		tag;
	LockAcquireResult result;

	if (locked >= limit)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many instances of sagas in one transaction"),
				 errdetail("It has locked %d, and may not fill more than half of the lock table of the server.",
						   locked),
				 EvpgInsideSaga ?
				 errhint("Append fewer events in one transaction, or register the saga with mode => 'async'.") :
				 errhint("Commit after fewer, for example evpg_run_sagas(max_events => 1000).")));
	set_instance_tag(item, &tag);
	if (EVPG_MUTATION("saga_unlocked"))
		return true;
	result = LockAcquire(&tag, ExclusiveLock, false, !wait);
	if (result == LOCKACQUIRE_OK)
		EvpgLockCountAdd(EVPG_COUNTED_INSTANCE);
	return result != LOCKACQUIRE_NOT_AVAIL;
}

/*
 * EvpgDueItemIsClaimed
 *		Returns whether another session has claimed the attempt at an item that is counted:
 *		it has counted it, or taken it over, and lives.  What it has not begun yet can be
 *		taken over.  Waits for nothing.
 */
bool
EvpgDueItemIsClaimed(const EvpgDueItem *item)
{
	LOCKTAG		tag;

	set_claim_tag(item, item->attempts, &tag);

	/*
	 * Conflicts with a claim, but not with the same question of another
	 * session.
	 */
	if (LockAcquire(&tag, RowExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	(void) LockRelease(&tag, RowExclusiveLock, true);
	return false;
}

/*
 * EvpgDueItemLockClaim
 *		Locks the claim of the attempt at an item that is counted, for the session, until
 *		EvpgDueItemUnlockClaim.  The caller has locked the instance.
 */
void
EvpgDueItemLockClaim(EvpgDueItem *item)
{
	LOCKTAG		tag;

	set_claim_tag(item, item->attempts, &tag);
	/* Waits at most for a session that asks whether it is claimed. */
	(void) LockAcquire(&tag, ShareLock, true, false);
	item->claimed = item->attempts;
	claims_locked++;
}

/* Returns whether this session still holds the claim that it has locked. */
bool
EvpgDueItemHoldsClaim(const EvpgDueItem *item)
{
	LOCKTAG		tag;

	set_claim_tag(item, item->claimed, &tag);
	return EvpgLockIsHeld(&tag, ShareLock);
}

/* Locks a claim again that this session has locked and that user code has released. */
void
EvpgDueItemRelockClaim(const EvpgDueItem *item)
{
	LOCKTAG		tag;

	set_claim_tag(item, item->claimed, &tag);
	(void) LockAcquire(&tag, ShareLock, true, false);
}

/* Releases the claim; does nothing if it is released already. */
void
EvpgDueItemUnlockClaim(EvpgDueItem *item)
{
	LOCKTAG		tag;

	if (item->claimed == 0)
		return;
	set_claim_tag(item, item->claimed, &tag);
	item->claimed = 0;
	claims_locked--;
	/* User code may have called pg_advisory_unlock_all(). */
	if (EvpgLockIsHeld(&tag, ShareLock))
		(void) LockRelease(&tag, ShareLock, true);
}

/*
 * EvpgDueItemOvertake
 *		Calls action for a timer or a scheduled command, for which it may have to wait for
 *		a worker that is at work on it: then the worker is cancelled, see EvpgLockOvertake.
 */
void
EvpgDueItemOvertake(const EvpgDueItem *item, void (*action) (void *arg), void *arg)
{
	LOCKTAG		tag;

	set_instance_tag(item, &tag);
	EvpgLockOvertake(&tag, ExclusiveLock, action, arg);
}
