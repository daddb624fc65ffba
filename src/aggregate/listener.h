/*-------------------------------------------------------------------------
 *
 * listener.h
 *		Listeners: functions that are told of events in the transaction that
 *		appends them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_LISTENER_H
#define EVPG_LISTENER_H

#include "log/event.h"

extern void EvpgListenersTell(const EvpgEvent *events, int count);

#endif							/* EVPG_LISTENER_H */
