-- translators.sql: commands made of messages from outside, and messages that are received with all their commands or not at
-- all.

\ir include/setup.sql
\ir include/counter.sql
\ir include/listener.sql

SELECT plan(197);
SET test.kind = counter;

-- A shop's message: {"orders": [{"c": id, "do": type, "n": n, "id": command id, "version": expected}, ...]}
CREATE FUNCTION test.shop(payload jsonb) RETURNS SETOF evpg.command LANGUAGE sql STABLE AS $$
  SELECT (evpg_command(coalesce(o->>'type', test.kind()), o->>'c', o->>'do', jsonb_build_object('n', o->'n'),
    (o->>'version')::bigint,
    o->>'id')).*
    FROM jsonb_array_elements(payload->'orders') WITH ORDINALITY AS x (o, n) ORDER BY n
$$;
CREATE FUNCTION test.one(payload jsonb) RETURNS evpg.command LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN payload ? 'c' THEN evpg_command('counter', payload->>'c', 'Add', payload, actor => 'one') END
$$;
-- what a payload says as rows, without any check
CREATE FUNCTION test.raw(payload jsonb) RETURNS SETOF evpg.command LANGUAGE plpgsql AS $$
BEGIN
  RETURN QUERY SELECT * FROM jsonb_populate_recordset(NULL::evpg.command, payload->'rows');
  IF payload ? 'null' THEN
    RETURN NEXT NULL;
  END IF;
END $$;
CREATE FUNCTION test.inbox() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(source || ':' || message_key, ' ' ORDER BY source, message_key) FROM evpg.inbox $$;
CREATE FUNCTION test.orders(VARIADIC orders text[]) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('orders', jsonb_agg(o::jsonb)) FROM unnest(orders) o $$;
-- "status id version code" of each outcome
CREATE FUNCTION test.receive(key text, payload jsonb, translator text DEFAULT 'shop') RETURNS text LANGUAGE sql VOLATILE
  AS $$
  SELECT string_agg(concat_ws(' ', status, aggregate_id, version, code), ', ')
    FROM evpg_receive_message('s', key, translator, payload) $$;
-- what is stored, but for positions that were drawn in vain
CREATE FUNCTION test.stored() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT split_part(trace(), ', drawn', 1) || ' ' || (SELECT count(*) FROM evpg.inbox) $$;

-- registration
SELECT is(evpg_register_translator('shop', 'test.shop'), true, 'registered [B59]');
SELECT is(evpg_register_translator('shop', 'test.shop'), false, 'the same again changes nothing [B59]');
SELECT is(evpg_register_translator('one', 'test.raw'), true, 'another one [B59]');
SELECT is(evpg_register_translator('one', 'test.one'), true, 'changed [B59]');
SELECT is(evpg_register_translator('raw', 'test.raw'), true, 'a third [B59]');
CREATE FUNCTION test.strict_one(payload jsonb) RETURNS evpg.command LANGUAGE sql STRICT AS $$ SELECT NULL::evpg.command $$;
CREATE FUNCTION test.of_text(payload text) RETURNS evpg.command LANGUAGE sql AS $$ SELECT NULL::evpg.command $$;
CREATE FUNCTION test.of_two(payload jsonb, more jsonb) RETURNS evpg.command LANGUAGE sql AS $$ SELECT NULL::evpg.command $$;
CREATE FUNCTION test.to_json(payload jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT payload $$;
SELECT refused(format('SELECT evpg_register_translator(%s)', args), error, 'register_translator(' || args || ') [B59]')
  FROM (VALUES
  ($$'x', 'test.strict_one'$$, '42P13 %because it is STRICT'),
  ($$'x', 'test.of_text'$$, '42P13 %cannot serve as translator'),
  ($$'x', 'test.of_two'$$, '42P13 %cannot serve as translator'),
  ($$'x', 'test.to_json'$$, '42P13 %cannot serve as translator'),
  ($$'x', NULL$$, '22004 translator must not be null'), ($$NULL, 'test.one'$$, '22004 translator name must not be null'),
  ($$'', 'test.one'$$, '22023 translator name must not be empty'), ($$'evpg.x', 'test.one'$$, 'VE017 %'),
  ($$repeat('x', 256), 'test.one'$$, 'VE014 %'), ($$'x', 'test.nope'$$, '42883 %'), ($$'x', 0$$, '42883 %')) x (args, error);

-- translating
SELECT same($$SELECT * FROM evpg_translate('shop',
  orders('{"c": "a", "do": "Add", "n": 1, "id": "i"}', '{"c": "b", "do": "Subtract", "version": 3}'))$$,
  $$VALUES ('counter', 'a', 'Add', '{"n": 1}'::jsonb, NULL::bigint, 'i', NULL::jsonb, NULL::text, NULL::text, NULL::text,
    NULL::bigint, NULL::timestamptz, NULL::text),
  ('counter', 'b', 'Subtract', '{"n": null}', 3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)$$,
    'a message becomes commands, in its order [B59]');
SELECT same($$SELECT aggregate_id, data, actor FROM evpg_translate('one', '{"c": "a"}')$$,
  $$VALUES ('a', '{"c": "a"}'::jsonb, 'one')$$,
  'a translator may make one command of a message [B59]');
SELECT is((SELECT count(*) FROM evpg_translate(t, p)), 0::bigint, 'none: ' || t || ' of ' || p || ' [B59]') FROM (VALUES
  ('one', '{}'::jsonb), ('one', 'null'), ('shop', '{}'), ('shop', '{"orders": []}'), ('raw', '{"null": 1}'),
    ('raw', '{"rows": [{}, {}], "null": 1}'))
  x (t, p);
SELECT same($$SELECT command_type FROM evpg_translate('raw', '{"null": 1, "rows": [{},
  {"aggregate_type": "c", "aggregate_id": "a", "command_type": "A"}, {},
  {"aggregate_type": "c", "aggregate_id": "a", "command_type": "B", "version": 9, "received_at": "2020-01-01"}]}')$$,
  $$VALUES ('A'), ('B')$$,
  'NULL and rows of NULLs are none, the others stay [B59]');
SELECT same($$SELECT version, received_at FROM evpg_translate('raw', '{"rows": [{"aggregate_type": "c", "aggregate_id": "a",
  "command_type": "B", "version": 9, "received_at": "2020-01-01"}]}')$$, $$VALUES (NULL::bigint, NULL::timestamptz)$$,
  'version and received_at are not for a translator to say [B59]');
SELECT is(trace(), 'events 0, streams 0 of versions 0, records 0, snapshots 0, types 2, drawn 0',
  'nothing was executed [B59]');

-- 2.4 test 14: odd numbers are dropped, even ones pass in order; the same in a message
CREATE FUNCTION test.even(payload jsonb) RETURNS SETOF evpg.command LANGUAGE sql STABLE AS $$
  SELECT (evpg_command('counter', 'even', 'Add', jsonb_build_object('n', n))).*
    FROM jsonb_array_elements(payload) WITH ORDINALITY x (n, o) WHERE n::int % 2 = 0 ORDER BY o $$;
SELECT evpg_register_translator('even', 'test.even') \g /dev/null
SELECT is((SELECT array_agg((data->>'n')::int) FROM evpg_translate('even', '[1, 8, 3, 2, 6, 5]')), '{8,2,6}',
  'odd ones are dropped, even ones pass in order [B59, 2.4 test 14]');
SELECT is((SELECT count(*) FROM evpg_translate('even', '[1, 3]')), 0::bigint,
  'a translator may make no command of a message [B59, 2.4 test 14]');
BEGIN;
SELECT is((SELECT string_agg(status, ' ') FROM evpg_receive_message('s', 'even', 'even', '[1, 8, 3, 2, 6, 5]')), 'ok ok ok',
  'a message of them [B59, B60, 2.4 test 14]');
SELECT is((SELECT string_agg(data->>'n', ' ' ORDER BY version) FROM evpg.event WHERE aggregate_id = 'even'), '8 2 6',
  'is done in their order [B59, B60, 2.4 test 14]');
ROLLBACK;
SELECT evpg_drop_translator('even') \g /dev/null

-- what is wrong with commands is found before one of them is executed
SELECT refused(format('SELECT %s %L)', call, p), error, what || ': ' || call || ' [B59]') FROM (VALUES
  ('{"rows": [{"data": {}}]}', '22004 aggregate type must not be null', 'a row without type'),
  ('{"rows": [{"version": 1}]}', '22004 aggregate type must not be null', 'a row with nothing but a version'),
  ('{"rows": [{"aggregate_type": "counter", "command_type": "Add"}]}', '22004 aggregate id must not be null',
    'a row without id'),
  ('{"rows": [{"aggregate_type": "counter", "aggregate_id": "a"}]}', '22004 command type must not be null',
    'a row without command type'),
  ('{"rows": [{"aggregate_type": "counter", "aggregate_id": "a", "command_type": "Add", "metadata": []}]}',
    '22023 metadata must be a JSON object',
    'bad metadata'),
  ('{"rows": [{"aggregate_type": "counter", "aggregate_id": "a", "command_type": "Add", "expected_version": -2}]}',
    '22023 expected_version -2 %',
    'a bad expectation'),
  ('{"rows": [{"aggregate_type": "counter", "aggregate_id": "a", "command_type": "Add", "data": {"n": 1}},
    {"aggregate_type": "counter", "aggregate_id": "", "command_type": "Add"}]}', '22023 aggregate id must not be empty',
      'an empty id in the second row'))
  x (p, error, what), (VALUES ('evpg_translate(''raw'','), ('evpg_receive_message(''s'', ''bad'', ''raw'',')) y (call);
SET evpg.max_events = 2;
SELECT is((SELECT count(*) FROM evpg_translate('shop', orders('{"c": "a", "do": "Add"}', '{"c": "a", "do": "Add"}'))),
  2::bigint, 'as many as the limit [B59]');
SELECT refused($$SELECT evpg_translate('shop',
  orders('{"c": "a", "do": "Add"}', '{"c": "a", "do": "Add"}', '{"c": "a", "do": "Add"}'))$$,
  'VE014 translator "shop" makes too many commands', 'more than the limit [B59]');
RESET evpg.max_events;
SELECT refused('SELECT ' || call, error, left(call, 60) || ' [B59]') FROM (VALUES
  ($$evpg_translate('nope', '{}')$$, 'VE022 translator "nope" is not registered'),
  ($$evpg_receive_message('s', 'bad', 'nope', '{}')$$, 'VE022 translator "nope" is not registered'),
  ($$evpg_translate(NULL, '{}')$$, '22004 translator name must not be null'),
    ($$evpg_translate('one', NULL)$$, '22004 payload must not be null'),
  ($$evpg_receive_message(NULL, 'k', 'one', '{}')$$, '22004 source must not be null'),
  ($$evpg_receive_message('s', NULL, 'one', '{}')$$, '22004 message key must not be null'),
  ($$evpg_receive_message('s', 'bad', NULL, '{}')$$, '22004 translator name must not be null'),
  ($$evpg_receive_message('s', 'bad', 'one', NULL)$$, '22004 payload must not be null'),
  ($$evpg_receive_message('s', 'bad', 'one', repeat('[', 101)::text::jsonb)$$, '22P02 %'),
  ($$evpg_receive_message('s', 'bad', 'one', (repeat('[', 101) || repeat(']', 101))::jsonb)$$,
    'VE014 payload is nested too deeply')) x (call, error);
SELECT is(inbox(), NULL, 'a message that is in error is not received [B60]');
BEGIN READ ONLY;
SELECT is((SELECT count(*) FROM evpg_translate('one', '{"c": "a"}')), 1::bigint, 'translating writes nothing [B59]');
SELECT is(error_of($$SELECT evpg_receive_message('s', 'k', 'one', '{}')$$),
  '25006 cannot execute evpg_receive_message() in a read-only transaction',
  'receiving does [B60]');
ROLLBACK;

-- receiving, by an aggregate of functions and by a module
CREATE FUNCTION test.no(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN
  PERFORM evpg_reject('no');
  RETURN command;
END $$;
CREATE PROCEDURE test.forget() LANGUAGE sql AS $$ DELETE FROM evpg.inbox; DELETE FROM evpg.command_record $$;
SET test.kind = counter;
\ir include/translators.sql
CALL forget();
SET test.kind = counter_c;
\ir include/translators.sql

-- what a translator refuses, or cannot do, is an error, and says whose it is
CREATE FUNCTION test.angry(payload jsonb) RETURNS SETOF evpg.command LANGUAGE plpgsql AS $$
BEGIN
  RETURN NEXT evpg_command('counter', 'angry', 'Add', '{"n": 1}');
  PERFORM evpg_reject('bad_form', 'cannot read this', payload);
END $$;
SELECT evpg_register_translator('angry', 'test.angry') \g /dev/null
SELECT stored() AS before \gset
SELECT is(error_of($$SELECT evpg_receive_message('s', 'angry', 'angry', '{"x": 1}')$$), 'VE002 cannot read this',
  'a translator that refuses [B59]');
SELECT is(error_fields($$SELECT evpg_receive_message('s', 'angry', 'angry', '{"x": 1}')$$), 'bad_form|{"x": 1}|',
  'its error has code and detail [B59]');
SELECT is(stored(), :'before', 'nothing is left of its message [B60]');
SELECT alike(context_of($$SELECT evpg_receive_message('far away', 'm1', 'angry', '{}')$$),
  E'%\ntranslator "angry"\nmessage "m1" of source "far away"\n%',
  'the position of a message that is refused stays where it was [B59]');
SELECT alike(context_of($$SELECT evpg_receive_message('far away', 'm1', 'shop', orders('{"c": "a", "do": "Fail"}'))$$),
  E'%handler of aggregate "counter_c"%\nmessage "m1" of source "far away"\n%',
    'nothing is left of a message whose command id is refused [B60]');

-- what a translator writes goes with the message
CREATE TABLE test.note (what text);
CREATE FUNCTION test.writing(payload jsonb) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO test.note VALUES (current_user || ' ' || current_setting('search_path'));
  RETURN evpg_command('counter', 'written', payload->>'do', '{"n": 1}');
END $$;
SELECT evpg_register_translator('writing', 'test.writing') \g /dev/null
SELECT is(receive('w', '{"do": "Subtract"}', 'writing'), 'rejected written 0 underflow', 'a message is refused [B60]');
SELECT is((SELECT count(*) FROM note), 0::bigint, 'what its translator wrote is undone [B60]');
SELECT is(receive('w', '{"do": "Add"}', 'writing'), 'ok written 1', 'it is received [B60]');
SELECT is((SELECT count(*) FROM note), 1::bigint, 'a message that is received is kept [B60]');

-- as whom it runs
CREATE ROLE evpg_translator_writer;
CREATE ROLE evpg_translator_operator;
SELECT evpg_grant('evpg_translator_writer', 'writer'), evpg_grant('evpg_translator_operator', 'operator') \g /dev/null
GRANT USAGE, CREATE ON SCHEMA test TO evpg_translator_operator;
GRANT INSERT ON test.note TO evpg_translator_operator;
SELECT is(as_role('evpg_translator_operator', $$SELECT evpg_register_translator('mine', 'test.writing')$$),
  '42501 must be owner of function test.writing(pg_catalog.jsonb)', 'a function of another [B59]');
ALTER FUNCTION test.writing OWNER TO evpg_translator_operator;
SET ROLE evpg_translator_operator;
SET search_path = test, public;
SELECT is(evpg_register_translator('mine', 'writing'), true, 'an operator registers its own [B59]');
RESET ROLE;
SET ROLE evpg_translator_writer;
SET search_path = public;
SELECT status FROM evpg_receive_message('s', 'm', 'mine', '{"do": "Add"}') \gset
RESET ROLE;
SET search_path = public, test;
SELECT is(:'status'::text || ' ' || (SELECT what FROM note ORDER BY what LIMIT 1),
  'ok evpg_translator_operator test, public, pg_temp',
  'it runs as its owner, with the search_path of its registration [B59]');
SELECT is(as_role('evpg_translator_writer', statement), result, 'a writer: ' || statement || ' [B59]') FROM (VALUES
  ($$SELECT evpg_translate('one', '{}')$$, 'done'),
  ($$SELECT evpg_drop_translator('one')$$, '42501 permission denied for function evpg_drop_translator'),
  ($$SELECT evpg_register_translator('x', 'abs')$$, '42725 more than one function named "abs"'),
  ('SELECT * FROM evpg.translator', '42501 permission denied for table translator')) x (statement, result);
SELECT is(as_role('evpg_translator_operator', 'SELECT * FROM evpg.translator'), 'done', 'an operator sees them [B59]');

-- the function is replaced, and goes
CREATE OR REPLACE FUNCTION test.one(payload jsonb) RETURNS evpg.command LANGUAGE sql STABLE AS $$
  SELECT evpg_command('counter', 'replaced', 'Add', payload) $$;
SELECT is((SELECT aggregate_id FROM evpg_translate('one', '{}')), 'replaced',
  'a function that is replaced counts at once [B59]');
DROP FUNCTION test.one(jsonb);
SELECT is(error_of($$SELECT evpg_translate('one', '{}')$$),
  '42883 translator function test.one(pg_catalog.jsonb) does not exist', 'one that is gone [B59]');
SELECT is((SELECT count(*) FROM evpg_translate('shop', orders('{"c": "a", "do": "Add"}'))), 1::bigint,
  'does not matter to others [B59]');
CREATE FUNCTION test.one(payload jsonb) RETURNS SETOF evpg.command LANGUAGE sql STABLE AS $$
  SELECT evpg_command('counter', 'again', 'Add', payload) FROM generate_series(1, 2) $$;
SELECT is((SELECT count(*) FROM evpg_translate('one', '{}')), 2::bigint, 'one that comes back counts, a set too [B59]');

-- dropped, rolled back
BEGIN;
SAVEPOINT s;
SELECT is(evpg_drop_translator('one'), true, 'dropped [B59]');
SELECT is(error_of($$SELECT evpg_translate('one', '{}')$$), 'VE022 translator "one" is not registered', 'at once [B59]');
SELECT evpg_register_translator('new', 'test.one') \g /dev/null
SELECT is((SELECT count(*) FROM evpg_translate('new', '{}')), 2::bigint, 'one that was registered in the transaction [B59]');
ROLLBACK TO s;
SELECT is((SELECT count(*) FROM evpg_translate('one', '{}')), 2::bigint, 'rolled back [B59]');
SELECT is(error_of($$SELECT evpg_translate('new', '{}')$$), 'VE022 translator "new" is not registered', 'both [B59]');
COMMIT;
SELECT is(ARRAY[evpg_drop_translator('one'), evpg_drop_translator('one', true)], '{t,f}', 'dropped [B59]');
SELECT refused($$SELECT evpg_drop_translator('one')$$, 'VE022 translator "one" is not registered', 'once [B59]');
DROP OWNED BY evpg_translator_writer, evpg_translator_operator;
DROP ROLE evpg_translator_writer, evpg_translator_operator;
-- names that belong to evpg
SELECT evpg_register_translator('reserved', 'test.raw') \g /dev/null
SELECT is(error_of(format('SELECT count(*) FROM evpg_receive_message(%L, %L, %L, %L)', 's', 'reserved', 'reserved',
  jsonb_build_object('rows',
  jsonb_build_array('{"aggregate_type": "counter", "aggregate_id": "r", "command_type": "Add", "data": {"n": 1}}'::jsonb
  || more)))), error, error || ' [B59]')
  FROM (VALUES ('{"command_id": "saga:1"}'::jsonb, 'VE017 command id "saga:1" is reserved'),
    ('{"metadata": {"evpg": {"depth": -5}}}', 'VE017 metadata key "evpg" is reserved')) x (more, error);
-- a translator that a session keeps
CREATE FUNCTION test.to_a(payload jsonb) RETURNS evpg.command LANGUAGE sql AS $$
  SELECT evpg_command('counter', 'a', 'Add')
$$;
CREATE FUNCTION test.to_b(payload jsonb) RETURNS evpg.command LANGUAGE sql AS $$
  SELECT evpg_command('counter', 'b', 'Add')
$$;
CREATE FUNCTION test.translated() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT aggregate_id FROM evpg_translate('kept', '{}')
$$;
SELECT evpg_register_translator('kept', 'test.to_a') \g /dev/null
SELECT translated(), translated(), translated() \g /dev/null
SELECT evpg_register_translator('kept', 'test.to_b') \g /dev/null
SELECT is(translated(), 'b', 'a session that has used a translator uses the new one that it registers [B59]');
SELECT translated(), translated() \g /dev/null
SELECT * FROM dblink('listener', $$SELECT evpg_register_translator('kept', 'test.to_a')$$) x (changed boolean) \g /dev/null
SELECT is(translated(), 'a', 'and the new one that another session has registered [B59]');
-- one that another session registers while this one is loaded
SELECT dblink_exec('listener', $$SET evpg.test_wait = 'translator_loaded'$$), pg_advisory_lock(17700) \g /dev/null
SELECT dblink_send_query('listener', 'SELECT translated() FROM generate_series(1, 2)') \g /dev/null
SELECT wait_until($$SELECT count(*) = 1 FROM own_lock WHERE locktype = 'advisory' AND objid = 17700 AND NOT granted$$)
  \g /dev/null
SELECT evpg_register_translator('kept', 'test.to_b') \g /dev/null
SELECT pg_advisory_unlock(17700) \g /dev/null
SELECT is((SELECT string_agg(t, ' ') FROM dblink_get_result('listener') x (t text)), 'a b',
  'a translator that is registered anew while it is loaded is used that once [B59]');
SELECT * FROM dblink_get_result('listener') x (t text) \g /dev/null
SELECT is((SELECT t FROM dblink('listener', 'SELECT translated()') x (t text)), 'b', 'and then the new one [B59]');
SELECT * FROM finish();
