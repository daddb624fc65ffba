/*-------------------------------------------------------------------------
 *
 * log_hits.h
 *		Asking the optional indexes of the log where the events of a filter are.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_LOG_HITS_H
#define EVPG_LOG_HITS_H

#include "log/event_log.h"
#include "storage/itemptr.h"
#include "utils/relcache.h"

/* An event that an index has found. */
typedef struct EvpgLogHit
{
	int64		position;
	ItemPointerData tid;
} EvpgLogHit;

/* The events that indexes have found in a stretch of the log, in order of position; zero at the beginning. */
typedef struct EvpgLogHits
{
	MemoryContext context;		/* of the array */
	EvpgLogHit *hits;
	int			size;			/* of the array */
	int			count;
	int			next;			/* that was not visited yet */
	int64		upto;			/* where the stretch ends */
} EvpgLogHits;

extern int64 EvpgLogHitsServed(const EvpgLogFilter *filter, int64 after);
extern bool EvpgLogHitsFind(EvpgLogHits *hits, const EvpgLogFilter *filter, Relation log, Snapshot snapshot, int64 after,
							int64 upto, bool few);

#endif							/* EVPG_LOG_HITS_H */
