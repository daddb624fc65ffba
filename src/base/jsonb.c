/*-------------------------------------------------------------------------
 *
 * jsonb.c
 *		Making jsonb objects member by member, and reading their members.
 *
 * All results are in CurrentMemoryContext.  What is added must stay as it is until
 * the object is finished.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/jsonb.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

/* ------------------------------------------------------------------ making objects */

/* Begins an object: the first of a state that is NULL, or one inside of it, after EvpgJsonbAddKey. */
void
EvpgJsonbBegin(JsonbParseState **state)
{
	(void) pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
}

/* Ends the object that was begun last. */
JsonbValue *
EvpgJsonbEnd(JsonbParseState **state)
{
	return pushJsonbValue(state, WJB_END_OBJECT, NULL);
}

/* Ends the outermost object and returns it. */
Jsonb *
EvpgJsonbFinish(JsonbParseState **state)
{
	return JsonbValueToJsonb(EvpgJsonbEnd(state));
}

static JsonbValue
make_string(const char *text)
{
	JsonbValue	value = {.type = jbvString};

	value.val.string.val = (char *) text;
	value.val.string.len = strlen(text);
	return value;
}

/* Adds the name of a member whose value the caller adds next. */
void
EvpgJsonbAddKey(JsonbParseState **state, const char *name)
{
	JsonbValue	key = make_string(name);

	(void) pushJsonbValue(state, WJB_KEY, &key);
}

/* Adds a member; NULL is JSON's null. */
void
EvpgJsonbAdd(JsonbParseState **state, const char *name, JsonbValue *value)
{
	JsonbValue	null = {.type = jbvNull};

	EvpgJsonbAddKey(state, name);
	(void) pushJsonbValue(state, WJB_VALUE, value == NULL ? &null : value);
}

/* Adds a number. */
void
EvpgJsonbAddNumeric(JsonbParseState **state, const char *name, Datum numeric)
{
	JsonbValue	value = {.type = jbvNumeric};

	value.val.numeric = DatumGetNumeric(numeric);
	EvpgJsonbAdd(state, name, &value);
}

/* Adds a number. */
void
EvpgJsonbAddInt64(JsonbParseState **state, const char *name, int64 number)
{
	EvpgJsonbAddNumeric(state, name, NumericGetDatum(int64_to_numeric(number)));
}

/* Adds a time, in UTC whatever the TimeZone of the session: a path may make a key of it. */
void
EvpgJsonbAddTime(JsonbParseState **state, const char *name, TimestampTz time)
{
	int			utc = 0;

	EvpgJsonbAddTextOrNull(state, name, JsonEncodeDateTime(NULL, TimestampTzGetDatum(time), TIMESTAMPTZOID, &utc));
}

/* Adds a string, or null. */
void
EvpgJsonbAddTextOrNull(JsonbParseState **state, const char *name, const char *text)
{
	JsonbValue	value = make_string(text == NULL ? "" : text);

	EvpgJsonbAdd(state, name, text == NULL ? NULL : &value);
}

/* Adds a string, or nothing. */
void
EvpgJsonbAddText(JsonbParseState **state, const char *name, const char *text)
{
	if (text != NULL)
		EvpgJsonbAddTextOrNull(state, name, text);
}

/* Adds any value, or null. */
void
EvpgJsonbAddJsonbOrNull(JsonbParseState **state, const char *name, Jsonb *jsonb)
{
	JsonbValue	value;

	if (jsonb == NULL)
		EvpgJsonbAdd(state, name, NULL);
	else
	{
		if (!JB_ROOT_IS_SCALAR(jsonb) || !JsonbExtractScalar(&jsonb->root, &value))
			JsonbToJsonbValue(jsonb, &value);
		EvpgJsonbAdd(state, name, &value);
	}
}

/* Adds any value, or nothing. */
void
EvpgJsonbAddJsonb(JsonbParseState **state, const char *name, Jsonb *jsonb)
{
	if (jsonb != NULL)
		EvpgJsonbAddJsonbOrNull(state, name, jsonb);
}

/* Adds a text[] without NULLs as an array of strings, or null. */
void
EvpgJsonbAddArrayOrNull(JsonbParseState **state, const char *name, ArrayType *texts)
{
	Datum	   *elements;
	int			count;

	if (texts == NULL)
	{
		EvpgJsonbAdd(state, name, NULL);
		return;
	}
	deconstruct_array(texts, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &count);
	EvpgJsonbAddKey(state, name);
	(void) pushJsonbValue(state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < count; i++)
	{
		JsonbValue	value = make_string(TextDatumGetCString(elements[i]));

		(void) pushJsonbValue(state, WJB_ELEM, &value);
	}
	(void) pushJsonbValue(state, WJB_END_ARRAY, NULL);
}

/* ------------------------------------------------------------------ reading objects */

/*
 * EvpgJsonbMember
 *		Returns a member of an object, which points into it; NULL if it has none, if
 *		that is JSON's null, or if it is no object.
 */
JsonbValue *
EvpgJsonbMember(const Jsonb *object, const char *name)
{
	JsonbValue *value = NULL;

	if (JB_ROOT_IS_OBJECT((Jsonb *) object))
		value = getKeyJsonValueFromContainer((JsonbContainer *) &object->root, name, strlen(name), NULL);
	return value == NULL || value->type == jbvNull ? NULL : value;
}

/* Returns a copy of a member that is a string; NULL if it is none. */
char *
EvpgJsonbMemberText(const Jsonb *object, const char *name)
{
	JsonbValue *value = EvpgJsonbMember(object, name);

	return value == NULL || value->type != jbvString ? NULL : pnstrdup(value->val.string.val, value->val.string.len);
}

/* Returns {}. */
Jsonb *
EvpgJsonbEmptyObject(void)
{
	JsonbParseState *state = NULL;

	EvpgJsonbBegin(&state);
	return EvpgJsonbFinish(&state);
}

/* Returns first || second: members of the second replace those of the first; either may be NULL. */
Jsonb *
EvpgJsonbConcat(Jsonb *first, Jsonb *second)
{
	if (first == NULL || second == NULL)
		return first == NULL ? second : first;
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(first), JsonbPGetDatum(second)));
}
