/*-------------------------------------------------------------------------
 *
 * prune.c
 *		Prunes what is no longer needed, if evpg_set_retention() sets how long
 *		it is: command ids, messages, instances of sagas, dead letters, events
 *		that were given up.
 *
 * The statements are those of the evpg_prune_ functions, see evpg.prune() in
 * sql/evpg--1.0.sql.  A worker goes through a table some blocks at a time, each
 * batch in a transaction of its own, and pauses in between; its progress is
 * stored in evpg.retention, so that any worker can continue, also after a
 * restart.  The row is locked by the session that prunes, and no other waits
 * for it; nor does pruning wait for rows that others have locked, which are
 * left for the next pass.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/clock.h"
#include "base/statement.h"
#include "base/subtransaction.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "portability/instr_time.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"
#include "worker/prune.h"

PG_FUNCTION_INFO_V1(evpg_set_retention);

/* A worker does not begin batches more often than this; ms. */
#define PAUSE 100

/* What has a retention, of evpg.retention.what. */
static const char *const prunable[] = {"commands", "dead_letters", "inbox", "parked_events", "sagas"};

/* What this process has pruned last. */
static char pruned_last[NAMEDATALEN];

static EvpgStatement select_retentions = {
	.text = "SELECT what"
	" FROM evpg.retention ORDER BY what <= $1, what",
	.types = {TEXTOID}
};

enum
{
	RETENTION_WHAT = 1
};

/*
 * EvpgPruneList
 *		Returns what has a retention in this database, in CurrentMemoryContext: in
 *		turns, so that a table whose pruning takes long does not keep the others from
 *		theirs.  The caller is inside EvpgEnter.
 */
List *
EvpgPruneList(void)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		last = CStringGetTextDatum(pruned_last);
	uint64		rows = EvpgStatementReadLatest(&select_retentions, &last, NULL);
	List	   *names = NIL;

	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);

		names = lappend(names, EvpgResultText(row, RETENTION_WHAT));
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
	return names;
}

/* When this process pruned blocks last, and left others for later; by the monotonic clock. */
static instr_time last_batch;

/* Returns how long this worker still has to pause; ms. */
static long
compute_pause_left(void)
{
	instr_time	since;

	if (INSTR_TIME_IS_ZERO(last_batch))
		return 0;
	INSTR_TIME_SET_CURRENT(since);
	INSTR_TIME_SUBTRACT(since, last_batch);
	return Max(PAUSE - (long) INSTR_TIME_GET_MILLISEC(since), 0);
}

static EvpgStatement select_prune_batch = {
	.text = "SELECT more, next_at"
	" FROM evpg.prune_batch($1)",
	.types = {TEXTOID}
};

enum
{
	PRUNE_BATCH_MORE = 1, PRUNE_BATCH_NEXT_AT
};

/*
 * EvpgPruneRun
 *		Prunes the next blocks of a table, in the current transaction, if they
 *		are due.  Returns true if there is more to do at once, which there never
 *		is for a worker, since it pauses; else lowers *next to when there is.
 *		Skips what other sessions have locked.
 */
bool
EvpgPruneRun(const char *what, TimestampTz *next)
{
	Datum		value = CStringGetTextDatum(what);
	long		pause = EvpgInWorker() ? compute_pause_left() : 0;
	TimestampTz next_at;
	Datum		result;
	bool		more;
	EvpgScope	scope;

	if (pause > 0)
	{
		*next = Min(*next, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), pause));
		return false;
	}
	EvpgEnter(&scope, "evpg_run()");
	(void) EvpgStatementRun(&select_prune_batch, &value, NULL);
	(void) EvpgResultDatum(0, PRUNE_BATCH_MORE, &result);
	more = DatumGetBool(result);
	next_at = EvpgResultDatum(0, PRUNE_BATCH_NEXT_AT, &result) ? DatumGetTimestampTz(result) : DT_NOEND;
	EvpgStatementDone();
	if (!TIMESTAMP_NOT_FINITE(next_at))
		*next = Min(*next, EvpgClockWall(next_at));
	EvpgLeave(&scope);
	if (!more || !EvpgInWorker())
		return more;
	INSTR_TIME_SET_CURRENT(last_batch);
	strlcpy(pruned_last, what, sizeof(pruned_last));
	*next = Min(*next, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PAUSE));
	return false;
}

static bool
is_prunable(const char *what)
{
	for (size_t i = 0; i < lengthof(prunable); i++)
		if (strcmp(what, prunable[i]) == 0)
			return true;
	return false;
}

static EvpgStatement delete_retention = {
	.text = "DELETE FROM evpg.retention"
	" WHERE what = $1",
	.types = {TEXTOID}
};

static EvpgStatement insert_retention = {
	.text = "INSERT INTO evpg.retention (what, retention) VALUES ($1, $2)"
	" ON CONFLICT (what) DO UPDATE"
	" SET retention = excluded.retention, looked_at = excluded.looked_at, next_block = excluded.next_block",
	.types = {TEXTOID, INTERVALOID}
};

/*
 * evpg_set_retention
 *		SQL: evpg_set_retention(what, retention).  Sets how long what is kept;
 *		NULL is permanently.  Workers check at once what is older.
 */
Datum
evpg_set_retention(PG_FUNCTION_ARGS)
{
	char	   *what = EvpgArgName(fcinfo, 0, "what");
	Datum		values[2] = {CStringGetTextDatum(what), PG_GETARG_DATUM(1)};
	Interval	none = {0};
	EvpgScope	scope;

	if (!is_prunable(what))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" has no retention", what),
				 errhint("Use commands, dead_letters, inbox, parked_events or sagas.")));
	if (!PG_ARGISNULL(1))
	{
		if (DatumGetBool(DirectFunctionCall2(interval_lt, values[1], IntervalPGetDatum(&none))))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("retention must not be negative")));

		/*
		 * What is out of range, whatever evpg_set_clock_offset() may set,
		 * must fail here, not in workers.
		 */
		(void) DirectFunctionCall2(timestamptz_mi_interval,
								   TimestampTzGetDatum(GetCurrentTimestamp() - EVPG_MAX_CLOCK_OFFSET), values[1]);
	}
	EvpgEnter(&scope, "evpg_set_retention()");
	(void) EvpgStatementRun(PG_ARGISNULL(1) ? &delete_retention : &insert_retention, values, NULL);
	EvpgStatementDone();
	EvpgWakeConsumersAtEnd();
	EvpgLeave(&scope);
	PG_RETURN_VOID();
}
