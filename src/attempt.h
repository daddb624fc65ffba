/*-------------------------------------------------------------------------
 *
 * attempt.h
 *		Doing something that may fail without failing.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_ATTEMPT_H
#define EVPG_ATTEMPT_H

/* The library that the launcher starts its background processes from. */
#define EVPG_LIBRARY "evpg"

extern bool EvpgAttemptInWorker(void);
extern int	EvpgAttemptLevel(void);
extern bool EvpgAttemptCancelled(const ErrorData *error);
extern ErrorData *EvpgAttempt(void (*action) (void *arg), void *arg);

#endif							/* EVPG_ATTEMPT_H */
