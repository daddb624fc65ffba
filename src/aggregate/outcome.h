/*-------------------------------------------------------------------------
 *
 * outcome.h
 *		What became of a command.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_OUTCOME_H
#define EVPG_OUTCOME_H

#include "aggregate/decision.h"
#include "fmgr.h"
#include "log/event.h"
#include "log/stream.h"

typedef enum EvpgStatus
{
	EVPG_STATUS_OK,
	EVPG_STATUS_NOOP,
	EVPG_STATUS_DUPLICATE,
	EVPG_STATUS_REJECTED,
	EVPG_STATUS_CONFLICT,
	EVPG_STATUS_INVARIANT,
	EVPG_STATUS_INTERCEPTED,
	EVPG_STATUS_SKIPPED			/* not carried out, since another command of
								 * the call was refused */
} EvpgStatus;

/* What became of a command. */
typedef struct EvpgOutcome
{
	EvpgStatus	status;
	EvpgStream	stream;			/* afterwards (ok, duplicate) or as found */
	EvpgEvent  *events;
	int			count;
	int			sqlstate;		/* of a refusal, if not that of its status */
	char	   *code;			/* the rest: of a refusal, may be NULL */
	char	   *message;
	Jsonb	   *detail;
	char	   *hint;
} EvpgOutcome;

extern char *EvpgQuoteJson(const char *text);
extern void EvpgOutcomeRefuse(EvpgOutcome *outcome, EvpgStatus status, const EvpgDecision *why);
extern const char *EvpgOutcomeStatusName(const EvpgOutcome *outcome);
extern int	EvpgOutcomeSqlstate(const EvpgOutcome *outcome);
extern void EvpgOutcomeRaise(const EvpgOutcome *outcome);
extern void EvpgOutcomeReturnRow(FunctionCallInfo fcinfo, const EvpgOutcome *outcome);

#endif							/* EVPG_OUTCOME_H */
