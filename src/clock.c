/*-------------------------------------------------------------------------
 *
 * clock.c
 *		The time by which timers and retries become due.
 *
 * It is the wall clock plus evpg.clock_offset, so that a test need not wait for
 * a timer.  What is recorded about events and commands is the wall clock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "clock.h"
#include "settings.h"
#include "utils/timestamp.h"

/* Advances within a transaction, as clock_timestamp() does. */
TimestampTz
EvpgClockNow(void)
{
	return GetCurrentTimestamp() + EvpgClockOffset * USECS_PER_SEC;
}

/* When it is that time by the wall clock, as who sleeps needs it. */
TimestampTz
EvpgClockWall(TimestampTz due)
{
	return due - EvpgClockOffset * USECS_PER_SEC;
}
