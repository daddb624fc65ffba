/*-------------------------------------------------------------------------
 *
 * log_position.c
 *		Workers write the stable position into WAL, up to which standbys and
 *		readers of a logical slot have all events (fence.c).
 *
 * One record serves all commits since the last one, however many these are, so a
 * worker writes at most one in evpg.stable_position_interval, and none if the position has not
 * moved: an idle server writes nothing.  The end of an appender wakes a worker, also
 * after a rollback, so the last position of a burst is written, too.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "log/fence.h"
#include "utils/timestamp.h"
#include "worker/log_position.h"

/*
 * EvpgLogPositionIfDue
 *		Writes the stable position into WAL if it has moved; lowers *next to when, if it is
 *		too early for that.  Called by a worker, in a transaction that has not appended.
 */
void
EvpgLogPositionIfDue(TimestampTz *next)
{
	EvpgDatabase *database = EvpgShmemAttachedDatabase();
	uint64		logged_at = pg_atomic_read_u64(&database->position_logged);
	uint64		now = EvpgMonotonicMs();
	uint64		due_at = logged_at + EvpgStablePositionInterval;
	int64		position;

	/* Without that there are no standbys. */
	if (EvpgStablePositionInterval < 0 || !XLogIsNeeded())
		return;
	if (logged_at != 0 && now < due_at)
		*next = Min(*next, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), (int64) (due_at - now)));
	else if (EvpgFenceLogStablePosition(&position))
		pg_atomic_write_u64(&database->position_logged, now);
}
