/*-------------------------------------------------------------------------
 *
 * stream_directory.c
 *		The shared directory of the newest events of streams, where the next command
 *		on a stream finds version, position and time of what the last one appended
 *		without a search of an index.
 *
 * Only the holder of a stream's lock reads and writes the entry of that stream, and
 * each append replaces it, before it inserts.  An entry has the transaction that appends
 * the event, and is used only if that is the reader's own or has committed: so a rollback,
 * of a transaction or to a savepoint, makes it void without a callback, and what
 * is in progress or prepared leads to the search, which waits for it.  An entry says
 * what a search with the lock would say:
 *
 * - that there is no later event.  evpg cannot append one without the lock.  Rows that
 *   are written past evpg make all entries of the database void, by another epoch: when
 *   the statement begins, which the trigger evpg_writer tells, and again before the
 *   transaction commits or is prepared; before each commit of a worker of logical
 *   replication, which fires no triggers of statements.  The epoch of an entry is that
 *   from before the search, or from before the append, so it cannot outlive a row that
 *   these did not see.
 * - that the event has not been removed.  The trigger evpg_append_only refuses that, so
 *   the directory is not used unless both triggers of the log fire always, and ALTER
 *   TABLE, RENAME, CREATE and DROP of anything else that may have changed this begin
 *   another epoch.
 *
 * The key has the database and the log's OID: after DROP EXTENSION numbers of streams
 * begin again.  DROP DATABASE begins another epoch for all, since an OID may be given
 * again.
 *
 * It exists only if the library was preloaded and the database has a slot; a stream without
 * an entry costs a search.  Fixed size: a bucket has a few entries and a spinlock;
 * another stream replaces one of them.  Under REPEATABLE READ and above it is not
 * used, since the event must be compared with the transaction's snapshot.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "base/catalog.h"
#include "base/settings.h"
#include "base/shmem.h"
#include "base/testing.h"
#include "common/hashfn.h"
#include "log/stream_directory.h"
#include "miscadmin.h"
#include "replication/logicalworker.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "storage/spin.h"

#define BUCKET_ENTRIES	4

/* The number of a transaction that is so much older than the next one may stand for another by now. */
#define OLDEST_TRANSACTION ((uint64) 1 << 30)

typedef struct DirectoryKey
{
	uint64		epoch;			/* of the database; 0: no entry */
	int64		stream_id;
	Oid			database;
	Oid			log;
} DirectoryKey;

typedef struct DirectoryEntry
{
	DirectoryKey key;
	int64		version;
	int64		position;
	TimestampTz recorded_at;
	FullTransactionId transaction;	/* invalid: it was committed */
} DirectoryEntry;

typedef struct DirectoryBucket
{
	slock_t		lock;
	uint8		next;			/* the entry to replace when all are used */
	DirectoryEntry entries[BUCKET_ENTRIES];
} DirectoryBucket;

static DirectoryBucket *directory = NULL;
static uint32 nbuckets = 0;

static shmem_request_hook_type next_shmem_request = NULL;
static shmem_startup_hook_type next_shmem_startup = NULL;

/* This transaction has written to the log past evpg. */
static bool has_foreign_rows = false;

/* ------------------------------------------------------------------ start of the server */

static uint32
count_buckets(void)
{
	return (uint32) ((Size) EvpgStreamDirectorySize * 1024 / sizeof(DirectoryBucket));
}

static void
request_directory(void)
{
	if (next_shmem_request != NULL)
		next_shmem_request();
	RequestAddinShmemSpace(mul_size(count_buckets(), sizeof(DirectoryBucket)));
}

static void
attach_directory(void)
{
	bool		exists;

	if (next_shmem_startup != NULL)
		next_shmem_startup();
	nbuckets = count_buckets();
	if (nbuckets == 0)
		return;
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	directory = ShmemInitStruct("evpg streams", mul_size(nbuckets, sizeof(DirectoryBucket)), &exists);
	if (!exists)
	{
		memset(directory, 0, mul_size(nbuckets, sizeof(DirectoryBucket)));
		for (uint32 i = 0; i < nbuckets; i++)
			SpinLockInit(&directory[i].lock);
	}
	LWLockRelease(AddinShmemInitLock);
}

/* ------------------------------------------------------------------ epochs */

/*
 * EvpgStreamDirectoryEpoch
 *		Returns the epoch of this database, 0 if there is no directory for it.  Called
 *		with the lock of a stream and that of the log, before the newest event is
 *		looked for.
 */
uint64
EvpgStreamDirectoryEpoch(void)
{
	EvpgDatabase *database = directory == NULL ? NULL : EvpgShmemDatabase(false);

	return database == NULL ? 0 : pg_atomic_read_u64(&database->epoch);
}

/* Makes all entries of this database void. */
void
EvpgStreamDirectoryForget(void)
{
	EvpgDatabase *database = directory == NULL ? NULL : EvpgShmemDatabase(false);

	if (database != NULL && !EVPG_MUTATION("directory_remembers"))
		EvpgShmemBeginEpoch(database);
}

/* Makes all entries of all databases void. */
void
EvpgStreamDirectoryForgetAll(void)
{
	for (int i = 0; EvpgShmem != NULL && i < EvpgShmem->count; i++)
		EvpgShmemBeginEpoch(&EvpgShmem->databases[i]);
}

/*
 * EvpgStreamDirectoryForgetAtCommit
 *		Makes all entries of this database void now, and again before this transaction
 *		commits or is prepared: it is about to write to the log past evpg.
 */
void
EvpgStreamDirectoryForgetAtCommit(void)
{
	has_foreign_rows = true;
	EvpgStreamDirectoryForget();
}

/* Makes void what other sessions may have put since this transaction began to write past evpg: its rows are there by now. */
static void
forget_foreign_rows(XactEvent event, void *arg)
{
	if ((event == XACT_EVENT_PRE_COMMIT || event == XACT_EVENT_PRE_PREPARE) && (has_foreign_rows || IsLogicalWorker()))
		EvpgStreamDirectoryForget();
	else if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		has_foreign_rows = false;
}

/* Asks for shared memory, if the library is preloaded, and registers a callback.  Called once, from _PG_init. */
void
EvpgStreamDirectoryInit(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	next_shmem_request = shmem_request_hook;
	shmem_request_hook = request_directory;
	next_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = attach_directory;
	RegisterXactCallback(forget_foreign_rows, NULL);
}

/* ------------------------------------------------------------------ entries */

/* Fills in the key of a stream, and returns its bucket; NULL if there is no directory for it. */
static DirectoryBucket *
find_bucket(const EvpgStream *stream, DirectoryKey *key)
{
	if (directory == NULL || stream->epoch == 0)
		return NULL;
	key->epoch = stream->epoch;
	key->stream_id = stream->stream_id;
	key->database = MyDatabaseId;
	key->log = EvpgCatalogGet()->event_log;
	return &directory[hash_combine(murmurhash32((uint32) stream->stream_id ^ (uint32) (stream->stream_id >> 32)),
								   MyDatabaseId) % nbuckets];
}

/* Returns the entry of a key in its bucket, which is locked; NULL if there is none. */
static DirectoryEntry *
find_entry(DirectoryBucket *bucket, const DirectoryKey *key)
{
	for (int i = 0; i < BUCKET_ENTRIES; i++)
	{
		const DirectoryKey *other = &bucket->entries[i].key;

		if (other->stream_id == key->stream_id && other->epoch == key->epoch && other->log == key->log &&
			other->database == key->database)
			return &bucket->entries[i];
	}
	return NULL;
}

/* Returns whether what a transaction has appended is the reader's own or committed. */
static bool
has_come_to_stay(FullTransactionId transaction)
{
	TransactionId xid = XidFromFullTransactionId(transaction);

	if (!FullTransactionIdIsValid(transaction))
		return true;
	if (U64FromFullTransactionId(ReadNextFullTransactionId()) - U64FromFullTransactionId(transaction) > OLDEST_TRANSACTION)
		return false;
	if (EVPG_MUTATION("directory_trusts"))
		return true;

	/*
	 * In this order, as a snapshot does: a commit is known before it is
	 * visible.
	 */
	return TransactionIdIsCurrentTransactionId(xid) || (!TransactionIdIsInProgress(xid) && TransactionIdDidCommit(xid));
}

/*
 * EvpgStreamDirectoryFind
 *		Fills version, last position and time of *stream, given its stream_id and
 *		epoch; false, and nothing is filled, if they are not known.  The caller holds
 *		the stream's lock and has locked the log.
 */
bool
EvpgStreamDirectoryFind(EvpgStream *stream)
{
	DirectoryKey key;
	DirectoryBucket *bucket;
	DirectoryEntry *entry;
	DirectoryEntry copy = {0};

	if (has_foreign_rows || IsolationUsesXactSnapshot() || !EvpgCatalogGet()->log_is_guarded)
		return false;
	bucket = find_bucket(stream, &key);
	if (bucket == NULL)
		return false;
	SpinLockAcquire(&bucket->lock);
	entry = find_entry(bucket, &key);
	if (entry != NULL)
		copy = *entry;
	SpinLockRelease(&bucket->lock);
	if (entry == NULL || !has_come_to_stay(copy.transaction))
		return false;
	stream->version = copy.version;
	stream->last_position = copy.position;
	stream->last_recorded_at = copy.recorded_at;
	return true;
}

/*
 * EvpgStreamDirectoryPut
 *		Notes the newest event of a stream: one that was found committed, or one that
 *		this transaction is about to insert.  Locks as above.
 */
void
EvpgStreamDirectoryPut(const EvpgStream *stream, bool committed)
{
	DirectoryEntry new;
	DirectoryBucket *bucket = find_bucket(stream, &new.key);
	DirectoryEntry *entry;

	if (bucket == NULL)
		return;
	new.version = stream->version;
	new.position = stream->last_position;
	new.recorded_at = stream->last_recorded_at;
	new.transaction = committed ? InvalidFullTransactionId : GetCurrentFullTransactionId();
	SpinLockAcquire(&bucket->lock);
	entry = find_entry(bucket, &new.key);
	if (entry == NULL)
	{
		entry = &bucket->entries[bucket->next];
		bucket->next = (bucket->next + 1) % BUCKET_ENTRIES;
	}
	*entry = new;
	SpinLockRelease(&bucket->lock);
}
