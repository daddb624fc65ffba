/*-------------------------------------------------------------------------
 *
 * ring.c
 *		Frames on their way from a transaction to the broadcaster (rule 15), so
 *		that no writer runs NOTIFY.
 *
 * A transaction collects its frames in memory of its own, and drops those of
 * subtransactions that are rolled back.  When it has committed, it copies them
 * into the ring of its database: after the commit is visible, and before its
 * locks are released, so the frames of a key, which has an advisory lock, are
 * in the order of the commits.  Nothing may fail there: there is only a lock,
 * a copy, and a latch.
 *
 * What has no room is dropped and counted, all frames of a transaction or
 * none; the broadcaster announces it.  A transaction does not keep more than
 * the ring could take.
 *
 * If there is no broadcaster for a while, a worker of the database sends what
 * waits (worker.c); one process at a time has that part.
 *
 * The broadcaster copies the oldest frames out, sends them, and only then gives
 * their room free: a frame can be sent twice, but not get lost.  It works on the
 * slot it is attached to, which is not emptied for somebody else before it ends.
 *
 * In the ring a frame is its size, aligned, and three strings: channel of the
 * key, channel of the projection, text.  head and tail count bytes since ever;
 * a frame may go round the end.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/testing.h"
#include "broadcast/ring.h"
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
typedef struct Mark
{
	SubTransactionId subid;
	int			start;			/* in frames.data */
	int64		count;
	bool		lost;			/* frames.data does not have all up to here */
} Mark;

/* What this transaction collects, in TopTransactionContext; marks is NULL if it has nothing. */
int			EvpgBroadcastBy;

static StringInfoData frames;
static Mark *marks = NULL;
static int	nmarks;
static int	marks_space;

/* To be told at commit: a broadcaster is missing. */
static bool want_broadcaster = false;

static Size
ring_size(void)
{
	return (Size) EvpgBroadcastBuffer * 1024;
}

/* ------------------------------------------------------------------ collecting */

/*
 * Whether frames of other transactions wait.  Without the lock: who holds the
 * lock of a key sees what its last owner has put there before it gave the lock
 * back, and tail moves only when the frames before it have been sent.
 */
static bool
frames_wait(const EvpgDatabase *slot)
{
	const volatile EvpgRing *ring = &slot->ring;

	return ring->head != ring->tail;
}

/*
 * EvpgRingUsable
 *		Whether frames of this transaction go through the ring now: if there is a
 *		broadcaster, or if it is needed anyway; but not without shared memory or
 *		a slot in it.  While frames wait there, those of later transactions go the
 *		same way, whatever evpg.broadcast says and whether there is a broadcaster
 *		or not, since NOTIFY would overtake them; so do those of a transaction
 *		that began with the ring.  A missing broadcaster is asked for.
 */
bool
EvpgRingUsable(void)
{
	bool		begun = marks != NULL && nmarks > 0;
	EvpgDatabase *slot = EvpgShmemDatabase(begun || EvpgBroadcastBy != EVPG_BROADCAST_COMMIT);
	bool		bound;

	if (slot == NULL)
		return false;
	bound = begun || (!EVPG_MUTATION("frames_overtake") && frames_wait(slot));
	if (!bound && EvpgBroadcastBy == EVPG_BROADCAST_COMMIT)
		return false;
	if (slot->processes[EVPG_BROADCASTER].pid != 0)
		return true;
	want_broadcaster = true;
	return bound || EvpgBroadcastBy == EVPG_BROADCAST_WORKER;
}

static void
begin_frames(void)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

	initStringInfo(&frames);
	marks_space = 8;
	marks = palloc(sizeof(Mark) * marks_space);
	nmarks = 0;
	MemoryContextSwitchTo(old);
}

/* The mark that a new frame counts for. */
static Mark *
current_mark(void)
{
	SubTransactionId subid = GetCurrentSubTransactionId();

	if (marks == NULL)
		begin_frames();
	if (nmarks == 0 || marks[nmarks - 1].subid != subid)
	{
		if (nmarks == marks_space)
		{
			marks = repalloc_huge(marks, sizeof(Mark) * marks_space * 2);
			marks_space *= 2;
		}
		marks[nmarks].subid = subid;
		marks[nmarks].start = frames.len;
		marks[nmarks].count = 0;
		marks[nmarks].lost = nmarks > 0 && marks[nmarks - 1].lost;
		nmarks++;
	}
	return &marks[nmarks - 1];
}

/* Sends a frame on two channels at commit. */
void
EvpgRingPut(const char *key_channel, const char *projection_channel, const char *text)
{
	const char *strings[3] = {key_channel, projection_channel, text};
	uint32		size = sizeof(uint32);
	Mark	   *mark = current_mark();

	mark->count++;
	for (int i = 0; i < 3; i++)
		size += strlen(strings[i]) + 1;
	size = MAXALIGN(size);
	mark->lost |= frames.len + size > ring_size();
	if (mark->lost)
		return;
	enlargeStringInfo(&frames, size);
	appendBinaryStringInfo(&frames, (char *) &size, sizeof(size));
	for (int i = 0; i < 3; i++)
		appendBinaryStringInfo(&frames, strings[i], strlen(strings[i]) + 1);
	while (frames.len % MAXIMUM_ALIGNOF != 0)
		appendStringInfoChar(&frames, '\0');
}

/* Drops the frames of a subtransaction and of those in it, which have higher ids. */
static void
ring_at_subtransaction_end(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	if (event != SUBXACT_EVENT_ABORT_SUB || marks == NULL)
		return;
	while (nmarks > 0 && marks[nmarks - 1].subid >= mine)
	{
		nmarks--;
		frames.len = marks[nmarks].start;
	}
}

/* ------------------------------------------------------------------ at commit */

/* Copies bytes into the ring from head on.  The caller holds the lock, and has looked for room. */
static void
copy_in(EvpgRing *ring, const char *bytes, Size size)
{
	Size		at = ring->head % ring_size();
	Size		first = Min(size, ring_size() - at);

	memcpy(ring->bytes + at, bytes, first);
	memcpy(ring->bytes, bytes + first, size - first);
	ring->head += size;
}

static void
hand_over(EvpgDatabase *slot, int64 count)
{
	EvpgRing   *ring = &slot->ring;

	LWLockAcquire(ring->lock, LW_EXCLUSIVE);
	ring->commits++;
	ring->lsn = Max(ring->lsn, XactLastCommitEnd);
	if (slot->database != MyDatabaseId)
		;						/* the extension is gone, and whoever listened */
	else if (marks[nmarks - 1].lost || ring->head - ring->tail + frames.len > ring_size())
		ring->dropped += count;
	else
	{
		copy_in(ring, frames.data, frames.len);
		ring->put += count;
	}
	LWLockRelease(ring->lock);
	EvpgWakeProcess(&slot->processes[EVPG_BROADCASTER]);
}

static void
at_commit(void)
{
	EvpgDatabase *slot = EvpgShmemDatabase(false);
	int64		count = 0;

	if (slot == NULL)
		return;
	for (int i = 0; marks != NULL && i < nmarks; i++)
		count += marks[i].count;
	if (count > 0)
		hand_over(slot, count);
	if (want_broadcaster && !slot->wants_broadcaster)
	{
		slot->wants_broadcaster = true;
		EvpgWakeLauncher();
	}
}

static void
ring_at_end(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_PREPARE && marks != NULL && nmarks > 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has sent frames of projections"),
				 errhint("Set evpg.broadcast to off in a transaction that is to be prepared.")));
	if (event == XACT_EVENT_COMMIT && (marks != NULL || want_broadcaster))
		at_commit();
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
	{
		marks = NULL;
		want_broadcaster = false;
	}
}

static const struct config_enum_entry broadcast_ways[] = {
	{"auto", EVPG_BROADCAST_AUTO, false},
	{"commit", EVPG_BROADCAST_COMMIT, false},
	{"worker", EVPG_BROADCAST_WORKER, false},
	{"off", EVPG_BROADCAST_OFF, false},
	{"on", EVPG_BROADCAST_AUTO, true},
	{"true", EVPG_BROADCAST_AUTO, true},
	{"false", EVPG_BROADCAST_OFF, true},
	{NULL, 0, false}
};

/* Frames that nobody would send must not be collected. */
static bool
check_broadcast(int *value, void **extra, GucSource source)
{
	if (*value != EVPG_BROADCAST_WORKER || EvpgShmemPreloaded() || process_shared_preload_libraries_in_progress)
		return true;
	GUC_check_errdetail("There is no broadcaster: the library is not preloaded.");
	GUC_check_errhint("Put evpg into \"shared_preload_libraries\" and restart the server.");
	return false;
}

/* Defines evpg.broadcast, which needs a broadcaster for some values; called once, from _PG_init. */
void
EvpgRingInit(void)
{
	DefineCustomEnumVariable("evpg.broadcast",
							 "How projections send frames to listeners.",
							 "auto: by the broadcaster if there is one, else with the commit.",
							 &EvpgBroadcastBy, EVPG_BROADCAST_AUTO, broadcast_ways, PGC_SUSET,
							 0, check_broadcast, NULL, NULL);
	RegisterXactCallback(ring_at_end, NULL);
	RegisterSubXactCallback(ring_at_subtransaction_end, NULL);
}

/* ------------------------------------------------------------------ the broadcaster's side */

/*
 * EvpgRingTake
 *		Copies the oldest frames into a batch, whose bytes are reused.  False if
 *		there is nothing to send or announce.
 */
bool
EvpgRingTake(EvpgRingBatch *batch)
{
	EvpgRing   *ring = &EvpgShmemOwnDatabase()->ring;
	static int64 commits = 0;
	uint64		tail;
	Size		there;
	Size		at;
	Size		first;

	if (batch->bytes == NULL)
		batch->bytes = MemoryContextAlloc(TopMemoryContext, Min(MAX_BATCH, ring_size()));
	LWLockAcquire(ring->lock, LW_SHARED);
	tail = ring->tail;
	there = Min(ring->head - tail, Min(MAX_BATCH, ring_size()));
	batch->dropped = ring->dropped - ring->announced;
	batch->lsn = ring->lsn;
	batch->commits = ring->commits - commits;
	commits = ring->commits;
	LWLockRelease(ring->lock);

	/* Writers leave alone what is between tail and head. */
	at = tail % ring_size();
	first = Min(there, ring_size() - at);
	memcpy(batch->bytes, ring->bytes + at, first);
	memcpy(batch->bytes + first, ring->bytes, there - first);
	batch->size = 0;
	batch->frames = 0;
	while (there - batch->size >= sizeof(uint32))
	{
		uint32		size = *(uint32 *) (batch->bytes + batch->size);

		if (size > there - batch->size)
			break;
		batch->size += size;
		batch->frames++;
	}
	return batch->frames > 0 || batch->dropped > 0;
}

/* Reads a frame of a batch, and returns where the next one is. */
const char *
EvpgRingNext(const char *frame, const char **key_channel, const char **projection_channel, const char **text)
{
	*key_channel = frame + sizeof(uint32);
	*projection_channel = *key_channel + strlen(*key_channel) + 1;
	*text = *projection_channel + strlen(*projection_channel) + 1;
	return frame + *(const uint32 *) frame;
}

/* Gives the room of a batch free.  What it announced is what it has in dropped. */
void
EvpgRingSent(const EvpgRingBatch *batch)
{
	EvpgRing   *ring = &EvpgShmemOwnDatabase()->ring;

	LWLockAcquire(ring->lock, LW_EXCLUSIVE);
	ring->tail += batch->size;
	ring->sent += batch->frames;
	ring->announced += batch->dropped;
	ring->resyncs += (batch->dropped > 0);
	LWLockRelease(ring->lock);
}

/* Whether there is something to send or announce, and no process that does it. */
bool
EvpgRingStranded(void)
{
	EvpgDatabase *slot = EvpgShmemOwnDatabase();
	EvpgRing   *ring = &slot->ring;
	bool		stranded;

	if (slot->processes[EVPG_BROADCASTER].pid != 0)
		return false;
	LWLockAcquire(ring->lock, LW_SHARED);
	stranded = ring->head != ring->tail || ring->dropped != ring->announced;
	LWLockRelease(ring->lock);
	return stranded;
}

/* ------------------------------------------------------------------ SQL */

/* How this session sends frames. */
static const char *
broadcast_mode(const EvpgDatabase *slot)
{
	if (EvpgBroadcastBy == EVPG_BROADCAST_OFF)
		return "off";
	if (slot == NULL)
		return "commit";
	if (frames_wait(slot))
		return "worker";
	if (EvpgBroadcastBy == EVPG_BROADCAST_COMMIT)
		return "commit";
	return EvpgBroadcastBy == EVPG_BROADCAST_WORKER || slot->processes[EVPG_BROADCASTER].pid != 0 ? "worker" : "commit";
}

/* What went through the ring of this database; zeros without shared memory. */
Datum
evpg_broadcast_counters(PG_FUNCTION_ARGS)
{
	EvpgDatabase *slot = EvpgShmemDatabase(false);
	EvpgRing	ring = {0};
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
	values[0] = CStringGetTextDatum(broadcast_mode(slot));
	values[1] = Int64GetDatum(ring.put - ring.sent);
	values[2] = Int64GetDatum(ring.sent);
	values[3] = Int64GetDatum(ring.dropped);
	values[4] = Int64GetDatum(ring.resyncs);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
