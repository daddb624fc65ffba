-- tag_reads.sql: events with tags are found by the index on tags, at the cost of what is found, and are the same as without
-- it (rules 9 and 21).

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(29);
-- what is read, and by which index, is counted
SET enable_seqscan = on;
SET enable_indexscan = on;
SET enable_bitmapscan = on;
SET enable_sort = on;
SET default_transaction_isolation = 'read committed';
SELECT evpg_register_aggregate('course'), evpg_register_aggregate('student') \g /dev/null

-- 60,000 events.  One in two has the tag even, one in a thousand rare; all of the last 20,000 late, of which 100 in a row
-- burst; one in all single.
SELECT count(e.version) FROM generate_series(0, 59) batch, LATERAL (
  SELECT array_agg(evpg_event('T' || n % 3, tags => nullif(
    array_remove(ARRAY[CASE WHEN n % 2 = 0 THEN 'even' END, CASE WHEN n % 1000 = 700 THEN 'rare' END,
      CASE WHEN n >= 40000 THEN 'late' END, CASE WHEN n BETWEEN 50000 AND 50099 THEN 'burst' END,
      CASE WHEN n = 55555 THEN 'single' END], NULL), '{}')) ORDER BY n) AS events
    FROM generate_series(batch * 1000, batch * 1000 + 999) n) b,
  evpg_append(CASE WHEN batch % 2 = 0 THEN 'course' ELSE 'student' END, 's' || batch % 7, b.events) e \g /dev/null
SELECT max("position") AS last FROM evpg.event \gset

-- how many rows of the log the session has looked at
CREATE FUNCTION test.looked() RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT sum(pg_stat_get_xact_tuples_fetched(c.oid) + CASE c.relkind WHEN 'r' THEN pg_stat_get_xact_tuples_returned(c.oid)
    ELSE 0 END)::bigint
    FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
   WHERE 'evpg.event_log'::regclass IN (c.oid, i.indrelid)
$$;
-- "rows first last" of what a query returns, and whether it has looked at no more rows of the log than a number
CREATE FUNCTION test.cost(query text, at_most bigint) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  before bigint := looked();
  result text;
  rows bigint;
BEGIN
  EXECUTE format('SELECT concat_ws('' '', count(*), min("position"), max("position")) FROM (%s) q', query) INTO result;
  rows := looked() - before;
  RETURN result || CASE WHEN rows <= at_most THEN ', cheap' ELSE format(', but %s rows of the log were looked at', rows) END;
END $$;
CREATE FUNCTION test.counts_looks() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  before bigint := looked();
BEGIN
  PERFORM FROM evpg_read_all(max_count => 3000);
  RETURN looked() - before BETWEEN 3000 AND 3100;
END $$;
SELECT ok(counts_looks(), 'what is looked at is counted');

SELECT matches(cost($$SELECT * FROM evpg_read_all(tags => '{single}')$$, 2000), '^1 [0-9]+ [0-9]+, but 6[0-9]{4} rows',
  'without an index on tags all events are looked at [B38]');
SELECT evpg_enable_index('tags') \g /dev/null
ANALYZE evpg.event_log;
SELECT matches(cost($$SELECT * FROM evpg_read_all(tags => '{single}')$$, 600), '^1 [0-9]+ [0-9]+, cheap$',
  'one event with a tag is found among many [B38]');
SELECT matches(cost($$SELECT * FROM evpg_read_all(tags => '{none}')$$, 600), '^0, cheap$',
  'that no event has a tag is found out [B38]');
SELECT matches(cost($$SELECT * FROM evpg_read_all(tags => '{rare}')$$, 1200), '^60 [0-9]+ [0-9]+, cheap$',
  'the events with a rare tag are found [B38]');
SELECT matches(cost($$SELECT * FROM evpg_read_all(tags => '{rare}', max_count => 5)$$, 1200), '^5 [0-9]+ [0-9]+, cheap$',
  'a page of the events with a rare tag is found, without going along the log in the hope for them [B38]');
SELECT matches(cost($$SELECT * FROM evpg_read_all(tags => '{burst}', max_count => 10)$$, 1000), '^10 [0-9]+ [0-9]+, cheap$',
  'a page of events that lie far away in a row is found [B38]');
SELECT matches(cost($$SELECT * FROM evpg_read_all(tags => '{burst,single}')$$, 2000), '^101 [0-9]+ [0-9]+, cheap$',
  'events with any of two tags are found, though they lie apart [B38]');
SELECT matches(cost($$SELECT * FROM evpg_read_all(tags => '{rare}', event_types => '{T1}')$$, 1200),
  '^20 [0-9]+ [0-9]+, cheap$', 'the events with a rare tag are found, of one type [B38]');
SELECT matches(
  cost($$SELECT * FROM evpg_read_all(tags => '{rare}', aggregate_types => '{student}', max_count => 7)$$, 1200),
  '^7 [0-9]+ [0-9]+, cheap$', 'the events with a rare tag are found, of one aggregate type [B38]');
SELECT matches(cost($$SELECT * FROM evpg_read_all(tags => '{even}', max_count => 1000)$$, 2100),
  '^1000 [0-9]+ [0-9]+, cheap$', 'a page of the events with a frequent tag is read along the log [B38]');

-- events without tags are not in it
SELECT pg_relation_size('evpg.event_log_tags') AS before \gset
SELECT count(e.version) FROM evpg_append('course', 'untagged',
  ARRAY(SELECT evpg_event('Untagged') FROM generate_series(1, 3000))) e \gset untagged_
SELECT is(pg_relation_size('evpg.event_log_tags'), :before::bigint, 'an event without tags adds nothing to the index [B38]');

-- a tag that many events have, but none of the first: not all of them are read, over and over
CREATE FUNCTION test.refused_by(condition jsonb) RETURNS bigint LANGUAGE sql AS $$
  SELECT (regexp_match(error_fields(format(
    'SELECT evpg_append_event(''student'', ''never'', ''Tried'', condition => %L)', condition)),
    '"position": ([0-9]+)'))[1]::bigint
$$;
SELECT is(cost($$SELECT refused_by(evpg_condition(tags => '{single}')) AS "position"$$, 600),
  (SELECT concat_ws(' ', 1, "position", "position") || ', cheap' FROM evpg.event WHERE tags @> '{single}'),
  'an event that matches a condition is found among many [rule 21]');
SELECT is(cost($$SELECT refused_by(evpg_condition(tags => '{burst,late}')) AS "position"$$, 1200),
  (SELECT concat_ws(' ', 1, min("position"), min("position")) || ', cheap' FROM evpg.event WHERE tags @> '{burst}'),
  'an event that matches a condition of two tags is found among many [rule 21]');
SELECT is(refused_by(evpg_condition(tags => '{late}')), (SELECT min("position") FROM evpg.event WHERE tags @> '{late}'),
  'the first event with a tag is found that most later ones have [rule 21]');
SELECT refused_by(evpg_condition(tags => '{even}')) \g /dev/null
SELECT is(cost($$SELECT refused_by(evpg_condition(tags => '{even}')) AS "position"$$, 40),
  (SELECT concat_ws(' ', 1, min("position"), min("position")) || ', cheap' FROM evpg.event WHERE tags @> '{even}'),
  'the first event with a frequent tag is found at once, when the session knows that it is [rule 21]');
SELECT is(
  cost($$SELECT refused_by(evpg_condition('{T7}') || evpg_condition(tags => '{single}')) AS "position"$$, 100000),
  (SELECT concat_ws(' ', 1, "position", "position") || ', cheap' FROM evpg.event WHERE tags @> '{single}'),
  'a condition of which an index serves one item alone is searched along the log [rule 21]');
SELECT evpg_enable_index('event_type') \g /dev/null
SELECT is(cost($$SELECT refused_by(evpg_condition('{T7}') || evpg_condition(tags => '{single}')) AS "position"$$, 600),
  (SELECT concat_ws(' ', 1, "position", "position") || ', cheap' FROM evpg.event WHERE tags @> '{single}'),
  'a condition of which indexes serve both items is searched by both [rule 21]');
SELECT evpg_enable_index('event_type', false) \g /dev/null

-- under SERIALIZABLE a look into the index would conflict with all appends of tagged events
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is((SELECT count(*) FROM evpg_read_all(tags => '{rare}', stable_only => false)), 60::bigint,
  'under SERIALIZABLE the events with a tag are found [B38]');
SELECT is((SELECT count(*) FROM own_lock WHERE mode = 'SIReadLock' AND relation = 'evpg.event_log_tags'::regclass),
  0::bigint,
  'under SERIALIZABLE the index on tags is left alone [B38]');
ROLLBACK;

-- ------------------------------------------------------------------ the same as without an index

-- Searches at random, of a seed that is printed.
CREATE TABLE test.searches (n int, tags text[], types text[], aggregate_types text[], after bigint, page int);
CREATE PROCEDURE test.make_searches(seed float8, count int, last bigint) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM setseed(seed);
  INSERT INTO searches
  SELECT n, ARRAY(SELECT (ARRAY['even', 'rare', 'late', 'burst', 'single', 'none'])[1 + floor(random() * 6 + n * 0)]
                    FROM generate_series(1, 1 + floor(random() * 3)::int)),
         CASE WHEN random() < 0.4 THEN ARRAY['T' || floor(random() * 4)::int, 'T1'] END,
         CASE WHEN random() < 0.3 THEN ARRAY[CASE WHEN random() < 0.5 THEN 'course' ELSE 'student' END] END,
         CASE WHEN random() < 0.5 THEN 0 ELSE floor(random() * last) END,
         1 + floor(random() * 2000)
    FROM generate_series(1, count) n;
  INSERT INTO searches VALUES (0, '{none}', NULL, NULL, 0, 10), (-1, '{even}', '{T0}', NULL, 0, 10);
END $$;
SELECT random() AS seed \gset
SELECT diag('seed ' || :seed) \g /dev/null
CALL make_searches(:seed, 40, :last);

CREATE FUNCTION test.wanted(s searches) RETURNS bigint[] LANGUAGE sql AS $$
  SELECT array_agg("position" ORDER BY "position") FROM (
    SELECT e."position" FROM evpg.event e WHERE e.tags && s.tags AND e."position" > s.after
       AND (s.types IS NULL OR e.type = ANY (s.types))
       AND (s.aggregate_types IS NULL OR e.aggregate_type = ANY (s.aggregate_types))
     ORDER BY e."position" LIMIT 3 * s.page) q
$$;
-- three pages, each after the last event of the one before
CREATE FUNCTION test.pages(s searches) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
  found bigint[];
  page bigint[];
  last bigint := s.after;
BEGIN
  FOR i IN 1 .. 3 LOOP
    SELECT array_agg(e."position" ORDER BY ordinality), max(e."position") INTO page, last
      FROM evpg_read_all(last, s.page, s.aggregate_types, s.types, s.tags)
           WITH ORDINALITY AS e ("position", a, b, v, t);
    found := found || page;
    EXIT WHEN page IS NULL;
  END LOOP;
  RETURN found;
END $$;
-- all events that match two items: those with all of the tags, and those with the last one and a type, in two ways
CREATE FUNCTION test.two_items(s searches) RETURNS jsonb LANGUAGE sql AS $$
  SELECT evpg_condition(s.types, s.tags, s.after, s.aggregate_types)
      || evpg_condition('{T2}', s.tags[cardinality(s.tags):], s.after + s.page)
      || CASE WHEN s.page % 3 = 0 THEN evpg_condition('{T3}') ELSE '[]' END
$$;
CREATE FUNCTION test.matching(s searches) RETURNS bigint[] LANGUAGE sql AS $$
  SELECT array_agg(e."position" ORDER BY e."position") FROM evpg.event e
   WHERE (e.tags @> s.tags AND e."position" > s.after AND (s.types IS NULL OR e.type = ANY (s.types))
          AND (s.aggregate_types IS NULL OR e.aggregate_type = ANY (s.aggregate_types)))
      OR (e.tags @> s.tags[cardinality(s.tags):] AND e."position" > s.after + s.page AND e.type = 'T2')
$$;
CREATE FUNCTION test.matched(s searches) RETURNS bigint[] LANGUAGE sql AS $$
  SELECT array_agg(e."position" ORDER BY ordinality)
    FROM evpg_read_all(max_count => NULL, condition => two_items(s)) WITH ORDINALITY AS e ("position", a, b, v, t)
$$;
CREATE TABLE test.results AS SELECT n, wanted(s) AS wanted, matching(s) AS matching FROM searches s;
SELECT ok((SELECT count(wanted) BETWEEN 1 AND count(*) - 1 FROM results), 'searches find something, but not all do');
SELECT is_empty('SELECT n FROM searches s JOIN results USING (n) WHERE pages(s) IS DISTINCT FROM wanted',
  'pages of events are the same by the index on tags [rule 9]');
SELECT is_empty('SELECT n FROM searches s JOIN results USING (n) WHERE matched(s) IS DISTINCT FROM matching',
  'the events that match a condition are the same by the index on tags [rule 21]');
SELECT evpg_enable_index('event_type') \g /dev/null
SELECT is_empty('SELECT n FROM searches s JOIN results USING (n) WHERE pages(s) IS DISTINCT FROM wanted',
  'pages of events are the same by the indexes on tags and types [rule 9]');
SELECT is_empty('SELECT n FROM searches s JOIN results USING (n) WHERE matched(s) IS DISTINCT FROM matching',
  'the events that match a condition are the same by the indexes on tags and types [rule 21]');
SELECT evpg_enable_index('tags', false) \g /dev/null
SELECT is_empty('SELECT n FROM searches s JOIN results USING (n) WHERE pages(s) IS DISTINCT FROM wanted',
  'pages of events are the same by the index on types [rule 9]');
SELECT is_empty('SELECT n FROM searches s JOIN results USING (n) WHERE matched(s) IS DISTINCT FROM matching',
  'the events that match a condition are the same by the index on types [rule 21]');
SELECT evpg_enable_index('event_type', false) \g /dev/null
SELECT is_empty('SELECT n FROM searches s JOIN results USING (n) WHERE pages(s) IS DISTINCT FROM wanted',
  'pages of events are the same without an index [rule 9]');
SELECT is_empty('SELECT n FROM searches s JOIN results USING (n) WHERE matched(s) IS DISTINCT FROM matching',
  'the events that match a condition are the same without an index [rule 21]');
SELECT * FROM finish();
