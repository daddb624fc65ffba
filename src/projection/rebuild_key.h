/*-------------------------------------------------------------------------
 *
 * rebuild_key.h
 *		Rebuilding a single key of a projection.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_REBUILD_KEY_H
#define EVPG_REBUILD_KEY_H

extern int64 EvpgRebuildKey(const char *name, const char *key);

#endif							/* EVPG_REBUILD_KEY_H */
