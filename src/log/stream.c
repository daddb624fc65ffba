/*-------------------------------------------------------------------------
 *
 * stream.c
 *		Streams: finding, locking and creating them.
 *
 * A stream has a row of evpg.stream, which is written once and never updated:
 * the version of a stream is that of its newest event, which the shared directory
 * (stream_directory.c) or one probe of the unique index on (stream_id, version) finds.
 *
 * What makes the commands of a stream serial is an advisory lock on (type, id),
 * in a lock class of evpg's own, to the end of the transaction; it is the same
 * for a stream that does not exist yet.  Its holder looks for row and newest
 * event with a dirty snapshot, as a unique index does, so it finds what the
 * previous holder has committed, whatever its own snapshot.  Under REPEATABLE
 * READ and above it must also see both with that snapshot (40001).
 *
 * The lock table of the server is small, and a transaction may write to any
 * number of streams.  So a transaction keeps evpg.max_stream_locks of them, and
 * gives back those beyond at the end of each command.  From then on what it has
 * inserted is the guard, though no other session can see it yet: the next holder
 * finds the row or event of a transaction that has not ended, gives the lock back,
 * waits for that transaction, and starts again.  It holds nothing while it waits:
 * the other transaction may want the lock again, after a ROLLBACK TO that the wait
 * does not notice.
 *
 * Type and id of a stream_id never change, so a session remembers them, and the
 * stream_id of a type and id, too, once it is committed and has events.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/xact.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/locks.h"
#include "base/row.h"
#include "base/settings.h"
#include "base/statement.h"
#include "base/testing.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "log/event_log.h"
#include "log/stream.h"
#include "log/stream_directory.h"
#include "storage/lmgr.h"
#include "storage/predicate.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* Columns of evpg.stream, see sql/evpg--1.0.sql. */
#define STREAM_STREAM_ID		1
#define STREAM_AGGREGATE_TYPE	3
#define STREAM_AGGREGATE_ID		4

/* Number and memory of the streams that a session remembers, by stream_id and by name; then it starts again. */
#define MAX_STREAM_NAMES 100000
#define MAX_STREAM_NAMES_SIZE (32 * 1024 * 1024)

/* So many of them are read with the one that is asked for, at most. */
#define MAX_STREAMS_AHEAD 64

typedef struct StreamName
{
	int64		stream_id;
	const char *aggregate_type; /* one copy for all streams in a row that have
								 * it */
	char	   *aggregate_id;
	uint32		id_hash;		/* EvpgStreamHashId() */
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

/* What a session remembers of a stream by the hash of its name. */
typedef struct KnownStream
{
	uint64		hash;			/* EvpgStreamLockKey() */
	int64		stream_id;
	int64		version;		/* when it was last looked at; a hint */
	char	   *aggregate_type;
	char	   *aggregate_id;
	char		status;
} KnownStream;

#define SH_PREFIX known_streams
#define SH_ELEMENT_TYPE KnownStream
#define SH_KEY_TYPE uint64
#define SH_KEY hash
#define SH_HASH_KEY(table, key) ((uint32) (key))
#define SH_EQUAL(table, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static bool directory_is_right(const EvpgStream *stream) pg_attribute_unused();

static MemoryContext EvpgStreamContext = NULL;	/* of names */
static streams_hash *stream_names = NULL;
static const char *last_stream_type = NULL; /* in that context */
static uint64 stream_names_identity = 0;	/* EvpgCatalogIdentity() */

static MemoryContext EvpgKnownStreamContext = NULL;
static known_streams_hash *known_streams = NULL;
static uint64 known_streams_generation = 0; /* EvpgCatalogStreamGeneration() */

/* Returns a value of a row of evpg.stream, which has no NULLs. */
static Datum
get_stream_value(HeapTuple row, int column)
{
	bool		isnull;

	return heap_getattr(row, column, EvpgCatalogGet()->stream_row, &isnull);
}

/* Returns the key of a stream's lock.  Streams that share one take turns, no more. */
uint64
EvpgStreamLockKey(const EvpgStream *stream)
{
	return EVPG_MUTATION("streams_collide") ? 0 : EvpgHashPair(stream->aggregate_type, stream->aggregate_id);
}

/* ------------------------------------------------------------------ what a session remembers by name */

/* Empties the session's memory of streams by name. */
static void
reset_known_streams(void)
{
	MemoryContext old = EvpgKnownStreamContext;

	EvpgKnownStreamContext = NULL;
	known_streams = NULL;
	if (old != NULL)
		MemoryContextDelete(old);
	EvpgKnownStreamContext = AllocSetContextCreate(TopMemoryContext, "EvpgKnownStream", ALLOCSET_DEFAULT_SIZES);
	known_streams = known_streams_create(EvpgKnownStreamContext, 1024, NULL);
	known_streams_generation = EvpgCatalogStreamGeneration();
}

/*
 * Returns what the session remembers of a stream, NULL if nothing; until the next
 * stream is remembered or forgotten.  A superuser who has disabled the triggers may
 * have deleted it, and even that it exists again is no invalidation.  So it is the
 * stream only as long as it has an event; else look for the row.
 */
static KnownStream *
find_known_stream(const EvpgStream *stream, uint64 hash)
{
	KnownStream *known;

	if (known_streams == NULL || known_streams_generation != EvpgCatalogStreamGeneration())
		return NULL;
	known = known_streams_lookup(known_streams, hash);
	return known != NULL && strcmp(known->aggregate_type, stream->aggregate_type) == 0 &&
		strcmp(known->aggregate_id, stream->aggregate_id) == 0 ? known : NULL;
}

/* Forgets a stream that find_known_stream has returned. */
static void
forget_known_stream(KnownStream *known)
{
	pfree(known->aggregate_type);
	pfree(known->aggregate_id);
	known_streams_delete_item(known_streams, known);
}

/* Remembers a stream, which has events, by its row, unless that may be rolled back. */
static void
remember_stream(const EvpgStream *stream, uint64 hash, HeapTuple row)
{
	KnownStream *known;
	MemoryContext old;
	char	   *type;
	char	   *id;
	bool		found;

	if (TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(row->t_data)))
		return;
	if (known_streams == NULL || known_streams->members >= MAX_STREAM_NAMES ||
		known_streams_generation != EvpgCatalogStreamGeneration() ||
		MemoryContextMemAllocated(EvpgKnownStreamContext, false) > MAX_STREAM_NAMES_SIZE)
		reset_known_streams();
	old = MemoryContextSwitchTo(EvpgKnownStreamContext);
	type = pstrdup(stream->aggregate_type);
	id = pstrdup(stream->aggregate_id);
	known = known_streams_insert(known_streams, hash, &found);
	MemoryContextSwitchTo(old);
	if (found)
	{
		pfree(known->aggregate_type);
		pfree(known->aggregate_id);
	}
	known->aggregate_type = type;
	known->aggregate_id = id;
	known->stream_id = stream->stream_id;
	known->version = stream->version;
}

/* ------------------------------------------------------------------ finding and locking */

static void
clear_stream(EvpgStream *stream)
{
	stream->stream_id = stream->version = stream->last_position = 0;
	stream->last_recorded_at = DT_NOBEGIN;
	stream->epoch = 0;
	ItemPointerSetInvalid(&stream->row);
}

/*
 * Reads the newest event of a stream, from the version that it had when the session
 * last looked.  visible is not NULL for a command, which has locked the log.
 */
static bool
read_newest_event(EvpgStream *stream, KnownStream *known, Snapshot snapshot, bool *visible)
{
	int64		from = known == NULL ? 0 : known->version;
	LOCKMODE	mode = visible == NULL ? AccessShareLock : RowExclusiveLock;
	bool		found = EvpgLogReadNewest(stream, from, snapshot, mode, visible);

	/* It may be lower now, after a rollback. */
	if (!found && from > 0)
		found = EvpgLogReadNewest(stream, 0, snapshot, mode, visible);
	if (known != NULL)
		known->version = stream->version;
	return found;
}

/* Finds the row of a stream under a snapshot; false if there is none. */
static bool
find_stream_row(EvpgStream *stream, Snapshot snapshot, HeapTuple *row)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();

	*row = EvpgRowFind(&catalog->stream, &catalog->stream_key_index, F_TEXTEQ,
					   CStringGetTextDatum(stream->aggregate_type), stream->aggregate_id, snapshot, false);
	if (*row == NULL)
		return false;
	stream->stream_id = DatumGetInt64(get_stream_value(*row, STREAM_STREAM_ID));
	stream->row = (*row)->t_self;
	return true;
}

/*
 * EvpgStreamRead
 *		Fills the rest of *stream, given its type and id, without a lock, under
 *		the active snapshot (caller_snapshot) or a new one; false if there is no
 *		such stream.
 */
bool
EvpgStreamRead(EvpgStream *stream, bool caller_snapshot)
{
	uint64		hash = EvpgStreamLockKey(stream);
	KnownStream *known;
	HeapTuple	row;
	bool		found = false;

	clear_stream(stream);
	PushActiveSnapshot(caller_snapshot ? GetActiveSnapshot() : GetTransactionSnapshot());
	known = find_known_stream(stream, hash);
	/* SERIALIZABLE: the row stands for the stream, see EvpgStreamAdvance. */
	if (known != NULL && !IsolationIsSerializable())
	{
		stream->stream_id = known->stream_id;
		found = read_newest_event(stream, known, GetActiveSnapshot(), NULL);
	}
	if (!found)
	{
		/*
		 * One that is known was created after the snapshot, or deleted, and
		 * then perhaps created again.
		 */
		found = find_stream_row(stream, GetActiveSnapshot(), &row);
		if (known != NULL && (!found || known->stream_id != stream->stream_id))
		{
			forget_known_stream(known);
			known = NULL;
		}
		if (!found)
			stream->stream_id = 0;
		else if (read_newest_event(stream, known, GetActiveSnapshot(), NULL) && known == NULL)
			remember_stream(stream, hash, row);
	}
	PopActiveSnapshot();
	return found;
}

static void
unlock_stream(EvpgStream *stream)
{
	EvpgReleaseKey(EVPG_LOCK_STREAM, EvpgStreamLockKey(stream));
	if (stream->locked_now)
		EvpgLockCountRemove(EVPG_COUNTED_STREAM);
	stream->locked_now = false;
}

/*
 * Tests only: returns whether the newest event of a stream is the one that the directory
 * has found, unless a transaction that writes past evpg is in progress.
 */
static bool
directory_is_right(const EvpgStream *stream)
{
	EvpgStream	read = *stream;
	SnapshotData snapshot;
	bool		visible;

	InitDirtySnapshot(snapshot);
	return EvpgLogReadNewest(&read, 0, &snapshot, RowExclusiveLock, &visible) &&
		(TransactionIdIsValid(EvpgRowMaker(&snapshot)) ||
		 (read.version == stream->version && read.last_position == stream->last_position &&
		  read.last_recorded_at == stream->last_recorded_at));
}

/*
 * Finds row and newest event of a stream whose lock is held, committed or made by
 * this transaction.  One that another transaction has made or removed sets *maker, else
 * invalid, to that transaction, and *token as EvpgRowFindDirty does.  Returns false
 * if the session knew the stream, but it has no event: it is forgotten, look again.
 */
static bool
find_locked_stream(EvpgStream *stream, uint64 hash, bool *visible, TransactionId *maker, uint32 *token)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	KnownStream *known = find_known_stream(stream, hash);
	SnapshotData snapshot;
	HeapTuple	row = NULL;

	clear_stream(stream);
	*maker = InvalidTransactionId;
	*token = 0;
	*visible = true;
	stream->epoch = EvpgStreamDirectoryEpoch();
	if (known != NULL)
		stream->stream_id = known->stream_id;
	else
	{
		ScanKeyData keys[2];

		ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID,
							   F_TEXTEQ, CStringGetTextDatum(stream->aggregate_type));
		ScanKeyEntryInitialize(&keys[1], 0, 2, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID,
							   F_TEXTEQ, CStringGetTextDatum(stream->aggregate_id));
		row = EvpgRowFindDirty(&catalog->stream, &catalog->stream_key_index, keys, 2, maker, token);
		if (row == NULL || TransactionIdIsValid(*maker))
			return true;
		stream->stream_id = DatumGetInt64(get_stream_value(row, STREAM_STREAM_ID));
	}
	if (EvpgStreamDirectoryFind(stream))
	{
		EVPG_REQUIRE(directory_is_right(stream), "the directory has another event than the newest of a stream");
		if (known == NULL)
			remember_stream(stream, hash, row);
		return true;
	}
	InitDirtySnapshot(snapshot);
	if (read_newest_event(stream, known, &snapshot, visible))
	{
		*maker = EvpgRowMaker(&snapshot);
		if (known == NULL)
			remember_stream(stream, hash, row);
		/* A transaction that has written nothing has not appended it. */
		if (!TransactionIdIsValid(*maker) && !TransactionIdIsValid(GetTopTransactionIdIfAny()))
			EvpgStreamDirectoryPut(stream, true);
	}
	else if (known != NULL)
	{
		forget_known_stream(known);
		return false;
	}
	return true;
}

/*
 * EvpgStreamLock
 *		Locks a stream, whether it exists or not, and fills the rest of *stream,
 *		given its type and id; waits for other transactions that hold the lock or
 *		have written to the stream.  Returns false if it does not exist.  The lock
 *		is held to the end of the transaction, unless EvpgStreamUnlockUnneeded
 *		gives it back.  Raises 40001 under REPEATABLE READ and above if the stream
 *		was changed after the transaction's snapshot.  The caller has locked the
 *		tables (EvpgCatalogLockForAppend).
 */
bool
EvpgStreamLock(EvpgStream *stream)
{
	uint64		hash = EvpgStreamLockKey(stream);
	TransactionId maker;
	uint32		token;
	bool		visible;
	EvpgStream	seen = *stream;
	HeapTuple	row;
	bool		looked;

	for (;;)
	{
		/* It is going to be written if the stream does not exist. */
		if (find_known_stream(stream, hash) == NULL)
			LockRelationOid(EvpgCatalogGet()->stream, RowExclusiveLock);
		stream->locked_now = EvpgLockKey(EVPG_LOCK_STREAM, hash);
		if (stream->locked_now)
			EvpgLockCountAdd(EVPG_COUNTED_STREAM);
		looked = find_locked_stream(stream, hash, &visible, &maker, &token);
		if (looked && !TransactionIdIsValid(maker))
			break;
		unlock_stream(stream);
		if (looked)
			EvpgWaitForMaker(maker, token);
	}
	if (IsolationUsesXactSnapshot())
	{
		/*
		 * SERIALIZABLE: reading the row tells of other transactions that
		 * advance the stream, see EvpgStreamAdvance.
		 */
		visible &= find_stream_row(&seen, GetTransactionSnapshot(), &row) == (stream->stream_id != 0);
		if (!visible)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not serialize access due to concurrent update"),
					 errhint("Retry the transaction.")));
		stream->row = seen.row;
	}
	return stream->stream_id != 0;
}

/*
 * EvpgStreamUnlockUnneeded
 *		Ends what a command does to a stream that it has locked, in the same
 *		subtransaction: gives the lock back if the stream still does not exist, or
 *		if the transaction holds enough locks.  If the transaction had locked it before,
 *		it keeps that, and who did so decides: a call with several commands (stream_set.c)
 *		holds its streams until all are done.
 */
void
EvpgStreamUnlockUnneeded(EvpgStream *stream)
{
	if (!stream->locked_now || stream->stream_id == 0 || EvpgLockCount(EVPG_COUNTED_STREAM) > EvpgMaxStreamLocks)
		unlock_stream(stream);
}

/* ------------------------------------------------------------------ by stream_id */

/* Empties the session's memory of streams by stream_id. */
static void
reset_stream_names(void)
{
	MemoryContext old = EvpgStreamContext;

	EvpgStreamContext = NULL;
	stream_names = NULL;
	last_stream_type = NULL;
	if (old != NULL)
		MemoryContextDelete(old);
	EvpgStreamContext = AllocSetContextCreate(TopMemoryContext, "EvpgStream", ALLOCSET_DEFAULT_SIZES);
	stream_names = streams_create(EvpgStreamContext, 1024, NULL);
	stream_names_identity = EvpgCatalogIdentity();
}

/* Returns the hash of an id, which tells its part of a rebuild: the same on every server and in every version. */
uint32
EvpgStreamHashId(const char *aggregate_id)
{
	return DatumGetUInt32(hash_any((const unsigned char *) aggregate_id, strlen(aggregate_id)));
}

/* Remembers the stream of a row, unless it is known. */
static void
remember_stream_name(HeapTuple row)
{
	int64		stream_id = DatumGetInt64(get_stream_value(row, STREAM_STREAM_ID));
	StreamName *entry;
	MemoryContext old;
	char	   *type;
	char	   *id;
	bool		found;

	if (streams_lookup(stream_names, stream_id) != NULL)
		return;
	old = MemoryContextSwitchTo(EvpgStreamContext);
	type = TextDatumGetCString(get_stream_value(row, STREAM_AGGREGATE_TYPE));
	id = TextDatumGetCString(get_stream_value(row, STREAM_AGGREGATE_ID));
	entry = streams_insert(stream_names, stream_id, &found);
	if (last_stream_type == NULL || strcmp(last_stream_type, type) != 0)
		last_stream_type = type;
	else
		pfree(type);
	entry->aggregate_type = last_stream_type;
	entry->aggregate_id = id;
	entry->id_hash = EvpgStreamHashId(id);
	MemoryContextSwitchTo(old);
}

/*
 * Reads a stream, and remembers it.  The events of a log come from streams about in the
 * order in which these were made: if those that are asked for follow each other, more are
 * read with each, up to MAX_STREAMS_AHEAD.  Not under REPEATABLE READ and above, since what
 * a SERIALIZABLE transaction has read may be what it fails by.
 */
static void
load_stream_name(int64 stream_id)
{
	static int64 last_id = 0;
	static int	ahead = 1;
	const EvpgCatalog *catalog = EvpgCatalogGet();
	List	   *rows;
	ListCell   *cell;

	if (stream_id > last_id && stream_id - last_id <= ahead && !IsolationUsesXactSnapshot())
		ahead = Min(ahead * 2, MAX_STREAMS_AHEAD);
	else
		ahead = 1;
	rows = EvpgRowListFromId(&catalog->stream, &catalog->stream_id_index, stream_id, ahead);
	if (rows == NIL || DatumGetInt64(get_stream_value(linitial(rows), STREAM_STREAM_ID)) != stream_id)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("stream with id " INT64_FORMAT " is missing", stream_id),
				 errdetail("There is an event of it.")));
	last_id = DatumGetInt64(get_stream_value(llast(rows), STREAM_STREAM_ID));
	if (MemoryContextMemAllocated(EvpgStreamContext, false) > MAX_STREAM_NAMES_SIZE)
		reset_stream_names();
	foreach(cell, rows)
	{
		remember_stream_name(lfirst(cell));
		heap_freetuple(lfirst(cell));
	}
	list_free(rows);
}

/*
 * EvpgStreamGetById
 *		Fills type and id of *stream, and the hash of the id, by its stream_id;
 *		they live until the next call.  Raises XX001 if there is no such stream.
 */
void
EvpgStreamGetById(int64 stream_id, EvpgStream *stream)
{
	StreamName *entry;

	if (stream_names == NULL || stream_names->members >= MAX_STREAM_NAMES || stream_names_identity != EvpgCatalogIdentity())
		reset_stream_names();
	entry = streams_lookup(stream_names, stream_id);
	if (entry == NULL)
	{
		load_stream_name(stream_id);
		entry = streams_lookup(stream_names, stream_id);
	}
	memset(stream, 0, sizeof(EvpgStream));
	stream->stream_id = stream_id;
	stream->aggregate_type = entry->aggregate_type;
	stream->aggregate_id = entry->aggregate_id;
	stream->id_hash = entry->id_hash;
}

/* ------------------------------------------------------------------ writing */

static EvpgStatement insert_stream = {
	.text = "INSERT INTO evpg.stream (aggregate_type, aggregate_id) VALUES ($1, $2) RETURNING stream_id",
	.types = {TEXTOID, TEXTOID}
};

/* Creates a stream that the caller has locked and that does not exist. */
void
EvpgStreamCreate(EvpgStream *stream)
{
	Datum		values[2] = {
		CStringGetTextDatum(stream->aggregate_type),
		CStringGetTextDatum(stream->aggregate_id)
	};

	stream->stream_id = EvpgStatementReturnId(&insert_stream, values, NULL);
}

/*
 * EvpgStreamAdvance
 *		Notes in *stream, which the caller has locked, that its newest event is
 *		another one now.
 *
 * Under SERIALIZABLE the row stands for the stream: who reads the stream reads the
 * row, and who advances it checks, as if the row were updated, for transactions
 * that have read it.  The index, whose pages hold many streams, would find others.
 */
void
EvpgStreamAdvance(EvpgStream *stream, int64 version, int64 last_position, TimestampTz recorded_at)
{
	stream->version = version;
	stream->last_position = last_position;
	stream->last_recorded_at = recorded_at;
	if (IsolationIsSerializable() && ItemPointerIsValid(&stream->row))
	{
		Relation	table = table_open(EvpgCatalogGet()->stream, AccessShareLock);

		CheckForSerializableConflictIn(table, &stream->row, ItemPointerGetBlockNumber(&stream->row));
		table_close(table, NoLock);
	}
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
 *		missing, or is not the one that was there before.
 */
void
EvpgStreamRaiseDamaged(const EvpgStream *stream, int64 version)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("event log of stream \"%s\" of aggregate \"%s\" is damaged",
					stream->aggregate_id, stream->aggregate_type),
			 errdetail("Version " INT64_FORMAT " is missing, or is not the one that was there before.",
					   version)));
}
