/*-------------------------------------------------------------------------
 *
 * activation.c
 *		Whether this database is the one that evpg was created in, or a copy:
 *		consumers of a copy would send commands and messages a second time, so
 *		they are inactive until evpg_activate().
 *
 * evpg.meta says for which system identifier and database its contents are.
 * CREATE EXTENSION writes one row, and a dump saves it.  After a restore there
 * is also the row of the database it came from, so a database is at home if
 * there are rows and all of them are its own.  A copy of the whole cluster has
 * the same identifier and the same databases: nothing tells it from the
 * original.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "base/catalog.h"
#include "base/shmem.h"
#include "base/statement.h"
#include "consumer/activation.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"

PG_FUNCTION_INFO_V1(evpg_activate);
PG_FUNCTION_INFO_V1(evpg_is_home);

/* What the row of this database has to say, for EVPG_PLAN_HOME_*. */
static void
own_row(Datum values[2])
{
	values[0] = Int64GetDatum((int64) GetSystemIdentifier());
	values[1] = ObjectIdGetDatum(MyDatabaseId);
}

/*
 * EvpgHomeHere
 *		Whether consumers may run in this database.  The caller is inside
 *		EvpgEnter.  One short statement with a new snapshot.
 */
bool
EvpgHomeHere(void)
{
	Datum		values[2];
	Datum		here;
	bool		result;

	own_row(values);
	(void) EvpgPlanRun(EVPG_PLAN_HOME_READ, values, NULL);
	result = EvpgPlanResult(0, 1, &here) && DatumGetBool(here);
	EvpgPlanDone();
	return result;
}

static void
report_copy(int level)
{
	if (!EvpgHomeHere())
		ereport(level,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("consumers of this database are inactive"),
				 errdetail("It was restored or copied, and the original may still run them."),
				 errhint("Run evpg_activate() if they are to run here.")));
}

/* Error if consumers may not run in this database.  The caller is inside EvpgEnter. */
void
EvpgHomeRequire(void)
{
	report_copy(ERROR);
}

/* Says so, where what was asked for is done and has no effect until they may.  The caller is inside EvpgEnter. */
void
EvpgHomeTell(void)
{
	report_copy(NOTICE);
}

/*
 * Sets sequences past the numbers that rows have: logical replication copies rows
 * and does not draw.  False if there was nothing to be done, as nearly always.
 * The locks keep out who draws, and wait for who has drawn and not committed.
 */
static bool
advance_sequences(void)
{
	Datum		set = BoolGetDatum(false);
	uint64		behind = EvpgPlanReadLatest(EVPG_PLAN_HOME_AHEAD, &set, NULL);
	Oid		   *sequences = NULL;

	if (behind > 0)
		sequences = SPI_palloc(sizeof(Oid) * behind);
	for (uint64 i = 0; i < behind; i++)
	{
		Datum		value;

		(void) EvpgPlanResult(i, 1, &value);
		sequences[i] = DatumGetObjectId(value);
	}
	EvpgPlanDone();
	for (uint64 i = 0; i < behind; i++)
		LockRelationOid(sequences[i], ShareRowExclusiveLock);
	if (behind > 0)
	{
		set = BoolGetDatum(true);
		behind = EvpgPlanReadLatest(EVPG_PLAN_HOME_AHEAD, &set, NULL);
		EvpgPlanDone();
	}
	return behind > 0;
}

/* Whether consumers may run in this database, for views. */
Datum
evpg_is_home(PG_FUNCTION_ARGS)
{
	EvpgScope	scope;
	bool		here;

	EvpgEnter(&scope, NULL);
	here = EvpgHomeHere();
	EvpgLeave(&scope);
	PG_RETURN_BOOL(here);
}

/* Lets consumers run in this database, and sequences draw what no row has; false if both were so already. */
Datum
evpg_activate(PG_FUNCTION_ARGS)
{
	EvpgScope	scope;
	Datum		values[2];
	bool		paused;
	bool		behind;

	EvpgEnter(&scope, "evpg_activate()");
	behind = advance_sequences();
	paused = !EvpgHomeHere();
	if (paused)
	{
		own_row(values);
		(void) EvpgPlanRun(EVPG_PLAN_HOME_WRITE, values, NULL);
		EvpgPlanDone();

		/*
		 * A sequence of a copied database may have drawn ahead of the WAL: a
		 * crash would take positions back.  So many draws write it.
		 */
		(void) EvpgPlanRun(EVPG_PLAN_HOME_DRAW, NULL, NULL);
		EvpgPlanDone();
	}
	if (paused || behind)
	{
		EvpgWakeLauncher();
		EvpgWakeConsumers();
	}
	EvpgLeave(&scope);
	PG_RETURN_BOOL(paused || behind);
}
