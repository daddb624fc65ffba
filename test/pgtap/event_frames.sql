-- event_frames.sql: what a second connection hears of events (rule 14).

\ir include/setup.sql
-- rebuilds are for READ COMMITTED
SET default_transaction_isolation = 'read committed';
-- some of the text has characters of more than one byte
SET client_encoding = 'UTF8';
\ir include/counter.sql
\ir include/listener.sql

SELECT plan(95);

-- ------------------------------------------------------------------ channels

SELECT is(evpg_event_channel(), 'events', 'one channel is that of all events [rule 14, D01]');
SELECT is(evpg_event_channel(NULL, NULL), 'events', 'NULLs name the channel of all events [rule 14]');
SELECT is(evpg_event_channel('counter'), 'events.counter', 'an aggregate type has a channel [rule 14, D01]');
SELECT is(evpg_event_channel('counter', 'a b"c'), 'events.counter.a b"c', 'a stream has a channel [rule 14, D01]');
SELECT is(evpg_event_channel('p', repeat('k', 54)), 'events.p.' || repeat('k', 54), '63 bytes are as they are [rule 14]');
SELECT is(evpg_event_channel('p', repeat('k', 55)), 'events.#' ||
  left(encode(sha256(convert_to('events.p.' || repeat('k', 55), 'UTF8')), 'hex'), 40), '64 bytes are hashed [rule 14]');
SELECT is(evpg_event_channel('p', repeat('€', 20)), 'events.#' ||
  left(encode(sha256(convert_to('events.p.' || repeat('€', 20), 'UTF8')), 'hex'), 40),
  'bytes count for the length of a channel, not characters [rule 14]');
SELECT is((SELECT count(DISTINCT evpg_event_channel('p', repeat('k', 60) || n)) FROM generate_series(1, 1000) n),
  1000::bigint, 'different streams have different channels [rule 14]');
SELECT is(evpg_event_channel('not registered', 'a'), 'events.not registered.a',
  'a channel exists before the type is registered [rule 14]');
SELECT refused(format('SELECT %s(%s)', f, arguments), error, f || ' ' || arguments || ' [rule 14]')
  FROM unnest('{evpg_event_channel,evpg_listen_events,evpg_unlisten_events}'::text[]) f,
  (VALUES ($$NULL, 'a'$$, '22004 aggregate type must not be null if aggregate id is given'),
    ($$''$$, '22023 aggregate type must not be empty'), ($$'counter', ''$$, '22023 aggregate id must not be empty'),
    ($$repeat('p', 256)$$, 'VE014 aggregate type is too long'),
    ($$'p', repeat('k', 1025)$$, 'VE014 aggregate id is too long'),
    ($$'evpg.own'$$, 'VE017 aggregate type "evpg.own" is reserved'),
    ($$'p', E'k\n'$$, '22023 aggregate id contains a control character')) x (arguments, error);

-- ------------------------------------------------------------------ listening

SELECT is(evpg_listen_events('counter', 'a'), 'events.counter.a',
  'evpg_listen_events() returns the channel of a stream [rule 14]');
SELECT is(evpg_listen_events(), 'events', 'evpg_listen_events() without arguments listens to all events [rule 14]');
SELECT is((SELECT array_agg(c ORDER BY c) FROM pg_listening_channels() c), '{events,events.counter.a}',
  'the session listens to the two [rule 14]');
SELECT is(evpg_unlisten_events('counter', 'a'), 'events.counter.a',
  'evpg_unlisten_events() returns the channel of a stream [rule 14]');
SELECT is((SELECT array_agg(c ORDER BY c) FROM pg_listening_channels() c), '{events}',
  'the session no longer listens to what it has left [rule 14]');
BEGIN;
SELECT evpg_listen_events('counter') \g /dev/null
ROLLBACK;
SELECT is((SELECT array_agg(c ORDER BY c) FROM pg_listening_channels() c), '{events}',
  'ROLLBACK ends what evpg_listen_events() began [rule 14]');
UNLISTEN *;

-- ------------------------------------------------------------------ frames

CREATE FUNCTION test.listen_events(type text DEFAULT NULL, id text DEFAULT NULL) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT * FROM dblink('listener', format('SELECT evpg_listen_events(%L, %L)', type, id)) x (channel text) $$;
-- "type id version data" of what has come on a channel
CREATE FUNCTION test.heard_events(of_channel text DEFAULT 'events') RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(string_agg(concat_ws(' ', f->>'event', f->>'aggregate_id', f->>'version', f->>'data',
    CASE WHEN f ? 'truncated' THEN 'truncated' END), ', ' ORDER BY n), '')
    FROM (SELECT n, frame::jsonb AS f FROM frames() WHERE channel = of_channel) x $$;
CREATE FUNCTION test.register(broadcast text) RETURNS boolean LANGUAGE sql VOLATILE AS $$
  SELECT evpg_register_aggregate('counter', handler => 'test.counter_handle', reducer => 'test.counter_apply',
    invariant => 'test.counter_invariant', initial_state => '{"total": 0, "applied": 0}', broadcast => broadcast) $$;
CREATE FUNCTION test.add(id text, n int) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT position FROM evpg_execute('counter', id, 'Add', jsonb_build_object('n', n)) $$;
CREATE FUNCTION test.put(id text, events text) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT count(*) FROM evpg_append('counter', id, evpg_events(events::jsonb)) $$;

SELECT listen_events(), listen_events('counter'), listen_events('counter', 'a') \g /dev/null
SELECT add('a', 1) \g /dev/null
SELECT is((SELECT count(*) FROM frames()), 0::bigint, 'a type is silent if its registration does not name a broadcast');
SELECT ok(register('pointer'), 'a registration with another broadcast is a change');
SELECT is(register('pointer'), false, 'a registration with the same broadcast is none');
SELECT is((SELECT count(*) FROM frames()), 0::bigint, 'a registration sends nothing [rule 14]');
SELECT position, event_id, correlation_id
  FROM evpg_execute('counter', 'a', 'Add', '{"n": 2}', command_id => 'c "1"', correlation_id => 'corr') \gset
SELECT format(E'{"event": "Added", "aggregate_type": "counter", "aggregate_id": "a", "version": 2, "position": %s, '
  '"event_id": "%s", "command_id": "c \\"1\\"", "correlation_id": "corr"}', :position, :'event_id') AS frame \gset
SELECT same('SELECT channel, frame FROM frames() ORDER BY n', format(
  $$VALUES ('events.counter.a', %1$L), ('events.counter', %1$L), ('events', %1$L)$$, :'frame'),
  'pointer: a frame without data goes to the channels of the stream, of its type and of all [rule 14, D01]');
SELECT is((SELECT state FROM evpg_state('counter', 'a')), '{"total": 3, "applied": 2}',
  'the state is as before the broadcast was changed [rule 6]');
SELECT position, event_id FROM evpg_execute('counter', 'b', 'Add', '{"n": 2}') \gset
SELECT same('SELECT channel, frame FROM frames() ORDER BY n', format(
  $$SELECT c, '{"event": "Added", "aggregate_type": "counter", "aggregate_id": "b", "version": 1, "position": %s, '
    '"event_id": "%s", "correlation_id": "%2$s"}' FROM unnest('{events.counter,events}'::text[]) c$$,
  :position, :'event_id'),
  'an event without command id and correlation id is correlated by its own id; the channel of another stream is silent '
  '[rule 14, D01]');
SET evpg.origin = 'here "1"';
SELECT add('a', 1) \g /dev/null
SELECT is((SELECT frame::jsonb->>'origin' FROM frames() LIMIT 1), 'here "1"', 'a frame names its origin [rule 14]');
RESET evpg.origin;

SELECT register('delta') \g /dev/null
SELECT add('a', 1) \g /dev/null
SELECT is(heard_events(), 'Added a 4 {"n": 1}', 'delta: a frame has the data of its event [rule 14, D01]');
SELECT put('a', '[{"type": "Odd", "schema_version": 7}]') \g /dev/null
SELECT same($$SELECT frame::jsonb->'data', frame::jsonb->'schema_version' FROM frames() WHERE channel = 'events'$$,
  $$VALUES ('null'::jsonb, '7'::jsonb)$$, 'delta: an event without data has null, and each its schema version [rule 14]');
SELECT put('e', '[{"type": "Added", "data": {"n": 1}}, {"type": "Added", "data": {"n": 1}}]') \g /dev/null
SELECT is(heard_events(), 'Added e 1 {"n": 1}, Added e 2 {"n": 1}',
  'each event of a call has a frame, equal events too, in the order of versions [rule 14]');
SELECT count(*) FROM evpg_inject('counter', 'i', evpg_event('Added', '{"n": 5}')) \g /dev/null
SELECT is(heard_events(), 'Added i 1 {"n": 5}', 'an injected event has a frame [rule 14]');
SELECT count(*) FROM evpg_append_many(ARRAY[evpg_stream_append('counter', 'm1', evpg_events('{"type": "Added", "data": 1}')),
  evpg_stream_append('counter', 'm2', evpg_events('{"type": "Added", "data": 2}')), evpg_stream_append('counter', 'm3'),
  evpg_stream_append('counter', 'm1', evpg_events('{"type": "Added", "data": 3}'))]) \g /dev/null
SELECT is(heard_events(), 'Added m1 1 1, Added m2 1 2, Added m1 2 3',
  'events that one call appends to several streams have frames in the order of positions [rule 14, rule 23]');
SELECT count(*) FROM evpg_execute_many(ARRAY[evpg_command('counter', 'm3', 'Add', '{"n": 1}'),
  evpg_command('counter', 'm4', 'Subtract', '{"n": 1}')]) \g /dev/null
SELECT is(heard_events(), '', 'commands that are undone because another one was refused have none [rule 14, rule 23]');
SELECT count(*) FROM evpg_create_stream('counter', 'empty') \g /dev/null
SELECT is(heard_events(), '', 'a stream without events has none [rule 14]');

BEGIN;
SELECT add('o', 1), add('p', 2) \g /dev/null
SELECT add('o', 3) \g /dev/null
SELECT is(heard_events(), '', 'nothing is heard before the commit [rule 14, D03]');
COMMIT;
SELECT is(heard_events(), 'Added o 1 {"n": 1}, Added p 1 {"n": 2}, Added o 2 {"n": 3}',
  'frames of a transaction are in the order of its commands [rule 14]');
BEGIN;
SELECT add('o', 4) \g /dev/null
ROLLBACK;
SELECT is(heard_events(), '', 'nothing is sent for what is rolled back [rule 14]');
BEGIN;
SELECT add('o', 5) \g /dev/null
SAVEPOINT s;
SELECT add('o', 6) \g /dev/null
ROLLBACK TO s;
SELECT add('o', 7) \g /dev/null
COMMIT;
SELECT is(heard_events(), 'Added o 3 {"n": 5}, Added o 4 {"n": 7}',
  'nothing is sent for what is rolled back to a savepoint [rule 14]');
SELECT error_of($$SELECT evpg_execute('counter', 'o', 'Subtract', '{"n": 1000}')$$),
  evpg_try_execute('counter', 'o', 'Subtract', '{"n": 1000}'), evpg_try_execute('counter', 'o', 'Nothing'),
  evpg_try_execute('counter', 'o', 'Add', '{"n": 1}', 77),
  evpg_try_execute('counter', 'o', 'Add', '{"n": 100000}') \g /dev/null
SELECT is(heard_events(), '', 'nothing is sent for a rejection, a no-op, a conflict and a failed invariant [rule 5]');
SELECT evpg_try_execute('counter', 'o', 'Add', '{"n": 1}', command_id => 'once') \g /dev/null
SELECT is(heard_events(), 'Added o 5 {"n": 1}', 'a command by evpg_try_execute() has a frame [rule 14]');
SELECT evpg_try_execute('counter', 'o', 'Add', '{"n": 1}', command_id => 'once') \g /dev/null
SELECT is(heard_events(), '', 'nothing is sent for a duplicate [rule 4]');
SET evpg.broadcast = off;
SELECT add('o', 1) \g /dev/null
SELECT is(heard_events(), '', 'nothing is sent while evpg.broadcast is off [rule 15]');
RESET evpg.broadcast;

-- with a projection: its frames come first, as it is applied before
CREATE FUNCTION test.count_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT state $$;
SELECT evpg_register_projection('counts', 'test.count_apply', aggregate_types => '{counter}'),
  listen('counts') \g /dev/null
SELECT add('o', 1) \g /dev/null
SELECT is((SELECT string_agg(channel, ' ' ORDER BY n) FROM frames()), 'projection.counts events.counter events',
  'the frame of a projection comes before that of its event [rule 14]');
SELECT evpg_rebuild_projection('counts') \g /dev/null
SELECT is((SELECT count(*) FROM frames() WHERE channel LIKE 'events%'), 0::bigint,
  'a rebuild sends no event again [rule 13]');
SELECT evpg_drop_projection('counts') \g /dev/null

-- what an inline saga appends is heard like the events of any command
CREATE FUNCTION test.echo(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction('{}', CASE WHEN event.aggregate_id = 'shout' THEN
    evpg_action_send('counter', 'echo', 'Add', '{"n": 1}') END) $$;
SELECT evpg_register_saga('echo', 'test.echo', event_types => '{Added}', mode => 'inline') \g /dev/null
SELECT add('shout', 2) \g /dev/null
SELECT is(heard_events(), 'Added shout 1 {"n": 2}, Added echo 1 {"n": 1}',
  'the events of an inline saga have frames, after the event to which it reacts [rule 14]');
SELECT evpg_drop_saga('echo') \g /dev/null

-- size
SELECT put('l', format('[{"type": "T", "data": %s}]', to_jsonb(repeat('x', 1)))) \g /dev/null
SELECT octet_length(frame) - 1 AS overhead FROM frames() WHERE channel = 'events' \gset
SELECT put('m', format('[{"type": "T", "data": %s}]', to_jsonb(repeat('x', 7999 - :overhead)))) \g /dev/null
SELECT same($$SELECT octet_length(frame), frame::jsonb ? 'truncated' FROM frames() WHERE channel = 'events'$$,
  'VALUES (7999, false)', 'a frame has up to 7,999 bytes [rule 14]');
SELECT put('n', format('[{"type": "T", "data": %s}]', to_jsonb(repeat('x', 8000 - :overhead)))) \g /dev/null
SELECT same($$SELECT f->>'truncated', f ? 'data', f ? 'schema_version', f->>'aggregate_id'
  FROM (SELECT frame::jsonb f FROM frames() WHERE channel = 'events') x$$, $$VALUES ('true', false, false, 'n')$$,
  'one byte more, and the frame names the event without its data [rule 14]');
SELECT put('l', format('[{"type": "T", "data": %s}]', to_jsonb(repeat('€', 3000)))) \g /dev/null
SELECT is(heard_events(), 'T l 2 truncated', 'bytes count for the size of a frame, not characters [rule 14]');
SELECT evpg_register_aggregate(repeat(E'\\"', 127), broadcast => 'delta'), listen_events(repeat(E'\\"', 127)) \g /dev/null
SELECT count(*) FROM evpg_append(repeat(E'\\"', 127), repeat(E'\\"', 512),
  ARRAY[evpg_event(repeat(E'\\"', 127), '{"n": 1}')],
  command_id => repeat(E'\\"', 512), correlation_id => repeat(E'\\"', 512)) \g /dev/null
SELECT same($$SELECT octet_length(frame) <= 7999, f->>'event', f->>'aggregate_type', f->>'aggregate_id', f->>'command_id',
  f->>'correlation_id', f->>'truncated'
  FROM (SELECT frame, frame::jsonb f FROM frames() WHERE channel LIKE 'events.#%') x$$,
  format('VALUES (true, %1$L, %1$L, %2$L, %2$L, %2$L, NULL)', repeat(E'\\"', 127), repeat(E'\\"', 512)),
  'the longest names and ids fit into a frame, on a hashed channel [rule 14]');

SELECT register('none') \g /dev/null
SELECT add('o', 1) \g /dev/null
SELECT is((SELECT count(*) FROM frames()), 0::bigint, 'none: the type is silent again [rule 14]');

-- ------------------------------------------------------------------ bad input

SELECT refused($$SELECT register('all')$$, '22023 unknown broadcast "all"', 'an unknown broadcast is refused');
SELECT refused($$SELECT register(NULL)$$, '22004 broadcast must not be null', 'a broadcast of NULL is refused');
SELECT is((SELECT broadcast FROM evpg.aggregate_type WHERE aggregate_type = 'counter'), 'none',
  'a refused registration changes nothing');

-- ------------------------------------------------------------------ PREPARE TRANSACTION

SELECT dblink_disconnect('listener') \g /dev/null
BEGIN;
SELECT add('prepared', 1) \g /dev/null
PREPARE TRANSACTION 'frames';
COMMIT PREPARED 'frames';
SELECT is((SELECT version FROM evpg_state('counter', 'prepared')), 1::bigint,
  'a transaction without frames can be prepared [rule 15]');
SELECT register('pointer') \g /dev/null
BEGIN;
SET LOCAL evpg.broadcast = off;
SELECT add('prepared', 1) \g /dev/null
PREPARE TRANSACTION 'frames';
COMMIT PREPARED 'frames';
SELECT is((SELECT version FROM evpg_state('counter', 'prepared')), 2::bigint,
  'a transaction can be prepared with evpg.broadcast off [rule 15]');
SELECT * FROM finish();
