/*-------------------------------------------------------------------------
 *
 * hook.h
 *		Interceptors and listeners: functions that are called for commands or
 *		events of some types, in the order of a priority.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_HOOK_H
#define EVPG_HOOK_H

#include "base/statement.h"
#include "fmgr.h"
#include "nodes/pg_list.h"
#include "usercode/function.h"

/* A kind of hooks, and the statements on its table of registrations. */
typedef struct EvpgHookKind
{
	const char *name;
	const char *types_argument; /* of the types of what it is called for */
	bool		for_events;		/* these are types of events, else of commands */
	EvpgRole	role;
	EvpgStatement *insert;		/* name, function, aggregate types, types,
								 * priority, search_path, registered_by */
	EvpgStatement *delete;		/* name */
} EvpgHookKind;

/* A registered hook; lives to the end of the transaction at least. */
typedef struct EvpgHook
{
	char	   *name;
	char	   *signature;
	char	   *search_path;
	char	   *registered_by;
	EvpgFunction *function;		/* NULL: not needed yet */
	MemoryContext context;		/* of all of it */
	List	   *aggregate_types;	/* NIL: all */
	List	   *types;			/* NIL: all */
} EvpgHook;

extern bool EvpgHookRegister(FunctionCallInfo fcinfo, const EvpgHookKind *kind, Oid relation, const char *writer);
extern bool EvpgHookDrop(FunctionCallInfo fcinfo, const EvpgHookKind *kind, Oid relation, const char *writer);
extern void *EvpgHookMake(uint64 row);
extern bool EvpgHookTakes(const EvpgHook *hook, const char *aggregate_type, const char *type);
extern EvpgFunction *EvpgHookFunction(EvpgHook *hook, EvpgRole role);

#endif							/* EVPG_HOOK_H */
