/*-------------------------------------------------------------------------
 *
 * tag_lock.c
 *		Locks on tags: a transaction that checks that no event of some kind exists, and
 *		transactions that append such events, wait for each other (rule 21).
 *
 * An appender locks each tag of its events in a mode that other appenders share, a
 * checker one tag of each item of its condition in a mode that other checkers share;
 * a tag that a transaction checks and appends, or may append after it has checked, in
 * a mode that no other shares: two that have checked, and then want to append, would
 * wait for each other.  So
 * appenders never wait for appenders, and if no condition is in use, no session waits.
 * An event that matches an item has all tags of the item, so one of them is enough.
 * Locks last to the end of the transaction: what a checker has found stays true until
 * its own events are committed, and what appenders before it have appended is visible
 * to it.
 *
 * The lock table of the server is small.  Beyond evpg.max_tag_locks of a transaction an
 * appender locks one key that stands for all tags, which each checker shares; a checker
 * locks the fence against all appenders, and so does one that names no tag.  Appenders
 * hold the fence anyway, so those of events without tags pay nothing for this.
 *
 * One call takes all of its locks in one order: tags by hash, all tags, the fence.  The
 * stream comes before.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/catalog.h"
#include "base/locks.h"
#include "base/settings.h"
#include "base/testing.h"
#include "catalog/pg_type.h"
#include "log/tag_lock.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"

/* Appenders share it among themselves, checkers theirs; neither shares that of the other, nor both at once. */
#define APPENDED	RowExclusiveLock
#define CHECKED		ShareLock
#define BOTH		ShareRowExclusiveLock

/* The key that stands for all tags. */
#define ALL_TAGS	UINT64CONST(0)

typedef struct TagLock
{
	uint64		hash;
	bool		appended;
	bool		checked;
	LOCKMODE	taken;			/* NoLock: it was not needed */
	bool		counted;
} TagLock;

struct EvpgTagLocks
{
	TagLock    *locks;
	int			count;
	int			size;
	bool		check_all;		/* one of the items has no tag */
	TagLock		all_tags;
	bool		fence;			/* is locked */
};

static void
add_lock(EvpgTagLocks *locks, uint64 hash, bool appended, bool checked)
{
	if (locks->count == locks->size)
	{
		locks->size *= 2;
		locks->locks = repalloc(locks->locks, sizeof(TagLock) * locks->size);
	}
	locks->locks[locks->count++] = (TagLock)
	{
		.hash = EVPG_MUTATION("tags_collide") ? 1 : hash, .appended = appended, .checked = checked
	};
}

static void
add_tags(EvpgTagLocks *locks, ArrayType *tags)
{
	Datum	   *values;
	int			count;

	deconstruct_array(tags, TEXTOID, -1, false, TYPALIGN_INT, &values, NULL, &count);
	for (int i = 0; i < count; i++)
		add_lock(locks, EvpgHashName(TextDatumGetCString(values[i]), 0), true, false);
}

static int
compare_locks(const void *left, const void *right)
{
	uint64		a = ((const TagLock *) left)->hash;
	uint64		b = ((const TagLock *) right)->hash;

	return a < b ? -1 : a > b;
}

/* Puts the locks into the order in which they are taken, each once. */
static void
sort_locks(EvpgTagLocks *locks)
{
	int			last = 0;

	if (locks->count == 0)
		return;
	qsort(locks->locks, locks->count, sizeof(TagLock), compare_locks);
	for (int i = 1; i < locks->count; i++)
	{
		if (locks->locks[i].hash != locks->locks[last].hash)
			locks->locks[++last] = locks->locks[i];
		else
		{
			locks->locks[last].appended |= locks->locks[i].appended;
			locks->locks[last].checked |= locks->locks[i].checked;
		}
	}
	locks->count = last + 1;
}

/* Returns whether this transaction appends under the lock that stands for all tags. */
static bool
appends_all_tags(void)
{
	LOCKTAG		tag;

	EvpgSetLockTag(&tag, EVPG_LOCK_TAG, ALL_TAGS);
	return EvpgLockIsHeld(&tag, APPENDED);
}

static void
lock_key(TagLock *lock, LOCKMODE mode)
{
	LOCKTAG		tag;

	if (EVPG_MUTATION("tags_unlocked"))
		return;
	EvpgSetLockTag(&tag, EVPG_LOCK_TAG, lock->hash);
	if (mode == APPENDED && EvpgLockIsHeld(&tag, BOTH))
		return;
	lock->taken = mode;
	lock->counted = LockAcquire(&tag, mode, false, false) == LOCKACQUIRE_OK && lock->hash != ALL_TAGS;
	if (lock->counted)
		EvpgLockCountAdd(EVPG_COUNTED_TAG);
}

static void
unlock_key(const TagLock *lock)
{
	LOCKTAG		tag;

	if (lock->taken == NoLock)
		return;
	EvpgSetLockTag(&tag, EVPG_LOCK_TAG, lock->hash);
	(void) LockRelease(&tag, lock->taken, false);
	if (lock->counted)
		EvpgLockCountRemove(EVPG_COUNTED_TAG);
}

/*
 * EvpgTagLocksBegin
 *		Begins to collect the locks of one call that appends these events; they are
 *		taken by EvpgTagLocksTake.  In CurrentMemoryContext.
 */
EvpgTagLocks *
EvpgTagLocksBegin(const EvpgEvent *events, int count)
{
	EvpgTagLocks *locks = palloc0(sizeof(EvpgTagLocks));

	locks->size = 8;
	locks->locks = palloc(sizeof(TagLock) * locks->size);
	for (int i = 0; i < count; i++)
		if (events[i].tags != NULL)
			add_tags(locks, events[i].tags);
	return locks;
}

/*
 * EvpgTagLocksCheck
 *		Adds a check for events that have a tag; NULL: for any events, with tags or
 *		without.  may_append: events with the tag may be appended later in the
 *		transaction.
 */
void
EvpgTagLocksCheck(EvpgTagLocks *locks, const char *tag, bool may_append)
{
	if (tag == NULL)
		locks->check_all = true;
	else
		add_lock(locks, EvpgHashName(tag, 0), may_append, true);
}

/*
 * EvpgTagLocksTake
 *		Takes the locks, to the end of the transaction.  The caller holds the stream,
 *		and has not entered the fence for this call.
 */
void
EvpgTagLocksTake(EvpgTagLocks *locks)
{
	bool		appended = false;
	bool		checked = false;
	bool		fits;

	sort_locks(locks);
	fits = EvpgLockCount(EVPG_COUNTED_TAG) + locks->count <= EvpgMaxTagLocks;
	for (int i = 0; i < locks->count; i++)
	{
		TagLock    *lock = &locks->locks[i];

		appended |= lock->appended;
		checked |= lock->checked;
		if (!fits || (!lock->checked && appends_all_tags()))
			continue;
		lock_key(lock, !lock->checked ? APPENDED : lock->appended ? BOTH : CHECKED);
	}
	if (fits && checked)
		lock_key(&locks->all_tags, CHECKED);
	else if (!fits && appended)
		lock_key(&locks->all_tags, APPENDED);
	locks->fence = (locks->check_all || (checked && !fits)) && !EVPG_MUTATION("tags_unlocked");
	if (locks->fence)
		LockRelationOid(EvpgCatalogGet()->fence, BOTH);
}

/* Gives back what EvpgTagLocksTake has taken, in the same subtransaction. */
void
EvpgTagLocksRelease(EvpgTagLocks *locks)
{
	if (locks->fence)
		UnlockRelationOid(EvpgCatalogGet()->fence, BOTH);
	unlock_key(&locks->all_tags);
	for (int i = 0; i < locks->count; i++)
		unlock_key(&locks->locks[i]);
}

/*
 * EvpgTagLockEvents
 *		Locks the tags of events, if they have any, before they are appended, to the end
 *		of the transaction.  The caller holds the stream, and enters the fence afterwards.
 */
void
EvpgTagLockEvents(const EvpgEvent *events, int count)
{
	int			i = 0;

	while (i < count && events[i].tags == NULL)
		i++;
	if (i < count)
		EvpgTagLocksTake(EvpgTagLocksBegin(events, count));
}
