/*-------------------------------------------------------------------------
 *
 * row_scan.h
 *		Reading rows of a table in the order of an index.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_ROW_SCAN_H
#define EVPG_ROW_SCAN_H

#include "access/htup.h"
#include "access/skey.h"
#include "executor/tuptable.h"

typedef struct EvpgRowScan EvpgRowScan;

extern void EvpgRowKeyInit(ScanKey key, int column, StrategyNumber strategy, RegProcedure procedure, Datum value);
extern EvpgRowScan *EvpgRowScanBegin(const Oid *table, const Oid *index, bool write);
extern void EvpgRowScanTo(EvpgRowScan *scan, ScanKey keys, int nkeys);
extern TupleTableSlot *EvpgRowScanNext(EvpgRowScan *scan);
extern TupleTableSlot *EvpgRowScanLast(EvpgRowScan *scan);
extern TupleTableSlot *EvpgRowScanNewest(EvpgRowScan *scan, const ItemPointerData *tid);
extern void EvpgRowScanEnd(EvpgRowScan *scan);
extern HeapTuple EvpgRowFindNewest(const Oid *table, const ItemPointerData *tid, bool write);
extern HeapTuple EvpgRowFindFirst(const Oid *table, const Oid *index, ScanKey keys, int nkeys, bool write);

#endif							/* EVPG_ROW_SCAN_H */
