-- idempotency.sql: command ids (rule 4).

\ir include/setup.sql
\ir include/counter.sql

-- across sessions
CREATE TABLE before AS SELECT * FROM evpg_execute('counter_c', 'session', 'Add', '{"n": 1}', command_id => 'c1');
\connect -
SET search_path = public, test;
SELECT plan(1);
SELECT same($$SELECT * FROM evpg_execute('counter_c', 'session', 'Add', '{"n": 1}', command_id => 'c1')$$, 'SELECT * FROM before',
  'rule 4: another session gets the events of the first one');
SELECT is((SELECT (duplicates, cache_hits, folds)::text FROM evpg_session_stats() WHERE aggregate_type = 'counter_c'), '(1,0,0)',
  'rule 4: without loading the state');

SET test.kind = counter;
\ir include/idempotency.sql
SET test.kind = counter_c;
\ir include/idempotency.sql

SELECT is((SELECT count(*) FROM evpg.command_record r WHERE (SELECT count(*) FROM evpg.event_log e WHERE e.stream_id = r.stream_id
             AND e.version BETWEEN r.first_version AND r.last_version AND e.command_id = r.command_id) <> r.last_version - r.first_version + 1),
  0::bigint, 'rule 4: records and events agree');
SELECT * FROM finish();
