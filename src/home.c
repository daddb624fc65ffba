/*-------------------------------------------------------------------------
 *
 * home.c
 *		Whether this database is the one that evpg was created in, or a copy:
 *		consumers of a copy would send commands and messages a second time, so
 *		they are paused until evpg_activate().
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
#include "catalog.h"
#include "fmgr.h"
#include "home.h"
#include "miscadmin.h"
#include "plan.h"
#include "shared.h"

PG_FUNCTION_INFO_V1(evpg_activate);

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

/* Error if consumers may not run in this database.  The caller is inside EvpgEnter. */
void
EvpgHomeRequire(void)
{
	if (!EvpgHomeHere())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("consumers of this database are paused"),
				 errdetail("It was restored or copied, and the original may still run them."),
				 errhint("Run evpg_activate() if they are to run here.")));
}

/* Lets consumers run in this database; false if they could already. */
Datum
evpg_activate(PG_FUNCTION_ARGS)
{
	EvpgScope	scope;
	Datum		values[2];
	bool		paused;

	EvpgEnter(&scope, "evpg_activate()");
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
		EvpgWakeLauncher();
		EvpgWakeConsumers();
	}
	EvpgLeave(&scope);
	PG_RETURN_BOOL(paused);
}
