-- streams.sql: listing streams, reading events.

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';

SELECT plan(167);
SELECT is((SELECT count(*) FROM evpg_streams()), 0::bigint, 'an empty store has no streams [A14, A15, 1.2 test 6]');
SELECT is((SELECT count(*) FROM evpg_read_all()), 0::bigint, 'an empty store has no events [A42]');
SELECT is(evpg_stable_position(), 0::bigint, 'an empty store has drawn no position [rule 9]');

\ir include/counter.sql
SET test.kind = counter_c;

-- streams
SELECT evpg_create_stream(t, id) FROM (VALUES ('counter', 'b'), ('counter', 'a'), ('counter_c', 'a'), ('counter', 'B'),
  ('counter', 'é'), ('counter', 'a b'), ('counter', 'aa')) x (t, id) \g /dev/null
SELECT count(*) FROM evpg_execute('counter', 'a', 'AddEach', '{"ns": [1, 2]}') \g /dev/null
SELECT same('SELECT aggregate_type, aggregate_id, version FROM evpg_streams()',
  $$VALUES ('counter', 'B', 0::bigint), ('counter', 'a', 2), ('counter', 'a b', 0), ('counter', 'aa', 0),
  ('counter', 'b', 0), ('counter', 'é', 0), ('counter_c', 'a', 0)$$,
  'all streams, by type and id, bytewise [A15, 1.2 test 6]');
SELECT same($$SELECT aggregate_id FROM evpg_streams('counter_c')$$, $$VALUES ('a')$$, 'of one type [A14, A15]');
SELECT is((SELECT count(*) FROM evpg_streams('nope')), 0::bigint,
  'of an unknown type: none, and no error [A15, 1.2 test 6]');
SELECT same($$SELECT aggregate_id FROM evpg_streams('counter', NULL, 2)$$, $$VALUES ('B'), ('a')$$, 'a page [A15]');
SELECT same($$SELECT aggregate_id FROM evpg_streams('counter', 'a', 2)$$, $$VALUES ('a b'), ('aa')$$,
  'the next page starts after the last id [A15]');
SELECT same($$SELECT aggregate_id FROM evpg_streams('counter', 'a!', 1)$$, $$VALUES ('aa')$$,
  'the next page starts after the last id, which need not be there [A15]');
SELECT same($$SELECT aggregate_type, aggregate_id FROM evpg_streams(NULL, 'b', 10, 'counter')$$,
  $$VALUES ('counter', 'é'), ('counter_c', 'a')$$,
  'pages over all types [A15]');
SELECT is((SELECT count(*) FROM evpg_streams('counter', 'é')), 0::bigint, 'past the last [A15]');
SELECT is((SELECT count(*) FROM evpg_streams(max_count => 0)), 0::bigint, 'max_count 0 [A15]');
SELECT is((SELECT count(*) FROM evpg_streams(max_count => NULL)), 7::bigint, 'max_count NULL [A15]');
SELECT refused($$SELECT evpg_streams(NULL, 'a')$$, '22023 after_id needs a type', 'after_id alone [A15]');
SELECT refused($$SELECT evpg_streams(max_count => -1)$$, '22023 max_count must not be negative', 'max_count -1 [A15]');
SELECT ok((SELECT bool_and(created_at BETWEEN now() - interval '1 hour' AND clock_timestamp()) FROM evpg_streams()),
  'with the time of creation [A13]');

SELECT is(ARRAY[evpg_stream_version('counter', 'a'), evpg_stream_version('counter', 'b'),
  evpg_stream_version('counter', 'x'), evpg_stream_version('nope', 'a')],
  ARRAY[2, 0, NULL, NULL]::bigint[], 'the version of a stream, of an empty one, of none [A13]');
SELECT is(evpg_stream_version('counter', NULL), NULL, 'of NULL [A13]');

-- one stream
SELECT count(*) FROM evpg_execute('counter', 'r', 'AddEach', '{"ns": [1, 2, 3, 4, 5]}') \g /dev/null
CREATE FUNCTION test.versions(args text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  result text;
BEGIN
  EXECUTE format('SELECT string_agg(version::text, '' '') FROM evpg_read_stream(''counter'', ''r'', %s)', args) INTO result;
  RETURN coalesce(result, '-');
END $$;
SELECT same($$SELECT * FROM evpg_read_stream('counter', 'r')$$,
  $$SELECT * FROM evpg.event WHERE aggregate_id = 'r' ORDER BY version$$,
  'all events of a stream, in order [A16, A10, 1.2 test 6]');
SELECT is(versions(args), wanted, 'read_stream(' || args || ') [A16, A42]') FROM (VALUES
  ('from_version => 3', '3 4 5'), ('from_version => 5', '5'), ('from_version => 6', '-'),
  ('from_version => 9223372036854775807', '-'),
  ('from_version => 0', '1 2 3 4 5'), ('from_version => -5', '1 2 3 4 5'), ('from_version => NULL', '1 2 3 4 5'),
  ('max_count => 2', '1 2'), ('max_count => 0', '-'), ('max_count => 99', '1 2 3 4 5'), ('max_count => NULL', '1 2 3 4 5'),
  ('2, 2', '2 3'),
  ('backwards => true', '5 4 3 2 1'), ('1, 2, true', '5 4'), ('3, NULL, true', '5 4 3'), ('6, NULL, true', '-'),
  ('1, 1, true', '5')) x (args, wanted);
SELECT same($$SELECT * FROM evpg_read_stream('counter', 'r')$$, $$SELECT * FROM evpg_read_stream('counter', 'r')$$,
  'twice the same [2.4 test 15]');
SELECT is((SELECT count(*) FROM evpg_read_stream('counter', 'b')), 0::bigint,
  'of a stream that is empty: none [A16, 1.2 test 6]');
SELECT refused($$SELECT evpg_read_stream('counter', 'never')$$, 'VE004 stream "never" of aggregate "counter" does not exist',
  'of one that was never created [A16, 1.2 test 6]');
SELECT refused($$SELECT evpg_read_stream('nope', 'a')$$, 'VE004 %', 'of an unknown type [A16]');
SELECT is((SELECT count(*) FROM evpg_read_stream('counter', 'never', missing_ok => true)), 0::bigint,
  'unless missing_ok [A16]');
SELECT refused($$SELECT evpg_read_stream('counter', 'r', max_count => -1)$$, '22023 max_count must not be negative',
  'max_count -1 [A16]');
SELECT refused($$SELECT evpg_read_stream('counter', NULL)$$, '22004 aggregate id must not be null', 'NULL for the id [A16]');
SELECT refused($$SELECT evpg_read_stream(NULL, 'r')$$, '22004 aggregate type must not be null', 'NULL for the type [A16]');
SELECT refused($$SELECT evpg_read_stream('counter', 'r', backwards => NULL)$$, '22004 backwards must not be null',
  'NULL for backwards [A16]');
SELECT is((SELECT version FROM evpg_read_stream('counter', 'r') LIMIT 1), 1::bigint, 'a caller may stop early [A16, B66]');

-- all events
CREATE FUNCTION test.found(args text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  result text;
BEGIN
  EXECUTE format('SELECT string_agg(aggregate_id || version, '' '') FROM evpg_read_all(%s)', args) INTO result;
  RETURN coalesce(result, '-');
END $$;
SELECT count(*) FROM evpg_append('counter_c', 't',
  ARRAY[evpg_event('Odd', tags => '{red,blue}'), evpg_event('Even', tags => '{blue}'), evpg_event('Odd', tags => '{}')])
  \g /dev/null
CREATE TABLE test.pages (args, wanted) AS VALUES
  ('', 'a1 a2 r1 r2 r3 r4 r5 t1 t2 t3'), ('max_count => 3', 'a1 a2 r1'), ('max_count => 0', '-'),
  ('max_count => NULL', 'a1 a2 r1 r2 r3 r4 r5 t1 t2 t3'),
  ('after_position => 2, max_count => 2', 'r1 r2'), ('after_position => 7', 't1 t2 t3'), ('after_position => 10', '-'),
  ('after_position => -1, max_count => 1', 'a1'),
  ('after_position => 9223372036854775807', '-'),
  ('aggregate_types => ''{counter_c}''', 't1 t2 t3'),
  ('aggregate_types => ''{counter_c,counter}'', after_position => 6', 'r5 t1 t2 t3'),
  ('event_types => ''{Odd}''', 't1 t3'), ('event_types => ''{Odd,Added}'', max_count => 8', 'a1 a2 r1 r2 r3 r4 r5 t1'),
  ('event_types => ''{Nope}''', '-'),
  ('tags => ''{red}''', 't1'), ('tags => ''{red,blue}''', 't1 t2'), ('tags => ''{green}''', '-'),
  ('aggregate_types => ''{counter_c}'', event_types => ''{Odd}'', tags => ''{blue}''', 't1'),
  ('stable_only => false', 'a1 a2 r1 r2 r3 r4 r5 t1 t2 t3');
SELECT is(found(args), wanted, 'read_all(' || args || ') [A42, B38]') FROM pages;
SELECT same('SELECT * FROM evpg_read_all()', 'SELECT * FROM evpg.event ORDER BY position',
  'the rows of the view [A42, D61]');
SELECT is(evpg_stable_position(), (SELECT max(position) FROM evpg.event), 'with no appender about, all is stable [rule 9]');
BEGIN;
SELECT try('own', 'Add', '{"n": 1}') \g /dev/null
SELECT is(found('after_position => 10'), '-', 'a transaction''s own events are not stable before it ends [rule 9]');
SELECT is(evpg_stable_position(), 10::bigint,
  'the position of a transaction''s own events is not stable before it ends [rule 9]');
SELECT is(found('after_position => 10, stable_only => false'), 'own1', 'it can read them all the same [rule 9]');
ROLLBACK;
SELECT is(found('after_position => 10, stable_only => false'), '-',
  'a transaction can read its own events, but not after a rollback [rule 9]');
SELECT is(try('own', 'Add', '{"n": 1}'), 'ok 1', 'after the end, more [D04]');
SELECT is(found('after_position => 10'), 'own1', 'is found by reading on [D04]');
SELECT refused(statement, error, statement || ' [A42]') FROM (VALUES
  ('SELECT evpg_read_all(NULL)', '22004 after_position must not be null'),
  ('SELECT evpg_read_all(max_count => -1)', '22023 max_count must not be negative'),
  ('SELECT evpg_read_all(stable_only => NULL)', '22004 stable_only must not be null'),
  ('SELECT evpg_read_all(tags => ARRAY[''a'', NULL])', '22023 tags must be %'),
  ('SELECT evpg_read_all(event_types => ''{{a},{b}}'')', '22023 event_types must be %'),
  ('SELECT evpg_read_all(aggregate_types => ARRAY[NULL])', '22023 aggregate_types must be %'))
  x (statement, error);

-- other isolation levels, read-only transactions
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT refused('SELECT evpg_stable_position()', '25000 the stable position needs isolation level READ COMMITTED',
  'under REPEATABLE READ [rule 9]');
SELECT refused('SELECT evpg_read_all()', '25000 %', 'evpg_read_all() refuses REPEATABLE READ [rule 9]');
SELECT is(found('stable_only => false, after_position => 10'), 'own1', 'unless told that gaps do not matter [rule 9]');
COMMIT;
BEGIN READ ONLY;
SELECT is(found('after_position => 10'), 'own1', 'a read-only transaction can read [A42]');
SELECT is((SELECT count(*) FROM evpg_read_stream('counter', 'r')), 5::bigint,
  'a read-only transaction can read a stream [A16]');
SELECT is(total('own'), '1 1', 'a read-only transaction can read a state [A07]');
SELECT is((SELECT count(*) FROM evpg_streams('counter_c')), 3::bigint, 'a read-only transaction can list streams [A15]');
COMMIT;

-- optional indexes are used, and give the same rows in the same order
CREATE FUNCTION test.scans(index text) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT pg_stat_get_numscans(format('evpg.%I', index)::regclass) $$;
SELECT count(*) FROM generate_series(1, 100) n, evpg_append('counter_c', 'many' || n, ARRAY(SELECT
  evpg_event('Many', jsonb_build_object('pad', repeat('x', 100)), tags => ARRAY['many', 'few' || n])
    FROM generate_series(1, 100))) \g /dev/null
SELECT count(*) FROM evpg_append('counter', 't',
  ARRAY[evpg_event('Odd', tags => '{red}'), evpg_event('Even', tags => '{few7}')]) \g /dev/null
ANALYZE evpg.event_log;
CREATE TABLE test.more AS SELECT args, found(args) AS wanted FROM (
  SELECT args || CASE args WHEN '' THEN '' ELSE ', ' END || 'after_position => 0' AS args FROM pages
    WHERE args NOT LIKE '%after_position%'
  UNION ALL SELECT * FROM unnest(ARRAY['event_types => ''{Many,Odd,Added}'', max_count => 50',
    'event_types => ''{Many,Odd,Many}'', max_count => NULL',
    'tags => ''{few7,red,few6,few7}'', max_count => 150', 'tags => ''{many}'', after_position => 9000, max_count => 20',
    'tags => ''{few7}'', event_types => ''{Even}''',
      'tags => ''{red}'', aggregate_types => ''{counter}'', max_count => NULL'])) q;
SELECT is((SELECT string_agg(args || ': ' || wanted, '; ') FROM more WHERE args LIKE 'tags%types%'),
  'tags => ''{few7}'', event_types => ''{Even}'': t2; tags => ''{red}'', aggregate_types => ''{counter}'', '
    'max_count => NULL: t1', 'pages of a log with more events [B38]');
SELECT evpg_enable_index('event_type') \g /dev/null
SELECT is(found(args), wanted, 'with an index on types, read_all(' || args || ') [A45]') FROM more;
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT scans('event_log_event_type') AS before \gset
SELECT found('event_types => ''{Odd,Nope}''') \g /dev/null
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT is(scans('event_log_event_type') - :before, 2::bigint, 'by the index, once for each type [A45]');
-- which index serves is a matter of the tags that are asked for, so of plans that are made for them
SET plan_cache_mode = auto;
SELECT evpg_enable_index('event_type', false), evpg_enable_index('tags') \g /dev/null
SELECT is(found(args), wanted, 'with an index on tags, read_all(' || args || ') [B38]') FROM more;
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT scans('event_log_tags') AS before \gset
SELECT found('tags => ''{few7}''') \g /dev/null
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT cmp_ok(scans('event_log_tags'), '>', :before::bigint, 'by the index [B38]');
SELECT scans('event_log_tags') AS before \gset
SELECT found('tags => ''{many}'', after_position => 9990') \g /dev/null
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT is(scans('event_log_tags') - :before, 0::bigint,
  'the index on tags is not used where little of the log is left [B38]');
SELECT evpg_enable_index('event_type') \g /dev/null
SELECT is(found(args), wanted, 'with both, read_all(' || args || ') [A45, B38]') FROM more;

-- a transaction keeps the locks of evpg.max_stream_locks streams; a rollback to a savepoint gives some back
CREATE FUNCTION locked_streams() RETURNS bigint LANGUAGE sql AS $$
  SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 17759 AND pid = pg_backend_pid()
$$;
BEGIN;
SET LOCAL evpg.max_stream_locks = 2;
DO $$
BEGIN
  FOR i IN 1..10 LOOP
    BEGIN
      PERFORM evpg_append('counter_c', 'undone' || i, ARRAY[evpg_event('Noted')]);
      RAISE EXCEPTION 'undo';
    EXCEPTION WHEN raise_exception THEN
    END;
  END LOOP;
END $$;
SELECT status FROM evpg_try_execute('counter_c', 'a', 'Add', '{"n": 1}', expected_version => 99) \g /dev/null
SELECT is(locked_streams(), 1::bigint, 'a refused command keeps its stream after rollbacks of other commands [rule 2]');
COMMIT;
BEGIN;
SET LOCAL evpg.max_stream_locks = 2;
SAVEPOINT one;
SELECT FROM evpg_append('counter_c', 'kept1', ARRAY[evpg_event('Noted')]) \g /dev/null
RELEASE one;
SAVEPOINT two;
SELECT FROM evpg_append('counter_c', 'undone', ARRAY[evpg_event('Noted')]) \g /dev/null
ROLLBACK TO two;
SELECT FROM evpg_append('counter_c', 'kept2', ARRAY[evpg_event('Noted')]) \g /dev/null
SELECT FROM evpg_append('counter_c', 'beyond', ARRAY[evpg_event('Noted')]) \g /dev/null
SELECT is(locked_streams(), 2::bigint, 'as many streams are kept as if what was rolled back had never been [rule 2]');
COMMIT;

-- streams that are read ahead by their ids, which have gaps
DO $$
BEGIN
  FOR i IN 1..300 LOOP
    BEGIN
      PERFORM evpg_append('counter' || (ARRAY['', '_c'])[1 + i % 2], 'ahead' || i, ARRAY[evpg_event('Noted')]);
      IF i % 7 = 0 THEN
        RAISE EXCEPTION 'undo';
      END IF;
    EXCEPTION WHEN raise_exception THEN
    END;
  END LOOP;
END $$;
SELECT is((SELECT count(*) FROM evpg_read_all(max_count => 100000) WHERE aggregate_id LIKE 'ahead%'), 258::bigint,
  'events of many new streams are read');
SELECT is((SELECT count(*) FROM evpg_read_all(max_count => 100000) e JOIN evpg.event_log l USING ("position")
    JOIN evpg.stream s USING (stream_id)
   WHERE (e.aggregate_type, e.aggregate_id) IS DISTINCT FROM (s.aggregate_type, s.aggregate_id)), 0::bigint,
  'each with the type and the id of its own stream');
SELECT * FROM finish();
