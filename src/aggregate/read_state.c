/*-------------------------------------------------------------------------
 *
 * read_state.c
 *		The SQL functions about states of aggregates: reading one, also that of a
 *		boundary, and taking a snapshot of it.
 *
 * evpg_state() and evpg_boundary_state() are STABLE: they see what the calling
 * statement sees, and lock nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/boundary.h"
#include "aggregate/context.h"
#include "aggregate/outcome.h"
#include "aggregate/snapshot.h"
#include "aggregate/state_cache.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(evpg_state);
PG_FUNCTION_INFO_V1(evpg_boundary_state);
PG_FUNCTION_INFO_V1(evpg_take_snapshot);

/*
 * evpg_state
 *		SQL: evpg_state(aggregate_type, aggregate_id, at_version, at_time).
 *		Returns version, state and position of a stream; no row if it does not
 *		exist.
 */
Datum
evpg_state(PG_FUNCTION_ARGS)
{
	enum
	{
		ARG_AGGREGATE_TYPE, ARG_AGGREGATE_ID, ARG_AT_VERSION, ARG_AT_TIME
	};
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	EvpgStream	stream = {
		.aggregate_type = EvpgArgName(fcinfo, ARG_AGGREGATE_TYPE, "aggregate type"),
		.aggregate_id = EvpgArgId(fcinfo, ARG_AGGREGATE_ID, "aggregate id")
	};
	EvpgScope	scope;
	EvpgAggregate *aggregate;
	MemoryContext context;
	MemoryContext caller;

	if (!PG_ARGISNULL(ARG_AT_VERSION) && !PG_ARGISNULL(ARG_AT_TIME))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("at_version and at_time cannot both be given")));
	InitMaterializedSRF(fcinfo, 0);
	context = AllocSetContextCreate(CurrentMemoryContext, "EvpgCall", ALLOCSET_DEFAULT_SIZES);
	caller = MemoryContextSwitchTo(context);
	EvpgEnterUnpinned(&scope, NULL);
	aggregate = EvpgAggregateGetOfStreams(stream.aggregate_type);
	if (EvpgStreamRead(&stream, true))
	{
		EvpgState	state;
		Datum		values[3];
		bool		nulls[3] = {0};

		if (!PG_ARGISNULL(ARG_AT_VERSION))
		{
			int64		version = PG_GETARG_INT64(ARG_AT_VERSION);

			if (version < 0 || version > stream.version)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("stream \"%s\" of aggregate \"%s\" has no version " INT64_FORMAT,
								stream.aggregate_id, stream.aggregate_type, version),
						 errdetail("Its versions are 0 to " INT64_FORMAT ".", stream.version)));
			EvpgStateLoadVersion(&state, aggregate, &stream, version);
		}
		else if (!PG_ARGISNULL(ARG_AT_TIME))
			EvpgStateLoadTime(&state, aggregate, &stream, PG_GETARG_TIMESTAMPTZ(ARG_AT_TIME));
		else
			EvpgStateLoad(&state, aggregate, &stream, true);

		values[0] = Int64GetDatum(state.version);
		values[1] = JsonbPGetDatum(EvpgStateToJsonb(&state));
		values[2] = Int64GetDatum(state.last_position);
		nulls[2] = (state.last_position == 0);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
		if (PG_ARGISNULL(ARG_AT_VERSION) && PG_ARGISNULL(ARG_AT_TIME))
			EvpgStateCachePut(&state, stream.stream_id);
	}
	EvpgLeave(&scope);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	PG_RETURN_NULL();
}

/*
 * evpg_boundary_state
 *		SQL: evpg_boundary_state(aggregate_type, aggregate_id, command_type, data).
 *		Returns the state on which such a command would be decided, the number of its
 *		events and the position of the last one, NULL if there is none.  Raises 55000
 *		if the aggregate has no boundary, and VE002 if the boundary refuses the
 *		command.
 */
Datum
evpg_boundary_state(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	EvpgCommand command = {
		.aggregate_type = EvpgArgName(fcinfo, 0, "aggregate type"),
		.aggregate_id = EvpgArgId(fcinfo, 1, "aggregate id"),
		.command_type = EvpgArgName(fcinfo, 2, "command type"),
		.data = EvpgArgJsonb(fcinfo, 3, "command data")
	};
	EvpgOutcome outcome = {.stream = {.aggregate_type = command.aggregate_type, .aggregate_id = command.aggregate_id}};
	EvpgScope	scope;
	EvpgAggregate *aggregate;
	EvpgDecision decision;
	struct EvpgCondition *boundary;
	EvpgState	state;
	MemoryContext context;
	MemoryContext caller;
	Datum		values[3];
	bool		nulls[3] = {0};

	InitMaterializedSRF(fcinfo, 0);
	context = AllocSetContextCreate(CurrentMemoryContext, "EvpgCall", ALLOCSET_DEFAULT_SIZES);
	caller = MemoryContextSwitchTo(context);
	EvpgCommandCheck(&command);
	EvpgEnterUnpinned(&scope, NULL);
	aggregate = EvpgAggregateGetWithState(command.aggregate_type);
	if (!aggregate->has_boundary)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("aggregate type \"%s\" has no boundary", command.aggregate_type),
				 errhint("evpg_state() returns the state of a stream.")));
	EvpgContextFill(&command);
	command.received_at = EvpgClockNow();
	(void) EvpgStreamRead(&outcome.stream, true);
	command.version = outcome.stream.version;
	boundary = EvpgBoundaryGet(aggregate, &command, true, &decision);
	if (decision.rejected)
	{
		EvpgOutcomeRefuse(&outcome, EVPG_STATUS_REJECTED, &decision);
		EvpgOutcomeRaise(&outcome);
	}
	values[0] = Int64GetDatum(EvpgBoundaryFold(&state, aggregate, boundary));
	values[1] = JsonbPGetDatum(EvpgStateToJsonb(&state));
	values[2] = Int64GetDatum(state.last_position);
	nulls[2] = state.last_position == 0;
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	EvpgLeave(&scope);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	PG_RETURN_NULL();
}

/*
 * evpg_take_snapshot
 *		SQL: evpg_take_snapshot(aggregate_type, aggregate_id).  Writes a snapshot
 *		of a stream, which it locks as a command does, and returns its version.
 *		Raises VE004 if there is no such stream.
 */
Datum
evpg_take_snapshot(PG_FUNCTION_ARGS)
{
	EvpgStream	stream = {
		.aggregate_type = EvpgArgName(fcinfo, 0, "aggregate type"),
		.aggregate_id = EvpgArgId(fcinfo, 1, "aggregate id")
	};
	EvpgScope	scope;
	EvpgAggregate *aggregate;
	EvpgState	state;

	EvpgEnter(&scope, "evpg_take_snapshot()");
	aggregate = EvpgAggregateGetOfStreams(stream.aggregate_type);
	EvpgCatalogLockForAppend(false);
	if (!EvpgStreamLock(&stream))
		EvpgStreamRaiseMissing(&stream);
	EvpgStateLoad(&state, aggregate, &stream, false);
	/* An empty stream needs none. */
	if (stream.version > 0 && !EvpgSnapshotWrite(&state, stream.stream_id))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not save a snapshot of stream \"%s\" of aggregate \"%s\"",
						stream.aggregate_id, stream.aggregate_type)));
	EvpgStateCachePut(&state, stream.stream_id);
	EvpgStreamUnlockUnneeded(&stream);
	EvpgLeave(&scope);
	PG_RETURN_INT64(stream.version);
}
