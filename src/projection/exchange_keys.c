/*-------------------------------------------------------------------------
 *
 * exchange_keys.c
 *		Foreign keys of tables whose contents are exchanged: an exchange fires no
 *		trigger, so the keys must hold for the copies before.
 *
 * A key between two tables of the projection holds if their copies have an equal
 * key.  Any other key is checked by one query, which the end of a rebuild runs before
 * it keeps appenders out, and what the query has found is kept true until the
 * transaction ends:
 *
 * - a key of an exchanged table to another table: the rows that the copy references
 *   are locked FOR KEY SHARE, as each INSERT of a row would lock them;
 * - a key of another table to an exchanged table: the other table is locked against
 *   writers, and no row of it may reference a key that the copy does not have;
 * - a key between two copies, which no other session writes.
 *
 * The query runs as the owner of the tables, who must own the other table, too:
 * expressions of its indexes and the like are code of its owner.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "base/catalog.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "executor/spi.h"
#include "projection/exchange_keys.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"

/* A foreign key, as pg_constraint has it. */
typedef struct ForeignKey
{
	FormData_pg_constraint form;
	int			count;
	AttrNumber	columns[INDEX_MAX_KEYS];
	AttrNumber	referenced[INDEX_MAX_KEYS];
	Oid			operators[INDEX_MAX_KEYS];	/* referenced = referencing */
	int			set_count;		/* columns that ON DELETE SET clears; 0: all */
	AttrNumber	set_columns[INDEX_MAX_KEYS];
} ForeignKey;

/* Reads a foreign key; returns false if it does not exist any more. */
static bool
read_foreign_key(Oid key_id, ForeignKey *key)
{
	HeapTuple	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(key_id));

	if (!HeapTupleIsValid(tuple))
		return false;
	key->form = *(Form_pg_constraint) GETSTRUCT(tuple);
	DeconstructFkConstraintRow(tuple, &key->count, key->columns, key->referenced, key->operators, NULL, NULL,
							   &key->set_count, key->set_columns);
	ReleaseSysCache(tuple);
	return true;
}

/* Returns the copy that an exchange puts in place of a table; the table itself if it is not exchanged. */
static Oid
replacement_of(Oid table, List *tables, List *copies)
{
	ListCell   *cell;
	ListCell   *copy;

	forboth(cell, tables, copy, copies)
		if (lfirst_oid(cell) == table)
		return lfirst_oid(copy);
	return table;
}

/* ------------------------------------------------------------------ keys that the copies have */

/* Returns whether a key of a table and one of its copy are equal, but for what can be deferred. */
static bool
equal_keys(const ForeignKey *a, const ForeignKey *b, List *tables, List *copies)
{
	return replacement_of(a->form.confrelid, tables, copies) == b->form.confrelid &&
		a->form.confmatchtype == b->form.confmatchtype &&
		a->form.confupdtype == b->form.confupdtype && a->form.confdeltype == b->form.confdeltype &&
		a->count == b->count && a->set_count == b->set_count &&
		memcmp(a->columns, b->columns, sizeof(AttrNumber) * a->count) == 0 &&
		memcmp(a->referenced, b->referenced, sizeof(AttrNumber) * a->count) == 0 &&
		memcmp(a->operators, b->operators, sizeof(Oid) * a->count) == 0 &&
		memcmp(a->set_columns, b->set_columns, sizeof(AttrNumber) * a->set_count) == 0;
}

/* Lists the foreign keys of a table (Oid), which the caller has locked. */
static List *
list_foreign_keys(Oid table_id)
{
	Relation	table = table_open(table_id, NoLock);
	List	   *keys = NIL;
	ListCell   *cell;

	foreach(cell, RelationGetFKeyList(table))
		keys = lappend_oid(keys, ((ForeignKeyCacheInfo *) lfirst(cell))->conoid);
	table_close(table, NoLock);
	return keys;
}

/*
 * Returns whether a relation has a foreign key that is equal to one of its
 * counterpart: key is of the table and relation is the copy, or the other way
 * round.
 */
static bool
has_equal_key(const ForeignKey *key, Oid relation, bool is_copy, List *tables, List *copies)
{
	ListCell   *cell;

	foreach(cell, list_foreign_keys(relation))
	{
		ForeignKey	other;

		if (read_foreign_key(lfirst_oid(cell), &other) &&
			(is_copy ? equal_keys(key, &other, tables, copies) : equal_keys(&other, key, tables, copies)))
			return true;
	}
	return false;
}

/* Returns whether a key changes rows of its table when a referenced row goes or changes. */
static bool
acts_on_rows(const ForeignKey *key)
{
	return strchr("cnd", key->form.confdeltype) != NULL || strchr("cnd", key->form.confupdtype) != NULL;
}

/*
 * EvpgExchangeHasEqualActions
 *		Returns whether foreign keys between the tables of a projection have changed the
 *		copy of a table as they would have changed the table: those that delete or change
 *		its rows are the same.  One that can be deferred is not copied, and need not be.
 *		tables and copies are all of the projection; the caller has locked them.
 */
bool
EvpgExchangeHasEqualActions(Oid table_id, Oid copy_id, List *tables, List *copies)
{
	ForeignKey	key;
	ListCell   *cell;

	foreach(cell, list_foreign_keys(table_id))
		if (read_foreign_key(lfirst_oid(cell), &key) && acts_on_rows(&key) && !key.form.condeferrable &&
			list_member_oid(tables, key.form.confrelid) && !has_equal_key(&key, copy_id, true, tables, copies))
		return false;
	foreach(cell, list_foreign_keys(copy_id))
		if (read_foreign_key(lfirst_oid(cell), &key) && acts_on_rows(&key) &&
			!has_equal_key(&key, table_id, false, tables, copies))
		return false;
	return true;
}

/* ------------------------------------------------------------------ keys that are checked */

/* Returns the owner of a relation; InvalidOid if it does not exist. */
static Oid
owner_of_relation(Oid relation)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	Oid			owner = InvalidOid;

	if (HeapTupleIsValid(tuple))
	{
		owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
		ReleaseSysCache(tuple);
	}
	return owner;
}

/* Returns whether the owner of an exchanged table may read and lock all rows of another table. */
static bool
can_be_read(Oid table, Oid owner)
{
	return get_rel_relkind(table) == RELKIND_RELATION && owner_of_relation(table) == owner &&
		pg_class_aclcheck(table, owner, ACL_SELECT) == ACLCHECK_OK &&
		pg_class_aclcheck(table, owner, ACL_UPDATE) == ACLCHECK_OK && check_enable_rls(table, owner, true) == RLS_NONE;
}

/* Returns whether a query can tell if a key holds. */
static bool
can_be_checked(const EvpgExchange *exchange, const ForeignKey *key)
{
	bool		ours = list_member_oid(exchange->tables, key->form.conrelid);
	Oid			owner = owner_of_relation(ours ? key->form.conrelid : key->form.confrelid);

	/* A table is partitioned, or inherits its key. */
	if (OidIsValid(key->form.conparentid) || !can_be_read(key->form.conrelid, owner) ||
		!can_be_read(key->form.confrelid, owner))
		return false;
	for (int i = 0; i < key->count; i++)
	{
		Oid			type;
		Oid			collation;
		Oid			others;
		int32		modifier;

		get_atttypetypmodcoll(key->form.conrelid, key->columns[i], &type, &modifier, &others);
		get_atttypetypmodcoll(key->form.confrelid, key->referenced[i], &type, &modifier, &collation);
		if (collation != others || !op_mergejoinable(key->operators[i], type))
			return false;
	}
	return true;
}

/*
 * EvpgExchangeFindKeyObstacle
 *		Returns why a foreign key forbids an exchange, as a DETAIL (a constant); NULL if
 *		it does not, or if it is yet to be checked: then it is added to
 *		exchange->pending.  The caller has locked the tables of the exchange, and copies.
 */
const char *
EvpgExchangeFindKeyObstacle(EvpgExchange *exchange, Oid key_id)
{
	ForeignKey	key;
	bool		to_ours;
	bool		from_ours;

	if (!read_foreign_key(key_id, &key))
		return NULL;
	from_ours = list_member_oid(exchange->tables, key.form.conrelid);
	to_ours = list_member_oid(exchange->tables, key.form.confrelid);
	if ((!from_ours && list_member_oid(exchange->declared, key.form.conrelid)) ||
		(!to_ours && list_member_oid(exchange->declared, key.form.confrelid)))
		return "It has a foreign key from or to a table of the projection that is not exchanged.";
	if (from_ours && to_ours &&
		has_equal_key(&key, replacement_of(key.form.conrelid, exchange->tables, exchange->copies), true,
					  exchange->tables, exchange->copies))
		return NULL;
	if (list_member_oid(exchange->failed, key_id))
		return "A foreign key from or to it does not hold for its new rows.";
	if (!can_be_checked(exchange, &key))
		return "It has a foreign key from or to a table of another owner, or a table that is partitioned.";
	if (!list_member_oid(exchange->checked, key_id))
		exchange->pending = list_append_unique_oid(exchange->pending, key_id);
	return NULL;
}

/* Returns a column of a relation as a query names it. */
static const char *
qualify_column(const char *alias, Oid relation, AttrNumber column)
{
	return psprintf("%s.%s", alias, quote_identifier(get_attname(relation, column, false)));
}

static const char *
qualify_relation(Oid relation)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relation)), get_rel_name(relation));
}

/*
 * Returns a query whose result is whether a key holds: f is the table, or copy, that
 * references p.  If p can change, the rows of p that f references are locked.
 */
static char *
make_check_query(const ForeignKey *key, Oid f, Oid p, bool lock)
{
	StringInfoData condition;
	StringInfoData wanted;

	initStringInfo(&condition);
	initStringInfo(&wanted);
	for (int i = 0; i < key->count; i++)
	{
		const char *right = qualify_column("f", f, key->columns[i]);

		if (i > 0)
		{
			appendStringInfoString(&condition, " AND ");

			/*
			 * MATCH FULL: a row with nulls in some of the columns does not
			 * satisfy it.
			 */
			appendStringInfoString(&wanted, key->form.confmatchtype == FKCONSTR_MATCH_FULL ? " OR " : " AND ");
		}
		generate_operator_clause(&condition, qualify_column("p", p, key->referenced[i]),
								 get_atttype(p, key->referenced[i]), key->operators[i], right,
								 get_atttype(f, key->columns[i]));
		appendStringInfo(&wanted, "%s IS NOT NULL", right);
	}
	return lock ?
		psprintf("SELECT (SELECT count(*) FROM ONLY %s AS f WHERE %s) = (SELECT count(*)"
				 " FROM (SELECT 1 FROM ONLY %s AS p JOIN ONLY %s AS f ON (%s) FOR KEY SHARE OF p) AS l)",
				 qualify_relation(f), wanted.data, qualify_relation(p), qualify_relation(f), condition.data) :
		psprintf("SELECT NOT EXISTS (SELECT FROM ONLY %s AS f LEFT JOIN ONLY %s AS p ON (%s)"
				 " WHERE (%s) AND %s IS NULL)",
				 qualify_relation(f), qualify_relation(p), condition.data, wanted.data,
				 qualify_column("p", p, key->referenced[0]));
}

/* Runs a query of one boolean as a role, with nothing in the search_path. */
static bool
query_is_true(Oid role, const char *query)
{
	EvpgScope	scope;
	bool		isnull;
	bool		result;

	EvpgEnterAs(&scope, role, "pg_catalog, pg_temp");
	SPI_connect();
	if (SPI_execute(query, false, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not execute \"%s\"", query);
	result = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	EvpgLeave(&scope);
	return result;
}

/* Checks a key, and keeps what it has found true until the end of the transaction. */
static bool
check_foreign_key(EvpgExchange *exchange, Oid key_id)
{
	ForeignKey	key;
	bool		from_ours;
	bool		to_ours;

	if (!read_foreign_key(key_id, &key))
		return true;
	from_ours = list_member_oid(exchange->tables, key.form.conrelid);
	to_ours = list_member_oid(exchange->tables, key.form.confrelid);
	if (!from_ours)
		LockRelationOid(key.form.conrelid, ShareRowExclusiveLock);
	if (!to_ours)
		LockRelationOid(key.form.confrelid, RowShareLock);
	/* As it is now that the other table cannot be changed. */
	if (!read_foreign_key(key_id, &key))
		return true;
	return can_be_checked(exchange, &key) &&
		query_is_true(owner_of_relation(from_ours ? key.form.conrelid : key.form.confrelid),
					  make_check_query(&key,
									   replacement_of(key.form.conrelid, exchange->tables, exchange->copies),
									   replacement_of(key.form.confrelid, exchange->tables, exchange->copies),
									   !to_ours));
}

/*
 * EvpgExchangeCheckPendingKeys
 *		Checks the foreign keys that EvpgExchangeFindKeyObstacle has left to be checked,
 *		and locks what keeps them true.  Returns false if there were none.  The caller is
 *		as there.
 */
bool
EvpgExchangeCheckPendingKeys(EvpgExchange *exchange)
{
	List	   *pending = exchange->pending;
	ListCell   *cell;

	exchange->pending = NIL;
	foreach(cell, pending)
	{
		if (check_foreign_key(exchange, lfirst_oid(cell)))
			exchange->checked = lappend_oid(exchange->checked, lfirst_oid(cell));
		else
			exchange->failed = lappend_oid(exchange->failed, lfirst_oid(cell));
	}
	return pending != NIL;
}
