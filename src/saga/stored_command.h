/*-------------------------------------------------------------------------
 *
 * stored_command.h
 *		Commands as JSON objects: of a send, or of a scheduled command.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_STORED_COMMAND_H
#define EVPG_STORED_COMMAND_H

#include "base/compat.h"
#include "log/event.h"

extern Jsonb *EvpgCommandToJsonb(const EvpgCommand *command);
extern void EvpgCommandFromJsonb(Jsonb *jsonb, EvpgCommand *command);

pg_noreturn extern void EvpgMemberInvalid(const char *what, const char *name);
extern char *EvpgMemberText(Jsonb *object, const char *name, const char *what, bool missing_ok);
extern Jsonb *EvpgMemberJsonb(Jsonb *object, const char *name);
extern Jsonb *EvpgMemberObject(Jsonb *object, const char *name, const char *what);

#endif							/* EVPG_STORED_COMMAND_H */
