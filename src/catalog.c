/*-------------------------------------------------------------------------
 *
 * catalog.c
 *		Looks up evpg's own relations and types, and switches to their owner.
 *
 * The answers are kept for the session in EvpgCatalogContext and looked up
 * again after an invalidation, so DROP and CREATE EXTENSION in one session
 * work, and so does a change of a table, which is refused (shape.c).  Callbacks only flip flags: they run at any time, also while a command
 * holds pointers, so what a command may still hold is freed at the end of the
 * transaction.
 *
 * The registry (registry.c) is told of changes by an invalidation of the
 * relations evpg.aggregate_type, evpg.interceptor, evpg.projection and
 * evpg.translator, which registration functions send, and of functions and
 * roles by the caches of pg_proc, pg_authid and pg_auth_members.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/parallel.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "shape.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#define OWN_SEARCH_PATH "pg_catalog, pg_temp"

/* Tables that evpg reads or writes as their owner, so that row security on them has no effect. */
static const char *const tables[] = {
	"aggregate_type", "command_record", "consumer", "dead_letter", "event_log", "inbox", "interceptor", "parked_event",
	"projection", "projection_state", "saga", "saga_event", "saga_instance", "saga_total", "snapshot", "stream", "timer",
	"translator",
};

/* What consumers read and then write, in the order in which it is locked. */
static const char *const work_tables[EVPG_WORK_TABLES] = {
	"consumer", "dead_letter", "parked_event", "saga_event", "saga_instance", "saga_total", "timer"
};

static MemoryContext EvpgCatalogContext = NULL;
static EvpgCatalog catalog;
static Oid	shaped[EVPG_SHAPE_COUNT];	/* relations whose columns are known */
static Oid	secured[lengthof(tables)];	/* the tables of evpg, in that order */
static bool catalog_valid = false;
static uint64 catalog_changes = 0;	/* seen by the callbacks */
static uint64 registry_generation = 1;
static uint64 identity = 1;
static uint64 clock_generation = 1;
static uint64 call_number = 0;	/* of the outermost call that is under way, or
								 * was the last */
static int	outermost_level = 0;	/* of settings, of that call; 0: none is
									 * under way */

/* Whether C code knows the columns of a relation. */
static bool
is_shaped(Oid relid)
{
	for (int shape = 0; shape < EVPG_SHAPE_COUNT; shape++)
		if (relid == shaped[shape])
			return true;
	return false;
}

static bool
is_secured(Oid relid)
{
	for (int table = 0; table < (int) lengthof(tables); table++)
		if (relid == secured[table])
			return true;
	return false;
}

static void
relation_changed(Datum arg, Oid relid)
{
	if (relid == InvalidOid)
	{
		catalog_valid = false;
		catalog_changes++;
		registry_generation++;
		clock_generation++;
	}
	else if (relid == catalog.aggregate_type || relid == catalog.interceptor ||
			 relid == catalog.projection || relid == catalog.saga || relid == catalog.translator)
		registry_generation++;
	else if (relid == catalog.clock)
		clock_generation++;
	if (relid == catalog.fence || relid == catalog.event_position || is_shaped(relid) ||
		is_secured(relid))
	{
		catalog_valid = false;
		catalog_changes++;
	}
}

static void
function_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	registry_generation++;
}

/* Whether who registered a function may still do so (function.c). */
static void
role_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	registry_generation++;
}

static void
namespace_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	catalog_valid = false;
	catalog_changes++;
}

/* Called once, from _PG_init. */
void
EvpgCatalogInit(void)
{
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, function_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHOID, role_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, role_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, namespace_changed, (Datum) 0);
}

static Oid
lookup_relation(Oid schema, const char *name)
{
	Oid			relid = get_relname_relid(name, schema);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("relation \"evpg.%s\" does not exist", name),
				 errhint("The extension evpg is damaged or being dropped.")));
	return relid;
}

static Oid
access_method(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			result;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	result = ((Form_pg_class) GETSTRUCT(tuple))->relam;
	ReleaseSysCache(tuple);
	return result;
}

/*
 * An index of an access method on just these columns (the second may be NULL)
 * that is complete and, if asked for, unique; else InvalidOid.
 */
static Oid
find_index(Oid schema, const char *name, Oid table, Oid method, const char *first, const char *second, bool unique)
{
	Oid			index = get_relname_relid(name, schema);
	HeapTuple	tuple = OidIsValid(index) ? SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index)) : NULL;
	Form_pg_index form;
	bool		usable;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	form = (Form_pg_index) GETSTRUCT(tuple);
	usable = form->indrelid == table && form->indisvalid && form->indisready && form->indislive &&
		(form->indisunique || !unique) && form->indnkeyatts == (second == NULL ? 1 : 2) &&
		form->indkey.values[0] == get_attnum(table, first) &&
		(second == NULL || form->indkey.values[1] == get_attnum(table, second)) &&
		heap_attisnull(tuple, Anum_pg_index_indpred, NULL) && access_method(index) == method;
	ReleaseSysCache(tuple);
	return usable ? index : InvalidOid;
}

/* A unique index that C code scans; error if there is none of this name and these columns. */
static Oid
lookup_index(Oid schema, const char *name, Oid table, const char *first, const char *second)
{
	Oid			index = find_index(schema, name, table, BTREE_AM_OID, first, second, true);

	if (!OidIsValid(index))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("unique index \"evpg.%s\" is missing or has been changed", name),
				 errhint("The extension evpg is damaged or being dropped.")));
	return index;
}

/*
 * Error if somebody relies on row security of evpg's tables: evpg's functions
 * and views run as the owner of the tables and would show all rows all the same,
 * FORCE ROW LEVEL SECURITY or not.
 */
static void
refuse_row_security(Oid schema)
{
	for (int table = 0; table < (int) lengthof(tables); table++)
	{
		HeapTuple	tuple;
		bool		enabled;

		secured[table] = lookup_relation(schema, tables[table]);
		tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(secured[table]));
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for relation %u", secured[table]);
		enabled = ((Form_pg_class) GETSTRUCT(tuple))->relrowsecurity;
		ReleaseSysCache(tuple);
		if (enabled)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("row security of table evpg.%s would have no effect on the functions of evpg", tables[table]),
					 errdetail("They work as the owner of the tables, and show and write all rows."),
					 errhint("ALTER TABLE evpg.%s DISABLE ROW LEVEL SECURITY, and keep tenants apart as operations.md says.",
							 tables[table])));
	}
}

/*
 * EvpgCatalogGet
 *		The catalog, valid to the end of the transaction even if it is then
 *		invalidated.  Error if the extension is not installed here.
 */
const EvpgCatalog *
EvpgCatalogGet(void)
{
	EvpgCatalog new = {0};
	Oid			schema;
	HeapTuple	tuple;
	uint64		changes = catalog_changes;

	if (likely(catalog_valid))
		return &catalog;

	schema = get_namespace_oid("evpg", true);
	if (!OidIsValid(schema))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension \"evpg\" is not installed in this database"),
				 errhint("Run CREATE EXTENSION evpg.")));

	refuse_row_security(schema);
	if (EvpgCatalogContext == NULL)
		EvpgCatalogContext = AllocSetContextCreate(CacheMemoryContext, "EvpgCatalog",
												   ALLOCSET_SMALL_SIZES);
	new.aggregate_type = lookup_relation(schema, "aggregate_type");
	new.interceptor = lookup_relation(schema, "interceptor");
	new.projection = lookup_relation(schema, "projection");
	new.saga = lookup_relation(schema, "saga");
	new.translator = lookup_relation(schema, "translator");
	for (int i = 0; i < EVPG_WORK_TABLES; i++)
		new.work_tables[i] = lookup_relation(schema, work_tables[i]);
	new.command_record = lookup_relation(schema, "command_record");
	new.snapshot = lookup_relation(schema, "snapshot");
	for (int shape = 0; shape < EVPG_SHAPE_COUNT; shape++)
		shaped[shape] = EvpgShapeCheck(schema, shape);
	new.projection_state = shaped[EVPG_SHAPE_PROJECTION_STATE];
	new.projection_state_key_index = lookup_index(schema, "projection_state_pkey", new.projection_state, "build", "key");
	new.stream = shaped[EVPG_SHAPE_STREAM];
	new.stream_id_index = lookup_index(schema, "stream_pkey", new.stream, "stream_id", NULL);
	new.stream_key_index = lookup_index(schema, "stream_aggregate_type_aggregate_id_key", new.stream,
										"aggregate_type", "aggregate_id");
	new.event_log = shaped[EVPG_SHAPE_EVENT_LOG];
	new.event_log_position_index = lookup_index(schema, "event_log_pkey", new.event_log, "position", NULL);
	new.event_log_tags_index = find_index(schema, "event_log_tags", new.event_log, GIN_AM_OID, "tags", NULL, false);
	new.event_log_type_index = find_index(schema, "event_log_event_type", new.event_log, BTREE_AM_OID,
										  "type", "position", false);
	new.event_log_stream_index = lookup_index(schema, "event_log_stream_id_version_key", new.event_log,
											  "stream_id", "version");
	new.clock = shaped[EVPG_SHAPE_CLOCK];
	new.event_position = lookup_relation(schema, "event_position");
	new.fence = lookup_relation(schema, "fence");
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(new.event_log));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", new.event_log);
	new.owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);

	/*
	 * Descriptors may be in use, and a change that the check lets pass leaves
	 * them right, so they are made once.
	 */
	if (new.event_log == catalog.event_log)
	{
		new.event = catalog.event;
		new.new_event = catalog.new_event;
		new.command = catalog.command;
		new.outcome = catalog.outcome;
		new.projected = catalog.projected;
		new.reaction = catalog.reaction;
		new.rejection = catalog.rejection;
		new.fired_timer = catalog.fired_timer;
		new.stream_row = catalog.stream_row;
		new.projection_state_row = catalog.projection_state_row;
	}
	else
	{
		MemoryContext old = MemoryContextSwitchTo(EvpgCatalogContext);

		new.event = EvpgShapeRow(shaped[EVPG_SHAPE_EVENT], EVPG_SHAPE_EVENT);
		new.new_event = EvpgShapeRow(shaped[EVPG_SHAPE_NEW_EVENT], EVPG_SHAPE_NEW_EVENT);
		new.command = EvpgShapeRow(shaped[EVPG_SHAPE_COMMAND], EVPG_SHAPE_COMMAND);
		new.outcome = EvpgShapeRow(shaped[EVPG_SHAPE_OUTCOME], EVPG_SHAPE_OUTCOME);
		new.projected = EvpgShapeRow(shaped[EVPG_SHAPE_PROJECTED], EVPG_SHAPE_PROJECTED);
		new.reaction = EvpgShapeRow(shaped[EVPG_SHAPE_REACTION], EVPG_SHAPE_REACTION);
		new.rejection = EvpgShapeRow(shaped[EVPG_SHAPE_REJECTION], EVPG_SHAPE_REJECTION);
		new.fired_timer = EvpgShapeRow(shaped[EVPG_SHAPE_FIRED_TIMER], EVPG_SHAPE_FIRED_TIMER);
		new.stream_row = EvpgShapeRow(shaped[EVPG_SHAPE_STREAM], EVPG_SHAPE_STREAM);
		new.projection_state_row = EvpgShapeRow(shaped[EVPG_SHAPE_PROJECTION_STATE], EVPG_SHAPE_PROJECTION_STATE);
		MemoryContextSwitchTo(old);
		identity++;
		registry_generation++;
		clock_generation++;
	}
	catalog = new;
	catalog_valid = (changes == catalog_changes);
	return &catalog;
}

/*
 * EvpgCatalogOpen
 *		Opens and locks one of evpg's tables, given by where its oid stands in the
 *		catalog.  What the catalog says of it afterwards, shape and indexes too, is
 *		right for as long as the lock is held: REINDEX CONCURRENTLY drops an index
 *		only when nobody holds a lock on the table who could know it.
 */
Relation
EvpgCatalogOpen(const Oid *table, LOCKMODE mode)
{
	Relation	relation = table_open(*table, mode);

	(void) EvpgCatalogGet();
	return relation;
}

/*
 * EvpgCatalogLockForAppend
 *		Locks the tables that a command writes before it locks or reads anything
 *		else; evpg.stream comes with the row of the stream.  A lock on a table that
 *		is strengthened later, or comes after that of a row, is a deadlock with
 *		REINDEX.
 */
void
EvpgCatalogLockForAppend(bool command_id)
{
	LockRelationOid(EvpgCatalogGet()->event_log, RowExclusiveLock);
	if (command_id)
		LockRelationOid(EvpgCatalogGet()->command_record, RowExclusiveLock);
}

/*
 * EvpgCatalogLockForWork
 *		The same for who works for a consumer: these tables are read before they
 *		are written.
 */
void
EvpgCatalogLockForWork(void)
{
	for (int i = 0; i < EVPG_WORK_TABLES; i++)
		LockRelationOid(EvpgCatalogGet()->work_tables[i], RowExclusiveLock);
}

/* The same without waiting; false if somebody is in the way. */
bool
EvpgCatalogTryLockForWork(void)
{
	for (int i = 0; i < EVPG_WORK_TABLES; i++)
		if (!ConditionalLockRelationOid(EvpgCatalogGet()->work_tables[i], RowExclusiveLock))
			return false;
	return true;
}

/* Changes whenever a registration or a function may have changed. */
uint64
EvpgCatalogRegistryGeneration(void)
{
	return registry_generation;
}

/* Changes whenever the clock may have been moved. */
uint64
EvpgCatalogClockGeneration(void)
{
	return clock_generation;
}

/* Changes when the tables are other ones than before (DROP and CREATE EXTENSION). */
uint64
EvpgCatalogIdentity(void)
{
	return identity;
}

/*
 * EvpgEnter
 *		Begins a call from SQL: runs as the owner of the tables, under a fixed
 *		search_path.  One path for all of evpg's own statements, because a saved
 *		plan is analysed anew whenever the path differs from the last time.
 *
 * writer names the function if it writes, else NULL.  An ERROR undoes the
 * switch with the (sub)transaction; otherwise call EvpgLeave.
 */
void
EvpgEnter(EvpgScope *scope, const char *writer)
{
	if (writer != NULL)
	{
		PreventCommandIfReadOnly(writer);
		PreventCommandIfParallelMode(writer);
	}
	/* What another backend registered before this call must be seen. */
	AcceptInvalidationMessages();
	EvpgEnterAs(scope, EvpgCatalogGet()->owner, OWN_SEARCH_PATH);
}

/*
 * EvpgEnterAs
 *		Switches to a user and a search_path, for evpg's own statements or a
 *		user's function.
 *
 * The flags are added, never replaced: without them a deferred trigger of that
 * user would later run as the caller.
 */
void
EvpgEnterAs(EvpgScope *scope, Oid userid, const char *search_path)
{
	GetUserIdAndSecContext(&scope->userid, &scope->sec_context);
	SetUserIdAndSecContext(userid, scope->sec_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	scope->guc_level = NewGUCNestLevel();

	/*
	 * A call that an error ended has given its level back, and all levels
	 * inside a call are higher.
	 */
	if (outermost_level == 0 || scope->guc_level <= outermost_level)
	{
		outermost_level = scope->guc_level;
		call_number++;
	}
	set_config_option("search_path", search_path, PGC_USERSET, PGC_S_SESSION,
					  GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Ends what EvpgEnter or EvpgEnterAs began.  Settings that user code made in
 * between go too: else a function of one role could change the search_path of
 * another.
 */
void
EvpgLeave(const EvpgScope *scope)
{
	AtEOXact_GUC(false, scope->guc_level);
	SetUserIdAndSecContext(scope->userid, scope->sec_context);
	if (scope->guc_level == outermost_level)
		outermost_level = 0;
}

/*
 * EvpgCatalogCall
 *		Another number in each outermost call: what a call with a lower one has
 *		used, nobody uses any more.
 */
uint64
EvpgCatalogCall(void)
{
	return call_number;
}
