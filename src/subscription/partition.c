/*-------------------------------------------------------------------------
 *
 * partition.c
 *		The partitions of a subscription: the rows of evpg.subscription_partition.
 *
 * An event belongs to a partition by a hash of its aggregate id, so a stream is in one
 * partition.  A transaction changes a partition that a lease holds only if it has
 * written the row of that lease before, and one that is free if it is still as it was
 * read.  Rows change when partitions move and when an event fails, not with each batch.
 *
 * Rows are read as they are committed now, or written by this transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "base/catalog.h"
#include "base/row.h"
#include "base/row_scan.h"
#include "base/statement.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "subscription/partition.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/timestamp.h"

/* Columns of evpg.subscription_partition, see sql/evpg--1.0.sql. */
enum
{
	PARTITION_SUBSCRIPTION, PARTITION_PARTITION, PARTITION_SLOT, PARTITION_CHECKPOINT, PARTITION_REPLAY_TO,
	PARTITION_CAUTIOUS_TO, PARTITION_ATTEMPT_POSITION, PARTITION_ATTEMPTS, PARTITION_RETRY_AT, PARTITION_NATTS
};

static EvpgStatement insert_partitions = {
	.text = "INSERT INTO evpg.subscription_partition (subscription, partition, checkpoint)"
	" SELECT $1, n, $3 FROM generate_series(0, $2 - 1) AS n",
	.types = {TEXTOID, INT4OID, INT8OID}
};

/* Inserts the partitions of a subscription, which begin after a position. */
void
EvpgPartitionCreate(const char *subscription, int partitions, int64 checkpoint)
{
	Datum		values[3] = {CStringGetTextDatum(subscription), Int32GetDatum(partitions), Int64GetDatum(checkpoint)};

	EvpgStatementExecute(&insert_partitions, values, NULL);
}

/* Fills a partition of the row in a slot, which is copied. */
static void
fill_partition(EvpgPartition *partition, TupleTableSlot *slot)
{
	const Datum *values = slot->tts_values;
	const bool *nulls = slot->tts_isnull;

	partition->slot = nulls[PARTITION_SLOT] ? EVPG_NO_SLOT : DatumGetInt32(values[PARTITION_SLOT]);
	partition->checkpoint = DatumGetInt64(values[PARTITION_CHECKPOINT]);
	partition->replay_to = nulls[PARTITION_REPLAY_TO] ? 0 : DatumGetInt64(values[PARTITION_REPLAY_TO]);
	partition->cautious_to = DatumGetInt64(values[PARTITION_CAUTIOUS_TO]);
	partition->attempt_position = DatumGetInt64(values[PARTITION_ATTEMPT_POSITION]);
	partition->attempts = DatumGetInt32(values[PARTITION_ATTEMPTS]);
	partition->retry_at = nulls[PARTITION_RETRY_AT] ? 0 : DatumGetTimestampTz(values[PARTITION_RETRY_AT]);
	partition->row = ExecCopySlotHeapTuple(slot);
}

/* Returns the partitions of a subscription, an array of so many in CurrentMemoryContext. */
EvpgPartition *
EvpgPartitionRead(const char *subscription, int partitions)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	EvpgRowScan *scan = EvpgRowScanBegin(&catalog->subscription_partition, &catalog->subscription_partition_index, true);
	EvpgPartition *result = palloc0(sizeof(EvpgPartition) * partitions);
	int			found = 0;
	ScanKeyData key;
	TupleTableSlot *slot;

	EvpgRowKeyInit(&key, 1, BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(subscription));
	EvpgRowScanTo(scan, &key, 1);
	while ((slot = EvpgRowScanNext(scan)) != NULL)
	{
		int			number = DatumGetInt32(slot->tts_values[PARTITION_PARTITION]);

		if (number < 0 || number >= partitions)
			continue;
		result[number].number = number;
		fill_partition(&result[number], slot);
		found++;
	}
	EvpgRowScanEnd(scan);
	if (found != partitions)
		elog(ERROR, "subscription \"%s\" has %d partitions instead of %d", subscription, found, partitions);
	return result;
}

/* Returns whether the row of a partition is as it was read, and no transaction has locked it now. */
bool
EvpgPartitionIsFree(const EvpgPartition *partition)
{
	return EvpgRowIsFree(&EvpgCatalogGet()->subscription_partition, partition->row);
}

/*
 * EvpgPartitionTryWrite
 *		Writes a partition.  Returns false, and writes nothing, if its row is not as it was
 *		read, or if another transaction has locked it; never waits.  It must be read again
 *		before it is written once more.
 */
bool
EvpgPartitionTryWrite(const EvpgPartition *partition)
{
	const EvpgCatalog *catalog = EvpgCatalogGet();
	EvpgRowWriter *writer = EvpgRowWriterBegin(&catalog->subscription_partition, &catalog->subscription_partition_row);
	Datum		values[PARTITION_NATTS] = {
		[PARTITION_SLOT] = Int32GetDatum(partition->slot),
		[PARTITION_CHECKPOINT] = Int64GetDatum(partition->checkpoint),
		[PARTITION_REPLAY_TO] = Int64GetDatum(partition->replay_to),
		[PARTITION_CAUTIOUS_TO] = Int64GetDatum(partition->cautious_to),
		[PARTITION_ATTEMPT_POSITION] = Int64GetDatum(partition->attempt_position),
		[PARTITION_ATTEMPTS] = Int32GetDatum(partition->attempts),
		[PARTITION_RETRY_AT] = TimestampTzGetDatum(partition->retry_at)
	};
	bool		nulls[PARTITION_NATTS] = {
		[PARTITION_SLOT] = partition->slot == EVPG_NO_SLOT,
		[PARTITION_REPLAY_TO] = partition->replay_to == 0,
		[PARTITION_RETRY_AT] = partition->retry_at == 0
	};
	bool		replaced[PARTITION_NATTS];
	bool		written;

	memset(replaced, true, sizeof(replaced));
	replaced[PARTITION_SUBSCRIPTION] = replaced[PARTITION_PARTITION] = false;
	written = EvpgRowTryLock(writer, partition->row) &&
		EvpgRowTryReplace(writer, partition->row, values, nulls, replaced, false);
	EvpgRowWriterEnd(writer);
	return written;
}

/* Writes a partition whose lease this transaction has written, so that no other can have changed it. */
void
EvpgPartitionWrite(const EvpgPartition *partition)
{
	if (!EvpgPartitionTryWrite(partition))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("partition %d of a subscription was changed by another transaction", partition->number),
				 errhint("Retry the transaction.")));
}
