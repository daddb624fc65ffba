/*-------------------------------------------------------------------------
 *
 * saga_keys.h
 *		The keys of an event for a saga.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_SAGA_KEYS_H
#define EVPG_SAGA_KEYS_H

#include "saga/saga.h"

extern List *EvpgSagaKeys(EvpgSaga *saga, const EvpgEvent *event);

#endif							/* EVPG_SAGA_KEYS_H */
