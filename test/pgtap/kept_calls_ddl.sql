-- kept_calls_ddl.sql: DDL between two calls of a user's function takes effect at the second one, also in the same
-- transaction, whatever the server or the function remembers of the first one.

\ir include/setup.sql

SELECT plan(74);

CREATE ROLE ddl_owner;
CREATE SCHEMA app AUTHORIZATION ddl_owner;
GRANT USAGE ON SCHEMA test TO ddl_owner;
SELECT evpg_grant('ddl_owner', 'operator') \g /dev/null
CREATE FUNCTION app.last(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT event.data';

-- An aggregate whose handler, owned by ddl_owner, makes an event of the value of an expression.
CREATE FUNCTION test.define(name text, value text, language text DEFAULT 'sql') RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('CREATE FUNCTION app.%I(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE %s AS %L',
    name, language, format(CASE language WHEN 'sql' THEN $q$SELECT evpg_event('Said', to_jsonb(%s))$q$
      ELSE $q$BEGIN RETURN evpg_event('Said', to_jsonb(%s)); END$q$ END, value));
  EXECUTE format('ALTER FUNCTION app.%I(jsonb, evpg.command) OWNER TO ddl_owner', name);
  PERFORM evpg_register_aggregate(name, ('app.' || name)::regproc, 'app.last');
END $$;
-- What a command appends.  No exception is caught, for a subtransaction makes functions forget.
CREATE FUNCTION test.told(kind text, data jsonb DEFAULT '{}') RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  RETURN (SELECT string_agg(e.data::text, ',') FROM evpg_execute(kind, 'a', 'Say', data) e);
END $$;
-- What a command appends, twice, and again after a statement, all in one transaction.
CREATE FUNCTION test.around(kind text, statement text, data jsonb DEFAULT '{}') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  first text := test.told(kind, data);
  again text := test.told(kind, data);
BEGIN
  EXECUTE statement;
  RETURN format('%s, %s, then %s', first, again, test.told(kind, data));
END $$;

-- ------------------------------------------------------------------ tables that a function in SQL reads

CREATE VIEW app.shown AS SELECT 1 AS v;
CREATE TABLE app.parent (v int);
INSERT INTO app.parent VALUES (1);
CREATE TABLE app.parted (v int) PARTITION BY LIST (v);
CREATE TABLE app.parted_1 PARTITION OF app.parted FOR VALUES IN (1);
INSERT INTO app.parted VALUES (1);
CREATE TABLE app.retyped (v int);
INSERT INTO app.retyped VALUES (1);
CREATE TABLE app.remade (v int);
INSERT INTO app.remade VALUES (1);
CREATE TABLE app.indexed AS SELECT v, 'x' AS x FROM generate_series(1, 1000) v;
CREATE INDEX indexed_v ON app.indexed (v);
ALTER TABLE app.indexed ADD CONSTRAINT indexed_x UNIQUE (x, v);
ANALYZE app.indexed;
CREATE TABLE app.secret (v int);
INSERT INTO app.secret VALUES (1), (2);
CREATE FUNCTION app.one() RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN 1; END';
GRANT SELECT ON ALL TABLES IN SCHEMA app TO ddl_owner;

CREATE TEMP TABLE change (n int GENERATED ALWAYS AS IDENTITY, name text, value text, statement text, expected text);
INSERT INTO change (name, value, statement, expected) VALUES
  ('a view is replaced', '(SELECT v FROM app.shown)',
   'CREATE OR REPLACE VIEW app.shown AS SELECT 101 AS v', '1, 1, then 101'),
  ('a child of a table is created', '(SELECT sum(v) FROM app.parent)',
   'CREATE TABLE app.child () INHERITS (app.parent); INSERT INTO app.child VALUES (6)', '1, 1, then 7'),
  ('a child of a table is dropped', '(SELECT sum(v) FROM app.parent)', 'DROP TABLE app.child', '7, 7, then 1'),
  ('a partition is created', '(SELECT sum(v) FROM app.parted)',
   'CREATE TABLE app.parted_2 PARTITION OF app.parted FOR VALUES IN (6); INSERT INTO app.parted VALUES (6)', '1, 1, then 7'),
  ('a partition is detached', '(SELECT sum(v) FROM app.parted)', 'ALTER TABLE app.parted DETACH PARTITION app.parted_2',
   '7, 7, then 1'),
  ('a column gets another type', '(SELECT v FROM app.retyped)',
   'ALTER TABLE app.retyped ALTER v TYPE text', '1, 1, then "1"'),
  ('a column is dropped before another', '(SELECT sum(v) FROM app.retyped_too)',
   'ALTER TABLE app.retyped_too DROP COLUMN first', '1, 1, then 1'),
  ('a table is dropped and created', '(SELECT v FROM app.remade)',
   'DROP TABLE app.remade; CREATE TABLE app.remade AS SELECT 5 AS v; GRANT SELECT ON app.remade TO ddl_owner',
   '1, 1, then 5'),
  ('an index is dropped', '(SELECT v FROM app.indexed WHERE v = 7)', 'DROP INDEX app.indexed_v', '7, 7, then 7'),
  ('a constraint is dropped', $$(SELECT v FROM app.indexed WHERE x = 'x' AND v = 7)$$,
   'ALTER TABLE app.indexed DROP CONSTRAINT indexed_x', '7, 7, then 7'),
  ('row security is enabled', '(SELECT count(*) FROM app.secret)', 'ALTER TABLE app.secret ENABLE ROW LEVEL SECURITY',
   '2, 2, then 0'),
  ('a policy is created', '(SELECT count(*) FROM app.secret)', 'CREATE POLICY only_one ON app.secret USING (v = app.one())',
   '0, 0, then 1'),
  ('a policy is altered', '(SELECT count(*) FROM app.secret)',
   'ALTER POLICY only_one ON app.secret USING (true)', '1, 1, then 2'),
  ('a policy is dropped', '(SELECT count(*) FROM app.secret)', 'DROP POLICY only_one ON app.secret', '2, 2, then 0');
CREATE TABLE app.retyped_too (first text, v int);
INSERT INTO app.retyped_too VALUES ('x', 1);
GRANT SELECT ON app.retyped_too TO ddl_owner;

SELECT define('change_' || n, value) FROM change \g /dev/null
SET enable_seqscan = off;
SET row_security = on;
SELECT is(around('change_' || n, statement), expected, name || ' between two calls of a function in SQL')
  FROM change ORDER BY n;
RESET enable_seqscan;
RESET row_security;

-- the same for other code than handlers, in which a function in SQL is called many times in a command
CREATE TABLE app.factor AS SELECT 1 AS f;
CREATE FUNCTION app.fold(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS
  $$ SELECT to_jsonb((SELECT sum(f) FROM app.factor) * (event.data #>> '{}')::int) $$;
CREATE FUNCTION app.fold_key(event evpg.event) RETURNS text LANGUAGE sql STABLE AS
  $$ SELECT (SELECT sum(f)::text FROM app.factor) $$;
CREATE FUNCTION app.holds(state jsonb) RETURNS boolean LANGUAGE sql STABLE AS
  $$ SELECT (SELECT sum(f) FROM app.factor) < 100 $$;
SELECT define('folded', $$command.data->'n'$$) \g /dev/null
SELECT evpg_register_aggregate('folded', 'app.folded', 'app.fold', invariant => 'app.holds') \g /dev/null
SELECT evpg_register_projection('fold', reducer => 'app.fold', aggregate_types => '{folded}', key_function => 'app.fold_key')
  \g /dev/null
BEGIN;
SELECT told('folded', '{"n": 3}'), told('folded', '{"n": 3}') \g /dev/null
SELECT is((SELECT state::text FROM evpg_state('folded', 'a')), '3', 'a reducer in SQL that reads a table');
SELECT is((SELECT string_agg(key || ' ' || state, ', ') FROM evpg.projected_state WHERE name = 'fold'), '1 3',
  'a projection in SQL that reads a table');
CREATE TABLE app.factors () INHERITS (app.factor);
INSERT INTO app.factors VALUES (9);
SELECT told('folded', '{"n": 3}') \g /dev/null
SELECT is((SELECT state::text FROM evpg_state('folded', 'a')), '30',
  'a reducer sees a child of the table that was just created');
SELECT is((SELECT string_agg(key || ' ' || state, ', ' ORDER BY key) FROM evpg.projected_state WHERE name = 'fold'),
  '1 3, 10 30', 'a projection and its key function see a child of the table that was just created');
INSERT INTO app.factors VALUES (1000);
SELECT alike(error_of($$SELECT told('folded', '{"n": 3}')$$), 'VE006 %', 'an invariant sees it, too');
COMMIT;

-- a function in SQL that one in PL/pgSQL calls is the server's affair; one that a handler in SQL calls is evpg's
CREATE VIEW app.deeper AS SELECT 1 AS v;
GRANT SELECT ON app.deeper TO ddl_owner;
CREATE FUNCTION app.deep() RETURNS int LANGUAGE sql STABLE AS $$ SELECT (SELECT v FROM app.deeper) $$;
SELECT define('deep_call', 'app.deep()'), define('own_sql', '(SELECT v FROM app.deeper)', 'plpgsql') \g /dev/null
SELECT is(around(kind, format('CREATE OR REPLACE VIEW app.deeper AS SELECT %s AS v', v)), expected,
  'a view is replaced that is read by ' || kind)
  FROM (VALUES ('deep_call', 2, '1, 1, then 2'), ('own_sql', 3, '2, 2, then 3')) x (kind, v, expected);

-- ------------------------------------------------------------------ types

-- Each is called before and after statements that change types, in one transaction; then in the next transaction, after
-- they were changed once more.
CREATE TYPE app.row1 AS (a int);
CREATE TYPE app.row2 AS (a int);
CREATE TYPE app.row3 AS (a int, b int);
CREATE TYPE app.holder AS (r app.row1);
CREATE DOMAIN app.row_domain AS app.row1;
CREATE TABLE app.t (a int);
CREATE TYPE app.kind AS ENUM ('x', 'y');
CREATE DOMAIN app.small AS int;
CREATE TEMP TABLE typed (n int GENERATED ALWAYS AS IDENTITY, name text, value text, data jsonb);
INSERT INTO typed (name, value, data) VALUES
  ('jsonb_populate_record', $$jsonb_populate_record(NULL::app.row1, command.data)$$, '{"a": 1, "b": 2}'),
  ('json_populate_record', $$json_populate_record(NULL::app.row1, command.data::json)$$, '{"a": 1, "b": 2}'),
  ('jsonb_populate_record of a table', $$jsonb_populate_record(NULL::app.t, command.data)$$, '{"a": 1, "b": 2}'),
  ('jsonb_populate_record of a domain', $$jsonb_populate_record(NULL::app.row_domain, command.data)$$, '{"a": 1, "b": 2}'),
  ('jsonb_populate_record of a row in a row', $$jsonb_populate_record(NULL::app.holder, command.data)$$,
   '{"r": {"a": 1, "b": 2}}'),
  ('a row compared with another', $$jsonb_populate_record(NULL::app.row1, command.data)
    = jsonb_populate_record(NULL::app.row1, command.data || '{"b": 3}')$$, '{"a": 1, "b": 2}'),
  ('a row made of a text', $$(command.data->>'row')::app.row2$$, '{"row": "(1)"}'),
  ('an array of rows made of a text', $$(command.data->>'rows')::app.row2[]$$, '{"rows": "{(1)}"}'),
  ('the text of a row', $$jsonb_populate_record(NULL::app.row1, command.data)::text$$, '{"a": 1, "b": 2}'),
  ('the texts of rows', $$concat(ARRAY[jsonb_populate_record(NULL::app.row1, command.data)])$$, '{"a": 1, "b": 2}'),
  ('a row that is constructed', $$ROW((command.data->>'a')::int, 2)::app.row3$$, '{"a": 1}');
SELECT define('typed_' || n, value) FROM typed \g /dev/null
-- what each would say in a session that has not called it before
CREATE FUNCTION test.fresh(value text, data jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  said text;
BEGIN
  EXECUTE format('SELECT to_jsonb(%s)::text FROM (SELECT $1 AS data) command', value) INTO said USING data;
  RETURN said;
EXCEPTION WHEN OTHERS THEN
  RETURN SQLSTATE;
END $$;
CREATE FUNCTION test.told_or_not(kind text, data jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  RETURN told(kind, data);
EXCEPTION WHEN OTHERS THEN
  RETURN SQLSTATE;
END $$;
BEGIN;
SELECT is(told('typed_' || n, data), fresh(value, data), name),
  is(told('typed_' || n, data), fresh(value, data), name || ', again')
  FROM typed ORDER BY n;
ALTER TYPE app.row1 ADD ATTRIBUTE b int;
ALTER TYPE app.row2 RENAME ATTRIBUTE a TO first;
ALTER TYPE app.row3 RENAME ATTRIBUTE a TO first;
ALTER TABLE app.t ADD COLUMN b int;
SELECT is(told('typed_' || n, data), fresh(value, data), name || ', once the type has another attribute')
  FROM typed ORDER BY n;
COMMIT;
ALTER TYPE app.row1 DROP ATTRIBUTE a;
ALTER TYPE app.row2 ADD ATTRIBUTE second int;
ALTER TYPE app.row3 RENAME ATTRIBUTE b TO second;
ALTER TABLE app.t ALTER COLUMN a TYPE text;
SELECT is(told_or_not('typed_' || n, data), fresh(value, data), name || ', once the type was changed in another transaction')
  FROM typed ORDER BY n;

SELECT define('enum', $$(command.data->>'v')::app.kind$$), define('domain', $$(command.data->>'v')::app.small$$) \g /dev/null
SELECT is(told('enum', '{"v": "x"}'), '"x"', 'an enum'), is(told('domain', '{"v": 5}'), '5', 'a domain');
ALTER TYPE app.kind RENAME VALUE 'x' TO 'z';
ALTER DOMAIN app.small ADD CONSTRAINT small CHECK (VALUE < 3);
SELECT alike(error_of($$SELECT told('enum', '{"v": "x"}')$$), '22P02 %', 'a label of an enum is renamed'),
  is(told('enum', '{"v": "z"}'), '"z"', 'the new label of an enum'),
  alike(error_of($$SELECT told('domain', '{"v": 5}')$$), '23514 %', 'a domain gets a constraint');

-- ------------------------------------------------------------------ what a function in C remembers

CREATE FUNCTION test.remembered_calls() RETURNS int LANGUAGE c AS '$libdir/evpg_test_call_state';
CREATE FUNCTION test.watch_executions(regprocedure) RETURNS void LANGUAGE c AS '$libdir/evpg_test_call_state';
CREATE FUNCTION test.watched_executions() RETURNS int LANGUAGE c AS '$libdir/evpg_test_call_state';
SELECT define('remembering', 'test.remembered_calls()') \g /dev/null
SELECT is(around('remembering', 'SELECT'), '0, 0, then 0', 'a function in C begins anew with each call of a handler');
SELECT define('watched', '1', 'plpgsql') \g /dev/null
SELECT is(around('watched', 'SELECT'), '1, 1, then 1', 'a handler that is not watched');
SELECT watch_executions('app.watched(jsonb, evpg.command)') \g /dev/null
SELECT is(around('watched', 'SELECT'), '1, 1, then 1', 'a handler that is watched');
SELECT is(watched_executions(), 3, 'a hook for the execution of functions is called for each call of a handler');

SELECT * FROM finish();
