/*-------------------------------------------------------------------------
 *
 * registration_advice.c
 *		Warnings about registrations that are probably mistakes: what is
 *		registered is valid, but would never find a key or an event, or would
 *		fail only when a rebuild needs it.
 *
 * All of it is advice: nothing is refused.  To be called inside of EvpgEnter,
 * so that nothing depends on the search_path of the caller.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/compat.h"
#include "base/names.h"
#include "base/settings.h"
#include "base/statement.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "log/event.h"
#include "log/fence.h"
#include "miscadmin.h"
#include "parser/scansup.h"
#include "usercode/registration_advice.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonpath.h"
#include "utils/regproc.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

/* How many of the newest positions are searched for types of events: some milliseconds. */
#define SEEN_POSITIONS	10000

/* How many are searched for events in which a path finds a key. */
#define KEYED_POSITIONS 1000

/* The largest distance of a name from another one to be taken for a typing error. */
#define MAX_DISTANCE	3

/* Returns the name that is most like another one; NULL if none is similar. */
static const char *
find_closest_name(const char *name, List *known)
{
	int			length = strlen(name);
	int			least = Min(MAX_DISTANCE, length / 2) + 1;
	const char *closest = NULL;
	ListCell   *cell;

	foreach(cell, known)
	{
		const char *other = lfirst(cell);
		int			distance = varstr_levenshtein_less_equal(name, length, other, strlen(other), 1, 1, 1, least, true);

		if (distance < least)
		{
			least = distance;
			closest = other;
		}
	}
	return closest;
}

/* ------------------------------------------------------------------ paths */

/* Returns the names of the members of an event, as a path sees it. */
static List *
list_event_members(void)
{
	EvpgEvent	event = {0};
	Jsonb	   *jsonb = EvpgEventToJsonb(&event);
	JsonbIterator *iterator = JsonbIteratorInit(&jsonb->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	List	   *members = NIL;

	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
		if (token == WJB_KEY)
			members = lappend(members, pnstrdup(value.val.string.val, value.val.string.len));
	return members;
}

static const char *find_unknown_member(JsonPathItem *item, bool current_is_event, List *members);

/*
 * Finds an unknown member in what comes after the first item of a path;
 * at_event tells whether that item is the event.
 */
static const char *
find_unknown_member_after(JsonPathItem *item, bool at_event, bool current_is_event, List *members)
{
	JsonPathItem next;
	JsonPathItem predicate;
	const char *unknown = NULL;

	while (unknown == NULL && jspGetNext(item, &next))
	{
		switch (next.type)
		{
			case jpiKey:
				if (at_event && !EvpgNamesHave(members, jspGetString(&next, NULL)))
					unknown = jspGetString(&next, NULL);
				at_event = false;
				break;
			case jpiFilter:
				jspGetArg(&next, &predicate);
				unknown = find_unknown_member(&predicate, at_event, members);
				break;
			case jpiAnyArray:
			case jpiIndexArray:
				/* An object counts as an array of itself, but in strict mode. */
				break;
			default:
				at_event = false;
				break;
		}
		*item = next;
	}
	return unknown;
}

/* Finds a member that a path looks for in the event and that no event has; NULL if there is none. */
static const char *
find_unknown_member(JsonPathItem *item, bool current_is_event, List *members)
{
	JsonPathItem argument;
	const char *unknown = NULL;

	check_stack_depth();
	switch (item->type)
	{
		case jpiAnd:
		case jpiOr:
		case jpiEqual:
		case jpiNotEqual:
		case jpiLess:
		case jpiGreater:
		case jpiLessOrEqual:
		case jpiGreaterOrEqual:
		case jpiAdd:
		case jpiSub:
		case jpiMul:
		case jpiDiv:
		case jpiMod:
		case jpiStartsWith:
			jspGetLeftArg(item, &argument);
			unknown = find_unknown_member(&argument, current_is_event, members);
			if (unknown == NULL)
			{
				jspGetRightArg(item, &argument);
				unknown = find_unknown_member(&argument, current_is_event, members);
			}
			break;
		case jpiNot:
		case jpiIsUnknown:
		case jpiExists:
		case jpiPlus:
		case jpiMinus:
			jspGetArg(item, &argument);
			unknown = find_unknown_member(&argument, current_is_event, members);
			break;
		case jpiLikeRegex:
			jspInitByBuffer(&argument, item->base, item->content.like_regex.expr);
			unknown = find_unknown_member(&argument, current_is_event, members);
			break;
		default:
			break;
	}
	if (unknown != NULL)
		return unknown;
	return find_unknown_member_after(item, item->type == jpiRoot || (item->type == jpiCurrent && current_is_event),
									 current_is_event, members);
}

static char *
join_names(List *names)
{
	StringInfoData text;
	ListCell   *cell;

	initStringInfo(&text);
	foreach(cell, names)
		appendStringInfo(&text, "%s%s", text.len == 0 ? "" : ", ", (char *) lfirst(cell));
	return text.data;
}

/* Returns whether a path has a filter, so that it is to find nothing in some events. */
static bool
has_filter(struct varlena *path)
{
	JsonPathItem item;
	JsonPathItem next;

	jspInit(&item, DatumGetJsonPathP(PointerGetDatum(path)));
	while (item.type != jpiFilter && jspGetNext(&item, &next))
		item = next;
	return item.type == jpiFilter;
}

/* Returns whether a path finds anything but null in an event. */
static bool
finds_key(struct varlena *path, const EvpgEvent *event)
{
	Jsonb	   *found = DatumGetJsonbP(DirectFunctionCall4(jsonb_path_query_array, JsonbPGetDatum(EvpgEventToJsonb(event)),
														   PointerGetDatum(path),
														   DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")),
														   BoolGetDatum(true)));
	JsonbIterator *iterator = JsonbIteratorInit(&found->root);
	JsonbIteratorToken token;
	JsonbValue	value;

	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
		if (token == WJB_ELEM && value.type != jbvNull)
			return true;
	return false;
}

/* Reports a path that finds no key in the newest of those events in which it is to find one. */
static void
advise_missing_keys(const char *argument, const char *kind, const char *name, struct varlena *path,
					const EvpgLogFilter *takes)
{
	EvpgLogFilter filter = *takes;
	int			events = 0;
	bool		found = false;

	filter.upto = EvpgFenceLastDrawn();
	filter.after = Max(filter.upto - KEYED_POSITIONS, 0);
	filter.leaves_upcasting = true;
	EvpgSettingsPin();
	PushActiveSnapshot(GetTransactionSnapshot());
	while (filter.after < filter.upto && !found)
	{
		EvpgLogScan *scan = EvpgLogScanAll(&filter);
		EvpgEvent	event;

		while (!found && EvpgLogScanNext(scan, &event))
		{
			/* Of an old schema: what upcasters raise is not about the path. */
			if (event.chain != NULL)
				continue;
			found = finds_key(path, &event);
			events++;
		}
		filter.after = EvpgLogScanReached(scan);
		EvpgLogScanEnd(scan);
	}
	PopActiveSnapshot();
	if (events > 0 && !found)
		ereport(NOTICE,
				(errmsg("%s of %s \"%s\" finds no key in the newest events of its types", argument, kind, name),
				 errdetail_plural("It was tried with %d event; one without a key is not taken.",
								  "It was tried with %d events; those without a key are not taken.", events, events),
				 errhint("Compare the path with the data of these events, in evpg.event.")));
}

/*
 * EvpgAdvisePath
 *		Warns if a path looks for a member that no event has, or finds no key in the
 *		newest events of takes, whose positions do not count: it would silently find no
 *		key.  argument is the name of the path, kind and name are those of its projection
 *		or saga; path may be NULL.  The caller is inside EvpgEnter, and keeps no session
 *		waiting.
 */
void
EvpgAdvisePath(const char *argument, const char *kind, const char *name, struct varlena *path, const EvpgLogFilter *takes)
{
	JsonPathItem item;
	List	   *members = list_event_members();
	const char *unknown;
	const char *closest;

	if (path == NULL)
		return;
	jspInit(&item, DatumGetJsonPathP(PointerGetDatum(path)));
	unknown = find_unknown_member(&item, false, members);
	if (unknown == NULL)
	{
		if (!has_filter(path))
			advise_missing_keys(argument, kind, name, path, takes);
		return;
	}
	closest = find_closest_name(unknown, members);
	ereport(WARNING,
			(errmsg("%s of %s \"%s\" looks for \"%s\", which is no member of an event", argument, kind, name, unknown),
			 errdetail("Members of an event are %s.", join_names(members)),
			 closest != NULL ? errhint("Perhaps you meant \"%s\".", closest) :
			 errhint("What a handler puts into an event is in its data: perhaps you meant $.data.%s.", unknown)));
}

/* ------------------------------------------------------------------ types */

static EvpgStatement select_aggregate_names = {
	.text = "SELECT aggregate_type"
	" FROM evpg.aggregate_type"
};

static EvpgStatement select_events_types = {
	.text = "SELECT DISTINCT type"
	" FROM evpg.event_log"
	" WHERE position > $1",
	.types = {INT8OID}
};

/*
 * EvpgAdviseReadSeenTypes
 *		Lists the types of the newest events (char *), in CurrentMemoryContext, for
 *		EvpgAdviseTypes.  Only the newest positions are searched, however long the log
 *		is; that takes some milliseconds, so the caller keeps no session waiting
 *		meanwhile.  The caller is inside EvpgEnter.
 */
List *
EvpgAdviseReadSeenTypes(void)
{
	Datum		after = Int64GetDatum(EvpgFenceLastDrawn() - SEEN_POSITIONS);

	return EvpgStatementReadTexts(&select_events_types, &after, NULL);
}

/*
 * EvpgAdviseTypes
 *		Reports types of a registration that have not been seen, if the log has
 *		events: registering before the first event is the rule.  The arrays may
 *		be NULL for all types.  seen is of EvpgAdviseReadSeenTypes.  The caller is inside
 *		EvpgEnter.
 */
void
EvpgAdviseTypes(const char *kind, const char *name, ArrayType *aggregate_types, ArrayType *event_types, List *seen)
{
	List	   *registered;
	ListCell   *cell;

	if (seen == NIL)
		return;
	foreach(cell, event_types == NULL ? NIL : EvpgNamesFromArray(event_types))
	{
		const char *type = lfirst(cell);
		const char *closest = find_closest_name(type, seen);

		if (!EvpgNamesHave(seen, type))
			ereport(NOTICE,
					(errmsg("%s \"%s\" takes events of type \"%s\", which has not been seen", kind, name, type),
					 errdetail("No event at the newest %d positions of the log is of this type.", SEEN_POSITIONS),
					 closest == NULL ? 0 : errhint("Perhaps you meant \"%s\".", closest)));
	}
	if (aggregate_types == NULL)
		return;
	registered = EvpgStatementReadTexts(&select_aggregate_names, NULL, NULL);
	foreach(cell, EvpgNamesFromArray(aggregate_types))
	{
		const char *type = lfirst(cell);
		const char *closest = find_closest_name(type, registered);

		if (!EvpgNamesHave(registered, type))
			ereport(NOTICE,
					(errmsg("%s \"%s\" is for aggregate type \"%s\", which is not registered", kind, name, type),
					 closest == NULL ? 0 : errhint("Perhaps you meant \"%s\".", closest)));
	}
}

/* ------------------------------------------------------------------ tables */

/* Steps over white space and comments. */
static const char *
skip_space(const char *p)
{
	for (;;)
	{
		const char *end;

		if (*p != '\0' && scanner_isspace(*p))
			p++;
		else if (strncmp(p, "--", 2) == 0)
			p += strcspn(p, "\n\r");
		else if (strncmp(p, "/*", 2) == 0 && (end = strstr(p, "*/")) != NULL)
			p = end + 2;
		else
			return p;
	}
}

/* Reads an identifier as SQL would, and moves *p behind it; NULL if there is none. */
static char *
read_identifier(const char **p)
{
	const char *start = *p;

	if (*start == '"')
	{
		StringInfoData name;
		const char *q;

		initStringInfo(&name);
		for (q = start + 1; *q != '\0' && (*q != '"' || *++q == '"'); q++)
			appendStringInfoChar(&name, *q);
		if (q[-1] != '"' || q == start + 1)
			return NULL;
		*p = q;
		return name.data;
	}
	if (!isalpha((unsigned char) *start) && *start != '_' && !IS_HIGHBIT_SET(*start))
		return NULL;
	while (isalnum((unsigned char) **p) || **p == '_' || **p == '$' || IS_HIGHBIT_SET(**p))
		(*p)++;
	return downcase_identifier(start, *p - start, false, false);
}

/*
 * Returns whether the text of a function names a table with its schema, also
 * in a string that it executes; as the type of a variable it does no harm.
 */
static bool
source_names_table(const char *source, const char *schema, const char *table)
{
	const char *p = source;
	char	   *qualifier = NULL;

	while (*(p = skip_space(p)) != '\0')
	{
		char	   *name = read_identifier(&p);

		if (name == NULL)
		{
			qualifier = NULL;
			p++;
			continue;
		}
		p = skip_space(p);
		if (qualifier != NULL && *p != '%' && strcmp(qualifier, schema) == 0 && strcmp(name, table) == 0)
			return true;
		qualifier = *p == '.' ? name : NULL;
		if (*p == '.')
			p++;
	}
	return false;
}

/* Returns a column of pg_proc as text; NULL if it is null. */
static char *
get_proc_text(HeapTuple tuple, int column)
{
	bool		isnull;
	Datum		value = SysCacheGetAttr(PROCOID, tuple, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static bool
function_sets_search_path(HeapTuple tuple)
{
	bool		isnull;
	Datum		settings = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_proconfig, &isnull);
	ListCell   *cell;

	foreach(cell, isnull ? NIL : EvpgNamesFromArray(DatumGetArrayTypeP(settings)))
		if (strncmp(lfirst(cell), "search_path=", strlen("search_path=")) == 0)
		return true;
	return false;
}

/*
 * EvpgAdviseTables
 *		Warns if the handler of a projection names declared tables in a way that
 *		would make a rebuild fail, which runs it over copies that come first in
 *		the search_path.  tables are qualified names, or NULL.  The caller is
 *		inside EvpgEnter.
 */
void
EvpgAdviseTables(Oid handler, ArrayType *tables)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(handler));
	Form_pg_proc proc;
	bool		isnull;
	bool		bound;
	char	   *source = NULL;
	ListCell   *cell;

	if (!HeapTupleIsValid(tuple))
		return;
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	(void) SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosqlbody, &isnull);
	bound = !isnull;
	if (bound)
		source = TextDatumGetCString(DirectFunctionCall1(pg_get_function_sqlbody, ObjectIdGetDatum(handler)));
	else if (proc->prolang != INTERNALlanguageId && proc->prolang != ClanguageId)
		source = get_proc_text(tuple, Anum_pg_proc_prosrc);

#define ADVISE(advice, ...) \
	ereport(WARNING, \
			(errmsg(__VA_ARGS__), \
			 errdetail("A rebuild runs the handler over copies of its tables, which it finds by the search_path, " \
					   "so it will fail."), \
			 errhint(advice)))
	if (tables != NULL && function_sets_search_path(tuple))
		ADVISE("Leave SET search_path out: evpg runs the handler under the search_path of its registration.",
			   "handler %s has a search_path of its own", format_procedure(handler));
	foreach(cell, tables == NULL || source == NULL ? NIL : EvpgNamesFromArray(tables))
	{
		List	   *names = stringToQualifiedNameList(lfirst(cell), NULL);

		if (!source_names_table(source, strVal(linitial(names)), strVal(llast(names))))
			continue;
		if (bound)
			ADVISE("Write the body as a string, not as BEGIN ATOMIC or RETURN.",
				   "handler %s is bound to table %s", format_procedure(handler), (char *) lfirst(cell));
		else
			ADVISE("Name the table without a schema.",
				   "handler %s names table %s with its schema", format_procedure(handler), (char *) lfirst(cell));
	}
#undef ADVISE
	ReleaseSysCache(tuple);
}
