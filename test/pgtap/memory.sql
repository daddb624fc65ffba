-- memory.sql: what errors and long sessions leave in memory: nothing.

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql
SELECT evpg_register_aggregate('hostile', library => 'evpg_test', symbol => 'hostile') \g /dev/null

SELECT plan(35);

-- a long result is not held in memory; first of all, since the peak of the process never goes down
CREATE FUNCTION test.peak() RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT substring(pg_read_file('/proc/self/status', 0, 10000) FROM E'VmPeak:\\s+(\\d+)')::bigint $$;
CREATE FUNCTION test.long_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE RETURN state;
SELECT evpg_register_projection('long', 'test.long_apply', event_types => '{Nothing}') \g /dev/null
SELECT count(*) FROM generate_series(1, 50) n, evpg_append('counter', 'long' || n, ARRAY(SELECT
  evpg_event('Long', to_jsonb(repeat('long', 250))) FROM generate_series(1, 1000))) \g /dev/null
SELECT count(*) FROM generate_series(1, 50) n, evpg_append('counter', 'longest' || repeat('', n), ARRAY(SELECT
  evpg_event('Long', to_jsonb(repeat('long', 250))) FROM generate_series(1, 1000))) \g /dev/null
-- not by evpg, which would do it one by one
INSERT INTO evpg.stream (aggregate_type, aggregate_id) SELECT 'long', n || repeat('long', 240)
  FROM generate_series(1, 80000) n;
INSERT INTO evpg.projection_state (build, key, generation, version, "position", deleted, updated_at, state)
  SELECT p.build, n, 1, 1, n, false, now(), to_jsonb(repeat('long', 250)) FROM evpg.projection p, generate_series(1, 80000) n
    WHERE p.name = 'long';
SET work_mem = '1MB';
SELECT count(*) FROM evpg_read_all(0, 1000), evpg_streams(max_count => 1000) s, evpg_projection_changes('long', 0, 1000) c
  WHERE false \g /dev/null
CREATE FUNCTION test.long_result(query text, wanted bigint) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  before bigint := peak();
  found bigint;
BEGIN
  EXECUTE 'SELECT count(*) FROM ' || query INTO found;
  RETURN NEXT is(found, wanted, query || ': all in one call');
  RETURN NEXT cmp_ok(peak() - before, '<', 20000::bigint, query || ': is not held in memory');
END $$;
SELECT long_result(query, wanted) FROM (VALUES
  ('evpg_read_all(0, NULL)', 100000),
  ($q$evpg_read_all(0, NULL, event_types => '{Long}', stable_only => false)$q$, 100000),
  ($q$evpg_read_stream('counter', 'longest', max_count => NULL)$q$, 50000),
  ('evpg_streams(NULL, max_count => NULL)', 80051),
  ($q$evpg_projection_changes('long', 0, NULL)$q$, 80000),
  ($q$evpg_projection_changes('long', 0, 80000)$q$, 80000)) q (query, wanted);
RESET work_mem;

-- events that a filter by tags leaves out
SELECT count(*) FROM generate_series(1, 150) n, evpg_append('counter', 'tagged' || n, ARRAY(SELECT
  evpg_event('Tagged', tags => ARRAY(SELECT 'tag' || t FROM generate_series(1, 20) t)) FROM generate_series(1, 1000)))
    \g /dev/null
SELECT peak() AS before \gset
SELECT count(*) FROM evpg_read_all(0, 10, tags => '{nope}') \g /dev/null
SELECT cmp_ok(peak() - :before, '<', 20000::bigint, 'a filter by tags: what it leaves out is not held in memory');

-- nothing else of the server is used up: a few are allowed for other sessions
SELECT mxid_age('1'::xid) AS before \gset
BEGIN;
SELECT count(*) FROM generate_series(1, 1000) n, evpg_try_execute('counter', 'often', 'Add', '{"n": 1}') \g /dev/null
COMMIT;
SELECT cmp_ok(mxid_age('1'::xid) - :before, '<', 100, 'a thousand evpg_try_execute on one stream make no MultiXacts');
CREATE FUNCTION test.contexts() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT count(*) FROM pg_backend_memory_contexts
  WHERE name LIKE 'Evpg%' $$;

-- errors of every kind, after a first round that fills what is kept for the session
CREATE FUNCTION test.errors(times int) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT count(*) FROM generate_series(1, times) n, (VALUES
    ('counter', 'Fail', '{}'), ('counter', 'AddAndRefuse', '{"n": 1}'), ('counter', 'Add', '{"n": 666}'),
    ('counter', 'Add', '{"n": 5000}'), ('counter', 'Nope', '{}'),
    ('counter_c', 'Fail', '{}'), ('counter_c', 'AddAndRefuse', '{"n": 1}'), ('counter_c', 'Add', '{"n": 666}'),
    ('counter_c', 'Add', '{"n": 5000}'), ('counter_c', 'Nope', '{}'), ('counter_c', 'Add', '[]'),
    ('hostile', 'BadText', '{"where": "data", "how": "zero"}'),
    ('hostile', 'BadText', '{"where": "detail", "how": "latin1"}'), ('hostile', 'Deep', '{"depth": 500}'),
    ('hostile', 'Number', '{"which": "nan"}'),
    ('hostile', 'Envelope', '{"change": {"type": null}}'), ('nope', 'X', '{}')) x (kind, command, data),
    test.error_of(format('SELECT evpg_execute(%L, %L, %L, %L)', kind, 'e' || n % 3, command, data)) e WHERE e
    <> 'no error' $$;
-- Contexts after a round of them.  Changes of roles, which other files make, drop what is kept of registrations at any time,
-- and only what is used afterwards comes back.  So each round drops it, and locks such changes out.  Should the server reset
-- the caches of this session in the middle there is less: of some rounds the one that leaves most is undisturbed.
CREATE PROCEDURE test.refill(INOUT contexts bigint) LANGUAGE plpgsql AS $$
BEGIN
  FOR n IN 1..5 LOOP
    LOCK TABLE pg_authid, pg_auth_members IN SHARE MODE;
    CREATE OR REPLACE FUNCTION test.other() RETURNS int LANGUAGE sql AS 'SELECT 1';
    PERFORM errors(1);
    COMMIT;
    contexts := greatest(contexts, contexts());
  END LOOP;
END $$;
SELECT is(errors(1), 17::bigint, 'seventeen errors');
CALL test.refill(0) \gset before_
SELECT is(errors(100), 1700::bigint, 'a hundred times');
CALL test.refill(0) \gset after_
SELECT is(:after_contexts::bigint, :before_contexts::bigint, 'leave no memory context behind');

-- registrations
SELECT is((SELECT count(*) FROM generate_series(1, 100) n,
  evpg_register_aggregate('counter', 'test.counter_handle', 'test.counter_apply',
  initial_state => jsonb_build_object('total', n, 'applied', 0)) r,
             LATERAL (SELECT status FROM evpg_try_execute('counter', CASE WHEN r THEN 'reg' ELSE 'x' END, 'Nothing')) s),
             100::bigint, 'a hundred registrations, each with a command');
SELECT count(*) FROM evpg_try_execute('counter', 'reg', 'Nothing') \g /dev/null
SELECT ok(contexts() <= :before_contexts, 'leave no memory context behind');

-- in one transaction: changes of functions, of registrations, of the user's own functions
CREATE FUNCTION test.changes(times int) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  fewest bigint;
BEGIN
  FOR n IN 1..times LOOP
    EXECUTE format('CREATE OR REPLACE FUNCTION test.other() RETURNS int LANGUAGE sql AS ''SELECT %s''', n);
    PERFORM evpg_register_aggregate('changing', 'test.counter_handle', 'test.counter_apply',
      initial_state => jsonb_build_object('total', n, 'applied', 0));
    PERFORM evpg_execute('changing', 'a', 'Add', '{"n": 1}');
    BEGIN
      PERFORM evpg_execute('changing', 'a', 'Fail');
    EXCEPTION WHEN OTHERS THEN
    END;
    -- what is dropped during the last call, as by a reset of the caches, is kept until the next one
    IF n > times - 3 THEN
      fewest := least(fewest, contexts());
    END IF;
  END LOOP;
  RETURN fewest;
END $$;
BEGIN;
LOCK TABLE pg_authid, pg_auth_members IN SHARE MODE;
SELECT changes(4) AS before \gset
SELECT is(changes(50), :before::bigint, 'changes in a long transaction leave no memory context behind');
COMMIT;

-- the cache is bounded
SET evpg.state_cache_size = '1MB';
CREATE FUNCTION test.wide_handle(state jsonb, command evpg.command) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('type', 'Wide', 'data', repeat(md5(command.aggregate_id), 64)) $$;
CREATE FUNCTION test.wide_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT event.data $$;
SELECT evpg_register_aggregate('wide', 'test.wide_handle', 'test.wide_apply') \g /dev/null
SELECT is((SELECT count(*) FROM generate_series(1, 3000) n, evpg_execute('wide', n::text, 'X')), 3000::bigint,
  'three thousand states of 2 kB [A08]');
SELECT ok((SELECT sum(total_bytes) BETWEEN 500000 AND 2500000 FROM pg_backend_memory_contexts
  WHERE name IN ('EvpgStateCache', 'evpg states')), 'are not all kept in a cache of 1 MB [A08]');
SELECT is((SELECT count(*) FROM generate_series(1, 3000, 37) n, evpg_state('wide', n::text) s WHERE s.state
  = to_jsonb(repeat(md5(n::text), 64))), 82::bigint, 'every state is right [rule 6]');
SET evpg.state_cache_size = 0;
SELECT count(*) FROM evpg_execute('wide', '1', 'X') \g /dev/null
SELECT ok((SELECT sum(used_bytes) < 100000 FROM pg_backend_memory_contexts WHERE name IN ('EvpgStateCache', 'evpg states')),
  'a smaller cache gives its memory back [A08]');

-- reactions: the memory of each is given back when it is over, in one transaction and in many
RESET evpg.state_cache_size;
CREATE FUNCTION test.measure(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql VOLATILE AS $$
  SELECT evpg_reaction(jsonb_build_object('used', (SELECT sum(used_bytes) FROM pg_backend_memory_contexts), 'data',
    event.data)) $$;
CREATE FUNCTION test.measured() RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT (max(used) - min(used))::bigint
    FROM (SELECT (state->>'used')::bigint AS used FROM evpg.saga_instance ORDER BY position DESC LIMIT 30) x $$;
SELECT evpg_register_saga('measure', 'test.measure', event_types => '{Large}') \g /dev/null
CREATE FUNCTION test.large(kind text) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT count(*) FROM generate_series(1, 40) n,
    evpg_append('counter', kind || n, ARRAY[evpg_event('Large', to_jsonb(repeat('large', 40000)))]) $$;
SELECT large('a') \g /dev/null
SELECT evpg_run_sagas() \g /dev/null
SELECT cmp_ok(measured(), '<', 2000000::bigint, 'thirty reactions with 200 kB each, in one transaction');
SELECT large('b') \g /dev/null
CALL evpg_run();
SELECT cmp_ok(measured(), '<', 2000000::bigint,
  'thirty reactions with 200 kB each in one call take no more memory than one');
-- sagas: what a reaction has taken is given back before the next one
CREATE FUNCTION test.used() RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts
$$;
CREATE FUNCTION test.measure_each(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1)
    || jsonb_build_object('at ' || coalesce(state->>'n', '0'), CASE WHEN state->>'n' IN ('50', '499') THEN used() END) ||
    jsonb_strip_nulls(state - 'n')) $$;
SELECT evpg_register_saga('measure_each', 'test.measure_each', event_types => '{Padded}') \g /dev/null
CREATE FUNCTION test.pad(id text) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT count(*) FROM generate_series(1, 500) n,
    evpg_append('counter', id, ARRAY[evpg_event('Padded', jsonb_build_object('pad', repeat(md5(n::text), 500)))]) $$;
CREATE FUNCTION test.grown(id text) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT (state->>'at 499')::bigint - (state->>'at 50')::bigint FROM evpg_saga('measure_each', id)
$$;
SELECT pad('run') \g /dev/null
CALL evpg_run();
SELECT cmp_ok(grown('run'), '<', 1000000::bigint, 'a run over many events [rule 16]');
SELECT pad('pass') \g /dev/null
BEGIN;
-- a change of a role drops registrations, which are kept to the end of this one call
LOCK TABLE pg_authid, pg_auth_members IN SHARE MODE;
SELECT evpg_run_sagas() \g /dev/null
COMMIT;
SELECT cmp_ok(grown('pass'), '<', 1000000::bigint,
  'a run over many events in one transaction takes no more memory than a few [rule 16]');
-- a long list of what can be undone; a refused command at its end is where to look
CREATE FUNCTION test.undoable(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(jsonb_build_object('before', used()),
    VARIADIC array_agg(evpg_action_send('counter_c', 'undoable', CASE n WHEN 600 THEN 'Subtract' ELSE 'Nothing' END,
    '{"n": 1}',
    undo => evpg_action_send('counter_c', 'undoable', 'Nothing', jsonb_build_object('pad', repeat('x', 500))))))
      FROM generate_series(1, 600) n $$;
CREATE FUNCTION test.undoable_refused(state jsonb, rejection evpg.rejection) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(state || jsonb_build_object('after', used())) $$;
SELECT evpg_register_saga('undoable', 'test.undoable', 'test.undoable_refused', event_types => '{Listed}') \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'u', ARRAY[evpg_event('Listed')]) \g /dev/null
SELECT evpg_run_sagas() \g /dev/null
SELECT cmp_ok((SELECT (state->>'after')::bigint - (state->>'before')::bigint FROM evpg_saga('undoable', 'u')), '<',
  50000000::bigint, 'many commands that can be undone [rule 17]');
-- states of instances that are rebuilt: in parts, and each once, however many events there are
CREATE FUNCTION test.grow(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction(jsonb_build_object('first', coalesce(state->'first', to_jsonb(used())), 'last', used(),
    'pad', repeat('x', 100000))) $$;
SELECT evpg_register_saga('grow', 'test.grow', event_types => '{Grown}') \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'grown', ARRAY(SELECT evpg_event('Grown') FROM generate_series(1, 400)))
  \g /dev/null
SELECT count(*) FROM generate_series(1, 900) n, evpg_append('counter', 'grown' || n, ARRAY[evpg_event('Grown')]) \g /dev/null
SELECT evpg_run_sagas() \g /dev/null
SELECT is(evpg_rebuild_saga('grow'), 1300::bigint, 'a rebuild of a saga with 90 MB of states [rule 18]');
SELECT is((SELECT count(*) FROM evpg.saga_instance WHERE saga = 'grow' AND length(state->>'pad') = 100000), 901::bigint,
  'a rebuild of a saga in parts writes the states of all instances [rule 18]');
SELECT cmp_ok((SELECT max((state->>'last')::bigint) - min((state->>'first')::bigint) FROM evpg.saga_instance
  WHERE saga = 'grow'), '<', 60000000::bigint, 'a rebuild of a saga does not hold all states in memory [rule 18]');

-- parked events that are replayed
CREATE FUNCTION test.used_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(used()) $$;
SELECT evpg_register_projection('replayed', 'test.used_apply', mode => 'async', on_error => 'park', event_types => '{Long}',
  start_position => (SELECT max(position) FROM evpg.event)) \g /dev/null
INSERT INTO evpg.parked_event (name, key, "position", attempts)
  SELECT 'replayed', aggregate_id, "position", 1 FROM evpg.event WHERE type = 'Long';
SELECT evpg_replay_parked('replayed', 1) \g /dev/null
SELECT used() AS before \gset
SELECT is(evpg_replay_parked('replayed', 20), 20::bigint, 'some of 100,000 parked events are replayed [rule 10]');
SELECT cmp_ok((SELECT max(state::text::bigint) FROM evpg.projected_state WHERE name = 'replayed') - :before, '<',
  2000000::bigint, 'parked events that are not replayed are not held in memory [rule 10]');
SELECT is(evpg_replay_parked('replayed', 1500), 1500::bigint,
  'more parked events are replayed than are read at once [rule 10]');
SELECT * FROM finish();
