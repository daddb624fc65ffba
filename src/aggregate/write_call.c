/*-------------------------------------------------------------------------
 *
 * write_call.c
 *		What the SQL functions that write events have in common: the memory of a call,
 *		events as arguments and as rows.
 *
 * All memory of a call is in one context, deleted at its end, or by an ERROR with
 * its parent.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "aggregate/write_call.h"
#include "base/arguments.h"
#include "base/errors.h"
#include "base/settings.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

/* Makes the memory context of one call the current one. */
void
EvpgWriteCallBegin(EvpgWriteCall *call)
{
	call->caller = CurrentMemoryContext;
	call->context = AllocSetContextCreate(CurrentMemoryContext, "EvpgCall", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(call->context);
}

/* Ends a call and frees its memory. */
void
EvpgWriteCallEnd(EvpgWriteCall *call)
{
	MemoryContextSwitchTo(call->caller);
	MemoryContextDelete(call->context);
}

/*
 * EvpgEventsFromArray
 *		Reads the events of an array argument into *events, in CurrentMemoryContext;
 *		NULL rows are no event.  Returns their number.  Raises VE014 if the array is
 *		longer than evpg.max_events.  They are not checked yet.
 */
int
EvpgEventsFromArray(ArrayType *array, EvpgEvent **events)
{
	Datum	   *elements;
	bool	   *nulls;
	int			nelements;
	int			count = 0;

	deconstruct_array(array, EvpgCatalogGet()->new_event->tdtypeid, -1, false, TYPALIGN_DOUBLE,
					  &elements, &nulls, &nelements);
	if (nelements > EvpgMaxEvents)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_LIMIT),
				 errmsg("too many events in one call"),
				 errdetail("There are %d; the limit is %d.", nelements, EvpgMaxEvents),
				 errhint("Split the call, or let a superuser raise evpg.max_events.")));
	*events = palloc(sizeof(EvpgEvent) * Max(nelements, 1));
	for (int i = 0; i < nelements; i++)
		if (!nulls[i] && EvpgEventFromNewEvent(DatumGetHeapTupleHeader(elements[i]), &(*events)[count]))
			count++;
	return count;
}

/* Raises an error unless callers may append these events, which are all of the call. */
void
EvpgCheckCallersEvents(const EvpgEvent *events, int count)
{
	for (int i = 0; i < count; i++)
	{
		EvpgEventCheck(&events[i], i + 1);
		EvpgCheckCallersMetadata(events[i].metadata);
	}
}

/* Adds events to the rows of a function that returns evpg.event. */
void
EvpgReturnEvents(FunctionCallInfo fcinfo, const EvpgEvent *events, int count)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	for (int i = 0; i < count; i++)
	{
		Datum		values[EVPG_EVENT_NATTS];
		bool		nulls[EVPG_EVENT_NATTS];

		EvpgEventValues(&events[i], values, nulls);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
}
