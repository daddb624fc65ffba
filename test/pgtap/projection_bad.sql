-- projection_bad.sql: projections that raise, answer nonsense, were changed or dropped: the command fails, nothing is kept,
-- and the error says where (rules 8 and 11).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql

SELECT plan(194);
SET test.kind = counter;

-- A command by each entry; NULL as the type of the aggregate is 'counter'.
CREATE FUNCTION test.entries(id text, n text) RETURNS SETOF text LANGUAGE sql AS $$
  SELECT format(call, id, n) FROM unnest(ARRAY[
    $q$SELECT evpg_execute('counter', %L, 'Add', '{"n": %s}', command_id => 'c')$q$,
    $q$SELECT evpg_try_execute('counter', %L, 'Add', '{"n": %s}', command_id => 'c')$q$,
    $q$SELECT evpg_append('counter', %L, evpg_events('{"type": "Added", "data": {"n": %s}}'), command_id => 'c')$q$,
    $q$SELECT evpg_inject('counter', %L, evpg_event('Added', '{"n": %s}'))$q$]) call
$$;

-- ------------------------------------------------------------------ that raise

CREATE FUNCTION test.raise_reducer(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  CASE event.data->>'n'
    WHEN '13' THEN RAISE EXCEPTION 'unlucky' USING ERRCODE = 'P0042', DETAIL = 'thirteen';
    WHEN '14' THEN PERFORM 1 / 0;
    WHEN '15' THEN RAISE check_violation USING MESSAGE = 'checked', CONSTRAINT = 'my_check', HINT = 'another one';
    WHEN '16' THEN PERFORM evpg_reject('refused', 'a projection cannot refuse');
    WHEN '17' THEN RAISE serialization_failure;
    ELSE NULL;
  END CASE;
  RETURN sum_apply(state, event);
END $$;
SELECT evpg_register_projection('bad', 'test.raise_reducer', aggregate_types => '{counter}'),
  evpg_register_projection('good', 'test.sum_apply', aggregate_types => '{counter}'),
       evpg_register_projection('zebra', 'test.sum_apply', aggregate_types => '{counter}'),
         evpg_register_projection('lines', handler => 'test.statement_write', aggregate_types => '{counter}') \g /dev/null
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 1', 'a key that is there [issue 3]');
SELECT fails(entry, 'P0042 unlucky', 'a projection that raises, ' || entry || ' [issue 3]') FROM entries('a', '13') entry;
SELECT fails(entry, 'P0042 unlucky', 'a projection that raises for a new stream and key, ' || entry || ' [issue 3]')
  FROM entries('new', '13') entry;
SELECT fails(entry, '22012 division by zero', 'a defect is raised unchanged, ' || entry || ' [rule 8]')
  FROM entries('a', '14') entry;
SELECT fails(entry, '40001 %', 'a serialization failure is raised unchanged, ' || entry || ' [rule 8]')
  FROM entries('a', '17') entry;
SELECT fails($$SELECT evpg_execute('counter', 'a', 'AddEach', '{"ns": [1, 2, 13, 4]}')$$, 'P0042 unlucky',
  'the third of four events: none is kept [rule 3]');
SELECT alike(context_of(entry),
  '%projection "bad", key "a", event "Added" of stream "a" of aggregate "counter" at position %',
  'the error names projection, key, position, ' || entry || ' [issue 3]') FROM entries('a', '13') entry;
SELECT context_of($$SELECT evpg_execute('counter', 'a', 'AddEach', '{"ns": [1, 2, 13, 4]}')$$) AS context,
  last_value + 3 AS position FROM evpg.event_position \gset
SELECT alike(:'context'::text,
  '%projection "bad", key "a", event "Added" of stream "a" of aggregate "counter" at position ' || :position || '%',
  'the position of the event that it is about [issue 3]');
SELECT is(row_of('bad', 'a') || row_of('good', 'a') || row_of('zebra', 'a'), repeat('1.1 {"sum": 1, "count": 1}', 3),
  'no projection has kept anything [C19]');
SELECT is(try('a', 'Add', '{"n": 2}'), 'ok 2', 'the next command is good [issue 3]');
SELECT is(row_of('bad', 'a'), '1.2 {"sum": 3, "count": 2}', 'the command after a refused one is projected [issue 3]');
SELECT is(total('a'), '2 3', 'the state is what was kept [rule 6]');
BEGIN;
SELECT is(try('a', 'Add', '{"n": 3}'), 'ok 3', 'in a transaction, a good command [issue 3]');
SELECT alike(error_of($$SELECT try('a', 'Add', '{"n": 13}')$$), 'P0042 %', 'a bad one, caught [issue 3]');
SELECT is(try('a', 'Add', '{"n": 4}'), 'ok 4', 'another command after a caught error succeeds [issue 3]');
COMMIT;
SELECT is(row_of('bad', 'a') || ', ' || total('a'), '1.4 {"sum": 10, "count": 4}, 4 10',
  'leave what the good ones wrote [issue 3]');

-- ------------------------------------------------------------------ class 23

CREATE FUNCTION test.outcome_of(id text, n text, more text DEFAULT '') RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws('|', status, version, sqlstate, code, message, detail, hint)
    FROM evpg_try_execute('counter', id, 'Emit',
      format('{"events": [{"type": "Odd"}, {"type": "Added", "data": {"n": %s%s}}]}', n, more)::jsonb,
      command_id => 'd' || n) $$;
CREATE FUNCTION test.rejected(id text, n text, more text, outcome text, description text) RETURNS SETOF text LANGUAGE plpgsql
  AS $$
DECLARE
  before text := written();
BEGIN
  RETURN NEXT alike(outcome_of(id, n, more), outcome, description);
  RETURN NEXT is(written(), before, regexp_replace(description, E'( \\[[^]]*\\])?$', E': nothing is kept\\1'));
END $$;
SELECT rejected('a', '500', '',
  'rejected|4|23514|statement_small|new row for relation "statement" violates check constraint "statement_small"%',
  'a CHECK of the table of a projection [rule 8]');
SELECT rejected('new', '500', '', 'rejected|0|23514|statement_small|%', 'for a new stream [rule 8]');
SELECT is((SELECT count(*) FROM evpg.stream WHERE aggregate_id = 'new'), 0::bigint,
  'a stream whose first command was rejected does not exist [rule 5]');
SELECT outcome_of('a', '5', ', "ref": "r1"') \g /dev/null
SELECT rejected('a', '6', ', "ref": "r1"', 'rejected|6|23505|statement_ref|%', 'a UNIQUE [rule 8]');
SELECT rejected('a', '15', '', 'rejected|6|23514|my_check|checked|another one', 'raised by a reducer [rule 8]');
SELECT is(outcome_of('a', '8'), 'ok|8', 'the command after it is good [rule 8]');
SELECT fails($$SELECT evpg_execute('counter', 'a', 'Add', '{"n": 500}')$$,
  '23514 new row for relation "statement" violates check constraint "statement_small"',
  'evpg_execute raises it unchanged [rule 8]');
SELECT fails($$SELECT evpg_append('counter', 'a', evpg_events('{"type": "Added", "data": {"n": 500}}'))$$, '23514 %',
  'evpg_append too [rule 8]');
SELECT is((SELECT events::text || '|' || coalesce(last_position::text, '-')
  FROM evpg_try_execute('counter', 'a', 'Add', '{"n": 501}')), '[]|-', 'a rejected command has no events [rule 5]');
SELECT is((SELECT rejected FROM evpg_session_stats() WHERE aggregate_type = 'counter') > 0, true,
  'a rejected command has no events, and counts as rejected [B14]');
BEGIN;
SELECT outcome_of('a', '500') \g /dev/null
SELECT is(try('a', 'Add', '{"n": 9}'), 'ok 9', 'a transaction goes on after it [rule 8]');
COMMIT;
SELECT is((SELECT version FROM evpg_projection('good', 'a')), 9::bigint, 'with what was accepted [rule 8]');
SELECT fails(entry, 'VE002 a projection cannot refuse',
  'evpg_reject() is not for projections: raised unchanged, ' || entry || ' [rule 8]') FROM entries('a', '16') entry;

-- ------------------------------------------------------------------ that answer nonsense

CREATE FUNCTION test.odd_reducer(state jsonb, event evpg.event) RETURNS evpg.projected LANGUAGE plpgsql AS $$
BEGIN
  RETURN CASE event.data->>'how'
    WHEN 'null' THEN NULL
    WHEN 'row of null' THEN (NULL, NULL)::evpg.projected
    WHEN 'delta only' THEN evpg_projected(NULL, '{"gone": true}')
    WHEN 'deep' THEN evpg_projected((repeat('[', 101) || repeat(']', 101))::jsonb, '{}')
    WHEN 'scalar' THEN evpg_projected('7', '{}')
    WHEN 'json null' THEN evpg_projected('null', 'null')
    ELSE evpg_projected('{}', '{}')
  END;
END $$;
SELECT evpg_register_projection('odd', 'test.odd_reducer', aggregate_types => '{counter_c}') \g /dev/null
SELECT add('o', 0, more => '{"how": "good"}', aggregate => 'counter_c'),
  add('o', 0, more => '{"how": "null"}', aggregate => 'counter_c') \g /dev/null
SELECT is(row_of('odd', 'o'), NULL, 'NULL deletes the row [rule 12]');
SELECT add('o', 0, more => '{"how": "good"}', aggregate => 'counter_c'),
  add('o', 0, more => '{"how": "row of null"}', aggregate => 'counter_c') \g /dev/null
SELECT is(row_of('odd', 'o'), NULL, 'a row of NULL too [rule 12]');
SELECT add('o', 0, more => '{"how": "good"}', aggregate => 'counter_c'),
  add('o', 0, more => '{"how": "delta only"}', aggregate => 'counter_c') \g /dev/null
SELECT is(row_of('odd', 'o'), NULL, 'a reducer that returns a delta without a row deletes it [rule 12]');
SELECT add('o', 0, more => '{"how": "delta only"}', aggregate => 'counter_c') \g /dev/null
SELECT is(row_of('odd', 'o'), NULL, 'to delete what is not there [rule 12]');
SELECT add('o', 0, more => '{"how": "scalar"}', aggregate => 'counter_c') \g /dev/null
SELECT alike(row_of('odd', 'o'), '%.1 7', 'a state may be any JSON value [C01]');
SELECT add('o', 0, more => '{"how": "json null"}', aggregate => 'counter_c') \g /dev/null
SELECT alike(row_of('odd', 'o'), '%.2 null', 'JSON null is a state [C01]');
SELECT fails($$SELECT add('o', 0, more => '{"how": "deep"}', aggregate => 'counter_c')$$, 'VE014 %',
  'a state that is too deep [issue 3]');
SELECT evpg_drop_projection('odd') \g /dev/null

-- a module
SELECT evpg_register_projection('totals', library => 'evpg_test', symbol => 'totals', broadcast => 'delta') \g /dev/null
SELECT fails($$SELECT add('m', 1, 'Broken', aggregate => 'counter_c')$$,
  'VE009 projection "totals" failed: broken by "Broken"', 'a module that fails [issue 3]');
SELECT alike(context_of($$SELECT add('m', 1, 'Broken', aggregate => 'counter_c')$$),
  '%projection "totals", key "m", event "Broken" of stream "m" of aggregate "counter_c" at position %',
  'the error names projection, key, position [issue 3]');
SELECT fails(format($$SELECT add('m', 1, 'Spoiled', '{"how": "%s", "where": "%s"}', aggregate => 'counter_c')$$, how, place),
  '22%', 'text that is no text, ' || how || ' in ' || place || ' [issue 3]')
  FROM unnest('{zero,surrogate,overlong,latin1}'::text[]) how, unnest('{state,delta}'::text[]) place;
SELECT evpg_register_projection('totals', library => 'evpg_test', symbol => 'totals', broadcast => 'pointer') \g /dev/null
SELECT isnt(add('m', 1, 'Spoiled', '{"how": "zero", "where": "delta"}', aggregate => 'counter_c'), NULL,
  'a delta of which no listener gets anything may be no text [rule 14]');
SELECT evpg_register_projection('totals', library => 'evpg_test', symbol => 'totals', broadcast => 'delta') \g /dev/null
SELECT isnt(add('m', 1, 'Deep', '{"depth": 50}', aggregate => 'counter_c'), NULL, 'a state of some depth [issue 3]');
SELECT fails($$SELECT add('m', 1, 'Deep', '{"depth": 101}', aggregate => 'counter_c')$$, 'VE014 %',
  'a module makes a state that is too deep [issue 3]');
SELECT fails(format($$SELECT add('m', 1, 'Misshaped', '{"how": "%s", "where": "%s"}', aggregate => 'counter_c')$$, how,
  place),
  'VE014 %', 'a module''s value of no end: ' || how || ' as ' || place)
  FROM unnest('{cycle,deep,shared}'::text[]) how, unnest('{state,delta}'::text[]) place;
SELECT fails(format($$SELECT add('m', 1, 'Misused', '{"say": "%s"}', aggregate => 'counter_c')$$, say),
  'VE009 a projection must not call evpg_' || f || '()', 'a projection says what it cannot: ' || say || ' [rule 8]')
  FROM (VALUES ('emit', 'emit'), ('reject', 'reject'), ('complete', 'act'), ('unhandled', 'unhandled')) x (say, f);
SELECT fails($$SELECT add('m', 1, 'Deep', '{"depth": 100000}', aggregate => 'counter_c')$$, 'VE014 %',
  'far too deep [issue 3]');
SET statement_timeout = '300ms';
SELECT fails($$SELECT add('m', 1, 'Spun', aggregate => 'counter_c')$$, '57014 canceling statement due to statement timeout',
  'a module that does not end can be cancelled [issue 3]');
RESET statement_timeout;
SELECT fails($$SELECT evpg_put_projection('totals', 'poison', '[]')$$, '22023 %',
  'a state that a module cannot take is not put [C20]');
SELECT isnt(add('m', 1, aggregate => 'counter_c'), NULL,
  'the next event is projected after a put that was refused [issue 3]');
SELECT evpg_drop_projection('totals') \g /dev/null

-- ------------------------------------------------------------------ changed or dropped after the registration

CREATE FUNCTION test.fleeting(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"by": 1}'::jsonb $$;
SELECT evpg_register_projection('fleeting', 'test.fleeting', aggregate_types => '{counter_c}') \g /dev/null
SELECT add('v', 1, aggregate => 'counter_c') \g /dev/null
CREATE OR REPLACE FUNCTION test.fleeting(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT '{"by": 2}'::jsonb
$$;
SELECT add('v', 1, aggregate => 'counter_c') \g /dev/null
SELECT is(row_of('fleeting', 'v'), '1.2 {"by": 2}', 'a function may be replaced [issue 3]');
DROP FUNCTION test.fleeting(jsonb, evpg.event);
SELECT fails($$SELECT add('v', 1, aggregate => 'counter_c')$$,
  '42883 projection reducer function test.fleeting(pg_catalog.jsonb,evpg.event) does not exist',
  'a function that was dropped [issue 3]');
SELECT alike(context_of($$SELECT add('v', 1, aggregate => 'counter_c')$$),
  '%projection "fleeting", key "v", event "Added" of stream "v" of aggregate "counter_c" at position %',
  'the error names the projection that misses it [issue 3]');
SELECT isnt(add('v', 1, aggregate => 'counter'), NULL, 'it stops only commands whose events it takes [issue 3]');
SELECT is((SELECT count(*) FROM evpg_projection('fleeting', 'v')), 1::bigint, 'its rows can be read [issue 3]');
CREATE FUNCTION test.fleeting(state jsonb, event evpg.event) RETURNS evpg.projected LANGUAGE sql AS $$
  SELECT evpg_projected('{"by": 3}', NULL)
$$;
SELECT add('v', 1, aggregate => 'counter_c') \g /dev/null
SELECT is(row_of('fleeting', 'v'), '1.3 {"by": 3}', 'another that fits may take its place [issue 3]');
DROP FUNCTION test.fleeting(jsonb, evpg.event);
CREATE FUNCTION test.fleeting(state jsonb, event evpg.event) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
SELECT fails($$SELECT add('v', 1, aggregate => 'counter_c')$$,
  '42P13 function test.fleeting(pg_catalog.jsonb,evpg.event) cannot serve as projection reducer',
  'one that returns something else may not [issue 3]');
DROP FUNCTION test.fleeting(jsonb, evpg.event);
CREATE FUNCTION test.fleeting(state jsonb, event evpg.event) RETURNS SETOF jsonb LANGUAGE sql AS $$ SELECT '1'::jsonb $$;
SELECT fails($$SELECT add('v', 1, aggregate => 'counter_c')$$, '42P13 %',
  'a function that returns a set may not be a reducer [issue 3]');
SELECT fails($$SELECT evpg_rebuild_projection('fleeting', 'v')$$, '42P13 %', 'the same for a rebuild [issue 3]');
SELECT is(evpg_drop_projection('fleeting'), true, 'dropped, it is no obstacle [issue 3]');
SELECT isnt(add('v', 1, aggregate => 'counter_c'), NULL, 'commands are good again [issue 3]');
CREATE FUNCTION test.fleeting_key(event evpg.event) RETURNS text LANGUAGE sql AS $$ SELECT 'k' $$;
SELECT evpg_register_projection('keyed', 'test.sum_apply', aggregate_types => '{counter_c}',
  key_function => 'test.fleeting_key') \g /dev/null
DROP FUNCTION test.fleeting_key;
SELECT fails($$SELECT add('v', 1, aggregate => 'counter_c')$$, '42883 key function %',
  'a key function that was dropped [issue 3]');
SELECT alike(context_of($$SELECT add('v', 1, aggregate => 'counter_c')$$),
  '%key of projection "keyed", event "Added" of stream "v" of aggregate "counter_c" at position %',
  'the error names projection and position [issue 3]');
CREATE FUNCTION test.fleeting_key(event evpg.event) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'no key'; END $$;
SELECT fails($$SELECT add('v', 1, aggregate => 'counter_c')$$, 'P0001 no key', 'a key function that raises [issue 3]');
SELECT evpg_drop_projection('keyed') \g /dev/null

-- ------------------------------------------------------------------ projections that write events

CREATE FUNCTION test.write_handler(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE event.data->>'call';
  RETURN NULL;
END $$;
CREATE FUNCTION test.write_reducer(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE event.data->>'call';
  RETURN state;
END $$;
CREATE FUNCTION test.write_key(event evpg.event) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE event.data->>'call';
  RETURN 'k';
END $$;
CREATE FUNCTION test.writing() RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  call text;
BEGIN
  FOREACH call IN ARRAY ARRAY[$q$SELECT evpg_execute('counter', 'other', 'Add', '{"n": 1}')$q$,
    $q$SELECT evpg_try_execute('counter_c', 'w', 'Add', '{"n": 1}')$q$,
    $q$SELECT evpg_append('counter', 'other', evpg_events('{"type": "Added"}'))$q$,
      $q$SELECT evpg_inject('counter', 'other', evpg_event('Added'))$q$] LOOP
    RETURN QUERY SELECT * FROM fails(format('SELECT add(%L, 1, more => %L, aggregate => %L)', 'w',
      jsonb_build_object('call', call), 'counter_c'), 'VE020 a projection cannot write events',
      (SELECT coalesce(handler, key_function, reducer) FROM evpg.projection WHERE name = 'writing') || ', ' || call
      || ' [rule 11]');
  END LOOP;
END $$;
SELECT evpg_register_projection('writing', handler => 'test.write_handler', aggregate_types => '{counter_c}') \g /dev/null
SELECT writing();
SELECT evpg_register_projection('writing', 'test.write_reducer', aggregate_types => '{counter_c}') \g /dev/null
SELECT writing();
SELECT evpg_register_projection('writing', 'test.sum_apply', key_function => 'test.write_key',
  aggregate_types => '{counter_c}') \g /dev/null
SELECT writing();
-- also in a rebuild
SET test.writes = 0;
SELECT evpg_register_projection('writing', 'test.write_reducer', aggregate_types => '{counter_c}') \g /dev/null
SELECT
  add('w', 1,
  more => E'{"call": "SELECT FROM generate_series(1, current_setting(''test.writes'')::int), evpg_append(''counter'', '
  '''w'', evpg_events(''{\\"type\\": \\"Added\\"}''))"}', aggregate => 'counter_c') \g /dev/null
SELECT is(evpg_rebuild_projection('writing', 'w'), 1::bigint, 'a rebuild of a reducer that writes nothing [rule 11]');
SET test.writes = 1;
SELECT fails($$SELECT evpg_rebuild_projection('writing', 'w')$$, 'VE020 a projection cannot write events',
  'a rebuild of a reducer that writes fails [rule 11]');

-- nor may it change projections or keys under the command that runs it
SELECT evpg_register_projection('writing', handler => 'test.write_handler', aggregate_types => '{counter_c}') \g /dev/null
SELECT fails(format('SELECT add(%L, 1, more => %L, aggregate => %L)', 'w', jsonb_build_object('call', call), 'counter_c'),
  'VE020 %', call || ' [rule 11]') FROM unnest(ARRAY[
  $$SELECT evpg_rebuild_projection('good', 'a')$$,
    $$SELECT evpg_rebuild_projection('good', 'a'), evpg_append('counter', 'w', evpg_events('{"type": "Added"}'))$$,
  $$SELECT evpg_put_projection('good', 'a', '{}')$$, $$SELECT evpg_register_projection('other', 'test.sum_apply')$$,
    $$SELECT evpg_drop_projection('writing')$$,
  $$SELECT evpg_drop_projection('good')$$]) call;
SELECT evpg_drop_projection('writing') \g /dev/null
SELECT isnt(add('w', 1, aggregate => 'counter_c'), NULL, 'after all these, commands are good [rule 11]');

-- the table of a projection is gone
DROP TABLE statement;
SELECT alike(error_of($$SELECT evpg_try_execute('counter', 'a', 'Add', '{"n": 1}')$$),
  '42P01 relation "statement" does not exist', 'the table of a projection was dropped [issue 3]');
SELECT is((SELECT version FROM evpg_projection('good', 'a')), 9::bigint, 'nothing is kept [issue 3]');
SELECT evpg_drop_projection('lines') \g /dev/null
SELECT * FROM finish();
