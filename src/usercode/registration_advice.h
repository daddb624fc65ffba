/*-------------------------------------------------------------------------
 *
 * registration_advice.h
 *		Warnings about registrations that are probably mistakes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_REGISTRATION_ADVICE_H
#define EVPG_REGISTRATION_ADVICE_H

#include "log/event_log.h"
#include "utils/array.h"

extern void EvpgAdvisePath(const char *argument, const char *kind, const char *name, struct varlena *path,
						   const EvpgLogFilter *takes);
extern List *EvpgAdviseReadSeenTypes(void);
extern void EvpgAdviseTypes(const char *kind, const char *name, ArrayType *aggregate_types, ArrayType *event_types,
							List *seen);
extern void EvpgAdviseTables(Oid handler, ArrayType *tables);

#endif							/* EVPG_REGISTRATION_ADVICE_H */
