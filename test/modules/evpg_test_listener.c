/*-------------------------------------------------------------------------
 *
 * evpg_test_listener.c
 *		A listener in C: not a module of evpg.h, whose callbacks are pure, but a
 *		function of SQL, which may call the server.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/builtins.h"

PG_MODULE_MAGIC;

/* hear_in_c(evpg.event): writes a row into test.heard; refuses an event of the type Unheard */
PG_FUNCTION_INFO_V1(hear_in_c);
Datum
hear_in_c(PG_FUNCTION_ARGS)
{
	HeapTupleHeader event = PG_GETARG_HEAPTUPLEHEADER(0);
	Oid			types[1] = {HeapTupleHeaderGetTypeId(event)};
	Datum		values[1] = {PG_GETARG_DATUM(0)};
	bool		isnull;
	Datum		type = GetAttributeByName(event, "type", &isnull);

	if (!isnull && strcmp(TextDatumGetCString(type), "Unheard") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RAISE_EXCEPTION),
				 errmsg("this is not to be heard")));
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args("INSERT INTO test.heard (who, event) VALUES ('c', $1)", 1, types, values, NULL, false, 0)
		!= SPI_OK_INSERT)
		elog(ERROR, "the event was not written");
	SPI_finish();
	PG_RETURN_VOID();
}
