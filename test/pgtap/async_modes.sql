-- async_modes.sql: registrations of asynchronous projections and their changes, what is refused, who may, and waiting (rules 9,
-- 10, 11, 12).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(178);
SET test.kind = counter;
CREATE FUNCTION test.no_state(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS $$ SELECT (1 / (event.position - event.position))::text::jsonb $$;

-- ------------------------------------------------------------------ modes

SELECT add('m', 1), add('m', 2) \g /dev/null
SELECT evpg_register_projection('p', 'test.list_apply', mode => 'async') \g /dev/null
SELECT is(evpg_register_projection('p', 'test.list_apply', mode => 'async'), false, 'rule 11, A24, A46: the same registration again changes nothing');
CALL evpg_run();
SELECT is(row_of('p', 'm'), '1.2 [1, 2]', 'rule 10, A26, B32: an asynchronous projection begins with the first event');
SELECT add('m', 3), add('n', 4) \g /dev/null
SELECT is(evpg_register_projection('p', 'test.list_apply'), true, 'rule 11: it becomes inline');
SELECT is(rows_of('p'), 'm: 1.3 [1, 2, 3], n: 1.1 [4]', 'rule 11: having made up for what it had not consumed');
SELECT is((SELECT count(*) FROM evpg.consumer), 0::bigint, 'rule 11: it has no checkpoint any more');
SELECT add('m', 5) \g /dev/null
SELECT is(row_of('p', 'm'), '1.4 [1, 2, 3, 5]', 'rule 11, B32: from now on it is kept up by who appends');
CALL evpg_run();
SELECT is(row_of('p', 'm'), '1.4 [1, 2, 3, 5]', 'rule 11: alone');
SELECT is(evpg_register_projection('p', 'test.list_apply', mode => 'async'), true, 'rule 11: it becomes asynchronous again');
SELECT is(consumer_of('p'), 'running 0 tried 0 errors 0', 'rule 10: with its checkpoint where it is');
SELECT add('m', 6) \g /dev/null
SELECT is(row_of('p', 'm'), '1.4 [1, 2, 3, 5]', 'rule 10: who appends does not apply it');
CALL evpg_run();
SELECT is(row_of('p', 'm'), '1.5 [1, 2, 3, 5, 6]', 'rule 10, B58: the consumer does, once');
-- back and forth, under load, in transactions with events of their own, rolled back or not
DO $$
BEGIN
  FOR round IN 1 .. 40 LOOP
    IF round % 3 = 0 THEN
      BEGIN
        PERFORM add('m', 1000 + round), evpg_register_projection('p', 'test.list_apply', mode => CASE WHEN round % 2 = 0 THEN 'async' ELSE 'inline' END), add('m', 2000 + round);
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
SELECT is((SELECT state FROM evpg_projection('p', 'm')), (SELECT jsonb_agg(data->'n' ORDER BY position) FROM evpg.event WHERE aggregate_id = 'm'), 'rules 10, 11: back and forth: every event once, in order');
SELECT is((SELECT generation || '.' || version FROM evpg_projection('p', 'm')), (SELECT '1.' || count(*) FROM evpg.event WHERE aggregate_id = 'm'), 'rule 12: and counted');
-- while paused, while stopped
SELECT evpg_register_projection('p', 'test.list_apply', mode => 'async', max_attempts => 1), evpg_pause_consumer('p'), add('o', 1) \g /dev/null
SELECT evpg_register_projection('p', 'test.list_apply') \g /dev/null
SELECT is(row_of('p', 'o'), '1.1 [1]', 'rule 11: one that is paused becomes inline');
SELECT evpg_register_projection('p', 'test.list_apply', mode => 'async', max_attempts => 1), add('o', 2) \g /dev/null
SET test.break = 2;
CALL evpg_run();
SELECT is((SELECT status FROM evpg.stat_consumer WHERE name = 'p'), 'stopped', 'rule 10: one that is stopped');
SELECT is(error_of($$SELECT evpg_register_projection('p', 'test.list_apply')$$), 'P0001 I break at 2', 'rule 11: cannot become inline without its event');
SELECT is((SELECT mode || ' ' || status FROM evpg.stat_consumer WHERE name = 'p'), 'async stopped', 'rule 11: and stays what it is');
RESET test.break;
SELECT evpg_register_projection('p', 'test.list_apply') \g /dev/null
SELECT is(row_of('p', 'o'), '1.2 [1, 2]', 'rule 11: with it, it can');
SELECT evpg_register_projection('p', 'test.list_apply', mode => 'async', on_error => 'skip', max_attempts => 1) \g /dev/null
SET test.break = 3;
SELECT add('o', 3), add('o', 4) \g /dev/null
CALL evpg_run();
RESET test.break;
SELECT is(row_of('p', 'o'), '1.3 [1, 2, 4]', 'rule 10: an event is skipped');
SELECT evpg_register_projection('p', 'test.list_apply'), evpg_rebuild_projection('p') \g /dev/null
SELECT is((SELECT state FROM evpg_projection('p', 'o')), '[1, 2, 4]', 'rule 13: and stays so in a rebuild when it is inline');
-- another definition: events that were not consumed yet are applied by it
SELECT evpg_register_projection('q', 'test.list_apply', mode => 'async', start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('q', 1) \g /dev/null
CALL evpg_run();
SELECT add('q', 2), add('q', 3, 'Odd') \g /dev/null
SELECT evpg_register_projection('q', 'test.sum_apply', mode => 'async', event_types => '{Odd}', initial_state => '{}', start_position => (SELECT start_position FROM evpg.projection WHERE name = 'q')) \g /dev/null
SELECT is(consumer_of('q'), 'running -2 tried 0 errors 0', 'rule 11: another definition keeps the checkpoint');
SELECT evpg_put_projection('q', 'q', '{"sum": 100}') \g /dev/null
CALL evpg_run();
SELECT is(row_of('q', 'q'), '1.3 {"sum": 100, "count": 1}', 'rule 11: and applies what comes after it');
SELECT evpg_drop_projection('q'), evpg_register_projection('q', 'test.list_apply', mode => 'async', aggregate_types => '{none}') \g /dev/null
SELECT is((SELECT checkpoint FROM evpg.consumer WHERE name = 'q'), 0::bigint, 'C11: dropped and registered again, it begins again');
SELECT evpg_drop_projection('p'), evpg_drop_projection('q') \g /dev/null

-- ------------------------------------------------------------------ start_position

SELECT add('s', 1) AS one \gset
SELECT add('s', 2) AS two \gset
SELECT add('s', 3) AS three \gset
SELECT evpg_register_projection('s' || p, 'test.list_apply', mode => 'async', start_position => p) FROM unnest(ARRAY[:one - 1, :one, :two, :three, :three + 1000]) p \g /dev/null
CALL evpg_run();
SELECT is(string_agg(coalesce((SELECT state::text FROM evpg_projection('s' || p, 's')), '-'), ' ' ORDER BY p), '[1, 2, 3] [2, 3] [3] - -', 'rule 10: a projection begins after start_position')
  FROM unnest(ARRAY[:one - 1, :one, :two, :three, :three + 1000]) p;
SELECT evpg_drop_projection('s' || p) FROM unnest(ARRAY[:one - 1, :one, :two, :three, :three + 1000]) p \g /dev/null

-- ------------------------------------------------------------------ refused

SELECT evpg_register_projection('inl', 'test.sum_apply'), evpg_register_projection('asy', 'test.sum_apply', mode => 'async') \g /dev/null
SELECT fails(format('SELECT evpg_register_projection(%s)', arguments), error, 'rule 10: ' || arguments) FROM (VALUES
  ($$'x', 'test.sum_apply', mode => 'sometimes'$$, '22023 %mode%'), ($$'x', 'test.sum_apply', mode => NULL$$, '22004 mode must not be null'),
  ($$'x', 'test.sum_apply', on_error => 'panic'$$, '22023 %on_error%'), ($$'x', 'test.sum_apply', on_error => 'park'$$, '22023 on_error is for asynchronous projections'), ($$'x', 'test.sum_apply', on_error => 'skip'$$, '22023 on_error is for asynchronous projections'), ($$'x', 'test.sum_apply', on_error => NULL$$, '22004 on_error must not be null'),
  ($$'x', 'test.sum_apply', max_attempts => 0$$, '22023 max_attempts must be at least 1'), ($$'x', 'test.sum_apply', max_attempts => NULL$$, '22004 max_attempts must not be null'),
  ($$'x', 'test.sum_apply', start_position => -1$$, '22023 start_position must be at least 0'), ($$'x', 'test.sum_apply', version => 0$$, '22023 version must be at least 1'),
  ($$'x', 'test.sum_apply', tables => '{test.statement}'$$, '22023 only a projection with a handler has tables'), ($$'x', 'test.sum_apply', reset => 'test.written'$$, '22023 only a projection with a handler has tables'),
  ($$'x', handler => 'test.statement_write', reset => 'test.written', tables => '{test.statement}'$$, '_____ %'),
  ($$'x', handler => 'test.statement_write', on_error => 'skip'$$, '22023 on_error is for asynchronous projections'), ($$'x', handler => 'test.statement_write', initial_state => '{"a": 1}'$$, '22023 a projection with a handler has no state'),
  ($$'x', handler => 'test.statement_write', max_attempts => 6$$, '22023 max_attempts and start_position of an inline projection are for its rebuilds'), ($$'x', handler => 'test.statement_write', start_position => 1$$, '22023 max_attempts and start_position %'),
  ($$'x', handler => 'test.statement_write', mode => 'async', initial_state => '[]'$$, '22023 a projection with a handler has no state'),
  ($$'x', handler => 'test.statement_write', tables => '{test.nothing}'$$, '42P01 %'), ($$'x', handler => 'test.statement_write', tables => '{evpg.event}'$$, '42809 "evpg.event" cannot be a table of a projection'),
  ($$'x', handler => 'test.statement_write', tables => '{NULL}'$$, '22023 tables must be a one-dimensional array without nulls'), ($$'x', handler => 'test.statement_write', reset => 'test.written'$$, '42P13 %cannot be a reset function%')) x (arguments, error);
-- what has an effect on rebuilds in the background is taken
SELECT is(error_of(format('SELECT evpg_register_projection(''taken'', %s)', arguments)), 'no error', 'rule 10: ' || arguments) FROM unnest(ARRAY[
  $$'test.sum_apply', max_attempts => 1, start_position => 1$$, $$handler => 'test.statement_write', tables => '{test.statement}', max_attempts => 1, start_position => 1$$,
  $$handler => 'test.statement_write', mode => 'async', max_attempts => 1, start_position => 1$$]) arguments;
SELECT is(error_of($$SELECT evpg_register_projection('taken', handler => 'test.statement_write', max_attempts => 1)$$), '22023 max_attempts and start_position of an inline projection are for its rebuilds', 'rule 10: also if it was asynchronous');
SELECT evpg_drop_projection('taken') \g /dev/null
SELECT fails(statement, error, 'rule 10: ' || statement) FROM (VALUES
  ($$SELECT evpg_pause_consumer('nope')$$, 'VE010 there is no consumer "nope"'), ($$SELECT evpg_resume_consumer('nope')$$, 'VE010 there is no consumer "nope"'),
  ($$SELECT evpg_skip_event('nope', 1, 'x')$$, 'VE010 there is no consumer "nope"'), ($$SELECT evpg_replay_parked('nope')$$, 'VE0__ %"nope"%'),
  ($$SELECT evpg_pause_consumer('inl')$$, '55000 projection "inl" is inline'), ($$SELECT evpg_resume_consumer('inl')$$, '55000 projection "inl" is inline'), ($$SELECT evpg_skip_event('inl', 1, 'x')$$, '55000 projection "inl" is inline'),
  ($$SELECT evpg_skip_event('asy', 1, '')$$, '22023 %'), ($$SELECT evpg_skip_event('asy', 1, NULL)$$, '22004 reason must not be null'), ($$SELECT evpg_skip_event('asy', NULL, 'x')$$, '22004 event_position must not be null'), ($$SELECT evpg_skip_event('asy', 1, repeat('x', 2000))$$, 'VE014 %'),
  ($$SELECT evpg_skip_event('asy', 999999, 'there is no such event')$$, '_____ %'),
  ($$SELECT evpg_replay_parked(NULL)$$, '22004 consumer name must not be null'), ($$SELECT evpg_replay_parked('asy', -1)$$, '22023 %'),
  ($$CALL evpg_run()$$, '2D000 evpg_run() commits, so it cannot be called inside a transaction block'), ($$CALL evpg_run(0)$$, '2D000 %')) x (statement, error);

SELECT dblink_exec('listener', 'BEGIN') \g /dev/null
SELECT is(error_of($$SELECT dblink_exec('listener', 'CALL evpg_run()')$$), '2D000 evpg_run() commits, so it cannot be called inside a transaction block', 'rule 10: evpg_run() in a transaction block');
SELECT dblink_exec('listener', 'ROLLBACK') \g /dev/null
SELECT is(error_of($$SELECT dblink_exec('listener', 'CALL evpg_run(0)')$$), '22023 max_rounds must be at least 1', 'rule 10: with no round at all');
SELECT add('rr', 1) \g /dev/null
SELECT dblink_exec('listener', 'SET default_transaction_isolation = ''repeatable read''') \g /dev/null
SELECT is(error_of($$SELECT dblink_exec('listener', 'CALL evpg_run()')$$), '25000 evpg_run() needs isolation level READ COMMITTED', 'rule 9: under REPEATABLE READ');
SELECT dblink_exec('listener', 'SET default_transaction_isolation = ''serializable''') \g /dev/null
SELECT is(error_of($$SELECT dblink_exec('listener', 'CALL evpg_run()')$$), '25000 evpg_run() needs isolation level READ COMMITTED', 'rule 9: under SERIALIZABLE');
SELECT dblink_exec('listener', 'SET default_transaction_isolation = ''read committed''') \g /dev/null
SELECT is(row_of('asy', 'rr'), NULL, 'rule 9: nothing was applied');
SELECT dblink_exec('listener', 'CALL evpg_run(NULL)') \g /dev/null
SELECT is(row_of('asy', 'rr'), '1.1 {"sum": 1, "count": 1}', 'rule 10: under READ COMMITTED it is');
-- user code that runs for a projection may not change projections or consumers
CREATE FUNCTION test.meddle(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE event.data->>'run';
  RETURN '{}';
END $$;
SELECT evpg_register_projection('meddler', 'test.meddle', mode => 'async', on_error => 'park', max_attempts => 1, event_types => '{Meddled}') \g /dev/null
SELECT add('x' || n, 1, 'Meddled', jsonb_build_object('run', run)) FROM unnest(ARRAY[$$SELECT evpg_pause_consumer('asy')$$, $$SELECT evpg_skip_event('asy', 1000, 'x')$$, $$SELECT evpg_replay_parked('asy')$$,
  $$SELECT evpg_rebuild_projection('asy')$$, $$SELECT evpg_cancel_rebuild('asy')$$, $$SELECT evpg_drop_projection('asy')$$, $$SELECT add('y', 1)$$, $$CALL evpg_run()$$, $$COMMIT$$]) WITH ORDINALITY x (run, n) \g /dev/null
CALL evpg_run();
SELECT is((SELECT count(*) FROM evpg.parked_event WHERE name = 'meddler' AND error IS NOT NULL), 9::bigint, 'rule 10: what a projection must not do is an error of its event');
SELECT is((SELECT status FROM evpg.stat_consumer WHERE name = 'asy'), 'running', 'rule 10: and has no effect');
SELECT is(rows_of('meddler'), '', 'rule 10: none of it');
SELECT evpg_drop_projection('meddler') \g /dev/null

-- ------------------------------------------------------------------ privileges

CREATE ROLE evpg_async_reader; CREATE ROLE evpg_async_writer; CREATE ROLE evpg_async_operator; CREATE ROLE evpg_async_nobody;
SELECT evpg_grant('evpg_async_reader', 'reader'), evpg_grant('evpg_async_writer', 'writer'), evpg_grant('evpg_async_operator', 'operator') \g /dev/null
GRANT USAGE ON SCHEMA test TO evpg_async_reader, evpg_async_writer, evpg_async_operator, evpg_async_nobody;
CREATE FUNCTION test.as_role(role text, statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  error text;
BEGIN
  EXECUTE format('SET LOCAL ROLE %I', role);
  error := test.error_of(statement);
  RESET ROLE;
  RETURN left(error, 5);
END $$;
SELECT is(string_agg(as_role(role, statement), ' ' ORDER BY n), expected, 'section 9: ' || statement)
  FROM (VALUES ('42501 no er no er no er', $$SELECT evpg_wait_for('inl', 1)$$), ('42501 no er no er no er', $$SELECT evpg_watch_projection('inl', 'a', timeout => '0')$$),
        ('42501 no er no er no er', 'TABLE evpg.stat_consumer'), ('42501 no er no er no er', 'TABLE evpg.progress_rebuild'),
        ('42501 42501 42501 no er', 'TABLE evpg.consumer'), ('42501 42501 42501 no er', 'TABLE evpg.parked_event'),
        ('42501 42501 42501 no er', $$SELECT evpg_pause_consumer('asy')$$), ('42501 42501 42501 no er', $$SELECT evpg_resume_consumer('asy')$$), ('42501 42501 42501 no er', $$SELECT evpg_skip_event('asy', 1, 'x')$$),
        ('42501 42501 42501 no er', $$SELECT evpg_replay_parked('asy')$$), ('42501 42501 42501 no er', $$SELECT evpg_rebuild_projection('asy')$$), ('42501 42501 42501 no er', $$SELECT evpg_cancel_rebuild('asy')$$),
        ('42501 42501 42501 2D000', 'CALL evpg_run()'), ('42501 42501 42501 42501', 'UPDATE evpg.consumer SET checkpoint = 0')) x (expected, statement),
       unnest('{nobody,reader,writer,operator}'::text[]) WITH ORDINALITY r (name, n), LATERAL (SELECT 'evpg_async_' || name AS role) y GROUP BY expected, statement;
SELECT add('op', 1) \g /dev/null
SET ROLE evpg_async_operator;
CALL public.evpg_run();
RESET ROLE;
SELECT is(row_of('asy', 'op'), '2.1 {"sum": 1, "count": 1}', 'section 9: an operator runs projections of others');
-- as whom
CREATE FUNCTION test.who(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_object('user', current_user, 'path', current_setting('search_path')) $$;
ALTER FUNCTION test.who OWNER TO evpg_async_writer;
SELECT evpg_register_projection('who', 'test.who', mode => 'async', event_types => '{Who}') \g /dev/null
SELECT add('op', 1, 'Who') \g /dev/null
SET ROLE evpg_async_operator;
SET search_path = pg_catalog;
CALL public.evpg_run();
RESET ROLE;
SET search_path = public, test;
SELECT is((SELECT state FROM evpg_projection('who', 'op')), '{"user": "evpg_async_writer", "path": "public, test, pg_temp"}', 'section 9: functions run as their owner, with the search_path of the registration');
SELECT evpg_drop_projection('who') \g /dev/null

-- ------------------------------------------------------------------ evpg_wait_for

SELECT is(evpg_wait_for('inl', add('w', 1), '0'), true, 'rule 11: an inline projection has applied what is appended');
SELECT add('w', 1) AS position \gset
SELECT is(evpg_wait_for('asy', :position, '0'), false, 'rule 9, D81, D82: an asynchronous one has not');
SELECT is(evpg_wait_for('asy', :position, '20 ms'), false, 'rule 9, D82: not in that time either');
SELECT is(evpg_wait_for('asy', 0, '0') AND evpg_wait_for('asy', -1, '0') AND evpg_wait_for('asy', :position - 2, '0'), true, 'rule 9: but it has come to what is before');
CALL evpg_run();
SELECT is(evpg_wait_for('asy', :position, '0'), true, 'rule 9, A25, A48, A49, D66, D81: now it has');
SELECT is(evpg_wait_for('asy', :position, NULL), true, 'rule 9: to wait for ever is over at once then');
SELECT is(evpg_wait_for('asy', :position + 1, '0'), false, 'rule 9: a position that was not drawn yet');
SELECT is(error_of(statement), error, 'rule 9: ' || statement) FROM (VALUES
  ($$SELECT evpg_wait_for('nope', 1)$$, 'VE007 projection "nope" is not registered'), ($$SELECT evpg_wait_for('asy', NULL)$$, '22004 min_position must not be null'), ($$SELECT evpg_wait_for(NULL, 1)$$, '22004 consumer name must not be null'),
  ($$SELECT evpg_wait_for('asy', 1, '-1 s')$$, '22023 timeout must not be negative'), ($$SELECT evpg_watch_projection('nope', 'a', timeout => '0')$$, 'VE007 projection "nope" is not registered'),
  ($$SELECT evpg_watch_projection('asy', NULL)$$, '22004 projection key must not be null'), ($$SELECT evpg_watch_projection('asy', 'a', timeout => '-1 s')$$, '22023 timeout must not be negative')) x (statement, error);
BEGIN;
SELECT add('w', 1) AS position \gset
SELECT is(error_of(format($$SELECT evpg_wait_for('asy', %s)$$, :position)), 'VE015 cannot wait for "asy" in a transaction that has appended events', 'rule 9: who has appended would wait for itself');
SELECT is(evpg_wait_for('asy', :position - 1), true, 'rule 9: what has come already is no wait');
SELECT is(evpg_wait_for('inl', :position), true, 'rule 9: nor is an inline projection');
ROLLBACK;
SELECT is(evpg_wait_for('inl', :position, '0'), true, 'rule 9: a position that was drawn in vain can have no event any more');
SELECT is(evpg_wait_for('inl', (SELECT last_value + 1 FROM evpg.event_position), '0'), false, 'rule 9: nor has an inline projection what was not drawn yet');
SELECT is(evpg_wait_for('inl', (SELECT last_value + 1 FROM evpg.event_position), '20 ms'), false, 'rule 9: not in that time either');
SELECT evpg_pause_consumer('asy') \g /dev/null
SELECT add('w', 1) AS position \gset
SELECT is(error_of(format($$SELECT evpg_wait_for('asy', %s)$$, :position)), '55000 cannot wait for "asy", which is paused', 'rule 9: a wait for a paused consumer ends at once');
SELECT is((SELECT status || ': ' || reason FROM evpg.stat_consumer WHERE name = 'asy'), 'paused: evpg_pause_consumer() was called: evpg_resume_consumer() lets it go on', 'rule 10: its status and the reason for it');
SELECT is(evpg_wait_for('asy', :position, '0'), false, 'rule 9: a question without a wait is answered');
SELECT evpg_resume_consumer('asy') \g /dev/null
CALL evpg_run();
SELECT is(evpg_wait_for('asy', :position), true, 'rule 9: it goes on');
SELECT evpg_register_projection('halting', 'test.no_state', mode => 'async', max_attempts => 1, start_position => :position - 1) \g /dev/null
CALL evpg_run();
SELECT is(error_of(format($$SELECT evpg_wait_for('halting', %s)$$, :position)), '55000 cannot wait for "halting", which is stopped', 'rule 9: a wait for a stopped consumer ends at once');
SELECT evpg_drop_projection('halting') \g /dev/null
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(evpg_wait_for('inl', :position, '0'), true, 'rule 9: an inline projection, too');
SELECT is(evpg_wait_for('asy', :position - 1, '0'), true, 'rule 9: under REPEATABLE READ it looks at what is there now');
COMMIT;

-- ------------------------------------------------------------------ evpg_watch_projection

CREATE FUNCTION test.watched(name text, key text, after_version bigint DEFAULT 0, after_generation int DEFAULT NULL) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT generation || '.' || version || ' ' || coalesce(state::text, '-') FROM evpg_watch_projection(name, key, after_version, '0', after_generation)
$$;
SELECT is(watched('inl', 'v'), NULL, 'D08, D11: a key that was never there');
SELECT add('v', 1) AS position \gset
SELECT is(watched('inl', 'v'), '1.1 {"sum": 1, "count": 1}', 'D07, D11: a row that is there is there at once');
SELECT is((SELECT (position, updated_at IS NOT NULL)::text FROM evpg_watch_projection('inl', 'v', 0, '0')), format('(%s,t)', :position), 'D08: with its position and time');
SELECT is(watched('inl', 'v', 1), NULL, 'D09, D11: the version that is known is no change');
SELECT is(watched('inl', 'v', 7), '1.1 {"sum": 1, "count": 1}', 'D09: any other is: that of an earlier generation may be higher');
SELECT is(watched('inl', 'v', 7, 1), NULL, 'rule 12, D09: unless the generation is known');
SELECT is(watched('inl', 'v', 0, 1), '1.1 {"sum": 1, "count": 1}', 'rule 12: then a later version is a change');
SELECT is(watched('inl', 'v', 99, 0), '1.1 {"sum": 1, "count": 1}', 'rule 12: and a later generation');
SELECT is(watched('inl', 'v', 0, 2), NULL, 'rule 12: not an earlier one');
SELECT add('v', 1, 'Cleared') \g /dev/null
SELECT is(watched('inl', 'v', 1), '1.2 -', 'D08: a deletion is a change to state NULL');
SELECT is(watched('inl', 'v', 2), NULL, 'D08: once');
SELECT add('v', 5) \g /dev/null
SELECT is(watched('inl', 'v', 2), '2.1 {"sum": 5, "count": 1}', 'rule 12: a key that comes back, in the next generation');
SELECT is(watched('inl', 'v', 2, 1), '2.1 {"sum": 5, "count": 1}', 'rule 12: whose version is lower');
SELECT evpg_rebuild_projection('inl', 'v') \g /dev/null
SELECT is(watched('inl', 'v', 1, 2), (SELECT generation || '.3 {"sum": 5, "count": 1}' FROM evpg_projection('inl', 'v')), 'rule 13: a rebuild is a change');
SELECT generation, version FROM evpg_projection('inl', 'v') \gset
SELECT evpg_rebuild_projection('inl') \g /dev/null
SELECT cmp_ok(watched('inl', 'v', :version, :generation), '>', :'generation' || '.', 'rule 13: so is a rebuild of all keys');
SELECT is(watched('asy', 'v'), NULL, 'D07: of an asynchronous projection, not before');
CALL evpg_run();
SELECT is(watched('asy', 'v'), '3.1 {"sum": 5, "count": 1}', 'D07: it has consumed the event');
SELECT is((SELECT count(*) FROM evpg_watch_projection('inl', 'v', timeout => NULL)), 1::bigint, 'D07: to wait for ever is over at once then');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(watched('inl', 'v', -1), (SELECT generation || '.' || version || ' ' || state FROM evpg_projection('inl', 'v')), 'D07: under REPEATABLE READ it looks at what is there now');
COMMIT;
BEGIN;
SELECT add('other', 1) \g /dev/null
SELECT is(watched('inl', 'v') IS NOT NULL, true, 'rule 9: in a transaction that has appended, what is there is no wait');
SELECT is(left(error_of($$SELECT evpg_watch_projection('asy', 'v', 1, '10 ms', 3)$$), 5), 'VE015', 'rule 9: but a wait keeps every consumer waiting, so it is refused');
ROLLBACK;
SELECT is((SELECT count(*) FROM evpg.event WHERE aggregate_id = 'other'), 0::bigint, 'rule 9: and all is rolled back');
DROP OWNED BY evpg_async_reader, evpg_async_writer, evpg_async_operator, evpg_async_nobody CASCADE;
DROP ROLE evpg_async_reader, evpg_async_writer, evpg_async_operator, evpg_async_nobody;
SELECT * FROM finish();
