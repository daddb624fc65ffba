/*-------------------------------------------------------------------------
 *
 * early_release.h
 *		Commits whose locks are released before they are on disk.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_EARLY_RELEASE_H
#define EVPG_EARLY_RELEASE_H

extern void EvpgEarlyReleaseInit(void);
extern void EvpgEarlyReleaseAwaitOwn(void);
extern void EvpgEarlyReleaseAwaitOthers(void);

#endif							/* EVPG_EARLY_RELEASE_H */
