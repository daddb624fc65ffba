-- boundaries.sql: aggregates whose commands are decided on events of all streams, which their boundary names (rule 22).

\ir include/setup.sql
\ir include/courses.sql

SELECT plan(108);
SET default_transaction_isolation = 'read committed';
SET test.kind = course;
CREATE FUNCTION test.register_course(boundary regproc DEFAULT 'test.course_boundary', invariant regproc DEFAULT NULL)
  RETURNS boolean LANGUAGE sql AS $$
  SELECT evpg_register_aggregate('course', 'test.course_handle', 'test.course_apply', invariant,
    initial_state => '{"capacities": {}, "taken": []}', snapshot_every => 1, boundary => boundary) $$;
SELECT is(register_course(), true, 'an aggregate is registered with a boundary [rule 22]');
SELECT is(register_course(), false, 'again without a change');
SELECT is((SELECT boundary FROM evpg.aggregate_type WHERE aggregate_type = 'course'), 'test.course_boundary(evpg.command)',
  'the function is stored by its name');

-- ------------------------------------------------------------------ deciding

SELECT is(try('c1', 'Define', '{"course": "c1", "capacity": 2}'), 'ok 1', 'a command of a new stream is decided [rule 22]');
SELECT is(try('c2', 'Define', '{"course": "c2", "capacity": 9}'), 'ok 1', 'and of another');
SELECT is(try('c3', 'Define', '{"course": "c3", "capacity": 9}'), 'ok 1', 'and of a third');
SELECT is(try('s1', 'Subscribe', '{"course": "c1"}'), 'ok 1', 'a command reads an event of another stream [rule 22]');
SELECT is(try('s1', 'Subscribe', '{"course": "c1"}'), 'noop 1', 'and that of its own stream [rule 22]');
SELECT is(try('s2', 'Subscribe', '{"course": "c1"}'), 'ok 1', 'the last place of a course is taken');
SELECT is(try('s3', 'Subscribe', '{"course": "c1"}'), 'rejected 0 full', 'the course is full [rule 22]');
SELECT is(try('s1', 'Subscribe', '{"course": "c2"}'), 'ok 2', 'the student takes a second course');
SELECT is(try('s1', 'Subscribe', '{"course": "c3"}'), 'rejected 2 busy', 'and not a third one [rule 22]');
SELECT is(try('s1', 'Subscribe', '{"course": "c4"}'), 'rejected 2 no_course', 'a course that does not exist has no events');
SELECT is((SELECT string_agg(concat_ws(' ', aggregate_id, version, type, tags::text), E'\n' ORDER BY position)
             FROM evpg.event WHERE aggregate_type = 'course' AND type = 'Subscribed'),
E's1 1 Subscribed {course:c1,student:s1}\ns2 1 Subscribed {course:c1,student:s2}\ns1 2 Subscribed {course:c2,student:s1}',
  'events have the stream of their command, its versions, and tags [rule 22]');
SELECT refused($$SELECT evpg_execute('course', 's3', 'Subscribe', '{"course": "c1"}')$$,
  'VE002 command "Subscribe" of course "s3" was refused: full', 'a refusal leaves no trace [rule 5, rule 22]');

-- the state: each event once, also if it matches two items, in order of position, whatever the order of items
SELECT same($$SELECT * FROM evpg_boundary_state('course', 's1', 'Subscribe', '{"course": "c1"}')$$,
  format($$SELECT 4, '{"taken": ["c1 s1", "c1 s2", "c2 s1"], "capacities": {"c1": 2}}'::jsonb, %s$$,
    (SELECT max(position) FROM evpg.event)), 'the state is made of the events that match, in order of position [rule 22]');
SELECT same($$SELECT * FROM evpg_boundary_state('course', 'new', 'Define', '{"course": "c4"}')$$,
  $$SELECT 0, '{"taken": [], "capacities": {}}'::jsonb, NULL$$, 'without events it is the initial state [rule 22]');
SELECT is((SELECT count(*) FROM evpg.snapshot), 0::bigint, 'no snapshot of it is stored');
SELECT is((SELECT cache_hits FROM evpg_session_stats() WHERE aggregate_type = 'course'), 0::bigint,
  'and none is taken from the cache');

-- what belongs to the stream does so still
SELECT is(try('s4', 'Subscribe', '{"course": "c2"}', 1), 'conflict 0',
  'the expected version is that of the stream [rule 2, rule 22]');
SELECT is(try('s4', 'Subscribe', '{"course": "c2"}', 0, 'once'), 'ok 1', 'a command has an id');
SELECT is(try('s4', 'Subscribe', '{"course": "c2"}', 0, 'once'), 'duplicate 1',
  'sent twice it is a duplicate [rule 4, rule 22]');
SELECT is(error_of($$SELECT evpg_execute('course', 's4', 'Subscribe', '{"course": "c3"}', command_id => 'once')$$),
  'VE005 command id "once" was used for another command', 'the id of another command is refused');

-- what the transaction has appended itself is seen, what was rolled back is not
BEGIN;
SAVEPOINT s;
SELECT is(try('s5', 'Subscribe', '{"course": "c2"}') || ', ' || try('s5', 'Subscribe', '{"course": "c3"}') || ', '
  || try('s5', 'Subscribe', '{"course": "c3"}'), 'ok 1, ok 2, noop 2', 'a transaction sees its own events [rule 22]');
SELECT is(try('s5', 'Subscribe', '{"course": "c4"}'), 'rejected 2 no_course', 'also when a command was refused');
SELECT version FROM evpg_append_event('course', 'c4', 'Defined', '{"course": "c4", "capacity": 1}', tags => '{course:c4}')
  \g /dev/null
SELECT is(try('s5', 'Subscribe', '{"course": "c4"}'), 'rejected 2 busy', 'an event that was appended counts [rule 22]');
ROLLBACK TO s;
SELECT is(try('s5', 'Subscribe', '{"course": "c4"}'), 'rejected 0 no_course', 'but not once it was rolled back [rule 22]');
COMMIT;

-- ------------------------------------------------------------------ other code around a command

CREATE FUNCTION test.at_most_three(state jsonb) RETURNS boolean LANGUAGE sql AS $$
  SELECT jsonb_array_length(state->'taken') <= 3 $$;
SELECT is(register_course(invariant => 'test.at_most_three'), true, 'an invariant is added');
SELECT is(try('s6', 'Subscribe', '{"course": "c3"}'), 'ok 1', 'it holds');
SELECT is(try('s7', 'Subscribe', '{"course": "c3"}') || ', ' || try('s8', 'Subscribe', '{"course": "c3"}') || ', '
  || try('s9', 'Subscribe', '{"course": "c3"}'), 'ok 1, ok 1, invariant 0 invariant',
  'the invariant is that of the state with the decided events [rule 22]');
SELECT register_course() \g /dev/null

CREATE FUNCTION test.to_third(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN
  command.data := '{"course": "c3"}';
  RETURN command;
END $$;
SELECT evpg_register_interceptor('to third', 'test.to_third') \g /dev/null
SELECT is(try('s9', 'Subscribe', '{"course": "c4"}'), 'ok 1', 'the boundary gets what interceptors have made [rule 22]');
SELECT is((SELECT tags[1] FROM evpg.event ORDER BY position DESC LIMIT 1), 'course:c3', 'as does the handler');
SELECT evpg_drop_interceptor('to third') \g /dev/null

CREATE FUNCTION test.count_events(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT to_jsonb((state::text)::int + 1) $$;
SELECT evpg_register_projection('taken', 'test.count_events', aggregate_types => '{course}', initial_state => '0',
  mode => 'inline', event_types => '{Subscribed}', key_path => '$.data.course') \g /dev/null
SELECT is(try('s10', 'Subscribe', '{"course": "c3"}') || ', ' || try('s10', 'Subscribe', '{"course": "c1"}'),
  'ok 1, rejected 1 full', 'commands are decided with an inline projection');
SELECT is((SELECT string_agg(key || ' ' || state, ', ') FROM evpg.projected_state), 'c3 1', 'which projects their events');
CREATE FUNCTION test.welcome(event evpg.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM evpg_execute('course', 'guest of ' || event.aggregate_id, 'Subscribe', event.data)
    WHERE event.aggregate_id NOT LIKE 'guest%';
END $$;
SELECT evpg_register_listener('welcome', 'test.welcome', event_types => '{Subscribed}') \g /dev/null
SELECT is(try('s11', 'Subscribe', '{"course": "c2"}'), 'ok 1', 'a listener executes a command within the same boundary');
SELECT is((SELECT state->'taken' FROM evpg_boundary_state('course', 'x', 'Subscribe', '{"course": "c2"}')),
  '["c2 s1", "c2 s4", "c2 s11", "c2 guest of s11"]', 'which is decided after it [rule 22]');
SELECT evpg_drop_listener('welcome') \g /dev/null
CREATE FUNCTION test.enrol(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction('{}', evpg_action_send('course', event.aggregate_id, 'Subscribe', '{"course": "c2"}')) $$;
SELECT evpg_register_aggregate('student'), evpg_register_saga('enrolment', 'test.enrol', aggregate_types => '{student}',
  mode => 'inline') \g /dev/null
SELECT evpg_append_event('student', 's12', 'Admitted') \g /dev/null
SELECT is((SELECT state->'taken' FROM evpg_boundary_state('course', 'x', 'Subscribe', '{"course": "c2"}')),
  '["c2 s1", "c2 s4", "c2 s11", "c2 guest of s11", "c2 s12"]', 'a saga sends a command to an aggregate with a boundary');
SELECT evpg_drop_saga('enrolment') \g /dev/null

-- ------------------------------------------------------------------ what the boundary names

-- an aggregate whose commands bring their boundary, and whose state is the list of the positions that are folded
CREATE FUNCTION test.given_boundary(command evpg.command) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT command.data->'boundary' $$;
CREATE FUNCTION test.given_events(state jsonb, command evpg.command) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT command.data->'events' $$;
CREATE FUNCTION test.list_positions(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT state || coalesce(to_jsonb(event.position), '"new"') $$;
CREATE FUNCTION test.tell(state jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '%', state;
END $$;
SELECT evpg_register_aggregate('free', 'test.given_events', 'test.list_positions', initial_state => '[]',
  boundary => 'test.given_boundary') \g /dev/null
CREATE FUNCTION test.folded(boundary jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT state FROM evpg_boundary_state('free', 'f', 'Read', jsonb_build_object('boundary', boundary)) $$;

SELECT count(*) FROM generate_series(1, 600) n, LATERAL evpg_append_event('student', 'r' || n % 5, 'T' || n % 4, tags =>
  (SELECT array_agg(DISTINCT 'r:' || hashint4(n * 7 + i) % 20) FROM generate_series(1, n % 4) i)) \g /dev/null
CREATE TEMP TABLE reads AS
  SELECT n, (SELECT jsonb_agg(i->0) FROM (
    SELECT evpg_condition(CASE WHEN (n + i) % 3 = 0 OR n % 10 = i THEN ARRAY['T' || n % 4, 'T1'] END,
             CASE WHEN n % 10 <> i THEN ARRAY(
               SELECT 'r:' || hashint4(n * 3 + i + k) % 20 FROM generate_series(0, n % 2) k) END,
             CASE WHEN n % 7 = 0 THEN (SELECT max("position") FROM evpg.event) - 400 ELSE 0 END,
             CASE WHEN n % 5 = 0 THEN '{student,course}'::text[] WHEN n % 11 = 0 THEN '{course}' END) AS i
      FROM generate_series(1, 1 + n % 4) i) items) AS boundary
    FROM generate_series(1, 150) n;
CREATE FUNCTION test.expected(boundary jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT coalesce(jsonb_agg(e."position" ORDER BY e."position"), '[]') FROM evpg.event e
   WHERE EXISTS (SELECT FROM jsonb_to_recordset(boundary) AS i(tags text[], event_types text[], aggregate_types text[],
                                                               after_position bigint)
                  WHERE (i.tags IS NULL OR e.tags @> i.tags) AND (i.event_types IS NULL OR e.type = ANY (i.event_types))
                    AND (i.aggregate_types IS NULL OR e.aggregate_type = ANY (i.aggregate_types))
                    AND e."position" > i.after_position) $$;
SELECT is((SELECT format('%s with one item, %s with several, %s of them with types alone, %s without a match',
    count(*) FILTER (WHERE jsonb_array_length(boundary) = 1) > 20,
    count(*) FILTER (WHERE jsonb_array_length(boundary) > 1) > 20,
    count(*) FILTER (WHERE jsonb_array_length(boundary) > 1 AND boundary @? '$[*] ? (!exists(@.tags))') > 20,
    count(*) FILTER (WHERE expected(boundary) = '[]') > 5) FROM reads),
  't with one item, t with several, t of them with types alone, t without a match', 'boundaries of all kinds are tried');
CREATE FUNCTION test.wrong_reads() RETURNS text LANGUAGE sql AS $$
  SELECT count(*) || ' wrong' FROM reads WHERE folded(boundary) IS DISTINCT FROM expected(boundary) $$;
CREATE FUNCTION test.looks(index_name text) RETURNS bigint LANGUAGE sql AS $$
  SELECT coalesce(pg_stat_get_xact_numscans(to_regclass('evpg.' || index_name)), 0) $$;
SELECT is(wrong_reads(), '0 wrong', 'exactly what matches is folded, once and in order, whatever the items are [rule 22]');
SELECT evpg_enable_index('event_type') \g /dev/null
SELECT is(wrong_reads(), '0 wrong', 'by the index on types, too [rule 22]');
SELECT evpg_enable_index('tags') \g /dev/null
ANALYZE evpg.event_log;
SELECT is(wrong_reads(), '0 wrong', 'by that on tags, too [rule 22]');
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is(wrong_reads(), '0 wrong', 'and at SERIALIZABLE [rule 22]');
COMMIT;

-- what a read costs does not grow with the log
SELECT count(*) FROM generate_series(1, 20000) n, LATERAL evpg_append_event('student', 'many' || n % 50, 'Other',
  tags => ARRAY['other:' || n]) \g /dev/null
SELECT evpg_append_event('student', 'rare', 'Rare', tags => '{rare}') FROM generate_series(1, 3) \g /dev/null
VACUUM ANALYZE evpg.event_log;
SET enable_indexscan = on;
SET enable_bitmapscan = on;
CREATE FUNCTION test.buffers(statement text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  plan json;
BEGIN
  EXECUTE statement;
  EXECUTE 'EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT json) ' || statement INTO plan;
  RETURN (plan->0->'Plan'->>'Shared Hit Blocks')::bigint + (plan->0->'Plan'->>'Shared Read Blocks')::bigint;
END $$;
SELECT cmp_ok(buffers($$SELECT * FROM evpg_boundary_state('free', 'f', 'Read',
  jsonb_build_object('boundary', evpg_condition(tags => '{rare}') || evpg_condition(tags => '{none}')))$$), '<', 60::bigint,
  'with the index on tags a few events among many are found without reading the others [rule 22]');
SELECT is(jsonb_array_length(folded(evpg_condition(tags => '{rare}'))), 3, 'all of them');

-- only decided events that the boundary names become part of its state
SELECT evpg_register_aggregate('free', 'test.given_events', 'test.list_positions', 'test.tell', initial_state => '[]',
  boundary => 'test.given_boundary') \g /dev/null
SELECT is(error_of($$SELECT evpg_execute('free', 'f', 'Do', jsonb_build_object('boundary', evpg_condition('{A}', '{a}'),
    'events', '[{"type": "A", "tags": ["b", "a"]}, {"type": "A"}, {"type": "B", "tags": ["a"]}]'::jsonb))$$),
  'P0001 ["new"]', 'a decided event is folded if it matches the boundary [rule 22]');
SELECT is(error_of($$SELECT evpg_execute('free', 'f', 'Do', jsonb_build_object('boundary', evpg_condition('{A}',
    after_position => 7, aggregate_types => '{free}'), 'events', '[{"type": "A"}, {"type": "B"}]'::jsonb))$$),
  'P0001 ["new"]', 'whatever the position is that the boundary begins after');
SELECT evpg_register_aggregate('free', 'test.given_events', 'test.list_positions', initial_state => '[]',
  boundary => 'test.given_boundary') \g /dev/null

-- ------------------------------------------------------------------ locks

CREATE FUNCTION test.tag_locks() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(', ', (SELECT string_agg(n || ' ' || mode, ', ' ORDER BY mode) FROM (
      SELECT mode, count(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 17760 AND pid = pg_backend_pid()
       AND (classid, objid) <> (0, 0) GROUP BY mode) locks),
    (SELECT 'all ' || string_agg(mode, ' ') FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 17760
        AND pid = pg_backend_pid() AND (classid, objid) = (0, 0)),
    (SELECT 'fence ' || string_agg(mode, ' ' ORDER BY mode) FROM pg_locks
      WHERE relation = 'evpg.fence'::regclass AND pid = pg_backend_pid())) $$;
CREATE FUNCTION test.do(boundary jsonb, events jsonb DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
  SELECT coalesce(string_agg(type || ' ' || version, ', '), 'nothing')
    FROM evpg_execute('free', 'f', 'Do', jsonb_build_object('boundary', boundary, 'events', events)) $$;
BEGIN;
SELECT test.do(evpg_condition(tags => '{a,b}') || evpg_condition(tags => '{c}'),
  '{"type": "A", "tags": ["a", "b"]}') \g /dev/null
SELECT is(tag_locks(), '1 RowExclusiveLock, 2 ShareRowExclusiveLock, all ShareLock, fence RowExclusiveLock',
  'the first tag of each item is locked against those that read and that append, the other tag as by an append [rule 22]');
ROLLBACK;
BEGIN;
SELECT test.do(evpg_condition(tags => '{a}')) \g /dev/null
SELECT is(tag_locks(), '1 ShareRowExclusiveLock, all ShareLock',
  'a command that decides on nothing keeps its locks [rule 22]');
SELECT test.do(evpg_condition('{A}')) \g /dev/null
SELECT is(tag_locks(), '1 ShareRowExclusiveLock, all ShareLock, fence ShareRowExclusiveLock',
  'an item without tags locks against all appends [rule 22]');
ROLLBACK;
BEGIN;
SET LOCAL evpg.max_tag_locks = 1;
SELECT test.do(evpg_condition(tags => '{a}') || evpg_condition(tags => '{b}')) \g /dev/null
SELECT is(tag_locks(), 'all RowExclusiveLock, fence ShareRowExclusiveLock',
  'beyond evpg.max_tag_locks a boundary locks against all appends and all checks [rule 22]');
ROLLBACK;
BEGIN;
SELECT folded(evpg_condition(tags => '{a}')) \g /dev/null
SELECT is(tag_locks(), '', 'evpg_boundary_state() locks nothing');
ROLLBACK;

-- ------------------------------------------------------------------ bad input

CREATE FUNCTION test.do_error(boundary jsonb) RETURNS text LANGUAGE sql AS $$
  SELECT error_of(format('SELECT test.do(%L)', boundary)) $$;
CREATE FUNCTION test.do_fields(boundary jsonb) RETURNS text LANGUAGE sql AS $$
  SELECT error_fields(format('SELECT test.do(%L)', boundary)) $$;
SELECT is(do_error(boundary), error, label) FROM (VALUES
  ('null', 'VE009 boundary of aggregate "free" names no events for command "Do"', 'a boundary that is null'),
  ('[]', 'VE009 boundary of aggregate "free" names no events for command "Do"', 'a boundary that is empty'),
  ('17', '22023 item 1 of the condition is not valid', 'a boundary that is a number'),
  ('"a"', '22023 item 1 of the condition is not valid', 'a boundary that is a string'),
  ('{}', '22023 item 1 of the condition is not valid', 'an item that would match every event'),
  ('[[]]', '22023 item 1 of the condition is not valid', 'an item that is an array'),
  ('[{"tags": ["a"]}, null]', '22023 item 2 of the condition is not valid', 'an item that is null'),
  ('[{"tags": []}]', '22023 item 1 of the condition is not valid', 'no tags'),
  ('[{"tags": [null]}]', '22023 item 1 of the condition is not valid', 'a tag that is null'),
  ('[{"tags": ["a"], "version": 1}]', '22023 item 1 of the condition is not valid', 'an unknown key'),
  ('[{"tags": ["a"], "after_position": 9999999}]',
   '22023 item 1 of the condition begins after a position that does not exist', 'a position that does not exist'),
  (jsonb_build_array(jsonb_build_object('tags', ARRAY[repeat('x', 10240)])), 'VE014 tag is too long', 'a tag of 10 kB'),
  ((SELECT jsonb_agg('{"tags": ["a"]}'::jsonb) FROM generate_series(1, 10000)), 'VE014 condition has too many items',
   '10,000 items')) bad (boundary, error, label);
SELECT is(do_fields(boundary), format('|It returned %s.|%s%s', returned,
    'Return the events that the decision reads, made with evpg_condition() and joined by ||, or in C name them with '
    'evpg_reads().', '  A CASE without ELSE returns null, and so does || with a null.'), 'the error tells of ' || returned)
  FROM (VALUES ('null'::jsonb, 'nothing'), ('[]', 'an empty array')) bad (boundary, returned);
SELECT matches(context_of($$SELECT test.do('{}')$$), 'boundary of aggregate "free", stream "f", "Do" at version [0-9]+',
  'the context names the boundary');
SELECT is(test.do((SELECT jsonb_agg(jsonb_build_object('tags', ARRAY['n:' || n])) FROM generate_series(1, 1000) n)),
  'nothing',   'a boundary of 1,000 items works');
SELECT is(test.do('{"tags": ["rare"]}'), 'nothing', 'an object is one item');

-- code that does what it should not, or may
CREATE TABLE noted (what text);
CREATE FUNCTION test.odd_boundary(command evpg.command) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  CASE command.command_type
    WHEN 'Fail' THEN RAISE EXCEPTION 'broken';
    WHEN 'Refuse' THEN PERFORM evpg_reject('no_boundary', detail => '{"a": 1}');
    WHEN 'Write' THEN INSERT INTO noted VALUES (command.aggregate_id || command.version);
    WHEN 'Own' THEN PERFORM evpg_append_event(command.aggregate_type, command.aggregate_id, 'Own');
    WHEN 'Other' THEN PERFORM evpg_append_event('student', 'other', 'Tagged', tags => '{odd}');
    WHEN 'Spin' THEN LOOP NULL; END LOOP;
    ELSE NULL;
  END CASE;
  RETURN evpg_condition(tags => '{odd}');
END $$;
CREATE FUNCTION test.refuse_written(state jsonb, command evpg.command) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF command.data ? 'refuse' THEN
    PERFORM evpg_reject('refused');
  END IF;
  RETURN CASE WHEN jsonb_array_length(state) > 0 THEN '{"type": "Odd"}'::jsonb END;
END $$;
SELECT evpg_register_aggregate('odd', 'test.refuse_written', 'test.list_positions', initial_state => '[]',
  boundary => 'test.odd_boundary') \g /dev/null
SET test.kind = odd;
SELECT is(try('o', 'Refuse'), 'rejected 0 no_boundary', 'a boundary can refuse the command [rule 22]');
SELECT refused($$SELECT evpg_execute('odd', 'o', 'Refuse')$$, 'VE002 command "Refuse" of odd "o" was refused: no_boundary',
  'and the refusal leaves no trace [rule 5, rule 22]');
SELECT is(error_fields($$SELECT evpg_boundary_state('odd', 'o', 'Refuse')$$), 'no_boundary|{"a": 1}|',
  'evpg_boundary_state() raises it');
SELECT refused($$SELECT evpg_try_execute('odd', 'o', 'Fail')$$, 'P0001 broken',
  'any other error of a boundary is a defect [rule 8, rule 22]');
SELECT is(try('o', 'Write'), 'noop 0', 'a boundary may write');
SELECT is(try('o', 'Write', '{"refuse": true}'), 'rejected 0 refused', 'also if the command is refused');
SELECT is((SELECT string_agg(what, ' ') FROM noted), 'o0', 'but then what it has written is undone');
SELECT is(error_of($$SELECT evpg_execute('odd', 'o', 'Own')$$),
  'VE020 a command on aggregate "odd", stream "o" is being executed already', 'but not to the stream of the command');
SELECT is(try('o', 'Other'), 'ok 1', 'the boundary holds what it has itself appended to another stream [rule 22]');
SET statement_timeout = '100ms';
SELECT is(error_of($$SELECT evpg_execute('odd', 'o', 'Spin')$$), '57014 canceling statement due to statement timeout',
  'a boundary that loops is ended');
RESET statement_timeout;

-- what a handler executes does not change what its command is decided on
CREATE FUNCTION test.nested_events(state jsonb, command evpg.command) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF command.command_type = 'Append' THEN
    PERFORM evpg_append_event('student', 'nested', command.data->>'type', tags => '{nested}');
  ELSE
    PERFORM evpg_execute('nested', 'inner of ' || command.aggregate_id, 'Append', command.data);
  END IF;
  RETURN '{"type": "N", "tags": ["nested"]}';
END $$;
CREATE FUNCTION test.nested_boundary(command evpg.command) RETURNS jsonb LANGUAGE sql AS $$
  SELECT evpg_condition('{N}', '{nested}') $$;
SELECT evpg_register_aggregate('nested', 'test.nested_events', 'test.list_positions', initial_state => '[]',
  boundary => 'test.nested_boundary') \g /dev/null
SELECT refused($$SELECT evpg_execute('nested', 'n', 'Append', '{"type": "N"}')$$,
  'VE020 event "N" is within the boundary of a command that is being decided',
  'a handler cannot append what its command is decided on [rule 22]');
SELECT is(error_fields($$SELECT evpg_execute('nested', 'n', 'Append', '{"type": "N"}')$$),
  '|Command "Append" of aggregate "nested", stream "n" is decided without it.|Let the handler return the event, or append '
  'it in a listener.', 'the error names the command');
SELECT is(error_of($$SELECT evpg_execute('nested', 'n', 'Execute', '{"type": "O"}')$$),
  'VE020 event "N" is within the boundary of a command that is being decided',
  'nor can a command that it executes [rule 22]');
SET test.kind = nested;
SELECT is(try('n', 'Append', '{"type": "O"}'), 'ok 1', 'it can append what it is not decided on');

-- registrations
CREATE FUNCTION test.of_state(state jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
CREATE FUNCTION test.strict_boundary(command evpg.command) RETURNS jsonb STRICT LANGUAGE sql AS $$SELECT '[]'::jsonb$$;
CREATE FUNCTION test.set_boundary(command evpg.command) RETURNS SETOF jsonb LANGUAGE sql AS $$SELECT '[]'::jsonb$$;
SELECT is(error_of(format('SELECT test.register_course(boundary => %L)', function)), error, label) FROM (VALUES
  ('test.of_state', '42P13 function test.of_state(pg_catalog.jsonb) cannot serve as boundary',
   'a function of something else'),
  ('test.strict_boundary', '42P13 function test.strict_boundary(evpg.command) cannot serve as boundary because it is STRICT',
   'a strict function'),
  ('test.set_boundary', '42P13 function test.set_boundary(evpg.command) cannot serve as boundary', 'a function of sets'),
  ('test.to_third', '42P13 function test.to_third(evpg.command) cannot serve as boundary', 'a function with another result'))
  bad (function, error, label);
SELECT is(error_of($$SELECT evpg_register_aggregate('x', boundary => 'test.course_boundary')$$),
  '22004 handler must not be null', 'a boundary needs a handler');
SELECT is(error_of(
  $$SELECT evpg_register_aggregate('x', library => 'l', symbol => 's', boundary => 'test.course_boundary')$$),
  '22023 an aggregate is registered with either functions or a library', 'which is no library');

-- streams of an aggregate with a boundary have no state
SELECT is(error_of(statement), '55000 aggregate type "course" has a boundary, so its streams have no state', label)
  FROM (VALUES ($$SELECT evpg_state('course', 's1')$$, 'evpg_state() is refused [rule 22]'),
               ($$SELECT evpg_state('course', 's1', 1)$$, 'at a version, too'),
               ($$SELECT evpg_take_snapshot('course', 's1')$$, 'and a snapshot [rule 22]')) s (statement, label);
SELECT is(error_fields($$SELECT evpg_state('course', 's1')$$), '|A command is decided on the events that the boundary names '
  'for it.|evpg_boundary_state() returns the state on which a command would be decided.', 'with what to do instead');
SELECT is(error_of($$SELECT evpg_boundary_state('student', 's1', 'Any')$$),
  '55000 aggregate type "student" only stores events', 'a type that only stores events has no boundary');
-- without a boundary they have, also one that was folded before
SELECT is(register_course(boundary => NULL), true, 'the boundary is taken away');
SELECT is(error_of($$SELECT evpg_boundary_state('course', 's1', 'Subscribe')$$),
  '55000 aggregate type "course" has no boundary', 'it has none then');
SELECT is((SELECT version || ' ' || state FROM evpg_state('course', 's1')),
  '2 {"taken": ["c1 s1", "c2 s1"], "capacities": {}}',
  'and streams have states');
SELECT evpg_take_snapshot('course', 's1') \g /dev/null
SET test.kind = course;
SELECT is(try('s1', 'Subscribe', '{"course": "c3"}'), 'rejected 2 no_course', 'by which commands are decided');
SELECT is(register_course(), true, 'the boundary comes back');
SELECT is(try('s1', 'Subscribe', '{"course": "c3"}'), 'rejected 2 busy',
  'and no state of a stream is used [rule 6, rule 22]');

-- the function that is called is the registered one, as its owner
CREATE ROLE evpg_test_executor;
SELECT evpg_grant('evpg_test_executor', 'executor') \g /dev/null
SELECT is(as_role('evpg_test_executor', $$SELECT evpg_execute('course', 's20', 'Subscribe', '{"course": "c2"}')$$), 'done',
  'an executor executes commands with a boundary');
SELECT is(as_role('evpg_test_executor', $$SELECT evpg_boundary_state('course', 's20', 'Subscribe', '{"course": "c2"}')$$),
  'done', 'and may see on what they are decided');
DROP OWNED BY evpg_test_executor;
DROP ROLE evpg_test_executor;
DROP FUNCTION test.course_boundary(evpg.command) CASCADE;
SELECT is(error_of($$SELECT evpg_execute('course', 's1', 'Subscribe', '{"course": "c2"}')$$),
  '42883 boundary function test.course_boundary(evpg.command) does not exist', 'a boundary that was dropped is missed');
SELECT is(error_of($$SELECT evpg_boundary_state(NULL, 'a', 'b')$$), '22004 aggregate type must not be null',
  'NULL is refused');

SELECT * FROM finish();
