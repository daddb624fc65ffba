-- interceptors.sql: functions that see every command first (rule 1).

\ir include/setup.sql
\ir include/counter.sql

SELECT plan(103);
SET test.kind = counter_c;

-- An interceptor writes what it sees into seen; what it must do is in the name of its function.
CREATE TABLE test.seen (n int GENERATED ALWAYS AS IDENTITY, who text, command evpg.command);
CREATE FUNCTION test.pass(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO test.seen (who, command) VALUES ('pass', command);
  RETURN command;
END $$;
CREATE FUNCTION test.pass_too(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO test.seen (who, command) VALUES ('pass_too', command);
  RETURN command;
END $$;
CREATE FUNCTION test.double(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN
  command.data := jsonb_build_object('n', 2 * (command.data->>'n')::int);
  command.metadata := coalesce(command.metadata, '{}') || '{"doubled": true}';
  RETURN command;
END $$;
CREATE FUNCTION test.guard(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN
  IF (command.data->>'n')::int = 13 THEN
    PERFORM evpg_reject('unlucky', 'not thirteen', '{"n": 13}');
  ELSIF (command.data->>'n')::int = 14 THEN
    RAISE EXCEPTION 'nor fourteen' USING ERRCODE = 'VE011', HINT = 'try fifteen';
  ELSIF (command.data->>'n')::int = 16 THEN
    RAISE EXCEPTION 'a defect';
  ELSIF (command.data->>'n')::int = 17 THEN
    RETURN NULL;
  ELSIF (command.data->>'n')::int = 18 THEN
    command.aggregate_id := 'another';
  ELSIF (command.data->>'n')::int = 19 THEN
    command.command_type := '';
  ELSIF (command.data->>'n')::int = 20 THEN
    command.aggregate_type := 'counter';
  ELSIF (command.data->>'n')::int = 21 THEN
    command.expected_version := -5;
  ELSIF (command.data->>'n')::int = 22 THEN
    command.metadata := '[]';
  ELSIF (command.data->>'n')::int = 23 THEN
    command.expected_version := 77;
  ELSIF (command.data->>'n')::int = 24 THEN
    command.command_type := 'Subtract';
  END IF;
  RETURN command;
END $$;

-- one
SELECT is(evpg_register_interceptor('one', 'test.pass'), true, 'B03: registered');
SELECT is(evpg_register_interceptor('one', 'test.pass'), false, 'B03: the same again changes nothing');
SELECT is(try('a', 'Add', '{"n": 1}', 0, 'cmd'), 'ok 1', 'B03: a command passes');
SELECT same($$SELECT who, (command).aggregate_type, (command).aggregate_id, (command).command_type, (command).data,
  (command).expected_version, (command).command_id FROM test.seen$$,
  $$VALUES ('pass', 'counter_c', 'a', 'Add', '{"n": 1}'::jsonb, 0::bigint, 'cmd')$$, 'B03: it was seen');
SELECT is(try('a', 'Add', '{"n": 1}', 0, 'cmd'), 'duplicate 1', 'B03, rule 1: a duplicate');
SELECT is((SELECT count(*) FROM test.seen), 2::bigint, 'B03, rule 1: is seen, too');
SELECT is(try('a', 'Add', '{"n": 1}', 0), 'conflict 1', 'rule 1: a conflict');
SELECT is((SELECT count(*) FROM test.seen), 2::bigint, 'rule 5: what an interceptor wrote goes with the refusal');
SELECT count(*) FROM evpg_append('counter_c', 'a', evpg_events('{"type": "Odd"}')) \g /dev/null
SELECT is((SELECT count(*) FROM test.seen), 2::bigint, 'B03: append is no command');
BEGIN;
SELECT evpg_set_context('ann', 'corr', '{"m": 1}') \g /dev/null
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 3', 'B03: with a context');
SELECT is((SELECT ((command).actor, (command).correlation_id, (command).metadata)::text FROM test.seen
  ORDER BY n DESC LIMIT 1), '(ann,corr,"{""m"": 1}")', 'B03: it sees the context');
COMMIT;

-- order and filters
TRUNCATE test.seen;
SELECT evpg_register_interceptor('late', 'test.pass_too', priority => 10) \g /dev/null
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 4', 'B03: two interceptors');
SELECT is((SELECT string_agg(who, ' ' ORDER BY n) FROM test.seen), 'pass pass_too', 'B03: lowest priority first');
SELECT is(evpg_register_interceptor('late', 'test.pass_too', priority => -2147483648), true, 'B03: a priority changes');
TRUNCATE test.seen;
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 5', 'B03: at once');
SELECT is((SELECT string_agg(who, ' ' ORDER BY n) FROM test.seen), 'pass_too pass', 'B03: the other order');
SELECT evpg_register_interceptor('late', 'test.pass_too', '{counter}', '{Add}') \g /dev/null
SELECT evpg_register_interceptor('one', 'test.pass', '{counter,counter_c}', '{Nothing,Subtract}') \g /dev/null
TRUNCATE test.seen;
SELECT count(*) FROM (VALUES ('counter', 'Add'), ('counter', 'Nothing'), ('counter_c', 'Add'),
  ('counter_c', 'Nothing')) x (t, c), evpg_try_execute(t, 'f', c, '{"n": 1}') \g /dev/null
SELECT is((SELECT string_agg(who || ':' || (command).aggregate_type || ':' || (command).command_type, ' ' ORDER BY n)
  FROM test.seen),
  'pass_too:counter:Add pass:counter:Nothing pass:counter_c:Nothing', 'B03: filters by aggregate and command type');
SELECT is(ARRAY[evpg_drop_interceptor('late'), evpg_drop_interceptor('one'), evpg_drop_interceptor('one', true)], '{t,t,f}',
  'B03: dropped');
SELECT refused($$SELECT evpg_drop_interceptor('one')$$, '42704 interceptor "one" is not registered', 'B03: once');
TRUNCATE test.seen;
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 6', 'B03: a command');
SELECT is((SELECT count(*) FROM test.seen), 0::bigint, 'B03: is seen by nobody');

-- changing the command
SELECT evpg_register_interceptor('double', 'test.double', NULL, '{Add}') \g /dev/null
SELECT same($$SELECT data, metadata FROM evpg_execute('counter_c', 'd', 'Add', '{"n": 3}')$$,
  $$VALUES ('{"n": 6}'::jsonb, '{"doubled": true}'::jsonb)$$,
  'B03: an interceptor changes data and metadata');
SELECT evpg_register_interceptor('double twice', 'test.double', NULL, '{Add}', 1) \g /dev/null
SELECT is((SELECT data FROM evpg_execute('counter_c', 'd', 'Add', '{"n": 3}')), '{"n": 12}',
  'B03: the next sees what the one before made of it');
SELECT is(try('d', 'Add', '{"n": 5}', NULL, 'twice'), 'ok 3', 'rule 4: under an id');
SELECT is(try('d', 'Add', '{"n": 5}', NULL, 'twice'), 'duplicate 3', 'rule 4: it is the same command again');
SELECT evpg_drop_interceptor('double'), evpg_drop_interceptor('double twice') \g /dev/null

-- what an interceptor adds may be another thing each time: a resend is still the same command
CREATE SEQUENCE test.price;
CREATE FUNCTION test.enrich(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
BEGIN
  command.data := command.data || jsonb_build_object('price', nextval('test.price'));
  command.command_id := coalesce(command.command_id, command.data->>'order');
  RETURN command;
END $$;
SELECT evpg_register_interceptor('enrich', 'test.enrich', NULL, '{Add}') \g /dev/null
SELECT is(try('e', 'Add', '{"n": 5}', NULL, 'priced'), 'ok 1', 'rule 4: an interceptor adds a price');
SELECT is(try('e', 'Add', '{"n": 5}', NULL, 'priced'), 'duplicate 1', 'rule 4: another price the second time is no other command');
SELECT refused($$SELECT evpg_execute('counter_c', 'e', 'Add', '{"n": 6}', command_id => 'priced')$$, 'VE005 %',
  'rule 4: but other data of the caller is');
SELECT is(try('e', 'Add', '{"n": 5, "order": "o1"}'), 'ok 2', 'rule 4: an interceptor gives a command its id');
SELECT is(try('e', 'Add', '{"n": 5, "order": "o1"}'), 'duplicate 2', 'rule 4: under which it is known');
SELECT refused($$SELECT evpg_execute('counter_c', 'e', 'Add', '{"n": 6, "order": "o1"}')$$, 'VE005 %',
  'rule 4: with what the caller sent');
SELECT evpg_drop_interceptor('enrich') \g /dev/null
SELECT is(try('e', 'Add', '{"n": 5}', NULL, 'priced'), 'duplicate 1', 'rule 4: also when the interceptor is gone');

-- refusing
SELECT evpg_register_interceptor('guard', 'test.guard') \g /dev/null
SELECT evpg_register_interceptor('after', 'test.pass', priority => 1) \g /dev/null
TRUNCATE test.seen;
SELECT trace() AS before \gset
SELECT same($$SELECT * FROM evpg_try_execute('counter_c', 'd', 'Add', '{"n": 13}')$$,
  $$VALUES ('intercepted', 'counter_c', 'd', 3::bigint, NULL::bigint, '[]'::jsonb, 'VE011', 'unlucky', 'not thirteen',
  '{"n": 13}'::jsonb, NULL::text)$$,
  'B03, rule 8: an interceptor refuses');
SELECT same($$SELECT status, version, code, message, detail, hint
  FROM evpg_try_execute('counter_c', 'new', 'Add', '{"n": 14}')$$,
  $$VALUES ('intercepted', 0::bigint, 'guard', 'nor fourteen', NULL::jsonb, 'try fifteen')$$,
  'B03, rule 8: or raises VE011; the code is its name');
SELECT is(trace(), :'before', 'rule 5: nothing is written');
SELECT is((SELECT count(*) FROM test.seen), 0::bigint, 'B03, 2.4 test 5: the first refusal counts, the next is not asked');
SELECT refused($$SELECT evpg_execute('counter_c', 'd', 'Add', '{"n": 13}')$$, 'VE011 not thirteen',
  'rule 8: execute raises VE011');
SELECT is(error_fields($$SELECT evpg_execute('counter_c', 'd', 'Add', '{"n": 13}')$$), 'unlucky|{"n": 13}|',
  'rule 8: with code and detail');
SELECT refused(format($$SELECT %s('counter_c', 'd', 'Add', '{"n": %s}')$$, f, n), error, 'rule 8: ' || f || ': interceptor '
  || what)
  FROM unnest('{evpg_execute,evpg_try_execute}'::text[]) f, (VALUES
  (16, 'P0001 a defect', 'with a defect'), (17, 'VE009 interceptor "guard" returned null', 'that returns NULL'),
  (18, 'VE009 interceptor "guard" must not change aggregate type and id', 'that changes the id'),
  (19, '22023 command type must not be empty', 'that empties the type'),
  (20, 'VE009 interceptor "guard" must not change aggregate type and id', 'that changes the aggregate type'),
  (21, '22023 expected_version -5 is out of range', 'that expects -5'),
  (22, '22023 metadata must be a JSON object', 'that spoils the metadata')) x (n, error, what);
SELECT is(try('d', 'Add', '{"n": 23}'), 'conflict 3', 'B03: it may add an expectation');
SELECT is(try('d', 'Subtract', '{"n": 24}'), 'ok 4', 'B03: or none');
SELECT is(evpg_drop_interceptor('guard'), true, 'B03: dropped');
SELECT is(try('d', 'Add', '{"n": 13}'), 'ok 5', 'B03: thirteen passes');

-- what may be an interceptor
CREATE FUNCTION test.strict_one(command evpg.command) RETURNS evpg.command LANGUAGE sql STRICT AS $$ SELECT command $$;
CREATE FUNCTION test.set_of(command evpg.command) RETURNS SETOF evpg.command LANGUAGE sql AS $$ SELECT command $$;
CREATE FUNCTION test.other(command jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT command $$;
SELECT refused(format('SELECT evpg_register_interceptor(%s)', args), error, 'B03, B24: register_interceptor(' || args || ')')
  FROM (VALUES
  ($$'x', 'test.strict_one'$$, '42P13 %because it is STRICT'), ($$'x', 'test.set_of'$$, '42P13 %cannot be a interceptor'),
  ($$'x', 'test.other'$$, '42P13 %cannot be a interceptor'),
  ($$'x', NULL$$, '22004 interceptor must not be null'), ($$NULL, 'test.pass'$$, '22004 interceptor name must not be null'),
  ($$'', 'test.pass'$$, '22023 interceptor name must not be empty'),
  ($$'evpg.x', 'test.pass'$$, 'VE017 %'), ($$'x', 'test.nope'$$, '42883 %'), ($$'x', 0$$, '42883 %'),
  ($$'x', 'test.pass', '{NULL}'$$, '22023 aggregate_types must be %'),
  ($$'x', 'test.pass', priority => NULL$$, '22004 priority must not be null')) x (args, error);

-- one that is gone stops every command, with a clear error
DROP FUNCTION test.pass(evpg.command);
SELECT refused($$SELECT evpg_execute('counter_c', 'd', 'Add', '{"n": 1}')$$,
  '42883 interceptor function test.pass(evpg.command) does not exist', 'B03: a function that is gone');
SELECT is(evpg_drop_interceptor('after'), true, 'B03: unless it is dropped');
SELECT is(try('d', 'Add', '{"n": 1}'), 'ok 6', 'B03: then they go on');

-- rolled back
CREATE FUNCTION test.pass(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
  BEGIN INSERT INTO test.seen (who) VALUES ('pass'); RETURN command; END $$;
TRUNCATE test.seen;
BEGIN;
SAVEPOINT s;
SELECT evpg_register_interceptor('gone', 'test.pass') \g /dev/null
SELECT try('d', 'Add', '{"n": 1}') \g /dev/null
SELECT is((SELECT count(*) FROM test.seen), 1::bigint, 'B03: registered in a transaction, it counts there');
ROLLBACK TO s;
SELECT is(try('d', 'Add', '{"n": 1}'), 'ok 7', 'B03: rolled back');
SELECT is((SELECT count(*) FROM test.seen), 0::bigint, 'B03: it does not');
COMMIT;
SELECT * FROM finish();
