/*-------------------------------------------------------------------------
 *
 * init.c
 *		The library: what happens when it is loaded, and which one it is.
 *
 * How the files hang together, from what SQL calls down to what is stored:
 *
 *		launcher.c, worker.c	background processes, if the library was preloaded
 *		run.c					one pass over all that is due: workers, and CALL evpg_run()
 *		execute.c, read_log.c, wait.c	SQL functions that write, read and wait
 *		inbox.c, translator.c	messages from outside, as commands
 *		route.c, dispatch.c, action.c	sagas: events to instances, reactions, what they say
 *		dead_letter.c, schedule.c, rebuild_saga.c	SQL functions about what sagas leave and wait for
 *		async.c, rebuild.c, rebuild_key.c	asynchronous projections, rebuilds of all keys and of one
 *		rebuild_tables.c, batch.c, checkpoint.c	copies of tables, many events at a time
 *		command.c				the command path, in the order of the contract
 *		context.c				actor, correlation, metadata
 *		state.c					cache, snapshots, replay
 *		aggregate_code.c, saga_code.c	user code of aggregates, and of sagas
 *		apply.c, projection_row.c	an event into keys of projections, the rows of keys
 *		broadcast.c				frames to listeners
 *		register_projection.c, register_saga.c	registering projections and sagas
 *		aggregate.c, projection.c, saga.c, keys.c	what is registered, and the keys of events
 *		module.c, native.c, function.c, action_constructors.c	user code in shared objects, and in SQL
 *		crash_suspects.c				what may have crashed the server is tried alone
 *		consumer.c, instance.c	checkpoints and parked events, instances and their work
 *		event_log.c, stream.c, row.c	events, streams, single rows
 *		fence.c					positions
 *		ring.c, shmem.c		shared memory: frames to be sent, who is to be woken
 *		durable.c				what leaves the database is on disk
 *		clock.c, activation.c			when timers become due, whether this database is a copy
 *		event.c, json.c, arguments.c	values
 *		subtransaction.c				subtransactions
 *		testing.c				hooks for tests, in test builds alone
 *		statement.c, catalog.c, settings.c, errors.h	evpg's own statements, objects, settings
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "base/catalog.h"
#include "base/errors.h"
#include "base/registration.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/statement.h"
#include "base/testing.h"
#include "base/wakeup.h"
#include "broadcast/ring.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "log/durable.h"
#include "miscadmin.h"
#include "projection/projection_row.h"
#include "projection/rebuild_handler.h"
#include "saga/dispatch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "worker/launcher.h"

#define LIBRARY_VERSION "1.0"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(evpg_version);
PG_FUNCTION_INFO_V1(evpg_refuse_change);
PG_FUNCTION_INFO_V1(evpg_refuse_writer);

void		_PG_init(void);

void
_PG_init(void)
{
	EVPG_TESTING_INIT();
	EvpgSettingsInit();
	EvpgShmemInit();
	EvpgWakeupInit();
	EvpgRingInit();
	EvpgDurableInit();
	EvpgCatalogInit();
	EvpgRegistrationInit();
	EvpgProjectionRowInit();
	EvpgDispatchInit();
	EvpgRebuildHandlerInit();
	EvpgLauncherInit();
	MarkGUCPrefixReserved("evpg");
}

static EvpgStatement select_extension_version = {
	.text = "SELECT extversion"
	" FROM pg_extension"
	" WHERE extname = 'evpg'"
};

Datum
evpg_version(PG_FUNCTION_ARGS)
{
	EvpgScope	scope;
	Datum		value;
	char	   *extension = "?";
	MemoryContext caller = CurrentMemoryContext;

	EvpgEnter(&scope, NULL);
	if (EvpgStatementRead(&select_extension_version, NULL, NULL) > 0 && EvpgResultDatum(0, 1, &value))
		extension = MemoryContextStrdup(caller, TextDatumGetCString(value));
	EvpgStatementDone();
	EvpgLeave(&scope);
	PG_RETURN_TEXT_P(cstring_to_text(psprintf("%s (library %s, abi %d.%d)", extension, LIBRARY_VERSION,
											  EVPG_ABI_MAJOR, EVPG_ABI_MINOR)));
}

/* The relation that a statement trigger of ours is about. */
static Relation
trigger_relation(FunctionCallInfo fcinfo, const char *function)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("%s must be called as a trigger", function)));
	return ((TriggerData *) fcinfo->context)->tg_relation;
}

/*
 * Statement trigger on evpg.event_log and evpg.stream, for UPDATE, DELETE and
 * TRUNCATE: whoever it is.  evpg itself changes the rows of streams without
 * statements (stream.c).
 */
Datum
evpg_refuse_change(PG_FUNCTION_ARGS)
{
	Relation	relation = trigger_relation(fcinfo, "evpg.refuse_change()");

	if (strcmp(RelationGetRelationName(relation), "stream") == 0)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_APPEND_ONLY),
				 errmsg("rows of evpg.stream are changed by appending events alone"),
				 errdetail("Without its row the events of a stream cannot be read, and its versions would begin again."),
				 errhint("Correct history with a new event.")));
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_APPEND_ONLY),
			 errmsg("%s is append-only", RelationGetRelationName(relation)),
			 errhint("Correct history with a new event.")));
}

/*
 * Trigger before a statement or a row, on every table of evpg, for what refuse_change does not
 * refuse: only evpg may write, which then is the owner of the table (EvpgEnter),
 * or a superuser, such as who restores a dump.  A privilege is not enough:
 * registrations and timers say what is executed, and as whom.  Code of users is
 * called as its own owner, so it does not pass here.
 */
Datum
evpg_refuse_writer(PG_FUNCTION_ARGS)
{
	Relation	relation = trigger_relation(fcinfo, "evpg.refuse_writer()");
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (GetUserId() != relation->rd_rel->relowner && !superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("rows of evpg.%s are written by evpg alone", RelationGetRelationName(relation)),
				 errhint("Call a function of evpg; rows can be repaired by a superuser.")));
	PG_RETURN_POINTER(!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ? NULL :
					  TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ? trigger->tg_newtuple : trigger->tg_trigtuple);
}
