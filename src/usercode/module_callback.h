/*-------------------------------------------------------------------------
 *
 * module_callback.h
 *		Handing values to the callbacks of modules, and taking their answers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_MODULE_CALLBACK_H
#define EVPG_MODULE_CALLBACK_H

#include "evpg.h"

#include "base/json.h"
#include "log/event.h"

/* An event as callbacks get it. */
typedef struct EvpgModuleEvent
{
	evpg_event	event;
	EvpgJsonOwner *data;
	EvpgJsonOwner *metadata;
	char		event_id[EVPG_UUID_TEXT_SIZE];
} EvpgModuleEvent;

extern const evpg_host EvpgModuleHost;

/* What callbacks of a kind may say, besides that they fail; flags. */
#define EVPG_MAY_EMIT		0x01
#define EVPG_MAY_REJECT		0x02
#define EVPG_MAY_PROJECT	0x04
#define EVPG_MAY_ACT		0x08
#define EVPG_MAY_READ		0x10

extern evpg_result *EvpgModuleResultCreate(void);
extern void EvpgModuleResultReset(evpg_result *result);
extern void EvpgModuleResultCheck(const evpg_result *result, int may, const char *whose);
extern void EvpgModuleEventInit(EvpgModuleEvent *lent);
extern void EvpgModuleEventSet(EvpgModuleEvent *lent, const EvpgEvent *event, evpg_json *data);
extern void EvpgModuleEventClear(EvpgModuleEvent *lent);
extern void EvpgModuleCommandSet(evpg_command *lent, const EvpgCommand *command);
extern evpg_result *EvpgModuleResultClip(evpg_result *result);
extern char *EvpgModuleCopyText(const char *text, const char *what);
extern int64 EvpgModuleTime(TimestampTz time);

#endif							/* EVPG_MODULE_CALLBACK_H */
