/*-------------------------------------------------------------------------
 *
 * arguments.c
 *		Checks of names and ids that come from outside, and getters of
 *		arguments that apply them.
 *
 * Names (of types, interceptors, tags) and ids are not empty, have no control
 * characters, and fit into an index entry.  What a getter returns is in
 * CurrentMemoryContext; "what" names the argument in errors.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "base/arguments.h"
#include "base/errors.h"
#include "base/jsonb.h"
#include "base/settings.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#define RESERVED_PREFIX "evpg."

/* The member of metadata that is evpg's. */
#define OWN_KEY "evpg"

static void
check_length(const char *text, const char *what, Size limit)
{
	Size		length = strlen(text);

	if (length == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", what)));
	if (length > limit)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_LIMIT),
				 errmsg("%s is too long", what),
				 errdetail("It has %zu bytes; the limit is %zu.", length, limit)));
	for (const char *c = text; *c != '\0'; c++)
		if ((unsigned char) *c < 0x20 || *c == 0x7F)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s contains a control character", what),
					 errdetail("Byte %d of it is 0x%02x.", (int) (c - text) + 1, (unsigned char) *c)));
}

/* Raises an error unless a name (of a type, projection, ...) has a good length and no control characters. */
void
EvpgCheckName(const char *name, const char *what)
{
	check_length(name, what, EVPG_MAX_NAME);
}

/* Raises an error unless a name may be introduced: those that start with "evpg." are evpg's. */
void
EvpgCheckNewName(const char *name, const char *what)
{
	EvpgCheckName(name, what);
	if (pg_strncasecmp(name, RESERVED_PREFIX, strlen(RESERVED_PREFIX)) == 0)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_RESERVED_NAME),
				 errmsg("%s \"%s\" is reserved", what, name),
				 errdetail("Names that start with \"%s\" belong to evpg.", RESERVED_PREFIX)));
}

/* Raises an error unless an id is good: as for a name, but it may be longer. */
void
EvpgCheckId(const char *id, const char *what)
{
	check_length(id, what, EVPG_MAX_ID);
}

/* Raises an error unless these are tags of an event: one dimension, no NULLs, not too many. */
void
EvpgCheckTags(ArrayType *tags)
{
	Datum	   *values;
	bool	   *nulls;
	int			count;

	if (ARR_NDIM(tags) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("tags must be a one-dimensional array")));
	deconstruct_array(tags, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, &count);
	if (count > EVPG_MAX_TAGS)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_LIMIT),
				 errmsg("an event has too many tags"),
				 errdetail("It has %d; the limit is %d.", count, EVPG_MAX_TAGS)));
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("tag %d must not be null", i + 1)));
		EvpgCheckName(TextDatumGetCString(values[i]), "tag");
	}
}

/* Raises an error unless metadata is an object without keys that start with "evpg.", which are evpg's. */
void
EvpgCheckMetadata(const Jsonb *metadata)
{
	JsonbIterator *iterator;
	JsonbValue	value;
	JsonbIteratorToken token;

	if (!JB_ROOT_IS_OBJECT((Jsonb *) metadata))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("metadata must be a JSON object")));
	iterator = JsonbIteratorInit((JsonbContainer *) &metadata->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
		if (token == WJB_KEY && value.val.string.len >= (int) strlen(RESERVED_PREFIX) &&
			pg_strncasecmp(value.val.string.val, RESERVED_PREFIX, strlen(RESERVED_PREFIX)) == 0)
			ereport(ERROR,
					(errcode(EVPG_ERRCODE_RESERVED_NAME),
					 errmsg("metadata key \"%s\" is reserved",
							pnstrdup(value.val.string.val, value.val.string.len)),
					 errdetail("Keys that start with \"%s\" belong to evpg.", RESERVED_PREFIX)));
}

/* Returns what evpg has written into metadata, which may be NULL; NULL if nothing. */
static JsonbValue *
get_own_metadata(Jsonb *metadata)
{
	return metadata == NULL || !JB_ROOT_IS_OBJECT(metadata) ? NULL :
		getKeyJsonValueFromContainer(&metadata->root, OWN_KEY, strlen(OWN_KEY), NULL);
}

static void
raise_reserved_metadata(void)
{
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_RESERVED_NAME),
			 errmsg("metadata key \"%s\" is reserved", OWN_KEY),
			 errdetail("evpg writes there what it has to know of an event.")));
}

/*
 * EvpgCheckCallersMetadata
 *		Raises an error if metadata that a caller gives, which may be NULL, has the key
 *		under which evpg keeps its own.
 */
void
EvpgCheckCallersMetadata(Jsonb *metadata)
{
	if (get_own_metadata(metadata) != NULL)
		raise_reserved_metadata();
}

/*
 * EvpgCheckDerivedMetadata
 *		Raises an error unless metadata that user code has made of that of its
 *		command is allowed; both may be NULL. What evpg has written there may
 *		be copied, and nothing else may be in its place: user code often passes
 *		on what a client has sent.
 */
void
EvpgCheckDerivedMetadata(Jsonb *metadata, Jsonb *of_command)
{
	JsonbValue *own = get_own_metadata(metadata);
	JsonbValue *original;

	if (own == NULL)
		return;
	original = get_own_metadata(of_command);
	if (original == NULL ||
		compareJsonbContainers(&JsonbValueToJsonb(own)->root, &JsonbValueToJsonb(original)->root) != 0)
		raise_reserved_metadata();
}

/*
 * EvpgInheritDepth
 *		Returns metadata with the depth of a chain of sagas that evpg has written
 *		into outer, in CurrentMemoryContext, unless evpg has written anything into
 *		metadata itself; either may be NULL.
 */
Jsonb *
EvpgInheritDepth(Jsonb *metadata, Jsonb *outer)
{
	JsonbValue *own = get_own_metadata(outer);
	JsonbValue *depth;
	JsonbParseState *state = NULL;

	if (own == NULL || get_own_metadata(metadata) != NULL ||
		own->type != jbvBinary || !JsonContainerIsObject(own->val.binary.data))
		return metadata;
	depth = getKeyJsonValueFromContainer(own->val.binary.data, "depth", strlen("depth"), NULL);
	if (depth == NULL)
		return metadata;
	EvpgJsonbBegin(&state);
	EvpgJsonbAddKey(&state, OWN_KEY);
	EvpgJsonbBegin(&state);
	EvpgJsonbAddKey(&state, "depth");
	pushJsonbValue(&state, WJB_VALUE, depth);
	(void) EvpgJsonbEnd(&state);
	return EvpgJsonbConcat(metadata, EvpgJsonbFinish(&state));
}

/*
 * EvpgKeepOwnMetadata
 *		Returns metadata with what evpg has written into the original, in
 *		CurrentMemoryContext; either may be NULL.
 */
Jsonb *
EvpgKeepOwnMetadata(Jsonb *metadata, Jsonb *original)
{
	JsonbValue *own = get_own_metadata(original);
	JsonbParseState *state = NULL;

	if (own == NULL)
		return metadata;
	EvpgJsonbBegin(&state);
	EvpgJsonbAdd(&state, OWN_KEY, own);
	return EvpgJsonbConcat(metadata, EvpgJsonbFinish(&state));
}

/*
 * EvpgCheckCallersCommandId
 *		Raises an error if a command id that a caller gives, which may be NULL, could be
 *		that of a saga or of a scheduled command.
 */
void
EvpgCheckCallersCommandId(const char *command_id)
{
	if (command_id != NULL && (strncmp(command_id, "saga:", 5) == 0 || strncmp(command_id, "timer:", 6) == 0))
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_RESERVED_NAME),
				 errmsg("command id \"%s\" is reserved", command_id),
				 errdetail("Ids that start with \"saga:\" or \"timer:\" belong to evpg.")));
}

/* Raises that JSON is nested more deeply than evpg.max_json_depth. */
void
EvpgRaiseTooDeep(const char *what)
{
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_LIMIT),
			 errmsg("%s is nested too deeply", what),
			 errdetail("The limit is %d levels.", EvpgMaxJsonDepth),
			 errhint("A superuser can raise evpg.max_json_depth.")));
}

/*
 * EvpgJsonbCheckLimits
 *		Raises an error if a value from outside is larger or deeper than the
 *		limits.  The walk is skipped when the size alone proves the depth: a
 *		level takes at least eight bytes.
 */
void
EvpgJsonbCheckLimits(const Jsonb *jsonb, const char *what)
{
	Size		size = VARSIZE_ANY(jsonb);
	JsonbIterator *iterator;
	JsonbValue	value;
	JsonbIteratorToken token;
	int			depth = 0;

	if (size > (Size) EvpgMaxEventSize * 1024)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_LIMIT),
				 errmsg("%s is too large", what),
				 errdetail("It has %zu bytes; the limit is %d kB.", size, EvpgMaxEventSize),
				 errhint("Keep large objects elsewhere and refer to them, or let a superuser raise evpg.max_event_size.")));
	if (size < 8 * (Size) EvpgMaxJsonDepth)
		return;

	iterator = JsonbIteratorInit((JsonbContainer *) &jsonb->root);
	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		if (token == WJB_BEGIN_ARRAY || token == WJB_BEGIN_OBJECT)
		{
			if (++depth > EvpgMaxJsonDepth)
				EvpgRaiseTooDeep(what);
		}
		else if (token == WJB_END_ARRAY || token == WJB_END_OBJECT)
			depth--;
	}
}

/* Raises an error if an argument is NULL. */
void
EvpgArgRefuseNull(FunctionCallInfo fcinfo, int arg, const char *what)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what)));
}

/* Gets a text argument as it is, to look something up; error if it is NULL. */
char *
EvpgArgText(FunctionCallInfo fcinfo, int arg, const char *what)
{
	EvpgArgRefuseNull(fcinfo, arg, what);
	return text_to_cstring(PG_GETARG_TEXT_PP(arg));
}

/* Gets a boolean argument; error if it is NULL. */
bool
EvpgArgBool(FunctionCallInfo fcinfo, int arg, const char *what)
{
	EvpgArgRefuseNull(fcinfo, arg, what);
	return PG_GETARG_BOOL(arg);
}

/* Gets a name; error if it is NULL or no good name. */
char *
EvpgArgName(FunctionCallInfo fcinfo, int arg, const char *what)
{
	char	   *name = EvpgArgText(fcinfo, arg, what);

	EvpgCheckName(name, what);
	return name;
}

/* Gets an id; error if it is NULL or no good id. */
char *
EvpgArgId(FunctionCallInfo fcinfo, int arg, const char *what)
{
	char	   *id = EvpgArgText(fcinfo, arg, what);

	EvpgCheckId(id, what);
	return id;
}

/* Raises an error unless the key of a projection or saga is good; it may be empty. */
void
EvpgCheckKey(const char *key, const char *what)
{
	if (key[0] != '\0')
		EvpgCheckId(key, what);
}

/* Gets the key of a projection, which may be empty; error if it is NULL. */
char *
EvpgArgKey(FunctionCallInfo fcinfo, int arg)
{
	char	   *key = EvpgArgText(fcinfo, arg, "projection key");

	EvpgCheckKey(key, "projection key");
	return key;
}

/* Gets an id; NULL if the argument is NULL. */
char *
EvpgArgOptionalId(FunctionCallInfo fcinfo, int arg, const char *what)
{
	return PG_ARGISNULL(arg) ? NULL : EvpgArgId(fcinfo, arg, what);
}

/* Gets a bigint argument; error if it is NULL. */
int64
EvpgArgBigint(FunctionCallInfo fcinfo, int arg, const char *what)
{
	EvpgArgRefuseNull(fcinfo, arg, what);
	return PG_GETARG_INT64(arg);
}

/* Gets an int argument; error if it is NULL or less than the least. */
int32
EvpgArgInt(FunctionCallInfo fcinfo, int arg, const char *what, int32 least)
{
	EvpgArgRefuseNull(fcinfo, arg, what);
	if (PG_GETARG_INT32(arg) < least)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be at least %d", what, least)));
	return PG_GETARG_INT32(arg);
}

/* Gets a bigint argument; error if it is NULL or less than the least. */
int64
EvpgArgBigintAtLeast(FunctionCallInfo fcinfo, int arg, const char *what, int64 least)
{
	int64		value = EvpgArgBigint(fcinfo, arg, what);

	if (value < least)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be at least " INT64_FORMAT, what, least)));
	return value;
}

/* Gets an int argument that limits how many rows are returned; -1, which stands for all, if it is NULL. */
int64
EvpgArgMaxCount(FunctionCallInfo fcinfo, int arg)
{
	int			count;

	if (PG_ARGISNULL(arg))
		return -1;
	count = PG_GETARG_INT32(arg);
	if (count < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_count must not be negative")));
	return count;
}

/* Gets a jsonb argument; NULL if the argument is NULL.  Error if it is larger or deeper than the limits. */
Jsonb *
EvpgArgJsonb(FunctionCallInfo fcinfo, int arg, const char *what)
{
	Jsonb	   *jsonb;

	if (PG_ARGISNULL(arg))
		return NULL;
	jsonb = PG_GETARG_JSONB_P(arg);
	EvpgJsonbCheckLimits(jsonb, what);
	return jsonb;
}

/*
 * EvpgArgTextArray
 *		Gets a text[] argument without NULLs; NULL if the argument is NULL.
 *		Raises an error if it is empty: it would have to mean nothing, where
 *		NULL means everything, and is what a program passes by mistake.
 */
ArrayType *
EvpgArgTextArray(FunctionCallInfo fcinfo, int arg, const char *what)
{
	ArrayType  *array;

	if (PG_ARGISNULL(arg))
		return NULL;
	array = PG_GETARG_ARRAYTYPE_P(arg);
	if (ARR_NDIM(array) > 1 || array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a one-dimensional array without nulls", what)));
	if (ARR_NDIM(array) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be an empty array", what),
				 errhint("Leave the argument out, or pass NULL.")));
	return array;
}
