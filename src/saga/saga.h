/*-------------------------------------------------------------------------
 *
 * saga.h
 *		Registered sagas, ready to be used.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_SAGA_H
#define EVPG_SAGA_H

#include "evpg.h"

#include "log/event_log.h"
#include "nodes/pg_list.h"
#include "usercode/function.h"

/* One version of a saga; lives to the end of the transaction at least. */
typedef struct EvpgSaga
{
	MemoryContext context;
	char	   *name;
	int			version;
	bool		is_inline;		/* it reacts in the transaction of the event;
								 * of the highest version */
	bool		is_complete;	/* the next two, of EvpgSagaListInline alone,
								 * are known */
	bool		runs;			/* neither paused nor in an inactive copy */
	int64		start_position; /* it takes events after this one */
	bool		has_module;		/* a symbol of a module, else functions */
	char	   *library;		/* if has_module */
	char	   *symbol;
	evpg_saga_definition module;	/* once it is used */
	char	   *handler_signature;	/* if not has_module, as the next two */
	char	   *rejection_signature;	/* NULL: none, as the next one */
	char	   *timer_signature;
	char	   *key_signature;	/* how the key is found; none: aggregate id */
	struct varlena *key_path;	/* a jsonpath */
	EvpgFunction *handler;		/* once they are used */
	EvpgFunction *rejection_handler;
	EvpgFunction *timer_handler;
	EvpgFunction *key_function;
	bool		loaded;			/* all of its code */
	char	   *search_path;
	char	   *registered_by;
	List	   *aggregate_types;	/* NIL: all, as the next two */
	List	   *event_types;
	List	   *start_event_types;
	Jsonb	   *initial_state;
	Jsonb	   *transitions;	/* NULL: any */
	int			max_attempts;
	int64		backoff;		/* of the first retry, in microseconds */
	int64		max_backoff;
} EvpgSaga;

extern EvpgSaga *EvpgSagaGet(const char *name, int version, bool missing_ok);
extern List *EvpgSagaVersions(const char *name);
extern List *EvpgSagaListInline(const EvpgEvent *event);
extern bool EvpgSagaModeIsInline(const char *mode);
extern bool EvpgSagaDeleteUnusedVersions(const char *name, int version);
extern EvpgLogFilter EvpgSagaFilter(List *versions, int64 after, int64 upto);
extern bool EvpgSagaTakes(const EvpgSaga *saga, const EvpgEvent *event);
extern bool EvpgSagaStarts(const EvpgSaga *saga, const EvpgEvent *event);
extern void EvpgSagaAddTotals(const char *saga, int64 dispatched, int64 dead_lettered);

#endif							/* EVPG_SAGA_H */
