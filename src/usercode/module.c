/*-------------------------------------------------------------------------
 *
 * module.c
 *		Loads definitions from shared objects and checks them (src/evpg.h).
 *
 * PostgreSQL loads the object and checks its PG_MODULE_MAGIC; evpg then calls
 * the accessor "evpg_definition_<symbol>", a name that only EVPG_DEFINE makes,
 * so no other function is ever called by mistake.  The definition is copied
 * into a struct of this server's size: what an older module does not know is
 * zero.  Objects are never unloaded, so pointers into them stay valid.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "base/arguments.h"
#include "base/errors.h"
#include "base/subtransaction.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "usercode/module.h"
#include "utils/acl.h"
#include "utils/builtins.h"

typedef const evpg_header *(*definition_fn) (void);

/* Size of a definition in ABI 1.0; smaller ones are broken. */
#define MIN_AGGREGATE_SIZE	(offsetof(evpg_aggregate_definition, invariant) + sizeof(evpg_invariant_fn))

#define MIN_PROJECTION_SIZE (offsetof(evpg_projection_definition, key) + sizeof(evpg_key_fn))

#define MIN_SAGA_SIZE	(offsetof(evpg_saga_definition, rejected) + sizeof(evpg_rejected_fn))

/* Returns the macro that makes a definition of a kind. */
static const char *
get_kind_macro(uint32 kind)
{
	switch (kind)
	{
		case EVPG_KIND_AGGREGATE:
			return "EVPG_AGGREGATE";
		case EVPG_KIND_PROJECTION:
			return "EVPG_PROJECTION";
		default:
			return "EVPG_SAGA";
	}
}

/* Returns a kind with its article, for messages. */
static const char *
get_kind_name(uint32 kind)
{
	switch (kind)
	{
		case EVPG_KIND_AGGREGATE:
			return "an aggregate";
		case EVPG_KIND_PROJECTION:
			return "a projection";
		case EVPG_KIND_SAGA:
			return "a saga";
		default:
			return "of an unknown kind";
	}
}

/*
 * EvpgModulePath
 *		Returns the file that a library name means: a plain name or $libdir/name
 *		lies in $libdir; anything else must be an absolute path, or 22023 is
 *		raised.  The result is in CurrentMemoryContext.
 */
char *
EvpgModulePath(const char *library)
{
	if (strncmp(library, "$libdir/", 8) == 0 && strchr(library + 8, '/') == NULL)
		return pstrdup(library);
	if (strchr(library, '/') == NULL && strcmp(library, "$libdir") != 0)
		return psprintf("$libdir/%s", library);
	if (library[0] == '/' && strstr(library, "/../") == NULL)
		return pstrdup(library);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("library \"%s\" is neither a name in $libdir nor an absolute path", library)));
}

/*
 * EvpgModuleCheckRegistrant
 *		Raises 42501 unless the library of a registration may be loaded: it lies
 *		in $libdir, where only an administrator of the server can put one, or
 *		the role that registered it is still a superuser.
 */
void
EvpgModuleCheckRegistrant(const char *library, const char *registered_by)
{
	Oid			role;

	if (strncmp(EvpgModulePath(library), "$libdir/", 8) == 0)
		return;
	role = get_role_oid(registered_by, true);
	if (!OidIsValid(role) || !superuser_arg(role))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("library \"%s\" may not be loaded", library),
				 errdetail("It lies outside of $libdir, and role \"%s\", which registered it, is not a superuser.",
						   registered_by),
				 errhint("Let a superuser register it again, or install it into $libdir.")));
}

/* Loads a library, checks the header of a definition in it, and copies it; what an older one does not have is zero. */
static void
load_definition(const char *library, const char *symbol, uint32 kind, Size min_size, void *definition, Size size)
{
	char	   *name = psprintf("evpg_definition_%s", symbol);
	definition_fn accessor;
	const evpg_header *header;

	accessor = (definition_fn) load_external_function(library, name, false, NULL);
	if (accessor == NULL)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("library \"%s\" defines no symbol \"%s\"", library, symbol),
				 errdetail("It has no function \"%s\".", name),
				 errhint("Define it with %s(%s, ...).", get_kind_macro(kind), symbol)));
	header = accessor();
	if (header == NULL || header->magic != EVPG_MAGIC)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("symbol \"%s\" of library \"%s\" is not an evpg definition", symbol, library),
				 errdetail("Its magic number is missing or wrong.")));
	if (header->abi_major != EVPG_ABI_MAJOR || header->abi_minor > EVPG_ABI_MINOR)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("symbol \"%s\" of library \"%s\" has another module ABI", symbol, library),
				 errdetail("It was built for ABI %u.%u; this server has %u.%u.",
						   header->abi_major, header->abi_minor, EVPG_ABI_MAJOR, EVPG_ABI_MINOR),
				 errhint("Build the library again with this server's evpg.h.")));
	if (header->kind != kind)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("symbol \"%s\" of library \"%s\" is not %s", symbol, library, get_kind_name(kind)),
				 errdetail("It is %s.", get_kind_name(header->kind))));
	if (header->size < min_size)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("symbol \"%s\" of library \"%s\" is too small", symbol, library),
				 errdetail("It has %u bytes; ABI %u.%u has %zu.", header->size, header->abi_major,
						   header->abi_minor, min_size)));
	memset(definition, 0, size);
	memcpy(definition, header, Min(header->size, size));
}

static void
raise_missing_callback(const char *library, const char *symbol, const char *what)
{
	ereport(ERROR,
			(errcode(EVPG_ERRCODE_MODULE),
			 errmsg("symbol \"%s\" of library \"%s\" has no %s", symbol, library, what)));
}

/* Checks a type or name in a table of a definition, which gets into registrations and messages. */
static void
check_entry_type(const char *library, const char *symbol, const char *type)
{
	Size		length = strlen(type);

	if (length == 0 || length > EVPG_MAX_NAME || !pg_verify_mbstr(PG_UTF8, type, length, true))
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("symbol \"%s\" of library \"%s\" has a type that cannot be one", symbol, library),
				 errdetail("A type is text in UTF-8 of 1 to %d bytes.", EVPG_MAX_NAME)));
}

/* Checks a list of types that a definition may leave out: NULL is all, so an empty list is a mistake. */
static void
check_aggregate_types(const char *library, const char *symbol, const char *const *types)
{
	if (types != NULL && *types == NULL)
		raise_missing_callback(library, symbol, "type in its aggregate_types");
	for (; types != NULL && *types != NULL; types++)
		check_entry_type(library, symbol, *types);
}

/* Checks each entry of a table, which may be NULL; what is its kind. */
#define CHECK_ENTRIES(entry_type, table, what) \
	for (const entry_type *entry = (table); entry != NULL && entry->type != NULL; entry++) \
	{ \
		check_entry_type(library, symbol, entry->type); \
		if (entry->call == NULL) \
			raise_missing_callback(library, symbol, psprintf("callback for " what " \"%s\"", entry->type)); \
	}

/*
 * EvpgModuleLoadAggregate
 *		Loads the definition of an aggregate into *definition from a library
 *		that EvpgModulePath returned.  Raises an error if it cannot be loaded or
 *		is incomplete.
 */
void
EvpgModuleLoadAggregate(const char *library, const char *symbol, evpg_aggregate_definition *definition)
{
	load_definition(library, symbol, EVPG_KIND_AGGREGATE, MIN_AGGREGATE_SIZE, definition, sizeof(evpg_aggregate_definition));
	if (definition->commands == NULL)
		raise_missing_callback(library, symbol, "commands");
	if (definition->events == NULL)
		raise_missing_callback(library, symbol, "events");
	CHECK_ENTRIES(evpg_command_entry, definition->commands, "command");
	CHECK_ENTRIES(evpg_event_entry, definition->events, "event");
}

/* Loads the definition of a projection, as EvpgModuleLoadAggregate does. */
void
EvpgModuleLoadProjection(const char *library, const char *symbol, evpg_projection_definition *definition)
{
	load_definition(library, symbol, EVPG_KIND_PROJECTION, MIN_PROJECTION_SIZE, definition,
					sizeof(evpg_projection_definition));
	if (definition->events == NULL || definition->events->type == NULL)
		raise_missing_callback(library, symbol, "events");
	CHECK_ENTRIES(evpg_project_entry, definition->events, "event");
	check_aggregate_types(library, symbol, definition->aggregate_types);
}

/* Loads the definition of a saga, as EvpgModuleLoadAggregate does. */
void
EvpgModuleLoadSaga(const char *library, const char *symbol, evpg_saga_definition *definition)
{
	load_definition(library, symbol, EVPG_KIND_SAGA, MIN_SAGA_SIZE, definition, sizeof(evpg_saga_definition));
	if (definition->events == NULL || definition->events->type == NULL)
		raise_missing_callback(library, symbol, "events");
	CHECK_ENTRIES(evpg_react_entry, definition->events, "event");
	CHECK_ENTRIES(evpg_timer_entry, definition->timers, "timer");
	check_aggregate_types(library, symbol, definition->aggregate_types);
}

/* The text of an initial state, and its value. */
typedef struct InitialStateParse
{
	const char *text;
	Jsonb	   *state;
} InitialStateParse;

static void
parse_initial_state(void *arg)
{
	InitialStateParse *parse = arg;

	if (!pg_verify_mbstr(PG_UTF8, parse->text, strlen(parse->text), true))
		ereport(ERROR,
				(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
				 errmsg("the text is not valid UTF-8")));
	parse->state = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(parse->text)));
	EvpgJsonbCheckLimits(parse->state, "initial state");
}

/*
 * EvpgModuleInitialState
 *		Returns the initial state of a definition as jsonb, in
 *		CurrentMemoryContext; raises VE009 unless it is a JSON object.  text may
 *		be NULL for {}.
 */
Jsonb *
EvpgModuleInitialState(const char *library, const char *symbol, const char *text)
{
	InitialStateParse parse = {.text = text != NULL ? text : "{}"};
	ErrorData  *error = EvpgSubtransactionRun(parse_initial_state, &parse);

	if (error != NULL && EvpgErrorIsCancel(error))
		EvpgRethrowError(error);
	if (error != NULL || !JB_ROOT_IS_OBJECT(parse.state))
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_MODULE),
				 errmsg("initial state of symbol \"%s\" of library \"%s\" is not a JSON object", symbol, library),
				 error != NULL ? errdetail_internal("%s", error->message) : 0));
	return parse.state;
}
