/*-------------------------------------------------------------------------
 *
 * stream.c
 *		Streams: one row of evpg.stream each, which is what commands lock.
 *
 * The row lock (row.c), held to the end of the transaction, makes the commands
 * of a stream serial: who has it knows version and last position.  What is read
 * after that is read with a new snapshot, so that it includes what the previous
 * holder committed.
 *
 * A stream that does not exist has no row to lock.  Who must not be run twice
 * (a handler that is a function) reserves it first by an advisory lock on
 * (type, id), in a lock class of evpg's own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "plan.h"
#include "row.h"
#include "storage/lock.h"
#include "stream.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

/* Advisory locks of users have class 1 or 2 (pg_locks.objsubid); these are evpg's. */
#define LOCK_CLASS 17750

/* Columns of evpg.stream, see sql/evpg--1.0.sql. */
#define STREAM_STREAM_ID		1
#define STREAM_VERSION			2
#define STREAM_LAST_POSITION	3

static bool
find_row(EvpgStream *stream, Snapshot snapshot, bool lock)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	bool		isnull;

	stream->row = EvpgRowFind(catalog->stream, catalog->stream_key_index, stream->aggregate_type,
							  stream->aggregate_id, snapshot, lock);
	if (stream->row == NULL)
	{
		stream->stream_id = stream->version = stream->last_position = 0;
		return false;
	}
	stream->stream_id = DatumGetInt64(EvpgRowValue(catalog->stream, stream->row, STREAM_STREAM_ID, &isnull));
	stream->version = DatumGetInt64(EvpgRowValue(catalog->stream, stream->row, STREAM_VERSION, &isnull));
	stream->last_position = DatumGetInt64(EvpgRowValue(catalog->stream, stream->row, STREAM_LAST_POSITION, &isnull));
	return true;
}

/* Locks a stream to the end of the transaction and fills the rest of *stream; false if it has no row. */
bool
EvpgStreamLock(EvpgStream *stream)
{
	return find_row(stream, GetTransactionSnapshot(), true);
}

/* The same without a lock, under the caller's snapshot or a new one. */
bool
EvpgStreamRead(EvpgStream *stream, bool caller_snapshot)
{
	return find_row(stream, caller_snapshot ? GetActiveSnapshot() : GetTransactionSnapshot(), false);
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
	bool		created = EvpgPlanRun(EVPG_PLAN_STREAM_CREATE, values, NULL) > 0;

	EvpgPlanDone();
	/* Our own row now; the lock is what EvpgStreamAdvance wants. */
	if (created && !EvpgStreamLock(stream))
		elog(ERROR, "stream \"%s\" has vanished", stream->aggregate_id);
	return created;
}

/* Makes this transaction the only one that may create the stream. */
void
EvpgStreamReserve(const EvpgStream *stream)
{
	(void) EvpgLockHash(EvpgHashPair(stream->aggregate_type, stream->aggregate_id));
}

/* Stores what a locked stream has come to. */
void
EvpgStreamAdvance(EvpgStream *stream, int64 version, int64 last_position)
{
	int			columns[2] = {STREAM_VERSION, STREAM_LAST_POSITION};
	Datum		values[2] = {Int64GetDatum(version), Int64GetDatum(last_position)};
	bool		nulls[2] = {false, false};

	Assert(stream->row != NULL);
	stream->row = EvpgRowReplace(EvpgCatalogGet()->stream, stream->row, 2, columns, values, nulls);
	stream->version = version;
	stream->last_position = last_position;
}

/* Takes an advisory lock of evpg's own class to the end of the transaction; false if it had it. */
bool
EvpgLockHash(uint64 hash)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (hash >> 32), (uint32) hash, LOCK_CLASS);
	return LockAcquire(&tag, ExclusiveLock, false, false) == LOCKACQUIRE_OK;
}

/* 64 bits of two strings; ("ab", "c") and ("a", "bc") differ. */
uint64
EvpgHashPair(const char *first, const char *second)
{
	uint64		hash = DatumGetUInt64(hash_any_extended((const unsigned char *) first, strlen(first), 0));

	return DatumGetUInt64(hash_any_extended((const unsigned char *) second, strlen(second), hash));
}
