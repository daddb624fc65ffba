/*-------------------------------------------------------------------------
 *
 * position.h
 *		The sequence of positions, evpg.event_position, and evpg.logged_position.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_POSITION_H
#define EVPG_POSITION_H

#include "access/xlogdefs.h"

extern int64 EvpgPositionReadLast(XLogRecPtr *lsn);
extern int64 EvpgPositionLockAndReadLast(void);
extern int64 EvpgPositionDraw(int count);
extern int64 EvpgPositionReadLogged(void);
extern XLogRecPtr EvpgPositionLog(int64 stable, bool take_back);

#endif							/* EVPG_POSITION_H */
