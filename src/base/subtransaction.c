/*-------------------------------------------------------------------------
 *
 * subtransaction.c
 *		Runs an action in a subtransaction, which is rolled back if it fails; tells
 *		what its error means: the user's cancel, interference, or a failure.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "base/shmem.h"
#include "base/subtransaction.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

/* How long a worker postpones what was interfered with, in ms. */
#define POSTPONE_MS 500

/* From where a cancel was signalled to this worker in this transaction: bits. */
#define CANCEL_OWN 1			/* by itself, see EvpgCancelOwnAttempt */
#define CANCEL_EVPG 2			/* by a session that needs what the worker has
								 * locked */
#define CANCEL_FOREIGN 4		/* by pg_cancel_backend(), from wherever */

static volatile sig_atomic_t cancel_received = 0;

/*
 * EvpgSubtransactionRun
 *		Runs an action in a subtransaction.  Returns NULL if it succeeded; else the
 *		subtransaction is rolled back, and its error returned, in
 *		CurrentMemoryContext.  The caller rethrows an error that it does not handle
 *		(EvpgRethrowError), above all one that EvpgErrorIsCancel.
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

/* Returns a copy that lasts until the error is reported. */
static const char *
copy_for_report(const char *string)
{
	return string == NULL ? NULL : MemoryContextStrdup(ErrorContext, string);
}

/*
 * EvpgRethrowError
 *		Throws an error of CopyErrorData() again; nothing of it is used after that, so
 *		it may lie in a memory context that is deleted on the way out.
 *		ReThrowError() takes strings that are constants in an error which was not
 *		copied, as the name of the file, for such: they would be sent to the client
 *		from freed memory.
 */
void
EvpgRethrowError(const ErrorData *error)
{
	ErrorData	copy = *error;

	copy.filename = copy_for_report(error->filename);
	copy.funcname = copy_for_report(error->funcname);
	copy.domain = copy_for_report(error->domain);
	copy.context_domain = copy_for_report(error->context_domain);
	copy.message_id = copy_for_report(error->message_id);
	ReThrowError(&copy);
}

/* Returns whether this is a background process of evpg; background workers of others may call its functions, too. */
bool
EvpgInWorker(void)
{
	return MyBgworkerEntry != NULL && strcmp(MyBgworkerEntry->bgw_library_name, EVPG_LIBRARY) == 0;
}

/*
 * EvpgReportLevel
 *		Returns the level of a message about something that needs attention: WARNING
 *		in a background process, which has no client to tell, else LOG.  Such
 *		messages name what has failed and where it is stored; the text of a user's
 *		error may contain personal data, which does not belong into the server's log.
 */
int
EvpgReportLevel(void)
{
	return EvpgInWorker() ? WARNING : LOG;
}

/*
 * EvpgErrorIsCancel
 *		Returns whether an error is the cancel of a user, or a timeout, that ends the
 *		statement, so that it must be rethrown.  In a background process of evpg it
 *		is an error like others, see EvpgErrorIsInterference.  What ends a session is
 *		no ERROR.
 */
bool
EvpgErrorIsCancel(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_QUERY_CANCELED && !EvpgInWorker();
}

static void
note_cancel(SIGNAL_ARGS)
{
	/*
	 * The end of lock_timeout comes as the same signal, and may have become
	 * one with that of evpg.
	 */
	if (EvpgProcessTakeEvpgCancel())
		cancel_received |= CANCEL_EVPG;
	else if (!get_timeout_indicator(LOCK_TIMEOUT, false))
		cancel_received |= CANCEL_FOREIGN;
	StatementCancelHandler(postgres_signal_arg);
}

/*
 * EvpgTrackCancels
 *		Remembers cancels that are signalled to this worker, so that they differ from
 *		the same error raised by user code.  Called once, when a worker starts.
 */
void
EvpgTrackCancels(void)
{
	pqsignal(SIGINT, note_cancel);
}

/* Cancels what this worker does.  Can be called by a signal handler. */
void
EvpgCancelOwnAttempt(void)
{
	cancel_received |= CANCEL_OWN;
	StatementCancelHandler(SIGINT);
}

/* Forgets EvpgCancelOwnAttempt, which came too late, but no other cancel.  No handler may call that any more. */
void
EvpgForgetOwnCancel(void)
{
	if (cancel_received == CANCEL_OWN)
		QueryCancelPending = false;
	cancel_received &= ~CANCEL_OWN;
}

/* Forgets a cancel that came too late for its transaction.  Called between transactions. */
void
EvpgForgetCancel(void)
{
	QueryCancelPending = false;
	cancel_received = 0;
}

/* Returns whether an error ends what this worker was told to cancel: it is none of the code that was called. */
bool
EvpgErrorIsWorkerCancel(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_QUERY_CANCELED && cancel_received != 0;
}

/*
 * EvpgErrorIsForeignCancel
 *		Returns whether an error ends what this worker was told to cancel, and not by evpg:
 *		by an operator, a monitor, or the code itself.  It may be told so again and again.
 */
bool
EvpgErrorIsForeignCancel(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_QUERY_CANCELED && cancel_received == CANCEL_FOREIGN;
}

/*
 * EvpgErrorIsInterference
 *		Returns whether an error, by its SQLSTATE, was caused by another session: by
 *		concurrency, or, in a worker, by a cancel.
 */
bool
EvpgErrorIsInterference(int sqlerrcode)
{
	return ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_TRANSACTION_ROLLBACK || sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
		(sqlerrcode == ERRCODE_QUERY_CANCELED && cancel_received != 0);
}

/*
 * EvpgPostponeAfterError
 *		Returns whether what failed with this error is tried again a little later,
 *		and lowers *next to that time: in a worker, after interference.  In a session
 *		it returns false, and the caller raises the error.
 */
bool
EvpgPostponeAfterError(const ErrorData *error, TimestampTz *next)
{
	if (!EvpgInWorker() || !EvpgErrorIsInterference(error->sqlerrcode))
		return false;
	*next = Min(*next, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), POSTPONE_MS));
	return true;
}
