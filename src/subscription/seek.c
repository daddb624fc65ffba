/*-------------------------------------------------------------------------
 *
 * seek.c
 *		The SQL function that moves a subscription to another position.
 *
 * It owns the consumer, so it waits for transactions that have fetched or acknowledged,
 * and ends all leases: what is in flight is not acknowledged any more.  What is parked
 * or skipped stays so.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/statement.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "consumer/consumer.h"
#include "subscription/announce.h"
#include "subscription/subscription.h"
#include "usercode/guard.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evpg_seek);

static EvpgStatement end_all_leases = {
	.text = "UPDATE evpg.subscription_lease"
	" SET consumer = NULL, lease = 0, acked = 0, handed = 0, replaying = false"
	" WHERE subscription = $1 AND consumer IS NOT NULL",
	.types = {TEXTOID}
};

static EvpgStatement move_partitions = {
	.text = "UPDATE evpg.subscription_partition"
	" SET slot = NULL, checkpoint = $2, replay_to = NULL, cautious_to = 0, attempt_position = 0, attempts = 0,"
	" retry_at = NULL"
	" WHERE subscription = $1",
	.types = {TEXTOID, INT8OID}
};

static EvpgStatement end_replays = {
	.text = "UPDATE evpg.parked_event SET replaying = false"
	" WHERE name = $1 AND skip_reason IS NULL AND replaying",
	.types = {TEXTOID}
};

/* Returns the position that the arguments name. */
static int64
get_target(FunctionCallInfo fcinfo)
{
	int64		position;

	if (PG_ARGISNULL(1) == PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a subscription is moved to one point"),
				 errhint("Give to_position or to_time.")));
	if (!PG_ARGISNULL(2))
		return EvpgSubscriptionPositionAt(PG_GETARG_TIMESTAMPTZ(2));
	position = EvpgArgBigintAtLeast(fcinfo, 1, "to_position", 0);
	EvpgSubscriptionRequirePosition(position);
	return position;
}

/*
 * evpg_seek(subscription, to_position, to_time)
 *		Lets a subscription hand out next the events after a position, or recorded at a time
 *		or later; returns the position.  Its consumers lose their leases.
 */
Datum
evpg_seek(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "subscription name");
	Datum		values[2] = {CStringGetTextDatum(name)};
	int64		position;
	EvpgScope	scope;

	EvpgRefuseInProjection("move subscriptions");
	EvpgEnter(&scope, "evpg_seek()");
	(void) EvpgConsumerLock(name, true);
	(void) EvpgSubscriptionGet(name, false);
	position = get_target(fcinfo);
	values[1] = Int64GetDatum(position);
	EvpgStatementExecute(&end_all_leases, values, NULL);
	EvpgStatementExecute(&move_partitions, values, NULL);
	EvpgStatementExecute(&end_replays, values, NULL);
	EvpgWakeWaitersAtCommit(EVPG_WAIT_EVENTS);
	EvpgAnnounceAtCommit(name);
	EvpgLeave(&scope);
	PG_RETURN_INT64(position);
}
