/*-------------------------------------------------------------------------
 *
 * catalog.h
 *		What C code knows of evpg's own objects, and running as their owner.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_CATALOG_H
#define EVPG_CATALOG_H

#include "access/tupdesc.h"
#include "storage/lockdefs.h"
#include "utils/relcache.h"

/* What evpg's own statements are analysed and planned under; see EvpgEnter. */
#define EVPG_SEARCH_PATH "pg_catalog, pg_temp"

#define EVPG_CONSUMER_TABLES 6

/* Places of some of them. */
#define EVPG_CONSUMER_TABLE_CONSUMER 0
#define EVPG_CONSUMER_TABLE_DEAD_LETTER 1
#define EVPG_CONSUMER_TABLE_PARKED_EVENT 2
#define EVPG_CONSUMER_TABLE_SAGA_EVENT 3
#define EVPG_CONSUMER_TABLE_SAGA_TOTAL 4
#define EVPG_CONSUMER_TABLE_TIMER 5

typedef struct EvpgCatalog
{
	Oid			owner;			/* of the tables; evpg's statements run as it */
	Oid			aggregate_type; /* relations */
	Oid			interceptor;
	Oid			listener;
	Oid			projection;
	Oid			saga;
	Oid			projection_state;
	Oid			projection_state_key_index; /* unique on (build, key) */
	Oid			translator;
	Oid			upcaster;
	Oid			subscription;
	Oid			subscription_lease;
	Oid			subscription_lease_index;	/* on (subscription, slot) */
	Oid			subscription_partition;
	Oid			subscription_partition_index;	/* on (subscription,
												 * partition) */
	Oid			consumer_tables[EVPG_CONSUMER_TABLES];	/* of consumers, and */
	Oid			saga_instance;
	Oid			saga_instance_key_index;	/* unique on (saga, key) */
	Oid			parked_event_position_index;	/* on (name, position) */
	Oid			parked_event_waiting_index; /* the same, of those not skipped */
	Oid			consumer_name_index;	/* unique on name */
	Oid			saga_event_key_index;	/* unique on (saga, key, position) */
	Oid			saga_event_position_index;	/* on position */
	Oid			saga_total_key_index;	/* unique on (saga, part) */
	Oid			timer_key_index;	/* unique on (saga, key, name) */
	Oid			timer_due_index;	/* on due_at */
	Oid			timer_id_sequence;
	Oid			dead_letter_key_index;	/* on (saga, key) of open ones */
	Oid			command_record;
	Oid			command_record_key_index;	/* unique on (stream_id,
											 * command_id) */
	Oid			snapshot;
	Oid			stream;
	Oid			stream_id_index;	/* unique on stream_id */
	Oid			stream_key_index;	/* unique on (aggregate_type,
									 * aggregate_id) */
	Oid			event_log;
	Oid			event_log_event_id_index;	/* unique on event_id */
	Oid			event_log_position_index;	/* unique on position */
	Oid			event_log_tags_index;	/* on tags (GIN), if enabled */
	Oid			event_log_type_index;	/* on (type, position), if enabled */
	Oid			event_log_stream_index; /* unique on (stream_id, version) */
	bool		log_is_guarded; /* evpg's triggers of the log fire always */
	Oid			event_position; /* sequences */
	Oid			logged_position;
	Oid			fence;
	Oid			clock;
	TupleDesc	event;			/* row types, see shape.h */
	TupleDesc	delivery;
	TupleDesc	new_event;
	TupleDesc	stream_append;
	TupleDesc	command;
	TupleDesc	outcome;
	TupleDesc	projected;
	TupleDesc	reaction;
	TupleDesc	rejection;
	TupleDesc	fired_timer;
	TupleDesc	stream_row;		/* of tables */
	TupleDesc	projection_state_row;
	TupleDesc	saga_instance_row;
	TupleDesc	saga_event_row;
	TupleDesc	saga_total_row;
	TupleDesc	timer_row;
	TupleDesc	subscription_lease_row;
	TupleDesc	subscription_partition_row;
	TupleDesc	command_record_row;
} EvpgCatalog;

/* Where a caller was before EvpgEnter. */
typedef struct EvpgScope
{
	Oid			userid;
	int			sec_context;
	int			guc_level;
} EvpgScope;

extern void EvpgCatalogInit(void);
extern const EvpgCatalog *EvpgCatalogGet(void);
extern bool EvpgCatalogIsKnown(void);
extern Relation EvpgCatalogOpen(const Oid *table, LOCKMODE mode);
extern void EvpgCatalogLockForAppend(bool command_id);
extern void EvpgCatalogLockForConsumer(void);
extern bool EvpgCatalogTryLockForConsumer(void);
extern uint64 EvpgCatalogRegistryGeneration(void);
extern uint64 EvpgCatalogClockGeneration(void);
extern uint64 EvpgCatalogStreamGeneration(void);
extern uint64 EvpgCatalogIdentity(void);
extern uint64 EvpgCatalogCallNumber(void);
extern void EvpgEnter(EvpgScope *scope, const char *writer);
extern void EvpgEnterUnpinned(EvpgScope *scope, const char *writer);
extern void EvpgKeepSearchPath(void);
extern void EvpgEnterAs(EvpgScope *scope, Oid userid, const char *search_path);
extern void EvpgPinSearchPath(void);
extern void EvpgLeave(const EvpgScope *scope);

#endif							/* EVPG_CATALOG_H */
