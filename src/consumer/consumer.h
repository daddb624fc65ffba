/*-------------------------------------------------------------------------
 *
 * consumer.h
 *		Consumers: their lock, their row, and the event that fails.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_CONSUMER_H
#define EVPG_CONSUMER_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "utils/elog.h"

/* A consumer, as its row has it. */
typedef struct EvpgConsumer
{
	const char *name;
	bool		is_saga;		/* else an asynchronous projection or */
	bool		is_subscription;
	bool		running;
	bool		stopped;		/* not running: an event fails */
	int64		checkpoint;
	int64		start_position; /* the checkpoint with which it began */
	int64		error_position; /* the event that fails; 0: none */
	int			attempts;		/* at that event */
	TimestampTz retry_at;		/* not before; 0: at once */
	TimestampTz last_error_at;	/* 0: never */
	/* see crash_suspects.c */
	int64		server_start;
	int64		cautious_to;
	int64		proven;
	int			crashes;
} EvpgConsumer;

extern bool EvpgConsumerLock(const char *name, bool wait);
extern void EvpgConsumerCreate(const char *name, const char *kind, int64 checkpoint);
extern void EvpgConsumerDrop(const char *name, bool with_parked);
extern void EvpgConsumerRefuseName(const char *name, const char *kind);
extern bool EvpgConsumerRead(const char *name, EvpgConsumer *consumer);
extern List *EvpgConsumerList(const char *kind, List **suspects);
extern void EvpgConsumerReportCancel(const EvpgConsumer *consumer);
extern void EvpgConsumerRecordCancel(const char *name, const ErrorData *error, TimestampTz *next);
extern void EvpgConsumerPostpone(const EvpgConsumer *consumer, TimestampTz retry_at);
extern void EvpgConsumerRecordError(const EvpgConsumer *consumer, int64 position, int attempts, TimestampTz retry_at,
									bool stop, bool counted_before, const ErrorData *error);

#endif							/* EVPG_CONSUMER_H */
