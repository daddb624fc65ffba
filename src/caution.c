/*-------------------------------------------------------------------------
 *
 * caution.c
 *		What may have crashed the server is tried alone (rules 10 and 17).
 *
 * User code in C can take the whole server down.  What a consumer had in hand
 * then is not known afterwards, but it is not above the last position that was
 * drawn.  So after each start of the server a consumer is cautious up to there:
 * it takes events one by one, later a few at a time, and each such batch is on
 * disk before the next one begins.  Before an event is tried alone an attempt is
 * counted, in a transaction of its own that is flushed; its success or its failure
 * takes the count back.  So only a crash while an event is alone counts, and after
 * max_attempts of them the consumer does what on_error says.
 *
 * A consumer that has nothing to catch up after a start is not slowed down, and
 * none is in normal operation.
 *
 * A start of the server is known by the handle of its dynamic shared memory, which
 * is a new random number after a crash, too, and needs no preloading.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "caution.h"
#include "commands/dbcommands.h"
#include "fence.h"
#include "miscadmin.h"
#include "plan.h"
#include "storage/pg_shmem.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

/* So many events are tried one by one; then batches grow by one for each so many. */
#define ALONE 16

/* Which start of the server this is. */
int64
EvpgCautionServerStart(void)
{
	return ((PGShmemHeader *) UsedShmemSegAddr)->dsm_control;
}

/* The first event that a filter lets through, 0 if there is none. */
static int64
find_first(const EvpgLogFilter *filter)
{
	EvpgLogScan *scan;
	EvpgEvent	event;
	int64		position = 0;

	PushActiveSnapshot(GetTransactionSnapshot());
	scan = EvpgLogScanAll(filter);
	if (EvpgLogScanNext(scan, &event))
		position = event.position;
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
	return position;
}

/*
 * EvpgCautionAsk
 *		What a consumer, which the caller owns, may do next with the events of a
 *		filter.  *position is the event that is tried alone, or is given up.
 */
EvpgCaution
EvpgCautionAsk(const EvpgConsumer *consumer, const EvpgLogFilter *filter, int max_attempts, int *limit, int64 *position)
{
	bool		begun = (consumer->server_start == EvpgCautionServerStart());
	int64		cautious_to = begun ? consumer->cautious_to : EvpgFenceLastDrawn();
	Datum		values[3] = {
		CStringGetTextDatum(consumer->name),
		Int64GetDatum(EvpgCautionServerStart()),
		Int64GetDatum(cautious_to)
	};

	*limit = 0;
	*position = 0;
	if (filter->after >= cautious_to)
		return EVPG_CAUTION_GO;
	*limit = 1 + (begun ? Min(consumer->proven, PG_INT32_MAX) / ALONE : 0);
	if (*limit > 1)
		return EVPG_CAUTION_GO;
	*position = find_first(filter);
	if (*position == 0)
	{
		/* No code of the consumer will run. */
		*limit = 0;
		return EVPG_CAUTION_GO;
	}
	if (begun && consumer->crashes > 0)
		return consumer->crashes > max_attempts ? EVPG_CAUTION_GIVE_UP : EVPG_CAUTION_GO;
	if (consumer->crashes > max_attempts)
		return EVPG_CAUTION_LEAVE_ALONE;
	if (consumer->crashes > 0)
		ereport(WARNING,
				(errmsg("the server has crashed %d times while \"%s\" of database \"%s\" had the event at position " INT64_FORMAT " alone",
						consumer->crashes, consumer->name, get_database_name(MyDatabaseId), *position),
				 consumer->crashes < max_attempts ? errdetail("It is tried once more.") :
				 errdetail("It is not tried any more.")));
	(void) EvpgPlanRun(EVPG_PLAN_CONSUMER_TRY, values, NULL);
	EvpgPlanDone();
	ForceSyncCommit();
	return EVPG_CAUTION_COUNTED;
}

/* A batch with a limit has come to an end, which must not be taken back. */
void
EvpgCautionProven(int limit)
{
	if (limit > 0)
		ForceSyncCommit();
}

/* What is written down instead of an error. */
ErrorData *
EvpgCautionError(int attempts)
{
	ErrorData  *error = palloc0(sizeof(ErrorData));

	error->sqlerrcode = ERRCODE_CRASH_SHUTDOWN;
	error->message = psprintf("%d attempts ended without a result", attempts);
	error->detail = "The server crashed each time, or the session was terminated.";
	return error;
}
