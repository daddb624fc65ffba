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

extern HeapTuple EvpgRowFind(Oid table, Oid index, const char *first, const char *second, Snapshot snapshot, bool lock);
extern HeapTuple EvpgRowReplace(Oid table, HeapTuple row, int ncolumns, int *columns, Datum *values, bool *nulls);
extern Datum EvpgRowValue(Oid table, HeapTuple row, int column, bool *isnull);

#endif							/* EVPG_ROW_H */
