/*-------------------------------------------------------------------------
 *
 * catalog.c
 *		Looks up evpg's own relations and types, and switches to their owner.
 *
 * The answers are kept for the session in EvpgCatalogContext and looked up
 * again after an invalidation, so DROP and CREATE EXTENSION in one session
 * work, and a change of a table that evpg cannot work with is refused.  Only
 * the relation that was invalidated is looked at: VACUUM and ANALYZE invalidate
 * it too, in every session, and cannot be told from ALTER.  Callbacks only flip
 * flags: they run at any time, also while a command holds pointers.
 *
 * The registry (aggregate.c) is told of changes by an invalidation of the
 * relations evpg.aggregate_type, evpg.interceptor, evpg.listener, evpg.projection,
 * evpg.saga, evpg.subscription, evpg.translator and evpg.upcaster, which registration functions send, and of
 * functions and roles by the caches of pg_proc, pg_authid and pg_auth_members.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/parallel.h"
#include "access/table.h"
#include "access/xact.h"
#include "base/catalog.h"
#include "base/shape.h"
#include "base/testing.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_rewrite.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "rewrite/prs2lock.h"
#include "rewrite/rewriteDefine.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"


/* In place of a shape: C code knows no column of the relation by number. */
#define NO_SHAPE EVPG_SHAPE_COUNT

/* A relation that is looked at again when, and only when, something of it has changed. */
typedef struct Known
{
	const char *name;
	bool		table;			/* evpg works on it as its owner, so row
								 * security has no effect */
	EvpgShape	shape;
	size_t		place;			/* of its oid in the catalog; 0: it has none */
	Oid			oid;			/* InvalidOid: never looked up */
	uint64		changes;		/* seen by the callback */
	uint64		checked;		/* of those, when it was last found right */
} Known;

static Known known[] = {
	{.name = "event_log", .table = true, .shape = EVPG_SHAPE_EVENT_LOG, .place = offsetof(EvpgCatalog, event_log)},
	{.name = "stream", .table = true, .shape = EVPG_SHAPE_STREAM, .place = offsetof(EvpgCatalog, stream)},
	{.name = "projection_state", .table = true, .shape = EVPG_SHAPE_PROJECTION_STATE,
	.place = offsetof(EvpgCatalog, projection_state)},
	{.name = "command_record", .table = true, .shape = EVPG_SHAPE_COMMAND_RECORD,
	.place = offsetof(EvpgCatalog, command_record)},
	{.name = "saga_instance", .table = true, .shape = EVPG_SHAPE_SAGA_INSTANCE,
	.place = offsetof(EvpgCatalog, saga_instance)},
	{.name = "saga_event", .table = true, .shape = EVPG_SHAPE_SAGA_EVENT,
	.place = offsetof(EvpgCatalog, consumer_tables[EVPG_CONSUMER_TABLE_SAGA_EVENT])},
	{.name = "saga_total", .table = true, .shape = EVPG_SHAPE_SAGA_TOTAL,
	.place = offsetof(EvpgCatalog, consumer_tables[EVPG_CONSUMER_TABLE_SAGA_TOTAL])},
	{.name = "timer", .table = true, .shape = EVPG_SHAPE_TIMER,
	.place = offsetof(EvpgCatalog, consumer_tables[EVPG_CONSUMER_TABLE_TIMER])},
	{.name = "subscription_lease", .table = true, .shape = EVPG_SHAPE_SUBSCRIPTION_LEASE,
	.place = offsetof(EvpgCatalog, subscription_lease)},
	{.name = "subscription_partition", .table = true, .shape = EVPG_SHAPE_SUBSCRIPTION_PARTITION,
	.place = offsetof(EvpgCatalog, subscription_partition)},
	{.name = "aggregate_type", .table = true, .shape = NO_SHAPE, .place = offsetof(EvpgCatalog, aggregate_type)},
	{.name = "consumer", .table = true, .shape = EVPG_SHAPE_CONSUMER,
	.place = offsetof(EvpgCatalog, consumer_tables[EVPG_CONSUMER_TABLE_CONSUMER])},
	{.name = "dead_letter", .table = true, .shape = NO_SHAPE,
	.place = offsetof(EvpgCatalog, consumer_tables[EVPG_CONSUMER_TABLE_DEAD_LETTER])},
	{.name = "inbox", .table = true, .shape = NO_SHAPE},
	{.name = "interceptor", .table = true, .shape = NO_SHAPE, .place = offsetof(EvpgCatalog, interceptor)},
	{.name = "listener", .table = true, .shape = NO_SHAPE, .place = offsetof(EvpgCatalog, listener)},
	{.name = "parked_event", .table = true, .shape = NO_SHAPE,
	.place = offsetof(EvpgCatalog, consumer_tables[EVPG_CONSUMER_TABLE_PARKED_EVENT])},
	{.name = "projection", .table = true, .shape = NO_SHAPE, .place = offsetof(EvpgCatalog, projection)},
	{.name = "saga", .table = true, .shape = NO_SHAPE, .place = offsetof(EvpgCatalog, saga)},
	{.name = "snapshot", .table = true, .shape = NO_SHAPE, .place = offsetof(EvpgCatalog, snapshot)},
	{.name = "subscription", .table = true, .shape = NO_SHAPE, .place = offsetof(EvpgCatalog, subscription)},
	{.name = "translator", .table = true, .shape = NO_SHAPE, .place = offsetof(EvpgCatalog, translator)},
	{.name = "upcaster", .table = true, .shape = NO_SHAPE, .place = offsetof(EvpgCatalog, upcaster)},
	{.name = "clock", .table = false, .shape = EVPG_SHAPE_CLOCK, .place = offsetof(EvpgCatalog, clock)},
	{.name = "event_position", .table = false, .shape = NO_SHAPE, .place = offsetof(EvpgCatalog, event_position)},
	{.name = "logged_position", .table = false, .shape = NO_SHAPE, .place = offsetof(EvpgCatalog, logged_position)},
	{.name = "timer_timer_id_seq", .table = false, .shape = NO_SHAPE, .place = offsetof(EvpgCatalog, timer_id_sequence)},
	{.name = "fence", .table = false, .shape = NO_SHAPE, .place = offsetof(EvpgCatalog, fence)},
	{.name = "event", .table = false, .shape = EVPG_SHAPE_EVENT},
	{.name = "delivery", .table = false, .shape = EVPG_SHAPE_DELIVERY},
	{.name = "new_event", .table = false, .shape = EVPG_SHAPE_NEW_EVENT},
	{.name = "stream_append", .table = false, .shape = EVPG_SHAPE_STREAM_APPEND},
	{.name = "command", .table = false, .shape = EVPG_SHAPE_COMMAND},
	{.name = "outcome", .table = false, .shape = EVPG_SHAPE_OUTCOME},
	{.name = "projected", .table = false, .shape = EVPG_SHAPE_PROJECTED},
	{.name = "reaction", .table = false, .shape = EVPG_SHAPE_REACTION},
	{.name = "rejection", .table = false, .shape = EVPG_SHAPE_REJECTION},
	{.name = "fired_timer", .table = false, .shape = EVPG_SHAPE_FIRED_TIMER},
	{.name = "stream_info", .table = false, .shape = EVPG_SHAPE_STREAM_INFO},
};

/* Tables into which C code writes rows past the executor: by event_log.c, and by row.c, which fires nothing. */
typedef struct Written
{
	const char *name;			/* of the first relations that are known, in
								 * that order */
	int16		events;			/* TRIGGER_TYPE_... of these rows */
} Written;

static const Written written[] = {
	{"event_log", TRIGGER_TYPE_INSERT},
	{"stream", TRIGGER_TYPE_UPDATE},
	{"projection_state", TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE},
	{"command_record", TRIGGER_TYPE_INSERT},
	{"saga_instance", TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE},
	{"saga_event", TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE | TRIGGER_TYPE_DELETE},
	{"saga_total", TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE},
	{"timer", TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE | TRIGGER_TYPE_DELETE},
	{"subscription_lease", TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE},
	{"subscription_partition", TRIGGER_TYPE_UPDATE},
};

/* Triggers of evpg on the log: evpg_append_only, evpg_writer. */
#define LOG_GUARDS	2

static MemoryContext EvpgCatalogContext = NULL;
static EvpgCatalog catalog;
static EvpgCatalog looked_up;	/* the next one */
static bool catalog_valid = false;
static uint64 catalog_changes = 0;	/* seen by the callbacks */
static uint64 registry_generation = 1;
static uint64 identity = 1;
static uint64 clock_generation = 1;
static uint64 stream_generation = 1;
static uint64 call_number = 0;	/* of the outermost call that is under way, or
								 * was the last */
static int	outermost_level = 0;	/* of settings, of that call; 0: none is
									 * under way */

static void
invalidate_all(void)
{
	catalog_valid = false;
	catalog_changes++;
	for (int i = 0; i < (int) lengthof(known); i++)
		known[i].changes++;
}

static void
invalidate_relation(Datum arg, Oid relid)
{
	if (relid == InvalidOid)
	{
		invalidate_all();
		registry_generation++;
		clock_generation++;
		stream_generation++;
		return;
	}
	if (relid == catalog.aggregate_type || relid == catalog.interceptor || relid == catalog.listener ||
		relid == catalog.projection || relid == catalog.saga || relid == catalog.subscription ||
		relid == catalog.translator || relid == catalog.upcaster)
		registry_generation++;
	else if (relid == catalog.clock)
		clock_generation++;
	else if (relid == catalog.stream)
		stream_generation++;
	for (int i = 0; i < (int) lengthof(known); i++)
		if (relid == known[i].oid)
		{
			catalog_valid = false;
			catalog_changes++;
			known[i].changes++;
			return;
		}
}

static void
invalidate_functions(Datum arg, int cacheid, uint32 hashvalue)
{
	registry_generation++;
}

/* Invalidates all registrations: the role that registered a function may no longer be allowed to (function.c). */
static void
invalidate_roles(Datum arg, int cacheid, uint32 hashvalue)
{
	registry_generation++;
}

static void
invalidate_namespaces(Datum arg, int cacheid, uint32 hashvalue)
{
	invalidate_all();
}

/* Registers the invalidation callbacks; called once, from _PG_init. */
void
EvpgCatalogInit(void)
{
	CacheRegisterRelcacheCallback(invalidate_relation, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, invalidate_functions, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHOID, invalidate_roles, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, invalidate_roles, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, invalidate_namespaces, (Datum) 0);
}

static Oid
lookup_relation(Oid schema, const char *name)
{
	Oid			relid = get_relname_relid(name, schema);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("relation \"evpg.%s\" does not exist", name),
				 errhint("The extension evpg is damaged or being dropped.")));
	return relid;
}

static Oid
get_access_method(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			result;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	result = ((Form_pg_class) GETSTRUCT(tuple))->relam;
	ReleaseSysCache(tuple);
	return result;
}

/*
 * Returns an index of an access method on these columns (the second may be NULL), the first of
 * so many, that is valid and, if asked for, unique, and of all rows unless it is to be partial;
 * else InvalidOid.
 */
static Oid
find_index(Oid schema, const char *name, Oid table, Oid method, const char *first, const char *second, int columns,
		   bool unique, bool partial)
{
	Oid			index = get_relname_relid(name, schema);
	HeapTuple	tuple = OidIsValid(index) ? SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index)) : NULL;
	Form_pg_index form;
	bool		usable;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	form = (Form_pg_index) GETSTRUCT(tuple);
	usable = form->indrelid == table && form->indisvalid && form->indisready && form->indislive &&
		(form->indisunique || !unique) && form->indnkeyatts == columns &&
		form->indkey.values[0] == get_attnum(table, first) &&
		(second == NULL || form->indkey.values[1] == get_attnum(table, second)) &&
		heap_attisnull(tuple, Anum_pg_index_indpred, NULL) == !partial && get_access_method(index) == method;
	ReleaseSysCache(tuple);
	return usable ? index : InvalidOid;
}

/* Raises an error if there is no such index; else returns it. */
static Oid
require_index(Oid index, const char *name, bool unique)
{
	if (!OidIsValid(index))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 unique ? errmsg("unique index \"evpg.%s\" is missing or has been changed", name) :
				 errmsg("index \"evpg.%s\" is missing or has been changed", name),
				 errhint("The extension evpg is damaged or being dropped.")));
	return index;
}

/* Returns a unique index that C code scans; raises an error if there is none of this name and these columns. */
static Oid
lookup_index(Oid schema, const char *name, Oid table, const char *first, const char *second)
{
	return require_index(find_index(schema, name, table, BTREE_AM_OID, first, second, second == NULL ? 1 : 2, true, false),
						 name, true);
}

/*
 * Raises an error if a table of evpg has row security: evpg's functions and
 * views run as the owner of the tables and would show all rows all the same,
 * FORCE ROW LEVEL SECURITY or not.
 */
static void
refuse_row_security(const char *name, Oid table)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(table));
	bool		enabled;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", table);
	enabled = ((Form_pg_class) GETSTRUCT(tuple))->relrowsecurity;
	ReleaseSysCache(tuple);
	if (enabled)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("row security of table evpg.%s would have no effect on the functions of evpg", name),
				 errdetail("They work as the owner of the tables, and show and write all rows."),
				 errhint("ALTER TABLE evpg.%s DISABLE ROW LEVEL SECURITY, and keep tenants apart as operations.md says.",
						 name)));
}

/*
 * Returns why a trigger of a table that C code writes cannot be kept, NULL if
 * it can.  The log fires what comes after an insert (event_log.c).
 */
static const char *
describe_refused_trigger(Form_pg_trigger trigger, HeapTuple tuple, TupleDesc desc, const Written *table, Oid schema)
{
	int16		type = trigger->tgtype;
	bool		is_log = (table == &written[0]);
	bool		no_transition;

	if (trigger->tgenabled == TRIGGER_DISABLED || get_func_namespace(trigger->tgfoid) == schema)
		return NULL;
	/* A row that is not created would be waited for without end. */
	if ((type & table->events) == 0)
		return TRIGGER_FOR_INSERT(type) && TRIGGER_FOR_BEFORE(type) && TRIGGER_FOR_ROW(type) ?
			"It could keep evpg from inserting a row." : NULL;
	if (!is_log)
		/* A foreign key may refer to what never changes. */
		return RI_FKey_trigger_type(trigger->tgfoid) == RI_TRIGGER_PK &&
			(trigger->tgconstrindid == looked_up.stream_id_index || trigger->tgconstrindid == looked_up.stream_key_index ||
			 trigger->tgconstrindid == looked_up.projection_state_key_index ||
			 trigger->tgconstrindid == looked_up.command_record_key_index ||
			 trigger->tgconstrindid == looked_up.saga_instance_key_index) ? NULL : "It would not be fired.";
	(void) heap_getattr(tuple, Anum_pg_trigger_tgnewtable, desc, &no_transition);
	if (!no_transition)
		return "It has a transition table, which would be empty.";
	if (TRIGGER_FOR_BEFORE(type))
		return TRIGGER_FOR_ROW(type) ? "It could change or drop an event that the command has returned." :
			"It would not be fired.";
	return NULL;
}

/*
 * Raises an error if a table that C code writes has something that works with
 * SQL alone.  CHECK and NOT NULL are kept there too (event_log.c, row.c).  Finds
 * out whether the log is guarded.
 */
static void
refuse_additions(Oid schema, const Written *table, Oid relid)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	CatCList   *rules;
	bool		partition;
	int			guards = 0;

	ScanKeyInit(&key, Anum_pg_trigger_tgrelid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relid));
	scan = systable_beginscan(triggers, TriggerRelidNameIndexId, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_trigger trigger = (Form_pg_trigger) GETSTRUCT(tuple);
		const char *why = describe_refused_trigger(trigger, tuple, RelationGetDescr(triggers), table, schema);

		guards += trigger->tgenabled == TRIGGER_FIRES_ALWAYS && get_func_namespace(trigger->tgfoid) == schema;
		if (why != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table evpg.%s has a trigger that evpg cannot fire", table->name),
					 errdetail("Trigger \"%s\": %s", NameStr(trigger->tgname), why),
					 errhint("DROP TRIGGER %s ON evpg.%s, or, if it belongs to a constraint, drop that. "
							 "Use a projection instead, "
							 "or a trigger AFTER INSERT ON evpg.event_log without transition tables.",
							 quote_identifier(NameStr(trigger->tgname)), table->name)));
	}
	systable_endscan(scan);
	table_close(triggers, AccessShareLock);
	if (table == &written[0])
		looked_up.log_is_guarded = (guards == LOG_GUARDS);

	rules = SearchSysCacheList1(RULERELNAME, ObjectIdGetDatum(relid));
	for (int i = 0; i < rules->n_members; i++)
	{
		Form_pg_rewrite rule = (Form_pg_rewrite) GETSTRUCT(&rules->members[i]->tuple);

		if (rule->ev_enabled != RULE_DISABLED &&
			(rule->ev_type == '0' + CMD_INSERT || (rule->ev_type == '0' + CMD_UPDATE && table != &written[0]) ||
			 (rule->ev_type == '0' + CMD_DELETE && TRIGGER_FOR_DELETE(table->events))))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table evpg.%s has a rule that would have no effect", table->name),
					 errdetail("Rule \"%s\": evpg writes the table without SQL.", NameStr(rule->rulename)),
					 errhint("DROP RULE %s ON evpg.%s. Use a projection instead.",
							 quote_identifier(NameStr(rule->rulename)), table->name)));
	}
	ReleaseSysCacheList(rules);

	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	partition = ((Form_pg_class) GETSTRUCT(tuple))->relispartition;
	ReleaseSysCache(tuple);
	if (partition || find_inheritance_children(relid, NoLock) != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table evpg.%s is a partition, or other tables inherit from it", table->name),
				 errdetail("evpg writes and reads rows of this table alone."),
				 errhint("Detach the partition, or end the inheritance by ALTER TABLE with NO INHERIT evpg.%s.",
						 table->name)));
}

/* Looks up the indexes of the tables of consumers that C code scans. */
static void
look_up_consumer_indexes(Oid schema, Oid relid)
{
	if (relid == looked_up.consumer_tables[EVPG_CONSUMER_TABLE_CONSUMER])
		looked_up.consumer_name_index = lookup_index(schema, "consumer_pkey", relid, "name", NULL);
	else if (relid == looked_up.consumer_tables[EVPG_CONSUMER_TABLE_SAGA_TOTAL])
		looked_up.saga_total_key_index = lookup_index(schema, "saga_total_pkey", relid, "saga", "part");
	else if (relid == looked_up.consumer_tables[EVPG_CONSUMER_TABLE_SAGA_EVENT])
	{
		looked_up.saga_event_key_index =
			require_index(find_index(schema, "saga_event_pkey", relid, BTREE_AM_OID, "saga", "key", 3, true, false),
						  "saga_event_pkey", true);
		looked_up.saga_event_position_index =
			require_index(find_index(schema, "saga_event_position_idx", relid, BTREE_AM_OID, "position", NULL, 1, false,
									 false), "saga_event_position_idx", false);
	}
	else if (relid == looked_up.consumer_tables[EVPG_CONSUMER_TABLE_TIMER])
	{
		looked_up.timer_key_index =
			require_index(find_index(schema, "timer_saga_key_name_key", relid, BTREE_AM_OID, "saga", "key", 3, true, false),
						  "timer_saga_key_name_key", true);
		looked_up.timer_due_index =
			require_index(find_index(schema, "timer_due_at_idx", relid, BTREE_AM_OID, "due_at", NULL, 1, false, false),
						  "timer_due_at_idx", false);
	}
	else if (relid == looked_up.consumer_tables[EVPG_CONSUMER_TABLE_PARKED_EVENT])
	{
		looked_up.parked_event_position_index =
			require_index(find_index(schema, "parked_event_name_position_idx", relid, BTREE_AM_OID, "name", "position", 2,
									 false, false), "parked_event_name_position_idx", false);
		looked_up.parked_event_waiting_index =
			require_index(find_index(schema, "parked_event_waiting", relid, BTREE_AM_OID, "name", "position", 2, false,
									 true), "parked_event_waiting", false);
	}
	else if (relid == looked_up.consumer_tables[EVPG_CONSUMER_TABLE_DEAD_LETTER])
		looked_up.dead_letter_key_index =
			require_index(find_index(schema, "dead_letter_saga_key_idx", relid, BTREE_AM_OID, "saga", "key", 2, false, true),
						  "dead_letter_saga_key_idx", false);
}

/* Looks up what else C code needs of a table, if it does: its indexes, and the owner of the log. */
static void
look_up_details(Oid schema, Oid relid)
{
	HeapTuple	tuple;

	if (relid == looked_up.stream)
	{
		looked_up.stream_id_index = lookup_index(schema, "stream_pkey", relid, "stream_id", NULL);
		looked_up.stream_key_index = lookup_index(schema, "stream_aggregate_type_aggregate_id_key", relid,
												  "aggregate_type", "aggregate_id");
	}
	else if (relid == looked_up.projection_state)
		looked_up.projection_state_key_index = lookup_index(schema, "projection_state_pkey", relid, "build", "key");
	else if (relid == looked_up.command_record)
		looked_up.command_record_key_index = lookup_index(schema, "command_record_pkey", relid, "stream_id", "command_id");
	else if (relid == looked_up.saga_instance)
		looked_up.saga_instance_key_index = lookup_index(schema, "saga_instance_pkey", relid, "saga", "key");
	else if (relid == looked_up.subscription_lease)
		looked_up.subscription_lease_index = lookup_index(schema, "subscription_lease_pkey", relid, "subscription", "slot");
	else if (relid == looked_up.subscription_partition)
		looked_up.subscription_partition_index = lookup_index(schema, "subscription_partition_pkey", relid, "subscription",
															  "partition");
	else if (relid == looked_up.event_log)
	{
		looked_up.event_log_event_id_index = lookup_index(schema, "event_log_event_id_key", relid, "event_id", NULL);
		looked_up.event_log_position_index = lookup_index(schema, "event_log_pkey", relid, "position", NULL);
		looked_up.event_log_tags_index = find_index(schema, "event_log_tags", relid, GIN_AM_OID, "tags", NULL, 1, false,
													true);
		looked_up.event_log_type_index = find_index(schema, "event_log_event_type", relid, BTREE_AM_OID,
													"type", "position", 2, false, false);
		looked_up.event_log_stream_index = lookup_index(schema, "event_log_stream_id_version_key", relid,
														"stream_id", "version");
		tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for relation %u", relid);
		looked_up.owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
		ReleaseSysCache(tuple);
	}
	else
		look_up_consumer_indexes(schema, relid);
}

/*
 * Checks a relation if it may have changed since it was last checked.  The
 * count of changes is read first, so that what changes during the check is not
 * missed.
 */
static void
check_relation(Oid schema, Known *relation)
{
	uint64		changes = relation->changes;

	if (OidIsValid(relation->oid) && relation->checked == changes)
		return;
	relation->checked = changes - 1;
	relation->oid = relation->shape == NO_SHAPE ? lookup_relation(schema, relation->name) :
		get_relname_relid(relation->name, schema);
	if (relation->shape != NO_SHAPE)
		(void) EvpgShapeCheck(schema, relation->shape);
	if (relation->place != 0)
		*(Oid *) ((char *) &looked_up + relation->place) = relation->oid;
	if (relation->table)
		refuse_row_security(relation->name, relation->oid);
	if (relation->table)
		look_up_details(schema, relation->oid);
	if (relation < known + lengthof(written))
		refuse_additions(schema, &written[relation - known], relation->oid);
	relation->checked = changes;
}

/* Returns the oid of the relation of a shape that was checked. */
static Oid
find_relation(EvpgShape shape)
{
	int			i = 0;

	while (known[i].shape != shape)
		i++;
	return known[i].oid;
}

/*
 * EvpgCatalogGet
 *		Returns the catalog, valid to the end of the transaction even if it is
 *		then invalidated.  Raises an error if the extension is not installed in
 *		this database, or if one of its relations is not as C code knows it.
 */
const EvpgCatalog *
EvpgCatalogGet(void)
{
	Oid			schema;
	uint64		changes = catalog_changes;

	if (likely(catalog_valid))
		return &catalog;

	schema = get_namespace_oid("evpg", true);
	if (!OidIsValid(schema))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension \"evpg\" is not installed in this database"),
				 errhint("Run CREATE EXTENSION evpg.")));

	for (int i = 0; i < (int) lengthof(known); i++)
		check_relation(schema, &known[i]);

	/*
	 * Descriptors may be in use, and a change that the check lets pass leaves
	 * them right, so they are made once.
	 */
	if (looked_up.event_log != catalog.event_log)
	{
		MemoryContext old;

		if (EvpgCatalogContext == NULL)
			EvpgCatalogContext = AllocSetContextCreate(CacheMemoryContext, "EvpgCatalog",
													   ALLOCSET_SMALL_SIZES);
		old = MemoryContextSwitchTo(EvpgCatalogContext);
		looked_up.event = EvpgShapeType(find_relation(EVPG_SHAPE_EVENT));
		looked_up.delivery = EvpgShapeType(find_relation(EVPG_SHAPE_DELIVERY));
		looked_up.new_event = EvpgShapeType(find_relation(EVPG_SHAPE_NEW_EVENT));
		looked_up.stream_append = EvpgShapeType(find_relation(EVPG_SHAPE_STREAM_APPEND));
		looked_up.command = EvpgShapeType(find_relation(EVPG_SHAPE_COMMAND));
		looked_up.outcome = EvpgShapeType(find_relation(EVPG_SHAPE_OUTCOME));
		looked_up.projected = EvpgShapeType(find_relation(EVPG_SHAPE_PROJECTED));
		looked_up.reaction = EvpgShapeType(find_relation(EVPG_SHAPE_REACTION));
		looked_up.rejection = EvpgShapeType(find_relation(EVPG_SHAPE_REJECTION));
		looked_up.fired_timer = EvpgShapeType(find_relation(EVPG_SHAPE_FIRED_TIMER));
		looked_up.stream_row = EvpgShapeRow(EVPG_SHAPE_STREAM);
		looked_up.projection_state_row = EvpgShapeRow(EVPG_SHAPE_PROJECTION_STATE);
		looked_up.command_record_row = EvpgShapeRow(EVPG_SHAPE_COMMAND_RECORD);
		looked_up.saga_instance_row = EvpgShapeRow(EVPG_SHAPE_SAGA_INSTANCE);
		looked_up.saga_event_row = EvpgShapeRow(EVPG_SHAPE_SAGA_EVENT);
		looked_up.saga_total_row = EvpgShapeRow(EVPG_SHAPE_SAGA_TOTAL);
		looked_up.timer_row = EvpgShapeRow(EVPG_SHAPE_TIMER);
		looked_up.subscription_lease_row = EvpgShapeRow(EVPG_SHAPE_SUBSCRIPTION_LEASE);
		looked_up.subscription_partition_row = EvpgShapeRow(EVPG_SHAPE_SUBSCRIPTION_PARTITION);
		MemoryContextSwitchTo(old);
		identity++;
		registry_generation++;
		clock_generation++;
		stream_generation++;
	}
	catalog = looked_up;
	catalog_valid = (changes == catalog_changes);
	return &catalog;
}

/*
 * EvpgCatalogIsKnown
 *		Returns whether the objects that the catalog knows are there, as far as this session has
 *		been told: DROP EXTENSION tells it before it releases its locks.  If not, they may be
 *		there all the same.
 */
bool
EvpgCatalogIsKnown(void)
{
	return catalog_valid;
}

/*
 * EvpgCatalogOpen
 *		Opens and locks one of evpg's tables, given by where its oid stands in
 *		the catalog.  What the catalog holds of it afterwards, shape and
 *		indexes too, is right for as long as the lock is held: REINDEX
 *		CONCURRENTLY drops an index only when no session that may know it holds
 *		a lock on the table.
 */
Relation
EvpgCatalogOpen(const Oid *table, LOCKMODE mode)
{
	Relation	relation = table_open(*table, mode);

	(void) EvpgCatalogGet();
	return relation;
}

/*
 * EvpgCatalogLockForAppend
 *		Locks the tables that a command writes before it locks or reads anything
 *		else; evpg.stream comes with the stream, the first time.  A lock on a table that
 *		is strengthened later, or comes after that of a row, is a deadlock with
 *		REINDEX.
 */
void
EvpgCatalogLockForAppend(bool command_id)
{
	LockRelationOid(EvpgCatalogGet()->event_log, RowExclusiveLock);
	if (command_id)
		LockRelationOid(EvpgCatalogGet()->command_record, RowExclusiveLock);
}

/*
 * EvpgCatalogLockForConsumer
 *		Locks the tables that a transaction reads and then writes for
 *		consumers, as EvpgCatalogLockForAppend does for a command.  Called
 *		before all other locks of evpg.
 */
void
EvpgCatalogLockForConsumer(void)
{
	for (int i = 0; i < EVPG_CONSUMER_TABLES; i++)
		LockRelationOid(EvpgCatalogGet()->consumer_tables[i], RowExclusiveLock);
	LockRelationOid(EvpgCatalogGet()->saga_instance, RowExclusiveLock);
}

/* Takes the same locks without waiting; returns false if a conflicting lock is held, and then keeps those it has got. */
bool
EvpgCatalogTryLockForConsumer(void)
{
	for (int i = 0; i < EVPG_CONSUMER_TABLES; i++)
		if (!ConditionalLockRelationOid(EvpgCatalogGet()->consumer_tables[i], RowExclusiveLock))
			return false;
	return ConditionalLockRelationOid(EvpgCatalogGet()->saga_instance, RowExclusiveLock);
}

/* Returns a number that changes whenever a registration or a function may have changed. */
uint64
EvpgCatalogRegistryGeneration(void)
{
	return registry_generation;
}

/* Returns a number that changes whenever the clock may have been moved. */
uint64
EvpgCatalogClockGeneration(void)
{
	return clock_generation;
}

/* Returns a number that changes whenever rows of evpg.stream may have been removed, by DDL or with its trigger disabled. */
uint64
EvpgCatalogStreamGeneration(void)
{
	return stream_generation;
}

/* Returns a number that changes when the tables are other ones than before (DROP and CREATE EXTENSION). */
uint64
EvpgCatalogIdentity(void)
{
	return identity;
}

/*
 * EvpgEnterUnpinned
 *		Begins a call from SQL that may run no statement: as EvpgEnter, but the
 *		search_path stays the caller's until EvpgPinSearchPath.  Nothing before that
 *		looks up or prints names without a schema.
 */
void
EvpgEnterUnpinned(EvpgScope *scope, const char *writer)
{
	if (writer != NULL)
	{
		PreventCommandIfReadOnly(writer);
		PreventCommandIfParallelMode(writer);
	}
	/* What another backend registered before this call must be seen. */
	AcceptInvalidationMessages();
	EvpgEnterAs(scope, EvpgCatalogGet()->owner, NULL);
}

/*
 * EvpgEnter
 *		Begins a call from SQL: runs as the owner of the tables, under evpg's
 *		search_path.
 *
 * writer names the function if it writes, else NULL.  An ERROR undoes the
 * switch with the (sub)transaction; otherwise call EvpgLeave.
 */
void
EvpgEnter(EvpgScope *scope, const char *writer)
{
	EvpgEnterUnpinned(scope, writer);
	EvpgPinSearchPath();
}

/* Sets search_path to the end of the current level of settings, unless it is that already. */
static void
set_search_path(const char *search_path)
{
	if (strcmp(namespace_search_path, search_path) == 0)
		return;
	set_config_option("search_path", search_path, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

/*
 * EvpgPinSearchPath
 *		Sets evpg's search_path, to the end of the call that the caller is inside of,
 *		before what depends on it: statements, and code of users that the executor
 *		runs for a table.  One path for all of evpg's own statements, because a saved
 *		plan is analysed anew whenever the path differs from the last time.
 *
 * A command that a module decides needs neither, most of the time.  It must not be set
 * while code of users runs as their role, under its own path.
 */
void
EvpgPinSearchPath(void)
{
	EVPG_REQUIRE(GetUserId() == EvpgCatalogGet()->owner, "evpg does not run as the owner of its tables");
	set_search_path(EVPG_SEARCH_PATH);
}

/*
 * EvpgKeepSearchPath
 *		Sets evpg's search_path for the whole session of a process that makes nothing but calls
 *		of evpg, so that none of them has to: PostgreSQL 15 looks through all settings at the
 *		end of each subtransaction and each call if any has been set.  Outside of a transaction.
 */
void
EvpgKeepSearchPath(void)
{
	(void) set_config_option("search_path", EVPG_SEARCH_PATH, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SET, true, 0, false);
}

/*
 * EvpgEnterAs
 *		Switches to a user and, unless it is NULL, to a search_path, for evpg's own
 *		work or a user's function.
 *
 * The flags are added, never replaced: without them a deferred trigger of that
 * user would later run as the caller.
 */
void
EvpgEnterAs(EvpgScope *scope, Oid userid, const char *search_path)
{
	GetUserIdAndSecContext(&scope->userid, &scope->sec_context);
	SetUserIdAndSecContext(userid, scope->sec_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	scope->guc_level = NewGUCNestLevel();

	/*
	 * A call that an error ended has given its level back, and all levels
	 * inside a call are higher.
	 */
	if (outermost_level == 0 || scope->guc_level <= outermost_level)
	{
		outermost_level = scope->guc_level;
		call_number++;
	}
	if (search_path != NULL)
		set_search_path(search_path);
}

/*
 * Ends what EvpgEnter or EvpgEnterAs began.  Settings that user code made in
 * between go too: else a function of one role could change the search_path of
 * another.
 */
void
EvpgLeave(const EvpgScope *scope)
{
	AtEOXact_GUC(false, scope->guc_level);
	SetUserIdAndSecContext(scope->userid, scope->sec_context);
	if (scope->guc_level == outermost_level)
		outermost_level = 0;
}

/*
 * EvpgCatalogCallNumber
 *		Returns a number that is another one in each outermost call: what a
 *		call with a lower number has used is no longer in use.
 */
uint64
EvpgCatalogCallNumber(void)
{
	return call_number;
}
