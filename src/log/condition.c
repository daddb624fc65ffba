/*-------------------------------------------------------------------------
 *
 * condition.c
 *		Conditions of an append (rule 21): it fails if an event exists that matches one
 *		of the items of its condition, and was appended after the position of the item.
 *
 * An event matches an item if it has all tags of the item, one of its event types, and
 * a stream of one of its aggregate types, as far as the item names any.
 *
 * First the locks are taken (tag_lock.c), then the log is searched with a new snapshot,
 * then positions are drawn.  An event that matches has a transaction that holds one of
 * the tags, or the fence, from before the draw of its position to its end.  So either it
 * has ended before the search, which sees the event; or it draws after this transaction
 * has ended.
 *
 * Under REPEATABLE READ and above an event that only the new snapshot sees is a change
 * after the transaction's snapshot (40001).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/arguments.h"
#include "base/catalog.h"
#include "base/errors.h"
#include "base/names.h"
#include "base/testing.h"
#include "log/condition.h"
#include "log/durable.h"
#include "log/event_log.h"
#include "log/fence.h"
#include "log/position.h"
#include "log/tag_lock.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/numeric.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(evpg_condition_position);

/* Items of a condition: each is a search of the log. */
#define MAX_ITEMS 1000

/* An event that matches an item. */
typedef struct ConditionMatch
{
	int64		position;
	int			item;			/* counted from 1 */
	char	   *type;
	char	   *aggregate_type;
	char	   *aggregate_id;
} ConditionMatch;

/* ------------------------------------------------------------------ reading a condition */

pg_noreturn static void
raise_bad_item(int number, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("item %d of the condition is not valid", number),
			 errdetail("%s", detail),
			 errhint("Make it with evpg_condition(), and join several with ||.")));
}

/* Reads an array of names, each of which is checked; what names them in messages. */
static List *
read_names(const JsonbValue *value, int number, const char *key, const char *what)
{
	List	   *names = NIL;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	element;

	if (value->type != jbvBinary || !JsonContainerIsArray(value->val.binary.data) ||
		JsonContainerIsScalar(value->val.binary.data) || JsonContainerSize(value->val.binary.data) == 0)
		raise_bad_item(number, psprintf("\"%s\" must be an array of strings that is not empty.", key));
	iterator = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &element, true)) != WJB_DONE)
	{
		char	   *name;

		if (token != WJB_ELEM)
			continue;
		if (element.type != jbvString)
			raise_bad_item(number, psprintf("\"%s\" must be an array of strings that is not empty.", key));
		name = pnstrdup(element.val.string.val, element.val.string.len);
		EvpgCheckName(name, what);
		names = lappend(names, name);
	}
	return names;
}

static int64
read_position(const JsonbValue *value, int number)
{
	bool		failed = value->type != jbvNumeric;
	int64		position = 0;

	if (!failed)
	{
		Datum		numeric = NumericGetDatum(value->val.numeric);
		Datum		whole = DirectFunctionCall2(numeric_trunc, numeric, Int32GetDatum(0));

		failed = !DatumGetBool(DirectFunctionCall2(numeric_eq, numeric, whole));
		if (!failed)
			position = DatumGetInt64(DirectFunctionCall1(numeric_int8, numeric));
	}
	if (failed || position < 0)
		raise_bad_item(number, "\"after_position\" must be a position, or 0.");
	return position;
}

static bool
key_is(const JsonbValue *key, const char *name)
{
	return key->val.string.len == (int) strlen(name) && memcmp(key->val.string.val, name, key->val.string.len) == 0;
}

static void
read_item(const JsonbValue *value, int number, EvpgConditionItem *item)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	member;

	if (value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
		raise_bad_item(number, "It must be an object.");
	iterator = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &key, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&iterator, &member, true);
		if (member.type == jbvNull)
			continue;
		if (key_is(&key, "aggregate_types"))
			item->aggregate_types = read_names(&member, number, "aggregate_types", "aggregate type");
		else if (key_is(&key, "event_types"))
			item->event_types = read_names(&member, number, "event_types", "event type");
		else if (key_is(&key, "tags"))
			item->tags = read_names(&member, number, "tags", "tag");
		else if (key_is(&key, "after_position"))
			item->after = read_position(&member, number);
		else
			raise_bad_item(number, psprintf("Key \"%s\" is not known.",
											pnstrdup(key.val.string.val, key.val.string.len)));
	}
	if (item->aggregate_types == NIL && item->event_types == NIL && item->tags == NIL)
		raise_bad_item(number, "It names neither tags nor types, so every event would match.");
	if (list_length(item->tags) > EVPG_MAX_TAGS)
		raise_bad_item(number, psprintf("It has %d tags, more than an event can have.", list_length(item->tags)));
}

/*
 * EvpgConditionFromJsonb
 *		Reads a condition as evpg_condition() makes it, an array of items or one item,
 *		and checks it; in CurrentMemoryContext.
 */
EvpgCondition *
EvpgConditionFromJsonb(Jsonb *jsonb)
{
	bool		many = JB_ROOT_IS_ARRAY(jsonb) && !JB_ROOT_IS_SCALAR(jsonb);
	int			count = many ? JB_ROOT_COUNT(jsonb) : 1;
	EvpgCondition *condition;

	if (count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("condition must not be empty"),
				 errhint("Leave the argument out, or pass NULL, for no condition.")));
	if (count > MAX_ITEMS)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_LIMIT),
				 errmsg("condition has too many items"),
				 errdetail("There are %d; the limit is %d.", count, MAX_ITEMS)));
	condition = palloc0(offsetof(EvpgCondition, items) + sizeof(EvpgConditionItem) * count);
	condition->count = count;
	for (int i = 0; i < count; i++)
	{
		JsonbValue	self = {.type = jbvBinary};
		const JsonbValue *value = &self;

		if (many)
			value = getIthJsonbValueFromContainer(&jsonb->root, (uint32) i);
		else
		{
			self.val.binary.data = &jsonb->root;
			self.val.binary.len = VARSIZE(jsonb) - VARHDRSZ;
		}
		read_item(value, i + 1, &condition->items[i]);
	}
	return condition;
}

/* ------------------------------------------------------------------ matching an event */

/* Returns whether tags, NULL if there are none, have all that are wanted. */
static bool
have_tags(ArrayType *tags, List *wanted)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	int			found = 0;
	ListCell   *cell;

	if (wanted == NIL)
		return true;
	if (tags == NULL)
		return false;
	deconstruct_array(tags, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	foreach(cell, wanted)
	{
		const char *name = lfirst(cell);
		size_t		length = strlen(name);
		int			i = 0;

		while (i < count && (nulls[i] || VARSIZE_ANY_EXHDR(DatumGetPointer(elements[i])) != length ||
							 memcmp(VARDATA_ANY(DatumGetPointer(elements[i])), name, length) != 0))
			i++;
		found += i < count;
	}
	pfree(elements);
	pfree(nulls);
	return found == list_length(wanted);
}

/*
 * EvpgConditionMatches
 *		Returns whether an event matches an item of a condition.  One that has no
 *		position yet comes after every position.
 */
bool
EvpgConditionMatches(const EvpgCondition *condition, const EvpgEvent *event)
{
	for (int i = 0; i < condition->count; i++)
	{
		const EvpgConditionItem *item = &condition->items[i];

		if ((event->position == 0 || event->position > item->after) &&
			EvpgNamesHave(item->event_types, event->type) &&
			EvpgNamesHave(item->aggregate_types, event->aggregate_type) && have_tags(event->tags, item->tags))
			return true;
	}
	return false;
}

/* ------------------------------------------------------------------ enforcing it */

/* Finds the first event that matches any item under a snapshot; false if there is none. */
static bool
find_match(const EvpgCondition *condition, Snapshot snapshot, ConditionMatch *match)
{
	EvpgLogFilter filter = {.upto = EvpgFenceLastDrawn(), .condition = condition, .leaves_upcasting = true};
	EvpgLogScan *scan;
	EvpgEvent	event;
	bool		found;

	PushActiveSnapshot(snapshot);
	scan = EvpgLogScanAll(&filter);
	/* After many events that do not match a scan pauses. */
	while (!(found = EvpgLogScanNext(scan, &event)) && EvpgLogScanReached(scan) < filter.upto)
		CHECK_FOR_INTERRUPTS();
	if (found)
	{
		match->position = event.position;
		match->item = EvpgLogScanItem(scan) + 1;
		match->type = pstrdup(event.type);
		match->aggregate_type = pstrdup(event.aggregate_type);
		match->aggregate_id = pstrdup(event.aggregate_id);
	}
	EvpgLogScanEnd(scan);
	PopActiveSnapshot();
	return found && !EVPG_MUTATION("condition_ignored");
}

pg_noreturn static void
raise_match(const ConditionMatch *match)
{
	StringInfoData detail;

	initStringInfo(&detail);
	appendStringInfo(&detail, "{\"item\": %d, \"position\": " INT64_FORMAT ", \"type\": ", match->item, match->position);
	escape_json(&detail, match->type);
	appendStringInfoString(&detail, ", \"aggregate_type\": ");
	escape_json(&detail, match->aggregate_type);
	appendStringInfoString(&detail, ", \"aggregate_id\": ");
	escape_json(&detail, match->aggregate_id);
	appendStringInfoChar(&detail, '}');
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_CONDITION),
			 errmsg("an event matches the condition of the append"),
			 errdetail_internal("%s", detail.data),
			 errhint("Read the events after the position of the condition, and decide again.")));
}

/* Raises an error if an item begins after a position that does not exist yet. */
static void
check_positions(const EvpgCondition *condition)
{
	int64		last = EvpgFenceLastDrawn();

	for (int i = 0; i < condition->count; i++)
		if (condition->items[i].after > last)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("item %d of the condition begins after a position that does not exist", i + 1),
					 errdetail("The position is " INT64_FORMAT "; the last one that was drawn is " INT64_FORMAT ".",
							   condition->items[i].after, last),
					 errhint("Use the position of an event that was read, or that of evpg_stable_position() "
							 "before reading.")));
}

/* Returns the locks of an append of events under a condition, which are not taken yet; see EvpgTagLocksCheck. */
static EvpgTagLocks *
collect_locks(const EvpgCondition *condition, const EvpgEvent *events, int count, bool may_append)
{
	EvpgTagLocks *locks = EvpgTagLocksBegin(events, count);

	for (int i = 0; i < condition->count; i++)
	{
		const EvpgConditionItem *item = &condition->items[i];

		EvpgTagLocksCheck(locks, item->tags == NIL ? NULL : linitial(item->tags), may_append);
	}
	return locks;
}

/*
 * EvpgConditionLock
 *		Waits until no other transaction that has appended an event which matches a
 *		condition is in progress; none appends one then before this one has ended.  The
 *		caller holds the stream, has not entered the fence for this call, and then
 *		reads with a new snapshot.
 */
void
EvpgConditionLock(const EvpgCondition *condition)
{
	check_positions(condition);
	EvpgTagLocksTake(collect_locks(condition, NULL, 0, true));
}

/*
 * EvpgConditionEnforce
 *		Raises VE013 if an event matches a condition, and 40001 if that event was
 *		committed after the snapshot of the transaction.  Else none can be appended by
 *		another transaction before this one has ended.  Locks the tags of the events
 *		that are going to be appended, too.  The caller holds the stream, and has not
 *		entered the fence for this call.
 */
void
EvpgConditionEnforce(const EvpgCondition *condition, const EvpgEvent *events, int count)
{
	ConditionMatch match;

	check_positions(condition);
	EvpgTagLocksTake(collect_locks(condition, events, count, false));

	/* Whatever has been committed since, it existed before. */
	if (IsolationUsesXactSnapshot() && find_match(condition, GetTransactionSnapshot(), &match))
		raise_match(&match);
	if (find_match(condition, GetLatestSnapshot(), &match))
	{
		if (!IsolationUsesXactSnapshot())
			raise_match(&match);
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update"),
				 errhint("Retry the transaction.")));
	}
	EVPG_WAIT_POINT("condition_met");
}

/* ------------------------------------------------------------------ positions for a condition */

/*
 * evpg_condition_position
 *		SQL: evpg_condition_position(condition).  Returns a position at or below which
 *		no further event that matches a condition can appear, after waiting for
 *		in-progress transactions that might append one, and for no others.
 */
Datum
evpg_condition_position(PG_FUNCTION_ARGS)
{
	EvpgCondition *condition;
	EvpgTagLocks *locks;
	EvpgScope	scope;
	XLogRecPtr	lsn;
	int64		position;

	EvpgArgRefuseNull(fcinfo, 0, "condition");
	condition = EvpgConditionFromJsonb(PG_GETARG_JSONB_P(0));
	EvpgEnter(&scope, NULL);
	PreventCommandDuringRecovery("evpg_condition_position()");
	EvpgFenceRefuseStale();
	locks = collect_locks(condition, NULL, 0, false);
	EvpgTagLocksTake(locks);
	position = EvpgPositionReadLast(&lsn);
	EvpgTagLocksRelease(locks);
	EvpgDurableAwaitAppends(lsn);
	EvpgLeave(&scope);
	PG_RETURN_INT64(position);
}
