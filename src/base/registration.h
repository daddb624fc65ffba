/*-------------------------------------------------------------------------
 *
 * registration.h
 *		What the registrations of aggregates, interceptors, projections, sagas
 *		and translators have in common.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_REGISTRATION_H
#define EVPG_REGISTRATION_H

#include "base/statement.h"
#include "fmgr.h"

extern void EvpgRegistrationInit(void);
extern MemoryContext EvpgRegistrationMemory(void);
extern void EvpgRegistrationFreeLater(MemoryContext context);
extern void EvpgRegistrationInvalidate(Oid relation);
extern bool EvpgRegistrationDrop(FunctionCallInfo fcinfo, EvpgStatement *statement, Oid relation, int errcode_missing,
								 const char *what, const char *writer);

#endif							/* EVPG_REGISTRATION_H */
