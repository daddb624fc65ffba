/*-------------------------------------------------------------------------
 *
 * utility_hook.c
 *		The ProcessUtility hook: keeps background processes out of the way of
 *		commands on whole databases, reports the end of prepared transactions,
 *		for which there is no callback, and lets the shared directory of streams forget
 *		what may have been changed past evpg.
 *
 * It is installed only if the library was preloaded: else there are no
 * background processes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "base/compat.h"
#include "base/shmem.h"
#include "base/wakeup.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "log/durable.h"
#include "log/stream_directory.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/syscache.h"
#include "worker/utility_hook.h"

static ProcessUtility_hook_type next_utility_hook = NULL;

/* Returns the value of an option of a statement; NULL if it is not given. */
static const char *
find_option_value(List *options, const char *name)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = lfirst(cell);

		if (strcmp(option->defname, name) == 0 && option->arg != NULL)
			return defGetString(option);
	}
	return NULL;
}

/*
 * Returns the database to which no other session may be connected, NULL if the
 * statement is not about one.
 */
static const char *
find_exclusive_database(Node *statement)
{
	if (IsA(statement, DropdbStmt))
		return ((DropdbStmt *) statement)->dbname;
	if (IsA(statement, CreatedbStmt))
	{
		const char *template = find_option_value(((CreatedbStmt *) statement)->options, "template");

		return template != NULL ? template : "template1";
	}
	if (IsA(statement, RenameStmt) && ((RenameStmt *) statement)->renameType == OBJECT_DATABASE)
		return ((RenameStmt *) statement)->subname;
	if (IsA(statement, AlterDatabaseStmt) &&
		find_option_value(((AlterDatabaseStmt *) statement)->options, "tablespace") != NULL)
		return ((AlterDatabaseStmt *) statement)->dbname;
	return NULL;
}

/*
 * Returns whether the user may create databases.  The server's own function is
 * not exported by all minor releases of 15.
 */
static bool
may_create_databases(void)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
	ReleaseSysCache(tuple);
	return result;
}

/* Returns whether the user may do to a database what the statement asks for. */
static bool
may_change_database(Node *statement, Oid database)
{
	HeapTuple	tuple;
	bool		template;

	if (object_ownercheck(DatabaseRelationId, database, GetUserId()))
		return true;
	if (!IsA(statement, CreatedbStmt) || !may_create_databases())
		return false;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	if (!HeapTupleIsValid(tuple))
		return false;
	template = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	ReleaseSysCache(tuple);
	return template;
}

/*
 * Ends the background processes of a database that a statement needs for
 * itself, if the user has the right to run the statement.
 */
static void
dismiss_processes(Node *statement)
{
	const char *name = find_exclusive_database(statement);
	Oid			database = name == NULL ? InvalidOid : get_database_oid(name, true);

	if (OidIsValid(database) && may_change_database(statement, database))
		EvpgShmemDismissDatabase(database);
	/* Any may say whether it is a template, or takes connections. */
	if (name != NULL || IsA(statement, AlterDatabaseStmt))
		EvpgRescanDatabasesAtEnd();
	if (IsA(statement, CreateExtensionStmt) && strcmp(((CreateExtensionStmt *) statement)->extname, "evpg") == 0)
		EvpgWakeLauncherAtCommit();
}

/*
 * Returns whether a statement ends a prepared transaction.  There is no
 * callback for that, so the session that runs it wakes what has to know.
 */
static bool
ends_prepared_transaction(Node *statement)
{
	return IsA(statement, TransactionStmt) &&
		(((TransactionStmt *) statement)->kind == TRANS_STMT_COMMIT_PREPARED ||
		 ((TransactionStmt *) statement)->kind == TRANS_STMT_ROLLBACK_PREPARED);
}

/*
 * Returns what is to be done after a statement that may have let others, or the rest of
 * the transaction, change the log past evpg, or that gives an OID of a database free: a
 * function of stream_directory.c, or NULL.  Asked before the statement runs, since it may
 * be gone afterwards: a procedure that ends its transaction frees the CALL.
 */
static void (*get_forgetting(Node *statement)) (void)
{
	if (IsA(statement, AlterTableStmt) || IsA(statement, RenameStmt) || IsA(statement, CreateTrigStmt) ||
		(IsA(statement, DropStmt) && ((DropStmt *) statement)->removeType == OBJECT_TRIGGER))
		return EvpgStreamDirectoryForget;
	return IsA(statement, DropdbStmt) ? EvpgStreamDirectoryForgetAll : NULL;
}

/* Runs a statement as if there were no hook of evpg. */
static void
run_utility_statement(PlannedStmt *statement, const char *query, bool read_only_tree,
					  ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *environment,
					  DestReceiver *receiver, QueryCompletion *completion)
{
	if (next_utility_hook != NULL)
		next_utility_hook(statement, query, read_only_tree, context, params, environment, receiver, completion);
	else
		standard_ProcessUtility(statement, query, read_only_tree, context, params, environment, receiver, completion);
}

/*
 * Dismisses processes before commands on whole databases, reports the end of
 * prepared transactions, and lets the directory of streams forget; the ProcessUtility
 * hook.
 */
static void
process_utility_statement(PlannedStmt *statement, const char *query, bool read_only_tree,
						  ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *environment,
						  DestReceiver *receiver, QueryCompletion *completion)
{
	void		(*forget) (void) = get_forgetting(statement->utilityStmt);

	dismiss_processes(statement->utilityStmt);
	if (!ends_prepared_transaction(statement->utilityStmt))
	{
		run_utility_statement(statement, query, read_only_tree, context, params, environment, receiver, completion);
		if (forget != NULL)
			forget();
		return;
	}
	EvpgDurablePreparedBegin();
	PG_TRY();
	{
		run_utility_statement(statement, query, read_only_tree, context, params, environment, receiver, completion);
	}
	PG_FINALLY();
	{
		EvpgDurablePreparedEnd();
	}
	PG_END_TRY();
	EvpgWakeAllProcesses();
}

/* Installs the ProcessUtility hook, if the library is preloaded.  Called once, from _PG_init. */
void
EvpgUtilityHookInit(void)
{
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;
	next_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility_statement;
}
