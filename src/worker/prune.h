/*-------------------------------------------------------------------------
 *
 * prune.h
 *		Pruning what is no longer needed, by evpg.retention.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_PRUNE_H
#define EVPG_PRUNE_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

extern List *EvpgPruneList(void);
extern bool EvpgPruneRun(const char *what, TimestampTz *next);

#endif							/* EVPG_PRUNE_H */
