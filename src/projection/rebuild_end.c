/*-------------------------------------------------------------------------
 *
 * rebuild_end.c
 *		The end of a rebuild: one transaction that applies the last events and makes
 *		the new build the one that is read.
 *
 * For an inline projection it keeps appenders out by evpg.fence; for an
 * asynchronous one the caller owns the consumer.  In the background it waits for
 * appenders briefly, since others queue behind it, and fails with an error that is
 * transient if it does not get its locks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/catalog.h"
#include "base/registration.h"
#include "base/statement.h"
#include "base/testing.h"
#include "base/wakeup.h"
#include "broadcast/broadcast.h"
#include "catalog/pg_type.h"
#include "consumer/checkpoint.h"
#include "consumer/parked_event.h"
#include "log/fence.h"
#include "projection/apply.h"
#include "projection/rebuild.h"
#include "projection/rebuild_tables.h"
#include "storage/lmgr.h"
#include "usercode/function_call.h"
#include "usercode/guard.h"
#include "utils/builtins.h"
#include "utils/guc.h"

/* How many times a rebuild that is about to exchange tables applies the last events in a batch of their own first. */
#define MAX_POSTPONEMENTS 5

/* How long the end of a rebuild waits for appenders, which keeps other sessions waiting, too. */
#define END_LOCK_TIMEOUT "200ms"

/* Lets the reset function empty the tables of a projection. */
static void
call_reset_function(EvpgProjection *projection)
{
	EvpgFunction *reset = EvpgFunctionResolve(projection->reset_signature, EVPG_ROLE_RESET, projection->registered_by,
											  projection->search_path);
	Datum	   *rows;
	bool	   *nulls;

	EvpgInsideProjection = true;
	PG_TRY();
	{
		(void) EvpgFunctionCall(reset, NULL, false, 1, &rows, &nulls);
	}
	PG_FINALLY();
	{
		EvpgInsideProjection = false;
	}
	PG_END_TRY();
}

/*
 * Raises an error if a transaction that has appended stays open: to queue
 * behind it would be in vain, and other appenders would queue behind us.
 */
static void
refuse_open_appenders(void)
{
	int64		drawn = EvpgFenceLastDrawn();

	if (EvpgFenceStablePosition(true) < drawn)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("the rebuild cannot end while a transaction that has appended stays open"),
				 errdetail("It is tried again.")));
}

/*
 * Keeps out all transactions that write to the projection, and finds the last
 * position that they have written.  The caller has the rebuild alone, and owns the
 * consumer of an asynchronous projection.
 */
static void
exclude_writers(EvpgRebuild *rebuild)
{
	int64		position;

	if (!rebuild->foreground && rebuild->projection->mode == EVPG_MODE_INLINE)
		refuse_open_appenders();
	if (rebuild->projection->mode == EVPG_MODE_INLINE)
		LockRelationOid(EvpgCatalogGet()->fence, ShareRowExclusiveLock);
	position = EvpgFenceStablePosition(false);
	if (rebuild->projection->mode == EVPG_MODE_INLINE)
		position = EvpgFenceLastDrawn();
	rebuild->projection = EvpgProjectionGet(rebuild->name, false);
	rebuild->upto = Max(rebuild->upto, position);

	/*
	 * A part may be further: the stable position goes back when an appender
	 * takes its locks long after it has read what was drawn.  What was
	 * decided before stays so, and what the part has applied must not be
	 * applied again.
	 */
	for (int part = 0; part < rebuild->parts; part++)
		rebuild->upto = Max(rebuild->upto, rebuild->checkpoints[part]);
}

/* generation_base grows by the highest generation of the rows that are replaced: generations never go back. */
static EvpgStatement replace_build = {
	.text = "WITH r AS (DELETE FROM evpg.rebuild WHERE name = $1 RETURNING build),"
	" x AS (DELETE FROM evpg.rebuild_part USING r WHERE rebuild_part.build = r.build),"
	" o AS (INSERT INTO evpg.old_build (build, name, replaced)"
	" SELECT build, name, true FROM evpg.projection WHERE name = $1)"
	" UPDATE evpg.projection p"
	" SET build = r.build, rebuilt_position = $2, generation_base = p.generation_base + COALESCE("
	"(SELECT s.generation FROM evpg.projection_state s WHERE s.build = p.build AND s.generation > 1"
	" ORDER BY s.generation DESC LIMIT 1),"
	" CASE WHEN EXISTS (SELECT FROM evpg.projection_state s WHERE s.build = p.build) THEN 1 ELSE 0 END)"
	" FROM r"
	" WHERE p.name = $1",
	.types = {TEXTOID, INT8OID}
};

/* Makes the new build the one that is read.  exchange is NULL unless tables are exchanged. */
static void
switch_builds(EvpgRebuild *rebuild, EvpgExchange *exchange)
{
	EvpgProjection *projection = rebuild->projection;
	const char *name = rebuild->name;
	Datum		values[2] = {CStringGetTextDatum(name)};
	int64		position;

	if (projection->tables != NIL)
	{
		EvpgRebuildTablesReplaceContents(projection, rebuild->build, exchange, rebuild->last_write);
		EvpgRebuildTablesDropCopies(rebuild->build);
	}
	EvpgFenceEnter();
	position = EvpgFenceDrawPositions(1);
	values[1] = Int64GetDatum(position);
	rebuild->replaced = projection->build;
	EvpgStatementExecute(&replace_build, values, NULL);
	if (projection->mode == EVPG_MODE_ASYNC)
		EvpgCheckpointRestart(name, rebuild->upto);
	EvpgParkedEventDelete(name, NULL);
	EvpgRegistrationInvalidate(EvpgCatalogGet()->projection);
	/* Sessions may wait for any key of the projection. */
	EvpgWakeAllWaitersAtCommit();
	if (projection->broadcast != EVPG_BROADCAST_NONE)
		EvpgBroadcastSendRebuilt(name, position);
}

/*
 * The build whose end this session has postponed since events were left, how many
 * times, in a row before foreign keys were checked and in all afterwards, and whether
 * the next batch is to apply them.
 */
static int64 postponed_build = 0;
static int	early_postponements;
static int	late_postponements;
static bool postponed = false;

/*
 * Error, a few times (count), if events up to a position are left: the transaction
 * that is to exchange tables must not itself write to the copies, since snapshots that
 * do not see it would be shown the copies without that.  The events are then applied by
 * a batch, and the end is tried again.
 */
static void
postpone_if_events_left(EvpgRebuild *rebuild, int64 upto, int *count)
{
	if (postponed_build != rebuild->build)
		early_postponements = late_postponements = 0;
	postponed_build = rebuild->build;
	if (*count >= MAX_POSTPONEMENTS || !EvpgRebuildHasEventsLeft(rebuild, upto))
		return;
	(*count)++;
	postponed = rebuild->postponed = true;
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("the rebuild cannot end before all events are applied")));
}

/*
 * Returns the tables that are to be exchanged with their copies, perhaps none.  Checks
 * of foreign keys come last: they take the longer the more rows there are, and keep
 * other sessions from writing to the tables that reference these, so they must not be
 * in vain.
 */
static EvpgExchange *
prepare_exchange(EvpgRebuild *rebuild)
{
	EvpgExchange *exchange;
	bool		exchangeable;

	if (rebuild->projection->mode == EVPG_MODE_INLINE)
		refuse_open_appenders();
	exchange = EvpgRebuildTablesFindExchangeable(rebuild->projection, rebuild->build);
	exchangeable = exchange->tables != NIL;
	if (exchangeable)
		postpone_if_events_left(rebuild, EvpgFenceStablePosition(false), &early_postponements);
	early_postponements = 0;
	EvpgRebuildTablesPrepareExchange(exchange, rebuild->last_write);

	/*
	 * A row may be referenced already that an event brings which has come
	 * since.
	 */
	if (exchangeable && exchange->tables == NIL)
		postpone_if_events_left(rebuild, EvpgFenceStablePosition(false), &late_postponements);
	EVPG_WAIT_POINT("rebuild_checked");
	return exchange;
}

/*
 * EvpgRebuildTakePostponed
 *		Returns whether this session has postponed the end of the rebuild because of
 *		events that the next batch is to apply, however few, and forgets it.
 */
bool
EvpgRebuildTakePostponed(const EvpgRebuild *rebuild)
{
	bool		result = postponed && postponed_build == rebuild->build;

	postponed = false;
	return result;
}

/*
 * EvpgRebuildEnd
 *		Applies the last events and makes the new build the one that is read; sets
 *		rebuild->replaced.  The caller owns the consumer, holds the lock of the rebuild
 *		exclusively and has read its parts, and runs this in a subtransaction if the
 *		rebuild is in the background: there it changes lock_timeout, and fails with
 *		rebuild->postponed set if it is to be tried again after another batch.
 */
void
EvpgRebuildEnd(EvpgRebuild *rebuild)
{
	EvpgExchange *exchange = NULL;
	bool		exchanges;
	int64		applied = rebuild->events;

	EvpgApplySetCurrent(0, NULL);
	if (!rebuild->foreground)
		(void) set_config_option("lock_timeout", EVPG_MUTATION("patient_end") ? "0" : END_LOCK_TIMEOUT, PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (!rebuild->foreground && rebuild->projection->tables != NIL)
		exchange = prepare_exchange(rebuild);
	exchanges = exchange != NULL && exchange->tables != NIL;
	/* Perhaps appenders need not be kept out in vain. */
	if (exchanges)
		postpone_if_events_left(rebuild, EvpgFenceStablePosition(false), &late_postponements);
	exclude_writers(rebuild);
	if (exchanges)
		postpone_if_events_left(rebuild, rebuild->upto, &late_postponements);
	if (rebuild->projection->reset_signature != NULL)
		call_reset_function(rebuild->projection);
	EvpgRebuildApplyRest(rebuild);

	/*
	 * After all postponements.  That the keys held is not enough: rows that
	 * were written just now may reference rows that were not locked, and keys
	 * that another table references may be gone.  What a statement of the
	 * handler has changed is not known here, so all rows are checked again,
	 * while appenders wait; no session can write to the other tables.
	 */
	if (exchanges && rebuild->events > applied)
		exchange->checked = NIL;
	switch_builds(rebuild, exchange);
}
