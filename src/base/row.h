/*-------------------------------------------------------------------------
 *
 * row.h
 *		Finding, locking and replacing a row by its unique key.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_ROW_H
#define EVPG_ROW_H

#include "access/htup.h"
#include "access/skey.h"
#include "access/tupdesc.h"
#include "fmgr.h"
#include "utils/snapshot.h"

typedef struct EvpgRowWriter EvpgRowWriter;

extern HeapTuple EvpgRowFind(const Oid *table, const Oid *index, RegProcedure equal, Datum first, const char *second,
							 Snapshot snapshot, bool lock);
extern HeapTuple EvpgRowFindDirty(const Oid *table, const Oid *index, ScanKey keys, int nkeys, TransactionId *maker,
								  uint32 *token);
extern List *EvpgRowListFromId(const Oid *table, const Oid *index, int64 id, int max_count);
extern EvpgRowWriter *EvpgRowWriterBegin(const Oid *table, const TupleDesc *row);
extern HeapTuple EvpgRowInsert(EvpgRowWriter *writer, Datum *values, bool *nulls);
extern HeapTuple EvpgRowReplace(EvpgRowWriter *writer, HeapTuple row, Datum *values, bool *nulls, bool *replaced);
extern bool EvpgRowTryLock(EvpgRowWriter *writer, HeapTuple row);
extern bool EvpgRowIsFree(const Oid *table, HeapTuple row);
extern bool EvpgRowTryReplace(EvpgRowWriter *writer, HeapTuple row, Datum *values, bool *nulls, bool *replaced, bool wait);
extern bool EvpgRowTryDelete(EvpgRowWriter *writer, HeapTuple row);
extern ItemPointerData EvpgRowWriterPlace(const EvpgRowWriter *writer);
extern void EvpgRowWriterEnd(EvpgRowWriter *writer);
extern TransactionId EvpgRowMaker(const SnapshotData *dirty);
extern Datum EvpgRowOfCounts(FunctionCallInfo fcinfo, int64 first, int64 second);

#endif							/* EVPG_ROW_H */
