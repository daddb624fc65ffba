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
#include "utils/snapshot.h"

extern HeapTuple EvpgRowFind(Oid table, Oid index, RegProcedure equal, Datum first, const char *second,
							 Snapshot snapshot, bool lock);
extern HeapTuple EvpgRowById(Oid table, Oid index, int64 id);
extern HeapTuple EvpgRowInsert(Oid table, Datum *values, bool *nulls);
extern HeapTuple EvpgRowReplace(Oid table, HeapTuple row, Datum *values, bool *nulls, bool *replaced);
extern Datum EvpgRowValue(Oid table, HeapTuple row, int column, bool *isnull);

#endif							/* EVPG_ROW_H */
