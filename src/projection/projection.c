/*-------------------------------------------------------------------------
 *
 * projection.c
 *		Keeps the registered projections for the session, and says which events
 *		and keys are theirs.
 *
 * Who registers or drops a projection, or ends a rebuild, locks evpg.fence (see
 * register_projection.c), so the command path asks for the projections after it has entered
 * the fence.
 *
 * The functions or library of a projection are resolved at the first event it
 * takes, so that a broken one stops only the commands that need it.
 *
 * Memory: all projections are in one context below EvpgRegistrationMemory().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "base/catalog.h"
#include "base/errors.h"
#include "base/names.h"
#include "base/registration.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "projection/projection.h"
#include "usercode/keys.h"
#include "usercode/module.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* User code of a projection is running. */

static List *projections = NIL; /* of EvpgProjection, by name */
static MemoryContext EvpgProjectionContext = NULL;	/* of the list; NULL: not
													 * loaded */
static uint64 generation = 0;	/* of the list */

/* ------------------------------------------------------------------ the list */

EvpgProjectionMode
EvpgProjectionModeFromName(const char *name)
{
	if (strcmp(name, "inline") == 0)
		return EVPG_MODE_INLINE;
	if (strcmp(name, "async") == 0)
		return EVPG_MODE_ASYNC;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown projection mode \"%s\"", name),
			 errhint("Use inline or async.")));
}

EvpgOnError
EvpgOnErrorFromName(const char *name)
{
	if (strcmp(name, "stop") == 0)
		return EVPG_ON_ERROR_STOP;
	if (strcmp(name, "park") == 0)
		return EVPG_ON_ERROR_PARK;
	if (strcmp(name, "skip") == 0)
		return EVPG_ON_ERROR_SKIP;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown on_error \"%s\"", name),
			 errhint("Use stop, park or skip.")));
}

static EvpgProjection *
load_projection(uint64 row)
{
	EvpgProjection *projection = palloc0(sizeof(EvpgProjection));
	char	   *library = EvpgResultText(row, 2);
	Datum		path;

	projection->context = CurrentMemoryContext;
	projection->name = EvpgResultText(row, 1);
	projection->native = (library != NULL);
	projection->library = library;
	projection->symbol = EvpgResultText(row, 3);
	projection->reducer_signature = EvpgResultText(row, 4);
	projection->handler_signature = EvpgResultText(row, 5);
	projection->key_signature = EvpgResultText(row, 6);
	if (EvpgResultDatum(row, 7, &path))
		projection->key_path = PG_DETOAST_DATUM_COPY(path);
	projection->constant_key = EvpgResultText(row, 8);
	projection->aggregate_types = EvpgResultNames(row, 9);
	projection->event_types = EvpgResultNames(row, 10);
	projection->tags = EvpgResultNames(row, 11);
	projection->initial_state = EvpgResultJsonb(row, 12);
	projection->broadcast = EvpgBroadcastFromName(EvpgResultText(row, 13));
	projection->event_name = EvpgResultText(row, 14);
	projection->search_path = EvpgResultText(row, 15);
	projection->mode = EvpgProjectionModeFromName(EvpgResultText(row, 16));
	projection->on_error = EvpgOnErrorFromName(EvpgResultText(row, 17));
	projection->max_attempts = (int) EvpgResultInt64(row, 18);
	projection->reset_signature = EvpgResultText(row, 19);
	projection->tables = EvpgResultNames(row, 20);
	projection->start_position = EvpgResultInt64(row, 21);
	projection->version = (int) EvpgResultInt64(row, 22);
	projection->build = EvpgResultInt64(row, 23);
	projection->generation_base = (int) EvpgResultInt64(row, 24);
	projection->registered_by = EvpgResultText(row, 25);
	return projection;
}

static EvpgStatement select_projection = {
	.text = "SELECT name, library, symbol, reducer, handler, key_function, key_path, constant_key, aggregate_types,"
	" event_types, tags, initial_state, broadcast, event_name, search_path, mode, on_error, max_attempts,"
	" reset, tables, start_position, version, build, generation_base, registered_by"
	" FROM evpg.projection ORDER BY name"
};

/*
 * EvpgProjectionList
 *		All projections, by name.  The caller is inside EvpgEnter.  Read with
 *		the latest snapshot, also under REPEATABLE READ.
 */
List *
EvpgProjectionList(void)
{
	MemoryContext memory = EvpgRegistrationMemory();
	MemoryContext context;
	MemoryContext old;
	List	   *list = NIL;
	uint64		rows;

	if (likely(EvpgProjectionContext != NULL && generation == EvpgCatalogRegistryGeneration()))
		return projections;
	if (EvpgProjectionContext != NULL)
	{
		EvpgRegistrationFreeLater(EvpgProjectionContext);
		EvpgProjectionContext = NULL;
		projections = NIL;
	}
	context = AllocSetContextCreate(CurrentMemoryContext, "EvpgProjectionList", ALLOCSET_SMALL_SIZES);
	generation = EvpgCatalogRegistryGeneration();
	rows = EvpgStatementReadLatest(&select_projection, NULL, NULL);
	old = MemoryContextSwitchTo(context);
	for (uint64 row = 0; row < rows; row++)
		list = lappend(list, load_projection(row));
	MemoryContextSwitchTo(old);
	EvpgStatementDone();
	MemoryContextSetParent(context, memory);
	projections = list;
	EvpgProjectionContext = context;
	return projections;
}

/*
 * EvpgProjectionGet
 *		A projection by name, as long as the list of EvpgProjectionList.  If there
 *		is none: NULL with missing_ok, else an error.
 */
EvpgProjection *
EvpgProjectionGet(const char *name, bool missing_ok)
{
	ListCell   *cell;

	foreach(cell, EvpgProjectionList())
	{
		EvpgProjection *projection = lfirst(cell);

		if (strcmp(projection->name, name) == 0)
			return projection;
	}
	if (!missing_ok)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_UNKNOWN_PROJECTION),
				 errmsg("projection \"%s\" is not registered", name)));
	return NULL;
}

/* ------------------------------------------------------------------ events and keys */

static bool
has_wanted_tag(List *wanted, ArrayType *tags)
{
	Datum	   *elements;
	int			count;

	if (wanted == NIL)
		return true;
	if (tags == NULL)
		return false;
	deconstruct_array(tags, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &count);
	for (int i = 0; i < count; i++)
		if (EvpgNamesHave(wanted, TextDatumGetCString(elements[i])))
			return true;
	return false;
}

/* The definition of a native projection; its types count if the registration names none. */
static const evpg_projection_definition *
load_projection_module(EvpgProjection *projection)
{
	if (projection->module.events == NULL)
	{
		evpg_projection_definition module;
		MemoryContext old;

		EvpgModuleCheckRegistrant(projection->library, projection->registered_by);
		EvpgModuleLoadProjection(projection->library, projection->symbol, &module);
		old = MemoryContextSwitchTo(projection->context);
		if (projection->aggregate_types == NIL && module.aggregate_types != NULL)
			for (const char *const *type = module.aggregate_types; *type != NULL; type++)
				projection->aggregate_types = lappend(projection->aggregate_types, pstrdup(*type));
		if (projection->event_types == NIL)
			for (const evpg_project_entry *entry = module.events; entry->type != NULL; entry++)
				projection->event_types = lappend(projection->event_types, pstrdup(entry->type));
		MemoryContextSwitchTo(old);
		projection->module = module;
	}
	return &projection->module;
}

/* Whether the projection takes events at all; without code, its rows are put by evpg_put_projection() alone. */
bool
EvpgProjectionHasCode(const EvpgProjection *projection)
{
	return projection->native || projection->reducer_signature != NULL || projection->handler_signature != NULL;
}

/* Whether an event is one that the projection takes. */
bool
EvpgProjectionTakes(EvpgProjection *projection, const EvpgEvent *event)
{
	const evpg_projection_definition *module;

	if (!EvpgProjectionHasCode(projection) ||
		!EvpgNamesHave(projection->aggregate_types, event->aggregate_type) ||
		!EvpgNamesHave(projection->event_types, event->type) ||
		!has_wanted_tag(projection->tags, event->tags))
		return false;
	if (!projection->native)
		return true;
	module = load_projection_module(projection);
	return EvpgNamesHave(projection->aggregate_types, event->aggregate_type) &&
		evpg_find_projected(module, event->type) != NULL;
}

/* Error unless a projection can be rebuilt from events. */
void
EvpgProjectionRequireCode(const EvpgProjection *projection)
{
	if (!EvpgProjectionHasCode(projection))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot rebuild projection \"%s\"", projection->name),
				 errdetail("It has no code; its rows are what evpg_put_projection() made them.")));
}

/* The reducer or handler of a projection that is not native. */
EvpgFunction *
EvpgProjectionFunction(EvpgProjection *projection)
{
	if (projection->function == NULL)
		projection->function = projection->reducer_signature != NULL ?
			EvpgFunctionResolveIn(projection->context, projection->reducer_signature,
								  EVPG_ROLE_PROJECTION_REDUCER, projection->registered_by, projection->search_path) :
			EvpgFunctionResolveIn(projection->context, projection->handler_signature,
								  EVPG_ROLE_PROJECTION_HANDLER, projection->registered_by, projection->search_path);
	return projection->function;
}

/* Whether the aggregate id is the key. */
bool
EvpgProjectionKeyedById(EvpgProjection *projection)
{
	return projection->constant_key == NULL && projection->key_path == NULL && projection->key_signature == NULL &&
		(!projection->native || load_projection_module(projection)->key == NULL);
}

/*
 * EvpgProjectionKeys
 *		The keys that an event is applied to, in CurrentMemoryContext; NIL: none.
 */
List *
EvpgProjectionKeys(EvpgProjection *projection, const EvpgEvent *event)
{
	if (projection->constant_key != NULL)
		return list_make1(projection->constant_key);
	if (projection->key_path != NULL)
		return EvpgKeysByPath(projection->key_path, event, "projection", projection->name);
	if (projection->key_signature != NULL)
	{
		if (projection->key_function == NULL)
			projection->key_function = EvpgFunctionResolveIn(projection->context, projection->key_signature,
															 EVPG_ROLE_KEY, projection->registered_by, projection->search_path);
		return EvpgKeysByFunction(projection->key_function, event, "projection key");
	}
	if (projection->native && projection->module.key != NULL)
		return EvpgKeysByModule(projection->module.key, event, "projection key");
	return list_make1((char *) event->aggregate_id);
}
