-- execute.sql: commands on a counter, of functions or in C (test.kind).  See ../execute.sql.

SELECT is((SELECT count(*) FROM evpg_state(kind(), 'never')), 0::bigint,
  'a stream that was never created has no state [A07, ' || kind() || ']');

-- produced events
SELECT same(
  $$SELECT version, type, data, aggregate_type, aggregate_id FROM evpg_execute(kind(), 'a', 'Add', '{"n": 1}')$$,
  $$VALUES (1::bigint, 'Added', '{"n": 1}'::jsonb, kind(), 'a')$$,
  'execute returns exactly the events it produced [A02, 1.2 test 3, ' || kind() || ']');
SELECT is((SELECT count(*) FROM evpg_execute(kind(), 'a', 'Add', '{"n": 1}') x,
                                evpg_execute(kind(), 'a', 'Add', '{"n": 1}') y), 1::bigint,
  'two commands in one statement run one after the other [A04, ' || kind() || ']');
SELECT is(total('a'), '3 3', 'three times one is three [1.2 test 1, ' || kind() || ']');
SELECT same(
  $$SELECT try('b', 'Add', '{"n": 1}') UNION ALL SELECT try('b', 'Add', '{"n": 10}')
  UNION ALL SELECT try('b', 'Subtract', '{"n": 1}')$$,
  $$VALUES ('ok 1'), ('ok 2'), ('ok 3')$$, 'a version counts events [A02, ' || kind() || ']');
SELECT is(total('b'), '3 10', '1, +10, -1 is ten [1.2 test 1, ' || kind() || ']');

-- what is stored is what was returned
CREATE TEMP TABLE returned AS SELECT * FROM evpg_execute(kind(), 'rows', 'AddEach', '{"ns": [1, 2, 3]}');
SELECT same('SELECT * FROM returned', $$SELECT * FROM evpg.event WHERE aggregate_type = kind() AND aggregate_id = 'rows'
  ORDER BY position$$,
  'the rows that execute returns are the rows of the log [rule 3, D41, ' || kind() || ']');
SELECT is((SELECT array_agg(version ORDER BY position) FROM returned), '{1,2,3}'::bigint[],
  'versions are contiguous in the order of positions [rule 3, B11, ' || kind() || ']');
SELECT is((SELECT array_agg((data->>'n')::int ORDER BY version) FROM returned), '{1,2,3}',
  'events keep their order [rule 3, ' || kind() || ']');
SELECT is((SELECT count(DISTINCT event_id) FROM returned), 3::bigint,
  'event ids are distinct [A22, 1.2 test 12, ' || kind() || ']');
SELECT is((SELECT count(DISTINCT recorded_at) FROM returned), 1::bigint,
  'the events of a command have one recorded_at [A02, ' || kind() || ']');
SELECT ok((SELECT bool_and(occurred_at = recorded_at AND recorded_at BETWEEN statement_timestamp() - interval '1 hour'
  AND clock_timestamp())
             FROM returned), 'occurred_at is recorded_at unless told [A42, ' || kind() || ']');
SELECT ok((SELECT bool_and(substr(event_id::text, 15, 1) = '7' AND substr(event_id::text, 20, 1) IN ('8', '9', 'a', 'b'))
  FROM returned),
  'event ids are UUIDs of version 7 [A22, ' || kind() || ']');
SELECT is((SELECT count(DISTINCT event_id) FROM evpg_execute(kind(), 'same', 'AddEach', '{"ns": [1, 1]}')), 2::bigint,
  'equal events have different ids [A22, ' || kind() || ']');
SELECT is((SELECT (first_version, last_version) FROM (SELECT min(version) AS first_version, max(version) AS last_version
             FROM evpg_execute(kind(), 'rows', 'AddEach', '{"ns": [4, 5]}')) x), (4::bigint, 5::bigint),
  'n events advance the version by n [A41, 2.4 test 16, ' || kind() || ']');
DROP TABLE returned;

-- the outcome of a success
CREATE TEMP TABLE outcome AS SELECT * FROM evpg_try_execute(kind(), 'outcome', 'AddEach', '{"ns": [1, 2]}');
SELECT same('SELECT status, aggregate_type, aggregate_id, version, sqlstate, code, message, detail, hint FROM outcome',
  $$VALUES ('ok', kind(), 'outcome', 2::bigint, NULL::text, NULL::text, NULL::text, NULL::jsonb, NULL::text)$$,
  'the outcome of a success [A41, D88, ' || kind() || ']');
SELECT is((SELECT last_position FROM outcome), (SELECT max(position) FROM evpg.event),
  'last_position is that of the last event [A41, ' || kind() || ']');
SELECT is((SELECT jsonb_agg(to_jsonb(e) ORDER BY position) FROM evpg.event e WHERE aggregate_type = kind() AND aggregate_id
  = 'outcome'),
  (SELECT events FROM outcome), 'events of the outcome are the rows of the log as JSON [A41, ' || kind() || ']');
DROP TABLE outcome;

-- refusals
SELECT refused($$SELECT evpg_execute(kind(), 'b', 'Subtract', '{"n": 100}')$$, 'VE002 total 10 is less than 100',
  'a refusal [rule 5, B08, 1.2 test 2, ' || kind() || ']');
SELECT is(error_fields($$SELECT evpg_execute(kind(), 'b', 'Subtract', '{"n": 100}')$$), 'underflow|{"total": 10}|',
  'a refusal has its code in CONSTRAINT and its facts in DETAIL [B08, ' || kind() || ']');
SELECT trace() AS before \gset
SELECT same(
  $$SELECT * FROM evpg_try_execute(kind(), 'b', 'Subtract', '{"n": 100}')$$,
  $$VALUES ('rejected', kind(), 'b', 3::bigint, NULL::bigint, '[]'::jsonb, 'VE002', 'underflow', 'total 10 is less than 100',
  '{"total": 10}'::jsonb, NULL::text)$$,
  'the outcome of a refusal [B08, ' || kind() || ']');
SELECT is(try('fresh', 'Subtract', '{"n": 1}'), 'rejected 0 underflow',
  'refused on a stream that is not there [rule 5, ' || kind() || ']');
SELECT is(try('fresh', 'AddAndRefuse', '{"n": 1}'), 'rejected 0 changed_mind',
  'events before a refusal are dropped, the first refusal counts [rule 5, ' || kind() || ']');
SELECT is(try('b', 'AddAndRefuse', '{"n": 1}'), 'rejected 3 changed_mind',
  'on a stream that is there too [rule 5, ' || kind() || ']');
SELECT is(trace(), :'before', 'a refusal as an outcome writes nothing and draws no position [rule 5, ' || kind() || ']');
SELECT is(total('b'), '3 10', 'nor does it change the state [rule 5, ' || kind() || ']');
SELECT is(try('b', 'Subtract', '{"n": 10}'), 'ok 4', 'it is decided anew the next time [rule 4, ' || kind() || ']');

-- 2.4 test 1
SELECT same($$SELECT try('c', t, d) FROM (VALUES ('Add', '{"n": 5}'::jsonb), ('Add', '{"n": 10}'),
  ('Subtract', '{"n": 100}'), ('Subtract', '{"n": 3}')) c (t, d)$$,
  $$VALUES ('ok 1'), ('ok 2'), ('rejected 2 underflow'), ('ok 3')$$, '5, +10, -100, -3 [2.4 test 1, ' || kind() || ']');
SELECT is((SELECT state FROM evpg_state(kind(), 'c')), '{"total": 12, "applied": 3}',
  'is 12 by three events [2.4 test 1, ' || kind() || ']');

-- no-ops
SELECT trace() AS before \gset
SELECT is((SELECT count(*) FROM evpg_execute(kind(), 'c', 'Nothing')), 0::bigint,
  'a no-op returns no events [A03, B09, ' || kind() || ']');
SELECT is((SELECT count(*) FROM evpg_execute(kind(), 'none', 'Nothing')), 0::bigint,
  'nor on a stream that is not there [A03, ' || kind() || ']');
SELECT same($$SELECT * FROM evpg_try_execute(kind(), 'c', 'Nothing')$$,
  $$VALUES ('noop', kind(), 'c', 3::bigint, NULL::bigint, '[]'::jsonb, NULL::text, NULL::text, NULL::text, NULL::jsonb,
  NULL::text)$$,
  'the outcome of a no-op [A03, ' || kind() || ']');
SELECT is(trace(), :'before', 'a no-op leaves nothing [rule 5, A03, 2.4 test 16, ' || kind() || ']');

-- defects
SELECT refused($$SELECT evpg_execute(kind(), 'c', 'Fail')$$, 'VE009 %broken by "Fail"',
  'a defect is an error of execute [rule 8, ' || kind() || ']');
SELECT refused($$SELECT evpg_try_execute(kind(), 'c', 'Fail')$$, 'VE009 %broken by "Fail"',
  'and of try_execute too [rule 8, ' || kind() || ']');
SELECT refused($$SELECT evpg_execute(kind(), 'c', 'Juggle')$$, 'VE018 %"Juggle"%',
  'an unknown command [A36, 1.2 test 10, ' || kind() || ']');
SELECT refused($$SELECT evpg_execute('nothing like it', 'c', 'Add')$$,
  'VE003 aggregate type "nothing like it" is not registered',
  'an unknown aggregate type [A36, ' || kind() || ']');
SELECT is(total('c'), '3 12', 'the state is what it was [rule 5, ' || kind() || ']');

-- events of any shape
SELECT same($$SELECT type, data, metadata, tags, schema_version FROM evpg_execute(kind(), 'shapes', 'Emit',
    '{"events": [{"type": "Plain", "data": null},
                 {"type": "Tagged", "data": [1], "tags": ["x", "y"], "metadata": {"m": 1}, "schema_version": 3},
                 {"type": "Scalar", "data": "text"}, {"type": "Empty", "data": {}}]}')$$,
  $$VALUES ('Plain', NULL::jsonb, NULL::jsonb, NULL::text[], 1), ('Tagged', '[1]', '{"m": 1}', '{x,y}', 3),
           ('Scalar', '"text"', NULL, NULL, 1), ('Empty', '{}', NULL, NULL, 1)$$,
  'events with and without data, tags, metadata, schema_version [A22, B10, ' || kind() || ']');
SELECT is((SELECT state FROM evpg_state(kind(), 'shapes')), '{"total": 0, "applied": 0}',
  'events that the reducer does not know fold to the same state [rule 8, A23, ' || kind() || ']');
SELECT is(try('shapes', 'Add', '{"n": 2}'), 'ok 5', 'and count as versions [rule 8, ' || kind() || ']');

-- many commands
SELECT is((SELECT count(*) FROM generate_series(1, 200) i,
  evpg_execute(kind(), 'many', 'Add', jsonb_build_object('n', i % 3))), 200::bigint,
  'two hundred commands in one statement [A04, ' || kind() || ']');
SELECT is((SELECT array_agg(version ORDER BY position) FROM evpg.event WHERE aggregate_type = kind() AND aggregate_id
  = 'many'),
  (SELECT array_agg(n::bigint) FROM generate_series(1, 200) n),
    'positions and versions have one order [rule 3, ' || kind() || ']');
SELECT is(total('many'), '200 201', 'and the state is right [rule 6, ' || kind() || ']');
SELECT is((SELECT array_agg(total(id) ORDER BY id) FROM (VALUES ('a'), ('b'), ('c')) x (id)), '{3 3,4 0,3 12}',
  'ids are apart [1.2 test 7, ' || kind() || ']');
