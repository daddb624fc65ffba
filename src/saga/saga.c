/*-------------------------------------------------------------------------
 *
 * saga.c
 *		Keeps the registered sagas for the session, all versions of each.
 *
 * Instances keep the version they began with; the highest one begins new ones.
 *
 * Memory: all sagas are in one context below EvpgRegistrationMemory().
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
#include "saga/saga.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

static List *sagas = NIL;		/* of EvpgSaga, by name, the highest version
								 * first */
static MemoryContext EvpgSagaContext = NULL;	/* of the list; NULL: not
												 * loaded */
static uint64 generation = 0;	/* of the list */

static EvpgSaga *
load_saga(uint64 row)
{
	EvpgSaga   *saga = palloc0(sizeof(EvpgSaga));
	Datum		path;

	saga->context = CurrentMemoryContext;
	saga->name = EvpgResultText(row, 1);
	saga->version = (int) EvpgResultInt64(row, 2);
	saga->library = EvpgResultText(row, 3);
	saga->native = (saga->library != NULL);
	saga->symbol = EvpgResultText(row, 4);
	saga->handler_signature = EvpgResultText(row, 5);
	saga->rejection_signature = EvpgResultText(row, 6);
	saga->timer_signature = EvpgResultText(row, 7);
	saga->key_signature = EvpgResultText(row, 8);
	if (EvpgResultDatum(row, 9, &path))
		saga->key_path = PG_DETOAST_DATUM_COPY(path);
	saga->aggregate_types = EvpgResultNames(row, 10);
	saga->event_types = EvpgResultNames(row, 11);
	saga->start_event_types = EvpgResultNames(row, 12);
	saga->initial_state = EvpgResultJsonb(row, 13);
	saga->transitions = EvpgResultJsonb(row, 14);
	saga->max_attempts = (int) EvpgResultInt64(row, 15);
	saga->backoff = EvpgResultInt64(row, 16);
	saga->max_backoff = EvpgResultInt64(row, 17);
	saga->search_path = EvpgResultText(row, 18);
	saga->registered_by = EvpgResultText(row, 19);
	return saga;
}

static EvpgStatement select_saga = {
	.text = "SELECT name, version, library, symbol, handler, rejection_handler, timer_handler, key_function,"
	" key_path, aggregate_types, event_types, start_event_types, initial_state, transitions, max_attempts,"
	" (EXTRACT(epoch FROM backoff) * 1000000)::int8, (EXTRACT(epoch FROM max_backoff) * 1000000)::int8,"
	" search_path, registered_by"
	" FROM evpg.saga ORDER BY name, version DESC"
};

/* All sagas.  The caller is inside EvpgEnter. */
static List *
load_sagas(void)
{
	MemoryContext memory = EvpgRegistrationMemory();
	MemoryContext context;
	MemoryContext old;
	List	   *list = NIL;
	uint64		rows;

	if (EvpgSagaContext != NULL && generation == EvpgCatalogRegistryGeneration())
		return sagas;
	if (EvpgSagaContext != NULL)
	{
		EvpgRegistrationFreeLater(EvpgSagaContext);
		EvpgSagaContext = NULL;
		sagas = NIL;
	}
	context = AllocSetContextCreate(CurrentMemoryContext, "EvpgSagas", ALLOCSET_SMALL_SIZES);
	generation = EvpgCatalogRegistryGeneration();
	rows = EvpgStatementReadLatest(&select_saga, NULL, NULL);
	old = MemoryContextSwitchTo(context);
	for (uint64 row = 0; row < rows; row++)
		list = lappend(list, load_saga(row));
	MemoryContextSwitchTo(old);
	EvpgStatementDone();
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

static EvpgStatement delete_saga_retire = {
	.text = "DELETE FROM evpg.saga s"
	" WHERE s.name = $1 AND s.version < $2"
	" AND NOT EXISTS (SELECT FROM evpg.saga_instance i WHERE i.saga = s.name AND i.saga_version = s.version"
	" AND i.status = 'running')",
	.types = {TEXTOID, INT4OID}
};

/*
 * EvpgSagaRetire
 *		Takes away the versions below the highest one that no instance has any more;
 *		false if there are none.  The caller owns the consumer.
 */
bool
EvpgSagaRetire(const char *name, int version)
{
	Datum		values[2] = {CStringGetTextDatum(name), Int32GetDatum(version)};
	bool		retired = EvpgStatementRun(&delete_saga_retire, values, NULL) > 0;

	EvpgStatementDone();
	if (retired)
		EvpgRegistrationInvalidate(EvpgCatalogGet()->saga);
	return retired;
}

/* Whether an event is one that the saga reacts to; not one that was injected without sagas. */
bool
EvpgSagaTakes(const EvpgSaga *saga, const EvpgEvent *event)
{
	return EvpgNamesHave(saga->aggregate_types, event->aggregate_type) &&
		EvpgNamesHave(saga->event_types, event->type) && EvpgEventBookkeeping(event, "no_sagas") == NULL;
}

/* Whether an event may begin an instance. */
bool
EvpgSagaStarts(const EvpgSaga *saga, const EvpgEvent *event)
{
	return EvpgNamesHave(saga->start_event_types, event->type);
}
