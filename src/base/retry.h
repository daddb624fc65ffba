/*-------------------------------------------------------------------------
 *
 * retry.h
 *		When what has failed is tried again.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_RETRY_H
#define EVPG_RETRY_H

#include "datatype/timestamp.h"

extern TimestampTz EvpgRetryAfterAttempts(int attempts);
extern TimestampTz EvpgRetryAfterBackoff(int attempts, double first, double longest);
extern TimestampTz EvpgRetryAfterTransient(TimestampTz last_error_at, TimestampTz retry_at, int first);
extern bool EvpgErrorIsTransient(const ErrorData *error);

/* Returns the pause after a pause: it doubles, from the first to the longest; 0 stands for no pause yet. */
static inline int
EvpgRetryNextPause(int pause, int first, int longest)
{
	return Min(Max(pause * 2, first), longest);
}

#endif							/* EVPG_RETRY_H */
