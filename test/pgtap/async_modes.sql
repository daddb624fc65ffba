-- async_modes.sql: registrations of asynchronous projections and their changes, what is refused, who may, and waiting (rules
-- 9,
-- 10, 11, 12).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(178);
SET test.kind = counter;
CREATE FUNCTION test.no_state(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT (1 / (event.position - event.position))::text::jsonb
$$;

-- ------------------------------------------------------------------ modes

SELECT add('m', 1), add('m', 2) \g /dev/null
SELECT evpg_register_projection('p', 'test.list_apply', mode => 'async') \g /dev/null
SELECT is(evpg_register_projection('p', 'test.list_apply', mode => 'async'), false,
  'the same registration again changes nothing [rule 11, A24, A46]');
CALL evpg_run();
SELECT is(row_of('p', 'm'), '1.2 [1, 2]', 'an asynchronous projection begins with the first event [rule 10, A26, B32]');
SELECT add('m', 3), add('n', 4) \g /dev/null
SELECT is(evpg_register_projection('p', 'test.list_apply'), true, 'it becomes inline [rule 11]');
SELECT is(rows_of('p'), 'm: 1.3 [1, 2, 3], n: 1.1 [4]', 'having made up for what it had not consumed [rule 11]');
SELECT is((SELECT count(*) FROM evpg.consumer), 0::bigint, 'it has no checkpoint any more [rule 11]');
SELECT add('m', 5) \g /dev/null
SELECT is(row_of('p', 'm'), '1.4 [1, 2, 3, 5]', 'from now on it is kept up by who appends [rule 11, B32]');
CALL evpg_run();
SELECT is(row_of('p', 'm'), '1.4 [1, 2, 3, 5]', 'alone [rule 11]');
SELECT is(evpg_register_projection('p', 'test.list_apply', mode => 'async'), true,
  'it becomes asynchronous again [rule 11]');
SELECT is(consumer_of('p'), 'running 0 tried 0 errors 0', 'with its checkpoint where it is [rule 10]');
SELECT add('m', 6) \g /dev/null
SELECT is(row_of('p', 'm'), '1.4 [1, 2, 3, 5]', 'who appends does not apply it [rule 10]');
CALL evpg_run();
SELECT is(row_of('p', 'm'), '1.5 [1, 2, 3, 5, 6]', 'the consumer does, once [rule 10, B58]');
-- back and forth, under load, in transactions with events of their own, rolled back or not
DO $$
BEGIN
  FOR round IN 1 .. 40 LOOP
    IF round % 3 = 0 THEN
      BEGIN
        PERFORM add('m', 1000 + round),
          evpg_register_projection('p', 'test.list_apply', mode => CASE WHEN round % 2 = 0 THEN 'async' ELSE 'inline' END),
          add('m', 2000 + round);
        RAISE EXCEPTION 'back' USING ERRCODE = 'ZZ000';
      EXCEPTION WHEN SQLSTATE 'ZZ000' THEN NULL;
      END;
    END IF;
    PERFORM add('m', 100 + round);
    PERFORM evpg_register_projection('p', 'test.list_apply', mode => CASE WHEN round % 2 = 0 THEN 'async' ELSE 'inline' END);
    PERFORM add('m', 200 + round);
    COMMIT;
    IF round % 5 = 0 THEN
      CALL evpg_run();
    END IF;
  END LOOP;
END $$;
CALL evpg_run();
SELECT is((SELECT state FROM evpg_projection('p', 'm')),
  (SELECT jsonb_agg(data->'n' ORDER BY position) FROM evpg.event WHERE aggregate_id = 'm'),
  'back and forth: every event once, in order [rules 10, 11]');
SELECT is((SELECT generation || '.' || version FROM evpg_projection('p', 'm')),
  (SELECT '1.' || count(*) FROM evpg.event WHERE aggregate_id = 'm'),
    'a projection that changes its mode back and forth counts every event once [rule 12]');
-- while paused, while stopped
SELECT evpg_register_projection('p', 'test.list_apply', mode => 'async', max_attempts => 1), evpg_pause_consumer('p'),
  add('o', 1) \g /dev/null
SELECT evpg_register_projection('p', 'test.list_apply') \g /dev/null
SELECT is(row_of('p', 'o'), '1.1 [1]', 'one that is paused becomes inline [rule 11]');
SELECT evpg_register_projection('p', 'test.list_apply', mode => 'async', max_attempts => 1), add('o', 2) \g /dev/null
SET test.break = 2;
CALL evpg_run();
SELECT is((SELECT status FROM evpg.stat_consumer WHERE name = 'p'), 'stopped', 'one that is stopped [rule 10]');
SELECT is(error_of($$SELECT evpg_register_projection('p', 'test.list_apply')$$), 'P0001 I break at 2',
  'cannot become inline without its event [rule 11]');
SELECT is((SELECT mode || ' ' || status FROM evpg.stat_consumer WHERE name = 'p'), 'async stopped',
  'a projection that cannot become inline stays asynchronous [rule 11]');
RESET test.break;
SELECT evpg_register_projection('p', 'test.list_apply') \g /dev/null
SELECT is(row_of('p', 'o'), '1.2 [1, 2]', 'with it, it can [rule 11]');
SELECT evpg_register_projection('p', 'test.list_apply', mode => 'async', on_error => 'skip', max_attempts => 1) \g /dev/null
SET test.break = 3;
SELECT add('o', 3), add('o', 4) \g /dev/null
CALL evpg_run();
RESET test.break;
SELECT is(row_of('p', 'o'), '1.3 [1, 2, 4]', 'an event is skipped [rule 10]');
SELECT evpg_register_projection('p', 'test.list_apply'), evpg_rebuild_projection('p') \g /dev/null
SELECT is((SELECT state FROM evpg_projection('p', 'o')), '[1, 2, 4]',
  'a skipped event stays skipped in a rebuild when the projection is inline [rule 13]');
-- another definition: events that were not consumed yet are applied by it
SELECT evpg_register_projection('q', 'test.list_apply', mode => 'async',
  start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('q', 1) \g /dev/null
CALL evpg_run();
SELECT add('q', 2), add('q', 3, 'Odd') \g /dev/null
SELECT evpg_register_projection('q', 'test.sum_apply', mode => 'async', event_types => '{Odd}', initial_state => '{}',
  start_position => (SELECT start_position FROM evpg.projection WHERE name = 'q')) \g /dev/null
SELECT is(consumer_of('q'), 'running -2 tried 0 errors 0', 'another definition keeps the checkpoint [rule 11]');
SELECT evpg_put_projection('q', 'q', '{"sum": 100}') \g /dev/null
CALL evpg_run();
SELECT is(row_of('q', 'q'), '1.3 {"sum": 100, "count": 1}',
  'another definition applies what comes after the checkpoint [rule 11]');
SELECT evpg_drop_projection('q'),
  evpg_register_projection('q', 'test.list_apply', mode => 'async', aggregate_types => '{none}') \g /dev/null
SELECT is((SELECT checkpoint FROM evpg.consumer WHERE name = 'q'), 0::bigint,
  'dropped and registered again, it begins again [C11]');
SELECT evpg_drop_projection('p'), evpg_drop_projection('q') \g /dev/null

-- ------------------------------------------------------------------ start_position

SELECT add('s', 1) AS one \gset
SELECT add('s', 2) AS two \gset
SELECT add('s', 3) AS three \gset
SELECT evpg_register_projection('s' || p, 'test.list_apply', mode => 'async', start_position => p)
  FROM unnest(ARRAY[:one - 1, :one, :two, :three, :three + 1000]) p \g /dev/null
CALL evpg_run();
SELECT is(string_agg(coalesce((SELECT state::text FROM evpg_projection('s' || p, 's')), '-'), ' ' ORDER BY p),
  '[1, 2, 3] [2, 3] [3] - -', 'a projection begins after start_position [rule 10]')
  FROM unnest(ARRAY[:one - 1, :one, :two, :three, :three + 1000]) p;
SELECT evpg_drop_projection('s' || p) FROM unnest(ARRAY[:one - 1, :one, :two, :three, :three + 1000]) p \g /dev/null

-- ------------------------------------------------------------------ refused

SELECT evpg_register_projection('inl', 'test.sum_apply'), evpg_register_projection('asy', 'test.sum_apply', mode => 'async')
  \g /dev/null
SELECT fails(format('SELECT evpg_register_projection(%s)', arguments), error, arguments || ' [rule 10]') FROM (VALUES
  ($$'x', 'test.sum_apply', mode => 'sometimes'$$, '22023 %mode%'),
    ($$'x', 'test.sum_apply', mode => NULL$$, '22004 mode must not be null'),
  ($$'x', 'test.sum_apply', on_error => 'panic'$$, '22023 %on_error%'),
    ($$'x', 'test.sum_apply', on_error => 'park'$$, '22023 on_error is for asynchronous projections'),
    ($$'x', 'test.sum_apply', on_error => 'skip'$$, '22023 on_error is for asynchronous projections'),
    ($$'x', 'test.sum_apply', on_error => NULL$$, '22004 on_error must not be null'),
  ($$'x', 'test.sum_apply', max_attempts => 0$$, '22023 max_attempts must be at least 1'),
    ($$'x', 'test.sum_apply', max_attempts => NULL$$, '22004 max_attempts must not be null'),
  ($$'x', 'test.sum_apply', start_position => -1$$, '22023 start_position must be at least 0'),
    ($$'x', 'test.sum_apply', version => 0$$, '22023 version must be at least 1'),
  ($$'x', 'test.sum_apply', tables => '{test.statement}'$$, '22023 only a projection with a handler has tables'),
    ($$'x', 'test.sum_apply', reset => 'test.written'$$, '22023 only a projection with a handler has tables'),
  ($$'x', handler => 'test.statement_write', reset => 'test.written', tables => '{test.statement}'$$, '_____ %'),
  ($$'x', handler => 'test.statement_write', on_error => 'skip'$$, '22023 on_error is for asynchronous projections'),
    ($$'x', handler => 'test.statement_write', initial_state => '{"a": 1}'$$,
    '22023 a projection with a handler has no state'),
  ($$'x', handler => 'test.statement_write', max_attempts => 6$$,
    '22023 max_attempts and start_position of an inline projection are for its rebuilds'),
    ($$'x', handler => 'test.statement_write', start_position => 1$$, '22023 max_attempts and start_position %'),
  ($$'x', handler => 'test.statement_write', mode => 'async', initial_state => '[]'$$,
    '22023 a projection with a handler has no state'),
  ($$'x', handler => 'test.statement_write', tables => '{test.nothing}'$$, '42P01 %'),
    ($$'x', handler => 'test.statement_write', tables => '{evpg.event}'$$,
    '42809 "evpg.event" cannot be a table of a projection'),
  ($$'x', handler => 'test.statement_write', tables => ARRAY[NULL]$$,
    '22023 tables must be a one-dimensional array without nulls'),
    ($$'x', handler => 'test.statement_write', reset => 'test.written'$$, '42P13 %cannot serve as reset function%')) x
    (arguments, error);
-- what has an effect on rebuilds in the background is taken
SELECT is(error_of(format('SELECT evpg_register_projection(''taken'', %s)', arguments)), 'no error',
  arguments || ' [rule 10]') FROM unnest(ARRAY[
  $$'test.sum_apply', max_attempts => 1, start_position => 1$$,
    $$handler => 'test.statement_write', tables => '{test.statement}', max_attempts => 1, start_position => 1$$,
  $$handler => 'test.statement_write', mode => 'async', max_attempts => 1, start_position => 1$$]) arguments;
SELECT is(error_of($$SELECT evpg_register_projection('taken', handler => 'test.statement_write', max_attempts => 1)$$),
  '22023 max_attempts and start_position of an inline projection are for its rebuilds',
  'on_error is refused for a projection that becomes inline [rule 10]');
SELECT evpg_drop_projection('taken') \g /dev/null
SELECT fails(statement, error, statement || ' [rule 10]') FROM (VALUES
  ($$SELECT evpg_pause_consumer('nope')$$, 'VE010 there is no consumer "nope"'),
    ($$SELECT evpg_resume_consumer('nope')$$, 'VE010 there is no consumer "nope"'),
  ($$SELECT evpg_skip_event('nope', 1, 'x')$$, 'VE010 there is no consumer "nope"'),
    ($$SELECT evpg_replay_parked('nope')$$, 'VE0__ %"nope"%'),
  ($$SELECT evpg_pause_consumer('inl')$$, '55000 projection "inl" is inline'),
    ($$SELECT evpg_resume_consumer('inl')$$, '55000 projection "inl" is inline'),
    ($$SELECT evpg_skip_event('inl', 1, 'x')$$, '55000 projection "inl" is inline'),
  ($$SELECT evpg_skip_event('asy', 1, '')$$, '22023 %'),
    ($$SELECT evpg_skip_event('asy', 1, NULL)$$, '22004 reason must not be null'),
    ($$SELECT evpg_skip_event('asy', NULL, 'x')$$, '22004 event_position must not be null'),
    ($$SELECT evpg_skip_event('asy', 1, repeat('x', 2000))$$, 'VE014 %'),
  ($$SELECT evpg_skip_event('asy', 999999, 'there is no such event')$$, '_____ %'),
  ($$SELECT evpg_replay_parked(NULL)$$, '22004 consumer name must not be null'),
    ($$SELECT evpg_replay_parked('asy', -1)$$, '22023 %'),
  ($$CALL evpg_run()$$, '2D000 evpg_run() commits, so it cannot be called inside a transaction block'),
    ($$CALL evpg_run(0)$$, '2D000 %')) x (statement, error);

SELECT dblink_exec('listener', 'BEGIN') \g /dev/null
SELECT is(error_of($$SELECT dblink_exec('listener', 'CALL evpg_run()')$$),
  '2D000 evpg_run() commits, so it cannot be called inside a transaction block',
  'evpg_run() in a transaction block [rule 10]');
SELECT dblink_exec('listener', 'ROLLBACK') \g /dev/null
SELECT is(error_of($$SELECT dblink_exec('listener', 'CALL evpg_run(0)')$$), '22023 max_rounds must be at least 1',
  'with no round at all [rule 10]');
SELECT add('rr', 1) \g /dev/null
SELECT dblink_exec('listener', 'SET default_transaction_isolation = ''repeatable read''') \g /dev/null
SELECT is(error_of($$SELECT dblink_exec('listener', 'CALL evpg_run()')$$),
  '25000 evpg_run() needs isolation level READ COMMITTED', 'under REPEATABLE READ [rule 9]');
SELECT dblink_exec('listener', 'SET default_transaction_isolation = ''serializable''') \g /dev/null
SELECT is(error_of($$SELECT dblink_exec('listener', 'CALL evpg_run()')$$),
  '25000 evpg_run() needs isolation level READ COMMITTED', 'under SERIALIZABLE [rule 9]');
SELECT dblink_exec('listener', 'SET default_transaction_isolation = ''read committed''') \g /dev/null
SELECT is(row_of('asy', 'rr'), NULL, 'nothing was applied [rule 9]');
SELECT dblink_exec('listener', 'CALL evpg_run(NULL)') \g /dev/null
SELECT is(row_of('asy', 'rr'), '1.1 {"sum": 1, "count": 1}', 'under READ COMMITTED it is [rule 10]');
-- user code that runs for a projection may not change projections or consumers
CREATE FUNCTION test.meddle(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE event.data->>'run';
  RETURN '{}';
END $$;
SELECT evpg_register_projection('meddler', 'test.meddle', mode => 'async', on_error => 'park', max_attempts => 1,
  event_types => '{Meddled}') \g /dev/null
SELECT add('x' || n, 1, 'Meddled', jsonb_build_object('run', run))
  FROM unnest(ARRAY[$$SELECT evpg_pause_consumer('asy')$$, $$SELECT evpg_skip_event('asy', 1000, 'x')$$,
  $$SELECT evpg_replay_parked('asy')$$,
  $$SELECT evpg_rebuild_projection('asy')$$, $$SELECT evpg_cancel_rebuild('asy')$$, $$SELECT evpg_drop_projection('asy')$$,
    $$SELECT add('y', 1)$$, $$CALL evpg_run()$$, $$COMMIT$$]) WITH ORDINALITY x (run, n) \g /dev/null
CALL evpg_run();
SELECT is((SELECT count(*) FROM evpg.parked_event WHERE name = 'meddler' AND error IS NOT NULL), 9::bigint,
  'what a projection must not do is an error of its event [rule 10]');
SELECT is((SELECT status FROM evpg.stat_consumer WHERE name = 'asy'), 'running',
  'what a projection must not do has no effect [rule 10]');
SELECT is(rows_of('meddler'), '', 'none of it [rule 10]');
SELECT evpg_drop_projection('meddler') \g /dev/null

-- ------------------------------------------------------------------ privileges

CREATE ROLE evpg_async_reader; CREATE ROLE evpg_async_writer; CREATE ROLE evpg_async_operator; CREATE ROLE evpg_async_nobody;
SELECT evpg_grant('evpg_async_reader', 'reader'), evpg_grant('evpg_async_writer', 'writer'),
  evpg_grant('evpg_async_operator', 'operator') \g /dev/null
GRANT USAGE ON SCHEMA test TO evpg_async_reader, evpg_async_writer, evpg_async_operator, evpg_async_nobody;
SELECT is(string_agg(left(as_role(role, statement), 5), ' ' ORDER BY n), expected, statement || ' [section 9]')
  FROM (VALUES ('42501 done done done', $$SELECT evpg_wait_for('inl', 1)$$),
    ('42501 done done done', $$SELECT evpg_watch_projection('inl', 'a', timeout => '0')$$),
        ('42501 done done done', 'TABLE evpg.stat_consumer'), ('42501 done done done', 'TABLE evpg.progress_rebuild'),
        ('42501 42501 42501 done', 'TABLE evpg.consumer'), ('42501 42501 42501 done', 'TABLE evpg.parked_event'),
        ('42501 42501 42501 done', $$SELECT evpg_pause_consumer('asy')$$),
          ('42501 42501 42501 done', $$SELECT evpg_resume_consumer('asy')$$),
          ('42501 42501 42501 done', $$SELECT evpg_skip_event('asy', 1, 'x')$$),
        ('42501 42501 42501 done', $$SELECT evpg_replay_parked('asy')$$),
          ('42501 42501 42501 done', $$SELECT evpg_rebuild_projection('asy')$$),
          ('42501 42501 42501 done', $$SELECT evpg_cancel_rebuild('asy')$$),
        ('42501 42501 42501 2D000', 'CALL evpg_run()'),
          ('42501 42501 42501 42501', 'UPDATE evpg.consumer SET checkpoint = 0')) x (expected, statement),
       unnest('{nobody,reader,writer,operator}'::text[]) WITH ORDINALITY r (name, n),
         LATERAL (SELECT 'evpg_async_' || name AS role) y GROUP BY expected, statement;
SELECT add('op', 1) \g /dev/null
SET ROLE evpg_async_operator;
CALL public.evpg_run();
RESET ROLE;
SELECT is(row_of('asy', 'op'), '2.1 {"sum": 1, "count": 1}', 'an operator runs projections of others [section 9]');
-- as whom
CREATE FUNCTION test.who(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('user', current_user, 'path', current_setting('search_path'))
$$;
ALTER FUNCTION test.who OWNER TO evpg_async_writer;
SELECT evpg_register_projection('who', 'test.who', mode => 'async', event_types => '{Who}') \g /dev/null
SELECT add('op', 1, 'Who') \g /dev/null
SET ROLE evpg_async_operator;
SET search_path = pg_catalog;
CALL public.evpg_run();
RESET ROLE;
SET search_path = public, test;
SELECT is((SELECT state FROM evpg_projection('who', 'op')), '{"user": "evpg_async_writer", "path": "public, test, pg_temp"}',
  'functions run as their owner, with the search_path of the registration [section 9]');
SELECT evpg_drop_projection('who') \g /dev/null

-- ------------------------------------------------------------------ evpg_wait_for

SELECT is(evpg_wait_for('inl', add('w', 1), '0'), true, 'an inline projection has applied what is appended [rule 11]');
SELECT add('w', 1) AS position \gset
SELECT is(evpg_wait_for('asy', :position, '0'), false, 'an asynchronous one has not [rule 9, D81, D82]');
SELECT is(evpg_wait_for('asy', :position, '20 ms'), false,
  'an asynchronous projection that nobody runs is not there after the timeout [rule 9, D82]');
SELECT is(evpg_wait_for('asy', 0, '0') AND evpg_wait_for('asy', -1, '0') AND evpg_wait_for('asy', :position - 2, '0'), true,
  'an asynchronous projection that was not run has come to what is before [rule 9]');
CALL evpg_run();
SELECT is(evpg_wait_for('asy', :position, '0'), true, 'now it has [rule 9, A25, A48, A49, D66, D81]');
SELECT is(evpg_wait_for('asy', :position, NULL), true, 'to wait for ever is over at once then [rule 9]');
SELECT is(evpg_wait_for('asy', :position + 1, '0'), false, 'a position that was not drawn yet [rule 9]');
SELECT is(error_of(statement), error, statement || ' [rule 9]') FROM (VALUES
  ($$SELECT evpg_wait_for('nope', 1)$$, 'VE007 projection "nope" is not registered'),
    ($$SELECT evpg_wait_for('asy', NULL)$$, '22004 min_position must not be null'),
    ($$SELECT evpg_wait_for(NULL, 1)$$, '22004 consumer name must not be null'),
  ($$SELECT evpg_wait_for('asy', 1, '-1 s')$$, '22023 timeout must not be negative'),
    ($$SELECT evpg_watch_projection('nope', 'a', timeout => '0')$$, 'VE007 projection "nope" is not registered'),
  ($$SELECT evpg_watch_projection('asy', NULL)$$, '22004 projection key must not be null'),
    ($$SELECT evpg_watch_projection('asy', 'a', timeout => '-1 s')$$, '22023 timeout must not be negative')) x
    (statement, error);
BEGIN;
SELECT add('w', 1) AS position \gset
SELECT is(error_of(format($$SELECT evpg_wait_for('asy', %s)$$, :position)),
  'VE015 cannot wait for "asy" in a transaction that has appended events',
  'who has appended would wait for itself [rule 9]');
SELECT is(evpg_wait_for('asy', :position - 1), true, 'what has come already is no wait [rule 9]');
SELECT is(evpg_wait_for('inl', :position), true, 'a wait for an inline projection that has the event is no wait [rule 9]');
ROLLBACK;
SELECT is(evpg_wait_for('inl', :position, '0'), true,
  'a position that was drawn in vain can have no event any more [rule 9]');
SELECT is(evpg_wait_for('inl', (SELECT last_value + 1 FROM evpg.event_position), '0'), false,
  'an inline projection does not have a position that was not drawn yet [rule 9]');
SELECT is(evpg_wait_for('inl', (SELECT last_value + 1 FROM evpg.event_position), '20 ms'), false,
  'a wait for a position that was drawn in vain ends before the timeout [rule 9]');
SELECT evpg_pause_consumer('asy') \g /dev/null
SELECT add('w', 1) AS position \gset
SELECT is(error_of(format($$SELECT evpg_wait_for('asy', %s)$$, :position)), '55000 cannot wait for "asy", which is paused',
  'a wait for a paused consumer ends at once [rule 9]');
SELECT is((SELECT status || ': ' || reason FROM evpg.stat_consumer WHERE name = 'asy'),
  'paused: evpg_pause_consumer() was called: evpg_resume_consumer() lets it go on',
  'its status and the reason for it [rule 10]');
SELECT is(evpg_wait_for('asy', :position, '0'), false, 'a question without a wait is answered [rule 9]');
SELECT evpg_resume_consumer('asy') \g /dev/null
CALL evpg_run();
SELECT is(evpg_wait_for('asy', :position), true, 'it goes on [rule 9]');
SELECT evpg_register_projection('halting', 'test.no_state', mode => 'async', max_attempts => 1,
  start_position => :position - 1) \g /dev/null
CALL evpg_run();
SELECT is(error_of(format($$SELECT evpg_wait_for('halting', %s)$$, :position)),
  '55000 cannot wait for "halting", which is stopped', 'a wait for a stopped consumer ends at once [rule 9]');
SELECT evpg_drop_projection('halting') \g /dev/null
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(evpg_wait_for('inl', :position, '0'), true,
  'a wait for an inline projection at an old position ends at once [rule 9]');
SELECT is(evpg_wait_for('asy', :position - 1, '0'), true, 'under REPEATABLE READ it looks at what is there now [rule 9]');
COMMIT;

-- ------------------------------------------------------------------ evpg_watch_projection

CREATE FUNCTION test.watched(name text, key text, after_version bigint DEFAULT 0, after_generation int DEFAULT NULL)
  RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT generation || '.' || version || ' ' || coalesce(state::text, '-')
    FROM evpg_watch_projection(name, key, after_version, '0', after_generation)
$$;
SELECT is(watched('inl', 'v'), NULL, 'a key that was never there [D08, D11]');
SELECT add('v', 1) AS position \gset
SELECT is(watched('inl', 'v'), '1.1 {"sum": 1, "count": 1}', 'a row that is there is there at once [D07, D11]');
SELECT is((SELECT (position, updated_at IS NOT NULL)::text FROM evpg_watch_projection('inl', 'v', 0, '0')),
  format('(%s,t)', :position), 'with its position and time [D08]');
SELECT is(watched('inl', 'v', 1), NULL, 'the version that is known is no change [D09, D11]');
SELECT is(watched('inl', 'v', 7), '1.1 {"sum": 1, "count": 1}',
  'any other is: that of an earlier generation may be higher [D09]');
SELECT is(watched('inl', 'v', 7, 1), NULL, 'unless the generation is known [rule 12, D09]');
SELECT is(watched('inl', 'v', 0, 1), '1.1 {"sum": 1, "count": 1}',
  'with a known generation, a later version is a change [rule 12]');
SELECT is(watched('inl', 'v', 99, 0), '1.1 {"sum": 1, "count": 1}',
  'with a known generation, a later generation is a change [rule 12]');
SELECT is(watched('inl', 'v', 0, 2), NULL, 'with a known generation, an earlier generation is no change [rule 12]');
SELECT add('v', 1, 'Cleared') \g /dev/null
SELECT is(watched('inl', 'v', 1), '1.2 -', 'a deletion is a change to state NULL [D08]');
SELECT is(watched('inl', 'v', 2), NULL, 'once [D08]');
SELECT add('v', 5) \g /dev/null
SELECT is(watched('inl', 'v', 2), '2.1 {"sum": 5, "count": 1}', 'a key that comes back, in the next generation [rule 12]');
SELECT is(watched('inl', 'v', 2, 1), '2.1 {"sum": 5, "count": 1}',
  'a key that comes back in the next generation has a lower version, and is a change [rule 12]');
SELECT evpg_rebuild_projection('inl', 'v') \g /dev/null
SELECT is(watched('inl', 'v', 1, 2), (SELECT generation || '.3 {"sum": 5, "count": 1}' FROM evpg_projection('inl', 'v')),
  'a rebuild is a change [rule 13]');
SELECT generation, version FROM evpg_projection('inl', 'v') \gset
SELECT evpg_rebuild_projection('inl') \g /dev/null
SELECT cmp_ok(watched('inl', 'v', :version, :generation), '>', :'generation' || '.',
  'a rebuild of all keys is a change of a key [rule 13]');
SELECT is(watched('asy', 'v'), NULL, 'of an asynchronous projection, not before [D07]');
CALL evpg_run();
SELECT is(watched('asy', 'v'), '3.1 {"sum": 5, "count": 1}', 'it has consumed the event [D07]');
SELECT is((SELECT count(*) FROM evpg_watch_projection('inl', 'v', timeout => NULL)), 1::bigint,
  'to wait for ever is over at once then [D07]');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(watched('inl', 'v', -1), (SELECT generation || '.' || version || ' ' || state FROM evpg_projection('inl', 'v')),
  'under REPEATABLE READ it looks at what is there now [D07]');
COMMIT;
BEGIN;
SELECT add('other', 1) \g /dev/null
SELECT is(watched('inl', 'v') IS NOT NULL, true, 'in a transaction that has appended, what is there is no wait [rule 9]');
SELECT is(left(error_of($$SELECT evpg_watch_projection('asy', 'v', 1, '10 ms', 3)$$), 5), 'VE015',
  'a wait that would keep every consumer waiting is refused in a transaction that has appended [rule 9]');
ROLLBACK;
SELECT is((SELECT count(*) FROM evpg.event WHERE aggregate_id = 'other'), 0::bigint,
  'a refused wait rolls back what its transaction has appended [rule 9]');
DROP OWNED BY evpg_async_reader, evpg_async_writer, evpg_async_operator, evpg_async_nobody CASCADE;
DROP ROLE evpg_async_reader, evpg_async_writer, evpg_async_operator, evpg_async_nobody;
SELECT * FROM finish();
