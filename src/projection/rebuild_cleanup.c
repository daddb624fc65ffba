/*-------------------------------------------------------------------------
 *
 * rebuild_cleanup.c
 *		Old builds of projections: their rows are deleted in batches after a rebuild
 *		has replaced them or was cancelled, or the projection was dropped.
 *
 * A transaction that deletes them owns the consumer.  A key that the new build does
 * not have gets a tombstone there, a row that is marked as deleted: from it a client
 * that catches up by positions learns that the key is gone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/catalog.h"
#include "base/locks.h"
#include "base/names.h"
#include "base/statement.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "consumer/consumer.h"
#include "log/fence.h"
#include "projection/rebuild.h"
#include "utils/builtins.h"

/* The number of rows of an old build that a transaction deletes. */
#define ROWS_AT_ONCE 5000

static EvpgStatement insert_tombstones = {
	.text = "INSERT INTO evpg.projection_state (build, key, generation, version, position, deleted, updated_at)"
	" SELECT p.build, k.key, 1, 1, $3, true, evpg.clock_timestamp()"
	" FROM evpg.projection p, LATERAL unnest($2) AS k (key)"
	" WHERE p.name = $1 ORDER BY k.key COLLATE \"C\""
	" ON CONFLICT (build, key) DO NOTHING",
	.types = {TEXTOID, TEXTARRAYOID, INT8OID}
};

/* Writes tombstones of keys that are gone, unless the keys have rows; in the order of keys, as appenders lock them. */
static void
write_tombstones(const char *name, List *keys)
{
	Datum		values[3] = {CStringGetTextDatum(name), EvpgNamesToArray(keys)};
	ListCell   *cell;

	if (keys == NIL)
		return;
	EvpgFenceEnter();
	values[2] = Int64GetDatum(EvpgFenceDrawPositions(1));
	EvpgStatementExecute(&insert_tombstones, values, NULL);
	foreach(cell, keys)
		EvpgWakeWaitersAtCommit(EvpgHashPair(name, lfirst(cell)));
}

/* A build that is not read any more, as its row has it. */
typedef struct OldBuild
{
	int64		build;
	char	   *name;
	bool		replaced;		/* by a rebuild, so keys may get tombstones */
	char	   *clean_from;		/* keys before this one are deleted */
} OldBuild;

enum
{
	OLD_BUILD = 1, OLD_NAME, OLD_REPLACED, OLD_CLEAN_FROM
};

static EvpgStatement select_old_build = {
	.text = "SELECT build, name, replaced, clean_from"
	" FROM evpg.old_build"
	" WHERE build > $1 ORDER BY build LIMIT 1",
	.types = {INT8OID}
};

/* Reads the first old build above a build, in CurrentMemoryContext; returns false if there is none. */
static bool
read_old_build(int64 above, OldBuild *old)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		value = Int64GetDatum(above);
	bool		found = EvpgStatementReadLatest(&select_old_build, &value, NULL) > 0;

	if (found)
	{
		MemoryContext spi = MemoryContextSwitchTo(caller);

		old->build = EvpgResultInt64(0, OLD_BUILD);
		old->name = EvpgResultText(0, OLD_NAME);
		old->replaced = EvpgResultInt64(0, OLD_REPLACED) != 0;
		old->clean_from = EvpgResultText(0, OLD_CLEAN_FROM);
		MemoryContextSwitchTo(spi);
	}
	EvpgStatementDone();
	return found;
}

static EvpgStatement delete_rows_of_build = {
	.text = "DELETE FROM evpg.projection_state"
	" WHERE ctid = ANY (ARRAY("
	"SELECT ctid FROM evpg.projection_state WHERE build = $1 AND key >= $2 ORDER BY key LIMIT $3))"
	" RETURNING key, deleted",
	.types = {INT8OID, TEXTOID, INT8OID}
};

/*
 * Deletes some rows, and returns how many; adds the keys of those that were not
 * deleted before to *keys, and sets *last to the last key of all.
 */
static uint64
delete_some_old_rows(const OldBuild *old, List **keys, char **last)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[3] = {Int64GetDatum(old->build), CStringGetTextDatum(old->clean_from), Int64GetDatum(ROWS_AT_ONCE)};
	uint64		rows = EvpgStatementRun(&delete_rows_of_build, values, NULL);

	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext spi = MemoryContextSwitchTo(caller);
		char	   *key = EvpgResultText(row, 1);
		bool		deleted = EvpgResultInt64(row, 2) != 0;

		if (row == 0 || strcmp(key, *last) > 0)
			*last = key;
		if (!deleted)
			*keys = lappend(*keys, key);
		MemoryContextSwitchTo(spi);
	}
	EvpgStatementDone();
	return rows;
}

static EvpgStatement update_old_build = {
	.text = "UPDATE evpg.old_build"
	" SET clean_from = $2"
	" WHERE build = $1",
	.types = {INT8OID, TEXTOID}
};

static EvpgStatement delete_old_build = {
	.text = "DELETE FROM evpg.old_build"
	" WHERE build = $1",
	.types = {INT8OID}
};

/* Deletes some rows of a build, and its own row when there are no more.  The caller owns the consumer. */
static void
clean_old_build(const OldBuild *old)
{
	List	   *keys = NIL;
	char	   *last;
	Datum		values[2] = {Int64GetDatum(old->build)};

	if (delete_some_old_rows(old, &keys, &last) < ROWS_AT_ONCE)
		EvpgStatementExecute(&delete_old_build, values, NULL);
	else
	{
		/*
		 * The next key that can exist: the transaction that goes on must not
		 * read the deleted rows again.
		 */
		values[1] = CStringGetTextDatum(psprintf("%s\001", last));
		EvpgStatementExecute(&update_old_build, values, NULL);
	}
	if (old->replaced)
		write_tombstones(old->name, keys);
}

/*
 * EvpgRebuildCleanUpBuild
 *		Deletes some rows of a build that this transaction has made an old one; wakes
 *		workers at commit to delete the rest.  The caller owns the consumer.
 */
void
EvpgRebuildCleanUpBuild(int64 build)
{
	OldBuild	old;

	if (read_old_build(build - 1, &old) && old.build == build)
		clean_old_build(&old);
	EvpgWakeConsumersAtEnd();
}

/*
 * EvpgRebuildCleanUp
 *		Deletes some rows of an old build, in the current transaction, which the caller
 *		commits at once.  Returns false if there are none, or if other sessions own the
 *		consumers of their projections, so that they may drop them or write the rows of
 *		the build that is read.
 */
bool
EvpgRebuildCleanUp(void)
{
	EvpgScope	scope;
	OldBuild	old = {0};
	bool		cleaned = false;

	EvpgEnter(&scope, "evpg_run()");
	while (!cleaned && read_old_build(old.build, &old))
	{
		int64		build = old.build;

		if (!EvpgConsumerLock(old.name, false))
			continue;
		/* As it is now that no other session can change it. */
		cleaned = read_old_build(build - 1, &old) && old.build == build;
		if (cleaned)
			clean_old_build(&old);
		old.build = build;
	}
	EvpgLeave(&scope);
	return cleaned;
}

static EvpgStatement insert_abandoned_build = {
	.text = "WITH o AS (UPDATE evpg.old_build SET replaced = false WHERE name = $1)"
	" INSERT INTO evpg.old_build (build, name)"
	" SELECT build, name"
	" FROM evpg.projection"
	" WHERE name = $1 RETURNING build",
	.types = {TEXTOID}
};

/*
 * EvpgRebuildAbandonRows
 *		Makes the rows of a projection that is about to be dropped an old build, without
 *		tombstones, and deletes some.  The caller owns the consumer and keeps appenders
 *		out.
 */
void
EvpgRebuildAbandonRows(const char *name)
{
	Datum		value = CStringGetTextDatum(name);
	int64		build = EvpgStatementReturnId(&insert_abandoned_build, &value, NULL);

	if (build != 0)
		EvpgRebuildCleanUpBuild(build);
}
