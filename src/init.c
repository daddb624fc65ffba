/*-------------------------------------------------------------------------
 *
 * init.c
 *		The library: what happens when it is loaded, which version it is, and the
 *		triggers that keep others from writing into evpg's tables.
 *
 * The folders, from what SQL calls down to what knows PostgreSQL alone.  No file
 * includes a header of a folder above its own (scripts/lint-source):
 *
 *		worker/			background processes, evpg_run(), waiting
 *		saga/			sagas: reactions, actions, timers, dead letters
 *		message/		messages from outside, as commands
 *		aggregate/		the path of a command: state, decision, events
 *		projection/		events into rows of keys, rebuilds
 *		consumer/		checkpoints and errors of what follows the log
 *		usercode/		calling functions and modules of users
 *		broadcast/		frames to listeners
 *		log/			events, streams, the order of positions
 *		base/			statements, settings, locks, shared memory, values
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "base/catalog.h"
#include "base/errors.h"
#include "base/locks.h"
#include "base/registration.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/statement.h"
#include "base/testing.h"
#include "base/wakeup.h"
#include "broadcast/frame_ring.h"
#include "commands/trigger.h"
#include "consumer/activation.h"
#include "fmgr.h"
#include "log/durable.h"
#include "log/early_release.h"
#include "log/stream_directory.h"
#include "miscadmin.h"
#include "projection/rebuild_handler.h"
#include "saga/react_inline.h"
#include "usercode/upcaster.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "worker/launcher.h"
#include "worker/utility_hook.h"

#define LIBRARY_VERSION "1.0"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(evpg_version);
PG_FUNCTION_INFO_V1(evpg_refuse_change);
PG_FUNCTION_INFO_V1(evpg_refuse_writer);

void		_PG_init(void);

/*
 * _PG_init
 *		Initializes the library.  Called by PostgreSQL when it loads it: at the
 *		start of the server, or in the first session that calls a function of
 *		it.  The settings come first, since shared memory is sized by them, and
 *		their prefix is reserved last, when all are defined.
 */
void
_PG_init(void)
{
	EVPG_TESTING_INIT();
	EvpgSettingsInit();
	EvpgShmemInit();
	EvpgEarlyReleaseInit();
	EvpgWakeupInit();
	EvpgFrameRingInit();
	EvpgDurableInit();
	EvpgStreamDirectoryInit();
	EvpgCatalogInit();
	EvpgLocksInit();
	EvpgRegistrationInit();
	EvpgUpcasterInit();
	EvpgReactInlineInit();
	EvpgRebuildHandlerInit();
	EvpgLauncherInit();
	EvpgUtilityHookInit();
	MarkGUCPrefixReserved("evpg");
}

static EvpgStatement select_extension_version = {
	.text = "SELECT extversion"
	" FROM pg_extension"
	" WHERE extname = 'evpg'"
};

/* Returns the versions of the extension, the library and its ABI. */
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

/*
 * Returns the relation that a statement trigger of evpg is about; raises an
 * error if the function was not called by one.
 */
static Relation
get_trigger_relation(FunctionCallInfo fcinfo, const char *function)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("%s must be called as a trigger", function)));
	return ((TriggerData *) fcinfo->context)->tg_relation;
}

/*
 * evpg_refuse_change
 *		Refuses UPDATE, DELETE and TRUNCATE of evpg.event_log and evpg.stream
 *		by any role: a statement trigger. evpg itself changes the rows of
 *		streams without statements (stream.c).
 */
Datum
evpg_refuse_change(PG_FUNCTION_ARGS)
{
	Relation	relation = get_trigger_relation(fcinfo, "evpg.refuse_change()");

	if (strcmp(RelationGetRelationName(relation), "stream") == 0)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_APPEND_ONLY),
				 errmsg("rows of evpg.stream are never changed"),
				 errdetail("Without its row the events of a stream cannot be read, and its versions would begin again."),
				 errhint("Correct history with a new event.")));
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_APPEND_ONLY),
			 errmsg("%s is append-only", RelationGetRelationName(relation)),
			 errhint("Correct history with a new event.")));
}

/* Tables whose rows are work for workers. */
static const char *const tables_of_work[] = {"consumer", "timer", "rebuild", "old_build", "retention"};

/* Tables of whose rows sessions keep copies until an invalidation of the table (catalog.c). */
static const char *const copied_tables[] = {
	"aggregate_type", "interceptor", "translator", "projection", "saga", "listener", "clock"
};

static bool
is_named_in(Relation relation, const char *const *tables, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (strcmp(RelationGetRelationName(relation), tables[i]) == 0)
			return true;
	return false;
}

/*
 * evpg_refuse_writer
 *		Refuses all other writes to the tables of evpg but its own, a trigger
 *		before a statement or a row: only evpg may write, which then is the
 *		owner of the table (EvpgEnter), or a superuser, such as a session that
 *		restores a dump.  What such a session inserts for workers must not be
 *		done here.
 *
 * A privilege is not enough: registrations and timers specify what is
 * executed, and as which role.  Code of users is called as its own owner, so
 * it does not pass here.
 */
Datum
evpg_refuse_writer(PG_FUNCTION_ARGS)
{
	Relation	relation = get_trigger_relation(fcinfo, "evpg.refuse_writer()");
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (GetUserId() != relation->rd_rel->relowner && !superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("rows of evpg.%s are written by evpg alone", RelationGetRelationName(relation)),
				 errhint("Call a function of evpg; rows can be repaired by a superuser.")));
	/* evpg itself inserts there without SQL */
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event) && strcmp(RelationGetRelationName(relation), "event_log") == 0)
		EvpgStreamDirectoryForgetAtCommit();
	/* evpg, and code of users, has changed the user */
	if (!InLocalUserIdChange())
	{
		if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event) &&
			is_named_in(relation, tables_of_work, lengthof(tables_of_work)))
			EvpgActivationNoteForeignRows();
		if (is_named_in(relation, copied_tables, lengthof(copied_tables)))
			CacheInvalidateRelcache(relation);
	}
	PG_RETURN_POINTER(!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ? NULL :
					  TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ? trigger->tg_newtuple : trigger->tg_trigtuple);
}
