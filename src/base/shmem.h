/*-------------------------------------------------------------------------
 *
 * shmem.h
 *		Shared memory, if the library was preloaded: what sessions of a database
 *		and its background processes tell each other.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_SHMEM_H
#define EVPG_SHMEM_H

#include "access/xlogdefs.h"
#include "base/arguments.h"
#include "base/settings.h"
#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/lwlock.h"

#define EVPG_WAIT_BUCKETS	64

/* Background processes of a database: workers by number, then the broadcaster. */
#define EVPG_BROADCASTER	EVPG_MAX_WORKERS
#define EVPG_PROCESSES		(EVPG_MAX_WORKERS + 1)

/* What user code a worker calls. */
typedef enum EvpgOccupation
{
	EVPG_OCCUPATION_NONE,
	EVPG_OCCUPATION_REACTION,	/* of a saga, to an event or a timer */
	EVPG_OCCUPATION_COMMAND,	/* a scheduled one */
	EVPG_OCCUPATION_ROUTING,	/* of a saga */
	EVPG_OCCUPATION_BATCH,		/* of an asynchronous projection */
	EVPG_OCCUPATION_REBUILD		/* of a projection */
} EvpgOccupation;

/* How many consumers can be restrained; see consumer/last_worker.c. */
#define EVPG_RESTRAINTS 64

typedef struct EvpgProcess
{
	pid_t		pid;			/* 0: not there */
	Latch	   *latch;			/* read without lock; NULL: not there */
	bool		woken;			/* there is work since it last cleared this */
	bool		end_is_expected;	/* what it does ends it, or evpg: that is
									 * no failure of the worker */
	bool		cancelled_by_evpg;	/* the next SIGINT that it gets */
	pg_atomic_uint64 began;		/* when the worker has begun to call user
								 * code, in ms; 0: it calls none; see
								 * consumer/last_worker.c */
	pg_atomic_uint32 changes;	/* of what follows; odd while it changes */
	EvpgOccupation occupation;
	char		occupant[EVPG_MAX_NAME + 1];	/* "": a scheduled command */
} EvpgProcess;

/* Frames between tail and head, which count bytes since the start of the server; see frame_ring.c. */
typedef struct EvpgFrameRing
{
	LWLock	   *lock;			/* guards all of it but the bytes up to head */
	char	   *bytes;			/* evpg.broadcast_buffer */
	XLogRecPtr	lsn;			/* the end of the last commit with frames */
	uint64		head;
	uint64		tail;
	int64		commits;		/* with frames */
	int64		put;			/* counts of frames */
	int64		sent;
	int64		dropped;
	int64		announced;		/* of those dropped */
	int64		resyncs;		/* announcements */
} EvpgFrameRing;

/* A slot.  All but the ring and what is atomic is guarded by EvpgSharedState.lock. */
typedef struct EvpgDatabase
{
	Oid			database;		/* InvalidOid: free; read without lock */
	int			holds;			/* transactions that want no process to be
								 * connected */
	bool		wants_broadcaster;
	pg_atomic_uint64 epoch;		/* see log/stream_directory.c */
	EvpgProcess processes[EVPG_PROCESSES];
	pg_atomic_uint64 restrained[EVPG_RESTRAINTS];	/* what has had the last
													 * worker; see
													 * consumer/last_worker.c */
	pg_atomic_uint64 all_restrained_until;	/* in EvpgMonotonicMs() */
	pg_atomic_uint64 position_logged;	/* when a worker has written the
										 * stable position into WAL, in
										 * EvpgMonotonicMs(); 0: never */
	EvpgFrameRing ring;
	ConditionVariable wakers[EVPG_WAIT_BUCKETS];
	pg_atomic_uint32 waiters[EVPG_WAIT_BUCKETS];
} EvpgDatabase;

typedef struct EvpgSharedState
{
	LWLock	   *lock;
	Latch	   *launcher;		/* NULL: not there */
	bool		rescan;			/* databases came or went */
	Oid			refused;		/* a database that found no free slot */
	Oid			probed;			/* where the last probe came to its end */
	bool		crowded;		/* workers lack a place: broadcasters whose
								 * ring is empty leave theirs */
	TimestampTz start_at;		/* the launcher starts nothing before: the
								 * server crashes */
	pg_atomic_uint64 appended;	/* end of the last commit of an appender, see
								 * durable.c */
	pg_atomic_uint32 finishing; /* sessions that run COMMIT PREPARED */
	pg_atomic_uint64 released;	/* end of the last commit that was released
								 * early, see early_release.c */
	pg_atomic_uint32 releasing; /* sessions that have not noted theirs yet */
	pg_atomic_uint64 last_epoch;	/* of all databases */
	int			count;
	EvpgDatabase databases[FLEXIBLE_ARRAY_MEMBER];
} EvpgSharedState;

/* Which workers EvpgCancelLockHolders() has found. */
typedef enum EvpgSignalled
{
	EVPG_SIGNALLED_NONE,
	EVPG_SIGNALLED_CANCEL,		/* only such as were cancelled now */
	EVPG_SIGNALLED_AGAIN
} EvpgSignalled;

extern EvpgSharedState *EvpgShmem;	/* NULL: not preloaded */

extern void EvpgShmemInit(void);
extern bool EvpgShmemPreloaded(void);
extern EvpgDatabase *EvpgShmemDatabase(bool claim);
extern void EvpgShmemBeginEpoch(EvpgDatabase *database);
extern void EvpgShmemFreeDatabase(Oid database);
extern void EvpgShmemDismissDatabase(Oid database);
extern bool EvpgShmemHasHolds(void);
extern void EvpgShmemReleaseHolds(void);
extern void EvpgWakeLauncher(void);
extern void EvpgWakeProcess(EvpgProcess *process);
extern EvpgProcess *EvpgProcessAttach(int number);
extern EvpgProcess *EvpgProcessOwn(void);
extern uint64 EvpgMonotonicMs(void);
extern void EvpgProcessShowOccupation(EvpgOccupation occupation, const char *name);
extern bool EvpgProcessTakeEvpgCancel(void);
extern void EvpgProcessExpectEnd(void);
extern bool EvpgProcessTakeExpectedEnd(EvpgProcess *process);
extern bool EvpgProcessSetStandIn(bool begin);
extern EvpgDatabase *EvpgShmemAttachedDatabase(void);
extern bool EvpgProcessIsUnwanted(void);
extern EvpgSignalled EvpgCancelLockHolders(const LOCKTAG *tag, LOCKMODE mode, LocalTransactionId *cancelled, int signal);

#endif							/* EVPG_SHMEM_H */
