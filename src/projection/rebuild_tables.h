/*-------------------------------------------------------------------------
 *
 * rebuild_tables.h
 *		Copies of the tables of a projection, which its rebuild fills.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_REBUILD_TABLES_H
#define EVPG_REBUILD_TABLES_H

#include "projection/batch.h"
#include "storage/lockdefs.h"
#include "utils/array.h"

extern void EvpgShadowInit(void);
extern ArrayType *EvpgShadowCheckTables(ArrayType *tables, Oid handler);
extern void EvpgShadowCheckOwned(const char *name, ArrayType *tables);
extern void EvpgShadowCheck(EvpgProjection *projection, LOCKMODE mode);
extern void EvpgShadowMake(EvpgProjection *projection, int64 build);
extern void EvpgShadowDrop(int64 build);
extern bool EvpgShadowWait(EvpgProjection *projection, int64 build, TransactionId last_write);
extern void EvpgShadowCopy(EvpgProjection *projection, int64 build, bool exchange, TransactionId last_write);
extern void EvpgShadowRun(EvpgBatch *batch);

#endif							/* EVPG_REBUILD_TABLES_H */
