/*-------------------------------------------------------------------------
 *
 * exchange_tables.h
 *		Exchanging the contents of two tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_EXCHANGE_TABLES_H
#define EVPG_EXCHANGE_TABLES_H

#include "projection/exchange_keys.h"

extern const char *EvpgExchangeFindObstacle(Oid table_id, Oid copy_id, EvpgExchange *exchange);
extern void EvpgExchangeLockPublications(void);
extern void EvpgExchangeAwaitUsers(List *tables, TransactionId last_write);
extern void EvpgExchangeCancelStandbySnapshots(Oid table_id, TransactionId last_write);
extern void EvpgExchangeSwapContents(Oid table, Oid copy);

#endif							/* EVPG_EXCHANGE_TABLES_H */
