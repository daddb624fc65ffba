/*-------------------------------------------------------------------------
 *
 * saga.c
 *		Keeps the registered sagas for the session, all versions of each.
 *
 * Instances keep the version they began with; the highest one begins new ones.
 *
 * Memory: all sagas are in one context below EvpgRegistrationMemory().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/locks.h"
#include "base/names.h"
#include "base/registration.h"
#include "base/row.h"
#include "base/row_scan.h"
#include "base/statement.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "saga/saga.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

static EvpgStatement select_sagas = {
	.text =
	"SELECT name, version, library, symbol, handler, rejection_handler, timer_handler, key_function, key_path,"
	"       aggregate_types, event_types, start_event_types, initial_state, transitions, max_attempts,"
	"       (EXTRACT(epoch FROM backoff) * 1000000)::int8, (EXTRACT(epoch FROM max_backoff) * 1000000)::int8,"
	"       search_path, registered_by,"
	"       first_value(mode = 'inline') OVER (PARTITION BY name ORDER BY version DESC)"
	"  FROM evpg.saga"
	" ORDER BY name, version DESC"
};

enum
{
	SAGA_NAME = 1, SAGA_VERSION, SAGA_LIBRARY, SAGA_SYMBOL, SAGA_HANDLER, SAGA_REJECTION_HANDLER, SAGA_TIMER_HANDLER,
	SAGA_KEY_FUNCTION, SAGA_KEY_PATH, SAGA_AGGREGATE_TYPES, SAGA_EVENT_TYPES, SAGA_START_EVENT_TYPES,
	SAGA_INITIAL_STATE, SAGA_TRANSITIONS, SAGA_MAX_ATTEMPTS, SAGA_BACKOFF, SAGA_MAX_BACKOFF, SAGA_SEARCH_PATH,
	SAGA_REGISTERED_BY, SAGA_IS_INLINE
};

/* Makes a saga of a row of select_sagas, in CurrentMemoryContext. */
static void *
make_saga(uint64 row)
{
	EvpgSaga   *saga = palloc0(sizeof(EvpgSaga));
	Datum		path;

	saga->context = CurrentMemoryContext;
	saga->name = EvpgResultText(row, SAGA_NAME);
	saga->version = (int) EvpgResultInt64(row, SAGA_VERSION);
	saga->library = EvpgResultText(row, SAGA_LIBRARY);
	saga->has_module = (saga->library != NULL);
	saga->symbol = EvpgResultText(row, SAGA_SYMBOL);
	saga->handler_signature = EvpgResultText(row, SAGA_HANDLER);
	saga->rejection_signature = EvpgResultText(row, SAGA_REJECTION_HANDLER);
	saga->timer_signature = EvpgResultText(row, SAGA_TIMER_HANDLER);
	saga->key_signature = EvpgResultText(row, SAGA_KEY_FUNCTION);
	if (EvpgResultDatum(row, SAGA_KEY_PATH, &path))
		saga->key_path = PG_DETOAST_DATUM_COPY(path);
	saga->aggregate_types = EvpgResultNames(row, SAGA_AGGREGATE_TYPES);
	saga->event_types = EvpgResultNames(row, SAGA_EVENT_TYPES);
	saga->start_event_types = EvpgResultNames(row, SAGA_START_EVENT_TYPES);
	saga->initial_state = EvpgResultJsonb(row, SAGA_INITIAL_STATE);
	saga->transitions = EvpgResultJsonb(row, SAGA_TRANSITIONS);
	saga->max_attempts = (int) EvpgResultInt64(row, SAGA_MAX_ATTEMPTS);
	saga->backoff = EvpgResultInt64(row, SAGA_BACKOFF);
	saga->max_backoff = EvpgResultInt64(row, SAGA_MAX_BACKOFF);
	saga->search_path = EvpgResultText(row, SAGA_SEARCH_PATH);
	saga->registered_by = EvpgResultText(row, SAGA_REGISTERED_BY);
	saga->is_inline = EvpgResultInt64(row, SAGA_IS_INLINE) != 0;
	return saga;
}

/* By name, the highest version first. */
static EvpgRegistrationList sagas = {.kind = "sagas", .select = &select_sagas, .make = make_saga};

/*
 * EvpgSagaGet
 *		Returns a version of a saga, the highest if version is 0.  If it is not
 *		registered, returns NULL if missing_ok, else raises an error.  Lives to the end
 *		of the transaction at least.  The caller is inside EvpgEnter.
 */
EvpgSaga *
EvpgSagaGet(const char *name, int version, bool missing_ok)
{
	ListCell   *cell;

	foreach(cell, EvpgRegistrationListGet(&sagas))
	{
		EvpgSaga   *saga = lfirst(cell);

		if (strcmp(saga->name, name) == 0 && (version == 0 || saga->version == version))
			return saga;
	}
	if (!missing_ok)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_UNKNOWN_CONSUMER),
				 errmsg("saga \"%s\" is not registered", name)));
	return NULL;
}

/* Returns all versions of a saga, the highest first, as a list in CurrentMemoryContext; NIL if it is not registered. */
List *
EvpgSagaVersions(const char *name)
{
	List	   *versions = NIL;
	ListCell   *cell;

	foreach(cell, EvpgRegistrationListGet(&sagas))
		if (strcmp(((EvpgSaga *) lfirst(cell))->name, name) == 0)
		versions = lappend(versions, lfirst(cell));
	return versions;
}

static EvpgStatement select_inline_consumer = {
	.text =
	"SELECT status = 'running' AND evpg.is_activated(), start_position FROM evpg.consumer WHERE name = $1",
	.types = {TEXTOID}
};

/*
 * Completes a version of an inline saga by its consumer, if it is not yet.  Only
 * these: appends that no inline saga takes need no table of consumers, and do not
 * wait if one of these is locked.
 */
static void
complete_inline_saga(EvpgSaga *saga)
{
	Datum		name = CStringGetTextDatum(saga->name);

	if (saga->is_complete)
		return;
	if (EvpgStatementReadLatest(&select_inline_consumer, &name, NULL) > 0)
	{
		saga->runs = EvpgResultInt64(0, 1) != 0;
		saga->start_position = EvpgResultInt64(0, 2);
	}
	EvpgStatementDone();
	saga->is_complete = true;
}

/*
 * EvpgSagaListInline
 *		Lists the versions of inline sagas that take an event, the highest of each
 *		saga first, in CurrentMemoryContext; NIL for nearly all events.
 */
List *
EvpgSagaListInline(const EvpgEvent *event)
{
	List	   *found = NIL;
	ListCell   *cell;

	foreach(cell, EvpgRegistrationListGet(&sagas))
	{
		EvpgSaga   *saga = lfirst(cell);

		if (!saga->is_inline || !EvpgSagaTakes(saga, event))
			continue;
		complete_inline_saga(saga);
		if (event->position > saga->start_position)
			found = lappend(found, saga);
	}
	return found;
}

/* Returns whether the name of a mode is that of inline sagas; raises 22023 if there is no such mode. */
bool
EvpgSagaModeIsInline(const char *mode)
{
	if (strcmp(mode, "inline") != 0 && strcmp(mode, "async") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown saga mode \"%s\"", mode),
				 errhint("Use inline or async.")));
	return strcmp(mode, "inline") == 0;
}

static EvpgStatement delete_unused_versions = {
	.text =
	"DELETE FROM evpg.saga s"
	" WHERE s.name = $1 AND s.version < $2"
	"       AND NOT EXISTS (SELECT FROM evpg.saga_instance i"
	"                        WHERE i.saga = s.name AND i.saga_version = s.version AND i.status = 'running')",
	.types = {TEXTOID, INT4OID}
};

/*
 * EvpgSagaDeleteUnusedVersions
 *		Deletes the versions below the highest one that no running instance has any
 *		more; false if there are none.  The caller holds the lock of the consumer.
 */
bool
EvpgSagaDeleteUnusedVersions(const char *name, int version)
{
	Datum		values[2] = {CStringGetTextDatum(name), Int32GetDatum(version)};
	bool		retired = EvpgStatementRun(&delete_unused_versions, values, NULL) > 0;

	EvpgStatementDone();
	if (retired)
		EvpgRegistrationInvalidate(EvpgCatalogGet()->saga);
	return retired;
}

/* Returns whether the saga reacts to an event by its types; not if the event was injected without sagas. */
bool
EvpgSagaTakes(const EvpgSaga *saga, const EvpgEvent *event)
{
	return EvpgNamesHave(saga->aggregate_types, event->aggregate_type) &&
		EvpgNamesHave(saga->event_types, event->type) && EvpgEventBookkeeping(event, "no_sagas") == NULL;
}

/* Lists the types of events, or of their aggregates, that any version takes; NIL: all. */
static List *
list_types(List *versions, bool of_aggregates)
{
	List	   *all = NIL;
	ListCell   *cell;

	foreach(cell, versions)
	{
		EvpgSaga   *saga = lfirst(cell);
		List	   *types = of_aggregates ? saga->aggregate_types : saga->event_types;
		ListCell   *type;

		if (types == NIL)
			return NIL;
		foreach(type, types)
			if (all == NIL || !EvpgNamesHave(all, lfirst(type)))
			all = lappend(all, lfirst(type));
	}
	return all;
}

/* Returns a filter of the log that lets through the events between two positions which any of some versions may take. */
EvpgLogFilter
EvpgSagaFilter(List *versions, int64 after, int64 upto)
{
	return (EvpgLogFilter)
	{
		.after = after,
			.upto = upto,
			.aggregate_types = list_types(versions, true),
			.event_types = list_types(versions, false)
	};
}

/* Returns whether an event may begin an instance. */
bool
EvpgSagaStarts(const EvpgSaga *saga, const EvpgEvent *event)
{
	return EvpgNamesHave(saga->start_event_types, event->type);
}

/* ------------------------------------------------------------------ totals */

static EvpgStatement add_to_total = {
	.text =
	"UPDATE evpg.saga_total SET dispatched = dispatched + $3, dead_lettered = dead_lettered + $4"
	" WHERE saga = $1 AND part = $2",
	.types = {TEXTOID, UUIDOID, INT8OID, INT8OID}
};

/* Fails to serialize if the row is there, but not for the snapshot of the transaction. */
static EvpgStatement insert_total = {
	.text =
	"INSERT INTO evpg.saga_total AS t (saga, part, dispatched, dead_lettered) VALUES ($1, $2, $3, $4)"
	" ON CONFLICT (saga, part) DO UPDATE"
	" SET dispatched = t.dispatched + excluded.dispatched, dead_lettered = t.dead_lettered + excluded.dead_lettered",
	.types = {TEXTOID, UUIDOID, INT8OID, INT8OID}
};

/* Columns of evpg.saga_total, see sql/evpg--1.0.sql, and the parameters of both statements. */
enum
{
	TOTAL_SAGA, TOTAL_PART, TOTAL_DISPATCHED, TOTAL_DEAD_LETTERED, TOTAL_NATTS
};

/*
 * Where this session has written the row of a part last: each reaction replaces one, so
 * while a snapshot is held, the index leads to as many versions as there were reactions.
 */
#define TOTAL_PLACES 8

static ItemPointerData total_places[TOTAL_PLACES];

/* Returns the place of a part, which need not be its own. */
static ItemPointerData *
get_total_place(const Datum *added)
{
	text	   *saga = DatumGetTextPP(added[TOTAL_SAGA]);
	uint32		hash = hash_bytes((unsigned char *) VARDATA_ANY(saga), VARSIZE_ANY_EXHDR(saga));

	/* The last byte counts the parts. */
	return &total_places[(hash + DatumGetUUIDP(added[TOTAL_PART])->data[UUID_LEN - 1]) % TOTAL_PLACES];
}

/* Finds the row of a part; NULL if there is none. */
static HeapTuple
find_total(const Datum *added)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	ScanKeyData keys[2];

	EvpgRowKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ, added[TOTAL_SAGA]);
	EvpgRowKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_UUID_EQ, added[TOTAL_PART]);
	return EvpgRowFindAt(&catalog->consumer_tables[EVPG_CONSUMER_TABLE_SAGA_TOTAL], &catalog->saga_total_key_index,
						 get_total_place(added), keys, lengthof(keys), true);
}

/* Adds to the row of a part, which is locked, or inserts it, without a statement. */
static void
add_directly(const Datum *added)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	const Oid  *table = &catalog->consumer_tables[EVPG_CONSUMER_TABLE_SAGA_TOTAL];
	bool		written = false;

	while (!written)
	{
		HeapTuple	row = find_total(added);
		EvpgRowWriter *writer = EvpgRowWriterBegin(table, &catalog->saga_total_row);
		bool		nulls[TOTAL_NATTS] = {false};
		bool		replaced[TOTAL_NATTS] = {[TOTAL_DISPATCHED] = true,[TOTAL_DEAD_LETTERED] = true};
		Datum		values[TOTAL_NATTS];

		if (row == NULL)
			written = EvpgRowInsert(writer, unconstify(Datum *, added), nulls) != NULL;
		else
		{
			heap_deform_tuple(row, catalog->saga_total_row, values, nulls);
			for (int column = TOTAL_DISPATCHED; column <= TOTAL_DEAD_LETTERED; column++)
				values[column] = Int64GetDatum(DatumGetInt64(values[column]) + DatumGetInt64(added[column]));
			written = EvpgRowTryReplace(writer, row, values, nulls, replaced, true);
		}
		if (written)
			*get_total_place(added) = EvpgRowWriterPlace(writer);
		EvpgRowWriterEnd(writer);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Returns the number, from 1, of a part of the totals that no other transaction adds to, and locks it. */
static int
lock_total(const char *saga)
{
	int			part = 0;
	LOCKTAG		tag;

	do
		EvpgSetLockTag(&tag, EVPG_LOCK_TOTAL, EvpgHashName(saga, ++part));
	while (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL);
	return part;
}

/*
 * EvpgSagaAddTotals
 *		Adds to the totals of a saga: commands that were sent, dead letters that
 *		were written.  The totals commit with what they count, so each is counted once,
 *		whatever was tried, and a crash takes back both or none.
 */
void
EvpgSagaAddTotals(const char *saga, int64 dispatched, int64 dead_lettered)
{
	uint32		part = pg_hton32((uint32) lock_total(saga));
	pg_uuid_t	id = {0};
	Datum		values[TOTAL_NATTS] = {
		[TOTAL_SAGA] = CStringGetTextDatum(saga),
		[TOTAL_PART] = UUIDPGetDatum(&id),
		[TOTAL_DISPATCHED] = Int64GetDatum(dispatched),
		[TOTAL_DEAD_LETTERED] = Int64GetDatum(dead_lettered)
	};

	memcpy(id.data + sizeof(id.data) - sizeof(part), &part, sizeof(part));
	if (!IsolationUsesXactSnapshot())
		add_directly(values);
	else if (EvpgStatementExecute(&add_to_total, values, NULL) == 0)
		EvpgStatementExecute(&insert_total, values, NULL);
}
