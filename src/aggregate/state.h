/*-------------------------------------------------------------------------
 *
 * state.h
 *		States of aggregates: loading, the session's cache, snapshots.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_STATE_H
#define EVPG_STATE_H

#include "aggregate/aggregate_code.h"
#include "log/stream.h"

extern void EvpgStateLoad(EvpgState *state, EvpgAggregate *aggregate, const EvpgStream *stream, bool caller_snapshot);
extern void EvpgStateLoadVersion(EvpgState *state, EvpgAggregate *aggregate, const EvpgStream *stream, int64 version);
extern void EvpgStateLoadTime(EvpgState *state, EvpgAggregate *aggregate, const EvpgStream *stream, TimestampTz time);
extern void EvpgStateKeep(EvpgState *state, int64 stream_id);
extern void EvpgStateRaiseDamaged(const EvpgStream *stream, int64 version) pg_attribute_noreturn();
extern bool EvpgStateSnapshotDue(EvpgState *state, int64 stream_id, int64 before);
extern bool EvpgStateSnapshot(EvpgState *state, int64 stream_id);

#endif							/* EVPG_STATE_H */
