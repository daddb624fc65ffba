/*-------------------------------------------------------------------------
 *
 * saga.c
 *		Keeps the registered sagas for the session, all versions of each.
 *
 * Instances keep the version they began with; the highest one begins new ones.
 *
 * Memory: all sagas are in one context below EvpgRegistryContext.
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
#include "saga/saga.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

static List *sagas = NIL;		/* of EvpgSaga, by name, the highest version
								 * first */
static MemoryContext EvpgSagaContext = NULL;	/* of the list; NULL: not
												 * loaded */
static uint64 generation = 0;	/* of the list */

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

static EvpgSaga *
load_saga(uint64 row)
{
	EvpgSaga   *saga = palloc0(sizeof(EvpgSaga));
	Datum		path;

	saga->context = CurrentMemoryContext;
	saga->name = result_text(row, 1);
	saga->version = (int) result_int(row, 2);
	saga->library = result_text(row, 3);
	saga->native = (saga->library != NULL);
	saga->symbol = result_text(row, 4);
	saga->handler_signature = result_text(row, 5);
	saga->rejection_signature = result_text(row, 6);
	saga->timer_signature = result_text(row, 7);
	saga->key_signature = result_text(row, 8);
	if (EvpgPlanResult(row, 9, &path))
		saga->key_path = PG_DETOAST_DATUM_COPY(path);
	saga->aggregate_types = EvpgRegistryList(row, 10);
	saga->event_types = EvpgRegistryList(row, 11);
	saga->start_event_types = EvpgRegistryList(row, 12);
	saga->initial_state = result_jsonb(row, 13);
	saga->transitions = result_jsonb(row, 14);
	saga->max_attempts = (int) result_int(row, 15);
	saga->backoff = result_int(row, 16);
	saga->max_backoff = result_int(row, 17);
	saga->search_path = result_text(row, 18);
	saga->registered_by = result_text(row, 19);
	return saga;
}

/* All sagas.  The caller is inside EvpgEnter. */
static List *
load_sagas(void)
{
	MemoryContext memory = EvpgRegistryMemory();
	MemoryContext context;
	MemoryContext old;
	List	   *list = NIL;
	uint64		rows;

	if (EvpgSagaContext != NULL && generation == EvpgCatalogRegistryGeneration())
		return sagas;
	if (EvpgSagaContext != NULL)
	{
		EvpgRegistryDropLater(EvpgSagaContext);
		EvpgSagaContext = NULL;
		sagas = NIL;
	}
	context = AllocSetContextCreate(CurrentMemoryContext, "EvpgSagas", ALLOCSET_SMALL_SIZES);
	generation = EvpgCatalogRegistryGeneration();
	rows = EvpgPlanReadLatest(EVPG_PLAN_SAGA_READ, NULL, NULL);
	old = MemoryContextSwitchTo(context);
	for (uint64 row = 0; row < rows; row++)
		list = lappend(list, load_saga(row));
	MemoryContextSwitchTo(old);
	EvpgPlanDone();
	MemoryContextSetParent(context, memory);
	sagas = list;
	EvpgSagaContext = context;
	return sagas;
}

/* A version of a saga, the highest if version is 0; NULL if there is none. */
EvpgSaga *
EvpgSagaFind(const char *name, int version)
{
	ListCell   *cell;

	foreach(cell, load_sagas())
	{
		EvpgSaga   *saga = lfirst(cell);

		if (strcmp(saga->name, name) == 0 && (version == 0 || saga->version == version))
			return saga;
	}
	return NULL;
}

/* All versions of a saga. */
List *
EvpgSagaVersions(const char *name)
{
	List	   *versions = NIL;
	ListCell   *cell;

	foreach(cell, load_sagas())
		if (strcmp(((EvpgSaga *) lfirst(cell))->name, name) == 0)
		versions = lappend(versions, lfirst(cell));
	return versions;
}

/*
 * EvpgSagaRetire
 *		Takes away the versions below the highest one that no instance has any more;
 *		false if there are none.  The caller owns the consumer.
 */
bool
EvpgSagaRetire(const char *name, int version)
{
	Datum		values[2] = {CStringGetTextDatum(name), Int32GetDatum(version)};
	bool		retired = EvpgPlanRun(EVPG_PLAN_SAGA_RETIRE, values, NULL) > 0;

	EvpgPlanDone();
	if (retired)
		EvpgRegistryAnnounce(EvpgCatalogGet()->saga);
	return retired;
}

/* Whether an event is one that the saga reacts to; not one that was injected without sagas. */
bool
EvpgSagaTakes(const EvpgSaga *saga, const EvpgEvent *event)
{
	return EvpgRegistryListed(saga->aggregate_types, event->aggregate_type) &&
		EvpgRegistryListed(saga->event_types, event->type) && EvpgEventMark(event, "no_sagas") == NULL;
}

/* Whether an event may begin an instance. */
bool
EvpgSagaStarts(const EvpgSaga *saga, const EvpgEvent *event)
{
	return EvpgRegistryListed(saga->start_event_types, event->type);
}
