/*-------------------------------------------------------------------------
 *
 * keys.c
 *		Finds the keys of an event: which rows of a projection it is applied to,
 *		which instances of a saga react to it.
 *
 * what names them in errors: "projection key" or "saga key".  Each key comes
 * once, in the order of their bytes.  Lists and keys are in
 * CurrentMemoryContext; NIL is none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "base/arguments.h"
#include "base/settings.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "usercode/function_call.h"
#include "usercode/keys.h"
#include "usercode/module_callback.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

static List *
add_key(List *keys, char *key, const char *what)
{
	EvpgCheckKey(key, what);
	CHECK_FOR_INTERRUPTS();
	return lappend(keys, key);
}

static int
compare_keys(const ListCell *a, const ListCell *b)
{
	return strcmp(lfirst(a), lfirst(b));
}

/*
 * Sorts keys and returns each once.  Comparing each with each would take
 * minutes for as many keys as one event may have.
 */
static List *
sort_distinct_keys(List *keys)
{
	int			count = 0;

	list_sort(keys, compare_keys);
	for (int i = 0; i < list_length(keys); i++)
	{
		ListCell   *cell = list_nth_cell(keys, i);

		if (count == 0 || strcmp(lfirst(cell), list_nth(keys, count - 1)) != 0)
			lfirst(list_nth_cell(keys, count++)) = lfirst(cell);
	}
	return list_truncate(keys, count);
}

/*
 * EvpgKeysByPath
 *		Returns the keys that the path of a projection or saga finds in an
 *		event: scalars are keys, null is none.  Raises 22023 if it finds an
 *		object or array.  kind and name are those of the projection or saga.
 */
List *
EvpgKeysByPath(struct varlena *path, const EvpgEvent *event, const char *kind, const char *name)
{
	char	   *what = psprintf("%s key", kind);
	Jsonb	   *found;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	List	   *keys = NIL;

	/* For datetime(), which knows names of months. */
	EvpgSettingsPin();
	found = DatumGetJsonbP(DirectFunctionCall4(jsonb_path_query_array,
											   JsonbPGetDatum(EvpgEventToJsonb(event)),
											   PointerGetDatum(path),
											   DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")),
											   BoolGetDatum(true)));
	iterator = JsonbIteratorInit(&found->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		switch (value.type)
		{
			case jbvNull:
				break;
			case jbvString:
				keys = add_key(keys, pnstrdup(value.val.string.val, value.val.string.len), what);
				break;
			case jbvNumeric:
				keys = add_key(keys, DatumGetCString(DirectFunctionCall1(numeric_out,
																		 NumericGetDatum(value.val.numeric))), what);
				break;
			case jbvBool:
				keys = add_key(keys, value.val.boolean ? "true" : "false", what);
				break;
			default:
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("key path of %s \"%s\" finds an object or array", kind, name),
						 errhint("A key is a string, a number or a boolean.")));
		}
	}
	return sort_distinct_keys(keys);
}

/*
 * EvpgKeysByFunction
 *		Returns the keys that a key function returns for an event, a text or an
 *		array of text; NULL is none.  The caller is inside EvpgEnter.
 */
List *
EvpgKeysByFunction(EvpgFunction *function, const EvpgEvent *event, const char *what)
{
	Datum		args[1] = {EvpgEventDatum(event)};
	Datum	   *rows;
	bool	   *nulls;
	List	   *keys = NIL;
	Datum	   *elements;
	int			count;

	if (EvpgFunctionCall(function, args, true, 1, &rows, &nulls) != 1 || nulls[0])
		return NIL;
	if (function->result_type == TEXTOID)
		return add_key(NIL, TextDatumGetCString(rows[0]), what);
	deconstruct_array(DatumGetArrayTypeP(rows[0]), TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	for (int i = 0; i < count; i++)
		if (!nulls[i])
			keys = add_key(keys, TextDatumGetCString(elements[i]), what);
	return sort_distinct_keys(keys);
}

/* Returns the key that the callback of a module returns for an event; NULL is none. */
List *
EvpgKeysByModule(evpg_key_fn key, const EvpgEvent *event, const char *what)
{
	EvpgModuleEvent lent;
	const char *found;
	List	   *keys = NIL;

	EvpgModuleEventInit(&lent);
	EvpgModuleEventSet(&lent, event, NULL);
	found = key(&lent.event);
	if (found != NULL)
		keys = add_key(NIL, EvpgModuleCopyText(found, what), what);
	EvpgModuleEventClear(&lent);
	return keys;
}
