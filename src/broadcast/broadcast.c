/*-------------------------------------------------------------------------
 *
 * broadcast.c
 *		Channels and frames: what listeners get of projections (rule 14), and how
 *		any frame is sent; frames of events are made in event_frame.c.
 *
 * A frame of a projection goes to the channel of its key and to that of its projection, when
 * the transaction has committed, and never for what was rolled back, to a
 * savepoint too; frames of a key in the order of the commits.  With the library
 * preloaded a background process sends them (frame_ring.c, rule 15), else the
 * transaction itself with NOTIFY.  A transaction with frames cannot be prepared.
 *
 * NOTIFY has no access control, so by default a frame names what to read; data
 * is only sent if a projection is registered with delta.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/arguments.h"
#include "base/settings.h"
#include "base/sha256.h"
#include "broadcast/broadcast.h"
#include "broadcast/frame_ring.h"
#include "commands/async.h"
#include "lib/stringinfo.h"
#include "log/durable.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/json.h"

PG_FUNCTION_INFO_V1(evpg_channel);
PG_FUNCTION_INFO_V1(evpg_listen);
PG_FUNCTION_INFO_V1(evpg_unlisten);

/* Returns the kind of broadcast that a registration names; raises 22023 if there is none of that name. */
EvpgBroadcast
EvpgBroadcastFromName(const char *name)
{
	if (strcmp(name, "none") == 0)
		return EVPG_BROADCAST_NONE;
	if (strcmp(name, "pointer") == 0)
		return EVPG_BROADCAST_POINTER;
	if (strcmp(name, "delta") == 0)
		return EVPG_BROADCAST_DELTA;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown broadcast \"%s\"", name),
			 errhint("Use none, pointer or delta.")));
}

/*
 * EvpgBroadcastShortenChannel
 *		Returns a channel that begins with prefix and a dot, or, if its name is too
 *		long for NOTIFY, one of the same prefix with a hash of it, always the same,
 *		in CurrentMemoryContext.
 */
char *
EvpgBroadcastShortenChannel(const char *prefix, char *channel)
{
	EvpgSha256 *hash;

	if (strlen(channel) < NAMEDATALEN)
		return channel;
	hash = EvpgSha256Begin();
	EvpgSha256Add(hash, channel, strlen(channel));
	return psprintf("%s.#%.40s", prefix, EvpgSha256EndHex(hash));
}

/* Returns the name of the channel of a key, or of all keys of a projection if key is NULL, in CurrentMemoryContext. */
char *
EvpgBroadcastChannel(const char *projection, const char *key)
{
	return EvpgBroadcastShortenChannel("projection", key == NULL ? psprintf("projection.%s", projection) :
									   psprintf("projection.%s.%s", projection, key));
}

/* Makes the JSON text of a frame. */
static char *
make_frame_text(const EvpgFrame *frame, bool truncated)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, "{\"event\": ");
	escape_json(&text, frame->event);
	appendStringInfoString(&text, ", \"projection\": ");
	escape_json(&text, frame->projection);
	appendStringInfoString(&text, ", \"key\": ");
	escape_json(&text, frame->key);
	if (EvpgOrigin[0] != '\0')
	{
		appendStringInfoString(&text, ", \"origin\": ");
		escape_json(&text, EvpgOrigin);
	}
	appendStringInfo(&text, ", \"generation\": %d, \"version\": " INT64_FORMAT ", \"position\": " INT64_FORMAT,
					 frame->generation, frame->version, frame->position);
	if (frame->deleted)
		appendStringInfoString(&text, ", \"deleted\": true");
	if (truncated)
		appendStringInfoString(&text, ", \"truncated\": true");
	else if (frame->with_data)
	{
		appendStringInfoString(&text, ", \"data\": ");
		if (frame->data == NULL)
			appendStringInfoString(&text, "null");
		else
			(void) JsonbToCString(&text, &frame->data->root, VARSIZE_ANY(frame->data));
	}
	appendStringInfoChar(&text, '}');
	return text.data;
}

/* Sends a text to up to EVPG_FRAME_CHANNELS channels at commit, through the ring or by NOTIFY.  It is copied. */
void
EvpgBroadcastText(const char *text, const char *const *channels, int nchannels)
{
	if (EvpgFrameRingPrepare())
	{
		EvpgFrameRingAdd(text, channels, nchannels);
		return;
	}
	EvpgDurableNoteNotify();
	for (int i = 0; i < nchannels; i++)
		Async_Notify(channels[i], text);
}

/*
 * EvpgBroadcastSend
 *		Sends a frame at commit, unless evpg.broadcast is off; data that is too
 *		long is left out.  The caller holds the lock of the key, which keeps the
 *		frames of a key in order.
 */
void
EvpgBroadcastSend(const EvpgFrame *frame)
{
	const char *channels[2];
	char	   *text;

	if (EvpgBroadcastBy == EVPG_FRAMES_OFF)
		return;
	text = make_frame_text(frame, frame->truncated);
	if (strlen(text) > EVPG_MAX_FRAME)
		text = make_frame_text(frame, true);
	channels[0] = EvpgBroadcastChannel(frame->projection, frame->key);
	channels[1] = EvpgBroadcastChannel(frame->projection, NULL);
	EvpgBroadcastText(text, channels, lengthof(channels));
}

/*
 * EvpgBroadcastSendRebuilt
 *		Announces at commit that all rows of a projection are new: on the
 *		projection's channel, and on evpg.resync, since listeners to single keys
 *		do not hear the former.
 */
void
EvpgBroadcastSendRebuilt(const char *projection, int64 position)
{
	const char *channels[2] = {EvpgBroadcastChannel(projection, NULL), EVPG_RESYNC_CHANNEL};
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, "{\"event\": \"rebuild\", \"projection\": ");
	escape_json(&text, projection);
	appendStringInfo(&text, ", \"position\": " INT64_FORMAT "}", position);
	if (EvpgBroadcastBy != EVPG_FRAMES_OFF)
		EvpgBroadcastText(text.data, channels, lengthof(channels));
}

/* ------------------------------------------------------------------ SQL */

/* Returns the channel that the arguments name: of a projection, of one of its keys, or evpg.resync. */
static char *
make_channel_from_arguments(FunctionCallInfo fcinfo)
{
	char	   *name = EvpgArgName(fcinfo, 0, "projection name");

	/* No projection has such a name. */
	if (PG_ARGISNULL(1) && strcmp(name, EVPG_RESYNC_CHANNEL) == 0)
		return name;
	EvpgCheckNewName(name, "projection name");
	return EvpgBroadcastChannel(name, PG_ARGISNULL(1) ? NULL : EvpgArgKey(fcinfo, 1));
}

/* SQL: evpg_channel(projection, key).  Returns the name of a channel. */
Datum
evpg_channel(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(make_channel_from_arguments(fcinfo)));
}

/*
 * EvpgBroadcastListen
 *		Listens to a channel as LISTEN does, which takes no parameter; raises the
 *		same errors, in the name of an SQL function.
 */
void
EvpgBroadcastListen(const char *channel, const char *function)
{
	PreventCommandDuringRecovery(function);
	if (InSecurityRestrictedOperation())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot execute %s within security-restricted operation", function)));
	if (MyBackendType != B_BACKEND)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot execute %s within a background process", function)));
	Async_Listen(channel);
}

/* SQL: evpg_listen(projection, key).  Listens to a channel.  Returns its name. */
Datum
evpg_listen(PG_FUNCTION_ARGS)
{
	char	   *channel = make_channel_from_arguments(fcinfo);

	EvpgBroadcastListen(channel, "evpg_listen()");
	PG_RETURN_TEXT_P(cstring_to_text(channel));
}

/* SQL: evpg_unlisten(projection, key).  Ends what evpg_listen began.  Returns the name of the channel. */
Datum
evpg_unlisten(PG_FUNCTION_ARGS)
{
	char	   *channel = make_channel_from_arguments(fcinfo);

	Async_Unlisten(channel);
	PG_RETURN_TEXT_P(cstring_to_text(channel));
}
