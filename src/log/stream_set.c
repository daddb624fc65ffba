/*-------------------------------------------------------------------------
 *
 * stream_set.c
 *		Several streams that one call locks: all of them before it writes, in the order of
 *		the keys of their locks.
 *
 * So two calls that want the same streams, in whatever order they name them, do not wait
 * for each other in a circle.  A transaction that has locked streams before the call may
 * still do so, as with several calls.
 *
 * While a call waits for one of its streams it holds those before it in that order.  One
 * that another transaction has written to beyond evpg.max_stream_locks is waited for by
 * the end of that transaction (stream.c).
 *
 * A call locks evpg.max_stream_locks streams at most, and gives back at its end those that
 * a transaction has beyond.  One that it only looks at has nothing of this transaction that
 * would guard it, so its lock is kept; if the transaction has no room for that, the call is
 * refused.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/catalog.h"
#include "base/errors.h"
#include "base/locks.h"
#include "base/settings.h"
#include "base/testing.h"
#include "log/stream_set.h"
#include "storage/lmgr.h"

/* A stream that was added, by what orders it. */
typedef struct AddedStream
{
	const EvpgStream *stream;
	uint64		key;
	int			number;
} AddedStream;

static int
compare_added(const void *left, const void *right)
{
	const AddedStream *a = left;
	const AddedStream *b = right;
	int			by_name;

	if (EVPG_MUTATION("streams_unordered"))
		return a->number - b->number;
	if (a->key != b->key)
		return a->key < b->key ? -1 : 1;
	by_name = strcmp(a->stream->aggregate_type, b->stream->aggregate_type);
	if (by_name == 0)
		by_name = strcmp(a->stream->aggregate_id, b->stream->aggregate_id);
	return by_name != 0 ? by_name : a->number - b->number;
}

static bool
is_same_stream(const EvpgStream *a, const EvpgStream *b)
{
	return strcmp(a->aggregate_type, b->aggregate_type) == 0 && strcmp(a->aggregate_id, b->aggregate_id) == 0;
}

/*
 * EvpgStreamSetMake
 *		Makes a set of streams, of which type and id are given, in CurrentMemoryContext;
 *		one may be given several times.  Raises VE014 if they are more than a call may
 *		lock.
 */
void
EvpgStreamSetMake(EvpgStreamSet *set, const EvpgStream *added, int count)
{
	AddedStream *sorted = palloc(sizeof(AddedStream) * Max(count, 1));

	for (int i = 0; i < count; i++)
		sorted[i] = (AddedStream)
	{
		.stream = &added[i], .key = EvpgStreamLockKey(&added[i]), .number = i
	};
	qsort(sorted, count, sizeof(AddedStream), compare_added);
	set->count = 0;
	set->streams = palloc0(sizeof(EvpgStream) * Max(count, 1));
	set->kept = palloc0(sizeof(bool) * Max(count, 1));
	set->places = palloc(sizeof(int) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		if (i == 0 || !is_same_stream(sorted[i].stream, &set->streams[set->count - 1]))
			set->streams[set->count++] = *sorted[i].stream;
		set->places[sorted[i].number] = set->count - 1;
	}
	if (set->count > EvpgMaxStreamLocks)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_LIMIT),
				 errmsg("too many streams in one call"),
				 errdetail("There are %d; the limit is %d.", set->count, EvpgMaxStreamLocks),
				 errhint("Split the call, or let a superuser raise evpg.max_stream_locks.")));
	pfree(sorted);
}

/* Raises VE014 unless the transaction can keep what is to be kept. */
static void
check_kept(const EvpgStreamSet *set)
{
	int			held = EvpgLockCount(EVPG_COUNTED_STREAM);
	bool		any = false;

	for (int i = 0; i < set->count; i++)
	{
		any |= set->kept[i] && set->streams[i].locked_now;
		held -= !set->kept[i] && set->streams[i].locked_now;
	}
	if (any && held > EvpgMaxStreamLocks)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_LIMIT),
				 errmsg("too many streams in one transaction"),
				 errdetail("Streams that a call only checks stay locked; with them the transaction holds %d, "
						   "and the limit is %d.", held, EvpgMaxStreamLocks),
				 errhint("Check them earlier in the transaction, or let a superuser raise evpg.max_stream_locks.")));
}

/*
 * EvpgStreamSetLock
 *		Locks the streams of a set, as EvpgStreamLock does each.  The caller has locked
 *		the tables (EvpgCatalogLockForAppend).  Raises VE014 if the transaction has no
 *		room to keep those that are to be kept.
 */
void
EvpgStreamSetLock(EvpgStreamSet *set)
{
	/* Locks of tables come before those of streams. */
	LockRelationOid(EvpgCatalogGet()->stream, RowExclusiveLock);
	for (int i = 0; i < set->count; i++)
	{
		EVPG_WAIT_POINT("streams_lock");
		(void) EvpgStreamLock(&set->streams[i]);
	}
	check_kept(set);
}

/*
 * EvpgStreamSetUnlockUnneeded
 *		Gives back what EvpgStreamSetLock has locked, as EvpgStreamUnlockUnneeded does
 *		each, but for those to be kept, in the same subtransaction.
 */
void
EvpgStreamSetUnlockUnneeded(EvpgStreamSet *set)
{
	for (int i = set->count - 1; i >= 0; i--)
		if (!set->kept[i])
			EvpgStreamUnlockUnneeded(&set->streams[i]);
}
