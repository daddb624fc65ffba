/*-------------------------------------------------------------------------
 *
 * event_log.h
 *		The event log: inserting events, and scanning those of a stream.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_EVENT_LOG_H
#define EVPG_EVENT_LOG_H

#include "log/event.h"
#include "log/stream.h"
#include "log/upcast.h"
#include "nodes/pg_list.h"
#include "storage/lockdefs.h"
#include "utils/snapshot.h"

/* So many types are read by the index on types at most. */
#define EVPG_MAX_TYPE_SCANS 16

typedef struct EvpgLogScan EvpgLogScan;

/* Which events of all streams are wanted. */
typedef struct EvpgLogFilter
{
	int64		after;			/* positions above this */
	int64		upto;			/* and up to this */
	ArrayType  *positions;		/* NULL, or: only these, of bigint, in any
								 * order */
	List	   *aggregate_types;	/* NIL: all, as the next one */
	List	   *event_types;
	List	   *tags;			/* any of them */
	const struct EvpgCondition *condition;	/* NULL, or: and any of its items */
	List	   *aggregate_ids;
	const char *id_prefix;		/* NULL: all; else this id, and those that
								 * continue it after a colon */
	int			parts;			/* > 1: only the aggregate ids of one part */
	int			part;
	const bool *wanted_parts;	/* NULL, or: of these parts instead */
	bool		lends_ids;		/* ids of aggregates live only until another
								 * scan begins */
	bool		leaves_upcasting;	/* to the caller: EvpgLogScanUpcast */
} EvpgLogFilter;

extern void EvpgLogAppend(EvpgStream *stream, EvpgEvent *events, int count);
extern bool EvpgLogHasEventId(const pg_uuid_t *event_id);
extern bool EvpgLogReserveEventId(const pg_uuid_t *event_id);
extern void EvpgLogReleaseEventId(const pg_uuid_t *event_id);
extern bool EvpgLogReadNewest(EvpgStream *stream, int64 from_version, Snapshot snapshot, LOCKMODE mode,
							  bool *visible);
extern EvpgLogScan *EvpgLogScanBegin(const EvpgStream *stream, int64 from_version, bool backwards,
									 EvpgUpcasters *upcasters);
extern EvpgLogScan *EvpgLogScanAll(const EvpgLogFilter *filter);
extern bool EvpgLogHasEvent(int64 position);
extern int64 EvpgLogScanReached(EvpgLogScan *scan);
extern int	EvpgLogScanItem(const EvpgLogScan *scan);
extern int	EvpgLogPartOfKey(const char *key, int parts);
extern bool EvpgLogScanNext(EvpgLogScan *scan, EvpgEvent *event);
extern void EvpgLogScanUpcast(EvpgLogScan *scan, EvpgEvent *event);
extern void EvpgLogScanEnd(EvpgLogScan *scan);

#endif							/* EVPG_EVENT_LOG_H */
