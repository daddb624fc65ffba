/*-------------------------------------------------------------------------
 *
 * react_inline.h
 *		Inline sagas: they react in the transaction that appends the event.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_REACT_INLINE_H
#define EVPG_REACT_INLINE_H

extern void EvpgReactInlineInit(void);
extern void EvpgReactInlineAll(void);

#endif							/* EVPG_REACT_INLINE_H */
