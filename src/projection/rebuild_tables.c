/*-------------------------------------------------------------------------
 *
 * rebuild_tables.c
 *		Copies of the tables of a projection, which its rebuild fills (rule 13).
 *
 * The handler is run under a search_path that begins with a schema of empty
 * copies.  That schema belongs to the owner of evpg, so that nobody else can put
 * anything there, and only the handler finds it first.  A statement that would
 * write to another table, or read one that there is a copy of, is an error: the
 * hooks see it whatever way the name was written.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "base/catalog.h"
#include "base/names.h"
#include "base/statement.h"
#include "base/testing.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_attrdef.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "projection/exchange_tables.h"
#include "projection/rebuild_tables.h"
#include "rewrite/rewriteHandler.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

static char *
shadow_schema(int64 build)
{
	return psprintf("evpg_rebuild_" INT64_FORMAT, build);
}

/* Runs a statement of ours as a role, with nothing in the search_path. */
static void
execute_as(Oid role, const char *statement)
{
	EvpgScope	scope;
	int			result;

	EvpgEnterAs(&scope, role, "pg_catalog, pg_temp");
	SPI_connect();
	result = SPI_execute(statement, false, 0);
	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", statement, SPI_result_code_string(result));
	SPI_finish();
	EvpgLeave(&scope);
}

static Oid
function_owner(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);
	return owner;
}

/* Locks a table and returns its OID; the name is a qualified one. */
static Oid
table_oid(const char *name, LOCKMODE mode)
{
	return RangeVarGetRelid(makeRangeVarFromNameList(stringToQualifiedNameList(name)), mode, false);
}

/* Error unless the rows of a table can be replaced by those of a copy. */
static void
check_table(Oid relid, const char *name, Oid owner)
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

/* Error if a table is not one that a projection may fill, or its copy would have the name of another one. */
static void
check_declared(Oid relid, List *others, const char *name)
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

/* Tables that a registration names, as qualified names; NULL: none. */
ArrayType *
EvpgRebuildTablesCheckDeclared(ArrayType *tables, Oid handler)
{
	Datum	   *elements;
	int			count;
	List	   *others = NIL;

	if (tables == NULL)
		return NULL;
	deconstruct_array(tables, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &count);
	for (int i = 0; i < count; i++)
	{
		char	   *name = TextDatumGetCString(elements[i]);
		Oid			relid = table_oid(name, AccessShareLock);

		check_declared(relid, others, name);
		check_table(relid, name, function_owner(handler));
		others = lappend_oid(others, relid);
		elements[i] = CStringGetTextDatum(quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
																	 get_rel_name(relid)));
	}
	return construct_array(elements, count, TEXTOID, -1, false, TYPALIGN_INT);
}

/*
 * EvpgRebuildTablesCheckUnclaimed
 *		Error if another projection has declared one of the tables: its rebuild
 *		would take the rows of this one.  Keeps other registrations that declare
 *		tables out to the end of the transaction, and sees those before.
 */
void
EvpgRebuildTablesCheckUnclaimed(const char *name, ArrayType *tables)
{
	ListCell   *cell;

	LockRelationOid(EvpgCatalogGet()->projection, ShareUpdateExclusiveLock);
	foreach(cell, EvpgNamesFromArray(tables))
	{
		Oid			relid = table_oid(lfirst(cell), AccessShareLock);
		ListCell   *other_cell;

		foreach(other_cell, EvpgProjectionList())
		{
			EvpgProjection *other = lfirst(other_cell);
			ListCell   *table;

			foreach(table, strcmp(other->name, name) == 0 ? NIL : other->tables)
				if (RangeVarGetRelid(makeRangeVarFromNameList(stringToQualifiedNameList(lfirst(table))), NoLock, true) == relid)
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_IN_USE),
						 errmsg("table %s belongs to projection \"%s\"", (char *) lfirst(cell), other->name),
						 errdetail("A rebuild replaces all rows of a table, so a table has one projection."),
						 errhint("Give each projection a table of its own.")));
		}
	}
}

/* Who may do what the handler of a projection does. */
static Oid
handler_owner(EvpgProjection *projection)
{
	return EvpgProjectionFunction(projection)->owner;
}

/* Lets an object go with the extension: nobody else would know what it is. */
static void
bind_to_extension(Oid class_id, Oid object_id)
{
	ObjectAddress object;
	ObjectAddress extension;

	ObjectAddressSet(object, class_id, object_id);
	ObjectAddressSet(extension, ExtensionRelationId, get_extension_oid("evpg", false));
	recordDependencyOn(&object, &extension, DEPENDENCY_AUTO_EXTENSION);
}

/*
 * Gives a copy the replica identity of its table, which LIKE leaves out: else a
 * publication of all tables refuses the handler's UPDATE and DELETE of a table
 * without a primary key.  An index is named otherwise in the copy, so there all
 * columns are the identity: the copy lives as long as the rebuild.
 */
static void
copy_replica_identity(Oid owner, const char *table, const char *copy)
{
	Relation	relation = table_open(table_oid(table, AccessShareLock), NoLock);
	char		identity = relation->rd_rel->relreplident;

	table_close(relation, NoLock);
	if (identity == REPLICA_IDENTITY_FULL || identity == REPLICA_IDENTITY_INDEX)
		execute_as(owner, psprintf("ALTER TABLE %s REPLICA IDENTITY FULL", copy));
}

/*
 * Takes back what ALTER DEFAULT PRIVILEGES of evpg's owner gave on a schema of
 * ours: who could create something there would be found first by the handler.
 */
static void
revoke_defaults(const char *schema)
{
	execute_as(EvpgCatalogGet()->owner,
			   psprintf("DO $$ DECLARE r pg_catalog.text; BEGIN"
						" FOR r IN SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::pg_catalog.regrole::pg_catalog.text END"
						" FROM pg_catalog.pg_namespace n, pg_catalog.aclexplode(n.nspacl) a"
						" WHERE n.nspname OPERATOR(pg_catalog.=) '%s' AND a.grantee OPERATOR(pg_catalog.<>) n.nspowner"
						" LOOP EXECUTE 'REVOKE ALL ON SCHEMA %s FROM ' OPERATOR(pg_catalog.||) r; END LOOP; END $$", schema, schema));
}

/*
 * How a foreign key is written whose tables are found first under a search_path of
 * ours: without a schema; NULL if it references none of the tables (of Oid).  One that can be
 * deferred would be checked when a batch is committed, where nobody could be told.
 */
static char *
foreign_key_definition(Oid constraint_id, List *tables)
{
	HeapTuple	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(constraint_id));
	Form_pg_constraint constraint;
	char	   *definition = NULL;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for constraint %u", constraint_id);
	constraint = (Form_pg_constraint) GETSTRUCT(tuple);
	if (!constraint->condeferrable && list_member_oid(tables, constraint->confrelid))
	{
		const char *schema = get_namespace_name(get_rel_namespace(constraint->confrelid));
		EvpgScope	scope;

		EvpgEnterAs(&scope, GetUserId(), psprintf("%s, pg_catalog, pg_temp", quote_identifier(schema)));
		definition = psprintf("ADD CONSTRAINT %s %s", quote_identifier(NameStr(constraint->conname)),
							  TextDatumGetCString(DirectFunctionCall1(pg_get_constraintdef, ObjectIdGetDatum(constraint_id))));
		EvpgLeave(&scope);
	}
	ReleaseSysCache(tuple);
	return definition;
}

/*
 * Gives the copies the foreign keys between their tables, which LIKE leaves out, so
 * that they hold when contents are exchanged.
 */
static void
copy_foreign_keys(EvpgProjection *projection, Oid owner, const char *schema)
{
	List	   *tables = NIL;
	ListCell   *cell;

	foreach(cell, projection->tables)
		tables = lappend_oid(tables, table_oid(lfirst(cell), AccessShareLock));
	foreach(cell, tables)
	{
		Relation	relation = table_open(lfirst_oid(cell), NoLock);
		List	   *keys = copyObject(RelationGetFKeyList(relation));
		ListCell   *key;

		table_close(relation, NoLock);
		foreach(key, keys)
		{
			char	   *definition = foreign_key_definition(((ForeignKeyCacheInfo *) lfirst(key))->conoid, tables);

			if (definition != NULL)
				execute_as(owner, psprintf("SET LOCAL search_path = %s, pg_catalog, pg_temp; ALTER TABLE %s.%s %s", schema, schema,
										   quote_identifier(get_rel_name(lfirst_oid(cell))), definition));
		}
	}
}

/*
 * Makes the copies, which belong to the owner of the handler; their schema does
 * not, so that nobody can put anything else there, which the handler would find
 * first, or rename it.
 */
void
EvpgRebuildTablesCreateCopies(EvpgProjection *projection, int64 build)
{
	Oid			owner = handler_owner(projection);
	Oid			evpg = EvpgCatalogGet()->owner;
	const char *role = quote_identifier(GetUserNameFromId(owner, false));
	char	   *schema = shadow_schema(build);
	Oid			namespace;
	ListCell   *cell;

	execute_as(evpg, psprintf("CREATE SCHEMA %s", schema));
	revoke_defaults(schema);
	execute_as(evpg, psprintf("GRANT USAGE, CREATE ON SCHEMA %s TO %s", schema, role));
	namespace = get_namespace_oid(schema, false);
	bind_to_extension(NamespaceRelationId, namespace);
	foreach(cell, projection->tables)
	{
		const char *name = strVal(llast(stringToQualifiedNameList(lfirst(cell))));
		Oid			table = table_oid(lfirst(cell), AccessShareLock);
		bool		unlogged = (get_rel_persistence(table) == RELPERSISTENCE_UNLOGGED);

		execute_as(owner, psprintf("CREATE %s TABLE %s.%s (LIKE %s INCLUDING ALL)", unlogged ? "UNLOGGED" : "", schema,
								   quote_identifier(name), (char *) lfirst(cell)));
		copy_replica_identity(owner, lfirst(cell), psprintf("%s.%s", schema, quote_identifier(name)));
		bind_to_extension(RelationRelationId, get_relname_relid(name, namespace));
	}
	copy_foreign_keys(projection, owner, schema);
	execute_as(evpg, psprintf("REVOKE CREATE ON SCHEMA %s FROM %s", schema, role));
}

void
EvpgRebuildTablesDropCopies(int64 build)
{
	execute_as(EvpgCatalogGet()->owner,
			   psprintf("SET LOCAL client_min_messages = warning; DROP SCHEMA IF EXISTS %s CASCADE", shadow_schema(build)));
}

/* The columns of a table that can be written. */
static char *
column_list(Oid relid)
{
	Relation	relation = table_open(relid, AccessShareLock);
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < RelationGetNumberOfAttributes(relation); i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(relation), i);

		if (attribute->attisdropped || attribute->attgenerated != '\0')
			continue;
		appendStringInfo(&list, "%s%s", list.len == 0 ? "" : ", ", quote_identifier(NameStr(attribute->attname)));
	}
	table_close(relation, AccessShareLock);
	return list.data;
}

static EvpgStatement select_rebuild_cascade = {
	.text = "SELECT (conrelid::regclass)::text"
	" FROM pg_constraint"
	" WHERE contype = 'f' AND confdeltype = ANY (ARRAY['c', 'n', 'd']::\"char\"[])"
	" AND confrelid = ANY ($1::regclass[]::oid[]) AND conrelid <> ALL ($1::regclass[]::oid[])",
	.types = {TEXTARRAYOID}
};

/*
 * Error if the contents of the tables could not be replaced without a trace:
 * rows of other tables would go along.
 */
static void
refuse_cascade(EvpgProjection *projection)
{
	Datum		value = EvpgNamesToArray(projection->tables);
	MemoryContext caller = CurrentMemoryContext;
	char	   *table = NULL;
	Datum		name;

	if (EvpgStatementRun(&select_rebuild_cascade, &value, NULL) > 0 && EvpgResultDatum(0, 1, &name))
		table = MemoryContextStrdup(caller, TextDatumGetCString(name));
	EvpgStatementDone();
	if (table != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot rebuild projection \"%s\"", projection->name),
				 errdetail("Replacing the rows of its tables would delete or change rows of table %s.", table),
				 errhint("Let the foreign key do nothing on delete, or declare that table, too.")));
}

/* Error if the tables have changed since they were registered so that their rows cannot be replaced any more. */
void
EvpgRebuildTablesCheckReplaceable(EvpgProjection *projection, LOCKMODE mode)
{
	Oid			owner = handler_owner(projection);
	ListCell   *cell;

	foreach(cell, projection->tables)
		check_table(table_oid(lfirst(cell), mode), lfirst(cell), owner);
	refuse_cascade(projection);
}

/* The copy of a table; error if it is gone. */
static Oid
copy_oid(const char *table, int64 build)
{
	List	   *names = stringToQualifiedNameList(table);

	return table_oid(quote_qualified_identifier(shadow_schema(build), strVal(llast(names))), AccessShareLock);
}

/* The tables of a projection and their copies, of Oid; if only is not NIL, those in it. */
static void
list_tables(EvpgProjection *projection, int64 build, List *only, List **tables, List **copies)
{
	ListCell   *cell;

	*tables = *copies = NIL;
	foreach(cell, projection->tables)
	{
		Oid			table = table_oid(lfirst(cell), AccessShareLock);

		if (only != NIL && !list_member_oid(only, table))
			continue;
		*tables = lappend_oid(*tables, table);
		*copies = lappend_oid(*copies, copy_oid(lfirst(cell), build));
	}
}

/* Leaves those that can be exchanged together: without one of them another may not be exchanged either. */
static void
keep_exchangeable(List **tables, List **copies)
{
	int			i = 0;

	while (i < list_length(*tables))
	{
		if (EvpgExchangeFindObstacle(list_nth_oid(*tables, i), list_nth_oid(*copies, i), *tables, *copies) == NULL)
			i++;
		else
		{
			*tables = list_delete_nth_cell(*tables, i);
			*copies = list_delete_nth_cell(*copies, i);
			i = 0;
		}
	}
}

/*
 * EvpgRebuildTablesAwaitExchange
 *		Waits for who keeps tables of a projection from being exchanged with their
 *		copies, before the caller keeps others out.  last_write is the last
 *		transaction that has filled them.  False if none can be exchanged.
 */
bool
EvpgRebuildTablesAwaitExchange(EvpgProjection *projection, int64 build, TransactionId last_write)
{
	List	   *tables;
	List	   *copies;

	list_tables(projection, build, NIL, &tables, &copies);
	keep_exchangeable(&tables, &copies);
	if (tables != NIL)
		EvpgExchangeAwaitUsers(tables, last_write);
	return tables != NIL;
}

/* Exchanges the tables that can be, and returns them (of Oid). */
static List *
exchange_tables(EvpgProjection *projection, int64 build, TransactionId last_write)
{
	List	   *tables;
	List	   *copies;
	ListCell   *table;
	ListCell   *copy;

	list_tables(projection, build, NIL, &tables, &copies);
	keep_exchangeable(&tables, &copies);
	if (tables == NIL)
		return NIL;
	forboth(table, tables, copy, copies)
	{
		LockRelationOid(lfirst_oid(table), AccessExclusiveLock);
		LockRelationOid(lfirst_oid(copy), AccessExclusiveLock);
	}

	/*
	 * As they are now that nobody can change them any more.  A logical slot
	 * that is made after we have looked for one waits for this transaction,
	 * since it has an id, before it decodes anything.
	 */
	(void) GetTopTransactionId();
	list_tables(projection, build, tables, &tables, &copies);
	keep_exchangeable(&tables, &copies);
	forboth(table, tables, copy, copies)
	{
		if (!EVPG_MUTATION("standby_unwarned"))
			EvpgExchangeCancelStandbySnapshots(lfirst_oid(table), last_write);
		EvpgExchangeSwapContents(lfirst_oid(table), lfirst_oid(copy));
	}
	return tables;
}

/* So many are copied in no time. */
#define FEW_BLOCKS 16

/* Says that the rows of a table are replaced while nobody can append, which takes the longer the more there are. */
static void
tell_replaced(const char *table, int64 build, bool exchange)
{
	const char *obstacle = "A rebuild in the foreground is one transaction.";
	Oid			table_id = table_oid(table, NoLock);
	Oid			copy_id = copy_oid(table, build);
	Relation	copy = table_open(copy_id, NoLock);
	BlockNumber size = RelationGetNumberOfBlocks(copy);

	table_close(copy, NoLock);
	if (size <= FEW_BLOCKS)
		return;
	if (exchange)
	{
		/*
		 * A foreign key to or from one of the others would have kept that one
		 * back, too.
		 */
		obstacle = EvpgExchangeFindObstacle(table_id, copy_id, list_make1_oid(table_id), list_make1_oid(copy_id));
	}
	ereport(exchange ? LOG : NOTICE,
			(errmsg("the rows of table %s are replaced while no session can append", table),
			 obstacle == NULL ? 0 : errdetail_internal("%s", obstacle),
			 exchange ? 0 : errhint("Rebuild a large table in the background.")));
}

/* Whether two columns take the same values, and have the same one if none is given. */
static bool
takes_equal_values(Relation left, Form_pg_attribute a, Relation right, Form_pg_attribute b)
{
	Node	   *left_default = build_column_default(left, a->attnum);
	Node	   *right_default = build_column_default(right, b->attnum);
	List	   *left_context = deparse_context_for(RelationGetRelationName(left), RelationGetRelid(left));
	List	   *right_context = deparse_context_for(RelationGetRelationName(right), RelationGetRelid(right));

	return strcmp(NameStr(a->attname), NameStr(b->attname)) == 0 && a->atttypid == b->atttypid &&
		a->atttypmod == b->atttypmod && a->attcollation == b->attcollation && a->attgenerated == b->attgenerated &&
		(left_default == NULL) == (right_default == NULL) &&
		(left_default == NULL || strcmp(deparse_expression(left_default, left_context, false, false),
										deparse_expression(right_default, right_context, false, false)) == 0);
}

/*
 * Error if a table has got other columns or defaults since its copy was made:
 * what the copy holds is not what the handler would have written to the table.
 * Constraints, indexes and triggers need not be equal: a table that has others is
 * not exchanged (exchange_tables.c), and keeps them when its rows are replaced.
 */
static void
refuse_changed(const char *name, Oid table_id, Oid copy_id)
{
	Relation	table = table_open(table_id, NoLock);
	Relation	copy = table_open(copy_id, NoLock);
	TupleDesc	columns = RelationGetDescr(table);
	int			count = 0;
	bool		equal = true;

	for (int i = 0; i < columns->natts && equal; i++)
	{
		Form_pg_attribute column = TupleDescAttr(columns, i);

		/* LIKE leaves dropped columns out. */
		if (column->attisdropped)
			continue;
		equal = count < RelationGetDescr(copy)->natts &&
			takes_equal_values(table, column, copy, TupleDescAttr(RelationGetDescr(copy), count));
		count++;
	}
	equal = equal && count == RelationGetDescr(copy)->natts;
	table_close(table, NoLock);
	table_close(copy, NoLock);
	if (!equal)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("columns or defaults of table %s have changed since its rebuild began", name),
				 errhint("Undo the change, or begin the rebuild again: evpg_cancel_rebuild(), then evpg_rebuild_projection().")));
}

/*
 * EvpgRebuildTablesReplaceContents
 *		Puts the contents of the copies in place of those of the tables.  Where they
 *		can be exchanged, and the caller has waited for old snapshots, that takes no
 *		longer for many rows than for few.  Of the others first all rows go, in
 *		reverse, for foreign keys.
 */
void
EvpgRebuildTablesReplaceContents(EvpgProjection *projection, int64 build, bool exchange, TransactionId last_write)
{
	Oid			owner = handler_owner(projection);
	List	   *exchanged;
	List	   *tables = NIL;
	ListCell   *cell;

	EvpgRebuildTablesCheckReplaceable(projection, AccessShareLock);
	exchanged = exchange ? exchange_tables(projection, build, last_write) : NIL;
	foreach(cell, projection->tables)
	{
		if (list_member_oid(exchanged, table_oid(lfirst(cell), NoLock)))
			continue;
		tables = lappend(tables, lfirst(cell));
		if (projection->mode == EVPG_MODE_INLINE)
			tell_replaced(lfirst(cell), build, exchange);
	}
	foreach(cell, tables)
		(void) table_oid(lfirst(cell), RowExclusiveLock);
	/* Now that all are locked; an error takes back what was exchanged. */
	foreach(cell, projection->tables)
		refuse_changed(lfirst(cell), table_oid(lfirst(cell), NoLock), copy_oid(lfirst(cell), build));
	for (int i = list_length(tables) - 1; i >= 0; i--)
		execute_as(owner, psprintf("DELETE FROM ONLY %s", (char *) list_nth(tables, i)));
	for (int i = 0; i < list_length(tables); i++)
	{
		char	   *table = list_nth(tables, i);
		List	   *names = stringToQualifiedNameList(table);
		char	   *columns = column_list(table_oid(table, NoLock));

		execute_as(owner, psprintf("INSERT INTO %s (%s) SELECT %s FROM %s.%s", table, columns, columns,
								   shadow_schema(build), quote_identifier(strVal(llast(names)))));
	}
}

/* While a handler fills copies: their schema, and the tables they are copies of. */
static Oid	shadow = InvalidOid;
static List *originals = NIL;	/* of Oid, as long as shadow is set */
static ExecutorCheckPerms_hook_type next_check_perms = NULL;
static object_access_hook_type next_access = NULL;

/* Error unless a handler that fills copies may work on a relation. */
static void
require_copy(Oid relid)
{
	Oid			schema = get_rel_namespace(relid);

	if (schema != shadow && !isTempOrTempToastNamespace(schema))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the handler works on table \"%s\" itself, where the rebuild needs it to work on a copy",
						get_rel_name(relid)),
				 errhint("Declare the table in \"tables\", and let the handler name it without a schema.")));
}

/* It may write to nothing but copies, and not read the originals. */
static bool
check_perms(List *tables, bool raise)
{
	ListCell   *cell;

	if (OidIsValid(shadow))
		foreach(cell, tables)
	{
		RangeTblEntry *entry = lfirst(cell);

		if (entry->rtekind == RTE_RELATION &&
			((entry->requiredPerms & (ACL_INSERT | ACL_UPDATE | ACL_DELETE)) != 0 ||
			 list_member_oid(originals, entry->relid)))
			require_copy(entry->relid);
	}
	return next_check_perms == NULL || next_check_perms(tables, raise);
}

/* The table of a constraint that was made right now; InvalidOid: none. */
static Oid
constraint_table(Oid constraint)
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

/* The same for what is no query: TRUNCATE, DROP, ALTER; a new column is created, in a relation that is there. */
static void
check_access(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *arg)
{
	if (next_access != NULL)
		next_access(access, class_id, object_id, sub_id, arg);
	if (OidIsValid(shadow) && class_id == RelationRelationId &&
		(access == OAT_TRUNCATE || access == OAT_DROP || access == OAT_POST_ALTER || (access == OAT_POST_CREATE && sub_id != 0)))
		require_copy(object_id);

	/* Of the originals alone: a temporary table may have what it wants. */
	if (OidIsValid(shadow) && access == OAT_POST_CREATE && class_id == AttrDefaultRelationId && list_member_oid(originals, object_id))
		require_copy(object_id);
	if (OidIsValid(shadow) && access == OAT_POST_CREATE && class_id == ConstraintRelationId)
	{
		Oid			table = constraint_table(object_id);

		if (list_member_oid(originals, table))
			require_copy(table);
	}
}

/* Called once, from _PG_init. */
void
EvpgRebuildTablesInit(void)
{
	next_check_perms = ExecutorCheckPerms_hook;
	ExecutorCheckPerms_hook = check_perms;
	next_access = object_access_hook;
	object_access_hook = check_access;
}

/*
 * The projection as it is run over copies of its tables, in
 * CurrentMemoryContext.  Only the handler finds them first: a key function may
 * belong to somebody else.
 */
static EvpgProjection *
copy_for_build(EvpgProjection *projection, int64 build)
{
	EvpgProjection *copy = palloc(sizeof(EvpgProjection));

	*copy = *projection;
	copy->context = CurrentMemoryContext;
	copy->function = EvpgFunctionResolve(projection->handler_signature, EVPG_ROLE_PROJECTION_HANDLER, projection->registered_by,
										 psprintf("%s, %s", shadow_schema(build), projection->search_path));
	copy->key_function = NULL;
	return copy;
}

/* From here on the handler of a projection may not work on its tables, but on the copies. */
static void
begin_shadow(EvpgProjection *projection, int64 build)
{
	ListCell   *cell;

	foreach(cell, projection->tables)
		originals = lappend_oid(originals, table_oid(lfirst(cell), AccessShareLock));
	shadow = get_namespace_oid(shadow_schema(build), false);
}

/* Runs a batch; into copies of its tables if the projection has declared them. */
void
EvpgRebuildTablesApplyBatch(EvpgBatch *batch)
{
	if (batch->projection->tables == NIL)
	{
		EvpgBatchRun(batch);
		return;
	}
	PG_TRY();
	{
		begin_shadow(batch->projection, batch->build);
		batch->projection = copy_for_build(batch->projection, batch->build);
		EvpgBatchRun(batch);
	}
	PG_FINALLY();
	{
		shadow = InvalidOid;
		originals = NIL;
	}
	PG_END_TRY();
}
