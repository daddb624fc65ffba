/*-------------------------------------------------------------------------
 *
 * aggregate.h
 *		Registered aggregate types, ready to be used.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_AGGREGATE_H
#define EVPG_AGGREGATE_H

#include "evpg.h"
#include "broadcast/broadcast.h"
#include "usercode/function.h"
#include "utils/jsonb.h"

/* What a session did with an aggregate type; kept to the end of the session. */
typedef struct EvpgAggregateCounters
{
	char		aggregate_type[256];	/* hash key */
	int64		commands;
	int64		rejected;
	int64		conflicts;
	int64		noops;
	int64		duplicates;
	int64		events;
	int64		unknown_events;
	int64		cache_hits;
	int64		folds;
	int64		snapshots;
} EvpgAggregateCounters;

/* An aggregate type; lives to the end of the transaction at least. */
typedef struct EvpgAggregate
{
	char		aggregate_type[256];	/* hash key */
	MemoryContext context;
	bool		has_module;		/* a symbol of a module, else functions */
	evpg_aggregate_definition module;	/* if has_module */
	EvpgFunction *handler;		/* if not; NULL: stores events alone */
	EvpgFunction *reducer;
	EvpgFunction *invariant;	/* may be NULL */
	EvpgFunction *boundary;		/* may be NULL */
	bool		has_boundary;	/* a function, or one of the module */
	Jsonb	   *initial_state;
	int			snapshot_every; /* 0: never */
	int			snapshot_keep;
	int			reducer_version;
	EvpgBroadcast broadcast;	/* of its events */
	int64		generation;		/* of the registration */
	int64		fold_generation;	/* the first with this fold */
	struct EvpgUpcasters *upcasters;	/* of the events that it folds, and
										 * appends; NULL: none */
	uint64		stamp;			/* of reducer function and upcasters */
	uint64		definition_hash;	/* of them; 0: of a module without any */
	EvpgAggregateCounters *counters;
} EvpgAggregate;

extern EvpgAggregate *EvpgAggregateGet(const char *aggregate_type);
extern EvpgAggregate *EvpgAggregateGetWithState(const char *aggregate_type);
extern EvpgAggregate *EvpgAggregateGetOfStreams(const char *aggregate_type);

#endif							/* EVPG_AGGREGATE_H */
