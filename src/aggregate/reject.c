/*-------------------------------------------------------------------------
 *
 * reject.c
 *		The SQL function by which a handler refuses a command: evpg_reject().
 *
 * It stands alone because evpg.h, for modules, has another evpg_reject().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/reject.h"
#include "base/arguments.h"
#include "base/errors.h"
#include "fmgr.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(evpg_reject);

/*
 * SQL: evpg_reject(code, message, detail).  Raises a refusal (VE002), with its code
 * as the name of a constraint.  Never returns; declared to return an event so that
 * it fits into the expressions of handlers.
 */
Datum
evpg_reject(PG_FUNCTION_ARGS)
{
	char	   *code = EvpgArgName(fcinfo, 0, "rejection code");
	char	   *message = PG_ARGISNULL(1) ? EvpgRejectionDefaultMessage(code) : text_to_cstring(PG_GETARG_TEXT_PP(1));
	Jsonb	   *detail = PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2);

	ereport(ERROR,
			(errcode(EVPG_ERRCODE_REJECTED),
			 errmsg("%s", message),
			 detail != NULL ? errdetail("%s", JsonbToCString(NULL, &detail->root, VARSIZE(detail))) : 0,
			 err_generic_string(PG_DIAG_CONSTRAINT_NAME, code)));
	PG_RETURN_NULL();
}
