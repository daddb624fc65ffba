/*-------------------------------------------------------------------------
 *
 * stream.h
 *		Streams: finding, locking, creating.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_STREAM_H
#define EVPG_STREAM_H

#include "base/compat.h"
#include "datatype/timestamp.h"
#include "storage/itemptr.h"

/* A stream and its newest event; stream_id 0: it does not exist. */
typedef struct EvpgStream
{
	const char *aggregate_type;
	const char *aggregate_id;
	int64		stream_id;
	int64		version;		/* 0: it has no event */
	int64		last_position;
	TimestampTz last_recorded_at;
	uint64		epoch;			/* of the directory, before version was read
								 * with the lock; 0: it was not */
	ItemPointerData row;		/* of evpg.stream, if it was read */
	bool		locked_now;		/* the transaction has not locked it before */
	uint32		id_hash;		/* of EvpgStreamHashId, if it was found by its
								 * stream_id */
} EvpgStream;

extern uint64 EvpgStreamLockKey(const EvpgStream *stream);
extern bool EvpgStreamLock(EvpgStream *stream);
extern void EvpgStreamUnlockUnneeded(EvpgStream *stream);
extern bool EvpgStreamRead(EvpgStream *stream, bool caller_snapshot);
extern void EvpgStreamGetById(int64 stream_id, EvpgStream *stream);
extern uint32 EvpgStreamHashId(const char *aggregate_id);
extern void EvpgStreamCreate(EvpgStream *stream);
extern void EvpgStreamAdvance(EvpgStream *stream, int64 version, int64 last_position, TimestampTz recorded_at);
pg_noreturn extern void EvpgStreamRaiseMissing(const EvpgStream *stream);
pg_noreturn extern void EvpgStreamRaiseDamaged(const EvpgStream *stream, int64 version);

#endif							/* EVPG_STREAM_H */
