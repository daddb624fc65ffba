/*-------------------------------------------------------------------------
 *
 * subscription.h
 *		Subscriptions: their registration.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_SUBSCRIPTION_H
#define EVPG_SUBSCRIPTION_H

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "log/event_log.h"

/* How many partitions a subscription may have. */
#define EVPG_MAX_PARTITIONS 1024

/* Times of a subscription are at most so long, in microseconds. */
#define EVPG_MAX_SUBSCRIPTION_TIME	(366 * USECS_PER_DAY)

/* A subscription, as its registration has it. */
typedef struct EvpgSubscription
{
	const char *name;
	bool		running;		/* else paused */
	EvpgLogFilter filter;		/* which events it takes; without positions
								 * and parts */
	int			partitions;
	int			max_attempts;
	int64		lease_time;		/* in microseconds, as the next ones */
	int64		backoff;
	int64		max_backoff;
} EvpgSubscription;

extern const EvpgSubscription *EvpgSubscriptionGet(const char *name, bool missing_ok);
extern void EvpgSubscriptionRequireReadCommitted(const char *function);
extern bool EvpgSubscriptionLock(const char *name, bool wait);
extern void EvpgSubscriptionUnlock(const char *name);
extern int64 EvpgSubscriptionPositionAt(TimestampTz time);
extern void EvpgSubscriptionRequirePosition(int64 position);
extern bool EvpgSubscriptionReadEvent(const EvpgSubscription *subscription, int64 position, EvpgEvent *copy);
extern int64 EvpgSubscriptionTime(FunctionCallInfo fcinfo, int arg, const char *what, int64 least);

#endif							/* EVPG_SUBSCRIPTION_H */
