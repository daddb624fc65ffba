/*-------------------------------------------------------------------------
 *
 * projection_row.h
 *		Rows of projections: the state and version of a key.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_PROJECTION_ROW_H
#define EVPG_PROJECTION_ROW_H

#include "access/htup.h"
#include "base/json.h"
#include "base/row.h"
#include "projection/projection.h"

/* The row of a key, which no other session changes. */
typedef struct EvpgProjectionRow
{
	EvpgProjection *projection;
	int64		build;
	const char *key;
	bool		ordered;		/* frames of the key come in order: they may
								 * have data */
	Jsonb	   *state;			/* NULL: none, or json is it */
	EvpgJsonOwner *json;		/* of a module, while it is folded */
	int			generation;		/* in the build */
	int64		version;		/* 0: never applied */
	int64		position;
	TimestampTz updated_at;
	bool		deleted;
	HeapTuple	tuple;			/* as it is stored; NULL: not yet */
} EvpgProjectionRow;

extern void EvpgProjectionRowLock(EvpgProjectionRow *row, EvpgProjection *projection, const char *key);
extern void EvpgProjectionRowOpen(EvpgProjectionRow *row, EvpgProjection *projection, int64 build, const char *key,
								  bool has_rows);
extern bool EvpgProjectionBuildHasRows(int64 build);
extern void EvpgProjectionRowWrite(EvpgProjectionRow *row);
extern EvpgRowWriter *EvpgProjectionRowWriter(void);
extern void EvpgProjectionRowPut(EvpgRowWriter *writer, EvpgProjectionRow *row);
extern void EvpgProjectionRowRemove(EvpgProjectionRow *row);
extern void EvpgProjectionRowRevive(EvpgProjectionRow *row);
extern void EvpgProjectionRowSend(const EvpgProjectionRow *row, const char *name, Jsonb *data);

#endif							/* EVPG_PROJECTION_ROW_H */
