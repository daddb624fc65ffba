/*-------------------------------------------------------------------------
 *
 * read_saga.c
 *		evpg_saga(): shows one instance of a saga.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "saga/saga.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(evpg_saga);

static EvpgStatement select_shown_instance = {
	.text =
	"SELECT i.state, CASE WHEN d.count > 0 THEN 'failed' ELSE i.status END, i.version, i.position,"
	"       (SELECT count(*)::int4 FROM evpg.saga_event e WHERE e.saga = i.saga AND e.key = i.key),"
	"       (SELECT count(*)::int4 FROM evpg.timer t WHERE t.saga = i.saga AND t.key = i.key),"
	"       d.count, i.started_at, i.updated_at"
	"  FROM evpg.saga_instance i"
	"  CROSS JOIN LATERAL (SELECT count(*)::int4 AS count"
	"                        FROM evpg.dead_letter l"
	"                       WHERE l.saga = i.saga AND l.key = i.key AND l.resolved_at IS NULL) d"
	" WHERE i.saga = $1 AND i.key = $2",
	.types = {TEXTOID, TEXTOID}
};

/* Returns the row of an instance, as the snapshot of the caller shows it; no row if there is none. */
Datum
evpg_saga(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *name = EvpgArgName(fcinfo, 0, "saga name");
	Datum		values[2] = {PG_GETARG_DATUM(0), PG_GETARG_DATUM(1)};
	uint64		rows;
	EvpgScope	scope;

	InitMaterializedSRF(fcinfo, 0);
	EvpgEnter(&scope, NULL);
	(void) EvpgSagaGet(name, 0, false);
	rows = EvpgStatementRead(&select_shown_instance, values, NULL);
	for (uint64 row = 0; row < rows; row++)
		tuplestore_puttuple(result->setResult, SPI_tuptable->vals[row]);
	EvpgStatementDone();
	EvpgLeave(&scope);
	PG_RETURN_NULL();
}
