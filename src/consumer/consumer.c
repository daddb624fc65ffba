/*-------------------------------------------------------------------------
 *
 * consumer.c
 *		Consumers, which read the log by position: asynchronous projections and
 *		sagas.  The lock of a consumer, its row in evpg.consumer, and the event that
 *		fails.  How the checkpoint moves is in checkpoint.c.
 *
 * A consumer has one owner at a time: the transaction that holds the advisory
 * lock of its name, in a lock class of evpg's own.  Workers try the lock and go
 * on to the next consumer if it is taken.  A session that changes a consumer from
 * outside waits for the lock, which takes a batch at most, and cancels a worker
 * that does not come to its end (worker_lock.c).  The order of locks is:
 * consumer, saga, fence, keys.
 *
 * Rows are read with the latest snapshot, since the lock was taken after the
 * snapshot of the transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/catalog.h"
#include "base/clock.h"
#include "base/locks.h"
#include "base/retry.h"
#include "base/row_scan.h"
#include "base/statement.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "consumer/activation.h"
#include "consumer/consumer.h"
#include "consumer/crash_suspects.h"
#include "consumer/parked_event.h"
#include "consumer/worker_lock.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"

/* The pause after the first cancel in a row, in ms. */
#define FIRST_CANCEL_PAUSE 100

/*
 * EvpgConsumerLock
 *		Makes this transaction the owner of a consumer, until its end; returns false if
 *		it may not wait and another transaction is the owner.  After
 *		EvpgCatalogLockForConsumer, and before all other locks of evpg.
 */
bool
EvpgConsumerLock(const char *name, bool wait)
{
	LOCKTAG		tag;

	EvpgCatalogLockForConsumer();
	EvpgSetLockTag(&tag, EVPG_LOCK_CONSUMER, EvpgHashName(name, 0));
	if (!EvpgLockAcquire(&tag, ExclusiveLock, wait))
		return false;

	/*
	 * What the last owner registered must be seen: an advisory lock does not
	 * see to that.
	 */
	AcceptInvalidationMessages();
	return true;
}

static EvpgStatement insert_consumer = {
	.text = "INSERT INTO evpg.consumer (name, kind, checkpoint, start_position, server_start)"
	" VALUES ($1, $2, $3, $3, $4)",
	.types = {TEXTOID, TEXTOID, INT8OID, INT8OID}
};

/*
 * EvpgConsumerCreate
 *		Inserts the row of a consumer that begins after a position; kind is
 *		'projection', 'saga' or 'subscription'.  The caller owns the consumer.
 */
void
EvpgConsumerCreate(const char *name, const char *kind, int64 checkpoint)
{
	Datum		values[4] = {
		CStringGetTextDatum(name),
		CStringGetTextDatum(kind),
		Int64GetDatum(checkpoint),
		Int64GetDatum(EvpgServerStartId())
	};

	EvpgStatementExecute(&insert_consumer, values, NULL);
	EvpgActivationNotice();
}

static EvpgStatement select_other_kind = {
	.text = "SELECT k.kind"
	" FROM (SELECT 'projection' AS kind FROM evpg.projection WHERE name = $1"
	" UNION ALL SELECT 'saga' FROM evpg.saga WHERE name = $1"
	" UNION ALL SELECT 'subscription' FROM evpg.subscription WHERE name = $1) k"
	" WHERE k.kind <> $2 LIMIT 1",
	.types = {TEXTOID, TEXTOID}
};

/*
 * EvpgConsumerRefuseName
 *		Raises 42710 if a name is that of a projection, saga or subscription of another kind.
 *		The caller owns the consumer of that name.
 */
void
EvpgConsumerRefuseName(const char *name, const char *kind)
{
	Datum		values[2] = {CStringGetTextDatum(name), CStringGetTextDatum(kind)};
	List	   *other = EvpgStatementReadTexts(&select_other_kind, values, NULL);

	if (other != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("%s \"%s\" already exists", (char *) linitial(other), name),
				 errhint("Projections, sagas and subscriptions share one name space.")));
}

static EvpgStatement delete_consumer = {
	.text = "DELETE FROM evpg.consumer"
	" WHERE name = $1",
	.types = {TEXTOID}
};

/*
 * EvpgConsumerDrop
 *		Deletes the row of a consumer, if there is one; with_parked also the events that
 *		it has put aside, which a rebuild would leave out.  Wakes the sessions that wait
 *		for the consumer at commit.  The caller owns the consumer.
 */
void
EvpgConsumerDrop(const char *name, bool with_parked)
{
	Datum		value = CStringGetTextDatum(name);

	EvpgStatementExecute(&delete_consumer, &value, NULL);
	if (with_parked)
		EvpgParkedEventDeleteAll(name);
	EvpgWakeWaitersAtCommit(EvpgHashPair(name, ""));
}

/* Columns of evpg.consumer, see sql/evpg--1.0.sql. */
enum
{
	CONSUMER_NAME, CONSUMER_KIND, CONSUMER_STATUS, CONSUMER_CHECKPOINT, CONSUMER_START_POSITION, CONSUMER_EVENTS_TOTAL,
	CONSUMER_ERRORS_TOTAL, CONSUMER_ATTEMPTS, CONSUMER_ERROR_POSITION, CONSUMER_RETRY_AT, CONSUMER_LAST_ERROR,
	CONSUMER_LAST_SQLSTATE, CONSUMER_LAST_CONTEXT, CONSUMER_LAST_ERROR_AT, CONSUMER_CREATED_AT, CONSUMER_UPDATED_AT,
	CONSUMER_CRASHES, CONSUMER_SERVER_START, CONSUMER_CAUTIOUS_TO, CONSUMER_PROVEN
};

/* Returns a number, or a time, of a row; 0 if it is NULL. */
static int64
get_number(const TupleTableSlot *row, int column)
{
	return row->tts_isnull[column] ? 0 : DatumGetInt64(row->tts_values[column]);
}

static bool
column_is(const TupleTableSlot *row, int column, const char *string)
{
	return strcmp(TextDatumGetCString(row->tts_values[column]), string) == 0;
}

static void
fill_consumer(const TupleTableSlot *row, EvpgConsumer *consumer)
{
	consumer->is_saga = column_is(row, CONSUMER_KIND, "saga");
	consumer->is_subscription = column_is(row, CONSUMER_KIND, "subscription");
	consumer->running = column_is(row, CONSUMER_STATUS, "running");
	consumer->stopped = column_is(row, CONSUMER_STATUS, "stopped");
	consumer->checkpoint = get_number(row, CONSUMER_CHECKPOINT);
	consumer->start_position = get_number(row, CONSUMER_START_POSITION);
	consumer->error_position = get_number(row, CONSUMER_ERROR_POSITION);
	consumer->attempts = DatumGetInt32(row->tts_values[CONSUMER_ATTEMPTS]);
	consumer->retry_at = get_number(row, CONSUMER_RETRY_AT);
	consumer->last_error_at = get_number(row, CONSUMER_LAST_ERROR_AT);
	consumer->server_start = get_number(row, CONSUMER_SERVER_START);
	consumer->cautious_to = get_number(row, CONSUMER_CAUTIOUS_TO);
	consumer->proven = get_number(row, CONSUMER_PROVEN);
	consumer->crashes = DatumGetInt32(row->tts_values[CONSUMER_CRASHES]);
}

/*
 * Where this session has seen the rows of consumers last: each batch replaces one, and what
 * reads them, each reaction of a saga for one, need not search the index.
 */
#define CONSUMER_PLACES 8

static ItemPointerData consumer_places[CONSUMER_PLACES];

/*
 * EvpgConsumerRead
 *		Reads the row of a consumer with the latest snapshot; returns false if there is
 *		none.  name must live as long as *consumer.  The row stays as it is read only if
 *		the caller owns the consumer.
 */
bool
EvpgConsumerRead(const char *name, EvpgConsumer *consumer)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	EvpgRowScan *scan = EvpgRowScanBegin(&catalog->consumer_tables[EVPG_CONSUMER_TABLE_CONSUMER],
										 &catalog->consumer_name_index, false);
	ItemPointerData *place = &consumer_places[EvpgHashName(name, 0) % CONSUMER_PLACES];
	ScanKeyData keys[1];
	TupleTableSlot *row;
	bool		found;

	memset(consumer, 0, sizeof(EvpgConsumer));
	consumer->name = name;
	EvpgRowKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(name));
	row = EvpgRowScanAt(scan, place, keys, 1);
	found = (row != NULL);
	if (found)
	{
		fill_consumer(row, consumer);
		*place = row->tts_tid;
	}
	EvpgRowScanEnd(scan);
	return found;
}

static EvpgStatement select_running_consumers = {
	.text = "SELECT name, crashes > 0 OR server_start = 0"
	" FROM evpg.consumer"
	" WHERE kind = $1 AND status = 'running' ORDER BY name",
	.types = {TEXTOID}
};

/*
 * EvpgConsumerList
 *		Lists the names of the consumers of a kind, 'projection' or 'saga', that run (char *),
 *		in CurrentMemoryContext; none need be owned.  With suspects those whose code may
 *		have crashed the server, or ended its session, last are appended to that list instead.
 */
List *
EvpgConsumerList(const char *kind, List **suspects)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		value = CStringGetTextDatum(kind);
	uint64		rows = EvpgStatementReadLatest(&select_running_consumers, &value, NULL);
	MemoryContext spi = MemoryContextSwitchTo(caller);
	List	   *names = NIL;

	for (uint64 row = 0; row < rows; row++)
	{
		if (suspects != NULL && EvpgResultInt64(row, 2) != 0)
			*suspects = lappend(*suspects, EvpgResultText(row, 1));
		else
			names = lappend(names, EvpgResultText(row, 1));
	}
	MemoryContextSwitchTo(spi);
	EvpgStatementDone();
	return names;
}

static EvpgStatement postpone_consumer = {
	.text = "UPDATE evpg.consumer"
	" SET retry_at = $2, crashes = 0, updated_at = evpg.clock_timestamp()"
	" WHERE name = $1",
	.types = {TEXTOID, TIMESTAMPTZOID}
};

/*
 * EvpgConsumerPostpone
 *		Lets a consumer wait until a time, after its worker was cancelled: that is no error
 *		of the consumer, and none is recorded.  The caller owns the consumer.
 */
void
EvpgConsumerPostpone(const EvpgConsumer *consumer, TimestampTz retry_at)
{
	Datum		values[2] = {CStringGetTextDatum(consumer->name), TimestampTzGetDatum(retry_at)};

	EvpgStatementExecute(&postpone_consumer, values, NULL);
}

static EvpgStatement update_consumer_error = {
	.text = "UPDATE evpg.consumer"
	" SET errors_total = errors_total + (NOT $9)::int4, error_position = NULLIF($2, 0), attempts = $3,"
	" retry_at = $4, crashes = 0, status = CASE WHEN $5 THEN 'stopped' ELSE status END,"
	" last_error = $6, last_sqlstate = $7, last_context = $8,"
	" last_error_at = evpg.clock_timestamp(), updated_at = evpg.clock_timestamp()"
	" WHERE name = $1",
	.types = {TEXTOID, INT8OID, INT4OID, TIMESTAMPTZOID, BOOLOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID}
};

/*
 * EvpgConsumerRecordError
 *		Writes down that an event fails, or, at position 0, the consumer itself: how
 *		many attempts there were, and when the next one is due; with stop, that the
 *		consumer stops, of which waiting sessions are told at commit.  An error that was
 *		counted before is not counted again in errors_total.  The caller owns the
 *		consumer.
 */
void
EvpgConsumerRecordError(const EvpgConsumer *consumer, int64 position, int attempts, TimestampTz retry_at, bool stop,
						bool counted_before, const ErrorData *error)
{
	Datum		values[9] = {
		CStringGetTextDatum(consumer->name),
		Int64GetDatum(position),
		Int32GetDatum(attempts),
		TimestampTzGetDatum(retry_at),
		BoolGetDatum(stop)
	};
	char		nulls[9] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '};

	EvpgParameterError(values, nulls, 5, error);
	values[8] = BoolGetDatum(counted_before);
	EvpgStatementExecute(&update_consumer_error, values, nulls);
	if (stop)
		EvpgWakeWaitersAtCommit(EvpgHashPair(consumer->name, ""));
}

/* Reports in the server log that the worker was cancelled in a batch of a consumer, for the first time in a row. */
void
EvpgConsumerReportCancel(const EvpgConsumer *consumer)
{
	ereport(WARNING,
			(errmsg("a worker was cancelled in a batch of %s \"%s\" of database \"%s\"",
					consumer->is_saga ? "saga" : "projection", consumer->name, get_database_name(MyDatabaseId)),
			 errdetail("By pg_cancel_backend(), from another session or from the code itself."),
			 errhint("It is tried again, each time after a longer pause; evpg.stat_consumer shows until when it waits.")));
}

/*
 * EvpgConsumerRecordCancel
 *		Writes down that the worker was cancelled in a batch of a consumer, of which nothing
 *		is left, unless another session owns the consumer; and lowers *next to when it is
 *		tried again: later each time.  Instances of a saga react meanwhile, if it has routed
 *		events to them.
 */
void
EvpgConsumerRecordCancel(const char *name, const ErrorData *error, TimestampTz *next)
{
	EvpgConsumer consumer;
	EvpgScope	scope;
	TimestampTz retry_at;
	int64		position;

	if (!EvpgConsumerLock(name, false))
		return;
	EvpgEnter(&scope, NULL);
	if (EvpgConsumerRead(name, &consumer) && consumer.running)
	{
		if (consumer.retry_at == 0)
			EvpgConsumerReportCancel(&consumer);
		retry_at = EvpgRetryAfterTransient(consumer.last_error_at, consumer.retry_at, FIRST_CANCEL_PAUSE);
		position = consumer.error_position != 0 ? consumer.error_position : consumer.checkpoint + 1;
		EvpgConsumerRecordError(&consumer, position, consumer.attempts, retry_at, false, true, error);
		*next = Min(*next, EvpgClockWall(retry_at));
	}
	EvpgLeave(&scope);
}
