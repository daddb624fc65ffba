/*-------------------------------------------------------------------------
 *
 * state.c
 *		States of aggregates: from the session's cache, else from the newest
 *		usable snapshot, else from all events; then newer events are folded.
 *
 * The cache (rule 6).  A position is drawn once and never again, so a cached
 * state is right if its last position equals the one of the stream row that
 * the caller has locked or sees: then nothing else can have happened to the
 * stream, whatever was rolled back, in this session or another.  A version
 * alone proves nothing: two sessions can write different events of version 5,
 * if one rolls back.  Catching up from an older entry reads the event at the
 * entry's version again and wants the same position there, else all is read.
 * Besides, the registration and the reducer function must be the same.
 *
 * A module folds in place, so an entry of one that is used leaves the cache, and
 * comes back (EvpgStateKeep) only with a state that is known to be right; an
 * error on the way frees it with the memory of the call.  Functions get a copy.
 *
 * Memory: EvpgStateCacheContext, bounded by evpg.state_cache_size, for the
 * entries and states of functions; states of modules are json-c's, and their
 * size is an estimate.  The least recently used goes first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "evpg.h"

#include "aggregate/state.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/settings.h"
#include "base/statement.h"
#include "base/subtransaction.h"
#include "lib/ilist.h"
#include "log/event_log.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

typedef struct CacheEntry
{
	int64		stream_id;		/* hash key */
	dlist_node	node;			/* in recently_used */
	int64		generation;		/* of the registration */
	uint64		stamp;			/* of the reducer function */
	int64		version;
	int64		last_position;
	int64		snapshot_version;
	evpg_json  *json;			/* of a module */
	Jsonb	   *jsonb;			/* of functions */
	Size		size;
	Size		growth;
} CacheEntry;

/* What an entry costs besides its state. */
#define ENTRY_OVERHEAD	(sizeof(CacheEntry) + 64)

static MemoryContext EvpgStateCacheContext = NULL;
static HTAB *cache = NULL;
static dlist_head recently_used = DLIST_STATIC_INIT(recently_used);
static Size cache_size = 0;
static uint64 cache_identity = 0;	/* of the tables */

/* ------------------------------------------------------------------ cache */

static void
remove_entry(CacheEntry *entry)
{
	EvpgJsonFree(entry->json);
	if (entry->jsonb != NULL)
		pfree(entry->jsonb);
	cache_size -= entry->size + entry->growth + ENTRY_OVERHEAD;
	dlist_delete(&entry->node);
	hash_search(cache, &entry->stream_id, HASH_REMOVE, NULL);
}

static void
shrink_to(Size limit)
{
	while (cache_size > limit && !dlist_is_empty(&recently_used))
		remove_entry(dlist_tail_element(CacheEntry, node, &recently_used));
}

static void
open_cache(void)
{
	if (cache == NULL)
	{
		HASHCTL		info = {
			.keysize = sizeof(int64),
			.entrysize = sizeof(CacheEntry)
		};

		EvpgStateCacheContext = AllocSetContextCreate(CacheMemoryContext, "EvpgStateCache", ALLOCSET_DEFAULT_SIZES);
		info.hcxt = EvpgStateCacheContext;
		cache = hash_create("evpg states", 256, &info, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	if (cache_identity != EvpgCatalogIdentity())
	{
		shrink_to(0);
		cache_identity = EvpgCatalogIdentity();
	}
}

/*
 * Takes a state out of the cache if it can be the base for the stream as it
 * is.  Leaves an entry that is newer than the caller's snapshot.
 */
static bool
take_cached(EvpgState *state, const EvpgStream *stream)
{
	EvpgAggregate *aggregate = state->aggregate;
	CacheEntry *entry;

	open_cache();
	entry = hash_search(cache, &stream->stream_id, HASH_FIND, NULL);
	if (entry == NULL || entry->version > stream->version)
		return false;
	if (entry->generation != aggregate->generation || entry->stamp != aggregate->stamp ||
		(entry->version == stream->version && entry->last_position != stream->last_position))
	{
		remove_entry(entry);
		return false;
	}
	state->version = entry->version;
	state->last_position = entry->last_position;
	state->snapshot_version = entry->snapshot_version;
	state->valid = true;
	if (aggregate->native)
	{
		EvpgJsonFree(EvpgJsonLetGo(state->json));
		state->json->json = entry->json;
		state->size = entry->size;
		state->growth = entry->growth;
		entry->json = NULL;
		remove_entry(entry);
	}
	else
	{
		state->jsonb = MemoryContextAlloc(state->context, VARSIZE_ANY(entry->jsonb));
		memcpy(state->jsonb, entry->jsonb, VARSIZE_ANY(entry->jsonb));
		dlist_move_head(&recently_used, &entry->node);
	}
	return true;
}

/*
 * EvpgStateKeep
 *		Puts a state into the cache, for good: the caller no longer has it.  It
 *		must be what the events of the stream fold to in the transaction as it
 *		is now; should that roll back, the label tells.
 */
void
EvpgStateKeep(EvpgState *state, int64 stream_id)
{
	EvpgAggregate *aggregate = state->aggregate;
	Size		limit = (Size) EvpgStateCacheSize * 1024;
	Size		size;
	Size		growth = 0;
	CacheEntry *entry;
	bool		found;
	Jsonb	   *jsonb = NULL;

	Assert(state->valid && stream_id != 0);
	state->valid = false;
	if (aggregate->native)
	{
		size = state->size;
		growth = state->growth;
	}
	else
		size = VARSIZE_ANY(state->jsonb);
	open_cache();
	entry = hash_search(cache, &stream_id, HASH_FIND, NULL);
	if (entry != NULL)
		remove_entry(entry);
	if (size + growth + ENTRY_OVERHEAD > limit)
	{
		shrink_to(limit);
		return;
	}
	shrink_to(limit - (size + growth + ENTRY_OVERHEAD));
	if (!aggregate->native)
	{
		jsonb = MemoryContextAlloc(EvpgStateCacheContext, size);
		memcpy(jsonb, state->jsonb, size);
	}
	entry = hash_search(cache, &stream_id, HASH_ENTER, &found);
	entry->generation = aggregate->generation;
	entry->stamp = aggregate->stamp;
	entry->version = state->version;
	entry->last_position = state->last_position;
	entry->snapshot_version = state->snapshot_version;
	entry->json = aggregate->native ? EvpgJsonLetGo(state->json) : NULL;
	entry->jsonb = jsonb;
	entry->size = size;
	entry->growth = growth;
	dlist_push_head(&recently_used, &entry->node);
	cache_size += size + growth + ENTRY_OVERHEAD;
}

/* ------------------------------------------------------------------ loading */

/* The event at a version that a stream has reached is not there, or another one is. */
void
EvpgStateRaiseDamaged(const EvpgStream *stream, int64 version)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("event log of stream \"%s\" of aggregate \"%s\" is damaged",
					stream->aggregate_id, stream->aggregate_type),
			 errdetail("Version " INT64_FORMAT " is missing or is not what the stream says.", version)));
}

/*
 * Folds the events after state->version, up to and with to_version.  With
 * verify, the event at state->version is read first, and false is returned if
 * its position is another one than the state's.
 */
static bool
replay_stream(EvpgState *state, const EvpgStream *stream, int64 to_version, bool verify)
{
	EvpgLogScan *scan;
	EvpgEvent	event;

	if (state->version == to_version)
		return true;
	scan = EvpgLogScanBegin(stream, verify ? state->version : state->version + 1, false);
	if (verify &&
		(!EvpgLogScanNext(scan, &event) || event.version != state->version || event.position != state->last_position))
	{
		EvpgLogScanEnd(scan);
		return false;
	}
	while (state->version < to_version && EvpgLogScanNext(scan, &event))
	{
		if (event.version != state->version + 1)
			EvpgStateRaiseDamaged(stream, state->version + 1);
		EvpgReducerFold(state, &event, NULL);
	}
	EvpgLogScanEnd(scan);
	if (state->version != to_version)
		EvpgStateRaiseDamaged(stream, state->version + 1);
	return true;
}

static EvpgStatement select_snapshot = {
	.text = "SELECT version, state"
	" FROM evpg.snapshot"
	" WHERE stream_id = $1 AND version <= $2 AND reducer_version = $3 AND generation >= $4"
	" AND definition_hash = $5 ORDER BY version DESC LIMIT 1",
	.types = {INT8OID, INT8OID, INT4OID, INT8OID, INT8OID}
};

/*
 * Looks for the newest snapshot up to a version that this reducer has made;
 * false if there is none.  The result is (version, state), until EvpgStatementDone.
 */
static bool
read_snapshot(const EvpgAggregate *aggregate, int64 stream_id, int64 version, bool caller_snapshot)
{
	Datum		values[5] = {
		Int64GetDatum(stream_id),
		Int64GetDatum(version),
		Int32GetDatum(aggregate->reducer_version),
		Int64GetDatum(aggregate->fold_generation),
		Int64GetDatum((int64) aggregate->definition_hash)
	};

	return (caller_snapshot ? EvpgStatementRead(&select_snapshot, values, NULL) :
			EvpgStatementRun(&select_snapshot, values, NULL)) > 0;
}

/* Starts from the newest snapshot that can be used, else from the initial state. */
static void
start_from_snapshot(EvpgState *state, const EvpgStream *stream, int64 version, bool caller_snapshot)
{
	EvpgAggregate *aggregate = state->aggregate;

	/* A command may write a snapshot later; a lock must not be strengthened. */
	if (!caller_snapshot)
		LockRelationOid(EvpgCatalogGet()->snapshot, RowExclusiveLock);
	if (version > 0)
	{
		if (read_snapshot(aggregate, stream->stream_id, version, caller_snapshot))
		{
			Datum		snapshot_version;
			Datum		snapshot_state;
			Jsonb	   *value;

			(void) EvpgResultDatum(0, 1, &snapshot_version);
			(void) EvpgResultDatum(0, 2, &snapshot_state);
			value = DatumGetJsonbP(snapshot_state);

			/*
			 * A module's state is an object; anything else is no snapshot of
			 * ours.
			 */
			if (!aggregate->native || JB_ROOT_IS_OBJECT(value))
			{
				EvpgStateReset(state, value, DatumGetInt64(snapshot_version), 0);
				state->snapshot_version = state->version;
				EvpgStatementDone();
				return;
			}
		}
		EvpgStatementDone();
	}
	EvpgStateReset(state, aggregate->initial_state, 0, 0);
}

/*
 * EvpgStateLoad
 *		Loads the state of a stream as its row says.  Either the caller has
 *		locked the row, and reads with a new snapshot, or it has read it with
 *		the snapshot that is active (caller_snapshot).
 */
void
EvpgStateLoad(EvpgState *state, EvpgAggregate *aggregate, const EvpgStream *stream, bool caller_snapshot)
{
	EvpgStateInit(state, aggregate);
	if (stream->stream_id == 0 || stream->version == 0)
	{
		EvpgStateReset(state, aggregate->initial_state, 0, 0);
		return;
	}
	if (take_cached(state, stream) && state->last_position == stream->last_position)
	{
		aggregate->counters->cache_hits++;
		return;
	}

	PushActiveSnapshot(caller_snapshot ? GetActiveSnapshot() : GetTransactionSnapshot());
	if (!state->valid || state->version == 0 || !replay_stream(state, stream, stream->version, true))
	{
		start_from_snapshot(state, stream, stream->version, caller_snapshot);
		(void) replay_stream(state, stream, stream->version, false);
	}
	PopActiveSnapshot();
	/* A snapshot at the last version comes without its position. */
	if (state->last_position == 0)
		state->last_position = stream->last_position;
	if (state->last_position != stream->last_position)
		EvpgStateRaiseDamaged(stream, stream->version);
}

/* Loads the state at a version that the stream has reached, under the caller's snapshot. */
void
EvpgStateLoadVersion(EvpgState *state, EvpgAggregate *aggregate, const EvpgStream *stream, int64 version)
{
	EvpgStateInit(state, aggregate);
	start_from_snapshot(state, stream, version, true);
	(void) replay_stream(state, stream, version, false);
	if (state->last_position == 0 && version > 0)
	{
		/* A snapshot comes without the position of its last event. */
		EvpgEvent	event;
		EvpgLogScan *scan = EvpgLogScanBegin(stream, version, false);

		if (!EvpgLogScanNext(scan, &event) || event.version != version)
			EvpgStateRaiseDamaged(stream, version);
		state->last_position = event.position;
		EvpgLogScanEnd(scan);
	}
}

/* Folds the events that had occurred by a time, in order of version, under the caller's snapshot. */
void
EvpgStateLoadTime(EvpgState *state, EvpgAggregate *aggregate, const EvpgStream *stream, TimestampTz time)
{
	EvpgLogScan *scan;
	EvpgEvent	event;

	EvpgStateInit(state, aggregate);
	EvpgStateReset(state, aggregate->initial_state, 0, 0);
	scan = EvpgLogScanBegin(stream, 1, false);
	while (EvpgLogScanNext(scan, &event))
		if (event.version <= stream->version && event.occurred_at <= time)
			EvpgReducerFold(state, &event, NULL);
	EvpgLogScanEnd(scan);
}

/* ------------------------------------------------------------------ snapshots */

typedef struct SnapshotToWrite
{
	EvpgState  *state;
	int64		stream_id;
} SnapshotToWrite;

static EvpgStatement insert_snapshot = {
	.text = "INSERT INTO evpg.snapshot (stream_id, version, reducer_version, generation, definition_hash,"
	" created_at, state)"
	" VALUES ($1, $2, $3, $4, $5, evpg.clock_timestamp(), $6)"
	" ON CONFLICT (stream_id, version) DO UPDATE"
	" SET reducer_version = excluded.reducer_version, generation = excluded.generation, definition_hash ="
	" excluded.definition_hash, created_at = excluded.created_at, state = excluded.state",
	.types = {INT8OID, INT8OID, INT4OID, INT8OID, INT8OID, JSONBOID}
};

static EvpgStatement delete_old_snapshots = {
	.text = "DELETE FROM evpg.snapshot"
	" WHERE stream_id = $1"
	" AND version OPERATOR(<=) (SELECT version FROM evpg.snapshot WHERE stream_id = $1 ORDER BY version DESC"
	" OFFSET $2 LIMIT 1)",
	.types = {INT8OID, INT8OID}
};

static void
write_snapshot(void *arg)
{
	SnapshotToWrite *snapshot = arg;
	EvpgState  *state = snapshot->state;
	Datum		values[6] = {
		Int64GetDatum(snapshot->stream_id),
		Int64GetDatum(state->version),
		Int32GetDatum(state->aggregate->reducer_version),
		Int64GetDatum(state->aggregate->generation),
		Int64GetDatum((int64) state->aggregate->definition_hash),
		JsonbPGetDatum(EvpgStateValue(state))
	};
	Datum		trim[2] = {
		Int64GetDatum(snapshot->stream_id),
		Int64GetDatum(state->aggregate->snapshot_keep)
	};

	(void) EvpgStatementRun(&insert_snapshot, values, NULL);
	EvpgStatementDone();
	(void) EvpgStatementRun(&delete_old_snapshots, trim, NULL);
	EvpgStatementDone();
}

/*
 * EvpgStateSnapshotDue
 *		Whether a command that has brought a locked stream from a version to the
 *		state's crossed a multiple of snapshot_every, or somebody did who does not
 *		fold: evpg_append() and evpg_inject().  Another session may have made the
 *		snapshot meanwhile, so that is looked up before it is made a second time.
 */
bool
EvpgStateSnapshotDue(EvpgState *state, int64 stream_id, int64 before)
{
	EvpgAggregate *aggregate = state->aggregate;
	int			every = aggregate->snapshot_every;

	if (every <= 0 || state->snapshot_version / every >= state->version / every)
		return false;
	if (before / every < state->version / every)
		return true;
	if (read_snapshot(aggregate, stream_id, state->version, false))
	{
		Datum		version;

		(void) EvpgResultDatum(0, 1, &version);
		state->snapshot_version = DatumGetInt64(version);
	}
	EvpgStatementDone();
	return state->snapshot_version / every < state->version / every;
}

/*
 * EvpgStateSnapshot
 *		Stores a snapshot and deletes all but the newest snapshot_keep of the
 *		stream.  A failure is a warning and false: a snapshot is a cache (rule 7).
 */
bool
EvpgStateSnapshot(EvpgState *state, int64 stream_id)
{
	SnapshotToWrite snapshot = {.state = state, .stream_id = stream_id};
	ErrorData  *error = EvpgSubtransactionRun(write_snapshot, &snapshot);

	/* Also if it failed: not each command is to fail at it and warn. */
	state->snapshot_version = state->version;
	if (error == NULL)
	{
		state->aggregate->counters->snapshots++;
		return true;
	}
	/* What ends the statement or the session is not the snapshot's fault. */
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED || error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
		error->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE)
		ReThrowError(error);
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("could not save a snapshot of version " INT64_FORMAT ": %s", state->version, error->message),
			 errdetail("The command is not affected.")));
	FreeErrorData(error);
	return false;
}
