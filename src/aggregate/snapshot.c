/*-------------------------------------------------------------------------
 *
 * snapshot.c
 *		Snapshots of aggregate states: writing and reading evpg.snapshot, and when
 *		one is due (rule 7).
 *
 * A snapshot is a cache: a command does not fail because one cannot be written.
 * Only one that the present fold has made is read.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/snapshot.h"
#include "base/statement.h"
#include "base/subtransaction.h"
#include "catalog/pg_type.h"
#include "utils/jsonb.h"

static EvpgStatement select_snapshot = {
	.text = "SELECT version, state"
	" FROM evpg.snapshot"
	" WHERE stream_id = $1 AND version <= $2 AND reducer_version = $3 AND generation >= $4"
	" AND definition_hash = $5 ORDER BY version DESC LIMIT 1",
	.types = {INT8OID, INT8OID, INT4OID, INT8OID, INT8OID}
};

/*
 * EvpgSnapshotRead
 *		Reads the newest snapshot up to a version that the present fold has
 *		made, under the active snapshot (caller_snapshot) or a new one.  Returns
 *		whether there is one; then it is the first result row, columns
 *		EVPG_SNAPSHOT_VERSION and EVPG_SNAPSHOT_STATE.  The caller ends with
 *		EvpgStatementDone either way.
 */
bool
EvpgSnapshotRead(const EvpgAggregate *aggregate, int64 stream_id, int64 version, bool caller_snapshot)
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
	" SET reducer_version = excluded.reducer_version, generation = excluded.generation,"
	" definition_hash = excluded.definition_hash, created_at = excluded.created_at, state = excluded.state",
	.types = {INT8OID, INT8OID, INT4OID, INT8OID, INT8OID, JSONBOID}
};

static EvpgStatement delete_old_snapshots = {
	.text = "DELETE FROM evpg.snapshot"
	" WHERE stream_id = $1 AND version <="
	" (SELECT version FROM evpg.snapshot WHERE stream_id = $1 ORDER BY version DESC OFFSET $2 LIMIT 1)",
	.types = {INT8OID, INT8OID}
};

/* Writes a snapshot and deletes all but the newest snapshot_keep of its stream. */
static void
replace_snapshots(void *arg)
{
	SnapshotToWrite *snapshot = arg;
	EvpgState  *state = snapshot->state;
	Datum		values[6] = {
		Int64GetDatum(snapshot->stream_id),
		Int64GetDatum(state->version),
		Int32GetDatum(state->aggregate->reducer_version),
		Int64GetDatum(state->aggregate->generation),
		Int64GetDatum((int64) state->aggregate->definition_hash),
		JsonbPGetDatum(EvpgStateToJsonb(state))
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
 * EvpgSnapshotIsDue
 *		Returns whether a command that has brought a locked stream from version
 *		before to the state's should write a snapshot: a multiple of
 *		snapshot_every was passed, by this command or by evpg_append() and
 *		evpg_inject(), which do not fold.  Another session may have written it
 *		meanwhile, so that is looked up before one is written twice.
 */
bool
EvpgSnapshotIsDue(EvpgState *state, int64 stream_id, int64 before)
{
	EvpgAggregate *aggregate = state->aggregate;
	int			every = aggregate->snapshot_every;

	if (every <= 0 || state->snapshot_version / every >= state->version / every)
		return false;
	if (before / every < state->version / every)
		return true;
	if (EvpgSnapshotRead(aggregate, stream_id, state->version, false))
	{
		state->snapshot_version = EvpgResultInt64(0, EVPG_SNAPSHOT_VERSION);
	}
	EvpgStatementDone();
	return state->snapshot_version / every < state->version / every;
}

/*
 * EvpgSnapshotWrite
 *		Writes a snapshot of a state in a subtransaction and deletes all but the
 *		newest snapshot_keep of the stream, which the caller has locked.
 *		Returns false, after a warning, if that failed: a snapshot is a cache
 *		(rule 7).
 */
bool
EvpgSnapshotWrite(EvpgState *state, int64 stream_id)
{
	SnapshotToWrite snapshot = {.state = state, .stream_id = stream_id};
	ErrorData  *error = EvpgSubtransactionRun(replace_snapshots, &snapshot);

	/* Also after a failure: not every command is to fail at it and warn. */
	state->snapshot_version = state->version;
	if (error == NULL)
	{
		state->aggregate->counters->snapshots++;
		return true;
	}

	/*
	 * An error that ends the statement or the session is not about the
	 * snapshot.
	 */
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED || error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
		error->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE)
		EvpgRethrowError(error);
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("could not save a snapshot of version " INT64_FORMAT ": %s", state->version, error->message),
			 errdetail("The command is not affected.")));
	FreeErrorData(error);
	return false;
}
