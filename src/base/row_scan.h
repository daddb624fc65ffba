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
extern TupleTableSlot *EvpgRowScanAt(EvpgRowScan *scan, const ItemPointerData *place, ScanKey keys, int nkeys);
extern void EvpgRowScanEnd(EvpgRowScan *scan);
extern HeapTuple EvpgRowFindFirst(const Oid *table, const Oid *index, ScanKey keys, int nkeys, bool write);
extern HeapTuple EvpgRowFindAt(const Oid *table, const Oid *index, const ItemPointerData *place, ScanKey keys, int nkeys,
							   bool write);

#endif							/* EVPG_ROW_SCAN_H */
