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
extern ArrayType *EvpgRebuildTablesCheckDeclared(ArrayType *tables, Oid handler);
extern void EvpgRebuildTablesCheckUnclaimed(const char *name, ArrayType *tables);
extern void EvpgRebuildTablesCheckReplaceable(EvpgProjection *projection, LOCKMODE mode);
extern void EvpgRebuildTablesCreateCopies(EvpgProjection *projection, int64 build);
extern void EvpgRebuildTablesDropCopies(int64 build);
extern bool EvpgRebuildTablesAwaitExchange(EvpgProjection *projection, int64 build, TransactionId last_write);
extern void EvpgRebuildTablesReplaceContents(EvpgProjection *projection, int64 build, bool exchange, TransactionId last_write);
extern void EvpgRebuildTablesApplyBatch(EvpgBatch *batch);

#endif							/* EVPG_REBUILD_TABLES_H */
