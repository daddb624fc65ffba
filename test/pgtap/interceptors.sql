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
SELECT is(evpg_register_interceptor('one', 'test.pass'), true, 'registered [B03]');
SELECT is(evpg_register_interceptor('one', 'test.pass'), false, 'the same again changes nothing [B03]');
SELECT is(try('a', 'Add', '{"n": 1}', 0, 'cmd'), 'ok 1', 'a command passes [B03]');
SELECT same($$SELECT who, (command).aggregate_type, (command).aggregate_id, (command).command_type, (command).data,
  (command).expected_version, (command).command_id FROM test.seen$$,
  $$VALUES ('pass', 'counter_c', 'a', 'Add', '{"n": 1}'::jsonb, 0::bigint, 'cmd')$$, 'it was seen [B03]');
SELECT is(try('a', 'Add', '{"n": 1}', 0, 'cmd'), 'duplicate 1', 'a duplicate [B03, rule 1]');
SELECT is((SELECT count(*) FROM test.seen), 2::bigint, 'is seen, too [B03, rule 1]');
SELECT is(try('a', 'Add', '{"n": 1}', 0), 'conflict 1', 'a conflict [rule 1]');
SELECT is((SELECT count(*) FROM test.seen), 2::bigint, 'what an interceptor wrote goes with the refusal [rule 5]');
SELECT count(*) FROM evpg_append('counter_c', 'a', evpg_events('{"type": "Odd"}')) \g /dev/null
SELECT is((SELECT count(*) FROM test.seen), 2::bigint, 'append is no command [B03]');
BEGIN;
SELECT evpg_set_context('ann', 'corr', '{"m": 1}') \g /dev/null
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 3', 'with a context [B03]');
SELECT is((SELECT ((command).actor, (command).correlation_id, (command).metadata)::text FROM test.seen
  ORDER BY n DESC LIMIT 1), '(ann,corr,"{""m"": 1}")', 'it sees the context [B03]');
COMMIT;

-- order and filters
TRUNCATE test.seen;
SELECT evpg_register_interceptor('late', 'test.pass_too', priority => 10) \g /dev/null
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 4', 'two interceptors [B03]');
SELECT is((SELECT string_agg(who, ' ' ORDER BY n) FROM test.seen), 'pass pass_too', 'lowest priority first [B03]');
SELECT is(evpg_register_interceptor('late', 'test.pass_too', priority => -2147483648), true, 'a priority changes [B03]');
TRUNCATE test.seen;
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 5', 'at once [B03]');
SELECT is((SELECT string_agg(who, ' ' ORDER BY n) FROM test.seen), 'pass_too pass', 'the other order [B03]');
SELECT evpg_register_interceptor('late', 'test.pass_too', '{counter}', '{Add}') \g /dev/null
SELECT evpg_register_interceptor('one', 'test.pass', '{counter,counter_c}', '{Nothing,Subtract}') \g /dev/null
TRUNCATE test.seen;
SELECT count(*) FROM (VALUES ('counter', 'Add'), ('counter', 'Nothing'), ('counter_c', 'Add'),
  ('counter_c', 'Nothing')) x (t, c), evpg_try_execute(t, 'f', c, '{"n": 1}') \g /dev/null
SELECT is((SELECT string_agg(who || ':' || (command).aggregate_type || ':' || (command).command_type, ' ' ORDER BY n)
  FROM test.seen),
  'pass_too:counter:Add pass:counter:Nothing pass:counter_c:Nothing', 'filters by aggregate and command type [B03]');
SELECT is(ARRAY[evpg_drop_interceptor('late'), evpg_drop_interceptor('one'), evpg_drop_interceptor('one', true)], '{t,t,f}',
  'dropped [B03]');
SELECT refused($$SELECT evpg_drop_interceptor('one')$$, '42704 interceptor "one" is not registered', 'once [B03]');
TRUNCATE test.seen;
SELECT is(try('a', 'Add', '{"n": 1}'), 'ok 6', 'a command [B03]');
SELECT is((SELECT count(*) FROM test.seen), 0::bigint, 'is seen by nobody [B03]');

-- changing the command
SELECT evpg_register_interceptor('double', 'test.double', NULL, '{Add}') \g /dev/null
SELECT same($$SELECT data, metadata FROM evpg_execute('counter_c', 'd', 'Add', '{"n": 3}')$$,
  $$VALUES ('{"n": 6}'::jsonb, '{"doubled": true}'::jsonb)$$,
  'an interceptor changes data and metadata [B03]');
SELECT evpg_register_interceptor('double twice', 'test.double', NULL, '{Add}', 1) \g /dev/null
SELECT is((SELECT data FROM evpg_execute('counter_c', 'd', 'Add', '{"n": 3}')), '{"n": 12}',
  'the next sees what the one before made of it [B03]');
SELECT is(try('d', 'Add', '{"n": 5}', NULL, 'twice'), 'ok 3', 'under an id [rule 4]');
SELECT is(try('d', 'Add', '{"n": 5}', NULL, 'twice'), 'duplicate 3', 'it is the same command again [rule 4]');
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
SELECT is(try('e', 'Add', '{"n": 5}', NULL, 'priced'), 'ok 1', 'an interceptor adds a price [rule 4]');
SELECT is(try('e', 'Add', '{"n": 5}', NULL, 'priced'), 'duplicate 1',
  'another price the second time is no other command [rule 4]');
SELECT refused($$SELECT evpg_execute('counter_c', 'e', 'Add', '{"n": 6}', command_id => 'priced')$$, 'VE005 %',
  'other data of the caller is another command [rule 4]');
SELECT is(try('e', 'Add', '{"n": 5, "order": "o1"}'), 'ok 2', 'an interceptor gives a command its id [rule 4]');
SELECT is(try('e', 'Add', '{"n": 5, "order": "o1"}'), 'duplicate 2', 'under which it is known [rule 4]');
SELECT refused($$SELECT evpg_execute('counter_c', 'e', 'Add', '{"n": 6, "order": "o1"}')$$, 'VE005 %',
  'with what the caller sent [rule 4]');
SELECT evpg_drop_interceptor('enrich') \g /dev/null
SELECT is(try('e', 'Add', '{"n": 5}', NULL, 'priced'), 'duplicate 1',
  'a command is known by what the caller sent, also when the interceptor is gone [rule 4]');

-- refusing
SELECT evpg_register_interceptor('guard', 'test.guard') \g /dev/null
SELECT evpg_register_interceptor('after', 'test.pass', priority => 1) \g /dev/null
TRUNCATE test.seen;
SELECT trace() AS before \gset
SELECT same($$SELECT * FROM evpg_try_execute('counter_c', 'd', 'Add', '{"n": 13}')$$,
  $$VALUES ('intercepted', 'counter_c', 'd', 3::bigint, NULL::bigint, '[]'::jsonb, 'VE011', 'unlucky', 'not thirteen',
  '{"n": 13}'::jsonb, NULL::text)$$,
  'an interceptor refuses [B03, rule 8]');
SELECT same($$SELECT status, version, code, message, detail, hint
  FROM evpg_try_execute('counter_c', 'new', 'Add', '{"n": 14}')$$,
  $$VALUES ('intercepted', 0::bigint, 'guard', 'nor fourteen', NULL::jsonb, 'try fifteen')$$,
  'an interceptor that raises VE011 refuses; the code is its name [B03, rule 8]');
SELECT is(trace(), :'before', 'nothing is written [rule 5]');
SELECT is((SELECT count(*) FROM test.seen), 0::bigint, 'the first refusal counts, the next is not asked [B03, 2.4 test 5]');
SELECT refused($$SELECT evpg_execute('counter_c', 'd', 'Add', '{"n": 13}')$$, 'VE011 not thirteen',
  'execute raises VE011 [rule 8]');
SELECT is(error_fields($$SELECT evpg_execute('counter_c', 'd', 'Add', '{"n": 13}')$$), 'unlucky|{"n": 13}|',
  'with code and detail [rule 8]');
SELECT refused(format($$SELECT %s('counter_c', 'd', 'Add', '{"n": %s}')$$, f, n), error, f || ': interceptor '
  || what || ' [rule 8]')
  FROM unnest('{evpg_execute,evpg_try_execute}'::text[]) f, (VALUES
  (16, 'P0001 a defect', 'with a defect'), (17, 'VE009 interceptor "guard" returned null', 'that returns NULL'),
  (18, 'VE009 interceptor "guard" must not change aggregate type and id', 'that changes the id'),
  (19, '22023 command type must not be empty', 'that empties the type'),
  (20, 'VE009 interceptor "guard" must not change aggregate type and id', 'that changes the aggregate type'),
  (21, '22023 expected_version -5 is out of range', 'that expects -5'),
  (22, '22023 metadata must be a JSON object', 'that spoils the metadata')) x (n, error, what);
SELECT is(try('d', 'Add', '{"n": 23}'), 'conflict 3', 'it may add an expectation [B03]');
SELECT is(try('d', 'Subtract', '{"n": 24}'), 'ok 4', 'an interceptor may remove an expectation [B03]');
SELECT is(evpg_drop_interceptor('guard'), true, 'dropped [B03]');
SELECT is(try('d', 'Add', '{"n": 13}'), 'ok 5', 'thirteen passes [B03]');

-- what may be an interceptor
CREATE FUNCTION test.strict_one(command evpg.command) RETURNS evpg.command LANGUAGE sql STRICT AS $$ SELECT command $$;
CREATE FUNCTION test.set_of(command evpg.command) RETURNS SETOF evpg.command LANGUAGE sql AS $$ SELECT command $$;
CREATE FUNCTION test.other(command jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT command $$;
SELECT refused(format('SELECT evpg_register_interceptor(%s)', args), error,
  'register_interceptor(' || args || ') [B03, B24]')
  FROM (VALUES
  ($$'x', 'test.strict_one'$$, '42P13 %because it is STRICT'),
  ($$'x', 'test.set_of'$$, '42P13 %cannot serve as interceptor'),
  ($$'x', 'test.other'$$, '42P13 %cannot serve as interceptor'),
  ($$'x', NULL$$, '22004 interceptor must not be null'), ($$NULL, 'test.pass'$$, '22004 interceptor name must not be null'),
  ($$'', 'test.pass'$$, '22023 interceptor name must not be empty'),
  ($$'evpg.x', 'test.pass'$$, 'VE017 %'), ($$'x', 'test.nope'$$, '42883 %'), ($$'x', 0$$, '42883 %'),
  ($$'x', 'test.pass', ARRAY[NULL]$$, '22023 aggregate_types must be %'),
  ($$'x', 'test.pass', priority => NULL$$, '22004 priority must not be null')) x (args, error);

-- one that is gone stops every command, with a clear error
DROP FUNCTION test.pass(evpg.command);
SELECT refused($$SELECT evpg_execute('counter_c', 'd', 'Add', '{"n": 1}')$$,
  '42883 interceptor function test.pass(evpg.command) does not exist', 'a function that is gone [B03]');
SELECT is(evpg_drop_interceptor('after'), true, 'unless it is dropped [B03]');
SELECT is(try('d', 'Add', '{"n": 1}'), 'ok 6',
  'commands go on when the interceptor whose function is gone is dropped [B03]');

-- rolled back
CREATE FUNCTION test.pass(command evpg.command) RETURNS evpg.command LANGUAGE plpgsql AS $$
  BEGIN INSERT INTO test.seen (who) VALUES ('pass'); RETURN command; END $$;
TRUNCATE test.seen;
BEGIN;
SAVEPOINT s;
SELECT evpg_register_interceptor('gone', 'test.pass') \g /dev/null
SELECT try('d', 'Add', '{"n": 1}') \g /dev/null
SELECT is((SELECT count(*) FROM test.seen), 1::bigint, 'registered in a transaction, it counts there [B03]');
ROLLBACK TO s;
SELECT is(try('d', 'Add', '{"n": 1}'), 'ok 7', 'rolled back [B03]');
SELECT is((SELECT count(*) FROM test.seen), 0::bigint, 'it does not [B03]');
COMMIT;
SELECT * FROM finish();
