/*-------------------------------------------------------------------------
 *
 * due_event.h
 *		The rows of events that instances of sagas have not reacted to yet.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_DUE_EVENT_H
#define EVPG_DUE_EVENT_H

#include "saga/due_item.h"

extern List *EvpgDueEventList(int max_count, TimestampTz now, List *but_not_in, bool from_last);
extern bool EvpgDueEventCount(const EvpgDueItem *item, TimestampTz retry_at_before, int attempts, TimestampTz retry_at);
extern bool EvpgDueEventTake(const EvpgDueItem *item);
extern void EvpgDueEventInsertAll(const char *saga, List *keys, List *positions);

#endif							/* EVPG_DUE_EVENT_H */
