-- subscriptions.sql: creating and dropping subscriptions; fetching, acknowledging, giving back; leases.

\ir include/setup.sql
\ir include/subscriptions.sql
SELECT plan(151);

SELECT ok(evpg_create_subscription('all'), 'a subscription is created');
SELECT ok(NOT evpg_create_subscription('all'), 'it exists when it is created again');
SELECT append(3) \g /dev/null
SELECT is(fetched('all', 'a'), 's1:1 s2:1 s3:1',
  'a consumer gets the events from the beginning, in order [rule 20, B20, B41, D10, D20]');
SELECT is((SELECT array_agg(DISTINCT lease) FROM evpg_fetch('all', 'b')), NULL,
  'another consumer gets nothing while the only partition is held [rule 20]');
SELECT ok(done('all', 'a'), 'events are acknowledged');
SELECT is(fetched('all', 'a'), NULL, 'and not handed out again [rule 20]');
SELECT append(3) \g /dev/null
SELECT is(fetched('all', 'a', 2), 's1:2 s2:2', 'new events come next, as many as are asked for');
SELECT is(fetched('all', 'a', 2, lease_of('all', 'a')), 's3:2',
  'with the lease a fetch goes on behind what was handed out [rule 20]');
SELECT is(fetched('all', 'a'), 's1:2*2',
  'without it what was not acknowledged is handed out again, alone, and counted [rule 20]');
SELECT is(fetched('all', 'a', 100, lease_of('all', 'a')), NULL, 'nothing else is handed out while that is tried [rule 20]');
SELECT ok(done('all', 'a'), 'it is acknowledged');
SELECT is(fetched('all', 'a', 100, lease_of('all', 'a')), 's2:2*2', 'then the next one that was handed out before');
SELECT ok(done('all', 'a'));
SELECT is(fetched('all', 'a'), 's3:2*2');
SELECT ok(done('all', 'a'));
SELECT append(2) \g /dev/null
SELECT is(fetched('all', 'a'), 's1:3 s2:3', 'then batches again');

SELECT ok(done('all', 'a'));

-- ------------------------------------------------------------------ leases

SELECT append(2) \g /dev/null
SELECT lease FROM evpg_fetch('all', 'a') LIMIT 1 \gset a_
SELECT ok(NOT evpg_ack('all', :a_lease + 4096, 1), 'a lease that is none is lost [rule 20]');
SELECT ok(NOT evpg_ack('all', -1, 1), 'a negative one, too');
SELECT evpg_create_subscription('near') \g /dev/null
SELECT lease FROM evpg_fetch('near', 'a') LIMIT 1 \gset near_
SELECT ok(NOT evpg_ack('all', :near_lease, 1), 'one of another subscription as well [rule 20]');
SELECT is(error_of(format('SELECT * FROM evpg_fetch(''all'', ''b'', lease => %s)', :a_lease)),
  'VE024 consumer "b" of subscription "all" has lost its lease', 'no consumer fetches under the lease of another [rule 20]');
SELECT evpg_drop_subscription('near') \g /dev/null
SELECT throws_ok(format('SELECT evpg_ack(''all'', %s, 1000000)', :a_lease), '22023', NULL,
  'what was not handed out cannot be acknowledged');
SELECT ok(evpg_ack('all', :a_lease, 1), 'a lower position than before is acknowledged already');
SELECT is((SELECT in_flight FROM evpg.stat_subscription), 2::bigint, 'events are in flight [D93]');
-- the clock moves on: the lease runs out
SELECT is(fetched('all', 'b'), NULL, 'b gets nothing while the lease of a lasts [rule 20]');
SELECT evpg_set_clock_offset('20 seconds') \g /dev/null
SELECT ok(evpg_extend_lease('all', lease_of('all', 'a')), 'a lease is extended');
SELECT evpg_set_clock_offset('40 seconds') \g /dev/null
SELECT is(fetched('all', 'b'), NULL, 'and lasts [rule 20]');
SELECT evpg_set_clock_offset('51 seconds') \g /dev/null
SELECT is(fetched('all', 'b'), 's1:4*2',
  'when it has run out, another consumer gets what was in flight, one by one [rule 20]');
SELECT ok(NOT evpg_ack('all', :a_lease, handed('all', 'b')),
  'the consumer that has lost its lease acknowledges nothing [rule 20]');
SELECT ok(NOT evpg_nack('all', :a_lease, handed('all', 'b')), 'nor does it give anything back [rule 20]');
SELECT ok(NOT evpg_extend_lease('all', :a_lease), 'nor extend it [rule 20]');
SELECT ok(NOT evpg_release_lease('all', :a_lease), 'nor end it [rule 20]');
SELECT is(error_of(format('SELECT * FROM evpg_fetch(''all'', ''a'', lease => %s)', :a_lease)),
  'VE024 consumer "a" of subscription "all" has lost its lease', 'nor fetch with it [rule 20]');
SELECT ok(done('all', 'b'));
SELECT ok(evpg_release_lease('all', lease_of('all', 'b')), 'a consumer leaves [D25]');
SELECT is(fetched('all', 'a'), 's2:4*2', 'and another gets its partition at once [rule 20]');
SELECT ok(done('all', 'a'));
SELECT is((SELECT count(*) FROM evpg.subscription_lease), 2::bigint, 'slots are used again');
SELECT evpg_release_lease('all', lease_of('all', 'a')) \g /dev/null
SELECT fetched('all', 'consumer ' || n), evpg_release_lease('all', lease_of('all', 'consumer ' || n))
  FROM generate_series(1, 100) AS n \g /dev/null
SELECT is((SELECT count(*) FROM evpg.subscription_lease), 2::bigint,
  'by a hundred consumers that come and go, too [rule 20]');

-- ------------------------------------------------------------------ partitions

SELECT evpg_create_subscription('parts', partitions => 8) \g /dev/null
CREATE FUNCTION shares() RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(coalesce(consumer, '-') || ':' || n, ' ' ORDER BY consumer) FROM (
    SELECT consumer, count(*) AS n FROM evpg.stat_subscription WHERE name = 'parts' GROUP BY 1) s
$$;
SELECT count(*) AS all_events FROM evpg.event \gset
SELECT is((SELECT count(*) FROM evpg_fetch('parts', 'a')), :all_events::bigint,
  'one consumer gets all partitions [rule 20]');
SELECT is(shares(), 'a:8');
SELECT is(fetched('parts', 'b'), NULL, 'another one has to wait until what is in flight is acknowledged [rule 20]');
SELECT xmin AS before FROM evpg.subscription_lease WHERE subscription = 'parts' AND consumer = 'a' \gset
SELECT is(fetched('parts', 'a', 100, lease_of('parts', 'a')), NULL);
SELECT is(shares(), 'a:8');
SELECT is((SELECT xmin FROM evpg.subscription_lease WHERE subscription = 'parts' AND consumer = 'a')::text, :'before',
  'a consumer that cannot give up partitions yet writes nothing [rule 20]');
SELECT done('parts', 'a'), fetched('parts', 'a', 100, lease_of('parts', 'a')), fetched('parts', 'b') \g /dev/null
SELECT is(shares(), 'a:4 b:4', 'then they share [rule 20]');
SELECT fetched('parts', 'c'), fetched('parts', 'a'), fetched('parts', 'b'), fetched('parts', 'c') \g /dev/null
SELECT is(shares(), 'a:3 b:3 c:2', 'and with a third [rule 20]');
SELECT append(50) \g /dev/null
CREATE TABLE got AS SELECT consumer, f.* FROM unnest('{a,b,c}'::text[]) AS consumer, evpg_fetch('parts', consumer) f;
SELECT is((SELECT count(*) FROM got), 50::bigint, 'each event goes to one of them [rule 20, D97]');
SELECT is((SELECT count(DISTINCT "position") FROM got), 50::bigint);
SELECT is((SELECT count(DISTINCT consumer) FROM got), 3::bigint);
SELECT ok((SELECT bool_and(partition = evpg.partition_of('thing/' || aggregate_id, 8)) FROM got), 'by the aggregate id');
SELECT is((SELECT sum(in_flight) FROM evpg.stat_subscription WHERE name = 'parts'), 50::numeric, 'which are in flight');
SELECT evpg_ack('parts', lease, max("position")) FROM got WHERE consumer <> 'b' GROUP BY lease \g /dev/null
SELECT evpg_set_clock_offset('120 seconds') \g /dev/null
SELECT fetched('parts', 'a') IS NOT NULL AS any \gset
SELECT is(shares(), 'a:8', 'consumers that do not come back lose theirs [rule 20]');
CREATE FUNCTION drain(subscription text, consumer text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  n int := 0;
  events int;
BEGIN
  LOOP
    SELECT count(*) INTO events FROM evpg_fetch(subscription, consumer);
    EXIT WHEN events = 0;
    n := n + events;
    PERFORM evpg_ack(subscription, lease_of(subscription, consumer), handed(subscription, consumer));
  END LOOP;
  RETURN n;
END $$;
SELECT ok(done('parts', 'a'));
SELECT is((SELECT count(*)::int FROM got WHERE consumer = 'b') - 1, drain('parts', 'a'),
  'what they had in flight is handed out again, and nothing else [rule 20]');
SELECT evpg_set_clock_offset('122 seconds'), fetched('parts', 'a') \g /dev/null
SELECT is((SELECT sum(lag_events) FROM evpg.stat_subscription WHERE name = 'parts'), 0::numeric, 'then all is done');

-- ------------------------------------------------------------------ giving back

SELECT evpg_create_subscription('back', start_at => 'now', max_attempts => 3, partitions => 1) \g /dev/null
SELECT append(3), append(3) \g /dev/null
SELECT is(fetched('back', 'a'), 's1:6 s2:6 s3:4 s1:7 s2:7 s3:5', 'a subscription starts now');
SELECT min("position") AS first FROM evpg.event WHERE version = 6 \gset
SELECT throws_ok(format('SELECT evpg_nack(''back'', %s, %s, ''drop'')', lease_of('back', 'a'), :first), '22023',
  'unknown action "drop"', 'an unknown action');
SELECT throws_ok(format('SELECT evpg_nack(''back'', %s, %s)', lease_of('back', 'a'), :first - 1), '22023', NULL,
  'an event that is not in flight');
SELECT ok(evpg_nack('back', lease_of('back', 'a'), :first + 1, 'park', reason => 'bad'), 'an event is parked [C32, D24]');
SELECT is((SELECT string_agg(key || ' ' || coalesce(error, '-'), ', ' ORDER BY "position") FROM evpg.parked_event),
  'thing/s2 bad, thing/s2 -', 'and the later one of its stream behind it [rule 20]');
SELECT ok(evpg_nack('back', lease_of('back', 'a'), :first + 2, 'skip'), 'one is skipped');
SELECT is(fetched('back', 'a'), 's1:7*2', 'the others come again [rule 20]');
SELECT ok(evpg_nack('back', lease_of('back', 'a'), :first + 3, delay => '10 seconds'), 'one is to be tried again');
SELECT is(fetched('back', 'a'), NULL, 'it holds its partition [rule 20]');
SELECT isnt((SELECT retry_at FROM evpg.stat_subscription WHERE name = 'back'), NULL, 'as the view shows');
SELECT evpg_set_clock_offset('140 seconds') \g /dev/null
SELECT is(fetched('back', 'a'), 's1:7*3', 'until the delay is over [rule 20]');
SELECT append(3) \g /dev/null
SELECT ok(evpg_nack('back', lease_of('back', 'a'), :first + 3), 'it is given back once more');
SELECT is((SELECT string_agg(key || ' ' || attempts || ' ' || coalesce(error, '-'), ', ' ORDER BY "position")
  FROM evpg.parked_event WHERE key = 'thing/s1'), 'thing/s1 3 it was given back in 3 attempts',
  'and parked after max_attempts [rule 20]');
SELECT is(fetched('back', 'a'), 's3:5*2', 'the next one that had been handed out comes alone');
SELECT ok(done('back', 'a'));
SELECT is(fetched('back', 'a'), 's3:6', 'others go on, and followers of parked ones do not [rule 20]');
SELECT is((SELECT string_agg(key || ' ' || coalesce(error, '-'), ', ' ORDER BY "position")
  FROM evpg.parked_event WHERE skip_reason IS NULL AND "position" > :first + 5), 'thing/s1 -, thing/s2 -',
  'they are parked');
SELECT is((SELECT parked FROM evpg.stat_subscription WHERE name = 'back'), 5::bigint, 'and counted');

-- ------------------------------------------------------------------ filters

CREATE FUNCTION takes(name text, aggregate_types text[] DEFAULT NULL, event_types text[] DEFAULT NULL,
    tags text[] DEFAULT NULL, aggregate_ids text[] DEFAULT NULL, id_prefix text DEFAULT NULL) RETURNS text LANGUAGE plpgsql
AS $$
BEGIN
  PERFORM evpg_create_subscription(name, aggregate_types, event_types, tags, aggregate_ids, id_prefix,
    start_position => current_setting('test.start')::bigint, partitions => 4);
  RETURN (SELECT string_agg(aggregate_id, ' ' ORDER BY "position") FROM evpg_fetch(name, 'c'));
END $$;
SELECT set_config('test.start', evpg_stable_position()::text, false) \g /dev/null
SELECT evpg_append_event('thing', 'alice', 'A'), evpg_append_event('thing', 'alice:child', 'B'),
  evpg_append_event('thing', 'alice2', 'A'), evpg_append_event('other', 'alice', 'A'),
  evpg_append_event('other', 'bob', 'A', tags => '{red,blue}') \g /dev/null
SELECT is(takes('f0'), 'alice alice:child alice2 alice bob', 'no filter');
SELECT is(takes('f1', id_prefix => 'alice'), 'alice alice:child alice', 'a prefix of ids ends at a colon');
SELECT is((SELECT string_agg(aggregate_id, ' ' ORDER BY "position")
  FROM evpg_read_all(current_setting('test.start')::bigint, id_prefix => 'alice')), 'alice alice:child alice',
  'so does evpg_read_all [D60]');
SELECT is(takes('f2', '{thing}', id_prefix => 'alice'), 'alice alice:child', 'with a type');
SELECT is(takes('f3', event_types => '{B}'), 'alice:child', 'by event type [D05]');
SELECT is(takes('f4', tags => '{blue,green}'), 'bob', 'by tags');
SELECT is(takes('f5', aggregate_ids => '{bob,alice2}'), 'alice2 bob', 'by ids');
SELECT is(takes('f6', '{none}'), NULL, 'one that nothing matches');
SELECT evpg_set_clock_offset('150 seconds'), fetched('f6', 'c') \g /dev/null
SELECT is((SELECT sum(lag_events) FROM evpg.stat_subscription WHERE name = 'f6'), 0::numeric, 'and which gets to the end');
SELECT ok(NOT evpg_create_subscription('f5', aggregate_ids => '{alice2,bob,bob}', partitions => 4),
  'the order does not matter');
SELECT is(error_of($$SELECT evpg_create_subscription('f5', aggregate_ids => '{bob}', partitions => 4)$$),
  'VE016 subscription "f5" exists with another filter or number of partitions', 'another filter is refused [D22]');
SELECT is(error_of($$SELECT evpg_create_subscription('f5', aggregate_ids => '{alice2,bob}')$$),
  'VE016 subscription "f5" exists with another filter or number of partitions', 'another number of partitions, too');

-- ------------------------------------------------------------------ starts, dropping, names

SELECT recorded_at AS time FROM evpg.event WHERE aggregate_id = 'alice2' \gset
SELECT evpg_create_subscription('since', start_time => :'time') \g /dev/null
SELECT is(fetched('since', 'c'), 'alice2:1 alice:1 bob:1', 'from a time on');
SELECT ok(evpg_drop_subscription('since'), 'a subscription is dropped');
SELECT ok(NOT evpg_drop_subscription('since', true), 'once');
SELECT is(error_of($$SELECT evpg_drop_subscription('since')$$), 'VE010 there is no subscription "since"');
SELECT is(error_of($$SELECT * FROM evpg_fetch('since', 'c')$$), 'VE010 there is no subscription "since"');
SELECT is(error_of($$SELECT evpg_ack('since', 1, 1)$$), 'VE010 there is no subscription "since"');
SELECT is(error_of(statement), 'VE010 there is no subscription "since"', statement) FROM (VALUES
  ($$SELECT evpg_nack('since', 1, 1)$$), ($$SELECT evpg_extend_lease('since', 1)$$),
  ($$SELECT evpg_release_lease('since', 1)$$), ($$SELECT evpg_seek('since', 0)$$)) AS v (statement);
SELECT is(error_of(statement), 'VE010 there is no consumer "since"', statement) FROM (VALUES
  ($$SELECT evpg_pause_consumer('since')$$), ($$SELECT evpg_resume_consumer('since')$$),
  ($$SELECT evpg_skip_event('since', 1, 'x')$$)) AS v (statement);
SELECT evpg_register_projection('proj', mode => 'inline') \g /dev/null
SELECT is(error_of($$SELECT evpg_create_subscription('proj')$$), '42710 projection "proj" already exists',
  'projections and subscriptions share names');
SELECT is(error_of($$SELECT evpg_register_projection('all')$$), '42710 subscription "all" already exists');
SELECT evpg_drop_subscription('all') \g /dev/null

-- ------------------------------------------------------------------ bad input [D23]

SELECT is(error_of(statement), error, statement) FROM (VALUES
  ($$SELECT * FROM evpg_fetch('back', 'a', 0)$$, '22023 max_events must be at least 1'),
  ($$SELECT * FROM evpg_fetch('back', 'a', -1)$$, '22023 max_events must be at least 1'),
  ($$SELECT * FROM evpg_fetch('back', 'a', 2000000000)$$, '22023 max_events must be at most 100000'),
  ($$SELECT * FROM evpg_fetch('back', 'a', max_bytes => 0)$$, '22023 max_bytes must be at least 1'),
  ($$SELECT * FROM evpg_fetch('back', 'a', max_bytes => -1)$$, '22023 max_bytes must be at least 1'),
  ($$SELECT * FROM evpg_fetch('back', 'a', max_bytes => 2147483647)$$, 'no error'),
  ($$SELECT * FROM evpg_fetch('back', 'a', wait => '-1 s')$$, '22023 wait is out of range'),
  ($$SELECT * FROM evpg_fetch('back', '')$$, '22023 consumer name must not be empty'),
  ($$SELECT * FROM evpg_fetch('back', NULL)$$, '22004 consumer name must not be null'),
  ($$SELECT * FROM evpg_fetch(NULL, 'a')$$, '22004 subscription name must not be null'),
  ($$SELECT evpg_create_subscription('x', partitions => 0)$$, '22023 partitions must be at least 1'),
  ($$SELECT evpg_create_subscription('x', partitions => 5000)$$, '22023 partitions must be at most 1024'),
  ($$SELECT evpg_create_subscription('x', lease_time => '0')$$, '22023 lease_time is out of range'),
  ($$SELECT evpg_create_subscription('x', start_at => 'never')$$, '22023 unknown start_at "never"'),
  ($$SELECT evpg_create_subscription('x', start_at => 'now', start_position => 1)$$,
    '22023 a subscription starts at one point'),
  ($$SELECT evpg_create_subscription('x', event_types => '{}')$$, '22023 event_types must not be an empty array'),
  ($$SELECT evpg_create_subscription('evpg.x')$$, 'VE017 subscription name "evpg.x" is reserved'),
  ($$SELECT evpg_create_subscription(E'a\nb')$$, '22023 subscription name contains a control character')
) AS v (statement, error);

-- limits of a batch
SELECT evpg_create_subscription('bytes', start_at => 'now') \g /dev/null
SELECT evpg_append_event('thing', 'b', 'A', jsonb_build_object('x', repeat('x', 1000)))
  FROM generate_series(1, 5) \g /dev/null
SELECT is((SELECT count(*) FROM evpg_fetch('bytes', 'a', max_bytes => 1)), 1::bigint, 'one event is handed out in any case');
SELECT ok(done('bytes', 'a'));
SELECT is((SELECT count(*) FROM evpg_fetch('bytes', 'a', max_bytes => 2500)), 2::bigint, 'as many as fit');
SELECT ok(done('bytes', 'a'));

-- ------------------------------------------------------------------ transactions

SELECT fetched('bytes', 'w') \g /dev/null
BEGIN;
SELECT evpg_append_event('thing', 'w', 'A') \g /dev/null
SAVEPOINT s;
SELECT is(error_of($$SELECT * FROM evpg_fetch('bytes', 'w', wait => '1 s')$$),
  'VE015 cannot wait for events of subscription "bytes" in a transaction that has appended events',
  'a transaction that has appended does not wait');
SELECT is((SELECT count(*) FROM evpg_fetch('bytes', 'a')), 2::bigint, 'but fetches what was there before');
ROLLBACK;
SELECT is((SELECT count(*) FROM evpg_fetch('bytes', 'a')), 2::bigint,
  'what was rolled back is handed out as if for the first time');
SELECT is((SELECT count(*) FROM evpg_fetch('bytes', 'a', wait => '1 ms')), 1::bigint, 'after a commit one by one');
SELECT ok(done('bytes', 'a'));
SELECT drain('bytes', 'a') \g /dev/null
SELECT is((SELECT count(*) FROM evpg_fetch('bytes', 'a', wait => '10 ms')), 0::bigint, 'a wait comes to its end');

-- pausing
SELECT append(1) \g /dev/null
SELECT ok(evpg_pause_consumer('bytes'), 'a subscription is paused');
SELECT is(fetched('bytes', 'a'), NULL, 'and hands out nothing');
SELECT is((SELECT status FROM evpg.stat_subscription WHERE name = 'bytes'), 'paused');
SELECT is((SELECT status FROM evpg.stat_consumer WHERE name = 'bytes'), 'paused');
SELECT ok(evpg_resume_consumer('bytes'), 'it goes on');
SELECT is(fetched('bytes', 'a'), 's1:9');

-- polling in vain writes nothing
SELECT ok(done('bytes', 'a'));
SELECT xmin AS before FROM evpg.subscription_lease WHERE subscription = 'bytes' AND consumer = 'a' \gset
SELECT fetched('bytes', 'a') FROM generate_series(1, 20) \g /dev/null
SELECT is((SELECT xmin FROM evpg.subscription_lease WHERE subscription = 'bytes' AND consumer = 'a')::text, :'before',
  'a consumer that polls in vain writes nothing [rule 20]');

-- ------------------------------------------------------------------ isolation levels

SELECT evpg_create_subscription('levels') \g /dev/null
SELECT lease FROM evpg_fetch('levels', 'a') LIMIT 1 \gset levels_
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(error_of(format(statement, :levels_lease)),
    '25000 evpg_' || name || '() needs isolation level READ COMMITTED', name)
  FROM (VALUES ('fetch', $$SELECT * FROM evpg_fetch('levels', 'b')$$), ('ack', $$SELECT evpg_ack('levels', %s, 1)$$),
    ('nack', $$SELECT evpg_nack('levels', %s, 1)$$), ('extend_lease', $$SELECT evpg_extend_lease('levels', %s)$$),
    ('release_lease', $$SELECT evpg_release_lease('levels', %s)$$)) AS v (name, statement);
ROLLBACK;

-- ------------------------------------------------------------------ starts and times out of range

SELECT is(error_of(format($$SELECT evpg_create_subscription('x', start_position => %s)$$, evpg_stable_position() + 1)),
  format('22023 position %s is not reached yet', evpg_stable_position() + 1),
  'a subscription does not start behind the last event, since it would not hand out the next ones');
SELECT ok(evpg_create_subscription('x', start_position => evpg_stable_position()), 'but after it');
CREATE FUNCTION lasts() RETURNS interval LANGUAGE sql AS $$
  SELECT date_trunc('hour', lease_until - evpg.clock_timestamp() + interval '30 minutes')
    FROM evpg.subscription_lease WHERE subscription = 'levels' AND consumer = 'a'
$$;
SELECT is(error_of(format($$SELECT evpg_extend_lease('levels', %s, '2 days')$$, :levels_lease)),
  '22023 lease_time is out of range', 'a lease is extended by a day at most');
SELECT ok(evpg_extend_lease('levels', :levels_lease, '1 hour'), 'a lease is extended for long work');
SELECT ok(evpg_ack('levels', :levels_lease, 1), 'part of which is acknowledged');
SELECT is(lasts(), interval '1 hour', 'the lease lasts as long as it was extended [rule 20]');
SELECT append(1), fetched('levels', 'a', 1, :levels_lease) \g /dev/null
SELECT is(lasts(), interval '1 hour', 'also when more is fetched [rule 20]');
SELECT done('levels', 'a') \g /dev/null
SELECT is(lasts(), interval '0', 'until all that was handed out is acknowledged [rule 20]');
SELECT append(1), fetched('levels', 'a', 1, :levels_lease), evpg_set_clock_offset('-3 days') \g /dev/null
SELECT isnt(fetched('levels', 'b'), NULL,
  'a lease that lasts longer than any can, since the clock was moved back, has run out [rule 20]');

SELECT * FROM finish();
