/*
 * output.c
 *		Where evpg-tail writes: lines on standard output, and the checkpoint.
 *
 * At least once: the checkpoint moves, and a batch is acknowledged, when its
 * lines are written, and on disk if the output is a file.  A process that is
 * killed in the middle of a line leaves a part of it in the file; the next one
 * begins on a line of its own, so that the part spoils nothing but itself, and
 * writes the event again.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tail.h"

#define OUTPUT STDOUT_FILENO
#define GIVE_UP_AFTER 5000		/* milliseconds after a signal in which
								 * nothing could be written */
#define KEEP_LEASE_EVERY 2000	/* milliseconds of waiting for the reader */

static char buffer[65536];
static size_t filled;
static bool is_file;			/* of a disk, which can lose what was written */
static bool may_block;			/* a pipe, a socket or a terminal */

static int64_t saved_position = -1;
static char *new_name;			/* of the checkpoint until it is complete */
static char *directory;			/* of the checkpoint */

/*
 * Whether a file that the output continues ends within a line.
 */
static bool
ends_within_line(void)
{
	char		path[64];
	char		last = '\n';
	off_t		end = lseek(OUTPUT, 0, SEEK_END);
	int			file;

	if (end <= 0)
		return false;
	/* the descriptor may be for writing only */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", OUTPUT);
	file = open(path, O_RDONLY);
	if (file < 0)
		file = dup(OUTPUT);
	if (pread(file, &last, 1, end - 1) != 1)
		last = '\n';
	close(file);
	return last != '\n';
}

/*
 * Looks what standard output is; on failure reports, and returns false.
 */
bool
open_output(void)
{
	struct stat status;

	if (fstat(OUTPUT, &status) != 0)
	{
		report("cannot write to standard output: %s", strerror(errno));
		return false;
	}
	is_file = S_ISREG(status.st_mode);
	may_block = !is_file;
	if (is_file && ends_within_line())
		buffer[filled++] = '\n';
	return true;
}

/*
 * The events of poll() that show that nothing reads the output any more.
 */
int
output_events(void)
{
	return POLLERR | POLLHUP | POLLNVAL;
}

/*
 * Waits until a part of the output can be written without waiting.  A signal
 * ends that after a while, since its reader may be stuck.
 */
static Outcome
wait_for_reader(void)
{
	int64_t		began = milliseconds();
	int64_t		kept = began;
	int64_t		stopped = 0;

	for (;;)
	{
		struct pollfd wait = {.fd = OUTPUT, .events = POLLOUT};
		int			ready = poll(&wait, 1, 100);

		if (ready < 0 && errno != EINTR)
			return OUTCOME_FAILED;
		if (ready > 0)
			return OUTCOME_OK;
		if (stop_requested && stopped == 0)
			stopped = milliseconds();
		if (stopped != 0 && milliseconds() - stopped > GIVE_UP_AFTER)
			return OUTCOME_STOP;
		if (milliseconds() - kept > KEEP_LEASE_EVERY)
		{
			keep_lease();
			kept = milliseconds();
		}
	}
}

/*
 * Writes bytes.  A pipe that is ready takes PIPE_BUF at once.
 */
static Outcome
write_bytes(const char *bytes, size_t length)
{
	while (length > 0)
	{
		size_t		part = may_block && length > PIPE_BUF ? PIPE_BUF : length;
		ssize_t		written;

		if (may_block)
		{
			Outcome		outcome = wait_for_reader();

			if (outcome != OUTCOME_OK)
				return outcome;
		}
		written = write(OUTPUT, bytes, part);
		if (written >= 0)
		{
			bytes += written;
			length -= written;
			progress.bytes += written;
		}
		else if (errno == EPIPE)
			return OUTCOME_CLOSED;
		else if (errno != EINTR && errno != EAGAIN)
		{
			report("cannot write to standard output: %s", strerror(errno));
			return OUTCOME_FAILED;
		}
	}
	return OUTCOME_OK;
}

static Outcome
empty_buffer(void)
{
	size_t		length = filled;

	filled = 0;
	return write_bytes(buffer, length);
}

/*
 * Writes a line, which may stay in memory until flush_output().
 */
Outcome
write_line(const char *line, size_t length)
{
	Outcome		outcome = OUTCOME_OK;

	if (filled + length + 1 > sizeof(buffer))
		outcome = empty_buffer();
	if (outcome == OUTCOME_OK && length + 1 > sizeof(buffer))
	{
		outcome = write_bytes(line, length);
		line += length;
		length = 0;
	}
	if (outcome != OUTCOME_OK)
		return outcome;
	memcpy(buffer + filled, line, length);
	filled += length;
	buffer[filled++] = '\n';
	return OUTCOME_OK;
}

/*
 * Hands over all lines: to the reader, or to the disk.
 */
Outcome
flush_output(void)
{
	Outcome		outcome = empty_buffer();

	if (outcome == OUTCOME_OK && is_file && fdatasync(OUTPUT) != 0)
	{
		report("cannot write to standard output: %s", strerror(errno));
		return OUTCOME_FAILED;
	}
	return outcome;
}

/*
 * Lets only one process use a checkpoint, until this one ends: two that shared
 * one would each miss what the other has written.
 */
static bool
lock_checkpoint(void)
{
	char	   *name;
	int			file;

	if (asprintf(&name, "%s.lock", options.checkpoint) < 0)
		abort();
	file = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
	if (file < 0)
		report("cannot create %s: %s", name, strerror(errno));
	else if (flock(file, LOCK_EX | LOCK_NB) != 0)
	{
		report("another process uses the checkpoint %s", options.checkpoint);
		file = -1;
	}
	free(name);
	return file >= 0;
}

/*
 * Locks and reads the checkpoint, if there is one; what it holds takes the
 * place of the options.  On failure reports, and returns false.
 */
bool
open_checkpoint(void)
{
	FILE	   *file;
	char		line[64];
	char	   *end = line;
	char	   *slash;

	if (options.checkpoint == NULL)
		return true;
	if (!lock_checkpoint())
		return false;
	if (asprintf(&new_name, "%s.new", options.checkpoint) < 0)
		abort();
	directory = strdup(options.checkpoint);
	slash = strrchr(directory, '/');
	if (slash == NULL)
		strcpy(directory, ".");
	else
		slash[slash == directory ? 1 : 0] = '\0';

	file = fopen(options.checkpoint, "r");
	if (file == NULL && errno == ENOENT)
		return true;
	if (file == NULL || fgets(line, sizeof(line), file) == NULL)
		line[0] = '\0';
	if (file != NULL)
		fclose(file);
	if (line[0] >= '0' && line[0] <= '9')
	{
		errno = 0;
		options.after = strtoll(line, &end, 10);
		options.from_now = false;
	}
	if (end == line || *end != '\n' || errno == ERANGE)
	{
		report("%s is not a checkpoint of evpg-tail: it must hold a position and nothing else", options.checkpoint);
		return false;
	}
	saved_position = options.after;
	return true;
}

/*
 * Brings a file or a directory to the disk; false on failure, with errno.
 */
static bool
sync_path(const char *path, int flags)
{
	int			file = open(path, flags | O_CLOEXEC);
	bool		done = file >= 0 && fsync(file) == 0;

	if (file >= 0)
		close(file);
	return done;
}

/*
 * Replaces the checkpoint by the current position, as a whole: after a crash it
 * is the old one or the new one.  On failure reports, and returns false.
 */
bool
save_checkpoint(void)
{
	FILE	   *file;
	bool		done;

	if (options.checkpoint == NULL || progress.position == saved_position)
		return true;
	file = fopen(new_name, "w");
	done = file != NULL && fprintf(file, "%" PRId64 "\n", progress.position) > 0;
	if (file != NULL && fclose(file) != 0)
		done = false;
	if (!done || !sync_path(new_name, O_WRONLY) || rename(new_name, options.checkpoint) != 0 ||
		!sync_path(directory, O_RDONLY | O_DIRECTORY))
	{
		report("cannot write the checkpoint %s: %s", options.checkpoint, strerror(errno));
		return false;
	}
	saved_position = progress.position;
	return true;
}
