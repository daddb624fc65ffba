/*-------------------------------------------------------------------------
 *
 * route.h
 *		Giving the events of the log to instances of sagas.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_ROUTE_H
#define EVPG_ROUTE_H

#include "log/event.h"
#include "saga/saga.h"

extern bool EvpgRouteBatch(const char *saga, TimestampTz *next);
extern int64 EvpgRouteAll(const char *saga);
extern void EvpgRouteRest(const char *saga, int64 upto);
extern bool EvpgRouteHasLeft(const char *saga, int64 position);
extern bool EvpgRouteHasReached(const char *saga, int64 position);
extern void EvpgRouteGiveUp(const EvpgSaga *saga, const EvpgEvent *event, int attempts, const ErrorData *error);
extern bool EvpgRouteEvent(const char *saga, int64 position);

#endif							/* EVPG_ROUTE_H */
