/*-------------------------------------------------------------------------
 *
 * idempotency.h
 *		Command ids.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_IDEMPOTENCY_H
#define EVPG_IDEMPOTENCY_H

#include "aggregate/outcome.h"

extern bytea *EvpgIdempotencyHash(const EvpgCommand *command, const EvpgEvent *events, int count);
extern bool EvpgIdempotencyFind(const EvpgCommand *command, const EvpgStream *stream, const bytea *hash,
								EvpgOutcome *outcome);
extern void EvpgIdempotencyRecord(const EvpgCommand *command, const EvpgStream *stream, int64 first, const bytea *hash);
extern char *EvpgOperationKey(const char *const *parts, int count);

#endif							/* EVPG_IDEMPOTENCY_H */
