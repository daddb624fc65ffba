/*-------------------------------------------------------------------------
 *
 * compat.h
 *		What differs between PostgreSQL 15 and 18: the only place that asks for the
 *		version.
 *
 * The sources are written for the newest version: a function, member or type that
 * is older or has other arguments there gets the newest name and arguments here.
 * What has no name of the server in all versions is called Evpg.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_COMPAT_H
#define EVPG_COMPAT_H

#include "access/genam.h"
#include "access/nbtxlog.h"
#include "access/tableam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "commands/sequence.h"
#include "common/string.h"
#include "executor/executor.h"
#include "pgstat.h"
#include "replication/message.h"
#include "storage/lock.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#if PG_VERSION_NUM >= 160000
#include "parser/parse_relation.h"
#endif

/* ------------------------------------------------------------------ 18 */

#if PG_VERSION_NUM < 180000

#define pg_noreturn pg_attribute_noreturn()

#define index_beginscan(table, index, snapshot, instrument, nkeys, norderbys) \
	index_beginscan(table, index, snapshot, nkeys, norderbys)

#endif

/* Exchanges what VACUUM has counted as frozen, which is there since 18. */
static inline void
EvpgExchangeAllFrozen(Form_pg_class left, Form_pg_class right)
{
#if PG_VERSION_NUM >= 180000
	int32		kept = left->relallfrozen;

	left->relallfrozen = right->relallfrozen;
	right->relallfrozen = kept;
#endif
}

/* ------------------------------------------------------------------ 17 */

#if PG_VERSION_NUM < 170000

static inline bool
EvpgLockHeldByMe(const LOCKTAG *tag, LOCKMODE mode, bool or_stronger)
{
	Assert(!or_stronger);
	return LockHeldByMe(tag, mode);
}

#define LockHeldByMe EvpgLockHeldByMe

#define LogLogicalMessage(prefix, message, size, transactional, flush) \
	LogLogicalMessage(prefix, message, size, transactional)

#else

/* old_snapshot_threshold is gone. */
#define TestForOldSnapshot(snapshot, relation, page) ((void) 0)

/* The relation cache needs no such call any more: what it has open lasts to the end of the transaction at most. */
#define RelationCloseSmgrByOid(relation) ((void) 0)

#endif

/* ------------------------------------------------------------------ 16 */

#if PG_VERSION_NUM < 160000

#define F_PG_INPUT_IS_VALID InvalidOid	/* there is no such function */
#define live_tuples n_live_tuples
#define rd_firstRelfilelocatorSubid rd_firstRelfilenodeSubid

static inline bool
EvpgObjectOwnercheck(Oid class_id, Oid object, Oid role)
{
	Assert(class_id == DatabaseRelationId);
	return pg_database_ownercheck(object, role);
}

#define object_ownercheck EvpgObjectOwnercheck

static inline struct config_generic **
EvpgGucVariables(int *count)
{
	*count = GetNumConfigOptions();
	return get_guc_variables();
}

#define get_guc_variables EvpgGucVariables

static inline List *
EvpgNameList(const char *string, Node *error_context)
{
	Assert(error_context == NULL);
	return stringToQualifiedNameList(string);
}

#define stringToQualifiedNameList EvpgNameList

/* There are no indexes that only summarize. */
typedef enum TU_UpdateIndexes
{
	TU_None,
	TU_All,
	TU_Summarizing
} TU_UpdateIndexes;

static inline void
EvpgTupleUpdate(Relation table, ItemPointer tid, TupleTableSlot *slot, Snapshot snapshot, TU_UpdateIndexes *indexes)
{
	bool		all;

	simple_table_tuple_update(table, tid, slot, snapshot, &all);
	*indexes = all ? TU_All : TU_None;
}

#define simple_table_tuple_update EvpgTupleUpdate

static inline TM_Result
EvpgTryTupleUpdate(Relation table, ItemPointer tid, TupleTableSlot *slot, CommandId command, Snapshot snapshot,
				   Snapshot crosscheck, bool wait, TM_FailureData *failure, LockTupleMode *mode, TU_UpdateIndexes *indexes)
{
	bool		all = false;
	TM_Result	result = table_tuple_update(table, tid, slot, command, snapshot, crosscheck, wait, failure, mode, &all);

	*indexes = all ? TU_All : TU_None;
	return result;
}

#define table_tuple_update EvpgTryTupleUpdate

#define ExecInsertIndexTuples(target, slot, estate, update, no_error, conflict, arbiters, only_summarizing) \
	ExecInsertIndexTuples(target, slot, estate, update, no_error, conflict, arbiters)

/* As that of 16 does, whose result is shown in messages. */
static inline char *
EvpgCleanAscii(const char *text, int flags)
{
	StringInfoData clean;

	Assert(flags == 0);
	initStringInfo(&clean);
	for (; *text != '\0'; text++)
		if (*text < 32 || *text > 126)
			appendStringInfo(&clean, "\\x%02x", (unsigned char) *text);
		else
			appendStringInfoChar(&clean, *text);
	return clean.data;
}

#define pg_clean_ascii EvpgCleanAscii

#endif

/*
 * Makes a table the only entry of a range table.  Messages about constraints look
 * at its columns and permissions, so it has some, which nothing checks.
 */
static inline void
EvpgInitRangeTable(EState *estate, Relation table)
{
	RangeTblEntry *entry = makeNode(RangeTblEntry);
#if PG_VERSION_NUM >= 160000
	List	   *permissions = NIL;
#endif

	entry->rtekind = RTE_RELATION;
	entry->relid = RelationGetRelid(table);
	entry->relkind = table->rd_rel->relkind;
	entry->rellockmode = RowExclusiveLock;
#if PG_VERSION_NUM >= 180000
	(void) addRTEPermissionInfo(&permissions, entry);
	ExecInitRangeTable(estate, list_make1(entry), permissions, bms_make_singleton(1));
#elif PG_VERSION_NUM >= 160000
	(void) addRTEPermissionInfo(&permissions, entry);
	ExecInitRangeTable(estate, list_make1(entry), permissions);
#else
	ExecInitRangeTable(estate, list_make1(entry));
#endif
}

/* The arguments of ExecutorCheckPerms_hook, to declare a function and to call one. */
#if PG_VERSION_NUM >= 160000
#define EVPG_CHECK_PERMS_ARGUMENTS(tables, permissions, raise) tables, permissions, raise
#else
#define EVPG_CHECK_PERMS_ARGUMENTS(tables, permissions, raise) tables, raise
#endif

/* What a statement needs on an entry of its range table; a macro, for its first argument is not there before 16. */
#if PG_VERSION_NUM >= 160000
#define EvpgRequiredPerms(permissions, entry) \
	((entry)->perminfoindex == 0 ? 0 : getRTEPermissionInfo(permissions, entry)->requiredPerms)
#else
#define EvpgRequiredPerms(permissions, entry) ((entry)->requiredPerms)
#endif

/* Fills in the WAL record of nbtree that is in conflict with snapshots which do not see a transaction. */
static inline xl_btree_reuse_page
EvpgBtreeReusePage(Relation table, FullTransactionId horizon)
{
	xl_btree_reuse_page record = {0};

#if PG_VERSION_NUM >= 160000
	record.locator = table->rd_locator;
	record.snapshotConflictHorizon = horizon;
	record.isCatalogRel = RelationIsAccessibleInLogicalDecoding(table);
#else
	record.node = table->rd_node;
	record.latestRemovedFullXid = horizon;
#endif
	return record;
}

/* Begins the WAL record of a sequence; its row follows. */
static inline xl_seq_rec
EvpgSequenceRecord(Relation sequence)
{
	xl_seq_rec	record;

#if PG_VERSION_NUM >= 160000
	record.locator = sequence->rd_locator;
#else
	record.node = sequence->rd_node;
#endif
	return record;
}

#endif							/* EVPG_COMPAT_H */
