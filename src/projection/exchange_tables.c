/*-------------------------------------------------------------------------
 *
 * exchange_tables.c
 *		Exchanges the contents of a table with those of a copy that a rebuild has
 *		filled, in the time of a lock and a few rows of pg_class, whatever their
 *		size: the files of both change places, with those of their indexes, and
 *		their TOAST tables.
 *
 * The table keeps its oid, and so its views, privileges, policies and statistics.
 * Nothing is fired, checked or decoded.  So a table is not exchanged if replacing its
 * rows would fire a trigger or a rule, if a logical replication slot may decode it,
 * or if the copy differs from it in a column, an index or a constraint.  Foreign keys
 * are checked before (exchange_keys.c).
 *
 * Old snapshots: rows of the copy were written by transactions that a snapshot
 * which is older than them does not see.  As with CREATE INDEX CONCURRENTLY these
 * snapshots are waited for; on a standby they are cancelled.  One that is taken
 * between the last of these transactions and the exchange, and used on the table
 * only after it, sees the copy without what the transaction of the exchange itself
 * has written, which is nothing if the caller sees to it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/nbtxlog.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "base/compat.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_publication_namespace.h"
#include "catalog/pg_trigger.h"
#include "commands/tablecmds.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "projection/exchange_tables.h"
#include "replication/slot.h"
#include "storage/lmgr.h"
#include "storage/predicate.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/* ------------------------------------------------------------------ what can be exchanged */

/*
 * Returns whether files of the two relations are of one kind, and were not
 * made by this transaction, whose commit would sync them.
 */
static bool
equal_storage(Relation left, Relation right)
{
	return left->rd_rel->relam == right->rd_rel->relam &&
		left->rd_rel->reltablespace == right->rd_rel->reltablespace &&
		left->rd_rel->relpersistence == right->rd_rel->relpersistence &&
		OidIsValid(left->rd_rel->relfilenode) && OidIsValid(right->rd_rel->relfilenode) &&
		left->rd_createSubid == InvalidSubTransactionId && right->rd_createSubid == InvalidSubTransactionId &&
		left->rd_firstRelfilelocatorSubid == InvalidSubTransactionId &&
		right->rd_firstRelfilelocatorSubid == InvalidSubTransactionId;
}

/* Returns whether rows of the two relations have the same columns. */
static bool
equal_columns(TupleDesc left, TupleDesc right)
{
	if (left->natts != right->natts)
		return false;
	for (int i = 0; i < left->natts; i++)
	{
		Form_pg_attribute a = TupleDescAttr(left, i);
		Form_pg_attribute b = TupleDescAttr(right, i);

		if (a->attisdropped || b->attisdropped || strcmp(NameStr(a->attname), NameStr(b->attname)) != 0 ||
			a->atttypid != b->atttypid || a->atttypmod != b->atttypmod || a->attcollation != b->attcollation ||
			a->attnotnull != b->attnotnull || a->attgenerated != b->attgenerated)
			return false;
	}
	return true;
}

/* Returns whether all rows of the right relation were checked by CHECK constraints equal to those of the left one. */
static bool
equal_checks(TupleDesc left, TupleDesc right)
{
	int			count = left->constr == NULL ? 0 : left->constr->num_check;

	if (count != (right->constr == NULL ? 0 : right->constr->num_check))
		return false;
	for (int i = 0; i < count; i++)
	{
		ConstrCheck *a = &left->constr->check[i];
		ConstrCheck *b = &right->constr->check[i];

		if (strcmp(a->ccname, b->ccname) != 0 || !b->ccvalid || !equal(stringToNode(a->ccbin), stringToNode(b->ccbin)))
			return false;
	}
	return true;
}

/* Returns whether the files of one index can serve as those of the other. */
static bool
equal_indexes(Relation left, Relation right)
{
	Form_pg_index a = left->rd_index;
	Form_pg_index b = right->rd_index;

	if (a->indnatts != b->indnatts || a->indnkeyatts != b->indnkeyatts || a->indisunique != b->indisunique ||
		a->indnullsnotdistinct != b->indnullsnotdistinct || a->indisprimary != b->indisprimary ||
		a->indisexclusion != b->indisexclusion || a->indimmediate != b->indimmediate ||
		!a->indisvalid || !b->indisvalid || !a->indisready || !b->indisready || !equal_storage(left, right) ||
		memcmp(a->indkey.values, b->indkey.values, sizeof(int16) * a->indnatts) != 0 ||
		memcmp(left->rd_opfamily, right->rd_opfamily, sizeof(Oid) * a->indnkeyatts) != 0 ||
		memcmp(left->rd_opcintype, right->rd_opcintype, sizeof(Oid) * a->indnkeyatts) != 0 ||
		memcmp(left->rd_indcollation, right->rd_indcollation, sizeof(Oid) * a->indnkeyatts) != 0 ||
		memcmp(left->rd_indoption, right->rd_indoption, sizeof(int16) * a->indnkeyatts) != 0 ||
		!equal(RelationGetIndexExpressions(left), RelationGetIndexExpressions(right)) ||
		!equal(RelationGetIndexPredicate(left), RelationGetIndexPredicate(right)))
		return false;
	if (a->indisexclusion)
	{
		Oid		   *operators;
		Oid		   *others;
		Oid		   *functions;
		uint16	   *strategies;

		RelationGetExclusionInfo(left, &operators, &functions, &strategies);
		RelationGetExclusionInfo(right, &others, &functions, &strategies);
		if (memcmp(operators, others, sizeof(Oid) * a->indnkeyatts) != 0)
			return false;
	}
	for (int column = 1; column <= a->indnkeyatts; column++)
		if (get_attoptions(RelationGetRelid(left), column) != (Datum) 0 ||
			get_attoptions(RelationGetRelid(right), column) != (Datum) 0)
			return false;
	return true;
}

/*
 * Lists the indexes of the table, and in the same order those of the copy that
 * are equal to them; returns false if an index of either has no equal.
 */
static bool
match_indexes(Relation table, Relation copy, List **indexes, List **matches)
{
	List	   *left = RelationGetIndexList(copy);
	ListCell   *cell;

	*indexes = RelationGetIndexList(table);
	*matches = NIL;
	foreach(cell, *indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);
		Oid			match = InvalidOid;
		ListCell   *candidate;

		foreach(candidate, left)
		{
			Relation	other = index_open(lfirst_oid(candidate), AccessShareLock);

			if (!OidIsValid(match) && equal_indexes(index, other))
				match = RelationGetRelid(other);
			index_close(other, NoLock);
		}
		index_close(index, NoLock);
		if (!OidIsValid(match))
			return false;
		*matches = lappend_oid(*matches, match);
		left = list_delete_oid(left, match);
	}
	return left == NIL;
}

/* Returns whether a trigger or a rule that is enabled in this way acts in this session. */
static bool
is_enabled(char enabled)
{
	return enabled != TRIGGER_DISABLED &&
		enabled != (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA ? TRIGGER_FIRES_ON_ORIGIN :
					TRIGGER_FIRES_ON_REPLICA);
}

/* Returns whether the constraint of an internal trigger is a foreign key. */
static bool
is_foreign_key(Oid constraint_id)
{
	HeapTuple	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(constraint_id));
	bool		result = HeapTupleIsValid(tuple) &&
	((Form_pg_constraint) GETSTRUCT(tuple))->contype == CONSTRAINT_FOREIGN;

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return result;
}

/* Returns why triggers, rules or foreign keys of a table forbid the exchange; NULL if they do not. */
static const char *
find_trigger_obstacle(Relation table, EvpgExchange *exchange)
{
	const char *obstacle = NULL;
	ListCell   *cell;

	for (int i = 0; table->rd_rules != NULL && i < table->rd_rules->numLocks; i++)
	{
		const RewriteRule *rule = table->rd_rules->rules[i];

		if (is_enabled(rule->enabled) && (rule->event == CMD_INSERT || rule->event == CMD_DELETE))
			return "It has a rule for INSERT or DELETE.";
	}
	for (int i = 0; table->trigdesc != NULL && i < table->trigdesc->numtriggers && obstacle == NULL; i++)
	{
		const Trigger *trigger = &table->trigdesc->triggers[i];

		if (!is_enabled(trigger->tgenabled))
			continue;
		if (!trigger->tgisinternal || !OidIsValid(trigger->tgconstraint))
		{
			/* Replacing the rows would fire no other triggers. */
			if (TRIGGER_FOR_INSERT(trigger->tgtype) || TRIGGER_FOR_DELETE(trigger->tgtype))
				obstacle = "It has a trigger for INSERT or DELETE.";
		}
		else if (is_foreign_key(trigger->tgconstraint))
			obstacle = EvpgExchangeFindKeyObstacle(exchange, trigger->tgconstraint);
		else
			obstacle = "It has a constraint that can be deferred.";
	}
	foreach(cell, obstacle == NULL ? RelationGetFKeyList(table) : NIL)
	{
		obstacle = EvpgExchangeFindKeyObstacle(exchange, ((ForeignKeyCacheInfo *) lfirst(cell))->conoid);
		if (obstacle != NULL)
			break;
	}
	return obstacle;
}

/*
 * EvpgExchangeLockPublications
 *		Keeps other sessions from making or changing publications, until the transaction
 *		ends.  To be called before the tables of an exchange are locked: CREATE PUBLICATION
 *		locks its tables last.  What it has written before is not committed, perhaps, and
 *		not locked: see is_being_published().
 */
void
EvpgExchangeLockPublications(void)
{
	if (!XLogLogicalInfoActive())
		return;
	LockRelationOid(PublicationRelationId, ShareLock);
	LockRelationOid(PublicationNamespaceRelationId, ShareLock);
}

/*
 * Returns whether a transaction that is not committed yet publishes a table by a new
 * row of pg_publication, for all tables, or of pg_publication_namespace.  One that
 * names the table has a lock on it.
 */
static bool
is_being_published(Relation table, Oid catalog_id)
{
	Relation	catalog = table_open(catalog_id, AccessShareLock);
	SnapshotData dirty;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found = false;

	InitDirtySnapshot(dirty);
	scan = systable_beginscan(catalog, InvalidOid, false, &dirty, 0, NULL);
	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
		found = TransactionIdIsValid(dirty.xmin) &&
			(catalog_id == PublicationRelationId ? ((Form_pg_publication) GETSTRUCT(tuple))->puballtables :
			 ((Form_pg_publication_namespace) GETSTRUCT(tuple))->pnnspid == RelationGetNamespace(table));
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return found;
}

/* Returns whether a publication has a table, or may soon have it. */
static bool
is_published(Relation table)
{
	PublicationDesc publications;

	RelationBuildPublicationDesc(table, &publications);
	return publications.pubactions.pubinsert || publications.pubactions.pubupdate ||
		publications.pubactions.pubdelete || publications.pubactions.pubtruncate ||
		is_being_published(table, PublicationRelationId) ||
		is_being_published(table, PublicationNamespaceRelationId);
}

/*
 * Returns whether a change of the table may be decoded, which an exchange is
 * not: by a logical slot of this database, but pgoutput decodes only tables
 * that are published.
 */
static bool
may_be_decoded(Relation table)
{
	bool		published;
	bool		found = false;

	if (!XLogLogicalInfoActive() || !RelationNeedsWAL(table))
		return false;
	published = is_published(table);
	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots && !found; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];

		/* Neither changes as long as the slot is in use. */
		found = slot->in_use && SlotIsLogical(slot) && slot->data.database == MyDatabaseId &&
			(published || strcmp(NameStr(slot->data.plugin), "pgoutput") != 0);
	}
	LWLockRelease(ReplicationSlotControlLock);
	return found;
}

/*
 * EvpgExchangeFindObstacle
 *		Returns why the contents of a table of an exchange cannot be exchanged with those
 *		of its copy, as a DETAIL (a constant); NULL if they can, as soon as the keys in
 *		exchange->pending are checked.  The caller has locked both relations.
 */
const char *
EvpgExchangeFindObstacle(Oid table_id, Oid copy_id, EvpgExchange *exchange)
{
	Relation	table = table_open(table_id, NoLock);
	Relation	copy = table_open(copy_id, NoLock);
	TupleDesc	columns = RelationGetDescr(table);
	const char *obstacle = NULL;
	List	   *indexes;
	List	   *matches;

	if (!(equal_storage(table, copy) &&
		  OidIsValid(table->rd_rel->reltoastrelid) == OidIsValid(copy->rd_rel->reltoastrelid) &&
		  equal_columns(columns, RelationGetDescr(copy)) && equal_checks(columns, RelationGetDescr(copy)) &&
		  match_indexes(table, copy, &indexes, &matches)))
		obstacle = "It differs from the copy in its storage, a column, an index or a constraint.";
	else if (may_be_decoded(table))
		obstacle = "A logical replication slot of this database would not decode the exchange.";
	else
		obstacle = find_trigger_obstacle(table, exchange);
	table_close(table, NoLock);
	table_close(copy, NoLock);
	return obstacle;
}

/* ------------------------------------------------------------------ waiting */

/*
 * EvpgExchangeAwaitUsers
 *		Waits, for lock_timeout, until no transaction uses any of the tables (of Oid),
 *		and no snapshot is older than the last transaction that has written to the
 *		copies.  Takes no lock, so that no other session queues behind this one.
 */
void
EvpgExchangeAwaitUsers(List *tables, TransactionId last_write)
{
	List	   *tags = NIL;
	ListCell   *cell;
	VirtualTransactionId *older;
	int			count;

	foreach(cell, tables)
	{
		LOCKTAG    *tag = palloc(sizeof(LOCKTAG));

		SET_LOCKTAG_RELATION(*tag, MyDatabaseId, lfirst_oid(cell));
		tags = lappend(tags, tag);
	}
	WaitForLockersMultiple(tags, AccessExclusiveLock, false);
	older = GetCurrentVirtualXIDs(last_write, true, false, PROC_IS_AUTOVACUUM | PROC_IN_VACUUM, &count);
	for (int i = 0; i < count; i++)
		(void) VirtualXactLock(older[i], true);
}

/*
 * EvpgExchangeCancelStandbySnapshots
 *		Writes a WAL record that cancels, on hot standbys, snapshots that do not see what
 *		was written to the copy of a table: they would find the table empty, and are in
 *		conflict with the exchange, as with a VACUUM that removes what they see.  The
 *		record is one of nbtree that has no other effect.  The caller holds
 *		AccessExclusiveLock on the table.
 */
void
EvpgExchangeCancelStandbySnapshots(Oid table_id, TransactionId last_write)
{
	Relation	table = table_open(table_id, NoLock);
	FullTransactionId next = ReadNextFullTransactionId();
	uint32		epoch = EpochFromFullTransactionId(next);

	if (XLogStandbyInfoActive() && RelationNeedsWAL(table))
	{
		xl_btree_reuse_page record;

		if (last_write > XidFromFullTransactionId(next))
			epoch--;
		record = EvpgBtreeReusePage(table, FullTransactionIdFromEpochAndXid(epoch, last_write));
		XLogBeginInsert();
		XLogRegisterData((char *) &record, SizeOfBtreeReusePage);
		(void) XLogInsert(RM_BTREE_ID, XLOG_BTREE_REUSE_PAGE);
	}
	table_close(table, NoLock);
}

/* ------------------------------------------------------------------ exchanging */

#define EXCHANGE(type, left, right) \
	do { type kept = (left); (left) = (right); (right) = kept; } while (0)

/* Exchanges the files of two relations, their TOAST tables, and the statistics of their sizes. */
static void
exchange_files(Oid left_id, Oid right_id)
{
	Relation	catalog = table_open(RelationRelationId, RowExclusiveLock);
	HeapTuple	left_tuple = SearchSysCacheCopy1(RELOID, ObjectIdGetDatum(left_id));
	HeapTuple	right_tuple = SearchSysCacheCopy1(RELOID, ObjectIdGetDatum(right_id));
	Form_pg_class left;
	Form_pg_class right;

	if (!HeapTupleIsValid(left_tuple) || !HeapTupleIsValid(right_tuple))
		elog(ERROR, "cache lookup failed for relation %u or %u", left_id, right_id);
	left = (Form_pg_class) GETSTRUCT(left_tuple);
	right = (Form_pg_class) GETSTRUCT(right_tuple);
	EXCHANGE(Oid, left->relfilenode, right->relfilenode);
	EXCHANGE(Oid, left->reltoastrelid, right->reltoastrelid);
	EXCHANGE(int32, left->relpages, right->relpages);
	EXCHANGE(float4, left->reltuples, right->reltuples);
	EXCHANGE(int32, left->relallvisible, right->relallvisible);
	EvpgExchangeAllFrozen(left, right);
	EXCHANGE(TransactionId, left->relfrozenxid, right->relfrozenxid);
	EXCHANGE(TransactionId, left->relminmxid, right->relminmxid);
	CatalogTupleUpdate(catalog, &left_tuple->t_self, left_tuple);
	CatalogTupleUpdate(catalog, &right_tuple->t_self, right_tuple);
	table_close(catalog, RowExclusiveLock);
	CommandCounterIncrement();
	RelationCloseSmgrByOid(left_id);
	RelationCloseSmgrByOid(right_id);
}

/* Exchanges the storage parameters (toast.*) of two TOAST tables, which are those of the tables that they belong to. */
static void
exchange_toast_options(Oid left_id, Oid right_id)
{
	Relation	catalog = table_open(RelationRelationId, RowExclusiveLock);
	Oid			ids[2] = {left_id, right_id};
	HeapTuple	tuples[2];
	Datum		options[2];
	bool		nulls[2];

	for (int i = 0; i < 2; i++)
	{
		tuples[i] = SearchSysCacheCopy1(RELOID, ObjectIdGetDatum(ids[i]));
		if (!HeapTupleIsValid(tuples[i]))
			elog(ERROR, "cache lookup failed for relation %u", ids[i]);
		options[i] = SysCacheGetAttr(RELOID, tuples[i], Anum_pg_class_reloptions, &nulls[i]);
	}
	for (int i = 0; i < 2; i++)
	{
		Datum		values[Natts_pg_class] = {0};
		bool		isnull[Natts_pg_class] = {false};
		bool		replace[Natts_pg_class] = {false};
		HeapTuple	changed;

		values[Anum_pg_class_reloptions - 1] = options[1 - i];
		isnull[Anum_pg_class_reloptions - 1] = nulls[1 - i];
		replace[Anum_pg_class_reloptions - 1] = true;
		changed = heap_modify_tuple(tuples[i], RelationGetDescr(catalog), values, isnull, replace);
		CatalogTupleUpdate(catalog, &changed->t_self, changed);
	}
	table_close(catalog, RowExclusiveLock);
	CommandCounterIncrement();
}

/* Makes a TOAST table belong to another table. */
static void
rebind_toast_table(Oid toast, Oid owner)
{
	ObjectAddress base;
	ObjectAddress dependent;

	if (deleteDependencyRecordsFor(RelationRelationId, toast, false) != 1)
		elog(ERROR, "TOAST table %u does not depend on one table", toast);
	ObjectAddressSet(base, RelationRelationId, owner);
	ObjectAddressSet(dependent, RelationRelationId, toast);
	recordDependencyOn(&dependent, &base, DEPENDENCY_INTERNAL);
}

/* Gives a TOAST table and its index the names that belong to its owner. */
static void
rename_toast_table(Oid toast, Oid owner, const char *suffix)
{
	Relation	relation = table_open(toast, AccessExclusiveLock);
	List	   *indexes = RelationGetIndexList(relation);

	table_close(relation, NoLock);
	RenameRelationInternal(toast, psprintf("pg_toast_%u%s", owner, suffix), true, false);
	if (list_length(indexes) == 1)
		RenameRelationInternal(linitial_oid(indexes), psprintf("pg_toast_%u%s_index", owner, suffix), true, true);
	CommandCounterIncrement();
}

/* Returns the TOAST table of a table. */
static Oid
find_toast_table(Oid table)
{
	Relation	relation = table_open(table, NoLock);
	Oid			toast = relation->rd_rel->reltoastrelid;

	table_close(relation, NoLock);
	return toast;
}

/*
 * EvpgExchangeSwapContents
 *		Exchanges the contents of a table with those of a copy.  The caller holds
 *		AccessExclusiveLock on both, and has called EvpgExchangeFindObstacle since.
 */
void
EvpgExchangeSwapContents(Oid table_id, Oid copy_id)
{
	Relation	table = table_open(table_id, NoLock);
	Relation	copy = table_open(copy_id, NoLock);
	PgStat_StatTabEntry *counted = pgstat_fetch_stat_tabentry(copy_id);
	List	   *indexes;
	List	   *matches;
	ListCell   *index;
	ListCell   *match;

	CheckTableNotInUse(table, "rebuild");
	CheckTableNotInUse(copy, "rebuild");
	CheckTableForSerializableConflictIn(table);
	TransferPredicateLocksToHeapRelation(table);
	if (!match_indexes(table, copy, &indexes, &matches))
		elog(ERROR, "indexes of tables %u and %u differ", table_id, copy_id);
	pgstat_count_truncate(table);
	if (counted != NULL)
		pgstat_count_heap_insert(table, counted->live_tuples);
	table_close(table, NoLock);
	table_close(copy, NoLock);

	exchange_files(table_id, copy_id);
	if (OidIsValid(find_toast_table(table_id)))
	{
		rebind_toast_table(find_toast_table(table_id), table_id);
		rebind_toast_table(find_toast_table(copy_id), copy_id);
		CommandCounterIncrement();
		rename_toast_table(find_toast_table(copy_id), table_id, "_old");
		rename_toast_table(find_toast_table(table_id), table_id, "");
		exchange_toast_options(find_toast_table(table_id), find_toast_table(copy_id));
	}
	forboth(index, indexes, match, matches)
	{
		LockRelationOid(lfirst_oid(index), AccessExclusiveLock);
		exchange_files(lfirst_oid(index), lfirst_oid(match));
	}
}
