-- async_retries.sql: the pauses between attempts when an error of concurrency, or an open appender, stands in the way (rules
-- 10 and 13).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(9);
SET test.kind = counter;
SELECT add('first', 0) \g /dev/null

-- ------------------------------------------------------------------ errors that need not come back, but do

SELECT evpg_set_clock_offset() \g /dev/null
CREATE FUNCTION test.never_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event.data->>'n' = '2' THEN
    RAISE EXCEPTION 'busy' USING ERRCODE = 'lock_not_available';
  END IF;
  RETURN coalesce(state, '{}') || jsonb_build_object('n', event.data->'n');
END $$;
SELECT evpg_register_projection('never', 'test.never_apply', mode => 'async', max_attempts => 2,
  start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('n', 1), add('n', 2), add('n', 3) \g /dev/null
SET statement_timeout = '120s';
CALL evpg_run(100);
SELECT is(consumer_of('never'), 'running -2 at 2 tried 0 errors 1',
  'after an error of concurrency of an event alone evpg_run() returns [rule 10]');
SELECT is((SELECT retry_at - last_error_at < '1 s' FROM evpg.consumer), true, 'it is tried again soon [rule 10]');
-- as if it had been tried at its time, several times
CREATE FUNCTION test.time_passes() RETURNS interval LANGUAGE plpgsql AS $$
DECLARE
  pause interval;
BEGIN
  SELECT retry_at - last_error_at INTO pause FROM evpg.consumer UNION ALL SELECT retry_at - last_error_at FROM evpg.rebuild;
  UPDATE evpg.consumer SET retry_at = clock_timestamp(), last_error_at = clock_timestamp() - pause;
  UPDATE evpg.rebuild SET retry_at = clock_timestamp(), last_error_at = clock_timestamp() - pause;
  RETURN date_trunc('second', pause + '500 ms');
END $$;
SELECT format('%s', c) FROM generate_series(1, 12),
  unnest(ARRAY['CALL evpg_run()', 'DO $$BEGIN PERFORM time_passes(); END$$']) WITH ORDINALITY x (c, o)
  ORDER BY generate_series, o \gexec
CALL evpg_run();
SELECT is(extract(epoch FROM time_passes())::int || ' s ' || attempts || ' ' || status, '30 s 0 running',
  'the pauses after errors that are not counted grow to half a minute [rule 10]') FROM evpg.consumer;
CREATE OR REPLACE FUNCTION test.never_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT coalesce(state, '{}') || jsonb_build_object('n', event.data->'n')
$$;
CALL evpg_run();
SELECT is(rows_of('never'), 'n: 1.3 {"n": 3}', 'until it succeeds [rule 10]');
SELECT is((SELECT retry_at FROM evpg.consumer), NULL, 'success ends the pauses [rule 10]');
RESET statement_timeout;
SELECT evpg_drop_projection('never') \g /dev/null

-- ------------------------------------------------------------------ a rebuild that cannot end for an open appender

SELECT evpg_register_projection('open', 'test.sum_apply', start_position => (SELECT last_value FROM evpg.event_position))
  \g /dev/null
SELECT add('o', 1) \g /dev/null
SELECT dblink_exec('listener', 'BEGIN') \g /dev/null
SELECT * FROM dblink('listener', $$SELECT add('o', 2)$$) x (position bigint) \g /dev/null
SELECT evpg_rebuild_projection('open', background => true) \g /dev/null
CALL evpg_run();
SELECT is((SELECT attempts || ' ' || last_error FROM evpg.progress_rebuild),
  '0 the rebuild cannot end while a transaction that has appended stays open',
  'a rebuild does not queue for the fence behind a transaction that stays open [rule 13]');
SELECT is(time_passes(), '1 s', 'it looks again a second later [rule 13]');
CALL evpg_run();
SELECT is(time_passes(), '2 s', 'a rebuild that cannot end looks again after longer pauses [rule 13]');
SELECT dblink_exec('listener', 'COMMIT') \g /dev/null
CALL evpg_run();
SELECT is(row_of('open', 'o') || (SELECT count(*) FROM evpg.rebuild), '2.2 {"sum": 3, "count": 2}0',
  'until the transaction is over [rule 13]');
SELECT evpg_drop_projection('open') \g /dev/null
SELECT * FROM finish();
