/*
 * source.c
 *		Where evpg-tail reads: pages of the log behind a position, or what a
 *		subscription hands out.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tail.h"

#define LEASE_LOST "VE024"
#define PAGE_BYTES (16 * 1024 * 1024)	/* of lines in memory, about */

static Session *current;		/* which keep_lease() uses */
static int	page_events;		/* of the next page of the log */

/*
 * Runs a statement in which %s is the schema of evpg's functions, once.
 */
static Outcome
call_evpg(Session *session, const char *format, int count, const char *const *values, PGresult **result)
{
	char		statement[1024];

	snprintf(statement, sizeof(statement), format, session->schema);
	return run_statement(session, statement, count, values, result);
}

/*
 * The first value of a statement like that as a number, 0 if it has no row.
 */
static Outcome
ask_number(Session *session, const char *format, int count, const char *const *values, int64_t *number)
{
	PGresult   *result;
	Outcome		outcome = call_evpg(session, format, count, values, &result);

	*number = 0;
	if (outcome == OUTCOME_OK && PQntuples(result) > 0)
		*number = strtoll(PQgetvalue(result, 0, 0), NULL, 10);
	PQclear(result);
	return outcome;
}

/*
 * Subscribes to notifications.  They only make it faster, so it goes on without
 * them where they are refused.
 */
static Outcome
begin_to_listen(Session *session)
{
	PGresult   *result;
	Outcome		outcome;

	if (!options.listens || !options.follow)
		return OUTCOME_OK;
	if (options.subscription != NULL)
		outcome = call_evpg(session, "SELECT %s.evpg_listen_subscription($1)", 1, &options.subscription, &result);
	else
		outcome = call_evpg(session, "SELECT %s.evpg_listen_events()", 0, NULL, &result);
	PQclear(result);
	if (outcome != OUTCOME_FAILED)
		return outcome;
	report("looks every %g s instead of waiting for notifications", options.interval / 1000.0);
	return OUTCOME_OK;
}

/*
 * Prepares a new session for reading, and finds where to begin if that is not
 * known yet.
 */
Outcome
begin_source(Session *session)
{
	static bool begun;
	Outcome		outcome = begin_to_listen(session);

	current = session;
	if (options.subscription != NULL || outcome != OUTCOME_OK)
		return outcome;
	page_events = options.batch;
	outcome = ask_number(session, "SELECT %s.evpg_stable_position()", 0, NULL, &progress.stable);
	if (outcome != OUTCOME_OK)
		return outcome;
	if (!begun)
		progress.position = options.from_now ? progress.stable : options.after;
	if (progress.position > progress.stable)
	{
		report("position %" PRId64 " is behind the end of the log, which is at %" PRId64
			   ": this is another database, or an older state of it", progress.position, progress.stable);
		return OUTCOME_FAILED;
	}
	begun = true;
	/* a checkpoint that shows where "now" was */
	return save_checkpoint() ? OUTCOME_OK : OUTCOME_FAILED;
}

/*
 * Writes the lines of a result, whose first columns are the position and the
 * line; *last becomes the position of the last one.
 */
static Outcome
write_events(PGresult *result, int64_t *last)
{
	Outcome		outcome = OUTCOME_OK;
	int			count = PQntuples(result);

	for (int i = 0; i < count && outcome == OUTCOME_OK; i++)
	{
		outcome = write_line(PQgetvalue(result, i, 1), PQgetlength(result, i, 1));
		*last = strtoll(PQgetvalue(result, i, 0), NULL, 10);
	}
	if (outcome == OUTCOME_OK && count > 0)
		outcome = flush_output();
	if (outcome == OUTCOME_OK)
		progress.events += count;
	return outcome;
}

/*
 * How many events may come next: a page, or what is left of --max-events.
 */
static int
events_wanted(int page)
{
	int64_t		left = options.max_events == 0 ? page : options.max_events - progress.events;

	return left < page ? (int) left : page;
}

/*
 * Keeps the memory that pages need: fewer large events at once.
 */
static void
adapt_page(PGresult *result)
{
	size_t		size = PQresultMemorySize(result);

	if (size > PAGE_BYTES && page_events > 1)
		page_events /= 2;
	else if (size < PAGE_BYTES / 4)
		page_events = page_events > options.batch / 2 ? options.batch : page_events * 2;
}

/*
 * Takes the next page of the log.  The stable position is asked for first: if
 * the page is not full, there is nothing more up to there, even where filters
 * leave out everything.
 */
static Outcome
take_page_of_log(Session *session)
{
	char		position[24];
	char		wanted[12];
	const char *values[] = {position, wanted, options.aggregate_types, options.event_types};
	int64_t		stable;
	int64_t		last = progress.position;
	PGresult   *result;
	bool		full;
	Outcome		outcome;

	outcome = ask_number(session, "SELECT %s.evpg_stable_position()", 0, NULL, &stable);
	if (outcome != OUTCOME_OK)
		return outcome;
	progress.stable = stable;
	if (stable <= progress.position)
		return OUTCOME_END;

	snprintf(position, sizeof(position), "%" PRId64, progress.position);
	snprintf(wanted, sizeof(wanted), "%d", events_wanted(page_events));
	outcome = call_evpg(session,
						"SELECT e.position, pg_catalog.row_to_json(e) FROM %s.evpg_read_all($1::pg_catalog.int8, "
						"$2::pg_catalog.int4, $3::pg_catalog.text[], $4::pg_catalog.text[]) AS e",
						4, values, &result);
	if (outcome != OUTCOME_OK)
		return outcome;
	full = PQntuples(result) == events_wanted(page_events);
	outcome = write_events(result, &last);
	adapt_page(result);
	PQclear(result);
	if (outcome != OUTCOME_OK)
		return outcome;
	progress.position = full || last > stable ? last : stable;
	if (!save_checkpoint())
		return OUTCOME_FAILED;
	return full ? OUTCOME_OK : OUTCOME_END;
}

/*
 * Takes what the subscription hands out, and acknowledges it.
 */
static Outcome
take_page_of_subscription(Session *session)
{
	char		wanted[12];
	char		bytes[12];
	char		position[24];
	const char *fetch[] = {options.subscription, options.consumer, wanted, bytes, session->lease[0] ? session->lease : NULL};
	const char *ack[] = {options.subscription, session->lease, position};
	int64_t		last = 0;
	int			count;
	PGresult   *result;
	Outcome		outcome;

	snprintf(wanted, sizeof(wanted), "%d", events_wanted(options.batch));
	snprintf(bytes, sizeof(bytes), "%d", PAGE_BYTES);
	outcome = call_evpg(session,
						"SELECT d.position, pg_catalog.row_to_json(d), d.lease FROM %s.evpg_fetch($1, $2, "
						"$3::pg_catalog.int4, $4::pg_catalog.int4, lease => $5::pg_catalog.int8) AS d",
						5, fetch, &result);
	if (outcome == OUTCOME_FAILED && session->lease[0] != '\0' && strcmp(session->sqlstate, LEASE_LOST) == 0)
	{
		session->lease[0] = '\0';
		return OUTCOME_OK;
	}
	if (outcome != OUTCOME_OK)
		return outcome;
	count = PQntuples(result);
	if (count == 0)
	{
		PQclear(result);
		return OUTCOME_END;
	}
	snprintf(session->lease, sizeof(session->lease), "%s", PQgetvalue(result, 0, 2));
	outcome = write_events(result, &last);
	PQclear(result);
	if (outcome != OUTCOME_OK)
		return outcome;
	progress.position = last;
	snprintf(position, sizeof(position), "%" PRId64, last);
	outcome = call_evpg(session, "SELECT %s.evpg_ack($1, $2::pg_catalog.int8, $3::pg_catalog.int8)", 3, ack, &result);
	if (outcome != OUTCOME_OK)
		return outcome;
	if (strcmp(PQgetvalue(result, 0, 0), "t") != 0)
	{
		report("the lease was lost: another consumer gets the last %d events, too", count);
		session->lease[0] = '\0';
	}
	PQclear(result);
	return OUTCOME_OK;
}

/*
 * Takes the next events, writes them, and moves the checkpoint or acknowledges
 * them.  OUTCOME_END if there are no more now, or --max-events have come.
 */
Outcome
take_page(Session *session)
{
	if (options.max_events > 0 && progress.events >= options.max_events)
		return OUTCOME_END;
	return options.subscription != NULL ? take_page_of_subscription(session) : take_page_of_log(session);
}

/*
 * Keeps the lease while the reader of the output does not read.
 */
void
keep_lease(void)
{
	const char *values[] = {options.subscription, current == NULL ? NULL : current->lease};
	PGresult   *result;

	if (options.subscription == NULL || current == NULL || current->lease[0] == '\0')
		return;
	call_evpg(current, "SELECT %s.evpg_extend_lease($1, $2::pg_catalog.int8)", 2, values, &result);
	PQclear(result);
}

/*
 * Leaves a subscription in good order: others can have its partitions at once.
 * A consumer that was handed out nothing has a lease that it does not know.
 */
void
leave_source(Session *session)
{
	const char *values[] = {options.subscription, options.consumer};
	PGresult   *result;

	if (options.subscription == NULL || session->schema[0] == '\0' ||
		PQtransactionStatus(session->connection) != PQTRANS_IDLE)
		return;
	call_evpg(session,
			  "SELECT %s.evpg_release_lease($1, l.lease) FROM "
			  "(SELECT DISTINCT lease FROM evpg.stat_subscription WHERE name = $1 AND consumer = $2) AS l",
			  2, values, &result);
	PQclear(result);
}
