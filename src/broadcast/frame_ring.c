/*-------------------------------------------------------------------------
 *
 * frame_ring.c
 *		Frames on their way from a transaction to the broadcaster (rule 15), so
 *		that no writer runs NOTIFY.
 *
 * A transaction collects its frames in memory of its own, and drops those of
 * subtransactions that are rolled back.  When it has committed, it copies them
 * into the ring of its database: after the commit is visible, and before its
 * locks are released, so the frames of a key or a stream, which has an advisory
 * lock, are in the order of the commits.  Nothing may fail there: there is only a lock, a
 * copy, and a latch.
 *
 * Frames for which there is no room are dropped and counted, all frames of a
 * transaction or none; the broadcaster announces it.  A transaction does not
 * keep more than the ring could take.
 *
 * If there is no broadcaster for a while, a worker of the database sends the
 * waiting frames (broadcaster.c); one process at a time has that part.
 *
 * The broadcaster copies the oldest frames out, sends them, and only then frees
 * their room: a frame can be sent twice, but not get lost.  It works on the
 * slot it is attached to, which is not given to another database before it
 * ends.
 *
 * In the ring a frame is its size and the number of its channels, then its text
 * and the channels, all strings, aligned.  head and tail count bytes since the
 * start of the server; a frame may wrap around the end.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/testing.h"
#include "broadcast/frame_ring.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(evpg_broadcast_counters);

/* The broadcaster takes no more than this at once, in bytes. */
#define MAX_BATCH (256 * 1024)

/* Frames of a subtransaction that follow each other. */
typedef struct FrameGroup
{
	SubTransactionId subid;
	int			start;			/* in frames.data */
	int64		count;
	bool		lost;			/* frames.data does not have all up to here */
} FrameGroup;

/* What a frame begins with in the ring. */
typedef struct FrameHeader
{
	uint32		size;			/* of all of it */
	uint32		nchannels;
} FrameHeader;

int			EvpgBroadcastBy;

/* The frames of this transaction, in TopTransactionContext; frame_groups is NULL if it has none. */
static StringInfoData frames;
static FrameGroup *frame_groups = NULL;
static int	nframe_groups;
static int	frame_groups_space;

/* To be reported at commit: a broadcaster is missing. */
static bool want_broadcaster = false;

static Size
get_ring_size(void)
{
	return (Size) EvpgBroadcastBuffer * 1024;
}

/* ------------------------------------------------------------------ collecting */

/*
 * Returns whether frames of other transactions wait.  Read without the ring's
 * lock: a transaction that holds the lock of a key sees what the last holder
 * has put there before it released that lock, and tail moves only when the
 * frames before it have been sent.
 */
static bool
frames_are_waiting(const EvpgDatabase *slot)
{
	const volatile EvpgFrameRing *ring = &slot->ring;

	return ring->head != ring->tail;
}

/*
 * EvpgFrameRingPrepare
 *		Returns whether the frames of this transaction go through the ring now:
 *		if there is a broadcaster, or if it is needed anyway, but not without
 *		shared memory or a slot in it.  While frames wait there, those of later
 *		transactions go the same way, whatever evpg.broadcast is and whether
 *		there is a broadcaster or not, since NOTIFY would overtake them; so do
 *		those of a transaction that began with the ring.  If a broadcaster is
 *		missing it is asked for at commit.
 */
bool
EvpgFrameRingPrepare(void)
{
	bool		begun = frame_groups != NULL && nframe_groups > 0;
	EvpgDatabase *slot = EvpgShmemDatabase(begun || EvpgBroadcastBy != EVPG_FRAMES_BY_COMMIT);
	bool		bound;

	if (slot == NULL)
		return false;
	bound = begun || (!EVPG_MUTATION("frames_overtake") && frames_are_waiting(slot));
	if (!bound && EvpgBroadcastBy == EVPG_FRAMES_BY_COMMIT)
		return false;
	if (slot->processes[EVPG_BROADCASTER].pid != 0)
		return true;
	want_broadcaster = true;
	return bound || EvpgBroadcastBy == EVPG_FRAMES_BY_WORKER;
}

static void
begin_collecting(void)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

	initStringInfo(&frames);
	frame_groups_space = 8;
	frame_groups = palloc(sizeof(FrameGroup) * frame_groups_space);
	nframe_groups = 0;
	MemoryContextSwitchTo(old);
}

/* Returns the group that a new frame belongs to. */
static FrameGroup *
get_frame_group(void)
{
	SubTransactionId subid = GetCurrentSubTransactionId();

	if (frame_groups == NULL)
		begin_collecting();
	if (nframe_groups == 0 || frame_groups[nframe_groups - 1].subid != subid)
	{
		if (nframe_groups == frame_groups_space)
		{
			frame_groups = repalloc_huge(frame_groups, sizeof(FrameGroup) * frame_groups_space * 2);
			frame_groups_space *= 2;
		}
		frame_groups[nframe_groups].subid = subid;
		frame_groups[nframe_groups].start = frames.len;
		frame_groups[nframe_groups].count = 0;
		frame_groups[nframe_groups].lost = nframe_groups > 0 && frame_groups[nframe_groups - 1].lost;
		nframe_groups++;
	}
	return &frame_groups[nframe_groups - 1];
}

/*
 * EvpgFrameRingAdd
 *		Sends a text to up to EVPG_FRAME_CHANNELS channels at commit.  The
 *		strings are copied.  If they do not fit the ring, all frames of the
 *		transaction are dropped at commit, and counted.
 */
void
EvpgFrameRingAdd(const char *text, const char *const *channels, int nchannels)
{
	FrameHeader header = {.size = sizeof(FrameHeader) + strlen(text) + 1, .nchannels = nchannels};
	FrameGroup *group = get_frame_group();

	Assert(nchannels <= EVPG_FRAME_CHANNELS);
	group->count++;
	for (int i = 0; i < nchannels; i++)
		header.size += strlen(channels[i]) + 1;
	header.size = MAXALIGN(header.size);
	group->lost |= frames.len + header.size > get_ring_size();
	if (group->lost)
		return;
	enlargeStringInfo(&frames, header.size);
	appendBinaryStringInfo(&frames, (char *) &header, sizeof(header));
	appendBinaryStringInfo(&frames, text, strlen(text) + 1);
	for (int i = 0; i < nchannels; i++)
		appendBinaryStringInfo(&frames, channels[i], strlen(channels[i]) + 1);
	while (frames.len % MAXIMUM_ALIGNOF != 0)
		appendStringInfoChar(&frames, '\0');
}

/* Drops the frames of a subtransaction that is rolled back and of those in it, which have higher ids. */
static void
ring_subxact_callback(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	if (event != SUBXACT_EVENT_ABORT_SUB || frame_groups == NULL)
		return;
	while (nframe_groups > 0 && frame_groups[nframe_groups - 1].subid >= mine)
	{
		nframe_groups--;
		frames.len = frame_groups[nframe_groups].start;
	}
}

/* ------------------------------------------------------------------ at commit */

/*
 * Copies bytes into the ring from head on.  The caller holds the lock, and has
 * checked that there is room.
 */
static void
copy_into_ring(EvpgFrameRing *ring, const char *bytes, Size size)
{
	Size		at = ring->head % get_ring_size();
	Size		first = Min(size, get_ring_size() - at);

	memcpy(ring->bytes + at, bytes, first);
	memcpy(ring->bytes, bytes + first, size - first);
	ring->head += size;
}

/* Copies the frames of this transaction into the ring, or drops and counts them if there is no room. */
static void
copy_frames_to_ring(EvpgDatabase *slot, int64 count)
{
	EvpgFrameRing *ring = &slot->ring;

	LWLockAcquire(ring->lock, LW_EXCLUSIVE);
	ring->commits++;
	ring->lsn = Max(ring->lsn, XactLastCommitEnd);
	if (slot->database != MyDatabaseId)
		;						/* the extension is gone, and its listeners */
	else if (frame_groups[nframe_groups - 1].lost || ring->head - ring->tail + frames.len > get_ring_size())
		ring->dropped += count;
	else
	{
		copy_into_ring(ring, frames.data, frames.len);
		ring->put += count;
	}
	LWLockRelease(ring->lock);
	EvpgWakeProcess(&slot->processes[EVPG_BROADCASTER]);
}

/* Hands the frames of this transaction over, after its commit, and asks for a missing broadcaster. */
static void
publish_frames(void)
{
	EvpgDatabase *slot = EvpgShmemDatabase(false);
	int64		count = 0;

	if (slot == NULL)
		return;
	for (int i = 0; frame_groups != NULL && i < nframe_groups; i++)
		count += frame_groups[i].count;
	if (count > 0)
		copy_frames_to_ring(slot, count);
	if (want_broadcaster && !slot->wants_broadcaster)
	{
		slot->wants_broadcaster = true;
		EvpgWakeLauncher();
	}
}

/* Refuses PREPARE of a transaction with frames, and publishes them at commit. */
static void
ring_xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_PREPARE && frame_groups != NULL && nframe_groups > 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has sent frames"),
				 errhint("Set evpg.broadcast to off in a transaction that is to be prepared.")));
	if (event == XACT_EVENT_COMMIT && (frame_groups != NULL || want_broadcaster))
		publish_frames();
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
	{
		frame_groups = NULL;
		want_broadcaster = false;
	}
}

static const struct config_enum_entry broadcast_ways[] = {
	{"auto", EVPG_FRAMES_AUTO, false},
	{"commit", EVPG_FRAMES_BY_COMMIT, false},
	{"worker", EVPG_FRAMES_BY_WORKER, false},
	{"off", EVPG_FRAMES_OFF, false},
	{"on", EVPG_FRAMES_AUTO, true},
	{"true", EVPG_FRAMES_AUTO, true},
	{"false", EVPG_FRAMES_OFF, true},
	{NULL, 0, false}
};

/* Refuses the value worker without a broadcaster: frames that no process would send must not be collected. */
static bool
check_broadcast(int *value, void **extra, GucSource source)
{
	if (*value != EVPG_FRAMES_BY_WORKER || EvpgShmemPreloaded() || process_shared_preload_libraries_in_progress)
		return true;
	GUC_check_errdetail("There is no broadcaster: the library is not preloaded.");
	GUC_check_errhint("Put evpg into \"shared_preload_libraries\" and restart the server.");
	return false;
}

/*
 * EvpgFrameRingInit
 *		Defines evpg.broadcast, which needs a broadcaster for some values, and registers
 *		the transaction callbacks.  Called once, from _PG_init.
 */
void
EvpgFrameRingInit(void)
{
	DefineCustomEnumVariable("evpg.broadcast",
							 "How frames are sent to listeners.",
							 "auto: by the broadcaster if there is one, else with the commit.",
							 &EvpgBroadcastBy, EVPG_FRAMES_AUTO, broadcast_ways, PGC_SUSET,
							 0, check_broadcast, NULL, NULL);
	RegisterXactCallback(ring_xact_callback, NULL);
	RegisterSubXactCallback(ring_subxact_callback, NULL);
}

/* ------------------------------------------------------------------ the broadcaster's side */

/*
 * EvpgFrameRingCopyBatch
 *		Copies the oldest frames into a batch, whose bytes are reused; they keep
 *		their room in the ring until EvpgFrameRingReleaseBatch.  Returns false if
 *		there is nothing to send or announce.  For the one process that sends
 *		the frames of this database.
 */
bool
EvpgFrameRingCopyBatch(EvpgFrameBatch *batch)
{
	EvpgFrameRing *ring = &EvpgShmemAttachedDatabase()->ring;
	static int64 commits = 0;
	uint64		tail;
	Size		there;
	Size		at;
	Size		first;

	if (batch->bytes == NULL)
		batch->bytes = MemoryContextAlloc(TopMemoryContext, Min(MAX_BATCH, get_ring_size()));
	LWLockAcquire(ring->lock, LW_SHARED);
	tail = ring->tail;
	there = Min(ring->head - tail, Min(MAX_BATCH, get_ring_size()));
	batch->dropped = ring->dropped - ring->announced;
	batch->lsn = ring->lsn;
	batch->commits = ring->commits - commits;
	commits = ring->commits;
	LWLockRelease(ring->lock);

	/* Writers leave alone what is between tail and head. */
	at = tail % get_ring_size();
	first = Min(there, get_ring_size() - at);
	memcpy(batch->bytes, ring->bytes + at, first);
	memcpy(batch->bytes + first, ring->bytes, there - first);
	batch->size = 0;
	batch->frames = 0;
	while (there - batch->size >= sizeof(FrameHeader))
	{
		uint32		size = ((FrameHeader *) (batch->bytes + batch->size))->size;

		if (size > there - batch->size)
			break;
		batch->size += size;
		batch->frames++;
	}
	return batch->frames > 0 || batch->dropped > 0;
}

/* Reads a frame of a batch, and returns where the next one is; the strings point into the batch. */
const char *
EvpgFrameRingNext(const char *bytes, EvpgRingFrame *frame)
{
	const FrameHeader *header = (const FrameHeader *) bytes;
	const char *string = bytes + sizeof(FrameHeader);

	frame->text = string;
	frame->nchannels = header->nchannels;
	for (int i = 0; i < frame->nchannels; i++)
	{
		string += strlen(string) + 1;
		frame->channels[i] = string;
	}
	return bytes + header->size;
}

/* Frees the room of a batch that was sent; batch->dropped frames have been announced as lost. */
void
EvpgFrameRingReleaseBatch(const EvpgFrameBatch *batch)
{
	EvpgFrameRing *ring = &EvpgShmemAttachedDatabase()->ring;

	LWLockAcquire(ring->lock, LW_EXCLUSIVE);
	ring->tail += batch->size;
	ring->sent += batch->frames;
	ring->announced += batch->dropped;
	ring->resyncs += (batch->dropped > 0);
	LWLockRelease(ring->lock);
}

/* Returns whether there is something to send or announce, and no broadcaster to do it. */
bool
EvpgFrameRingIsStranded(void)
{
	EvpgDatabase *slot = EvpgShmemAttachedDatabase();
	EvpgFrameRing *ring = &slot->ring;
	bool		stranded;

	if (slot->processes[EVPG_BROADCASTER].pid != 0)
		return false;
	LWLockAcquire(ring->lock, LW_SHARED);
	stranded = ring->head != ring->tail || ring->dropped != ring->announced;
	LWLockRelease(ring->lock);
	return stranded;
}

/* ------------------------------------------------------------------ SQL */

/* Returns how this session sends frames. */
static const char *
get_broadcast_mode(const EvpgDatabase *slot)
{
	if (EvpgBroadcastBy == EVPG_FRAMES_OFF)
		return "off";
	if (slot == NULL)
		return "commit";
	if (frames_are_waiting(slot))
		return "worker";
	if (EvpgBroadcastBy == EVPG_FRAMES_BY_COMMIT)
		return "commit";
	return EvpgBroadcastBy == EVPG_FRAMES_BY_WORKER || slot->processes[EVPG_BROADCASTER].pid != 0 ? "worker" : "commit";
}

/*
 * evpg_broadcast_counters
 *		SQL: evpg_broadcast_counters().  Returns what went through the ring of
 *		this database; zeros without shared memory.
 */
Datum
evpg_broadcast_counters(PG_FUNCTION_ARGS)
{
	EvpgDatabase *slot = EvpgShmemDatabase(false);
	EvpgFrameRing ring = {0};
	TupleDesc	desc;
	Datum		values[5];
	bool		nulls[5] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (slot != NULL)
	{
		LWLockAcquire(slot->ring.lock, LW_SHARED);
		ring = slot->ring;
		LWLockRelease(slot->ring.lock);
	}
	values[0] = CStringGetTextDatum(get_broadcast_mode(slot));
	values[1] = Int64GetDatum(ring.put - ring.sent);
	values[2] = Int64GetDatum(ring.sent);
	values[3] = Int64GetDatum(ring.dropped);
	values[4] = Int64GetDatum(ring.resyncs);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
