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
 * Memory: all projections are in one context below EvpgRegistryContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "aggregate/aggregate.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "projection/projection.h"
#include "usercode/keys.h"
#include "usercode/module.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* User code of a projection is running. */
bool		EvpgProjecting = false;

static List *projections = NIL; /* of EvpgProjection, by name */
static MemoryContext EvpgProjectionContext = NULL;	/* of the list; NULL: not
													 * loaded */
static uint64 generation = 0;	/* of the list */

/* ------------------------------------------------------------------ the list */

static char *
result_text(uint64 row, int column)
{
	Datum		value;

	return EvpgPlanResult(row, column, &value) ? TextDatumGetCString(value) : NULL;
}

static Jsonb *
result_jsonb(uint64 row, int column)
{
	Datum		value;

	return EvpgPlanResult(row, column, &value) ? DatumGetJsonbPCopy(value) : NULL;
}

static int64
result_int(uint64 row, int column)
{
	Datum		value;

	(void) EvpgPlanResult(row, column, &value);
	return DatumGetInt64(value);
}

EvpgMode
EvpgModeFromName(const char *name)
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
	char	   *library = result_text(row, 2);
	Datum		path;

	projection->context = CurrentMemoryContext;
	projection->name = result_text(row, 1);
	projection->native = (library != NULL);
	projection->library = library;
	projection->symbol = result_text(row, 3);
	projection->reducer_signature = result_text(row, 4);
	projection->handler_signature = result_text(row, 5);
	projection->key_signature = result_text(row, 6);
	if (EvpgPlanResult(row, 7, &path))
		projection->key_path = PG_DETOAST_DATUM_COPY(path);
	projection->constant_key = result_text(row, 8);
	projection->aggregate_types = EvpgRegistryList(row, 9);
	projection->event_types = EvpgRegistryList(row, 10);
	projection->tags = EvpgRegistryList(row, 11);
	projection->initial_state = result_jsonb(row, 12);
	projection->broadcast = EvpgBroadcastFromName(result_text(row, 13));
	projection->event_name = result_text(row, 14);
	projection->search_path = result_text(row, 15);
	projection->mode = EvpgModeFromName(result_text(row, 16));
	projection->on_error = EvpgOnErrorFromName(result_text(row, 17));
	projection->max_attempts = (int) result_int(row, 18);
	projection->reset_signature = result_text(row, 19);
	projection->tables = EvpgRegistryList(row, 20);
	projection->start_position = result_int(row, 21);
	projection->version = (int) result_int(row, 22);
	projection->build = result_int(row, 23);
	projection->generation_base = (int) result_int(row, 24);
	projection->registered_by = result_text(row, 25);
	return projection;
}

/*
 * EvpgProjections
 *		All projections, by name.  The caller is inside EvpgEnter.  Read with
 *		the latest snapshot, also under REPEATABLE READ.
 */
List *
EvpgProjections(void)
{
	MemoryContext memory = EvpgRegistryMemory();
	MemoryContext context;
	MemoryContext old;
	List	   *list = NIL;
	uint64		rows;

	if (likely(EvpgProjectionContext != NULL && generation == EvpgCatalogRegistryGeneration()))
		return projections;
	if (EvpgProjectionContext != NULL)
	{
		EvpgRegistryDropLater(EvpgProjectionContext);
		EvpgProjectionContext = NULL;
		projections = NIL;
	}
	context = AllocSetContextCreate(CurrentMemoryContext, "EvpgProjections", ALLOCSET_SMALL_SIZES);
	generation = EvpgCatalogRegistryGeneration();
	rows = EvpgPlanReadLatest(EVPG_PLAN_PROJECTION_READ, NULL, NULL);
	old = MemoryContextSwitchTo(context);
	for (uint64 row = 0; row < rows; row++)
		list = lappend(list, load_projection(row));
	MemoryContextSwitchTo(old);
	EvpgPlanDone();
	MemoryContextSetParent(context, memory);
	projections = list;
	EvpgProjectionContext = context;
	return projections;
}

/* A projection by name; NULL if there is none. */
EvpgProjection *
EvpgProjectionLookup(const char *name)
{
	ListCell   *cell;

	foreach(cell, EvpgProjections())
	{
		EvpgProjection *projection = lfirst(cell);

		if (strcmp(projection->name, name) == 0)
			return projection;
	}
	return NULL;
}

/* The same; error if there is none. */
EvpgProjection *
EvpgProjectionFind(const char *name)
{
	EvpgProjection *projection = EvpgProjectionLookup(name);

	if (projection == NULL)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_UNKNOWN_PROJECTION),
				 errmsg("projection \"%s\" is not registered", name)));
	return projection;
}

/* ------------------------------------------------------------------ events and keys */

static bool
tagged(List *wanted, ArrayType *tags)
{
	Datum	   *elements;
	int			count;

	if (wanted == NIL)
		return true;
	if (tags == NULL)
		return false;
	deconstruct_array(tags, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &count);
	for (int i = 0; i < count; i++)
		if (EvpgRegistryListed(wanted, TextDatumGetCString(elements[i])))
			return true;
	return false;
}

/* The definition of a native projection; its types count if the registration names none. */
static const evpg_projection *
definition(EvpgProjection *projection)
{
	if (projection->module.events == NULL)
	{
		evpg_projection module;
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

/* Whether the projection takes events at all; without code, its rows are put by evpg_projection_put() alone. */
bool
EvpgProjectionHasCode(const EvpgProjection *projection)
{
	return projection->native || projection->reducer_signature != NULL || projection->handler_signature != NULL;
}

/* Whether an event is one that the projection takes. */
bool
EvpgProjectionTakes(EvpgProjection *projection, const EvpgEvent *event)
{
	const evpg_projection *module;

	if (!EvpgProjectionHasCode(projection) ||
		!EvpgRegistryListed(projection->aggregate_types, event->aggregate_type) ||
		!EvpgRegistryListed(projection->event_types, event->type) ||
		!tagged(projection->tags, event->tags))
		return false;
	if (!projection->native)
		return true;
	module = definition(projection);
	return EvpgRegistryListed(projection->aggregate_types, event->aggregate_type) &&
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
				 errdetail("It has no code; its rows are what evpg_projection_put() made them.")));
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
		(!projection->native || definition(projection)->key == NULL);
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

/*
 * What user code of a projection may not do: the projections are being used,
 * and rows would change under those who have locked them.
 */
void
EvpgProjectionRefuse(const char *what)
{
	if (EvpgProjecting)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_REENTERED),
				 errmsg("a projection cannot %s", what),
				 errhint("Let a client that listens do it.")));
}
