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

#include "event.h"
#include "json.h"

/* An event as callbacks get it. */
typedef struct EvpgNativeEvent
{
	evpg_event	event;
	EvpgJsonOwner *data;
	EvpgJsonOwner *metadata;
} EvpgNativeEvent;

extern const evpg_host EvpgNativeHost;

extern evpg_result *EvpgNativeResult(void);
extern void EvpgNativeEventInit(EvpgNativeEvent *native);
extern void EvpgNativeEventSet(EvpgNativeEvent *native, const EvpgEvent *event, evpg_json *data);
extern void EvpgNativeEventClear(EvpgNativeEvent *native);
extern evpg_result *EvpgNativeClip(evpg_result *result);
extern char *EvpgNativeText(const char *text, const char *what);
extern int64 EvpgNativeTime(TimestampTz time);

#endif							/* EVPG_NATIVE_H */
