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
extern void EvpgFailurePostpone(const EvpgDueItem *item);
extern bool EvpgFailureGiveUp(const EvpgAttempt *attempt, const ErrorData *error);
extern bool EvpgFailureSettle(const EvpgAttempt *attempt, const ErrorData *error);

#endif							/* EVPG_FAILURE_H */
