-- async_old_snapshots.sql: no event is lost to a change of a consumer by a snapshot that is older than events (rule 9).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(5);
SET test.kind = counter;
SELECT add('first', 0) \g /dev/null

-- ------------------------------------------------------------------ a snapshot that is older than events

SELECT evpg_register_projection('old', 'test.list_apply', mode => 'async', on_error => 'park', max_attempts => 1,
  start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
CALL evpg_run();
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM evpg.stream \g /dev/null
SELECT * FROM dblink('listener', $$SELECT add('old', 1), add('old', 2)$$) x (a bigint, b bigint) \g /dev/null
SELECT alike(error_of($$SELECT
  evpg_register_projection('old', 'test.list_apply', mode => 'inline',
  start_position => (SELECT start_position FROM evpg.projection))$$), '25000 %READ COMMITTED',
  'an asynchronous projection does not become inline by a snapshot that is older than events [rule 9]');
COMMIT;
SELECT add('old', 3) \g /dev/null
CALL evpg_run();
SELECT is(row_of('old', 'old'), '1.3 [1, 2, 3]', 'no event is lost [rule 9]');
SET test.break = 4;
SELECT dblink_exec('listener', 'SET test.break = 4') \g /dev/null
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM evpg.stream \g /dev/null
SELECT * FROM dblink('listener', $$SELECT add('old', 4)$$) x (a bigint) \g /dev/null
SELECT dblink_exec('listener', 'CALL evpg_run()') \g /dev/null
RESET test.break;
SELECT alike(error_of($$SELECT evpg_replay_parked('old')$$), '25000 %READ COMMITTED',
  'a parked event is not replayed under REPEATABLE READ [rule 9]');
COMMIT;
SELECT is(parked_of('old'), 'old 4 tried 1 I break at 4 P0001',
  'a refused replay under REPEATABLE READ is no attempt [rule 9]');
SELECT is(evpg_replay_parked('old') || ' ' || row_of('old', 'old'), '1 1.4 [1, 2, 3, 4]',
  'a parked event is replayed under READ COMMITTED [rule 9]');
SELECT evpg_drop_projection('old') \g /dev/null
SELECT * FROM finish();
