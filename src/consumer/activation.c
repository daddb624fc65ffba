/*-------------------------------------------------------------------------
 *
 * activation.c
 *		Whether this database is the one in which evpg was created, or a restored copy:
 *		consumers of a copy would send commands and messages a second time, so they
 *		are inactive until evpg_activate_consumers().
 *
 * evpg.activation names the system identifier and the database to which it belongs.
 * CREATE EXTENSION writes one row, and a dump saves it.  After a restore there is
 * also the row of the database it came from, so consumers may run if there are rows
 * and all of them are of this database.  A copy of the whole cluster has the same
 * identifier and the same databases: nothing distinguishes it from the original.
 *
 * A restore fills the tables in any order: pg_restore -j takes the largest first, and
 * this one last.  So what inserts work for workers without being evpg leaves a row
 * with zeros in the same transaction (EvpgActivationNoteForeignRows).  It counts until
 * the dumped row has come, and is of this database, too.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "base/catalog.h"
#include "base/registration.h"
#include "base/statement.h"
#include "base/wakeup.h"
#include "catalog/pg_type.h"
#include "consumer/activation.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"

PG_FUNCTION_INFO_V1(evpg_activate_consumers);
PG_FUNCTION_INFO_V1(evpg_is_activated);

/* Sets the columns that the row of this database has, which are parameters. */
static void
set_own_database(Datum values[2])
{
	values[0] = Int64GetDatum((int64) GetSystemIdentifier());
	values[1] = ObjectIdGetDatum(MyDatabaseId);
}

static EvpgStatement select_activation = {
	.text = "SELECT bool_and(is_own) FILTER (WHERE system_identifier <> 0)"
	"       AND (count(*) FILTER (WHERE is_own) > 1 OR bool_and(system_identifier <> 0))"
	" FROM (SELECT system_identifier, system_identifier = $1 AND database = $2 AS is_own FROM evpg.activation) a",
	.types = {INT8OID, OIDOID}
};

/*
 * EvpgActivationIsValid
 *		Returns whether consumers may run in this database.  Reads it with the latest
 *		snapshot, so work that was read before is not that of a restore if
 *		it returns true.  The caller is inside EvpgEnter, here and below.
 */
bool
EvpgActivationIsValid(void)
{
	Datum		values[2];
	Datum		here;
	bool		result;

	set_own_database(values);
	(void) EvpgStatementReadLatest(&select_activation, values, NULL);
	result = EvpgResultDatum(0, 1, &here) && DatumGetBool(here);
	EvpgStatementDone();
	return result;
}

/* Reports that consumers may not run in this database, unless they may. */
static void
report_inactive(int level)
{
	if (!EvpgActivationIsValid())
		ereport(level,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("consumers of this database are inactive"),
				 errdetail("It was restored or copied, and the original may still run them."),
				 errhint("Run evpg_activate_consumers() if they are to run here.")));
}

/* Raises an error if consumers may not run in this database. */
void
EvpgActivationRequire(void)
{
	report_inactive(ERROR);
}

/* Raises a NOTICE if consumers may not run in this database, since what was asked for has no effect until they may. */
void
EvpgActivationNotice(void)
{
	report_inactive(NOTICE);
}

static EvpgStatement insert_foreign_rows = {
	.text = "INSERT INTO evpg.activation (system_identifier, database) VALUES (0, 0)"
};

/*
 * EvpgActivationNoteForeignRows
 *		Makes consumers inactive, since a session inserts work for workers into a table
 *		of evpg by itself, as a restore does.  Called before each row or statement;
 *		writes once in a subtransaction.
 */
void
EvpgActivationNoteForeignRows(void)
{
	static FullTransactionId noted_xact = {0};
	static SubTransactionId noted_subxact = InvalidSubTransactionId;
	FullTransactionId xact = GetTopFullTransactionId();
	SubTransactionId subxact = GetCurrentSubTransactionId();
	EvpgScope	scope;

	if (FullTransactionIdEquals(xact, noted_xact) && subxact == noted_subxact)
		return;
	EvpgEnter(&scope, NULL);
	EvpgStatementExecute(&insert_foreign_rows, NULL, NULL);
	EvpgLeave(&scope);
	noted_xact = xact;
	noted_subxact = subxact;
}

/* Sequences that have not drawn a number that a row has; with $1 they are set to the highest. */
static EvpgStatement select_sequences_behind = {
	.text = "SELECT s.sequence::oid, CASE WHEN $1 THEN setval(s.sequence, s.highest) END"
	" FROM (VALUES ('evpg.event_position'::regclass, GREATEST("
	"(SELECT max(position) FROM evpg.event_log),"
	" (SELECT max(position) FROM evpg.projection_state),"
	" (SELECT max(rebuilt_position) FROM evpg.projection),"
	" (SELECT max(checkpoint) FROM evpg.consumer))),"
	" ('evpg.stream_stream_id_seq', (SELECT max(stream_id) FROM evpg.stream)),"
	" ('evpg.projection_build', GREATEST("
	"(SELECT max(build) FROM evpg.projection),"
	" (SELECT max(build) FROM evpg.rebuild),"
	" (SELECT max(build) FROM evpg.old_build),"
	" (SELECT max(build) FROM evpg.projection_state))),"
	" ('evpg.timer_timer_id_seq', (SELECT max(timer_id) FROM evpg.timer)),"
	" ('evpg.dead_letter_dead_letter_id_seq', (SELECT max(dead_letter_id) FROM evpg.dead_letter)),"
	" ('evpg.parked_event_parked_event_id_seq', (SELECT max(parked_event_id) FROM evpg.parked_event))"
	") AS s (sequence, highest)"
	" WHERE s.highest > COALESCE(pg_sequence_last_value(s.sequence), 0)",
	.types = {BOOLOID}
};

/*
 * Sets sequences past the numbers that rows have, since logical replication copies
 * rows and does not draw; returns false if no sequence was behind, as nearly always.
 * Locks the sequences, so that sessions that draw wait, and those that have drawn and
 * not committed are waited for.
 */
static bool
advance_sequences(void)
{
	Datum		set = BoolGetDatum(false);
	uint64		behind = EvpgStatementReadLatest(&select_sequences_behind, &set, NULL);
	Oid		   *sequences = NULL;

	if (behind > 0)
		sequences = SPI_palloc(sizeof(Oid) * behind);
	for (uint64 i = 0; i < behind; i++)
	{
		Datum		value;

		(void) EvpgResultDatum(i, 1, &value);
		sequences[i] = DatumGetObjectId(value);
	}
	EvpgStatementDone();
	for (uint64 i = 0; i < behind; i++)
		LockRelationOid(sequences[i], ShareRowExclusiveLock);
	if (behind > 0)
	{
		set = BoolGetDatum(true);
		behind = EvpgStatementReadLatest(&select_sequences_behind, &set, NULL);
		EvpgStatementDone();
	}
	return behind > 0;
}

/* Returns whether consumers may run in this database, for views. */
Datum
evpg_is_activated(PG_FUNCTION_ARGS)
{
	EvpgScope	scope;
	bool		here;

	EvpgEnter(&scope, NULL);
	here = EvpgActivationIsValid();
	EvpgLeave(&scope);
	PG_RETURN_BOOL(here);
}

static EvpgStatement draw_numbers = {
	.text = "SELECT count(nextval(s.name::regclass))"
	" FROM unnest('{evpg.event_position,evpg.stream_stream_id_seq,evpg.projection_build,evpg.timer_timer_id_seq,"
	"evpg.dead_letter_dead_letter_id_seq,evpg.parked_event_parked_event_id_seq}'::text[]) AS s (name),"
	" generate_series(1, 33)"
	" WHERE pg_sequence_last_value(s.name::regclass) IS NOT NULL"
};

static EvpgStatement update_activation = {
	.text = "WITH d AS (DELETE FROM evpg.activation)"
	" INSERT INTO evpg.activation (system_identifier, database) VALUES ($1, $2)",
	.types = {INT8OID, OIDOID}
};

/*
 * evpg_activate_consumers()
 *		Lets consumers run in this database, and sets sequences past the numbers that
 *		rows have; returns false if nothing had to be done.
 */
Datum
evpg_activate_consumers(PG_FUNCTION_ARGS)
{
	EvpgScope	scope;
	Datum		values[2];
	bool		inactive;
	bool		behind;

	EvpgEnter(&scope, "evpg_activate_consumers()");
	behind = advance_sequences();
	inactive = !EvpgActivationIsValid();
	if (inactive)
	{
		set_own_database(values);
		EvpgStatementExecute(&update_activation, values, NULL);

		/*
		 * A sequence of a copied database may have drawn ahead of the WAL: a
		 * crash would take positions back.  So many draws write it.
		 */
		EvpgStatementExecute(&draw_numbers, NULL, NULL);
	}
	if (inactive)
		/* Sessions know of each inline saga whether it runs. */
		EvpgRegistrationInvalidate(EvpgCatalogGet()->saga);
	if (inactive || behind)
	{
		EvpgWakeLauncherAtCommit();
		EvpgWakeConsumersAtEnd();
	}
	EvpgLeave(&scope);
	PG_RETURN_BOOL(inactive || behind);
}
