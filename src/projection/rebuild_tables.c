/*-------------------------------------------------------------------------
 *
 * rebuild_tables.c
 *		Copies of the tables of a projection, which its rebuild fills (rule 13).
 *
 * The copies are in a schema of their own, which the handler finds first
 * (rebuild_handler.c).  It belongs to the owner of evpg, so that no other role can
 * put anything there.  When the rebuild ends, the contents of the tables are
 * exchanged with those of the copies (exchange_tables.c), or, if that is not
 * possible, their rows are replaced.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/testing.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "projection/declared_tables.h"
#include "projection/exchange_tables.h"
#include "projection/rebuild_tables.h"
#include "rewrite/rewriteHandler.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/reltrigger.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"

/* Returns the name of the schema with the copies of a build, in CurrentMemoryContext. */
char *
EvpgRebuildTablesSchema(int64 build)
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

/* Lets an object be dropped with the extension: without it the object has no use. */
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
	Relation	relation = table_open(EvpgDeclaredTableOid(table, AccessShareLock), NoLock);
	char		identity = relation->rd_rel->relreplident;

	table_close(relation, NoLock);
	if (identity == REPLICA_IDENTITY_FULL || identity == REPLICA_IDENTITY_INDEX)
		execute_as(owner, psprintf("ALTER TABLE %s REPLICA IDENTITY FULL", copy));
}

/*
 * Takes back what ALTER DEFAULT PRIVILEGES of evpg's owner gave on a schema of
 * ours: what another role creates there, the handler would find first.
 */
static void
revoke_default_privileges(const char *schema)
{
	execute_as(EvpgCatalogGet()->owner,
			   psprintf("DO $$ DECLARE r pg_catalog.text; BEGIN"
						" FOR r IN SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC'"
						" ELSE a.grantee::pg_catalog.regrole::pg_catalog.text END"
						" FROM pg_catalog.pg_namespace n, pg_catalog.aclexplode(n.nspacl) a"
						" WHERE n.nspname OPERATOR(pg_catalog.=) '%s' AND a.grantee OPERATOR(pg_catalog.<>) n.nspowner"
						" LOOP EXECUTE 'REVOKE ALL ON SCHEMA %s FROM ' OPERATOR(pg_catalog.||) r; END LOOP; END $$",
						schema, schema));
}

/*
 * Returns the definition of a foreign key, without a schema, so that it refers to the
 * tables that a search_path finds first; NULL if it references none of the tables (of
 * Oid), or can be deferred: that would be checked when a batch is committed, where
 * an error could not be reported.
 */
static char *
deparse_foreign_key(Oid constraint_id, List *tables)
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
		definition =
			TextDatumGetCString(DirectFunctionCall1(pg_get_constraintdef, ObjectIdGetDatum(constraint_id)));
		definition = psprintf("ADD CONSTRAINT %s %s", quote_identifier(NameStr(constraint->conname)), definition);
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
		tables = lappend_oid(tables, EvpgDeclaredTableOid(lfirst(cell), AccessShareLock));
	foreach(cell, tables)
	{
		Relation	relation = table_open(lfirst_oid(cell), NoLock);
		List	   *keys = copyObject(RelationGetFKeyList(relation));
		ListCell   *key;

		table_close(relation, NoLock);
		foreach(key, keys)
		{
			char	   *definition = deparse_foreign_key(((ForeignKeyCacheInfo *) lfirst(key))->conoid, tables);

			if (definition != NULL)
				execute_as(owner, psprintf("SET LOCAL search_path = %s, pg_catalog, pg_temp; ALTER TABLE %s.%s %s",
										   schema, schema,
										   quote_identifier(get_rel_name(lfirst_oid(cell))), definition));
		}
	}
}

/*
 * EvpgRebuildTablesCreateCopies
 *		Makes empty copies of the tables of a projection.  They belong to the owner of
 *		the handler.  Their schema does not, so that it cannot be renamed, and nothing
 *		else can be put there, which the handler would find first.
 */
void
EvpgRebuildTablesCreateCopies(EvpgProjection *projection, int64 build)
{
	Oid			owner = EvpgDeclaredTablesOwner(projection);
	Oid			evpg = EvpgCatalogGet()->owner;
	const char *role = quote_identifier(GetUserNameFromId(owner, false));
	char	   *schema = EvpgRebuildTablesSchema(build);
	Oid			namespace;
	ListCell   *cell;

	execute_as(evpg, psprintf("CREATE SCHEMA %s", schema));
	revoke_default_privileges(schema);
	execute_as(evpg, psprintf("GRANT USAGE, CREATE ON SCHEMA %s TO %s", schema, role));
	namespace = get_namespace_oid(schema, false);
	bind_to_extension(NamespaceRelationId, namespace);
	foreach(cell, projection->tables)
	{
		const char *name = strVal(llast(stringToQualifiedNameList(lfirst(cell), NULL)));
		Oid			table = EvpgDeclaredTableOid(lfirst(cell), AccessShareLock);
		bool		unlogged = (get_rel_persistence(table) == RELPERSISTENCE_UNLOGGED);

		execute_as(owner, psprintf("CREATE %s TABLE %s.%s (LIKE %s INCLUDING ALL)", unlogged ? "UNLOGGED" : "", schema,
								   quote_identifier(name), (char *) lfirst(cell)));
		copy_replica_identity(owner, lfirst(cell), psprintf("%s.%s", schema, quote_identifier(name)));
		bind_to_extension(RelationRelationId, get_relname_relid(name, namespace));
	}
	copy_foreign_keys(projection, owner, schema);
	execute_as(evpg, psprintf("REVOKE CREATE ON SCHEMA %s FROM %s", schema, role));
}

/* Drops the copies of a build, if there are any. */
void
EvpgRebuildTablesDropCopies(int64 build)
{
	execute_as(EvpgCatalogGet()->owner,
			   psprintf("SET LOCAL client_min_messages = warning; DROP SCHEMA IF EXISTS %s CASCADE",
						EvpgRebuildTablesSchema(build)));
}

/* Lists the columns of a table that can be written, for a statement. */
static char *
list_writable_columns(Oid relid)
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

/* Locks the copy of a table and returns its OID; error if there is none. */
static Oid
lock_copy(const char *table, int64 build)
{
	List	   *names = stringToQualifiedNameList(table, NULL);

	return EvpgDeclaredTableOid(quote_qualified_identifier(EvpgRebuildTablesSchema(build), strVal(llast(names))),
								AccessShareLock);
}

/* Lists the tables of a projection and their copies, which an exchange may concern, in CurrentMemoryContext. */
static EvpgExchange *
make_exchange(EvpgProjection *projection, int64 build)
{
	EvpgExchange *exchange = palloc0(sizeof(EvpgExchange));
	ListCell   *cell;

	foreach(cell, projection->tables)
	{
		exchange->tables = lappend_oid(exchange->tables, EvpgDeclaredTableOid(lfirst(cell), AccessShareLock));
		exchange->copies = lappend_oid(exchange->copies, lock_copy(lfirst(cell), build));
	}
	exchange->declared = list_copy(exchange->tables);
	return exchange;
}

/*
 * Removes tables that cannot be exchanged, again until the rest can: they may need
 * each other.  Foreign keys that have to be checked are left in exchange->pending.
 */
static void
keep_exchangeable(EvpgExchange *exchange)
{
	int			i = 0;

	exchange->pending = NIL;
	while (i < list_length(exchange->tables))
	{
		if (EvpgExchangeFindObstacle(list_nth_oid(exchange->tables, i), list_nth_oid(exchange->copies, i), exchange) == NULL)
			i++;
		else
		{
			exchange->tables = list_delete_nth_cell(exchange->tables, i);
			exchange->copies = list_delete_nth_cell(exchange->copies, i);
			exchange->pending = NIL;
			i = 0;
		}
	}
}

/* Removes tables that cannot be exchanged, and checks the foreign keys of the rest. */
static void
settle_exchange(EvpgExchange *exchange)
{
	do
		keep_exchangeable(exchange);
	while (EvpgExchangeCheckPendingKeys(exchange));
}

/*
 * EvpgRebuildTablesFindExchangeable
 *		Returns which tables of a projection can be exchanged with their copies, perhaps
 *		none, as soon as foreign keys are checked, in CurrentMemoryContext.
 */
EvpgExchange *
EvpgRebuildTablesFindExchangeable(EvpgProjection *projection, int64 build)
{
	EvpgExchange *exchange = make_exchange(projection, build);

	keep_exchangeable(exchange);
	return exchange;
}

/*
 * EvpgRebuildTablesPrepareExchange
 *		Waits for the sessions that keep tables from being exchanged with their copies,
 *		and checks their foreign keys, before the caller keeps others out; from then on,
 *		to the end of the transaction, no other session writes to a table that references
 *		them.  last_write is the last transaction that has filled the copies; if another
 *		one fills them, the keys have to be checked again.  Leaves in exchange, which is
 *		of EvpgRebuildTablesFindExchangeable, what can be exchanged, perhaps nothing.
 */
void
EvpgRebuildTablesPrepareExchange(EvpgExchange *exchange, TransactionId last_write)
{
	if (exchange->tables != NIL)
		EvpgExchangeAwaitUsers(exchange->tables, last_write);
	settle_exchange(exchange);
	/* Checking may have taken long. */
	if (exchange->tables != NIL && exchange->checked != NIL)
		EvpgExchangeAwaitUsers(exchange->tables, last_write);
}

/* Exchanges the tables that can still be exchanged. */
static void
exchange_tables(EvpgExchange *exchange, TransactionId last_write)
{
	ListCell   *table;
	ListCell   *copy;

	if (exchange->tables != NIL)
		EvpgExchangeLockPublications();
	forboth(table, exchange->tables, copy, exchange->copies)
	{
		LockRelationOid(lfirst_oid(table), AccessExclusiveLock);
		LockRelationOid(lfirst_oid(copy), AccessExclusiveLock);
	}

	/*
	 * As they are now that no other session can change them.  A logical slot
	 * that is made after this check waits for this transaction, since it has
	 * an id, before it decodes anything.
	 */
	(void) GetTopTransactionId();
	settle_exchange(exchange);
	forboth(table, exchange->tables, copy, exchange->copies)
	{
		if (!EVPG_MUTATION("standby_unwarned"))
			EvpgExchangeCancelStandbySnapshots(lfirst_oid(table), last_write);
		EvpgExchangeSwapContents(lfirst_oid(table), lfirst_oid(copy));
	}
}

/* A table of so many blocks is copied in no time. */
#define FEW_BLOCKS 16

/* Reports that the rows of a table are replaced while no session can append, which takes the longer the more there are. */
static void
report_slow_replacement(const char *table, int64 build, EvpgExchange *exchange)
{
	const char *obstacle = "A rebuild in the foreground is one transaction.";
	Oid			table_id = EvpgDeclaredTableOid(table, NoLock);
	Oid			copy_id = lock_copy(table, build);
	Relation	copy = table_open(copy_id, NoLock);
	BlockNumber size = RelationGetNumberOfBlocks(copy);

	table_close(copy, NoLock);
	if (size <= FEW_BLOCKS)
		return;
	if (exchange != NULL)
	{
		/* It would be exchanged but for this. */
		exchange->tables = lappend_oid(exchange->tables, table_id);
		exchange->copies = lappend_oid(exchange->copies, copy_id);
		obstacle = EvpgExchangeFindObstacle(table_id, copy_id, exchange);
		exchange->tables = list_delete_last(exchange->tables);
		exchange->copies = list_delete_last(exchange->copies);
	}
	ereport(exchange != NULL ? LOG : NOTICE,
			(errmsg("the rows of table %s are replaced while no session can append", table),
			 obstacle == NULL ? 0 : errdetail_internal("%s", obstacle),
			 exchange != NULL ? 0 : errhint("Rebuild a large table in the background.")));
}

/* Returns whether two columns take the same values, and have the same one if none is given. */
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
 * Raises an error if a table has got other columns or defaults since its copy
 * was made, or if foreign keys between the tables delete or change other rows:
 * what the copy holds is not what the handler would have written to the table.
 * Other constraints, indexes and triggers need not be equal: a table that has
 * others is not exchanged (exchange_tables.c), and keeps them when its rows
 * are replaced.
 */
static void
refuse_changed_table(const char *name, Oid table_id, Oid copy_id, const EvpgExchange *all)
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
	if (equal && EvpgExchangeHasEqualActions(table_id, copy_id, all->tables, all->copies))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 equal ? errmsg("actions of foreign keys of table %s have changed since its rebuild began", name) :
			 errmsg("columns or defaults of table %s have changed since its rebuild began", name),
			 errhint("Undo the change, or begin the rebuild again: "
					 "evpg_cancel_rebuild(), then evpg_rebuild_projection().")));
}

/*
 * Whether rows of other tables may reference those of a table by a key that is checked
 * at the end of a statement.
 */
static bool
is_referenced_by_others(const char *name, List *tables)
{
	Relation	table = table_open(EvpgDeclaredTableOid(name, NoLock), NoLock);
	TriggerDesc *triggers = table->trigdesc;
	bool		found = false;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers && !found; i++)
	{
		const Trigger *trigger = &triggers->triggers[i];
		ListCell   *cell;

		found = trigger->tgfoid == F_RI_FKEY_NOACTION_DEL;
		foreach(cell, tables)
			found = found && trigger->tgconstrrelid != EvpgDeclaredTableOid(lfirst(cell), NoLock);
	}
	table_close(table, NoLock);
	return found;
}

/* Whether a table has rules, which a statement in WITH may not have. */
static bool
has_rules(const char *name)
{
	Relation	table = table_open(EvpgDeclaredTableOid(name, NoLock), NoLock);
	bool		found = table->rd_rules != NULL;

	table_close(table, NoLock);
	return found;
}

/* Makes the INSERT of the rows of a copy; with deleted after the statement of that name in WITH. */
static char *
make_insert(const char *table, int64 build, const char *deleted)
{
	List	   *names = stringToQualifiedNameList(table, NULL);
	char	   *columns = list_writable_columns(EvpgDeclaredTableOid(table, NoLock));

	return psprintf("INSERT INTO %s (%s) SELECT %s FROM %s.%s%s", table, columns, columns,
					EvpgRebuildTablesSchema(build), quote_identifier(strVal(llast(names))),
					deleted == NULL ? "" : psprintf(" WHERE (SELECT count(*) FROM %s) >= 0", deleted));
}

/*
 * Replaces the rows of tables by those of their copies as one statement, so that rows of
 * other tables may reference them: keys are checked when the new rows are there.
 */
static void
replace_rows_at_once(Oid owner, int64 build, List *tables)
{
	StringInfoData statement;
	int			count = list_length(tables);

	initStringInfo(&statement);
	for (int i = 0; i < count; i++)
		appendStringInfo(&statement, "%s deleted_%d AS (DELETE FROM ONLY %s RETURNING 1)", i == 0 ? "WITH" : ",", i,
						 (char *) list_nth(tables, i));
	for (int i = 0; i < count; i++)
	{
		char	   *insert = make_insert(list_nth(tables, i), build, psprintf("deleted_%d", i));

		if (i < count - 1)
			appendStringInfo(&statement, ", inserted_%d AS (%s)", i, insert);
		else
			appendStringInfo(&statement, " %s", insert);
	}
	execute_as(owner, statement.data);
}

/* Replaces the rows of tables, which are locked, by those of their copies. */
static void
replace_rows(Oid owner, int64 build, List *tables)
{
	bool		referenced = false;
	bool		ruled = false;
	ListCell   *cell;

	foreach(cell, tables)
	{
		referenced = referenced || is_referenced_by_others(lfirst(cell), tables);
		ruled = ruled || has_rules(lfirst(cell));
	}
	if (referenced && !ruled)
	{
		replace_rows_at_once(owner, build, tables);
		return;
	}
	for (int i = list_length(tables) - 1; i >= 0; i--)
		execute_as(owner, psprintf("DELETE FROM ONLY %s", (char *) list_nth(tables, i)));
	foreach(cell, tables)
		execute_as(owner, make_insert(lfirst(cell), build, NULL));
}

/*
 * EvpgRebuildTablesReplaceContents
 *		Puts the contents of the copies in place of those of the tables.  What is in
 *		exchange, of EvpgRebuildTablesPrepareExchange, is exchanged, which takes no longer
 *		for many rows than for few; exchange is NULL in the foreground.  Of the other
 *		tables first all rows are deleted, in reverse order, for foreign keys between
 *		them.  The caller keeps out all sessions that write to the projection.
 */
void
EvpgRebuildTablesReplaceContents(EvpgProjection *projection, int64 build, EvpgExchange *exchange, TransactionId last_write)
{
	Oid			owner = EvpgDeclaredTablesOwner(projection);
	EvpgExchange *all = make_exchange(projection, build);
	List	   *tables = NIL;
	ListCell   *cell;

	EvpgDeclaredTablesCheckReplaceable(projection, AccessShareLock);
	if (exchange != NULL)
		exchange_tables(exchange, last_write);
	foreach(cell, projection->tables)
	{
		if (exchange != NULL && list_member_oid(exchange->tables, EvpgDeclaredTableOid(lfirst(cell), NoLock)))
			continue;
		tables = lappend(tables, lfirst(cell));
		if (projection->mode == EVPG_MODE_INLINE)
			report_slow_replacement(lfirst(cell), build, exchange);
	}
	foreach(cell, tables)
		(void) EvpgDeclaredTableOid(lfirst(cell), RowExclusiveLock);
	/* Now that all tables are locked; an error takes back what was exchanged. */
	foreach(cell, projection->tables)
		refuse_changed_table(lfirst(cell), EvpgDeclaredTableOid(lfirst(cell), NoLock), lock_copy(lfirst(cell), build),
							 all);
	replace_rows(owner, build, tables);
}
