-- traces.sql: what followed from what: evpg_trace, its diagram and progress, evpg_ancestors.

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
SET default_transaction_isolation = 'read committed';
SELECT plan(39);
SET test.kind = counter;

-- "depth position<cause id version type" of each event of a trace, in order
CREATE FUNCTION test.traced(correlation_id text, max_count int DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(concat(t.depth, ' ', t."position", '<' || t.cause, ' ', t.aggregate_id, t.version, ' ', t.type), ', '
                    ORDER BY t.n)
    FROM evpg_trace(correlation_id, max_count) WITH ORDINALITY t (depth, "position", cause, aggregate_type, aggregate_id,
      version, type, event_id, command_id, causation_id, actor, recorded_at, n)
$$;
-- the events of an array, each with the id of event of its number
CREATE FUNCTION test.id_of(n int) RETURNS uuid LANGUAGE sql AS $$
  SELECT format('00000000-0000-7000-8000-0000000000%s', to_char(n, 'FM00'))::uuid $$;
CREATE FUNCTION test.put(n int, id text, correlation text, causation text DEFAULT NULL, command text DEFAULT NULL)
RETURNS void LANGUAGE sql AS $$
  SELECT count(*) FROM evpg_append('counter', id, ARRAY[evpg_event('Added', '{"n": 1}', event_id => id_of(n))],
    correlation_id => correlation, causation_id => causation, command_id => command)
$$;

-- ------------------------------------------------------------------ a tree

SELECT put(1, 'a', 'order'), put(2, 'b', 'order', id_of(1)::text, 'pay'), put(3, 'c', 'other'),
  put(4, 'd', 'order', 'pay'), put(5, 'b', 'order', id_of(2)::text),
  put(6, 'a', 'order', id_of(1)::text), put(7, 'e', 'order', 'unheard of') \g /dev/null
SELECT is(traced('order'),
  '0 1 a1 Added, 1 2<1 b1 Added, 2 4<2 d1 Added, 2 5<2 b2 Added, 1 6<1 a2 Added, 0 7 e1 Added',
  'a trace has causes before their effects; a cause is an event, or the first event of a command [D63]');
SELECT is(traced('order', 3), '0 1 a1 Added, 1 2<1 b1 Added, 2 4<2 d1 Added',
  'a trace has its first max_count events [D63]');
SELECT is(traced('nothing'), NULL, 'a trace without events is empty [D63]');
SELECT is((SELECT count(*)::int FROM evpg_trace('order', NULL) t JOIN evpg.event e USING ("position")
            WHERE (t.aggregate_type, t.event_id, t.command_id, t.causation_id, t.recorded_at) IS NOT DISTINCT FROM
                  (e.aggregate_type, e.event_id, e.command_id, e.causation_id, e.recorded_at)), 6,
  'a trace shows the events as they are [D63]');
SELECT is(evpg_trace_diagram('order', 3), $$flowchart LR
  e1["counter/a 1<br/>Added"]
  e2["counter/b 1<br/>Added"]
  e4["counter/d 1<br/>Added"]
  e1 --> e2
  e2 --> e4
$$, 'a trace is drawn for Mermaid [D63]');
SELECT is(evpg_trace_diagram('order', 2, 'dot'), $$digraph evpg {
  rankdir=LR;
  e1 [shape=box, label="counter/a 1\nAdded"];
  e2 [shape=box, label="counter/b 1\nAdded"];
  e1 -> e2;
}
$$, 'a trace is drawn for Graphviz [D63]');
SELECT is(evpg_trace_diagram('nothing'), E'flowchart LR\n', 'the diagram of an empty trace has no nodes [D63]');
SELECT put(8, E'"#<b>&`|\\é%{}', 'odd') \g /dev/null
SELECT is(evpg_trace_diagram('odd'), $$flowchart LR
  e8["counter/#34;#35;#60;b#62;#38;#96;#124;#92;é#37;#123;#125; 1<br/>Added"]
$$, 'no id breaks a diagram for Mermaid [D63]');
SELECT is(evpg_trace_diagram('odd', format => 'dot'), $$digraph evpg {
  rankdir=LR;
  e8 [shape=box, label="counter/\"#<b>&`|\\é%{} 1\nAdded"];
}
$$, 'no id breaks a diagram for Graphviz [D63]');

-- an event without correlation is the beginning of one
SELECT count(*) FROM evpg_append('counter', 'f', ARRAY[evpg_event('Added', '{"n": 1}', event_id => id_of(9)),
  evpg_event('Added', '{"n": 1}', event_id => id_of(10), caused_by => 1)]) \g /dev/null
SELECT is(traced(id_of(9)::text), '0 9 f1 Added, 1 10<9 f2 Added', 'an event without correlation_id begins a trace [D63]');

-- ids that a client chose
SELECT put(11, 'g', 'circle', id_of(12)::text), put(12, 'g', 'circle', id_of(11)::text),
  put(13, 'g', 'circle', id_of(13)::text) \g /dev/null
SELECT is(traced('circle'), '0 11 g1 Added, 1 12<11 g2 Added, 0 13 g3 Added',
  'only an earlier event is a cause: a trace has no circle [D63]');
SELECT is((SELECT string_agg(e."position"::text, ' ') FROM evpg_ancestors(id_of(12)) e), '12 11',
  'only an earlier event is a cause: ancestors have no circle [D62]');
SELECT is((SELECT string_agg(e."position"::text, ' ') FROM evpg_ancestors(id_of(13)) e), '13',
  'an event is not its own ancestor [D62]');

-- ------------------------------------------------------------------ any tree, and long ones

-- The same by the path to each event, which takes a path for each event.
CREATE FUNCTION test.traced_by_paths(correlation_id text) RETURNS text LANGUAGE sql AS $$
  WITH RECURSIVE traced AS (SELECT * FROM evpg.event e WHERE e.correlation_id = traced_by_paths.correlation_id),
    caused AS (
      SELECT e.*, coalesce(
               (SELECT c."position" FROM traced c WHERE c.event_id::text = e.causation_id AND c."position" < e."position"),
               (SELECT min(c."position") FROM traced c WHERE c.command_id = e.causation_id AND c."position" < e."position")
             ) AS cause
        FROM traced e),
    tree AS (
      SELECT 0 AS depth, ARRAY[e."position"] AS path, e.* FROM caused e WHERE e.cause IS NULL
      UNION ALL
      SELECT t.depth + 1, t.path || e."position", e.* FROM tree t JOIN caused e ON e.cause = t."position")
  SELECT string_agg(concat(depth, ' ', "position", '<' || cause, ' ', aggregate_id, version, ' ', type), ', ' ORDER BY path)
    FROM tree
$$;
-- an id for each event of a trace
CREATE FUNCTION test.id_in(correlation_id text, n int) RETURNS text LANGUAGE sql AS $$
  SELECT md5(correlation_id || n)::uuid::text $$;

-- some are caused by events or commands that come later, by themselves, or by what the trace does not contain
SELECT count(*) FROM generate_series(1, 300) n, LATERAL evpg_append('counter', 'r' || n % 7,
  ARRAY[evpg_event('Added', '{"n": 1}', event_id => test.id_in('any', n)::uuid)], correlation_id => 'any',
  command_id => CASE WHEN n % 5 = 0 THEN 'any ' || n / 10 END,
  causation_id => CASE WHEN n % 3 = 0 THEN 'any ' || abs(hashint4(n)) % (n / 7 + 2)
                       ELSE test.id_in('any', abs(hashint4(n)) % (n + 2)) END) \g /dev/null
SELECT is(traced('any'), traced_by_paths('any'), 'a trace is in the order of paths [D63]');
SELECT ok(max(depth) > 4 AND count(*) FILTER (WHERE depth = 0) > 10 AND count(*) FILTER (WHERE previous > "position") > 10
    AND count(*) FILTER (WHERE causation_id LIKE 'any %' AND cause IS NOT NULL) > 10, 'which is not that of positions')
  FROM (SELECT *, lag("position") OVER () AS previous FROM evpg_trace('any')) t;
SELECT is(traced('any', 299), (SELECT string_agg(t, ', ') FROM (
  SELECT t FROM string_to_table(traced('any'), ', ') t
   WHERE split_part(split_part(t, ' ', 2), '<', 1)::bigint < (SELECT max("position") FROM evpg_trace('any'))) t),
  'without its last event it is the same [D63]');

-- each is caused by the one before it; all by the first; each by the one that comes after it, and the last by the first
SELECT count(*) FROM (VALUES ('chain'), ('fan'), ('ring')) c (correlation_id), generate_series(1, 6000) n,
  LATERAL evpg_inject('counter', correlation_id,
    evpg_event('Added', '{"n": 1}', event_id => test.id_in(correlation_id, n)::uuid),
    correlation_id => correlation_id, causation_id => test.id_in(correlation_id, CASE correlation_id WHEN 'chain' THEN n - 1
      WHEN 'fan' THEN 1 ELSE n % 6000 + 1 END)) \g /dev/null
SET work_mem = '1MB';
SET temp_file_limit = '16MB';
CREATE FUNCTION test.summary(correlation_id text) RETURNS text LANGUAGE sql AS $$
  SELECT format('%s events, %s deep, %s in order of positions, %s caused by the one before', count(*), max(depth),
                count(*) FILTER (WHERE previous < "position"), count(*) FILTER (WHERE cause = previous))
    FROM (SELECT *, lag("position") OVER (ORDER BY n) AS previous
            FROM evpg_trace(correlation_id, NULL) WITH ORDINALITY t (depth, "position", cause, aggregate_type, aggregate_id,
              version, type, event_id, command_id, causation_id, actor, recorded_at, n)) t
$$;
SELECT is(summary('chain'), '6000 events, 5999 deep, 5999 in order of positions, 5999 caused by the one before',
  'a long chain is traced in little memory [D63]');
SELECT is(summary('fan'), '6000 events, 1 deep, 5999 in order of positions, 1 caused by the one before',
  'so is an event with many effects [D63]');
SELECT is(summary('ring'), '6000 events, 1 deep, 5998 in order of positions, 1 caused by the one before',
  'and injected events whose causes are a ring [D63]');
RESET work_mem;
RESET temp_file_limit;

-- ------------------------------------------------------------------ ancestors

SELECT is((SELECT string_agg(e."position"::text, ' ') FROM evpg_ancestors(id_of(5)) e), '5 2 1',
  'ancestors begin with the event and end with the first cause [D62]');
SELECT is((SELECT string_agg(e."position"::text, ' ') FROM evpg_ancestors(id_of(5), 2) e), '5 2', 'at most max_count [D62]');
SELECT is((SELECT string_agg(e."position"::text, ' ') FROM evpg_ancestors(id_of(4)) e), '4',
  'ancestors end where the cause is a command [D62]');
SELECT is((SELECT count(*)::int FROM evpg_ancestors(id_of(99))), 0, 'an unknown event has none [D62]');
SELECT is((SELECT count(*)::int FROM evpg_ancestors(id_of(5)) a JOIN evpg.event e ON a = e), 3,
  'ancestors are events [D62]');

-- ------------------------------------------------------------------ how far consumers are

SELECT evpg_register_projection('inline', 'test.sum_apply'),
  evpg_register_projection('async', 'test.sum_apply', mode => 'async', start_position => 2),
  evpg_create_subscription('feed') \g /dev/null
SELECT is((SELECT string_agg(concat_ws(' ', name, kind, mode, status, passed, remaining), ', ')
             FROM evpg_trace_progress('order')),
  'async projection async running 2 4, inline projection inline running 6 0, feed subscription async running 0 6',
  'progress of a trace: events that each consumer has passed, and those ahead of it [D63, D80]');
CALL evpg_run();
SELECT is((SELECT string_agg(concat_ws(' ', name, passed, remaining), ', ') FROM evpg_trace_progress('order')),
  'async 6 0, inline 6 0, feed 0 6', 'progress of a trace changes as consumers run [D63, D80]');

-- ------------------------------------------------------------------ what is registered

CREATE FUNCTION test.heed(event evpg.event) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION test.let_pass(command evpg.command) RETURNS evpg.command LANGUAGE sql AS 'SELECT command';
CREATE FUNCTION test.react(state jsonb, event evpg.event) RETURNS evpg.reaction
  LANGUAGE sql AS 'SELECT evpg_reaction(state)';
SELECT evpg_drop_projection('inline'), evpg_drop_projection('async'), evpg_drop_subscription('feed') \g /dev/null
SELECT evpg_drop_aggregate(aggregate_type) FROM evpg.aggregate_type WHERE aggregate_type <> 'counter' \g /dev/null
SELECT is(evpg_diagram(), E'flowchart LR\n  ag1["counter"]\n', 'a diagram of aggregates alone');
SET client_min_messages = error;
SELECT evpg_register_projection('sums', 'test.sum_apply', aggregate_types => '{counter}', event_types => '{Added,Odd}'),
  evpg_register_projection('all', 'test.sum_apply', mode => 'async', event_types => '{A,B,C,D,E,F,G}'),
  evpg_register_saga('moves', 'test.react', aggregate_types => '{counter,later}', start_event_types => '{Added}',
    key_path => '$.data.k'),
  evpg_create_subscription('feed', aggregate_types => '{counter}'),
  evpg_register_listener('ears', 'test.heed', aggregate_types => '{counter}'),
  evpg_register_interceptor('guard', 'test.let_pass', aggregate_types => '{counter}', command_types => '{Add}') \g /dev/null
RESET client_min_messages;
SELECT is(evpg_diagram(), $$flowchart LR
  ag1["counter"]
  ag2["later"]
  pr1[("all<br/>projection, async")]
  li1(["ears<br/>listener"])
  su1[/"feed<br/>subscription"/]
  in1>"guard<br/>interceptor"]
  sa1{{"moves<br/>saga, async"}}
  pr2[("sums<br/>projection, inline")]
  in1 -->|"Add"| ag1
  ag1 --> li1
  ag1 -->|"A, B, C, D, E, F, ..."| pr1
  ag2 -->|"A, B, C, D, E, F, ..."| pr1
  ag1 -->|"Added, Odd"| pr2
  ag1 --> sa1
  ag2 --> sa1
  ag1 --> su1
$$, 'a diagram shows aggregates, and what sees their commands and events');
SELECT is(split_part(evpg_diagram('dot'), E'\n', 3) || split_part(evpg_diagram('dot'), E'\n', 11),
  '  ag1 [shape=box, label="counter"];  in1 -> ag1 [label="Add"];', 'a diagram for Graphviz');
SELECT is(error_of('SELECT evpg_diagram(''svg'')'), '22023 there is no format "svg"', 'a diagram in an unknown format');

-- ------------------------------------------------------------------ the index

SELECT evpg_enable_index('correlation') \g /dev/null
SET enable_seqscan = off;
SET enable_indexscan = on;
SET enable_bitmapscan = on;
CREATE FUNCTION test.uses_index(statement text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  plan json;
BEGIN
  EXECUTE 'EXPLAIN (FORMAT json) ' || statement INTO plan;
  RETURN plan::text LIKE '%event_log_correlation%';
END $$;
SELECT ok(uses_index($$SELECT FROM evpg.event WHERE correlation_id = 'order'$$),
  'the index on correlations serves the view of events [D63]');
RESET enable_seqscan;
SELECT is(traced('order', 3) || ', ' || traced(id_of(9)::text),
  '0 1 a1 Added, 1 2<1 b1 Added, 2 4<2 d1 Added, 0 9 f1 Added, 1 10<9 f2 Added', 'a trace by the index is the same [D63]');

-- ------------------------------------------------------------------ bad input, privileges

SELECT is(error_of('SELECT evpg_trace(NULL)'), '22004 correlation_id must not be null', 'a trace of NULL');
SELECT is(error_of('SELECT evpg_trace_progress(NULL)'), '22004 correlation_id must not be null', 'progress of NULL');
SELECT is(error_of('SELECT evpg_trace(''order'', 0)'), '22023 max_count must be at least 1', 'a trace of no events');
SELECT is(error_of('SELECT evpg_ancestors(NULL)'), '22004 event_id must not be null', 'ancestors of NULL');
SELECT is(error_of('SELECT evpg_ancestors(gen_random_uuid(), 0)'), '22023 max_count must be at least 1', 'no ancestors');
CREATE ROLE evpg_test_tracer;
SELECT is(as_role('evpg_test_tracer', 'SELECT evpg_trace(''order'')'), '42501 permission denied for function evpg_trace',
  'a trace without privileges [A50]');
SELECT evpg_grant('evpg_test_tracer', 'reader') \g /dev/null
SELECT is(as_role('evpg_test_tracer', 'SELECT evpg_trace(''order''), evpg_trace_diagram(''order''), evpg_diagram(), '
  'evpg_trace_progress(''order''), evpg_ancestors(''00000000-0000-7000-8000-000000000001'')'),
  'done', 'a reader traces [A50]');
DROP OWNED BY evpg_test_tracer;
DROP ROLE evpg_test_tracer;

SELECT * FROM finish();
