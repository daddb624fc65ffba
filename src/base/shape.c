/*-------------------------------------------------------------------------
 *
 * shape.c
 *		The columns of evpg's relations and types that C code knows by number:
 *		what they must be, and descriptors of just these columns.
 *
 * An owner or superuser can change a table of an extension.  C code that knew
 * nothing of it would read and write beyond its arrays, or take one column for
 * another, so catalog.c checks every shape whenever it looks the relations up
 * anew, which an ALTER causes in every session before that session's next
 * access: taking the lock on the table accepts the invalidation.
 *
 * A column that was added and dropped again leaves a dropped one at the end.
 * That is harmless.  The descriptors that EvpgShapeRow makes leave it out: a
 * row of a table that is formed by them is one from before the column was
 * added.  They are not for reading values of other making, which may have it.
 * Values of row types are formed with it, by EvpgShapeFormTuple: a server may
 * compare when the type was changed with when its descriptor was read, and
 * keeps that behind the last column of the descriptor (since 15.20).
 *
 * Other files name the columns by constants: event.h, event_log.c, stream.c,
 * projection_row.c, consumer.c, instance.c, due_event.c, timer.c, saga.c,
 * idempotency.c, saga_code.c, command.c, lease.c, partition.c, fetch.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "base/compat.h"
#include "base/shape.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#define MAX_COLUMNS 21

typedef struct Column
{
	const char *name;
	Oid			type;
	Oid			collation;		/* InvalidOid: any */
} Column;

typedef struct Shape
{
	const char *name;			/* in schema evpg */
	bool		table;			/* else a view or a type */
	Column		columns[MAX_COLUMNS + 1];	/* the last one has no name */
} Shape;

#define COLUMN(name, type) {name, type, InvalidOid}
#define C_TEXT(name) {name, TEXTOID, C_COLLATION_OID}

/* The type of a column: an array of evpg.new_event, which has no fixed oid. */
#define NEW_EVENTS InvalidOid

/* In the order of sql/evpg--1.0.sql. */
static const Shape shapes[EVPG_SHAPE_COUNT] = {
	[EVPG_SHAPE_EVENT_LOG] = {"event_log", true, {
			COLUMN("position", INT8OID), COLUMN("stream_id", INT8OID), COLUMN("version", INT8OID),
			COLUMN("occurred_at", TIMESTAMPTZOID), COLUMN("recorded_at", TIMESTAMPTZOID), COLUMN("event_id", UUIDOID),
			COLUMN("schema_version", INT4OID), C_TEXT("type"), COLUMN("data", JSONBOID), COLUMN("metadata", JSONBOID),
			COLUMN("tags", TEXTARRAYOID), COLUMN("command_id", TEXTOID), COLUMN("correlation_id", TEXTOID),
			COLUMN("causation_id", TEXTOID),
			COLUMN("actor", TEXTOID), COLUMN("session_role", TEXTOID)
	}},
	[EVPG_SHAPE_STREAM] = {"stream", true, {
			COLUMN("stream_id", INT8OID), COLUMN("created_at", TIMESTAMPTZOID), C_TEXT("aggregate_type"),
			C_TEXT("aggregate_id")
	}},
	[EVPG_SHAPE_PROJECTION_STATE] = {"projection_state", true, {
			COLUMN("build", INT8OID), COLUMN("version", INT8OID), COLUMN("position", INT8OID),
			COLUMN("updated_at", TIMESTAMPTZOID),
			COLUMN("generation", INT4OID), COLUMN("deleted", BOOLOID), C_TEXT("key"), COLUMN("state", JSONBOID)
	}},
	[EVPG_SHAPE_SAGA_INSTANCE] = {"saga_instance", true, {
			C_TEXT("saga"), C_TEXT("key"), COLUMN("saga_version", INT4OID), COLUMN("status", TEXTOID),
			COLUMN("state", JSONBOID), COLUMN("version", INT8OID), COLUMN("position", INT8OID),
			COLUMN("undo", JSONBOID), COLUMN("started_at", TIMESTAMPTZOID), COLUMN("updated_at", TIMESTAMPTZOID)
	}},
	[EVPG_SHAPE_COMMAND_RECORD] = {"command_record", true, {
			COLUMN("stream_id", INT8OID), COLUMN("first_version", INT8OID), COLUMN("last_version", INT8OID),
			COLUMN("recorded_at", TIMESTAMPTZOID), COLUMN("payload_hash", BYTEAOID), C_TEXT("command_id")
	}},
	[EVPG_SHAPE_CONSUMER] = {"consumer", true, {
			C_TEXT("name"), COLUMN("kind", TEXTOID), COLUMN("status", TEXTOID), COLUMN("checkpoint", INT8OID),
			COLUMN("start_position", INT8OID), COLUMN("events_total", INT8OID), COLUMN("errors_total", INT8OID),
			COLUMN("attempts", INT4OID), COLUMN("error_position", INT8OID), COLUMN("retry_at", TIMESTAMPTZOID),
			COLUMN("last_error", TEXTOID), COLUMN("last_sqlstate", TEXTOID), COLUMN("last_context", TEXTOID),
			COLUMN("last_error_at", TIMESTAMPTZOID), COLUMN("created_at", TIMESTAMPTZOID),
			COLUMN("updated_at", TIMESTAMPTZOID), COLUMN("crashes", INT4OID), COLUMN("server_start", INT8OID),
			COLUMN("cautious_to", INT8OID), COLUMN("proven", INT8OID)
	}},
	[EVPG_SHAPE_SAGA_EVENT] = {"saga_event", true, {
			C_TEXT("saga"), C_TEXT("key"), COLUMN("position", INT8OID), COLUMN("attempts", INT4OID),
			COLUMN("retry_at", TIMESTAMPTZOID), COLUMN("dead_letter_id", INT8OID), COLUMN("cancels", INT4OID)
	}},
	[EVPG_SHAPE_SAGA_TOTAL] = {"saga_total", true, {
			C_TEXT("saga"), COLUMN("part", UUIDOID), COLUMN("dispatched", INT8OID), COLUMN("dead_lettered", INT8OID)
	}},
	[EVPG_SHAPE_TIMER] = {"timer", true, {
			COLUMN("timer_id", INT8OID), C_TEXT("saga"), C_TEXT("key"), C_TEXT("name"), COLUMN("payload", JSONBOID),
			COLUMN("command", JSONBOID), COLUMN("due_at", TIMESTAMPTZOID), COLUMN("scheduled_at", TIMESTAMPTZOID),
			COLUMN("attempts", INT4OID), COLUMN("retry_at", TIMESTAMPTZOID), COLUMN("dead_letter_id", INT8OID),
			COLUMN("depth", INT4OID), COLUMN("correlation_id", TEXTOID), COLUMN("causation_id", TEXTOID),
			COLUMN("session_role", TEXTOID), COLUMN("cancels", INT4OID)
	}},
	[EVPG_SHAPE_SUBSCRIPTION_LEASE] = {"subscription_lease", true, {
			C_TEXT("subscription"), COLUMN("slot", INT4OID), C_TEXT("consumer"), COLUMN("lease", INT8OID),
			COLUMN("acked", INT8OID), COLUMN("handed", INT8OID), COLUMN("delivered", INT8OID),
			COLUMN("lease_until", TIMESTAMPTZOID), COLUMN("replaying", BOOLOID)
	}},
	[EVPG_SHAPE_SUBSCRIPTION_PARTITION] = {"subscription_partition", true, {
			C_TEXT("subscription"), COLUMN("partition", INT4OID), COLUMN("slot", INT4OID), COLUMN("checkpoint", INT8OID),
			COLUMN("replay_to", INT8OID), COLUMN("cautious_to", INT8OID), COLUMN("attempt_position", INT8OID),
			COLUMN("attempts", INT4OID), COLUMN("retry_at", TIMESTAMPTZOID)
	}},
	[EVPG_SHAPE_CLOCK] = {"clock", true, {
			COLUMN("one", BOOLOID), COLUMN("clock_offset", INT8OID)
	}},
	[EVPG_SHAPE_EVENT] = {"event", false, {
			COLUMN("position", INT8OID), COLUMN("aggregate_type", TEXTOID), COLUMN("aggregate_id", TEXTOID),
			COLUMN("version", INT8OID),
			COLUMN("event_id", UUIDOID), COLUMN("type", TEXTOID), COLUMN("schema_version", INT4OID),
			COLUMN("data", JSONBOID),
			COLUMN("metadata", JSONBOID), COLUMN("tags", TEXTARRAYOID), COLUMN("command_id", TEXTOID),
			COLUMN("correlation_id", TEXTOID),
			COLUMN("causation_id", TEXTOID), COLUMN("actor", TEXTOID), COLUMN("occurred_at", TIMESTAMPTZOID),
			COLUMN("recorded_at", TIMESTAMPTZOID), COLUMN("session_role", TEXTOID)
	}},
	[EVPG_SHAPE_NEW_EVENT] = {"new_event", false, {
			COLUMN("type", TEXTOID), COLUMN("data", JSONBOID), COLUMN("metadata", JSONBOID),
			COLUMN("tags", TEXTARRAYOID),
			COLUMN("schema_version", INT4OID), COLUMN("occurred_at", TIMESTAMPTZOID),
			COLUMN("event_id", UUIDOID), COLUMN("caused_by", INT4OID)
	}},
	[EVPG_SHAPE_STREAM_APPEND] = {"stream_append", false, {
			COLUMN("aggregate_type", TEXTOID), COLUMN("aggregate_id", TEXTOID), COLUMN("events", NEW_EVENTS),
			COLUMN("expected_version", INT8OID)
	}},
	[EVPG_SHAPE_DELIVERY] = {"delivery", false, {
			COLUMN("lease", INT8OID), COLUMN("partition", INT4OID), COLUMN("attempt", INT4OID),
			COLUMN("position", INT8OID), COLUMN("aggregate_type", TEXTOID), COLUMN("aggregate_id", TEXTOID),
			COLUMN("version", INT8OID),
			COLUMN("event_id", UUIDOID), COLUMN("type", TEXTOID), COLUMN("schema_version", INT4OID),
			COLUMN("data", JSONBOID),
			COLUMN("metadata", JSONBOID), COLUMN("tags", TEXTARRAYOID), COLUMN("command_id", TEXTOID),
			COLUMN("correlation_id", TEXTOID),
			COLUMN("causation_id", TEXTOID), COLUMN("actor", TEXTOID), COLUMN("occurred_at", TIMESTAMPTZOID),
			COLUMN("recorded_at", TIMESTAMPTZOID), COLUMN("session_role", TEXTOID)
	}},
	[EVPG_SHAPE_COMMAND] = {"command", false, {
			COLUMN("aggregate_type", TEXTOID), COLUMN("aggregate_id", TEXTOID),
			COLUMN("command_type", TEXTOID), COLUMN("data", JSONBOID),
			COLUMN("expected_version", INT8OID), COLUMN("command_id", TEXTOID), COLUMN("metadata", JSONBOID),
			COLUMN("actor", TEXTOID),
			COLUMN("correlation_id", TEXTOID), COLUMN("causation_id", TEXTOID), COLUMN("version", INT8OID),
			COLUMN("received_at", TIMESTAMPTZOID),
			COLUMN("session_role", TEXTOID)
	}},
	[EVPG_SHAPE_OUTCOME] = {"outcome", false, {
			COLUMN("status", TEXTOID), COLUMN("aggregate_type", TEXTOID), COLUMN("aggregate_id", TEXTOID),
			COLUMN("version", INT8OID),
			COLUMN("last_position", INT8OID), COLUMN("events", JSONBOID), COLUMN("sqlstate", TEXTOID),
			COLUMN("code", TEXTOID),
			COLUMN("message", TEXTOID), COLUMN("detail", JSONBOID), COLUMN("hint", TEXTOID)
	}},
	[EVPG_SHAPE_PROJECTED] = {"projected", false, {
			COLUMN("state", JSONBOID), COLUMN("delta", JSONBOID)
	}},
	[EVPG_SHAPE_REACTION] = {"reaction", false, {
			COLUMN("state", JSONBOID), COLUMN("actions", JSONBOID)
	}},
	[EVPG_SHAPE_REJECTION] = {"rejection", false, {
			COLUMN("saga", TEXTOID), COLUMN("key", TEXTOID), COLUMN("label", TEXTOID),
			COLUMN("aggregate_type", TEXTOID),
			COLUMN("aggregate_id", TEXTOID), COLUMN("command_type", TEXTOID), COLUMN("data", JSONBOID),
			COLUMN("sqlstate", TEXTOID),
			COLUMN("code", TEXTOID), COLUMN("message", TEXTOID), COLUMN("detail", JSONBOID),
			COLUMN("attempts", INT4OID),
			COLUMN("source_position", INT8OID)
	}},
	[EVPG_SHAPE_FIRED_TIMER] = {"fired_timer", false, {
			COLUMN("saga", TEXTOID), COLUMN("key", TEXTOID), COLUMN("timer", TEXTOID), COLUMN("payload", JSONBOID),
			COLUMN("scheduled_at", TIMESTAMPTZOID), COLUMN("due_at", TIMESTAMPTZOID), COLUMN("fired_at", TIMESTAMPTZOID)
	}},
	[EVPG_SHAPE_STREAM_INFO] = {"stream_info", false, {
			COLUMN("aggregate_type", TEXTOID), COLUMN("aggregate_id", TEXTOID), COLUMN("version", INT8OID),
			COLUMN("created_at", TIMESTAMPTZOID)
	}},
};

/* Raises an error about a relation that C code does not know in this form; detail is what was found, or expected. */
pg_noreturn static void
raise_changed(const Shape *shape, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s evpg.%s has been changed", shape->table ? "table" : "type", shape->name),
			 errdetail("%s", detail),
			 errhint("Undo the change: drop a column that was added, give a column its name and type back. "
					 "Columns of your own belong into a table of your own.")));
}

static Oid
get_column_type(Oid schema, const Column *column)
{
	return column->type != NEW_EVENTS ? column->type :
		get_array_type(get_rel_type_id(get_relname_relid(shapes[EVPG_SHAPE_NEW_EVENT].name, schema)));
}

/* Raises an error unless a column is the expected one; column NULL: nothing but dropped columns may follow. */
static void
check_column(Oid schema, const Shape *shape, const Column *column, Oid relid, int number)
{
	HeapTuple	tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(relid), Int16GetDatum(number));
	Form_pg_attribute attribute = HeapTupleIsValid(tuple) ? (Form_pg_attribute) GETSTRUCT(tuple) : NULL;

	if (column == NULL)
	{
		if (attribute != NULL && !attribute->attisdropped)
			raise_changed(shape, psprintf("Column \"%s\" is not one of evpg's.", NameStr(attribute->attname)));
	}
	else if (attribute == NULL || attribute->attisdropped || strcmp(NameStr(attribute->attname), column->name) != 0)
		raise_changed(shape, psprintf("Column %d is not \"%s\".", number, column->name));
	else if (attribute->atttypid != get_column_type(schema, column) ||
			 (OidIsValid(column->collation) && attribute->attcollation != column->collation))
		raise_changed(shape, psprintf("Column \"%s\" is not of type %s%s.", column->name,
									  format_type_be(get_column_type(schema, column)),
									  OidIsValid(column->collation) ? " with collation \"C\"" : ""));
	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
}

/*
 * EvpgShapeCheck
 *		Returns the oid of a relation, or of the relation of a type; raises an
 *		error unless it has the columns that C code knows, and no other.  Needs
 *		no lock: the answer holds for a session that has a lock on the table;
 *		others ask again once they have one.
 */
Oid
EvpgShapeCheck(Oid schema, EvpgShape which)
{
	const Shape *shape = &shapes[which];
	Oid			relid = get_relname_relid(shape->name, schema);
	HeapTuple	tuple = OidIsValid(relid) ? SearchSysCache1(RELOID, ObjectIdGetDatum(relid)) : NULL;
	int			columns;
	int			expected = 0;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("%s \"evpg.%s\" does not exist", shape->table ? "relation" : "type", shape->name),
				 errhint("The extension evpg is damaged or being dropped.")));
	columns = ((Form_pg_class) GETSTRUCT(tuple))->relnatts;
	ReleaseSysCache(tuple);
	while (shape->columns[expected].name != NULL)
	{
		expected++;
		check_column(schema, shape, &shape->columns[expected - 1], relid, expected);
	}
	for (int number = expected + 1; number <= columns; number++)
		check_column(schema, shape, NULL, relid, number);
	return relid;
}

/*
 * EvpgShapeRow
 *		Makes a descriptor, in CurrentMemoryContext, of the columns that C code
 *		knows of a table whose shape was checked.  Needs no lock, so a session does
 *		not wait for tables that it does not use.
 */
TupleDesc
EvpgShapeRow(EvpgShape which)
{
	const Column *columns = shapes[which].columns;
	int			count = 0;
	TupleDesc	desc;

	while (columns[count].name != NULL)
		count++;
	desc = CreateTemplateTupleDesc(count);
	for (int i = 0; i < count; i++)
	{
		TupleDescInitEntry(desc, (AttrNumber) (i + 1), columns[i].name, columns[i].type, -1, 0);
		if (OidIsValid(columns[i].collation))
			TupleDescInitEntryCollation(desc, (AttrNumber) (i + 1), columns[i].collation);
	}
	return desc;
}

/*
 * EvpgShapeType
 *		Makes a descriptor, in CurrentMemoryContext, of all columns of the row
 *		type of a relation, for EvpgShapeFormTuple and EvpgReturnSetBegin.  It is
 *		never freed.
 */
TupleDesc
EvpgShapeType(Oid relid)
{
	TupleDesc	desc = lookup_rowtype_tupdesc_copy(get_rel_type_id(relid), -1);

	/* The executor frees what no one refers to. */
	desc->tdrefcount = 1;
	return desc;
}

/*
 * EvpgShapeFormTuple
 *		Forms a value of a row type, in CurrentMemoryContext, of the columns that
 *		C code knows; those behind them, which were dropped, are NULL.
 */
HeapTuple
EvpgShapeFormTuple(TupleDesc type, int columns, Datum *values, bool *nulls)
{
	Datum	   *all_values;
	bool	   *all_nulls;

	if (likely(type->natts == columns))
		return heap_form_tuple(type, values, nulls);
	all_values = palloc0(sizeof(Datum) * type->natts);
	all_nulls = palloc(sizeof(bool) * type->natts);
	memcpy(all_values, values, sizeof(Datum) * columns);
	memcpy(all_nulls, nulls, sizeof(bool) * columns);
	memset(all_nulls + columns, true, sizeof(bool) * (type->natts - columns));
	return heap_form_tuple(type, all_values, all_nulls);
}
