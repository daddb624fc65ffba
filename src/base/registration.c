/*-------------------------------------------------------------------------
 *
 * registration.c
 *		What the registrations of aggregates, interceptors, projections, sagas
 *		and translators have in common.
 *
 * A registration changes a table and sends an invalidation of that table, on
 * which every session drops its copies: catalog.c counts generations, and each
 * cache compares the generation that it was loaded in.  A command may still use
 * a dropped copy, also after user code has registered another one in its middle.
 * So copies are freed by a later outermost call, or at the end of the transaction.
 *
 * Memory: what is cached for the session is below EvpgRegistrationMemory().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/registration.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"

static MemoryContext registration_memory = NULL;
static List *dropped = NIL;		/* of MemoryContext, to be freed */
static uint64 dropped_in = 0;	/* the outermost call in which they were */

static void
free_dropped(void)
{
	ListCell   *cell;

	foreach(cell, dropped)
		MemoryContextDelete(lfirst(cell));
	list_free(dropped);
	dropped = NIL;
}

static void
free_dropped_at_end(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		free_dropped();
}

/* Registers the callback that frees dropped copies; called once, from _PG_init. */
void
EvpgRegistrationInit(void)
{
	RegisterXactCallback(free_dropped_at_end, NULL);
}

/*
 * EvpgRegistrationMemory
 *		Returns the context below which caches of registrations are kept for the
 *		session.
 */
MemoryContext
EvpgRegistrationMemory(void)
{
	if (unlikely(registration_memory == NULL))
		registration_memory = AllocSetContextCreate(CacheMemoryContext, "EvpgRegistrations", ALLOCSET_DEFAULT_SIZES);
	return registration_memory;
}

/*
 * EvpgRegistrationFreeLater
 *		Frees a context, which is below EvpgRegistrationMemory, as soon as no
 *		command can be using it.
 */
void
EvpgRegistrationFreeLater(MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(EvpgRegistrationMemory());

	/* A long transaction may see many changes. */
	if (dropped_in != EvpgCatalogCallNumber())
		free_dropped();
	dropped_in = EvpgCatalogCallNumber();
	dropped = lappend(dropped, context);
	MemoryContextSwitchTo(old);
}

/*
 * EvpgRegistrationListGet
 *		Returns all registrations of a kind, in the order of the statement, read with
 *		the latest snapshot, also under REPEATABLE READ, if one has changed.  The list
 *		lives to the end of the transaction at least.  The caller is inside EvpgEnter.
 */
List *
EvpgRegistrationListGet(EvpgRegistrationList *registrations)
{
	MemoryContext context;
	MemoryContext old;
	List	   *list = NIL;
	uint64		rows;

	if (likely(registrations->context != NULL && registrations->generation == EvpgCatalogRegistryGeneration()))
		return registrations->list;
	if (registrations->context != NULL)
	{
		EvpgRegistrationFreeLater(registrations->context);
		registrations->context = NULL;
		registrations->list = NIL;
	}
	context = AllocSetContextCreate(CurrentMemoryContext, "EvpgRegistrationList", ALLOCSET_SMALL_SIZES);
	MemoryContextSetIdentifier(context, registrations->kind);
	registrations->generation = EvpgCatalogRegistryGeneration();
	rows = EvpgStatementReadLatest(registrations->select, NULL, NULL);
	old = MemoryContextSwitchTo(context);
	for (uint64 row = 0; row < rows; row++)
		list = lappend(list, registrations->make(row));
	MemoryContextSwitchTo(old);
	EvpgStatementDone();
	MemoryContextSetParent(context, EvpgRegistrationMemory());
	registrations->list = list;
	registrations->context = context;
	return list;
}

/*
 * EvpgRegistrationInvalidate
 *		Makes every session forget its copies of what a table of registrations
 *		has: this one now, the others once this transaction has committed.
 */
void
EvpgRegistrationInvalidate(Oid relation)
{
	CacheInvalidateRelcacheByRelid(relation);
	CommandCounterIncrement();
}

/*
 * EvpgRegistrationDrop
 *		Runs the statement that deletes a registration by the name in argument 0,
 *		which is not NULL, and invalidates the relation; argument 1 is missing_ok.  Returns whether
 *		there was one.  writer is the function that the session is in, for
 *		EvpgEnter.
 */
bool
EvpgRegistrationDrop(FunctionCallInfo fcinfo, EvpgStatement *statement, Oid relation, int errcode_missing,
					 const char *what, const char *writer)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	bool		missing_ok = EvpgArgBool(fcinfo, 1, "missing_ok");
	Datum		value = CStringGetTextDatum(name);
	uint64		deleted;
	EvpgScope	scope;

	EvpgEnter(&scope, writer);
	deleted = EvpgStatementExecute(statement, &value, NULL);
	if (deleted > 0)
		EvpgRegistrationInvalidate(relation);
	else if (!missing_ok)
		ereport(ERROR,
				(errcode(errcode_missing),
				 errmsg("%s \"%s\" is not registered", what, name)));
	EvpgLeave(&scope);
	return deleted > 0;
}
