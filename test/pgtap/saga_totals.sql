-- saga_totals.sql: what evpg.stat_consumer counts of a saga: commands that were sent, and dead letters (A32, rules 16 and
-- 17).

\ir include/setup.sql
\ir include/counter.sql
\ir include/sagas.sql

SELECT plan(17);
SET test.kind = counter;
SET test.kind_of_saga = functions;
SELECT register_script('script', max_attempts => 3, backoff => '0', max_backoff => '0') \g /dev/null
CREATE FUNCTION test.totals() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT dispatched_total || ' ' || dead_lettered_total FROM evpg.stat_consumer WHERE name = saga() $$;
-- what evpg_run_sagas() has said, added up
CREATE TABLE test.told (dispatched bigint, dead_lettered bigint);
CREATE FUNCTION test.react() RETURNS void LANGUAGE sql VOLATILE AS $$ INSERT INTO told SELECT * FROM evpg_run_sagas() $$;
CREATE FUNCTION test.told() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT sum(dispatched) || ' ' || sum(dead_lettered) FROM told
$$;

SELECT is(totals(), '0 0', 'nothing was done yet [A32]');
SELECT evpg_register_projection('without code') \g /dev/null
SELECT is((SELECT dispatched_total IS NULL AND dead_lettered_total IS NULL FROM evpg.stat_consumer
  WHERE kind = 'projection'), true, 'a projection sends nothing [A32]');

-- ------------------------------------------------------------------ commands

SELECT start('t1', script(send('x1', 'Add', 1), send('x2', 'Add', 2))), start('t2', script(send('x1', 'Add', 3))),
  start('t3') \g /dev/null
SELECT react() \g /dev/null
SELECT is(totals() || ' ' || told(), '3 0 3 0', 'commands that were sent, as evpg_run_sagas() returns them [A32]');
SELECT start('t4', script(send('x1', 'Add', 1))) \g /dev/null
CALL evpg_run();
SELECT is(totals(), '4 0', 'evpg_run() counts the commands that were sent [A32]');
SELECT is((SELECT count(*) FROM evpg.saga_total), 1::bigint, 'one session needs one row [A32]');
SELECT start('t5', script(send('x1', 'Add', 1))) \g /dev/null
BEGIN;
SELECT react() \g /dev/null
SELECT is(totals(), '5 0', 'a transaction sees what it has done [A32]');
ROLLBACK;
SELECT is(totals(), '4 0', 'what was rolled back was not sent [A32]');
DO $$
BEGIN
  BEGIN
    PERFORM evpg_run_sagas();
    RAISE EXCEPTION 'no';
  EXCEPTION WHEN raise_exception THEN
  END;
  PERFORM evpg_run_sagas();
END $$;
SELECT is(totals(), '5 0', 'commands of a subtransaction that was rolled back are not counted [A32]');

-- a refusal, which the saga handles by a command of its own
SELECT start('t7', jsonb_build_object('set', jsonb_build_object('on_refusal', script(send('x3', 'Add', 1))))
  || script(send('x4', 'Subtract', 5), send('x4', 'Add', 7))) \g /dev/null
CALL evpg_run();
SELECT is(totals(), '7 0', 'a command that was refused does not count, what was sent instead does [A32]');

-- ------------------------------------------------------------------ dead letters

SELECT start('t8', script(send('x5', 'Add', 1)) || '{"set": {"on_refusal": {"unhandled": true}}}') \g /dev/null
CALL evpg_run();
SELECT tell('t8', script(send('x5', 'Add', 1), send('x6', 'Subtract', 9))) \g /dev/null
CALL evpg_run(10);
SELECT is((SELECT attempts FROM evpg.dead_letter), 3, 'a reaction is tried three times [rule 17]');
SELECT is(totals(), '8 1', 'it counts once, and what it had sent each time does not [A32]');
SELECT evpg_retry_dead_letter(dead_letter_id) FROM evpg.dead_letter \g /dev/null
SELECT is(totals(), '8 1', 'a retry that fails is no other dead letter [A32]');
SELECT try('x6', 'Add', '{"n": 9}') \g /dev/null
SELECT is((SELECT status FROM evpg.dead_letter, evpg_retry_dead_letter(dead_letter_id)) || ' ' || totals(), 'ok 10 1',
  'one that succeeds has sent its commands [A32]');
SELECT evpg_set_clock_offset('2 hours'), evpg_prune_dead_letters('1 hour'), evpg_prune_sagas('1 hour') \g /dev/null
SELECT is((SELECT count(*) FROM evpg.dead_letter) || ' ' || totals(), '0 10 1', 'pruning takes nothing off [A32]');
SELECT evpg_rebuild_saga('script') \g /dev/null
SELECT is(totals(), '10 1', 'a rebuild sends nothing [A32]');

-- an event whose key cannot be found
CREATE FUNCTION test.no_key(event evpg.event) RETURNS text LANGUAGE sql AS $$ SELECT (1 / (event.data->>'n')::int)::text $$;
SELECT evpg_register_saga('keyed', 'test.script_event', event_types => '{Added}', key_function => 'test.no_key') \g /dev/null
SELECT evpg_append('counter', 'x9', ARRAY[evpg_event('Added', '{"n": 0}'), evpg_event('Added', '{"n": 1}')]) \g /dev/null
CALL evpg_run();
SELECT is((SELECT dispatched_total || ' ' || dead_lettered_total FROM evpg.stat_consumer WHERE name = 'keyed'), '0 1',
  'a dead letter without a key counts [A32]');

SELECT evpg_drop_saga('script'), register_script('script') \g /dev/null
SELECT is(totals(), '0 0', 'a saga that is dropped and registered again begins anew [A32]');
SELECT * FROM finish();
