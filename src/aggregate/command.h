/*-------------------------------------------------------------------------
 *
 * command.h
 *		The command path.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_COMMAND_H
#define EVPG_COMMAND_H

#include "aggregate/outcome.h"
#include "log/event.h"
#include "log/stream.h"

/*
 * Called at the end of each command and append, with the events that it has
 * written, and whether it was executed by the code of another command; NULL: nothing is.
 */
typedef void (*EvpgCommandEndHook) (const EvpgEvent *events, int count, bool nested);

extern EvpgCommandEndHook EvpgAtCommandEnd;

extern void EvpgCommandExecute(EvpgCommand *command, bool catch, EvpgOutcome *outcome);
extern void EvpgCommandAppend(EvpgCommand *command, EvpgEvent *events, int count, const pg_uuid_t *event_id,
							  EvpgOutcome *outcome);
extern void EvpgCommandInheritDepth(EvpgCommand *command);
extern void EvpgCommandRefuseInside(const char *what);
extern bool EvpgCommandMeetsVersion(const EvpgCommand *command, const EvpgStream *stream, EvpgOutcome *outcome);
extern void EvpgCommandRefuseReentry(const char *aggregate_type, const char *aggregate_id);
extern void EvpgCommandRefuseInBoundary(const EvpgEvent *events, int count);
extern void EvpgCommandsRun(const EvpgCommand *commands, int count, void (*action) (void *arg), void *arg);
extern void EvpgCommandEnd(const EvpgEvent *events, int count);
extern bool EvpgCommandCreateStream(EvpgStream *stream);

#endif							/* EVPG_COMMAND_H */
