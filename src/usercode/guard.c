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

bool		EvpgInsideProjection = false;
bool		EvpgInsideSaga = false;
object_access_hook_type EvpgOwnAccessHook = NULL;

/*
 * EvpgRefuseInProjection
 *		Raises VE020 in user code of a projection: the projections are being used,
 *		and rows would change under those that have locked them.  what completes
 *		"a projection cannot ...".
 */
void
EvpgRefuseInProjection(const char *what)
{
	if (EvpgInsideProjection)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_REENTERED),
				 errmsg("a projection cannot %s", what),
				 errhint("Let a client that listens do it.")));
}

/*
 * EvpgRefuseInSaga
 *		Raises VE020 while an instance of a saga reacts, or a command that it has sent
 *		is executed: locks of its own session would not stop either.  what completes
 *		"a reaction of a saga cannot ...".
 */
void
EvpgRefuseInSaga(const char *what)
{
	if (EvpgInsideSaga)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_REENTERED),
				 errmsg("a reaction of a saga cannot %s", what),
				 errhint("Do it in a client.")));
}
