/*-------------------------------------------------------------------------
 *
 * json.c
 *		Converts between jsonb and json-c without going through text.
 *
 * Numbers are exact in both directions: an integer of 64 bits is a json-c
 * integer, any other number a json-c double that keeps its text.  (json-c's
 * own parser saturates big integers and stops at depth 32.)  Strings are
 * UTF-8, since the extension accepts no other database.
 *
 * json-c allocates with malloc, which an ERROR does not free: a value is tied
 * to a memory context (EvpgJsonOwn) before anything can fail, and leaves it
 * (EvpgJsonLetGo) only into another owner.
 *
 * Values that a module has built may be of any depth and size, share parts or
 * contain themselves.  json-c frees and serialises by recursion without a stack
 * check, so values are freed by evpg_free, which does not recurse, and every walk
 * here counts levels and bytes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/compat.h"
#include "evpg.h"

#include "base/arguments.h"
#include "base/error_context.h"
#include "base/errors.h"
#include "base/json.h"
#include "base/settings.h"
#include "common/jsonapi.h"
#include "common/shortest_dec.h"
#include "common/string.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

static void
free_json(void *arg)
{
	EvpgJsonOwner *owner = arg;

	evpg_free(owner->json);
	owner->json = NULL;
}

/*
 * EvpgJsonOwn
 *		Ties a value to CurrentMemoryContext, which frees it when it is reset.
 *		NULL is allowed: set ->json once there is one.
 */
EvpgJsonOwner *
EvpgJsonOwn(evpg_json *json)
{
	EvpgJsonOwner *owner = palloc(sizeof(EvpgJsonOwner));

	owner->json = json;
	owner->callback.func = free_json;
	owner->callback.arg = owner;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &owner->callback);
	return owner;
}

/* Takes the value out of its owner; the caller must free it. */
evpg_json *
EvpgJsonLetGo(EvpgJsonOwner *owner)
{
	evpg_json  *json = owner->json;

	owner->json = NULL;
	return json;
}

static void *
require_json(void *pointer)
{
	if (unlikely(pointer == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed in json-c.")));
	return pointer;
}

/*
 * A numeric as it is stored, in numeric.c's short format: a header, then digits to
 * base 10,000.  Values on disk have it, so it stays as it is.
 */
#define NUMERIC_FORMAT_MASK		0xC000
#define NUMERIC_FORMAT_SHORT	0x8000
#define NUMERIC_NEGATIVE		0x2000
#define NUMERIC_SCALE_MASK		0x1F80
#define NUMERIC_BELOW_ONE		0x0040
#define NUMERIC_WEIGHT_MASK		0x003F
#define NUMERIC_BASE			10000

/* The largest weight with which every digit fits into 64 bits. */
#define MAX_INTEGER_WEIGHT		3

/*
 * Reads a numeric that is an integer of at most 16 digits, without a decimal point;
 * returns false if it is, or may be, anything else.
 */
static bool
read_short_integer(Numeric number, int64 *value)
{
	uint16		header;
	const int16 *digits;
	int			ndigits;
	int			weight;
	int64		result = 0;

	if (!VARATT_IS_4B_U(number))
		return false;
	header = *(const uint16 *) VARDATA(number);
	digits = (const int16 *) (VARDATA(number) + sizeof(uint16));
	ndigits = (VARSIZE(number) - VARHDRSZ - sizeof(uint16)) / sizeof(int16);
	weight = header & NUMERIC_WEIGHT_MASK;
	if ((header & (NUMERIC_FORMAT_MASK | NUMERIC_SCALE_MASK | NUMERIC_BELOW_ONE)) != NUMERIC_FORMAT_SHORT ||
		weight > MAX_INTEGER_WEIGHT || ndigits > weight + 1)
		return false;
	for (int i = 0; i <= weight; i++)
		result = result * NUMERIC_BASE + (i < ndigits ? digits[i] : 0);
	*value = (header & NUMERIC_NEGATIVE) != 0 ? -result : result;
	return true;
}

static evpg_json *
number_to_json(Numeric number)
{
	int64		integer;
	char	   *text;
	char	   *end;
	long long	wide;
	evpg_json  *json;

	if (read_short_integer(number, &integer))
		return require_json(json_object_new_int64(integer));
	text = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(number)));
	errno = 0;
	wide = strtoll(text, &end, 10);
	json = require_json(*end == '\0' && errno == 0 ? json_object_new_int64(wide) :
						json_object_new_double_s(strtod(text, NULL), text));
	pfree(text);
	return json;
}

/* Adds a member or element to its parent; containers are attached empty and filled afterwards. */
static void
attach_child(evpg_json *parent, const char *key, evpg_json *child, unsigned key_flags)
{
	int			result;

	/* jsonb has each key once. */
	if (key != NULL)
		result = json_object_object_add_ex(parent, key, child, JSON_C_OBJECT_ADD_KEY_IS_NEW | key_flags);
	else
		result = json_object_array_add(parent, child);
	if (unlikely(result != 0))
	{
		json_object_put(child);
		require_json(NULL);
	}
}

/*
 * Keys that are kept to the end of the session, so that json-c need not copy them for
 * each value: the first ones that come, if they are short.  None is ever freed, since
 * modules may keep values.
 */
#define KEPT_KEYS 256
#define KEPT_KEY_TRIES 4
#define MAX_KEPT_KEY 31

static char *kept_keys[KEPT_KEYS];

/* Returns a key as it is kept; NULL if it is not. */
static const char *
keep_key(const char *key, size_t length)
{
	uint32		place;

	if (length == 0 || length > MAX_KEPT_KEY)
		return NULL;
	place = length + 31 * (unsigned char) key[0] + 37 * (unsigned char) key[length / 2] +
		41 * (unsigned char) key[length - 1];
	for (int try = 0; try < KEPT_KEY_TRIES; try++)
	{
		char	  **kept = &kept_keys[(place + try) % KEPT_KEYS];

		if (*kept == NULL)
		{
			char	   *copy = malloc(length + 1);

			if (copy == NULL)
				return NULL;
			memcpy(copy, key, length);
			copy[length] = '\0';
			*kept = copy;
			return copy;
		}
		if (strncmp(*kept, key, length) == 0 && (*kept)[length] == '\0')
			return *kept;
	}
	return NULL;
}

/* Adds a member whose key is a part of a jsonb, without an end. */
static void
attach_member(evpg_json *object, const char *key, size_t length, evpg_json *child)
{
	const char *kept = keep_key(key, length);
	char		short_key[64];
	char	   *copy;

	if (kept != NULL)
	{
		attach_child(object, kept, child, JSON_C_OBJECT_ADD_CONSTANT_KEY);
		return;
	}
	copy = length < sizeof(short_key) ? short_key : palloc(length + 1);

	memcpy(copy, key, length);
	copy[length] = '\0';
	attach_child(object, copy, child, 0);
	if (copy != short_key)
		pfree(copy);
}

/* Makes a value equal to one of a container, which lies at data, up to end; an object or array is empty. */
static evpg_json *
entry_to_json(JEntry entry, const char *data, const char *end)
{
	switch (entry & JENTRY_TYPEMASK)
	{
		case JENTRY_ISSTRING:
			return require_json(json_object_new_string_len(data, end - data));
		case JENTRY_ISNUMERIC:
			return number_to_json((Numeric) INTALIGN(data));
		case JENTRY_ISBOOL_FALSE:
		case JENTRY_ISBOOL_TRUE:
			return require_json(json_object_new_boolean(JBE_ISBOOL_TRUE(entry)));
		case JENTRY_ISNULL:
			return NULL;
		case JENTRY_ISCONTAINER:
			return require_json(JsonContainerIsObject((JsonbContainer *) INTALIGN(data)) ? json_object_new_object() :
								json_object_new_array());
		default:
			elog(ERROR, "unexpected type of jsonb entry: %x", entry);
	}
}

/*
 * Adds the values of a container of jsonb, which is depth levels down, to an empty
 * value of json-c.  The keys of an object come before its values, all offsets count
 * from the end of the entries, and numbers and containers are aligned (jsonb.h).
 */
static void
fill_json(evpg_json *json, const JsonbContainer *container, int depth, const char *what)
{
	int			count = JsonContainerSize(container);
	const JEntry *keys = JsonContainerIsObject(container) ? container->children : NULL;
	const JEntry *values = container->children + (keys != NULL ? count : 0);
	const char *base = (const char *) (values + count);
	uint32		key = 0;
	uint32		value = 0;

	if (depth >= EvpgMaxJsonDepth)
		EvpgRaiseTooDeep(what);
	check_stack_depth();
	for (int i = 0; keys != NULL && i < count; i++)
		JBE_ADVANCE_OFFSET(value, keys[i]);
	for (int i = 0; i < count; i++)
	{
		uint32		key_end = key;
		uint32		value_end = value;
		evpg_json  *child;

		JBE_ADVANCE_OFFSET(value_end, values[i]);
		child = entry_to_json(values[i], base + value, base + value_end);
		if (keys == NULL)
			attach_child(json, NULL, child, 0);
		else
		{
			JBE_ADVANCE_OFFSET(key_end, keys[i]);
			attach_member(json, base + key, key_end - key, child);
		}
		if (JBE_ISCONTAINER(values[i]))
			fill_json(child, (const JsonbContainer *) INTALIGN(base + value), depth + 1, what);
		key = key_end;
		value = value_end;
	}
}

/*
 * EvpgJsonFill
 *		Gives an owner without a value one that is equal to jsonb, NULL for JSON
 *		null.  Raises an error if it is deeper than the limit; what names the value
 *		there.
 */
void
EvpgJsonFill(EvpgJsonOwner *owner, const Jsonb *jsonb, const char *what)
{
	const JsonbContainer *root = &jsonb->root;

	Assert(owner->json == NULL);
	if (JsonContainerIsScalar(root))
	{
		const char *data = (const char *) &root->children[1];

		owner->json = entry_to_json(root->children[0], data, data + JBE_OFFLENFLD(root->children[0]));
		return;
	}
	owner->json = require_json(JsonContainerIsObject(root) ? json_object_new_object() : json_object_new_array());
	fill_json(owner->json, root, 0, what);
}

/*
 * EvpgJsonFromJsonb
 *		Makes a value as EvpgJsonFill does; the caller must own it at once
 *		(EvpgJsonOwn).
 */
evpg_json *
EvpgJsonFromJsonb(const Jsonb *jsonb, const char *what)
{
	EvpgJsonOwner *owner = EvpgJsonOwn(NULL);

	EvpgJsonFill(owner, jsonb, what);
	return EvpgJsonLetGo(owner);
}

static void
check_json_text(const char *text, size_t length, const char *what)
{
	if (memchr(text, '\0', length) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
				 errmsg("%s contains \\u0000", what),
				 errdetail("jsonb cannot hold the character U+0000.")));
	if (!pg_verify_mbstr(PG_UTF8, text, (int) length, true))
		ereport(ERROR,
				(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
				 errmsg("%s contains text that is not valid UTF-8", what)));
}

/* Makes a text that may be anything fit to be shown in a message. */
static char *
clean_text(const char *text)
{
	return pg_clean_ascii(pnstrdup(text, NAMEDATALEN), 0);
}

static void
describe_number(void *what)
{
	errcontext("number in %s", (const char *) what);
}

/*
 * Makes a numeric of the text of a number, which may be anything if a module
 * has made the number; raises an error unless it is one.
 */
static Numeric
text_to_numeric(const char *text, const char *what)
{
	ErrorContextCallback callback;
	Datum		number;

	/* numeric_in also takes NaN and Infinity, which JSON does not have. */
	if (!IsValidJsonNumber(text, strlen(text)))
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("%s contains a number that JSON cannot hold: %s", what,
						clean_text(text))));
	EvpgErrorContextPush(&callback, describe_number, unconstify(char *, what));
	number = DirectFunctionCall3(numeric_in, CStringGetDatum(text), ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
	EvpgErrorContextPop(&callback);
	return DatumGetNumeric(number);
}

static Numeric
number_from_json(const evpg_json *json, const char *what)
{
	char		buffer[Max(DOUBLE_SHORTEST_DECIMAL_LEN, 32)];

	if (json_object_get_type(json) == json_type_int)
	{
		int64		value = json_object_get_int64(json);

		/* The one type that json-c has beyond int64. */
		if (value == PG_INT64_MAX && json_object_get_uint64(json) > (uint64) PG_INT64_MAX)
		{
			snprintf(buffer, sizeof(buffer), UINT64_FORMAT, (uint64) json_object_get_uint64(json));
			return text_to_numeric(buffer, what);
		}
		return int64_to_numeric(value);
	}

	/*
	 * A double made from text keeps it as its user data; one that a module
	 * computed has none, and gets the shortest text that reads back as it.
	 */
	if (json_object_get_userdata((evpg_json *) json) != NULL)
		return text_to_numeric(json_object_get_string((evpg_json *) json), what);
	double_to_shortest_decimal_buf(json_object_get_double(json), buffer);
	return text_to_numeric(buffer, what);
}

/* A walk over a value that a module may have built. */
typedef struct Walk
{
	JsonbParseState *state;
	const char *what;			/* names the value in errors */
	Size		size;			/* of what has been seen */
} Walk;

/* The largest jsonb has as many bytes; what json-c and pushJsonbValue hold for it is more. */
#define MAX_SEEN	((Size) 256 * 1024 * 1024)

/* Counts what has been seen; parts that are shared count each time, so a walk ends. */
static void
count_seen(Walk *walk, Size size)
{
	walk->size += size;
	if (walk->size > MAX_SEEN)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_LIMIT),
				 errmsg("%s is too large", walk->what),
				 errdetail("In memory it takes more than %zu bytes.", MAX_SEEN)));
}

/* Checks the depth before the walk goes into a container that is depth levels down. */
static void
enter_container(Walk *walk, int depth)
{
	if (depth >= EvpgMaxJsonDepth)
		EvpgRaiseTooDeep(walk->what);
	check_stack_depth();
	CHECK_FOR_INTERRUPTS();
}

static JsonbValue *push_json(Walk *walk, JsonbIteratorToken token, const evpg_json *json, int depth);

static void
push_members(Walk *walk, const evpg_json *json, int depth)
{
	json_object_object_foreach(json, name, member)
	{
		JsonbValue	key;

		key.type = jbvString;
		key.val.string.val = name;
		key.val.string.len = strlen(name);
		check_json_text(name, key.val.string.len, walk->what);
		count_seen(walk, sizeof(JsonbValue) + key.val.string.len);
		(void) pushJsonbValue(&walk->state, WJB_KEY, &key);
		(void) push_json(walk, WJB_VALUE, member, depth);
	}
}

static JsonbValue *
push_json(Walk *walk, JsonbIteratorToken token, const evpg_json *json, int depth)
{
	JsonbValue	value;

	count_seen(walk, sizeof(JsonbValue));
	switch (json_object_get_type(json))
	{
		case json_type_null:
			value.type = jbvNull;
			break;
		case json_type_boolean:
			value.type = jbvBool;
			value.val.boolean = json_object_get_boolean(json);
			break;
		case json_type_int:
		case json_type_double:
			value.type = jbvNumeric;
			value.val.numeric = number_from_json(json, walk->what);
			count_seen(walk, VARSIZE_ANY(value.val.numeric));
			break;
		case json_type_string:
			value.type = jbvString;
			value.val.string.val = (char *) json_object_get_string((evpg_json *) json);
			value.val.string.len = json_object_get_string_len(json);
			check_json_text(value.val.string.val, value.val.string.len, walk->what);
			count_seen(walk, value.val.string.len);
			break;
		case json_type_array:
			enter_container(walk, depth);
			(void) pushJsonbValue(&walk->state, WJB_BEGIN_ARRAY, NULL);
			for (size_t i = 0; i < json_object_array_length(json); i++)
				(void) push_json(walk, WJB_ELEM, json_object_array_get_idx(json, i), depth + 1);
			return pushJsonbValue(&walk->state, WJB_END_ARRAY, NULL);
		case json_type_object:
			enter_container(walk, depth);
			(void) pushJsonbValue(&walk->state, WJB_BEGIN_OBJECT, NULL);
			push_members(walk, json, depth + 1);
			return pushJsonbValue(&walk->state, WJB_END_OBJECT, NULL);
	}
	/* A scalar at the top is an array of one, in jsonb's way. */
	if (depth == 0)
	{
		JsonbValue	array;

		array.type = jbvArray;
		array.val.array.rawScalar = true;
		array.val.array.nElems = 1;
		(void) pushJsonbValue(&walk->state, WJB_BEGIN_ARRAY, &array);
		(void) pushJsonbValue(&walk->state, WJB_ELEM, &value);
		return pushJsonbValue(&walk->state, WJB_END_ARRAY, NULL);
	}
	return pushJsonbValue(&walk->state, token, &value);
}

/*
 * EvpgJsonToJsonb
 *		Makes a jsonb value equal to json (NULL: JSON null), in
 *		CurrentMemoryContext.  Raises an error beyond the limits of depth and
 *		size; what names the value there.
 */
Jsonb *
EvpgJsonToJsonb(const evpg_json *json, const char *what)
{
	Walk		walk = {.what = what};

	return JsonbValueToJsonb(push_json(&walk, WJB_DONE, json, 0));
}

static void measure_json(Walk *walk, const evpg_json *json, int depth);

static void
measure_members(Walk *walk, const evpg_json *json, int depth)
{
	json_object_object_foreach(json, name, member)
	{
		count_seen(walk, 16 + strlen(name));
		measure_json(walk, member, depth);
	}
}

static void
measure_json(Walk *walk, const evpg_json *json, int depth)
{
	switch (json_object_get_type(json))
	{
		case json_type_null:
			break;
		case json_type_string:
			count_seen(walk, 64 + json_object_get_string_len(json));
			break;
		case json_type_array:
			enter_container(walk, depth);
			count_seen(walk, 64 + 8 * json_object_array_length(json));
			for (size_t i = 0; i < json_object_array_length(json); i++)
				measure_json(walk, json_object_array_get_idx(json, i), depth + 1);
			break;
		case json_type_object:
			enter_container(walk, depth);
			/* json-c starts with a table of 16 entries and keeps it 2/3 full */
			count_seen(walk, 128 + 40 * Max(16, 2 * (Size) json_object_object_length(json)));
			measure_members(walk, json, depth + 1);
			break;
		default:
			count_seen(walk, 64);
			break;
	}
}

/*
 * EvpgJsonSize
 *		Returns roughly what json-c holds for a value, in bytes.  Raises an
 *		error if it is deeper than the limit; what names it there.
 */
Size
EvpgJsonSize(const evpg_json *json, const char *what)
{
	Walk		walk = {.what = what};

	measure_json(&walk, json, 0);
	return walk.size;
}
