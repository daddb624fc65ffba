-- execute_many.sql: evpg_execute_many: commands on several streams in one call, all or nothing or each alone (rule 23).

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql

CREATE FUNCTION test.held(type text, id text) RETURNS boolean LANGUAGE sql AS $$
  SELECT EXISTS (SELECT FROM pg_locks l, hashtextextended(type COLLATE "C", 0) t, hashtextextended(id COLLATE "C", t) h
                  WHERE l.locktype = 'advisory' AND l.objsubid = 17759 AND l.pid = pg_backend_pid()
                    AND (l.classid::bigint << 32 | l.objid::bigint) = h) $$;

SELECT plan(95);
SET test.kind = counter;
\ir include/command_batches.sql
SET test.kind = counter_c;
\ir include/command_batches.sql

-- ------------------------------------------------------------------ code of users

CREATE FUNCTION test.pass(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN
  IF command.data ? 'stop' THEN
    PERFORM evpg_reject('stopped');
  END IF;
  RETURN command;
END $$;
CREATE TABLE test.taken (n int PRIMARY KEY);
CREATE FUNCTION test.take(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO test.taken VALUES ((event.data->>'n')::int);
  RETURN NULL;
END $$;
CREATE FUNCTION test.hear(event evpg.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF event.data->>'n' = '99' THEN
    PERFORM evpg_execute_many(ARRAY[add('heard', 1), add('heard 2', 2)]);
  ELSIF event.data->>'n' = '98' THEN
    PERFORM evpg_execute_many(ARRAY[add('heard', 3), add(event.aggregate_id, 4)]);
  END IF;
END $$;
SELECT evpg_register_projection('taken', handler => 'test.take', event_types => '{Added}'),
  evpg_register_interceptor('pass', 'test.pass'), evpg_register_listener('hear', 'test.hear') \g /dev/null
SELECT is(tried(ARRAY[add('p', 11), add('q', 12), add('p', 11)]), 'p skipped 0, q skipped 0, p rejected 0 taken_pkey',
  'a constraint of a projection undoes the call [rule 8, rule 23]');
SELECT is((SELECT count(*)::int FROM taken), 0, 'with what the projection wrote [rule 11, rule 23]');
SELECT is(tried(ARRAY[add('p', 11), add('q', 12), add('p', 11), add('q', 13)], false),
  'p ok 1, q ok 1, p rejected 1 taken_pkey, q ok 2', 'or only the command that violates it [rule 8, rule 23]');
SELECT is((SELECT array_agg(n ORDER BY n) FROM taken), '{11,12,13}', 'the projection has the others [rule 11, rule 23]');
SELECT is(tried(ARRAY[add('p', 14), evpg_command(kind(), 'q', 'Add', '{"stop": 1}')]),
  'p skipped 1, q intercepted 2 stopped',
  'an interceptor undoes the call [rule 23]');
SELECT is(tried(ARRAY[add('p', 99)]), 'p ok 2', 'code of a command may execute several [rule 23]');
SELECT is((SELECT array_agg(total(id)) FROM unnest('{heard,heard 2}'::text[]) id), '{1 1,1 2}',
  'on other streams [rule 23]');
SELECT alike(error_of($$SELECT tried(ARRAY[add('p', 98)])$$), 'VE020 %stream "p" is being executed already',
  'not on its own [rule 23]');

-- commands that are decided on the events of all streams
CREATE FUNCTION test.take_seat(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT CASE WHEN state::int > 0 THEN evpg_reject('full') ELSE evpg_event('Seated', tags => '{seat}') END $$;
CREATE FUNCTION test.count_seats(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT to_jsonb(state::int + 1) $$;
CREATE FUNCTION test.of_seats(command evpg.command) RETURNS jsonb LANGUAGE sql AS $$
  SELECT evpg_condition('{Seated}', '{seat}') $$;
SELECT evpg_register_aggregate('guest', 'test.take_seat', 'test.count_seats', initial_state => '0',
  boundary => 'test.of_seats') \g /dev/null
SELECT is(tried(ARRAY[evpg_command('guest', 'one', 'Sit'), evpg_command('guest', 'two', 'Sit')]),
  'one skipped 0, two rejected 0 full',
  'a boundary has what commands before it in the call have appended [rule 22, rule 23]');
SELECT is(tried(ARRAY[evpg_command('guest', 'one', 'Sit'), evpg_command('guest', 'two', 'Sit')], false),
  'one ok 1, two rejected 0 full', 'one of them gets the last seat [rule 22, rule 23]');

-- ------------------------------------------------------------------ bad arguments

SELECT refused(format('SELECT evpg_execute_many(%s)', arguments), error, arguments || ' [rule 23]') FROM (VALUES
  ('NULL', '22004 commands must not be null'),
  ('''{}'', NULL', '22004 atomic must not be null'),
  ($$ARRAY[NULL]::evpg.command[]$$, '22004 command must not be null'),
  ($$ARRAY[add('a', 1), (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::evpg.command]$$,
    '22004 command must not be null'),
  ($$ARRAY[(NULL, 'a', 'Add', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)]::evpg.command[]$$,
    '22004 aggregate type must not be null'),
  ($$ARRAY[add('a', 1), evpg_command('nope', 'a', 'Add')]$$, 'VE003 %'),
  ($$ARRAY[add('a', 1, -2)]$$, '22023 expected_version -2 is out of range'),
  ($$ARRAY[add('a', 1, NULL, 'saga:1')]$$, 'VE017 %'),
  ($$ARRAY[add('a', 1), add('a', 1)], caused_by => '{1}'$$, '22023 caused_by must have an element for each command'),
  ($$ARRAY[add('a', 1)], caused_by => '{}'$$, '22023 caused_by must have an element for each command'),
  ($$ARRAY[add('a', 1), add('a', 1)], caused_by => ARRAY[1, NULL]$$,
    '22023 caused_by must be the number of an earlier command of the call'),
  ($$ARRAY[add('a', 1), add('a', 1)], caused_by => ARRAY[NULL, 0]$$,
    '22023 caused_by must be the number of an earlier command of the call'),
  ($$ARRAY[add('a', 1), add('a', 1)], caused_by => ARRAY[NULL, 2]$$,
    '22023 caused_by must be the number of an earlier command of the call')) x (arguments, error);
SELECT alike(context_of($$SELECT evpg_execute_many(ARRAY[add('a', 1), NULL])$$), 'command 2 of the call%',
  'the context names the command that is wrong [rule 23]');

-- ------------------------------------------------------------------ limits

SET evpg.max_events = 2;
SELECT refused($$SELECT evpg_execute_many(ARRAY[add('a', 1), add('a', 1), add('a', 1)])$$,
  'VE014 too many commands in one call',
  'evpg.max_events is the limit of commands [rule 23]');
RESET evpg.max_events;
SET evpg.max_stream_locks = 2;
SELECT refused($$SELECT evpg_execute_many(ARRAY[add('a', 1), add('b', 1), add('c', 1)])$$,
  'VE014 too many streams in one call',
  'evpg.max_stream_locks is the limit of streams [rule 23]');
BEGIN;
SELECT is(tried(ARRAY[add('l1', 21), add('l2', 22), add('l1', 23)]) || '; ' || tried(ARRAY[add('l3', 24), add('l1', 25),
  add('l3', 26)]), 'l1 ok 1, l2 ok 1, l1 ok 2; l3 ok 1, l1 ok 3, l3 ok 2', 'more streams in a later call [rule 23]');
SELECT is((SELECT array_agg(held(kind(), id)) FROM unnest('{l1,l2,l3}'::text[]) id), '{t,t,f}',
  'those beyond are given back at the end of the call, those from before are kept [rule 2, rule 23]');
SELECT try('l1', 'Add', '{"n": 27}') \g /dev/null
SELECT is(held(kind(), 'l1'), true, 'another command on a stream that is locked leaves it locked [rule 2]');
ROLLBACK;
RESET evpg.max_stream_locks;
BEGIN;
SELECT tried(ARRAY[add('made', 31)]) \g /dev/null
SELECT is(held(kind(), 'made'), true, 'a stream that the call has made stays locked [rule 2, rule 23]');
COMMIT;

SELECT * FROM finish();
