/*-------------------------------------------------------------------------
 *
 * condition.h
 *		Conditions: which events of all streams are meant, to read them, or to append
 *		only if none exists.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_CONDITION_H
#define EVPG_CONDITION_H

#include "log/event.h"
#include "nodes/pg_list.h"

/* Some events of all streams. */
typedef struct EvpgConditionItem
{
	List	   *aggregate_types;	/* NIL: all, as the next two */
	List	   *event_types;
	List	   *tags;			/* all of them */
	int64		after;			/* positions above this */
} EvpgConditionItem;

/* Events that match any of its items, one at least. */
typedef struct EvpgCondition
{
	int			count;
	EvpgConditionItem items[FLEXIBLE_ARRAY_MEMBER];
} EvpgCondition;

extern EvpgCondition *EvpgConditionFromJsonb(Jsonb *jsonb);
extern bool EvpgConditionMatches(const EvpgCondition *condition, const EvpgEvent *event);
extern void EvpgConditionLock(const EvpgCondition *condition);
extern void EvpgConditionEnforce(const EvpgCondition *condition, const EvpgEvent *events, int count);

#endif							/* EVPG_CONDITION_H */
