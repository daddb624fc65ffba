/*-------------------------------------------------------------------------
 *
 * upcaster.h
 *		Upcasters: their registration, and calls of their functions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_UPCASTER_H
#define EVPG_UPCASTER_H

#include "log/upcast.h"

extern void EvpgUpcasterInit(void);
extern void EvpgUpcasterAddHashes(const EvpgUpcasters *upcasters, const char *aggregate_type, uint64 *stamp,
								  uint64 *definition_hash);

#endif							/* EVPG_UPCASTER_H */
