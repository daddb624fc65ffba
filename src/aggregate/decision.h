/*-------------------------------------------------------------------------
 *
 * decision.h
 *		What the code of an aggregate decides, and the error context that it runs
 *		in.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_DECISION_H
#define EVPG_DECISION_H

#include "base/compat.h"
#include "evpg.h"

#include "log/event.h"
#include "usercode/function.h"
#include "utils/jsonb.h"

/* What a handler has returned.  Events are not stamped yet. */
typedef struct EvpgDecision
{
	EvpgEvent  *events;
	evpg_json **data;			/* of a module: the data of each event, lent */
	int			count;
	bool		rejected;
	char	   *code;
	char	   *message;
	Jsonb	   *detail;
	char	   *hint;
} EvpgDecision;

/* A call of the code of an aggregate, for the CONTEXT of errors. */
typedef struct EvpgAggregateCall
{
	ErrorContextCallback callback;
	const char *role;
	const char *aggregate_type;
	const char *aggregate_id;
	const char *type;			/* of the command or event */
	int64		version;
	int64		position;
} EvpgAggregateCall;

/* A call of a function that may refuse. */
typedef struct EvpgRefusableCall
{
	EvpgFunction *function;
	Datum	   *args;
	int			max_rows;
	Datum	   *rows;
	bool	   *row_nulls;
	int			count;
} EvpgRefusableCall;

extern void EvpgAggregateCallBegin(EvpgAggregateCall *call);
extern void EvpgAggregateCallEnd(EvpgAggregateCall *call);
extern void EvpgDecisionFromError(const ErrorData *error, EvpgDecision *decision);
extern void EvpgDecisionFromModule(evpg_result *result, const EvpgCommand *command, EvpgDecision *decision);
pg_noreturn extern void EvpgRaiseModuleFailed(evpg_result *result, const char *role, const EvpgCommand *command);
extern void EvpgRefusableCallRun(EvpgRefusableCall *call);
extern bool EvpgRefusableCallTry(EvpgRefusableCall *call, int also, EvpgDecision *decision);

#endif							/* EVPG_DECISION_H */
