-- invariants.sql: the invariant of a counter, of functions or in C (test.kind).  See ../invariants.sql.

SELECT is(try('a', 'Add', '{"n": 1000}'), 'ok 1', kind() || ', B13: the invariant holds');
SELECT same($$SELECT * FROM evpg_try_execute(kind(), 'a', 'Add', '{"n": 1}')$$,
  $$VALUES ('invariant', kind(), 'a', 1::bigint, NULL::bigint, '[]'::jsonb, 'VE006', 'limit', 'total 1001 is above 1000',
  '{"total": 1001}'::jsonb, NULL::text)$$,
  kind() || ', rule 8, B13: it refuses and says why');
SELECT same($$SELECT * FROM evpg_try_execute(kind(), 'a', 'Add', '{"n": -3000}')$$,
  $$VALUES ('invariant', kind(), 'a', 1::bigint, NULL::bigint, '[]'::jsonb, 'VE006', 'invariant',
            format('command "Add" would violate the invariant of aggregate "%s"', kind()), NULL::jsonb, NULL::text)$$,
  kind() || ', rule 8, B13: it refuses without a word');
SELECT is(try('a', 'AddEach', '{"ns": [-1, 2, -1]}'), 'ok 4', kind()
  || ', B13: only the state that a command leaves counts');
SELECT trace() AS before \gset
SELECT is(try('a', 'AddEach', '{"ns": [-500, 501]}'), 'invariant 4 limit', kind()
  || ', rule 5: all events of a command are refused');
SELECT is(try('fresh', 'Add', '{"n": 1001}'), 'invariant 0 limit', kind() || ', rule 5: on a stream that is not there');
SELECT is(try('a', 'Add', '{"n": 1}', NULL, 'id'), 'invariant 4 limit', kind() || ', rule 4: under a command id');
SELECT is(trace(), :'before', kind() || ', rule 5: nothing is written or drawn');
SELECT is(total('a'), '4 1000', kind() || ', rule 6: the state is what it was');
SELECT is(try('a', 'Subtract', '{"n": 1}', NULL, 'id2'), 'ok 5', kind() || ', rule 6: and goes on');
SELECT is(try('a', 'Add', '{"n": 1}', NULL, 'id'), 'ok 6', kind() || ', rule 4: the refused one is decided anew');
SELECT refused($$SELECT evpg_execute(kind(), 'a', 'Add', '{"n": 1}')$$, 'VE006 total 1001 is above 1000', kind()
  || ', rule 8: execute raises VE006');
SELECT is(error_fields($$SELECT evpg_execute(kind(), 'a', 'Add', '{"n": 1}')$$), 'limit|{"total": 1001}|', kind()
  || ', rule 8: with code and detail');
SELECT refused($$SELECT evpg_execute(kind(), 'a', 'Add', '{"n": -3000}')$$,
  'VE006 command "Add" would violate the invariant of aggregate %',
  kind() || ', rule 8: also without a word');
SELECT refused($$SELECT evpg_execute(kind(), 'b', 'Add', '{"n": 666}')$$, 'VE009 %cannot say', kind()
  || ', rule 8: a defect of the invariant');
SELECT refused($$SELECT evpg_try_execute(kind(), 'b', 'Add', '{"n": 666}')$$, 'VE009 %cannot say', kind()
  || ', rule 8: is an error of try_execute too');
