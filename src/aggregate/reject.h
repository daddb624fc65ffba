/*-------------------------------------------------------------------------
 *
 * reject.h
 *		The message of a refusal that has none.
 *
 * It stands alone because evpg.h, for modules, has another evpg_reject().
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_REJECT_H
#define EVPG_REJECT_H

extern char *EvpgRejectionDefaultMessage(const char *code);

#endif							/* EVPG_REJECT_H */
