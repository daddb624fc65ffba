/*-------------------------------------------------------------------------
 *
 * library.c
 *		The library: what happens when it is loaded, and which one it is.
 *
 * How the files hang together, from what SQL calls down to what is stored:
 *
 *		entry.c, read.c			SQL functions that write and that read
 *		inbox.c, translator.c	messages from outside, as commands
 *		command.c				the command path, in the order of the contract
 *		context.c				actor, correlation, metadata
 *		state.c					cache, snapshots, replay
 *		reducer.c				handlers, reducers, invariants: user code
 *		launcher.c, worker.c	background processes, if the library was preloaded
 *		project.c, broadcast.c	events into keys of projections, frames to listeners
 *		registry.c, projection.c	what is registered
 *		module.c, native.c, function.c	user code in shared objects, and in SQL
 *		log.c, stream.c			events and streams
 *		fence.c					positions
 *		ring.c, shared.c		shared memory: frames to be sent, who is to be woken
 *		clock.c					when timers become due
 *		home.c					whether this database is a copy
 *		event.c, json.c, check.c	values
 *		attempt.c				subtransactions
 *		testing.c				hooks for tests, in test builds alone
 *		plan.c, catalog.c, settings.c, errors.h	evpg's own statements, objects, settings
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "catalog.h"
#include "commands/trigger.h"
#include "errors.h"
#include "fmgr.h"
#include "launcher.h"
#include "plan.h"
#include "projected.h"
#include "rebuild.h"
#include "registry.h"
#include "ring.h"
#include "settings.h"
#include "shared.h"
#include "testing.h"
#include "utils/builtins.h"
#include "utils/rel.h"

#define LIBRARY_VERSION "1.0"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(evpg_version);
PG_FUNCTION_INFO_V1(evpg_refuse_change);

void		_PG_init(void);

void
_PG_init(void)
{
	EVPG_TESTING_INIT();
	EvpgSettingsInit();
	EvpgSharedInit();
	EvpgRingInit();
	EvpgCatalogInit();
	EvpgRegistryInit();
	EvpgProjectedInit();
	EvpgRebuildInit();
	EvpgLauncherInit();
}

Datum
evpg_version(PG_FUNCTION_ARGS)
{
	EvpgScope	scope;
	Datum		value;
	char	   *extension = "?";
	MemoryContext caller = CurrentMemoryContext;

	EvpgEnter(&scope, NULL);
	if (EvpgPlanRead(EVPG_PLAN_EXTENSION_VERSION, NULL, NULL) > 0 && EvpgPlanResult(0, 1, &value))
		extension = MemoryContextStrdup(caller, TextDatumGetCString(value));
	EvpgPlanDone();
	EvpgLeave(&scope);
	PG_RETURN_TEXT_P(cstring_to_text(psprintf("%s (library %s, abi %d.%d)", extension, LIBRARY_VERSION,
											  EVPG_ABI_MAJOR, EVPG_ABI_MINOR)));
}

/* Statement trigger on the event log, for UPDATE, DELETE and TRUNCATE. */
Datum
evpg_refuse_change(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("evpg.refuse_change() must be called as a trigger")));
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_APPEND_ONLY),
			 errmsg("%s is append-only", RelationGetRelationName(((TriggerData *) fcinfo->context)->tg_relation)),
			 errhint("Correct history with a new event.")));
}
