-- refusals.sql: how functions refuse a command, and what becomes of what they did before.

\ir include/setup.sql

SELECT plan(95);
CREATE TABLE test.side (what text);
CREATE FUNCTION test.handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO test.side VALUES (command.command_type);
  CASE command.command_type
    WHEN 'Reject' THEN PERFORM evpg_reject(command.data->>'code', command.data->>'message', command.data->'detail');
    WHEN 'Raise' THEN RAISE EXCEPTION '%', command.data->>'message' USING ERRCODE = 'VE002', DETAIL
    = command.data->>'detail', HINT = 'a hint', CONSTRAINT = 'raised';
    WHEN 'RaiseBare' THEN RAISE EXCEPTION 'bare' USING ERRCODE = 'VE002';
    WHEN 'RaiseOther' THEN RAISE EXCEPTION 'other' USING ERRCODE = command.data->>'sqlstate';
    WHEN 'Unique' THEN INSERT INTO test.taken VALUES (1), (1);
    WHEN 'Nothing' THEN RETURN NULL;
    ELSE RETURN evpg_event('Done');
  END CASE;
END $$;
CREATE TABLE test.taken (n int CONSTRAINT one_of_each UNIQUE);
CREATE FUNCTION test.apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT state $$;
SELECT evpg_register_aggregate('r', 'test.handle', 'test.apply') \g /dev/null

-- evpg_reject
SELECT same(format($$SELECT status, code, message, detail, hint FROM evpg_try_execute('r', 'a', 'Reject', %L)$$, data),
  wanted, 'evpg_reject: ' || data || ' [B08]') FROM (VALUES
  ('{"code": "c", "message": "m", "detail": {"n": 1.50}}',
  $$VALUES ('rejected', 'c', 'm', '{"n": 1.50}'::jsonb, NULL::text)$$),
  ('{"code": "c"}', $$VALUES ('rejected', 'c', 'command "Reject" of r "a" was refused: c', NULL::jsonb, NULL::text)$$),
  ('{"code": "c", "message": "100 % %s"}', $$VALUES ('rejected', 'c', '100 % %s', NULL::jsonb, NULL::text)$$),
  ('{"code": "c", "detail": [1, "€"]}',
    $$VALUES ('rejected', 'c', 'command "Reject" of r "a" was refused: c', '[1, "€"]'::jsonb, NULL::text)$$),
  ('{"code": "c", "message": "m", "detail": "text"}', $$VALUES ('rejected', 'c', 'm', '"text"'::jsonb, NULL::text)$$),
  ('{"code": "c", "message": "m", "detail": 7}', $$VALUES ('rejected', 'c', 'm', '7'::jsonb, NULL::text)$$),
  ('{"code": "c", "message": "m", "detail": {}}', $$VALUES ('rejected', 'c', 'm', '{}'::jsonb, NULL::text)$$)) x
    (data, wanted);
SELECT refused(format($$SELECT %s('r', 'a', 'Reject', %L)$$, f, data), error, f || ': evpg_reject: '
  || left(data, 40) || ' [B08]') FROM unnest('{evpg_execute,evpg_try_execute}'::text[]) f, (VALUES
  ('{}', '22004 rejection code must not be null'), ('{"code": ""}', '22023 rejection code must not be empty'),
  (E'{"code": "a\\nb"}', '22023 rejection code contains a control character'),
  (jsonb_build_object('code', repeat('x', 256))::text, 'VE014 rejection code is too long')) x (data, error);
SELECT alike(error_of($$SELECT evpg_reject('c', 'outside of a handler')$$), 'VE002 outside of a handler',
  'evpg_reject is an ordinary error [B08]');
SELECT alike(error_of($$SELECT evpg_reject('c')$$), 'VE002 c', 'outside of a handler the code is the message [B08]');
SELECT is((SELECT CASE WHEN true THEN evpg_event('A') ELSE evpg_reject('never') END).type, 'A',
  'it fits into CASE, and is not evaluated while planning [B08]');
SELECT CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'force_parallel_mode'
  ELSE 'debug_parallel_query' END AS parallel \gset
SELECT set_config(:'parallel', 'regress', false) AS set \gset
SELECT is((SELECT message FROM evpg_try_execute('r', 'a', 'Reject', '{"code": "c"}')),
  'command "Reject" of r "a" was refused: c', 'no parallel worker evaluates it, which would not know the command [B08]');
SELECT set_config(:'parallel', 'off', false) AS set \gset

-- a refusal without a message says which command it is, whatever refuses
CREATE FUNCTION test.mute(state jsonb) RETURNS boolean LANGUAGE sql VOLATILE AS $$ SELECT evpg_reject('mute') IS NULL $$;
CREATE FUNCTION test.mute(command evpg.command) RETURNS evpg.command LANGUAGE sql VOLATILE
  AS $$ SELECT CASE WHEN command.command_type = 'Stop' THEN (evpg_reject('stopped') IS NULL)::text::evpg.command ELSE command
    END $$;
CREATE FUNCTION test.outer(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql VOLATILE
  AS $$ SELECT evpg_event('Done') FROM evpg_execute('r', 'inner', 'Reject', '{"code": "c"}') $$;
CREATE FUNCTION test.apply_mute(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql VOLATILE
  AS $$ SELECT to_jsonb(evpg_reject('reduced') IS NULL) $$;
SELECT count(evpg_register_aggregate(t, h::regproc, r::regproc, invariant => i::regprocedure::oid::regproc)) FROM (VALUES
  ('i', 'test.handle', 'test.apply', 'test.mute(jsonb)'), ('o', 'test.outer', 'test.apply', NULL),
  ('f', 'test.handle', 'test.apply_mute', NULL)) x (t, h, r, i) \g /dev/null
SELECT evpg_register_interceptor('stop', 'test.mute(evpg.command)'::regprocedure::oid::regproc, aggregate_types => '{r}')
  \g /dev/null
SELECT refused($$SELECT evpg_execute('i', 'a', 'Do')$$, 'VE006 command "Do" of i "a" was refused: mute',
  'an invariant [B08]');
SELECT refused($$SELECT evpg_execute('r', 'a', 'Stop')$$, 'VE011 command "Stop" of r "a" was refused: stopped',
  'an interceptor [B08]');
SELECT refused($$SELECT evpg_execute('o', 'a', 'Do')$$, 'VE002 command "Reject" of r "inner" was refused: c',
  'the handler of a command that a handler executes [B08]');
SELECT refused($$SELECT evpg_execute('f', 'a', 'Do')$$, 'VE002 reduced', 'a reducer decides nothing [B08]');
SELECT evpg_drop_interceptor('stop') \g /dev/null

-- RAISE with the SQLSTATE of a refusal
SELECT same(format($$SELECT status, sqlstate, code, message, detail, hint FROM evpg_try_execute('r', 'a', 'Raise', %L)$$,
  data), wanted, 'RAISE: ' || data || ' [B08]') FROM (VALUES
  (E'{"message": "m", "detail": "{\\"n\\": 1}"}',
  $$VALUES ('rejected', 'VE002', 'raised', 'm', '{"n": 1}'::jsonb, 'a hint')$$),
  (E'{"message": "m", "detail": "plain \\"text\\""}',
  $$VALUES ('rejected', 'VE002', 'raised', 'm', to_jsonb('plain "text"'::text), 'a hint')$$),
  ('{"message": "m", "detail": "{no json"}', $$VALUES ('rejected', 'VE002', 'raised', 'm', '"{no json"'::jsonb, 'a hint')$$),
  (E'{"message": "m", "detail": "{\\"n\\": 1e400000}"}',
  $$VALUES ('rejected', 'VE002', 'raised', 'm', to_jsonb('{"n": 1e400000}'::text), 'a hint')$$),
  (E'{"message": "m", "detail": "{\\"n\\": \\"\\\\u0000\\"}"}',
  $$VALUES ('rejected', 'VE002', 'raised', 'm', to_jsonb(E'{"n": "\\u0000"}'::text), 'a hint')$$),
  ('{"message": "m", "detail": "[1, 2"}',
  $$VALUES ('rejected', 'VE002', 'raised', 'm', '"[1, 2"'::jsonb, 'a hint')$$)) x (data, wanted);
SELECT is((SELECT (status, sqlstate, code, length(detail#>>'{}'))::text FROM evpg_try_execute('r', 'a', 'Raise',
  jsonb_build_object('message', 'm', 'detail', repeat('[', 50000) || repeat(']', 50000)))), '(rejected,VE002,raised,100000)',
  'a refusal stays one, however deep its detail [rule 8]');
SELECT is((SELECT (status, coalesce(code, 'none'), message)::text FROM evpg_try_execute('r', 'a', 'RaiseBare')),
  '(rejected,none,bare)', 'RAISE without a constraint name [B08]');
SELECT refused(format($$SELECT %s('r', 'a', 'RaiseOther', '{"sqlstate": "%s"}')$$, f, s), s || ' other', f
  || ': any other error is raised unchanged: ' || s || ' [rule 8]')
  FROM unnest('{evpg_execute,evpg_try_execute}'::text[]) f,
  unnest('{P0001,22023,40001,40P01,VE001,VE003,VE006,VE009,VE011,23505,XX000}'::text[]) s;
SELECT refused($$SELECT evpg_try_execute('r', 'a', 'Unique')$$, '23505 %one_of_each%',
  'a constraint that the handler violates is a defect, too [rule 8]');

-- what a handler wrote
SELECT is((SELECT count(*) FROM test.side), 0::bigint, 'what refused handlers wrote is gone [rule 5]');
SELECT is((SELECT status FROM evpg_try_execute('r', 'a', 'Do')), 'ok', 'what an accepted one [rule 5]');
SELECT is((SELECT array_agg(what) FROM test.side), '{Do}', 'wrote stays [rule 5]');
SELECT is((SELECT array_agg(version) FROM evpg_read_stream('r', 'a')), '{1}', 'one event in all [rule 5]');

-- counters of the session
SELECT results_eq($$SELECT aggregate_type, commands, rejected, conflicts, noops, duplicates, events, unknown_events,
  cache_hits, folds, snapshots FROM evpg_session_stats() WHERE aggregate_type = 'nope'$$,
  $$SELECT ''::text, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint,
  0::bigint WHERE false$$, 'a type that was not used has no counters [A23]');
SELECT evpg_register_aggregate('s', 'test.handle', 'test.apply', snapshot_every => 2) \g /dev/null
SELECT count(*) FROM (VALUES ('Do', NULL, NULL), ('Do', NULL, 'id'), ('Do', NULL, 'id'), ('Nothing', NULL, NULL),
  ('Do', 0, NULL), ('RaiseBare', NULL, NULL), ('Do', 2, NULL)) x (t, v, id),
  evpg_try_execute('s', 'a', t, '{}', v, id) \g /dev/null
SELECT is((SELECT s::text FROM evpg_session_stats() s WHERE aggregate_type = 's'), '(s,7,1,1,1,1,3,0,4,3,1)',
  'commands, rejected, conflicts, no-ops, duplicates, events, unknown, cache hits, folds, snapshots [A23]');
SELECT * FROM finish();
