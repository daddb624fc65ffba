/*-------------------------------------------------------------------------
 *
 * evpg.h
 *		The one public header: aggregates, projections and sagas in C.
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
 * One file of the library also has the line EVPG_MODULE; (it then needs postgres.h
 * and fmgr.h before this header; no other server header is needed).
 *
 * json-c and utils/builtins.h: json-c has a type json_object, the server's
 * utils/fmgrprotos.h (hence utils/builtins.h) a function of that name.  A file
 * that includes postgres.h gets the server's function under another name from
 * this header, so include evpg.h before any other server header; pure modules
 * need none of that.
 *
 * Ownership, in one sentence: what a callback receives is lent, except that
 * `state` of a fold, projection or saga may be changed in place; what it
 * passes to an evpg_ function as `evpg_json *` is given away, even when the
 * call fails.
 *
 * Strings are UTF-8, live until the callback returns, and are never NULL
 * unless the comment says so.
 *
 * A name that is also one of SQL means the same there: evpg_event and
 * evpg_command are evpg.event and evpg.command, and evpg_reject() refuses a
 * command, as the SQL function does.
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
#include <stdlib.h>
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
	const char *session_role;	/* role that asked for it; NULL in a unit test */
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
	const char *session_role;	/* the role that asked, by the server, while
								 * actor is what the caller says; NULL in a
								 * unit test that does not set it */
} evpg_command;

/* A command that a saga sent was refused; nothing of it has happened. */
typedef struct evpg_rejection
{
	const char *key;			/* of the saga's instance */
	const char *label;			/* of the send; "" if none */
	const char *aggregate_type;
	const char *aggregate_id;
	const char *command_type;
	evpg_json  *data;			/* of the command; NULL if null */
	const char *sqlstate;		/* five characters, such as "VE002" */
	const char *code;			/* the domain's; "" if none */
	const char *message;
	evpg_json  *detail;			/* NULL if none */
	int32_t		attempts;		/* at what the saga reacts to, first is 1 */
	int64_t		source_position;	/* of the event the saga reacts to; 0: a
									 * timer */
} evpg_rejection;

/* A timer that is due.  All times are microseconds since 1970-01-01 UTC. */
typedef struct evpg_fired_timer
{
	const char *key;			/* of the saga's instance */
	const char *name;
	evpg_json  *payload;		/* NULL if none */
	int64_t		scheduled_at;
	int64_t		due_at;
	int64_t		fired_at;		/* now; not before due_at, but any time later */
} evpg_fired_timer;

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
	evpg_json  *actions;		/* saga: array of {do, ...}, as the actions of
								 * evpg.reaction */
	bool		unhandled;		/* saga: leaves a refused send to retries and
								 * dead letters */
	bool		unsent;			/* projection: no listener gets a delta; see
								 * evpg_wants_delta() */
	evpg_json  *boundary;		/* boundary: array of {tags, event_types},
								 * items as of evpg_condition() */
} evpg_result;

#define EVPG_RESULT_INIT {.size = sizeof(evpg_result)}

/* ------------------------------------------------------------------ callbacks */

/* Decides: emits events, or refuses, or neither (a no-op).  Pure. */
typedef void (*evpg_handle_fn) (evpg_result *out, const evpg_json *state, const evpg_command *command);

/* Folds: changes state in place.  Pure and total: it cannot fail. */
typedef void (*evpg_apply_fn) (evpg_json *state, const evpg_event *event);

/* Checks what must hold of every state that a command leaves; refuses with evpg_reject(). */
typedef bool (*evpg_invariant_fn) (evpg_result *why, const evpg_json *state);

/*
 * Names with evpg_reads() the events of all streams that a command is decided on, or
 * refuses.  Pure.
 */
typedef void (*evpg_boundary_fn) (evpg_result *out, const evpg_command *command);

/*
 * Projects: changes the state of a key in place, sets what listeners get with
 * evpg_delta(), or removes the row with evpg_delete().  Pure.
 */
typedef void (*evpg_project_fn) (evpg_result *out, evpg_json *state, const evpg_event *event);

/*
 * Reacts: changes the state of an instance in place, and lists actions with
 * evpg_send() and the like.  Pure.  In one transaction the state is stored and the
 * actions are done in their order, or nothing happens.
 */
typedef void (*evpg_react_fn) (evpg_result *out, evpg_json *state, const evpg_event *event);

/*
 * Reacts to a refused send: its actions are done in the place of the send, and
 * then what follows the send, unless the instance has completed.  Or
 * evpg_unhandled().  The state is the one that the reaction has left.
 */
typedef void (*evpg_rejected_fn) (evpg_result *out, evpg_json *state, const evpg_rejection *rejection);

/* Reacts to a timer. */
typedef void (*evpg_timer_fn) (evpg_result *out, evpg_json *state, const evpg_fired_timer *timer);

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

typedef struct evpg_react_entry
{
	const char *type;
	evpg_react_fn call;
	bool		starts;			/* may make an instance */
	const void *reserved;
} evpg_react_entry;

typedef struct evpg_timer_entry
{
	const char *type;			/* the timer's name */
	evpg_timer_fn call;
	const void *reserved;
} evpg_timer_entry;

#define EVPG_ON(name, function)	{.type = (name), .call = (function)}
#define EVPG_START(name, function) {.type = (name), .call = (function), .starts = true}
#define EVPG_COMMANDS(...)	(const evpg_command_entry[]) {__VA_ARGS__, {.type = NULL}}
#define EVPG_EVENTS(...)	(const evpg_event_entry[]) {__VA_ARGS__, {.type = NULL}}
#define EVPG_PROJECTS(...)	(const evpg_project_entry[]) {__VA_ARGS__, {.type = NULL}}
#define EVPG_REACTS(...)	(const evpg_react_entry[]) {__VA_ARGS__, {.type = NULL}}
#define EVPG_TIMERS(...)	(const evpg_timer_entry[]) {__VA_ARGS__, {.type = NULL}}
#define EVPG_TYPES(...)		(const char *const[]) {__VA_ARGS__, NULL}
#define EVPG_TAGS(...)		(const char *const[]) {__VA_ARGS__, NULL}

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

typedef struct evpg_aggregate_definition
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
	evpg_boundary_fn boundary;	/* NULL = the events of the stream */
} evpg_aggregate_definition;

typedef struct evpg_projection_definition
{
	evpg_header header;
	const char *initial_state;	/* JSON object text; NULL = {} */
	const char *const *aggregate_types; /* NULL = all; not empty */
	const evpg_project_entry *events;	/* required; also the subscription: no
										 * entry, no call */
	evpg_key_fn key;			/* NULL = aggregate id */
} evpg_projection_definition;

typedef struct evpg_saga_definition
{
	evpg_header header;
	const char *initial_state;	/* JSON object text; NULL = {} */
	const char *const *aggregate_types; /* NULL = all; not empty */
	const evpg_react_entry *events; /* required; also the subscription: no
									 * entry, no call.  Without an EVPG_START
									 * each may make an instance */
	const evpg_timer_entry *timers; /* NULL = none, so no reaction can set
									 * one; others change nothing */
	evpg_key_fn key;			/* which instance; NULL = aggregate id */
	evpg_rejected_fn rejected;	/* NULL = retries, then a dead letter */
} evpg_saga_definition;

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

#define EVPG_AGGREGATE(symbol, ...) EVPG_DEFINE(EVPG_KIND_AGGREGATE, evpg_aggregate_definition, symbol, __VA_ARGS__)

#define EVPG_PROJECTION(symbol, ...) EVPG_DEFINE(EVPG_KIND_PROJECTION, evpg_projection_definition, symbol, __VA_ARGS__)

#define EVPG_SAGA(symbol, ...) EVPG_DEFINE(EVPG_KIND_SAGA, evpg_saga_definition, symbol, __VA_ARGS__)

/* ------------------------------------------------------------------ freeing values of any depth */

/* Containers that evpg_free() still has to give back, in malloc'd memory. */
typedef struct evpg_unfreed
{
	evpg_json **containers;
	size_t		count;
	size_t		space;
	bool		kept;			/* others still have the container in hand */
} evpg_unfreed;

static inline bool
evpg_is_container(const evpg_json *json)
{
	json_type	type = json_object_get_type(json);

	return type == json_type_object || type == json_type_array;
}

/*
 * Takes a reference to a part; without memory for that, json-c frees the part by
 * recursion.
 */
static inline void
evpg_free_later(evpg_unfreed *unfreed, evpg_json *part)
{
	if (unfreed->count == unfreed->space)
	{
		size_t		space = unfreed->space == 0 ? 64 : 2 * unfreed->space;
		evpg_json **larger = (evpg_json **) realloc(unfreed->containers, space * sizeof(evpg_json *));

		if (larger == NULL)
			return;
		unfreed->containers = larger;
		unfreed->space = space;
	}
	unfreed->containers[unfreed->count++] = json_object_get(part);
}

/* Returns whether a container has containers as its parts; unfreed, if any, gets them. */
static inline bool
evpg_find_parts(const evpg_json *json, evpg_unfreed *unfreed)
{
	bool		found = false;

	if (json_object_is_type(json, json_type_array))
	{
		for (size_t i = 0; i < json_object_array_length(json) && (unfreed != NULL || !found); i++)
		{
			evpg_json  *part = json_object_array_get_idx(json, i);

			if (!evpg_is_container(part))
				continue;
			found = true;
			if (unfreed != NULL)
				evpg_free_later(unfreed, part);
		}
	}
	else
	{
		for (struct lh_entry *entry = json_object_get_object(json)->head;
			 entry != NULL && (unfreed != NULL || !found); entry = entry->next)
		{
			evpg_json  *part = (evpg_json *) lh_entry_v(entry);

			if (!evpg_is_container(part))
				continue;
			found = true;
			if (unfreed != NULL)
				evpg_free_later(unfreed, part);
		}
	}
	return found;
}

/*
 * Keeps the parts of a container.  json-c calls this when the last reference to
 * it is gone, before it drops its references to the parts.  The user data must be
 * gone after it: json-c 0.19 takes what is left for a container that it frees next.
 */
static inline void
evpg_keep_parts(evpg_json *json, void *user_data)
{
	evpg_unfreed *unfreed = (evpg_unfreed *) user_data;

	if (!unfreed->kept)
		return;
	unfreed->kept = false;
	(void) evpg_find_parts(json, unfreed);
	json_object_set_userdata(json, NULL, NULL);
}

/*
 * Drops a reference to a value, which may be NULL, as json_object_put() does, but
 * without recursion: values of any depth are freed.  One that contains itself never
 * is.  User data of your own stay, and what has them is freed in json-c's way.
 */
static inline void
evpg_free(evpg_json *json)
{
	evpg_unfreed unfreed = {NULL, 0, 0, false};

	if (json == NULL)
		return;
	for (;;)
	{
		if (!evpg_is_container(json) || json_object_get_userdata(json) != NULL || !evpg_find_parts(json, NULL))
			json_object_put(json);
		else
		{
			unfreed.kept = true;	/* until evpg_keep_parts is called */
			json_object_set_userdata(json, &unfreed, evpg_keep_parts);
			json_object_put(json);
			if (unfreed.kept)
			{
				/*
				 * json-c copies no value with user data that it does not
				 * know.
				 */
				unfreed.kept = false;
				json_object_set_userdata(json, NULL, NULL);
			}
		}
		if (unfreed.count == 0)
			break;
		json = unfreed.containers[--unfreed.count];
	}
	free(unfreed.containers);
}

/* ------------------------------------------------------------------ JSON, short
 *
 * Readers never fail: a missing member gives the default, another type is
 * converted as json-c does ("12" counts as 12, a non-empty string as true).
 * Numbers beyond 64 bits and fractions arrive as json-c doubles that keep
 * their text: read them with evpg_text(), which is exact.  json_tokener does
 * not do that (it saturates big integers), so never re-parse; money belongs in
 * integers of the smallest unit.
 */

/* A member, lent; NULL if absent, null, or object is not an object, as NULL is not. */
static inline evpg_json *
evpg_get(const evpg_json *object, const char *key)
{
	evpg_json  *value = NULL;

	if (key != NULL && json_object_get_type(object) == json_type_object)
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

/* Sets a member; takes value, NULL = JSON null.  Nothing happens if object is none, or key NULL. */
static inline void
evpg_set(evpg_json *object, const char *key, evpg_json *value)
{
	struct lh_entry *entry;

	if (key == NULL || value == object || json_object_get_type(object) != json_type_object)
		evpg_free(value);
	else if ((entry = lh_table_lookup_entry(json_object_get_object(object), key)) != NULL)
	{
		evpg_json  *old = (evpg_json *) lh_entry_v(entry);

		lh_entry_set_val(entry, value);
		evpg_free(old);
	}
	else if (json_object_object_add_ex(object, key, value, JSON_C_OBJECT_ADD_KEY_IS_NEW) != 0)
		evpg_free(value);
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

/* Removes a member, if it exists. */
static inline void
evpg_remove(evpg_json *object, const char *key)
{
	evpg_json  *old = evpg_get(object, key);

	if (key == NULL || json_object_get_type(object) != json_type_object)
		return;
	json_object_get(old);
	json_object_object_del(object, key);
	evpg_free(old);
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

/* ------------------------------------------------------------------ what a callback returns */

/* Appends to an array, which is made if there is none; false if it is no array.  Takes value. */
static inline bool
evpg_append_to(evpg_json **array, evpg_json *value)
{
	if (*array == NULL)
		*array = json_object_new_array();
	if (json_object_get_type(*array) == json_type_array && json_object_array_add(*array, value) == 0)
		return true;
	evpg_free(value);
	return false;
}

/*
 * Handler: append an event.  Takes data (NULL = JSON null); returns the
 * envelope, lent, for evpg_with_tag() and evpg_with_metadata().
 */
static inline evpg_json *
evpg_emit(evpg_result *out, const char *type, evpg_json *data)
{
	evpg_json  *event = evpg_object(EVPG_TEXT("type", type), EVPG_JSON("data", data));

	return evpg_append_to(&out->events, event) ? event : NULL;
}

/* event or tag NULL: nothing happens, here and below. */
static inline evpg_json *
evpg_with_tag(evpg_json *event, const char *tag)
{
	evpg_json  *tags = evpg_get(event, "tags");

	if (event == NULL || tag == NULL)
		return event;
	if (tags == NULL)
		evpg_set(event, "tags", tags = json_object_new_array());
	evpg_append_to(&tags, json_object_new_string(tag));
	return event;
}

/* Sets a member to an array of strings, which end with NULL; strings NULL: nothing happens. */
static inline void
evpg_set_texts(evpg_json *object, const char *key, const char *const *strings)
{
	evpg_json  *array = NULL;

	for (; strings != NULL && *strings != NULL; strings++)
		evpg_append_to(&array, json_object_new_string(*strings));
	if (array != NULL)
		evpg_set(object, key, array);
}

/*
 * Boundary: the decision reads the events that have all of these tags and one of these
 * types; NULL: whatever their tags, or types, are.  Each call adds such an item;
 * returns it, lent.
 */
static inline evpg_json *
evpg_reads(evpg_result *out, const char *const *tags, const char *const *event_types)
{
	evpg_json  *item = json_object_new_object();

	evpg_set_texts(item, "tags", tags);
	evpg_set_texts(item, "event_types", event_types);
	return evpg_append_to(&out->boundary, item) ? item : NULL;
}

/* Takes metadata, an object. */
static inline evpg_json *
evpg_with_metadata(evpg_json *event, evpg_json *metadata)
{
	evpg_set(event, "metadata", metadata);
	return event;
}

/* Formats a message, cut to fit; format NULL: an empty one. */
static inline void
EVPG_PRINTF(3, 0)
evpg_print(char *text, size_t size, const char *format, va_list args)
{
	if (format != NULL)
		vsnprintf(text, size, format, args);
	else
		text[0] = '\0';
}

/*
 * Handler, boundary, invariant: refuse.  Events already emitted are dropped; the first
 * refusal counts.  code NULL = none; without a message, a default one names the
 * command that was refused.
 */
static inline void
EVPG_PRINTF(3, 4)
evpg_reject(evpg_result *out, const char *code, const char *format,...)
{
	va_list		args;

	if (out->rejected)
		return;
	out->rejected = true;
	snprintf(out->code, sizeof(out->code), "%s", code != NULL ? code : "");
	va_start(args, format);
	evpg_print(out->message, sizeof(out->message), format, args);
	va_end(args);
}

/* What the caller gets in DETAIL; takes detail. */
static inline void
evpg_reject_detail(evpg_result *out, evpg_json *detail)
{
	evpg_free(out->detail);
	out->detail = detail;
}

/*
 * Projection: whether a delta is of use; not in a rebuild, or if the projection sends
 * no frames.  Ask before making one; evpg_delta() may be called all the same.
 */
static inline bool
evpg_wants_delta(const evpg_result *out)
{
	return out->size < offsetof(evpg_result, unsent) + sizeof(out->unsent) || !out->unsent;
}

/* Projection: what listeners are sent; takes delta.  No call, no frame. */
static inline void
evpg_delta(evpg_result *out, evpg_json *delta)
{
	evpg_free(out->delta);
	out->delta = delta;
}

/* Projection: remove the row of this key. */
static inline void
evpg_delete(evpg_result *out)
{
	out->deleted = true;
}

/* Saga: appends an action; takes it. */
static inline evpg_json *
evpg_act(evpg_result *out, evpg_json *action)
{
	return evpg_append_to(&out->actions, action) ? action : NULL;
}

/* A command as an action or as the undo of one. */
static inline evpg_json *
evpg_command_of(const char *aggregate_type, const char *aggregate_id, const char *command_type, evpg_json *data)
{
	return evpg_object(EVPG_TEXT("do", "send"), EVPG_TEXT("aggregate_type", aggregate_type),
					   EVPG_TEXT("aggregate_id", aggregate_id), EVPG_TEXT("command_type", command_type),
					   EVPG_JSON("data", data != NULL ? data : json_object_new_object()));
}

/*
 * Saga: send a command.  label (NULL = none) names it to the rejection callback.
 * Takes data (NULL = {}); returns the action, lent, for evpg_undo(),
 * evpg_with_metadata() and evpg_set_int(action, "expected_version", n).
 */
static inline evpg_json *
evpg_send(evpg_result *out, const char *label, const char *aggregate_type, const char *aggregate_id,
		  const char *command_type, evpg_json *data)
{
	evpg_json  *action = evpg_command_of(aggregate_type, aggregate_id, command_type, data);

	if (label != NULL)
		evpg_set_text(action, "label", label);
	return evpg_act(out, action);
}

/*
 * The command that evpg_compensate() sends if `send` succeeds.  Takes data (NULL
 * = {}); returns that command, lent, for evpg_with_metadata() and the like; NULL
 * if `send` is NULL.
 */
static inline evpg_json *
evpg_undo(evpg_json *send, const char *aggregate_type, const char *aggregate_id, const char *command_type,
		  evpg_json *data)
{
	evpg_json  *undo = evpg_command_of(aggregate_type, aggregate_id, command_type, data);

	evpg_set(send, "undo", undo);
	return send == NULL ? NULL : undo;
}

/*
 * Saga: wake this instance after delay seconds (0 = at once).  A pending timer
 * of the same name is replaced.  Takes payload (NULL = none).
 */
static inline void
evpg_schedule(evpg_result *out, const char *timer, int64_t delay, evpg_json *payload)
{
	evpg_json  *action = evpg_object(EVPG_TEXT("do", "schedule"), EVPG_TEXT("timer", timer), EVPG_INT("delay", delay));

	if (payload != NULL)
		evpg_set(action, "payload", payload);
	evpg_act(out, action);
}

/* Saga: cancel a pending timer, if it exists. */
static inline void
evpg_cancel(evpg_result *out, const char *timer)
{
	evpg_act(out, evpg_object(EVPG_TEXT("do", "cancel"), EVPG_TEXT("timer", timer)));
}

/* Saga: send the undo commands, last first, then complete.  reason NULL = none. */
static inline void
evpg_compensate(evpg_result *out, const char *reason)
{
	evpg_json  *action = evpg_object(EVPG_TEXT("do", "compensate"));

	if (reason != NULL)
		evpg_set_text(action, "reason", reason);
	evpg_act(out, action);
}

/* Saga: this instance is done; its timers go, later actions and events are ignored. */
static inline void
evpg_complete(evpg_result *out)
{
	evpg_act(out, evpg_object(EVPG_TEXT("do", "complete")));
}

/* Saga: make this reaction a dead letter at once, without retries; nothing of it is done. */
static inline void
evpg_dead_letter(evpg_result *out, const char *reason)
{
	evpg_act(out, evpg_object(EVPG_TEXT("do", "fail"), EVPG_TEXT("reason", reason)));
}

/* Saga, refused send: not this callback's business; retried, then a dead letter. */
static inline void
evpg_unhandled(evpg_result *out)
{
	out->unhandled = true;
}

/* Any callback with a result: the input is impossible, a defect (SQLSTATE VE009). */
static inline void
EVPG_PRINTF(2, 3)
evpg_fail(evpg_result *out, const char *format,...)
{
	va_list		args;

	out->failed = true;
	va_start(args, format);
	evpg_print(out->message, sizeof(out->message), format, args);
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

	evpg_free(out->events);
	evpg_free(out->detail);
	evpg_free(out->delta);
	evpg_free(out->actions);
	evpg_free(out->boundary);
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
evpg_initial_state(const evpg_aggregate_definition *aggregate)
{
	return json_tokener_parse(aggregate->initial_state == NULL ? "{}" : aggregate->initial_state);
}

/* NULL if the aggregate has no such command. */
static inline const evpg_command_entry *
evpg_find_command(const evpg_aggregate_definition *aggregate, const char *type)
{
	for (const evpg_command_entry *entry = aggregate->commands; entry->type != NULL; entry++)
		if (strcmp(entry->type, type) == 0)
			return entry;
	return NULL;
}

/* NULL if the aggregate does not know the event type. */
static inline const evpg_event_entry *
evpg_find_event(const evpg_aggregate_definition *aggregate, const char *type)
{
	for (const evpg_event_entry *entry = aggregate->events; entry->type != NULL; entry++)
		if (strcmp(entry->type, type) == 0)
			return entry;
	return NULL;
}

/* Folds one event into state; false: unknown type, same state. */
static inline bool
evpg_apply(const evpg_aggregate_definition *aggregate, evpg_json *state, const evpg_event *event)
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
evpg_decide(const evpg_aggregate_definition *aggregate, evpg_json *state, const evpg_command *command, evpg_result *out)
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
			.recorded_at = command->received_at,
			.session_role = command->session_role
		};

		evpg_apply(aggregate, state, &event);
	}
	return aggregate->invariant == NULL || aggregate->invariant(out, state);
}

/* NULL if the projection does not take the event type. */
static inline const evpg_project_entry *
evpg_find_projected(const evpg_projection_definition *projection, const char *type)
{
	for (const evpg_project_entry *entry = projection->events; entry->type != NULL; entry++)
		if (strcmp(entry->type, type) == 0)
			return entry;
	return NULL;
}

/* Projects one event into state; false: not its event type, same state. */
static inline bool
evpg_project(const evpg_projection_definition *projection, evpg_json *state, const evpg_event *event, evpg_result *out)
{
	const evpg_project_entry *entry = evpg_find_projected(projection, event->type);

	evpg_result_reset(out);
	if (entry != NULL)
		entry->call(out, state, event);
	return entry != NULL;
}

/* NULL if the saga does not take the event type. */
static inline const evpg_react_entry *
evpg_find_reaction(const evpg_saga_definition *saga, const char *type)
{
	for (const evpg_react_entry *entry = saga->events; entry->type != NULL; entry++)
		if (strcmp(entry->type, type) == 0)
			return entry;
	return NULL;
}

/* NULL if the saga has no timer of that name. */
static inline const evpg_timer_entry *
evpg_find_timer(const evpg_saga_definition *saga, const char *name)
{
	for (const evpg_timer_entry *entry = saga->timers; entry != NULL && entry->type != NULL; entry++)
		if (strcmp(entry->type, name) == 0)
			return entry;
	return NULL;
}

/* Lets a saga react to an event; false: not its event type, same state. */
static inline bool
evpg_react(const evpg_saga_definition *saga, evpg_json *state, const evpg_event *event, evpg_result *out)
{
	const evpg_react_entry *entry = evpg_find_reaction(saga, event->type);

	evpg_result_reset(out);
	if (entry != NULL)
		entry->call(out, state, event);
	return entry != NULL;
}

/* Lets a saga react to a refused send; false: unhandled, state is then stale. */
static inline bool
evpg_react_rejection(const evpg_saga_definition *saga, evpg_json *state, const evpg_rejection *rejection, evpg_result *out)
{
	evpg_result_reset(out);
	if (saga->rejected == NULL)
		out->unhandled = true;
	else
		saga->rejected(out, state, rejection);
	return !out->unhandled;
}

/* Lets a saga react to a timer; false: it has none of that name, same state. */
static inline bool
evpg_react_timer(const evpg_saga_definition *saga, evpg_json *state, const evpg_fired_timer *timer, evpg_result *out)
{
	const evpg_timer_entry *entry = evpg_find_timer(saga, timer->name);

	evpg_result_reset(out);
	if (entry != NULL)
		entry->call(out, state, timer);
	return entry != NULL;
}

#endif							/* EVPG_H */
