/*-------------------------------------------------------------------------
 *
 * registration_advice.h
 *		Warnings about registrations that are probably mistakes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_REGISTRATION_ADVICE_H
#define EVPG_REGISTRATION_ADVICE_H

#include "utils/array.h"

extern void EvpgAdvisePath(const char *argument, const char *kind, const char *name, struct varlena *path);
extern void EvpgAdviseTypes(const char *kind, const char *name, ArrayType *aggregate_types, ArrayType *event_types);
extern void EvpgAdviseTables(Oid handler, ArrayType *tables);

#endif							/* EVPG_REGISTRATION_ADVICE_H */
