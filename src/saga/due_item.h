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

/* An event or a timer that an instance has to react to, or a scheduled command. */
typedef struct EvpgDueItem
{
	char	   *saga;			/* NULL: a command of evpg_schedule_command() */
	char	   *key;
	int64		position;		/* of the event; 0: a timer or a command */
	int64		timer_id;
	int			attempts;		/* so far, with this one */
	bool		suspect;		/* an attempt had no result: the server may
								 * have crashed by it */
	TimestampTz retry_at;		/* when it was put off until; 0: it was not */
	TimestampTz due;			/* a timer must be due by then; 0: at any time */
	bool		locked;			/* by this session, beyond the transaction */
	TransactionId settled_by;	/* the transaction, if it commits, in which
								 * the attempt has come to a result or was
								 * given back */
} EvpgDueItem;

extern List *EvpgDueItemList(int max_count, TimestampTz now);
extern TimestampTz EvpgDueItemNextTime(TimestampTz now);
extern bool EvpgDueItemClaim(EvpgDueItem *item);
extern void EvpgDueItemUnclaim(EvpgDueItem *item);
extern bool EvpgDueItemDelete(const EvpgDueItem *item);
extern void EvpgDueItemPostpone(const EvpgDueItem *item, TimestampTz retry_at, int attempts);
extern void EvpgDueItemBlock(const EvpgDueItem *item, int64 dead_letter_id);

#endif							/* EVPG_DUE_ITEM_H */
