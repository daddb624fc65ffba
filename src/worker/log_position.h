/*-------------------------------------------------------------------------
 *
 * log_position.h
 *		Workers write the stable position into WAL.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_LOG_POSITION_H
#define EVPG_LOG_POSITION_H

#include "datatype/timestamp.h"

extern void EvpgLogPositionIfDue(TimestampTz *next);

#endif							/* EVPG_LOG_POSITION_H */
