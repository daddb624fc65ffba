/*-------------------------------------------------------------------------
 *
 * projection.c
 *		The registered projections, kept for the session, and which events and keys
 *		belong to each.
 *
 * A transaction that registers or drops a projection, or ends a rebuild, locks
 * evpg.fence (see register_projection.c), so the command path reads the list of
 * projections after it has entered the fence.
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

/* ------------------------------------------------------------------ the list */

/* Returns the mode of a name; raises 22023 if there is none. */
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

/* Returns the value of on_error of a name; raises 22023 if there is none. */
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

enum
{
	PROJECTION_NAME = 1, PROJECTION_LIBRARY, PROJECTION_SYMBOL, PROJECTION_REDUCER, PROJECTION_HANDLER,
	PROJECTION_KEY_FUNCTION, PROJECTION_KEY_PATH, PROJECTION_CONSTANT_KEY, PROJECTION_AGGREGATE_TYPES,
	PROJECTION_EVENT_TYPES, PROJECTION_TAGS, PROJECTION_INITIAL_STATE, PROJECTION_BROADCAST,
	PROJECTION_EVENT_NAME, PROJECTION_SEARCH_PATH, PROJECTION_MODE, PROJECTION_ON_ERROR, PROJECTION_MAX_ATTEMPTS,
	PROJECTION_RESET, PROJECTION_TABLES, PROJECTION_START_POSITION, PROJECTION_VERSION, PROJECTION_BUILD,
	PROJECTION_GENERATION_BASE, PROJECTION_REGISTERED_BY
};

static EvpgStatement select_projections = {
	.text = "SELECT name, library, symbol, reducer, handler, key_function, key_path, constant_key,"
	" aggregate_types, event_types, tags, initial_state, broadcast, event_name, search_path,"
	" mode, on_error, max_attempts, reset, tables, start_position, version, build, generation_base, registered_by"
	" FROM evpg.projection ORDER BY name"
};

/* Makes a projection of a row of select_projections, in CurrentMemoryContext. */
static void *
load_projection(uint64 row)
{
	EvpgProjection *projection = palloc0(sizeof(EvpgProjection));
	char	   *library = EvpgResultText(row, PROJECTION_LIBRARY);
	Datum		path;

	projection->context = CurrentMemoryContext;
	projection->name = EvpgResultText(row, PROJECTION_NAME);
	projection->has_module = (library != NULL);
	projection->library = library;
	projection->symbol = EvpgResultText(row, PROJECTION_SYMBOL);
	projection->reducer_signature = EvpgResultText(row, PROJECTION_REDUCER);
	projection->handler_signature = EvpgResultText(row, PROJECTION_HANDLER);
	projection->key_signature = EvpgResultText(row, PROJECTION_KEY_FUNCTION);
	if (EvpgResultDatum(row, PROJECTION_KEY_PATH, &path))
		projection->key_path = PG_DETOAST_DATUM_COPY(path);
	projection->constant_key = EvpgResultText(row, PROJECTION_CONSTANT_KEY);
	projection->aggregate_types = EvpgResultNames(row, PROJECTION_AGGREGATE_TYPES);
	projection->event_types = EvpgResultNames(row, PROJECTION_EVENT_TYPES);
	projection->tags = EvpgResultNames(row, PROJECTION_TAGS);
	projection->initial_state = EvpgResultJsonb(row, PROJECTION_INITIAL_STATE);
	projection->broadcast = EvpgBroadcastFromName(EvpgResultText(row, PROJECTION_BROADCAST));
	projection->event_name = EvpgResultText(row, PROJECTION_EVENT_NAME);
	projection->search_path = EvpgResultText(row, PROJECTION_SEARCH_PATH);
	projection->mode = EvpgProjectionModeFromName(EvpgResultText(row, PROJECTION_MODE));
	projection->on_error = EvpgOnErrorFromName(EvpgResultText(row, PROJECTION_ON_ERROR));
	projection->max_attempts = (int) EvpgResultInt64(row, PROJECTION_MAX_ATTEMPTS);
	projection->reset_signature = EvpgResultText(row, PROJECTION_RESET);
	projection->tables = EvpgResultNames(row, PROJECTION_TABLES);
	projection->start_position = EvpgResultInt64(row, PROJECTION_START_POSITION);
	projection->version = (int) EvpgResultInt64(row, PROJECTION_VERSION);
	projection->build = EvpgResultInt64(row, PROJECTION_BUILD);
	projection->generation_base = (int) EvpgResultInt64(row, PROJECTION_GENERATION_BASE);
	projection->registered_by = EvpgResultText(row, PROJECTION_REGISTERED_BY);
	return projection;
}

/* By name. */
static EvpgRegistrationList projections = {.kind = "projections", .select = &select_projections, .make = load_projection};

/*
 * EvpgProjectionList
 *		Lists all projections by name (EvpgProjection *), read with the latest snapshot,
 *		also under REPEATABLE READ.  The list lives to the end of the transaction at
 *		least.  The caller is inside EvpgEnter.
 */
List *
EvpgProjectionList(void)
{
	return EvpgRegistrationListGet(&projections);
}

/*
 * EvpgProjectionGet
 *		Returns a projection by name, which lives as long as the list of
 *		EvpgProjectionList.  If there is none: NULL with missing_ok, else an error.
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

/* Returns whether tags, which may be NULL, have one that is wanted; NIL wants all. */
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

/* Loads the definition of a projection in a module; its types count if the registration names none. */
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

/* Returns whether a projection takes events at all; without code, only evpg_put_projection() writes its rows. */
bool
EvpgProjectionHasCode(const EvpgProjection *projection)
{
	return projection->has_module || projection->reducer_signature != NULL || projection->handler_signature != NULL;
}

/* Returns whether a projection takes an event; loads its library if it has one. */
bool
EvpgProjectionTakes(EvpgProjection *projection, const EvpgEvent *event)
{
	const evpg_projection_definition *module;

	if (!EvpgProjectionHasCode(projection) ||
		!EvpgNamesHave(projection->aggregate_types, event->aggregate_type) ||
		!EvpgNamesHave(projection->event_types, event->type) ||
		!has_wanted_tag(projection->tags, event->tags))
		return false;
	if (!projection->has_module)
		return true;
	module = load_projection_module(projection);
	return EvpgNamesHave(projection->aggregate_types, event->aggregate_type) &&
		evpg_find_projected(module, event->type) != NULL;
}

/*
 * EvpgProjectionTakesWanted
 *		Returns whether a projection takes an event of a scan whose filter has its
 *		aggregate types, event types and tags.  Its library has been loaded if it has one.
 */
bool
EvpgProjectionTakesWanted(EvpgProjection *projection, const EvpgEvent *event)
{
	return projection->has_module ? evpg_find_projected(&projection->module, event->type) != NULL :
		EvpgProjectionHasCode(projection);
}

/* Raises an error unless a projection has code, so that it can be rebuilt from events. */
void
EvpgProjectionRequireCode(const EvpgProjection *projection)
{
	if (!EvpgProjectionHasCode(projection))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot rebuild projection \"%s\"", projection->name),
				 errdetail("It has no code; its rows are what evpg_put_projection() made them.")));
}

/* Returns the reducer or handler of a projection without a module, resolved at its first use; lives as the projection. */
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

/* Returns whether the aggregate id is the key; loads its library if it has one. */
bool
EvpgProjectionIsKeyedById(EvpgProjection *projection)
{
	return projection->constant_key == NULL && projection->key_path == NULL && projection->key_signature == NULL &&
		(!projection->has_module || load_projection_module(projection)->key == NULL);
}

/*
 * EvpgProjectionKeys
 *		Returns the keys to which an event is applied (char *), in CurrentMemoryContext;
 *		NIL if there are none.  Runs user code.
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
			projection->key_function =
				EvpgFunctionResolveIn(projection->context, projection->key_signature, EVPG_ROLE_KEY,
									  projection->registered_by, projection->search_path);
		return EvpgKeysByFunction(projection->key_function, event, "projection key");
	}
	if (projection->has_module && projection->module.key != NULL)
		return EvpgKeysByModule(projection->module.key, event, "projection key");
	return list_make1((char *) event->aggregate_id);
}
