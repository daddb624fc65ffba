-- idempotency.sql: rule 4 on a counter, of functions or in C (test.kind).  See ../idempotency.sql.

CREATE TEMP TABLE first AS SELECT * FROM evpg_execute(kind(), 'a', 'AddEach', '{"ns": [1, 2, 3]}', command_id => 'c1');
SELECT is((SELECT array_agg(command_id) FROM first), '{c1,c1,c1}', kind() || ', A41: the events carry the command id');
SELECT try('a', 'Add', '{"n": 4}') \g /dev/null

SELECT trace() AS before \gset
SELECT duplicates AS duplicates, folds AS folds, events AS events FROM evpg_session_stats() WHERE aggregate_type = kind()
  \gset
SELECT same($$SELECT * FROM evpg_execute(kind(), 'a', 'AddEach', '{"ns": [1, 2, 3]}', command_id => 'c1')$$,
  'SELECT * FROM first',
  kind() || ', rule 4, 2.4 test 2: the same id gives the same events');
SELECT same($$SELECT * FROM evpg_execute(kind(), 'a', 'AddEach', '{ "ns" : [1,2,3] }', 0, 'c1')$$, 'SELECT * FROM first',
  kind() || ', rule 4, 0.2: also with an expectation that no longer fits');
SELECT same($$SELECT * FROM evpg_execute(kind(), 'a', 'AddEach', '{"ns": [1, 2, 3]}', 77, 'c1', '{"other": 1}', 'another',
  'corr', 'cause')$$,
  'SELECT * FROM first', kind() || ', rule 4: and with another context, which is no part of the payload');
SELECT is((SELECT (status, events, sqlstate)::text
  FROM evpg_try_execute(kind(), 'a', 'AddEach', '{"ns": [1, 2, 3]}', command_id => 'c1')),
  (SELECT ('duplicate', jsonb_agg(to_jsonb(first) ORDER BY version), NULL::text)::text FROM first),
  kind() || ', rule 4: its outcome is duplicate, with the events');
SELECT is(trace(), :'before', kind() || ', rule 4, D43: nothing is written');
SELECT is((SELECT (duplicates - :duplicates, folds - :folds, events - :events)::text FROM evpg_session_stats()
  WHERE aggregate_type = kind()), '(4,0,0)',
  kind() || ', rule 4, B05: nothing is decided or folded');

-- another payload
SELECT refused($$SELECT evpg_execute(kind(), 'a', 'AddEach', '{"ns": [1, 2, 4]}', command_id => 'c1')$$,
  'VE005 command id "c1" was used for another command',
  kind() || ', rule 4, 2.4 test 2: the same id with other data');
SELECT refused($$SELECT evpg_try_execute(kind(), 'a', 'Nothing', '{"ns": [1, 2, 3]}', command_id => 'c1')$$, 'VE005 %',
  kind() || ', rule 4: the same id with another command, as an error of try_execute too');
SELECT refused($$SELECT evpg_execute(kind(), 'a', 'AddEach', NULL, command_id => 'c1')$$, 'VE005 %', kind()
  || ', rule 4: the same id without data');
SELECT refused($$SELECT evpg_append(kind(), 'a', evpg_events('{"type": "Added", "data": {"n": 1}}'), command_id => 'c1')$$,
  'VE005 %',
  kind() || ', rule 4: the id of a command, for append');

-- ids belong to streams
SELECT is(try('b', 'Add', '{"n": 5}', NULL, 'c1'), 'ok 1', kind() || ', rule 4: on another stream the id is another one');

-- what is not remembered
SELECT is(try('c', 'Subtract', '{"n": 5}', NULL, 'later'), 'rejected 0 underflow', kind() || ', rule 4, B06: refused');
SELECT is(try('c', 'Add', '{"n": 10}'), 'ok 1', kind() || ', B06: something changes');
SELECT is(try('c', 'Subtract', '{"n": 5}', NULL, 'later'), 'ok 2', kind()
  || ', rule 4, B06: a refusal is decided anew under its id');
SELECT is(try('c', 'Subtract', '{"n": 5}', NULL, 'later'), 'duplicate 2', kind() || ', B06: and then remembered');
SELECT is(try('c', 'Nothing', '{}', NULL, 'idle'), 'noop 2', kind() || ', rule 4, B09: a no-op');
SELECT is(try('c', 'Add', '{"n": 1}', NULL, 'idle'), 'ok 3', kind() || ', rule 4: is not remembered');
SELECT is(try('c', 'Add', '{"n": 1}', 0, 'stale'), 'conflict 3', kind() || ', rule 4: a conflict');
SELECT is(try('c', 'Add', '{"n": 1}', 3, 'stale'), 'ok 4', kind() || ', rule 4: is not remembered');
SELECT refused($$SELECT evpg_execute(kind(), 'c', 'Fail', command_id => 'defect')$$, 'VE009 %', kind()
  || ', rule 4: a defect');
SELECT is(try('c', 'Add', '{"n": 1}', NULL, 'defect'), 'ok 5', kind() || ', rule 4: is not remembered');

-- what rolls back
BEGIN;
SAVEPOINT before;
SELECT try('c', 'Add', '{"n": 1}', NULL, 'undone') \g /dev/null
ROLLBACK TO before;
SELECT is(try('c', 'Add', '{"n": 2}', NULL, 'undone'), 'ok 6', kind() || ', rule 4: what was rolled back is not remembered');
SELECT is(try('c', 'Add', '{"n": 2}', NULL, 'undone'), 'duplicate 6', kind()
  || ', rule 4: what was not is, in the same transaction');
COMMIT;
SELECT is(try('c', 'Add', '{"n": 2}', NULL, 'undone'), 'duplicate 6', kind() || ', rule 4: and after it');

-- append
CREATE TEMP TABLE appended AS
  SELECT * FROM evpg_append(kind(), 'd',
  evpg_events('[{"type": "Added", "data": {"n": 1}, "tags": ["t"]}, {"type": "Odd"}]'), 0, 'a1');
SELECT same($$SELECT * FROM evpg_append(kind(), 'd',
  evpg_events('[{"type": "Added", "data": {"n": 1}, "tags": ["t"]}, {"type": "Odd"}]'), 0, 'a1')$$,
  'SELECT * FROM appended', kind() || ', D43: append under a known id gives the events of the first time');
SELECT refused(format($$SELECT evpg_append(kind(), 'd', evpg_events(%L), command_id => 'a1')$$, events), 'VE005 %', kind()
  || ', rule 4: append of other events: ' || what)
  FROM (VALUES ('[{"type": "Added", "data": {"n": 1}, "tags": ["u"]}, {"type": "Odd"}]', 'tags'),
               ('[{"type": "Added", "data": {"n": 1}, "tags": ["t"], "metadata": {"m": 1}}, {"type": "Odd"}]', 'metadata'),
               ('[{"type": "Added", "data": {"n": 1}, "tags": ["t"], "schema_version": 2}, {"type": "Odd"}]',
               'schema_version'),
               ('[{"type": "Added", "data": {"n": 1}, "tags": ["t"]}]', 'fewer'), ('[]', 'none')) x (events, what);
SELECT is((SELECT count(*) FROM evpg_append(kind(), 'd', '{}', command_id => 'a2')), 0::bigint, kind()
  || ', D46: append of nothing');
SELECT is((SELECT count(*) FROM evpg_append(kind(), 'd', evpg_events('{"type": "Odd"}'), command_id => 'a2')), 1::bigint,
  kind() || ', D46: is not remembered');

-- payloads that are equal, however they are written
SELECT is(try('e', 'Add', '{"n": 1, "deep": [{"x": 100, "y": "1"}]}', NULL, 'equal'), 'ok 1', kind() || ', rule 4: a payload');
SELECT is(try('e', 'Add', written::jsonb, NULL, 'equal'), 'duplicate 1', kind() || ', rule 4: an equal one: ' || written)
  FROM (VALUES ('{"n": 1.0, "deep": [{"x": 100, "y": "1"}]}'), ('{"n": 1e0, "deep": [{"y": "1", "x": 1e2}]}'),
               ('{"n": 10e-1, "deep": [{"x": 100.000, "y": "1"}]}')) x (written);
SELECT refused(format('SELECT evpg_execute(kind(), %L, %L, %L, command_id => %L)', 'e', 'Add', written, 'equal'), 'VE005 %',
  kind() || ', rule 4: another one: ' || written)
  FROM (VALUES ('{"n": 1.01, "deep": [{"x": 100, "y": "1"}]}'), ('{"n": 1, "deep": [{"x": "100", "y": "1"}]}'),
               ('{"n": 1, "deep": {"x": 100, "y": "1"}}'), ('{"n": 1, "deep": [[{"x": 100, "y": "1"}]]}'),
               ('{"n": 1, "deep": [{"x": 100, "y": 1}]}')) x (written);
SELECT count(*) FROM evpg_append(kind(), 'e', evpg_events(
  '{"type": "Odd", "data": {"n": 1}, "metadata": {"a": [1.50]}, "tags": ["1", "2"]}'), command_id => 'equal events') \g /dev/null
SELECT is((SELECT min(version) FROM evpg_append(kind(), 'e', evpg_events(written), command_id => 'equal events')), 2::bigint, kind()
  || ', rule 4: equal events: ' || written)
  FROM (VALUES ('{"type": "Odd", "data": {"n": 1.0}, "metadata": {"a": [1.5]}, "tags": ["1", "2"]}'::jsonb)) x (written);
SELECT refused(format($$SELECT evpg_append(kind(), 'e', evpg_events(%L), command_id => 'equal events')$$, written), 'VE005 %',
  kind() || ', rule 4: other events: ' || written)
  FROM (VALUES ('{"type": "Odd", "data": {"n": 1.0}, "metadata": {"a": [1.5]}, "tags": ["1,2"]}'),
               ('{"type": "Odd", "data": {"n": 1.0}, "metadata": {"a": [1.51]}, "tags": ["1", "2"]}')) x (written);
SELECT count(*) FROM evpg_append(kind(), 'e', evpg_events('{"type": "Odd", "metadata": {}}'), command_id => 'no metadata') \g /dev/null
SELECT is((SELECT min(version) FROM evpg_append(kind(), 'e', evpg_events('{"type": "Odd"}'), command_id => 'no metadata')),
  3::bigint, kind() || ', rule 4: no metadata is written in two ways');

DROP TABLE first, appended;
