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
#include "access/skey.h"
#include "datatype/timestamp.h"

/* A stream as its row says; stream_id 0 = there is no row. */
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
extern void EvpgStreamById(int64 stream_id, EvpgStream *stream);
extern bool EvpgStreamCreate(EvpgStream *stream);
extern bool EvpgStreamReserve(const EvpgStream *stream);
extern void EvpgStreamRelease(const EvpgStream *stream);
extern void EvpgStreamAdvance(EvpgStream *stream, int64 version, int64 last_position, TimestampTz recorded_at);
extern bool EvpgLockHash(uint64 hash);
extern bool EvpgReserveKey(uint64 hash, const Oid *table, const Oid *index, ScanKey keys, int nkeys);
extern void EvpgReleaseKey(uint64 hash);
extern uint64 EvpgHashPair(const char *first, const char *second);

#endif							/* EVPG_STREAM_H */
