/*-------------------------------------------------------------------------
 *
 * exchange_tables.h
 *		Exchanging the contents of two tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_EXCHANGE_TABLES_H
#define EVPG_EXCHANGE_TABLES_H

#include "nodes/pg_list.h"

extern const char *EvpgExchangeObstacle(Oid table_id, Oid copy_id, List *tables, List *copies);
extern void EvpgExchangeWait(List *tables, TransactionId last_write);
extern void EvpgExchangeCancelOnStandbys(Oid table_id, TransactionId last_write);
extern void EvpgExchangeContents(Oid table, Oid copy);

#endif							/* EVPG_EXCHANGE_TABLES_H */
