/*-------------------------------------------------------------------------
 *
 * instance.h
 *		The rows of instances of sagas.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_INSTANCE_H
#define EVPG_INSTANCE_H

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
} EvpgInstance;

extern void EvpgInstanceRead(const char *saga, const char *key, EvpgInstance *instance);
extern bool EvpgInstanceReadFree(const char *saga, const char *key, EvpgInstance *instance);
extern void EvpgInstanceWrite(const char *saga, const char *key, const EvpgInstance *instance);

#endif							/* EVPG_INSTANCE_H */
