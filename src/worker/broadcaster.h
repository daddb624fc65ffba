/*-------------------------------------------------------------------------
 *
 * broadcaster.h
 *		Sending the frames of a database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_BROADCASTER_H
#define EVPG_BROADCASTER_H

#include "datatype/timestamp.h"

extern TimestampTz EvpgBroadcasterStandIn(void);

/* started by the launcher, by name */
extern PGDLLEXPORT void evpg_broadcaster_main(Datum arg);

#endif							/* EVPG_BROADCASTER_H */
