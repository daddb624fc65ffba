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
 * access: the lock on the table accepts the invalidation.
 *
 * A column that was added and dropped again leaves a dropped one at the end.
 * That is harmless, and the descriptors that EvpgShapeRow makes leave it out:
 * a row that is formed by them is one from before the column was added.  They
 * are not for reading values of other making, which may have it.
 *
 * Other files name the columns by constants: event.h, log.c, stream.c,
 * projected.c, reaction.c, command.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "shape.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#define MAX_COLUMNS 17

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

/* In the order of sql/evpg--1.0.sql. */
static const Shape shapes[EVPG_SHAPE_COUNT] = {
	[EVPG_SHAPE_EVENT_LOG] = {"event_log", true, {
			{"position", INT8OID}, {"stream_id", INT8OID}, {"version", INT8OID},
			{"occurred_at", TIMESTAMPTZOID}, {"recorded_at", TIMESTAMPTZOID}, {"event_id", UUIDOID},
			{"schema_version", INT4OID}, {"type", TEXTOID, C_COLLATION_OID}, {"data", JSONBOID}, {"metadata", JSONBOID},
			{"tags", TEXTARRAYOID}, {"command_id", TEXTOID}, {"correlation_id", TEXTOID}, {"causation_id", TEXTOID},
			{"actor", TEXTOID}, {"session_role", TEXTOID}
	}},
	[EVPG_SHAPE_STREAM] = {"stream", true, {
			{"stream_id", INT8OID}, {"version", INT8OID}, {"last_position", INT8OID}, {"created_at", TIMESTAMPTZOID},
			{"last_recorded_at", TIMESTAMPTZOID}, {"aggregate_type", TEXTOID, C_COLLATION_OID}, {"aggregate_id", TEXTOID, C_COLLATION_OID}
	}},
	[EVPG_SHAPE_PROJECTION_STATE] = {"projection_state", true, {
			{"build", INT8OID}, {"version", INT8OID}, {"position", INT8OID}, {"updated_at", TIMESTAMPTZOID},
			{"generation", INT4OID}, {"deleted", BOOLOID}, {"key", TEXTOID, C_COLLATION_OID}, {"state", JSONBOID}
	}},
	[EVPG_SHAPE_CLOCK] = {"clock", true, {
			{"one", BOOLOID}, {"clock_offset", INT8OID}
	}},
	[EVPG_SHAPE_EVENT] = {"event", false, {
			{"position", INT8OID}, {"aggregate_type", TEXTOID}, {"aggregate_id", TEXTOID}, {"version", INT8OID},
			{"event_id", UUIDOID}, {"type", TEXTOID}, {"schema_version", INT4OID}, {"data", JSONBOID},
			{"metadata", JSONBOID}, {"tags", TEXTARRAYOID}, {"command_id", TEXTOID}, {"correlation_id", TEXTOID},
			{"causation_id", TEXTOID}, {"actor", TEXTOID}, {"occurred_at", TIMESTAMPTZOID},
			{"recorded_at", TIMESTAMPTZOID}, {"session_role", TEXTOID}
	}},
	[EVPG_SHAPE_NEW_EVENT] = {"new_event", false, {
			{"type", TEXTOID}, {"data", JSONBOID}, {"metadata", JSONBOID}, {"tags", TEXTARRAYOID},
			{"schema_version", INT4OID}, {"occurred_at", TIMESTAMPTZOID}, {"event_id", UUIDOID}, {"caused_by", INT4OID}
	}},
	[EVPG_SHAPE_COMMAND] = {"command", false, {
			{"aggregate_type", TEXTOID}, {"aggregate_id", TEXTOID}, {"command_type", TEXTOID}, {"data", JSONBOID},
			{"expected_version", INT8OID}, {"command_id", TEXTOID}, {"metadata", JSONBOID}, {"actor", TEXTOID},
			{"correlation_id", TEXTOID}, {"causation_id", TEXTOID}, {"version", INT8OID}, {"received_at", TIMESTAMPTZOID},
			{"session_role", TEXTOID}
	}},
	[EVPG_SHAPE_OUTCOME] = {"outcome", false, {
			{"status", TEXTOID}, {"aggregate_type", TEXTOID}, {"aggregate_id", TEXTOID}, {"version", INT8OID},
			{"last_position", INT8OID}, {"events", JSONBOID}, {"sqlstate", TEXTOID}, {"code", TEXTOID},
			{"message", TEXTOID}, {"detail", JSONBOID}, {"hint", TEXTOID}
	}},
	[EVPG_SHAPE_PROJECTED] = {"projected", false, {
			{"state", JSONBOID}, {"delta", JSONBOID}
	}},
	[EVPG_SHAPE_REACTION] = {"reaction", false, {
			{"state", JSONBOID}, {"actions", JSONBOID}
	}},
	[EVPG_SHAPE_REJECTION] = {"rejection", false, {
			{"saga", TEXTOID}, {"key", TEXTOID}, {"label", TEXTOID}, {"aggregate_type", TEXTOID},
			{"aggregate_id", TEXTOID}, {"command_type", TEXTOID}, {"data", JSONBOID}, {"sqlstate", TEXTOID},
			{"code", TEXTOID}, {"message", TEXTOID}, {"detail", JSONBOID}, {"attempts", INT4OID},
			{"source_position", INT8OID}
	}},
	[EVPG_SHAPE_FIRED_TIMER] = {"fired_timer", false, {
			{"saga", TEXTOID}, {"key", TEXTOID}, {"timer", TEXTOID}, {"payload", JSONBOID},
			{"scheduled_at", TIMESTAMPTZOID}, {"due_at", TIMESTAMPTZOID}, {"fired_at", TIMESTAMPTZOID}
	}},
	[EVPG_SHAPE_STREAM_INFO] = {"stream_info", false, {
			{"aggregate_type", TEXTOID}, {"aggregate_id", TEXTOID}, {"version", INT8OID}, {"created_at", TIMESTAMPTZOID}
	}},
};

/* A DETAIL says what was found, or expected. */
static void
pg_attribute_noreturn()
raise_changed(const Shape *shape, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s evpg.%s has been changed", shape->table ? "table" : "type", shape->name),
			 errdetail("%s", detail),
			 errhint("Undo the change: drop a column that was added, give a column its name and type back. "
					 "Columns of your own belong into a table of your own.")));
}

/* Error unless a column is the expected one; column NULL: nothing but dropped ones may be there. */
static void
check_column(const Shape *shape, const Column *column, Oid relid, int number)
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
	else if (attribute->atttypid != column->type ||
			 (OidIsValid(column->collation) && attribute->attcollation != column->collation))
		raise_changed(shape, psprintf("Column \"%s\" is not of type %s%s.", column->name, format_type_be(column->type),
									  OidIsValid(column->collation) ? " with collation \"C\"" : ""));
	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
}

/*
 * EvpgShapeCheck
 *		The oid of a relation, or of the relation of a type; error unless it has
 *		the columns that C code knows, and no other.  Needs no lock: who has one
 *		on the table can rely on the answer, others have it again once they do.
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
		check_column(shape, &shape->columns[expected - 1], relid, expected);
	}
	for (int number = expected + 1; number <= columns; number++)
		check_column(shape, NULL, relid, number);
	return relid;
}

/*
 * EvpgShapeRow
 *		A descriptor, in CurrentMemoryContext, of the columns that C code knows of
 *		a relation whose shape was checked.
 */
TupleDesc
EvpgShapeRow(Oid relid, EvpgShape which)
{
	TupleDesc	desc = lookup_rowtype_tupdesc_copy(get_rel_type_id(relid), -1);
	int			expected = 0;

	while (shapes[which].columns[expected].name != NULL)
		expected++;
	Assert(desc->natts >= expected);
	desc->natts = expected;
	return desc;
}
