/*-------------------------------------------------------------------------
 *
 * exchange_keys.h
 *		Foreign keys of tables whose contents are exchanged.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_EXCHANGE_KEYS_H
#define EVPG_EXCHANGE_KEYS_H

#include "nodes/pg_list.h"

/* The tables of a projection whose contents are exchanged with those of copies.  All lists are of Oid. */
typedef struct EvpgExchange
{
	List	   *declared;		/* all tables of the projection */
	List	   *tables;			/* those that are exchanged */
	List	   *copies;			/* in the same order */
	/* foreign keys that the copies do not have */
	List	   *checked;		/* hold for what will be in the tables */
	List	   *failed;			/* do not */
	List	   *pending;		/* have to be checked */
} EvpgExchange;

extern const char *EvpgExchangeFindKeyObstacle(EvpgExchange *exchange, Oid key_id);
extern bool EvpgExchangeCheckPendingKeys(EvpgExchange *exchange);
extern bool EvpgExchangeHasEqualActions(Oid table_id, Oid copy_id, List *tables, List *copies);

#endif							/* EVPG_EXCHANGE_KEYS_H */
