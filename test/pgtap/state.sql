-- state.sql: states, now and in the past.

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(89);
CREATE FUNCTION test.state_at(kind text, args text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  result text;
BEGIN
  EXECUTE format('SELECT concat_ws('' '', version, state->>''total'',
                                   (SELECT e.version FROM evpg.event e WHERE e.position = last_position))
                    FROM evpg_state(%L, ''a'' %s)', kind, args) INTO result;
  RETURN coalesce(result, '-');
END $$;

SELECT is(state_at(kind, ''), '-', 'never created: no row [A07, ' || kind || ']'),
       is((SELECT count(*) FROM evpg_state(kind, 'a', at_version => 0)), 0::bigint,
         'nor at a version [A07, ' || kind || ']'),
       is((SELECT count(*) FROM evpg_state(kind, 'a', at_time => now())), 0::bigint, 'nor at a time [A07, ' || kind || ']'),
       is(evpg_create_stream(kind, 'a'), true, 'created [A13, ' || kind || ']'),
       is(state_at(kind, ''), '0 0', 'the state before any event [A01, ' || kind || ']'),
       is(state_at(kind, ', at_version => 0'), '0 0', 'is version 0 [A01, ' || kind || ']'),
       is(state_at(kind, ', at_time => ''infinity'''), '0 0', 'at any time [A01, ' || kind || ']')
  FROM unnest('{counter,counter_c}'::text[]) kind;

-- five events: times in another order than versions, one unknown
SELECT count(*) FROM unnest('{counter,counter_c}'::text[]) kind, evpg_append(kind, 'a', ARRAY[
  evpg_event('Added', '{"n": 1}', occurred_at => '2020-01-01 00:00+00'),
  evpg_event('Added', '{"n": 10}', occurred_at => '2020-01-03 00:00+00'),
  evpg_event('Added', '{"n": 100}', occurred_at => '2020-01-02 00:00+00'),
  evpg_event('Odd', occurred_at => '2020-01-04 00:00+00'),
  evpg_event('Subtracted', '{"n": 50}', occurred_at => '2020-01-05 00:00+00')]) \g /dev/null
SELECT is(state_at(kind, args), wanted, kind || ', state' || args) FROM unnest('{counter,counter_c}'::text[]) kind, (VALUES
  ('', '5 61 5'), (', at_version => 0', '0 0'), (', at_version => 1', '1 1 1'), (', at_version => 2', '2 11 2'),
  (', at_version => 3', '3 111 3'),
  (', at_version => 4', '4 111 4'), (', at_version => 5', '5 61 5'), (', at_version => NULL, at_time => NULL', '5 61 5'),
  (', at_time => ''2019-12-31 23:59:59.999999+00''', '0 0'), (', at_time => ''-infinity''', '0 0'),
  (', at_time => ''2020-01-01 00:00+00''', '1 1 1'),
  (', at_time => ''2020-01-02 00:00+00''', '3 101 3'), (', at_time => ''2020-01-03 00:00+00''', '3 111 3'),
  (', at_time => ''2020-01-04 12:00+00''', '4 111 4'),
  (', at_time => ''2020-01-05 00:00+00''', '5 61 5'), (', at_time => ''infinity''', '5 61 5'), ('', '5 61 5')) x (args,
  wanted);
SELECT refused(format('SELECT evpg_state(%L, %s)', kind, args), error, kind || ', state(' || args || ')')
  FROM unnest('{counter,counter_c}'::text[]) kind, (VALUES
  ($$'a', at_version => 6$$, '22023 stream "a" of aggregate % has no version 6'),
  ($$'a', at_version => -1$$, '22023 %has no version -1'),
  ($$'a', at_version => 9223372036854775807$$, '22023 %has no version 9223372036854775807'),
  ($$'a', at_version => 1, at_time => now()$$, '22023 at_version and at_time cannot both be given'),
  ('NULL', '22004 aggregate id must not be null'),
  ($$''$$, '22023 aggregate id must not be empty')) x (args, error);
SELECT refused($$SELECT evpg_state('nope', 'a')$$, 'VE003 aggregate type "nope" is not registered',
  'of an unknown type [A07]');
SELECT refused($$SELECT evpg_state(NULL, 'a')$$, '22004 aggregate type must not be null', 'of type NULL [A07]');

-- reading a state in the past does not spoil the one of now
SELECT is((SELECT array_agg(state_at(kind, args))
  FROM (VALUES (''), (', at_version => 2'), (''), (', at_time => ''2020-01-02 UTC''')) x (args)),
  '{5 61 5,2 11 2,5 61 5,3 101 3}',
  'past and present by turns [rule 6, ' || kind || ']') FROM unnest('{counter,counter_c}'::text[]) kind;

-- a state by every way is the same
SELECT count(*) FROM unnest('{counter,counter_c}'::text[]) kind, generate_series(1, 30) n,
  evpg_execute(kind, 'long', 'AddEach', jsonb_build_object('ns', ARRAY[n, 1 - n])) \g /dev/null
SELECT is((SELECT state FROM evpg_state(kind, 'long')), (SELECT state FROM evpg_state(kind, 'long', at_version => 60)),
  'cached and replayed states are equal [rule 6, ' || kind || ']'),
       is((SELECT (state->>'total')::int FROM evpg_state(kind, 'long')),
       (SELECT sum((data->>'n')::int)::int FROM evpg_read_stream(kind, 'long')),
         'and are the fold of the events [rule 6, ' || kind || ']')
  FROM unnest('{counter,counter_c}'::text[]) kind;
SELECT is((SELECT count(*) FROM generate_series(0, 60) v, evpg_state(kind, 'long', at_version => v) s
            WHERE (s.state->>'applied')::int <> v OR (s.state->>'total')::int
            <> (SELECT coalesce(sum((data->>'n')::int), 0) FROM evpg_read_stream(kind, 'long', 1, v))), 0::bigint,
  kind || ', at_version: every version') FROM unnest('{counter,counter_c}'::text[]) kind;

-- what a statement sees: the state at its start
SELECT is((SELECT array_agg((SELECT version FROM evpg_state('counter_c', 'stable')) ORDER BY v)
  FROM (SELECT version AS v FROM generate_series(1, 3) n,
  evpg_execute('counter_c', 'stable', 'Add', jsonb_build_object('n', n)) OFFSET 0) x),
  ARRAY[NULL, NULL, NULL]::bigint[], 'a statement that executes commands sees the state of before [A07]');
SELECT is((SELECT version FROM evpg_state('counter_c', 'stable')), 3::bigint, 'the next one that of after [A07]');
SELECT provolatile = 's' AS stable FROM pg_proc WHERE proname = 'evpg_state' \gset
SELECT ok(:'stable'::boolean, 'evpg_state is STABLE [A07]');
SELECT is((SELECT count(*) FROM pg_locks WHERE relation = 'evpg.stream'::regclass AND mode = 'RowShareLock' AND pid
  = pg_backend_pid()), 0::bigint, 'evpg_state is STABLE, and locks nothing [A07]');

-- a reducer that returns null
CREATE FUNCTION test.nothing(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT state || NULL $$;
SELECT evpg_register_aggregate('nothing', 'test.counter_handle', 'test.nothing') \g /dev/null
SELECT alike(error_fields($$SELECT evpg_execute('nothing', 'a', 'Add')$$),
  '%A CASE without ELSE%expression with a null in it%', 'both causes are named');
SELECT * FROM finish();
