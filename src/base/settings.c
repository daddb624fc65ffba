/*-------------------------------------------------------------------------
 *
 * settings.c
 *		Defines the evpg.* settings, in alphabetical order; the settings of
 *		PostgreSQL under which user code runs.
 *
 * evpg.actor, evpg.correlation_id and evpg.metadata are where
 * evpg_set_context() keeps what it is given: as settings that are only ever
 * set local to the transaction they follow ROLLBACK TO by themselves.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "base/compat.h"
#include "base/settings.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"

char	   *EvpgActor;
int			EvpgBroadcastBuffer;
char	   *EvpgCorrelationId;
int			EvpgMaxDatabases;
int			EvpgMaxEventSize;
int			EvpgMaxEvents;
int			EvpgMaxJsonDepth;
int			EvpgMaxKeyLocks;
int			EvpgMaxStreamLocks;
int			EvpgMaxTagLocks;
int			EvpgMaxSagaDepth;
char	   *EvpgMetadata;
int			EvpgNaptime;
char	   *EvpgOrigin;
int			EvpgStablePositionInterval;
int			EvpgStateCacheSize;
int			EvpgStreamDirectorySize;
int			EvpgWorkers;

/* Refuses a name of the origin that does not fit into frames, which have little room and are text. */
static bool
check_origin(char **value, void **extra, GucSource source)
{
	bool		fits = strlen(*value) < NAMEDATALEN;

	for (const char *c = *value; fits && *c != '\0'; c++)
		fits = (unsigned char) *c >= ' ';
	if (!fits)
		GUC_check_errdetail("It has at most %d bytes, and no control characters.", NAMEDATALEN - 1);
	return fits;
}

/* Defines the settings that are fixed when the server starts; only then. */
static void
define_for_postmaster(void)
{
	DefineCustomIntVariable("evpg.broadcast_buffer",
							"Shared memory of each database for frames that are still to be sent.",
							NULL,
							&EvpgBroadcastBuffer, 4096, 64, 512 * 1024, PGC_POSTMASTER,
							GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("evpg.max_databases",
							"Most databases that have workers.",
							NULL,
							&EvpgMaxDatabases, 8, 1, EVPG_MAX_DATABASES, PGC_POSTMASTER,
							0, NULL, NULL, NULL);
	DefineCustomIntVariable("evpg.stream_directory_size",
							"Shared memory for versions and positions of the newest events of streams.",
							"A command on a stream that is not there searches the index.",
							&EvpgStreamDirectorySize, 8192, 0, 1024 * 1024, PGC_POSTMASTER,
							GUC_UNIT_KB, NULL, NULL, NULL);
}

/* Defines how many advisory locks a transaction takes. */
static void
define_lock_settings(void)
{
	DefineCustomIntVariable("evpg.max_key_locks",
							"Most projection keys that one transaction locks by advisory locks.",
							"Frames of further keys come without data.",
							&EvpgMaxKeyLocks, 64, 0, 100000, PGC_SUSET,
							0, NULL, NULL, NULL);
	DefineCustomIntVariable("evpg.max_stream_locks",
							"Most streams that one transaction keeps locked by advisory locks.",
							"Further streams are guarded by what the transaction has appended to them.",
							&EvpgMaxStreamLocks, 64, 0, 100000, PGC_SUSET,
							0, NULL, NULL, NULL);
	DefineCustomIntVariable("evpg.max_tag_locks",
							"Most tags that one transaction locks by advisory locks.",
							"Beyond, one lock stands for all tags.",
							&EvpgMaxTagLocks, 64, 0, 100000, PGC_SUSET,
							0, NULL, NULL, NULL);
}

/*
 * Defines all settings but evpg.broadcast, which frame_ring.c checks, and evpg.early_release (early_release.c); called
 * once, from _PG_init.
 */
void
EvpgSettingsInit(void)
{
	DefineCustomStringVariable("evpg.actor",
							   "Actor of the commands of this transaction.",
							   "Set by evpg_set_context().",
							   &EvpgActor, "", PGC_USERSET,
							   GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
							   NULL, NULL, NULL);
	DefineCustomStringVariable("evpg.correlation_id",
							   "Correlation id of the commands of this transaction.",
							   "Set by evpg_set_context().",
							   &EvpgCorrelationId, "", PGC_USERSET,
							   GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
							   NULL, NULL, NULL);
	DefineCustomIntVariable("evpg.max_event_size",
							"Largest data or metadata of a command or event.",
							NULL,
							&EvpgMaxEventSize, 16 * 1024, 1, 256 * 1024, PGC_SUSET,
							GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("evpg.max_events",
							"Most events that one command may append.",
							NULL,
							&EvpgMaxEvents, 10000, 1, 10000000, PGC_SUSET,
							0, NULL, NULL, NULL);
	DefineCustomIntVariable("evpg.max_json_depth",
							"Deepest nesting of data, metadata and states.",
							NULL,
							&EvpgMaxJsonDepth, 100, 1, 1000, PGC_SUSET,
							0, NULL, NULL, NULL);
	define_lock_settings();
	DefineCustomIntVariable("evpg.max_saga_depth",
							"Longest chain of sagas that react to what sagas did.",
							"A command that would be sent beyond it is a dead letter.",
							&EvpgMaxSagaDepth, 100, 1, 1000000, PGC_SUSET,
							0, NULL, NULL, NULL);
	DefineCustomStringVariable("evpg.metadata",
							   "Metadata of the commands of this transaction.",
							   "Set by evpg_set_context().",
							   &EvpgMetadata, "", PGC_USERSET,
							   GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
							   NULL, NULL, NULL);
	DefineCustomIntVariable("evpg.naptime",
							"Longest time that a worker sleeps.",
							"Commits of events wake it before.",
							&EvpgNaptime, 1000, 1, 3600 * 1000, PGC_SIGHUP,
							GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomStringVariable("evpg.origin",
							   "What frames say of where a change comes from.",
							   "A client that hears its own id need not do anything.",
							   &EvpgOrigin, "", PGC_USERSET,
							   0, check_origin, NULL, NULL);
	DefineCustomIntVariable("evpg.stable_position_interval",
							"Shortest time between two writes of the stable position into WAL by workers.",
							"Standbys read up to it.  -1 writes none.",
							&EvpgStablePositionInterval, 100, -1, 3600 * 1000, PGC_SIGHUP,
							GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("evpg.state_cache_size",
							"Memory that each backend may use to keep states of aggregates.",
							"0 keeps none: every command reads the events since the last snapshot.",
							&EvpgStateCacheSize, 16 * 1024, 0, MAX_KILOBYTES, PGC_USERSET,
							GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("evpg.workers",
							"Workers of each database.",
							"They need the library to be preloaded.",
							&EvpgWorkers, 1, 0, EVPG_MAX_WORKERS, PGC_SIGHUP,
							0, NULL, NULL, NULL);
	if (process_shared_preload_libraries_in_progress)
		define_for_postmaster();
}

/* Sets a setting to the end of the (sub)transaction that is current. */
void
EvpgSettingSetLocal(const char *name, const char *value)
{
	set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

/* ------------------------------------------------------------------ pinned settings */

/* A setting of PostgreSQL that user code finds to have this value, whatever the session has set. */
typedef struct Pin
{
	const char *name;
	const char *value;
	const char *same[3];		/* values that mean the same, of a text */
	struct config_generic *option;	/* looked up once */
	int			number;			/* the value, of a number, boolean or enum */
} Pin;

/*
 * All that changes what a value is as text, or what value a text is: a key, a
 * state or a row must be the same whichever session, worker or rebuild computes
 * it.  The values are PostgreSQL's built-in defaults.
 */
static Pin	pins[] =
{
	{
		.name = "TimeZone", .value = "UTC",.same =
		{
			"Etc/UTC"
		}
	},
	{
		.name = "DateStyle", .value = "ISO, MDY"
	},
	{
		.name = "IntervalStyle", .value = "postgres"
	},
	{
		.name = "timezone_abbreviations", .value = "Default"
	},
	{
		.name = "extra_float_digits", .value = "1"
	},
	{
		.name = "bytea_output", .value = "hex"
	},
	{
		.name = "xmlbinary", .value = "base64"
	},
	{
		.name = "xmloption", .value = "content"
	},
	{
		.name = "lc_monetary", .value = "C",.same =
		{
			"POSIX", "C.UTF-8", "C.utf8"
		}
	},
	{
		.name = "lc_numeric", .value = "C",.same =
		{
			"POSIX", "C.UTF-8", "C.utf8"
		}
	},
	{
		.name = "lc_time", .value = "C",.same =
		{
			"POSIX", "C.UTF-8", "C.utf8"
		}
	},
	{
		.name = "quote_all_identifiers", .value = "off"
	},
	{
		.name = "default_text_search_config", .value = "pg_catalog.simple"
	},
	{
		.name = "array_nulls", .value = "on"
	},
	{
		.name = "transform_null_equals", .value = "off"
	},
	{
		.name = "standard_conforming_strings", .value = "on"
	},
	{
		.name = "backslash_quote", .value = "safe_encoding"
	},
};

/* Finds the options, and values as numbers; they stay where they are. */
static void
look_up_pins(void)
{
	int			count;
	struct config_generic **options = get_guc_variables(&count);

	for (size_t i = 0; i < lengthof(pins); i++)
	{
		struct config_generic *option = NULL;

		for (int n = 0; n < count && option == NULL; n++)
			if (pg_strcasecmp(options[n]->name, pins[i].name) == 0)
				option = options[n];
		if (option == NULL)
			elog(ERROR, "there is no setting \"%s\"", pins[i].name);
		if (option->vartype == PGC_BOOL)
			pins[i].number = strcmp(pins[i].value, "on") == 0;
		else if (option->vartype == PGC_INT)
			pins[i].number = atoi(pins[i].value);
		else if (option->vartype == PGC_ENUM)
			(void) config_enum_lookup_by_name((struct config_enum *) option, pins[i].value, &pins[i].number);
		pins[i].option = option;
	}
}

/* strcmp for values most of which differ in their first character. */
static inline bool
is_same_text(const char *a, const char *b)
{
	return a[0] == b[0] && strcmp(a, b) == 0;
}

static bool
is_pinned(const Pin *pin)
{
	const char *value;

	switch (pin->option->vartype)
	{
		case PGC_BOOL:
			return *((struct config_bool *) pin->option)->variable == (pin->number != 0);
		case PGC_INT:
			return *((struct config_int *) pin->option)->variable == pin->number;
		case PGC_ENUM:
			return *((struct config_enum *) pin->option)->variable == pin->number;
		default:
			value = *((struct config_string *) pin->option)->variable;
			if (value == NULL)
				return false;
			if (is_same_text(value, pin->value))
				return true;
			for (size_t i = 0; i < lengthof(pin->same) && pin->same[i] != NULL; i++)
				if (is_same_text(value, pin->same[i]))
					return true;
			return false;
	}
}

/*
 * EvpgSettingsPin
 *		Sets what must not depend on the session, to the end of the EvpgEnter
 *		that the caller is inside of: so once in a call, however many functions
 *		it calls, and not at all in a session that has these values anyway.
 */
void
EvpgSettingsPin(void)
{
	if (unlikely(pins[lengthof(pins) - 1].option == NULL))
		look_up_pins();
	for (size_t i = 0; i < lengthof(pins); i++)
		if (unlikely(!is_pinned(&pins[i])))
			(void) set_config_option(pins[i].name, pins[i].value, PGC_USERSET, PGC_S_SESSION,
									 GUC_ACTION_SAVE, true, 0, false);
}
