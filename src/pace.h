/*-------------------------------------------------------------------------
 *
 * pace.h
 *		How many events a batch takes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_PACE_H
#define EVPG_PACE_H

#include "check.h"
#include "portability/instr_time.h"

typedef struct EvpgPace
{
	char		name[EVPG_MAX_NAME + 1];	/* of the projection */
	int			max_events;		/* of the next batch */
	double		longest;		/* that it should last, in milliseconds */
	instr_time	started;
} EvpgPace;

extern EvpgPace *EvpgPaceStart(const char *name);
extern EvpgPace *EvpgPaceStartRebuild(const char *name);
extern void EvpgPaceEnd(EvpgPace *pace, int64 events);

#endif							/* EVPG_PACE_H */
