/*-------------------------------------------------------------------------
 *
 * function.h
 *		User functions that fill a role: handler, reducer, key function, ...
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_FUNCTION_H
#define EVPG_FUNCTION_H

#include "executor/spi.h"

typedef enum EvpgRole
{
	EVPG_ROLE_HANDLER,
	EVPG_ROLE_REDUCER,
	EVPG_ROLE_INVARIANT,
	EVPG_ROLE_BOUNDARY,
	EVPG_ROLE_INTERCEPTOR,
	EVPG_ROLE_LISTENER,
	EVPG_ROLE_PROJECTION_REDUCER,
	EVPG_ROLE_PROJECTION_HANDLER,
	EVPG_ROLE_KEY,
	EVPG_ROLE_RESET,
	EVPG_ROLE_SAGA_HANDLER,
	EVPG_ROLE_SAGA_REJECTION,
	EVPG_ROLE_SAGA_TIMER,
	EVPG_ROLE_TRANSLATOR,
	EVPG_ROLE_UPCASTER
} EvpgRole;

/* A function ready to be called. */
typedef struct EvpgFunction
{
	EvpgRole	role;
	char	   *signature;		/* schema.name(types) */
	char	   *search_path;
	Oid			oid;
	Oid			owner;
	Oid			result_type;
	bool		returns_set;
	uint64		stamp;			/* differs once the function is replaced */
	uint64		definition_hash;	/* what it is, also after a dump */
	MemoryContext context;		/* of all of it */
	SPIPlanPtr	plan;			/* made at the first call */
	MemoryContextCallback callback; /* frees the plan */
	struct EvpgPreparedCall *prepared;	/* see function_call.c; NULL: none, or
										 * it is under way */
} EvpgFunction;

extern char *EvpgFunctionCheck(Oid function, EvpgRole role, Oid registrant);
extern EvpgFunction *EvpgFunctionResolve(const char *signature, EvpgRole role, const char *registered_by,
										 const char *search_path);
extern EvpgFunction *EvpgFunctionResolveIn(MemoryContext parent, const char *signature, EvpgRole role,
										   const char *registered_by, const char *search_path);
extern bool EvpgFunctionHashes(const char *signature, const char *search_path, uint64 *stamp, uint64 *definition_hash);
extern int	EvpgFunctionArguments(EvpgRole role, Oid *types);
extern void EvpgFunctionPlan(EvpgFunction *function);
extern char *EvpgFunctionSearchPath(void);

#endif							/* EVPG_FUNCTION_H */
