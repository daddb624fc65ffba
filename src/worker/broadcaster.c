/*-------------------------------------------------------------------------
 *
 * broadcaster.c
 *		The broadcaster of a database: sends the frames of its ring, after the commit
 *		of the transactions that they are about.
 *
 * If there is no broadcaster, a worker stands in for it.  What a frame tells is
 * flushed before it is sent (rule 19).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/shmem.h"
#include "base/testing.h"
#include "broadcast/broadcast.h"
#include "broadcast/ring.h"
#include "commands/async.h"
#include "log/durable.h"
#include "storage/ipc.h"
#include "utils/timestamp.h"
#include "worker/background_process.h"
#include "worker/broadcaster.h"

/* An idle broadcaster looks this often whether the extension is still there; ms. */
#define BROADCASTER_NAPTIME 60000

/* Losses are announced at once if no frames are left, else this often; ms. */
#define ANNOUNCEMENT_PAUSE 1000

/* A worker sends frames that have waited for a broadcaster for so long; ms. */
#define STAND_IN_AFTER 1000

static EvpgRingBatch batch;

static void
send_batch(void)
{
	const char *frame = batch.bytes;

	EvpgBackgroundBegin();
	/* What the frames tell must not be taken back by a crash. */
	EvpgDurableAwait(batch.lsn);
	for (int i = 0; i < batch.frames; i++)
	{
		const char *key_channel;
		const char *projection_channel;
		const char *text;

		frame = EvpgRingNext(frame, &key_channel, &projection_channel, &text);
		Async_Notify(key_channel, text);
		Async_Notify(projection_channel, text);
	}
	if (batch.dropped > 0)
		Async_Notify(EVPG_RESYNC_CHANNEL,
					 psprintf("{\"event\": \"resync\", \"reason\": \"overflow\", \"dropped\": " INT64_FORMAT "}", batch.dropped));
	CommitTransactionCommand();
	EvpgRingSent(&batch);
}

/*
 * EvpgBroadcasterStandIn
 *		Sends frames for which there has been no broadcaster for a while: it is still
 * to be started again, or has found no place.  Returns when to look again.
 */
TimestampTz
EvpgBroadcasterStandIn(void)
{
	static TimestampTz since = 0;
	static long pause = 0;

	if (!EvpgRingStranded())
	{
		since = 0;
		return DT_NOEND;
	}
	if (since == 0)
		since = GetCurrentTimestamp();
	if (!TimestampDifferenceExceeds(since, GetCurrentTimestamp(), STAND_IN_AFTER))
		return TimestampTzPlusMilliseconds(since, STAND_IN_AFTER);
	if (!EvpgProcessStandIn(true))
		return EvpgBackgroundTimeAfter(STAND_IN_AFTER);
	while (EvpgRingTake(&batch) && EvpgBackgroundRunRound(send_batch, &pause, true))
		EvpgBackgroundHandleInterrupts();
	(void) EvpgProcessStandIn(false);
	return EvpgBackgroundTimeAfter(STAND_IN_AFTER);
}

static void
check_extension(void)
{
	EvpgBackgroundBegin();
	CommitTransactionCommand();
}

/* Leaves the announcement of losses for later if frames go on coming. */
static void
hold_back_announcement(void)
{
	static TimestampTz last = 0;

	if (batch.dropped == 0)
		return;
	if ((batch.frames > 0 || EVPG_MUTATION("frames_keep_coming")) &&
		!TimestampDifferenceExceeds(last, GetCurrentTimestamp(), ANNOUNCEMENT_PAUSE))
		batch.dropped = 0;
	else
		last = GetCurrentTimestamp();
}

/* The broadcaster: runs until it is not wanted any more. */
void
evpg_broadcaster_main(Datum arg)
{
	long		pause = 0;

	EvpgBackgroundConnect();
	EvpgBackgroundAttach();
	for (;;)
	{
		EvpgBackgroundHandleInterrupts();
		EvpgBackgroundProcess->woken = false;
		if (!EvpgRingTake(&batch))
		{
			/* Its frames can go by NOTIFY; work that no worker does cannot. */
			if (EvpgShmem->crowded)
				proc_exit(0);
			if (EvpgBackgroundRunRound(check_extension, &pause, false))
				EvpgBackgroundSleepUntil(EvpgBackgroundTimeAfter(BROADCASTER_NAPTIME), true);
			else
				EvpgBackgroundSleepUntil(EvpgBackgroundTimeAfter(pause), false);
			continue;
		}
		hold_back_announcement();
		/* A full queue or a full disk must not fill the log as well. */
		if (!EvpgBackgroundRunRound(send_batch, &pause, true))
		{
			EvpgBackgroundSleepUntil(EvpgBackgroundTimeAfter(Min(pause, 1000)), false);
			continue;
		}
		EvpgBackgroundGather(batch.commits > 1);
	}
}
