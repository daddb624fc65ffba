/*-------------------------------------------------------------------------
 *
 * activation.h
 *		Whether consumers may run in this database, or it is a copy of another.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_ACTIVATION_H
#define EVPG_ACTIVATION_H

extern bool EvpgActivationIsHere(void);
extern void EvpgActivationRequire(void);
extern void EvpgHomeTell(void);

#endif							/* EVPG_ACTIVATION_H */
