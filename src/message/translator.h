/*-------------------------------------------------------------------------
 *
 * translator.h
 *		Messages from outside as commands.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_TRANSLATOR_H
#define EVPG_TRANSLATOR_H

#include "log/event.h"

extern int	EvpgTranslate(const char *name, Jsonb *payload, EvpgCommand **commands);

#endif							/* EVPG_TRANSLATOR_H */
