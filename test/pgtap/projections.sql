-- projections.sql: registration and filters of projections, what an apply writes, deletion and return, puts, reading, catching
-- up (rules 11 and 12).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql

SELECT plan(294);
SET test.kind = counter;

-- ------------------------------------------------------------------ registration

SELECT is(evpg_register_projection('sums', 'test.sum_apply'), true, 'C01, C11, A24: a projection is registered');
SELECT is(evpg_register_projection('sums', 'test.sum_apply'), false, 'C11: again, it is the same: nothing changes');
SELECT is(evpg_register_projection('sums', reducer => 'sum_apply', key_path => NULL, broadcast => 'pointer', event_name => 'delta', initial_state => '{}', mode => 'inline'), false,
  'C11: the defaults said, and the name resolved by search_path, are the same');
SELECT same($$SELECT name, library, symbol, reducer, handler, key_function, key_path::text, constant_key, aggregate_types, event_types, tags, initial_state, broadcast, event_name, search_path, registered_by
                FROM evpg.projection$$,
  $$VALUES ('sums', NULL::text, NULL::text, 'test.sum_apply(pg_catalog.jsonb,evpg.event)', NULL::text, NULL::text, NULL::text, NULL::text, NULL::text[], NULL::text[], NULL::text[],
            '{}'::jsonb, 'pointer', 'delta', 'public, test, pg_temp', current_user)$$, 'C01: what is registered');

-- every part of a definition counts
SELECT evpg_register_projection('parts', 'test.sum_apply') \g /dev/null
SELECT is(evpg_register_projection('parts', 'test.sum_project'), true, 'C11: another reducer replaces it');
SELECT is(evpg_register_projection('parts', handler => 'test.statement_write'), true, 'C11: a handler instead');
SELECT is(evpg_register_projection('parts', handler => 'test.statement_write', broadcast => 'none'), true, 'C11: another broadcast');
SELECT is(evpg_register_projection('parts', handler => 'test.statement_write', broadcast => 'none', event_name => 'line'), true, 'C11: another event_name');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', initial_state => '{"sum": 1}'), true, 'C11, D64: another initial_state');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', aggregate_types => '{a,b}'), true, 'C11: other aggregate_types');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', event_types => '{a,b}'), true, 'C11, D64: other event_types');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', event_types => '{a,b}'), false, 'C11: the same event_types');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', tags => '{a,b}'), true, 'C11: other tags');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', key_path => '$.data.n'), true, 'C11: another key_path');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', key_path => '$."data"."n"'), false, 'C11: the same key_path in other words');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', key_path => '$.data.m'), true, 'C11: another key_path');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', key_function => 'test.group_key'), true, 'C11: a key_function');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', key_function => 'test.group_keys'), true, 'C11: another key_function');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', constant_key => 'all'), true, 'C11: a constant_key');
SELECT is(evpg_register_projection('parts', 'test.sum_apply', constant_key => 'All'), true, 'C11: another constant_key');
SELECT is(evpg_register_projection('parts', library => 'evpg_test', symbol => 'totals'), true, 'C11: a symbol of a library');
SELECT is(evpg_register_projection('parts', library => 'evpg_test', symbol => 'totals'), false, 'C11: the same symbol');
SELECT is(evpg_drop_projection('parts'), true, 'C11: dropped');
SELECT is(evpg_drop_projection('parts', missing_ok => true), false, 'C11: dropped again, if it is there');
SELECT refused($$SELECT evpg_drop_projection('parts')$$, 'VE007 projection "parts" is not registered', 'C11, C17: dropped again');
SELECT refused('SELECT evpg_drop_projection(NULL)', '22004 projection name must not be null', 'C11: NULL is no name');

-- what is refused
SELECT refused($$SELECT evpg_register_projection($$ || arguments || ')', error, 'C01, C17: ' || arguments) FROM (VALUES
  ($$NULL, 'test.sum_apply'$$, '22004 projection name must not be null'),
  ($$'', 'test.sum_apply'$$, '22023 projection name must not be empty'),
  ($$repeat('x', 256), 'test.sum_apply'$$, 'VE014 projection name is too long'),
  ($$E'a\nb', 'test.sum_apply'$$, '22023 projection name contains a control character'),
  ($$'evpg.mine', 'test.sum_apply'$$, 'VE017 %'),
  ($$'bad', 'test.sum_apply', 'test.statement_write'$$, '22023 a projection is registered with either %'),
  ($$'bad', 'test.sum_apply', library => 'evpg_test', symbol => 'totals'$$, '22023 a projection is registered with either %'),
  ($$'bad', handler => 'test.statement_write', library => 'evpg_test', symbol => 'totals'$$, '22023 a projection is registered with either %'),
  ($$'bad', library => 'evpg_test'$$, '22004 symbol must not be null'),
  ($$'bad', symbol => 'totals'$$, '22004 library must not be null'),
  ($$'bad', library => 'evpg_test', symbol => 'nope'$$, 'VE009 library % defines no symbol "nope"'),
  ($$'bad', library => 'evpg_test', symbol => 'counter'$$, 'VE009 %'),
  ($$'bad', library => 'nope', symbol => 'totals'$$, '58P01 %'),
  ($$'bad', library => 'evpg_test', symbol => 'totals', initial_state => '{"a": 1}'$$, '22023 initial_state of a library comes from its symbol'),
  ($$'bad', 'test.nope'$$, '42883 %'),
  ($$'bad', 'test.statement_write'$$, '42P13 function %statement_write(evpg.event) cannot be a projection reducer'),
  ($$'bad', handler => 'test.sum_apply'$$, '42P13 function % cannot be a projection handler'),
  ($$'bad', 'test.sum_apply', key_function => 'test.sum_apply'$$, '42P13 function % cannot be a key function'),
  ($$'bad', 'test.counter_handle'$$, '42P13 %'),
  ($$'bad', 'test.sum_apply', key_path => '$.data.n', constant_key => 'all'$$, '22023 a projection has one kind of key'),
  ($$'bad', 'test.sum_apply', key_path => '$.data.n', key_function => 'test.group_key'$$, '22023 a projection has one kind of key'),
  ($$'bad', 'test.sum_apply', key_function => 'test.group_key', constant_key => 'all'$$, '22023 a projection has one kind of key'),
  ($$'bad', 'test.sum_apply', constant_key => repeat('x', 1025)$$, 'VE014 %too long'),
  ($$'bad', 'test.sum_apply', key_path => '$.'$$, '42601 %'),
  ($$'bad', 'test.sum_apply', mode => 'sometimes'$$, '22023 unknown projection mode "sometimes"'),
  ($$'bad', 'test.sum_apply', mode => NULL$$, '22004 mode must not be null'),
  ($$'bad', 'test.sum_apply', broadcast => 'loud'$$, '22023 unknown broadcast "loud"'),
  ($$'bad', 'test.sum_apply', broadcast => NULL$$, '22004 broadcast must not be null'),
  ($$'bad', 'test.sum_apply', event_name => ''$$, '22023 event_name must not be empty'),
  ($$'bad', 'test.sum_apply', event_name => NULL$$, '22004 event_name must not be null'),
  ($$'bad', 'test.sum_apply', initial_state => NULL$$, '22004 initial state must not be null'),
  ($$'bad', 'test.sum_apply', aggregate_types => '{a,NULL}'$$, '22023 aggregate_types must be %'),
  ($$'bad', 'test.sum_apply', event_types => '{{a},{b}}'$$, '22023 event_types must be %'),
  ($$'bad', 'test.sum_apply', tags => '{NULL}'$$, '22023 tags must be %')) x (arguments, error);
CREATE FUNCTION test.strict_reducer(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STRICT AS 'SELECT state';
CREATE FUNCTION test.set_reducer(state jsonb, event evpg.event) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT state';
CREATE FUNCTION test.text_reducer(state jsonb, event evpg.event) RETURNS text LANGUAGE sql AS $$ SELECT '1' $$;
CREATE FUNCTION test.swapped(event evpg.event, state jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
CREATE PROCEDURE test.procedure(state jsonb, event evpg.event) LANGUAGE sql AS 'SELECT';
CREATE FUNCTION test.number_key(event evpg.event) RETURNS bigint LANGUAGE sql AS 'SELECT event.position';
CREATE FUNCTION test.strict_key(event evpg.event) RETURNS text LANGUAGE sql STRICT AS $$ SELECT 'a' $$;
CREATE FUNCTION test.void_handler(event evpg.event) RETURNS void LANGUAGE sql AS 'SELECT';
SELECT refused(format($$SELECT evpg_register_projection('bad', %s)$$, arguments), '42P13 function %', 'C01: ' || arguments) FROM unnest(ARRAY[
  $$'test.strict_reducer'$$, $$'test.set_reducer'$$, $$'test.text_reducer'$$, $$'test.swapped'$$, $$'test.procedure'$$, $$handler => 'test.void_handler'$$,
  $$'test.sum_apply', key_function => 'test.number_key'$$, $$'test.sum_apply', key_function => 'test.strict_key'$$]) arguments;
SELECT is((SELECT string_agg(name, ',') FROM evpg.projection), 'sums', 'C01: nothing of that is registered');

-- who may
CREATE ROLE evpg_projections_writer;
CREATE ROLE evpg_projections_operator;
SELECT evpg_grant('evpg_projections_writer', 'writer'), evpg_grant('evpg_projections_operator', 'operator') \g /dev/null
GRANT USAGE ON SCHEMA test TO evpg_projections_writer, evpg_projections_operator;
GRANT CREATE ON SCHEMA test TO evpg_projections_operator;
SET ROLE evpg_projections_operator;
CREATE TABLE test.secret (n bigint);
CREATE FUNCTION test.secret_write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ INSERT INTO test.secret VALUES ((event.data->>'n')::bigint); SELECT to_jsonb(current_user::text) $$;
SELECT is(evpg_register_projection('secret', handler => 'test.secret_write', aggregate_types => '{counter}', event_types => '{Secret}'), true, 'design 9: who registers owns the function');
SELECT alike(error_of($$SELECT evpg_register_projection('other', 'test.sum_apply')$$), '42501 %', 'design 9: the function of another cannot be registered');
SELECT alike(error_of($$SELECT evpg_register_projection('other', handler => 'test.secret_write', key_function => 'test.group_key')$$), '42501 %', 'design 9: nor be the key function');
SELECT alike(error_of($$SELECT evpg_register_projection('other', library => 'evpg_test', symbol => 'totals')$$), '42501 must be superuser to register a library', 'design 9: a library needs a superuser');
SET ROLE evpg_projections_writer;
SELECT alike(error_of($$SELECT evpg_register_projection('other', 'test.sum_apply')$$), '42501 %', 'design 9: a writer registers nothing');
SELECT alike(error_of($$SELECT evpg_put_projection('sums', 'a', '{}')$$), '42501 %', 'C20: a writer puts nothing');
SELECT alike(error_of($$SELECT evpg_rebuild_projection('sums', 'a')$$), '42501 %', 'C12: nor rebuilds');
SELECT alike(error_of($$SELECT evpg_drop_projection('sums')$$), '42501 %', 'C11: nor drops');
SELECT alike(error_of($$SELECT * FROM test.secret$$), '42501 %', 'design 9: and has no right to the table');
SELECT isnt(add('s', 5, 'Secret'), NULL, 'design 9: but its commands are projected');
SELECT is((SELECT count(*) FROM evpg_projection('secret', 's')), 1::bigint, 'design 9: and what it may read is there');
RESET ROLE;
SELECT is((SELECT array_agg(n) FROM test.secret), '{5}', 'design 9: by the owner of the function');
SELECT evpg_drop_projection('secret'), evpg_revoke('evpg_projections_writer', 'writer'), evpg_revoke('evpg_projections_operator', 'operator') \g /dev/null
DROP OWNED BY evpg_projections_writer, evpg_projections_operator;
DROP ROLE evpg_projections_writer, evpg_projections_operator;

-- ------------------------------------------------------------------ applying

SELECT is((SELECT count(*) FROM evpg_projection('sums', 'a')), 0::bigint, 'C07: no row of a key that has none');
SELECT is(try('a', 'Add', '{"n": 5}'), 'ok 1', 'C02: a command');
SELECT is(row_of('sums', 'a'), '1.1 {"sum": 5, "count": 1}', 'rule 12, C05, 3.4 test 1: the first apply writes version 1');
SELECT is(try('a', 'Add', '{"n": 3}'), 'ok 2', 'C02: another');
SELECT is(row_of('sums', 'a'), '1.2 {"sum": 8, "count": 2}', 'rule 12, C05, 3.4 test 1: the second folds and writes version 2');
SELECT is(try('b', 'Add', '{"n": 7}'), 'ok 1', 'C03, 3.4 test 2: another key');
SELECT is(rows_of('sums'), 'a: 1.2 {"sum": 8, "count": 2}, b: 1.1 {"sum": 7, "count": 1}, s: 1.1 {"sum": 0, "count": 1}', 'C04, 3.4 test 2: starts from the initial state');
SELECT is((SELECT array_agg(position ORDER BY position) FROM evpg_projection('sums', 'a')), (SELECT ARRAY[max(position)] FROM evpg.event WHERE aggregate_id = 'a'), 'C04, B35: a row says the position of its last event');
SELECT is(try('five', 'AddMany', '{"count": 5}'), 'ok 5', 'C05, 3.4 test 1: five events in one command');
SELECT is(row_of('sums', 'five'), '1.5 {"sum": 5, "count": 5}', 'C05, 3.4 test 1: are five applies');
SELECT is(try('a', 'Nothing'), 'noop 2', 'rule 5: a no-op');
SELECT is(try('a', 'Subtract', '{"n": 1000}'), 'rejected 2 underflow', 'rule 5: a rejection');
SELECT is(try('a', 'Add', '{"n": 1}', 9), 'conflict 2', 'rule 5: a conflict');
SELECT is(try('a', 'Add', '{"n": 5000}'), 'invariant 2 limit', 'rule 5: a failed invariant');
SELECT is(row_of('sums', 'a'), '1.2 {"sum": 8, "count": 2}', 'rule 5: change no projection');
SELECT is(try('a', 'Add', '{"n": 1}', command_id => 'once'), 'ok 3', 'rule 4: a command with an id');
SELECT is(try('a', 'Add', '{"n": 1}', command_id => 'once'), 'duplicate 3', 'rule 4: sent again');
SELECT is(row_of('sums', 'a'), '1.3 {"sum": 9, "count": 3}', 'rule 12: an event is applied once');
SELECT is((SELECT count(*) FROM evpg_execute('counter', 'a', 'Add', '{"n": 1}')), 1::bigint, 'C02, A25, D66: evpg_execute projects');
SELECT is(row_of('sums', 'a'), '1.4 {"sum": 10, "count": 4}', 'C02: too');
SELECT is((SELECT count(*) FROM evpg_append('counter', 'a', ARRAY[evpg_event('Added', '{"n": 1}'), evpg_event('Added', '{"n": 2}')])), 2::bigint, 'C02, A26: evpg_append projects');
SELECT is(row_of('sums', 'a'), '1.6 {"sum": 13, "count": 6}', 'C02: too');
SELECT is((SELECT count(*) FROM evpg_inject('counter', 'a', evpg_event('Added', '{"n": 1}', event_id => '01890a5d-ac96-774b-bcce-b302099a8001'))), 1::bigint, 'C02: evpg_inject projects');
SELECT is((SELECT count(*) FROM evpg_inject('counter', 'a', evpg_event('Added', '{"n": 1}', event_id => '01890a5d-ac96-774b-bcce-b302099a8001'))), 0::bigint, 'rule 12: twice');
SELECT is(row_of('sums', 'a'), '1.7 {"sum": 14, "count": 7}', 'rule 12: is applied once');
SELECT same($$SELECT (SELECT count(*) FROM evpg_create_stream('counter', 'empty')), (SELECT count(*) FROM evpg_projection('sums', 'empty'))$$, 'VALUES (1, 0)', 'C02: a stream without events has no row');
SELECT is((SELECT count(*) FROM generate_series(1, 3) n, LATERAL evpg_execute('counter', 'three', 'Add', jsonb_build_object('n', n))), 3::bigint, 'C02: three commands in one statement');
SELECT is(row_of('sums', 'three'), '1.3 {"sum": 6, "count": 3}', 'C02: are three applies');

-- what an event is to a projection
CREATE FUNCTION test.keep_event(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(event)';
SELECT evpg_register_projection('last', 'test.keep_event') \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'whole', ARRAY[evpg_event('Added', '{"n": 1}', '{"m": 1}', '{x,y}', 3, '2001-01-01 00:00+00')], command_id => 'c', actor => 'me', correlation_id => 'corr', causation_id => 'cause') \g /dev/null
SELECT is((SELECT state FROM evpg_projection('last', 'whole')), (SELECT to_jsonb(e) FROM evpg_read_stream('counter', 'whole') e), 'C01, B30: a projection sees the event as it is stored');
SELECT evpg_drop_projection('last') \g /dev/null

-- updated_at
BEGIN;
SELECT add('clock', 1) \g /dev/null
SELECT updated_at AS first FROM evpg_projection('sums', 'clock') \gset
SELECT add('clock', 1) \g /dev/null
SELECT updated_at AS second FROM evpg_projection('sums', 'clock') \gset
COMMIT;
SELECT ok(:'first'::timestamptz < :'second'::timestamptz, 'rule 12, C06, 3.4 test 1: updated_at advances within one transaction');
UPDATE evpg.projection_state SET updated_at = clock_timestamp() + interval '1 day' WHERE key = 'clock';
SELECT updated_at AS future FROM evpg_projection('sums', 'clock') \gset
SELECT add('clock', 1) \g /dev/null
SELECT ok((SELECT updated_at FROM evpg_projection('sums', 'clock')) > :'future'::timestamptz, 'rule 12, C06: even if the clock was set back');

-- a savepoint, a rollback
BEGIN;
SELECT add('r', 1) \g /dev/null
SAVEPOINT s;
SELECT add('r', 10), add('r2', 10) \g /dev/null
SELECT is(row_of('sums', 'r'), '1.2 {"sum": 11, "count": 2}', 'rule 11: a transaction sees its own rows');
ROLLBACK TO s;
SELECT is(row_of('sums', 'r'), '1.1 {"sum": 1, "count": 1}', 'rule 11: ROLLBACK TO takes back the rows too');
SELECT is(row_of('sums', 'r2'), NULL, 'rule 11: and the new ones');
SELECT add('r', 100) \g /dev/null
COMMIT;
SELECT is(row_of('sums', 'r'), '1.2 {"sum": 101, "count": 2}', 'rule 11: what was taken back does not count');
BEGIN;
SELECT add('r', 1), add('r3', 1) \g /dev/null
ROLLBACK;
SELECT is(row_of('sums', 'r') || coalesce(row_of('sums', 'r3'), ''), '1.2 {"sum": 101, "count": 2}', 'rule 11: a projection commits with its events or not at all');
SELECT is((SELECT count(*) FROM evpg.projection_state WHERE key IN ('r2', 'r3')), 0::bigint, 'rule 11: a rollback leaves nothing');

-- ------------------------------------------------------------------ kinds

-- a reducer with a delta of its own has the same rows
SELECT evpg_register_projection('deltas', 'test.sum_project', aggregate_types => '{counter_c}'), evpg_register_projection('totals', library => 'evpg_test', symbol => 'totals'),
       evpg_register_projection('plain', 'test.sum_apply', aggregate_types => '{counter_c}') \g /dev/null
SELECT evpg_try_execute('counter_c', 'k', 'AddEach', '{"ns": [1, 2, 3]}'), evpg_try_execute('counter_c', 'k', 'Subtract', '{"n": 4}') \g /dev/null
SELECT add('k', 0, 'Odd', aggregate => 'counter_c') \g /dev/null
SELECT is(rows_of('plain'), 'k: 1.5 {"sum": 2, "count": 5}', 'C01: a reducer that returns the state');
SELECT is(rows_of('deltas'), 'k: 1.5 {"sum": 2, "count": 5}', 'C01: a reducer that returns state and delta');
SELECT is((SELECT string_agg(key || ' ' || version || ' ' || state, ',') FROM evpg.projected_state WHERE name = 'totals' AND key = 'k'), 'k 4 {"total": 2, "applied": 4}', 'C01: a symbol of a module takes what is in its table');
SELECT is((SELECT initial_state FROM evpg.projection WHERE name = 'totals'), '{"total": 0, "applied": 0}', 'C01, A24: and says its initial state');
SELECT add('k', 0, 'Cleared', aggregate => 'counter_c') \g /dev/null
SELECT is(rows_of('plain') || rows_of('deltas'), '', 'rule 12: a NULL state deletes the row');
SELECT is(row_of('totals', 'k'), NULL, 'rule 12: and so does evpg_delete() of a module');
SELECT add('k', 1, aggregate => 'counter_c') \g /dev/null
SELECT is(rows_of('plain') || '; ' || rows_of('deltas'), 'k: 2.1 {"sum": 1, "count": 1}; k: 2.1 {"sum": 1, "count": 1}', 'rule 12: a key that comes back starts from the initial state, in the next generation');
SELECT is(row_of('totals', 'k'), '2.1 {"total": 1, "applied": 1}', 'rule 12: a module, too');

-- a table projection
SELECT evpg_register_projection('statement', handler => 'test.statement_write', aggregate_types => '{counter}') \g /dev/null
SELECT add('t', 4), add('t', 6), add('u', 1) \g /dev/null
SELECT same($$SELECT id, n FROM statement ORDER BY position$$, $$VALUES ('t', 4), ('t', 6), ('u', 1)$$, 'C30: a table projection writes its table');
SELECT same($$SELECT s.id, s.position FROM statement s ORDER BY s.position$$, $$SELECT aggregate_id, position FROM evpg.event WHERE aggregate_id IN ('t', 'u') ORDER BY position$$, 'issue 3: with the position of the event');
SELECT is(rows_of('statement'), 't: 1.2 -, u: 1.1 -', 'rule 11: and has a row of its own, without a state');
BEGIN;
SELECT add('t', 100) \g /dev/null
ROLLBACK;
SELECT is((SELECT count(*) FROM statement), 3::bigint, 'rule 11: it commits with its events or not at all');
SELECT refused($$SELECT evpg_put_projection('statement', 't', '{}')$$, '0A000 cannot put a key of projection "statement"', 'rule 13: a table projection has no state to put');
SELECT refused($$SELECT evpg_rebuild_projection('statement', 't')$$, '0A000 cannot rebuild a key of projection "statement"', 'rule 13: nor keys to rebuild');
SELECT evpg_drop_projection('statement') \g /dev/null
SELECT add('t', 9) \g /dev/null
SELECT is((SELECT count(*) FROM statement), 3::bigint, 'C11: a dropped projection writes no more; its table is the user''s');

-- ------------------------------------------------------------------ filters

SELECT evpg_register_projection('by_type', 'test.sum_apply', aggregate_types => '{counter_c}'),
       evpg_register_projection('by_types', 'test.sum_apply', aggregate_types => '{counter_c,counter}'),
       evpg_register_projection('by_event', 'test.sum_apply', event_types => '{Subtracted,Odd}'),
       evpg_register_projection('by_tag', 'test.sum_apply', tags => '{red,blue}'),
       evpg_register_projection('by_all', 'test.sum_apply', aggregate_types => '{counter}', event_types => '{Added}', tags => '{red}'),
       evpg_register_projection('by_none', 'test.sum_apply', aggregate_types => '{nobody}'),
       evpg_register_projection('module_filter', library => 'evpg_test', symbol => 'totals', aggregate_types => '{counter}', event_types => '{Subtracted}') \g /dev/null
SELECT add('f', 1), add('f', 2, 'Subtracted'), add('f', 4, 'Odd'), add('f', 8, tags => '{red}'), add('f', 16, tags => '{green,blue}'), add('f', 32, 'Subtracted', tags => '{red}'),
       add('f', 64, tags => '{Red,reddish}'), add('g', 128, aggregate => 'counter_c'), add('g', 256, tags => '{red}', aggregate => 'counter_c') \g /dev/null
SELECT is(rows_of('by_type'), 'g: 1.2 {"sum": 384, "count": 2}', 'B30: a filter by aggregate type');
SELECT is(rows_of('by_types'), 'f: 1.7 {"sum": 55, "count": 7}, g: 1.2 {"sum": 384, "count": 2}', 'B30: by several');
SELECT is(rows_of('by_event'), 'f: 1.3 {"sum": -34, "count": 3}', 'B30, C01: a filter by event type');
SELECT is(rows_of('by_tag'), 'f: 1.3 {"sum": -8, "count": 3}, g: 1.1 {"sum": 256, "count": 1}', 'B30, B38: a filter by tag: any of them, exactly');
SELECT is(rows_of('by_all'), 'f: 1.1 {"sum": 8, "count": 1}', 'B30: all filters together');
SELECT is(rows_of('by_none'), '', 'B30: of a type that is not there');
SELECT is(rows_of('module_filter'), 'f: 1.2 {"total": -34, "applied": 2}', 'B30, C01: a filter narrows what a module takes');
SELECT is(error_of($$SELECT evpg_register_projection('empty_list', 'test.sum_apply', aggregate_types => '{}')$$), '22023 aggregate_types must not be an empty array', 'B30: an empty list is refused');

-- ------------------------------------------------------------------ replaced, dropped

SELECT evpg_register_projection('changing', 'test.sum_apply', aggregate_types => '{counter}') \g /dev/null
SELECT add('c1', 1), add('c2', 2) \g /dev/null
CREATE FUNCTION test.negative_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('sum', (state->>'sum')::bigint - (event.data->>'n')::bigint) $$;
SELECT is(evpg_register_projection('changing', 'test.negative_apply', initial_state => '{"sum": 0}'), true, 'C11: registered anew with another reducer');
SELECT is(rows_of('changing'), 'c1: 1.1 {"sum": 1, "count": 1}, c2: 1.1 {"sum": 2, "count": 1}', 'C11: the rows stay as they are');
SELECT add('c1', 10), add('c3', 3) \g /dev/null
SELECT is(rows_of('changing'), 'c1: 1.2 {"sum": -9}, c2: 1.1 {"sum": 2, "count": 1}, c3: 1.1 {"sum": -3}', 'C11: new events go through the new reducer');
SELECT is(evpg_rebuild_projection('changing', 'c1'), 2::bigint, 'C12: until a key is rebuilt');
SELECT is(row_of('changing', 'c1'), '2.2 {"sum": -11}', 'C12: which folds all events by the new one');
BEGIN;
SELECT evpg_register_projection('changing', 'test.sum_apply') \g /dev/null
SELECT add('c2', 2) \g /dev/null
SELECT is(row_of('changing', 'c2'), '1.2 {"sum": 4, "count": 2}', 'C11: a registration counts at once in its transaction');
ROLLBACK;
SELECT add('c2', 2) \g /dev/null
SELECT is(row_of('changing', 'c2'), '1.2 {"sum": 0}', 'C11: rolled back, it never was');
BEGIN;
SELECT evpg_drop_projection('changing') \g /dev/null
SELECT is(error_of($$SELECT * FROM evpg_projection('changing', 'c1')$$), 'VE007 projection "changing" is not registered', 'C17: dropped, it is unknown');
ROLLBACK;
SELECT is(row_of('changing', 'c1'), '2.2 {"sum": -11}', 'C11: a drop is rolled back with its rows');
SELECT evpg_drop_projection('changing') \g /dev/null
SELECT is((SELECT count(*) FROM evpg.projection_state WHERE build NOT IN (SELECT build FROM evpg.projection)), 0::bigint, 'C11: dropped, its rows are gone');
SELECT evpg_register_projection('changing', 'test.sum_apply', aggregate_types => '{counter}') \g /dev/null
SELECT is(rows_of('changing'), '', 'C11: registered again, it starts with nothing, and takes what comes');

-- ------------------------------------------------------------------ put (C20)

SELECT is(evpg_put_projection('sums', 'put', '{"sum": 100}'), 1::bigint, 'C20: a state is put');
SELECT is(row_of('sums', 'put'), '1.1 {"sum": 100}', 'C20: it is there');
SELECT ok((SELECT position FROM evpg_projection('sums', 'put')) > (SELECT max(position) FROM evpg.event), 'C20: with a position of its own');
SELECT add('put', 1) \g /dev/null
SELECT is(row_of('sums', 'put'), '1.2 {"sum": 101, "count": 1}', 'C20: events go on from it');
SELECT is(evpg_put_projection('sums', 'put', '{"sum": 0}'), 3::bigint, 'C20: a put counts as an apply');
SELECT is(evpg_put_projection('sums', 'put', NULL), 4::bigint, 'C20: NULL deletes');
SELECT is(row_of('sums', 'put'), NULL, 'C20: it is gone');
SELECT is(evpg_put_projection('sums', 'put', NULL), 4::bigint, 'C20: to delete again changes nothing');
SELECT is(evpg_put_projection('sums', 'put', '[1]'), 1::bigint, 'C20: it comes back');
SELECT is(row_of('sums', 'put'), '2.1 [1]', 'rule 12: in the next generation');
SELECT is(evpg_put_projection('sums', 'never', NULL), 0::bigint, 'C20: to delete what never was');
SELECT is((SELECT count(*) FROM evpg.projection_state WHERE key = 'never'), 0::bigint, 'C20: leaves nothing');
SELECT is(evpg_put_projection('sums', '', '{"sum": 1}'), 1::bigint, 'C20: the key may be empty');
SELECT is((SELECT state FROM evpg_projection('sums')), '{"sum": 1}', 'C07: which is the default when reading');
SELECT is(evpg_put_projection('sums', 'null', 'null'), 1::bigint, 'C20: JSON null is a state');
SELECT is(row_of('sums', 'null'), '1.1 null', 'C20: and no deletion');
SELECT refused(format('SELECT evpg_put_projection(%s)', arguments), error, 'C20: put ' || arguments) FROM (VALUES
  ($$'nope', 'a', '{}'$$, 'VE007 projection "nope" is not registered'), ($$NULL, 'a', '{}'$$, '22004 %'), ($$'sums', NULL, '{}'$$, '22004 projection key must not be null'),
  ($$'sums', repeat('k', 1025), '{}'$$, 'VE014 projection key is too long'), ($$'sums', E'a\tb', '{}'$$, '22023 projection key contains a control character'),
  ($$'sums', 'deep', (repeat('[', 101) || repeat(']', 101))::jsonb$$, 'VE014 %')) x (arguments, error);
BEGIN;
SELECT evpg_put_projection('sums', 'a', '{"sum": -1}') \g /dev/null
ROLLBACK;
SELECT is(row_of('sums', 'a'), '1.7 {"sum": 14, "count": 7}', 'C20: a put is rolled back');

-- ------------------------------------------------------------------ reading

SELECT is((SELECT state->>'sum' FROM evpg_projection('sums', 'a', missing_ok => false)), '14', 'C08: a row that must be there');
SELECT refused($$SELECT * FROM evpg_projection('sums', 'nope', missing_ok => false)$$, 'VE008 projection "sums" has no key "nope"', 'C08, C17, 3.4 test 3: the error names projection and key');
SELECT refused($$SELECT * FROM evpg_projection('nope', 'a', missing_ok => false)$$, 'VE007 projection "nope" is not registered', 'C08, C17: an unknown projection');
SELECT refused($$SELECT * FROM evpg_projection('nope', 'a')$$, 'VE007 projection "nope" is not registered', 'C07, C17, A25, 1.2 test 8: an unknown projection');
SELECT add('gone', 1), add('gone', 1, 'Cleared') \g /dev/null
SELECT refused($$SELECT * FROM evpg_projection('sums', 'gone', missing_ok => false)$$, 'VE008 projection "sums" has no key "gone"', 'C08: a deleted key is not there');
SELECT is((SELECT count(*) FROM evpg_projection('sums', 'gone')), 0::bigint, 'C07: a deleted key has no row');
SELECT is((SELECT count(*) FROM evpg.projected_state WHERE key = 'gone'), 0::bigint, 'C07: nor in the view');
SELECT same($$SELECT deleted, state, version FROM stored WHERE (name, key) = ('sums', 'gone')$$, 'VALUES (true, NULL::jsonb, 2)', 'rule 12: its mark stays');
SELECT is((SELECT sum((state->>'sum')::bigint) FROM evpg.projected_state WHERE name = 'by_types'), (SELECT sum((state->>'sum')::bigint) FROM (SELECT * FROM evpg_projection('by_types', 'f') UNION ALL
  SELECT p.* FROM (SELECT DISTINCT key FROM evpg.projected_state WHERE name = 'by_types' AND key <> 'f') k, LATERAL evpg_projection('by_types', k.key) p) x), 'issue 3: rows are read with plain SQL');
SELECT throws_like($$INSERT INTO evpg.projection_state SELECT s.* FROM evpg.projection_state s JOIN evpg.projection USING (build) WHERE (name, key) = ('sums', 'a')$$, '%duplicate key%', 'C04, 3.4 test 8: a key has one row');

-- ------------------------------------------------------------------ catching up

SELECT evpg_register_projection('feed', 'test.sum_apply', aggregate_types => '{counter}'), evpg_stable_position() AS start \gset
SELECT add('x', 1), add('y', 2), add('x', 3), add('z', 4), add('z', 0, 'Cleared') \g /dev/null
CREATE FUNCTION test.changes(after bigint, max_count int DEFAULT 1000) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(string_agg(key || ' ' || generation || '.' || version || ' ' || coalesce(state->>'sum', '-'), ', ' ORDER BY position), '') FROM evpg_projection_changes('feed', after, max_count) $$;
SELECT is(changes(0), 'y 1.1 2, x 1.2 4, z 1.2 -', 'rule 15, C48: rows in the order of their last change, a deleted one without a state');
SELECT is((SELECT array_agg(DISTINCT next_position) FROM evpg_projection_changes('feed')), ARRAY[evpg_stable_position()], 'rule 9: to go on from the stable position');
SELECT is(changes(evpg_stable_position()), '', 'C48: nothing after it');
SELECT is(changes(0, 1), 'y 1.1 2', 'C48: in pages');
SELECT is(changes((SELECT next_position FROM evpg_projection_changes('feed', 0, 1)), 1), 'x 1.2 4', 'C48: the next page');
SELECT is(changes((SELECT max(next_position) FROM evpg_projection_changes('feed', 0, 2)), 1), 'z 1.2 -', 'C48: the last one');
SELECT is(changes(0, 0), '', 'C48: an empty page');
SELECT is(changes(0, NULL), 'y 1.1 2, x 1.2 4, z 1.2 -', 'C48: all of it');
SELECT evpg_stable_position() AS mark \gset
SELECT evpg_put_projection('feed', 'y', '{"sum": 22}') \g /dev/null
SELECT is(changes(:mark), 'y 1.2 22', 'C20: a put is a change');
SELECT evpg_stable_position() AS mark \gset
SELECT evpg_rebuild_projection('feed', 'y') \g /dev/null
SELECT is(changes(:mark), 'y 2.1 2', 'C12: a rebuild is a change');
SELECT evpg_stable_position() AS mark \gset
SELECT add('z', 5) \g /dev/null
SELECT is(changes(:mark), 'z 2.1 5', 'rule 12: a key that came back');
SELECT evpg_stable_position() AS mark \gset
SELECT count(*) FROM evpg_append('counter', 'x', ARRAY[evpg_event('Added', '{"n": 1}'), evpg_event('Added', '{"n": 1}')]) \g /dev/null
SELECT is(changes(:mark), 'x 1.4 6', 'C48: a row is there once, as it is now');
BEGIN;
SELECT evpg_stable_position() AS mark \gset
SELECT add('x', 1) \g /dev/null
SELECT is(changes(:mark), '', 'rule 9: not before it is committed, in its own transaction either');
COMMIT;
SELECT is(changes(:mark), 'x 1.5 7', 'rule 9: then');
-- one event for many keys: a page does not end in the middle of a position
SELECT evpg_register_projection('groups', 'test.sum_apply', key_function => 'test.group_keys', aggregate_types => '{counter}') \g /dev/null
SELECT add('x', 1, more => '{"groups": ["a", "b", "c"]}'), add('x', 1, more => '{"groups": ["d"]}') \g /dev/null
SELECT is((SELECT count(*) FROM evpg_projection_changes('groups', 0, 1)), 3::bigint, 'C48: all keys of an event are on one page');
SELECT is((SELECT string_agg(key, '') FROM evpg_projection_changes('groups', (SELECT max(next_position) FROM evpg_projection_changes('groups', 0, 1)), 1)), 'd', 'C48: the next page goes on behind it');
SELECT refused(format('SELECT * FROM evpg_projection_changes(%s)', arguments), error, 'C48: changes ' || arguments) FROM (VALUES
  ($$'nope'$$, 'VE007 projection "nope" is not registered'), ($$NULL$$, '22004 %'), ($$'feed', NULL$$, '22004 after_position must not be null'), ($$'feed', 0, -1$$, '22023 max_count must not be negative')) x (arguments, error);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT error_of($$SELECT * FROM evpg_projection_changes('feed')$$) AS error \gset
ROLLBACK;
SELECT alike(:'error'::text, '25000 %', 'rule 9: the stable position needs READ COMMITTED');

-- ------------------------------------------------------------------ without code

SELECT is(evpg_register_projection('put_only', broadcast => 'delta'), true, 'C20: a projection may have no code');
SELECT evpg_put_projection('put_only', 'k', '{"a": 1}'), add('k', 1) \g /dev/null
SELECT is(row_of('put_only', 'k'), '1.1 {"a": 1}', 'C20: its rows are put, and no event changes them');
SELECT is(evpg_put_projection('put_only', 'k', '{"a": 2}'), 2::bigint, 'C20: put again');
SELECT refused(statement, '0A000 cannot rebuild projection "put_only"', 'C20: it cannot be rebuilt: ' || statement) FROM (VALUES
  ($$SELECT evpg_rebuild_projection('put_only')$$), ($$SELECT evpg_rebuild_projection('put_only', 'k')$$), ($$SELECT evpg_rebuild_projection('put_only', background => true)$$)) x (statement);
SELECT is(row_of('put_only', 'k'), '1.2 {"a": 2}', 'C20: and keeps its rows');
SELECT refused(format($$SELECT evpg_register_projection('codeless', %s)$$, arguments), '22023 a projection without a reducer, a handler or a library takes no events', 'C20: ' || arguments) FROM unnest(ARRAY[
  'mode => ''async''', 'event_types => ''{A}''', 'aggregate_types => ''{a}''', 'tags => ''{t}''', 'key_path => ''$.type''', 'constant_key => ''all''', 'max_attempts => 1', 'start_position => 1']) arguments;
SELECT is(evpg_register_projection('put_only', 'test.sum_apply', aggregate_types => '{counter}'), true, 'C20: code may come later');
SELECT add('k', 1) \g /dev/null
SELECT is((SELECT version FROM evpg_projection('put_only', 'k')), 3::bigint, 'C20: and goes on from what was put');
SELECT evpg_drop_projection('put_only') \g /dev/null
SELECT * FROM finish();
