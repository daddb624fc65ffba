/*-------------------------------------------------------------------------
 *
 * exchange.h
 *		Exchanging the contents of two tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_EXCHANGE_H
#define EVPG_EXCHANGE_H

#include "nodes/pg_list.h"

extern bool EvpgExchangePossible(Oid table, Oid copy);
extern void EvpgExchangeWait(List *tables, TransactionId last_write);
extern void EvpgExchangeContents(Oid table, Oid copy);

#endif							/* EVPG_EXCHANGE_H */
