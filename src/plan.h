/*-------------------------------------------------------------------------
 *
 * plan.h
 *		evpg's own SQL statements, prepared once a session.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_PLAN_H
#define EVPG_PLAN_H

#include "executor/spi.h"

typedef enum EvpgPlan
{
	EVPG_PLAN_AGGREGATE_DELETE,
	EVPG_PLAN_AGGREGATE_READ,
	EVPG_PLAN_AGGREGATE_WRITE,
	EVPG_PLAN_COMMAND_READ,
	EVPG_PLAN_COMMAND_WRITE,
	EVPG_PLAN_EVENT_ID_EXISTS,
	EVPG_PLAN_EVENTS_READ_ALL,
	EVPG_PLAN_EXTENSION_VERSION,
	EVPG_PLAN_HOME_READ,
	EVPG_PLAN_HOME_WRITE,
	EVPG_PLAN_INTERCEPTOR_DELETE,
	EVPG_PLAN_INTERCEPTOR_READ,
	EVPG_PLAN_INTERCEPTOR_WRITE,
	EVPG_PLAN_PROJECTED_CHANGES,
	EVPG_PLAN_PROJECTED_CREATE,
	EVPG_PLAN_PROJECTED_READ,
	EVPG_PLAN_PROJECTED_REMOVE,
	EVPG_PLAN_PROJECTION_CLEAR,
	EVPG_PLAN_PROJECTION_DELETE,
	EVPG_PLAN_PROJECTION_EVENTS,
	EVPG_PLAN_PROJECTION_READ,
	EVPG_PLAN_PROJECTION_WRITE,
	EVPG_PLAN_SNAPSHOT_READ,
	EVPG_PLAN_SNAPSHOT_WRITE,
	EVPG_PLAN_SNAPSHOT_TRIM,
	EVPG_PLAN_STREAM_CREATE,
	EVPG_PLAN_STREAM_LIST,
	EVPG_PLAN_COUNT
} EvpgPlan;

extern uint64 EvpgPlanRun(EvpgPlan id, Datum *values, const char *nulls);
extern uint64 EvpgPlanRead(EvpgPlan id, Datum *values, const char *nulls);
extern uint64 EvpgPlanReadLatest(EvpgPlan id, Datum *values, const char *nulls);
extern Portal EvpgPlanOpen(EvpgPlan id, Datum *values, const char *nulls);
extern void EvpgPlanClose(Portal portal);
extern bool EvpgPlanResult(uint64 row, int column, Datum *value);
extern void EvpgPlanDone(void);

#endif							/* EVPG_PLAN_H */
