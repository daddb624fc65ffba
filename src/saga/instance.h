/*-------------------------------------------------------------------------
 *
 * instance.h
 *		Instances of sagas, and the work that they have before them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_INSTANCE_H
#define EVPG_INSTANCE_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "utils/elog.h"
#include "utils/jsonb.h"

/* An event or a timer that is to be reacted to, or a command that is due. */
typedef struct EvpgDueItem
{
	char	   *saga;			/* NULL: a command of evpg_schedule_command() */
	char	   *key;
	int64		position;		/* of the event; 0: a timer */
	int64		timer_id;
	int			attempts;		/* so far, with this one */
	bool		suspect;		/* an attempt had no result: the server may
								 * have crashed by it */
	TimestampTz retry_at;		/* when it was put off until; 0: it was not */
	TimestampTz due;			/* a timer must be due by then; 0: at any time */
	bool		locked;			/* by this session, beyond the transaction */
} EvpgDueItem;

/* The row of an instance. */
typedef struct EvpgInstance
{
	bool		exists;
	bool		completed;
	int			saga_version;
	int64		version;
	int64		position;
	Jsonb	   *state;
	Jsonb	   *undo;			/* an array */
} EvpgInstance;

/* The row of a timer. */
typedef struct EvpgTimer
{
	char	   *name;			/* of a saga's */
	Jsonb	   *payload;		/* NULL: none */
	Jsonb	   *command;		/* of evpg_schedule_command(), else NULL */
	TimestampTz scheduled_at;
	TimestampTz due_at;
	int			depth;
	char	   *correlation_id; /* NULL: none */
	char	   *session_role;	/* of who set it */
	char	   *causation_id;	/* NULL: none */
} EvpgTimer;

/* What a dead letter keeps. */
typedef struct EvpgDeadLetter
{
	const EvpgDueItem *work;
	const char *label;			/* of the send that failed; NULL: none */
	Jsonb	   *command;		/* that send; NULL: none */
	const ErrorData *error;
} EvpgDeadLetter;

extern void EvpgInstanceRead(const EvpgDueItem *work, EvpgInstance *instance);
extern void EvpgInstanceWrite(const EvpgDueItem *work, const EvpgInstance *instance);

extern List *EvpgDueItemList(int max_count, TimestampTz now);
extern bool EvpgSagaEventsLeft(const char *saga, int64 position);
extern TimestampTz EvpgDueItemNextTime(TimestampTz now);
extern bool EvpgDueItemClaim(EvpgDueItem *work);
extern void EvpgWorkUnclaim(EvpgDueItem *work);
extern bool EvpgDueItemDelete(const EvpgDueItem *work);
extern void EvpgDueItemRetryAt(const EvpgDueItem *work, TimestampTz retry_at, int attempts);
extern void EvpgSagaEventsInsert(const char *saga, List *keys, List *positions);
extern void EvpgSagaCount(const char *saga, int64 dispatched, int64 dead_lettered);
extern int64 EvpgDeadLetterWrite(const EvpgDeadLetter *letter);

extern bool EvpgTimerRead(int64 timer_id, EvpgTimer *timer);
extern int64 EvpgTimerWrite(const char *saga, const char *key, const EvpgTimer *timer);
extern void EvpgTimerCancel(const char *saga, const char *key, const char *name);

#endif							/* EVPG_INSTANCE_H */
