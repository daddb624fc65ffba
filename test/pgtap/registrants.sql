-- registrants.sql: a registration does not outlive the right of who made it (section 9): a function that has come to have
-- the name of one that was registered, and belongs to another role, does not run under the registrant's search_path.

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/same_state.sql

SELECT plan(55);

CREATE ROLE evpg_r_mallory;
CREATE ROLE evpg_r_owner;
CREATE SCHEMA app;
GRANT USAGE, CREATE ON SCHEMA app TO evpg_r_mallory, evpg_r_owner;
CREATE SCHEMA mal AUTHORIZATION evpg_r_mallory;
GRANT USAGE ON SCHEMA mal TO evpg_r_owner;
SELECT evpg_grant('evpg_r_mallory', 'operator'), evpg_grant('evpg_r_owner', 'operator') \g /dev/null

-- Makes all functions, as the current role.  Each notes as whom, and along which path, it ran.
CREATE TABLE test.ran (who text, path text);
GRANT INSERT, SELECT ON test.ran TO PUBLIC;
GRANT USAGE ON SCHEMA test TO PUBLIC;
CREATE FUNCTION test.make() RETURNS void LANGUAGE plpgsql AS $make$
DECLARE
  note text := 'INSERT INTO test.ran VALUES (current_user, current_setting(''search_path''));';
BEGIN
  EXECUTE format($$CREATE FUNCTION app.decide(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql
    AS 'BEGIN %s RETURN public.evpg_event(command.command_type, command.data); END'$$, replace(note, '''', ''''''));
  CREATE FUNCTION app.fold(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
  CREATE FUNCTION app.holds(state jsonb) RETURNS boolean LANGUAGE sql AS 'SELECT true';
  CREATE FUNCTION app.pass(command evpg.command) RETURNS evpg.command LANGUAGE sql AS 'SELECT command';
  CREATE FUNCTION app.reduce(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS 'SELECT event.data';
  CREATE FUNCTION app.write(event evpg.event) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
  CREATE FUNCTION app.key(event evpg.event) RETURNS text LANGUAGE sql AS 'SELECT event.aggregate_id';
  CREATE FUNCTION app.empty() RETURNS void LANGUAGE sql AS '';
  CREATE FUNCTION app.react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql
    AS $$ SELECT public.evpg_reaction(state,
    public.evpg_action_send('plain', 's', CASE event.data->>'do' WHEN 'refuse' THEN 'Refuse' ELSE 'Sent' END),
    CASE event.data->>'do' WHEN 'time' THEN public.evpg_action_schedule('t', '0 seconds') END) $$;
  CREATE FUNCTION app.refused(state jsonb, rejection evpg.rejection) RETURNS evpg.reaction LANGUAGE sql
    AS 'SELECT public.evpg_reaction(state)';
  CREATE FUNCTION app.fired(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE sql
    AS 'SELECT public.evpg_reaction(state)';
  CREATE FUNCTION app.translate(payload jsonb) RETURNS evpg.command LANGUAGE sql AS $$
    SELECT public.evpg_command('plain', 't', 'Received')
  $$;
  CREATE FUNCTION app.hear(event evpg.event) RETURNS void LANGUAGE sql AS 'SELECT';
END $make$;
-- What is registered, as the current role.
CREATE FUNCTION test.register() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  -- the oids of functions must not be kept
  EXECUTE $run$ SELECT public.evpg_register_aggregate('target', 'app.decide', 'app.fold', invariant => 'app.holds'),
         public.evpg_register_interceptor('target', 'app.pass', '{intercepted}'),
         public.evpg_register_listener('hearing', 'app.hear', '{heard}'),
         public.evpg_register_projection('reducing', reducer => 'app.reduce', aggregate_types => '{r}',
           key_function => 'app.key'),
         public.evpg_register_projection('writing', handler => 'app.write', aggregate_types => '{w}', reset => 'app.empty'),
         public.evpg_register_projection('later', mode => 'async', handler => 'app.write', aggregate_types => '{w}'),
         public.evpg_register_saga('reacting', handler => 'app.react', rejection_handler => 'app.refused',
           timer_handler => 'app.fired', aggregate_types => '{s}',
           event_types => '{Go}', key_function => 'app.key', max_attempts => 1),
         public.evpg_register_translator('translating', 'app.translate') $run$;
END $$;
CREATE FUNCTION test.registered(OUT what text, OUT registered_by text) RETURNS SETOF record LANGUAGE sql AS $$
  SELECT 'aggregate ' || aggregate_type, registered_by FROM evpg.aggregate_type WHERE aggregate_type = 'target'
  UNION ALL SELECT 'interceptor ' || name, registered_by FROM evpg.interceptor
  UNION ALL SELECT 'listener ' || name, registered_by FROM evpg.listener
  UNION ALL SELECT 'projection ' || name, registered_by FROM evpg.projection
  UNION ALL SELECT 'saga ' || name, registered_by FROM evpg.saga
  UNION ALL SELECT 'translator ' || name, registered_by FROM evpg.translator ORDER BY 1
$$;

-- plain types of the superuser
CREATE FUNCTION test.plain(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
BEGIN
  IF command.command_type = 'Refuse' THEN PERFORM public.evpg_reject('no'); END IF;
  RETURN public.evpg_event(command.command_type, command.data);
END $$;
SELECT evpg_register_aggregate(t, 'test.plain', 'test.same_state')
  FROM unnest('{plain,intercepted,heard,r,w,s}'::text[]) t \g /dev/null

SET ROLE evpg_r_mallory;
SET search_path = mal;
SELECT test.make(), test.register() \g /dev/null
RESET ROLE;
SET search_path = public, test;
SELECT is((SELECT string_agg(DISTINCT registered_by, ' ') || ' ' || count(*) FROM registered()), 'evpg_r_mallory 8',
  'who registers is kept, of all');
SELECT is((SELECT count(*) FROM evpg.interceptor, evpg.translator t
  WHERE interceptor.registered_at <= clock_timestamp() AND t.registered_at <= clock_timestamp()), 1::bigint,
    'the time of a registration is kept');
CREATE TABLE test.uses (n int GENERATED ALWAYS AS IDENTITY, what text, run text);
INSERT INTO test.uses (what, run) VALUES
  ('handler', $$SELECT evpg_execute('target', '1', 'Open')$$),
  ('interceptor', $$SELECT evpg_execute('intercepted', '1', 'Open')$$),
  ('listener', $$SELECT evpg_execute('heard', '1', 'Open')$$),
  ('key function', $$SELECT evpg_execute('r', '1', 'Open')$$),
  ('projection handler', $$SELECT evpg_execute('w', '1', 'Open')$$),
  ('reset function', $$SELECT evpg_rebuild_projection('writing')$$),
  ('translator', $$SELECT evpg_receive_message('s', gen_random_uuid()::text, 'translating', '{}')$$);
-- what goes wrong in the background
CREATE FUNCTION test.last_error(of_consumer text) RETURNS text LANGUAGE sql AS $$
  SELECT last_sqlstate || ' ' || last_error FROM evpg.consumer WHERE name = of_consumer
$$;
CREATE FUNCTION test.last_letter() RETURNS text LANGUAGE sql AS $$
  SELECT sqlstate || ' ' || message FROM evpg.dead_letter ORDER BY dead_letter_id DESC LIMIT 1
$$;

SELECT is(error_of(run), 'no error', what || ': runs while its owner has registered it') FROM test.uses ORDER BY n;
SELECT count(*) FROM evpg_execute('s', 'one', 'Go', '{"do": "time"}') \g /dev/null
CALL evpg_run(10);
CALL evpg_run(10);
SELECT is(last_error('later'), NULL, 'an asynchronous projection runs as its registrant may');
SELECT is((SELECT version || ' ' || dead_letters FROM evpg_saga('reacting', 'one')), '2 0',
  'a saga runs as its registrant may');
SELECT is((SELECT DISTINCT who || ': ' || path FROM test.ran), 'evpg_r_mallory: mal, pg_temp', 'as its owner');

-- mallory's functions go; the same names come to belong to others
CREATE FUNCTION test.hand_over(new_owner regrole) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  f regprocedure;
BEGIN
  FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = 'app'::regnamespace LOOP
    EXECUTE format('DROP FUNCTION %s', f);
  END LOOP;
  EXECUTE format('SET LOCAL ROLE %s', new_owner);
  PERFORM test.make();
  RESET ROLE;
END $$;
CREATE FUNCTION test.refusals(what text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  u test.uses;
BEGIN
  FOR u IN SELECT * FROM test.uses ORDER BY n LOOP
    RETURN NEXT alike(test.error_of(u.run), '42501 role "evpg_r_mallory" may not have ' || u.what || ' app.%',
      u.what || ': ' || refusals.what);
  END LOOP;
END $$;
TRUNCATE test.ran;
SELECT hand_over(current_user::regrole) \g /dev/null
SELECT refusals('a superuser''s function of that name does not run');
SELECT is((SELECT count(*) FROM test.ran), 0::bigint, 'nothing ran');
SELECT hand_over('evpg_r_owner') \g /dev/null
SELECT refusals('nor that of another role');
SELECT is(error_fields($$SELECT evpg_execute('target', '1', 'Open')$$),
  '|It registered the function, which now belongs to role "evpg_r_owner".|Let the owner of the function, or a '
    'superuser, register it again.', 'the error says why, and the way out');
SET evpg.state_cache_size = 0;
-- one after the other, the roles behind the first
DROP FUNCTION app.decide(jsonb, evpg.command);
SET ROLE evpg_r_mallory;
CREATE FUNCTION app.decide(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql
  AS 'SELECT public.evpg_event(''X'')';
RESET ROLE;
SELECT alike(error_of($$SELECT evpg_execute('target', '1', 'Open')$$), '42501 role "evpg_r_mallory" may not have reducer%',
  'a reducer');
ALTER FUNCTION app.fold(jsonb, evpg.event) OWNER TO evpg_r_mallory;
SELECT alike(error_of($$SELECT evpg_execute('target', '1', 'Open')$$), '42501 role "evpg_r_mallory" may not have invariant%',
  'an invariant');
ALTER FUNCTION app.key(evpg.event) OWNER TO evpg_r_mallory;
SELECT alike(error_of($$SELECT evpg_execute('r', '1', 'Open')$$),
  '42501 role "evpg_r_mallory" may not have projection reducer%', 'a projection reducer');

-- in the background; key functions of sagas and their handlers
ALTER FUNCTION app.write(evpg.event) OWNER TO evpg_r_mallory;
SELECT count(*) FROM evpg_execute('w', '1', 'Open') \g /dev/null
ALTER FUNCTION app.write(evpg.event) OWNER TO evpg_r_owner;
SELECT count(*) FROM evpg_execute('s', 'two', 'Go') \g /dev/null
CALL evpg_run(10);
SELECT alike(last_error('later'), '42501 role "evpg_r_mallory" may not have projection handler%',
  'an asynchronous projection');
SELECT is((SELECT count(*) FROM evpg_execute('s', 'three', 'Go', '{"do": "refuse"}')), 1::bigint,
  'commands go on meanwhile');
SELECT alike(last_error('reacting'), '42501 role "evpg_r_mallory" may not have saga handler app.react(%', 'a saga stops');
SELECT is((SELECT status FROM evpg.stat_consumer WHERE name = 'reacting'), 'stopped', 'as with a function that is gone');
ALTER FUNCTION app.react(jsonb, evpg.event) OWNER TO evpg_r_mallory;
SELECT evpg_resume_consumer('reacting') \g /dev/null
CALL evpg_run(10);
SELECT alike(last_error('reacting'), '42501 role "evpg_r_mallory" may not have rejection handler app.refused(%',
  'a rejection handler');
ALTER FUNCTION app.refused(jsonb, evpg.rejection) OWNER TO evpg_r_mallory;
SELECT evpg_resume_consumer('reacting') \g /dev/null
CALL evpg_run(10);
SELECT alike(last_error('reacting'), '42501 role "evpg_r_mallory" may not have timer handler app.fired(%',
  'a timer handler');
ALTER FUNCTION app.fired(jsonb, evpg.fired_timer) OWNER TO evpg_r_mallory;
ALTER FUNCTION app.key(evpg.event) OWNER TO evpg_r_owner;
SELECT evpg_resume_consumer('reacting') \g /dev/null
CALL evpg_run(10);
SELECT alike(last_error('reacting'), '42501 role "evpg_r_mallory" may not have key function app.key(%',
  'a saga''s key function');
SELECT hand_over('evpg_r_owner') \g /dev/null

-- the way out: who owns the functions registers them again, which counts as a change
SELECT is((SELECT registered_by FROM registered() WHERE what = 'aggregate target'), 'evpg_r_mallory',
  'registered by mallory so far');
SET ROLE evpg_r_owner;
SET search_path = mal;
SELECT test.register() \g /dev/null
RESET ROLE;
SET search_path = public, test;
SELECT is((SELECT string_agg(DISTINCT registered_by, ' ') FROM registered()), 'evpg_r_owner',
  'its owner registers all of it again, the same but for who');
SELECT is(error_of(run), 'no error', what || ': runs again') FROM test.uses ORDER BY n;
SELECT is((SELECT DISTINCT who || ': ' || path FROM test.ran), 'evpg_r_owner: mal, pg_temp', 'as its new owner');

-- a role with the privileges of the owner speaks for it
GRANT evpg_r_owner TO evpg_r_mallory;
SET ROLE evpg_r_mallory;
SET search_path = mal;
SELECT test.register() \g /dev/null
RESET ROLE;
SET search_path = public, test;
SELECT is(error_of($$SELECT evpg_execute('target', '1', 'Open')$$), 'no error',
  'a member of the owner''s role can register');
REVOKE evpg_r_owner FROM evpg_r_mallory;
SELECT alike(error_of($$SELECT evpg_execute('target', '1', 'Open')$$), '42501 role "evpg_r_mallory" may not have%',
  'in a session that has used it: until it is none any more');
ALTER ROLE evpg_r_mallory SUPERUSER;
SELECT is(error_of($$SELECT evpg_execute('target', '1', 'Open')$$), 'no error',
  'a registrant that becomes a superuser may run it');
ALTER ROLE evpg_r_mallory NOSUPERUSER;
SELECT alike(error_of($$SELECT evpg_execute('target', '1', 'Open')$$), '42501 role "evpg_r_mallory" may not have%',
  'until it is none any more, either');

-- a role that is renamed, or dropped
ALTER ROLE evpg_r_mallory RENAME TO evpg_r_renamed;
SELECT is(error_of($$SELECT evpg_execute('target', '1', 'Open')$$),
  '42704 role "evpg_r_mallory", which registered handler app.decide(pg_catalog.jsonb,evpg.command), does not exist',
    'a role that is gone');
SELECT is(error_of($$SELECT evpg_execute('plain', '1', 'Open')$$), 'no error', 'other types go on');
SELECT register() \g /dev/null
SELECT is(error_of($$SELECT evpg_execute('target', '1', 'Open')$$), 'no error', 'registered again, it works');
DROP OWNED BY evpg_r_renamed, evpg_r_owner CASCADE;
DROP ROLE evpg_r_renamed, evpg_r_owner;
SELECT * FROM finish();
