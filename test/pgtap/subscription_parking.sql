-- subscription_parking.sql: how events of subscriptions are parked: many of one stream, and those that come back.

\ir include/setup.sql
\ir include/subscriptions.sql
SELECT plan(33);

CREATE FUNCTION parked(subscription text) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(e.aggregate_id || ':' || e.version || CASE WHEN p.due THEN '!' ELSE '' END, ' ' ORDER BY e."position")
    FROM evpg.parked_event p JOIN evpg.event e USING ("position") WHERE p.name = subscription AND p.skip_reason IS NULL
$$;
CREATE FUNCTION first_in_flight(subscription text, name text) RETURNS bigint LANGUAGE sql AS $$
  SELECT min(e."position") FROM evpg.event e JOIN evpg.subscription_lease l ON e."position" > l.acked
   WHERE l.subscription = first_in_flight.subscription AND l.consumer = name
$$;

-- ------------------------------------------------------------------ a replay that fails

SELECT evpg_create_subscription('again', max_attempts => 2) \g /dev/null
SELECT append(1), append(1) \g /dev/null
SELECT is(fetched('again', 'a'), 's1:1 s1:2');
SELECT ok(evpg_nack('again', lease_of('again', 'a'), first_in_flight('again', 'a'), 'park'), 'an event is parked');
SELECT is(evpg_replay_parked('again'), 2::bigint, 'it and the later one are to be replayed');
SELECT ok(done('again', 'a'));
SELECT is(fetched('again', 'a'), 's1:1 s1:2', 'both come again');
SELECT is(fetched('again', 'a'), 's1:1*2', 'the first one alone when they were not acknowledged');
SELECT is(fetched('again', 'a'), NULL, 'after max_attempts it is parked again, and not followed by the later one [rule 20]');
SELECT is(parked('again'), 's1:1 s1:2', 'but waits behind it [rule 20]');

-- ------------------------------------------------------------------ one attempt

SELECT evpg_create_subscription('once', start_at => 'now', max_attempts => 1) \g /dev/null
SELECT append(3) \g /dev/null
SELECT is(fetched('once', 'a'), 's1:3 s2:1 s3:1');
SELECT is(fetched('once', 'a'), 's1:3*2', 'with one attempt, too, an event of a lost batch is tried alone [rule 20]');
SELECT is(fetched('once', 'a'), 's2:1*2', 'then it is parked, and the one behind it is tried [rule 20]');
SELECT is((SELECT string_agg(error, ', ') FROM evpg.parked_event WHERE name = 'once'),
  'it was not acknowledged in 2 attempts', 'alone it has failed');
SELECT ok(done('once', 'a'));
SELECT ok(evpg_nack('once', lease, "position"), 'an event is given back') FROM evpg_fetch('once', 'a');
SELECT is((SELECT error FROM evpg.parked_event WHERE name = 'once' ORDER BY "position" DESC LIMIT 1),
  'it was given back in 2 attempts', 'and parked [rule 20]');
SELECT fetched('once', 'a'), done('once', 'a'), evpg_append_event('thing', 'new', 'Made') \g /dev/null
SELECT evpg_nack('once', lease, "position") FROM evpg_fetch('once', 'a') \g /dev/null
SELECT is((SELECT error FROM evpg.parked_event WHERE name = 'once' ORDER BY "position" DESC LIMIT 1),
  'it was given back in 1 attempt', 'one that its consumer gives back is parked after its only attempt [rule 20]');

-- ------------------------------------------------------------------ what was not tried

SELECT evpg_create_subscription('given', start_at => 'now') \g /dev/null
SELECT append(3, aggregate_type => 'other') \g /dev/null
SELECT is(fetched('given', 'a'), 's1:1 s2:1 s3:1');
SELECT ok(evpg_nack('given', lease_of('given', 'a'), first_in_flight('given', 'a') + 1, delay => '0'),
  'an event is to be tried again at once');
SELECT is(fetched('given', 'a'), 's2:1*2', 'it comes alone [rule 20]');
SELECT ok(done('given', 'a'));
SELECT is(fetched('given', 'a'), 's3:1', 'the one behind it, which was not tried, as if for the first time [rule 20]');
SELECT is(error_of($$SELECT * FROM evpg_fetch('given', 'a', wait => '2 hours')$$),
  '22023 wait must be at most one hour', 'a wait is limited');

-- ------------------------------------------------------------------ many events behind one

SELECT evpg_create_subscription('hot', start_at => 'now') \g /dev/null
SELECT evpg_append_event('thing', 'hot', 'Made') \g /dev/null
SELECT evpg_nack('hot', lease, "position", 'park') FROM evpg_fetch('hot', 'a') \g /dev/null
SELECT count(*) FROM generate_series(1, 11) AS n, LATERAL evpg_append('thing', 'hot',
  array_fill(evpg_event('Made'), ARRAY[1000 + 0 * n])) \g /dev/null
SELECT evpg_append_event('thing', 'cold', 'Made') \g /dev/null
SELECT is(fetched('hot', 'a'), NULL, 'a fetch that comes to many events behind a parked one stops');
SELECT is((SELECT count(*) FROM evpg.parked_event WHERE name = 'hot'), 10001::bigint, 'after it has parked 10,000 of them');
SELECT is(fetched('hot', 'a'), 'cold:1', 'the next one goes on behind them [rule 20]');
SELECT is((SELECT count(*) FROM evpg.parked_event WHERE name = 'hot'), 11001::bigint, 'and parks the rest [rule 20]');

-- ------------------------------------------------------------------ given up while it is handed out again

SELECT evpg_create_subscription('up', start_at => 'now') \g /dev/null
SELECT append(2) \g /dev/null
SELECT evpg_nack('up', lease, "position", 'park') FROM evpg_fetch('up', 'a', 1) \g /dev/null
SELECT evpg_replay_parked('up'), fetched('up', 'a', 1) \g /dev/null
SELECT is((SELECT due AND replaying FROM evpg.parked_event WHERE name = 'up'), true, 'a parked event is handed out again');
SELECT ok(evpg_skip_event('up', "position", 'of no use'), 'and is skipped meanwhile') FROM evpg.parked_event
 WHERE name = 'up';
SELECT is((SELECT due OR replaying FROM evpg.parked_event WHERE name = 'up'), false, 'it is not due any more');
SELECT ok(done('up', 'a'), 'its consumer acknowledges it');
SELECT is((SELECT skip_reason FROM evpg.parked_event WHERE name = 'up'), 'of no use', 'the reason is kept');
SELECT is(evpg_replay_parked('up'), 0::bigint, 'nothing is left to be replayed');
SELECT is((SELECT count(*) FROM evpg_fetch('up', 'a')), 1::bigint, 'the next event follows [rule 20]');

SELECT * FROM finish();
