/*-------------------------------------------------------------------------
 *
 * error_context.h
 *		Frames of the error context: what errors say of whose code was running.
 *
 * A frame is on the C stack.  An error takes it off by itself.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_ERROR_CONTEXT_H
#define EVPG_ERROR_CONTEXT_H

/* Adds a frame: describe calls errcontext() with arg, which must live as long. */
static inline void
EvpgErrorContextPush(ErrorContextCallback *frame, void (*describe) (void *arg), void *arg)
{
	frame->callback = describe;
	frame->arg = arg;
	frame->previous = error_context_stack;
	error_context_stack = frame;
}

/* Takes off the frame that was added last. */
static inline void
EvpgErrorContextPop(const ErrorContextCallback *frame)
{
	Assert(error_context_stack == frame);
	error_context_stack = frame->previous;
}

#endif							/* EVPG_ERROR_CONTEXT_H */
