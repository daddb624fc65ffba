/*-------------------------------------------------------------------------
 *
 * snapshot.h
 *		Snapshots of aggregate states.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_SNAPSHOT_H
#define EVPG_SNAPSHOT_H

#include "aggregate/state.h"

/* Columns of the row that EvpgSnapshotRead finds. */
enum
{
	EVPG_SNAPSHOT_VERSION = 1,
	EVPG_SNAPSHOT_STATE
};

extern bool EvpgSnapshotRead(const EvpgAggregate *aggregate, int64 stream_id, int64 version, bool caller_snapshot);
extern bool EvpgSnapshotIsDue(EvpgState *state, int64 stream_id, int64 before);
extern bool EvpgSnapshotWrite(EvpgState *state, int64 stream_id);

#endif							/* EVPG_SNAPSHOT_H */
