/*-------------------------------------------------------------------------
 *
 * parked_event.h
 *		Events that a consumer has put aside: parked and skipped ones.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_PARKED_EVENT_H
#define EVPG_PARKED_EVENT_H

#include "nodes/pg_list.h"
#include "utils/elog.h"

/* An event that a consumer has put aside. */
typedef struct EvpgParkedEvent
{
	int64		id;
	int64		position;
	char	   *key;			/* NULL: none is known, or all of them */
	bool		skipped;		/* never applied; else parked, to be replayed */
} EvpgParkedEvent;

extern List *EvpgParkedEventList(const char *name, int64 after);
extern List *EvpgParkedEventListPage(const char *name, int64 after, int count);
extern void EvpgParkedEventInsertSkipped(const char *name, int64 position, const char *key, const char *reason, int attempts,
										 const ErrorData *error);
extern bool EvpgParkedEventIsSkipped(List *parked, int *next, int64 position, const char *key);
extern void EvpgParkedEventDelete(const char *name, const char *key);
extern void EvpgParkedEventNoteReplay(const EvpgParkedEvent *parked, const ErrorData *error);
extern void EvpgParkedEventInsert(const char *name, int64 position, const char *key, int attempts, const ErrorData *error);
extern void EvpgParkedEventDeleteAll(const char *name);

#endif							/* EVPG_PARKED_EVENT_H */
