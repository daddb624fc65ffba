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

extern char *EvpgModulePath(const char *library);
extern void EvpgModuleLoadAggregate(const char *library, const char *symbol, evpg_aggregate *definition);

#endif							/* EVPG_MODULE_H */
