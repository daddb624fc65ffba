/*-------------------------------------------------------------------------
 *
 * stream_set.h
 *		Several streams that one call locks.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_STREAM_SET_H
#define EVPG_STREAM_SET_H

#include "log/stream.h"

/* The streams of one call, each once, and in the order of their locks. */
typedef struct EvpgStreamSet
{
	int			count;
	EvpgStream *streams;
	bool	   *kept;			/* to the end of the transaction in any case;
								 * the caller sets it */
	int		   *places;			/* of those that were added, in that order */
} EvpgStreamSet;

extern void EvpgStreamSetMake(EvpgStreamSet *set, const EvpgStream *added, int count);
extern void EvpgStreamSetLock(EvpgStreamSet *set);
extern void EvpgStreamSetUnlockUnneeded(EvpgStreamSet *set);

#endif							/* EVPG_STREAM_SET_H */
