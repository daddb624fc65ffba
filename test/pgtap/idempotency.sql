-- idempotency.sql: command ids (rule 4).

\ir include/setup.sql
\ir include/counter.sql

-- across sessions
CREATE TABLE before AS SELECT * FROM evpg_execute('counter_c', 'session', 'Add', '{"n": 1}', command_id => 'c1');
\connect -
-- JSON has the times of events in UTC
SET timezone = 'UTC';
SET search_path = public, test;
SELECT plan(159);
SELECT same($$SELECT * FROM evpg_execute('counter_c', 'session', 'Add', '{"n": 1}', command_id => 'c1')$$,
  'SELECT * FROM before',
  'another session gets the events of the first one [rule 4]');
SELECT is((SELECT (duplicates, cache_hits, folds)::text FROM evpg_session_stats() WHERE aggregate_type = 'counter_c'),
  '(1,0,0)',
  'without loading the state [rule 4]');

SET test.kind = counter;
\ir include/idempotency.sql
SET test.kind = counter_c;
\ir include/idempotency.sql

SELECT is((SELECT count(*) FROM evpg.command_record r
  WHERE (SELECT count(*) FROM evpg.event_log e WHERE e.stream_id = r.stream_id
             AND e.version BETWEEN r.first_version AND r.last_version AND e.command_id = r.command_id)
             <> r.last_version - r.first_version + 1),
  0::bigint, 'records and events agree [rule 4]');

-- ids made of what an operation is about
SELECT is(evpg_operation_key('transfer', '17', 'alice'), evpg_operation_key('transfer', '17', 'alice'),
  'the same parts give the same key [D44]');
SELECT is((SELECT count(DISTINCT key) FROM unnest(ARRAY[evpg_operation_key('d', 'ab', 'c'), evpg_operation_key('d', 'a',
  'bc'), evpg_operation_key('d', 'abc'), evpg_operation_key('d', 'ab', 'c', ''),
    evpg_operation_key('da', 'b', 'c'), evpg_operation_key('d', 'c', 'ab'), evpg_operation_key('d', 'ab","c'),
    evpg_operation_key('ab', 'd', 'c'), evpg_operation_key('d', 'Ab', 'c')]) key), 9::bigint,
    'other parts, order or borders give others [D44]');
SELECT is((SELECT status FROM evpg_try_execute('counter', 'key', 'Add', '{"n": 1}', NULL,
  evpg_operation_key('d', repeat('x', 100000)))), 'ok', 'a key is a good command id [D44]');

-- forgetting ids
SELECT refused($$SELECT evpg_prune_commands('-1 second')$$, '22023 older_than must not be negative',
  'pruning the future [D45]');
SELECT is(evpg_prune_commands('1 hour'), 0::bigint, 'younger records stay [D45]');
SELECT is(try('a', 'AddEach', '{"ns": [1, 2, 3]}', NULL, 'c1'), 'duplicate 3',
  'younger command ids are known, with the version of the first time [D45, rule 4]');
SELECT count(*) AS records FROM evpg.command_record \gset
SELECT is(evpg_prune_commands('0'), :records::bigint, 'all of them [D45]');
SELECT is(try('a', 'AddEach', '{"ns": [1, 2, 3]}', NULL, 'c1'), 'ok 7', 'a pruned id is a new one [D45]');
-- events of one command that differ in their causes
CREATE FUNCTION test.append_caused() RETURNS SETOF evpg.event LANGUAGE sql VOLATILE AS $$
  SELECT * FROM evpg_append('counter', 'caused',
    ARRAY[evpg_event('One'), evpg_event('Two', caused_by => 1), evpg_event('Three', caused_by => 2)],
    command_id => 'caused', causation_id => '00000000-0000-0000-0000-000000000000')
$$;
CREATE TABLE caused AS SELECT * FROM append_caused();
SELECT same('SELECT * FROM append_caused()', 'SELECT * FROM caused',
  'a command id that is sent again returns each event with its own cause [rule 4]');
SELECT * FROM finish();
