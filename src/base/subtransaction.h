/*-------------------------------------------------------------------------
 *
 * subtransaction.h
 *		Running code in a subtransaction, and what the error that ends it means.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_SUBTRANSACTION_H
#define EVPG_SUBTRANSACTION_H

#include "base/compat.h"
#include "datatype/timestamp.h"

/* The library that the launcher starts its background processes from. */
#define EVPG_LIBRARY "evpg"

extern bool EvpgInWorker(void);
extern int	EvpgReportLevel(void);
extern bool EvpgErrorIsCancel(const ErrorData *error);
extern void EvpgTrackCancels(void);
extern void EvpgCancelOwnAttempt(void);
extern void EvpgForgetOwnCancel(void);
extern void EvpgForgetCancel(void);
extern bool EvpgErrorIsWorkerCancel(const ErrorData *error);
extern bool EvpgErrorIsForeignCancel(const ErrorData *error);
extern bool EvpgErrorIsInterference(int sqlerrcode);
extern bool EvpgPostponeAfterError(const ErrorData *error, TimestampTz *next);
pg_noreturn extern void EvpgRethrowError(const ErrorData *error);
extern ErrorData *EvpgSubtransactionRun(void (*action) (void *arg), void *arg);

#endif							/* EVPG_SUBTRANSACTION_H */
