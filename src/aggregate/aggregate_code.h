/*-------------------------------------------------------------------------
 *
 * aggregate_code.h
 *		Running the code of an aggregate: deciding, folding, checking.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_AGGREGATE_CODE_H
#define EVPG_AGGREGATE_CODE_H

#include "evpg.h"

#include "aggregate/aggregate.h"
#include "base/json.h"
#include "log/event.h"
#include "usercode/native.h"

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
	EvpgJsonOwner *json;		/* native */
	EvpgNativeEvent event;		/* native: the one being folded */
	Jsonb	   *jsonb;			/* functions */
	int64		version;
	int64		last_position;
	int64		snapshot_version;	/* of the newest usable snapshot that was
									 * seen; 0: none */
	bool		valid;
	Size		size;			/* native: estimate, see EvpgStateSize */
	Size		growth;			/* native: what was folded in since */
} EvpgState;

/* What a handler said.  Events are not stamped yet. */
typedef struct EvpgDecision
{
	EvpgEvent  *events;
	evpg_json **data;			/* native: the data of each event, lent */
	int			count;
	bool		rejected;
	char	   *code;
	char	   *message;
	Jsonb	   *detail;
	char	   *hint;
} EvpgDecision;

extern void EvpgStateInit(EvpgState *state, EvpgAggregate *aggregate);
extern void EvpgStateReset(EvpgState *state, const Jsonb *value, int64 version, int64 last_position);
extern void EvpgHandlerDecide(EvpgState *state, const EvpgCommand *command, EvpgDecision *decision);
extern void EvpgDecisionFromError(const ErrorData *error, EvpgDecision *decision);
extern void EvpgReducerFold(EvpgState *state, const EvpgEvent *event, evpg_json *data);
extern bool EvpgInvariantHolds(EvpgState *state, const EvpgCommand *command, EvpgDecision *why);
extern Jsonb *EvpgStateValue(EvpgState *state);
extern bool EvpgInterceptorCall(EvpgInterceptor *interceptor, EvpgCommand *command, EvpgDecision *why);

#endif							/* EVPG_AGGREGATE_CODE_H */
