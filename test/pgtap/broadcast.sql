-- broadcast.sql: names of channels, and what a second connection hears (rule 14).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql

SELECT plan(110);
SET test.kind = counter;

-- ------------------------------------------------------------------ channels

SELECT is(evpg_channel('evpg.resync'), 'evpg.resync', 'rule 14: the channel for all listeners is one by itself');
SELECT is(error_of($$SELECT evpg_channel('evpg.other')$$), 'VE017 projection name "evpg.other" is reserved', 'rule 14: no projection has a reserved name');
SELECT is(error_of($$SELECT evpg_channel('evpg.resync', 'a')$$), 'VE017 projection name "evpg.resync" is reserved', 'rule 14: nor has that channel keys');
SELECT is(evpg_listen('evpg.resync'), 'evpg.resync', 'rule 15: evpg_listen() listens to it');
SELECT is((SELECT array_agg(c) FROM pg_listening_channels() c), '{evpg.resync}', 'rule 15: and to nothing else');
SELECT is(evpg_unlisten('evpg.resync'), 'evpg.resync', 'rule 15: evpg_unlisten() no longer');
SELECT is((SELECT count(*) FROM pg_listening_channels()), 0::bigint, 'rule 15: nothing is left');
SELECT is(error_of(format($$SET evpg.origin = %L$$, repeat('x', 64))) || error_of($$SET evpg.origin = E'a\nb'$$), '22023 invalid value for parameter "evpg.origin": "' || repeat('x', 64) || E'"22023 invalid value for parameter "evpg.origin": "a\nb"', 'rule 14: an origin has at most 63 bytes, and no control characters');
SELECT is(evpg_channel('sums', 'a'), 'projection.sums.a', 'rule 14, C09: the channel of a key');
SELECT is(evpg_channel('sums'), 'projection.sums', 'rule 14: of all keys');
SELECT is(evpg_channel('sums', NULL), 'projection.sums', 'rule 14: of all keys');
SELECT is(evpg_channel('sums', ''), 'projection.sums.', 'rule 14: of the empty key');
SELECT is(evpg_channel('my.sums', 'a b"c'), 'projection.my.sums.a b"c', 'rule 14: any characters');
SELECT is(evpg_channel('p', repeat('k', 50)), 'projection.p.' || repeat('k', 50), 'rule 14: 63 bytes are as they are');
SELECT is(evpg_channel('p', repeat('k', 51)), 'projection.#' || left(encode(sha256(convert_to('projection.p.' || repeat('k', 51), 'UTF8')), 'hex'), 40), 'rule 14: 64 are hashed');
SELECT is(evpg_channel('p', repeat('€', 16) || 'kk'), 'projection.p.' || repeat('€', 16) || 'kk', 'rule 14: 63 bytes in fewer characters');
SELECT is(evpg_channel('p', repeat('€', 17)), 'projection.#' || left(encode(sha256(convert_to('projection.p.' || repeat('€', 17), 'UTF8')), 'hex'), 40), 'rule 14: 64 bytes in fewer characters');
SELECT is(evpg_channel(repeat('p', 255)), 'projection.#' || left(encode(sha256(convert_to('projection.' || repeat('p', 255), 'UTF8')), 'hex'), 40), 'rule 14: the longest name');
SELECT is(length(evpg_channel(repeat('p', 255), repeat('k', 1024))), 52, 'rule 14: and key');
SELECT is((SELECT count(DISTINCT evpg_channel('p', repeat('k', 60) || n)) FROM generate_series(1, 1000) n), 1000::bigint, 'rule 14: different keys have different channels');
SELECT is(evpg_channel('not registered', 'a'), 'projection.not registered.a', 'rule 14: of what is not there yet');
SELECT refused(format('SELECT %s(%s)', f, arguments), error, 'rule 14: ' || f || ' ' || arguments) FROM unnest('{evpg_channel,evpg_listen,evpg_unlisten}'::text[]) f,
  (VALUES ('NULL', '22004 projection name must not be null'), ($$''$$, '22023 projection name must not be empty'), ($$repeat('p', 256)$$, 'VE014 projection name is too long'),
          ($$'p', repeat('k', 1025)$$, 'VE014 projection key is too long'), ($$E'p\n'$$, '22023 projection name contains a control character'), ($$'p', E'k\n'$$, '22023 projection key contains a control character')) x (arguments, error);

-- ------------------------------------------------------------------ listening

SELECT is(evpg_listen('sums', 'a'), 'projection.sums.a', 'C44: evpg_listen says the channel');
SELECT is(evpg_listen('sums'), 'projection.sums', 'C44: of all keys');
SELECT is((SELECT array_agg(c ORDER BY c) FROM pg_listening_channels() c), '{projection.sums,projection.sums.a}', 'C44: this session listens');
SELECT is(evpg_unlisten('sums', 'a'), 'projection.sums.a', 'C44: evpg_unlisten says the channel');
SELECT is((SELECT array_agg(c ORDER BY c) FROM pg_listening_channels() c), '{projection.sums}', 'C44: no longer');
SELECT is(evpg_unlisten('sums', 'a'), 'projection.sums.a', 'C44: to unlisten again does nothing');
BEGIN;
SELECT evpg_listen('sums', 'b') \g /dev/null
ROLLBACK;
SELECT is((SELECT array_agg(c ORDER BY c) FROM pg_listening_channels() c), '{projection.sums}', 'C44: as LISTEN, it is rolled back');
SELECT evpg_listen('sums', repeat('k', 1000)) \g /dev/null
SELECT is((SELECT array_agg(c ORDER BY c) FROM pg_listening_channels() c), ARRAY['projection.#' || left(encode(sha256(convert_to('projection.sums.' || repeat('k', 1000), 'UTF8')), 'hex'), 40), 'projection.sums'], 'rule 14: a long key');
UNLISTEN *;

-- ------------------------------------------------------------------ frames

SELECT listen('sums'), listen('sums', 'a') \g /dev/null
SELECT evpg_register_projection('sums', 'test.sum_apply', aggregate_types => '{counter}') \g /dev/null
SELECT add('a', 5) AS position \gset
SELECT same('SELECT channel, frame FROM frames() ORDER BY n', format($$VALUES ('projection.sums.a', '{"event": "delta", "projection": "sums", "key": "a", "generation": 1, "version": 1, "position": %s}'),
  ('projection.sums', '{"event": "delta", "projection": "sums", "key": "a", "generation": 1, "version": 1, "position": %s}')$$, :position, :position), 'rule 14, C09, C44: a frame without data to the channel of the key and to that of all');
SELECT add('b', 5) \g /dev/null
SELECT same('SELECT channel FROM frames()', $$VALUES ('projection.sums')$$, 'rule 14: of another key, to that of all only');

SELECT evpg_register_projection('sums', 'test.sum_apply', aggregate_types => '{counter}', broadcast => 'delta') \g /dev/null
SELECT is((SELECT count(*) FROM frames()), 0::bigint, 'rule 14: a registration sends nothing');
SELECT add('a', 1) AS position \gset
SELECT is((SELECT frame FROM frames() WHERE channel = 'projection.sums'), format('{"event": "delta", "projection": "sums", "key": "a", "generation": 1, "version": 2, "position": %s, "data": {"sum": 6, "count": 2}}', :position), 'rule 14, C09: delta sends data');
SELECT evpg_register_projection('sums', 'test.sum_project', aggregate_types => '{counter}', broadcast => 'delta', event_name => 'sum.changed "now"') \g /dev/null
SELECT add('a', 1) \g /dev/null
SELECT is(heard(), 'sum.changed "now" a 1.3 {"n": 1}', 'C09: an event name of its own, and a delta of its own');
SELECT add('a', 0, 'Odd') \g /dev/null
SELECT is(heard(), '', 'C09: a NULL delta is silent');
SELECT is((SELECT version FROM evpg_projection('sums', 'a')), 4::bigint, 'C09: but counts');
SELECT evpg_register_projection('sums', 'test.sum_project', aggregate_types => '{counter}', broadcast => 'delta') \g /dev/null
SELECT add('a', 2, 'Cleared') \g /dev/null
SELECT is(heard(), 'delta a 1.5 {"n": 2} deleted', 'rule 12: a deletion says so');
SELECT add('a', 2) \g /dev/null
SELECT is(heard(), 'delta a 2.1 {"n": 2}', 'rule 12: a key that comes back is in the next generation');
SELECT evpg_put_projection('sums', 'a', '{"sum": 9}') \g /dev/null
SELECT is(heard(), 'put a 2.2 {"sum": 9}', 'C20: a put sends the state');
SELECT evpg_put_projection('sums', 'a', NULL) \g /dev/null
SELECT is(heard(), 'put a 2.3 deleted', 'C20: or that it is gone');
SELECT evpg_put_projection('sums', 'a', NULL) \g /dev/null
SELECT is(heard(), '', 'C20: once');
SELECT evpg_rebuild_projection('sums', 'a') \g /dev/null
SELECT alike(heard(), 'rebuild a _.6 {"sum": 2, "count": 1}', 'rule 13, C12, C15: a rebuild sends one frame with the whole state');
SELECT evpg_rebuild_projection('sums', 'nothing to fold') \g /dev/null
SELECT evpg_put_projection('sums', 'no events', '{}') \g /dev/null
SELECT heard() \g /dev/null
SELECT evpg_rebuild_projection('sums', 'no events') \g /dev/null
SELECT is(heard(), '', 'rule 13, C13: nothing to fold is silent');

-- order: frames of a transaction are in the order of its commands, several of one key too
BEGIN;
SELECT add('o', 1), add('p', 2) \g /dev/null
SELECT add('o', 1) \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'o', evpg_events('[{"type": "Added", "data": {"n": 1}}, {"type": "Added", "data": {"n": 1}}]')) \g /dev/null
SELECT is(heard(), '', 'rule 14: nothing is heard before the commit');
COMMIT;
SELECT is(heard(), 'delta o 1.1 {"n": 1}, delta p 1.1 {"n": 2}, delta o 1.2 {"n": 1}, delta o 1.3 {"n": 1}, delta o 1.4 {"n": 1}', 'rule 14, 3.4 test 6: equal deltas in one transaction are frames of their own, in order');
BEGIN;
SELECT add('o', 1) \g /dev/null
ROLLBACK;
SELECT is(heard(), '', 'rule 14: nothing is sent for what rolled back');
BEGIN;
SELECT add('o', 2) \g /dev/null
SAVEPOINT s;
SELECT add('o', 3) \g /dev/null
ROLLBACK TO s;
SELECT add('o', 4) \g /dev/null
COMMIT;
SELECT is(heard(), 'delta o 1.5 {"n": 2}, delta o 1.6 {"n": 4}', 'rule 14: nor to a savepoint');
SELECT error_of($$SELECT evpg_execute('counter', 'o', 'Subtract', '{"n": 1000}')$$), evpg_try_execute('counter', 'o', 'Subtract', '{"n": 1000}'), evpg_try_execute('counter', 'o', 'Nothing'), evpg_try_execute('counter', 'o', 'Add', '{"n": 1}', 77) \g /dev/null
SELECT is(heard(), '', 'rule 5: nor for a rejection, a no-op, a conflict');
SELECT evpg_try_execute('counter', 'o', 'Add', '{"n": 1}', command_id => 'once') \g /dev/null
SELECT heard() \g /dev/null
SELECT evpg_try_execute('counter', 'o', 'Add', '{"n": 1}', command_id => 'once') \g /dev/null
SELECT is(heard(), '', 'rule 4: nor for a duplicate');

-- size: frames up to 7,999 bytes
CREATE FUNCTION test.large(state jsonb, event evpg.event) RETURNS evpg.projected LANGUAGE sql AS $$ SELECT evpg_projected('{}', to_jsonb(repeat(coalesce(event.data->>'with', 'x'), (event.data->>'n')::int))) $$;
SELECT evpg_register_projection('large', 'test.large', aggregate_types => '{counter_c}', broadcast => 'delta'), listen('large'), listen('large', 'l') \g /dev/null
SELECT add('l', 1, aggregate => 'counter_c') \g /dev/null
SELECT octet_length(frame) - 1 AS overhead FROM frames() WHERE channel = 'projection.large' \gset
SELECT add('l', 7999 - :overhead, aggregate => 'counter_c') \g /dev/null
SELECT same('SELECT channel, octet_length(frame), frame::jsonb ? $$truncated$$, length(frame::jsonb->>$$data$$) FROM frames() ORDER BY n', format($$VALUES ('projection.large.l', 7999, false, %1$s), ('projection.large', 7999, false, %1$s)$$, 7999 - :overhead), 'rule 14: a frame of 7,999 bytes');
SELECT add('l', 8000 - :overhead, aggregate => 'counter_c') AS position \gset
SELECT same('SELECT channel, frame FROM frames() ORDER BY n', format($$VALUES ('projection.large.l', %1$L), ('projection.large', %1$L)$$, format('{"event": "delta", "projection": "large", "key": "l", "generation": 1, "version": 3, "position": %s, "truncated": true}', :position)), 'rule 14: one byte more, and it is truncated');
SELECT add('l', 1000000, aggregate => 'counter_c') \g /dev/null
SELECT is(heard('projection.large'), 'delta l 1.4 truncated', 'rule 14: far more');
SELECT add('l', 3000, more => '{"with": "€"}', aggregate => 'counter_c') \g /dev/null
SELECT is(heard('projection.large'), 'delta l 1.5 truncated', 'rule 14: bytes count, not characters');
SELECT add('l', 2000, more => '{"with": "\""}', aggregate => 'counter_c') \g /dev/null
SELECT is((SELECT frame::jsonb->>'data' FROM frames() LIMIT 1), repeat('"', 2000), 'rule 14: what is quoted comes back');
SELECT evpg_put_projection('large', 'l', to_jsonb(repeat('x', 8000))) \g /dev/null
SELECT is(heard('projection.large'), 'put l 1.7 truncated', 'rule 14: a put');
SELECT evpg_register_projection('long ' || repeat('€"', 60), 'test.sum_apply', aggregate_types => '{counter_c}', broadcast => 'delta', event_name => repeat('e', 255)), listen('long ' || repeat('€"', 60)), listen('long ' || repeat('€"', 60), repeat('\"', 512)) \g /dev/null
SELECT add(repeat('\"', 512), 1, aggregate => 'counter_c') \g /dev/null
SELECT same(format('SELECT channel, frame::jsonb->>$$projection$$, frame::jsonb->>$$key$$, frame::jsonb->$$data$$, frame::jsonb->>$$event$$ FROM frames() WHERE channel LIKE %L ORDER BY n', '%#%'),
  format('SELECT evpg_channel(%1$L, k), %1$L, %2$L, %3$L::jsonb, %4$L FROM unnest(ARRAY[%2$L, NULL]) k', 'long ' || repeat('€"', 60), repeat('\"', 512), '{"sum": 1, "count": 1}', repeat('e', 255)), 'rule 14: the longest names and keys, on hashed channels');

-- many keys: frames beyond evpg.max_key_locks come without data
CREATE FUNCTION test.many_keys(event evpg.event) RETURNS text[] LANGUAGE sql AS $$ SELECT array_agg('k' || lpad(n::text, 5, '0')) FROM generate_series(1, (event.data->>'n')::int) n $$;
SELECT evpg_register_aggregate('echo', library => 'evpg_test', symbol => 'echo'), evpg_register_projection('many', 'test.sum_apply', key_function => 'test.many_keys', aggregate_types => '{echo}', broadcast => 'delta'), listen('many') \g /dev/null
SELECT add('m', 70, aggregate => 'echo') \g /dev/null
SELECT same('SELECT count(*), count(*) FILTER (WHERE frame::jsonb ? $$data$$), count(*) FILTER (WHERE frame::jsonb->$$truncated$$ = $$true$$) FROM frames()', 'VALUES (70, 64, 6)', 'rule 11: frames beyond evpg.max_key_locks come without data');
SELECT add('m', 64, aggregate => 'echo') \g /dev/null
SELECT same('SELECT count(*), count(*) FILTER (WHERE frame::jsonb ? $$data$$) FROM frames()', 'VALUES (64, 64)', 'rule 11: in one transaction');
SELECT add('m', 20000, aggregate => 'echo') \g /dev/null
SELECT same('SELECT count(*), count(DISTINCT frame::jsonb->>$$key$$) FROM frames()', 'VALUES (20000, 20000)', 'rule 11, issue 3: 20,000 keys are 20,000 frames');

-- table projections
SELECT evpg_register_projection('lines', handler => 'test.statement_write', aggregate_types => '{echo}', broadcast => 'delta'), listen('lines') \g /dev/null
SELECT add('t', 3, aggregate => 'echo') \g /dev/null
SELECT is(heard('projection.lines'), 'delta t 1.1 {"n": 3}', 'issue 3: what the handler of a table projection returns is its delta');
-- modules
SELECT evpg_register_projection('totals', library => 'evpg_test', symbol => 'totals', broadcast => 'delta'), listen('totals') \g /dev/null
SELECT add('c', 3, aggregate => 'counter_c'), add('c', 0, aggregate => 'counter_c'), add('c', 0, 'Cleared', aggregate => 'counter_c') \g /dev/null
SELECT is(heard('projection.totals'), 'delta c 1.1 {"n": 3, "total": 3}, delta c 1.3 {"cleared_by": null} deleted', 'C01: evpg_delta() of a module; without it, silence');

-- none, off
SELECT evpg_register_projection('totals', library => 'evpg_test', symbol => 'totals', broadcast => 'none') \g /dev/null
SELECT add('c', 3, aggregate => 'counter_c'), evpg_put_projection('totals', 'c', '{}'), evpg_rebuild_projection('totals', 'c') \g /dev/null
SELECT is(heard('projection.totals'), '', 'rule 14: broadcast none');
SET evpg.broadcast = off;
SELECT add('a', 1) \g /dev/null
SELECT is(heard(), '', 'rule 15: evpg.broadcast off');
RESET evpg.broadcast;
SELECT add('a', 1) \g /dev/null
SELECT isnt(heard(), '', 'rule 15: and on again');
SELECT is((SELECT s FROM evpg.stat_broadcast s)::text, '(commit,0,0,0,0,' || pg_notification_queue_usage() || ')', 'rule 15: without preloading, with the commit');
SELECT throws_ok('SET evpg.broadcast = worker', '22023', 'invalid value for parameter "evpg.broadcast": "worker"', 'rule 15: without preloading, no broadcaster');
SELECT is(array[set_config('evpg.broadcast', 'on', true), set_config('evpg.broadcast', 'false', true), set_config('evpg.broadcast', 'auto', true)],
  '{auto,off,auto}', 'rule 15: on and off as before');
-- one listener hears of all, one unlistens, none is no error
SELECT * FROM dblink('listener', $$SELECT evpg_unlisten('sums')$$) x (channel text) \g /dev/null
SELECT add('a', 1) \g /dev/null
SELECT same('SELECT channel FROM frames()', $$VALUES ('projection.sums.a')$$, 'C44: after evpg_unlisten, only what is left');
-- a transaction with frames cannot be prepared
SELECT dblink_exec('listener', 'BEGIN') \g /dev/null
SELECT * FROM dblink('listener', $$SELECT add('a', 1)$$) x (position bigint) \g /dev/null
SELECT is(error_of($$SELECT dblink_exec('listener', 'PREPARE TRANSACTION ''frames''')$$), '0A000 cannot PREPARE a transaction that has executed LISTEN, UNLISTEN, or NOTIFY', 'rule 15: PREPARE TRANSACTION');
SELECT is((SELECT count(*) FROM pg_prepared_xacts), 0::bigint, 'rule 15: it is rolled back');
SELECT same('SELECT channel FROM frames()', 'SELECT WHERE false', 'rule 15: and not heard');
SELECT dblink_disconnect('listener') \g /dev/null
SELECT isnt(add('a', 1), NULL, 'C45: nobody listens: no error');

BEGIN;
SET LOCAL evpg.broadcast = off;
SELECT add('a', 1) \g /dev/null
PREPARE TRANSACTION 'frames';
COMMIT PREPARED 'frames';
SELECT is((SELECT sum((data->>'n')::bigint) FROM evpg.event WHERE aggregate_id = 'a' AND type = 'Added' AND position = (SELECT max(position) FROM evpg.event)), 1::numeric, 'rule 15: without frames it can');
SELECT is((SELECT position FROM evpg_projection('sums', 'a')), (SELECT max(position) FROM evpg.event), 'rule 15: and its projections with it');
SELECT * FROM finish();
