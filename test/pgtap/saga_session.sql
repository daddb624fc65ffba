-- saga_session.sql: what a saga remembers is in tables, so another session goes on where one has ended (B55); a restart of
-- the server is in test/t/027_saga_steps.pl.

\ir include/setup.sql
\ir include/counter.sql
\ir include/sagas.sql

SET test.kind = counter;
SET test.kind_of_saga = functions;
SELECT register_script('functions') \g /dev/null
SET test.kind_of_saga = 'C';
SELECT register_script('C') \g /dev/null
-- 2.4 test 7: state 3 after three events, restart, one more: 4
SELECT start('count', script(send('sent', 'Add', 1))), tell('count', script(send('sent', 'Add', 1))),
  tell('count', script(send('sent', 'Add', 1))) \g /dev/null
SELECT run() \g /dev/null
CREATE TABLE test.before AS SELECT name, checkpoint FROM evpg.consumer;

\connect -
-- consumers need it
SET default_transaction_isolation = 'read committed';
SET search_path = public, test;
SET test.kind = counter;
SELECT plan(11);
SELECT is((SELECT version || ' ' || (state->>'seen') FROM evpg_saga(s, 'count')), '3 3',
  'another session finds the state of three events [B55, 2.4 test 7, ' || s || ']')
  FROM unnest('{functions,C}'::text[]) s;
SELECT is(total('sent'), '6 6', 'each of two sagas has sent three commands [A31]');
SELECT is(run(), '0 0', 'there is nothing to do for it [A31, 1.2 test 9]');
SELECT is((SELECT string_agg(checkpoint::text, ' ') FROM evpg.consumer
  WHERE checkpoint < (SELECT checkpoint FROM test.before b WHERE b.name = consumer.name)), NULL,
  'checkpoints go on, and nothing is sent again [A45, 1.2 test 9]');
SELECT tell('count', script(send('sent', 'Add', 1))) \g /dev/null
SELECT is(run(), '2 0', 'a new event: only this one is reacted to [A31, 1.2 test 9]');
SELECT is((SELECT version || ' ' || (state->>'seen') FROM evpg_saga(s, 'count')), '4 4',
  'one more makes four [B55, 2.4 test 7, ' || s || ']')
  FROM unnest('{functions,C}'::text[]) s;
SELECT is(total('sent'), '8 8', 'once by each saga [A31, 1.2 test 9]');
SELECT is(run(), '0 0', 'a second run has nothing to do [A31, 1.2 test 9]');
SELECT is((SELECT count(*) FROM evpg.saga_event) + (SELECT count(*) FROM evpg.dead_letter), 0::bigint,
  'a second run has nothing to do, and nothing is left [A32, 1.2 test 9]');
SELECT * FROM finish();
