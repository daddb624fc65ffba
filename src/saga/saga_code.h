/*-------------------------------------------------------------------------
 *
 * saga_code.h
 *		The code of sagas: what it is given, and the reaction that it returns.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_SAGA_CODE_H
#define EVPG_SAGA_CODE_H

#include "log/event.h"
#include "saga/saga.h"

/* A send that was refused: evpg.rejection. */
typedef struct EvpgRejection
{
	const char *key;
	const char *label;			/* NULL: none */
	const char *aggregate_type;
	const char *aggregate_id;
	const char *command_type;
	Jsonb	   *data;			/* NULL: none, as detail */
	const char *sqlstate;
	const char *code;			/* NULL: none */
	const char *message;
	Jsonb	   *detail;
	int			attempts;
	int64		source_position;	/* 0: a timer */
} EvpgRejection;

/* A timer that is due: evpg.fired_timer. */
typedef struct EvpgFiredTimer
{
	const char *key;
	const char *name;
	Jsonb	   *payload;		/* NULL: none */
	TimestampTz scheduled_at;
	TimestampTz due_at;
	TimestampTz fired_at;
} EvpgFiredTimer;

/* What the code returns. */
typedef struct EvpgReaction
{
	Jsonb	   *state;			/* NULL: SQL NULL */
	Jsonb	   *actions;		/* an array; NULL: none */
	bool		unhandled;		/* of a rejection: the refusal is raised */
} EvpgReaction;

/* A call of code, for its error context. */
typedef struct EvpgSagaCall
{
	ErrorContextCallback callback;
	const char *saga;
	const char *key;			/* NULL: the code finds it */
	const EvpgEvent *event;		/* one of these three */
	const EvpgRejection *rejection;
	const EvpgFiredTimer *timer;
} EvpgSagaCall;

extern void EvpgSagaCallBegin(EvpgSagaCall *call);
extern void EvpgSagaCallEnd(EvpgSagaCall *call);
extern void EvpgSagaCodeOnEvent(EvpgSaga *saga, const char *key, Jsonb *state, const EvpgEvent *event,
								EvpgReaction *reaction);
extern void EvpgSagaCodeOnRejection(EvpgSaga *saga, Jsonb *state, const EvpgRejection *rejection, EvpgReaction *reaction);
extern void EvpgSagaCodeOnTimer(EvpgSaga *saga, Jsonb *state, const EvpgFiredTimer *timer, EvpgReaction *reaction);
extern void EvpgSagaCodeRequireTimerHandler(EvpgSaga *saga);
extern void EvpgSagaCodeLoad(EvpgSaga *saga);
extern const evpg_saga_definition *EvpgSagaCodeModule(EvpgSaga *saga);
extern EvpgFunction *EvpgSagaCodeFunction(EvpgSaga *saga, EvpgFunction **function, const char *signature, EvpgRole role);

#endif							/* EVPG_SAGA_CODE_H */
