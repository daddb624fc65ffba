-- invariants.sql: the invariant of a counter, of functions or in C (test.kind).  See ../invariants.sql.

SELECT is(try('a', 'Add', '{"n": 1000}'), 'ok 1', 'the invariant holds [B13, ' || kind() || ']');
SELECT same($$SELECT * FROM evpg_try_execute(kind(), 'a', 'Add', '{"n": 1}')$$,
  $$VALUES ('invariant', kind(), 'a', 1::bigint, NULL::bigint, '[]'::jsonb, 'VE006', 'limit', 'total 1001 is above 1000',
  '{"total": 1001}'::jsonb, NULL::text)$$,
  'it refuses and says why [rule 8, B13, ' || kind() || ']');
SELECT same($$SELECT * FROM evpg_try_execute(kind(), 'a', 'Add', '{"n": -3000}')$$,
  $$VALUES ('invariant', kind(), 'a', 1::bigint, NULL::bigint, '[]'::jsonb, 'VE006', 'invariant',
            format('command "Add" would violate the invariant of aggregate "%s"', kind()), NULL::jsonb, NULL::text)$$,
  'it refuses without a word [rule 8, B13, ' || kind() || ']');
SELECT is(try('a', 'AddEach', '{"ns": [-1, 2, -1]}'), 'ok 4',
  'only the state that a command leaves counts [B13, ' || kind() || ']');
SELECT trace() AS before \gset
SELECT is(try('a', 'AddEach', '{"ns": [-500, 501]}'), 'invariant 4 limit',
  'all events of a command are refused [rule 5, ' || kind() || ']');
SELECT is(try('fresh', 'Add', '{"n": 1001}'), 'invariant 0 limit',
  'on a stream that is not there [rule 5, ' || kind() || ']');
SELECT is(try('a', 'Add', '{"n": 1}', NULL, 'id'), 'invariant 4 limit', 'under a command id [rule 4, ' || kind() || ']');
SELECT is(trace(), :'before', 'nothing is written or drawn [rule 5, ' || kind() || ']');
SELECT is(total('a'), '4 1000', 'the state is what it was [rule 6, ' || kind() || ']');
SELECT is(try('a', 'Subtract', '{"n": 1}', NULL, 'id2'), 'ok 5', 'and goes on [rule 6, ' || kind() || ']');
SELECT is(try('a', 'Add', '{"n": 1}', NULL, 'id'), 'ok 6', 'the refused one is decided anew [rule 4, ' || kind() || ']');
SELECT refused($$SELECT evpg_execute(kind(), 'a', 'Add', '{"n": 1}')$$, 'VE006 total 1001 is above 1000',
  'execute raises VE006 [rule 8, ' || kind() || ']');
SELECT is(error_fields($$SELECT evpg_execute(kind(), 'a', 'Add', '{"n": 1}')$$), 'limit|{"total": 1001}|',
  'with code and detail [rule 8, ' || kind() || ']');
SELECT refused($$SELECT evpg_execute(kind(), 'a', 'Add', '{"n": -3000}')$$,
  'VE006 command "Add" would violate the invariant of aggregate %',
  'also without a word [rule 8, ' || kind() || ']');
SELECT refused($$SELECT evpg_execute(kind(), 'b', 'Add', '{"n": 666}')$$, 'VE009 %cannot say',
  'a defect of the invariant [rule 8, ' || kind() || ']');
SELECT refused($$SELECT evpg_try_execute(kind(), 'b', 'Add', '{"n": 666}')$$, 'VE009 %cannot say',
  'is an error of try_execute too [rule 8, ' || kind() || ']');
