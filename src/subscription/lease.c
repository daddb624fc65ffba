/*-------------------------------------------------------------------------
 *
 * lease.c
 *		The leases of a subscription: the rows of evpg.subscription_lease.
 *
 * A consumer has one row, which also is the guard of what it holds: a transaction that
 * hands out, acknowledges or takes away events replaces it first, if it is still the
 * version that was read, and keeps it locked to its end.  A row is never deleted; that
 * of a consumer that has left is free for the next one.  So the number of a lease can
 * carry the slot, by which the row is found: it is a random number, which no crash or
 * restore can repeat, with the slot in the lowest bits, below 2^53, so that clients may
 * keep it in a floating-point number.
 *
 * Rows are read as they are committed now, or written by this transaction.  While another
 * session holds a snapshot all versions of a row stay, and an index leads through all that
 * lie on its last page.  So a session remembers where it has last seen the rows of one
 * subscription, and goes on from there: what it finds is compared with the key, and whatever
 * has become of the place, the index has the answer.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/locks.h"
#include "base/row.h"
#include "base/row_scan.h"
#include "base/testing.h"
#include "base/errors.h"
#include "storage/lmgr.h"
#include "subscription/lease.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

/* Columns of evpg.subscription_lease, see sql/evpg--1.0.sql. */
enum
{
	LEASE_SUBSCRIPTION, LEASE_SLOT, LEASE_CONSUMER, LEASE_LEASE, LEASE_ACKED, LEASE_HANDED, LEASE_DELIVERED,
	LEASE_UNTIL, LEASE_REPLAYING, LEASE_NATTS
};

/* So many leases are remembered; of more consumers each fetch looks into the index. */
#define MAX_KNOWN_PLACES 64

/* Returns a number for a new lease in a slot. */
int64
EvpgLeaseNewNumber(int slot)
{
	uint64		number;

	if (!pg_strong_random(&number, sizeof(number)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	/* 41 bits and 12 bits; 0 is no lease. */
	return (int64) ((((number >> 23) | 1) * EVPG_MAX_LEASES) + slot);
}

/* Makes a lease of a row, which it owns. */
static EvpgLease *
make_lease(HeapTuple row)
{
	EvpgLease  *lease = palloc(sizeof(EvpgLease));
	Datum		values[LEASE_NATTS];
	bool		nulls[LEASE_NATTS];

	heap_deform_tuple(row, EvpgCatalogGet()->subscription_lease_row, values, nulls);
	lease->slot = DatumGetInt32(values[LEASE_SLOT]);
	lease->consumer = nulls[LEASE_CONSUMER] ? NULL : TextDatumGetCString(values[LEASE_CONSUMER]);
	lease->lease = DatumGetInt64(values[LEASE_LEASE]);
	lease->acked = DatumGetInt64(values[LEASE_ACKED]);
	lease->handed = DatumGetInt64(values[LEASE_HANDED]);
	lease->delivered = DatumGetInt64(values[LEASE_DELIVERED]);
	lease->until = DatumGetTimestampTz(values[LEASE_UNTIL]);
	lease->replaying = DatumGetBool(values[LEASE_REPLAYING]);
	lease->row = row;
	return lease;
}

/* ------------------------------------------------------------------ reading */

/* Where the session has last seen the leases of a subscription, by slot; it has all from 0 on. */
static struct
{
	char		subscription[EVPG_MAX_NAME + 1];
	int			count;
	ItemPointerData places[MAX_KNOWN_PLACES];
}			known;

/* Remembers where the leases of a subscription are, unless they are many or a slot is missing. */
static void
remember_places(const char *subscription, List *leases)
{
	ListCell   *cell;

	strlcpy(known.subscription, subscription, sizeof(known.subscription));
	known.count = 0;
	foreach(cell, leases)
	{
		const EvpgLease *lease = lfirst(cell);

		if (lease->slot != known.count || known.count == MAX_KNOWN_PLACES)
		{
			known.count = 0;
			return;
		}
		known.places[known.count++] = lease->row->t_self;
	}
}

/* Returns the row of a slot, if the session has seen it and finds it from there; else NULL. */
static TupleTableSlot *
find_known_row(EvpgRowScan *scan, const char *subscription, int slot)
{
	TupleTableSlot *row;

	if (slot >= known.count || strcmp(known.subscription, subscription) != 0)
		return NULL;
	row = EvpgRowScanNewest(scan, &known.places[slot]);
	if (row == NULL || DatumGetInt32(row->tts_values[LEASE_SLOT]) != slot ||
		strcmp(TextDatumGetCString(row->tts_values[LEASE_SUBSCRIPTION]), subscription) != 0)
		return NULL;
	return row;
}

/* Returns the leases that the session has seen before, in the order of slots; NIL if one is not where it was. */
static List *
list_known_leases(EvpgRowScan *scan, const char *subscription)
{
	List	   *leases = NIL;

	for (int slot = 0; slot < known.count; slot++)
	{
		TupleTableSlot *row = find_known_row(scan, subscription, slot);

		if (row == NULL)
			return NIL;
		leases = lappend(leases, make_lease(ExecCopySlotHeapTuple(row)));
	}
	return leases;
}

/* Lists all leases of a subscription (EvpgLease *), by slot, in CurrentMemoryContext; free slots as well. */
List *
EvpgLeaseList(const char *subscription)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	EvpgRowScan *scan = EvpgRowScanBegin(&catalog->subscription_lease, &catalog->subscription_lease_index, true);
	ScanKeyData keys[3];
	TupleTableSlot *slot;
	List	   *leases = list_known_leases(scan, subscription);
	List	   *others = NIL;
	int			below = EVPG_MAX_LEASES;

	/* One at a time: see EvpgRowScanLast. */
	EvpgRowKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(subscription));
	EvpgRowKeyInit(&keys[1], 2, BTGreaterEqualStrategyNumber, F_INT4GE, Int32GetDatum(list_length(leases)));
	while (below > list_length(leases))
	{
		EvpgRowKeyInit(&keys[2], 2, BTLessStrategyNumber, F_INT4LT, Int32GetDatum(below));
		EvpgRowScanTo(scan, keys, 3);
		slot = EvpgRowScanLast(scan);
		if (slot == NULL)
			break;
		others = lcons(make_lease(ExecCopySlotHeapTuple(slot)), others);
		below = ((EvpgLease *) linitial(others))->slot;
	}
	EvpgRowScanEnd(scan);
	leases = list_concat(leases, others);
	remember_places(subscription, leases);
	return leases;
}

/* Returns the lease of a number, in CurrentMemoryContext; NULL if it is lost, or was none. */
EvpgLease *
EvpgLeaseFind(const char *subscription, int64 number)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	int			slot = (int) (number % EVPG_MAX_LEASES);
	ScanKeyData keys[2];
	EvpgRowScan *scan;
	TupleTableSlot *row;
	EvpgLease  *lease = NULL;

	if (number <= 0)
		return NULL;
	scan = EvpgRowScanBegin(&catalog->subscription_lease, &catalog->subscription_lease_index, true);
	row = find_known_row(scan, subscription, slot);
	if (row == NULL)
	{
		EvpgRowKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(subscription));
		EvpgRowKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(slot));
		EvpgRowScanTo(scan, keys, 2);
		row = EvpgRowScanLast(scan);
	}
	if (row != NULL)
		lease = make_lease(ExecCopySlotHeapTuple(row));
	EvpgRowScanEnd(scan);
	return lease != NULL && lease->consumer != NULL && lease->lease == number ? lease : NULL;
}

/* ------------------------------------------------------------------ writing */

/* Fills the columns of the row of a lease. */
static void
set_lease_values(const EvpgLease *lease, Datum *values, bool *nulls)
{
	memset(nulls, false, LEASE_NATTS);
	values[LEASE_SUBSCRIPTION] = (Datum) 0;
	values[LEASE_SLOT] = Int32GetDatum(lease->slot);
	nulls[LEASE_CONSUMER] = (lease->consumer == NULL);
	values[LEASE_CONSUMER] = lease->consumer == NULL ? (Datum) 0 : CStringGetTextDatum(lease->consumer);
	values[LEASE_LEASE] = Int64GetDatum(lease->lease);
	values[LEASE_ACKED] = Int64GetDatum(lease->acked);
	values[LEASE_HANDED] = Int64GetDatum(lease->handed);
	values[LEASE_DELIVERED] = Int64GetDatum(lease->delivered);
	values[LEASE_UNTIL] = TimestampTzGetDatum(lease->until);
	values[LEASE_REPLAYING] = BoolGetDatum(lease->replaying);
}

/* Writes a lease, with try_lock after having locked its row without waiting; returns false if it cannot. */
static bool
write_lease_row(EvpgLease *lease, bool try_lock, bool wait)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	Datum		values[LEASE_NATTS];
	bool		nulls[LEASE_NATTS];
	bool		replaced[LEASE_NATTS];
	EvpgRowWriter *writer = EvpgRowWriterBegin(&catalog->subscription_lease, &catalog->subscription_lease_row);
	bool		written;

	set_lease_values(lease, values, nulls);
	memset(replaced, true, sizeof(replaced));
	replaced[LEASE_SUBSCRIPTION] = replaced[LEASE_SLOT] = false;
	written = (!try_lock || EvpgRowTryLock(writer, lease->row)) &&
		EvpgRowTryReplace(writer, lease->row, values, nulls, replaced, wait);
	EvpgRowWriterEnd(writer);
	return written;
}

/*
 * EvpgLeaseTryWrite
 *		Writes a lease, which is locked from then on.  Returns false, and writes nothing,
 *		if its row is not as it was read, or if another transaction has locked it and wait
 *		is false: that is looked at before, so a lock that comes at the same moment is waited
 *		for.  The lease must be read again before it is written once more.
 */
bool
EvpgLeaseTryWrite(EvpgLease *lease, bool wait)
{
	return write_lease_row(lease, false, wait);
}

/*
 * EvpgLeaseTryTake
 *		Like EvpgLeaseTryWrite, for a lease that other consumers may write, too: never waits.
 */
bool
EvpgLeaseTryTake(EvpgLease *lease)
{
	return write_lease_row(lease, true, false);
}

/* Returns whether the row of a lease is as it was read, and no transaction has locked it now. */
bool
EvpgLeaseIsFree(const EvpgLease *lease)
{
	return EvpgRowIsFree(&EvpgCatalogGet()->subscription_lease, lease->row);
}

/* Returns whether there is a row of a slot, also one of a transaction that has not ended. */
static bool
slot_exists(const char *subscription, int slot)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	ScanKeyData keys[2];
	TransactionId maker;
	uint32		token;

	EvpgRowKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(subscription));
	EvpgRowKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(slot));
	return EvpgRowFindDirty(&catalog->subscription_lease, &catalog->subscription_lease_index, keys, 2, &maker,
							&token) != NULL;
}

/* Inserts a lease in a slot without one. */
static void
insert_lease(const char *subscription, const EvpgLease *lease)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	Datum		values[LEASE_NATTS];
	bool		nulls[LEASE_NATTS];
	EvpgRowWriter *writer = EvpgRowWriterBegin(&catalog->subscription_lease, &catalog->subscription_lease_row);

	set_lease_values(lease, values, nulls);
	values[LEASE_SUBSCRIPTION] = CStringGetTextDatum(subscription);
	(void) EvpgRowInsert(writer, values, nulls);
	EvpgRowWriterEnd(writer);
}

/* Writes a lease into a new slot.  The lock makes sure that no other session inserts the same. */
static void
write_new_slot(const char *subscription, EvpgLease *lease, int first)
{
	uint64		hash = EvpgHashPair("evpg.subscription_lease", subscription);
	bool		locked = EvpgLockKey(EVPG_LOCK_KEY, hash);

	lease->slot = first;
	while (lease->slot < EVPG_MAX_LEASES && slot_exists(subscription, lease->slot))
		lease->slot++;
	if (lease->slot == EVPG_MAX_LEASES)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_LIMIT),
				 errmsg("subscription \"%s\" has too many consumers", subscription),
				 errdetail("The limit is %d.", EVPG_MAX_LEASES)));
	lease->lease = EvpgLeaseNewNumber(lease->slot);
	insert_lease(subscription, lease);
	if (locked)
		EvpgReleaseKey(EVPG_LOCK_KEY, hash);
}

/* Writes a lease into a free slot of a list; returns false if there is none that it can get. */
static bool
write_free_slot(EvpgLease *lease, List *leases)
{
	ListCell   *cell;

	foreach(cell, leases)
	{
		EvpgLease  *free = lfirst(cell);

		if (free->consumer != NULL)
			continue;
		lease->slot = free->slot;
		lease->lease = EvpgLeaseNewNumber(free->slot);
		lease->delivered = free->delivered;
		lease->row = free->row;
		if (EvpgLeaseTryTake(lease))
			return true;
	}
	return false;
}

/*
 * EvpgLeaseCreate
 *		Gives a consumer that has no lease a new one, without partitions.  Returns false if
 *		another transaction has just done that or is doing it: two sessions have the same
 *		name of a consumer.  Else holds a lock on the name to the end of the transaction.
 */
bool
EvpgLeaseCreate(const char *subscription, const char *consumer, TimestampTz until)
{
	EvpgLease	lease = {.consumer = pstrdup(consumer), .until = until};
	LOCKTAG		tag;
	List	   *leases;
	ListCell   *cell;

	EVPG_WAIT_POINT("lease_create");
	EvpgSetLockTag(&tag, EVPG_LOCK_CONSUMER, EvpgHashPair(subscription, consumer));
	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	leases = EvpgLeaseList(subscription);
	foreach(cell, leases)
	{
		EvpgLease  *other = lfirst(cell);

		if (other->consumer == NULL || strcmp(other->consumer, consumer) != 0)
			continue;
		/* No third session may have to wait for the end of this transaction. */
		(void) LockRelease(&tag, ExclusiveLock, false);
		return false;
	}
	if (!write_free_slot(&lease, leases))
		write_new_slot(subscription, &lease, list_length(leases));
	return true;
}
