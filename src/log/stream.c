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
 * Whose a stream_id is never changes, so a session remembers it.
 *
 * A stream that does not exist has no row to lock.  Who must not be run twice
 * (a handler that is a function) reserves it first by an advisory lock on
 * (type, id), in a lock class of evpg's own.  It is held to the end of the command,
 * not of the transaction, which may create any number of streams: the lock table
 * of the server is small.  From then on the row itself is the guard, though
 * nobody else can see it yet: who gets the lock looks for it as a unique index
 * does, waits for the transaction that has made it, and looks again.
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

/* So many streams a session remembers by stream_id, in so much memory; then it starts anew. */
#define MAX_NAMES 100000
#define MAX_NAMES_SIZE (32 * 1024 * 1024)

typedef struct Names
{
	int64		stream_id;
	char	   *aggregate_type;
	char	   *aggregate_id;
	char		status;
} Names;

#define SH_PREFIX streams
#define SH_ELEMENT_TYPE Names
#define SH_KEY_TYPE int64
#define SH_KEY stream_id
#define SH_HASH_KEY(table, key) murmurhash32((uint32) (key) ^ (uint32) ((key) >> 32))
#define SH_EQUAL(table, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static MemoryContext EvpgStreamContext = NULL;	/* of names */
static streams_hash *names = NULL;
static uint64 names_of = 0;		/* EvpgCatalogIdentity() */

/* A value of a row of evpg.stream, which has no NULLs. */
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

/* Locks a stream to the end of the transaction and fills the rest of *stream; false if it has no row. */
bool
EvpgStreamLock(EvpgStream *stream)
{
	return find_stream_row(stream, GetTransactionSnapshot(), true);
}

/* The same without a lock, under the caller's snapshot or a new one. */
bool
EvpgStreamRead(EvpgStream *stream, bool caller_snapshot)
{
	return find_stream_row(stream, caller_snapshot ? GetActiveSnapshot() : GetTransactionSnapshot(), false);
}

static void
forget_names(void)
{
	MemoryContext old = EvpgStreamContext;

	EvpgStreamContext = NULL;
	names = NULL;
	if (old != NULL)
		MemoryContextDelete(old);
	EvpgStreamContext = AllocSetContextCreate(TopMemoryContext, "EvpgStream", ALLOCSET_DEFAULT_SIZES);
	names = streams_create(EvpgStreamContext, 1024, NULL);
	names_of = EvpgCatalogIdentity();
}

/*
 * EvpgStreamById
 *		Whose a stream_id is: its type and id, until the next call.
 */
void
EvpgStreamById(int64 stream_id, EvpgStream *stream)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	Names	   *entry;
	bool		found;

	if (names == NULL || names->members >= MAX_NAMES || names_of != EvpgCatalogIdentity())
		forget_names();
	entry = streams_lookup(names, stream_id);
	if (entry == NULL)
	{
		HeapTuple	row = EvpgRowById(&catalog->stream, &catalog->stream_id_index, stream_id);
		MemoryContext old;
		char	   *type;
		char	   *id;

		if (row == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("stream with id " INT64_FORMAT " is missing", stream_id),
					 errdetail("There is an event of it.")));
		if (MemoryContextMemAllocated(EvpgStreamContext, false) > MAX_NAMES_SIZE)
			forget_names();
		old = MemoryContextSwitchTo(EvpgStreamContext);
		type = TextDatumGetCString(get_stream_value(row, STREAM_AGGREGATE_TYPE));
		id = TextDatumGetCString(get_stream_value(row, STREAM_AGGREGATE_ID));
		entry = streams_insert(names, stream_id, &found);
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
 *		for who has created it and not committed.  False if the stream exists by
 *		now; then nothing is reserved.
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

/* Gives a reservation back, within the command that has taken it; the row, if there is one now, is the guard from now on. */
void
EvpgStreamRelease(const EvpgStream *stream)
{
	EvpgReleaseKey(EvpgHashPair(stream->aggregate_type, stream->aggregate_id));
}

/* Stores what a locked stream has come to. */
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

/* Raises that a stream that must exist does not. */
void
EvpgStreamRaiseMissing(const EvpgStream *stream)
{
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_STREAM_NOT_FOUND),
			 errmsg("stream \"%s\" of aggregate \"%s\" does not exist", stream->aggregate_id, stream->aggregate_type)));
}

/* Raises that the event at a version that a stream has reached is missing, or is another one. */
void
EvpgStreamRaiseDamaged(const EvpgStream *stream, int64 version)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("event log of stream \"%s\" of aggregate \"%s\" is damaged",
					stream->aggregate_id, stream->aggregate_type),
			 errdetail("Version " INT64_FORMAT " is missing or is not what the stream says.", version)));
}
