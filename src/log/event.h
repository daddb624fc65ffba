/*-------------------------------------------------------------------------
 *
 * event.h
 *		Events, commands and their SQL row types.
 *
 * The column numbers and the CREATE statements in sql/evpg--1.0.sql name each
 * other; columns are only ever appended.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_EVENT_H
#define EVPG_EVENT_H

#include "access/htup.h"
#include "access/tupdesc.h"
#include "datatype/timestamp.h"
#include "fmgr.h"
#include "utils/array.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

/* An event, decided or read.  Strings and values belong to its maker. */
typedef struct EvpgEvent
{
	int64		position;		/* 0 until drawn */
	int64		version;		/* 0 until appended to a stream */
	int64		stream_id;		/* of an event that a scan has read */
	const char *aggregate_type;
	const char *aggregate_id;
	const char *type;
	int			schema_version;
	Jsonb	   *data;			/* NULL: none */
	Jsonb	   *metadata;		/* NULL: none */
	ArrayType  *tags;			/* NULL: none */
	pg_uuid_t	event_id;
	bool		has_event_id;
	int			caused_by;		/* 1-based, an earlier event of the call; 0:
								 * none */
	const char *command_id;		/* NULL: none */
	const char *correlation_id; /* NULL: its own event_id */
	const char *causation_id;	/* NULL: none */
	const char *actor;			/* NULL: none */
	TimestampTz occurred_at;	/* if given; else when it is recorded */
	bool		has_occurred_at;
	TimestampTz recorded_at;
	const char *session_role;	/* of the session that asked */
	const struct EvpgUpcastChain *chain;	/* of an event that was read: has
											 * to be upcast; NULL: need not */
	const struct EvpgEvent *stored; /* of a new one: type, schema_version and
									 * data in the log; NULL: its own */
} EvpgEvent;

/* A command, checked. */
typedef struct EvpgCommand
{
	const char *aggregate_type;
	const char *aggregate_id;
	const char *command_type;
	Jsonb	   *data;			/* NULL: SQL NULL */
	bool		has_expected;
	int64		expected_version;
	const char *command_id;		/* NULL: none, as the rest */
	Jsonb	   *metadata;
	const char *actor;
	const char *correlation_id;
	const char *causation_id;
	int64		version;		/* of the stream; -1: not known yet */
	TimestampTz received_at;
	const char *session_role;	/* of the session that asked; NULL: not known
								 * yet */
	const struct EvpgCondition *condition;	/* of an append; NULL: none */
} EvpgCommand;

/* evpg.event */
#define EVPG_EVENT_POSITION			0
#define EVPG_EVENT_AGGREGATE_TYPE	1
#define EVPG_EVENT_AGGREGATE_ID		2
#define EVPG_EVENT_VERSION			3
#define EVPG_EVENT_EVENT_ID			4
#define EVPG_EVENT_TYPE				5
#define EVPG_EVENT_SCHEMA_VERSION	6
#define EVPG_EVENT_DATA				7
#define EVPG_EVENT_METADATA			8
#define EVPG_EVENT_TAGS				9
#define EVPG_EVENT_COMMAND_ID		10
#define EVPG_EVENT_CORRELATION_ID	11
#define EVPG_EVENT_CAUSATION_ID		12
#define EVPG_EVENT_ACTOR			13
#define EVPG_EVENT_OCCURRED_AT		14
#define EVPG_EVENT_RECORDED_AT		15
#define EVPG_EVENT_SESSION_ROLE		16
#define EVPG_EVENT_NATTS			17

/* evpg.new_event */
#define EVPG_NEW_EVENT_TYPE				0
#define EVPG_NEW_EVENT_DATA				1
#define EVPG_NEW_EVENT_METADATA			2
#define EVPG_NEW_EVENT_TAGS				3
#define EVPG_NEW_EVENT_SCHEMA_VERSION	4
#define EVPG_NEW_EVENT_OCCURRED_AT		5
#define EVPG_NEW_EVENT_EVENT_ID			6
#define EVPG_NEW_EVENT_CAUSED_BY		7
#define EVPG_NEW_EVENT_NATTS			8

/* evpg.stream_append */
#define EVPG_STREAM_APPEND_AGGREGATE_TYPE	0
#define EVPG_STREAM_APPEND_AGGREGATE_ID		1
#define EVPG_STREAM_APPEND_EVENTS			2
#define EVPG_STREAM_APPEND_EXPECTED_VERSION	3
#define EVPG_STREAM_APPEND_NATTS			4

/* evpg.command */
#define EVPG_COMMAND_AGGREGATE_TYPE		0
#define EVPG_COMMAND_AGGREGATE_ID		1
#define EVPG_COMMAND_COMMAND_TYPE		2
#define EVPG_COMMAND_DATA				3
#define EVPG_COMMAND_EXPECTED_VERSION	4
#define EVPG_COMMAND_COMMAND_ID			5
#define EVPG_COMMAND_METADATA			6
#define EVPG_COMMAND_ACTOR				7
#define EVPG_COMMAND_CORRELATION_ID		8
#define EVPG_COMMAND_CAUSATION_ID		9
#define EVPG_COMMAND_VERSION			10
#define EVPG_COMMAND_RECEIVED_AT		11
#define EVPG_COMMAND_SESSION_ROLE		12
#define EVPG_COMMAND_NATTS				13

/* Of a UUID as text, with its end. */
#define EVPG_UUID_TEXT_SIZE 37

extern void EvpgEventValues(const EvpgEvent *event, Datum *values, bool *nulls);
extern Datum EvpgEventDatum(const EvpgEvent *event);
extern bool EvpgEventFromNewEvent(HeapTupleHeader tuple, EvpgEvent *event);
extern int	EvpgEventsFromJsonb(Jsonb *jsonb, EvpgEvent **events);
extern Jsonb *EvpgEventsToJsonb(const EvpgEvent *events, int count);
extern Jsonb *EvpgEventToJsonb(const EvpgEvent *event);
extern JsonbValue *EvpgEventBookkeeping(const EvpgEvent *event, const char *name);
extern void EvpgEventFromRow(HeapTuple tuple, TupleDesc desc, EvpgEvent *event);
extern void EvpgEventCheck(const EvpgEvent *event, int number);
extern void EvpgEventNewId(pg_uuid_t *id);
extern void EvpgEventCopy(const EvpgEvent *event, EvpgEvent *copy);
extern EvpgEvent *EvpgEventKeep(const EvpgEvent *event, const char *id, const char *last_texts[3]);
extern char *EvpgUuidFillText(const pg_uuid_t *id, char *text);
extern char *EvpgUuidText(const pg_uuid_t *id);
extern Datum EvpgCommandDatum(const EvpgCommand *command);
extern bool EvpgCommandFromTuple(HeapTupleHeader tuple, EvpgCommand *command);
extern bool EvpgStreamAppendFromTuple(HeapTupleHeader tuple, EvpgCommand *command, ArrayType **events);
extern void EvpgCommandCheck(EvpgCommand *command);

#endif							/* EVPG_EVENT_H */
