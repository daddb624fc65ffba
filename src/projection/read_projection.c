/*-------------------------------------------------------------------------
 *
 * read_projection.c
 *		The SQL functions that read rows of projections: one key, and all rows that
 *		have changed since a position.
 *
 * The functions that read one key are STABLE, so they see what the calling
 * statement sees.  evpg_projection_changes is VOLATILE: it reads with a snapshot
 * that is newer than the stable position.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "consumer/consumer.h"
#include "funcapi.h"
#include "log/durable.h"
#include "log/fence.h"
#include "projection/projection.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(evpg_projection);
PG_FUNCTION_INFO_V1(evpg_projection_changes);

static EvpgStatement select_projection_row = {
	.text = "SELECT state, generation, version, position, updated_at"
	" FROM evpg.projected_state"
	" WHERE name = $1 AND key = $2",
	.types = {TEXTOID, TEXTOID}
};

/*
 * evpg_projection
 *		Returns the row of a key.  If it has none: no row, or an error unless
 *		missing_ok.
 */
Datum
evpg_projection(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "projection name");
	Datum		values[2] = {PG_GETARG_DATUM(0), PG_GETARG_DATUM(1)};
	bool		missing_ok = PG_GETARG_BOOL(2);
	EvpgScope	scope;
	uint64		rows;

	InitMaterializedSRF(fcinfo, 0);
	EvpgEnter(&scope, NULL);
	(void) EvpgProjectionGet(name, false);
	rows = EvpgStatementRead(&select_projection_row, values, NULL);
	if (rows == 0 && !missing_ok)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_STATE_NOT_FOUND),
				 errmsg("projection \"%s\" has no key \"%s\"", name, TextDatumGetCString(values[1]))));
	EvpgStatementReturnRows(fcinfo, rows);
	EvpgStatementDone();
	EvpgLeave(&scope);
	PG_RETURN_NULL();
}

static EvpgStatement select_projection_row_changes = {
	.text = "SELECT c.*, CASE WHEN count(*) OVER page >= $4 THEN max(c.position) OVER page ELSE $3 END"
	" FROM (SELECT s.key, s.state, p.generation_base + s.generation AS generation, s.version, n.position,"
	" s.updated_at FROM evpg.projection p JOIN evpg.projection_state s USING (build) CROSS JOIN LATERAL"
	" (SELECT GREATEST(s.position, p.rebuilt_position) AS position) n WHERE p.name = $1 AND n.position > $2"
	" AND n.position <= $3 ORDER BY n.position FETCH FIRST ($4) ROWS WITH TIES) c WINDOW page AS ()"
	" ORDER BY c.position",
	.types = {TEXTOID, INT8OID, INT8OID, INT8OID}
};

/*
 * Rows of inline projections commit out of the order of positions, as events
 * do, so this goes no further than the stable position.  A full page ends with
 * all rows of its last position.
 */
Datum
evpg_projection_changes(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "projection name");
	int64		max_count = EvpgArgMaxCount(fcinfo, 2);
	int64		upto;
	Datum		values[4];
	char		no_limit[4] = {' ', ' ', ' ', 'n'};
	int64		rows;
	bool		is_async;
	EvpgConsumer consumer;
	EvpgScope	scope;

	(void) EvpgArgBigint(fcinfo, 1, "after_position");
	InitMaterializedSRF(fcinfo, 0);
	EvpgEnter(&scope, NULL);
	upto = EvpgFenceDurablePosition(true);
	/* No further than an asynchronous projection is. */
	is_async = EvpgProjectionGet(name, false)->mode == EVPG_MODE_ASYNC;
	if (is_async && EvpgConsumerRead(name, &consumer))
		upto = Min(upto, consumer.checkpoint);
	values[0] = PG_GETARG_DATUM(0);
	values[1] = PG_GETARG_DATUM(1);
	values[2] = Int64GetDatum(upto);
	values[3] = Int64GetDatum(max_count);
	rows = EvpgStatementReturnAll(fcinfo, &select_projection_row_changes, values, max_count < 0 ? no_limit : NULL, false);
	/* Batches of workers commit lazily. */
	if (is_async && rows > 0)
		EvpgDurableAwaitAll();
	EvpgLeave(&scope);
	PG_RETURN_NULL();
}
