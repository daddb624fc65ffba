/*-------------------------------------------------------------------------
 *
 * context.h
 *		Actor, correlation and metadata of a command, and stamping its events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_CONTEXT_H
#define EVPG_CONTEXT_H

#include "log/event.h"

extern void EvpgContextClear(void);
extern const char *EvpgContextSessionRole(void);
extern void EvpgContextSetSessionRole(const char *role);
extern void EvpgContextFillSessionRole(EvpgCommand *command);
extern void EvpgContextFill(EvpgCommand *command);
extern void EvpgContextStamp(const EvpgCommand *command, EvpgEvent *events, int count);

#endif							/* EVPG_CONTEXT_H */
