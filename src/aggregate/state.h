/*-------------------------------------------------------------------------
 *
 * state.h
 *		States of aggregates: their values, and loading them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_STATE_H
#define EVPG_STATE_H

#include "aggregate/aggregate.h"
#include "base/json.h"
#include "log/stream.h"
#include "usercode/module_callback.h"

/*
 * A state of an aggregate in use: what the events up to version and
 * last_position fold to.  While it is being changed, valid is false.
 */
typedef struct EvpgState
{
	EvpgAggregate *aggregate;
	MemoryContext context;		/* holds what follows; reset per event:
								 * scratch */
	MemoryContext scratch;
	EvpgJsonOwner *json;		/* of a module */
	EvpgModuleEvent event;		/* of a module: the one being folded */
	Jsonb	   *jsonb;			/* functions */
	int64		version;
	int64		last_position;
	int64		snapshot_version;	/* of the newest usable snapshot that was
									 * seen; 0: none */
	bool		valid;
	Size		size;			/* of a module: estimate, see EvpgStateSize */
	Size		growth;			/* of a module: what was folded in since */
} EvpgState;

extern void EvpgStateInit(EvpgState *state, EvpgAggregate *aggregate);
extern Jsonb *EvpgStateCopyJsonb(MemoryContext context, const Jsonb *jsonb);
extern void EvpgStateSet(EvpgState *state, const Jsonb *value, int64 version, int64 last_position);
extern Jsonb *EvpgStateToJsonb(EvpgState *state);
extern void EvpgStateLoad(EvpgState *state, EvpgAggregate *aggregate, const EvpgStream *stream, bool caller_snapshot);
extern void EvpgStateLoadVersion(EvpgState *state, EvpgAggregate *aggregate, const EvpgStream *stream, int64 version);
extern void EvpgStateLoadTime(EvpgState *state, EvpgAggregate *aggregate, const EvpgStream *stream, TimestampTz time);

#endif							/* EVPG_STATE_H */
