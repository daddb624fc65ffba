/*-------------------------------------------------------------------------
 *
 * subtransaction.c
 *		Runs an action in a subtransaction, which is rolled back if it fails.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "base/subtransaction.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

/* When a worker tries again what others were in the way of; ms. */
#define PUT_OFF 500

/* This worker was told to cancel what it does, in this transaction. */
static volatile sig_atomic_t cancel_received = false;

/*
 * EvpgSubtransactionRun
 *		NULL if the action succeeded; else nothing of it is left but the error,
 *		in CurrentMemoryContext.  The caller raises again what it does not mean
 *		to answer (ReThrowError): a cancelled query above all.
 */
ErrorData *
EvpgSubtransactionRun(void (*action) (void *arg), void *arg)
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
EvpgInWorker(void)
{
	return MyBgworkerEntry != NULL && strcmp(MyBgworkerEntry->bgw_library_name, EVPG_LIBRARY) == 0;
}

/*
 * EvpgSubtransactionLevel
 *		The level of a message about what somebody must look at: in a worker, which
 *		nobody sees otherwise, a warning.  Such messages name what has failed and
 *		where it is stored; what a user's error says may be personal data, which do
 *		not belong into the server's log.
 */
int
EvpgSubtransactionLevel(void)
{
	return EvpgInWorker() ? WARNING : LOG;
}

/*
 * EvpgErrorIsCancel
 *		Whether an error is the user's who wants the statement to end, so that it
 *		must be raised again.  A worker of evpg has no such user, and no timeout of
 *		statements: there it is an error like others, see EvpgAttemptDisturbed.  What
 *		ends a session is no ERROR.
 */
bool
EvpgErrorIsCancel(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_QUERY_CANCELED && !EvpgInWorker();
}

static void
note_cancel(SIGNAL_ARGS)
{
	/* The end of lock_timeout comes as the same signal. */
	if (!get_timeout_indicator(LOCK_TIMEOUT, false))
		cancel_received = true;
	StatementCancelHandler(postgres_signal_arg);
}

/* Tells cancels, which a worker survives, from user code that raises the same error.  Called once, in a worker. */
void
EvpgAttemptNoteCancels(void)
{
	pqsignal(SIGINT, note_cancel);
}

/* Between transactions: a cancel that came too late must not concern what comes next. */
void
EvpgAttemptForgetCancel(void)
{
	QueryCancelPending = false;
	cancel_received = false;
}

/*
 * EvpgAttemptDisturbed
 *		Whether an error says that others were in the way: of concurrency, or, in a
 *		worker, a cancel.
 */
bool
EvpgAttemptDisturbed(int sqlerrcode)
{
	return ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_TRANSACTION_ROLLBACK || sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
		(sqlerrcode == ERRCODE_QUERY_CANCELED && cancel_received);
}

/*
 * EvpgAttemptPutOff
 *		Whether a worker, which nobody waits for, is to try again a little later
 *		what has failed with this error; *next is lowered to when.  For a session the
 *		error is raised.
 */
bool
EvpgAttemptPutOff(const ErrorData *error, TimestampTz *next)
{
	if (!EvpgInWorker() || !EvpgAttemptDisturbed(error->sqlerrcode))
		return false;
	*next = Min(*next, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PUT_OFF));
	return true;
}
