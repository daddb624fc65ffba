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

#include "access/htup_details.h"
#include "aggregate/idempotency.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/row.h"
#include "base/sha256.h"
#include "catalog/pg_type.h"
#include "log/event_log.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
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
	scan = EvpgLogScanBegin(stream, first, false, EvpgUpcastersGet());
	while (outcome->count < last - first + 1 && EvpgLogScanNext(scan, &event))
		EvpgEventCopy(&event, &outcome->events[outcome->count++]);
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
}

/* Columns of evpg.command_record, see sql/evpg--1.0.sql. */
enum
{
	RECORD_STREAM_ID, RECORD_FIRST_VERSION, RECORD_LAST_VERSION, RECORD_RECORDED_AT, RECORD_PAYLOAD_HASH,
	RECORD_COMMAND_ID, RECORD_NATTS
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
	const EvpgCatalog *catalog = EvpgCatalogGet();
	HeapTuple	record = EvpgRowFind(&catalog->command_record, &catalog->command_record_key_index, F_INT8EQ,
									 Int64GetDatum(stream->stream_id), command->command_id, GetTransactionSnapshot(), false);
	Datum		values[RECORD_NATTS];
	bool		nulls[RECORD_NATTS];
	int64		last;
	bytea	   *known;
	bool		same;

	if (record == NULL)
		return false;
	heap_deform_tuple(record, catalog->command_record_row, values, nulls);
	last = DatumGetInt64(values[RECORD_LAST_VERSION]);
	known = DatumGetByteaPP(values[RECORD_PAYLOAD_HASH]);
	same = VARSIZE_ANY_EXHDR(known) == EVPG_SHA256_LENGTH &&
		memcmp(VARDATA_ANY(known), VARDATA_ANY(hash), EVPG_SHA256_LENGTH) == 0;
	if (!same)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_COMMAND_ID_REUSED),
				 errmsg("command id \"%s\" was used for another command", command->command_id),
				 errdetail("{\"aggregate_type\": %s, \"aggregate_id\": %s, \"version\": " INT64_FORMAT "}",
						   EvpgQuoteJson(command->aggregate_type), EvpgQuoteJson(command->aggregate_id), last),
				 errhint("A command id names one command with one payload; use a new one.")));
	read_recorded_events(stream, DatumGetInt64(values[RECORD_FIRST_VERSION]), last, outcome);
	/* The answer never changes: what came after is left out. */
	outcome->stream.version = last;
	return true;
}

/*
 * EvpgIdempotencyRecord
 *		Records that a command has succeeded: its events are those from version
 *		first to the stream's.  The caller has locked the stream.
 */
void
EvpgIdempotencyRecord(const EvpgCommand *command, const EvpgStream *stream, int64 first, const bytea *hash)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	Datum		values[RECORD_NATTS] = {
		[RECORD_STREAM_ID] = Int64GetDatum(stream->stream_id),
		[RECORD_FIRST_VERSION] = Int64GetDatum(first),
		[RECORD_LAST_VERSION] = Int64GetDatum(stream->version),
		[RECORD_RECORDED_AT] = TimestampTzGetDatum(command->received_at),
		[RECORD_PAYLOAD_HASH] = PointerGetDatum(hash),
		[RECORD_COMMAND_ID] = CStringGetTextDatum(command->command_id)
	};
	bool		nulls[RECORD_NATTS] = {false};
	EvpgRowWriter *writer = EvpgRowWriterBegin(&catalog->command_record, &catalog->command_record_row);

	(void) EvpgRowInsert(writer, values, nulls);
	EvpgRowWriterEnd(writer);
}
