/*-------------------------------------------------------------------------
 *
 * interceptor.h
 *		Interceptors: functions that see every command before its handler.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_INTERCEPTOR_H
#define EVPG_INTERCEPTOR_H

#include "aggregate/decision.h"
#include "nodes/pg_list.h"
#include "usercode/function.h"

/* A registered interceptor; lives to the end of the transaction at least. */
typedef struct EvpgInterceptor
{
	char	   *name;
	char	   *signature;
	char	   *search_path;
	char	   *registered_by;
	EvpgFunction *function;		/* NULL: not needed yet */
	MemoryContext context;		/* of all of it */
	List	   *aggregate_types;	/* NIL: all */
	List	   *command_types;	/* NIL: all */
} EvpgInterceptor;

extern List *EvpgInterceptorList(void);
extern bool EvpgInterceptorCall(EvpgInterceptor *interceptor, EvpgCommand *command, EvpgDecision *why);

#endif							/* EVPG_INTERCEPTOR_H */
