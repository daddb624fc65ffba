/*-------------------------------------------------------------------------
 *
 * context.c
 *		Actor, correlation id, metadata and session role: where they come from,
 *		and how they get onto events.
 *
 * An argument of the call wins over evpg_set_context().  Metadata is merged key
 * by key: the event's own wins over the command's, and that over the context's.
 * Nothing to store is stored as NULL, never as {}.
 *
 * The session role is the role that asked, which no caller can choose:
 * session_user of the session, or the one that was kept while work is done for
 * other sessions: of a scheduled command, of the event that a saga reacts to.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "aggregate/context.h"
#include "base/arguments.h"
#include "base/settings.h"
#include "executor/execdesc.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "nodes/plannodes.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

PG_FUNCTION_INFO_V1(evpg_set_context);

/*
 * Merges metadata; the keys of right win.  Either may be NULL, and NULL is
 * returned if nothing is left.
 */
static Jsonb *
merge_metadata(Jsonb *left, Jsonb *right)
{
	Jsonb	   *merged = left == NULL ? right : right == NULL ? left :
	DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(left), JsonbPGetDatum(right)));

	return merged != NULL && JB_ROOT_COUNT(merged) == 0 ? NULL : merged;
}

/* The session role for which work is being done; NULL: the session does its own. */
static const char *acting_for = NULL;

/* Returns the session role for which work is being done; NULL if the session does its own. */
const char *
EvpgContextSessionRole(void)
{
	return acting_for;
}

/*
 * EvpgContextSetSessionRole
 *		Sets the session role for which work is done from here on.  role must
 *		live until the caller sets back what EvpgContextSessionRole returned
 *		before, also after an ERROR.
 */
void
EvpgContextSetSessionRole(const char *role)
{
	acting_for = role;
}

/* Copies the value of a setting, since user code may change it; NULL if it is empty. */
static const char *
copy_setting(const char *value)
{
	return value != NULL && value[0] != '\0' ? pstrdup(value) : NULL;
}

/* Fills in the session role of a command that has none. */
void
EvpgContextFillSessionRole(EvpgCommand *command)
{
	if (command->session_role == NULL)
		command->session_role = acting_for != NULL ? acting_for : GetUserNameFromId(GetSessionUserId(), false);
}

/*
 * EvpgContextFill
 *		Fills what the call left open from the session and from
 *		evpg_set_context().  SET can put anything into those settings, so their
 *		values are checked.  Results are in CurrentMemoryContext.
 */
void
EvpgContextFill(EvpgCommand *command)
{
	const char *text;

	EvpgContextFillSessionRole(command);
	if (command->actor == NULL)
	{
		command->actor = copy_setting(EvpgActor);
		if (command->actor != NULL)
			EvpgCheckId(command->actor, "actor");
	}
	if (command->correlation_id == NULL)
	{
		command->correlation_id = copy_setting(EvpgCorrelationId);
		if (command->correlation_id != NULL)
			EvpgCheckId(command->correlation_id, "correlation id");
	}
	text = copy_setting(EvpgMetadata);
	if (text != NULL)
	{
		Jsonb	   *metadata = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));

		EvpgJsonbCheckLimits(metadata, "metadata");
		EvpgCheckMetadata(metadata);
		EvpgCheckCallersMetadata(metadata);
		command->metadata = merge_metadata(metadata, command->metadata);
	}
	else
		command->metadata = merge_metadata(NULL, command->metadata);
}

/*
 * EvpgContextClear
 *		Clears the context up to the end of EvpgEnter's scope: what is done now
 *		is not done for the session that has set it.
 */
void
EvpgContextClear(void)
{
	if (EvpgActor[0] != '\0')
		EvpgSettingSetLocal("evpg.actor", "");
	if (EvpgCorrelationId[0] != '\0')
		EvpgSettingSetLocal("evpg.correlation_id", "");
	if (EvpgMetadata[0] != '\0')
		EvpgSettingSetLocal("evpg.metadata", "");
}

/*
 * EvpgContextStamp
 *		Gives events their ids, times, correlation_id, causation_id and
 *		metadata.  Positions and versions come when they are appended.  Results
 *		are in CurrentMemoryContext.
 */
void
EvpgContextStamp(const EvpgCommand *command, EvpgEvent *events, int count)
{
	for (int i = 0; i < count; i++)
	{
		EvpgEvent  *event = &events[i];

		event->aggregate_type = command->aggregate_type;
		event->aggregate_id = command->aggregate_id;
		if (!event->has_event_id)
			EvpgEventNewId(&event->event_id);
		event->has_event_id = true;
		event->metadata = merge_metadata(command->metadata, event->metadata);
		event->command_id = command->command_id;

		/*
		 * All events of a command share one; that of the first is left to its
		 * own id.
		 */
		if (command->correlation_id != NULL)
			event->correlation_id = command->correlation_id;
		else if (i > 0)
			event->correlation_id = EvpgUuidText(&events[0].event_id);
		event->causation_id = event->caused_by > 0 ?
			EvpgUuidText(&events[event->caused_by - 1].event_id) : command->causation_id;
		event->actor = command->actor;
		event->session_role = command->session_role;
		event->recorded_at = command->received_at;
		if (!event->has_occurred_at)
			event->occurred_at = event->recorded_at;
		event->has_occurred_at = true;
	}
}

/*
 * Returns whether the client's statement is outside of a transaction block and
 * does nothing but call the function: then what the function sets ends with
 * it.  A call by another function, or in the statement that executes the
 * command as well, has an effect.
 */
static bool
call_is_whole_transaction(FunctionCallInfo fcinfo)
{
	QueryDesc  *query = ActivePortal == NULL || IsTransactionBlock() ? NULL : ActivePortal->queryDesc;
	Plan	   *plan;

	/* Portals of functions, and of EXECUTE, have a text of their own. */
	if (query == NULL || ActivePortal->sourceText != debug_query_string ||
		query->estate == NULL || fcinfo->flinfo->fn_mcxt != query->estate->es_query_cxt)
		return false;
	plan = query->plannedstmt->planTree;
	return (IsA(plan, FunctionScan) || (IsA(plan, Result) && outerPlan(plan) == NULL)) &&
		list_length(plan->targetlist) == 1 && query->plannedstmt->subplans == NIL;
}

/*
 * evpg_set_context
 *		SQL: evpg_set_context(actor, correlation_id, metadata).  Sets them for
 *		the commands of this transaction, replacing all three.  They are
 *		settings, so a ROLLBACK TO brings back what was before.
 */
Datum
evpg_set_context(PG_FUNCTION_ARGS)
{
	char	   *actor = EvpgArgOptionalId(fcinfo, 0, "actor");
	char	   *correlation_id = EvpgArgOptionalId(fcinfo, 1, "correlation id");
	Jsonb	   *metadata = EvpgArgJsonb(fcinfo, 2, "metadata");

	if (metadata != NULL)
		EvpgCheckMetadata(metadata);
	EvpgCheckCallersMetadata(metadata);
	if (call_is_whole_transaction(fcinfo))
		ereport(WARNING,
				(errcode(ERRCODE_NO_ACTIVE_SQL_TRANSACTION),
				 errmsg("evpg_set_context() has no effect outside of a transaction block"),
				 errhint("Call it after BEGIN, in the transaction of the command, or give the command actor, "
						 "correlation_id and metadata.")));
	EvpgSettingSetLocal("evpg.actor", actor != NULL ? actor : "");
	EvpgSettingSetLocal("evpg.correlation_id", correlation_id != NULL ? correlation_id : "");
	EvpgSettingSetLocal("evpg.metadata", metadata != NULL ?
						JsonbToCString(NULL, &metadata->root, VARSIZE(metadata)) : "");
	PG_RETURN_VOID();
}
