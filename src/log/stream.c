/*-------------------------------------------------------------------------
 *
 * stream.c
 *		Streams: one row of evpg.stream each, which is what commands lock.
 *
 * The row lock (row.c), held to the end of the transaction, makes the commands
 * of a stream serial: its holder knows version and last position.  What is read
 * after that is read with a new snapshot, so that it includes what the previous
 * holder committed.
 *
 * The type and id of a stream_id never change, so a session remembers them.
 *
 * A stream that does not exist has no row to lock.  A command that must not run
 * twice (its handler is a function) first reserves the stream by an advisory
 * lock on (type, id), in a lock class of its own.  It is held to the end of the
 * command, not of the transaction, which may create any number of streams: the
 * lock table of the server is small.  From then on the row itself is the guard,
 * though no other session can see it yet: the next holder of the advisory lock
 * searches for the row as a unique index does, waits for the transaction that
 * has made it, and searches again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/stratnum.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/locks.h"
#include "base/row.h"
#include "base/statement.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "log/stream.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* Columns of evpg.stream, see sql/evpg--1.0.sql. */
#define STREAM_STREAM_ID		1
#define STREAM_VERSION			2
#define STREAM_LAST_POSITION	3
#define STREAM_LAST_RECORDED_AT	5
#define STREAM_AGGREGATE_TYPE	6
#define STREAM_AGGREGATE_ID		7
#define STREAM_NATTS			7

/* Number and memory of the streams that a session remembers by stream_id; then it starts again. */
#define MAX_STREAM_NAMES 100000
#define MAX_STREAM_NAMES_SIZE (32 * 1024 * 1024)

typedef struct StreamName
{
	int64		stream_id;
	char	   *aggregate_type;
	char	   *aggregate_id;
	char		status;
} StreamName;

#define SH_PREFIX streams
#define SH_ELEMENT_TYPE StreamName
#define SH_KEY_TYPE int64
#define SH_KEY stream_id
#define SH_HASH_KEY(table, key) murmurhash32((uint32) (key) ^ (uint32) ((key) >> 32))
#define SH_EQUAL(table, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static MemoryContext EvpgStreamContext = NULL;	/* of names */
static streams_hash *stream_names = NULL;
static uint64 stream_names_identity = 0;	/* EvpgCatalogIdentity() */

/* Returns a value of a row of evpg.stream, which has no NULLs. */
static Datum
get_stream_value(HeapTuple row, int column)
{
	bool		isnull;

	return heap_getattr(row, column, EvpgCatalogGet()->stream_row, &isnull);
}

static bool
find_stream_row(EvpgStream *stream, Snapshot snapshot, bool lock)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();

	stream->row = EvpgRowFind(&catalog->stream, &catalog->stream_key_index, F_TEXTEQ,
							  CStringGetTextDatum(stream->aggregate_type), stream->aggregate_id, snapshot, lock);
	if (stream->row == NULL)
	{
		stream->stream_id = stream->version = stream->last_position = 0;
		stream->last_recorded_at = DT_NOBEGIN;
		return false;
	}
	stream->stream_id = DatumGetInt64(get_stream_value(stream->row, STREAM_STREAM_ID));
	stream->version = DatumGetInt64(get_stream_value(stream->row, STREAM_VERSION));
	stream->last_position = DatumGetInt64(get_stream_value(stream->row, STREAM_LAST_POSITION));
	stream->last_recorded_at = DatumGetTimestampTz(get_stream_value(stream->row, STREAM_LAST_RECORDED_AT));
	return true;
}

/*
 * EvpgStreamLock
 *		Locks the row of a stream to the end of the transaction and fills the
 *		rest of *stream, given its type and id; false if there is no row.  The
 *		row is in CurrentMemoryContext.
 */
bool
EvpgStreamLock(EvpgStream *stream)
{
	return find_stream_row(stream, GetTransactionSnapshot(), true);
}

/*
 * EvpgStreamRead
 *		Reads the row of a stream as EvpgStreamLock does, but without a lock,
 *		under the active snapshot (caller_snapshot) or a new one.
 */
bool
EvpgStreamRead(EvpgStream *stream, bool caller_snapshot)
{
	return find_stream_row(stream, caller_snapshot ? GetActiveSnapshot() : GetTransactionSnapshot(), false);
}

/* Empties the session's memory of streams by stream_id. */
static void
reset_stream_names(void)
{
	MemoryContext old = EvpgStreamContext;

	EvpgStreamContext = NULL;
	stream_names = NULL;
	if (old != NULL)
		MemoryContextDelete(old);
	EvpgStreamContext = AllocSetContextCreate(TopMemoryContext, "EvpgStream", ALLOCSET_DEFAULT_SIZES);
	stream_names = streams_create(EvpgStreamContext, 1024, NULL);
	stream_names_identity = EvpgCatalogIdentity();
}

/*
 * EvpgStreamGetById
 *		Fills type and id of *stream by its stream_id; they live until the next
 *		call.  Raises XX001 if there is no such stream.
 */
void
EvpgStreamGetById(int64 stream_id, EvpgStream *stream)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	StreamName *entry;
	bool		found;

	if (stream_names == NULL || stream_names->members >= MAX_STREAM_NAMES || stream_names_identity != EvpgCatalogIdentity())
		reset_stream_names();
	entry = streams_lookup(stream_names, stream_id);
	if (entry == NULL)
	{
		HeapTuple	row = EvpgRowFindById(&catalog->stream, &catalog->stream_id_index, stream_id);
		MemoryContext old;
		char	   *type;
		char	   *id;

		if (row == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("stream with id " INT64_FORMAT " is missing", stream_id),
					 errdetail("There is an event of it.")));
		if (MemoryContextMemAllocated(EvpgStreamContext, false) > MAX_STREAM_NAMES_SIZE)
			reset_stream_names();
		old = MemoryContextSwitchTo(EvpgStreamContext);
		type = TextDatumGetCString(get_stream_value(row, STREAM_AGGREGATE_TYPE));
		id = TextDatumGetCString(get_stream_value(row, STREAM_AGGREGATE_ID));
		entry = streams_insert(stream_names, stream_id, &found);
		entry->aggregate_type = type;
		entry->aggregate_id = id;
		MemoryContextSwitchTo(old);
		heap_freetuple(row);
	}
	memset(stream, 0, sizeof(EvpgStream));
	stream->stream_id = stream_id;
	stream->aggregate_type = entry->aggregate_type;
	stream->aggregate_id = entry->aggregate_id;
}

static EvpgStatement insert_stream = {
	.text = "INSERT INTO evpg.stream (aggregate_type, aggregate_id) VALUES ($1, $2)"
	" ON CONFLICT (aggregate_type, aggregate_id) DO NOTHING RETURNING stream_id",
	.types = {TEXTOID, TEXTOID}
};

/*
 * EvpgStreamCreate
 *		Creates a stream, which is then locked to the end of the transaction;
 *		waits for another creator.  Returns false if that one was first: nothing
 *		has happened, the caller locks the row.
 */
bool
EvpgStreamCreate(EvpgStream *stream)
{
	Datum		values[2] = {
		CStringGetTextDatum(stream->aggregate_type),
		CStringGetTextDatum(stream->aggregate_id)
	};
	bool		created = EvpgStatementRun(&insert_stream, values, NULL) > 0;

	EvpgStatementDone();
	/* Our own row now; the lock is what EvpgStreamAdvance wants. */
	if (created && !EvpgStreamLock(stream))
		elog(ERROR, "stream \"%s\" has vanished", stream->aggregate_id);
	return created;
}

/*
 * EvpgStreamReserve
 *		Makes this session the only one that may create the stream, up to
 *		EvpgStreamRelease, or the end of the (sub)transaction by an error; waits
 *		for a transaction that has created it and not committed.  Returns false
 *		if the stream exists by now; then nothing is reserved.
 */
bool
EvpgStreamReserve(const EvpgStream *stream)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	ScanKeyData keys[2];

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID,
						   F_TEXTEQ, CStringGetTextDatum(stream->aggregate_type));
	ScanKeyEntryInitialize(&keys[1], 0, 2, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID,
						   F_TEXTEQ, CStringGetTextDatum(stream->aggregate_id));
	return EvpgReserveKey(EvpgHashPair(stream->aggregate_type, stream->aggregate_id),
						  &catalog->stream, &catalog->stream_key_index, keys, 2);
}

/*
 * EvpgStreamRelease
 *		Gives up a reservation, within the command that has taken it; the row,
 *		if there is one by now, is the guard from then on.
 */
void
EvpgStreamRelease(const EvpgStream *stream)
{
	EvpgReleaseKey(EvpgHashPair(stream->aggregate_type, stream->aggregate_id));
}

/*
 * EvpgStreamAdvance
 *		Stores the new version and last position of a stream that the caller has
 *		locked, in its row and in *stream.
 */
void
EvpgStreamAdvance(EvpgStream *stream, int64 version, int64 last_position, TimestampTz recorded_at)
{
	Datum		values[STREAM_NATTS] = {0};
	bool		nulls[STREAM_NATTS] = {0};
	bool		replaced[STREAM_NATTS] = {0};
	const EvpgCatalog *catalog = EvpgCatalogGet();
	EvpgRowWriter *writer;

	Assert(stream->row != NULL);
	values[STREAM_VERSION - 1] = Int64GetDatum(version);
	values[STREAM_LAST_POSITION - 1] = Int64GetDatum(last_position);
	values[STREAM_LAST_RECORDED_AT - 1] = TimestampTzGetDatum(recorded_at);
	replaced[STREAM_VERSION - 1] = replaced[STREAM_LAST_POSITION - 1] = replaced[STREAM_LAST_RECORDED_AT - 1] = true;
	writer = EvpgRowWriterBegin(&catalog->stream, &catalog->stream_row);
	stream->row = EvpgRowReplace(writer, stream->row, values, nulls, replaced);
	EvpgRowWriterEnd(writer);
	stream->version = version;
	stream->last_position = last_position;
	stream->last_recorded_at = recorded_at;
}

/* Raises VE004: a stream that must exist does not. */
void
EvpgStreamRaiseMissing(const EvpgStream *stream)
{
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_STREAM_NOT_FOUND),
			 errmsg("stream \"%s\" of aggregate \"%s\" does not exist", stream->aggregate_id, stream->aggregate_type)));
}

/*
 * EvpgStreamRaiseDamaged
 *		Raises XX001: the event at a version that a stream has reached is
 *		missing, or is not the one that its row expects.
 */
void
EvpgStreamRaiseDamaged(const EvpgStream *stream, int64 version)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("event log of stream \"%s\" of aggregate \"%s\" is damaged",
					stream->aggregate_id, stream->aggregate_type),
			 errdetail("Version " INT64_FORMAT " is missing, or is not the one that the row of the stream expects.",
					   version)));
}
