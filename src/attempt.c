/*-------------------------------------------------------------------------
 *
 * attempt.c
 *		Runs an action in a subtransaction, which is rolled back if it fails.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "attempt.h"
#include "postmaster/bgworker.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

/*
 * EvpgAttempt
 *		NULL if the action succeeded; else nothing of it is left but the error,
 *		in CurrentMemoryContext.  The caller raises again what it does not mean
 *		to answer (ReThrowError): a cancelled query above all.
 */
ErrorData *
EvpgAttempt(void (*action) (void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorContextCallback *callbacks = error_context_stack;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		action(arg);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		error_context_stack = callbacks;
	}
	PG_END_TRY();
	return error;
}

/* Whether this is a background process of evpg; others may call its functions, too. */
bool
EvpgAttemptInWorker(void)
{
	return MyBgworkerEntry != NULL && strcmp(MyBgworkerEntry->bgw_library_name, EVPG_LIBRARY) == 0;
}

/*
 * EvpgAttemptLevel
 *		The level of a message about what somebody must look at: in a worker, which
 *		nobody sees otherwise, a warning.  Such messages name what has failed and
 *		where it is stored; what a user's error says may be personal data, which do
 *		not belong into the server's log.
 */
int
EvpgAttemptLevel(void)
{
	return EvpgAttemptInWorker() ? WARNING : LOG;
}

/*
 * EvpgAttemptCancelled
 *		Whether an error is the user's who wants the statement to end, so that it
 *		must be raised again.  A worker of evpg has no such user, nor a timeout; there
 *		it is what user code has raised.  What ends a session is no ERROR.
 */
bool
EvpgAttemptCancelled(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_QUERY_CANCELED && !EvpgAttemptInWorker();
}
