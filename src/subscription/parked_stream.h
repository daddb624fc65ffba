/*-------------------------------------------------------------------------
 *
 * parked_stream.h
 *		The events that a subscription has put aside, and the streams that they hold.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_PARKED_STREAM_H
#define EVPG_PARKED_STREAM_H

#include "log/event.h"
#include "nodes/pg_list.h"

/* A row of evpg.parked_event. */
typedef struct EvpgParkedRow
{
	int64		position;
	char	   *key;			/* NULL: of a skipped event, none is known */
	bool		holds;			/* it is parked, and not due; else skipped or
								 * due */
	bool		due;
	bool		replaying;		/* it is due, and is handed out */
	int			attempts;		/* if it is due, those since then */
} EvpgParkedRow;

typedef struct EvpgParkedStreams
{
	int			rows;
	EvpgParkedRow *by_position;
	EvpgParkedRow *by_key;		/* those that hold, in order of key and
								 * position */
	int			holding;
	List	   *held;			/* keys of what is parked since (char *) */
} EvpgParkedStreams;

/* An event that is going to be parked. */
typedef struct EvpgParking
{
	int64		position;
	char	   *key;
	int			attempts;
	const char *reason;			/* NULL: it waits behind another one of its
								 * stream */
} EvpgParking;

/* What is to be done with an event. */
typedef enum EvpgParkedVerdict
{
	EVPG_PARKED_NOT,			/* it is handed out */
	EVPG_PARKED_DUE,			/* again */
	EVPG_PARKED_ALREADY,		/* it is parked or skipped: it is passed over */
	EVPG_PARKED_BEHIND			/* an earlier event of its stream is parked:
								 * it has to be parked, too */
} EvpgParkedVerdict;

extern char *EvpgParkedStreamKey(const char *aggregate_type, const char *aggregate_id);
extern int	EvpgParkedStreamPartition(const char *key, int partitions);
extern EvpgParkedStreams *EvpgParkedStreamsRead(const char *subscription, int64 after);
extern const EvpgParkedRow *EvpgParkedStreamsFind(const EvpgParkedStreams *streams, int64 position);
extern EvpgParkedVerdict EvpgParkedStreamsJudge(const EvpgParkedStreams *streams, const EvpgEvent *event);
extern EvpgParking *EvpgParkingPlan(EvpgParkedStreams *streams, const EvpgEvent *event, int attempts, const char *reason);
extern void EvpgParkedStreamInsert(const char *subscription, List *parkings);
extern void EvpgParkedStreamSkip(const char *subscription, const EvpgEvent *event, int attempts, const char *reason);

#endif							/* EVPG_PARKED_STREAM_H */
