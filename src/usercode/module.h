/*-------------------------------------------------------------------------
 *
 * module.h
 *		Loading definitions from shared objects.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_MODULE_H
#define EVPG_MODULE_H

#include "evpg.h"

#include "utils/jsonb.h"

extern char *EvpgModulePath(const char *library);
extern void EvpgModuleCheckRegistrant(const char *library, const char *registered_by);
extern void EvpgModuleLoadAggregate(const char *library, const char *symbol, evpg_aggregate_definition *definition);
extern void EvpgModuleLoadProjection(const char *library, const char *symbol, evpg_projection_definition *definition);
extern void EvpgModuleLoadSaga(const char *library, const char *symbol, evpg_saga_definition *definition);
extern Jsonb *EvpgModuleInitialState(const char *library, const char *symbol, const char *text);

#endif							/* EVPG_MODULE_H */
