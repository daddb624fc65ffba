/*
 * main.c
 *		evpg-tail: follows the event log, or a subscription, and writes each event
 *		as a line of JSON to standard output.
 *
 * docs/consumers.md describes it for users.  Here are its options, its signals,
 * and the loop that connects again.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tail.h"

#define VERSION "1.0"
#define SHORTEST_PAUSE 10		/* milliseconds before another look */
#define FIRST_BACKOFF 100		/* milliseconds before another connection */
#define LONGEST_BACKOFF 10000

Options		options = {.batch = 500, .interval = 1000, .listens = true, .reconnects = true};
Progress	progress;
volatile sig_atomic_t stop_requested;

static int	signals[2];			/* a pipe: a byte for each signal */
static bool shows_line;			/* the progress is on the last line of the
								 * terminal */

/*
 * Milliseconds of a clock that nothing sets.
 */
int64_t
milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/*
 * Writes a message to standard error, without the line feeds that libpq ends
 * its own with.
 */
void
report(const char *format,...)
{
	char		message[8192];
	va_list		arguments;
	size_t		length;

	va_start(arguments, format);
	vsnprintf(message, sizeof(message), format, arguments);
	va_end(arguments);
	length = strlen(message);
	while (length > 0 && message[length - 1] == '\n')
		message[--length] = '\0';
	fprintf(stderr, "%sevpg-tail: %s\n", shows_line ? "\n" : "", message);
	shows_line = false;
}

/*
 * Shows how far it is, once a second; the last time in any case.
 */
void
show_progress(bool last)
{
	static int64_t began;
	static int64_t shown;
	static int64_t events;
	int64_t		now = milliseconds();

	if (!options.progress)
		return;
	if (began == 0)
		began = shown = now;
	if (!last && now - shown < 1000)
		return;
	fprintf(stderr, "\r%" PRId64 " events, %.0f/s, position %" PRId64, progress.events,
			now == shown ? 0 : (progress.events - events) * 1000.0 / (now - shown), progress.position);
	if (progress.stable > 0)
		fprintf(stderr, " of %" PRId64, progress.stable);
	fprintf(stderr, "\033[K%s", last ? "\n" : "");
	shows_line = !last;
	shown = now;
	events = progress.events;
}

/* ------------------------------------------------------------------ signals */

/*
 * The end of a pipe that can be read when a signal has come.
 */
int
signal_socket(void)
{
	return signals[0];
}

static void
handle_signal(int signal)
{
	int			error = errno;
	ssize_t		written;

	(void) signal;
	stop_requested = 1;
	/* it fails if the pipe is full, which will do as well */
	written = write(signals[1], "", 1);
	(void) written;
	errno = error;
}

/*
 * The first signal asks to end in good order, the second one of its kind ends
 * the process at once.
 */
static void
set_signal_handlers(void)
{
	struct sigaction action = {.sa_handler = handle_signal, .sa_flags = (int) SA_RESETHAND};

	if (pipe2(signals, O_NONBLOCK | O_CLOEXEC) != 0)
	{
		report("cannot make a pipe: %s", strerror(errno));
		exit(1);
	}
	sigemptyset(&action.sa_mask);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
}

/* ------------------------------------------------------------------ options */

static void
show_help(void)
{
	puts("evpg-tail writes the events of a database with evpg as lines of JSON, one event per line.\n"
		 "\n"
		 "Usage: evpg-tail [OPTION]... [DBNAME]\n"
		 "\n"
		 "What is read:\n"
		 "  -s, --subscription=NAME    what this subscription hands out; without it the whole log\n"
		 "  -C, --consumer=NAME        name in the subscription's group (default: host and process id)\n"
		 "  -c, --checkpoint=FILE      file that keeps the position in the log; it continues there\n"
		 "  -p, --position=N           without a checkpoint yet: begin after position N (default 0)\n"
		 "      --from-now             without a checkpoint yet: begin with what is appended from now on\n"
		 "  -a, --aggregate-type=NAME  only events of this type of aggregate; may be repeated\n"
		 "  -e, --event-type=NAME      only events of this type; may be repeated\n"
		 "\n"
		 "How:\n"
		 "  -f, --follow               wait for more at the end\n"
		 "  -n, --max-events=N         end after N events\n"
		 "  -b, --batch=N              events that are read, and acknowledged, at once (default 500)\n"
		 "  -i, --interval=SECONDS     look for more at least this often (default 1)\n"
		 "      --no-listen            do not wait for notifications\n"
		 "      --no-reconnect         end when the connection is lost\n"
		 "      --progress             show the progress, also if standard error is no terminal\n"
		 "      --no-progress          do not show it there either\n"
		 "      --help, --version      show this, or the version, and end\n"
		 "\n"
		 "It connects as psql does: DBNAME may be a connection string, and PGHOST, PGUSER and so on are used.\n"
		 "Each event is written at least once; its position tells whether it was written before.");
}

/*
 * Ends the process for a wrong option.
 */
static void
refuse_option(const char *what)
{
	report("%s", what);
	fprintf(stderr, "Try \"evpg-tail --help\" for more information.\n");
	exit(1);
}

static int64_t
parse_number(const char *text, const char *option, int64_t least, int64_t most)
{
	char	   *end;
	int64_t		number;
	char		message[256];

	errno = 0;
	number = strtoll(text, &end, 10);
	if (end == text || *end != '\0' || errno != 0 || number < least || number > most)
	{
		snprintf(message, sizeof(message), "--%s needs a number from %" PRId64 " to %" PRId64, option, least, most);
		refuse_option(message);
	}
	return number;
}

static int
parse_interval(const char *text)
{
	char	   *end;
	double		seconds = strtod(text, &end);

	if (end == text || *end != '\0' || !(seconds >= 0.01 && seconds <= 86400))
		refuse_option("--interval needs seconds from 0.01 to 86400");
	return (int) (seconds * 1000);
}

/*
 * Adds an element to an array literal, which is NULL at first.
 */
static const char *
add_element(const char *array, const char *element)
{
	size_t		old = array == NULL ? 0 : strlen(array) - 2;
	char	   *longer = malloc(old + 2 * strlen(element) + 6);
	char	   *end = longer;

	if (longer == NULL)
		abort();
	*end++ = '{';
	if (array != NULL)
	{
		memcpy(end, array + 1, old);
		end += old;
		*end++ = ',';
	}
	*end++ = '"';
	for (; *element != '\0'; element++)
	{
		if (*element == '"' || *element == '\\')
			*end++ = '\\';
		*end++ = *element;
	}
	strcpy(end, "\"}");
	return longer;
}

enum
{
	OPTION_HELP = 256,
	OPTION_VERSION,
	OPTION_FROM_NOW,
	OPTION_NO_LISTEN,
	OPTION_NO_RECONNECT,
	OPTION_PROGRESS,
	OPTION_NO_PROGRESS
};

static const struct option long_options[] = {
	{"subscription", required_argument, NULL, 's'},
	{"consumer", required_argument, NULL, 'C'},
	{"checkpoint", required_argument, NULL, 'c'},
	{"position", required_argument, NULL, 'p'},
	{"from-now", no_argument, NULL, OPTION_FROM_NOW},
	{"aggregate-type", required_argument, NULL, 'a'},
	{"event-type", required_argument, NULL, 'e'},
	{"follow", no_argument, NULL, 'f'},
	{"max-events", required_argument, NULL, 'n'},
	{"batch", required_argument, NULL, 'b'},
	{"interval", required_argument, NULL, 'i'},
	{"no-listen", no_argument, NULL, OPTION_NO_LISTEN},
	{"no-reconnect", no_argument, NULL, OPTION_NO_RECONNECT},
	{"progress", no_argument, NULL, OPTION_PROGRESS},
	{"no-progress", no_argument, NULL, OPTION_NO_PROGRESS},
	{"help", no_argument, NULL, OPTION_HELP},
	{"version", no_argument, NULL, OPTION_VERSION},
	{NULL, 0, NULL, 0}
};

static void
take_option(int option)
{
	switch (option)
	{
		case 's':
			options.subscription = optarg;
			break;
		case 'C':
			options.consumer = optarg;
			break;
		case 'c':
			options.checkpoint = optarg;
			break;
		case 'p':
			options.after = parse_number(optarg, "position", 0, INT64_MAX);
			break;
		case 'a':
			options.aggregate_types = add_element(options.aggregate_types, optarg);
			break;
		case 'e':
			options.event_types = add_element(options.event_types, optarg);
			break;
		case 'f':
			options.follow = true;
			break;
		case 'n':
			options.max_events = parse_number(optarg, "max-events", 1, INT64_MAX);
			break;
		case 'b':
			options.batch = (int) parse_number(optarg, "batch", 1, 100000);
			break;
		case 'i':
			options.interval = parse_interval(optarg);
			break;
		case OPTION_FROM_NOW:
			options.from_now = true;
			break;
		case OPTION_NO_LISTEN:
			options.listens = false;
			break;
		case OPTION_NO_RECONNECT:
			options.reconnects = false;
			break;
		case OPTION_PROGRESS:
		case OPTION_NO_PROGRESS:
			options.progress = option == OPTION_PROGRESS;
			break;
		case OPTION_HELP:
			show_help();
			exit(0);
		case OPTION_VERSION:
			puts("evpg-tail " VERSION);
			exit(0);
		default:
			fprintf(stderr, "Try \"evpg-tail --help\" for more information.\n");
			exit(1);
	}
}

static void
read_options(int argc, char **argv)
{
	static char consumer[512];
	char		host[256] = "";
	int			option;

	options.progress = isatty(STDERR_FILENO);
	while ((option = getopt_long(argc, argv, "s:C:c:p:a:e:fn:b:i:", long_options, NULL)) != -1)
		take_option(option);
	if (optind < argc)
		options.dbname = argv[optind++];
	if (optind < argc)
		refuse_option("there are too many arguments");
	if (options.subscription == NULL && options.consumer != NULL)
		refuse_option("--consumer needs --subscription");
	if (options.subscription != NULL && (options.checkpoint != NULL || options.after > 0 || options.from_now))
		refuse_option("a subscription has a checkpoint of its own, and begins where it was created to begin");
	if (options.subscription != NULL && (options.aggregate_types != NULL || options.event_types != NULL))
		refuse_option("a subscription has filters of its own");
	if (options.consumer == NULL)
	{
		gethostname(host, sizeof(host) - 1);
		snprintf(consumer, sizeof(consumer), "%s:%d", host, (int) getpid());
		options.consumer = consumer;
	}
}

/* ------------------------------------------------------------------ the loop */

/*
 * Writes events until something ends that.  *worked becomes true if anything
 * was read.
 */
static Outcome
follow_source(Session *session, bool *worked)
{
	int			pause = SHORTEST_PAUSE;
	Outcome		outcome;

	for (;;)
	{
		int64_t		events = progress.events;
		bool		notified;

		if (stop_requested)
			return OUTCOME_STOP;
		outcome = take_page(session);
		if (outcome != OUTCOME_OK && outcome != OUTCOME_END)
			return outcome;
		*worked = true;
		show_progress(false);
		if (options.max_events > 0 && progress.events >= options.max_events)
			return OUTCOME_END;
		if (outcome == OUTCOME_OK)
			continue;
		if (!options.follow)
			return OUTCOME_END;

		/*
		 * a notification may come before the event can be read, and one may
		 * not come
		 */
		if (progress.events > events)
			pause = SHORTEST_PAUSE;
		outcome = wait_for_more(session, pause, &notified);
		if (outcome != OUTCOME_OK)
			return outcome;
		pause = notified ? SHORTEST_PAUSE : 2 * pause < options.interval ? 2 * pause : options.interval;
	}
}

/*
 * Waits before the next connection, longer each time, and not as long as others
 * that have lost theirs at the same moment.
 */
static void
back_off(int *backoff)
{
	struct timespec pause;
	int			wait = *backoff / 2 + (int) (random() % (*backoff / 2 + 1));

	report("connects again in %.1f s", wait / 1000.0);
	pause.tv_sec = wait / 1000;
	pause.tv_nsec = wait % 1000 * 1000000L;
	if (!stop_requested)
		nanosleep(&pause, NULL);
	*backoff = *backoff * 2 < LONGEST_BACKOFF ? *backoff * 2 : LONGEST_BACKOFF;
}

static Outcome
tail_events(void)
{
	Session		session = {0};
	int			backoff = FIRST_BACKOFF;
	Outcome		outcome;

	for (;;)
	{
		bool		worked = false;

		outcome = open_session(&session);
		if (outcome == OUTCOME_OK)
			outcome = begin_source(&session);
		if (outcome == OUTCOME_OK)
			outcome = follow_source(&session, &worked);
		if (outcome != OUTCOME_LOST)
			leave_source(&session);
		close_session(&session);
		if (stop_requested && outcome == OUTCOME_LOST)
			outcome = OUTCOME_STOP;
		if (outcome != OUTCOME_LOST || !options.reconnects)
			return outcome;
		if (worked)
			backoff = FIRST_BACKOFF;
		back_off(&backoff);
	}
}

int
main(int argc, char **argv)
{
	Outcome		outcome;

	read_options(argc, argv);
	srandom((unsigned int) (milliseconds() ^ getpid()));
	set_signal_handlers();
	if (!open_output() || !open_checkpoint())
		return 1;
	outcome = tail_events();
	show_progress(true);
	if (outcome == OUTCOME_CLOSED)
	{
		/* as a program ends that does not ask: pipelines know it */
		signal(SIGPIPE, SIG_DFL);
		raise(SIGPIPE);
	}
	return outcome == OUTCOME_END || outcome == OUTCOME_STOP ? 0 : 1;
}
