/*-------------------------------------------------------------------------
 *
 * upcaster.c
 *		Registers upcasters, and calls their functions (rule 24).
 *
 * An upcaster gets the data of an event alone, so that what it makes depends on nothing
 * else, and what was folded of it can be kept.  log/upcast.c finds the upcasters of an
 * event.
 *
 * Locks: a registration takes ShareRowExclusiveLock on evpg.upcaster, so that of two which
 * would make a circle together one sees the other.  Memory: functions are resolved in the
 * context of the registrations.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/error_context.h"
#include "base/errors.h"
#include "base/names.h"
#include "base/registration.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "usercode/function_call.h"
#include "usercode/guard.h"
#include "usercode/upcaster.h"

PG_FUNCTION_INFO_V1(evpg_register_upcaster);
PG_FUNCTION_INFO_V1(evpg_drop_upcaster);

/* ------------------------------------------------------------------ calls */

/* Whose function is running, for the context of its errors. */
typedef struct UpcasterErrorContext
{
	ErrorContextCallback callback;
	const EvpgUpcaster *upcaster;
	const EvpgEvent *event;
} UpcasterErrorContext;

static void
describe_upcaster_call(void *arg)
{
	UpcasterErrorContext *where = arg;
	const EvpgEvent *event = where->event;

	errcontext("upcaster of event \"%s\" from version %d, event of stream \"%s\" of aggregate \"%s\" at version "
			   INT64_FORMAT ", position " INT64_FORMAT, where->upcaster->event_type, where->upcaster->from_version,
			   event->aggregate_id, event->aggregate_type, event->version, event->position);
}

/* Returns JSON null, which stands for the data of an event that has none. */
static Datum
make_json_null(void)
{
	JsonbValue	null = {.type = jbvNull};

	return JsonbPGetDatum(JsonbValueToJsonb(&null));
}

/* Returns whether a value is JSON null. */
static bool
is_json_null(Jsonb *jsonb)
{
	JsonbValue	value;

	return JB_ROOT_IS_SCALAR(jsonb) && JsonbExtractScalar(&jsonb->root, &value) && value.type == jbvNull;
}

/* Returns what the function of an upcaster makes of the data of an event, in CurrentMemoryContext; NULL: none. */
static Jsonb *
call_upcaster(EvpgUpcaster *upcaster, const EvpgEvent *event)
{
	Datum		args[1] = {event->data == NULL ? make_json_null() : JsonbPGetDatum(event->data)};
	UpcasterErrorContext where = {.upcaster = upcaster, .event = event};
	Datum	   *rows;
	bool	   *nulls;
	Jsonb	   *result;

	EvpgErrorContextPush(&where.callback, describe_upcaster_call, &where);
	if (upcaster->function == NULL)
		upcaster->function = EvpgFunctionResolveIn(upcaster->context, upcaster->signature, EVPG_ROLE_UPCASTER,
												   upcaster->registered_by, upcaster->search_path);
	if (EvpgFunctionCall(upcaster->function, args, true, 1, &rows, &nulls) != 1 || nulls[0])
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("upcaster %s returned null", upcaster->signature),
				 errdetail("An upcaster returns the data of the event in the next version."),
				 errhint("An expression with a null in it is null, such as data->'a' || data->'b' or jsonb_set(): "
						 "use coalesce().  For an event without data return 'null'::jsonb.")));
	result = DatumGetJsonbP(rows[0]);
	EvpgJsonbCheckLimits(result, "event data");
	EvpgErrorContextPop(&where.callback);
	return event->data == NULL && is_json_null(result) ? NULL : result;
}

/* Lets the log call upcasters; called once, from _PG_init. */
void
EvpgUpcasterInit(void)
{
	EvpgUpcastCall = call_upcaster;
}

/*
 * EvpgUpcasterAddHashes
 *		Adds to a stamp and a definition hash what the upcasters are that events of an
 *		aggregate type may meet: what was folded of these under other ones is of no use.
 *		A function that does not exist fails the events that need it, not this.
 */
void
EvpgUpcasterAddHashes(const EvpgUpcasters *upcasters, const char *aggregate_type, uint64 *stamp, uint64 *definition_hash)
{
	ListCell   *cell;

	foreach(cell, EvpgUpcastersList(upcasters))
	{
		const EvpgUpcaster *upcaster = lfirst(cell);
		uint64		of_function = 0;
		uint64		of_definition = 0;
		char	   *step;
		uint64		of_step;

		if (upcaster->aggregate_type != NULL && strcmp(upcaster->aggregate_type, aggregate_type) != 0)
			continue;
		if (upcaster->signature != NULL)
			(void) EvpgFunctionHashes(upcaster->signature, upcaster->search_path, &of_function, &of_definition);
		step = psprintf("%s\n%d\n%s\n%d", upcaster->event_type, upcaster->from_version, upcaster->new_event_type,
						upcaster->to_version);
		of_step = DatumGetUInt64(hash_any_extended((unsigned char *) step, strlen(step), 0));
		*stamp = hash_combine64(*stamp, hash_combine64(of_step, of_function));
		*definition_hash = hash_combine64(*definition_hash, hash_combine64(of_step, of_definition));
		pfree(step);
	}
}

/* ------------------------------------------------------------------ registration */

/* Arguments of evpg_register_upcaster(). */
enum
{
	ARG_EVENT_TYPE, ARG_FROM_VERSION, ARG_UPCASTER, ARG_TO_VERSION, ARG_NEW_EVENT_TYPE, ARG_AGGREGATE_TYPE
};

static EvpgStatement insert_upcaster = {
	.text = "INSERT INTO evpg.upcaster AS u (event_type, from_version, aggregate_type, new_event_type, to_version,"
	" upcaster, search_path, registered_by, registered_at)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, evpg.clock_timestamp())"
	" ON CONFLICT (event_type, from_version, aggregate_type) DO UPDATE"
	" SET new_event_type = excluded.new_event_type, to_version = excluded.to_version, upcaster = excluded.upcaster,"
	" search_path = excluded.search_path, registered_by = excluded.registered_by,"
	" registered_at = excluded.registered_at"
	" WHERE (u.new_event_type, u.to_version, u.upcaster, u.search_path, u.registered_by)"
	" IS DISTINCT FROM (excluded.new_event_type, excluded.to_version, excluded.upcaster, excluded.search_path,"
	" excluded.registered_by)",
	.types = {TEXTOID, INT4OID, TEXTOID, TEXTOID, INT4OID, TEXTOID, TEXTOID, TEXTOID}
};

static EvpgStatement delete_upcaster = {
	.text = "DELETE FROM evpg.upcaster"
	" WHERE event_type = $1 AND from_version = $2 AND aggregate_type IS NOT DISTINCT FROM $3",
	.types = {TEXTOID, INT4OID, TEXTOID}
};

/* Reads an optional name, which is checked; NULL for NULL. */
static char *
get_optional_name(FunctionCallInfo fcinfo, int arg, const char *what)
{
	return PG_ARGISNULL(arg) ? NULL : EvpgArgName(fcinfo, arg, what);
}

/* Reads the step that the arguments describe; raises an error if it leads nowhere. */
static void
read_step(FunctionCallInfo fcinfo, EvpgUpcaster *step)
{
	bool		renames;

	step->event_type = EvpgArgName(fcinfo, ARG_EVENT_TYPE, "event type");
	EvpgCheckNewName(step->event_type, "event type");
	step->from_version = EvpgArgInt(fcinfo, ARG_FROM_VERSION, "from_version", 1);
	step->new_event_type = get_optional_name(fcinfo, ARG_NEW_EVENT_TYPE, "new_event_type");
	if (step->new_event_type == NULL)
		step->new_event_type = step->event_type;
	EvpgCheckNewName(step->new_event_type, "new_event_type");
	step->aggregate_type = get_optional_name(fcinfo, ARG_AGGREGATE_TYPE, "aggregate type");
	renames = strcmp(step->event_type, step->new_event_type) != 0;
	if (PG_ARGISNULL(ARG_TO_VERSION) && !renames && step->from_version == PG_INT32_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("from_version is out of range")));
	step->to_version = PG_ARGISNULL(ARG_TO_VERSION) ? step->from_version + !renames :
		EvpgArgInt(fcinfo, ARG_TO_VERSION, "to_version", 1);
	if (!renames && step->to_version <= step->from_version)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("to_version must be higher than from_version"),
				 errdetail("An upcaster leads from a version of an event type to a later one, or to another type.")));
	if (!PG_ARGISNULL(ARG_UPCASTER))
		step->signature = EvpgFunctionCheck(PG_GETARG_OID(ARG_UPCASTER), EVPG_ROLE_UPCASTER, GetUserId());
	else if (!renames)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("upcaster must not be null"),
				 errhint("Only an upcaster that renames an event may leave its data as it is.")));
}

static EvpgStatement select_overlapping = {
	.text = "SELECT coalesce(aggregate_type, '')"
	" FROM evpg.upcaster"
	" WHERE event_type = $1 AND from_version = $2 AND (aggregate_type IS NULL) <> ($3 IS NULL) LIMIT 1",
	.types = {TEXTOID, INT4OID, TEXTOID}
};

/* Raises an error if the same step is registered for all aggregate types, and this one for one, or the other way round. */
static void
refuse_overlap(const EvpgUpcaster *step, Datum *values, const char *nulls)
{
	char		of_key[3] = {nulls[0], nulls[1], nulls[2]};

	if (EvpgStatementRead(&select_overlapping, values, of_key) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 step->aggregate_type != NULL ?
				 errmsg("event \"%s\" has an upcaster from version %d for all aggregate types already",
						step->event_type, step->from_version) :
				 errmsg("event \"%s\" has an upcaster from version %d for one aggregate type already",
						step->event_type, step->from_version),
				 errhint("Drop that one first.")));
	EvpgStatementDone();
}

/* Raises an error if upcasters, now that one more is registered, lead back to where they begin. */
static void
refuse_circle(const EvpgUpcaster *step)
{
	EvpgUpcasters *upcasters = EvpgUpcastersGet();
	ListCell   *cell;

	/*
	 * A circle with the step is in an aggregate type that the step is for, or
	 * in one that another step names.
	 */
	foreach(cell, EvpgUpcastersList(upcasters))
	{
		const EvpgUpcaster *other = lfirst(cell);
		const char *aggregate_type = step->aggregate_type != NULL ? step->aggregate_type :
		other->aggregate_type != NULL ? other->aggregate_type : "";
		const EvpgUpcastChain *chain = EvpgUpcastFind(upcasters, aggregate_type, step->event_type, step->from_version);

		if (chain != NULL && chain->end == EVPG_UPCAST_CIRCLE)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("upcasters would lead from event \"%s\" of version %d back to it", step->event_type,
							step->from_version)));
	}
}

static EvpgStatement select_projections = {
	.text = "SELECT name"
	" FROM evpg.projection"
	" WHERE (event_types IS NULL OR event_types && $1)"
	" AND (aggregate_types IS NULL OR $2 IS NULL OR $2 = ANY (aggregate_types)) ORDER BY name",
	.types = {TEXTARRAYOID, TEXTOID}
};

/* Tells which projections have rows that were made of events as they were read before. */
static void
advise_rebuilds(const EvpgUpcaster *step)
{
	EvpgUpcasters *upcasters = EvpgUpcastersGet();
	List	   *types = lappend(list_make1(step->event_type), step->new_event_type);
	const EvpgUpcastChain *chain = upcasters == NULL ? NULL :
	EvpgUpcastFind(upcasters, step->aggregate_type != NULL ? step->aggregate_type : "", step->new_event_type,
				   step->to_version);
	Datum		values[2];
	char		nulls[2] = {' ', ' '};
	List	   *names;
	StringInfoData text;
	ListCell   *cell;

	if (chain != NULL)
		types = lappend(types, unconstify(char *, chain->type));
	values[0] = EvpgNamesToArray(types);
	EvpgParameterText(values, nulls, 1, step->aggregate_type);
	names = EvpgStatementReadTexts(&select_projections, values, nulls);
	if (names == NIL)
		return;
	initStringInfo(&text);
	foreach(cell, names)
		appendStringInfo(&text, "%s\"%s\"", text.len == 0 ? "" : ", ", (char *) lfirst(cell));
	ereport(NOTICE,
			(errmsg("rows of projections stay as they were made of events \"%s\" of version %d", step->event_type,
					step->from_version),
			 errdetail("Projections that may have such rows: %s.", text.data),
			 errhint("If the log has such events, use evpg_rebuild_projection().")));
}

/*
 * evpg_register_upcaster
 *		SQL: evpg_register_upcaster(event_type, from_version, upcaster, to_version,
 *		new_event_type, aggregate_type).  Registers how events of an old version are read.
 *		Returns whether anything changed.
 */
Datum
evpg_register_upcaster(PG_FUNCTION_ARGS)
{
	EvpgUpcaster step = {0};
	char	   *search_path = EvpgFunctionSearchPath();
	Datum		values[8];
	char		nulls[8];
	uint64		changed;
	EvpgScope	scope;

	EvpgRefuseInProjection("register upcasters");
	read_step(fcinfo, &step);
	memset(nulls, ' ', sizeof(nulls));
	EvpgParameterText(values, nulls, 0, step.event_type);
	values[1] = Int32GetDatum(step.from_version);
	EvpgParameterText(values, nulls, 2, step.aggregate_type);
	EvpgParameterText(values, nulls, 3, step.new_event_type);
	values[4] = Int32GetDatum(step.to_version);
	EvpgParameterText(values, nulls, 5, step.signature);
	EvpgParameterText(values, nulls, 6, search_path);
	EvpgParameterText(values, nulls, 7, GetUserNameFromId(GetUserId(), false));

	EvpgEnter(&scope, "evpg_register_upcaster()");
	LockRelationOid(EvpgCatalogGet()->upcaster, ShareRowExclusiveLock);
	refuse_overlap(&step, values, nulls);
	changed = EvpgStatementRun(&insert_upcaster, values, nulls);
	EvpgStatementDone();
	if (changed > 0)
	{
		EvpgRegistrationInvalidate(EvpgCatalogGet()->upcaster);
		refuse_circle(&step);
		advise_rebuilds(&step);
	}
	EvpgLeave(&scope);
	PG_RETURN_BOOL(changed > 0);
}

/*
 * evpg_drop_upcaster
 *		SQL: evpg_drop_upcaster(event_type, from_version, aggregate_type, missing_ok).
 *		Removes an upcaster; returns false if there is none and missing_ok is passed.
 */
Datum
evpg_drop_upcaster(PG_FUNCTION_ARGS)
{
	EvpgUpcaster step = {
		.event_type = EvpgArgName(fcinfo, 0, "event type"),
		.from_version = EvpgArgInt(fcinfo, 1, "from_version", 1),
		.aggregate_type = get_optional_name(fcinfo, 2, "aggregate type")
	};
	bool		missing_ok = EvpgArgBool(fcinfo, 3, "missing_ok");
	Datum		values[3];
	char		nulls[3] = {' ', ' ', ' '};
	uint64		deleted;
	EvpgScope	scope;

	EvpgRefuseInProjection("drop upcasters");
	step.new_event_type = step.event_type;
	EvpgParameterText(values, nulls, 0, step.event_type);
	values[1] = Int32GetDatum(step.from_version);
	EvpgParameterText(values, nulls, 2, step.aggregate_type);
	EvpgEnter(&scope, "evpg_drop_upcaster()");
	deleted = EvpgStatementExecute(&delete_upcaster, values, nulls);
	if (deleted > 0)
	{
		EvpgRegistrationInvalidate(EvpgCatalogGet()->upcaster);
		advise_rebuilds(&step);
	}
	else if (!missing_ok)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("event \"%s\" has no upcaster from version %d", step.event_type, step.from_version),
				 step.aggregate_type == NULL ? errdetail("None is registered for all aggregate types.") :
				 errdetail("None is registered for aggregate type \"%s\".", step.aggregate_type)));
	EvpgLeave(&scope);
	PG_RETURN_BOOL(deleted > 0);
}
