-- expected_version.sql: rule 2 on a counter, of functions or in C (test.kind).  See ../expected_version.sql.

-- 2.4 test 3
SELECT same($$SELECT try('a', 'Add', '{"n": 1}', v) FROM (VALUES (0), (0), (1), (NULL)) x (v)$$,
  $$VALUES ('ok 1'), ('conflict 1'), ('ok 2'), ('ok 3')$$,
  'expecting 0, 0 again, 1, and anything [rule 2, B07, 2.4 test 3, ' || kind() || ']');

-- every form, on every kind of stream
SELECT evpg_create_stream(kind(), 'empty') \g /dev/null
SELECT trace() AS before \gset
SELECT same($$SELECT v, try('never', 'Nothing', '{}', v), try('empty', 'Nothing', '{}', v), try('a', 'Nothing', '{}', v)
                FROM (VALUES (NULL), (-1), (0), (1), (2), (3), (4), (9223372036854775807)) x (v)$$,
  $$VALUES (NULL, 'noop 0', 'noop 0', 'noop 3'),
           (-1, 'conflict 0', 'noop 0', 'noop 3'),
           (0, 'noop 0', 'noop 0', 'conflict 3'),
           (1, 'conflict 0', 'conflict 0', 'conflict 3'),
           (2, 'conflict 0', 'conflict 0', 'conflict 3'),
           (3, 'conflict 0', 'conflict 0', 'noop 3'),
           (4, 'conflict 0', 'conflict 0', 'conflict 3'),
           (9223372036854775807, 'conflict 0', 'conflict 0', 'conflict 3')$$,
  'every expectation on a stream that is not there, is empty, has three events [rule 2, A40, ' || kind() || ']');
SELECT is(trace(), :'before', 'conflicts leave nothing [rule 5, ' || kind() || ']');

-- what a conflict says
SELECT same($$SELECT * FROM evpg_try_execute(kind(), 'a', 'Add', '{}', 1)$$,
  $$VALUES ('conflict', kind(), 'a', 3::bigint, NULL::bigint, '[]'::jsonb, 'VE001', NULL::text,
            format('version conflict on aggregate "%s", stream "a": expected 1, actual 3', kind()),
            jsonb_build_object('aggregate_type', kind(), 'aggregate_id', 'a', 'expected', 1, 'actual', 3),
            'Read the stream and decide again, or leave expected_version out.')$$,
  'the outcome of a conflict has both versions [rule 2, ' || kind() || ']');
SELECT refused($$SELECT evpg_execute(kind(), 'a', 'Add', '{}', 1)$$,
  'VE001 version conflict on aggregate "' || kind() || '", stream "a": expected 1, actual 3',
    'a conflict is VE001 [rule 2, 4.6 test 7, ' || kind() || ']');
SELECT is((split_part(error_fields($$SELECT evpg_execute(kind(), 'a', 'Add', '{}', 1)$$), '|', 2))::jsonb,
  jsonb_build_object('aggregate_type', kind(), 'aggregate_id', 'a', 'expected', 1, 'actual', 3),
  'its DETAIL is JSON with both versions [rule 2, ' || kind() || ']');
SELECT refused($$SELECT evpg_execute(kind(), 'never', 'Add', '{}', -1)$$, 'VE001 %expected it to exist',
  '-1 on a stream that is not there [rule 2, ' || kind() || ']');
SELECT is(try(E'qu"ote\\', 'Add', '{}', 1), 'conflict 0', 'an id that needs quoting in JSON [rule 2, ' || kind() || ']');

-- order of checks (rule 1)
SELECT is(try('a', 'Subtract', '{"n": 1000}', 1), 'conflict 3',
  'the version is checked before the handler decides [rule 1, ' || kind() || ']');
SELECT is(try('a', 'Fail', '{}', 1), 'conflict 3', 'so a defect of the handler does not show [rule 1, ' || kind() || ']');

-- out of range
SELECT refused(format($$SELECT evpg_execute(kind(), 'a', 'Add', '{}', %s)$$, v), '22023 expected_version ' || v
  || ' is out of range',
  'expected_version ' || v || ' [rule 2, ' || kind() || ']') FROM (VALUES ('-2'), ('-9223372036854775808')) x (v);
SELECT refused($$SELECT evpg_execute(kind(), 'a', 'Add', '{}', 9223372036854775808)$$, '42883 %',
  'expected_version beyond bigint [rule 2, ' || kind() || ']');
SELECT refused($$SELECT evpg_append(kind(), 'a', evpg_events('{"type": "Added"}'), -2)$$,
  '22023 expected_version -2 is out of range',
  'of append [rule 2, ' || kind() || ']');

-- append
SELECT refused($$SELECT evpg_append(kind(), 'a', evpg_events('{"type": "Added", "data": {"n": 1}}'), 2)$$,
  'VE001 %expected 2, actual 3',
  'append checks it too [D42, ' || kind() || ']');
SELECT is((SELECT max(version) FROM evpg_append(kind(), 'a', evpg_events('{"type": "Added", "data": {"n": 1}}'), 3)),
  4::bigint,
  'and appends where it fits [D42, ' || kind() || ']');
SELECT refused($$SELECT evpg_append(kind(), 'a', '{}', 3)$$, 'VE001 %expected 3, actual 4',
  'no events with a stale expectation [D42, ' || kind() || ']');
SELECT is(try('empty', 'Add', '{"n": 1}', -1), 'ok 1',
  '-1 fits a stream that is created and empty [rule 2, ' || kind() || ']');
