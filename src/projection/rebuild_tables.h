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

extern void EvpgRebuildTablesInit(void);
extern ArrayType *EvpgRebuildTablesCheckTables(ArrayType *tables, Oid handler);
extern void EvpgRebuildTablesCheckOwned(const char *name, ArrayType *tables);
extern void EvpgRebuildTablesCheck(EvpgProjection *projection, LOCKMODE mode);
extern void EvpgRebuildTablesMake(EvpgProjection *projection, int64 build);
extern void EvpgRebuildTablesDrop(int64 build);
extern bool EvpgRebuildTablesWait(EvpgProjection *projection, int64 build, TransactionId last_write);
extern void EvpgRebuildTablesCopy(EvpgProjection *projection, int64 build, bool exchange, TransactionId last_write);
extern void EvpgRebuildTablesRun(EvpgBatch *batch);

#endif							/* EVPG_REBUILD_TABLES_H */
