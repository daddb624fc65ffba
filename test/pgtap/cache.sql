-- cache.sql: the backend's cache of states is always right (rule 6).

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(112);

-- How often this transaction has read the event log, by index or in full.
CREATE FUNCTION test.reads() RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT seq_scan + idx_scan FROM pg_stat_xact_user_tables WHERE relid = 'evpg.event_log'::regclass $$;
BEGIN;
SELECT reads() AS reads \gset
SELECT count(*) FROM evpg_append('counter', 'x', evpg_events('{"type": "Odd"}')) \g /dev/null
SELECT count(*) FROM evpg_read_stream('counter', 'x') \g /dev/null
SELECT is(reads() - :reads, 2::bigint,
  'reading a stream is a probe for its newest event and a scan, creating it neither [rule 6]');
ROLLBACK;

SET test.kind = counter;
\ir include/cache.sql
SET test.kind = counter_c;
\ir include/cache.sql

-- the extension made anew, as by a restore: the same numbers of streams, positions and registrations mean other events
SET test.kind = counter_c;
SELECT is(total('warm'), '16 61', 'a state is in the cache [rule 6]');
SELECT stream_id AS old_id, last_position AS old_position, generation AS old_generation FROM evpg.stream_head
  JOIN evpg.aggregate_type USING (aggregate_type) WHERE aggregate_type = 'counter_c' AND aggregate_id = 'warm' \gset
SET client_min_messages = error;
DROP EXTENSION evpg CASCADE;
CREATE EXTENSION evpg;
RESET client_min_messages;
SELECT evpg_register_aggregate('counter_c', library => 'evpg_test', symbol => 'counter') \g /dev/null
UPDATE evpg.aggregate_type SET generation = :old_generation;
SELECT setval('evpg.stream_stream_id_seq', :old_id, false), setval('evpg.event_position', :old_position - 15, false)
  \g /dev/null
SELECT count(*) FROM evpg_append('counter_c', 'other',
  (SELECT array_agg(evpg_event('Added', jsonb_build_object('n', n)) ORDER BY n) FROM generate_series(1, 16) n)) \g /dev/null
SELECT is((SELECT (stream_id, version, last_position)::text FROM evpg.stream_head),
  format('(%s,16,%s)', :old_id, :old_position),
  'the same stream number, version and position [rule 6]');
SELECT is((SELECT state->>'total' FROM evpg_state('counter_c', 'other')), '136',
  'another extension, another cache [rule 6]');
SELECT * FROM finish();
