/*-------------------------------------------------------------------------
 *
 * broadcaster.c
 *		The broadcaster of a database: sends the frames of its ring with NOTIFY,
 *		after the commit of the transactions that they are about.
 *
 * If there is no broadcaster, a worker stands in for it.  What a frame
 * announces is durable before it is sent (rule 19).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/shmem.h"
#include "base/testing.h"
#include "broadcast/broadcast.h"
#include "broadcast/frame_ring.h"
#include "commands/async.h"
#include "log/durable.h"
#include "storage/ipc.h"
#include "utils/timestamp.h"
#include "worker/background_process.h"
#include "worker/broadcaster.h"

/* How often an idle broadcaster checks whether the extension still exists; ms. */
#define BROADCASTER_NAPTIME 60000

/* Losses are announced at once if no frames are left, else this often; ms. */
#define ANNOUNCEMENT_PAUSE 1000

/* A worker sends frames that have waited for a broadcaster for so long; ms. */
#define STAND_IN_AFTER 1000

static EvpgFrameBatch frame_batch;

/* Sends a batch of frames with NOTIFY, in a transaction, and frees its room in the ring. */
static void
send_batch(void)
{
	const char *next = frame_batch.bytes;

	EvpgBackgroundBegin();
	/* What the frames announce must not be taken back by a crash. */
	EvpgDurableAwait(frame_batch.lsn);
	for (int i = 0; i < frame_batch.frames; i++)
	{
		EvpgRingFrame frame;

		next = EvpgFrameRingNext(next, &frame);
		for (int j = 0; j < frame.nchannels; j++)
			Async_Notify(frame.channels[j], frame.text);
	}
	if (frame_batch.dropped > 0)
		Async_Notify(EVPG_RESYNC_CHANNEL,
					 psprintf("{\"event\": \"resync\", \"reason\": \"overflow\", \"dropped\": " INT64_FORMAT "}",
							  frame_batch.dropped));
	CommitTransactionCommand();
	EvpgFrameRingReleaseBatch(&frame_batch);
}

/*
 * EvpgBroadcasterStandIn
 *		Sends frames for which there has been no broadcaster for a while: it is
 *		about to be started again, or has found no place.  Returns when to call
 *		again.  Called by workers between rounds.
 */
TimestampTz
EvpgBroadcasterStandIn(void)
{
	static TimestampTz since = 0;
	static long pause = 0;

	if (!EvpgFrameRingIsStranded())
	{
		since = 0;
		return DT_NOEND;
	}
	if (since == 0)
		since = GetCurrentTimestamp();
	if (!TimestampDifferenceExceeds(since, GetCurrentTimestamp(), STAND_IN_AFTER))
		return TimestampTzPlusMilliseconds(since, STAND_IN_AFTER);
	if (!EvpgProcessSetStandIn(true))
		return EvpgBackgroundTimeAfter(STAND_IN_AFTER);
	while (EvpgFrameRingCopyBatch(&frame_batch) && EvpgBackgroundRunRound(send_batch, &pause, true))
		EvpgBackgroundHandleInterrupts();
	(void) EvpgProcessSetStandIn(false);
	return EvpgBackgroundTimeAfter(STAND_IN_AFTER);
}

/* Ends the process if the extension is gone. */
static void
check_extension(void)
{
	EvpgBackgroundBegin();
	CommitTransactionCommand();
}

/* Leaves the announcement of losses for later if frames keep coming. */
static void
defer_announcement(void)
{
	static TimestampTz last = 0;

	if (frame_batch.dropped == 0)
		return;
	if ((frame_batch.frames > 0 || EVPG_MUTATION("frames_keep_coming")) &&
		!TimestampDifferenceExceeds(last, GetCurrentTimestamp(), ANNOUNCEMENT_PAUSE))
		frame_batch.dropped = 0;
	else
		last = GetCurrentTimestamp();
}

/* Runs the broadcaster until it is no longer wanted.  Started by the launcher. */
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
		if (!EvpgFrameRingCopyBatch(&frame_batch))
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
		defer_announcement();
		/* A full queue or a full disk must not fill the log as well. */
		if (!EvpgBackgroundRunRound(send_batch, &pause, true))
		{
			EvpgBackgroundSleepUntil(EvpgBackgroundTimeAfter(Min(pause, 1000)), false);
			continue;
		}
		EvpgBackgroundPauseForBatch(frame_batch.commits > 1, false);
	}
}
