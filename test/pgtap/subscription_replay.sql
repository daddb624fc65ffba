-- subscription_replay.sql: parked events of subscriptions are handed out again, in order; subscriptions are moved.

\ir include/setup.sql
\ir include/subscriptions.sql
SELECT plan(62);

SELECT evpg_create_subscription('s', partitions => 1) \g /dev/null
SELECT append(3), append(3), append(3) \g /dev/null
CREATE FUNCTION at(stream text, event_version int) RETURNS bigint LANGUAGE sql AS $$
  SELECT "position" FROM evpg.event WHERE aggregate_id = stream AND version = event_version
$$;
CREATE FUNCTION parked() RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(e.aggregate_id || ':' || e.version || CASE WHEN p.due THEN '!' ELSE '' END, ' ' ORDER BY e."position")
    FROM evpg.parked_event p JOIN evpg.event e USING ("position") WHERE p.skip_reason IS NULL
$$;

-- a stream is parked, then replayed
SELECT is(fetched('s', 'a', 4), 's1:1 s2:1 s3:1 s1:2');
SELECT ok(evpg_nack('s', lease_of('s', 'a'), at('s1', 1), 'park'), 'an event is parked');
SELECT is(parked(), 's1:1 s1:2', 'with the later one of its stream that is in flight [rule 20]');
SELECT ok(done('s', 'a'), 'the rest is acknowledged');
SELECT is(fetched('s', 'a'), 's2:2 s3:2 s2:3 s3:3', 'others go on [rule 20]');
SELECT is(parked(), 's1:1 s1:2 s1:3', 'followers wait [rule 20]');
SELECT is(evpg_replay_parked('s'), 3::bigint, 'all are to be replayed');
SELECT is(parked(), 's1:1! s1:2! s1:3!');
SELECT append(1) \g /dev/null
SELECT is(fetched('s', 'a', lease => lease_of('s', 'a')), NULL,
  'while others are in flight nothing comes, not even a newer event of their stream [rule 20]');
SELECT ok(done('s', 'a'));
SELECT is(fetched('s', 'a', lease => lease_of('s', 'a')), 's1:1 s1:2 s1:3',
  'then they come in order, and nothing else [rule 20]');
SELECT is((SELECT in_flight FROM evpg.stat_subscription), 3::bigint, 'they are in flight');
SELECT append(2) \g /dev/null
SELECT is(fetched('s', 'a', lease => lease_of('s', 'a')), NULL, 'newer ones wait [rule 20]');
SELECT ok(done('s', 'a'));
SELECT is(parked(), NULL, 'what is acknowledged is not parked any more');
SELECT is(fetched('s', 'a'), 's1:4 s1:5 s2:4', 'then the newer ones [rule 20]');
SELECT ok(done('s', 'a'));
SELECT is((SELECT lag_events FROM evpg.stat_subscription), 0::bigint, 'all is done');

-- a replay that fails again, and one that is interrupted
SELECT append(3), append(3) \g /dev/null
SELECT is(fetched('s', 'a'), 's1:6 s2:5 s3:4 s1:7 s2:6 s3:5');
SELECT ok(evpg_nack('s', lease_of('s', 'a'), at('s1', 6), 'park'));
SELECT ok(evpg_nack('s', lease_of('s', 'a'), at('s2', 5), 'park'));
SELECT ok(done('s', 'a'));
SELECT is(parked(), 's1:6 s2:5 s1:7 s2:6');
SELECT is(evpg_replay_parked('s', key => 'thing/s2'), 2::bigint, 'one stream is to be replayed');
SELECT is(fetched('s', 'a', 1), 's2:5', 'it comes alone');
SELECT is(evpg_replay_parked('s', 1), 1::bigint, 'another becomes due meanwhile');
SELECT ok(evpg_nack('s', lease_of('s', 'a'), at('s2', 5), 'park', reason => 'again'), 'the event fails again');
SELECT is(parked(), 's1:6! s2:5 s1:7 s2:6', 'and holds its stream again [rule 20]');
SELECT is(fetched('s', 'a'), 's1:6', 'the next replay follows');
SELECT evpg_set_clock_offset('60 seconds') \g /dev/null
SELECT is(fetched('s', 'b'), 's1:6*2', 'by another consumer, when the first one is gone [rule 20]');
SELECT ok(evpg_nack('s', lease_of('s', 'b'), at('s1', 6), 'retry', '5 seconds'), 'it is given back');
SELECT is(fetched('s', 'b'), NULL, 'and waits');
SELECT evpg_set_clock_offset('70 seconds') \g /dev/null
SELECT is(fetched('s', 'b'), 's1:6*3', 'then comes again [rule 20]');
SELECT ok(evpg_nack('s', lease_of('s', 'b'), at('s1', 6), 'skip'), 'and is skipped');
SELECT is(parked(), 's2:5 s1:7 s2:6', 'the others stay parked');
SELECT append(3) \g /dev/null
SELECT is(fetched('s', 'b'), 's3:6', 'and hold newer ones [rule 20]');
SELECT is(evpg_replay_parked('s'), 5::bigint);
SELECT ok(done('s', 'b'));
SELECT is(fetched('s', 'b'), 's2:5 s1:7 s2:6 s1:8 s2:7', 'all that was parked, in order [rule 20]');
SELECT ok(done('s', 'b'));
SELECT is(fetched('s', 'b'), NULL);

-- one that is in flight itself when it is parked, and replayed while others are in flight
SELECT append(2), append(2) \g /dev/null
SELECT is(fetched('s', 'b'), 's1:9 s2:8 s1:10 s2:9');
SELECT ok(evpg_nack('s', lease_of('s', 'b'), at('s1', 9), 'park'));
SELECT is(parked(), 's1:9 s1:10');
SELECT is(evpg_replay_parked('s', 1), 1::bigint, 'the first of two is to be replayed');
SELECT append(1) \g /dev/null
SELECT is(fetched('s', 'b', lease => lease_of('s', 'b')), NULL, 'no newer event of its stream comes before it [rule 20]');
SELECT ok(done('s', 'b'));
SELECT is(fetched('s', 'b'), 's1:9', 'it does');
SELECT ok(done('s', 'b'));
SELECT is(evpg_replay_parked('s'), 1::bigint);
SELECT is(fetched('s', 'b'), 's1:10', 'the next one follows [rule 20]');
SELECT ok(done('s', 'b'));
SELECT is(fetched('s', 'b'), 's1:11');
SELECT ok(done('s', 'b'));

-- moving
SELECT is(evpg_seek('s', at('s1', 8) - 1), at('s1', 8) - 1, 'a subscription is moved back');
SELECT is(fetched('s', 'a'), 's1:8 s2:7 s3:6 s1:9 s2:8 s1:10 s2:9 s1:11',
  'and hands out events again [rule 20]');
SELECT lease_of('s', 'a') AS lease \gset
SELECT is(evpg_seek('s', evpg_stable_position()), evpg_stable_position(), 'or forth');
SELECT ok(NOT evpg_ack('s', :lease, 1), 'leases are lost [rule 20]');
SELECT is(fetched('s', 'a'), NULL);
SELECT is(error_of($$SELECT evpg_seek('s')$$), '22023 a subscription is moved to one point');
SELECT alike(error_of($$SELECT evpg_seek('s', 1000000)$$), '22023 position 1000000 is not reached yet');
SELECT is(error_of($$SELECT evpg_seek('nope', 0)$$), 'VE010 there is no subscription "nope"');
SELECT * FROM finish();
