/*-------------------------------------------------------------------------
 *
 * event_constructors.c
 *		The SQL constructors of events and commands, from arguments and from JSON.
 *
 * Constructors (evpg_event, evpg_command, ...) are what users call instead of
 * writing rows, so that row types can grow.  The JSON forms are strict: an
 * unknown key is an error, because jsonb_populate_record() would drop it in
 * silence.  Results are in CurrentMemoryContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "log/event.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

PG_FUNCTION_INFO_V1(evpg_event);
PG_FUNCTION_INFO_V1(evpg_events);
PG_FUNCTION_INFO_V1(evpg_command);
PG_FUNCTION_INFO_V1(evpg_commands);
PG_FUNCTION_INFO_V1(evpg_stream_append);
PG_FUNCTION_INFO_V1(evpg_stream_appends);

/* ------------------------------------------------------------------ JSON forms */

/*
 * Reads the values of a JSON object by column of a row type; missing and null
 * members are not found.  Raises an error for an unknown member.
 */
static void
read_json_object(JsonbContainer *object, const char *what, TupleDesc desc, int ncolumns, JsonbValue *columns, bool *found)
{
	JsonbIterator *iterator = JsonbIteratorInit(object);
	JsonbValue	value;
	JsonbIteratorToken token;
	int			column = -1;

	memset(found, false, ncolumns);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			for (column = 0; column < ncolumns; column++)
			{
				const char *name = NameStr(TupleDescAttr(desc, column)->attname);

				if ((int) strlen(name) == value.val.string.len &&
					memcmp(name, value.val.string.val, value.val.string.len) == 0)
					break;
			}
			if (column == ncolumns)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("unknown key \"%s\" in %s", pnstrdup(value.val.string.val, value.val.string.len), what)));
		}
		else if (token == WJB_VALUE && value.type != jbvNull)
		{
			columns[column] = value;
			found[column] = true;
		}
	}
}

static void
raise_wrong_type(const char *what, TupleDesc desc, int column, const char *wanted)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("\"%s\" of %s must be %s", NameStr(TupleDescAttr(desc, column)->attname), what, wanted)));
}

static ArrayType *form_events_from_jsonb(Jsonb *jsonb);

/*
 * Makes the Datum of a JSON value for a column of type text, bigint, int,
 * jsonb, text[], timestamptz, uuid or evpg.new_event[].
 */
static Datum
convert_json_value(JsonbValue *value, const char *what, TupleDesc desc, int column)
{
	Oid			type = TupleDescAttr(desc, column)->atttypid;
	char	   *text;

	switch (type)
	{
		case JSONBOID:
			return JsonbPGetDatum(JsonbValueToJsonb(value));
		case INT4OID:
		case INT8OID:
			if (value->type != jbvNumeric)
				raise_wrong_type(what, desc, column, "an integer");
			/* by way of text: a fraction is an error, not rounded */
			text = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value->val.numeric)));
			return DirectFunctionCall1(type == INT4OID ? int4in : int8in, CStringGetDatum(text));
		case TEXTARRAYOID:
			{
				JsonbIterator *iterator;
				JsonbIteratorToken token;
				JsonbValue	element;
				ArrayBuildState *array = initArrayResult(TEXTOID, CurrentMemoryContext, false);

				if (value->type != jbvBinary || !JsonContainerIsArray(value->val.binary.data))
					raise_wrong_type(what, desc, column, "an array of strings");
				iterator = JsonbIteratorInit(value->val.binary.data);
				while ((token = JsonbIteratorNext(&iterator, &element, true)) != WJB_DONE)
				{
					if (token != WJB_ELEM)
						continue;
					if (element.type != jbvString)
						raise_wrong_type(what, desc, column, "an array of strings");
					array = accumArrayResult(array,
											 PointerGetDatum(cstring_to_text_with_len(element.val.string.val,
																					  element.val.string.len)),
											 false, TEXTOID, CurrentMemoryContext);
				}
				return makeArrayResult(array, CurrentMemoryContext);
			}
		default:
			if (type == get_array_type(EvpgCatalogGet()->new_event->tdtypeid))
			{
				if (value->type != jbvBinary)
					raise_wrong_type(what, desc, column, "an object or an array of objects");
				return PointerGetDatum(form_events_from_jsonb(JsonbValueToJsonb(value)));
			}
			if (value->type != jbvString)
				raise_wrong_type(what, desc, column, "a string");
			text = pnstrdup(value->val.string.val, value->val.string.len);
			if (type == TIMESTAMPTZOID)
				return DirectFunctionCall3(timestamptz_in, CStringGetDatum(text),
										   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
			if (type == UUIDOID)
				return DirectFunctionCall1(uuid_in, CStringGetDatum(text));
			return CStringGetTextDatum(text);
	}
}

/* Forms one row of each object of a JSON array (or of one object). */
static int
form_rows_from_jsonb(Jsonb *jsonb, const char *what, TupleDesc desc, int ncolumns, Datum **rows)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	element;
	int			count = 0;
	JsonbValue *columns = palloc(sizeof(JsonbValue) * ncolumns);
	bool	   *found = palloc(sizeof(bool) * ncolumns);
	Datum	   *values = palloc0(sizeof(Datum) * desc->natts);
	bool	   *nulls = palloc(sizeof(bool) * desc->natts);
	int			space = 8;

	*rows = palloc(sizeof(Datum) * space);
	if (JB_ROOT_IS_SCALAR(jsonb))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a JSON object or an array of objects", what)));
	iterator = JsonbIteratorInit(&jsonb->root);
	if (!JB_ROOT_IS_OBJECT(jsonb))
		(void) JsonbIteratorNext(&iterator, &element, false);	/* the array */
	for (;;)
	{
		JsonbContainer *object;

		if (JB_ROOT_IS_OBJECT(jsonb))
		{
			if (count > 0)
				break;
			object = &jsonb->root;
		}
		else
		{
			token = JsonbIteratorNext(&iterator, &element, true);
			if (token == WJB_END_ARRAY || token == WJB_DONE)
				break;
			if (element.type != jbvBinary || !JsonContainerIsObject(element.val.binary.data))
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("%s must be a JSON object or an array of objects", what)));
			object = element.val.binary.data;
		}
		read_json_object(object, what, desc, ncolumns, columns, found);
		memset(nulls, true, sizeof(bool) * desc->natts);
		for (int i = 0; i < ncolumns; i++)
			if (found[i])
			{
				values[i] = convert_json_value(&columns[i], what, desc, i);
				nulls[i] = false;
			}
		if (count == space)
			*rows = repalloc(*rows, sizeof(Datum) * (space *= 2));
		(*rows)[count++] = HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
	}
	return count;
}

/*
 * EvpgEventsFromJsonb
 *		Reads the JSON form of events, an object or an array of objects, into
 *		*events, in CurrentMemoryContext.  Returns their number.  They are not
 *		checked yet.
 */
int
EvpgEventsFromJsonb(Jsonb *jsonb, EvpgEvent **events)
{
	Datum	   *rows;
	int			count = form_rows_from_jsonb(jsonb, "event", EvpgCatalogGet()->new_event, EVPG_NEW_EVENT_NATTS, &rows);

	*events = palloc(sizeof(EvpgEvent) * Max(count, 1));
	for (int i = 0; i < count; i++)
		if (!EvpgEventFromNewEvent(DatumGetHeapTupleHeader(rows[i]), &(*events)[i]))
			memset(&(*events)[i], 0, sizeof(EvpgEvent));	/* {}: the check asks
															 * for a type */
	return count;
}

static ArrayType *
form_array_of_rows(Datum *rows, int count, TupleDesc desc)
{
	return construct_array(rows, count, desc->tdtypeid, -1, false, TYPALIGN_DOUBLE);
}

/* ------------------------------------------------------------------ constructors */

/* Forms a row whose columns are the arguments, in order. */
static HeapTupleHeader
form_row_from_arguments(FunctionCallInfo fcinfo, TupleDesc desc)
{
	Datum	   *values = palloc0(sizeof(Datum) * desc->natts);
	bool	   *nulls = palloc(sizeof(bool) * desc->natts);

	memset(nulls, true, sizeof(bool) * desc->natts);
	for (int i = 0; i < PG_NARGS(); i++)
	{
		values[i] = PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i);
	}
	return DatumGetHeapTupleHeader(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/* SQL: evpg_event(type, data, ...).  Returns an event to be appended. */
Datum
evpg_event(PG_FUNCTION_ARGS)
{
	HeapTupleHeader row;

	EvpgArgRefuseNull(fcinfo, 0, "event type");
	row = form_row_from_arguments(fcinfo, EvpgCatalogGet()->new_event);
	PG_RETURN_HEAPTUPLEHEADER(row);
}

/* Returns an array of the events that a JSON object or array describes. */
static ArrayType *
form_events_from_jsonb(Jsonb *jsonb)
{
	TupleDesc	desc = EvpgCatalogGet()->new_event;
	Datum	   *rows;
	int			count = form_rows_from_jsonb(jsonb, "event", desc, EVPG_NEW_EVENT_NATTS, &rows);

	/* A row of NULLs would be taken for no event later. */
	for (int i = 0; i < count; i++)
	{
		EvpgEvent	event;

		if (!EvpgEventFromNewEvent(DatumGetHeapTupleHeader(rows[i]), &event) || event.type == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("event type must not be null"),
					 errdetail("Event %d of the call has none.", i + 1)));
	}
	return form_array_of_rows(rows, count, desc);
}

/* SQL: evpg_events(jsonb).  Returns an array of the events that a JSON object or array describes. */
Datum
evpg_events(PG_FUNCTION_ARGS)
{
	PG_RETURN_ARRAYTYPE_P(form_events_from_jsonb(PG_GETARG_JSONB_P(0)));
}

/* SQL: evpg_stream_append(aggregate_type, aggregate_id, events, expected_version).  Returns what to append to a stream. */
Datum
evpg_stream_append(PG_FUNCTION_ARGS)
{
	HeapTupleHeader row;

	(void) EvpgArgName(fcinfo, 0, "aggregate type");
	(void) EvpgArgId(fcinfo, 1, "aggregate id");
	row = form_row_from_arguments(fcinfo, EvpgCatalogGet()->stream_append);
	PG_RETURN_HEAPTUPLEHEADER(row);
}

/* SQL: evpg_stream_appends(jsonb).  Returns an array of the appends that a JSON object or array describes. */
Datum
evpg_stream_appends(PG_FUNCTION_ARGS)
{
	TupleDesc	desc = EvpgCatalogGet()->stream_append;
	Datum	   *rows;
	int			count = form_rows_from_jsonb(PG_GETARG_JSONB_P(0), "append", desc, EVPG_STREAM_APPEND_NATTS, &rows);

	/* A row of NULLs would be taken for no append later. */
	for (int i = 0; i < count; i++)
	{
		EvpgCommand append;
		ArrayType  *events;

		if (!EvpgStreamAppendFromTuple(DatumGetHeapTupleHeader(rows[i]), &append, &events) ||
			append.aggregate_type == NULL || append.aggregate_id == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("aggregate type and aggregate id must not be null"),
					 errdetail("Append %d of the call has not both.", i + 1)));
	}
	PG_RETURN_ARRAYTYPE_P(form_array_of_rows(rows, count, desc));
}

/* SQL: evpg_command(aggregate_type, aggregate_id, command_type, ...).  Returns a command, checked. */
Datum
evpg_command(PG_FUNCTION_ARGS)
{
	HeapTupleHeader row = form_row_from_arguments(fcinfo, EvpgCatalogGet()->command);
	EvpgCommand command;

	(void) EvpgCommandFromTuple(row, &command);
	EvpgCommandCheck(&command);
	PG_RETURN_HEAPTUPLEHEADER(row);
}

/*
 * evpg_commands
 *		SQL: evpg_commands(jsonb).  Returns an array of the commands, checked,
 *		that a JSON object or array describes.
 */
Datum
evpg_commands(PG_FUNCTION_ARGS)
{
	TupleDesc	desc = EvpgCatalogGet()->command;
	Datum	   *rows;
	int			count = form_rows_from_jsonb(PG_GETARG_JSONB_P(0), "command", desc, EVPG_COMMAND_VERSION, &rows);

	for (int i = 0; i < count; i++)
	{
		EvpgCommand command;

		(void) EvpgCommandFromTuple(DatumGetHeapTupleHeader(rows[i]), &command);
		EvpgCommandCheck(&command);
	}
	PG_RETURN_ARRAYTYPE_P(form_array_of_rows(rows, count, desc));
}
