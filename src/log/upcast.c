/*-------------------------------------------------------------------------
 *
 * upcast.c
 *		Upcasting (rule 24): events of an old schema version are read as if they had been
 *		stored in the present one.
 *
 * A registered upcaster is a step from a version of an event type to a later one, or to
 * another type.  The steps that begin at a stored version are its chain.  It is found once
 * for each (aggregate type, event type, version), and kept with the registrations.
 *
 * An event gets its chain where it is read from the log (event_log.c), together with the
 * type to which it leads, since all filters name that one.  Its data is made later, by
 * EvpgUpcastEvent: mostly at once, but consumers leave out parked events before, and some
 * look for positions only.  New events are brought up before anything sees them, and keep
 * what the log gets of them in event->stored.
 *
 * A type that no upcaster names has no versions that are known: all of them are the
 * present one.  Of any other type the known version is the highest to which a step leads,
 * unless a step leaves a higher one.
 *
 * Memory: chains are in the context of the registrations; data that is made is in
 * CurrentMemoryContext.  Locks: none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/errors.h"
#include "base/names.h"
#include "base/registration.h"
#include "base/statement.h"
#include "log/upcast.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/memutils.h"

struct EvpgUpcasters
{
	List	   *list;			/* of EvpgUpcaster */
	MemoryContext context;
	HTAB	   *types;			/* of TypeChains */
};

/* The chains that have been found of an event type that takes part in upcasting. */
typedef struct TypeChains
{
	char		type[EVPG_MAX_NAME + 1];	/* hash key */
	List	   *chains;
} TypeChains;

EvpgUpcastCallHook EvpgUpcastCall = NULL;

/* ------------------------------------------------------------------ registrations */

static EvpgStatement select_upcasters = {
	.text = "SELECT event_type, from_version, aggregate_type, new_event_type, to_version, upcaster, search_path,"
	" registered_by"
	" FROM evpg.upcaster ORDER BY event_type, from_version, aggregate_type"
};

/* Makes an upcaster, in CurrentMemoryContext, of a result row. */
static void *
make_upcaster(uint64 row)
{
	EvpgUpcaster *upcaster = palloc0(sizeof(EvpgUpcaster));

	upcaster->event_type = EvpgResultText(row, 1);
	upcaster->from_version = (int) EvpgResultInt64(row, 2);
	upcaster->aggregate_type = EvpgResultText(row, 3);
	upcaster->new_event_type = EvpgResultText(row, 4);
	upcaster->to_version = (int) EvpgResultInt64(row, 5);
	upcaster->signature = EvpgResultText(row, 6);
	upcaster->search_path = EvpgResultText(row, 7);
	upcaster->registered_by = EvpgResultText(row, 8);
	upcaster->context = CurrentMemoryContext;
	return upcaster;
}

static EvpgRegistrationList registered = {.kind = "upcasters", .select = &select_upcasters, .make = make_upcaster};

static void
add_type(EvpgUpcasters *upcasters, const char *type)
{
	bool		found;
	TypeChains *entry = hash_search(upcasters->types, type, HASH_ENTER, &found);

	if (!found)
		entry->chains = NIL;
}

static EvpgUpcasters *
make_upcasters(List *list)
{
	MemoryContext context = ((EvpgUpcaster *) linitial(list))->context;
	EvpgUpcasters *upcasters = MemoryContextAlloc(context, sizeof(EvpgUpcasters));
	HASHCTL		info = {.keysize = EVPG_MAX_NAME + 1, .entrysize = sizeof(TypeChains), .hcxt = context};
	ListCell   *cell;

	upcasters->list = list;
	upcasters->context = context;
	upcasters->types = hash_create("evpg upcast types", 32, &info, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	foreach(cell, list)
	{
		EvpgUpcaster *upcaster = lfirst(cell);

		add_type(upcasters, upcaster->event_type);
		add_type(upcasters, upcaster->new_event_type);
		upcaster->all = upcasters;
	}
	return upcasters;
}

/*
 * EvpgUpcastersGet
 *		Returns the registered upcasters, NULL if there are none.  The caller is inside
 *		EvpgEnter.
 */
EvpgUpcasters *
EvpgUpcastersGet(void)
{
	List	   *list = EvpgRegistrationListGet(&registered);
	EvpgUpcaster *first;

	if (likely(list == NIL))
		return NULL;
	first = linitial(list);
	return first->all != NULL ? first->all : make_upcasters(list);
}

/* Returns all upcasters (EvpgUpcaster *), in the order of types and versions. */
List *
EvpgUpcastersList(const EvpgUpcasters *upcasters)
{
	return upcasters == NULL ? NIL : upcasters->list;
}

/*
 * EvpgUpcastStoredTypes
 *		Returns the types that events may have in the log which are read as one of these
 *		types (NIL: all): these, and all that are renamed to one of them.
 */
List *
EvpgUpcastStoredTypes(const EvpgUpcasters *upcasters, List *types)
{
	List	   *result;
	bool		more = true;

	if (upcasters == NULL || types == NIL)
		return types;
	result = list_copy(types);
	while (more)
	{
		ListCell   *cell;

		more = false;
		foreach(cell, upcasters->list)
		{
			EvpgUpcaster *upcaster = lfirst(cell);

			if (!EvpgNamesHave(result, upcaster->new_event_type) || EvpgNamesHave(result, upcaster->event_type))
				continue;
			result = lappend(result, upcaster->event_type);
			more = true;
		}
	}
	return result;
}

/* ------------------------------------------------------------------ chains */

static bool
is_of_aggregate(const EvpgUpcaster *upcaster, const char *aggregate_type)
{
	return upcaster->aggregate_type == NULL || strcmp(upcaster->aggregate_type, aggregate_type) == 0;
}

/* Returns the step from a version of a type, NULL if there is none. */
static EvpgUpcaster *
find_step(const EvpgUpcasters *upcasters, const char *aggregate_type, const char *type, int version)
{
	ListCell   *cell;

	foreach(cell, upcasters->list)
	{
		EvpgUpcaster *upcaster = lfirst(cell);

		if (upcaster->from_version == version && strcmp(upcaster->event_type, type) == 0 &&
			is_of_aggregate(upcaster, aggregate_type))
			return upcaster;
	}
	return NULL;
}

/* Sets how a chain ends that no step continues. */
static void
end_chain(const EvpgUpcasters *upcasters, EvpgUpcastChain *chain)
{
	bool		takes_part = false;
	int			last_step = 0;	/* the highest version that a step leaves */
	ListCell   *cell;

	foreach(cell, upcasters->list)
	{
		EvpgUpcaster *upcaster = lfirst(cell);

		if (!is_of_aggregate(upcaster, chain->aggregate_type))
			continue;
		if (strcmp(upcaster->event_type, chain->type) == 0)
		{
			takes_part = true;
			last_step = Max(last_step, upcaster->from_version);
		}
		if (strcmp(upcaster->new_event_type, chain->type) == 0)
		{
			takes_part = true;
			chain->known_version = Max(chain->known_version, upcaster->to_version);
		}
	}
	if (!takes_part || (chain->version == chain->known_version && chain->version > last_step))
		chain->end = EVPG_UPCAST_COMPLETE;
	else if (chain->version > Max(chain->known_version, last_step))
		chain->end = EVPG_UPCAST_TOO_NEW;
	else
		chain->end = EVPG_UPCAST_STEP_MISSING;
}

/* Makes the chain of a stored version, in CurrentMemoryContext. */
static EvpgUpcastChain *
make_chain(const EvpgUpcasters *upcasters, const char *aggregate_type, const char *type, int version)
{
	EvpgUpcastChain *chain = palloc0(sizeof(EvpgUpcastChain));
	EvpgUpcaster *step;

	chain->aggregate_type = pstrdup(aggregate_type);
	chain->stored_type = chain->type = pstrdup(type);
	chain->stored_version = chain->version = version;
	while ((step = find_step(upcasters, aggregate_type, chain->type, chain->version)) != NULL)
	{
		if (list_length(chain->steps) == list_length(upcasters->list))
		{
			chain->end = EVPG_UPCAST_CIRCLE;
			return chain;
		}
		chain->steps = lappend(chain->steps, step);
		chain->type = step->new_event_type;
		chain->version = step->to_version;
	}
	end_chain(upcasters, chain);
	return chain;
}

/*
 * EvpgUpcastFind
 *		Returns the chain of a stored version of an event type in an aggregate type; NULL
 *		if it is the present one.
 */
const EvpgUpcastChain *
EvpgUpcastFind(EvpgUpcasters *upcasters, const char *aggregate_type, const char *type, int version)
{
	TypeChains *entry = hash_search(upcasters->types, type, HASH_FIND, NULL);
	const EvpgUpcastChain *found = NULL;
	ListCell   *cell;

	if (entry == NULL)
		return NULL;
	foreach(cell, entry->chains)
	{
		const EvpgUpcastChain *chain = lfirst(cell);

		if (chain->stored_version == version && strcmp(chain->aggregate_type, aggregate_type) == 0)
			found = chain;
	}
	if (found == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(upcasters->context);
		EvpgUpcastChain *chain = make_chain(upcasters, aggregate_type, type, version);

		entry->chains = lappend(entry->chains, chain);
		MemoryContextSwitchTo(old);
		found = chain;
	}
	return found->steps == NIL && found->end == EVPG_UPCAST_COMPLETE ? NULL : found;
}

/* ------------------------------------------------------------------ events */

/* Describes an event as it is stored, for machines. */
static char *
describe_stored(const EvpgEvent *event, const EvpgUpcastChain *chain)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, "{\"aggregate_type\": ");
	escape_json(&text, event->aggregate_type);
	appendStringInfoString(&text, ", \"aggregate_id\": ");
	escape_json(&text, event->aggregate_id);
	if (event->version > 0)
		appendStringInfo(&text, ", \"version\": " INT64_FORMAT, event->version);
	if (event->position > 0)
		appendStringInfo(&text, ", \"position\": " INT64_FORMAT, event->position);
	appendStringInfoString(&text, ", \"type\": ");
	escape_json(&text, chain->stored_type);
	appendStringInfo(&text, ", \"schema_version\": %d}", chain->stored_version);
	return text.data;
}

/* Raises VE019 for an event whose chain does not lead to a version that is known. */
pg_noreturn static void
raise_unknown_schema(const EvpgEvent *event, const EvpgUpcastChain *chain)
{
	const char *detail = describe_stored(event, chain);

	if (chain->end == EVPG_UPCAST_TOO_NEW && chain->known_version == 0)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_SCHEMA),
				 errmsg("event \"%s\" of schema version %d is newer than what is known", chain->type, chain->version),
				 errdetail_internal("%s", detail),
				 errhint("Its upcasters rename the type, from older versions only.")));
	if (chain->end == EVPG_UPCAST_TOO_NEW)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_SCHEMA),
				 errmsg("event \"%s\" of schema version %d is newer than version %d, the newest that is known",
						chain->type, chain->version, chain->known_version),
				 errdetail_internal("%s", detail),
				 errhint("Register the upcaster that leads to it first.")));
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_SCHEMA),
			 errmsg("no upcaster leads on from event \"%s\" of schema version %d", chain->type, chain->version),
			 errdetail_internal("%s", detail),
			 errhint("Register the missing one with evpg_register_upcaster(); evpg_check_upcasters() lists what is "
					 "stored.")));
}

/*
 * EvpgUpcastMark
 *		Gives an event that was just read, as it is stored, its chain, and the type to
 *		which that leads; the rest comes with EvpgUpcastEvent.
 */
void
EvpgUpcastMark(EvpgUpcasters *upcasters, EvpgEvent *event)
{
	event->chain = upcasters == NULL ? NULL :
		EvpgUpcastFind(upcasters, event->aggregate_type, event->type, event->schema_version);
	if (event->chain != NULL)
		event->type = event->chain->type;
}

/*
 * EvpgUpcastEvent
 *		Brings an event up to the present version of its type, if it is not there: replaces
 *		its data, in CurrentMemoryContext.  Raises VE019 if its chain is not complete, and
 *		errors of upcasters unchanged.  The caller is inside EvpgEnter.
 */
void
EvpgUpcastEvent(EvpgEvent *event)
{
	const EvpgUpcastChain *chain = event->chain;
	ListCell   *cell;

	if (likely(chain == NULL))
		return;
	check_stack_depth();
	if (chain->end != EVPG_UPCAST_COMPLETE)
		raise_unknown_schema(event, chain);
	foreach(cell, chain->steps)
	{
		EvpgUpcaster *step = lfirst(cell);

		if (step->signature != NULL)
			event->data = EvpgUpcastCall(step, event);
	}
	event->type = chain->type;
	event->schema_version = chain->version;
	event->chain = NULL;
}

/*
 * EvpgUpcastNewEvents
 *		Brings up events that are about to be appended, if their maker is older than the
 *		upcasters; what is stored is what it has made.  To be called once for them, when
 *		their stream is known.  Raises what EvpgUpcastEvent raises.
 */
void
EvpgUpcastNewEvents(EvpgUpcasters *upcasters, EvpgEvent *events, int count)
{
	for (int i = 0; upcasters != NULL && i < count; i++)
	{
		EvpgEvent  *event = &events[i];
		EvpgEvent  *stored;

		event->chain = EvpgUpcastFind(upcasters, event->aggregate_type, event->type, event->schema_version);
		if (event->chain == NULL)
			continue;
		stored = palloc(sizeof(EvpgEvent));
		*stored = *event;
		EvpgUpcastEvent(event);
		event->stored = stored;
	}
}
