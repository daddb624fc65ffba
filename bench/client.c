/*
 * client.c
 *		Clients of bench/run that make deposits on accounts, and measure how long
 *		each takes.
 *
 * usage: client KIND CLIENTS STREAMS own|shared WARM SECONDS DATA
 *
 * KIND is what decides:
 *
 *	execute		evpg_execute, with the aggregate in C of examples/bank
 *	load		this program, as an application without evpg would: it reads the
 *				events of the stream, folds them, decides, and inserts the event with
 *				the next version, in one transaction; if another client was faster,
 *				the unique index refuses that, and it begins again
 *	keep		the same, but it keeps the states of accounts, and reads only the
 *				events that came since
 *
 * Each client is a thread with a connection, has STREAMS accounts of its own or shares them
 * with the others, and has visited each before time begins.  Statements are
 * prepared; those that need not wait for each other's results are sent together,
 * so that a command by hand takes two round trips.
 *
 * Prints commands per second, then the median, the 99th and the 99.9th
 * percentile of their times in microseconds, then how many attempts had lost a
 * race, of 1,000 commands.  A command that is under way at the end is waited
 * for; it has a time, but does not count for the rate.
 *
 * Connects as psql does (PGHOST, PGDATABASE, PGOPTIONS, ...).
 */
#include <inttypes.h>
#include <json-c/json.h>
#include <libpq-fe.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TYPE "bench_c"
#define UNIQUE_VIOLATION "23505"
#define NUMBER_SIZE 24			/* of a 64-bit integer as text */

/* An account as the application knows it. */
typedef struct Account
{
	int64_t		version;
	int64_t		balance;
	bool		open;
} Account;

typedef struct Client
{
	pthread_t	thread;
	PGconn	   *connection;
	unsigned int seed;
	int			first;			/* of its accounts */
	Account    *accounts;		/* what it knows of them */
	uint32_t   *times;			/* of commands, in microseconds */
	size_t		size;
	size_t		commands;
	size_t		in_time;		/* of these, had ended when time was over */
	size_t		lost;			/* attempts */
} Client;

static int	streams;
static bool by_hand;
static bool keeps;
static int64_t warm;
static int64_t duration;
static const char *data;

static pthread_barrier_t ready;
static int64_t begin;			/* when all are ready */

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
	fprintf(stderr, "client: %s: %s\n", what, why);
	exit(1);
}

static void *
allocate(void *old, size_t size)
{
	void	   *new = realloc(old, size);

	if (new == NULL)
		die("malloc", "out of memory");
	return new;
}

/* ------------------------------------------------------------------ statements */

static void
send(Client *client, const char *statement, int n, const char *const *values)
{
	if (!PQsendQueryPrepared(client->connection, statement, n, values, NULL, NULL, 0))
		die(statement, PQerrorMessage(client->connection));
}

static void
flush(Client *client)
{
	if (!PQpipelineSync(client->connection))
		die("sync", PQerrorMessage(client->connection));
}

/*
 * Returns the result of the next statement of the pipeline, which the caller
 * clears; NULL if it was not executed, or lost against another client.
 */
static PGresult *
receive(Client *client, const char *statement)
{
	PGresult   *result = PQgetResult(client->connection);
	ExecStatusType status = PQresultStatus(result);

	if (status == PGRES_PIPELINE_SYNC)
		return result;
	PQgetResult(client->connection);	/* NULL: its end */
	if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK)
		return result;
	if (status != PGRES_PIPELINE_ABORTED)
	{
		const char *code = PQresultErrorField(result, PG_DIAG_SQLSTATE);

		if (!by_hand || code == NULL || strcmp(code, UNIQUE_VIOLATION) != 0)
			die(statement, PQresultErrorMessage(result));
	}
	PQclear(result);
	return NULL;
}

/* Whether the statement was executed; its result is of no interest. */
static bool
done(Client *client, const char *statement)
{
	PGresult   *result = receive(client, statement);

	PQclear(result);
	return result != NULL;
}

/* ------------------------------------------------------------------ an application without evpg */

static int64_t
get_amount(const char *text)
{
	json_object *object = json_tokener_parse(text);
	json_object *amount;
	int64_t		value = 0;

	if (json_object_object_get_ex(object, "amount", &amount) && json_object_is_type(amount, json_type_int))
		value = json_object_get_int64(amount);
	json_object_put(object);
	return value;
}

static void
apply(Account *account, int64_t version, const char *type, const char *event)
{
	if (strcmp(type, "AccountOpened") == 0)
		account->open = true;
	else if (strcmp(type, "MoneyDeposited") == 0)
		account->balance += get_amount(event);
	else if (strcmp(type, "MoneyWithdrawn") == 0)
		account->balance -= get_amount(event);
	else if (strcmp(type, "AccountClosed") == 0)
		account->open = false;
	account->version = version;
}

/* Begins a transaction, after rollback of one that has failed, and folds the events that are new. */
static void
load_account(Client *client, const char *id, Account *account, bool rollback)
{
	char		known[NUMBER_SIZE];
	const char *values[] = {id, known};
	PGresult   *events;

	if (!keeps)
		memset(account, 0, sizeof(*account));
	snprintf(known, sizeof(known), "%" PRId64, account->version);
	if (rollback)
		send(client, "rollback", 0, NULL);
	send(client, "begin", 0, NULL);
	send(client, "load", 2, values);
	flush(client);
	if ((rollback && !done(client, "rollback")) || !done(client, "begin"))
		die("begin", "no result");
	events = receive(client, "load");
	for (int i = 0; i < PQntuples(events); i++)
		apply(account, strtoll(PQgetvalue(events, i, 0), NULL, 10), PQgetvalue(events, i, 1), PQgetvalue(events, i, 2));
	PQclear(events);
	done(client, "sync");
}

/* Decides, appends and commits: whether no other client has appended meanwhile. */
static bool
deposit(Client *client, const char *id, Account *account)
{
	int64_t		amount = get_amount(data);
	json_object *event;
	char		version[NUMBER_SIZE];
	const char *values[] = {id, version, "MoneyDeposited", NULL};
	bool		committed;

	if (!account->open || amount <= 0)
		die("deposit", "the account is not open, or the amount is not positive");
	event = json_object_new_object();
	json_object_object_add(event, "amount", json_object_new_int64(amount));
	snprintf(version, sizeof(version), "%" PRId64, account->version + 1);
	values[3] = json_object_to_json_string(event);
	send(client, "append", 4, values);
	send(client, "commit", 0, NULL);
	flush(client);
	json_object_put(event);
	committed = done(client, "append");
	if (done(client, "commit") != committed)
		die("commit", "has no result");
	done(client, "sync");
	if (committed)
	{
		account->version++;
		account->balance += amount;
	}
	return committed;
}

static void
execute_by_hand(Client *client, const char *id, Account *account)
{
	bool		failed = false;

	for (;;)
	{
		load_account(client, id, account, failed);
		if (deposit(client, id, account))
			return;
		failed = true;
		client->lost++;
	}
}

/* ------------------------------------------------------------------ the clients */

static void
execute(Client *client, int account, const char *type)
{
	char		id[NUMBER_SIZE];
	const char *values[] = {id, data};

	snprintf(id, sizeof(id), "%d", client->first + account);
	if (by_hand)
	{
		execute_by_hand(client, id, &client->accounts[account]);
		return;
	}
	send(client, type, 2, values);
	flush(client);
	if (!done(client, type))
		die(type, "has no result");
	done(client, "sync");
}

/* So that the states are in the caches: an open account is opened once more, which changes nothing. */
static void
visit_accounts(Client *client)
{
	for (int i = 0; i < streams; i++)
	{
		if (keeps)
		{
			char		id[NUMBER_SIZE];

			snprintf(id, sizeof(id), "%d", client->first + i);
			load_account(client, id, &client->accounts[i], false);
			send(client, "commit", 0, NULL);
			flush(client);
			done(client, "commit");
			done(client, "sync");
		}
		else if (!by_hand)
			execute(client, i, "visit");
	}
}

static void
prepare(Client *client, const char *name, const char *text)
{
	PGresult   *result = PQprepare(client->connection, name, text, 0, NULL);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		die(name, PQresultErrorMessage(result));
	PQclear(result);
}

static void
connect_client(Client *client)
{
	client->connection = PQconnectdb("");
	if (PQstatus(client->connection) != CONNECTION_OK)
		die("connect", PQerrorMessage(client->connection));
	if (by_hand)
	{
		prepare(client, "begin", "BEGIN");
		prepare(client, "commit", "COMMIT");
		prepare(client, "rollback", "ROLLBACK");
		prepare(client, "load",
				"SELECT version, type, data FROM bench.by_hand"
				" WHERE stream_type = '" TYPE "' AND stream_id = $1 AND version > $2::bigint ORDER BY version");
		prepare(client, "append",
				"INSERT INTO bench.by_hand (stream_type, stream_id, version, type, data)"
				" VALUES ('" TYPE "', $1, $2, $3, $4)");
	}
	else
	{
		prepare(client, "execute", "SELECT version FROM evpg_execute('" TYPE "', $1, 'Deposit', $2::jsonb)");
		prepare(client, "visit", "SELECT version FROM evpg_execute('" TYPE "', $1, 'Open', $2::jsonb)");
	}
	if (!PQenterPipelineMode(client->connection))
		die("pipeline", PQerrorMessage(client->connection));
}

static void *
run_client(void *argument)
{
	Client	   *client = argument;
	int64_t		now;

	connect_client(client);
	visit_accounts(client);
	if (pthread_barrier_wait(&ready) == PTHREAD_BARRIER_SERIAL_THREAD)
		begin = look_at_clock() + warm;
	pthread_barrier_wait(&ready);
	client->lost = 0;
	while ((now = look_at_clock()) < begin + duration)
	{
		int64_t		sent = now;

		execute(client, rand_r(&client->seed) % streams, "execute");
		now = look_at_clock();
		if (sent < begin)
		{
			client->lost = 0;
			continue;
		}
		if (client->commands == client->size)
		{
			client->size = client->size == 0 ? 1024 : client->size * 2;
			client->times = allocate(client->times, client->size * sizeof(uint32_t));
		}
		client->times[client->commands++] = now - sent;
		client->in_time += now < begin + duration;
	}
	PQfinish(client->connection);
	return NULL;
}

/* ------------------------------------------------------------------ the report */

static int
compare_times(const void *a, const void *b)
{
	uint32_t	first = *(const uint32_t *) a;
	uint32_t	second = *(const uint32_t *) b;

	return (first > second) - (first < second);
}

static void
report(Client *clients, int n)
{
	size_t		commands = 0;
	size_t		in_time = 0;
	size_t		lost = 0;
	uint32_t   *times = NULL;

	for (int i = 0; i < n; i++)
	{
		times = allocate(times, (commands + clients[i].commands + 1) * sizeof(uint32_t));
		if (clients[i].commands > 0)
			memcpy(times + commands, clients[i].times, clients[i].commands * sizeof(uint32_t));
		commands += clients[i].commands;
		in_time += clients[i].in_time;
		lost += clients[i].lost;
	}
	if (in_time == 0)
		die("report", "no command has ended in time");
	qsort(times, commands, sizeof(uint32_t), compare_times);
	printf("%.2f %" PRIu32 " %" PRIu32 " %" PRIu32 " %.1f\n", in_time * 1e6 / duration, times[commands / 2],
		   times[commands * 99 / 100], times[commands * 999 / 1000], lost * 1000.0 / commands);
	free(times);
}

int
main(int argc, char **argv)
{
	Client	   *clients;
	int			n;
	bool		own;

	if (argc != 8)
		die("usage", "client execute|load|keep CLIENTS STREAMS own|shared WARM SECONDS DATA");
	keeps = strcmp(argv[1], "keep") == 0;
	by_hand = keeps || strcmp(argv[1], "load") == 0;
	if (!by_hand && strcmp(argv[1], "execute") != 0)
		die("unknown kind", argv[1]);
	n = atoi(argv[2]);
	streams = atoi(argv[3]);
	own = strcmp(argv[4], "own") == 0;
	warm = atof(argv[5]) * 1e6;
	duration = atoi(argv[6]) * INT64_C(1000000);
	data = argv[7];
	if (n <= 0 || streams <= 0 || warm < 0 || duration <= 0)
		die("usage", "CLIENTS, STREAMS and SECONDS are positive");
	clients = calloc(n, sizeof(Client));
	if (clients == NULL || pthread_barrier_init(&ready, NULL, n) != 0)
		die("start", "out of memory");
	for (int i = 0; i < n; i++)
	{
		clients[i].seed = i + time(NULL);
		clients[i].first = own ? 1 + i * streams : 1;
		clients[i].accounts = allocate(NULL, streams * sizeof(Account));
		memset(clients[i].accounts, 0, streams * sizeof(Account));
		if (pthread_create(&clients[i].thread, NULL, run_client, &clients[i]) != 0)
			die("start", "cannot create a thread");
	}
	for (int i = 0; i < n; i++)
		pthread_join(clients[i].thread, NULL);
	report(clients, n);
	return 0;
}
