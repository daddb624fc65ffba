/*-------------------------------------------------------------------------
 *
 * projection.h
 *		Registered projections, ready to be used.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_PROJECTION_H
#define EVPG_PROJECTION_H

#include "evpg.h"

#include "broadcast/broadcast.h"
#include "log/event.h"
#include "nodes/pg_list.h"
#include "usercode/function.h"

typedef enum EvpgProjectionMode
{
	EVPG_MODE_INLINE,			/* applied by the transaction that appends */
	EVPG_MODE_ASYNC				/* applied afterwards, by a consumer */
} EvpgProjectionMode;

/* What becomes of an event that cannot be applied. */
typedef enum EvpgOnError
{
	EVPG_ON_ERROR_STOP,
	EVPG_ON_ERROR_PARK,
	EVPG_ON_ERROR_SKIP
} EvpgOnError;

/* A projection; lives to the end of the transaction at least. */
typedef struct EvpgProjection
{
	MemoryContext context;
	char	   *name;
	bool		has_module;		/* a symbol of a module, else functions */
	char	   *library;		/* if has_module */
	char	   *symbol;
	evpg_projection_definition module;	/* once it is used */
	char	   *reducer_signature;	/* if not: one of these two */
	char	   *handler_signature;
	char	   *key_signature;	/* how the key is found; none: aggregate id */
	struct varlena *key_path;	/* a jsonpath */
	char	   *constant_key;
	EvpgFunction *function;		/* reducer or handler, once it is used */
	EvpgFunction *key_function; /* once it is used */
	char	   *search_path;
	char	   *registered_by;
	List	   *aggregate_types;	/* NIL: all, as the next two */
	List	   *event_types;
	List	   *tags;
	Jsonb	   *initial_state;
	EvpgBroadcast broadcast;
	char	   *event_name;
	EvpgProjectionMode mode;
	EvpgOnError on_error;		/* unless inline, as max_attempts */
	int			max_attempts;
	char	   *reset_signature;	/* of a table projection, as tables */
	List	   *tables;			/* qualified names */
	int64		start_position; /* earlier events are not its own */
	int			version;
	int64		build;			/* the rows that are read */
	int			generation_base;	/* of these rows */
} EvpgProjection;

extern EvpgProjectionMode EvpgProjectionModeFromName(const char *name);
extern EvpgOnError EvpgOnErrorFromName(const char *name);
extern List *EvpgProjectionList(void);
extern EvpgProjection *EvpgProjectionGet(const char *name, bool missing_ok);
extern bool EvpgProjectionHasCode(const EvpgProjection *projection);
extern void EvpgProjectionRequireCode(const EvpgProjection *projection);
extern bool EvpgProjectionTakes(EvpgProjection *projection, const EvpgEvent *event);
extern bool EvpgProjectionTakesWanted(EvpgProjection *projection, const EvpgEvent *event);
extern bool EvpgProjectionIsKeyedById(EvpgProjection *projection);
extern List *EvpgProjectionKeys(EvpgProjection *projection, const EvpgEvent *event);
extern EvpgFunction *EvpgProjectionFunction(EvpgProjection *projection);

#endif							/* EVPG_PROJECTION_H */
