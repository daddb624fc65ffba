/*-------------------------------------------------------------------------
 *
 * native.h
 *		Handing values to the callbacks of modules, and taking their answers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_NATIVE_H
#define EVPG_NATIVE_H

#include "evpg.h"

#include "base/json.h"
#include "log/event.h"

/* An event as callbacks get it. */
typedef struct EvpgNativeEvent
{
	evpg_event	event;
	EvpgJsonOwner *data;
	EvpgJsonOwner *metadata;
} EvpgNativeEvent;

extern const evpg_host EvpgNativeHost;

/* What callbacks of a kind may say, besides that they fail; flags. */
#define EVPG_MAY_EMIT		0x01
#define EVPG_MAY_REJECT		0x02
#define EVPG_MAY_PROJECT	0x04
#define EVPG_MAY_ACT		0x08

extern evpg_result *EvpgNativeResult(void);
extern void EvpgNativeResultReset(evpg_result *result);
extern void EvpgNativeResultCheck(const evpg_result *result, int may, const char *whose);
extern void EvpgNativeEventInit(EvpgNativeEvent *native);
extern void EvpgNativeEventSet(EvpgNativeEvent *native, const EvpgEvent *event, evpg_json *data);
extern void EvpgNativeEventClear(EvpgNativeEvent *native);
extern evpg_result *EvpgNativeClip(evpg_result *result);
extern char *EvpgNativeText(const char *text, const char *what);
extern int64 EvpgNativeTime(TimestampTz time);

#endif							/* EVPG_NATIVE_H */
