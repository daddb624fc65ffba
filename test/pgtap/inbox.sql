-- inbox.sql: messages from outside that are delivered more than once.

\ir include/setup.sql
\ir include/counter.sql

-- across sessions
SELECT evpg_receive('session', '1') \g /dev/null
\connect -
SET search_path = public, test;
SET test.kind = counter;
SELECT plan(57);
SELECT is(evpg_receive('session', '1'), false, 'what another session has received [B60]');
DELETE FROM evpg.inbox;
CREATE FUNCTION test.inbox() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(source || ':' || message_key, ' ' ORDER BY source, message_key) FROM evpg.inbox $$;

-- once
SELECT is(evpg_receive('shop', '1'), true, 'a message is received [B60]');
SELECT is(evpg_receive('shop', '1'), false, 'once [B60]');
SELECT is(ARRAY[evpg_receive('shop', '2'), evpg_receive('bank', '1'), evpg_receive('Shop', '1'), evpg_receive('shop ', '1')],
  '{t,t,t,t}',
  'another key or another source is another message [B60]');
SELECT is(ARRAY[evpg_receive('shop', '12'), evpg_receive('shop1', '2'), evpg_receive('shop', '01')], '{t,t,t}',
  'borders count [B60]');
SELECT is(inbox(), 'Shop:1 bank:1 shop:01 shop:1 shop:12 shop:2 shop :1 shop1:2', 'all of them are in the table [B60]');
SELECT ok((SELECT bool_and(received_at BETWEEN statement_timestamp() - interval '1 hour' AND clock_timestamp())
  FROM evpg.inbox),
  'with the time [B60]');

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
SELECT is(total('ten'), '5 5', 'of ten messages with five keys, five have an effect [B60, 2.4 test 10]');
SELECT is(error_of($$CALL test.deliver('late', 7, true)$$), 'P0001 failed', 'what is done with a message fails [B60]');
SELECT is(total('ten'), '5 5', 'it has no effect [B60]');
CALL test.deliver('late', 7);
CALL test.deliver('late', 7);
SELECT is(total('ten'), '6 12', 'it was not received, so it is done when it comes again, once [B60]');

DELETE FROM evpg.inbox;
BEGIN;
SELECT is(evpg_receive('t', 'a'), true, 'in a transaction [B60]');
SELECT is(evpg_receive('t', 'a'), false, 'it is received in it [B60]');
SAVEPOINT s;
SELECT is(evpg_receive('t', 'b'), true, 'in a subtransaction [B60]');
ROLLBACK TO s;
SELECT is(evpg_receive('t', 'b'), true, 'that is rolled back it was not [B60]');
SAVEPOINT s2;
SELECT is(evpg_receive('t', 'c'), true, 'in another one [B60]');
RELEASE s2;
SELECT is(evpg_receive('t', 'c'), false, 'that is released it was [B60]');
ROLLBACK;
SELECT is(inbox(), NULL, 'nothing is left of a transaction that is rolled back [B60]');
BEGIN;
SELECT evpg_receive('t', 'a') \g /dev/null
COMMIT;
SELECT is(inbox(), 't:a', 'what is committed is kept [B60]');
-- isolation levels
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(ARRAY[evpg_receive('t', 'a'), evpg_receive('t', 'r'), evpg_receive('t', 'r')], '{f,t,f}',
  'under REPEATABLE READ [B60]');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is(ARRAY[evpg_receive('t', 'a'), evpg_receive('t', 's'), evpg_receive('t', 's')], '{f,t,f}',
  'under SERIALIZABLE [B60]');
COMMIT;

-- arguments
SELECT refused(format('SELECT evpg_receive(%s)', args), error, 'evpg_receive(' || left(args, 20) || ') [B60]') FROM (VALUES
  ($$NULL, 'x'$$, '22004 source must not be null'), ($$'x', NULL$$, '22004 message key must not be null'),
  ($$'', 'x'$$, '22023 source must not be empty'), ($$'x', ''$$, '22023 message key must not be empty'),
  ($$E'a\nb', 'x'$$, '22023 source contains a control character'),
    ($$'x', E'a\tb'$$, '22023 message key contains a control character'),
  ($$repeat('x', 256), 'x'$$, 'VE014 source is too long'), ($$'x', repeat('ä', 513)$$, 'VE014 message key is too long')) x
    (args, error);
CREATE TABLE test.long AS
  SELECT (SELECT string_agg(md5('s' || i), '') FROM generate_series(1, 8) i) AS source,
         (SELECT string_agg(md5('k' || i), '') FROM generate_series(1, 32) i) AS key;
SELECT is((SELECT evpg_receive(left(source, 255), key)::text || evpg_receive(left(source, 255), key) FROM test.long),
  'truefalse',
  'the longest source and key [B60]');
SELECT is(evpg_receive('quelle "ä"', $$'; DROP TABLE "x" \$$), true, 'any other character [B60]');
SELECT is(evpg_receive('quelle "ä"', $$'; DROP TABLE "x" \$$), false, 'is kept as it is [B60]');
BEGIN READ ONLY;
SELECT is(error_of($$SELECT evpg_receive('t', 'x')$$), '25006 cannot execute evpg_receive() in a read-only transaction',
  'it writes [B60]');
ROLLBACK;

-- pruning
SELECT refused($$SELECT evpg_prune_inbox('-1 second')$$, '22023 older_than must not be negative',
  'pruning the future [B60]');
DELETE FROM evpg.inbox;
SELECT evpg_receive('t', 'young'), evpg_receive('t', 'old') \g /dev/null
UPDATE evpg.inbox SET received_at = clock_timestamp() - interval '31 days' WHERE message_key = 'old';
SELECT is(evpg_prune_inbox('32 days'), 0::bigint, 'messages that are not old enough stay [B60]');
SELECT is(inbox(), 't:old t:young', 'all of them [B60]');
SELECT is(evpg_prune_inbox('30 days'), 1::bigint, 'older ones are forgotten [B60]');
SELECT is(inbox(), 't:young', 'evpg_prune_inbox() forgets no younger messages [B60]');
SELECT is(ARRAY[evpg_receive('t', 'young'), evpg_receive('t', 'old')], '{f,t}',
  'what was forgotten is received again [B60]');
SELECT is(evpg_prune_inbox('0'), 2::bigint, 'all [B60]');

-- who may
CREATE ROLE evpg_inbox_reader;
CREATE ROLE evpg_inbox_writer;
CREATE ROLE evpg_inbox_operator;
SELECT evpg_grant('evpg_inbox_reader', 'reader'), evpg_grant('evpg_inbox_writer', 'writer'),
  evpg_grant('evpg_inbox_operator', 'operator') \g /dev/null
SELECT alike(as_role('evpg_inbox_' || role, statement), result, 'a ' || role || ': ' || statement || ' [B60]') FROM (VALUES
  ('reader', $$SELECT evpg_receive('p', '1')$$, '42501 %'), ('writer', $$SELECT evpg_receive('p', '1')$$, 'done'),
  ('reader', $$SELECT evpg_prune_inbox('1 day')$$, '42501 %'), ('writer', $$SELECT evpg_prune_inbox('1 day')$$, '42501 %'),
  ('operator', $$SELECT evpg_prune_inbox('1 day')$$, 'done'),
  ('writer', 'SELECT * FROM evpg.inbox', '42501 %'), ('operator', 'SELECT * FROM evpg.inbox', 'done'),
  ('operator', 'DELETE FROM evpg.inbox', '42501 %')) x (role, statement, result);
DROP OWNED BY evpg_inbox_reader, evpg_inbox_writer, evpg_inbox_operator;
DROP ROLE evpg_inbox_reader, evpg_inbox_writer, evpg_inbox_operator;
SELECT * FROM finish();
