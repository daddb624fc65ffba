-- boundaries_module.sql: aggregates in C with a boundary (rule 22), beside their twin in SQL.

\ir include/setup.sql
\ir include/courses.sql

SELECT plan(35);
SET default_transaction_isolation = 'read committed';
SELECT evpg_register_aggregate('course', 'test.course_handle', 'test.course_apply',
  initial_state => '{"capacities": {}, "taken": []}', boundary => 'test.course_boundary') \g /dev/null
SELECT is(evpg_register_aggregate('course_c', library => 'evpg_test', symbol => 'course'), true,
  'a symbol of a library has a boundary [rule 22]');

-- both read and append the same events, whatever their streams are
SET test.kind = course_c;
SELECT is(try('c1', 'Define', '{"course": "c1", "capacity": 2}'), 'ok 1', 'a command in C is decided [rule 22]');
SELECT is(try('s1', 'Subscribe', '{"course": "c1"}'), 'ok 1', 'on events of other streams [rule 22]');
SET test.kind = course;
SELECT is(try('s2', 'Subscribe', '{"course": "c1"}'), 'ok 1', 'a command in SQL is, too');
SELECT is(try('s3', 'Subscribe', '{"course": "c1"}'), 'rejected 0 full', 'on events of other aggregates [rule 22]');
SET test.kind = course_c;
SELECT is(try('s3', 'Subscribe', '{"course": "c1"}'), 'rejected 0 full', 'so is one in C [rule 22]');
SELECT refused($$SELECT evpg_execute('course_c', 's3', 'Subscribe', '{"course": "c1"}')$$,
  'VE002 command "Subscribe" of course_c "s3" was refused: full', 'a refusal leaves no trace [rule 5, rule 22]');
SELECT is(try('s1', 'Subscribe', '{"course": "c1"}'), 'noop 1', 'a no-op');

SELECT evpg_append_event('course_c', 'c' || n, 'Defined', jsonb_build_object('course', 'c' || n, 'capacity', n),
  tags => ARRAY['course:c' || n]) FROM generate_series(2, 9) n \g /dev/null
SELECT count(*) FROM generate_series(1, 300) n, LATERAL evpg_try_execute(CASE n % 2 WHEN 0 THEN 'course' ELSE 'course_c' END,
  's' || abs(hashint4(n)) % 25, 'Subscribe', jsonb_build_object('course', 'c' || abs(hashint4(-n)) % 12)) \g /dev/null
SELECT cmp_ok((SELECT count(*) FROM evpg.event WHERE type = 'Subscribed'), '>', 20::bigint, 'many subscribe by either');
CREATE TEMP TABLE state AS
  SELECT s, c, kind, b.*
    FROM generate_series(0, 24) s, generate_series(0, 11) c, (VALUES ('course'), ('course_c')) k (kind),
    LATERAL evpg_boundary_state(kind, 's' || s, 'Subscribe', jsonb_build_object('course', 'c' || c)) b;
SELECT is((SELECT count(*) FROM state a JOIN state b ON (a.s, a.c, a.kind, b.kind) = (b.s, b.c, 'course', 'course_c')
            WHERE (a.events, a.state, a.last_position) IS NOT DISTINCT FROM (b.events, b.state, b.last_position)),
  300::bigint, 'both see the same state [rule 22]');
SELECT is_empty($$SELECT tags[1] FROM evpg.event WHERE type = 'Subscribed' GROUP BY 1
  HAVING count(*) > greatest(substr(tags[1], 9)::int, 2)$$,
  'no course has more students than its capacity [rule 22]');
SELECT is_empty($$SELECT tags[2] FROM evpg.event WHERE type = 'Subscribed' GROUP BY 1
  HAVING count(*) > 2 OR count(*) > count(DISTINCT tags[1])$$,
  'no student has more courses than two, or one twice [rule 22]');

-- refusals and defects
CREATE FUNCTION test.odd(how text) RETURNS text LANGUAGE sql AS $$
  SELECT error_of(format('SELECT evpg_try_execute(''course_c'', ''odd'', ''Odd'', ''{"how": "%s"}'')', how)) $$;
SELECT is(try('odd', 'Odd', '{"how": "refuse"}'), 'rejected 0 unbounded',
  'a boundary in C can refuse the command [rule 22]');
SELECT is(error_fields($$SELECT evpg_execute('course_c', 'odd', 'Odd', '{"how": "refuse"}')$$),
  'unbounded|{"how": "refuse"}|',
  'with code and detail');
SELECT is(error_of($$SELECT evpg_boundary_state('course_c', 'odd', 'Odd', '{"how": "refuse"}')$$),
  'VE002 no boundary for odd',
  'evpg_boundary_state() raises its refusal');
SELECT is(odd(how), error, label) FROM (VALUES
  ('nothing', 'VE009 boundary of aggregate "course_c" names no events for command "Odd"', 'a boundary that names nothing'),
  ('fail', 'VE009 boundary of aggregate "course_c" failed: cannot tell', 'a boundary that fails'),
  ('emit', 'VE009 a boundary must not call evpg_emit()', 'a boundary that emits an event [rule 8]'),
  ('everything', '22023 item 1 of the condition is not valid', 'a boundary of all events'),
  ('string', '22023 item 1 of the condition is not valid', 'tags that are no array'),
  ('types', 'no error', 'a boundary of types alone')) x (how, error, label);
SELECT matches(odd('latin1'), '^22021 ', 'a tag that is no text');
SELECT is(error_of($$SELECT evpg_execute('course_c', 'odd', 'Odd', '[1]')$$),
  '22023 data of command "Odd" must be a JSON object', 'data that are no object');
SELECT is(error_of($$SELECT evpg_execute('course_c', 'odd', 'Unknown')$$),
  'VE018 aggregate "course_c" has no command "Unknown"',
  'a command that is not known comes before its boundary');
SET statement_timeout = '100ms';
SELECT is(odd('loop'), '57014 canceling statement due to statement timeout', 'a boundary in C that loops is ended');
RESET statement_timeout;
SELECT is(error_of($$SELECT evpg_state('course_c', 's1')$$),
  '55000 aggregate type "course_c" has a boundary, so its streams have no state', 'evpg_state() is refused [rule 22]');
SELECT is((SELECT count(*) FROM evpg.snapshot), 0::bigint, 'no snapshot is stored');
SELECT is((SELECT cache_hits FROM evpg_session_stats() WHERE aggregate_type = 'course_c'), 0::bigint, 'no state is kept');

-- a projection inline makes a command with catch begin anew in a subtransaction
CREATE FUNCTION test.count_events(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT to_jsonb((state::text)::int + 1) $$;
SELECT evpg_register_projection('taken', 'test.count_events', aggregate_types => '{course_c}', initial_state => '0',
  mode => 'inline', event_types => '{Defined}', key_path => '$.data.course') \g /dev/null
SELECT is(try('c99', 'Define', '{"course": "c99", "capacity": 1}'), 'ok 1', 'a command with an inline projection');
SELECT is((SELECT string_agg(key || ' ' || state, ', ') FROM evpg.projected_state), 'c99 1', 'which is applied once');
BEGIN;
SELECT is(try('x1', 'Subscribe', '{"course": "c99"}') || ', ' || try('x2', 'Subscribe', '{"course": "c99"}'),
  'ok 1, rejected 0 full', 'a transaction sees its own events [rule 22]');
ROLLBACK;
SELECT is(try('x2', 'Subscribe', '{"course": "c99"}'), 'ok 1', 'and none that were rolled back [rule 22]');

-- a module that was built before there were boundaries
SELECT is(evpg_register_aggregate('before', library => 'evpg_test_broken', symbol => 'before_boundaries'), true,
  'ABI: a definition that ends before the boundary');
SELECT is((SELECT status FROM evpg_try_execute('before', 'a', 'Nothing')), 'noop', 'ABI: has none');

SELECT * FROM finish();
