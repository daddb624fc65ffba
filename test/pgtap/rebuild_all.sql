-- rebuild_all.sql: all keys of a projection are folded again beside the rows that are read, which they replace at once (rule
-- 13).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(189);
SET test.kind = counter;

-- What a rebuild may not change: keys, states, and which are there.
CREATE FUNCTION test.states_of(of_name text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(string_agg(key || ': ' || coalesce(state::text, '-'), ', ' ORDER BY key), '') FROM evpg.projected_state
    WHERE name = of_name
$$;
-- Damages every row: the state is wrong, a key is lost, another one is there.
CREATE FUNCTION test.damage(of_name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE evpg.projection_state s SET state = '{"sum": -1, "total": -1, "applied": -1}' FROM evpg.projection p
    WHERE p.build = s.build AND name = of_name AND NOT deleted;
  DELETE FROM evpg.projection_state s USING evpg.projection p
    WHERE p.build = s.build AND name = of_name AND key = (SELECT min(key) FROM stored WHERE name = of_name);
  PERFORM evpg_put_projection(of_name, 'nobody''s', '{}');
END $$;

-- ------------------------------------------------------------------ the same from scratch

CREATE TABLE test.kinds AS SELECT register_kinds('i ', 'inline') AS kind;
SELECT * FROM register_kinds('a ', 'async') \g /dev/null
SELECT events_at_random(300, 0.75) \g /dev/null
CALL evpg_run();
CREATE TABLE test.before AS SELECT k.name, states_of(k.name) AS states
  FROM (SELECT p || kind AS name FROM kinds, unnest('{"i ","a "}'::text[]) p) k;
CREATE TABLE test.seen AS SELECT * FROM stored;
SELECT damage(name) FROM before \g /dev/null
SELECT is((SELECT count(*) FROM before WHERE states = states_of(name)), 0::bigint, 'every projection is damaged [rule 13]');
CREATE TABLE test.folded AS SELECT name, evpg_rebuild_projection(name) AS events FROM before;
SELECT is(states_of(name), states,
  'a rebuild comes to what the events say: ' || name || ' [rule 13, A28, B36, 1.2 test 8, 2.4 test 11]') FROM before;
SELECT cmp_ok(length(states), '>', 10, 'which is something: ' || name || ' [rule 13]') FROM before;
SELECT is(events, (SELECT count(*) FROM evpg.event WHERE aggregate_type = 'counter'),
  'evpg_rebuild_projection() says how many events it has read: ' || name || ' [rule 13]') FROM folded
  WHERE name IN ('i by_id', 'a by_id');
SELECT is((SELECT count(*) FROM stored a JOIN seen b USING (name, key) WHERE a.generation <= b.generation), 0::bigint,
  'every key is in a higher generation [rule 12]');
SELECT is((SELECT count(*) FROM evpg.old_build) + (SELECT count(*) FROM evpg.rebuild) +
  (SELECT count(*) FROM evpg.rebuild_part), 0::bigint, 'nothing is left over [rule 13]');
SELECT is((SELECT count(*) FROM evpg.projection_state WHERE build NOT IN (SELECT build FROM evpg.projection)), 0::bigint,
  'a rebuild leaves no row of the old builds [rule 13]');
SELECT is((SELECT count(*) FROM evpg.projected_state s JOIN evpg.projection p USING (name)
  WHERE s.position < p.rebuilt_position), 0::bigint, 'rows are shown with the position of the rebuild at least [rule 13]');
SELECT is((SELECT version FROM evpg_projection('i constant', 'all')) <= (SELECT count(*) FROM evpg.event), true,
  'version counts the events folded since the key came to be [rule 12]');
SELECT is((SELECT count(*) FROM stored WHERE key = 'nobody''s' AND NOT deleted), 0::bigint,
  'a key that has no events is gone [rule 13]');
-- events go on where the rebuild has ended
SELECT events_at_random(60, 0.8) \g /dev/null
CALL evpg_run();
CREATE TABLE test.after AS SELECT name, states_of(name) AS states FROM before;
SELECT evpg_rebuild_projection(name) FROM before \g /dev/null
SELECT is(states_of(name), states, 'events after the rebuild were applied once: ' || name || ' [rule 13, 1.2 test 8]')
  FROM after;
-- in the background, in parts
SELECT damage(name) FROM before \g /dev/null
SELECT is(string_agg(DISTINCT coalesce(evpg_rebuild_projection(name, background => true)::text, 'NULL'), ' '), 'NULL',
  'in the background, nothing is said yet [rule 13]') FROM before;
SELECT is((SELECT count(*) FROM evpg.progress_rebuild WHERE phase IN ('replay', 'catch-up')), 24::bigint,
  'a rebuild can be watched [rule 13]');
SELECT is((SELECT count(*) FROM before JOIN after USING (name) WHERE states_of(name) = after.states), 0::bigint,
  'the old rows are read as long as it lasts [rule 13]');
-- four sessions could work on each: the parts have the keys of their own
UPDATE evpg.rebuild SET parts = 4
  WHERE name IN (SELECT p || kind FROM kinds, unnest('{"i ","a "}'::text[]) p WHERE kind <> 'constant');
INSERT INTO evpg.rebuild_part (build, part, checkpoint) SELECT build, part, 0 FROM evpg.rebuild, generate_series(1, 3) part
  WHERE parts = 4;
CALL evpg_run();
SELECT is(states_of(name), states, 'in the background, in parts: ' || name || ' [rule 13]') FROM after;
SELECT is((SELECT count(*) FROM evpg.rebuild) + (SELECT count(*) FROM evpg.rebuild_part) +
  (SELECT count(*) FROM evpg.old_build), 0::bigint, 'nothing is left over [rule 13]');
SELECT is((SELECT count(*) FROM evpg.projection_state WHERE build NOT IN (SELECT build FROM evpg.projection)), 0::bigint,
  'a rebuild leaves no old row [rule 13]');
SELECT events_at_random(60, 0.9) \g /dev/null
CALL evpg_run();
SELECT evpg_rebuild_projection('a ' || kind), evpg_rebuild_projection('i ' || kind) FROM kinds \g /dev/null
SELECT is(states_of('a ' || kind), states_of('i ' || kind),
  'inline and asynchronous come to the same: ' || kind || ' [rule 13]') FROM kinds;
SELECT evpg_drop_projection(name) FROM before \g /dev/null

-- ------------------------------------------------------------------ who reads while it goes on

SELECT evpg_register_projection('sums', 'test.sum_project', broadcast => 'delta',
  event_types => '{Added,Subtracted,Cleared}', aggregate_types => '{counter}', tags => '{sums}') \g /dev/null
SELECT add('a', 1, tags => '{sums}'), add('a', 2, tags => '{sums}'), add('b', 3, tags => '{sums}') \g /dev/null
SELECT evpg_put_projection('sums', 'c', '{"sum": 1}') \g /dev/null
SELECT max(next_position) AS known FROM evpg_projection_changes('sums') \gset
SELECT listen('sums'), listen('sums', 'a') \g /dev/null
SELECT dblink_exec('listener', 'LISTEN "evpg.resync"') \g /dev/null
BEGIN;
SELECT evpg_rebuild_projection('sums') \g /dev/null
SELECT is(rows_of('sums'), 'a: 2.2 {"sum": 3, "count": 2}, b: 2.1 {"sum": 3, "count": 1}',
  'who rebuilds sees the new rows [rule 13]');
SELECT is((SELECT r FROM dblink('listener', $$SELECT rows_of('sums')$$) x (r text)),
  'a: 1.2 {"sum": 3, "count": 2}, b: 1.1 {"sum": 3, "count": 1}, c: 1.1 {"sum": 1}',
  'everybody else the old ones [rule 13, A28, B36]');
ROLLBACK;
SELECT is(rows_of('sums'), 'a: 1.2 {"sum": 3, "count": 2}, b: 1.1 {"sum": 3, "count": 1}, c: 1.1 {"sum": 1}',
  'rolled back, nothing has happened [rule 13]');
SELECT evpg_rebuild_projection('sums') \g /dev/null
SELECT is(rows_of('sums'), 'a: 2.2 {"sum": 3, "count": 2}, b: 2.1 {"sum": 3, "count": 1}',
  'the new rows, at once; the generation rises, version = events folded [rule 13]');
SELECT same('SELECT channel, frame FROM frames() ORDER BY channel',
  format($$VALUES ('evpg.resync', %1$L), ('projection.sums', %1$L)$$,
  format('{"event": "rebuild", "projection": "sums", "position": %s}',
    (SELECT rebuilt_position FROM evpg.projection WHERE name = 'sums'))),
    'one frame for all keys, and one for those who listen to a key [rules 13, 14]');
SELECT same(format($$SELECT key, generation, version, state, position > %1$s FROM evpg_projection_changes('sums', %1$s)
  ORDER BY key$$, :known),
  $$VALUES ('a', 2, 2::bigint, '{"sum": 3, "count": 2}'::jsonb, true), ('b', 2, 1, '{"sum": 3, "count": 1}', true),
    ('c', 2, 1, NULL, true)$$,
    'who catches up by positions gets all rows, and those that are gone without a state [rule 13]');
SELECT is(row_of('sums', 'c'), NULL, 'rows that are gone are not read by key [rule 13]');
SELECT evpg_put_projection('sums', 'c', '{"sum": 2}') \g /dev/null
SELECT is(row_of('sums', 'c'), '3.1 {"sum": 2}', 'a key that comes back is in a higher generation still [rule 12]');
SELECT is(evpg_rebuild_projection('sums', 'c'), 0::bigint, 'it has nothing to fold [rule 13]');
SELECT evpg_put_projection('sums', 'c', '{"sum": 3}') \g /dev/null
SELECT generation AS before FROM evpg_projection('sums', 'c') \gset
SELECT evpg_rebuild_projection('sums'), evpg_put_projection('sums', 'c', '{"sum": 4}') \g /dev/null
SELECT cmp_ok((SELECT generation FROM evpg_projection('sums', 'c')), '>', :before,
  'each rebuild and each put raises the generation [rule 12]');
-- (generation, version) of keys only grows, whatever happens
CREATE TABLE test.looks (n serial, key text, generation int, version bigint);
DO $$
DECLARE
  deed text;
  deeds text[] := ARRAY[$d$SELECT add(k, 1, tags => '{sums}')$d$, $d$SELECT add(k, 0, 'Cleared', tags => '{sums}')$d$,
    $d$SELECT evpg_put_projection('sums', k, '{}')$d$, $d$SELECT evpg_put_projection('sums', k, NULL)$d$,
    $d$SELECT evpg_rebuild_projection('sums', k)$d$, $d$SELECT evpg_rebuild_projection('sums')$d$,
      $d$SELECT evpg_rebuild_projection('sums', background => true)$d$, 'CALL', $d$SELECT evpg_cancel_rebuild('sums')$d$];
BEGIN
  PERFORM setseed(0.125);
  FOR round IN 1 .. 300 LOOP
    deed := deeds[1 + floor(random() * array_length(deeds, 1))::int];
    COMMIT;
    IF deed = 'CALL' THEN
      CALL evpg_run();
    ELSE
      EXECUTE replace(replace(deed, '(k', '(''k' || floor(random() * 3) || ''''), ', k',
        ', ''k' || floor(random() * 3) || '''');
    END IF;
    INSERT INTO looks (key, generation, version) SELECT key, generation, version FROM stored
      WHERE name = 'sums' AND key LIKE 'k_' ORDER BY key;
  END LOOP;
END $$;
SELECT cmp_ok((SELECT count(DISTINCT (key, generation, version)) FROM looks), '>', 100::bigint,
  'lives with deletions, returns, puts, and rebuilds of a key and of all [rule 12]');
SELECT is((SELECT string_agg(format('%s %s.%s after %s', key, generation, version, previous), ', ')
  FROM (SELECT *, lag(ROW(generation, version)) OVER (PARTITION BY key ORDER BY n) AS previous FROM looks) s
  WHERE previous > ROW(generation, version)), NULL, '(generation, version) never goes back [rule 12]');
CALL evpg_run();
SELECT evpg_drop_projection('sums') \g /dev/null

-- ------------------------------------------------------------------ in the background

SELECT count(*) FROM (SELECT
  evpg_append('counter', 's' || s, array_agg(evpg_event('Stepped', jsonb_build_object('n', n)) ORDER BY n))
  FROM generate_series(1, 3000) n, generate_series(1, 2) s GROUP BY s) x \g /dev/null
SELECT evpg_register_projection('steps', 'test.sum_apply', event_types => '{Stepped}', max_attempts => 1) \g /dev/null
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
SELECT is((SELECT (phase, events_done, parts, workers, attempts, last_error)::text FROM evpg.progress_rebuild),
  '(replay,0,1,0,0,)', 'a rebuild that has begun [rule 13]');
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
SELECT is((SELECT count(*) FROM evpg.rebuild), 1::bigint, 'begun again, it is the same one [rule 13]');
SELECT is(evpg_cancel_rebuild('steps'), true, 'it is cancelled [rule 13]');
SELECT is(evpg_cancel_rebuild('steps'), false, 'once [rule 13]');
CALL evpg_run();
SELECT is(rows_of('steps') || (SELECT count(*) FROM evpg.old_build) || (SELECT count(*) FROM evpg.rebuild_part), '00',
  'a rebuild that was cancelled has no result and leaves nothing [rule 13]');
-- how fast it is, and how long it will still take: since started_at, that is as if it had begun a day ago and been stopped
-- since; the time that this test takes is lost in rounding
CREATE FUNCTION test.speed() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(' ', phase, events_done, events_per_second, round(extract(epoch FROM eta) / 1000))
    FROM evpg.progress_rebuild
$$;
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
SELECT is(speed(), 'replay 0 0', 'a rebuild that has begun has no speed, and nobody knows when it ends [rule 13]');
UPDATE evpg.rebuild SET started_at = clock_timestamp() - interval '100000 s', start_position = 100000, goal = 3100000;
UPDATE evpg.rebuild_part SET checkpoint = 1100000, events = 700000;
SELECT is(speed(), 'replay 700000 7 200', 'a third in 100,000 seconds: 200,000 more; 7 events per second [rule 13]');
INSERT INTO evpg.rebuild_part (build, part, checkpoint, events) SELECT build, 1, 600000, 300000 FROM evpg.rebuild;
SELECT is(speed(), 'replay 1000000 10 500',
  'of several parts the slowest says how long it takes, and all together how fast it is [rule 13]');
UPDATE evpg.rebuild_part SET events = 900000;
SELECT is(speed(), 'replay 1000000 10 500', 'parts by key read the same events, which count once [rule 13]');
UPDATE evpg.rebuild_part SET events = 500000;
UPDATE evpg.rebuild_part SET checkpoint = 3100000 + part;
SELECT is(speed(), 'catch-up 1000000 10 0', 'the end of the replay is near [rule 13]');
UPDATE evpg.rebuild SET status = 'failed';
SELECT is(speed(), 'failed 1000000 10', 'one that has failed does not end [rule 13]');
SELECT evpg_cancel_rebuild('steps') \g /dev/null
CALL evpg_run();
-- fails, is mended, goes on
CREATE FUNCTION test.step_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('test.break', true) = event.data->>'n' THEN
    RAISE EXCEPTION 'I break at %', event.data->>'n';
  END IF;
  RETURN jsonb_build_object('steps', coalesce((state->>'steps')::int, 0) + 1);
END $$;
SELECT evpg_register_projection('steps', 'test.step_apply', event_types => '{Stepped}', max_attempts => 2) \g /dev/null
SELECT evpg_put_projection('steps', 's1', '"old"') \g /dev/null
SET test.break = 2990;
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
CALL evpg_run();
SELECT is((SELECT (phase, attempts, last_error, retry_at IS NOT NULL)::text FROM evpg.progress_rebuild),
  '(replay,1,"I break at 2990",t)', 'a rebuild that fails is tried again later [rule 13]');
SELECT now_due() \g /dev/null
CALL evpg_run();
SELECT is((SELECT (phase, attempts, last_error)::text FROM evpg.progress_rebuild), '(failed,2,"I break at 2990")',
  'after max_attempts it has failed [rule 13]');
SELECT is(rows_of('steps'), 's1: 1.1 "old"', 'the old rows stay [rule 13]');
SELECT add('s3', 1, 'Stepped') \g /dev/null
SELECT is(row_of('steps', 's3'), '1.1 {"steps": 1}', 'rows of a projection whose rebuild has failed are kept up [rule 13]');
RESET test.break;
CALL evpg_run();
SELECT is((SELECT phase FROM evpg.progress_rebuild), 'failed', 'it stays so [rule 13]');
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
CALL evpg_run();
SELECT is(rows_of('steps'), 's1: 2.3000 {"steps": 3000}, s2: 2.3000 {"steps": 3000}, s3: 2.1 {"steps": 1}',
  'until it is asked for again [rule 13]');
-- one that has come some way goes on from there: what lies before its checkpoint is not read again
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
UPDATE evpg.rebuild_part SET checkpoint = (SELECT position FROM evpg.event WHERE aggregate_id = 's3') - 1
  WHERE build = (SELECT build FROM evpg.rebuild WHERE name = 'steps');
CALL evpg_run();
SELECT is(rows_of('steps'), 's3: 3.1 {"steps": 1}', 'a rebuild goes on from its checkpoint [rule 13]');
SELECT evpg_rebuild_projection('steps') \g /dev/null
-- a foreground rebuild replaces one in the background; a failure of it leaves that
SET test.break = 5;
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
SELECT fails($$SELECT evpg_rebuild_projection('steps')$$, 'P0001 I break at 5',
  'a rebuild in the foreground fails [rule 13]');
SELECT is((SELECT count(*) FROM evpg.rebuild), 1::bigint,
  'a rebuild in the foreground that fails leaves the one in the background [rule 13]');
RESET test.break;
SELECT is(evpg_rebuild_projection('steps'), 6001::bigint,
  'a rebuild in the foreground succeeds while another one waits [rule 13]');
SELECT is((SELECT count(*) FROM evpg.rebuild), 0::bigint,
  'a rebuild in the foreground ends the one in the background [rule 13]');
-- another version, another definition
SELECT is(evpg_register_projection('steps', 'test.step_apply', event_types => '{Stepped}', max_attempts => 2, version => 2),
  true, 'a new version [rule 13, D64]');
SELECT is((SELECT count(*) FROM evpg.rebuild WHERE name = 'steps'), 1::bigint, 'starts a rebuild [rule 13, D64]');
SELECT build FROM evpg.rebuild \gset
SELECT evpg_register_projection('steps', 'test.sum_apply', event_types => '{Stepped}', max_attempts => 2, version => 2)
  \g /dev/null
SELECT is((SELECT build > :build FROM evpg.rebuild WHERE name = 'steps'), true,
  'another definition starts it anew [rule 13]');
CALL evpg_run();
SELECT is((SELECT string_agg(state::text, ' ') FROM evpg.projected_state WHERE name = 'steps' AND key IN ('s1', 's2')),
  '{"sum": 0, "count": 3000} {"sum": 0, "count": 3000}',
    'a rebuild that was started anew has the result of the last definition [rule 13]');
SELECT is((SELECT count(*) FROM evpg.rebuild) + (SELECT count(*) FROM evpg.old_build), 0::bigint,
  'nothing is left over [rule 13]');
SELECT is(evpg_register_projection('steps', 'test.step_apply', event_types => '{Stepped}', max_attempts => 2, version => 2),
  true, 'another definition of the same version [C11]');
SELECT is((SELECT count(*) FROM evpg.rebuild), 0::bigint, 'is for what comes [C11]');
-- dropped meanwhile; changes mode meanwhile
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
SELECT evpg_register_projection('steps', 'test.step_apply', event_types => '{Stepped}', mode => 'async', version => 2)
  \g /dev/null
SELECT add('s3', 1, 'Stepped') \g /dev/null
CALL evpg_run();
SELECT is((SELECT string_agg(key || ' ' || state, ', ' ORDER BY key) FROM evpg.projected_state WHERE name = 'steps'),
  's1 {"steps": 3000}, s2 {"steps": 3000}, s3 {"steps": 2}',
  'an inline projection that becomes asynchronous while it is rebuilt [rule 13]');
SELECT evpg_rebuild_projection('steps', background => true), add('s3', 1, 'Stepped') \g /dev/null
SELECT evpg_register_projection('steps', 'test.step_apply', event_types => '{Stepped}', version => 2),
  add('s3', 1, 'Stepped') \g /dev/null
CALL evpg_run();
SELECT is((SELECT string_agg(key || ' ' || state, ', ' ORDER BY key) FROM evpg.projected_state WHERE name = 'steps'),
  's1 {"steps": 3000}, s2 {"steps": 3000}, s3 {"steps": 4}',
    'an asynchronous projection becomes inline again while it is rebuilt [rule 13]');
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
SELECT evpg_drop_projection('steps') \g /dev/null
CALL evpg_run();
SELECT is((SELECT count(*) FROM evpg.rebuild) + (SELECT count(*) FROM evpg.rebuild_part) +
  (SELECT count(*) FROM evpg.old_build) + (SELECT count(*) FROM evpg.projection_state), 0::bigint,
  'dropped while it is rebuilt, it leaves nothing [rule 13]');

-- ------------------------------------------------------------------ asynchronous ones that have stopped or parked

SELECT evpg_register_projection('list', 'test.list_apply', mode => 'async', on_error => 'park', max_attempts => 1,
  event_types => '{Listed}') \g /dev/null
SET test.break = 2;
SELECT add('l', 1, 'Listed'), add('l', 2, 'Listed'), add('l', 3, 'Listed') \g /dev/null
CALL evpg_run();
SELECT is(parked_of('list'), 'l 2 tried 1 I break at 2 P0001, l 3 tried 0', 'parked [rule 10]');
SELECT fails($$SELECT evpg_rebuild_projection('list')$$, 'P0001 I break at 2',
  'a rebuild applies what is parked, too [rule 13]');
RESET test.break;
SELECT evpg_rebuild_projection('list') \g /dev/null
SELECT is(row_of('list', 'l') || parked_of('list'), '2.3 [1, 2, 3]', 'after which it is not parked any more [rule 13]');
SELECT evpg_register_projection('list', 'test.list_apply', mode => 'async', max_attempts => 1, event_types => '{Listed}')
  \g /dev/null
SET test.break = 4;
SELECT add('l', 4, 'Listed'), add('l', 5, 'Listed') \g /dev/null
CALL evpg_run();
SELECT is((SELECT status FROM evpg.stat_consumer), 'stopped', 'stopped [rule 10]');
RESET test.break;
SELECT evpg_rebuild_projection('list', background => true) \g /dev/null
CALL evpg_run();
SELECT is(row_of('list', 'l') || ' ' || (SELECT status || ' ' || attempts FROM evpg.consumer),
  '3.5 [1, 2, 3, 4, 5] running 0', 'after a rebuild it runs again [rule 13]');
-- skipped in the rebuild
SELECT evpg_register_projection('list', 'test.list_apply', mode => 'async', on_error => 'skip', max_attempts => 1,
  event_types => '{Listed}') \g /dev/null
SET test.break = 2;
SELECT evpg_rebuild_projection('list', background => true) \g /dev/null
DO $$ BEGIN FOR round IN 1 .. 5 LOOP PERFORM now_due(); COMMIT; CALL evpg_run(); END LOOP; END $$;
SELECT is(row_of('list', 'l'), '4.4 [1, 3, 4, 5]',
  'with on_error skip, a rebuild in the background leaves out what fails [rule 13]');
SELECT is((SELECT (skip_reason, error, sqlstate)::text FROM evpg.parked_event), '("I break at 2","I break at 2",P0001)',
  'with on_error skip, a rebuild in the background leaves out what fails, and keeps the error [rule 13]');
SELECT evpg_drop_projection('list') \g /dev/null

-- ------------------------------------------------------------------ refused

SELECT refused(format('SELECT evpg_rebuild_projection(%s)', arguments), error, 'rebuild ' || arguments || ' [rule 13]')
  FROM (VALUES
  ($$'nope'$$, 'VE007 projection "nope" is not registered'), ('NULL', '22004 projection name must not be null'),
    ($$'nope', background => true$$, 'VE007 projection "nope" is not registered')) x (arguments, error);
SELECT is(error_of($$SELECT evpg_cancel_rebuild('nope')$$), 'VE007 projection "nope" is not registered',
  'cancel what is not registered [rule 13]');
SELECT evpg_register_projection('empty', 'test.sum_apply', event_types => '{Never}') \g /dev/null
SELECT is(evpg_rebuild_projection('empty'), 0::bigint, 'nothing to fold at all [rule 13]');
SELECT is(rows_of('empty'), '', 'no rows [rule 13]');
SELECT evpg_rebuild_projection('empty', background => true) \g /dev/null
CALL evpg_run();
SELECT is((SELECT count(*) FROM evpg.rebuild), 0::bigint, 'in the background too [rule 13]');
-- in the transaction of an appender
BEGIN;
SELECT add('own', 1, 'Never') \g /dev/null
SELECT is(evpg_rebuild_projection('empty'), 1::bigint,
  'a rebuild of an inline projection sees the events of its own transaction [rule 13]');
SELECT add('own', 1, 'Never') \g /dev/null
COMMIT;
SELECT is((SELECT state FROM evpg_projection('empty', 'own')), '{"sum": 0, "count": 2}',
  'once, and those after it [rule 13]');
SELECT evpg_register_projection('aempty', 'test.sum_apply', event_types => '{Never}', mode => 'async') \g /dev/null
BEGIN;
SELECT add('own', 1, 'Never') \g /dev/null
SELECT is(evpg_rebuild_projection('aempty'), 2::bigint, 'one of an asynchronous projection does not [rule 13]');
COMMIT;
CALL evpg_run();
SELECT is((SELECT state FROM evpg_projection('aempty', 'own')), '{"sum": 0, "count": 3}',
  'its consumer sees them [rule 13]');
SELECT * FROM finish();
