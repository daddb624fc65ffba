/*-------------------------------------------------------------------------
 *
 * scheduled_command.h
 *		Commands of evpg_schedule_command().
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_SCHEDULED_COMMAND_H
#define EVPG_SCHEDULED_COMMAND_H

#include "saga/action.h"
#include "saga/timer.h"

extern void EvpgScheduledCommandExecute(EvpgAttempt *attempt, const EvpgTimer *timer);

#endif							/* EVPG_SCHEDULED_COMMAND_H */
