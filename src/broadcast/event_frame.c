/*-------------------------------------------------------------------------
 *
 * event_frame.c
 *		Channels and frames of events (rule 14).
 *
 * The frame of an event goes to the channel of its stream, to that of its
 * aggregate type and to that of all events, on the way of all frames: when the
 * transaction has committed, never for what was rolled back, those of a stream
 * in the order of its versions.  A stream beyond evpg.max_stream_locks has no
 * lock when the transaction ends, so its frames may come after those of a later
 * transaction.  The version in the frame tells, and a receiver reads the stream
 * on a gap as after a loss.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/settings.h"
#include "broadcast/event_frame.h"
#include "broadcast/frame_ring.h"
#include "commands/async.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"

PG_FUNCTION_INFO_V1(evpg_event_channel);
PG_FUNCTION_INFO_V1(evpg_listen_events);
PG_FUNCTION_INFO_V1(evpg_unlisten_events);

/* The channel of all events, and what the names of the others begin with. */
#define EVENTS_CHANNEL "events"

/* Returns the name of the channel of a stream, of an aggregate type (id NULL), or of all events (both NULL). */
static char *
make_event_channel(const char *aggregate_type, const char *aggregate_id)
{
	if (aggregate_type == NULL)
		return EVENTS_CHANNEL;
	return EvpgBroadcastShortenChannel(EVENTS_CHANNEL,
									   aggregate_id == NULL ? psprintf(EVENTS_CHANNEL ".%s", aggregate_type) :
									   psprintf(EVENTS_CHANNEL ".%s.%s", aggregate_type, aggregate_id));
}

/* Adds a member of text to an object; nothing if it is NULL. */
static void
append_member(StringInfo text, const char *name, const char *value)
{
	if (value == NULL)
		return;
	appendStringInfo(text, ", \"%s\": ", name);
	escape_json(text, value);
}

/*
 * Makes the JSON text of a frame; data only if it is asked for and fits.  What
 * remains fits in any case: ids and names are short (base/arguments.h).
 */
static char *
make_event_frame(const EvpgEvent *event, bool with_data)
{
	const char *event_id = EvpgUuidText(&event->event_id);
	StringInfoData text;
	int			start;

	initStringInfo(&text);
	appendStringInfoString(&text, "{\"event\": ");
	escape_json(&text, event->type);
	append_member(&text, "aggregate_type", event->aggregate_type);
	append_member(&text, "aggregate_id", event->aggregate_id);
	append_member(&text, "origin", EvpgOrigin[0] == '\0' ? NULL : EvpgOrigin);
	appendStringInfo(&text, ", \"version\": " INT64_FORMAT ", \"position\": " INT64_FORMAT, event->version, event->position);
	append_member(&text, "event_id", event_id);
	append_member(&text, "command_id", event->command_id);
	append_member(&text, "correlation_id", event->correlation_id != NULL ? event->correlation_id : event_id);
	start = text.len;
	if (with_data)
	{
		appendStringInfo(&text, ", \"schema_version\": %d, \"data\": ", event->schema_version);
		if (event->data == NULL)
			appendStringInfoString(&text, "null");
		else
			(void) JsonbToCString(&text, &event->data->root, VARSIZE_ANY(event->data));
		if (text.len + 1 > EVPG_MAX_FRAME)
		{
			text.len = start;
			appendStringInfoString(&text, ", \"truncated\": true");
		}
	}
	appendStringInfoChar(&text, '}');
	return text.data;
}

/*
 * EvpgEventFramesSend
 *		Sends a frame for each of these events at commit, unless evpg.broadcast
 *		or the registration of their aggregate type says none.  They belong to one
 *		stream and have just been appended; the caller holds its lock.
 */
void
EvpgEventFramesSend(const EvpgEvent *events, int count, EvpgBroadcast how)
{
	const char *channels[EVPG_FRAME_CHANNELS];

	if (how == EVPG_BROADCAST_NONE || EvpgBroadcastBy == EVPG_FRAMES_OFF)
		return;
	channels[0] = make_event_channel(events->aggregate_type, events->aggregate_id);
	channels[1] = make_event_channel(events->aggregate_type, NULL);
	channels[2] = make_event_channel(NULL, NULL);
	for (int i = 0; i < count; i++)
	{
		char	   *text = make_event_frame(&events[i], how == EVPG_BROADCAST_DELTA);

		EvpgBroadcastText(text, channels, lengthof(channels));
		pfree(text);
		CHECK_FOR_INTERRUPTS();
	}
}

/* ------------------------------------------------------------------ SQL */

/* Returns the channel that the arguments name: of a stream, of an aggregate type, or of all events. */
static char *
make_event_channel_from_arguments(FunctionCallInfo fcinfo)
{
	char	   *aggregate_type = NULL;

	if (!PG_ARGISNULL(0))
	{
		aggregate_type = EvpgArgName(fcinfo, 0, "aggregate type");
		EvpgCheckNewName(aggregate_type, "aggregate type");
	}
	else if (!PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("aggregate type must not be null if aggregate id is given"),
				 errhint("There is a channel of a stream, of an aggregate type, and of all events.")));
	return make_event_channel(aggregate_type, PG_ARGISNULL(1) ? NULL : EvpgArgId(fcinfo, 1, "aggregate id"));
}

/* SQL: evpg_event_channel(aggregate_type, aggregate_id).  Returns the name of a channel. */
Datum
evpg_event_channel(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(make_event_channel_from_arguments(fcinfo)));
}

/* SQL: evpg_listen_events(aggregate_type, aggregate_id).  Listens as evpg_listen does.  Returns the name of the channel. */
Datum
evpg_listen_events(PG_FUNCTION_ARGS)
{
	char	   *channel = make_event_channel_from_arguments(fcinfo);

	EvpgBroadcastListen(channel, "evpg_listen_events()");
	PG_RETURN_TEXT_P(cstring_to_text(channel));
}

/* SQL: evpg_unlisten_events(aggregate_type, aggregate_id).  Ends what evpg_listen_events began.  Returns the channel. */
Datum
evpg_unlisten_events(PG_FUNCTION_ARGS)
{
	char	   *channel = make_event_channel_from_arguments(fcinfo);

	Async_Unlisten(channel);
	PG_RETURN_TEXT_P(cstring_to_text(channel));
}
