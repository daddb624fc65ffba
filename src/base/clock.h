/*-------------------------------------------------------------------------
 *
 * clock.h
 *		The clock of evpg.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_CLOCK_H
#define EVPG_CLOCK_H

#include "datatype/timestamp.h"

/* How far evpg_set_clock_offset() can move the clock, to either side, in microseconds. */
#define EVPG_MAX_CLOCK_OFFSET	(100 * INT64CONST(365) * USECS_PER_DAY)

extern TimestampTz EvpgClockNow(void);
extern TimestampTz EvpgClockWall(TimestampTz due);

#endif							/* EVPG_CLOCK_H */
