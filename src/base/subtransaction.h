/*-------------------------------------------------------------------------
 *
 * subtransaction.h
 *		Doing something that may fail without failing.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_SUBTRANSACTION_H
#define EVPG_SUBTRANSACTION_H

#include "datatype/timestamp.h"

/* The library that the launcher starts its background processes from. */
#define EVPG_LIBRARY "evpg"

extern bool EvpgInWorker(void);
extern int	EvpgSubtransactionLevel(void);
extern bool EvpgErrorIsCancel(const ErrorData *error);
extern void EvpgAttemptNoteCancels(void);
extern void EvpgAttemptForgetCancel(void);
extern bool EvpgAttemptDisturbed(int sqlerrcode);
extern bool EvpgAttemptPutOff(const ErrorData *error, TimestampTz *next);
extern ErrorData *EvpgSubtransactionRun(void (*action) (void *arg), void *arg);

#endif							/* EVPG_SUBTRANSACTION_H */
