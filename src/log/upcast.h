/*-------------------------------------------------------------------------
 *
 * upcast.h
 *		Upcasting: events of an old schema version, as they are read now.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_UPCAST_H
#define EVPG_UPCAST_H

#include "log/event.h"
#include "nodes/pg_list.h"

/* All registered upcasters; NULL stands for none.  Lives to the end of the transaction at least, as what it returns. */
typedef struct EvpgUpcasters EvpgUpcasters;

/* A registered upcaster: a step from one version of an event type to another. */
typedef struct EvpgUpcaster
{
	char	   *event_type;
	int			from_version;
	char	   *aggregate_type; /* NULL: all */
	char	   *new_event_type; /* event_type, unless it is renamed */
	int			to_version;
	char	   *signature;		/* of the function; NULL: data stays as it is */
	char	   *search_path;
	char	   *registered_by;
	MemoryContext context;		/* of all of it */
	struct EvpgFunction *function;	/* NULL: not needed yet */
	EvpgUpcasters *all;			/* NULL: not made yet */
} EvpgUpcaster;

/* The steps from one stored version of an event type, in an aggregate type, to the present one. */
typedef struct EvpgUpcastChain
{
	const char *aggregate_type;
	const char *stored_type;
	int			stored_version;
	const char *type;			/* where the steps lead */
	int			version;
	List	   *steps;			/* of EvpgUpcaster; NIL: it is the present
								 * one, or there is a problem */
	enum
	{
		EVPG_UPCAST_COMPLETE, EVPG_UPCAST_STEP_MISSING, EVPG_UPCAST_TOO_NEW, EVPG_UPCAST_CIRCLE
	}			end;
	int			known_version;	/* of type, the newest; 0: none */
} EvpgUpcastChain;

/* Calls the function of an upcaster: usercode/upcaster.c, which the log knows nothing of. */
typedef Jsonb *(*EvpgUpcastCallHook) (EvpgUpcaster *upcaster, const EvpgEvent *event);
extern EvpgUpcastCallHook EvpgUpcastCall;

extern EvpgUpcasters *EvpgUpcastersGet(void);
extern List *EvpgUpcastersList(const EvpgUpcasters *upcasters);
extern List *EvpgUpcastStoredTypes(const EvpgUpcasters *upcasters, List *types);
extern const EvpgUpcastChain *EvpgUpcastFind(EvpgUpcasters *upcasters, const char *aggregate_type, const char *type,
											 int version);
extern void EvpgUpcastMark(EvpgUpcasters *upcasters, EvpgEvent *event);
extern void EvpgUpcastEvent(EvpgEvent *event);
extern void EvpgUpcastNewEvents(EvpgUpcasters *upcasters, EvpgEvent *events, int count);

#endif							/* EVPG_UPCAST_H */
