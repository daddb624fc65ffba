/*-------------------------------------------------------------------------
 *
 * boundary.c
 *		Aggregates with a boundary (rule 22): the events of all streams that a command
 *		is decided on, and the state that they fold to.
 *
 * A boundary is a condition (log/condition.c) that the code of the aggregate makes of a
 * command.  First its tags are locked, for appending too, since the decision will mostly
 * append them; then the events that match are read with a new snapshot.  A transaction
 * that has appended one of them holds its tags to its end, so what is read is all there
 * is, and no other transaction adds to it before this one has ended: nothing need be
 * checked when the decision is appended.
 *
 * Under REPEATABLE READ and above, an event that only the new snapshot sees is a change
 * after the transaction's snapshot (40001).
 *
 * Neither the cache of states nor snapshots are used: the state belongs to no stream.
 *
 * Memory: that of states; conditions are in CurrentMemoryContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "access/xact.h"
#include "aggregate/boundary.h"
#include "aggregate/handler.h"
#include "aggregate/reducer.h"
#include "base/errors.h"
#include "base/testing.h"
#include "log/condition.h"
#include "log/condition_scan.h"
#include "miscadmin.h"
#include "usercode/function_call.h"
#include "usercode/module_callback.h"
#include "utils/snapmgr.h"

/* Calls the boundary function for a command; NULL if it returned null, in SQL or JSON. */
static Jsonb *
call_function(EvpgFunction *boundary, const EvpgCommand *command, bool read_only)
{
	Datum		args[1] = {EvpgCommandDatum(command)};
	Datum	   *rows;
	bool	   *nulls;
	Jsonb	   *jsonb;
	JsonbValue	scalar;

	if (EvpgFunctionCall(boundary, args, read_only, 1, &rows, &nulls) != 1 || nulls[0])
		return NULL;
	jsonb = DatumGetJsonbP(rows[0]);
	return JsonbExtractScalar(&jsonb->root, &scalar) && scalar.type == jbvNull ? NULL : jsonb;
}

/* Calls the boundary of a module for a command; NULL if it named nothing, or refused, which *decision tells. */
static Jsonb *
call_module(const EvpgAggregate *aggregate, const EvpgCommand *command, EvpgDecision *decision)
{
	evpg_result *result = EvpgModuleResultCreate();
	evpg_command in;

	(void) EvpgHandlerOfModule(aggregate, command);
	EvpgModuleCommandSet(&in, command);
	aggregate->module.boundary(result, &in);
	if (result->failed)
		EvpgRaiseModuleFailed(result, "boundary", command);
	EvpgModuleResultCheck(result, EVPG_MAY_READ | EVPG_MAY_REJECT, "a boundary");
	if (result->rejected)
		EvpgDecisionFromModule(result, command, decision);
	return result->rejected || result->boundary == NULL ? NULL : EvpgJsonToJsonb(result->boundary, "boundary");
}

/* Raises an error if a boundary names nothing. */
static void
refuse_empty_boundary(const Jsonb *jsonb, const EvpgCommand *command)
{
	if (jsonb != NULL && (!JB_ROOT_IS_ARRAY(jsonb) || JB_ROOT_COUNT(jsonb) > 0))
		return;
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_MODULE),
			 errmsg("boundary of aggregate \"%s\" names no events for command \"%s\"",
					command->aggregate_type, command->command_type),
			 errdetail("It returned %s.", jsonb == NULL ? "nothing" : "an empty array"),
			 errhint("Return the events that the decision reads, made with evpg_condition() and joined by ||, or in C name "
					 "them with evpg_reads().  A CASE without ELSE returns null, and so does || with a null.")));
}

/*
 * EvpgBoundaryGet
 *		Calls the boundary of an aggregate for a command whose version is known, and
 *		returns the events that it names.  A refusal by a module is returned in
 *		*decision, one by a function is raised.  The result is in CurrentMemoryContext.  The caller is inside EvpgEnter.
 *		read_only: the function sees what the active snapshot sees.
 */
EvpgCondition *
EvpgBoundaryGet(EvpgAggregate *aggregate, const EvpgCommand *command, bool read_only, EvpgDecision *decision)
{
	EvpgAggregateCall code = {
		.role = "boundary",
		.aggregate_type = command->aggregate_type,
		.aggregate_id = command->aggregate_id,
		.type = command->command_type,
		.version = command->version
	};
	Jsonb	   *jsonb;
	EvpgCondition *boundary = NULL;

	memset(decision, 0, sizeof(EvpgDecision));
	EvpgAggregateCallBegin(&code);
	jsonb = aggregate->has_module ? call_module(aggregate, command, decision) :
		call_function(aggregate->boundary, command, read_only);
	if (!decision->rejected)
	{
		refuse_empty_boundary(jsonb, command);
		boundary = EvpgConditionFromJsonb(jsonb);
	}
	EvpgAggregateCallEnd(&code);
	return boundary;
}

/* Returns how many events match a boundary under the active snapshot. */
static int64
count_events(const EvpgCondition *boundary)
{
	EvpgConditionScan *scan = EvpgConditionScanBegin(boundary);
	EvpgEvent	event;
	int64		count = 0;

	while (EvpgConditionScanNext(scan, &event))
		count++;
	EvpgConditionScanEnd(scan);
	return count;
}

/*
 * EvpgBoundaryFold
 *		Makes *state of the events that a boundary names, under the active snapshot;
 *		returns how many they are.  The caller is inside EvpgEnter.
 */
int64
EvpgBoundaryFold(EvpgState *state, EvpgAggregate *aggregate, const EvpgCondition *boundary)
{
	EvpgConditionScan *scan;
	EvpgEvent	event;
	int64		count = 0;

	EvpgStateInit(state, aggregate);
	EvpgStateSet(state, aggregate->initial_state, 0, 0);
	scan = EvpgConditionScanBegin(boundary);
	while (EvpgConditionScanNext(scan, &event))
	{
		EvpgReducerFold(state, &event, NULL);
		count++;
	}
	EvpgConditionScanEnd(scan);
	return count;
}

/*
 * EvpgBoundaryLoad
 *		Makes *state of all events that a boundary names, and locks the boundary to the
 *		end of the transaction: no other transaction that appends such an event is in
 *		progress, or will be.  Raises 40001 under REPEATABLE READ and above if one was
 *		committed after the transaction's snapshot.  The caller holds the stream, and
 *		has not entered the fence for this command.
 */
void
EvpgBoundaryLoad(EvpgState *state, EvpgAggregate *aggregate, const EvpgCondition *boundary)
{
	int64		count;

	EvpgConditionLock(boundary);
	EVPG_WAIT_POINT("boundary_locked");
	PushActiveSnapshot(IsolationUsesXactSnapshot() ? GetTransactionSnapshot() : GetLatestSnapshot());
	count = EvpgBoundaryFold(state, aggregate, boundary);
	PopActiveSnapshot();
	if (!IsolationUsesXactSnapshot())
		return;

	/* Events are never deleted, so as many are the same. */
	PushActiveSnapshot(GetLatestSnapshot());
	if (count_events(boundary) != count)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update"),
				 errhint("Retry the transaction.")));
	PopActiveSnapshot();
}
