/*-------------------------------------------------------------------------
 *
 * condition.h
 *		Conditions of an append: that no event of some kind exists after a position.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_CONDITION_H
#define EVPG_CONDITION_H

#include "log/event.h"

typedef struct EvpgCondition EvpgCondition;

extern EvpgCondition *EvpgConditionFromJsonb(Jsonb *jsonb);
extern void EvpgConditionEnforce(const EvpgCondition *condition, const EvpgEvent *events, int count);

#endif							/* EVPG_CONDITION_H */
