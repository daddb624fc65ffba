/*-------------------------------------------------------------------------
 *
 * locks.h
 *		The advisory locks of evpg: their classes, and the order in which they are
 *		taken.
 *
 * Advisory locks of users have class 1 or 2, which pg_locks shows as objsubid;
 * the classes below are evpg's alone.  classid and objid are the halves of a key
 * of 64 bits, which hashtextextended(name COLLATE "C", 0) computes too.
 *
 * One transaction takes them in this order: consumer, rebuild, part of a rebuild,
 * saga, instance, streams, tags, the fence (a lock on view evpg.fence) with that of an appender,
 * keys, a part of totals.  Workers and evpg_run wait for none of the first five: what
 * they do not get they leave for later.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_LOCKS_H
#define EVPG_LOCKS_H

#include "access/skey.h"
#include "storage/lock.h"

/* All are held to the end of the transaction, and are exclusive, unless noted otherwise. */
typedef enum EvpgLockClass
{
	/*
	 * A key that a row may be made for.  Hash of an event_id: to the end of
	 * the command.  The inverted hash of (projection, key): an inline apply.
	 */
	EVPG_LOCK_KEY = 17750,

	/*
	 * An appender.  The key is the last position that had been drawn before
	 * it: what it draws lies above.  Shared; no session waits for it.
	 */
	EVPG_LOCK_APPENDER = 17751,

	/*
	 * A consumer.  Hash of its name: the session that applies its events or
	 * changes it.
	 */
	EVPG_LOCK_CONSUMER = 17752,

	/*
	 * A rebuild.  Hash of a projection's name: shared by the sessions that
	 * work on it, exclusive to end it.  With part + 1 as seed: one part of
	 * it.  Hash of nothing: the session that deletes replaced rows.
	 */
	EVPG_LOCK_REBUILD = 17753,

	/*
	 * An instance of a saga, or a scheduled command.  Hash of (saga, key), or
	 * the id of the scheduled command: the session that works on it, or
	 * counts an attempt.
	 */
	EVPG_LOCK_INSTANCE = 17754,

	/*
	 * A saga.  Hash of (name, ''): shared by reactions, exclusive to
	 * register, drop, rebuild or pause it.
	 */
	EVPG_LOCK_SAGA = 17755,

	/*
	 * What may take the server down: one for the server, of no database.
	 * evpg_run and workers hold it for the session, from the count of an
	 * attempt to its commit: shared, but exclusive for what has been under
	 * way in a crash.
	 */
	EVPG_LOCK_SUSPECT = 17756,

	/*
	 * A claim.  Hash of (saga, key) and the position of an event, or the id
	 * of a timer or a scheduled command.  evpg_run and workers hold it for
	 * the session, shared, from the count of an attempt to its end, which are
	 * two transactions.  Exclusive for a moment, to ask whether another
	 * session has it; no session waits for it.
	 */
	EVPG_LOCK_CLAIM = 17757,

	/*
	 * A part of the totals of a saga.  Hash of its name with the number of
	 * the part as seed; no session waits for it.
	 */
	EVPG_LOCK_TOTAL = 17758,

	/*
	 * A stream.  Hash of (type, id): a command.  The first
	 * evpg.max_stream_locks of a transaction to its end, others to the end of
	 * the command.
	 */
	EVPG_LOCK_STREAM = 17759,

	/*
	 * A tag.  Its hash: a transaction that appends events with it
	 * (RowExclusive), that checks that there are none (Share), or both
	 * (ShareRowExclusive).  The first evpg.max_tag_locks of a transaction;
	 * beyond, 0, which stands for all tags.
	 */
	EVPG_LOCK_TAG = 17760
} EvpgLockClass;

/* Locks of which a transaction keeps only so many, since the lock table is small. */
typedef enum EvpgCountedLock
{
	EVPG_COUNTED_KEY,			/* EVPG_LOCK_KEY of an inline apply */
	EVPG_COUNTED_INSTANCE,		/* EVPG_LOCK_INSTANCE */
	EVPG_COUNTED_STREAM,		/* EVPG_LOCK_STREAM */
	EVPG_COUNTED_TAG,			/* EVPG_LOCK_TAG */
	EVPG_COUNTED_LOCKS
} EvpgCountedLock;

extern void EvpgLocksInit(void);
extern uint64 EvpgHashName(const char *name, uint64 seed);
extern uint64 EvpgHashPair(const char *first, const char *second);
extern void EvpgSetLockTag(LOCKTAG *tag, EvpgLockClass class, uint64 key);
extern bool EvpgLockIsHeld(const LOCKTAG *tag, LOCKMODE mode);
extern bool EvpgLockKey(EvpgLockClass class, uint64 hash);
extern void EvpgWaitForMaker(TransactionId maker, uint32 token);
extern bool EvpgKeyExists(const Oid *table, const Oid *index, ScanKey keys, int nkeys);
extern bool EvpgReserveKey(uint64 hash, const Oid *table, const Oid *index, ScanKey keys, int nkeys);
extern void EvpgReleaseKey(EvpgLockClass class, uint64 hash);
extern void EvpgLockCountAdd(EvpgCountedLock kind);
extern void EvpgLockCountRemove(EvpgCountedLock kind);
extern int	EvpgLockCount(EvpgCountedLock kind);

#endif							/* EVPG_LOCKS_H */
