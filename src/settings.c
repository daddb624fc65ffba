/*-------------------------------------------------------------------------
 *
 * settings.c
 *		Defines the evpg.* settings, in alphabetical order.
 *
 * evpg.actor, evpg.correlation_id and evpg.metadata are where
 * evpg_set_context() keeps what it is given: as settings that are only ever
 * set local to the transaction they follow ROLLBACK TO by themselves.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "settings.h"
#include "utils/guc.h"

char	   *EvpgActor;
bool		EvpgBroadcastOn;
char	   *EvpgCorrelationId;
int			EvpgMaxEventSize;
int			EvpgMaxEvents;
int			EvpgMaxJsonDepth;
int			EvpgMaxKeyLocks;
char	   *EvpgMetadata;
int			EvpgStateCacheSize;

/* Called once, from _PG_init. */
void
EvpgSettingsInit(void)
{
	DefineCustomStringVariable("evpg.actor",
							   "Actor of the commands of this transaction.",
							   "Set by evpg_set_context().",
							   &EvpgActor, "", PGC_USERSET,
							   GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
							   NULL, NULL, NULL);
	DefineCustomBoolVariable("evpg.broadcast",
							 "Whether projections send frames to listeners.",
							 NULL,
							 &EvpgBroadcastOn, true, PGC_SUSET,
							 0, NULL, NULL, NULL);
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
	DefineCustomIntVariable("evpg.max_key_locks",
							"Most projection keys that one transaction locks by advisory locks.",
							"Frames of further keys come without data.",
							&EvpgMaxKeyLocks, 64, 0, 100000, PGC_SUSET,
							0, NULL, NULL, NULL);
	DefineCustomStringVariable("evpg.metadata",
							   "Metadata of the commands of this transaction.",
							   "Set by evpg_set_context().",
							   &EvpgMetadata, "", PGC_USERSET,
							   GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
							   NULL, NULL, NULL);
	DefineCustomIntVariable("evpg.state_cache_size",
							"Memory that each backend may use to keep states of aggregates.",
							"0 keeps none: every command reads the events since the last snapshot.",
							&EvpgStateCacheSize, 16 * 1024, 0, MAX_KILOBYTES, PGC_USERSET,
							GUC_UNIT_KB, NULL, NULL, NULL);
	MarkGUCPrefixReserved("evpg");
}

/* Sets a setting to the end of the (sub)transaction that is current. */
void
EvpgSettingSetLocal(const char *name, const char *value)
{
	set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}
