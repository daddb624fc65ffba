/*-------------------------------------------------------------------------
 *
 * durable.h
 *		Waiting until what leaves the database is durable.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_DURABLE_H
#define EVPG_DURABLE_H

#include "access/xlogdefs.h"

extern void EvpgDurableInit(void);
extern void EvpgDurableCommitLazily(void);
extern bool EvpgDurableCommitsLazily(void);
extern void EvpgDurableNoteAppend(void);
extern bool EvpgDurableAppends(void);
extern void EvpgDurableNoteNotify(void);
extern void EvpgDurablePreparedBegin(void);
extern void EvpgDurablePreparedEnd(void);
extern void EvpgDurableAwait(XLogRecPtr lsn);
extern void EvpgDurableAwaitAll(void);
extern void EvpgDurableAwaitAppends(XLogRecPtr lsn);

#endif							/* EVPG_DURABLE_H */
