/*-------------------------------------------------------------------------
 *
 * react_inline.c
 *		Lets inline sagas react in the transaction that appends the event (rule 16).
 *
 * Events that an inline saga takes are noted when their command ends.  When the outermost
 * command of the session has ended, or the reaction of a worker, instances react
 * to what was noted, in the order of positions; what their commands append is noted
 * in turn, and comes after that.  So no reaction begins in the middle of a command
 * or of another reaction, and a chain of reactions needs no stack.
 *
 * Before the instances of a step react they are all locked, in one order.  An instance
 * that has something to do already (events that wait for an attempt, a dead letter), and
 * one of a saga that is paused, is given the event as route.c would give it: workers
 * do the rest.
 *
 * A reaction that fails is rolled back, and was the first attempt: the event becomes
 * pending work of the instance, and failure.c decides when workers try it again.  So
 * the command succeeds.  What other sessions have caused, and a cancel, is raised: it
 * fails the command, whose session decides about another attempt.
 *
 * No attempt is counted before it begins: if it crashes the server, its event is gone
 * as well.
 *
 * Memory: what was noted is in a context of the transaction, until all have reacted;
 * below it one for the keys of a step, and one for a reaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "aggregate/command.h"
#include "aggregate/context.h"
#include "base/catalog.h"
#include "base/locks.h"
#include "base/retry.h"
#include "base/subtransaction.h"
#include "base/testing.h"
#include "base/wakeup.h"
#include "miscadmin.h"
#include "saga/failure.h"
#include "saga/react.h"
#include "saga/react_inline.h"
#include "saga/route.h"
#include "saga/saga.h"
#include "saga/saga_keys.h"
#include "saga/saga_lock.h"
#include "usercode/guard.h"
#include "utils/memutils.h"

/* An event that inline sagas take. */
typedef struct NotedEvent
{
	EvpgEvent	event;
	SubTransactionId subid;		/* in which it was appended */
} NotedEvent;

/* An instance that has to react to an event. */
typedef struct InlineReaction
{
	EvpgSaga   *saga;			/* its highest version */
	const EvpgEvent *event;
	EvpgDueItem item;
	int64		sent;
} InlineReaction;

/* What the reactions of a saga have sent. */
typedef struct SagaTotal
{
	char	   *saga;
	int64		sent;
} SagaTotal;

static List *noted = NIL;		/* of NotedEvent, as commands have ended */
static MemoryContext noted_context = NULL;

/* ------------------------------------------------------------------ what was appended */

static void
note_event(const EvpgEvent *event)
{
	List	   *takers = EvpgSagaListInline(event);
	MemoryContext old;
	NotedEvent *note;

	if (takers == NIL)
		return;
	list_free(takers);
	if (noted_context == NULL)
		noted_context = AllocSetContextCreate(TopTransactionContext, "EvpgReactInline", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(noted_context);
	note = palloc(sizeof(NotedEvent));
	EvpgEventCopy(event, &note->event);
	note->subid = GetCurrentSubTransactionId();
	noted = lappend(noted, note);
	MemoryContextSwitchTo(old);
}

/* An EvpgCommandEndHook. */
static void
note_command_end(const EvpgEvent *events, int count, bool nested)
{
	for (int i = 0; i < count; i++)
		note_event(&events[i]);
	if (noted != NIL && !nested && !EvpgInsideSaga)
		EvpgReactInlineAll();
}

static void
forget_all(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	noted = NIL;
	noted_context = NULL;
}

/* Forgets what a subtransaction has appended that is rolled back, or one that had been committed to it. */
static void
forget_rolled_back(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	ListCell   *cell;

	if (event != SUBXACT_EVENT_ABORT_SUB)
		return;
	foreach(cell, noted)
		if (((NotedEvent *) lfirst(cell))->subid >= mine)
		noted = foreach_delete_current(noted, cell);
}

/* Lets commands be followed by the reactions of inline sagas; called once, from _PG_init. */
void
EvpgReactInlineInit(void)
{
	EvpgAtCommandEnd = note_command_end;
	RegisterXactCallback(forget_all, NULL);
	RegisterSubXactCallback(forget_rolled_back, NULL);
}

/* ------------------------------------------------------------------ which instances react */

/* The keys of an event, by all versions of a saga: what may fail. */
typedef struct KeySearch
{
	List	   *versions;
	const EvpgEvent *event;
	List	   *keys;			/* of char *, each once */
} KeySearch;

static void
find_distinct_keys(void *arg)
{
	KeySearch  *search = arg;
	ListCell   *version;
	ListCell   *key;
	ListCell   *known;

	foreach(version, search->versions)
		foreach(key, EvpgSagaKeys(lfirst(version), search->event))
	{
		foreach(known, search->keys)
			if (strcmp(lfirst(known), lfirst(key)) == 0)
			break;
		if (known == NULL)
			search->keys = lappend(search->keys, lfirst(key));
	}
}

/* Adds the instances of one saga, whose versions take the event, to those that react. */
static List *
add_saga_reactions(List *reactions, List *versions, const EvpgEvent *event)
{
	KeySearch	search = {.versions = versions, .event = event};
	EvpgSaga   *saga = linitial(versions);
	ErrorData  *error = EvpgSubtransactionRun(find_distinct_keys, &search);
	ListCell   *cell;

	if (error != NULL)
	{
		EvpgRouteGiveUp(saga, event, 1, error);
		return reactions;
	}
	foreach(cell, search.keys)
	{
		InlineReaction *reaction = palloc0(sizeof(InlineReaction));

		reaction->saga = saga;
		reaction->event = event;
		reaction->item.saga = saga->name;
		reaction->item.key = lfirst(cell);
		reaction->item.position = event->position;
		reactions = lappend(reactions, reaction);
	}
	return reactions;
}

/* Adds the instances that have to react to an event. */
static List *
add_event_reactions(List *reactions, const EvpgEvent *event)
{
	List	   *versions = NIL;
	ListCell   *cell;

	foreach(cell, EvpgSagaListInline(event))
	{
		if (versions != NIL && strcmp(((EvpgSaga *) linitial(versions))->name, ((EvpgSaga *) lfirst(cell))->name) != 0)
		{
			reactions = add_saga_reactions(reactions, versions, event);
			versions = NIL;
		}
		versions = lappend(versions, lfirst(cell));
	}
	return versions == NIL ? reactions : add_saga_reactions(reactions, versions, event);
}

static int
compare_instances(const ListCell *a, const ListCell *b)
{
	const InlineReaction *first = lfirst(a);
	const InlineReaction *second = lfirst(b);
	int			order = strcmp(first->item.saga, second->item.saga);

	return order != 0 ? order : strcmp(first->item.key, second->item.key);
}

/* Locks the instances of a step, in one order, to the end of the transaction. */
static void
lock_instances(List *reactions)
{
	List	   *ordered = list_copy(reactions);
	ListCell   *cell;

	list_sort(ordered, compare_instances);
	foreach(cell, ordered)
		(void) EvpgDueItemLock(&((InlineReaction *) lfirst(cell))->item, true);
	list_free(ordered);
}

/* ------------------------------------------------------------------ reacting */

/* For react_in_subtransaction. */
typedef struct Performance
{
	EvpgAttempt *attempt;
	const EvpgEvent *event;
} Performance;

static void
react_in_subtransaction(void *arg)
{
	Performance *performance = arg;

	EvpgReactToEvent(performance->attempt, performance->event);
	EVPG_WAIT_POINT("saga_reacted");
}

/* Lets an instance, which is locked, react to an event, or leaves the event to workers. */
static void
react_once(InlineReaction *reaction)
{
	EvpgDueItem *item = &reaction->item;
	EvpgAttempt attempt = {.item = item, .taken = true};
	Performance performance = {.attempt = &attempt, .event = reaction->event};
	ErrorData  *error;

	EvpgInstanceRead(item->saga, item->key, &attempt.instance);
	if (reaction->saga->runs && EvpgInstanceIsFree(item->saga, item->key))
		item->attempts = 1;
	if (attempt.instance.completed || (!attempt.instance.exists && !EvpgSagaStarts(reaction->saga, reaction->event) &&
									   item->attempts != 0))
		return;
	if (item->attempts == 0)
	{
		EvpgDueItemInsert(item);
		return;
	}
	error = EvpgSubtransactionRun(react_in_subtransaction, &performance);
	if (error == NULL)
	{
		reaction->sent = attempt.dispatched;
		return;
	}
	if (EvpgErrorIsCancel(error) || EvpgErrorIsTransient(error))
		EvpgRethrowError(error);
	EvpgDueItemInsert(item);
	(void) EvpgFailureSettle(&attempt, error);
}

/* Adds what an instance has sent to what its saga has, in a list of SagaTotal in context; returns the list. */
static List *
count_sends(List *totals, const InlineReaction *reaction, MemoryContext context)
{
	MemoryContext old;
	SagaTotal  *total;
	ListCell   *cell;

	foreach(cell, totals)
	{
		total = lfirst(cell);
		if (strcmp(total->saga, reaction->item.saga) == 0)
		{
			total->sent += reaction->sent;
			return totals;
		}
	}
	old = MemoryContextSwitchTo(context);
	total = palloc(sizeof(SagaTotal));
	total->saga = pstrdup(reaction->item.saga);
	total->sent = reaction->sent;
	totals = lappend(totals, total);
	MemoryContextSwitchTo(old);
	return totals;
}

/* Adds to the totals of sagas, and wakes the sessions that wait for them at commit. */
static void
add_totals(List *totals)
{
	ListCell   *cell;

	foreach(cell, totals)
	{
		SagaTotal  *total = lfirst(cell);

		if (total->sent > 0)
			EvpgSagaAddTotals(total->saga, total->sent, 0);
		EvpgWakeWaitersAtCommit(EvpgHashPair(total->saga, ""));
	}
}

/* A list_sort_comparator.  A listener's command ends before the command whose event it hears. */
static int
compare_noted_positions(const ListCell *a, const ListCell *b)
{
	int64		left = ((NotedEvent *) lfirst(a))->event.position;
	int64		right = ((NotedEvent *) lfirst(b))->event.position;

	return left < right ? -1 : left > right;
}

/*
 * Lets instances react to events, which are not noted any more; memory for keys and reactions
 * is in step.  Counts what they send in a list, and returns it.
 */
static List *
react_to_events(List *events, MemoryContext step, List *totals)
{
	MemoryContext memory = AllocSetContextCreate(step, "EvpgReactInline reaction", ALLOCSET_DEFAULT_SIZES);
	List	   *reactions = NIL;
	ListCell   *cell;

	MemoryContextSwitchTo(step);
	list_sort(events, compare_noted_positions);
	foreach(cell, events)
		reactions = add_event_reactions(reactions, &((NotedEvent *) lfirst(cell))->event);
	lock_instances(reactions);
	foreach(cell, reactions)
	{
		MemoryContextSwitchTo(memory);
		react_once(lfirst(cell));
		totals = count_sends(totals, lfirst(cell), noted_context);
		MemoryContextReset(memory);
		CHECK_FOR_INTERRUPTS();
	}
	MemoryContextSwitchTo(step);
	return totals;
}

/*
 * EvpgReactInlineAll
 *		Lets inline sagas react to what this session has appended since they last did,
 *		and to what follows from that.  The caller is inside EvpgEnter, and inside no command.
 */
void
EvpgReactInlineAll(void)
{
	MemoryContext caller = CurrentMemoryContext;
	bool		inside_before = EvpgInsideSaga;
	const char *role_before = EvpgContextSessionRole();
	List	   *totals = NIL;
	EvpgScope	scope;

	if (noted == NIL)
		return;
	/* What the session has set for its commands is not for those of sagas. */
	EvpgEnter(&scope, NULL);
	EvpgContextClear();
	EvpgCatalogLockForConsumer();
	EvpgInsideSaga = true;
	PG_TRY();
	{
		MemoryContext step = AllocSetContextCreate(noted_context, "EvpgReactInline step", ALLOCSET_DEFAULT_SIZES);

		while (noted != NIL)
		{
			List	   *events = noted;

			noted = NIL;
			totals = react_to_events(events, step, totals);
			MemoryContextReset(step);
			list_free_deep(events);
		}
		add_totals(totals);
	}
	PG_FINALLY();
	{
		EvpgInsideSaga = inside_before;
		EvpgContextSetSessionRole(role_before);
	}
	PG_END_TRY();
	EvpgLeave(&scope);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(noted_context);
	noted_context = NULL;
}
