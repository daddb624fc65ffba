/*-------------------------------------------------------------------------
 *
 * log_row.c
 *		Reads the columns of a row of the log.
 *
 * The server takes a row apart column by column, by the descriptor of its table.
 * What evpg.event_log is like is known here: its first columns are of fixed length and
 * never NULL, so they are a struct, as those of a system catalog are; all others have a
 * length of their own.  catalog.c has checked that the table is like that (shape.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tupmacs.h"
#include "log/log_columns.h"
#include "log/log_row.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

/* The columns up to LOG_TYPE, as they are stored. */
typedef struct LogRow
{
	int64		position;
	int64		stream_id;
	int64		version;
	TimestampTz occurred_at;
	TimestampTz recorded_at;
	pg_uuid_t	event_id;
	int32		schema_version;
	char		others[FLEXIBLE_ARRAY_MEMBER];
} LogRow;

/* The bits of the columns up to LOG_TYPE, which is never NULL either, in the first byte of a bitmap. */
#define NEVER_NULL ((1 << (LOG_TYPE + 1)) - 1)

/* Returns whether a row has the columns that it should have, and values where NULL is not allowed. */
static bool
is_plain_row(const HeapTupleHeaderData *row)
{
	return HeapTupleHeaderGetNatts(row) >= LOG_NATTS &&
		(!(row->t_infomask & HEAP_HASNULL) || (row->t_bits[0] & NEVER_NULL) == NEVER_NULL);
}

/* Fills values of the slot, whose row is plain. */
static void
read_plain_row(TupleTableSlot *slot, HeapTupleHeader row)
{
	char	   *start = (char *) row + row->t_hoff;
	LogRow	   *fixed = (LogRow *) start;
	bool		has_nulls = (row->t_infomask & HEAP_HASNULL) != 0;
	uint32		offset = offsetof(LogRow, others);
	Datum	   *values = slot->tts_values;

	memset(slot->tts_isnull, false, sizeof(bool) * LOG_NATTS);
	values[LOG_POSITION] = Int64GetDatum(fixed->position);
	values[LOG_STREAM_ID] = Int64GetDatum(fixed->stream_id);
	values[LOG_VERSION] = Int64GetDatum(fixed->version);
	values[LOG_OCCURRED_AT] = TimestampTzGetDatum(fixed->occurred_at);
	values[LOG_RECORDED_AT] = TimestampTzGetDatum(fixed->recorded_at);
	values[LOG_EVENT_ID] = UUIDPGetDatum(&fixed->event_id);
	values[LOG_SCHEMA_VERSION] = Int32GetDatum(fixed->schema_version);
	for (int column = LOG_TYPE; column < LOG_NATTS; column++)
	{
		if (has_nulls && att_isnull(column, row->t_bits))
		{
			values[column] = (Datum) 0;
			slot->tts_isnull[column] = true;
			continue;
		}
		offset = att_align_pointer(offset, TYPALIGN_INT, -1, start + offset);
		values[column] = PointerGetDatum(start + offset);
		offset = att_addlength_pointer(offset, -1, start + offset);
	}
	/* Where the server would go on. */
	((HeapTupleTableSlot *) slot)->off = offset;
	slot->tts_flags |= TTS_FLAG_SLOW;
	slot->tts_nvalid = LOG_NATTS;
}

/*
 * EvpgLogRowRead
 *		Fills tts_values and tts_isnull of a slot that has a row of the log, as
 *		slot_getsomeattrs does for all LOG_NATTS columns.
 */
void
EvpgLogRowRead(TupleTableSlot *slot)
{
	if (slot->tts_nvalid == 0 && TTS_IS_BUFFERTUPLE(slot))
	{
		HeapTupleHeader row = ((HeapTupleTableSlot *) slot)->tuple->t_data;

		if (is_plain_row(row))
		{
			read_plain_row(slot, row);
			return;
		}
	}
	slot_getsomeattrs(slot, LOG_NATTS);
}
