/*-------------------------------------------------------------------------
 *
 * batch.h
 *		Applying many events of the log to a projection.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_BATCH_H
#define EVPG_BATCH_H

#include "nodes/pg_list.h"
#include "projection/projection.h"
#include "utils/elog.h"

typedef struct EvpgBatch
{
	EvpgProjection *projection;
	int64		build;			/* whose rows are changed */
	int64		after;			/* positions above this */
	int64		upto;			/* and up to this */
	int			max_events;		/* 0: as many as memory allows, up to 500,000 */
	bool		unhurried;		/* however long they take */
	int			parts;			/* > 1: only the keys of one part */
	int			part;
	const char *only_key;		/* NULL: all */
	List	   *except_keys;	/* of char * */
	const ErrorData *give_up;	/* NULL: apply; else events are parked with
								 * this error */
	int			attempts;		/* that led to it */
	bool		send;			/* frames */
	bool		in_order;		/* of position, over all keys */
	bool		narrow;			/* the caller tries again with less than the
								 * event that is blamed, so that it may be any
								 * of those of its key */
	List	   *parked;			/* of EvpgParkedEvent: events to leave out */
	/* what became of it */
	bool		by_key;			/* the order was only that of each key */
	int64		reached;		/* all up to here has been applied */
	int64		events;			/* so many events */
	Size		json;			/* what json-c holds for its rows, about */
	int64		first;			/* the first of them; 0: none */
} EvpgBatch;

extern void EvpgBatchRequireNewSnapshots(const char *what);
extern EvpgBatch EvpgBatchOfEvent(EvpgProjection *projection, int64 position);
extern void EvpgBatchApply(EvpgBatch *batch);
extern ErrorData *EvpgBatchTry(EvpgBatch *batch);

#endif							/* EVPG_BATCH_H */
