/*-------------------------------------------------------------------------
 *
 * interference.c
 *		Reports work of this worker that other sessions have kept from being done for
 *		long, by their locks or by what they have changed.
 *
 * A worker that meets such an error tries again a little later, and does not log it:
 * most are over at once.  What fails for more than a minute in a row is logged once,
 * and during the next attempt the server logs each wait for a lock, as with
 * log_lock_waits: with the lock and the process that holds it.
 *
 * Memory: a list in TopMemoryContext of what is being kept from its work, empty in
 * normal operation.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/interference.h"
#include "base/testing.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "portability/instr_time.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/memutils.h"

/* What has failed in a row for so long is logged; s. */
#define LONGEST_SILENCE 60

/* Work that other sessions keep from being done; a name is unique among those of a kind. */
typedef struct Interference
{
	const void *kind;
	char	   *name;
	instr_time	since;
	bool		logged;
} Interference;

static List *interferences = NIL;

/* The work until whose next attempt has ended log_lock_waits is on; NULL: none. */
static const Interference *lock_waits_logged_for = NULL;

static Interference *
find_interference(const void *kind, const char *name)
{
	ListCell   *cell;

	foreach(cell, interferences)
	{
		Interference *found = lfirst(cell);

		if (found->kind == kind && strcmp(found->name, name) == 0)
			return found;
	}
	return NULL;
}

static Interference *
add_interference(const void *kind, const char *name)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	Interference *added = palloc0(sizeof(Interference));

	added->kind = kind;
	added->name = pstrdup(name);
	INSTR_TIME_SET_CURRENT(added->since);
	interferences = lappend(interferences, added);
	MemoryContextSwitchTo(old);
	return added;
}

/* Returns the name of this database, of which outside a transaction only the OID is known. */
static const char *
name_database(void)
{
	return IsTransactionState() ? get_database_name(MyDatabaseId) : psprintf("%u", MyDatabaseId);
}

/* Sets log_lock_waits as it is configured, perhaps since a reload meanwhile. */
static void
stop_logging_lock_waits(const Interference *of)
{
	if (lock_waits_logged_for != of)
		return;
	log_lock_waits = strcmp(GetConfigOptionResetString("log_lock_waits"), "on") == 0;
	lock_waits_logged_for = NULL;
}

/*
 * EvpgInterferenceNote
 *		Notes that an error, which other sessions have caused, has kept work of this
 *		worker from being done; logs it once if that has been so for long.  kind and name
 *		identify the work.  The error may be one that code of a user has raised with such a
 *		SQLSTATE: its message, which may have personal data, is not logged.
 */
void
EvpgInterferenceNote(const void *kind, const char *name, const ErrorData *error)
{
	Interference *found = find_interference(kind, name);
	instr_time	lasted;

	if (found == NULL)
		found = add_interference(kind, name);
	stop_logging_lock_waits(found);
	INSTR_TIME_SET_CURRENT(lasted);
	INSTR_TIME_SUBTRACT(lasted, found->since);
	if (found->logged || INSTR_TIME_GET_DOUBLE(lasted) < (EVPG_MUTATION("impatient") ? 1 : LONGEST_SILENCE))
		return;
	found->logged = true;
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("other sessions have kept \"%s\" of database \"%s\" from being run for %d seconds", name,
					name_database(), (int) INSTR_TIME_GET_DOUBLE(lasted)),
			 errdetail("The last error has SQLSTATE %s.", unpack_sql_state(error->sqlerrcode)),
			 errhint("Waits for locks in the next attempt are logged with the processes that hold them; "
					 "pg_blocking_pids() of the worker shows them, too.")));
	if (log_lock_waits)
		return;
	log_lock_waits = true;
	lock_waits_logged_for = found;
}

/* Notes that work has been done, or has failed by itself; logs that, if its delay was logged. */
void
EvpgInterferenceEnd(const void *kind, const char *name)
{
	Interference *found;

	if (interferences == NIL || (found = find_interference(kind, name)) == NULL)
		return;
	stop_logging_lock_waits(found);
	if (found->logged)
		ereport(LOG,
				(errmsg("\"%s\" of database \"%s\" runs again", name, name_database())));
	interferences = list_delete_ptr(interferences, found);
	pfree(found->name);
	pfree(found);
}
