/*-------------------------------------------------------------------------
 *
 * keys.h
 *		The keys of an event for a projection or saga.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_KEYS_H
#define EVPG_KEYS_H

#include "evpg.h"

#include "log/event.h"
#include "nodes/pg_list.h"
#include "usercode/function.h"

extern List *EvpgKeysByPath(struct varlena *path, const EvpgEvent *event, const char *kind, const char *name);
extern List *EvpgKeysByFunction(EvpgFunction *function, const EvpgEvent *event, const char *what);
extern List *EvpgKeysByModule(evpg_key_fn key, const EvpgEvent *event, const char *what);

#endif							/* EVPG_KEYS_H */
