/*-------------------------------------------------------------------------
 *
 * clock.c
 *		The clock of evpg: all times that it records or compares are its times.
 *
 * It is the wall clock plus the offset that evpg_set_clock_offset() has set for the
 * database, so that a test need not wait for a timer.  The offset is a row of evpg.clock,
 * which sessions and workers read alike, and keep until an invalidation of that
 * table tells them that it has changed; so no two of them have different clocks.
 *
 * Only how long a process sleeps or a statement waits goes by the wall clock, or
 * by the monotonic one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/registration.h"
#include "base/statement.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evpg_clock_timestamp);
PG_FUNCTION_INFO_V1(evpg_set_clock_offset);

/* evpg.clock */
#define ANUM_CLOCK_OFFSET	2

static int64 clock_offset = 0;	/* microseconds */
static uint64 generation = 0;	/* of it; 0: never read */

/*
 * Reads the offset with a snapshot of the catalog: it sees what is committed
 * now and what this transaction has done, and may be taken at any time, in
 * parallel mode too.
 */
static void
read_offset(void)
{
	uint64		read = EvpgCatalogClockGeneration();
	Relation	relation = table_open(EvpgCatalogGet()->clock, AccessShareLock);
	SysScanDesc scan = systable_beginscan(relation, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple = systable_getnext(scan);
	bool		isnull;

	clock_offset = tuple == NULL ? 0 :
		DatumGetInt64(heap_getattr(tuple, ANUM_CLOCK_OFFSET, RelationGetDescr(relation), &isnull));
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	generation = read;
}

static int64
get_offset(void)
{
	if (unlikely(generation != EvpgCatalogClockGeneration()) && IsTransactionState())
		read_offset();
	return clock_offset;
}

/* Returns the time by the clock of evpg, which advances within a transaction, as pg_catalog.clock_timestamp() does. */
TimestampTz
EvpgClockNow(void)
{
	return GetCurrentTimestamp() + get_offset();
}

/* Returns a time of evpg's clock as one of the wall clock, which a process that sleeps goes by. */
TimestampTz
EvpgClockWall(TimestampTz due)
{
	return due - get_offset();
}

/* Returns the time by the clock of evpg; it advances within a transaction. */
Datum
evpg_clock_timestamp(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(EvpgClockNow());
}

static EvpgStatement update_clock = {
	.text = "INSERT INTO evpg.clock (clock_offset) VALUES ($1)"
	" ON CONFLICT (one) DO UPDATE"
	" SET clock_offset = excluded.clock_offset",
	.types = {INT8OID}
};

/* Moves the clock of the database, for all sessions once this transaction commits. */
Datum
evpg_set_clock_offset(PG_FUNCTION_ARGS)
{
	Interval   *interval;
	int64		days;
	int64		offset = 0;
	Datum		value;
	EvpgScope	scope;

	EvpgArgRefuseNull(fcinfo, 0, "clock_offset");
	interval = PG_GETARG_INTERVAL_P(0);
	days = interval->month * INT64CONST(30) + interval->day;
	/* Each first, so that the sum does not overflow. */
	if (days <= EVPG_MAX_CLOCK_OFFSET / USECS_PER_DAY && days >= -EVPG_MAX_CLOCK_OFFSET / USECS_PER_DAY)
		offset = days * USECS_PER_DAY;
	if (days > EVPG_MAX_CLOCK_OFFSET / USECS_PER_DAY || days < -EVPG_MAX_CLOCK_OFFSET / USECS_PER_DAY ||
		interval->time > EVPG_MAX_CLOCK_OFFSET || interval->time < -EVPG_MAX_CLOCK_OFFSET ||
		offset + interval->time > EVPG_MAX_CLOCK_OFFSET || offset + interval->time < -EVPG_MAX_CLOCK_OFFSET)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("clock offset is out of range"),
				 errdetail("It may be at most 100 years.")));
	value = Int64GetDatum(offset + interval->time);
	EvpgEnter(&scope, "evpg_set_clock_offset()");
	(void) EvpgStatementRun(&update_clock, &value, NULL);
	EvpgStatementDone();
	EvpgRegistrationInvalidate(EvpgCatalogGet()->clock);
	/* Something may be due now, or not any more. */
	EvpgWakeConsumersAtEnd();
	EvpgLeave(&scope);
	PG_RETURN_VOID();
}
