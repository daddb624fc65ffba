/*-------------------------------------------------------------------------
 *
 * activation.h
 *		Whether consumers may run in this database, or it is a copy of another.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_ACTIVATION_H
#define EVPG_ACTIVATION_H

extern bool EvpgActivationIsValid(void);
extern void EvpgActivationRequire(void);
extern void EvpgActivationNotice(void);
extern void EvpgActivationNoteForeignRows(void);

#endif							/* EVPG_ACTIVATION_H */
