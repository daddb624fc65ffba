/*-------------------------------------------------------------------------
 *
 * register_subscription.c
 *		The SQL functions that create and drop subscriptions.
 *
 * They own the consumer of the name, so they wait for transactions that have fetched or
 * acknowledged, unless there is nothing to create.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/registration.h"
#include "base/statement.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "consumer/consumer.h"
#include "log/fence.h"
#include "subscription/partition.h"
#include "subscription/subscription.h"
#include "usercode/guard.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(evpg_create_subscription);
PG_FUNCTION_INFO_V1(evpg_drop_subscription);

/* Arguments of evpg_create_subscription(). */
enum
{
	ARG_NAME, ARG_AGGREGATE_TYPES, ARG_EVENT_TYPES, ARG_TAGS, ARG_AGGREGATE_IDS, ARG_ID_PREFIX, ARG_START_AT,
	ARG_START_POSITION, ARG_START_TIME, ARG_PARTITIONS, ARG_LEASE_TIME, ARG_MAX_ATTEMPTS, ARG_BACKOFF, ARG_MAX_BACKOFF
};

/* Parameters of the statements. */
enum
{
	COLUMN_NAME, COLUMN_AGGREGATE_TYPES, COLUMN_EVENT_TYPES, COLUMN_TAGS, COLUMN_AGGREGATE_IDS, COLUMN_ID_PREFIX,
	COLUMN_PARTITIONS, COLUMN_LEASE_TIME, COLUMN_MAX_ATTEMPTS, COLUMN_BACKOFF, COLUMN_MAX_BACKOFF, COLUMNS
};

#define FILTER_COLUMNS (COLUMN_PARTITIONS + 1)

/* The shortest time of a lease, in microseconds. */
#define MIN_LEASE_TIME 100000

/* ------------------------------------------------------------------ arguments */

/* Sets the parameters of the arguments, and checks these. */
static void
set_subscription_parameters(FunctionCallInfo fcinfo, Datum *values, char *nulls)
{
	int			partitions = EvpgArgInt(fcinfo, ARG_PARTITIONS, "partitions", 1);

	memset(nulls, ' ', COLUMNS);
	values[COLUMN_NAME] = CStringGetTextDatum(EvpgArgName(fcinfo, ARG_NAME, "subscription name"));
	EvpgCheckNewName(TextDatumGetCString(values[COLUMN_NAME]), "subscription name");
	EvpgParameterArray(values, nulls, COLUMN_AGGREGATE_TYPES,
					   EvpgArgTextArray(fcinfo, ARG_AGGREGATE_TYPES, "aggregate_types"));
	EvpgParameterArray(values, nulls, COLUMN_EVENT_TYPES, EvpgArgTextArray(fcinfo, ARG_EVENT_TYPES, "event_types"));
	EvpgParameterArray(values, nulls, COLUMN_TAGS, EvpgArgTextArray(fcinfo, ARG_TAGS, "tags"));
	EvpgParameterArray(values, nulls, COLUMN_AGGREGATE_IDS, EvpgArgTextArray(fcinfo, ARG_AGGREGATE_IDS, "aggregate_ids"));
	EvpgParameterText(values, nulls, COLUMN_ID_PREFIX, EvpgArgOptionalId(fcinfo, ARG_ID_PREFIX, "id_prefix"));
	if (partitions > EVPG_MAX_PARTITIONS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("partitions must be at most %d", EVPG_MAX_PARTITIONS)));
	values[COLUMN_PARTITIONS] = Int32GetDatum(partitions);
	(void) EvpgSubscriptionTime(fcinfo, ARG_LEASE_TIME, "lease_time", MIN_LEASE_TIME);
	values[COLUMN_LEASE_TIME] = PG_GETARG_DATUM(ARG_LEASE_TIME);
	values[COLUMN_MAX_ATTEMPTS] = Int32GetDatum(EvpgArgInt(fcinfo, ARG_MAX_ATTEMPTS, "max_attempts", 1));
	(void) EvpgSubscriptionTime(fcinfo, ARG_BACKOFF, "backoff", 0);
	values[COLUMN_BACKOFF] = PG_GETARG_DATUM(ARG_BACKOFF);
	(void) EvpgSubscriptionTime(fcinfo, ARG_MAX_BACKOFF, "max_backoff", 0);
	values[COLUMN_MAX_BACKOFF] = PG_GETARG_DATUM(ARG_MAX_BACKOFF);
}

static EvpgStatement select_first_since = {
	.text = "SELECT min(position) FROM evpg.event_log WHERE recorded_at >= $1",
	.types = {TIMESTAMPTZOID}
};

/*
 * EvpgSubscriptionPositionAt
 *		Returns a position after which all events are that were recorded at a time or later.
 *		Reads the whole log.
 */
int64
EvpgSubscriptionPositionAt(TimestampTz time)
{
	int64		stable = EvpgFenceDurablePosition(false);
	Datum		value = TimestampTzGetDatum(time);
	int64		first;

	(void) EvpgStatementReadLatest(&select_first_since, &value, NULL);
	first = EvpgResultInt64(0, 1);
	EvpgStatementDone();
	return first == 0 ? stable : Min(stable, first - 1);
}

/* Raises 22023 if a position is not reached yet: events could still appear below it, which would be left out. */
void
EvpgSubscriptionRequirePosition(int64 position)
{
	if (position > EvpgFenceStablePosition(true))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("position " INT64_FORMAT " is not reached yet", position),
				 errhint("evpg_stable_position() is the last one.")));
}

/* Checks the arguments that name the point where a subscription starts. */
static void
check_start(FunctionCallInfo fcinfo)
{
	char	   *start_at = EvpgArgText(fcinfo, ARG_START_AT, "start_at");
	bool		is_now = (strcmp(start_at, "now") == 0);

	if (!is_now && strcmp(start_at, "beginning") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown start_at \"%s\"", start_at),
				 errhint("Use beginning or now, or give start_position or start_time.")));
	if (is_now + !PG_ARGISNULL(ARG_START_POSITION) + !PG_ARGISNULL(ARG_START_TIME) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a subscription starts at one point"),
				 errhint("Give start_at, or start_position, or start_time.")));
	if (!PG_ARGISNULL(ARG_START_POSITION))
		(void) EvpgArgBigintAtLeast(fcinfo, ARG_START_POSITION, "start_position", 0);
}

/* Returns the position after which a new subscription starts. */
static int64
get_start_position(FunctionCallInfo fcinfo)
{
	if (strcmp(EvpgArgText(fcinfo, ARG_START_AT, "start_at"), "now") == 0)
		return EvpgFenceDurablePosition(true);
	if (!PG_ARGISNULL(ARG_START_TIME))
		return EvpgSubscriptionPositionAt(PG_GETARG_TIMESTAMPTZ(ARG_START_TIME));
	if (PG_ARGISNULL(ARG_START_POSITION) || PG_GETARG_INT64(ARG_START_POSITION) == 0)
		return 0;
	EvpgSubscriptionRequirePosition(PG_GETARG_INT64(ARG_START_POSITION));
	return PG_GETARG_INT64(ARG_START_POSITION);
}

/* ------------------------------------------------------------------ registering */

/* Filters as they are stored: names sorted, once each. */
#define SORTED(parameter) "(SELECT array_agg(DISTINCT n ORDER BY n) FROM unnest(" parameter ") AS n)"

static EvpgStatement insert_subscription = {
	.text = "INSERT INTO evpg.subscription (name, aggregate_types, event_types, tags, aggregate_ids, id_prefix,"
	" partitions, lease_time, max_attempts, backoff, max_backoff)"
	" SELECT $1, " SORTED("$2") ", " SORTED("$3") ", " SORTED("$4") ", " SORTED("$5") ", $6, $7, $8, $9, $10, $11",
	.types = {TEXTOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID, INT4OID, INTERVALOID, INT4OID,
	INTERVALOID, INTERVALOID}
};

static EvpgStatement select_same_filter = {
	.text = "SELECT FROM evpg.subscription"
	" WHERE name = $1 AND (aggregate_types, event_types, tags, aggregate_ids, id_prefix, partitions)"
	" IS NOT DISTINCT FROM (" SORTED("$2") ", " SORTED("$3") ", " SORTED("$4") ", " SORTED("$5") ", $6, $7)",
	.types = {TEXTOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID, INT4OID}
};

/* Raises VE016 unless the subscription of the name takes the same events in as many partitions. */
static void
require_same_filter(const char *name, Datum *values, const char *nulls)
{
	uint64		rows = EvpgStatementReadLatest(&select_same_filter, values, nulls);

	EvpgStatementDone();
	if (rows == 0)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_OTHER_FILTER),
				 errmsg("subscription \"%s\" exists with another filter or number of partitions", name),
				 errdetail("What it has handed out under its checkpoints would not be what the new filter takes."),
				 errhint("Choose another name, or drop the subscription first.")));
}

/* Inserts the rows of a new subscription, whose name this transaction owns. */
static void
create_subscription(FunctionCallInfo fcinfo, const char *name, Datum *values, const char *nulls)
{
	int64		start = get_start_position(fcinfo);

	EvpgConsumerRefuseName(name, "subscription");
	EvpgStatementExecute(&insert_subscription, values, nulls);
	EvpgConsumerCreate(name, "subscription", start);
	EvpgPartitionCreate(name, DatumGetInt32(values[COLUMN_PARTITIONS]), start);
	EvpgRegistrationInvalidate(EvpgCatalogGet()->subscription);
}

/*
 * Returns whether there is a subscription; this transaction shares its lock from then on.
 * It does not wait for consumers, so that a service can create what it needs at each start.
 */
static bool
subscription_exists(const char *name)
{
	(void) EvpgSubscriptionLock(name, true);
	if (EvpgSubscriptionGet(name, true) != NULL)
		return true;

	/*
	 * To strengthen it would be a deadlock of two sessions that create the
	 * same.
	 */
	EvpgSubscriptionUnlock(name);
	return false;
}

/*
 * evpg_create_subscription(...)
 *		Creates a subscription; returns false if there is one of the same filter and number
 *		of partitions.  Raises VE016 if that has another filter, and 42710 if the name is that
 *		of a projection or saga.
 */
Datum
evpg_create_subscription(PG_FUNCTION_ARGS)
{
	Datum		values[COLUMNS];
	char		nulls[COLUMNS];
	char	   *name;
	bool		exists;
	EvpgScope	scope;

	set_subscription_parameters(fcinfo, values, nulls);
	check_start(fcinfo);
	name = TextDatumGetCString(values[COLUMN_NAME]);
	EvpgRefuseInProjection("create subscriptions");
	EvpgEnter(&scope, "evpg_create_subscription()");
	exists = subscription_exists(name);
	if (!exists)
	{
		(void) EvpgConsumerLock(name, true);
		exists = (EvpgSubscriptionGet(name, true) != NULL);
	}
	if (exists)
		require_same_filter(name, values, nulls);
	else
		create_subscription(fcinfo, name, values, nulls);
	EvpgLeave(&scope);
	PG_RETURN_BOOL(!exists);
}

static EvpgStatement delete_subscription = {
	.text = "WITH l AS (DELETE FROM evpg.subscription_lease WHERE subscription = $1),"
	" p AS (DELETE FROM evpg.subscription_partition WHERE subscription = $1)"
	" DELETE FROM evpg.subscription WHERE name = $1",
	.types = {TEXTOID}
};

/*
 * evpg_drop_subscription(name, missing_ok)
 *		Drops a subscription with its checkpoints, leases and parked events; returns whether
 *		there was one.  Its consumers get VE010 from then on.
 */
Datum
evpg_drop_subscription(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "subscription name");
	bool		missing_ok = EvpgArgBool(fcinfo, 1, "missing_ok");
	Datum		value = CStringGetTextDatum(name);
	bool		found;
	EvpgScope	scope;

	EvpgRefuseInProjection("drop subscriptions");
	EvpgEnter(&scope, "evpg_drop_subscription()");
	(void) EvpgConsumerLock(name, true);
	found = (EvpgSubscriptionGet(name, missing_ok) != NULL);
	if (found)
	{
		EvpgStatementExecute(&delete_subscription, &value, NULL);
		EvpgConsumerDrop(name, true);
		EvpgRegistrationInvalidate(EvpgCatalogGet()->subscription);
		EvpgWakeWaitersAtCommit(EVPG_WAIT_EVENTS);
	}
	EvpgLeave(&scope);
	PG_RETURN_BOOL(found);
}
