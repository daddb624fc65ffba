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

/* All registrations of a kind, kept for the session. */
typedef struct EvpgRegistrationList
{
	const char *kind;			/* identifies the memory context */
	EvpgStatement *select;
	void	   *(*make) (uint64 row);	/* of a row, in CurrentMemoryContext */
	List	   *list;
	MemoryContext context;		/* of the list; NULL: not loaded */
	uint64		generation;		/* in which it was loaded */
} EvpgRegistrationList;

extern void EvpgRegistrationInit(void);
extern MemoryContext EvpgRegistrationMemory(void);
extern void EvpgRegistrationFreeLater(MemoryContext context);
extern List *EvpgRegistrationListGet(EvpgRegistrationList *registrations);
extern void EvpgRegistrationInvalidate(Oid relation);
extern bool EvpgRegistrationDrop(FunctionCallInfo fcinfo, EvpgStatement *statement, Oid relation, int errcode_missing,
								 const char *what, const char *writer);

#endif							/* EVPG_REGISTRATION_H */
