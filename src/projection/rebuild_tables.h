/*-------------------------------------------------------------------------
 *
 * rebuild_tables.h
 *		Copies of the tables of a projection, which its rebuild fills.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_REBUILD_TABLES_H
#define EVPG_REBUILD_TABLES_H

#include "projection/exchange_keys.h"
#include "projection/projection.h"

extern char *EvpgRebuildTablesSchema(int64 build);
extern void EvpgRebuildTablesCreateCopies(EvpgProjection *projection, int64 build);
extern void EvpgRebuildTablesDropCopies(int64 build);
extern EvpgExchange *EvpgRebuildTablesFindExchangeable(EvpgProjection *projection, int64 build);
extern void EvpgRebuildTablesPrepareExchange(EvpgExchange *exchange, TransactionId last_write);
extern void EvpgRebuildTablesReplaceContents(EvpgProjection *projection, int64 build, EvpgExchange *exchange,
											 TransactionId last_write);

#endif							/* EVPG_REBUILD_TABLES_H */
