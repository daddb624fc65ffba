/*-------------------------------------------------------------------------
 *
 * testing.c
 *		Hooks for tests; empty unless built with -DEVPG_TEST.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/testing.h"

#ifdef EVPG_TEST

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/proc.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"

/* No class of locks.h: those are not keys of pg_advisory_lock. */
#define WAIT_KEY 17700

static char *mutation;
static char *wait_point;
static int	passed = 0;			/* how often it was passed */

/* Shows a defect in pg_stat_activity. */
static void
show_mutation(const char *name)
{
	char		text[NAMEDATALEN];

	snprintf(text, sizeof(text), "mutation %s", name);
	pgstat_report_appname(text);
}

/* What a background process reads again it shows; of a session the name is the client's. */
static void
assign_mutation(const char *newval, void *extra)
{
	if (MyBgworkerEntry != NULL && strncmp(MyBgworkerEntry->bgw_type, "evpg ", 5) == 0)
		show_mutation(newval);
}

static void
assign_wait_point(const char *newval, void *extra)
{
	passed = 0;
}

/*
 * EvpgTestingInit
 *		Defines the settings of the hooks; called once, from _PG_init, before
 *		the prefix of the settings is reserved.  They are not shown: the list
 *		of settings is tested.
 */
void
EvpgTestingInit(void)
{
	DefineCustomStringVariable("evpg.test_mutation", "The defect that this session has.", NULL,
							   &mutation, "", PGC_SUSET, GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE,
							   NULL, assign_mutation, NULL);
	DefineCustomStringVariable("evpg.test_wait", "The point where this session waits.", NULL,
							   &wait_point, "", PGC_SUSET, GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE,
							   NULL, assign_wait_point, NULL);
}

/* Returns whether evpg.test_mutation has that name. */
bool
EvpgTestingMutation(const char *name)
{
	return strcmp(mutation, name) == 0;
}

/* Shows the defect of a background process, which has connected to its database, in pg_stat_activity. */
void
EvpgTestingTellMutation(void)
{
	show_mutation(mutation);
}

/* Waits, if evpg.test_wait has that name, for the session that holds the advisory lock WAIT_KEY. */
void
EvpgTestingWait(const char *name)
{
	size_t		length = strcspn(wait_point, ":");
	int			timeout = LockTimeout;

	if (strlen(name) != length || strncmp(wait_point, name, length) != 0)
		return;
	passed++;
	if (wait_point[length] == ':' && atoi(wait_point + length + 1) != passed)
		return;
	/* It waits for the test, however long that takes. */
	LockTimeout = 0;
	DirectFunctionCall1(pg_advisory_lock_shared_int8, Int64GetDatum(WAIT_KEY));
	LockTimeout = timeout;
	DirectFunctionCall1(pg_advisory_unlock_shared_int8, Int64GetDatum(WAIT_KEY));
}

/* Does what must never happen, if evpg.test_mutation is one of the planted faults. */
void
EvpgTestingPlant(int64 n)
{
	if (MyBackendType != B_BACKEND)
		return;
	if (EvpgTestingMutation("planted_crash"))
		abort();
	Assert(!EvpgTestingMutation("planted_assertion"));
	if (EvpgTestingMutation("planted_lock"))
		DirectFunctionCall1(pg_advisory_lock_int8, Int64GetDatum(n));
	if (EvpgTestingMutation("planted_error"))
		elog(ERROR, "planted error");
}

#endif
