/*-------------------------------------------------------------------------
 *
 * consumer.c
 *		Consumers, which read the log by position: asynchronous projections and
 *		sagas.  Which transaction owns one, and its row in evpg.consumer: the
 *		checkpoint, and the event that fails.
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
#include "base/locks.h"
#include "base/statement.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "consumer/activation.h"
#include "consumer/consumer.h"
#include "consumer/crash_suspects.h"
#include "consumer/parked_event.h"
#include "consumer/worker_lock.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"

/*
 * EvpgConsumerLock
 *		Makes this transaction the owner of a consumer; false if it does not wait
 *		and there is another one.
 */
bool
EvpgConsumerLock(const char *name, bool wait)
{
	LOCKTAG		tag;

	EvpgCatalogLockForWork();
	EvpgLockTag(&tag, EVPG_LOCK_CONSUMER, EvpgHashName(name, 0));
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

/* The caller owns the consumer, here and below. */
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

static EvpgStatement delete_consumer = {
	.text = "DELETE FROM evpg.consumer"
	" WHERE name = $1",
	.types = {TEXTOID}
};

/* Its parked events may stay: those that were given up are left out by a rebuild. */
void
EvpgConsumerDrop(const char *name, bool with_parked)
{
	Datum		value = CStringGetTextDatum(name);

	EvpgStatementExecute(&delete_consumer, &value, NULL);
	if (with_parked)
		EvpgParkedEventDeleteAll(name);
	EvpgWakeWaitersAtCommit(EvpgHashPair(name, ""));
}

static EvpgStatement select_consumer = {
	.text = "SELECT status = 'running', checkpoint, error_position, attempts, retry_at, last_error_at,"
	" start_position, server_start, cautious_to, proven, crashes, status = 'stopped'"
	" FROM evpg.consumer"
	" WHERE name = $1",
	.types = {TEXTOID}
};

/* Reads a consumer; false if there is none. */
bool
EvpgConsumerRead(const char *name, EvpgConsumer *consumer)
{
	Datum		value = CStringGetTextDatum(name);
	bool		found = EvpgStatementReadLatest(&select_consumer, &value, NULL) > 0;

	memset(consumer, 0, sizeof(EvpgConsumer));
	consumer->name = name;
	if (found)
	{
		Datum		running;

		(void) EvpgResultDatum(0, 1, &running);
		consumer->running = DatumGetBool(running);
		consumer->checkpoint = EvpgResultInt64(0, 2);
		consumer->error_position = EvpgResultInt64(0, 3);
		consumer->attempts = (int) EvpgResultInt64(0, 4);
		consumer->retry_at = EvpgResultInt64(0, 5);
		consumer->last_error_at = EvpgResultInt64(0, 6);
		consumer->start_position = EvpgResultInt64(0, 7);
		consumer->server_start = EvpgResultInt64(0, 8);
		consumer->cautious_to = EvpgResultInt64(0, 9);
		consumer->proven = EvpgResultInt64(0, 10);
		consumer->crashes = (int) EvpgResultInt64(0, 11);
		(void) EvpgResultDatum(0, 12, &running);
		consumer->stopped = DatumGetBool(running);
	}
	EvpgStatementDone();
	return found;
}

static EvpgStatement select_consumers = {
	.text = "SELECT name"
	" FROM evpg.consumer"
	" WHERE kind = $1 AND status = 'running' ORDER BY name",
	.types = {TEXTOID}
};

/* Names of the consumers of a kind that are running, in CurrentMemoryContext. */
static List *
names_of(const char *kind)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		value = CStringGetTextDatum(kind);
	uint64		rows = EvpgStatementReadLatest(&select_consumers, &value, NULL);
	List	   *names = NIL;

	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old;
		Datum		name;

		(void) EvpgResultDatum(row, 1, &name);
		old = MemoryContextSwitchTo(caller);
		names = lappend(names, TextDatumGetCString(name));
		MemoryContextSwitchTo(old);
	}
	EvpgStatementDone();
	return names;
}

/* None of them need be owned. */
List *
EvpgConsumerListProjections(void)
{
	return names_of("projection");
}

List *
EvpgConsumerListSagas(void)
{
	return names_of("saga");
}

static EvpgStatement update_consumer_advance = {
	.text = "UPDATE evpg.consumer"
	" SET checkpoint = $2, events_total = events_total + $3, proven = proven + $3, crashes = 0, updated_at ="
	" evpg.clock_timestamp(), attempts = CASE WHEN error_position > $2 THEN attempts ELSE 0 END, retry_at ="
	" CASE WHEN error_position > $2 THEN retry_at END, error_position = CASE WHEN error_position > $2 THEN"
	" error_position END"
	" WHERE name = $1",
	.types = {TEXTOID, INT8OID, INT8OID}
};

/* Moves the checkpoint; an error at or before it is over. */
void
EvpgConsumerAdvance(const EvpgConsumer *consumer, int64 checkpoint, int64 events)
{
	Datum		values[3] = {CStringGetTextDatum(consumer->name), Int64GetDatum(checkpoint), Int64GetDatum(events)};

	EvpgStatementExecute(&update_consumer_advance, values, NULL);
	EvpgWakeWaitersAtCommit(EvpgHashPair(consumer->name, ""));
}

static EvpgStatement update_consumer_restart = {
	.text = "UPDATE evpg.consumer"
	" SET checkpoint = $2, error_position = NULL, attempts = 0, retry_at = NULL, crashes = 0, status = CASE"
	" status WHEN 'stopped' THEN 'running' ELSE status END, updated_at = evpg.clock_timestamp()"
	" WHERE name = $1",
	.types = {TEXTOID, INT8OID}
};

/* Starts over from a checkpoint, with no error; what was paused stays so. */
void
EvpgConsumerRestart(const char *name, int64 checkpoint)
{
	Datum		values[2] = {CStringGetTextDatum(name), Int64GetDatum(checkpoint)};

	EvpgStatementExecute(&update_consumer_restart, values, NULL);
	EvpgWakeWaitersAtCommit(EvpgHashPair(name, ""));
}

static EvpgStatement update_consumer_fail = {
	.text = "UPDATE evpg.consumer"
	" SET errors_total = errors_total + (NOT $9)::int4, error_position = NULLIF($2, 0), attempts = $3,"
	" retry_at = $4, crashes = 0, status = CASE WHEN $5 THEN 'stopped' ELSE status END, last_error = $6,"
	" last_sqlstate = $7, last_context = $8, last_error_at = evpg.clock_timestamp(), updated_at ="
	" evpg.clock_timestamp()"
	" WHERE name = $1",
	.types = {TEXTOID, INT8OID, INT4OID, TIMESTAMPTZOID, BOOLOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID}
};

/* Keeps what went wrong; position 0 is the consumer itself.  again: it has been counted before. */
void
EvpgConsumerFail(const EvpgConsumer *consumer, int64 position, int attempts, TimestampTz retry_at, bool stop,
				 bool again, const ErrorData *error)
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
	values[8] = BoolGetDatum(again);
	EvpgStatementExecute(&update_consumer_fail, values, nulls);
	/* Who waits is told that there is nothing to come. */
	if (stop)
		EvpgWakeWaitersAtCommit(EvpgHashPair(consumer->name, ""));
}
