/*-------------------------------------------------------------------------
 *
 * project.h
 *		Applying events to the keys of projections.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_PROJECT_H
#define EVPG_PROJECT_H

#include "event.h"

extern void EvpgProjectInit(void);
extern bool EvpgProjectAny(const EvpgEvent *events, int count);
extern void EvpgProject(const EvpgEvent *events, int count);

#endif							/* EVPG_PROJECT_H */
