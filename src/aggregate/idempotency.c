/*-------------------------------------------------------------------------
 *
 * idempotency.c
 *		Command ids (rule 5): which commands of a stream have succeeded before,
 *		and whether a resend asks for the same.
 *
 * A record is written by the transaction of its command, so it exists if and
 * only if the events do.  Callers have locked the stream, so two commands with
 * one id are serial.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/idempotency.h"
#include "base/errors.h"
#include "base/sha256.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "log/event_log.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/*
 * Adds a value by its kind, length and content, so that no two values are added
 * alike.  A number counts by its value: 1, 1.0 and 1e0 are equal to jsonb as
 * well.
 */
static void
hash_scalar(EvpgSha256 *hash, const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			EvpgSha256AddText(hash, "null");
			break;
		case jbvBool:
			EvpgSha256AddText(hash, value->val.boolean ? "true" : "false");
			break;
		case jbvNumeric:
			EvpgSha256AddText(hash, numeric_normalize(value->val.numeric));
			break;
		case jbvString:
			EvpgSha256AddText(hash, psprintf("\"%d", value->val.string.len));
			EvpgSha256AddText(hash, pnstrdup(value->val.string.val, value->val.string.len));
			break;
		default:
			elog(ERROR, "unexpected kind of JSON value: %d", (int) value->type);
	}
}

/* Adds a jsonb; NULL is none. */
static void
hash_jsonb(EvpgSha256 *hash, const Jsonb *jsonb)
{
	JsonbIterator *iterator;
	JsonbValue	value;
	JsonbIteratorToken token;

	if (jsonb == NULL)
	{
		EvpgSha256AddText(hash, "none");
		return;
	}
	iterator = JsonbIteratorInit((JsonbContainer *) &jsonb->root);
	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		switch (token)
		{
			case WJB_KEY:
			case WJB_VALUE:
			case WJB_ELEM:
				hash_scalar(hash, &value);
				break;
			case WJB_BEGIN_ARRAY:
				EvpgSha256AddText(hash, value.val.array.rawScalar ? "" : "[");
				break;
			case WJB_END_ARRAY:
				EvpgSha256AddText(hash, "]");
				break;
			case WJB_BEGIN_OBJECT:
				EvpgSha256AddText(hash, "{");
				break;
			default:
				EvpgSha256AddText(hash, "}");
				break;
		}
		CHECK_FOR_INTERRUPTS();
	}
}

/* Adds tags; {} and NULL differ, as they do in the log. */
static void
hash_tags(EvpgSha256 *hash, ArrayType *tags)
{
	Datum	   *values;
	int			count;

	if (tags == NULL)
	{
		EvpgSha256AddText(hash, "none");
		return;
	}
	deconstruct_array(tags, TEXTOID, -1, false, TYPALIGN_INT, &values, NULL, &count);
	EvpgSha256AddText(hash, psprintf("%d", count));
	for (int i = 0; i < count; i++)
		EvpgSha256AddText(hash, TextDatumGetCString(values[i]));
}

/* Returns NULL for empty metadata, which is stored as none. */
static const Jsonb *
drop_empty_metadata(const Jsonb *metadata)
{
	return metadata == NULL || JB_ROOT_COUNT(metadata) == 0 ? NULL : metadata;
}

/*
 * EvpgIdempotencyHash
 *		Returns the SHA-256 of what a command asks for, by which another command
 *		under its id is noticed.  Payloads that are equal have the same hash,
 *		however they are written.  The result is in CurrentMemoryContext.
 */
bytea *
EvpgIdempotencyHash(const EvpgCommand *command, const EvpgEvent *events, int count)
{
	EvpgSha256 *hash = EvpgSha256Begin();
	bytea	   *result = palloc(VARHDRSZ + EVPG_SHA256_LENGTH);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "EvpgHash", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	EvpgSha256AddText(hash, command->command_type);
	hash_jsonb(hash, command->data);
	for (int i = 0; i < count; i++)
	{
		EvpgSha256AddText(hash, events[i].type);
		hash_jsonb(hash, events[i].data);
		hash_jsonb(hash, drop_empty_metadata(events[i].metadata));
		EvpgSha256AddText(hash, psprintf("%d", events[i].schema_version));
		EvpgSha256AddText(hash, events[i].has_event_id ? EvpgUuidText(&events[i].event_id) : "");
		EvpgSha256AddText(hash, events[i].has_occurred_at ? psprintf(INT64_FORMAT, events[i].occurred_at) : "");
		hash_tags(hash, events[i].tags);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	SET_VARSIZE(result, VARHDRSZ + EVPG_SHA256_LENGTH);
	EvpgSha256End(hash, VARDATA(result));
	return result;
}

/*
 * EvpgOperationKey
 *		Makes a command id of parts, the same that the SQL function
 *		evpg_operation_key() makes of them: the SHA-256 of a JSON array, in
 *		CurrentMemoryContext.
 */
char *
EvpgOperationKey(const char *const *parts, int count)
{
	StringInfoData array;
	EvpgSha256 *hash = EvpgSha256Begin();

	initStringInfo(&array);
	for (int i = 0; i < count; i++)
	{
		appendStringInfoChar(&array, i == 0 ? '[' : ',');
		escape_json(&array, parts[i]);
	}
	appendStringInfoChar(&array, ']');
	EvpgSha256Add(hash, array.data, array.len);
	return EvpgSha256EndHex(hash);
}

/* Reads the events of a command that succeeded before. */
static void
read_recorded_events(const EvpgStream *stream, int64 first, int64 last, EvpgOutcome *outcome)
{
	EvpgLogScan *scan;
	EvpgEvent	event;

	outcome->events = palloc(sizeof(EvpgEvent) * (last - first + 1));
	PushActiveSnapshot(GetTransactionSnapshot());
	scan = EvpgLogScanBegin(stream, first, false);
	while (outcome->count < last - first + 1 && EvpgLogScanNext(scan, &event))
		EvpgEventCopy(&event, &outcome->events[outcome->count++]);
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
}

static EvpgStatement select_command_record = {
	.text = "SELECT first_version, last_version, payload_hash"
	" FROM evpg.command_record"
	" WHERE stream_id = $1 AND command_id = $2",
	.types = {INT8OID, TEXTOID}
};

/* Its columns. */
enum
{
	RECORD_FIRST_VERSION = 1,
	RECORD_LAST_VERSION,
	RECORD_PAYLOAD_HASH
};

/*
 * EvpgIdempotencyFind
 *		Returns whether a command under this id has succeeded before on this
 *		stream; then *outcome has its events, copied into CurrentMemoryContext.
 *		Raises VE005 if it was another command.  The caller has locked the
 *		stream.
 */
bool
EvpgIdempotencyFind(const EvpgCommand *command, const EvpgStream *stream, const bytea *hash, EvpgOutcome *outcome)
{
	Datum		values[2] = {
		Int64GetDatum(stream->stream_id),
		CStringGetTextDatum(command->command_id)
	};
	bool		found = EvpgStatementRun(&select_command_record, values, NULL) > 0;
	int64		first = 0;
	int64		last = 0;
	bool		same = false;

	if (found)
	{
		Datum		value;
		bytea	   *known;

		first = EvpgResultInt64(0, RECORD_FIRST_VERSION);
		last = EvpgResultInt64(0, RECORD_LAST_VERSION);
		(void) EvpgResultDatum(0, RECORD_PAYLOAD_HASH, &value);
		known = DatumGetByteaPP(value);
		same = VARSIZE_ANY_EXHDR(known) == EVPG_SHA256_LENGTH &&
			memcmp(VARDATA_ANY(known), VARDATA_ANY(hash), EVPG_SHA256_LENGTH) == 0;
	}
	EvpgStatementDone();
	if (!found)
		return false;
	if (!same)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_COMMAND_ID_REUSED),
				 errmsg("command id \"%s\" was used for another command", command->command_id),
				 errdetail("{\"aggregate_type\": %s, \"aggregate_id\": %s, \"version\": " INT64_FORMAT "}",
						   EvpgQuoteJson(command->aggregate_type), EvpgQuoteJson(command->aggregate_id), last),
				 errhint("A command id names one command with one payload; use a new one.")));
	read_recorded_events(stream, first, last, outcome);
	/* The answer never changes: what came after is left out. */
	outcome->stream.version = last;
	return true;
}

static EvpgStatement insert_command_record = {
	.text = "INSERT INTO evpg.command_record (stream_id, command_id, first_version, last_version, payload_hash,"
	" recorded_at)"
	" VALUES ($1, $2, $3, $4, $5, $6)",
	.types = {INT8OID, TEXTOID, INT8OID, INT8OID, BYTEAOID, TIMESTAMPTZOID}
};

/*
 * EvpgIdempotencyRecord
 *		Records that a command has succeeded: its events are those from version
 *		first to the stream's.  The caller has locked the stream.
 */
void
EvpgIdempotencyRecord(const EvpgCommand *command, const EvpgStream *stream, int64 first, const bytea *hash)
{
	Datum		values[6] = {
		Int64GetDatum(stream->stream_id),
		CStringGetTextDatum(command->command_id),
		Int64GetDatum(first),
		Int64GetDatum(stream->version),
		PointerGetDatum(hash),
		TimestampTzGetDatum(command->received_at)
	};

	(void) EvpgStatementRun(&insert_command_record, values, NULL);
	EvpgStatementDone();
}
