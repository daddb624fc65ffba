-- async_rounds.sql: a projection in C without frames gets the events of a batch key by key, and does the same as one that
-- gets them one by one in order of position (rules 10 to 13).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/async.sql

SELECT plan(48);
SET test.kind = counter;

-- Two projections of each kind that are equal but for their frames: q without, so key by key; p with frames, one by one.
CREATE FUNCTION test.register_twins(on_error text, max_attempts int) RETURNS void LANGUAGE sql AS $$
  SELECT evpg_register_projection(twin || kind, library => 'evpg_test', symbol => symbol, mode => 'async',
    broadcast => CASE twin WHEN 'q ' THEN 'none' ELSE 'pointer' END, on_error => on_error, max_attempts => max_attempts)
    FROM unnest('{"q ","p "}'::text[]) twin, (VALUES ('by id', 'totals'), ('by key', 'group_totals')) k(kind, symbol)
$$;

-- The same of consumers: where they are, what they have tried, and what they have parked.
CREATE FUNCTION test.twins_agree(description text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  kind text;
BEGIN
  FOREACH kind IN ARRAY '{by id,by key}'::text[] LOOP
    RETURN NEXT is(unlike('q ' || kind, 'p ' || kind), '', format('%s, %s: the same rows [rule 12]', description, kind));
    RETURN NEXT is(replace(concat_ws('; ', consumer_of('q ' || kind), parked_of('q ' || kind)), '"q ', '"p '),
      concat_ws('; ', consumer_of('p ' || kind), parked_of('p ' || kind)),
      format('%s, %s: both are at the same place [rule 10]', description, kind));
  END LOOP;
END $$;

-- ------------------------------------------------------------------ many rounds

SELECT register_twins('stop', 3) \g /dev/null
-- keys over several streams, rows that are deleted and come back, events that change nothing
SELECT events_at_random(500, 0.5) \g /dev/null
CALL evpg_run();
SELECT twins_agree('many events');
SELECT is((SELECT count(*) FROM stored WHERE name = 'q by id' AND deleted) > 0 AND
          (SELECT max(generation) FROM stored WHERE name = 'q by id') > 2, true,
  'many events: there are rows that were deleted, and such that came back');
SELECT is((SELECT string_agg(format('%s %s', s.key, s."position"), ', ' ORDER BY s.key) FROM stored s
  WHERE name = 'q by id'),
  (SELECT string_agg(format('%s %s', key, "position"), ', ' ORDER BY key) FROM (
     SELECT aggregate_id AS key, max("position") AS "position" FROM evpg.event
      WHERE type IN ('Added', 'Subtracted', 'Cleared') GROUP BY aggregate_id) x),
  'many events: the position of a row is that of its last event [rule 12]');
-- the rows exist by now
SELECT events_at_random(100, 0.6) \g /dev/null
CALL evpg_run();
SELECT twins_agree('the next batch');
-- an event that wants no more than one key, of a stream that is seen first
SELECT add('new', 1) \g /dev/null
CALL evpg_run();
SELECT twins_agree('one event');

-- rebuilt, in the foreground, in the background, and a key
SELECT evpg_rebuild_projection(name) FROM evpg.projection \g /dev/null
SELECT twins_agree('rebuilt');
SELECT evpg_rebuild_projection(name, background => true) FROM evpg.projection \g /dev/null
SELECT events_at_random(50, 0.7) \g /dev/null
CALL evpg_run();
SELECT twins_agree('rebuilt in the background');
SELECT evpg_drop_projection(name) FROM evpg.projection \g /dev/null

-- ------------------------------------------------------------------ events that fail

-- Key a is opened first, so its events come before those of b in a round; but that of b is the first to fail.
CREATE FUNCTION test.events_that_fail() RETURNS void LANGUAGE sql AS $$
  SELECT add('a', 1), add('b', 2), add('c', 3), add('a', 4), add('b', 5, 'Broken'), add('c', 6), add('a', 7, 'Broken'),
    add('b', 8), add('a', 9), add('c', 10)
$$;
-- Runs until each event has had its attempts.
CREATE PROCEDURE test.run_often() LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. 12 LOOP
    PERFORM now_due();
    COMMIT;
    CALL evpg_run();
  END LOOP;
END $$;

SELECT register_twins('stop', 2), events_that_fail() \g /dev/null
CALL evpg_run();
SELECT is(consumer_of('q by id'), 'running -6 at 5 tried 1 errors 1',
  'the first event to fail is blamed, though the key of another one comes before it; alone it is tried once [rule 10]');
SELECT is(regexp_replace(rows_of('q by id'), ', id.*', ''), 'a: 1.2 {"total": 5, "applied": 2}, '
  'b: 1.1 {"total": 2, "applied": 1}, c: 1.1 {"total": 3, "applied": 1}',
  'all that comes before it is applied, once, and nothing that comes after it [rule 10]');
CALL run_often();
SELECT is(consumer_of('q by id'), 'stopped -6 at 5 tried 2 errors 1', 'after max_attempts it stops [rule 10]');
SELECT is(consumer_of('p by id'), 'stopped -6 at 5 tried 2 errors 1', 'as one by one');
SELECT twins_agree('stopped');
SELECT evpg_skip_event(name, last_error_position, 'broken') FROM evpg.stat_consumer WHERE status = 'stopped' \g /dev/null
CALL run_often();
SELECT is(consumer_of('q by id'), 'stopped -4 at 7 tried 2 errors 2', 'then it stops at the next one that fails [rule 10]');
SELECT twins_agree('stopped again');
SELECT evpg_drop_projection(name) FROM evpg.projection \g /dev/null

SELECT register_twins('park', 2) \g /dev/null
CALL run_often();
SELECT is(replace(parked_of('q by id'), ' projection "q by id" failed: broken by "Broken" VE009', ''),
  'b 5 tried 2, a 7 tried 2, b 8 tried 0, a 9 tried 0',
  'what fails is parked, and what comes after it for its key, in order of position [rule 10]');
SELECT twins_agree('parked');
-- with parked keys, events are given out by key as well
SELECT add(id, 20) FROM unnest('{a,b,c,new}'::text[]) id \g /dev/null
CALL run_often();
SELECT twins_agree('behind parked ones');
SELECT evpg_skip_event(name, "position", 'broken') FROM evpg.parked_event JOIN evpg.event USING ("position")
 WHERE type = 'Broken' \g /dev/null
SELECT evpg_replay_parked(name) FROM evpg.projection \g /dev/null
SELECT twins_agree('replayed');
SELECT * FROM finish();
