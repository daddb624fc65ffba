/*-------------------------------------------------------------------------
 *
 * declared_tables.c
 *		The tables that a projection with a handler declares: a rebuild fills copies of
 *		them and replaces their rows, so they are checked when they are declared, and
 *		again when a rebuild begins and ends.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/transam.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/names.h"
#include "base/statement.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "projection/declared_tables.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/syscache.h"

static Oid
get_function_owner(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * EvpgDeclaredTablesOwner
 *		Returns the role that owns the handler of a projection, and so the tables.
 */
Oid
EvpgDeclaredTablesOwner(EvpgProjection *projection)
{
	return EvpgProjectionFunction(projection)->owner;
}

/*
 * EvpgDeclaredTableOid
 *		Locks a table until the end of the transaction and returns its OID.  The name is
 *		qualified.  Error if there is no such table.
 */
Oid
EvpgDeclaredTableOid(const char *name, LOCKMODE mode)
{
	return RangeVarGetRelid(makeRangeVarFromNameList(stringToQualifiedNameList(name, NULL)), mode, false);
}

/* Raises an error unless the rows of a table can be replaced by those of a copy. */
static void
check_replaceable_table(Oid relid, const char *name, Oid owner)
{
	Relation	relation = table_open(relid, AccessShareLock);

	if (relation->rd_rel->relkind != RELKIND_RELATION || relation->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" cannot be a table of a projection", name),
				 errdetail("It must be an ordinary table.")));
	if (relation->rd_rel->relowner != owner)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("table \"%s\" does not belong to the owner of the handler", name)));
	if (find_inheritance_children(relid, NoLock) != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table \"%s\" has children, so a projection cannot replace its rows", name)));
	if (relation->rd_rel->relispartition || has_superclass(relid))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table \"%s\" is part of another one, so a projection cannot replace its rows", name),
				 errdetail("It is a partition, or inherits.")));
	if (relation->rd_rel->relrowsecurity && relation->rd_rel->relforcerowsecurity)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table \"%s\" has row security for its owner, so a projection cannot replace its rows", name),
				 errhint("ALTER TABLE %s NO FORCE ROW LEVEL SECURITY.", name)));
	for (int i = 0; i < RelationGetNumberOfAttributes(relation); i++)
		if (TupleDescAttr(RelationGetDescr(relation), i)->attidentity != '\0')
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("table \"%s\" has an identity column, so a projection cannot fill a copy of it", name),
					 errhint("Use keys that follow from the events.")));
	table_close(relation, AccessShareLock);
}

/* Raises an error if a projection may not fill a table, or if its copy would have the name of another copy. */
static void
check_declarable_table(Oid relid, List *others, const char *name)
{
	ListCell   *cell;

	if (relid < FirstNormalObjectId || get_rel_namespace(relid) == get_rel_namespace(EvpgCatalogGet()->event_log))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" cannot be a table of a projection", name),
				 errdetail("It is a table of the system, or of evpg.")));
	foreach(cell, others)
		if (strcmp(get_rel_name(lfirst_oid(cell)), get_rel_name(relid)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("two tables of a projection have the name \"%s\"", get_rel_name(relid)),
				 errhint("Name each table once; those of other schemas need other names.")));
}

/*
 * EvpgDeclaredTablesQualify
 *		Checks the tables that a registration declares, and returns their qualified
 *		names, in CurrentMemoryContext; NULL if there are none.  Locks the tables with
 *		AccessShareLock.  handler is the function that fills them.
 */
ArrayType *
EvpgDeclaredTablesQualify(ArrayType *tables, Oid handler)
{
	Datum	   *elements;
	int			count;
	List	   *others = NIL;
	int			nest_level;

	if (tables == NULL)
		return NULL;
	nest_level = EvpgNamesBeginStored();
	deconstruct_array(tables, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &count);
	for (int i = 0; i < count; i++)
	{
		char	   *name = TextDatumGetCString(elements[i]);
		Oid			relid = EvpgDeclaredTableOid(name, AccessShareLock);

		check_declarable_table(relid, others, name);
		check_replaceable_table(relid, name, get_function_owner(handler));
		others = lappend_oid(others, relid);
		elements[i] = CStringGetTextDatum(quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
																	 get_rel_name(relid)));
	}
	EvpgNamesEndStored(nest_level);
	return construct_array(elements, count, TEXTOID, -1, false, TYPALIGN_INT);
}

/*
 * EvpgDeclaredTablesCheckUnclaimed
 *		Raises an error if another projection has declared one of the tables:
 *		its rebuild would take the rows of this one.  Locks evpg.projection
 *		until the end of the transaction, so that other registrations that
 *		declare tables wait, and those before are seen.
 */
void
EvpgDeclaredTablesCheckUnclaimed(const char *name, ArrayType *tables)
{
	ListCell   *cell;

	LockRelationOid(EvpgCatalogGet()->projection, ShareUpdateExclusiveLock);
	foreach(cell, EvpgNamesFromArray(tables))
	{
		Oid			relid = EvpgDeclaredTableOid(lfirst(cell), AccessShareLock);
		ListCell   *other_cell;

		foreach(other_cell, EvpgProjectionList())
		{
			EvpgProjection *other = lfirst(other_cell);
			ListCell   *table;

			foreach(table, strcmp(other->name, name) == 0 ? NIL : other->tables)
				if (RangeVarGetRelid(makeRangeVarFromNameList(stringToQualifiedNameList(lfirst(table), NULL)),
									 NoLock, true) == relid)
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_IN_USE),
						 errmsg("table %s belongs to projection \"%s\"", (char *) lfirst(cell), other->name),
						 errdetail("A rebuild replaces all rows of a table, so a table has one projection."),
						 errhint("Give each projection a table of its own.")));
		}
	}
}

static EvpgStatement select_cascading_table = {
	.text = "SELECT (conrelid::regclass)::text"
	" FROM pg_constraint"
	" WHERE contype = 'f' AND confdeltype = ANY (ARRAY['c', 'n', 'd']::\"char\"[])"
	" AND confrelid = ANY ($1::regclass[]::oid[]) AND conrelid <> ALL ($1::regclass[]::oid[])",
	.types = {TEXTARRAYOID}
};

/* Raises an error if replacing the rows of the tables would delete or change rows of another table. */
static void
refuse_cascading_keys(EvpgProjection *projection)
{
	Datum		value = EvpgNamesToArray(projection->tables);
	MemoryContext caller = CurrentMemoryContext;
	char	   *table = NULL;

	if (EvpgStatementRun(&select_cascading_table, &value, NULL) > 0)
		table = MemoryContextStrdup(caller, EvpgResultText(0, 1));
	EvpgStatementDone();
	if (table != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot rebuild projection \"%s\"", projection->name),
				 errdetail("Replacing the rows of its tables would delete or change rows of table %s.", table),
				 errhint("Let the foreign key do nothing on delete, or declare that table, too.")));
}

/*
 * EvpgDeclaredTablesCheckReplaceable
 *		Raises an error if the tables have changed since they were declared, so
 *		that their rows cannot be replaced any more.  Locks them in a mode
 *		until the end of the transaction.
 */
void
EvpgDeclaredTablesCheckReplaceable(EvpgProjection *projection, LOCKMODE mode)
{
	Oid			owner = EvpgDeclaredTablesOwner(projection);
	ListCell   *cell;

	foreach(cell, projection->tables)
		check_replaceable_table(EvpgDeclaredTableOid(lfirst(cell), mode), lfirst(cell), owner);
	refuse_cascading_keys(projection);
}
