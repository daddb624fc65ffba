/*
 * clock.c
 *		A clock for bench/instructions: each look at it is a microsecond later.
 *
 * evpg and PostgreSQL do some things by time, as the end of a batch after half a
 * second.  Under callgrind, and beside other work, there would be more of them.
 *
 * Preloaded into the session that is measured (LD_PRELOAD).
 */
#include <sys/time.h>
#include <time.h>

#define MICROSECONDS 1000000

static long long
look(void)
{
	static long long now = 0;

	if (now == 0)
		now = (long long) time(NULL) * MICROSECONDS;
	return ++now;
}

int
gettimeofday(struct timeval *restrict when, void *restrict zone)
{
	long long	now = look();

	(void) zone;
	when->tv_sec = now / MICROSECONDS;
	when->tv_usec = now % MICROSECONDS;
	return 0;
}

int
clock_gettime(clockid_t id, struct timespec *when)
{
	long long	now = look();

	(void) id;
	when->tv_sec = now / MICROSECONDS;
	when->tv_nsec = now % MICROSECONDS * 1000;
	return 0;
}
