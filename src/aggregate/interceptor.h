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
#include "aggregate/hook.h"

extern List *EvpgInterceptorList(void);
extern bool EvpgInterceptorCall(EvpgHook *interceptor, EvpgCommand *command, EvpgDecision *why);

#endif							/* EVPG_INTERCEPTOR_H */
