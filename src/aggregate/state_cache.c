/*-------------------------------------------------------------------------
 *
 * state_cache.c
 *		The session's cache of aggregate states (rule 6).
 *
 * A position is drawn once and never again, so a cached state is right if its
 * last position equals that of the newest event, whose stream the caller has locked or
 * sees: then nothing else can have happened to the stream, whatever was rolled
 * back, in this session or another. A version alone proves nothing: two sessions
 * can write different events of version 5, if one rolls back. Besides, the
 * registration, the reducer function and the upcasters must be the same.
 *
 * A module folds in place, so its entry leaves the cache while it is used, and
 * comes back (EvpgStateCachePut) only with a state that is known to be right; an
 * error in between frees it with the memory of the call. Functions get a copy.
 *
 * Memory: EvpgStateCacheContext, bounded by evpg.state_cache_size, for the
 * entries and the states of functions; states of modules are json-c's, and their
 * size is an estimate. The least recently used entry goes first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "aggregate/state_cache.h"
#include "base/catalog.h"
#include "base/settings.h"
#include "lib/ilist.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

typedef struct CacheEntry
{
	int64		stream_id;		/* hash key */
	dlist_node	node;			/* in recently_used */
	int64		generation;		/* of the registration */
	uint64		stamp;			/* of reducer function and upcasters */
	int64		version;
	int64		last_position;
	int64		snapshot_version;
	evpg_json  *json;			/* of a module */
	Jsonb	   *jsonb;			/* of functions */
	Size		size;
	Size		growth;
} CacheEntry;

/* What an entry costs besides its state. */
#define ENTRY_OVERHEAD	(sizeof(CacheEntry) + 64)

static MemoryContext EvpgStateCacheContext = NULL;
static HTAB *state_cache = NULL;
static dlist_head recently_used = DLIST_STATIC_INIT(recently_used);
static Size cache_size = 0;
static uint64 cache_identity = 0;	/* of the tables */

/* Removes an entry and frees its state. */
static void
remove_cache_entry(CacheEntry *entry)
{
	evpg_free(entry->json);
	if (entry->jsonb != NULL)
		pfree(entry->jsonb);
	cache_size -= entry->size + entry->growth + ENTRY_OVERHEAD;
	dlist_delete(&entry->node);
	hash_search(state_cache, &entry->stream_id, HASH_REMOVE, NULL);
}

/* Removes the least recently used entries until the cache is no larger than limit. */
static void
shrink_cache(Size limit)
{
	while (cache_size > limit && !dlist_is_empty(&recently_used))
		remove_cache_entry(dlist_tail_element(CacheEntry, node, &recently_used));
}

/* Makes the cache at the first call; empties it if the extension was created again. */
static void
open_state_cache(void)
{
	if (state_cache == NULL)
	{
		HASHCTL		info = {
			.keysize = sizeof(int64),
			.entrysize = sizeof(CacheEntry)
		};

		EvpgStateCacheContext = AllocSetContextCreate(CacheMemoryContext, "EvpgStateCache", ALLOCSET_DEFAULT_SIZES);
		info.hcxt = EvpgStateCacheContext;
		state_cache = hash_create("evpg states", 256, &info, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	if (cache_identity != EvpgCatalogIdentity())
	{
		shrink_cache(0);
		cache_identity = EvpgCatalogIdentity();
	}
}

/*
 * EvpgStateCacheTake
 *		Fills *state from the cache if the entry can be the base for the stream
 *		as it is; false if none can.  The entry of a module leaves the cache.
 *		An entry that is newer than the caller's snapshot stays unused.
 */
bool
EvpgStateCacheTake(EvpgState *state, const EvpgStream *stream)
{
	EvpgAggregate *aggregate = state->aggregate;
	CacheEntry *entry;

	open_state_cache();
	entry = hash_search(state_cache, &stream->stream_id, HASH_FIND, NULL);
	if (entry == NULL || entry->version > stream->version)
		return false;
	if (entry->generation != aggregate->generation || entry->stamp != aggregate->stamp ||
		(entry->version == stream->version && entry->last_position != stream->last_position))
	{
		remove_cache_entry(entry);
		return false;
	}
	state->version = entry->version;
	state->last_position = entry->last_position;
	state->snapshot_version = entry->snapshot_version;
	state->valid = true;
	if (aggregate->has_module)
	{
		evpg_free(EvpgJsonLetGo(state->json));
		state->json->json = entry->json;
		state->size = entry->size;
		state->growth = entry->growth;
		entry->json = NULL;
		remove_cache_entry(entry);
	}
	else
	{
		state->jsonb = EvpgStateCopyJsonb(state->context, entry->jsonb);
		dlist_move_head(&recently_used, &entry->node);
	}
	return true;
}

/*
 * EvpgStateCachePut
 *		Puts a state into the cache; the caller no longer has it.  It must be
 *		what the events of the stream fold to in the transaction as it is now;
 *		if that rolls back, the last position tells.
 */
void
EvpgStateCachePut(EvpgState *state, int64 stream_id)
{
	EvpgAggregate *aggregate = state->aggregate;
	Size		limit = (Size) EvpgStateCacheSize * 1024;
	Size		size;
	Size		growth = 0;
	CacheEntry *entry;
	bool		found;
	Jsonb	   *jsonb = NULL;

	Assert(state->valid && stream_id != 0);
	state->valid = false;
	if (aggregate->has_module)
	{
		size = state->size;
		growth = state->growth;
	}
	else
		size = VARSIZE_ANY(state->jsonb);
	open_state_cache();
	entry = hash_search(state_cache, &stream_id, HASH_FIND, NULL);
	if (entry != NULL)
		remove_cache_entry(entry);
	if (size + growth + ENTRY_OVERHEAD > limit)
	{
		shrink_cache(limit);
		return;
	}
	shrink_cache(limit - (size + growth + ENTRY_OVERHEAD));
	if (!aggregate->has_module)
		jsonb = EvpgStateCopyJsonb(EvpgStateCacheContext, state->jsonb);
	entry = hash_search(state_cache, &stream_id, HASH_ENTER, &found);
	entry->generation = aggregate->generation;
	entry->stamp = aggregate->stamp;
	entry->version = state->version;
	entry->last_position = state->last_position;
	entry->snapshot_version = state->snapshot_version;
	entry->json = aggregate->has_module ? EvpgJsonLetGo(state->json) : NULL;
	entry->jsonb = jsonb;
	entry->size = size;
	entry->growth = growth;
	dlist_push_head(&recently_used, &entry->node);
	cache_size += size + growth + ENTRY_OVERHEAD;
}
