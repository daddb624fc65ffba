/*
 * session.c
 *		The connection of evpg-tail: statements, which a signal ends, and waiting
 *		for notifications.
 *
 * Each statement stands for itself, so nothing breaks behind a pooler that gives
 * each transaction another session; notifications do not arrive there, and
 * evpg-tail looks every --interval instead.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tail.h"

#define ANSWER_AFTER_STOP 5000	/* milliseconds that an answer may take after
								 * a signal */

/*
 * Whether the same may succeed later: a server that shuts down or recovers, too
 * many connections, conflicts, timeouts.
 */
static bool
is_transient(const char *sqlstate)
{
	static const char *const codes[] = {"08", "40", "53", "57", "55P03", "25P0"};

	for (size_t i = 0; sqlstate != NULL && i < sizeof(codes) / sizeof(codes[0]); i++)
		if (strncmp(sqlstate, codes[i], strlen(codes[i])) == 0)
			return true;
	return false;
}

/*
 * Sorts a result: OUTCOME_OK if it has rows.
 */
static Outcome
judge_result(Session *session, PGresult *result)
{
	PGconn	   *connection = session->connection;
	ExecStatusType status = PQresultStatus(result);
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK)
		return OUTCOME_OK;
	snprintf(session->sqlstate, sizeof(session->sqlstate), "%s", sqlstate == NULL ? "" : sqlstate);
	report("%s", result == NULL ? PQerrorMessage(connection) : PQresultErrorMessage(result));
	if (PQstatus(connection) == CONNECTION_BAD || is_transient(sqlstate))
		return OUTCOME_LOST;
	return OUTCOME_FAILED;
}

/*
 * Waits until the socket can be read; OUTCOME_STOP if a signal came and the
 * server does not answer for a while.
 */
static Outcome
wait_for_answer(PGconn *connection)
{
	int64_t		stopped = 0;

	for (;;)
	{
		struct pollfd waits[2] = {
			{.fd = PQsocket(connection), .events = POLLIN},
			{.fd = signal_socket(), .events = POLLIN},
		};

		/* once the signal is known, its socket would always be ready */
		if (poll(waits, stop_requested ? 1 : 2, stop_requested ? 100 : -1) < 0 && errno != EINTR)
			return OUTCOME_LOST;
		if (waits[0].revents != 0)
			return OUTCOME_OK;
		if (stop_requested && stopped == 0)
			stopped = milliseconds();
		if (stopped != 0 && milliseconds() - stopped > ANSWER_AFTER_STOP)
			return OUTCOME_STOP;
	}
}

/*
 * Runs a statement with parameters as text.  On OUTCOME_OK *result has its rows,
 * which the caller clears; otherwise it is NULL, and a message has told why.
 */
Outcome
run_statement(Session *session, const char *statement, int count, const char *const *values, PGresult **result)
{
	PGconn	   *connection = session->connection;
	PGresult   *next;
	Outcome		outcome;

	*result = NULL;
	if (!PQsendQueryParams(connection, statement, count, NULL, values, NULL, NULL, 0))
	{
		report("%s", PQerrorMessage(connection));
		return OUTCOME_LOST;
	}
	for (;;)
	{
		while (PQisBusy(connection))
		{
			outcome = wait_for_answer(connection);
			if (outcome != OUTCOME_OK)
				goto failed;
			if (!PQconsumeInput(connection))
			{
				report("%s", PQerrorMessage(connection));
				outcome = OUTCOME_LOST;
				goto failed;
			}
		}
		next = PQgetResult(connection);
		if (next == NULL)
			break;
		PQclear(*result);
		*result = next;
	}
	outcome = judge_result(session, *result);
	if (outcome == OUTCOME_OK)
		return OUTCOME_OK;
failed:
	PQclear(*result);
	*result = NULL;
	return outcome;
}

/*
 * Why a connection could not be made: OUTCOME_LOST if that may pass.
 */
static Outcome
judge_connection(PGconn *connection, const char *const *keywords, const char *const *values)
{
	static bool has_connected;
	PGPing		ping;

	if (PQstatus(connection) == CONNECTION_OK)
	{
		has_connected = true;
		return OUTCOME_OK;
	}
	report("%s", connection == NULL ? "out of memory" : PQerrorMessage(connection));
	if (has_connected)
		return OUTCOME_LOST;
	/* a server that accepts connections has refused this one */
	ping = PQpingParams(keywords, values, 1);
	return ping == PQPING_OK || ping == PQPING_NO_ATTEMPT ? OUTCOME_FAILED : OUTCOME_LOST;
}

/*
 * Finds the schema of evpg's functions.
 */
static Outcome
find_schema(Session *session)
{
	PGresult   *result;
	Outcome		outcome;

	outcome = run_statement(session,
							"SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_extension e "
							"JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'evpg'",
							0, NULL, &result);
	if (outcome != OUTCOME_OK)
		return outcome;
	if (PQntuples(result) == 0)
	{
		report("the database \"%s\" does not have the extension evpg", PQdb(session->connection));
		outcome = OUTCOME_FAILED;
	}
	else
		snprintf(session->schema, sizeof(session->schema), "%s", PQgetvalue(result, 0, 0));
	PQclear(result);
	return outcome;
}

/*
 * Connects, and prepares the session.  On failure reports; close_session() is
 * called in any case.
 */
Outcome
open_session(Session *session)
{
	const char *keywords[] = {"fallback_application_name", "connect_timeout", "dbname", "client_encoding", NULL};
	const char *values[] = {"evpg-tail", "10", options.dbname, "UTF8", NULL};
	PGresult   *result;
	Outcome		outcome;

	session->connection = PQconnectdbParams(keywords, values, 1);
	outcome = judge_connection(session->connection, keywords, values);
	if (outcome == OUTCOME_OK)
		outcome = find_schema(session);
	/* each statement sees what was committed last, as evpg's readers need it */
	if (outcome == OUTCOME_OK)
		outcome = run_statement(session, "SET default_transaction_isolation TO 'read committed'", 0, NULL, &result);
	if (outcome == OUTCOME_OK)
		PQclear(result);
	return outcome;
}

/*
 * Ends the connection, if there is one.
 */
void
close_session(Session *session)
{
	PQfinish(session->connection);
	memset(session, 0, sizeof(*session));
}

/*
 * Forgets all notifications that have arrived; returns whether there were any.
 */
static bool
drain_notifications(PGconn *connection)
{
	PGnotify   *notify;
	bool		found = false;

	while ((notify = PQnotifies(connection)) != NULL)
	{
		found = true;
		PQfreemem(notify);
	}
	return found;
}

/*
 * Waits for a notification, a signal, the end of the output's reader, or the
 * timeout in milliseconds, whichever comes first.  Tells whether it was a
 * notification.
 */
Outcome
wait_for_more(Session *session, int timeout, bool *notified)
{
	PGconn	   *connection = session->connection;
	struct pollfd waits[3] = {
		{.fd = PQsocket(connection), .events = POLLIN},
		{.fd = STDOUT_FILENO},
		{.fd = signal_socket(), .events = POLLIN},
	};

	/* one may have come with the answer to a statement */
	*notified = drain_notifications(connection);
	if (poll(waits, 3, *notified ? 0 : timeout) < 0 && errno != EINTR)
	{
		report("cannot wait: %s", strerror(errno));
		return OUTCOME_FAILED;
	}
	if (stop_requested)
		return OUTCOME_STOP;
	if (waits[1].revents & output_events())
		return OUTCOME_CLOSED;
	if (waits[0].revents != 0 && !PQconsumeInput(connection))
	{
		report("%s", PQerrorMessage(connection));
		return OUTCOME_LOST;
	}
	*notified |= drain_notifications(connection);
	return OUTCOME_OK;
}
