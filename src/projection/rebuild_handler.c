/*-------------------------------------------------------------------------
 *
 * rebuild_handler.c
 *		Runs the handler of a projection over copies of its tables, and keeps it from
 *		working on others.
 *
 * The handler finds the copies first in its search_path.  A statement that would
 * write to another table, or read a table that has a copy, is an error: the hooks
 * see it whatever way the name was written.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "base/compat.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_attrdef.h"
#include "catalog/pg_constraint.h"
#include "executor/executor.h"
#include "projection/declared_tables.h"
#include "projection/rebuild_handler.h"
#include "projection/rebuild_tables.h"
#include "usercode/guard.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* While a handler fills copies: their schema, and the tables they are copies of. */
static Oid	schema_of_copies = InvalidOid;
static List *originals = NIL;	/* of Oid, as long as schema_of_copies is set */
static ExecutorCheckPerms_hook_type next_check_permissions = NULL;
static object_access_hook_type next_object_access = NULL;

/* Raises an error unless a handler that fills copies may work on a relation. */
static void
require_copy_of_table(Oid relid)
{
	Oid			schema = get_rel_namespace(relid);

	if (schema != schema_of_copies && !isTempOrTempToastNamespace(schema))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the handler works on table \"%s\" itself, where the rebuild needs it to work on a copy",
						get_rel_name(relid)),
				 errhint("Declare the table in \"tables\", and let the handler name it without a schema.")));
}

/* Raises an error if the handler writes to a table that is no copy, or reads one that has a copy; a hook for queries. */
static bool
check_handler_permissions(EVPG_CHECK_PERMS_ARGUMENTS(List *tables, List *permissions, bool raise))
{
	ListCell   *cell;

	if (OidIsValid(schema_of_copies))
		foreach(cell, tables)
	{
		RangeTblEntry *entry = lfirst(cell);

		if (entry->rtekind == RTE_RELATION &&
			((EvpgRequiredPerms(permissions, entry) & (ACL_INSERT | ACL_UPDATE | ACL_DELETE)) != 0 ||
			 list_member_oid(originals, entry->relid)))
			require_copy_of_table(entry->relid);
	}
	return next_check_permissions == NULL || next_check_permissions(EVPG_CHECK_PERMS_ARGUMENTS(tables, permissions, raise));
}

/* Returns the table of a constraint that this command has made; InvalidOid if it has none. */
static Oid
find_constraint_table(Oid constraint)
{
	Relation	catalog = table_open(ConstraintRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			table = InvalidOid;

	ScanKeyInit(&key, Anum_pg_constraint_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(constraint));
	scan = systable_beginscan(catalog, ConstraintOidIndexId, true, SnapshotSelf, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		table = ((Form_pg_constraint) GETSTRUCT(tuple))->conrelid;
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return table;
}

/*
 * Raises an error if the handler does the same by a command that is no query,
 * such as TRUNCATE, DROP or ALTER; a hook for these.  A new column counts as
 * created, in a table that exists.  Defaults and constraints are refused for
 * the originals alone: a temporary table may have them.
 */
static void
check_handler_access(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *arg)
{
	if (next_object_access != NULL)
		next_object_access(access, class_id, object_id, sub_id, arg);
	if (!OidIsValid(schema_of_copies))
		return;
	if (class_id == RelationRelationId &&
		(access == OAT_TRUNCATE || access == OAT_DROP || access == OAT_POST_ALTER ||
		 (access == OAT_POST_CREATE && sub_id != 0)))
		require_copy_of_table(object_id);
	if (access == OAT_POST_CREATE && class_id == AttrDefaultRelationId && list_member_oid(originals, object_id))
		require_copy_of_table(object_id);
	if (access == OAT_POST_CREATE && class_id == ConstraintRelationId)
	{
		Oid			table = find_constraint_table(object_id);

		if (list_member_oid(originals, table))
			require_copy_of_table(table);
	}
}

/* Installs the hooks; called once, from _PG_init. */
void
EvpgRebuildHandlerInit(void)
{
	next_check_permissions = ExecutorCheckPerms_hook;
	ExecutorCheckPerms_hook = check_handler_permissions;
	next_object_access = object_access_hook;
	object_access_hook = check_handler_access;
	if (next_object_access == NULL)
		EvpgOwnAccessHook = check_handler_access;
}

/*
 * Makes a copy of a projection, in CurrentMemoryContext, whose handler finds the
 * copies of the tables first.  The key function does not: it may belong to another
 * role.
 */
static EvpgProjection *
make_projection_over_copies(EvpgProjection *projection, int64 build)
{
	EvpgProjection *copy = palloc(sizeof(EvpgProjection));

	*copy = *projection;
	copy->context = CurrentMemoryContext;
	copy->function = EvpgFunctionResolve(projection->handler_signature, EVPG_ROLE_PROJECTION_HANDLER,
										 projection->registered_by,
										 psprintf("%s, %s", EvpgRebuildTablesSchema(build), projection->search_path));
	copy->key_function = NULL;
	return copy;
}

/* Keeps the handler of a projection from its tables; the caller resets schema_of_copies and originals. */
static void
begin_filling_copies(EvpgProjection *projection, int64 build)
{
	ListCell   *cell;

	foreach(cell, projection->tables)
		originals = lappend_oid(originals, EvpgDeclaredTableOid(lfirst(cell), AccessShareLock));
	schema_of_copies = get_namespace_oid(EvpgRebuildTablesSchema(build), false);
}

/*
 * EvpgRebuildHandlerApplyBatch
 *		Applies a batch of a rebuild: to copies of its tables if the projection has
 *		declared them.  The caller is as for EvpgBatchApply.
 */
void
EvpgRebuildHandlerApplyBatch(EvpgBatch *batch)
{
	if (batch->projection->tables == NIL)
	{
		EvpgBatchApply(batch);
		return;
	}
	PG_TRY();
	{
		begin_filling_copies(batch->projection, batch->build);
		batch->projection = make_projection_over_copies(batch->projection, batch->build);
		EvpgBatchApply(batch);
	}
	PG_FINALLY();
	{
		schema_of_copies = InvalidOid;
		originals = NIL;
	}
	PG_END_TRY();
}
