/*-------------------------------------------------------------------------
 *
 * retry.c
 *		When what has failed is tried again.
 *
 * An error that counts as an attempt is followed by a retry back-off: pauses that
 * double with the attempts, with up to a quarter more, so that not all that failed
 * together is tried again together.  A transient error is no attempt, and is
 * followed by a pause that doubles as long as such errors follow each other.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/clock.h"
#include "base/retry.h"
#include "base/subtransaction.h"
#include "common/pg_prng.h"
#include "utils/timestamp.h"

/* The first and the longest back-off of consumers, in microseconds. */
#define FIRST_BACKOFF USECS_PER_SEC
#define LONGEST_BACKOFF (300 * USECS_PER_SEC)

/* The longest pause after a transient error, and when one follows no other, in ms. */
#define LONGEST_PAUSE 30000
#define ROW_ENDS 60000

/*
 * EvpgRetryAfterBackoff
 *		Returns when to try again after so many attempts, at least 1, by evpg's clock.
 *		first and longest are in microseconds.
 */
TimestampTz
EvpgRetryAfterBackoff(int attempts, double first, double longest)
{
	double		pause = first;

	for (int i = 1; i < attempts && pause < longest; i++)
		pause *= 2;
	return EvpgClockNow() + (int64) (Min(pause, longest) * (1 + pg_prng_double(&pg_global_prng_state) / 4));
}

/* Returns the same with the back-off of consumers: 1 s, 2 s, 4 s, ..., 5 min. */
TimestampTz
EvpgRetryAfterAttempts(int attempts)
{
	return EvpgRetryAfterBackoff(attempts, FIRST_BACKOFF, LONGEST_BACKOFF);
}

/*
 * EvpgRetryAfterTransient
 *		Returns when to try again after a transient error, by evpg's clock: soon
 *		after the first one, in ms; then after pauses that double.  The caller knows
 *		when the last error came and when it was to be tried again then, 0 if there
 *		was none.
 */
TimestampTz
EvpgRetryAfterTransient(TimestampTz last_error_at, TimestampTz retry_at, int first)
{
	TimestampTz now = EvpgClockNow();
	int64		pause = 0;

	if (retry_at > last_error_at && !TimestampDifferenceExceeds(retry_at, now, ROW_ENDS))
		pause = (retry_at - last_error_at) / 1000 * 2;
	return TimestampTzPlusMilliseconds(now, Min(Max(pause, first), LONGEST_PAUSE));
}

/* Returns whether an error need not come back: another session interfered, or the server is short of a resource. */
bool
EvpgErrorIsTransient(const ErrorData *error)
{
	return EvpgErrorIsInterference(error->sqlerrcode) ||
		ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_INSUFFICIENT_RESOURCES;
}
