/*-------------------------------------------------------------------------
 *
 * dead_letter.h
 *		Dead letters: what has failed for the last time.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_DEAD_LETTER_H
#define EVPG_DEAD_LETTER_H

#include "saga/due_item.h"
#include "utils/elog.h"
#include "utils/jsonb.h"

/* What a dead letter keeps. */
typedef struct EvpgDeadLetter
{
	const EvpgDueItem *item;
	const char *label;			/* of the send that failed; NULL: none */
	Jsonb	   *command;		/* that send; NULL: none */
	const ErrorData *error;
} EvpgDeadLetter;

extern int64 EvpgDeadLetterWrite(const EvpgDeadLetter *letter);
extern bool EvpgDeadLetterLock(int64 dead_letter_id, EvpgDueItem *item);
extern void EvpgDeadLetterUpdate(int64 dead_letter_id, const ErrorData *error);
extern void EvpgDeadLetterResolve(int64 dead_letter_id, const char *resolution, const char *reason);

#endif							/* EVPG_DEAD_LETTER_H */
