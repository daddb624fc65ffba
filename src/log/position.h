/*-------------------------------------------------------------------------
 *
 * position.h
 *		The sequence of positions, evpg.event_position.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_POSITION_H
#define EVPG_POSITION_H

#include "access/xlogdefs.h"

extern int64 EvpgPositionReadLast(XLogRecPtr *lsn);
extern int64 EvpgPositionLockAndReadLast(void);
extern int64 EvpgPositionDraw(int count);

#endif							/* EVPG_POSITION_H */
