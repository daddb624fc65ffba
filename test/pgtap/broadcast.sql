-- broadcast.sql: names of channels, and what a second connection hears (rule 14).

\ir include/setup.sql
-- rebuilds are for READ COMMITTED
SET default_transaction_isolation = 'read committed';
-- some of the text has characters of more than one byte
SET client_encoding = 'UTF8';
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql

SELECT plan(120);
SET test.kind = counter;

-- ------------------------------------------------------------------ channels

SELECT is(evpg_channel('evpg.resync'), 'evpg.resync', 'the channel for all listeners is one by itself [rule 14]');
SELECT is(error_of($$SELECT evpg_channel('evpg.other')$$), 'VE017 projection name "evpg.other" is reserved',
  'no projection has a reserved name [rule 14]');
SELECT is(error_of($$SELECT evpg_channel('evpg.resync', 'a')$$), 'VE017 projection name "evpg.resync" is reserved',
  'the channel evpg.resync has no keys [rule 14]');
SELECT is(evpg_listen('evpg.resync'), 'evpg.resync', 'evpg_listen() listens to it [rule 15]');
SELECT is((SELECT array_agg(c) FROM pg_listening_channels() c), '{evpg.resync}',
  'evpg_listen() listens to it, and to nothing else [rule 15]');
SELECT is(evpg_unlisten('evpg.resync'), 'evpg.resync', 'evpg_unlisten() no longer [rule 15]');
SELECT is((SELECT count(*) FROM pg_listening_channels()), 0::bigint, 'nothing is left [rule 15]');
SELECT is(error_of(format($$SET evpg.origin = %L$$, repeat('x', 64))) || error_of($$SET evpg.origin = E'a\nb'$$),
  '22023 invalid value for parameter "evpg.origin": "' || repeat('x', 64)
  || E'"22023 invalid value for parameter "evpg.origin": "a\nb"',
  'an origin has at most 63 bytes, and no control characters [rule 14]');
SELECT is(evpg_channel('sums', 'a'), 'projection.sums.a', 'the channel of a key [rule 14, C09]');
SELECT is(evpg_channel('sums'), 'projection.sums', 'of all keys [rule 14]');
SELECT is(evpg_channel('sums', NULL), 'projection.sums', 'of all keys [rule 14]');
SELECT is(evpg_channel('sums', ''), 'projection.sums.', 'of the empty key [rule 14]');
SELECT is(evpg_channel('my.sums', 'a b"c'), 'projection.my.sums.a b"c', 'any characters [rule 14]');
SELECT is(evpg_channel('p', repeat('k', 50)), 'projection.p.' || repeat('k', 50), '63 bytes are as they are [rule 14]');
SELECT is(evpg_channel('p', repeat('k', 51)), 'projection.#' ||
  left(encode(sha256(convert_to('projection.p.' || repeat('k', 51), 'UTF8')), 'hex'), 40), '64 are hashed [rule 14]');
SELECT is(evpg_channel('p', repeat('€', 16) || 'kk'), 'projection.p.' || repeat('€', 16) || 'kk',
  '63 bytes in fewer characters [rule 14]');
SELECT is(evpg_channel('p', repeat('€', 17)), 'projection.#' ||
  left(encode(sha256(convert_to('projection.p.' || repeat('€', 17), 'UTF8')), 'hex'), 40),
  '64 bytes in fewer characters [rule 14]');
SELECT is(evpg_channel(repeat('p', 255)), 'projection.#' ||
  left(encode(sha256(convert_to('projection.' || repeat('p', 255), 'UTF8')), 'hex'), 40), 'the longest name [rule 14]');
SELECT is(length(evpg_channel(repeat('p', 255), repeat('k', 1024))), 52,
  'the longest name and the longest key have a channel [rule 14]');
SELECT is((SELECT count(DISTINCT evpg_channel('p', repeat('k', 60) || n)) FROM generate_series(1, 1000) n), 1000::bigint,
  'different keys have different channels [rule 14]');
SELECT is(evpg_channel('not registered', 'a'), 'projection.not registered.a', 'of what is not there yet [rule 14]');
SELECT refused(format('SELECT %s(%s)', f, arguments), error, f || ' ' || arguments || ' [rule 14]')
  FROM unnest('{evpg_channel,evpg_listen,evpg_unlisten}'::text[]) f,
  (VALUES ('NULL', '22004 projection name must not be null'), ($$''$$, '22023 projection name must not be empty'),
    ($$repeat('p', 256)$$, 'VE014 projection name is too long'),
          ($$'p', repeat('k', 1025)$$, 'VE014 projection key is too long'),
            ($$E'p\n'$$, '22023 projection name contains a control character'),
            ($$'p', E'k\n'$$, '22023 projection key contains a control character')) x (arguments, error);

-- ------------------------------------------------------------------ listening

SELECT is(evpg_listen('sums', 'a'), 'projection.sums.a', 'evpg_listen says the channel [C44]');
SELECT is(evpg_listen('sums'), 'projection.sums', 'of all keys [C44]');
SELECT is((SELECT array_agg(c ORDER BY c) FROM pg_listening_channels() c), '{projection.sums,projection.sums.a}',
  'this session listens [C44]');
SELECT is(evpg_unlisten('sums', 'a'), 'projection.sums.a', 'evpg_unlisten says the channel [C44]');
SELECT is((SELECT array_agg(c ORDER BY c) FROM pg_listening_channels() c), '{projection.sums}', 'no longer [C44]');
SELECT is(evpg_unlisten('sums', 'a'), 'projection.sums.a', 'to unlisten again does nothing [C44]');
BEGIN;
SELECT evpg_listen('sums', 'b') \g /dev/null
ROLLBACK;
SELECT is((SELECT array_agg(c ORDER BY c) FROM pg_listening_channels() c), '{projection.sums}',
  'as LISTEN, it is rolled back [C44]');
SELECT evpg_listen('sums', repeat('k', 1000)) \g /dev/null
SELECT is((SELECT array_agg(c ORDER BY c) FROM pg_listening_channels() c),
  ARRAY['projection.#' || left(encode(sha256(convert_to('projection.sums.' || repeat('k', 1000), 'UTF8')), 'hex'), 40),
  'projection.sums'], 'a long key [rule 14]');
UNLISTEN *;

-- ------------------------------------------------------------------ frames

SELECT listen('sums'), listen('sums', 'a') \g /dev/null
SELECT evpg_register_projection('sums', 'test.sum_apply', aggregate_types => '{counter}') \g /dev/null
SELECT add('a', 5) AS position \gset
SELECT same('SELECT channel, frame FROM frames() ORDER BY n',
  format($$VALUES ('projection.sums.a',
  '{"event": "delta", "projection": "sums", "key": "a", "generation": 1, "version": 1, "position": %s}'),
  ('projection.sums',
    '{"event": "delta", "projection": "sums", "key": "a", "generation": 1, "version": 1, "position": %s}')$$, :position,
    :position), 'a frame without data to the channel of the key and to that of all [rule 14, C09, C44]');
SELECT add('b', 5) \g /dev/null
SELECT same('SELECT channel FROM frames()', $$VALUES ('projection.sums')$$, 'of another key, to that of all only [rule 14]');

SELECT evpg_register_projection('sums', 'test.sum_apply', aggregate_types => '{counter}', broadcast => 'delta') \g /dev/null
SELECT is((SELECT count(*) FROM frames()), 0::bigint, 'a registration sends nothing [rule 14]');
SELECT add('a', 1) AS position \gset
SELECT is((SELECT frame FROM frames() WHERE channel = 'projection.sums'),
  format('{"event": "delta", "projection": "sums", "key": "a", "generation": 1, "version": 2, "position": %s, '
  '"data": {"sum": 6, "count": 2}}', :position), 'delta sends data [rule 14, C09]');
SELECT evpg_register_projection('sums', 'test.sum_project', aggregate_types => '{counter}', broadcast => 'delta',
  event_name => 'sum.changed "now"') \g /dev/null
SELECT add('a', 1) \g /dev/null
SELECT is(heard(), 'sum.changed "now" a 1.3 {"n": 1}', 'an event name of its own, and a delta of its own [C09]');
SELECT add('a', 0, 'Odd') \g /dev/null
SELECT is(heard(), '', 'a NULL delta is silent [C09]');
SELECT is((SELECT version FROM evpg_projection('sums', 'a')), 4::bigint, 'a NULL delta is silent, but counts [C09]');
SELECT evpg_register_projection('sums', 'test.sum_project', aggregate_types => '{counter}', broadcast => 'delta')
  \g /dev/null
SELECT add('a', 2, 'Cleared') \g /dev/null
SELECT is(heard(), 'delta a 1.5 {"n": 2} deleted', 'a deletion says so [rule 12]');
SELECT add('a', 2) \g /dev/null
SELECT is(heard(), 'delta a 2.1 {"n": 2}', 'a key that comes back is in the next generation [rule 12]');
SELECT evpg_put_projection('sums', 'a', '{"sum": 9}') \g /dev/null
SELECT is(heard(), 'put a 2.2 {"sum": 9}', 'a put sends the state [C20]');
SELECT evpg_put_projection('sums', 'a', NULL) \g /dev/null
SELECT is(heard(), 'put a 2.3 deleted', 'a put of NULL sends that the row is gone [C20]');
SELECT evpg_put_projection('sums', 'a', NULL) \g /dev/null
SELECT is(heard(), '', 'once [C20]');
SELECT evpg_rebuild_projection('sums', 'a') \g /dev/null
SELECT alike(heard(), 'rebuild a _.6 {"sum": 2, "count": 1}',
  'a rebuild sends one frame with the whole state [rule 13, C12, C15]');
SELECT evpg_rebuild_projection('sums', 'nothing to fold') \g /dev/null
SELECT evpg_put_projection('sums', 'no events', '{}') \g /dev/null
SELECT heard() \g /dev/null
SELECT evpg_rebuild_projection('sums', 'no events') \g /dev/null
SELECT is(heard(), '', 'nothing to fold is silent [rule 13, C13]');

-- order: frames of a transaction are in the order of its commands, several of one key too
BEGIN;
SELECT add('o', 1), add('p', 2) \g /dev/null
SELECT add('o', 1) \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'o',
  evpg_events('[{"type": "Added", "data": {"n": 1}}, {"type": "Added", "data": {"n": 1}}]')) \g /dev/null
SELECT is(heard(), '', 'nothing is heard before the commit [rule 14]');
COMMIT;
SELECT
  is(heard(), 'delta o 1.1 {"n": 1}, delta p 1.1 {"n": 2}, delta o 1.2 {"n": 1}, delta o 1.3 {"n": 1}, delta o 1.4 {"n": 1}',
  'equal deltas in one transaction are frames of their own, in order [rule 14, 3.4 test 6]');
BEGIN;
SELECT add('o', 1) \g /dev/null
ROLLBACK;
SELECT is(heard(), '', 'nothing is sent for what rolled back [rule 14]');
BEGIN;
SELECT add('o', 2) \g /dev/null
SAVEPOINT s;
SELECT add('o', 3) \g /dev/null
ROLLBACK TO s;
SELECT add('o', 4) \g /dev/null
COMMIT;
SELECT is(heard(), 'delta o 1.5 {"n": 2}, delta o 1.6 {"n": 4}',
  'no frame is sent for what rolled back to a savepoint [rule 14]');
SELECT error_of($$SELECT evpg_execute('counter', 'o', 'Subtract', '{"n": 1000}')$$),
  evpg_try_execute('counter', 'o', 'Subtract', '{"n": 1000}'), evpg_try_execute('counter', 'o', 'Nothing'),
  evpg_try_execute('counter', 'o', 'Add', '{"n": 1}', 77) \g /dev/null
SELECT is(heard(), '', 'no frame is sent for a rejection, a no-op or a conflict [rule 5]');
SELECT evpg_try_execute('counter', 'o', 'Add', '{"n": 1}', command_id => 'once') \g /dev/null
SELECT heard() \g /dev/null
SELECT evpg_try_execute('counter', 'o', 'Add', '{"n": 1}', command_id => 'once') \g /dev/null
SELECT is(heard(), '', 'no frame is sent for a duplicate [rule 4]');

-- size: frames up to 7,999 bytes
CREATE FUNCTION test.large(state jsonb, event evpg.event) RETURNS evpg.projected LANGUAGE sql AS $$
  SELECT evpg_projected('{}', to_jsonb(repeat(coalesce(event.data->>'with', 'x'), (event.data->>'n')::int)))
$$;
SELECT evpg_register_projection('large', 'test.large', aggregate_types => '{counter_c}', broadcast => 'delta'),
  listen('large'), listen('large', 'l') \g /dev/null
SELECT add('l', 1, aggregate => 'counter_c') \g /dev/null
SELECT octet_length(frame) - 1 AS overhead FROM frames() WHERE channel = 'projection.large' \gset
SELECT add('l', 7999 - :overhead, aggregate => 'counter_c') \g /dev/null
SELECT same('SELECT channel, octet_length(frame), frame::jsonb ? $$truncated$$, length(frame::jsonb->>$$data$$) '
  'FROM frames() ORDER BY n', format($$VALUES ('projection.large.l', 7999, false, %1$s),
  ('projection.large', 7999, false, %1$s)$$, 7999 - :overhead), 'a frame of 7,999 bytes [rule 14]');
SELECT add('l', 8000 - :overhead, aggregate => 'counter_c') AS position \gset
SELECT same('SELECT channel, frame FROM frames() ORDER BY n',
  format($$VALUES ('projection.large.l', %1$L), ('projection.large', %1$L)$$,
  format('{"event": "delta", "projection": "large", "key": "l", "generation": 1, "version": 3, "position": %s, '
  '"truncated": true}', :position)), 'one byte more, and it is truncated [rule 14]');
SELECT add('l', 1000000, aggregate => 'counter_c') \g /dev/null
SELECT is(heard('projection.large'), 'delta l 1.4 truncated', 'far more [rule 14]');
SELECT add('l', 3000, more => '{"with": "€"}', aggregate => 'counter_c') \g /dev/null
SELECT is(heard('projection.large'), 'delta l 1.5 truncated', 'bytes count, not characters [rule 14]');
SELECT add('l', 2000, more => E'{"with": "\\""}', aggregate => 'counter_c') \g /dev/null
SELECT is((SELECT frame::jsonb->>'data' FROM frames() LIMIT 1), repeat('"', 2000), 'what is quoted comes back [rule 14]');
SELECT evpg_put_projection('large', 'l', to_jsonb(repeat('x', 8000))) \g /dev/null
SELECT is(heard('projection.large'), 'put l 1.7 truncated', 'a put [rule 14]');
SELECT evpg_register_projection('long ' || repeat('€"', 60), 'test.sum_apply', aggregate_types => '{counter_c}',
  broadcast => 'delta', event_name => repeat('e', 255)), listen('long ' || repeat('€"', 60)),
  listen('long ' || repeat('€"', 60), repeat(E'\\"', 512)) \g /dev/null
SELECT add(repeat(E'\\"', 512), 1, aggregate => 'counter_c') \g /dev/null
SELECT same(format('SELECT channel, frame::jsonb->>$$projection$$, frame::jsonb->>$$key$$, frame::jsonb->$$data$$, '
  'frame::jsonb->>$$event$$ FROM frames() WHERE channel LIKE %L ORDER BY n', '%#%'),
  format('SELECT evpg_channel(%1$L, k), %1$L, %2$L, %3$L::jsonb, %4$L FROM unnest(ARRAY[%2$L, NULL]) k',
    'long ' || repeat('€"', 60), repeat(E'\\"', 512), '{"sum": 1, "count": 1}', repeat('e', 255)),
    'the longest names and keys, on hashed channels [rule 14]');

-- many keys: frames beyond evpg.max_key_locks come without data
CREATE FUNCTION test.many_keys(event evpg.event) RETURNS text[] LANGUAGE sql AS $$
  SELECT array_agg('k' || lpad(n::text, 5, '0')) FROM generate_series(1, (event.data->>'n')::int) n
$$;
SELECT evpg_register_aggregate('echo', library => 'evpg_test', symbol => 'echo'),
  evpg_register_projection('many', 'test.sum_apply', key_function => 'test.many_keys', aggregate_types => '{echo}',
  broadcast => 'delta'), listen('many') \g /dev/null
SELECT add('m', 70, aggregate => 'echo') \g /dev/null
SELECT same('SELECT count(*), count(*) FILTER (WHERE frame::jsonb ? $$data$$), count(*) FILTER (WHERE '
  'frame::jsonb->$$truncated$$ = $$true$$) FROM frames()', 'VALUES (70, 64, 6)',
  'frames beyond evpg.max_key_locks come without data [rule 11]');
SELECT add('m', 64, aggregate => 'echo') \g /dev/null
SELECT same('SELECT count(*), count(*) FILTER (WHERE frame::jsonb ? $$data$$) FROM frames()', 'VALUES (64, 64)',
  'in one transaction [rule 11]');
SELECT add('m', 20000, aggregate => 'echo') \g /dev/null
SELECT same('SELECT count(*), count(DISTINCT frame::jsonb->>$$key$$) FROM frames()', 'VALUES (20000, 20000)',
  '20,000 keys are 20,000 frames [rule 11, issue 3]');

-- table projections
SELECT evpg_register_projection('lines', handler => 'test.statement_write', aggregate_types => '{echo}',
  broadcast => 'delta'), listen('lines') \g /dev/null
SELECT add('t', 3, aggregate => 'echo') \g /dev/null
SELECT is(heard('projection.lines'), 'delta t 1.1 {"n": 3}',
  'what the handler of a table projection returns is its delta [issue 3]');
-- modules
SELECT evpg_register_projection('totals', library => 'evpg_test', symbol => 'totals', broadcast => 'delta'), listen('totals')
  \g /dev/null
SELECT add('c', 3, aggregate => 'counter_c'), add('c', 0, aggregate => 'counter_c'),
  add('c', 0, 'Cleared', aggregate => 'counter_c') \g /dev/null
SELECT is(heard('projection.totals'), 'delta c 1.1 {"n": 3, "total": 3}, delta c 1.3 {"cleared_by": null} deleted',
  'evpg_delta() of a module; without it, silence [C01]');

-- a module is told when no listener gets a delta
CREATE FUNCTION test.asked(broadcast text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM evpg_register_projection('asking', library => 'evpg_test', symbol => 'asking', aggregate_types => '{asked}',
    broadcast => broadcast);
  PERFORM add('asked', 1, aggregate => 'asked');
  RETURN (SELECT state->>'wanted' FROM evpg_projection('asking', 'asked'));
END $$;
SELECT evpg_register_aggregate('asked', library => 'evpg_test', symbol => 'counter'), listen('asking') \g /dev/null
SELECT is(asked('none'), 'false', 'evpg_wants_delta(), broadcast none [rule 14]');
SELECT is(heard('projection.asking'), '', 'what is sent then, broadcast none [rule 14]');
SELECT is(asked('pointer'), 'true', 'evpg_wants_delta(), broadcast pointer [rule 14]');
SELECT is(heard('projection.asking'), 'delta asked 1.2', 'what is sent then, broadcast pointer [rule 14]');
SELECT is(asked('delta'), 'true', 'evpg_wants_delta(), broadcast delta [rule 14]');
SELECT is(heard('projection.asking'), 'delta asked 1.3 {"n": 1}', 'what is sent then, broadcast delta [rule 14]');
SET evpg.broadcast = off;
SELECT is(asked('delta'), 'false', 'evpg_wants_delta(), evpg.broadcast off [rule 15]');
RESET evpg.broadcast;
SELECT is(asked('delta'), 'true', 'evpg_wants_delta(), evpg.broadcast on again [rule 15]');
SELECT evpg_rebuild_projection('asking') \g /dev/null
SELECT is(row_of('asking', 'asked'), '2.5 {"wanted": false}', 'evpg_wants_delta(), a rebuild of all keys [rule 13]');
SELECT evpg_rebuild_projection('asking', 'asked') \g /dev/null
SELECT is(row_of('asking', 'asked'), '3.5 {"wanted": false}', 'evpg_wants_delta(), a rebuild of the key [rule 13]');
SELECT evpg_drop_projection('asking') \g /dev/null

-- none, off
SELECT evpg_register_projection('totals', library => 'evpg_test', symbol => 'totals', broadcast => 'none') \g /dev/null
SELECT add('c', 3, aggregate => 'counter_c'), evpg_put_projection('totals', 'c', '{}'),
  evpg_rebuild_projection('totals', 'c') \g /dev/null
SELECT is(heard('projection.totals'), '', 'broadcast none [rule 14]');
SET evpg.broadcast = off;
SELECT add('a', 1) \g /dev/null
SELECT is(heard(), '', 'evpg.broadcast off [rule 15]');
RESET evpg.broadcast;
SELECT add('a', 1) \g /dev/null
SELECT isnt(heard(), '', 'evpg.broadcast on again sends frames [rule 15]');
SELECT is((SELECT s FROM evpg.stat_broadcast s)::text, '(commit,0,0,0,0,' || pg_notification_queue_usage() || ')',
  'without preloading, with the commit [rule 15]');
SELECT throws_ok('SET evpg.broadcast = worker', '22023', 'invalid value for parameter "evpg.broadcast": "worker"',
  'without preloading, no broadcaster [rule 15]');
SELECT is(array[set_config('evpg.broadcast', 'on', true), set_config('evpg.broadcast', 'false', true),
  set_config('evpg.broadcast', 'auto', true)],
  '{auto,off,auto}', 'on and off as before [rule 15]');
-- one listener hears of all, one unlistens, none is no error
SELECT * FROM dblink('listener', $$SELECT evpg_unlisten('sums')$$) x (channel text) \g /dev/null
SELECT add('a', 1) \g /dev/null
SELECT same('SELECT channel FROM frames()', $$VALUES ('projection.sums.a')$$,
  'after evpg_unlisten, only what is left [C44]');
-- a transaction with frames cannot be prepared
SELECT dblink_exec('listener', 'BEGIN') \g /dev/null
SELECT * FROM dblink('listener', $$SELECT add('a', 1)$$) x (position bigint) \g /dev/null
SELECT is(error_of($$SELECT dblink_exec('listener', 'PREPARE TRANSACTION ''frames''')$$),
  '0A000 cannot PREPARE a transaction that has executed LISTEN, UNLISTEN, or NOTIFY', 'PREPARE TRANSACTION [rule 15]');
SELECT is((SELECT count(*) FROM pg_prepared_xacts), 0::bigint, 'it is rolled back [rule 15]');
SELECT same('SELECT channel FROM frames()', 'SELECT WHERE false',
  'frames of a transaction that is rolled back are not heard [rule 15]');
SELECT dblink_disconnect('listener') \g /dev/null
SELECT isnt(add('a', 1), NULL, 'nobody listens: no error [C45]');

BEGIN;
SET LOCAL evpg.broadcast = off;
SELECT add('a', 1) \g /dev/null
PREPARE TRANSACTION 'frames';
COMMIT PREPARED 'frames';
SELECT is((SELECT sum((data->>'n')::bigint) FROM evpg.event
  WHERE aggregate_id = 'a' AND type = 'Added' AND position = (SELECT max(position) FROM evpg.event)), 1::numeric,
  'without frames it can [rule 15]');
SELECT is((SELECT position FROM evpg_projection('sums', 'a')), (SELECT max(position) FROM evpg.event),
  'projections have the events of a prepared transaction when it is committed [rule 15]');
SELECT * FROM finish();
