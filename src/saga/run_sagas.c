/*-------------------------------------------------------------------------
 *
 * run_sagas.c
 *		evpg_run_sagas(): does what is due in sagas in the transaction of the caller,
 *		for tests and for servers without workers (rule 16).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/command.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/row.h"
#include "consumer/activation.h"
#include "consumer/consumer.h"
#include "funcapi.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "saga/dispatch.h"
#include "saga/route.h"
#include "saga/saga_lock.h"
#include "usercode/guard.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(evpg_run_sagas);

/*
 * Does an item, whose instance is locked, unless another session has done or claimed
 * it; *sent and *dead grow by what comes of it.  What a worker has claimed is left to
 * it: if the caller rolled back, the worker would have missed its turn.
 */
static bool
run_item(EvpgDueItem *item, MemoryContext memory, int64 *sent, int64 *dead)
{
	EvpgDispatchResult result;
	MemoryContext old;

	if ((item->pending && EvpgDueItemIsClaimed(item)) || !EvpgDueItemClaim(item))
		return false;
	old = MemoryContextSwitchTo(memory);
	result = EvpgDispatchItem(item, false, sent, NULL);
	*dead += result == EVPG_DISPATCH_DEAD;
	MemoryContextSwitchTo(old);
	MemoryContextReset(memory);
	CHECK_FOR_INTERRUPTS();
	return result != EVPG_DISPATCH_NOT_TAKEN;
}

/*
 * Routes what the log has, then does up to max_events due items; returns how many
 * commands were sent and how many dead letters written.  What the commands cause is
 * for the next call.  An instance that another session works on is left to it.
 */
Datum
evpg_run_sagas(PG_FUNCTION_ARGS)
{
	int64		left = PG_ARGISNULL(0) ? PG_INT64_MAX : PG_GETARG_INT32(0);
	int64		sent = 0;
	int64		dead = 0;
	bool		idle = false;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext pass = AllocSetContextCreate(caller, "EvpgRunSagas", ALLOCSET_DEFAULT_SIZES);
	MemoryContext memory = AllocSetContextCreate(pass, "EvpgDispatch", ALLOCSET_DEFAULT_SIZES);
	ListCell   *cell;
	EvpgScope	scope;

	if (left < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_events must not be negative")));
	EvpgRefuseInProjection("run sagas");
	EvpgRefuseInSaga("run sagas");
	EvpgCommandRefuseInside("run sagas");
	EvpgEnter(&scope, "evpg_run_sagas()");
	EvpgActivationRequire();
	if (EvpgFenceIsHeld())
		ereport(NOTICE,
				(errmsg("evpg_run_sagas() does not see what this transaction has appended"),
				 errhint("Commit first.")));
	foreach(cell, EvpgConsumerList("saga", NULL))
		dead += EvpgRouteAll(lfirst(cell));
	while (!idle && left > 0)
	{
		idle = true;
		MemoryContextResetOnly(pass);
		MemoryContextSwitchTo(pass);
		foreach(cell, EvpgDueItemList((int) Min(left, 100), EvpgClockNow(), NULL, false))
		{
			EvpgDueItem *item = lfirst(cell);
			ListCell   *next;

			if (left == 0 || !EvpgDueItemLock(item, false) || !run_item(item, memory, &sent, &dead))
				continue;
			left--;
			idle = false;
			if (!item->more || left == 0)
				continue;
			foreach(next, EvpgDueItemListFollowing(item, (int) Min(left, 100)))
			{
				if (!run_item(lfirst(next), memory, &sent, &dead))
					break;
				left--;
			}
		}
	}
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(pass);
	EvpgLeave(&scope);
	PG_RETURN_DATUM(EvpgRowOfCounts(fcinfo, sent, dead));
}
