/*
 * consumer.c
 *		Consumers of bench/run that read the log to its end, and measure how many
 *		events a second they get.
 *
 * usage: consumer KIND CONSUMERS BATCH EVENTS SECONDS
 *
 * KIND is how a consumer gets its next BATCH events:
 *
 *	fetch		evpg_fetch, then evpg_ack, each a transaction
 *	next		evpg_ack, and evpg_fetch of the batch behind it, in one transaction
 *				and one round trip
 *	cycle		like fetch, and when there is no more, from the beginning again
 *	select		a SELECT of the view evpg.event, by position; consumers read parts of
 *				the log of equal length
 *	read		evpg_read_all, likewise
 *	queue		from a table bench.queue that has a row for each event: SELECT ... FOR
 *				UPDATE SKIP LOCKED, then DELETE, in one transaction
 *
 * Each consumer is a thread with a connection; statements are prepared.  Time
 * begins when all are connected, and ends when EVENTS have been read, or after
 * SECONDS.  The subscription "bench" and the queue are there, with nothing read.
 *
 * Prints events per second.  Connects as psql does (PGHOST, PGDATABASE,
 * PGOPTIONS, ...).
 */
#include <inttypes.h>
#include <libpq-fe.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LEASE_LOST "VE024"
#define NUMBER_SIZE 24			/* of a 64-bit integer as text */
#define PAUSE 1000000			/* nanoseconds before another look, where
								 * others have all that is left */

typedef struct Consumer
{
	pthread_t	thread;
	PGconn	   *connection;
	char		name[NUMBER_SIZE];
	char		lease[NUMBER_SIZE]; /* "": none */
	char		position[NUMBER_SIZE];	/* of the last event */
	char		last[NUMBER_SIZE];	/* of its part of the log */
	bool		unacknowledged;
} Consumer;

static const char *kind;
static char batch[NUMBER_SIZE];
static int64_t wanted;
static int64_t seconds;

static int64_t consumed;		/* by all of them; __atomic */
static int64_t begin;
static int64_t end;				/* when the last one was read; under the mutex */
static pthread_barrier_t ready;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static int64_t
look_at_clock(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000) + now.tv_nsec / 1000;
}

static void
die(const char *what, const char *why)
{
	fprintf(stderr, "consumer: %s: %s\n", what, why);
	exit(1);
}

static bool
is_kind(const char *name)
{
	return strcmp(kind, name) == 0;
}

/* ------------------------------------------------------------------ statements */

static void
prepare(Consumer *consumer, const char *name, const char *text)
{
	PGresult   *result = PQprepare(consumer->connection, name, text, 0, NULL);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		die(name, PQresultErrorMessage(result));
	PQclear(result);
}

static void
send_statement(Consumer *consumer, const char *name, int n, const char *const *values)
{
	if (!PQsendQueryPrepared(consumer->connection, name, n, values, NULL, NULL, 0))
		die(name, PQerrorMessage(consumer->connection));
}

static void
flush_statements(Consumer *consumer)
{
	if (!PQpipelineSync(consumer->connection))
		die("sync", PQerrorMessage(consumer->connection));
}

/*
 * Returns the result of the next statement of the pipeline, which the caller
 * clears; NULL if the lease was lost, and for statements behind that one.
 */
static PGresult *
receive_result(Consumer *consumer, const char *name)
{
	PGresult   *result = PQgetResult(consumer->connection);
	ExecStatusType status = PQresultStatus(result);

	if (status == PGRES_PIPELINE_SYNC)
		return result;
	PQgetResult(consumer->connection);	/* NULL: its end */
	if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK)
		return result;
	if (status != PGRES_PIPELINE_ABORTED)
	{
		const char *code = PQresultErrorField(result, PG_DIAG_SQLSTATE);

		if (code == NULL || strcmp(code, LEASE_LOST) != 0)
			die(name, PQresultErrorMessage(result));
	}
	consumer->lease[0] = '\0';
	PQclear(result);
	return NULL;
}

static void
finish_statement(Consumer *consumer, const char *name)
{
	PQclear(receive_result(consumer, name));
}

static void
run_alone(Consumer *consumer, const char *name, int n, const char *const *values)
{
	send_statement(consumer, name, n, values);
	flush_statements(consumer);
	finish_statement(consumer, name);
	finish_statement(consumer, "sync");
}

/* ------------------------------------------------------------------ batches */

/* What a result has: how many events, and the position of the last one. */
static int
count_events(Consumer *consumer, PGresult *result, int column)
{
	int			count = PQntuples(result);

	if (count > 0)
		snprintf(consumer->position, sizeof(consumer->position), "%s", PQgetvalue(result, count - 1, column));
	return count;
}

static int
fetch_batch(Consumer *consumer)
{
	const char *fetch[] = {consumer->name, batch, consumer->lease[0] == '\0' ? NULL : consumer->lease};
	const char *ack[] = {consumer->lease, consumer->position};
	bool		together = consumer->unacknowledged && is_kind("next");
	PGresult   *result;
	int			count = 0;

	if (together)
		send_statement(consumer, "ack", 2, ack);
	send_statement(consumer, "fetch", 3, fetch);
	flush_statements(consumer);
	if (together)
		finish_statement(consumer, "ack");
	result = receive_result(consumer, "fetch");
	finish_statement(consumer, "sync");
	if (result != NULL)
	{
		count = count_events(consumer, result, PQfnumber(result, "position"));
		if (count > 0)
			snprintf(consumer->lease, sizeof(consumer->lease), "%s", PQgetvalue(result, 0, PQfnumber(result, "lease")));
		PQclear(result);
	}
	consumer->unacknowledged = count > 0;
	if (count > 0 && !is_kind("next"))
	{
		run_alone(consumer, "ack", 2, ack);
		consumer->unacknowledged = false;
	}
	if (count == 0 && is_kind("cycle"))
	{
		run_alone(consumer, "seek", 0, NULL);
		consumer->lease[0] = '\0';
	}
	return count;
}

static int
select_batch(Consumer *consumer)
{
	const char *values[] = {consumer->position, batch, consumer->last};
	PGresult   *result;
	int			count;

	send_statement(consumer, "select", is_kind("select") ? 3 : 2, values);
	flush_statements(consumer);
	result = receive_result(consumer, "select");
	finish_statement(consumer, "sync");
	count = count_events(consumer, result, 0);
	PQclear(result);
	return count;
}

static int
take_from_queue(Consumer *consumer)
{
	const char *take[] = {batch};
	const char *delete[1];
	char	   *ids;
	size_t		length = 1;
	PGresult   *result;
	int			count;

	send_statement(consumer, "begin", 0, NULL);
	send_statement(consumer, "take", 1, take);
	flush_statements(consumer);
	finish_statement(consumer, "begin");
	result = receive_result(consumer, "take");
	finish_statement(consumer, "sync");
	count = PQntuples(result);
	ids = malloc(count * NUMBER_SIZE + 3);
	if (ids == NULL)
		die("malloc", "out of memory");
	ids[0] = '{';
	for (int i = 0; i < count; i++)
		length += sprintf(ids + length, "%s%s", i == 0 ? "" : ",", PQgetvalue(result, i, 0));
	strcpy(ids + length, "}");
	PQclear(result);
	delete[0] = ids;
	send_statement(consumer, "delete", 1, delete);
	send_statement(consumer, "commit", 0, NULL);
	flush_statements(consumer);
	finish_statement(consumer, "delete");
	finish_statement(consumer, "commit");
	finish_statement(consumer, "sync");
	free(ids);
	return count;
}

/* ------------------------------------------------------------------ the consumers */

static void
connect_consumer(Consumer *consumer)
{
	consumer->connection = PQconnectdb("");
	if (PQstatus(consumer->connection) != CONNECTION_OK)
		die("connect", PQerrorMessage(consumer->connection));
	if (is_kind("select"))
		prepare(consumer, "select",
				"SELECT * FROM evpg.event WHERE position > $1::bigint AND position <= $3::bigint"
				" ORDER BY position LIMIT $2::int");
	else if (is_kind("read"))
		prepare(consumer, "select", "SELECT * FROM evpg_read_all($1::bigint, $2::int)");
	else if (is_kind("queue"))
	{
		prepare(consumer, "begin", "BEGIN");
		prepare(consumer, "take", "SELECT * FROM bench.queue ORDER BY position FOR UPDATE SKIP LOCKED LIMIT $1::int");
		prepare(consumer, "delete", "DELETE FROM bench.queue WHERE position = ANY ($1::bigint[])");
		prepare(consumer, "commit", "COMMIT");
	}
	else
	{
		prepare(consumer, "fetch", "SELECT * FROM evpg_fetch('bench', $1, $2::int, lease => $3::bigint)");
		prepare(consumer, "ack", "SELECT evpg_ack('bench', $1::bigint, $2::bigint)");
		if (is_kind("cycle"))
			prepare(consumer, "seek", "SELECT evpg_seek('bench', 0)");
	}
	if (!PQenterPipelineMode(consumer->connection))
		die("pipeline", PQerrorMessage(consumer->connection));
}

static void *
run_consumer(void *argument)
{
	Consumer   *consumer = argument;
	const char *const ack[] = {consumer->lease, consumer->position};
	const struct timespec pause = {.tv_nsec = PAUSE};

	connect_consumer(consumer);
	if (pthread_barrier_wait(&ready) == PTHREAD_BARRIER_SERIAL_THREAD)
		begin = look_at_clock();
	pthread_barrier_wait(&ready);
	while (__atomic_load_n(&consumed, __ATOMIC_RELAXED) < wanted && look_at_clock() < begin + seconds)
	{
		int			count;

		if (is_kind("select") || is_kind("read"))
		{
			count = select_batch(consumer);
			if (count == 0)
				break;
		}
		else if (is_kind("queue"))
			count = take_from_queue(consumer);
		else
			count = fetch_batch(consumer);
		if (count == 0)
			nanosleep(&pause, NULL);
		__atomic_add_fetch(&consumed, count, __ATOMIC_RELAXED);
	}
	if (consumer->unacknowledged)
		run_alone(consumer, "ack", 2, ack);
	pthread_mutex_lock(&mutex);
	end = look_at_clock();
	pthread_mutex_unlock(&mutex);
	PQfinish(consumer->connection);
	return NULL;
}

int
main(int argc, char **argv)
{
	Consumer   *consumers;
	int			n;

	if (argc != 6)
		die("usage", "consumer fetch|next|cycle|select|read|queue CONSUMERS BATCH EVENTS SECONDS");
	kind = argv[1];
	n = atoi(argv[2]);
	snprintf(batch, sizeof(batch), "%d", atoi(argv[3]));
	wanted = atoll(argv[4]);
	seconds = atoi(argv[5]) * INT64_C(1000000);
	if (n <= 0 || atoi(batch) <= 0 || wanted <= 0 || seconds <= 0)
		die("usage", "CONSUMERS, BATCH, EVENTS and SECONDS are positive");
	consumers = calloc(n, sizeof(Consumer));
	if (consumers == NULL || pthread_barrier_init(&ready, NULL, n) != 0)
		die("start", "out of memory");
	for (int i = 0; i < n; i++)
	{
		snprintf(consumers[i].name, NUMBER_SIZE, "c%d", i);
		snprintf(consumers[i].position, NUMBER_SIZE, "%" PRId64, wanted * i / n);
		snprintf(consumers[i].last, NUMBER_SIZE, "%" PRId64, wanted * (i + 1) / n);
		if (pthread_create(&consumers[i].thread, NULL, run_consumer, &consumers[i]) != 0)
			die("start", "cannot create a thread");
	}
	for (int i = 0; i < n; i++)
		pthread_join(consumers[i].thread, NULL);
	if (consumed == 0)
		die("report", "no event was read");
	printf("%.2f\n", consumed * 1e6 / (end - begin));
	return 0;
}
