/*-------------------------------------------------------------------------
 *
 * translator.c
 *		Translators: functions that make commands of messages from outside, so
 *		that no handler has to know the form of the messages.
 *
 * A translator is loaded when it is first used, and kept for the session until
 * a registration or a function changes (catalog.c counts generations).
 *
 * Memory: each translator has a context of its own below EvpgRegistrationMemory();
 * one that was dropped lives to the end of the transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/error_context.h"
#include "base/errors.h"
#include "base/registration.h"
#include "base/settings.h"
#include "base/statement.h"
#include "base/testing.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "message/translator.h"
#include "miscadmin.h"
#include "usercode/function_call.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(evpg_register_translator);
PG_FUNCTION_INFO_V1(evpg_drop_translator);
PG_FUNCTION_INFO_V1(evpg_translate);

typedef struct Translator
{
	MemoryContext context;
	char	   *name;
	EvpgFunction *function;
} Translator;

static List *translators = NIL; /* of Translator, those that were used */
static uint64 generation = 0;	/* of the list */

/* ------------------------------------------------------------------ registration */

static EvpgStatement upsert_translator = {
	.text =
	"INSERT INTO evpg.translator AS t (name, translator, search_path, registered_by, registered_at)"
	" VALUES ($1, $2, $3, $4, evpg.clock_timestamp())"
	" ON CONFLICT (name) DO UPDATE"
	" SET translator = excluded.translator, search_path = excluded.search_path,"
	"     registered_by = excluded.registered_by, registered_at = excluded.registered_at"
	" WHERE (t.translator, t.search_path, t.registered_by)"
	"       IS DISTINCT FROM (excluded.translator, excluded.search_path, excluded.registered_by)",
	.types = {TEXTOID, TEXTOID, TEXTOID, TEXTOID}
};

/* Registers a translator, which runs for the role that registers it; true if something has changed. */
Datum
evpg_register_translator(PG_FUNCTION_ARGS)
{
	char	   *name = EvpgArgName(fcinfo, 0, "translator name");
	char	   *search_path = EvpgFunctionSearchPath();
	Datum		values[4];
	uint64		changed;
	EvpgScope	scope;

	EvpgCheckNewName(name, "translator name");
	EvpgArgRefuseNull(fcinfo, 1, "translator");
	values[0] = CStringGetTextDatum(name);
	values[1] = CStringGetTextDatum(EvpgFunctionCheck(PG_GETARG_OID(1), EVPG_ROLE_TRANSLATOR, GetUserId()));
	values[2] = CStringGetTextDatum(search_path);
	values[3] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));

	EvpgEnter(&scope, "evpg_register_translator()");
	changed = EvpgStatementRun(&upsert_translator, values, NULL);
	EvpgStatementDone();
	if (changed > 0)
		EvpgRegistrationInvalidate(EvpgCatalogGet()->translator);
	EvpgLeave(&scope);
	PG_RETURN_BOOL(changed > 0);
}

static EvpgStatement delete_translator = {
	.text = "DELETE FROM evpg.translator WHERE name = $1",
	.types = {TEXTOID}
};

/* Drops a translator; returns false, or raises an error, if it is not registered, as missing_ok asks. */
Datum
evpg_drop_translator(PG_FUNCTION_ARGS)
{
	(void) EvpgArgText(fcinfo, 0, "translator name");
	PG_RETURN_BOOL(EvpgRegistrationDrop(fcinfo, &delete_translator, EvpgCatalogGet()->translator,
										EVPG_ERRCODE_UNKNOWN_TRANSLATOR, "translator", "evpg_drop_translator()"));
}

/* ------------------------------------------------------------------ translators in use */

/* Forgets all translators if a registration or a function may have changed. */
static void
refresh_translators(void)
{
	ListCell   *cell;

	if (likely(generation == EvpgCatalogRegistryGeneration()))
		return;
	generation = EvpgCatalogRegistryGeneration();
	foreach(cell, translators)
		EvpgRegistrationFreeLater(((Translator *) lfirst(cell))->context);
	list_free(translators);
	translators = NIL;
}

static EvpgStatement select_translator = {
	.text = "SELECT translator, search_path, registered_by FROM evpg.translator WHERE name = $1",
	.types = {TEXTOID}
};

enum
{
	TRANSLATOR_FUNCTION = 1, TRANSLATOR_SEARCH_PATH, TRANSLATOR_REGISTERED_BY
};

/* Reads and resolves a translator, into a context of its own; an error if it is not registered. */
static Translator *
load_translator(const char *name)
{
	Datum		key = CStringGetTextDatum(name);
	MemoryContext context;
	MemoryContext old;
	Translator *translator;

	/* An error below leaves the context to the caller's. */
	context = AllocSetContextCreate(CurrentMemoryContext, "EvpgTranslator", ALLOCSET_SMALL_SIZES);
	if (EvpgStatementReadLatest(&select_translator, &key, NULL) == 0)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_UNKNOWN_TRANSLATOR),
				 errmsg("translator \"%s\" is not registered", name),
				 errhint("Register it with evpg_register_translator().")));
	old = MemoryContextSwitchTo(context);
	translator = palloc(sizeof(Translator));
	translator->context = context;
	translator->name = pstrdup(name);
	translator->function = EvpgFunctionResolve(EvpgResultText(0, TRANSLATOR_FUNCTION), EVPG_ROLE_TRANSLATOR,
											   EvpgResultText(0, TRANSLATOR_REGISTERED_BY),
											   EvpgResultText(0, TRANSLATOR_SEARCH_PATH));
	MemoryContextSwitchTo(old);
	EvpgStatementDone();
	MemoryContextSetParent(context, EvpgRegistrationMemory());
	return translator;
}

/* Returns a translator, which lives to the end of the transaction at least; an error if it is not registered. */
static Translator *
get_translator(const char *name)
{
	ListCell   *cell;
	uint64		before;
	Translator *translator;
	MemoryContext old;

	refresh_translators();
	foreach(cell, translators)
	{
		translator = lfirst(cell);
		if (strcmp(translator->name, name) == 0)
			return translator;
	}

	before = generation;
	translator = load_translator(name);
	EVPG_WAIT_POINT("translator_loaded");
	refresh_translators();
	if (before != generation)
	{
		/* It was invalidated while it was loaded: use it this once. */
		EvpgRegistrationFreeLater(translator->context);
		return translator;
	}
	old = MemoryContextSwitchTo(EvpgRegistrationMemory());
	translators = lappend(translators, translator);
	MemoryContextSwitchTo(old);
	return translator;
}

/* ------------------------------------------------------------------ translating */

static void
describe_translator(void *name)
{
	errcontext("translator \"%s\"", (char *) name);
}

/*
 * EvpgTranslate
 *		Calls a translator: sets *commands to an array of checked commands in
 *		CurrentMemoryContext, and returns their number.  An error if the translator is
 *		not registered, or makes too many.  The caller is inside EvpgEnter.
 */
int
EvpgTranslate(const char *name, Jsonb *payload, EvpgCommand **commands)
{
	Translator *translator = get_translator(name);
	Datum		args[1] = {JsonbPGetDatum(payload)};
	ErrorContextCallback callback;
	Datum	   *rows;
	bool	   *nulls;
	int			count;
	int			made = 0;

	EvpgErrorContextPush(&callback, describe_translator, unconstify(char *, name));
	count = EvpgFunctionCall(translator->function, args, false, EvpgMaxEvents + 1, &rows, &nulls);
	if (count > EvpgMaxEvents)
		ereport(ERROR,
				(errcode(EVPG_ERRCODE_LIMIT),
				 errmsg("translator \"%s\" makes too many commands", name),
				 errdetail("The limit is %d.", EvpgMaxEvents),
				 errhint("Split the message, or let a superuser raise evpg.max_events.")));
	*commands = palloc(sizeof(EvpgCommand) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		EvpgCommand *command = &(*commands)[made];

		if (nulls[i] || !EvpgCommandFromTuple(DatumGetHeapTupleHeader(rows[i]), command))
			continue;
		EvpgCommandCheck(command);
		EvpgCheckCallersMetadata(command->metadata);
		EvpgCheckCallersCommandId(command->command_id);
		made++;
	}
	EvpgErrorContextPop(&callback);
	return made;
}

/* Returns the commands that a translator makes of a payload, without executing them. */
Datum
evpg_translate(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *name = EvpgArgName(fcinfo, 0, "translator name");
	Jsonb	   *payload = EvpgArgJsonb(fcinfo, 1, "payload");
	EvpgCommand *commands;
	int			count;
	EvpgScope	scope;

	EvpgArgRefuseNull(fcinfo, 1, "payload");
	InitMaterializedSRF(fcinfo, 0);
	EvpgEnter(&scope, NULL);
	count = EvpgTranslate(name, payload, &commands);
	EvpgLeave(&scope);
	for (int i = 0; i < count; i++)
	{
		HeapTupleData tuple = {0};
		HeapTupleHeader row;

		commands[i].version = -1;
		row = DatumGetHeapTupleHeader(EvpgCommandDatum(&commands[i]));
		tuple.t_len = HeapTupleHeaderGetDatumLength(row);
		tuple.t_data = row;
		tuplestore_puttuple(result->setResult, &tuple);
	}
	PG_RETURN_NULL();
}
