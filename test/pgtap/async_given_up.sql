-- async_given_up.sql: events that are skipped by hand, before or after they fail (rules 10 and 13).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(7);
SET test.kind = counter;
SELECT add('first', 0) \g /dev/null

-- ------------------------------------------------------------------ skipping an event of a consumer that is paused

SELECT evpg_register_projection('paused', 'test.list_apply', mode => 'async', max_attempts => 1,
  start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('p', 1) AS position \gset
SELECT add('p', 2) \g /dev/null
SET test.break = 1;
CALL evpg_run();
RESET test.break;
SELECT evpg_pause_consumer('paused'), evpg_skip_event('paused', :position, 'bad') \g /dev/null
SELECT is(consumer_of('paused'), 'paused -2 tried 0 errors 1',
  'a consumer that somebody has paused stays so when the event that fails is skipped [rule 10]');
CALL evpg_run();
SELECT is(rows_of('paused'), '', 'a paused consumer does nothing after a skip [rule 10]');
SELECT evpg_resume_consumer('paused') \g /dev/null
CALL evpg_run();
SELECT is(rows_of('paused'), 'p: 1.1 [2]', 'until it is resumed [rule 10]');
SELECT evpg_drop_projection('paused') \g /dev/null

-- ------------------------------------------------------------------ events that were given up long ago

SELECT evpg_register_projection('gone', 'test.list_apply', mode => 'async', on_error => 'park', max_attempts => 1,
  start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('g', 1) \g /dev/null
SELECT add('g', 2) AS second \gset
SELECT add('g', 3) \g /dev/null
SELECT add('h', 4) \g /dev/null
SELECT evpg_skip_event('gone', :second, 'no use') \g /dev/null
SET test.break = 3;
CALL evpg_run();
RESET test.break;
SELECT is(rows_of('gone'), 'g: 1.1 [1], h: 1.1 [4]',
  'an event is given up before it is read, the next one is parked [rule 10]');
SELECT is(evpg_replay_parked('gone') || ' ' || row_of('gone', 'g'), '1 1.2 [1, 3]',
  'a replay leaves alone what was given up [rule 10]');
SELECT is(evpg_rebuild_projection('gone', 'g') || ' ' || row_of('gone', 'g'), '2 2.2 [1, 3]',
  'a replay leaves alone what was given up; so does a rebuild of a key [rule 13]');
SELECT evpg_rebuild_projection('gone') \g /dev/null
SELECT is(rows_of('gone'), 'g: 3.2 [1, 3], h: 3.1 [4]', 'a rebuild of all keys leaves out what was given up [rule 13]');
SELECT evpg_drop_projection('gone') \g /dev/null
SELECT * FROM finish();
