/*-------------------------------------------------------------------------
 *
 * read_log.c
 *		The SQL functions that read streams and events.
 *
 * STABLE ones see what the calling statement sees.  evpg_read_all with
 * stable_only and evpg_stable_position are VOLATILE: they must read with a
 * snapshot that is newer than the stable position.  And the one that writes the stable
 * position for standbys.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/names.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "log/condition.h"
#include "log/durable.h"
#include "log/event_log.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(evpg_streams);
PG_FUNCTION_INFO_V1(evpg_stream_version);
PG_FUNCTION_INFO_V1(evpg_read_stream);
PG_FUNCTION_INFO_V1(evpg_read_all);
PG_FUNCTION_INFO_V1(evpg_stable_position);
PG_FUNCTION_INFO_V1(evpg_log_stable_position);

static EvpgStatement select_streams = {
	.text = "SELECT aggregate_type, aggregate_id,"
	" coalesce((SELECT e.version FROM evpg.event_log e WHERE e.stream_id = s.stream_id ORDER BY e.version DESC LIMIT 1), 0),"
	" created_at"
	" FROM evpg.stream s"
	" WHERE ($1 IS NULL OR aggregate_type = $1) AND ($2 IS NULL OR (aggregate_type, aggregate_id) > ($2, $3))"
	" ORDER BY aggregate_type, aggregate_id LIMIT $4",
	.types = {TEXTOID, TEXTOID, TEXTOID, INT8OID}
};

/*
 * evpg_streams
 *		SQL: evpg_streams(aggregate_type, after_id, max_count, after_type).
 *		Returns a page of streams, in order of type and id.
 */
Datum
evpg_streams(PG_FUNCTION_ARGS)
{
	enum
	{
		ARG_AGGREGATE_TYPE, ARG_AFTER_ID, ARG_MAX_COUNT, ARG_AFTER_TYPE
	};
	Datum		values[4];
	char		nulls[4] = {' ', ' ', ' ', ' '};
	int64		max_count = EvpgArgMaxCount(fcinfo, ARG_MAX_COUNT);
	EvpgScope	scope;

	/* The page starts after (after_type, after_id); the type may be implied. */
	if (!PG_ARGISNULL(ARG_AFTER_ID) && PG_ARGISNULL(ARG_AGGREGATE_TYPE) && PG_ARGISNULL(ARG_AFTER_TYPE))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("after_id needs a type"),
				 errhint("Give aggregate_type, or after_type of the last row.")));
	InitMaterializedSRF(fcinfo, 0);
	values[0] = PG_GETARG_DATUM(ARG_AGGREGATE_TYPE);
	nulls[0] = PG_ARGISNULL(ARG_AGGREGATE_TYPE) ? 'n' : ' ';
	values[1] = PG_ARGISNULL(ARG_AFTER_TYPE) ? PG_GETARG_DATUM(ARG_AGGREGATE_TYPE) : PG_GETARG_DATUM(ARG_AFTER_TYPE);
	values[2] = PG_GETARG_DATUM(ARG_AFTER_ID);
	nulls[1] = nulls[2] = PG_ARGISNULL(ARG_AFTER_ID) ? 'n' : ' ';
	values[3] = Int64GetDatum(max_count);
	nulls[3] = max_count < 0 ? 'n' : ' ';
	EvpgEnter(&scope, NULL);
	(void) EvpgStatementReturnAll(fcinfo, &select_streams, values, nulls, true);
	EvpgLeave(&scope);
	PG_RETURN_NULL();
}

/*
 * evpg_stream_version
 *		SQL: evpg_stream_version(aggregate_type, aggregate_id).  Returns the
 *		version of a stream; NULL if it does not exist.
 */
Datum
evpg_stream_version(PG_FUNCTION_ARGS)
{
	EvpgStream	stream = {
		.aggregate_type = text_to_cstring(PG_GETARG_TEXT_PP(0)),
		.aggregate_id = text_to_cstring(PG_GETARG_TEXT_PP(1))
	};
	EvpgScope	scope;
	bool		found;

	EvpgEnter(&scope, NULL);
	found = EvpgStreamRead(&stream, true);
	EvpgLeave(&scope);
	if (!found)
		PG_RETURN_NULL();
	PG_RETURN_INT64(stream.version);
}

/* Adds an event to the rows of a function that returns evpg.event; row is a memory context for it. */
static void
return_event(FunctionCallInfo fcinfo, const EvpgEvent *event, MemoryContext row)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext old = MemoryContextSwitchTo(row);
	Datum		values[EVPG_EVENT_NATTS];
	bool		nulls[EVPG_EVENT_NATTS];

	EvpgEventValues(event, values, nulls);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	MemoryContextSwitchTo(old);
	MemoryContextReset(row);
}

/*
 * evpg_read_stream
 *		SQL: evpg_read_stream(aggregate_type, aggregate_id, from_version, ...).
 *		Returns the events of a stream in order of version.  Raises VE004 if it
 *		does not exist and missing_ok is false, and XX001 if an event is
 *		missing.
 */
Datum
evpg_read_stream(PG_FUNCTION_ARGS)
{
	enum
	{
		ARG_AGGREGATE_TYPE, ARG_AGGREGATE_ID, ARG_FROM_VERSION, ARG_MAX_COUNT, ARG_BACKWARDS,
		ARG_MISSING_OK
	};
	EvpgStream	stream = {
		.aggregate_type = EvpgArgName(fcinfo, ARG_AGGREGATE_TYPE, "aggregate type"),
		.aggregate_id = EvpgArgId(fcinfo, ARG_AGGREGATE_ID, "aggregate id")
	};
	int64		from_version = PG_ARGISNULL(ARG_FROM_VERSION) ? 1 : PG_GETARG_INT64(ARG_FROM_VERSION);
	int64		max_count = EvpgArgMaxCount(fcinfo, ARG_MAX_COUNT);
	bool		backwards = EvpgArgBool(fcinfo, ARG_BACKWARDS, "backwards");
	bool		missing_ok = EvpgArgBool(fcinfo, ARG_MISSING_OK, "missing_ok");
	EvpgScope	scope;

	InitMaterializedSRF(fcinfo, 0);
	EvpgEnter(&scope, NULL);
	if (EvpgStreamRead(&stream, true))
	{
		EvpgLogScan *scan = EvpgLogScanBegin(&stream, from_version, backwards, EvpgUpcastersGet());
		MemoryContext row = AllocSetContextCreate(CurrentMemoryContext, "EvpgRow", ALLOCSET_DEFAULT_SIZES);
		EvpgEvent	event;
		int64		first = Max(from_version, 1);
		int64		wanted = backwards ? stream.version : first;

		/*
		 * Versions have no gaps; where one is, the log is damaged, and the
		 * rest is not all.
		 */
		for (int64 n = 0; n != max_count && wanted >= first && wanted <= stream.version; n++)
		{
			if (!EvpgLogScanNext(scan, &event) || event.version != wanted)
				EvpgStreamRaiseDamaged(&stream, wanted);
			wanted += backwards ? -1 : 1;
			return_event(fcinfo, &event, row);
		}
		MemoryContextDelete(row);
		EvpgLogScanEnd(scan);
	}
	else if (!missing_ok)
		EvpgStreamRaiseMissing(&stream);
	EvpgLeave(&scope);
	PG_RETURN_NULL();
}

/* Returns the names of an array argument; NIL, which is all, for NULL. */
static List *
get_filter_names(FunctionCallInfo fcinfo, int arg, const char *what)
{
	ArrayType  *array = EvpgArgTextArray(fcinfo, arg, what);

	return array == NULL ? NIL : EvpgNamesFromArray(array);
}

/*
 * Returns the events of positions above after and up to upto, in order, under a new
 * snapshot; returns their number.
 */
static int64
return_page(FunctionCallInfo fcinfo, const EvpgLogFilter *wanted, int64 after, int64 upto, int64 max_count)
{
	EvpgLogFilter filter = *wanted;
	EvpgLogScan *scan;
	MemoryContext row = AllocSetContextCreate(CurrentMemoryContext, "EvpgRow", ALLOCSET_DEFAULT_SIZES);
	EvpgEvent	event;
	int64		count = 0;

	filter.after = after;
	filter.upto = upto;
	PushActiveSnapshot(GetTransactionSnapshot());
	scan = EvpgLogScanAll(&filter);
	while (count != max_count)
	{
		if (EvpgLogScanNext(scan, &event))
		{
			return_event(fcinfo, &event, row);
			count++;
		}
		/* After many events that are not wanted a scan pauses. */
		else if (EvpgLogScanReached(scan) >= upto)
			break;
	}
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
	MemoryContextDelete(row);
	return count;
}

/*
 * evpg_read_all
 *		SQL: evpg_read_all(after_position, max_count, ...).  Returns the events
 *		of all streams in order of position; with stable_only, only those that
 *		no later commit can precede and no crash can take back.
 */
Datum
evpg_read_all(PG_FUNCTION_ARGS)
{
	enum
	{
		ARG_AFTER_POSITION, ARG_MAX_COUNT, ARG_AGGREGATE_TYPES, ARG_EVENT_TYPES, ARG_TAGS,
		ARG_STABLE_ONLY, ARG_ID_PREFIX, ARG_CONDITION
	};
	int64		after_position = EvpgArgBigint(fcinfo, ARG_AFTER_POSITION, "after_position");
	int64		max_count = EvpgArgMaxCount(fcinfo, ARG_MAX_COUNT);
	bool		stable_only = EvpgArgBool(fcinfo, ARG_STABLE_ONLY, "stable_only");
	EvpgLogFilter wanted = {
		.aggregate_types = get_filter_names(fcinfo, ARG_AGGREGATE_TYPES, "aggregate_types"),
		.event_types = get_filter_names(fcinfo, ARG_EVENT_TYPES, "event_types"),
		.tags = get_filter_names(fcinfo, ARG_TAGS, "tags"),
		.id_prefix = EvpgArgOptionalId(fcinfo, ARG_ID_PREFIX, "id_prefix"),
		.condition = PG_ARGISNULL(ARG_CONDITION) ? NULL : EvpgConditionFromJsonb(PG_GETARG_JSONB_P(ARG_CONDITION))
	};
	int64		count;
	int64		stable;
	EvpgScope	scope;

	InitMaterializedSRF(fcinfo, 0);
	EvpgEnter(&scope, NULL);
	stable = stable_only ? EvpgFenceDurablePosition(false) : PG_INT64_MAX;
	count = return_page(fcinfo, &wanted, after_position, stable, max_count);

	/*
	 * If the page is not full, in-progress appenders are worth a wait; it
	 * continues above the stable position of the first part.
	 */
	if (stable_only && count != max_count)
	{
		int64		later = EvpgFenceDurablePosition(true);

		if (later > stable)
			(void) return_page(fcinfo, &wanted, Max(after_position, stable), later,
							   max_count < 0 ? max_count : max_count - count);
	}
	EvpgLeave(&scope);
	PG_RETURN_NULL();
}

/* SQL: evpg_stable_position().  Returns the position up to which all events are final and durable. */
Datum
evpg_stable_position(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(EvpgFenceDurablePosition(true));
}

/*
 * SQL: evpg_log_stable_position().  Writes the stable position into WAL, as workers do, and waits until it is
 * durable.
 */
Datum
evpg_log_stable_position(PG_FUNCTION_ARGS)
{
	int64		position;

	PreventCommandIfReadOnly("evpg_log_stable_position()");
	PreventCommandDuringRecovery("evpg_log_stable_position()");
	(void) EvpgFenceLogStablePosition(&position);
	EvpgDurableAwaitAll();
	PG_RETURN_INT64(position);
}
