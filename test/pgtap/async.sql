-- async.sql: asynchronous projections: one consumer each, which moves its checkpoint in the transaction of what it applies
-- (rules 9, 10, 11, 12).  CALL evpg_run() does in this session what workers do.

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(91);
SET test.kind = counter;

-- ------------------------------------------------------------------ as an inline one

CREATE TABLE test.kinds AS SELECT register_kinds('i ', 'inline') AS kind;
SELECT * FROM register_kinds('a ', 'async') \g /dev/null
SELECT events_at_random(300, 0.5) \g /dev/null
SELECT is((SELECT count(*) FROM evpg.projected_state WHERE starts_with(name, 'a ')), 0::bigint,
  'nothing is applied by who appends [rule 10]');
SELECT is((SELECT array_agg(DISTINCT c::text)
  FROM (SELECT mode, status, checkpoint, lag_events, lag_seconds > 0, events_total FROM evpg.stat_consumer
  WHERE starts_with(name, 'a ')) c), '{"(async,running,0,300,t,0)"}', 'the checkpoint is at the beginning [rule 10, B35]');
SELECT is((SELECT array_agg(DISTINCT c::text)
  FROM (SELECT mode, status, checkpoint, lag_events, lag_seconds, parked FROM evpg.stat_consumer
  WHERE starts_with(name, 'i ')) c), '{"(inline,running,,,,0)"}', 'an inline projection has none [rule 10]');
CALL evpg_run();
SELECT is(unlike('i ' || kind, 'a ' || kind), '',
  'an asynchronous projection comes to what an inline one does: ' || kind || ' [rules 10, 11, 12]') FROM kinds;
SELECT cmp_ok((SELECT count(*) FROM stored WHERE name = 'a ' || kind), '>', 0::bigint,
  'and has rows: ' || kind || ' [rule 10]') FROM kinds;
SELECT is((SELECT array_agg(DISTINCT consumer_of('a ' || kind)) FROM kinds), '{"running 0 tried 0 errors 0"}',
  'the checkpoint is at the end [rule 10, A27, B31]');
SELECT is((SELECT events_total FROM evpg.stat_consumer WHERE name = 'a ' || x.kind), counted,
  'events are counted: ' || kind || ' [rule 10]') FROM (VALUES
  ('both', 300::bigint), ('by_id', (SELECT count(*) FROM evpg.event WHERE aggregate_type = 'counter')),
    ('types', (SELECT count(*) FROM evpg.event WHERE type IN ('Added', 'Cleared')))) x (kind, counted);
SELECT is((SELECT array_agg(DISTINCT c::text)
  FROM (SELECT lag_events, lag_seconds FROM evpg.stat_consumer WHERE starts_with(name, 'a ')) c), '{"(0,0)"}',
  'no lag [rule 10, B35]');
SELECT md5(string_agg(s::text, ',' ORDER BY build, key)) AS rows FROM evpg.projection_state s \gset
CALL evpg_run(1000);
SELECT is((SELECT md5(string_agg(s::text, ',' ORDER BY build, key)) FROM evpg.projection_state s), :'rows',
  'nothing is applied twice [rule 10, A27]');

-- piece by piece, with positions that nobody has committed
SELECT events_at_random(7, 0.1) \g /dev/null
CALL evpg_run();
BEGIN;
SELECT events_at_random(3, 0.2) \g /dev/null
ROLLBACK;
CALL evpg_run();
SELECT events_at_random(1, 0.3) \g /dev/null
CALL evpg_run();
BEGIN;
SELECT events_at_random(2, 0.4) \g /dev/null
ROLLBACK;
CALL evpg_run();
SELECT is(unlike('i ' || kind, 'a ' || kind), '',
  'batch by batch, over positions that were rolled back: ' || kind || ' [rules 9, 10, A26, A29]') FROM kinds;
-- more than one batch
SET evpg.test_mutation = small_batches;
SELECT count(*) FROM evpg_append('counter', 'long',
  (SELECT array_agg(evpg_event('Added', jsonb_build_object('n', n, 'group', 'g' || n % 7))) FROM generate_series(1, 3000) n))
  \g /dev/null
CALL evpg_run();
RESET evpg.test_mutation;
SELECT is(unlike('i ' || kind, 'a ' || kind), '', 'many batches: ' || kind || ' [rule 10]') FROM kinds;
SELECT is((SELECT sum((state->>'sum')::bigint) FROM evpg.projected_state WHERE name = 'a by_id' AND key = 'long'),
  4501500::numeric, 'that is the sum [rule 10]');
-- a batch has one event at least, and no more if that takes long
CREATE FUNCTION test.slow_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT event.data FROM pg_sleep(0.51)
$$;
SELECT evpg_register_projection('slow', 'test.slow_apply', mode => 'async', event_types => '{Slow}') \g /dev/null
SELECT add('slow' || n, n, 'Slow') FROM generate_series(1, 3) n \g /dev/null
CALL evpg_run();
SELECT is((SELECT (count(*), count(DISTINCT s.xmin::text))::text FROM evpg.projection_state s
  JOIN evpg.projection p USING (build) WHERE p.name = 'slow'), '(3,3)', 'slow events are batches of their own [rule 10]');
SELECT evpg_drop_projection('slow') \g /dev/null
SELECT evpg_drop_projection(p || kind) FROM kinds, unnest('{"i ","a "}'::text[]) p \g /dev/null
SELECT is((SELECT count(*) FROM evpg.consumer) + (SELECT count(*) FROM evpg.projection_state), 0::bigint,
  'dropped, with checkpoints and rows [C11]');

-- a projection of rare events: its checkpoint is written now and then, and it can be waited for
SELECT evpg_register_projection('rare', 'test.sum_apply', mode => 'async', event_types => '{Odd}') \g /dev/null
CALL evpg_run();
SELECT add('r', 1) AS position \gset
CALL evpg_run();
SELECT is(evpg_wait_for('rare', :position, '0'), true, 'it has come past what it does not take [rule 10]');
SELECT add('r', 1, 'Odd') AS position \gset
SELECT is(evpg_wait_for('rare', :position, '0'), false, 'a consumer has not come past an event that it takes [rule 10]');
CALL evpg_run();
SELECT is(evpg_wait_for('rare', :position, '0'), true, 'until it is applied [rule 10]');
SELECT is(row_of('rare', 'r'), '1.1 {"sum": 0, "count": 1}', 'once [rule 10]');
SELECT evpg_drop_projection('rare') \g /dev/null

-- ------------------------------------------------------------------ tables

SELECT evpg_register_projection('lines', handler => 'test.statement_write', mode => 'async', aggregate_types => '{counter}',
  event_types => '{Added}', start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('t', 1), add('t', 2), add('u', 3) \g /dev/null
SELECT is((SELECT count(*) FROM statement), 0::bigint, 'tables are not written by who appends [rule 10]');
CALL evpg_run();
SELECT same('SELECT id, n FROM statement ORDER BY position', $$VALUES ('t', 1), ('t', 2), ('u', 3)$$,
  'tables are written by the consumer, in order [rule 10]');
SELECT is(rows_of('lines'), 't: 1.2 -, u: 1.1 -', 'a table projection has rows without a state [rule 11]');
SELECT evpg_drop_projection('lines') \g /dev/null

-- ------------------------------------------------------------------ frames

SELECT listen('sums'), listen('sums', 'a') \g /dev/null
SELECT evpg_register_projection('sums', 'test.sum_project', mode => 'async', aggregate_types => '{counter}',
  broadcast => 'delta', start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('a', 1), add('b', 2), add('a', 3), add('a', 4, 'Odd'), add('a', 5, 'Cleared'), add('a', 6) \g /dev/null
SELECT is(heard(), '', 'nothing is sent by who appends [rule 14]');
CALL evpg_run();
SELECT is(heard(), 'delta a 1.1 {"n": 1}, delta b 1.1 {"n": 2}, delta a 1.2 {"n": 3}, delta a 1.4 {"n": 5} deleted, delta a '
  '2.1 {"n": 6}', 'a frame for each event, in the order of positions [rule 14]');
CALL evpg_run();
SELECT is(heard(), '', 'once [rule 10]');
SELECT evpg_put_projection('sums', 'a', '{"sum": 9}') \g /dev/null
SELECT is(heard(), 'put a 2.2 {"sum": 9}', 'a put [C20]');
SELECT add('a', 1) \g /dev/null
CALL evpg_run();
SELECT is(row_of('sums', 'a'), '2.3 {"sum": 10, "count": 1}', 'from which the consumer goes on [C20]');
SELECT heard() \g /dev/null
SELECT add('a', 2) \g /dev/null
SELECT is(evpg_rebuild_projection('sums', 'a'), 6::bigint, 'a rebuild of a key folds what has been consumed [rule 13]');
SELECT is(heard(), 'rebuild a 4.6 {"sum": 7, "count": 2}',
  'a rebuild of a key folds what has been consumed, and sends the state [rule 13]');
CALL evpg_run();
SELECT is(row_of('sums', 'a'), '4.7 {"sum": 9, "count": 3}', 'the next event is applied once, by the consumer [rule 13]');
SELECT is(heard(), 'delta a 4.7 {"n": 2}', 'with its frame [rule 13]');

-- ------------------------------------------------------------------ rare types

-- Counts what statements fetch from the log, in this session and in transactions that are over.
CREATE FUNCTION test.fetched() RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT sum(idx_tup_fetch)::bigint FROM pg_stat_user_indexes WHERE schemaname = 'evpg' AND relname = 'event_log'
$$;
CREATE FUNCTION test.fetched_by(index text) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT idx_tup_fetch FROM pg_stat_user_indexes WHERE schemaname = 'evpg' AND indexrelname = index
$$;
SELECT evpg_drop_projection(name) FROM evpg.projection \g /dev/null
CALL evpg_run();
SELECT last_value AS start FROM evpg.event_position \gset
SELECT count(*) FROM generate_series(1, 10) s,
  LATERAL (SELECT evpg_append('counter', 'crowd' || s, array_agg(evpg_event('Crowd'))) FROM generate_series(1, 1000)) a
  \g /dev/null
SELECT add('rare', 1, 'Rare'), add('crowd', 0, 'Crowd'), add('rare', 2, 'Rare'), add('rare', 3, 'Rare') \g /dev/null
SELECT evpg_register_projection('scan', 'test.list_apply', mode => 'async', event_types => '{Rare}',
  start_position => :start) \g /dev/null
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT fetched() AS before \gset
CALL evpg_run();
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT cmp_ok(fetched() - :before, '>=', 10004::bigint,
  'without an index, a projection of a rare type looks at each event [A45]');
SELECT is(row_of('scan', 'rare') || ' ' || consumer_of('scan'), '1.3 [1, 2, 3] running 0 tried 0 errors 0',
  'applies those of its type, and its checkpoint is behind all [A45]');
SELECT fetched() AS before \gset
CALL evpg_run();
SELECT add('rare', 4, 'Rare') \g /dev/null
CALL evpg_run();
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT is(row_of('scan', 'rare'), '1.4 [1, 2, 3, 4]', 'the next one is applied [A45]');
SELECT cmp_ok(fetched() - :before, '<', 50::bigint, 'once: what it has passed it does not look at again [A45]');
-- with the index: the first time, too
SELECT is(evpg_enable_index('event_type'), true, 'an index on types is made [A45]');
SELECT evpg_register_projection('seek', 'test.list_apply', mode => 'async', event_types => '{Rare}',
  start_position => :start) \g /dev/null
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT fetched() AS before \gset
CALL evpg_run();
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT is(row_of('seek', 'rare') || ' ' || consumer_of('seek'), '1.4 [1, 2, 3, 4] running 0 tried 0 errors 0',
  'a projection that begins anew applies the same [A45]');
SELECT cmp_ok(fetched() - :before, '<', 50::bigint,
  'a projection that begins anew applies the same, and looks at these alone [A45]');
SELECT cmp_ok(fetched_by('event_log_event_type'), '>=', 4::bigint, 'by the index [A45]');
SELECT is(evpg_rebuild_projection('seek'), 4::bigint, 'a rebuild finds the events of a type by the index [rule 13]');
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT cmp_ok(fetched() - :before, '<', 50::bigint, 'a rebuild by the index looks at no others [rule 13]');
SELECT is(evpg_enable_index('event_type', false), true, 'it is dropped [A45]');
-- made first by the administrator, while others append, then enabled
CREATE INDEX CONCURRENTLY event_log_event_type ON evpg.event_log (type, position);
SELECT is(evpg_enable_index('event_type'), false, 'one of the same name, made CONCURRENTLY, is there already [A45]');
SELECT is((SELECT string_agg(index_name, ' ') FROM evpg.optional_index), 'event_type',
  'an index that was made CONCURRENTLY is noted when it is enabled [A45]');
SELECT evpg_drop_projection('seek'),
  evpg_register_projection('sought', 'test.list_apply', mode => 'async', event_types => '{Rare}', start_position => :start)
  \g /dev/null
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT fetched() AS before \gset
CALL evpg_run();
SELECT pg_stat_force_next_flush() \g /dev/null
SELECT is(row_of('sought', 'rare'), '1.4 [1, 2, 3, 4]', 'it gives the same [A45]');
SELECT cmp_ok(fetched() - :before, '<', 50::bigint, 'from as few events [A45]');
SELECT * FROM finish();
