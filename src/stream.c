/*-------------------------------------------------------------------------
 *
 * stream.c
 *		Streams: one row of evpg.stream each, which is what commands lock.
 *
 * The row lock (FOR NO KEY UPDATE, held to the end of the transaction) makes
 * the commands of a stream serial: who has it knows version and last position.
 * A lock is taken in a statement of its own, so that what is read next sees
 * what the previous holder committed.  Under REPEATABLE READ and above a row
 * that changed since the snapshot is a serialization failure (40001).
 *
 * A stream that does not exist has no row to lock.  Who must not be run twice
 * (a handler that is a function) reserves it first by an advisory lock on
 * (type, id), in a lock class of evpg's own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "plan.h"
#include "storage/lock.h"
#include "stream.h"
#include "utils/builtins.h"

/* Advisory locks of users have class 1 or 2 (pg_locks.objsubid); these are evpg's. */
#define LOCK_CLASS 17750

static bool
take_row(EvpgStream *stream, uint64 rows)
{
	Datum		value;

	if (rows == 0)
	{
		stream->stream_id = stream->version = stream->last_position = 0;
		return false;
	}
	(void) EvpgPlanResult(0, 1, &value);
	stream->stream_id = DatumGetInt64(value);
	(void) EvpgPlanResult(0, 2, &value);
	stream->version = DatumGetInt64(value);
	(void) EvpgPlanResult(0, 3, &value);
	stream->last_position = DatumGetInt64(value);
	return true;
}

/* Locks a stream to the end of the transaction and fills the rest of *stream; false if it has no row. */
bool
EvpgStreamLock(EvpgStream *stream)
{
	Datum		values[2] = {
		CStringGetTextDatum(stream->aggregate_type),
		CStringGetTextDatum(stream->aggregate_id)
	};
	bool		found = take_row(stream, EvpgPlanRun(EVPG_PLAN_STREAM_LOCK, values, NULL));

	EvpgPlanDone();
	return found;
}

/* The same without a lock, under the caller's snapshot or a new one. */
bool
EvpgStreamRead(EvpgStream *stream, bool caller_snapshot)
{
	Datum		values[2] = {
		CStringGetTextDatum(stream->aggregate_type),
		CStringGetTextDatum(stream->aggregate_id)
	};
	bool		found = take_row(stream, caller_snapshot ?
								 EvpgPlanRead(EVPG_PLAN_STREAM_READ, values, NULL) :
								 EvpgPlanRun(EVPG_PLAN_STREAM_READ, values, NULL));

	EvpgPlanDone();
	return found;
}

/*
 * EvpgStreamCreate
 *		Creates a stream, which is then locked; waits for another creator.
 *		False if that one was first: nothing happened, lock the row and see.
 */
bool
EvpgStreamCreate(EvpgStream *stream)
{
	Datum		values[2] = {
		CStringGetTextDatum(stream->aggregate_type),
		CStringGetTextDatum(stream->aggregate_id)
	};
	bool		created = take_row(stream, EvpgPlanRun(EVPG_PLAN_STREAM_CREATE, values, NULL));

	EvpgPlanDone();
	return created;
}

/* Makes this transaction the only one that may create the stream. */
void
EvpgStreamReserve(const EvpgStream *stream)
{
	EvpgLockHash(EvpgHashPair(stream->aggregate_type, stream->aggregate_id));
}

/* Stores what a locked stream has come to. */
void
EvpgStreamAdvance(EvpgStream *stream, int64 version, int64 last_position)
{
	Datum		values[3] = {
		Int64GetDatum(stream->stream_id),
		Int64GetDatum(version),
		Int64GetDatum(last_position)
	};
	uint64		rows = EvpgPlanRun(EVPG_PLAN_STREAM_ADVANCE, values, NULL);

	EvpgPlanDone();
	if (rows != 1)
		elog(ERROR, "stream " INT64_FORMAT " has vanished", stream->stream_id);
	stream->version = version;
	stream->last_position = last_position;
}

/* Takes an advisory lock of evpg's own class to the end of the transaction. */
void
EvpgLockHash(uint64 hash)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (hash >> 32), (uint32) hash, LOCK_CLASS);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/* 64 bits of two strings; ("ab", "c") and ("a", "bc") differ. */
uint64
EvpgHashPair(const char *first, const char *second)
{
	uint64		hash = DatumGetUInt64(hash_any_extended((const unsigned char *) first, strlen(first), 0));

	return DatumGetUInt64(hash_any_extended((const unsigned char *) second, strlen(second), hash));
}
