/*-------------------------------------------------------------------------
 *
 * state.c
 *		States of aggregates: from the session's cache, else from the newest
 *		usable snapshot, else from all events; then newer events are folded.
 *
 * Catching up from an older cache entry reads the event at the entry's version
 * again and wants the same position there, else all events are read
 * (state_cache.c explains why).
 *
 * Memory: EvpgState has a context of its own, child of the one current at
 * EvpgStateInit.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/reducer.h"
#include "aggregate/snapshot.h"
#include "aggregate/state.h"
#include "aggregate/state_cache.h"
#include "base/catalog.h"
#include "base/statement.h"
#include "log/event_log.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* ------------------------------------------------------------------ values */

/*
 * EvpgStateInit
 *		Makes an empty *state, with a context of its own below
 *		CurrentMemoryContext; EvpgStateSet gives it a value.
 */
void
EvpgStateInit(EvpgState *state, EvpgAggregate *aggregate)
{
	MemoryContext old;

	memset(state, 0, sizeof(EvpgState));
	state->aggregate = aggregate;
	state->context = AllocSetContextCreate(CurrentMemoryContext, "EvpgState", ALLOCSET_DEFAULT_SIZES);
	state->scratch = AllocSetContextCreate(state->context, "EvpgState event", ALLOCSET_DEFAULT_SIZES);
	if (aggregate->has_module)
	{
		old = MemoryContextSwitchTo(state->context);
		state->json = EvpgJsonOwn(NULL);
		EvpgModuleEventInit(&state->event);
		MemoryContextSwitchTo(old);
	}
}

/* Copies a jsonb into a context. */
Jsonb *
EvpgStateCopyJsonb(MemoryContext context, const Jsonb *jsonb)
{
	Jsonb	   *copy = MemoryContextAlloc(context, VARSIZE_ANY(jsonb));

	memcpy(copy, jsonb, VARSIZE_ANY(jsonb));
	return copy;
}

/* Gives a state a copy of a value, which must be an object for a module, and makes it valid. */
void
EvpgStateSet(EvpgState *state, const Jsonb *value, int64 version, int64 last_position)
{
	if (state->aggregate->has_module)
	{
		evpg_free(EvpgJsonLetGo(state->json));
		state->json->json = EvpgJsonFromJsonb(value, "state");
		state->size = EvpgJsonSize(state->json->json, "state");
		state->growth = 0;
	}
	else
		state->jsonb = EvpgStateCopyJsonb(state->context, value);
	state->version = version;
	state->last_position = last_position;
	state->snapshot_version = 0;
	state->valid = true;
}

/*
 * EvpgStateToJsonb
 *		Returns a state as jsonb: that of a function is the state's own, that of
 *		a module is made in CurrentMemoryContext.
 */
Jsonb *
EvpgStateToJsonb(EvpgState *state)
{
	return state->aggregate->has_module ? EvpgJsonToJsonb(state->json->json, "state") : state->jsonb;
}

/* ------------------------------------------------------------------ loading */

/*
 * Folds the events after state->version, up to and including to_version.  With
 * verify, reads the event at state->version first, and returns false if its
 * position is not the state's.
 */
static bool
replay_stream(EvpgState *state, const EvpgStream *stream, int64 to_version, bool verify)
{
	EvpgLogScan *scan;
	EvpgEvent	event;

	if (state->version == to_version)
		return true;
	scan = EvpgLogScanBegin(stream, verify ? state->version : state->version + 1, false,
							state->aggregate->upcasters);
	if (verify &&
		(!EvpgLogScanNext(scan, &event) || event.version != state->version || event.position != state->last_position))
	{
		EvpgLogScanEnd(scan);
		return false;
	}
	while (state->version < to_version && EvpgLogScanNext(scan, &event))
	{
		if (event.version != state->version + 1)
			EvpgStreamRaiseDamaged(stream, state->version + 1);
		EvpgReducerFold(state, &event, NULL);
	}
	EvpgLogScanEnd(scan);
	if (state->version != to_version)
		EvpgStreamRaiseDamaged(stream, state->version + 1);
	return true;
}

/* Sets a state to the newest usable snapshot up to a version, or else to the initial state. */
static void
start_from_snapshot(EvpgState *state, const EvpgStream *stream, int64 version, bool caller_snapshot)
{
	EvpgAggregate *aggregate = state->aggregate;

	/* A command may write a snapshot later; a lock must not be strengthened. */
	if (!caller_snapshot)
		LockRelationOid(EvpgCatalogGet()->snapshot, RowExclusiveLock);
	if (version > 0)
	{
		if (EvpgSnapshotRead(aggregate, stream->stream_id, version, caller_snapshot))
		{
			Jsonb	   *value = EvpgResultJsonb(0, EVPG_SNAPSHOT_STATE);

			/*
			 * A module's state is an object; anything else is no snapshot of
			 * ours.
			 */
			if (!aggregate->has_module || JB_ROOT_IS_OBJECT(value))
			{
				EvpgStateSet(state, value, EvpgResultInt64(0, EVPG_SNAPSHOT_VERSION), 0);
				state->snapshot_version = state->version;
				EvpgStatementDone();
				return;
			}
		}
		EvpgStatementDone();
	}
	EvpgStateSet(state, aggregate->initial_state, 0, 0);
}

/*
 * EvpgStateLoad
 *		Loads the state of a stream as of its row.  Either the caller has locked
 *		the row, and a new snapshot is read with, or it has read the row with
 *		the active snapshot (caller_snapshot).  Takes a module's state out of the
 *		session's cache: give it back with EvpgStateCachePut.  Raises XX001 if
 *		the log is damaged.
 */
void
EvpgStateLoad(EvpgState *state, EvpgAggregate *aggregate, const EvpgStream *stream, bool caller_snapshot)
{
	EvpgStateInit(state, aggregate);
	if (stream->stream_id == 0 || stream->version == 0)
	{
		EvpgStateSet(state, aggregate->initial_state, 0, 0);
		return;
	}
	if (EvpgStateCacheTake(state, stream) && state->last_position == stream->last_position)
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
		EvpgStreamRaiseDamaged(stream, stream->version);
}

/* Loads the state at a version that the stream has reached, under the active snapshot. */
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
		EvpgLogScan *scan = EvpgLogScanBegin(stream, version, false, aggregate->upcasters);

		if (!EvpgLogScanNext(scan, &event) || event.version != version)
			EvpgStreamRaiseDamaged(stream, version);
		state->last_position = event.position;
		EvpgLogScanEnd(scan);
	}
}

/*
 * EvpgStateLoadTime
 *		Loads the state that results from the events that had occurred by a
 *		time, in order of version, under the active snapshot.
 */
void
EvpgStateLoadTime(EvpgState *state, EvpgAggregate *aggregate, const EvpgStream *stream, TimestampTz time)
{
	EvpgLogScan *scan;
	EvpgEvent	event;

	EvpgStateInit(state, aggregate);
	EvpgStateSet(state, aggregate->initial_state, 0, 0);
	scan = EvpgLogScanBegin(stream, 1, false, aggregate->upcasters);
	while (EvpgLogScanNext(scan, &event))
		if (event.version <= stream->version && event.occurred_at <= time)
			EvpgReducerFold(state, &event, NULL);
	EvpgLogScanEnd(scan);
}
