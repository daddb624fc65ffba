/*-------------------------------------------------------------------------
 *
 * instance.h
 *		The rows of instances of sagas.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_INSTANCE_H
#define EVPG_INSTANCE_H

#include "access/htup.h"
#include "executor/tuptable.h"
#include "utils/jsonb.h"

/* A row of evpg.saga_instance. */
typedef struct EvpgInstance
{
	bool		exists;
	bool		completed;
	int			saga_version;
	int64		version;
	int64		position;
	Jsonb	   *state;
	Jsonb	   *undo;			/* an array, see compensation.c */
	HeapTuple	tuple;			/* the row as it was read; NULL: it does not
								 * exist */
} EvpgInstance;

extern void EvpgInstanceRead(const char *saga, const char *key, EvpgInstance *instance);
extern bool EvpgInstanceRowIsCompleted(const TupleTableSlot *row);
extern bool EvpgInstanceIsFree(const char *saga, const char *key);
extern void EvpgInstanceWrite(const char *saga, const char *key, const EvpgInstance *instance);

#endif							/* EVPG_INSTANCE_H */
