/*-------------------------------------------------------------------------
 *
 * timer.h
 *		The rows of timers and scheduled commands.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_TIMER_H
#define EVPG_TIMER_H

#include "base/row_scan.h"
#include "datatype/timestamp.h"
#include "utils/jsonb.h"

/* A row of evpg.timer. */
typedef struct EvpgTimer
{
	char	   *name;			/* of a timer of a saga */
	Jsonb	   *payload;		/* NULL: none */
	Jsonb	   *command;		/* of evpg_schedule_command(), else NULL */
	TimestampTz scheduled_at;
	TimestampTz due_at;
	int			depth;
	char	   *correlation_id; /* NULL: none */
	char	   *causation_id;	/* NULL: none */
	char	   *session_role;	/* for which it was set */
} EvpgTimer;

extern void EvpgTimerCheckDue(TimestampTz due_at);
extern bool EvpgTimerRead(int64 timer_id, EvpgTimer *timer);
extern int64 EvpgTimerWrite(const char *saga, const char *key, const EvpgTimer *timer);
extern bool EvpgTimerAnyIsDue(TimestampTz now);
extern EvpgRowScan *EvpgDeadTimerScanBegin(void);
extern bool EvpgDeadTimerScanFind(EvpgRowScan *dead_letters, const char *saga, const char *key);
extern void EvpgTimerDeleteAll(const char *saga, const char *key);
extern void EvpgTimerCancel(const char *saga, const char *key, const char *name);

#endif							/* EVPG_TIMER_H */
