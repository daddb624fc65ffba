-- projections.sql: registration and filters of projections, what an apply writes, deletion and return, puts, reading,
-- catching up (rules 11 and 12).

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
-- JSON has the times of events in UTC
SET timezone = 'UTC';
\ir include/counter.sql
\ir include/projections.sql

SELECT plan(294);
SET test.kind = counter;

-- ------------------------------------------------------------------ registration

SELECT is(evpg_register_projection('sums', 'test.sum_apply'), true, 'a projection is registered [C01, C11, A24]');
SELECT is(evpg_register_projection('sums', 'test.sum_apply'), false, 'again, it is the same: nothing changes [C11]');
SELECT is(evpg_register_projection('sums', reducer => 'sum_apply', key_path => NULL, broadcast => 'pointer',
  event_name => 'delta', initial_state => '{}', mode => 'inline'), false,
  'the defaults said, and the name resolved by search_path, are the same [C11]');
SELECT same($$SELECT name, library, symbol, reducer, handler, key_function, key_path::text, constant_key, aggregate_types,
  event_types, tags, initial_state, broadcast, event_name, search_path, registered_by
                FROM evpg.projection$$,
  $$VALUES ('sums', NULL::text, NULL::text, 'test.sum_apply(pg_catalog.jsonb,evpg.event)', NULL::text, NULL::text,
    NULL::text, NULL::text, NULL::text[], NULL::text[], NULL::text[],
            '{}'::jsonb, 'pointer', 'delta', 'public, test, pg_temp', current_user)$$, 'what is registered [C01]');

-- every part of a definition counts
SELECT evpg_register_projection('parts', 'test.sum_apply') \g /dev/null
SELECT is(evpg_register_projection('parts', 'test.sum_project'), true, 'another reducer replaces it [C11]');
SELECT is(evpg_register_projection('parts', handler => 'test.statement_write'), true, 'a handler instead [C11]');
SELECT is(evpg_register_projection('parts', handler => 'test.statement_write', broadcast => 'none'), true,
  'another broadcast [C11]');
SELECT is(evpg_register_projection('parts', handler => 'test.statement_write', broadcast => 'none', event_name => 'line'),
  true, 'another event_name [C11]');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', initial_state => '{"sum": 1}'), true,
  'another initial_state [C11, D64]');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', aggregate_types => '{a,b}'), true,
  'other aggregate_types [C11]');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', event_types => '{a,b}'), true, 'other event_types [C11, D64]');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', event_types => '{a,b}'), false, 'the same event_types [C11]');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', tags => '{a,b}'), true, 'other tags [C11]');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', key_path => '$.data.n'), true, 'another key_path [C11]');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', key_path => '$."data"."n"'), false,
  'the same key_path in other words [C11]');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', key_path => '$.data.m'), true, 'another key_path [C11]');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', key_function => 'test.group_key'), true,
  'a key_function [C11]');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', key_function => 'test.group_keys'), true,
  'another key_function [C11]');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', constant_key => 'all'), true, 'a constant_key [C11]');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', constant_key => 'All'), true, 'another constant_key [C11]');
SELECT is(evpg_register_projection('parts', library => 'evpg_test', symbol => 'totals'), true,
  'a symbol of a library [C11]');
SELECT is(evpg_register_projection('parts', library => 'evpg_test', symbol => 'totals'), false, 'the same symbol [C11]');
SELECT is(evpg_drop_projection('parts'), true, 'dropped [C11]');
SELECT is(evpg_drop_projection('parts', missing_ok => true), false, 'dropped again, if it is there [C11]');
SELECT refused($$SELECT evpg_drop_projection('parts')$$, 'VE007 projection "parts" is not registered',
  'dropped again [C11, C17]');
SELECT refused('SELECT evpg_drop_projection(NULL)', '22004 projection name must not be null', 'NULL is no name [C11]');

-- what is refused
SELECT refused($$SELECT evpg_register_projection($$ || arguments || ')', error, arguments || ' [C01, C17]') FROM (VALUES
  ($$NULL, 'test.sum_apply'$$, '22004 projection name must not be null'),
  ($$'', 'test.sum_apply'$$, '22023 projection name must not be empty'),
  ($$repeat('x', 256), 'test.sum_apply'$$, 'VE014 projection name is too long'),
  ($$E'a\nb', 'test.sum_apply'$$, '22023 projection name contains a control character'),
  ($$'evpg.mine', 'test.sum_apply'$$, 'VE017 %'),
  ($$'bad', 'test.sum_apply', 'test.statement_write'$$, '22023 a projection is registered with either %'),
  ($$'bad', 'test.sum_apply', library => 'evpg_test', symbol => 'totals'$$,
    '22023 a projection is registered with either %'),
  ($$'bad', handler => 'test.statement_write', library => 'evpg_test', symbol => 'totals'$$,
    '22023 a projection is registered with either %'),
  ($$'bad', library => 'evpg_test'$$, '22004 symbol must not be null'),
  ($$'bad', symbol => 'totals'$$, '22004 library must not be null'),
  ($$'bad', library => 'evpg_test', symbol => 'nope'$$, 'VE009 library % defines no symbol "nope"'),
  ($$'bad', library => 'evpg_test', symbol => 'counter'$$, 'VE009 %'),
  ($$'bad', library => 'nope', symbol => 'totals'$$, '58P01 %'),
  ($$'bad', library => 'evpg_test', symbol => 'totals', initial_state => '{"a": 1}'$$,
    '22023 initial_state of a library comes from its symbol'),
  ($$'bad', 'test.nope'$$, '42883 %'),
  ($$'bad', 'test.statement_write'$$, '42P13 function %statement_write(evpg.event) cannot serve as projection reducer'),
  ($$'bad', handler => 'test.sum_apply'$$, '42P13 function % cannot serve as projection handler'),
  ($$'bad', 'test.sum_apply', key_function => 'test.sum_apply'$$, '42P13 function % cannot serve as key function'),
  ($$'bad', 'test.counter_handle'$$, '42P13 %'),
  ($$'bad', 'test.sum_apply', key_path => '$.data.n', constant_key => 'all'$$, '22023 a projection has one kind of key'),
  ($$'bad', 'test.sum_apply', key_path => '$.data.n', key_function => 'test.group_key'$$,
    '22023 a projection has one kind of key'),
  ($$'bad', 'test.sum_apply', key_function => 'test.group_key', constant_key => 'all'$$,
    '22023 a projection has one kind of key'),
  ($$'bad', 'test.sum_apply', constant_key => repeat('x', 1025)$$, 'VE014 %too long'),
  ($$'bad', 'test.sum_apply', key_path => '$.'$$, '42601 %'),
  ($$'bad', 'test.sum_apply', mode => 'sometimes'$$, '22023 unknown projection mode "sometimes"'),
  ($$'bad', 'test.sum_apply', mode => NULL$$, '22004 mode must not be null'),
  ($$'bad', 'test.sum_apply', broadcast => 'loud'$$, '22023 unknown broadcast "loud"'),
  ($$'bad', 'test.sum_apply', broadcast => NULL$$, '22004 broadcast must not be null'),
  ($$'bad', 'test.sum_apply', event_name => ''$$, '22023 event_name must not be empty'),
  ($$'bad', 'test.sum_apply', event_name => NULL$$, '22004 event_name must not be null'),
  ($$'bad', 'test.sum_apply', initial_state => NULL$$, '22004 initial state must not be null'),
  ($$'bad', 'test.sum_apply', aggregate_types => ARRAY['a', NULL]$$, '22023 aggregate_types must be %'),
  ($$'bad', 'test.sum_apply', event_types => '{{a},{b}}'$$, '22023 event_types must be %'),
  ($$'bad', 'test.sum_apply', tags => ARRAY[NULL]$$, '22023 tags must be %')) x (arguments, error);
CREATE FUNCTION test.strict_reducer(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STRICT AS 'SELECT state';
CREATE FUNCTION test.set_reducer(state jsonb, event evpg.event) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT state';
CREATE FUNCTION test.text_reducer(state jsonb, event evpg.event) RETURNS text LANGUAGE sql AS $$ SELECT '1' $$;
CREATE FUNCTION test.swapped(event evpg.event, state jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
CREATE PROCEDURE test.procedure(state jsonb, event evpg.event) LANGUAGE sql AS 'SELECT';
CREATE FUNCTION test.number_key(event evpg.event) RETURNS bigint LANGUAGE sql AS 'SELECT event.position';
CREATE FUNCTION test.strict_key(event evpg.event) RETURNS text LANGUAGE sql STRICT AS $$ SELECT 'a' $$;
CREATE FUNCTION test.void_handler(event evpg.event) RETURNS void LANGUAGE sql AS 'SELECT';
SELECT refused(format($$SELECT evpg_register_projection('bad', %s)$$, arguments), '42P13 function %', arguments || ' [C01]')
  FROM unnest(ARRAY[
  $$'test.strict_reducer'$$, $$'test.set_reducer'$$, $$'test.text_reducer'$$, $$'test.swapped'$$, $$'test.procedure'$$,
    $$handler => 'test.void_handler'$$,
  $$'test.sum_apply', key_function => 'test.number_key'$$, $$'test.sum_apply', key_function => 'test.strict_key'$$])
    arguments;
SELECT is((SELECT string_agg(name, ',') FROM evpg.projection), 'sums', 'nothing of that is registered [C01]');

-- who may
CREATE ROLE evpg_projections_writer;
CREATE ROLE evpg_projections_operator;
SELECT evpg_grant('evpg_projections_writer', 'writer'), evpg_grant('evpg_projections_operator', 'operator') \g /dev/null
GRANT USAGE ON SCHEMA test TO evpg_projections_writer, evpg_projections_operator;
GRANT CREATE ON SCHEMA test TO evpg_projections_operator;
SET ROLE evpg_projections_operator;
CREATE TABLE test.secret (n bigint);
CREATE FUNCTION test.secret_write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO test.secret VALUES ((event.data->>'n')::bigint); SELECT to_jsonb(current_user::text)
$$;
SELECT is(evpg_register_projection('secret', handler => 'test.secret_write', aggregate_types => '{counter}',
  event_types => '{Secret}'), true, 'design 9: who registers owns the function');
SELECT alike(error_of($$SELECT evpg_register_projection('other', 'test.sum_apply')$$), '42501 %',
  'design 9: the function of another cannot be registered');
SELECT alike(error_of($$SELECT
  evpg_register_projection('other', handler => 'test.secret_write', key_function => 'test.group_key')$$), '42501 %',
  'design 9: nor be the key function');
SELECT alike(error_of($$SELECT evpg_register_projection('other', library => 'evpg_test', symbol => 'totals')$$),
  '42501 must be superuser to register a library', 'design 9: a library needs a superuser');
SET ROLE evpg_projections_writer;
SELECT alike(error_of($$SELECT evpg_register_projection('other', 'test.sum_apply')$$), '42501 %',
  'design 9: a writer registers nothing');
SELECT alike(error_of($$SELECT evpg_put_projection('sums', 'a', '{}')$$), '42501 %', 'a writer puts nothing [C20]');
SELECT alike(error_of($$SELECT evpg_rebuild_projection('sums', 'a')$$), '42501 %', 'a writer does not rebuild [C12]');
SELECT alike(error_of($$SELECT evpg_drop_projection('sums')$$), '42501 %', 'a writer does not drop [C11]');
SELECT alike(error_of($$SELECT * FROM test.secret$$), '42501 %', 'design 9: and has no right to the table');
SELECT isnt(add('s', 5, 'Secret'), NULL, 'design 9: but its commands are projected');
SELECT is((SELECT count(*) FROM evpg_projection('secret', 's')), 1::bigint, 'design 9: and what it may read is there');
RESET ROLE;
SELECT is((SELECT array_agg(n) FROM test.secret), '{5}', 'design 9: by the owner of the function');
SELECT evpg_drop_projection('secret'), evpg_revoke('evpg_projections_writer', 'writer'),
  evpg_revoke('evpg_projections_operator', 'operator') \g /dev/null
DROP OWNED BY evpg_projections_writer, evpg_projections_operator;
DROP ROLE evpg_projections_writer, evpg_projections_operator;

-- ------------------------------------------------------------------ applying

SELECT is((SELECT count(*) FROM evpg_projection('sums', 'a')), 0::bigint, 'no row of a key that has none [C07]');
SELECT is(try('a', 'Add', '{"n": 5}'), 'ok 1', 'a command [C02]');
SELECT is(row_of('sums', 'a'), '1.1 {"sum": 5, "count": 1}', 'the first apply writes version 1 [rule 12, C05, 3.4 test 1]');
SELECT is(try('a', 'Add', '{"n": 3}'), 'ok 2', 'another [C02]');
SELECT is(row_of('sums', 'a'), '1.2 {"sum": 8, "count": 2}',
  'the second folds and writes version 2 [rule 12, C05, 3.4 test 1]');
SELECT is(try('b', 'Add', '{"n": 7}'), 'ok 1', 'another key [C03, 3.4 test 2]');
SELECT is(rows_of('sums'), 'a: 1.2 {"sum": 8, "count": 2}, b: 1.1 {"sum": 7, "count": 1}, s: 1.1 {"sum": 0, "count": 1}',
  'starts from the initial state [C04, 3.4 test 2]');
SELECT is((SELECT array_agg(position ORDER BY position) FROM evpg_projection('sums', 'a')),
  (SELECT ARRAY[max(position)] FROM evpg.event WHERE aggregate_id = 'a'),
  'a row says the position of its last event [C04, B35]');
SELECT is(try('five', 'AddMany', '{"count": 5}'), 'ok 5', 'five events in one command [C05, 3.4 test 1]');
SELECT is(row_of('sums', 'five'), '1.5 {"sum": 5, "count": 5}', 'are five applies [C05, 3.4 test 1]');
SELECT is(try('a', 'Nothing'), 'noop 2', 'a no-op [rule 5]');
SELECT is(try('a', 'Subtract', '{"n": 1000}'), 'rejected 2 underflow', 'a rejection [rule 5]');
SELECT is(try('a', 'Add', '{"n": 1}', 9), 'conflict 2', 'a conflict [rule 5]');
SELECT is(try('a', 'Add', '{"n": 5000}'), 'invariant 2 limit', 'a failed invariant [rule 5]');
SELECT is(row_of('sums', 'a'), '1.2 {"sum": 8, "count": 2}', 'change no projection [rule 5]');
SELECT is(try('a', 'Add', '{"n": 1}', command_id => 'once'), 'ok 3', 'a command with an id [rule 4]');
SELECT is(try('a', 'Add', '{"n": 1}', command_id => 'once'), 'duplicate 3', 'sent again [rule 4]');
SELECT is(row_of('sums', 'a'), '1.3 {"sum": 9, "count": 3}', 'an event is applied once [rule 12]');
SELECT is((SELECT count(*) FROM evpg_execute('counter', 'a', 'Add', '{"n": 1}')), 1::bigint,
  'evpg_execute projects [C02, A25, D66]');
SELECT is(row_of('sums', 'a'), '1.4 {"sum": 10, "count": 4}', 'evpg_execute adds to the row [C02]');
SELECT is((SELECT count(*) FROM
  evpg_append('counter', 'a', ARRAY[evpg_event('Added', '{"n": 1}'), evpg_event('Added', '{"n": 2}')])), 2::bigint,
  'evpg_append projects [C02, A26]');
SELECT is(row_of('sums', 'a'), '1.6 {"sum": 13, "count": 6}', 'evpg_append adds to the row [C02]');
SELECT is((SELECT count(*) FROM
  evpg_inject('counter', 'a', evpg_event('Added', '{"n": 1}', event_id => '01890a5d-ac96-774b-bcce-b302099a8001'))),
  1::bigint, 'evpg_inject projects [C02]');
SELECT is((SELECT count(*) FROM
  evpg_inject('counter', 'a', evpg_event('Added', '{"n": 1}', event_id => '01890a5d-ac96-774b-bcce-b302099a8001'))),
  0::bigint, 'twice [rule 12]');
SELECT is(row_of('sums', 'a'), '1.7 {"sum": 14, "count": 7}', 'is applied once [rule 12]');
SELECT same($$SELECT (SELECT count(*) FROM evpg_create_stream('counter', 'empty')),
  (SELECT count(*) FROM evpg_projection('sums', 'empty'))$$, 'VALUES (1, 0)', 'a stream without events has no row [C02]');
SELECT is((SELECT count(*) FROM generate_series(1, 3) n,
  LATERAL evpg_execute('counter', 'three', 'Add', jsonb_build_object('n', n))), 3::bigint,
  'three commands in one statement [C02]');
SELECT is(row_of('sums', 'three'), '1.3 {"sum": 6, "count": 3}', 'are three applies [C02]');

-- what an event is to a projection
CREATE FUNCTION test.keep_event(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(event)';
SELECT evpg_register_projection('last', 'test.keep_event') \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'whole',
  ARRAY[evpg_event('Added', '{"n": 1}', '{"m": 1}', '{x,y}', 3, '2001-01-01 00:00+00')], command_id => 'c', actor => 'me',
  correlation_id => 'corr', causation_id => 'cause') \g /dev/null
SELECT is((SELECT state FROM evpg_projection('last', 'whole')),
  (SELECT to_jsonb(e) FROM evpg_read_stream('counter', 'whole') e),
  'a projection sees the event as it is stored [C01, B30]');
SELECT evpg_drop_projection('last') \g /dev/null

-- updated_at
BEGIN;
SELECT add('clock', 1) \g /dev/null
SELECT updated_at AS first FROM evpg_projection('sums', 'clock') \gset
SELECT add('clock', 1) \g /dev/null
SELECT updated_at AS second FROM evpg_projection('sums', 'clock') \gset
COMMIT;
SELECT ok(:'first'::timestamptz < :'second'::timestamptz,
  'updated_at advances within one transaction [rule 12, C06, 3.4 test 1]');
UPDATE evpg.projection_state SET updated_at = clock_timestamp() + interval '1 day' WHERE key = 'clock';
SELECT updated_at AS future FROM evpg_projection('sums', 'clock') \gset
SELECT add('clock', 1) \g /dev/null
SELECT ok((SELECT updated_at FROM evpg_projection('sums', 'clock')) > :'future'::timestamptz,
  'even if the clock was set back [rule 12, C06]');

-- a savepoint, a rollback
BEGIN;
SELECT add('r', 1) \g /dev/null
SAVEPOINT s;
SELECT add('r', 10), add('r2', 10) \g /dev/null
SELECT is(row_of('sums', 'r'), '1.2 {"sum": 11, "count": 2}', 'a transaction sees its own rows [rule 11]');
ROLLBACK TO s;
SELECT is(row_of('sums', 'r'), '1.1 {"sum": 1, "count": 1}', 'ROLLBACK TO takes back the rows too [rule 11]');
SELECT is(row_of('sums', 'r2'), NULL, 'ROLLBACK TO takes back new rows [rule 11]');
SELECT add('r', 100) \g /dev/null
COMMIT;
SELECT is(row_of('sums', 'r'), '1.2 {"sum": 101, "count": 2}', 'what was taken back does not count [rule 11]');
BEGIN;
SELECT add('r', 1), add('r3', 1) \g /dev/null
ROLLBACK;
SELECT is(row_of('sums', 'r') || coalesce(row_of('sums', 'r3'), ''), '1.2 {"sum": 101, "count": 2}',
  'a projection commits with its events or not at all [rule 11]');
SELECT is((SELECT count(*) FROM evpg.projection_state WHERE key IN ('r2', 'r3')), 0::bigint,
  'a rollback leaves nothing [rule 11]');

-- ------------------------------------------------------------------ kinds

-- a reducer with a delta of its own has the same rows
SELECT evpg_register_projection('deltas', 'test.sum_project', aggregate_types => '{counter_c}'),
  evpg_register_projection('totals', library => 'evpg_test', symbol => 'totals'),
       evpg_register_projection('plain', 'test.sum_apply', aggregate_types => '{counter_c}') \g /dev/null
SELECT evpg_try_execute('counter_c', 'k', 'AddEach', '{"ns": [1, 2, 3]}'),
  evpg_try_execute('counter_c', 'k', 'Subtract', '{"n": 4}') \g /dev/null
SELECT add('k', 0, 'Odd', aggregate => 'counter_c') \g /dev/null
SELECT is(rows_of('plain'), 'k: 1.5 {"sum": 2, "count": 5}', 'a reducer that returns the state [C01]');
SELECT is(rows_of('deltas'), 'k: 1.5 {"sum": 2, "count": 5}', 'a reducer that returns state and delta [C01]');
SELECT is((SELECT string_agg(key || ' ' || version || ' ' || state, ',') FROM evpg.projected_state
  WHERE name = 'totals' AND key = 'k'), 'k 4 {"total": 2, "applied": 4}',
  'a symbol of a module takes what is in its table [C01]');
SELECT is((SELECT initial_state FROM evpg.projection WHERE name = 'totals'), '{"total": 0, "applied": 0}',
  'a symbol of a module gives its initial state [C01, A24]');
SELECT add('k', 0, 'Cleared', aggregate => 'counter_c') \g /dev/null
SELECT is(rows_of('plain') || rows_of('deltas'), '', 'a NULL state deletes the row [rule 12]');
SELECT is(row_of('totals', 'k'), NULL, 'evpg_delete() of a module deletes the row [rule 12]');
SELECT add('k', 1, aggregate => 'counter_c') \g /dev/null
SELECT is(rows_of('plain') || '; ' || rows_of('deltas'), 'k: 2.1 {"sum": 1, "count": 1}; k: 2.1 {"sum": 1, "count": 1}',
  'a key that comes back starts from the initial state, in the next generation [rule 12]');
SELECT is(row_of('totals', 'k'), '2.1 {"total": 1, "applied": 1}',
  'a key that comes back starts from the initial state, in the next generation; a module, too [rule 12]');

-- a table projection
SELECT evpg_register_projection('statement', handler => 'test.statement_write', aggregate_types => '{counter}') \g /dev/null
SELECT add('t', 4), add('t', 6), add('u', 1) \g /dev/null
SELECT same($$SELECT id, n FROM statement ORDER BY position$$, $$VALUES ('t', 4), ('t', 6), ('u', 1)$$,
  'a table projection writes its table [C30]');
SELECT same($$SELECT s.id, s.position FROM statement s ORDER BY s.position$$,
  $$SELECT aggregate_id, position FROM evpg.event WHERE aggregate_id IN ('t', 'u') ORDER BY position$$,
  'with the position of the event [issue 3]');
SELECT is(rows_of('statement'), 't: 1.2 -, u: 1.1 -',
  'a projection with a table has a row of its own for each key, without a state [rule 11]');
BEGIN;
SELECT add('t', 100) \g /dev/null
ROLLBACK;
SELECT is((SELECT count(*) FROM statement), 3::bigint, 'it commits with its events or not at all [rule 11]');
SELECT refused($$SELECT evpg_put_projection('statement', 't', '{}')$$, '0A000 cannot put a key of projection "statement"',
  'a table projection has no state to put [rule 13]');
SELECT refused($$SELECT evpg_rebuild_projection('statement', 't')$$, '0A000 cannot rebuild a key of projection "statement"',
  'a table projection has no keys to rebuild [rule 13]');
SELECT evpg_drop_projection('statement') \g /dev/null
SELECT add('t', 9) \g /dev/null
SELECT is((SELECT count(*) FROM statement), 3::bigint,
  'a dropped projection writes no more; its table is the user''s [C11]');

-- ------------------------------------------------------------------ filters

SELECT evpg_register_projection('by_type', 'test.sum_apply', aggregate_types => '{counter_c}'),
       evpg_register_projection('by_types', 'test.sum_apply', aggregate_types => '{counter_c,counter}'),
       evpg_register_projection('by_event', 'test.sum_apply', event_types => '{Subtracted,Odd}'),
       evpg_register_projection('by_tag', 'test.sum_apply', tags => '{red,blue}'),
       evpg_register_projection('by_all', 'test.sum_apply', aggregate_types => '{counter}', event_types => '{Added}',
         tags => '{red}'),
       evpg_register_projection('by_none', 'test.sum_apply', aggregate_types => '{nobody}'),
       evpg_register_projection('module_filter', library => 'evpg_test', symbol => 'totals', aggregate_types => '{counter}',
         event_types => '{Subtracted}') \g /dev/null
SELECT add('f', 1), add('f', 2, 'Subtracted'), add('f', 4, 'Odd'), add('f', 8, tags => '{red}'),
  add('f', 16, tags => '{green,blue}'), add('f', 32, 'Subtracted', tags => '{red}'),
       add('f', 64, tags => '{Red,reddish}'), add('g', 128, aggregate => 'counter_c'),
         add('g', 256, tags => '{red}', aggregate => 'counter_c') \g /dev/null
SELECT is(rows_of('by_type'), 'g: 1.2 {"sum": 384, "count": 2}', 'a filter by aggregate type [B30]');
SELECT is(rows_of('by_types'), 'f: 1.7 {"sum": 55, "count": 7}, g: 1.2 {"sum": 384, "count": 2}', 'by several [B30]');
SELECT is(rows_of('by_event'), 'f: 1.3 {"sum": -34, "count": 3}', 'a filter by event type [B30, C01]');
SELECT is(rows_of('by_tag'), 'f: 1.3 {"sum": -8, "count": 3}, g: 1.1 {"sum": 256, "count": 1}',
  'a filter by tag: any of them, exactly [B30, B38]');
SELECT is(rows_of('by_all'), 'f: 1.1 {"sum": 8, "count": 1}', 'all filters together [B30]');
SELECT is(rows_of('by_none'), '', 'of a type that is not there [B30]');
SELECT is(rows_of('module_filter'), 'f: 1.2 {"total": -34, "applied": 2}',
  'a filter narrows what a module takes [B30, C01]');
SELECT is(error_of($$SELECT evpg_register_projection('empty_list', 'test.sum_apply', aggregate_types => '{}')$$),
  '22023 aggregate_types must not be an empty array', 'an empty list is refused [B30]');

-- ------------------------------------------------------------------ replaced, dropped

SELECT evpg_register_projection('changing', 'test.sum_apply', aggregate_types => '{counter}') \g /dev/null
SELECT add('c1', 1), add('c2', 2) \g /dev/null
CREATE FUNCTION test.negative_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('sum', (state->>'sum')::bigint - (event.data->>'n')::bigint) $$;
SELECT is(evpg_register_projection('changing', 'test.negative_apply', initial_state => '{"sum": 0}'), true,
  'registered anew with another reducer [C11]');
SELECT is(rows_of('changing'), 'c1: 1.1 {"sum": 1, "count": 1}, c2: 1.1 {"sum": 2, "count": 1}',
  'the rows stay as they are [C11]');
SELECT add('c1', 10), add('c3', 3) \g /dev/null
SELECT is(rows_of('changing'), 'c1: 1.2 {"sum": -9}, c2: 1.1 {"sum": 2, "count": 1}, c3: 1.1 {"sum": -3}',
  'new events go through the new reducer [C11]');
SELECT is(evpg_rebuild_projection('changing', 'c1'), 2::bigint, 'until a key is rebuilt [C12]');
SELECT is(row_of('changing', 'c1'), '2.2 {"sum": -11}', 'a rebuild of a key folds all events by the new reducer [C12]');
BEGIN;
SELECT evpg_register_projection('changing', 'test.sum_apply') \g /dev/null
SELECT add('c2', 2) \g /dev/null
SELECT is(row_of('changing', 'c2'), '1.2 {"sum": 4, "count": 2}', 'a registration counts at once in its transaction [C11]');
ROLLBACK;
SELECT add('c2', 2) \g /dev/null
SELECT is(row_of('changing', 'c2'), '1.2 {"sum": 0}', 'rolled back, it never was [C11]');
BEGIN;
SELECT evpg_drop_projection('changing') \g /dev/null
SELECT is(error_of($$SELECT * FROM evpg_projection('changing', 'c1')$$), 'VE007 projection "changing" is not registered',
  'dropped, it is unknown [C17]');
ROLLBACK;
SELECT is(row_of('changing', 'c1'), '2.2 {"sum": -11}', 'a drop is rolled back with its rows [C11]');
SELECT evpg_drop_projection('changing') \g /dev/null
SELECT is((SELECT count(*) FROM evpg.projection_state WHERE build NOT IN (SELECT build FROM evpg.projection)), 0::bigint,
  'dropped, its rows are gone [C11]');
SELECT evpg_register_projection('changing', 'test.sum_apply', aggregate_types => '{counter}') \g /dev/null
SELECT is(rows_of('changing'), '', 'registered again, it starts with nothing, and takes what comes [C11]');

-- ------------------------------------------------------------------ put (C20)

SELECT is(evpg_put_projection('sums', 'put', '{"sum": 100}'), 1::bigint, 'a state is put [C20]');
SELECT is(row_of('sums', 'put'), '1.1 {"sum": 100}', 'it is there [C20]');
SELECT ok((SELECT position FROM evpg_projection('sums', 'put')) > (SELECT max(position) FROM evpg.event),
  'with a position of its own [C20]');
SELECT add('put', 1) \g /dev/null
SELECT is(row_of('sums', 'put'), '1.2 {"sum": 101, "count": 1}', 'events go on from it [C20]');
SELECT is(evpg_put_projection('sums', 'put', '{"sum": 0}'), 3::bigint, 'a put counts as an apply [C20]');
SELECT is(evpg_put_projection('sums', 'put', NULL), 4::bigint, 'NULL deletes [C20]');
SELECT is(row_of('sums', 'put'), NULL, 'it is gone [C20]');
SELECT is(evpg_put_projection('sums', 'put', NULL), 4::bigint, 'to delete again changes nothing [C20]');
SELECT is(evpg_put_projection('sums', 'put', '[1]'), 1::bigint, 'it comes back [C20]');
SELECT is(row_of('sums', 'put'), '2.1 [1]', 'in the next generation [rule 12]');
SELECT is(evpg_put_projection('sums', 'never', NULL), 0::bigint, 'to delete what never was [C20]');
SELECT is((SELECT count(*) FROM evpg.projection_state WHERE key = 'never'), 0::bigint, 'leaves nothing [C20]');
SELECT is(evpg_put_projection('sums', '', '{"sum": 1}'), 1::bigint, 'the key may be empty [C20]');
SELECT is((SELECT state FROM evpg_projection('sums')), '{"sum": 1}', 'the empty key is the default when reading [C07]');
SELECT is(evpg_put_projection('sums', 'null', 'null'), 1::bigint, 'JSON null is a state [C20]');
SELECT is(row_of('sums', 'null'), '1.1 null', 'JSON null is a state, and no deletion [C20]');
SELECT refused(format('SELECT evpg_put_projection(%s)', arguments), error, 'put ' || arguments || ' [C20]') FROM (VALUES
  ($$'nope', 'a', '{}'$$, 'VE007 projection "nope" is not registered'), ($$NULL, 'a', '{}'$$, '22004 %'),
    ($$'sums', NULL, '{}'$$, '22004 projection key must not be null'),
  ($$'sums', repeat('k', 1025), '{}'$$, 'VE014 projection key is too long'),
    ($$'sums', E'a\tb', '{}'$$, '22023 projection key contains a control character'),
  ($$'sums', 'deep', (repeat('[', 101) || repeat(']', 101))::jsonb$$, 'VE014 %')) x (arguments, error);
BEGIN;
SELECT evpg_put_projection('sums', 'a', '{"sum": -1}') \g /dev/null
ROLLBACK;
SELECT is(row_of('sums', 'a'), '1.7 {"sum": 14, "count": 7}', 'a put is rolled back [C20]');

-- ------------------------------------------------------------------ reading

SELECT is((SELECT state->>'sum' FROM evpg_projection('sums', 'a', missing_ok => false)), '14',
  'a row that must be there [C08]');
SELECT refused($$SELECT * FROM evpg_projection('sums', 'nope', missing_ok => false)$$,
  'VE008 projection "sums" has no key "nope"', 'the error names projection and key [C08, C17, 3.4 test 3]');
SELECT refused($$SELECT * FROM evpg_projection('nope', 'a', missing_ok => false)$$,
  'VE007 projection "nope" is not registered', 'an unknown projection [C08, C17]');
SELECT refused($$SELECT * FROM evpg_projection('nope', 'a')$$, 'VE007 projection "nope" is not registered',
  'an unknown projection [C07, C17, A25, 1.2 test 8]');
SELECT add('gone', 1), add('gone', 1, 'Cleared') \g /dev/null
SELECT refused($$SELECT * FROM evpg_projection('sums', 'gone', missing_ok => false)$$,
  'VE008 projection "sums" has no key "gone"', 'a deleted key is not there [C08]');
SELECT is((SELECT count(*) FROM evpg_projection('sums', 'gone')), 0::bigint, 'a deleted key has no row [C07]');
SELECT is((SELECT count(*) FROM evpg.projected_state WHERE key = 'gone'), 0::bigint,
  'a deleted key is not in the view [C07]');
SELECT same($$SELECT deleted, state, version FROM stored WHERE (name, key) = ('sums', 'gone')$$,
  'VALUES (true, NULL::jsonb, 2)', 'its mark stays [rule 12]');
SELECT is((SELECT sum((state->>'sum')::bigint) FROM evpg.projected_state WHERE name = 'by_types'),
  (SELECT sum((state->>'sum')::bigint) FROM (SELECT * FROM evpg_projection('by_types', 'f') UNION ALL
  SELECT p.* FROM (SELECT DISTINCT key FROM evpg.projected_state WHERE name = 'by_types' AND key <> 'f') k,
    LATERAL evpg_projection('by_types', k.key) p) x), 'rows are read with plain SQL [issue 3]');
SELECT throws_like($$INSERT INTO evpg.projection_state SELECT s.* FROM evpg.projection_state s
  JOIN evpg.projection USING (build) WHERE (name, key) = ('sums', 'a')$$, '%duplicate key%',
  'a key has one row [C04, 3.4 test 8]');

-- ------------------------------------------------------------------ catching up

SELECT evpg_register_projection('feed', 'test.sum_apply', aggregate_types => '{counter}'), evpg_stable_position() AS start
  \gset
SELECT add('x', 1), add('y', 2), add('x', 3), add('z', 4), add('z', 0, 'Cleared') \g /dev/null
CREATE FUNCTION test.changes(after bigint, max_count int DEFAULT 1000) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(string_agg(key || ' ' || generation || '.' || version || ' ' || coalesce(state->>'sum', '-'), ', '
    ORDER BY position), '') FROM evpg_projection_changes('feed', after, max_count) $$;
SELECT is(changes(0), 'y 1.1 2, x 1.2 4, z 1.2 -',
  'rows in the order of their last change, a deleted one without a state [rule 15, C48]');
SELECT is((SELECT array_agg(DISTINCT next_position) FROM evpg_projection_changes('feed')), ARRAY[evpg_stable_position()],
  'to go on from the stable position [rule 9]');
SELECT is(changes(evpg_stable_position()), '', 'nothing after it [C48]');
SELECT is(changes(0, 1), 'y 1.1 2', 'in pages [C48]');
SELECT is(changes((SELECT next_position FROM evpg_projection_changes('feed', 0, 1)), 1), 'x 1.2 4', 'the next page [C48]');
SELECT is(changes((SELECT max(next_position) FROM evpg_projection_changes('feed', 0, 2)), 1), 'z 1.2 -',
  'the last one [C48]');
SELECT is(changes(0, 0), '', 'an empty page [C48]');
SELECT is(changes(0, NULL), 'y 1.1 2, x 1.2 4, z 1.2 -', 'all of it [C48]');
SELECT evpg_stable_position() AS mark \gset
SELECT evpg_put_projection('feed', 'y', '{"sum": 22}') \g /dev/null
SELECT is(changes(:mark), 'y 1.2 22', 'a put is a change [C20]');
SELECT evpg_stable_position() AS mark \gset
SELECT evpg_rebuild_projection('feed', 'y') \g /dev/null
SELECT is(changes(:mark), 'y 2.1 2', 'a rebuild is a change [C12]');
SELECT evpg_stable_position() AS mark \gset
SELECT add('z', 5) \g /dev/null
SELECT is(changes(:mark), 'z 2.1 5', 'a key that came back [rule 12]');
SELECT evpg_stable_position() AS mark \gset
SELECT count(*) FROM evpg_append('counter', 'x', ARRAY[evpg_event('Added', '{"n": 1}'), evpg_event('Added', '{"n": 1}')])
  \g /dev/null
SELECT is(changes(:mark), 'x 1.4 6', 'a row is there once, as it is now [C48]');
BEGIN;
SELECT evpg_stable_position() AS mark \gset
SELECT add('x', 1) \g /dev/null
SELECT is(changes(:mark), '',
  'a row is there once, as it is now, not before it is committed, in its own transaction either [rule 9]');
COMMIT;
SELECT is(changes(:mark), 'x 1.5 7', 'a row is among the changes when it is committed [rule 9]');
-- one event for many keys: a page does not end in the middle of a position
SELECT evpg_register_projection('groups', 'test.sum_apply', key_function => 'test.group_keys',
  aggregate_types => '{counter}') \g /dev/null
SELECT add('x', 1, more => '{"groups": ["a", "b", "c"]}'), add('x', 1, more => '{"groups": ["d"]}') \g /dev/null
SELECT is((SELECT count(*) FROM evpg_projection_changes('groups', 0, 1)), 3::bigint,
  'all keys of an event are on one page [C48]');
SELECT is((SELECT string_agg(key, '')
  FROM evpg_projection_changes('groups', (SELECT max(next_position) FROM evpg_projection_changes('groups', 0, 1)), 1)), 'd',
  'the next page goes on behind it [C48]');
SELECT refused(format('SELECT * FROM evpg_projection_changes(%s)', arguments), error, 'changes ' || arguments || ' [C48]')
  FROM (VALUES
  ($$'nope'$$, 'VE007 projection "nope" is not registered'), ($$NULL$$, '22004 %'),
    ($$'feed', NULL$$, '22004 after_position must not be null'), ($$'feed', 0, -1$$, '22023 max_count must not be negative'))
    x (arguments, error);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT error_of($$SELECT * FROM evpg_projection_changes('feed')$$) AS error \gset
ROLLBACK;
SELECT alike(:'error'::text, '25000 %', 'the stable position needs READ COMMITTED [rule 9]');

-- ------------------------------------------------------------------ without code

SELECT is(evpg_register_projection('put_only', broadcast => 'delta'), true, 'a projection may have no code [C20]');
SELECT evpg_put_projection('put_only', 'k', '{"a": 1}'), add('k', 1) \g /dev/null
SELECT is(row_of('put_only', 'k'), '1.1 {"a": 1}', 'its rows are put, and no event changes them [C20]');
SELECT is(evpg_put_projection('put_only', 'k', '{"a": 2}'), 2::bigint, 'put again [C20]');
SELECT refused(statement, '0A000 cannot rebuild projection "put_only"', 'it cannot be rebuilt: ' || statement || ' [C20]')
  FROM (VALUES
  ($$SELECT evpg_rebuild_projection('put_only')$$), ($$SELECT evpg_rebuild_projection('put_only', 'k')$$),
    ($$SELECT evpg_rebuild_projection('put_only', background => true)$$)) x (statement);
SELECT is(row_of('put_only', 'k'), '1.2 {"a": 2}', 'a refused rebuild of a projection without code keeps its rows [C20]');
SELECT refused(format($$SELECT evpg_register_projection('codeless', %s)$$, arguments),
  '22023 a projection without a reducer, a handler or a library takes no events', arguments || ' [C20]') FROM unnest(ARRAY[
  'mode => ''async''', 'event_types => ''{A}''', 'aggregate_types => ''{a}''', 'tags => ''{t}''', 'key_path => ''$.type''',
    'constant_key => ''all''', 'max_attempts => 1', 'start_position => 1']) arguments;
SELECT is(evpg_register_projection('put_only', 'test.sum_apply', aggregate_types => '{counter}'), true,
  'code may come later [C20]');
SELECT add('k', 1) \g /dev/null
SELECT is((SELECT version FROM evpg_projection('put_only', 'k')), 3::bigint,
  'code that comes later goes on from what was put [C20]');
SELECT evpg_drop_projection('put_only') \g /dev/null
SELECT * FROM finish();
