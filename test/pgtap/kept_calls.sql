-- kept_calls.sql: what calling a user's function needs is kept between calls of a session, which must not show: what has
-- changed since takes effect, and nothing of a call is left for the next one.

\ir include/setup.sql

SET track_functions = 'none';
SELECT plan(52);

CREATE ROLE kept_owner;
CREATE SCHEMA app AUTHORIZATION kept_owner;
GRANT USAGE ON SCHEMA test TO kept_owner;
SELECT evpg_grant('kept_owner', 'operator') \g /dev/null

-- An aggregate for a function that makes the data of an event, as decided by the command; the state is that data.
CREATE FUNCTION app.last(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT event.data';
CREATE FUNCTION app.define(name text, body text, options text DEFAULT 'LANGUAGE sql STABLE') RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('CREATE OR REPLACE FUNCTION app.%I(state jsonb, command evpg.command) RETURNS evpg.new_event %s AS %L',
    name, options, body);
  PERFORM evpg_register_aggregate(name, ('app.' || name)::regproc, 'app.last');
END $$;
-- what a command appends, or its error
CREATE FUNCTION test.said(kind text, data jsonb DEFAULT '{}') RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  RETURN (SELECT string_agg(e.data::text, ',') FROM evpg_execute(kind, 'a', 'Say', data) e);
EXCEPTION WHEN OTHERS THEN
  RETURN SQLSTATE || ' ' || SQLERRM;
END $$;

-- ------------------------------------------------------------------ what changes between two calls

SELECT app.define('replaced', $$SELECT evpg_event('Said', '"one"')$$) \g /dev/null
SELECT is(said('replaced'), '"one"', 'a function in SQL'), is(said('replaced'), '"one"', 'called again');
CREATE OR REPLACE FUNCTION app.replaced(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql STABLE
  AS $$ SELECT evpg_event('Said', '"two"') $$;
SELECT is(said('replaced'), '"two"', 'a function that is replaced takes effect at the next call');
CREATE FUNCTION app.helper() RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT '"helped"'::jsonb $$;
CREATE FUNCTION app.helper_plpgsql() RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN '"helped"'; END $$;
SELECT app.define('helped', $$SELECT evpg_event('Said', app.helper())$$),
  app.define('helped_plpgsql', $$SELECT evpg_event('Said', app.helper_plpgsql())$$) \g /dev/null
SELECT is(said(kind), '"helped"', kind || ', once'), is(said(kind), '"helped"', kind || ', again')
  FROM unnest('{helped,helped_plpgsql}'::text[]) kind;
CREATE OR REPLACE FUNCTION app.helper() RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT '"anew"'::jsonb $$;
CREATE OR REPLACE FUNCTION app.helper_plpgsql() RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN '"anew"'; END $$;
SELECT is(said(kind), '"anew"', 'a function called by that of ' || kind || ' is replaced, too')
  FROM unnest('{helped,helped_plpgsql}'::text[]) kind;
DROP FUNCTION app.helper();
SELECT alike(said('helped'), '42883 %', 'a function that another one calls is dropped');
CREATE FUNCTION app.helper() RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT '"back"'::jsonb $$;
SELECT is(said('helped'), '"back"', 'a function that another one calls is made again');

-- privileges on what it calls
CREATE FUNCTION test.privileged() RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN '"allowed"'; END $$;
REVOKE EXECUTE ON FUNCTION test.privileged() FROM PUBLIC;
CREATE ROLE kept_group;
GRANT EXECUTE ON FUNCTION test.privileged() TO kept_group;
GRANT kept_group TO kept_owner;
SELECT app.define('privileged', $$SELECT evpg_event('Said', test.privileged())$$) \g /dev/null
ALTER FUNCTION app.privileged(jsonb, evpg.command) OWNER TO kept_owner;
SELECT is(said('privileged'), '"allowed"', 'a function runs with the privileges of its owner'),
  is(said('privileged'), '"allowed"', 'called again with the privileges of its owner');
REVOKE kept_group FROM kept_owner;
SELECT alike(said('privileged'), '42501 %', 'a privilege that the owner no longer has by a role is missed at the next call');
GRANT EXECUTE ON FUNCTION test.privileged() TO kept_owner;
SELECT is(said('privileged'), '"allowed"', 'a privilege that is granted takes effect');
REVOKE EXECUTE ON FUNCTION test.privileged() FROM kept_owner;
SELECT alike(said('privileged'), '42501 %', 'a privilege that is revoked is missed at the next call');

-- types that it makes rows of
CREATE TYPE app.pair AS (a int, b text);
SELECT app.define('row', $$SELECT evpg_event('Said', to_jsonb(ROW((command.data->>'n')::int, 'x')::app.pair))$$) \g /dev/null
SELECT is(said('row', '{"n": 1}'), '{"a": 1, "b": "x"}', 'a function makes a row'),
  is(said('row', '{"n": 1}'), '{"a": 1, "b": "x"}', 'and again');
ALTER TYPE app.pair RENAME ATTRIBUTE a TO first;
SELECT is(said('row', '{"n": 1}'), '{"b": "x", "first": 1}', 'a column of the type of a row is renamed');
ALTER TYPE app.pair ADD ATTRIBUTE c int;
SELECT is(said('row', '{"n": 1}'), '{"b": "x", "c": null, "first": 1}', 'a column is added to the type of a row');
ALTER TYPE app.pair ALTER ATTRIBUTE first TYPE text;
SELECT alike(said('row', '{"n": 1}'), '42804 %',
  'a column of the type of a row gets another type: the row is of the old one');

-- ------------------------------------------------------------------ whose call it is

SELECT app.define('whose', $$SELECT evpg_event('Said', jsonb_build_object('user', current_user, 'schema', current_schema(),
  'zone', current_setting('TimeZone'), 'time', '2026-01-01 12:00Z'::timestamptz::text))$$) \g /dev/null
ALTER FUNCTION app.whose(jsonb, evpg.command) OWNER TO kept_owner;
SET TimeZone = 'Asia/Tokyo';
SELECT said('whose') AS whose \gset
SELECT is(:'whose'::jsonb, '{"user": "kept_owner", "schema": "public", "zone": "UTC", "time": "2026-01-01 12:00:00+00"}',
  'a function runs as its owner, under its search_path and the pinned settings [rule 8]');
SET search_path = pg_catalog, public, test;
SET TimeZone = 'America/New_York';
SELECT is(said('whose'), :'whose', 'a function runs as its owner in later calls, whatever the session has set [rule 8]');
RESET TimeZone;
SET search_path = public, test;
SELECT is(said('whose'), :'whose', 'a function runs as its owner in a third call [rule 8]');

-- a reducer of a projection that makes a row: evpg_projected() is inlined
CREATE FUNCTION app.shown(state jsonb, event evpg.event) RETURNS evpg.projected LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN event.data ? 'gone' THEN evpg_projected(NULL, event.data)
    WHEN event.data ? 'whose' THEN evpg_projected(jsonb_build_object('user', current_user,
      'zone', to_char('2026-01-01 12:00Z'::timestamptz, 'HH24')), NULL)
    ELSE evpg_projected(state || event.data, event.data) END $$;
ALTER FUNCTION app.shown(jsonb, evpg.event) OWNER TO kept_owner;
SELECT app.define('showing', $$SELECT evpg_event('Said', command.data)$$) \g /dev/null
SELECT evpg_register_projection('shown', reducer => 'app.shown', aggregate_types => '{showing}', initial_state => '{"n": 0}')
  \g /dev/null
-- the row after a command
CREATE FUNCTION test.shown(data jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM said('showing', data);
  RETURN (SELECT state FROM evpg_projection('shown', 'a'));
END $$;
SET TimeZone = 'Asia/Tokyo';
SELECT is(shown('{"n": 1}'), '{"n": 1}', 'a reducer makes a row'),
  is(shown('{"m": 2}'), '{"m": 2, "n": 1}', 'a reducer makes a row of the one before'),
  is(shown('{"whose": 1}'), '{"user": "kept_owner", "zone": "12"}', 'a reducer that makes a row runs as its owner [rule 8]'),
  is(shown('{"gone": 1}'), NULL, 'a reducer makes a row without a state'),
  is(shown('{"n": 3}'), '{"n": 3}', 'a reducer makes a row again');
RESET TimeZone;
BEGIN;
ALTER TYPE evpg.projected ADD ATTRIBUTE short_lived int;
ALTER TYPE evpg.projected DROP ATTRIBUTE short_lived;
SELECT is(shown('{"m": 4}'), '{"m": 4, "n": 3}', 'the type of the row of a reducer has lost a column');
ROLLBACK;
SELECT is(shown('{"m": 5}'), '{"m": 5, "n": 3}', 'the type of the row of a reducer is as it was');

-- ------------------------------------------------------------------ what one call leaves for the next one

CREATE TABLE app.line (n int);
SELECT app.define('reads', $$SELECT evpg_event('Said', (SELECT to_jsonb(count(*)) FROM app.line))$$, 'LANGUAGE sql'),
  app.define('reads_own', $$SELECT evpg_event('Said', (SELECT to_jsonb(count(*)) FROM app.line))$$,
    'LANGUAGE sql SET work_mem = 1024') \g /dev/null
SELECT is(string_agg(said(kind), ' '), '0 0', 'functions read a table') FROM unnest('{reads,reads_own}'::text[]) kind;
INSERT INTO app.line VALUES (1);
SELECT is(string_agg(said(kind), ' '), '1 1', 'functions see what was committed since')
  FROM unnest('{reads,reads_own}'::text[]) kind;
BEGIN;
INSERT INTO app.line VALUES (2);
SELECT is(string_agg(said(kind), ' '), '2 2', 'functions see what their transaction has written')
  FROM unnest('{reads,reads_own}'::text[]) kind;
SAVEPOINT s;
INSERT INTO app.line VALUES (3);
SELECT is(string_agg(said(kind), ' '), '3 3', 'functions see what a subtransaction has written')
  FROM unnest('{reads,reads_own}'::text[]) kind;
ROLLBACK TO s;
SELECT is(string_agg(said(kind), ' '), '2 2', 'functions do not see what was rolled back')
  FROM unnest('{reads,reads_own}'::text[]) kind;
COMMIT;
DROP TABLE app.line;
SELECT alike(said(kind), '42P01 %', 'a table that is dropped is missed by ' || kind)
  FROM unnest('{reads,reads_own}'::text[]) kind;
CREATE TABLE app.line (n int);
SELECT is(string_agg(said(kind), ' '), '0 0', 'a table that is made again is found')
  FROM unnest('{reads,reads_own}'::text[]) kind;

-- an error in a function
SELECT app.define('fails', $$SELECT evpg_event('Said', to_jsonb((command.data->>'n')::int))$$) \g /dev/null
SELECT is(said('fails', '{"n": 1}'), '1', 'a function that can fail'),
  alike(said('fails', '{"n": "x"}'), '22P02 %', 'fails'),
  is(said('fails', '{"n": 2}'), '2', 'and does not fail the next time');
SELECT alike(context_of($$SELECT evpg_execute('fails', 'a', 'Say', '{"n": "x"}')$$),
  '%SQL statement "SELECT $1 /* app.fails(pg_catalog.jsonb,evpg.command) */"%',
  'an error names the function that raised it');

-- a function that is called while it is called
SELECT app.define('nested', $$
BEGIN
  IF command.data ? 'inside' THEN
    RETURN evpg_event('Said', (SELECT to_jsonb(evpg_execute.aggregate_id || ' ' || evpg_execute.data)
      FROM evpg_execute('nested', command.data->>'inside', 'Say', command.data - 'inside')));
  END IF;
  RETURN evpg_event('Said', command.data);
END $$, 'LANGUAGE plpgsql') \g /dev/null
SELECT is(said('nested', '{"n": 1}'), '{"n": 1}', 'a function without a call inside'),
  is(said('nested', '{"n": 2, "inside": "b"}'), E'"b {\\"n\\": 2}"', 'a function that is called while it is called'),
  is(said('nested', '{"n": 3, "inside": "b"}'), E'"b {\\"n\\": 3}"', 'and again'),
  is(said('nested', '{"n": 4}'), '{"n": 4}', 'and without one');

-- a set that is not read to its end, and one that is
CREATE FUNCTION app.many(state jsonb, command evpg.command) RETURNS SETOF evpg.new_event LANGUAGE sql AS $$
  SELECT evpg_event('Said', to_jsonb(n)) FROM generate_series(1, (command.data->>'n')::int) n $$;
SELECT evpg_register_aggregate('many', 'app.many', 'app.last') \g /dev/null
SET evpg.max_events = 3;
SELECT is(said('many', '{"n": 3}'), '1,2,3', 'a function returns a set'),
  alike(said('many', '{"n": 4}'), 'VE014 %', 'more than is allowed'),
  is(said('many', '{"n": 2}'), '1,2', 'the next set begins anew'),
  is(said('many', '{"n": 0}'), NULL, 'the next set is empty');
RESET evpg.max_events;

-- statistics
SELECT said('helped_plpgsql') \g /dev/null
SET track_functions = 'all';
BEGIN;
SELECT said('helped_plpgsql') \g /dev/null
SELECT is((SELECT calls FROM pg_stat_xact_user_functions WHERE funcname = 'helped_plpgsql'), 1::bigint,
  'track_functions counts calls once it is set');
COMMIT;

SELECT * FROM finish();
