/*-------------------------------------------------------------------------
 *
 * error_context.h
 *		Callbacks of the error context, which tell in errors whose code was running.
 *
 * A callback is on the C stack.  An error takes it off by itself.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_ERROR_CONTEXT_H
#define EVPG_ERROR_CONTEXT_H

/* Adds a callback: describe calls errcontext() with arg, which must live as long. */
static inline void
EvpgErrorContextPush(ErrorContextCallback *callback, void (*describe) (void *arg), void *arg)
{
	callback->callback = describe;
	callback->arg = arg;
	callback->previous = error_context_stack;
	error_context_stack = callback;
}

/* Takes off the callback that was added last. */
static inline void
EvpgErrorContextPop(const ErrorContextCallback *callback)
{
	Assert(error_context_stack == callback);
	error_context_stack = callback->previous;
}

#endif							/* EVPG_ERROR_CONTEXT_H */
