/*-------------------------------------------------------------------------
 *
 * failure.h
 *		What becomes of a due item that has failed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_FAILURE_H
#define EVPG_FAILURE_H

#include "saga/action.h"

extern int	EvpgFailureMaxAttempts(const EvpgDueItem *item);
extern void EvpgFailurePutOff(const EvpgDueItem *item);
extern bool EvpgFailureGiveUp(const EvpgReactionRun *run, const ErrorData *error);
extern bool EvpgFailureSettle(const EvpgReactionRun *run, const ErrorData *error);

#endif							/* EVPG_FAILURE_H */
