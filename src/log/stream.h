/*-------------------------------------------------------------------------
 *
 * stream.h
 *		Streams: finding, locking, creating.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_STREAM_H
#define EVPG_STREAM_H

#include "access/htup.h"
#include "base/compat.h"
#include "datatype/timestamp.h"

/* A stream as in its row; stream_id 0: it has no row. */
typedef struct EvpgStream
{
	const char *aggregate_type;
	const char *aggregate_id;
	int64		stream_id;
	int64		version;
	int64		last_position;
	TimestampTz last_recorded_at;
	HeapTuple	row;			/* as it was found or written last */
} EvpgStream;

extern bool EvpgStreamLock(EvpgStream *stream);
extern bool EvpgStreamRead(EvpgStream *stream, bool caller_snapshot);
extern void EvpgStreamGetById(int64 stream_id, EvpgStream *stream);
extern bool EvpgStreamCreate(EvpgStream *stream);
extern bool EvpgStreamReserve(const EvpgStream *stream);
extern void EvpgStreamRelease(const EvpgStream *stream);
extern void EvpgStreamAdvance(EvpgStream *stream, int64 version, int64 last_position, TimestampTz recorded_at);
pg_noreturn extern void EvpgStreamRaiseMissing(const EvpgStream *stream);
pg_noreturn extern void EvpgStreamRaiseDamaged(const EvpgStream *stream, int64 version);

#endif							/* EVPG_STREAM_H */
