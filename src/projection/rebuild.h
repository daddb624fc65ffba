/*-------------------------------------------------------------------------
 *
 * rebuild.h
 *		Rebuilding all keys of a projection beside those that are read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_REBUILD_H
#define EVPG_REBUILD_H

#include "projection/projection.h"
#include "storage/lockdefs.h"

/* A rebuild tries to end when it is this near to the last event, in positions. */
#define EVPG_REBUILD_NEAR 2000

/* In place of the number of a part: the end of the rebuild. */
#define EVPG_REBUILD_END (-1)
#define EVPG_REBUILD_ANY (-2)

/* How often a part of a rebuild, or its end, has crashed the server. */
typedef struct EvpgCrashCount
{
	int64		server_start;	/* in which it was last tried */
	int			crashes;		/* starts since it came to a result */
} EvpgCrashCount;

/* A rebuild, as its row and those of its parts have it. */
typedef struct EvpgRebuild
{
	const char *name;
	EvpgProjection *projection;
	int64		build;
	bool		running;
	int			parts;
	int64		goal;			/* the last position when it began */
	int64	   *checkpoints;	/* of the parts */
	EvpgCrashCount *part_crashes;
	EvpgCrashCount end_crashes;
	TransactionId last_write;	/* the last one that has moved a checkpoint */
	int			attempts;
	TimestampTz retry_at;		/* 0: at once */
	TimestampTz last_error_at;	/* 0: none */
	/* what this call does */
	bool		foreground;		/* all in the transaction of the caller */
	int			part;			/* the one that is worked on */
	int			counted;		/* the one that the last transaction has
								 * counted, and that is tried now */
	bool		must_wait;		/* another session tries something alone */
	int64		upto;			/* the last position to apply */
	int64		events;			/* that it has applied */
	bool		postponed;		/* the end would have written what an exchange
								 * of tables hides */
	int64		replaced;		/* the build whose place it has taken */
} EvpgRebuild;

/* rebuild.c: what is stored, batches of a part, starting and cancelling */
extern bool EvpgRebuildLock(const char *name, LOCKMODE mode, bool wait);
extern bool EvpgRebuildLockPart(const EvpgRebuild *rebuild, int part);
extern bool EvpgRebuildRead(const char *name, EvpgRebuild *rebuild);
extern void EvpgRebuildReadParts(EvpgRebuild *rebuild);
extern bool EvpgRebuildExists(const char *name);
extern List *EvpgRebuildListRunning(void);
extern void EvpgRebuildApplyPart(EvpgRebuild *rebuild, int part, bool unhurried);
extern bool EvpgRebuildHasEventsLeft(const EvpgRebuild *rebuild, int64 upto);
extern void EvpgRebuildApplyRest(EvpgRebuild *rebuild);
extern void EvpgRebuildStart(EvpgProjection *projection);
extern bool EvpgRebuildCancel(const char *name);

/* rebuild_background.c */
extern bool EvpgRebuildContinue(const char *name, TimestampTz *next);

/* rebuild_end.c */
extern void EvpgRebuildEnd(EvpgRebuild *rebuild);
extern bool EvpgRebuildTakePostponed(const EvpgRebuild *rebuild);

/* rebuild_cleanup.c */
extern bool EvpgRebuildCleanUp(void);
extern void EvpgRebuildCleanUpBuild(int64 build);
extern void EvpgRebuildAbandonRows(const char *name);

#endif							/* EVPG_REBUILD_H */
