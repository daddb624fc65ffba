/*
 * tail.h
 *		What the files of evpg-tail share.
 */
#ifndef TAIL_H
#define TAIL_H

#include <libpq-fe.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What became of a step. */
typedef enum Outcome
{
	OUTCOME_OK,
	OUTCOME_END,				/* there is no more, and nothing to wait for */
	OUTCOME_STOP,				/* a signal has asked to end */
	OUTCOME_LOST,				/* the connection, or for now the server; try
								 * again */
	OUTCOME_CLOSED,				/* nothing reads the output any more */
	OUTCOME_FAILED				/* a message tells why */
} Outcome;

typedef struct Options
{
	const char *dbname;
	const char *subscription;	/* NULL: the whole log */
	const char *consumer;
	const char *checkpoint;		/* file, or NULL */
	const char *aggregate_types;	/* array literals, or NULL */
	const char *event_types;
	int64_t		after;			/* position to begin after */
	bool		from_now;
	bool		follow;
	bool		listens;
	bool		reconnects;
	bool		progress;
	int			batch;			/* events of a page */
	int64_t		max_events;		/* 0: no limit */
	int			interval;		/* milliseconds to wait at most before another
								 * look */
} Options;

/* A connection, and what is known by it. */
typedef struct Session
{
	PGconn	   *connection;
	char		schema[2 * 64 + 3]; /* of evpg's functions, quoted */
	char		lease[24];		/* of the subscription; "" if none is known */
	char		sqlstate[6];	/* of the last statement that has failed */
} Session;

/* Where the output has come to. */
typedef struct Progress
{
	int64_t		position;		/* events up to it are written, and flushed */
	int64_t		stable;			/* last known end of what can be read; 0: not
								 * known */
	int64_t		events;			/* written */
	int64_t		bytes;
} Progress;

extern Options options;
extern Progress progress;
extern volatile sig_atomic_t stop_requested;

/* main.c */
extern void report(const char *format,...) __attribute__((format(printf, 1, 2)));
extern int	signal_socket(void);
extern int64_t milliseconds(void);
extern void show_progress(bool last);

/* output.c */
extern bool open_output(void);
extern bool open_checkpoint(void);
extern bool save_checkpoint(void);
extern Outcome write_line(const char *line, size_t length);
extern Outcome flush_output(void);
extern int	output_events(void);

/* session.c */
extern Outcome open_session(Session *session);
extern void close_session(Session *session);
extern Outcome run_statement(Session *session, const char *statement, int count, const char *const *values,
							 PGresult **result);
extern Outcome wait_for_more(Session *session, int timeout, bool *notified);

/* source.c */
extern Outcome begin_source(Session *session);
extern Outcome take_page(Session *session);
extern void leave_source(Session *session);
extern void keep_lease(void);

#endif							/* TAIL_H */
