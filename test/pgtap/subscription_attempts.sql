-- subscription_attempts.sql: how often events of subscriptions are tried, and what becomes of others when one was tried too
-- often.

\ir include/setup.sql
\ir include/subscriptions.sql
SELECT plan(67);

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

-- ------------------------------------------------------------------ what is replayed begins anew

-- Crashes: a fetch without the lease gets what is in flight again.
SELECT evpg_create_subscription('anew', partitions => 1, max_attempts => 2, start_at => 'now') \g /dev/null
SELECT append(1), append(2), append(1) \g /dev/null
SELECT is(fetched('anew', 'w'), 's1:4 s1:5 s2:3 s1:6', 'events are handed out');
SELECT is(fetched('anew', 'w'), 's1:4*2', 'the first one again');
SELECT is(fetched('anew', 'w'), 's2:3*2', 'it is parked after max_attempts, and another one is next');
SELECT ok(done('anew', 'w'));
SELECT is(fetched('anew', 'w'), NULL);
SELECT is(parked('anew'), 's1:4 s1:5 s1:6', 'the stream is parked');
SELECT is(evpg_replay_parked('anew'), 3::bigint, 'and replayed');
SELECT is(fetched('anew', 'w', 2), 's1:4 s1:5', 'parked events are handed out as if for the first time [rule 20]');
SELECT is(fetched('anew', 'w', 100, lease_of('anew', 'w')), 's1:6', 'so are more of them under the same lease [rule 20]');
SELECT ok(evpg_ack('anew', lease_of('anew', 'w'), at('s1', 4)), 'the first one is done');
SELECT is(fetched('anew', 'w'), 's1:5*2', 'attempts at the next one are counted, and it comes alone [rule 20]');
SELECT is(fetched('anew', 'w', 100, lease_of('anew', 'w')), NULL, 'nothing else while it is in flight [rule 20]');
SELECT is(fetched('anew', 'w'), NULL, 'after max_attempts it is parked again [rule 20]');
SELECT is(parked('anew'), 's1:5 s1:6', 'with the later one of its stream, and the one that is done is not [rule 20]');
SELECT is((SELECT string_agg(attempts || ' ' || coalesce(error, '-'), ', ' ORDER BY "position") FROM evpg.parked_event
  WHERE name = 'anew'), '2 it was not acknowledged in 2 attempts, 1 -', 'its attempts since the replay are recorded');
SELECT append(1) \g /dev/null
SELECT is(evpg_replay_parked('anew', 1), 1::bigint, 'it is replayed once more');
SELECT is(fetched('anew', 'w'), 's1:5', 'and is handed out [rule 20]');
SELECT ok(evpg_nack('anew', lease_of('anew', 'w'), at('s1', 5), 'retry', '0 s'), 'it is given back');
SELECT is(fetched('anew', 'w'), NULL);
SELECT is(fetched('anew', 'w'), 's1:5*2', 'and comes again');
SELECT ok(evpg_nack('anew', lease_of('anew', 'w'), at('s1', 5), 'retry', '0 s'), 'it is given back after max_attempts');
SELECT is(parked('anew'), 's1:5 s1:6', 'it is parked again [rule 20]');

-- followers that were handed out in a batch with an event that is given back
SELECT evpg_create_subscription('rest', partitions => 1, max_attempts => 2, start_at => 'now') \g /dev/null
SELECT append(3) \g /dev/null
SELECT count(evpg_nack('rest', lease_of('rest', 'w'), "position", 'park')) FROM evpg_fetch('rest', 'w') \g /dev/null
SELECT is(parked('rest'), 's1:8 s2:4 s3:1');
SELECT evpg_replay_parked('rest') \g /dev/null
SELECT is(fetched('rest', 'w'), 's1:8 s2:4 s3:1', 'events of three streams are replayed');
SELECT ok(evpg_nack('rest', lease_of('rest', 'w'), at('s1', 8), 'retry', '0 s'), 'the first one is given back');
SELECT is(fetched('rest', 'w'), NULL);
SELECT is(fetched('rest', 'w'), 's1:8*2', 'it comes again, alone');
SELECT ok(done('rest', 'w'));
SELECT is(fetched('rest', 'w'), 's2:4 s3:1', 'then the others, which were not tried [rule 20]');
SELECT ok(done('rest', 'w'));

-- an event that its partition has not passed yet
SELECT evpg_create_subscription('early', partitions => 2, max_attempts => 2, start_at => 'now') \g /dev/null
SELECT evpg_append_event('thing', :'a', 'Made') \g /dev/null
SELECT evpg_append_event('thing', :'c', 'Made') \g /dev/null
SELECT is(fetched('early', 'w'), :'a' || ':3 ' || :'c' || ':3');
SELECT is(fetched('early', 'w'), :'a' || ':3*2');
SELECT is(fetched('early', 'w'), :'c' || ':3*2', 'an event is parked, and one of another partition is in flight');
SELECT is(evpg_replay_parked('early'), 1::bigint, 'it is replayed before its partition has gone on');
SELECT is(fetched('early', 'w'), :'a' || ':3', 'and begins anew as well [rule 20]');
SELECT is(fetched('early', 'w'), :'a' || ':3*2', 'then its attempts are counted [rule 20]');
SELECT fetched('early', 'w') \g /dev/null
SELECT is(parked('early'), :'a' || ':3 ' || :'c' || ':3', 'and it is parked again; so is the other one [rule 20]');

-- ------------------------------------------------------------------ partitions that are not equally far

SELECT evpg_create_subscription('far', partitions => 2, start_at => 'now') \g /dev/null
SELECT fetched('far', 'w'), fetched('far', 'v'), fetched('far', 'w'), fetched('far', 'v') \g /dev/null
SELECT evpg_append_event('thing', s, 'Made') FROM unnest(ARRAY[:'a', :'b', :'c', :'c']) WITH ORDINALITY AS t (s, n)
  ORDER BY n \g /dev/null
SELECT is(fetched('far', 'w', 1), :'a' || ':4', 'a consumer has one partition');
SELECT ok(evpg_nack('far', lease_of('far', 'w'), at(:'a', 4), 'park'));
SELECT is(fetched('far', 'v', 1), :'c' || ':4', 'another one has the other, and is further');
SELECT ok(evpg_nack('far', lease_of('far', 'v'), at(:'c', 4), 'park'));
SELECT is(evpg_replay_parked('far'), 2::bigint, 'events of both are replayed');
SELECT evpg_release_lease('far', lease_of('far', 'v')) \g /dev/null
SELECT is(fetched('far', 'w'), :'a' || ':4 ' || :'c' || ':4', 'by one of them');
SELECT ok(evpg_release_lease('far', lease_of('far', 'w')), 'its lease ends');
SELECT is(fetched('far', 'u', 1), :'a' || ':4*2', 'another consumer goes on with that');
SELECT ok(done('far', 'u'));
SELECT is(fetched('far', 'u', 1), :'c' || ':4*2');
SELECT ok(done('far', 'u'));
SELECT is((SELECT checkpoint FROM evpg.stat_subscription WHERE name = 'far' AND partition = 0), at(:'a', 4),
  'the one is shown no further than it is');
SELECT is((SELECT checkpoint FROM evpg.stat_consumer WHERE name = 'far'), at(:'a', 4));
SELECT ok(evpg_release_lease('far', lease_of('far', 'u')), 'its lease ends as well');
SELECT is(fetched('far', 'x'), :'b' || ':2 ' || :'c' || ':5',
  'what the one had not handed out yet is handed out, as if for the first time [rule 20]');

SELECT * FROM finish();
