-- command_batches.sql: evpg_execute_many on aggregates of type kind() (rule 23).  25 tests.

CREATE OR REPLACE FUNCTION test.add(id text, n int, expected bigint = NULL, command_id text = NULL) RETURNS evpg.command
LANGUAGE sql AS $$
  SELECT evpg_command(kind(), id, 'Add', jsonb_build_object('n', n), expected, command_id) $$;
CREATE OR REPLACE FUNCTION test.subtract(id text, n int) RETURNS evpg.command LANGUAGE sql AS $$
  SELECT evpg_command(kind(), id, 'Subtract', jsonb_build_object('n', n)) $$;
-- "id status version code" of each outcome
CREATE OR REPLACE FUNCTION test.tried(commands evpg.command[], atomic boolean = true, caused_by int[] = NULL) RETURNS text
LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(concat_ws(' ', aggregate_id, status, version, code), ', ' ORDER BY n)
    FROM evpg_execute_many(commands, atomic, caused_by) WITH ORDINALITY o (status, aggregate_type, aggregate_id, version,
      last_position, events, sqlstate, code, message, detail, hint, n) $$;

-- all of them
SELECT is(tried(ARRAY[add('b', 5), add('a', 7), subtract('b', 2), evpg_command(kind(), 'c', 'Nothing')]),
  'b ok 1, a ok 1, b ok 2, c noop 0',
  kind() || ': outcomes come in order, and each command meets those before it [rule 23]');
SELECT is((SELECT array_agg(total(id)) FROM unnest('{a,b,c}'::text[]) id), ARRAY['1 7', '2 3', NULL],
  kind() || ': states follow [rule 23]');
SELECT same($$SELECT aggregate_type, aggregate_id, version, last_position, events->0->>'type', sqlstate, message
  FROM evpg_execute_many(ARRAY[add('d', 1)])$$,
  $$SELECT kind(), 'd', 1::bigint, position, 'Added', NULL::text, NULL::text FROM evpg.event
     WHERE aggregate_type = kind() AND aggregate_id = 'd'$$, kind() || ': rows are as of evpg_try_execute [rule 23]');
SELECT is(tried(ARRAY[add('a', 1, 1, 'x'), add('b', 1, 2, 'x'), add('a', 1, 9, 'x')]), 'a ok 2, b ok 3, a duplicate 2',
  kind() || ': each command has a command id and an expected version of its own [rule 4, rule 23]');
SELECT trace() AS before \gset
SELECT is(tried(ARRAY[add('a', 1, 1, 'x'), add('b', 1, 2, 'x')]), 'a duplicate 2, b duplicate 3',
  kind() || ': a resend is a duplicate, command by command [rule 4, rule 23]');
SELECT is(trace(), :'before', kind() || ': a resend writes nothing [rule 4, rule 23]');

-- all or nothing
SELECT is(tried(ARRAY[add('a', 1), add('new', 1), subtract('b', 100), add('b', 1)]),
  'a skipped 2, new skipped 0, b rejected 3 underflow, b skipped 3', kind() || ': a refusal undoes the call [rule 23, D58]');
SELECT same($$SELECT status, sqlstate, message, events, last_position FROM evpg_execute_many(
  ARRAY[add('a', 1), subtract('b', 100), add('b', 1)])$$,
  $$VALUES ('skipped', NULL, 'command 2 of the call was refused', '[]'::jsonb, NULL::bigint),
    ('rejected', 'VE002', 'total 4 is less than 100', '[]', NULL),
    ('skipped', NULL, 'command 2 of the call was refused', '[]', NULL)$$,
  kind() || ': the others tell which command was refused [rule 23]');
SELECT is(tried(ARRAY[add('a', 1), add('a', 1, 2)]), 'a skipped 2, a conflict 2',
  kind() || ': a conflict undoes the call; versions are those before it [rule 23]');
SELECT is(tried(ARRAY[add('a', 1), add('a', 5000)]), 'a skipped 2, a invariant 2 limit',
  kind() || ': so does an invariant [rule 23]');
SELECT is(split_part(trace(), ', drawn', 1), split_part(:'before', ', drawn', 1),
  kind() || ': nothing remains of what was undone [rule 5, rule 23]');
SELECT is((SELECT array_agg(total(id)) FROM unnest('{a,b,new}'::text[]) id), ARRAY['2 8', '3 4', NULL],
  kind() || ': states are as before [rule 6, rule 23]');
SELECT is(tried(ARRAY[add('a', 1, 2, 'again'), subtract('b', 100)]) || '; ' || tried(ARRAY[add('a', 1, 2, 'again')]),
  'a skipped 2, b rejected 3 underflow; a ok 3', kind() || ': what was undone can be sent again [rule 4, rule 23]');

-- each alone
SELECT is(tried(ARRAY[add('a', 1), subtract('b', 100), add('b', 1), add('a', 1, 1), add('none', 1, 1)], false),
  'a ok 4, b rejected 3 underflow, b ok 4, a conflict 4, none conflict 0',
  kind() || ': without atomic each command has an outcome of its own [rule 23]');
SELECT is((SELECT array_agg(total(id)) FROM unnest('{a,b,none}'::text[]) id), ARRAY['4 10', '4 5', NULL],
  kind() || ': what was not refused is done [rule 23]');

-- causes
CREATE TEMP TABLE of_call AS SELECT * FROM evpg_execute_many(ARRAY[evpg_command(kind(), 'e', 'AddEach', '{"ns": [1, 2]}'),
  add('f', 1), evpg_command(kind(), 'g', 'Add', '{"n": 1}', causation_id => 'own', correlation_id => 'own'),
  evpg_command(kind(), 'h', 'Nothing'), evpg_command(kind(), 'i', 'Add', '{"n": 1}', causation_id => 'own')],
  caused_by => ARRAY[NULL, 1, 2, NULL, 4]);
SELECT same($$SELECT e->>'aggregate_id', e->>'causation_id', e->>'correlation_id' FROM of_call,
  jsonb_array_elements(events) e$$,
  $$SELECT v.id, v.cause, v.correlation FROM (SELECT events->0->>'event_id' AS first, events->1->>'event_id' AS second
      FROM of_call WHERE aggregate_id = 'e') one, (SELECT events->0->>'event_id' AS third FROM of_call
      WHERE aggregate_id = 'f') two, (SELECT events->0->>'event_id' AS last FROM of_call WHERE aggregate_id = 'i') three,
    LATERAL (VALUES (1, 'e', NULL, first), (2, 'e', NULL, first), (3, 'f', second, first), (4, 'g', third, 'own'),
      (5, 'i', 'own', last)) v (n, id, cause, correlation) ORDER BY n$$,
  kind() || ': the cause is the last event of an earlier command, whose correlation goes on; none if it has no event '
  || '[rule 23]');
DROP TABLE of_call;

-- defects
SELECT alike(error_of(format($$SELECT tried(ARRAY[add('a', 1), evpg_command(kind(), 'b', %L)], %L)$$,
  command, atomic)), error,
  concat_ws(' ', kind() || ':', command, 'is raised, atomic', atomic, '[rule 23]'))
  FROM (VALUES ('Fail', 'VE009 %'), ('Unknown', 'VE018 %')) c (command, error), unnest('{t,f}'::boolean[]) atomic;
SELECT alike(context_of($$SELECT tried(ARRAY[add('a', 1), evpg_command(kind(), 'b', 'Fail')])$$), '%command 2 of the call%',
  kind() || ': the context of a defect has the number of its command [rule 23]');

-- transactions
BEGIN;
SAVEPOINT here;
SELECT tried(ARRAY[add('a', 1), add('fresh', 1)]) \g /dev/null
ROLLBACK TO here;
SELECT is(tried(ARRAY[add('a', 1), add('fresh', 1)]), 'a ok 5, fresh ok 1', kind() || ': after ROLLBACK TO [rule 23]');
ROLLBACK;
SELECT is((SELECT array_agg(total(id)) FROM unnest('{a,fresh}'::text[]) id), ARRAY['4 10', NULL],
  kind() || ': ROLLBACK takes back all of a call [rule 3, rule 23]');
BEGIN;
SELECT tried(ARRAY[add('a', 1), subtract('b', 100), evpg_command(kind(), 'never', 'Nothing')]) \g /dev/null
SELECT is((SELECT array_agg(held(kind(), id)) FROM unnest('{a,b,never}'::text[]) id), '{t,t,f}',
  kind() || ': streams of a refused call stay locked, unless they do not exist [rule 2, rule 23]');
COMMIT;
SELECT is(tried(ARRAY[]::evpg.command[]), NULL, kind() || ': no commands, no outcomes [rule 23]');
