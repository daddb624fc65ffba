/*-------------------------------------------------------------------------
 *
 * announce.h
 *		Notifying consumers of subscriptions that there may be events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_ANNOUNCE_H
#define EVPG_ANNOUNCE_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

extern List *EvpgAnnounceList(void);
extern bool EvpgAnnounceRun(const char *name, TimestampTz *next);
extern void EvpgAnnounceAtCommit(const char *subscription);

#endif							/* EVPG_ANNOUNCE_H */
