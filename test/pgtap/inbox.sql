-- inbox.sql: messages from outside that are delivered more than once.

\ir include/setup.sql
\ir include/counter.sql

-- across sessions
SELECT evpg_receive('session', '1') \g /dev/null
\connect -
SET search_path = public, test;
SET test.kind = counter;
SELECT plan(57);
SELECT is(evpg_receive('session', '1'), false, 'B60: what another session has received');
DELETE FROM evpg.inbox;
CREATE FUNCTION test.inbox() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(source || ':' || message_key, ' ' ORDER BY source, message_key) FROM evpg.inbox $$;

-- once
SELECT is(evpg_receive('shop', '1'), true, 'B60: a message is received');
SELECT is(evpg_receive('shop', '1'), false, 'B60: once');
SELECT is(ARRAY[evpg_receive('shop', '2'), evpg_receive('bank', '1'), evpg_receive('Shop', '1'), evpg_receive('shop ', '1')], '{t,t,t,t}',
  'B60: another key or another source is another message');
SELECT is(ARRAY[evpg_receive('shop', '12'), evpg_receive('shop1', '2'), evpg_receive('shop', '01')], '{t,t,t}', 'B60: borders count');
SELECT is(inbox(), 'Shop:1 bank:1 shop:01 shop:1 shop:12 shop:2 shop :1 shop1:2', 'B60: all of them are in the table');
SELECT ok((SELECT bool_and(received_at BETWEEN statement_timestamp() - interval '1 hour' AND clock_timestamp()) FROM evpg.inbox),
  'B60: with the time');

-- with its effect, or not at all
CREATE PROCEDURE test.deliver(key text, n int, fail boolean DEFAULT false) LANGUAGE plpgsql AS $$
BEGIN
  IF evpg_receive('ten', key) THEN
    PERFORM evpg_execute('counter', 'ten', 'Add', jsonb_build_object('n', n));
    IF fail THEN
      RAISE EXCEPTION 'failed';
    END IF;
  END IF;
END $$;
DO $$ BEGIN FOR i IN 1 .. 10 LOOP CALL test.deliver('key ' || i % 5, 1); END LOOP; END $$;
SELECT is(total('ten'), '5 5', 'B60, 2.4 test 10: of ten messages with five keys, five have an effect');
SELECT is(error_of($$CALL test.deliver('late', 7, true)$$), 'P0001 failed', 'B60: what is done with a message fails');
SELECT is(total('ten'), '5 5', 'B60: it has no effect');
CALL test.deliver('late', 7);
CALL test.deliver('late', 7);
SELECT is(total('ten'), '6 12', 'B60: it was not received, so it is done when it comes again, once');

DELETE FROM evpg.inbox;
BEGIN;
SELECT is(evpg_receive('t', 'a'), true, 'B60: in a transaction');
SELECT is(evpg_receive('t', 'a'), false, 'B60: it is received in it');
SAVEPOINT s;
SELECT is(evpg_receive('t', 'b'), true, 'B60: in a subtransaction');
ROLLBACK TO s;
SELECT is(evpg_receive('t', 'b'), true, 'B60: that is rolled back it was not');
SAVEPOINT s2;
SELECT is(evpg_receive('t', 'c'), true, 'B60: in another one');
RELEASE s2;
SELECT is(evpg_receive('t', 'c'), false, 'B60: that is released it was');
ROLLBACK;
SELECT is(inbox(), NULL, 'B60: nothing is left of a transaction that is rolled back');
BEGIN;
SELECT evpg_receive('t', 'a') \g /dev/null
COMMIT;
SELECT is(inbox(), 't:a', 'B60: what is committed is kept');
-- isolation levels
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(ARRAY[evpg_receive('t', 'a'), evpg_receive('t', 'r'), evpg_receive('t', 'r')], '{f,t,f}', 'B60: under REPEATABLE READ');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is(ARRAY[evpg_receive('t', 'a'), evpg_receive('t', 's'), evpg_receive('t', 's')], '{f,t,f}', 'B60: under SERIALIZABLE');
COMMIT;

-- arguments
SELECT refused(format('SELECT evpg_receive(%s)', args), error, 'B60: evpg_receive(' || left(args, 20) || ')') FROM (VALUES
  ($$NULL, 'x'$$, '22004 source must not be null'), ($$'x', NULL$$, '22004 message key must not be null'),
  ($$'', 'x'$$, '22023 source must not be empty'), ($$'x', ''$$, '22023 message key must not be empty'),
  ($$E'a\nb', 'x'$$, '22023 source contains a control character'), ($$'x', E'a\tb'$$, '22023 message key contains a control character'),
  ($$repeat('x', 256), 'x'$$, 'VE014 source is too long'), ($$'x', repeat('ä', 513)$$, 'VE014 message key is too long')) x (args, error);
CREATE TABLE test.long AS
  SELECT (SELECT string_agg(md5('s' || i), '') FROM generate_series(1, 8) i) AS source,
         (SELECT string_agg(md5('k' || i), '') FROM generate_series(1, 32) i) AS key;
SELECT is((SELECT evpg_receive(left(source, 255), key)::text || evpg_receive(left(source, 255), key) FROM test.long), 'truefalse',
  'B60: the longest source and key');
SELECT is(evpg_receive('quelle "ä"', $$'; DROP TABLE "x" \$$), true, 'B60: any other character');
SELECT is(evpg_receive('quelle "ä"', $$'; DROP TABLE "x" \$$), false, 'B60: is kept as it is');
BEGIN READ ONLY;
SELECT is(error_of($$SELECT evpg_receive('t', 'x')$$), '25006 cannot execute evpg_receive() in a read-only transaction', 'B60: it writes');
ROLLBACK;

-- pruning
SELECT refused($$SELECT evpg_prune_inbox('-1 second')$$, '22023 older_than must not be negative', 'B60: pruning the future');
DELETE FROM evpg.inbox;
SELECT evpg_receive('t', 'young'), evpg_receive('t', 'old') \g /dev/null
UPDATE evpg.inbox SET received_at = clock_timestamp() - interval '31 days' WHERE message_key = 'old';
SELECT is(evpg_prune_inbox('32 days'), 0::bigint, 'B60: messages that are not old enough stay');
SELECT is(inbox(), 't:old t:young', 'B60: all of them');
SELECT is(evpg_prune_inbox('30 days'), 1::bigint, 'B60: older ones are forgotten');
SELECT is(inbox(), 't:young', 'B60: and no others');
SELECT is(ARRAY[evpg_receive('t', 'young'), evpg_receive('t', 'old')], '{f,t}', 'B60: what was forgotten is received again');
SELECT is(evpg_prune_inbox('0'), 2::bigint, 'B60: all');

-- who may
CREATE ROLE evpg_inbox_reader;
CREATE ROLE evpg_inbox_writer;
CREATE ROLE evpg_inbox_operator;
SELECT evpg_grant('evpg_inbox_reader', 'reader'), evpg_grant('evpg_inbox_writer', 'writer'), evpg_grant('evpg_inbox_operator', 'operator') \g /dev/null
CREATE FUNCTION test.as_role(role text, statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('SET LOCAL ROLE %I', role);
  EXECUTE statement;
  RESET ROLE;
  RETURN 'done';
EXCEPTION WHEN OTHERS THEN
  RESET ROLE;
  RETURN SQLSTATE;
END $$;
SELECT is(as_role('evpg_inbox_' || role, statement), result, 'B60: a ' || role || ': ' || statement) FROM (VALUES
  ('reader', $$SELECT evpg_receive('p', '1')$$, '42501'), ('writer', $$SELECT evpg_receive('p', '1')$$, 'done'),
  ('reader', $$SELECT evpg_prune_inbox('1 day')$$, '42501'), ('writer', $$SELECT evpg_prune_inbox('1 day')$$, '42501'),
  ('operator', $$SELECT evpg_prune_inbox('1 day')$$, 'done'),
  ('writer', 'SELECT * FROM evpg.inbox', '42501'), ('operator', 'SELECT * FROM evpg.inbox', 'done'),
  ('operator', 'DELETE FROM evpg.inbox', '42501')) x (role, statement, result);
DROP OWNED BY evpg_inbox_reader, evpg_inbox_writer, evpg_inbox_operator;
DROP ROLE evpg_inbox_reader, evpg_inbox_writer, evpg_inbox_operator;
SELECT * FROM finish();
