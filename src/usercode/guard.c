/*-------------------------------------------------------------------------
 *
 * guard.c
 *		What user code may not do while evpg calls it: every SQL function that would
 *		change what its caller is using begins with one of these.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/errors.h"
#include "usercode/guard.h"

bool		EvpgApplyRuns = false;

/*
 * EvpgRefuseInProjection
 *		Raises VE020 in user code of a projection: the projections are being used,
 *		and rows would change under those that have locked them.  what completes
 *		"a projection cannot ...".
 */
void
EvpgRefuseInProjection(const char *what)
{
	if (EvpgApplyRuns)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_REENTERED),
				 errmsg("a projection cannot %s", what),
				 errhint("Let a client that listens do it.")));
}
