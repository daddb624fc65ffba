-- subscription_attempts.sql: how often events of subscriptions are tried, and what becomes of others when one was tried too
-- often.

\ir include/setup.sql
\ir include/subscriptions.sql
SELECT plan(15);

CREATE FUNCTION parked(subscription text) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(e.aggregate_id || ':' || e.version || CASE WHEN p.due THEN '!' ELSE '' END, ' ' ORDER BY e."position")
    FROM evpg.parked_event p JOIN evpg.event e USING ("position") WHERE p.name = subscription AND p.skip_reason IS NULL
$$;
CREATE FUNCTION at(stream text, event_version int) RETURNS bigint LANGUAGE sql AS $$
  SELECT "position" FROM evpg.event WHERE aggregate_id = stream AND version = event_version
$$;

-- ------------------------------------------------------------------ a consumer drops the rest of a partition after a retry

SELECT evpg_create_subscription('two', partitions => 2, max_attempts => 1) \g /dev/null
-- two streams of one partition, and one of the other
SELECT min(s) FILTER (WHERE n = 1) AS a, min(s) FILTER (WHERE n = 2) AS b, min(s) FILTER (WHERE other = 1) AS c
  FROM (SELECT s, row_number() OVER (PARTITION BY p ORDER BY s) * (p = 0)::int AS n,
               row_number() OVER (PARTITION BY p ORDER BY s) * (p = 1)::int AS other
          FROM (SELECT 'p' || i AS s, evpg.partition_of('thing/p' || i, 2) AS p FROM generate_series(1, 20) AS i) AS streams
       ) AS numbered \gset
SELECT evpg_append_event('thing', s, 'Made') FROM unnest(ARRAY[:'a', :'c', :'b', :'a', :'c']) WITH ORDINALITY AS t (s, n)
  ORDER BY n \g /dev/null
SELECT is((SELECT count(*) FROM evpg_fetch('two', 'w')), 5::bigint, 'events of two partitions are in flight');
SELECT ok(evpg_nack('two', lease_of('two', 'w'), at(:'a', 1), 'retry'), 'one is given back, and was tried often enough');
SELECT is(parked('two'), :'a' || ':1 ' || :'a' || ':2', 'it is parked, and the later one of its stream [rule 20]');
SELECT ok(evpg_ack('two', lease_of('two', 'w'), at(:'c', 2)),
  'the consumer has dropped the rest of that partition, and acknowledges the other one');
SELECT is(fetched('two', 'w'), :'b' || ':1', 'what it has dropped is not acknowledged, and comes again [rule 20]');
SELECT ok(done('two', 'w'));
SELECT is(fetched('two', 'w'), NULL, 'nothing else does');

SELECT evpg_create_subscription('one', partitions => 1, max_attempts => 1, start_at => 'now') \g /dev/null
SELECT append(2), append(2) \g /dev/null
SELECT is(fetched('one', 'w'), 's1:1 s2:1 s1:2 s2:2', 'events of the only partition are in flight');
SELECT ok(evpg_nack('one', lease_of('one', 'w'), at('s1', 1), 'retry'));
SELECT is(parked('one'), 's1:1 s1:2', 'a follower in flight is parked with the event [rule 20]');
SELECT is(error_of(format('SELECT evpg_ack(''one'', %s, %s)', lease_of('one', 'w'), at('s2', 1))),
  format('22023 position %s of subscription "one" was not handed out under this lease', at('s2', 1)),
  'the rest is not in flight any more');
SELECT append(1) \g /dev/null
SELECT is(fetched('one', 'w'), 's2:1 s2:2', 'it comes again [rule 20]');
SELECT ok(done('one', 'w'));
SELECT is(fetched('one', 'w'), NULL);
SELECT is(parked('one'), 's1:1 s1:2 s1:3', 'all that follow wait');

SELECT * FROM finish();
