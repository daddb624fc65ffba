/*
 * course.c
 *		evpg-course: subscribes students to courses.  The decision is made here, in
 *		a client, over the events of a course and of a student.
 *
 * Reads lines "course student" from standard input, and answers each with a line
 * "course student answer".  It connects as psql does, by PGHOST and the like, as
 * a role with the access writer.
 *
 * A course has places, a student takes two courses at most, and each once.  Two
 * clients may decide over the same events at the same time: the append has the
 * condition that none has come since they were read, so one of them is told
 * VE013, and decides again.  docs/boundaries.md explains it, and decides the
 * same in PL/pgSQL.
 *
 * If the connection is lost, nobody knows whether the last subscription was
 * stored.  Sending it again is safe: then its answer is "subscribed already".
 */
#include <libpq-fe.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_COURSES 2			/* of a student */
#define CONDITION_NOT_MET "VE013"

/* What a decision knows of a course and a student. */
typedef struct Facts
{
	int			capacity;		/* -1: the course is not defined */
	int			of_course;
	int			of_student;
	bool		subscribed;
} Facts;

/*
 * Runs a statement with parameters.  Returns NULL if it fails with the SQLSTATE
 * that the caller expects; ends the program if it fails otherwise.
 */
static PGresult *
run_statement(PGconn *connection, const char *statement, int count, const char *const *values, const char *expected)
{
	PGresult   *result = PQexecParams(connection, statement, count, NULL, values, NULL, NULL, 0);
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	if (PQresultStatus(result) == PGRES_TUPLES_OK)
		return result;
	if (expected == NULL || sqlstate == NULL || strcmp(sqlstate, expected) != 0)
	{
		fprintf(stderr, "evpg-course: %s", PQerrorMessage(connection));
		exit(1);
	}
	PQclear(result);
	return NULL;
}

/*
 * Reads the events of a course and of a student, whose tags these are, and
 * folds them.
 */
static Facts
read_facts(PGconn *connection, const char *const tags[2])
{
	Facts		facts = {.capacity = -1};
	PGresult   *events = run_statement(connection,
									   "SELECT type, $1 = ANY (tags), $2 = ANY (tags), data->>'capacity'"
									   " FROM evpg_read_all(max_count => NULL, tags => ARRAY[$1, $2], stable_only => false)",
									   2, tags, NULL);

	for (int i = 0; i < PQntuples(events); i++)
	{
		bool		has_course = *PQgetvalue(events, i, 1) == 't';
		bool		has_student = *PQgetvalue(events, i, 2) == 't';

		if (strcmp(PQgetvalue(events, i, 0), "CourseDefined") == 0)
			facts.capacity = atoi(PQgetvalue(events, i, 3));
		else if (strcmp(PQgetvalue(events, i, 0), "StudentSubscribed") == 0)
		{
			facts.of_course += has_course;
			facts.of_student += has_student;
			facts.subscribed |= has_course && has_student;
		}
	}
	PQclear(events);
	return facts;
}

/*
 * The decision: why a student cannot subscribe to a course; NULL if nothing is
 * in the way.
 */
static const char *
find_refusal(const Facts *facts)
{
	if (facts->capacity < 0)
		return "no such course";
	if (facts->subscribed)
		return "subscribed already";
	if (facts->of_course >= facts->capacity)
		return "course is full";
	if (facts->of_student >= MAX_COURSES)
		return "student has enough courses";
	return NULL;
}

/*
 * Subscribes a student to a course, and returns the answer.
 */
static const char *
subscribe_student(PGconn *connection, const char *course, const char *student)
{
	char		course_tag[256];
	char		student_tag[256];
	const char *tags[2] = {course_tag, student_tag};

	snprintf(course_tag, sizeof(course_tag), "course:%s", course);
	snprintf(student_tag, sizeof(student_tag), "student:%s", student);
	for (;;)
	{
		/* all up to it is there when the events are read, or never */
		PGresult   *position = run_statement(connection,
											 "SELECT evpg_condition_position("
											 "evpg_condition(tags => ARRAY[$1]) || evpg_condition(tags => ARRAY[$2]))",
											 2, tags, NULL);
		const char *values[4] = {course_tag, student_tag, PQgetvalue(position, 0, 0), student};
		Facts		facts = read_facts(connection, tags);
		const char *refusal = find_refusal(&facts);
		PGresult   *appended = NULL;

		if (refusal == NULL)
			appended = run_statement(connection,
									 "SELECT version FROM evpg_append_event('student', $4, 'StudentSubscribed',"
									 " tags => ARRAY[$1, $2], condition =>"
									 " evpg_condition(tags => ARRAY[$1], after_position => $3)"
									 " || evpg_condition(tags => ARRAY[$2], after_position => $3))",
									 4, values, CONDITION_NOT_MET);
		PQclear(position);
		if (refusal != NULL)
			return refusal;
		PQclear(appended);
		if (appended != NULL)
			return "subscribed";
		/* an event has come in between: read again */
	}
}

int
main(void)
{
	PGconn	   *connection = PQconnectdb("fallback_application_name=evpg-course");
	char		line[512];
	char		course[200];
	char		student[200];
	char		rest;

	if (PQstatus(connection) != CONNECTION_OK)
	{
		fprintf(stderr, "evpg-course: %s", PQerrorMessage(connection));
		return 1;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof(line), stdin) != NULL)
	{
		if (sscanf(line, "%199s %199s %c", course, student, &rest) != 2)
		{
			fprintf(stderr, "evpg-course: a line must be a course and a student, of less than 200 bytes each\n");
			return 1;
		}
		printf("%s %s %s\n", course, student, subscribe_student(connection, course, student));
	}
	PQfinish(connection);
	return 0;
}
