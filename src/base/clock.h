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

extern TimestampTz EvpgClockNow(void);
extern TimestampTz EvpgClockWall(TimestampTz due);

#endif							/* EVPG_CLOCK_H */
