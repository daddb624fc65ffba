/*-------------------------------------------------------------------------
 *
 * due_item.h
 *		What is due in sagas: events and timers that instances react to, and
 *		scheduled commands.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_DUE_ITEM_H
#define EVPG_DUE_ITEM_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "storage/itemptr.h"

/* An event or a timer that an instance has to react to, or a scheduled command. */
typedef struct EvpgDueItem
{
	char	   *saga;			/* NULL: a command of evpg_schedule_command() */
	char	   *key;
	int64		position;		/* of the event; 0: a timer or a command */
	int64		timer_id;
	ItemPointerData place;		/* where the row of an event was when it was
								 * listed; invalid: not known */
	int			attempts;		/* so far, with this one */
	bool		pending;		/* an attempt is counted and has no result: it
								 * is claimed, or the server has crashed */
	TimestampTz retry_at;		/* when it was put off until; 0: it was not */
	TimestampTz due;			/* a timer must be due by then; 0: at any time */
	bool		more;			/* later timers of the instance are due too */
	struct EvpgDueItem *first;	/* the timer of the instance with which this
								 * one was listed; NULL: on its own */
	bool		stopped;		/* timers that were listed with it must wait */
	int			claimed;		/* the attempt of which this session has the
								 * lock; 0: none */
	TransactionId settled_by;	/* the transaction, if it commits, in which
								 * the attempt has come to a result or was
								 * given back */
} EvpgDueItem;

extern List *EvpgDueItemList(int max_count, TimestampTz now, List *but_not_in, bool from_last);
extern List *EvpgDueItemListFollowing(EvpgDueItem *first, int max_count);
extern TimestampTz EvpgDueItemNextTime(TimestampTz now);
extern void EvpgDueItemInsert(const EvpgDueItem *item);
extern bool EvpgDueItemClaim(EvpgDueItem *item);
extern void EvpgDueItemUnclaim(EvpgDueItem *item, TimestampTz retry_at);
extern bool EvpgDueItemTake(const EvpgDueItem *item);
extern bool EvpgDueItemDelete(const EvpgDueItem *item);
extern void EvpgDueItemPostpone(const EvpgDueItem *item, TimestampTz retry_at, int attempts);
extern int64 EvpgDueItemPostponeCancelled(const EvpgDueItem *item);
extern void EvpgDueItemBlock(const EvpgDueItem *item, int64 dead_letter_id);

#endif							/* EVPG_DUE_ITEM_H */
