-- mistakes.sql: what a newcomer does wrong, and what is said about it.

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(12);

-- an id that was forgotten
SELECT refused(statement, '22023 command type looks like JSON', statement) FROM (VALUES
  ($$SELECT evpg_execute('counter', 'Add', '{"n": 1}')$$), ($$SELECT evpg_try_execute('counter', 'AddEach', '[1]')$$),
  ($$SELECT evpg_schedule_command(now(), 'counter', 'Add', '{"n": 1}')$$), ($$SELECT evpg_command('counter', 'Add', '{"n": 1}')$$)) x (statement);

-- a reducer that returns null
CREATE FUNCTION test.nothing(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT state || NULL $$;
SELECT evpg_register_aggregate('nothing', 'test.counter_handle', 'test.nothing') \g /dev/null
SELECT alike(error_fields($$SELECT evpg_execute('nothing', 'a', 'Add')$$), '%A CASE without ELSE%expression with a null in it%', 'both causes are named');

-- an append of nothing checks and locks
SELECT count(*) FROM evpg_append('counter', 'a', evpg_events('{"type": "Odd"}')) \g /dev/null
SELECT is((SELECT count(*) FROM evpg_append('counter', 'a', '{}', expected_version => 1)), 0::bigint, 'rule 2: an append of nothing expects a version');
SELECT alike(error_of($$SELECT evpg_append('counter', 'a', '{}', expected_version => 2)$$), 'VE001 %', 'rule 2: and conflicts');
SELECT is(evpg_stream_version('counter', 'b'), NULL, 'rule 5: it makes no stream');
SELECT * FROM finish();
