/*-------------------------------------------------------------------------
 *
 * event.c
 *		Events and commands as C structs, as rows, and as jsonb for user code.
 *
 * Whatever is made here is in CurrentMemoryContext, and what is read from a
 * row points into it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>

#include "access/htup_details.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/jsonb.h"
#include "base/shape.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "log/event.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

/* ------------------------------------------------------------------ events */

static void
put_event_text(Datum *values, bool *nulls, int column, const char *text)
{
	nulls[column] = (text == NULL);
	values[column] = text == NULL ? (Datum) 0 : CStringGetTextDatum(text);
}

static void
put_event_pointer(Datum *values, bool *nulls, int column, const void *pointer)
{
	nulls[column] = (pointer == NULL);
	values[column] = PointerGetDatum(pointer);
}

/*
 * EvpgEventValues
 *		Fills the columns of a row of evpg.event (EVPG_EVENT_NATTS of them), in
 *		CurrentMemoryContext or pointing into the event; position is NULL until
 *		it is drawn.
 */
void
EvpgEventValues(const EvpgEvent *event, Datum *values, bool *nulls)
{
	memset(nulls, false, EVPG_EVENT_NATTS);
	values[EVPG_EVENT_POSITION] = Int64GetDatum(event->position);
	nulls[EVPG_EVENT_POSITION] = (event->position == 0);
	put_event_text(values, nulls, EVPG_EVENT_AGGREGATE_TYPE, event->aggregate_type);
	put_event_text(values, nulls, EVPG_EVENT_AGGREGATE_ID, event->aggregate_id);
	values[EVPG_EVENT_VERSION] = Int64GetDatum(event->version);
	values[EVPG_EVENT_EVENT_ID] = UUIDPGetDatum(&event->event_id);
	put_event_text(values, nulls, EVPG_EVENT_TYPE, event->type);
	values[EVPG_EVENT_SCHEMA_VERSION] = Int32GetDatum(event->schema_version);
	put_event_pointer(values, nulls, EVPG_EVENT_DATA, event->data);
	put_event_pointer(values, nulls, EVPG_EVENT_METADATA, event->metadata);
	put_event_pointer(values, nulls, EVPG_EVENT_TAGS, event->tags);
	put_event_text(values, nulls, EVPG_EVENT_COMMAND_ID, event->command_id);
	put_event_text(values, nulls, EVPG_EVENT_CORRELATION_ID,
				   event->correlation_id != NULL ? event->correlation_id : EvpgUuidText(&event->event_id));
	put_event_text(values, nulls, EVPG_EVENT_CAUSATION_ID, event->causation_id);
	put_event_text(values, nulls, EVPG_EVENT_ACTOR, event->actor);
	values[EVPG_EVENT_OCCURRED_AT] = TimestampTzGetDatum(event->occurred_at);
	values[EVPG_EVENT_RECORDED_AT] = TimestampTzGetDatum(event->recorded_at);
	put_event_text(values, nulls, EVPG_EVENT_SESSION_ROLE, event->session_role);
}

/* Forms a row of evpg.event, in CurrentMemoryContext. */
Datum
EvpgEventDatum(const EvpgEvent *event)
{
	Datum		values[EVPG_EVENT_NATTS];
	bool		nulls[EVPG_EVENT_NATTS];

	EvpgEventValues(event, values, nulls);
	return HeapTupleGetDatum(EvpgShapeFormTuple(EvpgCatalogGet()->event, EVPG_EVENT_NATTS, values, nulls));
}

static char *
get_row_text(Datum *values, bool *nulls, int column)
{
	return nulls[column] ? NULL : TextDatumGetCString(values[column]);
}

static Jsonb *
get_row_jsonb(Datum *values, bool *nulls, int column)
{
	return nulls[column] ? NULL : DatumGetJsonbP(values[column]);
}

/*
 * Reads the columns of a composite value, into arrays as long as its type is
 * wide: it has more than the C code knows if one was added and dropped again
 * (shape.c).
 */
static void
deform_row(HeapTupleHeader tuple, Datum **values, bool **nulls)
{
	TupleDesc	desc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(tuple), HeapTupleHeaderGetTypMod(tuple));
	HeapTupleData data;

	data.t_len = HeapTupleHeaderGetDatumLength(tuple);
	ItemPointerSetInvalid(&data.t_self);
	data.t_tableOid = InvalidOid;
	data.t_data = tuple;
	*values = palloc(sizeof(Datum) * desc->natts);
	*nulls = palloc(sizeof(bool) * desc->natts);
	heap_deform_tuple(&data, desc, *values, *nulls);
	ReleaseTupleDesc(desc);
}

/*
 * EvpgEventFromNewEvent
 *		Reads a row of evpg.new_event; the event points into it.  Returns false
 *		if every column is NULL, which is no event: what a CASE without ELSE
 *		returns.
 */
bool
EvpgEventFromNewEvent(HeapTupleHeader tuple, EvpgEvent *event)
{
	Datum	   *values;
	bool	   *nulls;
	bool		any = false;

	deform_row(tuple, &values, &nulls);
	for (int i = 0; i < EVPG_NEW_EVENT_NATTS; i++)
		any |= !nulls[i];
	if (!any)
		return false;

	memset(event, 0, sizeof(EvpgEvent));
	event->type = get_row_text(values, nulls, EVPG_NEW_EVENT_TYPE);
	event->data = get_row_jsonb(values, nulls, EVPG_NEW_EVENT_DATA);
	event->metadata = get_row_jsonb(values, nulls, EVPG_NEW_EVENT_METADATA);
	if (!nulls[EVPG_NEW_EVENT_TAGS])
		event->tags = DatumGetArrayTypeP(values[EVPG_NEW_EVENT_TAGS]);
	event->schema_version = nulls[EVPG_NEW_EVENT_SCHEMA_VERSION] ? 1 :
		DatumGetInt32(values[EVPG_NEW_EVENT_SCHEMA_VERSION]);
	event->has_occurred_at = !nulls[EVPG_NEW_EVENT_OCCURRED_AT];
	if (event->has_occurred_at)
		event->occurred_at = DatumGetTimestampTz(values[EVPG_NEW_EVENT_OCCURRED_AT]);
	if (!nulls[EVPG_NEW_EVENT_EVENT_ID])
	{
		event->event_id = *DatumGetUUIDP(values[EVPG_NEW_EVENT_EVENT_ID]);
		event->has_event_id = true;
	}
	if (!nulls[EVPG_NEW_EVENT_CAUSED_BY])
	{
		event->caused_by = DatumGetInt32(values[EVPG_NEW_EVENT_CAUSED_BY]);
		if (event->caused_by == 0)
			event->caused_by = -1;	/* 0 means none here, but is a bad number */
	}
	return true;
}

/*
 * EvpgEventCheck
 *		Raises an error unless the event may be appended.  number is its 1-based
 *		number among the events of the call.
 */
void
EvpgEventCheck(const EvpgEvent *event, int number)
{
	if (event->type == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("event type must not be null"),
				 errdetail("Event %d of the call has data but no type.", number)));
	EvpgCheckNewName(event->type, "event type");
	if (event->data != NULL)
		EvpgJsonbCheckLimits(event->data, "event data");
	if (event->metadata != NULL)
	{
		EvpgJsonbCheckLimits(event->metadata, "event metadata");
		EvpgCheckMetadata(event->metadata);
	}
	if (event->tags != NULL)
		EvpgCheckTags(event->tags);
	if (event->schema_version < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("schema_version must be at least 1"),
				 errdetail("Event %d of the call has %d.", number, event->schema_version)));
	if (event->has_occurred_at && TIMESTAMP_NOT_FINITE(event->occurred_at))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("occurred_at must be finite"),
				 errdetail("Event %d of the call has \"%s\".", number,
						   timestamptz_to_str(event->occurred_at))));
	if (event->caused_by < 0 || event->caused_by >= number)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("caused_by must be the number of an earlier event of the call"),
				 errdetail("Event %d of the call has %d.", number, Max(event->caused_by, 0))));
}

/*
 * Of a UUID of version 7 the first six bytes are the milliseconds, the next two hold
 * its version and the fraction of a millisecond in 12 bits, and the rest is random.
 */
#define UUID_TIME_LEN	8
#define UUID_RANDOM_LEN	(UUID_LEN - UUID_TIME_LEN)

#define NS_IN_MS		INT64CONST(1000000)
#define NS_IN_S			INT64CONST(1000000000)

/* The least difference of times that differ in 12 bits of a millisecond. */
#define NS_STEP			(NS_IN_MS / (1 << 12) + 1)

/*
 * Random bytes for as many ids: one call for each costs as much as a tenth of
 * an append.  No other process has them, since no process that makes an event
 * forks.
 */
#define RANDOM_IDS		64

static void
draw_random_bytes(unsigned char *bytes)
{
	static unsigned char pool[RANDOM_IDS * UUID_RANDOM_LEN];
	static size_t left = 0;

	if (left == 0)
	{
		if (!pg_strong_random(pool, sizeof(pool)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate random values")));
		left = sizeof(pool);
	}
	left -= UUID_RANDOM_LEN;
	memcpy(bytes, pool + left, UUID_RANDOM_LEN);
}

/* Returns the wall clock in ns since 1970, or the least time above the last one that this session has got. */
static int64
read_ascending_clock(void)
{
	static int64 last = 0;
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	last = Max(now.tv_sec * NS_IN_S + now.tv_nsec, last + NS_STEP);
	return last;
}

/*
 * EvpgEventNewId
 *		Makes a UUID of version 7 (RFC 9562, 6.2, method 3), greater than all that this
 *		session has made before: so index entries are added at the right edge, and
 *		those of many events of one call fill pages.  uuidv7() of PostgreSQL 18 does
 *		the same.
 */
void
EvpgEventNewId(pg_uuid_t *id)
{
	int64		ns = read_ascending_clock();
	uint64		ms = (uint64) (ns / NS_IN_MS);
	uint32		fraction = (uint32) ((ns % NS_IN_MS) * (1 << 12) / NS_IN_MS);

	for (int i = 0; i < 6; i++)
		id->data[i] = (unsigned char) (ms >> (8 * (5 - i)));
	id->data[6] = (unsigned char) (0x70 | (fraction >> 8));
	id->data[7] = (unsigned char) fraction;
	draw_random_bytes(&id->data[UUID_TIME_LEN]);
	id->data[8] = (id->data[8] & 0x3F) | 0x80;
}

/*
 * EvpgUuidFillText
 *		Fills a UUID into a text of EVPG_UUID_TEXT_SIZE bytes, in a fraction of the time of
 *		uuid_out: modules get every event with its id as text.  Returns the text.
 */
char *
EvpgUuidFillText(const pg_uuid_t *id, char *text)
{
	static const char digits[] = "0123456789abcdef";
	static const int8 places[UUID_LEN] = {0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34};
	static char bytes[256][2];	/* each as two digits */
	static bool ready = false;

	for (int i = 0; !ready && i < 256; i++)
	{
		bytes[i][0] = digits[i >> 4];
		bytes[i][1] = digits[i & 0x0F];
	}
	ready = true;
	text[8] = text[13] = text[18] = text[23] = '-';
	for (int i = 0; i < UUID_LEN; i++)
		memcpy(text + places[i], bytes[id->data[i]], 2);
	text[EVPG_UUID_TEXT_SIZE - 1] = '\0';
	return text;
}

/* Returns a UUID as text, in CurrentMemoryContext. */
char *
EvpgUuidText(const pg_uuid_t *id)
{
	return EvpgUuidFillText(id, palloc(EVPG_UUID_TEXT_SIZE));
}

/*
 * Pushes an event object with the names of evpg.event.  They are in the order in which
 * jsonb keeps keys, by length first: sorting them takes longer than all else here, and
 * what is sorted already is only looked at.
 */
static JsonbValue *
push_event(JsonbParseState **state, const EvpgEvent *event)
{
	char	   *event_id = EvpgUuidText(&event->event_id);

	EvpgJsonbBegin(state);
	EvpgJsonbAddJsonbOrNull(state, "data", event->data);
	EvpgJsonbAddArrayOrNull(state, "tags", event->tags);
	EvpgJsonbAddTextOrNull(state, "type", event->type);
	EvpgJsonbAddTextOrNull(state, "actor", event->actor);
	EvpgJsonbAddInt64(state, "version", event->version);
	EvpgJsonbAddTextOrNull(state, "event_id", event_id);
	EvpgJsonbAddJsonbOrNull(state, "metadata", event->metadata);
	EvpgJsonbAddInt64(state, "position", event->position);
	EvpgJsonbAddTextOrNull(state, "command_id", event->command_id);
	EvpgJsonbAddTime(state, "occurred_at", event->occurred_at);
	EvpgJsonbAddTime(state, "recorded_at", event->recorded_at);
	EvpgJsonbAddTextOrNull(state, "aggregate_id", event->aggregate_id);
	EvpgJsonbAddTextOrNull(state, "causation_id", event->causation_id);
	EvpgJsonbAddTextOrNull(state, "session_role", event->session_role);
	EvpgJsonbAddTextOrNull(state, "aggregate_type", event->aggregate_type);
	EvpgJsonbAddTextOrNull(state, "correlation_id", event->correlation_id != NULL ? event->correlation_id : event_id);
	EvpgJsonbAddInt64(state, "schema_version", event->schema_version);
	return EvpgJsonbEnd(state);
}

/*
 * EvpgEventsToJsonb
 *		Makes an array of event objects with the names of evpg.event, [] if
 *		there are none, in CurrentMemoryContext.
 */
Jsonb *
EvpgEventsToJsonb(const EvpgEvent *events, int count)
{
	JsonbParseState *state = NULL;

	(void) pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < count; i++)
		(void) push_event(&state, &events[i]);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL));
}

/*
 * EvpgEventBookkeeping
 *		Returns what evpg itself has written into the metadata of an event under
 *		a name, NULL if nothing.  The result points into the event.
 */
JsonbValue *
EvpgEventBookkeeping(const EvpgEvent *event, const char *name)
{
	JsonbValue *own;

	if (event->metadata == NULL || !JB_ROOT_IS_OBJECT(event->metadata))
		return NULL;
	own = getKeyJsonValueFromContainer(&event->metadata->root, "evpg", 4, NULL);
	if (own == NULL || own->type != jbvBinary || !JsonContainerIsObject(own->val.binary.data))
		return NULL;
	return getKeyJsonValueFromContainer(own->val.binary.data, name, strlen(name), NULL);
}

/* Makes an event object with the names of evpg.event, in CurrentMemoryContext. */
Jsonb *
EvpgEventToJsonb(const EvpgEvent *event)
{
	JsonbParseState *state = NULL;

	return JsonbValueToJsonb(push_event(&state, event));
}

/* Reads a row of evpg.event, which must outlive the event. */
void
EvpgEventFromRow(HeapTuple tuple, TupleDesc desc, EvpgEvent *event)
{
	Datum		values[EVPG_EVENT_NATTS];
	bool		nulls[EVPG_EVENT_NATTS];

	heap_deform_tuple(tuple, desc, values, nulls);
	memset(event, 0, sizeof(EvpgEvent));
	event->position = DatumGetInt64(values[EVPG_EVENT_POSITION]);
	event->aggregate_type = get_row_text(values, nulls, EVPG_EVENT_AGGREGATE_TYPE);
	event->aggregate_id = get_row_text(values, nulls, EVPG_EVENT_AGGREGATE_ID);
	event->version = DatumGetInt64(values[EVPG_EVENT_VERSION]);
	event->event_id = *DatumGetUUIDP(values[EVPG_EVENT_EVENT_ID]);
	event->has_event_id = true;
	event->type = get_row_text(values, nulls, EVPG_EVENT_TYPE);
	event->schema_version = DatumGetInt32(values[EVPG_EVENT_SCHEMA_VERSION]);
	event->data = get_row_jsonb(values, nulls, EVPG_EVENT_DATA);
	event->metadata = get_row_jsonb(values, nulls, EVPG_EVENT_METADATA);
	if (!nulls[EVPG_EVENT_TAGS])
		event->tags = DatumGetArrayTypeP(values[EVPG_EVENT_TAGS]);
	event->command_id = get_row_text(values, nulls, EVPG_EVENT_COMMAND_ID);
	event->correlation_id = get_row_text(values, nulls, EVPG_EVENT_CORRELATION_ID);
	event->causation_id = get_row_text(values, nulls, EVPG_EVENT_CAUSATION_ID);
	event->actor = get_row_text(values, nulls, EVPG_EVENT_ACTOR);
	event->occurred_at = DatumGetTimestampTz(values[EVPG_EVENT_OCCURRED_AT]);
	event->recorded_at = DatumGetTimestampTz(values[EVPG_EVENT_RECORDED_AT]);
	event->session_role = get_row_text(values, nulls, EVPG_EVENT_SESSION_ROLE);
}

/* ------------------------------------------------------------------ commands */

/* Forms a row of evpg.command, in CurrentMemoryContext. */
Datum
EvpgCommandDatum(const EvpgCommand *command)
{
	Datum		values[EVPG_COMMAND_NATTS];
	bool		nulls[EVPG_COMMAND_NATTS] = {0};

	put_event_text(values, nulls, EVPG_COMMAND_AGGREGATE_TYPE, command->aggregate_type);
	put_event_text(values, nulls, EVPG_COMMAND_AGGREGATE_ID, command->aggregate_id);
	put_event_text(values, nulls, EVPG_COMMAND_COMMAND_TYPE, command->command_type);
	put_event_pointer(values, nulls, EVPG_COMMAND_DATA, command->data);
	values[EVPG_COMMAND_EXPECTED_VERSION] = Int64GetDatum(command->expected_version);
	nulls[EVPG_COMMAND_EXPECTED_VERSION] = !command->has_expected;
	put_event_text(values, nulls, EVPG_COMMAND_COMMAND_ID, command->command_id);
	put_event_pointer(values, nulls, EVPG_COMMAND_METADATA, command->metadata);
	put_event_text(values, nulls, EVPG_COMMAND_ACTOR, command->actor);
	put_event_text(values, nulls, EVPG_COMMAND_CORRELATION_ID, command->correlation_id);
	put_event_text(values, nulls, EVPG_COMMAND_CAUSATION_ID, command->causation_id);
	values[EVPG_COMMAND_VERSION] = Int64GetDatum(command->version);
	values[EVPG_COMMAND_RECEIVED_AT] = TimestampTzGetDatum(command->received_at);
	nulls[EVPG_COMMAND_RECEIVED_AT] = (command->received_at == 0);
	nulls[EVPG_COMMAND_VERSION] = (command->version < 0);
	put_event_text(values, nulls, EVPG_COMMAND_SESSION_ROLE, command->session_role);
	return HeapTupleGetDatum(EvpgShapeFormTuple(EvpgCatalogGet()->command, EVPG_COMMAND_NATTS, values, nulls));
}

/*
 * EvpgCommandFromTuple
 *		Reads a row of evpg.command; the command points into it.  What evpg
 *		itself fills is left out: version, received_at and session_role.
 *		Returns false if every column is NULL, which is no command.
 */
bool
EvpgCommandFromTuple(HeapTupleHeader tuple, EvpgCommand *command)
{
	Datum	   *values;
	bool	   *nulls;
	bool		any = false;

	deform_row(tuple, &values, &nulls);

	memset(command, 0, sizeof(EvpgCommand));
	command->aggregate_type = get_row_text(values, nulls, EVPG_COMMAND_AGGREGATE_TYPE);
	command->aggregate_id = get_row_text(values, nulls, EVPG_COMMAND_AGGREGATE_ID);
	command->command_type = get_row_text(values, nulls, EVPG_COMMAND_COMMAND_TYPE);
	command->data = get_row_jsonb(values, nulls, EVPG_COMMAND_DATA);
	command->has_expected = !nulls[EVPG_COMMAND_EXPECTED_VERSION];
	if (command->has_expected)
		command->expected_version = DatumGetInt64(values[EVPG_COMMAND_EXPECTED_VERSION]);
	command->command_id = get_row_text(values, nulls, EVPG_COMMAND_COMMAND_ID);
	command->metadata = get_row_jsonb(values, nulls, EVPG_COMMAND_METADATA);
	command->actor = get_row_text(values, nulls, EVPG_COMMAND_ACTOR);
	command->correlation_id = get_row_text(values, nulls, EVPG_COMMAND_CORRELATION_ID);
	command->causation_id = get_row_text(values, nulls, EVPG_COMMAND_CAUSATION_ID);
	for (int i = 0; i < EVPG_COMMAND_NATTS; i++)
		any |= !nulls[i];
	return any;
}

/*
 * EvpgStreamAppendFromTuple
 *		Reads a row of evpg.stream_append: stream and expected_version into *command,
 *		all else of which is cleared, and its events, NULL if there are none; both point
 *		into the row.  Returns false if every column is NULL, which is no append.
 */
bool
EvpgStreamAppendFromTuple(HeapTupleHeader tuple, EvpgCommand *command, ArrayType **events)
{
	Datum	   *values;
	bool	   *nulls;
	bool		any = false;

	deform_row(tuple, &values, &nulls);
	memset(command, 0, sizeof(EvpgCommand));
	command->aggregate_type = get_row_text(values, nulls, EVPG_STREAM_APPEND_AGGREGATE_TYPE);
	command->aggregate_id = get_row_text(values, nulls, EVPG_STREAM_APPEND_AGGREGATE_ID);
	command->has_expected = !nulls[EVPG_STREAM_APPEND_EXPECTED_VERSION];
	if (command->has_expected)
		command->expected_version = DatumGetInt64(values[EVPG_STREAM_APPEND_EXPECTED_VERSION]);
	*events = nulls[EVPG_STREAM_APPEND_EVENTS] ? NULL : DatumGetArrayTypeP(values[EVPG_STREAM_APPEND_EVENTS]);
	for (int i = 0; i < EVPG_STREAM_APPEND_NATTS; i++)
		any |= !nulls[i];
	return any;
}

static void
check_required(const char *text, const char *what)
{
	if (text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what)));
}

/* Raises an error unless the command is well-formed. */
void
EvpgCommandCheck(EvpgCommand *command)
{
	check_required(command->aggregate_type, "aggregate type");
	EvpgCheckName(command->aggregate_type, "aggregate type");
	check_required(command->aggregate_id, "aggregate id");
	EvpgCheckId(command->aggregate_id, "aggregate id");
	check_required(command->command_type, "command type");
	EvpgCheckName(command->command_type, "command type");
	if (command->command_type[0] == '{' || command->command_type[0] == '[')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("command type looks like JSON"),
				 errhint("The arguments are aggregate type, aggregate id, command type and data, in this order.")));
	if (command->data != NULL)
		EvpgJsonbCheckLimits(command->data, "command data");
	if (command->metadata != NULL)
	{
		EvpgJsonbCheckLimits(command->metadata, "command metadata");
		EvpgCheckMetadata(command->metadata);
	}
	if (command->has_expected && command->expected_version < -1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("expected_version " INT64_FORMAT " is out of range", command->expected_version),
				 errhint("Use NULL for any version, 0 for a new stream, n for exactly n events, "
						 "-1 for a stream that exists.")));
	if (command->command_id != NULL)
		EvpgCheckId(command->command_id, "command id");
	if (command->actor != NULL)
		EvpgCheckId(command->actor, "actor");
	if (command->correlation_id != NULL)
		EvpgCheckId(command->correlation_id, "correlation id");
	if (command->causation_id != NULL)
		EvpgCheckId(command->causation_id, "causation id");
}

/*
 * EvpgEventCopy
 *		Copies an event with all that it points to into CurrentMemoryContext: the
 *		event of a scan lives only until the next one, that of a command as long as the
 *		command.
 */
void
EvpgEventCopy(const EvpgEvent *event, EvpgEvent *copy)
{
#define COPY_TEXT(field) copy->field = event->field == NULL ? NULL : pstrdup(event->field)
#define COPY_VALUE(field) copy->field = event->field == NULL ? NULL : \
	memcpy(palloc(VARSIZE_ANY(event->field)), event->field, VARSIZE_ANY(event->field))
	*copy = *event;
	COPY_TEXT(aggregate_type);
	COPY_TEXT(aggregate_id);
	COPY_TEXT(type);
	COPY_VALUE(data);
	COPY_VALUE(metadata);
	COPY_VALUE(tags);
	COPY_TEXT(command_id);
	COPY_TEXT(correlation_id);
	COPY_TEXT(causation_id);
	COPY_TEXT(actor);
	COPY_TEXT(session_role);
}

/* Returns a text that the last event had, or a copy of it in CurrentMemoryContext. */
static const char *
keep_text(const char *text, const char **last)
{
	if (*last == NULL || strcmp(*last, text) != 0)
		*last = pstrdup(text);
	return *last;
}

/* Copies a value to where there is room for it, and returns what is behind it. */
static char *
copy_value(char *to, const void *value, const void **copy)
{
	if (value == NULL)
		return to;
	memcpy(to, value, VARSIZE_ANY(value));
	*copy = to;
	return to + MAXALIGN(VARSIZE_ANY(value));
}

/*
 * EvpgEventKeep
 *		Returns a copy of one of many events of a scan, with all that it points to, in
 *		CurrentMemoryContext and in one piece; but its aggregate_id is id, unless that is
 *		NULL, and types and role of the session are those of the last event where they are
 *		equal: last_texts, which the caller sets to NULL first.
 */
EvpgEvent *
EvpgEventKeep(const EvpgEvent *event, const char *id, const char *last_texts[3])
{
#define SIZE_OF(field) (event->field == NULL ? 0 : MAXALIGN(VARSIZE_ANY(event->field)))
	char	   *space = palloc(MAXALIGN(sizeof(EvpgEvent)) + SIZE_OF(data) + SIZE_OF(metadata) + SIZE_OF(tags));
	EvpgEvent  *copy = (EvpgEvent *) space;

	*copy = *event;
	space += MAXALIGN(sizeof(EvpgEvent));
	space = copy_value(space, event->data, (const void **) &copy->data);
	space = copy_value(space, event->metadata, (const void **) &copy->metadata);
	(void) copy_value(space, event->tags, (const void **) &copy->tags);
	copy->aggregate_type = keep_text(event->aggregate_type, &last_texts[0]);
	copy->type = keep_text(event->type, &last_texts[1]);
	copy->session_role = keep_text(event->session_role, &last_texts[2]);
	copy->aggregate_id = id != NULL ? id : pstrdup(event->aggregate_id);
	COPY_TEXT(command_id);
	COPY_TEXT(correlation_id);
	COPY_TEXT(causation_id);
	COPY_TEXT(actor);
	return copy;
}
