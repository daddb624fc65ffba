-- conditions.sql: an append under a condition fails if an event exists that matches it (rule 21).

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(138);
-- what an index serves is shown at the end
SET enable_indexscan = on;
SET enable_bitmapscan = on;
SET default_transaction_isolation = 'read committed';
SET test.kind = counter;
SELECT evpg_register_aggregate('course'), evpg_register_aggregate('student') \g /dev/null

-- what becomes of an append under a condition: "done", or the error
CREATE FUNCTION try_condition(condition jsonb, tags text[] DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
  SELECT replace(error_of(format($s$
    SELECT evpg_append_event('student', 'of a try', 'Tried', tags => %L, condition => %L)$s$, tags, condition)),
    'no error', 'done')
$$;

SELECT position AS defined FROM evpg_append_event('course', 'c1', 'CourseDefined', tags => '{course:c1}') \gset
SELECT position AS first FROM evpg_append_event('student', 's1', 'Subscribed', tags => '{course:c1,student:s1}') \gset
SELECT position AS last FROM evpg_append_event('student', 's2', 'Subscribed', tags => '{course:c1,student:s2}') \gset
SELECT position AS untagged FROM evpg_append_event('student', 's2', 'Moved') \gset

-- what matches
CREATE TEMP TABLE matching (n int GENERATED ALWAYS AS IDENTITY, condition jsonb, found bigint, label text);
INSERT INTO matching (condition, found, label) VALUES
  (evpg_condition(tags => '{course:c1}'), :defined, 'one tag'),
  (evpg_condition(tags => '{course:c1}', after_position => :defined), :first, 'one tag, after a position'),
  (evpg_condition(tags => '{course:c1}', after_position => :last), NULL, 'one tag, after the last event with it'),
  (evpg_condition(tags => '{course:c2}'), NULL, 'a tag that no event has'),
  (evpg_condition(tags => '{course:c1,student:s2}'), :last, 'two tags that one event has'),
  (evpg_condition(tags => '{student:s2,course:c1}'), :last, 'two tags in the other order'),
  (evpg_condition(tags => '{student:s1,student:s2}'), NULL, 'two tags that only different events have'),
  (evpg_condition(tags => '{course:c1,course:c1}'), :defined, 'a tag twice'),
  (evpg_condition('{Subscribed}'), :first, 'a type'),
  (evpg_condition('{Subscribed}', after_position => :last), NULL, 'a type, after the last event of it'),
  (evpg_condition('{Moved,Subscribed}', after_position => :last), :untagged, 'two types'),
  (evpg_condition('{Moved}', '{course:c1}'), NULL, 'a type and a tag that only different events have'),
  (evpg_condition('{Subscribed}', '{course:c1}'), :first, 'a type and a tag'),
  (evpg_condition('{Subscribed,Moved}', '{course:c1}', :first), :last, 'one of two types, and a tag'),
  (evpg_condition('{Subscribed}', '{course:c1}', aggregate_types => '{course}'), NULL,
    'a type, a tag and another aggregate type'),
  (evpg_condition('{Subscribed}', '{course:c1}', aggregate_types => '{course,student}'), :first,
    'one of two aggregate types'),
  (evpg_condition(aggregate_types => '{student}'), :first, 'an aggregate type alone'),
  (evpg_condition(tags => '{course:c2}') || evpg_condition(tags => '{student:s2}'), :last, 'the second of two items'),
  (evpg_condition(tags => '{student:s2}') || evpg_condition(tags => '{student:s1}'), :first, 'the first event of two items'),
  (evpg_condition(tags => '{course:c2}') || evpg_condition(tags => '{course:c3}'), NULL, 'neither of two items'),
  (evpg_condition(tags => '{course:c1}', after_position => NULL), :defined, 'a position of NULL, which is the beginning'),
  ('{"tags": ["student:s2"]}', :last, 'an object, which is one item'),
  ('[{"tags": ["student:s2"], "event_types": null, "after_position": 0}]', :last, 'an item with a null');
SELECT is(error_of(format($$SELECT evpg_append_event('student', 'matching', 'Tried', condition => %L)$$, condition)),
          CASE WHEN found IS NULL THEN 'no error' ELSE 'VE013 an event matches the condition of the append' END,
          label || CASE WHEN found IS NULL THEN ' is met' ELSE ' is not met' END || ' [rule 21]')
  FROM matching ORDER BY n;
SELECT is(error_fields(format($$SELECT evpg_append_event('student', 'matching', 'Tried', condition => %L)$$, condition)),
          format('|{"item": %s, "position": %s, "type": "%s", "aggregate_type": "%s", "aggregate_id": "%s"}'
                 '|Read the events after the position of the condition, and decide again.',
                 CASE WHEN label ~ 'second of two|first event of two' THEN 2 ELSE 1 END,
                 found, e.type, e.aggregate_type, e.aggregate_id),
          label || ' is reported with its first event')
  FROM matching JOIN evpg.event e ON e.position = found WHERE n <> 17 ORDER BY n;

-- what matches can be read
SELECT is((SELECT min(r."position") FROM evpg_read_all(condition => m.condition, stable_only => false) r), found,
          label || CASE WHEN found IS NULL THEN ' reads nothing' ELSE ' reads that event first' END || ' [rule 21]')
  FROM matching m ORDER BY n;
SELECT is((SELECT string_agg(e."position"::text, ' ') FROM evpg_read_all(stable_only => false,
    condition => evpg_condition(tags => '{course:c1}') || evpg_condition(tags => '{student:s1}')) e),
  concat_ws(' ', :defined, :first, :last), 'an event that matches two items is read once, in order of position [rule 21]');
SELECT is((SELECT string_agg(e."position"::text, ' ') FROM evpg_read_all(:defined, 1, stable_only => false,
    event_types => '{Subscribed,CourseDefined}', condition => evpg_condition(tags => '{course:c1}')) e), :first::text,
  'other filters of evpg_read_all count as well, and the page begins after its position [rule 21]');
SELECT is(evpg_condition_after(evpg_condition('{T}', '{a}', 3) || evpg_condition(aggregate_types => '{course}'), 7),
  evpg_condition('{T}', '{a}', 7) || evpg_condition(after_position => 7, aggregate_types => '{course}'),
  'a condition is moved to another position');
SELECT is(evpg_condition_after('{"tags": ["a"]}', 7), evpg_condition(tags => '{a}', after_position => 7),
  'an object is moved as well');
SELECT is(error_of(format('SELECT * FROM evpg_read_all(condition => %L)', c)), e, 'refused: ' || c::text)
  FROM (VALUES (evpg_condition_after(NULL, 7), '22023 item 1 of the condition is not valid'),
               (evpg_condition_after('[]', 7), '22023 condition must not be empty'),
               (evpg_condition_after('"a"', 7), '22023 item 1 of the condition is not valid'),
               (evpg_condition_after('[["a"]]', 7), '22023 item 1 of the condition is not valid'),
               (evpg_condition_after('{}', 7), '22023 item 1 of the condition is not valid')) v (c, e);

-- a condition that is not met leaves no trace, and comes after what the stream itself refuses
SELECT refused($$SELECT evpg_append('course', 'new', ARRAY[evpg_event('CourseDefined')],
    condition => evpg_condition(tags => '{course:c1}'))$$, 'VE013 an event matches%',
  'an append whose condition is not met leaves no trace [rule 5, rule 21]');
SELECT refused($$SELECT evpg_append('course', 'c1', ARRAY[evpg_event('CourseDefined')], 7,
    condition => evpg_condition(tags => '{course:c1}'))$$, 'VE001 %',
      'the expected version comes before the condition [rule 1]');
SELECT is(error_of($$SELECT evpg_append('course', 'c1', '{}', condition => evpg_condition(tags => '{course:c1}'))$$),
  'VE013 an event matches the condition of the append', 'the condition of an append of no events is checked [rule 21]');
SELECT is_empty($$SELECT evpg_append('course', 'c1', '{}', condition => evpg_condition(tags => '{course:c2}'))$$,
  'an append of no events whose condition is met is a no-op');
SELECT is((SELECT count(*) FROM evpg_append('course', 'several',
  ARRAY[evpg_event('A', tags => '{a}'), evpg_event('B', tags => '{a,b}')],
  condition => evpg_condition(tags => '{a}') || evpg_condition(tags => '{b}'))), 2::bigint,
  'the events of an append do not match its own condition [rule 21]');
SELECT is(error_of($$SELECT evpg_append('course', 'several', ARRAY[evpg_event('B')],
  condition => evpg_condition(tags => '{a,b}'))$$),
  'VE013 an event matches the condition of the append', 'those of the next append do [rule 21]');

-- a command id: what was appended once is returned, whatever the condition is now
SELECT is((SELECT version FROM evpg_append_event('course', 'resent', 'Named', command_id => 'i', tags => '{name:n}',
  condition => evpg_condition(tags => '{name:n}'))), 1::bigint, 'a name is taken');
SELECT is((SELECT version FROM evpg_append_event('course', 'resent', 'Named', command_id => 'i', tags => '{name:n}',
  condition => evpg_condition(tags => '{name:n}'))), 1::bigint,
    'a duplicate is answered without its condition [rule 4, rule 21]');
SELECT is(error_of($$SELECT evpg_append_event('course', 'resent', 'Named', command_id => 'j', tags => '{name:n}',
  condition => evpg_condition(tags => '{name:n}'))$$), 'VE013 an event matches the condition of the append',
  'another command is refused [rule 21]');

-- in one transaction: its own events count, and those of a savepoint that was rolled back do not
BEGIN;
SELECT evpg_append_event('course', 'own', 'Named', tags => '{name:own}') \g /dev/null
SELECT is(try_condition(evpg_condition(tags => '{name:own}')), 'VE013 an event matches the condition of the append',
  'an event of the same transaction matches [rule 21]');
SAVEPOINT s;
SELECT evpg_append_event('course', 'own', 'Named', tags => '{name:undone}') \g /dev/null
ROLLBACK TO s;
SELECT is(try_condition(evpg_condition(tags => '{name:undone}')), 'done', 'one that was rolled back does not [rule 21]');
ROLLBACK;

-- 40001: what was committed after the snapshot of the transaction is seen in the isolation tests; here: what it sees
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(try_condition(evpg_condition(tags => '{course:c1}')), 'VE013 an event matches the condition of the append',
  'under REPEATABLE READ what the snapshot sees is no conflict of transactions [rule 21]');
SELECT is(try_condition(evpg_condition(tags => '{course:c2}')), 'done',
  'under REPEATABLE READ a condition can be met [rule 21]');
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is(try_condition(evpg_condition(tags => '{course:c1}')), 'VE013 an event matches the condition of the append',
  'under SERIALIZABLE what the snapshot sees is no conflict of transactions [rule 21]');
SELECT is(try_condition(evpg_condition(tags => '{course:c2}')), 'done',
  'under SERIALIZABLE a condition can be met [rule 21]');
ROLLBACK;

-- bad input
CREATE TEMP TABLE bad (n int GENERATED ALWAYS AS IDENTITY, condition jsonb, error text);
INSERT INTO bad (condition, error) VALUES
  ('[]', '22023 condition must not be empty'),
  ('{}', '22023 item 1 of the condition is not valid'),
  ('null', '22023 item 1 of the condition is not valid'),
  ('"course:c1"', '22023 item 1 of the condition is not valid'),
  ('[["course:c1"]]', '22023 item 1 of the condition is not valid'),
  ('[null]', '22023 item 1 of the condition is not valid'),
  (evpg_condition(), '22023 item 1 of the condition is not valid'),
  (evpg_condition(after_position => 1), '22023 item 1 of the condition is not valid'),
  (evpg_condition(tags => '{a}') || evpg_condition(), '22023 item 2 of the condition is not valid'),
  (evpg_condition(tags => '{}'), '22023 item 1 of the condition is not valid'),
  (evpg_condition(tags => ARRAY[NULL]::text[]), '22023 item 1 of the condition is not valid'),
  (evpg_condition(tags => NULL), '22023 item 1 of the condition is not valid'),
  (evpg_condition(tags => '{{a,b}}'), '22023 item 1 of the condition is not valid'),
  (evpg_condition(tags => '{""}'), '22023 tag %'),
  (evpg_condition(tags => ARRAY[repeat('t', 10000)]), 'VE014 tag is too long'),
  (evpg_condition(tags => ARRAY[E'a\x01']), '22023 tag %'),
  (evpg_condition('{""}'), '22023 event type %'),
  ('[{"tag": ["a"]}]', '22023 item 1 of the condition is not valid'),
  ('[{"tags": "a"}]', '22023 item 1 of the condition is not valid'),
  ('[{"tags": ["a"], "after_position": "1"}]', '22023 item 1 of the condition is not valid'),
  ('[{"tags": ["a"], "after_position": 1.5}]', '22023 item 1 of the condition is not valid'),
  ('[{"tags": ["a"], "after_position": -1}]', '22023 item 1 of the condition is not valid'),
  ('[{"tags": ["a"], "after_position": 1e30}]', '22003 %'),
  (evpg_condition(tags => '{a}', after_position => (SELECT last_value FROM evpg.event_position) + 1),
   '22023 item 1 of the condition begins after a position that does not exist'),
  (evpg_condition(tags => '{a}', after_position => 9223372036854775807),
   '22023 item 1 of the condition begins after a position that does not exist'),
  (evpg_condition(tags => ARRAY(SELECT 't' || n FROM generate_series(1, 101) n)),
    '22023 item 1 of the condition is not valid'),
  ((SELECT jsonb_agg('{"tags": ["a"]}'::jsonb) FROM generate_series(1, 10000)), 'VE014 condition has too many items');
SELECT ok(try_condition(condition) LIKE error, format('%s is refused, not %s', left(condition::text, 50),
  try_condition(condition)))
  FROM bad ORDER BY n;
SELECT is(try_condition(evpg_condition(tags => '{a}', after_position => (SELECT last_value FROM evpg.event_position))),
  'done', 'the last position that was drawn is one to check after [rule 21]');
-- neither text nor jsonb can have the character 0
SELECT is(error_of($$SELECT try_condition(E'{"tags": ["\\u0000"]}')$$), '22P05 unsupported Unicode escape sequence',
  'a tag with the character 0 cannot be written');
SELECT is(try_condition((SELECT jsonb_agg(jsonb_build_object('tags', ARRAY['t' || n])) FROM generate_series(1, 1000) n)),
  'done',
  'a condition of 1,000 items can be met [rule 21]');

-- how many locks: a bounded number
CREATE FUNCTION tag_locks() RETURNS text LANGUAGE sql AS $$
  SELECT coalesce(string_agg(format('%s %s%s', count, mode, CASE WHEN all_tags THEN ' on all' END), ', ' ORDER BY mode),
    'none')
    FROM (SELECT count(*), mode, classid = 0 AND objid = 0 AS all_tags FROM pg_locks
           WHERE locktype = 'advisory' AND objsubid = 17760 AND pid = pg_backend_pid() GROUP BY 2, 3) l
$$;
CREATE FUNCTION many_tags(n int) RETURNS text[] LANGUAGE sql RETURN ARRAY(SELECT 'many ' || i FROM generate_series(1, n) i);
BEGIN;
SELECT evpg_append_event('course', 'locks', 'Untagged') \g /dev/null
SELECT is(tag_locks(), 'none', 'an append without tags locks no tag');
SELECT evpg_append_event('course', 'locks', 'Tagged', tags => '{a,b,a}') \g /dev/null
SELECT is(tag_locks(), '2 RowExclusiveLock', 'an append locks each tag once');
SELECT evpg_append_event('course', 'locks', 'Tagged', tags => '{c}',
  condition => evpg_condition(tags => '{c,d}')) \g /dev/null
SELECT is(tag_locks(), '2 RowExclusiveLock, 1 ShareLock on all, 1 ShareRowExclusiveLock',
  'a condition locks one tag of an item, and the key for all tags');
ROLLBACK;
BEGIN;
SELECT evpg_append_event('course', 'locks', 'Tagged', tags => many_tags(65)) \g /dev/null
SELECT is(tag_locks(), '1 RowExclusiveLock on all', 'beyond evpg.max_tag_locks one lock stands for all tags');
SAVEPOINT s;
SELECT evpg_append_event('course', 'locks', 'Tagged', tags => '{a,b}') \g /dev/null
SELECT is(tag_locks(), '1 RowExclusiveLock on all', 'and no more are needed');
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT evpg_append_event('course', 'locks', 'Tagged', tags => many_tags(64)) \g /dev/null
SELECT is(tag_locks(), '64 RowExclusiveLock', 'up to it each tag has a lock');
ROLLBACK TO s;
SELECT evpg_append_event('course', 'locks', 'Tagged', tags => many_tags(64)) \g /dev/null
SELECT is(tag_locks(), '64 RowExclusiveLock', 'what ROLLBACK TO has given back does not count');
ROLLBACK;
BEGIN;
SELECT evpg_append_event('course', 'locks', 'Tagged', condition => (
  SELECT jsonb_agg(jsonb_build_object('tags', ARRAY[t])) FROM unnest(many_tags(65)) t)) \g /dev/null
SELECT is((SELECT string_agg(mode, ', ' ORDER BY mode) FROM pg_locks
            WHERE relation = 'evpg.fence'::regclass AND pid = pg_backend_pid()) || '; ' || tag_locks(),
  'RowExclusiveLock, ShareRowExclusiveLock; none', 'a condition beyond it locks the fence');
ROLLBACK;

-- the position for a condition
SELECT evpg_append_event('course', 'last', 'Last') \g /dev/null
SELECT is(evpg_condition_position(evpg_condition(tags => '{course:c1}')), (SELECT max(position) FROM evpg.event),
  'without appends in progress the position for a condition is the last one that was drawn [rule 21]');
BEGIN;
SELECT evpg_condition_position(evpg_condition(tags => '{a}') || evpg_condition('{B}')
  || (SELECT jsonb_agg(jsonb_build_object('tags', ARRAY[t])) FROM unnest(many_tags(60)) t)) \g /dev/null
SELECT is(tag_locks() || (SELECT count(*) FROM pg_locks WHERE relation = 'evpg.fence'::regclass AND pid = pg_backend_pid()),
  'none0', 'it holds no lock afterwards');
SELECT evpg_append_event('course', 'locks', 'Tagged', tags => many_tags(64)) \g /dev/null
SELECT is(tag_locks(), '64 RowExclusiveLock', 'and counts none');
ROLLBACK;
SELECT is(error_of('SELECT evpg_condition_position(NULL)'), '22004 condition must not be null', 'it needs a condition');
SELECT is(error_of('SELECT evpg_condition_position(evpg_condition())'), '22023 item 1 of the condition is not valid',
  'that is valid');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(error_of($$SELECT evpg_condition_position(evpg_condition(tags => '{a}'))$$),
  '25000 the stable position needs isolation level READ COMMITTED',
  'it is refused where the snapshot may be older [rule 21]');
ROLLBACK;

-- ------------------------------------------------------------------ by the index on tags, as without

SELECT count(*) FROM generate_series(1, 1000) n, LATERAL evpg_append_event('course', 'r' || n % 5, 'T' || n % 4, tags =>
  (SELECT array_agg(DISTINCT 'r:' || hashint4(n * 7 + i) % 20) FROM generate_series(0, n % 3) i)) \g /dev/null
ANALYZE evpg.event_log;
CREATE TEMP TABLE searches AS
  SELECT n, ARRAY(SELECT 'r:' || hashint4(n * 3 + i) % 20 FROM generate_series(0, n % 2) i) AS tags,
         CASE WHEN n % 3 = 0 THEN ARRAY['T' || n % 4, 'T1'] END AS types,
         CASE WHEN n % 5 = 0 THEN '{course}'::text[] WHEN n % 7 = 0 THEN '{student}' END AS aggregate_types,
         (SELECT max("position") FROM evpg.event) - 1 - n * 9 % 1000 AS after
    FROM generate_series(1, 200) n;
CREATE FUNCTION first_match(s searches) RETURNS bigint LANGUAGE sql AS $$
  SELECT min(e."position") FROM evpg.event e WHERE e.tags @> s.tags AND e."position" > s.after
     AND (s.types IS NULL OR e.type = ANY (s.types))
     AND (s.aggregate_types IS NULL OR e.aggregate_type = ANY (s.aggregate_types))
$$;
CREATE FUNCTION match_in_error(s searches) RETURNS bigint LANGUAGE sql AS $$
  SELECT (regexp_match(error_fields(format(
    'SELECT evpg_append_event(''student'', ''never'', ''Tried'', condition => %L)',
    evpg_condition(s.types, s.tags, s.after, s.aggregate_types))), '"position": ([0-9]+)'))[1]::bigint
$$;
CREATE FUNCTION looks_into_index() RETURNS bigint LANGUAGE sql AS $$
  SELECT coalesce(pg_stat_get_xact_numscans(to_regclass('evpg.event_log_tags')), 0) $$;
CREATE FUNCTION search() RETURNS TABLE (wrong bigint, looks bigint) LANGUAGE plpgsql AS $$
DECLARE
  before bigint := looks_into_index();
BEGIN
  SELECT count(*) INTO wrong FROM searches s WHERE first_match(s) IS DISTINCT FROM match_in_error(s);
  looks := looks_into_index() - before;
  RETURN NEXT;
END $$;
SELECT is((SELECT count(*) > 10 FROM searches s WHERE first_match(s) IS NULL), true, 'some conditions match no event');
SELECT is((SELECT format('%s wrong, %s looks', wrong, looks) FROM search()), '0 wrong, 0 looks',
  'the first event that matches is found, whatever the condition [rule 21]');
SELECT evpg_enable_index('tags') \g /dev/null
SELECT is((SELECT format('%s wrong, %s', wrong, CASE WHEN looks > 50 THEN 'by the index' ELSE looks::text END)
             FROM search()),
  '0 wrong, by the index', 'it is found by the index on tags as well [rule 21]');

-- a tag of so many events that the index is not asked for all of them, which a session remembers
SELECT count(e.version) FROM generate_series(1, 25) i, evpg_append('course', 'crowd' || i,
  ARRAY(SELECT evpg_event('Came', tags => '{crowd}') FROM generate_series(1, 100))) e \g /dev/null
SELECT min("position") AS first, max("position") AS last FROM evpg.event WHERE tags @> '{crowd}' \gset
SELECT alike(error_fields(format($$SELECT evpg_append_event('course', 'late', 'Came', tags => '{crowd}',
    condition => evpg_condition(tags => '{crowd}', after_position => %s))$$, after)), format('%%"position": %s,%%', found),
  format('of 2,500 events with a tag the first one %s is found [rule 21]', what)) FROM (VALUES
  (0, :first, 'of all'), (0, :first, 'of all, again'), (:first + 100, :first + 101, 'after a position'))
  v (after, found, what);
SELECT is((SELECT version FROM evpg_append_event('course', 'late', 'Came', tags => '{crowd}',
    condition => evpg_condition(tags => '{crowd}', after_position => :last))), 1::bigint,
  'after the last one of them there is none [rule 21]');

SELECT * FROM finish();
