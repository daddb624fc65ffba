/*-------------------------------------------------------------------------
 *
 * route.h
 *		Giving the events of the log to instances of sagas.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_ROUTE_H
#define EVPG_ROUTE_H

#include "datatype/timestamp.h"

extern bool EvpgRouteBatch(const char *saga, TimestampTz *next);
extern int64 EvpgRouteAll(const char *saga);
extern bool EvpgRouteHasReached(const char *saga, int64 position);
extern bool EvpgRouteEvent(const char *saga, int64 position);

#endif							/* EVPG_ROUTE_H */
