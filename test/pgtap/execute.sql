-- execute.sql: a command is decided, and its events are appended (rules 3, 5, 8).

\ir include/setup.sql
\ir include/counter.sql
-- JSON has the times of events in UTC
SET timezone = 'UTC';

SELECT plan(103);

SET test.kind = counter;
\ir include/execute.sql
SET test.kind = counter_c;
\ir include/execute.sql

-- both
SELECT same(
  $$SELECT aggregate_id, version, type, data, tags, schema_version FROM evpg.event WHERE aggregate_type = 'counter'
  ORDER BY position$$,
  $$SELECT aggregate_id, version, type, data, tags, schema_version FROM evpg.event WHERE aggregate_type = 'counter_c'
  ORDER BY position$$,
  'functions and C decide the same events [A01]');
SELECT is((SELECT array_agg(aggregate_id) FROM evpg_streams('counter')),
  (SELECT array_agg(aggregate_id) FROM evpg_streams('counter_c')),
  'two aggregate types coexist, with the same ids [1.2 test 7]');
SELECT is((SELECT count(*) FROM evpg.stream_head s WHERE s.version
  <> (SELECT count(*) FROM evpg.event_log l WHERE l.stream_id = s.stream_id)
              OR s.last_position <> (SELECT max(position) FROM evpg.event_log l WHERE l.stream_id = s.stream_id)), 0::bigint,
  'evpg.stream_head shows how many events a stream has, and the position of the last [rule 3]');
SELECT * FROM finish();
