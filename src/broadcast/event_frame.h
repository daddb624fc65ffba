/*-------------------------------------------------------------------------
 *
 * event_frame.h
 *		What listeners get of events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_EVENT_FRAME_H
#define EVPG_EVENT_FRAME_H

#include "broadcast/broadcast.h"
#include "log/event.h"

extern void EvpgEventFramesSend(const EvpgEvent *events, int count, EvpgBroadcast how);

#endif							/* EVPG_EVENT_FRAME_H */
