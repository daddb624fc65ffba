-- saga_backlog.sql: which events are due if much is pending: many events, of many instances or of few, in one saga or in
-- several, of which most may have to wait (rules 16 and 17).

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql
\ir include/sagas.sql
SET test.kind_of_saga = functions;

SELECT plan(12);

-- Which positions are pending, of these keys, as a count.
CREATE FUNCTION test.left_of(keys text) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT count(*) FROM evpg.saga_event WHERE key LIKE keys
$$;

-- 250 instances with two events each, in an order that is not that of their keys
SELECT register_script('script', max_attempts => 1) \g /dev/null
SELECT count(*) FROM (SELECT start('k' || lpad((n * 7 % 251)::text, 3, '0')) FROM generate_series(1, 250) n) x \g /dev/null
SELECT count(*) FROM (SELECT tell('k' || lpad((n * 7 % 251)::text, 3, '0')) FROM generate_series(1, 250) n) x \g /dev/null
SELECT is(run(0), '0 0', 'all are given to their instances [rule 16]'),
  is(left_of('k%'), 500::bigint, 'they wait [rule 16]');
SELECT max("position") AS third FROM (SELECT "position" FROM evpg.saga_event ORDER BY "position" LIMIT 3) x \gset
SELECT run(3) \g /dev/null
SELECT is((SELECT array_agg(DISTINCT "position" <= :third) FROM evpg.saga_instance), '{t}',
  'the oldest are reacted to first, also if there are more instances than are looked at [rule 16]');
SELECT run() \g /dev/null
SELECT is((SELECT string_agg(DISTINCT version || ' ' || (state->>'seen'), ', ') FROM evpg.saga_instance), '2 2',
  'each instance reacts to both of its events, the first one first [rule 16]'),
  is(left_of('%'), 0::bigint, 'nothing is left [rule 16]');

-- one instance with more events than are looked at, before all others
SELECT start('a') \g /dev/null
SELECT count(*) FROM (SELECT tell('a') FROM generate_series(1, 300) n) x \g /dev/null
SELECT start('b') \g /dev/null
SELECT run(2) \g /dev/null
SELECT is(instance('b') || ' ' || left_of('a'), 'running 1 {"seen": 1} 300',
  'an instance does not wait for another one that has hundreds of events [rule 16]');
SELECT run() \g /dev/null
SELECT is(instance('a'), 'running 301 {"seen": 301}', 'which reacts to all of them [rule 16]');

-- more instances than are looked at wait for their dead letters, with the oldest events; the next one in another saga
SELECT count(*) FROM (SELECT start('w' || lpad(n::text, 3, '0'), '{"fail": "always"}')
  FROM generate_series(1, 230) n) x \g /dev/null
SELECT is(run(), '0 230', 'very many instances fail [rule 17]');
SELECT count(*) FROM (SELECT tell('w' || lpad(n::text, 3, '0')) FROM generate_series(1, 230) n) x \g /dev/null
SELECT start('z') \g /dev/null
SELECT is(run(), '0 0', 'a pass'), is(instance('z'), 'running 1 {"seen": 1}',
  'an instance behind all of them, in both orders, reacts [rule 17]');
SELECT register_script('zz') \g /dev/null
SELECT start('y') \g /dev/null
SELECT run() \g /dev/null
SELECT is((SELECT string_agg(saga, ', ' ORDER BY saga) FROM evpg.saga_instance WHERE key = 'y'), 'script, zz',
  'so does one of a saga that comes after theirs [rule 17]');
SELECT is(left_of('w%'), 460::bigint, 'those still wait [rule 17]');
SELECT * FROM finish();
