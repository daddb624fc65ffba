-- idempotency.sql: command ids (rule 4).

\ir include/setup.sql
\ir include/counter.sql

-- across sessions
CREATE TABLE before AS SELECT * FROM evpg_execute('counter_c', 'session', 'Add', '{"n": 1}', command_id => 'c1');
\connect -
SET search_path = public, test;
SELECT plan(138);
SELECT same($$SELECT * FROM evpg_execute('counter_c', 'session', 'Add', '{"n": 1}', command_id => 'c1')$$,
  'SELECT * FROM before',
  'rule 4: another session gets the events of the first one');
SELECT is((SELECT (duplicates, cache_hits, folds)::text FROM evpg_session_stats() WHERE aggregate_type = 'counter_c'),
  '(1,0,0)',
  'rule 4: without loading the state');

SET test.kind = counter;
\ir include/idempotency.sql
SET test.kind = counter_c;
\ir include/idempotency.sql

SELECT is((SELECT count(*) FROM evpg.command_record r
  WHERE (SELECT count(*) FROM evpg.event_log e WHERE e.stream_id = r.stream_id
             AND e.version BETWEEN r.first_version AND r.last_version AND e.command_id = r.command_id)
             <> r.last_version - r.first_version + 1),
  0::bigint, 'rule 4: records and events agree');

-- ids made of what an operation is about
SELECT is(evpg_operation_key('transfer', '17', 'alice'), evpg_operation_key('transfer', '17', 'alice'),
  'D44: the same parts give the same key');
SELECT is((SELECT count(DISTINCT key) FROM unnest(ARRAY[evpg_operation_key('d', 'ab', 'c'), evpg_operation_key('d', 'a',
  'bc'), evpg_operation_key('d', 'abc'), evpg_operation_key('d', 'ab', 'c', ''),
    evpg_operation_key('da', 'b', 'c'), evpg_operation_key('d', 'c', 'ab'), evpg_operation_key('d', 'ab","c'),
    evpg_operation_key('ab', 'd', 'c'), evpg_operation_key('d', 'Ab', 'c')]) key), 9::bigint,
    'D44: other parts, order or borders give others');
SELECT is((SELECT status FROM evpg_try_execute('counter', 'key', 'Add', '{"n": 1}', NULL,
  evpg_operation_key('d', repeat('x', 100000)))), 'ok', 'D44: a key is a good command id');

-- forgetting ids
SELECT refused($$SELECT evpg_prune_commands('-1 second')$$, '22023 older_than must not be negative',
  'D45: pruning the future');
SELECT is(evpg_prune_commands('1 hour'), 0::bigint, 'D45: younger records stay');
SELECT is(try('a', 'AddEach', '{"ns": [1, 2, 3]}', NULL, 'c1'), 'duplicate 3',
  'D45, rule 4: and are known, with the version of the first time');
SELECT count(*) AS records FROM evpg.command_record \gset
SELECT is(evpg_prune_commands('0'), :records::bigint, 'D45: all of them');
SELECT is(try('a', 'AddEach', '{"ns": [1, 2, 3]}', NULL, 'c1'), 'ok 7', 'D45: a pruned id is a new one');
SELECT * FROM finish();
