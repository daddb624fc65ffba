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
extern TimestampTz EvpgFailureTransientUntil(void);
extern bool EvpgFailureGiveUp(const EvpgAttempt *run, const ErrorData *error);
extern bool EvpgFailureSettle(const EvpgAttempt *run, const ErrorData *error);

#endif							/* EVPG_FAILURE_H */
