-- rebuild_all.sql: all keys of a projection are folded again beside the rows that are read, which they replace at once (rule 13).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(189);
SET test.kind = counter;

-- What a rebuild may not change: keys, states, and which are there.
CREATE FUNCTION test.states_of(of_name text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(string_agg(key || ': ' || coalesce(state::text, '-'), ', ' ORDER BY key), '') FROM evpg.projected_state WHERE name = of_name
$$;
-- Damages every row: the state is wrong, a key is lost, another one is there.
CREATE FUNCTION test.damage(of_name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE evpg.projection_state s SET state = '{"sum": -1, "total": -1, "applied": -1}' FROM evpg.projection p WHERE p.build = s.build AND name = of_name AND NOT deleted;
  DELETE FROM evpg.projection_state s USING evpg.projection p WHERE p.build = s.build AND name = of_name AND key = (SELECT min(key) FROM stored WHERE name = of_name);
  PERFORM evpg_put_projection(of_name, 'nobody''s', '{}');
END $$;

-- ------------------------------------------------------------------ the same from scratch

CREATE TABLE test.kinds AS SELECT register_kinds('i ', 'inline') AS kind;
SELECT * FROM register_kinds('a ', 'async') \g /dev/null
SELECT events_at_random(300, 0.75) \g /dev/null
CALL evpg_run();
CREATE TABLE test.before AS SELECT k.name, states_of(k.name) AS states FROM (SELECT p || kind AS name FROM kinds, unnest('{"i ","a "}'::text[]) p) k;
CREATE TABLE test.seen AS SELECT * FROM stored;
SELECT damage(name) FROM before \g /dev/null
SELECT is((SELECT count(*) FROM before WHERE states = states_of(name)), 0::bigint, 'rule 13: every projection is damaged');
CREATE TABLE test.folded AS SELECT name, evpg_rebuild_projection(name) AS events FROM before;
SELECT is(states_of(name), states, 'rule 13, A28, B36, 1.2 test 8, 2.4 test 11: a rebuild comes to what the events say: ' || name) FROM before;
SELECT cmp_ok(length(states), '>', 10, 'rule 13: which is something: ' || name) FROM before;
SELECT is(events, (SELECT count(*) FROM evpg.event WHERE aggregate_type = 'counter'), 'rule 13: evpg_rebuild_projection() says how many events it has read: ' || name) FROM folded WHERE name IN ('i by_id', 'a by_id');
SELECT is((SELECT count(*) FROM stored a JOIN seen b USING (name, key) WHERE a.generation <= b.generation), 0::bigint, 'rule 12: every key is in a higher generation');
SELECT is((SELECT count(*) FROM evpg.old_build) + (SELECT count(*) FROM evpg.rebuild) + (SELECT count(*) FROM evpg.rebuild_part), 0::bigint, 'rule 13: nothing is left over');
SELECT is((SELECT count(*) FROM evpg.projection_state WHERE build NOT IN (SELECT build FROM evpg.projection)), 0::bigint, 'rule 13: nor a row of the old builds');
SELECT is((SELECT count(*) FROM evpg.projected_state s JOIN evpg.projection p USING (name) WHERE s.position < p.rebuilt_position), 0::bigint, 'rule 13: rows are shown with the position of the rebuild at least');
SELECT is((SELECT version FROM evpg_projection('i constant', 'all')) <= (SELECT count(*) FROM evpg.event), true, 'rule 12: version counts the events folded since the key came to be');
SELECT is((SELECT count(*) FROM stored WHERE key = 'nobody''s' AND NOT deleted), 0::bigint, 'rule 13: a key that has no events is gone');
-- events go on where the rebuild has ended
SELECT events_at_random(60, 0.8) \g /dev/null
CALL evpg_run();
CREATE TABLE test.after AS SELECT name, states_of(name) AS states FROM before;
SELECT evpg_rebuild_projection(name) FROM before \g /dev/null
SELECT is(states_of(name), states, 'rule 13, 1.2 test 8: events after the rebuild were applied once: ' || name) FROM after;
-- in the background, in parts
SELECT damage(name) FROM before \g /dev/null
SELECT is(string_agg(DISTINCT coalesce(evpg_rebuild_projection(name, background => true)::text, 'NULL'), ' '), 'NULL', 'rule 13: in the background, nothing is said yet') FROM before;
SELECT is((SELECT count(*) FROM evpg.progress_rebuild WHERE phase IN ('replay', 'catch-up')), 24::bigint, 'rule 13: a rebuild can be watched');
SELECT is((SELECT count(*) FROM before JOIN after USING (name) WHERE states_of(name) = after.states), 0::bigint, 'rule 13: the old rows are read as long as it lasts');
-- four sessions could work on each: the parts have the keys of their own
UPDATE evpg.rebuild SET parts = 4 WHERE name IN (SELECT p || kind FROM kinds, unnest('{"i ","a "}'::text[]) p WHERE kind <> 'constant');
INSERT INTO evpg.rebuild_part (build, part, checkpoint) SELECT build, part, 0 FROM evpg.rebuild, generate_series(1, 3) part WHERE parts = 4;
CALL evpg_run();
SELECT is(states_of(name), states, 'rule 13: in the background, in parts: ' || name) FROM after;
SELECT is((SELECT count(*) FROM evpg.rebuild) + (SELECT count(*) FROM evpg.rebuild_part) + (SELECT count(*) FROM evpg.old_build), 0::bigint, 'rule 13: nothing is left over');
SELECT is((SELECT count(*) FROM evpg.projection_state WHERE build NOT IN (SELECT build FROM evpg.projection)), 0::bigint, 'rule 13: nor a row');
SELECT events_at_random(60, 0.9) \g /dev/null
CALL evpg_run();
SELECT evpg_rebuild_projection('a ' || kind), evpg_rebuild_projection('i ' || kind) FROM kinds \g /dev/null
SELECT is(states_of('a ' || kind), states_of('i ' || kind), 'rule 13: inline and asynchronous come to the same: ' || kind) FROM kinds;
SELECT evpg_drop_projection(name) FROM before \g /dev/null

-- ------------------------------------------------------------------ who reads while it goes on

SELECT evpg_register_projection('sums', 'test.sum_project', broadcast => 'delta', event_types => '{Added,Subtracted,Cleared}', aggregate_types => '{counter}', tags => '{sums}') \g /dev/null
SELECT add('a', 1, tags => '{sums}'), add('a', 2, tags => '{sums}'), add('b', 3, tags => '{sums}') \g /dev/null
SELECT evpg_put_projection('sums', 'c', '{"sum": 1}') \g /dev/null
SELECT max(next_position) AS known FROM evpg_projection_changes('sums') \gset
SELECT listen('sums'), listen('sums', 'a') \g /dev/null
SELECT dblink_exec('listener', 'LISTEN "evpg.resync"') \g /dev/null
BEGIN;
SELECT evpg_rebuild_projection('sums') \g /dev/null
SELECT is(rows_of('sums'), 'a: 2.2 {"sum": 3, "count": 2}, b: 2.1 {"sum": 3, "count": 1}', 'rule 13: who rebuilds sees the new rows');
SELECT is((SELECT r FROM dblink('listener', $$SELECT rows_of('sums')$$) x (r text)), 'a: 1.2 {"sum": 3, "count": 2}, b: 1.1 {"sum": 3, "count": 1}, c: 1.1 {"sum": 1}', 'rule 13, A28, B36: everybody else the old ones');
ROLLBACK;
SELECT is(rows_of('sums'), 'a: 1.2 {"sum": 3, "count": 2}, b: 1.1 {"sum": 3, "count": 1}, c: 1.1 {"sum": 1}', 'rule 13: rolled back, nothing has happened');
SELECT evpg_rebuild_projection('sums') \g /dev/null
SELECT is(rows_of('sums'), 'a: 2.2 {"sum": 3, "count": 2}, b: 2.1 {"sum": 3, "count": 1}', 'rule 13: the new rows, at once; the generation rises, version = events folded');
SELECT same('SELECT channel, frame FROM frames() ORDER BY channel', format($$VALUES ('evpg.resync', %1$L), ('projection.sums', %1$L)$$,
  format('{"event": "rebuild", "projection": "sums", "position": %s}', (SELECT rebuilt_position FROM evpg.projection WHERE name = 'sums'))), 'rules 13, 14: one frame for all keys, and one for those who listen to a key');
SELECT same(format($$SELECT key, generation, version, state, position > %1$s FROM evpg_projection_changes('sums', %1$s) ORDER BY key$$, :known),
  $$VALUES ('a', 2, 2::bigint, '{"sum": 3, "count": 2}'::jsonb, true), ('b', 2, 1, '{"sum": 3, "count": 1}', true), ('c', 2, 1, NULL, true)$$, 'rule 13: who catches up by positions gets all rows, and those that are gone without a state');
SELECT is(row_of('sums', 'c'), NULL, 'rule 13: which are not there');
SELECT evpg_put_projection('sums', 'c', '{"sum": 2}') \g /dev/null
SELECT is(row_of('sums', 'c'), '3.1 {"sum": 2}', 'rule 12: a key that comes back is in a higher generation still');
SELECT is(evpg_rebuild_projection('sums', 'c'), 0::bigint, 'rule 13: it has nothing to fold');
SELECT evpg_put_projection('sums', 'c', '{"sum": 3}') \g /dev/null
SELECT generation AS before FROM evpg_projection('sums', 'c') \gset
SELECT evpg_rebuild_projection('sums'), evpg_put_projection('sums', 'c', '{"sum": 4}') \g /dev/null
SELECT cmp_ok((SELECT generation FROM evpg_projection('sums', 'c')), '>', :before, 'rule 12: and so on');
-- (generation, version) of keys only grows, whatever happens
CREATE TABLE test.looks (n serial, key text, generation int, version bigint);
DO $$
DECLARE
  deed text;
  deeds text[] := ARRAY[$d$SELECT add(k, 1, tags => '{sums}')$d$, $d$SELECT add(k, 0, 'Cleared', tags => '{sums}')$d$, $d$SELECT evpg_put_projection('sums', k, '{}')$d$, $d$SELECT evpg_put_projection('sums', k, NULL)$d$,
    $d$SELECT evpg_rebuild_projection('sums', k)$d$, $d$SELECT evpg_rebuild_projection('sums')$d$, $d$SELECT evpg_rebuild_projection('sums', background => true)$d$, 'CALL', $d$SELECT evpg_cancel_rebuild('sums')$d$];
BEGIN
  PERFORM setseed(0.125);
  FOR round IN 1 .. 300 LOOP
    deed := deeds[1 + floor(random() * array_length(deeds, 1))::int];
    COMMIT;
    IF deed = 'CALL' THEN
      CALL evpg_run();
    ELSE
      EXECUTE replace(replace(deed, '(k', '(''k' || floor(random() * 3) || ''''), ', k', ', ''k' || floor(random() * 3) || '''');
    END IF;
    INSERT INTO looks (key, generation, version) SELECT key, generation, version FROM stored WHERE name = 'sums' AND key LIKE 'k_' ORDER BY key;
  END LOOP;
END $$;
SELECT cmp_ok((SELECT count(DISTINCT (key, generation, version)) FROM looks), '>', 100::bigint, 'rule 12: lives with deletions, returns, puts, and rebuilds of a key and of all');
SELECT is((SELECT string_agg(format('%s %s.%s after %s', key, generation, version, previous), ', ') FROM (SELECT *, lag(ROW(generation, version)) OVER (PARTITION BY key ORDER BY n) AS previous FROM looks) s WHERE previous > ROW(generation, version)), NULL, 'rule 12: (generation, version) never goes back');
CALL evpg_run();
SELECT evpg_drop_projection('sums') \g /dev/null

-- ------------------------------------------------------------------ in the background

SELECT count(*) FROM (SELECT evpg_append('counter', 's' || s, array_agg(evpg_event('Stepped', jsonb_build_object('n', n)) ORDER BY n)) FROM generate_series(1, 3000) n, generate_series(1, 2) s GROUP BY s) x \g /dev/null
SELECT evpg_register_projection('steps', 'test.sum_apply', event_types => '{Stepped}', max_attempts => 1) \g /dev/null
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
SELECT is((SELECT (phase, events_done, parts, workers, attempts, last_error)::text FROM evpg.progress_rebuild), '(replay,0,1,0,0,)', 'rule 13: a rebuild that has begun');
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
SELECT is((SELECT count(*) FROM evpg.rebuild), 1::bigint, 'rule 13: begun again, it is the same one');
SELECT is(evpg_cancel_rebuild('steps'), true, 'rule 13: it is cancelled');
SELECT is(evpg_cancel_rebuild('steps'), false, 'rule 13: once');
CALL evpg_run();
SELECT is(rows_of('steps') || (SELECT count(*) FROM evpg.old_build) || (SELECT count(*) FROM evpg.rebuild_part), '00', 'rule 13: and has no result, nor leaves anything');
-- how fast it is, and how long it will still take: since started_at, that is as if it had begun a day ago and been stopped since; the
-- time that this test takes is lost in rounding
CREATE FUNCTION test.speed() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(' ', phase, events_done, events_per_second, round(extract(epoch FROM eta) / 1000)) FROM evpg.progress_rebuild
$$;
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
SELECT is(speed(), 'replay 0 0', 'rule 13: a rebuild that has begun has no speed, and nobody knows when it ends');
UPDATE evpg.rebuild SET started_at = clock_timestamp() - interval '100000 s', start_position = 100000, goal = 3100000;
UPDATE evpg.rebuild_part SET checkpoint = 1100000, events = 700000;
SELECT is(speed(), 'replay 700000 7 200', 'rule 13: a third in 100,000 seconds: 200,000 more; 7 events per second');
INSERT INTO evpg.rebuild_part (build, part, checkpoint, events) SELECT build, 1, 600000, 300000 FROM evpg.rebuild;
SELECT is(speed(), 'replay 1000000 10 500', 'rule 13: of several parts the slowest says how long it takes, and all together how fast it is');
UPDATE evpg.rebuild_part SET events = 900000;
SELECT is(speed(), 'replay 1000000 10 500', 'rule 13: parts by key read the same events, which count once');
UPDATE evpg.rebuild_part SET events = 500000;
UPDATE evpg.rebuild_part SET checkpoint = 3100000 + part;
SELECT is(speed(), 'catch-up 1000000 10 0', 'rule 13: the end of the replay is near');
UPDATE evpg.rebuild SET status = 'failed';
SELECT is(speed(), 'failed 1000000 10', 'rule 13: one that has failed does not end');
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
SELECT is((SELECT (phase, attempts, last_error, retry_at IS NOT NULL)::text FROM evpg.progress_rebuild), '(replay,1,"I break at 2990",t)', 'rule 13: a rebuild that fails is tried again later');
SELECT now_due() \g /dev/null
CALL evpg_run();
SELECT is((SELECT (phase, attempts, last_error)::text FROM evpg.progress_rebuild), '(failed,2,"I break at 2990")', 'rule 13: after max_attempts it has failed');
SELECT is(rows_of('steps'), 's1: 1.1 "old"', 'rule 13: the old rows stay');
SELECT add('s3', 1, 'Stepped') \g /dev/null
SELECT is(row_of('steps', 's3'), '1.1 {"steps": 1}', 'rule 13: and are kept up');
RESET test.break;
CALL evpg_run();
SELECT is((SELECT phase FROM evpg.progress_rebuild), 'failed', 'rule 13: it stays so');
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
CALL evpg_run();
SELECT is(rows_of('steps'), 's1: 2.3000 {"steps": 3000}, s2: 2.3000 {"steps": 3000}, s3: 2.1 {"steps": 1}', 'rule 13: until it is asked for again');
-- one that has come some way goes on from there: what lies before its checkpoint is not read again
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
UPDATE evpg.rebuild_part SET checkpoint = (SELECT position FROM evpg.event WHERE aggregate_id = 's3') - 1 WHERE build = (SELECT build FROM evpg.rebuild WHERE name = 'steps');
CALL evpg_run();
SELECT is(rows_of('steps'), 's3: 3.1 {"steps": 1}', 'rule 13: a rebuild goes on from its checkpoint');
SELECT evpg_rebuild_projection('steps') \g /dev/null
-- a foreground rebuild replaces one in the background; a failure of it leaves that
SET test.break = 5;
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
SELECT fails($$SELECT evpg_rebuild_projection('steps')$$, 'P0001 I break at 5', 'rule 13: a rebuild in the foreground fails');
SELECT is((SELECT count(*) FROM evpg.rebuild), 1::bigint, 'rule 13: which leaves the other one');
RESET test.break;
SELECT is(evpg_rebuild_projection('steps'), 6001::bigint, 'rule 13: or succeeds');
SELECT is((SELECT count(*) FROM evpg.rebuild), 0::bigint, 'rule 13: which ends the other one');
-- another version, another definition
SELECT is(evpg_register_projection('steps', 'test.step_apply', event_types => '{Stepped}', max_attempts => 2, version => 2), true, 'rule 13, D64: a new version');
SELECT is((SELECT count(*) FROM evpg.rebuild WHERE name = 'steps'), 1::bigint, 'rule 13, D64: starts a rebuild');
SELECT build FROM evpg.rebuild \gset
SELECT evpg_register_projection('steps', 'test.sum_apply', event_types => '{Stepped}', max_attempts => 2, version => 2) \g /dev/null
SELECT is((SELECT build > :build FROM evpg.rebuild WHERE name = 'steps'), true, 'rule 13: another definition starts it anew');
CALL evpg_run();
SELECT is((SELECT string_agg(state::text, ' ') FROM evpg.projected_state WHERE name = 'steps' AND key IN ('s1', 's2')), '{"sum": 0, "count": 3000} {"sum": 0, "count": 3000}', 'rule 13: whose result is that of the last one');
SELECT is((SELECT count(*) FROM evpg.rebuild) + (SELECT count(*) FROM evpg.old_build), 0::bigint, 'rule 13: nothing is left over');
SELECT is(evpg_register_projection('steps', 'test.step_apply', event_types => '{Stepped}', max_attempts => 2, version => 2), true, 'C11: another definition of the same version');
SELECT is((SELECT count(*) FROM evpg.rebuild), 0::bigint, 'C11: is for what comes');
-- dropped meanwhile; changes mode meanwhile
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
SELECT evpg_register_projection('steps', 'test.step_apply', event_types => '{Stepped}', mode => 'async', version => 2) \g /dev/null
SELECT add('s3', 1, 'Stepped') \g /dev/null
CALL evpg_run();
SELECT is((SELECT string_agg(key || ' ' || state, ', ' ORDER BY key) FROM evpg.projected_state WHERE name = 'steps'), 's1 {"steps": 3000}, s2 {"steps": 3000}, s3 {"steps": 2}', 'rule 13: an inline projection that becomes asynchronous while it is rebuilt');
SELECT evpg_rebuild_projection('steps', background => true), add('s3', 1, 'Stepped') \g /dev/null
SELECT evpg_register_projection('steps', 'test.step_apply', event_types => '{Stepped}', version => 2), add('s3', 1, 'Stepped') \g /dev/null
CALL evpg_run();
SELECT is((SELECT string_agg(key || ' ' || state, ', ' ORDER BY key) FROM evpg.projected_state WHERE name = 'steps'), 's1 {"steps": 3000}, s2 {"steps": 3000}, s3 {"steps": 4}', 'rule 13: and back');
SELECT evpg_rebuild_projection('steps', background => true) \g /dev/null
SELECT evpg_drop_projection('steps') \g /dev/null
CALL evpg_run();
SELECT is((SELECT count(*) FROM evpg.rebuild) + (SELECT count(*) FROM evpg.rebuild_part) + (SELECT count(*) FROM evpg.old_build) + (SELECT count(*) FROM evpg.projection_state), 0::bigint, 'rule 13: dropped while it is rebuilt, it leaves nothing');

-- ------------------------------------------------------------------ asynchronous ones that have stopped or parked

SELECT evpg_register_projection('list', 'test.list_apply', mode => 'async', on_error => 'park', max_attempts => 1, event_types => '{Listed}') \g /dev/null
SET test.break = 2;
SELECT add('l', 1, 'Listed'), add('l', 2, 'Listed'), add('l', 3, 'Listed') \g /dev/null
CALL evpg_run();
SELECT is(parked_of('list'), 'l 2 tried 1 I break at 2 P0001, l 3 tried 0', 'rule 10: parked');
SELECT fails($$SELECT evpg_rebuild_projection('list')$$, 'P0001 I break at 2', 'rule 13: a rebuild applies what is parked, too');
RESET test.break;
SELECT evpg_rebuild_projection('list') \g /dev/null
SELECT is(row_of('list', 'l') || parked_of('list'), '2.3 [1, 2, 3]', 'rule 13: after which it is not parked any more');
SELECT evpg_register_projection('list', 'test.list_apply', mode => 'async', max_attempts => 1, event_types => '{Listed}') \g /dev/null
SET test.break = 4;
SELECT add('l', 4, 'Listed'), add('l', 5, 'Listed') \g /dev/null
CALL evpg_run();
SELECT is((SELECT status FROM evpg.stat_consumer), 'stopped', 'rule 10: stopped');
RESET test.break;
SELECT evpg_rebuild_projection('list', background => true) \g /dev/null
CALL evpg_run();
SELECT is(row_of('list', 'l') || ' ' || (SELECT status || ' ' || attempts FROM evpg.consumer), '3.5 [1, 2, 3, 4, 5] running 0', 'rule 13: after a rebuild it runs again');
-- skipped in the rebuild
SELECT evpg_register_projection('list', 'test.list_apply', mode => 'async', on_error => 'skip', max_attempts => 1, event_types => '{Listed}') \g /dev/null
SET test.break = 2;
SELECT evpg_rebuild_projection('list', background => true) \g /dev/null
DO $$ BEGIN FOR round IN 1 .. 5 LOOP PERFORM now_due(); COMMIT; CALL evpg_run(); END LOOP; END $$;
SELECT is(row_of('list', 'l'), '4.4 [1, 3, 4, 5]', 'rule 13: with on_error skip, a rebuild in the background leaves out what fails');
SELECT is((SELECT (skip_reason, error, sqlstate)::text FROM evpg.parked_event), '("I break at 2","I break at 2",P0001)', 'rule 13: and keeps the error');
SELECT evpg_drop_projection('list') \g /dev/null

-- ------------------------------------------------------------------ refused

SELECT refused(format('SELECT evpg_rebuild_projection(%s)', arguments), error, 'rule 13: rebuild ' || arguments) FROM (VALUES
  ($$'nope'$$, 'VE007 projection "nope" is not registered'), ('NULL', '22004 projection name must not be null'), ($$'nope', background => true$$, 'VE007 projection "nope" is not registered')) x (arguments, error);
SELECT is(error_of($$SELECT evpg_cancel_rebuild('nope')$$), 'VE007 projection "nope" is not registered', 'rule 13: cancel what is not registered');
SELECT evpg_register_projection('empty', 'test.sum_apply', event_types => '{Never}') \g /dev/null
SELECT is(evpg_rebuild_projection('empty'), 0::bigint, 'rule 13: nothing to fold at all');
SELECT is(rows_of('empty'), '', 'rule 13: no rows');
SELECT evpg_rebuild_projection('empty', background => true) \g /dev/null
CALL evpg_run();
SELECT is((SELECT count(*) FROM evpg.rebuild), 0::bigint, 'rule 13: in the background too');
-- in the transaction of an appender
BEGIN;
SELECT add('own', 1, 'Never') \g /dev/null
SELECT is(evpg_rebuild_projection('empty'), 1::bigint, 'rule 13: a rebuild of an inline projection sees the events of its own transaction');
SELECT add('own', 1, 'Never') \g /dev/null
COMMIT;
SELECT is((SELECT state FROM evpg_projection('empty', 'own')), '{"sum": 0, "count": 2}', 'rule 13: once, and those after it');
SELECT evpg_register_projection('aempty', 'test.sum_apply', event_types => '{Never}', mode => 'async') \g /dev/null
BEGIN;
SELECT add('own', 1, 'Never') \g /dev/null
SELECT is(evpg_rebuild_projection('aempty'), 2::bigint, 'rule 13: one of an asynchronous projection does not');
COMMIT;
CALL evpg_run();
SELECT is((SELECT state FROM evpg_projection('aempty', 'own')), '{"sum": 0, "count": 3}', 'rule 13: its consumer sees them');
SELECT * FROM finish();
