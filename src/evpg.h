/*-------------------------------------------------------------------------
 *
 * evpg.h
 *		The one public header: aggregates and projections in C.
 *
 * A module is a shared object that describes itself in static const tables.
 * Every callback is a pure function over JSON values; it never calls the
 * server, so the same object file is unit-tested with a plain main().
 *
 *		#include "evpg.h"			(brings in json-c)
 *
 *		EVPG_AGGREGATE(bank_account,
 *			.initial_state = "{\"balance\": 0}",
 *			.commands = EVPG_COMMANDS(EVPG_ON("Deposit", deposit)),
 *			.events = EVPG_EVENTS(EVPG_ON("MoneyDeposited", deposited)));
 *
 * One file of the library also says EVPG_MODULE; (it then needs postgres.h
 * and fmgr.h before this header; no other server header is needed).
 *
 * json-c and utils/builtins.h: json-c has a type json_object, the server's
 * utils/fmgrprotos.h (hence utils/builtins.h) a function of that name.  A file
 * that includes postgres.h gets the server's function under another name from
 * this header, so include evpg.h before any other server header; pure modules
 * need none of that.
 *
 * Ownership, in one sentence: what a callback receives is lent, except that
 * `state` of a fold may be changed in place; what it passes to an evpg_
 * function as `evpg_json *` is given away, even when the call fails.
 *
 * Strings are UTF-8, live until the callback returns, and are never NULL
 * unless the comment says so.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_H
#define EVPG_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#ifdef POSTGRES_H
#ifdef FMGRPROTOS_H
#error "include evpg.h before utils/builtins.h: both declare json_object"
#endif
#define json_object evpg_sql_json_object
#include "utils/builtins.h"
#undef json_object
#endif
#include <json-c/json.h>

#ifdef __cplusplus
#error "evpg.h tables use C99 designated initializers; write the tables in a C file and call into C++ from it"
#endif

typedef struct json_object evpg_json;

#define EVPG_MAGIC		0x45565047	/* "EVPG" */
#define EVPG_ABI_MAJOR	1		/* must equal the server's */
#define EVPG_ABI_MINOR	0		/* must not exceed the server's */

#define EVPG_EXPORT		__attribute__((visibility("default")))
#define EVPG_PRINTF(f, a) __attribute__((format(printf, f, a)))

/* Once per library, in a file that includes postgres.h and fmgr.h first. */
#ifdef PG_MODULE_MAGIC
#define EVPG_MODULE \
	extern EVPG_EXPORT const Pg_magic_struct *PG_MAGIC_FUNCTION_NAME(void); \
	PG_MODULE_MAGIC				/* visible under -fvisibility=hidden too */
#else
#define EVPG_MODULE		extern int evpg_module_outside_server
#endif

/* ------------------------------------------------------------------ values in
 *
 * Lent, read-only.  Members are only ever added at the end.
 */

/*
 * What a running server lends to a callback; NULL in a unit test.  `size` is
 * the size in the server that fills it: test a member with EVPG_HOST_HAS.
 */
typedef struct evpg_host
{
	size_t		size;
	void		(*check_interrupts) (void); /* may not return: hold nothing of
											 * your own */
	void		(*log) (const char *message);	/* to the server log, level
												 * LOG */
} evpg_host;

#define EVPG_HOST_HAS(host, member) \
	((host) != NULL && \
	 (host)->size >= offsetof(evpg_host, member) + sizeof((host)->member) && \
	 (host)->member != NULL)

/*
 * An event, stored or just decided.  A fold must not depend on position: it is
 * 0 while the command that decided the event is still running, and the real
 * one in every later replay.
 */
typedef struct evpg_event
{
	int64_t		position;		/* global order; 0 while still deciding */
	int64_t		version;		/* within the stream, first is 1 */
	const char *aggregate_type;
	const char *aggregate_id;
	const char *type;
	int32_t		schema_version;
	int32_t		ntags;
	const char *const *tags;	/* ntags of them; NULL if none */
	evpg_json  *data;			/* JSON null is a C NULL, as everywhere in
								 * json-c */
	evpg_json  *metadata;		/* NULL if none */
	const char *event_id;		/* canonical uuid text */
	const char *command_id;		/* NULL if none */
	const char *correlation_id;
	const char *causation_id;	/* NULL if none */
	const char *actor;			/* NULL if none */
	int64_t		occurred_at;	/* microseconds since 1970-01-01 UTC */
	int64_t		recorded_at;	/* microseconds since 1970-01-01 UTC */
	const evpg_host *host;		/* NULL in a unit test */
} evpg_event;

typedef struct evpg_command
{
	int64_t		version;		/* of the stream now: 0 = no events */
	const char *aggregate_type;
	const char *aggregate_id;
	const char *type;
	evpg_json  *data;			/* an object; NULL if null */
	evpg_json  *metadata;		/* NULL if none */
	const char *command_id;		/* NULL if none */
	const char *correlation_id; /* NULL if none */
	const char *causation_id;	/* NULL if none */
	const char *actor;			/* NULL if none */
	int64_t		received_at;	/* the only clock a handler may read;
								 * microseconds since 1970-01-01 UTC */
} evpg_command;

/* ------------------------------------------------------------------ values out
 *
 * The server (or a test) starts one with EVPG_RESULT_INIT and frees what it
 * holds with evpg_result_reset().  Callbacks fill it only through the
 * functions below.
 */
typedef struct evpg_result
{
	size_t		size;
	const evpg_host *host;		/* NULL in a unit test */
	evpg_json  *events;			/* array of {type, data, tags?, metadata?,
								 * schema_version?} */
	evpg_json  *detail;			/* of a refusal */
	evpg_json  *delta;			/* projection: what listeners are sent */
	bool		rejected;		/* refused: a domain answer */
	bool		failed;			/* a defect, not a domain answer */
	bool		deleted;		/* projection: remove the row */
	char		code[64];		/* of a refusal, cut to fit */
	char		message[512];	/* of a refusal or defect, cut to fit */
} evpg_result;

#define EVPG_RESULT_INIT {.size = sizeof(evpg_result)}

/* ------------------------------------------------------------------ callbacks */

/* Decides: emits events, or refuses, or neither (a no-op).  Pure. */
typedef void (*evpg_handle_fn) (evpg_result *out, const evpg_json *state, const evpg_command *command);

/* Folds: changes state in place.  Pure and total: it cannot fail. */
typedef void (*evpg_apply_fn) (evpg_json *state, const evpg_event *event);

/* What must hold of every state a command leaves; says why not with evpg_reject(). */
typedef bool (*evpg_invariant_fn) (evpg_result *why, const evpg_json *state);

/*
 * Projects: changes the state of a key in place, says what listeners are sent
 * with evpg_delta(), or removes the row with evpg_delete().  Pure.
 */
typedef void (*evpg_project_fn) (evpg_result *out, evpg_json *state, const evpg_event *event);

/* The key of an event, lent from the event or static; NULL = no key, not ours. */
typedef const char *(*evpg_key_fn) (const evpg_event *event);

/*
 * Tables of types.  Written only through the macros, which add the end; an
 * entry never changes its size (the reserved word), since tables are arrays.
 */
typedef struct evpg_command_entry
{
	const char *type;
	evpg_handle_fn call;
	const void *reserved;
} evpg_command_entry;

typedef struct evpg_event_entry
{
	const char *type;
	evpg_apply_fn call;
	const void *reserved;
} evpg_event_entry;

typedef struct evpg_project_entry
{
	const char *type;
	evpg_project_fn call;
	const void *reserved;
} evpg_project_entry;

#define EVPG_ON(name, function)	{.type = (name), .call = (function)}
#define EVPG_COMMANDS(...)	(const evpg_command_entry[]) {__VA_ARGS__, {.type = NULL}}
#define EVPG_EVENTS(...)	(const evpg_event_entry[]) {__VA_ARGS__, {.type = NULL}}
#define EVPG_PROJECTS(...)	(const evpg_project_entry[]) {__VA_ARGS__, {.type = NULL}}
#define EVPG_TYPES(...)		(const char *const[]) {__VA_ARGS__, NULL}

/* ------------------------------------------------------------------ definitions */
typedef enum evpg_kind
{
	EVPG_KIND_AGGREGATE = 1,
	EVPG_KIND_PROJECTION,
	EVPG_KIND_SAGA
} evpg_kind;

typedef struct evpg_header
{
	uint32_t	magic;
	uint16_t	abi_major;
	uint16_t	abi_minor;
	uint32_t	size;			/* of the whole definition */
	uint32_t	kind;
} evpg_header;

typedef struct evpg_aggregate
{
	evpg_header header;
	const char *initial_state;	/* JSON text; NULL = {} */
	int32_t		reducer_version;	/* 0 = 1; change it when the fold changes:
									 * older snapshots are then ignored */
	const evpg_command_entry *commands; /* required; unknown command types are
										 * refused for you */
	const evpg_event_entry *events; /* required; unknown event types fold to
									 * the same state */
	evpg_invariant_fn invariant;	/* NULL = none */
} evpg_aggregate;

typedef struct evpg_projection
{
	evpg_header header;
	const char *initial_state;	/* JSON object text; NULL = {} */
	const char *const *aggregate_types; /* NULL = all */
	const evpg_project_entry *events;	/* required; also the subscription: no
										 * entry, no call */
	evpg_key_fn key;			/* NULL = aggregate id */
} evpg_projection;

/*
 * The exported symbol carries the prefix, so that the server never calls a
 * function that is not a definition; the plain name is for unit tests.
 * File scope only: there, the tables have static storage.
 */
#define EVPG_DEFINE(k, t, symbol, ...) \
	static const t symbol##_definition = \
		{.header = {EVPG_MAGIC, EVPG_ABI_MAJOR, EVPG_ABI_MINOR, sizeof(t), k}, __VA_ARGS__}; \
	extern const t *symbol(void); \
	const t *symbol(void) { return &symbol##_definition; } \
	extern EVPG_EXPORT const evpg_header *evpg_definition_##symbol(void); \
	const evpg_header *evpg_definition_##symbol(void) { return &symbol##_definition.header; } \
	extern const t *symbol(void)

#define EVPG_AGGREGATE(symbol, ...) EVPG_DEFINE(EVPG_KIND_AGGREGATE, evpg_aggregate, symbol, __VA_ARGS__)

#define EVPG_PROJECTION(symbol, ...) EVPG_DEFINE(EVPG_KIND_PROJECTION, evpg_projection, symbol, __VA_ARGS__)

/* ------------------------------------------------------------------ JSON, short
 *
 * Readers never fail: a missing member gives the default, another type is
 * converted as json-c does ("12" counts as 12, a non-empty string as true).
 * Numbers beyond 64 bits and fractions arrive as json-c doubles that keep
 * their text: read them with evpg_text(), which is exact.  json_tokener does
 * not do that (it saturates big integers), so never re-parse; money belongs in
 * integers of the smallest unit.
 */

/* A member, lent; NULL if absent, null, or object is not an object. */
static inline evpg_json *
evpg_get(const evpg_json *object, const char *key)
{
	evpg_json  *value = NULL;

	if (object != NULL && json_object_get_type(object) == json_type_object)
		json_object_object_get_ex(object, key, &value);
	return value;
}

/* An integer member; 0 if absent, saturated if beyond 64 bits. */
static inline int64_t
evpg_int(const evpg_json *object, const char *key)
{
	return json_object_get_int64(evpg_get(object, key));
}

/* A boolean member; false if absent. */
static inline bool
evpg_bool(const evpg_json *object, const char *key)
{
	return json_object_get_boolean(evpg_get(object, key)) != 0;
}

/* A member as text, lent; "" if absent.  Numbers keep their exact text. */
static inline const char *
evpg_text(const evpg_json *object, const char *key)
{
	evpg_json  *value = evpg_get(object, key);

	return value == NULL ? "" : json_object_get_string(value);
}

/* Sets a member; takes value, NULL = JSON null. */
static inline void
evpg_set(evpg_json *object, const char *key, evpg_json *value)
{
	if (json_object_object_add(object, key, value) != 0)
		json_object_put(value);
}

static inline void
evpg_set_int(evpg_json *object, const char *key, int64_t value)
{
	evpg_set(object, key, json_object_new_int64(value));
}

static inline void
evpg_set_bool(evpg_json *object, const char *key, bool value)
{
	evpg_set(object, key, json_object_new_boolean(value));
}

/* Copies value; NULL = JSON null. */
static inline void
evpg_set_text(evpg_json *object, const char *key, const char *value)
{
	evpg_set(object, key, value == NULL ? NULL : json_object_new_string(value));
}

/* Removes a member, if it is there. */
static inline void
evpg_remove(evpg_json *object, const char *key)
{
	json_object_object_del(object, key);
}

/* A reference of your own: do not change what it refers to. */
static inline evpg_json *
evpg_share(const evpg_json *value)
{
	return json_object_get((evpg_json *) value);
}

/* A deep copy of your own, for containers that a later fold changes. */
static inline evpg_json *
evpg_copy(const evpg_json *value)
{
	evpg_json  *copy = NULL;

	if (value != NULL)
		json_object_deep_copy((evpg_json *) value, &copy, NULL);
	return copy;
}

/* evpg_object(EVPG_INT("amount", 5), EVPG_TEXT("to", id)): a new object, yours. */
typedef struct evpg_member
{
	const char *key;
	char		kind;
	int64_t		i;
	const char *s;
	evpg_json  *j;
} evpg_member;

#define EVPG_INT(k, v)	{.key = (k), .kind = 'i', .i = (v)}
#define EVPG_BOOL(k, v) {.key = (k), .kind = 'b', .i = (v)}
#define EVPG_TEXT(k, v) {.key = (k), .kind = 's', .s = (v)}
#define EVPG_JSON(k, v) {.key = (k), .kind = 'j', .j = (v)} /* takes v */
#define evpg_object(...) evpg_object_of((const evpg_member[]) {__VA_ARGS__, {.key = NULL}})

static inline evpg_json *
evpg_object_of(const evpg_member *member)
{
	evpg_json  *object = json_object_new_object();

	for (; member->key != NULL; member++)
		switch (member->kind)
		{
			case 'i':
				evpg_set_int(object, member->key, member->i);
				break;
			case 'b':
				evpg_set_bool(object, member->key, member->i != 0);
				break;
			case 's':
				evpg_set_text(object, member->key, member->s);
				break;
			default:
				evpg_set(object, member->key, member->j);
				break;
		}
	return object;
}

/* ------------------------------------------------------------------ what a callback says */

/*
 * Handler: append an event.  Takes data (NULL = JSON null); returns the
 * envelope, lent, for evpg_with_tag() and evpg_with_metadata().
 */
static inline evpg_json *
evpg_emit(evpg_result *out, const char *type, evpg_json *data)
{
	evpg_json  *event = evpg_object(EVPG_TEXT("type", type), EVPG_JSON("data", data));

	if (out->events == NULL)
		out->events = json_object_new_array();
	json_object_array_add(out->events, event);
	return event;
}

static inline evpg_json *
evpg_with_tag(evpg_json *event, const char *tag)
{
	evpg_json  *tags = evpg_get(event, "tags");

	if (tags == NULL)
		evpg_set(event, "tags", tags = json_object_new_array());
	json_object_array_add(tags, json_object_new_string(tag));
	return event;
}

/* Takes metadata, an object. */
static inline evpg_json *
evpg_with_metadata(evpg_json *event, evpg_json *metadata)
{
	evpg_set(event, "metadata", metadata);
	return event;
}

/* Handler, invariant: refuse.  Events already emitted are dropped; the first refusal counts. */
static inline void
EVPG_PRINTF(3, 4)
evpg_reject(evpg_result *out, const char *code, const char *format,...)
{
	va_list		args;

	if (out->rejected)
		return;
	out->rejected = true;
	snprintf(out->code, sizeof(out->code), "%s", code);
	va_start(args, format);
	vsnprintf(out->message, sizeof(out->message), format, args);
	va_end(args);
}

/* What the caller gets in DETAIL; takes detail. */
static inline void
evpg_reject_detail(evpg_result *out, evpg_json *detail)
{
	json_object_put(out->detail);
	out->detail = detail;
}

/* Projection: what listeners are sent; takes delta.  No call, no frame. */
static inline void
evpg_delta(evpg_result *out, evpg_json *delta)
{
	json_object_put(out->delta);
	out->delta = delta;
}

/* Projection: remove the row of this key. */
static inline void
evpg_delete(evpg_result *out)
{
	out->deleted = true;
}

/* Any callback with a result: the input is impossible, a defect (SQLSTATE VE009). */
static inline void
EVPG_PRINTF(2, 3)
evpg_fail(evpg_result *out, const char *format,...)
{
	va_list		args;

	out->failed = true;
	va_start(args, format);
	vsnprintf(out->message, sizeof(out->message), format, args);
	va_end(args);
}

/*
 * In every loop whose length the input decides: pass out->host or event->host.
 * Without it a loop cannot be cancelled, and statement_timeout cannot end it.
 */
static inline void
evpg_check_interrupts(const evpg_host *host)
{
	if (EVPG_HOST_HAS(host, check_interrupts))
		host->check_interrupts();
}

/* Frees what it holds and makes it ready for the next call. */
static inline void
evpg_result_reset(evpg_result *out)
{
	const evpg_host *host = out->host;

	json_object_put(out->events);
	json_object_put(out->detail);
	json_object_put(out->delta);
	*out = (evpg_result) EVPG_RESULT_INIT;
	out->host = host;
}

/* ------------------------------------------------------------------ running definitions
 *
 * What the server does around a callback: enough for given / when / then in a
 * plain main().  The server uses the finders too.
 */

/* The state before the first event, yours. */
static inline evpg_json *
evpg_initial_state(const evpg_aggregate *aggregate)
{
	return json_tokener_parse(aggregate->initial_state == NULL ? "{}" : aggregate->initial_state);
}

/* NULL if the aggregate has no such command. */
static inline const evpg_command_entry *
evpg_find_command(const evpg_aggregate *aggregate, const char *type)
{
	for (const evpg_command_entry *entry = aggregate->commands; entry->type != NULL; entry++)
		if (strcmp(entry->type, type) == 0)
			return entry;
	return NULL;
}

/* NULL if the aggregate does not know the event type. */
static inline const evpg_event_entry *
evpg_find_event(const evpg_aggregate *aggregate, const char *type)
{
	for (const evpg_event_entry *entry = aggregate->events; entry->type != NULL; entry++)
		if (strcmp(entry->type, type) == 0)
			return entry;
	return NULL;
}

/* Folds one event into state; false: unknown type, same state. */
static inline bool
evpg_apply(const evpg_aggregate *aggregate, evpg_json *state, const evpg_event *event)
{
	const evpg_event_entry *entry = evpg_find_event(aggregate, event->type);

	if (entry != NULL)
		entry->call(state, event);
	return entry != NULL;
}

/*
 * Decide, then fold what was emitted into state and check the invariant.
 * False: refused, see out; state is then stale.
 */
static inline bool
evpg_decide(const evpg_aggregate *aggregate, evpg_json *state, const evpg_command *command, evpg_result *out)
{
	const evpg_command_entry *entry = evpg_find_command(aggregate, command->type);

	evpg_result_reset(out);
	if (entry == NULL)
	{
		evpg_fail(out, "unknown command type \"%s\"", command->type);
		return false;
	}
	entry->call(out, state, command);
	if (out->rejected || out->failed)
		return false;
	for (size_t i = 0; out->events != NULL && i < json_object_array_length(out->events); i++)
	{
		evpg_json  *emitted = json_object_array_get_idx(out->events, i);
		evpg_event	event = {
			.version = command->version + 1 + (int64_t) i,
			.aggregate_type = command->aggregate_type,
			.aggregate_id = command->aggregate_id,
			.type = evpg_text(emitted, "type"),
			.schema_version = 1,
			.data = evpg_get(emitted, "data"),
			.event_id = "",
			.correlation_id = "",
			.occurred_at = command->received_at,
			.recorded_at = command->received_at
		};

		evpg_apply(aggregate, state, &event);
	}
	return aggregate->invariant == NULL || aggregate->invariant(out, state);
}

/* NULL if the projection does not take the event type. */
static inline const evpg_project_entry *
evpg_find_projected(const evpg_projection *projection, const char *type)
{
	for (const evpg_project_entry *entry = projection->events; entry->type != NULL; entry++)
		if (strcmp(entry->type, type) == 0)
			return entry;
	return NULL;
}

/* Projects one event into state; false: not its event type, same state. */
static inline bool
evpg_project(const evpg_projection *projection, evpg_json *state, const evpg_event *event, evpg_result *out)
{
	const evpg_project_entry *entry = evpg_find_projected(projection, event->type);

	evpg_result_reset(out);
	if (entry != NULL)
		entry->call(out, state, event);
	return entry != NULL;
}

#endif							/* EVPG_H */
