/*-------------------------------------------------------------------------
 *
 * locks.c
 *		The advisory locks of evpg: tags and hashes, the reservation of keys of rows
 *		that do not exist yet, and how many locks of a kind a transaction holds.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "base/compat.h"
#include "base/locks.h"
#include "base/row.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"

/* Returns 64 bits of a string: what hashtextextended(name COLLATE "C", seed) returns. */
uint64
EvpgHashName(const char *name, uint64 seed)
{
	return DatumGetUInt64(hash_any_extended((const unsigned char *) name, strlen(name), seed));
}

/* Returns 64 bits of two strings; those of ("ab", "c") and ("a", "bc") differ. */
uint64
EvpgHashPair(const char *first, const char *second)
{
	return EvpgHashName(second, EvpgHashName(first, 0));
}

/* Fills in the tag of a lock of this database. */
void
EvpgSetLockTag(LOCKTAG *tag, EvpgLockClass class, uint64 key)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, (uint32) (key >> 32), (uint32) key, class);
}

/* Returns whether this session has a lock in this very mode. */
bool
EvpgLockIsHeld(const LOCKTAG *tag, LOCKMODE mode)
{
	return LockHeldByMe(tag, mode, false);
}

/* Locks a key to the end of the transaction, and waits for it; false if this session had locked it before. */
bool
EvpgLockKey(EvpgLockClass class, uint64 hash)
{
	LOCKTAG		tag;

	EvpgSetLockTag(&tag, class, hash);
	return LockAcquire(&tag, ExclusiveLock, false, false) == LOCKACQUIRE_OK;
}

/* Waits for a transaction that has made or removed a row, as EvpgRowFindDirty tells; then look again. */
void
EvpgWaitForMaker(TransactionId maker, uint32 token)
{
	if (token != 0)
		SpeculativeInsertionWait(maker, token);
	else
		XactLockTableWait(maker, NULL, NULL, XLTW_None);
	CHECK_FOR_INTERRUPTS();
}

/*
 * EvpgKeyExists
 *		Returns whether a row with a unique key exists, committed or made by this
 *		transaction; waits for another transaction that has inserted one.  table and
 *		index point into the catalog.
 */
bool
EvpgKeyExists(const Oid *table, const Oid *index, ScanKey keys, int nkeys)
{
	TransactionId maker;
	uint32		token;

	while (EvpgRowFindDirty(table, index, keys, nkeys, &maker, &token) != NULL)
	{
		if (!TransactionIdIsValid(maker))
			return true;
		EvpgWaitForMaker(maker, token);
	}
	return false;
}

/*
 * EvpgReserveKey
 *		Makes this session the only one that may insert a row with a unique key,
 *		among those that ask, up to EvpgReleaseKey; false if the row exists.  table
 *		and index point into the catalog.
 *
 * Nothing is held while it waits for the transaction that has inserted the row and
 * not committed: that one may want the lock again, after a ROLLBACK TO that the
 * wait does not notice.
 */
bool
EvpgReserveKey(uint64 hash, const Oid *table, const Oid *index, ScanKey keys, int nkeys)
{
	for (;;)
	{
		TransactionId maker;
		uint32		token;
		bool		exists;

		(void) EvpgLockKey(EVPG_LOCK_KEY, hash);
		exists = EvpgRowFindDirty(table, index, keys, nkeys, &maker, &token) != NULL;
		if (!exists)
			return true;
		EvpgReleaseKey(EVPG_LOCK_KEY, hash);
		if (!TransactionIdIsValid(maker))
			return false;
		EvpgWaitForMaker(maker, token);
	}
}

/* Gives back what EvpgLockKey or EvpgReserveKey has taken, in the same subtransaction. */
void
EvpgReleaseKey(EvpgLockClass class, uint64 hash)
{
	LOCKTAG		tag;

	EvpgSetLockTag(&tag, class, hash);
	(void) LockRelease(&tag, ExclusiveLock, false);
}

/* ------------------------------------------------------------------ counting */

/* The subtransaction of each lock of a kind that the current transaction holds, in the order of taking. */
static List *held[EVPG_COUNTED_LOCKS];

static void
forget_locks(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		memset(held, 0, sizeof(held));
}

/* Forgets the locks that a rollback to a savepoint gives back: they were taken last. */
static void
forget_rolled_back_locks(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		for (int kind = 0; kind < EVPG_COUNTED_LOCKS; kind++)
			while (held[kind] != NIL && (SubTransactionId) llast_oid(held[kind]) >= mine)
				held[kind] = list_delete_last(held[kind]);
}

/* Registers callbacks; called once, from _PG_init. */
void
EvpgLocksInit(void)
{
	RegisterXactCallback(forget_locks, NULL);
	RegisterSubXactCallback(forget_rolled_back_locks, NULL);
}

/* Counts a lock that this transaction has taken, and did not hold before, to the end of the transaction. */
void
EvpgLockCountAdd(EvpgCountedLock kind)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

	held[kind] = lappend_oid(held[kind], (Oid) GetCurrentSubTransactionId());
	MemoryContextSwitchTo(old);
}

/* Takes back the last count of this subtransaction; subtransactions of it may have counted since. */
void
EvpgLockCountRemove(EvpgCountedLock kind)
{
	int			last = list_length(held[kind]) - 1;

	while ((SubTransactionId) list_nth_oid(held[kind], last) != GetCurrentSubTransactionId())
	{
		last--;
		Assert(last >= 0);
	}
	held[kind] = list_delete_nth_cell(held[kind], last);
}

/* Returns how many locks of a kind this transaction holds. */
int
EvpgLockCount(EvpgCountedLock kind)
{
	return list_length(held[kind]);
}
