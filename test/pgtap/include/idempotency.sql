-- idempotency.sql: rule 4 on a counter, of functions or in C (test.kind).  See ../idempotency.sql.

CREATE TEMP TABLE first AS SELECT * FROM evpg_execute(kind(), 'a', 'AddEach', '{"ns": [1, 2, 3]}', command_id => 'c1');
SELECT is((SELECT array_agg(command_id) FROM first), '{c1,c1,c1}',
  'the events carry the command id [A41, ' || kind() || ']');
SELECT try('a', 'Add', '{"n": 4}') \g /dev/null

SELECT trace() AS before \gset
SELECT duplicates AS duplicates, folds AS folds, events AS events FROM evpg_session_stats() WHERE aggregate_type = kind()
  \gset
SELECT same($$SELECT * FROM evpg_execute(kind(), 'a', 'AddEach', '{"ns": [1, 2, 3]}', command_id => 'c1')$$,
  'SELECT * FROM first',
  'the same id gives the same events [rule 4, 2.4 test 2, ' || kind() || ']');
SELECT same($$SELECT * FROM evpg_execute(kind(), 'a', 'AddEach', '{ "ns" : [1,2,3] }', 0, 'c1')$$, 'SELECT * FROM first',
  kind() || ', rule 4, 0.2: also with an expectation that no longer fits');
SELECT same($$SELECT * FROM evpg_execute(kind(), 'a', 'AddEach', '{"ns": [1, 2, 3]}', 77, 'c1', '{"other": 1}', 'another',
  'corr', 'cause')$$,
  'SELECT * FROM first', 'and with another context, which is no part of the payload [rule 4, ' || kind() || ']');
SELECT is((SELECT (status, events, sqlstate)::text
  FROM evpg_try_execute(kind(), 'a', 'AddEach', '{"ns": [1, 2, 3]}', command_id => 'c1')),
  (SELECT ('duplicate', jsonb_agg(to_jsonb(first) ORDER BY version), NULL::text)::text FROM first),
  'its outcome is duplicate, with the events [rule 4, ' || kind() || ']');
SELECT is(trace(), :'before', 'nothing is written [rule 4, D43, ' || kind() || ']');
SELECT is((SELECT (duplicates - :duplicates, folds - :folds, events - :events)::text FROM evpg_session_stats()
  WHERE aggregate_type = kind()), '(4,0,0)',
  'nothing is decided or folded [rule 4, B05, ' || kind() || ']');

-- another payload
SELECT refused($$SELECT evpg_execute(kind(), 'a', 'AddEach', '{"ns": [1, 2, 4]}', command_id => 'c1')$$,
  'VE005 command id "c1" was used for another command',
  'the same id with other data [rule 4, 2.4 test 2, ' || kind() || ']');
SELECT refused($$SELECT evpg_try_execute(kind(), 'a', 'Nothing', '{"ns": [1, 2, 3]}', command_id => 'c1')$$, 'VE005 %',
  'the same id with another command, as an error of try_execute too [rule 4, ' || kind() || ']');
SELECT refused($$SELECT evpg_execute(kind(), 'a', 'AddEach', NULL, command_id => 'c1')$$, 'VE005 %',
  'the same id without data [rule 4, ' || kind() || ']');
SELECT refused($$SELECT evpg_append(kind(), 'a', evpg_events('{"type": "Added", "data": {"n": 1}}'), command_id => 'c1')$$,
  'VE005 %',
  'the id of a command, for append [rule 4, ' || kind() || ']');

-- ids belong to streams
SELECT is(try('b', 'Add', '{"n": 5}', NULL, 'c1'), 'ok 1',
  'on another stream the id is another one [rule 4, ' || kind() || ']');

-- what is not remembered
SELECT is(try('c', 'Subtract', '{"n": 5}', NULL, 'later'), 'rejected 0 underflow',
  'refused [rule 4, B06, ' || kind() || ']');
SELECT is(try('c', 'Add', '{"n": 10}'), 'ok 1', 'something changes [B06, ' || kind() || ']');
SELECT is(try('c', 'Subtract', '{"n": 5}', NULL, 'later'), 'ok 2',
  'a refusal is decided anew under its id [rule 4, B06, ' || kind() || ']');
SELECT is(try('c', 'Subtract', '{"n": 5}', NULL, 'later'), 'duplicate 2', 'and then remembered [B06, ' || kind() || ']');
SELECT is(try('c', 'Nothing', '{}', NULL, 'idle'), 'noop 2', 'a no-op [rule 4, B09, ' || kind() || ']');
SELECT is(try('c', 'Add', '{"n": 1}', NULL, 'idle'), 'ok 3', 'is not remembered [rule 4, ' || kind() || ']');
SELECT is(try('c', 'Add', '{"n": 1}', 0, 'stale'), 'conflict 3', 'a conflict [rule 4, ' || kind() || ']');
SELECT is(try('c', 'Add', '{"n": 1}', 3, 'stale'), 'ok 4', 'is not remembered [rule 4, ' || kind() || ']');
SELECT refused($$SELECT evpg_execute(kind(), 'c', 'Fail', command_id => 'defect')$$, 'VE009 %',
  'a defect [rule 4, ' || kind() || ']');
SELECT is(try('c', 'Add', '{"n": 1}', NULL, 'defect'), 'ok 5', 'is not remembered [rule 4, ' || kind() || ']');

-- what rolls back
BEGIN;
SAVEPOINT before;
SELECT try('c', 'Add', '{"n": 1}', NULL, 'undone') \g /dev/null
ROLLBACK TO before;
SELECT is(try('c', 'Add', '{"n": 2}', NULL, 'undone'), 'ok 6',
  'what was rolled back is not remembered [rule 4, ' || kind() || ']');
SELECT is(try('c', 'Add', '{"n": 2}', NULL, 'undone'), 'duplicate 6',
  'what was not is, in the same transaction [rule 4, ' || kind() || ']');
COMMIT;
SELECT is(try('c', 'Add', '{"n": 2}', NULL, 'undone'), 'duplicate 6', 'and after it [rule 4, ' || kind() || ']');

-- append
CREATE TEMP TABLE appended AS
  SELECT * FROM evpg_append(kind(), 'd',
  evpg_events('[{"type": "Added", "data": {"n": 1}, "tags": ["t"]}, {"type": "Odd"}]'), 0, 'a1', '{"m": 1}', 'ann', 'corr',
  'cause');
SELECT same($$SELECT * FROM evpg_append(kind(), 'd',
  evpg_events('[{"type": "Added", "data": {"n": 1}, "tags": ["t"]}, {"type": "Odd"}]'), 0, 'a1')$$,
  'SELECT * FROM appended', 'append under a known id gives the events of the first time [D43, ' || kind() || ']');
SELECT refused(format($$SELECT evpg_append(kind(), 'd', evpg_events(%L), command_id => 'a1')$$, events), 'VE005 %',
  'append of other events: ' || what || ' [rule 4, ' || kind() || ']')
  FROM (VALUES ('[{"type": "Added", "data": {"n": 1}, "tags": ["u"]}, {"type": "Odd"}]', 'tags'),
               ('[{"type": "Added", "data": {"n": 1}, "tags": ["t"], "metadata": {"m": 1}}, {"type": "Odd"}]', 'metadata'),
               ('[{"type": "Added", "data": {"n": 1}, "tags": ["t"], "schema_version": 2}, {"type": "Odd"}]',
               'schema_version'),
               ('[{"type": "Added", "data": {"n": 1}, "tags": ["t"],
                 "event_id": "00000000-0000-7000-8000-000000000001"}, {"type": "Odd"}]', 'an event_id'),
               ('[{"type": "Added", "data": {"n": 1}, "tags": ["t"],
                 "occurred_at": "2026-01-01T00:00:00Z"}, {"type": "Odd"}]', 'occurred_at'),
               ('[{"type": "Added", "data": {"n": 1}, "tags": ["t"]}]', 'fewer'), ('[]', 'none')) x (events, what);
SELECT is((SELECT count(*) FROM evpg_append(kind(), 'd', '{}', command_id => 'a2')), 0::bigint,
  'append of nothing [D46, ' || kind() || ']');
SELECT is((SELECT count(*) FROM evpg_append(kind(), 'd', evpg_events('{"type": "Odd"}'), command_id => 'a2')), 1::bigint,
  'is not remembered [D46, ' || kind() || ']');

-- payloads that are equal, however they are written
SELECT is(try('e', 'Add', '{"n": 1, "deep": [{"x": 100, "y": "1"}]}', NULL, 'equal'), 'ok 1',
  'a payload [rule 4, ' || kind() || ']');
SELECT is(try('e', 'Add', written::jsonb, NULL, 'equal'), 'duplicate 1',
  'an equal one: ' || written || ' [rule 4, ' || kind() || ']')
  FROM (VALUES ('{"n": 1.0, "deep": [{"x": 100, "y": "1"}]}'), ('{"n": 1e0, "deep": [{"y": "1", "x": 1e2}]}'),
               ('{"n": 10e-1, "deep": [{"x": 100.000, "y": "1"}]}')) x (written);
SELECT refused(format('SELECT evpg_execute(kind(), %L, %L, %L, command_id => %L)', 'e', 'Add', written, 'equal'), 'VE005 %',
  'another one: ' || written || ' [rule 4, ' || kind() || ']')
  FROM (VALUES ('{"n": 1.01, "deep": [{"x": 100, "y": "1"}]}'), ('{"n": 1, "deep": [{"x": "100", "y": "1"}]}'),
               ('{"n": 1, "deep": {"x": 100, "y": "1"}}'), ('{"n": 1, "deep": [[{"x": 100, "y": "1"}]]}'),
               ('{"n": 1, "deep": [{"x": 100, "y": 1}]}')) x (written);
SELECT count(*) FROM evpg_append(kind(), 'e', evpg_events(
  '{"type": "Odd", "data": {"n": 1}, "metadata": {"a": [1.50]}, "tags": ["1", "2"]}'), command_id => 'equal events')
    \g /dev/null
SELECT is((SELECT min(version) FROM evpg_append(kind(), 'e', evpg_events(written), command_id => 'equal events')), 2::bigint,
  'equal events: ' || written::text || ' [rule 4, ' || kind() || ']')
  FROM (VALUES ('{"type": "Odd", "data": {"n": 1.0}, "metadata": {"a": [1.5]}, "tags": ["1", "2"]}'::jsonb)) x (written);
SELECT refused(format($$SELECT evpg_append(kind(), 'e', evpg_events(%L), command_id => 'equal events')$$, written),
  'VE005 %',
  'other events: ' || written || ' [rule 4, ' || kind() || ']')
  FROM (VALUES ('{"type": "Odd", "data": {"n": 1.0}, "metadata": {"a": [1.5]}, "tags": ["1,2"]}'),
               ('{"type": "Odd", "data": {"n": 1.0}, "metadata": {"a": [1.51]}, "tags": ["1", "2"]}')) x (written);
-- the same tokens, nested in another way
SELECT count(*) FROM (VALUES ('1'), ('[[1], 2]'), ('[{"a": 1}, {"b": 1}]')) x (data), evpg_append(kind(), 'e',
  ARRAY[evpg_event('Odd', data::jsonb)], command_id => 'nested ' || data) \g /dev/null
SELECT refused(format($$SELECT evpg_append(kind(), 'e', ARRAY[evpg_event('Odd', %L)], command_id => 'nested ' || %L)$$,
  other, data), 'VE005 %', 'other data: ' || other || ' for ' || data || ' [rule 4, ' || kind() || ']')
  FROM (VALUES ('1', '[1]'), ('[[1], 2]', '[[1, 2]]'), ('[{"a": 1}, {"b": 1}]', '[{"a": 1, "b": 1}]')) x (data, other);
SELECT count(*) FROM evpg_append(kind(), 'e', evpg_events('{"type": "Odd", "metadata": {}}'), command_id => 'no metadata')
  \g /dev/null
SELECT is((SELECT min(version) FROM evpg_append(kind(), 'e', evpg_events('{"type": "Odd"}'), command_id => 'no metadata')),
  6::bigint, 'no metadata is written in two ways [rule 4, ' || kind() || ']');

DROP TABLE first, appended;
